"""Matrices next to rows that are held: [[H, R'], [R, -D]], where these are small by sparse LU, else without the rows.

Unknowns at places are dissected, and the rows eliminated: K = H + R' (D + s)^{-1} R with a small s couples no more of
them than H where rows are those of cells. Steps with K are those of the method of multipliers (M. J. D. Powell, in:
R. Fletcher, ed., Optimization, Academic Press 1969, 283), which take out what s has changed: one brings about as many
digits as s has.
"""

from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse.linalg import splu

from fem_hjb.learning.dissection import Dissection, dissect
from fem_hjb.learning.factors import Factors, fits
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

FEW = 1000  # unknowns up to which sparse LU is as fast
_SOFT = 1e-8  # s, in units of 1 / mobility
_REGULAR = 1e-10  # the same for a sparse LU, so that dependent rows do not make the matrix singular
_REFINEMENTS = 20
_CHANGED = 150  # unknowns held or released up to which factors are used again
_SOLVED = 1e-12
_DENSER = 4  # times as many couplings as the matrix has: rows that make more stay rows
_DIRECT = 10_000_000  # non-zeros up to which, should fronts fail, sparse LU is tried


def dissection_of(matrix: Any, rows: Any, places: FloatArray | None) -> Dissection | None:
    """A dissection of H + R' R; None where a sparse LU is as fast, rows couple too much, or it does not fit."""
    if places is None or matrix.shape[0] <= FEW:
        return None
    if float((np.diff(rows.indptr).astype(np.float64) ** 2).sum()) > _DENSER * matrix.nnz:
        return None
    pattern = abs(rows)
    found = dissect(abs(matrix) + pattern.T @ pattern, places)
    return found if fits(found) else None


def _relative(gap: FloatArray, size: FloatArray) -> float:
    return float(np.abs(gap).max(initial=0.0) / (np.abs(size).max(initial=0.0) or 1.0))


@final
class Bordered:
    """Solves H c + R' lambda = q, R c - D lambda = b; RuntimeError where H, or it with the rows, is singular.

    rows (m, N).  corner (m,) : D >= 0.  mobility (m,) : of which size R H^{-1} R' is.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        rows: sp.csr_matrix,
        corner: FloatArray,
        mobility: FloatArray,
        dissection: Dissection | None,
        symmetric: bool,
    ) -> None:
        self._matrix, self._rows, self._corner = matrix, rows, corner
        self._by_fronts = dissection is not None
        self._soft = corner + (_SOFT if self._by_fronts else _REGULAR) * mobility
        self._factors: Any
        if dissection is not None:
            stiff = matrix + rows.T @ sp.diags(1.0 / self._soft) @ rows if rows.shape[0] else matrix
            try:
                self._factors = Factors(stiff.tocsc(), 0.01, _DIRECT, dissection, symmetric)
            except ConvergenceError as cause:
                raise RuntimeError(str(cause)) from cause
        elif rows.shape[0]:
            self._factors = splu(sp.bmat([[matrix, rows.T], [rows, sp.diags(-self._soft)]], format="csc"))
        else:
            self._factors = splu(matrix.tocsc())

    def solve(self, load: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray]:
        """c (N,) and lambda (m,), refined against the system without softening, while that helps."""
        c, reaction, last = np.zeros(load.size), np.zeros(target.size), np.inf
        for _ in range(_REFINEMENTS):
            gap = load - self._matrix @ c - self._rows.T @ reaction
            missing = target - self._rows @ c + self._corner * reaction
            error = max(_relative(gap, load), _relative(missing, target))
            if not error < last / 2:
                break
            last = error
            change, pressed = self._step(gap, missing)
            c, reaction = c + change, reaction + pressed
        return c, reaction

    def _step(self, gap: FloatArray, missing: FloatArray) -> tuple[FloatArray, FloatArray]:
        if not self._by_fronts:
            solution = self._factors.solve(np.concatenate([gap, missing]))
            return solution[: gap.size], solution[gap.size :]
        change = self._factors.solve(gap + self._rows.T @ (missing / self._soft))
        return change, (self._rows @ change - missing) / self._soft


@final
class Restricted:
    """Solves with parts of a matrix, unknowns being held or free.

    Factors are kept: while few unknowns have changed sides since they were made, these border the system (P. E. Gill,
    W. Murray, M. A. Saunders, M. H. Wright, SIAM J. Sci. Stat. Comput. 11 (1990) 591).
    """

    def __init__(self, matrix: sp.csr_matrix, dissection: Dissection, symmetric: bool) -> None:
        self._matrix, self._dissection, self._symmetric = matrix, dissection, symmetric
        self._line = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        self._last: tuple[NDArray[np.bool_], Factors] | None = None

    def solve(self, free: NDArray[np.bool_], load: FloatArray) -> FloatArray:
        """c (N,), 0 where it is not free, with M c = load where it is; RuntimeError if that has no solution."""
        if self._last is not None and int((self._last[0] != free).sum()) <= _CHANGED:
            c = self._changed(*self._last, free, load)
            gap = np.where(free, self._matrix @ c - load, 0.0)
            if np.linalg.norm(gap) <= _SOLVED * np.linalg.norm(load):
                return c
        line, across = self._line, self._matrix.indices
        data = np.where((free[line] & free[across]) | (line == across), self._matrix.data, 0.0)
        part = sp.csr_matrix((data, across, self._matrix.indptr), shape=self._matrix.shape)
        try:
            factors = Factors(part.tocsc(), 0.01, _DIRECT, self._dissection, self._symmetric)
            self._last = free.copy(), factors
            return np.where(free, factors.solve(np.where(free, load, 0.0)), 0.0)
        except ConvergenceError as cause:
            raise RuntimeError(str(cause)) from cause

    def _changed(
        self, before: NDArray[np.bool_], factors: Factors, free: NDArray[np.bool_], load: FloatArray
    ) -> FloatArray:
        """The same from factors of another part: with a force on what is held now, a column for what is released."""
        held, released = np.flatnonzero(before & ~free), np.flatnonzero(free & ~before)
        unit = np.zeros((load.size, held.size))
        unit[held, np.arange(held.size)] = 1.0
        columns = np.where(before[:, None], self._matrix[:, released].toarray(), 0.0)
        rows = self._matrix[released].tocsr()
        moved = factors.once(np.hstack([unit, columns]))
        corner = np.zeros((moved.shape[1],) * 2)
        corner[held.size :, held.size :] = self._matrix[released][:, released].toarray()
        complement = lu_factor(corner - np.vstack([moved[held], rows @ moved]))
        c = np.zeros(load.size)
        for _ in range(2):  # the second time, what is left of the first
            gap = np.where(free, load - self._matrix @ c, 0.0)
            change = factors.once(np.where(before, gap, 0.0))
            forces = lu_solve(complement, -np.concatenate([change[held], rows @ change - gap[released]]))
            change = change - moved @ forces
            change[released] = forces[held.size :]
            c = np.where(free, c + change, 0.0)
        return np.asarray(c)
