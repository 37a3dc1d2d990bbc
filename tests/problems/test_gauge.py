"""The Cole-Hopf transform: round trips, the equation the gauged f solves, and f that is not positive."""

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.gauge import (
    UNDERFLOW,
    Gauge,
    QuadraticGauge,
    Unknown,
    ValueGauge,
    constant_gauge,
    range_in_temperatures,
)
from fem_hjb.support.errors import DomainError, PositivityError, ProblemError
from tests.support.exactness import space_derivative, time_derivative

GAUGE = Gauge(temperature=0.5, horizon=2.0, terminal=3.0, running=-1.0)


def test_round_trip_at_extreme_values():
    v = np.array([-300.0, -1.0, 0.0, 3.0, 100.0])
    t, x = np.linspace(0.0, 2.0, 5), np.zeros((5, 1))
    np.testing.assert_allclose(GAUGE.value(t, x, GAUGE.u(t, x, v)), v, atol=1e-11)


def test_offset_by_hand():
    assert GAUGE.guess(0.5, [0.0]) == 1.5
    assert GAUGE.u(0.5, [0.0], 2.0) == pytest.approx(np.exp(1.0), rel=1e-15)


def test_gauge_makes_rewards_non_positive_on_its_points_and_keeps_f_below_one():
    problem = zoo.get("lq", dim=2, a=0.3, q=0.5, s=1.0, temperature=0.2)
    x = problem.initial_law.sample(500, np.random.default_rng(0))
    times = np.linspace(0, 1, 5)
    g = constant_gauge(problem, x, times)
    assert (g.temperature, g.horizon) == (problem.temperature, problem.horizon)
    assert g.terminal == problem.y(x).max()
    assert g.terminal_u(problem, x).max() == 1.0
    assert max(g.rate(t, x, problem.r(t, x)).max() for t in times) == 0.0
    assert constant_gauge(zoo.get("linear-ou"), [[0.0]], 0.0).running == 0.0


def test_running_gauge_sees_every_time():
    problem = zoo.get("lq")
    moving = type(problem)(
        **{
            name: getattr(problem, name)
            for name in ("dim", "horizon", "temperature", "drift", "diffusion", "terminal_reward", "initial_law")
        },
        running_reward=lambda t, x: 4 * np.asarray(t) * (1 - np.asarray(t)) + 0 * x[..., 0],
    )
    assert constant_gauge(moving, np.zeros((3, 1)), [0.0, 0.5, 1.0]).running == 1.0
    assert constant_gauge(moving, np.zeros((3, 1)), [0.0, 1.0]).running == 0.0


def test_gauged_f_solves_the_gauged_linear_equation():
    problem = zoo.get("lq", dim=2, s=0.4, temperature=0.7)
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(50, 2)), rng.uniform(0.1, 0.9, 50)
    g = constant_gauge(problem, x, [0.0, 1.0])

    def f(t, x):
        return g.u(t, x, problem.exact.value(t, x))

    def slope(t, x):
        return space_derivative(f, t, x, 2e-2)

    def residual(rate):
        terms = [
            time_derivative(f, t, x, 5e-3),
            (problem.b(t, x) * slope(t, x)).sum(-1),
            0.5 * np.einsum("nij,nij->n", problem.Lambda(t, x), space_derivative(slope, t, x, 2e-2)),
            rate * f(t, x),
        ]
        return np.abs(np.sum(terms, 0)).max() / np.abs(terms).sum(0).max()

    assert residual(g.rate(t, x, problem.r(t, x))) < 1e-9
    assert residual(g.rate(t, x, problem.r(t, x)) + 0.01) > 1e-4  # the wrong gauge is seen
    np.testing.assert_allclose(g.terminal_u(problem, x), f(1.0, x), rtol=1e-12)


def test_f_that_is_not_positive_is_reported_with_place_and_depth():
    t, x = np.array([0.0, 1.0, 2.0]), np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    with pytest.raises(
        PositivityError,
        match=r"f <= 0 at 2 of 3 points, the lowest is f=-0\.25 at t=1, x=\[2\.0, 3\.0\]; f undershoots there: refine",
    ):
        GAUGE.value(t, x, [1.0, -0.25, 0.0])
    with pytest.raises(PositivityError, match=r"f=-1 at t=0\.5, x=\[0\.0\]; f undershoots"):
        GAUGE.value(0.5, np.zeros((2, 1)), [np.nan, -1.0])
    with pytest.raises(PositivityError, match=r"f underflows there.*raise the temperature"):
        GAUGE.value(0.0, np.zeros((2, 1)), GAUGE.u(0.0, np.zeros((2, 1)), [0.0, -1000.0]))


