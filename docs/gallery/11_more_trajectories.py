"""Is it harder than regression?

The error of the value against the number of trajectories, in one class. The noise of labels falls slowly; that of the
equation is so small that the class itself is what is left.
"""

import matplotlib.pyplot as plt

import fem_hjb as fh

problem, sizes = fh.zoo.get("reflected", dim=1), (100, 400, 1600, 6400)
space, ax = fh.Space(problem, cells=12, time_cells=6), plt.subplots(layout="constrained")[1]
for name, mark in (("regression", "s--"), ("increment", "^:"), ("generator", "o-")):
    paths = [fh.sample_paths(problem, n=n, steps=64, rng=n) for n in sizes]
    fits = [fh.fit(problem, one, space, estimator=name, verify=False) for one in paths]
    found = [fh.compare({"f": one}, problem.exact, problem=problem, law="uncontrolled") for one in fits]
    ax.loglog(sizes, [one.overall("f").value for one in found], mark, label=name)
ax.set(xlabel="trajectories", ylabel="relative error of the value")
ax.legend()
