"""Double wells, which have no closed form."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.zoo.coefficients import matrix, vector
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray, frozen_array
from fem_hjb.support.errors import ProblemError


def _well_drift(t: ArrayLike, x: FloatArray, *, kappa: FloatArray) -> FloatArray:
    return np.asarray(-4 * kappa * x * (x**2 - 1))


def _well_reward(x: FloatArray, *, nu: FloatArray) -> FloatArray:
    return np.asarray(-((x**2 - 1) ** 2) @ nu)


def _well_running(t: ArrayLike, x: FloatArray, *, mu: FloatArray) -> FloatArray:
    return _well_reward(x, nu=mu)


@register()
def double_well(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    kappa: ArrayLike = 5.0,
    nu: ArrayLike = 3.0,
    mu: ArrayLike = 0.0,
    Lambda: ArrayLike = 1.0,
    mean: ArrayLike = 0.0,
    cov: ArrayLike = 0.25,
) -> ControlProblem:
    """A double well on every axis.

    dX_i = -4 kappa_i X_i (X_i^2 - 1) dt + Lambda_i^{1/2} dB_i,  y = -sum_i nu_i (x_i^2 - 1)^2,
    r = -sum_i mu_i (x_i^2 - 1)^2,  X_0 ~ N(mean, cov).

    The drift is -grad of sum_i kappa_i (x_i^2 - 1)^2; the coordinates are independent, so v is a sum of one-dimensional
    values, none in closed form. kappa > 0, nu, mu >= 0, Lambda > 0 and mean: (d,) or a number; cov (d, d) or a number.
    Source: Nuesken and Richter, arXiv 2005.05409; with mu = 0 and kappa = 5, nu = 3 (from X_0 = 0)
    Domingo-Enrich et al., arXiv 2312.02027; with running rewards, Claeys, Goldman, Shen and He, arXiv 2603.23173.
    """
    k, n, m = vector(kappa, dim, "kappa"), vector(nu, dim, "nu"), vector(mu, dim, "mu")
    if (k <= 0).any() or (n < 0).any():
        raise ProblemError(f"kappa must be positive and nu non-negative, got {k.tolist()} and {n.tolist()}")
    if (m < 0).any():
        raise ProblemError(f"mu must be non-negative, got {m.tolist()}")
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=partial(_well_drift, kappa=k),
        diffusion=vector(Lambda, dim, "Lambda"),
        running_reward=partial(_well_running, mu=m) if m.any() else None,
        terminal_reward=partial(_well_reward, nu=n),
        initial_law=Gaussian(vector(mean, dim, "mean"), matrix(cov, np.eye(dim), "cov")),
        name="double-well",
    )


def _coupled_well_drift(t: ArrayLike, x: FloatArray, *, kappa: float, coupling: float) -> FloatArray:
    return np.asarray(-4 * kappa * x * (x**2 - 1) - coupling * x[..., ::-1])


def _reward_at_ones(x: FloatArray, *, nu: float) -> FloatArray:
    """-nu |x - (1, .., 1)|^2."""
    return np.asarray(-nu * ((x - 1) ** 2).sum(-1))


@register(dims=(2,))
def double_well_2d_coupled(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    kappa: float = 1.5,
    coupling: float = 1.0,
    nu: float = 1.0,
    Lambda: ArrayLike = 1.0,
    mean: ArrayLike = 0.0,
    cov: ArrayLike = 0.25,
) -> ControlProblem:
    """Two coupled double wells, with no closed form.

    dX = -grad U(X) dt + Lambda^{1/2} dB,  U(x) = kappa (x_1^2 - 1)^2 + kappa (x_2^2 - 1)^2 + coupling x_1 x_2,
    r = 0,  y = -nu |x - (1, 1)|^2,  X_0 ~ N(mean, cov).

    The coupling makes U non-separable: for coupling > 0 the wells at (1, -1) and (-1, 1) are the deeper ones, while the
    reward asks for (1, 1). kappa > 0, nu >= 0. Lambda, cov: (2, 2) or a number; mean: (2,) or a number.
    Source: the double well of Nuesken and Richter, arXiv 2005.05409, with a bilinear coupling added here.
    """
    k, c, n = (
        float(frozen_array(v, name, (), ProblemError))
        for v, name in ((kappa, "kappa"), (coupling, "coupling"), (nu, "nu"))
    )
    if k <= 0 or n < 0:
        raise ProblemError(f"kappa must be positive and nu non-negative, got {k:g} and {n:g}")
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=partial(_coupled_well_drift, kappa=k, coupling=c),
        diffusion=matrix(Lambda, np.eye(2), "Lambda"),
        terminal_reward=partial(_reward_at_ones, nu=n),
        initial_law=Gaussian(vector(mean, 2, "mean"), matrix(cov, np.eye(2), "cov")),
        name="double-well-2d-coupled",
    )
