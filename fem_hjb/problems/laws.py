"""Laws of the state, at the start and at later times: sampling, density, score and quadrature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import roots_hermitenorm, roots_legendre

from fem_hjb.problems.box import Box
from fem_hjb.problems.cell_measure import cell_rule, drawn_in_cells
from fem_hjb.problems.cells import mesh_kind
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.support.checks import (
    FloatArray,
    IntArray,
    array_length,
    as_points,
    frozen_array,
    gauss_order,
    real_array,
    require,
    spd_array,
)
from fem_hjb.support.errors import DomainError, ProblemError
from fem_hjb.support.memory import require_room
from fem_hjb.support.objects import Plain

_LOG_2PI = float(np.log(2.0 * np.pi))


def log_sum(logs: FloatArray, axis: int = -1) -> FloatArray:
    """log sum exp(logs) along an axis. SciPy's takes all kinds of arrays, and for small ones ten times as long."""
    top = np.max(logs, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(logs - top).sum(axis=axis)) + top.squeeze(axis))


def tensor_rule(points: FloatArray, weights: FloatArray, dim: int) -> tuple[FloatArray, FloatArray]:
    """The dim-fold tensor product of a one-dimensional rule: points (n**dim, dim), weights (n**dim,)."""
    grids = np.meshgrid(*[points] * dim, indexing="ij")
    scales = np.meshgrid(*[weights] * dim, indexing="ij")
    return np.stack([g.ravel() for g in grids], axis=-1), np.prod([s.ravel() for s in scales], axis=0)


def tensor_order(order: int, dim: int) -> int:
    """The points per axis of a tensor rule, if all of them fit into memory."""
    points = gauss_order(order, "order", ProblemError)
    require_room((points**dim, dim), f"order={points}:", ProblemError)
    return points


def checked_draws(n: int, rng: object, dim: int) -> int:
    """n, if so many draws fit into memory and `rng` draws them."""
    require(rng, np.random.Generator, "sample(n, rng)", ProblemError, "; np.random.default_rng(seed) makes one")
    return array_length(n, "n", ProblemError, dim)


class Law(Plain, ABC):
    """A probability law on R^d: sampling, log-density and score, each batched over points in rows (..., d)."""

    dim: int

    @property
    @abstractmethod
    def expectation(self) -> FloatArray:
        """E[X], shape (d,)."""

    @property
    @abstractmethod
    def covariance(self) -> FloatArray:
        """Cov[X], shape (d, d)."""

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        """`n` independent draws, shape (n, d)."""

    @abstractmethod
    def logpdf(self, x: ArrayLike) -> FloatArray:
        """log p(x), shape (...)."""

    @abstractmethod
    def score(self, x: ArrayLike) -> FloatArray:
        """grad log p(x), shape (..., d)."""

    @abstractmethod
    def quadrature(self, order: int) -> tuple[FloatArray, FloatArray]:
        """Points (m, d) and weights (m,) summing to 1, exact for polynomials of degree < 2 * order per coordinate."""


def _vector(value: ArrayLike, name: str) -> FloatArray:
    raw = real_array(value, name, ProblemError)
    if raw.ndim != 1 or raw.size == 0:
        raise ProblemError(f"{name} must have shape (d,) with d >= 1, got shape {raw.shape}")
    return frozen_array(raw, name, raw.shape, ProblemError)


