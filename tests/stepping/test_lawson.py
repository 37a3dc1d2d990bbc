"""Lawson's method: its order, its economy, its step control, and what it says on failure."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from fem_hjb.spaces.axes import apply_all, apply_sum
from fem_hjb.stepping import lawson as room
from fem_hjb.stepping.lawson import STABLE, LawsonStep, lawson
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from tests.support.fixed_steps import equal_lawson

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


def rotation(s: float, u: np.ndarray, frozen: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray((2 + np.sin(3 * s)) * ((D @ u) * X - X[:, None] * (u @ D.T)))


def breathing(s: float) -> list[np.ndarray]:
    return [(1 + 0.5 * np.sin(4 * s)) * S1] * 2


def breathing_rest(s: float, u: np.ndarray, frozen: Sequence[np.ndarray]) -> np.ndarray:
    return rotation(s, u, frozen) + apply_sum(breathing(s), u) - apply_sum(frozen, u)


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


def steady(s: float) -> list[np.ndarray]:
    return LINE


def slope(counts: Any, errors: Any) -> float:
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def errors(steps: list[LawsonStep], exact: Any) -> tuple[float, float]:
    """At the end, and the largest between the ends."""
    between = [np.abs(s.dense(x) - exact(s.t + x * s.h)).max() for s in steps[:: len(steps) // 8] for x in (0.3, 0.5)]
    return float(np.abs(steps[-1].f1 - exact(END)).max()), float(max(between))


def run(counts: list[int], separable: Any, remainder: Any, exact: Any) -> np.ndarray:
    return np.array([errors(equal_lawson(separable, remainder, START, 0.0, END, steps=n), exact) for n in counts])


COUNTS = [32, 48, 64, 96]


@pytest.mark.parametrize("shape", [(6,), (6, 5), (4, 5, 3)])
def test_a_separable_equation_is_solved_exactly(shape: tuple[int, ...]):
    rng = np.random.default_rng(2)
    matrices = [rng.standard_normal((n, n)) - 3 * np.eye(n) for n in shape]
    u = rng.standard_normal(shape)
    steps = list(lawson(lambda s: matrices, lambda s, u, frozen: 0 * u, u, 0.0, 2.0, rtol=1e-6))
    assert len(steps) < 7
    for step in steps:
        for theta in (0.0, 0.2, 0.5, 0.9, 1.0):
            exact = apply_all([expm((step.t + theta * step.h) * S) for S in matrices], u)
            np.testing.assert_allclose(step.dense(theta), exact, atol=1e-13)
        np.testing.assert_allclose(step.f1, exact, atol=1e-13)


def test_a_remainder_that_vanishes_at_halves_of_the_interval_is_seen():
    def remainder(s: float, u: FloatArray, frozen: Sequence[FloatArray]) -> FloatArray:
        return np.asarray(np.sin(2 * np.pi * s) * u)

    steps = list(lawson(lambda s: [np.zeros((1, 1))], remainder, [1.0], 0.0, 0.5, rtol=1e-8))
    assert steps[-1].f1[0] == pytest.approx(np.exp(1 / np.pi), rel=1e-6)
    steps = list(lawson(lambda s: [np.zeros((1, 1))], remainder, [1.0], 0.0, 1.0, rtol=1e-8))
    at_half = next(step for step in steps if step.t <= 0.5 <= step.t + step.h)
    assert at_half.dense((0.5 - at_half.t) / at_half.h)[0] == pytest.approx(np.exp(1 / np.pi), rel=1e-5)


@pytest.mark.parametrize(
    ("separable", "remainder", "exact"), [(steady, rotation, STEADY), (breathing, breathing_rest, BREATHING)]
)
def test_fourth_order_at_the_ends_and_between(separable: Any, remainder: Any, exact: Any):
    found = run(COUNTS, separable, remainder, exact)
    assert slope(COUNTS, found[:, 0]) == pytest.approx(4.0, abs=0.15)
    assert slope(COUNTS, found[:, 1]) == pytest.approx(4.0, abs=0.15)


def test_a_remainder_that_ignores_what_is_frozen_is_seen():
    assert slope(COUNTS, run(COUNTS, breathing, rotation, BREATHING)[:, 0]) < 2.5


def test_the_embedded_estimate_is_the_local_error_of_a_third_order_method():
    first = [equal_lawson(steady, rotation, START, 0.3, 0.3 + END, steps=n)[0].error for n in COUNTS]
    assert slope(COUNTS, first) == pytest.approx(4.0, abs=0.15)


def test_a_nonlinear_remainder_is_integrated_as_well():
    S = [S1]
    u0 = 0.5 * np.exp(-(X**2))
    exact = solve_ivp(lambda s, u: S1 @ u + u - u**3, (0, 2), u0, rtol=1e-11, atol=1e-13, method="LSODA").y[:, -1]
    steps = list(lawson(lambda s: S, lambda s, u, frozen: u - u**3, u0, 0.0, 2.0, rtol=1e-8))
    np.testing.assert_allclose(steps[-1].f1, exact, atol=1e-7)


@pytest.mark.parametrize("rtol", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize(
    ("separable", "remainder", "exact"), [(steady, rotation, STEADY), (breathing, breathing_rest, BREATHING)]
)
def test_adaptive_steps_meet_the_tolerance_everywhere(separable: Any, remainder: Any, exact: Any, rtol: float):
    steps = list(lawson(separable, remainder, START, 0.0, END, rtol=rtol))
    relative = [
        np.linalg.norm(s.dense(x) - exact(s.t + x * s.h)) / np.linalg.norm(exact(s.t + x * s.h))
        for s in steps[:: max(1, len(steps) // 20)] + steps[-1:]
        for x in (0.5, 1.0)
    ]
    assert 0.05 * rtol < max(relative) < 10 * rtol
    assert all(s.error <= rtol for s in steps)
    assert steps[-1].t + steps[-1].h == pytest.approx(END, abs=1e-14)
    np.testing.assert_allclose([s.t + s.h for s in steps[:-1]], [s.t for s in steps[1:]], atol=1e-14)
    # Steps differ by powers of two, and each costs four evaluations; one more at the start.
    powers = np.log2([s.h / steps[0].h for s in steps])
    np.testing.assert_allclose(powers, np.round(powers), atol=1e-9)
    assert sum(s.evaluations for s in steps) == 1 + 4 * sum(1 + s.rejected for s in steps)


def test_a_scale_lets_a_small_solution_be_small():
    small = list(lawson(steady, rotation, 1e-3 * START, 0.0, END, rtol=1e-7))
    loose = list(lawson(steady, rotation, 1e-3 * START, 0.0, END, rtol=1e-7, scale=float(np.linalg.norm(START))))
    same = list(lawson(steady, rotation, START, 0.0, END, rtol=1e-7, scale=1e-3))
    assert len(loose) < len(small) / 3
    assert len(same) == len(small)
    assert np.linalg.norm(loose[-1].f1 - 1e-3 * STEADY(END)) < 10 * 1e-7 * np.linalg.norm(START)


def test_exponentials_are_made_once_for_each_width_as_long_as_the_list_is_the_same():
    def gust(s: float, u: np.ndarray, frozen: Sequence[np.ndarray]) -> np.ndarray:
        return rotation(s, u, frozen) * (1 + 5 * np.exp(-50 * (s - 0.5) ** 2))

    steps = list(lawson(steady, gust, START, 0.0, END, rtol=1e-6))
    widths = len({s.h for s in steps})
    assert widths >= 3  # the steps shrink and grow again
    assert sum(s.exponentials for s in steps) <= widths + 1
    fresh = list(lawson(lambda s: list(LINE), gust, START, 0.0, END, rtol=1e-6))
    assert [s.exponentials for s in fresh] == [1 + s.rejected for s in fresh]
    np.testing.assert_allclose(fresh[-1].f1, steps[-1].f1, atol=1e-12)
    assert sum(s.evaluations for s in fresh) == sum(s.evaluations for s in steps)  # a new list costs none


# Transport at speed 5 on a torus: smooth data, but waves of the grid that an explicit method has to keep stable.
WAVES = 48
TORUS = 2 * np.pi * np.arange(WAVES) / WAVES
NUMBERS = np.fft.fftfreq(WAVES, 1 / WAVES) * (np.abs(np.fft.fftfreq(WAVES, 1 / WAVES)) < WAVES / 2)
PERIODIC = np.fft.ifft(1j * NUMBERS[:, None] * np.fft.fft(np.eye(WAVES), axis=0), axis=0).real
THIN = [1e-3 * PERIODIC @ PERIODIC] * 2
RADIUS = 2 * 5.0 * (WAVES / 2 - 1)


def transport(s: float, u: np.ndarray, frozen: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(5.0 * (PERIODIC @ u + u @ PERIODIC.T))


def ripple(s: float) -> np.ndarray:
    return np.asarray(1 + 0.5 * np.exp(-2e-3 * s) * np.cos(TORUS[:, None] + 5 * s) * np.sin(TORUS + 5 * s))


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
def test_a_known_spectral_radius_saves_the_steps_that_would_fail(rtol: float):
    guarded, blind = (
        list(lawson(lambda s: THIN, transport, ripple(0.0), 0.0, 4.0, rtol=rtol, remainder_bound=bound))
        for bound in (lambda s: RADIUS, None)
    )
    assert sum(s.rejected for s in guarded) == 0
    assert all(s.limited for s in guarded)
    assert max(s.h for s in guarded) == pytest.approx(STABLE / RADIUS, rel=0.02)
    errors = [np.linalg.norm(s[-1].f1 - ripple(4.0)) / np.linalg.norm(ripple(4.0)) for s in (guarded, blind)]
    assert errors[0] < 0.1 * rtol
    # Without it the limit is met by failing again and again, and the waves of the grid are as large as rtol allows.
    assert sum(s.rejected for s in blind) > 20
    assert errors[1] > 3 * errors[0]
    assert errors[1] < 10 * rtol
    assert not any(s.limited for s in blind)


def test_accuracy_not_stability_limits_the_steps_of_a_tight_tolerance():
    steps = list(lawson(lambda s: THIN, transport, ripple(0.0), 0.0, 1.0, rtol=1e-9, remainder_bound=lambda s: RADIUS))
    assert not any(s.limited for s in steps)
    assert max(s.h for s in steps) < STABLE / RADIUS


def test_a_bound_that_grows_in_time_is_followed_at_once():
    def bound(s: float) -> float:
        return RADIUS if s < 0.5 else 4 * RADIUS

    steps = list(lawson(lambda s: THIN, transport, ripple(0.0), 0.0, 1.0, rtol=1e-2, remainder_bound=bound))
    assert sum(1 + s.rejected for s in steps) <= 300
    assert all(s.h * bound(s.t) <= STABLE * (1 + 1e-6) for s in steps)
    assert len({s.h for s in steps}) > 1


def test_the_stability_intervals_are_those_of_the_classical_method():
    def growth(z: complex) -> float:
        matrix = np.array([[z.real, -z.imag], [z.imag, z.real]])
        none = [np.zeros((2, 2))]
        (step,) = equal_lawson(lambda s: none, lambda s, u, f: matrix @ u, [1.0, 0.0], 0.0, 1.0, steps=1)
        return float(np.linalg.norm(step.f1))

    assert growth(2.82j) < 1 < growth(2.84j)
    assert growth(-2.78 + 0j) < 1 < growth(-2.79 + 0j)
    half_plane = [STABLE * np.exp(1j * a) for a in np.linspace(np.pi / 2, 3 * np.pi / 2, 61)]
    assert max(growth(z) for z in half_plane) < 1


def test_steps_are_frozen_and_repeatable():
    one, two = (list(lawson(steady, rotation, START, 0.0, END, rtol=1e-4)) for _ in range(2))
    assert all(np.array_equal(a.f1, b.f1) for a, b in zip(one, two, strict=True))
    assert all(a.f1 is b.f0 for a, b in pairwise(one))
    with pytest.raises(ValueError, match="read-only"):
        one[0].f1[0] = 0.0


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((START, 0.0, 1.0), {"rtol": 0.5}, "rtol must be a number between"),
        ((START, 1.0, 0.0), {"rtol": 1e-3}, "s0 must be below s1"),
        ((START * np.nan, 0.0, 1.0), {"rtol": 1e-3}, "f0 must be a finite array"),
        ((1.0, 0.0, 1.0), {"rtol": 1e-3}, "f0 must be a finite array"),
        ((START[:5], 0.0, 1.0), {"rtol": 1e-3}, r"one square matrix for each axis of u, whose shape is \(5, 18\)"),
        ((START, 0.0, 1.0), {"rtol": 1e-3, "remainder_bound": lambda s: np.nan}, "remainder_bound must give a finite"),
    ],
)
def test_bad_input(arguments: Any, keywords: Any, message: str):
    with pytest.raises(ConvergenceError, match=message):
        list(lawson(steady, rotation, *arguments, **keywords))


def test_trouble_ends_in_an_error_that_says_where(monkeypatch: pytest.MonkeyPatch):
    def exploding(s: float, u: np.ndarray, frozen: Sequence[np.ndarray]) -> np.ndarray:
        return rotation(s, u, frozen) * (1.0 if s < 0.5 else np.nan)

    with pytest.raises(ConvergenceError, match=r"the step fell below .* at s=0\.\d+ .* split the interval"):
        list(lawson(steady, exploding, START, 0.0, 1.0, rtol=1e-4))
    with pytest.raises(ConvergenceError, match=r"remainder is not finite at s=0"):
        list(lawson(steady, lambda s, u, f: u * np.nan, START, 0.0, 1.0, rtol=1e-4))
    with pytest.raises(ConvergenceError, match=r"remainder must give an array of shape \(18, 18\), got \(18,\)"):
        list(lawson(steady, lambda s, u, f: u[0], START, 0.0, 1.0, rtol=1e-4))
    monkeypatch.setattr(room, "_MAX_STEPS", 3)
    with pytest.raises(ConvergenceError, match=r"3 steps did not reach s=1 "):
        list(lawson(steady, rotation, START, 0.0, 1.0, rtol=1e-9))