def test_nan_passes_through():
    v = GAUGE.value(0.0, np.zeros((2, 1)), [1.0, np.nan])
    assert np.isfinite(v[0])
    assert np.isnan(v[1])


def test_the_range_tells_underflow_before_it_happens():
    cold = zoo.get("lq", temperature=1e-3)
    x = np.linspace(-2, 2, 41)[:, None]
    assert range_in_temperatures(cold, x, [0.0, 1.0]) == pytest.approx(4000.0)  # (2 + 1 * 2) / 1e-3
    assert range_in_temperatures(zoo.get("lq"), x, [0.0, 1.0]) == pytest.approx(4.0)
    g = constant_gauge(cold, x, [0.0, 1.0])
    v = cold.exact.value(1.0, x)
    assert UNDERFLOW < np.max(g.guess(1.0, x) - v) / 1e-3 == pytest.approx(2000.0)
    assert g.u(1.0, x, v).min() == 0.0
    warm = zoo.get("lq")
    assert -np.log(constant_gauge(warm, x, [0.0, 1.0]).u(0.0, x, warm.exact.value(0.0, x))).min() < 4.0


BAD = {
    "temperature": (lambda: Gauge(temperature=0, horizon=1, terminal=0, running=0), "temperature must be a positive"),
    "constant": (lambda: Gauge(temperature=1, horizon=1, terminal=np.nan, running=0), "'terminal' must be finite"),
    "no-points": (
        lambda: constant_gauge(zoo.get("lq"), np.zeros((0, 1)), [0.0]),
        "needs points and times, got 0 and 1",
    ),
    "no-times": (lambda: range_in_temperatures(zoo.get("lq"), np.zeros((2, 1)), []), "got 2 and 0"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_ill_formed_gauges_are_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()


def test_times_outside_the_horizon_are_refused():
    with pytest.raises(DomainError, match=r"t must lie in \[0, 2\]"):
        GAUGE.guess(2.5, [0.0])
    with pytest.raises(DomainError, match=r"times must lie in \[0, 1\]"):
        constant_gauge(zoo.get("lq"), [[0.0]], [0.0, 3.0])


# ------------------------------------------------------------------------------------ what unknowns stand for


def moving_quadratic():
    """A quadratic in x whose coefficients are polynomials in t, and solve no equation."""
    rng = np.random.default_rng(5)
    P = rng.normal(size=(4, 2, 2))
    return QuadraticGauge(
        constants=GAUGE, centre=[0.3, -0.2], P=P + np.swapaxes(P, 1, 2), p=rng.normal(size=(4, 2)), c=rng.normal(size=4)
    )


QUADRATIC = moving_quadratic()
UNKNOWNS = {
    "constants": GAUGE,
    "quadratic": QUADRATIC,
    "value, constants": ValueGauge(background=GAUGE),
    "value, quadratic": ValueGauge(background=QUADRATIC),
}


def smooth(t, x):
    """A positive u."""
    return 1.5 + np.sin(x[..., 0] + 2 * x[..., 1] + np.asarray(t))


@pytest.mark.parametrize("unknown", UNKNOWNS.values(), ids=UNKNOWNS)
def test_value_gradient_and_f_fit_each_other(unknown):
    assert isinstance(unknown, Unknown)
    assert (unknown.temperature, unknown.horizon) == (0.5, 2.0)
    rng = np.random.default_rng(2)
    x, t = rng.normal(size=(40, 2)), rng.uniform(0.2, 1.8, 40)
    u, slope = smooth(t, x), space_derivative(smooth, t, x, 1e-2)
    v = unknown.value(t, x, u)
    expected = space_derivative(lambda t, x: unknown.value(t, x, smooth(t, x)), t, x, 1e-2)
    np.testing.assert_allclose(unknown.gradient(t, x, u, slope), expected, atol=1e-10)
    np.testing.assert_allclose(unknown.f(t, x, u), GAUGE.u(t, x, v), rtol=1e-12)
    taken = getattr(unknown, "background", unknown)
    np.testing.assert_allclose(unknown.u(t, x, v), u, rtol=1e-11)
    left = v - taken.guess(t, x)
    np.testing.assert_allclose(left, u if unknown is not taken else 0.5 * np.log(u), atol=1e-12)
    # one time for all points, and many points for each time
    np.testing.assert_allclose(unknown.value(0.7, x, smooth(0.7, x))[3], unknown.value(0.7, x[3], smooth(0.7, x[3])))
    grid = unknown.value(np.array([[0.1], [0.9]]), x, np.ones((2, 40)))
    np.testing.assert_allclose(grid[1], unknown.value(0.9, x, np.ones(40)))


@pytest.mark.parametrize("background", [GAUGE, QUADRATIC], ids=["constants", "quadratic"])
@pytest.mark.parametrize("constant", [True, False])
def test_the_rate_is_the_equation_applied_to_the_background(background, constant):
    rng = np.random.default_rng(3)
    x, t = rng.normal(size=(30, 2)), 0.8
    times = np.full(30, t)
    drift, reward = rng.normal(size=(30, 2)), rng.normal(size=30)
    roots = rng.normal(size=(1 if constant else 30, 2, 2))
    Lambda = np.broadcast_to(roots @ np.swapaxes(roots, 1, 2) + np.eye(2), (30, 2, 2))
    slope = space_derivative(background.guess, times, x, 1e-2)
    hessian = space_derivative(background.guess_gradient, times, x, 1e-2)
    expected = time_derivative(background.guess, times, x, 1e-2)
    expected = expected + (drift * slope).sum(-1) + 0.5 * np.einsum("nij,nij->n", Lambda, hessian) + reward
    expected = (expected + np.einsum("ni,nij,nj->n", slope, Lambda, slope)) / 0.5  # 1 / (2 alpha) is 1
    np.testing.assert_allclose(background.guess_gradient(times, x), slope, atol=1e-9)
    np.testing.assert_allclose(background.rate(t, x, reward, drift, Lambda), expected, rtol=1e-8, atol=1e-8)
    assert np.abs(background.rate(t, x, reward, drift, 1.01 * Lambda) - expected).max() > 1e-2 * (
        background is QUADRATIC
    )


def test_coefficients_of_a_quadratic_move_in_time():
    times = np.array([0.3, 1.1])
    P, p, c = QUADRATIC.coefficients(times)
    assert (P.shape, p.shape, c.shape) == ((2, 2, 2), (2, 2), (2,))
    one = QUADRATIC.coefficients(1.1)
    for many, single in zip((P, p, c), one, strict=True):
        np.testing.assert_allclose(many[1], single)
    rates, h = QUADRATIC.coefficients(1.1, 1), 1e-5
    for rate, later, earlier in zip(
        rates, QUADRATIC.coefficients(1.1 + h), QUADRATIC.coefficients(1.1 - h), strict=True
    ):
        np.testing.assert_allclose(rate, (later - earlier) / (2 * h), rtol=1e-6, atol=1e-6)


def test_values_need_no_logarithm_and_do_not_underflow():
    unknown = ValueGauge(background=GAUGE)
    x = np.zeros((3, 2))
    v = unknown.value(0.0, x, [-1e5, 0.0, np.nan])
    assert v[0] == pytest.approx(GAUGE.guess(0.0, [0.0]) - 1e5)
    assert np.isnan(v[2])
    np.testing.assert_array_equal(unknown.f(0.0, x[:2], np.array([-1e5, 0.0])), [0.0, 1.0])
    for logarithmic in (GAUGE, QUADRATIC):
        with pytest.raises(PositivityError, match="f <= 0 at 1 of 3"):
            logarithmic.value(0.0, x, [-1e5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"centre": [0.0]}, r"centre must have shape \(2,\), got shape \(1,\)"),
        ({"P": np.zeros((4, 2))}, r"P must have shape \(4, 2, 2\)"),
        ({"c": np.zeros(3)}, r"c must have shape \(4,\)"),
        ({"p": np.full((4, 2), np.nan)}, "p must be finite, got 8"),
    ],
)
def test_ill_formed_quadratics_are_refused(changes, message):
    given = {
        "constants": GAUGE,
        "centre": [0.0, 0.0],
        "P": np.zeros((4, 2, 2)),
        "p": np.zeros((4, 2)),
        "c": np.zeros(4),
    }
    with pytest.raises(ProblemError, match=message):
        QuadraticGauge(**{**given, **changes})
