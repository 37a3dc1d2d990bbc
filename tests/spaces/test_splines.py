"""B-splines on lines, on boxes, and in time: what holds for them beyond what every element must do."""

from itertools import product

import numpy as np
import pytest
import skfem
from scipy.interpolate import BSpline

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge
from fem_hjb.reference.mesh_operators import MeshOperators
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import Space, SplineBasis, spatial_basis
from fem_hjb.support.errors import SpaceError

DEGREES = (2, 3, 4)
GRIDS = {
    "uneven": np.array([0.0, 0.1, 0.5, 0.6, 1.4]),
    "far": 10.0 + np.linspace(0.0, 1.0, 12),
    "graded": np.geomspace(1e-8, 1.0, 20),
    "one cell": np.array([-1.0, 2.0]),
    "two cells": np.array([-1.0, 0.0, 2.0]),
}
PLACES = list(product(GRIDS.values(), DEGREES))
IDS = [f"{name}-B{p}" for name, p in product(GRIDS, DEGREES)]


def line(grid, p, **options):
    return LineBasis(grid, f"B{p}", **options)


def points_on(grid, n=300):
    return np.concatenate([grid, np.random.default_rng(0).uniform(grid[0], grid[-1], n)])


def dense(basis, s, derivative=0):
    """That derivative of all functions at points, (n, n_dofs); repeated dofs are summed."""
    cells, xi = basis.locate(s)
    result = np.zeros((len(s), basis.n_dofs))
    rows = np.repeat(np.arange(len(s)), basis.local_size)
    np.add.at(result, (rows, basis.cell_dofs[cells].ravel()), basis.tabulate(cells, xi, derivative)[:, -1].ravel())
    return result


def evaluate(basis, coefficients, x, order=0):
    cells, xi = basis.locate(x)
    assert (cells >= 0).all()
    return np.einsum("nl,nl...->n...", coefficients[basis.cell_dofs[cells]], basis.tabulate(cells, xi, order)[order])


def slope(sizes, errors):
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


# ------------------------------------------------------------------------------------------------ the line


@pytest.mark.parametrize(("grid", "p"), PLACES, ids=IDS)
def test_functions_and_derivatives_are_those_of_scipy(grid, p):
    basis, s = line(grid, p), points_on(grid)
    knots = np.concatenate([[grid[0]] * p, grid, [grid[-1]] * p])
    assert (basis.n_cells, basis.n_dofs, basis.local_size) == (grid.size - 1, grid.size - 1 + p, p + 1)
    assert (basis.degree, basis.smoothness) == (p, p - 1)
    expected = BSpline.design_matrix(s, knots, p).toarray()
    np.testing.assert_allclose(basis.design_matrix(s).toarray(), expected, atol=4e-15)
    np.testing.assert_allclose(dense(basis, s), expected, atol=4e-15)
    # the second derivative of quadratics jumps at grid points, where either side is right: stay away from them
    inside = s[grid.size :]
    for derivative in (1, 2):
        exact = BSpline(knots, np.eye(basis.n_dofs), p).derivative(derivative)(inside)
        got = dense(basis, inside, derivative)
        np.testing.assert_allclose(got, exact, atol=1e-13 * np.abs(exact).max())


def test_the_smallest_values_keep_their_relative_accuracy_on_graded_grids():
    """On its first cell a B-spline of simple knots 0 < h < 1 < 2 < 3 is s^3 / (h 1 2), however small h is."""
    h = 1e-7
    s = h * np.array([1e-3, 0.3, 1.0])
    values = dense(line([0.0, h, 1.0, 2.0, 3.0], 3), s)[:, 3]
    np.testing.assert_allclose(values, s**3 / (2 * h), rtol=1e-12)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("grid", "p"), PLACES, ids=IDS)
def test_functions_are_a_non_negative_partition_of_unity(grid, p, flat):
    basis = line(grid, p, flat=flat)
    values = dense(basis, points_on(grid))
    np.testing.assert_allclose(values.sum(axis=1), 1.0, atol=1e-14)
    assert values.min() > -1e-15
    ends = dense(basis, grid[[0, -1]])
    np.testing.assert_allclose(ends, np.eye(basis.n_dofs)[[0, -1]], atol=1e-15)
    # so functions stay between their lowest and highest coefficient
    coefficients = np.random.default_rng(1).uniform(0.0, 1.0, basis.n_dofs)
    f = values @ coefficients
    assert coefficients.min() - 1e-14 <= f.min() <= f.max() <= coefficients.max() + 1e-14


