"""Bases in time and space, their products, and evaluation anywhere; the registry's tests pick new elements up."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
import skfem

from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import DIMENSION
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.spaces.line import LINE_KINDS
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import ELEMENTS, HermiteBasis, LineBasis, MeshBasis, Space, SplineBasis, spatial_basis
from fem_hjb.spaces.tensor import TensorBasis
from fem_hjb.support.errors import DomainError, ProblemError, SpaceError

PAIRS = [(name, kind) for name, element in ELEMENTS.items() for kind in element.kinds]
LAGRANGE = [pair for pair in PAIRS if ELEMENTS[pair[0]].smoothness == 0]


def make_problem(dim=1, **changes):
    settings = {
        "dim": dim,
        "horizon": 2.0,
        "temperature": 0.7,
        "drift": LinearDrift(-np.eye(dim), np.zeros(dim)),
        "diffusion": 1.0,
        "terminal_reward": lambda x: -(x**2).sum(-1) / 2,
        "initial_law": Gaussian(np.zeros(dim), 0.3),
    }
    return ControlProblem(**{**settings, **changes})


def box_of(dim, lower=-1.0, upper=2.0):
    return Box(np.full(dim, lower), np.full(dim, upper))


def rough_basis(name, kind, rng):
    """On a graded mesh; Lagrange quads and hexes are moved off the grid, so that their cells are not affine."""
    dim = DIMENSION[kind]
    mesh = box_mesh(box_of(dim), 4 if dim < 3 else 3, kind, grading=lambda s: s**1.4)
    if kind in ("quad", "hex") and not ELEMENTS[name].smoothness:
        p = mesh.p.copy()
        inner = np.setdiff1d(np.arange(p.shape[1]), mesh.boundary_nodes())
        p[:, inner] += 0.06 * rng.uniform(-1, 1, (dim, inner.size))
        mesh = type(mesh)(p, mesh.t)
    return spatial_basis(mesh, name)


def evaluate(basis, coefficients, x, order=0):
    cells, xi = basis.locate(x)
    assert (cells >= 0).all()
    table = basis.tabulate(cells, xi, order)[order]
    return np.einsum("nl,nl...->n...", coefficients[basis.cell_dofs[cells]], table)


def slope(sizes, errors):
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if ELEMENTS[pair[0]].smoothness])
def test_sums_axis_by_axis_are_those_of_the_tables(name, kind, order):
    rng = np.random.default_rng(6)
    basis = rough_basis(name, kind, rng)
    cells, xi = basis.locate(rng.uniform(-1.0, 2.0, (40, basis.dim)))
    local = rng.standard_normal((40, basis.local_size))
    found = basis.contract(local, cells, xi, order)
    assert [part.shape for part in found] == [(40, *[basis.dim] * k) for k in range(order + 1)]
    for part, table in zip(found, basis.tabulate(cells, xi, order), strict=True):
        expected = np.einsum("nl,nl...->n...", local, table)
        np.testing.assert_allclose(part, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


# ------------------------------------------------------------------------------------------------ the line


@pytest.mark.parametrize("kind", LINE_KINDS)
def test_line_basis_reproduces_its_polynomials_with_derivatives(kind):
    basis = LineBasis([0.0, 0.1, 0.5, 0.6, 1.4], kind)
    p = np.polynomial.Polynomial(np.arange(1.0, basis.degree + 2))
    if kind == "hermite":
        coefficients = np.stack([p(basis.points), basis.node_widths * p.deriv()(basis.points)], -1).ravel()
    else:
        coefficients = basis.interpolate(p(basis.nodes))
    np.testing.assert_allclose(basis.at_nodes(coefficients), p(basis.nodes), atol=1e-12)
    s = np.linspace(0.0, 1.4, 41)
    cells, xi = basis.locate(s)
    table = basis.tabulate(cells, xi, 2)
    got = np.einsum("nkl,nl->kn", table, coefficients[basis.cell_dofs[cells]])
    for derivative in range(3):
        np.testing.assert_allclose(got[derivative], p.deriv(derivative)(s) if derivative else p(s), atol=1e-11)


@pytest.mark.parametrize("kind", LINE_KINDS)
def test_line_mass_integrates_products(kind):
    basis = LineBasis([0.0, 0.3, 0.5, 2.0], kind)
    points, weights = basis.quadrature(2 * basis.degree)
    assert weights.sum() == pytest.approx(2.0)
    cells, xi = basis.locate(points.ravel())
    phi = np.zeros((cells.size, basis.n_dofs))
    np.put_along_axis(phi, basis.cell_dofs[cells], basis.tabulate(cells, xi, 0)[:, 0], axis=1)
    np.testing.assert_allclose(basis.mass().toarray(), phi.T @ (weights.ravel()[:, None] * phi), atol=1e-14)


def test_line_basis_locates_ends_grid_points_and_outside():
    basis = LineBasis([0.0, 1.0, 3.0], "P1")
    cells, xi = basis.locate([0.0, 1.0, 3.0, 3.0 + 1e-12, -0.1, 3.1])
    assert cells.tolist() == [0, 1, 1, 1, -1, -1]
    assert xi[:4].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_hermite_conditioning_does_not_depend_on_the_mesh_size():
    def condition(grid):
        mass = LineBasis(grid, "hermite").mass().toarray()
        scale = np.sqrt(np.diag(mass))
        return np.linalg.cond(mass / scale[:, None] / scale)

    coarse = condition(np.linspace(0.0, 1.0, 17))
    assert coarse < 100
    assert condition(1e-6 * np.linspace(0.0, 1.0, 65)) == pytest.approx(coarse, rel=0.05)
    slopes = HermiteBasis([np.geomspace(1e-3, 1.0, 40)])
    assert 0.5 < slopes.quadrature(2).scale.min() < slopes.quadrature(2).scale.max() < 2.0


# ------------------------------------------------------------------------------------------- every element


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_polynomials_of_its_degree_are_reproduced(name, kind):
    basis = rough_basis(name, kind, np.random.default_rng(0))
    p, x = ELEMENTS[name].degree, np.random.default_rng(1).uniform(-1, 2, (400, basis.dim))
    direction = np.array([0.5, -0.3, 0.4])[: basis.dim]

    def polynomial(x):
        return (x @ direction + 0.7) ** p

    interpolant = basis.interpolate(polynomial(basis.nodes))
    np.testing.assert_allclose(evaluate(basis, interpolant, x), polynomial(x), atol=2e-12)
    expected = p * (x @ direction + 0.7)[:, None] ** (p - 1) * direction
    np.testing.assert_allclose(evaluate(basis, interpolant, x, 1), expected, atol=2e-11)
    np.testing.assert_allclose(basis.project(polynomial), interpolant, atol=1e-10)
    np.testing.assert_allclose(basis.at_nodes(interpolant), polynomial(basis.nodes), rtol=1e-7, atol=1e-12)
    both = basis.interpolate(np.stack([polynomial(basis.nodes), -2 * polynomial(basis.nodes)]))
    np.testing.assert_allclose(both, [interpolant, -2 * interpolant], atol=1e-11)
    np.testing.assert_allclose(basis.at_nodes(both)[1], -2 * polynomial(basis.nodes), atol=1e-11)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_derivatives_are_those_of_finite_differences(name, kind):
    rng = np.random.default_rng(2)
    basis = rough_basis(name, kind, rng)
    coefficients = rng.standard_normal(basis.n_dofs)
    rule = basis.quadrature(1)
    x, h = rule.x[:, 0], 1e-6 * rule.det.min() ** (1 / basis.dim)
    cells, xi = basis.locate(x)
    for order in range(1, 2 + min(basis.smoothness, 1)):
        exact = np.einsum(
            "nl,nl...->n...", coefficients[basis.cell_dofs[cells]], basis.tabulate(cells, xi, order)[order]
        )
        for k, unit in enumerate(np.eye(basis.dim)):
            sides = [evaluate(basis, coefficients, x + sign * h * unit, order - 1) for sign in (1, -1)]
            difference = (sides[0] - sides[1]) / (2 * h)
            np.testing.assert_allclose(exact[..., k], difference, atol=1e-6 * np.abs(exact).max())


def face_points(basis, rng):
    """Points on interior faces with a unit normal each."""
    if isinstance(basis, TensorBasis):
        points, normals = [], []
        for k, axis in enumerate(basis.axes):
            for s in axis.points[1:-1]:
                x = rng.uniform(-1, 2, (20, basis.dim))
                x[:, k] = s
                points.append(x)
                normals.append(np.tile(np.eye(basis.dim)[k], (20, 1)))
        return np.concatenate(points), np.concatenate(normals)
    mesh = basis.mesh
    inner = np.flatnonzero(mesh.f2t[1] >= 0)
    if basis.dim == 1:
        return mesh.p[:, mesh.facets[0, inner]].T, np.ones((inner.size, 1))
    corners = mesh.p.T[mesh.facets[:, inner].T]
    weights = rng.dirichlet(np.ones(corners.shape[1]), size=inner.size)
    if basis.kind == "hex":  # their faces are not flat: stay on the edges, which are shared and straight
        weights[:, 2:] = 0.0
        weights /= weights.sum(axis=1, keepdims=True)
    x = np.einsum("nk,nkd->nd", weights, corners)
    normal = mesh.p.T[mesh.t.T].mean(axis=1)[mesh.f2t[0, inner]] - mesh.p.T[mesh.t.T].mean(axis=1)[mesh.f2t[1, inner]]
    return x, normal / np.linalg.norm(normal, axis=1, keepdims=True)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_functions_are_as_smooth_across_faces_as_the_registry_says(name, kind):
    rng = np.random.default_rng(3)
    basis = rough_basis(name, kind, rng)
    coefficients = rng.standard_normal(basis.n_dofs)
    x, normal = face_points(basis, rng)
    step = 1e-8 * normal
    for order in range(2):
        one, other = (evaluate(basis, coefficients, x + sign * step, order) for sign in (1, -1))
        jump, size = np.abs(one - other).max(), np.abs(one).max()
        assert (jump < 1e-5 * size) == (order <= basis.smoothness), (order, jump, size)


def at_rule(basis, coefficients, rule):
    """Values (nc, q) and gradients (nc, q, d) at the points of a rule, in chunks of cells."""
    q, step = len(rule.weights), max(1, (1 << 22) // (len(rule.weights) * basis.local_size * (1 + basis.dim)))
    parts = []
    for start in range(0, basis.n_cells, step):
        cells = np.arange(start, min(start + step, basis.n_cells))
        tables = basis.tabulate(np.repeat(cells, q), np.tile(rule.xi, (cells.size, 1)), 1)
        local = np.repeat(coefficients[basis.cell_dofs[cells]], q, axis=0)
        parts.append([np.einsum("nl,nl...->n...", local, table) for table in tables])
    values, gradients = (np.concatenate(part) for part in zip(*parts, strict=True))
    return values.reshape(-1, q), gradients.reshape(-1, q, basis.dim)


LEVELS = {"line": (16, 32, 64), "tri": (8, 16, 32), "quad": (8, 16, 32), "tet": (6, 9, 12), "hex": (7, 10, 14)}


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair != ("B4", "hex")])  # which takes longest
def test_interpolation_converges_with_the_orders_of_the_registry(name, kind):
    element, dim = ELEMENTS[name], DIMENSION[kind]
    direction = np.array([1.0, 0.8, 0.6])[:dim]
    errors = []
    for cells in LEVELS[kind]:
        basis = spatial_basis(box_mesh(box_of(dim, 0.0, 1.0), cells, kind), name)
        coefficients = basis.interpolate(np.sin(basis.nodes @ direction + 0.3))
        rule = basis.quadrature(2 * element.degree + (2 if dim < 3 else 0))
        phase = rule.x @ direction + 0.3
        values, slopes = at_rule(basis, coefficients, rule)
        value = (values - np.sin(phase)) ** 2
        gradient = ((slopes - np.cos(phase)[..., None] * direction) ** 2).sum(axis=-1)
        errors.append([np.sqrt(((e * rule.det) @ rule.weights).sum()) for e in (value, gradient)])
    widths = 1.0 / np.array(LEVELS[kind])
    values, gradients = np.array(errors).T
    assert slope(widths, values) == pytest.approx(element.value_order, abs=0.15)
    assert slope(widths, gradients) == pytest.approx(element.gradient_order, abs=0.15)


@pytest.mark.parametrize("kind", DIMENSION)
def test_quadrature_has_its_degree_positive_weights_and_inner_points(kind):
    basis = spatial_basis(
        box_mesh(box_of(DIMENSION[kind], 0.0, 1.0), 1, kind), "Q1" if kind in ("quad", "hex") else "P1"
    )
    for degree in range(23 if kind == "tri" else 13):
        rule = basis.quadrature(degree)
        assert rule.weights.min() > 0
        assert rule.xi.min() > 0
        assert (rule.xi.sum(axis=1) if kind in ("tri", "tet") else rule.xi).max() < 1
        for direction in (np.array([1.0, 0.7, 0.4]), np.array([0.2, -0.6, 1.0])):
            powers = (rule.x @ direction[: basis.dim]) ** degree
            # the integral of (a . x)^k over the unit cube, from its d-fold primitive at the corners
            primitive = np.polynomial.Polynomial.basis(degree).integ(basis.dim)
            corners = np.array(list(product((0, 1), repeat=basis.dim)))
            signs = (-1.0) ** (basis.dim - corners.sum(axis=1))
            exact = (signs * primitive(corners @ direction[: basis.dim])).sum() / direction[: basis.dim].prod()
            assert (powers * rule.det * rule.weights).sum() == pytest.approx(exact, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_quadrature_is_exact_and_agrees_with_tabulate(name, kind):
    basis = rough_basis(name, kind, np.random.default_rng(4))
    rule = basis.quadrature(4)
    volume = 3.0**basis.dim
    assert ((rule.det * np.ones_like(rule.x[..., 0])) @ rule.weights).sum() == pytest.approx(volume, rel=1e-12)
    # det of a trilinear map has degree 2 in each coordinate, a linear function of x adds 1: the rule integrates both
    first = (rule.x[..., 0] * rule.det) @ rule.weights
    assert first.sum() == pytest.approx(0.5 * volume, rel=1e-12)
    if getattr(basis, "affine", True):
        fourth = (rule.x[..., 0] ** 4 * rule.det) @ rule.weights
        assert fourth.sum() == pytest.approx((2.0**5 + 1.0) / 5.0 * 3.0 ** (basis.dim - 1), rel=1e-12)
    cells = np.repeat(np.arange(basis.n_cells), len(rule.xi))
    found, xi = basis.locate(rule.x.reshape(-1, basis.dim))
    np.testing.assert_array_equal(found, cells)
    np.testing.assert_allclose(xi, np.tile(rule.xi, (basis.n_cells, 1)), atol=1e-9)
    if isinstance(basis, SplineBasis):
        for name in ("phi", "dphi", "scale"):
            with pytest.raises(SpaceError, match=r"B-splines differ from cell to cell.*tabulate the basis"):
                getattr(rule, name)
        return
    values, gradients = basis.tabulate(cells, np.tile(rule.xi, (basis.n_cells, 1)), 1)
    scale = np.ones((basis.n_cells, basis.local_size)) if rule.scale is None else rule.scale
    assembled = np.einsum("cl,lq->cql", scale, rule.phi).reshape(values.shape)
    np.testing.assert_allclose(assembled, values, atol=1e-13)
    inverse = np.broadcast_to(rule.inverse, (*rule.x.shape, basis.dim))
    assembled = np.einsum("cl,lqk,cqkd->cqld", scale, rule.dphi, inverse).reshape(gradients.shape)
    np.testing.assert_allclose(assembled, gradients, atol=1e-11)


def largest_on_faces(basis, rng, derivative):
    """The largest value, or normal slope, of every basis function on the faces of the box."""
    n = 1500 * basis.dim
    axis, side = rng.integers(basis.dim, size=n), rng.choice([-1.0, 2.0], size=n)
    x = rng.uniform(-1, 2, (n, basis.dim))
    x[np.arange(n), axis] = side
    cells, xi = basis.locate(x)
    table = basis.tabulate(cells, xi, derivative)[derivative]
    if derivative:
        table = table[np.arange(n), :, axis]
    largest = np.zeros(basis.n_dofs)
    np.maximum.at(largest, basis.cell_dofs[cells], np.abs(table))
    return largest


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_boundary_dofs_are_those_seen_on_the_boundary(name, kind):
    rng = np.random.default_rng(5)
    basis = rough_basis(name, kind, rng)
    seen = largest_on_faces(basis, rng, 0) > 1e-4
    np.testing.assert_array_equal(np.flatnonzero(seen), basis.boundary_dofs())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_reflecting_dofs_are_the_normal_slopes_on_the_faces(name, kind):
    rng = np.random.default_rng(6)
    basis = rough_basis(name, kind, rng)
    if basis.smoothness == 0:
        assert basis.reflecting_dofs().size == 0
        return
    if isinstance(basis, SplineBasis):
        with pytest.raises(SpaceError, match=r"no coefficient of 'B\d' is a slope.*flat=True"):
            basis.reflecting_dofs()
        return
    seen = largest_on_faces(basis, rng, 1) > 1e-4
    np.testing.assert_array_equal(np.flatnonzero(seen), basis.reflecting_dofs())


@pytest.mark.parametrize(("name", "kind"), LAGRANGE)
def test_functions_agree_with_those_of_scikit_fem(name, kind):
    dim = DIMENSION[kind]
    if kind == "line" and name in ("P3", "P4"):
        return  # hierarchical there
    basis = MeshBasis(box_mesh(box_of(dim), 2, kind), name)
    element = ELEMENTS[name].cells[kind]()
    xi = np.random.default_rng(6).uniform(0, 1 / dim, (20, dim))
    values, gradients = basis.tabulate(np.zeros(20, dtype=np.int64), xi, 1)
    (inverse,) = basis.quadrature(1).inverse[0]
    for i in range(basis.local_size):
        phi, dphi = element.lbasis(xi.T, i)
        np.testing.assert_allclose(values[:, i], phi * np.ones(20), atol=1e-13)
        np.testing.assert_allclose(gradients[:, i], (np.ones((dim, 20)) * dphi).T @ inverse, atol=1e-12)


def test_triangles_with_unsorted_corners_are_joined_correctly():
    mesh = box_mesh(box_of(2), 3, "tri")
    turned = skfem.MeshTri(mesh.p, np.roll(mesh.t, 1, axis=0), sort_t=False)
    assert (np.diff(turned.t, axis=0) < 0).any()
    basis = MeshBasis(turned, "P4")
    x = np.random.default_rng(7).uniform(-1, 2, (200, 2))
    quartic = basis.interpolate(basis.nodes.sum(axis=1) ** 4)
    np.testing.assert_allclose(evaluate(basis, quartic, x), x.sum(axis=1) ** 4, atol=1e-11)


@pytest.mark.parametrize("corner", [0.0, 10.0])
def test_hermite_has_order_four_down_to_rounding_wherever_the_box_is(corner):
    def f(x):
        return np.sin(2.0 * (x[:, 0] - corner)) * np.cos(x[:, 1] - corner)

    x = corner + np.random.default_rng(8).uniform(0, 1, (4000, 2))
    sizes, errors = (16, 32, 64, 128, 512), []
    for cells in sizes:
        basis = HermiteBasis([np.linspace(corner, corner + 1, cells + 1)] * 2)
        errors.append(np.abs(evaluate(basis, basis.interpolate(f(basis.nodes)), x) - f(x)).max())
    assert slope(1.0 / np.array(sizes), errors) == pytest.approx(4.0, abs=0.15)
    assert errors[-1] < 1e-12


def test_hermite_interpolation_keeps_its_order_on_graded_grids():
    x, sizes, errors = np.linspace(0, 1, 1001)[:, None], (32, 64, 128, 256), []
    for cells in sizes:
        basis = HermiteBasis([np.linspace(0, 1, cells + 1) ** 2])
        errors.append(
            np.abs(evaluate(basis, basis.interpolate(np.sin(3 * basis.nodes[:, 0])), x) - np.sin(3 * x[:, 0])).max()
        )
    assert slope(1.0 / np.array(sizes), errors) == pytest.approx(4.0, abs=0.15)


def test_hermite_lives_on_tensor_meshes_too():
    mesh = box_mesh(box_of(2), (3, 2), "quad", grading=lambda s: s**2)
    basis = spatial_basis(mesh, "hermite")
    assert isinstance(basis, HermiteBasis)
    np.testing.assert_array_equal(basis.axes[0].points, np.unique(mesh.p[0]))


# ------------------------------------------------------------------------------------------- space and time

CLASSES = [("hermite", 1), ("hermite", 2), ("hermite", 3), ("P2", 1), ("P2", 2), ("Q2", 2), ("P1", 3), ("Q1", 3)]
CLASSES += [("B2", 1), ("B3", 2), ("B4", 1), ("B2", 3)]


def make_space(element, dim, **changes):
    settings = {"cells": 4 if dim < 3 else 2, "time_cells": 3, "element": element, "box": box_of(dim)}
    return Space(make_problem(dim), **{**settings, **changes})


@pytest.mark.parametrize(("element", "dim"), CLASSES)
def test_evaluation_is_the_product_of_the_bases(element, dim):
    space = make_space(element, dim)
    rng = np.random.default_rng(9)
    coefficients = rng.standard_normal(space.shape)
    t, x = rng.uniform(0, 2, 50), rng.uniform(-1, 2, (50, dim))
    smooth = space.smoothness > 0
    table = space.tabulate(t, x, 1 + smooth)
    local = coefficients.ravel()[space.cell_dofs(table.cells)]
    names = ["value", "time", "gradient", "hessian"][: 3 + smooth]
    tables = [table.values, table.time_derivatives, table.gradients]
    tables += [table.hessians] if smooth else []
    for name, functions in zip(names, tables, strict=True):
        assert functions.shape[:2] == (50, space.local_size)
        expected = np.einsum("ml,ml...->m...", local, functions)
        np.testing.assert_allclose(space.evaluate(coefficients, t, x, name), expected, atol=1e-11)
        np.testing.assert_allclose(space.evaluate(coefficients.ravel(), t, x, name), expected, atol=1e-11)
        one_by_one = [space.evaluate(coefficients, ti, xi, name) for ti, xi in zip(t, x, strict=True)]
        np.testing.assert_allclose(one_by_one, expected, atol=1e-10)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomials_in_time_and_space_are_exact_with_all_derivatives(degree):
    space = make_space("hermite", 2, time_degree=degree)
    coefficients = space.interpolate(lambda t, x: (1 + t) ** degree * x[:, 0] ** 2 * x[:, 1] ** 3)
    rng = np.random.default_rng(10)
    t, x = rng.uniform(0, 2, (30, 1)), rng.uniform(-1, 2, (7, 2))
    a, b = x[:, 0], x[:, 1]
    time = (1 + t) ** degree
    value, rate, gradient, hessian = space.derivatives(coefficients, t, x, ("value", "time", "gradient", "hessian"))
    np.testing.assert_allclose(value, time * a**2 * b**3, atol=1e-10)
    np.testing.assert_allclose(rate, degree * (1 + t) ** (degree - 1) * a**2 * b**3, atol=1e-9)
    np.testing.assert_allclose(gradient, time[..., None] * np.stack([2 * a * b**3, 3 * a**2 * b**2], -1), atol=1e-9)
    expected = np.stack([2 * b**3, 6 * a * b**2, 6 * a * b**2, 6 * a**2 * b], -1).reshape(7, 2, 2)
    np.testing.assert_allclose(hessian, time[..., None, None] * expected, atol=1e-8)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_time_interpolation_converges_with_order_degree_plus_one(degree):
    x, t = np.zeros((400, 1)), np.linspace(0, 2, 400)
    sizes, errors = (8, 16, 32), []
    for cells in sizes:
        space = make_space("P1", 1, cells=2, time_cells=cells, time_degree=degree)
        coefficients = space.interpolate(lambda t, x: np.full(len(x), np.sin(1 + 2 * t)))
        errors.append(np.abs(space.evaluate(coefficients, t, x) - np.sin(1 + 2 * t)).max())
    assert slope(1.0 / np.array(sizes), errors) == pytest.approx(degree + 1, abs=0.15)


def test_numbering_is_time_major():
    space = make_space("P1", 1, cells=2, time_cells=2, time_degree=1)
    assert (space.shape, space.n_dofs, space.n_cells, space.local_size) == ((3, 3), 9, 4, 4)
    left = np.argsort(space.spatial.nodes[:, 0])
    ids, _ = space.locate(1.5, [[-0.5], [1.5]])
    assert (ids // space.spatial.n_cells).tolist() == [1, 1]
    dofs = space.cell_dofs(ids)
    assert sorted(dofs[0]) == sorted(3 * k + left[j] for k, j in product((1, 2), (0, 1)))
    np.testing.assert_array_equal(space.cell_dofs()[ids], dofs)
    np.testing.assert_array_equal(dofs[:, 2:], dofs[:, :2] + 3)


def test_shapes_broadcast_and_a_scalar_time_is_a_batched_one():
    space = make_space("hermite", 2)
    coefficients = np.random.default_rng(11).standard_normal(space.shape)
    x = np.random.default_rng(12).uniform(-1, 2, (4, 5, 2))
    for derivative, tail in (("value", ()), ("time", ()), ("gradient", (2,)), ("hessian", (2, 2))):
        scalar = space.evaluate(coefficients, 0.7, x, derivative)
        assert scalar.shape == (4, 5, *tail)
        np.testing.assert_allclose(scalar, space.evaluate(coefficients, np.full((4, 5), 0.7), x, derivative), atol=1e-9)
        assert space.evaluate(coefficients, 0.7, x[0, 0], derivative).shape == tail
        assert space.evaluate(coefficients, np.linspace(0, 2, 3)[:, None, None], x, derivative).shape == (
            3,
            4,
            5,
            *tail,
        )
    assert space.evaluate(coefficients, 0.7, x[:0], "gradient").shape == (0, 5, 2)


def test_chunks_do_not_change_the_result_and_bound_the_memory():
    space = make_space("hermite", 3)
    coefficients = np.random.default_rng(13).standard_normal(space.shape)
    x = np.random.default_rng(14).uniform(-1, 2, (60_000, 3))
    tracemalloc.start()
    hessians = space.evaluate(coefficients, 0.5, x, "hessian")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6  # the whole table would take 60000 * 64 * 9 * 8 = 276e6 bytes
    few = [0, 7281, 7282, 33333, 59999]
    np.testing.assert_allclose(hessians[few], space.evaluate(coefficients, 0.5, x[few], "hessian"), atol=1e-9)


def test_points_outside_are_named_or_nan_and_do_not_spoil_the_others():
    space = make_space("P2", 2)
    coefficients = space.interpolate(lambda t, x: x.sum(axis=1))
    x = np.array([[[0.0, 0.5], [3.0, 0.0]], [[1.0, 1.0], [0.0, -5.0]]])
    with pytest.raises(
        DomainError, match=r"2 of 4 points lie outside.*\(0, 1\), \(1, 1\).*x=\[3.0, 0.0\].*outside='nan'"
    ):
        space.evaluate(coefficients, 0.0, x)
    got = space.evaluate(coefficients, 0.0, x, outside="nan")
    np.testing.assert_allclose(got, [[0.5, np.nan], [2.0, np.nan]], atol=1e-14)
    gradient = space.evaluate(coefficients, np.full((2, 2), 0.3), x, "gradient", outside="nan")
    np.testing.assert_array_equal(np.isnan(gradient).all(axis=-1), [[False, True], [False, True]])
    table = space.tabulate(0.3, x.reshape(-1, 2))
    assert table.cells.tolist()[1::2] == [-1, -1]
    assert np.isnan(table.values[1]).all()
    assert np.isfinite(table.values[0]).all()
    with pytest.raises(DomainError, match=r"1 of 1 points lie outside the domain, x=\[9.0, 9.0\]"):
        space.evaluate(coefficients, 0.0, [9.0, 9.0])


def test_the_box_is_found_by_simulation_unless_given():
    automatic = Space(make_problem(1), cells=4, time_cells=2)
    lower, upper = automatic.spatial.box.bounds
    assert lower[0] < -2.5
    assert upper[0] > 2.5
    assert automatic.excluded_mass is not None
    assert 0.0 <= automatic.excluded_mass < 1e-3
    assert make_space("P1", 1).excluded_mass is None
    reflected = Space(make_problem(1, domain=Box([-3.0], [3.0])), cells=4)
    assert reflected.excluded_mass is None
    assert reflected.spatial.box.bounds[0][0] == -3.0


def test_a_mesh_of_ones_own():
    mesh = skfem.MeshTri.init_circle(3).scaled(8.0)
    space = Space(make_problem(2), element="P2", mesh=mesh)
    assert isinstance(space.spatial, MeshBasis)
    assert space.excluded_mass is None
    coefficients = space.interpolate(lambda t, x: t * x[:, 0] ** 2)
    assert space.evaluate(coefficients, 0.5, [1.0, 2.0]) == pytest.approx(0.5)
    assert "P2" in repr(space)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (SpaceError, r"'hermit'; did you mean 'hermite'\?", lambda: make_space("hermit", 1)),
        (SpaceError, r"one of 'P1', .* got 7", lambda: make_space(7, 1)),
        (SpaceError, r"'P3' is not defined in dimension 3; use one of 'P1', 'P2'", lambda: make_space("P3", 3)),
        (SpaceError, r"'Q1' is not defined in dimension 1", lambda: make_space("Q1", 1)),
        (SpaceError, r"not defined in dimension 4; meshes go up to dimension 3", lambda: make_space("P1", 4)),
        (
            SpaceError,
            r"'Q2' is not defined on a mesh of tri cells; use one of 'P1', 'P2', 'P3', 'P4'",
            lambda: spatial_basis(skfem.MeshTri(), "Q2"),
        ),
        (
            SpaceError,
            r"'hermite' is smooth on boxes only, got a mesh of 2 tri cells",
            lambda: spatial_basis(skfem.MeshTri(), "hermite"),
        ),
        (DomainError, r"straight-edged.*got MeshQuad2", lambda: spatial_basis(skfem.MeshQuad2(), "Q2")),
        (SpaceError, r"'P2' needs a scikit-fem mesh, got list", lambda: spatial_basis([[0.0, 1.0]], "P2")),
        (SpaceError, r"one grid per axis, got int", lambda: spatial_basis(3, "hermite")),
        (SpaceError, r"1, 2 or 3 axes, got 4", lambda: HermiteBasis([[0.0, 1.0]] * 4)),
        (SpaceError, r"2 vertices of the mesh belong to no cell", lambda: MeshBasis(_with_loose_vertices(), "P1")),
        (SpaceError, r"strictly increasing array", lambda: LineBasis([0.0, 2.0, 1.0])),
        (SpaceError, r"kind of a LineBasis must be one of 'P1'.*'P9'", lambda: LineBasis([0.0, 1.0], "P9")),
        (
            SpaceError,
            r"order must be 0, 1 or 2",
            lambda: LineBasis([0.0, 1.0]).tabulate(np.zeros(1, int), np.zeros(1), 3),
        ),
        (SpaceError, r"cells must be a positive integer, got 0", lambda: make_space("P1", 1, cells=0)),
        (SpaceError, r"cells must be a positive integer, got -2", lambda: make_space("P1", 2, cells=(3, -2))),
        (DomainError, r"one entry for each of 2 axes", lambda: make_space("hermite", 2, cells=(3, 3, 3))),
        (SpaceError, r"time_cells must be a positive integer, got 2.5", lambda: make_space("P1", 1, time_cells=2.5)),
        (SpaceError, r"time_degree must be 1, 2 or 3, got 4", lambda: make_space("P1", 1, time_degree=4)),
        (
            DomainError,
            r"must be a Box of dimension 2, got one of dimension 1",
            lambda: make_space("P1", 2, box=box_of(1)),
        ),
        (DomainError, r"box must be a Box of dimension 1, got tuple", lambda: make_space("P1", 1, box=(0, 1))),
        (
            DomainError,
            r"corners \[\[-1.0\], \[1.0\]\], got .* \[\[-1.0\], \[2.0\]\]; leave out box=",
            lambda: Space(make_problem(1, domain=Box([-1.0], [1.0])), box=box_of(1)),
        ),
        (SpaceError, r"either mesh=.* or box= and cells=", lambda: make_space("P1", 2, mesh=skfem.MeshTri())),
        (ProblemError, r"Space needs a ControlProblem, got str", lambda: Space("lq")),
        (SpaceError, r"product of a LineBasis and a SpatialBasis, got float", lambda: Space.product(1.0, None)),
        (
            SpaceError,
            r"the time basis must be on a grid that starts at 0, got one from 1",
            lambda: Space.product(LineBasis([1.0, 2.0], "P1"), HermiteBasis([[0.0, 1.0]])),
        ),
        (
            SpaceError,
            r"P1..P4 or B2..B4, not flat, or hermite with spectral elements in space, got 'hermite'",
            lambda: Space.product(LineBasis([0.0, 2.0], "hermite"), HermiteBasis([[0.0, 1.0]])),
        ),
        (
            SpaceError,
            r"P1..P4 or B2..B4, not flat, .* got flat 'B3'",
            lambda: Space.product(LineBasis([0.0, 1.0, 2.0], "B3", flat=True), HermiteBasis([[0.0, 1.0]])),
        ),
        (
            SpaceError,
            r"quadrature must be a non-negative integer, got -1",
            lambda: HermiteBasis([[0, 1]]).quadrature(-1),
        ),
        (SpaceError, r"shape \(..., 2\), got \(3,\)", lambda: HermiteBasis([[0, 1]]).interpolate(np.ones(3))),
        (
            SpaceError,
            r"returned shape \(\) for x of shape \(1, 5, 1\)",
            lambda: HermiteBasis([[0, 1]]).project(lambda x: 1.0),
        ),
    ],
)
def test_bad_spaces_are_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


def _with_loose_vertices():
    mesh = skfem.MeshTri()
    return skfem.MeshTri(np.concatenate([mesh.p, mesh.p[:, :2] + 5], axis=1), mesh.t)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (SpaceError, r"'P2' is only continuous.*use element='hermite'", lambda s, c, x: s.tabulate(0.0, x, 2)),
        (SpaceError, r"'P2' is only continuous", lambda s, c, x: s.evaluate(c, 0.0, x, "hessian")),
        (
            SpaceError,
            r"tabulated with order=0; call tabulate with order=1",
            lambda s, c, x: s.tabulate(0, x, 0).gradients,
        ),
        (DomainError, r"t must lie in \[0, 2\]", lambda s, c, x: s.evaluate(c, 2.1, x)),
        (
            DomainError,
            r"points in rows, shape \(..., 2\), got shape \(3,\)",
            lambda s, c, x: s.evaluate(c, 0.0, np.ones(3)),
        ),
        (DomainError, r"x must be finite, got 1 non-finite", lambda s, c, x: s.evaluate(c, 0.0, x * np.nan)),
        (
            DomainError,
            r"t of shape \(3,\) does not broadcast against x of shape \(2, 2\)",
            lambda s, c, x: s.evaluate(c, np.zeros(3), np.zeros((2, 2))),
        ),
        (DomainError, r"points of shape \(m, 2\)", lambda s, c, x: s.tabulate(np.zeros(3), np.zeros((2, 2)))),
        (SpaceError, r"coefficients must have shape \(7, 81\)", lambda s, c, x: s.evaluate(c[:, 1:], 0.0, x)),
        (SpaceError, r"derivative must be one of 'value'", lambda s, c, x: s.evaluate(c, 0.0, x, "grad")),
        (SpaceError, r"outside must be one of 'error', 'nan'", lambda s, c, x: s.evaluate(c, 0.0, x, outside="drop")),
    ],
)
def test_bad_evaluations_are_refused(error, message, call):
    space = make_space("P2", 2)
    with pytest.raises(error, match=message):
        call(space, np.zeros(space.shape), np.zeros((1, 2)))
