"""Densities against closed forms: mass, accuracy, steering, point starts, faces that absorb, sampling."""

from dataclasses import replace

import numpy as np
import pytest

from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Law, PointMass, Uniform
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.reference import box_adjoint, fokker_planck_panels, fokker_planck_start
from fem_hjb.reference.box_adjoint import Adjoint
from fem_hjb.reference.box_coefficients import Coefficients, Table, by_field
from fem_hjb.reference.box_panel import Grid, Operators
from fem_hjb.reference.fokker_planck import solve
from fem_hjb.reference.mesh_operators import MeshOperators
from fem_hjb.reference.solve import solve as reference_solve
from fem_hjb.solutions.density import DensityLaw
from fem_hjb.spaces.axes import apply_sum
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import spatial_basis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError

TIMES = (0.0, 0.13, 0.5, 0.81, 1.0)


def spectral(lower, upper, cells, degree, dim=1):
    return SpectralBasis([SpectralLine(np.linspace(lower, upper, cells + 1), degree)] * dim)


def error(solution, exact, times=TIMES):
    """The largest relative L2 error over times; exact: (t, x) -> p."""
    errors = []
    for t in times:
        basis = solution.law(t).basis
        rule = basis.quadrature(2 * basis.degree + 2)
        x, volume = rule.x.reshape(-1, basis.dim), (rule.weights * rule.det).ravel()
        p = exact(t, x)
        errors.append(np.sqrt((volume @ (solution.density(t, x) - p) ** 2) / (volume @ p**2)))
    return max(errors)


def known(problem):
    return lambda t, x: np.exp(problem.marginal(t).logpdf(x))


def slope(sizes, errors):
    return -np.polyfit(np.log(sizes), np.log(errors), 1)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Boxes


@pytest.mark.parametrize(
    ("name", "params"),
    [("lq", {"mean": 0.7, "cov": 0.2}), ("mixture-diffusion", {}), ("brownian-mixture", {})],
)
def test_densities_in_one_dimension_agree_with_the_closed_form(name, params):
    problem = zoo.get(name, dim=1, **params)
    solution = solve(problem)
    assert solution.status == "ok"
    assert error(solution, known(problem)) < 5e-8
    assert solution.stats["mass"]["drift"] < 1e-12
    assert abs(solution.stats["mass"]["initial"] - 1.0) < 1e-12
    assert solution.stats["face"] <= 1e-11
    assert solution.stats["tail"] < 1e-7


@pytest.mark.parametrize(
    ("name", "params", "half", "cells", "bar"),
    [
        ("lq", {"mean": 0.3, "cov": 0.4}, 4.8, 8, 1e-6),
        ("brownian-mixture", {"horizon": 0.5}, 5.0, 8, 1e-6),
        ("mixture-diffusion", {"horizon": 0.25}, 4.8, 9, 1e-6),
    ],
)
def test_densities_in_two_dimensions_agree_with_the_closed_form(name, params, half, cells, bar):
    problem = zoo.get(name, dim=2, **params)
    T = problem.horizon
    solution = solve(problem, basis=spectral(-half, half, cells, 10, 2), rtol=1e-7)
    assert error(solution, known(problem), (0.0, 0.4 * T, T)) < bar
    assert solution.stats["mass"]["drift"] < 1e-11


def test_a_two_dimensional_box_is_found():
    problem = zoo.get("brownian-mixture", dim=2, horizon=0.25)
    solution = solve(problem, rtol=1e-6)
    assert solution.status == "ok"
    assert error(solution, known(problem), (0.0, 0.1, 0.25)) < 1e-6
    assert solution.stats["face"] <= 1e-9


def largest_error(solution, exact, times):
    """Of p relative to its maximum, within four standard deviations in one dimension."""
    errors = []
    for t in times:
        law = solution.law(float(t))
        x = law.expectation + np.sqrt(law.covariance[0]) * np.linspace(-4.0, 4.0, 301)[:, None]
        p = exact(t, x)
        errors.append(np.abs(solution.density(t, x) - p).max() / p.max())
    return max(errors)


