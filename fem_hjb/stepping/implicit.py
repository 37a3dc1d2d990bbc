"""Implicit steps on one panel of time, for linear equations some unknowns of which are prescribed.

The method is that of `esdirk`, of order 4, prescribed unknowns or not. `march` and `replay` of `lawson` take its steps:
what one step hands over to the next is u'.
"""

from typing import final

import numpy as np

from fem_hjb.stepping.esdirk import LinearSystem, Stages
from fem_hjb.stepping.lawson import Size, Step
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

_SHARE = 0.01  # of the last error estimate: what iterative solvers may spoil
_RANGE = 1e-13, 1e-9
_SOON = 0.01  # of a panel: over this, the slope of what is prescribed is taken at its start


@final
class ImplicitPanel:
    """M u' = K(s) u on [s0, s1], u of any shape.

    size : of arrays like u, relative to what errors are compared with.
    """

    def __init__(self, system: LinearSystem, s0: float, s1: float, size: Size) -> None:
        self.system, self.size, self._soon = system, size, _SOON * (s1 - s0)
        self.counts = {"steps": 0, "rejected": 0, "linear_solves": 0}
        self._stages = Stages(system, _RANGE[0])

    def first(self, s: float, u: FloatArray) -> FloatArray:
        """u' at the start."""
        return self._stages.slope(s, u.ravel(), self._soon).reshape(u.shape)

    def slope(self, u: FloatArray, left: FloatArray) -> FloatArray:
        return left

    def step(self, s: float, h: float, u: FloatArray, k1: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u and u' at s + h, and the embedded estimate: nan where an iterative solver gave up, as it is no step."""
        stages = self._stages
        stages.solves = 0
        try:
            u1, slope, error, _ = stages.step(s, h, u.ravel(), k1.ravel())
        except ConvergenceError:
            nothing = np.full(u.shape, np.nan)
            return nothing, nothing, nothing
        finally:
            self.counts["linear_solves"] += stages.solves
        relative = float(np.linalg.norm(error)) / max(float(np.linalg.norm(u1)), 1e-300)
        stages.rtol = float(np.clip(_SHARE * relative, *_RANGE)) if np.isfinite(relative) else _RANGE[0]
        return u1.reshape(u.shape), slope.reshape(u.shape), error.reshape(u.shape)

    def middle(self, h: float, step: Step, k1: FloatArray, k5: FloatArray) -> FloatArray:
        """By a step half as long."""
        return self.step(step.s, h / 2, step.u0, k1)[0]

    def forget(self) -> None:
        """Let go of the factors of the last matrix."""
        self._stages = Stages(self.system, self._stages.rtol)
