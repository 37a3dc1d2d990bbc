"""Trajectories: simulated, stored, summed over in chunks, and how far they go."""

from fem_hjb.paths.extent import Truncation, truncation_box
from fem_hjb.paths.simulate import Paths, sample_paths
from fem_hjb.paths.sources import PathSource, array_source, simulated_source
from fem_hjb.paths.stored import file_source, write_paths
from fem_hjb.paths.tree_sum import tree_sum

__all__ = [
    "PathSource",
    "Paths",
    "Truncation",
    "array_source",
    "file_source",
    "sample_paths",
    "simulated_source",
    "tree_sum",
    "truncation_box",
    "write_paths",
]
