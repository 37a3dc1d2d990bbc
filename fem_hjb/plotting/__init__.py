"""Pictures of solutions, policies and paths, comparisons, errors and checks."""

from fem_hjb.paths.extent import window
from fem_hjb.plotting.animation import animate
from fem_hjb.plotting.fields import paths, policy_field
from fem_hjb.plotting.pictures import STYLES, compare, report, solution, ticks_at
from fem_hjb.plotting.verdicts import checks

__all__ = [
    "STYLES",
    "animate",
    "checks",
    "compare",
    "paths",
    "policy_field",
    "report",
    "solution",
    "ticks_at",
    "window",
]
