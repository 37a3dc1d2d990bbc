"""Meshes from files, anything that meshio reads."""

import os
import struct
import warnings
import zlib
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import meshio
import numpy as np
import skfem
from skfem.io import json

from fem_hjb.problems.cells import DIMENSION, KINDS, SAME_POINT, check_cells, check_curved, mesh_kind
from fem_hjb.problems.locate import REFERENCE_CORNERS
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.mesh_cells import FACETS, FROM_MESHIO, top_cells
from fem_hjb.spaces.mesh_names import with_names
from fem_hjb.spaces.meshes import check_mesh, curved_mesh
from fem_hjb.support.checks import flag, positive_integer
from fem_hjb.support.errors import DomainError
from fem_hjb.support.files import as_path

AnyMesh = skfem.Mesh | str | os.PathLike[str]  # a mesh, or the path of a file with one

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


def load_mesh(
    path: str | os.PathLike[str], dim: int | None = None, *, simplices: bool = False, straight: bool = False
) -> skfem.Mesh:
    """The mesh in any file that meshio reads (gmsh .msh, VTK .vtu or .vtk, Abaqus .inp, ...), or skfem.io.json writes.

    Lines in one dimension, triangles or quadrilaterals in two, tetrahedra or hexahedra in three, one kind per file.
    Cells of lower dimension, which mesh generators write for boundaries, are left out, and vertices that only they use
    with them. Coordinates beyond the dimension must be constant and are dropped. Cells may be numbered clockwise or
    anticlockwise: what is refused is a cell that is degenerate, twisted, or folded over its neighbour.

    Parts of the boundary that have names in the file are `mesh.boundaries`, name -> facets, and parts of the domain
    `mesh.subdomains`, name -> cells, as in scikit-fem: physical groups of gmsh, cell sets of meshio, references of
    Medit, and what scikit-fem saves. A group with a number and no name is called by its number, "7". Where a file gives
    a cell several groups, or lists a set in several sections, meshio may read but one of them: look at what came.

    Parameters
    ----------
    dim : the dimension of the mesh; by default the highest of the cells in the file.
    simplices : cut each quadrilateral into two triangles along its shorter diagonal, and so make one kind of a file
        that has both.
    straight : take cells of second order (triangle6, tetra10, quad8, ...) by their corners alone. Where their edges are
        straight anyway this is done without asking; where they are curved it moves the boundary. Without it curved
        triangles and tetrahedra are kept, a `MeshTri2` or `MeshTet2` of scikit-fem, and other curved cells refused.

    Raises
    ------
    DomainError : there is no such file, meshio cannot read it, or what it holds is not such a mesh; a name is given to
        what is no facet of a cell.
    """
    file = as_path(path, DomainError)
    wanted = None if dim is None else positive_integer(dim, "dim", DomainError)
    simplices = flag(simplices, "load_mesh: simplices", DomainError)
    straight = flag(straight, "load_mesh: straight", DomainError)
    if not file.is_file():
        raise DomainError(f"cannot read a mesh from {file}: there is no such file")
    where = f"the mesh file {file}"
    raw = _of_json(file) if file.suffix.lower() == ".json" else _read(file)
    kind, cells, parents = top_cells(raw, wanted, simplices, straight, where)
    corners = cells[:, : len(REFERENCE_CORNERS[kind])]
    used, t = np.unique(corners, return_inverse=True)
    points = np.asarray(raw.points, dtype=np.float64)
    _check_used(raw, len(points), where)
    x, d = points[np.unique(cells)], DIMENSION[kind]
    spread = np.ptp(x, axis=0)
    if x.shape[1] < d or (spread[d:] > SAME_POINT * spread.max()).any():
        raise DomainError(
            f"{where} holds a mesh of {kind} cells whose vertices have coordinates of ranges "
            f"{spread.tolist()}; a mesh for dim={d} must vary in the first {d} of them only"
        )
    p, t = np.ascontiguousarray(points[used, :d].T), np.ascontiguousarray(t.reshape(corners.shape).T)
    check_cells(p, t, kind, where)
    if corners.shape == cells.shape:
        return with_names(KINDS[kind](p, t), raw, used, parents, where)
    nodes = points[cells.T, :d]
    check_curved(nodes, kind, where)
    return with_names(curved_mesh(kind, p, t, nodes, where), raw, used, parents, where)


def _check_used(raw: meshio.Mesh, count: int, where: str) -> None:
    """DomainError for vertices of no cell."""
    every = np.unique(np.concatenate([np.ravel(block.data) for block in raw.cells]))
    if every.size < count:
        first = np.setdiff1d(np.arange(count), every)[0]
        raise DomainError(
            f"{where} has {count - every.size} vertices that belong to no cell of any kind, the "
            f"first is number {first}; remove them, or find the cells that are missing"
        )


def _of_json(file: Path) -> meshio.Mesh:
    """A mesh that scikit-fem has saved as JSON, its facets with names as cells of one dimension less."""
    try:
        mesh = json.from_file(file)
        names = [mesh.boundaries or {}, mesh.subdomains or {}]
        held = [{name: np.asarray(part, dtype=np.int64) for name, part in parts.items()} for parts in names]
        facets = mesh.facets.T
        where = {name: np.unique(facets[part], axis=0) for name, part in held[0].items()}
        inside = {name: np.isin(np.arange(mesh.t.shape[1]), part) for name, part in held[1].items()}
    except (*_UNREADABLE, NotImplementedError) as cause:
        raise DomainError(
            f"cannot read a mesh from {file}: it is not JSON as skfem.io.json writes it"
            f" ({type(cause).__name__}: {cause})"
        ) from cause
    kind = mesh_kind(mesh)
    top, order = next((name, order) for name, (of, order) in FROM_MESHIO.items() if of == kind)
    theirs = np.argsort(order)
    blocks = [(top, mesh.t.T[:, theirs])]
    blocks += [(FACETS[kind], part) for part in where.values()]
    sets = {name: [np.flatnonzero(inside[name]) if name in inside else None] for name in {*where, *inside}}
    for name in where:
        for other, parts in sets.items():
            parts.append(np.arange(len(where[name])) if other == name else None)
    result = meshio.Mesh(mesh.p.T, blocks)
    result.cell_sets = sets
    return result


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
