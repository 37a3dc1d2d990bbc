r"""Recovered gradients on continuous elements: nodal values to nodal gradients, an order better than differentiating.

The gradient of a degree-p finite-element function is one order less accurate than its nodal values.
Polynomial-preserving recovery (Zhang & Naga, SIAM J. Sci. Comput. 26, 2005) fits, around each vertex, a polynomial of
degree p + 1 to the nodal values on the surrounding cells by least squares and differentiates that. Between vertices
the gradients of the fits at the vertices of a cell are blended with its (multi-)linear shape functions. The result is
exact for polynomials of degree p + 1 on any mesh, and it is local: a value that is not a number spoils only the
patches that contain it.
"""

from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import final

import numpy as np
import scipy.sparse as sp

from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import SpaceError

_MAX_RINGS = 4
_GROUP = 2048  # patches whose singular value decompositions are held at once
_RANK_TOLERANCE = 1e-6  # smallest singular value of a patch relative to its largest, monomials scaled to the patch


def _exponents(dim: int, degree: int) -> IntArray:
    """Exponents (m, dim) of the monomials of total degree <= degree, the constant first."""
    terms = [
        np.bincount(np.array(chosen, dtype=np.int64), minlength=dim) if chosen else np.zeros(dim, dtype=np.int64)
        for total in range(degree + 1)
        for chosen in combinations_with_replacement(range(dim), total)
    ]
    return np.array(terms, dtype=np.int64)


def _monomials(x: FloatArray, exponents: IntArray) -> FloatArray:
    """Monomials at points (..., d), shape (..., m)."""
    result = np.ones((*x.shape[:-1], len(exponents)))
    for axis in range(x.shape[-1]):
        powers = np.stack([x[..., axis] ** k for k in range(int(exponents.max()) + 1)], axis=-1)
        result *= powers[..., exponents[:, axis]]
    return result


def _boolean(rows: IntArray, columns: IntArray, shape: tuple[int, int]) -> sp.csr_matrix:
    matrix = sp.csr_matrix((np.ones(rows.size, dtype=np.int32), (rows.ravel(), columns.ravel())), shape=shape)
    matrix.data[:] = 1
    return matrix


