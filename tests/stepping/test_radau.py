"""Radau collocation: its coefficients, its orders, its error estimate, and what it says when it cannot go on."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.linalg import expm

from fem_hjb.stepping import radau as collocation
from fem_hjb.stepping.radau import RadauStep, RadauTableau, radau, radau_tableau
from fem_hjb.support.errors import ConvergenceError
from tests.support.fixed_steps import equal_radau

A = np.array([[-1.0, 2.0, 0.0], [-2.0, -1.0, 0.5], [0.3, 0.0, -0.5]])
B = np.array([[0.0, 1.0, 0.3], [0.2, 0.0, -1.0], [0.5, 0.1, 0.0]])
START = np.array([1.0, 0.0, 1.0])
INSIDE = np.linspace(0.02, 0.98, 25)


def swinging(s: float) -> np.ndarray:
    return A + np.sin(5 * s) * B


def exact(s: float) -> np.ndarray:
    return np.array([np.cos(3 * s), np.sin(2 * s), np.exp(-s), 1.0])


def driven(s: float) -> np.ndarray:
    """`swinging` with a source, the column of an unknown that stays 1, which makes `exact` the solution."""
    matrix = np.zeros((4, 4))
    matrix[:3, :3] = swinging(s)
    matrix[:3, 3] = np.array([-3 * np.sin(3 * s), 2 * np.cos(2 * s), -np.exp(-s)]) - swinging(s) @ exact(s)[:3]
    return matrix


def of_three(u: np.ndarray) -> float:
    return float(np.linalg.norm(u[:3]))


FIXED: dict[str, Any] = {"fixed": [0, 2], "fixed_values": lambda s: exact(s)[[0, 2]]}

# Heat equation by central differences, whose ends are prescribed. `warm`: waves for which the differences are exact.
# `heated`: cubics in x, for which they are exact too, with a source, the column of an unknown that stays 1.
X = np.linspace(0, 1, 41)
HEAT = (np.eye(41, k=1) - 2 * np.eye(41) + np.eye(41, k=-1)) / X[1] ** 2


def wave(s: float, frequency: float) -> np.ndarray:
    """exp(i w s + k x) where the second difference of exp(k x) is i w exp(k x)."""
    k = np.arccosh(1 + 0.5j * frequency * X[1] ** 2) / X[1]
    return np.asarray(np.exp(1j * frequency * s + k * X))


def warm(s: float) -> np.ndarray:
    return np.asarray(0.5 * wave(s, 3.0).imag + 0.3 * wave(s, 4.0).real + 1)


def cubic(s: float) -> np.ndarray:
    return np.append(X**3 * np.sin(3 * s) + X**2 * np.cos(4 * s) + 1, 1.0)


def heated(s: float) -> np.ndarray:
    matrix = np.zeros((42, 42))
    matrix[:41, :41] = HEAT
    matrix[:41, 41] = 3 * X**3 * np.cos(3 * s) - 4 * X**2 * np.sin(4 * s) - 6 * X * np.sin(3 * s) - 2 * np.cos(4 * s)
    return matrix


ENDS: dict[str, Any] = {"fixed": [0, 40], "fixed_values": lambda s: warm(s)[[0, 40]]}
CUBIC_ENDS: dict[str, Any] = {"fixed": [0, 40], "fixed_values": lambda s: cubic(s)[[0, 40]]}


def slope(counts: Any, errors: Any) -> float:
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def errors(steps: list[RadauStep], truth: Any) -> tuple[float, float]:
    """At the last end, and the largest between the ends."""
    between = [np.abs(s.dense(theta) - truth(s.t + theta * s.h)).max() for s in steps for theta in INSIDE]
    return float(np.abs(steps[-1].f1 - truth(steps[-1].t + steps[-1].h)).max()), float(max(between))


def run(counts: list[int], stages: int, matrix: Any = driven, truth: Any = exact, **keywords: Any) -> np.ndarray:
    done = [equal_radau(matrix, truth(0.0), 0.0, 2.0, steps=n, stages=stages, **keywords) for n in counts]
    return np.array([errors(steps, truth) for steps in done])


@pytest.mark.parametrize("stages", [3, 4, 5, 6, 7])
def test_coefficients_satisfy_the_collocation_conditions(stages: int):
    tab = radau_tableau(stages)
    assert tab.c[-1] == 1
    for k in range(1, stages + 1):
        np.testing.assert_allclose(tab.a @ tab.c ** (k - 1), tab.c**k / k, atol=2e-15)
    for k in range(1, 2 * stages):  # the quadrature in the last row has degree 2m - 2
        assert tab.a[-1] @ tab.c ** (k - 1) == pytest.approx(1 / k, abs=1e-14)
    assert abs(tab.a[-1] @ tab.c ** (2 * stages - 1) - 1 / (2 * stages)) > 1e-10


def test_three_stages_are_the_textbook_method():
    np.testing.assert_allclose(radau_tableau(3).c, [(4 - 6**0.5) / 10, (4 + 6**0.5) / 10, 1], atol=1e-15)
    assert radau_tableau(3).a[0, 0] == pytest.approx((88 - 7 * 6**0.5) / 360, abs=1e-15)


def stability(tab: RadauTableau, z: complex) -> complex:
    """R(z), the growth factor of u' = z u with h = 1."""
    return complex(np.linalg.solve(np.eye(tab.c.size) - z * tab.a, np.ones(tab.c.size))[-1])


