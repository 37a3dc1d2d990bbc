"""How large the error of a solution is estimated to be, which part of it, and what is said when that is too much."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, final

from fem_hjb.support.checks import positive_number
from fem_hjb.support.errors import ConvergenceError

PARTS = ("space", "time", "truncation")
_CURES = {
    "space": "refine the mesh, raise the element's degree, or allow more unknowns",
    "time": "take more time steps or a smaller tolerance in time",
    "truncation": "take a larger box",
}


class ToleranceWarning(UserWarning):
    """A tolerance that was asked for has not been met: the result is the best that was reached."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ErrorEstimate:
    """Estimated relative errors of a solution.

    value : max over t of the L2(p_t) norm of the error of v, over the max over t of that norm of v.
    policy : the same of the policy, pointwise in the norm |a|^2 = a' Lambda^{-1} a.
    space, time, truncation : the parts of which they are sums (mesh and element; time steps; the faces of a box that
        the process does not know of), each the larger of its shares in value and policy.

    inf says that an error could not be estimated; of a learned solution the parts are not told apart, all inf.
    Raises ConvergenceError for a number that is negative or nan.

    >>> estimate = combine({"space": 1e-3, "time": 1e-5}, {"space": 4e-3, "time": 1e-4})
    >>> print(estimate)
    value 1.0e-03, policy 4.1e-03 (space 4.0e-03, time 1.0e-04, truncation 0)
    >>> estimate.met(5e-3), estimate.limited_by
    (True, 'space')
    """

    value: float
    policy: float
    space: float
    time: float
    truncation: float

    def __post_init__(self) -> None:
        for entry in fields(self):
            given = getattr(self, entry.name)
            number = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else math.nan
            if not number >= 0:
                raise ConvergenceError(f"ErrorEstimate: {entry.name} must be a number >= 0, got {given!r}")
            object.__setattr__(self, entry.name, number)

    @property
    def limited_by(self) -> str:
        """The largest part: "space", "time" or "truncation"."""
        return max(PARTS, key=lambda name: float(getattr(self, name)))

    def met(self, rtol: float) -> bool:
        """Whether value and policy are both estimated to be within this relative tolerance."""
        return max(self.value, self.policy) <= positive_number(rtol, "rtol", ConvergenceError)

    def complaint(self, rtol: float, who: str) -> str:
        """The message of a `ToleranceWarning`: what was asked and reached, what stopped it, and what to do."""
        return (
            f"{who} was asked for a relative error of {rtol:.1e} but reached an estimate of"
            f" {max(self.value, self.policy):.1e} ({self}); it is limited by {self.limited_by}:"
            f" {_CURES[self.limited_by]}, or ask for less"
        )

    def as_dict(self) -> dict[str, float]:
        """Name -> number, for storage."""
        return asdict(self)

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> "ErrorEstimate":
        """The inverse of `as_dict`; ConvergenceError if a number is missing or unknown."""
        names = {entry.name for entry in fields(cls)}
        if not isinstance(numbers, Mapping) or set(numbers) != names:
            given = ", ".join(map(repr, numbers)) if isinstance(numbers, Mapping) else type(numbers).__name__
            raise ConvergenceError(f"an ErrorEstimate is made of {', '.join(sorted(names))}, got {given}")
        return cls(**numbers)

    def __str__(self) -> str:
        if all(math.isinf(getattr(self, name)) for name in PARTS):
            return f"value {_short(self.value)}, policy {_short(self.policy)}"
        parts = ", ".join(f"{name} {_short(getattr(self, name))}" for name in PARTS)
        return f"value {_short(self.value)}, policy {_short(self.policy)} ({parts})"


def _short(number: float) -> str:
    return "0" if number == 0 else f"{number:.1e}"


def combine(value_parts: Mapping[str, float], policy_parts: Mapping[str, float]) -> ErrorEstimate:
    """The estimate with these parts ("space", "time", "truncation", 0 if not given); the totals are their sums.

    Raises ConvergenceError for a part of another name.
    """
    for given in (value_parts, policy_parts):
        unknown = sorted(set(given) - set(PARTS))
        if unknown:
            raise ConvergenceError(f"the parts of an error are {', '.join(PARTS)}, got {', '.join(map(repr, unknown))}")
    return ErrorEstimate(
        value=sum(value_parts.values()),
        policy=sum(policy_parts.values()),
        **{name: max(value_parts.get(name, 0.0), policy_parts.get(name, 0.0)) for name in PARTS},
    )
