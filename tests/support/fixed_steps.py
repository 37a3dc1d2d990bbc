"""Equal steps by the private steppers of methods that choose their steps: what their orders are measured with."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference import box_newton as newton
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.stepping import lawson
from fem_hjb.stepping import radau as collocation
from fem_hjb.stepping.lawson import LawsonStep
from fem_hjb.stepping.radau import RadauStep


def equal_lawson(
    separable: Any, remainder: Any, f0: ArrayLike, s0: float, s1: float, *, steps: int, norm: Any = None
) -> list[LawsonStep]:
    """What `lawson` would yield with this many equal steps."""
    stepper = lawson._Stepper(separable, remainder, np.array(f0, dtype=np.float64), norm, 0.0)
    h = (s1 - s0) / steps
    return [
        stepper.accept(t, h, stepper.attempt(t, h), limited=False, rejected=0)
        for t in np.linspace(s0, s1, steps + 1)[:-1].tolist()
    ]


def equal_radau(
    matrix: Any,
    f0: ArrayLike,
    s0: float,
    s1: float,
    *,
    steps: int,
    stages: int = 5,
    norm: Any = None,
    fixed: ArrayLike | None = None,
    fixed_values: Any = None,
) -> list[RadauStep]:
    """What `radau` would yield with this many equal steps."""
    indices = np.asarray([] if fixed is None else fixed, dtype=np.int64)
    tableau = collocation.radau_tableau(stages)
    stepper = collocation._Stepper(matrix, np.array(f0, dtype=np.float64), s0, tableau, norm, indices, fixed_values)
    h, done = (s1 - s0) / steps, []
    for t in np.linspace(s0, s1, steps + 1)[:-1].tolist():
        states, error, end, _ = stepper.attempt(t, h)
        done.append(stepper.accept(t, h, states, error, end, 0))
    return done


def equal_newton(problem: ControlProblem, basis: SpectralBasis, background: Any, steps: int) -> Solution:
    """What `solve_value` would return with this many equal steps, Newton's method being iterated to rounding."""
    stepper = newton._Stepper(newton._ValueEquation(problem, basis, background), 1e-9)
    stepper.tolerance = 1e-11
    for k in range(steps):
        stepper.s = k * problem.horizon / steps
        stepper.accept(problem.horizon / steps, *stepper.attempt(problem.horizon / steps), 0)
    return newton._solution(stepper)
