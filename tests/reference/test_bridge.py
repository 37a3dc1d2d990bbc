"""Bridges between two laws: Gaussian closed forms, mixtures, walls, marginals, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError

NOISE = 0.8


def process(dim: int = 1, **more: Any) -> fh.ControlProblem:
    known = {
        "horizon": 1.0,
        "temperature": 0.5,
        "drift": lambda t, x: 0 * x,
        "diffusion": NOISE,
        "terminal_reward": lambda x: 0 * x[..., 0],
        "initial_law": fh.Gaussian([0.2] * dim, 1.0),
    }
    return fh.ControlProblem(**{"dim": dim, **known, **more})


def gaussian_policy(t: float, x: np.ndarray, mean: float, sd: float) -> np.ndarray:
    """From N(0.2, 1) to N(mean, sd^2): (E[X_1 | X_t = x] - x) / (1 - t), X_0 and X_1 with the covariance
    c = (sd^2 + e^2 / 4)^{1/2} - e / 2, e = NOISE (conditional means of Gaussians)."""
    c = math.sqrt(sd**2 + NOISE**2 / 4) - NOISE / 2
    middle = (1 - t) * 0.2 + t * mean
    variance = (1 - t) ** 2 + t**2 * sd**2 + 2 * t * (1 - t) * c + t * (1 - t) * NOISE
    return (mean + ((1 - t) * c + t * sd**2) / variance * (x - middle) - x) / (1 - t)


@pytest.mark.parametrize(("dim", "rtol"), [(1, 1e-5), (2, 3e-3)])
def test_between_gaussians_the_policy_is_affine(dim: int, rtol: float) -> None:
    found = fh.schroedinger_bridge(process(dim), fh.Gaussian([1.0] * dim, 0.6**2), rtol=rtol)
    assert found.status == "ok"
    assert max(found.initial_error, found.terminal_error) < rtol
    rng = np.random.default_rng(0)
    for t in (0.0, 0.5, 0.9):
        x = 0.2 + 0.8 * t + 0.9 * rng.normal(size=(200, dim))
        exact = gaussian_policy(t, x, 1.0, 0.6)
        assert np.linalg.norm(found.policy(t, x) - exact) < 10 * rtol * np.linalg.norm(exact)
        wrong = gaussian_policy(t, x, 1.0, 0.7)  # another target is told from this one
        assert np.linalg.norm(found.policy(t, x) - wrong) > 10 * rtol * np.linalg.norm(exact)


def test_a_mixture_is_reached_from_a_process_that_is_pulled_back() -> None:
    target = fh.GaussianMixture([0.3, 0.7], [[-1.2], [0.9]], [[[0.1]], [[0.15]]])
    problem = process(drift=lambda t, x: -x - 0.3 * np.sin(2 * x), running_reward=lambda t, x: -0.1 * x[..., 0] ** 2)
    found = fh.schroedinger_bridge(problem, target, rtol=1e-4)
    assert found.status == "ok"
    paths = fh.sample_paths(problem, n=2000, steps=100, rng=0, policy=lambda t, x: found.policy(min(t, 0.999), x))
    right = (paths.x[:, -1, 0] > 0.9).mean()
    assert abs(right - 0.35) < 4 * math.sqrt(0.23 / 2000) + 0.01
    free = fh.sample_paths(problem, n=2000, steps=100, rng=0).x[:, -1, 0]
    assert abs((free > 0.9).mean() - 0.35) > 0.1  # it does not go there by itself
    assert "marginals are off" in str(found)
    assert found.potential(np.array([[50.0]])).shape == (1,)


def test_between_walls() -> None:
    box = fh.Box([0.0], [1.0])
    target = fh.GaussianMixture([1.0], [[0.4]], [[[0.09]]])
    found = fh.schroedinger_bridge(process(domain=box, initial_law=fh.Uniform(box), diffusion=0.3), target, rtol=1e-2)
    assert found.terminal_error < 1e-2
    push = found.policy(0.9, np.array([[0.1], [0.9]]))[:, 0]
    assert push[0] > 0.0 > push[1]


def test_a_process_that_goes_there_by_itself_is_left_alone() -> None:
    box = fh.Box([0.0], [1.0])
    found = fh.schroedinger_bridge(process(domain=box, initial_law=fh.Uniform(box)), fh.Uniform(box), rtol=1e-3)
    assert found.status == "ok"
    assert np.abs(found.policy(0.5, np.linspace(0, 1, 9)[:, None])).max() < 1e-9


def test_too_few_iterations_are_told() -> None:
    found = fh.schroedinger_bridge(process(), fh.Gaussian([1.0], 0.25), rtol=1e-4, max_iterations=1)
    assert "has not converged" in found.status
    assert found.iterations == 1
    assert found.terminal_error > 1e-4


GAUSS = fh.Gaussian([0.5], 0.5)
REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "schroedinger_bridge needs a ControlProblem": (ProblemError, lambda: fh.schroedinger_bridge(1, GAUSS)),
    "target= needs a Law, got str": (ProblemError, lambda: fh.schroedinger_bridge(process(), "a")),
    "the target has dimension 1": (ProblemError, lambda: fh.schroedinger_bridge(process(2), GAUSS)),
    "bridges go up to dimension 2": (
        DomainError,
        lambda: fh.schroedinger_bridge(process(3), fh.Gaussian([0.0] * 3, 1.0)),
    ),
    "the target is a point mass": (ProblemError, lambda: fh.schroedinger_bridge(process(), fh.PointMass([0.0]))),
    "the initial law is a point mass": (
        ProblemError,
        lambda: fh.schroedinger_bridge(process(initial_law=fh.PointMass([0.0])), GAUSS),
    ),
    "has no density at": (
        ProblemError,
        lambda: fh.schroedinger_bridge(process(), fh.Uniform(fh.Box([0.0], [1.0]))),
    ),
    "depends on time": (
        ProblemError,
        lambda: fh.schroedinger_bridge(process(drift=lambda t, x: x * np.sin(np.asarray(t))[..., None]), GAUSS),
    ),
    "stopped at absorbing faces": (
        DomainError,
        lambda: fh.schroedinger_bridge(
            process(domain=fh.Box([-9.0], [9.0], boundary="absorbing"), initial_law=GAUSS), GAUSS
        ),
    ),
    "rtol must be": (ConvergenceError, lambda: fh.schroedinger_bridge(process(), GAUSS, rtol=2.0)),
    "max_iterations must be": (ConvergenceError, lambda: fh.schroedinger_bridge(process(), GAUSS, max_iterations=0)),
    "box= needs a Box": (DomainError, lambda: fh.schroedinger_bridge(process(), GAUSS, box=1)),
    "must be a bounded Box": (
        DomainError,
        lambda: fh.schroedinger_bridge(process(), GAUSS, box=fh.Box([0.0, 0.0], [1.0, 1.0])),
    ),
    "within max_seconds": (ConvergenceError, lambda: fh.schroedinger_bridge(process(), GAUSS, max_seconds=1e-3)),
    "where the process hardly": (
        ConvergenceError,
        lambda: fh.schroedinger_bridge(process(diffusion=0.01), fh.Gaussian([9.0], 0.01)),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    error, call = REFUSED[message]
    with pytest.raises(error, match=message):
        call()
