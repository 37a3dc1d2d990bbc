"""Spectral elements on boxes: tensor products of piecewise polynomials on Gauss-Lobatto-Legendre (GLL) nodes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial, reduce
from typing import final

import numpy as np
import scipy.linalg
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike
from scipy.special import eval_legendre, roots_jacobi

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import tensor_rule
from fem_hjb.spaces.axes import solve_axes, tensor_points
from fem_hjb.spaces.basis import (
    ELEMENTS,
    CellRule,
    ReferenceFunctions,
    SpatialBasis,
    Tables,
    box_rule,
    frozen,
    nodal_values,
)
from fem_hjb.spaces.line import LineBasis, row_products, unit_gauss
from fem_hjb.support.checks import FloatArray, IntArray, positive_integer, real_array
from fem_hjb.support.errors import SpaceError
from fem_hjb.support.objects import Plain

MAX_DEGREE = 32


def gll(p: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    r"""The p + 1 Gauss-Lobatto-Legendre points on [-1, 1], their weights, and the differentiation matrix D.

    The points are -1, 1 and the zeros of P_p'; the weights 2 / (p (p + 1) P_p(z)^2) integrate polynomials of degree
    2p - 1 exactly; D[i, j] = l_j'(z_i) is exact for degree p, its diagonal set so that constants give zero.

    Raises SpaceError unless p is an integer from 1 to 32.

    Source: C. Canuto et al., Spectral Methods: Fundamentals in Single Domains, Springer 2006, sections 2.3.1, 2.3.2.

    >>> gll(2)[0].tolist()
    [-1.0, 0.0, 1.0]
    """
    if positive_integer(p, "the degree of GLL elements", SpaceError) > MAX_DEGREE:
        raise SpaceError(f"the degree of GLL elements must be at most {MAX_DEGREE}, got {p}; use more cells instead")
    return _gll(int(p))


@cache
def _gll(p: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    inner = roots_jacobi(p - 1, 1.0, 1.0)[0] if p > 1 else np.empty(0)
    points = np.concatenate([[-1.0], inner, [1.0]])
    legendre = eval_legendre(p, points)
    gaps = points[:, None] - points + np.eye(p + 1)
    D = _conservative(legendre[:, None] / (legendre * gaps))
    return frozen(points), frozen(2.0 / (p * (p + 1) * legendre**2)), frozen(D)


def _conservative(matrix: FloatArray) -> FloatArray:
    """The matrix with its diagonal set so that each row sums to zero: the most accurate one where constants vanish."""
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, -matrix.sum(axis=1))
    return matrix


@final
@dataclass(frozen=True, eq=False, init=False, repr=False)
class SpectralLine(Plain):
    r"""Continuous piecewise polynomials of degree p on grid[0] < ... < grid[m], by their values at n = m p + 1 nodes.

    The nodes are the Gauss-Lobatto-Legendre points of each cell, from left to right; neighbours share the one between
    them. With h_c, w_q and D a cell's width, the weights and the differentiation matrix of `gll`, the lumped mass,
    the averaged derivative and the Laplacian with natural ends are

        weights = sum_c (h_c / 2) w,     derivative = diag(1 / weights) sum_c diag(w) D,
        laplacian = -diag(1 / weights) sum_c (2 / h_c) D' diag(w) D.

    `derivative` is exact at all nodes for polynomials of degree p; `laplacian` gives u'' of these, plus u'(a) / weight
    at the left end a and minus u'(b) / weight at the right end b: it imposes u' = 0 there. Both annihilate constants.

    grid : (m+1,) strictly increasing, m >= 1;  degree : p, from 1 to 32.

    Attributes: n_cells = m; n; nodes (n,); weights (n,); cell_dofs (m, p+1); widths (m,); derivative (n, n);
    laplacian (n, n), dense; all read-only.

    Raises SpaceError for a grid that is not increasing and for a degree out of range.

    >>> SpectralLine([0.0, 1.0, 3.0], 2).nodes.tolist()
    [0.0, 0.5, 1.0, 2.0, 3.0]
    """

    grid: FloatArray
    degree: int
    n_cells: int = field(init=False)
    n: int = field(init=False)
    widths: FloatArray = field(init=False, repr=False)
    cell_dofs: IntArray = field(init=False, repr=False)
    nodes: FloatArray = field(init=False, repr=False)
    weights: FloatArray = field(init=False, repr=False)
    derivative: FloatArray = field(init=False, repr=False)
    laplacian: FloatArray = field(init=False, repr=False)
    _cells: LineBasis = field(init=False, repr=False)
    _points: FloatArray = field(init=False, repr=False)
    _barycentric: FloatArray = field(init=False, repr=False)
    _D: FloatArray = field(init=False, repr=False)
    _tail: FloatArray = field(init=False, repr=False)

    def __init__(self, grid: ArrayLike, degree: int) -> None:
        points, w, D = gll(degree)
        p = int(degree)
        cells = LineBasis(real_array(grid, "the grid of a SpectralLine", SpaceError), "P1")
        m, widths = cells.n_cells, cells.widths
        put = object.__setattr__
        for name, value in (("degree", p), ("n_cells", m), ("n", m * p + 1), ("_cells", cells)):
            put(self, name, value)
        put(self, "cell_dofs", frozen(p * np.arange(m)[:, None] + np.arange(p + 1), np.int64))
        unit = (1.0 + points) / 2
        nodes = np.append((cells.points[:-1, None] + widths[:, None] * unit[:-1]).ravel(), cells.points[-1])
        weights = np.bincount(self.cell_dofs.ravel(), (widths[:, None] / 2 * w).ravel())
        stiffness = self._assemble((2 / widths)[:, None, None] * (D.T @ (w[:, None] * D)))
        # <u, P_k> / <P_k, P_k> by the GLL rule, for the two highest k; constants are no tail
        modes = np.arange(max(p - 1, 1), p + 1)
        norms = np.where(modes < p, 2 / (2 * modes + 1), 2 / p)
        for name, array in (
            ("grid", cells.points),
            ("widths", widths),
            ("nodes", nodes),
            ("weights", weights),
            ("derivative", _conservative(self._assemble(np.repeat((w[:, None] * D)[None], m, 0)) / weights[:, None])),
            ("laplacian", _conservative(-stiffness / weights[:, None])),
            ("_points", unit),
            ("_barycentric", 1.0 / eval_legendre(p, points)),
            ("_D", 2 * D),
            ("_tail", eval_legendre(modes[:, None], points) * w / norms[:, None]),
        ):
            put(self, name, frozen(array))

    def _assemble(self, local: FloatArray) -> FloatArray:
        """The (n, n) sum of cell matrices (m, p+1, p+1)."""
        place = self.n * self.cell_dofs[:, :, None] + self.cell_dofs[:, None, :]
        return np.asarray(np.bincount(place.ravel(), local.ravel(), self.n**2).reshape(self.n, self.n), np.float64)

    @property
    def bounds(self) -> tuple[float, float]:
        """First and last grid point."""
        return self._cells.bounds

    def locate(self, x: ArrayLike) -> tuple[IntArray, FloatArray]:
        """Cells (k,) and local coordinates xi (k,) in [0, 1] of points x (k,); cell -1 outside.

        A point on a grid point belongs to the cell on its right, the last one to the last cell.
        """
        return self._cells.locate(x)

    def reference(self, xi: FloatArray, order: int = 0) -> FloatArray:
        """The p + 1 Lagrange polynomials of a cell (order 0), or their derivatives in xi (order 1), at xi (k,)."""
        return self.local(xi, order)[order].T

    def local(self, xi: FloatArray, order: int = 1) -> list[FloatArray]:
        """The same up to an order, points last: (p + 1, k) each.

        By the second barycentric formula, which is stable for every degree: J.-P. Berrut and L. N. Trefethen,
        SIAM Review 46 (2004), 501-517.
        """
        gaps = xi - self._points[:, None]
        hit = None if gaps.all() else gaps == 0.0
        if hit is not None:
            gaps[hit] = 1e-100  # the sum below cannot vanish
        values = np.divide(self._barycentric[:, None], gaps, out=gaps)
        values /= values.sum(axis=0)
        if hit is not None:
            at_node = hit.any(axis=0)
            values[:, at_node] = hit[:, at_node]
        return [values, self._D.T @ values] if order else [values]

    def tabulate(self, cells: IntArray, xi: FloatArray, order: int = 1) -> FloatArray:
        """The p + 1 functions of each cell, for order 1 also their derivatives in x, shape (k, order + 1, p + 1).

        Derivatives at a grid point are those of the cell given.
        """
        if order not in (0, 1):
            raise SpaceError(f"order must be 0 (values) or 1 (derivatives), got {order!r}")
        result = np.empty((len(xi), order + 1, self.degree + 1))
        for k, part in enumerate(self.local(xi, order)):
            result[:, k] = part.T
        result[:, 1:] /= self.widths[cells, None, None]
        return result

    def rows(self, x: ArrayLike, order: int = 0) -> FloatArray:
        """The values (k, n) of all basis functions at points x (k,), or for order 1 their derivatives in x.

        Beyond the ends those of the end cells go on; derivatives at a grid point are those on its right.
        """
        return self.rows_to(x, order)[order]

    def rows_to(self, x: ArrayLike, order: int) -> list[FloatArray]:
        """The same for each order up to this one."""
        cells, tables = self._tables(x, order)
        results = [np.zeros((len(cells), self.n)) for _ in range(order + 1)]
        where = np.arange(len(cells))[:, None], self.cell_dofs[cells]
        for k, result in enumerate(results):
            result[where] = tables[:, k]
        return results

    def combine_to(self, values: FloatArray, x: ArrayLike, order: int) -> list[FloatArray]:
        """The function with values (n,) at the nodes, at points x (k,), and its derivatives up to an order: (k,) each.

        The products of `rows_to` with these values, without the zeros.
        """
        cells, tables = self._tables(x, order)
        local = values[self.cell_dofs[cells]]
        return [np.asarray(np.einsum("kp,kp->k", tables[:, k], local)) for k in range(order + 1)]

    def _tables(self, x: ArrayLike, order: int) -> tuple[IntArray, FloatArray]:
        """The cells of points (k,), where those beyond belong to the end cells, and `tabulate` there."""
        points = np.asarray(x, dtype=np.float64)
        cells = np.searchsorted(self.grid[1:-1], points, side="right")
        return cells, self.tabulate(cells, (points - self.grid[cells]) / self.widths[cells], order)

    def mass(self) -> FloatArray:
        """The consistent mass matrix (n, n): the L2 products of the basis functions."""
        xi, weights = unit_gauss(2 * self.degree)
        phi = self.reference(xi)
        return self._assemble(self.widths[:, None, None] * ((phi.T * weights) @ phi))

    def modal_tail(self, values: ArrayLike, axis: int = 0) -> FloatArray:
        """How well a function is resolved: the larger modulus of its two highest Legendre coefficients on each cell.

        values : at the nodes, which lie along `axis`; in the result the m cells do. A polynomial sum_k c_k P_k on a
        cell, |P_k| <= 1, has max(|c_{p-1}|, |c_p|), in the units of the values (for p = 1 only |c_1|).

        Raises SpaceError if the axis is not of length n.
        """
        array = real_array(values, "values at the nodes", SpaceError)
        if not -array.ndim <= axis < array.ndim or array.shape[axis] != self.n:
            raise SpaceError(f"values at the nodes must have length {self.n} along axis {axis}, got {array.shape}")
        local = np.moveaxis(array, axis, 0)[self.cell_dofs]
        tail = np.abs(np.einsum("kq,cq...->kc...", self._tail, local)).max(axis=0)
        return np.asarray(np.moveaxis(tail, 0, axis))


@final
class SpectralBasis(SpatialBasis):
    """Tensor products of `SpectralLine`s on a box, one per axis; their degrees may differ.

    Nodes, coefficients (which are the values at the nodes), cells and local functions are numbered as tensor products,
    the first axis slowest: coefficients reshape to `shape`.

    Attributes: those of a SpatialBasis, with degree the largest of the axes; lines; shape = (n_1, ..., n_d);
    weights (n_dofs,), the lumped mass, products of the lines' weights.

    Raises SpaceError unless given 1, 2 or 3 lines.
    """

    def __init__(self, lines: Sequence[SpectralLine]) -> None:
        if not isinstance(lines, Sequence) or not all(isinstance(line, SpectralLine) for line in lines):
            raise SpaceError(f"a SpectralBasis needs a sequence of SpectralLines, one per axis, got {lines!r:.80}")
        if not 1 <= len(lines) <= 3:
            raise SpaceError(f"a box of spectral elements has 1, 2 or 3 axes, got {len(lines)} lines")
        self.lines = tuple(lines)
        self.dim = len(self.lines)
        self.element, self.degree, self.smoothness = "gll", max(line.degree for line in self.lines), 0
        self.kind = ELEMENTS["hermite"].kind_in(self.dim)
        self.shape = tuple(line.n for line in self.lines)
        self._counts = tuple(line.n_cells for line in self.lines)
        local_shape = tuple(line.degree + 1 for line in self.lines)
        self.n_dofs, self.n_cells, self.local_size = (math.prod(s) for s in (self.shape, self._counts, local_shape))
        cells = np.unravel_index(np.arange(self.n_cells)[:, None], self._counts)
        local = np.unravel_index(np.arange(self.local_size), local_shape)
        dofs = tuple(line.cell_dofs[c, i] for line, c, i in zip(self.lines, cells, local, strict=True))
        self.cell_dofs = frozen(np.ravel_multi_index(dofs, self.shape), np.int64)
        self.nodes = frozen(tensor_points([line.nodes for line in self.lines]))
        self.weights = frozen(reduce(np.multiply.outer, [line.weights for line in self.lines]).ravel())
        bounds = np.array([line.bounds for line in self.lines])
        self.box = Box(bounds[:, 0], bounds[:, 1])

    def locate(self, x: FloatArray) -> tuple[IntArray, FloatArray]:
        found = [line.locate(x[:, k]) for k, line in enumerate(self.lines)]
        index = np.stack([cells for cells, _ in found])
        cells = np.ravel_multi_index(tuple(np.maximum(index, 0)), self._counts)
        return np.where((index >= 0).all(axis=0), cells, -1), np.stack([xi for _, xi in found]).T

    def tabulate(self, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        self._check_order(order)
        index = np.unravel_index(cells, self._counts)
        tables = [line.tabulate(c, xi[:, k], order) for k, (line, c) in enumerate(zip(self.lines, index, strict=True))]
        values = [table[:, 0] for table in tables]
        if order == 0:
            return (row_products(values),)
        # one contiguous table per axis: sums over the local functions then run at the speed of memory
        gradients = np.empty((self.dim, len(cells), self.local_size))
        for k, table in enumerate(tables):
            gradients[k] = row_products([*values[:k], table[:, 1], *values[k + 1 :]])
        return row_products(values), np.moveaxis(gradients, 0, -1)

    def gathered(self, rows: FloatArray, first: IntArray, count: int, cells: IntArray) -> FloatArray:
        index = np.unravel_index(cells, self._counts)
        return cell_windows(rows.reshape(-1, *self.shape), self.lines, first, count, index)

    def table_width(self, order: int) -> int:
        return 1

    def contract(self, local: FloatArray, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        """Axis by axis, which never makes the table of all local functions."""
        self._check_order(order)
        index = np.unravel_index(cells, self._counts)
        return contract_axes(np.ascontiguousarray(local.T), self.lines, index, list(xi.T), order)

    def at(self, coefficients: FloatArray, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        self._check_order(order)
        index = np.unravel_index(cells, self._counts)
        if len(cells) < self.n_cells:
            first = np.zeros(len(cells), dtype=np.int64)
            local = cell_windows(coefficients.reshape(1, *self.shape), self.lines, first, 1, index)[:, 0].T
        else:  # all cells are few, and stay in the cache
            local = coefficients[self.cell_dofs.T].take(cells, axis=1)
        return contract_axes(np.ascontiguousarray(local), self.lines, index, list(xi.T), order)

    def interpolate(self, values: ArrayLike) -> FloatArray:
        return nodal_values(values, self.n_dofs)

    def at_nodes(self, coefficients: ArrayLike) -> FloatArray:
        return np.asarray(coefficients, dtype=np.float64)

    def quadrature(self, degree: int) -> CellRule:
        xi, weights = tensor_rule(*unit_gauss(degree), self.dim)
        flat = [line.reference(xi[:, k]) for k, line in enumerate(self.lines)]
        slope = [line.reference(xi[:, k], 1) for k, line in enumerate(self.lines)]
        dphi = [row_products([*flat[:k], slope[k], *flat[k + 1 :]]) for k in range(self.dim)]
        functions = ReferenceFunctions(
            phi=np.ascontiguousarray(row_products(flat).T),
            dphi=np.ascontiguousarray(np.stack(dphi, axis=-1).swapaxes(0, 1)),
            scale=None,
        )
        return box_rule([line.grid for line in self.lines], xi, weights, functions)

    def boundary_dofs(self) -> IntArray:
        lower, upper = self.box.bounds
        return np.flatnonzero(((self.nodes == lower) | (self.nodes == upper)).any(axis=1)).astype(np.int64)

    def reflecting_dofs(self) -> IntArray:
        return np.empty(0, dtype=np.int64)

    def _solve_mass(self, rule: CellRule, rhs: FloatArray) -> FloatArray:
        solves = [partial(scipy.linalg.solve, line.mass(), assume_a="pos") for line in self.lines]
        return solve_axes(solves, rhs.reshape(self.shape)).ravel()


def cell_windows(
    rows: FloatArray, lines: Sequence[SpectralLine], first: IntArray, count: int, cells: Sequence[IntArray]
) -> FloatArray:
    """Of arrays rows (k, n_1, ..., n_d), `count` from first (n,) on, the nodes of cells, their places (n,) along each
    axis: (n, count, l). Whole lines of nodes are copied, not nodes one by one.
    """
    sizes = count, *[line.degree + 1 for line in lines]
    corners = [line.degree * c for line, c in zip(lines, cells, strict=True)]
    return np.asarray(sliding_window_view(rows, sizes)[(first, *corners)].reshape(len(first), count, -1))


def contract_axes(
    local: FloatArray, lines: Sequence[SpectralLine], cells: Sequence[IntArray], xi: Sequence[FloatArray], order: int
) -> Tables:
    """Functions with coefficients local (l, n) at points: values (n,), and for order 1 gradients (n, d).

    cells and xi : where the points are along each axis, (n,). Points come last: sums then run along them.
    """
    values, slopes, n = local, list[FloatArray](), local.shape[1]
    for line, own in zip(lines, xi, strict=True):
        table, columns = line.local(own, order), (line.degree + 1, -1, n)
        slopes = [_summed(table[0], slope.reshape(columns)) for slope in slopes]
        values = values.reshape(columns)
        slopes += [_summed(table[1], values)] if order else []
        values = _summed(table[0], values)
    if order == 0:
        return (values[0],)
    gradients = np.empty((n, len(lines)))
    for k, (line, where) in enumerate(zip(lines, cells, strict=True)):
        np.divide(slopes[k][0], line.widths[where], out=gradients[:, k])
    return values[0], gradients


def _summed(table: FloatArray, values: FloatArray) -> FloatArray:
    """Sums over the local functions of one axis: table (q, n), values (q, k, n) -> (k, n)."""
    return np.asarray(np.einsum("qn,qkn->kn", table, values))
