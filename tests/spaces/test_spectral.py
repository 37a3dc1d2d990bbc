"""Spectral elements: exactness, spectral convergence, the two matrices, and the contract of a basis in space."""

from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.polynomial import Polynomial
from numpy.polynomial.legendre import Legendre

from fem_hjb.learning.measures import law_measure
from fem_hjb.problems import zoo
from fem_hjb.problems.gauge import constant_gauge
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine, gll
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import SpaceError

GRADED = np.array([-1.0, -0.9, -0.6, 0.2, 1.5, 2.0])
DEGREES = [1, 2, 3, 5, 8, 16, 24, 32]
RNG = np.random.default_rng(3)


def smooth(x: FloatArray) -> FloatArray:
    return np.asarray(np.exp(np.sin(x)))


def polynomial(degree: int, seed: int = 0) -> Polynomial:
    """A polynomial of exactly this degree, of size about one on the graded grid."""
    coefficients = np.append(np.random.default_rng(seed).standard_normal(degree), 1.0)
    shape: Any = Legendre(coefficients, domain=[GRADED[0], GRADED[-1]])
    return shape


def slope(h: list[float], errors: list[float]) -> float:
    return float(np.polyfit(np.log(h), np.log(errors), 1)[0])


def relative(error: FloatArray, exact: FloatArray) -> float:
    return float(np.abs(error).max() / np.abs(exact).max())


# The reference cell.


@pytest.mark.parametrize("p", DEGREES)
def test_the_rule_integrates_degree_2p_minus_1_and_no_more(p: int) -> None:
    points, weights, _ = gll(p)
    # in Legendre polynomials, not powers: these stay well conditioned, and every integral but the first is zero
    for k in range(1, 2 * p):
        assert abs(weights @ Legendre.basis(k)(points)) < 2e-15
    assert weights.sum() == pytest.approx(2.0, abs=1e-15)
    assert weights @ Legendre.basis(2 * p)(points) > 1.0 / p  # the first it misses, by 2 / p + O(1)
    assert points[[0, -1]].tolist() == [-1.0, 1.0]
    np.testing.assert_array_equal(points, -points[::-1])
    assert (np.diff(points) > 0).all()


@pytest.mark.parametrize("p", DEGREES)
def test_the_differentiation_matrix_is_exact_up_to_its_degree_and_no_further(p: int) -> None:
    points, _, D = gll(p)
    for k in range(p + 1):
        exact = Legendre.basis(k).deriv()(points) if k else 0 * points
        assert np.abs(D @ Legendre.basis(k)(points) - exact).max() < 3e-14 * max(1, p) ** 2
    beyond = Legendre.basis(p + 1)
    assert relative(D @ beyond(points) - beyond.deriv()(points), beyond.deriv()(points)) > 0.1


# The line: nodes, weights, matrices.


