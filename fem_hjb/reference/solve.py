r"""`solve`: value and policy of a control problem on boxes, to a tolerance.

A problem that falls apart into independent ones is solved as these (`blocks`), never as a whole; each on boxes, until
its measured error meets the tolerance (`box_tolerance`). Independent problems that are alike are solved once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from fem_hjb.paths.met import TIMES, Draws, between, ends_of, met
from fem_hjb.problems.blocks import Block, alike, independent_blocks, joined, restrict
from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem, require_box
from fem_hjb.reference.box_tolerance import solve_to_tolerance
from fem_hjb.reference.pathwise import Walk, along_paths, walk
from fem_hjb.reference.residual import residual_checks
from fem_hjb.reference.tolerance import AnySolution, checked_rtol, judged
from fem_hjb.solutions.estimate import PARTS, ErrorEstimate
from fem_hjb.solutions.norms import largest_norms, law_points
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.checks import FloatArray, Rng, as_seed, flag, one_of, positive_integer
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, unheard, until
from fem_hjb.support.threads import threads, worker_count

Form = Literal["linear", "value"]

_LONG = 5e6  # unknowns times steps, from which on a thorough look takes no more than a tenth of the time
_FOR_THE_FIRST = 0.6  # of max_seconds; then there is to be one to a looser tolerance
_EACH = 0.7  # of the tolerance, to which each of several independent problems is solved


def solve(
    problem: ControlProblem,
    *,
    rtol: float = 1e-4,
    form: Form | None = None,
    box: Box | None = None,
    max_dofs: int | None = None,
    rng: Rng = 0,
    progress: Progress | None = None,
    max_seconds: float | None = None,
    verify: bool = True,
    workers: int = 1,
) -> Solution | ProductSolution:
    """Value and policy of a problem, to a tolerance.

    Everything else is chosen here: box, cells, degree, form of the equation, route in time; in any dimension, if the
    problem falls apart into independent ones of dimension up to three. `solve_on_mesh` takes a mesh of yours,
    `refine_on_mesh` refines one.

    Parameters
    ----------
    rtol : relative error of value and policy, as `compare` measures it: from 1e-10 to 0.1.
    form : "linear" solves for f, "value" for v itself. By default the value form, but the linear one where the process
        is stopped at faces, where f hardly varies on a bounded domain, and where the value form finds no solution.
    box : the box to solve on, which is then kept, whatever its words say of faces that problem.domain does not have; by
        default one that holds the process up to a mass of rtol^2 / 10 on each side of each axis.
    max_dofs : unknowns in space that may be spent; 1500, 400 000, 1 000 000 in one, two, three dimensions.
    rng : seed of what is random: the samples that say how far the process goes, and that stand for its law, where that
        is not known, when errors are measured.
    progress : called with the fraction of the work done, as far as that is known. What a run that is not the first may
        take, with what judges it, is logged by the logger "fem_hjb" (INFO) before it begins.
    max_seconds : when they are over, the best solution so far is returned, with its estimate and a status that says so;
        where there is none after six tenths of them, one to a looser tolerance is sought; if they are over before its
        error is estimated, the estimate is infinite.
    verify : follow paths under the policy with the problem as it was given (`pathwise`), and compare the value.
    workers : threads that share out what is done to large arrays, as in three dimensions, and follow a run again in
        several ways at once, which takes memory; -1 for as many as there are processors, as in `scipy.fft`. Results
        have the same digits. Callables are called from your own thread only. Two gain little at 1e-3 in three
        dimensions, where arrays are small, and more at 1e-4: measure first (`benchmarks/bench_solve.py`).

    Returns
    -------
    A `Solution`, or a `ProductSolution` of independent ones, with its `error_estimate` and its `checks`. Coordinates
    that were taken for independent and are not, as paths show, are solved as a whole. Its stats tell the form, the
    route and why, the unknowns, how often it was solved, and the seconds. If the tolerance is not met, a
    `ToleranceWarning` says which part of the error stopped it, and so does the status. Where the terminal reward jumps
    or has kinks, the error is that up to the time T - stats["layer"], which the check "layer at the end" tells, too.

    Raises
    ------
    ConvergenceError : rtol is out of range (below 1e-10 double precision has nothing to offer), or no solution exists
        on any grid tried, or none was found within max_seconds.
    InfiniteValueError : exp(y / alpha) outgrows the law of X_T, where that is known, or the problem is linear-quadratic
        and its value infinite. Where the law is known from paths only, the status says that the value may be infinite.
    EllipticityError, ProblemError : a coefficient is not elliptic, or not finite, somewhere in the box.
    DomainError : the box does not fit, or more than three coordinates hang together.
    """
    if not isinstance(problem, ControlProblem):
        raise ProblemError(f"solve needs a ControlProblem, got {type(problem).__name__}")
    rtol, seed = checked_rtol(rtol), as_seed(rng)
    told, seconds = checked_progress(progress), checked_seconds(max_seconds)
    verify, workers = flag(verify, "verify", ConvergenceError), worker_count(workers, ConvergenceError)
    if max_dofs is not None:
        max_dofs = positive_integer(max_dofs, "max_dofs", SpaceError)
    if form is not None:
        one_of(form, "form", ("linear", "value"), ConvergenceError)
    started = time.perf_counter()
    require_box(problem, "solve")
    blocks = [tuple(range(problem.dim))] if box is not None else independent_blocks(problem)
    seen = [] if len(blocks) == 1 else met(problem, seed, TIMES if verify else 1)
    blocks = _still(problem, blocks, seen)
    watched = until(told, seconds)
    sooner = None if seconds is None else until(watched, _FOR_THE_FIRST * seconds)

    def found(blocks: Sequence[Block], seen: Sequence[Draws]) -> Solution | ProductSolution:
        if len(blocks) == 1:
            return solve_to_tolerance(problem, rtol, form, box, max_dofs, watched, seed, sooner)
        each = _each(problem, blocks, _EACH * rtol, form, max_dofs, (watched, sooner), seed, seen)
        return _product(problem, blocks, *each, seed)

    try:
        with threads(workers):
            solution = _solved(problem, blocks, seen, found, seed) if verify else found(blocks, seen)
    except OutOfTimeError:
        if seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"solve({problem.name!r}): no solution within max_seconds={seconds:g}; give it more time, a larger rtol, or"
            " a mesh (solve_on_mesh)"
        ) from None
    if told is not None:
        told(1.0)
    spent = {"seconds": time.perf_counter() - started}
    return judged(solution, _estimate_of(solution), rtol, f"solve({problem.name!r})", spent)


def _estimate_of(solution: Solution | ProductSolution) -> ErrorEstimate:
    if solution.error_estimate is None:
        raise ConvergenceError("a solution without an estimate")
    return solution.error_estimate


def _solved(
    problem: ControlProblem,
    blocks: Sequence[Block],
    seen: Sequence[Draws],
    found: Callable[[Sequence[Block], Sequence[Draws]], AnySolution],
    seed: int,
) -> AnySolution:
    """What is found, with all of its checks; found again where groups are not what they seemed to be."""
    solution = found(blocks, seen)
    walked = _walked(solution, seed)
    if len(blocks) > 1 and walked is not None:
        steered = between(walked.at(ends_of(problem)), problem.horizon, seed)
        now = _still(problem, blocks, [steered])
        if now != blocks or not _same(solution, steered):  # where paths under the policy go
            blocks, solution = now, found(now, [*seen, steered])
            walked = _walked(solution, seed)
    solution = _verified(solution, walked, seed)
    if len(blocks) > 1 and problem.dim <= 3 and not all(check.passed for check in solution.checks):
        solution = found([tuple(range(problem.dim))], [])  # they may not be independent after all
        solution = _verified(solution, _walked(solution, seed), seed)
    return solution


def _still(problem: ControlProblem, blocks: Sequence[Block], seen: Sequence[Draws]) -> list[Block]:
    """The groups, joined where draws show that they hang together; DomainError if they become too large."""
    groups = list(blocks)
    for draws in seen:
        groups = joined(problem, groups, *draws)
    largest = max(map(len, groups))
    if largest > 3:
        raise DomainError(
            f"boxes go up to dimension 3, but {largest} coordinates of {problem.name!r} hang together; learn its value"
            " from paths instead"
        )
    return groups


def _same(solution: AnySolution, draws: Draws) -> bool:
    """Whether groups that were solved once, as they looked alike, are so at draws of the whole, too."""
    parts = solution.parts if isinstance(solution, ProductSolution) else ()
    t, x = draws
    return all(
        alike(part.problem, restrict(solution.problem, block, len(parts)), (t, x[..., list(block)]))
        for block, part in parts
    )


def _walked(solution: AnySolution, seed: int) -> Walk | None:
    """Paths under the policy."""
    with threadpool_limits(1, user_api="blas"):  # a few points at a time: more threads wait for each other
        return walk(solution.problem, solution, _jumps_of(solution), seed)


def _jumps_of(solution: AnySolution) -> list[float]:
    return sorted({t for part in getattr(solution, "parts", [((), solution)]) for t in part[1].stats["jumps"]})


def _verified(solution: AnySolution, walked: Walk | None, seed: int) -> AnySolution:
    """The solution with the checks that use the problem as it was given, thorough where structure was assumed."""
    assumed = isinstance(solution, ProductSolution)
    thorough = assumed or solution.stats["dofs"] * solution.stats["steps"] > _LONG
    known = solution.problem, solution, _estimate_of(solution), _jumps_of(solution), seed
    with threadpool_limits(1, user_api="blas"):
        followed = () if walked is None else along_paths(*known, walked)
        witnesses = *residual_checks(*known, thorough=thorough, walked=walked), *followed
    return replace(solution, checks=(*solution.checks, *witnesses))


def _each(
    problem: ControlProblem,
    blocks: Sequence[Block],
    rtol: float,
    form: Form | None,
    max_dofs: int | None,
    progress: tuple[Progress, Progress | None],
    seed: int,
    seen: Sequence[Draws],
) -> tuple[list[Solution], list[int]]:
    """The distinct solutions of independent problems, and which of them is that of each block.

    progress : for all of it, and for first runs.  seen : draws of the whole, to see which are alike.
    """
    distinct: list[Solution] = []
    which: list[int] = []
    for k, block in enumerate(blocks):
        own = restrict(problem, block, len(blocks))
        draws = [(t, x[..., list(block)]) for t, x in seen]
        known = next((i for i, solution in enumerate(distinct) if alike(solution.problem, own, *draws)), None)
        if known is None:
            known = len(distinct)
            told, sooner = (None if one is None else partial(_part, one, k, len(blocks)) for one in progress)
            distinct.append(solve_to_tolerance(own, rtol, form, None, max_dofs, told or unheard, seed, sooner))
        which.append(known)
    return distinct, which


def _part(progress: Progress, k: int, count: int, fraction: float) -> None:
    progress((k + fraction) / count)


def _product(
    problem: ControlProblem, blocks: Sequence[Block], distinct: Sequence[Solution], which: Sequence[int], seed: int
) -> ProductSolution:
    """The whole of independent solutions; policy errors add up in squares, those of values as if of one sign."""
    parts = tuple((block, distinct[i]) for block, i in zip(blocks, which, strict=True))
    norms = [_largest_norms_of(solution, seed) for solution in distinct]
    sizes = np.array([norms[i] for i in which])
    estimates = [part.error_estimate for _, part in parts if part.error_estimate is not None]
    whole = ProductSolution(problem=problem, parts=parts, status="ok")
    scales = np.maximum(np.array(_largest_norms_of(whole, seed)), 1e-300)
    value = sum(e.value * s for e, s in zip(estimates, sizes[:, 0], strict=True)) / scales[0]
    policy = math.sqrt(sum((e.policy * s) ** 2 for e, s in zip(estimates, sizes[:, 1], strict=True))) / scales[1]
    largest = max(max(e.value, e.policy) for e in estimates)
    scale = max(value, policy) / largest if largest > 0 else 0.0
    told = [part.status for _, part in parts if part.status != "ok"]
    shares = {name: scale * max(getattr(e, name) for e in estimates) for name in PARTS}
    return ProductSolution(
        problem=problem,
        parts=parts,
        status="; ".join(told) if told else "ok",
        stats={
            "form": ", ".join(dict.fromkeys(solution.stats["form"] for solution in distinct)),
            "route": ", ".join(dict.fromkeys(solution.stats["route"] for solution in distinct)),
            "why": f"falls apart into {len(parts)} independent problems",
            "dofs": sum(part.stats["dofs"] for _, part in parts),
            "layer": max(solution.stats["layer"] for solution in distinct),
            "solves": sum(solution.stats["solves"] for solution in distinct),
        },
        error_estimate=ErrorEstimate(value=float(value), policy=float(policy), **shares),
        checks=tuple(dict.fromkeys(check for solution in distinct for check in solution.checks)),
    )


def _largest_norms_of(solution: Any, seed: int = 0) -> tuple[float, float]:
    """max over t of the norms of value and policy."""
    problem = solution.problem
    points = law_points(problem, rng=seed)
    return largest_norms(problem, points, [_evaluate(solution, t, x) for t, x, _ in points])


def _evaluate(solution: Any, t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """v (n,) and grad v (n, d); nan outside the box and where f <= 0."""
    how = {"outside": "nan", "nonpositive": "nan"}
    return solution.value(t, x, **how), solution.gradient(t, x, **how)
