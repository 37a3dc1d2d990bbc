"""The problem of each stage between rewards on the way, from its own time 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, MarginalLaw, PointMass
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.stages import Rewards, paid
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.solutions.staged import bounds_of
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.objects import Plain

Stage = Solution | ProductSolution


def stage_problem(
    problem: ControlProblem, rewards: Rewards, k: int, law: Law | None, ahead: Stage | None
) -> ControlProblem:
    """The problem of stage k, from its own time 0.

    law : where it begins; None: as the process does without control, where that is known.  ahead : the next stage,
        whose value it ends with; None for the last one.
    """
    ends, marginal = [0.0, *rewards, problem.horizon], marginal_of(problem)
    start, end = float(ends[k]), float(ends[k + 1])
    known = None if law is not None or marginal is None else _From(marginal, start)
    if law is None:
        law = problem.initial_law if k == 0 or known is None else known(0.0)

    def later(function: Any) -> Any:
        return function if function is None or isinstance(function, LinearDrift) else _Later(function, start)

    return replace(
        problem,
        horizon=end - start,
        drift=later(problem.drift),
        diffusion=problem.diffusion if problem.constant_diffusion is not None else later(problem.diffusion),
        running_reward=later(problem.running_reward),
        terminal_reward=problem.terminal_reward if ahead is None else _Ahead(rewards, end, ahead),
        initial_law=law,
        exact=None,
        marginal=known,
        name=f"{problem.name}, stage {k + 1}",
    )


@final
@dataclass(frozen=True, eq=False, repr=False)
class _Later(Plain):
    """A callable of t and x, with time counted from the beginning of a stage."""

    function: Callable[[ArrayLike, FloatArray], ArrayLike]
    start: float

    def __call__(self, t: ArrayLike, x: FloatArray) -> ArrayLike:
        return self.function(np.asarray(t) + self.start, x)


@final
@dataclass(frozen=True, eq=False, repr=False)
class _Ahead(Plain):
    """What a stage ends with: the reward y_i, and the value of the next stage, beyond its box along its slope."""

    rewards: Rewards
    t: float
    next: Stage

    def __call__(self, x: FloatArray) -> FloatArray:
        points = np.asarray(x, dtype=np.float64)
        inside = np.clip(points, *bounds_of(self.next))
        values = self.next.value(0.0, inside)
        out = (inside != points).any(axis=-1)
        if out.any():
            values = values.copy()
            values[out] += (self.next.gradient(0.0, inside[out]) * (points - inside)[out]).sum(axis=-1)
        return np.asarray(paid(self.rewards, self.t, points) + values)


@final
@dataclass(frozen=True, eq=False, repr=False)
class _From(Plain):
    """The law of X_t with time counted from the beginning of a stage."""

    marginal: MarginalLaw
    start: float

    def __call__(self, t: float) -> Law:
        return self.marginal(self.start + t)


def marginal_of(problem: ControlProblem) -> MarginalLaw | None:
    """t -> the law of X_t, if it is given, or follows from a linear drift."""
    drift, constant, start = problem.drift, problem.constant_diffusion, problem.initial_law
    if problem.marginal is not None or problem.domain is not None or constant is None:
        return problem.marginal
    if isinstance(drift, LinearDrift) and isinstance(start, Gaussian | GaussianMixture | PointMass):
        return linear_marginal(drift, constant, start)
    return None
