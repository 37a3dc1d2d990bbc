"""What was looked at before a solution was handed out: figures, their limits, and whether they were kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.support.objects import Plain


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Check(Plain):
    """One witness: passed if its figure is at most its limit.

    name : what was looked at.  told : how, in a sentence.
    """

    name: str
    figure: float
    limit: float
    told: str

    @property
    def passed(self) -> bool:
        """False also where the figure is not a number."""
        return bool(self.figure <= self.limit)

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"{self.name}: {verdict}, {self.figure:.2g} where {self.limit:.2g} is allowed ({self.told})"


def told(
    name: str,
    method: str,
    status: str,
    estimate: ErrorEstimate | None,
    checks: Sequence[Check],
    tried: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A solution in a few lines: whose it is, its status, its error, each check, and the classes that were tried."""
    lines = [f"solution of {name!r} by {method}: {status}"]
    if estimate is not None:
        lines.append(f"relative error: {estimate}")
    return "\n".join([*lines, *map(str, checks), *([_choice(tried)] if tried else [])])


def _choice(tried: Sequence[Mapping[str, Any]]) -> str:
    """The classes tried, by what they were compared, and which was chosen, on one line.

    That is the estimated error of the policy, or on held-out data what the risk exceeds the lowest by.
    """
    by, what = ("policy", "error of the policy") if "policy" in tried[0] else ("risk", "risk on held-out trajectories")
    lowest = 0.0 if by == "policy" else min(float(row[by]) for row in tried)
    rows = [
        f"{row['element']} {row['time_cells']} x {row['cells']} {float(row[by]) - lowest:.2g}"
        + (" (chosen)" if row["chosen"] else "")
        for row in tried
    ]
    above = "" if by == "policy" else " above the lowest"
    return f"classes tried, cells in time x in space, {what}{above}: {', '.join(rows)}"
