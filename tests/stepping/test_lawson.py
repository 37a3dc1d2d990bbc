"""Lawson's method on a panel: its order, what it controls at and between the ends of steps, and what that costs."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from fem_hjb.spaces.axes import apply_all, apply_sum
from fem_hjb.stepping import lawson as room
from fem_hjb.stepping.adaptive import Step, hermite, march, replay
from fem_hjb.stepping.lawson import LawsonPanel
from fem_hjb.support.checks import FloatArray

# Diffusion with a linear drift on a grid of [-4, 4]^2, and a rotation of varying speed, which is not separable.
N = 18
X = np.linspace(-4, 4, N)
STEP = X[1] - X[0]
D = (np.eye(N, k=1) - np.eye(N, k=-1)) / (2 * STEP)
S1 = 0.3 * (np.eye(N, k=1) - 2 * np.eye(N) + np.eye(N, k=-1)) / STEP**2 - 0.5 * X[:, None] * D
LINE = [S1, S1]
START = np.exp(-((X[:, None] - 1) ** 2) - X**2)
SPIN = np.kron(D, np.diag(X)) - np.kron(np.diag(X), D)
BOTH = np.kron(S1, np.eye(N)) + np.kron(np.eye(N), S1)
END = 1.0
SIZE = float(np.linalg.norm(START))


def rotation(s: float, u: FloatArray) -> FloatArray:
    return np.asarray((2 + np.sin(3 * s)) * ((D @ u) * X - X[:, None] * (u @ D.T)))


def breathing(s: float, u: FloatArray) -> FloatArray:
    """What S leaves of (1 + sin(4 s) / 2) S and the rotation."""
    return rotation(s, u) + 0.5 * np.sin(4 * s) * apply_sum(LINE, u)


def truth(factor: Any) -> Any:
    solution = solve_ivp(
        lambda s, u: factor(s) * (BOTH @ u) + (2 + np.sin(3 * s)) * (SPIN @ u),
        (0.0, END),
        START.ravel(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-14,
        dense_output=True,
    ).sol
    return lambda s: solution(s).reshape(N, N)


STEADY = truth(lambda s: 1.0)
BREATHING = truth(lambda s: 1 + 0.5 * np.sin(4 * s))
CASES = [(rotation, STEADY), (breathing, BREATHING)]


def relative(u: FloatArray) -> float:
    return float(np.linalg.norm(u)) / SIZE


def panel(remainder: Any = rotation, separable: Any = None) -> LawsonPanel:
    return LawsonPanel(LINE if separable is None else separable, remainder, relative)


def nothing(s: float, u: FloatArray) -> FloatArray:
    return 0 * u


def equal(count: int, remainder: Any) -> list[Step]:
    return list(replay(panel(remainder), START, 0.0, [END / count] * count))


def marched(own: LawsonPanel, u: FloatArray, end: float, rtol: float, dense: float, first: float = 0.1) -> list[Step]:
    return list(march(own, u, 0.0, end, rtol=rtol, rtol_dense=dense, first=first))


def slope(counts: Any, errors: Any) -> float:
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def between(steps: list[Step], exact: Any, size: Any = relative, parts: int = 8) -> float:
    """The largest error between the ends of all steps."""
    thetas = np.arange(1, parts) / parts
    return max(size(hermite(x, step.h, *step.ends) - exact(step.s + x * step.h)) for step in steps for x in thetas)


COUNTS = [32, 48, 64, 96]


@pytest.mark.parametrize("shape", [(6,), (6, 5), (4, 5, 3)])
def test_a_separable_equation_is_solved_exactly_whatever_the_steps(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    matrices = [rng.standard_normal((n, n)) - 3 * np.eye(n) for n in shape]
    u = rng.standard_normal(shape)
    steps = list(replay(panel(nothing, matrices), u, 0.5, [0.7, 0.1, 1.2]))
    for step, passed in zip(steps, (0.7, 0.8, 2.0), strict=True):
        exact = apply_all([expm(passed * S) for S in matrices], u)
        np.testing.assert_allclose(step.u1, exact, atol=1e-13)


@pytest.mark.parametrize(("remainder", "exact"), CASES)
def test_fourth_order_at_the_ends(remainder: Any, exact: Any) -> None:
    errors = [relative(equal(count, remainder)[-1].u1 - exact(END)) for count in COUNTS]
    assert slope(COUNTS, errors) == pytest.approx(4.0, abs=0.15)


def test_a_remainder_that_ignores_what_is_frozen_or_when_it_is_has_no_order() -> None:
    ignores = [relative(equal(count, rotation)[-1].u1 - BREATHING(END)) for count in COUNTS]
    assert abs(slope(COUNTS, ignores)) < 0.1
    late = [
        relative(equal(count, lambda s, u, h=END / count: breathing(s + h, u))[-1].u1 - BREATHING(END))
        for count in COUNTS
    ]
    assert slope(COUNTS, late) == pytest.approx(1.0, abs=0.15)


def test_fourth_order_between_the_ends() -> None:
    errors = [between(equal(count, breathing)[:: count // 16], BREATHING) for count in COUNTS]
    assert slope(COUNTS, errors) == pytest.approx(4.0, abs=0.15)


def test_the_estimate_is_the_local_error_of_the_embedded_method_of_order_three() -> None:
    start, estimates, errors = STEADY(0.3), [], []
    for h in [0.5 / count for count in COUNTS]:
        own = panel()
        u1, _, estimate = own.step(0.3, h, start, own.first(0.3, start))
        estimates.append(relative(estimate))
        errors.append(relative(u1 - estimate - STEADY(0.3 + h)))
    assert slope(COUNTS, errors) == pytest.approx(4.0, abs=0.15)
    np.testing.assert_allclose(estimates, errors, rtol=0.1)


def test_a_nonlinear_remainder_is_integrated_as_well() -> None:
    u0 = 0.5 * np.exp(-(X**2))
    exact = solve_ivp(lambda s, u: S1 @ u + u - u**3, (0, 2), u0, rtol=1e-11, atol=1e-13, method="LSODA").y[:, -1]
    for rtol, tolerance in ((1e-8, 1e-7), (1e-5, 1e-4)):
        steps = marched(panel(lambda s, u: u - u**3, [S1]), u0, 2.0, rtol, 1e-3)
        assert 1e-4 * tolerance < np.abs(steps[-1].u1 - exact).max() < tolerance


# Adaptive steps


@pytest.mark.parametrize("rtol", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize(("remainder", "exact"), CASES)
def test_adaptive_steps_meet_the_tolerance_and_end_where_they_should(remainder: Any, exact: Any, rtol: float) -> None:
    own = panel(remainder)
    steps = marched(own, START, END, rtol, 1.0)
    errors = [relative(step.u1 - exact(step.s + step.h)) for step in steps]
    assert 0.01 * rtol < max(errors) < 10 * rtol
    assert steps[0].s == 0.0
    assert steps[-1].s + steps[-1].h == pytest.approx(END, abs=1e-14)
    np.testing.assert_allclose([s.s + s.h for s in steps[:-1]], [s.s for s in steps[1:]], atol=1e-14)
    powers = np.log2([step.h / steps[0].h for step in steps])
    np.testing.assert_array_equal(powers, np.round(powers))
    assert own.counts["steps"] == len(steps)
    assert own.counts["evaluations"] == 1 + 4 * (len(steps) + own.counts["rejected"] + 1)  # the first is halved, too
    for step in (steps[0], steps[-1]):
        slope = apply_sum(LINE, step.u1) + remainder(step.s + step.h, step.u1)
        eased = own.eased(step.h, step.u0, step.u1, slope) if step is steps[-1] and len(steps) > 8 else slope
        np.testing.assert_allclose(step.slope1, eased, rtol=1e-12)


def test_a_remainder_that_vanishes_at_halves_of_the_interval_is_seen() -> None:
    def wave(s: float, u: FloatArray) -> FloatArray:
        return np.asarray(np.sin(2 * np.pi * s) * u)

    own = LawsonPanel([np.zeros((1, 1))], wave, lambda u: float(np.abs(u).max()))
    for first in (0.25, 0.1):
        steps = marched(own, np.ones(1), 0.5, 1e-8, 1.0, first)
        assert steps[-1].u1[0] == pytest.approx(np.exp(1 / np.pi), rel=1e-6)


@pytest.mark.parametrize("dense", [1e-2, 1e-4, 1e-6])
def test_the_dense_output_meets_its_tolerance_everywhere(dense: float) -> None:
    """Whether the step is limited by its own error or not."""
    for remainder, exact in CASES:
        assert between(marched(panel(remainder), START, END, 1e-3 * dense, dense), exact) < 1.5 * dense
        careless = marched(panel(remainder), START, END, 0.3, 1e9, END)
        assert between(careless, exact) > 1.5 * dense


RATES = np.array([-60.0, -5.0, -1.0, -0.1])


@pytest.mark.parametrize("first", [2.0, 0.5, 1e-3])
@pytest.mark.parametrize("dense", [1e-2, 1e-4, 1e-6])
def test_a_fast_transient_that_is_solved_exactly_is_followed_between_the_ends(dense: float, first: float) -> None:
    """Nothing but the dense output limits steps here."""

    def exact(s: float) -> FloatArray:
        return np.asarray(np.exp(s * RATES))

    def size(u: FloatArray) -> float:
        return float(np.abs(u).max())

    own, blind = (LawsonPanel([np.diag(RATES)], nothing, size) for _ in range(2))
    steps = marched(own, np.ones(4), 2.0, 1e-8, dense, first)
    assert between(steps, exact, size, 16) < 1.5 * dense
    assert steps[-1].h > 4 * min(step.h for step in steps)  # they grow when it is over
    careless = marched(blind, np.ones(4), 2.0, 1e-8, 1e9, first)
    if first > 0.1:
        assert between(careless, exact, size, 16) > 10 * dense


def test_slopes_are_as_they_are_where_steps_follow_them_and_straight_where_not() -> None:
    h, rates = 0.1, np.array([-0.1, -1.0, -4.0, -400.0, -4000.0])
    own = LawsonPanel([np.diag(rates)], nothing, relative)
    u0, u1, raw = np.ones(5), np.exp(h * rates), rates * np.exp(h * rates)
    found, straight = own.eased(h, u0, u1, raw), (u1 - u0) / h
    np.testing.assert_allclose(found[:3], raw[:3], rtol=1e-5)
    np.testing.assert_allclose(found[3:], straight[3:], rtol=1e-6)
    left = (1 - np.exp(h * rates / 2)) ** 8
    np.testing.assert_allclose(found, left * straight + (1 - left) * raw, rtol=1e-12)


@pytest.mark.parametrize("stiff", [5.0, 20.0, 100.0, 1000.0])
def test_a_stiff_source_is_as_right_between_steps_as_at_their_ends(
    stiff: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lawson's method is not in balance with it: at the ends by h / 6, by the slopes there many times as much."""
    h = 0.1

    def errors() -> tuple[float, float]:
        own = LawsonPanel([np.diag([-stiff / h])], lambda s, u: np.ones(1), relative)
        steps = list(replay(own, np.zeros(1), 0.0, [h] * 9))[5:]
        thetas = np.arange(17) / 16
        inside = max(abs(float(step.dense(x)[0]) - h / stiff) for step in steps for x in thetas)
        return inside, abs(float(steps[-1].u1[0]) - h / stiff)

    inside, at_ends = errors()
    assert inside < 1.3 * at_ends
    monkeypatch.setattr(LawsonPanel, "eased", lambda own, h, u0, u1, slope: slope)
    inside, at_ends = errors()
    assert inside > (1.0 + 0.09 * stiff) * at_ends


