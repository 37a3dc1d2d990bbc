"""Divergences of matrices that vary, against those differentiated by hand."""

import numpy as np
import pytest

from fem_hjb.problems.divergence import row_divergence


def quadratic(x):
    a, b = x.T
    return np.stack([np.stack([1 + a**2 / 2 + b**2, 0.3 * a * b], -1), np.stack([0.3 * a * b, 0.8 + a**2], -1)], -2)


def waves(x):
    a, b = x.T
    off = 0.5 * np.cos(b)
    return np.stack([np.stack([2 + np.sin(a + b), off], -1), np.stack([off, np.exp(a - b / 2)], -1)], -2)


def test_row_divergence_is_exact_on_quadratics_and_of_second_order():
    x = np.random.default_rng(0).uniform(-2, 2, (30, 2))
    a, b = x.T
    np.testing.assert_allclose(row_divergence(quadratic, x, 0.3), np.stack([1.3 * a, 0.3 * b], -1), atol=1e-13)
    exact = np.stack([np.cos(a + b) - 0.5 * np.sin(b), -0.5 * np.exp(a - b / 2)], axis=-1)
    steps = 0.1 / 2.0 ** np.arange(5)
    errors = [np.abs(row_divergence(waves, x, h) - exact).max() for h in steps]
    assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(2, abs=0.02)


def test_the_divergence_next_to_a_face_looks_inside_only():
    x = np.array([[0.0, 0.4], [1.0, 1.0]])

    def diffusion(x):
        assert x.min() >= 0.0
        assert x.max() <= 1.0
        return np.einsum("mi,ij->mij", 2 * x, np.eye(2))

    bounds = np.zeros(2), np.ones(2)
    np.testing.assert_allclose(row_divergence(diffusion, x, 1e-3, bounds), 2.0, rtol=1e-10)
