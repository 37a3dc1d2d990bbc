"""Coefficients in time: where they jump, how many times a table needs, and what a user's callables are asked for."""

from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.gauge import Gauge, QuadraticGauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_coefficients import (
    CHUNK,
    Coefficients,
    Table,
    by_field,
    check_elliptic,
    inside,
    lobatto,
    times_needed,
)
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import EllipticityError

ALPHA = 0.6
CONSTANTS = Gauge(temperature=ALPHA, horizon=1.0, terminal=0.2, running=0.1)
POINTS = np.random.default_rng(0).normal(size=(20, 2))


def still(t: Any, x: FloatArray) -> FloatArray:
    return np.asarray(-x + 0.0 * np.asarray(t)[..., None])


def full(t: Any, x: FloatArray) -> FloatArray:
    """Lambda that depends on everything."""
    low = np.zeros((*x.shape, x.shape[-1]))
    low[...] = 0.8 * np.eye(x.shape[-1])
    low[..., 0, 0] += 0.2 * np.sin(x[..., -1] + np.asarray(t))
    low[..., -1, 0] += 0.3 * np.cos(x[..., 0])
    return low @ np.swapaxes(low, -1, -2)


def problem_of(drift: Any = still, **more: Any) -> ControlProblem:
    given = {
        "dim": 2,
        "horizon": 1.0,
        "temperature": ALPHA,
        "drift": drift,
        "diffusion": 0.7,
        "terminal_reward": lambda x: -(x**2).sum(-1),
        "initial_law": Gaussian(np.zeros(2), 0.1),
    }
    return ControlProblem(**{**given, **more})


def of(drift: Any = still, *, linear: bool = False, background: Any = CONSTANTS, **more: Any) -> Coefficients:
    return Coefficients(problem_of(drift, **more), background, linear)


def scaled(factor: Any) -> Any:
    """The drift -factor(t) x."""
    return lambda t, x: np.asarray(-x * np.asarray(factor(np.asarray(t)), dtype=np.float64)[..., None])


def moving_quadratic() -> QuadraticGauge:
    P = np.array([[[0.5, 0.1], [0.1, 0.4]], [[0.1, 0.0], [0.0, -0.2]], [[0.02, 0.0], [0.0, 0.01]]])
    p = np.array([[0.3, -0.2], [0.1, 0.1], [0.0, 0.05]])
    return QuadraticGauge(constants=CONSTANTS, centre=np.array([0.1, -0.1]), P=P, p=p, c=np.array([0.2, 0.1, 0.3]))


# Fields


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("diffusion", [0.7, np.array([[1.0, 0.3], [0.3, 0.6]]), full], ids=["number", "full", "varies"])
def test_fields_are_those_of_the_equation(diffusion: Any, linear: bool) -> None:
    """<b + Lambda grad v0 / alpha> and rate, where v0 solves nothing."""
    v0 = moving_quadratic()
    found = of(scaled(lambda t: 1 + t), linear=linear, background=v0, diffusion=diffusion, running_reward=reward)
    t, x, problem = 0.37, POINTS, found.problem
    Lambda, slope, e = problem.Lambda(t, x), v0.guess_gradient(t, x), 1e-5
    drift = problem.b(t, x) + np.einsum("nij,nj->ni", Lambda, slope) / ALPHA
    change = (v0.guess(t + e, x) - v0.guess(t - e, x)) / (2 * e)
    curvature = -v0.coefficients(t)[0]
    rate = change + (problem.b(t, x) * slope).sum(-1) + 0.5 * np.einsum("nij,ij->n", Lambda, curvature)
    rate += problem.r(t, x) + np.einsum("ni,nij,nj->n", slope, Lambda, slope) / (2 * ALPHA)
    values = found.at(t, x)
    np.testing.assert_allclose(values[:2], drift.T, atol=1e-12)
    np.testing.assert_allclose(values[2], rate / (ALPHA if linear else 1.0), atol=1e-8)
    if diffusion is full:
        np.testing.assert_allclose(values[3:], [Lambda[:, 0, 0], Lambda[:, 0, 1], Lambda[:, 1, 1]], atol=1e-13)
        assert found.names == ["drift"] * 2 + ["reward"] + ["diffusion"] * 3
    else:
        assert len(values) == len(found.names) == 3
    assert np.abs(found.at(0.4, x) - values).max() > 1e-3
    times = np.array([0.2, 0.37, 0.9])
    np.testing.assert_allclose(found.over(times, x), [found.at(t, x) for t in times.tolist()], atol=1e-13)


def reward(t: Any, x: FloatArray) -> FloatArray:
    return np.asarray(np.asarray(t) * np.cos(x).sum(-1))


