"""`solve` on kinds of problems that are not quadratic: in any unit, with jumps and kinks, stiff, turning, coupled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass, Uniform
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.solution import ProductSolution
from fem_hjb.support.checks import FloatArray


def problem_of(dim: int, y: Callable[[FloatArray], Any], **changes: Any) -> ControlProblem:
    """Brownian motion from N(0, 1/2), unless told otherwise."""
    given: dict[str, Any] = {
        "dim": dim,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": lambda t, x: 0.0 * x,
        "diffusion": 1.0,
        "terminal_reward": y,
        "initial_law": Gaussian(np.zeros(dim), 0.5),
    }
    return ControlProblem(**{**given, **changes})


def at(solution: Any, x: list[float], t: float = 0.0) -> float:
    return float(solution.value(t, np.array([x]))[0])


def expected(y: Callable[[FloatArray], FloatArray], variance: float) -> float:
    """log E exp y(X), X ~ N(0, variance)."""
    z, w = np.polynomial.hermite_e.hermegauss(120)
    return float(np.log(np.exp(y(np.sqrt(variance) * z)) @ w / w.sum()))


def coupled_wells(space: float, time: float, reward: float) -> ControlProblem:
    """Two coupled wells in units of length, time and reward."""

    def drift(t: Any, x: FloatArray) -> FloatArray:
        z = x / space
        return (-2 * z * (z**2 - 1) - 0.5 * z[..., ::-1]) * space / time

    return problem_of(
        2,
        lambda x: -reward * ((x / space - 1) ** 2).sum(-1),
        horizon=time,
        temperature=reward,
        drift=drift,
        diffusion=space**2 / time,
        initial_law=Gaussian(np.zeros(2), 0.25 * space**2),
    )


@pytest.fixture(scope="module")
def in_units_of_one() -> Any:
    return solve(coupled_wells(1.0, 1.0, 1.0), rtol=1e-2)


@pytest.mark.parametrize(
    ("space", "time", "reward"),
    [(1e6, 1.0, 1.0), (1.0, 1e6, 1.0), (1.0, 1.0, 1e-6), (1e-3, 1e3, 1e9)],
)
def test_units_change_nothing(space: float, time: float, reward: float, in_units_of_one: Any) -> None:
    solution = solve(coupled_wells(space, time, reward), rtol=1e-2)
    assert solution.stats["steps"] == in_units_of_one.stats["steps"]
    assert solution.stats["shape"] == in_units_of_one.stats["shape"]
    x = np.array([[0.3, -0.2], [1.0, 0.5]])
    scaled = solution.policy(0.4 * time, space * x) * time / space
    np.testing.assert_allclose(scaled, in_units_of_one.policy(0.4, x), rtol=1e-6)


def test_coordinates_in_units_of_their_own() -> None:
    """Correlated noise in units 1e8 and 1e-3 is seen, and not taken for independent."""
    units = np.array([1e8, 1e-3])
    Lambda = np.array([[1.0, 0.9], [0.9, 1.0]]) * np.outer(units, units)
    solution = solve(
        problem_of(
            2,
            lambda x: np.sin(x[..., 0] / units[0]) + np.sin(x[..., 1] / units[1]),
            diffusion=Lambda,
            initial_law=Gaussian([0.0, 0.0], 0.1 * units**2 * np.eye(2)),
        ),
        rtol=1e-2,
    )
    assert not isinstance(solution, ProductSolution)
    z, w = np.polynomial.hermite_e.hermegauss(60)
    first, second = np.meshgrid(z, z)
    values = np.exp(np.sin(first) + np.sin(0.9 * first + np.sqrt(0.19) * second))
    assert at(solution, [0.0, 0.0]) == pytest.approx(float(np.log(w @ values @ w / w.sum() ** 2)), abs=1e-3)


@pytest.mark.parametrize(("begin", "end"), [(0.45, 0.65), (0.1, 0.12)])
def test_a_window_in_time_is_not_missed(begin: float, end: float) -> None:
    """A push of size 1 in all: v(0, 0) = log cosh 1 + 1/2, policy tanh 1."""

    def push(t: Any, x: FloatArray) -> FloatArray:
        return 0.0 * x + (((np.asarray(t) > begin) & (np.asarray(t) < end)) / (end - begin))[..., None]

    solution = solve(problem_of(1, lambda x: np.log(np.cosh(x[..., 0])), drift=push), rtol=1e-4)
    assert at(solution, [0.0]) == pytest.approx(np.log(np.cosh(1.0)) + 0.5, abs=1e-4)
    assert solution.policy(0.0, np.zeros((1, 1)))[0, 0] == pytest.approx(np.tanh(1.0), abs=1e-4)


@pytest.mark.parametrize(("begin", "end"), [(0.05, 0.27), (0.05, 0.3)])
def test_steps_are_no_longer_than_coefficients_allow(begin: float, end: float) -> None:
    """What is taken out varies in time as a push does; a step sees coefficients three times only."""
    base = zoo.get("brownian-mixture", 1)

    def drift(t: Any, x: FloatArray) -> FloatArray:
        return -1.5 * x - 4.0 * ((np.asarray(t) > begin) & (np.asarray(t) < end))[..., None]

    problem = replace(base, temperature=1.0, exact=None, marginal=None, drift=drift)
    loose, fine = (solve(problem, rtol=rtol, verify=False) for rtol in (1e-3, 1e-6))
    x = np.linspace(-1.0, 1.0, 21)[:, None]
    for t in (0.0, 0.03, 0.1, 0.2, 0.5):
        np.testing.assert_allclose(loose.value(t, x), fine.value(t, x), atol=1.5e-4)


def test_a_running_reward_that_jumps_in_space() -> None:
    """A cost on half of the line: the occupation time of Brownian motion from 0 has the arcsine law."""
    cost = 3.0
    solution = solve(
        problem_of(
            1,
            lambda x: 0.0 * x[..., 0],
            running_reward=lambda t, x: -cost * (x[..., 0] > 0) + 0.0 * np.asarray(t),
            initial_law=Gaussian([0.0], 0.01),
        ),
        rtol=1e-2,
    )
    s = (1 - np.cos(np.pi * (np.arange(2000) + 0.5) / 2000)) / 2  # quadrature of the arcsine law
    assert at(solution, [0.0]) == pytest.approx(float(np.log(np.exp(-cost * s).mean())), abs=2e-2)


def test_a_kink() -> None:
    solution = solve(problem_of(1, lambda x: np.abs(x[..., 0]), initial_law=Gaussian([0.0], 1.0)), rtol=1e-2)
    assert at(solution, [0.0]) == pytest.approx(float(np.log(2 * np.exp(0.5) * norm.cdf(1.0))), abs=1e-3)
    # E exp|X| for X ~ N(1, 1/2), from above and from below
    up, down = (np.exp(x + 0.25) * norm.cdf((x + 0.5) / np.sqrt(0.5)) for x in (1.0, -1.0))
    policy = solution.policy(0.5, np.array([[-1.0], [1.0]]))[:, 0]
    np.testing.assert_allclose(policy, [-(up - down) / (up + down), (up - down) / (up + down)], atol=1e-3)


def test_a_jump() -> None:
    solution = solve(
        problem_of(1, lambda x: np.log1p(1.0 * (x[..., 0] > 0.3)), initial_law=PointMass([0.0])), rtol=1e-2
    )
    assert at(solution, [0.0]) == pytest.approx(float(np.log1p(norm.sf(0.3))), abs=1e-3)


def test_a_stiff_drift_over_a_long_time() -> None:
    solution = solve(problem_of(1, lambda x: np.sin(x[..., 0]), drift=lambda t, x: -3.0 * x, horizon=50.0), rtol=1e-2)
    assert at(solution, [0.0]) == pytest.approx(expected(np.sin, 1 / 6), abs=1e-3)


def test_a_drift_that_turns_out_of_any_box() -> None:
    """Damped rotation: a smaller tolerance changes no more than the larger one allowed."""

    def drift(t: Any, x: FloatArray) -> FloatArray:
        return np.stack([x[..., 1], -x[..., 0] - 0.5 * x[..., 1] * x[..., 0] ** 2], -1)

    problem = problem_of(
        2, lambda x: -((x - 1) ** 2).sum(-1), drift=drift, diffusion=0.3, temperature=0.5,
        initial_law=Gaussian([0.0, 0.0], 0.2),
    )  # fmt: skip
    rough, fine = solve(problem, rtol=1e-2), solve(problem, rtol=1e-3)
    assert rough.error_estimate.met(1e-2)
    assert fine.error_estimate.met(1e-3)
    x = np.array([[0.0, 0.0], [0.5, -0.5], [-0.6, 0.3]])
    np.testing.assert_allclose(rough.policy(0.3, x), fine.policy(0.3, x), atol=1e-2)


def test_coordinates_that_only_a_reward_couples() -> None:
    """Reflecting square, started at a point: the reward's even extension is itself, so that Brownian motion is free."""
    solution = solve(
        problem_of(
            2,
            lambda x: 2 * np.cos(np.pi * x[..., 0]) * np.cos(np.pi * x[..., 1]),
            horizon=0.1,
            initial_law=PointMass([0.3, 0.4]),
            domain=Box([-1.0, -1.0], [1.0, 1.0], boundary="reflecting"),
        ),
        rtol=1e-3,
    )
    z, w = np.polynomial.hermite_e.hermegauss(80)
    first, second = np.meshgrid(0.3 + np.sqrt(0.1) * z, 0.4 + np.sqrt(0.1) * z, indexing="ij")
    f = w @ np.exp(2 * np.cos(np.pi * first) * np.cos(np.pi * second)) @ w / w.sum() ** 2
    assert at(solution, [0.3, 0.4]) == pytest.approx(float(np.log(f)), abs=1e-3)


