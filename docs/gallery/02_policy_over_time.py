"""A policy from start to end.

A double well, paid for ending in the right one. The push over time (across) and place (up), red is up: over the
barrier while there is time, and what is late is pushed hard.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

drift, paid = lambda t, x: -4 * (x**3 - x), lambda x: -4 * (x[..., 0] - 1) ** 2
process = dict(dim=1, horizon=2.0, temperature=1.0, drift=drift, diffusion=1.0, initial_law=fh.Gaussian([-1.0], 0.02))
solution = fh.solve(fh.ControlProblem(terminal_reward=paid, **process), rtol=1e-3)
t, x = np.linspace(0.0, 2.0, 201), np.linspace(-1.6, 1.6, 201)
push = solution.policy(t[:, None], np.tile(x[:, None], (len(t), 1, 1)))[..., 0]
figure, ax = plt.subplots(layout="constrained")
drawn = ax.pcolormesh(t, x, push.T, cmap="RdBu_r", vmin=-10, vmax=10, shading="gouraud", rasterized=True)
figure.colorbar(drawn, label=r"$\pi_t(x)$, in units of $x$ per time", extend="both")
ax.set(xlabel="$t$", ylabel="$x$")
