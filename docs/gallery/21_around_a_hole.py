"""Around a hole.

A process in an annulus, sent back by its outer circle and stopped by the hole, where it loses five: the value, with
arrows for the policy, and paths that are steered to the right, around the hole.
"""

import matplotlib.pyplot as plt

import fem_hjb as fh

mesh = fh.zoo.get("annulus", outer=3.0, cells=24).domain.mesh  # or fh.load_mesh("a file.msh"), with names in it
lost = lambda t, x: -5.0 + 0 * x[..., 0]
domain = fh.MeshDomain(mesh, {"inner": "absorbing", "outer": "reflecting"}, exit_reward=lost)
rest = dict(drift=lambda t, x: 0 * x, terminal_reward=lambda x: -((x - [2.0, 0.0]) ** 2).sum(-1) / 4, domain=domain)
known = dict(dim=2, horizon=4.0, temperature=0.3, diffusion=0.5, initial_law=fh.PointMass([-2.0, 0.3]))
solution = fh.solve_on_mesh(fh.ControlProblem(**known, **rest), element="P2", rtol_time=1e-4)
paths = fh.sample_paths(solution.problem, n=8, steps=300, rng=3, policy=solution.policy)
fh.plot.solution(solution, 0.0)
for path in paths.x:
    plt.plot(*path.T, color="black", linewidth=0.5)
