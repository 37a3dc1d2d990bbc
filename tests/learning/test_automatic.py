"""A class that is chosen by the error of its policy."""

import dataclasses
from itertools import chain, repeat

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.learning import automatic
from fem_hjb.learning.automatic import dictionaries, envelope
from fem_hjb.learning.measures import law_measure
from fem_hjb.learning.recipe import Recipe
from fem_hjb.learning.witness import POLICY
from fem_hjb.support.errors import ConvergenceError, MeasureError
from fem_hjb.support.progress import OutOfTimeError

LQ = fh.zoo.get("lq", dim=1)
PATHS = fh.sample_paths(LQ, n=300, steps=32, rng=1)


class Told:
    def __init__(self, policy):
        self.policy, self.value = policy, 0.01


def test_the_least_estimate_is_chosen_and_what_was_tried_is_told():
    found = fh.fit(LQ, PATHS)  # "auto" if nothing is said
    tried = found.stats["tried"]
    (best,) = [row for row in tried if row["chosen"]]
    assert best["policy"] == min(row["policy"] for row in tried)
    assert found.space.n_dofs == best["dofs"]
    assert {"dofs", "cells", "time_cells", "policy", "value", "status", "seconds"} <= best.keys()
    assert {check.name: check.figure for check in found.checks}[POLICY] == best["policy"]  # the same paths, once more
    assert best["policy"] < 0.05
    assert {row["element"] for row in tried} == {"hermite", "B3"}
    *_, last = str(found).splitlines()
    assert last.startswith("classes tried, cells in time x in space, error of the policy: hermite 2 x 4 ")
    assert f"{best['time_cells']} x {best['cells']} {best['policy']:.2g} (chosen)" in last
    assert last.count("(chosen)") == 1
    assert last.count(",") == len(tried) + 1


@pytest.mark.parametrize(
    ("estimates", "chosen", "climbed"),
    [
        ((0.5, 0.2, 0.3, 0.4), 1, (4, 2)),
        ((0.5, 0.2, 0.3, 0.1, 0.3, 0.2), 3, (6, 2)),
        ((0.1, 0.2, 0.3), 0, (3, 2)),
        ((0.5, 0.2, 0.3, 0.4, 0.19), 4, (4, 3)),  # a spline
    ],
)
def test_two_steps_in_a_row_that_are_no_better_end_the_climb(estimates, chosen, climbed, monkeypatch):
    told = chain(estimates, repeat(1.0))
    monkeypatch.setattr(automatic, "witness", lambda *_: Told(next(told)))
    paths = fh.sample_paths(LQ, n=1300, steps=8, rng=1)
    found = fh.fit(LQ, paths, "auto", estimator="residual").stats["tried"]
    assert [row["chosen"] for row in found].index(True) == chosen
    elements = [row["element"] for row in found]
    assert elements == ["hermite"] * climbed[0] + ["B3"] * climbed[1]


def test_sets_are_kept_in_every_class_and_where_none_can_be_learned_in_that_is_said():
    found = fh.fit(LQ, PATHS, "auto", estimator="residual", constraint=fh.Bounds(0, 1))
    assert "Bounds" in found.stats["constraint"]
    x = np.linspace(*np.ravel(found.space.spatial.box.bounds), 50)[:, None]
    assert found.f(0.5, x).min() >= -1e-9
    with pytest.raises(ConvergenceError, match=r"none of \d classes could be learned in; the last one: .*empty"):
        fh.fit(LQ, PATHS, "auto", terminal="interpolated", constraint=fh.Bounds(2, 3))


@pytest.mark.parametrize("verify", [False, "held-out"])
def test_without_a_simulation_held_out_trajectories_choose(verify, monkeypatch):
    monkeypatch.setattr(automatic, "witness", None)
    found = fh.fit(LQ, PATHS, "auto", verify=verify)
    tried = found.stats["tried"]
    assert all("residual excess" in row for row in tried)
    assert sum(row["chosen"] for row in tried) == 1
    *_, last = str(found).splitlines()
    assert "risk on held-out trajectories above the lowest: hermite 2 x 4" in last
    assert last.count("(chosen)") == 1


