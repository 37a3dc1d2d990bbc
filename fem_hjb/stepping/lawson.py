r"""Lawson's method: the separable part of an equation on a tensor grid by exponentials, the rest explicitly.

For u' = S u + N(s, u) on arrays u of shape (n_1, ..., n_d) with S = sum_k 1 x .. x S_k x .. x 1, the exponential
exp(h S) is the product of the small exp(h S_k) along the axes, and v = exp(-(s - s_n) S) u solves
v' = exp(-(s - s_n) S) N(s, u), in which the stiff S is gone (J. D. Lawson, SIAM J. Numer. Anal. 4 (1967) 372-380).
The classical Runge-Kutta method of order 4 for v has its nodes at 0, 1/2 and 1, so that E = exp(h/2 S) is all it needs:

    a  = E u,   b = E k_1,                    k_1 = N(s, u),
    k_2 = N(s + h/2, a + h/2 b),              k_3 = N(s + h/2, a + h/2 k_2),     k_4 = N(s + h, E (a + h k_3)),
    u_1 = E (a + h/6 (b + 2 k_2 + 2 k_3)) + h/6 k_4,                             k_5 = N(s + h, u_1).

k_5 is k_1 of the next step. With (2 k_4 + 3 k_5) / 30 for k_4 / 6 the order is 3, so |h/10 (k_4 - k_5)| estimates the
local error: S. Balac and F. Mahe, Comput. Phys. Commun. 184 (2013) 1211-1219. A step costs four evaluations of N and
four applications of E. In each step, S is frozen at the middle.

Since N is met explicitly, h rho(N) has to stay below 2.83 on the imaginary and 2.79 on the negative real axis. Where
what N does at a face contradicts the boundary condition built into S, the order drops to about 3 there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import expm

from fem_hjb.spaces.axes import apply_all, apply_sum
from fem_hjb.stepping.esdirk import rtol_in_range
from fem_hjb.support.checks import FloatArray, real_array
from fem_hjb.support.errors import ConvergenceError

ORDER = 4
STABLE = 2.5  # h rho(N) at most; the method is stable up to 2.828 on the imaginary axis, 2.785 on the negative one
# Parts of the interval that the first step is at most one of: an odd number, lest nodes at halves of periods see a
# constant where there is none.
_FIRST = 7
_SAFETY, _GROW_BELOW = 0.9, 0.5  # steps double if the estimate of the doubled step stays below this part of rtol
_LARGEST_GROWTH = 10.0  # of the norm in a step, above which errors are measured against the smaller norm
_LONGEST_WAIT = 64  # steps without an attempt to grow, after attempts in vain
_FINEST = 2**40  # parts of the first step
_MAX_STEPS = 100_000

AxisMatrices = Callable[[float], Sequence[FloatArray]]
Remainder = Callable[[float, FloatArray, Sequence[FloatArray]], FloatArray]
Norm = Callable[[FloatArray], float]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LawsonStep:
    """One accepted step, from t to t + h, with the separable part `frozen`.

    f0, f1 are u at its ends and remainder0, remainder1 what N(t, f0, frozen), N(t + h, f1, frozen) gave; `half` are
    the exponentials of h/2 S_k. `error` is the embedded estimate of the local error relative to the norm of u;
    `limited` says that stability, not accuracy, kept h small. `rejected` counts the attempts thrown away before it,
    `evaluations` those of N and `exponentials` the sets of 1-D exponentials made for it, these attempts included.
    """

    t: float
    h: float
    f0: FloatArray
    f1: FloatArray
    remainder0: FloatArray
    remainder1: FloatArray
    frozen: Sequence[FloatArray]
    half: Sequence[FloatArray]
    error: float
    limited: bool
    rejected: int
    evaluations: int
    exponentials: int

    @cached_property
    def _forced(self) -> tuple[FloatArray, FloatArray]:
        """w and w' at the end of the step."""
        end = self.f1 - apply_all(self.half, apply_all(self.half, self.f0))
        return end, apply_sum(self.frozen, end) + self.remainder1

    def dense(self, theta: float) -> FloatArray:
        """u at t + theta h, of order 4; 0 <= theta <= 1.

        What S alone makes of f0 is exact, one exponential for each axis; the rest w = u - exp(theta h S) f0, with
        w' = S w + N, is the cubic through its values and slopes at both ends.
        """
        rest = 1.0 - theta
        end, slope = self._forced
        part = self.half if theta == 0.5 else [expm(theta * self.h * S) for S in self.frozen]
        return np.asarray(
            apply_all(part, self.f0)
            + theta**2 * (3 - 2 * theta) * end
            + self.h * theta * rest * (rest * self.remainder0 - theta * slope)
        )


