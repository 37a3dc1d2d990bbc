r"""The mesh reference: a control problem, solved on a mesh by finite elements in space and an adaptive method in time.

f = exp(v / alpha), gauged, solves a linear equation backward in time from f_T = exp((y - c_y)/alpha). Its weak form on
a basis (see `mesh_operators`) is a linear system of ordinary differential equations in s = T - t,

    M df/ds = K(T - s) f,      f(s=0) = f_T,

which `integrators.esdirk` solves. Every accepted step is kept as a cubic in time, so the `Solution` is dense in time.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.paths.extent import truncation_box
from fem_hjb.problems.gauge import UNDERFLOW, Gauge, gauge, range_in_temperatures
from fem_hjb.problems.laws import BoolArray, Box
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_operators import MeshOperators
from fem_hjb.solutions.compare import difference
from fem_hjb.solutions.estimate import ErrorEstimate, combine
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.basis import ELEMENTS, element_named
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.mesh_files import as_mesh
from fem_hjb.spaces.meshes import box_mesh, mesh_kind
from fem_hjb.spaces.space import HermiteBasis, LineBasis, Space, SpatialBasis, SplineBasis, spatial_basis
from fem_hjb.stepping.esdirk import ORDER, LinearSystem, Solve, Step, esdirk, rtol_in_range
from fem_hjb.support.checks import FloatArray, IntArray, positive_integer
from fem_hjb.support.errors import ConvergenceError, DomainError, PositivityError, ProblemError, SpaceError

DEFAULT_CELLS = {1: 128, 2: 64, 3: 16}
DEFAULT_RTOL = 1e-6
MAX_DOFS = 300_000
_SMALLEST_RTOL = 1e-13
_GAUGE_TIMES = 33  # instants at which sup r is looked for

BoundaryValue = Callable[[float, FloatArray], ArrayLike]


def solve_on_mesh(
    problem: ControlProblem,
    *,
    mesh: Any = None,
    element: str | None = None,
    cells: int | tuple[int, ...] | None = None,
    box: Box | None = None,
    steps: int | None = None,
    rtol_time: float | None = None,
    boundary: Literal["natural"] | BoundaryValue = "natural",
    progress: Callable[[float], None] | None = None,
) -> Solution:
    """Value and policy of a problem by finite elements, in one, two or three dimensions.

    Parameters
    ----------
    mesh : a scikit-fem mesh, or the path of a mesh file. Otherwise a box is cut into cells:
    box : a `Box`; by default problem.domain, cut where it is infinite, or one that paths hardly ever leave.
    cells : per axis of the box, one number or one for each; default 128, 64, 16 in one, two, three dimensions.
    element : a name in `ELEMENTS`, "P2" if not given on lines, triangles and tetrahedra, "Q2" on other meshes. Not a
        B-spline: these are classes for `fit`.
    rtol_time : relative tolerance, per time step and in L2, of the adaptive method of order 4; 1e-6 if not given. On an
        automatic box the L2 norm carries a Gaussian weight of a quarter of its half-widths as standard deviations,
        about 1.5 times those of the process: what happens next to faces where nothing goes does not make steps small.
    steps : instead of it, this many equal steps.
    boundary : "natural": <Lambda grad f, n> = 0, which is reflection where the domain is a truncation or the process
        is reflected; on absorbing faces v is the exit reward (continuous elements only). Or a callable (t, x) with
        scalar t and x (n, d) that gives v on the boundary, shape (n,); continuous elements only. Order 4 in time is
        kept as far as f is smooth up to the boundary. Where the values do not fit those of f_T at t = T, the steps
        become small near T.
    progress : called after every time step with the fraction of [0, T] done.

    Returns
    -------
    A `Solution` with method "mesh". Its status is "ok", or says at how many nodes of space and time f <= 0: Galerkin
    solutions can undershoot where f is far below its maximum, and this is never clipped. Its stats: element, cells,
    dofs (in space), steps, rejected, linear_solves, linear_solver, iterations, factorisations, range_in_temperatures
    (a bound on -log f), excluded_mass (outside an automatic box, else None), min_f, and seconds, a mapping with mesh,
    assembly, solve, total.

    Raises
    ------
    DomainError, SpaceError : mesh, box, cells, element or boundary do not fit the problem or each other.
    ConvergenceError : steps or rtol_time make no sense, both are given, or the time stepping fails.
    PositivityError : rewards differ by more than 700 temperatures, so that f underflows.
    """
    started = time.perf_counter()
    if not isinstance(problem, ControlProblem):
        raise ProblemError(f"solve_on_mesh needs a ControlProblem, got {type(problem).__name__}")
    control = _time_control(steps, rtol_time)
    if progress is not None and not callable(progress):
        raise ConvergenceError(f"progress must be a callable or None, got {progress!r}")
    basis, excluded = _basis(problem, mesh, element, cells, box)
    _check_boundary(problem, basis, boundary)
    return _solve(problem, basis, excluded, control, boundary, progress, started)


def estimate_on_mesh(
    solution: Solution,
    *,
    boundary: Literal["natural"] | BoundaryValue = "natural",
    max_dofs: int = MAX_DOFS,
) -> ErrorEstimate:
    """How far a solution of `solve_on_mesh` is from the exact one, from two further solutions that are better.

    space : the difference to a solution with the next richer element on the same mesh (P1, P2, P3, P4; Q1, Q2). Where
        there is none, or it has more than `max_dofs` unknowns, the mesh is refined once, also for cubics of class C1,
        and the difference divided by 1 - 2^-q, q the order of the error. Where that has too many unknowns as well, the
        error of the next poorer element is taken instead, for P2 and Q2 times 4 h with h = cells^(-1/d): within a
        factor of 30 of the error where it was measured, mostly above. For cubics of class C1 it is the difference to
        those on every other grid point, divided by 2^q - 1.
    time : the difference to a solution with rtol_time / 16, or twice the steps, divided by 1 - 2^-4.
    truncation : 0; what the faces of the mesh do cannot be seen on it, see `mesh_truncation`.

    boundary : what `solve_on_mesh` was given.

    Raises
    ------
    DomainError : the solution is not one of `solve_on_mesh`, or was made with another kind of boundary.
    SpaceError : nothing to compare with has at most max_dofs unknowns.
    """
    basis, stats = solution.space.spatial, solution.stats
    if solution.method != "mesh" or "rtol_time" not in stats:
        raise DomainError(f"estimate_on_mesh needs a solution of solve_on_mesh, got one by method {solution.method!r}")
    if _kind_of(boundary) != stats["boundary"]:
        raise DomainError(
            f"the solution was made with a boundary that is {stats['boundary']}, got one that is {_kind_of(boundary)};"
            " give the boundary= that solve_on_mesh was given"
        )
    richer, factors = _comparable(basis, positive_integer(max_dofs, "max_dofs", SpaceError))
    rtol, steps = stats["rtol_time"], stats["steps"]
    same: dict[str, Any] = {"steps": steps} if rtol is None else {"rtol": rtol}
    finer: dict[str, Any] = {"steps": 2 * steps} if rtol is None else {"rtol": max(rtol / 16, _SMALLEST_RTOL)}
    in_space = difference(solution, _again(solution, richer, same, boundary))
    later = _again(solution, basis, finer, boundary)
    if later.stats["steps"] <= steps:  # a tolerance so loose that other limits set the steps
        later = _again(solution, basis, {"steps": 2 * steps}, boundary)
    in_time = difference(solution, later, undefined=False)  # space has counted these points
    shares = [
        {"space": a * factor, "time": b / (1 - 2.0**-ORDER)}
        for a, b, factor in zip(in_space, in_time, factors, strict=True)
    ]
    return combine(*shares)


def part_of(progress: Callable[[float], None] | None, low: float, high: float) -> Callable[[float], None] | None:
    """What part of a longer work reports its own progress to: [0, 1] is mapped to [low, high] of the whole."""
    return None if progress is None else lambda fraction: progress(low + (high - low) * fraction)


def _again(
    solution: Solution, basis: SpatialBasis, control: dict[str, Any], boundary: Literal["natural"] | BoundaryValue
) -> Solution:
    """The same problem on this basis and with this control of time."""
    excluded = solution.space.excluded_mass
    return _solve(solution.problem, basis, excluded, control, boundary, None, time.perf_counter())


def _comparable(basis: SpatialBasis, max_dofs: int) -> tuple[SpatialBasis, tuple[float, float]]:
    """A basis to compare with, and by what a difference in value and policy is multiplied to estimate the error."""
    orders = np.array(_orders(basis))
    refined, coarsened = 1 / (1 - 2.0**-orders), 1 / (2.0**orders - 1)
    if isinstance(basis, HermiteBasis):
        grids = [axis.points for axis in basis.axes]
        if 2**basis.dim * basis.n_dofs <= max_dofs:
            halved = [np.sort(np.concatenate([grid, (grid[1:] + grid[:-1]) / 2])) for grid in grids]
            return HermiteBasis(halved), _pair(refined)
        if min(grid.size for grid in grids) > 3:
            return HermiteBasis([np.append(grid[:-1:2], grid[-1]) for grid in grids]), _pair(coarsened)
    if isinstance(basis, MeshBasis):
        others = {e.degree: e.name for e in ELEMENTS.values() if basis.kind in e.kinds and not e.smoothness}
        p = basis.degree
        # unknowns grow at most like this from one degree to the next
        growth = ((p + 1) / p) ** basis.dim
        if p + 1 in others and (growth * basis.n_dofs <= max_dofs):
            return MeshBasis(basis.mesh, others[p + 1]), (1.0, 1.0)
        if 2**basis.dim * basis.n_dofs <= max_dofs:
            return MeshBasis(basis.mesh.refined(1), basis.element), _pair(refined)
        if p - 1 in others:
            share = min(1.0, 4 * basis.n_cells ** (-1 / basis.dim)) if p == 2 else 1.0
            return MeshBasis(basis.mesh, others[p - 1]), (share, share)
    raise SpaceError(
        f"an estimate needs a richer or finer class than the {basis.n_dofs} unknowns of {basis.element!r}, which has"
        f" more than max_dofs={max_dofs}; raise max_dofs"
    )


def _orders(basis: SpatialBasis) -> tuple[int, int]:
    """Orders in h of value and policy; the recovered gradients of continuous elements are of the order of the value."""
    row = ELEMENTS[basis.element]
    return row.value_order, row.gradient_order if basis.smoothness else row.value_order


def _pair(numbers: FloatArray) -> tuple[float, float]:
    return float(numbers[0]), float(numbers[1])


def _kind_of(boundary: Any) -> str:
    return "prescribed" if callable(boundary) else "natural"


def _solve(
    problem: ControlProblem,
    basis: SpatialBasis,
    excluded: float | None,
    control: dict[str, Any],
    boundary: Literal["natural"] | BoundaryValue,
    progress: Callable[[float], None] | None,
    started: float,
) -> Solution:
    """The solution on a basis; `started`: when the making of the mesh began."""
    meshed = time.perf_counter()

    instants = np.linspace(0.0, problem.horizon, _GAUGE_TIMES)
    depth = range_in_temperatures(problem, basis.nodes, instants)
    if depth > UNDERFLOW:
        raise PositivityError(
            f"the rewards of {problem.name!r} differ by up to {depth:.0f} temperatures on the mesh, so that"
            f" f = exp(v / alpha) underflows (the limit is about {UNDERFLOW:.0f}); raise the temperature above"
            f" {problem.temperature * depth / UNDERFLOW:.3g}, or take a smaller box"
        )
    gauged = gauge(problem, basis.nodes, instants)
    fixed, given = _prescribed(problem, basis, boundary)
    if given == problem.exit_reward:
        gauged = _raised(gauged, problem, basis.nodes[fixed], instants)
    system = _Backward(problem, basis, gauged, fixed, given)
    if excluded is not None and problem.domain is None:
        system.weigh(basis.box)
    f_T = _terminal(problem, basis, gauged)
    assembled = time.perf_counter()

    grid, coefficients, counts = _integrate(system, f_T, problem.horizon, control, progress)
    finished = time.perf_counter()
    line = LineBasis(grid, "P3")
    operators = system.operators
    assembly = assembled - meshed + system.seconds
    return Solution(
        problem=problem,
        space=Space.product(line, basis, excluded_mass=excluded),
        coefficients=coefficients,
        gauge=gauged,
        method="mesh",
        status=_status(coefficients, line.nodes, basis),
        stats={
            "element": basis.element,
            "cells": basis.n_cells,
            "dofs": basis.n_dofs,
            **counts,
            "rtol_time": control.get("rtol"),
            "boundary": _kind_of(boundary),
            "linear_solver": operators.linear_solver,
            "iterations": operators.iterations,
            "factorisations": operators.factorisations,
            "range_in_temperatures": depth,
            "excluded_mass": excluded,
            "seconds": {
                "mesh": meshed - started,
                "assembly": assembly,
                "solve": finished - meshed - assembly,
                "total": finished - started,
            },
        },
    )


@final
class _Backward(LinearSystem):
    """M df/ds = K(T - s) f with prescribed boundary values, if any."""

    def __init__(
        self,
        problem: ControlProblem,
        basis: SpatialBasis,
        gauged: Gauge,
        fixed: IntArray,
        boundary: BoundaryValue | None,
    ) -> None:
        self.operators = MeshOperators(problem, basis, gauged)
        self.mass = self._metric = self.operators.M
        self.factors = self.operators.direct
        self.seconds = 0.0
        self._horizon, self._gauge, self._boundary = problem.horizon, gauged, boundary
        if boundary is not None:
            self.fixed: IntArray = fixed
            self._x = basis.nodes[self.fixed]
            self.fixed_values(0.0)
            self.fixed_values(problem.horizon)

    def weigh(self, box: Box) -> None:
        """Measure errors with a Gaussian weight instead of in plain L2; see `solve_on_mesh`."""
        lower, upper = box.bounds
        centre, deviation = (lower + upper) / 2, (upper - lower) / 8
        self._metric = self.operators.weighted_mass(lambda x: np.exp(-0.5 * (((x - centre) / deviation) ** 2).sum(-1)))

    def norm(self, f: FloatArray) -> float:
        return float(np.sqrt(max(f @ (self._metric @ f), 0.0)))

    def _time(self, s: float) -> float:
        return float(min(max(self._horizon - s, 0.0), self._horizon))

    def stiffness(self, s: float) -> Any:
        start = time.perf_counter()
        K = self.operators.K(self._time(s))
        self.seconds += time.perf_counter() - start
        return K

    def solver(self, stiffness: Any, shift: float) -> Solve:
        return self.operators.solver(stiffness, shift, self.fixed)

    def fixed_values(self, s: float) -> FloatArray:
        if self._boundary is None:
            return np.zeros(0)
        t = self._time(s)
        v = np.asarray(self._boundary(t, self._x), dtype=np.float64)
        if v.shape != self._x.shape[:1]:
            raise DomainError(
                f"boundary(t, x) returned shape {v.shape} for x of shape {self._x.shape},"
                f" expected the values of v, shape {self._x.shape[:1]}"
            )
        with np.errstate(over="ignore"):
            f = self._gauge.f_from_value(t, v)
        if not np.isfinite(f).all():
            bad = int(np.argmax(~np.isfinite(f)))
            raise DomainError(
                f"boundary(t, x) is v={v[bad]:.3g} at t={t:.6g}, x={self._x[bad].tolist()}, which is not finite or so"
                " far above the rewards that exp(v / alpha) overflows; give the values of v itself, not of f"
            )
        return f


def _time_control(steps: int | None, rtol_time: float | None) -> dict[str, Any]:
    if steps is not None and rtol_time is not None:
        raise ConvergenceError(
            f"give steps or rtol_time, not both, got steps={steps!r} and rtol_time={rtol_time!r}: equal steps, or as"
            " many as the tolerance needs"
        )
    if steps is not None:
        return {"steps": positive_integer(steps, "steps", ConvergenceError)}
    return {"rtol": rtol_in_range(DEFAULT_RTOL if rtol_time is None else rtol_time, "rtol_time")}


def _basis(
    problem: ControlProblem, mesh: Any, element: str | None, cells: int | tuple[int, ...] | None, box: Box | None
) -> tuple[SpatialBasis, float | None]:
    """The basis, and the mass left out if the box was chosen here."""
    if problem.dim > 3:
        raise DomainError(
            f"meshes go up to dimension 3, the problem has dim={problem.dim}; learn its value from paths instead"
        )
    if mesh is not None:
        given = [name for name, value in (("cells", cells), ("box", box)) if value is not None]
        if given:
            raise DomainError(f"give mesh, or cells and box, not both: got mesh and {' and '.join(given)}")
        if element is not None:
            element_named(element)
        loaded = as_mesh(mesh, problem)
        usual = "P2" if mesh_kind(loaded) in ELEMENTS["P2"].kinds else "Q2"
        return spatial_basis(loaded, usual if element is None else element), None
    row = element_named("P2" if element is None else element)
    kind, counts = row.kind_in(problem.dim), DEFAULT_CELLS[problem.dim] if cells is None else cells
    if box is not None:
        if not isinstance(box, Box) or box.dim != problem.dim:
            got = f"one of dimension {box.dim}" if isinstance(box, Box) else type(box).__name__
            raise DomainError(f"box must be a Box of dimension {problem.dim}, got {got}")
        return spatial_basis(as_mesh(box_mesh(box, counts, kind), problem), row.name), None
    truncation = truncation_box(problem)
    excluded = truncation.excluded_mass if truncation.samples else None
    return spatial_basis(box_mesh(truncation.box, counts, kind), row.name), excluded


def _check_boundary(problem: ControlProblem, basis: SpatialBasis, boundary: Any) -> None:
    if isinstance(basis, SplineBasis):
        raise SpaceError(
            f"B-splines are classes for `fit`, and meshes are solved on without them, got element={basis.element!r};"
            " use element='hermite', or a continuous one such as 'P2' or 'Q2'"
        )
    if not callable(boundary) and boundary != "natural":
        raise DomainError(f"boundary must be 'natural' or a callable (t, x) -> v on the boundary, got {boundary!r}")
    if callable(boundary) and basis.smoothness:
        raise SpaceError(
            f"element {basis.element!r} takes no prescribed boundary values, as its coefficients on the boundary are"
            " slopes too; use boundary='natural', or a continuous element such as 'P2' or 'Q2'"
        )
    domain = problem.domain
    if domain is not None and callable(boundary) and not domain.where("natural").all():
        raise DomainError(
            "the process is reflected or stopped at faces of problem.domain, which says what holds there;"
            " use boundary='natural'"
        )
    if domain is not None and domain.absorbing and basis.smoothness:
        raise SpaceError(
            f"element {basis.element!r} takes no values on absorbing faces, as its coefficients there are slopes too;"
            " use a continuous element such as 'P2' or 'Q2'"
        )
    _check_reflection(problem, basis)


def _on_face(basis: SpatialBasis, domain: Box, side: int, axis: int) -> BoolArray:
    """Which nodes lie on the lower (side 0) or upper (side 1) face of the domain across an axis."""
    lower, upper = basis.box.bounds
    gap = np.abs(basis.nodes[:, axis] - domain.bounds[side][axis])
    return np.asarray(gap < 1e-9 * (upper[axis] - lower[axis]))


def _check_reflection(problem: ControlProblem, basis: SpatialBasis) -> None:
    """The natural condition <Lambda grad f, n> = 0 is reflection along n only where Lambda n is parallel to n."""
    domain = problem.domain
    if domain is None or problem.dim == 1:
        return
    for side, axis in np.argwhere(domain.where("reflecting")).tolist():
        on_face = _on_face(basis, domain, side, axis)
        for t in (0.0, 0.5 * problem.horizon, problem.horizon):
            rows = problem.Lambda(t, basis.nodes[on_face])[:, axis]
            if np.abs(np.delete(rows, axis, axis=1)).max() > 1e-10 * np.abs(rows).max():
                raise DomainError(
                    f"reflection along the normal needs a diffusion without off-diagonal entries in row {axis} on the"
                    f" faces across axis {axis}: with others the weak form reflects along Lambda n instead; rotate the"
                    " coordinates, or use a domain far from where the process goes, which does not reflect"
                )


def _prescribed(
    problem: ControlProblem, basis: SpatialBasis, boundary: Literal["natural"] | BoundaryValue
) -> tuple[IntArray, BoundaryValue | None]:
    """The dofs where v is given, and what gives it: the caller, or the exit reward on absorbing faces."""
    if callable(boundary):
        return basis.boundary_dofs(), boundary
    domain = problem.domain
    if domain is None or not domain.absorbing:
        return np.empty(0, dtype=np.int64), None
    faces = [_on_face(basis, domain, side, axis) for side, axis in np.argwhere(domain.where("absorbing")).tolist()]
    return np.flatnonzero(np.logical_or.reduce(faces)), problem.exit_reward


def _raised(gauged: Gauge, problem: ControlProblem, faces: FloatArray, instants: FloatArray) -> Gauge:
    """The gauge with c_y so large that f <= 1 on absorbing faces too; PositivityError if f underflows on them."""
    over = np.array([problem.exit_reward(t, faces) - gauged.offset(t) for t in instants.tolist()])
    depth = (max(float(over.max()), 0.0) - float(over.min())) / problem.temperature
    if depth > UNDERFLOW:
        raise PositivityError(
            f"the exit reward of {problem.name!r} differs from the other rewards by {depth:.0f} temperatures, so that"
            f" f = exp(v / alpha) underflows (the limit is about {UNDERFLOW:.0f}); raise the temperature above"
            f" {problem.temperature * depth / UNDERFLOW:.3g}"
        )
    return replace(gauged, terminal=gauged.terminal + max(float(over.max()), 0.0))


def _terminal(problem: ControlProblem, basis: SpatialBasis, gauged: Gauge) -> FloatArray:
    """Coefficients of f_T: interpolated on continuous elements, projected in L2 on C1 ones."""
    if basis.smoothness:
        return basis.project(lambda x: gauged.terminal_f(problem, x))
    return basis.interpolate(gauged.terminal_f(problem, basis.nodes))


def _integrate(
    system: LinearSystem,
    f_T: FloatArray,
    horizon: float,
    control: dict[str, Any],
    progress: Callable[[float], None] | None,
) -> tuple[FloatArray, FloatArray, dict[str, int]]:
    """The grid in t (m+1,), coefficients (3 m + 1, n) at the nodes of cubics on it, and counts of work."""
    rows: list[FloatArray] = []
    ends = [0.0]
    rejected = solves = 0
    step: Step
    for step in esdirk(system, f_T, 0.0, horizon, **control):
        rows.extend(_inside(step) if rows else [step.f0, *_inside(step)])
        ends.append(step.t + step.h)
        rejected, solves = rejected + step.rejected, solves + step.solves
        if progress is not None:
            progress(min(1.0, ends[-1] / horizon))
    grid = horizon - np.array(ends[::-1])
    grid[0], grid[-1] = 0.0, horizon
    count = len(rows)
    coefficients = np.empty((count, f_T.size))
    for k in range(count):  # from the last row on, letting go of each, so that there is never a second copy of them all
        coefficients[k] = rows.pop()
    coefficients.setflags(write=False)
    return grid, coefficients, {"steps": len(ends) - 1, "rejected": rejected, "linear_solves": solves}


def _inside(step: Step) -> list[FloatArray]:
    return [step.dense(1 / 3), step.dense(2 / 3), step.f1]


def _status(coefficients: FloatArray, times: FloatArray, basis: SpatialBasis) -> str:
    """ "ok", or at how many nodes of space and time f is not positive, and where it is lowest."""
    lowest = np.empty(len(times))
    where = np.empty(len(times), dtype=np.int64)
    bad = 0
    for k, row in enumerate(coefficients):  # one row at a time, as all of them may be most of the memory
        f = basis.at_nodes(row)
        where[k] = f.argmin()
        lowest[k] = f[where[k]]
        bad += int((f <= 0).sum())
    if not bad:
        return "ok"
    k = int(lowest.argmin())
    return (
        f"f is not positive at {bad} of {len(times) * len(basis.nodes)} nodes, lowest {lowest[k]:.3g}"
        f" at t={times[k]:.4g}, x={basis.nodes[where[k]].tolist()}"
    )
