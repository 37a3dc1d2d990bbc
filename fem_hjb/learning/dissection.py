"""Nested dissection of sparse matrices whose unknowns have places: A. George, SIAM J. Numer. Anal. 10 (1973) 345.

Unknowns at one place are one vertex. Of all cuts across an axis the one is taken whose separator is smallest and leaves
two parts of about equal size; the separator is eliminated after both of them, and each part is cut in turn.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import scipy.sparse as sp

from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, IntArray

_LEAF = 160  # unknowns that are eliminated together, uncut
_UNEVEN = 0.7  # share of the larger part
_WHERE = 1e-9  # of the extent: places closer than that are the same


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Front:
    """Unknowns first..last - 1 of the new order, eliminated at once.

    border (b,) : those after them that are coupled to them, then or by what was eliminated before.
    children : the fronts, by number, whose borders are all among these unknowns and this border.
    """

    first: int
    last: int
    border: IntArray
    children: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """How many are eliminated, and how many border on them."""
        return self.last - self.first, self.border.size


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Dissection:
    """order (N,) : the old number of each new one.  fronts : in the order of elimination, children first."""

    order: IntArray
    fronts: tuple[Front, ...]

    @property
    def entries(self) -> int:
        """Numbers that factors of a matrix of no symmetry hold."""
        return sum(k * (k + 2 * b) for k, b in (front.shape for front in self.fronts))


def places_of(space: Space) -> FloatArray | None:
    """Where in time and space the functions of a class are, (N, 1 + d), by their cells or nodes; None: everywhere."""
    basis = space.spatial
    axes = getattr(basis, "axes", ())
    if axes and all(isinstance(axis, LineBasis) for axis in axes):
        lines = np.meshgrid(*(_along(axis) for axis in axes), indexing="ij")
        there = np.stack([line.ravel() for line in lines], axis=1)
    elif isinstance(basis, MeshBasis):
        there = basis.nodes
    else:
        return None
    times = _along(space.time)
    return np.column_stack([np.repeat(times, len(there)), np.tile(there, (times.size, 1))])


def _along(axis: LineBasis) -> FloatArray:
    """The middle of the cells of each function of a line, which is numbered in halves."""
    cells = np.broadcast_to(np.arange(axis.n_cells)[:, None], axis.cell_dofs.shape)
    low, high = np.full(axis.n_dofs, axis.n_cells), np.zeros(axis.n_dofs, dtype=np.int64)
    np.minimum.at(low, axis.cell_dofs, cells)
    np.maximum.at(high, axis.cell_dofs, cells)
    return np.asarray(0.5 * (low + high))


def dissect(matrix: Any, places: FloatArray) -> Dissection:
    """An order for a sparse matrix (N, N) whose unknowns are at places (N, k); the pattern is taken as symmetric."""
    extent = np.maximum(np.ptp(places, axis=0), np.finfo(float).tiny)
    rounded = np.rint((places - places.min(axis=0)) / (_WHERE * extent))
    where, vertex, weights = np.unique(rounded, axis=0, return_inverse=True, return_counts=True)
    vertex, levels = vertex.ravel(), np.empty(where.shape, dtype=np.int64)
    for axis in range(where.shape[1]):
        levels[:, axis] = np.unique(where[:, axis], return_inverse=True)[1]
    graph = _quotient(matrix, vertex, weights.size)
    parts = _parts(levels, weights, graph)
    order = np.concatenate([members for members, _ in parts])
    position = np.empty_like(order)
    position[order] = np.arange(order.size)
    unknowns = np.argsort(position[vertex], kind="stable")
    return Dissection(order=unknowns, fronts=_fronts(parts, position, graph, weights[order]))


def _quotient(matrix: Any, vertex: IntArray, count: int) -> sp.csr_matrix:
    """The graph of vertices, symmetric, each next to itself."""
    csr = sp.csr_matrix(matrix)
    ones = np.ones(csr.nnz, dtype=np.float32)
    pattern = sp.csr_matrix((ones, csr.indices, csr.indptr), shape=csr.shape)
    members = sp.csr_matrix((np.ones(vertex.size, np.float32), (vertex, np.arange(vertex.size))), (count, vertex.size))
    graph = members @ (pattern @ members.T)
    return sp.csr_matrix(graph + graph.T + sp.identity(count, dtype=np.float32))


def _parts(levels: IntArray, weights: IntArray, graph: sp.csr_matrix) -> list[tuple[IntArray, tuple[int, ...]]]:
    """Vertices that are eliminated together, and the numbers of the parts that they separate; those first."""
    starts = graph.indptr[:-1]
    low = np.minimum.reduceat(levels[graph.indices], starts, axis=0)
    high = np.maximum.reduceat(levels[graph.indices], starts, axis=0)
    parts: list[tuple[IntArray, tuple[int, ...]]] = []

    def cut(members: IntArray) -> int:
        found = _separated(members, levels, low, high, weights) if weights[members].sum() > _LEAF else None
        children: tuple[int, ...] = ()
        if found is not None:
            before, after, members = found
            children = cut(before), cut(after)
        parts.append((members, children))
        return len(parts) - 1

    cut(np.arange(weights.size))
    return parts


def _separated(
    members: IntArray, levels: IntArray, low: IntArray, high: IntArray, weights: IntArray
) -> tuple[IntArray, IntArray, IntArray] | None:
    """The best cut into vertices before and after a level, and a separator on either side; None if there is none."""
    best: tuple[float, int, int, int] | None = None
    share, total = weights[members], int(weights[members].sum())
    for axis in range(levels.shape[1]):
        at = levels[members, axis]
        bottom, size = int(at.min()), int(np.ptp(at)) + 2

        def histogram(levels_of: IntArray, bottom: int = bottom, size: int = size) -> IntArray:
            spots = np.clip(levels_of - bottom, 0, size - 1)
            return np.asarray(np.cumsum(np.bincount(spots, share, minlength=size))).astype(np.int64)

        below = histogram(at + 1)  # below[v] : of those under level v
        for side, reach in ((1, low[members, axis] + 1), (-1, high[members, axis] + 1)):
            # Right of the cut those that reach under it, low < v <= at; left of it those with at < v <= high.
            separator = histogram(reach) - below if side > 0 else below - histogram(reach)
            left = below - (separator if side < 0 else 0)
            right = total - left - separator
            allowed = np.flatnonzero((left > 0) & (right > 0) & (np.maximum(left, right) <= _UNEVEN * total))
            if allowed.size:
                v = int(allowed[np.argmin(separator[allowed] / np.minimum(left, right)[allowed] ** 0.5)])
                cost = separator[v] / min(left[v], right[v]) ** 0.5
                if best is None or cost < best[0]:
                    best = float(cost), axis, side, v + bottom
    if best is None:
        return None
    _, axis, side, v = best
    at = levels[members, axis]
    between = (low[members, axis] < v) & (at >= v) if side > 0 else (at < v) & (high[members, axis] >= v)
    return members[(at < v) & ~between], members[(at >= v) & ~between], members[between]


def _fronts(
    parts: list[tuple[IntArray, tuple[int, ...]]], position: IntArray, graph: sp.csr_matrix, weights: IntArray
) -> tuple[Front, ...]:
    """The fronts: borders are those of the children and of the matrix; position : new numbers of vertices."""
    offsets = np.concatenate([[0], np.cumsum(weights)])
    borders: list[IntArray] = []
    fronts: list[Front] = []
    last = 0
    for members, children in parts:
        first, last = last, last + members.size
        rows = graph[members]
        border = np.unique(np.concatenate([position[rows.indices], *(borders[child] for child in children)]))
        border = border[border >= last]
        borders.append(border)
        counts = weights[border]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        fronts.append(
            Front(
                first=int(offsets[first]),
                last=int(offsets[last]),
                border=np.repeat(offsets[border], counts) + within,
                children=children,
            )
        )
    return tuple(fronts)
