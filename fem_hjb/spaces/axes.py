"""Polynomials through points on a line, and products of matrices along the axes of a tensor grid."""

from collections.abc import Callable, Sequence

import numpy as np

from fem_hjb.support.checks import FloatArray


def lagrange_weights(nodes: FloatArray, at: float) -> FloatArray:
    """Values at `at` of the Lagrange polynomials of these nodes."""
    gaps = nodes[:, None] - nodes[None, :] + np.eye(nodes.size)
    return np.asarray(np.prod((at - nodes[None, :] + np.eye(nodes.size) * (1 - at + nodes)) / gaps, axis=1))


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
    return np.stack([grid.ravel() for grid in np.meshgrid(*arrays, indexing="ij")], axis=-1)


def apply_axis(matrix: FloatArray, u: FloatArray, axis: int) -> FloatArray:
    """`matrix` (m, n_axis) applied along one axis of u (n_1, ..., n_d), by one GEMM or a batch of them."""
    if axis == u.ndim - 1:
        return np.asarray(u @ matrix.T)
    shape = (*u.shape[:axis], matrix.shape[0], *u.shape[axis + 1 :])
    if axis == 0:
        return np.asarray((matrix @ u.reshape(u.shape[0], -1)).reshape(shape))
    return np.asarray(np.matmul(matrix, u.reshape(*u.shape[: axis + 1], -1)).reshape(shape))


def apply_all(matrices: Sequence[FloatArray], u: FloatArray) -> FloatArray:
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


def apply_sum(matrices: Sequence[FloatArray], u: FloatArray) -> FloatArray:
    """S u for the sum S over the axes of one matrix along each, u of shape (n_1, ..., n_d)."""
    return np.asarray(sum(apply_axis(matrix, u, axis) for axis, matrix in enumerate(matrices)))
