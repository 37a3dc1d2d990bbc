"""Coefficients in time: matrices of which a few make all others, and what steps have to see.

A coefficient c(t, x) is looked at, at a few points x, at `times`. Where the table of what it is has a small rank, so
that it looks like sum_j a_j(t) c(t_j, x) with some of these t_j, matrices are assembled at the t_j, and all others are
sums of these. Whether that is true is not left to the table: c(t, x) is evaluated at every quadrature point whenever a
matrix is asked for, and where it is not that sum to rounding, its own matrix is assembled.

The table also says between which times the coefficient changes, so that jumps are found by bisection, and whether the
stages of a step see what happens within it: what lasts for a twentieth of [0, T] is not missed.
"""

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
from scipy.linalg import qr
from scipy.linalg.blas import daxpy

from fem_hjb.problems.probing import instants
from fem_hjb.support.checks import FloatArray

_LOOKS = 33  # times in [0, T] at which coefficients are looked at
_SAME = 1e-14  # relative to the largest entry: what is not a change
_ROUNDING = 1e-13  # likewise: what is a sum to rounding
_MAX_RANK = 6
_MAX_BYTES = 500_000_000  # of coefficients and matrices kept for the sake of sums
_JUMP = 1e-3  # relative to the largest entry: changes that may be jumps
_AT_ONCE = 1e-13  # relative to T: the time that a jump may take
_UNSEEN = 0.1  # of the largest entry: what may happen between the stages of a step without their noticing
_FITTED = 4096  # entries of a coefficient that its a_j are fitted to; all of them are compared

Evaluate = Callable[[float], list[FloatArray]]
Assemble = Callable[[list[FloatArray], float], FloatArray]


