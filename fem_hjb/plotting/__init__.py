"""Pictures of solutions, comparisons and errors."""

from fem_hjb.paths.extent import window
from fem_hjb.plotting.pictures import STYLES, compare, report, solution, ticks_at

__all__ = ["STYLES", "compare", "report", "solution", "ticks_at", "window"]
