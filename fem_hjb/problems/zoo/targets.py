r"""Targets of Schroedinger-Foellmer samplers: Brownian motion from 0 that is to end with a given density pi.

With y = alpha log(pi / N(0, T I)) the optimally controlled process has X_T ~ pi, and v_0(0) = alpha log of the mass of
pi, 0 where it is normalised (Foellmer, Springer LNCIS 69 (1985) 156-163; as a sampler, Tzen and Raginsky, arXiv
1903.01608).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.problems.zoo.coefficients import linear_problem
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray, at_most, positive_number
from fem_hjb.support.errors import ProblemError

_MOST = 10_000  # modes


@register(dims=(1, 2, 3), default_dim=2)
def foellmer_mixture(
    dim: int,
    *,
    horizon: float = 5.0,
    temperature: float = 1.0,
    side: int = 3,
    gap: float = 5.0,
    variance: float = 0.3,
) -> ControlProblem:
    """Brownian motion steered to a lattice of Gaussians.

    dX = dB from X_0 = 0,  r = 0,  y = alpha log(target / N(0, T I)),
    target = sum_j N(m_j, variance I) / side^d,

    the means m_j on a lattice of `side` points per axis with this gap, around 0; 0 < variance. Exact: y is a
    log-sum-exp of quadratics; v_0(0) = 0, since the target is normalised.
    Source: the nine modes of Zhang and Chen, arXiv 2111.15141 (means in {-5, 0, 5}^2, variance 0.3); the horizon is
    chosen here.
    """
    alpha, time, apart, spread = (
        positive_number(value, name, ProblemError)
        for name, value in (("temperature", temperature), ("horizon", horizon), ("gap", gap), ("variance", variance))
    )
    count = at_most(side, _MOST, "side", ProblemError)
    if count**dim > _MOST:
        raise ProblemError(f"side={count} makes {count}^{dim} modes, at most {_MOST} are allowed")
    line = apart * (np.arange(count) - (count - 1) / 2)
    means = np.stack(np.meshgrid(*[line] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    lost = np.log(len(means)) + 0.5 * dim * np.log(spread / time)
    reward = LogSumExpReward(
        temperature=alpha,
        R=np.broadcast_to(alpha * (1 / spread - 1 / time) * np.eye(dim), (len(means), dim, dim)),
        s=alpha * means / spread,
        s0=-alpha * (0.5 * (means**2).sum(-1) / spread + lost),
    )
    return linear_problem(
        "foellmer-mixture",
        drift=LinearDrift(np.zeros((dim, dim)), np.zeros(dim)),
        diffusion=np.eye(dim),
        reward=reward,
        horizon=horizon,
        start=PointMass(np.zeros(dim)),
    )


def _funnel(x: FloatArray, *, alpha: float, sd: float, time: float) -> FloatArray:
    """alpha log( N(x_1; 0, sd^2) N(x_2; 0, exp x_1) / N(x; 0, T I) )."""
    first, second = x[..., 0], x[..., 1]
    target = -0.5 * (first / sd) ** 2 - np.log(sd) - 0.5 * first - 0.5 * second**2 * np.exp(-first)
    return np.asarray(alpha * (target + 0.5 * (first**2 + second**2) / time + np.log(time)))


@register(dims=(2,))
def foellmer_funnel(dim: int, *, horizon: float = 6.0, temperature: float = 1.0, sd: float = 1.0) -> ControlProblem:
    """Brownian motion steered to Neal's funnel.

    dX = dB from X_0 = 0,  r = 0,  y = alpha log(target / N(0, T I)),  target: x_1 ~ N(0, sd^2), x_2 given x_1
    ~ N(0, exp(x_1)).

    v_0(0) = 0, since the target is normalised; elsewhere there is no closed form. sd > 0.
    Source: Neal, Ann. Statist. 31 (2003) 705-767, section 8, with nine coordinates like x_2 and sd = 3; sd = 1 is what
    samplers are often tried on, Zhang and Chen, arXiv 2111.15141.
    """
    alpha, time, spread = (
        positive_number(value, name, ProblemError)
        for name, value in (("temperature", temperature), ("horizon", horizon), ("sd", sd))
    )
    drift, start = LinearDrift(np.zeros((dim, dim)), np.zeros(dim)), PointMass(np.zeros(dim))
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=drift,
        diffusion=1.0,
        terminal_reward=partial(_funnel, alpha=alpha, sd=spread, time=time),
        initial_law=start,
        marginal=linear_marginal(drift, np.eye(dim), start),
        name="foellmer-funnel",
    )
