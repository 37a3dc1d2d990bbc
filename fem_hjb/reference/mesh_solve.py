"""`solve_on_mesh`: value and policy by finite elements on a mesh of the user's, or on a box cut into cells."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from typing import Any

from fem_hjb.paths.extent import checked_box, truncation_box
from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import mesh_kind
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_backward import solve_on_basis
from fem_hjb.reference.mesh_boundary import Boundary, check_boundary
from fem_hjb.reference.mesh_estimate import estimate_on_mesh
from fem_hjb.reference.mesh_truncation import ends_early, unended, with_truncation
from fem_hjb.reference.tolerance import checked_rtol, judged
from fem_hjb.solutions.estimate import ErrorEstimate, ToleranceWarning
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.basis import ELEMENTS, SpatialBasis, element_named
from fem_hjb.spaces.mesh_files import AnyMesh, as_mesh
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import spatial_basis
from fem_hjb.stepping.adaptive import rtol_in_range
from fem_hjb.support.checks import Rng, as_seed, positive_integer
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError
from fem_hjb.support.progress import (
    OutOfTimeError,
    Progress,
    Watch,
    checked_progress,
    checked_seconds,
    part_of,
    to_the_end,
    until,
)

DEFAULT_CELLS = {1: 128, 2: 64, 3: 16}
DEFAULT_RTOL_TIME = 1e-6
_SOLVED, _ESTIMATED = 0.3, 0.9  # shares of progress, if an error is estimated: up to where the solution and they take


def solve_on_mesh(
    problem: ControlProblem,
    mesh: AnyMesh | None = None,
    *,
    element: str | None = None,
    cells: int | tuple[int, ...] | None = None,
    box: Box | None = None,
    steps: int | None = None,
    rtol_time: float | None = None,
    boundary: Boundary = "natural",
    rtol: float | None = None,
    rng: Rng = 0,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> Solution:
    """Value and policy of a problem by finite elements on a given mesh, in one, two or three dimensions.

    Parameters
    ----------
    mesh : a scikit-fem mesh, or the path of a mesh file; of a problem whose domain is a `MeshDomain` the mesh of that,
        if none is given, or a refinement of it. Triangles and tetrahedra may be of second order, with curved edges.
        Otherwise a box is cut into cells:
    box : a `Box`; by default problem.domain, cut where it is infinite, or one that paths hardly ever leave.
    cells : per axis of the box, one number or one for each; default 128, 64, 16 in one, two, three dimensions.
    element : a name in `ELEMENTS`, "P2" if not given on lines, triangles and tetrahedra, "Q2" on other meshes. Not a
        B-spline: these are classes for `fit`.
    rtol_time : relative tolerance, per time step and in L2, of the adaptive method of order 4; 1e-6 if not given. On an
        automatic box the L2 norm carries a Gaussian weight of a quarter of its half-widths as standard deviations,
        about 1.5 times those of the process: what happens next to faces where nothing goes does not make steps small.
        Steps end where coefficients jump, and see what lasts for a twentieth of the horizon.
    steps : instead of it, this many equal steps; what happens between their stages is missed.
    boundary : "natural": <Lambda grad f, n> = 0, which is reflection where the domain is a truncation or the process
        is reflected; on absorbing faces v is the exit reward (continuous elements only). Or a callable (t, x) with
        scalar t and x (n, d) that gives v on the boundary, shape (n,); continuous elements only. Order 4 in time is
        kept as far as f is smooth up to the boundary. Where the values do not fit those of f_T at t = T, the steps
        become small near T.
    rtol : a relative tolerance of value and policy, from 1e-10 to 0.1: the error is estimated and compared with it.
        Mesh and time steps stay as they are; what meets a tolerance is `solve`, or `refine_on_mesh`.
    rng : seed of what is random: the samples that say how far the process goes, and that stand for its law, where that
        is not known, when errors are measured.
    progress : called with the fraction of the work done, which never falls and ends at 1, after every time step and
        once a second within one; not while a callable of yours or the factorisation of a matrix runs, nor, with rtol,
        while gradients are recovered at the vertices.
    max_seconds : when they are over, the work stops at the next stage of a time step. A solution whose error was to be
        estimated and is not yet is returned, with what is not known of its error as inf and a status that says so.

    Returns
    -------
    A `Solution` with method "mesh". Its status is "ok", or says at how many nodes of space and time f <= 0: Galerkin
    solutions can undershoot where f is far below its maximum, and this is never clipped. Its stats: element, cells,
    dofs (in space), steps, rejected, linear_solves, linear_solver, iterations, factorisations, range_in_temperatures
    (a bound on -log f), excluded_mass (outside an automatic box, else None), min_f, and seconds, a mapping with mesh,
    assembly, solve, total; with rtol estimate, too.
    With rtol it has an `error_estimate`: of space and time by `mesh_estimate`, of truncation by a spectral solution of
    the process that no face of the mesh ends (`mesh_truncation`). If rtol is not met, a `ToleranceWarning` says which
    part of the error is to blame, and so does the status.

    Raises
    ------
    DomainError, SpaceError : mesh, box, cells, element or boundary do not fit the problem or each other.
    ConvergenceError : rtol, steps or rtol_time make no sense, both of the latter are given, the time stepping fails, or
        there is no solution within max_seconds.
    PositivityError : rewards differ by more than 700 temperatures, so that f underflows.
    InfiniteValueError : with rtol, the problem is linear-quadratic and its value infinite.
    """
    started = time.perf_counter()
    if not isinstance(problem, ControlProblem):
        raise ProblemError(f"solve_on_mesh needs a ControlProblem, got {type(problem).__name__}")
    told, seconds = checked_progress(progress), checked_seconds(max_seconds)
    control, seed = _time_control(steps, rtol_time), as_seed(rng)
    tolerance = None if rtol is None else checked_rtol(rtol)
    watch = until(told, seconds)
    basis, excluded = _basis(problem, mesh, element, cells, box, seed)
    check_boundary(problem, basis, boundary)
    meshing = time.perf_counter() - started
    first = watch if tolerance is None else part_of(watch, 0.0, _SOLVED)
    try:
        solution = solve_on_basis(problem, basis, control, boundary, excluded=excluded, meshing=meshing, progress=first)
    except OutOfTimeError:
        if seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"solve_on_mesh({problem.name!r}): no solution within max_seconds={seconds:g}; give it more time, take"
            " fewer cells, an element of a lower degree, fewer steps or a larger rtol_time, or `solve` it on boxes"
        ) from None
    if tolerance is None:
        watch.finished()
        return solution
    solved = time.perf_counter()
    estimate, all_of_it = _estimated(solution, boundary, tolerance, watch, seed)
    watch.finished()
    finished = time.perf_counter()
    spent = {**solution.stats["seconds"], "estimate": finished - solved, "total": finished - started}
    who, stats = f"solve_on_mesh({problem.name!r})", {"seconds": spent}
    if all_of_it:
        return judged(solution, estimate, tolerance, who, stats)
    status = f"max_seconds={seconds:g} were over before all of the error was estimated"
    warnings.warn(f"{who}: {status}", ToleranceWarning, stacklevel=2)
    status = status if solution.status == "ok" else f"{solution.status}; {status}"
    return replace(solution, status=status, error_estimate=estimate, stats={**solution.stats, **stats})


def _estimated(
    solution: Solution, boundary: Boundary, rtol: float, watch: Watch, seed: int
) -> tuple[ErrorEstimate, bool]:
    """The error of space, time and truncation, inf where time was over before it was known; whether all of it is."""
    problem, space, in_time = solution.problem, math.inf, math.inf
    try:
        told = part_of(watch, _SOLVED, _ESTIMATED)
        estimate = estimate_on_mesh(solution, boundary=boundary, progress=told, seed=seed)
        space, in_time = estimate.space, estimate.time
        far = unended(problem, rtol, part_of(watch, _ESTIMATED, 1.0), seed) if ends_early(problem) else None
    except OutOfTimeError:
        truncation = math.inf if ends_early(problem) else 0.0
        unknown = ErrorEstimate(value=math.inf, policy=math.inf, space=space, time=in_time, truncation=truncation)
        return unknown, False
    return with_truncation(estimate, solution, far, rtol, seed, to_the_end(watch)), True


def _time_control(steps: int | None, rtol_time: float | None) -> dict[str, Any]:
    if steps is not None and rtol_time is not None:
        raise ConvergenceError(
            f"give steps or rtol_time, not both, got steps={steps!r} and rtol_time={rtol_time!r}: equal steps, or as"
            " many as the tolerance needs"
        )
    if steps is not None:
        return {"steps": positive_integer(steps, "steps", ConvergenceError)}
    return {"rtol": rtol_in_range(DEFAULT_RTOL_TIME if rtol_time is None else rtol_time, "rtol_time")}


def _basis(
    problem: ControlProblem,
    mesh: AnyMesh | None,
    element: str | None,
    cells: int | tuple[int, ...] | None,
    box: Box | None,
    seed: int,
) -> tuple[SpatialBasis, float | None]:
    """The basis, and the mass left out if the box was chosen here."""
    if problem.dim > 3:
        raise DomainError(
            f"meshes go up to dimension 3, the problem has dim={problem.dim}; learn its value from paths instead"
        )
    if isinstance(problem.domain, MeshDomain):
        mesh = problem.domain.mesh if mesh is None else mesh
    if mesh is not None:
        given = [name for name, value in (("cells", cells), ("box", box)) if value is not None]
        if given:
            own = " (that of the domain)" if isinstance(problem.domain, MeshDomain) else ""
            raise DomainError(f"give mesh, or cells and box, not both: got mesh{own} and {' and '.join(given)}")
        if element is not None:
            element_named(element)
        loaded = as_mesh(mesh, problem)
        usual = "P2" if mesh_kind(loaded, curved=True) in ELEMENTS["P2"].kinds else "Q2"
        return spatial_basis(loaded, usual if element is None else element), None
    row = element_named("P2" if element is None else element)
    kind, counts = row.kind_in(problem.dim), DEFAULT_CELLS[problem.dim] if cells is None else cells
    if box is not None:
        return spatial_basis(as_mesh(box_mesh(checked_box(problem, box), counts, kind), problem), row.name), None
    truncation = truncation_box(problem, rng=seed)
    excluded = truncation.excluded_mass if truncation.samples else None
    return spatial_basis(box_mesh(truncation.box, counts, kind), row.name), excluded
