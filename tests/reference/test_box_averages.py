"""Averages of functions that jump: their integrals, and the order that they restore at positive times."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import ndtr
from scipy.stats import ncx2

from fem_hjb.reference import box_averages
from fem_hjb.reference.box_averages import averages
from fem_hjb.reference.box_panel import Grid
from fem_hjb.spaces.axes import apply_all
from fem_hjb.spaces.spectral import SpectralLine
from fem_hjb.support.checks import FloatArray

Function = Callable[[FloatArray], FloatArray]

S = 0.05  # time to go


def grid_of(cells: int, degree: int, dim: int = 2) -> Grid:
    lines = tuple(SpectralLine(np.linspace(-2.0, 2.0, cells + 1), degree) for _ in range(dim))
    return Grid(lines, tuple(line.weights / 4.0 for line in lines), 1e-4)


def integral(grid: Grid, values: FloatArray) -> float:
    return 4.0**grid.dim * grid.mean(values)


def plane(angle: float) -> tuple[Function, Function]:
    """1 + 2 1{<n, x> > 0.123}, and what the heat equation makes of it by S."""
    n = np.array([np.cos(angle), np.sin(angle)])
    return lambda x: 1.0 + 2.0 * (x @ n > 0.123), lambda x: 1.0 + 2.0 * ndtr((x @ n - 0.123) / np.sqrt(S))


def disc() -> tuple[Function, Function]:
    """1 + 2 1{|x| < 0.7}; the squared distance is noncentral chi-square."""

    def later(x: FloatArray) -> FloatArray:
        return np.asarray(1.0 + 2.0 * ncx2.cdf(0.49 / S, 2, (x**2).sum(-1) / S))

    return lambda x: 1.0 + 2.0 * ((x**2).sum(-1) < 0.49), later


def crossing() -> tuple[Function, Function]:
    """A product of two such jumps, along lines that cross in the middle of the grid at right angles."""
    (one, one_later), (other, other_later) = plane(0.5), plane(0.5 + 0.5 * np.pi)
    return lambda x: one(x) * other(x), lambda x: one_later(x) * other_later(x)


def wrong(grid: Grid, begun: FloatArray, later: Function) -> float:
    """Of the semidiscrete heat equation after S, at the middle nodes: L2."""
    found = apply_all([expm(0.5 * S * line.laplacian) for line in grid.lines], begun)
    inner = np.abs(grid.nodes).max(axis=1) < 1.0
    return float(np.sqrt(((found.ravel() - later(grid.nodes))[inner] ** 2).mean()))


def slope(sizes: FloatArray, errors: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def test_smooth_functions_are_integrated_as_elements_do() -> None:
    grid = grid_of(5, 8)
    found = averages(grid, lambda x: np.exp(x[:, 0] - 0.5 * x[:, 1]))
    expected = 2.0 * np.sinh(2.0) * 4.0 * np.sinh(1.0)
    assert integral(grid, found) == pytest.approx(expected, rel=1e-13)
    line = grid.lines[0]
    moment = integral(grid, found * line.nodes[:, None] ** 3)
    assert moment == pytest.approx(
        (2 * np.cosh(2.0) * 8 + 6 * 2 * 2 * np.cosh(2.0) - np.sinh(2.0) * 36) * 4 * np.sinh(1), rel=1e-10
    )


@pytest.mark.parametrize("place", [0.123, 0.3, -0.71, 1.999, 0.4])
def test_a_jump_on_a_line_is_found_to_rounding(place: float) -> None:
    grid = grid_of(10, 8, 1)
    found = averages(grid, lambda x: 1.0 * (x[:, 0] > place))
    nodes = grid.lines[0].nodes
    for k in range(5):  # the moments of a polynomial, which elements of degree 8 have
        assert integral(grid, found * nodes**k) == pytest.approx(
            (2.0 ** (k + 1) - place ** (k + 1)) / (k + 1), abs=1e-7
        )


@pytest.mark.parametrize(("angle", "exact"), [(0.0, 4 * 1.877), (0.5, None)])
def test_areas(angle: float, exact: float | None) -> None:
    grid = grid_of(7, 8)
    n = np.array([np.cos(angle), np.sin(angle)])
    found = integral(grid, averages(grid, lambda x: 1.0 * (x @ n > 0.123)))
    if exact is None:  # the line meets the upper and lower faces
        ends = (0.123 - np.array([-2.0, 2.0]) * n[1]) / n[0]
        exact = 4.0 * float((2.0 - ends).mean())
    assert found == pytest.approx(exact, abs=1e-8)
    values = grid.nodes @ n > 0.123
    assert abs(integral(grid, values.reshape(grid.shape).astype(np.float64)) - exact) > 1e-3


def test_the_area_of_a_disc() -> None:
    found = integral(grid_of(24, 8), averages(grid_of(24, 8), disc()[0]))
    assert found == pytest.approx(16.0 + 2.0 * np.pi * 0.49, abs=1e-8)


@pytest.mark.parametrize("posed", [plane(0.5), disc(), crossing()], ids=["oblique", "round", "crossing"])
def test_halving_until_rules_agree_leaves_next_to_nothing(
    posed: tuple[Function, Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: lines split in the middle."""
    given, later = posed
    grid = grid_of(24, 8)
    assert wrong(grid, averages(grid, given), later) < 2e-7  # the faces of the grid are felt
    monkeypatch.setattr(box_averages, "_cut", lambda on_lines, shape: np.full((*shape, 1), 0.5))
    monkeypatch.setattr(box_averages, "_FURTHER", 1)
    assert wrong(grid, averages(grid, given), later) > 1e-5


def test_rules_that_disagree_are_halved_where_jumps_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    given, later = crossing()
    grid = grid_of(24, 8)
    monkeypatch.setattr(box_averages, "_FURTHER", 0)
    assert wrong(grid, averages(grid, given), later) > 3e-6


@pytest.mark.parametrize(
    "posed", [plane(0.0), plane(0.5), disc(), crossing()], ids=["straight", "oblique", "round", "crossing"]
)
def test_averages_restore_the_order_at_positive_times(posed: tuple[Function, Function]) -> None:
    """Elements of degree 2 on GLL nodes are of order 4 at positive times from averages, of order 1 from values."""
    given, later = posed
    cells = np.array([40, 52, 68, 90, 120])
    averaged, nodal = [], []
    for m in cells.tolist():
        grid = grid_of(m, 2)
        averaged.append(wrong(grid, averages(grid, given), later))
        nodal.append(wrong(grid, given(grid.nodes).reshape(grid.shape), later))
    assert slope(1.0 / cells, averaged) == pytest.approx(4.0, abs=0.15)
    assert slope(1.0 / cells, nodal) < 2.0
    assert nodal[-1] > 100 * averaged[-1]