def pushed(start=0.1, jump=0.37):
    """dX = (a_t - X) dt + dB with a = 3, then -3: its law stays Gaussian."""
    law = Gaussian([0.0], start)

    def drift(t, x):
        return np.where(np.asarray(t)[..., None] < jump, 3.0, -3.0) - x

    def marginal(t):
        before = min(t, jump)
        mean = 3 * (1 - np.exp(-before)) * np.exp(-(t - before)) - 3 * (1 - np.exp(-(t - before)))
        return Gaussian([mean], start * np.exp(-2 * t) + (1 - np.exp(-2 * t)) / 2)

    problem = replace(zoo.get("lq", dim=1), drift=drift, initial_law=law, exact=None, marginal=marginal)
    return replace(problem, diffusion=1.0)


RATES = (1e-3, 1e-4, 1e-5, 1e-6)
MOMENTS = np.linspace(0.003, 1.0, 60) ** 1.5


def errors_of(problem):
    return np.array([largest_error(solve(problem, rtol=r), known(problem), MOMENTS) for r in RATES])


@pytest.mark.parametrize("kind", ["mixture", "narrow", "pushed"])
def test_the_error_is_below_the_tolerance_and_goes_with_it(kind):
    problem = {
        "mixture": lambda: zoo.get("mixture-diffusion", dim=1),
        "narrow": lambda: zoo.get("lq", dim=1, mean=0.7, cov=1e-3),
        "pushed": pushed,
    }[kind]()
    errors = errors_of(problem)
    assert slope(1 / np.array(RATES), errors) == pytest.approx(1.0, abs=0.15)
    assert (errors < RATES).all()


def test_coefficients_held_constant_on_panels_have_no_such_rate(monkeypatch):
    monkeypatch.setattr(fokker_planck_panels, "times_needed", lambda *_, **__: (1, 0.0))
    assert slope(1 / np.array(RATES), errors_of(zoo.get("mixture-diffusion", dim=1))) < 0.5


def test_a_panel_ends_where_the_drift_jumps_and_the_drift_is_called_few_times():
    times = []
    problem = pushed()
    drift = problem.drift

    def counted(t, x):
        times.append(np.shape(t))
        return drift(t, x)

    solution = solve(replace(problem, drift=counted), rtol=1e-6)
    starts = [panel.time.bounds[0] for panel in solution.space.panels]
    assert np.abs(np.array(starts) - 0.37).min() < 1e-9
    assert len(times) < solution.stats["steps"] + 50 + 6 * (solution.stats["panels"] + solution.stats["redone"])
    assert solution.status == "ok"


@pytest.mark.parametrize("dim", [1, 2])
def test_boxes_follow_the_law(dim):
    problem = zoo.get("brownian-mixture", dim=dim) if dim == 1 else zoo.get("lq", dim=2, cov=1e-3)
    problem = replace(problem, initial_law=Gaussian([0.3] * dim, 1e-4), exact=None, marginal=None)
    solution = solve(problem, rtol=1e-4)
    widths = [float(np.ptp(panel.spatial.box.bounds, axis=0).max()) for panel in solution.space.panels]
    assert widths[-1] > 20 * widths[0]
    assert solution.stats["dofs"] < {1: 120, 2: 12_000}[dim]
    assert solution.stats["transfer"] < 1e-5
    assert solution.stats["mass"]["drift"] < 1e-12
    assert solution.status == "ok"


def test_the_policy_of_a_solution_ends_panels_where_its_own_end():
    problem = zoo.get("double-well", dim=1, kappa=1.0)
    reference = reference_solve(problem, rtol=1e-3)
    law = solve(problem, policy=reference.policy, box=reference.space.box, rtol=1e-4)
    own, found = (np.array([panel.time.bounds[0] for panel in each.space.panels]) for each in (reference, law))
    assert np.abs(own[:, None] - found).min(axis=1).max() < 1e-12
    calls = solve(problem, policy=lambda t, x: reference.policy(t, x), box=reference.space.box, rtol=1e-4)
    x = np.linspace(-1.5, 1.5, 61)[:, None]
    p = law.density(1.0, x)
    assert np.abs(p - calls.density(1.0, x)).max() < 1e-4 * p.max()


