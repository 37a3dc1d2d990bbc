"""Quantiles of the process far out, read off draws with more noise, against known ones."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from fem_hjb.paths import tails
from fem_hjb.paths.extent import Reach, reach_of, sample_law
from fem_hjb.paths.tails import reach_beyond
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.kernels import KernelDensity
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, PointMass
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.support.checks import FloatArray

MASSES = (1e-7, 1e-11)


def process(drift: Any, diffusion: Any, law: Law, **more: Any) -> ControlProblem:
    return ControlProblem(
        dim=law.dim,
        horizon=1.0,
        temperature=1.0,
        drift=drift,
        diffusion=diffusion,
        terminal_reward=lambda x: 0.0 * x[..., 0],
        initial_law=law,
        **more,
    )


def beyond(problem: ControlProblem, mass: float, seed: int = 0) -> Reach:
    return reach_beyond(problem, sample_law(problem, seed), mass, seed)


def ends(problem: ControlProblem, mass: float) -> tuple[float, float]:
    lower, upper = beyond(problem, mass).bounds(mass)
    return float(lower[0]), float(upper[0])


def extrapolated(problem: ControlProblem, mass: float) -> tuple[float, float]:
    lower, upper = reach_of(sample_law(problem, 0).x).bounds(mass)
    return float(lower[0]), float(upper[0])


def exponential(volatility: float) -> ControlProblem:
    """X = exp(volatility B): dX = volatility^2 / 2 X dt + volatility X dB from 1."""
    return process(
        lambda t, x: 0.5 * volatility**2 * x,
        lambda t, x: volatility**2 * (x**2)[..., None],
        PointMass([1.0]),
    )


@pytest.mark.parametrize("mass", MASSES)
def test_heavy_tails(mass: float) -> None:
    """X_1 = exp(0.7 B_1): quantiles of a lognormal law, to a few per cent of their logarithm."""
    low, high = (np.exp(0.7 * norm.ppf(level)) for level in (mass, 1.0 - mass))
    found = ends(exponential(0.7), mass)
    assert np.log(found[1]) == pytest.approx(np.log(high), rel=0.05)
    assert -0.35 < found[0] < low
    assert extrapolated(exponential(0.7), mass)[1] < 0.75 * high  # what made boxes too small


def test_noise_is_that_of_stratonovich(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the sense of Ito the drift would not grow with the noise, and the median of X would fall."""
    monkeypatch.setattr(tails, "_correction", lambda problem, t, x: np.zeros_like(x))
    assert ends(exponential(0.7), 1e-11)[1] < 0.4 * np.exp(0.7 * norm.isf(1e-11))


@pytest.mark.parametrize("mass", MASSES)
def test_light_tails(mass: float) -> None:
    """The stationary density exp(-2 (x^2 - 1)^2), from whose middle the quantiles grow as the square root of zeta."""
    problem = zoo.get("double-well", 1, kappa=1.0, nu=0.0, cov=0.01, horizon=4.0)
    total = quad(lambda x: np.exp(-2 * (x**2 - 1) ** 2), -4, 4)[0]

    def excess(q: float) -> float:
        return float(np.log(quad(lambda x: np.exp(-2 * (x**2 - 1) ** 2), q, 4, epsabs=0.0)[0] / total / mass))

    quantile = brentq(excess, 1.0, 3.0)
    low, high = ends(problem, mass)
    assert 0.97 * quantile < high < 1.1 * quantile
    assert -1.1 * quantile < low < -0.97 * quantile


@pytest.mark.parametrize("mass", MASSES)
def test_gaussian_tails_of_axes_and_times(mass: float) -> None:
    """Gaussian laws of an oblique noise with a drift: the largest over times, on each axis."""
    Lambda = np.array([[1.0, 0.6], [0.6, 0.5]])
    problem = process(LinearDrift([[0.0, 0.0], [0.0, 0.0]], [0.0, 2.0]), Lambda, Gaussian([1.0, 0.0], 0.04))
    lower, upper = beyond(problem, mass).bounds(mass)
    times, far = np.linspace(0.0, 1.0, 9)[:, None], norm.isf(mass)
    sd = np.sqrt(0.04 + times * np.diag(Lambda))
    middle = np.array([1.0, 0.0]) + times * np.array([0.0, 2.0])
    width = upper - lower
    np.testing.assert_allclose(lower, (middle - far * sd).min(axis=0), atol=0.04 * width.max())
    np.testing.assert_allclose(upper, (middle + far * sd).max(axis=0), atol=0.04 * width.max())