@final
@dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture(Law):
    """sum_j w_j N(m_j, C_j) with weights (k,), means (k, d), covariances (k, d, d); the weights must sum to 1."""

    weights: ArrayLike
    means: ArrayLike
    covariances: ArrayLike
    dim: int = field(init=False)
    _w: FloatArray = field(init=False, repr=False)
    _m: FloatArray = field(init=False, repr=False)
    _c: FloatArray = field(init=False, repr=False)
    _chol: FloatArray = field(init=False, repr=False)
    _whitening: FloatArray = field(init=False, repr=False)
    _logs: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        w = _vector(self.weights, "weights")
        raw = real_array(self.means, "means", ProblemError)
        if raw.ndim != 2 or raw.shape[0] != w.size:
            raise ProblemError(f"means must have shape (k, d) with k = {w.size} weights, got shape {raw.shape}")
        if (w < 0).any() or abs(w.sum() - 1.0) > 1e-10:
            raise ProblemError(f"weights must be non-negative and sum to 1, got {w.tolist()} with sum {w.sum():.12g}")
        dim = raw.shape[1]
        if dim == 0:
            raise ProblemError(f"means must have at least one coordinate, got shape {raw.shape}")
        means = frozen_array(raw, "means", (w.size, dim), ProblemError)
        stack = real_array(self.covariances, "covariances", ProblemError)
        if stack.shape[:1] != (w.size,):
            raise ProblemError(
                f"covariances must hold one covariance per component, k = {w.size}, got shape {stack.shape}"
            )
        covs = np.stack([spd_array(c, f"covariances[{j}]", dim) for j, c in enumerate(stack)])
        chol = np.linalg.cholesky(covs)
        whitening = np.linalg.inv(chol)
        with np.errstate(divide="ignore"):  # weights of 0
            logs = np.log(w) - np.log(np.diagonal(chol, axis1=1, axis2=2)).sum(axis=1) - 0.5 * dim * _LOG_2PI
        for array in (covs, chol, whitening, logs):
            array.setflags(write=False)
        set_field = object.__setattr__
        set_field(self, "_whitening", whitening)
        set_field(self, "_logs", logs)
        set_field(self, "dim", dim)
        set_field(self, "_w", w)
        set_field(self, "_m", means)
        set_field(self, "_c", covs)
        set_field(self, "_chol", chol)
        set_field(self, "weights", w)
        set_field(self, "means", means)
        set_field(self, "covariances", covs)

    @property
    def components(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Weights (k,), means (k, d), covariances (k, d, d), read-only."""
        return self._w, self._m, self._c

    @property
    def expectation(self) -> FloatArray:
        return np.asarray(self._w @ self._m)

    @property
    def covariance(self) -> FloatArray:
        centred = self._m - self.expectation
        return np.asarray(np.einsum("k,kij->ij", self._w, self._c + centred[:, :, None] * centred[:, None, :]))

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        n = checked_draws(n, rng, self.dim)
        which = rng.choice(self._w.size, size=n, p=self._w / self._w.sum())
        noise = rng.standard_normal((n, self.dim))
        return np.asarray(self._m[which] + np.einsum("nij,nj->ni", self._chol[which], noise))

    def _components_at(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """log(w_j N(x; m_j, C_j)), (k, n), and the whitened offsets chol_j^{-1} (x - m_j), (k, d, n), at x (n, d)."""
        z = self._whitening @ (x.T - self._m[:, :, None])
        return self._logs[:, None] - 0.5 * (z * z).sum(axis=1), z

    def logpdf(self, x: ArrayLike) -> FloatArray:
        points = as_points(x, self.dim)
        return log_sum(self._components_at(points.reshape(-1, self.dim))[0], axis=0).reshape(points.shape[:-1])

    def score(self, x: ArrayLike) -> FloatArray:
        points = as_points(x, self.dim)
        logs, z = self._components_at(points.reshape(-1, self.dim))
        z *= np.exp(logs - log_sum(logs, axis=0))[:, None]
        pulls = (np.swapaxes(self._whitening, 1, 2) @ z).sum(axis=0)
        return np.asarray(-pulls.T.reshape(points.shape))

    def quadrature(self, order: int) -> tuple[FloatArray, FloatArray]:
        nodes, weights = roots_hermitenorm(tensor_order(order, self.dim))
        z, wz = tensor_rule(nodes, weights / weights.sum(), self.dim)
        points = self._m[:, None, :] + np.einsum("kij,nj->kni", self._chol, z)
        return points.reshape(-1, self.dim), (self._w[:, None] * wz).ravel()


@final
@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(Law):
    """N(mean, cov): mean (d,); cov a positive scalar, a diagonal (d,) or a matrix (d, d).

    >>> law = Gaussian([0.0, 1.0], 0.5)
    >>> law.score([[-1.0, 0.0]]).round(12).tolist()
    [[2.0, 2.0]]
    """

    mean: ArrayLike
    cov: ArrayLike
    dim: int = field(init=False)
    _mixture: GaussianMixture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        mean = _vector(self.mean, "mean")
        cov = spd_array(self.cov, "cov", mean.size)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "cov", cov)
        object.__setattr__(self, "dim", mean.size)
        object.__setattr__(self, "_mixture", GaussianMixture([1.0], mean[None], cov[None]))

    @property
    def expectation(self) -> FloatArray:
        return np.asarray(self._mixture._m[0])

    @property
    def covariance(self) -> FloatArray:
        return np.asarray(self._mixture._c[0])

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        n = checked_draws(n, rng, self.dim)
        return np.asarray(self.expectation + rng.standard_normal((n, self.dim)) @ self._mixture._chol[0].T)

    def logpdf(self, x: ArrayLike) -> FloatArray:
        return self._mixture.logpdf(x)

    def score(self, x: ArrayLike) -> FloatArray:
        return self._mixture.score(x)

    def quadrature(self, order: int) -> tuple[FloatArray, FloatArray]:
        return self._mixture.quadrature(order)


@final
@dataclass(frozen=True, eq=False, repr=False)
class PointMass(Law):
    """The Dirac law at `point` (d,). It has no density: `logpdf` and `score` raise `ProblemError`."""

    point: ArrayLike
    dim: int = field(init=False)

    def __post_init__(self) -> None:
        point = _vector(self.point, "point")
        object.__setattr__(self, "point", point)
        object.__setattr__(self, "dim", point.size)

    @property
    def expectation(self) -> FloatArray:
        return np.asarray(self.point)

    @property
    def covariance(self) -> FloatArray:
        return np.zeros((self.dim, self.dim))

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        return np.tile(self.expectation, (array_length(n, "n", ProblemError, self.dim), 1))

    def logpdf(self, x: ArrayLike) -> FloatArray:
        raise ProblemError("a PointMass has no density; use a Gaussian with a small covariance instead")

    def score(self, x: ArrayLike) -> FloatArray:
        raise ProblemError("a PointMass has no score; use a Gaussian with a small covariance instead")

    def quadrature(self, order: int) -> tuple[FloatArray, FloatArray]:
        return self.expectation[None].copy(), np.ones(1)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Uniform(Law):
    """The uniform law on a box, or on the cells of a mesh; stationary for reflected Brownian motion.

    Outside, logpdf is -inf and the score 0. On a mesh `quadrature(order)` has a rule in each cell, exact for
    polynomials of total degree < 2 * order.
    """

    box: Box | MeshDomain
    dim: int = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.box, Box | MeshDomain):
            raise ProblemError(f"Uniform needs a Box or a MeshDomain, got {type(self.box).__name__}")
        if isinstance(self.box, MeshDomain) and self.box.curved:
            raise DomainError(
                "Uniform takes meshes with straight edges; give the corners of this one,"
                " MeshDomain(MeshTri1(mesh.p[:, :mesh.nvertices], mesh.t)), whose law lies within it where it is convex"
            )
        if isinstance(self.box, Box) and not self.box.bounded:
            raise DomainError(f"Uniform needs a box with finite faces, got {self.box}")
        object.__setattr__(self, "dim", self.box.dim)

    @cached_property
    def _rule(self) -> tuple[FloatArray, FloatArray]:
        """Points and weights of a mesh, exact for polynomials of degree 3, of its volume in all."""
        return cell_rule(*_cells(self.box), 2)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_rule"}

    @property
    def expectation(self) -> FloatArray:
        lower, upper = self.box.bounds
        if isinstance(self.box, Box):
            return (lower + upper) / 2
        x, weights = self._rule
        return np.asarray(weights @ x / weights.sum())

    @property
    def covariance(self) -> FloatArray:
        lower, upper = self.box.bounds
        if isinstance(self.box, Box):
            return np.diag((upper - lower) ** 2 / 12)
        x, weights = self._rule
        off = x - self.expectation
        return np.asarray(np.einsum("n,ni,nj->ij", weights, off, off) / weights.sum())

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        n = checked_draws(n, rng, self.dim)
        if isinstance(self.box, MeshDomain):
            return drawn_in_cells(*_cells(self.box), n, rng)
        return rng.uniform(*self.box.bounds, size=(n, self.dim))

    def logpdf(self, x: ArrayLike) -> FloatArray:
        lower, upper = self.box.bounds
        if isinstance(self.box, MeshDomain):
            return np.where(self.box.covers(x), -np.log(self._rule[1].sum()), -np.inf)
        return np.where(self.box.contains(x), -np.log(upper - lower).sum(), -np.inf)

    def score(self, x: ArrayLike) -> FloatArray:
        return np.zeros_like(as_points(x, self.dim))

    def quadrature(self, order: int) -> tuple[FloatArray, FloatArray]:
        if isinstance(self.box, MeshDomain):
            points = gauss_order(order, "order", ProblemError)
            p, t, kind = _cells(self.box)
            require_room((t.shape[1] * (points + 1) ** self.dim, self.dim), f"order={points}:", ProblemError)
            x, w = cell_rule(p, t, kind, points)
            return x, w / w.sum()
        nodes, weights = roots_legendre(tensor_order(order, self.dim))
        z, wz = tensor_rule(nodes, weights / weights.sum(), self.dim)
        lower, upper = self.box.bounds
        return lower + (upper - lower) * (z + 1) / 2, wz


def _cells(domain: Box | MeshDomain) -> tuple[FloatArray, IntArray, str]:
    """Vertices, cells and their kind."""
    if isinstance(domain, Box):
        raise ProblemError("a box has no cells")
    mesh = domain.mesh
    return np.asarray(mesh.p), np.asarray(mesh.t, dtype=np.int64), mesh_kind(mesh)


MarginalLaw = Callable[[float], Law]
"""t -> the law of X_t."""
