"""What is to be solved: control problems, laws, boxes, the Cole-Hopf gauge, exact solutions, and a zoo of problems."""

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import CosineSeries, LinearQuadratic, Product
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, ValueGauge, constant_gauge
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, PointMass, Uniform
from fem_hjb.problems.mixtures import MixtureDiffusion, TiltedMixture
from fem_hjb.problems.problem import ControlProblem, LinearDrift, ValueFunction
from fem_hjb.problems.rewards import LogSumExpReward

__all__ = [
    "Box",
    "ControlProblem",
    "CosineSeries",
    "Gauge",
    "Gaussian",
    "GaussianMixture",
    "Law",
    "LinearDrift",
    "LinearQuadratic",
    "LogSumExpReward",
    "MixtureDiffusion",
    "PointMass",
    "Product",
    "QuadraticGauge",
    "TiltedMixture",
    "Uniform",
    "ValueFunction",
    "ValueGauge",
    "constant_gauge",
    "zoo",
]
