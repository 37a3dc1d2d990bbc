r"""Mesh-free linear classes: dictionaries of smooth features on all of R^d.

A `Dictionary` of features phi_1, ..., phi_M is a basis in space with a single cell, the whole of R^d, so that

    f(t, x) = sum_{k, j} C[k, j] psi_k(t) phi_j(x)

is the `Space` Space.product(LineBasis.uniform(T, cells, "P2"), dictionary), in any dimension. There is nothing to
integrate over: such a class is fitted under samples of the law. Each dictionary carries a Gaussian law, which says
where in R^d it is meant to be used.

>>> from fem_hjb.spaces.line import LineBasis
>>> from fem_hjb.spaces import Space
>>> law = Gaussian(np.zeros(20), 1.0)
>>> features = Union(HermiteCross(law, 2), RandomFourier(law, 100, scale=3.0, rng=0))
>>> Space.product(LineBasis.uniform(1.0, 4, "P2"), features).shape
(9, 141)
"""

from abc import abstractmethod
from functools import cached_property
from itertools import combinations_with_replacement
from math import sqrt
from typing import NoReturn, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri
from scipy.stats import qmc

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian
from fem_hjb.spaces.basis import CellRule, SpatialBasis, Tables, frozen, nodal_values
from fem_hjb.support.checks import (
    FloatArray,
    IntArray,
    Rng,
    frozen_array,
    positive_integer,
    positive_number,
    real_array,
    spawn_generators,
)
from fem_hjb.support.errors import SpaceError

_CHUNK_DOUBLES = 1 << 22  # 32 MB per temporary
_FEWEST_NODES = 256
_NODES_PER_FEATURE = 4
_LARGEST_EXPONENT = 700.0  # exp overflows soon after
_SYMMETRY = 1e-12


