"""On a mesh of yours.

A process that is reflected in an L, whose mesh is a file, paid for ending around the corner: the value at the start,
with level lines, which meet the walls at right angles.
"""

import matplotlib.pyplot as plt

import fem_hjb as fh

mesh = fh.load_mesh("meshes/lshape.msh", dim=2)
rest = dict(drift=lambda t, x: 0 * x, terminal_reward=lambda x: -((x - [3.5, -1.0]) ** 2).sum(-1) / 4)
known = dict(dim=2, horizon=6.0, temperature=0.5, diffusion=1.0, initial_law=fh.Gaussian([0.0, -3.0], 0.1))
v = fh.solve_on_mesh(fh.ControlProblem(**known, **rest), mesh, element="P2", rtol_time=1e-4).value(3.0, mesh.p.T)
figure, ax = plt.subplots(layout="constrained")
drawn = ax.tripcolor(*mesh.p, mesh.t.T, v, shading="gouraud", rasterized=True)
ax.triplot(*mesh.p, mesh.t.T, color="white", linewidth=0.3)
ax.tricontour(*mesh.p, mesh.t.T, v, levels=14, colors="black", linewidths=0.8)
figure.colorbar(drawn, label="$v_t(x)$, $t = T/2$")
ax.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
