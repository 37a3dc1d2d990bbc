"""Features on R^d: random cosines, Hermite polynomials, Gaussian bumps.

>>> from fem_hjb.spaces.line import LineBasis
>>> from fem_hjb.spaces import Space, Union
>>> law = Gaussian(np.zeros(20), 1.0)
>>> features = Union(HermiteCross(law, 2), RandomFourier(law, 100, scale=3.0, rng=0))
>>> Space.product(LineBasis.uniform(1.0, 4, "P2"), features).shape
(9, 141)
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import sqrt
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.laws import Gaussian
from fem_hjb.spaces.basis import Tables, frozen
from fem_hjb.spaces.dictionary import Dictionary, check_symmetric, coefficient_of, traces
from fem_hjb.support.checks import (
    FloatArray,
    IntArray,
    Rng,
    array_length,
    flag,
    frozen_array,
    positive_number,
    real_array,
    spawn_generators,
)
from fem_hjb.support.errors import SpaceError
from fem_hjb.support.memory import require_room

_LARGEST_DEGREE = 1000


@final
class RandomFourier(Dictionary):
    r"""Random cosines phi_j(x) = cos(w_j'(x - m) + p_j), w_j ~ N(0, (scale^2 C)^{-1}), p_j uniform on [0, 2 pi).

    With law = N(m, C), `scale` is a length in standard deviations of x. As M = count grows, the average over j of
    phi_j(x) phi_j(x') tends to half the kernel exp(-(x - x')'C^{-1}(x - x') / (2 scale^2)). The same rng gives the
    same features, and more of them contain the fewer. Source: Rahimi and Recht, Random Features for Large-Scale
    Kernel Machines (2007).

    Raises SpaceError for a law that is not Gaussian, and for a count or scale that is not positive; MeasureError for
    something else than a seed or generator.
    """

    def __init__(self, law: Gaussian, count: int, *, scale: float, rng: Rng) -> None:
        self._set("random-fourier", law, array_length(count, "count", SpaceError))
        length = positive_number(scale, "scale", SpaceError)
        for_frequencies, for_phases = spawn_generators(rng, 2)
        white = for_frequencies.standard_normal((count, self.dim))
        self.frequencies = frozen(np.linalg.solve(np.linalg.cholesky(law.covariance).T, white.T).T / length)
        self.phases = frozen(for_phases.uniform(0.0, 2.0 * np.pi, count))
        self._outer = frozen(self.frequencies[:, :, None] * self.frequencies[:, None, :])

    def _angles(self, x: FloatArray) -> FloatArray:
        return np.asarray((x - self.law.expectation) @ self.frequencies.T + self.phases)

    def _tables(self, x: FloatArray, order: int) -> Tables:
        angles = self._angles(x)
        tables = [np.cos(angles)]
        if order >= 1:
            tables.append(-np.sin(angles)[:, :, None] * self.frequencies)
        if order == 2:
            tables.append(-tables[0][:, :, None, None] * self._outer)
        return tuple(tables)

    def _rows(
        self, x: FloatArray, value: FloatArray, gradient: FloatArray | None, hessian: FloatArray | None
    ) -> FloatArray:
        angles = self._angles(x)
        factor = value[:, None] if hessian is None else value[:, None] - traces(hessian, self._outer)
        rows = factor * np.cos(angles)
        if gradient is not None:
            rows -= (gradient @ self.frequencies.T) * np.sin(angles)
        return np.asarray(rows)


@final
class HermiteCross(Dictionary):
    r"""Products of Hermite polynomials phi_k(x) = prod_i h_{k_i}(z_i), orthonormal under law = N(m, C).

    z = L^{-1}(x - m) with the Cholesky factor L of C, and h_n = He_n / sqrt(n!) with the probabilists' He_n. The
    multi-indices k, rows of `indices` (M, d), are those of the hyperbolic cross

        prod_i (k_i + 1) <= degree + 1,

    or, if total=True, those with sum_i k_i <= degree; ordered by total degree. The cross favours the axes of z: z_1
    depends on x_1 alone, z_2 on x_1 and x_2, and so on.

    Derivatives never leave the class: d phi_k / d z_i = sqrt(k_i) phi_{k - e_i}. The polynomials grow fast away from
    the law. Source: Luo and Yau, Hermite spectral method with hyperbolic cross approximations to high-dimensional
    parabolic PDEs (2013).

    Raises SpaceError for a law that is not Gaussian and a degree that is not an integer >= 0.

    >>> HermiteCross(Gaussian([0.0, 0.0], 1.0), 3).indices.tolist()
    [[0, 0], [0, 1], [1, 0], [0, 2], [1, 1], [2, 0], [0, 3], [3, 0]]
    """

    def __init__(self, law: Gaussian, degree: int, *, total: bool = False) -> None:
        if isinstance(degree, bool) or not isinstance(degree, int | np.integer) or degree < 0:
            raise SpaceError(f"degree must be an integer >= 0, got {degree!r}")
        if degree > _LARGEST_DEGREE:
            raise SpaceError(f"degree must be at most {_LARGEST_DEGREE}, got {degree}")
        flag(total, "total", SpaceError)
        dim = law.dim if isinstance(law, Gaussian) else 1  # refused below
        self.indices = frozen(_total_degree(dim, degree) if total else _hyperbolic_cross(dim, degree), np.int64)
        self._set("hermite-cross", law, len(self.indices), int(degree))
        self._whiten = np.linalg.inv(np.linalg.cholesky(law.covariance))
        self._lower, self._root = _lowered(self.indices), np.sqrt(self.indices)

    def _polynomials(self, x: FloatArray) -> FloatArray:
        """phi_k(x), shape (M, m): features first, as whole rows are moved around."""
        z = self._whiten @ (x - self.law.expectation).T
        h = np.ones((int(self.indices.max()) + 1, *z.shape))
        for n in range(1, len(h)):
            h[n] = (z * h[n - 1] - (sqrt(n - 1) * h[n - 2] if n > 1 else 0.0)) / sqrt(n)
        result = np.ones((self.n_dofs, len(x)))
        for axis, powers in enumerate(self.indices.T):
            there = np.flatnonzero(powers)
            result[there] *= h[powers[there], axis]
        return result

    def _first(self, axis: int) -> tuple[IntArray, IntArray, FloatArray]:
        """The features with a derivative along an axis of z, and which ones times what that derivative is."""
        there = np.flatnonzero(self._root[:, axis])
        return there, self._lower[there, axis], self._root[there, axis]

    def _second(self, i: int, j: int) -> tuple[IntArray, IntArray, FloatArray]:
        there, lower, root = self._first(i)
        again = self._root[lower, j]
        kept = np.flatnonzero(again)
        return there[kept], self._lower[lower[kept], j], root[kept] * again[kept]

    def _tables(self, x: FloatArray, order: int) -> Tables:
        phi, d = self._polynomials(x), self.dim
        tables = [phi.T]
        if order >= 1:
            slopes = np.zeros((*phi.shape, d))
            for i in range(d):
                there, source, weight = self._first(i)
                slopes[there, :, i] = weight[:, None] * phi[source]
            tables.append(slopes.swapaxes(0, 1) @ self._whiten)
        if order == 2:
            curved = np.zeros((*phi.shape, d, d))
            for i, j in combinations_with_replacement(range(d), 2):
                there, source, weight = self._second(i, j)
                curved[there, :, i, j] = curved[there, :, j, i] = weight[:, None] * phi[source]
            tables.append(self._whiten.T @ curved.swapaxes(0, 1) @ self._whiten)
        return tuple(np.ascontiguousarray(table) for table in tables)

    def _rows(
        self, x: FloatArray, value: FloatArray, gradient: FloatArray | None, hessian: FloatArray | None
    ) -> FloatArray:
        phi = self._polynomials(x)
        rows = value * phi
        if gradient is not None:
            slopes = self._whiten @ gradient.T
            for i in range(self.dim):
                there, source, weight = self._first(i)
                rows[there] += weight[:, None] * slopes[i] * phi[source]
        if hessian is not None:
            white = self._whiten @ hessian @ self._whiten.T
            for i, j in combinations_with_replacement(range(self.dim), 2):
                there, source, weight = self._second(i, j)
                entry = white[..., i, j] if i == j else white[..., i, j] + white[..., j, i]
                rows[there] += weight[:, None] * entry * phi[source]
        return np.asarray(rows.T)


def _hyperbolic_cross(dim: int, degree: int) -> IntArray:
    """Multi-indices (M, dim) with prod(k_i + 1) <= degree + 1, by total degree."""
    indices, product = np.zeros((1, 0), dtype=np.int64), np.ones(1, dtype=np.int64)
    for _ in range(dim):
        indices, last = _extended(indices, (degree + 1) // product)
        product = (indices[:, :-1] + 1).prod(axis=1) * (last + 1)
    return np.asarray(indices[np.argsort(indices.sum(axis=1), kind="stable")])


def _total_degree(dim: int, degree: int) -> IntArray:
    """Multi-indices (M, dim) with sum(k_i) <= degree, by total degree."""
    indices = np.zeros((1, 0), dtype=np.int64)
    for _ in range(dim):
        indices, _last = _extended(indices, degree + 1 - indices.sum(axis=1))
    return np.asarray(indices[np.argsort(indices.sum(axis=1), kind="stable")])


def _extended(indices: IntArray, choices: IntArray) -> tuple[IntArray, IntArray]:
    """Each multi-index with one more entry, 0, 1, ..., choices - 1; and these entries."""
    require_room((int(choices.sum()), indices.shape[1] + 1), "the features:", SpaceError, "; lower the degree")
    last = np.arange(choices.sum()) - np.repeat(np.cumsum(choices) - choices, choices)
    return np.column_stack([np.repeat(indices, choices, axis=0), last]), last


def _lowered(indices: IntArray) -> IntArray:
    """The row of k - e_i in a downward closed set of multi-indices k (M, d), at [k, i]; 0 where k_i = 0."""
    place = {row.tobytes(): j for j, row in enumerate(indices)}
    result = np.zeros(indices.shape, dtype=np.int64)
    for i, unit in enumerate(np.eye(indices.shape[1], dtype=np.int64)):
        there = np.flatnonzero(indices[:, i])
        result[there, i] = [place[row.tobytes()] for row in indices[there] - unit]
    return result


@final
class GaussianQuadratic(Dictionary):
    r"""Gaussian bumps phi_j(x) = exp(-(x - c_j)'P_j (x - c_j) / 2).

    centres : the c_j, (M, d).
    precision : the P_j, symmetric positive definite: (M, d, d); or (d, d), the same for all; or numbers (M,) or one
        number, times the identity.
    law : says where the dictionary is used, see `Dictionary`.

    Raises SpaceError on other shapes, on numbers that are not finite and on matrices that are not positive definite.
    """

    def __init__(self, centres: ArrayLike, precision: ArrayLike, *, law: Gaussian) -> None:
        points = real_array(centres, "centres", SpaceError)
        if points.ndim != 2 or not points.size:
            raise SpaceError(f"centres must hold points in rows, shape (M, d), got shape {points.shape}")
        self._set("gaussian-quadratic", law, len(points))
        count, d = points.shape
        self.centres = frozen_array(points, "centres", (count, self.dim), SpaceError)
        given = coefficient_of(precision, "precision", ((), (count,), (d, d), (count, d, d)))
        given = frozen_array(given, "precision", given.shape, SpaceError)
        matrices = given[..., None, None] * np.eye(d) if given.ndim < 2 else given
        self.precision = frozen(np.broadcast_to(matrices, (count, d, d)))
        check_symmetric(matrices, "precision")
        lowest = float(np.linalg.eigvalsh(matrices).min())
        if lowest <= 0:
            raise SpaceError(
                f"precision must be positive definite, its smallest eigenvalue is {lowest:.3g}; Envelope takes any"
            )

    def _pulls(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """phi_j(x) (M, m) and P_j (x - c_j) (M, m, d)."""
        offsets = x - self.centres[:, None]
        pulls = offsets @ self.precision
        return np.exp(-0.5 * np.einsum("jmi,jmi->jm", offsets, pulls)), pulls

    def _tables(self, x: FloatArray, order: int) -> Tables:
        bumps, pulls = self._pulls(x)
        phi, pull = np.ascontiguousarray(bumps.T), pulls.swapaxes(0, 1)
        tables = [phi]
        if order >= 1:
            tables.append(-phi[:, :, None] * pull)
        if order == 2:
            tables.append(phi[:, :, None, None] * (pull[..., :, None] * pull[..., None, :] - self.precision))
        return tuple(tables)

    def _rows(
        self, x: FloatArray, value: FloatArray, gradient: FloatArray | None, hessian: FloatArray | None
    ) -> FloatArray:
        bumps, pulls = self._pulls(x)
        factor = np.broadcast_to(value[:, None], bumps.T.shape)
        if gradient is not None:
            factor = factor - np.einsum("jmi,mi->mj", pulls, gradient)
        if hessian is not None:
            pull = pulls.swapaxes(0, 1)
            factor = factor + np.einsum("mji,mji->mj", pull @ hessian, pull) - traces(hessian, self.precision)
        return np.asarray(factor * bumps.T)
