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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
from scipy.linalg import expm

from fem_hjb.spaces.axes import AxisMatrix, apply_all, apply_sum, in_blocks
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

ORDER = 4
_SAFETY = 0.85
_GROW_BELOW = 0.5  # steps double if the estimate of the doubled step stays below this part of the tolerance
_FINEST = 2**40  # parts of the first step
_MAX_STEPS = 100_000
_LONGEST_WAIT = 32  # steps without an attempt to grow, after attempts in vain

_OCTAVE = 10**9  # lengths of steps are known to so many parts of a doubling, so that rounding does not matter

Remainder = Callable[[float, FloatArray], FloatArray]
Size = Callable[[FloatArray], float]


@final
@dataclass(frozen=True, eq=False)
class Step:
    """One accepted step, from s to s + h: u and u' at its ends."""

    s: float
    h: float
    u0: FloatArray
    slope0: FloatArray
    u1: FloatArray
    slope1: FloatArray

    @property
    def ends(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """u0, u0', u1, u1'."""
        return self.u0, self.slope0, self.u1, self.slope1


class Panel(Protocol):
    """A method on one panel of time, as `march` and `replay` ask: k is what a step hands over to the next one."""

    size: Size
    counts: dict[str, int]

    def first(self, s: float, u: FloatArray) -> FloatArray:
        """k at the start."""

    def slope(self, u: FloatArray, left: FloatArray) -> FloatArray:
        """u', from u and k there."""

    def step(self, s: float, h: float, u: FloatArray, k1: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u and k at s + h, and an estimate of order 4 of the local error."""

    def middle(self, h: float, step: Step, k1: FloatArray, k5: FloatArray) -> FloatArray:
        """u in the middle of a step, more accurately than by the cubic."""

    def forget(self) -> None:
        """Let go of what can be made again."""


@final
class LawsonPanel:
    """u' = S u + N(s, u) on [s0, s1].

    separable : S_1, ..., S_d.
    remainder : N.
    size : of arrays like u, relative to what errors are compared with.
    weights : per axis w_k with w_k S_k = 0, or None; then w_k exp(h S_k) = w_k to rounding, which powers lose.
    """

    def __init__(
        self,
        separable: Sequence[FloatArray],
        remainder: Remainder,
        size: Size,
        weights: Sequence[FloatArray | None] | None = None,
    ) -> None:
        self.separable, self.remainder, self.size = separable, remainder, size
        self._weights = [None] * len(separable) if weights is None else weights
        self._axes: list[AxisMatrix] = [in_blocks(S) for S in separable]
        self._norm = max(float(np.abs(S).sum(axis=1).max()) for S in separable)
        self._dense: dict[int, list[FloatArray]] = {}
        self._halves: dict[int, list[AxisMatrix]] = {}
        self.counts = {"steps": 0, "rejected": 0, "evaluations": 0, "exponentials": 0}

    def slope(self, u: FloatArray, left: FloatArray) -> FloatArray:
        """S u + N."""
        result = apply_sum(self._axes, u)
        result += left
        return result

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
            self._halves[key] = [in_blocks(E if w is None else E + np.diag((w - w @ E) / w)) for E, w in kept]
        return self._halves[key]

    def forget(self) -> None:
        """Let go of all exponentials but those of the longest step."""
        longest = max(self._halves)
        self._halves = {longest: self._halves[longest]}
        self._dense = {longest: self._dense[longest]}

    def step(self, s: float, h: float, u: FloatArray, k1: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u at s + h, k_5, and h/10 (k_4 - k_5)."""
        half, N = self._half(h), self.remainder
        self.counts["evaluations"] += 4
        a, b = apply_all(half, u), apply_all(half, k1)
        stage = h / 2 * b
        stage += a
        k2 = N(s + h / 2, stage)
        np.multiply(k2, h / 2, out=stage)
        stage += a
        k3 = N(s + h / 2, stage)
        np.multiply(k3, h, out=stage)
        stage += a
        k4 = N(s + h, apply_all(half, stage))
        k2 += k3
        k2 *= 2
        k2 += b
        k2 *= h / 6
        k2 += a
        u1 = apply_all(half, k2)
        u1 += h / 6 * k4
        k5 = N(s + h, u1)
        k4 -= k5
        k4 *= h / 10
        return u1, k5, k4

    def middle(self, h: float, step: Step, k1: FloatArray, k5: FloatArray) -> FloatArray:
        """u in the middle of a step: what S makes of u is exact, the rest a cubic."""
        half = self._half(h)
        carried = apply_all(half, step.u0)
        forced = step.u1 - apply_all(half, carried)
        end = apply_sum(self._axes, forced) + k5
        return np.asarray(carried + 0.5 * forced + h / 8 * (k1 - end))


def _key(h: float) -> int:
    return round(math.log2(h) * _OCTAVE)


def march(
    panel: Panel,
    u: FloatArray,
    s0: float,
    s1: float,
    *,
    rtol: float,
    rtol_dense: float,
    first: float,
) -> Iterator[Step]:
    """The accepted steps: their estimates stay below rtol, what a cubic misses in between below rtol_dense.

    first : the length to begin with. Steps change by powers of two only, so that exponentials serve for many.

    Raises ConvergenceError if the step shrinks to nothing.
    """
    if not s0 + 1e-3 * first > s0:
        raise ConvergenceError(f"a step of {first:.3g} from s={s0:.6g} is none")
    total = int(np.ceil(min(max((s1 - s0) / first, 1.0), 1e12) * (1 - 1e-9))) * _FINEST
    place, width, calm, wait = 0, _FINEST, 0, 1
    k1 = panel.first(s0, u)
    slope = panel.slope(u, k1)
    before: Step | None = None
    for _ in range(_MAX_STEPS):
        s, h = s0 + (s1 - s0) * (place / total), (s1 - s0) * (width / total)
        with np.errstate(over="ignore", invalid="ignore"):  # a step too long is seen by its estimate
            u1, k5, wrong = panel.step(s, h, u, k1)
            error = panel.size(wrong) / rtol
            if error <= 1:
                step = Step(s, h, u, slope, u1, panel.slope(u1, k5))
                error = max(error, _missed(panel, before, step, k1, k5) / rtol_dense)
        if not error <= 1:
            halvings = int(np.ceil(np.log2(error / _SAFETY) / ORDER)) if np.isfinite(error) else 2
            width >>= min(max(halvings, 1), 4)
            panel.counts["rejected"] += 1
            if width == 0:
                raise ConvergenceError(
                    f"the step fell below {h:.3g} at s={s:.6g} without meeting rtol={rtol:g}: the equation is not"
                    " resolved, or a coefficient is not finite there"
                )
            wait, calm = min(2 * wait, _LONGEST_WAIT) if calm < wait else 2, 0
            continue
        panel.counts["steps"] += 1
        yield step
        place, calm = place + width, calm + 1
        u, slope, k1, before = step.u1, step.slope1, k5, step
        if place == total:
            return
        longer = place % (2 * width) == 0 and place + 2 * width <= total
        if error * 2**ORDER <= _GROW_BELOW and calm >= wait and longer:
            width *= 2
        while place + width > total:
            width //= 2
    raise ConvergenceError(f"{_MAX_STEPS} steps did not reach s={s1:.6g}")


def replay(panel: Panel, u: FloatArray, s0: float, lengths: Sequence[float]) -> Iterator[Step]:
    """Steps of given lengths, whatever their errors are."""
    k1 = panel.first(s0, u)
    slope, s = panel.slope(u, k1), s0
    for h in lengths:
        with np.errstate(over="ignore", invalid="ignore"):
            u1, k5, _ = panel.step(s, h, u, k1)
            step = Step(s, h, u, slope, u1, panel.slope(u1, k5))
        panel.counts["steps"] += 1
        yield step
        u, slope, k1, s = step.u1, step.slope1, k5, s + h


def _missed(panel: Panel, before: Step | None, step: Step, k1: FloatArray, k5: FloatArray) -> float:
    """What the cubic of a step misses: from the middle of it, or from that of a longer one which ends two steps."""
    if before is None:
        return panel.size(hermite(0.5, step.h, *step.ends) - panel.middle(step.h, step, k1, k5))
    length = before.h + step.h
    guess = hermite(before.h / length, length, before.u0, before.slope0, step.u1, step.slope1)
    return (step.h / before.h) ** 2 / 16 * panel.size(guess - step.u0)


def hermite(
    theta: float, h: float, u0: FloatArray, slope0: FloatArray, u1: FloatArray, slope1: FloatArray
) -> FloatArray:
    """The cubic through values and slopes at the ends of an interval of length h, at theta in [0, 1]."""
    rest = 1.0 - theta
    result = (h * theta * rest**2) * slope0
    result -= (h * theta**2 * rest) * slope1
    result += (rest**2 * (1 + 2 * theta)) * u0
    result += (theta**2 * (3 - 2 * theta)) * u1
    return np.asarray(result)
