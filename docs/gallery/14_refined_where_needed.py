"""Refined where it is needed.

A narrow reward next to the middle of a square: triangles are halved where the gradient is known least.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

square = fh.Box([0.0, 0.0], [1.0, 1.0])
rest = dict(drift=lambda t, x: 0 * x, terminal_reward=lambda x: np.exp(-200 * ((x - 0.4) ** 2).sum(-1)))
known = dict(dim=2, horizon=0.1, temperature=0.5, diffusion=0.02, domain=square, initial_law=fh.Uniform(square))
solution = fh.refine_on_mesh(fh.ControlProblem(**known, **rest), rtol=0.1, cells=6)
x, cells = solution.space.spatial.vertices, solution.space.spatial.cell_vertices
figure, ax = plt.subplots(layout="constrained")
drawn = ax.tripcolor(*x.T, cells, solution.value(0.0, x), shading="gouraud", rasterized=True)
ax.triplot(*x.T, cells, color="white", linewidth=0.3)
figure.colorbar(drawn, label="$v_0(x)$")
ax.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
