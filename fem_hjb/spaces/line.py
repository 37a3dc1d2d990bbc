"""Piecewise polynomials on an interval: the time basis, and the factors of smooth tensor-product bases."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline
from scipy.sparse.linalg import splu
from scipy.special import comb, roots_legendre

from fem_hjb.support.checks import (
    FloatArray,
    IntArray,
    array_length,
    flag,
    one_of,
    positive_integer,
    positive_number,
    real_array,
)
from fem_hjb.support.errors import SpaceError
from fem_hjb.support.objects import Plain

LINE_KINDS = ("P1", "P2", "P3", "P4", "hermite", "B2", "B3", "B4")

# Powers of xi (rows 1, xi, xi^2, xi^3) of the cubics (value, slope) at xi = 0, then (value, slope) at xi = 1.
_HERMITE = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [-3.0, -2.0, 3.0, -1.0], [2.0, 1.0, -2.0, 1.0]])
_EDGE_TOLERANCE = 1e-10  # relative to the length: points this little outside count as inside
_END_POINTS = 6


@final
@dataclass(frozen=True, eq=False, repr=False)
class LineBasis(Plain):
    r"""Piecewise polynomials on grid[0] < grid[1] < ... < grid[m], in local coordinates xi = (s - grid[c]) / width[c].

    kind "P1".."P4": continuous Lagrange elements on equispaced local nodes; the coefficients are the values at
    `nodes`, ordered from left to right.
    kind "hermite": C1 cubics. Grid point a carries two coefficients, 2a: the value, and 2a + 1: h_a times the slope,
    with h_a the mean width of the cells that meet there. This scaling makes all coefficients of a smooth function
    comparable, so that matrices are conditioned independently of the mesh.

    kind "B2".."B4": B-splines of degree p, C^{p-1}, on the open knot vector of the grid (its ends repeated p + 1 times;
    de Boor, A Practical Guide to Splines). They are non-negative and sum to 1, so that a function lies between its
    lowest and its highest coefficient; at each end one function is 1 and all others vanish. `nodes` are the Greville
    points, averages of p successive knots, the first and the last at the ends: coefficients are near the values there
    but are not these values.

    grid : (m+1,) strictly increasing, m >= 1.
    flat : B-splines only, those of slope 0 at both ends, for reflecting faces. There the two outermost coefficients
        are equal: they are stored once, so that `cell_dofs` of end cells repeat a dof. Functions stay non-negative and
        of sum 1.

    Attributes: n_cells = m; n_dofs (m + p for B-splines, two less if flat); local_size l; cell_dofs (m, l); nodes (k,),
    the Lagrange nodes, the grid or the Greville points, as many as determine a function (see `interpolate`); degree;
    smoothness (p - 1 for B-splines, else 0 or 1); widths (m,) of the cells; node_widths (m+1,), the h_a above; scale,
    None or (m, l): basis function i on cell c is scale[c, i] times reference function i.

    Raises SpaceError for a grid that is not increasing, for an unknown kind, and for flat without B-splines.

    >>> LineBasis.uniform(1.0, 2, "P2").nodes.tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> LineBasis.uniform(1.0, 2, "B2").nodes.tolist()
    [0.0, 0.25, 0.75, 1.0]
    """

    grid: ArrayLike
    kind: str = "P2"
    flat: bool = field(default=False, kw_only=True)
    n_cells: int = field(init=False)
    n_dofs: int = field(init=False)
    local_size: int = field(init=False)
    degree: int = field(init=False)
    smoothness: int = field(init=False)
    cell_dofs: IntArray = field(init=False, repr=False)
    nodes: FloatArray = field(init=False, repr=False)
    widths: FloatArray = field(init=False, repr=False)
    node_widths: FloatArray = field(init=False, repr=False)
    _derivatives: FloatArray = field(init=False, repr=False)
    scale: FloatArray | None = field(init=False, repr=False)
    _extraction: FloatArray | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        one_of(self.kind, "kind of a LineBasis", LINE_KINDS, SpaceError)
        flag(self.flat, "flat", SpaceError)
        grid = real_array(self.grid, "the grid of a LineBasis", SpaceError).copy()
        if grid.ndim != 1 or grid.size < 2 or not np.isfinite(grid).all() or not (np.diff(grid) > 0).all():
            raise SpaceError(
                "the grid of a LineBasis must be a strictly increasing array of at least 2 finite numbers,"
                f" got shape {grid.shape}" + (f" with values {grid[:4]}..." if grid.ndim == 1 else "")
            )
        if self.flat and not self.is_spline:
            raise SpaceError(f"flat=True is for B-splines, kinds 'B2' to 'B4', got kind {self.kind!r}; leave out flat=")
        if self.kind == "hermite":
            made = _hermite(grid)
        else:
            degree = int(self.kind[1:])
            made = _splines(grid, degree, self.flat) if self.is_spline else _lagrange(grid, degree)
        made |= {"grid": grid, "n_cells": grid.size - 1, "widths": np.diff(grid), "node_widths": _node_widths(grid)}
        made["local_size"] = made["cell_dofs"].shape[1]
        made["_derivatives"] = _derivatives(made.pop("powers"))
        for name, value in {"scale": None, "_extraction": None, **made}.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)

    @classmethod
    def uniform(cls, length: float, cells: int, kind: str) -> "LineBasis":
        """`cells` equal cells on [0, length]."""
        end = positive_number(length, "length", SpaceError)
        return cls(np.linspace(0.0, end, array_length(cells, "cells", SpaceError) + 1), kind)

    @property
    def is_spline(self) -> bool:
        """Whether the functions are B-splines."""
        return self.kind.startswith("B")

    @property
    def bounds(self) -> tuple[float, float]:
        """First and last grid point."""
        return float(self.points[0]), float(self.points[-1])

    @property
    def points(self) -> FloatArray:
        """The grid (m+1,), read-only."""
        return np.asarray(self.grid)

    def locate(self, s: ArrayLike) -> tuple[IntArray, FloatArray]:
        """Cells (n,) and local coordinates xi (n,) in [0, 1] of points s (n,); cell -1 outside.

        A point on a grid point belongs to the cell on its right, the last one to the last cell.
        """
        points, grid = np.asarray(s, dtype=np.float64), self.points
        cells = np.searchsorted(grid[1:-1], points, side="right")
        xi = (points - grid[cells]) / self.widths[cells]
        slack = _EDGE_TOLERANCE * (grid[-1] - grid[0])
        inside = (points >= grid[0] - slack) & (points <= grid[-1] + slack)
        xi = np.minimum(np.maximum(xi, 0.0), 1.0)
        return (cells if inside.all() else np.where(inside, cells, -1)), xi

    def reference(self, xi: FloatArray, derivative: int = 0) -> FloatArray:
        """That derivative with respect to xi of the l reference functions at xi (n,), shape (n, l).

        Raises SpaceError for B-splines, whose polynomials differ from cell to cell: `tabulate` gives these.
        """
        if self.is_spline:
            raise SpaceError(
                f"the functions of kind {self.kind!r} are not the same on all cells, so there are no reference"
                " functions; tabulate them at cells and local coordinates"
            )
        return self._local(xi, derivative)

    def _local(self, xi: FloatArray, derivative: int) -> FloatArray:
        """The same of the local polynomials: the reference functions, or Bernstein polynomials for B-splines."""
        return np.asarray(_powers(xi, self.degree) @ self._derivatives[derivative])

    def tabulate(self, cells: IntArray, xi: FloatArray, order: int = 1) -> FloatArray:
        """The l basis functions of each cell and their first `order` derivatives in s, shape (n, order + 1, l).

        Derivatives at a grid point are those of the cell given.
        """
        if order not in (0, 1, 2):
            raise SpaceError(f"order must be 0, 1 or 2, got {order!r}")
        result = np.empty((xi.size, order + 1, self.local_size))
        powers = _powers(xi, self.degree)
        for k in range(order + 1):
            np.matmul(powers, self._derivatives[k], out=result[:, k])
            if k:
                result[:, k] /= self.widths[cells, None] ** k
        if self.scale is not None:
            result *= self.scale[cells, None, :]
        if self._extraction is not None:
            result = result @ self._extraction[cells]
        return result

    def design_matrix(self, s: ArrayLike) -> sp.csr_matrix:
        """The values of all functions at points s (n,), (n, n_dofs). Raises SpaceError if points lie outside."""
        cells, xi = self.locate(s)
        if (cells < 0).any():
            raise SpaceError(
                f"{int((cells < 0).sum())} of {cells.size} points lie outside the interval {list(self.bounds)}"
            )
        values = self.tabulate(cells, xi, 0)[:, 0]
        rows = np.repeat(np.arange(cells.size), self.local_size)
        shape = (cells.size, self.n_dofs)
        return sp.csr_matrix((values.ravel(), (rows, self.cell_dofs[cells].ravel())), shape=shape)

    def interpolate(self, values: ArrayLike) -> FloatArray:
        """Coefficients (n_dofs, ...) of the function with these values (len(nodes), ...) at the nodes.

        Lagrange elements: the values. Hermite cubics: values and slopes of the cubic spline through them. B-splines:
        the solution of the banded collocation system at the Greville points, of order p + 1 like the class.
        """
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 0 or len(array) != len(self.nodes):
            raise SpaceError(f"values at the nodes must have shape ({len(self.nodes)}, ...), got {array.shape}")
        if self.kind == "hermite":
            slopes = _spline_slopes(self.points, array)
            scaled = slopes * self.node_widths.reshape(-1, *[1] * (array.ndim - 1))
            return np.stack([array, scaled], axis=1).reshape(self.n_dofs, *array.shape[1:])
        if self.is_spline:
            flat = np.ascontiguousarray(array.reshape(len(array), -1))
            solved = splu(self.design_matrix(self.nodes).tocsc()).solve(flat)
            return np.asarray(solved.reshape(array.shape))
        return array

    def at_nodes(self, coefficients: ArrayLike) -> FloatArray:
        """The values (len(nodes), ...) at the nodes of functions with coefficients (n_dofs, ...)."""
        array = np.asarray(coefficients, dtype=np.float64)
        if self.kind == "hermite":
            return array[::2]
        if self.is_spline:
            flat = array.reshape(len(array), -1)
            return np.asarray((self.design_matrix(self.nodes) @ flat).reshape(array.shape))
        return array

    def quadrature(self, degree: int) -> tuple[FloatArray, FloatArray]:
        """Gauss-Legendre points and weights (m, q) on the cells, exact for piecewise polynomials of this degree."""
        xi, weights = unit_gauss(degree)
        return self.points[:-1, None] + self.widths[:, None] * xi, self.widths[:, None] * weights

    def mass(self) -> sp.csc_matrix:
        """The matrix of the L2 products of all basis functions, (n_dofs, n_dofs)."""
        points, weights = self.quadrature(2 * self.degree)
        values = self.design_matrix(points.ravel())
        return (values.T @ sp.diags(weights.ravel()) @ values).tocsc()


def _powers(xi: FloatArray, degree: int) -> FloatArray:
    """1, xi, xi^2, ... of points (n,), (n, degree + 1). `numpy.vander` is not made for so few columns."""
    powers = np.ones((xi.size, degree + 1))
    for k in range(degree):
        np.multiply(powers[:, k], xi, out=powers[:, k + 1])
    return powers


def _derivatives(powers: FloatArray) -> FloatArray:
    """From polynomials in columns, by their powers (p + 1, l), the same of them and two derivatives, (3, p + 1, l)."""
    found = np.zeros((3, *powers.shape))
    found[0] = powers
    factors = np.arange(1.0, len(powers))[:, None]
    for k in (1, 2):
        found[k, :-1] = factors * found[k - 1, 1:]
    return found


def _node_widths(grid: FloatArray) -> FloatArray:
    """Per grid point the mean width of the cells that meet there."""
    widths = np.diff(grid)
    return np.concatenate([widths[:1], (widths[:-1] + widths[1:]) / 2, widths[-1:]])


def _hermite(grid: FloatArray) -> dict[str, Any]:
    m, widths, node_widths = grid.size - 1, np.diff(grid), _node_widths(grid)
    scale = np.ones((m, 4))
    scale[:, 1], scale[:, 3] = widths / node_widths[:-1], widths / node_widths[1:]
    cell_dofs = 2 * np.arange(m, dtype=np.int64)[:, None] + np.arange(4)
    made = {"degree": 3, "smoothness": 1, "n_dofs": 2 * (m + 1), "nodes": grid.copy(), "powers": _HERMITE}
    return {**made, "cell_dofs": cell_dofs, "scale": scale}


def _splines(grid: FloatArray, degree: int, flat: bool) -> dict[str, Any]:
    m = grid.size - 1
    n_dofs = m + degree
    cell_dofs = np.arange(m, dtype=np.int64)[:, None] + np.arange(degree + 1)
    knots = np.concatenate([np.repeat(grid[0], degree), grid, np.repeat(grid[-1], degree)])
    nodes = np.lib.stride_tricks.sliding_window_view(knots[1:-1], degree).mean(axis=1)
    nodes[0], nodes[-1] = grid[0], grid[-1]
    if flat:
        n_dofs -= 2
        cell_dofs = np.clip(cell_dofs - 1, 0, n_dofs - 1)
        nodes = np.delete(nodes, [1, -2] if n_dofs > 1 else [0, -1])
    made = {"degree": degree, "smoothness": degree - 1, "n_dofs": n_dofs, "nodes": nodes, "cell_dofs": cell_dofs}
    return {**made, "powers": _bernstein(degree), "_extraction": _bezier_extraction(knots, degree)}


def _lagrange(grid: FloatArray, degree: int) -> dict[str, Any]:
    m = grid.size - 1
    reference = np.linspace(0.0, 1.0, degree + 1)
    nodes = np.append((grid[:-1, None] + np.diff(grid)[:, None] * reference[:-1]).ravel(), grid[-1])
    cell_dofs = degree * np.arange(m, dtype=np.int64)[:, None] + np.arange(degree + 1)
    made = {"degree": degree, "smoothness": 0, "n_dofs": degree * m + 1, "nodes": nodes, "cell_dofs": cell_dofs}
    return {**made, "powers": np.linalg.inv(np.vander(reference, increasing=True))}


def _bernstein(degree: int) -> FloatArray:
    """Powers of xi of the Bernstein polynomials binom(p, j) xi^j (1 - xi)^(p - j), j = 0..p, in columns."""
    k, j = np.ogrid[: degree + 1, : degree + 1]
    return np.asarray(comb(degree, j) * comb(degree - j, k - j) * (-1.0) ** (k - j))


def _bezier_extraction(knots: FloatArray, degree: int) -> FloatArray:
    """On each cell the Bernstein coefficients (m, p+1, p+1) of its p+1 B-splines, these in the last axis.

    The recursion of Cox and de Boor in Bernstein form: the linear factors are non-negative on the cell, so that only
    non-negative numbers are multiplied and added, and nothing cancels wherever the grid is and however it is graded.
    """
    cells = np.arange(knots.size - 2 * degree - 1)
    ends = np.stack([knots[cells + degree], knots[cells + degree + 1]])[:, :, None]
    table = np.ones((cells.size, 1, 1))
    for q in range(1, degree + 1):
        left = cells[:, None] + degree - q + 1 + np.arange(q)  # first knots of the B-splines of degree q - 1
        width = knots[left + q] - knots[left]
        rising, falling = (ends - knots[left]) / width, (knots[left + q] - ends) / width
        raised = np.zeros((cells.size, q + 1, q + 1))
        raised[:, :, 1:] += _times_linear(table, rising)
        raised[:, :, :-1] += _times_linear(table, falling)
        table = raised
    return table


def _times_linear(table: FloatArray, ends: FloatArray) -> FloatArray:
    """Bernstein coefficients (m, q+1, n) of polynomials (m, q, n) times linear functions, (2, m, n) at xi = 0 and 1."""
    m, q, n = table.shape
    share = (np.arange(q) + 1.0)[:, None] / q
    result = np.zeros((m, q + 1, n))
    result[:, :-1] = share[::-1] * ends[0][:, None] * table
    result[:, 1:] += share * ends[1][:, None] * table
    return result


def _spline_slopes(grid: FloatArray, values: FloatArray) -> FloatArray:
    """Slopes at the grid points of the cubic spline through values (len(grid), ...).

    Its end slopes are those of the polynomials through the first and the last six points: their error is of higher
    order than the spline's, so that the ends are as accurate as the middle.
    """
    used = min(_END_POINTS, grid.size)
    ends = []
    for sign, stencil in ((1.0, slice(None, used)), (-1.0, slice(-1, -used - 1, -1))):
        offsets = sign * (grid[stencil] - grid[stencil][0])
        reach = offsets[-1]
        # row 1 of the inverse Vandermonde matrix takes values to the linear coefficient
        weights = np.linalg.inv(np.vander(offsets / reach, increasing=True))[1] * sign / reach
        ends.append((1, np.tensordot(weights, values[stencil], axes=1)))
    return np.asarray(CubicSpline(grid, values, bc_type=tuple(ends))(grid, 1))


def unit_gauss(degree: int) -> tuple[FloatArray, FloatArray]:
    """Gauss-Legendre points and weights on [0, 1], exact for polynomials of this degree."""
    if isinstance(degree, bool) or not isinstance(degree, int | np.integer) or degree < 0:
        raise SpaceError(f"the degree of a quadrature must be a non-negative integer, got {degree!r}")
    return _gauss(int(degree) // 2 + 1)


@lru_cache(maxsize=64)
def _gauss(count: int) -> tuple[FloatArray, FloatArray]:
    """So many points: found once, as they are asked for thousands of times."""
    points, weights = roots_legendre(count)
    found = (points + 1.0) / 2.0, weights / 2.0
    for array in found:
        array.setflags(write=False)
    return found


def row_products(factors: Sequence[FloatArray]) -> FloatArray:
    """Row-wise tensor product of (n, l_k), the first factor slowest: (n, prod l_k)."""
    return reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1), factors)


def time_kind(degree: int, smooth: bool) -> str:
    """The kind of a `LineBasis` in time: "P1" to "P3", or if smooth "B2" to "B4"."""
    p, smooth = positive_integer(degree, "time_degree", SpaceError), flag(smooth, "time_smooth", SpaceError)
    if p not in ((2, 3, 4) if smooth else (1, 2, 3)):
        allowed = "2, 3 or 4 with time_smooth=True" if smooth else "1, 2 or 3"
        raise SpaceError(f"time_degree must be {allowed}, got {p}")
    return f"{'B' if smooth else 'P'}{p}"
