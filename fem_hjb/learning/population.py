r"""What a class can do at best: the best approximation of the solution, and the parts an error is made of.

With f* the solution, E an inner product under the law of the process, and in a class F

    f_best   the best approximation of f* in F,                          |f_best - f*|_E   approximation
    f_bar    the solution of the variational equation under the law,     |f_bar - f_best|_E   Galerkin's share of it
    f_bar_K  the same under the law at the K observed times,             |f_bar_K - f_bar|_E   observation
    f_hat    the same under n trajectories,                              |f_hat - f_bar_K|_E   statistical

the error f_hat - f* is the sum of the four. f_best - f* is orthogonal to F, so that for every f in F

    |f - f*|_E^2 = |f - f_best|_E^2 + |f_best - f*|_E^2,

which is how distances are computed here: differences of coefficients, and one integral.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.sparse.linalg import splu

from fem_hjb.learning import forms
from fem_hjb.learning.estimators import Setting
from fem_hjb.learning.forms import VALUE, Integrands, Load, Operator
from fem_hjb.learning.gram import gram_sums
from fem_hjb.learning.measures import Measure, check_space
from fem_hjb.learning.samples import Located, chunks, operator_rows
from fem_hjb.learning.system import assemble
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.spaces.space import Space
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, one_of, require
from fem_hjb.support.errors import FemHjbError, MeasureError
from fem_hjb.support.objects import Plain

NORMS = ("energy", "mass")

_SHIFT = 1e-13  # of the unit diagonal, so that a factorisation of a nearly singular Gram matrix runs through
_INSTANT = 1e-5  # of the horizon, for central differences in time


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Yardstick(Plain):
    """Distances of functions of a class from the solution, and from each other, in a norm under the law.

    metric (N, N) : E.  best (N,) : the coefficients of f_best.  approximation : |f_best - f*|_E.  size : |f*|_E.
    """

    space: Space
    gauge: Gauge
    metric: sp.csr_matrix
    best: FloatArray
    approximation: float
    size: float

    def norm(self, c: ArrayLike) -> float:
        """|f|_E of a function by its coefficients, of the space's shape or raveled."""
        flat = self.space.coefficient_grid(c).ravel()
        return float(np.sqrt(max(float(flat @ (self.metric @ flat)), 0.0)))

    def distance(self, c: ArrayLike) -> float:
        """|f - f*|_E."""
        return float(np.hypot(self.norm(self.space.coefficient_grid(c).ravel() - self.best), self.approximation))


def yardstick(
    problem: ControlProblem,
    measure: Measure,
    space: Space,
    *,
    delta: float = 0.0,
    norm: str = "energy",
    exact: ValueFunction | None = None,
) -> Yardstick:
    """The best approximation of the solution under a law, and distances to it.

    measure : a law (`law_measure`, `sampled_law_measure`).  exact : the solution; None: problem.exact.
    norm : "energy", that of `system.System.energy` with this delta, or "mass", int E[f^2] dt + E[f_T^2].

    d_t f* is taken by central differences of the exact value in time, accurate to about 1e-9.

    Raises MeasureError if there is no exact solution, or the measure leaves the space.
    """
    check_space(problem, space, "yardstick")
    one_of(norm, "norm", NORMS, MeasureError)
    truth = problem.exact if exact is None else exact
    if truth is None:
        raise MeasureError(
            f"{problem.name!r} has no exact solution: give exact=, for instance solve(problem, rtol=1e-6)"
        )
    if not isinstance(truth, ValueFunction):
        raise MeasureError(f"exact must have value(t, x) and gradient(t, x), got {type(truth).__name__}")
    estimator = "generator" if space.smoothness else "weak"
    system = assemble(problem, measure, space, estimator=estimator, delta=delta, outside="drop")
    setting = Setting(problem=problem, space=space, gauge=system.gauge, delta=delta)
    terms = _norm_terms(setting, truth, measure, norm)
    load = np.zeros(space.n_dofs)
    for at, weights, loads in terms:
        load += gram_sums(space, at, weights, Integrands.of([], loads)).load()
    matrix = system.energy if norm == "energy" else system.mass
    best = _solve(matrix, load)
    square = sum(_squared_error(space, best, *term) for term in terms)
    size = float(np.sqrt(best @ (matrix @ best) + square))
    return Yardstick(
        space=space,
        gauge=system.gauge,
        metric=matrix,
        best=best,
        approximation=float(np.sqrt(square)),
        size=size,
    )


NormTerm = tuple[Located, FloatArray, list[Load]]
"""Points, weights, and pairs (D, D f*): the squared norm of f is the sum over terms of weights (D f)^2."""


