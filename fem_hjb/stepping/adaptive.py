"""The one loop of all methods in time: a controller proposes a step, a method tries it, too large an error rejects it.

A controller knows nothing of methods. It gives s and h of the next step to try, or an h below its shortest if it gives
up, and hears what part of the allowed error was made, nan for no step; accepting, it says whether the end is reached.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from fem_hjb.spaces.axes import combined
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

ORDER = 4  # in h, of the local errors that methods estimate
ORDER_GAIN = 10.0  # by which steps half as long are better, 16 being what order 4 promises
_TELLING, _LONGER = 0.05, 2.0  # of the largest change; times as much that steps which have become longer change
_BEGINNING = 4.0  # steps
_BESIDE = 1e-6  # of a step: a time as near as that to one of its ends may be in it
_MAX_STEPS = 100_000
_ROOM = 0.85  # of what is allowed: the error of a step halved after it was rejected
_GROW_BELOW = 0.5  # steps double if the estimate of the doubled step stays below this part of the tolerance
_FINEST = 2**40  # parts of the first step
_LONGEST_WAIT = 32  # steps without an attempt to grow, after attempts in vain
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_AIM = 0.1  # of the tolerance: the error that the next step is to have
_SMALLEST_STEP = 1e-12  # relative to the whole interval

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

    def dense(self, theta: float) -> FloatArray:
        """u at s + theta h, by the cubic; 0 <= theta <= 1."""
        return hermite(theta, self.h, *self.ends)


def hermite(
    theta: float, h: float, u0: FloatArray, slope0: FloatArray, u1: FloatArray, slope1: FloatArray
) -> FloatArray:
    """The cubic through values and slopes at the ends of an interval of length h, at theta in [0, 1]."""
    rest = 1.0 - theta
    return combined(
        (h * theta * rest**2, slope0),
        (-h * theta**2 * rest, slope1),
        (rest**2 * (1 + 2 * theta), u0),
        (theta**2 * (3 - 2 * theta), u1),
    )


class Panel(Protocol):
    """A method on one panel of time, as `adaptive` and `replay` ask: k is what a step hands over to the next one."""

    size: Size
    counts: dict[str, int]

    def first(self, s: float, u: FloatArray) -> FloatArray:
        """k at the start."""

    def slope(self, u: FloatArray, left: FloatArray) -> FloatArray:
        """u', from u and k there."""

    def eased(self, h: float, u0: FloatArray, u1: FloatArray, slope: FloatArray) -> FloatArray:
        """u' at an end of a step, without what is faster than the step follows, for the cubic."""

    def step(self, s: float, h: float, u: FloatArray, k1: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u and k at s + h, and an estimate of order 4 of the local error."""

    def middle(self, h: float, step: Step, k1: FloatArray, k5: FloatArray) -> FloatArray:
        """u in the middle of a step, more accurately than by the cubic."""

    def forget(self) -> None:
        """Let go of what can be made again."""


@final
class PowersOfTwo:
    """Steps from s0 to s1 that change by powers of two only, so that exponentials serve for many.

    first : the length to begin with. Places are whole numbers of the shortest step, so that the last one lands.
    longest : that no step exceeds, first included.
    """

    def __init__(self, s0: float, s1: float, first: float, longest: float = np.inf) -> None:
        first = min(first, longest)
        if not s0 + 1e-3 * first > s0:
            raise ConvergenceError(f"a step of {first:.3g} from s={s0:.6g} is none")
        self._s0, self._length = s0, s1 - s0
        self._total = int(np.ceil(min(max((s1 - s0) / first, 1.0), 1e12) * (1 - 1e-9))) * _FINEST
        self._place, self._width, self._calm, self._wait = 0, _FINEST, 0, 1
        self.shortest = self._length * (1 / self._total)
        self._widest = min(longest / self._length, 1.0) * self._total * (1 + 1e-9)

    def propose(self) -> tuple[float, float]:
        return self._s0 + self._length * (self._place / self._total), self._length * (self._width / self._total)

    def accept(self, error: float) -> bool:
        self._place, self._calm = self._place + self._width, self._calm + 1
        if self._place == self._total:
            return True
        longer = self._place % (2 * self._width) == 0 and self._place + 2 * self._width <= self._total
        longer &= 2 * self._width <= self._widest
        if error * 2**ORDER <= _GROW_BELOW and self._calm >= self._wait and longer:
            self._width *= 2
        while self._place + self._width > self._total:
            self._width //= 2
        return False

    def reject(self, error: float) -> None:
        halvings = int(np.ceil(np.log2(error / _ROOM) / ORDER)) if np.isfinite(error) else 2
        self._width >>= min(max(halvings, 1), 4)
        self._wait = min(2 * self._wait, _LONGEST_WAIT) if self._calm < self._wait else 2
        self._calm = 0


@final
class ProportionalIntegral:
    """Steps that would have had the error aimed at, or that have it if errors go on growing as they just did.

    Whichever is shorter (K. Gustafsson, ACM Trans. Math. Software 20 (1994) 496-517), cut to equal ones up to s1.

    first : the length to begin with, at most.
    keep : whether factors of the last step can serve for another one of its length: steps grow by powers of two then.
    seen : the longest step from s, at most h, that sees what the equation does.
    """

    def __init__(
        self, s0: float, s1: float, first: float, keep: Callable[[], bool], seen: Callable[[float, float], float]
    ) -> None:
        self._s, self._end, self._keep, self._seen = s0, s1, keep, seen
        self._before = np.inf, 1.0  # h and the error of the step before
        self.shortest = _SMALLEST_STEP * (s1 - s0)
        self._divide(first)

    def _divide(self, h: float) -> None:
        self._h, self._left = fewest_steps(self._end - self._s, h)

    def propose(self) -> tuple[float, float]:
        if (seen := self._seen(self._s, self._h)) < self._h:
            self._divide(seen)
        return self._s, self._h

    def accept(self, error: float) -> bool:
        self._left -= 1
        self._s = self._end - self._left * self._h
        if self._left == 0:
            return True
        h, error = self._h, max(error, 1e-10)
        now = (_AIM / error) ** (1 / ORDER)
        growth = h / self._before[0] * (self._before[1] / error) ** (1 / ORDER) if np.isfinite(self._before[0]) else 1.0
        factor = float(min(_GROW, max(_SHRINK, now * min(1.0, growth))))
        self._before = h, error
        if self._keep():
            factor = 2.0 ** np.floor(np.log2(factor)) if factor >= 2 else 1.0
        if factor != 1:
            self._divide(h * factor)
        return False

    def reject(self, error: float) -> None:
        factor = _SAFETY * error ** (-1 / ORDER) if np.isfinite(error) else _SHRINK
        self._divide(self._h * max(_SHRINK, min(factor, 0.5 if self._keep() else 1.0)))


def rtol_in_range(value: Any, name: str) -> float:
    """`value` as a relative tolerance that double precision and an order of 4 can meet."""
    number = float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else np.nan
    if not 1e-13 <= number <= 0.1:
        raise ConvergenceError(f"{name} must be a number between 1e-13 and 0.1, got {value!r}")
    return number


def fewest_steps(remaining: float, h: float) -> tuple[float, int]:
    """The fewest equal steps of at most h over what remains, and their number: none is a sliver, the last one lands."""
    left = max(1, int(np.ceil(min(remaining / h, 1e15) * (1 - 1e-9)))) if h > 0 else 1
    return remaining / left, left


Controller = PowersOfTwo | ProportionalIntegral


def adaptive(
    panel: Panel, control: Controller, u: FloatArray, k: FloatArray, *, rtol: float, rtol_dense: float = np.inf
) -> Iterator[Step]:
    """The accepted steps from u and k: estimates stay below rtol, what a cubic misses in between below rtol_dense.

    That is the cubic through slopes as they are, as these show what is stiff and not in balance; those of the steps are
    eased. Raises ConvergenceError if the step shrinks to nothing. One of a method only makes the step shorter.
    """
    slope = panel.slope(u, k)
    before: Step | None = None
    shown: Step | None = None
    cause: ConvergenceError | None = None
    for _ in range(_MAX_STEPS):
        s, h = control.propose()
        if not h >= control.shortest:
            raise ConvergenceError(
                f"the step fell below {control.shortest:.3g} at s={s:.6g} without meeting rtol={rtol:g}: the equation"
                " is not resolved, or a coefficient jumps or is not finite there; check the coefficients, raise rtol,"
                " or on a mesh take equal steps"
            ) from cause
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # a step too long is seen by its estimate
                u1, k1, wrong = panel.step(s, h, u, k)
                error = panel.size(wrong) / rtol
                if error <= 1:
                    step = Step(s, h, u, slope, u1, panel.slope(u1, k1))
                    if rtol_dense < np.inf:
                        error = max(error, _missed(panel, before, step, k, k1) / rtol_dense)
        except ConvergenceError as failure:  # a linear solve gave up; a shorter step is closer to the identity
            cause, error = failure, np.nan
        if not error <= 1:
            panel.counts["rejected"] += 1
            control.reject(error)
            continue
        panel.counts["steps"] += 1
        shown = _eased(panel, step, shown)
        yield shown
        if control.accept(error):
            return
        u, slope, k, before, cause = step.u1, step.slope1, k1, step, None
    raise ConvergenceError(
        f"{_MAX_STEPS} steps with rtol={rtol:g} came no further than s={s:.6g}; raise rtol"
    ) from cause


def _eased(panel: Panel, step: Step, before: Step | None, asked: tuple[bool, bool] = (True, True)) -> Step:
    """The step with slopes that its length follows, at the ends asked for: the first as the one before it has left it.

    At the beginning of time what is fast is no imbalance of steps but what happens, and settles within a few of them.
    """
    if step.s < _BEGINNING * step.h:
        return step
    first, last = step.slope0 if before is None else before.slope1, step.slope1
    if before is None and asked[0]:
        first = panel.eased(step.h, step.u0, step.u1, first)
    if asked[1]:
        last = panel.eased(step.h, step.u0, step.u1, last)
    return Step(step.s, step.h, step.u0, first, step.u1, last)


def _missed(panel: Panel, before: Step | None, step: Step, k1: FloatArray, k5: FloatArray) -> float:
    """What the cubic of a step misses: from the middle of it, or from that of a longer one which ends two steps."""
    if before is None:
        return panel.size(step.dense(0.5) - panel.middle(step.h, step, k1, k5))
    length = before.h + step.h
    guess = hermite(before.h / length, length, before.u0, before.slope0, step.u1, step.slope1)
    return (step.h / before.h) ** 2 / 16 * panel.size(guess - step.u0)


def march(
    panel: Panel,
    u: FloatArray,
    s0: float,
    s1: float,
    *,
    rtol: float,
    rtol_dense: float,
    first: float,
    longest: float = np.inf,
) -> Iterator[Step]:
    """`adaptive` steps from s0 to s1 that change by `PowersOfTwo`; first is the length to begin with."""
    control = PowersOfTwo(s0, s1, first, longest)
    return adaptive(panel, control, u, panel.first(s0, u), rtol=rtol, rtol_dense=rtol_dense)


def replay(
    panel: Panel, u: FloatArray, s0: float, lengths: Sequence[float] | FloatArray, looked: FloatArray | None = None
) -> Iterator[Step]:
    """Steps of given lengths, whatever their errors are.

    looked : increasing times at which steps are looked at, None for all; what is between the ends of others is rougher.
    """
    k = panel.first(s0, u)
    slope, shown = panel.slope(u, k), None
    ends = s0 + np.cumsum(np.array([0.0, *lengths], dtype=np.longdouble))  # many steps end where they should
    asked = _asked(ends.astype(float), looked)
    for s, h, ease in zip(ends[:-1].astype(float).tolist(), lengths, asked, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            u1, k, _ = panel.step(s, h, u, k)
            step = Step(s, h, u, slope, u1, panel.slope(u1, k))
        panel.counts["steps"] += 1
        shown = _eased(panel, step, shown, ease)
        yield shown
        u, slope = step.u1, step.slope1


def _asked(ends: FloatArray, looked: FloatArray | None) -> list[tuple[bool, bool]]:
    """Of each step whether its slopes at both ends count: in it, or in its neighbour, is a time looked at."""
    if looked is None:
        return [(True, True)] * (ends.size - 1)
    inside = [False, *is_looked_at(ends[:-1], np.diff(ends), looked).tolist(), False]
    return [
        (before or this, this or after) for before, this, after in zip(inside, inside[1:], inside[2:], strict=False)
    ]


def is_looked_at(starts: FloatArray, lengths: FloatArray, looked: FloatArray) -> NDArray[np.bool_]:
    """Of steps (k,) whether one of the increasing times `looked` may be in it."""
    near = _BESIDE * lengths
    first = np.searchsorted(looked, starts - near)
    return np.asarray(first < np.searchsorted(looked, starts + lengths + near, "right"))


def error_share(two: FloatArray, four: FloatArray) -> float:
    """What steps are wrong by, in parts of what steps twice as long change; at least a tenth, at most all of it.

    two, four : (k,), what steps twice and four times as long change, at some times. Of order p the share is
    1 / (2^p - 1), and the second is 2^p + 1 times the first: the median of those times at which that tells anything,
    as not everywhere is there a step to be joined to one. Where functions are not smooth, p is less than 4.
    """
    telling = (two > _TELLING * two.max()) & (four > _LONGER * two)
    ratio = float(np.median(four[telling] / two[telling])) if telling.any() else np.inf
    return 1.0 / min(max(ratio - 2.0, 1.0), ORDER_GAIN)
