"""The loop and its controllers, with methods whose errors are known: what is accepted, where steps end, what fails."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fem_hjb.stepping import adaptive as room
from fem_hjb.stepping.adaptive import (
    PowersOfTwo,
    ProportionalIntegral,
    Step,
    adaptive,
    error_share,
    hermite,
    march,
    replay,
)
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

Limit = Callable[[float], float]


class Known:
    """u' = cos s, whose error in a step is (h / limit)^4: at a tolerance of 1, no step is longer than its limit."""

    def __init__(self, limit: Limit = lambda s: 1.0) -> None:
        self.limit, self.counts, self.tried = limit, {"steps": 0, "rejected": 0}, list[tuple[float, float]]()

    def size(self, u: FloatArray) -> float:
        return float(np.abs(u).max())

    def first(self, s: float, u: FloatArray) -> FloatArray:
        return np.array([np.cos(s)])

    def slope(self, u: FloatArray, left: FloatArray) -> FloatArray:
        return left

    def eased(self, h: float, u0: FloatArray, u1: FloatArray, slope: FloatArray) -> FloatArray:
        return slope

    def step(self, s: float, h: float, u: FloatArray, k1: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        self.tried.append((s, h))
        error = self.error(s, h)
        return u + np.sin(s + h) - np.sin(s), np.array([np.cos(s + h)]), np.array([error])

    def error(self, s: float, h: float) -> float:
        return (h / self.limit(s)) ** 4

    def middle(self, h: float, step: Step, k1: FloatArray, k5: FloatArray) -> FloatArray:
        return step.u0 + np.sin(step.s + h / 2) - np.sin(step.s)

    def forget(self) -> None:
        raise AssertionError("nobody but the owner forgets")


class Failing(Known):
    """No step longer than a tenth can be made; from s = 1/2 on, not even those."""

    def __init__(self, failure: Any, last: float = np.inf) -> None:
        super().__init__()
        self.failure, self.last = failure, last

    def error(self, s: float, h: float) -> float:
        if h <= 0.1 and s + h <= self.last:
            return 1e-9
        if isinstance(self.failure, float):
            return self.failure
        raise ConvergenceError(self.failure)


def halved(s1: float, first: float) -> PowersOfTwo:
    return PowersOfTwo(0.0, s1, first)


def integral(s1: float, first: float, kept: bool = False, seen: float = np.inf) -> ProportionalIntegral:
    return ProportionalIntegral(0.0, s1, first, lambda: kept, lambda s, h: min(h, seen))


def factors(s1: float, first: float) -> ProportionalIntegral:
    return integral(s1, first, True)


ALL: list[Any] = [halved, integral, factors]


def run(method: Any, control: Any, **how: Any) -> list[Step]:
    start = np.zeros(1)
    return list(adaptive(method, control, start, method.first(0.0, start), **({"rtol": 1.0} | how)))


def pinched(s: float) -> float:
    """A limit of 1e-3 around s = 1, of 1/2 elsewhere."""
    return 0.5 if abs(s - 1.0) > 0.1 else 1e-3


@pytest.mark.parametrize("control", ALL)
@pytest.mark.parametrize("end", [2.0, 1.0 / 3.0, np.pi, 1e-7, 3e4])
@pytest.mark.parametrize("first", [1e9, 1.0, 0.3, 1e-3])
def test_steps_follow_each_other_end_where_they_should_and_none_is_a_sliver(
    control: Any, end: float, first: float
) -> None:
    method = Known(lambda s: 0.1 * end)
    steps = run(method, control(end, first * end))
    assert steps[0].s == 0.0
    assert steps[-1].s + steps[-1].h == pytest.approx(end, rel=4e-16)
    np.testing.assert_allclose([a.s + a.h for a in steps[:-1]], [b.s for b in steps[1:]], rtol=0, atol=1e-15 * end)
    assert max(step.h for step in steps) <= 0.1 * end
    assert min(step.h for step in steps) >= min(first, 0.01) * end / 2
    assert all(a.u1 is b.u0 and a.slope1 is b.slope0 for a, b in pairwise(steps))
    assert method.counts == {"steps": len(steps), "rejected": len(method.tried) - len(steps)}


@pytest.mark.parametrize("control", ALL)
def test_accepted_steps_meet_what_is_allowed_and_grow_again_after_waiting(control: Any) -> None:
    method = Known(pinched)
    steps = run(method, control(2.0, 0.01))
    assert all(step.h <= pinched(step.s) for step in steps)
    early, late = (max(step.h for step in steps if low <= step.s < low + 0.8) for low in (0.0, 1.2))
    assert min(early, late) > 50 * max(step.h for step in steps if 0.9 < step.s < 1.1)
    assert method.counts["rejected"] < 20
    assert len(steps) < 600


def test_powers_of_two_are_powers_of_two_that_begin_where_two_of_half_their_length_do() -> None:
    steps = run(Known(pinched), halved(2.0, 0.0625))
    assert len({step.h for step in steps}) > 5
    for step in steps:
        assert np.log2(step.h / steps[0].h) % 1 == 0.0
        assert step.s / step.h % 1 == 0.0


@pytest.mark.parametrize(("rejections", "wait"), [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (8, 32)])
def test_after_steps_rejected_in_a_row_it_takes_longer_until_they_grow(rejections: int, wait: int) -> None:
    control = halved(2.0, 0.5)
    for _ in range(rejections):
        control.reject(np.nan)
    _, short = control.propose()
    assert short == 0.5 * 0.25**rejections
    accepted = 0
    while control.propose()[1] == short:
        assert not control.accept(1e-9)
        accepted += 1
    assert control.propose()[1] == 2 * short
    assert accepted == max(wait, 2)  # two of them begin where one of twice the length may


def test_factors_that_can_be_kept_are_kept_for_many_steps() -> None:
    smooth: Limit = lambda s: 0.02 + 0.01 * s  # noqa: E731
    free, few = ({step.h for step in run(Known(smooth), control(6.0, 1e-3))} for control in (integral, factors))
    assert len(few) < 10 < 0.3 * len(free)


@pytest.mark.parametrize(("kept", "error", "factor"), [(False, 2.0, 0.9 / 2**0.25), (True, 2.0, 0.5), (True, 1e4, 0.2)])
def test_a_step_rejected_is_shorter_and_half_as_long_at_most_if_that_costs_factors(
    kept: bool, error: float, factor: float
) -> None:
    control = integral(1.0, 1e-5, kept)
    control.reject(error)
    assert control.propose()[1] == pytest.approx(1e-5 * factor, rel=1e-4)


def test_many_steps_do_not_drift() -> None:
    control, done = integral(1.0, 1e-5), False
    while not done:
        s, h = control.propose()
        done = control.accept(0.1)  # as it is aimed at
    assert h == 1e-5
    assert s + h == pytest.approx(1.0, rel=3e-16)


def test_steps_are_no_longer_than_what_is_seen() -> None:
    unseeing, seeing = (run(Known(lambda s: 1e3), integral(2.0, 1.0, seen=seen)) for seen in (np.inf, 0.3))
    assert max(step.h for step in unseeing) > 0.3
    assert max(step.h for step in seeing) == pytest.approx(2 / 7, rel=1e-12)


def test_errors_that_grow_are_foreseen() -> None:
    """The last error is as it should be, but has grown faster than with the fourth power of the step."""
    control, lengths = integral(1.0, 1e-5), list[float]()
    for error in (1e-4, 0.1, 0.1):
        lengths.append(control.propose()[1])
        assert not control.accept(error)
    assert lengths[1] / lengths[0] == pytest.approx(5.0, rel=1e-3)
    assert lengths[2] / lengths[1] == pytest.approx(5.0 * 1e-3**0.25, rel=1e-3)
    assert control.propose()[1] / lengths[2] == pytest.approx(5.0 * 1e-3**0.25, rel=1e-3)


@pytest.mark.parametrize("control", ALL)
@pytest.mark.parametrize("failure", [np.nan, np.inf, "no convergence"])
def test_a_step_that_cannot_be_made_is_made_shorter(control: Any, failure: Any) -> None:
    method = Failing(failure)
    steps = run(method, control(1.0, 1.0))
    assert max(step.h for step in steps) <= 0.1
    assert steps[-1].u1[0] == pytest.approx(np.sin(1.0), abs=1e-14)
    assert method.counts["rejected"] > 0


@pytest.mark.parametrize("control", ALL)
@pytest.mark.parametrize("failure", [np.nan, 1e30, "no convergence"])
def test_a_step_that_shrinks_to_nothing_ends_in_an_error_that_says_where_and_why(control: Any, failure: Any) -> None:
    message = r"the step fell below \S+ at s=0\.(5|4999)\d* without meeting rtol=1: .* check the coefficients"
    with pytest.raises(ConvergenceError, match=message) as caught:
        run(Failing(failure, 0.5), control(1.0, 0.1))
    assert str(caught.value.__cause__) == (failure if isinstance(failure, str) else "None")


def test_a_failure_that_was_overcome_is_no_cause() -> None:
    class Both(Failing):
        def error(self, s: float, h: float) -> float:
            return np.nan if s + h > 0.5 else super().error(s, h)

    with pytest.raises(ConvergenceError, match="fell below") as caught:
        run(Both("no convergence"), integral(1.0, 0.2))
    assert caught.value.__cause__ is None


def test_steps_too_many_and_first_steps_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MAX_STEPS", 3)
    for control in ALL:
        with pytest.raises(ConvergenceError, match=r"3 steps with rtol=1 came no further than s=0\.[12]"):
            run(Known(lambda s: 0.1), control(1.0, 0.1))
    for first in (0.0, np.nan, 1e-17):
        with pytest.raises(ConvergenceError, match=r"a step of \S+ from s=1 is none"):
            PowersOfTwo(1.0, 2.0, first)
    with pytest.raises(ConvergenceError, match=r"fell below 1e-12 at s=0 "):
        run(Known(), integral(1.0, 1e-13))


@pytest.mark.parametrize("longest", [0.05, 0.25, np.inf])
def test_no_step_is_longer_than_allowed(longest: float) -> None:
    control = PowersOfTwo(0.0, 2.0, 0.1, longest)
    lengths = []
    done = False
    while not done:
        lengths.append(control.propose()[1])
        done = control.accept(0.0)
    assert sum(lengths) == pytest.approx(2.0)
    assert 0.5 * min(longest, 0.8) < max(lengths) <= longest


# Between the ends


@pytest.mark.parametrize("control", ALL)
@pytest.mark.parametrize("dense", [1e-2, 1e-4, 1e-6])
def test_what_a_cubic_misses_between_the_ends_limits_steps(control: Any, dense: float) -> None:
    def missed(**how: Any) -> float:
        steps = run(Known(lambda s: 100.0), control(7.0, 3.5), **how)
        return max(abs(step.dense(th)[0] - np.sin(step.s + th * step.h)) for step in steps for th in (0.3, 0.5, 0.7))

    assert 1e-3 * dense < missed(rtol_dense=dense) < 1.5 * dense
    assert missed() > 1e-2


def test_a_broken_cubic_is_seen() -> None:
    class Sloping(Known):
        def slope(self, u: FloatArray, left: FloatArray) -> FloatArray:
            return 2.0 * left

    sound, broken = (run(method, halved(1.0, 0.25), rtol_dense=1e-6) for method in (Known(), Sloping()))
    assert len(broken) > 10 * len(sound)


def test_hermite_is_exact_for_cubics_and_no_more() -> None:
    def ends(k: int) -> list[FloatArray]:
        return [np.array([0.5**k]), np.array([k * 0.5 ** (k - 1)]), np.array([0.9**k]), np.array([k * 0.9 ** (k - 1)])]

    for theta in (0.0, 0.3, 1.0):
        for k in (1, 2, 3):
            assert hermite(theta, 0.4, *ends(k))[0] == pytest.approx((0.5 + 0.4 * theta) ** k, abs=1e-15)
            assert Step(0.5, 0.4, *ends(k)).dense(theta) == hermite(theta, 0.4, *ends(k))
    assert abs(hermite(0.3, 0.4, *ends(4))[0] - 0.62**4) == pytest.approx(0.4**4 * (0.3 * 0.7) ** 2, rel=1e-9)


# Steps of given lengths


def test_a_march_is_the_loop_with_powers_of_two_and_its_replay_has_the_same_steps() -> None:
    how = {"rtol": 1.0, "rtol_dense": 1e-3}
    steps = run(Known(pinched), halved(2.0, 0.1), **how)
    marched = list(march(Known(pinched), np.zeros(1), 0.0, 2.0, first=0.1, **how))
    again = list(replay(Known(), np.zeros(1), 0.0, [step.h for step in steps]))
    for one, two, three in zip(steps, marched, again, strict=True):
        assert (one.s, one.h) == (two.s, two.h) == (pytest.approx(three.s, abs=1e-15), three.h)
        assert one.u1 == two.u1 == pytest.approx(three.u1, abs=1e-14)


def test_a_replay_takes_steps_whatever_their_errors_and_many_of_them_do_not_drift() -> None:
    method = Known(lambda s: 1e-6)
    steps = list(replay(method, np.zeros(1), 1.0, np.full(100_000, 0.1 / 100_000)))
    exact = np.linspace(1.0, 1.1, 100_001)[:-1]
    np.testing.assert_allclose([step.s for step in steps], exact, rtol=0, atol=2.3e-16)
    assert method.counts == {"steps": 100_000, "rejected": 0}
    drifting = np.cumsum([1.0, *(step.h for step in steps[:-1])])
    assert np.abs(drifting - exact).max() > 1e-13


@pytest.mark.parametrize(("p", "share"), [(4, 0.1), (3, 1 / 7), (2, 1 / 3), (1, 1.0), (0.5, 1.0)])
def test_the_share_of_an_error_is_that_of_the_order_seen(p: float, share: float) -> None:
    error = np.array([1e-9, 2.0, 1.0, 3.0, 0.5])
    two, four = error * (2**p - 1), error * (4**p - 1)
    two[1] = four[1] = 5.0  # no longer steps there
    assert error_share(two, four) == pytest.approx(share)
    assert error_share(two, two) == pytest.approx(0.1)  # nothing was longer: as promised
