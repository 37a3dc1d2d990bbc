"""What is to be solved, and what is known about it exactly.

`ControlProblem` is the question; `box` and `laws` say where the process lives and starts, `rewards` and `linear` are
coefficients with closed forms. `closed_form`, `mixtures` and `manufactured` have problems whose value is known; `zoo`
has them, and others, by name. `gauge` turns a value into the unknown of a linear equation, `blocks` takes a problem
apart into independent ones.
"""

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import ClosedForm, CosineSeries, LinearQuadratic, Product
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, ValueGauge, constant_gauge
from fem_hjb.problems.kernels import KernelDensity
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, PointMass, Uniform
from fem_hjb.problems.linear import linear_marginal, linear_transition
from fem_hjb.problems.manufactured import manufactured
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.mixtures import MixtureDiffusion, TiltedKernels, TiltedMixture, from_points
from fem_hjb.problems.problem import ControlProblem, LinearDrift, ValueFunction
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.problems.tilted_density import tilted_density

__all__ = [
    "Box",
    "ClosedForm",
    "ControlProblem",
    "CosineSeries",
    "ExitProblem",
    "Gauge",
    "Gaussian",
    "GaussianMixture",
    "KernelDensity",
    "Law",
    "LinearDrift",
    "LinearQuadratic",
    "LogSumExpReward",
    "MeshDomain",
    "MixtureDiffusion",
    "PointMass",
    "Product",
    "QuadraticGauge",
    "TiltedKernels",
    "TiltedMixture",
    "Uniform",
    "ValueFunction",
    "ValueGauge",
    "constant_gauge",
    "from_points",
    "linear_marginal",
    "linear_transition",
    "manufactured",
    "tilted_density",
    "zoo",
]
