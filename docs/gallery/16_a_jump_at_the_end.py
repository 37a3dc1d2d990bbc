"""A reward that jumps.

A digital option, from long before the end to shortly before it: what is smooth at first becomes the jump, and the
policy has no bound.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

solution = fh.solve(fh.zoo.get("digital-option"), rtol=1e-3)
x, axes = np.linspace(4.1, 5.1, 400), plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")[1]
for t, style in zip((0.0, 0.5, 0.9, 0.99), fh.plot.STYLES):
    line = {**style, "marker": None, "label": f"$t={t:g}$"}
    axes[0].plot(x, solution.value(t, x[:, None]), **line)
    axes[1].plot(x, solution.policy(t, x[:, None]), **line)
axes[0].set(xlabel="$x$, logarithm of the price", ylabel="$v_t(x)$")
axes[1].set(xlabel="$x$, logarithm of the price", ylabel=r"$\pi_t(x)$")
axes[0].legend()