@pytest.mark.parametrize("stages", [3, 5, 7])
def test_the_method_is_a_stable_and_annihilates_infinitely_stiff_modes(stages: int):
    tab = radau_tableau(stages)
    assert max(abs(stability(tab, 1j * w)) for w in np.logspace(-2, 4, 200)) <= 1 + 1e-12
    assert abs(stability(tab, -1e8)) < 1e-6
    assert abs(stability(tab, -0.3) - np.exp(-0.3)) < 1e-6


@pytest.mark.parametrize(
    ("stages", "ends", "between", "fixed"),
    [
        (3, [16, 24, 32, 48], [32, 48, 64], {}),
        (3, [16, 24, 32, 48], [32, 48, 64], FIXED),
        (4, [10, 12, 14, 16], [14, 16, 20, 24], FIXED),
        (5, [10, 11, 12, 13], [16, 20, 24], {}),
    ],
)
def test_order_at_the_ends_and_between_for_a_time_dependent_matrix(
    stages: int, ends: list[int], between: list[int], fixed: dict[str, Any]
):
    assert slope(ends, run(ends, stages, **fixed)[:, 0]) == pytest.approx(2 * stages - 1, abs=0.15)
    assert slope(between, run(between, stages, **fixed)[:, 1]) == pytest.approx(stages + 1, abs=0.15)


def test_a_wrong_coefficient_is_seen(monkeypatch: pytest.MonkeyPatch):
    sound = radau_tableau(3)
    a = sound.a.copy()
    a[0] += [1e-2, -1e-2, 0.0]
    monkeypatch.setattr(collocation, "radau_tableau", lambda stages: replace(sound, a=a))
    counts = [16, 24, 32, 48]
    assert slope(counts, run(counts, 3)[:, 0]) < 4


def test_a_constant_matrix_decouples_the_stages_to_the_same_solution():
    one = equal_radau(lambda s: A, START, 0.0, 2.0, steps=4)
    other = equal_radau(lambda s: A.copy(), START, 0.0, 2.0, steps=4)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.stages, b.stages, atol=1e-13)
    np.testing.assert_allclose(one[-1].f1, expm(2 * A) @ START, atol=1e-8)
    assert [s.factorisations for s in one] == [3, 0, 0, 0]  # one real eigenvalue and two pairs, factored once
    assert [s.factorisations for s in other] == [1, 1, 1, 1]


