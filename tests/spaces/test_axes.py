"""Polynomials through points on a line, and matrices along the axes of a grid."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.linalg import expm

from fem_hjb.spaces import axes
from fem_hjb.spaces.axes import (
    BlockMatrix,
    apply_all,
    apply_axis,
    apply_sum,
    barycentric_rows,
    combined,
    copy_to,
    differentiation_matrix,
    in_blocks,
    lagrange_weights,
    parts_of,
    solve_axes,
    tensor_points,
)
from fem_hjb.spaces.spectral import SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.threads import for_each, threads


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 3)])
def test_matrices_along_axes_are_kronecker_products(shape: tuple[int, ...]):
    rng = np.random.default_rng(1)
    u = rng.standard_normal(shape)
    rectangular = [rng.standard_normal((n + 2, n)) for n in shape]
    for axis, matrix in enumerate(rectangular):
        expected = np.moveaxis(np.tensordot(matrix, u, (1, axis)), 0, axis)
        np.testing.assert_allclose(apply_axis(matrix, u, axis), expected, atol=1e-14)
    product = np.eye(1)
    for matrix in rectangular:
        product = np.kron(product, matrix)
    np.testing.assert_allclose(apply_all(rectangular, u).ravel(), product @ u.ravel(), atol=1e-13)
    square = [rng.standard_normal((n, n)) for n in shape]
    expected = sum(apply_axis(matrix, u, axis) for axis, matrix in enumerate(square))
    np.testing.assert_allclose(apply_sum(square, u), expected, atol=1e-14)


def test_polynomials_through_as_many_points_as_they_have_coefficients_are_reproduced():
    nodes = np.array([0.0, 0.1, 0.45, 0.8, 1.0])
    for k in range(nodes.size):
        assert lagrange_weights(nodes, 0.3) @ nodes**k == pytest.approx(0.3**k, abs=1e-14)
        slopes = k * nodes ** max(k - 1, 0)
        np.testing.assert_allclose(differentiation_matrix(nodes) @ nodes**k, slopes, atol=1e-12)
    np.testing.assert_array_equal(lagrange_weights(nodes, 0.45), [0, 0, 1, 0, 0])


def test_tensor_points_run_through_the_last_axis_first():
    points = tensor_points([np.array([0.0, 1.0]), np.array([2.0, 3.0, 4.0])])
    assert points.tolist() == [[0, 2], [0, 3], [0, 4], [1, 2], [1, 3], [1, 4]]


# Blocks


def banded(n: int, seed: int = 0) -> FloatArray:
    """Nonzero near the diagonal and in one column far away."""
    i = np.arange(n)
    matrix = np.random.default_rng(seed).standard_normal((n, n)) * (np.abs(i[:, None] - i) < 5)
    matrix[n // 3, 2] = 1.5
    return np.asarray(matrix)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("n", [64, 97, 200])
def test_blocks_do_what_the_matrix_does_along_each_axis(n: int, dim: int) -> None:
    matrix, rng = banded(n), np.random.default_rng(1)
    blocks = BlockMatrix(matrix)
    assert blocks.work < 0.8 * matrix.size
    for axis in range(dim):
        shape = [3, 4, 5][:dim]
        shape[axis] = n
        u = rng.standard_normal(shape)
        expected = np.moveaxis(np.tensordot(matrix, u, (1, axis)), 0, axis)
        np.testing.assert_allclose(apply_axis(blocks, u, axis), expected, atol=1e-12)
        np.testing.assert_allclose(apply_axis(blocks, np.asfortranarray(u), axis), expected, atol=1e-12)
        matrix_without = matrix.copy()
        matrix_without[n // 3, 2] = 0.0
        lost = np.moveaxis(np.tensordot(matrix_without, u, (1, axis)), 0, axis)
        assert np.abs(lost - expected).max() > 0.1


@pytest.mark.parametrize("shape", [(600_000,), (70, 1500), (300, 700), (70, 60, 80)])
@pytest.mark.parametrize("workers", [1, 2])
def test_large_arrays_are_multiplied_and_summed_in_parts(shape: tuple[int, ...], workers: int) -> None:
    rng = np.random.default_rng(5)
    u, v = rng.standard_normal(shape), rng.standard_normal(shape)
    assert len(parts_of(shape[0], u.size)) > 1
    with threads(workers):
        for axis, n in enumerate(shape):
            if n > 100_000:
                continue
            for matrix in (rng.standard_normal((n + 9, n)), banded(n)[: n - 5], banded(n)):
                expected = np.moveaxis(np.tensordot(matrix, u, (1, axis)), 0, axis)
                np.testing.assert_allclose(apply_axis(matrix, u, axis), expected, atol=1e-11)
                blocks = BlockMatrix(matrix)
                np.testing.assert_allclose(apply_axis(blocks, u, axis), expected, atol=1e-11)
        np.testing.assert_allclose(combined((2.0, u), (-0.5, v), (1.0, u)), 3.0 * u - 0.5 * v, atol=1e-14)


@pytest.mark.parametrize(("size", "shared"), [(200_000, False), (600_000, True)])
def test_sums_and_copies_are_shared_out_where_that_is_worth_waking_a_thread(
    size: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    u, copied, called = np.arange(float(size)), np.zeros(size), list[int]()

    def watched(parts: Sequence[slice], work: Callable[[slice], None]) -> None:
        called.append(len(parts))
        for_each(parts, work)

    monkeypatch.setattr(axes, "for_each", watched)
    np.testing.assert_array_equal(combined((2.0, u), (-1.0, u)), u)
    copy_to(copied, u)
    np.testing.assert_array_equal(copied, u)
    assert len(called) == 2 * shared
    assert all(count > 1 for count in called)


def test_parts_are_all_of_it_and_the_same_for_all_arrays_of_a_size() -> None:
    for length, size in ((5, 10), (57, 57**3), (7, 10**6), (10**6, 10**6), (1, 10**7)):
        parts = parts_of(length, size)
        joined = np.concatenate([np.arange(length)[part] for part in parts])
        np.testing.assert_array_equal(joined, np.arange(length))
        assert min(len(range(length)[part]) for part in parts) >= 1


def test_blocks_are_taken_where_they_save_work() -> None:
    rng = np.random.default_rng(2)
    line = SpectralLine(np.linspace(0.0, 1.0, 13), 16)
    for sparse in (line.derivative, line.laplacian, expm(1e-6 * line.laplacian)):
        blocks = in_blocks(sparse)
        assert isinstance(blocks, BlockMatrix)
        assert blocks.shape == sparse.shape
        u = rng.standard_normal((3, line.n))
        exact = u @ sparse.T
        np.testing.assert_allclose(apply_axis(blocks, u, 1), exact, atol=1e-13 * np.abs(exact).max())
    for dense in (rng.standard_normal((200, 200)), line.derivative[:40, :40], expm(line.laplacian)):
        assert in_blocks(dense) is dense


@pytest.mark.parametrize(("dim", "cells"), [(1, 45), (2, 7), (3, 5)])
def test_blocks_serve_arrays_of_one_two_and_three_axes(dim: int, cells: int) -> None:
    """On a line only where there are many: a matrix that stays in the cache takes no more there."""
    line = SpectralLine(np.linspace(0.0, 1.0, cells + 1), 8)
    u = np.random.default_rng(4).standard_normal((line.n,) * dim)
    blocks = in_blocks(line.derivative, dim)
    assert isinstance(blocks, BlockMatrix)
    for axis in range(dim):
        exact = np.moveaxis(np.tensordot(line.derivative, u, (1, axis)), 0, axis)
        np.testing.assert_allclose(apply_axis(blocks, u, axis), exact, atol=1e-13 * np.abs(exact).max())
    fewer = SpectralLine(line.grid[:4], 8).derivative
    assert in_blocks(fewer, dim) is fewer


def test_rows_of_zeros_are_no_trouble() -> None:
    matrix = banded(100)
    matrix[:60] = 0.0
    u = np.random.default_rng(3).standard_normal((100, 2))
    np.testing.assert_allclose(apply_axis(BlockMatrix(matrix), u, 0), matrix @ u, atol=1e-13)
    assert not apply_axis(BlockMatrix(np.zeros((70, 70))), u[:70], 0).any()


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 3)])
def test_a_product_of_inverses_is_the_inverse_of_the_product(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    matrices = [rng.standard_normal((n, n)) + 4 * np.eye(n) for n in shape]
    u = rng.standard_normal(shape)
    solved = solve_axes([lambda b, m=m: np.linalg.solve(m, b) for m in matrices], u)
    assert solved.flags.c_contiguous
    np.testing.assert_allclose(apply_all(matrices, solved), u, atol=1e-12)


# Interpolation


@pytest.mark.parametrize("count", [1, 2, 5, 17, 33])
def test_barycentric_rows_reproduce_polynomials(count: int) -> None:
    nodes = (1 - np.cos(np.pi * np.arange(count) / max(count - 1, 1))) / 2
    at = np.concatenate([np.random.default_rng(5).random(20), nodes, nodes[1:] + 1e-15])
    rows = barycentric_rows(nodes, at)
    assert rows.shape == (at.size, count)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=1e-14)
    np.testing.assert_array_equal(rows[20 : 20 + count], np.eye(count))
    series = np.polynomial.Chebyshev(np.random.default_rng(6).standard_normal(count), domain=[0, 1])
    np.testing.assert_allclose(rows @ series(nodes), series(at), atol=1e-12 * count)
    higher = np.polynomial.Chebyshev.basis(count, domain=[0, 1])
    assert np.abs(rows @ higher(nodes) - higher(at))[:20].max() > 0.1
    for k in range(count if count < 6 else 0):
        np.testing.assert_allclose(rows[:20, k], [lagrange_weights(nodes, t)[k] for t in at[:20]], atol=1e-13)


def test_barycentric_rows_do_not_see_the_unit() -> None:
    nodes, at = np.linspace(0, 1, 7), np.array([0.03, 0.5, 0.77])
    for shift, scale in ((0.0, 1e-9), (5.0, 1e3)):
        np.testing.assert_allclose(
            barycentric_rows(shift + scale * nodes, shift + scale * at), barycentric_rows(nodes, at), atol=1e-10
        )
