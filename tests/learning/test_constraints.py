"""Convex sets that hold between the nodes, and the inequalities over them, against an independent cone solver."""

from functools import cache
from itertools import product

import clarabel
import numpy as np
import pytest
import scipy.sparse as sp
import skfem

import fem_hjb as fh
from fem_hjb.learning import active_sets, constrained_solve, constraints, interior_point
from fem_hjb.learning.constrained_solve import Projector, solve_inequality
from fem_hjb.learning.constraints import Bounds, Constraint, Convex, EnergyBall, Monotone
from fem_hjb.learning.inequality import natural_residual
from fem_hjb.learning.linear_set import LinearSet
from fem_hjb.learning.solve_system import reduce_system
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.tensor import SplineBasis
from fem_hjb.support.errors import ConstraintError, ConvergenceError, SpaceError

CLASSES = [
    ("hermite", 1, 8),
    ("P1", 1, 12),
    ("P2", 1, 8),
    ("P4", 1, 3),
    ("B2", 1, 8),
    ("B3", 1, 8),
    ("hermite", 2, 3),
    ("P1", 2, 4),
    ("P2", 2, 3),
    ("P3", 2, 2),
    ("Q1", 2, 4),
    ("Q2", 2, 3),
    ("B3", 2, 3),
    ("P2", 3, 1),
]
SMOOTH = [case for case in CLASSES if case[0] in ("hermite", "B2", "B3")]


def project(metric, target, linear_set):
    """The projection of coefficients on a set in the metric E."""
    return Projector(metric, linear_set)(target)


@cache
def class_of(element, dim, cells, **options):
    return class_on(dim, element, box=fh.Box([-1.0] * dim, [1.0] * dim), cells=cells, **options)


def class_on(dim, element, **options):
    problem = fh.ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=fh.LinearDrift(np.zeros((dim, dim)), np.zeros(dim)),
        diffusion=1.0,
        terminal_reward=lambda x: x[..., 0],
        initial_law=fh.Gaussian(np.zeros(dim), 0.02),
    )
    return fh.Space(problem, time_cells=2, element=element, **options)


def scattered(space, per_cell=12, seed=0):
    """Uniform points (t, x) in the box of a space, several in every cell on average."""
    rng = np.random.default_rng(seed)
    n = per_cell * space.n_cells * space.local_size
    return rng.random(n), rng.uniform(-1.0, 1.0, (n, space.dim))


@cache
def gram(space):
    """int f g + 0.05 d_t f d_t g + 0.05 grad f' grad g, by sampling: a well-conditioned metric of the class."""
    t, x = scattered(space)
    table = space.tabulate(t, x, 1)
    dofs = space.cell_dofs(table.cells)
    gradients = np.moveaxis(table.gradients, -1, 0)
    total = sp.csr_matrix((space.n_dofs, space.n_dofs))
    rows = np.repeat(np.arange(len(t)), dofs.shape[1])
    for weight, values in ((1.0, table.values), (0.05, table.time_derivatives), *((0.05, g) for g in gradients)):
        design = sp.csr_matrix((values.ravel(), (rows, dofs.ravel())), shape=(len(t), space.n_dofs))
        total = total + weight / len(t) * design.T @ design
    return total.tocsr()


def wavy(space, noise=0.05):
    """Coefficients of a function that leaves every set below."""
    values = space.interpolate(lambda t, x: np.sin(4 * x[:, 0] + 3 * t) + 0.7 * np.cos(3 * x[:, -1]))
    return values.ravel() + noise * np.random.default_rng(7).standard_normal(space.n_dofs)


def cone_programme(matrix, load, linear_set):
    """min 1/2 c' M c - q' c over the rows, by Clarabel, to the smallest of these tolerances that it reaches."""
    up, low = np.isfinite(linear_set.upper), np.isfinite(linear_set.lower)
    rows = sp.vstack([linear_set.rows[up], -linear_set.rows[low]], format="csc")
    bounds = np.concatenate([linear_set.upper[up], -linear_set.lower[low]])
    cones = [clarabel.NonnegativeConeT(bounds.size)]
    upper_part = sp.triu(sp.csc_matrix(matrix), format="csc")
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    for tolerance in (1e-13, 1e-12, 1e-11, 1e-10):
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
        result = clarabel.DefaultSolver(upper_part, -load, rows, bounds, cones, settings).solve()
        if str(result.status) == "Solved":
            return np.array(result.x)
    raise AssertionError(f"Clarabel: {result.status}")


def distance(metric, a, b):
    return np.sqrt((a - b) @ (metric @ (a - b)))


def kkt_error(matrix, load, linear_set, result, metric=None):
    """The violated KKT conditions, written out: stationarity, feasibility, signs, complementarity."""
    c, multipliers, mu = result.coefficients, result.multipliers, result.radius_multiplier
    values = linear_set.rows @ c
    stationary = matrix @ c + linear_set.rows.T @ multipliers - load
    pressed = multipliers != 0
    bound = np.where(multipliers > 0, linear_set.upper, linear_set.lower)[pressed]
    complementary = multipliers[pressed] * (bound - values[pressed])  # inf where the sign has no bound
    errors = [abs(stationary + (mu * (metric @ c) if mu else 0)).max(), abs(complementary).max(initial=0)]
    if mu:
        errors += [abs(np.sqrt(c @ (metric @ c)) - linear_set.radius), max(-mu, 0)]
    return max(*errors, linear_set.violation(c, metric))


