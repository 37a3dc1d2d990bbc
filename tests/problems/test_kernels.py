"""Kernel densities: against mixtures made by hand and SciPy, far from all points, and what is refused."""

import numpy as np
import pytest
from scipy.stats import gaussian_kde

from fem_hjb.problems import kernels, zoo
from fem_hjb.problems.blocks import coordinates
from fem_hjb.problems.kernels import KernelDensity, Kernels
from fem_hjb.problems.laws import GaussianMixture
from fem_hjb.solutions.norms import law_points
from fem_hjb.support.errors import DomainError, ProblemError
from tests.support.exactness import space_derivative

POINTS = np.random.default_rng(0).normal(size=(40, 2)) * [2.0, 0.5] + [3.0, -1.0]
WEIGHTS = np.random.default_rng(1).uniform(size=40) * (np.arange(40) % 7 > 0)  # some of them 0
WEIGHTS /= WEIGHTS.sum()
LAW = KernelDensity(POINTS, 0.3, WEIGHTS)
BY_HAND = GaussianMixture(WEIGHTS, POINTS, np.tile(0.09 * np.eye(2), (40, 1, 1)))


def test_it_is_the_mixture_made_by_hand():
    x = np.random.default_rng(2).normal(size=(30, 10, 2)) * 4.0 + POINTS.mean(0)
    np.testing.assert_allclose(LAW.logpdf(x), BY_HAND.logpdf(x), rtol=1e-12)
    np.testing.assert_allclose(LAW.score(x), BY_HAND.score(x), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(LAW.expectation, BY_HAND.expectation, rtol=1e-14)
    np.testing.assert_allclose(LAW.covariance, BY_HAND.covariance, rtol=1e-13)
    for found, expected in zip(LAW.quadrature(3), BY_HAND.quadrature(3), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)
    noisy = LAW.noised(0.6, 0.5)
    expected = GaussianMixture(WEIGHTS, 0.6 * POINTS, np.tile((0.36 * 0.09 + 0.5) * np.eye(2), (40, 1, 1)))
    np.testing.assert_allclose(noisy.logpdf(x), expected.logpdf(x), rtol=1e-12)


def test_equal_weights_are_those_of_scipys_estimate():
    law = KernelDensity(POINTS[:, :1], 0.4)
    expected = gaussian_kde(POINTS[:, 0], bw_method=0.4 / POINTS[:, 0].std(ddof=1))
    x = np.linspace(-3.0, 9.0, 50)
    np.testing.assert_allclose(np.exp(law.logpdf(x[:, None])), expected(x), rtol=1e-12)


@pytest.mark.parametrize("law", [LAW, KernelDensity([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]], 0.5)], ids=["cloud", "twins"])
def test_its_density_has_mass_one_and_its_score_is_the_slope(law):
    x = law.sample(200, np.random.default_rng(3))
    slopes = space_derivative(lambda _, z: law.logpdf(z), 0.0, x, 2e-2)
    assert np.abs(law.score(x) - slopes).max() < 1e-6
    middle, spread = law.expectation, 10 * np.sqrt(np.diag(law.covariance))
    axes = [np.linspace(m - s, m + s, 400) for m, s in zip(middle, spread, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    assert np.exp(law.logpdf(grid)).sum() * np.prod([a[1] - a[0] for a in axes]) == pytest.approx(1.0, abs=1e-12)


def test_samples_have_its_moments():
    x = LAW.sample(100_000, np.random.default_rng(4))
    assert (np.abs(x.mean(0) - LAW.expectation) < 4.5 * x.std(0) / np.sqrt(len(x))).all()
    np.testing.assert_allclose(np.cov(x.T), LAW.covariance, atol=0.05)


def test_many_kernels_share_the_points_of_a_rule():
    many = KernelDensity(np.random.default_rng(7).normal(size=(2000, 2)), 0.4)
    assert kernels.affordable_order(many, 32) == 4
    assert kernels.affordable_order(LAW, 32) == 28
    assert kernels.affordable_order(BY_HAND, 32) == 32
    huge = KernelDensity(np.zeros((10**5, 2)), 0.4)
    assert kernels.affordable_order(huge, 32) == 2
    x, w = many.quadrature(4)
    exact = np.exp(many.points[:, 0] + 0.08).mean()  # E exp(X_1)
    assert w @ np.exp(x[:, 0]) == pytest.approx(exact, rel=1e-6)
    problem = zoo.get("checkerboard")
    for _, points, weights in law_points(problem, times=[0.0, 1.0]):
        assert len(points) == 288 * 10**2
        assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert len(law_points(problem, times=1.0, order=3).rules[0][0]) == 288 * 9


def test_far_from_all_points_the_nearest_one_pulls():
    law = KernelDensity([[0.0, 0.0], [4.0, 0.0]], 0.01, [0.999, 0.001])
    x = np.array([[1e3, 0.0], [1e8, 1.0], [-1e60, 1e60], [2.5, 300.0]])
    nearest = np.array([[4.0, 0.0], [4.0, 0.0], [0.0, 0.0], [4.0, 0.0]])
    score, logs = law.score(x), law.logpdf(x)
    np.testing.assert_allclose(score, (nearest - x) / 1e-4, rtol=1e-12)
    weight = np.log(np.where(nearest[:, 0] > 0, 0.001, 0.999))
    by_hand = weight - 0.5 * ((x - nearest) ** 2).sum(1) / 1e-4 - np.log(2 * np.pi * 1e-4)
    np.testing.assert_allclose(logs, by_hand, rtol=1e-12)


def test_the_origin_does_not_matter():
    far = KernelDensity(POINTS + 1e6, 0.3, WEIGHTS)
    x = LAW.sample(50, np.random.default_rng(5))
    np.testing.assert_allclose(far.logpdf(x + 1e6), LAW.logpdf(x), atol=1e-7)  # 1e6 + x has ten digits of x


def test_blocks_do_not_show(monkeypatch):
    x = LAW.sample(101, np.random.default_rng(6))
    whole = LAW.logpdf(x), LAW.score(x)
    monkeypatch.setattr(kernels, "_BLOCK", 300)  # seven points at once
    np.testing.assert_allclose(LAW.logpdf(x), whole[0], rtol=1e-13)
    np.testing.assert_allclose(LAW.score(x), whole[1], rtol=1e-11, atol=1e-12)
    assert LAW.logpdf(x[:0]).shape == (0,)
    assert LAW.score(x[0]).shape == (2,)


def test_noise_may_differ_from_point_to_point_and_covariances_from_axis_to_axis():
    C = np.array([[0.5, 0.3], [0.3, 0.4]])
    measure = Kernels(np.log(WEIGHTS[1:7]), POINTS[1:7], C)
    x, shrink, noise = POINTS[:5] + 0.3, np.linspace(0.1, 1.0, 5), np.linspace(0.9, 0.0, 5)
    logs, score = measure.noised(shrink, noise, x)
    total = WEIGHTS[1:7].sum()
    for i in range(5):
        covs = np.tile(shrink[i] ** 2 * C + noise[i] * np.eye(2), (6, 1, 1))
        law = GaussianMixture(WEIGHTS[1:7] / total, shrink[i] * POINTS[1:7], covs)
        assert logs[i] - np.log(total) == pytest.approx(law.logpdf(x[i]), rel=1e-12)
        np.testing.assert_allclose(score[i], law.score(x[i]), rtol=1e-11)


def test_some_of_its_coordinates_are_kernels_too():
    second = coordinates(LAW, [1])
    assert isinstance(second, KernelDensity)
    assert second.covariance[0, 0] == pytest.approx(LAW.covariance[1, 1], rel=1e-13)


def test_its_arrays_are_its_own_and_read_only():
    given = POINTS.copy()
    law = KernelDensity(given, 0.3)
    given[0] = 99.0
    np.testing.assert_array_equal(law.points, POINTS)
    for array in (law.points, *law.components):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0


BAD = {
    "line": (
        lambda: KernelDensity([0.0, 1.0], 0.1),
        r"shape \(k, d\), one in each row, got shape \(2,\); write x\[:, None",
    ),
    "empty": (lambda: KernelDensity([], 0.1), r"points must have shape \(k, d\), .* got shape \(0,\)$"),
    "no-rows": (lambda: KernelDensity(np.zeros((0, 2)), 0.1), r"got shape \(0, 2\)$"),
    "no-columns": (lambda: KernelDensity(np.zeros((3, 0)), 0.1), r"got shape \(3, 0\)$"),
    "three-axes": (lambda: KernelDensity(np.zeros((3, 2, 2)), 0.1), r"got shape \(3, 2, 2\)$"),
    "nan": (lambda: KernelDensity([[0.0], [np.nan]], 0.1), "points must be finite, got 1 non-finite"),
    "infinite": (lambda: KernelDensity([[np.inf]], 0.1), "points must be finite"),
    "text": (lambda: KernelDensity([["a"]], 0.1), "points must be an array of real numbers"),
    "bandwidth-zero": (lambda: KernelDensity([[0.0]], 0.0), "bandwidth must be a positive finite number, got 0"),
    "bandwidth-negative": (
        lambda: KernelDensity([[0.0]], -0.1),
        "bandwidth must be a positive finite number, got -0.1",
    ),
    "bandwidth-nan": (lambda: KernelDensity([[0.0]], np.nan), "bandwidth must be a positive finite"),
    "bandwidth-axes": (lambda: KernelDensity([[0.0, 1.0]], [0.1, 0.2]), "bandwidth must be a positive number, got"),
    "bandwidth-needles": (lambda: KernelDensity([[0.0], [1.0]], 1e-6), "lie up to 1 apart: below 1e-05 of that"),
    "weights-negative": (
        lambda: KernelDensity([[0.0], [1.0]], 0.1, [-0.5, 1.5]),
        "non-negative .* got weights from -0.5",
    ),
    "weights-sum": (lambda: KernelDensity([[0.0], [1.0]], 0.1, [0.5, 0.6]), "sum to 1, got .* with sum 1.1"),
    "points-far": (
        lambda: KernelDensity([[1e308, 0.0]], 1.0),
        r"points lie up to 1e\+308 away from the origin; choose",
    ),
    "weights-single-precision": (
        lambda: KernelDensity([[0.0], [1.0]], 0.1, np.float32([1 / 3, 2 / 3])),
        "with sum 1.0000000298; divide them by their sum in double precision",
    ),
    "weights-shape": (
        lambda: KernelDensity([[0.0], [1.0]], 0.1, [1.0]),
        r"weights must have shape \(2,\), got shape \(1,\)",
    ),
    "rule-too-large": (
        lambda: KernelDensity(np.zeros((10**5, 2)), 0.1).quadrature(10**4),
        "order=10000 of 100000 kernels",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_ill_formed_ones_are_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()


def test_points_of_another_dimension_are_refused():
    with pytest.raises(DomainError, match=r"shape \(..., 2\), got shape \(3,\)"):
        LAW.logpdf([0.0, 1.0, 2.0])