def _by_length(patches: sp.csr_matrix, vertices: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Vertices (g,) whose patches have the same number s of nodes, with these nodes (g, s); g is bounded."""
    lengths = np.diff(patches.indptr)[vertices]
    for length in np.unique(lengths):
        same = vertices[lengths == length]
        for start in range(0, same.size, _GROUP):
            group = same[start : start + _GROUP]
            yield group, patches.indices[patches.indptr[group][:, None] + np.arange(length)].astype(np.int64)


@final
class GradientRecovery:
    """The linear map from nodal values (n,) to recovered nodal gradients (n, d) on one mesh.

    nodes : (n, d) the points that carry the values.
    cell_nodes : (cells, l) the nodes of each cell.
    vertices : (nv, d) the vertices of the mesh; cell_vertices : (cells, k) those of each cell.
    blend : (l, k) the (multi-)linear vertex functions of a cell at its l nodes.
    degree : p, the degree of the element; polynomials of degree p + 1 are fitted.

    Raises SpaceError if the mesh is too small for the fit (fewer nodes than monomials even with all cells around).
    """

    def __init__(
        self,
        nodes: FloatArray,
        cell_nodes: IntArray,
        vertices: FloatArray,
        cell_vertices: IntArray,
        blend: FloatArray,
        degree: int,
    ) -> None:
        self.dim = nodes.shape[1]
        self._exponents = _exponents(self.dim, degree + 1)
        self._size = len(vertices)
        scale = self._fit(nodes, cell_nodes, vertices, cell_vertices)
        self._evaluate = self._blending(nodes, cell_nodes, vertices, cell_vertices, blend, scale)

    def _fit(
        self, nodes: FloatArray, cell_nodes: IntArray, vertices: FloatArray, cell_vertices: IntArray
    ) -> FloatArray:
        """Pseudo-inverses of the patch fits, in `self._fits`; returns the patch radii (nv,)."""
        n_cells, m = len(cell_nodes), len(self._exponents)
        cells = np.arange(n_cells)
        to_cells = _boolean(cell_vertices.ravel(), np.repeat(cells, cell_vertices.shape[1]), (len(vertices), n_cells))
        cells_to_nodes = _boolean(np.repeat(cells, cell_nodes.shape[1]), cell_nodes, (n_cells, len(nodes)))
        self._fits: list[tuple[IntArray, IntArray, FloatArray]] = []
        scale = np.ones(len(vertices))
        open_vertices = np.arange(len(vertices))
        ring = to_cells
        for _ in range(_MAX_RINGS):
            patches = (ring[open_vertices] @ cells_to_nodes).tocsr()
            unresolved = []
            for local, patch in _by_length(patches, np.arange(open_vertices.size)):
                group = open_vertices[local]
                if patch.shape[1] < m:
                    unresolved.append(group)
                    continue
                offsets = nodes[patch] - vertices[group, None, :]
                radius = np.abs(offsets).max(axis=(1, 2))
                u, s, vt = np.linalg.svd(
                    _monomials(offsets / radius[:, None, None], self._exponents), full_matrices=False
                )
                good = s[:, -1] > _RANK_TOLERANCE * s[:, 0]
                unresolved.append(group[~good])
                inverse = np.swapaxes(vt[good], 1, 2) @ (np.swapaxes(u[good], 1, 2) / s[good][:, :, None])
                self._fits.append((group[good], patch[good], inverse))
                scale[group] = radius
            open_vertices = np.concatenate(unresolved) if unresolved else open_vertices[:0]
            if open_vertices.size == 0:
                return scale
            ring = _ones(ring @ (to_cells.T @ to_cells))
        raise SpaceError(
            f"the mesh is too coarse to recover gradients: {open_vertices.size} of {len(vertices)} vertices have no"
            f" {m} independent nodes within {_MAX_RINGS} rings of cells; refine the mesh"
        )

    def _blending(
        self,
        nodes: FloatArray,
        cell_nodes: IntArray,
        vertices: FloatArray,
        cell_vertices: IntArray,
        blend: FloatArray,
        scale: FloatArray,
    ) -> list[sp.csr_matrix]:
        """Per axis, the sparse map from all fit coefficients (nv * m,) to that derivative at the nodes (n,)."""
        node = np.repeat(cell_nodes[:, :, None], cell_vertices.shape[1], axis=2)
        vertex = np.repeat(cell_vertices[:, None, :], cell_nodes.shape[1], axis=1)
        weight = np.broadcast_to(blend, node.shape)
        kept = weight > 1e-12
        # a pair seen from several cells carries the same weight in each: keep one
        key, first = np.unique(node[kept] * len(vertices) + vertex[kept], return_index=True)
        j, k, weight = key // len(vertices), key % len(vertices), weight[kept][first]
        offsets = (nodes[j] - vertices[k]) / scale[k, None]
        m = len(self._exponents)
        operators = []
        for axis in range(self.dim):
            lowered = self._exponents.copy()
            lowered[:, axis] = np.maximum(lowered[:, axis] - 1, 0)
            factor = self._exponents[:, axis] * _monomials(offsets, lowered) * (weight / scale[k])[:, None]
            pair, term = np.nonzero(factor)
            operators.append(
                sp.csr_matrix(
                    (factor[pair, term], (j[pair], k[pair] * m + term)), shape=(len(nodes), len(vertices) * m)
                )
            )
        return operators

    def __call__(self, values: FloatArray) -> FloatArray:
        """Nodal gradients (n, d) of nodal values (n,); nan where a patch holds a nan."""
        coefficients = np.empty((self._size, len(self._exponents)))
        for group, patch, inverse in self._fits:
            coefficients[group] = (inverse @ values[patch][:, :, None])[:, :, 0]
        flat = coefficients.ravel()
        return np.stack([operator @ flat for operator in self._evaluate], axis=-1)


def _ones(matrix: sp.csr_matrix) -> sp.csr_matrix:
    matrix = matrix.tocsr()
    matrix.data[:] = 1
    return matrix
