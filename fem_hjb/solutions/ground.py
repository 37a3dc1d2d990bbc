"""The result of `ground_state`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.checks import Check, told
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.solutions.steady import SteadyFunction
from fem_hjb.support.checks import FloatArray, finite_number, require
from fem_hjb.support.errors import ProblemError, SpaceError
from fem_hjb.support.objects import Plain


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GroundState(Plain):
    """Where a problem without an end settles: an eigenpair, as value, policy and law.

    average_reward : lambda, what is earned per unit of time, the price of steering taken off.
    gap : of the spectrum: v_t - lambda (T - t) and the law of the controlled process approach their limits as
        exp(-gap time).
    function : of w = alpha log phi, of mean 0 under the stationary law.  density_function : of that law.
    error_estimate : relative errors of w (or of lambda or the density, if larger) and of the policy, under the
        stationary law.
    stats : figures; average_reward_error and gap_error are what these numbers change by with elements of one degree
        less, or on a finer mesh: what the ends of the box do is not in them.
    status : "ok", or what was not reached.  checks : what was looked at.
    """

    problem: ControlProblem
    function: SteadyFunction
    density_function: SteadyFunction
    average_reward: float
    gap: float
    method: str
    status: str
    error_estimate: ErrorEstimate | None = None
    checks: tuple[Check, ...] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.problem, ControlProblem, "GroundState", ProblemError)
        for each in (self.function, self.density_function):
            require(each, SteadyFunction, "GroundState", SpaceError)
        for name in ("average_reward", "gap"):
            object.__setattr__(self, name, finite_number(getattr(self, name), name, ProblemError))
        require(self.stats, Mapping, "GroundState: stats", ProblemError)
        object.__setattr__(self, "stats", MappingProxyType(dict(self.stats)))

    def __str__(self) -> str:
        rest = told(self.problem.name, self.method, self.status, self.error_estimate, self.checks)
        return f"{rest}\naverage reward {self.average_reward:.10g}, gap {self.gap:.6g}"

    def value(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """w(x), shape (...) for points x (..., d): v up to a constant; outside="nan" as in `ExitSolution`."""
        return self.function.value(x, outside)

    def gradient(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """grad w(x), shape (..., d)."""
        return self.function.gradient(x, outside)

    def policy(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """The stationary policy (1/alpha) Lambda(x) grad w(x), shape (..., d)."""
        slopes = self.function.gradient(x, outside)
        known = np.isfinite(slopes).all(axis=-1)
        points, result = np.asarray(x, dtype=np.float64), np.full(slopes.shape, np.nan)
        result[known] = self.problem.policy_from_gradient(0.0, points[known], slopes[known])
        return result

    def density(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """The stationary density of the controlled process at x, shape (...)."""
        return self.density_function.value(x, outside)
