r"""One solve on one box with one grid: the linear equation for u, or the equation of the value, by the route that fits.

Linear form: f = exp(v0 / alpha) u with the background v0 of a gauge. Value form: v = v0 + w and

    d_s w = L0 w + alpha rate + <Lambda grad w, grad w> / (2 alpha),      L0 = L - rate,

in which nothing can underflow. Routes in time, s = T - t:

    exponential      linear, one dimension, coefficients independent of time: exp(h L), exact.
    collocation      linear, one dimension: Radau IIA of order 9 (`radau`).
    lawson           the separable part exact, the rest explicit, order 4 (`lawson`); both forms.
    krylov           linear, implicit steps of order 4 (`esdirk`), GMRES with the separable part diagonalised.
    rational-krylov  linear, coefficients independent of time (`krylov`).
    newton           value form, implicit steps of order 4, policy iteration (`box_newton`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from fem_hjb.problems.gauge import Gauge, QuadraticGauge, Unknown, ValueGauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_cells import Cells, March, reversed_grid
from fem_hjb.reference.box_newton import solve_value
from fem_hjb.reference.box_operators import BoxOperators, Fields, SeparableInverse, SeparableOperator
from fem_hjb.reference.faces import absorbed_nodes, truncated
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.axes import apply_axis, apply_sum
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.stepping.esdirk import LinearSystem, Solve, esdirk
from fem_hjb.stepping.krylov import rational_krylov
from fem_hjb.stepping.lawson import lawson
from fem_hjb.stepping.radau import radau
from fem_hjb.support.checks import FloatArray, IntArray, one_of
from fem_hjb.support.errors import ConvergenceError

ROUTES = ("exponential", "collocation", "lawson", "krylov", "rational-krylov", "newton")
_LAWSON_STEPS = 2000  # that stability may ask for, beyond which implicit steps are taken
_DENSE = 400  # unknowns in one dimension up to which matrices are treated as dense
_DEEPEST = 30.0  # -log u up to which the linear form keeps the relative accuracy of u
_STAGES = 5
_FREEZES = 24  # intervals of time over which the separable part is frozen
_OUTPUT_CELLS = 64  # of the exponential route, where every time is as good as any other


def solve_on_box(
    problem: ControlProblem,
    basis: SpectralBasis,
    gauge: Gauge | QuadraticGauge,
    *,
    rtol_time: float,
    linear: bool,
    route: str | None = None,
) -> Solution:
    """Solve on this grid by `route`, or the one that fits; `linear` chooses the form. See the module.

    rtol_time is the relative tolerance of a time step. The stats are form, route, why, dofs, shape, degree, steps, and
    counts of the route.
    """
    started = time.perf_counter()
    operators = BoxOperators(problem, basis, gauge, truncated=truncated(problem))
    chosen, why = (
        _route(operators, linear) if route is None else (one_of(route, "route", ROUTES, ConvergenceError), "asked for")
    )
    common = {
        "form": "linear" if linear else "value",
        "route": chosen,
        "why": why,
        "dofs": basis.n_dofs,
        "shape": basis.shape,
        "degree": basis.degree,
    }
    if chosen == "newton":
        solution = solve_value(problem, basis, gauge, rtol_time=rtol_time)
        stats = {**solution.stats, **common, "seconds": time.perf_counter() - started}
        return Solution(
            problem=problem,
            space=solution.space,
            coefficients=solution.coefficients,
            gauge=solution.gauge,
            method="newton",
            status=solution.status,
            stats=stats,
        )
    T, x = problem.horizon, basis.nodes
    start = problem.y(x) - gauge.guess(T, x)
    if linear:
        start = np.exp(start / problem.temperature)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes out is checked
        march = _MARCHES[chosen](operators, start.reshape(basis.shape), rtol_time, linear)
    if not np.isfinite(march.rows).all():
        raise ConvergenceError(f"the route {chosen!r} has left double precision: take a finer grid, or the value form")
    unknown: Unknown = gauge
    if not linear:
        unknown = ValueGauge(background=gauge)
    bad = int((march.rows <= 0).sum()) if linear else 0
    return Solution(
        problem=problem,
        space=Space.product(march.line, basis, excluded_mass=None),
        coefficients=march.rows,
        gauge=unknown,
        method="box",
        status="ok" if not bad else f"u is not positive at {bad} of {march.rows.size} nodes of space and time",
        stats={**common, **march.counts, "seconds": time.perf_counter() - started},
    )


def _route(operators: BoxOperators, linear: bool) -> tuple[str, str]:
    """The route that fits, and why."""
    T = operators.problem.horizon
    fixed = _fixed(operators)
    if operators.dim == 1:
        if not linear:
            return "newton", "f ranges over too many orders of magnitude for the linear equation"
        if operators.autonomous and not fixed.size:
            return "exponential", "one dimension, nothing depends on time"
        return "collocation", "one dimension, coefficients depend on time" if not fixed.size else "one dimension"
    if fixed.size:
        return ("krylov", "values are prescribed on faces") if linear else ("newton", "values are prescribed on faces")
    steps = 0.0
    for t in (0.0, 0.5 * T, T):
        fields = operators.fields(t)
        left = operators.remainder(fields, operators.separable(fields))
        first, second = operators.bound(left)
        steps = max(steps, T * (first + second) / 2.5)
    if steps <= _LAWSON_STEPS:
        return "lawson", f"stability of what is not separable asks for at most {steps:.0f} steps"
    if not linear:
        return "newton", f"what is not separable is too stiff for explicit steps ({steps:.0f} of them)"
    if operators.autonomous:
        return "rational-krylov", f"nothing depends on time; explicit steps would be {steps:.0f}"
    return "krylov", f"what is not separable is too stiff for explicit steps ({steps:.0f} of them)"


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


def _exponential(operators: BoxOperators, u: FloatArray, rtol: float, linear: bool) -> March:
    _needs_linear(linear, "exponential")
    T = operators.problem.horizon
    line = LineBasis(np.linspace(0.0, T, _OUTPUT_CELLS + 1), "P4")
    flow = scipy.linalg.expm(operators.dense(operators.fields(0.0)) * (T / (line.n_dofs - 1)))
    rows = np.empty((line.n_dofs, u.size))
    rows[-1] = u
    for k in range(line.n_dofs - 2, -1, -1):
        rows[k] = flow @ rows[k + 1]
    return March(line, rows, {"steps": line.n_dofs - 1})


def _collocation(operators: BoxOperators, u: FloatArray, rtol: float, linear: bool) -> March:
    _needs_linear(linear, "collocation")
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
class _Split:
    """Separable part and remainder of the linear or the value form, as `lawson` asks for them."""

    def __init__(self, operators: BoxOperators, linear: bool) -> None:
        self.operators, self.linear, self.problem = operators, linear, operators.problem
        self._parts: SeparableOperator | None = None
        self._left: tuple[Fields, SeparableOperator, Fields] | None = None
        self._steering, self._place = 0.0, -1

    def separable(self, s: float) -> Sequence[FloatArray]:
        """Frozen over intervals of time, shorter near the end, so that exponentials serve for several steps."""
        place = int(_FREEZES * np.sqrt(s / self.problem.horizon))
        if self._parts is None or not (self.operators.autonomous or place == self._place):
            self._place = place
            fields = self.operators.fields(_time(self.problem, s))
            self._parts = self.operators.separable(self._linear_part(fields))
        return self._parts.matrices

    def remainder(self, s: float, u: FloatArray, frozen: Sequence[FloatArray]) -> FloatArray:
        operators, parts = self.operators, self._parts
        if parts is None or parts.matrices is not frozen:
            raise ConvergenceError("the separable part was not frozen here")
        fields = operators.fields(_time(self.problem, s))
        left = self._left_over(fields)
        if self.linear:
            return operators.apply(left, u)
        alpha = self.problem.temperature
        slopes = [apply_axis(D, u, k) for k, D in enumerate(operators.D)]
        pushed = np.einsum(
            "km,m...->k..." if fields.diffusion.ndim == 2 else "km...,m...->k...", fields.diffusion, slopes
        )
        self._steering = operators.advection(pushed / alpha)
        drift = left.drift + pushed / (2.0 * alpha)
        return operators.apply_with(Fields(drift, left.rate, left.diffusion), u, slopes) + alpha * fields.rate

    def _left_over(self, fields: Fields) -> Fields:
        parts = self._parts
        if parts is None:
            raise ConvergenceError("the separable part was not frozen yet")
        if self._left is None or self._left[0] is not fields or self._left[1] is not parts:
            self._left = (fields, parts, self.operators.remainder(self._linear_part(fields), parts))
        return self._left[2]

    def _linear_part(self, fields: Fields) -> Fields:
        return fields if self.linear else Fields(fields.drift, np.zeros_like(fields.rate), fields.diffusion)

    def bound(self, s: float) -> float:
        self.separable(s)
        first, second = self.operators.bound(self._left_over(self.operators.fields(_time(self.problem, s))))
        return first + second + self._steering


def _lawson(operators: BoxOperators, u: FloatArray, rtol: float, linear: bool) -> March:
    problem = operators.problem
    split = _Split(operators, linear)
    scale = 0.0 if linear else max(operators.norm(problem.y(operators.basis.nodes)), problem.temperature)
    cells = Cells(operators.norm, 3.0 * rtol, scale)
    counts = {"steps": 0, "rejected": 0, "evaluations": 0, "exponentials": 0, "limited_by_stability": 0}
    for step in lawson(
        split.separable,
        split.remainder,
        u,
        0.0,
        problem.horizon,
        rtol=rtol,
        norm=operators.norm,
        scale=scale,
        remainder_bound=split.bound,
    ):
        slope0 = apply_sum(step.frozen, step.f0) + step.remainder0
        slope1 = apply_sum(step.frozen, step.f1) + step.remainder1
        cells.add(step, (step.f0, slope0), (step.f1, slope1))
        for name in ("rejected", "evaluations", "exponentials"):
            counts[name] += getattr(step, name)
        counts["steps"] += 1
        counts["limited_by_stability"] += step.limited
    return cells.march(u, problem.horizon, counts)


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


def _krylov(operators: BoxOperators, u: FloatArray, rtol: float, linear: bool) -> March:
    _needs_linear(linear, "krylov")
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


def _rational(operators: BoxOperators, u: FloatArray, rtol: float, linear: bool) -> March:
    _needs_linear(linear, "rational-krylov")
    T = operators.problem.horizon
    fields = operators.fields(0.0)
    inverse = SeparableInverse(operators, operators.separable(fields))
    gamma = T / 10
    solve = operators.solver(fields, gamma, inverse, np.zeros(0, dtype=np.int64))
    line = LineBasis(T * (1.0 - np.linspace(1.0, 0.0, _OUTPUT_CELLS + 1) ** 2), "P4")
    states = rational_krylov(
        lambda v: solve(v.ravel(), inverse(v, gamma).ravel(), 1e-3 * rtol).reshape(v.shape),
        lambda v: operators.apply(fields, v),
        u,
        gamma=gamma,
        rtol=rtol,
        times=T - line.nodes[::-1],
        norm=operators.norm,
        inner=operators.weights,
    )
    counts = {"steps": 0, "linear_solves": states.solves, "iterations": operators.iterations}
    return March(line, states.states.reshape(line.n_dofs, -1)[::-1].copy(), counts)


def _needs_linear(linear: bool, route: str) -> None:
    if not linear:
        raise ConvergenceError(f"the route {route!r} solves the linear form only; take 'lawson' or 'newton'")


_MARCHES: dict[str, Callable[[BoxOperators, FloatArray, float, bool], March]] = {
    "exponential": _exponential,
    "collocation": _collocation,
    "lawson": _lawson,
    "krylov": _krylov,
    "rational-krylov": _rational,
}
