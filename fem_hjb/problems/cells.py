"""Cells of meshes: their kinds, straight or of second order, and whether they tile a connected domain."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import skfem
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from fem_hjb.problems.curved import functions, one_to_one, reference_nodes
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
CURVED = {"tri": skfem.MeshTri2, "tet": skfem.MeshTet2}
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
_BEYOND = 1e-4  # of a curved cell: what is so far beyond its boundary is in no other cell, or the mesh overlaps
SAME_POINT = 1e-12  # of the mesh's diameter


def mesh_kind(mesh: Any, *, curved: bool = False) -> str:
    """ "line", "tri", "quad", "tet" or "hex" for a scikit-fem mesh of straight-edged cells, else DomainError.

    curved : whether "tri" and "tet" may also be of second order.
    """
    for kind, cls in KINDS.items():
        if type(mesh) is cls or (curved and type(mesh) is CURVED.get(kind)):
            return kind
    expected = ", ".join(cls.__name__ for cls in KINDS.values())
    if is_curved(mesh):
        raise DomainError(
            f"curved cells are not taken here: meshes must have straight-edged cells of one kind ({expected}), got"
            f" {type(mesh).__name__}; take the corners, load_mesh(path, straight=True), or"
            f" {type(mesh).__name__[:-1]}1(mesh.p[:, :mesh.nvertices], mesh.t)"
        )
    expected += ", or of second order " + ", ".join(cls.__name__ for cls in CURVED.values()) if curved else ""
    if isinstance(mesh, skfem.Mesh):
        raise DomainError(
            f"meshes must have straight-edged cells of one kind ({expected}), got {type(mesh).__name__}; take its "
            "vertices and cells only, for example MeshQuad1(mesh.p[:, :n], mesh.t), or mesh the domain again at order 1"
        )
    raise DomainError(f"expected a scikit-fem mesh ({expected}) or the path of a mesh file, got {type(mesh).__name__}")


def is_curved(mesh: Any) -> bool:
    """Whether it is a scikit-fem mesh of triangles or tetrahedra of second order."""
    return type(mesh) in CURVED.values()


def vertices_of(mesh: skfem.Mesh) -> FloatArray:
    """The corners of the cells, (d, nv)."""
    p = np.asarray(mesh.p, dtype=np.float64)
    return p[:, : int(np.max(mesh.t)) + 1] if is_curved(mesh) else p


def nodes_of(mesh: skfem.Mesh) -> FloatArray | None:
    """The nodes (k, nc, d) of cells of second order, see `problems.curved`; None if cells are straight.

    DomainError if there are too few or too many of them.
    """
    if not is_curved(mesh):
        return None
    count, name = int(mesh.dofs.N), type(mesh).__name__
    if mesh.p.shape[1] != count:
        raise DomainError(
            f"a {name} of these cells must have {count} nodes, one at each corner and one on each edge, got"
            f" {mesh.p.shape[1]}; make it from meshio's cells of second order with load_mesh, or from a straight mesh"
            f" with {name}.from_mesh"
        )
    return np.asarray(mesh.p.T[mesh.dofs.element_dofs], dtype=np.float64)


def closures(mesh: skfem.Mesh, facets: IntArray) -> FloatArray:
    """Points (d, m, nf) of facets with these vertices (k, nf): the corners, and what is between each two of them, the
    node of the edge where they are curved."""
    p, pairs = np.asarray(mesh.p, dtype=np.float64), list(combinations(range(len(facets)), 2))
    between = [0.5 * (p[:, facets[i]] + p[:, facets[j]]) for i, j in pairs]
    if is_curved(mesh) and pairs:
        edges = np.asarray(mesh.facets if mesh.dim() == 2 else mesh.edges, dtype=np.int64)
        size = int(edges.max()) + 1
        keys = edges.min(axis=0) * size + edges.max(axis=0)
        order = np.argsort(keys)
        for k, (i, j) in enumerate(pairs):
            ends = np.sort(facets[[i, j]].astype(np.int64), axis=0)
            at = order[np.searchsorted(keys, ends[0] * size + ends[1], sorter=order)]
            between[k] = p[:, size + at]
    return np.stack([*(p[:, corner] for corner in facets), *between], axis=1)


def locator_of(mesh: skfem.Mesh) -> CellLocator:
    """What finds the cells of points."""
    return CellLocator(vertices_of(mesh), mesh.t, mesh_kind(mesh, curved=True), nodes_of(mesh))


def sound_mesh(mesh: skfem.Mesh, where: str) -> tuple[IntArray, CellLocator]:
    """The vertices (k, nf) of the boundary facets, and a locator, of a scikit-fem mesh.

    DomainError for vertices that belong to no cell, or coincide; cells that are degenerate, twisted, folded over a
    neighbour or overlapping, or so curved that they fold; and pieces that do not hang together.
    """
    p, t = vertices_of(mesh), np.asarray(mesh.t, dtype=np.int64)
    unused = np.setdiff1d(np.arange(p.shape[1]), t)
    if unused.size:
        raise DomainError(
            f"{unused.size} vertices of {where} belong to no cell, the first is number"
            f" {unused[0]}; remove them with mesh.remove_unused_nodes()"
        )
    boundary = tiled(mesh, where)
    locator = locator_of(mesh)
    centroids = p[:, t].mean(axis=1).T
    if is_curved(mesh):
        centroids, beyond = _probes(mesh)
        over = int((locator(beyond)[0] >= 0).sum())
        if over:
            raise DomainError(
                f"{over} curved facets of the boundary of {where} reach into other cells; mesh the domain again, finer"
            )
    hidden = np.flatnonzero(locator(centroids)[0] != np.arange(t.shape[1]))
    if hidden.size:
        raise DomainError(
            f"{hidden.size} cells of {where} overlap others, the first is {hidden[0]}; mesh the domain again"
        )
    return boundary, locator


def _probes(mesh: skfem.Mesh) -> tuple[FloatArray, FloatArray]:
    """Of curved cells a point within each (nc, d), and points (n, d) just beyond the facets of the boundary."""
    nodes, kind, d = np.asarray(nodes_of(mesh)), mesh_kind(mesh, curved=True), mesh.dim()
    corners = reference_nodes(kind)[: d + 1]
    centre = corners.mean(axis=0)
    facets = mesh.boundary_facets()
    owner = mesh.f2t[0, facets]
    opposite = (mesh.t[:, None, owner] == mesh.facets[:, facets]).any(axis=1).argmin(axis=0)
    middle = (corners.sum(axis=0) - corners[opposite]) / d
    beyond = functions(middle + _BEYOND * (middle - centre), kind)
    return (
        np.einsum("k,kcd->cd", functions(centre[None], kind)[0], nodes),
        np.einsum("fk,kfd->fd", beyond, nodes[:, owner]),
    )


def tiled(mesh: skfem.Mesh, where: str) -> IntArray:
    """The vertices (k, nf) of the boundary facets; DomainError unless the cells tile a connected domain, and those of
    second order are one to one with their reference cells."""
    kind, nodes = mesh_kind(mesh, curved=True), nodes_of(mesh)
    boundary = check_cells(vertices_of(mesh), np.asarray(mesh.t, dtype=np.int64), kind, where)
    if nodes is not None:
        check_curved(nodes, kind, where)
    return boundary


def check_curved(nodes: FloatArray, kind: str, where: str) -> None:
    """DomainError if nodes (k, nc, d) of cells of second order are not finite, or a cell is folded by its edges."""
    if not np.isfinite(nodes).all():
        raise DomainError(f"{where} has nodes on edges that are not finite")
    _refuse(
        ~one_to_one(nodes, kind),
        where,
        "are inverted in places, or all but so, by their curved edges (the Jacobian determinant changes its sign)",
        "; mesh the domain again, finer along curved edges, or take the corners alone, of a file with straight=True",
    )


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


def _refuse(bad: np.ndarray[Any, np.dtype[np.bool_]], where: str, why: str, advice: str = "") -> None:
    if bad.any():
        raise DomainError(
            f"{where} has {int(bad.sum())} of {bad.size} cells that {why}, the first is {int(np.argmax(bad))}{advice}"
        )