@pytest.mark.parametrize(("grid", "p"), PLACES, ids=IDS)
def test_nodes_are_greville_points_where_linear_functions_are_their_own_coefficients(grid, p):
    basis = line(grid, p)
    assert (basis.nodes[0], basis.nodes[-1]) == (grid[0], grid[-1])
    assert (np.diff(basis.nodes) > 0).all()
    s = points_on(grid)
    np.testing.assert_allclose(dense(basis, s) @ basis.nodes, s, atol=1e-14 * np.abs(grid).max())


def cell_derivatives(basis, coefficients, derivative):
    """That derivative at the left and right end of every cell, of the polynomial of degree p through its values."""
    p, m = basis.degree, basis.n_cells
    xi = (1 - np.cos(np.pi * np.arange(p + 1) / p)) / 2
    cells = np.repeat(np.arange(m), p + 1)
    values = np.einsum(
        "nl,nl->n", basis.tabulate(cells, np.tile(xi, m), 0)[:, 0], coefficients[basis.cell_dofs[cells]]
    ).reshape(m, -1)
    powers = np.linalg.solve(np.vander(xi, increasing=True), values.T)
    polynomials = [np.polynomial.Polynomial(column).deriv(derivative) for column in powers.T]
    ends = np.array([polynomial(np.array([0.0, 1.0])) for polynomial in polynomials])
    return ends / basis.widths[:, None] ** derivative


@pytest.mark.parametrize("p", DEGREES)
def test_all_derivatives_below_the_degree_are_continuous_and_that_of_the_degree_jumps(p):
    basis = line(GRIDS["uneven"], p)
    coefficients = np.random.default_rng(2).standard_normal(basis.n_dofs)
    for derivative in range(p + 1):
        ends = cell_derivatives(basis, coefficients, derivative)
        jumps, size = np.abs(ends[1:, 0] - ends[:-1, 1]), np.abs(ends).max()
        if derivative < p:
            assert jumps.max() < 1e-11 * size, derivative
        else:
            assert jumps.min() > 1e-3 * size, derivative


@pytest.mark.parametrize("p", DEGREES)
def test_flat_splines_are_the_splines_of_slope_zero_at_both_ends(p):
    grid = GRIDS["uneven"]
    plain, flat = line(grid, p), line(grid, p, flat=True)
    assert flat.n_dofs == plain.n_dofs - 2 == flat.nodes.size
    s = points_on(grid)
    coefficients = np.random.default_rng(3).standard_normal(flat.n_dofs)
    as_plain = np.concatenate([coefficients[:1], coefficients, coefficients[-1:]])
    for derivative in range(3):
        got = dense(flat, s, derivative) @ coefficients
        np.testing.assert_allclose(got, dense(plain, s, derivative) @ as_plain, atol=1e-11)
    np.testing.assert_allclose(dense(flat, grid[[0, -1]], 1) @ coefficients, 0.0, atol=1e-12)
    assert np.abs(dense(plain, grid[[0, -1]], 1) @ plain.nodes).min() > 0.9  # others have slopes
    np.testing.assert_allclose(flat.at_nodes(flat.interpolate(coefficients)), coefficients, atol=1e-13)
    merge = np.zeros((plain.n_dofs, flat.n_dofs))
    merge[np.arange(plain.n_dofs), np.clip(np.arange(plain.n_dofs) - 1, 0, flat.n_dofs - 1)] = 1.0
    np.testing.assert_allclose(flat.mass().toarray(), merge.T @ plain.mass().toarray() @ merge, atol=1e-14)
    one = line([0.0, 1.0], p, flat=True)
    assert one.n_dofs == p - 1
    np.testing.assert_allclose(one.interpolate(np.full(p - 1, 3.0)), 3.0, rtol=1e-14)


def scaled_condition(matrix):
    root = np.sqrt(np.diag(matrix))
    return float(np.linalg.cond(matrix / root / root[:, None]))


