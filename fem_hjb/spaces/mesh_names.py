"""What mesh files call parts of a boundary and of a domain, as scikit-fem's `boundaries` and `subdomains`.

Names come from meshio's cell sets, from `gmsh:physical` (and Medit's references) with what `field_data` calls these
numbers, else the number itself as text, and from what scikit-fem writes into the files it saves (`skfem:b:name`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import meshio
import numpy as np
import skfem

from fem_hjb.problems.cells import KINDS
from fem_hjb.support.checks import IntArray
from fem_hjb.support.errors import DomainError

_NUMBERS = ("gmsh:physical", "medit:ref")  # data of cells that are numbers of groups, 0 where there is none
# How many of the vertices of these cells are corners, those of second order included.
_CORNERS = {"vertex": 1, "line": 2, "line3": 2, "triangle": 3, "triangle6": 3, "quad": 4, "quad8": 4, "quad9": 4}
# Vertices of cells in the order in which scikit-fem takes them from its own files.
_THEIR_ORDER = {
    "line": ("line", [0, 1]),
    "triangle": ("tri", [0, 1, 2]),
    "quad": ("quad", [0, 1, 2, 3]),
    "tetra": ("tet", [0, 1, 2, 3]),
    "hexahedron": ("hex", [0, 4, 3, 1, 7, 5, 2, 6]),
    "triangle6": ("tri", [0, 1, 2]),
    "tetra10": ("tet", [0, 1, 2, 3]),
}


def named_cells(raw: meshio.Mesh, dim: int) -> dict[str, list[IntArray]]:
    """For each name of cells of this dimension, the cells in each block that have it."""
    found: dict[str, list[IntArray]] = {}
    blocks = [i for i, block in enumerate(raw.cells) if block.dim == dim]

    def add(name: str, block: int, cells: IntArray) -> None:
        if cells.size:
            parts = found.setdefault(name, [np.empty(0, dtype=np.int64)] * len(raw.cells))
            parts[block] = np.union1d(parts[block], cells.astype(np.int64))

    for name, sets in raw.cell_sets.items():
        for i in blocks if not name.startswith("gmsh:") else []:
            if sets[i] is not None:
                add(name, i, np.asarray(sets[i]))
    called = {(int(tag), int(of)): name for name, (tag, of) in _pairs(raw.field_data).items()}
    for data in (raw.cell_data[key] for key in _NUMBERS if key in raw.cell_data):
        for i in blocks:
            numbers = np.asarray(data[i]).astype(np.int64)
            for number in np.unique(numbers[numbers != 0]).tolist():
                add(called.get((number, dim), str(number)), i, np.flatnonzero(numbers == number))
    return found


def _pairs(field_data: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Those of a file's data that are a number and a dimension."""
    return {name: tuple(pair) for name, pair in field_data.items() if np.shape(pair) == (2,)}


def with_names(
    mesh: skfem.Mesh, raw: meshio.Mesh, used: IntArray, parents: Sequence[tuple[int, IntArray]], where: str
) -> skfem.Mesh:
    """The mesh with the names that are in a file.

    used (nv,) : the numbers of the mesh's vertices in the file, in order.
    parents : for the mesh's cells in turn, which block of the file they are from, and which cells (n,) of it.
    """
    dim = mesh.dim()
    subdomains: dict[str, IntArray] = {}
    for name, parts in named_cells(raw, dim).items():
        held = [np.isin(cells, parts[block]) for block, cells in parents]
        subdomains[name] = np.flatnonzero(np.concatenate(held))
    boundaries: dict[str, IntArray] = {}
    for name, parts in named_cells(raw, dim - 1).items():
        corners = [np.empty((0, mesh.facets.shape[0]), dtype=np.int64)]
        for block, cells in zip(raw.cells, parts, strict=True):
            count = _CORNERS.get(block.type)
            if cells.size and count == mesh.facets.shape[0]:
                corners.append(np.asarray(block.data, dtype=np.int64)[cells, :count])
        facets = np.concatenate(corners)
        if not len(facets):
            continue
        known = np.asarray(np.isin(facets, used).all(axis=1))
        at = _which(np.searchsorted(used, np.where(known[:, None], facets, used[0])), mesh)
        lost = np.asarray(~known | (at < 0))
        if lost.any():
            raise DomainError(
                f"{where} gives the name {name!r} to {len(facets)} cells of dimension {dim - 1}, but"
                f" {int(lost.sum())} of them are no facets of its cells of dimension {dim}; name parts of their"
                " boundary only"
            )
        boundaries[name] = np.unique(at)
    theirs, ours = _of_scikit_fem(mesh, raw, used, parents)
    boundaries, subdomains = boundaries | theirs, subdomains | ours
    return named(mesh, boundaries, subdomains)


def _which(facets: IntArray, mesh: skfem.Mesh) -> IntArray:
    """The numbers (n,) in the mesh of facets with these vertices (n, k), -1 where it has none such."""
    all_of_them = np.sort(mesh.facets, axis=0).T
    _, key = np.unique(np.concatenate([all_of_them, np.sort(facets, axis=1)]), axis=0, return_inverse=True)
    number = np.full(key.max() + 1, -1, dtype=np.int64)
    key = key.ravel()
    number[key[: len(all_of_them)]] = np.arange(len(all_of_them))
    return number[key[len(all_of_them) :]]


def _of_scikit_fem(
    mesh: skfem.Mesh, raw: meshio.Mesh, used: IntArray, parents: Sequence[tuple[int, IntArray]]
) -> tuple[dict[str, IntArray], dict[str, IntArray]]:
    """Boundaries and sub-domains as scikit-fem saves them: a number for each cell, whose bit k is for its facet k."""
    boundaries: dict[str, IntArray] = {}
    subdomains: dict[str, IntArray] = {}
    for key in [key for key in raw.cell_data if key.startswith("skfem:") and key.count(":") >= 2]:
        _, sort, name = key.split(":", 2)
        if sort == "s":
            held = [np.asarray(raw.cell_data[key][block])[cells] != 0 for block, cells in parents]
            subdomains[name] = np.flatnonzero(np.concatenate(held))
        elif sort == "b":
            facets = [_with_bits(raw.cells[b], np.asarray(raw.cell_data[key][b])) for b in {b for b, _ in parents}]
            boundaries[name] = np.unique(_which(np.searchsorted(used, np.concatenate(facets)), mesh))
    return boundaries, subdomains


def _with_bits(block: meshio.CellBlock, bits: IntArray) -> IntArray:
    """The vertices (n, k) of those facets of a block's cells whose bits are set."""
    kind, order = _THEIR_ORDER[block.type]
    cells = np.asarray(block.data, dtype=np.int64)[:, order].T
    facets = [cells[corners] for corners in KINDS[kind].elem.refdom.facets]
    set_of = [bits.astype(np.int64) >> k & 1 for k in range(len(facets))]
    return np.concatenate([of[:, bit == 1].T for of, bit in zip(facets, set_of, strict=True)])


def named(mesh: skfem.Mesh, boundaries: dict[str, IntArray], subdomains: dict[str, IntArray]) -> skfem.Mesh:
    """The mesh with these names."""
    if boundaries:
        mesh = mesh.with_boundaries(boundaries)
    return mesh.with_subdomains(subdomains) if subdomains else mesh
