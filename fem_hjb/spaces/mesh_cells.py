"""The cells of highest dimension in a mesh file: of one kind and order, or made straight when that is asked for."""

from __future__ import annotations

import meshio
import numpy as np

from fem_hjb.problems.cells import DIMENSION, SAME_POINT
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import DomainError

Parents = list[tuple[int, IntArray]]

# meshio's names, and its vertices (VTK's order) in scikit-fem's order.
FROM_MESHIO = {
    "line": ("line", [0, 1]),
    "triangle": ("tri", [0, 1, 2]),
    "quad": ("quad", [0, 1, 2, 3]),
    "tetra": ("tet", [0, 1, 2, 3]),
    "hexahedron": ("hex", [6, 2, 5, 7, 1, 3, 4, 0]),
}
FACETS = {"line": "vertex", "tri": "line", "quad": "line", "tet": "triangle", "hex": "quad"}  # of which meshio calls so
OF_SECOND_ORDER = {"triangle6": "tri", "tetra10": "tet"}  # those that are kept where they are curved
_QUAD_EDGES = [(0, 1, 4), (1, 2, 5), (2, 3, 6), (3, 0, 7)]
# Cells of second order: their kind without curvature, and (end, end, vertex between) for each edge.
_SECOND_ORDER = {
    "line3": ("line", [(0, 1, 2)]),
    "triangle6": ("triangle", [(0, 1, 3), (1, 2, 4), (2, 0, 5)]),
    "quad8": ("quad", _QUAD_EDGES),
    "quad9": ("quad", _QUAD_EDGES),
    "tetra10": ("tetra", [(0, 1, 4), (1, 2, 5), (2, 0, 6), (0, 3, 7), (1, 3, 8), (2, 3, 9)]),
}


def top_cells(
    raw: meshio.Mesh, dim: int | None, simplices: bool, straight: bool, where: str
) -> tuple[str, IntArray, Parents]:
    """The kind and the cells (nc, nl), in scikit-fem's order of vertices, of the highest dimension in a file.

    Curved triangles and tetrahedra have all their nodes, more than nl, corners first and then those on
    `problems.curved.EDGES`. And for these cells in turn: which block of the file they are from, and which cells (n,)
    of it.
    """
    blocks = [(i, block) for i, block in enumerate(raw.cells) if len(block.data)]
    counts: dict[str, int] = {}
    for _, block in blocks:
        counts[block.type] = counts.get(block.type, 0) + len(block.data)
    found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no cells"
    top = max((block.dim for _, block in blocks), default=0)
    wanted = max(top, 1) if dim is None else dim
    expected = " or ".join(name for name, (kind, _) in FROM_MESHIO.items() if DIMENSION[kind] == wanted)
    if not expected:
        raise DomainError(f"meshes go up to dimension 3, got dim={dim!r}")
    if top != wanted:
        asked = "a mesh" if dim is None else f"dim={dim}"
        raise DomainError(f"{where} holds {found}, a mesh of dimension {top}; {asked} needs cells of kind {expected}")
    taken: dict[str, list[tuple[int, IntArray]]] = {}
    bends = {i: _bend(raw, block, where) for i, block in blocks if block.dim == top}
    curved = {raw.cells[i].type for i, bend in bends.items() if bend and not straight}
    for i in bends:
        name, cells = _taken(raw.cells[i], curved, max(bends.values()), where)
        taken.setdefault(name, []).append((i, cells))
    strange = sorted(taken.keys() - FROM_MESHIO.keys() - OF_SECOND_ORDER.keys())
    if strange:
        raise DomainError(
            f"{where} holds {found}; expected straight-edged cells of kind {expected}: mesh the domain again, with them"
            " and at order 1, or triangles and tetrahedra at order 2"
        )
    if taken.keys() & OF_SECOND_ORDER.keys() and len(taken) > 1:
        raise DomainError(
            f"{where} mixes orders or kinds of cells, it holds {found}, of which those of second order are curved;"
            " expected one kind in a file, all of the same order: mesh the domain again, or take corners alone with"
            " straight=True"
        )
    if len(taken) > 1 and not (simplices and top == 2):
        asked = "; simplices=True cuts quadrilaterals into triangles" if top == 2 else ""
        raise DomainError(
            f"{where} mixes kinds of cells, it holds {found}; expected only {expected}, one kind in a file{asked}"
        )
    if "quad" in taken and simplices:
        taken["triangle"] = taken.get("triangle", [])
        for i, cells in taken.pop("quad"):
            halves = _halved(np.asarray(raw.points, dtype=np.float64), cells)
            taken["triangle"] += [(i, half) for half in halves]
    ((name, parts),) = taken.items()
    kind, order = FROM_MESHIO[name] if name in FROM_MESHIO else (OF_SECOND_ORDER[name], slice(None))
    parents = [(i, np.arange(len(cells))) for i, cells in parts]
    return kind, np.concatenate([cells for _, cells in parts])[:, order], parents


