"""Solutions asked at arrays of any precision."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.checks import FloatArray, one_of
from fem_hjb.support.errors import DomainError, ProblemError

_ULPS = 2.0  # by which arithmetic may have moved a time beyond the horizon


def answer(
    solution: Solution | ProductSolution, what: str, t: NDArray[Any], x: NDArray[Any], outside: str
) -> FloatArray:
    """value, gradient or policy at t (S) and x (*S, d), computed in float64.

    A horizon is not a number of every precision: float32(0.3) > 0.3. Times that lie outside [0, T] by no more than two
    units in the last place of their own type are taken for its end.
    """
    horizon = solution.problem.horizon
    exact = t.astype(np.float64)
    inside = np.clip(exact, 0.0, horizon)
    slack = _ULPS * float(np.finfo(t.dtype).eps) * horizon if t.dtype.kind == "f" else 0.0
    times = np.where(np.abs(exact - inside) <= slack, inside, exact)
    if times.size and np.ptp(times) == 0.0:
        times = times.flat[0]  # solutions are faster, and the same to the bit as for a number
    found: FloatArray = getattr(solution, what)(times, x.astype(np.float64), outside=outside)
    return found


def checked_solution(solution: Any, outside: Any, asker: str) -> Solution | ProductSolution:
    """The solution, or a ProblemError that says who wanted one; DomainError for other words than "error" and "nan"."""
    if not isinstance(solution, Solution | ProductSolution):
        raise ProblemError(f"{asker} needs the solution of solve, solve_on_mesh or fit, got {type(solution).__name__}")
    one_of(outside, "outside", ("error", "nan"), DomainError)
    return solution


def checked_shapes(t: tuple[int, ...], x: tuple[int, ...], dim: int, asker: str) -> tuple[int, ...]:
    """The shape S of what t and x (..., d) broadcast to, or a DomainError that says who was asked."""
    if not x or x[-1] != dim:
        raise DomainError(f"{asker}: x must hold points in rows, shape (..., {dim}), got shape {x}")
    try:
        return np.broadcast_shapes(t, x[:-1])
    except ValueError as cause:
        raise DomainError(
            f"{asker}: t of shape {t} does not fit x of shape {x}; t is a number or has the shape {x[:-1]}"
        ) from cause
