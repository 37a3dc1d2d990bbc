"""fem_hjb: exact finite-element references and variational learning for linearly solvable stochastic control.

Importing it is cheap: each name below is loaded from its folder when it is first used.

>>> import fem_hjb as fh
>>> problem = fh.zoo.get("lq", dim=1)
>>> reference = fh.solve(problem, rtol=1e-6)
>>> bool(abs(reference.value(0.0, [0.5]) - problem.exact.value(0.0, [0.5])) < 1e-6)
True
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `_NAMES` and `_FOLDERS` say, for those who read types
    from fem_hjb import experiments as experiments
    from fem_hjb import interop as interop
    from fem_hjb import learning as learning
    from fem_hjb import paths as paths
    from fem_hjb import plotting
    from fem_hjb import problems as problems
    from fem_hjb import solutions as solutions
    from fem_hjb import spaces as spaces
    from fem_hjb import stationary as stationary
    from fem_hjb.evaluation import certify as certify
    from fem_hjb.evaluation import control_error as control_error
    from fem_hjb.evaluation import evaluate_policy as evaluate_policy
    from fem_hjb.evaluation import objectives as objectives
    from fem_hjb.interop import export as export
    from fem_hjb.learning import Bounds as Bounds
    from fem_hjb.learning import Convex as Convex
    from fem_hjb.learning import EnergyBall as EnergyBall
    from fem_hjb.learning import Monotone as Monotone
    from fem_hjb.learning import fit as fit
    from fem_hjb.learning import law_measure as law_measure
    from fem_hjb.paths import sample_paths as sample_paths
    from fem_hjb.problems import Box as Box
    from fem_hjb.problems import ControlProblem as ControlProblem
    from fem_hjb.problems import ExitProblem as ExitProblem
    from fem_hjb.problems import Gaussian as Gaussian
    from fem_hjb.problems import GaussianMixture as GaussianMixture
    from fem_hjb.problems import LinearDrift as LinearDrift
    from fem_hjb.problems import MeshDomain as MeshDomain
    from fem_hjb.problems import PointMass as PointMass
    from fem_hjb.problems import Uniform as Uniform
    from fem_hjb.problems import zoo as zoo
    from fem_hjb.reference import feynman_kac as feynman_kac
    from fem_hjb.reference import fokker_planck as fokker_planck
    from fem_hjb.reference import ground_state as ground_state
    from fem_hjb.reference import refine_on_mesh as refine_on_mesh
    from fem_hjb.reference import schroedinger_bridge as schroedinger_bridge
    from fem_hjb.reference import solve as solve
    from fem_hjb.reference import solve_exit as solve_exit
    from fem_hjb.reference import solve_on_mesh as solve_on_mesh
    from fem_hjb.reference import solve_stages as solve_stages
    from fem_hjb.solutions import Solution as Solution
    from fem_hjb.solutions import ToleranceWarning as ToleranceWarning
    from fem_hjb.solutions import compare as compare
    from fem_hjb.solutions import load_solution as load_solution
    from fem_hjb.solutions import save_solution as save_solution
    from fem_hjb.spaces import Space as Space
    from fem_hjb.spaces import load_mesh as load_mesh
    from fem_hjb.support import errors as errors
    from fem_hjb.support.errors import FemHjbError as FemHjbError

    plot = plotting

__version__ = "0.1.0"

_NAMES = {
    "evaluation": "certify control_error evaluate_policy objectives",
    "interop": "export",
    "learning": "Bounds Convex EnergyBall Monotone fit law_measure",
    "paths": "sample_paths",
    "problems": "Box ControlProblem ExitProblem Gaussian GaussianMixture LinearDrift MeshDomain PointMass Uniform zoo",
    "reference": (
        "feynman_kac fokker_planck ground_state refine_on_mesh schroedinger_bridge solve solve_exit solve_on_mesh"
        " solve_stages"
    ),
    "solutions": "Solution ToleranceWarning compare load_solution save_solution",
    "spaces": "Space load_mesh",
    "support.errors": "FemHjbError",
}
_FOLDERS = {
    "errors": "support.errors",
    "experiments": "experiments",
    "interop": "interop",
    "learning": "learning",
    "paths": "paths",
    "plot": "plotting",
    "problems": "problems",
    "solutions": "solutions",
    "spaces": "spaces",
    "stationary": "stationary",
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_WHERE, *_FOLDERS])


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        found = importlib.import_module(f"fem_hjb.{_FOLDERS[name]}")
    elif name in _WHERE:
        found = getattr(importlib.import_module(f"fem_hjb.{_WHERE[name]}"), name)
    else:
        raise AttributeError(f"module 'fem_hjb' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
