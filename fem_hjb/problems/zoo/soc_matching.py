"""The benchmarks of stochastic optimal control matching, Domingo-Enrich et al., arXiv 2312.02027."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Law, PointMass
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.problems.zoo.coefficients import constant, linear_problem, matrix, nothing, vector
from fem_hjb.problems.zoo.registry import register
from fem_hjb.problems.zoo.wells import double_well
from fem_hjb.support.checks import FloatArray, one_of
from fem_hjb.support.errors import ProblemError


def _square(t: ArrayLike, x: FloatArray, *, weight: float) -> FloatArray:
    """weight |x|^2."""
    return np.asarray(weight * (x**2).sum(-1))


def _soc_linear(
    name: str,
    dim: int,
    *,
    A: FloatArray,
    sigma: FloatArray,
    f: float,
    reward: LogSumExpReward,
    horizon: float,
    start: Law,
) -> ControlProblem:
    """dX = A X dt + lambda^{1/2} sigma dB under the running cost f |x|^2 and the terminal reward, alpha = lambda."""
    return linear_problem(
        name,
        drift=LinearDrift(A, np.zeros(dim)),
        diffusion=reward.temperature * sigma @ sigma.T,
        reward=reward,
        horizon=horizon,
        start=start,
        running=partial(_square, weight=-f) if f else None,
        Q=2 * f * np.eye(dim) if f else None,
    )


@register(default_dim=20)
def soc_ou_quadratic(
    dim: int,
    *,
    setting: str = "easy",
    x0: ArrayLike | None = None,
    horizon: float = 1.0,
    temperature: float = 1.0,
) -> ControlProblem:
    """SOC matching's quadratic Ornstein-Uhlenbeck settings.

    dX = (a X + u) dt + lambda^{1/2} dB, minimise E[ int_0^T |u|^2/2 + p |X|^2 dt + q |X_T|^2 ], lambda = temperature,

    with setting="easy": a = 0.2, p = 0.2, q = 0.1, and "hard": a = 1, p = 1, q = 0.5. Here: Lambda = lambda I,
    r = -p |x|^2, y = -q |x|^2, alpha = lambda; the source's control is u = pi, its value -v.

    Exact by Riccati equations. x0 None: X_0 ~ N(0, I/4), the law from which a run of the source draws the one point
    that all its paths start from ((0.4, 0.6) if dim is 2); x0 a point (d,) or a number starts there. The source has
    dim 20.
    Source: Domingo-Enrich et al., arXiv 2312.02027, "Quadratic OU"; parameters from
    github.com/facebookresearch/SOC-matching, SOC_matching/experiment_settings/settings.py and OU_quadratic.py.
    """
    kind = one_of(setting, "setting", ("easy", "hard"), ProblemError)
    a, p, q = (0.2, 0.2, 0.1) if kind == "easy" else (1.0, 1.0, 0.5)
    return _soc_linear(
        "soc-ou-quadratic",
        dim,
        A=a * np.eye(dim),
        sigma=np.eye(dim),
        f=p,
        reward=LogSumExpReward.quadratic(2 * q * np.eye(dim), np.zeros(dim), temperature=temperature),
        horizon=horizon,
        start=Gaussian(np.zeros(dim), 0.25) if x0 is None else PointMass(vector(x0, dim, "x0")),
    )


@register(default_dim=10)
def soc_ou_linear(
    dim: int,
    *,
    seed: int = 0,
    xi: ArrayLike | None = None,
    x0: ArrayLike = 0.0,
    horizon: float = 1.0,
    temperature: float = 1.0,
) -> ControlProblem:
    """SOC matching's linear Ornstein-Uhlenbeck setting.

    dX = (A X + sigma u) dt + lambda^{1/2} sigma dB, minimise E[ int_0^T |u|^2/2 dt + sum_i X_T^i ], from X_0 = x0,

    with A = -I + xi, sigma = I + xi, lambda = temperature. Here: Lambda = lambda sigma sigma', r = 0, y = -sum_i x_i,
    alpha = lambda; the source's control is u = sigma^{-1} pi, its value -v.

    Exact: u = -sigma' e^{A'(T-t)} (1, .., 1), which does not see x. xi (d, d) None: independent N(0, 0.01) entries from
    the seed (not the source's draw, which comes from PyTorch's generator; give xi to have that one). x0: (d,) or a
    number. The source has dim 10 and x0 = 0.
    Source: Domingo-Enrich et al., arXiv 2312.02027, "Linear OU"; parameters from
    github.com/facebookresearch/SOC-matching, SOC_matching/experiment_settings/settings.py (nu = 0.1) and OU_linear.py.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ProblemError(f"seed must be a non-negative integer, got {seed!r}")
    random = matrix(xi, 0.1 * np.random.default_rng(seed).standard_normal((dim, dim)), "xi")
    return _soc_linear(
        "soc-ou-linear",
        dim,
        A=-np.eye(dim) + random,
        sigma=np.eye(dim) + random,
        f=0.0,
        reward=LogSumExpReward.linear(-np.ones(dim), temperature=temperature),
        horizon=horizon,
        start=PointMass(vector(x0, dim, "x0")),
    )


