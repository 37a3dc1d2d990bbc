"""Sets of many coefficients: by fronts, without their rows, the solution is that of sparse LU; faults show."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.linalg import solve_triangular
from scipy.optimize import lsq_linear

import fem_hjb as fh
from fem_hjb.learning import active_sets, alternating, bordered, constrained_solve, interior_point
from fem_hjb.learning.bordered import Bordered, Restricted, dissection_of
from fem_hjb.learning.constrained_solve import Projector, solve_inequality
from fem_hjb.learning.constraints import Bounds, Convex, Monotone
from fem_hjb.learning.solve_system import reduce_system, solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.support.errors import ConvergenceError

SETS = [Bounds(0.2, 0.6), Monotone(0), Bounds(0.1) & Monotone(1, increasing=False), Convex(0)]


@pytest.fixture(scope="module")
def system():
    problem = fh.zoo.get("lq", dim=2)
    space = fh.Space(problem, cells=4, time_cells=2, box=fh.Box([-1.5] * 2, [1.5] * 2))
    return assemble(problem, fh.sample_paths(problem, n=1000, steps=16, rng=0), space, outside="drop")


@pytest.fixture
def inequality(system, monkeypatch):
    """Form, load, energy, places, and with all sizes by fronts."""
    monkeypatch.setattr(bordered, "FEW", 0)
    reduced = reduce_system(system, smoothing=1.0)
    of = reduced.inequality
    return of.form.tocsr(), of.load, of.energy.tocsr(), of.places


@pytest.mark.parametrize("constraint", SETS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_by_fronts_the_solution_in_a_set_is_that_of_sparse_factors(symmetric, constraint, system, inequality):
    form, load, energy, places = inequality
    matrix = energy if symmetric else form
    linear_set = constraint.on(system.space)
    found = solve_inequality(matrix, load, linear_set, places=places)
    expected = solve_inequality(matrix, load, linear_set)
    assert found.residual < 1e-11
    assert (found.active != 0).sum() > 20
    size = np.abs(expected.coefficients).max()
    np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-9 * size)


@pytest.mark.parametrize("constraint", SETS[1:3])
def test_the_interior_point_by_fronts_reaches_rounding(constraint, system, inequality, monkeypatch):
    form, load, _, places = inequality
    monkeypatch.setattr(constrained_solve, "_ACTIVE_STEPS", 0)
    found = solve_inequality(form, load, constraint.on(system.space), places=places)
    assert found.how == "interior-point"
    assert found.residual < 1e-11


@pytest.mark.parametrize("constraint", SETS[:2])
def test_active_sets_finish_an_interior_point_sooner_than_it_would_itself(constraint, system, inequality, monkeypatch):
    monkeypatch.setattr(constrained_solve, "_HASTY", 0)
    monkeypatch.setattr(constrained_solve, "_ALTERNATIONS", 0)
    _, load, energy, places = inequality
    linear_set = constraint.on(system.space)
    found = solve_inequality(energy, load, linear_set, places=places)
    assert found.how == "interior-point"  # more than a tenth of the rows are violated without the set
    assert found.residual < 1e-11
    monkeypatch.setattr(interior_point, "_FINISH", 1000)
    monkeypatch.setattr(interior_point, "_NEAR", 0.0)
    alone = solve_inequality(energy, load, linear_set, places=places)
    assert found.iterations < alone.iterations
    size = np.abs(alone.coefficients).max()
    np.testing.assert_allclose(found.coefficients, alone.coefficients, atol=1e-9 * size)


def test_tight_bounds_of_large_systems_are_those_of_bounded_least_squares(system, inequality, monkeypatch):
    monkeypatch.setattr(constrained_solve, "_HASTY", 0)
    _, load, energy, places = inequality
    of = SETS[0].on(system.space)
    upward = np.linalg.cholesky((of.inverse.T @ energy @ of.inverse).toarray())
    target = solve_triangular(upward, of.inverse.T @ load, lower=True)
    exact = of.inverse @ lsq_linear(upward.T, target, (of.lower, of.upper), method="bvls", tol=1e-15, max_iter=1000).x
    found = solve_inequality(energy, load, of, places=places)
    assert found.how == "interior-point"
    assert (found.active != 0).mean() > 0.4
    np.testing.assert_allclose(found.coefficients, exact, atol=1e-11 * np.abs(exact).max())
    # Active sets that release no row are wrong: an interior point does without, but few of its steps are refused.
    monkeypatch.setattr(active_sets.System, "sides_of", lambda system, q, c, multipliers, sides: sides)
    alone = solve_inequality(energy, load, of, places=places)
    np.testing.assert_allclose(alone.coefficients, exact, atol=1e-11 * np.abs(exact).max())
    monkeypatch.setattr(interior_point, "_INTERIOR_STEPS", 5)
    with pytest.raises(ConvergenceError, match="its relative KKT residual is"):
        solve_inequality(energy, load, of, places=places)


def test_within_bounds_the_interior_point_starts_inside_and_stays(inequality):
    _, load, energy, places = inequality
    lower, upper = np.full(load.size, -0.01), np.full(load.size, 0.02)
    lower[::5], upper[1::5] = -np.inf, np.inf
    upper[2::50] = lower[2::50]
    system = active_sets.System(energy, sp.identity(load.size, format="csr"), lower, upper, places=places)
    state = interior_point._Interior(system, load)
    products = state.w * state.z
    np.testing.assert_allclose(products, products[0], rtol=1e-12)
    for _ in range(8):
        slack = np.concatenate([upper[state.above] - state.c[state.above], state.c[state.below] - lower[state.below]])
        assert (slack > 0).all()
        np.testing.assert_allclose(state.w, slack, atol=1e-13)
        state.advance()
    assert (state.w * state.z).mean() < 1e-5 * products[0]
    system.bounds = False  # the start for rows of any kind is outside
    assert interior_point._Interior(system, load).left[1] > 0.01


def test_corrections_make_the_steps_of_an_interior_point_longer(inequality, monkeypatch):
    _, load, energy, places = inequality
    bounds = np.full(load.size, -0.01), np.full(load.size, 0.02)
    system = active_sets.System(energy, sp.identity(load.size, format="csr"), *bounds, places=places)
    left = []
    for corrections in (0, 2):
        monkeypatch.setattr(interior_point, "_CORRECTIONS", corrections)
        state = interior_point._Interior(system, load)
        for _ in range(6):
            state.advance()
        left.append(state.left[0])
    assert left[1] < left[0] / 2


@pytest.mark.parametrize("constraint", SETS[:2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_alternating_directions_bring_active_sets_near_their_end(symmetric, constraint, system, inequality):
    form, load, energy, places = inequality
    of = constraint.on(system.space)
    large = constrained_solve._Engine(energy if symmetric else form, of, None, places=places)
    q = load if large.change is None else large.change.T @ load
    few, many = (alternating.alternating(large.system, q, alternations, 60) for alternations in (1, 40))
    first_few, first_many = (alternating.alternating(large.system, q, alternations, 1) for alternations in (1, 40))
    assert many.residual < 1e-11
    assert (first_many.sides != many.sides).sum() < 0.25 * (first_few.sides != many.sides).sum()
    assert many.iterations < few.iterations


def test_alternations_that_go_nowhere_cost_steps_only(system, inequality, monkeypatch):
    form, load, _, places = inequality
    linear_set = SETS[1].on(system.space)
    expected = solve_inequality(form, load, linear_set)
    monkeypatch.setattr(constrained_solve, "_HASTY", 0)
    whole = solve_inequality(form, load, linear_set, places=places)
    monkeypatch.setattr(alternating.Factors, "once", lambda factors, rhs: -rhs)
    found = solve_inequality(form, load, linear_set, places=places)
    assert found.residual < 1e-11
    assert found.iterations > whole.iterations
    size = np.abs(expected.coefficients).max()
    np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-9 * size)


def test_active_sets_from_far_away_are_given_up(system, inequality):
    _, load, energy, places = inequality
    of = SETS[1].on(system.space)
    large = active_sets.System(energy, of.rows, of.lower, of.upper, places=places)
    nowhere = np.zeros(of.lower.size, dtype=np.int8)
    patient, hasty = (active_sets.active_set(large, load, nowhere, load, 60, hasty) for hasty in (False, True))
    assert hasty.iterations == 1 < patient.iterations
    assert patient.residual < 1e-11 < hasty.residual
    again = active_sets.active_set(large, load, patient.sides, load, 60, hasty=True)
    assert again.iterations == 1
    assert again.residual < 1e-11


def test_the_interior_point_is_the_same_however_rows_are_scaled(system, inequality):
    _, load, energy, places = inequality
    of = SETS[1].on(system.space)
    found = []
    for scale in (np.ones(of.lower.size), 10.0 ** np.random.default_rng(0).uniform(-3, 3, of.lower.size)):
        rows = sp.csr_matrix(sp.diags(scale) @ of.rows)
        state = interior_point._Interior(
            active_sets.System(energy, rows, scale * of.lower, scale * of.upper, places=places), load
        )
        for _ in range(5):
            state.advance()
        found.append(state.c)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6 * np.abs(found[0]).max())


@pytest.mark.parametrize("soft", [0.0, 0.3])
def test_a_bordered_system_is_solved_with_its_rows_and_without(soft, system, inequality):
    form, load, _, places = inequality
    rows = Monotone(0).on(system.space).rows[::3]
    rows = sp.vstack([rows, 2.0 * rows[:4]], format="csr")  # dependent ones
    corner, mobility = np.full(rows.shape[0], soft), np.ones(rows.shape[0])
    target = rows @ np.linspace(0.0, 1.0, load.size) - soft * np.linspace(-1.0, 1.0, rows.shape[0])
    dissection = dissection_of(form, rows, places)
    assert dissection is not None
    for order in (dissection, None):
        c, reaction = Bordered(form, rows, corner, mobility, order, False).solve(load, target)
        assert np.abs(form @ c + rows.T @ reaction - load).max() < 1e-10 * np.abs(load).max()
        assert np.abs(rows @ c - corner * reaction - target).max() < 1e-10 * np.abs(target).max()


def test_rows_that_couple_everything_stay_rows(inequality):
    form, _, _, places = inequality
    assert dissection_of(form, sp.csr_matrix(np.ones((1, form.shape[0]))), places) is None
    assert dissection_of(form, sp.csr_matrix((0, form.shape[0])), places) is not None
    assert dissection_of(form, sp.csr_matrix((0, form.shape[0])), None) is None


def test_factors_of_one_active_set_serve_the_next(inequality, monkeypatch):
    form, load, _, places = inequality
    made = []
    factors = bordered.Factors
    monkeypatch.setattr(bordered, "Factors", lambda *given: made.append(1) or factors(*given))
    restricted = Restricted(form, dissection_of(form, sp.csr_matrix((0, load.size)), places), False)
    free = np.ones(load.size, dtype=bool)
    for held, released in ((0, 0), (30, 0), (80, 40), (400, 0)):
        free[:held], free[:released] = False, True
        c = restricted.solve(free, load)
        dense = np.linalg.solve(form[free][:, free].toarray(), load[free])
        np.testing.assert_allclose(c[free], dense, atol=1e-10 * np.abs(dense).max())
        assert not c[~free].any()
    assert len(made) == 2  # the last step changes too many


def test_the_projection_that_judges_starts_from_the_solution(system):
    solution = solve_system(system, constraint=Monotone(0), smoothing=1.0, figures=False)
    assert solution.stats["kkt"] < 1e-11
    assert solution.stats["residual"] < 1e-11
    assert solution.stats["iterations"] > 2
    reduced = reduce_system(system, smoothing=1.0)
    energy, linear_set = reduced.inequality.energy, Monotone(0).on(system.space)
    target = np.sin(np.arange(energy.shape[0]))
    first = Projector(energy, linear_set)(target)
    again = Projector(energy, linear_set)
    again.begin(first)
    assert again(target).iterations == 1 < first.iterations


@pytest.mark.parametrize("constraint", SETS[:2])
def test_factors_that_are_a_little_wrong_cost_steps_only(constraint, system, inequality, monkeypatch):
    _, load, energy, places = inequality
    expected = solve_inequality(energy, load, constraint.on(system.space), places=places).coefficients
    whole = bordered.Factors.solve
    monkeypatch.setattr(bordered.Factors, "solve", lambda *given: 0.99 * whole(*given))
    found = solve_inequality(energy, load, constraint.on(system.space), places=places)
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-9)


@pytest.mark.parametrize("constraint", SETS[:2])
def test_wrong_projections_leave_a_kkt_residual_and_are_refused(constraint, system, inequality, monkeypatch):
    _, load, energy, places = inequality
    whole = bordered.Factors.solve
    monkeypatch.setattr(bordered.Factors, "solve", lambda *given: -whole(*given))
    with pytest.raises(ConvergenceError, match=r"relative KKT residual is [0-9.]+e[-+]0[0-2]"):
        solve_inequality(energy, load, constraint.on(system.space), places=places)


def test_without_a_dissection_large_symmetric_systems_are_solved_as_before(inequality, system, monkeypatch):
    monkeypatch.setattr(active_sets, "_DIRECT", 0)
    _, load, energy, places = inequality
    linear_set = SETS[0].on(system.space)
    by_cg = solve_inequality(energy, load, linear_set)
    by_fronts = solve_inequality(energy, load, linear_set, places=places)
    np.testing.assert_allclose(by_cg.coefficients, by_fronts.coefficients, atol=1e-10)
