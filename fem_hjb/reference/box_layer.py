r"""Where rewards at T jump or have kinks: the cells on which they are averaged, and when that is no way.

A jump is as rough on any grid, but at a time to go s it has become as wide as paths spread by then: cells need not be
narrower than what follows that from a small s on, and no more than can be paid for. Before, no policy is known well.
"""

import math
from collections.abc import Sequence

import numpy as np

from fem_hjb.reference.box_grading import evened, regraded
from fem_hjb.reference.box_panel import Grid
from fem_hjb.support.checks import FloatArray

JUMP = 0.1  # of the gradient: what no grid resolves of a jump; of a kink it is less
STEEPEST = 24.0  # temperatures in a cell: rounding of exp is no more than 3e-6 of small values next to large ones
FAINTEST = 3e-7  # temperatures in a cell: below, rounding of exp is not small beside slopes of what jumps
SETTLED = 0.5  # of what is allowed not to be resolved of the gradient: where a layer ends
_MOST = {1: 600, 2: 80_000, 3: 250_000}  # unknowns; more would make the layer thinner and nothing else better
_WITHIN = 0.35  # of the spread of paths: the distance of nodes that follows it
_RATIO = 2.0  # of the widths of neighbours: a layer is to be resolved in the next cell, too, when it comes there
_HALVINGS = 9
_COARSEST = 40.0  # logarithm of what may be left over what is allowed


def edges_for_layer(
    grid: Grid, more: int, found: Sequence[FloatArray], allowed: float, noise: FloatArray, most: int
) -> list[FloatArray]:
    """Cells on which to average what is not resolved at T, if those of a grid are fine or many enough; else none.

    more : the unknowns of the next grid.  found : `unresolved`.  allowed : of it.  most : unknowns.
    noise : (d,), the spread of paths in the time from which on they are to be followed.
    """
    most = min(_MOST[grid.dim], most)
    narrow = [line.widths.min() < _WITHIN * line.degree * n for line, n in zip(grid.lines, noise, strict=True)]
    if more <= most:
        return [evened(line.grid, _RATIO) for line in grid.lines] if any(narrow) else []
    low, high = 0.0, _COARSEST
    edges = [line.grid for line in grid.lines]
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        share = np.exp(middle) * allowed
        tried = [evened(regraded(line, part, share), _RATIO) for line, part in zip(grid.lines, found, strict=True)]
        if _unknowns(grid, tried) > most:
            low = middle
        else:
            high, edges = middle, tried
    return edges


def _unknowns(grid: Grid, edges: Sequence[FloatArray]) -> int:
    return math.prod((len(part) - 1) * line.degree + 1 for line, part in zip(grid.lines, edges, strict=True))


def steepest(grid: Grid, w: FloatArray) -> float:
    """The most that w (*shape) differs by in a cell where the law is."""
    density = [mass / line.weights for line, mass in zip(grid.lines, grid.masses, strict=True)]
    high, low, seen = w, w, np.ones(())
    for k, (line, part) in enumerate(zip(grid.lines, density, strict=True)):
        high = np.moveaxis(np.moveaxis(high, k, 0)[line.cell_dofs].max(axis=1), 0, k)
        low = np.moveaxis(np.moveaxis(low, k, 0)[line.cell_dofs].min(axis=1), 0, k)
        seen = np.multiply.outer(seen, part[line.cell_dofs].max(axis=1) / part.max())
    return float(np.where(seen >= grid.floor, high - low, 0.0).max())
