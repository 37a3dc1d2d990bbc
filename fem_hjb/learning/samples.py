"""Samples in the cells of a space: where they are, operators there, and products of sorted samples in dense blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from fem_hjb.learning.forms import Integrands, Operator
from fem_hjb.spaces.line import row_products
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, IntArray

_BLOCK = 64  # samples per dense product
_CHUNK_DOUBLES = 1 << 21  # 16 MB of rows at once


@final
@dataclass(frozen=True, eq=False)
class Located:
    """Points in a space: space-time cell (-1 outside), reference coordinates tau (m,) in time and xi (m, d)."""

    cells: IntArray
    tau: FloatArray
    xi: FloatArray

    @classmethod
    def of(cls, space: Space, t: FloatArray, x: FloatArray) -> "Located":
        """The points (t, x) in the cells of a space."""
        cells, (tau, xi) = space.locate(t, x)
        return cls(cells, tau, xi)

    def take(self, rows: IntArray) -> "Located":
        """Some of the points."""
        return Located(self.cells[rows], self.tau[rows], self.xi[rows])


def operator_rows(space: Space, at: Located, operator: Operator) -> FloatArray:
    """The operator applied to all local functions at points (m,), shape (m, lt * lx)."""
    in_time, in_space = np.divmod(at.cells, space.spatial.n_cells)
    psi = space.time.tabulate(in_time, at.tau, 1)
    result = np.zeros((at.cells.size, space.local_size))
    for order, value, gradient, hessian in (
        (0, operator.value, operator.gradient, operator.hessian),
        (1, operator.time, operator.mixed, None),
    ):
        if not (np.ndim(value) == 0 and value == 0.0) or gradient is not None or hessian is not None:
            rows = space.spatial.operator_rows(in_space, at.xi, value, gradient, hessian)
            result += row_products([psi[:, order], rows])
    return result


def applied(space: Space, c: FloatArray, at: Located, operator: Operator, inside: IntArray) -> FloatArray:
    """The operator applied to a function, given by its coefficients (N,), at those of the points, in pieces."""
    found = []
    for rows in chunks(inside, 2 * space.local_size + space.spatial.local_size * (1 + space.dim + space.dim**2)):
        here = at.take(rows)
        (part,) = Integrands.of([], [(operator, np.zeros(at.cells.size))]).take(rows).operators
        found.append((operator_rows(space, here, part) * c[space.cell_dofs(here.cells)]).sum(axis=1))
    return np.concatenate(found) if found else np.zeros(0)


def runs(keys: IntArray | FloatArray) -> tuple[IntArray, IntArray]:
    """Where equal neighbours start in a sorted array, and how long the runs are."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return starts, np.diff(starts, append=keys.size)


def run_products(counts: IntArray, left: FloatArray, right: FloatArray) -> FloatArray:
    """sum_i left[i]' right[i] over each of consecutive runs of rows, shape (runs, L, R).

    counts (runs,) are the lengths of the runs, all positive; left (m, L), right (m, R) with m = sum of counts.
    Runs are padded with zeros to whole blocks, so that all the work is one batch of equal dense products.
    """
    if counts.size == 1:
        return (left.T @ right)[None]
    block = int(np.clip(2 ** np.round(np.log2(counts.mean())), 1, _BLOCK))
    blocks = -(-counts // block)
    first = np.cumsum(blocks) - blocks
    total = int(blocks.sum())
    row = np.arange(len(left)) + np.repeat(first * block - (np.cumsum(counts) - counts), counts)
    padded_left = np.zeros((total * block, left.shape[1]))
    padded_right = np.zeros((total * block, right.shape[1]))
    padded_left[row], padded_right[row] = left, right
    products = np.matmul(
        padded_left.reshape(total, block, -1).transpose(0, 2, 1), padded_right.reshape(total, block, -1)
    )
    return np.asarray(np.add.reduceat(products, first, axis=0))


def sorted_order(keys: IntArray, bound: int) -> IntArray:
    """The stable order that sorts keys in [0, bound)."""
    return np.argsort(keys.astype(np.uint16) if bound <= 1 << 16 else keys, kind="stable").astype(np.int64)


def chunks(order: IntArray, width: int) -> Iterator[IntArray]:
    """Consecutive pieces of `order`, of a bounded number of rows of `width` doubles."""
    size = max(_BLOCK, _CHUNK_DOUBLES // width)
    for start in range(0, order.size, size):
        yield order[start : start + size]