@pytest.mark.parametrize("known", [True, False])
def test_a_narrow_mode_beside_a_wide_one(known: bool) -> None:
    """Far out the wide component of a mixture is all there is, however little it weighs."""
    law = GaussianMixture([0.98, 0.02], [[0.0], [0.0]], [[[0.04]], [[1.0]]])
    problem = process(lambda t, x: 0.0 * x, 1e-6, law, **({"marginal": lambda t: law} if known else {}))
    low, high = ends(problem, 1e-9)
    quantile = norm.isf(1e-9 / 0.02)
    assert 0.95 * quantile < high < 1.25 * quantile
    assert 0.95 * quantile < -low < 1.25 * quantile
    assert extrapolated(problem, 1e-9)[1] < 0.8 * quantile


@pytest.mark.parametrize("known", [True, False])
def test_kernels_that_hardly_count_are_seen_far_out(known: bool) -> None:
    """Far out on the right the last of three kernels is all there is, although it weighs 1e-6; 1e-12 is nothing."""
    law = KernelDensity([[0.0], [3.0], [9.0]], 0.5, [1.0 - 1e-6 - 1e-12, 1e-6, 1e-12])
    problem = process(lambda t, x: 0.0 * x, 1e-6, law, **({"marginal": lambda t: law} if known else {}))
    low, high = ends(problem, 1e-9)
    assert 3.0 + 0.5 * norm.isf(1e-3) < high < 6.0
    assert -3.4 < low < -0.85 * 0.5 * norm.isf(1e-9)
    assert extrapolated(problem, 1e-9)[1] < 3.5


def test_a_wall_keeps_the_start_and_the_further_of_two_answers() -> None:
    """The law of a half line is |B|, of whom a Gaussian law is half."""
    half_line = Box([0.0], [np.inf], boundary=[["reflecting", "natural"]])
    problem = process(lambda t, x: 0.0 * x, 1.0, PointMass([0.5]), domain=half_line)
    assert ends(problem, 1e-9)[1] == pytest.approx(0.5 + norm.isf(1e-9), rel=0.06)
    near = replace(problem, initial_law=Gaussian([0.5], 0.01))
    assert ends(near, 1e-9)[1] >= extrapolated(near, 1e-9)[1] * (1 - 1e-12)


@dataclass(frozen=True)
class Laplace(Law):
    """A law of the user's."""

    dim: int = 1

    @property
    def expectation(self) -> FloatArray:
        return np.zeros(1)

    @property
    def covariance(self) -> FloatArray:
        return np.full((1, 1), 2.0)

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        return rng.laplace(size=(n, 1))

    def logpdf(self, x: Any) -> FloatArray:
        return np.asarray(-np.abs(np.asarray(x)[..., 0]) - np.log(2.0))

    def score(self, x: Any) -> FloatArray:
        return np.asarray(-np.sign(x))

    def quadrature(self, order: int) -> tuple[FloatArray, FloatArray]:
        raise NotImplementedError


@pytest.mark.parametrize(
    "problem",
    [
        process(lambda t, x: 0.0 * x, 1.0, Laplace()),
        process(lambda t, x: 3.0 * x**3 - x, 0.02, PointMass([0.0])),
        process(lambda t, x: np.where(np.abs(x) < 2.5, -4.0 * x, np.nan), 1.0, PointMass([0.0])),
        process(lambda t, x: -4.0 * x, lambda t, x: (1.0 - 0.1 * x**2)[..., None], PointMass([0.0])),
    ],
    ids=["a law that is not known", "explodes", "a drift that ends further out", "a noise that ends further out"],
)
def test_without_more_noise_tails_are_extrapolated(problem: ControlProblem) -> None:
    found, plain = beyond(problem, 1e-12), reach_of(sample_law(problem, 0).x)
    for name in ("median", "scale", "power"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


def test_masses_that_draws_show_need_no_more_noise() -> None:
    problem = zoo.get("lq", 1)
    np.testing.assert_array_equal(beyond(problem, 1e-2).power, reach_of(sample_law(problem, 0).x).power)


def test_the_same_seed_is_the_same_box() -> None:
    problem = exponential(0.4)
    np.testing.assert_array_equal(beyond(problem, 1e-9).power, beyond(problem, 1e-9).power)
    assert (beyond(problem, 1e-9, 1).power != beyond(problem, 1e-9, 2).power).any()