def lawson(
    separable: AxisMatrices,
    remainder: Remainder,
    f0: ArrayLike,
    s0: float,
    s1: float,
    *,
    rtol: float,
    norm: Norm | None = None,
    scale: float = 0.0,
    remainder_bound: Callable[[float], float] | None = None,
) -> Iterator[LawsonStep]:
    """Integrate u' = S(s) u + N(s, u), u(s0) = f0 of shape (n_1, ..., n_d), to s1 > s0; yields the accepted steps.

    separable : s -> [S_1, ..., S_d], the matrices (n_k, n_k) that stand for S in a step around s. The very same list
        as last time says that nothing has changed, and exponentials are reused; they are kept for every h.
    remainder : (s, u, frozen) -> what is left of u' without sum_k S_k u for the S_k in the list `frozen`, so that the
        sum of both does not depend on `frozen`.
    rtol : the embedded estimate of each step's error, in this norm and relative to the norm of u, stays below it.
        Steps change by powers of two only.
    norm : of arrays like u, the Euclidean one by default.
    scale : a size below which the norm of u does not count as small: errors are relative to the larger of the two.
    remainder_bound : s -> an upper bound of the spectral radius of N; then h bound <= 2.5. Without it, the limit is
        found by steps that fail.

    Raises
    ------
    ConvergenceError : an argument makes no sense; u becomes non-finite; the step shrinks to nothing; rtol takes more
        than 100 000 steps.
    """
    start = real_array(f0, "f0", ConvergenceError).copy()
    if start.ndim == 0 or start.size == 0 or not np.isfinite(start).all():
        raise ConvergenceError(
            f"f0 must be a finite array of shape (n_1, ..., n_d), got shape {start.shape}: {f0!r:.80}"
        )
    if not (np.isfinite(s0) and np.isfinite(s1) and s0 < s1):
        raise ConvergenceError(f"s0 must be below s1, both finite, got s0={s0!r} and s1={s1!r}")
    stepper = _Stepper(separable, remainder, start, norm, scale)
    return _adaptive(stepper, s0, s1, rtol_in_range(rtol, "rtol"), remainder_bound)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Attempt:
    f1: FloatArray
    remainder0: FloatArray
    remainder1: FloatArray
    frozen: Sequence[FloatArray]
    half: Sequence[FloatArray]
    error: float


@final
class _Stepper:
    """The state u, N at it for the list frozen last, and one attempted step from it."""

    def __init__(
        self, separable: AxisMatrices, remainder: Remainder, u: FloatArray, norm: Norm | None, scale: float
    ) -> None:
        self.separable, self.remainder, self.u, self.scale = separable, remainder, u, scale
        self.norm: Callable[[Any], Any] = norm if norm is not None else np.linalg.norm
        self.size = float(self.norm(u))
        self.evaluations = self.exponentials = 0
        self._frozen: Sequence[FloatArray] | None = None
        self._halves: dict[float, Sequence[FloatArray]] = {}
        self._known: tuple[Sequence[FloatArray], FloatArray] | None = None  # N at u, and for which list

    def freeze(self, s: float) -> Sequence[FloatArray]:
        frozen = self.separable(s)
        if frozen is not self._frozen:
            sizes = [np.shape(S) for S in frozen]
            if sizes != [(n, n) for n in self.u.shape]:
                raise ConvergenceError(
                    f"separable must give one square matrix for each axis of u, whose shape is {self.u.shape}, got"
                    f" shapes {sizes}"
                )
            self._frozen, self._halves = frozen, {}
        return frozen

    def first(self, t: float, frozen: Sequence[FloatArray]) -> FloatArray:
        """N(t, u, frozen), from what is known of it for another list if possible."""
        if self._known is None:
            self._known = (frozen, self._evaluate(t, self.u, frozen))
        before, value = self._known
        if before is not frozen:
            value = value + apply_sum(before, self.u) - apply_sum(frozen, self.u)
        return value

    def _evaluate(self, s: float, u: FloatArray, frozen: Sequence[FloatArray]) -> FloatArray:
        self.evaluations += 1
        value = self.remainder(s, u, frozen)
        if np.shape(value) != self.u.shape:
            raise ConvergenceError(f"remainder must give an array of shape {self.u.shape}, got {np.shape(value)}")
        return value

    def _half(self, h: float, frozen: Sequence[FloatArray]) -> Sequence[FloatArray]:
        if h not in self._halves:
            self._halves[h] = [expm(h / 2 * S) for S in frozen]
            self.exponentials += 1
        return self._halves[h]

    def attempt(self, t: float, h: float) -> _Attempt:
        frozen = self.freeze(t + h / 2)
        half = self._half(h, frozen)
        with np.errstate(over="ignore", invalid="ignore"):  # a step too long for stability is seen by its estimate
            k1 = self.first(t, frozen)
            middle, carried = apply_all(half, self.u), apply_all(half, k1)
            k2 = self._evaluate(t + h / 2, middle + h / 2 * carried, frozen)
            k3 = self._evaluate(t + h / 2, middle + h / 2 * k2, frozen)
            k4 = self._evaluate(t + h, apply_all(half, middle + h * k3), frozen)
            f1 = apply_all(half, middle + h / 6 * (carried + 2 * (k2 + k3))) + h / 6 * k4
            k5 = self._evaluate(t + h, f1, frozen)
            error, size = h / 10 * float(self.norm(k4 - k5)), float(self.norm(f1))
        scale = max(self.size, min(size, _LARGEST_GROWTH * self.size)) if self.size > 0 else size
        scale = max(scale, self.scale)
        relative = error / scale if scale > 0 else error
        if not np.isfinite(size):
            relative = np.nan
        return _Attempt(f1=f1, remainder0=k1, remainder1=k5, frozen=frozen, half=half, error=relative)

    def accept(self, t: float, h: float, done: _Attempt, *, limited: bool, rejected: int) -> LawsonStep:
        for array in (self.u, done.f1, done.remainder0, done.remainder1):
            array.setflags(write=False)
        step = LawsonStep(
            t=t,
            h=h,
            f0=self.u,
            f1=done.f1,
            remainder0=done.remainder0,
            remainder1=done.remainder1,
            frozen=done.frozen,
            half=done.half,
            error=done.error,
            limited=limited,
            rejected=rejected,
            evaluations=self.evaluations,
            exponentials=self.exponentials,
        )
        self.u, self.size = done.f1, float(self.norm(done.f1))
        self._known = (done.frozen, done.remainder1)
        self.evaluations = self.exponentials = 0
        return step