def test_a_drift_rougher_than_the_tolerance_ends_with_what_is_resolved():
    """A policy that is known to three digits, told by its error bar or not: some hundred steps, and its status says."""
    problem = zoo.get("double-well", 1, temperature=1.0, Lambda=1.0)
    loose, fine = (reference_solve(problem, rtol=rtol) for rtol in (3e-3, 1e-5))
    x = np.linspace(-1.8, 1.8, 50)[:, None]
    good = solve(problem, policy=fine.policy, box=fine.space.box, rtol=1e-5)
    assert "resolved" not in good.status
    right = good.density(0.5, x)
    for policy in (loose.policy, lambda t, x: loose.policy(t, x)):
        found = solve(problem, policy=policy, box=loose.space.box, rtol=1e-5)
        told = float(found.status.split("resolved to ")[1].split()[0])
        assert 1e-5 < told < 1e-2
        assert np.abs(found.density(0.5, x) - right).max() < told * right.max()
        assert found.stats["steps"] < 500


def test_convergence_in_the_degree_is_spectral():
    problem = zoo.get("lq", dim=1, mean=0.7, cov=0.2)
    errors = [error(solve(problem, basis=spectral(-5.0, 6.0, 6, p), rtol=1e-10), known(problem)) for p in (4, 8, 12)]
    assert errors[1] < 3e-2 * errors[0]
    assert errors[2] < 3e-2 * errors[1]
    assert errors[2] < 1e-5


def test_without_the_transpose_neither_density_nor_mass_is_right(monkeypatch):
    problem = zoo.get("lq", dim=1, mean=0.7, cov=0.2)
    monkeypatch.setattr(box_adjoint, "_adjoint", lambda matrix, weights: matrix.copy())
    unkept = fokker_planck_panels.LawsonPanel
    monkeypatch.setattr(fokker_planck_panels, "LawsonPanel", lambda S, N, size, weights: unkept(S, N, size))
    solution = solve(problem, basis=spectral(-5.0, 6.0, 10, 10))
    assert error(solution, known(problem)) > 0.1
    assert solution.stats["mass"]["drift"] > 0.1
    assert "the mass changes" in solution.status


def split_in_two(problem, basis, held):
    """Operators of the backward equation on one panel, their adjoint, and the weights of the nodes."""
    grid = Grid(basis.lines, tuple(line.weights for line in basis.lines), 0.0)
    coefficients = Coefficients(problem, fokker_planck_start.no_gauge(problem), linear=True)
    values = np.stack([coefficients.at(problem.horizon - s, basis.nodes) for s in (0.2, 0.3)])
    table = Table(0.2, 0.3, by_field(values.reshape(2, -1, *grid.shape)))
    none = np.zeros((2, basis.dim), dtype=np.bool_)
    operators = Operators(grid, table, coefficients.constant, none, 1.0, True, np.ones(basis.dim))
    return operators, Adjoint(operators, held), np.asarray(basis.weights).reshape(grid.shape)


def curved(dim):
    """A drift and a full diffusion that depend on time and place, and are not separable."""

    def drift(t, x):
        return np.sin(x[..., ::-1] * (1.0 + np.asarray(t)[..., None])) - x

    def diffusion(t, x):
        result = np.empty((*x.shape, dim))
        result[...] = 0.2 * np.sin(x.sum(axis=-1))[..., None, None]
        result[..., range(dim), range(dim)] = 1.0 + 0.3 * np.cos(x[..., ::-1]) * (1.0 + np.asarray(t)[..., None])
        return result

    return replace(zoo.get("lq", dim=dim), drift=drift, diffusion=diffusion, exact=None, marginal=None)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("held", [False, True])
def test_the_adjoint_is_one(dim, held):
    faces = np.zeros((2, dim), dtype=np.bool_)
    faces[1, 0] = held
    basis = spectral(-2.0, 2.5, 2, 5, dim)
    for problem in (zoo.get("lq", dim=dim), curved(dim)):
        operators, adjoint, w = split_in_two(problem, basis, faces)
        u, q = np.random.default_rng(0).standard_normal((2, *basis.shape))
        if held:
            u[-1] = q[-1] = 0.0
        for s in (0.2, 0.26):
            L = apply_sum(operators.separable, u) + operators.remainder(s, u)
            back = apply_sum(adjoint.separable, q) + adjoint.remainder(s, q)
            left, right = (w * L * q).sum(), (w * u * back).sum()
            assert abs(left - right) < 1e-11 * np.sqrt((w * L**2).sum() * (w * q**2).sum())


