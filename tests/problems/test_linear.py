"""The exact transition law and marginals of linear drifts, against moment equations and samples."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass, Uniform
from fem_hjb.problems.linear import linear_marginal, linear_transition
from fem_hjb.problems.problem import LinearDrift
from fem_hjb.support.errors import DomainError, ProblemError
from tests.support.tilted import DATA

LAMBDA = np.array([[0.9, 0.3], [0.3, 0.6]])
DRIFT = LinearDrift([[-1.0, 0.7], [-0.2, -0.5]], [0.3, -0.4])
A2 = np.array([[-1.0, 0.5], [-0.3, 0.2]])
LAMBDA2 = np.array([[1.0, 0.3], [0.3, 0.5]])
ZERO = LinearDrift(np.zeros((2, 2)), np.zeros(2))


def test_linear_transition_against_the_moment_equations():
    A, a = DRIFT.coefficients

    def rate(_, state):
        C = state[2:].reshape(2, 2)
        return np.concatenate([A @ state[:2] + a, (A @ C + C @ A.T + LAMBDA).ravel()])

    for time in (0.01, 0.7, 6.0):
        Phi, shift, C = linear_transition(DRIFT, LAMBDA, time)
        moments = solve_ivp(rate, (0, time), np.zeros(6), "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        np.testing.assert_allclose(Phi, expm(A * time), atol=1e-13)
        np.testing.assert_allclose(np.concatenate([shift, C.ravel()]), moments, atol=1e-11)


def test_linear_transition_is_accurate_when_stiff():
    Phi, shift, C = linear_transition(LinearDrift([[-200.0]], [1.0]), [[1.0]], 3.0)
    assert Phi.item() == 0.0 or abs(Phi.item()) < 1e-200
    assert (shift.item(), C.item()) == (pytest.approx(1 / 200, rel=1e-12), pytest.approx(1 / 400, rel=1e-12))


@pytest.mark.parametrize(
    "start", [Gaussian([1.0, 0.0], 0.2), PointMass([1.0, 0.0]), DATA], ids=["gaussian", "point", "mixture"]
)
def test_linear_marginal_against_exact_samples(start):
    marginal, n = linear_marginal(DRIFT, LAMBDA, start), 100_000
    assert marginal(0.0) is start
    Phi, shift, C = linear_transition(DRIFT, LAMBDA, 0.6)
    rng = np.random.default_rng(8)
    x = start.sample(n, rng) @ Phi.T + shift + rng.standard_normal((n, 2)) @ np.linalg.cholesky(C).T
    law = marginal(0.6)
    np.testing.assert_allclose(x.mean(0), law.expectation, atol=4 * np.sqrt(law.covariance.max() / n))
    np.testing.assert_allclose(np.cov(x.T), law.covariance, atol=8 * law.covariance.max() / np.sqrt(n))
    assert np.mean(law.logpdf(x)) == pytest.approx(np.mean(law.logpdf(law.sample(n, rng))), abs=0.02)


@pytest.mark.parametrize(
    "A",
    [A2, np.zeros((2, 2)), np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[-300.0, 5.0], [0.0, -0.1]]), 3 * np.eye(2)],
    ids=["regular", "zero", "nilpotent", "stiff", "unstable"],
)
def test_transition_law_matches_its_moment_equations(A):
    a, h = np.array([0.3, -0.7]), 0.8
    E, c, S = linear_transition(LinearDrift(A, a), LAMBDA2, h)

    def moments(t, z):
        m, C = z[:2], z[2:].reshape(2, 2)
        return np.r_[A @ m + a, (A @ C + C @ A.T + LAMBDA2).ravel()]

    x0 = np.array([0.4, 1.1])
    end = solve_ivp(moments, (0, h), np.r_[x0, np.zeros(4)], rtol=1e-11, atol=1e-13, method="LSODA").y[:, -1]
    np.testing.assert_allclose(E @ x0 + c, end[:2], rtol=1e-8)
    np.testing.assert_allclose(S.ravel(), end[2:], rtol=1e-8, atol=1e-12)


def test_a_law_that_a_linear_drift_does_not_carry_is_refused():
    with pytest.raises(
        ProblemError, match="carries a Gaussian, a GaussianMixture or a PointMass in closed form, got Uni"
    ):
        linear_marginal(ZERO, 1.0, Uniform(Box([0.0, 0.0], [1.0, 1.0])))


def test_a_negative_time_is_refused():
    with pytest.raises(DomainError, match="t must be a non-negative finite number"):
        linear_marginal(ZERO, 1.0, PointMass([0.0, 0.0]))(-1.0)


def test_what_is_kept_is_not_what_those_who_asked_have_changed():
    drift = LinearDrift([[-0.7]], [0.2])
    first = linear_transition(drift, 1.3, 0.5)
    expected = [part.copy() for part in first]
    for part in first:
        part[...] = 7.0
    for again, right in zip(linear_transition(drift, 1.3, 0.5), expected, strict=True):
        np.testing.assert_array_equal(again, right)
    for other in ((drift, 1.4, 0.5), (drift, 1.3, 0.6), (LinearDrift([[-0.8]], [0.2]), 1.3, 0.5)):
        assert linear_transition(*other)[2][0, 0] != expected[2][0, 0]
    assert linear_transition(LinearDrift([[-0.7]], [0.3]), 1.3, 0.5)[1][0] != expected[1][0]
