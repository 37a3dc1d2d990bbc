"""Gaussian mixtures as data of a diffusion model, and as targets of a linear process."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.laws import GaussianMixture
from fem_hjb.problems.mixtures import MixtureDiffusion
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.problems.zoo.coefficients import gaussian_start, linear_problem, matrix, tridiagonal, vector
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import frozen_array, one_of, positive_number
from fem_hjb.support.errors import ProblemError


@register()
def mixture_diffusion(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    weights: ArrayLike | None = None,
    means: ArrayLike | None = None,
    covariances: ArrayLike | None = None,
    beta: float | tuple[float, float] = 2.0,
    eta: float = 1.0,
    reward: str | LogSumExpReward = "quadratic",
    strength: float = 1.0,
    target: ArrayLike = 0.8,
) -> ControlProblem:
    """Reward tilting of a diffusion model whose data are a Gaussian mixture.

    dX = [beta/2 X + (1 + eta^2)/2 beta grad log p_t(X)] dt + eta beta^{1/2} dB,  X_0 ~ p_0,  r = 0,

    the time reversal of dY = -beta/2 Y ds + beta^{1/2} dB from the data law sum_i w_i N(m_i, C_i), beta a number or
    the ends (beta_0, beta_T) of a linear schedule in the noising time s = T - t. p_t is the mixture law of X_t, the
    same for every eta in (0, 1]; p_T is the data law. Rewards, with strength k and target c (a number or (d,)):

        "linear"       y = k c'x
        "quadratic"    y = -k |x - c|^2 / 2
        "log-mixture"  y = alpha log( exp(-k |x - c|^2 / (2 alpha))/2 + exp(-k |x + c|^2 / (2 alpha))/2 )

    or a `LogSumExpReward` of the caller's. Exact for eta = 1; for eta < 1 no closed form is known and `exact` is None.
    Data by default: weights (0.4, 0.6), means (-1, ..)/sqrt(d) and (1.2, ..)/sqrt(d), covariances 0.2 and 0.3 on the
    diagonal with off-diagonals 0.06 and -0.06. Source: Song et al., arXiv 2011.13456 (the process); fine-tuning to a
    reward as stochastic control: Mou, arXiv 2509.02528.
    """
    diagonal = np.full(dim, 1 / np.sqrt(dim))
    data = GaussianMixture(
        [0.4, 0.6] if weights is None else weights,
        np.stack([-diagonal, 1.2 * diagonal]) if means is None else means,
        np.stack([tridiagonal(dim, c, v, c) for v, c in ((0.2, 0.06), (0.3, -0.06))])
        if covariances is None
        else covariances,
    )
    if data.dim != dim:
        raise ProblemError(f"means must have shape (k, {dim}), got points of dimension {data.dim}")
    process = MixtureDiffusion(data, horizon=horizon, beta=beta, eta=eta)
    y = tilting_reward(reward, dim, temperature, strength, target)
    return process.tilted(y, temperature=temperature, name="mixture-diffusion")


def tilting_reward(
    reward: str | LogSumExpReward, dim: int, temperature: float, strength: float, target: ArrayLike
) -> LogSumExpReward:
    """The reward of this name, as `mixture_diffusion` has them, or the caller's."""
    if isinstance(reward, LogSumExpReward):
        return reward
    temperature = positive_number(temperature, "temperature", ProblemError)
    kind = one_of(reward, "reward", ("linear", "quadratic", "log-mixture"), ProblemError)
    k = float(frozen_array(strength, "strength", (), ProblemError))
    c = vector(target, dim, "target")
    if kind == "linear":
        return LogSumExpReward.linear(k * c, temperature=temperature)
    centres = np.stack([c] if kind == "quadratic" else [c, -c])
    return LogSumExpReward(
        temperature=temperature,
        R=np.broadcast_to(k * np.eye(dim), (len(centres), dim, dim)),
        s=k * centres,
        s0=np.full(len(centres), -0.5 * k * (c @ c) - temperature * np.log(len(centres))),
    )


@register()
def brownian_mixture(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    A: ArrayLike = 0.0,
    Lambda: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    means: ArrayLike | None = None,
    covariances: ArrayLike | None = None,
    mean: ArrayLike = 0.0,
    cov: ArrayLike = 0.25,
) -> ControlProblem:
    """Brownian motion steered to a Gaussian mixture.

    dX = A X dt + Lambda^{1/2} dB,  r = 0,  X_0 ~ N(mean, cov),
    y = alpha log sum_j w_j exp(-(x - m_j)' C_j^{-1} (x - m_j) / 2).

    A = 0 by default (A = -1: an Ornstein-Uhlenbeck process instead). Exact: each term is carried back by a Riccati
    equation, f is their sum. The target's weights w (k,), means (k, d) and covariances (k, d, d) default to (0.5, 1),
    (-1, ..)/sqrt(d) and (1, ..)/sqrt(d), and 0.3 and 0.4 on the diagonal with off-diagonals 0.1 and -0.1. A, Lambda,
    cov: (d, d), or a number for a multiple of the identity; mean (d,) or a number.
    Source: the Hopf-Cole transform, Evans, Partial Differential Equations (2010), section 4.4.1; as a sampler,
    Tzen and Raginsky, arXiv 1903.01608.
    """
    diagonal = np.full(dim, 1 / np.sqrt(dim))
    diffusion = matrix(Lambda, np.eye(dim), "Lambda")
    drift = LinearDrift(matrix(A, np.zeros((dim, dim)), "A"), np.zeros(dim))
    reward = LogSumExpReward.log_mixture(
        [0.5, 1.0] if weights is None else weights,
        np.stack([-diagonal, diagonal]) if means is None else means,
        np.stack([tridiagonal(dim, c, v, c) for v, c in ((0.3, 0.1), (0.4, -0.1))])
        if covariances is None
        else covariances,
        temperature=temperature,
    )
    start = gaussian_start(drift, diffusion, mean, cov)
    return linear_problem(
        "brownian-mixture", drift=drift, diffusion=diffusion, reward=reward, horizon=horizon, start=start
    )
