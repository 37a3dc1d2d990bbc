"""Streams of a policy.

Brownian motion steered to eight Gaussians on a circle, as streamlines: the wider, the harder the push.
"""

import numpy as np

import fem_hjb as fh

angles = 2 * np.pi * np.arange(8) / 8
centres = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
problem = fh.zoo.get("brownian-mixture", dim=2, means=centres, weights=[1 / 8] * 8, covariances=[0.2 * np.eye(2)] * 8)
solution = fh.solve(problem, rtol=1e-2)
fh.plot.policy_field(solution, 0.6, kind="stream", box=fh.Box([-4.0] * 2, [4.0] * 2))
