"""Boxes that a law stays in for a while, and grids on them, made until they resolve its density."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from fem_hjb.problems.laws import Law
from fem_hjb.reference.box_grading import halved, regraded
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.spaces.spectral import SpectralLine, gll
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, unheard

_FLOOR = 1e-3  # of what may be unresolved where p is largest: the least that is asked for elsewhere
_CELLS = 8  # of a first grid
_DRAWS = 4096
_WORTH = 0.85  # of its nodes: a first grid is made again as long as that saves so much
_ROUNDS = 12
_OUT = 0.3  # of the width of a box: how far a face is moved out at once
_NEAR = 0.04  # of it: a face so near to a wall is put there
_COARSER = 2.0  # cells that are added are so much wider than their neighbours


def unresolved(
    p: FloatArray, lines: Sequence[SpectralLine], walls: FloatArray, floor: float = _FLOOR
) -> list[FloatArray]:
    """For each axis (cells,): what its cells do not resolve of p (*shape), relative to what is there.

    With t1 the largest of the two highest Legendre coefficients, on any line across the cell, and t2 that of the two
    before, t1 (t1 / t2) is what the next two would be. It is divided by the root of max p times the smaller p of the
    cell's two ends, so that tails of the law are tails, and what
    comes to a face is seen there; by no less than the floor. With 1.0 it is relative to the maximum of p.
    """
    result, size = [], float(np.abs(p).max())
    for k, line in enumerate(lines):
        local = np.moveaxis(p, k, 0).reshape(line.n, -1)[line.cell_dofs]
        modes = np.abs(np.matmul(_highest(line.degree), local)).max(axis=2) / size
        now, before = modes[:, 2:].max(axis=1), modes[:, :2].max(axis=1)
        ends = np.abs(local[:, [0, -1]]).max(axis=2) / size
        ends[[0, -1], [0, -1]] = np.where(np.array(line.bounds) == walls[:, k], 1.0, ends[[0, -1], [0, -1]])
        root = np.maximum(np.sqrt(ends.min(axis=1)), floor)
        result.append(now * np.minimum(now / np.maximum(before, 1e-300), 1.0) / root)
    return result


@cache
def _highest(p: int) -> FloatArray:
    """Rows that take nodal values on a cell to their four highest Legendre coefficients."""
    return np.asarray(np.linalg.inv(np.polynomial.legendre.legvander(gll(p)[0], p))[-4:])


def most(found: Sequence[FloatArray]) -> float:
    """The largest of all cells of all axes."""
    return max(float(part.max()) for part in found)


def finer(lines: Sequence[SpectralLine], found: Sequence[FloatArray], allowed: float, aim: float) -> list[FloatArray]:
    """Edges of cells that leave as much unresolved as is aimed at, or less.

    Axes with more than what is allowed get more cells. Where there is less than what is aimed at, cells grow by the
    root only of what their tails ask for, as coefficients decay faster than their powers say.
    """
    edges = []
    for line, part in zip(lines, found, strict=True):
        cautious = np.where(part < aim, np.sqrt(part * aim), part)
        new = regraded(line, cautious, aim * line.n_cells**0.5)
        failed = part.max() > allowed
        edges.append(halved(line.grid, part > 0.5 * allowed) if failed and len(new) <= len(line.grid) else new)
    return edges


def support(p: FloatArray, lines: Sequence[SpectralLine], level: float) -> FloatArray:
    """(2, d): the box beyond which |p| is nowhere above that part of its maximum."""
    result = np.empty((2, len(lines)))
    sizes = np.abs(p)
    least = level * float(sizes.max())
    for k, line in enumerate(lines):
        seen = np.flatnonzero(np.moveaxis(sizes, k, 0).reshape(line.n, -1).max(axis=1) > least)
        result[:, k] = line.nodes[max(seen[0] - 1, 0)], line.nodes[min(seen[-1] + 1, line.n - 1)]
    return result


def within(bounds: FloatArray, margins: FloatArray, walls: FloatArray) -> FloatArray:
    """A box (2, d) with these margins, in units of its width; at walls that it comes near it ends."""
    width = bounds[1] - bounds[0]
    moved = bounds + np.array([[-1.0], [1.0]]) * margins * width
    low = np.where(moved[0] < walls[0] + _NEAR * width, walls[0], moved[0])
    high = np.where(moved[1] > walls[1] - _NEAR * width, walls[1], moved[1])
    return np.stack([low, high])


def at_faces(p: FloatArray) -> FloatArray:
    """(2, d): the largest |p| on each face, relative to its maximum."""
    size = float(np.abs(p).max())
    ends = [[np.abs(np.take(p, end, axis=k)).max() / size for k in range(p.ndim)] for end in (0, -1)]
    return np.array(ends)


def fitted(edges: FloatArray, low: float, high: float) -> FloatArray:
    """Edges from low to high, of cells as wide as those there were, or less; where there were none, a little wider."""
    index = np.arange(len(edges), dtype=np.float64)
    ends = []
    for face, end, step in ((low, 0, 1), (high, -1, -1)):
        width = _COARSER * abs(edges[end + step] - edges[end])
        beyond = max(step * (edges[end] - face), 0.0) / width
        ends.append(float(np.interp(face, edges, index)) - step * beyond)
    x = np.concatenate([[low] if low < edges[0] else [], edges, [high] if high > edges[-1] else []])
    places = np.concatenate([ends[:1] if low < edges[0] else [], index, ends[1:] if high > edges[-1] else []])
    cells = max(int(np.ceil(ends[1] - ends[0] - 1e-6)), 1)
    result = np.interp(np.linspace(ends[0], ends[1], cells + 1), places, x)
    result[[0, -1]] = low, high
    return np.asarray(result)


def carried(p: FloatArray, old: Sequence[SpectralLine], new: Sequence[SpectralLine]) -> tuple[FloatArray, float]:
    """p on another grid by its own polynomials, 0 where there were none, and with the mass that it had; and a factor.

    p is multiplied with it for the mass. It differs from 1 by what grids do not resolve, and what is left behind.
    """
    mass = mass_of(p, old)
    for k, (before, after) in enumerate(zip(old, new, strict=True)):
        if before is not after:
            low, high = before.bounds
            slack = 1e-12 * (high - low)
            known = (after.nodes >= low - slack) & (after.nodes <= high + slack)
            rows = before.rows(np.clip(after.nodes, low, high)) * known[:, None]
            p = np.moveaxis(np.tensordot(rows, p, (1, k)), 0, k)
    factor = mass / mass_of(p, new)
    return np.ascontiguousarray(p * factor), factor


def mass_of(p: FloatArray, lines: Sequence[SpectralLine]) -> float:
    """The integral of p."""
    for line in lines:
        p = np.tensordot(line.weights, p, 1)
    return float(p)


def density_on(law: Law, lines: Sequence[SpectralLine]) -> FloatArray:
    """p (*shape) of a law at the nodes."""
    return np.exp(law.logpdf(tensor_points([line.nodes for line in lines]))).reshape([line.n for line in lines])


def first_grid(
    law: Law,
    walls: FloatArray,
    degree: int,
    most_dofs: int,
    level: float,
    allowed: float,
    margin: float,
    tell: Progress = unheard,
) -> list[SpectralLine]:
    """A grid that resolves a law, as far as allowed, on a box that has almost all of it. tell : given signs of life."""
    x = law.sample(_DRAWS, np.random.default_rng(0))
    bounds = within(np.stack([x.min(axis=0), x.max(axis=0)]), np.full((2, law.dim), _OUT), walls)
    edges = [_spread(x[:, k], bounds[:, k]) for k in range(law.dim)]
    best: list[SpectralLine] | None = None
    for _ in range(_ROUNDS):
        tell(0.0)
        lines = [SpectralLine(part, degree) for part in limited(edges, degree, most_dofs)]
        p = density_on(law, lines)
        if not p.any():
            edges = [halved(part, np.ones(len(part) - 1, dtype=np.bool_)) for part in edges]
            continue
        out = (at_faces(p) > level) & (bounds != walls)
        found = unresolved(p, lines, walls)
        if not out.any() and most(found) <= allowed:
            if best is not None and size_of(lines) > _WORTH * size_of(best):
                break
            best = lines
        if out.any():
            bounds = within(bounds, np.where(out, _OUT, 0.0), walls)
        else:
            bounds = within(support(p, lines, level), np.full((2, law.dim), margin), walls)
        graded = [regraded(line, part, allowed * line.n_cells**0.5) for line, part in zip(lines, found, strict=True)]
        edges = [fitted(part, *bounds[:, k]) for k, part in enumerate(graded)]
    return lines if best is None else best


def size_of(lines: Sequence[SpectralLine]) -> int:
    """The number of nodes."""
    return int(np.prod([line.n for line in lines]))


def limited(edges: list[FloatArray], degree: int, most_dofs: int) -> list[FloatArray]:
    """The same cells, or wider ones if nodes were more than is allowed."""
    cells = np.array([len(part) - 1 for part in edges])
    fewer = cells
    while np.prod(fewer * degree + 1) > most_dofs and fewer.max() > 1:
        fewer = np.where(fewer == fewer.max(), fewer - 1, fewer)
    return [
        part if n == m else np.interp(np.linspace(0.0, m, n + 1), np.arange(m + 1), part)
        for part, m, n in zip(edges, cells.tolist(), fewer.tolist(), strict=True)
    ]


def _spread(x: FloatArray, ends: FloatArray) -> FloatArray:
    """Edges from one end to the other, half of them spread like the draws x (n,)."""
    places = np.unique(np.concatenate([ends, np.quantile(x, np.linspace(0.0, 1.0, 2 * _CELLS + 1))]))
    places = places[(places >= ends[0]) & (places <= ends[1])]
    seen = np.searchsorted(np.sort(x), places, side="right") / x.size
    parts = 0.5 * (places - ends[0]) / (ends[1] - ends[0]) + 0.5 * seen
    edges = np.interp(np.linspace(0.0, parts[-1], _CELLS + 1), parts, places)
    edges[[0, -1]] = ends
    return np.asarray(edges)