def test_the_tolerance_holds_between_steps_and_near_the_end() -> None:
    """Reflected Brownian motion over a long time, with a mode that is gone at once: exact by the cosine series."""
    box = Box([0.0], [1.0])

    def f(t: float, x: FloatArray) -> FloatArray:
        slow, fast = np.exp(-0.5 * np.pi**2 * (5 - t)), np.exp(-18 * np.pi**2 * (5 - t))
        return 1 + 0.4 * slow * np.cos(np.pi * x[..., 0]) + 0.5 * fast * np.cos(6 * np.pi * x[..., 0])

    problem = problem_of(1, lambda x: np.log(f(5.0, x)), horizon=5.0, initial_law=Uniform(box), domain=box)
    solution = solve(problem, rtol=1e-4)
    x = np.linspace(0.0, 1.0, 21)[:, None]
    size = np.sqrt((np.log(f(5.0, x)) ** 2).mean())
    for t in 5.0 - np.geomspace(1e-4, 2.0, 25):
        error = solution.value(t, x) - np.log(f(t, x))
        assert np.sqrt((error**2).mean()) < 1e-4 * size


def test_callables_are_called_some_hundred_times_and_told_apart() -> None:
    calls = [0]
    plain = zoo.get("mixture-diffusion", 2)

    def counted(t: Any, x: FloatArray) -> Any:
        calls[0] += 1
        return plain.drift(t, x)

    problem = ControlProblem(
        dim=2,
        horizon=plain.horizon,
        temperature=plain.temperature,
        drift=counted,
        diffusion=plain.constant_diffusion,
        terminal_reward=plain.terminal_reward,
        initial_law=plain.initial_law,
    )
    solution = solve(problem, rtol=1e-3)
    assert calls[0] < 700  # some 400 of them along paths, of a thousand points each
    assert 0 < solution.stats["calls"] <= 300
    assert solution.stats["points"] > 10_000
    assert solution.stats["seconds_in_callables"] > 0


