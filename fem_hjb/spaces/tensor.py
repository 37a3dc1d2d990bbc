"""Smooth elements on boxes, as tensor products in local coordinates: C1 cubics and B-splines."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.linalg import splu

from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import mesh_kind
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
from fem_hjb.support.checks import FloatArray, IntArray, flag, one_of
from fem_hjb.support.errors import SpaceError
from fem_hjb.support.memory import require_room

_SPLINES = tuple(name for name, row in ELEMENTS.items() if row.smoothness and name != "hermite")


def _ravel(indices: Sequence[IntArray], sizes: Sequence[int]) -> IntArray:
    """Row-wise tensor index of per-axis indices (n_k, l_k): (prod n_k, prod l_k), the first axis slowest."""
    result = np.zeros((1, 1), dtype=np.int64)
    for index, size in zip(indices, sizes, strict=True):
        product = result[:, None, :, None] * size + index[None, :, None, :]
        result = product.reshape(result.shape[0] * index.shape[0], -1)
    return result


class TensorBasis(SpatialBasis):
    """Tensor products of one `LineBasis` per axis, 1 to 3 of them.

    Cells, dofs, local functions and nodes are numbered as tensor products, the first axis slowest, so that coefficients
    reshape to (n_1, ..., n_d) with n_k dofs on axis k.

    Attributes besides those of a `SpatialBasis`: axes, the lines.
    """

    axes: tuple[LineBasis, ...]

    def _set(self, element: str, axes: Sequence[LineBasis]) -> None:
        row = ELEMENTS[element]
        self.axes, self.dim = tuple(axes), len(axes)
        self.element, self.degree, self.smoothness = row.name, row.degree, row.smoothness
        self.kind = row.kind_in(self.dim)
        self._shape = tuple(axis.n_dofs for axis in self.axes)
        table = math.prod(axis.n_cells for axis in self.axes), math.prod(axis.local_size for axis in self.axes)
        require_room(table, "the dofs of the cells:", SpaceError, "; take fewer cells")
        self.cell_dofs = frozen(_ravel([axis.cell_dofs for axis in self.axes], self._shape), np.int64)
        self.n_cells, self.local_size = self.cell_dofs.shape
        self.n_dofs = int(np.prod(self._shape))
        self.nodes = frozen(tensor_points([axis.nodes for axis in self.axes]))
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

    def table_width(self, order: int) -> int:
        return order + 1

    def contract(self, local: FloatArray, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        """Axis by axis, which never makes the table of all local functions. Points come last: sums run along them."""
        self._check_order(order)
        n, d = xi.shape
        index = np.unravel_index(cells, [axis.n_cells for axis in self.axes])
        # by how often each of the axes so far is differentiated
        parts: dict[tuple[int, ...], FloatArray] = {(): np.ascontiguousarray(local.T)}
        for k, (axis, own) in enumerate(zip(self.axes, index, strict=True)):
            table = np.ascontiguousarray(axis.tabulate(own, xi[:, k], order).transpose(1, 2, 0))
            parts = {
                (*powers, p): np.einsum(
                    "qn,qkn->kn", table[p], part.reshape(axis.local_size, len(part) // axis.local_size, n)
                )
                for powers, part in parts.items()
                for p in range(order + 1 - sum(powers))
            }
        sums = [np.empty((n, *[d] * k)) for k in range(order + 1)]
        for places in (product for k in range(order + 1) for product in np.ndindex(*[d] * k)):
            sums[len(places)][:, *places] = parts[tuple(places.count(k) for k in range(d))][0]
        return tuple(sums)

    def interpolate(self, values: ArrayLike) -> FloatArray:
        given = nodal_values(values, len(self.nodes))
        array = given.reshape(-1, *[len(axis.nodes) for axis in self.axes])
        for k, axis in enumerate(self.axes, start=1):
            array = np.moveaxis(axis.interpolate(np.moveaxis(array, k, 0)), 0, k)
        return np.ascontiguousarray(array).reshape(*given.shape[:-1], self.n_dofs)

    def at_nodes(self, coefficients: ArrayLike) -> FloatArray:
        given = np.asarray(coefficients, dtype=np.float64)
        array = given.reshape(-1, *self._shape)
        for k, axis in enumerate(self.axes, start=1):
            array = np.moveaxis(axis.at_nodes(np.moveaxis(array, k, 0)), 0, k)
        return np.ascontiguousarray(array).reshape(*given.shape[:-1], len(self.nodes))

    def quadrature(self, degree: int) -> CellRule:
        points, rule_weights = unit_gauss(degree)
        xi, weights = tensor_rule(points, rule_weights, self.dim)
        return box_rule([axis.points for axis in self.axes], xi, weights, self._reference_functions(xi))

    @abstractmethod
    def _reference_functions(self, xi: FloatArray) -> ReferenceFunctions | None:
        """Those that all cells share, at reference coordinates (q, d); None if there are none."""

    def _on_faces(self, positions: Sequence[int]) -> IntArray:
        """Dofs that in some axis have one of these positions; negative ones count from the end."""
        index = np.unravel_index(np.arange(self.n_dofs), self._shape)
        chosen = [np.isin(i, np.array(positions) % size) for i, size in zip(index, self._shape, strict=True)]
        return np.asarray(np.flatnonzero(np.logical_or.reduce(chosen)), dtype=np.int64)

    def _moments(self, rule: CellRule, weighted: FloatArray) -> FloatArray:
        """Axis by axis: the points of the rule are products of points on the lines."""
        cells = [axis.n_cells for axis in self.axes]
        q = round(len(rule.weights) ** (1 / self.dim))
        order = np.arange(2 * self.dim).reshape(2, -1).T.ravel()  # cells next to points, axis by axis
        array = weighted.reshape(*cells, *[q] * self.dim).transpose(order)
        array = array.reshape([n * q for n in cells])
        for k, axis in enumerate(self.axes):
            points = axis.points[:-1, None] + axis.widths[:, None] * rule.xi[:q, -1]
            moved = np.moveaxis(array, k, 0)
            summed = axis.design_matrix(points.ravel()).T @ moved.reshape(len(moved), -1)
            array = np.moveaxis(summed.reshape(-1, *moved.shape[1:]), 0, k)
        return np.ascontiguousarray(array).ravel()

    def _solve_mass(self, rule: CellRule, rhs: FloatArray) -> FloatArray:
        return solve_axes([splu(axis.mass()).solve for axis in self.axes], rhs.reshape(self._shape)).ravel()


@final
class HermiteBasis(TensorBasis):
    """C1 cubics on a box: tensor products of `LineBasis(grid, "hermite")`, one strictly increasing grid per axis.

    A coefficient is the value, or a derivative of order at most one in each axis times the local mesh width per
    derivative.
    """

    def __init__(self, grids: Sequence[ArrayLike]) -> None:
        _check_axes(grids, "C1 cubics")
        self._set("hermite", [LineBasis(grid, "hermite") for grid in grids])

    def _reference_functions(self, xi: FloatArray) -> ReferenceFunctions:
        scale = np.ones((1, 1))
        for axis in self.axes:
            factor = np.ones((axis.n_cells, 4)) if axis.scale is None else axis.scale
            scale = (scale[:, None, :, None] * factor[None, :, None, :]).reshape(len(scale) * len(factor), -1)
        flat = [axis.reference(xi[:, k]) for k, axis in enumerate(self.axes)]
        slope = [axis.reference(xi[:, k], 1) for k, axis in enumerate(self.axes)]
        dphi = [row_products([*flat[:k], slope[k], *flat[k + 1 :]]) for k in range(self.dim)]
        return ReferenceFunctions(
            phi=np.ascontiguousarray(row_products(flat).T),
            dphi=np.ascontiguousarray(np.stack(dphi, axis=-1).swapaxes(0, 1)),
            scale=scale,
        )

    def boundary_dofs(self) -> IntArray:
        return self._on_faces((0, -2))

    def reflecting_dofs(self) -> IntArray:
        return self._on_faces((1, -1))


@final
class SplineBasis(TensorBasis):
    """B-splines of degree p, C^{p-1}, on a box: tensor products of `LineBasis(grid, "Bp")`, one grid per axis.

    They are non-negative and sum to 1: a function lies between its lowest and its highest coefficient. Nodes are
    products of Greville points; coefficients are not the values there (`at_nodes` gives these).

    element : "B2", "B3" or "B4".
    flat : the splines whose normal slope vanishes on all faces, as reflection asks: they have two dofs less per axis.
        There no coefficient is a slope that could be set to 0, as for C1 cubics, so the class is the constraint.
        `Space` takes it where the problem's domain reflects at all faces.

    Raises SpaceError for grids that are not increasing, for another element, and for `reflecting_dofs` unless flat.
    """

    def __init__(self, grids: Sequence[ArrayLike], element: str, *, flat: bool = False) -> None:
        one_of(element, "element of a SplineBasis", _SPLINES, SpaceError)
        _check_axes(grids, "B-splines")
        self.flat = flag(flat, "flat", SpaceError)
        self._set(element, [LineBasis(grid, element, flat=flat) for grid in grids])

    def _reference_functions(self, xi: FloatArray) -> None:
        return None

    def boundary_dofs(self) -> IntArray:
        return self._on_faces((0, -1))

    def reflecting_dofs(self) -> IntArray:
        if not self.flat:
            raise SpaceError(
                f"no coefficient of {self.element!r} is a slope at a face, so reflection cannot be imposed on this"
                " basis: make it with SplineBasis(grids, element, flat=True), or let Space make it from the problem"
            )
        return np.empty(0, dtype=np.int64)


def _check_axes(grids: Sequence[ArrayLike], functions: str) -> None:
    if not isinstance(grids, Sequence) or isinstance(grids, str | bytes):
        raise SpaceError(f"a box of {functions} needs a list of one grid per axis, got {type(grids).__name__}")
    if not 1 <= len(grids) <= 3:
        raise SpaceError(f"a box of {functions} has 1, 2 or 3 axes, got {len(grids)} grids")


def tensor_grids(mesh: Any, element: str) -> list[FloatArray]:
    """The per-axis grids of a line, quad or hex mesh that is a tensor product, else SpaceError."""
    kind = mesh_kind(mesh)
    if kind in ELEMENTS[element].kinds:
        grids = [np.unique(row) for row in mesh.p]
        cells = int(np.prod([grid.size - 1 for grid in grids]))
        if mesh.p.shape[1] == np.prod([grid.size for grid in grids]) and mesh.t.shape[1] == cells:
            return grids
    raise SpaceError(
        f"element {element!r} is smooth on boxes only, got a mesh of {mesh.t.shape[1]} {kind} cells that is no tensor"
        " product of grids; give cells= and box=, or use an element such as 'P2' or 'Q2' on this mesh"
    )
