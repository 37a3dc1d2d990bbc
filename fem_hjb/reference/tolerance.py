"""Tolerances that are asked for: which ones make sense, and what is said when one is not met."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fem_hjb.solutions.estimate import ErrorEstimate, ToleranceWarning
from fem_hjb.solutions.ground import GroundState
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.solutions.staged import StagedSolution
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution
from fem_hjb.support.errors import ConvergenceError

LEAST_RTOL, LARGEST_RTOL = 1e-10, 0.1

AnySolution = TypeVar("AnySolution", bound=Solution | ProductSolution)
Judged = TypeVar(
    "Judged", bound=Solution | ProductSolution | StagedSolution | ExitSolution | ExitExpectation | GroundState
)


def checked_rtol(rtol: Any, name: str = "rtol") -> float:
    """A relative tolerance of value and policy; ConvergenceError if it is none or out of range."""
    number = float(rtol) if isinstance(rtol, int | float | np.number) and not isinstance(rtol, bool) else math.nan
    if not LEAST_RTOL <= number <= LARGEST_RTOL:
        raise ConvergenceError(
            f"{name} must be a number from {LEAST_RTOL:g}, what double precision allows, to {LARGEST_RTOL:g},"
            f" got {rtol!r}"
        )
    return number


def judged(solution: Judged, estimate: ErrorEstimate, rtol: float, who: str, stats: Mapping[str, Any]) -> Judged:
    """The solution with this estimate and more stats, and a warning and a status that say so if rtol is not met.
    Checks that failed are warned of, too.

    who : called what in the warning, which points to the caller of the caller.
    """
    failed = [str(check) for check in solution.checks if not check.passed]
    unmet = [] if estimate.met(rtol) else [estimate.complaint(rtol, who)]
    status = "; ".join([*([] if solution.status == "ok" else [solution.status]), *failed, *unmet]) or "ok"
    if failed or unmet:
        warnings.warn(status if who in status else f"{who}: {status}", ToleranceWarning, stacklevel=3)
    return replace(solution, status=status, error_estimate=estimate, stats={**solution.stats, **stats})