def test_the_middle_of_a_step_is_exact_for_what_is_separable() -> None:
    own = panel(nothing)
    (step,) = replay(own, START, 0.0, [0.8])
    zero = np.zeros_like(START)
    np.testing.assert_allclose(own.middle(0.8, step, zero, zero), apply_all([expm(0.4 * S1)] * 2, START), atol=1e-13)
    assert relative(hermite(0.5, 0.8, *step.ends) - own.middle(0.8, step, zero, zero)) > 1e-3


@pytest.mark.parametrize(("remainder", "exact"), CASES)
def test_the_middle_of_a_step_is_right_for_the_remainder_too(remainder: Any, exact: Any) -> None:
    own, h = panel(remainder), 0.05
    k1 = own.first(0.0, START)
    (step,) = replay(own, START, 0.0, [h])
    right = exact(h / 2)
    missed = relative(own.middle(h, step, k1, own.first(h, step.u1)) - right)
    assert missed < 0.1 * relative(hermite(0.5, h, *step.ends) - right)


# What it costs


def gust(s: float, u: FloatArray) -> FloatArray:
    return rotation(s, u) * (1 + 5 * np.exp(-50 * (s - 0.5) ** 2))


def test_exponentials_are_counted_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def counted(matrix: FloatArray) -> FloatArray:
        calls.append(float(np.abs(matrix).max()))
        return np.asarray(expm(matrix))

    monkeypatch.setattr(room, "expm", counted)
    own = panel(gust)
    steps = marched(own, START, END, 1e-6, 1.0)
    widths = {step.h for step in steps}
    assert len(widths) >= 3  # steps shrink and grow again
    assert len(calls) == 2 * own.counts["exponentials"]
    assert len(calls) == len(set(calls)) * 2
    assert own.counts["exponentials"] <= len(widths) + own.counts["rejected"]
    again = marched(own, START, END, 1e-6, 1.0)
    assert len(calls) == 2 * own.counts["exponentials"]
    assert np.array_equal(again[-1].u1, steps[-1].u1)
    before = own.counts["exponentials"]
    list(replay(own, START, 0.0, [0.3 * min(widths)]))
    assert own.counts["exponentials"] == before + 1
    own.forget()  # those that no step had
    marched(own, START, END, 1e-6, 1.0)
    assert own.counts["exponentials"] == before + 1
    monkeypatch.setattr(room, "_SMALL", 0)
    own.forget()  # of large ones all but those of the longest step
    marched(own, START, END, 1e-6, 1.0)
    assert own.counts["exponentials"] > before + 1


