"""Meshes from files, anything that meshio reads."""

import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import meshio
import numpy as np
import skfem

from fem_hjb.problems.cells import DIMENSION, KINDS, SAME_POINT, check_cells
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.meshes import check_mesh
from fem_hjb.support.checks import IntArray, positive_integer
from fem_hjb.support.errors import DomainError
from fem_hjb.support.files import as_path

AnyMesh = skfem.Mesh | str | os.PathLike[str]  # a mesh, or the path of a file with one

# meshio's names, and its vertices (VTK's order) in scikit-fem's order.
FROM_MESHIO = {
    "line": ("line", [0, 1]),
    "triangle": ("tri", [0, 1, 2]),
    "quad": ("quad", [0, 1, 2, 3]),
    "tetra": ("tet", [0, 1, 2, 3]),
    "hexahedron": ("hex", [6, 2, 5, 7, 1, 3, 4, 0]),
}

_UNREADABLE = (  # what meshio's readers are seen to raise on files that are not what they should be
    *(
        meshio.ReadError,
        SystemExit,
        ImportError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        NameError,
        EOFError,
    ),
    *(AssertionError, ArithmeticError, MemoryError, RuntimeError, ParseError, struct.error, zlib.error),
)


def as_mesh(mesh: Any, problem: ControlProblem) -> skfem.Mesh:
    """A scikit-fem mesh, or the mesh in a file, checked to fit the problem: see `load_mesh` and `check_mesh`."""
    if isinstance(mesh, str | os.PathLike):
        mesh = load_mesh(mesh, problem.dim)
    check_mesh(mesh, problem)
    return mesh


def load_mesh(path: str | os.PathLike[str], dim: int) -> skfem.Mesh:
    """The mesh of dimension `dim` in any file that meshio reads (gmsh .msh, VTK .vtu or .vtk, Abaqus .inp, ...).

    Lines (dim 1), triangles or quadrilaterals (dim 2), tetrahedra or hexahedra (dim 3), one kind per file; cells of
    lower dimension, which mesh generators write for boundaries, are left out, and vertices that only they use with
    them. Coordinates beyond `dim` must be constant and are dropped. Cells may be numbered clockwise or anticlockwise:
    what is refused is a cell that is degenerate, twisted, or folded over its neighbour.

    Raises
    ------
    DomainError : there is no such file, meshio cannot read it, or what it holds is not such a mesh.
    """
    file = as_path(path, DomainError)
    positive_integer(dim, "dim", DomainError)
    if not file.is_file():
        raise DomainError(f"cannot read a mesh from {file}: there is no such file")
    raw = _read(file)
    kind, cells = _top_cells(raw.cells, dim, f"the mesh file {file}")
    points = np.asarray(raw.points, dtype=np.float64)
    if cells.min() < 0 or cells.max() >= len(points):
        raise DomainError(
            f"the mesh file {file} is damaged: its cells refer to vertices {cells.min()} to {cells.max()}, it has "
            f"{len(points)}"
        )
    named = np.unique(np.concatenate([np.ravel(block.data) for block in raw.cells]))
    if named.size < len(points):
        first = np.setdiff1d(np.arange(len(points)), named)[0]
        raise DomainError(
            f"the mesh file {file} has {len(points) - named.size} vertices that belong to no cell of any kind, the "
            f"first is number {first}; remove them, or find the cells that are missing"
        )
    used, t = np.unique(cells, return_inverse=True)
    x = points[used]
    spread = np.ptp(x, axis=0)
    if x.shape[1] < dim or (spread[dim:] > SAME_POINT * spread.max()).any():
        raise DomainError(
            f"the mesh file {file} holds a mesh of {kind} cells whose vertices have coordinates of ranges "
            f"{spread.tolist()}; a mesh for dim={dim} must vary in the first {dim} of them only"
        )
    p, t = np.ascontiguousarray(x[:, :dim].T), np.ascontiguousarray(t.reshape(cells.shape).T)
    check_cells(p, t, kind, f"the mesh file {file}")
    return KINDS[kind](p, t)


def _read(file: Path) -> meshio.Mesh:
    """What meshio reads, silently: it prints to the terminal, and exits, where other libraries raise."""
    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = meshio.read(file)
    except _UNREADABLE as cause:
        told = " ".join([*said.getvalue().split(), f"({type(cause).__name__}: {cause})"])
        raise DomainError(
            f"cannot read a mesh from {file}: {told}; give a file that meshio reads, named by its usual ending such as "
            ".msh or .vtu"
        ) from cause
    if "not closed" in said.getvalue():
        raise DomainError(f"cannot read a mesh from {file}: it is cut off ({' '.join(said.getvalue().split())})")
    return raw


def _top_cells(blocks: Sequence[meshio.CellBlock], dim: int, where: str) -> tuple[str, IntArray]:
    """The kind and the cells (nc, nl), in scikit-fem's order of vertices, of dimension `dim` in meshio's blocks."""
    counts: dict[str, int] = {}
    for block in blocks:
        counts[block.type] = counts.get(block.type, 0) + len(block.data)
    found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no cells"
    top = max((block.dim for block in blocks if len(block.data)), default=0)
    expected = " or ".join(name for name, (kind, _) in FROM_MESHIO.items() if DIMENSION[kind] == dim)
    if not expected:
        raise DomainError(f"meshes go up to dimension 3, got dim={dim!r}")
    if top != dim:
        raise DomainError(f"{where} holds {found}, a mesh of dimension {top}; dim={dim} needs cells of kind {expected}")
    names = sorted({block.type for block in blocks if block.dim == dim and len(block.data)})
    if len(names) > 1:
        raise DomainError(
            f"{where} mixes kinds of cells, it holds {found}; expected only {expected}, one kind in a file"
        )
    if names[0] not in FROM_MESHIO:
        raise DomainError(
            f"{where} holds {found}; expected straight-edged cells of kind {expected}: mesh the domain again at order 1"
        )
    kind, order = FROM_MESHIO[names[0]]
    data = [np.asarray(block.data, dtype=np.int64) for block in blocks if block.type == names[0] and len(block.data)]
    if any(cells.ndim != 2 or cells.shape[1] != len(order) for cells in data):
        raise DomainError(f"{where} is damaged: a {names[0]} has {len(order)} vertices, got {[c.shape for c in data]}")
    return kind, np.concatenate(data)[:, order]
