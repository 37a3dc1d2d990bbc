"""Paths that follow a policy.

A process that starts in the left well and is paid for ending in the right one; grey is the density of the controlled
process.
"""

import numpy as np

import fem_hjb as fh

drift = lambda t, x: -4 * (x**3 - x)
paid = lambda x: -4 * (x[..., 0] - 1) ** 2
process = dict(dim=1, horizon=2.0, temperature=1.0, drift=drift, diffusion=1.0, initial_law=fh.Gaussian([-1.0], 0.02))
problem = fh.ControlProblem(terminal_reward=paid, **process)
solution = fh.solve(problem, rtol=1e-3)
lower, upper = solution.space.box.bounds
policy = lambda t, x: solution.policy(t, np.clip(x, lower, upper))
law = fh.fokker_planck.solve(problem, policy=policy, rtol=1e-4)
paths = fh.sample_paths(problem, n=60, steps=200, rng=0, policy=policy)
fh.plot.paths(paths, problem, density=law, box=fh.Box([-2.0], [2.0]))
