"""Steps in time kept as cells of a basis in time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from fem_hjb.spaces.line import LineBasis
from fem_hjb.stepping.lawson import LawsonStep
from fem_hjb.support.checks import FloatArray

_STRAIGHT = 10.0  # tolerances by which the trapezoidal rule may miss a step that a cubic follows without a check
_MOST_PARTS = 7  # doublings of the parts a step is cut into


@final
@dataclass(frozen=True, eq=False)
class March:
    """u at the nodes of a time basis (rows, in increasing t), and counts."""

    line: LineBasis
    rows: FloatArray
    counts: dict[str, Any]


@final
class Cells:
    """Steps joined into longer cells in time, as long as a cubic through both ends fits the states between."""

    def __init__(self, norm: Callable[[FloatArray], float], tolerance: float, scale: float) -> None:
        self._norm, self._tolerance, self._scale = norm, tolerance, scale
        self._rows: list[FloatArray] = []
        self._ends: list[float] = []
        self._open: list[tuple[float, float, Any, Any]] = []

    def add(self, step: LawsonStep, first: Any, last: Any) -> None:
        """Join a step, or, if it is so long that a cubic does not follow u within it, keep it in parts of its own."""
        parts = self._parts(step, first, last)
        if parts > 1:
            self._close()
            h = step.h / parts
            for k in range(parts):
                inside = [step.dense((k + theta) / parts) for theta in (1 / 3, 2 / 3)]
                end = step.dense((k + 1) / parts) if k + 1 < parts else last[0]
                self._rows += [*inside, end]
                self._ends.append(step.t + (k + 1) * h)
            return
        if self._open and not self._fits(step.t + step.h, last):
            self._close()
        self._open.append((step.t, step.h, first, last))

    def _parts(self, step: LawsonStep, first: Any, last: Any) -> int:
        """Into how many parts a step must be cut, by the error of the cubic through its ends in the middle."""
        size = max(self._norm(last[0]), self._norm(first[0]), self._scale)
        bent = self._norm(last[0] - first[0] - 0.5 * step.h * (first[1] + last[1]))
        if bent <= _STRAIGHT * self._tolerance * size:
            return 1
        missed = self._norm(step.dense(0.5) - hermite(0.5, step.h, first, last)) / (self._tolerance * size)
        return 1 if missed <= 1 else 1 << min(int(np.ceil(np.log2(missed) / 4)) + 1, _MOST_PARTS)

    def _fits(self, end: float, last: Any) -> bool:
        begin, _, first, _ = self._open[0]
        length = end - begin
        size = max(self._norm(last[0]), self._scale)
        middle = self._open[len(self._open) // 2 :][0]
        at = middle[0] + middle[1]
        guess = hermite((at - begin) / length, length, first, last)
        return self._norm(guess - middle[3][0]) <= self._tolerance * size

    def _close(self) -> None:
        if not self._open:
            return
        t, _, first, _ = self._open[0]
        end, h, _, last = self._open[-1]
        length = end + h - t
        self._rows += [hermite(theta, length, first, last) for theta in (1 / 3, 2 / 3)] + [last[0]]
        self._ends.append(end + h)
        self._open = []

    def march(self, start: FloatArray, horizon: float, counts: dict[str, Any]) -> March:
        self._close()
        rows = np.array([row.ravel() for row in [start, *self._rows]][::-1])
        return March(LineBasis(reversed_grid(np.array([0.0, *self._ends]), horizon), "P3"), rows, counts)


def hermite(theta: float, h: float, first: Any, last: Any) -> FloatArray:
    rest = 1.0 - theta
    return np.asarray(
        rest**2 * (1 + 2 * theta) * first[0]
        + theta**2 * (3 - 2 * theta) * last[0]
        + h * theta * rest * (rest * first[1] - theta * last[1])
    )


def reversed_grid(ends: FloatArray, horizon: float) -> FloatArray:
    grid = horizon - ends[::-1]
    grid[0], grid[-1] = 0.0, horizon
    return np.asarray(grid)
