"""C1 cubic elements on boxes, as tensor products in local coordinates."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline
from scipy.sparse.linalg import splu

from fem_hjb._checks import FloatArray, IntArray, SpaceError
from fem_hjb.domain import mesh_kind
from fem_hjb.elements import ELEMENTS, CellRule, SpatialBasis, Tables, frozen, nodal_values
from fem_hjb.laws import Box, tensor_rule
from fem_hjb.line_basis import LineBasis, row_products, unit_gauss

_END_POINTS = 6


def _ravel(indices: Sequence[IntArray], sizes: Sequence[int]) -> IntArray:
    """Row-wise tensor index of per-axis indices (n_k, l_k): (prod n_k, prod l_k), the first axis slowest."""
    result = np.zeros((1, 1), dtype=np.int64)
    for index, size in zip(indices, sizes, strict=True):
        product = result[:, None, :, None] * size + index[None, :, None, :]
        result = product.reshape(result.shape[0] * index.shape[0], -1)
    return result


def _spline_slopes(grid: FloatArray, values: FloatArray, axis: int) -> FloatArray:
    """Slopes at the grid points of the cubic spline through values given along an axis of an array.

    Its end slopes are those of the polynomials through the first and the last six points: their error is of higher
    order than the spline's, so that the ends are as accurate as the middle.
    """
    rows = np.moveaxis(values, axis, 0)
    used = min(_END_POINTS, grid.size)
    ends = []
    for sign, stencil in ((1.0, slice(None, used)), (-1.0, slice(-1, -used - 1, -1))):
        offsets = sign * (grid[stencil] - grid[stencil][0])
        reach = offsets[-1]
        # row 1 of the inverse Vandermonde matrix takes values to the linear coefficient
        weights = np.linalg.inv(np.vander(offsets / reach, increasing=True))[1] * sign / reach
        ends.append((1, np.tensordot(weights, rows[stencil], axes=1)))
    slopes = CubicSpline(grid, rows, bc_type=tuple(ends))(grid, 1)
    return np.asarray(np.moveaxis(slopes, 0, axis))


@final
class HermiteBasis(SpatialBasis):
    """C1 cubics on a box: tensor products of `LineBasis(grid, "hermite")`, one strictly increasing grid per axis.

    Cells, dofs and local functions are numbered as tensor products, the first axis slowest, so that coefficients
    reshape to (2 (m_1 + 1), ..., 2 (m_d + 1)). A coefficient is the value, or a derivative of order at most one in
    each axis times the local mesh width per derivative.
    """

    def __init__(self, grids: Sequence[ArrayLike]) -> None:
        if not 1 <= len(grids) <= 3:
            raise SpaceError(f"a box of C1 cubics has 1, 2 or 3 axes, got {len(grids)} grids")
        self.axes = tuple(LineBasis(grid, "hermite") for grid in grids)
        self.dim = len(self.axes)
        self.element, self.degree, self.smoothness = "hermite", 3, 1
        self.kind = ELEMENTS["hermite"].kind_in(self.dim)
        self._shape = tuple(axis.n_dofs for axis in self.axes)
        self.cell_dofs = frozen(_ravel([axis.cell_dofs for axis in self.axes], self._shape), np.int64)
        self.n_cells, self.local_size = self.cell_dofs.shape
        self.n_dofs = int(np.prod(self._shape))
        values = [2 * np.arange(axis.n_cells + 1)[:, None] for axis in self.axes]
        self.node_dofs = frozen(_ravel(values, self._shape)[:, 0], np.int64)
        self.nodes = frozen(
            np.stack(np.meshgrid(*[a.points for a in self.axes], indexing="ij"), -1).reshape(-1, self.dim)
        )
        bounds = np.array([axis.bounds for axis in self.axes])
        self.box = Box(bounds[:, 0], bounds[:, 1])

    def locate(self, x: FloatArray) -> tuple[IntArray, FloatArray]:
        cells = np.zeros(len(x), dtype=np.int64)
        inside = np.ones(len(x), dtype=np.bool_)
        xi = np.empty(x.shape)
        for k, axis in enumerate(self.axes):
            index, xi[:, k] = axis.locate(x[:, k])
            inside &= index >= 0
            cells = cells * axis.n_cells + index
        return np.where(inside, cells, -1), xi

    def tabulate(self, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        self._check_order(order)
        index = np.unravel_index(cells, [axis.n_cells for axis in self.axes])
        lines = [axis.tabulate(c, xi[:, k], order) for k, (axis, c) in enumerate(zip(self.axes, index, strict=True))]
        unit = np.eye(self.dim, dtype=np.int64)

        def derivative(powers: IntArray) -> FloatArray:
            return row_products([line[:, p] for line, p in zip(lines, powers, strict=True)])

        tables: list[FloatArray] = [derivative(0 * unit[0])]
        if order >= 1:
            tables.append(np.stack([derivative(e) for e in unit], axis=-1))
        if order == 2:
            hessians = np.empty((len(cells), self.local_size, self.dim, self.dim))
            for i, j in zip(*np.triu_indices(self.dim), strict=True):
                hessians[..., i, j] = hessians[..., j, i] = derivative(unit[i] + unit[j])
            tables.append(hessians)
        return tuple(tables)

    def interpolate(self, values: ArrayLike) -> FloatArray:
        given = nodal_values(values, len(self.nodes))
        batch = given.shape[:-1]
        array = given.reshape(*batch, *[axis.n_cells + 1 for axis in self.axes])
        for k, axis in enumerate(self.axes):
            at = len(batch) + k
            slopes = _spline_slopes(axis.points, array, at)
            scaled = slopes * axis.node_widths.reshape(-1, *[1] * (array.ndim - at - 1))
            array = np.stack([array, scaled], axis=at + 1).reshape(*array.shape[:at], -1, *array.shape[at + 1 :])
        return np.asarray(array.reshape(*batch, self.n_dofs))

    def quadrature(self, degree: int) -> CellRule:
        points, rule_weights = unit_gauss(degree)
        xi, weights = tensor_rule(points, rule_weights, self.dim)
        starts = [axis.points[:-1] for axis in self.axes]
        widths = [axis.widths for axis in self.axes]
        start = np.stack([g.ravel() for g in np.meshgrid(*starts, indexing="ij")], axis=-1)
        width = np.stack([g.ravel() for g in np.meshgrid(*widths, indexing="ij")], axis=-1)
        scale = np.ones((1, 1))
        for axis in self.axes:
            factor = np.ones((axis.n_cells, 4)) if axis.scale is None else axis.scale
            scale = (scale[:, None, :, None] * factor[None, :, None, :]).reshape(len(scale) * len(factor), -1)
        flat = [axis.reference(xi[:, k]) for k, axis in enumerate(self.axes)]
        slope = [axis.reference(xi[:, k], 1) for k, axis in enumerate(self.axes)]
        dphi = [row_products([*flat[:k], slope[k], *flat[k + 1 :]]) for k in range(self.dim)]
        return CellRule(
            xi=xi,
            weights=weights,
            x=start[:, None, :] + width[:, None, :] * xi,
            det=width.prod(axis=1)[:, None],
            inverse=(np.eye(self.dim) / width[:, None, :])[:, None],
            phi=np.ascontiguousarray(row_products(flat).T),
            dphi=np.ascontiguousarray(np.stack(dphi, axis=-1).swapaxes(0, 1)),
            scale=scale,
        )

    def _on_faces(self, kind: int) -> IntArray:
        """Dofs that in some axis are the value (0) or the slope (1) at an end."""
        index = np.unravel_index(np.arange(self.n_dofs), self._shape)
        chosen = [(i == kind) | (i == size - 2 + kind) for i, size in zip(index, self._shape, strict=True)]
        return np.asarray(np.flatnonzero(np.logical_or.reduce(chosen)), dtype=np.int64)

    def boundary_dofs(self) -> IntArray:
        return self._on_faces(0)

    def reflecting_dofs(self) -> IntArray:
        return self._on_faces(1)

    def _solve_mass(self, rule: CellRule, rhs: FloatArray) -> FloatArray:
        array = rhs.reshape(self._shape)
        for k, axis in enumerate(self.axes):
            moved = np.moveaxis(array, k, 0)
            solved = splu(axis.mass()).solve(np.ascontiguousarray(moved.reshape(len(moved), -1)))
            array = np.moveaxis(solved.reshape(moved.shape), 0, k)
        return np.ascontiguousarray(array).ravel()


def tensor_grids(mesh: Any) -> list[FloatArray]:
    """The per-axis grids of a line, quad or hex mesh that is a tensor product, else SpaceError."""
    kind = mesh_kind(mesh)
    if kind in ELEMENTS["hermite"].kinds:
        grids = [np.unique(row) for row in mesh.p]
        cells = int(np.prod([grid.size - 1 for grid in grids]))
        if mesh.p.shape[1] == np.prod([grid.size for grid in grids]) and mesh.t.shape[1] == cells:
            return grids
    raise SpaceError(
        f"element 'hermite' is C1 on boxes only, got a mesh of {mesh.t.shape[1]} {kind} cells that is no tensor"
        " product of grids; give cells= and box=, or use an element such as 'P2' or 'Q2' on this mesh"
    )
