"""Grids along the axes of a box: where cells are small is decided by what is seen of the gradient, cell by cell."""

from collections.abc import Sequence
from functools import cache, reduce

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fem_hjb.paths.extent import Reach
from fem_hjb.problems.box import BoolArray, Box
from fem_hjb.reference.box_panel import Equation, Grid
from fem_hjb.spaces.axes import AxisMatrix, apply_axis, in_blocks
from fem_hjb.spaces.spectral import SpectralLine, gll
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.threads import for_each

FIRST_CELLS = {1: 6, 2: 6, 3: 5}
_SINH = 2.0  # of the grading of a first grid
_SHRINK, _STRETCH = 0.35, 2.0  # by which cells may change at once
_RATIO = 3.0  # of the widths of neighbours
_MARGIN = 0.8  # of what is allowed, that is aimed at
_LARGEST, _FEWEST = 0.35, 4  # of that width; cells: a flat value needs few, the drift that acts on it more
_FEW = 8.0  # of what all cells do not resolve: those with more than this part of it are halved
_FINEST = 1e-12  # of the width of a box: no cell is smaller


def first_edges(box: Box, reach: Reach, kept: BoolArray, cells: int) -> list[FloatArray]:
    """Edges of cells for each axis: small in the middle of the law, equal where both faces are kept (2, d)."""
    edges = []
    for k, (low, high) in enumerate(zip(*box.bounds, strict=True)):
        unit = np.linspace(-1.0, 1.0, cells + 1)
        if kept[:, k].all():
            edges.append(low + (high - low) * (unit + 1) / 2)
            continue
        middle = float(np.clip(np.median(reach.median[:, k]), low + 0.2 * (high - low), high - 0.2 * (high - low)))
        stretched = np.sinh(_SINH * unit) / np.sinh(_SINH)
        edges.append(middle + np.where(unit < 0, middle - low, high - middle) * stretched)
    return edges


def make_grid(edges: Sequence[FloatArray], degree: int, equation: Equation, s0: float, s1: float) -> Grid:
    """Spectral elements on these edges, weighted by the marginals over these times to go."""
    T = equation.problem.horizon
    lines = tuple(SpectralLine(part, degree) for part in edges)
    masses = []
    for k, line in enumerate(lines):
        density = np.max([reach.density(k, line.nodes, 1 - s1 / T, 1 - s0 / T) for reach in equation.reaches], axis=0)
        mass = density * line.weights
        if not mass.any():  # no node sees the law: all of them do
            mass = line.weights
        masses.append(np.asarray(mass / mass.sum()))
    return Grid(lines, tuple(masses), equation.floor)


@cache
def _modes(p: int) -> FloatArray:
    """Rows that take nodal values of a gradient, of degree p - 1, to its four highest Legendre coefficients.

    As root mean squares.
    """
    inverse = np.linalg.inv(np.polynomial.legendre.legvander(gll(p)[0], p))[-5:-1]
    return np.asarray(inverse / np.sqrt(2 * np.arange(p - 4, p) + 1)[:, None])


def unresolved(grid: Grid, gradient: Sequence[FloatArray], metric: FloatArray) -> list[FloatArray]:
    """For each axis (cells,): the norm of what its cells do not resolve of a gradient, under the law of the grid.

    The derivatives along the axes are multiplied with the metric (d,), so that they are of one unit.

    Legendre coefficients decay geometrically in a cell; with t1 the norm of the two highest and t2 that of the two
    before, t1 (t1 / t2) is what the next two would be.
    """
    pairs = [(k, m) for k in range(grid.dim) for m in range(grid.dim)]
    squares = {pair: np.empty(0) for pair in pairs}

    def look(pair: tuple[int, int]) -> None:
        k, m = pair
        squares[pair] = _mode_squares(grid, k, float(metric[m]), gradient[m])

    with np.errstate(over="ignore", invalid="ignore"):  # what has run away is not resolved
        for_each(pairs, look)
    result = []
    for k, (line, mass) in enumerate(zip(grid.lines, grid.masses, strict=True)):
        density = mass / line.weights
        floor = np.maximum(density, grid.floor * density.max())
        held = floor[line.cell_dofs].max(axis=1) * line.widths
        held = held / held.sum() if held.sum() > 1 else held
        tails = np.zeros((line.n_cells, 2))
        for modes in (squares[k, m] for m in range(grid.dim)):
            tails += np.stack([modes[:, 2:].sum(axis=1), modes[:, :2].sum(axis=1)], axis=1)
        with np.errstate(invalid="ignore"):
            ratio = np.minimum(tails[:, 0] / np.maximum(tails[:, 1], 1e-300), 1.0)
        tails[:, 0], ratio = np.where(np.isnan(ratio), np.inf, tails[:, 0]), np.where(np.isnan(ratio), 1.0, ratio)
        result.append(np.sqrt(tails[:, 0] * ratio * held))
    return result


def _mode_squares(grid: Grid, k: int, root: float, part: FloatArray) -> FloatArray:
    """Means (cells, 4) over the other axes of the squares of `_modes` along axis k, of root times an array."""
    line = grid.lines[k]
    ahead, behind = (
        reduce(np.multiply.outer, masses, np.ones(1)).ravel() for masses in (grid.masses[:k], grid.masses[k + 1 :])
    )
    flat, modes = part.reshape(len(ahead), line.n, len(behind)), root * _modes(line.degree)
    local = sliding_window_view(flat, line.degree + 1, axis=1)[:, :: line.degree]  # (ahead, cells, behind, p + 1)
    if len(behind) == 1:
        return np.asarray(ahead @ (np.swapaxes(local[:, :, 0], 0, 1) @ modes.T) ** 2)
    squares = (modes @ np.swapaxes(local, 2, 3)) ** 2 @ behind
    return np.asarray((ahead @ squares.reshape(len(ahead), -1)).reshape(-1, 4))


