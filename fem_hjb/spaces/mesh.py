"""Continuous Lagrange elements on meshes of lines, triangles, quadrilaterals, tetrahedra and hexahedra."""

from functools import cached_property, reduce
from itertools import permutations
from typing import Any, final

import numpy as np
import scipy.sparse as sp
import skfem
from numpy.typing import ArrayLike
from scipy.sparse.linalg import cg
from scipy.special import roots_jacobi
from skfem.quadrature import get_quadrature

from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import (
    DIMENSION,
    KINDS,
    check_curved,
    locator_of,
    mesh_kind,
    nodes_of,
    vertices_of,
)
from fem_hjb.problems.curved import control_points
from fem_hjb.problems.laws import tensor_rule
from fem_hjb.problems.locate import CellLocator
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.spaces.basis import (
    ELEMENTS,
    CellRule,
    Element,
    ReferenceFunctions,
    SpatialBasis,
    Tables,
    element_named,
    frozen,
    nodal_values,
)
from fem_hjb.spaces.line import unit_gauss
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError, DomainError, SpaceError

_AFFINE_TOLERANCE = 1e-12
_CELL_CHUNK = 1 << 22  # doubles held at once while local matrices are summed
# Degree to the label of a tabulated rule of scikit-fem of that degree, with positive weights and no point on a face
# (which would belong to two cells). Its rules for tetrahedra labelled 5 and more are exact to one degree less.
_SIMPLEX_RULES = {
    "tri": {degree: degree + (degree in (3, 7)) for degree in range(20)},
    "tet": {0: 1, 1: 1, 2: 2, 6: 7},
}
# Degree 5 on tetrahedra with 14 points (Walkington 2000): a barycentric coordinate and the weight of each orbit.
_WALKINGTON = (
    (0.3108859192633006, 0.018781320953002643),
    (0.09273525031089123, 0.012248840519393659),
    (0.04550370412564965, 0.007091003462846911),
)
_VERTEX_ELEMENT = {"line": "P1", "tri": "P1", "tet": "P1", "quad": "Q1", "hex": "Q1"}


def _exponents(kind: str, degree: int) -> IntArray:
    """Exponents (l, d) of the monomials that span the reference element."""
    dim = DIMENSION[kind]
    grid = np.indices((degree + 1,) * dim).reshape(dim, -1).T
    return grid[grid.sum(axis=1) <= degree] if kind in ("tri", "tet") else grid


