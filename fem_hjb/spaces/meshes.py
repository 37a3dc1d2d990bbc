"""Meshes: structured ones of boxes, ones refined once, curved ones of nodes, and whether one fits a problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import skfem
from numpy.typing import ArrayLike

from fem_hjb.problems.box import FACES, Box
from fem_hjb.problems.cells import (
    CURVED,
    DIMENSION,
    KINDS,
    closures,
    is_curved,
    mesh_kind,
    nodes_of,
    sound_mesh,
)
from fem_hjb.problems.curved import EDGES, functions, powers, reference_nodes
from fem_hjb.problems.locate import REFERENCE_CORNERS, corner_jacobians
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, IntArray, array_length, one_of, require
from fem_hjb.support.errors import DomainError
from fem_hjb.support.memory import require_room

Grading = Callable[[FloatArray], ArrayLike]

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


def check_mesh(mesh: skfem.Mesh, problem: ControlProblem) -> None:
    """Nothing if the problem can be solved on this scikit-fem mesh, else a DomainError that says why not.

    Checked are the kind and dimension of the cells; vertices that belong to no cell, or coincide; cells that are
    degenerate, twisted, folded over a neighbour or overlapping, or so curved that the map from the reference cell is
    not one to one; pieces that do not hang together; that no more than 1 per cent of the initial law (of 4096 samples;
    nothing of a point mass) lies outside; and, for a process with a domain, that the mesh fills this box (cut anywhere
    where it is infinite) or covers what the domain's own mesh does.
    """
    kind = mesh_kind(mesh, curved=True)
    if DIMENSION[kind] != problem.dim:
        raise DomainError(
            f"the mesh ({type(mesh).__name__}) is of dimension {DIMENSION[kind]}, the problem has dim={problem.dim}"
        )
    boundary, locator = sound_mesh(mesh, "the mesh")
    if isinstance(problem.domain, MeshDomain):
        _check_covers(mesh, boundary, problem.domain)
    elif problem.domain is not None:
        _check_fills(closures(mesh, boundary), problem.domain)
    samples = problem.initial_law.sample(_COVERAGE_SAMPLES, np.random.default_rng(0))
    outside = float((locator(samples)[0] < 0).mean())
    if outside > _UNCOVERED:
        raise DomainError(
            f"the mesh leaves out {outside:.1%} of the initial law of {problem.name!r}, at most {_UNCOVERED:.0%} is "
            f"allowed: its cells lie in the box {mesh.p.min(axis=1)} to {mesh.p.max(axis=1)}, samples of the law in "
            f"{samples.min(axis=0)} to {samples.max(axis=0)}; take a larger mesh, or a problem that starts inside it"
        )


def _check_fills(boundary: FloatArray, domain: Box) -> None:
    """A mesh whose boundary facets (points (d, m, nf) that determine them) all lie in the box's faces (or, where they
    are infinite, in the faces of the mesh's own bounding box) fills it.
    """
    ends = boundary.min(axis=(1, 2)), boundary.max(axis=(1, 2))
    cut = [np.where(np.isfinite(own), own, end) for own, end in zip(domain.bounds, ends, strict=True)]
    lower, upper = (bound[:, None, None] for bound in cut)
    slack = 1e-8 * (upper - lower)
    on_face = np.concatenate([abs(boundary - bound) <= slack for bound in (lower, upper)]).all(axis=1).any(axis=0)
    if not on_face.all():
        raise DomainError(
            f"the process lives in {domain}, so the mesh must fill that box, but {int((~on_face).sum())} of its"
            " boundary facets lie elsewhere; use box_mesh(truncation_box(problem).box, ...)"
        )


def _check_covers(mesh: skfem.Mesh, boundary: IntArray, domain: MeshDomain) -> None:
    """A mesh as large as the domain's, whose boundary facets lie in that one's boundary, covers the same."""
    if mesh is domain.mesh:
        return
    if is_curved(mesh) != domain.curved:
        edges, cells = ("curved", "straight") if domain.curved else ("straight", "curved")
        raise DomainError(
            f"the process lives in {domain.place}, whose edges are {edges}, but the mesh ({type(mesh).__name__}) has"
            f" {cells} cells; leave out mesh=, or refine the domain's own mesh"
        )
    points = np.concatenate(closures(mesh, boundary).transpose(1, 2, 0))
    near = np.min([domain.distance(word, points) for word in FACES], axis=0)
    sizes = [_volume(of) for of in (mesh, domain.mesh)]
    off = near > 1e-8 * domain.diameter
    if off.any() or abs(sizes[0] - sizes[1]) > 1e-8 * sizes[1]:
        raise DomainError(
            f"the process lives in {domain.place}, so the mesh must cover the same, but its volume is {sizes[0]:.6g}"
            f" and not {sizes[1]:.6g}, and {int(off.sum())} points of its boundary lie elsewhere; leave out mesh=, or"
            " refine the domain's own mesh"
        )


def curved_mesh(kind: str, p: FloatArray, t: IntArray, nodes: FloatArray, where: str) -> skfem.Mesh:
    """The mesh of second order of cells with these corners, p (d, nv) and t (d + 1, nc), and nodes (k, nc, d).

    DomainError where two cells have different nodes on the edge that they share.
    """
    straight = KINDS[kind](p, np.sort(t, axis=0), sort_t=False)
    order = np.argsort(t, axis=0)
    place = {frozenset(ends): k for k, ends in enumerate(EDGES[kind])}
    table = np.zeros((len(t),) * 2, dtype=np.int64)
    for ends, k in place.items():
        i, j = sorted(ends)
        table[i, j] = table[j, i] = k + len(t)
    turned = [nodes[table[order[i], order[j]], np.arange(t.shape[1])] for i, j in EDGES[kind]]
    dofs = np.asarray(skfem.Dofs(straight, CURVED[kind].elem()).element_dofs)
    points = np.zeros((int(dofs.max()) + 1, len(p)))
    points[: p.shape[1]] = p.T
    points[dofs[len(t) :]] = turned
    apart = np.abs(points[dofs[len(t) :]] - turned).max(axis=2) > 1e-9 * float(np.ptp(p, axis=1).max())
    if apart.any():
        raise DomainError(
            f"{where} has {int(apart.sum())} edges of cells whose node is not that of the neighbour, the first is of"
            f" cell {int(np.argmax(apart.any(axis=0)))}; merge nodes at the same place (in gmsh: removeDuplicateNodes)"
        )
    return CURVED[kind](np.ascontiguousarray(points.T), straight.t)


def refined_mesh(mesh: skfem.Mesh) -> skfem.Mesh:
    """The mesh with each cell cut into 2^d; the parts of curved ones are where their maps put them, and the domain is
    the same."""
    if not is_curved(mesh):
        return type(mesh)(mesh.p, mesh.t).refined(1)
    kind = mesh_kind(mesh, curved=True)
    nodes, at = np.asarray(nodes_of(mesh)), reference_nodes(kind)
    parts = KINDS[kind].init_refdom().refined(1)
    corners = np.asarray(parts.p).T[parts.t]  # (d + 1, parts, d), each of them a node of the cell
    which = np.linalg.norm(corners[:, :, None] - at, axis=3).argmin(axis=2)
    ends = np.array(EDGES[kind]).T
    inner = np.concatenate([corners, 0.5 * (corners[ends[0]] + corners[ends[1]])])
    values = functions(inner.reshape(-1, inner.shape[2]), kind)
    placed = np.einsum("qk,kcd->qcd", values, nodes).reshape(len(inner), -1, len(mesh.p))
    t = np.asarray(mesh.dofs.element_dofs, dtype=np.int64)[which].reshape(len(corners), -1)
    return curved_mesh(kind, np.asarray(mesh.p), t, placed, "the mesh refined once")


def _volume(mesh: skfem.Mesh) -> float:
    """The volume of the cells, by two Gauss points per axis where Jacobians vary, or where cells are curved by the
    middles of edges, which is exact."""
    nodes = nodes_of(mesh)
    if nodes is not None and mesh.dim() == 2:
        linear, bent = powers(nodes, "tri")
        slopes = linear[:, None] + 2.0 * np.einsum("cijk,qj->cqik", bent, reference_nodes("tri")[3:])
        return float(np.abs(np.linalg.det(slopes)).mean(axis=1).sum()) / 2.0
    jacobians, d = corner_jacobians(np.asarray(mesh.p), np.asarray(mesh.t), mesh_kind(mesh)), mesh.p.shape[0]
    if len(jacobians) == 1:
        return float(np.abs(np.linalg.det(jacobians)).sum()) / math.factorial(d)
    at = REFERENCE_CORNERS[mesh_kind(mesh)][:, None] == REFERENCE_CORNERS[mesh_kind(mesh)]
    weights = np.where(at, (1 + 3**-0.5) / 2, (1 - 3**-0.5) / 2).prod(axis=2)  # Jacobians are interpolated from corners
    return float(np.abs(np.linalg.det(np.einsum("qi,icjk->qcjk", weights, jacobians))).mean(axis=0).sum())
