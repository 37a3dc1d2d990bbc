"""Runs over panels of time: the grid that they begin on."""

from dataclasses import replace
from functools import cache

import pytest

from fem_hjb.problems import zoo
from fem_hjb.reference import box_march
from fem_hjb.reference.box_faces import begun
from fem_hjb.reference.box_grading import total, unresolved
from fem_hjb.reference.box_march import Marcher
from fem_hjb.reference.box_panel import Equation, Grid
from fem_hjb.reference.box_tolerance import _Search
from fem_hjb.reference.faces import truncated
from fem_hjb.spaces.axes import apply_axis


@cache
def search() -> _Search:
    return _Search(zoo.get("brownian-mixture", 3), 1e-2, None, None, None, 0)


def first(most: int) -> tuple[Marcher, Grid]:
    """A run that may have so many unknowns, and its first grid."""
    of = search()
    how = of.box, truncated(of.problem), of.reaches, of.jumps, 1e-3
    marcher = Marcher(
        Equation(of.problem, of.gauge, of.linear, *how),
        of.coefficients,
        replace(of.tolerances, most=most),
        lambda _: None,
    )
    return marcher, marcher.first_grid()


def missing(marcher: Marcher, grid: Grid) -> float:
    """What the grid does not resolve of the gradient at T, relative."""
    u = begun(marcher.equation, grid, 0.0, None)
    slopes = [apply_axis(line.derivative, u, k) for k, line in enumerate(grid.lines)]
    return max(map(total, unresolved(grid, slopes, marcher.metric))) / marcher.size_g


def test_with_all_unknowns_in_space_what_is_nearly_resolved_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """About twice what was asked for at most, which the run then keeps to; it is no jump."""
    asked = search().tolerances.space
    marcher, enough = first(10**6)
    assert (marcher.rough, marcher.tol.space) == (False, asked)
    assert missing(marcher, enough) <= asked
    marcher, grid = first(int(0.9 * enough.size))
    assert grid.size <= 0.9 * enough.size
    assert not marcher.rough
    assert asked < missing(marcher, grid) <= marcher.tol.space < 2.3 * asked
    marcher, _ = first(int(0.3 * enough.size))
    assert (marcher.rough, marcher.tol.space) == (True, asked)
    monkeypatch.setattr(box_march, "_RELAXED", 1.0)
    marcher, _ = first(int(0.9 * enough.size))
    assert (marcher.rough, marcher.tol.space) == (True, asked)