class Dictionary(SpatialBasis):
    r"""Features phi_1, ..., phi_M, infinitely smooth on R^d: a basis in space of one cell, whose coordinates xi are x.

    law : the `Gaussian` N(m, C) under which it is meant to be used. The nodes, max(256, 4 M) of them, are the Sobol
        points of (0, 1)^d, without the first, taken to N(m, (1 + 1/sqrt(d))^2 C): deterministic, the first is m. They
        are spread wider than the law so that least squares at the nodes hold in its tails.
    degree : of a `HermiteCross` its own, else 2. Rules on cells are chosen by it elsewhere, of which there are none.
    smoothness : 2, as second derivatives are continuous.

    Coefficients are not values at the nodes, which are more than they are: `interpolate` is a least-squares fit.
    """

    law: Gaussian

    def _set(self, element: str, law: Gaussian, count: int, degree: int = 2) -> None:
        if not isinstance(law, Gaussian):
            raise SpaceError(f"a dictionary needs a Gaussian law, which says where it is used, got {law!r:.80}")
        self.law, self.dim, self.element, self.degree = law, law.dim, element, degree
        self.n_dofs = self.local_size = count
        self.n_cells, self.kind, self.smoothness = 1, "unbounded", 2
        self.cell_dofs = frozen(np.arange(count)[None], np.int64)
        self.box = Box(np.full(law.dim, -np.inf), np.full(law.dim, np.inf), boundary="natural")
        sobol = qmc.Sobol(law.dim, scramble=False).fast_forward(1)  # the first point is 0, where ndtri is infinite
        points = sobol.random(max(_FEWEST_NODES, _NODES_PER_FEATURE * count))
        spread = (1.0 + 1.0 / sqrt(law.dim)) * np.linalg.cholesky(law.covariance)
        self.nodes = frozen(law.expectation + ndtri(points) @ spread.T)

    @abstractmethod
    def _tables(self, x: FloatArray, order: int) -> Tables:
        """Values (m, M), gradients (m, M, d) and Hessians (m, M, d, d) at x (m, d), up to `order`."""

    @abstractmethod
    def _rows(
        self, x: FloatArray, value: FloatArray, gradient: FloatArray | None, hessian: FloatArray | None
    ) -> FloatArray:
        """`operator_rows` at few points x (m, d), value being (m,), gradient (m, d), hessian (d, d) or (m, d, d)."""

    def locate(self, x: FloatArray) -> tuple[IntArray, FloatArray]:
        return np.zeros(len(x), dtype=np.int64), x

    def tabulate(self, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        """The features at xi = x (m, d): values (m, M), gradients (m, M, d), Hessians (m, M, d, d), up to `order`.

        Order 2 is for small d only: it takes m M d^2 doubles, 160 GB for m = 10^5, M = 500 and d = 20. `operator_rows`
        does without.
        """
        self._check_order(order)
        return self._tables(xi, order)

    def operator_rows(
        self,
        cells: IntArray,
        xi: FloatArray,
        value: ArrayLike,
        gradient: ArrayLike | None,
        hessian: ArrayLike | None,
    ) -> FloatArray:
        """value phi_j + <gradient, grad phi_j> + Tr(hessian Hess phi_j) at xi = x (m, d), shape (m, M).

        value : a number or (m,);  gradient : None, (d,) or (m, d);  hessian : None, (d, d) or (m, d, d), of which only
        the symmetric part counts. `cells` is ignored.

        In time O(m M d^2) at most, and beside the result in bounded memory. SpaceError on other shapes.
        """
        m, d = xi.shape
        values = _coefficient(value, "value", ((), (m,)))
        slopes = None if gradient is None else _coefficient(gradient, "gradient", ((d,), (m, d)))
        curvatures = None if hessian is None else _coefficient(hessian, "hessian", ((d, d), (m, d, d)))
        values = np.broadcast_to(values, (m,))
        slopes = None if slopes is None else np.broadcast_to(slopes, (m, d))
        result = np.empty((m, self.n_dofs))
        size = max(1, _CHUNK_DOUBLES // (self.n_dofs * d))
        for start in range(0, m, size):
            part = slice(start, start + size)
            result[part] = self._rows(
                xi[part],
                values[part],
                None if slopes is None else slopes[part],
                curvatures if curvatures is None or curvatures.ndim == 2 else curvatures[part],
            )
        return result

    @cached_property
    def _at_nodes(self) -> FloatArray:
        """The features at the nodes, (n_nodes, M)."""
        return self._tables(self.nodes, 0)[0]

    @cached_property
    def _nodal_factors(self) -> tuple[FloatArray, FloatArray]:
        """Two factors whose product (n_nodes, M) takes values at the nodes to coefficients, in least squares."""
        phi = self._at_nodes
        sizes = np.linalg.norm(phi, axis=1)
        if not sizes.any():
            raise SpaceError(
                f"all {self.n_dofs} features of {self.element!r} vanish at the nodes, which surround the mean"
                f" {self.law.expectation.tolist()} of its law; give the dictionary a law where its features are"
            )
        weights = 1.0 / np.maximum(sizes, np.median(sizes[sizes > 0]))
        left, singular, right = np.linalg.svd(weights[:, None] * phi, full_matrices=False)
        seen = singular > len(phi) * np.finfo(np.float64).eps * singular[0]
        return weights[:, None] * left[:, seen] / singular[seen], right[seen]

    def interpolate(self, values: ArrayLike) -> FloatArray:
        """Coefficients (..., M) of the weighted least-squares fit to the values (..., n_nodes) at the nodes.

        Nodes weigh the less the larger the features are there, 1 / |phi(x)|^2 where |phi| is above its median, without
        which polynomials would serve the outermost nodes only. Of several solutions, as when features depend on each
        other to rounding, the shortest. Source: Narayan, Jakeman and Zhou, A Christoffel function weighted least
        squares algorithm for collocation approximations (2017).
        """
        left, right = self._nodal_factors
        return np.asarray(nodal_values(values, len(self.nodes)) @ left @ right)

    def at_nodes(self, coefficients: ArrayLike) -> FloatArray:
        array = real_array(coefficients, "coefficients", SpaceError)
        if array.shape[-1:] != (self.n_dofs,):
            raise SpaceError(f"coefficients must have shape (..., {self.n_dofs}), got {array.shape}")
        return np.asarray(array @ self._at_nodes.T)

    def quadrature(self, degree: int) -> CellRule:
        """SpaceError: a dictionary has no cells to integrate over."""
        self._refuse()

    def _solve_mass(self, rule: CellRule, rhs: FloatArray) -> FloatArray:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise SpaceError(
            f"the dictionary {self.element!r} has no cells, so that nothing can be integrated over them: sample the law"
            " instead, as sampled_law_measure does"
        )

    def boundary_dofs(self) -> IntArray:
        """None: R^d has no boundary."""
        return np.empty(0, dtype=np.int64)

    def reflecting_dofs(self) -> IntArray:
        """None: R^d has no boundary."""
        return np.empty(0, dtype=np.int64)


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
        self._set("random-fourier", law, positive_integer(count, "count", SpaceError))
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
        factor = value[:, None] if hessian is None else value[:, None] - _traces(hessian, self._outer)
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
        given = _coefficient(precision, "precision", ((), (count,), (d, d), (count, d, d)))
        given = frozen_array(given, "precision", given.shape, SpaceError)
        matrices = given[..., None, None] * np.eye(d) if given.ndim < 2 else given
        self.precision = frozen(np.broadcast_to(matrices, (count, d, d)))
        _check_symmetric(matrices, "precision")
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
            factor = factor + np.einsum("mji,mji->mj", pull @ hessian, pull) - _traces(hessian, self.precision)
        return np.asarray(factor * bumps.T)


@final
class Envelope(Dictionary):
    r"""The features of another dictionary times an exponential of a quadratic: phi_j = exp(-x'Qx/2 + q'x) base_j(x).

    Q (d, d) symmetric, of any sign; q (d,). Linear drift and quadratic rewards make f just such an exponential, times
    a constant (Fleming and Rishel, Deterministic and Stochastic Optimal Control (1975), section VI.5): then
    `HermiteCross(law, 0)` suffices as the base, and close to such problems few features do. The law is the base's.

    Raises SpaceError for a base that is no dictionary and for Q and q that do not fit it; and, wherever the envelope is
    evaluated, if it overflows.
    """

    def __init__(self, base: Dictionary, Q: ArrayLike, q: ArrayLike) -> None:
        _check_dictionary(base)
        self._set(f"envelope of {base.element}", base.law, base.n_dofs, base.degree)
        self.base = base
        self.Q = frozen_array(Q, "Q", (self.dim, self.dim), SpaceError)
        self.q = frozen_array(q, "q", (self.dim,), SpaceError)
        _check_symmetric(self.Q, "Q")

    def _envelope(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """exp(-x'Qx/2 + q'x) (m,), and the gradient q - Qx (m, d) of the exponent."""
        pushed = x @ self.Q
        exponent = ((self.q - 0.5 * pushed) * x).sum(axis=-1)
        if (exponent > _LARGEST_EXPONENT).any():
            worst = int(exponent.argmax())
            raise SpaceError(
                f"the envelope is exp({exponent[worst]:.4g}) at x={x[worst].tolist()}, which overflows: Q with negative"
                " or q with large entries make it grow away from 0; shift the coordinates, or take a smaller Q or q out"
            )
        return np.exp(exponent), self.q - pushed

    def _tables(self, x: FloatArray, order: int) -> Tables:
        envelope, s = self._envelope(x)
        base = self.base._tables(x, order)
        tables = [base[0]]
        if order >= 1:
            tables.append(base[1] + base[0][:, :, None] * s[:, None, :])
        if order == 2:
            mixed = base[1][..., :, None] * s[:, None, None, :]
            own = (s[:, :, None] * s[:, None, :] - self.Q)[:, None]
            tables.append(base[2] + mixed + mixed.swapaxes(-1, -2) + base[0][..., None, None] * own)
        return tuple(envelope.reshape(-1, *[1] * (table.ndim - 1)) * table for table in tables)

    def _rows(
        self, x: FloatArray, value: FloatArray, gradient: FloatArray | None, hessian: FloatArray | None
    ) -> FloatArray:
        # the operator conjugated with the envelope e: L(e phi) = e (L phi + first- and zeroth-order terms)
        envelope, s = self._envelope(x)
        if gradient is not None:
            value = value + (gradient * s).sum(axis=-1)
        if hessian is not None:
            turned = np.einsum("...ij,...j->...i", hessian, s), np.einsum("...ji,...j->...i", hessian, s)
            value = value + (turned[0] * s).sum(axis=-1) - _traces(hessian, self.Q[None])[..., 0]
            gradient = sum(turned) if gradient is None else gradient + sum(turned)
        return np.asarray(envelope[:, None] * self.base._rows(x, value, gradient, hessian))


@final
class Union(Dictionary):
    """The features of several dictionaries of one dimension, one after the other; law and degree as those of the first.

    Raises SpaceError without any, for anything else than dictionaries, and for different dimensions.
    """

    def __init__(self, *dictionaries: Dictionary) -> None:
        for part in dictionaries:
            _check_dictionary(part)
        dims = sorted({part.dim for part in dictionaries})
        if len(dims) != 1:
            raise SpaceError(
                f"a Union needs dictionaries of one dimension, got {len(dictionaries)} of dimensions {dims}"
            )
        first = dictionaries[0]
        self._set("union", first.law, sum(part.n_dofs for part in dictionaries), first.degree)
        self.parts = dictionaries

    def _tables(self, x: FloatArray, order: int) -> Tables:
        tables = [part._tables(x, order) for part in self.parts]
        return tuple(np.concatenate(parts, axis=1) for parts in zip(*tables, strict=True))

    def _rows(
        self, x: FloatArray, value: FloatArray, gradient: FloatArray | None, hessian: FloatArray | None
    ) -> FloatArray:
        return np.concatenate([part._rows(x, value, gradient, hessian) for part in self.parts], axis=1)


def _traces(hessian: FloatArray, matrices: FloatArray) -> FloatArray:
    """Tr(hessian matrices[j]) for symmetric matrices (M, d, d): (M,), or (m, M) for hessian (m, d, d)."""
    return np.asarray(hessian.reshape(*hessian.shape[:-2], -1) @ matrices.reshape(len(matrices), -1).T)


def _coefficient(value: ArrayLike, name: str, shapes: tuple[tuple[int, ...], ...]) -> FloatArray:
    array = real_array(value, name, SpaceError)
    if array.shape not in shapes:
        raise SpaceError(f"{name} must have shape {' or '.join(map(str, shapes))}, got {array.shape}")
    return array


def _check_symmetric(matrix: FloatArray, name: str) -> None:
    gap = float(np.abs(matrix - matrix.swapaxes(-1, -2)).max())
    if gap > _SYMMETRY * float(np.abs(matrix).max()):
        raise SpaceError(f"{name} must be symmetric, but differs from its transpose by {gap:.3g}; take (M + M') / 2")


def _check_dictionary(given: object) -> None:
    if not isinstance(given, Dictionary):
        raise SpaceError(f"expected a dictionary such as RandomFourier or HermiteCross, got {type(given).__name__}")
