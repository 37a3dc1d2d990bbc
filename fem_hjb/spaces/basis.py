"""What a finite-element basis in space is, and the registry of the elements there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, final

import numpy as np
import skfem
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import DIMENSION
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.support.checks import FloatArray, IntArray, real_array
from fem_hjb.support.errors import SpaceError
from fem_hjb.support.objects import Plain, brief, short_repr

Tables = tuple[FloatArray, ...]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Element:
    """A row of `ELEMENTS`: what an element is, where it lives, and the orders it converges with as the mesh is refined.

    cells : per kind of cell, the scikit-fem element that numbers its dofs (None: a tensor product of lines).
    smoothness : how many continuous derivatives its functions have.
    value_order, gradient_order : exponents of h in the L2 error of values and of gradients.
    """

    name: str
    cells: Mapping[str, Callable[[], Any] | None]
    degree: int
    smoothness: int
    value_order: int
    gradient_order: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cell it is defined on."""
        return tuple(self.cells)

    def kind_in(self, dim: int) -> str:
        """The kind of cell a box of this dimension is cut into by default."""
        for kind in self.kinds:
            if DIMENSION[kind] == dim:
                return kind
        known = ", ".join(repr(e.name) for e in ELEMENTS.values() if any(DIMENSION[k] == dim for k in e.kinds))
        advice = f"use one of {known}" if known else "meshes go up to dimension 3"
        raise SpaceError(f"element {self.name!r} is not defined in dimension {dim}; {advice}")


def _lagrange(name: str, **cells: Callable[[], Any]) -> Element:
    p = int(name[1:])
    return Element(name=name, cells=cells, degree=p, smoothness=0, value_order=p + 1, gradient_order=p)


def _tensor(name: str, degree: int, smoothness: int) -> Element:
    return Element(
        name=name,
        cells={"line": None, "quad": None, "hex": None},
        degree=degree,
        smoothness=smoothness,
        value_order=degree + 1,
        gradient_order=degree,
    )


ELEMENTS: Mapping[str, Element] = MappingProxyType(
    {
        element.name: element
        for element in (
            _lagrange("P1", line=skfem.ElementLineP1, tri=skfem.ElementTriP1, tet=skfem.ElementTetP1),
            _lagrange("P2", line=skfem.ElementLineP2, tri=skfem.ElementTriP2, tet=skfem.ElementTetP2),
            _lagrange("P3", line=lambda: skfem.ElementLinePp(3), tri=skfem.ElementTriP3),
            _lagrange("P4", line=lambda: skfem.ElementLinePp(4), tri=skfem.ElementTriP4),
            _lagrange("Q1", quad=skfem.ElementQuad1, hex=skfem.ElementHex1),
            _lagrange("Q2", quad=skfem.ElementQuad2, hex=skfem.ElementHex2),
            _tensor("hermite", 3, 1),
            _tensor("B2", 2, 1),
            _tensor("B3", 3, 2),
            _tensor("B4", 4, 3),
        )
    }
)


