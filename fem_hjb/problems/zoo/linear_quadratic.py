"""Linear drifts with quadratic or linear rewards."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.problems.zoo.coefficients import gaussian_start, linear_problem, matrix, tridiagonal, vector
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray


def _quadratic(t: ArrayLike, x: FloatArray, *, Q: FloatArray, q: FloatArray) -> FloatArray:
    """-x'Qx/2 + q'x."""
    return np.asarray(-0.5 * ((x @ Q) * x).sum(-1) + x @ q)


@register()
def lq(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    A: ArrayLike | None = None,
    a: ArrayLike = 0.0,
    Lambda: ArrayLike | None = None,
    Q: ArrayLike | None = None,
    q: ArrayLike = 0.0,
    R: ArrayLike | None = None,
    s: ArrayLike = 0.0,
    mean: ArrayLike = 0.0,
    cov: ArrayLike | None = None,
) -> ControlProblem:
    """Linear drift, quadratic rewards.

    dX = (A X + a) dt + Lambda^{1/2} dB,  r = -x'Qx/2 + q'x,  y = -x'Rx/2 + s'x,  X_0 ~ N(mean, cov).

    Exact by Riccati equations. Matrices: (d, d), or a number for a multiple of the identity; vectors: (d,) or a number.
    Defaults in one dimension: A = -1, Lambda = Q = R = 1, X_0 ~ N(0, 1/2), which is stationary. In more dimensions
    A, Lambda, Q, R are tridiagonal with off-diagonals (below, above) = (-0.4, 0.5), (0.3, 0.3), (0.25, 0.25),
    (-0.2, -0.2), so that nothing separates and the process is not reversible. cov None: the stationary covariance.
    Source: the linear-quadratic regulator under entropy cost, Fleming and Rishel (1975), section VI.5; run as a
    benchmark for learned control in Domingo-Enrich et al., arXiv 2312.02027.
    """
    diffusion = matrix(Lambda, tridiagonal(dim, 0.3, 1.0, 0.3), "Lambda")
    drift = LinearDrift(matrix(A, tridiagonal(dim, -0.4, -1.0, 0.5), "A"), vector(a, dim, "a"))
    Q = matrix(Q, tridiagonal(dim, 0.25, 1.0, 0.25), "Q")
    q = vector(q, dim, "q")
    R = matrix(R, tridiagonal(dim, -0.2, 1.0, -0.2), "R")
    reward = LogSumExpReward.quadratic(R, vector(s, dim, "s"), temperature=temperature)
    return linear_problem(
        "lq",
        drift=drift,
        diffusion=diffusion,
        reward=reward,
        horizon=horizon,
        start=gaussian_start(drift, diffusion, mean, cov),
        running=partial(_quadratic, Q=Q, q=q),
        Q=Q,
        q=q,
    )


@register()
def linear_ou(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    A: ArrayLike | None = None,
    Lambda: ArrayLike | None = None,
    gamma: ArrayLike = 1.0,
    mean: ArrayLike = 0.0,
    cov: ArrayLike | None = None,
) -> ControlProblem:
    """Ornstein-Uhlenbeck process, linear terminal reward.

    dX = A X dt + Lambda^{1/2} dB,  r = 0,  y = gamma'x,  X_0 ~ N(mean, cov).

    Exact: v = p'x + c with p(t) = e^{A'(T-t)} gamma, so the optimal policy does not depend on x. Matrices: (d, d), or a
    number for a multiple of the identity; gamma, mean: (d,) or a number. Defaults: A = -1, Lambda = 1 in one
    dimension, tridiagonal with off-diagonals (below, above) = (-0.4, 0.5) and (0.3, 0.3) in more. cov None: the
    stationary covariance. Source: Nuesken and Richter, arXiv 2005.05409.
    """
    diffusion = matrix(Lambda, tridiagonal(dim, 0.3, 1.0, 0.3), "Lambda")
    drift = LinearDrift(matrix(A, tridiagonal(dim, -0.4, -1.0, 0.5), "A"), np.zeros(dim))
    reward = LogSumExpReward.linear(vector(gamma, dim, "gamma"), temperature=temperature)
    start = gaussian_start(drift, diffusion, mean, cov)
    return linear_problem("linear-ou", drift=drift, diffusion=diffusion, reward=reward, horizon=horizon, start=start)
