"""Piecewise polynomials on an interval: the time basis, and the factors of C1 tensor-product bases."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.special import roots_legendre

from fem_hjb._checks import FloatArray, IntArray, SpaceError, one_of, positive_integer, positive_number

LINE_KINDS = ("P1", "P2", "P3", "P4", "hermite")

# Powers of xi (rows 1, xi, xi^2, xi^3) of the cubics (value, slope) at xi = 0, then (value, slope) at xi = 1.
_HERMITE = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [-3.0, -2.0, 3.0, -1.0], [2.0, 1.0, -2.0, 1.0]])
_EDGE_TOLERANCE = 1e-10  # relative to the length: points this little outside count as inside


@final
@dataclass(frozen=True, eq=False)
class LineBasis:
    r"""Piecewise polynomials on grid[0] < grid[1] < ... < grid[m], in local coordinates xi = (s - grid[c]) / width[c].

    kind "P1".."P4": continuous Lagrange elements on equispaced local nodes; the coefficients are the values at
    `nodes`, ordered from left to right.
    kind "hermite": C1 cubics. Grid point a carries two coefficients, 2a: the value, and 2a + 1: h_a times the slope,
    with h_a the mean width of the cells that meet there. This scaling makes all coefficients of a smooth function
    comparable, so that matrices are conditioned independently of the mesh.

    grid : (m+1,) strictly increasing, m >= 1.

    Attributes: n_cells = m; n_dofs; local_size l; cell_dofs (m, l); nodes (k,), the Lagrange nodes or the grid;
    degree; smoothness (0 or 1); widths (m,) of the cells; node_widths (m+1,), the h_a above.

    Raises SpaceError for a grid that is not increasing and for an unknown kind.

    >>> LineBasis.uniform(1.0, 2, "P2").nodes.tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    grid: ArrayLike
    kind: str = "P2"
    n_cells: int = field(init=False)
    n_dofs: int = field(init=False)
    local_size: int = field(init=False)
    degree: int = field(init=False)
    smoothness: int = field(init=False)
    cell_dofs: IntArray = field(init=False, repr=False)
    nodes: FloatArray = field(init=False, repr=False)
    widths: FloatArray = field(init=False, repr=False)
    node_widths: FloatArray = field(init=False, repr=False)
    _start: FloatArray = field(init=False, repr=False)
    _powers: FloatArray = field(init=False, repr=False)
    _scale: FloatArray | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        one_of(self.kind, "kind of a LineBasis", LINE_KINDS, SpaceError)
        grid = np.array(self.grid, dtype=np.float64)
        if grid.ndim != 1 or grid.size < 2 or not np.isfinite(grid).all() or not (np.diff(grid) > 0).all():
            raise SpaceError(
                "the grid of a LineBasis must be a strictly increasing array of at least 2 finite numbers,"
                f" got shape {grid.shape}" + (f" with values {grid[:4]}..." if grid.ndim == 1 else "")
            )
        widths, m = np.diff(grid), grid.size - 1
        node_widths = np.concatenate([widths[:1], (widths[:-1] + widths[1:]) / 2, widths[-1:]])
        if self.kind == "hermite":
            degree, smoothness, local, n_dofs, nodes, powers = 3, 1, 4, 2 * (m + 1), grid.copy(), _HERMITE
            cell_dofs = 2 * np.arange(m)[:, None] + np.arange(4)
            scale = np.ones((m, 4))
            scale[:, 1], scale[:, 3] = widths / node_widths[:-1], widths / node_widths[1:]
        else:
            degree = int(self.kind[1:])
            smoothness, local, n_dofs, scale = 0, degree + 1, degree * m + 1, None
            cell_dofs = degree * np.arange(m)[:, None] + np.arange(local)
            reference = np.linspace(0.0, 1.0, local)
            nodes = np.append((grid[:-1, None] + widths[:, None] * reference[:-1]).ravel(), grid[-1])
            powers = np.linalg.inv(np.vander(reference, increasing=True))
        put = object.__setattr__
        for name, number in (
            ("n_cells", m),
            ("n_dofs", n_dofs),
            ("local_size", local),
            ("degree", degree),
            ("smoothness", smoothness),
        ):
            put(self, name, number)
        for name, array in (
            ("grid", grid),
            ("_start", grid),
            ("widths", widths),
            ("node_widths", node_widths),
            ("cell_dofs", cell_dofs.astype(np.int64)),
            ("nodes", nodes),
            ("_powers", powers),
            ("_scale", scale),
        ):
            if array is not None:
                array.setflags(write=False)
            put(self, name, array)

    @classmethod
    def uniform(cls, length: float, cells: int, kind: str) -> "LineBasis":
        """`cells` equal cells on [0, length]."""
        end = positive_number(length, "length", SpaceError)
        return cls(np.linspace(0.0, end, positive_integer(cells, "cells", SpaceError) + 1), kind)

    @property
    def bounds(self) -> tuple[float, float]:
        """First and last grid point."""
        return float(self._start[0]), float(self._start[-1])

    @property
    def points(self) -> FloatArray:
        """The grid (m+1,), read-only."""
        return self._start

    @property
    def scale(self) -> FloatArray | None:
        """(m, l) factors: basis function i on cell c is scale[c, i] times reference function i; None if all are 1."""
        return self._scale

    def locate(self, s: ArrayLike) -> tuple[IntArray, FloatArray]:
        """Cells (n,) and local coordinates xi (n,) in [0, 1] of points s (n,); cell -1 outside.

        A point on a grid point belongs to the cell on its right, the last one to the last cell.
        """
        points, grid = np.asarray(s, dtype=np.float64), self._start
        cells = np.clip(np.searchsorted(grid, points, side="right") - 1, 0, self.n_cells - 1)
        xi = (points - grid[cells]) / self.widths[cells]
        slack = _EDGE_TOLERANCE * (grid[-1] - grid[0])
        inside = (points >= grid[0] - slack) & (points <= grid[-1] + slack)
        return np.where(inside, cells, -1).astype(np.int64), np.clip(xi, 0.0, 1.0)

    def reference(self, xi: FloatArray, derivative: int = 0) -> FloatArray:
        """That derivative with respect to xi of the l reference functions at xi (n,), shape (n, l)."""
        k = np.arange(self._powers.shape[0])
        powers = np.vander(xi, k.size, increasing=True)
        if derivative:
            factor = np.prod([k - j for j in range(derivative)], axis=0)
            powers = factor * powers[:, np.maximum(k - derivative, 0)]
        return np.asarray(powers @ self._powers)

    def tabulate(self, cells: IntArray, xi: FloatArray, order: int = 1) -> FloatArray:
        """The l basis functions of each cell and their first `order` derivatives in s, shape (n, order + 1, l).

        Derivatives at a grid point are those of the cell given.
        """
        if order not in (0, 1, 2):
            raise SpaceError(f"order must be 0, 1 or 2, got {order!r}")
        result = np.empty((xi.size, order + 1, self.local_size))
        for k in range(order + 1):
            result[:, k] = self.reference(xi, k)
            if k:
                result[:, k] /= self.widths[cells, None] ** k
        if self._scale is not None:
            result *= self._scale[cells, None, :]
        return result

    def quadrature(self, degree: int) -> tuple[FloatArray, FloatArray]:
        """Gauss-Legendre points and weights (m, q) on the cells, exact for piecewise polynomials of this degree."""
        xi, weights = unit_gauss(degree)
        return self._start[:-1, None] + self.widths[:, None] * xi, self.widths[:, None] * weights

    def mass(self) -> sp.csc_matrix:
        """The matrix of the L2 products of all basis functions, (n_dofs, n_dofs)."""
        xi, weights = unit_gauss(2 * self.degree)
        phi = self.reference(xi)
        local = self.widths[:, None, None] * np.einsum("q,qi,qj->ij", weights, phi, phi)
        if self._scale is not None:
            local = local * self._scale[:, :, None] * self._scale[:, None, :]
        rows = np.repeat(self.cell_dofs[:, :, None], self.local_size, axis=2)
        columns = np.swapaxes(rows, 1, 2)
        return sp.coo_matrix((local.ravel(), (rows.ravel(), columns.ravel())), shape=(self.n_dofs,) * 2).tocsc()


def unit_gauss(degree: int) -> tuple[FloatArray, FloatArray]:
    """Gauss-Legendre points and weights on [0, 1], exact for polynomials of this degree."""
    if isinstance(degree, bool) or not isinstance(degree, int | np.integer) or degree < 0:
        raise SpaceError(f"the degree of a quadrature must be a non-negative integer, got {degree!r}")
    points, weights = roots_legendre(int(degree) // 2 + 1)
    return (points + 1.0) / 2.0, weights / 2.0


def row_products(factors: Sequence[FloatArray]) -> FloatArray:
    """Row-wise tensor product of (n, l_k), the first factor slowest: (n, prod l_k)."""
    return reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1), factors)
