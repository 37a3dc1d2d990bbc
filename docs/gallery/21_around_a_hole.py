"""Around a hole.

A process in an annulus, sent back by its outer circle and stopped by the hole, where it loses five: the value with
level lines, which meet the outer circle at right angles, and paths that are steered to the right, around the hole.
"""

import matplotlib.pyplot as plt

import fem_hjb as fh

mesh = fh.zoo.get("annulus", outer=3.0, cells=24).domain.mesh  # or fh.load_mesh("a file.msh"), with names in it
lost, paid = lambda t, x: -5.0 + 0 * x[..., 0], lambda x: -((x - [2.0, 0.0]) ** 2).sum(-1) / 4
domain = fh.MeshDomain(mesh, {"inner": "absorbing", "outer": "reflecting"}, exit_reward=lost)
process = dict(dim=2, horizon=4.0, drift=lambda t, x: 0 * x, diffusion=0.5, initial_law=fh.PointMass([-2.0, 0.3]))
problem = fh.ControlProblem(temperature=0.3, terminal_reward=paid, domain=domain, **process)
solution = fh.solve_on_mesh(problem, element="P2", rtol_time=1e-4)
paths = fh.sample_paths(problem, n=8, steps=300, rng=3, policy=solution.policy)
(figure, ax), v = plt.subplots(layout="constrained"), solution.value(0.0, mesh.p.T)
drawn = ax.tripcolor(*mesh.p, mesh.t.T, v, shading="gouraud", rasterized=True)
ax.tricontour(*mesh.p, mesh.t.T, v, levels=16, colors="white", linewidths=0.6, linestyles="solid")
ax.plot(paths.x[:, :, 0].T, paths.x[:, :, 1].T, color="black", linewidth=0.5)
figure.colorbar(drawn, label="$v_0(x)$")
ax.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
