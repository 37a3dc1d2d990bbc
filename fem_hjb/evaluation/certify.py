r"""Bounds of the optimal value from the paths of any policy, in any dimension, without a reference.

Along paths of dX = (b + pi) dt + Lambda^{1/2} dB from x0 let W = (y(X_T) + int r dt) / alpha - log(dP^pi / dP). Then

    alpha E W = J(pi) <= v*(x0) = alpha log E e^W,

whatever pi is; the gap between the two is J(pi*) - J(pi) = alpha KL(P^pi || P*), and W is constant if pi is optimal. Of
the N-step Euler chain both are true without an error in time, with the likelihood ratio of its own Gaussian increments
(`paths.likelihood`). Of the diffusion they are extrapolated from chains of N and N/2 steps with the same noise, weak
order 1, and what the N-step chain is off by is told.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.evaluation.certificate import Bounds, Certificate, intervals, without_value
from fem_hjb.evaluation.controlled_law import checked_policy, policy_of
from fem_hjb.evaluation.weighted_walk import Likelihood, Score, log_weights, nothing_seen
from fem_hjb.evaluation.weights import Found, Sums, add, found_in, of_many_starts, of_one_start
from fem_hjb.paths.simulate import inside
from fem_hjb.paths.sources import child_seed
from fem_hjb.paths.steering import Policy, steer
from fem_hjb.paths.tree_sum import tree_sum
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.problem import ControlProblem, ValueFunction, require_problem
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.checks import FloatArray, Rng, as_seed, at_most, finite_number, frozen_array, positive_integer
from fem_hjb.support.errors import ConvergenceError, DomainError, FemHjbError, MeasureError, ProblemError
from fem_hjb.support.progress import (
    OutOfTimeError,
    Progress,
    Watch,
    checked_progress,
    checked_seconds,
    unheard,
    until,
)

_FEWEST, _FEWEST_INNER, _FEWEST_STARTS = 64, 16, 16  # paths from a fixed start; from each of so many starts
_INNER = 64  # paths from each start, if there are enough for it
_GROWTH = (
    0.4  # the power of n that they grow with: what is left of the bias of a logarithm then falls faster than noise
)
_MOST, _MOST_STEPS, _MOST_INNER = 10**10, 10**6, 10**5
_CHUNK = 1 << 21  # coordinates times steps of a chunk, about
_CHUNK_LOW, _CHUNK_HIGH = 512, 8192  # its paths
_PROBES = 8
_REPEATED = 1e-5  # relative change from call to call that counts as rounding, single precision included
_TAIL = 0.5  # the largest index with which weights have a variance
_ESS, _ESS_OF_START = 100.0, 16.0  # effective sample sizes below which intervals of v* are not to be trusted
_SECOND_ORDER = 10.0  # times the square of the bias that was taken out of a logarithm: about what is left of it
_BIAS = 2.0  # half-widths of an interval that steps may put into it: what extrapolating leaves is a fraction of that


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


@final
@dataclass(frozen=True, eq=False)
class Chunks:
    """i -> sums over chunk i, from i and the seed alone."""

    score: Score
    x0: FloatArray | None
    plan: Plan
    steps: int
    seed: np.random.SeedSequence
    tell: Callable[[int, float], None] | None = None

    def __call__(self, i: int) -> Sums:
        rng = np.random.default_rng(child_seed(self.seed, i))
        score: Any = replace(self.score, seen=nothing_seen())  # type: ignore[type-var]
        tell = unheard if self.tell is None else lambda fraction: self.told(i, fraction)
        count = self.plan.size(i)
        if self.x0 is not None:
            x = np.repeat(self.x0[None], count, axis=0)
            return of_one_start(log_weights(score, x, self.steps, rng, tell), score.seen)
        x = np.repeat(starts_of(score.problem, count, rng), self.plan.inner, axis=0)
        W = log_weights(score, x, self.steps, rng, tell)
        return of_many_starts(W.reshape(2, count, self.plan.inner), score.seen)

    def told(self, i: int, fraction: float) -> None:
        """How far chunk i is."""
        if self.tell is not None:
            self.tell(i, fraction)


def starts_of(problem: ControlProblem, n: int, rng: np.random.Generator) -> FloatArray:
    """Draws of the initial law, those outside a domain moved to where the process starts, (n, d)."""
    x = problem.initial_law.sample(n, rng)
    return x if problem.domain is None else inside(problem.domain, x)


def certify(
    problem: ControlProblem,
    policy: Policy | Solution | ProductSolution | ValueFunction | None,
    *,
    x0: ArrayLike | None = None,
    n: int,
    steps: int,
    rng: Rng,
    level: float = 0.95,
    starts: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> Certificate:
    r"""Intervals for J(pi), for v* and for the gap between them, from n paths that follow the policy.

    From a fixed start x0 the bounds are those of v_0(x0). Without one, X_0 ~ p_0 and they are those of E v_0(X_0): the
    logarithm of an expectation over mixed starts would be another number, so paths are drawn in groups, n / starts from
    each of `starts` draws of p_0, a logarithm is taken for each group, its bias of first order taken out, and averaged.

    Intervals are Student's; of log E e^W by the delta method, which needs weights e^W with a variance. Whether they
    have one is judged by the index of their tail (below 1/2) and the effective sample size (100 at least, and 16 from
    each start). If not, the status says so, and the lower bound is all there is.

    Parameters
    ----------
    policy : pi, a callable (t, x (n, d)) -> (n, d), t a number; a solution of any solver or of `fit`, for its policy,
        continued outside its box by that of the nearest point; anything with value and gradient, such as problem.exact;
        None: no control.
    x0 : (d,), a start; None: the initial law (which may be a point).
    n, steps : how many paths, and N, even, the number of steps: N and N/2 are followed with the same noise.
    rng : an int or a SeedSequence (the same bits on every call, whatever the executor) or a Generator.
    level : of each interval, and of [lower, upper].
    starts : of X_0 ~ p_0, 16 at least; None: so many that 64 paths begin at each, and n^0.4 if that is more.
    executor : any concurrent.futures.Executor; None: here. Chunks of paths are made and summed up where they are
        computed, in a memory that does not depend on n.
    progress, max_seconds : called with the fraction done; when time is over the certificate is that of the chunks that
        are done, which its status says.

    At reflecting faces each step is mirrored, for which the likelihood ratios stay exact. At absorbing ones a path is
    stopped as in `sample_paths`, by the chance of a Brownian bridge, at the end of its last step; r and steering count
    for the whole of that step.

    Raises
    ------
    ProblemError : the policy is no such thing, fails, returns a wrong shape, numbers that are not finite, or others
        when it is called again.
    MeasureError : n, steps, rng, level or starts make no sense, or the executor fails.
    DomainError : x0 is not of the problem's dimension, or not in its domain.
    ConvergenceError : paths explode, or max_seconds are over before there is anything.
    """
    require_problem(problem, "certify")
    watch = until(checked_progress(progress), checked_seconds(max_seconds))
    plan, x0 = checked_plan(problem, x0, n, checked_steps(steps), starts)
    level = checked_level(level)
    seed = np.random.SeedSequence(as_seed(rng))
    pi = followed(problem, policy)
    probe(problem, pi, x0, steps)
    score = Likelihood(problem, pi)
    sums = summed(Chunks(score, x0, plan, steps, seed), executor, watch, max_seconds)
    found = found_in(sums, plan.starts > 1)
    diffusion, chain, bias = intervals(found, problem.temperature, level)
    notes = unfinished(found, plan) + degenerate(found, plan, diffusion) + biased(diffusion, bias, steps)
    if degenerate(found, plan, diffusion):
        diffusion, chain, bias = map(without_value, (diffusion, chain, bias))
    watch.finished()
    return certificate(problem, diffusion, chain, bias, found, plan, steps, level, notes)


def certificate(
    problem: ControlProblem,
    diffusion: Bounds,
    chain: Bounds | None,
    bias: Bounds,
    found: Found,
    plan: Plan,
    steps: int,
    level: float,
    notes: list[str],
) -> Certificate:
    """What was found, in one object."""
    return Certificate(
        name=problem.name,
        lower=diffusion.reward.low,
        value=diffusion.optimal.estimate,
        upper=diffusion.optimal.high,
        gap=diffusion.gap,
        diffusion=diffusion,
        chain=chain,
        bias=bias,
        ess=found.ess,
        tail=found.tail,
        paths=found.paths,
        starts=1 if plan.starts == 1 else found.count,
        steps=steps,
        level=level,
        status="; ".join(notes) or "ok",
    )


# What was given


def checked_steps(steps: Any) -> int:
    """An even number of steps."""
    count = at_most(steps, _MOST_STEPS, "steps", MeasureError)
    if count % 2:
        raise MeasureError(f"steps must be even, as half of them are taken, too, got {count}; take {count + 1}")
    return count


def checked_level(level: Any) -> float:
    """A probability between 0 and 1."""
    number = finite_number(level, "level", MeasureError)
    if not 0.0 < number < 1.0:
        raise MeasureError(f"level must lie between 0 and 1, such as 0.95, got {number:g}")
    return number


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
            lower, upper = problem.domain.bounds
            raise DomainError(
                f"x0 must lie inside the domain, {lower.tolist()} to {upper.tolist()}, and not on an absorbing face,"
                f" got {start.tolist()}"
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
    inner = max(_FEWEST_INNER, min(max(_INNER, int(n**_GROWTH)), n // (2 * _FEWEST_STARTS)))
    count = n // inner if starts is None else at_most(starts, n, "starts", MeasureError)
    inner = inner if starts is None else n // count
    if count < _FEWEST_STARTS or not _FEWEST_INNER <= inner <= _MOST_INNER:
        raise MeasureError(
            f"starts={count} of n={n} paths: there must be {_FEWEST_STARTS} at least, and {_FEWEST_INNER} to"
            f" {_MOST_INNER} paths from each"
        )
    return Plan(count, inner, min(max(1, per_chunk // inner), count)), None


def uncontrolled(t: float, x: FloatArray) -> FloatArray:
    """No control."""
    return np.zeros_like(x)


def followed(problem: ControlProblem, policy: Any) -> Policy:
    """What was given as policy=, as a callable."""
    if policy is None:
        return uncontrolled
    if isinstance(policy, Solution | ProductSolution) or callable(policy) or not isinstance(policy, ValueFunction):
        return checked_policy(problem, policy, "certify")
    return policy_of(problem, policy)


def probe(problem: ControlProblem, policy: Policy, x0: FloatArray | None, steps: int) -> None:
    """ProblemError if the policy is not as it must be at a few starts, or says something else when asked again."""
    rng = np.random.default_rng(0)
    x = starts_of(problem, _PROBES, rng) if x0 is None else np.repeat(x0[None], _PROBES, axis=0)
    x[_PROBES // 2 :] = x[0]
    for t in (0.0, problem.horizon * (1.0 - 1.0 / steps)):
        first = steer(policy, t, x).copy()
        again = steer(policy, t, x[::-1])[::-1]
        if np.abs(again - first).max() > _REPEATED * np.abs(first).max():
            raise ProblemError(
                f"policy(t, x) returned other numbers at t={t:g} when it was called a second time with its points in"
                " another order; it must be a function of t and x alone, so fix its random numbers, and let a network"
                " be in evaluation mode"
            )


# The work


def summed(task: Chunks, executor: Executor | None, watch: Watch, max_seconds: float | None) -> Sums:
    """The sums over all chunks, or over those that are done when time is over."""
    count = task.plan.chunks

    def enough(done: int) -> bool:
        try:
            watch(min(done / count, 1.0 - 1e-9))
        except OutOfTimeError:
            return True
        return False

    def within(i: int, fraction: float) -> None:
        watch((i + fraction) / count)

    work = replace(task, tell=within) if executor is None else task
    try:
        return tree_sum(work, count, add, executor=executor, enough=enough)
    except OutOfTimeError:
        raise ConvergenceError(
            f"certify({task.score.problem.name!r}): {watch.reached:.0%} done within max_seconds={max_seconds:g}; give"
            " it more time, or smaller n and steps"
        ) from None
    except MeasureError as error:
        if isinstance(error.__cause__, FemHjbError):  # of a chunk, which has nothing to say of its own
            raise error.__cause__ from error.__cause__.__cause__
        raise


# What is not as it should be


def unfinished(found: Found, plan: Plan) -> list[str]:
    """Whether there are fewer paths than were asked for."""
    asked = plan.starts * plan.inner
    return [f"max_seconds were over after {found.paths} of {asked} paths"] if found.paths < asked else []


def degenerate(found: Found, plan: Plan, bounds: Bounds) -> list[str]:
    """Why the weights do not tell v*."""
    told = f"effective sample size {found.ess:.3g} of {found.paths}, tail index {found.tail:.2f}"
    if plan.starts > 1:
        each = found.ess / found.count
        first_order = 0.5 * (1.0 / each - 1.0 / plan.inner)
        margin = bounds.optimal.half_width
        spoilt = each < _ESS_OF_START / 2 or _SECOND_ORDER * first_order**2 > margin / 4
    else:
        spoilt = found.ess < _ESS or found.tail > _TAIL
    if not spoilt:
        return []
    return [f"the weights have degenerated ({told}), only the lower bound holds: take more paths or a better policy"]


def biased(bounds: Bounds, bias: Bounds, steps: int) -> list[str]:
    """Whether the steps are long for what the paths resolve."""
    off = max(
        abs(bias.reward.estimate) / max(bounds.reward.half_width, 1e-300),
        abs(bias.optimal.estimate) / max(bounds.optimal.half_width, 1e-300),
    )
    if off <= _BIAS:
        return []
    return [f"{steps} steps are few: they put {off:.2g} half-widths of an interval into it; take more steps"]
