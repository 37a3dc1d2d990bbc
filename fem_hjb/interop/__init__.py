"""Solutions for other programs: regular grids of value, control and densities, and files on the solution's own mesh."""

from fem_hjb.interop.export import export

__all__ = ["export"]
