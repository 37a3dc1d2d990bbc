"""How paths are divided into starts and chunks, and summed up on whatever computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.evaluation.weighted_walk import Score, nothing_seen
from fem_hjb.evaluation.weights import Sums, add, of_many_starts, of_one_start
from fem_hjb.paths.sources import child_seed
from fem_hjb.paths.tree_sum import tree_sum
from fem_hjb.paths.walls import inside
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray, at_most, frozen_array, positive_integer
from fem_hjb.support.errors import DomainError, FemHjbError, MeasureError
from fem_hjb.support.progress import OutOfTimeError, Progress, unheard

_FEWEST, _FEWEST_INNER, _FEWEST_STARTS = 64, 16, 16  # paths from a fixed start; from each of so many starts
_INNER = 32  # paths from each start, if there are enough for it; more starts than paths from each, as v_0 may be skewed
_STARTS = 64  # that there are to be before more than the fewest paths begin at each of them
_GROWTH = 0.4  # the power of n that they grow with: the bias of a logarithm then falls faster than the noise
_MOST, _MOST_INNER = 10**10, 10**5
_CHUNK = 1 << 21  # coordinates times steps of a chunk, about
_CHUNK_LOW, _CHUNK_HIGH = 512, 8192  # its paths

Walk = Callable[[Any, FloatArray, np.random.Generator, Progress], FloatArray]
"""(score, x (n, d), rng, tell) -> W (2, n) along paths from x, `exit_weights` or `log_weights` but for their steps."""


@final
@dataclass(frozen=True)
class Plan:
    """How many starts, paths from each of them, and starts (or, of a fixed start, paths) in a chunk."""

    starts: int
    inner: int
    chunk: int

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-(self.inner if self.starts == 1 else self.starts) // self.chunk)

    def size(self, i: int) -> int:
        """Starts or paths in chunk i."""
        return min(self.chunk, (self.inner if self.starts == 1 else self.starts) - i * self.chunk)


def checked_plan(
    problem: ControlProblem, x0: ArrayLike | None, n: Any, steps: int, starts: int | None
) -> tuple[Plan, FloatArray | None]:
    """How the paths are made, and the start if there is but one."""
    n = at_most(n, _MOST, "n", MeasureError)
    per_chunk = int(np.clip(_CHUNK // (steps * problem.dim), _CHUNK_LOW, _CHUNK_HIGH))
    if x0 is None and isinstance(problem.initial_law, PointMass):
        x0 = problem.initial_law.expectation
    if x0 is not None:
        start = frozen_array(x0, "x0", (problem.dim,), DomainError)
        if problem.domain is not None and (not problem.domain.contains(start) or problem.domain.exited(start)):
            raise DomainError(
                f"x0 must lie inside the domain, {problem.domain.place}, and not on an absorbing face, got"
                f" {start.tolist()}"
            )
        if starts is not None and positive_integer(starts, "starts", MeasureError) > 1:
            raise MeasureError(f"starts= is for X_0 ~ p_0, not for a fixed start; leave it out, got {starts}")
        if n < _FEWEST:
            raise MeasureError(f"n must be at least {_FEWEST}, for an interval to mean something, got {n}")
        return Plan(1, n, min(per_chunk, n)), start
    least = _FEWEST_STARTS * _FEWEST_INNER
    if n < least:
        raise MeasureError(
            f"n must be at least {least}, {_FEWEST_INNER} paths from each of {_FEWEST_STARTS} starts, got {n}; or give"
            " x0="
        )
    inner = max(_FEWEST_INNER, min(max(_INNER, int(n**_GROWTH)), n // _STARTS))
    count = n // inner if starts is None else at_most(starts, n, "starts", MeasureError)
    inner = inner if starts is None else n // count
    if count < _FEWEST_STARTS or not _FEWEST_INNER <= inner <= _MOST_INNER:
        raise MeasureError(
            f"starts={count} of n={n} paths: there must be {_FEWEST_STARTS} at least, and {_FEWEST_INNER} to"
            f" {_MOST_INNER} paths from each"
        )
    return Plan(count, inner, min(max(1, per_chunk // inner), count)), None


@final
@dataclass(frozen=True, eq=False)
class Chunks:
    """i -> sums over chunk i, from i and the seed alone."""

    score: Score
    x0: FloatArray | None
    plan: Plan
    walk: Walk
    seed: np.random.SeedSequence
    tell: Callable[[int, float], None] | None = None

    def __call__(self, i: int) -> Sums:
        rng = np.random.default_rng(child_seed(self.seed, i))
        score: Any = replace(self.score, seen=nothing_seen())  # type: ignore[type-var]
        tell = unheard if self.tell is None else lambda fraction: self.told(i, fraction)
        count = self.plan.size(i)
        if self.x0 is not None:
            x = np.repeat(self.x0[None], count, axis=0)
            return of_one_start(self.walk(score, x, rng, tell), score.seen)
        x = np.repeat(starts_of(score.problem, count, rng), self.plan.inner, axis=0)
        W = self.walk(score, x, rng, tell)
        return of_many_starts(W.reshape(2, count, self.plan.inner), score.seen)

    def told(self, i: int, fraction: float) -> None:
        """How far chunk i is."""
        if self.tell is not None:
            self.tell(i, fraction)


def starts_of(problem: ControlProblem, n: int, rng: np.random.Generator) -> FloatArray:
    """Draws of the initial law, those outside a domain moved to where the process starts, (n, d)."""
    return inside(problem, problem.initial_law.sample(n, rng))


def summed(task: Chunks, executor: Executor | None, tell: Progress) -> Sums:
    """The sums over all chunks, or over those done when `tell` raises OutOfTimeError; that if there are none."""
    count = task.plan.chunks

    def enough(done: int) -> bool:
        try:
            tell(min(done / count, 1.0 - 1e-9))
        except OutOfTimeError:
            return True
        return False

    def within(i: int, fraction: float) -> None:
        tell((i + fraction) / count)

    work = replace(task, tell=within) if executor is None else task
    try:
        return tree_sum(work, count, add, executor=executor, enough=enough)
    except MeasureError as error:
        if isinstance(error.__cause__, FemHjbError):  # of a chunk, which has nothing to say of its own
            raise error.__cause__ from error.__cause__.__cause__
        raise
