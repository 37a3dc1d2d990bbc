"""How good a control is: its error under the laws that matter, and what it earns."""

from fem_hjb.evaluation.control_error import ControlError, control_error
from fem_hjb.evaluation.objectives import Objectives, objectives

__all__ = ["ControlError", "Objectives", "control_error", "objectives"]
