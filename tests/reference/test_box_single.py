"""Plans followed in single precision: what is found so is what is found in double precision, where that is allowed."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.reference import box_judge, box_plans, box_single
from fem_hjb.reference.box_coefficients import CHUNK, Coefficients
from fem_hjb.reference.box_judge import Judge, cut
from fem_hjb.reference.box_panel import Grid, Operators
from fem_hjb.reference.box_plans import plans
from fem_hjb.reference.box_run import PanelRun, Run
from fem_hjb.reference.box_running import table_on
from fem_hjb.reference.box_single import rounding
from fem_hjb.reference.box_steps import made
from fem_hjb.reference.box_tolerance import _Search
from fem_hjb.reference.fokker_planck_start import no_gauge
from fem_hjb.spaces.spectral import SpectralLine

RTOL = 2e-2
ENOUGH = {"space": 0.8 * RTOL, "time": 0.3 * RTOL, "truncation": 0.3 * RTOL}


@dataclass
class Case:
    judge: Judge
    run: Run
    coefficients: Coefficients

    def parts(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(parts, 2)."""
        return np.array(list(self.judge.parts(self.coefficients, ENOUGH).values()))

    def again(self, single: bool) -> list[PanelRun]:
        """The panels of the run's own plan."""
        return list(made(plans(self.run, self.coefficients, cut(1), single=single)))


@cache
def case(name: str, d: int, rtol: float = RTOL, form: str | None = None) -> Case:
    """A run and its judge, which has no paths under the policy."""
    search = _Search(zoo.get(name, d), rtol, form, None, None, 0)
    run = search._marched(search.tolerances, lambda _: None)
    return Case(Judge(run, search.sample, None), run, search.coefficients)


def test_parts_of_the_error_are_those_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each to 5e-5 of what makes no trouble; rounded to half precision where a panel begins, they are not."""
    of = case("brownian-mixture", 3)
    single = of.parts()
    with monkeypatch.context() as without:
        without.setattr(box_judge, "rounding", lambda *_: np.inf)
        double = of.parts()
    least = min(ENOUGH.values())
    assert 0 < np.abs(single - double).max() < 5e-5 * least
    usual = box_single.in_single
    with monkeypatch.context() as poorer:
        poorer.setattr(box_plans, "in_single", lambda of, panel, u: usual(of, panel, u.astype(np.float16)))
        rough = of.parts()
    assert np.abs(rough - double).max() > 2e-3 * least


def test_a_plan_followed_in_single_precision_gives_the_run_to_its_digits() -> None:
    """And leaves the run as it was."""
    of = case("brownian-mixture", 3)
    for one, other in zip(of.run.panels, of.again(single=True), strict=True):
        assert {state.dtype for state in other.states} == {np.dtype(np.float32)}
        assert {state.dtype for state in one.states} == {np.dtype(np.float64)}
        np.testing.assert_allclose(other.last, one.last, atol=2e-6 * np.abs(one.last).max())
    for one, other in zip(of.run.panels, of.again(single=False), strict=True):
        np.testing.assert_allclose(other.last, one.last, atol=1e-10 * np.abs(one.last).max())


def test_what_is_not_looked_at_is_not_held() -> None:
    """At times that are looked at a plan is what it is; of steps between them nothing is left but their ends."""
    of = case("brownian-mixture", 3)
    looked = np.array([0.11, 0.4]) * of.run.panels[-1].ends[-1]
    some = list(made(plans(of.run, of.coefficients, cut(2), looked=looked)))
    every = list(made(plans(of.run, of.coefficients, cut(2))))
    for one, other in zip(some, every, strict=True):
        np.testing.assert_array_equal(one.last, other.last)
        np.testing.assert_array_equal(one.plan, other.plan)
        for s in looked[(looked > one.ends[0]) & (looked <= one.ends[-1])]:
            np.testing.assert_array_equal(one.at(s), other.at(s))
    held, before = (sum(len(panel.states) for panel in panels) for panels in (some, every))
    assert held < 0.5 * before


@pytest.mark.parametrize("moving", [True, False])
def test_tables_in_single_precision_know_what_is_left_when_the_separable_part_is_taken_out(moving: bool) -> None:
    """Of a drift of 1e6 x with 1e-3 that changes: rounded before that is taken out, nothing would be left of it."""
    problem = replace(
        zoo.get("double-well-2d-coupled", 2),
        drift=lambda t, x: -1e6 * x + 1e-3 * np.cos(moving * np.asarray(t)[..., None] + x[..., ::-1]),
        running_reward=None,
        exact=None,
    )
    coefficients = Coefficients(problem, no_gauge(problem), True)
    lines = tuple(SpectralLine(np.linspace(-2.0, 2.0, 21), 9) for _ in range(2))
    grid = Grid(lines, tuple(line.weights for line in lines), 0.0)
    assert 2 * grid.size > CHUNK
    none = np.zeros((2, 2), dtype=np.bool_)
    single, double = (table_on(coefficients, grid, 0.2, 0.3, 2, rough=False, single=kind) for kind in (True, False))
    for table in (single, double):
        Operators(grid, table, coefficients.constant, none, 1.0, True, np.ones(2))
    assert single.values[0].dtype == (np.float32 if moving else np.float64)
    for k in range(2):
        np.testing.assert_allclose(single.row(k), double.row(k), atol=1e-8, rtol=0)
        assert 1e-4 < np.abs(double.row(k)).max() < 1e-2


def test_what_rounding_changes_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half precision, which has 2^13 times less digits, it is as much more, and too much to be allowed."""
    of = case("brownian-mixture", 3)
    sizes = of.judge.sizes.max(axis=(0, 1))
    small = rounding(of.run, sizes)
    assert small < box_single.ROUNDED * min(ENOUGH.values())
    monkeypatch.setattr(box_single, "KIND", np.float16)
    large = rounding(of.run, sizes)
    assert large > box_single.ROUNDED * min(ENOUGH.values())
    assert 2**12 < large / small < 2**14


def test_values_beyond_single_precision_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    of = case("brownian-mixture", 3)
    last = of.run.panels[-1].last
    monkeypatch.setattr(PanelRun, "last", property(lambda panel: 1e39 * np.ones_like(last)))
    monkeypatch.setattr(of.run, "panels", of.run.panels[-1:])
    assert rounding(of.run, np.ones(2)) == np.inf


@pytest.mark.parametrize(
    ("name", "d", "rtol", "form"),
    [("brownian-mixture", 2, 1e-2, None), ("lq", 3, RTOL, "linear")],
)
def test_elsewhere_plans_are_followed_as_they_are(name: str, d: int, rtol: float, form: str | None) -> None:
    of = case(name, d, rtol, form)
    assert rounding(of.run, np.ones(2)) == np.inf


def test_tables_in_double_precision_keep_plans_in_it() -> None:
    """They are where coefficients are to be known better than to seven digits."""
    of = case("brownian-mixture", 3)
    table = of.run.panels[-1].operators.table
    assert table.single
    assert np.isfinite(rounding(of.run, np.ones(2)))
    table.single = False
    try:
        assert rounding(of.run, np.ones(2)) == np.inf
    finally:
        table.single = True