@pytest.mark.parametrize("p", DEGREES)
def test_conditioning_depends_neither_on_place_nor_on_cell_size(p):
    coarse = scaled_condition(line(np.linspace(0.0, 1.0, 17), p).mass().toarray())
    assert coarse < 500
    for grid in (10.0 + np.linspace(0.0, 1.0, 17), 1e-6 * np.linspace(0.0, 1.0, 17), np.linspace(-3.0, 5.0, 65)):
        assert scaled_condition(line(grid, p).mass().toarray()) == pytest.approx(coarse, rel=0.05)
    collocations = [line(grid, p) for grid in GRIDS.values()]
    assert max(np.linalg.cond(basis.design_matrix(basis.nodes).toarray()) for basis in collocations) < 20


# ---------------------------------------------------------------------------------------------------- boxes


def wave(x):
    return np.sin(x @ np.array([2.5, 1.4, 1.0])[: x.shape[-1]] + 0.3)


def errors_of(make, f, cells, dim, degree, gradient=None):
    """L2 errors of values (and gradients) in f on [10, 11]^dim."""
    rows = []
    for n in cells:
        basis = spatial_basis([np.linspace(10.0, 11.0, n + 1)] * dim, f"B{degree}")
        coefficients = make(basis)
        rule = basis.quadrature(2 * degree + 2)
        points = rule.x.reshape(-1, dim)
        w = (rule.det * rule.weights).ravel()
        row = [np.sqrt(((evaluate(basis, coefficients, points) - f(points)) ** 2) @ w)]
        if gradient is not None:
            error = evaluate(basis, coefficients, points, 1) - gradient(points)
            row.append(np.sqrt((error**2).sum(axis=1) @ w))
        rows.append(row)
    return np.array(rows).T


@pytest.mark.parametrize(
    "make", [lambda b: b.project(wave), lambda b: b.interpolate(wave(b.nodes))], ids=["L2", "nodes"]
)
@pytest.mark.parametrize(("dim", "cells"), [(1, (8, 16, 32)), (2, (8, 12, 16, 24))])
@pytest.mark.parametrize("p", DEGREES)
def test_projection_and_interpolation_have_the_orders_of_the_class(p, dim, cells, make):
    direction = np.array([2.5, 1.4, 1.0])[:dim]

    def gradient(x):
        return np.cos(x @ direction + 0.3)[:, None] * direction

    values, gradients = errors_of(make, wave, cells, dim, p, gradient)
    sizes = 1.0 / np.array(cells)
    assert slope(sizes, values) == pytest.approx(p + 1, abs=0.15)
    assert slope(sizes, gradients) == pytest.approx(p, abs=0.15)


@pytest.mark.parametrize("p", DEGREES)
def test_a_kink_costs_the_order(p):
    """|x - c|^{1.1} is in H^s for s < 1.6 only, whatever the degree."""
    cells = (8, 16, 32, 64, 128)

    def f(x):
        return np.abs(x[..., 0] - 10.0 - 1 / 3) ** 1.1

    (values,) = errors_of(lambda b: b.project(f), f, cells, 1, p)
    assert slope(1.0 / np.array(cells), values) == pytest.approx(1.6, abs=0.15)


@pytest.mark.parametrize("p", DEGREES)
def test_values_taken_for_coefficients_have_order_two_only(p):
    cells = (8, 16, 32, 64)
    (values,) = errors_of(lambda b: wave(b.nodes), wave, cells, 1, p)
    assert slope(1.0 / np.array(cells), values) == pytest.approx(2.0, abs=0.15)


def test_interpolation_reaches_rounding_far_from_the_origin():
    basis = spatial_basis([np.linspace(10.0, 11.0, 129)] * 2, "B4")
    x = np.random.default_rng(4).uniform(10.0, 11.0, (2000, 2))
    np.testing.assert_allclose(evaluate(basis, basis.interpolate(wave(basis.nodes)), x), wave(x), atol=1e-11)


