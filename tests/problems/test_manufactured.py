"""Manufactured problems: the value that was chosen is the value, whatever drift and diffusion are."""

import pickle
from functools import partial

import numpy as np
import pytest

from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.manufactured import manufactured
from fem_hjb.problems.problem import LinearDrift
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.support.errors import ProblemError
from tests.support.exactness import hjb_residual, inner_times

HORIZON = 0.7


def wave(t, x, k):
    return x @ k + np.asarray(t)


def value(t, x, *, k):
    """v = sin(k'x + t) + cos(x_1)/4."""
    return np.sin(wave(t, x, k)) + 0.25 * np.cos(x[..., 0])


def time_derivative(t, x, *, k):
    return np.cos(wave(t, x, k))


def gradient(t, x, *, k):
    first = np.eye(len(k))[0]
    return np.cos(wave(t, x, k))[..., None] * k - 0.25 * np.sin(x[..., :1]) * first


def hessian(t, x, *, k):
    first = np.diag(np.eye(len(k))[0])
    return -np.sin(wave(t, x, k))[..., None, None] * np.outer(k, k) - 0.25 * np.cos(x[..., :1, None]) * first


def drift(t, x):
    """Depends on time, and couples the coordinates."""
    return -x + np.sin(3.0 * np.asarray(t))[..., None] * np.cos(x[..., ::-1])


def diffusion(t, x):
    """Full, and depends on the state and on time."""
    d = x.shape[-1]
    off = (0.2 * np.sin(x.sum(-1)) * np.cos(np.asarray(t)))[..., None, None] * (np.ones((d, d)) - np.eye(d))
    return np.eye(d) * (0.6 + 0.2 * np.cos(x))[..., None, :] + off


def build(d=2, **changes):
    k = np.array([0.8, -0.5, 0.4])[:d]
    given = {name: partial(globals()[name], k=k) for name in ("value", "time_derivative", "gradient", "hessian")}
    given |= {"drift": drift, "diffusion": diffusion, "temperature": 0.5, "horizon": HORIZON}
    return manufactured(**{**given, "initial_law": Gaussian(np.zeros(d), 0.2), **changes})


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_chosen_value_solves_the_hjb_equation(d):
    problem, rng = build(d), np.random.default_rng(0)
    x, t = problem.initial_law.sample(50, rng), inner_times(problem, 50, rng, 2e-3 * HORIZON)
    assert hjb_residual(problem, problem.exact, t, x).max() < 1e-8
    np.testing.assert_array_equal(problem.y(x), problem.exact.value(HORIZON, x))
    np.testing.assert_allclose(problem.r(0.3, x), [problem.r(0.3, point) for point in x], rtol=1e-12)


def test_the_chosen_value_is_that_of_the_simulated_process():
    """f_t(x) = E exp((y + int r)/alpha) in one dimension: Lambda depends on the state, the drift on time."""
    problem, x0, steps = build(1, initial_law=PointMass([0.4])), np.array([0.4]), 32
    paths = sample_paths(problem, n=60_000, steps=steps, rng=1)
    weights = np.full(steps + 1, HORIZON / steps)
    weights[[0, -1]] /= 2
    running = problem.r(np.broadcast_to(paths.t, paths.x.shape[:2]), paths.x) @ weights
    f = np.exp((problem.y(paths.x[:, -1]) + running) / problem.temperature)
    mean, error = f.mean(), f.std() / np.sqrt(len(f))
    exact = np.exp(problem.exact.value(0.0, x0) / problem.temperature)
    assert error < 3e-3 * exact
    assert abs(mean - exact) < 3.5 * error


def test_solve_finds_the_chosen_value_in_two_dimensions():
    problem = build(2)
    found = solve(problem, rtol=1e-2)
    assert found.status == "ok"
    errors = compare({"found": found}, problem.exact, problem=problem).overall("found")
    assert errors.value < 1e-2
    assert errors.policy < 1e-2


def test_an_absorbing_box_pays_the_value_and_solve_finds_it():
    box = Box([-1.5], [1.2], boundary="absorbing")
    problem = build(1, domain=box)
    x = np.array([[-1.5], [1.2]])
    np.testing.assert_array_equal(problem.exit_reward(0.3, x), problem.exact.value(0.3, x))
    found = solve(problem, rtol=1e-4)
    inside = np.linspace(-1.4, 1.1, 26)[:, None]
    for t in (0.0, 0.5 * HORIZON):
        np.testing.assert_allclose(found.value(t, inside), problem.exact.value(t, inside), atol=1e-4)


