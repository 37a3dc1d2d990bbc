r"""One solve on one box with one grid, of a process that is stopped at faces: u of f = exp(v0 / alpha) u, linear.

Values are prescribed on absorbing faces. Routes in time, s = T - t:

    collocation      one dimension: Radau IIA of order 9 (`radau`).
    krylov           more: implicit steps of order 4 (`esdirk`), GMRES with the separable part diagonalised.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import scipy.sparse as sp

from fem_hjb.problems.gauge import Gauge, QuadraticGauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_operators import BoxOperators, Fields, SeparableInverse
from fem_hjb.reference.faces import absorbed_nodes, truncated
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.stepping.esdirk import LinearSystem, Solve, esdirk
from fem_hjb.stepping.radau import radau
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError

_STAGES = 5


def solve_on_box(
    problem: ControlProblem, basis: SpectralBasis, gauge: Gauge | QuadraticGauge, *, rtol_time: float
) -> Solution:
    """Solve on this grid; see the module.

    rtol_time is the relative tolerance of a time step. The stats are form, route, why, dofs, shape, degree, steps, and
    counts of the route.
    """
    started = time.perf_counter()
    operators = BoxOperators(problem, basis, gauge, truncated=truncated(problem))
    route, march_of = ("collocation", _collocation) if basis.dim == 1 else ("krylov", _krylov)
    start = np.exp((problem.y(basis.nodes) - gauge.guess(problem.horizon, basis.nodes)) / problem.temperature)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes out is checked
        march = march_of(operators, start.reshape(basis.shape), rtol_time)
    if not np.isfinite(march.rows).all():
        raise ConvergenceError(f"the route {route!r} has left double precision: take a finer grid")
    bad = int((march.rows <= 0).sum())
    common = {
        "form": "linear",
        "route": route,
        "why": "values are prescribed on faces",
        "dofs": basis.n_dofs,
        "shape": basis.shape,
        "degree": basis.degree,
    }
    return Solution(
        problem=problem,
        space=Space.product(march.line, basis, excluded_mass=None),
        coefficients=march.rows,
        gauge=gauge,
        method="box",
        status="ok" if not bad else f"u is not positive at {bad} of {march.rows.size} nodes of space and time",
        stats={**common, **march.counts, "seconds": time.perf_counter() - started},
    )


@final
@dataclass(frozen=True, eq=False)
class March:
    """u at the nodes of a time basis (rows, in increasing t), and counts."""

    line: LineBasis
    rows: FloatArray
    counts: dict[str, Any]


def _fixed(operators: BoxOperators) -> IntArray:
    """Unknowns at absorbing faces."""
    return np.flatnonzero(absorbed_nodes(operators.problem, operators.basis))


def _prescribed(operators: BoxOperators, fixed: IntArray) -> Callable[[float], FloatArray]:
    """s -> u = exp((g - v0) / alpha) at the fixed nodes."""
    problem, background = operators.problem, operators.background
    x = operators.basis.nodes[fixed]

    def values(s: float) -> FloatArray:
        t = _time(problem, s)
        return np.asarray(np.exp((problem.exit_reward(t, x) - background.guess(t, x)) / problem.temperature))

    return values


def _time(problem: ControlProblem, s: float) -> float:
    return float(min(max(problem.horizon - s, 0.0), problem.horizon))


def _collocation(operators: BoxOperators, u: FloatArray, rtol: float) -> March:
    problem = operators.problem
    fixed = _fixed(operators)
    cache: list[Any] = [None, None]

    def matrix(s: float) -> FloatArray:
        fields = operators.fields(_time(problem, s))
        if cache[0] is not fields:
            cache[:] = [fields, operators.dense(fields)]
        return np.asarray(cache[1])

    steps = list(
        radau(
            matrix,
            u,
            0.0,
            problem.horizon,
            rtol=rtol,
            norm=operators.norm,
            stages=_STAGES,
            fixed=fixed if fixed.size else None,
            fixed_values=_prescribed(operators, fixed) if fixed.size else None,
        )
    )
    ends = np.array([0.0, *(step.t + step.h for step in steps)])
    line = LineBasis(reversed_grid(ends, problem.horizon), "P4")
    rows = [steps[0].f0]
    for step in steps:
        rows += [step.dense(0.25), step.dense(0.5), step.dense(0.75), step.f1]
    counts = {"steps": len(steps), "rejected": sum(step.rejected for step in steps)}
    return March(line, np.array(rows[::-1]), counts)


@final
class _BoxSystem(LinearSystem):
    """u' = L(T - s) u for `esdirk`, prescribed at absorbing faces."""

    factors = False

    def __init__(self, operators: BoxOperators) -> None:
        self.operators = operators
        self.mass = sp.identity(operators.weights.size, format="csr")
        self.fixed = _fixed(operators)
        self._values = _prescribed(operators, self.fixed)
        self._inverse: SeparableInverse | None = None

    def stiffness(self, t: float) -> Any:
        operators = self.operators
        return _Stiffness(operators, operators.fields(_time(operators.problem, t)))

    def solver(self, stiffness: Any, shift: float) -> Solve:
        operators = self.operators
        if self._inverse is None:
            middle = operators.fields(0.5 * operators.problem.horizon)
            self._inverse = SeparableInverse(operators, operators.separable(middle))
        return operators.solver(stiffness.fields, shift, self._inverse, self.fixed)

    def fixed_values(self, t: float) -> FloatArray:
        return self._values(t) if self.fixed.size else np.zeros(0)

    def norm(self, f: FloatArray) -> float:
        return self.operators.norm(f)


@final
@dataclass(frozen=True, eq=False)
class _Stiffness:
    """L at one time, as something that vectors are multiplied with."""

    operators: BoxOperators
    fields: Fields

    def __matmul__(self, u: FloatArray) -> FloatArray:
        return self.operators.apply(self.fields, u.reshape(self.operators.shape)).ravel()


def _krylov(operators: BoxOperators, u: FloatArray, rtol: float) -> March:
    system = _BoxSystem(operators)
    counts = {"steps": 0, "rejected": 0, "linear_solves": 0}
    rows: list[FloatArray] = []
    ends = [0.0]
    for step in esdirk(system, u.ravel(), 0.0, operators.problem.horizon, rtol=rtol):
        rows += [step.dense(theta) for theta in ((1 / 3, 2 / 3) if rows else (0.0, 1 / 3, 2 / 3))] + [step.f1]
        ends.append(step.t + step.h)
        counts["steps"] += 1
        counts["rejected"] += step.rejected
        counts["linear_solves"] += step.solves
    line = LineBasis(reversed_grid(np.array(ends), operators.problem.horizon), "P3")
    return March(line, np.array(rows[::-1]), {**counts, "iterations": operators.iterations})


def reversed_grid(ends: FloatArray, horizon: float) -> FloatArray:
    """Times t of times to go."""
    grid = horizon - ends[::-1]
    grid[0], grid[-1] = 0.0, horizon
    return np.asarray(grid)
