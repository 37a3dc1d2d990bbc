"""Cells of meshes with straight edges: their kinds, and whether they tile a connected domain."""

from __future__ import annotations

from typing import Any

import numpy as np
import skfem
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from fem_hjb.problems.locate import REFERENCE_CORNERS, CellLocator, corner_jacobians
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import DomainError

KINDS = {
    "line": skfem.MeshLine1,
    "tri": skfem.MeshTri1,
    "quad": skfem.MeshQuad1,
    "tet": skfem.MeshTet1,
    "hex": skfem.MeshHex1,
}
DIMENSION = {kind: int(corners.shape[1]) for kind, corners in REFERENCE_CORNERS.items()}

# Corners of a cell's facets, in scikit-fem's order of the cell's vertices, going round the facet.
_FACETS = {
    "line": [[0], [1]],
    "tri": [[0, 1], [1, 2], [2, 0]],
    "quad": [[0, 1], [1, 2], [2, 3], [3, 0]],
    "tet": [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]],
    "hex": [[7, 5, 3, 6], [4, 1, 0, 2], [7, 4, 2, 6], [5, 1, 0, 3], [7, 4, 1, 5], [6, 2, 0, 3]],
}
_FLAT = 1e-10  # of the product of the edges at a corner: a smaller volume there makes a cell degenerate
SAME_POINT = 1e-12  # of the mesh's diameter


def mesh_kind(mesh: Any) -> str:
    """ "line", "tri", "quad", "tet" or "hex" for a scikit-fem mesh of straight-edged cells, else DomainError."""
    for kind, cls in KINDS.items():
        if type(mesh) is cls:
            return kind
    expected = ", ".join(cls.__name__ for cls in KINDS.values())
    if isinstance(mesh, skfem.Mesh):
        raise DomainError(
            f"meshes must have straight-edged cells of one kind ({expected}), got {type(mesh).__name__}; take its "
            "vertices and cells only, for example MeshTri1(mesh.p[:, :n], mesh.t), or mesh the domain again at order 1"
        )
    raise DomainError(f"expected a scikit-fem mesh ({expected}) or the path of a mesh file, got {type(mesh).__name__}")


def sound_mesh(mesh: skfem.Mesh, where: str) -> tuple[IntArray, CellLocator]:
    """The vertices (k, nf) of the boundary facets, and a locator, of a scikit-fem mesh.

    DomainError for vertices that belong to no cell, or coincide; cells that are degenerate, twisted, folded over a
    neighbour or overlapping; and pieces that do not hang together.
    """
    kind = mesh_kind(mesh)
    p, t = np.asarray(mesh.p, dtype=np.float64), np.asarray(mesh.t, dtype=np.int64)
    unused = np.setdiff1d(np.arange(p.shape[1]), t)
    if unused.size:
        raise DomainError(
            f"{unused.size} vertices of {where} belong to no cell, the first is number"
            f" {unused[0]}; remove them with mesh.remove_unused_nodes()"
        )
    boundary = check_cells(p, t, kind, where)
    locator = CellLocator(p, t, kind)
    centroids = p[:, t].mean(axis=1).T
    hidden = np.flatnonzero(locator(centroids)[0] != np.arange(t.shape[1]))
    if hidden.size:
        raise DomainError(
            f"{hidden.size} cells of {where} overlap others, the first is {hidden[0]}; mesh the domain again"
        )
    return boundary, locator


