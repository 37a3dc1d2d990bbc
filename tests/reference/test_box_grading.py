"""Grids that follow a gradient: what is seen as unresolved, cells made of it, functions carried to other grids."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fem_hjb.paths.extent import Reach
from fem_hjb.problems.box import Box
from fem_hjb.reference import box_grading as grading
from fem_hjb.reference.box_grading import (
    first_edges,
    halved,
    more_cells,
    narrowed,
    regraded,
    stretched,
    total,
    transfer,
    unresolved,
    widened,
)
from fem_hjb.reference.box_panel import Grid
from fem_hjb.spaces.axes import apply_axis
from fem_hjb.support.checks import FloatArray
from tests.support.grids import grid_on

BOX = Box([-5.0], [4.0])


def reach_in(d: int, scale: float = 1.0, middle: float = 0.0) -> Reach:
    ones = np.ones((9, d))
    return Reach(median=middle * ones, scale=scale * np.stack([ones, ones]), power=np.ones((2, 9, d)))


def grid_of(*edges: Any, degree: int = 12, reach: Reach | None = None) -> Grid:
    return grid_on([np.asarray(part) for part in edges], degree, [reach or reach_in(len(edges))], 0.0, 1.0)


def gradient(grid: Grid, u: FloatArray) -> list[FloatArray]:
    return [apply_axis(line.derivative, u, k) for k, line in enumerate(grid.lines)]


def found_of(grid: Grid, v: Any) -> FloatArray:
    return unresolved(grid, gradient(grid, v(grid.lines[0].nodes)), np.ones(1))[0]


def kink(x: FloatArray) -> FloatArray:
    return np.abs(x - 0.37)


def layer(x: FloatArray) -> FloatArray:
    return np.asarray(np.tanh((x - 0.37) / 0.02))


def smooth(x: FloatArray) -> FloatArray:
    return np.asarray(np.exp(np.sin(x)))


# What is not resolved


@pytest.mark.parametrize("degree", [6, 12, 16])
def test_a_polynomial_is_resolved_and_a_higher_one_is_not(degree: int) -> None:
    grid = grid_of(np.linspace(-2, 2, 5), degree=degree)
    low, high = (found_of(grid, lambda x, k=k: (x / 2) ** k) for k in (degree - 4, degree + 1))
    assert total(low) < 1e-12
    assert total(high) > 30 * total(low)
    assert total(found_of(grid, layer)) > 1e-2


@pytest.mark.parametrize("degree", [8, 12, 16])
@pytest.mark.parametrize(
    "v",
    [
        (lambda x: np.tanh(1.5 * x), lambda x: 1.5 / np.cosh(1.5 * x) ** 2),
        (lambda x: np.log(np.cosh(1.5 * x)), lambda x: 1.5 * np.tanh(1.5 * x)),
        (lambda x: np.tanh(1.5 * x + 0.4), lambda x: 1.5 / np.cosh(1.5 * x + 0.4) ** 2),
    ],
    ids=["odd", "even", "neither"],
)
def test_what_is_not_resolved_is_the_error_of_the_gradient(v: Any, degree: int) -> None:
    """Of functions with a symmetry about the middle of a cell, too."""
    grid = grid_of([-5.0, -1.7, 1.7, 5.0], degree=degree)
    line, x = grid.lines[0], np.linspace(-5, 5, 2001)
    density = np.exp(-(x**2) / 2)
    slope = line.derivative @ v[0](line.nodes)
    error = np.sqrt((density * (line.rows(x) @ slope - v[1](x)) ** 2).sum() / density.sum())
    assert error / 3 < total(unresolved(grid, [slope], np.ones(1))[0]) < 3 * error


def test_it_is_found_where_it_is_and_counts_as_much_as_the_law_is_there() -> None:
    grid = grid_of(np.linspace(-4, 4, 17))
    for v in (kink, layer):
        found = found_of(grid, v)
        assert found.argmax() == 8  # the cell that holds 0.37
        assert found[8] > 0.8 * total(found)
    far = grid_of(np.linspace(-4, 4, 17), reach=reach_in(1, 0.4, -2.0))
    assert 1e-3 * found_of(grid, kink)[8] < found_of(far, kink)[8] < 0.2 * found_of(grid, kink)[8]


def test_axes_see_their_own_direction_in_all_components() -> None:
    grid = grid_of(np.linspace(-2, 2, 9), np.linspace(-2, 2, 5), degree=8)
    x, y = grid.lines[0].nodes[:, None], grid.lines[1].nodes
    along, across = unresolved(grid, gradient(grid, layer(x) + 0.01 * smooth(y)), np.ones(2))
    assert (along.shape, across.shape) == ((8,), (4,))
    assert along.argmax() == 4
    assert total(along) > 1e3 * total(across)
    mixed = unresolved(grid, gradient(grid, kink(x) * (1 + y**2)), np.ones(2))
    assert total(mixed[1]) < 1e-10 < 1e-3 < total(mixed[0])
    # the metric makes derivatives along different axes comparable
    slopes = gradient(grid, layer(x) + 0.0 * y)
    np.testing.assert_allclose(
        unresolved(grid, slopes, np.array([3.0, 1.0]))[0], 3 * unresolved(grid, slopes, np.ones(2))[0], atol=1e-14
    )
    np.testing.assert_allclose(
        unresolved(grid, slopes, np.array([1.0, 3.0]))[0], unresolved(grid, slopes, np.ones(2))[0], atol=1e-14
    )


# Cells


def test_of_a_product_each_axis_sees_its_own_factor_times_the_size_of_the_others() -> None:
    edges = np.linspace(-2.0, 3.0, 5), np.linspace(-3.0, 3.0, 4), np.linspace(-1.0, 4.0, 6)
    lines = [grid_of(part, degree=6) for part in edges]
    grid = Grid(tuple(g.lines[0] for g in lines), tuple(g.masses[0] for g in lines), lines[0].floor)
    factors = [v(g.lines[0].nodes) for v, g in zip((kink, smooth, layer), lines, strict=True)]
    product = factors[0][:, None, None] * factors[1][:, None] * factors[2]
    sizes = [float(np.sqrt(g.mean(factor**2))) for g, factor in zip(lines, factors, strict=True)]
    found = unresolved(grid, [0.0 * product, product, 0.0 * product], np.ones(3))
    for k, (own, factor) in enumerate(zip(lines, factors, strict=True)):
        others = float(np.prod(np.delete(sizes, k)))
        alone = unresolved(own, [factor], np.ones(1))[0]
        np.testing.assert_allclose(found[k], others * alone, rtol=1e-8, atol=1e-14)


def made(v: Any, allowed: float) -> list[Grid]:
    """Grids, each made of what the one before does not resolve, or by halving where that makes no more cells."""
    grids = [grid_of(np.linspace(-5, 4, 7))]
    while total(found := found_of(grids[-1], v)) > 1.5 * allowed and len(grids) < 20:
        line = grids[-1].lines[0]
        new = regraded(line, found, allowed)
        grids.append(grid_of(new if len(new) > line.n_cells + 1 else halved(line.grid, found > total(found) / 8)))
    return grids


@pytest.mark.parametrize("allowed", [1e-2, 1e-4, 1e-7])
def test_cells_cluster_at_a_steep_layer_until_it_is_resolved(allowed: float) -> None:
    grids = made(layer, allowed)
    left = [total(found_of(grid, layer)) for grid in grids]
    assert left[0] > 1.0
    assert 1e-3 * allowed < left[-1] < 1.5 * allowed
    assert len(grids) < 10
    line = grids[-1].lines[0]
    smallest = line.widths.argmin()
    assert line.grid[smallest] - 0.1 < 0.37 < line.grid[smallest + 1] + 0.1
    assert line.widths.max() > 15 * line.widths.min()
    assert line.grid[[0, -1]].tolist() == [-5.0, 4.0]
    equal = grid_of(np.linspace(-5, 4, line.n_cells + 1))
    assert total(found_of(equal, layer)) > 30 * allowed


def test_what_a_kink_leaves_falls_as_cells_shrink_towards_it() -> None:
    """Its slope jumps, which no cell resolves: the root of the width of the cell is what is left."""
    edges, left, widths = np.linspace(-5, 4, 7), [], []
    for _ in range(12):
        found = found_of(grid_of(edges), kink)
        left.append(total(found))
        cell = int(np.searchsorted(edges, 0.37)) - 1
        widths.append(edges[cell + 1] - edges[cell])
        assert found.argmax() in (cell - 1, cell, cell + 1)
        edges = halved(edges, found > total(found) / 8)
    assert widths[-1] < 1e-3 * widths[0]
    assert np.polyfit(np.log(widths), np.log(left), 1)[0] == pytest.approx(0.5, abs=0.15)


def ratio(edges: FloatArray) -> float:
    return float(np.exp(np.abs(np.diff(np.log(np.diff(edges)))).max()))


def test_neighbours_differ_by_a_bounded_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """About three: somewhat more where a new cell reaches over several old ones."""
    uneven = grid_of(np.unique(np.concatenate([np.linspace(-5, 4, 40), 0.01 * np.arange(1, 20)]))).lines[0]
    nothing, allowances = np.full(uneven.n_cells, 1e-12), (1e-3, 1e-5, 1e-7)
    assert ratio(uneven.grid) > 15
    assert ratio(regraded(uneven, nothing, 1e-6)) < 3.5
    assert all(ratio(grid.lines[0].grid) < 5.5 for allowed in allowances for grid in made(layer, allowed))
    monkeypatch.setattr(grading, "_RATIO", 1e9)
    assert ratio(regraded(uneven, nothing, 1e-6)) > 15


@pytest.mark.parametrize("tried", [0, 1, 3])
def test_where_finer_grids_did_not_help_a_lower_power_is_believed(tried: int) -> None:
    line = grid_of(np.linspace(-5, 4, 25)).lines[0]
    much = np.full(line.n_cells, 700.0 / line.n_cells**0.5)
    cells = len(regraded(line, much, 1.0, tried)) - 1
    finer = min((700.0 / 0.8) ** ((tried + 1) / (line.degree + 1)), 1 / 0.35)
    assert cells / line.n_cells == pytest.approx(finer, rel=0.05)


@pytest.mark.parametrize("allowed", [np.inf, np.nan, 1e-3])
def test_what_has_run_away_is_not_resolved(allowed: float) -> None:
    """Norms that overflow make errors and what is allowed infinite; edges stay numbers, and cells become smaller."""
    line = grid_of(np.linspace(0.0, 1.0, 9)).lines[0]
    found = np.where(np.arange(8) == 3, np.inf, 1e-9)
    edges = regraded(line, found, allowed)
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()
    here = np.searchsorted(edges, line.grid[3:5])
    assert np.diff(here)[0] > 1


def test_cells_grow_again_where_nothing_is_left() -> None:
    grid = grid_of(np.linspace(-5, 4, 65))
    counts, widest = [64], [9 / 64]
    for _ in range(6):
        grid = grid_of(regraded(grid.lines[0], found_of(grid, smooth), 1e-3))
        counts.append(grid.lines[0].n_cells)
        widest.append(grid.lines[0].widths.max())
    assert counts[1] == 32  # cells at most double at once
    assert all(b < 2.5 * a for a, b in pairwise(widest))
    assert counts[-1] < 8
    assert total(found_of(grid, smooth)) < 5e-3
    assert widest[-1] < 4.0  # of a width of nine: the drift needs some, however flat the value is


def test_as_few_cells_as_the_tolerance_allows() -> None:
    counts = [made(layer, allowed)[-1].lines[0].n_cells for allowed in (1e-1, 1e-4, 1e-8)]
    assert counts[0] < counts[1] < counts[2]


def test_badly_placed_cells_are_moved_before_there_are_more() -> None:
    grid = grid_of([-5.0, -3.5, -2.0, -1.0, -0.2, 0.4, 1.0, 2.5, 4.0])
    found = found_of(grid, smooth)
    allowed = 0.1 * total(found)
    moved = more_cells(grid.lines[0], found, allowed, even=True)
    assert len(moved) == len(grid.lines[0].grid)
    assert total(found_of(grid_of(moved), smooth)) < allowed
    assert len(more_cells(grid.lines[0], found, allowed)) > len(moved)


def test_marked_cells_are_halved() -> None:
    edges = np.array([0.0, 1.0, 3.0, 4.0])
    assert halved(edges, np.array([False, True, True])).tolist() == [0.0, 1.0, 2.0, 3.0, 3.5, 4.0]
    assert halved(edges, np.zeros(3, dtype=np.bool_)).tolist() == edges.tolist()


def test_boxes_are_widened_at_faces_that_may_move() -> None:
    edges = [np.array([0.0, 1.0, 4.0]), np.array([-1.0, 1.0])]
    moving = np.array([[True, False], [True, False]])
    assert [part.tolist() for part in widened(edges, moving, 0.25)] == [[-1.0, 0.0, 1.0, 4.0, 5.0], [-1.0, 1.0]]
    assert [part.tolist() for part in stretched(edges, moving, 0.25)] == [[-1.0, 0.0, 1.0, 5.0], [-1.0, 1.0]]
    moving = np.array([[False, True], [True, False]])
    assert [part.tolist() for part in widened(edges, moving, 0.5)] == [[0.0, 1.0, 4.0, 6.0], [-2.0, -1.0, 1.0]]
    assert [part.tolist() for part in stretched(edges, moving, 0.5)] == [[0.0, 1.0, 4.0, 6.0], [-2.0, 1.0]]
    both = np.ones((2, 2), dtype=np.bool_)
    assert [part.tolist() for part in stretched(edges, both, 0.25)] == [[-1.0, 0.0, 1.0, 5.0], [-1.5, 1.5]]


def test_a_narrower_box_has_no_slivers_at_its_faces():
    edges = [np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([-1.0, 1.0])]
    moving = np.array([[True, False], [True, False]])
    assert [part.tolist() for part in narrowed(edges, moving, 0.1)] == [[0.4, 1.0, 2.0, 3.0, 3.6], [-1.0, 1.0]]
    low = np.array([[True, True], [False, False]])
    assert [part.tolist() for part in narrowed(edges, low, 0.2)] == [[0.8, 2.0, 3.0, 4.0], [-0.6, 1.0]]


def test_first_cells_are_small_in_the_middle_of_the_law_or_equal_between_faces_that_stay() -> None:
    box = Box([-5.0, 0.0], [4.0, 1.0])
    edges = first_edges(box, reach_in(2, 1.0, 0.6), np.array([[False, True], [False, True]]), 6)
    widths = np.diff(edges[0])
    assert edges[0][[0, -1]].tolist() == [-5.0, 4.0]
    assert np.abs(edges[0] - 0.6).min() < 1e-12
    assert np.abs(edges[0][1:] + edges[0][:-1] - 1.2)[widths.argmin()] < 2 * widths.min()
    assert widths.max() > 2.5 * widths.min()
    np.testing.assert_allclose(np.diff(edges[1]), 1 / (len(edges[1]) - 1))
    for middle in (-30.0, 30.0):  # a law beyond the box
        aside = first_edges(BOX, reach_in(1, 1.0, middle), np.zeros((2, 1), dtype=np.bool_), 6)[0]
        assert (np.diff(aside) > 0).all()
        assert aside[[0, -1]].tolist() == [-5.0, 4.0]


def test_weights_are_those_of_the_law_or_all_alike_where_it_is_not_seen() -> None:
    edges = [np.linspace(-5, 4, 10)]
    near, far = (grid_on(edges, 8, [reach_in(1, 0.5, m)], 0.0, 1.0) for m in (1.0, 1000.0))
    x = near.lines[0].nodes
    assert near.masses[0] @ x == pytest.approx(1.0, abs=1e-4)
    assert near.masses[0] @ (x - 1) ** 2 == pytest.approx(0.25, rel=1e-3)
    np.testing.assert_allclose(far.masses[0], far.lines[0].weights / 9)
    both = grid_on(edges, 8, [reach_in(1, 0.5, m) for m in (1.0, -3.0)], 0.0, 1.0)
    assert both.masses[0] @ x == pytest.approx(-1.0, abs=1e-3)
    assert both.masses[0].sum() == pytest.approx(1.0)


# Transfer


@pytest.mark.parametrize("d", [1, 2, 3])
def test_polynomials_are_carried_exactly(d: int) -> None:
    rng = np.random.default_rng(d)
    old = [np.array([-1.0, -0.2, 0.5, 1.0]), np.array([-2.0, 0.3, 2.0]), np.array([0.0, 0.7, 1.0])][:d]
    new = [np.array([-1.0, 0.1, 1.0]), np.array([-2.0, -0.5, 0.1, 2.0]), np.array([0.0, 0.4, 1.0])][:d]
    one, other = grid_of(*old, degree=5), grid_of(*new, degree=7)
    coefficients = rng.standard_normal((6,) * d)

    def polynomial(grid: Grid) -> FloatArray:
        value = coefficients
        for line in grid.lines:
            value = np.tensordot(value, np.vander(line.nodes, 6, increasing=True).T, (0, 0))
        return value

    carried = transfer(polynomial(one), one, other)
    assert carried.flags.c_contiguous
    np.testing.assert_allclose(carried, polynomial(other), atol=1e-11)
    np.testing.assert_allclose(transfer(carried, other, one), polynomial(one), atol=1e-11)
    assert transfer(carried, other, other) is carried
    rough, wanted = (np.cos(9 * grid.nodes.sum(axis=1)).reshape(grid.shape) for grid in (one, other))
    assert np.abs(transfer(rough, one, other) - wanted).max() > 1e-3


def test_transfer_loses_what_the_new_grid_does_not_resolve_and_says_so_by_what_is_unresolved() -> None:
    fine, coarse = grid_of(np.linspace(-2, 2, 17)), grid_of(np.linspace(-2, 2, 3))
    wave = np.sin(9 * fine.lines[0].nodes)
    there = transfer(wave, fine, coarse)
    lost = np.abs(transfer(there, coarse, fine) - wave).max()
    assert lost > 1e-4
    assert total(unresolved(coarse, gradient(coarse, there), np.ones(1))[0]) > lost
    assert total(unresolved(fine, gradient(fine, wave), np.ones(1))[0]) < 1e-6
