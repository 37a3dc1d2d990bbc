"""When and where runs are compared: times within panels, and places that no draws tell."""

from collections.abc import Sequence

import numpy as np

from fem_hjb.reference.box_run import PanelRun
from fem_hjb.support.checks import FloatArray

_BESIDE = 2  # nodes on each side of an edge


def looked_at(panel: PanelRun, absorbing: bool) -> FloatArray:
    """Times to go within a panel: errors jump where it starts on another grid, grow while what is steep moves out of
    its small cells, and are largest in the middle of steps; of long ones where these are joined."""
    ends = panel.ends
    longest = _longest(panel)
    middle = 0.5 * (ends[longest] + ends[longest + 1]) if absorbing else 0.5 * (ends[0] + ends[-1])
    return np.array([0.5 * (ends[0] + ends[1]), middle, 0.5 * (ends[-2] + ends[-1])])


def between(panels: Sequence[PanelRun], most: int) -> FloatArray:
    """The middles of so many steps, spread evenly: what moves from cell to cell is least resolved now and then."""
    middles = np.concatenate([0.5 * (panel.ends[1:] + panel.ends[:-1]) for panel in panels])
    return np.asarray(middles[np.linspace(0, middles.size - 1, min(max(most, 0), middles.size)).astype(int)])


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