def test_the_heat_equation_with_moving_end_values_keeps_the_order_of_the_dense_output():
    counts = [12, 16, 24, 32]
    assert slope(counts, run(counts, 3, lambda s: HEAT, warm, **ENDS)[:, 1]) == pytest.approx(4, abs=0.15)
    found = run(counts, 3, heated, cubic, **CUBIC_ENDS)
    assert slope(counts, found[:, 1]) == pytest.approx(4, abs=0.15)
    assert found[-1, 0] < 0.1 * found[-1, 1]


def test_prescribed_unknowns_take_their_values_at_every_node():
    for step in equal_radau(lambda s: HEAT, np.zeros(41), 0.0, 1.0, steps=3, stages=4, **ENDS):
        for c, u in zip(step.nodes, step.stages, strict=True):
            assert np.array_equal(u[[0, 40]], warm(step.t + c * step.h)[[0, 40]])
    rows = HEAT.copy()
    rows[[0, 40]] = np.nan  # nobody looks at their rows
    steps = list(radau(lambda s: rows, warm(0.0), 0.0, 1.0, rtol=1e-6, **ENDS))
    assert errors(steps, warm)[1] < 1e-5


@pytest.mark.parametrize("rtol", [1e-4, 1e-7, 1e-10])
@pytest.mark.parametrize("stages", [3, 5, 7])
def test_adaptive_steps_meet_the_tolerance_everywhere(rtol: float, stages: int):
    for matrix, truth, keywords in (
        (driven, exact, {"norm": of_three}),
        (driven, exact, {"norm": of_three, **FIXED}),
        (lambda s: HEAT, warm, ENDS),
    ):
        steps = list(radau(matrix, truth(0.0), 0.0, 2.0, rtol=rtol, stages=stages, **keywords))
        relative = [
            np.linalg.norm(s.dense(theta) - truth(s.t + theta * s.h)) / keywords.get("norm", np.linalg.norm)(truth(s.t))
            for s in steps
            for theta in INSIDE
        ]
        assert max(relative) < 10 * rtol
        assert max(relative) > 0.01 * rtol  # and no effort is wasted
        assert steps[-1].t + steps[-1].h == pytest.approx(2.0, abs=1e-14)
        assert all(s.error <= rtol for s in steps)
        np.testing.assert_allclose([s.t + s.h for s in steps[:-1]], [s.t for s in steps[1:]], atol=1e-13)


def test_without_its_estimate_the_tolerance_is_missed(monkeypatch: pytest.MonkeyPatch):
    sound = radau_tableau(5)
    monkeypatch.setattr(collocation, "radau_tableau", lambda stages: replace(sound, kappa=1e-3 * sound.kappa))
    steps = list(radau(driven, exact(0.0), 0.0, 2.0, rtol=1e-7, norm=of_three))
    assert errors(steps, exact)[1] > 10 * 1e-7


def test_stiff_transients_are_followed_and_then_forgotten():
    rates = np.array([1.0, 10.0, 1e3, 1e5, 1e7])
    steps = list(radau(lambda s: stiff, np.ones(5), 0.0, 1.0, rtol=1e-6))
    stiff_steps = steps[0].h, steps[-1].h
    worst = max(np.abs(s.dense(x) - np.exp(-rates * (s.t + x * s.h))).max() for s in steps for x in INSIDE)
    assert worst < 1e-5
    assert stiff_steps[0] < 1e-6 < 0.1 < stiff_steps[1]
    assert len(steps) < 150


stiff = -np.diag([1.0, 10.0, 1e3, 1e5, 1e7])


def test_a_constant_matrix_is_exponentiated_from_every_start():
    inner = HEAT[1:-1, 1:-1] / 100
    for column in range(0, 39, 6):
        last = list(radau(lambda s: inner, np.eye(39)[column], 0.0, 1.0, rtol=1e-7, stages=7))[-1]
        np.testing.assert_allclose(last.f1, expm(inner)[:, column], atol=1e-7)
        np.testing.assert_allclose(last.dense(0.3), expm((last.t + 0.3 * last.h) * inner)[:, column], atol=1e-6)


