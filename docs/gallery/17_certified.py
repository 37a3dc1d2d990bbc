"""What a policy earns, and what there is to earn.

The optimal policy times a factor: its reward with 95 % intervals, and those of the optimum, from the policy's own
paths alone. Grey is the optimum.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

problem, factors = fh.zoo.get("lq", dim=10), np.linspace(0.0, 2.0, 9)
found = [
    fh.certify(problem, lambda t, x: s * problem.exact.policy(t, x), x0=np.zeros(10), n=4096, steps=32, rng=0)
    for s in factors
]
ax = plt.subplots(layout="constrained")[1]
ax.axhline(problem.exact.value(0.0, np.zeros((1, 10)))[0], color="0.7", linewidth=4)
for name, mark, ends in (
    ("J(π)", "o", [c.diffusion.reward for c in found]),
    ("v*", "s", [c.diffusion.optimal for c in found]),
):
    middle, half = [one.estimate for one in ends], [one.half_width for one in ends]
    ax.errorbar(factors, middle, half, fmt=mark, capsize=3, label=name)
ax.set(xlabel="factor", ylabel="reward")
ax.legend()