def test_squared_exponentials_are_exponentials() -> None:
    own = panel(nothing)
    steps = list(replay(own, START, 0.0, [1.0, 2.0, 4.0]))
    before = own.counts["exponentials"]
    steps += replay(own, steps[-1].u1, 7.0, [8.0])
    assert own.counts["exponentials"] == before == 1
    np.testing.assert_allclose(steps[-1].u1, apply_all([expm(15.0 * S1)] * 2, START), atol=1e-12)


def test_steps_grow_to_what_the_tolerance_allows_and_shrink_at_once() -> None:
    own = panel(gust)
    steps = marched(own, START, END, 1e-6, 1.0, 1e-4)
    lengths = {round(step.s, 6): step.h for step in steps}
    calm, windy = (max(h for s, h in lengths.items() if low <= s < high) for low, high in ((0, 0.3), (0.45, 0.55)))
    assert calm > 100 * 1e-4 / 4
    assert calm > 1.9 * windy
    assert own.counts["rejected"] < 0.3 * len(steps)


# Replay


def test_a_replay_is_the_march_and_with_merged_steps_sixteen_times_as_wrong() -> None:
    own = panel(breathing)
    steps = marched(own, START, END, 1e-7, 1.0)
    again = list(replay(own, START, 0.0, [step.h for step in steps]))
    for one, other in zip(steps, again, strict=True):
        assert (other.h, other.s) == (one.h, pytest.approx(one.s, abs=1e-14))
        np.testing.assert_allclose(other.u1, one.u1, atol=1e-14)
        np.testing.assert_allclose(other.slope1, one.slope1, atol=1e-13)
    assert all(a.u1 is b.u0 and a.slope1 is b.slope0 for a, b in pairwise(again))
    small = relative(again[-1].u1 - BREATHING(END))
    base, merged = (relative(equal(count, breathing)[-1].u1 - BREATHING(END)) for count in (64, 32))
    assert merged == pytest.approx(16 * base, rel=0.25)
    halves = [step.h / 2 for step in steps for _ in range(2)]
    assert relative(list(replay(own, START, 0.0, halves))[-1].u1 - BREATHING(END)) < small / 8


