r"""A witness that knows the equation only: over a short time, a value is what its own future makes of it.

By the dynamic programming principle, with X the uncontrolled process that is at x at time t,

    v_t(x) = alpha log E exp((int_t^{t+h} r ds + v_{t+h}(X_{t+h})) / alpha),

and what the right side exceeds the left by, over h, is the residual of the HJB equation (docs/theory.md) as h -> 0. One
step of Euler and Maruyama is taken, its normal increment replaced by the 2 d points of the cubature of degree 3 (A. H.
Stroud, Approximate Calculation of Multiple Integrals, 1971). What that is wrong by, of order h, shorter steps take out.
No derivative of the solution is needed, every callable is used as the user wrote it, all coordinates at once.

What a value is wrong by is the mean of the residual along paths under the policy, times their time. Discrete solutions
have large residuals of both signs, wrong ones have means: these are taken over parts of space and time.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

import numpy as np

from fem_hjb.paths.simulate import noise_factor, sample_paths
from fem_hjb.paths.steering import Policy
from fem_hjb.paths.stiffness import substeps_of
from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.pathwise import Walk
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError

RESIDUAL = "residual"
_PATHS, _FEW_PATHS = {1: 128, 2: 96}, 64  # of each law, and in more dimensions
_MANY_PATHS = 320
_TIMES = 16
_FINER = (1, 4, 16)  # times as many substeps, where paths explode
_STEP = 2.0**-9  # of the horizon
_STEEP = 4.0  # substeps of T / 16, above which h is shorter
_LEAST = 0.1  # of the time to go: h at most
_PARTS = 4  # of time
_FEWEST = 40  # points, of which a mean is taken
_ERRORS = 5.0  # standard errors that one of many means may be off
_ESTIMATES = 3.0  # times its estimated error, that a solution may be off
_ROUNDING = 1e-9


def residual(
    problem: ControlProblem, solution: Any, t: FloatArray, x: FloatArray, h: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The residual at times (n,) and points x (n, d) by steps of h (n,), h / 2, h / 4; what the last of them changed.

    nan where the solution is not known all around.
    """
    now = solution.value(t, x, outside="nan", nonpositive="nan")
    whole, half, quarter = _excess(problem, solution, t, x, now, h * np.array([[1.0], [0.5], [0.25]]))
    before, found = 2.0 * half - whole, 2.0 * quarter - half
    return found, found - before


def _excess(
    problem: ControlProblem, solution: Any, t: FloatArray, x: FloatArray, now: FloatArray, h: FloatArray
) -> FloatArray:
    """By how much the future exceeds the value now, over h, (k, n) for steps h (k, n)."""
    alpha, d = problem.temperature, problem.dim
    roots = np.swapaxes(noise_factor(problem, t, x), 1, 2)  # rows: columns of it
    kicks = np.sqrt(d * h)[:, :, None, None] * np.concatenate([roots, -roots], axis=1)
    ahead = (x + h[..., None] * problem.b(t, x))[:, :, None] + kicks
    then = solution.value((t + h)[..., None], ahead, outside="nan", nonpositive="nan")
    gain = np.log(np.exp((then - now[:, None]) / alpha).mean(axis=-1))
    return np.asarray(alpha / h * gain + problem.r(t, x))


def _missed_at_the_end(problem: ControlProblem, solution: Any, x: FloatArray) -> FloatArray:
    """v_T - y, (n,); nan for draws of a process that has been stopped."""
    gap = solution.value(problem.horizon, x, outside="nan", nonpositive="nan") - problem.y(x)
    if problem.domain is not None and problem.domain.absorbing:
        gap[problem.domain.exited(x)] = np.nan
    return np.asarray(gap)