def _taken(block: meshio.CellBlock, curved: set[str], bend: float, where: str) -> tuple[str, IntArray]:
    """meshio's name of the cells of a block, and their nodes (n, k): of those that are straight the corners."""
    cells = np.asarray(block.data, dtype=np.int64)
    name = _SECOND_ORDER.get(block.type, (block.type, []))[0]
    if block.type in curved and block.type in OF_SECOND_ORDER:
        return block.type, cells
    if block.type in curved:
        raise DomainError(
            f"{where} has {len(cells)} {block.type} cells with curved edges, up to {bend:.3g} from straight ones; of"
            f" curved cells {' and '.join(OF_SECOND_ORDER)} are taken: mesh the domain again, with these or at order 1"
            " (and finer), or take corners alone with straight=True, which moves the boundary by as much"
        )
    return name, cells[:, : len(FROM_MESHIO[name][1])] if name in FROM_MESHIO else cells


def _bend(raw: meshio.Mesh, block: meshio.CellBlock, where: str) -> float:
    """How far the nodes on edges are from the middle of their ends, at most; 0 if that is rounding. DomainError for
    cells with too few nodes, or some that do not exist."""
    cells = np.asarray(block.data, dtype=np.int64)
    name, edges = _SECOND_ORDER.get(block.type, (block.type, []))
    corners = len(FROM_MESHIO[name][1]) if name in FROM_MESHIO else cells.shape[-1]
    count = max(corners, 1 + max((v for edge in edges for v in edge), default=-1))
    if cells.ndim != 2 or cells.shape[1] < count or (not edges and cells.shape[1] != corners):
        raise DomainError(f"{where} is damaged: a {block.type} has {count} vertices, got {cells.shape}")
    points = np.asarray(raw.points, dtype=np.float64)
    if cells.min() < 0 or cells.max() >= len(points):
        raise DomainError(
            f"{where} is damaged: its cells refer to vertices {cells.min()} to {cells.max()}, it has {len(points)}"
        )
    if not edges:
        return 0.0
    ends = [points[cells[:, list(edge)]] for edge in edges]
    bend = max(float(np.linalg.norm(e[:, 2] - e[:, :2].mean(axis=1), axis=-1).max()) for e in ends)
    return bend if bend > SAME_POINT * float(np.linalg.norm(np.ptp(points, axis=0))) else 0.0


def _halved(points: FloatArray, quads: IntArray) -> tuple[IntArray, IntArray]:
    """Two triangles (n, 3) each of quadrilaterals (n, 4), cut along the shorter diagonal."""
    x = points[quads]
    other = np.linalg.norm(x[:, 1] - x[:, 3], axis=1) < np.linalg.norm(x[:, 0] - x[:, 2], axis=1)
    turned = np.where(other[:, None], np.roll(quads, -1, axis=1), quads)
    return turned[:, [0, 1, 2]], turned[:, [0, 2, 3]]
