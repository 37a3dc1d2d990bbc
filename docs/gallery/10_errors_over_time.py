"""Whose policy is wrong, and when.

The variational inequality and least squares on Feynman–Kac labels, on the same paths and in the same class.
"""

import numpy as np

import fem_hjb as fh

problem = fh.zoo.get("mixture-diffusion", dim=1)
paths = fh.sample_paths(problem, n=2000, steps=64, rng=0)
space = fh.Space(problem, cells=12, time_cells=8, box=fh.paths.truncation_box(problem, quantile=1e-3, margin=0.0).box)
how = {"terminal": "interpolated", "outside": "drop", "verify": False}
learned = {name: fh.fit(problem, paths, space, estimator=name, **how) for name in ("generator", "regression")}
comparison = fh.compare(learned, problem.exact, problem=problem, times=np.linspace(0.0, 0.9, 19))
fh.plot.compare(comparison, column="policy")
