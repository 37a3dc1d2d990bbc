"""The Fokker-Planck equation on one box with one grid: collocation in one dimension, Lawson's method in more."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, final

import numpy as np

from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_operators import BoxOperators, Fields
from fem_hjb.reference.faces import absorbed_nodes
from fem_hjb.reference.fokker_planck_start import Begin, March, in_time, no_gauge
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.stepping.lawson import LawsonPanel, hermite, march
from fem_hjb.stepping.radau import radau
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import DomainError

_FREEZES = np.array([0.0, 0.01, 0.03, 0.07, 0.13, 0.22, 0.35, 0.55, 0.77, 1.0])  # of the horizon: panels of time
_FIRST = 64  # parts of it that the first step is at most one of
_STAGES = 4  # of collocation: its dense output has the degree of the elements in time

_Rows = tuple[LineBasis, FloatArray, dict[str, Any]]


@final
class _Adjoint:
    """L* of a box: W^{-1} L' W, nothing leaving the nodes of absorbing faces."""

    def __init__(self, operators: BoxOperators, absorbed: BoolArray) -> None:
        self.operators = operators
        self.free = ~absorbed.reshape(operators.shape)
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

    def freeze(self, t: float) -> tuple[Sequence[FloatArray], Callable[[float, FloatArray], FloatArray]]:
        """The transposed separable part at a time, one matrix for each axis, and what it leaves of L* p."""
        operators = self.operators
        parts = operators.separable(operators.fields(t))
        frozen = []
        for k, (S, line) in enumerate(zip(parts.matrices, operators.basis.lines, strict=True)):
            inside = self.free.any(axis=tuple(i for i in range(self.free.ndim) if i != k))
            frozen.append(_adjoint(S, line.weights) * np.outer(inside, inside))
        last: list[Any] = [None, None]

        def remainder(s: float, p: FloatArray) -> FloatArray:
            fields = operators.fields(s)
            if last[0] is not fields:
                last[:] = fields, operators.remainder(fields, parts)
            return np.where(self.free, operators.transpose(last[1], p), 0.0)

        return frozen, remainder


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


def _relative(adjoint: _Adjoint, size: float, error: FloatArray) -> float:
    return adjoint.norm(error) / size


def _lawson(adjoint: _Adjoint, p: FloatArray, start: float, rtol: float, tell: Callable[[float], None]) -> _Rows:
    """The separable part is frozen over parts of time that grow with the time passed."""
    T = adjoint.operators.problem.horizon
    edges = np.array([0.0, T]) if adjoint.operators.autonomous else T * _FREEZES
    edges = np.concatenate([[start], edges[edges > start * (1 + 1e-9)]])
    rows, ends = [p.ravel()], [start]
    counts: dict[str, Any] = {"route": "lawson", "steps": 0, "rejected": 0}
    h = (T - start) / _FIRST
    for begin, end in pairwise(edges.tolist()):
        frozen, remainder = adjoint.freeze(0.5 * (begin + end))
        size = adjoint.norm(p)
        panel = LawsonPanel(frozen, remainder, partial(_relative, adjoint, size))
        for step in march(panel, p, begin, end, rtol=rtol, rtol_dense=rtol, first=h):
            rows += [hermite(part, step.h, *step.ends).ravel() for part in (1 / 3, 2 / 3)]
            rows.append(step.u1.ravel())
            ends.append(step.s + step.h)
            tell(min(1.0, ends[-1] / T))
        p, h = step.u1, step.h
        for name in ("steps", "rejected"):
            counts[name] += panel.counts[name]
    return *in_time(rows, ends, T, "P3"), counts
