"""Factors of sparse matrices by fronts: I. S. Duff, J. K. Reid, ACM Trans. Math. Softw. 9 (1983) 302.

The unknowns of a front are eliminated by dense algebra: that is where the time goes, and it runs at the speed of matrix
products. Rows are exchanged within a front only, so that a matrix without a positive definite symmetric part may not
be solved well: whoever uses them looks at the residual.
"""

from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg.blas import dgemm, dsyrk, dtrsm
from scipy.linalg.lapack import dgetrf, dlaswp, dpotrf

from fem_hjb.learning.dissection import Dissection, Front
from fem_hjb.support.checks import FloatArray, IntArray

_Factors = tuple[FloatArray, FloatArray, FloatArray, IntArray]
"""Of a front: of its own unknowns, the rows under them, the columns right of them, and the order of its rows."""


@final
class FrontFactors:
    """L U of a matrix, or L L' of one that is `symmetric` positive definite; RuntimeError where there are none."""

    def __init__(self, matrix: Any, dissection: Dissection, symmetric: bool) -> None:
        self._order, self._fronts, self._symmetric = dissection.order, dissection.fronts, symmetric
        rows = sp.csr_matrix(matrix)[dissection.order][:, dissection.order]
        rows.eliminate_zeros()  # which the pattern that was dissected need not have
        columns = rows if symmetric else rows.T.tocsr()
        position = np.zeros(rows.shape[0], dtype=np.int64)
        waiting: dict[int, FloatArray] = {}
        self._blocks: list[_Factors] = []
        for number, front in enumerate(dissection.fronts):
            k, b = front.shape
            position[front.first : front.last] = np.arange(k)
            position[front.border] = np.arange(k, k + b)
            blocks = _Blocks(k, b, symmetric)
            _scatter(columns, front, position, blocks.square.T, blocks.under)
            if not symmetric:
                _scatter(rows, front, position, None, blocks.right.T)
            for child in front.children:
                blocks.extend(waiting.pop(child), position[dissection.fronts[child].border])
            factors, waiting[number] = blocks.eliminated()
            self._blocks.append(factors)

    def solve(self, rhs: FloatArray, trans: str = "N") -> FloatArray:
        """A^{-1} rhs, or with trans "T" A^{-T} rhs, for one (N,) or several (N, m)."""
        x = np.array(rhs[self._order].reshape(len(rhs), -1), order="F")
        transposed = trans == "T" and not self._symmetric
        for front, (square, under, right, order) in zip(self._fronts, self._blocks, strict=True):
            own = x[front.first : front.last]
            if self._symmetric:
                own = dtrsm(1.0, square, own, lower=1)
            elif transposed:
                own = dtrsm(1.0, square, own, trans_a=1)
            else:
                own = dtrsm(1.0, square, own[order], lower=1, diag=1)
            x[front.first : front.last] = own
            if front.border.size:
                x[front.border] -= (right.T if transposed else under) @ own
        for front, (square, under, right, order) in zip(reversed(self._fronts), reversed(self._blocks), strict=True):
            own = x[front.first : front.last]
            if front.border.size:
                own = own - (under.T if transposed else right) @ x[front.border]
            if self._symmetric:
                own = dtrsm(1.0, square, own, lower=1, trans_a=1)
            elif transposed:
                own = dtrsm(1.0, square, own, lower=1, trans_a=1, diag=1)[np.argsort(order)]
            else:
                own = dtrsm(1.0, square, own)
            x[front.first : front.last] = own
        result = np.empty_like(x)
        result[self._order] = x
        return np.asarray(result.reshape(rhs.shape))


@final
class _Blocks:
    """A front of k unknowns with a border of b: square (k, k), under (b, k), right (k, b), rest (b, b).

    If symmetric, right is not stored, and only what is on or below the diagonal counts.
    """

    def __init__(self, k: int, b: int, symmetric: bool) -> None:
        self.symmetric = symmetric
        self.square, self.under = np.zeros((k, k), order="F"), np.zeros((b, k), order="F")
        self.right = self.under.T if symmetric else np.zeros((k, b), order="F")
        self.rest = np.zeros((b, b), order="F")

    def extend(self, update: FloatArray, spots: IntArray) -> None:
        """Add what a child has left, whose border is at these spots, which increase."""
        k = len(self.square)
        starts = np.concatenate([[0], 1 + np.flatnonzero((np.diff(spots) > 1) | (spots[1:] == k))])
        runs = list(zip(starts.tolist(), [*starts[1:].tolist(), spots.size], spots[starts].tolist(), strict=True))
        for first, last, at in runs:
            across = at if at < k else at - k
            for top, bottom, to in runs:
                if self.symmetric and to < at:
                    continue
                here = (self.square if at < k else self.right) if to < k else (self.under if at < k else self.rest)
                down = to if to < k else to - k
                here[down : down + bottom - top, across : across + last - first] += update[top:bottom, first:last]

    def eliminated(self) -> tuple[_Factors, FloatArray]:
        """The factors, and what is left for the rest."""
        if self.symmetric:
            square, failed = dpotrf(self.square, lower=1, overwrite_a=1, clean=0)
        else:
            square, swaps, failed = dgetrf(self.square, overwrite_a=1)
        if failed:
            raise RuntimeError("a front is singular, or not positive definite")
        under, right, rest = self.under, self.right, self.rest
        order = np.empty(0, dtype=np.int64) if self.symmetric else _order(swaps)
        if not rest.size:
            return (square, under, right, order), rest
        if self.symmetric:
            under = dtrsm(1.0, square, under, side=1, lower=1, trans_a=1, overwrite_b=1)
            rest = dsyrk(-1.0, under, 1.0, rest, lower=1, overwrite_c=1)
            return (square, under, under.T, order), rest
        under = dtrsm(1.0, square, under, side=1, overwrite_b=1)
        right = dtrsm(1.0, square, dlaswp(right, swaps, overwrite_a=1), lower=1, diag=1, overwrite_b=1)
        rest = dgemm(-1.0, under, right, 1.0, rest, overwrite_c=1)
        return (square, under, right, order), rest


def _scatter(
    lines: sp.csr_matrix, front: Front, position: IntArray, square: FloatArray | None, border: FloatArray
) -> None:
    """The entries of a front's lines: those among its unknowns (the transposed square), and with its border (b, k)."""
    k = front.shape[0]
    entries = slice(lines.indptr[front.first], lines.indptr[front.last])
    line = np.repeat(np.arange(k), np.diff(lines.indptr[front.first : front.last + 1]))
    other, data = lines.indices[entries], lines.data[entries]
    later = other >= front.last
    spots = position[other[later]] - k
    if spots.size and not (
        spots.min() >= 0 and spots.max() < len(border) and np.array_equal(front.border[spots], other[later])
    ):
        raise RuntimeError("the matrix couples unknowns that the dissection has apart")
    border[spots, line[later]] = data[later]
    if square is not None:
        own = (other >= front.first) & ~later
        square[line[own], position[other[own]]] = data[own]


def _order(swaps: NDArray[Any]) -> IntArray:
    """The order of rows after LAPACK's exchanges."""
    order = dlaswp(np.arange(swaps.size, dtype=np.float64)[:, None], swaps)
    return np.asarray(order[:, 0], dtype=np.int64)
