"""What is known can be asked for.

f falls in x. Learned without a model from forty paths it does not; `Monotone` makes it, everywhere.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

problem = fh.zoo.get("reflected", dim=1)
paths = fh.sample_paths(problem, n=40, steps=64, rng=1)
space, x = fh.Space(problem, cells=16, time_cells=4), np.linspace(0.0, 1.0, 300)[:, None]
how = {"estimator": "increment", "smoothing": 0.005, "verify": False}
free = fh.fit(problem, paths, space, **how)
held = fh.fit(problem, paths, space, constraint=fh.Monotone(0, increasing=False), **how)
ax = plt.subplots(layout="constrained")[1]
ax.plot(x, np.exp(problem.exact.value(0.5, x) - free.gauge.constants.terminal), color="0.7", linewidth=5, label="exact")
ax.plot(x, free.f(0.5, x), "--", label="free")
ax.plot(x, held.f(0.5, x), "k", label="monotone")
ax.set(xlabel="$x$", ylabel="$f_t(x)$, $t = T/2$")
ax.legend()