def residual_checks(
    problem: ControlProblem,
    solution: Any,
    estimate: ErrorEstimate,
    jumps: Sequence[float] = (),
    seed: int = 0,
    *,
    thorough: bool = False,
    walked: Walk | None = None,
) -> tuple[Check, ...]:
    """The mean that exceeds what explains it by most, over parts of time and space under P, and under the policy.

    At T it is that of v - y instead of the residual.

    jumps : times between 0 and T at which coefficients jump: no step goes across.
    thorough : at more than 10^4 points, in up to three dimensions.
    walked : paths under the policy, if there are any.
    Steps do not reach over faces: points nearer to one are left out.
    """
    rng = np.random.default_rng([seed, 3])
    T, alpha = problem.horizon, problem.temperature
    substeps = substeps_of(problem, _TIMES, steered=True) or 1

    def policy(t: float, x: FloatArray) -> FloatArray:
        gradient = solution.gradient(t, x, outside="nan", nonpositive="nan")
        return problem.policy_from_gradient(t, x, np.nan_to_num(gradient))

    count = _MANY_PATHS if thorough and problem.dim <= 3 else _PATHS.get(problem.dim, _FEW_PATHS)
    if walked is None:
        steered = _draws(problem, policy, substeps, seed, count)
    else:
        steered = [walked.at(np.linspace(0.0, T, _TIMES + 1))[:, :count]]
    draws = [*_draws(problem, None, substeps, seed, 2 * count - sum(one.shape[1] for one in steered)), *steered]
    if not draws:
        return ()
    x, law = np.concatenate(draws, axis=1), np.repeat(np.arange(len(draws)), [one.shape[1] for one in draws])
    # from one observation to the next, all different: what is wrong in the middle of a step is so everywhere
    times = T * (np.arange(_TIMES)[:, None] + rng.random((_TIMES, x.shape[1]))) / _TIMES
    ends = np.append(np.sort(np.asarray(jumps, dtype=np.float64)), T)
    after = ends[np.searchsorted(ends, times, side="right")]
    longest = _STEP * T / max(1.0, substeps / _STEEP)
    steps = np.minimum(np.minimum(longest, _LEAST * (T - times)), 0.99 * (after - times))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is left out
        found = residual(problem, solution, times.ravel(), x[:-1].reshape(-1, problem.dim), steps.ravel())
        at_the_end = _missed_at_the_end(problem, solution, x[-1]) / T
    values, changes = (np.zeros(x.shape[:2]) for _ in range(2))  # (k, n)
    values[:-1], changes[:-1] = (part.reshape(times.shape) for part in found)
    values[-1] = at_the_end
    start = solution.value(0.0, x[0], outside="nan", nonpositive="nan")
    size = max(float(np.abs(each[np.isfinite(each)]).sum()) / len(each) for each in (start, problem.y(x[-1])))
    allowed = (_ESTIMATES * min(max(estimate.value, estimate.policy), 1.0) + _ROUNDING) * size / alpha
    told = f"temperatures; the most of means over parts of {values.size} points of the laws with and without control"
    checks = []
    for some in _parts(np.isfinite(values + changes), x, law):
        chance = _ERRORS * float(values[some].std()) / math.sqrt(some.sum())
        limit = T / alpha * (chance + float(np.abs(changes[some]).mean())) + allowed
        figure = T / alpha * abs(float(values[some].mean()))
        checks.append(Check(name=RESIDUAL, figure=figure, limit=limit, told=told))
    return (max(checks, key=lambda check: check.figure / max(check.limit, 1e-300)),) if checks else ()


def _draws(problem: ControlProblem, policy: Policy | None, substeps: int, seed: int, count: int) -> list[FloatArray]:
    """Of paths at equal times from 0 to T, (k, n, d); none if paths explode however short their steps."""
    for finer in _FINER:
        with suppress(ConvergenceError):
            paths = sample_paths(
                problem, n=count, steps=_TIMES, rng=seed, scheme="euler", policy=policy, substeps=finer * substeps
            )
            return [np.moveaxis(paths.x, 1, 0)]
    return []


def _parts(known: BoolArray, x: FloatArray, law: IntArray) -> Iterator[BoolArray]:
    """Which known points (k, n) are together: of a law, a quarter of time or its end, a quadrant of two coordinates."""
    above = x > np.median(x, axis=(0, 1))
    quarter = (np.arange(len(x)) * _PARTS // (len(x) - 1))[:, None] + (_PARTS + 1) * law
    d = x.shape[2]
    for pair in combinations(range(d), min(d, 2)):
        label = np.where(known, quarter * 4 + above[..., list(pair)] @ 2 ** np.arange(len(pair)), -1)
        for each in np.unique(label[known]).tolist():
            some = label == each
            if some.sum() >= _FEWEST:
                yield some
