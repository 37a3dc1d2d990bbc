"""Paths until an exit: times, places, likelihood ratios, and what is certified along them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.support.errors import ConvergenceError, DomainError, MeasureError, ProblemError

st = fh.stationary
N = 20_000


def still(x: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


def process(**more: Any) -> fh.ExitProblem:
    domain = fh.Box([-1.0], [1.0], boundary="absorbing")
    known: dict[str, Any] = {"dim": 1, "temperature": 1.0, "drift": still, "diffusion": 1.0, "domain": domain}
    return fh.ExitProblem(**{**known, **more})


KILLED = process(running_reward=lambda x: -1.0 + 0 * x[..., 0])
VALUE = math.log(math.cosh(math.sqrt(2) * 0.3) / math.cosh(math.sqrt(2)))


def test_brownian_motion_leaves_an_interval_when_and_where_it_should() -> None:
    paths = st.sample_exit(KILLED, [0.3], n=N, rng=0, step=0.02)
    assert paths.left.all()
    assert set(np.unique(paths.exit)) == {-1.0, 1.0}
    for sample, exact in (
        (paths.time, 1 - 0.09),
        ((paths.exit[:, 0] > 0) * 1.0, 0.65),
        (np.exp(paths.log_weights(KILLED)), math.exp(VALUE)),
    ):
        assert abs(sample.mean() - exact) < 4 * sample.std() / math.sqrt(N)
        assert abs(sample.mean() - 1.05 * exact) > 4 * sample.std() / math.sqrt(N)  # five per cent would be seen
    np.testing.assert_array_equal(paths.reward, -paths.time)
    np.testing.assert_array_equal(st.sample_exit(KILLED, [0.3], n=N, rng=0, step=0.02).time, paths.time)


def test_weights_of_any_policy_have_the_value_as_their_mean_and_those_of_the_best_one_no_spread() -> None:
    solution = fh.solve_exit(KILLED, rtol=1e-6)
    spreads = []
    for policy in (solution.policy, lambda x: 0.5 * np.ones_like(x)):
        paths = st.sample_exit(KILLED, [0.3], n=N, rng=1, step=0.005, policy=policy)
        weights = paths.log_weights(KILLED)
        worth = np.exp(weights)
        assert abs(worth.mean() - math.exp(VALUE)) < 4 * worth.std() / math.sqrt(N) + 5e-4
        spreads.append(weights.std())
    assert spreads[0] < 0.1 < spreads[1]
    assert abs(weights.mean() - VALUE) > 0.05  # that of a policy that is not optimal is below


def test_a_policy_is_certified_along_paths_with_the_value_at_the_end() -> None:
    solution = fh.solve_exit(KILLED, rtol=1e-6)
    timed = KILLED.until(1.0, initial_law=fh.PointMass([0.3]), terminal_reward=solution.value)
    found = fh.certify(timed, lambda t, x: solution.policy(x), n=4096, steps=200, rng=0)
    assert found.status == "ok"
    assert found.lower <= VALUE <= found.upper
    assert found.upper - found.lower < 0.02


def test_faces_that_reflect_and_laws_of_starts() -> None:
    walls = fh.Box([0.0, 0.0], [1.0, 1.0], boundary=[("reflecting", "absorbing"), ("reflecting", "reflecting")])
    problem = process(dim=2, domain=walls, diffusion=lambda x: np.eye(2) + 0 * x[..., None])
    paths = st.sample_exit(problem, fh.Uniform(fh.Box([0.0, 0.0], [1.0, 1.0])), n=N, rng=0, step=0.01)
    assert abs(paths.time.mean() - 2 / 3) < 4 * paths.time.std() / math.sqrt(N) + 0.005
    assert ((paths.exit[:, 1] >= 0) & (paths.exit[:, 1] <= 1)).all()


def test_paths_that_stay_are_told() -> None:
    paths = st.sample_exit(KILLED, [0.0], n=100, rng=0, step=0.01, max_time=0.3)
    assert 0 < paths.left.sum() < 100
    np.testing.assert_allclose(paths.time[~paths.left], 0.3)
    with pytest.raises(MeasureError, match="have not left"):
        paths.log_weights(KILLED)


REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "sample_exit needs an ExitProblem": (ProblemError, lambda: st.sample_exit(1, [0.0], n=8, rng=0, step=0.1)),
    "needs a problem with domain=": (
        DomainError,
        lambda: st.sample_exit(process(domain=None), [0.0], n=8, rng=0, step=0.1),
    ),
    "n must be a positive integer": (MeasureError, lambda: st.sample_exit(KILLED, [0.0], n=0, rng=0, step=0.1)),
    "rng must be": (MeasureError, lambda: st.sample_exit(KILLED, [0.0], n=8, rng=-1, step=0.1)),
    "step must be a positive": (ConvergenceError, lambda: st.sample_exit(KILLED, [0.0], n=8, rng=0, step=0.0)),
    "max_time must be": (ConvergenceError, lambda: st.sample_exit(KILLED, [0.0], n=8, rng=0, step=0.1, max_time=-1)),
    "start must lie inside": (DomainError, lambda: st.sample_exit(KILLED, [1.0], n=8, rng=0, step=0.1)),
    "start must have shape": (DomainError, lambda: st.sample_exit(KILLED, [0.0, 0.0], n=8, rng=0, step=0.1)),
    "start has dimension 2": (
        DomainError,
        lambda: st.sample_exit(KILLED, fh.Gaussian([0.0, 0.0], 1.0), n=8, rng=0, step=0.1),
    ),
    "policy must be a callable": (
        ProblemError,
        lambda: st.sample_exit(KILLED, [0.0], n=8, rng=0, step=0.1, policy=3),
    ),
    r"policy\(x\) returned shape": (
        ProblemError,
        lambda: st.sample_exit(KILLED, [0.0], n=8, rng=0, step=0.1, policy=lambda x: x[:, 0]),
    ),
    "within max_seconds": (
        ConvergenceError,
        lambda: st.sample_exit(KILLED, [0.0], n=8, rng=0, step=1e-6, max_seconds=1e-3),
    ),
    "left the range of numbers": (
        ConvergenceError,
        lambda: st.sample_exit(
            process(drift=lambda x: 1e40 * (1 + x), domain=fh.Box([-1.0], [1e36], boundary="absorbing")),
            [0.5],
            n=8,
            rng=0,
            step=0.1,
        ),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    error, call = REFUSED[message]
    with pytest.raises(error, match=message):
        call()
