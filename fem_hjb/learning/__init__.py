"""Learning f from samples: measures, estimators, convex sets, and the variational inequality over them."""

from fem_hjb.learning.constraints import Bounds, Constraint, Convex, EnergyBall, Monotone
from fem_hjb.learning.estimators import ESTIMATORS, Estimator, Setting, Terms, doob, register_estimator
from fem_hjb.learning.fit import fit
from fem_hjb.learning.forms import Operator
from fem_hjb.learning.linear_set import LinearSet
from fem_hjb.learning.matching import choose_penalty
from fem_hjb.learning.measures import Measure, empirical_measure, law_measure, sampled_law_measure
from fem_hjb.learning.population import split_error, yardstick
from fem_hjb.learning.selection import Candidate, Selection, cross_validate
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import System, assemble

__all__ = [
    "ESTIMATORS",
    "Bounds",
    "Candidate",
    "Constraint",
    "Convex",
    "EnergyBall",
    "Estimator",
    "LinearSet",
    "Measure",
    "Monotone",
    "Operator",
    "Selection",
    "Setting",
    "System",
    "Terms",
    "assemble",
    "choose_penalty",
    "cross_validate",
    "doob",
    "empirical_measure",
    "fit",
    "law_measure",
    "register_estimator",
    "sampled_law_measure",
    "solve_system",
    "split_error",
    "yardstick",
]
