"""When and where runs are compared: times within panels, places that hold draws, and such as no draws tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_run import PanelRun
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.support.checks import FloatArray

_PLACES = {1: 256, 2: 48, 3: 24}  # along an axis
_BESIDE = 2  # nodes on each side of an edge


def looked_at(panel: PanelRun, absorbing: bool) -> FloatArray:
    """Times to go within a panel: errors jump where it starts on another grid, grow while what is steep moves out of
    its small cells, and are largest in the middle of steps; of long ones where these are joined."""
    ends = panel.ends
    longest = _longest(panel)
    middle = 0.5 * (ends[longest] + ends[longest + 1]) if absorbing else 0.5 * (ends[0] + ends[-1])
    return np.array([0.5 * (ends[0] + ends[1]), middle, 0.5 * (ends[-2] + ends[-1])])


def between(panels: Sequence[PanelRun], most: int) -> FloatArray:
    """The middles of so many steps, spread over steps and over time alike: what moves from cell to cell is least
    resolved now and then, and rewards that change while they have kinks show it in the middle of long panels.
    """
    ends = panels[-1].ends[-1]
    middles = np.concatenate([0.5 * (panel.ends[1:] + panel.ends[:-1]) for panel in panels])
    order = np.linspace(0.0, 1.0, middles.size) + middles / ends
    asked = np.linspace(order[0], order[-1], min(max(most, 0), middles.size))
    return np.asarray(middles[np.unique(np.searchsorted(order, asked))])


def at_edges(panels: Sequence[PanelRun], s: float) -> list[FloatArray]:
    """On a line, the nodes next to the edges of cells, where a gradient that is not resolved is most wrong."""
    panel = next((panel for panel in panels if s <= panel.ends[-1]), panels[-1])
    if panel.grid.dim > 1:
        return []
    line = panel.grid.lines[0]
    inner = line.grid[1:-1, None]
    near = np.searchsorted(line.nodes, inner - 1e-9 * line.widths[:-1, None]) + np.arange(-_BESIDE, _BESIDE + 1)
    x = line.nodes[near]
    x[:, _BESIDE] -= 1e-9 * line.widths[:-1]
    return [np.concatenate([x.ravel(), line.grid[1:-1] + 1e-9 * line.widths[1:]])]


def _longest(panel: PanelRun) -> int:
    """The last of the longest steps."""
    lengths = np.diff(panel.ends)
    return int(np.flatnonzero(lengths >= lengths.max() * (1 - 1e-9))[-1])


@final
@dataclass(frozen=True, eq=False)
class Places:
    """Where runs are compared at a time to go s: a tensor grid that holds draws under the laws as weights.

    axes : coordinates (m_k,), increasing.  weights : for each law (*shape), of sum 1.
    Lambda : (d, d), or (*shape, d, d) where it varies.
    """

    s: float
    axes: tuple[FloatArray, ...]
    weights: tuple[FloatArray, ...]
    Lambda: FloatArray

    @property
    def nodes(self) -> FloatArray:
        """(n, d)."""
        return tensor_points(self.axes)


def places_of(
    problem: ControlProblem,
    s: float,
    draws: Sequence[FloatArray],
    bounds: Sequence[FloatArray],
    more: Sequence[FloatArray] = (),
) -> Places:
    """Draws (n, d) under each law, those within bounds, shared out linearly among the neighbours on a grid.

    Draws of a process that has been stopped are left out as long as others are there: nothing is to be steered.

    more : coordinates of the grid along each axis, as far as draws go, besides those that follow the draws.
    """
    inside = [x[((x >= bounds[0]) & (x <= bounds[1])).all(axis=1)] for x in draws]
    if problem.domain is not None and problem.domain.absorbing:
        running = [x[~problem.domain.exited(x)] for x in inside]
        inside = running if any(map(len, running)) else inside
    pooled = np.concatenate(inside)
    half = _PLACES[problem.dim] // 2
    axes = []
    ranks = np.linspace(0.0, len(pooled) - 1.0, half)
    for k, column in enumerate(np.sort(pooled.T, axis=1)):
        low, high = column[[0, -1]]
        parts = [np.linspace(low, high, half), np.interp(ranks, np.arange(len(column)), column)]
        parts += [x[(x > low) & (x < high)] for x in more[k : k + 1]]
        axes.append(np.unique(np.concatenate(parts)))
    constant, t = problem.constant_diffusion, problem.horizon - s
    shape = tuple(map(len, axes))
    Lambda = (
        problem.Lambda(t, tensor_points(axes)).reshape(*shape, *pooled.shape[1:] * 2) if constant is None else constant
    )
    return Places(s, tuple(axes), tuple(_shared(axes, x) for x in inside if len(x)), Lambda)


def _shared(axes: Sequence[FloatArray], x: FloatArray) -> FloatArray:
    """The weights (*shape) of a sum over points x (n, d), each shared out multilinearly; of sum 1."""
    place, share = np.zeros((1, len(x)), dtype=np.int64), np.full((1, len(x)), 1.0 / len(x))
    for axis, column in zip(axes, x.T, strict=True):
        k = np.clip(np.searchsorted(axis, column, side="right") - 1, 0, max(len(axis) - 2, 0))
        above = np.minimum(k + 1, len(axis) - 1)
        width = axis[above] - axis[k]
        part = np.divide(column - axis[k], width, out=np.zeros(len(x)), where=width > 0)
        place = len(axis) * place
        place, share = np.concatenate([place + k, place + above]), np.concatenate([share * (1.0 - part), share * part])
    shape = tuple(len(axis) for axis in axes)
    return np.asarray(np.bincount(place.ravel(), share.ravel(), math.prod(shape)).reshape(shape), dtype=np.float64)
