"""The result of `solve_stages`: a solution for each stage, as one over the whole horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.problem import ControlProblem, TerminalReward, require_problem
from fem_hjb.solutions.checks import Check, told
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.space import broadcast_points
from fem_hjb.support.checks import FloatArray, as_times, require
from fem_hjb.support.errors import ProblemError, SpaceError
from fem_hjb.support.objects import Plain

_SAME = 1e-12  # of the horizon: times that close are one


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class StagedSolution(Plain):
    """The solution of a problem with rewards on the way: v_t is what is still to come after time t.

    At a time t_i of a reward v is that of the stage that begins there, without y_i(x), and so are gradient and policy;
    just before it v is y_i + v_{t_i}, at the end of the stage before.

    problem : without the rewards on the way.  rewards : t_i -> y_i, in increasing time.
    stages : the `Solution` or `ProductSolution` of each stage, whose own time begins at 0.
    error_estimate : relative errors over the whole horizon.  checks : of all stages, and of the whole.
    status : "ok", or what was not reached.  stats : figures.
    """

    problem: ControlProblem
    rewards: Mapping[float, TerminalReward]
    stages: tuple[Solution | ProductSolution, ...]
    status: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    error_estimate: ErrorEstimate | None = None
    checks: tuple[Check, ...] = ()
    method: str = field(init=False, default="stages")

    def __post_init__(self) -> None:
        require_problem(self.problem, "StagedSolution")
        for name in ("rewards", "stats"):
            given = getattr(self, name)
            require(given, Mapping, f"StagedSolution: {name}", ProblemError)
            object.__setattr__(self, name, MappingProxyType(dict(given)))
        if not isinstance(self.stages, Sequence) or len(self.stages) != len(self.rewards) + 1:
            raise SpaceError(f"StagedSolution needs {len(self.rewards) + 1} stages, one more than rewards")
        for stage in self.stages:
            if not isinstance(stage, Solution | ProductSolution):
                raise SpaceError(f"StagedSolution: stages must be solutions, got {type(stage).__name__}")

    def __str__(self) -> str:
        return told(self.problem.name, self.method, self.status, self.error_estimate, self.checks)

    @property
    def times(self) -> tuple[float, ...]:
        """Where stages begin and end: 0, t_1, ..., T."""
        return (0.0, *self.rewards, self.problem.horizon)

    def value(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error", nonpositive: str = "error") -> FloatArray:
        """v_t(x), shape S; arguments as those of a `Solution`."""
        return self._joined("value", t, x, (), outside, nonpositive)

    def gradient(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error", nonpositive: str = "error") -> FloatArray:
        """grad v_t(x), shape (*S, d)."""
        return self._joined("gradient", t, x, (self.problem.dim,), outside, nonpositive)

    def policy(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error", nonpositive: str = "error") -> FloatArray:
        """pi_t(x) = (1/alpha) Lambda_t(x) grad v_t(x), shape (*S, d)."""
        return self._joined("policy", t, x, (self.problem.dim,), outside, nonpositive)

    def stage_at(self, t: float) -> int:
        """The number, from 0, of the stage in which t is; a stage begins at its first time."""
        return int(self._which(as_times(t, self.problem.horizon)))

    def _which(self, times: FloatArray) -> Any:
        return np.searchsorted(self.times[:-1], times + _SAME * self.problem.horizon, side="right") - 1

    def _joined(
        self, name: str, t: ArrayLike, x: ArrayLike, tail: tuple[int, ...], outside: str, nonpositive: str
    ) -> FloatArray:
        problem = self.problem
        times, points, shape = broadcast_points(t, x, problem.horizon, problem.dim)
        which = self._which(times)

        def of(k: int, when: FloatArray, where: FloatArray) -> FloatArray:
            own = np.clip(when - self.times[k], 0.0, self.stages[k].problem.horizon)
            return np.asarray(getattr(self.stages[k], name)(own, where, outside=outside, nonpositive=nonpositive))

        if times.ndim == 0:
            return of(int(which), times, points)
        flat, when = np.broadcast_to(points, (*shape, problem.dim)), np.broadcast_to(times, shape)
        which = np.broadcast_to(which, shape)
        result = np.empty((*shape, *tail))
        for k in np.unique(which).tolist():
            here = which == k
            result[here] = of(k, when[here], flat[here])
        return result


def bounds_of(solution: Solution | ProductSolution) -> tuple[FloatArray, FloatArray]:
    """The corners (d,) of the box on which it is known."""
    if isinstance(solution, Solution):
        return solution.space.spatial.box.bounds
    lower, upper = np.empty((2, solution.problem.dim))
    for index, part in solution.parts:
        lower[list(index)], upper[list(index)] = bounds_of(part)
    return lower, upper


@final
@dataclass(frozen=True, eq=False, repr=False)
class Continued(Plain):
    """The policy of a staged solution, outside the box of a stage that of the nearest point."""

    solution: StagedSolution

    def __call__(self, t: float, x: FloatArray, nonpositive: str = "error") -> FloatArray:
        """pi_t(x), (n, d); times after T are T, up to which steps are rounded."""
        when = min(t, self.solution.problem.horizon)
        stage = self.solution.stages[self.solution.stage_at(when)]
        return self.solution.policy(when, np.clip(x, *bounds_of(stage)), nonpositive=nonpositive)
