"""How far the process goes, under control too: tails against known quantiles, and the boxes made of them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from fem_hjb.paths.extent import Reach, box_of, reach_of, sample_law
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.problem import ControlProblem

LQ = zoo.get("lq", 1)  # X_t ~ N(0, 1/2) at all times


def reach(problem: ControlProblem, seed: int = 0) -> Reach:
    return reach_of(sample_law(problem, seed).x)


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


def test_densities_are_those_of_the_law_relative_to_their_peak() -> None:
    x = np.linspace(-3, 3, 61)
    density = reach(LQ).density(0, x)
    np.testing.assert_allclose(np.log(density), -(x**2), atol=0.24, rtol=0.15)
    assert density.max() <= 1.0
    assert reach(LQ).density(0, np.array([1e3]))[0] < 1e-300


def test_densities_are_those_of_the_part_of_the_horizon_asked_for() -> None:
    problem = zoo.get("lq", 1, A=0.0, a=[4.0], cov=0.01, mean=[-2.0])  # X_t ~ N(4 t - 2, 0.01 + t)
    found, x = reach(problem), np.array([-2.0, 0.0, 2.0])
    early, late, whole = found.density(0, x, 0.0, 0.1), found.density(0, x, 0.9, 1.0), found.density(0, x)
    assert early[0] > 0.9 > 1e-4 > early[2]
    assert late[2] > 0.9 > 0.01 > late[0]
    np.testing.assert_array_less(np.maximum(early, late), whole + 1e-12)
    assert whole[1] > 0.9
    assert found.density(0, x, 0.55, 0.56)[1] > found.density(0, x, 0.9, 1.0)[1]  # two times at least
    np.testing.assert_allclose(found.density(0, x, 1.0, 1.0), found.density(0, x, 0.9, 1.0))


def test_a_point_is_where_it_is():
    problem = replace(LQ, initial_law=PointMass([2.0]), marginal=None, exact=None)
    found = reach(problem)
    assert (found.scale[:, 0] == 0).all()
    assert found.median[0, 0] == 2.0
    assert np.isfinite(found.bounds(1e-9)).all()
    density = found.density(0, np.array([2.0, 2.5, 50.0]))
    assert np.isfinite(density).all()
    assert density[1] < 1.0


def test_the_same_on_every_call():
    problem = replace(LQ, marginal=None)
    np.testing.assert_array_equal(reach(problem).bounds(1e-6), reach(problem).bounds(1e-6))
    assert reach(problem, 1).bounds(1e-6)[1][0] != reach(problem).bounds(1e-6)[1][0]


def test_finite_faces_of_a_domain_stay_and_infinite_ones_are_found():
    reflected = zoo.get("reflected", 2, lower=[0.0, -1.0], upper=[2.0, 1.0])
    box = box_of(reflected, [reach(reflected)], 1e-8)
    np.testing.assert_array_equal(box.bounds, [[0.0, -1.0], [2.0, 1.0]])
    assert box.faces == reflected.domain.faces  # type: ignore[union-attr]

    def exit_reward(t, x):
        return 0.0 * x[..., 0]

    half = Box([-np.inf], [0.0], boundary=[("natural", "absorbing")], exit_reward=exit_reward)
    stopped = replace(zoo.get("soc-molecular-dynamics"), domain=half)
    box = box_of(stopped, [reach(stopped)], 1e-8)
    assert box.bounds[1][0] == 0.0
    assert -2.5 < box.bounds[0][0] < -1.6
    assert box.faces == half.faces
    assert box.exit_reward is exit_reward
    wide, narrow = (box_of(LQ, [reach(LQ)], mass) for mass in (1e-10, 1e-3))
    assert wide.faces == (("natural", "natural"),)
    assert wide.bounds[1][0] > 1.5 * narrow.bounds[1][0]


def test_scales_follow_the_unit_of_the_state():
    """x = 1000 z."""
    one = reach(LQ).bounds(1e-6)
    big = zoo.get("lq", 1, Lambda=1e6, Q=1e-6, R=1e-6, cov=0.5e6)
    np.testing.assert_allclose(reach(big).bounds(1e-6), 1e3 * np.array(one), rtol=1e-9)
    assert isinstance(big.initial_law, Gaussian)


# Under control


def pulled(slope: float, known: bool = True) -> ControlProblem:
    """X_t ~ N(0, 1/2), reward slope x at T: under P* its mean is slope e^{t - T} / (2 alpha), its variance the same."""
    base = replace(LQ, terminal_reward=lambda x: slope * x[..., 0], running_reward=None, exact=None)
    return base if known else replace(base, marginal=None)


def test_a_gaussian_tilted_by_a_linear_reward_is_a_shifted_gaussian() -> None:
    problem = pulled(1.2, known=False)
    alpha, times = problem.temperature, np.linspace(0.0, 1.0, 9)
    sample = sample_law(problem, 0)
    weights, draws = sample.optimal()
    shift = 1.2 / (2 * alpha) * np.exp(times - 1.0)
    found, plain = reach_of(sample.paths, weights), reach_of(sample.paths)
    assert draws < 0.6 * weights.size
    np.testing.assert_allclose(found.median[:, 0], shift, atol=0.12)
    np.testing.assert_allclose(found.scale[:, :, 0].mean(axis=1), np.sqrt(0.5), rtol=0.1)
    np.testing.assert_allclose(plain.median[:, 0], 0.0, atol=0.04)
    assert np.abs(plain.median[-1] - shift[-1]) > 0.3
    lower, upper = found.bounds(1e-2)
    quantile = norm.isf(1e-2) * np.sqrt(0.5)
    assert upper[0] == pytest.approx(shift.max() + quantile, rel=0.12)
    assert lower[0] == pytest.approx(shift.min() - quantile, rel=0.12)


def test_equal_weights_are_no_weights() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4001, 2)) ** 3
    one, other = reach_of(x), reach_of(x, np.full(4001, 1 / 4001))
    for name in ("median", "scale", "power"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=2e-2, atol=1e-3)


def test_weights_are_those_of_the_draws_whatever_their_order() -> None:
    rng = np.random.default_rng(1)
    x, weights = rng.normal(size=(2, 500, 2)), rng.random(500)
    weights /= weights.sum()
    turn = rng.permutation(500)
    one, other = reach_of(x, weights), reach_of(x[:, turn], weights[turn])
    np.testing.assert_allclose(other.median, one.median, atol=1e-12)
    np.testing.assert_allclose(other.scale, one.scale, atol=1e-12)
    assert np.abs(reach_of(x, weights[turn]).median - one.median).max() > 1e-3
    doubled = reach_of(np.repeat(x, 3, axis=1), np.repeat(weights / 3, 3))
    np.testing.assert_allclose(doubled.median, one.median, atol=0.02)


@pytest.mark.parametrize("known", [True, False])
def test_weights_come_from_the_rewards_along_paths(known: bool) -> None:
    """E exp(tilt) is the mean of f_0 over the initial law, with rewards on the way as well."""
    problem = pulled(0.8, known)
    sample = sample_law(problem, 3)
    variance = 0.5 * (0.8 / problem.temperature) ** 2
    assert np.log(np.exp(sample.tilt).mean()) == pytest.approx(variance / 2, abs=0.05)
    running = replace(problem, running_reward=lambda t, x: 0.7 + 0.0 * x[..., 0] + 2.0 * np.asarray(t))
    more = sample_law(running, 3)
    np.testing.assert_allclose(more.tilt - sample.tilt, 1.7 / problem.temperature, rtol=1e-3)
    np.testing.assert_array_equal(more.paths, sample.paths)
    assert (sample.x is sample.paths) != known
    assert sample.times.tolist() == np.linspace(0, 1, 9).tolist()
    assert sample.nearest(0.0) == 0
    assert sample.nearest(0.8) == 6
    assert sample.nearest(1.0) == 8


@pytest.mark.parametrize("known", [True, False])
def test_a_law_that_begins_at_a_point_is_known_soon_after(known: bool) -> None:
    """X_t ~ N(0, 4 t): draws at the time next to t spread as they should, to a factor of 1.6, from T/1024 on."""
    base = zoo.get("lq", 1, A=0.0, Lambda=4.0, cov=1.0)
    problem = replace(base, initial_law=PointMass([0.0]), exact=None, marginal=None)
    if known:
        problem = replace(problem, marginal=lambda t: Gaussian([0.0], max(4.0 * t, 1e-12)))
    sample = sample_law(problem, 0)
    for t in 2.0 ** -np.arange(0.0, 10.2, 0.3):
        assert 1 / 1.6 < sample.at(t).std() / np.sqrt(4.0 * t) < 1.6
    assert sample.x[sample.nearest(0.06)].std() < 1e-5  # of the nine times the start is next
    assert sample.at(0.0).std() < 1e-5


def test_the_law_of_the_start_is_tilted_with_the_paths() -> None:
    problem = pulled(1.2)
    sample = sample_law(problem, 0)
    start = sample.paths[0][:, 0]
    tilted, worth = sample.optimal()
    assert tilted.sum() == pytest.approx(1.0)
    assert tilted @ start > 0.16
    assert 1 < worth < start.size
    even, all_of_them = replace(sample, tilt=0 * sample.tilt).optimal()
    assert all_of_them == pytest.approx(start.size)
    assert np.ptp(even) == 0.0
    huge, _ = replace(sample, tilt=1e4 * sample.tilt).optimal()
    assert np.isfinite(huge).all()


def test_a_box_holds_all_laws_it_is_given() -> None:
    problem = pulled(3.0, known=False)
    sample = sample_law(problem, 0)
    plain, tilted = reach_of(sample.x), reach_of(sample.paths, sample.optimal()[0])
    both, one = box_of(problem, [plain, tilted], 1e-6), box_of(problem, [plain], 1e-6)
    other = box_of(problem, [tilted], 1e-6)
    assert both.bounds[0][0] == min(one.bounds[0][0], other.bounds[0][0])
    assert both.bounds[1][0] == max(one.bounds[1][0], other.bounds[1][0])
    assert both.bounds[1][0] > one.bounds[1][0] + 0.1
