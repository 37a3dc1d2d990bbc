"""Polynomials through points on a line, and products of matrices along the axes of a tensor grid."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import final

import numpy as np

from fem_hjb.support.checks import FloatArray
from fem_hjb.support.threads import for_each

_ROWS = {1: 32, 2: 16, 3: 16}  # of a block, by the axes of the arrays that it is for
_FEWEST = {1: 320, 2: 48, 3: 30}  # of a matrix that is worth more than one block: small products take their calls
_WORTH = {1: 0.6, 2: 0.6, 3: 0.9}  # of the dense work, below which blocks are taken
_NEGLIGIBLE = {8: 1e-17, 4: 1e-10}  # of the largest entry, by the bytes of one
_PART, _MOST_PARTS = 1 << 15, 16  # numbers at least in a part of an array that is worked on in parts
_SHARED = 1 << 19  # numbers of an array below which sums and copies are done before another thread has woken up


def lagrange_weights(nodes: FloatArray, at: float) -> FloatArray:
    """Values at `at` of the Lagrange polynomials of these nodes."""
    gaps = nodes[:, None] - nodes[None, :] + np.eye(nodes.size)
    return np.asarray(np.prod((at - nodes[None, :] + np.eye(nodes.size) * (1 - at + nodes)) / gaps, axis=1))


def barycentric_rows(nodes: FloatArray, at: FloatArray) -> FloatArray:
    """Values (k, n) at points (k,) of the Lagrange polynomials of nodes (n,), stable for Chebyshev ones."""
    if nodes.size == 1:
        return np.ones((at.size, 1))
    scaled = 4.0 * (nodes[:, None] - nodes) / np.ptp(nodes) + np.eye(nodes.size)
    weights = 1.0 / scaled.prod(axis=1)
    gaps = at[:, None] - nodes
    hit = gaps == 0.0
    quotients = weights / np.where(hit, 1.0, gaps)
    on_node = hit.any(axis=1)
    quotients[on_node] = hit[on_node]
    return np.asarray(quotients / quotients.sum(axis=1, keepdims=True))


def differentiation_matrix(nodes: FloatArray) -> FloatArray:
    """D with (D g)_i = p'(nodes_i) for the polynomial p through g at the nodes."""
    gaps = nodes[:, None] - nodes[None, :] + np.eye(nodes.size)
    weights = gaps.prod(axis=1)
    matrix = weights[:, None] / weights[None, :] / gaps
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, -matrix.sum(axis=1))
    return np.asarray(matrix)


def tensor_points(arrays: Sequence[FloatArray]) -> FloatArray:
    """All combinations of one number from each array, (prod n_k, d), the first axis slowest."""
    d = len(arrays)
    result = np.empty((*map(len, arrays), d))
    for k, array in enumerate(arrays):
        result[..., k] = np.reshape(array, [-1 if axis == k else 1 for axis in range(d)])
    return result.reshape(-1, d)


@final
class BlockMatrix:
    """A matrix (m, n) as dense blocks of rows, each over the columns in which it is not negligible.

    Made for 1-D operators on elements, which are banded, and for their exponentials over short times, which nearly are.
    """

    def __init__(self, matrix: FloatArray, rows: int = 16) -> None:
        self.shape, self.dtype = matrix.shape, matrix.dtype
        large = np.abs(matrix) > _NEGLIGIBLE[matrix.itemsize] * np.abs(matrix).max()
        ends = np.linspace(0, len(matrix), max(round(len(matrix) / rows), 1) + 1).astype(np.int64)
        self.blocks: list[tuple[slice, slice, FloatArray, FloatArray]] = []
        for first, last in pairwise(ends.tolist()):
            used = np.flatnonzero(large[first:last].any(axis=0))
            columns = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)
            block = np.ascontiguousarray(matrix[first:last, columns])
            self.blocks.append((slice(first, last), columns, block, np.ascontiguousarray(block.T)))

    @property
    def work(self) -> int:
        """Entries that are multiplied with."""
        return sum(block.size for _, _, block, _ in self.blocks)

    def columns_into(self, u: FloatArray, out: FloatArray) -> None:
        """out (..., m, k) = matrix u, for u (..., n, k)."""
        for rows, columns, block, _ in self.blocks:
            np.matmul(block, u[..., columns, :], out=out[..., rows, :])

    def rows_into(self, u: FloatArray, out: FloatArray) -> None:
        """out (k, m) = u matrix', for u (k, n)."""
        for rows, columns, _, transposed in self.blocks:
            np.matmul(u[:, columns], transposed, out=out[:, rows])


AxisMatrix = FloatArray | BlockMatrix


def in_blocks(matrix: FloatArray, dim: int = 2) -> AxisMatrix:
    """The matrix as a `BlockMatrix` where that saves time.

    dim : the number of axes of the arrays that it is for; single vectors take no more of a matrix in the cache.
    """
    if len(matrix) < _FEWEST[dim]:
        return matrix
    blocks = BlockMatrix(matrix, _ROWS[dim])
    return blocks if blocks.work < _WORTH[dim] * matrix.size else matrix


