"""What a class is made of.

The functions of six cells: continuous quadratics, C¹ cubics, and quadratic B-splines.
"""

import matplotlib.pyplot as plt
import numpy as np

from fem_hjb.spaces import LineBasis

s, axes = np.linspace(0.0, 1.0, 600), plt.subplots(3, 1, figsize=(7, 5), sharex=True, layout="constrained")[1]
for ax, kind in zip(axes, ("P2", "hermite", "B2")):
    ax.plot(s, LineBasis.uniform(1.0, 6, kind).design_matrix(s).toarray())
    ax.set(ylabel=kind)
axes[-1].set_xlabel("$s$")