def reflected(initial_law, boundary="reflecting"):
    return ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=LinearDrift([[0.0]], [0.0]),
        diffusion=0.5,
        terminal_reward=lambda x: np.zeros(x.shape[:-1]),
        initial_law=initial_law,
        domain=Box([0.0], [2.0], boundary=boundary),
    )


class Series(Law):
    """1/2 + sum_n a_n e_n(x) on [0, 2] with e_n = cos(n pi x / 2), or without the constant and with sines."""

    dim = 1

    def __init__(self, constant, coefficients, wave, t=0.0):
        self.n = np.arange(1, len(coefficients) + 1)
        self.constant, self.wave = constant, wave
        self.a = np.asarray(coefficients) * np.exp(-0.25 * (self.n * np.pi / 2) ** 2 * t)

    def density(self, x):
        return self.constant + self.wave(self.n * np.pi * x / 2) @ self.a

    def logpdf(self, x):
        with np.errstate(divide="ignore"):
            return np.log(np.maximum(self.density(x), 0.0))

    def sample(self, n, rng):
        return rng.uniform(0.01, 1.99, (n, 1))

    expectation = covariance = score = quadrature = None


def test_reflection_against_a_cosine_series():
    coefficients = (0.25, -0.1, 0.05)
    problem = reflected(Series(0.5, coefficients, np.cos))
    solution = solve(problem)
    assert error(solution, lambda t, x: Series(0.5, coefficients, np.cos, t).density(x)) < 1e-7
    assert solution.stats["mass"]["drift"] < 1e-12
    uniform = solve(reflected(Uniform(Box([0.0], [2.0]))))
    x = np.linspace(0.0, 2.0, 41)[:, None]
    assert max(np.abs(uniform.density(t, x) - 0.5).max() for t in TIMES) < 1e-11


def test_absorption_against_a_sine_series():
    coefficients = (np.pi / 4, 0.1)
    problem = reflected(Series(0.0, coefficients, np.sin), "absorbing")
    solution = solve(problem)
    assert error(solution, lambda t, x: Series(0.0, coefficients, np.sin, t).density(x)) < 1e-7
    late = Series(0.0, coefficients, np.sin, 1.0)
    mass = solution.stats["mass"]
    assert mass["final"] == pytest.approx(late.a[0] * 4 / np.pi, abs=1e-8)
    assert mass["lost"] == pytest.approx(1.0 - mass["final"], abs=1e-8)
    assert solution.law(1.0).expectation == pytest.approx(1.0 - late.a[1] * 2 / np.pi / mass["final"], abs=1e-7)


def stirred(boundary):
    """A square in which no part of the drift along one axis is a function of that axis alone."""
    return ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: np.stack([np.sin(3 * x[..., 1]), np.cos(2 * x[..., 0])], -1),
        diffusion=0.5,
        terminal_reward=lambda x: 0 * x[..., 0],
        initial_law=Gaussian([0.5, 0.5], 0.01 * np.eye(2)),
        domain=Box([0.0, 0.0], [1.0, 1.0], boundary=boundary),
    )


@pytest.mark.parametrize("boundary", ["absorbing", "reflecting"])
def test_walls_cost_implicit_steps_nothing_where_the_drift_is_not_separable(boundary, monkeypatch):
    """Errors stay well below the tolerance; Lawson's steps would be ten times as many, or never arrive."""
    problem = stirred(boundary)
    x = np.random.default_rng(0).uniform(0.0, 1.0, (300, 2))
    rtols, fine = np.array([1e-2, 1e-3]), solve(problem, rtol=1e-5)
    found = [solve(problem, rtol=rtol) for rtol in rtols]
    for t in (0.3, 0.7, 1.0):
        right = fine.density(t, x)
        errors = np.array([np.abs(each.density(t, x) - right).max() for each in found]) / np.abs(right).max()
        assert (errors < 0.1 * rtols).all()
    if boundary == "reflecting":
        assert max(each.stats["mass"]["drift"] for each in (*found, fine)) < 1e-11
        return
    monkeypatch.setattr(fokker_planck_panels, "ImplicitPanel", lawson_at_walls)
    explicit = solve(problem, rtol=1e-3)
    assert explicit.stats["steps"] > 10 * found[1].stats["steps"]


