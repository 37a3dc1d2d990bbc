"""The time stepper: its coefficients, its orders, its step control, and what it says when it cannot go on."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from fem_hjb.stepping import esdirk as integrators
from fem_hjb.stepping.esdirk import ESDIRK43, LinearSystem, Solve, Stages, esdirk
from fem_hjb.support.errors import ConvergenceError

N = 5
RNG = np.random.default_rng(7)
MIX = RNG.standard_normal((N, N))
MASS = MIX @ MIX.T / N + np.eye(N)
K0 = -np.diag([0.5, 1.0, 2.0, 4.0, 8.0]) + 0.3 * RNG.standard_normal((N, N))
K1 = RNG.standard_normal((N, N))
F0 = np.array([1.0, -0.5, 0.3, 0.8, -1.0])


class Dense(LinearSystem):
    """M f' = (K0 + swing sin(5 t) K1) f with dense matrices; counts the factorisations."""

    def __init__(self, swing: float = 1.0, fixed: Any = None) -> None:
        self.mass, self.swing, self.factorisations = MASS, swing, 0
        if fixed is not None:
            self.fixed, self.fixed_values = fixed  # type: ignore[method-assign]

    def stiffness(self, t: float) -> Any:
        return K0 + self.swing * np.sin(5 * t) * K1 if self.swing else K0

    def solver(self, stiffness: Any, shift: float) -> Solve:
        self.factorisations += 1
        matrix = self.mass - shift * stiffness
        matrix[self.fixed] = np.eye(N)[self.fixed]
        inverse = np.linalg.inv(matrix)
        return lambda rhs, guess, rtol: np.asarray(inverse @ rhs)


def derivative(t: float, f: np.ndarray) -> Any:
    return np.linalg.solve(MASS, (K0 + np.sin(5 * t) * K1) @ f)


EXACT = solve_ivp(derivative, (0.0, 2.0), F0, method="DOP853", rtol=1e-13, atol=1e-14, dense_output=True).sol


def slope(h: list[float], errors: list[float]) -> float:
    return float(np.polyfit(np.log(h), np.log(errors), 1)[0])


def errors_at_end_and_inside(steps: int, fixed: Any = None) -> tuple[float, float]:
    done = list(esdirk(Dense(fixed=fixed), F0, 0.0, 2.0, steps=steps))
    inside = [np.abs(s.dense(th) - EXACT(s.s + th * s.h)).max() for s in done for th in (1 / 3, 0.5, 2 / 3)]
    return float(np.abs(done[-1].u1 - EXACT(2.0)).max()), float(max(inside))