@final
class Look:
    """A coefficient at a few points x: t -> at(t), of one shape, at a few times of [0, horizon]."""

    def __init__(self, at: Callable[[float], FloatArray], horizon: float) -> None:
        golden = np.arange(1, _LOOKS - 1) * 0.6180339887498949 % 1.0  # in step with nothing periodic
        self.times = np.unique(np.concatenate([golden * horizon, instants(horizon)]))
        self._at = at
        self._table = np.stack([at(float(t)).ravel() for t in self.times])
        self._size = max(float(np.abs(self._table).max()), 1e-300)
        self.steady = float(np.abs(self._table - self._table[0]).max()) <= _SAME * self._size

    def independent(self) -> list[float]:
        """Times t_j so that the coefficient looks like a combination of what it is then; [] if steady, or no few do."""
        if self.steady:
            return []
        triangle, order = qr(self._table.T, mode="r", pivoting=True)
        sizes = np.abs(np.diagonal(triangle))
        rank = int((sizes > _ROUNDING * sizes[0]).sum())
        return [] if rank > min(_MAX_RANK, self.times.size // 2) else self.times[order[:rank]].tolist()

    def jumps(self) -> list[float]:
        """Times at which the coefficient jumps, by bisection where it is different at neighbouring times."""
        found = []
        for k in np.flatnonzero(np.abs(np.diff(self._table, axis=0)).max(axis=1) > _JUMP * self._size):
            (start, end), (before, after) = self.times[k : k + 2], self._table[k : k + 2]
            first = change = float(np.abs(after - before).max())
            halvings = 0
            while change > 0.3 * first and end - start > _AT_ONCE * self.times[-1]:
                middle, halvings = float(start + end) / 2, halvings + 1
                value = self._at(middle).flatten()
                left, right = float(np.abs(value - before).max()), float(np.abs(after - value).max())
                if left > right:
                    end, after, change = middle, value, left
                else:
                    start, before, change = middle, value, right
            if halvings > 4 and end - start <= _AT_ONCE * self.times[-1]:
                found.append(float(start + end) / 2)
        return found

    def sees(self, stages: FloatArray) -> bool:
        """Whether what the coefficient is at these times tells what it is at all times looked at between them."""
        inside = (self.times > stages.min()) & (self.times < stages.max())
        if self.steady or not inside.any():
            return True
        told = _interpolation(stages, self.times[inside]) @ np.stack([self._at(float(t)).ravel() for t in stages])
        return bool((np.abs(told - self._table[inside]) <= _UNSEEN * self._size).all())


def inside(start: float, end: float, jumps: Sequence[float], horizon: float) -> tuple[float, float]:
    """The interval, where it begins or ends at a jump without the time that this may take."""
    margin = 10 * _AT_ONCE * horizon

    def at_jump(t: float) -> bool:
        return any(abs(t - jump) <= margin for jump in jumps)

    return (start + margin if at_jump(start) else start), (end - margin if at_jump(end) else end)


def _interpolation(nodes: FloatArray, at: FloatArray) -> FloatArray:
    """Piecewise linear interpolation, (len(at), len(nodes)): no polynomial overshoots what it tells of a jump."""
    order = np.argsort(nodes)
    return np.stack([np.interp(at, nodes[order], row) for row in np.eye(nodes.size)[:, order]], axis=1)


@final
class PartInTime:
    """The entries of a matrix that come from one coefficient.

    anchors : times at which the coefficient may make it at all others.
    steady : whether it is known not to depend on time, so that it is evaluated once only.
    """

    def __init__(self, anchors: Sequence[float] = (), steady: bool = False) -> None:
        self._anchors, self._steady = list(anchors), steady
        self.data: FloatArray = np.empty(0)
        self._ready, self._room = False, np.empty(0)  # new memory costs more than what is put there
        self._last: list[FloatArray] | FloatArray | None = None
        self._kept: list[list[FloatArray]] = []
        self._made: list[FloatArray] | None = None

    def update(self, t: float, evaluate: Evaluate, assemble: Assemble) -> bool:
        """Makes `data` those of time t; False if the coefficient is bitwise what it was, or the same sum.

        evaluate : the coefficient at all quadrature points at a time, arrays of the same shapes for each time.
        assemble : the entries, from these arrays and the time; linear in the coefficient.
        """
        if self._steady and self._ready:
            return False
        values = evaluate(t)
        if self._anchors and self._made is None:
            self._prepare(evaluate, assemble)
        weights = self._weights(values) if self._made is not None else None
        if self._made is not None and weights is not None:
            if isinstance(self._last, np.ndarray) and np.array_equal(weights, self._last):
                return False
            if self._room.size == 0:
                self._room = np.empty_like(self._made[0])
            self.data = _combination(weights, self._made, self._room)
            self._last, self._ready = weights, True
            return True
        if isinstance(self._last, list) and all(map(np.array_equal, self._last, values)):
            return False
        self.data, self._last, self._ready = np.empty(0), None, False  # lets go of the old before the new are made
        self.data, self._last, self._ready = assemble(values, t), values, True
        return True

    def _prepare(self, evaluate: Evaluate, assemble: Assemble) -> None:
        made: list[FloatArray] = []
        for t in self._anchors:
            values = evaluate(t)
            made.append(assemble(values, t))
            self._kept.append(values)
            if len(self._anchors) * (made[0].nbytes + sum(v.nbytes for v in values)) > _MAX_BYTES:
                self._anchors, self._kept = [], []
                return
        self._made = made
        self._fit = np.linalg.pinv(np.stack([self._some(values) for values in self._kept], axis=1), rcond=1e-14)
        self._sizes = np.array([max(float(np.abs(v).max()) for v in values) for values in self._kept])

    def _some(self, values: list[FloatArray]) -> FloatArray:
        stride = sum(v.size for v in values) // _FITTED | 1
        return np.concatenate([v.ravel()[::stride] for v in values])

    def _weights(self, values: list[FloatArray]) -> FloatArray | None:
        """The a_j, if the coefficient is this sum at every point, to rounding."""
        weights = np.asarray(self._fit @ self._some(values))
        allowed = _ROUNDING * float(np.abs(weights) @ self._sizes)
        for i, value in enumerate(values):
            rest = _combination(weights, [kept[i] for kept in self._kept], np.empty(value.shape))
            rest -= value
            if not max(float(rest.max()), -float(rest.min())) <= allowed:
                return None
        return weights


def _combination(weights: FloatArray, arrays: Sequence[FloatArray], total: FloatArray) -> FloatArray:
    np.multiply(arrays[0], weights[0], out=total)
    for weight, array in zip(weights[1:], arrays[1:], strict=True):
        add_scaled(total, weight, array)
    return total


def add_scaled(total: FloatArray, weight: float, array: FloatArray) -> None:
    """total += weight * array, of the same shape and contiguous, without room for the product."""
    daxpy(array.ravel(), total.ravel(), a=weight)
