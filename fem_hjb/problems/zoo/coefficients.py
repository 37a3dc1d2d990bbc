"""What the problems share: parameters given as numbers or arrays, and coefficients that can be pickled."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_continuous_lyapunov

from fem_hjb.problems.closed_form import LinearQuadratic
from fem_hjb.problems.laws import Gaussian, Law
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.problem import ControlProblem, LinearDrift, RunningReward
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.support.checks import FloatArray, frozen_array, real_array, spd_array
from fem_hjb.support.errors import EllipticityError, ProblemError


def tridiagonal(d: int, below: float, diagonal: float, above: float) -> FloatArray:
    return below * np.eye(d, k=-1) + diagonal * np.eye(d) + above * np.eye(d, k=1)


def matrix(value: ArrayLike | None, default: FloatArray, name: str) -> FloatArray:
    """A (d, d) matrix from a matrix, a number (times the identity) or None (the default)."""
    if value is None:
        return default
    given = real_array(value, name, ProblemError)
    if given.ndim == 0:
        return float(frozen_array(given, name, (), ProblemError)) * np.eye(len(default))
    return frozen_array(given, name, default.shape, ProblemError)


def vector(value: ArrayLike, d: int, name: str) -> FloatArray:
    """A vector (d,) from a vector or a number (the same on every axis)."""
    given = real_array(value, name, ProblemError)
    return frozen_array(np.full(d, given) if given.ndim == 0 else given, name, (d,), ProblemError)


def gaussian_start(drift: LinearDrift, Lambda: FloatArray, mean: ArrayLike, cov: ArrayLike | None) -> Gaussian:
    """N(mean, cov); with cov None the stationary covariance, where the drift has one."""
    A, a = drift.coefficients
    if cov is None:
        if np.linalg.eigvals(A).real.max() >= 0:
            raise ProblemError("the drift has no stationary law (A is not stable), so cov must be given")
        cov = solve_continuous_lyapunov(A, -spd_array(Lambda, "Lambda", len(a), EllipticityError))
    return Gaussian(vector(mean, len(a), "mean"), matrix(cov, np.eye(len(a)), "cov"))


def linear_problem(
    name: str,
    *,
    drift: LinearDrift,
    diffusion: FloatArray,
    reward: LogSumExpReward,
    horizon: float,
    start: Law,
    running: RunningReward | None = None,
    Q: FloatArray | None = None,
    q: FloatArray | None = None,
) -> ControlProblem:
    """Linear drift, constant diffusion, `running` = -x'Qx/2 + q'x and this terminal reward: exact, with its law."""
    return ControlProblem(
        dim=reward.dim,
        horizon=horizon,
        temperature=reward.temperature,
        drift=drift,
        diffusion=diffusion,
        running_reward=running,
        terminal_reward=reward,
        initial_law=start,
        exact=LinearQuadratic(drift=drift, diffusion=diffusion, terminal=reward, horizon=horizon, Q=Q, q=q),
        marginal=linear_marginal(drift, diffusion, start),
        name=name,
    )


def constant(t: ArrayLike, x: FloatArray, *, value: float) -> FloatArray:
    return np.full(x.shape[:-1], value)


def nothing(x: FloatArray) -> FloatArray:
    return np.zeros(x.shape[:-1])


def stationary(t: float, *, law: Law) -> Law:
    return law