def order_conditions(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
    """What must vanish, orders 1 to 4."""
    return [
        np.array([b.sum() - 1]),
        np.array([b @ c - 1 / 2]),
        np.array([b @ c**2 - 1 / 3, b @ a @ c - 1 / 6]),
        np.array([b @ c**3 - 1 / 4, (b * c) @ a @ c - 1 / 8, b @ a @ c**2 - 1 / 12, b @ a @ a @ c - 1 / 24]),
    ]


def test_coefficients_satisfy_the_order_conditions_up_to_four_and_the_embedded_ones_up_to_three():
    tab = ESDIRK43
    np.testing.assert_allclose(tab.c, [0, 1 / 2, 83 / 250, 31 / 50, 17 / 20, 1], atol=1e-15)
    np.testing.assert_allclose(tab.a.sum(axis=1), tab.c, atol=1e-15)
    np.testing.assert_allclose(tab.a @ tab.c, tab.c**2 / 2, atol=1e-15)  # stage order 2
    np.testing.assert_allclose(np.diag(tab.a), [0] + [0.25] * 5)
    assert np.array_equal(tab.a[-1], tab.b)  # stiffly accurate
    assert np.array_equal(np.triu(tab.a, 1), np.zeros((6, 6)))
    for residual in order_conditions(tab.a, tab.b, tab.c):
        np.testing.assert_allclose(residual, 0, atol=2e-15)
    embedded = order_conditions(tab.a, tab.b_hat, tab.c)
    for residual in embedded[:3]:
        np.testing.assert_allclose(residual, 0, atol=2e-15)
    assert np.abs(embedded[3]).max() > 1e-4  # and no better: the difference of the two does estimate an error


def stability(z: complex, weights: np.ndarray) -> complex:
    """R(z) = 1 + z w' (I - z a)^{-1} 1, the growth factor of f' = z f with weights w = b or b_hat and h = 1."""
    stages = np.linalg.solve(np.eye(ESDIRK43.c.size) - z * ESDIRK43.a, np.ones(ESDIRK43.c.size))
    return complex(1.0 + z * (weights @ stages))


def test_the_method_is_a_stable_and_damps_infinitely_stiff_modes():
    tab = ESDIRK43
    on_axis = [abs(stability(1j * w, tab.b)) for w in np.logspace(-3, 4, 400)]
    assert max(on_axis) <= 1 + 1e-13  # with the only pole at 1/gamma > 0, A-stability follows
    assert abs(stability(-1e8, tab.b)) < 1e-6
    assert abs(stability(-1e8, tab.b_hat)) < 0.16
    assert abs(stability(0.1, tab.b) - np.exp(0.1)) < 1e-7


def test_fourth_order_in_time_at_the_ends_and_between_with_a_time_dependent_matrix():
    counts = [16, 32, 64, 128]
    errors = np.array([errors_at_end_and_inside(n) for n in counts])
    h = [2 / n for n in counts]
    assert slope(h, errors[:, 0]) == pytest.approx(4.0, abs=0.15)
    assert slope(h, errors[:, 1]) == pytest.approx(4.0, abs=0.15)


def test_prescribed_unknowns_keep_the_order():
    fixed = (np.array([1, 3]), lambda t: EXACT(t)[[1, 3]])
    counts = [32, 64, 128]
    errors = np.array([errors_at_end_and_inside(n, fixed=fixed) for n in counts])
    h = [2 / n for n in counts]
    assert slope(h, errors[:, 0]) == pytest.approx(4.0, abs=0.15)
    assert slope(h, errors[:, 1]) == pytest.approx(4.0, abs=0.15)
    steps = list(esdirk(Dense(fixed=fixed), F0, 0.0, 2.0, steps=8))
    assert all(np.array_equal(s.u1[[1, 3]], fixed[1](s.s + s.h)) for s in steps)


def test_the_embedded_estimate_is_the_local_error_of_a_third_order_method():
    lengths, estimates = [1.7 / n for n in (40, 80, 160)], []
    for h in lengths:
        stages = Stages(Dense(), 1.7, {"linear_solves": 0}, 1e-12, Dense().norm)
        estimates.append(float(np.linalg.norm(stages.step(0.3, h, F0, stages.first(0.3, F0))[2])))
    assert slope(lengths, estimates) == pytest.approx(4.0, abs=0.15)


def test_a_wrong_coefficient_is_seen(monkeypatch: pytest.MonkeyPatch):
    a = ESDIRK43.a.copy()
    a[3, 1] -= 1e-2
    a[3, 2] += 1e-2
    wrong = replace(ESDIRK43, a=a)
    assert max(np.abs(r).max() for r in order_conditions(a, wrong.b, wrong.c)) > 1e-4
    counts = [16, 32, 64, 128]
    monkeypatch.setattr(integrators, "ESDIRK43", wrong)
    rate = slope([2 / n for n in counts], [errors_at_end_and_inside(n)[0] for n in counts])
    assert abs(rate - 4.0) > 0.5


def test_adaptive_steps_meet_the_tolerance_and_land_on_the_end():
    for rtol in (1e-4, 1e-6, 1e-8):
        counts: dict[str, int] = {}
        steps = list(esdirk(Dense(), F0, 0.0, 2.0, rtol=rtol, counts=counts))
        assert steps[-1].s + steps[-1].h == pytest.approx(2.0, abs=1e-14)
        np.testing.assert_allclose([s.s + s.h for s in steps[:-1]], [s.s for s in steps[1:]], atol=1e-14)
        relative = np.abs(steps[-1].u1 - EXACT(2.0)).max() / np.abs(EXACT(2.0)).max()
        assert relative < 20 * rtol
        assert counts["steps"] == len(steps)
        assert counts["linear_solves"] == 1 + 5 * (len(steps) + counts["rejected"])


def test_a_constant_matrix_is_factored_a_few_times_only():
    system = Dense(swing=0.0)
    counts: dict[str, int] = {}
    steps = list(esdirk(system, F0, 0.0, 20.0, rtol=1e-7, counts=counts))
    assert len(steps) > 40
    widths = np.unique([s.h for s in steps])
    # One factorisation of M, one for each width, one for each width that was tried in vain.
    assert system.factorisations <= 1 + widths.size + counts["rejected"]
    assert widths.size <= 10


def test_stiff_transients_are_damped_and_the_estimate_sees_them():
    class Stiff(Dense):
        def stiffness(self, t: float) -> Any:
            return stiff

    stiff = -MASS @ np.diag([1.0, 10.0, 1e3, 1e5, 1e7])
    steps = list(esdirk(Stiff(), F0, 0.0, 1.0, rtol=1e-6))
    expected = F0 * np.exp(-np.array([1.0, 10.0, 1e3, 1e5, 1e7]))
    np.testing.assert_allclose(steps[-1].u1, expected, atol=1e-5)
    assert steps[0].h < 1e-6 < 1e-3 < steps[-1].h
    assert len(steps) < 600  # five time scales over seven decades, each followed down to 1e-6


def test_steps_are_frozen_and_repeatable():
    one, two = (list(esdirk(Dense(), F0, 0.0, 2.0, rtol=1e-5)) for _ in range(2))
    assert all(np.array_equal(a.u1, b.u1) for a, b in zip(one, two, strict=True))
    with pytest.raises(ValueError, match="read-only"):
        one[0].u1[0] = 0.0


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((F0, 0.0, 1.0), {}, "exactly one of rtol and steps"),
        ((F0, 0.0, 1.0), {"rtol": 1e-3, "steps": 3}, "exactly one of rtol and steps"),
        ((F0, 0.0, 1.0), {"steps": 0}, "steps must be a positive integer, got 0"),
        ((F0, 0.0, 1.0), {"steps": 2.5}, "steps must be a positive integer"),
        ((F0, 0.0, 1.0), {"rtol": -1.0}, "rtol must be a number between 1e-13 and 0.1, got -1.0"),
        ((F0, 0.0, 1.0), {"rtol": "small"}, "rtol must be a number between"),
        ((F0, 1.0, 1.0), {"steps": 2}, "t0 must be below t1"),
        ((F0 * np.nan, 0.0, 1.0), {"steps": 2}, "5 non-finite entries"),
        ((F0[None], 0.0, 1.0), {"steps": 2}, "f0 must be a finite vector"),
    ],
)
def test_bad_input(arguments: Any, keywords: Any, message: str):
    with pytest.raises(ConvergenceError, match=message):
        esdirk(Dense(), *arguments, **keywords)


