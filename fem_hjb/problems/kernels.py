r"""Kernel densities: Gaussian mixtures of many points with one covariance, by matrix products.

Logarithmic weights  -|x - m_j|^2 / (2 h^2)  are, up to what does not depend on j,  x'm_j / h^2 - |m_j|^2 / (2 h^2):
a product of two thin matrices, one for points x and one for kernels m_j. The largest is subtracted before exponentials
are taken, so that nothing underflows far from all m_j. Points are measured from the mean of the m_j: rounding then
costs about 2^-53 (distance / h)^2 in log p, wherever the origin is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import roots_hermitenorm

from fem_hjb.problems.laws import Law, checked_draws, tensor_order, tensor_rule
from fem_hjb.support.checks import (
    LARGEST,
    UNITS,
    FloatArray,
    as_points,
    frozen_array,
    number_in_units,
    real_array,
)
from fem_hjb.support.errors import ProblemError
from fem_hjb.support.memory import require_room
from fem_hjb.support.objects import Plain

_LOG_2PI = float(np.log(2.0 * np.pi))
_BLOCK = 1 << 17  # pairs of a point and a kernel at once: a megabyte, which stays in the cache
_LOWEST = -200.0  # of logarithmic weights relative to the largest: e^-200 is nothing, and denormal numbers are slow
_RULE = 1 << 15  # points of a quadrature rule, where its order is not asked for
_FINEST = 1e-5  # bandwidth relative to the spread of the points: log p is then good to 1e-6


@final
class Kernels(Plain):
    """The measure sum_j w_j N(m_j, C), with weights of any positive sum, and what noise makes of it.

    log_weights (k,), means m (k, d), covariance C (d, d), or (1, 1) for a multiple of the identity.
    """

    def __init__(self, log_weights: FloatArray, means: FloatArray, covariance: FloatArray) -> None:
        self.variances, axes = np.linalg.eigh(covariance)  # (g,), g = d or 1
        self._axes = axes if len(axes) == means.shape[1] else None
        self.centre = means.mean(axis=0)
        offsets = self._rotated(means - self.centre)
        squares = (offsets**2).reshape(len(means), len(self.variances), -1).sum(axis=-1)
        self._keys = np.ascontiguousarray(np.concatenate([offsets, -0.5 * squares, log_weights[:, None]], axis=1).T)
        self._offsets = np.concatenate([offsets, np.ones((len(means), 1))], axis=1)
        for array in (self.variances, self.centre, self._keys, self._offsets):
            array.setflags(write=False)

    def _rotated(self, x: FloatArray) -> FloatArray:
        return x if self._axes is None else x @ self._axes

    def noised(self, shrink: ArrayLike, noise: ArrayLike, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """log q (n,) and grad log q (n, d) at x (n, d), q the density of shrink Y + noise^{1/2} Z.

        Y has this measure, Z is standard normal; shrink and noise >= 0 are numbers or (n,).
        """
        n, d = x.shape
        scale, extra = (np.asarray(a, dtype=np.float64).reshape(-1, 1) for a in (shrink, noise))
        variance = scale**2 * self.variances + extra  # (n or 1, g)
        z = self._rotated(x - scale * self.centre)
        pull = z / variance
        queries = np.ones((n, len(self._keys)))
        queries[:, :d] = scale * pull
        queries[:, d:-1] = scale**2 / variance
        logs, means = np.empty(n), np.empty((n, d))
        size = max(1, _BLOCK // self._keys.shape[1])
        for start in range(0, n, size):
            rows = slice(start, start + size)
            weights = queries[rows] @ self._keys
            top = weights.max(axis=1)
            weights -= top[:, None]
            np.exp(np.maximum(weights, _LOWEST, out=weights), out=weights)
            sums = weights @ self._offsets
            logs[rows] = top + np.log(sums[:, -1])
            means[rows] = sums[:, :-1] / sums[:, -1:]
        # of d axes, whether their variances are told one by one or at once
        normaliser = np.log(variance).mean(axis=-1) + _LOG_2PI
        logs -= 0.5 * ((z * pull).sum(axis=-1) + d * normaliser)
        score = scale * means / variance - pull
        return logs, score if self._axes is None else score @ self._axes.T

    def score(self, shrink: ArrayLike, noise: ArrayLike, x: FloatArray) -> FloatArray:
        """grad log q (n, d) alone."""
        return self.noised(shrink, noise, x)[1]


@final
@dataclass(frozen=True, eq=False, repr=False)
class KernelDensity(Law):
    """sum_j w_j N(m_j, h^2 I), the kernel density of points m (k, d): a Gaussian mixture with one covariance.

    bandwidth : h > 0, in the units of the points, at least 1e-5 of their spread.
    weights : w (k,), not negative, of sum 1; None: 1/k each.

    Points may coincide. Density and score at n points take n k exponentials, in blocks of a megabyte whatever n is, and
    are right however far away. `quadrature(order)` has k order^d points.

    Raises `ProblemError` for points that are not finite or not of shape (k, d), other bandwidths and weights.
    Source: B. W. Silverman, Density Estimation for Statistics and Data Analysis (1986), chapter 4.

    >>> law = KernelDensity([[0.0], [4.0]], 0.5)
    >>> law.score([[1e6]]).tolist()     # that of N(4, 1/4)
    [[-3999984.0]]
    """

    points: ArrayLike
    bandwidth: float
    weights: ArrayLike | None = None
    dim: int = field(init=False)
    _m: FloatArray = field(init=False, repr=False)
    _w: FloatArray = field(init=False, repr=False)
    _kernels: Kernels = field(init=False, repr=False)

    def __post_init__(self) -> None:
        points, h = _checked_points(self.points), number_in_units(self.bandwidth, "bandwidth", ProblemError)
        k, dim = points.shape
        if (largest := float(np.abs(points).max())) > LARGEST:
            raise ProblemError(f"points lie up to {largest:.3g} away from the origin{UNITS}")
        spread = float(np.ptp(points, axis=0).max())
        if h < _FINEST * spread:
            raise ProblemError(
                f"bandwidth is {h:.3g}, but the points lie up to {spread:.3g} apart: below {_FINEST:g} of that density"
                " and score have too few digits; use a larger bandwidth"
            )
        w = np.full(k, 1.0 / k) if self.weights is None else frozen_array(self.weights, "weights", (k,), ProblemError)
        if (w < 0).any() or abs(w.sum() - 1.0) > 1e-10:
            raise ProblemError(
                f"weights must be non-negative and sum to 1, got weights from {w.min():.3g} with sum {w.sum():.12g}"
                + ("; divide them by their sum in double precision" if abs(w.sum() - 1.0) < 1e-3 else "")
            )
        w.setflags(write=False)
        put, some = object.__setattr__, w > 0
        for name, value in (("points", points), ("_m", points), ("_w", w), ("bandwidth", h), ("dim", dim)):
            put(self, name, value)
        put(self, "weights", None if self.weights is None else w)
        put(self, "_kernels", Kernels(np.log(w[some]), points[some], np.full((1, 1), h * h)))

    @property
    def components(self) -> tuple[FloatArray, FloatArray]:
        """Weights (k,) and points (k, d), read-only."""
        return self._w, self._m

    @property
    def kernels(self) -> Kernels:
        """What its density is made of, weights of 0 left out."""
        return self._kernels

    @property
    def expectation(self) -> FloatArray:
        return np.asarray(self._w @ self._m)

    @property
    def covariance(self) -> FloatArray:
        centred = self._m - self.expectation
        return np.asarray((self._w * centred.T) @ centred + self.bandwidth**2 * np.eye(self.dim))

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        n = checked_draws(n, rng, self.dim)
        which = rng.choice(self._w.size, size=n, p=self._w / self._w.sum())
        return np.asarray(self._m[which] + self.bandwidth * rng.standard_normal((n, self.dim)))

    def logpdf(self, x: ArrayLike) -> FloatArray:
        points = as_points(x, self.dim)
        return self._kernels.noised(1.0, 0.0, points.reshape(-1, self.dim))[0].reshape(points.shape[:-1])

    def score(self, x: ArrayLike) -> FloatArray:
        points = as_points(x, self.dim)
        return self._kernels.noised(1.0, 0.0, points.reshape(-1, self.dim))[1].reshape(points.shape)

    def quadrature(self, order: int) -> tuple[FloatArray, FloatArray]:
        per_axis, k = tensor_order(order, self.dim), len(self._m)
        require_room((k, per_axis**self.dim, self.dim), f"order={order} of {k} kernels:", ProblemError)
        nodes, weights = roots_hermitenorm(per_axis)
        z, wz = tensor_rule(nodes, weights / weights.sum(), self.dim)
        x = self._m[:, None, :] + self.bandwidth * z
        return x.reshape(-1, self.dim), (self._w[:, None] * wz).ravel()

    def noised(self, shrink: float, noise: float) -> KernelDensity:
        """The law of shrink Y + noise^{1/2} Z, Y of this law and Z standard normal."""
        return KernelDensity(shrink * self._m, float(np.sqrt((shrink * self.bandwidth) ** 2 + noise)), self.weights)


def affordable_order(law: Law, order: int) -> int:
    """Gauss points per coordinate: this many, or fewer, two at least, where each of many kernels would have its own.

    >>> law = KernelDensity(np.zeros((500, 2)), 1.0)
    >>> affordable_order(law, 32), affordable_order(law.noised(0.0, 1.0), 4)
    (8, 4)
    """
    if not isinstance(law, KernelDensity):
        return order
    return min(order, max(2, int((_RULE / len(law.components[0])) ** (1.0 / law.dim))))


def _checked_points(given: ArrayLike) -> FloatArray:
    raw = real_array(given, "points", ProblemError)
    if raw.ndim != 2 or 0 in raw.shape:
        hint = "; write x[:, None] for points on a line" if raw.ndim == 1 and raw.size else ""
        raise ProblemError(f"points must have shape (k, d), one in each row, got shape {raw.shape}{hint}")
    return frozen_array(raw, "points", raw.shape, ProblemError)
