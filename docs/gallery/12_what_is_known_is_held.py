"""What is known can be asked for.

f falls in x. Learned without a model from forty paths it does not; `Monotone` makes it, everywhere.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

problem = fh.zoo.get("reflected", dim=1)
paths = fh.sample_paths(problem, n=40, steps=64, rng=1)
space, x = fh.Space(problem, cells=16, time_cells=4), np.linspace(0.0, 1.0, 300)[:, None]
ax = plt.subplots(layout="constrained")[1]
for known, look, label in ((None, "--", "free"), (fh.Monotone(0, increasing=False), "k", "monotone")):
    fit = fh.fit(problem, paths, space, constraint=known, estimator="increment", smoothing=0.005, verify=False)
    ax.plot(x, fit.f(0.5, x), look, label=label)
ax.plot(x, np.exp(problem.exact.value(0.5, x) - fit.gauge.constants.terminal), "0.7", lw=5, zorder=0, label="exact")
ax.set(xlabel="$x$", ylabel="$f_t(x)$, $t = T/2$")
ax.legend()
