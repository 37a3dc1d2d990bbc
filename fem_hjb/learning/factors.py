"""Sparse factors that fall back on more robust ones: fronts, GMRES on incomplete LU where these are too large, LU."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, gmres, spilu, splu

from fem_hjb.learning.dissection import Dissection
from fem_hjb.learning.fronts import FrontFactors
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.memory import available_memory

ADVICE = "take more samples or fewer cells, shrink the box to where the samples are, or raise smoothing"

_DROP, _FILL = 1e-3, 6.0  # of the incomplete factors
BACKWARD = 1e-12  # backward error above which factors are not good enough
_REFINED = 1e-2  # of the accuracy asked for: above this, solutions by LU factors are refined once
_KRYLOV, _CYCLES = 50, 3
_SHARE = 0.2  # of the machine's memory: what fronts may take
_ROOM = 4 * 10**9  # bytes they may take where it is not known


class Factors:
    """Solves with a sparse matrix and its transpose.

    With a dissection, by fronts: 19652 unknowns in time and two dimensions take 1.2 s, a sparse LU 11 s; 33282 in time
    and one dimension 0.2 s and 34 s. Without one, or where fronts do not fit into memory: small ones are factorised
    with pivots on the diagonal, as partial pivoting multiplies the fill, large ones are solved by GMRES on incomplete
    factors. Whatever does not solve to a small backward error makes way for the next, more robust kind; pivoted factors
    come last. `kind` is the one in use: "fronts", "incomplete", "diagonal" or "pivoted".
    """

    def __init__(
        self,
        matrix: sp.csc_matrix,
        pivot: float,
        limit: int,
        dissection: Dissection | None = None,
        symmetric: bool = False,
    ) -> None:
        self.matrix = matrix
        self.iterations = 0
        self._pivot, self._symmetric, self._dissection = pivot, symmetric, dissection
        self._size = float(abs(matrix).sum(axis=0).max())
        self._kinds = ["incomplete", "diagonal", "pivoted"][matrix.nnz <= limit :]
        if dissection is not None and fits(dissection):
            self._kinds.insert(0, "fronts")
        self._lu = self._next()

    def _next(self) -> Any:
        on_diagonal = {"diag_pivot_thresh": self._pivot, "options": {"SymmetricMode": True}}
        order = "MMD_AT_PLUS_A"
        while True:
            self.kind = self._kinds.pop(0)
            try:
                if self.kind == "fronts" and self._dissection is not None:
                    return FrontFactors(self.matrix, self._dissection, self._symmetric)
                if self.kind == "incomplete":
                    return spilu(self.matrix, drop_tol=_DROP, fill_factor=_FILL, permc_spec=order, **on_diagonal)
                return splu(self.matrix, permc_spec=order, **(on_diagonal if self.kind == "diagonal" else {}))
            except (RuntimeError, MemoryError) as cause:
                if not self._kinds:
                    raise ConvergenceError(
                        f"the system of {self.matrix.shape[0]} unknowns is singular ({cause}); {ADVICE}"
                    ) from cause

    def solve(self, rhs: FloatArray, *, transposed: bool = False, rtol: float = BACKWARD) -> FloatArray:
        """A^{-1} rhs or A^{-T} rhs, rhs (N,) or (N, m); iterations stop at the relative residual rtol."""
        matrix = self.matrix.T if transposed else self.matrix
        while True:
            x, error = self._iterate(matrix, rhs, transposed, rtol)
            if error <= max(rtol, BACKWARD) or not self._kinds:
                return x
            self._lu = self._next()

    def once(self, rhs: FloatArray) -> FloatArray:
        """A^{-1} rhs for rhs (N,) or (N, m) as the factors give it: nobody looks at what it leaves."""
        return np.asarray(self._lu.solve(rhs))

    def _iterate(self, matrix: sp.spmatrix, rhs: FloatArray, transposed: bool, rtol: float) -> tuple[FloatArray, float]:
        """A solution and its backward error."""

        def apply(b: FloatArray) -> FloatArray:
            return np.asarray(self._lu.solve(b, trans="T" if transposed else "N"))

        if self.kind == "incomplete":
            rough = LinearOperator(matrix.shape, matvec=apply, dtype=np.float64)
            columns = rhs.reshape(len(rhs), -1).T
            x = np.stack([self._gmres(matrix, b, rough, rtol) for b in columns], axis=1).reshape(rhs.shape)
            return x, self._error(matrix, x, rhs)
        x = apply(rhs)
        error = self._error(matrix, x, rhs)
        if _REFINED * rtol < error < np.inf:
            x = x + apply(rhs - matrix @ x)
            error = self._error(matrix, x, rhs)
        return x, error

    def _gmres(self, matrix: sp.spmatrix, rhs: FloatArray, rough: LinearOperator, rtol: float) -> FloatArray:
        norms: list[float] = []
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

    def _error(self, matrix: sp.spmatrix, x: FloatArray, rhs: FloatArray) -> float:
        """The largest backward error |A x - b| / (|A| |x| + |b|)."""
        if not np.isfinite(x).all():
            return np.inf
        size = self._size * np.linalg.norm(x, axis=0) + np.linalg.norm(rhs, axis=0)
        error = np.linalg.norm(matrix @ x - rhs, axis=0)
        return float(np.max(error / np.maximum(size, np.finfo(float).tiny)))

    @property
    def has_positive_pivots(self) -> bool:
        """Whether the factors show a symmetric matrix to be positive definite; incomplete ones cannot tell."""
        if self.kind != "diagonal":
            return self.kind == "incomplete" or (self.kind == "fronts" and self._symmetric)
        return bool((self._lu.perm_r == self._lu.perm_c).all() and (self._lu.U.diagonal() > 0).all())


def fits(dissection: Dissection) -> bool:
    """Whether factors by fronts leave the memory of this machine to others too."""
    there = available_memory()
    return 8 * dissection.entries <= (_ROOM if there is None else _SHARE * there)
