"""A diffusion model of your points, fine-tuned.

Arrows are the policy late in the generation, over the density without control: the reward is paid where both
coordinates have the same sign.
"""

import numpy as np

import fem_hjb as fh

angles = np.linspace(0.0, 2 * np.pi, 40, endpoint=False)
points = np.stack([2 * np.cos(angles), np.sin(2 * angles)], axis=1)
process = fh.problems.from_points(points, 0.4, horizon=1.0, beta=(0.1, 20.0))
problem = process.tilted(lambda x: np.tanh(2 * x[..., 0] * x[..., 1]), temperature=0.5)
solution = fh.solve(problem, rtol=3e-2)
fh.plot.policy_field(solution, 0.85, box=fh.Box([-3.5, -2.5], [3.5, 2.5]))
