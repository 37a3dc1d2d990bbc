"""Asked, told, true.

The error of a policy against the tolerance asked for: the error bar, which knows no closed form, and the truth, which
does.
"""

import matplotlib.pyplot as plt

import fem_hjb as fh

problem, asked = fh.zoo.get("mixture-diffusion", dim=1), (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
found = [fh.solve(problem, rtol=rtol) for rtol in asked]
true = [fh.compare({"solve": one}, problem.exact, problem=problem, law="both").overall("solve").policy for one in found]
ax = plt.subplots(layout="constrained")[1]
ax.loglog(asked, asked, color="0.6", label="asked")
ax.loglog(asked, [one.error_estimate.policy for one in found], "s--", color="#0072B2", label="error bar")
ax.loglog(asked, true, "o", color="black", label="true error")
ax.set(xlabel="tolerance", ylabel="relative error of the policy")
ax.legend()
