r"""Rows that hold values, slopes and curvatures everywhere: Bernstein coefficients, linear in those of a class.

On every cell f (or its derivative) is a polynomial, which lies in the convex hull of its Bernstein coefficients.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import product
from math import factorial

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import comb

from fem_hjb.learning.linear_set import NEGLIGIBLE, is_identity
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import SpaceError


def _tensor_bernstein(degrees: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Domain points (n, d) in the unit cube, and the matrix (n, n) from values there to Bernstein coefficients."""
    points: list[FloatArray] = []
    inverse: FloatArray = np.ones((1, 1))
    for p in degrees:
        x = np.arange(p + 1) / p if p else np.array([0.5])
        k = np.arange(p + 1)
        values = comb(p, k) * x[:, None] ** k * (1 - x[:, None]) ** (p - k)
        inverse = np.asarray(np.kron(inverse, np.linalg.inv(values)), dtype=np.float64)
        points.append(x)
    grid = np.stack([g.ravel() for g in np.meshgrid(*points, indexing="ij")], axis=-1)
    return grid, inverse


def _simplex_bernstein(degree: int, dim: int) -> tuple[FloatArray, FloatArray]:
    """The same on the unit simplex, of total degree `degree`."""
    index = np.array([a for a in product(range(degree + 1), repeat=dim + 1) if sum(a) == degree])
    barycentric = index / degree if degree else np.full((1, dim + 1), 1 / (dim + 1))
    multinomial = [factorial(degree) / np.prod([factorial(k) for k in a]) for a in index.tolist()]
    vandermonde = multinomial * np.prod(barycentric[:, None, :] ** index, axis=-1)
    return barycentric[:, 1:], np.linalg.inv(vandermonde)


def _scatter(local: FloatArray, columns: NDArray[np.int64], n_dofs: int) -> sp.csr_matrix:
    """A matrix with rows local (r, l) at columns (r, l), without the entries that are rounding errors."""
    kept = np.abs(local) > NEGLIGIBLE * np.abs(local).max(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(len(local))[:, None], local.shape)
    return sp.coo_matrix((local[kept], (rows[kept], columns[kept])), shape=(len(local), n_dofs)).tocsr()


def _unit_rows(rows: sp.csr_matrix) -> sp.csr_matrix:
    """Rows scaled to a largest entry of 1, which a bound of 0 allows."""
    return sp.csr_matrix(sp.diags(1.0 / abs(rows).max(axis=1).toarray().ravel()) @ rows)


