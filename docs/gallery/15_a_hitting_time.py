"""When will it be hit?

E exp(-τ) for the first time τ at which a process that is pulled back to 0 meets 1, as f at the start; and the push
that makes it likely.
"""

import matplotlib.pyplot as plt

import fem_hjb as fh

target = fh.Box([-float("inf")], [1.0], boundary=[("natural", "absorbing")])
rewards = dict(running_reward=lambda t, x: -1.0 + 0 * x[..., 0], terminal_reward=lambda x: 0 * x[..., 0])
process = dict(drift=fh.LinearDrift([[-1.0]], [0.0]), diffusion=0.5, initial_law=fh.PointMass([0.0]), domain=target)
problem = fh.ControlProblem(dim=1, horizon=8.0, temperature=1.0, **rewards, **process)
solution, axes = fh.solve(problem, rtol=1e-3), plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")[1]
for ax, quantity in zip(axes, ("value", "policy")):
    fh.plot.solution(solution, 0.0, quantity=quantity, box=fh.Box([-1.2], [1.0]), ax=ax)
