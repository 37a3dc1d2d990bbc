"""fem_hjb: exact finite-element references and variational learning for linearly solvable stochastic control.

>>> import fem_hjb as fh
>>> problem = fh.zoo.get("lq", dim=1)
>>> reference = fh.solve(problem, rtol=1e-6)
>>> bool(abs(reference.value(0.0, [0.5]) - problem.exact.value(0.0, [0.5])) < 1e-6)
True
"""

from fem_hjb import closed_form, experiments, features, fokker_planck, mixtures, population, samples, zoo
from fem_hjb import plotting as plot
from fem_hjb._checks import (
    ConstraintError,
    ConvergenceError,
    DomainError,
    EllipticityError,
    FemHjbError,
    InfiniteValueError,
    MeasureError,
    OutputError,
    PositivityError,
    ProblemError,
    SpaceError,
)
from fem_hjb.assembly import assemble
from fem_hjb.compare import Comparison, ComparisonError, compare, from_callables
from fem_hjb.constraints import Bounds, Convex, EnergyBall, Monotone
from fem_hjb.domain import box_mesh, load_mesh, truncation_box
from fem_hjb.elements import ELEMENTS
from fem_hjb.estimate import ErrorEstimate, ToleranceWarning
from fem_hjb.io import load_paths, load_solution, save_paths, save_solution
from fem_hjb.laws import Box, Gaussian, GaussianMixture, Law, PointMass, Uniform
from fem_hjb.learning import Candidate, cross_validate, fit
from fem_hjb.measures import Measure, empirical_measure, law_measure, sampled_law_measure
from fem_hjb.optimality import control_error, objectives
from fem_hjb.problem import ControlProblem, LinearDrift, ValueFunction
from fem_hjb.reference import solve
from fem_hjb.samples import PathSource, array_source, file_source, simulated_source, write_paths
from fem_hjb.sde import Paths, sample_paths
from fem_hjb.solution import ProductSolution, Solution
from fem_hjb.spaces import Space
from fem_hjb.variational import solve_system

__version__ = "0.1.0"

__all__ = [
    "ELEMENTS",
    "Bounds",
    "Box",
    "Candidate",
    "Comparison",
    "ComparisonError",
    "ConstraintError",
    "ControlProblem",
    "ConvergenceError",
    "Convex",
    "DomainError",
    "EllipticityError",
    "EnergyBall",
    "ErrorEstimate",
    "FemHjbError",
    "Gaussian",
    "GaussianMixture",
    "InfiniteValueError",
    "Law",
    "LinearDrift",
    "Measure",
    "MeasureError",
    "Monotone",
    "OutputError",
    "PathSource",
    "Paths",
    "PointMass",
    "PositivityError",
    "ProblemError",
    "ProductSolution",
    "Solution",
    "Space",
    "SpaceError",
    "ToleranceWarning",
    "Uniform",
    "ValueFunction",
    "array_source",
    "assemble",
    "box_mesh",
    "closed_form",
    "compare",
    "control_error",
    "cross_validate",
    "empirical_measure",
    "experiments",
    "features",
    "file_source",
    "fit",
    "fokker_planck",
    "from_callables",
    "law_measure",
    "load_mesh",
    "load_paths",
    "load_solution",
    "mixtures",
    "objectives",
    "plot",
    "population",
    "sample_paths",
    "sampled_law_measure",
    "samples",
    "save_paths",
    "save_solution",
    "simulated_source",
    "solve",
    "solve_system",
    "truncation_box",
    "write_paths",
    "zoo",
]
