"""The law with control, and without.

Densities at five times of a double well that is paid for ending in the right one, black with control, grey without.
Both from the Fokker–Planck equation.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

well = dict(drift=lambda t, x: -4 * (x**3 - x), terminal_reward=lambda x: -4 * (x[..., 0] - 1) ** 2)
known = dict(dim=1, horizon=2.0, temperature=1.0, diffusion=1.0, initial_law=fh.Gaussian([-1.0], 0.02))
solution, x = fh.solve(fh.ControlProblem(**known, **well), rtol=1e-3), np.linspace(-2.0, 2.0, 400)
within = lambda t, x: solution.policy(t, np.clip(x, *solution.space.box.bounds))
laws = [fh.fokker_planck.solve(solution.problem, policy=policy, rtol=1e-3) for policy in (None, within)]
axes = plt.subplots(1, 5, figsize=(11, 2.8), sharex=True, sharey=True, layout="constrained")[1]
for ax, t in zip(axes, (0.0, 0.5, 1.0, 1.5, 2.0)):
    ax.plot(laws[0].density(t, x[:, None]), x, "0.6")
    ax.plot(laws[1].density(t, x[:, None]), x, "k")
    ax.set(title=f"$t={t:g}$", xlabel="$p_t(x)$", ylabel="$x$")
