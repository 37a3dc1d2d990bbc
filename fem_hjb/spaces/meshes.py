"""Meshes of straight-edged cells: their kinds, structured ones of boxes, and whether one fits a problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import skfem
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.locate import REFERENCE_CORNERS, CellLocator, corner_jacobians
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, IntArray, array_length, one_of, require
from fem_hjb.support.errors import DomainError
from fem_hjb.support.memory import require_room

Grading = Callable[[FloatArray], ArrayLike]

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
_UNCOVERED = 0.01  # the fraction of the initial law that a mesh may leave out
_COVERAGE_SAMPLES = 4096


def box_mesh(
    box: Box,
    cells: int | Sequence[int],
    kind: str,
    grading: Grading | Sequence[Grading | None] | None = None,
) -> skfem.Mesh:
    """A structured scikit-fem mesh of a box.

    Parameters
    ----------
    cells : cells per axis, one number for all axes or one for each; triangles and tetrahedra subdivide these.
    kind : "line" (d = 1), "tri" or "quad" (d = 2), "tet" or "hex" (d = 3).
    grading : None for equal cells, or an increasing map of [0, 1] onto itself, vectorised, or one (or None) per axis:
        grid line i of m lies at lower + (upper - lower) * grading(i / m).

    >>> box_mesh(Box([0.0], [4.0]), 4, "line", grading=lambda s: s**2).p.tolist()
    [[0.0, 0.25, 1.0, 2.25, 4.0]]

    Raises
    ------
    DomainError : kind does not fit the box's dimension, a face is infinite, cells are not positive integers, or a
        grading is not as said.
    """
    one_of(kind, "box_mesh: kind", tuple(KINDS), DomainError)
    require(box, Box, "box_mesh", DomainError)
    if grading is not None and not callable(grading) and not isinstance(grading, Sequence):
        raise DomainError(f"box_mesh: grading must be a callable, one or None for each axis, got {grading!r}")
    if DIMENSION[kind] != box.dim:
        fitting = ", ".join(repr(k) for k, d in DIMENSION.items() if d == box.dim)
        raise DomainError(
            f"box_mesh: kind {kind!r} is of dimension {DIMENSION[kind]} but the box of dimension {box.dim}; "
            + (f"use {fitting}" if fitting else "meshes go up to dimension 3")
        )
    if not box.bounded:
        raise DomainError(
            f"box_mesh: a mesh needs finite faces, got {box}; truncation_box(problem).box has such, or say where to cut"
        )
    counts = list(cells) if isinstance(cells, Sequence | np.ndarray) else [cells] * box.dim
    gradings = [grading] * box.dim if grading is None or callable(grading) else list(grading)
    if len(counts) != box.dim or len(gradings) != box.dim:
        raise DomainError(
            f"box_mesh: cells and grading must be single or have one entry for each of {box.dim} axes, "
            f"got {len(counts)} and {len(gradings)}"
        )
    lower, upper = box.bounds
    lines = [
        low + (high - low) * _graded(array_length(m, f"box_mesh: cells on axis {axis}", DomainError), how, axis)
        for axis, (m, how, low, high) in enumerate(zip(counts, gradings, lower, upper, strict=True))
    ]
    points = math.prod(line.size for line in lines)
    require_room((points, box.dim + 2**box.dim), "box_mesh:", DomainError, "; take fewer cells")
    return KINDS[kind].init_tensor(*lines)


def _graded(cells: int, grading: Grading | None, axis: int) -> FloatArray:
    s = np.linspace(0.0, 1.0, cells + 1)
    if grading is None:
        return s
    if not callable(grading):
        raise DomainError(f"box_mesh: the grading of axis {axis} must be callable or None, got {grading!r}")
    graded = call(f"box_mesh: the grading of axis {axis}", grading, (s,), DomainError)
    if graded.shape != s.shape or not (np.abs(graded[[0, -1]] - [0.0, 1.0]) <= 1e-12).all():
        raise DomainError(
            f"box_mesh: the grading of axis {axis} must map an array on [0, 1] onto [0, 1], 0 to 0, 1 to 1"
        )
    if not (np.diff(graded) > 0).all():
        raise DomainError(f"box_mesh: the grading of axis {axis} must increase strictly, got {graded}")
    return graded


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


def check_mesh(mesh: skfem.Mesh, problem: ControlProblem) -> None:
    """Nothing if the problem can be solved on this scikit-fem mesh, else a DomainError that says why not.

    Checked are the kind and dimension of the cells; vertices that belong to no cell, or coincide; cells that are
    degenerate, twisted, folded over a neighbour or overlapping, and pieces that do not hang together; that no more than
    1 per cent of the initial law (of 4096 samples; nothing of a point mass) lies outside; and, for a process with a
    domain, that the mesh fills this box (cut anywhere where it is infinite).
    """
    kind = mesh_kind(mesh)
    if DIMENSION[kind] != problem.dim:
        raise DomainError(
            f"the mesh ({type(mesh).__name__}) is of dimension {DIMENSION[kind]}, the problem has dim={problem.dim}"
        )
    p, t = np.asarray(mesh.p, dtype=np.float64), np.asarray(mesh.t, dtype=np.int64)
    unused = np.setdiff1d(np.arange(p.shape[1]), t)
    if unused.size:
        raise DomainError(
            f"{unused.size} vertices of the mesh belong to no cell, the first is number {unused[0]}; remove them with "
            "mesh.remove_unused_nodes()"
        )
    boundary = check_cells(p, t, kind, "the mesh")
    locator = CellLocator(p, t, kind)
    centroids = p[:, t].mean(axis=1).T
    hidden = np.flatnonzero(locator(centroids)[0] != np.arange(t.shape[1]))
    if hidden.size:
        raise DomainError(
            f"{hidden.size} cells of the mesh overlap others, the first is {hidden[0]}; mesh the domain again"
        )
    if problem.domain is not None:
        _check_fills(p, boundary, problem.domain)
    samples = problem.initial_law.sample(_COVERAGE_SAMPLES, np.random.default_rng(0))
    outside = float((locator(samples)[0] < 0).mean())
    if outside > _UNCOVERED:
        raise DomainError(
            f"the mesh leaves out {outside:.1%} of the initial law of {problem.name!r}, at most {_UNCOVERED:.0%} is "
            f"allowed: its cells lie in the box {p.min(axis=1)} to {p.max(axis=1)}, samples of the law in "
            f"{samples.min(axis=0)} to {samples.max(axis=0)}; take a larger mesh, or a problem that starts inside it"
        )


def _check_fills(p: FloatArray, boundary: IntArray, domain: Box) -> None:
    """A mesh whose boundary facets (vertices (k, nf)) all lie in the box's faces (or, where they are infinite, in the
    faces of the mesh's own bounding box) fills it.
    """
    ends = p.min(axis=1), p.max(axis=1)
    cut = [np.where(np.isfinite(own), own, end) for own, end in zip(domain.bounds, ends, strict=True)]
    lower, upper = (bound[:, None, None] for bound in cut)
    slack = 1e-8 * (upper - lower)
    on_face = np.concatenate([abs(p[:, boundary] - bound) <= slack for bound in (lower, upper)]).all(axis=1).any(axis=0)
    if not on_face.all():
        raise DomainError(
            f"the process lives in {domain}, so the mesh must fill that box, but {int((~on_face).sum())} of its"
            " boundary facets lie elsewhere; use box_mesh(truncation_box(problem).box, ...)"
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


def _refuse(bad: np.ndarray[Any, np.dtype[np.bool_]], where: str, why: str) -> None:
    if bad.any():
        raise DomainError(
            f"{where} has {int(bad.sum())} of {bad.size} cells that {why}, the first is {int(np.argmax(bad))}"
        )