def random_set(rng, n, m):
    """A set around a random point, half of its sides infinite, with a positive definite matrix and a load."""
    rows = rng.standard_normal((m, n)) * (rng.random((m, n)) < 0.3)
    rows[np.arange(m), rng.integers(0, n, m)] += 2.0
    values = rows @ rng.standard_normal(n)
    lower, upper = values - rng.exponential(0.3, m), values + rng.exponential(0.3, m)
    lower[rng.random(m) < 0.5], upper[rng.random(m) < 0.5] = -np.inf, np.inf
    root = rng.standard_normal((n, n))
    matrix = sp.csr_matrix(root @ root.T / n + 0.1 * np.eye(n))
    return LinearSet(rows=rows, lower=lower, upper=upper), matrix, 3 * rng.standard_normal(n)


# The sets


@pytest.mark.parametrize(("element", "dim", "cells"), CLASSES)
def test_bounds_hold_between_the_nodes_and_nodal_bounds_do_not(element, dim, cells):
    space = class_of(element, dim, cells)
    metric, target = gram(space), wavy(space)
    lower, upper = -0.3, 0.4
    linear_set = Bounds(lower, upper).on(space)
    result = project(metric, target, linear_set)
    t, x = scattered(space, per_cell=20, seed=1)
    values = space.evaluate(result.coefficients, t, x)
    assert values.min() > lower - 1e-13
    assert values.max() < upper + 1e-13
    assert values.max() > upper - 0.05  # the bound is reached
    assert linear_set.violation(result.coefficients) < 1e-12
    assert linear_set.violation(target) > 0.1
    if element in ("P2", "P4", "Q2", "P3"):
        size = space.n_dofs
        nodal = LinearSet(rows=sp.identity(size), lower=np.full(size, lower), upper=np.full(size, upper))
        loose = project(metric, target, nodal)
        assert nodal.violation(loose.coefficients) == 0.0
        between = space.evaluate(loose.coefficients, t, x)
        assert max(between.max() - upper, lower - between.min()) > 2e-3


@pytest.mark.parametrize(("element", "time_degree"), [("P1", 1), ("Q1", 1), ("B2", 1), ("B3", 1)])
def test_positive_bases_are_bounded_by_their_own_coefficients_exactly(element, time_degree):
    space = class_of(element, 2, 4, time_degree=time_degree)
    linear_set = Bounds(-0.3, 0.4).on(space)
    assert (linear_set.rows != sp.identity(space.n_dofs)).nnz == 0
    result = project(gram(space), wavy(space), linear_set)
    assert linear_set.violation(result.coefficients) == 0.0
    assert np.count_nonzero(result.active) > 0


@pytest.mark.parametrize(("element", "dim", "cells"), CLASSES)
def test_rows_of_values_are_another_basis_of_the_class(element, dim, cells):
    space = class_of(element, dim, cells)
    linear_set = Bounds(0.0).on(space)
    assert abs(linear_set.rows @ linear_set.inverse - sp.identity(space.n_dofs)).max() < 1e-13
    assert np.abs(linear_set.rows.sum(axis=1) - 1.0).max() < 1e-12 if element[0] not in "h" else True
    constant = space.interpolate(lambda t, x: np.full(len(x), 2.5)).ravel()
    assert np.abs(linear_set.rows @ constant - 2.5).max() < 1e-12


@pytest.mark.parametrize(
    ("element", "dim", "cells", "increasing"),
    [*((*case, True) for case in CLASSES), ("hermite", 2, 3, False), ("P2", 2, 3, False), ("B3", 1, 8, False)],
)
def test_monotone_functions_are_monotone_between_the_nodes(element, dim, cells, increasing):
    space, axis = class_of(element, dim, cells), dim - 1 if increasing else 0
    metric, target = gram(space), wavy(space)
    sign = 1.0 if increasing else -1.0
    result = project(metric, target, Monotone(axis, increasing=increasing).on(space))
    t, x = scattered(space, per_cell=20, seed=1)
    slopes = sign * space.evaluate(result.coefficients, t, x, "gradient")[:, axis]
    before = sign * space.evaluate(target, t, x, "gradient")[:, axis]
    assert before.min() < -1.0
    assert slopes.min() > -1e-10
    assert slopes.max() > 0.05  # not merely constant


@pytest.mark.parametrize("concave", [True, False])
@pytest.mark.parametrize(("element", "dim", "cells"), SMOOTH)
def test_convex_functions_are_convex_between_the_nodes(element, dim, cells, concave):
    space, axis = class_of(element, dim, cells), 0
    target = wavy(space)
    sign = -1.0 if concave else 1.0
    result = project(gram(space), target, Convex(axis, concave=concave).on(space))
    t, x = scattered(space, per_cell=20, seed=1)
    curvatures = sign * space.evaluate(result.coefficients, t, x, "hessian")[:, axis, axis]
    before = sign * space.evaluate(target, t, x, "hessian")[:, axis, axis]
    assert before.min() < -1.0
    assert curvatures.min() > -1e-9
    assert curvatures.max() > 0.05


