"""The value along paths: it agrees for right solutions, and sees each of the ways in which one may be wrong."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference import pathwise
from fem_hjb.reference.pathwise import along_paths
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.estimate import ErrorEstimate, ToleranceWarning
from fem_hjb.solutions.solution import ProductSolution
from fem_hjb.support.checks import FloatArray

GOOD = ErrorEstimate(value=1e-3, policy=1e-3, space=1e-3, time=0.0, truncation=0.0)


def drift(t: Any, x: FloatArray, *, coupling: float = 1.0, pull: float = 1.0) -> FloatArray:
    u, v = x[..., 0], x[..., 1]
    return np.stack([-pull * u + coupling * np.sin(v), -v - 0.5 * coupling * np.cos(u)], axis=-1)


def running(t: Any, x: FloatArray, *, size: float = 1.0) -> FloatArray:
    return size * np.cos(x[..., 0] - x[..., 1]) + 0.0 * np.asarray(t)


def terminal(x: FloatArray, *, size: float = 1.0) -> FloatArray:
    return size * np.tanh(2.0 * x[..., 0] * x[..., 1] - x[..., 1])


def base() -> ControlProblem:
    return ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=0.3,
        drift=drift,
        diffusion=np.array([[1.0, 0.4], [0.4, 0.8]]),
        running_reward=running,
        terminal_reward=terminal,
        initial_law=Gaussian([0.5, -0.5], 0.1),
        name="base",
    )


def changed(name: str) -> ControlProblem:
    """The problem that a broken solver would have solved."""
    of = base()
    changes: dict[str, Callable[[], ControlProblem]] = {
        "no coupling": lambda: replace(of, drift=lambda t, x: drift(t, x, coupling=0.0)),
        "pull": lambda: replace(of, drift=lambda t, x: drift(t, x, pull=4.0)),
        "no running reward": lambda: replace(of, running_reward=None),
        "terminal reward": lambda: replace(of, terminal_reward=lambda x: terminal(x, size=1.2)),
        "diagonal diffusion": lambda: replace(of, diffusion=np.diag([1.0, 0.8])),
        "temperature": lambda: replace(of, temperature=0.4),
        "a stale time": lambda: replace(of, running_reward=lambda t, x: running(t, x) * (np.asarray(t) < 0.5)),
        "axes exchanged": lambda: replace(of, terminal_reward=lambda x: terminal(x[..., ::-1])),
    }
    return changes[name]()


@cache
def solution_of(name: str) -> Any:
    return solve(base() if name == "base" else changed(name), rtol=3e-3, verify=False)


def test_a_right_solution_passes_whatever_the_seed() -> None:
    """Four standard errors are exceeded once in ten thousand times."""
    found = [along_paths(base(), solution_of("base"), GOOD, seed=seed) for seed in range(20)]
    assert all(check.passed for checks in found for check in checks)
    limits = np.array([[check.limit for check in checks] for checks in found])
    assert limits[:, 0].max() < 0.13  # temperatures, where the value ranges over several
    assert limits[:, 1].max() < 0.35


@pytest.mark.parametrize(
    "name",
    [
        "no coupling",
        "pull",
        "no running reward",
        "terminal reward",
        "diagonal diffusion",
        "temperature",
        "a stale time",
        "axes exchanged",
    ],
)
def test_a_wrong_one_does_not(name: str) -> None:
    checks = along_paths(base(), solution_of(name), GOOD)
    assert max(check.figure / check.limit for check in checks) > 1.05


def test_a_box_too_small_is_seen() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        small = solve(base(), rtol=1e-1, box=Box([-0.7, -1.7], [1.7, 0.7]), verify=False, max_dofs=400)
    assert not along_paths(base(), small, GOOD)[0].passed


@pytest.mark.parametrize(
    ("name", "d"), [("mixture-diffusion", 1), ("brownian-mixture", 2), ("reflected", 2), ("lq", 2), ("double-well", 3)]
)
def test_closed_forms_and_solutions_pass(name: str, d: int) -> None:
    problem = zoo.get(name, d)
    if problem.exact is not None:

        class Exact:  # the gradient of a closed form, asked for as a solution's is
            def value(self, t: float, x: FloatArray, **_: str) -> FloatArray:
                return np.asarray(problem.exact.value(t, x))  # type: ignore[union-attr]

            def gradient(self, t: float, x: FloatArray, **_: str) -> FloatArray:
                return np.asarray(problem.exact.gradient(t, x))  # type: ignore[union-attr]

        checks = along_paths(
            problem, Exact(), ErrorEstimate(value=0.0, policy=0.0, space=0.0, time=0.0, truncation=0.0)
        )
        assert all(check.passed for check in checks)
    found = solve(problem, rtol=1e-2)
    assert found.status == "ok"
    names = [check.name for check in found.checks]
    assert (pathwise.VALUE in names) == (name != "double-well")  # in its wells paths would need too many steps
    assert all(check.passed for check in found.checks)
    assert all(each in str(found) for each in names)


def test_it_says_nothing_where_it_cannot() -> None:
    problem = zoo.get("lq", 1)
    walls = replace(problem, domain=Box([-3.0], [3.0], boundary="absorbing"), exact=None, marginal=None)
    assert along_paths(walls, None, GOOD) == ()
    steep = replace(problem, drift=lambda t, x: -5000.0 * x, exact=None, marginal=None)
    assert along_paths(steep, None, GOOD) == ()


def test_stiff_drifts_get_short_steps() -> None:
    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=0.5,
        drift=lambda t, x: -40.0 * x,
        diffusion=20.0,
        terminal_reward=lambda x: np.cos(2.0 * x[..., 0]),
        initial_law=PointMass([0.3]),
    )
    found = solve(problem, rtol=1e-3)
    assert [check.passed for check in found.checks] == [True] * len(found.checks)
    assert len(found.checks) == 4


def test_a_stiff_drift_that_is_declared_linear_gets_them_too() -> None:
    """Paths under a policy are never drawn exactly: in 32 steps they would leave every box, in 64 and 256 explode."""
    spread = 400.0**-0.5  # of the stationary law
    modes = {"weights": [0.4, 0.6], "means": [[spread], [-spread]]}
    covariances = [[[0.2 * spread**2]], [[0.3 * spread**2]]]
    start = {"mean": np.zeros(1), "cov": [[spread**2]]}
    problem = zoo.get("brownian-mixture", 1, A=-200.0, Lambda=1.0, **modes, covariances=covariances, **start)
    found = solve(problem, rtol=1e-2)
    assert found.status == "ok"
    assert [check.name for check in found.checks] == ["paths in the box", "residual"]  # too steep for 256 steps


# What `solve` makes of it


def coupled_far_away() -> ControlProblem:
    """Two coordinates that hang together only in a corner, through the reward."""
    return ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -x,
        diffusion=1.0,
        terminal_reward=lambda x: 3.0 * np.exp(-((x - 0.8) ** 2).sum(axis=-1)),
        initial_law=Gaussian([0.0, 0.0], 0.2),
    )


def test_coordinates_taken_for_independent_are_solved_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = coupled_far_away()
    whole = solve(problem, rtol=1e-2)
    assert whole.method == "box"
    monkeypatch.setattr(sys.modules[solve.__module__], "independent_blocks", lambda problem: [(0,), (1,)])
    monkeypatch.setattr(sys.modules[solve.__module__], "_still", lambda problem, blocks, seen: blocks)
    again = solve(problem, rtol=1e-2)
    assert again.method == "box"
    x = np.random.default_rng(0).normal(0.0, 0.5, (50, 2))
    np.testing.assert_allclose(again.value(0.3, x), whole.value(0.3, x), atol=1e-9)
    blind = solve(problem, rtol=1e-2, verify=False)
    assert blind.method == "product"  # and wrong, as nobody looked
    assert np.abs(blind.value(0.3, x) - whole.value(0.3, x)).max() > 0.1


def waves(x: FloatArray) -> Any:
    """Of mean 0, where paths arrive and none starts."""
    return np.sin(4 * x[..., 0]) * np.sin(4 * x[..., 1]) * np.clip(x - 2, 0, 1).prod(axis=-1)


def arriving(terminal_reward: Callable[[FloatArray], Any], **changes: Any) -> ControlProblem:
    """Two coordinates that the drift carries from 0 to 4."""
    given: dict[str, Any] = {
        "dim": 2,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": lambda t, x: 3.0 * (4.0 - x),
        "diffusion": 0.1,
        "terminal_reward": terminal_reward,
        "initial_law": Gaussian([0.0, 0.0], 0.01),
    }
    return ControlProblem(**{**given, **changes})


def test_what_hangs_together_only_where_the_process_arrives_is_solved_as_a_whole() -> None:
    """The coupling has the mean 0 over all that a check takes the mean of, and moves the policy by some per cent."""
    problem = arriving(lambda x: np.cos(2 * x).sum(axis=-1) + 0.03 * waves(x))
    for verify in (True, False):
        assert solve(problem, rtol=1e-2, verify=verify).method == "box"


def test_what_hangs_together_only_where_the_policy_steers_is_solved_as_a_whole() -> None:
    def reward(x: FloatArray) -> Any:
        return -40 * ((x - 3) ** 2).sum(axis=-1) + np.tanh(np.clip(x - 2, 0, None).prod(axis=-1) ** 3)

    problem = arriving(reward, drift=lambda t, x: -0.3 * x)
    assert solve(problem, rtol=1e-2, verify=False).method == "product"  # paths under the policy alone go there
    assert solve(problem, rtol=1e-2).method == "box"


def test_groups_that_differ_for_a_while_are_not_solved_once() -> None:
    def late(t: Any, x: FloatArray) -> Any:
        return 0.6 * np.sin(6 * x[..., 1]) * ((np.asarray(t) > 0.42) & (np.asarray(t) < 0.7))

    found = solve(arriving(lambda x: np.cos(2 * x).sum(axis=-1), drift=lambda t, x: -x, running_reward=late), rtol=1e-2)
    assert isinstance(found, ProductSolution)
    (_, first), (_, second) = found.parts
    x = np.full((1, 1), 0.2)
    assert abs(first.value(0.4, x)[0] - second.value(0.4, x)[0]) > 0.05


def test_a_failed_check_is_in_the_status_and_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Check(name=pathwise.VALUE, figure=1.0, limit=0.1, told="broken on purpose")
    monkeypatch.setattr(sys.modules[solve.__module__], "along_paths", lambda *_: (failed,))
    with pytest.warns(ToleranceWarning, match="broken on purpose"):
        found = solve(zoo.get("mixture-diffusion", 1), rtol=1e-2)
    assert "broken on purpose" in found.status
    assert not found.checks[-1].passed


def test_a_figure_that_is_no_number_has_not_passed() -> None:
    assert not Check(name="a", figure=float("nan"), limit=1.0, told="").passed
    assert Check(name="a", figure=1.0, limit=1.0, told="").passed
