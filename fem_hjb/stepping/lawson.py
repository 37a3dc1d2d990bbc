r"""Lawson's method on one panel of time: the separable part of an equation by exponentials, the rest explicitly.

For u' = S u + N(s, u) on arrays u of shape (n_1, ..., n_d) with S = sum_k 1 x .. x S_k x .. x 1 constant, the
exponential exp(h S) is the product of the small exp(h S_k) along the axes, and v = exp(-(s - s_n) S) u solves
v' = exp(-(s - s_n) S) N(s, u), in which the stiff S is gone (J. D. Lawson, SIAM J. Numer. Anal. 4 (1967) 372-380).
The classical Runge-Kutta method of order 4 for v has its nodes at 0, 1/2 and 1, so that E = exp(h/2 S) is all it needs:

    a  = E u,   b = E k_1,                    k_1 = N(s, u),
    k_2 = N(s + h/2, a + h/2 b),              k_3 = N(s + h/2, a + h/2 k_2),     k_4 = N(s + h, E (a + h k_3)),
    u_1 = E (a + h/6 (b + 2 k_2 + 2 k_3)) + h/6 k_4,                             k_5 = N(s + h, u_1).

k_5 is k_1 of the next step. With (2 k_4 + 3 k_5) / 30 for k_4 / 6 the order is 3, so h/10 (k_4 - k_5) estimates the
local error: S. Balac and F. Mahe, Comput. Phys. Commun. 184 (2013) 1211-1219. A step costs four evaluations of N and
four applications of E.

N is met explicitly, but no step is limited beforehand: exp(h S) damps the fast modes of a diffusion by exp(-h k^2 / 2),
so that what a transport of speed c adds to them, h c k, stays bounded on all grids. What is too long is seen by the
estimate. A step is also no longer than the cubic through values and slopes at its ends can follow u.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Protocol, final

import numpy as np
from scipy.linalg import expm

from fem_hjb.spaces.axes import AxisMatrix, apply_all, apply_sum, combined, in_blocks
from fem_hjb.stepping.adaptive import Size, Step
from fem_hjb.support.checks import FloatArray

_OCTAVE = 10**9  # lengths of steps are known to so many parts of a doubling, so that rounding does not matter
_CARRIED = 2.0  # the largest entry of what takes the fast part of a slope, where S damps it
_SMALL = 1 << 17  # entries of exponentials that are all kept
_FLAT = 8  # the order to which slopes are left as they are where steps follow them

Remainder = Callable[[float, FloatArray], FloatArray]


class Damped(Protocol):
    """What becomes of u at the end of a step; share (*shape) is 0 where that is u, and 1 where it acts fully."""

    @property
    def share(self) -> FloatArray: ...

    def __call__(self, u: FloatArray) -> FloatArray: ...


@final
class LawsonPanel:
    """u' = S u + N(s, u) on [s0, s1].

    separable : S_1, ..., S_d.
    remainder : N.
    size : of arrays like u, relative to what errors are compared with.
    weights : per axis w_k with w_k S_k = 0, or None; then w_k exp(h S_k) = w_k to rounding, which powers lose.
    damped : what becomes of u at the end of a step, or None.
    """

    def __init__(
        self,
        separable: Sequence[FloatArray],
        remainder: Remainder,
        size: Size,
        weights: Sequence[FloatArray | None] | None = None,
        damped: Damped | None = None,
    ) -> None:
        self.separable, self.remainder, self.size, self.damped = separable, remainder, size, damped
        self._weights = [None] * len(separable) if weights is None else weights
        self._axes: list[AxisMatrix] = [in_blocks(S, len(separable)) for S in separable]
        self._kind: type = np.float64
        self._norm = max(float(np.abs(S).sum(axis=1).max()) for S in separable)
        self._dense: dict[int, list[FloatArray]] = {}
        self._halves: dict[int, list[AxisMatrix]] = {}
        self._slow: dict[int, list[AxisMatrix]] = {}
        self.counts = {"steps": 0, "rejected": 0, "evaluations": 0, "exponentials": 0}

    def in_single(self, remainder: Remainder) -> "LawsonPanel":
        """The same in single precision, with a remainder that is."""
        other = copy(self)
        other.remainder, other._kind = remainder, np.float32
        other._axes = [in_blocks(S.astype(np.float32), len(self.separable)) for S in self.separable]
        other._dense, other._halves, other._slow = dict(self._dense), {}, {}
        return other

    def slope(self, u: FloatArray, left: FloatArray) -> FloatArray:
        """S u + N."""
        return combined((1.0, apply_sum(self._axes, u)), (1.0, left))

    def eased(self, h: float, u0: FloatArray, u1: FloatArray, slope: FloatArray) -> FloatArray:
        """A slope at an end of a step from u0 to u1 without what h does not follow: there it is (u1 - u0) / h."""
        straight = combined((1.0 / h, u1), (-1.0 / h, u0))
        gap = combined((1.0, slope), (-1.0, straight))
        return combined((1.0, straight), (1.0, apply_all(self._followed(h), gap)))

    def _followed(self, h: float) -> list[AxisMatrix]:
        """1 - (1 - exp(h/2 S_k))^8: 1 to the eighth order of h S_k, 0 where that is large.

        1 on an axis along which S carries more than it damps, so that what is taken from 1 is no contraction.
        """
        key = _key(h)
        if key not in self._slow:
            self._half(h)
            fast = [np.linalg.matrix_power(np.eye(len(E)) - E, _FLAT) for E in self._dense[key]]
            slow = [np.eye(len(part)) - part * bool(np.abs(part).max() <= _CARRIED) for part in fast]
            self._slow[key] = [in_blocks(part.astype(self._kind, copy=False), len(fast)) for part in slow]
        return self._slow[key]

    def first(self, s: float, u: FloatArray) -> FloatArray:
        """N(s, u)."""
        self.counts["evaluations"] += 1
        with np.errstate(over="ignore", invalid="ignore"):  # what comes out of steps is looked at
            return self.remainder(s, u)

    def _half(self, h: float) -> list[AxisMatrix]:
        """exp(h/2 S_k): squares of those of steps half as long, down to one so short that a series will do."""
        key = _key(h)
        if key not in self._halves:
            halvings = 0
            while key - halvings * _OCTAVE not in self._dense and 0.5**halvings * h * self._norm > 2.0:
                halvings += 1
            shortest = key - halvings * _OCTAVE
            if shortest not in self._dense:
                self._dense[shortest] = [expm(0.5 ** (halvings + 1) * h * S) for S in self.separable]
                self.counts["exponentials"] += 1
            for longer in range(shortest + _OCTAVE, key + 1, _OCTAVE):
                self._dense[longer] = [part @ part for part in self._dense[longer - _OCTAVE]]
            kept = zip(self._dense[key], self._weights, strict=True)
            exact = [E if w is None else E + np.diag((w - w @ E) / w) for E, w in kept]
            self._halves[key] = [in_blocks(E.astype(self._kind, copy=False), len(exact)) for E in exact]
        return self._halves[key]

    def forget(self) -> None:
        """Let go of exponentials that no step had, and if they are large of all but those of the longest step."""
        small = sum(S.size for S in self.separable) <= _SMALL
        kept = set(self._halves) if small else {max(self._halves)}
        self._dense = {key: made for key, made in self._dense.items() if key in kept}
        self._halves = {key: made for key, made in self._halves.items() if key in kept}
        self._slow = {key: made for key, made in self._slow.items() if key in kept}

    def step(self, s: float, h: float, u: FloatArray, k1: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u at s + h, k_5, and h/10 (k_4 - k_5)."""
        u1, k4 = self._undamped(s, h, u, k1)
        if self.damped is not None:
            u1 = self.damped(u1)
        k5 = self.remainder(s + h, u1)
        return u1, k5, combined((h / 10, combined((1.0, k4), (-1.0, k5))))

    def _undamped(self, s: float, h: float, u: FloatArray, k1: FloatArray) -> tuple[FloatArray, FloatArray]:
        """u at s + h, and k_4."""
        half, N = self._half(h), self.remainder
        self.counts["evaluations"] += 4
        a, b = apply_all(half, u), apply_all(half, k1)
        k2 = N(s + h / 2, combined((1.0, a), (h / 2, b)))
        k3 = N(s + h / 2, combined((1.0, a), (h / 2, k2)))
        k4 = N(s + h, apply_all(half, combined((1.0, a), (h, k3))))
        forced = combined((2.0, combined((1.0, k2), (1.0, k3))), (1.0, b))
        inner = apply_all(half, combined((h / 6, forced), (1.0, a)))
        return combined((1.0, inner), (h / 6, k4)), k4

    def middle(self, h: float, step: Step, k1: FloatArray, k5: FloatArray) -> FloatArray:
        """u in the middle of a step, by one half as long: no cubic sees what another misses of the remainder.

        The cubic itself where steps are damped: what is damped once a step is not so by halves.
        """
        u = self._undamped(step.s, h / 2, step.u0, k1)[0]
        if self.damped is None:
            return u
        cubic = step.dense(0.5)
        return np.asarray(cubic + (1.0 - self.damped.share) * (u - cubic))


def _key(h: float) -> int:
    return round(math.log2(h) * _OCTAVE)
