"""Which valley first?

The potential of Müller and Brown, and the committor of its two deepest valleys: the probability to meet the right one
first. Its level lines crowd at the saddle.
"""

import matplotlib.pyplot as plt
import numpy as np
import skfem

import fem_hjb as fh

H, (a, b, c) = [-200, -100, -170, 15], np.array([[-1, 0, -10], [-1, 0, -10], [-6.5, 11, -6.5], [0.7, 0.6, 0.7]]).T
off = lambda x: x[..., None, :] - [[1, 0], [0, 0.5], [-0.5, 1.5], [-1, 1]]
bell = lambda u, v: H * np.exp(a * u**2 + b * u * v + c * v**2)
V = lambda x: bell(*np.moveaxis(off(x), -1, 0)).sum(-1)
slope = lambda u, v: -np.stack([bell(u, v) * (2 * a * u + b * v), bell(u, v) * (b * u + 2 * c * v)], -1).sum(-2)
whole, valleys = skfem.MeshTri.init_tensor(*np.linspace([-1.5, -0.4], [1.1, 2.0], 131).T), [(-0.56, 1.44), (0.62, 0.03)]
middle, away = whole.p[:, whole.t].mean(1), lambda x: [np.hypot(x[0] - y[0], x[1] - y[1]) for y in valleys]
tags = {"left": lambda x: away(x)[0] < 0.14, "right": lambda x: away(x)[1] < 0.14}
mesh = whole.restrict((np.min(away(middle), 0) > 0.1) & (V(middle.T) < 40)).with_boundaries(tags)
process = fh.ExitProblem(dim=2, temperature=1.0, drift=lambda x: slope(*np.moveaxis(off(x), -1, 0)), diffusion=30.0)
u = fh.stationary.exit_expectation_on_mesh(process, mesh, {"left": 0, "right": 1}, estimate=False).value(mesh.p.T)
figure, ax = plt.subplots(figsize=(6, 4.8), layout="constrained")
ax.tricontour(*mesh.p, mesh.t.T, V(mesh.p.T), levels=np.arange(-150, 40, 15), colors="white", linewidths=0.5)
drawn = ax.tripcolor(*mesh.p, mesh.t.T, u, shading="gouraud", rasterized=True, zorder=-1)
ax.tricontour(*mesh.p, mesh.t.T, u, levels=np.arange(0.1, 1, 0.1), colors="black", linewidths=0.9)
_ = figure.colorbar(drawn, label="probability of the right valley"), ax.set(xlabel="$x_1$", ylabel="$x_2$")
