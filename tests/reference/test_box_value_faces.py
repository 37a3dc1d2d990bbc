"""The value form where faces absorb: its steps, small temperatures, and when it is taken."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.special import logsumexp, softmax

from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.manufactured import manufactured
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_coefficients import Coefficients, Table, by_field, lobatto
from fem_hjb.reference.box_faces import Linearised, ValueSystem, begun, panel_of
from fem_hjb.reference.box_grading import make_grid
from fem_hjb.reference.box_panel import Equation, Operators
from fem_hjb.reference.box_tolerance import _Search
from fem_hjb.reference.faces import truncated
from fem_hjb.reference.solve import solve
from fem_hjb.stepping.adaptive import replay
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

TIMES = (0.0, 0.3, 0.49, 0.7, 0.95, 0.98)


@dataclass
class Waves:
    """v = alpha log sum_k exp((a_k + <k, x> + c |k|^2 (T - t) / 2) / alpha), Brownian motion with Lambda = c alpha.

    Where two of the waves are equal there is a front, as wide as alpha, that moves.
    """

    alpha: float
    c: float
    slopes: FloatArray  # (n, d)
    heights: FloatArray  # (n,)

    def _waves(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        grown = 0.5 * self.c * (self.slopes**2).sum(axis=1) * (1 - np.asarray(t))[..., None]
        return np.asarray(self.heights + x @ self.slopes.T + grown) / self.alpha

    def value(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return self.alpha * np.asarray(logsumexp(self._waves(t, x), axis=-1))

    def gradient(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(softmax(self._waves(t, x), axis=-1) @ self.slopes)


def waves(alpha: float, dim: int = 1) -> tuple[ControlProblem, Waves]:
    slopes = np.array([[1.0, 0.5], [-1.5, 0.3]])[:, :dim]
    exact = Waves(alpha, 0.3, slopes, np.array([0.0, 1.0]))
    box = Box([0.0] * dim, [1.0] * dim, boundary="absorbing", exit_reward=exact.value)
    problem = ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=alpha,
        drift=lambda t, x: np.zeros_like(x),
        diffusion=0.3 * alpha,
        terminal_reward=lambda x: exact.value(1.0, x),
        initial_law=Gaussian([0.5] * dim, 0.01),
        domain=box,
    )
    return problem, exact


def chosen(alpha: float, dim: int = 1) -> tuple[ControlProblem, Any]:
    """v = sin(2 <1, x> + t) - |x|^2, a drift that moves, Lambda = 0.3 alpha (1 + 0.3 sin x_1)."""

    def phase(t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(2 * x.sum(-1) + np.asarray(t))

    problem = manufactured(
        value=lambda t, x: np.sin(phase(t, x)) - (x**2).sum(-1),
        time_derivative=lambda t, x: np.cos(phase(t, x)),
        gradient=lambda t, x: 2 * np.cos(phase(t, x))[..., None] * np.ones(dim) - 2 * x,
        hessian=lambda t, x: -4 * np.sin(phase(t, x))[..., None, None] * np.ones((dim, dim)) - 2 * np.eye(dim),
        drift=lambda t, x: np.sin(3 * np.asarray(t))[..., None] - x,
        diffusion=lambda t, x: 0.3 * alpha * (1 + 0.3 * np.sin(x[..., :1, None])) * np.eye(dim),
        temperature=alpha,
        horizon=1.0,
        initial_law=Gaussian([0.1] * dim, 0.02),
        domain=Box([-1.0] * dim, [1.2] * dim, boundary="absorbing"),
    )
    return problem, problem.exact


def errors(solution: Any, exact: Any) -> tuple[float, float]:
    """Relative errors of value and policy under the law of the process that has not been stopped."""
    problem = solution.problem
    paths = np.asarray(sample_paths(problem, n=1000, steps=100, rng=3).x)
    rows = []
    for t in TIMES:
        x = paths[:, round(100 * t)]
        x = x[~problem.domain.exited(x)]
        v, g = exact.value(t, x), exact.gradient(t, x)
        wrong, root = (solution.value(t, x) - v, solution.gradient(t, x) - g), problem.Lambda(t, x)
        rows.append([(a**2).mean() for a in (wrong[0], v)] + [((g @ root) * g).sum(-1).mean() for g in (wrong[1], g)])
    most = np.sqrt(np.max(rows, axis=0))
    return float(most[0] / most[1]), float(most[2] / most[3])


@pytest.mark.parametrize(
    ("posed", "alpha", "rtol"),
    [
        (waves, 0.01, 1e-3),
        (chosen, 1.0, 1e-4),
        (chosen, 0.1, 1e-5),
        (chosen, 0.001, 1e-4),
    ],
)
def test_small_temperatures_are_met_and_the_error_is_known(posed: Any, alpha: float, rtol: float) -> None:
    problem, exact = posed(alpha)
    solution = solve(problem, rtol=rtol, form="value")
    assert solution.status == "ok"
    assert solution.stats["form"] == "value"
    value, policy = errors(solution, exact)
    assert solution.error_estimate is not None
    assert value < min(rtol, 3 * solution.error_estimate.value)
    assert policy < min(rtol, 3 * solution.error_estimate.policy)


def test_in_the_plane() -> None:
    problem, exact = waves(0.1, 2)
    solution = solve(problem, rtol=1e-2, form="value", verify=False)
    assert (solution.status, solution.stats["form"]) == ("ok", "value")
    assert solution.error_estimate is not None
    value, policy = errors(solution, exact)
    assert value < min(1e-2, 3 * solution.error_estimate.value)
    assert policy < min(1e-2, 3 * solution.error_estimate.policy)


def test_an_error_bar_of_another_problem_does_not_hold() -> None:
    problem, exact = chosen(0.1)
    other = replace(problem, running_reward=lambda t, x: problem.r(t, x) + 0.05 * x[..., 0], exact=None)
    solution = solve(other, rtol=1e-4, form="value", verify=False)
    assert solution.error_estimate is not None
    assert errors(solution, exact)[1] > 10 * solution.error_estimate.policy


def test_both_forms_agree_where_both_exist() -> None:
    problem, _ = waves(0.3)
    one, other = (solve(problem, rtol=1e-5, form=form) for form in ("linear", "value"))
    x = np.linspace(0.01, 0.99, 33)[:, None]
    for t in (0.0, 0.5, 0.9):
        np.testing.assert_allclose(one.value(t, x), other.value(t, x), atol=1e-5)
        np.testing.assert_allclose(one.gradient(t, x), other.gradient(t, x), atol=3e-4)


# When it is taken


@pytest.mark.parametrize(("alpha", "form"), [(1.0, "linear"), (0.1, "linear"), (0.015, "value"), (1e-3, "value")])
def test_the_form_follows_the_temperature(alpha: float, form: str) -> None:
    search = _Search(waves(alpha)[0], 1e-3, None, None, None, 0)
    assert search.linear == (form == "linear")


def test_exit_rewards_that_do_not_fit_have_the_linear_form_or_none() -> None:
    def unfit(alpha: float) -> ControlProblem:
        problem, exact = waves(alpha)
        return replace(problem, terminal_reward=lambda x: exact.value(1.0, x) + 1e-3)

    assert _Search(unfit(0.015), 1e-3, None, None, None, 0).linear
    with pytest.raises(ConvergenceError, match="fit the terminal reward on absorbing faces; leave out form="):
        solve(unfit(0.015), form="value")
    with pytest.raises(ConvergenceError, match="holds 25, and the value form needs exit rewards that fit"):
        solve(unfit(1e-3))


def test_the_linear_form_is_refused_where_f_underflows() -> None:
    with pytest.raises(ConvergenceError, match="leave out form=, or raise the temperature"):
        solve(waves(1e-3)[0], form="linear")


# Panels


def operators_of(dim: int) -> tuple[Equation, Operators]:
    problem, _ = chosen(0.2, dim)
    search = _Search(problem, 1e-3, "value", None, None, 0)
    equation = Equation(problem, search.gauge, False, search.box, truncated(problem), search.reaches, (), 1e-4)
    edges = [np.linspace(*ends, 3) for ends in zip(*search.box.bounds, strict=True)]
    grid = make_grid(edges, 5, equation, 0.0, 1.0)
    coefficients = Coefficients(problem, search.gauge, False)
    values = np.stack([coefficients.at(1.0 - float(s), grid.nodes) for s in lobatto(17)])
    table = Table(0.0, 1.0, by_field(values.reshape(17, -1, *grid.shape)))
    return equation, Operators.of(equation, grid, table, np.ones(grid.shape))


def slope_of(spoil: Callable[[], None]) -> float:
    """Of the errors of equal steps; what the best of them are is known before it is spoilt."""
    equation, operators = operators_of(1)

    def end_of(count: int) -> FloatArray:
        panel = panel_of(equation, operators, operators.root_mean_square)
        return list(replay(panel, begun(equation, operators.grid, 0.0, None), 0.0, [1.0 / count] * count))[-1].u1

    best, counts = end_of(160), [8, 16, 32]
    spoil()
    return float(np.polyfit(np.log(counts), np.log([np.abs(end_of(n) - best).max() for n in counts]), 1)[0])


def test_steps_are_of_order_four() -> None:
    assert slope_of(lambda: None) == pytest.approx(-4.0, abs=0.15)


def test_coefficients_at_wrong_times_leave_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ValueSystem.stiffness
    late = lambda self, t: whole(self, 0.99 * t)  # noqa: E731
    assert abs(slope_of(lambda: monkeypatch.setattr(ValueSystem, "stiffness", late))) < 0.1


@pytest.mark.parametrize("dim", [1, 2])
def test_stages_are_solved_with_the_derivative_of_the_equation(dim: int) -> None:
    equation, operators = operators_of(dim)
    system, rng = ValueSystem(equation, operators), np.random.default_rng(0)
    w, v = rng.standard_normal((2, operators.grid.size))
    K, by = system.stiffness(0.4), 1e-6
    expected = ((K @ (w + by * v)) - (K @ (w - by * v))) / (2 * by)
    found = Linearised(operators, 0.4, w.reshape(operators.grid.shape)) @ v
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    wrong = Linearised(operators, 0.4, 2 * w.reshape(operators.grid.shape)) @ v
    assert np.abs(wrong - expected).max() > 1e-2 * np.abs(expected).max()
    w = begun(equation, operators.grid, 0.0, None).ravel()
    found = system.solver(K, 0.05)(w, w, 1e-10)
    left = found - 0.05 * (K @ found) - w
    left[system.fixed] = 0.0
    assert np.abs(left).max() < 1e-8 * np.abs(w).max()
    np.testing.assert_array_equal(found[system.fixed], w[system.fixed])


def test_newtons_method_that_fails_is_a_step_that_failed() -> None:
    equation, operators = operators_of(1)
    system = ValueSystem(equation, operators)
    rough = 1e3 * np.random.default_rng(0).standard_normal(operators.grid.size)
    with pytest.raises(ConvergenceError, match="found no stage"):
        system.solver(system.stiffness(0.4), 1.0)(rough, rough, 1e-10)
