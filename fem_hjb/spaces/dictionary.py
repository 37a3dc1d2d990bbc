r"""Mesh-free linear classes: dictionaries of smooth features on all of R^d.

A `Dictionary` of features phi_1, ..., phi_M is a basis in space with a single cell, the whole of R^d, so that

    f(t, x) = sum_{k, j} C[k, j] psi_k(t) phi_j(x)

is the `Space` Space.product(LineBasis.uniform(T, cells, "P2"), dictionary), in any dimension. There is nothing to
integrate over: such a class is fitted under samples of the law. Each dictionary carries a Gaussian law, which says
where in R^d it is meant to be used.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from math import sqrt
from typing import NoReturn, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian
from fem_hjb.spaces.basis import CellRule, SpatialBasis, Tables, frozen, nodal_values
from fem_hjb.support.checks import FloatArray, IntArray, frozen_array, real_array
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
        from scipy.stats import qmc  # only here: scipy.stats takes longer to import than all the rest of SciPy

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
        values = coefficient_of(value, "value", ((), (m,)))
        slopes = None if gradient is None else coefficient_of(gradient, "gradient", ((d,), (m, d)))
        curvatures = None if hessian is None else coefficient_of(hessian, "hessian", ((d, d), (m, d, d)))
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
        check_symmetric(self.Q, "Q")

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
            value = value + (turned[0] * s).sum(axis=-1) - traces(hessian, self.Q[None])[..., 0]
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


def traces(hessian: FloatArray, matrices: FloatArray) -> FloatArray:
    """Tr(hessian matrices[j]) for symmetric matrices (M, d, d): (M,), or (m, M) for hessian (m, d, d)."""
    return np.asarray(hessian.reshape(*hessian.shape[:-2], -1) @ matrices.reshape(len(matrices), -1).T)


def coefficient_of(value: ArrayLike, name: str, shapes: tuple[tuple[int, ...], ...]) -> FloatArray:
    array = real_array(value, name, SpaceError)
    if array.shape not in shapes:
        raise SpaceError(f"{name} must have shape {' or '.join(map(str, shapes))}, got {array.shape}")
    return array


def check_symmetric(matrix: FloatArray, name: str) -> None:
    gap = float(np.abs(matrix - matrix.swapaxes(-1, -2)).max())
    if gap > _SYMMETRY * float(np.abs(matrix).max()):
        raise SpaceError(f"{name} must be symmetric, but differs from its transpose by {gap:.3g}; take (M + M') / 2")


def _check_dictionary(given: object) -> None:
    if not isinstance(given, Dictionary):
        raise SpaceError(f"expected a dictionary such as RandomFourier or HermiteCross, got {type(given).__name__}")