def first_of_equal(rows: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the distinct rows, in their order, and for every row the position of its like among them."""
    probes = np.cos(np.outer(np.arange(1, rows.shape[1] + 1), np.sqrt([2.0, 3.0, 5.0])))
    size = abs(rows.copy()).max(axis=1).toarray()  # abs itself would sort the entries of rows
    size[size == 0] = 1.0
    keys = np.rint(1e8 * np.hstack([rows @ probes / size, np.log(size)])).astype(np.int64)
    _, first, like = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(order.size)
    return first[order], position[like.ravel()]


def _without_rounding(rows: sp.csr_matrix) -> sp.csr_matrix:
    coo = rows.tocoo()
    kept = np.abs(coo.data) > NEGLIGIBLE * np.abs(coo.data).max(initial=0.0)
    return sp.csr_matrix((coo.data[kept], (coo.row[kept], coo.col[kept])), shape=coo.shape)


def _bernstein_of(axis: LineBasis, derivative: int) -> FloatArray:
    """Bernstein coefficients (cells, p + 1, l) of that derivative of the functions of every cell."""
    size = axis.degree - derivative + 1
    xi, inverse = _tensor_bernstein([size - 1])
    cells = np.repeat(np.arange(axis.n_cells), size)
    tables = axis.tabulate(cells, np.tile(xi[:, 0], axis.n_cells), derivative)[:, derivative]
    return np.asarray(inverse @ tables.reshape(axis.n_cells, size, -1))


def _line_rows(axis: LineBasis, derivative: int = 0) -> sp.csr_matrix:
    """The Bernstein coefficients of that derivative of a function of one variable, cell after cell.

    Of two equal coefficients at a grid point one is kept; none where the derivative is C1, for there they are a mean
    of their neighbours. A basis of non-negative functions of sum 1 (P1, B-splines) is left as it is: its own
    coefficients bound the function, and their divided differences its derivatives.
    """
    values = _bernstein_of(axis, 0)
    if values.min() > -NEGLIGIBLE and np.abs(values.sum(axis=2) - 1.0).max() < NEGLIGIBLE:
        return _divided_differences(axis, derivative)
    local = _bernstein_of(axis, derivative) if derivative else values
    smoothness = axis.smoothness - derivative
    kept = np.ones(local.shape[:2], dtype=np.bool_)
    kept[1:, 0] = smoothness < 0
    kept[:-1, -1] = smoothness < 1
    columns = np.broadcast_to(axis.cell_dofs[:, None, :], local.shape)
    return _scatter(local[kept], columns[kept], axis.n_dofs)


def _divided_differences(axis: LineBasis, order: int) -> sp.csr_matrix:
    """Divided differences of the coefficients over the nodes, which for splines are the Greville points.

    Splines that are flat at the ends store two equal coefficients once: differences are of both, but not between them.
    """
    if not order:
        return sp.identity(axis.n_dofs, format="csr")
    full = LineBasis(axis.points, axis.kind)
    stored = np.empty(full.n_dofs, dtype=np.int64)
    stored[full.cell_dofs] = axis.cell_dofs
    rows = sp.identity(axis.n_dofs, format="csr")[stored]
    rows = sp.csr_matrix(sp.diags(1.0 / np.diff(full.nodes)) @ (rows[1:] - rows[:-1]))
    if order == 2:
        rows = rows[1:] - rows[:-1]
    return rows[abs(rows).max(axis=1).toarray().ravel() > 0]


def _mesh_values(basis: MeshBasis) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Bernstein coefficients on a mesh, and the inverse; row j is that at the node of dof j, a domain point."""
    xi, inverse = _mesh_bernstein(basis, [basis.degree] * basis.dim, basis.degree)
    nodes = np.rint(basis.tabulate(np.zeros(len(xi), dtype=np.int64), xi, 0)[0])
    local: FloatArray = nodes.T @ inverse @ nodes
    _, first = np.unique(basis.cell_dofs, return_index=True)
    cells, function = np.divmod(first, basis.local_size)
    columns = basis.cell_dofs[cells]
    both = [_scatter(np.asarray(table)[function], columns, basis.n_dofs) for table in (local, np.linalg.inv(local))]
    return both[0], both[1]


def _mesh_slopes(basis: MeshBasis, axis: int) -> sp.csr_matrix:
    """The distinct Bernstein coefficients of d f / d x_axis on the cells of a mesh."""
    if not basis.affine:
        raise SpaceError(
            "Monotone needs cells that are affine images of the reference cell, where slopes are polynomials; got a"
            f" mesh of {basis.kind} cells that are not; use straight simplices, or parallelepipeds"
        )
    degrees = [basis.degree] * basis.dim
    along = np.abs(basis.quadrature(0).inverse[:, 0, :, axis]).max(axis=0)
    if (along > NEGLIGIBLE * along.max()).sum() == 1:
        degrees[int(along.argmax())] -= 1
    xi, inverse = _mesh_bernstein(basis, degrees, basis.degree - 1)
    cells = np.repeat(np.arange(basis.n_cells), len(xi))
    slopes = basis.tabulate(cells, np.tile(xi, (basis.n_cells, 1)), 1)[1][:, :, axis]
    local = inverse @ slopes.reshape(basis.n_cells, len(xi), -1)
    columns = np.broadcast_to(basis.cell_dofs[:, None, :], local.shape).reshape(len(cells), -1)
    rows = _unit_rows(_scatter(local.reshape(len(cells), -1), columns, basis.n_dofs))
    return rows[first_of_equal(rows)[0]]


def _mesh_bernstein(basis: MeshBasis, degrees: Sequence[int], total: int) -> tuple[FloatArray, FloatArray]:
    if basis.kind in ("line", "tri", "tet"):
        return _simplex_bernstein(total, basis.dim)
    return _tensor_bernstein(degrees)


def _rows_in_space(space: Space, axis: int = 0, derivative: int = 0) -> tuple[sp.csr_matrix, sp.csr_matrix | None]:
    """Rows of a derivative along an axis of x, and for values their inverse if they are another basis of the class."""
    basis = space.spatial
    lines: tuple[LineBasis, ...] | None = getattr(basis, "axes", None)
    if lines is not None:
        factors = [_line_rows(line, derivative if k == axis else 0) for k, line in enumerate(lines)]
        inverses = [_inverse(factor) for factor in factors] if not derivative else [None]
        rows = reduce(lambda a, b: sp.kron(a, b, format="csr"), factors)
        if any(inverse is None for inverse in inverses):
            return rows, None
        return rows, reduce(lambda a, b: sp.kron(a, b, format="csr"), inverses)
    if isinstance(basis, MeshBasis):
        if derivative:
            return _mesh_slopes(basis, axis), None
        return _mesh_values(basis)
    raise SpaceError(f"constraints need piecewise polynomials on a mesh or a box, got {type(basis).__name__}")


def _inverse(rows: sp.csr_matrix) -> sp.csr_matrix | None:
    """The inverse of the value rows of a line, if they are square."""
    if is_identity(rows):
        return rows
    return _without_rounding(sp.linalg.inv(rows.tocsc())) if rows.shape[0] == rows.shape[1] else None


def space_rows(space: Space, axis: int = 0, derivative: int = 0) -> tuple[sp.csr_matrix, sp.csr_matrix | None]:
    """Rows (m, N) whose bounds hold on all space-time cells, scaled to 1 if those are slopes; and their inverse."""
    if not isinstance(space, Space):
        raise SpaceError(f"a constraint is on a Space, got {type(space).__name__}")
    in_time = _line_rows(space.time)
    in_space, inverse = _rows_in_space(space, axis, derivative)
    rows = sp.kron(in_time, in_space, format="csr")
    if derivative:
        return _unit_rows(rows), None
    of_time = _inverse(in_time)
    return rows, None if inverse is None or of_time is None else sp.kron(of_time, inverse, format="csr")
