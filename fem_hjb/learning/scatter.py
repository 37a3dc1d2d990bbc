"""Local matrices of the cells of a space to one sparse matrix."""

from abc import ABC, abstractmethod
from typing import Self, final

import numpy as np
import scipy.sparse as sp

from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray

_LOCAL_DOUBLES = 1 << 24  # local matrices formed at once


def at_once(doubles: int) -> int:
    """How many local objects of so many doubles may be formed at once."""
    return max(1, _LOCAL_DOUBLES // doubles)


@final
class Scatter:
    """Local matrices (n_cells, L, L) of a space to one sparse matrix; the pattern is found once."""

    def __init__(self, space: Space) -> None:
        dofs, n = space.cell_dofs(), space.n_dofs
        keys = (dofs[:, :, None] * n + dofs[:, None, :]).ravel()
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        first = np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]])
        place = np.empty(keys.size, dtype=np.int64)
        place[order] = np.cumsum(first) - 1
        unique = sorted_keys[first]
        self._place = place.reshape(len(dofs), -1)
        self._columns = (unique % n).astype(np.int32)
        self._starts = np.searchsorted(unique // n, np.arange(n + 1)).astype(np.int32)
        self._shape = (n, n)

    def no_data(self) -> FloatArray:
        """The data of the matrix 0."""
        return np.zeros(self._columns.size)

    def data(self, local: FloatArray, cells: slice = slice(None)) -> FloatArray:
        """Local matrices (n, L, L) of some cells as data of a matrix; those of other cells may be added."""
        data = np.bincount(self._place[cells].ravel(), local.ravel(), minlength=self._columns.size)
        return data.astype(np.float64, copy=False)

    def matrix(self, data: FloatArray) -> sp.csr_matrix:
        """The matrix of these data, without stored zeros."""
        result = sp.csr_matrix((data, self._columns.copy(), self._starts.copy()), shape=self._shape)
        result.eliminate_zeros()
        return result


class GramSums(ABC):
    """Sums over samples for several bilinear forms and one linear form, on a space.

    Sums of the same `Integrands` over other samples on one space add up (`+`). They hold arrays only, so that workers
    can send them.
    """

    @abstractmethod
    def __add__(self, other: Self) -> Self:
        """MeasureError unless both are of the same structure: the same coefficients vary, the others are the same."""

    @abstractmethod
    def matrices(self, scatter: Scatter) -> list[sp.csr_matrix]:
        """One (n_dofs, n_dofs) matrix per form: rows are tests, columns trials."""

    @abstractmethod
    def load(self) -> FloatArray:
        """(n_dofs,)."""
