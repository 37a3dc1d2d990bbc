r"""The equation of f on a mesh, solved backward in time.

f = exp(v / alpha), gauged, solves a linear equation backward in time from f_T = exp((y - c_y)/alpha). Its weak form on
a basis (see `mesh_operators`) is a linear system of ordinary differential equations in s = T - t,

    M df/ds = K(T - s) f,      f(s=0) = f_T,

which `stepping.esdirk` solves. Every accepted step is kept as a cubic in time, so the `Solution` is dense in time.
"""

import time
from typing import Any, final

import numpy as np

from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import UNDERFLOW, Gauge, constant_gauge, range_in_temperatures
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_boundary import Boundary, BoundaryValue, kind_of, prescribed, raised
from fem_hjb.reference.mesh_in_time import inside
from fem_hjb.reference.mesh_operators import MeshOperators
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.stepping.esdirk import ESDIRK43, LinearSystem, Solve, esdirk
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import DomainError, FemHjbError, PositivityError
from fem_hjb.support.progress import Progress, unheard

_GAUGE_TIMES = 33  # instants at which sup r is looked for


def solve_on_basis(
    problem: ControlProblem,
    basis: SpatialBasis,
    control: dict[str, Any],
    boundary: Boundary,
    *,
    excluded: float | None = None,
    meshing: float = 0.0,
    progress: Progress = unheard,
) -> Solution:
    """The solution on a basis; see `mesh_solve.solve_on_mesh`.

    control : what `esdirk` is told of its steps, rtol= or steps=.
    excluded : the mass outside the box, if that was chosen for the user: then errors of time steps are weighted.
    meshing : the seconds it took to make the basis, for the stats.
    progress : hears of every stage of every step; what it raises stops the work.
    """
    started = time.perf_counter()
    instants = np.linspace(0.0, problem.horizon, _GAUGE_TIMES)
    progress(0.0)
    depth = _range_of_f(problem, basis, instants)
    progress(0.0)
    gauged = constant_gauge(problem, basis.nodes, instants)
    fixed, given = prescribed(problem, basis, boundary)
    if given == problem.exit_reward:
        gauged = raised(gauged, problem, basis.nodes[fixed], instants)
    system = _Backward(problem, basis, gauged, fixed, given, progress)
    if excluded is not None and problem.domain is None:
        system.weigh(basis.box)
    f_T = _terminal(problem, basis, gauged)
    assembled = time.perf_counter()
    grid, coefficients, counts = _integrate(system, f_T, problem.horizon, control, progress)
    finished = time.perf_counter()
    line = LineBasis(grid, "P3")
    assembly = assembled - started + system.seconds
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
            "boundary": kind_of(boundary),
            **system.operators_used(),
            "range_in_temperatures": depth,
            "excluded_mass": excluded,
            "seconds": {
                "mesh": meshing,
                "assembly": assembly,
                "solve": finished - started - assembly,
                "total": meshing + finished - started,
            },
        },
    )


def _range_of_f(problem: ControlProblem, basis: SpatialBasis, instants: FloatArray) -> float:
    """A bound on -log f on the nodes; PositivityError if f underflows."""
    depth = range_in_temperatures(problem, basis.nodes, instants)
    if depth > UNDERFLOW:
        raise PositivityError(
            f"the rewards of {problem.name!r} differ by up to {depth:.0f} temperatures on the mesh, so that"
            f" f = exp(v / alpha) underflows (the limit is about {UNDERFLOW:.0f}); raise the temperature above"
            f" {problem.temperature * depth / UNDERFLOW:.3g}, or take a smaller box"
        )
    return depth


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
        told: Progress,
    ) -> None:
        self.told = told
        self.operators = MeshOperators(problem, basis, gauged, told)
        self.mass = self._metric = self.operators.M
        self.factors = self.operators.direct
        self.seconds = 0.0
        self._horizon, self._gauge, self._boundary = problem.horizon, gauged, boundary
        self.within, self._room = (0.0, problem.horizon), np.empty(self.mass.nnz)
        self.breaks = [problem.horizon - t for t in self.operators.jumps]
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

    def operators_used(self) -> dict[str, Any]:
        """What the stats say of the linear algebra."""
        return {name: getattr(self.operators, name) for name in ("linear_solver", "iterations", "factorisations")}

    def norm(self, f: FloatArray) -> float:
        return float(np.sqrt(max(f @ (self._metric @ f), 0.0)))

    def _time(self, s: float) -> float:
        return float(min(max(self._horizon - s, self.within[0]), self.within[1]))

    def enter(self, start: float, end: float) -> None:
        T = self._horizon
        self.within = inside(T - end, T - start, self.operators.jumps, T)

    def stiffness(self, s: float) -> Any:
        self.told(0.0)
        start = time.perf_counter()
        K = self.operators.K(self._time(s), self._room)
        self.seconds += time.perf_counter() - start
        return K

    def seen(self, s: float, h: float) -> float:
        return h * self.operators.seen(self._time(s), self._time(s + h), ESDIRK43.c)

    def solver(self, stiffness: Any, shift: float) -> Solve:
        return self.operators.solver(stiffness, shift, self.fixed)

    def fixed_values(self, s: float) -> FloatArray:
        if self._boundary is None:
            return np.zeros(0)
        t = self._time(s)
        v = call("boundary(t, x)", self._boundary, (t, self._x), DomainError, passes=FemHjbError)
        if v.shape != self._x.shape[:1]:
            raise DomainError(
                f"boundary(t, x) returned shape {v.shape} for x of shape {self._x.shape},"
                f" expected the values of v, shape {self._x.shape[:1]}"
            )
        with np.errstate(over="ignore"):
            f = self._gauge.u(t, self._x, v)
        if not np.isfinite(f).all():
            bad = int(np.argmax(~np.isfinite(f)))
            raise DomainError(
                f"boundary(t, x) is v={v[bad]:.3g} at t={t:.6g}, x={self._x[bad].tolist()}, which is not finite or so"
                " far above the rewards that exp(v / alpha) overflows; give the values of v itself, not of f"
            )
        return f


def _terminal(problem: ControlProblem, basis: SpatialBasis, gauged: Gauge) -> FloatArray:
    """Coefficients of f_T: interpolated on continuous elements, projected in L2 on C1 ones."""
    if basis.smoothness:
        return basis.project(lambda x: gauged.terminal_u(problem, x))
    return basis.interpolate(gauged.terminal_u(problem, basis.nodes))


def _integrate(
    system: LinearSystem,
    f_T: FloatArray,
    horizon: float,
    control: dict[str, Any],
    progress: Progress,
) -> tuple[FloatArray, FloatArray, dict[str, int]]:
    """The grid in t (m+1,), coefficients (3 m + 1, n) at the nodes of cubics on it, and counts of work."""
    rows: list[FloatArray] = []
    ends = [0.0]
    counts: dict[str, int] = {}
    for step in esdirk(system, f_T, 0.0, horizon, counts=counts, **control):
        inside_step = [step.dense(1 / 3), step.dense(2 / 3), step.u1]
        rows.extend(inside_step if rows else [step.u0, *inside_step])
        ends.append(step.s + step.h)
        progress(ends[-1] / horizon)
    grid = horizon - np.array(ends[::-1])
    grid[0], grid[-1] = 0.0, horizon
    count = len(rows)
    coefficients = np.empty((count, f_T.size))
    for k in range(count):  # from the last row on, letting go of each, so that there is never a second copy of them all
        coefficients[k] = rows.pop()
    coefficients.setflags(write=False)
    return grid, coefficients, counts


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