@pytest.mark.parametrize("boundary", ["absorbing", "reflecting"])
def test_walls_in_one_dimension_with_a_drift_that_moves_agree_with_elements_on_a_mesh(boundary):
    """Two discretisations that have nothing in common but the problem."""
    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: np.asarray(2 * np.sin(6 * np.asarray(t)))[..., None] * np.cos(2 * x),
        diffusion=0.5,
        terminal_reward=lambda x: 0 * x[..., 0],
        initial_law=Gaussian([0.5], 0.005),
        domain=Box([0.0], [1.0], boundary=boundary),
    )
    on_box = solve(problem, rtol=1e-6)
    on_mesh = solve(problem, mesh=box_mesh(problem.domain, 160, "line"), element="P3", rtol=1e-7)
    x = np.linspace(0.0, 1.0, 101)[:, None]
    for t in (0.2, 0.6, 1.0):
        right = on_mesh.density(t, x)
        np.testing.assert_allclose(on_box.density(t, x), right, atol=3e-6 * right.max())


def lawson_at_walls(system, s0, s1, size):
    adjoint, T = system.applied, system.horizon

    def remainder(t, q):
        left = adjoint.remainder(T - t, q)
        left.ravel()[system.fixed] = 0.0
        return left

    return fokker_planck_panels.LawsonPanel(adjoint.separable, remainder, size)


def test_between_reflecting_walls_a_gradient_drift_keeps_its_stationary_law():
    """exp(-U) with U = 2 sin(2 x y) + cos(x + 3 y), sampled as an initial law by its own density."""
    U = lambda x: 2 * np.sin(2 * x[..., 0] * x[..., 1]) + np.cos(x[..., 0] + 3 * x[..., 1])  # noqa: E731

    def drift(t, x):
        u, v = x[..., 0], x[..., 1]
        both, wave = 4 * np.cos(2 * u * v), np.sin(u + 3 * v)
        return -0.5 * np.stack([both * v - wave, both * u - 3 * wave], -1)

    problem = replace(stirred("reflecting"), drift=drift, diffusion=1.0, horizon=6.0)
    late = solve(problem, rtol=1e-5)
    x = np.random.default_rng(1).uniform(0.0, 1.0, (200, 2))
    nodes, weights = np.polynomial.legendre.leggauss(24)
    grid = np.stack(np.meshgrid((nodes + 1) / 2, (nodes + 1) / 2, indexing="ij"), -1)
    right = np.exp(-U(x)) / (np.outer(weights, weights) / 4 * np.exp(-U(grid))).sum()
    np.testing.assert_allclose(late.density(6.0, x), right, rtol=2e-5)


def test_absorption_in_two_dimensions_is_a_product():
    one = reflected(Series(0.0, (np.pi / 4, 0.1), np.sin), "absorbing")
    basis = spectral(0.0, 2.0, 2, 10)
    line = solve(one, basis=basis).law(1.0).values
    problem = replace(
        one,
        dim=2,
        drift=LinearDrift(np.zeros((2, 2)), np.zeros(2)),
        initial_law=Square(one.initial_law),
        domain=Box([0.0, 0.0], [2.0, 2.0], boundary="absorbing"),
    )
    plane = solve(problem, basis=SpectralBasis([basis.lines[0]] * 2)).law(1.0).values
    assert np.abs(plane.reshape(21, 21) - np.outer(line, line)).max() < 1e-7


class Square(Law):
    """Two independent copies of a law."""

    dim = 2

    def __init__(self, law):
        self.law = law

    def logpdf(self, x):
        return self.law.logpdf(x[..., :1]) + self.law.logpdf(x[..., 1:])

    def sample(self, n, rng):
        return np.hstack([self.law.sample(n, rng), self.law.sample(n, rng)])

    expectation = covariance = score = quadrature = None