def element_named(name: str) -> Element:
    """The element of this name; SpaceError suggests close matches."""
    if isinstance(name, str) and name in ELEMENTS:
        return ELEMENTS[name]
    close = get_close_matches(str(name), list(ELEMENTS), n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise SpaceError(f"element must be one of {', '.join(map(repr, ELEMENTS))}, got {name!r}{hint}")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ReferenceFunctions:
    """Basis functions that are the same on all cells up to factors, at the points of a rule.

    phi (l, q), dphi (l, q, d) : reference basis functions and their derivatives in xi.
    scale : None or (nc, l); basis function i on cell c is scale[c, i] times reference function i.
    """

    phi: FloatArray
    dphi: FloatArray
    scale: FloatArray | None


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class CellRule:
    """One quadrature rule on all cells: int_cell g dx = sum_q weights[q] det[c, q] g(x[c, q]).

    xi (q, d), weights (q,) : points and weights on the reference cell.
    x (nc, q, d) : the points in space.
    det (nc, q) : |det DF|;  inverse (nc, q, d, d) : d xi_k / d x_l at [..., k, l]; q axis of length 1 on affine cells.
    functions : the `ReferenceFunctions` at the points, whose phi, dphi and scale are read from here too. None for
        B-splines, which differ from cell to cell: there phi, dphi and scale raise SpaceError, and `tabulate` serves.
    """

    xi: FloatArray
    weights: FloatArray
    x: FloatArray
    det: FloatArray
    inverse: FloatArray
    functions: ReferenceFunctions | None

    @property
    def phi(self) -> FloatArray:
        """(l, q)."""
        return self._shared().phi

    @property
    def dphi(self) -> FloatArray:
        """(l, q, d)."""
        return self._shared().dphi

    @property
    def scale(self) -> FloatArray | None:
        """None or (nc, l)."""
        return self._shared().scale

    def _shared(self) -> ReferenceFunctions:
        if self.functions is None:
            raise SpaceError(
                "B-splines differ from cell to cell, so a quadrature rule has no reference functions for them;"
                " tabulate the basis at the points of the rule, or use element='hermite'"
            )
        return self.functions


def box_rule(
    grids: Sequence[FloatArray], xi: FloatArray, weights: FloatArray, functions: ReferenceFunctions | None
) -> CellRule:
    """A rule on the unit cube carried to the cells between the points of one grid for each axis."""
    start = tensor_points([grid[:-1] for grid in grids])
    width = tensor_points([np.diff(grid) for grid in grids])
    return CellRule(
        xi=xi,
        weights=weights,
        x=start[:, None, :] + width[:, None, :] * xi,
        det=width.prod(axis=1)[:, None],
        inverse=(np.eye(len(grids)) / width[:, None, :])[:, None],
        functions=functions,
    )


class SpatialBasis(Plain, ABC):
    """A finite-element basis on a domain in R^d. Points are rows; a function is a vector of n_dofs coefficients.

    dim, n_dofs, n_cells, local_size l, cell_dofs (n_cells, l), degree, smoothness (how many derivatives are
    continuous), element, kind (of cell), box (bounding box), and nodes (n_nodes, d): the points where a function is
    sampled. Coefficients need not be values there: `interpolate` and `at_nodes` go back and forth. A row of cell_dofs
    may name a dof twice; its functions are then added.
    """

    dim: int
    n_dofs: int
    n_cells: int
    local_size: int
    cell_dofs: IntArray
    degree: int
    smoothness: int
    element: str
    kind: str
    box: Box
    nodes: FloatArray

    def __repr__(self) -> str:
        names = ("element", "dim", "kind", "n_cells", "n_dofs", "box")
        return short_repr(self, {name: brief(getattr(self, name)) for name in names})

    @abstractmethod
    def locate(self, x: FloatArray) -> tuple[IntArray, FloatArray]:
        """Cells (n,), -1 outside, and reference coordinates (n, d) of points x (n, d)."""

    @abstractmethod
    def tabulate(self, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        """The l basis functions of the given cells (n,) at reference coordinates xi (n, d), as physical derivatives.

        (values (n, l), gradients (n, l, d), Hessians (n, l, d, d))[:order + 1]; order 2 needs smoothness 1.
        """

    def gathered(self, rows: FloatArray, first: IntArray, count: int, cells: IntArray) -> FloatArray:
        """Coefficients of functions rows (k, n_dofs): for each point the `count` ones from first (n,) on, on its cell,
        (n, count, l)."""
        which = first[:, None] + np.arange(count)
        return np.asarray(rows[which[:, :, None], self.cell_dofs[cells][:, None, :]])

    def table_width(self, order: int) -> int:
        """How many numbers `contract` makes at once for each local function and point."""
        return int(self.dim**order)

    def contract(self, local: FloatArray, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        """Functions with coefficients local (n, l) on the given cells, at points: sums of what `tabulate` has."""
        return tuple(np.einsum("nl,nl...->n...", local, table) for table in self.tabulate(cells, xi, order))

    def at(self, coefficients: FloatArray, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        """One function with coefficients (n_dofs,) at points of the given cells, as `tabulate` has its parts."""
        return self.contract(coefficients[self.cell_dofs[cells]], cells, xi, order)

    def operator_rows(
        self,
        cells: IntArray,
        xi: FloatArray,
        value: FloatArray | float,
        gradient: FloatArray | None,
        hessian: FloatArray | None,
    ) -> FloatArray:
        """value phi + <gradient, grad phi> + Tr(hessian Hess phi) of the l functions at points, (n, l).

        value: a number or (n,); gradient (d,) or (n, d); hessian (d, d) or (n, d, d); None stands for zero.
        """
        tables = self.tabulate(cells, xi, 2 if hessian is not None else int(gradient is not None))
        rows = np.asarray(value)[..., None] * tables[0]
        if gradient is not None:
            rows = rows + np.einsum("nld,nd->nl", tables[1], np.broadcast_to(gradient, xi.shape))
        if hessian is not None:
            d = self.dim
            rows = rows + np.einsum("nlij,nij->nl", tables[2], np.broadcast_to(hessian, (len(xi), d, d)))
        return np.asarray(rows)

    @abstractmethod
    def interpolate(self, values: ArrayLike) -> FloatArray:
        """Coefficients (..., n_dofs) of a function given by its values (..., n_nodes) at the nodes.

        Lagrange elements: the values themselves. C1 cubics: those of the cubic spline through them. B-splines: the
        coefficients of the spline through them.
        """

    @abstractmethod
    def at_nodes(self, coefficients: ArrayLike) -> FloatArray:
        """Values (..., n_nodes) at the nodes of functions with coefficients (..., n_dofs)."""

    @abstractmethod
    def quadrature(self, degree: int) -> CellRule:
        """A rule on every cell, exact for polynomials of this degree on affine cells."""

    @abstractmethod
    def boundary_dofs(self) -> IntArray:
        """The coefficients that determine a function on the boundary (for Dirichlet conditions)."""

    def cell_bounds(self) -> tuple[FloatArray, FloatArray]:
        """The corners, each (n_cells, d), of boxes around the cells."""
        nodes = self.nodes[self.cell_dofs]
        return nodes.min(axis=1), nodes.max(axis=1)

    @abstractmethod
    def reflecting_dofs(self) -> IntArray:
        """The coefficients that vanish when the normal derivative does on a box: normal slopes; none if continuous."""

    @abstractmethod
    def _solve_mass(self, rule: CellRule, rhs: FloatArray) -> FloatArray:
        """Coefficients whose L2 products with the basis functions are `rhs`."""

    def project(self, function: Callable[[FloatArray], ArrayLike]) -> FloatArray:
        """Coefficients (n_dofs,) of the L2 projection of function: x (..., d) -> (...)."""
        rule = self.quadrature(2 * self.degree + 2)
        values = np.asarray(function(rule.x), dtype=np.float64)
        if values.shape != rule.x.shape[:-1]:
            raise SpaceError(
                f"the function to project returned shape {values.shape} for x of shape {rule.x.shape},"
                f" expected {rule.x.shape[:-1]}"
            )
        return self._solve_mass(rule, self._moments(rule, values * rule.det * rule.weights))

    def _moments(self, rule: CellRule, weighted: FloatArray) -> FloatArray:
        """The sums (n_dofs,) over all points of weighted (n_cells, q) times the basis functions (those not scaled)."""
        local = weighted @ rule.phi.T
        rhs = np.bincount(self.cell_dofs.ravel(), weights=local.ravel(), minlength=self.n_dofs)
        return np.asarray(rhs, dtype=np.float64)

    def _check_order(self, order: int) -> None:
        if not isinstance(order, int | np.integer) or order not in (0, 1, 2):
            raise SpaceError(f"order must be 0 (values), 1 (gradients) or 2 (Hessians), got {order!r}")
        if order == 2 and self.smoothness < 1:
            raise SpaceError(
                f"element {self.element!r} is only continuous: its second derivatives miss the jumps of the gradient"
                " between cells; use element='hermite' where Hessians are needed"
            )


def frozen(array: ArrayLike, dtype: type = np.float64) -> Any:
    copy: Any = np.array(array, dtype=dtype, order="C")
    copy.setflags(write=False)
    return copy


def nodal_values(values: ArrayLike, n_nodes: int) -> FloatArray:
    array = real_array(values, "values at the nodes", SpaceError).copy()
    if array.ndim == 0 or array.shape[-1] != n_nodes:
        raise SpaceError(f"values at the nodes must have shape (..., {n_nodes}), got {array.shape}")
    return array
