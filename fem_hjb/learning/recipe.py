"""How f is learned, whatever from and in which class."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import final

from fem_hjb.learning.constraints import Constraint
from fem_hjb.learning.estimators import Estimator, find_estimator
from fem_hjb.learning.matching import penalty_for
from fem_hjb.learning.measures import Measure
from fem_hjb.learning.solve_system import METHODS, TERMINALS, solve_watched
from fem_hjb.learning.system import Data, Enough, System, assemble_until
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import non_negative_number, one_of
from fem_hjb.support.errors import MeasureError
from fem_hjb.support.progress import OutOfTimeError, Progress, part_of, until

_SUMMED = 0.6  # the share of the data in the work
_PENALISED = 0.5  # the share of the choice of a penalty, where there is one
_FOR_DATA = 0.5  # of the seconds left, at most


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Recipe:
    """Arguments of `fit`. MeasureError for those that make no sense."""

    problem: ControlProblem
    estimator: str | Estimator
    method: str
    constraint: Constraint | None
    terminal: str
    delta: float
    smoothing: float | None
    ridge: float
    outside: str
    executor: Executor | None

    def __post_init__(self) -> None:
        for name in ("smoothing", "ridge", "delta"):
            number = getattr(self, name)
            non_negative_number(0.0 if number is None else number, name, MeasureError)
        one_of(self.method, "method", METHODS, MeasureError)
        one_of(self.terminal, "terminal", TERMINALS, MeasureError)

    def learned(
        self, space: Space, data: Data, tell: Progress, seconds: float | None, *, figures: bool = True
    ) -> tuple[Solution, System]:
        """The solution from these data in this class, and its system.

        seconds : those that are left, if they are limited; `tell` ends the work by an OutOfTimeError.
        """
        problem, row = self.problem, find_estimator(self.estimator)
        if row.gradient_penalty is None:
            choosing, tell = part_of(tell, 0.0, _PENALISED), part_of(tell, _PENALISED, 1.0)
            row = penalty_for(problem, data, space, self.smoothing, self.ridge, self.terminal, self.outside, choosing)
        enough = _enough(part_of(tell, 0.0, _SUMMED), data, seconds)
        system = assemble_until(problem, data, space, row, self.delta, self.outside, self.executor, None, enough)
        solution = solve_watched(
            system,
            method=self.method,
            constraint=self.constraint,
            terminal=self.terminal,
            smoothing=self.smoothing,
            ridge=self.ridge,
            figures=figures,
            tell=part_of(tell, _SUMMED, 1.0),
        )
        return solution, system


def _enough(tell: Progress, data: Data, limit: float | None) -> Enough:
    """Which chunks are enough: those of half the time, where there is a limit and at least one of trajectories."""
    first = until(tell, None if limit is None else _FOR_DATA * limit)

    def enough(done: int, count: int) -> bool:
        if isinstance(data, Measure):
            tell(done / count)
            return False
        try:
            first(done / count)
        except OutOfTimeError:
            tell(done / count)
            return done > 0
        return False

    return enough
