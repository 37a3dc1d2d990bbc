"""Learned from trajectories, against the truth.

A linear-quadratic problem, learned from 2000 paths: value and policy at three times, the policy against reference and
closed form, and pointwise errors.
"""

import matplotlib.pyplot as plt

import fem_hjb as fh

problem = fh.zoo.get("lq", dim=1)
reference = fh.solve(problem, rtol=1e-4)
paths = fh.sample_paths(problem, n=2000, steps=64, rng=0)
learned = fh.fit(problem, paths, "auto", terminal="interpolated")
fh.plot.report(problem, learned, reference, figure=plt.figure(figsize=(10, 7.2)))
