"""Drifts that are slowed down where the law does not go: what is changed, what is not, and that it is seen."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from fem_hjb.paths.extent import sample_law
from fem_hjb.problems import zoo
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference import box_speed, box_tolerance
from fem_hjb.reference.box_speed import most_of, share_above, tamed
from fem_hjb.reference.box_tolerance import _Search
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.checks import FloatArray

M = np.array([[-1.0, 0.62], [0.61, 0.97]])
INVERSE = np.linalg.inv(M)
RTOL = 5e-3


def wells(drift: Any = None, **changes: Any) -> ControlProblem:
    """Quartic wells along two directions that are not the axes."""

    def pull(t: Any, x: FloatArray) -> FloatArray:
        z = x @ INVERSE.T
        return np.asarray((-4.0 * z * (z**2 - 1.0)) @ M.T)

    def y(x: FloatArray) -> FloatArray:
        z = x @ INVERSE.T
        return np.asarray(np.tanh(z[..., 0]) + 0.5 * np.sin(2.0 * z[..., 1]))

    given: dict[str, Any] = {
        "dim": 2,
        "horizon": 1.0,
        "temperature": 0.7,
        "drift": drift or pull,
        "diffusion": M @ M.T,
        "terminal_reward": y,
        "initial_law": Gaussian(np.zeros(2), 0.1 * np.eye(2)),
    }
    return ControlProblem(**(given | changes))


def most(problem: ControlProblem, mass: float = 1e-8) -> float:
    search = _Search(problem, 1e-3, None, None, None, 0)
    metric = np.sqrt(np.diag(problem.Lambda(0.0, np.zeros((1, 2)))[0])) if problem.dim == 2 else np.ones(problem.dim)
    return most_of(problem, metric, search.sample, search.ends, [], search.box, search.jumps, mass)


def test_slow_drifts_are_as_they_are_and_fast_ones_point_the_same_way() -> None:
    metric, direction = np.array([1.0, 2.0]), np.array([0.6, 1.6])  # of speed 1
    s = np.array([0.0, 0.5, 1.0, 1.5, 3.0, 100.0])
    found = tamed(3.0 * s[:, None] * direction, metric, 3.0)
    speed = np.sqrt(((found / metric) ** 2).sum(axis=1)) / 3.0
    np.testing.assert_allclose(found, 3.0 * speed[:, None] * direction, atol=1e-14)
    np.testing.assert_array_equal(found[:3], 3.0 * s[:3, None] * direction)
    assert (np.diff(speed) > 0).all()
    assert speed.max() <= 2.0
    h = 1e-3  # twice differentiable where the change begins: the third difference is of the order of h^3
    near = tamed((1.0 + h * np.array([-2.0, -1.0, 0.0, 1.0, 2.0]))[:, None] * direction, metric, 1.0)[:, 0]
    assert np.abs(np.diff(near, 2)).max() < 5 * h**3


def test_the_speed_is_beyond_all_draws_and_grows_as_the_mass_falls() -> None:
    problem = wells()
    sample = sample_law(problem, 0)
    level, further = most(problem), most(problem, 1e-14)
    metric = np.sqrt(np.diag(M @ M.T))
    assert np.isfinite(level)
    assert share_above(problem, metric, level, sample.times, sample.x) == 0.0
    assert share_above(problem, metric, level / 3.0, sample.times, sample.x) > 0.0
    assert further > 1.1 * level


@pytest.mark.parametrize(
    "problem",
    [
        zoo.get("lq", 2),
        zoo.get("mixture-diffusion", 2),
        zoo.get("double-well", 1),
        wells(lambda t, x: x @ np.array([[-1.0, 3.0], [-3.0, -1.0]])),
        wells(lambda t, x: np.sin(3.0 * x)),
    ],
    ids=["declared linear", "mixture", "one dimension", "linear", "bounded"],
)
def test_what_is_not_several_times_as_fast_anywhere_is_left_alone(problem: ControlProblem) -> None:
    assert most(problem) == np.inf


def test_a_window_in_time_is_not_slowed_down() -> None:
    """A gust between two of the times at which the law is drawn."""

    def gusty(t: Any, x: FloatArray) -> FloatArray:
        blowing = (np.asarray(t) > 0.53) & (np.asarray(t) < 0.55)
        return np.asarray(wells().b(t, x) + 60.0 * np.where(blowing, 1.0, 0.0)[..., None] * np.array([1.0, 0.0]))

    assert most(wells(gusty)) > 60.0 / np.sqrt((M @ M.T)[0, 0])


@cache
def solved(slow: float, margin: float = 1.2) -> tuple[Solution, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_tolerance, "_SLOW", slow)
        patch.setattr(box_speed, "_MARGIN", margin)
        found = solve(wells(), rtol=RTOL)
    assert isinstance(found, Solution)
    return found, dict(found.stats)


def test_solutions_are_the_same_with_fewer_steps() -> None:
    (tame, own), (wild, others) = solved(0), solved(np.inf)
    assert tame.status == wild.status == "ok"
    assert [check.passed for check in tame.checks if check.name == "drift"] == [True]
    assert not [check for check in wild.checks if check.name == "drift"]
    assert own["steps"] < 0.7 * others["steps"]
    for law in ("uncontrolled", "controlled"):
        row = compare({"tame": tame}, wild, law=law, rng=1).overall("tame")
        assert max(row.value, row.policy) < RTOL


def test_drifts_that_paths_meet_are_not_slowed_down_without_a_word() -> None:
    """A speed that the law exceeds: paths under the policy tell, and are followed."""
    problem = wells()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_tolerance, "_SLOW", 0)
        patch.setattr(box_tolerance, "most_of", lambda *_: 2.0)
        search = _Search(problem, 1e-2, None, None, None, 0)
        found = search.run(lambda _: None)
    (check,) = [check for check in search.solution(found).checks if check.name == "drift"]
    assert not check.passed
    assert max(found.parts["truncation"]) > 1e-2  # and what a lower speed changes is much


def test_what_it_changes_is_measured() -> None:
    """A speed just beyond what is seen changes little, and that is an upper bound of what it does."""
    problem = wells()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_tolerance, "_SLOW", 0)
        patch.setattr(box_tolerance, "most_of", lambda *_: 12.0)
        search = _Search(problem, RTOL, None, None, None, 0)
        found = search.run(lambda _: None)
        tame = search.solution(found)
    row = compare({"tame": tame}, solved(np.inf)[0], law="uncontrolled", rng=1).overall("tame")
    value, policy = found.parts["truncation"]
    assert row.policy < 2.0 * (policy + found.parts["space"][1] + found.parts["time"][1])
    assert row.value < 2.0 * (value + found.parts["space"][0] + found.parts["time"][0])


def test_expectations_are_those_of_the_drift_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """No policy is followed that could tell whether drifts were met."""
    monkeypatch.setattr(box_tolerance, "_SLOW", 0)
    search = _Search(wells(horizon=0.2), 1e-1, "linear", None, None, 0, lambda x: 1.0 + x[:, 0] ** 2)
    assert search.run(lambda _: None).most == np.inf


def test_a_policy_that_no_path_follows_leaves_the_check_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_tolerance, "_SLOW", 0)
    monkeypatch.setattr(box_tolerance, "steered", lambda *_: None)
    search = _Search(wells(), 1e-1, None, None, None, 0)
    checks = search.solution(search.run(lambda _: None)).checks
    assert [check.passed for check in checks if check.name == "drift"] == [False]
