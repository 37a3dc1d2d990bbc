"""Grids of boxes weighted by laws alone, without a problem to solve."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from fem_hjb.paths.extent import Reach
from fem_hjb.reference.box_grading import make_grid
from fem_hjb.reference.box_panel import Grid
from fem_hjb.support.checks import FloatArray


def grid_on(
    edges: Sequence[FloatArray], degree: int, reaches: Sequence[Reach], first: float, last: float, floor: float = 1e-3
) -> Grid:
    """What `make_grid` makes for these laws over these parts of a horizon of 1."""
    equation: Any = SimpleNamespace(problem=SimpleNamespace(horizon=1.0), reaches=tuple(reaches), floor=floor)
    return make_grid(edges, degree, equation, 1.0 - last, 1.0 - first)
