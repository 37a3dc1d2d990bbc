"""Results: value, gradient and policy at any time and place, their errors, distances, densities and files."""

from fem_hjb.solutions.compare import compare, from_callables
from fem_hjb.solutions.comparison import Comparison
from fem_hjb.solutions.density import DensityLaw
from fem_hjb.solutions.estimate import ErrorEstimate, ToleranceWarning
from fem_hjb.solutions.files import OtherProblemWarning, load_paths, load_solution, save_paths, save_solution
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.solutions.staged import StagedSolution

__all__ = [
    "Comparison",
    "DensityLaw",
    "ErrorEstimate",
    "OtherProblemWarning",
    "ProductSolution",
    "Solution",
    "StagedSolution",
    "ToleranceWarning",
    "compare",
    "from_callables",
    "load_paths",
    "load_solution",
    "save_paths",
    "save_solution",
]