# ---------------------------------------------------------------------------------------------------------------------
# Steering


def controlled_moments(problem, times):
    """Mean and variance of the optimally controlled process of a one-dimensional LQ problem."""
    from scipy.integrate import solve_ivp

    def rhs(t, state):
        m, c = state
        slope = problem.exact.policy(t, np.array([[0.0], [1.0]]))[:, 0]
        k = slope[1] - slope[0]
        A = problem.drift.coefficients[0][0, 0]
        return [A * m + slope[0] + k * m, 2 * (A + k) * c + problem.constant_diffusion[0, 0]]

    law = problem.initial_law
    start = [law.expectation[0], law.covariance[0, 0]]
    return solve_ivp(rhs, (0.0, 1.0), start, rtol=1e-11, atol=1e-13, t_eval=times).y


def controlled_error(policy, problem):
    solution = solve(problem, policy=policy, rtol=1e-8)
    times = np.array([0.0, 0.4, 1.0])
    means, variances = controlled_moments(problem, times)
    laws = {t: Gaussian([m], c) for t, m, c in zip(times, means, variances, strict=True)}
    return error(solution, lambda t, x: np.exp(laws[t].logpdf(x)), times), solution


def test_the_optimally_controlled_law_and_the_wrong_sign_of_a_policy():
    problem = zoo.get("lq", dim=1, mean=0.7, cov=0.3, s=0.5, temperature=0.7)
    right, solution = controlled_error(problem.exact.policy, problem)
    assert right < 1e-7
    assert solution.stats["mass"]["drift"] < 1e-12
    wrong, _ = controlled_error(lambda t, x: -problem.exact.policy(t, x), problem)
    assert wrong > 0.1


def test_the_controlled_law_is_the_law_times_f_over_its_start():
    """p*_t = p_t f_t / E f_0(X_0) if it holds at t = 0: Doob's transform."""
    problem = zoo.get("brownian-mixture", dim=1)
    exact = problem.exact

    def f(t, x):
        return np.exp(exact.value(t, x) / problem.temperature)

    basis = spectral(-8.0, 8.0, 14, 12)
    uncontrolled = solve(problem, basis=basis, rtol=1e-9)
    weight = f(0.0, np.asarray(basis.nodes))
    start = DensityLaw(basis, np.asarray(uncontrolled.law(0.0).values) * weight)
    tilted = replace(problem, initial_law=start)
    controlled = solve(tilted, policy=exact.policy, basis=basis, rtol=1e-9)
    x = np.linspace(-3.0, 3.0, 81)[:, None]
    for t in (0.3, 1.0):
        ratio = controlled.density(t, x) / (uncontrolled.density(t, x) * f(t, x))
        assert np.abs(ratio / ratio[40] - 1.0).max() < 1e-5


def test_policies_of_a_wrong_shape_are_refused():
    problem = zoo.get("lq", dim=1)
    with pytest.raises(ProblemError, match="policy"):
        solve(problem, policy=lambda t, x: np.zeros((len(x), 2)))
    with pytest.raises(ProblemError, match="policy must be a callable"):
        solve(problem, policy=3.0)


# ---------------------------------------------------------------------------------------------------------------------
# Meshes


@pytest.mark.parametrize(("element", "order"), [("P1", 2), ("P2", 3), ("P3", 4)])
def test_order_on_line_meshes(element, order):
    problem = zoo.get("lq", dim=1, mean=0.5, horizon=0.5)
    cells = (40, 80, 160)
    errors = []
    for m in cells:
        solution = solve(problem, mesh=box_mesh(Box([-5.0], [5.0]), m, "line"), element=element, rtol=1e-9)
        errors.append(error(solution, known(problem), (0.2, 0.5)))
        assert solution.stats["mass"]["drift"] < 1e-10
    assert slope(cells, errors) == pytest.approx(order, abs=0.15)


def test_order_on_triangles_where_drift_and_diffusion_are_not_separable():
    problem = zoo.get("lq", dim=2, horizon=0.1)
    cells = (24, 32, 40)
    errors = []
    for m in cells:
        solution = solve(problem, mesh=box_mesh(Box([-3.8] * 2, [3.8] * 2), m, "tri"), element="P2", rtol=1e-6)
        errors.append(error(solution, known(problem), (0.1,)))
        assert solution.stats["mass"]["drift"] < 1e-10
    assert slope(cells, errors) == pytest.approx(3, abs=0.15)


