"""What a policy earns, and what there is to earn.

The optimal policy times a factor: its reward with 95 % intervals, and those of the optimum, from the policy's own
paths alone. Grey is the optimum.
"""

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

problem, factors, start = fh.zoo.get("lq", dim=10), np.linspace(0.0, 2.0, 9), np.zeros(10)
policies = [lambda t, x, s=s: s * problem.exact.policy(t, x) for s in factors]
found = [fh.certify(problem, policy, x0=start, n=4096, steps=32, rng=0).diffusion for policy in policies]
ax = plt.subplots(layout="constrained")[1]
ax.axhline(problem.exact.value(0.0, start), color="0.7", linewidth=4)
for label, name, mark in (("J(π)", "reward", "o"), ("v*", "optimal", "s")):
    middle, half = zip(*[(getattr(one, name).estimate, getattr(one, name).half_width) for one in found])
    ax.errorbar(factors, middle, half, fmt=mark, capsize=3, label=label)
ax.set(xlabel="factor", ylabel="reward")
ax.legend()
