"""Which valley first?

The potential of Müller and Brown, and the committor of its two deepest valleys: the probability to meet the right one
first. Its level lines crowd at the saddle.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh
from fem_hjb.problems.zoo.metastable import mueller_brown_wells

process = fh.zoo.get_exit("mueller-brown-exit", cells=130)
mesh = process.domain.mesh
V = mueller_brown_wells(mesh.p.T)[0].sum(-1)
u = fh.stationary.exit_expectation_on_mesh(process, h={"left": 0, "right": 1}, estimate=False).value(mesh.p.T)
figure, ax = plt.subplots(figsize=(6, 4.8), layout="constrained")
drawn = ax.tripcolor(*mesh.p, mesh.t.T, u, shading="gouraud", rasterized=True)
ax.tricontour(*mesh.p, mesh.t.T, V, levels=np.arange(-150, 40, 15), colors="white", linewidths=0.5)
ax.tricontour(*mesh.p, mesh.t.T, u, levels=np.arange(0.1, 1, 0.1), colors="black", linewidths=0.9)
figure.colorbar(drawn, label="probability of the right valley")
ax.set(xlabel="$x_1$", ylabel="$x_2$")