def test_a_constant_matrix_is_factored_a_few_times_only():
    steps = list(radau(lambda s: A, START, 0.0, 30.0, rtol=1e-9, stages=3))
    widths = np.unique([s.h for s in steps]).size
    tried = sum(s.rejected for s in steps)
    assert len(steps) > 50
    assert sum(s.factorisations for s in steps) <= 2 * (widths + tried)
    assert widths <= 10


def test_the_norm_is_the_callers():
    def last(u: np.ndarray) -> float:
        return abs(float(u[2]))

    coarse = list(radau(lambda s: np.diag([-1e3, -1.0, -1.0]), np.ones(3), 0.0, 1.0, rtol=1e-8, norm=last))
    fine = list(radau(lambda s: np.diag([-1e3, -1.0, -1.0]), np.ones(3), 0.0, 1.0, rtol=1e-8))
    assert len(coarse) < len(fine) / 2


def test_steps_are_frozen_and_repeatable():
    one, two = (list(radau(swinging, START, 0.0, 2.0, rtol=1e-5)) for _ in range(2))
    assert all(np.array_equal(a.f1, b.f1) for a, b in zip(one, two, strict=True))
    np.testing.assert_allclose(one[1].dense(0.0), one[0].f1, atol=1e-15)
    np.testing.assert_allclose(one[0].dense(1.0), one[0].f1, atol=1e-15)
    with pytest.raises(ValueError, match="read-only"):
        one[0].f1[0] = 0.0


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((np.ones(3), 0.0, 1.0), {"rtol": 1e-3, "stages": 1}, "stages must be between 2 and 9, got 1"),
        ((np.ones(3), 0.0, 1.0), {"rtol": 2.0}, "rtol must be a number between"),
        ((np.ones(3), 1.0, 1.0), {"rtol": 1e-3}, "s0 must be below s1"),
        ((np.ones(3) * np.nan, 0.0, 1.0), {"rtol": 1e-3}, "f0 must be finite"),
        ((np.ones((3, 1)), 0.0, 1.0), {"rtol": 1e-3}, r"(?s)of shape \(n,\), got array.* of shape \(3, 1\)"),
        ((np.ones(4), 0.0, 1.0), {"rtol": 1e-3}, r"matrix must have shape \(4, 4\), got shape \(3, 3\)"),
        ((np.ones(3), 0.0, 1.0), {"rtol": 1e-3, "fixed": [0]}, "fixed and fixed_values together"),
        (
            (np.ones(3), 0.0, 1.0),
            {"rtol": 1e-3, "fixed": [3], "fixed_values": lambda s: [0.0]},
            "distinct indices below 3",
        ),
        ((np.ones(3), 0.0, 1.0), {"rtol": 1e-3, "fixed": [0], "fixed_values": lambda s: [0.0, 1.0]}, r"shape \(1,\)"),
    ],
)
def test_bad_input(arguments: Any, keywords: Any, message: str):
    with pytest.raises(ConvergenceError, match=message):
        radau(swinging, *arguments, **keywords)


def test_non_finite_coefficients_and_too_many_steps_end_in_an_error_that_says_where(monkeypatch: pytest.MonkeyPatch):
    def exploding(s: float) -> np.ndarray:
        return A if s < 0.5 else A * np.nan

    with pytest.raises(ConvergenceError, match=r"the step fell to .* at s=0\.\d+ .* split the interval"):
        list(radau(exploding, np.ones(3), 0.0, 1.0, rtol=1e-4))
    with pytest.raises(ConvergenceError, match=r"not finite at s=0"):
        list(radau(lambda s: A * np.nan, np.ones(3), 0.0, 1.0, rtol=1e-4))
    monkeypatch.setattr(collocation, "_MAX_STEPS", 3)
    with pytest.raises(ConvergenceError, match=r"3 steps did not reach s=1 \(stopped at .* rtol=1e-12"):
        list(radau(swinging, np.ones(3), 0.0, 1.0, rtol=1e-12))