def test_a_dictionary_on_request_and_in_more_than_three_dimensions():
    found = fh.fit(LQ, PATHS, "dictionary")
    assert "union" in {row["element"] for row in found.stats["tried"]}
    assert found.error_estimate.policy < 0.05
    assert fh.compare({"": found}, LQ.exact, problem=LQ, law="controlled").overall("").policy < 0.1
    four = fh.zoo.get("lq", dim=4)
    few = fh.sample_paths(four, n=60, steps=8, rng=0)
    assert {space.spatial.element for space in dictionaries(four, few)} == {
        "envelope of hermite-cross",
        "hermite-cross",
    }
    learned = fh.fit(four, few, "auto", accept=1.0)
    assert learned.space.spatial.kind == "unbounded"


def test_the_envelope_is_the_best_quadratic_and_does_not_outgrow_the_law():
    problem = fh.ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=0.5,
        drift=lambda t, x: -x,
        diffusion=1.0,
        terminal_reward=lambda x: x[..., 0] - x[..., 0] * x[..., 1] - 2 * x[..., 1] ** 2 - x[..., 0] ** 2,
        initial_law=fh.Gaussian([1.0, 0.0], 1.0),
    )
    law = fh.Gaussian([0.5, 0.2], [[1.0, 0.3], [0.3, 0.5]])
    ends = law.sample(4000, np.random.default_rng(0))
    Q, q = envelope(problem, ends, law)
    np.testing.assert_allclose(Q, [[4.0, 2.0], [2.0, 8.0]], atol=1e-3)
    np.testing.assert_allclose(q, [2.0, 0.0], atol=1e-3)
    growing = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -x,
        diffusion=1.0,
        terminal_reward=lambda x: 3 * x[..., 0] ** 2,
        initial_law=fh.Gaussian([0.0], 1.0),
    )
    Q, _ = envelope(growing, np.linspace(-2, 2, 50)[:, None], fh.Gaussian([0.0], 2.0))
    assert Q[0, 0] == pytest.approx(-0.125)


def test_when_time_is_over_the_best_so_far_is_taken(monkeypatch):
    told = iter((0.2, 0.1))

    def walked(solution, accept, seed, tell):
        found = next(told, None)
        if found is None:
            raise OutOfTimeError
        return Told(found)

    monkeypatch.setattr(automatic, "witness", walked)
    found = fh.fit(LQ, PATHS, "auto", max_seconds=1000.0)
    assert "max_seconds were over: chosen among the first 2 of" in found.status
    assert [row["chosen"] for row in found.stats["tried"]] == [False, True]


def test_what_is_refused():
    space = fh.Space(LQ, cells=2, time_cells=1, box=fh.Box([-4.0], [4.0]))
    with pytest.raises(MeasureError, match="space='dictionary' needs trajectories, Paths or a PathSource, got Measure"):
        fh.fit(LQ, law_measure(LQ, space), "dictionary")
    with pytest.raises(MeasureError, match="space must be one of 'auto', 'dictionary', got 'cells'"):
        fh.fit(LQ, PATHS, "cells")


def test_a_system_in_doubt_must_be_better_by_half(monkeypatch):
    """Its status would not be "ok"."""
    for better, chosen in ((0.08, 0), (0.05, 1)):
        told, doubts = chain((0.1, better), repeat(1.0)), iter(("ok", "unstable", "ok", "ok"))
        learned = Recipe.learned

        def doubted(self, *given, learned=learned, doubts=doubts, **how):
            solution, system = learned(self, *given, **how)
            return dataclasses.replace(solution, status=next(doubts, "ok")), system

        monkeypatch.setattr(Recipe, "learned", doubted)
        monkeypatch.setattr(automatic, "witness", lambda *_, told=told: Told(next(told)))
        tried = fh.fit(LQ, PATHS, "auto").stats["tried"]
        assert [row["chosen"] for row in tried].index(True) == chosen
        monkeypatch.undo()
