"""Solutions on their own meshes as VTK's unstructured grids, one .vtu for each time, and the .pvd that lists them.

What is said of the solution stands in a comment after the last element of each file, a text of JSON.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from xml.sax.saxutils import quoteattr

import meshio
import numpy as np

from fem_hjb.interop.grids import (
    AnySolution,
    Fields,
    Sampler,
    checked_axes,
    default_axes,
    inside,
    metadata,
    require_grid,
    with_f,
)
from fem_hjb.problems.cells import is_curved
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.mesh_cells import FROM_MESHIO, OF_SECOND_ORDER
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.spaces.tensor import TensorBasis
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import OutputError
from fem_hjb.support.files import atomic_folder

_BOXES = {1: "line", 2: "quad", 3: "hexahedron"}
_SQUARE = [(0, 0), (1, 0), (1, 1), (0, 1)]
_CORNERS: dict[int, list[tuple[int, ...]]] = {
    1: [(0,), (1,)],
    2: [*_SQUARE],
    3: [*((i, j, 0) for i, j in _SQUARE), *((i, j, 1) for i, j in _SQUARE)],
}  # of a cell of a structured grid, in VTK's order


@final
@dataclass(frozen=True, eq=False)
class Piece:
    """Points (n, d), and cells (m, c) of one kind by meshio's name."""

    points: FloatArray
    kind: str
    cells: IntArray


def structured(axes: Sequence[FloatArray]) -> Piece:
    """The lines, quadrilaterals or hexahedra between the points of a product of axes."""
    shape = tuple(map(len, axes))
    number = np.arange(np.prod(shape)).reshape(shape)
    corners = [
        number[tuple(slice(i, n - 1 + i) for i, n in zip(corner, shape, strict=True))].ravel()
        for corner in _CORNERS[len(axes)]
    ]
    return Piece(tensor_points(list(axes)), _BOXES[len(axes)], np.stack(corners, axis=-1))


def own_piece(of: AnySolution, t: float) -> Piece:
    """The mesh of a solution at time t: its cells, or the structured grid of its nodes in a box.

    Classes without cells, and products with a factor that is on a mesh, are put on a regular grid.
    """
    if isinstance(of, Solution) and isinstance(of.space.spatial, MeshBasis):
        return cells_of(of.space.spatial)
    axes = _own_axes(of, t)
    return structured(default_axes(of) if axes is None else axes)


def cells_of(basis: MeshBasis) -> Piece:
    """The cells of a mesh, curved ones with the nodes of their edges."""
    if is_curved(basis.mesh):
        name = next(name for name, kind in OF_SECOND_ORDER.items() if kind == basis.kind)
        return Piece(np.asarray(basis.mesh.p).T, name, np.asarray(basis.mesh.dofs.element_dofs, dtype=np.int64).T)
    name, order = next((name, order) for name, (kind, order) in FROM_MESHIO.items() if kind == basis.kind)
    return Piece(basis.vertices, name, basis.cell_vertices[:, np.argsort(order)])


def _own_axes(of: AnySolution, t: float) -> list[FloatArray] | None:
    """The nodes on each axis of the box of a solution at time t; None where it has no such."""
    if isinstance(of, Solution):
        space = of.space.panels[int(of.space.at(t))] if isinstance(of.space, PanelSpace) else of.space
        if isinstance(space.spatial, SpectralBasis):
            return [line.nodes for line in space.spatial.lines]
        return [axis.points for axis in space.spatial.axes] if isinstance(space.spatial, TensorBasis) else None
    found: dict[int, FloatArray] = {}
    for index, part in of.parts:
        axes = _own_axes(part, t)
        if axes is None:
            return None
        found |= zip(index, axes, strict=True)
    return [found[k] for k in range(of.problem.dim)]


def write_vtu(part: Path, sampler: Sampler, times: FloatArray, axes: Any) -> None:
    """One file of one time."""
    if len(times) != 1:
        raise OutputError(
            f"a file *.vtu holds one time, got {len(times)}; give one, such as times=0.0, or a name that ends in .pvd"
        )
    pieces, rows, meta = _sampled(sampler, times, axes)
    write_piece(part, pieces[0], rows[0], meta)


def write_pvd(part: Path, sampler: Sampler, times: FloatArray, axes: Any, target: Path) -> None:
    """A collection of files that stand in a folder beside it, of the same name without .pvd."""
    pieces, rows, meta = _sampled(sampler, times, axes)
    names = [f"{target.stem}_{k:04d}.vtu" for k in range(len(times))]
    with atomic_folder(target.with_suffix("")) as folder:
        for name, piece, row in zip(names, pieces, rows, strict=True):
            write_piece(folder / name, piece, row, meta)
    entries = "\n".join(
        f'    <DataSet timestep="{t!r}" part="0" file={quoteattr(f"{target.stem}/{name}")}/>'
        for t, name in zip(times.tolist(), names, strict=True)
    )
    head = '<?xml version="1.0"?>\n<VTKFile type="Collection" version="0.1" byte_order="LittleEndian">'
    text = f"{head}\n  <Collection>\n{entries}\n  </Collection>\n</VTKFile>\n{_comment(meta)}"
    part.write_text(text, encoding="utf-8")


def _sampled(sampler: Sampler, times: FloatArray, axes: Any) -> tuple[list[Piece], list[Fields], dict[str, Any]]:
    """Mesh and arrays at each time."""
    of = sampler.of
    if axes is None:
        pieces = [own_piece(of, t) for t in times.tolist()]
    else:
        given = checked_axes(axes, of)
        require_grid(times, given)
        pieces = [structured(given)] * len(times)
    rows = [sampler(t, piece.points) for t, piece in zip(times.tolist(), pieces, strict=True)]
    with_f(rows, of.problem.temperature)
    without = sum(
        int((np.isnan(row["value"]) & inside(of, piece.points)).sum()) for row, piece in zip(rows, pieces, strict=True)
    )
    return pieces, rows, metadata(sampler, list(rows[0]), without)


def write_piece(path: Path, piece: Piece, row: Fields, meta: Mapping[str, Any]) -> None:
    """Points and vectors have three components in VTK."""
    data = {name: _padded(array) if array.ndim == 2 else array for name, array in row.items()}
    mesh = meshio.Mesh(_padded(piece.points), [(piece.kind, piece.cells)], point_data=data)
    mesh.write(path, file_format="vtu")
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" + _comment(meta))


def _padded(array: FloatArray) -> FloatArray:
    """(n, 3), zeros where there is no such axis."""
    return np.ascontiguousarray(np.pad(array, ((0, 0), (0, 3 - array.shape[1]))))


def _comment(meta: Mapping[str, Any]) -> str:
    """JSON in a comment of XML, where two hyphens in a row must not stand: each second one is written as its code."""
    return f"<!-- {json.dumps(meta).replace('--', '-' + chr(92) + 'u002d')} -->\n"