def test_functions_in_the_set_are_left_alone():
    space = class_of("hermite", 1, 8)
    c = space.interpolate(lambda t, x: 0.5 + 0.2 * np.tanh(x[:, 0]) + 0.03 * x[:, 0] ** 2 + 0.1 * t).ravel()
    everything = (Bounds(0.0, 1.0) & Monotone(0)).on(space)
    result = project(gram(space), c, everything)
    assert np.abs(result.coefficients - c).max() < 1e-13
    assert np.count_nonzero(result.active) == 0
    assert np.abs(result.multipliers).max() == 0.0


def test_the_bernstein_coefficients_are_off_by_the_square_of_the_cell_width():
    widths, gaps = [], []
    for cells in (3, 9, 27):  # the minimum of x^2 is inside a cell
        space = class_of("P2", 1, cells)
        rows = Bounds(0.0).on(space).rows
        gaps.append(-(rows @ space.interpolate(lambda t, x: x[:, 0] ** 2).ravel()).min())
        widths.append(2.0 / cells)
        straight = rows @ space.interpolate(lambda t, x: x[:, 0]).ravel()
        assert abs(straight.min() + 1.0) < 1e-13  # no gap where f is linear
    assert np.polyfit(np.log(widths), np.log(gaps), 1)[0] == pytest.approx(2.0, abs=0.15)


def test_slopes_on_rotated_cells_use_both_reference_axes():
    angle = 0.4
    mesh = skfem.MeshQuad.init_tensor(np.linspace(-1, 1, 4), np.linspace(-1, 1, 4))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    space = class_on(2, "Q2", mesh=skfem.MeshQuad(rotation @ mesh.p, mesh.t))
    linear_set = Monotone(0).on(space)
    c = space.interpolate(lambda t, x: x[:, 0] + 0.3 * x[:, 0] * x[:, 1]).ravel()
    assert (linear_set.rows @ c).min() > 0  # the slope is 1 + 0.3 y > 0
    result = project(sp.identity(space.n_dofs), wavy(space), linear_set)
    x = space.spatial.quadrature(20).x.reshape(-1, 2)
    for t in np.linspace(0, 1, 9):
        assert space.evaluate(result.coefficients, t, x, "gradient")[:, 0].min() > -1e-12


@pytest.mark.parametrize("element", ["B2", "B3", "B4"])
@pytest.mark.parametrize(("constraint", "derivative"), [(Bounds(-0.3, 0.4), 0), (Monotone(0), 1), (Convex(0), 2)])
def test_splines_that_are_flat_at_the_ends(element, constraint, derivative):
    basis = SplineBasis([np.linspace(-1.0, 1.0, 8) ** 3], element, flat=True)
    space = fh.Space.product(LineBasis.uniform(1.0, 2, "P2"), basis)
    linear_set = constraint.on(space)
    target = np.random.default_rng(2).standard_normal(space.n_dofs)
    result = project(sp.identity(space.n_dofs), target, linear_set)
    t, x = np.linspace(0, 1, 9)[:, None], np.linspace(-1, 1, 801)[None, :, None]
    name = ("value", "gradient", "hessian")[derivative]
    found = space.evaluate(result.coefficients, t, x, name).ravel()
    scale = np.abs(space.evaluate(target, t, x, name)).max()
    if derivative < 2:
        assert found.max() > 0.1
        assert found.min() > (-1e-12 * scale if derivative else -0.3 - 1e-12)
    else:  # flat at both ends and convex: constant
        assert np.abs(found).max() < 1e-10 * scale
    sharp = linear_set.rows @ np.ones(space.n_dofs)
    assert np.abs(sharp - (derivative == 0)).max() < 1e-12


def test_slopes_on_cells_that_are_not_affine_are_refused_but_bounds_hold():
    mesh = skfem.MeshQuad.init_tensor(np.linspace(-1, 1, 4), np.linspace(-1, 1, 4))
    points = mesh.p.copy()
    points[:, 5] += 0.1
    space = class_on(2, "Q2", mesh=skfem.MeshQuad(points, mesh.t))
    with pytest.raises(SpaceError, match="affine"):
        Monotone(0).on(space)
    result = project(gram(space), wavy(space), Bounds(-0.3, 0.4).on(space))
    values = space.evaluate(result.coefficients, *scattered(space, per_cell=20, seed=1))
    assert -0.3 - 1e-13 < values.min() < values.max() < 0.4 + 1e-13


def test_convex_refuses_classes_whose_slopes_jump():
    with pytest.raises(SpaceError, match="slopes jump"):
        Convex(0).on(class_of("P2", 1, 4))


# Intersections


def test_intersections_are_flat_and_satisfy_every_part():
    space = class_of("hermite", 2, 3)
    three = Bounds(-0.3, 0.5) & Monotone(0) & Convex(1, concave=True)
    assert [type(part).__name__ for part in three.parts] == ["Bounds", "Monotone", "Convex"]
    metric, target = gram(space), wavy(space)
    result = project(metric, target, three.on(space))
    for part in three.parts:
        assert part.on(space).violation(target) > 0.1
        assert part.on(space).violation(result.coefficients) < 1e-12
    assert distance(metric, result.coefficients, cone_programme(metric, metric @ target, three.on(space))) < 1e-7