def regraded(line: SpectralLine, found: FloatArray, allowed: float, tried: int = 0) -> FloatArray:
    """New edges of cells that share what is allowed: each as large as what was found (cells,) lets it be.

    What a cell of width h does not resolve is taken to go as h^(p+1), or by a lower power, (p + 1) / (tried + 1), where
    that was tried in vain: cells that are too large know no order.
    """
    share = _MARGIN * allowed / np.sqrt(line.n_cells)
    with np.errstate(invalid="ignore"):
        factor = (share / np.maximum(found, max(1e-300, 1e-300 * share))) ** ((tried + 1.0) / (line.degree + 1))
    factor = np.where(np.isnan(factor), 0.0, factor)  # where all is infinite nothing is resolved
    wanted = line.widths * np.clip(factor, _SHRINK, _STRETCH)
    width = line.grid[-1] - line.grid[0]
    wanted = np.clip(wanted, _FINEST * width, _LARGEST * width)
    return _filled(line.grid, line.widths, wanted, _RATIO, min(_FEWEST, line.n_cells))


def more_cells(line: SpectralLine, found: FloatArray, allowed: float, tried: int = 0, even: bool = False) -> FloatArray:
    """`regraded` if that makes more, or as many in better places where these are to be tried; else some halved."""
    new = regraded(line, found, allowed, tried)
    return new if len(new) >= len(line.grid) + (not even) else halved(line.grid, found > total(found) / _FEW)


def evened(edges: FloatArray, ratio: float) -> FloatArray:
    """Cells of at most these widths, of which neighbours differ by the ratio at most."""
    widths = np.diff(edges)
    return _filled(edges, widths, widths, ratio, widths.size)


def _filled(edges: FloatArray, widths: FloatArray, wanted: FloatArray, ratio: float, fewest: int) -> FloatArray:
    """New edges, of cells as wide as wanted in the old ones, but for a ratio of neighbours: the smaller one decides."""
    slope = np.arange(wanted.size) * np.log(ratio)
    logs = np.log(wanted)
    logs = np.minimum.accumulate(logs - slope) + slope
    logs = (np.minimum.accumulate((logs + slope)[::-1]))[::-1] - slope
    parts = widths / np.exp(logs)
    total = np.concatenate([[0.0], np.cumsum(parts)])
    cells = max(int(np.ceil(total[-1] - 1e-6)), fewest)
    new = np.interp(np.linspace(0.0, total[-1], cells + 1), total, edges)
    new[0], new[-1] = edges[0], edges[-1]
    return np.asarray(new)


def total(found: FloatArray) -> float:
    """The norm of what all cells of an axis do not resolve."""
    return float(np.sqrt((found**2).sum()))


def halved(edges: FloatArray, marked: BoolArray) -> FloatArray:
    """The marked cells halved."""
    return np.sort(np.concatenate([edges, 0.5 * (edges[:-1] + edges[1:])[marked]]))


def widened(edges: Sequence[FloatArray], moving: BoolArray, share: float) -> list[FloatArray]:
    """One more cell of this share of the width beyond each of the faces (2, d) that may move."""
    result = []
    for k, part in enumerate(edges):
        by = share * (part[-1] - part[0])
        low = [part[0] - by] if moving[0, k] else []
        high = [part[-1] + by] if moving[1, k] else []
        result.append(np.concatenate([low, part, high]))
    return result


def stretched(edges: Sequence[FloatArray], moving: BoolArray, share: float) -> list[FloatArray]:
    """As `widened`, but cells at these faces that are at least twice as wide are stretched, so that none is added."""
    result = []
    for k, part in enumerate(widened(edges, moving, share)):
        by = share * (edges[k][-1] - edges[k][0])
        kept = np.ones(len(part), dtype=np.bool_)
        kept[1] = not moving[0, k] or part[2] - part[1] < 2 * by
        kept[-2] &= not moving[1, k] or part[-2] - part[-3] < 2 * by
        result.append(part[kept])
    return result


def narrowed(edges: Sequence[FloatArray], moving: BoolArray, share: float) -> list[FloatArray]:
    """The faces (2, d) that may move this share of the width further in."""
    result = []
    for k, part in enumerate(edges):
        by = share * (part[-1] - part[0])
        low, high = part[0] + by * moving[0, k], part[-1] - by * moving[1, k]
        inner = part[(part > low + 0.3 * by) & (part < high - 0.3 * by)]
        result.append(np.concatenate([[low], inner, [high]]))
    return result


def transfer(u: FloatArray, old: Grid, new: Grid) -> FloatArray:
    """The function on another grid, by its own polynomials."""
    for k, (before, after) in enumerate(zip(old.lines, new.lines, strict=True)):
        if (matrix := rows_at(before, after.nodes, old.dim)) is not None:
            u = apply_axis(matrix, u, k)
    return np.ascontiguousarray(u)


def rows_at(line: SpectralLine, x: FloatArray, dim: int) -> AxisMatrix | None:
    """What takes values at the nodes of a line, an axis of dim, to points x (k,) of it; None if these are the nodes."""
    return None if np.array_equal(line.nodes, x) else in_blocks(line.rows(x), dim)