def check_cells(p: FloatArray, t: IntArray, kind: str, where: str) -> IntArray:
    """The vertices (k, nf) of the boundary facets; DomainError unless the cells tile a connected domain."""
    x = p.T[t]  # (nl, nc, d)
    if not np.isfinite(x).all():
        raise DomainError(f"{where} has vertices that are not finite")
    jacobians = corner_jacobians(p, t, kind)
    volume = np.linalg.det(jacobians)
    flat = (abs(volume) <= _FLAT * np.linalg.norm(jacobians, axis=-2).prod(axis=-1)).any(axis=0)
    _refuse(flat, where, "are degenerate (their volume is 0 to rounding)")
    _refuse((volume > 0).any(axis=0) & (volume < 0).any(axis=0), where, "are twisted or not convex")
    diameter = float(np.linalg.norm(np.ptp(p, axis=1)))
    twins = cKDTree(p.T).query_pairs(SAME_POINT * diameter, output_type="ndarray")
    if len(twins):
        raise DomainError(
            f"{where} has {len(twins)} pairs of vertices at the same place, the first are {twins[0].tolist()}, so that "
            "cells touch without sharing vertices; merge them (in gmsh: removeDuplicateNodes)"
        )
    return _check_facets(p, t, kind, where)


def _check_facets(p: FloatArray, t: IntArray, kind: str, where: str) -> IntArray:
    """The vertices (k, nf) of the boundary facets; DomainError unless the others join two cells, one on either side.

    Unlike the sign of the Jacobian, the sides do not depend on the order in which a cell lists its vertices, which mesh
    generators are free to choose and scikit-fem sorts.
    """
    facets = np.array(_FACETS[kind]).T
    n_facets, n_cells = facets.shape[1], t.shape[1]
    corner = t[facets].reshape(len(facets), -1)  # facet j of cell c is number j * n_cells + c
    key = np.sort(corner, axis=0)
    order = np.lexsort(key)
    new = np.concatenate([[True], (np.diff(key[:, order], axis=1) != 0).any(axis=0)])
    start = np.flatnonzero(new)
    count = np.diff(start, append=order.size)
    owner = np.tile(np.arange(n_cells), n_facets)
    if count.max() > 2:
        some = owner[order[start[count.argmax()] + np.arange(3)]]
        raise DomainError(f"{where} has cells that overlap: a facet is shared by cells {some.tolist()} and maybe more")
    one, two = order[start[count == 2]], order[start[count == 2] + 1]
    middle, normal = _facet_geometry(p.T[corner[:, one]])
    centroid = p.T[t].mean(axis=0)
    sides = [((centroid[owner[side]] - middle) * normal).sum(axis=-1) for side in (one, two)]
    folded = sides[0] * sides[1] >= 0
    if folded.any():
        first = int(np.argmax(folded))
        raise DomainError(
            f"{where} has {int(folded.sum())} pairs of cells that lie on the same side of the facet they share, the "
            f"first are {[int(owner[one[first]]), int(owner[two[first]])]}: one of the two is inverted; mesh the "
            "domain again"
        )
    links = coo_array((np.ones(one.size), (owner[one], owner[two])), shape=(n_cells, n_cells))
    pieces, piece = connected_components(links, directed=False)
    if pieces > 1:
        raise DomainError(
            f"{where} falls into {pieces} pieces that share no facets, of {np.bincount(piece)[:5].tolist()} cells"
            f"{' and so on' if pieces > 5 else ''}; the domain must be connected"
        )
    boundary: IntArray = corner[:, order[start[count == 1]]]
    return boundary


def _facet_geometry(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Centres and normals, each (m, d), of facets with corners x (k, m, d) in going round."""
    corners, m, d = x.shape
    if d == 1:
        normal = np.ones((m, 1))
    elif d == 2:
        normal = (x[1] - x[0])[:, ::-1] * [1.0, -1.0]
    else:
        normal = np.cross(x[2] - x[0], x[3] - x[1]) if corners == 4 else np.cross(x[1] - x[0], x[2] - x[0])
    return x.mean(axis=0), normal


def _refuse(bad: np.ndarray[Any, np.dtype[np.bool_]], where: str, why: str) -> None:
    if bad.any():
        raise DomainError(
            f"{where} has {int(bad.sum())} of {bad.size} cells that {why}, the first is {int(np.argmax(bad))}"
        )
