"""Policies that a user gives: any callable (t, x) -> (n, d), called in one place."""

from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike

from fem_hjb.problems.problem import checked_call
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import FemHjbError, ProblemError

Policy = Callable[[float, FloatArray], ArrayLike]
"""pi, a callable (t, x) -> (n, d) for a number t and points x (n, d)."""


def require_policy(policy: Any) -> None:
    """ProblemError unless it can be called."""
    if not callable(policy):
        hint = "; give its method .policy" if hasattr(policy, "policy") else ""
        raise ProblemError(f"policy must be a callable (t, x) -> (n, d), got {type(policy).__name__}{hint}")


def steer(policy: Policy, t: float, x: FloatArray) -> FloatArray:
    """pi_t(x), (n, d), finite, or a ProblemError; errors of solutions, whose policies end somewhere, pass."""
    return checked_call("policy(t, x)", policy, (t, x), x.shape[-1:], passes=FemHjbError)