def test_iterative_solvers_conserve_mass_too(monkeypatch):
    monkeypatch.setattr(MeshOperators, "direct", property(lambda self: False))
    problem = zoo.get("lq", dim=2, horizon=0.1)
    mesh = box_mesh(Box([-4.0] * 2, [4.0] * 2), 12, "tri")
    solution = solve(problem, mesh=mesh, rtol=1e-4)
    assert "BiCGStab" in solution.stats["linear_solver"]
    assert solution.stats["mass"]["drift"] < 1e-12


def test_absorbing_faces_of_a_mesh():
    coefficients = (np.pi / 4, 0.1)
    problem = reflected(Series(0.0, coefficients, np.sin), "absorbing")
    solution = solve(problem, mesh=box_mesh(Box([0.0], [2.0]), 40, "line"), element="P3")
    assert error(solution, lambda t, x: Series(0.0, coefficients, np.sin, t).density(x)) < 1e-5
    assert solution.stats["mass"]["lost"] > 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Starts at a point


def test_a_point_start_in_a_linear_drift_is_exact_from_the_first():
    problem = zoo.get("lq", dim=1, cov=0.5)
    problem = replace(problem, initial_law=PointMass([0.8]), marginal=None)
    solution = solve(problem)
    flow = fokker_planck_start.begin_of(problem, None).early
    A, T = -1.0, (1e-4, 0.01, 0.2, 1.0)

    def exact(t, x):
        return np.exp(Gaussian([0.8 * np.exp(A * t)], (1 - np.exp(-2 * t)) / 2).logpdf(x))

    x = np.linspace(-2.0, 2.5, 46)[:, None]
    for t in T:
        assert np.abs(solution.density(t, x) - exact(t, x)).max() < 1e-6 * exact(t, x).max()
    assert flow(1e-4).covariance[0, 0] == pytest.approx((1 - np.exp(-2e-4)) / 2, rel=1e-9)
    assert isinstance(solution.law(0.0), PointMass)
    assert isinstance(solution.law(solution.start / 2), Gaussian)
    assert solution.stats["mass"]["drift"] < 1e-11


def test_a_point_start_in_a_nonlinear_drift_errs_by_the_third_power_of_its_first_time(monkeypatch):
    problem = replace(zoo.get("double-well", dim=1, kappa=1.0), initial_law=PointMass([0.5]))
    basis = SpectralBasis([SpectralLine(0.5 + np.sinh(np.linspace(-4.0, 4.0, 25)) / 11, 12)])
    usual = fokker_planck_start._POINT[1]

    def final(factor):
        monkeypatch.setitem(fokker_planck_start._POINT, 1, factor * usual)
        return np.asarray(solve(problem, basis=basis, rtol=1e-10).law(1.0).values)

    best, factors = final(1 / 8), (1, 2, 4)
    errors = [np.abs(final(factor) - best).max() / best.max() for factor in factors]
    assert errors[0] < 1e-7
    assert -slope(factors, errors) == pytest.approx(3, abs=0.15)


def test_a_grid_that_cannot_resolve_a_point_start_is_refused():
    problem = replace(zoo.get("lq", dim=1), initial_law=PointMass([0.0]), marginal=None)
    with pytest.raises(SpaceError, match="smaller cells"):
        solve(problem, mesh=box_mesh(Box([-6.0], [6.0]), 8, "line"))


# ---------------------------------------------------------------------------------------------------------------------
# Laws


@pytest.fixture(scope="module")
def well():
    return solve(zoo.get("double-well", dim=1, mean=0.4, kappa=2.0))


def test_a_double_well_agrees_with_simulated_paths(well):
    problem = well.problem
    x = sample_paths(problem, n=20_000, steps=2, rng=0, substeps=100).x[:, -1, 0]
    law = well.law(1.0)
    points, weights = law.quadrature(8)
    for power in (1, 2, 3, 4):
        moment = weights @ points[:, 0] ** power
        assert abs((x**power).mean() - moment) < 4 * (x**power).std() / np.sqrt(x.size)
    assert law.expectation[0] == pytest.approx(weights @ points[:, 0], abs=1e-9)
    assert law.covariance[0, 0] == pytest.approx(weights @ points[:, 0] ** 2 - law.expectation[0] ** 2, abs=1e-9)


