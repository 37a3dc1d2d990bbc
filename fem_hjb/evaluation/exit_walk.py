r"""Weights along paths until an exit: two Euler chains with the same noise, each followed until it has left.

A path has the weight W = (g(X_tau) + int_0^tau r dt) / alpha - log(dP^pi / dP), whenever it leaves. The chains take
steps of 2h and of h; where one of them has left before the other, the other goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.evaluation.residual_score import Residual, checked_value
from fem_hjb.evaluation.weighted_walk import Score
from fem_hjb.paths.exit_paths import MOST_STEPS, SteadyPolicy, exit_step
from fem_hjb.paths.steering import steer
from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.exit import Always
from fem_hjb.problems.problem import ControlProblem, checked_call
from fem_hjb.solutions.steady import ExitSolution
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError, FemHjbError, ProblemError
from fem_hjb.support.progress import Progress


@final
@dataclass(frozen=True, eq=False)
class Steady:
    """A policy of the state as one of time and state; None does not steer.

    That of a solution on a box is continued outside, where the process may go if faces are natural, by that of the
    nearest point of the box.
    """

    of: SteadyPolicy | ExitSolution | None

    def __call__(self, t: float, x: FloatArray) -> ArrayLike:
        return self.at(x)

    def at(self, x: FloatArray) -> ArrayLike:
        """pi(x), (n, d)."""
        if self.of is None:
            return np.zeros_like(x)
        if not isinstance(self.of, ExitSolution):
            return checked_call("policy(x)", self.of, (x,), x.shape[-1:], passes=FemHjbError)
        basis = self.of.function.basis
        return self.of.policy(x if isinstance(basis, MeshBasis) else np.clip(x, *basis.box.bounds))


class SteadyValue(Protocol):
    """An approximate value of the state alone."""

    def value(self, x: FloatArray) -> ArrayLike:
        """w(x), (n,)."""

    def gradient(self, x: FloatArray) -> ArrayLike:
        """grad w(x), (n, d)."""


def steady_score(problem: ControlProblem, value: Any) -> Residual:
    """What paths that follow such a value add up; a ProblemError if it is none.

    problem : the exit problem as one in time (`ExitProblem.until`).
    """
    parts = {name: getattr(value, name, None) for name in ("value", "gradient", "generator", "residual")}
    missing = [name for name in ("value", "gradient") if not callable(parts[name])]
    if missing:
        raise ProblemError(
            "value must have value(x) and gradient(x), and may have generator(x), <b, grad w> + 1/2 Tr(Lambda Hess w),"
            f" or residual(x), got {type(value).__name__} without {' and '.join(missing)}"
        )
    if isinstance(value, ExitSolution) and isinstance(value.function.basis, MeshBasis):
        raise ProblemError(
            "value= needs the gradient of the value itself, and a solution on a mesh gives one that is recovered from"
            " it; give the solution as policy="
        )
    timed = {name: Always(part) for name, part in parts.items() if part is not None}
    return checked_value(problem, SimpleNamespace(**timed))


def exit_weights(score: Score, x: FloatArray, rng: np.random.Generator, tell: Progress, *, step: float) -> FloatArray:
    """W (2, n) of paths from x (n, d), all followed until they have left: in steps of 2 `step`, and of `step`.

    The problem of the score is an exit problem as one in time (`ExitProblem.until`), whose horizon plays no role.
    """
    n, dim = x.shape
    chains = [_Chain(score, x, 2.0 * step, rng), _Chain(score, x, step, rng)]
    for k in range(0, MOST_STEPS, 2):
        rows = np.flatnonzero(chains[0].inside | chains[1].inside)
        if not rows.size:
            return np.stack([chain.W for chain in chains])
        tell(1.0 - rows.size / n)
        noise = np.sqrt(step) * rng.standard_normal((2, rows.size, dim))
        chains[1].go(rows, noise[0], k * step)
        chains[1].go(rows, noise[1], (k + 1) * step)
        chains[0].go(rows, noise[0] + noise[1], k * step)
    raise ConvergenceError(
        f"paths have not left after {MOST_STEPS} steps of {step:g}, so that what they earn is not known; take longer"
        " steps, or a policy that leads out"
    )


class _Chain:
    """Paths of one step length: where they are, what they have added up, and which are still inside."""

    def __init__(self, score: Score, x: FloatArray, h: float, rng: np.random.Generator) -> None:
        self.score, self.x, self.h, self.rng = score, x.copy(), h, rng
        self.W = score.start(x)
        self.inside: BoolArray = np.ones(len(x), dtype=np.bool_)

    def go(self, rows: IntArray, noise: FloatArray, passed: float) -> None:
        """One step of those of these rows that are inside."""
        still = self.inside[rows]
        at = rows[still]
        if not at.size:
            return
        score, x, h = self.score, self.x[at], self.h
        new, out, share, log_ratio = exit_step(
            score.problem, passed, h, x, steer(score.policy, 0.0, x), noise[still], self.rng
        )
        self.x[at] = new
        self.W[at] += score.along(0.0, h * share, x, log_ratio)
        self.W[at[out]] += score.exit(0.0, new[out])
        self.inside[at[out]] = False