def _reference_rule(kind: str, degree: int) -> tuple[FloatArray, FloatArray]:
    """Points (q, d) inside the reference cell and positive weights (q,), exact for polynomials of this degree."""
    dim = DIMENSION[kind]
    points, weights = tensor_rule(*unit_gauss(degree), dim)
    if kind not in _SIMPLEX_RULES:
        return points, weights
    label = _SIMPLEX_RULES[kind].get(degree)
    if label is not None:
        table, weights = get_quadrature(KINDS[kind].elem, label)
        return np.ascontiguousarray(table.T), np.asarray(weights)
    if kind == "tet" and degree in (4, 5):
        (a, wa), (b, wb), (c, wc) = _WALKINGTON
        orbits = [{*permutations((a, a, a, 1 - 3 * a))}, {*permutations((b, b, b, 1 - 3 * b))}]
        orbits.append({*permutations((c, c, 0.5 - c, 0.5 - c))})
        barycentric = np.array([point for orbit in orbits for point in sorted(orbit)])
        return barycentric[:, :3].copy(), np.repeat([wa, wb, wc], [4, 4, 6])
    # The cube collapsed onto the simplex: xi_k = u_k prod_{j<k} (1 - u_j), Gauss-Jacobi in each u_k.
    lines = [roots_jacobi(degree // 2 + 1, dim - 1 - k, 0) for k in range(dim)]
    u = tensor_points([(1 + line[0]) / 2 for line in lines])
    scales = tensor_points([line[1] / 2 ** (dim - k) for k, line in enumerate(lines)])
    rest = np.cumprod(1 - u, axis=1)[:, :-1]
    return u * np.column_stack([np.ones(len(u)), rest]), np.asarray(scales.prod(axis=1))


@final
class _Reference:
    """Lagrange functions on a reference cell, as combinations of monomials: nodes (l, d), kind, degree."""

    def __init__(self, nodes: FloatArray, kind: str, degree: int) -> None:
        self.nodes = nodes
        self._exponents = _exponents(kind, degree)
        self._inverse = np.linalg.inv(self._monomials(self._powers(nodes), self._exponents))

    def _powers(self, xi: FloatArray) -> FloatArray:
        """xi^k, shape (k, d, n)."""
        powers = np.ones((int(self._exponents.max()) + 1, xi.shape[1], xi.shape[0]))
        for k in range(1, len(powers)):
            powers[k] = powers[k - 1] * xi.T
        return powers

    @staticmethod
    def _monomials(powers: FloatArray, exponents: IntArray) -> FloatArray:
        """Monomials (n, l), stored column by column."""
        return np.asarray(reduce(np.multiply, [powers[e, axis] for axis, e in enumerate(exponents.T)]).T)

    def __call__(self, xi: FloatArray, order: int) -> tuple[FloatArray, list[FloatArray]]:
        """Values (n, l), and for order 1 the d derivatives (n, l) in xi."""
        powers, exponents = self._powers(xi), self._exponents
        derivatives = []
        for axis in range(exponents.shape[1] if order else 0):
            lowered = exponents.copy()
            lowered[:, axis] = np.maximum(lowered[:, axis] - 1, 0)
            derivatives.append(self._monomials(powers, lowered) @ (exponents[:, axis, None] * self._inverse))
        return self._monomials(powers, exponents) @ self._inverse, derivatives


def _reference_element(kind: str, element: Element) -> tuple[Any, _Reference]:
    """The scikit-fem element that numbers the dofs, and its Lagrange functions."""
    factory = element.cells[kind]
    if factory is None:
        raise SpaceError(f"element {element.name!r} does not live on a mesh; give the grids of a box")
    numbering = factory()
    nodes = np.array(numbering.doflocs, dtype=np.float64)
    # Its line elements of degree >= 3 are hierarchical: only their dof numbers are used, on equispaced nodes.
    interior = np.isnan(nodes[:, 0])
    nodes[interior, 0] = np.arange(1, interior.sum() + 1) / (interior.sum() + 1)
    return numbering, _Reference(nodes, kind, element.degree)


@final
class MeshBasis(SpatialBasis):
    """Continuous Lagrange elements P1..P4, Q1, Q2 on a scikit-fem mesh, affine cells or not, or of second order.

    The coefficients are the values at `nodes`. Further: vertices (nv, d), cell_vertices (n_cells, k) and
    vertex_functions (l, k), the (multi-)linear functions of the k vertices of a cell at its l nodes.

    On curved triangles and tetrahedra (MeshTri2, MeshTet2) functions are the same in reference coordinates, and the map
    from these is of degree 2 whatever the degree of the element (isoparametric for P2).
    """

    def __init__(self, mesh: Any, element: str) -> None:
        kind, row = mesh_kind(mesh, curved=True), element_named(element)
        if kind not in row.kinds or row.smoothness:
            allowed = ", ".join(repr(e.name) for e in ELEMENTS.values() if kind in e.kinds and not e.smoothness)
            raise SpaceError(
                f"element {row.name!r} is not defined on a mesh of {kind} cells; use one of {allowed}"
                + (", or give cells= and box= for a C1 class on a box" if row.smoothness else "")
            )
        second = nodes_of(mesh)
        if second is not None:
            check_curved(second, kind, "the mesh")
        loose = vertices_of(mesh).shape[1] - np.unique(mesh.t).size
        if loose:
            raise SpaceError(
                f"{loose} vertices of the mesh belong to no cell; remove them with mesh.remove_unused_nodes()"
            )
        if kind == "tri" and (np.diff(mesh.t, axis=0) < 0).any():
            mesh = type(mesh)(mesh.p, np.sort(mesh.t, axis=0))  # edge dofs are ordered from low to high vertex
            second = nodes_of(mesh)
        numbering, self._functions = _reference_element(kind, row)
        _, corners = _reference_element(kind, ELEMENTS[_VERTEX_ELEMENT[kind]])
        _, self._geometry = (None, corners) if second is None else _reference_element(kind, ELEMENTS["P2"])
        self._dofs = dofs = skfem.Dofs(mesh, numbering)
        self.mesh = mesh
        self.kind, self.element, self.degree, self.smoothness = kind, row.name, row.degree, 0
        self.dim = DIMENSION[kind]
        self.vertices = frozen(vertices_of(mesh).T)
        self.cell_vertices = frozen(mesh.t.T, np.int64)
        self.cell_dofs = frozen(dofs.element_dofs.T, np.int64)
        self.n_cells, self.local_size = self.cell_dofs.shape
        self.n_dofs = int(dofs.N)
        self.vertex_functions = frozen(corners(self._functions.nodes, 0)[0])
        self._points = self.vertices[self.cell_vertices] if second is None else second.swapaxes(0, 1)
        self._hull = self._points if second is None else control_points(second, kind).swapaxes(0, 1)
        nodes = np.empty((self.n_dofs, self.dim))
        nodes[self.cell_dofs] = self._place(self._functions.nodes)
        self.nodes = frozen(nodes)
        self.box = Box(self._hull.min(axis=(0, 1)), self._hull.max(axis=(0, 1)))

    def _place(self, xi: FloatArray) -> FloatArray:
        """Points (n_cells, q, d) in space of reference points (q, d)."""
        return np.asarray(np.einsum("qk,ckd->cqd", self._geometry(xi, 0)[0], self._points))

    def _jacobian(self, xi: FloatArray) -> FloatArray:
        """dx_l / dxi_k at reference points (q, d) of every cell, (n_cells, q, l, k)."""
        derivatives = np.stack(self._geometry(xi, 1)[1], axis=-1)
        return np.asarray(np.einsum("qkj,ckd->cqdj", derivatives, self._points, optimize=True))

    @cached_property
    def affine(self) -> bool:
        """Whether every cell is an affine image of the reference cell, as simplices with straight edges are."""
        if len(self._geometry.nodes) == self.dim + 1:
            return True
        corners = self._jacobian(self._geometry.nodes)
        return bool(np.abs(corners - corners[:, :1]).max() <= _AFFINE_TOLERANCE * np.abs(corners).max())

    @cached_property
    def _inverse(self) -> FloatArray:
        """d xi / d x of affine cells, (n_cells, d, d)."""
        return np.asarray(np.linalg.inv(self._jacobian(self._geometry.nodes[:1])[:, 0]))

    @cached_property
    def _locator(self) -> CellLocator:
        return locator_of(self.mesh)

    def locate(self, x: FloatArray) -> tuple[IntArray, FloatArray]:
        if len(x) == 0:
            return np.empty(0, dtype=np.int64), np.empty(x.shape)
        cells, xi = self._locator(x)
        return cells, xi

    def tabulate(self, cells: IntArray, xi: FloatArray, order: int = 0) -> Tables:
        self._check_order(order)
        values, derivatives = self._functions(xi, order)
        if order == 0:
            return (values,)
        if self.affine:
            inverse = self._inverse[cells]
        else:
            slopes = np.stack(self._geometry(xi, 1)[1], axis=-1)
            inverse = np.linalg.inv(np.einsum("nkj,nkd->ndj", slopes, self._points[cells]))
        gradients = np.zeros((*values.shape, self.dim))
        for axis, derivative in enumerate(derivatives):
            gradients += derivative[:, :, None] * inverse[:, axis, None, :]
        return values, gradients

    def interpolate(self, values: ArrayLike) -> FloatArray:
        return nodal_values(values, self.n_dofs)

    def at_nodes(self, coefficients: ArrayLike) -> FloatArray:
        return np.asarray(coefficients, dtype=np.float64)

    def quadrature(self, degree: int) -> CellRule:
        xi, weights = _reference_rule(self.kind, degree)
        jacobian = self._jacobian(self._geometry.nodes[:1] if self.affine else xi)
        values, derivatives = self._functions(xi, 1)
        return CellRule(
            xi=xi,
            weights=weights,
            x=self._place(xi),
            det=np.abs(np.linalg.det(jacobian)),
            inverse=np.asarray(np.linalg.inv(jacobian), dtype=np.float64),
            functions=ReferenceFunctions(
                phi=np.ascontiguousarray(values.T),
                dphi=np.ascontiguousarray(np.stack(derivatives, axis=-1).swapaxes(0, 1)),
                scale=None,
            ),
        )

    def boundary_dofs(self) -> IntArray:
        faces = self._dofs.get_facet_dofs(self.mesh.boundary_facets())
        return np.asarray(faces.flatten(), dtype=np.int64)

    def facet_dofs(self, facets: IntArray) -> IntArray:
        """The dofs on facets by their vertices (k, nf), in any order; DomainError for one that is not there."""
        own = np.sort(np.asarray(self.mesh.facets), axis=0).T
        wanted = np.sort(facets, axis=0).T
        _, number = np.unique(np.concatenate([own, wanted]), axis=0, return_inverse=True)
        place = np.full(number.max() + 1, -1)
        place[number[: len(own)]] = np.arange(len(own))
        found = place[number[len(own) :]]
        if (found < 0).any():
            raise DomainError(f"{int((found < 0).sum())} of {len(found)} facets are none of the mesh")
        return np.asarray(self._dofs.get_facet_dofs(found).flatten(), dtype=np.int64)

    def cell_bounds(self) -> tuple[FloatArray, FloatArray]:
        return self._hull.min(axis=1), self._hull.max(axis=1)

    def reflecting_dofs(self) -> IntArray:
        return np.empty(0, dtype=np.int64)

    def _solve_mass(self, rule: CellRule, rhs: FloatArray) -> FloatArray:
        l = self.local_size
        products = (rule.phi[:, None, :] * rule.phi[None, :, :]).reshape(l * l, -1)
        mass = sp.csr_matrix((self.n_dofs, self.n_dofs))
        chunk = max(1, _CELL_CHUNK // (l * l))
        for start in range(0, self.n_cells, chunk):
            dofs = self.cell_dofs[start : start + chunk]
            local = (rule.weights * rule.det[start : start + chunk]) @ products.T
            rows = np.repeat(dofs, l, axis=1).ravel()
            columns = np.tile(dofs, (1, l)).ravel()
            mass = mass + sp.csr_matrix((local.ravel(), (rows, columns)), shape=mass.shape)
        solution, failed = cg(mass, rhs, rtol=1e-13, atol=0.0, maxiter=1000, M=sp.diags(1.0 / mass.diagonal()))
        if failed:
            raise ConvergenceError("the L2 projection did not converge; check the mesh for degenerate cells")
        return np.asarray(solution)
