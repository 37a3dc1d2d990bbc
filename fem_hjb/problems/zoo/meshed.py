"""Processes that live in a mesh: an annulus, a disc with holes, an L, each with a known value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import skfem
from numpy.typing import ArrayLike
from scipy.spatial import Delaunay
from scipy.special import iv, kv

from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import ClosedForm
from fem_hjb.problems.laws import Gaussian, Uniform
from fem_hjb.problems.manufactured import manufactured
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.zoo.coefficients import constant
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray, IntArray, at_most, positive_number
from fem_hjb.support.errors import ProblemError

_FINEST = 400  # cells across, at most
_HOLES = np.array([[-0.9, 0.0, 0.4], [0.9, 0.0, 0.6]])  # of the plate: centre and radius
_RADIUS = 2.0  # of its rim


@final
@dataclass(frozen=True, eq=False, repr=False)
class Screened(ClosedForm):
    r"""f = w_0 I_0(kappa |x|) + sum_i w_i K_0(kappa |x - c_i|) in the plane, which solves Laplace f = kappa^2 f.

    centres : c_i (k, 2), in holes of the domain;  weights : w_i (k,);  inner : w_0;  kappa;  Lambda, horizon,
    temperature : of the problem.
    """

    centres: FloatArray
    weights: FloatArray
    inner: float
    kappa: float
    Lambda: float
    horizon: float
    temperature: float

    dim = 2

    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        off = x[:, None] - self.centres
        far = np.linalg.norm(off, axis=-1)
        f = kv(0, self.kappa * far) @ self.weights
        slope = -self.kappa * np.einsum("ni,nid,i->nd", kv(1, self.kappa * far) / far, off, self.weights)
        if self.inner:
            radius = np.linalg.norm(x, axis=1)
            f = f + self.inner * iv(0, self.kappa * radius)
            slope = slope + self.inner * self.kappa * (iv(1, self.kappa * radius) / radius)[:, None] * x
        return self.temperature * np.log(f), self.temperature * slope / f[:, None]

    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        return self.Lambda * gradient


def _stopped(exact: Screened, domain: MeshDomain, start: Box, name: str) -> ControlProblem:
    """Brownian motion that is stopped at the boundary, paid as the closed form says."""
    alpha, Lambda = exact.temperature, exact.Lambda
    return ControlProblem(
        dim=2,
        horizon=exact.horizon,
        temperature=alpha,
        drift=LinearDrift(np.zeros((2, 2)), np.zeros(2)),
        diffusion=Lambda,
        running_reward=partial(constant, value=-0.5 * alpha * Lambda * exact.kappa**2),
        terminal_reward=partial(exact.value, exact.horizon),
        initial_law=Uniform(start),
        domain=domain,
        exact=exact,
        name=name,
    )


def _numbers(temperature: float, horizon: float, Lambda: float) -> tuple[float, float, float]:
    named = (("temperature", temperature), ("horizon", horizon), ("Lambda", Lambda))
    alpha, time, noise = (positive_number(value, name, ProblemError) for name, value in named)
    return alpha, time, noise


@register(dims=(2,))
def annulus(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    Lambda: float = 1.0,
    kappa: float = 1.5,
    outer: float = 2.0,
    cells: int = 6,
) -> ControlProblem:
    r"""Brownian motion stopped at the circles of an annulus.

    dX = Lambda^{1/2} dB in 1 < |x| < `outer`, stopped at both circles,  r = -alpha Lambda kappa^2 / 2,
    f = exp(v / alpha) = a I_0(kappa |x|) + b K_0(kappa |x|), 1 at the inner circle and 1/2 at the outer one, at all
    times: y and the exit reward g are this v, so that time spent costs, and both circles end it.

    The domain is a mesh of triangles, `cells` across, with the names "inner" and "outer"; as g is the value wherever
    its straight edges are, the value is exact on any such mesh. X_0 is uniform in a small square. Source: the Laplace
    transform of a hitting time, Borodin and Salminen, Handbook of Brownian Motion (2002), part II.4 (Bessel process).
    """
    alpha, time, noise = _numbers(temperature, horizon, Lambda)
    radius = positive_number(outer, "outer", ProblemError)
    if not 1.2 <= radius <= 100.0:
        raise ProblemError(f"outer must lie between 1.2 and 100, the inner radius being 1, got {outer!r}")
    kappa = positive_number(kappa, "kappa", ProblemError)
    if kappa * radius > 100.0:
        raise ProblemError(f"kappa must be at most 100 / outer = {100.0 / radius:g}, got {kappa!r}")
    ends = np.array([1.0, radius])
    inner, weight = np.linalg.solve(np.stack([iv(0, kappa * ends), kv(0, kappa * ends)], axis=1), [1.0, 0.5])
    exact = Screened(np.zeros((1, 2)), np.array([weight]), float(inner), kappa, noise, time, alpha)
    mesh = ring_mesh(radius, at_most(cells, _FINEST, "cells", ProblemError))
    middle, half = 0.5 * (1.0 + radius), 0.1 * (radius - 1.0)
    start = Box([middle - half, -half], [middle + half, half])
    domain = MeshDomain(mesh, {"inner": "absorbing", "outer": "absorbing"}, exact.value)
    return _stopped(exact, domain, start, "annulus")


@register(dims=(2,))
def plate(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    Lambda: float = 1.0,
    kappa: float = 1.0,
    left: float = 1.0,
    right: float = 0.5,
    cells: int = 24,
) -> ControlProblem:
    r"""Brownian motion stopped at the rim of a disc and at two holes in it.

    dX = Lambda^{1/2} dB in |x| < 2, stopped there and at circles of radius 0.4 and 0.6 around (-0.9, 0) and (0.9, 0),
    r = -alpha Lambda kappa^2 / 2,  f = exp(v / alpha) = `left` K_0(kappa |x - c_1|) + `right` K_0(kappa |x - c_2|),
    at all times: y and the exit reward g are this v.

    The domain is a mesh of triangles, about `cells` across, with the names "rim", "left" and "right"; the value is
    exact on any such mesh. X_0 is uniform in a small square between the holes. Source: superposition of Green's
    functions of the screened Poisson equation, Evans, Partial Differential Equations (2010), chapter 2.
    """
    alpha, time, noise = _numbers(temperature, horizon, Lambda)
    kappa = positive_number(kappa, "kappa", ProblemError)
    if kappa > 50.0:
        raise ProblemError(f"kappa must be at most 50, got {kappa!r}")
    weights = np.array([positive_number(w, n, ProblemError) for n, w in (("left", left), ("right", right))])
    exact = Screened(_HOLES[:, :2].copy(), weights, 0.0, kappa, noise, time, alpha)
    count = at_most(cells, _FINEST, "cells", ProblemError)
    if count < 12:
        raise ProblemError(f"cells must be at least 12, for the holes to be seen, got {cells}")
    mesh = plate_mesh(2.0 * _RADIUS / count)
    start = Box([-0.1, 0.7], [0.1, 0.9])
    domain = MeshDomain(mesh, "absorbing", exact.value)
    return _stopped(exact, domain, start, "plate")


@final
@dataclass(frozen=True)
class _Wave:
    """v = size e^{-t} (sin(pi x / 2) + sin(pi y / 2)) and its derivatives."""

    size: float

    def _part(self, t: ArrayLike, x: FloatArray, order: int) -> FloatArray:
        shape = np.sin(np.pi / 2 * (x + order)) * (np.pi / 2) ** order
        return np.asarray(self.size * np.exp(-np.asarray(t, dtype=np.float64))[..., None] * shape)

    def value(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(self._part(t, x, 0).sum(axis=-1))

    def time_derivative(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return -self.value(t, x)

    def gradient(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return self._part(t, x, 1)

    def hessian(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(self._part(t, x, 2)[..., None] * np.eye(2))


def _swirl(t: ArrayLike, x: FloatArray, *, speed: float) -> FloatArray:
    return speed * np.stack([-x[..., 1], x[..., 0]], axis=-1)


@register(dims=(2,))
def lshape(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 0.5,
    Lambda: float = 0.5,
    speed: float = 1.0,
    size: float = 0.5,
    cells: int = 8,
) -> ControlProblem:
    r"""A swirl in an L, stopped at the sides of its re-entrant corner.

    dX = speed (-x_2, x_1) dt + Lambda^{1/2} dB in [-1, 1]^2 without the quadrant x_1 > 0 > x_2, reflected at the outer
    sides, stopped at the two of the corner,  v = size e^{-t} (sin(pi x_1 / 2) + sin(pi x_2 / 2)),
    y = v_T, the exit reward g = v, and r is what the HJB equation makes of v.

    The domain is a mesh of triangles, `cells` across each square, with the name "corner". X_0 is Gaussian around
    (-1/2, 1/2) with variance 1/100. Source: a manufactured solution, Roache, J. Fluids Eng. 124 (2002) 4-10.
    """
    wave = _Wave(positive_number(size, "size", ProblemError))
    mesh = lshape_mesh(at_most(cells, _FINEST, "cells", ProblemError))
    return manufactured(
        value=wave.value,
        time_derivative=wave.time_derivative,
        gradient=wave.gradient,
        hessian=wave.hessian,
        drift=partial(_swirl, speed=float(speed)),
        diffusion=positive_number(Lambda, "Lambda", ProblemError),
        temperature=temperature,
        horizon=horizon,
        initial_law=Gaussian([-0.5, 0.5], 0.01),
        domain=MeshDomain(mesh, {"corner": "absorbing", None: "reflecting"}),
        name="lshape",
    )


def _triangles(p: FloatArray, t: IntArray) -> Any:
    return skfem.MeshTri(np.ascontiguousarray(p), np.ascontiguousarray(t))


def ring_mesh(radius: float, cells: int) -> Any:
    """Triangles between the circles of radius 1 and `radius`, `cells` across, about as wide as long."""
    layers = np.exp(np.linspace(0.0, np.log(radius), cells + 1))
    around = max(8, round(2.0 * np.pi * cells / np.log(radius)))
    angle = 2.0 * np.pi * np.arange(around) / around
    p = (layers[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)).reshape(-1, 2)
    i, j = np.meshgrid(np.arange(around), np.arange(cells))
    a, b = (around * j + i).ravel(), (around * j + (i + 1) % around).ravel()
    t = np.concatenate([np.stack([a, b, b + around]), np.stack([a, b + around, a + around])], axis=1)
    mesh = _triangles(p.T, t)
    middle = 0.5 * (1.0 + radius)
    return mesh.with_boundaries(
        {"inner": lambda x: np.linalg.norm(x, axis=0) < middle, "outer": lambda x: np.linalg.norm(x, axis=0) > middle}
    )


def annulus_mesh(inner: float, outer: float, across: int, around: int) -> Any:
    """Triangles between two circles around nought, in layers of the same width."""
    r, angle = np.linspace(inner, outer, across + 1), 2.0 * np.pi * np.arange(around) / around
    p = np.stack([np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle))]).reshape(2, -1)
    i, j = (k.ravel() for k in np.meshgrid(np.arange(across), np.arange(around), indexing="ij"))
    here, left = i * around + j, i * around + (j + 1) % around
    return skfem.MeshTri(p, np.concatenate([[here, here + around, left], [left, here + around, left + around]], axis=1))


def plate_mesh(size: float) -> Any:
    """Delaunay's triangles of about this size in a disc with two holes, of points on rings and a hexagonal grid."""
    circles = np.array([[0.0, 0.0, _RADIUS], *_HOLES])
    rings: list[FloatArray] = []
    for x, y, radius in circles:
        inward = radius == _RADIUS
        count = round(2.0 * np.pi * radius / size)
        for k, at in enumerate((radius, radius + (-0.87 if inward else 0.87) * size)):
            angle = 2.0 * np.pi * (np.arange(count) + 0.5 * k) / count
            rings.append(np.array([x, y]) + at * np.stack([np.cos(angle), np.sin(angle)], axis=-1))
    steps = np.arange(-_RADIUS, _RADIUS + size, size)
    rows = np.arange(-_RADIUS, _RADIUS + size, 0.866 * size)
    x, y = np.meshgrid(steps, rows)
    x[1::2] += 0.5 * size
    grid = np.stack([x.ravel(), y.ravel()], axis=-1)
    far = np.linalg.norm(grid[:, None] - circles[:, :2], axis=-1)
    within = (far[:, 0] < _RADIUS - 1.5 * size) & (far[:, 1:] > circles[1:, 2] + 1.5 * size).all(axis=1)
    p = np.concatenate([*rings, grid[within]])
    t = Delaunay(p).simplices
    owner = np.concatenate([np.full(len(ring), k if k % 2 == 0 else -1) for k, ring in enumerate(rings)])
    owner = np.concatenate([owner, np.full(int(within.sum()), -1)])[t]
    hole = (owner[:, 0] >= 2) & (owner == owner[:, :1]).all(axis=1)
    mesh = _triangles(p.T, t[~hole].T)
    names = {}
    for name, (cx, cy, radius) in zip(("rim", "left", "right"), circles, strict=True):
        names[name] = partial(_near_circle, centre=(cx, cy), radius=float(radius), reach=0.1)
    return mesh.with_boundaries(names)


def _near_circle(x: FloatArray, *, centre: tuple[float, float], radius: float, reach: float) -> Any:
    return np.abs(np.hypot(x[0] - centre[0], x[1] - centre[1]) - radius) < reach


def lshape_mesh(cells: int) -> Any:
    """Triangles in the L, with the sides of its re-entrant corner called "corner"."""
    line = np.linspace(-1.0, 1.0, 2 * cells + 1)
    whole = skfem.MeshTri.init_tensor(line, line)
    middle = whole.p[:, whole.t].mean(axis=1)
    used, t = np.unique(whole.t[:, ~((middle[0] > 0) & (middle[1] < 0))], return_inverse=True)
    mesh = _triangles(whole.p[:, used], t.reshape(3, -1))
    edge = 1.0 - 0.25 / cells
    return mesh.with_boundaries({"corner": lambda x: (x[0] > -1e-9) & (x[1] < 1e-9) & (x[0] < edge) & (x[1] > -edge)})
