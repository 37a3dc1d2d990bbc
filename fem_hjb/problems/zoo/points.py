"""Data sets in the plane as the data laws of diffusion models, tilted by a reward.

Points are placed evenly, no random numbers are used: with a bandwidth about as wide as their gaps their density is
smooth along the shapes. The process is that of `mixture_diffusion`,

    dX = [beta/2 X + (1 + eta^2)/2 beta grad log p_t(X)] dt + eta beta^{1/2} dB,  X_0 ~ p_0,  p_T = data,

its noise by default that of Song et al., arXiv 2011.13456, beta = 0.1 to 20 in a unit of time, after which data are
forgotten up to kappa = 0.0066. Rewards, with strength k and target c, are those of `mixture_diffusion`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.mixtures import from_points
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.problems.zoo.mixtures import tilting_reward
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray, at_most
from fem_hjb.support.errors import ProblemError

_MOST = 1_000_000  # points
Rates = float | tuple[float, float]


def _even(n: int) -> FloatArray:
    """n midpoints of equal parts of [0, 1]."""
    return (np.arange(n) + 0.5) / n


@register(dims=(2,))
def two_moons(
    dim: int,
    *,
    n: int = 64,
    bandwidth: float = 0.2,
    horizon: float = 1.0,
    temperature: float = 1.0,
    beta: Rates = (0.1, 20.0),
    eta: float = 1.0,
    reward: str | LogSumExpReward = "linear",
    strength: float = 1.0,
    target: ArrayLike = (0.0, 1.0),
) -> ControlProblem:
    """Two interleaved half circles as data of a diffusion model, tilted by a reward.

    dX = [beta/2 X + (1 + eta^2)/2 beta grad log p_t(X)] dt + eta beta^{1/2} dB,  X_0 ~ p_0,
    p_T = sum_j N(m_j, bandwidth^2 I) / n,

    with n points m, half of them 2 (cos a, sin a) + (-1, -0.2), the others 2 (1 - cos a, 1/2 - sin a) + (-1, -0.2), all
    angles a even in [0, pi]. beta, eta and the rewards, with strength and target, are those of `mixture-diffusion`; by
    default y = x_2, for the upper moon. Exact for eta = 1.
    Source: make_moons of scikit-learn (Pedregosa et al., JMLR 12, 2011), scaled as in Grathwohl et al., arXiv
    1810.01367.
    """
    count = at_most(n, _MOST, "n", ProblemError)
    upper, lower = np.pi * _even(count - count // 2), np.pi * _even(count // 2)
    arcs = [np.stack([np.cos(upper), np.sin(upper)], 1), np.stack([1 - np.cos(lower), 0.5 - np.sin(lower)], 1)]
    process = from_points(2 * np.concatenate(arcs) - [1.0, 0.2], bandwidth, horizon=horizon, beta=beta, eta=eta)
    y = tilting_reward(reward, dim, temperature, strength, target)
    return process.tilted(y, temperature=temperature, name="two-moons")


@register(dims=(2,))
def checkerboard(
    dim: int,
    *,
    side: int = 6,
    bandwidth: float = 0.3,
    horizon: float = 1.0,
    temperature: float = 1.0,
    beta: Rates = (0.1, 20.0),
    eta: float = 1.0,
    reward: str | LogSumExpReward = "linear",
    strength: float = 0.5,
    target: ArrayLike = (1.0, 0.0),
) -> ControlProblem:
    """The black squares of a board as data of a diffusion model, tilted by a reward.

    dX = [beta/2 X + (1 + eta^2)/2 beta grad log p_t(X)] dt + eta beta^{1/2} dB,  X_0 ~ p_0,
    p_T = sum_j N(m_j, bandwidth^2 I) / n,

    with n points m: of the sixteen squares of [-4, 4]^2 the eight black ones, [2i, 2i + 2] x [2j, 2j + 2] with i + j
    even, have a lattice of side x side each. beta, eta and the rewards, with strength and target, are those of
    `mixture-diffusion`; by default y = x_1 / 2. Exact for eta = 1.
    Source: Grathwohl et al., arXiv 1810.01367 (uniform on these squares; here smoothed by the bandwidth).
    """
    line = _even(at_most(side, int(np.sqrt(_MOST / 8)), "side", ProblemError))
    cell = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    corners = [(i, j) for i in range(-2, 2) for j in range(-2, 2) if (i + j) % 2 == 0]
    board = 2 * np.concatenate([cell + corner for corner in corners])
    process = from_points(board, bandwidth, horizon=horizon, beta=beta, eta=eta)
    y = tilting_reward(reward, dim, temperature, strength, target)
    return process.tilted(y, temperature=temperature, name="checkerboard")


@register(dims=(2,))
def eight_gaussians(
    dim: int,
    *,
    bandwidth: float = 0.35,
    horizon: float = 1.0,
    temperature: float = 1.0,
    beta: Rates = (0.1, 20.0),
    eta: float = 1.0,
    reward: str | LogSumExpReward = "linear",
    strength: float = 0.5,
    target: ArrayLike = (1.0, 0.0),
) -> ControlProblem:
    """Eight Gaussians on a circle as data of a diffusion model, tilted by a reward.

    dX = [beta/2 X + (1 + eta^2)/2 beta grad log p_t(X)] dt + eta beta^{1/2} dB,  X_0 ~ p_0,
    p_T = sum_j N(m_j, bandwidth^2 I) / 8,  m_j = 8^{1/2} (cos, sin)(j pi/4).

    beta, eta and the rewards, with strength and target, are those of `mixture-diffusion`; by default y = x_1 / 2.
    Exact for eta = 1.
    Source: Grathwohl et al., arXiv 1810.01367, whose standard deviation is 0.354.
    """
    angles = np.pi / 4 * np.arange(8)
    centres = np.sqrt(8.0) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    process = from_points(centres, bandwidth, horizon=horizon, beta=beta, eta=eta)
    y = tilting_reward(reward, dim, temperature, strength, target)
    return process.tilted(y, temperature=temperature, name="eight-gaussians")


@register(dims=(2,))
def swiss_roll(
    dim: int,
    *,
    n: int = 128,
    bandwidth: float = 0.2,
    horizon: float = 1.0,
    temperature: float = 1.0,
    beta: Rates = (0.1, 20.0),
    eta: float = 1.0,
    reward: str | LogSumExpReward = "quadratic",
    strength: float = 0.5,
    target: ArrayLike = 0.0,
) -> ControlProblem:
    """A spiral as data of a diffusion model, tilted by a reward.

    dX = [beta/2 X + (1 + eta^2)/2 beta grad log p_t(X)] dt + eta beta^{1/2} dB,  X_0 ~ p_0,
    p_T = sum_j N(m_j, bandwidth^2 I) / n,

    with n points m = a (cos a, sin a) / 5, the angles a even in [3 pi/2, 9 pi/2]. beta, eta and the rewards, with
    strength and target, are those of `mixture-diffusion`; by default y = -|x|^2 / 4, for the inside. Exact for eta = 1.
    Source: make_swiss_roll of scikit-learn (Pedregosa et al., JMLR 12, 2011) without its third axis, scaled as in
    Grathwohl et al., arXiv 1810.01367.
    """
    angles = 1.5 * np.pi * (1 + 2 * _even(at_most(n, _MOST, "n", ProblemError)))
    roll = angles[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1) / 5
    process = from_points(roll, bandwidth, horizon=horizon, beta=beta, eta=eta)
    y = tilting_reward(reward, dim, temperature, strength, target)
    return process.tilted(y, temperature=temperature, name="swiss-roll")
