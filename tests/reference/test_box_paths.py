"""Paths under the policy of a run: their law, the box that follows them, and the end of time."""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from fem_hjb.paths import tilted
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.reference import box_paths, box_tolerance
from fem_hjb.reference.box_judge import Judge
from fem_hjb.reference.box_paths import Steered, steered
from fem_hjb.reference.box_tolerance import _Search
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import OutOfTimeError


def to_two_modes(near: float, far: float, *, declared: bool = True) -> ControlProblem:
    """Brownian motion from 0, steered to 1/2 N(near, .64) + 1/2 N(far, .25): v_0(0) = 0, and p*_T is the target."""

    def y(x: FloatArray) -> FloatArray:
        z = x[..., 0]
        parts = [np.log(0.5) + norm.logpdf(z, mean, spread) for mean, spread in ((near, 0.8), (far, 0.5))]
        return np.asarray(np.logaddexp(*parts) - norm.logpdf(z))

    def still(t: Any, x: FloatArray) -> FloatArray:
        return np.zeros_like(x)

    return ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=LinearDrift([[0.0]], [0.0]) if declared else still,
        diffusion=1.0,
        terminal_reward=y,
        initial_law=PointMass([0.0]),
    )


@pytest.mark.parametrize(("near", "far", "declared"), [(1.0, 12.0, True), (1.0, 12.0, False), (-2.0, -8.0, False)])
def test_modes_that_no_path_of_the_process_sees_are_solved_for(near: float, far: float, declared: bool) -> None:
    found = solve(to_two_modes(near, far, declared=declared), rtol=1e-3)
    assert found.status == "ok"
    assert float(found.value(0.0, np.zeros((1, 1)))[0]) == pytest.approx(0.0, abs=2e-3 * 60)
    policy = float(found.policy(0.0, np.zeros((1, 1)))[0, 0])  # E* X_T, as the drift of a bridge from 0 is
    assert policy == pytest.approx((near + far) / 2, rel=3e-3)


