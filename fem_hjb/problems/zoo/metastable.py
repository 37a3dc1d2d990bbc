"""Rare transitions: times at which a process leaves a well, and motion between the minima of rugged potentials."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.zoo.coefficients import constant, nothing, vector
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray, finite_number, positive_number
from fem_hjb.support.errors import ProblemError

# The potential of Mueller and Brown: heights, exponents of u^2, u v and v^2, and centres.
_HEIGHTS = np.array([-200.0, -100.0, -170.0, 15.0])
_EXPONENTS = np.array([[-1.0, 0.0, -10.0], [-1.0, 0.0, -10.0], [-6.5, 11.0, -6.5], [0.7, 0.6, 0.7]])
_CENTRES = np.array([[1.0, 0.0], [0.0, 0.5], [-0.5, 1.5], [-1.0, 1.0]])


def _near(x: FloatArray, *, target: FloatArray, nu: float) -> FloatArray:
    """-nu |x - target|^2."""
    return np.asarray(-nu * ((x - target) ** 2).sum(-1))


def _well(t: ArrayLike, x: FloatArray, *, kappa: float, coupling: float) -> FloatArray:
    pull = -4 * kappa * x * (x**2 - 1)
    return np.asarray(pull - coupling * x[..., ::-1] if x.shape[-1] == 2 else pull)


@register(dims=(1, 2))
def hitting_time(
    dim: int,
    *,
    horizon: float = 20.0,
    temperature: float = 1.0,
    kappa: float = 5.0,
    beta: float = 1.0,
    rate: float = 1.0,
    coupling: float = 1.0,
    x0: float = -1.0,
) -> ControlProblem:
    """The Laplace transform of a hitting time, out of a metastable well.

    dX = -grad V(X) dt + (2/beta)^{1/2} dB from X_0 = (x0, ..),  V = kappa sum_i (x_i^2 - 1)^2  (+ coupling x_1 x_2 in
    two dimensions), stopped at tau, when X_1 first meets 1;  r = -rate,  y = 0, nothing is paid at tau.

    v = alpha log E exp(-rate min(tau, T) / alpha). kappa, beta, rate > 0, x0 < 1. The source's tau has no horizon; a
    horizon leaves out at most exp(-rate T / alpha).
    Source: Hartmann and Schuette, J. Stat. Mech. (2012) P11004; this potential, Ribera Borrell, Quer, Richter and
    Schuette, arXiv 2206.06628, in one dimension; the coupling, and the face as a target in two, are added here.
    """
    k, b, q = (
        positive_number(value, name, ProblemError) for name, value in (("kappa", kappa), ("beta", beta), ("rate", rate))
    )
    start = finite_number(x0, "x0", ProblemError)
    if start >= 1:
        raise ProblemError(f"x0 must be below 1, where the process is stopped, got {start:g}")
    free = [("natural", "natural")] * (dim - 1)
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=partial(_well, kappa=k, coupling=finite_number(coupling, "coupling", ProblemError)),
        diffusion=2.0 / b,
        running_reward=partial(constant, value=-q),
        terminal_reward=nothing,
        initial_law=PointMass(np.full(dim, start)),
        domain=Box([-np.inf] * dim, [1.0, np.inf][:dim], boundary=[("natural", "absorbing"), *free]),
        name="hitting-time",
    )


def mueller_brown_wells(x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The four exponentials of V (..., 4), and coordinates from their centres."""
    u, v = np.moveaxis(x[..., None, :] - _CENTRES, -1, 0)
    a, b, c = _EXPONENTS.T
    return _HEIGHTS * np.exp(a * u**2 + b * u * v + c * v**2), u, v


def mueller_brown_drift(t: ArrayLike, x: FloatArray) -> FloatArray:
    """-grad V."""
    e, u, v = mueller_brown_wells(x)
    a, b, c = _EXPONENTS.T
    return np.stack([-(e * (2 * a * u + b * v)).sum(-1), -(e * (b * u + 2 * c * v)).sum(-1)], axis=-1)