@pytest.mark.parametrize("p", DEGREES)
def test_the_nodes_are_shared_and_the_lumped_weights_integrate(p: int) -> None:
    line = SpectralLine(GRADED, p)
    assert (line.n, line.n_cells, line.bounds) == (5 * p + 1, 5, (-1.0, 2.0))
    np.testing.assert_array_equal(line.nodes[::p], GRADED)
    assert (np.diff(line.nodes) > 0).all()
    np.testing.assert_array_equal(line.cell_dofs[1:, 0], line.cell_dofs[:-1, -1])
    for degree in {0, p, 2 * p - 1}:
        q = polynomial(degree)
        exact = q.integ()(2.0) - q.integ()(-1.0)
        assert line.weights @ q(line.nodes) == pytest.approx(exact, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("p", DEGREES)
def test_the_matrices_are_exact_for_polynomials_of_the_degree(p: int) -> None:
    """The Laplacian adds -u'/weight (outward) at the ends, where it imposes u' = 0; this is exact too."""
    line = SpectralLine(GRADED, p)
    for degree in {0, 1, p // 2, p}:
        u, x = polynomial(degree, degree), line.nodes
        first, second = u.deriv()(x), u.deriv(2)(x)
        natural = second.copy()
        natural[0] += first[0] / line.weights[0]
        natural[-1] -= first[-1] / line.weights[-1]
        # the values carry the rounding of the nodes, and a derivative multiplies it by p^2 / h
        rounding, factor = 1e-15 * max(np.abs(u(x)).max(), np.abs(first).max()), p**2 / line.widths.min()
        assert np.abs(line.derivative @ u(x) - first).max() < rounding * factor
        assert np.abs(line.laplacian @ u(x) - natural).max() < rounding * factor**2


def test_the_laplacian_is_exact_at_the_ends_where_the_natural_condition_holds() -> None:
    line = SpectralLine(GRADED, 7)
    u = (Polynomial([1.0, 1.0]) * Polynomial([-2.0, 1.0])) ** 2  # u' = 0 at -1 and 2
    np.testing.assert_allclose(line.laplacian @ u(line.nodes), u.deriv(2)(line.nodes), atol=1e-10)
    tilted = u + Polynomial([0.0, 1e-3])
    error = np.abs(line.laplacian @ tilted(line.nodes) - tilted.deriv(2)(line.nodes))
    assert error[[0, -1]].min() > 1e-2
    assert error[1:-1].max() < 1e-10


@pytest.mark.parametrize("p", DEGREES)
def test_rows_sum_to_zero_and_parts_can_be_summed(p: int) -> None:
    """W D + D' W = diag(-1, 0, ..., 0, 1) and W Laplacian symmetric: what conservation of mass needs."""
    line = SpectralLine(GRADED, p)
    for matrix in (line.derivative, line.laplacian):
        assert np.abs(matrix.sum(axis=1)).max() < 1e-15 * np.abs(matrix).max()
    ends = np.zeros(line.n)
    ends[[0, -1]] = -1.0, 1.0
    weighted = line.weights[:, None] * line.derivative
    np.testing.assert_allclose(weighted + weighted.T, np.diag(ends), atol=1e-13)
    stiffness = line.weights[:, None] * line.laplacian
    np.testing.assert_allclose(stiffness, stiffness.T, atol=1e-14 * np.abs(stiffness).max())


def test_an_unweighted_mean_at_shared_nodes_would_not_sum_by_parts() -> None:
    line = SpectralLine(GRADED, 4)
    _, _, D = gll(4)
    plain = np.zeros((line.n, line.n))
    for dofs, width in zip(line.cell_dofs, line.widths, strict=True):
        plain[np.ix_(dofs, dofs)] += 2 / width * D
    plain[4:-1:4] /= 2
    x = line.nodes
    np.testing.assert_allclose(plain @ x**4, 4 * x**3, atol=1e-11)  # it is a derivative all the same
    weighted = line.weights[:, None] * plain
    assert np.abs((weighted + weighted.T)[4:-1:4, 4:-1:4]).max() > 0.05


@pytest.mark.parametrize("p", [12, 16, 24])
def test_the_natural_laplacian_has_the_eigenvalues_of_the_cosines(p: int) -> None:
    line = SpectralLine([0.0, 0.4, 1.0, 1.5], p)

    def lowest(matrix: FloatArray) -> FloatArray:
        return np.asarray(np.sort(np.abs(np.linalg.eigvals(matrix)))[:6])

    exact = (np.arange(6) * np.pi / 1.5) ** 2
    np.testing.assert_allclose(lowest(line.laplacian), exact, rtol=1e-10, atol=1e-9)
    # the square of the derivative knows no natural condition
    assert np.abs(lowest(line.derivative @ line.derivative) - exact)[1:].max() > 1.0


@pytest.mark.parametrize("p", [6, 10, 14])
def test_the_derivative_of_a_smooth_function_converges_on_a_graded_grid(p: int) -> None:
    line = SpectralLine(GRADED, p)
    exact = np.cos(line.nodes) * smooth(line.nodes)
    error = np.abs(line.derivative @ smooth(line.nodes) - exact).max()
    assert error < {6: 2e-3, 10: 1e-6, 14: 5e-10}[p]
    kink = np.abs(line.nodes)
    away = np.abs(line.nodes) > 0.3
    assert np.abs(line.derivative @ kink - np.sign(line.nodes))[away].max() > 1e-2


# The line: values and derivatives anywhere.


def interpolation_error(line: SpectralLine, function: Callable[[FloatArray], FloatArray]) -> float:
    x = np.linspace(*line.bounds, 1001)
    return float(np.abs(line.rows(x) @ function(line.nodes) - function(x)).max())


def test_interpolation_converges_spectrally() -> None:
    errors = [interpolation_error(SpectralLine([0.0, 1.3, 3.0], p), smooth) for p in range(2, 25, 2)]
    for before, after in pairwise(errors):
        assert after < max(before / 10, 1e-13)
    assert errors[-1] < 1e-13
    kinked = [interpolation_error(SpectralLine([0.0, 1.3, 3.0], p), lambda x: np.abs(x - 0.5)) for p in (10, 20)]
    assert kinked[1] > kinked[0] / 10


@pytest.mark.parametrize("p", [2, 3, 5])
def test_interpolation_converges_with_the_cells_at_order_p_plus_1(p: int) -> None:
    cells = [8, 12, 16, 24]
    errors = [interpolation_error(SpectralLine(np.linspace(0.0, 3.0, m + 1), p), smooth) for m in cells]
    rate = slope([1 / m for m in cells], errors)
    assert abs(rate - (p + 1)) < 0.15
    rough = [interpolation_error(SpectralLine(np.linspace(0.0, 3.0, m + 1), p), lambda x: np.sqrt(x)) for m in cells]
    assert slope([1 / m for m in cells], rough) < 0.65


@pytest.mark.parametrize("p", [16, 24, 32])
def test_interpolation_is_stable_at_high_degree(p: int) -> None:
    """To rounding, between nodes and within rounding of a node, where powers of xi have lost every digit."""
    line = SpectralLine([0.0, 1.0], p)
    function = polynomial(p)
    x = np.clip(np.concatenate([np.linspace(0, 1, 999), *(line.nodes + e for e in (-1e-16, 1e-16, 1e-13))]), 0, 1)
    assert relative(line.rows(x) @ function(line.nodes) - function(x), function(x)) < 1e-14
    powers = np.linalg.inv(np.vander(line.nodes, increasing=True))
    if p >= 24:
        table = np.vander(x, p + 1, increasing=True) @ powers
        assert relative(table @ function(line.nodes) - function(x), function(x)) > 1e-10


def test_at_the_nodes_interpolation_is_the_identity() -> None:
    line = SpectralLine([0.0, 1.0, 2.0, 4.0], 16)
    table = line.rows(line.nodes)
    np.testing.assert_allclose(table, np.eye(line.n), atol=1e-14)
    np.testing.assert_array_equal(table[:17], np.eye(line.n)[:17])  # where local coordinates are not rounded


def test_rows_are_those_of_the_cells_and_go_on_beyond_the_ends() -> None:
    line = SpectralLine(GRADED, 5)
    x = np.concatenate([np.linspace(*line.bounds, 77), GRADED])
    cells, xi = line.locate(x)
    expected = np.zeros((x.size, line.n))
    for row, cell, values in zip(expected, cells, line.reference(xi), strict=True):
        row[line.cell_dofs[cell]] = values
    np.testing.assert_allclose(line.rows(x), expected, atol=1e-14)
    function, beyond = polynomial(5), np.array([-1.05, 2.2])
    np.testing.assert_allclose(line.rows(beyond) @ function(line.nodes), function(beyond), rtol=1e-11)
    kinked = np.abs(line.nodes - 0.2)  # a node: the end cells do not see the kink
    np.testing.assert_allclose(line.rows(beyond) @ kinked, np.abs(beyond - 0.2), atol=1e-12)


@pytest.mark.parametrize("p", DEGREES)
def test_a_function_is_combined_as_by_rows_within_and_beyond_the_ends(p: int) -> None:
    line = SpectralLine(GRADED, p)
    x = np.concatenate([RNG.uniform(-1.2, 2.2, 200), GRADED, [-1.2, 2.2]])
    values = RNG.normal(size=line.n)
    combined = line.combine_to(values, x, 1)
    assert [part.shape for part in combined] == [x.shape, x.shape]
    for part, rows in zip(combined, line.rows_to(x, 1), strict=True):
        sizes = np.abs(rows) @ np.abs(values)
        assert (np.abs(part - rows @ values) <= 1e-14 * sizes).all()
    np.testing.assert_array_equal(line.combine_to(values, x, 0)[0], combined[0])


@pytest.mark.parametrize("p", DEGREES)
def test_tables_agree_with_polynomials_and_their_derivatives(p: int) -> None:
    line = SpectralLine(GRADED, p)
    x = RNG.uniform(-1.0, 2.0, 200)
    cells, xi = line.locate(x)
    table = line.tabulate(cells, xi, 1)
    assert table.shape == (200, 2, p + 1)
    np.testing.assert_array_equal(table[:, :1], line.tabulate(cells, xi, 0))
    u = polynomial(p)
    local = u(line.nodes)[line.cell_dofs[cells]]
    assert relative((table[:, 0] * local).sum(1) - u(x), u(x)) < 3e-14
    slopes = u.deriv()(x)
    assert np.abs((table[:, 1] * local).sum(1) - slopes).max() < 1e-13 * p**2 * max(np.abs(slopes).max(), 1.0)


def test_points_are_located_as_in_other_lines() -> None:
    line, other = SpectralLine(GRADED, 4), LineBasis(GRADED, "P1")
    x = np.array([-1.0, -0.9, 0.2, 2.0, -1.0 - 1e-11, 2.0 + 1e-11, -1.1, 2.1, np.nan, 0.0])
    cells, xi = line.locate(x)
    np.testing.assert_array_equal(cells, [0, 1, 3, 4, 0, 4, -1, -1, -1, 2])
    np.testing.assert_array_equal(cells, other.locate(x)[0])
    np.testing.assert_array_equal(xi, other.locate(x)[1])
    assert xi[[0, 1, 2, 3, 4, 5]].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_the_tail_is_the_two_highest_legendre_coefficients_of_each_cell() -> None:
    line, p = SpectralLine(GRADED, 6), 6
    coefficients = RNG.standard_normal((5, p + 1, 3))
    z = gll(p)[0]
    values = np.full((line.n, 3), np.nan)
    for dofs, c in zip(line.cell_dofs, coefficients, strict=True):
        values[dofs] = np.polynomial.legendre.legvander(z, p) @ c
    # neighbours overwrite the shared nodes: compare the last cell, and the others through functions that are continuous
    np.testing.assert_allclose(line.modal_tail(values)[-1], np.abs(coefficients[-1, -2:]).max(axis=0), rtol=1e-12)
    for k, expected in ((p, 1.0), (p - 1, 1.0), (p - 2, 0.0), (0, 0.0)):
        for cell in range(5):
            one = np.zeros(line.n)
            bubble = Legendre.basis(k)(z)
            one[line.cell_dofs[cell]] = bubble
            assert line.modal_tail(one)[cell] == pytest.approx(expected, abs=1e-14)
    moved = line.modal_tail(np.moveaxis(values, 0, 1), axis=1)
    np.testing.assert_array_equal(moved, line.modal_tail(values).T)
    np.testing.assert_array_equal(line.modal_tail(values.T, axis=-1), moved)


def test_the_tail_tells_where_to_refine() -> None:
    line = SpectralLine(np.linspace(0.0, 3.0, 6), 12)
    tail = line.modal_tail(np.tanh(40 * (line.nodes - 1.5)))
    assert tail.argmax() == 2
    assert tail[2] > 1e6 * tail[[0, 4]].max()
    assert line.modal_tail(smooth(line.nodes)).max() < 1e-11
    assert SpectralLine([0.0, 1.0, 2.0], 1).modal_tail(np.array([5.0, 5.0, 7.0])) == pytest.approx([0.0, 1.0])


def test_arrays_cannot_be_written_to_and_the_grid_is_a_copy() -> None:
    grid = GRADED.copy()
    line = SpectralLine(grid, 3)
    grid[0] = -5.0
    assert line.grid[0] == -1.0
    for name in ("grid", "nodes", "weights", "cell_dofs", "widths", "derivative", "laplacian"):
        assert not getattr(line, name).flags.writeable
    with pytest.raises(AttributeError):
        line.degree = 4  # type: ignore[misc]


# Boxes.


def lines(dim: int) -> list[SpectralLine]:
    """Graded, with another degree and another number of cells on each axis."""
    return [
        SpectralLine([-1.0, 0.2, 1.0, 1.5], 9),
        SpectralLine([0.0, 0.7, 2.0], 12),
        SpectralLine([-0.5, 0.6], 10),
    ][:dim]


def function(x: FloatArray) -> FloatArray:
    return np.asarray(np.exp(0.5 * np.sin(x @ np.array([1.0, -0.7, 0.4])[: x.shape[-1]]) + 0.1 * x[..., 0] ** 2))


def gradient(x: FloatArray) -> FloatArray:
    a = np.array([1.0, -0.7, 0.4])[: x.shape[-1]]
    slopes = 0.5 * np.cos(x @ a)[..., None] * a
    slopes[..., 0] += 0.2 * x[..., 0]
    return np.asarray(function(x)[..., None] * slopes)


def inside(basis: SpectralBasis, n: int = 300) -> FloatArray:
    lower, upper = basis.box.bounds
    return np.asarray(RNG.uniform(lower, upper, (n, basis.dim)))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_numbering(dim: int) -> None:
    axes = lines(dim)
    basis = SpectralBasis(axes)
    assert basis.shape == tuple(line.n for line in axes)
    assert (basis.dim, basis.element, basis.smoothness) == (dim, "gll", 0)
    assert (basis.degree, basis.kind) == (max(line.degree for line in axes), ("line", "quad", "hex")[dim - 1])
    assert basis.nodes.shape == (basis.n_dofs, dim)
    grid = basis.nodes.reshape(*basis.shape, dim)
    for k, line in enumerate(axes):
        assert (np.moveaxis(grid[..., k], k, -1) == line.nodes).all()
    assert basis.cell_dofs.shape == (basis.n_cells, basis.local_size)
    # each cell's nodes are those of its own corner of the box, and every node belongs to a cell
    np.testing.assert_array_equal(np.unique(basis.cell_dofs), np.arange(basis.n_dofs))
    middle = basis.nodes[basis.cell_dofs].mean(axis=1)
    np.testing.assert_array_equal(basis.locate(middle)[0], np.arange(basis.n_cells))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_local_functions_are_one_at_their_own_node(dim: int) -> None:
    basis = SpectralBasis(lines(dim))
    for cell in (0, basis.n_cells - 1):
        low = basis.nodes[basis.cell_dofs[cell]].min(axis=0)
        width = np.ptp(basis.nodes[basis.cell_dofs[cell]], axis=0)
        xi = (basis.nodes[basis.cell_dofs[cell]] - low) / width
        (table,) = basis.tabulate(np.full(basis.local_size, cell), xi)
        np.testing.assert_allclose(table, np.eye(basis.local_size), atol=1e-13)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_values_and_gradients_of_a_smooth_function(dim: int) -> None:
    basis = SpectralBasis(lines(dim))
    x = inside(basis)
    cells, xi = basis.locate(x)
    local = basis.interpolate(function(basis.nodes))[basis.cell_dofs[cells]]
    values, gradients = basis.tabulate(cells, xi, 1)
    np.testing.assert_array_equal(values, basis.tabulate(cells, xi)[0])
    np.testing.assert_allclose((values * local).sum(axis=1), function(x), atol=2e-8)
    np.testing.assert_allclose(np.einsum("nl,nld->nd", local, gradients), gradient(x), atol=1e-6)
    np.testing.assert_allclose(values.sum(axis=1), 1.0, atol=1e-13)
    np.testing.assert_allclose(gradients.sum(axis=1), 0.0, atol=1e-10)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_sums_over_local_functions_are_those_of_the_tables(dim: int, order: int) -> None:
    rng, basis = np.random.default_rng(5), SpectralBasis([SpectralLine(GRADED, p) for p in (4, 2, 3)[:dim]])
    cells, xi = basis.locate(rng.uniform(GRADED[0], GRADED[-1], (50, dim)))
    local = rng.standard_normal((50, basis.local_size))
    tables = basis.tabulate(cells, xi, order)
    found = basis.contract(local, cells, xi, order)
    assert [part.shape for part in found] == [(50,), (50, dim)][: order + 1]
    for part, table in zip(found, tables, strict=True):
        np.testing.assert_allclose(part, np.einsum("nl,nl...->n...", local, table), atol=1e-11)
    if dim > 1:  # the order of the local functions matters
        turned = local.reshape(50, *[p + 1 for p in (4, 2, 3)[:dim]]).swapaxes(1, -1).reshape(50, -1)
        assert np.abs(basis.contract(turned, cells, xi, order)[0] - found[0]).max() > 0.1


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_windows_of_the_grid_hold_the_coefficients_of_cells(dim: int) -> None:
    rng, basis = np.random.default_rng(6), SpectralBasis(lines(dim))
    rows = rng.standard_normal((7, basis.n_dofs))
    cells, first = rng.integers(0, basis.n_cells, 60), rng.integers(0, 5, 60)
    found = basis.gathered(rows, first, 3, cells)
    np.testing.assert_array_equal(found, SpatialBasis.gathered(basis, rows, first, 3, cells))
    np.testing.assert_array_equal(found[:, 1], rows[first[:, None] + 1, basis.cell_dofs[cells]])
    assert not np.array_equal(found, basis.gathered(rows, first[::-1], 3, cells))


@pytest.mark.parametrize("kind", ["P2", "hermite"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_values_at_any_time_and_place_are_sums_of_products(dim: int, kind: str) -> None:
    """As many points as make several chunks, or so few that not all functions are summed up at a time."""
    rng, axes = np.random.default_rng(7), [SpectralLine(GRADED, p) for p in (4, 2, 3)[:dim]]
    space = Space.product(LineBasis(np.array([0.0, 0.2, 0.9, 1.0]), kind), SpectralBasis(axes))
    c, n = rng.standard_normal(space.shape), 40_000 if dim < 3 else 3000
    t, x = rng.random(n), rng.uniform(GRADED[0], GRADED[-1], (n, dim))
    names = ("gradient", "time", "value")
    for times in (t, np.full(n, 0.3)):
        tables = space.tabulate(times, x, 1)
        local = c[space.time.cell_dofs[tables.cells // space.spatial.n_cells]][
            np.arange(n)[:, None, None],
            np.arange(space.time.local_size)[:, None],
            space.spatial.cell_dofs[tables.cells % space.spatial.n_cells][:, None],
        ]
        values, slopes = tables.space
        wanted = (
            np.einsum("na,nak,nkd->nd", tables.time[:, 0], local, slopes, optimize=True),
            np.einsum("na,nak,nk->n", tables.time[:, 1], local, values, optimize=True),
            np.einsum("na,nak,nk->n", tables.time[:, 0], local, values, optimize=True),
        )
        if times is t:
            found = space.derivatives(c, t, x, names)
        else:
            found = space.derivatives(c, 0.3, x, names)
            few = space.derivatives(c, 0.3, x[:2], names)
            for part, exact in zip(few, wanted, strict=True):
                np.testing.assert_allclose(part, exact[:2], atol=1e-11)
        for part, exact in zip(found, wanted, strict=True):
            np.testing.assert_allclose(part, exact, atol=1e-11)


def test_a_cell_is_another_one_at_another_time() -> None:
    space = Space.product(LineBasis.uniform(1.0, 4, "P1"), SpectralBasis([SpectralLine([0.0, 1.0], 3)]))
    c = space.interpolate(lambda t, x: (1.0 + t) * x[:, 0] ** 2)
    t = np.array([0.9, 0.1, 0.4, 0.6, 0.4])
    np.testing.assert_allclose(space.evaluate(c, t, np.full((5, 1), 0.5)), (1.0 + t) / 4, atol=1e-13)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_quadrature_is_exact_and_agrees_with_the_tables(dim: int) -> None:
    basis = SpectralBasis(lines(dim))
    rule = basis.quadrature(7)
    lower, upper = basis.box.bounds
    for power in (7, 8):
        exact = float(np.prod((upper ** (power + 1) - lower ** (power + 1)) / (power + 1)))
        total = float((np.prod(rule.x**power, axis=-1) * rule.det * rule.weights).sum())
        assert (abs(total / exact - 1) < 1e-13) == (power == 7)
    cell = basis.n_cells - 1
    values, gradients = basis.tabulate(np.full(len(rule.xi), cell), rule.xi, 1)
    np.testing.assert_allclose(rule.phi.T, values, atol=1e-14)
    physical = np.einsum("lqk,qkd->qld", rule.dphi, np.broadcast_to(rule.inverse[cell], (len(rule.xi), dim, dim)))
    np.testing.assert_allclose(physical, gradients, atol=1e-11)
    found, xi = basis.locate(rule.x[cell])
    np.testing.assert_array_equal(found, cell)
    np.testing.assert_allclose(xi, rule.xi, atol=1e-14)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_weights_integrate_and_the_boundary_is_the_faces(dim: int) -> None:
    basis = SpectralBasis(lines(dim))
    lower, upper = basis.box.bounds
    exact = float(np.prod((upper**6 - lower**6) / 6))
    assert basis.weights @ np.prod(basis.nodes**5, axis=1) == pytest.approx(exact, rel=1e-13)
    interior = np.prod([n - 2 for n in basis.shape])
    faces = basis.boundary_dofs()
    assert faces.size == basis.n_dofs - interior
    distance = np.minimum(basis.nodes - lower, upper - basis.nodes).min(axis=1)
    np.testing.assert_array_equal(distance[faces], 0.0)
    assert basis.reflecting_dofs().size == 0


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_projection_is_orthogonal(dim: int) -> None:
    """Its residual has no product with any basis function; that of the interpolant has."""
    basis = SpectralBasis([SpectralLine(line.grid, 3 + k) for k, line in enumerate(lines(dim))])
    rule = basis.quadrature(2 * basis.degree + 2)
    exact = function(rule.x)

    def products(coefficients: FloatArray) -> float:
        residual = coefficients[basis.cell_dofs] @ rule.phi - exact
        local = (residual * rule.det * rule.weights) @ rule.phi.T
        return float(np.abs(np.bincount(basis.cell_dofs.ravel(), local.ravel())).max())

    assert products(basis.project(function)) < 1e-14
    assert products(basis.interpolate(function(basis.nodes))) > 1e-7


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_outside_points_have_no_cell(dim: int) -> None:
    basis = SpectralBasis(lines(dim))
    x = inside(basis, 6)
    x[1, 0], x[3, -1], x[4, dim // 2] = 9.0, -9.0, np.nan
    np.testing.assert_array_equal(basis.locate(x)[0] < 0, [False, True, False, True, True, False])


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_solution_on_spectral_elements_gives_value_gradient_and_policy(dim: int) -> None:
    problem = zoo.get("lq", dim=dim)
    axis = SpectralLine(np.linspace(-1.5, 1.5, 3), 12)
    time = LineBasis.uniform(problem.horizon, 24, "P4")
    space = Space.product(time, SpectralBasis([axis] * dim))
    of = constant_gauge(problem, space.spatial.nodes, space.time.nodes)
    exact = problem.exact
    assert exact is not None
    f = space.interpolate(lambda t, x: of.u(t, x, exact.value(t, x)))
    solution = Solution(problem=problem, space=space, coefficients=f, gauge=of, method="interpolant", status="exact")
    t, x = RNG.uniform(0.0, problem.horizon, 200), inside(SpectralBasis([axis] * dim), 200)
    for when in (0.3, t):
        for name in ("value", "gradient", "policy"):
            wanted = getattr(exact, name)(when, x)
            assert relative(getattr(solution, name)(when, x) - wanted, wanted) < 1e-6


def test_evaluation_is_fast() -> None:
    """Values and gradients at 10^4 points of 6 x 6 cells of degree 10: the best of five, far from the 0.2 s allowed."""
    basis = SpectralBasis([SpectralLine(np.linspace(-1.0, 1.0, 7), 10)] * 2)
    space = Space.product(LineBasis.uniform(1.0, 4, "P2"), basis)
    coefficients = space.interpolate(lambda t, x: function(x))
    x, seconds = inside(basis, 10_000), []
    for _ in range(5):
        start = perf_counter()
        values, slopes = space.derivatives(coefficients, 0.5, x, ("value", "gradient"))
        seconds.append(perf_counter() - start)
    assert min(seconds) < 0.2
    np.testing.assert_allclose(values, function(x), atol=1e-11)
    np.testing.assert_allclose(slopes, gradient(x), atol=1e-9)


def test_a_law_is_integrated_on_spectral_cells() -> None:
    problem = zoo.get("lq", dim=2)
    basis = SpectralBasis([SpectralLine(np.linspace(-8.0, 8.0, 5), 10)] * 2)
    space = Space.product(LineBasis.uniform(problem.horizon, 2, "P2"), basis)
    measure = law_measure(problem, space)
    assert measure.weights.sum() == pytest.approx(problem.horizon, rel=1e-4)


# Bad input.

LINE = SpectralLine([0.0, 1.0, 2.0], 3)
BASIS = SpectralBasis([LINE, LINE])
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "unsorted grid": (lambda: SpectralLine([0.0, 2.0, 1.0], 3), SpaceError, "strictly increasing array"),
    "repeated point": (lambda: SpectralLine([0.0, 1.0, 1.0], 3), SpaceError, "strictly increasing array"),
    "one point": (lambda: SpectralLine([0.0], 3), SpaceError, "at least 2 finite numbers"),
    "nan in the grid": (lambda: SpectralLine([0.0, np.nan], 3), SpaceError, "at least 2 finite numbers"),
    "text as grid": (lambda: SpectralLine("grid", 3), SpaceError, "grid of a SpectralLine must be an array of real"),
    "table as grid": (lambda: SpectralLine(np.eye(2), 3), SpaceError, r"got shape \(2, 2\)"),
    "degree 0": (lambda: SpectralLine([0.0, 1.0], 0), SpaceError, "must be a positive integer, got 0"),
    "degree 33": (lambda: SpectralLine([0.0, 1.0], 33), SpaceError, "at most 32, got 33; use more cells"),
    "degree 2.5": (lambda: SpectralLine([0.0, 1.0], 2.5), SpaceError, "must be a positive integer, got 2.5"),  # type: ignore[arg-type]
    "degree True": (lambda: gll(True), SpaceError, "must be a positive integer, got True"),
    "second derivatives of a line": (
        lambda: LINE.tabulate(np.zeros(1, dtype=np.int64), np.zeros(1), 2),
        SpaceError,
        r"order must be 0 \(values\) or 1",
    ),
    "tail of a wrong length": (lambda: LINE.modal_tail(np.ones(6)), SpaceError, r"length 7 along axis 0, got \(6,\)"),
    "tail along no axis": (lambda: LINE.modal_tail(np.ones(7), axis=1), SpaceError, "length 7 along axis 1"),
    "no axes": (lambda: SpectralBasis([]), SpaceError, "1, 2 or 3 axes, got 0 lines"),
    "four axes": (lambda: SpectralBasis([LINE] * 4), SpaceError, "1, 2 or 3 axes, got 4 lines"),
    "grids for lines": (lambda: SpectralBasis([np.arange(3.0)]), SpaceError, "needs a sequence of SpectralLines"),  # type: ignore[list-item]
    "a bare line": (lambda: SpectralBasis(LINE), SpaceError, "needs a sequence of SpectralLines"),  # type: ignore[arg-type]
    "Hessians": (
        lambda: BASIS.tabulate(np.zeros(1, dtype=np.int64), np.zeros((1, 2)), 2),
        SpaceError,
        "element 'gll' is only continuous",
    ),
    "values elsewhere": (lambda: BASIS.interpolate(np.ones(48)), SpaceError, r"must have shape \(..., 49\)"),
    "a projection of the wrong shape": (lambda: BASIS.project(lambda x: x), SpaceError, "function to project returned"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind: str) -> None:
    call, error, message = BAD[kind]
    with pytest.raises(error, match=message):
        call()
