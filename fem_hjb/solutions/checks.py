"""What was looked at before a solution was handed out: figures, their limits, and whether they were kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

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


def told(name: str, method: str, status: str, estimate: ErrorEstimate | None, checks: Sequence[Check]) -> str:
    """A solution in a few lines: whose it is, its status, its error, and each check."""
    lines = [f"solution of {name!r} by {method}: {status}"]
    if estimate is not None:
        lines.append(f"relative error: {estimate}")
    return "\n".join([*lines, *map(str, checks)])
