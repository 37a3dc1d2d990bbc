"""Expectations of any sign.

The mean of the cube of X at the end, given where it is at t: no control, the same engine, to a tolerance.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

problem = fh.zoo.get("double-well", dim=1)
u, x = fh.feynman_kac(problem, lambda x: x[..., 0] ** 3, rtol=1e-3), np.linspace(-1.5, 1.5, 300)
ax = plt.subplots(layout="constrained")[1]
for t, style in zip((0.0, 0.9, 0.97, 1.0), fh.plot.STYLES):
    ax.plot(x, u.value(t, x[:, None]), **{**style, "marker": None}, label=f"$t={t:g}$")
ax.set(xlabel="$x$", ylabel=r"$E[X_T^3\,|\,X_t = x]$")
ax.legend()