def _norm_terms(setting: Setting, truth: ValueFunction, measure: Measure, norm: str) -> list[NormTerm]:
    problem, gauge, delta, energy = setting.problem, setting.gauge, setting.delta, norm == "energy"
    horizon, step = problem.horizon, _INSTANT * problem.horizon

    def f(t: FloatArray, x: FloatArray) -> FloatArray:
        return gauge.u(t, x, call("exact: value(t, x)", truth.value, (t, x), MeasureError, passes=FemHjbError))

    def slopes(t: FloatArray, x: FloatArray, factor: float) -> list[Load]:
        found = call("exact: gradient(t, x)", truth.gradient, (t, x), MeasureError, passes=FemHjbError)
        gradient = f(t, x)[:, None] * found / problem.temperature
        operators = forms.slopes(np.sqrt(factor) * setting.factor(t, x))
        return [(op, np.asarray(np.sum(np.asarray(op.gradient) * gradient, axis=-1))) for op in operators]

    def inside(t: FloatArray, x: FloatArray, weights: FloatArray) -> tuple[Located, FloatArray, FloatArray, FloatArray]:
        at = Located.of(setting.space, t, x)
        rows = np.flatnonzero(at.cells >= 0)
        return at.take(rows), t[rows], x[rows], weights[rows]

    weight = np.full(measure.t.size, delta)
    if not delta and measure.next_t is not None:
        weight = measure.next_t - measure.t
    _, _, _, weight = inside(measure.t, measure.x, weight)
    at, t, x, weights = inside(measure.t, measure.x, measure.weights)
    interior: list[Load] = [(VALUE, f(t, x))]
    if energy:
        interior += slopes(t, x, 1.0)
        if weight.any():
            before, after = np.maximum(t - step, 0.0), np.minimum(t + step, horizon)
            root = np.sqrt(weight)
            interior.append((Operator(time=root), root * (f(after, x) - f(before, x)) / (after - before)))
    result: list[NormTerm] = [(at, weights, interior)]
    ends = ((horizon, measure.terminal_x, measure.terminal_weights), (0.0, measure.initial_x, measure.initial_weights))
    for time, states, given in ends if energy else ends[:1]:
        at, t, x, weights = inside(np.full(len(states), time), states, given)
        loads: list[Load] = [(VALUE, f(t, x))]
        if energy and delta:
            loads += slopes(t, x, 0.5 * delta)
        result.append((at, weights, loads))
    return result


def _squared_error(space: Space, c: FloatArray, at: Located, weights: FloatArray, loads: list[Load]) -> float:
    """sum weights (D f - target)^2 over the loads, f given by its coefficients."""
    total = 0.0
    for rows in chunks(np.arange(weights.size), 8 * space.local_size * (1 + space.dim)):
        here = at.take(rows)
        local = c[space.cell_dofs(here.cells)]
        part = Integrands.of([], loads).take(rows)
        for test, target in part.loads:
            values = np.einsum("ml,ml->m", operator_rows(space, here, part.operators[test]), local)
            total += float(weights[rows] @ (values - target) ** 2)
    return total


def _solve(matrix: sp.csr_matrix, load: FloatArray) -> FloatArray:
    """matrix^{-1} load for a Gram matrix, which may be nearly singular where the law has hardly any mass."""
    diagonal = matrix.diagonal()
    seen = np.flatnonzero(diagonal > 0)
    root = np.sqrt(diagonal[seen])
    scale = sp.diags(1.0 / root)
    scaled = (scale @ matrix[seen][:, seen] @ scale + _SHIFT * sp.identity(seen.size)).tocsc()
    factors = splu(scaled, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    result = np.zeros(load.size)
    result[seen] = factors.solve(load[seen] / root) / root
    return result


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ErrorSplit:
    """The parts of |f_hat - f*|_E, each relative to |f*|_E; see the head of the module. total : of all of them."""

    approximation: float
    galerkin: float
    observation: float
    statistical: float
    total: float


def split_error(
    measuring: Yardstick, learned: ArrayLike, *, population: ArrayLike, observed: ArrayLike | None = None
) -> ErrorSplit:
    """The parts of the error of a learned solution, all given by their coefficients on the space of the yardstick.

    learned : f_hat.  population : f_bar, the fit under the law.  observed : f_bar_K, the fit under the law at the
    observed times, law_measure(..., times=paths.t); None: as if f_bar, so that the observation error counts as
    statistical.
    """
    require(measuring, Yardstick, "split_error", MeasureError)
    grid = measuring.space.coefficient_grid
    hat, bar = grid(learned).ravel(), grid(population).ravel()
    bar_k = bar if observed is None else grid(observed).ravel()
    size = measuring.size
    return ErrorSplit(
        approximation=measuring.approximation / size,
        galerkin=measuring.norm(bar - measuring.best) / size,
        observation=measuring.norm(bar_k - bar) / size,
        statistical=measuring.norm(hat - bar_k) / size,
        total=measuring.distance(hat) / size,
    )
