"""Problems beyond a finite horizon: until an exit, for ever, and between two laws.

`ExitProblem` and `solve_exit` are names of `fem_hjb` itself. Here are the other ways to ask: on meshes, for
expectations until the exit (committors, mean exit times), along paths, and bounds that paths prove.
"""

from fem_hjb.evaluation.certify_exit import certify_exit
from fem_hjb.paths.exit_paths import ExitPaths, sample_exit
from fem_hjb.reference.bridge import schroedinger_bridge
from fem_hjb.reference.exit_box import committor, exit_expectation, mean_exit_time, solve_exit
from fem_hjb.reference.exit_mesh import exit_expectation_on_mesh, solve_exit_on_mesh
from fem_hjb.reference.ground_state import ground_state, ground_state_on_mesh
from fem_hjb.solutions.bridge import Bridge
from fem_hjb.solutions.ground import GroundState
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution

__all__ = [
    "Bridge",
    "ExitExpectation",
    "ExitPaths",
    "ExitSolution",
    "GroundState",
    "certify_exit",
    "committor",
    "exit_expectation",
    "exit_expectation_on_mesh",
    "ground_state",
    "ground_state_on_mesh",
    "mean_exit_time",
    "sample_exit",
    "schroedinger_bridge",
    "solve_exit",
    "solve_exit_on_mesh",
]