def test_equal_rows_are_merged_with_the_tighter_bounds():
    space = class_of("P2", 1, 4)
    merged = (Bounds(-1.0, 0.4) & Bounds(-0.3)).on(space)
    plain = Bounds(-0.3, 0.4).on(space)
    assert merged.rows.shape == plain.rows.shape
    assert merged.inverse is not None
    metric, target = gram(space), wavy(space)
    same = project(metric, target, merged).coefficients - project(metric, target, plain).coefficients
    assert np.abs(same).max() < 1e-13
    with pytest.raises(ConstraintError, match="45 of 45 rows have no number between their bounds"):
        (Bounds(0.5) & Bounds(upper=0.4)).on(space)


@pytest.mark.parametrize("steps", [30, 0])
def test_increasing_and_decreasing_leave_functions_of_time(steps, monkeypatch):
    monkeypatch.setattr(constrained_solve, "_ACTIVE_STEPS", steps)
    space = class_of("hermite", 1, 5)
    linear_set = (Monotone(0) & Monotone(0, increasing=False)).on(space)
    assert (linear_set.lower == linear_set.upper).all()
    result = project(gram(space), wavy(space), linear_set)
    assert result.iterations == 1 if steps else result.how == "interior-point"
    grid = space.evaluate(result.coefficients, np.linspace(0, 1, 7)[:, None], np.linspace(-1, 1, 9)[None, :, None])
    assert np.ptp(grid, axis=1).max() < 1e-12
    assert np.ptp(grid, axis=0).max() > 0.01


# The solver


@pytest.mark.parametrize(("element", "dim", "cells"), [case for case in CLASSES if case[1] < 3])
@pytest.mark.parametrize("constraint", [Bounds(-0.3, 0.4), Bounds(-0.3) & Monotone(0, increasing=False)])
def test_projections_agree_with_a_cone_solver(element, dim, cells, constraint):
    space = class_of(element, dim, cells)
    metric, target, linear_set = gram(space), wavy(space), constraint.on(space)
    result = project(metric, target, linear_set)
    assert distance(metric, result.coefficients, cone_programme(metric, metric @ target, linear_set)) < 1e-8
    assert result.residual < 1e-12
    assert kkt_error(metric, metric @ target, linear_set, result) < 1e-12
    assert 0 < np.count_nonzero(result.active) < linear_set.lower.size