def test_paths_end_in_the_target() -> None:
    search = _Search(to_two_modes(1.0, 9.0), 1e-3, None, None, None, 0)
    run = search.run(lambda _: None).run
    found = steered(run, 0)
    assert found is not None
    assert found.lost == 0.0
    ends = found.nearest(1.0)[:, 0]
    assert (ends > 5.0).mean() == pytest.approx(0.5, abs=0.06)
    assert ends[ends > 5.0].std() == pytest.approx(0.5, rel=0.12)
    assert ends[ends < 5.0].mean() == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize(
    ("shares", "followed", "lost"),
    [
        ((0.0,), 1, 0.0),
        ((0.3, 0.0), 2, 0.0),
        ((0.3, 0.1, 0.02), 3, 0.02),
        ((0.3, 0.29), 2, 0.29),  # so the box is too small, and not the steps too long
        ((None, 0.3, 0.25), 3, 0.25),
        ((None, None, 0.3), 3, 0.3),
    ],
)
def test_steps_are_cut_while_that_keeps_paths_in_the_box(
    shares: tuple[float | None, ...], followed: int, lost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def follow(run: Any, policy: Any, substeps: int, seed: int) -> Steered:
        steps.append(substeps)
        share = shares[len(steps) - 1]
        if share is None:
            raise ConvergenceError("they explode")
        return Steered(times=np.zeros(1), x=np.zeros((1, 100, 1)), outside=np.arange(100) < 100 * share)

    monkeypatch.setattr(box_paths, "_followed", follow)
    box = Box([-1.0], [1.0])
    run: Any = SimpleNamespace(equation=SimpleNamespace(problem=zoo.get("lq", 1), box=box))
    found = steered(run, 0)
    assert found is not None
    assert found.lost == pytest.approx(lost)
    assert len(steps) == followed
    assert steps == sorted(steps)


@pytest.mark.parametrize("rtol", [1e-2, 0.1])
def test_a_run_that_time_left_no_one_to_judge_is_returned_without_an_estimate(
    rtol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over(judge: Judge, *_: Any) -> Any:
        raise OutOfTimeError

    problem = zoo.get("double-well", 1)
    monkeypatch.setattr(Judge, "parts", over)
    with pytest.warns(ToleranceWarning, match="max_seconds were over before the error was estimated"):
        found = solve(problem, rtol=rtol, max_seconds=1e6)
    assert found.error_estimate is not None
    assert found.error_estimate.value == found.error_estimate.policy == np.inf
    assert found.status.startswith("max_seconds were over before the error was estimated")
    assert "relative error: value inf" in str(found)
    monkeypatch.undo()
    row = compare({"it": found}, solve(problem, rtol=1e-4), problem=problem).overall("it")
    assert max(row.value, row.policy) < 0.1


def test_what_no_run_came_of_is_an_error_still(monkeypatch: pytest.MonkeyPatch) -> None:
    def over(*_: Any) -> Any:
        raise OutOfTimeError

    drawn: list[int] = []
    sample_law = tilted.sample_law
    monkeypatch.setattr(tilted, "sample_law", lambda *args: drawn.append(1) or sample_law(*args))  # type: ignore[func-returns-value]
    monkeypatch.setattr(_Search, "_held", over)
    with pytest.raises(ConvergenceError, match="no solution within max_seconds"):
        solve(zoo.get("double-well", 1), rtol=1e-2, max_seconds=1e6)
    assert len(drawn) == 1  # though there was a second search, to a looser tolerance
    with pytest.raises(ConvergenceError, match="no solution within max_seconds"):
        solve(zoo.get("double-well", 1), rtol=1e-2, max_seconds=1e-9)
    assert len(drawn) == 1  # time that is over before paths are drawn is seen


def narrow() -> _Search:
    """One whose box holds half of the process."""
    search = _Search(zoo.get("brownian-mixture", 1), 1e-3, None, None, None, 0)
    search.reaches = (replace(search.reaches[0], scale=0.3 * search.reaches[0].scale),)
    search.box = Box([-0.5], [0.5], boundary="natural")
    return search


def test_a_box_that_paths_leave_is_widened() -> None:
    search = narrow()
    found = search.run(lambda _: None)
    assert found.controlled is not None
    assert found.controlled.lost == 0.0
    assert np.ptp(search.box.bounds) > 4.0
    assert found.parts["truncation"][1] < 1e-2


def test_a_box_that_paths_still_leave_is_wrong_there_and_widened_with_the_next_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(box_tolerance, "_LARGER", 0)
    search = narrow()
    first = search.run(lambda _: None)
    assert first.controlled is not None
    assert first.controlled.lost > 0.1
    assert first.parts["truncation"][1] > 0.3
    assert search.endless  # no larger box has held the paths, as none was tried: there is no use in asking for more
    assert not search.tightened(first)
    search.endless = False
    assert search.tightened(first)
    second = search.run(lambda _: None)
    assert second.controlled is not None
    assert second.controlled.lost < 0.01


def test_time_that_is_over_returns_the_best_so_far_or_a_looser_one_or_says_that_there_is_none(
    ticks: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kink = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -x,
        diffusion=1.0,
        terminal_reward=lambda x: np.abs(x[..., 0]),
        initial_law=Gaussian([0.0], 1.0),
    )
    with pytest.raises(ConvergenceError, match="no solution within max_seconds=40"):
        solve(kink, rtol=1e-5, max_seconds=40.0)  # of the clock that counts
    with pytest.warns(ToleranceWarning, match="before the error was estimated"):
        solve(kink, rtol=1e-5, max_seconds=200.0)
    before = ticks()
    with pytest.warns(ToleranceWarning, match="max_seconds were over: the best so far"):
        loose = solve(kink, rtol=1e-5, max_seconds=600.0)
    assert 360 < ticks() - before < 620
    assert loose.error_estimate is not None
    assert 1e-5 < max(loose.error_estimate.value, loose.error_estimate.policy) < 1e-2
    assert "max_seconds" in loose.status
    monkeypatch.setitem(solve.__globals__, "_FOR_THE_FIRST", 1.0)  # now there is a first run to 1e-5
    with pytest.warns(ToleranceWarning, match="max_seconds were over: the best so far"):
        best = solve(kink, rtol=1e-5, max_seconds=2400.0)
    assert best.error_estimate is not None
    assert best.error_estimate.policy < 0.1 * loose.error_estimate.policy
    with pytest.raises(ConvergenceError, match="max_seconds"):
        solve(kink, max_seconds=-1.0)


class Histories:
    """What a run would hold."""


def test_a_run_that_failed_is_let_go_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Histories may be gigabytes: neither an error that is kept for later nor one that is being handled holds them."""
    held: list[weakref.ref[Histories]] = []

    def made(failure: type[Exception]) -> str:
        if held:
            assert held[0]() is None
            return "a run"
        history = Histories()
        held.append(weakref.ref(history))
        raise failure("it failed")

    search: Any = SimpleNamespace(run=lambda tell: made(ConvergenceError), tameable=True, tame=lambda: None)
    assert box_tolerance._found(search, None, lambda _: None, True) == "a run"
    held.clear()
    kept = SimpleNamespace(solution=lambda best, stopped: (best, stopped), sample=None, ends=None)
    monkeypatch.setattr(box_tolerance, "_Search", lambda *args, **more: kept)
    monkeypatch.setattr(box_tolerance, "_best", lambda *args: (made(OutOfTimeError), False))
    unused: Any = None
    told = box_tolerance.solve_to_tolerance(unused, 1e-5, None, None, None, lambda _: None, first=lambda _: None)
    assert told == ("a run", True)


# How long a run may take


@pytest.mark.parametrize(
    ("dim", "rtol", "unknowns", "last"), [(1, 1e-6, r"\d+", 3), (2, 1e-3, r"\d+ x \d+", 2)], ids=["one", "two"]
)
def test_a_run_that_is_not_the_first_says_how_long_it_may_take(
    dim: int, rtol: float, unknowns: str, last: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judge included, within a factor of five; in CPU seconds, as tests run side by side."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    caplog.set_level("INFO", logger="fem_hjb")
    search = _Search(zoo.get("mixture-diffusion", dim), rtol, None, None, None, 0)
    search.run(lambda _: None)
    assert caplog.messages == []
    for number in range(2, last + 1):
        before = search.tolerances
        search.tolerances = replace(before, time=before.time / 10, space=before.space / 10)
        begun = time.perf_counter()
        search.run(lambda _: None)
        taken = time.perf_counter() - begun
        told = re.fullmatch(rf"mixture-diffusion: run {number}: {unknowns}, about (\S+) s", caplog.messages[-1])
        assert told is not None
        assert taken / 5.0 < float(told[1]) < taken * 5.0
    assert len(caplog.messages) == last - 1


def test_another_run_of_solve_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="fem_hjb")
    rough = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=0.7,
        drift=LinearDrift([[0.0]], [0.0]),
        diffusion=1.0,
        terminal_reward=lambda x: np.where(x[..., 0] > 0.3, 8.0, 0.0),
        initial_law=Gaussian([0.1], 0.2),
    )
    solve(rough, rtol=2e-3, verify=False)
    numbers = [int(re.findall(r"run (\d+): \d+, about", text)[0]) for text in caplog.messages]
    assert numbers == list(range(2, 2 + len(numbers)))
    assert numbers
