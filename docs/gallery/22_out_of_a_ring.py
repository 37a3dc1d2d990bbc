"""Inside or outside?

Brownian motion with a wind in a ring: the probability to leave it through the outer circle, on a mesh whose boundary
has tags.
"""

import matplotlib.pyplot as plt
import numpy as np
import skfem

import fem_hjb as fh

square = skfem.MeshTri.init_tensor(*2 * [np.linspace(-2, 2, 49)])
radius = np.maximum(np.abs(square.p).max(0), 1e-9) / np.maximum(np.hypot(*square.p), 1e-9)
disc = skfem.MeshTri(square.p * radius, square.t)  # squares become circles
ring = disc.restrict(np.hypot(*disc.p[:, disc.t].mean(1)) > 0.75).with_boundaries(
    {"inner": lambda x: np.hypot(*x) < 1.2, "outer": lambda x: np.hypot(*x) > 1.2}
)
wind = fh.ExitProblem(dim=2, temperature=1.0, drift=lambda x: 0 * x + [2.0, 0.0], diffusion=1.0)
u = fh.stationary.exit_expectation_on_mesh(wind, ring, {"inner": 0, "outer": 1}, estimate=False).value(ring.p.T)
figure, ax = plt.subplots(figsize=(5.4, 4.4), layout="constrained")
drawn = ax.tripcolor(*ring.p, ring.t.T, u, shading="gouraud", rasterized=True)
ax.tricontour(*ring.p, ring.t.T, u, levels=9, colors="black", linewidths=0.8)
figure.colorbar(drawn, label="probability to leave outside")
ax.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
