"""As the temperature falls.

Noise as small as the temperature, and two targets at -1 and 1: the value gets a kink between them, and the policy
takes sides. `solve` works with v itself, so that nothing underflows.
"""

import matplotlib.pyplot as plt

import fem_hjb as fh

axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")[1]
paid = lambda x: -((x[..., 0] ** 2 - 1) ** 2)
rest = dict(drift=lambda t, x: 0 * x, terminal_reward=paid, initial_law=fh.Gaussian([0.0], 0.2))
for alpha, style in zip((1.0, 0.3, 0.1, 0.03), fh.plot.STYLES):
    problem = fh.ControlProblem(dim=1, horizon=1.0, temperature=alpha, diffusion=alpha, **rest)
    solution = fh.solve(problem, rtol=1e-3)
    look = dict(box=fh.Box([-1.5], [1.5]), label=rf"$\alpha={alpha:g}$", style={**style, "marker": None})
    fh.plot.solution(solution, 0.0, ax=axes[0], **look)
    fh.plot.solution(solution, 0.0, quantity="policy", ax=axes[1], **look)
axes[0].legend()