@pytest.mark.parametrize("seed", range(12))
def test_both_methods_agree_with_a_cone_solver_on_random_sets(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    linear_set, matrix, load = random_set(rng, int(rng.integers(3, 30)), int(rng.integers(2, 40)))
    expected = cone_programme(matrix, load, linear_set)
    for steps in (30, 0):
        monkeypatch.setattr(constrained_solve, "_ACTIVE_STEPS", steps)
        result = solve_inequality(matrix, load, linear_set)
        assert np.abs(result.coefficients - expected).max() < 1e-8
        assert kkt_error(matrix, load, linear_set, result) < 1e-11
        assert result.how == "interior-point" if not steps else True


@pytest.mark.parametrize(("element", "dim", "cells"), [("hermite", 1, 8), ("hermite", 2, 3), ("P2", 2, 3)])
def test_the_interior_point_alone_reaches_rounding(element, dim, cells, monkeypatch):
    monkeypatch.setattr(constrained_solve, "_ACTIVE_STEPS", 0)
    monkeypatch.setattr(interior_point, "_POLISH_STEPS", 0)
    space = class_of(element, dim, cells)
    metric, target = gram(space), wavy(space)
    some = Bounds(-0.3, 0.5) & Monotone(0)
    if space.smoothness:
        some &= Convex(0, concave=True)
    for constraint in (some, some & Monotone(dim - 1, increasing=False)):
        linear_set = constraint.on(space)
        result = project(metric, target, linear_set)
        assert result.how == "interior-point"
        assert result.residual < 1e-12
        assert kkt_error(metric, metric @ target, linear_set, result) < 1e-12
        assert result.iterations < 40


def test_violations_at_rounding_level_do_not_survive_on_coefficients():
    result = project(np.eye(2), [1.0 + 3e-14, 0.5], UNIT)
    assert UNIT.violation(result.coefficients) == 0.0


def test_the_interior_point_meets_bounds_on_coefficients_exactly(monkeypatch):
    monkeypatch.setattr(constrained_solve, "_ACTIVE_STEPS", 0)
    monkeypatch.setattr(interior_point, "_POLISH_STEPS", 0)
    space = class_of("P1", 2, 6, time_degree=1)
    linear_set = Bounds(-0.3, 0.4).on(space)
    result = project(gram(space), wavy(space), linear_set)
    assert result.how == "interior-point"
    assert linear_set.violation(result.coefficients) == 0.0


def test_a_start_from_another_set_over_the_same_rows():
    space = class_of("P2", 1, 6)
    metric, target = gram(space), wavy(space)
    both = project(metric, target, Bounds(-0.3, 0.4).on(space))
    below = Bounds(upper=0.4).on(space)
    warm = solve_inequality(metric, metric @ target, below, start=both)
    assert np.abs(warm.coefficients - project(metric, target, below).coefficients).max() < 1e-12
    assert warm.how == "active-set"
    with pytest.raises(ConstraintError, match="the same rows"):
        solve_inequality(metric, metric @ target, Monotone(0).on(space), start=both)


def test_an_active_set_that_cycles_falls_back():
    # A P-matrix on which the active set repeats after 3 steps (Ben Gharbia & Gilbert, Math. Program. 134 (2012) 349).
    a = 1.5
    matrix = np.array([[1.0, 0.0, a], [a, 1.0, 0.0], [0.0, a, 1.0]])
    linear_set = LinearSet(rows=np.eye(3), lower=np.zeros(3), upper=np.full(3, np.inf))
    plain = solve_inequality(matrix, np.ones(3), linear_set)
    assert plain.how == "active-set"
    start = constrained_solve.InequalityResult(
        coefficients=np.zeros(3),
        multipliers=np.zeros(3),
        radius_multiplier=0.0,
        active=np.array([-1, 0, 0], dtype=np.int8),
        iterations=0,
        how="active-set",
        residual=1.0,
    )
    result = solve_inequality(matrix, np.ones(3), linear_set, start=start)
    assert result.how == "interior-point"
    assert np.abs(result.coefficients - 1 / (1 + a)).max() < 1e-13
    assert np.abs(plain.coefficients - 1 / (1 + a)).max() < 1e-14


@pytest.mark.parametrize("steps", [30, 0])
@pytest.mark.parametrize("seed", range(6))
def test_nonsymmetric_inequalities_against_all_active_sets(seed, steps, monkeypatch):
    monkeypatch.setattr(constrained_solve, "_ACTIVE_STEPS", steps)
    rng = np.random.default_rng(seed)
    n = 4
    root, skew = rng.standard_normal((2, n, n))
    matrix, load = root @ root.T / n + 0.3 * np.eye(n) + 2 * (skew - skew.T), 2 * rng.standard_normal(n)
    lower, upper = -rng.random(n), rng.random(n)
    found = []
    for sides in product((-1, 0, 1), repeat=n):
        held = np.array(sides)
        c = np.where(held > 0, upper, np.where(held < 0, lower, 0.0))
        free = held == 0
        c[free] = np.linalg.solve(matrix[np.ix_(free, free)], (load - matrix @ c)[free])
        force = load - matrix @ c
        if (c >= lower - 1e-12).all() and (c <= upper + 1e-12).all() and (held * force >= -1e-12).all():
            found.append(c)
    assert len(found) == 1
    boxed = LinearSet(rows=np.eye(n), lower=lower, upper=upper)
    result = solve_inequality(matrix, load, boxed)
    assert np.abs(result.coefficients - found[0]).max() < 1e-12
    assert boxed.violation(result.coefficients) == 0.0
    # the same box seen through other rows
    rows = np.vstack([np.eye(n), 0.5 * np.eye(n)])
    twice = LinearSet(rows=rows, lower=np.r_[lower, -np.ones(n)], upper=np.r_[np.ones(n), 0.5 * upper])
    assert np.abs(solve_inequality(matrix, load, twice).coefficients - found[0]).max() < 1e-11
    symmetric = solve_inequality((matrix + matrix.T) / 2, load, boxed)
    assert np.abs(symmetric.coefficients - found[0]).max() > 1e-3


def test_a_nonsymmetric_inequality_on_a_class():
    space = class_of("hermite", 1, 6)
    metric, target = gram(space), wavy(space)
    rng = np.random.default_rng(3)
    shift = sp.random(space.n_dofs, space.n_dofs, 0.02, random_state=rng)
    matrix = metric + 0.05 * (shift - shift.T)
    linear_set = (Bounds(-0.3, 0.4) & Monotone(0)).on(space)
    load = metric @ target
    result = solve_inequality(matrix, load, linear_set)
    assert kkt_error(matrix, load, linear_set, result) < 1e-12
    force = matrix @ result.coefficients - load
    for _ in range(20):
        other = project(metric, rng.standard_normal(space.n_dofs), linear_set).coefficients
        assert force @ (other - result.coefficients) > -1e-12


def test_dependent_active_rows_do_not_matter():
    space = class_of("P2", 1, 6)
    metric, target = gram(space), wavy(space)
    plain = Monotone(0).on(space)
    doubled = LinearSet(
        rows=sp.vstack([plain.rows, 2.0 * plain.rows]), lower=np.tile(plain.lower, 2), upper=np.tile(plain.upper, 2)
    )
    expected = project(metric, target, plain).coefficients
    assert np.abs(project(metric, target, doubled).coefficients - expected).max() < 1e-10


@pytest.mark.parametrize("element", ["P1", "P2"])
def test_conjugate_gradients_and_factorisations_agree(element, monkeypatch):
    space = class_of(element, 2, 6)
    metric, target, linear_set = gram(space), wavy(space), Bounds(-0.3, 0.4).on(space)
    results = []
    for direct in (10**9, 0):
        monkeypatch.setattr(active_sets, "_DIRECT", direct)
        results.append(project(metric, target, linear_set))
    assert np.abs(results[0].coefficients - results[1].coefficients).max() < 1e-12
    assert results[1].residual < 1e-12


@pytest.mark.parametrize("constraint", [Bounds(-0.3, 0.4), Monotone(0), Bounds(-0.3) & Monotone(0)])
def test_a_projector_starts_from_the_last_active_set(constraint):
    space = class_of("P2", 1, 8)
    metric, target, linear_set = gram(space), wavy(space), constraint.on(space)
    projector = Projector(metric, linear_set)
    first = projector(target)
    again = projector(target)
    assert first.iterations > 2
    assert again.iterations == 1
    assert np.abs(again.coefficients - first.coefficients).max() < 1e-14
    moved = target + 0.02 * np.random.default_rng(5).standard_normal(target.size)
    warm, cold = projector(moved), project(metric, moved, linear_set)
    assert warm.iterations < cold.iterations
    assert np.abs(warm.coefficients - cold.coefficients).max() < 1e-11
    assert solve_inequality(metric, metric @ moved, linear_set, start=cold).iterations == 1


# Energy balls


@pytest.mark.parametrize("element", ["P1", "hermite"])
def test_the_projection_on_a_ball_scales(element):
    space = class_of(element, 1, 6)
    metric, target = gram(space), wavy(space)
    norm = np.sqrt(target @ (metric @ target))
    result = project(metric, target, EnergyBall(0.25 * norm).on(space))
    assert np.abs(result.coefficients - 0.25 * target).max() < 1e-13
    assert result.radius_multiplier == pytest.approx(3.0, rel=1e-12)
    inside = project(metric, target, EnergyBall(1.01 * norm).on(space))
    assert np.abs(inside.coefficients - target).max() < 1e-12
    assert inside.radius_multiplier == 0.0


@pytest.mark.parametrize("other", [Bounds(-0.3, 0.4), Monotone(0), Bounds(0.1) & Monotone(0)])
@pytest.mark.parametrize("skew", [0.0, 0.05])
def test_a_ball_within_other_constraints_meets_the_kkt_conditions(other, skew):
    space = class_of("P2", 1, 6)
    metric, target = gram(space), wavy(space)
    rotation = sp.random(space.n_dofs, space.n_dofs, 0.02, random_state=np.random.default_rng(3))
    matrix = 2 * metric + sp.identity(space.n_dofs) * 0.01 + skew * (rotation - rotation.T)
    load = 2 * metric @ target
    outside = solve_inequality(matrix, load, other.on(space)).coefficients
    radius = 0.6 * np.sqrt(outside @ (metric @ outside))
    linear_set = (other & EnergyBall(radius) & EnergyBall(10 * radius)).on(space)
    assert linear_set.radius == radius
    result = solve_inequality(matrix, load, linear_set, metric=metric)
    assert result.radius_multiplier > 0.1
    assert kkt_error(matrix, load, linear_set, result, metric) < 1e-11
    assert result.residual < 1e-11
    assert linear_set.violation(outside, metric) == pytest.approx(radius / 0.6 - radius)


@pytest.mark.parametrize("other", [Bounds(-0.3, 0.4), Monotone(0)])
def test_the_projection_on_a_ball_within_other_constraints(other):
    space = class_of("hermite", 1, 6)
    metric, target = gram(space), wavy(space)
    outside = project(metric, target, other.on(space)).coefficients
    linear_set = (other & EnergyBall(0.6 * np.sqrt(outside @ (metric @ outside)))).on(space)
    projector = Projector(metric, linear_set)
    for scale in (1.0, 0.9):
        result = projector(scale * target)
        assert result.radius_multiplier > 0.1
        assert kkt_error(metric, scale * metric @ target, linear_set, result, metric) < 1e-12


def test_a_ball_too_small_for_the_bounds_is_reported():
    space = class_of("P2", 1, 4)
    metric = gram(space)
    norm_of_one = 1.0  # |1|_E^2 is the mean of 1
    with pytest.raises(
        ConstraintError, match=r"least \|c\|_E under the other constraints is 1, the radius of the energy"
    ):
        project(metric, wavy(space), (Bounds(1.0, 2.0) & EnergyBall(0.9 * norm_of_one)).on(space))
    barely = project(metric, wavy(space), (Bounds(1.0, 2.0) & EnergyBall(1.01 * norm_of_one)).on(space))
    assert np.sqrt(barely.coefficients @ (metric @ barely.coefficients)) == pytest.approx(1.01, rel=1e-12)
    with pytest.raises(ConstraintError, match="give the metric"):
        solve_inequality(metric, np.zeros(space.n_dofs), EnergyBall(1.0).on(space))


# Fixed coefficients


@pytest.mark.parametrize("element", ["hermite", "P2", "P1"])
def test_fixed_terminal_values_restrict_the_set(element):
    space = class_of(element, 1, 6)
    metric, target = gram(space), wavy(space)
    free = np.ones(space.shape, dtype=bool)
    free[-1] = False
    free = free.ravel()
    end = project(metric, 0.9 * target, Bounds(-0.3, 0.4).on(space)).coefficients[~free]
    whole = Bounds(-0.3, 0.4).on(space)
    part = whole.restricted(free, end)
    assert part.inverse is not None
    assert abs(part.rows @ part.inverse - sp.identity(part.size)).max() < 1e-12
    inner = metric[free][:, free]
    load = (metric @ target)[free] - metric[free][:, ~free] @ end
    fast = solve_inequality(inner, load, part)
    slow = solve_inequality(inner, load, LinearSet(rows=part.rows, lower=part.lower, upper=part.upper))
    assert np.abs(fast.coefficients - slow.coefficients).max() < 1e-11
    full = np.empty(space.n_dofs)
    full[free], full[~free] = fast.coefficients, end
    assert whole.violation(full) < 1e-12
    by_index = whole.restricted(np.flatnonzero(free), end)
    assert np.array_equal(by_index.lower, part.lower)
    with pytest.raises(ConstraintError, match=r"\d+ of \d+ rows without free coefficients are violated, the worst"):
        whole.restricted(free, target[~free])


def test_an_inverse_is_kept_only_where_the_free_rows_are_a_basis():
    space = class_of("hermite", 1, 6)
    whole = Bounds(-0.3, 0.4).on(space)
    flat_ends = np.ones(space.shape, dtype=bool)
    flat_ends[:, space.spatial.reflecting_dofs()] = False
    free = flat_ends.ravel()
    part = whole.restricted(free, np.zeros((~free).sum()))
    assert part.inverse is None
    metric, target = gram(space), wavy(space)
    load = metric[free] @ target
    result = solve_inequality(metric[free][:, free], load, part)
    assert kkt_error(metric[free][:, free], load, part, result) < 1e-12


def test_fixed_coefficients_that_leave_other_rows_nothing_are_found():
    space = class_of("P2", 1, 4)
    linear_set = Monotone(0).on(space)
    nodes = space.spatial.nodes[:, 0]
    free = np.ones(space.shape, dtype=bool)
    free[:, np.abs(nodes) == 1.0] = False
    values = np.where(nodes < 0, 1.0, -1.0) * np.ones(space.shape)  # higher on the left than on the right
    part = linear_set.restricted(free.ravel(), values.ravel()[~free.ravel()])
    metric = gram(space)[free.ravel()][:, free.ravel()]
    with pytest.raises(ConstraintError, match="the set is empty: at best"):
        project(metric, np.zeros(part.size), part)


def test_a_ball_allows_only_zeros_to_be_fixed():
    ball = EnergyBall(1.0).on(class_of("P1", 1, 4))
    free = np.arange(1, ball.size)
    assert ball.restricted(free, [0.0]).radius == 1.0
    with pytest.raises(ConstraintError, match="other than 0"):
        ball.restricted(free, [0.1])


# A set of one's own


def values_at(space, t, x):
    """The values at m points (t, x) as rows (m, N) of the coefficients."""
    table = space.tabulate(t, x, 0)
    ct, cx = np.divmod(table.cells, space.spatial.n_cells)
    dofs = space.time.cell_dofs[ct][:, :, None] * space.spatial.n_dofs + space.spatial.cell_dofs[cx][:, None, :]
    rows = np.repeat(np.arange(len(x)), table.values.shape[1])
    return sp.csr_matrix((table.values.ravel(), (rows, dofs.ravel())), shape=(len(x), space.n_dofs))


class Obstacle(Constraint):
    """f(t, x) <= ceiling(t, x) at given points, and f(0, .) with a given mean over some of them."""

    def __init__(self, t, x, ceiling, mean=None):
        self.t, self.x, self.ceiling, self.mean = t, x, ceiling, mean

    def on(self, space):
        rows, upper = values_at(space, self.t, self.x), self.ceiling(self.t, self.x[:, 0])
        lower = np.full(upper.shape, -np.inf)
        if self.mean is not None:
            mean = np.ones(len(self.x)) / len(self.x) @ values_at(space, 0.0 * self.t, self.x)
            rows, upper, lower = sp.vstack([rows, mean]), np.append(upper, self.mean), np.append(lower, self.mean)
        return LinearSet(rows=rows, lower=lower, upper=upper)


def ceiling(t, x):
    return 0.55 + 0.2 * t + 0.05 * x


LQ = fh.zoo.get("lq", dim=1)
LQ_SPACE = fh.Space(LQ, cells=6, time_cells=3, box=fh.Box([-3.0], [3.0]))
POINTS = np.repeat(np.linspace(0.0, 1.0, 6), 9), np.tile(np.linspace(-2.0, 2.0, 9), 6)[:, None]


@pytest.mark.parametrize("mean", [None, 0.3])
@pytest.mark.parametrize("other", [None, Bounds(0.0)])
@pytest.mark.parametrize("method", ["direct", "projected"])
def test_a_set_of_ones_own_is_fitted_in_and_certified(mean, other, method):
    """The constraint holds and binds, and the natural residual is that of the solution."""
    t, x = POINTS
    own = Obstacle(t, x, ceiling, mean)
    constraint = own if other is None else own & other
    data = fh.law_measure(LQ, LQ_SPACE)
    how = {"estimator": "weak", "delta": 0.2, "method": method, "verify": False}
    free, learned = (fh.fit(LQ, data, LQ_SPACE, constraint=each, **how) for each in (None, constraint))
    assert learned.status == "ok"
    assert learned.stats["residual"] < 1e-8
    assert own.on(LQ_SPACE).violation(learned.coefficients) < 1e-9
    gap = ceiling(t, x[:, 0]) - LQ_SPACE.evaluate(learned.coefficients, t, x)
    assert gap.min() > -1e-9
    assert (np.abs(gap) < 1e-8).sum() > 2  # the obstacle is touched
    assert (ceiling(t, x[:, 0]) < LQ_SPACE.evaluate(free.coefficients, t, x)).any()
    if mean is not None:
        assert LQ_SPACE.evaluate(learned.coefficients, 0.0, x).mean() == pytest.approx(mean, abs=1e-9)
    system = fh.learning.assemble(LQ, data, LQ_SPACE, estimator="weak", delta=0.2)
    reduced = reduce_system(system, constraint=constraint, smoothing=learned.stats["smoothing"])
    z = reduced.root * np.ravel(learned.coefficients)[reduced.free]
    assert natural_residual(reduced.inequality, z) < 1e-8
    unconstrained = reduced.root * np.ravel(free.coefficients)[reduced.free]
    assert natural_residual(reduced.inequality, unconstrained) > 1e-3


class Answers(Constraint):
    def __init__(self, answer):
        self.answer = answer

    def on(self, space):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (None, "got NoneType"),
        (np.eye(3), "got ndarray"),
        (LinearSet(rows=np.eye(2), lower=[0.0, 0.0], upper=[1.0, 1.0]), "got one of 2"),
    ],
)
def test_what_is_no_set_of_the_class_is_refused_by_name(answer, got):
    message = rf"Answers.on\(space\) must return a LinearSet of {LQ_SPACE.n_dofs} coefficients.*{got}"
    for constraint in (Answers(answer), Answers(answer) & Bounds(0.0)):
        with pytest.raises(ConstraintError, match=message):
            fh.fit(LQ, fh.law_measure(LQ, LQ_SPACE), LQ_SPACE, constraint=constraint)


