"""A value, and where to push.

Two coupled double wells: the optimal value at the start (colours), and the policy as arrows. In units of the
reward.
"""

import fem_hjb as fh

problem = fh.zoo.get("double-well-2d-coupled")
solution = fh.solve(problem, rtol=1e-3)
fh.plot.solution(solution, 0.0)