def test_a_box_of_splines_is_numbered_as_a_product():
    grids = [GRIDS["uneven"], np.array([0.0, 1.0, 3.0])]
    basis = SplineBasis(grids, "B3")
    assert (basis.element, basis.degree, basis.smoothness, basis.kind, basis.n_dofs) == ("B3", 3, 2, "quad", 7 * 5)
    x = np.random.default_rng(5).uniform([0.0, 0.0], [1.4, 3.0], (50, 2))
    factors = [axis.design_matrix(x[:, k]).toarray() for k, axis in enumerate(basis.axes)]
    coefficients = np.random.default_rng(6).standard_normal(basis.n_dofs)
    expected = np.einsum("ni,nj,ij->n", *factors, coefficients.reshape(7, 5))
    np.testing.assert_allclose(evaluate(basis, coefficients, x), expected, atol=1e-13)
    mesh = box_mesh(Box([0.0, 0.0], [1.0, 1.0]), (3, 2), "quad", grading=lambda s: s**2)
    on_mesh = spatial_basis(mesh, "B2")
    assert isinstance(on_mesh, SplineBasis)
    np.testing.assert_array_equal(on_mesh.axes[0].points, np.unique(mesh.p[0]))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("p", DEGREES)
def test_flat_boxes_reflect_at_every_face(p, dim):
    basis = SplineBasis([np.linspace(0.0, 1.0, 5) ** 1.3] * dim, f"B{p}", flat=True)
    assert (basis.degree, basis.smoothness, basis.axes[0].smoothness) == (p, p - 1, p - 1)
    assert basis.reflecting_dofs().size == 0
    coefficients = np.random.default_rng(7).standard_normal(basis.n_dofs)
    for k, side in product(range(dim), (0.0, 1.0)):
        x = np.random.default_rng(8).uniform(0.0, 1.0, (20, dim))
        x[:, k] = side
        gradients = evaluate(basis, coefficients, x, 1)
        np.testing.assert_allclose(gradients[:, k], 0.0, atol=1e-12)
        if dim > 1:
            assert np.abs(np.delete(gradients, k, axis=1)).max() > 0.1
    np.testing.assert_allclose(basis.at_nodes(basis.interpolate(coefficients)), coefficients, atol=1e-12)


@pytest.mark.parametrize("p", DEGREES)
def test_flat_splines_have_full_order_where_normal_slopes_vanish_and_not_elsewhere(p):
    cells, orders = (16, 32, 64), {}
    x = np.linspace(0.0, 1.0, 2001)[:, None]
    for name, f in (
        ("flat", lambda x: np.cos(2 * np.pi * x[..., 0]) + np.cos(np.pi * x[..., 0])),
        ("steep", lambda x: np.sin(np.pi * x[..., 0] + 0.4)),
    ):
        errors = {"project": [], "interpolate": []}
        for n in cells:
            basis = SplineBasis([np.linspace(0.0, 1.0, n + 1)], f"B{p}", flat=True)
            for how, c in (("project", basis.project(f)), ("interpolate", basis.interpolate(f(basis.nodes)))):
                errors[how].append(np.sqrt(((evaluate(basis, c, x) - f(x)) ** 2).mean()))
        orders[name] = {how: slope(1.0 / np.array(cells), e) for how, e in errors.items()}
    for how in ("project", "interpolate"):
        assert orders["flat"][how] == pytest.approx(p + 1, abs=0.15)
        assert orders["steep"][how] == pytest.approx(1.5, abs=0.15)


# ------------------------------------------------------------------------------------------- space and time


def make_space(element="B3", dim=1, *, problem=None, **changes):
    settings = {
        "cells": 4,
        "time_cells": 5,
        "time_degree": 2,
        "time_smooth": True,
        "box": Box([-1.0] * dim, [2.0] * dim),
    }
    return Space(zoo.get("lq", dim=dim) if problem is None else problem, element=element, **{**settings, **changes})


