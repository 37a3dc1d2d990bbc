"""The implicit steps of `esdirk` on one panel of time, for linear equations some unknowns of which are prescribed."""

from typing import final

import numpy as np

from fem_hjb.stepping.adaptive import Size
from fem_hjb.stepping.esdirk import LinearSystem, Stages
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

_SHARE = 0.01  # of the last error estimate: what iterative solvers may spoil
_RANGE = 1e-13, 1e-9


@final
class ImplicitPanel(Stages):
    """M u' = K(s) u on [s0, s1], u of any shape.

    size : of arrays like u, relative to what errors are compared with.
    """

    def __init__(self, system: LinearSystem, s0: float, s1: float, size: Size) -> None:
        super().__init__(system, s1 - s0, {"steps": 0, "rejected": 0, "linear_solves": 0}, _RANGE[0], size)

    def first(self, s: float, u: FloatArray) -> FloatArray:
        return super().first(s, u.ravel()).reshape(u.shape)

    def step(self, s: float, h: float, u: FloatArray, k1: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u and u' at s + h, and the embedded estimate: nan where an iterative solver gave up, as it is no step."""
        try:
            u1, slope, error = super().step(s, h, u.ravel(), k1.ravel())
        except ConvergenceError:
            nothing = np.full(u.shape, np.nan)
            return nothing, nothing, nothing
        relative = float(np.linalg.norm(error)) / max(float(np.linalg.norm(u1)), 1e-300)
        self.rtol = float(np.clip(_SHARE * relative, *_RANGE)) if np.isfinite(relative) else _RANGE[0]
        return u1.reshape(u.shape), slope.reshape(u.shape), error.reshape(u.shape)
