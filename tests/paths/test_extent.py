"""How far the process goes: tails against known quantiles, and the boxes made of them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from fem_hjb.paths.extent import box_of, reach
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass

LQ = zoo.get("lq", 1)  # X_t ~ N(0, 1/2) at all times


@pytest.mark.parametrize("known", [True, False])
def test_gaussian_quantiles(known: bool):
    """Near the sampled quantiles to 5 per cent; far out a tail is extrapolated, never much too short."""
    problem = LQ if known else replace(LQ, marginal=None)
    found = reach(problem)
    np.testing.assert_allclose(found.power, 1.0, atol=0.1)
    for mass, tolerance in ((1e-2, 0.05), (1e-4, 0.1), (1e-12, 0.2)):
        quantile = norm.isf(mass) * np.sqrt(0.5)
        lower, upper = found.bounds(mass)
        assert -(1 + tolerance) * quantile < lower[0] < -0.97 * quantile
        assert 0.97 * quantile < upper[0] < (1 + tolerance) * quantile
    assert found.bounds(1e-9)[1][0] > found.bounds(1e-3)[1][0]


def test_each_axis_and_each_time_counts():
    problem = zoo.get("lq", 2, A=[[-1.0, 0.0], [0.0, 0.0]], Lambda=1.0, a=[0.0, 3.0], cov=0.01, mean=[1.0, -2.0])
    lower, upper = reach(problem).bounds(1e-2)
    times, far = np.linspace(0.0, 1.0, 9), norm.isf(1e-2)
    sd = np.sqrt(0.01 + times)
    expected = (-2.0 + 3.0 * times - far * sd).min(), (-2.0 + 3.0 * times + far * sd).max()
    np.testing.assert_allclose([lower[1], upper[1]], expected, rtol=0.05)
    assert lower[0] < 1.0 < upper[0] < 3.0


def test_quartic_tails_are_shorter_than_gaussian_ones():
    """The stationary density exp(-2 kappa (x^2 - 1)^2), which is nearly reached from each well."""
    problem = zoo.get("double-well", 1, kappa=1.0, nu=0.0, cov=0.01, horizon=4.0)
    total = quad(lambda x: np.exp(-2 * (x**2 - 1) ** 2), -4, 4)[0]
    found = reach(problem)
    lower, upper = found.bounds(1e-8)

    def excess(q: float) -> float:
        return float(quad(lambda x: np.exp(-2 * (x**2 - 1) ** 2), q, 4, epsabs=1e-14)[0] / total - 1e-8)

    quantile = brentq(excess, 1.0, 3.0)
    assert quantile * 0.97 < upper[0] < 1.5 * quantile
    assert -1.5 * quantile < lower[0] < -quantile * 0.97
    assert upper[0] < norm.isf(1e-8) * found.scale[1, -1, 0]  # what a Gaussian tail would make of it
    assert found.power[:, -1].max() < 0.7


def test_boxes_hold_mixtures_up_to_their_mass():
    problem = zoo.get("mixture-diffusion", 1, means=[[-2.0], [1.5]], covariances=[[[0.1]], [[0.3]]])
    found = reach(problem)
    assert problem.marginal is not None
    for mass in (1e-2, 1e-4, 1e-8):
        lower, upper = found.bounds(mass)
        out = []
        for t in np.linspace(0.0, 1.0, 9):
            weights, means, covs = problem.marginal(t).components
            sd = np.sqrt(covs[:, 0, 0])
            below = weights @ norm.cdf((lower[0] - means[:, 0]) / sd)
            out.append([below, weights @ norm.sf((upper[0] - means[:, 0]) / sd)])
        assert np.max(out) < 1.5 * mass
        assert np.max(out) > 1e-3 * mass  # not absurdly wide either


def test_weights_are_roots_of_densities():
    x = np.linspace(-3, 3, 61)
    weight = reach(LQ).weight(0, x)
    np.testing.assert_allclose(np.log(weight), -(x**2) / 2, atol=0.12, rtol=0.15)
    assert weight.max() <= 1.0
    assert reach(LQ).weight(0, np.array([1e3]))[0] < 1e-300


def test_a_point_is_where_it_is():
    problem = replace(LQ, initial_law=PointMass([2.0]), marginal=None, exact=None)
    found = reach(problem)
    assert (found.scale[:, 0] == 0).all()
    assert found.median[0, 0] == 2.0
    assert np.isfinite(found.bounds(1e-9)).all()
    weight = found.weight(0, np.array([2.0, 2.5, 50.0]))
    assert np.isfinite(weight).all()
    assert weight[1] < 1.0


def test_the_same_on_every_call():
    problem = replace(LQ, marginal=None)
    np.testing.assert_array_equal(reach(problem).bounds(1e-6), reach(problem).bounds(1e-6))


def test_finite_faces_of_a_domain_stay_and_infinite_ones_are_found():
    reflected = zoo.get("reflected", 2, lower=[0.0, -1.0], upper=[2.0, 1.0])
    box = box_of(reflected, reach(reflected), 1e-8)
    np.testing.assert_array_equal(box.bounds, [[0.0, -1.0], [2.0, 1.0]])
    assert box.faces == reflected.domain.faces  # type: ignore[union-attr]

    def exit_reward(t, x):
        return 0.0 * x[..., 0]

    half = Box([-np.inf], [0.0], boundary=[("natural", "absorbing")], exit_reward=exit_reward)
    stopped = replace(zoo.get("soc-molecular-dynamics"), domain=half)
    box = box_of(stopped, reach(stopped), 1e-8)
    assert box.bounds[1][0] == 0.0
    assert -2.5 < box.bounds[0][0] < -1.6
    assert box.faces == half.faces
    assert box.exit_reward is exit_reward
    wide, narrow = (box_of(LQ, reach(LQ), mass) for mass in (1e-10, 1e-3))
    assert wide.faces == (("natural", "natural"),)
    assert wide.bounds[1][0] > 1.5 * narrow.bounds[1][0]


def test_scales_follow_the_unit_of_the_state():
    """x = 1000 z."""
    one = reach(LQ).bounds(1e-6)
    big = zoo.get("lq", 1, Lambda=1e6, Q=1e-6, R=1e-6, cov=0.5e6)
    np.testing.assert_allclose(reach(big).bounds(1e-6), 1e3 * np.array(one), rtol=1e-9)
    assert isinstance(big.initial_law, Gaussian)
