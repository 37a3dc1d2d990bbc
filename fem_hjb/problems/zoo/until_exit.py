"""Processes that are steered until they leave: wells, walks, rings, and the valleys of Mueller and Brown."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import skfem

from fem_hjb.problems.box import Box
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.zoo.meshed import ring_mesh
from fem_hjb.problems.zoo.metastable import mueller_brown_drift, mueller_brown_wells
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray, at_most, finite_number, positive_number
from fem_hjb.support.errors import ProblemError

_VALLEYS = np.array([[-0.558, 1.442], [0.623, 0.028]])  # the two deepest minima of the potential
_CORNERS = np.array([[-1.5, -0.4], [1.1, 2.0]])  # of a box that holds all that the process meets
_HIGH = 40.0  # of the potential: beyond, the process does not go
_FINEST = 400  # cells across, at most


def _positive(**given: Any) -> list[float]:
    return [positive_number(value, name, ProblemError) for name, value in given.items()]


def _constant(x: FloatArray, *, value: float) -> FloatArray:
    return np.full(x.shape[:-1], value)


def _still(x: FloatArray) -> FloatArray:
    return np.zeros_like(x)


def _wells(x: FloatArray, *, kappa: float) -> FloatArray:
    return np.asarray(-4.0 * kappa * x * (x**2 - 1.0))


@register(dims=(1, 2), kind=ExitProblem)
def well_exit(
    dim: int, *, temperature: float = 1.0, kappa: float = 5.0, beta: float = 1.0, rate: float = 1.0
) -> ExitProblem:
    """Out of a metastable well, for as long as that takes.

    dX = -grad V(X) dt + (2/beta)^{1/2} dB,  V = kappa sum_i (x_i^2 - 1)^2, stopped when X_1 first meets 1;  r = -rate.

    v = alpha log E exp(-rate tau / alpha); kappa, beta, rate > 0. Grids end at -2, and at 2 on the second axis. In one
    dimension E_x tau = beta int_x^1 e^{beta V(y)} int_{-inf}^y e^{-beta V(z)} dz dy.
    Source: Hartmann and Schuette, J. Stat. Mech. (2012) P11004; this potential, Ribera Borrell, Quer, Richter and
    Schuette, arXiv 2206.06628, in one dimension.
    """
    k, b, q = _positive(kappa=kappa, beta=beta, rate=rate)
    ends = [("natural", "absorbing"), ("natural", "natural")][:dim]
    return ExitProblem(
        dim=dim,
        temperature=temperature,
        drift=partial(_wells, kappa=k),
        diffusion=2.0 / b,
        running_reward=partial(_constant, value=-q),
        domain=Box([-2.0] * dim, [1.0, 2.0][:dim], boundary=ends),
        name="well-exit",
    )


@register(dims=(1,), kind=ExitProblem)
def well_crossing(
    dim: int, *, temperature: float = 1.0, kappa: float = 1.0, beta: float = 4.0, cost: float = 5.0
) -> ExitProblem:
    """From one well to the other rather than back: the committor is a value.

    dX = -V'(X) dt + (2/beta)^{1/2} dB,  V = kappa (x^2 - 1)^2, stopped at -1, where `cost` is due, and at 1.

    v = alpha log(q + (1 - q) e^{-cost / alpha}) with the committor q = P_x(X_tau = 1), which is int_{-1}^x e^{beta V}
    over int_{-1}^1 e^{beta V}. kappa, beta > 0.
    Source: Weinan E and Vanden-Eijnden, J. Stat. Phys. 123 (2006) 503-523, section 2; kappa and beta are chosen here.
    """
    k, b = _positive(kappa=kappa, beta=beta)
    return ExitProblem(
        dim=dim,
        temperature=temperature,
        drift=partial(_wells, kappa=k),
        diffusion=2.0 / b,
        exit_reward=partial(_due, cost=finite_number(cost, "cost", ProblemError)),
        domain=Box([-1.0], [1.0], boundary="absorbing"),
        name="well-crossing",
    )


def _due(x: FloatArray, *, cost: float) -> FloatArray:
    return np.where(x[..., 0] < 0.0, -cost, 0.0)


@register(dims=(1, 2, 3), kind=ExitProblem)
def brownian_exit(dim: int, *, temperature: float = 1.0, noise: float = 1.0, rate: float = 1.0) -> ExitProblem:
    """Brownian motion until it leaves a box, which costs time.

    dX = noise^{1/2} dB in [-1, 1]^d, stopped at all faces,  r = -rate.

    In one dimension f = exp(v / alpha) = cosh(k x) / cosh(k), k^2 = 2 rate / (alpha noise), and E_x tau = (1 - x^2) /
    noise. noise, rate > 0.
    Source: Borodin and Salminen, Handbook of Brownian Motion (2002), part II.1, 3.0.1.
    """
    size, q = _positive(noise=noise, rate=rate)
    return ExitProblem(
        dim=dim,
        temperature=temperature,
        drift=_still,
        diffusion=size,
        running_reward=partial(_constant, value=-q),
        domain=Box([-1.0] * dim, [1.0] * dim, boundary="absorbing"),
        name="brownian-exit",
    )


@register(dims=(2,), kind=ExitProblem)
def ring_exit(
    dim: int, *, temperature: float = 1.0, noise: float = 1.0, rate: float = 1.0, outer: float = 2.0, cells: int = 12
) -> ExitProblem:
    """Brownian motion until it meets one of the circles of a ring.

    dX = noise^{1/2} dB in 1 < |x| < outer, stopped at both circles,  r = -rate. The domain is a mesh, `cells` across,
    whose boundary has the names "inner" and "outer".

    The probability to meet the outer circle first is log |x| / log outer, but for what straight edges cut off.
    Source: Oeksendal, Stochastic Differential Equations (2003), example 7.4.2.
    """
    size, q = _positive(noise=noise, rate=rate)
    radius = positive_number(outer, "outer", ProblemError)
    if not 1.2 <= radius <= 100.0:
        raise ProblemError(f"outer must lie between 1.2 and 100, the inner radius being 1, got {outer!r}")
    mesh = ring_mesh(radius, at_most(cells, _FINEST, "cells", ProblemError))
    return ExitProblem(
        dim=dim,
        temperature=temperature,
        drift=_still,
        diffusion=size,
        running_reward=partial(_constant, value=-q),
        domain=MeshDomain(mesh, {"inner": "absorbing", "outer": "absorbing"}),
        name="ring-exit",
    )


@register(dims=(2,), kind=ExitProblem)
def mueller_brown_exit(
    dim: int,
    *,
    temperature: float = 1.0,
    beta: float = 1.0 / 15.0,
    cost: float = 10.0,
    radius: float = 0.1,
    cells: int = 80,
) -> ExitProblem:
    """Which of the two deepest valleys of Mueller and Brown is met first.

    dX = -grad V(X) dt + (2/beta)^{1/2} dB, stopped within about `radius` of the minima (-0.558, 1.442), "left", where
    `cost` is due, and (0.623, 0.028), "right". The domain is a mesh of triangles in [-1.5, 1.1] x [-0.4, 2], `cells`
    across, without those whose middle lies so near to a minimum or where V > 40; it reflects where it ends.

    beta > 0, 0.05 <= radius <= 0.3. No closed form.
    Source: Mueller and Brown, Theor. Chim. Acta 53 (1979) 75-93; its committor, Khoo, Lu and Ying, Res. Math. Sci. 6
    (2019) 1; beta, radius and cost are chosen here.
    """
    b, near = _positive(beta=beta, radius=radius)
    if not 0.05 <= near <= 0.3:
        raise ProblemError(f"radius must lie between 0.05 and 0.3, got {radius!r}")
    count = at_most(cells, _FINEST, "cells", ProblemError)
    if count < 40:
        raise ProblemError(f"cells must be at least 40, for the valleys to be seen, got {cells}")
    return ExitProblem(
        dim=dim,
        temperature=temperature,
        drift=partial(mueller_brown_drift, 0.0),
        diffusion=2.0 / b,
        exit_reward=partial(_left, cost=finite_number(cost, "cost", ProblemError)),
        domain=MeshDomain(valley_mesh(near, count), {"left": "absorbing", "right": "absorbing", None: "reflecting"}),
        name="mueller-brown-exit",
    )


def _left(x: FloatArray, *, cost: float) -> FloatArray:
    """The cost at the left valley."""
    far = np.linalg.norm(x[..., None, :] - _VALLEYS, axis=-1)
    return np.where(far[..., 0] < far[..., 1], -cost, 0.0)


def valley_mesh(radius: float, cells: int) -> Any:
    """Triangles where the potential is not high, without two holes, whose edges are called "left" and "right"."""
    (left, right), (bottom, top) = _CORNERS.T.tolist()
    whole = skfem.MeshTri.init_tensor(np.linspace(left, right, cells + 1), np.linspace(bottom, top, cells + 1))
    middle = whole.p[:, whole.t].mean(axis=1).T
    away = np.linalg.norm(middle[:, None] - _VALLEYS, axis=-1).min(axis=1)
    kept = (away > radius) & (mueller_brown_wells(middle)[0].sum(axis=-1) < _HIGH)
    used, t = np.unique(whole.t[:, kept], return_inverse=True)
    mesh = skfem.MeshTri(np.ascontiguousarray(whole.p[:, used]), np.ascontiguousarray(t.reshape(3, -1)))
    one, other = (partial(_within, centre=centre, reach=radius + 3.0 / cells) for centre in _VALLEYS)
    return mesh.with_boundaries({"left": one, "right": other})


def _within(x: FloatArray, *, centre: FloatArray, reach: float) -> Any:
    return np.hypot(x[0] - centre[0], x[1] - centre[1]) < reach
