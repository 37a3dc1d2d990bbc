"""The result of `schroedinger_bridge`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.laws import Law
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.solution import Solution
from fem_hjb.solutions.steady import SteadyFunction
from fem_hjb.support.checks import FloatArray, non_negative_number, require
from fem_hjb.support.errors import ProblemError
from fem_hjb.support.objects import Plain


@final
@dataclass(frozen=True, eq=False)
class Potential(Plain):
    """y inside the box of a function, and along its slope beyond it."""

    function: SteadyFunction

    def __call__(self, x: FloatArray) -> FloatArray:
        points = np.asarray(x, dtype=np.float64)
        inside = np.clip(points, *self.function.basis.box.bounds)
        beyond = points - inside
        values = self.function.value(inside)
        out = beyond.any(axis=-1)
        if out.any():
            values = values.copy()
            values[out] += (self.function.gradient(inside[out]) * beyond[out]).sum(axis=-1)
        return values


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Bridge(Plain):
    """The process closest to another one that leads from one law to another.

    problem : the reference process, with the potential as its terminal reward.  target : the law at T.
    potential : that reward y, a callable x (..., d) -> (...), known up to a constant.
    solution : of the problem: value, policy, and its own error bar for this reward.
    initial_error, terminal_error : what the marginals at 0 and at T are off by under the policy of the solution, in
        total variation (half of the L1 distance of densities), by the Fokker-Planck equation.
    potential_error : the change of the policy at T, Lambda grad y / alpha, on a finer grid, relative, under the target.
    iterations : pairs of half steps.  status : "ok", or what was not reached.  stats : figures.
    """

    problem: ControlProblem
    target: Law
    potential: Callable[[FloatArray], FloatArray]
    solution: Solution
    initial_error: float
    terminal_error: float
    potential_error: float
    iterations: int
    status: str
    stats: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.problem, ControlProblem, "Bridge", ProblemError)
        require(self.target, Law, "Bridge", ProblemError)
        require(self.solution, Solution, "Bridge", ProblemError)
        for name in ("initial_error", "terminal_error", "potential_error"):
            non_negative_number(getattr(self, name), name, ProblemError)
        require(self.stats, Mapping, "Bridge: stats", ProblemError)
        object.__setattr__(self, "stats", MappingProxyType(dict(self.stats)))

    def __str__(self) -> str:
        return (
            f"bridge of {self.problem.name!r} in {self.iterations} iterations: {self.status}\nmarginals are off by"
            f" {self.initial_error:.1e} at 0 and {self.terminal_error:.1e} at T, the policy at T by"
            f" {self.potential_error:.1e}\n{self.solution}"
        )

    def value(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """v_t(x), up to a constant; arguments as those of a `Solution`."""
        return self.solution.value(t, x, outside=outside)

    def gradient(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """grad v_t(x), shape (*S, d)."""
        return self.solution.gradient(t, x, outside=outside)

    def policy(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """What is added to the drift, shape (*S, d)."""
        return self.solution.policy(t, x, outside=outside)