def _adaptive(
    stepper: _Stepper, s0: float, s1: float, rtol: float, remainder_bound: Callable[[float], float] | None
) -> Iterator[LawsonStep]:
    """Steps on a grid of `total` parts of the interval: all are a power of two of them, begun at a multiple of it."""

    def longest(s: float) -> float:
        bound = 0.0 if remainder_bound is None else float(remainder_bound(s))
        if not 0 <= bound < np.inf:
            raise ConvergenceError(f"remainder_bound must give a finite number >= 0, got {bound!r} at s={s:.6g}")
        return STABLE / bound if bound > 0 else np.inf

    length, stable = s1 - s0, longest(s0)
    speed = float(stepper.norm(stepper.first(s0, stepper.freeze(s0)))) / max(
        stepper.size, stepper.scale, np.finfo(float).tiny
    )
    if not np.isfinite(speed):
        raise ConvergenceError(f"the remainder is not finite at s={s0:.6g}; check its coefficients and f0")
    guess = min(length / _FIRST, stable, rtol ** (1 / ORDER) / max(speed, np.finfo(float).tiny))
    total = int(np.ceil(min(max(length / guess, 1.0), 1e15) * (1 - 1e-9))) * _FINEST
    place, width, rejected, calm, wait = 0, _FINEST, 0, 0, 1
    for _ in range(_MAX_STEPS):
        t = s0 + length * (place / total)
        stable = longest(t)
        while width > 1 and (length * (width / total) > stable * (1 + 1e-9) or place + width > total):
            width //= 2
        h = length * (width / total)
        done = stepper.attempt(t, h)
        ratio = done.error / rtol
        if not ratio <= 1:
            halvings = int(np.ceil(np.log2(ratio / _SAFETY) / ORDER)) if np.isfinite(ratio) else 2
            width >>= min(max(halvings, 1), 4)
            if width == 0:
                raise ConvergenceError(
                    f"the step fell below {h:.3g} at s={t:.6g} without meeting rtol={rtol:g}; the coefficients may be"
                    " discontinuous or non-finite there: split the interval there, or raise rtol"
                )
            wait, calm = min(2 * wait, _LONGEST_WAIT) if calm < wait else 2, 0
            rejected += 1
            continue
        accurate = ratio * 2**ORDER <= _GROW_BELOW
        within = 2 * h <= stable * (1 + 1e-9)
        yield stepper.accept(t, h, done, limited=accurate and not within, rejected=rejected)
        place, rejected, calm = place + width, 0, calm + 1
        if place == total:
            return
        if accurate and within and calm >= wait and place % (2 * width) == 0 and place + 2 * width <= total:
            width *= 2
    raise ConvergenceError(f"{_MAX_STEPS} steps did not reach s={s1:.6g} (stopped at {t:.6g}) with rtol={rtol:g}")
