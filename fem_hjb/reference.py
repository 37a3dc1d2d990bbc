r"""The mesh reference: a control problem, solved on a mesh by finite elements in space and an adaptive method in time.

f = exp(v / alpha), gauged, solves a linear equation backward in time from f_T = exp((y - c_y)/alpha). Its weak form on
a basis (see `mesh_operators`) is a linear system of ordinary differential equations in s = T - t,

    M df/ds = K(T - s) f,      f(s=0) = f_T,

which `integrators.esdirk` solves. Every accepted step is kept as a cubic in time, so the `Solution` is dense in time.
"""

import time
from collections.abc import Callable
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb._checks import (
    ConvergenceError,
    DomainError,
    FloatArray,
    IntArray,
    PositivityError,
    ProblemError,
    SpaceError,
    positive_integer,
)
from fem_hjb.cole_hopf import UNDERFLOW, Gauge, gauge, range_in_temperatures
from fem_hjb.domain import as_mesh, box_mesh, mesh_kind, truncation_box
from fem_hjb.elements import ELEMENTS, element_named
from fem_hjb.integrators import LinearSystem, Solve, Step, esdirk, rtol_in_range
from fem_hjb.laws import Box
from fem_hjb.mesh_operators import MeshOperators
from fem_hjb.problem import ControlProblem
from fem_hjb.solution import Solution
from fem_hjb.spaces import LineBasis, Space, SpatialBasis, spatial_basis

DEFAULT_CELLS = {1: 128, 2: 64, 3: 16}
DEFAULT_RTOL = 1e-6
_GAUGE_TIMES = 33  # instants at which sup r is looked for

BoundaryValue = Callable[[float, FloatArray], ArrayLike]


def solve(
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
    box : a `Box`; by default problem.domain if the process is reflected, else one that paths hardly ever leave.
    cells : per axis of the box, one number or one for each; default 128, 64, 16 in one, two, three dimensions.
    element : a name in `ELEMENTS`, "P2" if not given on lines, triangles and tetrahedra, "Q2" on other meshes.
    rtol_time : relative tolerance, per time step and in L2, of the adaptive method of order 4; 1e-6 if not given. On an
        automatic box the L2 norm carries a Gaussian weight of a quarter of its half-widths as standard deviations,
        about 1.5 times those of the process: what happens next to faces where nothing goes does not make steps small.
    steps : instead of it, this many equal steps.
    boundary : "natural": <Lambda grad f, n> = 0, which is reflection where the domain is a truncation or the process
        is reflected. Or a callable (t, x) with scalar t and x (n, d) that gives v on the boundary, shape (n,);
        continuous elements only. Order 4 in time is kept as far as f is smooth up to the boundary. Where the values do
        not fit those of f_T at t = T, the steps become small near T.
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
        raise ProblemError(f"solve needs a ControlProblem, got {type(problem).__name__}")
    control = _time_control(steps, rtol_time)
    if progress is not None and not callable(progress):
        raise ConvergenceError(f"progress must be a callable or None, got {progress!r}")
    basis, excluded = _basis(problem, mesh, element, cells, box)
    _check_boundary(problem, basis, boundary)
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
    system = _Backward(problem, basis, gauged, boundary)
    if excluded is not None:
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
        self, problem: ControlProblem, basis: SpatialBasis, gauged: Gauge, boundary: Literal["natural"] | BoundaryValue
    ) -> None:
        self.operators = MeshOperators(problem, basis, gauged)
        self.mass = self._metric = self.operators.M
        self.factors = self.operators.direct
        self.seconds = 0.0
        self._horizon, self._gauge, self._boundary = problem.horizon, gauged, boundary
        if callable(boundary):
            self.fixed: IntArray = basis.boundary_dofs()
            self._x = basis.nodes[self.fixed]
            self.fixed_values(0.0)
            self.fixed_values(problem.horizon)

    def weigh(self, box: Box) -> None:
        """Measure errors with a Gaussian weight instead of in plain L2; see `solve`."""
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
        if not callable(self._boundary):
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
    excluded = truncation.excluded_mass if problem.domain is None else None
    return spatial_basis(box_mesh(truncation.box, counts, kind), row.name), excluded


def _check_boundary(problem: ControlProblem, basis: SpatialBasis, boundary: Any) -> None:
    if not callable(boundary) and boundary != "natural":
        raise DomainError(f"boundary must be 'natural' or a callable (t, x) -> v on the boundary, got {boundary!r}")
    if callable(boundary) and basis.smoothness:
        raise SpaceError(
            f"element {basis.element!r} takes no prescribed boundary values, as its coefficients on the boundary are"
            " slopes too; use boundary='natural', or a continuous element such as 'P2' or 'Q2'"
        )
    if problem.domain is not None and callable(boundary):
        raise DomainError("the process is reflected at the faces of problem.domain; use boundary='natural'")
    _check_reflection(problem, basis.nodes)


def _check_reflection(problem: ControlProblem, nodes: FloatArray) -> None:
    """The natural condition <Lambda grad f, n> = 0 is reflection along n only where Lambda n is parallel to n."""
    if problem.domain is None or problem.dim == 1:
        return
    lower, upper = problem.domain.bounds
    for axis in range(problem.dim):
        reach = 1e-9 * (upper[axis] - lower[axis])
        on_face = (nodes[:, axis] - lower[axis] < reach) | (upper[axis] - nodes[:, axis] < reach)
        for t in (0.0, 0.5 * problem.horizon, problem.horizon):
            rows = problem.Lambda(t, nodes[on_face])[:, axis]
            if np.abs(np.delete(rows, axis, axis=1)).max() > 1e-10 * np.abs(rows).max():
                raise DomainError(
                    f"reflection along the normal needs a diffusion without off-diagonal entries in row {axis} on the"
                    f" faces across axis {axis}: with others the weak form reflects along Lambda n instead; rotate the"
                    " coordinates, or use a domain far from where the process goes, which does not reflect"
                )


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
        f = row[basis.node_dofs]
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
