"""What was looked at before an answer is handed out.

Each check of a solution against its limit, the line. The status is "ok" only if all have passed, and the tolerance is
met.
"""

import fem_hjb as fh

solution = fh.solve(fh.zoo.get("mixture-diffusion", dim=1), rtol=1e-4)
fh.plot.checks(solution)