@pytest.mark.parametrize("p", DEGREES)
def test_time_interpolation_solves_the_collocation(p):
    x, sizes = np.zeros((300, 1)), (8, 16, 32)
    errors, raw = [], []
    for n in sizes:
        space = make_space("B2", time_cells=n, time_degree=p)
        t = np.linspace(0.0, space.horizon, 300)
        f = space.interpolate(lambda t, x: np.full(len(x), np.sin(1 + 4 * t)))
        errors.append(np.abs(space.evaluate(f, t, x) - np.sin(1 + 4 * t)).max())
        values = np.sin(1 + 4 * space.time.nodes)[:, None] * np.ones(space.spatial.n_dofs)
        raw.append(np.abs(space.evaluate(values, t, x) - np.sin(1 + 4 * t)).max())
    assert slope(1.0 / np.array(sizes), errors) == pytest.approx(p + 1, abs=0.15)
    assert slope(1.0 / np.array(sizes), raw) == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("p", DEGREES)
def test_only_the_first_and_the_last_time_dof_are_seen_at_the_ends(p):
    space = make_space(time_degree=p)
    assert (space.time.kind, space.time.n_dofs) == (f"B{p}", 5 + p)
    c = np.random.default_rng(9).standard_normal(space.shape)
    x = np.linspace(-1.0, 2.0, 7)[:, None]
    for t, k in ((0.0, 0), (space.horizon, -1)):
        single = np.zeros_like(c)
        single[k] = c[k]
        np.testing.assert_allclose(space.evaluate(c, t, x), space.evaluate(single, t, x), atol=1e-14)


def test_polynomials_in_time_and_space_are_exact_with_all_derivatives():
    space = make_space("B4", 2, time_degree=4)
    c = space.interpolate(lambda t, x: (1 + t) ** 4 * x[:, 0] ** 2 * x[:, 1] ** 4)
    rng = np.random.default_rng(10)
    t, x = rng.uniform(0, space.horizon, 30), rng.uniform(-1, 2, (30, 2))
    a, b, time = x[:, 0], x[:, 1], (1 + t) ** 4
    value, rate, gradient, hessian = space.derivatives(c, t, x, ("value", "time", "gradient", "hessian"))
    np.testing.assert_allclose(value, time * a**2 * b**4, atol=1e-10)
    np.testing.assert_allclose(rate, 4 * (1 + t) ** 3 * a**2 * b**4, atol=1e-9)
    np.testing.assert_allclose(gradient, time[:, None] * np.stack([2 * a * b**4, 4 * a**2 * b**3], -1), atol=1e-9)
    mixed = time * 8 * a * b**3
    expected = np.stack([time * 2 * b**4, mixed, mixed, time * 12 * a**2 * b**2], -1).reshape(30, 2, 2)
    np.testing.assert_allclose(hessian, expected, atol=1e-8)


def test_smooth_time_goes_with_any_smooth_element():
    assert make_space("hermite").time.kind == "B2"
    assert make_space("B2", time_smooth=False, time_degree=3).time.kind == "P3"
    assert "5 B2 cells on [0" in repr(make_space())


def test_spaces_on_reflecting_boxes_are_flat_and_others_are_not():
    reflected = zoo.get("reflected", dim=2)
    space = make_space("B3", 2, problem=reflected, box=None)
    assert isinstance(space.spatial, SplineBasis)
    assert space.spatial.flat
    assert space.spatial.reflecting_dofs().size == 0
    assert not make_space("B3", 2).spatial.flat