def test_a_replay_eases_slopes_where_it_is_looked_at_and_nowhere_else() -> None:
    own = panel(nothing)
    rough = START + 1e-3 * np.random.default_rng(0).standard_normal(START.shape)
    lengths, times = [0.05] * 20, np.array([0.2, 1.515, 1.75, 7.0])  # the third where steps meet
    every, some = list(replay(own, rough, 1.0, lengths)), list(replay(own, rough, 1.0, lengths, times))
    for one, other in zip(every, some, strict=True):
        assert np.array_equal(one.u1, other.u1)
        if ((times > one.s - 1e-9) & (times < one.s + one.h + 1e-9)).any():
            assert all(np.array_equal(a, b) for a, b in zip(one.ends, other.ends, strict=True))
    same = [np.array_equal(one.slope1, other.slope1) for one, other in zip(every, some, strict=True)]
    assert np.flatnonzero(same).tolist() == [9, 10, 13, 14, 15]
    assert all(np.array_equal(step.slope1, own.slope(step.u1, 0.0 * step.u1)) for step in some[:9])


# No limit of the step

WAVES = 48
TORUS = 2 * np.pi * np.arange(WAVES) / WAVES
NUMBERS = np.fft.fftfreq(WAVES, 1 / WAVES) * (np.abs(np.fft.fftfreq(WAVES, 1 / WAVES)) < WAVES / 2)
PERIODIC = np.fft.ifft(1j * NUMBERS[:, None] * np.fft.fft(np.eye(WAVES), axis=0), axis=0).real
SPEED = 5.0


