"""Implicit Runge-Kutta steps of equal length, as tests of the order of convergence need them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.stepping import radau as collocation
from fem_hjb.stepping.radau import RadauStep


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