def test_a_solution_knows_its_lowest_value_which_is_no_coefficient():
    problem, of = zoo.get("lq"), Gauge(temperature=0.7, horizon=zoo.get("lq").horizon, terminal=0.0, running=0.0)
    space = make_space("B3", cells=48, time_cells=24, time_degree=3, box=Box([-1.0], [1.0]))

    def f(t, x):
        return 1.2 + np.sin(5.0 * np.asarray(x)[..., 0] + 2.0 * t)

    s = Solution(
        problem=problem, space=space, coefficients=space.interpolate(f), gauge=of, method="interpolation", status="ok"
    )
    nodes = np.array([s.f(t, space.spatial.nodes) for t in space.time.nodes])
    assert s.minimum_f == pytest.approx(nodes.min(), rel=1e-12)
    assert s.minimum_f == pytest.approx(0.2, abs=0.01)
    assert np.asarray(s.coefficients).min() < s.minimum_f - 1e-3  # the hull of the coefficients is wider
    t, x = np.random.default_rng(11).uniform(0, 0.5, 40), np.random.default_rng(12).uniform(-1, 1, (40, 1))
    value = f(t, x)
    slopes = 0.7 * 5.0 * np.cos(5.0 * x[:, 0] + 2.0 * t) / value
    np.testing.assert_allclose(s.f(t, x), value, atol=2e-5)
    np.testing.assert_allclose(s.gradient(t, x)[:, 0], slopes, atol=5e-3)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"strictly increasing array", lambda: line([0.0, 0.0, 1.0], 3)),
        (r"kind of a LineBasis must be one of .*'B4', got 'B5'", lambda: line([0.0, 1.0], 5)),
        (r"flat=True is for B-splines.*got kind 'P2'; leave out", lambda: LineBasis([0.0, 1.0], "P2", flat=True)),
        (r"flat=True is for B-splines.*'hermite'", lambda: LineBasis([0.0, 1.0], "hermite", flat=True)),
        (r"order must be 0, 1 or 2, got 3", lambda: line([0.0, 1.0], 3).tabulate(np.zeros(1, int), np.zeros(1), 3)),
        (r"kind 'B3' are not the same on all cells.*tabulate", lambda: line([0.0, 1.0], 3).reference(np.zeros(1))),
        (
            r"2 of 3 points lie outside the interval \[0.0, 1.0\]",
            lambda: line([0.0, 1.0], 2).design_matrix([-1, 0.5, 2]),
        ),
        (r"shape \(4, ...\), got \(3, 2\)", lambda: line([0.0, 1.0], 3).interpolate(np.ones((3, 2)))),
        (r"shape \(2, ...\), got \(\)", lambda: LineBasis([0.0, 1.0], "P1").interpolate(1.0)),
        (r"must be one of 'B2', 'B3', 'B4', got 'hermite'", lambda: SplineBasis([[0.0, 1.0]], "hermite")),
        (r"a box of B-splines has 1, 2 or 3 axes, got 4 grids", lambda: SplineBasis([[0.0, 1.0]] * 4, "B2")),
        (r"shape \(..., 5\), got \(4,\)", lambda: SplineBasis([[0.0, 1.0, 2.0]], "B3").interpolate(np.ones(4))),
        (r"'B3' is smooth on boxes only, got a mesh of 2 tri", lambda: spatial_basis(skfem.MeshTri(), "B3")),
        (r"'B2' needs a list of one grid per axis, got int", lambda: spatial_basis(3, "B2")),
        (r"'B3' is not defined in dimension 4", lambda: make_space("B3", 4)),
        (r"time_degree must be 2, 3 or 4 with time_smooth=True, got 1", lambda: make_space(time_degree=1)),
        (r"time_degree must be 2, 3 or 4 with time_smooth=True, got 5", lambda: make_space(time_degree=5)),
        (r"time_degree must be 1, 2 or 3, got 4", lambda: make_space(time_degree=4, time_smooth=False)),
        (r"time_smooth must be True or False, got 'B3'", lambda: make_space(time_smooth="B3")),
        (r"smooth element in space.*got 'P2'.*leave out time_smooth=", lambda: make_space("P2")),
        (
            r"P1..P4 or B2..B4, not flat, .* got flat 'B2'",
            lambda: Space.product(line([0.0, 1.0], 2, flat=True), SplineBasis([[0.0, 1.0]], "B2")),
        ),
        (
            r"P1..P4 or B2..B4, .* got 'hermite'",
            lambda: Space.product(LineBasis([0.0, 1.0], "hermite"), SplineBasis([[0.0, 1.0]], "B2")),
        ),
        (r"on a grid that starts at 0, got one from 1", lambda: Space.product(line([1.0, 2.0], 2), _plain("B2"))),
        (r"B-splines are classes for `fit`.*element='B3'", lambda: solve_on_mesh(zoo.get("lq"), element="B3", cells=8)),
        (
            r"B-splines differ from cell to cell.*use element='hermite'",
            lambda: MeshOperators(
                zoo.get("lq"), _plain("B3"), Gauge(temperature=1.0, horizon=1.0, terminal=0.0, running=0.0)
            ),
        ),
    ],
)
def test_bad_input_is_refused(message, call):
    with pytest.raises(SpaceError, match=message):
        call()


def _plain(element):
    return SplineBasis([[0.0, 1.0, 2.0]], element)
