"""The Fokker-Planck equation on one box with one grid: collocation in one dimension, Lawson's method in more."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import numpy as np

from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_cells import hermite
from fem_hjb.reference.box_operators import BoxOperators, Fields, SeparableOperator
from fem_hjb.reference.faces import absorbed_nodes
from fem_hjb.reference.fokker_planck_start import Begin, March, in_time, no_gauge
from fem_hjb.spaces.axes import apply_sum
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.stepping.lawson import LawsonStep, lawson
from fem_hjb.stepping.radau import radau
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError, DomainError

_STAGES = 4  # of collocation: its dense output has the degree of the elements in time

_Rows = tuple[LineBasis, FloatArray, dict[str, Any]]
_State = tuple[float, FloatArray, FloatArray]  # a time, p and its slope


@final
class _Adjoint:
    """L* of a box: W^{-1} L' W, nothing leaving the nodes of absorbing faces."""

    def __init__(self, operators: BoxOperators, absorbed: BoolArray) -> None:
        self.operators = operators
        self.free = ~absorbed.reshape(operators.shape)
        self._parts: SeparableOperator | None = None
        self._frozen: Sequence[FloatArray] = []
        self._left: tuple[Fields, SeparableOperator, Fields] | None = None
        self._dense: tuple[Fields, FloatArray] | None = None

    def norm(self, p: FloatArray) -> float:
        """The L2 norm."""
        return float(np.sqrt((self.operators.weights.ravel() * p.ravel() ** 2).sum()))

    def matrix(self, t: float) -> FloatArray:
        """L* as a dense matrix, in one dimension; the same object for the same coefficients."""
        fields = self.operators.fields(t)
        if self._dense is None or self._dense[0] is not fields:
            self._dense = fields, _adjoint(self.operators.dense(fields), self.operators.weights)
        return self._dense[1]

    def separable(self, t: float) -> Sequence[FloatArray]:
        """The transposed separable part, one matrix for each axis."""
        if self._parts is None or not self.operators.autonomous:
            self._parts = self.operators.separable(self.operators.fields(t))
            frozen = []
            for k, (S, line) in enumerate(zip(self._parts.matrices, self.operators.basis.lines, strict=True)):
                inside = self.free.any(axis=tuple(i for i in range(self.free.ndim) if i != k))
                frozen.append(_adjoint(S, line.weights) * np.outer(inside, inside))
            self._frozen = frozen
        return self._frozen

    def remainder(self, t: float, p: FloatArray, frozen: Sequence[FloatArray]) -> FloatArray:
        """What is left of L* p."""
        parts = self._parts
        if parts is None or frozen is not self._frozen:
            raise ConvergenceError("the separable part was not frozen here")
        fields = self.operators.fields(t)
        if self._left is None or self._left[0] is not fields or self._left[1] is not parts:
            self._left = fields, parts, self.operators.remainder(fields, parts)
        return np.where(self.free, self.operators.transpose(self._left[2], p), 0.0)

    def apply(self, t: float, p: FloatArray) -> FloatArray:
        """L* p."""
        return np.where(self.free, self.operators.transpose(self.operators.fields(t), p), 0.0)

    def bound(self, t: float) -> float:
        """Of the spectral radius of the remainder, which is that of its transpose."""
        fields = self.operators.fields(t)
        return sum(self.operators.bound(self.operators.remainder(fields, self.operators.separable(fields))))


def _adjoint(matrix: FloatArray, weights: FloatArray) -> FloatArray:
    return np.asarray(matrix.T * weights / weights[:, None])


def on_box(
    problem: ControlProblem, basis: SpectralBasis, begin: Begin, rtol: float, tell: Callable[[float], None]
) -> March:
    absorbed = absorbed_nodes(problem, basis)
    adjoint = _Adjoint(BoxOperators(problem, basis, no_gauge(problem)), absorbed)
    p = np.where(absorbed, 0.0, np.exp(begin.law.logpdf(basis.nodes)))
    if not p.any():
        raise DomainError(f"no node of the box sees the initial law of {problem.name!r}; take smaller cells")
    if basis.dim == 1:
        line, rows, counts = _collocation(adjoint, p, np.flatnonzero(absorbed), begin.time, rtol, tell)
    else:
        line, rows, counts = _lawson(adjoint, p.reshape(basis.shape), begin.time, rtol, tell)
    return March(basis, line, rows, counts, basis.weights)


