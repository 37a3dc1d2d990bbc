"""How good a control is: its error under the laws that matter, what it earns, and what is certified of it."""

from fem_hjb.evaluation.certificate import Bounds, Certificate, Interval
from fem_hjb.evaluation.certify import certify
from fem_hjb.evaluation.control_error import ControlError, control_error
from fem_hjb.evaluation.objectives import Objectives, objectives
from fem_hjb.evaluation.policy_value import PolicyValue, evaluate_policy

__all__ = [
    "Bounds",
    "Certificate",
    "ControlError",
    "Interval",
    "Objectives",
    "PolicyValue",
    "certify",
    "control_error",
    "evaluate_policy",
    "objectives",
]