def apply_axis(matrix: AxisMatrix, u: FloatArray, axis: int) -> FloatArray:
    """`matrix` (m, n_axis) applied along one axis of u (n_1, ..., n_d), by one GEMM or a batch of them.

    Large arrays in parts, which threads may share out.
    """
    m, n = matrix.shape
    kind = u.dtype if u.dtype == matrix.dtype else np.result_type(matrix.dtype, u.dtype)
    if u.ndim == 1:
        result = np.empty(m, kind)
        _rows_into(matrix, u[None], result[None])
        return result
    lead, trail = math.prod(u.shape[:axis]), math.prod(u.shape[axis + 1 :])
    result = np.empty((*u.shape[:axis], m, *u.shape[axis + 1 :]), kind)
    flat, out = u.reshape(lead, n, trail), result.reshape(lead, m, trail)
    if u.size < 2 * _PART:  # one part: what it costs to share out is saved
        if trail == 1:
            _rows_into(matrix, flat[:, :, 0], out[:, :, 0])
        else:
            _columns_into(matrix, *((flat[0], out[0]) if lead == 1 else (flat, out)))
    elif trail == 1:
        for_each(parts_of(lead, u.size), lambda part: _rows_into(matrix, flat[part, :, 0], out[part, :, 0]))
    elif lead == 1:
        for_each(parts_of(trail, u.size), lambda part: _columns_into(matrix, flat[0, :, part], out[0, :, part]))
    else:
        for_each(parts_of(lead, u.size), lambda part: _columns_into(matrix, flat[part], out[part]))
    return result


def _columns_into(matrix: AxisMatrix, u: FloatArray, out: FloatArray) -> None:
    if isinstance(matrix, BlockMatrix):
        matrix.columns_into(u, out)
    else:
        np.matmul(matrix, u, out=out)


def _rows_into(matrix: AxisMatrix, u: FloatArray, out: FloatArray) -> None:
    if isinstance(matrix, BlockMatrix):
        matrix.rows_into(u, out)
    else:
        np.matmul(u, matrix.T, out=out)


def parts_of(length: int, size: int) -> list[slice]:
    """An axis of this length of arrays of this size in parts that stay in the cache, the same for all such arrays."""
    if size < 2 * _PART:
        return [slice(0, length)]
    count = min((size // _PART + 1) // 2 * 2, _MOST_PARTS, length)  # even: two threads do as much
    return [slice(k * length // count, (k + 1) * length // count) for k in range(count)]


def _each(parts: Sequence[slice], work: Callable[[slice], None], size: int) -> None:
    """Work on parts of arrays of this size that takes a pass over them, shared out where they are large."""
    if size >= _SHARED:
        for_each(parts, work)
        return
    for part in parts:
        work(part)


def copy_to(target: FloatArray, source: FloatArray) -> None:
    """target[:] = source, in parts."""

    def copy(part: slice) -> None:
        target[part] = source[part]

    _each(parts_of(len(source), source.size), copy, source.size)


def combined(*terms: tuple[float, FloatArray]) -> FloatArray:
    """The sum of multiples of arrays of one shape."""
    (factor, first), *others = terms
    if first.size < 2 * _PART:  # one part: what it costs to share out is saved
        result = first * factor
        for factor, array in others:
            result += array if factor == 1.0 else factor * array
        return result
    result = np.empty(first.shape, np.result_type(*(array for _, array in terms)))
    flat, out = [(factor, array.reshape(-1)) for factor, array in terms], result.reshape(-1)

    def add(part: slice) -> None:
        (factor, array), *others = flat
        np.multiply(array[part], factor, out=out[part])
        for factor, array in others:
            out[part] += factor * array[part]

    _each(parts_of(first.size, first.size), add, first.size)
    return result


def apply_all(matrices: Sequence[AxisMatrix], u: FloatArray) -> FloatArray:
    """The tensor product of one matrix for each axis, applied to u (n_1, ..., n_d)."""
    for axis, matrix in enumerate(matrices):
        u = apply_axis(matrix, u, axis)
    return u


def solve_axes(solves: Sequence[Callable[[FloatArray], FloatArray]], u: FloatArray) -> FloatArray:
    """The inverse of a tensor product: solve(columns (n_axis, m)) along each axis of u (n_1, ..., n_d)."""
    for axis, solve in enumerate(solves):
        moved = np.moveaxis(u, axis, 0)
        columns = np.ascontiguousarray(moved.reshape(len(moved), -1))
        u = np.moveaxis(solve(columns).reshape(moved.shape), 0, axis)
    return np.ascontiguousarray(u)


def apply_sum(matrices: Sequence[AxisMatrix], u: FloatArray) -> FloatArray:
    """S u for the sum S over the axes of one matrix along each, u of shape (n_1, ..., n_d)."""
    return combined(*((1.0, apply_axis(matrix, u, axis)) for axis, matrix in enumerate(matrices)))