def test_calls_and_points_are_counted() -> None:
    asked: list[int] = []

    def drift(t: Any, x: FloatArray) -> FloatArray:
        asked.append(x.size // 2)
        return still(t, x)

    found = of(drift)
    asked.clear()
    assert (found.calls, found.points, found.seconds) == (0, 0, 0.0)
    found.at(0.1, POINTS)
    assert (found.calls, found.points) == (1, 20)
    found.over(np.linspace(0, 1, 7), POINTS)
    assert (found.calls, found.points) == (2, 20 + 140)
    many = np.zeros((100_000, 2))
    values = found.at(0.2, many)
    assert values.shape == (3, 100_000)
    assert found.calls == len(asked) == 2 + 4
    assert found.points == sum(asked) == 160 + 100_000
    assert max(asked) <= 2**15  # no more at once
    assert found.seconds >= 0.0


def test_a_diffusion_that_is_not_elliptic_is_refused_with_place_and_time() -> None:
    def fading(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray((1.5 - np.asarray(t) - x[..., 0])[..., None, None] * np.eye(2))

    found = of(diffusion=fading, initial_law=Gaussian([-3.0, 0.0], 1e-3))
    x = np.array([[0.0, 1.0], [1.0, 2.0], [0.9, 3.0]])
    found.at(0.25, x)
    for call in (lambda: found.at(0.75, x), lambda: found.over(np.array([0.25, 0.75]), x)):
        with pytest.raises(
            EllipticityError, match=r"at 2 of 3 nodes of the box, worst at t=0.75, x=\[1.0, 2.0\], where .* is -0.25"
        ):
            call()
    turned = np.array([[1.0, 2.0], [2.0, 1.0]])  # positive on the diagonal
    with pytest.raises(EllipticityError, match=r"smallest eigenvalue is -1; take"):
        check_elliptic(np.stack([np.eye(2), turned]), x[:2], 0.0)
    check_elliptic(np.stack([np.eye(2), turned @ turned]), x[:2], 0.0)


# Jumps


def window(a: float, b: float) -> Any:
    return scaled(lambda t: 1 + 1.0 * ((a < t) & (t < b)))


STEPS = {
    "a window": (window(0.45, 0.65), [0.45, 0.65]),
    "close together": (window(0.5, 0.51), [0.5, 0.51]),
    "near the ends": (window(0.006, 0.996), [0.006, 0.996]),
    "small": (scaled(lambda t: 1 + 1e-3 * (t > 0.3)), [0.3]),
    "on a moving ground": (scaled(lambda t: np.sin(3 * t) + 0.5 * (t > 1 / 3)), [1 / 3]),
    "three": (scaled(lambda t: 1 + (t > 0.2) + 0.1 * (t > 0.5) - (t > 0.7)), [0.2, 0.5, 0.7]),
    "of many sizes": (scaled(lambda t: 1 + 100.0 * (t > 0.2) + 0.1 * (t > 0.7)), [0.2, 0.7]),
}


@pytest.mark.parametrize("name", STEPS)
def test_jumps_of_the_drift_are_found(name: str) -> None:
    drift, times = STEPS[name]
    found = of(drift).jumps(POINTS)
    np.testing.assert_allclose(found, times, atol=1e-9)


def test_jumps_of_rewards_and_of_the_diffusion_are_found() -> None:
    def late(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(np.where(np.asarray(t) > 0.7, 1.0, 0.0) * x[..., 1])

    def hot(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(
            np.where(np.asarray(t) > 0.25, 1.0, 0.5)[..., None, None] * np.eye(2) * np.ones((*x.shape, 1))
        )

    np.testing.assert_allclose(of(running_reward=late).jumps(POINTS), [0.7], atol=1e-9)
    np.testing.assert_allclose(of(diffusion=hot).jumps(POINTS), [0.25], atol=1e-9)
    both = of(window(0.45, 0.65), running_reward=late, diffusion=hot)
    np.testing.assert_allclose(both.jumps(POINTS), [0.25, 0.45, 0.65, 0.7], atol=1e-9)
    assert both.calls < 60  # all times and points at once


SMOOTH = {
    "steady": scaled(lambda t: 1.0 + 0.0 * t),
    "nothing at all": scaled(lambda t: 0.0 * t),
    "a wave": scaled(lambda t: np.sin(20 * t)),
    "a steep drift": scaled(lambda t: np.exp(12 * t)),
    "a steep front": scaled(lambda t: np.tanh(200 * (t - 0.4))),
    "a kink": scaled(lambda t: np.abs(t - 0.37)),
    "a root": scaled(lambda t: np.sqrt(t)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_continuous_has_no_jumps(name: str) -> None:
    assert of(SMOOTH[name]).jumps(POINTS) == []


# Tables


@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_a_table_is_the_polynomial_through_its_times(count: int) -> None:
    s0, s1 = 0.2, 0.5
    nodes = lobatto(count)
    assert nodes.shape == (count,)
    series = np.polynomial.Chebyshev(np.random.default_rng(0).standard_normal(count), domain=[s0, s1])
    x = np.arange(6.0).reshape(2, 3)

    def fields(s: float) -> FloatArray:
        return np.stack([series(s) * x, x + 3, 1 - series(s) * x**2])  # the second one does not move

    values = np.stack([fields(s0 + (s1 - s0) * node) for node in nodes])
    for single in (False, True):
        table = Table(s0, s1, by_field(values), single=single)
        table.settle()
        errors = [np.abs(table.at(s) - fields(s)).max() for s in (0.2, 0.27, 0.41, 0.5)]
        size = np.abs(values).max()
        assert max(errors) < (3e-6 if single else 1e-11) * size
        if single and count > 1:
            assert max(errors) > 1e-9 * size
        for k in range(count):
            np.testing.assert_allclose(table.row(k), values[k], rtol=1e-6 if single else 0)
    np.testing.assert_allclose(nodes[[0, -1]], [0.5, 0.5] if count == 1 else [0.0, 1.0], atol=1e-8)  # a little inside
    np.testing.assert_allclose(nodes, 1 - nodes[::-1], atol=1e-15)


def needed(coefficients: Coefficients, rtol: float = 1e-6, s0: float = 0.1, s1: float = 0.4) -> int | None:
    found = times_needed(coefficients, s0, s1, POINTS, rtol, [0.0] * len(coefficients.names), whole)
    assert found is None or found[1] < rtol
    return None if found is None else found[0]


def whole(reward: float) -> float:
    return 1.0


def test_one_time_is_enough_for_what_is_steady_and_none_for_what_is_too_fast() -> None:
    assert needed(of()) == 1
    assert needed(of(running_reward=lambda t, x: x[..., 0])) == 1
    assert needed(of(diffusion=lambda t, x: full(0.0, x))) == 1
    assert needed(of(running_reward=reward)) == 2
    assert needed(of(diffusion=full)) not in (1, None)
    for cubed in range(1, 5):
        assert needed(of(scaled(lambda t, k=cubed: 1 + t**k))) == cubed + 1
    assert needed(of(scaled(lambda t: np.sin(1000 * t)))) is None
    assert needed(of(window(0.7, 0.8))) is None


def test_as_many_times_are_taken_as_the_tolerance_asks_for() -> None:
    """And the table of so many misses no more than that in between."""
    wave = of(scaled(lambda t: 2 + np.sin(8 * t)))
    counts = []
    for rtol in (1e-1, 1e-3, 1e-6, 1e-8):
        count = needed(wave, rtol)
        assert count is not None
        counts.append(count)
        times = 1.0 - inside(0.1, 0.4, lobatto(count))
        table = Table(0.1, 0.4, by_field(np.stack([wave.at(float(t), POINTS) for t in times])))
        table.settle()
        missed = [np.abs(table.at(s) - wave.at(1.0 - s, POINTS)).max() for s in np.linspace(0.1, 0.4, 37).tolist()]
        assert max(missed) < 6 * rtol * np.abs(POINTS).max()
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] + 5


def test_fields_that_hardly_matter_need_not_be_accurate() -> None:
    weak = of(running_reward=lambda t, x: 1e-6 * np.sin(30 * np.asarray(t)) * np.cos(x[..., 0]) + 0.1)
    alone = times_needed(weak, 0.1, 0.4, POINTS, 1e-4, [0.0, 0.0, 0.0], whole)
    assert alone is not None
    assert alone[0] > 5
    floored = times_needed(weak, 0.1, 0.4, POINTS, 1e-4, [0.0, 0.0, 1.0], whole)
    assert floored is not None
    assert floored[0] == 2


def test_a_drift_that_acts_on_little_need_not_be_accurate() -> None:
    wave, asked = of(scaled(lambda t: 2 + np.sin(8 * t)), running_reward=lambda t, x: 0.1 + 3.0 + 0.0 * x[..., 0]), []

    def small(reward: float) -> float:
        asked.append(reward)
        return 1e-3

    found = [times_needed(wave, 0.1, 0.4, POINTS, 1e-6, [0.0] * 3, share) for share in (whole, small)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[1][0] < found[0][0]
    assert asked == [pytest.approx(3.0)]


def test_a_jump_at_the_end_of_a_panel_is_not_seen_from_inside() -> None:
    jump = of(scaled(lambda t: 1.0 + (t >= 0.9) - (t <= 0.6)))
    assert needed(jump, s0=0.1, s1=0.4) == 1
    assert needed(jump, s0=0.1, s1=0.41) is None


def test_a_background_that_moves_makes_steady_coefficients_move() -> None:
    lq = zoo.get("lq", 2)
    assert needed(Coefficients(lq, CONSTANTS, linear=False)) == 1
    count = needed(Coefficients(lq, moving_quadratic(), linear=False))
    assert count is not None
    assert count > 2


@pytest.mark.parametrize("beta", [2.0, (0.5, 3.0)], ids=["constant", "varying"])
def test_coefficients_of_many_points_are_those_of_some_of_them(beta: Any) -> None:
    """What is made of a call in parts, and calls for parts of the points."""
    problem = zoo.get("mixture-diffusion", 2, beta=beta)
    few, many = CHUNK // 4 + 3, CHUNK + 5
    x = np.random.default_rng(3).uniform(-1.0, 1.0, (many, 2))
    background = Gauge(temperature=problem.temperature, horizon=problem.horizon, terminal=0.0, running=0.3)
    coefficients = Coefficients(problem, background, True)
    whole = coefficients.at(0.3, x)
    for part in (slice(0, few), slice(few, few + 7), slice(many - 9, many)):
        np.testing.assert_allclose(whole[:, part], coefficients.at(0.3, x[part]), rtol=1e-13, atol=1e-13)