class Exploding(Dense):
    def stiffness(self, t: float) -> Any:
        return K0 if t < 0.5 else K0 * np.nan


def test_non_finite_coefficients_end_in_an_error_that_says_where():
    with pytest.raises(ConvergenceError, match=r"the step fell below .* at s=0\.5 .* check the coefficients"):
        list(esdirk(Exploding(), F0, 0.0, 1.0, rtol=1e-4))
    with pytest.raises(ConvergenceError, match=r"non-finite in the step from t=0\.4 with 5 equal steps"):
        list(esdirk(Exploding(), F0, 0.0, 1.0, steps=5))


def test_a_linear_solve_that_gives_up_makes_the_step_smaller():
    class Picky(Dense):
        def solver(self, stiffness: Any, shift: float) -> Solve:
            if shift > 0.01:
                raise ConvergenceError("no convergence")
            return super().solver(stiffness, shift)

    counts: dict[str, int] = {}
    steps = list(esdirk(Picky(), F0, 0.0, 2.0, rtol=1e-3, counts=counts))
    assert max(s.h for s in steps) <= 0.04
    assert counts["rejected"] >= 1
    with pytest.raises(ConvergenceError, match="no convergence"):
        list(esdirk(Picky(), F0, 0.0, 2.0, steps=3))
