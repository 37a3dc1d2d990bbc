"""What is found out of a learned solution, and the status that says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

from fem_hjb.learning.folds import apart, beyond
from fem_hjb.learning.held_out import held_out
from fem_hjb.learning.measures import Measure
from fem_hjb.learning.system import Data, System
from fem_hjb.learning.witness import Witness, witness
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.checks import positive_number
from fem_hjb.support.errors import ConvergenceError, FemHjbError, MeasureError
from fem_hjb.support.progress import OutOfTimeError, Progress, part_of

HELD_OUT = "held-out"
_PARTS = 5  # of the trajectories, one of which is held out
_WORSE = 1.2  # times the error of half of the trajectories, where it is their number that matters: 1.4 if it is all
_ALONE = "the policy was not followed: trajectories that were held out are all that is known"

Again = Callable[[Data, Progress], tuple[Solution, System]]
"""Learns once more, in the same class in the same way, from other data."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Verification:
    """How a solution is verified: arguments of `fit`, of which `rng` gives the seed. MeasureError for what is none."""

    verify: bool | str
    accept: float
    seed: int

    def __post_init__(self) -> None:
        if not isinstance(self.verify, bool) and not (isinstance(self.verify, str) and self.verify == HELD_OUT):
            raise MeasureError(f"verify must be True, False or {HELD_OUT!r}, got {self.verify!r}")
        if not positive_number(self.accept, "accept", MeasureError) <= 1.0:
            raise MeasureError(f"accept must be a relative error between 0 and 1, such as 0.1, got {self.accept!r}")

    def check(self, data: Data) -> None:
        """MeasureError where there are no trajectories that could be held out."""
        if self.verify == HELD_OUT and isinstance(data, Measure):
            raise MeasureError(f"verify={HELD_OUT!r} needs trajectories, Paths or a PathSource, got a Measure")

    def verified(self, solution: Solution, system: System, data: Data, again: Again, tell: Progress) -> Solution:
        """The solution of a system of these data, or of the first of them, with checks and a status that tells."""
        checks, told = self._held_out(solution, system, data, again, part_of(tell, 0.0, 0.5))
        if self.verify == HELD_OUT:
            return replace(solution, status=_also(solution.status, "; ".join([_ALONE, *told])), checks=checks)
        try:
            tell(0.5)
            found = witness(solution, self.accept, self.seed, lambda: tell(0.5), over_time=True)
        except (ConvergenceError, OutOfTimeError) as cause:
            told.append(f"not verified: {_why(cause)}")
            return replace(solution, status=_also(solution.status, "; ".join(told)), checks=checks)
        own = found.checks(self.accept)
        if not all(check.passed for check in own):
            reason = found.why(solution.stats["terminal"]) or self._by_samples(solution, found, data, again, tell)
            told = [*_failed(own), *told, f"limited {reason}"]
        status = _also(solution.status, "; ".join(told)) if told else solution.status
        return replace(solution, status=status, error_estimate=found.estimate, checks=(*own, *checks))

    def _held_out(
        self, solution: Solution, system: System, data: Data, again: Again, tell: Progress
    ) -> tuple[tuple[Check, ...], list[str]]:
        """Checks on trajectories that were not used, or else of what the others teach; and what they tell."""
        if isinstance(data, Measure):
            return (), []
        try:
            if system.paths < data.n:
                found = held_out(solution, system, beyond(data, system.paths), tell)
            else:
                rest, out = apart(data, _PARTS)
                found = held_out(*again(rest, part_of(tell, 0.0, 0.8)), out, part_of(tell, 0.8, 1.0))
        except (FemHjbError, OutOfTimeError) as cause:
            return (), [f"no trajectories were held out: {_why(cause)}"]
        checks = found.checks(self.accept)
        return checks, _failed(checks)

    def _by_samples(self, solution: Solution, found: Witness, data: Data, again: Again, tell: Progress) -> str:
        """Whether half of the trajectories make it worse, as few of them do, or not, as a class does that is too
        small."""
        by_class = "by the class: take more cells in space and in time, or space='auto'"
        if solution.stats["constraint"] != repr(None):
            by_class = (
                "by the class or by the constraint, which the solution may not satisfy: compare with a fit without"
            )
        if isinstance(data, Measure):
            return by_class
        try:
            half, _ = again(apart(data, 2)[0], part_of(tell, 0.5, 1.0))
            worse = witness(half, math.inf, self.seed, lambda: tell(1.0)).policy / found.policy
        except (FemHjbError, OutOfTimeError):
            return "by the number of trajectories, or by the class: half of them could not be learned from"
        if worse > _WORSE:
            return (
                f"by the number of trajectories: from half of them it is {worse:.2g} times as much, and"
                f" {found.unseen:.0%} of the time of paths is spent in cells that they do not determine; take more"
            )
        return by_class


def _failed(checks: tuple[Check, ...]) -> list[str]:
    return [
        f"check {check.name!r} failed: {check.figure:.2g} where {check.limit:.2g} is accepted"
        for check in checks
        if not check.passed
    ]


def _why(cause: Exception) -> str:
    return "max_seconds were over" if isinstance(cause, OutOfTimeError) else str(cause)


def _also(status: str, more: str) -> str:
    return more if status == "ok" else f"{status}; {more}"
