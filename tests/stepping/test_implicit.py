"""Implicit steps on a panel: their order, what is prescribed, and steps whose linear solves fail."""

from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from fem_hjb.stepping.adaptive import Step, hermite, march, replay
from fem_hjb.stepping.esdirk import LinearSystem, Solve
from fem_hjb.stepping.implicit import ImplicitPanel
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

SHAPE = (4, 3)
N = 12
RNG = np.random.default_rng(3)
K0 = RNG.standard_normal((N, N)) - 3.0 * np.eye(N)
K1 = RNG.standard_normal((N, N))
START = RNG.standard_normal(SHAPE)
FIXED = np.array([0, 11])


def moving(s: float) -> FloatArray:
    return np.array([np.sin(3 * s), np.exp(-s)])


class Dense(LinearSystem):
    """u' = (K0 + swing sin(5 s) K1) u, u prescribed at both ends."""

    def __init__(self, swing: float = 1.0) -> None:
        self.mass, self.fixed, self.swing, self.fails, self.made = np.eye(N), FIXED, swing, False, 0

    def stiffness(self, t: float) -> Any:
        return K0 + self.swing * np.sin(5 * t) * K1 if self.swing else K0

    def fixed_values(self, t: float) -> FloatArray:
        return moving(t)

    def solver(self, stiffness: Any, shift: float) -> Solve:
        self.made += 1
        matrix = np.eye(N) - shift * stiffness
        matrix[FIXED] = np.eye(N)[FIXED]
        inverse = np.linalg.inv(matrix)

        def solve(rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
            if self.fails:
                raise ConvergenceError("no")
            return np.asarray(inverse @ rhs)

        return solve


def derivative(s: float, u: FloatArray) -> FloatArray:
    result = (K0 + np.sin(5 * s) * K1) @ u
    result[FIXED] = [3 * np.cos(3 * s), -np.exp(-s)]
    return result


BEGUN = START.copy()
BEGUN.ravel()[FIXED] = moving(0.0)
TRUTH = solve_ivp(derivative, (0, 1), BEGUN.ravel(), method="DOP853", rtol=1e-13, atol=1e-14, dense_output=True).sol


def relative(u: FloatArray) -> float:
    return float(np.linalg.norm(u))


def panel(**how: Any) -> ImplicitPanel:
    return ImplicitPanel(Dense(**how), 0.0, 1.0, relative)


def missed(steps: list[Step], theta: float) -> float:
    return max(relative(hermite(theta, p.h, *p.ends).ravel() - TRUTH(p.s + theta * p.h)) for p in steps)


@pytest.mark.parametrize("theta", [1.0, 0.3])
def test_fourth_order_at_the_ends_and_between(theta: float) -> None:
    counts = [16, 24, 32, 48]
    falls = [missed(list(replay(panel(), BEGUN, 0.0, [1 / n] * n)), theta) for n in counts]
    assert -np.polyfit(np.log(counts), np.log(falls), 1)[0] == pytest.approx(4.0, abs=0.15)


def test_the_middle_of_a_step_is_more_accurate_than_the_cubic() -> None:
    own = panel()
    k = own.first(0.0, BEGUN)
    np.testing.assert_allclose(k.ravel(), derivative(0.0, BEGUN.ravel()), atol=1e-6)
    h = 0.1
    u1, k1, error = own.step(0.0, h, BEGUN, k)
    step = Step(0.0, h, BEGUN, k, u1, k1)
    exact = TRUTH(h / 2)
    middle = relative(own.middle(h, step, k, k1).ravel() - exact)
    assert middle < 0.3 * relative(hermite(0.5, h, *step.ends).ravel() - exact)
    assert 1.0 < relative(error) / relative(u1.ravel() - TRUTH(h)) < 1e3
    assert not error.ravel()[FIXED].any()


@pytest.mark.parametrize("rtol", [1e-4, 1e-7])
def test_marching_meets_a_tolerance(rtol: float) -> None:
    steps = list(march(panel(), BEGUN, 0.0, 1.0, rtol=rtol, rtol_dense=100 * rtol, first=0.1))
    assert steps[-1].s + steps[-1].h == pytest.approx(1.0, rel=1e-14)
    assert 1e-3 * rtol < missed(steps, 1.0) < 10 * rtol
    assert missed(steps, 0.5) < 200 * rtol
    for step in steps:
        np.testing.assert_allclose(step.u1.ravel()[FIXED], moving(step.s + step.h), rtol=1e-13)


def test_factors_serve_many_steps_if_nothing_moves() -> None:
    still, own = panel(swing=0.0), panel()
    for each in (still, own):
        list(replay(each, BEGUN, 0.0, [0.05] * 20))
    assert isinstance(still.system, Dense)
    assert isinstance(own.system, Dense)
    assert still.system.made == 2  # one of them for the first slope
    assert own.system.made == 101
    assert still.counts["linear_solves"] == own.counts["linear_solves"] == 101


def test_a_linear_solve_that_fails_makes_a_step_that_is_rejected() -> None:
    own = panel()
    k = own.first(0.0, BEGUN)
    assert isinstance(own.system, Dense)
    own.system.fails = True
    assert all(np.isnan(part).all() for part in own.step(0.0, 0.1, BEGUN, k))
    own.system.fails = False
    assert np.isfinite(own.step(0.0, 0.1, BEGUN, k)[0]).all()