@register(dims=(2,))
def mueller_brown(
    dim: int,
    *,
    horizon: float = 0.02,
    temperature: float = 1.0,
    beta: float = 0.05,
    nu: float = 3.0,
    x0: ArrayLike = (-0.558, 1.442),
    target: ArrayLike = (0.623, 0.028),
) -> ControlProblem:
    """From one minimum of the Mueller-Brown potential to another.

    dX = -grad V(X) dt + (2/beta)^{1/2} dB from X_0 = x0,  r = 0,  y = -nu |x - target|^2,

    V a sum of four exponentials with minima at about (-0.558, 1.442), (0.623, 0.028) and (-0.050, 0.467), of heights
    -146.7, -108.2 and -80.8. beta > 0, nu >= 0. No closed form.
    Source: Mueller and Brown, Theor. Chim. Acta 53 (1979) 75-93; transitions between its minima as stochastic control,
    Holdijk et al., arXiv 2207.02149; reward, horizon and beta are chosen here.
    """
    b, strength = positive_number(beta, "beta", ProblemError), finite_number(nu, "nu", ProblemError)
    if strength < 0:
        raise ProblemError(f"nu must be non-negative, got {strength:g}")
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=mueller_brown_drift,
        diffusion=2.0 / b,
        terminal_reward=partial(_near, target=vector(target, dim, "target"), nu=strength),
        initial_law=PointMass(vector(x0, dim, "x0")),
        name="mueller-brown",
    )


def _maier_stein(t: ArrayLike, x: FloatArray, *, bend: float) -> FloatArray:
    u, v = x[..., 0], x[..., 1]
    return np.stack([u - u**3 - bend * u * v**2, -(1 + u**2) * v], axis=-1)


@register(dims=(2,))
def maier_stein(
    dim: int,
    *,
    horizon: float = 5.0,
    temperature: float = 1.0,
    bend: float = 10.0,
    noise: float = 0.1,
    nu: float = 3.0,
    x0: ArrayLike = (-1.0, 0.0),
    target: ArrayLike = (1.0, 0.0),
) -> ControlProblem:
    """From one attractor of the Maier-Stein process to the other.

    dX_1 = (X_1 - X_1^3 - bend X_1 X_2^2) dt + noise^{1/2} dB_1,  dX_2 = -(1 + X_1^2) X_2 dt + noise^{1/2} dB_2,
    from X_0 = x0,  r = 0,  y = -nu |x - target|^2.

    The drift is a gradient for bend = 1 only. noise > 0, nu >= 0. No closed form.
    Source: Maier and Stein, Phys. Rev. Lett. 71 (1993) 1783-1786; noise, reward and horizon are chosen here.
    """
    curve, size, strength = finite_number(bend, "bend", ProblemError), positive_number(noise, "noise", ProblemError), nu
    if finite_number(strength, "nu", ProblemError) < 0:
        raise ProblemError(f"nu must be non-negative, got {strength:g}")
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=partial(_maier_stein, bend=curve),
        diffusion=size,
        terminal_reward=partial(_near, target=vector(target, dim, "target"), nu=float(strength)),
        initial_law=PointMass(vector(x0, dim, "x0")),
        name="maier-stein",
    )


def _ring_drift(t: ArrayLike, x: FloatArray, *, scale: float, radius: float) -> FloatArray:
    return np.asarray(-scale * (4.0 * (x**2).sum(-1, keepdims=True) - 4.0 * radius**2) * x)


def _uphill(t: ArrayLike, x: FloatArray, *, slope: float) -> FloatArray:
    return np.asarray(-slope * x[..., 0])


@register(dims=(2,))
def ring(
    dim: int,
    *,
    horizon: float = 5.0,
    temperature: float = 1.0,
    scale: float = 0.05,
    slope: float = 2.0,
    mean: ArrayLike = (0.0, 3.5),
    cov: float = 0.1,
) -> ControlProblem:
    """A ring of minima, and a running cost that asks for its left side.

    dX = -grad E(X) dt + dB,  E = scale (|x|^2 - 25) |x|^2, minimal on |x|^2 = 12.5,  r = -slope x_1,  y = 0,
    X_0 ~ N(mean, cov I).

    scale > 0, cov > 0. No closed form.
    Source: Claeys, Goldman, Shen and He, arXiv 2603.23173, the setting RING, with its potential, running cost 2 x_1 and
    T = 5; scale, noise and start are chosen here.
    """
    size = positive_number(scale, "scale", ProblemError)
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=partial(_ring_drift, scale=size, radius=float(np.sqrt(12.5))),
        diffusion=1.0,
        running_reward=partial(_uphill, slope=finite_number(slope, "slope", ProblemError)),
        terminal_reward=nothing,
        initial_law=Gaussian(vector(mean, dim, "mean"), positive_number(cov, "cov", ProblemError)),
        name="ring",
    )
