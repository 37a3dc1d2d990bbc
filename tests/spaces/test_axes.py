"""Polynomials through points on a line, and matrices along the axes of a grid."""

import numpy as np
import pytest

from fem_hjb.spaces.axes import (
    apply_all,
    apply_axis,
    apply_sum,
    differentiation_matrix,
    lagrange_weights,
    tensor_points,
)


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