def test_rows_of_any_size_are_merged_only_if_they_are_equal():
    """Rows of a user may be tiny, or multiples of each other."""
    space = class_of("P1", 1, 4)
    unit = sp.identity(space.n_dofs, format="csr")
    rows = sp.vstack([1e-12 * unit, unit, 2.0 * unit, 1e-12 * unit])
    m = rows.shape[0]
    own = Answers(LinearSet(rows=rows, lower=np.zeros(m), upper=np.arange(m) + 1.0))
    merged = (own & own).on(space)
    assert merged.rows.shape == (3 * space.n_dofs, space.n_dofs)
    np.testing.assert_array_equal(merged.upper, np.arange(3 * space.n_dofs) + 1.0)


# What is refused


def test_contradicting_rows_are_found():
    linear_set = LinearSet(rows=[[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], lower=[1.0, -9, -9], upper=[9.0, 0.0, 0.0])
    with pytest.raises(ConstraintError, match="at best 1 of its 3 rows are violated, row 0 by 1"):
        solve_inequality(np.eye(2), np.zeros(2), linear_set)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Bounds(), "got neither"),
        (lambda: Bounds(1.0, 0.0), "lower 1 > upper 0"),
        (lambda: Bounds([0.0, 1.0]), "a finite number or None"),
        (lambda: Bounds(np.nan), "a finite number or None"),
        (lambda: EnergyBall(0.0), "radius must be a positive"),
        (lambda: Monotone(-1), "coordinate of x"),
        (lambda: Convex(0.5), "coordinate of x"),
        (lambda: constraints.Intersection(), "at least one"),
        (lambda: constraints.Intersection(Bounds(0), 3), "of constraints, got int"),
        (lambda: Monotone(1).on(class_of("P1", 1, 2)), "in 0..0, got 1"),
        (lambda: Convex(2).on(class_of("hermite", 1, 2)), "in 0..0, got 2"),
        (lambda: LinearSet(rows=np.eye(2), lower=[0, 0, 0], upper=[1, 1]), "one number per row"),
        (lambda: LinearSet(rows=np.eye(2), lower=[0, np.nan], upper=[1, 1]), "with 1 nan"),
        (lambda: LinearSet(rows=np.eye(2), lower=[0, 2], upper=[1, 1]), "1 of 2 rows have no number"),
        (lambda: UNIT.restricted([0, 5], [0.0]), "indices in 0..1"),
        (lambda: UNIT.restricted([1, 0], []), "increasing indices"),
        (lambda: UNIT.restricted([False, False], [0.0, 0.0]), "at least one"),
        (lambda: UNIT.restricted([0], [0.0, 0.0]), "shape \\(1,\\)"),
        (lambda: UNIT.violation([0.0, np.inf]), "2 finite coefficients"),
        (lambda: solve_inequality(np.eye(3), np.zeros(3), UNIT), "shape \\(2, 2\\)"),
        (lambda: solve_inequality(np.zeros(2), np.zeros(2), UNIT), "must be a matrix"),
        (lambda: solve_inequality(np.diag([1.0, 0.0]), np.zeros(2), UNIT), "1 diagonal entries"),
        (lambda: solve_inequality(np.eye(2), np.zeros(3), UNIT), "2 finite coefficients"),
        (lambda: solve_inequality(np.eye(2), np.zeros(2), Bounds(0)), "constraint.on"),
        (lambda: Projector(np.eye(2), Bounds(0)), "constraint.on"),
        (lambda: Projector([[1.0, 0.5], [0.0, 1.0]], UNIT), "symmetric"),
    ],
)
def test_bad_input_is_refused(build, message):
    with pytest.raises(ConstraintError, match=message):
        build()


UNIT = LinearSet(rows=np.eye(2), lower=[0.0, 0.0], upper=[1.0, 1.0])


@pytest.mark.parametrize("rows", [np.empty((0, 2)), [[1.0, 1.0]]])
def test_a_singular_matrix_is_reported(rows):
    linear_set = LinearSet(rows=rows, lower=[-1.0] * len(rows), upper=[1.0] * len(rows))
    with pytest.raises(ConvergenceError, match="add a ridge"):
        solve_inequality(np.ones((2, 2)), [1.0, -1.0], linear_set)


def test_only_spaces_and_constraints_are_taken():
    for constraint in (Bounds(0.0), Monotone(0), EnergyBall(1.0)):
        with pytest.raises(SpaceError, match="on a Space"):
            constraint.on(3)
    with pytest.raises(TypeError):
        Bounds(0.0) & 3