def _collocation(
    adjoint: _Adjoint, p: FloatArray, fixed: IntArray, start: float, rtol: float, tell: Callable[[float], None]
) -> _Rows:
    T = adjoint.operators.problem.horizon
    rows, ends, rejected = [p], [start], 0
    steps = radau(
        adjoint.matrix,
        p,
        start,
        T,
        rtol=rtol,
        norm=adjoint.norm,
        stages=_STAGES,
        fixed=fixed if fixed.size else None,
        fixed_values=(lambda _: np.zeros(fixed.size)) if fixed.size else None,
    )
    for step in steps:
        rows += [step.dense(0.25), step.dense(0.5), step.dense(0.75), step.f1]
        ends.append(step.t + step.h)
        rejected += step.rejected
        tell(min(1.0, ends[-1] / T))
    return *in_time(rows, ends, T, "P4"), {"route": "collocation", "steps": len(ends) - 1, "rejected": rejected}


def _lawson(adjoint: _Adjoint, p: FloatArray, start: float, rtol: float, tell: Callable[[float], None]) -> _Rows:
    T = adjoint.operators.problem.horizon
    counts: dict[str, Any] = {"route": "lawson", "steps": 0, "rejected": 0}

    def states() -> Iterator[_State]:
        for step in lawson(
            adjoint.separable,
            adjoint.remainder,
            p,
            start,
            T,
            rtol=rtol,
            norm=adjoint.norm,
            remainder_bound=adjoint.bound,
        ):
            counts["steps"] += 1
            counts["rejected"] += step.rejected
            end = step.t + step.h
            first = step.t, step.f0, apply_sum(step.frozen, step.f0) + step.remainder0
            if step.t == start:
                yield first
            last = end, step.f1, apply_sum(step.frozen, step.f1) + step.remainder1
            yield from _between(adjoint, step, first, last, rtol)
            tell(min(1.0, end / T))

    rows, ends = _joined(states(), adjoint.norm, rtol)
    return *in_time(rows, ends, T, "P3"), counts


def _between(adjoint: _Adjoint, step: LawsonStep, first: _State, last: _State, tolerance: float) -> Iterator[_State]:
    """States after `first` up to `last` within a step, so many that cubics between them fit.

    The step itself may be of any length, as it solves what is separable exactly.
    """
    t = 0.5 * (first[0] + last[0])
    p = step.dense((t - step.t) / step.h)
    if last[0] - first[0] > 1e-6 * step.h and adjoint.norm(_cubic(first, last, 0.5) - p) > tolerance * adjoint.norm(p):
        middle = t, p, adjoint.apply(t, p)
        yield from _between(adjoint, step, first, middle, tolerance)
        yield from _between(adjoint, step, middle, last, tolerance)
    else:
        yield last


def _joined(
    states: Iterator[_State], norm: Callable[[FloatArray], float], tolerance: float
) -> tuple[list[FloatArray], list[float]]:
    """Values at the nodes of cubics in time, as long as possible: the middle one of the states passed over must fit."""
    cell = [next(states)]
    rows, ends = [cell[0][1].ravel()], [cell[0][0]]

    def close() -> None:
        first, last = cell[0], cell[-1]
        rows.extend([_cubic(first, last, 1 / 3).ravel(), _cubic(first, last, 2 / 3).ravel(), last[1].ravel()])
        ends.append(last[0])

    for state in states:
        if len(cell) > 1:
            middle = cell[len(cell) // 2]
            theta = (middle[0] - cell[0][0]) / (state[0] - cell[0][0])
            if norm(_cubic(cell[0], state, theta) - middle[1]) > tolerance * norm(middle[1]):
                close()
                cell = [cell[-1]]
        cell.append(state)
    close()
    return rows, ends


def _cubic(first: _State, last: _State, theta: float) -> FloatArray:
    return hermite(theta, last[0] - first[0], first[1:], last[1:])
