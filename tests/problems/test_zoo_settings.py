"""Settings of the literature in the zoo: closed forms away from the jumps they end in, figures known from elsewhere."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import solve_banded
from scipy.stats import norm

import fem_hjb as fh
from fem_hjb.problems import zoo
from fem_hjb.support.errors import ProblemError
from tests.support.exactness import gradient_error, hjb_residual, space_derivative

ROUGH = {  # rewards that jump or have kinks, wide enough for differences: the closed form is smooth before T only
    "digital": zoo.get("digital-option", sigma=2.0, rate=0.3, horizon=1.5),
    "digital-below": zoo.get("digital-option", sigma=1.5, spot=40.0),
    "barrier": zoo.get("down-and-out-call", sigma=1.5, rate=0.2, barrier=60.0),
    "slits": zoo.get("double-slit", temperature=0.5, wall=35.0),
    "three-slits": zoo.get("double-slit", temperature=1.0, after=0.4, slits=[[-3, -2], [0, 1], [2, 2.5]], wall=9.0),
}


@pytest.mark.parametrize("problem", ROUGH.values(), ids=ROUGH)
def test_closed_forms_of_rewards_that_jump_solve_the_hjb_equation(problem):
    rng = np.random.default_rng(0)
    x = problem.initial_law.expectation + rng.standard_normal((200, 1))
    if problem.domain is not None:
        x = np.maximum(x, problem.domain.lower + 0.05)
    t = problem.horizon * rng.uniform(0.02, 0.7, 200)
    assert hjb_residual(problem, problem.exact, t, x).max() < 1e-7
    assert gradient_error(problem, problem.exact, t, x) < 1e-8
    np.testing.assert_allclose(problem.exact.value(problem.horizon, x), problem.y(x), atol=1e-12)
    expected = problem.policy_from_gradient(t, x, problem.exact.gradient(t, x))
    np.testing.assert_allclose(problem.exact.policy(t, x), expected, rtol=1e-13, atol=1e-14)
    assert np.isfinite(problem.exact.gradient(problem.horizon, x)).all()


def test_a_closed_form_with_another_volatility_does_not_solve_the_equation():
    problem, other = ROUGH["digital"], zoo.get("digital-option", sigma=2.1, rate=0.3, horizon=1.5)
    x = problem.initial_law.expectation + np.linspace(-1, 1, 20)[:, None]
    assert hjb_residual(problem, other.exact, np.full(20, 0.7), x).max() > 1e-3


def test_the_digital_option_has_the_price_of_black_and_scholes():
    problem = zoo.get("digital-option", spot=90.0, strike=100.0, sigma=0.3, rate=0.04, horizon=0.5)
    d2 = (np.log(0.9) + (0.04 - 0.045) * 0.5) / (0.3 * np.sqrt(0.5))
    assert np.expm1(problem.exact.value(0.0, [np.log(90.0)])) == pytest.approx(norm.cdf(d2), rel=1e-13)


def test_the_barrier_is_felt_and_its_option_is_a_call_without_it():
    def price(barrier):
        problem = zoo.get("down-and-out-call", barrier=barrier, sigma=0.2, rate=0.05)
        return np.exp(-0.05) * 100 * np.expm1(problem.exact.value(0.0, [np.log(100.0)]))

    assert price(1.0) == pytest.approx(10.450583572, rel=1e-9)  # the call of Black and Scholes
    assert price(85.0) < price(1.0) - 0.05
    at_the_face = zoo.get("down-and-out-call").exact.value([0.0, 0.5], np.log([[85.0], [85.0]]))
    np.testing.assert_allclose(at_the_face, 0.0, atol=1e-14)


def test_the_barrier_option_is_what_paths_earn():
    """Paths that are absorbed by the chance of a Brownian bridge, for a constant drift exactly."""
    problem, n = zoo.get("down-and-out-call", barrier=90.0), 100_000
    z = np.random.default_rng(1).standard_normal(n)
    end = np.log(100.0) + (0.05 - 0.03125) + 0.25 * z
    from_face, to_face = np.log(100 / 90), end - np.log(90.0)
    stays = np.where(to_face > 0, -np.expm1(-2 * from_face * to_face / 0.0625), 0.0)
    paid = stays * np.maximum(np.exp(end) / 100 - 1, 0)
    error = paid.std() / np.sqrt(n)
    assert error < 1e-3
    assert abs(paid.mean() - np.expm1(problem.exact.value(0.0, [np.log(100.0)]))) < 4 * error
    assert abs(np.maximum(np.exp(end) / 100 - 1, 0).mean() - paid.mean()) > 10 * error


def test_the_slits_are_what_quadrature_says():
    """f_0 as an integral over the slits, and over the wall, of the law at the wall times what is left to be paid."""
    problem = zoo.get("double-slit", wall=14.0, temperature=0.5, x0=0.3)

    def behind(z):
        """E exp(-X^2/(2 alpha)) after one unit of time."""
        return quad(lambda w: norm.pdf(w) * np.exp(-((z + w) ** 2)), -9, 9)[0]

    def share(edges, of):
        return sum(quad(lambda z: norm.pdf(z, 0.3) * of(z), a, b, epsabs=1e-13)[0] for a, b in edges)

    passed = share([(-6, -4), (4, 6)], behind)
    stopped = np.exp(-14.0) * (1 - share([(-6, -4), (4, 6)], lambda z: 1.0))
    assert problem.exact.value(0.0, [0.3]) == pytest.approx(0.5 * np.log(passed + stopped), rel=1e-9)
    np.testing.assert_allclose(problem.y([[5.0], [3.0]]), [0.5 * np.log(behind(5.0)), -7.0], rtol=1e-9)


def test_a_higher_wall_hardly_matters_and_a_low_one_does():
    start = [-1.0]
    values = [zoo.get("double-slit", wall=wall).exact.value(0.0, start) for wall in (18.5, 30.0, 60.0)]
    assert values[2] == pytest.approx(-1.582234, abs=1e-6)
    assert abs(values[1] - values[2]) < 1e-6
    assert values[0] - values[2] > 1e-3


@pytest.mark.parametrize("d", [1, 2, 3, 20])
def test_the_log_cost_is_what_quadrature_says(d):
    problem = zoo.get("hjb-log", d)
    radii, weights = np.polynomial.legendre.leggauss(400)
    radius = 12.5 * (radii + 1)  # of |Z|, chi with d degrees of freedom
    log_density = (d - 1) * np.log(radius) - 0.5 * radius**2
    density = np.exp(log_density - log_density.max())
    mean = (weights * density * 2 / (1 + 2 * radius**2)).sum() / (weights * density).sum()
    assert problem.exact.value(0.0, np.zeros(d)) == pytest.approx(np.log(mean), rel=1e-9)


def test_the_log_cost_in_a_hundred_dimensions_is_the_published_one():
    problem = zoo.get("hjb-log", 100)
    assert -problem.exact.value(0.0, np.zeros(100)) == pytest.approx(4.5901, abs=1e-4)
    far = problem.exact.value(0.5, np.full(100, 30.0))
    assert far == pytest.approx(np.log(2 / (1 + 90_000 + 100)), abs=1e-3)


def test_targets_of_samplers_are_normalised():
    for d in (1, 2, 3):
        mixture = zoo.get("foellmer-mixture", d, temperature=0.7)
        assert abs(mixture.exact.value(0.0, np.zeros(d))) < 1e-12
    problem = zoo.get("foellmer-funnel", sd=0.8, horizon=2.0, temperature=0.5)
    first = np.linspace(-8, 8, 4001)
    second = np.linspace(-60, 60, 6001)
    x = np.stack(np.meshgrid(first[::10], second, indexing="ij"), -1)
    density = np.exp(problem.y(x) / 0.5 - 0.25 * (x**2).sum(-1)) / (4 * np.pi)
    assert density.sum() * 0.04 * 0.02 == pytest.approx(1.0, abs=1e-3)
    at = np.array([0.4, -0.7])
    target = norm.pdf(0.4, 0, 0.8) * norm.pdf(-0.7, 0, np.exp(0.2))
    assert np.exp(problem.y(at) / 0.5) == pytest.approx(target / np.prod(norm.pdf(at, 0, np.sqrt(2.0))))


def test_the_nine_modes_are_those_of_the_source():
    problem = zoo.get("foellmer-mixture")
    modes = np.array([[i, j] for i in (-5.0, 0, 5) for j in (-5.0, 0, 5)])
    x = np.random.default_rng(2).normal(size=(20, 2), scale=4)
    target = sum(np.exp(-((x - m) ** 2).sum(-1) / 0.6) for m in modes) / (9 * 2 * np.pi * 0.3)
    np.testing.assert_allclose(np.exp(problem.y(x)), target * 10 * np.pi * np.exp((x**2).sum(-1) / 10), rtol=1e-9)


def potential(name):
    if name == "hitting-time":
        return lambda _, x: 5 * ((x**2 - 1) ** 2).sum(-1) + x[..., 0] * x[..., 1]
    if name == "ring":
        return lambda _, x: 0.05 * ((x**2).sum(-1) - 25) * (x**2).sum(-1)

    def mueller_brown(_, x):
        u, v = x[..., 0], x[..., 1]
        return (
            -200 * np.exp(-((u - 1) ** 2) - 10 * v**2)
            - 100 * np.exp(-(u**2) - 10 * (v - 0.5) ** 2)
            - 170 * np.exp(-6.5 * (u + 0.5) ** 2 + 11 * (u + 0.5) * (v - 1.5) - 6.5 * (v - 1.5) ** 2)
            + 15 * np.exp(0.7 * (u + 1) ** 2 + 0.6 * (u + 1) * (v - 1) + 0.7 * (v - 1) ** 2)
        )

    return mueller_brown


@pytest.mark.parametrize("name", ["hitting-time", "ring", "mueller-brown"])
def test_processes_drift_down_their_potential(name):
    problem, rng = zoo.get(name, 2), np.random.default_rng(3)
    x = problem.initial_law.expectation + 0.3 * rng.normal(size=(20, 2))
    expected = -space_derivative(potential(name), 0.0, x, 2e-3)
    np.testing.assert_allclose(problem.b(0.0, x), expected, rtol=1e-7, atol=1e-7)


def test_minima_of_mueller_and_brown_are_where_they_are_said_to_be():
    problem = zoo.get("mueller-brown")
    heights = {(-0.558, 1.442): -146.700, (0.623, 0.028): -108.167, (-0.050, 0.467): -80.768}
    for point, height in heights.items():
        x = np.array([point])
        assert np.abs(problem.b(0.0, x)).max() < 2  # stiffness a thousand, three digits
        assert potential("mueller-brown")(0.0, x) == pytest.approx(height, abs=1e-2)


def test_the_maier_stein_process_has_a_potential_for_bend_one_only():
    x = np.random.default_rng(4).normal(size=(10, 2))
    for bend, same in ((1.0, True), (10.0, False)):
        problem = zoo.get("maier-stein", bend=bend)
        np.testing.assert_array_equal(problem.b(0.0, [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), 0.0)
        jacobian = space_derivative(problem.b, 0.0, x, 1e-2)
        assert (np.abs(jacobian - np.swapaxes(jacobian, 1, 2)).max() < 1e-9) == same


def test_the_hitting_time_without_a_horizon_is_a_boundary_value_problem():
    """E exp(-tau) from -1: (1/beta) f'' - V' f' - f = 0, f(1) = 1, by finite differences on [-3.5, 1]."""
    m, kappa = 6000, 2.0
    h = 4.5 / m
    x = -3.5 + h * np.arange(m)
    drift = -4 * kappa * x * (x**2 - 1)
    up, down = 1 / h**2 + drift / (2 * h), 1 / h**2 - drift / (2 * h)
    up[0], down[0] = 2 / h**2, 0.0
    band = np.zeros((3, m))
    band[0, 1:], band[1], band[2, :-1] = up[:-1], -(2 / h**2 + 1), down[1:]
    right = np.zeros(m)
    right[-1] = -up[-1]
    v = np.log(np.interp(-1.0, x, solve_banded((1, 1), band, right)))
    assert v == pytest.approx(-2.08823, abs=1e-4)
    found = fh.solve(zoo.get("hitting-time", 1, kappa=kappa), rtol=3e-3)
    assert found.status == "ok"
    assert found.value(0.0, [-1.0]) == pytest.approx(v, abs=1e-3)


BAD = {
    "sigma": (lambda: zoo.get("digital-option", sigma=-1.0), "sigma must be a positive finite number"),
    "rate": (lambda: zoo.get("digital-option", rate=np.inf), "rate must be finite"),
    "spot": (lambda: zoo.get("down-and-out-call", spot=0.0), "spot must be a positive finite number"),
    "barrier": (lambda: zoo.get("down-and-out-call", barrier=120.0), "barrier must lie below spot .* got 120, 100"),
    "slits": (lambda: zoo.get("double-slit", slits=[[1.0, 0.0]]), r"slits must be intervals \(k, 2\) in increasing"),
    "slits-flat": (lambda: zoo.get("double-slit", slits=[1.0, 2.0]), r"slits must be intervals \(k, 2\)"),
    "wall": (lambda: zoo.get("double-slit", wall=1.0), r"wall must be above 17.6, .* got 1"),
    "wall-infinite": (lambda: zoo.get("double-slit", wall=np.inf), "wall must be finite"),
    "modes": (lambda: zoo.get("foellmer-mixture", 3, side=100), r"side=100 makes 100\^3 modes, at most 10000"),
    "variance": (lambda: zoo.get("foellmer-mixture", variance=0.0), "variance must be a positive finite number"),
    "sd": (lambda: zoo.get("foellmer-funnel", sd=-1.0), "sd must be a positive finite number"),
    "x0": (lambda: zoo.get("hitting-time", x0=1.0), "x0 must be below 1, where the process is stopped, got 1"),
    "kappa": (lambda: zoo.get("hitting-time", kappa=0.0), "kappa must be a positive finite number"),
    "nu": (lambda: zoo.get("mueller-brown", nu=-1.0), "nu must be non-negative, got -1"),
    "nu-maier": (lambda: zoo.get("maier-stein", nu=-1.0), "nu must be non-negative, got -1"),
    "target": (lambda: zoo.get("maier-stein", target=[1.0]), r"target must have shape \(2,\)"),
    "scale": (lambda: zoo.get("ring", scale=0.0), "scale must be a positive finite number"),
    "x0-shape": (lambda: zoo.get("hjb-log", 2, x0=[1.0]), r"x0 must have shape \(2,\)"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_ill_formed_requests_are_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()
