"""The law with control, and without.

Densities at five times of a double well that is paid for ending in the right one. Both from the Fokker–Planck
equation.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

drift, paid = lambda t, x: -4 * (x**3 - x), lambda x: -4 * (x[..., 0] - 1) ** 2
process = dict(dim=1, horizon=2.0, temperature=1.0, drift=drift, diffusion=1.0, initial_law=fh.Gaussian([-1.0], 0.02))
problem = fh.ControlProblem(terminal_reward=paid, **process)
solution, x = fh.solve(problem, rtol=1e-3), np.linspace(-2.0, 2.0, 400)
within = lambda t, x: solution.policy(t, np.clip(x, *solution.space.box.bounds))
laws = [fh.fokker_planck.solve(problem, policy=policy, rtol=1e-3) for policy in (None, within)]
axes = plt.subplots(1, 5, figsize=(11, 2.8), sharex=True, sharey=True, layout="constrained")[1]
for ax, t in zip(axes, (0.0, 0.5, 1.0, 1.5, 2.0)):
    for law, color, label in zip(laws, ("0.6", "k"), ("free", "steered")):
        ax.plot(law.density(t, x[:, None]), x, color, label=label)
    ax.set(title=f"$t={t:g}$", xlabel="$p_t(x)$")
_ = axes[0].set_ylabel("$x$"), axes[-1].legend()
