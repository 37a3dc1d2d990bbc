"""The value by Newton's method: against closed forms, against the linear equation for f, and beyond its reach."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import UNDERFLOW, Gauge, QuadraticGauge, constant_gauge, range_in_temperatures
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference import box_newton as newton
from fem_hjb.reference.box_background import quadratic_gauge
from fem_hjb.reference.box_newton import solve_value
from fem_hjb.reference.box_operators import BoxOperators
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.stepping.esdirk import ESDIRK43, LinearSystem, Solve, esdirk
from fem_hjb.support.errors import ConvergenceError, DomainError
from tests.support.fixed_steps import equal_newton
from tests.support.interpolation import interpolation

FAR = 6.5  # standard deviations to the faces


def around(problem: ControlProblem, reach: float = FAR) -> Box:
    """mean +- reach standard deviations, over all times."""
    assert problem.marginal is not None
    laws: Any = [problem.marginal(t) for t in np.linspace(0.0, problem.horizon, 5)]
    spread = [reach * np.sqrt(np.diag(law.covariance)) for law in laws]
    lower = np.min([law.expectation - s for law, s in zip(laws, spread, strict=True)], axis=0)
    return Box(lower, np.max([law.expectation + s for law, s in zip(laws, spread, strict=True)], axis=0))


def basis_on(box: Box, cells: int, degree: int) -> SpectralBasis:
    return SpectralBasis([SpectralLine(np.linspace(a, b, cells + 1), degree) for a, b in zip(*box.bounds, strict=True)])


def constants(problem: ControlProblem, basis: SpectralBasis) -> Gauge:
    return constant_gauge(problem, basis.nodes, np.linspace(0.0, problem.horizon, 5))


def quadratic(problem: ControlProblem, basis: SpectralBasis) -> QuadraticGauge:
    guess = quadratic_gauge(problem, basis.box, constants(problem, basis))
    assert guess is not None
    return guess


def policy_error(candidate: Any, reference: Any, problem: ControlProblem) -> float:
    return compare({"it": candidate}, reference, problem=problem).overall("it").policy


# ---------------------------------------------------------------------------------------------------------------------
# Newton's method


def random_state(dim: int, background: Any = constants) -> tuple[newton._ValueEquation, np.ndarray, np.ndarray]:
    problem = zoo.get("double-well-2d-coupled") if dim == 2 else zoo.get("double-well", 1)
    basis = basis_on(Box([-1.5] * dim, [1.0] * dim), 3, 4)
    if dim == 2:
        problem = replace(
            problem, diffusion=lambda t, x: np.array([[1.0, 0.4], [0.4, 0.7]]) * (1 + x[..., :1, None] ** 2)
        )
    equation = newton._ValueEquation(problem, basis, background(problem, basis))
    w, delta = np.random.default_rng(3).standard_normal((2, basis.n_dofs))
    return equation, w, delta


def some_quadratic(problem: ControlProblem, basis: SpectralBasis) -> QuadraticGauge:
    d = problem.dim
    series = np.array([1.0, 0.3])
    return QuadraticGauge(
        constants=constants(problem, basis),
        centre=np.full(d, 0.2),
        P=np.multiply.outer(series, np.eye(d) + 0.2),
        p=np.multiply.outer(series, np.ones(d)),
        c=series,
    )


@pytest.mark.parametrize("background", [constants, some_quadratic])
@pytest.mark.parametrize("dim", [1, 2])
def test_a_newton_step_evaluates_the_policy_and_leaves_the_square_of_the_change(dim: int, background: Any) -> None:
    equation, w, known = random_state(dim, background)
    s, shift = 0.3, 1e-3
    change = equation.factor(s, w, shift)(known + shift * equation.slope(s, w) - w)
    left = known + shift * equation.slope(s, w + change) - (w + change)
    slope = equation.gradient(change)
    alpha, Lambda = equation.problem.temperature, equation.coefficients(s)[2]
    expected = (
        shift / (2 * alpha) * np.einsum("in,ijn,jn->n", slope, np.broadcast_to(Lambda, (dim, dim, w.size)), slope)
    )
    np.testing.assert_allclose(left, expected, atol=1e-9 * abs(expected).max())
    # and the matrix it solves with is the generator under the policy of v = v0 + w
    t = equation.time(s)
    x = equation.basis.nodes
    grad_v = equation.gradient(w).T + equation.background.guess_gradient(t, x)
    steered = replace(equation.problem, drift=lambda t, y: equation.problem.b(t, y))
    policy = steered.policy_from_gradient(t, x, grad_v)
    Lambdas = steered.Lambda(t, x)
    linear = ((steered.b(t, x) + policy) * equation.gradient(change).T).sum(1)
    for k in range(dim):
        linear += 0.5 * Lambdas[:, k, k] * (equation.second[k] @ change)
    if dim == 2:
        linear += Lambdas[:, 0, 1] * (equation.mixed[0, 1] @ change)
    residual = known + shift * equation.slope(s, w) - w
    np.testing.assert_allclose(change - shift * linear, residual, atol=1e-9 * abs(residual).max())


def test_iterations_converge_fast_and_factors_are_kept() -> None:
    problem = zoo.get("lq", 1, temperature=0.01)
    basis = basis_on(around(problem), 12, 8)
    stats = solve_value(problem, basis, constants(problem, basis), rtol_time=1e-6).stats
    assert stats["newton_iterations"] <= 2.5 * 5 * stats["steps"]
    assert stats["factorisations"] <= 1.5 * stats["steps"]
    assert stats["failures"] == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_sparse_factors_and_gmres_agree(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = zoo.get("lq", dim, temperature=0.1)
    basis = basis_on(around(problem, 5.0), 2, 4)
    solutions = []
    for limit in (10_000, 0):
        monkeypatch.setattr(newton, "DIRECT_UNKNOWNS", {dim: limit})
        solutions.append(equal_newton(problem, basis, constants(problem, basis), 8))
    assert [solution.stats["linear_solver"] for solution in solutions] == ["sparse", "gmres"]
    one, other = (np.asarray(solution.coefficients) for solution in solutions)
    np.testing.assert_allclose(one, other, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# In time


def periodic(temperature: float) -> ControlProblem:
    """A process reflected in [-1, 1] whose value is even about both faces, so that it stays smooth there."""
    return ControlProblem(
        dim=1,
        horizon=0.5,
        temperature=temperature,
        drift=lambda t, x: (1 + np.sin(3 * np.asarray(t)))[..., None] * np.sin(np.pi * x),
        diffusion=0.5,
        running_reward=lambda t, x: 0.3 * np.cos(5 * np.asarray(t)) * np.cos(np.pi * x[..., 0]),
        terminal_reward=lambda x: np.cos(np.pi * x[..., 0]),
        initial_law=Gaussian([0.0], [[0.05]]),
        domain=Box([-1.0], [1.0]),
    )


def order_in_time() -> float:
    problem = periodic(0.5)
    basis = basis_on(Box([-1.0], [1.0]), 2, 14)

    def last(steps: int) -> Solution:
        return equal_newton(problem, basis, constants(problem, basis), steps)

    exact = last(128).gradient(0.0, basis.nodes)
    counts = [8, 12, 16, 24]
    errors = [float(np.abs(last(steps).gradient(0.0, basis.nodes) - exact).max()) for steps in counts]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def test_the_order_in_time_is_four_and_a_wrong_coefficient_destroys_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(order_in_time() - 4.0) < 0.15
    wrong = ESDIRK43.a.copy()
    wrong[4, :2] += [0.05, -0.05]
    monkeypatch.setattr(newton, "ESDIRK43", replace(ESDIRK43, a=wrong))
    assert order_in_time() < 3.5


def test_dense_in_time() -> None:
    problem = periodic(0.5)
    basis = basis_on(Box([-1.0], [1.0]), 2, 12)
    solution = solve_value(problem, basis, quadratic(problem, basis), rtol_time=1e-7)
    finer = equal_newton(problem, basis, constants(problem, basis), 200)
    # reflection is a condition on v, not on what the background leaves of it
    slope = quadratic(problem, basis).guess_gradient(0.0, basis.nodes[[0, -1]])
    assert np.abs(slope).min() > 0.1
    for t in (0.0, 0.111, 0.456, 0.5):
        np.testing.assert_allclose(solution.value(t, basis.nodes), finer.value(t, basis.nodes), atol=2e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize(("dim", "cells", "degree"), [(1, 12, 8), (2, 8, 6)])
def test_linear_quadratic_policies_at_all_temperatures(dim: int, cells: int, degree: int, temperature: float) -> None:
    problem = zoo.get("lq", dim, temperature=temperature)
    smooth = dim == 2 and temperature >= 0.1
    basis = basis_on(around(problem), 2, 4) if smooth else basis_on(around(problem), cells, degree)
    background = quadratic(problem, basis) if smooth else constants(problem, basis)
    solution = solve_value(problem, basis, background, rtol_time=4e-6)
    assert policy_error(solution, problem.exact, problem) < 1e-5
    assert np.isfinite(np.asarray(solution.coefficients)).all()


def test_reflecting_faces() -> None:
    problem = zoo.get("reflected", 1)
    assert problem.domain is not None
    basis = basis_on(problem.domain, 4, 12)
    solution = solve_value(problem, basis, constants(problem, basis), rtol_time=1e-8)
    assert policy_error(solution, problem.exact, problem) < 1e-6
    open_ended = replace(problem, domain=None)
    wrong = solve_value(open_ended, basis, constants(open_ended, basis), rtol_time=1e-6)
    assert policy_error(wrong, problem.exact, problem) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Against the linear equation for f


class Linear(LinearSystem):
    """d_s f = L(T - s) f on one line, dense."""

    def __init__(self, problem: ControlProblem, basis: SpectralBasis) -> None:
        self.operators = BoxOperators(problem, basis, constants(problem, basis))
        self.mass = sp.eye_array(basis.n_dofs)
        fields = self.operators.fields(0.0)
        D, second = self.operators.D[0], self.operators.second[0]
        self.K = fields.drift[0][:, None] * D + 0.5 * fields.diffusion[0, 0] * second + np.diag(fields.rate)

    def stiffness(self, t: float) -> Any:
        return self.K

    def solver(self, stiffness: Any, shift: float) -> Solve:
        factors = scipy.linalg.lu_factor(np.eye(len(stiffness)) - shift * stiffness)
        return lambda rhs, guess, rtol: scipy.linalg.lu_solve(factors, rhs)

    def norm(self, f: np.ndarray) -> float:
        return self.operators.norm(f)


def gap_to_the_linear_equation(temperature: float, cells: int, degree: int) -> tuple[float, float]:
    """Relative differences of value and policy at t = 0 in |x| <= 1.5."""
    problem = zoo.get("double-well", 1, temperature=temperature, horizon=0.1)
    basis = basis_on(Box([-2.2], [2.2]), cells, degree)
    system = Linear(problem, basis)
    f_T = constants(problem, basis).terminal_u(problem, basis.nodes)
    f = list(esdirk(system, f_T, 0.0, problem.horizon, rtol=1e-8))[-1].f1
    solution = solve_value(problem, basis, constants(problem, basis), rtol_time=1e-7)
    x = np.linspace(-1.5, 1.5, 61)
    line = basis.lines[0]
    table = interpolation(line, x)
    v = constants(problem, basis).value(0.0, x, table @ f)
    slope = temperature * (table @ (line.derivative @ f)) / (table @ f)
    value = np.abs(solution.value(0.0, x[:, None]) - v).max() / np.abs(v).max()
    return float(value), float(np.abs(solution.gradient(0.0, x[:, None])[:, 0] - slope).max() / np.abs(slope).max())


@pytest.mark.parametrize(("temperature", "cells"), [(1.0, 16), (0.1, 18)])
def test_the_value_is_that_of_the_linear_equation(temperature: float, cells: int) -> None:
    value, policy = gap_to_the_linear_equation(temperature, cells, 14)
    assert value < 1e-7
    assert policy < 1e-6


def test_the_gap_to_the_linear_equation_falls_spectrally_unless_the_quadratic_term_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    degrees = [4, 6, 8, 10]
    gaps = [gap_to_the_linear_equation(1.0, 12, degree)[0] for degree in degrees]
    assert np.polyfit(degrees, np.log10(gaps), 1)[0] < -0.4
    assert gaps[-1] < 2e-6
    right = newton._ValueEquation.slope
    halved = _missing_half_of_the_square(right)
    monkeypatch.setattr(newton._ValueEquation, "slope", halved)
    wrong = [gap_to_the_linear_equation(1.0, 12, degree)[0] for degree in degrees[-2:]]
    assert min(wrong) > 1e-2


def _missing_half_of_the_square(slope: Any) -> Any:
    def wrong(self: newton._ValueEquation, s: float, w: np.ndarray) -> np.ndarray:
        return np.asarray(slope(self, s, w) - (self.gradient(w) ** 2).sum(0) / (4 * self.problem.temperature))

    return wrong


# ---------------------------------------------------------------------------------------------------------------------
# Small temperatures


def residual_of_the_hjb_equation(solution: Solution) -> float:
    """The largest residual at random points and times, relative to the largest sum of the sizes of its terms.

    The latter at the same time, or a thousandth of that at any time, where everything has faded away.
    """
    problem, line = solution.problem, solution.space.spatial.lines[0]  # type: ignore[attr-defined]
    C, running = np.asarray(solution.coefficients), solution.gauge.background.running  # type: ignore[attr-defined]
    rng = np.random.default_rng(5)
    residuals, sizes = [], []
    for t in (0.0, 0.5, 0.9, 0.99, 0.998, 0.9999):
        x = rng.uniform(-1.5, 1.5, (300, 1))
        slope = solution.gradient(t, x)[:, 0]
        curvature = interpolation(line, x[:, 0]) @ (line.derivative @ solution.gradient(t, line.nodes[:, None])[:, 0])
        rate = solution.space.evaluate(C, t, x, "time") - running
        terms = np.stack([rate, problem.b(t, x)[:, 0] * slope, curvature / 2, slope**2 / (2 * problem.temperature)])
        residuals.append(float(np.abs(terms.sum(0)).max()))
        sizes.append(float(np.abs(terms).sum(0).max()))
    return float(np.max(residuals / np.maximum(sizes, 1e-3 * np.max(sizes))))


@pytest.mark.parametrize("temperature", [0.01, 0.001])
def test_small_temperatures_solve_the_hjb_equation(temperature: float) -> None:
    problem = zoo.get("double-well", 1, temperature=temperature)
    box = Box([-2.2], [2.2], boundary="natural")
    assert range_in_temperatures(problem, basis_on(box, 8, 10).nodes, [0.0, 1.0]) > UNDERFLOW
    solution = solve(problem, rtol=1e-4, box=box)
    assert solution.status == "ok"
    assert solution.stats["form"] == "value"
    assert solution.error_estimate is not None
    assert solution.error_estimate.met(1e-4)
    assert residual_of_the_hjb_equation(solution) < 5e-4
    # the grid is fine in the kink of v at 0
    line = solution.space.spatial.lines[0]
    assert line.widths[np.searchsorted(line.grid, 1e-9) - 1] < 0.1 * line.widths.max()
    # symmetric problem on a symmetric box
    x = np.linspace(0.01, 1.5, 40)[:, None]
    np.testing.assert_allclose(solution.value(0.9, x), solution.value(0.9, -x), rtol=1e-4)


def test_two_coupled_wells() -> None:
    problem = zoo.get("double-well-2d-coupled", temperature=0.1)
    box = Box([-2.2] * 2, [2.2] * 2)
    coarse, fine = (
        solve_value(problem, basis, constants(problem, basis), rtol_time=1e-4)
        for basis in (basis_on(box, 5, 6), basis_on(box, 5, 8))
    )
    assert policy_error(coarse, fine, problem) < 2e-2


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_what_makes_no_sense_is_refused() -> None:
    problem = zoo.get("lq", 1)
    basis = basis_on(around(problem), 4, 6)
    background = constants(problem, basis)
    with pytest.raises(ConvergenceError, match="rtol_time must be a number"):
        solve_value(problem, basis, background, rtol_time=2.0)
    stopped = replace(problem, domain=Box([-5.0], [5.0], boundary="absorbing"), exact=None, marginal=None)
    with pytest.raises(DomainError, match="absorbing"):
        solve_value(stopped, basis, background, rtol_time=1e-3)
    elsewhere = replace(
        problem, domain=Box([-1.0], [1.0]), exact=None, marginal=None, initial_law=Gaussian([0.0], [[0.01]])
    )
    with pytest.raises(DomainError, match=r"lives in .* must have its faces"):
        solve_value(elsewhere, basis, background, rtol_time=1e-3)


def test_newtons_method_that_fails_says_so_instead_of_returning_nonsense() -> None:
    problem = zoo.get("double-well", 1, temperature=0.001)
    basis = basis_on(Box([-2.2], [2.2]), 4, 8)
    with pytest.raises(ConvergenceError, match="Newton's method did not converge"):
        equal_newton(problem, basis, constants(problem, basis), 2)
