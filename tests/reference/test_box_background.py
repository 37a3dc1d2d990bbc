"""The quadratic taken out of f: the value itself where a problem is linear-quadratic, harmless elsewhere."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, constant_gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_background import fields_at, quadratic_gauge, ranges
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import InfiniteValueError
from tests.support.exactness import hjb_residual


def constants(problem: ControlProblem) -> Gauge:
    return Gauge(temperature=problem.temperature, horizon=problem.horizon, terminal=0.0, running=0.0)


def background(problem: ControlProblem, width: float = 3.0) -> QuadraticGauge:
    d = problem.dim
    found = quadratic_gauge(problem, Box([-width] * d, [width + 1.0] * d), constants(problem))
    assert found is not None
    return found


class AsValue:
    """The background as a value function."""

    def __init__(self, quadratic: QuadraticGauge) -> None:
        self.value, self.gradient = quadratic.guess, quadratic.guess_gradient


@pytest.mark.parametrize(
    ("dim", "keywords"),
    [
        (1, {}),
        (1, {"a": 0.4, "q": -0.3, "s": 2.0, "temperature": 0.1}),
        (2, {"a": 0.3, "q": 0.5, "s": 1.0, "temperature": 0.2, "horizon": 2.5}),
        (2, {"R": -0.3, "cov": 1.0}),
        (3, {"s": 0.4, "temperature": 3.0}),
    ],
)
def test_nothing_is_left_of_linear_quadratic_problems(dim: int, keywords: Any):
    problem = zoo.get("lq", dim, **keywords)
    exact, quadratic = problem.exact, background(problem)
    assert exact is not None
    rng = np.random.default_rng(0)
    x, t = rng.uniform(-3, 4, (300, dim)), rng.uniform(0, problem.horizon, 300)
    u = np.exp((exact.value(t, x) - quadratic.guess(t, x)) / problem.temperature)
    np.testing.assert_allclose(u, 1.0, atol=1e-10)
    np.testing.assert_allclose(quadratic.guess_gradient(t, x), exact.gradient(t, x), atol=1e-9)
    moment = float(t[0])
    rate = quadratic.rate(moment, x, problem.r(moment, x), problem.b(moment, x), problem.Lambda(moment, x))
    assert np.abs(rate).max() < 1e-9
    above, below = ranges(problem, quadratic, x, fields_at(problem, x, np.linspace(0.0, problem.horizon, 5)))
    assert max(above, below) < 1e-9


def moving(wrong: float = 0.0) -> ControlProblem:
    """Linear-quadratic, every coefficient moving in time, the diffusion full."""

    def A(t: Any) -> FloatArray:
        s = np.asarray(t)[..., None, None]
        return np.asarray(-np.eye(2) + np.sin(3 * s) * np.array([[0.0, 0.8], [-0.5, 0.2]]))

    def drift(t: Any, x: FloatArray) -> FloatArray:
        lean = np.stack([np.cos(np.asarray(t)), np.asarray(t) ** 2], -1)
        return np.asarray(np.einsum("...ij,...j->...i", A(t), x) + lean + wrong * np.sin(x))

    def diffusion(t: Any, x: FloatArray) -> FloatArray:
        s = np.asarray(t)[..., None, None]
        matrix = np.array([[1.0, 0.2], [0.2, 0.6]]) + 0.5 * s * np.eye(2)
        return np.asarray(np.broadcast_to(matrix, (*x.shape, 2)))

    def running(t: Any, x: FloatArray) -> FloatArray:
        s = np.asarray(t)
        return np.asarray(-(1 + s) * (x**2).sum(-1) + np.cos(2 * s) * x[..., 0] * x[..., 1] + s * x[..., 0] - s)

    return ControlProblem(
        dim=2,
        horizon=1.5,
        temperature=0.4,
        drift=drift,
        diffusion=diffusion,
        running_reward=running,
        terminal_reward=lambda x: -0.5 * x[..., 0] ** 2 + x[..., 1] + 2.0,
        initial_law=Gaussian([0.0, 0.0], 0.3),
    )


def test_coefficients_that_move_in_time():
    rng = np.random.default_rng(1)
    t, x = rng.uniform(0.1, 1.4, 60), rng.uniform(-2, 3, (60, 2))
    problem = moving()
    quadratic = background(problem)
    assert hjb_residual(problem, AsValue(quadratic), t, x).max() < 1e-9
    end = np.full(60, 1.5)
    np.testing.assert_allclose(quadratic.guess(end, x), problem.y(x), atol=1e-10)
    for k in range(5):
        moment = float(t[k])
        rate = quadratic.rate(moment, x, problem.r(moment, x), problem.b(moment, x), problem.Lambda(moment, x))
        assert np.abs(rate).max() < 1e-8
    assert hjb_residual(moving(0.1), AsValue(background(moving(0.1))), t, x).max() > 1e-4  # not linear-quadratic


def pushed(begin: float, end: float) -> ControlProblem:
    def drift(t: Any, x: FloatArray) -> FloatArray:
        return -1.5 * x - 4.0 * ((np.asarray(t) > begin) & (np.asarray(t) < end))[..., None]

    return replace(zoo.get("lq", 1), drift=drift, exact=None, marginal=None)


@pytest.mark.parametrize(("begin", "end"), [(0.05, 0.27), (0.3, 0.31), (0.0, 0.4)])
def test_a_push_in_time_does_not_ring_where_there_is_none(begin: float, end: float) -> None:
    """Values after the push are those without it, and so is the background some time after it."""
    jumping, smooth = background(pushed(begin, end)), background(pushed(2.0, 2.0))
    x = np.linspace(-2.0, 3.0, 7)[:, None]
    for later, tolerance in ((0.3, 1e-5), (0.5, 1e-9)):
        t = np.linspace(end + later, 1.0, 4000)[:, None]
        gap = jumping.guess(t, x) - smooth.guess(t, x)
        assert np.abs(gap).max() < tolerance
        assert np.abs(np.diff(gap, axis=0) / np.diff(t, axis=0)).max() < 1e2 * tolerance  # which the rate of u undoes


def test_it_is_used_where_it_fits_and_where_it_does_not_there_is_none():
    problem = zoo.get("brownian-mixture", 1)
    narrow, wide = Box([-1.2], [1.2]), Box([-4.0], [4.0])
    assert quadratic_gauge(problem, narrow, constants(problem)) is None  # between two hills the reward curves upwards
    found = quadratic_gauge(problem, wide, constants(problem))
    assert found is not None
    assert found.constants.temperature == problem.temperature
    np.testing.assert_array_equal(found.centre, [0.0])
    x, times = np.linspace(-4, 4, 41)[:, None], np.linspace(0.0, 1.0, 5)
    fields = fields_at(problem, x, times)
    assert sum(ranges(problem, found, x, fields)) < 0.7 * sum(
        ranges(problem, constant_gauge(problem, x, times), x, fields)
    )


def upward(k: float, **changes: Any) -> ControlProblem:
    """Brownian motion, y = k |x|^2: f is finite only for 2 k (T - t) < alpha."""
    given = {
        "dim": 1,
        "horizon": 1.0,
        "temperature": 0.8,
        "drift": lambda t, x: 0.0 * x,
        "diffusion": 1.0,
        "terminal_reward": lambda x: k * (x**2).sum(-1),
        "initial_law": Gaussian([0.0], 0.1),
        "name": "upward",
    }
    return ControlProblem(**{**given, **changes})


def test_an_infinite_value_is_an_error_with_its_time():
    with pytest.raises(InfiniteValueError, match=r"'upward' is \+infinity before t = 0.6.*let the rewards grow"):
        background(upward(1.0))
    with pytest.raises(InfiniteValueError, match="blows up"):
        background(upward(0.0, running_reward=lambda t, x: 3.0 * (x**2).sum(-1)))
    tame = background(upward(0.39))
    assert tame.guess(0.0, [[0.0]])[0] == pytest.approx(-0.4 * np.log(1 - 2 * 0.39 / 0.8), rel=1e-8)


def test_far_away_quadratics_decide():
    """Bounded things besides do not change that the value is infinite, nor since when."""

    def found(k: float, y: Any, b: Any = lambda x: 0.0 * x, **others: Any) -> QuadraticGauge | None:
        of = upward(0.0, terminal_reward=lambda x: k * (x**2).sum(-1) + y(x), drift=lambda t, x: b(x), **others)
        return quadratic_gauge(of, Box([-2.0], [2.0]), constants(of))

    for bounded in (
        lambda x: np.cos(3 * x[..., 0]),
        lambda x: 3.0 * np.tanh(x[..., 0]),
        lambda x: -np.abs(x[..., 0]),
    ):
        with pytest.raises(InfiniteValueError, match=r"before t = 0\.(599|60).*everywhere or far away"):
            found(1.0, bounded)
    with pytest.raises(InfiniteValueError, match=r"before t = 0\.(599|60)"):
        found(1.0, lambda x: np.cos(x[..., 0]), lambda x: np.sin(2.0 * x))
    with pytest.raises(InfiniteValueError):
        found(0.0, lambda x: np.cos(x[..., 0]), running_reward=lambda t, x: 3.0 * (x**2).sum(-1))
    assert found(0.405, lambda x: np.abs(x[..., 0])) is None  # before t = 0.012, if not for that: nobody knows
    assert found(1.0, lambda x: np.minimum(0.0, 1e3 - x[..., 0] ** 2)) is None  # a plain far away
    assert found(1.0, lambda x: np.cos(3 * x[..., 0]), lambda x: -(x**3)) is not None  # drifts that hold
    with pytest.raises(InfiniteValueError):  # rewards that fail there: it is what it is on the box
        found(1.0, lambda x: np.full(x.shape[:-1], 0.1 / (np.abs(x).max() < 40.0)))


@pytest.mark.parametrize("name", ["brownian-mixture", "mixture-diffusion"])
def test_ranges_bound_what_is_left(name: str):
    problem = zoo.get(name, 1)
    exact = problem.exact
    assert exact is not None
    x, times = np.linspace(-4, 4, 81)[:, None], np.linspace(0.0, 1.0, 9)
    for found in (constant_gauge(problem, x, times), background(problem, 4.0)):
        above, below = ranges(problem, found, x, fields_at(problem, x, times))
        logs = np.array([exact.value(t, x[20:61]) - found.guess(t, x[20:61]) for t in times]) / problem.temperature
        assert logs.max() <= above + 1e-9
        assert -logs.min() <= below + 1e-9
    hot = replace(problem, temperature=10 * problem.temperature, exact=None)
    assert (
        ranges(hot, constant_gauge(hot, x, times), x, fields_at(hot, x, times))[1]
        < ranges(problem, constant_gauge(problem, x, times), x, fields_at(problem, x, times))[1]
    )
