"""Sparse factors that fall back on more robust ones: LU, and GMRES on incomplete LU where LU is too large."""

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, SuperLU, gmres, spilu, splu

from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

ADVICE = "take more samples or fewer cells, shrink the box to where the samples are, or raise smoothing"

_DROP, _FILL = 1e-3, 6.0  # of the incomplete factors
BACKWARD = 1e-12  # backward error above which factors are not good enough
_REFINED = 1e-2  # of the accuracy asked for: above this, solutions by LU factors are refined once
_KRYLOV, _CYCLES = 50, 3


class Factors:
    """Solves with a sparse matrix and its transpose.

    Small ones are factorised with pivots on the diagonal: with partial pivoting the fill of a form that couples 19602
    unknowns in time and one dimension of space is 26 times as large (10.8 s for 0.12 s). Large ones are solved by GMRES
    on incomplete factors: 19652 unknowns in time and two dimensions take 1.4 s, factors 11 s. Whatever does not solve
    to a small backward error makes way for the next, more robust kind; pivoted factors come last.
    """

    def __init__(self, matrix: sp.csc_matrix, pivot: float, limit: int) -> None:
        self.matrix = matrix
        self.iterations = 0
        self._pivot = pivot
        self._size = float(abs(matrix).sum(axis=0).max())
        self._kinds = ["incomplete", "diagonal", "pivoted"][matrix.nnz <= limit :]
        self._lu = self._next()

    def _next(self) -> SuperLU:
        on_diagonal = {"diag_pivot_thresh": self._pivot, "options": {"SymmetricMode": True}}
        order = "MMD_AT_PLUS_A"
        while True:
            self.kind = self._kinds.pop(0)
            try:
                if self.kind == "incomplete":
                    return spilu(self.matrix, drop_tol=_DROP, fill_factor=_FILL, permc_spec=order, **on_diagonal)
                return splu(self.matrix, permc_spec=order, **(on_diagonal if self.kind == "diagonal" else {}))
            except (RuntimeError, MemoryError) as cause:
                if not self._kinds:
                    raise ConvergenceError(
                        f"the system of {self.matrix.shape[0]} unknowns is singular ({cause}); {ADVICE}"
                    ) from cause

    def solve(self, rhs: FloatArray, *, transposed: bool = False, rtol: float = BACKWARD) -> FloatArray:
        """A^{-1} rhs or A^{-T} rhs for one right-hand side; iterations stop at the relative residual rtol."""
        matrix = self.matrix.T if transposed else self.matrix
        while True:
            x = self._iterate(matrix, rhs, transposed, rtol)
            if self._error(matrix, x, rhs) <= max(rtol, BACKWARD) or not self._kinds:
                return x
            self._lu = self._next()

    def _iterate(self, matrix: sp.spmatrix, rhs: FloatArray, transposed: bool, rtol: float) -> FloatArray:
        def apply(b: FloatArray) -> FloatArray:
            return np.asarray(self._lu.solve(b, trans="T" if transposed else "N"))

        if self.kind == "incomplete":
            norms: list[float] = []
            rough = LinearOperator(matrix.shape, matvec=apply, dtype=np.float64)
            x, _ = gmres(
                matrix,
                rhs,
                rtol=rtol,
                restart=_KRYLOV,
                maxiter=_CYCLES,
                M=rough,
                callback=norms.append,
                callback_type="pr_norm",
            )
            self.iterations += len(norms)
            return np.asarray(x)
        x = apply(rhs)
        refine = _REFINED * rtol < self._error(matrix, x, rhs) < np.inf
        return x + apply(rhs - matrix @ x) if refine else x

    def _error(self, matrix: sp.spmatrix, x: FloatArray, rhs: FloatArray) -> float:
        """Backward error |A x - b| / (|A| |x| + |b|)."""
        if not np.isfinite(x).all():
            return np.inf
        size = self._size * float(np.linalg.norm(x)) + float(np.linalg.norm(rhs))
        return float(np.linalg.norm(matrix @ x - rhs)) / size if size else 0.0

    @property
    def has_positive_pivots(self) -> bool:
        """Whether the factors show a symmetric matrix to be positive definite; incomplete ones cannot tell."""
        if self.kind != "diagonal":
            return self.kind == "incomplete"
        return bool((self._lu.perm_r == self._lu.perm_c).all() and (self._lu.U.diagonal() > 0).all())