def test_a_reflecting_box_needs_a_value_without_slope_across_its_faces():
    given = {
        "value": lambda t, x: np.exp(-np.asarray(t)) * np.cos(x[..., 0]),
        "time_derivative": lambda t, x: -np.exp(-np.asarray(t)) * np.cos(x[..., 0]),
        "gradient": lambda t, x: -(np.exp(-np.asarray(t)) * np.sin(x[..., 0]))[..., None],
        "hessian": lambda t, x: -(np.exp(-np.asarray(t)) * np.cos(x[..., 0]))[..., None, None],
        "initial_law": Gaussian([1.0], 0.05),
    }
    problem = build(1, **given, domain=Box([0.0], [np.pi]))
    found, x = solve(problem, rtol=1e-2), np.linspace(0.0, np.pi, 21)[:, None]
    np.testing.assert_allclose(found.value(0.0, x), problem.exact.value(0.0, x), atol=3e-3)
    with pytest.raises(ProblemError, match=r"no slope across a reflecting face, but its gradient along axis 0 is -"):
        build(1, **given, domain=Box([0.0], [2.5]))


def test_a_manufactured_problem_can_be_pickled():
    problem = build(2)
    other, x = pickle.loads(pickle.dumps(problem)), np.random.default_rng(2).normal(size=(5, 2))
    for name in ("b", "Lambda", "r"):
        np.testing.assert_array_equal(getattr(other, name)(0.3, x), getattr(problem, name)(0.3, x))
    np.testing.assert_array_equal(other.exact.value(0.3, x), problem.exact.value(0.3, x))
    assert "running_reward=ResidualReward" in repr(other)


def test_constant_coefficients_and_any_shape_of_points():
    problem = build(2, drift=LinearDrift(-np.eye(2), np.zeros(2)), diffusion=[0.5, 0.7], name="mine")
    x = np.random.default_rng(3).normal(size=(3, 4, 2))
    t = np.linspace(0.0, HORIZON, 12).reshape(3, 4)
    assert problem.name == "mine"
    assert problem.r(t, x).shape == problem.exact.value(0.0, x).shape == (3, 4)
    np.testing.assert_array_equal(problem.exact.value(t[:, :1], x), problem.exact.value(t[:, :1] + 0.0 * t, x))


def off_by(factor, function):
    return lambda t, x: factor * function(t, x)


K = np.array([0.8, -0.5])
BAD = {
    "time": (
        {"time_derivative": off_by(1.001, partial(time_derivative, k=K))},
        r"time_derivative\(t, x\) is not the derivative that it should be: at t=0\.\d+, x=\[.*finite differences give",
    ),
    "gradient": (
        {"gradient": off_by(np.array([1.0, 1.001]), partial(gradient, k=K))},
        r"gradient\(t, x\)\[\.\.\., 1\] is not the derivative",
    ),
    "hessian": (
        {"hessian": off_by(1.001, partial(hessian, k=K))},
        r"hessian\(t, x\)\[\.\.\., 0\] is not the derivative",
    ),
    "hessian-shape": (
        {"hessian": partial(gradient, k=K)},
        r"hessian\(t, x\) returned shape \(12, 2\) for x of shape \(12, 2\), expected \(12, 2, 2\)",
    ),
    "gradient-shape": ({"gradient": partial(value, k=K)}, r"gradient\(t, x\) returned shape \(12,\) .* \(12, 2\)"),
    "value-shape": ({"value": lambda t, x: 1.0}, r"value\(t, x\) returned shape \(\) for x of shape \(5, 2\)"),
    "value-nan": ({"value": lambda t, x: x[..., 0] * np.nan}, r"value\(t, x\) is not finite at 5 of 5 points"),
    "not-callable": ({"hessian": np.eye(2)}, r"hessian must be a callable \(t, x\), got ndarray"),
    "law": ({"initial_law": np.zeros(2)}, "initial_law must be a law such as Gaussian, got ndarray"),
    "horizon": ({"horizon": -1.0}, "horizon must be a positive finite number"),
    "drift": ({"drift": lambda t, x: x[..., 0]}, r"drift\(t, x\) returned shape"),
    "exit": (
        {"domain": Box([-2.0] * 2, [2.0] * 2, boundary="absorbing", exit_reward=lambda t, x: x[..., 0])},
        "pays the value on absorbing faces: no exit_reward",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_ill_formed_requests_are_refused(changes, message):
    with pytest.raises(ProblemError, match=message):
        build(2, **changes)
