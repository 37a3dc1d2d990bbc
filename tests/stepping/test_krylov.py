"""Rational Krylov spaces: against dense exponentials, how small they are, and what they say on failure."""

from typing import Any

import numpy as np
import pytest
from scipy.linalg import expm, lu_factor, lu_solve

from fem_hjb.stepping import krylov as room
from fem_hjb.stepping.krylov import KrylovStates, rational_krylov
from fem_hjb.support.errors import ConvergenceError

# Diffusion with a linear drift on a grid of [-4, 4]^2, half a rotation and a wind.
N = 18
X = np.linspace(-4, 4, N)
STEP = X[1] - X[0]
D = (np.eye(N, k=1) - np.eye(N, k=-1)) / (2 * STEP)
S1 = 0.3 * (np.eye(N, k=1) - 2 * np.eye(N) + np.eye(N, k=-1)) / STEP**2 - 0.5 * X[:, None] * D
START = np.exp(-((X[:, None] - 1) ** 2) - X**2)
SPIN = np.kron(D, np.diag(X)) - np.kron(np.diag(X), D)
WHOLE = np.kron(S1, np.eye(N)) + np.kron(np.eye(N), S1) + 0.5 * SPIN + np.kron(D, np.eye(N))
TIMES = [0.0, 0.1, 0.55, 1.0]


def krylov(gamma: float = 0.05, matrix: np.ndarray = WHOLE, **keywords: Any) -> KrylovStates:
    lu = lu_factor(np.eye(N * N) - gamma * matrix)
    plain = {"rtol": 1e-10, "times": TIMES, "norm": np.linalg.norm, "inner": np.ones((N, N))}
    return rational_krylov(
        lambda v: np.asarray(lu_solve(lu, v.ravel()).reshape(v.shape)),
        lambda v: np.asarray((WHOLE @ v.ravel()).reshape(v.shape)),
        START,
        gamma=gamma,
        **{**plain, **keywords},
    )


EXPONENTIALS = [(expm(t * WHOLE) @ START.ravel()).reshape(N, N) for t in TIMES]


def relative_errors(result: KrylovStates) -> float:
    pairs = zip(result.states, EXPONENTIALS, strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


@pytest.mark.parametrize("rtol", [1e-4, 1e-7, 1e-10])
@pytest.mark.parametrize("gamma", [0.03, 0.1])
def test_krylov_spaces_reproduce_the_dense_exponential(rtol: float, gamma: float):
    result = krylov(gamma, rtol=rtol)
    assert relative_errors(result) < rtol
    assert relative_errors(result) <= result.error <= rtol
    assert np.array_equal(result.states[0], START)
    assert result.solves == sum(result.dimensions) < 60


def test_a_space_that_is_too_small_is_seen_by_its_residual():
    dimension = krylov(rtol=1e-10).dimensions[0]
    loose = krylov(rtol=1e-3)
    assert loose.dimensions[0] < dimension - 8
    assert relative_errors(loose) > 1e-10


def test_the_interval_is_split_when_spaces_are_small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "_MAX_DIMENSION", 15)
    result = krylov(0.03)
    assert len(result.dimensions) > 1
    assert max(result.dimensions) <= 15
    assert relative_errors(result) < 1e-10
    monkeypatch.setattr(room, "_MAX_DIMENSION", 4)
    with pytest.raises(ConvergenceError, match=r"dimension 4 is not good .* raise rtol"):
        krylov(0.1)


def test_weights_and_norms_are_the_callers():
    weights = 1 + np.arange(N * N).reshape(N, N) / N**2
    result = krylov(inner=weights)
    assert relative_errors(result) < 1e-9
    assert not np.array_equal(result.states, krylov().states)
    middle = krylov(norm=lambda v: float(np.abs(v).max()))
    assert relative_errors(middle) < 1e-9


def test_an_invariant_space_ends_the_iteration():
    matrix = np.diag([-1.0, -2.0, -3.0])
    result = rational_krylov(
        lambda v: np.linalg.solve(np.eye(3) - 0.1 * matrix, v),
        lambda v: matrix @ v,
        [1.0, 1.0, 0.0],
        gamma=0.1,
        rtol=1e-12,
        times=1.0,
        norm=np.linalg.norm,
        inner=np.ones(3),
    )
    assert result.dimensions == (2,)
    np.testing.assert_allclose(result.states[0], [np.exp(-1), np.exp(-2), 0], atol=1e-14)


def test_zero_stays_zero():
    how: dict[str, Any] = {"norm": np.linalg.norm, "inner": np.ones(3)}
    result = rational_krylov(lambda v: v, lambda v: 0 * v, np.zeros(3), gamma=0.1, rtol=1e-3, times=[0.5, 1], **how)
    assert np.array_equal(result.states, np.zeros((2, 3)))
    assert result.solves == 0


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"gamma": -1.0}, "gamma must be a positive finite number"),
        ({"rtol": 0.0}, "rtol must be a number between"),
        ({"times": [0.5, 0.5]}, "times must be finite and increase from 0 or later"),
        ({"times": [-0.5, 0.5]}, "times must be finite and increase from 0 or later"),
        ({"times": [0.5, np.inf]}, "times must be finite and increase from 0 or later"),
        ({"inner": -np.ones((N, N))}, "inner must hold positive weights"),
        ({"inner": np.ones(3)}, r"inner must hold positive weights of shape \(18, 18\), got shape \(3,\)"),
        ({"matrix": 2 * WHOLE}, r"solve_shifted must give \(1 - gamma L\)"),
    ],
)
def test_bad_input_of_krylov(keywords: Any, message: str):
    with pytest.raises(ConvergenceError, match=message):
        krylov(**keywords)
