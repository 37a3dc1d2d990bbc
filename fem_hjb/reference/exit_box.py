r"""`solve_exit`: value and policy of an exit problem on a box, to a tolerance; expectations until the exit.

Spectral elements on grids that are refined where the solution asks for it (`steady_ladder`), the equation in the linear
form, or in that of the value where f would underflow (`exit_equation`). Beyond natural faces, which cut the domain off,
grids go on for a tenth of its width, or more if it takes that; those that go on twice as far say what the cut does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.exit import ExitProblem, faces_of
from fem_hjb.problems.problem import checked_call
from fem_hjb.reference.exit_equation import ExitEquation, Settled, differences
from fem_hjb.reference.faces import on_face
from fem_hjb.reference.steady_checks import (
    check_normal_reflection,
    equation_check,
    leaving_check,
    rounding_check,
    temperature_check,
)
from fem_hjb.reference.steady_ladder import MAX_DOFS, Climbed, Kept, climb_beyond, nearest_values, rule_of
from fem_hjb.reference.tolerance import checked_rtol, judged
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution, SteadyFunction
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray, IntArray, positive_integer, require
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError
from fem_hjb.support.progress import OutOfTimeError, Progress, Watch, checked_progress, checked_seconds, until

Faces = Sequence[tuple[int, str]]

_ROUNDING = 0.3  # of the tolerance: it is one draw of rounding, and others may be larger


@final
@dataclass(frozen=True, eq=False)
class _Kept:
    """What a grid leaves to the next one."""

    function: SteadyFunction
    found: Settled

    @property
    def shapes(self) -> tuple[SteadyFunction, ...]:
        return (self.function,)

    @property
    def settled(self) -> bool:
        return self.found.noise == 1.0


@final
@dataclass(frozen=True, eq=False)
class _Whole:
    """What a linear equation leaves."""

    function: SteadyFunction
    settled: bool = True

    @property
    def shapes(self) -> tuple[SteadyFunction, ...]:
        return (self.function,)


def solve_exit(
    problem: ExitProblem,
    *,
    rtol: float = 1e-4,
    max_dofs: int | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> ExitSolution:
    """Value and policy of an exit problem on its box, to a tolerance; d <= 3.

    Parameters
    ----------
    rtol : relative error of value and policy in L2 of the box (`ExitSolution.error_estimate`), from 1e-10 to 0.1.
    max_dofs : unknowns that may be spent on one grid; 6000, 40 000, 30 000 in one, two, three dimensions.
    progress : called with the fraction of the work done, as far as that is known.
    max_seconds : when they are over, the best solution so far is returned, with its estimate and a status that says so.

    Returns
    -------
    An `ExitSolution`. Its error estimate is the larger distance of two solutions of lower degrees on the same grid,
    and where natural faces cut off, the distance of one on a longer box. Its checks: the equation itself at 4096
    points, with the problem's own callables; that the process leaves often enough for rounding not to decide; and that
    mean times until the exit of two degrees agree, which they do not where the layer at a face is not resolved.
    Where f spans more than e^20 the equation is solved for v itself.
    If the tolerance is not met, or a check fails, a `ToleranceWarning` says so, and so does the status.

    Raises
    ------
    InfiniteValueError : running rewards are positive, and the principal eigenvalue of G + r/alpha is not negative.
    DomainError : there is no box, a face of it is infinite, it has more than three dimensions, or Lambda is not
        diagonal across a reflecting face.
    ConvergenceError : rtol is out of range, no grid has a solution, or none was found within max_seconds.
    EllipticityError, ProblemError : a coefficient is not elliptic, or not finite, somewhere in the box.
    """
    require(problem, ExitProblem, "solve_exit", ProblemError)
    box, rtol, most, watch = _checked(problem, "solve_exit", rtol, max_dofs, progress, max_seconds)
    started = time.perf_counter()

    def attempt(basis: SpectralBasis, kept: _Kept | None) -> _Kept:
        watch(0.0)
        equation = ExitEquation(problem, basis, _fixed(box, basis), watch)
        start = None
        if kept is not None:
            start = Settled(nearest_values(kept.function, basis.nodes), kept.found.noise, kept.found.form, 0)
        found = equation.settle(start)
        return _Kept(SteadyFunction(basis, found.v), found)

    distance = partial(_distance, problem, policies=True)
    climbed = _climbed(problem, box, attempt, distance, rtol, most, watch, max_seconds, "solve_exit")
    kept = climbed.rung.kept
    solution = ExitSolution(
        problem=problem,
        function=kept.function,
        method=f"{kept.found.form} form on spectral elements",
        status="; ".join(climbed.unmet) or "ok",
        checks=(
            equation_check(problem, box, kept.function, rtol),
            temperature_check(kept.found.noise),
            *_exits(problem, box, kept.function, rtol, policies=True),
        ),
        stats=climbed.rung.figures | {"form": kept.found.form},
    )
    spent = {"seconds": time.perf_counter() - started}
    return judged(solution, climbed.estimate, rtol, f"solve_exit({problem.name!r})", spent)


def exit_expectation(
    problem: ExitProblem,
    h: Callable[[FloatArray], ArrayLike] | None = None,
    *,
    source: Callable[[FloatArray], ArrayLike] | None = None,
    rtol: float = 1e-4,
    max_dofs: int | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> ExitExpectation:
    """u(x) = E[ h(X_tau) + int_0^tau s(X_t) dt | X_0 = x ] of the uncontrolled process, of any sign; d <= 3.

    It solves <b, grad u> + 1/2 Tr(Lambda Hess u) + s = 0, u = h on absorbing faces. The rewards and the temperature of
    the problem play no role; drift, diffusion and domain do.

    Parameters
    ----------
    h : a callable x (..., d) -> (...), for points on absorbing faces; None: 0.
    source : s, likewise, inside; None: 0.
    rtol, max_dofs, progress, max_seconds : as in `solve_exit`. The errors are those of u and of its gradient; where h
        jumps from face to face, that of the gradient is infinite.

    Raises as `solve_exit`, but for the value, which is finite; ProblemError if h and s are both None.
    """
    require(problem, ExitProblem, "exit_expectation", ProblemError)
    for name, given in (("h", h), ("source", source)):
        if given is not None and not callable(given):
            raise ProblemError(f"{name} must be a callable x (..., d) -> (...) or None, got {type(given).__name__}")
    if h is None and source is None:
        raise ProblemError("exit_expectation needs h=, what is paid at the exit, or source=, what is paid on the way")

    def paid(_: Box, basis: SpectralBasis, fixed: IntArray) -> FloatArray:
        x = basis.nodes[fixed]
        return np.zeros(len(x)) if h is None else checked_call("h(x)", h, (x,), ())

    rest = _checked(problem, "exit_expectation", rtol, max_dofs, progress, max_seconds)
    return _expectation(problem, "exit_expectation", paid, source, *rest, max_seconds)


def committor(
    problem: ExitProblem,
    into: Faces,
    *,
    rtol: float = 1e-4,
    max_dofs: int | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> ExitExpectation:
    """The probability that the uncontrolled process leaves through some of its absorbing faces; d <= 3.

    into : those faces, pairs (axis, "lower" or "upper"). u = 1 on them and 0 on the other absorbing faces. Where such
        faces share an edge, u jumps there, and the error of its gradient is infinite.
    rtol, max_dofs, progress, max_seconds : as in `solve_exit`.

    Raises as `exit_expectation`; DomainError for faces that the box does not have, or that do not absorb.
    """
    require(problem, ExitProblem, "committor", ProblemError)
    rest = _checked(problem, "committor", rtol, max_dofs, progress, max_seconds)
    faces = _faces(problem, into)

    def paid(box: Box, basis: SpectralBasis, fixed: IntArray) -> FloatArray:
        return np.isin(fixed, _fixed(box, basis, faces)).astype(np.float64)

    return _expectation(problem, "committor", paid, None, *rest, max_seconds)


def mean_exit_time(
    problem: ExitProblem,
    *,
    rtol: float = 1e-4,
    max_dofs: int | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> ExitExpectation:
    """m(x) = E[ tau | X_0 = x ] of the uncontrolled process, G m = -1 in D and m = 0 on absorbing faces; d <= 3.

    rtol, max_dofs, progress, max_seconds : as in `solve_exit`.  Raises as `exit_expectation`.
    """
    require(problem, ExitProblem, "mean_exit_time", ProblemError)
    rest = _checked(problem, "mean_exit_time", rtol, max_dofs, progress, max_seconds)

    def paid(_: Box, basis: SpectralBasis, fixed: IntArray) -> FloatArray:
        return np.zeros(len(fixed))

    return _expectation(problem, "mean_exit_time", paid, lambda x: np.ones(x.shape[:-1]), *rest, max_seconds)


def _expectation(
    problem: ExitProblem,
    who: str,
    paid: Callable[[Box, SpectralBasis, IntArray], FloatArray],
    source: Callable[[FloatArray], ArrayLike] | None,
    box: Box,
    rtol: float,
    most: int,
    watch: Watch,
    max_seconds: float | None,
) -> ExitExpectation:
    started = time.perf_counter()

    def attempt(basis: SpectralBasis, _: Any) -> _Whole:
        watch(0.0)
        fixed = _fixed(box, basis)
        equation = ExitEquation(problem, basis, fixed, watch)
        s = None if source is None else equation.operators.at(partial(_called, source))
        return _Whole(SteadyFunction(basis, equation.expectation(paid(box, basis, fixed), s)))

    distance = partial(_distance, problem, policies=False)
    climbed = _climbed(problem, box, attempt, distance, rtol, most, watch, max_seconds, who)
    function = climbed.rung.kept.function
    found = ExitExpectation(
        problem=problem,
        function=function,
        method="linear equation on spectral elements",
        status="; ".join(climbed.unmet) or "ok",
        checks=(
            equation_check(problem, box, function, rtol, partial(_called, source or _none)),
            *_exits(problem, box, function, rtol, policies=False),
        ),
        stats=climbed.rung.figures | {"quantity": who.replace("_", " ")},
    )
    spent = {"seconds": time.perf_counter() - started}
    return judged(found, climbed.estimate, rtol, f"{who}({problem.name!r})", spent)


def _exits(
    problem: ExitProblem, box: Box, function: SteadyFunction, rtol: float, *, policies: bool
) -> tuple[Check, Check]:
    """Whether rounding, or a face that the grid of a solution does not resolve, decides where the process leaves."""
    basis: Any = function.basis
    lower = SpectralBasis([SpectralLine(line.grid, line.degree - 2) for line in basis.lines])
    x, weights = rule_of(basis, box)

    def leaving(on: SpectralBasis) -> tuple[float, FloatArray]:
        v = nearest_values(function, on.nodes) if policies else None
        lost, times = ExitEquation(problem, on, _fixed(box, on)).leaving(v)
        return lost, SteadyFunction(on, times).value(x)

    lost, times = leaving(basis)
    return rounding_check(lost, _ROUNDING * rtol), leaving_check(leaving(lower)[1], times, weights)


def _called(source: Callable[[FloatArray], ArrayLike], x: FloatArray) -> FloatArray:
    return checked_call("source(x)", source, (x,), ())


def _none(x: FloatArray) -> FloatArray:
    return np.zeros(x.shape[:-1])


def _checked(
    problem: ExitProblem, who: str, rtol: Any, max_dofs: Any, progress: Any, max_seconds: Any
) -> tuple[Box, float, int, Watch]:
    """The box, the tolerance, the unknowns and the watch, or an error."""
    rtol = checked_rtol(rtol)
    told, seconds = checked_progress(progress), checked_seconds(max_seconds)
    box = problem.domain
    if not isinstance(box, Box):
        raise DomainError(
            f"{who} needs a problem with domain=Box(...); on a mesh it is solve_exit_on_mesh, or"
            " exit_expectation_on_mesh"
        )
    if problem.dim > 3:
        raise DomainError(f"boxes go up to dimension 3, {problem.name!r} has dim={problem.dim}; simulate paths instead")
    if not box.bounded:
        raise DomainError(
            f"{who} needs finite faces, got {box}; put a natural face where the process hardly ever goes: what it does"
            " is measured on a longer box"
        )
    most = MAX_DOFS[problem.dim] if max_dofs is None else positive_integer(max_dofs, "max_dofs", SpaceError)
    check_normal_reflection(problem, box)
    return box, rtol, most, until(told, seconds)


def _faces(problem: ExitProblem, into: Any) -> list[tuple[int, str]]:
    """Some of the absorbing faces, as a user names them."""
    box = problem.domain
    known = faces_of(box) if isinstance(box, Box) else []
    try:
        faces = [(int(axis), str(side)) for axis, side in into]
    except (TypeError, ValueError, OverflowError) as cause:
        raise DomainError(
            f"into must be pairs (axis, 'lower' or 'upper') of absorbing faces, such as {known[:1]}, got {into!r}"
        ) from cause
    strange = [face for face in faces if face not in known]
    if strange or not faces:
        raise DomainError(f"into must name absorbing faces, of {known}, got {strange or faces}")
    return faces


def _fixed(box: Box, basis: SpectralBasis, faces: Faces | None = None) -> IntArray:
    """The nodes on these faces, or on all absorbing ones."""
    mask = np.zeros(basis.n_dofs, dtype=np.bool_)
    for axis, side in faces_of(box) if faces is None else faces:
        mask |= on_face(basis, axis, float(box.bounds[("lower", "upper").index(side)][axis]))
    return np.flatnonzero(mask).astype(np.int64)


def _distance(
    problem: ExitProblem, rule: tuple[FloatArray, FloatArray], first: Kept, second: Kept, *, policies: bool
) -> tuple[float, float]:
    return differences(problem, rule, first.function, second.function, policies=policies)


def _climbed(
    problem: ExitProblem,
    box: Box,
    attempt: Any,
    distance: Any,
    rtol: float,
    most: int,
    watch: Watch,
    max_seconds: float | None,
    who: str,
) -> Climbed:
    """The solution, or a ConvergenceError if time was over before there was one."""
    try:
        found = climb_beyond(box, attempt, distance, rtol, most, watch)
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"{who}({problem.name!r}): no solution within max_seconds={max_seconds:g}; give it more time, or a larger"
            " rtol"
        ) from None
    watch.finished()
    return found
