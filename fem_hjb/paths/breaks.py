"""The times at which coefficients jump: steps that go across one would miss it, or take it for as long as they are."""

from collections.abc import Callable

import numpy as np

from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray

SCAN = 256  # intervals of time that are looked at
_MOST = 32
_STEEP = 8.0  # times the median change: an interval that is looked at closely
_HALVINGS = 44
_EDGE = 1e-9  # of the horizon: its ends are looked at, and jumps stepped over, so far inside


def jumps_of(rows: Callable[[FloatArray], FloatArray], horizon: float, scan: int = SCAN) -> list[float]:
    """The times at which rows, from times (k,) to (k, m, n) with m fields at n points, jump, as seen at scan + 1 times.

    Narrower windows are missed.
    """
    grid = horizon * np.linspace(_EDGE, 1.0 - _EDGE, scan + 1)
    values = rows(grid)
    scale = np.maximum(np.abs(values).max(axis=(0, 2)), 1e-300)[:, None]
    change = (np.abs(np.diff(values, axis=0)) / scale).max(axis=(1, 2))
    steep = np.flatnonzero(change > _STEEP * np.median(change) + 1e-10)
    steep = steep[np.argsort(-change[steep])][:_MOST]
    low, high, before, after = grid[steep], grid[steep + 1], values[steep], values[steep + 1]
    size = change[steep]
    for _ in range(_HALVINGS):
        if not low.size:
            break
        middle = (low + high) / 2
        between = rows(middle)
        left = (np.abs(between - before) / scale).max(axis=(1, 2))
        right = (np.abs(after - between) / scale).max(axis=(1, 2))
        keep = np.maximum(left, right) > 0.75 * size
        first = (left >= right)[:, None, None]
        low, high = np.where(left >= right, low, middle), np.where(left >= right, middle, high)
        before, after = np.where(first, before, between), np.where(first, between, after)
        low, high, before, after, size = (part[keep] for part in (low, high, before, after, size))
    found: list[float] = np.unique((low + high) / 2).tolist()
    return found


def all_times(times: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Times (k, n) and points (k, n, d): each time with each point."""
    return np.repeat(times[:, None], len(x), axis=1), np.broadcast_to(x, (len(times), *x.shape))


def fields_of(b: FloatArray, r: FloatArray, Lambda: FloatArray | None) -> FloatArray:
    """Drift (k, n, d), reward (k, n) and perhaps Lambda (k, n, d, d) as rows (k, m, n)."""
    parts = [np.swapaxes(b, 1, 2), r[:, None]]
    if Lambda is not None:
        parts.append(np.swapaxes(Lambda.reshape(*r.shape, -1), 1, 2))
    return np.concatenate(parts, axis=1)


def around_breaks(problem: ControlProblem, x: FloatArray) -> FloatArray:
    """Just before and just after each time at which drift, running reward or diffusion jump at points x (n, d)."""
    varies = problem.constant_diffusion is None

    def rows(times: FloatArray) -> FloatArray:
        t, points = all_times(times, x)
        return fields_of(problem.b(t, points), problem.r(t, points), problem.Lambda(t, points) if varies else None)

    T = problem.horizon
    found = np.array(jumps_of(rows, T))[:, None] + T * np.array([-_EDGE, _EDGE])
    return np.clip(found.ravel(), 0.0, T)
