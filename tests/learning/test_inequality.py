"""Variational inequalities on matrices whose coercivity, norm and contraction are known by construction."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import lsq_linear

from fem_hjb.learning import factors as factorised
from fem_hjb.learning import inequality, solvers
from fem_hjb.learning.inequality import Diagnostics, VariationalInequality, diagnose, natural_residual, status
from fem_hjb.learning.solvers import direct, minimal_residual, projected
from fem_hjb.support.errors import ConvergenceError


def rotated(matrix, rng):
    Q = np.linalg.qr(rng.standard_normal(matrix.shape))[0]
    return Q @ matrix @ Q.T


def skew(frequencies):
    n = len(frequencies)
    K = np.zeros((2 * n, 2 * n))
    K[np.arange(0, 2 * n, 2), np.arange(1, 2 * n, 2)] = frequencies
    return K - K.T


def build(T, rng, project=None, diagonal=False):
    """E = C C' and B = C T C', so that T is the form in an orthonormal basis of the energy."""
    n = len(T)
    C = np.diag(rng.uniform(0.7, 1.4, n))
    if not diagonal:
        C += np.tril(rng.standard_normal((n, n)), -1) / n
    load = rng.standard_normal(n)
    return VariationalInequality(
        form=sp.csc_matrix(C @ T @ C.T), load=load, energy=sp.csc_matrix(C @ C.T), project=project
    )


def spiral(mu, frequencies, seed=0, **settings):
    """T = mu I + K with K skew: normal, |I - gamma T|^2 = (1 - gamma mu)^2 + gamma^2 max(frequencies)^2."""
    rng = np.random.default_rng(seed)
    return build(rotated(mu * np.eye(2 * len(frequencies)) + skew(frequencies), rng), rng, **settings)


def coercive(n=40, mu=0.3, top=2.0, turn=1.0, seed=1, **settings):
    """T = S + K with the spectrum of S from mu to top, K skew, not commuting."""
    rng = np.random.default_rng(seed)
    S = rotated(np.diag(np.linspace(mu, top, n)), rng)
    return build(S + rotated(skew(rng.uniform(0.2 * turn, turn, n // 2)), rng), rng, **settings)


def in_energy(problem):
    """T of a problem, by dense algebra."""
    L = np.linalg.cholesky(problem.energy.toarray())
    return np.linalg.solve(L, np.linalg.solve(L, problem.form.toarray()).T).T


def box(bound):
    """The projection onto [-bound, bound]^N in a diagonal metric."""
    return lambda c: np.clip(c, -bound, bound)


def ball(problem, radius):
    """The same problem on {|c|_E <= radius}, whose projection is closed in every metric."""
    return dataclasses.replace(problem, project=lambda c: c * min(1.0, radius / problem.norm(c)))


def test_figures_are_those_built_in():
    found = diagnose(spiral(0.5, [0.2, 0.7, 1.2]))
    L = np.hypot(0.5, 1.2)
    assert found.coercivity == pytest.approx(0.5, rel=1e-10)
    assert found.norm == pytest.approx(L, rel=1e-10)
    assert found.stability == pytest.approx(np.hypot(0.5, 0.2), rel=1e-10)
    assert found.gamma == pytest.approx(0.5 / L**2, rel=1e-6)
    assert found.contraction == pytest.approx(1.2 / L, rel=1e-10)


def test_without_a_skew_part_the_best_step_lies_between_the_ends_of_the_spectrum():
    rng = np.random.default_rng(3)
    found = diagnose(build(rotated(np.diag(np.linspace(0.25, 1.0, 12)), rng), rng))
    assert found.gamma == pytest.approx(2 / 1.25, rel=1e-6)  # twice and a half the safe mu / L^2
    assert found.contraction == pytest.approx(0.6, rel=1e-10)


def test_the_best_step_is_the_minimum_of_the_contraction():
    problem = coercive()
    found, T = diagnose(problem), in_energy(problem)
    gammas = np.linspace(0.0, 2 * found.gamma, 401)
    norms = [np.linalg.norm(np.eye(40) - gamma * T, 2) for gamma in gammas]
    assert found.contraction == pytest.approx(min(norms), rel=2e-4)
    assert found.contraction == pytest.approx(np.linalg.norm(np.eye(40) - found.gamma * T, 2), rel=1e-10)
    safe = found.coercivity / found.norm**2
    assert 1 - found.contraction > 1.2 * (1 - np.linalg.norm(np.eye(40) - safe * T, 2))


@pytest.mark.parametrize("mu", [0.3, -0.4])
@pytest.mark.parametrize("incomplete", [False, True])
def test_figures_from_a_subspace_are_close_to_those_of_dense_algebra(mu, incomplete, monkeypatch):
    dense = diagnose(coercive(160, mu))
    monkeypatch.setattr(inequality, "_DENSE", 0)
    if incomplete:
        monkeypatch.setattr(inequality, "_DIRECT", 0)
        monkeypatch.setattr(inequality, "_DIRECT_IF_REUSED", 0)
    problem = coercive(160, mu)
    found = diagnose(problem)
    assert problem.form_factors.kind == ("incomplete" if incomplete else "diagonal")
    assert found.coercivity == pytest.approx(dense.coercivity, rel=2e-2)
    assert found.norm == pytest.approx(dense.norm, rel=1e-2)
    assert found.stability == pytest.approx(dense.stability, rel=1e-2)
    assert 1 - found.contraction == pytest.approx(1 - dense.contraction, rel=2e-2)
    assert found.gamma == pytest.approx(dense.gamma, rel=5e-2)
    assert found.condition == pytest.approx(dense.condition, rel=1e-2)


def test_a_nearly_unstable_form_is_seen_from_a_subspace(monkeypatch):
    monkeypatch.setattr(inequality, "_DENSE", 0)
    rng = np.random.default_rng(5)
    T = rotated(skew(np.r_[1e-5, np.linspace(0.5, 2.0, 99)]), rng)
    found = diagnose(build(T, rng))
    assert found.stability == pytest.approx(1e-5, rel=1e-2)
    assert "unstable" in status(found)


def test_the_condition_number_is_that_of_the_form():
    problem = coercive()
    assert diagnose(problem).condition == pytest.approx(np.linalg.cond(problem.form.toarray(), 1), rel=0.5)


@pytest.mark.parametrize("share", [0.2, 1.0, 1.7])
def test_the_plain_iteration_contracts_at_the_predicted_rate(share):
    mu, frequency = 0.5, 1.1
    problem = spiral(mu, [frequency] * 10)
    gamma = share * mu / (mu**2 + frequency**2)
    rate = np.hypot(1 - gamma * mu, gamma * frequency)
    result = projected(problem, gamma=gamma, accelerate=False, maxiter=5000)
    slope = np.polyfit(np.arange(result.iterations), np.log(result.history), 1)[0]
    assert slope == pytest.approx(np.log(rate), rel=1e-6)
    assert result.predicted == pytest.approx(rate, rel=1e-10)
    assert result.contraction == pytest.approx(rate, rel=1e-4)
    assert result.converged
    assert result.message == "ok"


def test_it_diverges_when_the_step_is_too_long():
    mu, frequency = 0.5, 1.1
    gamma = 2.2 * mu / (mu**2 + frequency**2)
    result = projected(spiral(mu, [frequency] * 10), gamma=gamma, accelerate=False, maxiter=5000)
    assert not result.converged
    assert result.contraction == pytest.approx(result.predicted, rel=1e-6)
    assert result.predicted > 1.01
    assert result.message.startswith("diverges")
    assert 1e6 < result.history[-1] / result.history[0] < 1e7  # and stops there
    assert "leave gamma to be chosen" in result.message


def test_on_a_form_that_is_not_normal_the_contraction_bounds_every_step():
    result = projected(coercive(), accelerate=False)
    assert (result.history[1:] <= result.predicted * result.history[:-1] * (1 + 1e-10)).all()
    assert result.predicted == pytest.approx(diagnose(coercive()).contraction)


@pytest.mark.parametrize("gamma", [None, 0.1, 1.3])
@pytest.mark.parametrize("accelerate", [False, True])
def test_projected_agrees_with_direct_on_a_linear_space(accelerate, gamma):
    problem = coercive(top=0.6, turn=0.3)
    exact = direct(problem)
    result = projected(problem, accelerate=accelerate, gamma=gamma)
    np.testing.assert_allclose(exact.coefficients, np.linalg.solve(problem.form.toarray(), problem.load), rtol=1e-10)
    np.testing.assert_allclose(result.coefficients, exact.coefficients, atol=1e-8)
    assert exact.residual < 1e-13
    assert result.residual <= result.history[-1] <= 1e-10  # the history bounds the residual
    assert result.residual == pytest.approx(natural_residual(problem, result.coefficients))


def complementarity(problem, c, bound):
    """The largest violation of: B c = l where c is free, >= l at the lower and <= l at the upper bound."""
    r = problem.form @ c - problem.load
    assert (np.abs(c) <= bound).all()
    at_lower, at_upper = c == -bound, c == bound
    assert at_lower.any()
    assert at_upper.any()
    assert not (at_lower | at_upper).all()
    return max(np.abs(r[~(at_lower | at_upper)]).max(), (-r[at_lower]).max(), r[at_upper].max())


@pytest.mark.parametrize("accelerate", [False, True])
def test_a_fixed_point_on_a_box_satisfies_complementarity(accelerate):
    problem = coercive(project=box(0.5), diagonal=True)
    result = projected(problem, accelerate=accelerate, tol=1e-12)
    assert result.converged
    assert complementarity(problem, result.coefficients, 0.5) < 1e-10
    assert result.residual <= 1e-12
    clipped = np.clip(direct(dataclasses.replace(problem, project=None)).coefficients, -0.5, 0.5)
    assert complementarity(problem, clipped, 0.5) > 1e-2
    assert natural_residual(problem, clipped) > 1e-2


def test_a_fixed_point_on_a_ball_in_a_full_metric_is_normal_to_it():
    free = coercive()
    radius = 0.5 * free.norm(direct(free).coefficients)
    problem = ball(free, radius)
    c = projected(problem, tol=1e-12).coefficients
    push, normal = problem.load - problem.form @ c, problem.energy @ c
    multiplier = (push @ normal) / (normal @ normal)
    assert problem.norm(c) == pytest.approx(radius, rel=1e-12)
    assert multiplier > 0.1
    np.testing.assert_allclose(push, multiplier * normal, atol=1e-10)


def test_direct_with_a_set_takes_the_solution_it_is_given_and_judges_it():
    problem = coercive(project=box(0.5), diagonal=True)
    solution = projected(problem, tol=1e-12).coefficients

    def found(coefficients):
        return lambda B, l: SimpleNamespace(coefficients=coefficients, iterations=3, residual=1e-13)

    good = direct(problem, solve_constrained=found(solution))
    assert good.converged
    assert (good.iterations, good.kkt) == (3, 1e-13)
    assert good.residual <= 1e-12
    poor = direct(problem, solve_constrained=found(np.clip(solution + 1e-3, -0.5, 0.5)))
    assert not poor.converged
    assert 1e-5 < poor.residual < 1e-2
    assert "natural residual" in poor.message


@pytest.mark.parametrize("on_a_set", [False, True])
def test_the_natural_residual_bounds_the_error_from_both_sides(on_a_set):
    problem = coercive(project=box(0.5) if on_a_set else None, diagonal=True)
    figures, solution = diagnose(problem), projected(problem, tol=1e-13).coefficients
    assert natural_residual(problem, solution) < 1e-13
    rng, scale = np.random.default_rng(8), problem.norm(problem.target)
    for size in (1e-6, 1e-3, 1.0):
        candidate = solution + size * rng.standard_normal(problem.size)
        error, residual = problem.norm(candidate - solution), scale * natural_residual(problem, candidate)
        assert error <= (1 + figures.norm) / figures.coercivity * residual
        assert residual <= (2 + figures.norm) * error


def test_the_natural_residual_without_a_set_is_the_residual_in_the_dual_norm():
    problem, c = coercive(), np.random.default_rng(6).standard_normal(40)
    r, E = problem.form @ c - problem.load, problem.energy.toarray()
    expected = np.sqrt((r @ np.linalg.solve(E, r)) / (problem.load @ np.linalg.solve(E, problem.load)))
    assert natural_residual(problem, c) == pytest.approx(expected, rel=1e-12)


def test_acceleration_saves_steps():
    problem = coercive(mu=0.02, top=2.0)
    plain, fast = (projected(problem, accelerate=accelerate) for accelerate in (False, True))
    assert plain.converged
    assert fast.converged
    assert fast.iterations < 0.3 * plain.iterations


def test_extrapolations_that_are_no_good_are_dropped(monkeypatch):
    monkeypatch.setattr(solvers._Anderson, "next", misled)
    problem = coercive(project=box(0.5), diagonal=True)
    plain, result = projected(problem, accelerate=False), projected(problem)
    assert result.converged
    assert complementarity(problem, result.coefficients, 0.5) < 1e-8
    assert result.iterations <= 2 * plain.iterations + 2


def misled(self, c, image):
    self.extrapolated = not self.extrapolated
    return image + 10.0 if self.extrapolated else image


def test_extrapolation_minimises_the_step_in_the_energy_and_forgets_when_cleared():
    problem, rng = coercive(), np.random.default_rng(2)
    c, image, next_c, next_image = rng.standard_normal((4, problem.size))
    mixing = solvers._Anderson(problem, 3)
    np.testing.assert_array_equal(mixing.next(c, image), image)
    assert not mixing.extrapolated
    step, change = next_image - next_c, (next_image - next_c) - (image - c)
    theta = (change @ problem.energy @ step) / (change @ problem.energy @ change)
    np.testing.assert_allclose(mixing.next(next_c, next_image), next_image - theta * (next_image - image), rtol=1e-10)
    assert mixing.extrapolated
    mixing.clear()
    assert not mixing.extrapolated
    np.testing.assert_array_equal(mixing.next(next_c, next_image), next_image)


def test_a_form_that_is_not_coercive_is_refused_by_the_projected_iteration_only():
    problem = coercive(mu=-0.4)
    with pytest.raises(ConvergenceError, match=r"not coercive: .* is -0\.4, .*'direct'.*ridge"):
        projected(problem)
    exact = direct(problem).coefficients
    np.testing.assert_allclose(minimal_residual(problem, tol=1e-13).coefficients, exact, atol=1e-9)
    figures = diagnose(problem)
    assert (figures.gamma, figures.contraction) == (0.0, 1.0)
    assert projected(problem, gamma=0.1, maxiter=50).predicted > 1


def test_too_few_steps_are_said_to_be():
    result = projected(coercive(), maxiter=4)
    assert (result.iterations, result.converged) == (4, False)
    assert result.message.startswith("not converged after 4 steps")
    assert "raise maxiter" in result.message
    assert np.isnan(projected(coercive(), maxiter=2).contraction)
    result = minimal_residual(coercive(), maxiter=4)
    assert (result.iterations, result.converged) == (4, False)
    assert "4 steps" in result.message


def test_a_start_at_the_solution_takes_one_step():
    problem = coercive()
    solution = direct(problem).coefficients
    assert projected(problem, start=solution).iterations == 1
    assert projected(problem, start=1.1 * solution).iterations > 1


def test_the_minimal_residual_on_a_linear_space_is_the_solution():
    problem = coercive(mu=0.1)
    result = minimal_residual(problem)
    np.testing.assert_allclose(result.coefficients, direct(problem).coefficients, atol=1e-8)
    assert result.residual <= 1.1e-10
    assert (np.diff(result.history) <= 0).all()


def test_the_minimal_residual_of_a_singular_form_is_the_one_of_least_energy():
    rng = np.random.default_rng(4)
    problem = build(rotated(np.diag(np.r_[np.zeros(5), np.linspace(0.5, 2.0, 20)]), rng), rng)
    L = np.linalg.cholesky(problem.energy.toarray())
    least = np.linalg.solve(L.T, np.linalg.pinv(in_energy(problem), rcond=1e-8) @ np.linalg.solve(L, problem.load))
    result = minimal_residual(problem, tol=1e-12)
    assert result.converged
    np.testing.assert_allclose(result.coefficients, least, atol=1e-8)
    assert result.residual > 0.1


def test_the_minimal_residual_on_a_box_is_that_of_bounded_least_squares():
    problem = coercive(mu=-0.2, project=box(0.5), diagonal=True)
    result = minimal_residual(problem, tol=1e-11)
    root = 1 / np.sqrt(problem.energy.diagonal())
    expected = lsq_linear(root[:, None] * problem.form.toarray(), root * problem.load, (-0.5, 0.5), tol=1e-14)
    assert result.converged
    assert (np.abs(result.coefficients) <= 0.5).all()
    np.testing.assert_allclose(result.coefficients, expected.x, atol=1e-7)
    assert 1.5 < result.gamma * diagnose(problem).norm ** 2 < 2.0  # what converges without acceleration too


def test_with_a_set_the_minimal_residual_is_another_problem_than_the_inequality():
    problem = coercive(project=box(0.5), diagonal=True)
    least, solution = minimal_residual(problem), projected(problem)

    def residual(c):
        return problem.norm(problem.riesz(problem.form @ c - problem.load))

    assert residual(least.coefficients) < 0.999 * residual(solution.coefficients)
    assert least.residual > 1e-2
    assert solution.residual <= 1e-10


def test_a_singular_system_is_refused_rather_than_solved_by_least_squares():
    T = np.diag([0.0, 1.0, 2.0, 3.0])
    problem = VariationalInequality(form=sp.csc_matrix(T), load=np.ones(4), energy=sp.identity(4))
    with pytest.raises(ConvergenceError, match=r"system of 4 unknowns is singular .*; take more samples"):
        direct(problem)
    rng = np.random.default_rng(4)
    with pytest.raises(ConvergenceError, match=r"25 unknowns (is singular|was only solved to a relative residual)"):
        direct(build(rotated(np.diag(np.r_[np.zeros(5), np.linspace(0.5, 2.0, 20)]), rng), rng))


def test_large_systems_are_solved_by_iterations_on_incomplete_factors(monkeypatch):
    exact = direct(coercive(100))
    assert exact.iterations == 0
    monkeypatch.setattr(inequality, "_DIRECT", 0)
    monkeypatch.setattr(inequality, "_DIRECT_IF_REUSED", 0)
    problem = coercive(100)
    result = direct(problem)
    assert problem.form_factors.kind == problem.energy_factors.kind == "incomplete"
    assert result.iterations > 1
    np.testing.assert_allclose(result.coefficients, exact.coefficients, atol=1e-9)


@pytest.mark.parametrize("transposed", [False, True])
def test_factors_that_do_not_solve_make_way_for_better_ones(transposed, monkeypatch):
    monkeypatch.setattr(factorised, "_DROP", 0.9)
    monkeypatch.setattr(factorised, "_FILL", 1.0)
    monkeypatch.setattr(factorised, "_KRYLOV", 2)
    matrix = coercive(100).form
    factors, rhs = factorised.Factors(matrix, 0.01, 0), np.ones(100)
    dense = matrix.toarray().T if transposed else matrix.toarray()
    np.testing.assert_allclose(dense @ factors.solve(rhs, transposed=transposed), rhs, atol=1e-10)
    assert factors.kind == "diagonal"
    # Pivots on the diagonal, where they are tiny, lose all accuracy.
    hard = np.random.default_rng(0).standard_normal((20, 20))
    np.fill_diagonal(hard, 1e-14)
    factors, rhs = factorised.Factors(sp.csc_matrix(hard), 0.0, 400), np.arange(20.0)
    assert factors.kind == "diagonal"
    solution = factors.solve(rhs, transposed=transposed)
    np.testing.assert_allclose((hard.T if transposed else hard) @ solution, rhs, atol=1e-10)
    assert factors.kind == "pivoted"


FINE = {"coercivity": -0.9, "norm": 2.0, "stability": 2e-3, "contraction": 1.0, "gamma": 0.0, "condition": 1e11}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "ok"),
        ({"stability": 9e-4}, "unstable (smallest singular value 0.0009 relative to the energy): "),
        ({"coercivity": -1.5}, "coercivity lost (smallest eigenvalue -1.5 relative to the energy): "),
        ({"condition": 2e12}, "ill-conditioned (condition number about 2e+12): "),
        ({"stability": float("nan")}, "unstable (smallest singular value nan relative to the energy): "),
    ],
)
def test_status(change, words):
    text = status(Diagnostics(**FINE | change))
    assert text == (words if words == "ok" else words + factorised.ADVICE)


def test_doubts_add_up():
    text = status(Diagnostics(**FINE | {"stability": 1e-5, "coercivity": -3.0}))
    assert text.startswith("unstable (smallest singular value 1e-05 relative to the energy), coercivity lost")


def test_results_are_frozen_and_the_input_is_not_touched():
    problem = coercive()
    result = projected(problem)
    with pytest.raises(ValueError, match="read-only"):
        result.coefficients[0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.gamma = 1.0
    load = np.ones(2)
    problem = VariationalInequality(form=sp.identity(2), load=load, energy=sp.identity(2))
    load[0] = 5.0
    assert problem.load[0] == 1.0


INDEFINITE = sp.csc_matrix([[1.0, 2.0], [2.0, 1.0]])


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (
            r"form must have shape \(2, 2\) as the load has, got \(3, 3\)",
            lambda p: dataclasses.replace(p, form=sp.eye(3)),
        ),
        (r"energy must have shape \(2, 2\)", lambda p: dataclasses.replace(p, energy=sp.eye(3))),
        (r"load must have shape \(2,\), got shape \(1, 2\)", lambda p: dataclasses.replace(p, load=np.ones((1, 2)))),
        (r"form must be finite", lambda p: dataclasses.replace(p, form=sp.csc_matrix(np.full((2, 2), np.nan)))),
        (r"load must be finite", lambda p: dataclasses.replace(p, load=[1.0, np.inf])),
        (r"underflows to 0 at every terminal sample", lambda p: dataclasses.replace(p, load=[0.0, 0.0])),
        (r"energy of 2 unknowns is not positive", lambda p: direct(dataclasses.replace(p, energy=INDEFINITE))),
        (r"energy of 2 unknowns is not positive", lambda p: diagnose(dataclasses.replace(p, energy=INDEFINITE))),
        (
            r"energy of 2 unknowns is not positive",
            lambda p: dataclasses.replace(p, energy=INDEFINITE).norm(np.array([1.0, -1.0])),
        ),
        (
            r"energy must be symmetric, .* differ by 0.5",
            lambda p: dataclasses.replace(p, energy=[[1.0, 0.5], [0.0, 1.0]]),
        ),
        (r"only project given", lambda p: direct(dataclasses.replace(p, project=box(1.0)))),
        (r"only solve_constrained given", lambda p: direct(p, solve_constrained=lambda B, l: l)),
        (r"tol must be a positive", lambda p: projected(p, tol=0.0)),
        (r"maxiter must be a positive", lambda p: projected(p, maxiter=0)),
        (r"gamma must be a positive", lambda p: projected(p, gamma=-1.0)),
        (r"start must have shape \(2,\)", lambda p: projected(p, start=np.ones(3))),
        (r"tol must be a positive", lambda p: minimal_residual(p, tol=-1.0)),
        (r"maxiter must be a positive", lambda p: minimal_residual(p, maxiter=1.5)),
        (r"c must have shape \(2,\)", lambda p: natural_residual(p, np.ones(3))),
    ],
)
def test_bad_input(message, call):
    problem = VariationalInequality(form=sp.identity(2), load=np.ones(2), energy=sp.identity(2))
    with pytest.raises(ConvergenceError, match=message):
        call(problem)