def test_nothing_to_steer() -> None:
    solution = solve(problem_of(1, lambda x: 5.0 + 0.0 * x[..., 0]), rtol=1e-4)
    assert solution.status == "ok"
    assert at(solution, [0.0]) == pytest.approx(5.0, abs=1e-10)


# Walls that are deep against one that is infinite: the process is conditioned to end beside it.

_PULL = 0.7  # of the Ornstein-Uhlenbeck drift, towards 1/2


def conditioned(low: float, high: float, pull: float, t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """log f and its slope for dX = pull (1/2 - X) dt + dB that ends between low and high."""
    to_go = 1.0 - t
    decay = np.exp(-pull * to_go)
    spread = np.sqrt((1.0 - decay**2) / (2.0 * pull) if pull else to_go)
    ends = [(end - 0.5 - decay * (x - 0.5)) / spread for end in (low, high)]
    f = norm.cdf(ends[1]) - norm.cdf(ends[0]) if np.isfinite(high) else norm.sf(ends[0])
    return np.log(f), decay / spread * (norm.pdf(ends[0]) - norm.pdf(ends[1])) / f


@pytest.mark.parametrize(
    ("deep", "low", "high", "pull"),
    [(10.0, -0.5, 1.0, 0.0), (12.0, 0.3, np.inf, _PULL)],
    ids=["interval", "half-line, drifted"],
)
def test_a_finite_wall_does_what_an_infinite_one_would(deep: float, low: float, high: float, pull: float) -> None:
    """Under the law of the conditioned process, relative to the norms of value and policy at these times."""

    def y(x: FloatArray) -> FloatArray:
        return np.where((x > low) & (x < high), 0.0, -deep)[..., 0]

    problem = problem_of(1, y, drift=lambda t, x: pull * (0.5 - x), initial_law=Gaussian([0.0], 0.25))
    found = solve(problem, rtol=1e-2)
    assert found.status == "ok"
    line = np.linspace(-2.5, 3.0, 1201)
    norms = np.zeros((2, 2))
    for t in (0.0, 0.25, 0.5, 0.75, 0.9):
        decay = np.exp(-pull * t)
        variance = 0.25 * decay**2 + ((1.0 - decay**2) / (2.0 * pull) if pull else t)
        logs, slopes = conditioned(low, high, pull, t, line)
        weights = norm.pdf(line, 0.5 - 0.5 * decay, np.sqrt(variance)) * np.exp(logs)
        weights /= weights.sum()
        x = line[:, None]
        errors = found.value(t, x) - logs, (found.policy(t, x) - slopes[:, None])[:, 0]
        squares = [
            [weights @ errors[0] ** 2, weights @ errors[1] ** 2],
            [weights @ (logs) ** 2, weights @ slopes**2],
        ]
        norms = np.maximum(norms, np.sqrt(squares))
    assert (norms[0] < 1e-2 * norms[1]).all()
