"""Inside or outside?

Brownian motion with a wind in a ring: the probability to leave it through the outer circle, on a mesh whose boundary
has tags.
"""

from dataclasses import replace

import matplotlib.pyplot as plt

import fem_hjb as fh

wind = replace(fh.zoo.get_exit("ring-exit", cells=16), drift=lambda x: 0 * x + [2.0, 0.0])
ring = wind.domain.mesh
u = fh.stationary.exit_expectation_on_mesh(wind, h={"inner": 0, "outer": 1}, estimate=False).value(ring.p.T)
figure, ax = plt.subplots(figsize=(5.4, 4.4), layout="constrained")
drawn = ax.tripcolor(*ring.p, ring.t.T, u, shading="gouraud", rasterized=True)
ax.tricontour(*ring.p, ring.t.T, u, levels=9, colors="black", linewidths=0.8)
figure.colorbar(drawn, label="probability to leave outside")
ax.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