@register(default_dim=10)
def soc_double_well(
    dim: int,
    *,
    kappa: ArrayLike | None = None,
    nu: ArrayLike | None = None,
    x0: ArrayLike = 0.0,
    horizon: float = 1.0,
    temperature: float = 1.0,
) -> ControlProblem:
    """SOC matching's double wells, deep ones on the first three axes.

    dX = (-4 kappa X (X^2 - 1) + u) dt + lambda^{1/2} dB (axis by axis), from X_0 = x0,
    minimise E[ int_0^T |u|^2/2 dt + sum_i nu_i ((X_T^i)^2 - 1)^2 ], lambda = temperature.

    Here: Lambda = lambda I, r = 0, y = -sum_i nu_i (x_i^2 - 1)^2, alpha = lambda; the source's control is u = pi, its
    value -v. kappa, nu: (d,) or a number; None: (kappa_i, nu_i) = (5, 3) on the first three axes and (1, 1) on the
    others. v is a sum of one-dimensional values, none in closed form. The source has dim 10 and x0 = 0.
    Source: Domingo-Enrich et al., arXiv 2312.02027, "Double Well"; parameters from
    github.com/facebookresearch/SOC-matching, SOC_matching/experiment_settings/settings.py and double_well.py.
    """
    deep = np.arange(dim) < 3
    return replace(
        double_well(
            dim,
            horizon=horizon,
            temperature=temperature,
            kappa=np.where(deep, 5.0, 1.0) if kappa is None else kappa,
            nu=np.where(deep, 3.0, 1.0) if nu is None else nu,
            Lambda=temperature,
        ),
        initial_law=PointMass(vector(x0, dim, "x0")),
        name="soc-double-well",
    )


@register(dims=(1,))
def soc_molecular_dynamics(
    dim: int, *, kappa: float = 1.0, x0: float = -1.0, horizon: float = 1.0, temperature: float = 1.0
) -> ControlProblem:
    """SOC matching's double well with a stopping time: leave the left well soon.

    dX = (-4 kappa X (X^2 - 1) + u) dt + lambda^{1/2} dB, from X_0 = x0 < 0, stopped at tau, when X first meets 0;
    minimise E[ int_0^{min(tau, T)} |u|^2/2 + 1 dt ], lambda = temperature.

    Here: Lambda = lambda, r = -1, y = 0, alpha = lambda, on the half line (-inf, 0] that absorbs at 0 and pays nothing
    there; the source's control is u = pi, its value -v = -lambda log E[ exp(-min(tau, T)/lambda) ]. No closed form.
    Source: Domingo-Enrich et al., arXiv 2312.02027; parameters from github.com/facebookresearch/SOC-matching,
    SOC_matching/experiment_settings/settings.py and molecular_dynamics.py, which run it in dim 1.
    """
    start = vector(x0, dim, "x0")
    if (start >= 0).any():
        raise ProblemError(f"x0 must be negative, as the process is stopped at 0, got {x0!r}")
    return replace(
        double_well(dim, horizon=horizon, temperature=temperature, kappa=kappa, nu=0.0, Lambda=temperature),
        running_reward=partial(constant, value=-1.0),
        terminal_reward=nothing,
        initial_law=PointMass(start),
        domain=Box([-np.inf], [0.0], boundary=[("natural", "absorbing")]),
        name="soc-molecular-dynamics",
    )