def test_scores_and_log_densities(well):
    law = well.marginal(0.7)
    x = np.linspace(-1.4, 1.4, 15)[:, None]
    h = 1e-5
    differences = (law.logpdf(x + h) - law.logpdf(x - h)) / (2 * h)
    np.testing.assert_allclose(law.score(x)[:, 0], differences, atol=1e-4)
    assert law.logpdf([[50.0]])[0] == -np.inf
    assert law.score([[50.0]]).tolist() == [[0.0]]
    np.testing.assert_allclose(well.density(np.full(15, 0.7), x), np.exp(law.logpdf(x)), rtol=1e-12)


@pytest.mark.parametrize("dim", [1, 2])
def test_samples_follow_the_density(dim):
    problem = zoo.get("mixture-diffusion", dim=dim)
    exact = problem.marginal(1.0)
    kind = {1: "line", 2: "tri"}[dim]
    basis = spatial_basis(box_mesh(Box([-4.0] * dim, [4.0] * dim), {1: 60, 2: 24}[dim], kind), "P2")
    tensor = spectral(-4.0, 4.0, 6, 10, dim)
    for on in (basis, tensor):
        law = DensityLaw(on, np.exp(exact.logpdf(on.nodes)))
        n = 20_000
        x = law.sample(n, np.random.default_rng(3))
        assert x.shape == (n, dim)
        np.testing.assert_array_equal(x, law.sample(n, np.random.default_rng(3)))
        spread = np.sqrt(np.diag(law.covariance) / n)
        assert (np.abs(x.mean(axis=0) - law.expectation) < 4 * spread).all()
        points, weights = law.quadrature(4)
        for test in (np.cos, np.sin, np.tanh):
            values = test(2 * x).prod(axis=1)
            assert abs(values.mean() - weights @ test(2 * points).prod(axis=1)) < 4 * values.std() / np.sqrt(n) + 1e-4


def test_negative_values_are_kept_and_told():
    problem = zoo.get("lq", dim=1, cov=0.02)
    solution = solve(problem, mesh=box_mesh(Box([-5.0], [5.0]), 24, "line"))
    assert (solution.coefficients < 0).any()
    count = int((solution.coefficients < 0).sum())
    assert solution.status.startswith(f"p is negative at {count} of")
    assert solution.stats["negative"] == count
    assert solution.stats["lowest"] < -1e-6


def test_values_that_are_negative_by_less_than_the_tolerance_are_ok():
    solution = solve(zoo.get("double-well", 1))
    assert solution.stats["negative"] > 0
    assert -1e-8 < solution.stats["lowest"] < 0
    assert solution.status == "ok"


def test_arguments_that_make_no_sense():
    problem = zoo.get("lq", dim=1)
    basis = spectral(-5.0, 5.0, 4, 6)
    with pytest.raises(DomainError, match="one of basis, mesh and box"):
        solve(problem, basis=basis, box=Box([-1.0], [1.0]))
    with pytest.raises(SpaceError, match="dimension 1"):
        solve(problem, basis=spectral(-1.0, 1.0, 2, 4, 2))
    with pytest.raises(SpaceError, match="continuous"):
        solve(problem, mesh=box_mesh(Box([-5.0], [5.0]), 8, "line"), element="hermite")
    with pytest.raises(ConvergenceError, match="rtol"):
        solve(problem, basis=basis, rtol=0.0)
    with pytest.raises(DomainError, match="up to dimension 3"):
        solve(zoo.get("lq", dim=4))
    with pytest.raises(DomainError, match="lives in"):
        solve(zoo.get("reflected", dim=1), basis=basis)
    with pytest.raises(DomainError, match="one time"):
        solve(problem, basis=basis).law([0.0, 1.0])


def test_progress_reaches_the_end():
    seen = []
    solve(zoo.get("lq", dim=1), basis=spectral(-5.0, 5.0, 6, 10), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