def transport(s: float, u: FloatArray) -> FloatArray:
    return np.asarray(SPEED * (PERIODIC @ u))


def carried(diffusion: float, s: float) -> FloatArray:
    return np.asarray(1 + np.exp(-diffusion * s) * np.cos(TORUS + SPEED * s))


def test_a_fast_transport_is_stable_since_diffusion_damps_what_it_adds() -> None:
    """h c / dx is 3.8, and h c k 11.5 for the finest wave: an explicit method is stable up to 2.8."""
    h, rough = 0.1, carried(1.0, 0.0) + 1e-6 * np.random.default_rng(0).standard_normal(WAVES)
    assert h * SPEED * NUMBERS.max() > 4 * 2.83
    own = panel(transport, [PERIODIC @ PERIODIC])
    steps = list(replay(own, rough, 0.0, [h] * 60))
    assert max(np.abs(step.u1).max() for step in steps) < 3.0
    assert np.abs(steps[-1].u1 - rough.mean()).max() < 1e-2
    explicit = panel(transport, [np.zeros((WAVES, WAVES))])
    thin = panel(transport, [1e-3 * PERIODIC @ PERIODIC])
    for unstable in (explicit, thin):
        assert not np.abs(list(replay(unstable, rough, 0.0, [h] * 60))[-1].u1).max() < 1e6


def test_steps_of_a_fast_transport_are_as_long_as_accuracy_allows() -> None:
    own = LawsonPanel([PERIODIC @ PERIODIC], transport, lambda u: float(np.abs(u).max()))
    steps = marched(own, carried(1.0, 0.0), 2.0, 1e-3, 1.0, 1e-3)
    assert max(step.h for step in steps) * SPEED * NUMBERS.max() > 1.5 * 2.83
    assert np.abs(steps[-1].u1 - carried(1.0, 2.0)).max() < 1e-2


def test_a_step_that_blows_up_is_only_too_long() -> None:
    """Growth beyond double precision within a trial step is no failure, and no warning."""
    own = LawsonPanel([np.zeros((1, 1))], lambda s, u: -1e3 * u**3, lambda u: float(np.abs(u).max()))
    steps = marched(own, np.full(1, 30.0), 1.0, 1e-6, 1e-3, 1.0)
    assert steps[-1].u1[0] == pytest.approx((30.0**-2 + 2e3) ** -0.5, rel=1e-4)
    assert own.counts["rejected"] > 3


def test_slopes_are_as_they_are_where_something_is_carried_far_in_a_step() -> None:
    """1 - exp(h S / 2) is 2 on what turns around in a step: a power of it would be any number."""
    turn = 6.0 * np.array([[0.0, -1.0], [1.0, 0.0]])
    own, u0 = LawsonPanel([turn], nothing, relative), np.array([1.0, 0.3])
    u1 = expm(turn) @ u0
    np.testing.assert_allclose(own.eased(1.0, u0, u1, turn @ u1), turn @ u1, rtol=1e-14)
    near = own.eased(0.02, u0, expm(0.02 * turn) @ u0, turn @ u0)
    np.testing.assert_allclose(near, turn @ u0, rtol=1e-8)
