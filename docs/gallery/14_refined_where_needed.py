"""Refined where it is needed.

A narrow reward next to the middle of a square: triangles are halved where the gradient is known least.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

square = fh.Box([0.0, 0.0], [1.0, 1.0])
paid = lambda x: np.exp(-200 * ((x - 0.4) ** 2).sum(-1))
process = dict(drift=lambda t, x: 0 * x, diffusion=0.02, domain=square, initial_law=fh.Uniform(square))
problem = fh.ControlProblem(dim=2, horizon=0.1, temperature=0.5, terminal_reward=paid, **process)
solution = fh.refine_on_mesh(problem, rtol=0.1, cells=6)
mesh = solution.space.spatial
figure, ax = plt.subplots(layout="constrained")
corners, cells, x = mesh.vertices.T, mesh.cell_vertices, mesh.vertices
drawn = ax.tripcolor(*corners, cells, solution.value(0.0, x), shading="gouraud", rasterized=True)
ax.triplot(*corners, cells, color="white", linewidth=0.3)
figure.colorbar(drawn, label="$v_0(x)$")
ax.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
