"""Limits of time and signs of life of everything that takes long: what is stopped, what is returned, what is told."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.learning import folds
from fem_hjb.reference import mesh_refine, mesh_truncation
from fem_hjb.solutions.norms import law_points
from fem_hjb.support import progress as watching
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

LQ = fh.zoo.get("lq", 1)
WELL = fh.zoo.get("double-well", 1)
MIXTURE = fh.zoo.get("mixture-diffusion", 1)
REFLECTED = fh.zoo.get("reflected", 1)
WIDE = fh.Box([-5.0], [5.0])
MESH = fh.spaces.box_mesh(fh.Box([-3.5], [3.5]), 64, "line")
SPACE = fh.Space(LQ, cells=6, time_cells=3, box=fh.Box([-3.0], [3.0]))
PATHS = fh.sample_paths(LQ, n=1200, steps=24, rng=0)
SOURCE = fh.paths.array_source(PATHS, chunk=100)
FEW = fh.paths.Paths(t=PATHS.t, x=PATHS.x[:50])
X = np.linspace(-2.9, 2.9, 101)[:, None]


def wave(t: float, x: FloatArray) -> FloatArray:
    return np.sin(2.0 * x) * (1.0 - 0.5 * t)


def learn(**how: Any) -> fh.Solution:
    return fh.fit(LQ, SOURCE, SPACE, outside="drop", **{"verify": False, **how})


def at_once(**how: Any) -> fh.Solution:
    """From one chunk, so that half of the time is enough for the data."""
    return fh.fit(LQ, PATHS, SPACE, outside="drop", **{"verify": False, **how})


def iterate(**how: Any) -> fh.Solution:
    return at_once(method="projected", estimator="weak", delta=0.2, constraint=fh.Bounds(0.0, 1.0), **how)


CANDIDATES = [
    fh.learning.Candidate(space=fh.Space(LQ, cells=cells, time_cells=2, box=fh.Box([-3.0], [3.0])))
    for cells in (3, 4, 6)
]
PAID = replace(
    REFLECTED, domain=fh.Box([0.0], [1.0], boundary="absorbing", exit_reward=lambda t, x: 0.0 * x[..., 0]), exact=None
)


def choose(**how: Any) -> fh.learning.Selection:
    return fh.learning.cross_validate(LQ, PATHS, CANDIDATES, **how)


# What takes long, all of it with progress= and max_seconds=.
WORK: dict[str, Callable[..., Any]] = {
    "solve": lambda **k: fh.solve(WELL, rtol=1e-2, **k),
    "feynman_kac": lambda **k: fh.feynman_kac(WELL, lambda x: x[..., 0], rtol=1e-2, **k),
    "solve_on_mesh": lambda **k: fh.solve_on_mesh(WELL, MESH, **k),
    "solve_on_mesh to a tolerance": lambda **k: fh.solve_on_mesh(REFLECTED, cells=32, rtol=1e-2, **k),
    "refine_on_mesh": lambda **k: fh.refine_on_mesh(REFLECTED, rtol=1e-3, **k),
    "fokker_planck.solve": lambda **k: fh.fokker_planck.solve(WELL, policy=wave, rtol=1e-2, **k),
    "fokker_planck.solve on a mesh": lambda **k: fh.fokker_planck.solve(WELL, mesh=MESH, **k),
    "certify": lambda **k: fh.certify(LQ, wave, n=4096, steps=64, rng=0, **k),
    "certify by a value": lambda **k: fh.certify(LQ, wave, n=4096, steps=64, rng=0, value=LQ.exact, **k),
    "control_error": lambda **k: fh.control_error(LQ, wave, LQ.exact, under="policy", **k),
    "control_error of a Gaussian law": lambda **k: fh.control_error(LQ, lambda t, x: -x, LQ.exact, **k),
    "evaluate_policy": lambda **k: fh.evaluate_policy(LQ, wave, rtol=1e-2, **k),
    "objectives": lambda **k: fh.objectives(LQ, wave, LQ.exact, steps=8, n=500, times=16, **k),
    "objectives by simulation": lambda **k: fh.objectives(PAID, wave, steps=8, n=5000, **k),
    "cross_validate": choose,
    "experiments.run": lambda **k: fh.experiments.run(
        "coercivity", in_time=((3, 6), (4, 6)), in_space=((3, 6), (4, 8)), deltas=(0.0, 0.2), **k
    ),
    "fit": learn,
    "fit to a law": lambda **k: fh.fit(LQ, fh.law_measure(LQ, SPACE), SPACE, **k),
    "fit in a set": lambda **k: learn(constraint=fh.Monotone(0) & fh.Bounds(lower=0.0), **k),
    "fit in a set by projections": iterate,
    "fit by minimal residuals": lambda **k: learn(method="minimal-residual", **k),
    "fit of a class that is chosen": lambda **k: fh.fit(LQ, FEW, "auto", **k),
}


def length_of(work: Callable[..., Any], ticks: Callable[[], int]) -> int:
    """How many ticks it takes without a limit."""
    before = ticks()
    work()
    return ticks() - before


@pytest.mark.parametrize("name", WORK)
def test_no_time_at_all_is_an_error_that_says_so(name: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(ConvergenceError, match=r"within max_seconds=1e-05.*; give it more time"):
        WORK[name](max_seconds=1e-5)
    assert time.perf_counter() - begun < 5.0


@pytest.mark.filterwarnings("ignore:.*:fem_hjb.solutions.estimate.ToleranceWarning")
@pytest.mark.parametrize("name", WORK)
def test_progress_never_falls_and_ends_at_one_and_a_limit_that_is_not_reached_changes_nothing(name: str) -> None:
    seen: list[float] = []
    watched = WORK[name](progress=seen.append, max_seconds=1e300)
    assert len(seen) >= 3
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert max(seen[:-1]) < 1.0
    assert min(seen) >= 0.0
    plain = WORK[name]()
    for attribute in ("coefficients", "profile", "status", "rows"):
        if hasattr(plain, attribute):
            np.testing.assert_array_equal(getattr(watched, attribute), getattr(plain, attribute))
    for attribute in ("exact", "euler", "uncontrolled"):
        if hasattr(plain, attribute):
            assert getattr(watched, attribute).value == getattr(plain, attribute).value


@pytest.mark.parametrize("name", WORK)
def test_what_progress_raises_stops_the_work(name: str) -> None:
    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WORK[name](progress=stop)


@pytest.mark.parametrize("name", WORK)
def test_a_limit_of_the_caller_passes_or_leaves_the_best_so_far(name: str) -> None:
    """It comes through progress=, and there is no max_seconds to speak of."""

    def stop(fraction: float) -> None:
        raise watching.OutOfTimeError

    try:
        found = WORK[name](progress=stop)
    except watching.OutOfTimeError:
        return
    assert "max_seconds were over" in found.status


def never(*_: Any) -> Any:
    raise AssertionError("work was done")


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, "soon", True, [1.0, 2.0]], ids=repr)
@pytest.mark.parametrize("name", WORK)
def test_a_bad_limit_is_refused_before_any_work(name: str, bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fh.ControlProblem, "b", never)
    monkeypatch.setattr(fh.ControlProblem, "r", never)
    monkeypatch.setattr(fh.ControlProblem, "y", never)
    monkeypatch.setattr(type(SOURCE), "chunk", never)
    monkeypatch.setattr(fh, "law_measure", lambda *_: fh.learning.empirical_measure(LQ, PATHS))
    with pytest.raises(ConvergenceError, match="max_seconds must be a positive"):
        WORK[name](max_seconds=bad)
    with pytest.raises(ConvergenceError, match="progress must be a callable or None"):
        WORK[name](progress=3)


# The best so far


@pytest.mark.filterwarnings("ignore:.*:fem_hjb.solutions.estimate.ToleranceWarning")
def test_refinement_returns_the_best_so_far(ticks: Callable[[], int]) -> None:
    problem, how = REFLECTED, {"rtol": 1e-2, "cells": 4}
    before = ticks()
    whole = fh.refine_on_mesh(problem, **how)
    needed = ticks() - before
    history = whole.stats["history"]
    assert len(history) > 2
    passes = set()
    for share in (0.5, 0.9):
        seen: list[float] = []
        with pytest.warns(fh.ToleranceWarning, match="max_seconds were over: the best so far"):
            found = fh.refine_on_mesh(problem, **how, progress=seen.append, max_seconds=share * needed)
        done = found.stats["history"]
        assert done == history[: len(done)]
        assert 1 <= len(done) < len(history)
        passes.add(len(done))
        estimate: Any = found.error_estimate
        best = min(done, key=lambda row: max(row["value"], row["policy"]))
        assert {name: best[name] for name in estimate.as_dict()} == estimate.as_dict()
        assert found.stats["dofs"] == best["dofs"]
        assert np.isfinite([estimate.value, estimate.policy]).all()
        assert not estimate.met(how["rtol"])
        row = fh.compare({"it": found}, problem.exact, problem=problem).overall("it")
        assert row.value <= 3 * estimate.value
        assert row.policy <= 3 * estimate.policy
        assert seen == sorted(seen)
        assert seen[-1] == 1.0
    assert len(passes) > 1
    with pytest.raises(ConvergenceError, match="no mesh was solved on, and its solution judged, within max_seconds=3"):
        fh.refine_on_mesh(problem, **how, max_seconds=3.0)


def test_what_judges_the_faces_of_a_mesh_takes_half_of_the_time_at_most(
    ticks: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(problem: fh.ControlProblem, rtol: float, tell: Callable[[float], None], seed: int) -> None:
        while True:
            tell(0.0)

    monkeypatch.setattr(mesh_refine, "unended", endless)
    how = {"rtol": 1e-4, "cells": 16, "element": "P3"}
    with pytest.warns(fh.ToleranceWarning, match="max_seconds were over: the best so far"):
        found = fh.refine_on_mesh(MIXTURE, **how, max_seconds=12_000.0)
    estimate: Any = found.error_estimate
    assert np.isinf([estimate.truncation, estimate.policy]).all()
    assert np.isfinite([estimate.space, estimate.time]).all()
    assert {name: found.stats["history"][-1][name] for name in estimate.as_dict()} == estimate.as_dict()
    with pytest.raises(ConvergenceError, match="no mesh was solved on"):
        fh.refine_on_mesh(MIXTURE, **how, max_seconds=100.0)


def test_there_are_signs_of_life_within_a_step(ticks: Callable[[], int]) -> None:
    before = ticks()
    solution = fh.solve_on_mesh(fh.zoo.get("linear-ou", 1), cells=16, steps=400)  # whose coefficients are called once
    assert ticks() - before > 5 * solution.stats["steps"] == 2000


def test_a_mesh_solution_whose_error_is_not_known_yet_says_so(ticks: Callable[[], int]) -> None:
    problem, how = LQ, {"cells": 40, "box": WIDE}
    solved = length_of(lambda: fh.solve_on_mesh(problem, **how), ticks)
    whole = length_of(lambda: fh.solve_on_mesh(problem, **how, rtol=1e-2), ticks)
    faces = length_of(lambda: mesh_truncation.unended(problem, 1e-2, watching.until(None, None), 0), ticks)
    compared = 2 * len(law_points(problem).times)
    with pytest.warns(fh.ToleranceWarning, match="were over before all of the error was estimated") as told:
        early = fh.solve_on_mesh(problem, **how, rtol=1e-2, max_seconds=solved + 5.0)
    assert told[0].filename == __file__
    estimate: Any = early.error_estimate
    assert np.isinf([estimate.value, estimate.policy, estimate.space, estimate.time, estimate.truncation]).all()
    with pytest.warns(fh.ToleranceWarning, match="were over before all of the error was estimated"):
        late = fh.solve_on_mesh(problem, **how, rtol=1e-2, max_seconds=whole - faces - compared + 4.0)
    estimate = late.error_estimate
    assert np.isinf([estimate.value, estimate.policy, estimate.truncation]).all()
    assert 0.0 < max(estimate.space, estimate.time) < 1e-2
    plain = fh.solve_on_mesh(problem, **how)
    for solution in (early, late):
        assert "max_seconds" in solution.status
        np.testing.assert_array_equal(solution.coefficients, plain.coefficients)


def test_a_density_says_how_far_it_came(ticks: Callable[[], int]) -> None:
    needed = length_of(lambda: fh.fokker_planck.solve(WELL), ticks)
    with pytest.raises(ConvergenceError, match=r"the density came to t=(0\.\d+) of 1 only"):
        fh.fokker_planck.solve(WELL, max_seconds=0.8 * needed)


def test_an_early_law_is_not_stopped_by_a_limit_that_is_over() -> None:
    start = fh.zoo.get("soc-double-well", 1, kappa=1.0, nu=1.0)
    density = fh.fokker_planck.solve(start, rtol=1e-4, max_seconds=60.0)
    assert density.early is not None
    later = time.perf_counter() + 120.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "_clock", lambda: later)
        assert np.isfinite(density.law(density.start / 2).covariance).all()


# Fits


def test_a_fit_of_the_first_paths_is_the_fit_of_these_paths(ticks: Callable[[], int]) -> None:
    """With a limit of 18 ticks, of which half are for the data, one for each chunk."""
    found = learn(max_seconds=18.0, smoothing=0.3)
    used = found.stats["paths"]
    assert 0 < used < PATHS.n
    assert used % 100 == 0
    assert found.status.startswith(f"max_seconds were over: learned from the first {used} of {PATHS.n} paths")
    some = fh.paths.Paths(t=PATHS.t, x=PATHS.x[:used], scheme="given")
    expected = fh.fit(LQ, fh.paths.array_source(some, chunk=100), SPACE, outside="drop", smoothing=0.3)
    np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-11)
    assert found.stats["samples"] == expected.stats["samples"]
    with ThreadPoolExecutor(2) as executor:
        threaded = learn(max_seconds=18.0, smoothing=0.3, executor=executor)
    assert 0 < threaded.stats["paths"] <= PATHS.n


def test_a_law_is_summed_over_as_a_whole(ticks: Callable[[], int]) -> None:
    law = fh.learning.sampled_law_measure(LQ, SPACE, n=50_000, rng=0)
    needed = length_of(lambda: fh.fit(LQ, law, SPACE, outside="drop"), ticks)
    with pytest.raises(ConvergenceError, match="nothing that is in the class yet"):
        fh.fit(LQ, law, SPACE, outside="drop", max_seconds=1.5)
    assert fh.fit(LQ, law, SPACE, outside="drop", max_seconds=needed + 1.0).stats["paths"] == 0


def test_an_iteration_returns_its_last_iterate_which_is_in_the_set(ticks: Callable[[], int]) -> None:
    whole = iterate()
    needed = length_of(iterate, ticks)
    assert whole.stats["iterations"] > 8
    found = iterate(max_seconds=0.6 * needed)
    assert "max_seconds were over after" in found.status
    assert "before the figures of the system were known" in found.status
    assert 1 <= found.stats["iterations"] < whole.stats["iterations"]
    assert not found.stats["converged"]
    assert 1e-9 < found.stats["residual"] < 0.5
    f = found.f(np.linspace(0.0, 1.0, 11)[:, None], X)
    assert f.min() >= 0.0
    assert f.max() <= 1.0 + 1e-14
    assert np.abs(found.coefficients - whole.coefficients).max() < 0.5


def test_conjugate_gradients_return_their_last_iterate(ticks: Callable[[], int]) -> None:
    whole = learn(method="minimal-residual")
    needed = length_of(lambda: learn(method="minimal-residual"), ticks)
    found = learn(method="minimal-residual", max_seconds=needed - 10.0)
    assert "max_seconds were over after" in found.status
    assert found.stats["iterations"] < whole.stats["iterations"]
    assert found.stats["residual"] > whole.stats["residual"]


def test_figures_that_are_not_known_in_time_are_left_out(ticks: Callable[[], int]) -> None:
    needed = length_of(at_once, ticks)
    found = at_once(max_seconds=2.0 * needed)
    assert found.status == "ok"
    late = at_once(max_seconds=needed - 1.5)
    assert "before the figures of the system were known" in late.status
    assert np.isnan(late.stats["condition"])
    np.testing.assert_array_equal(found.coefficients, late.coefficients)


def test_what_is_not_verified_in_time_is_said_not_to_be(ticks: Callable[[], int]) -> None:
    alone, whole = length_of(at_once, ticks), length_of(lambda: at_once(verify=True), ticks)
    assert whole > alone + 60.0  # it is heard of at every step
    found = at_once(verify=True, max_seconds=alone + 30.0)
    assert found.status == "not verified: max_seconds were over"
    assert found.error_estimate is None
    assert at_once(verify=True, max_seconds=2.0 * whole).error_estimate is not None


def test_candidates_are_compared_as_far_as_they_were_judged(ticks: Callable[[], int]) -> None:
    needed = length_of(choose, ticks)
    found = choose(max_seconds=0.7 * needed)
    few = len(found.table)
    assert 1 <= few < len(CANDIDATES)
    expected = fh.learning.cross_validate(LQ, PATHS, CANDIDATES[:few])
    assert found.best is expected.best
    for row, other in zip(found.table, expected.table, strict=True):
        assert row | {"seconds": 0.0} == other | {"seconds": 0.0}
    assert found.status == f"max_seconds were over: the first {few} of 3 candidates are compared"
    assert str(found).endswith(found.status)
    with pytest.raises(ConvergenceError, match="no candidate was judged within max_seconds=2"):
        choose(max_seconds=2.0)


def test_folds_of_many_samples_are_summed_up_in_chunks(
    ticks: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk is a sign of life."""
    needed = length_of(choose, ticks)
    monkeypatch.setattr(folds, "_SAMPLES", 40 * PATHS.steps)  # 40 paths, of 240 in a fold
    chunked = length_of(choose, ticks)
    assert chunked - needed >= (240 // 40 - 1) * 5 * 2 * len(CANDIDATES)  # five folds, two criteria


# Signs of life of work whose callables are slow


def slow(seconds: float, clock: list[float]) -> fh.ControlProblem:
    """A drift that puts the clock forward by so much whenever it is called, as if nothing else took time."""

    def drift(t: Any, x: FloatArray) -> FloatArray:
        clock[0] += seconds
        return -x - 0.3 * np.sin(3.0 * x)

    return fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=drift,
        diffusion=1.0,
        terminal_reward=lambda x: -(x[..., 0] ** 2),
        initial_law=fh.Gaussian([0.0], 0.3),
    )


def exiting(problem: fh.ControlProblem) -> fh.ControlProblem:
    box = fh.Box([-2.0], [2.0], boundary="absorbing", exit_reward=lambda t, x: 0.0 * x[..., 0])
    return replace(problem, domain=box)


@pytest.mark.parametrize(
    ("seconds", "work"),
    [
        (0.06, lambda problem, **k: fh.solve_on_mesh(problem, MESH, rtol_time=1e-3, **k)),
        (0.4, lambda problem, **k: fh.fokker_planck.solve(problem, rtol=1e-2, **k)),
        (0.06, lambda problem, **k: fh.fokker_planck.solve(problem, mesh=MESH, rtol=1e-2, **k)),
        (0.2, lambda problem, **k: fh.objectives(problem, wave, steps=8, n=100, times=8, rtol=1e-2, **k)),
        (0.1, lambda problem, **k: fh.objectives(exiting(problem), wave, steps=8, n=100, **k)),
        (0.4, lambda problem, **k: fh.learning.cross_validate(problem, PATHS, CANDIDATES, **k)),
    ],
    ids=[
        *("solve_on_mesh", "fokker_planck", "fokker_planck on a mesh"),
        *("objectives", "objectives by simulation", "cross_validate"),
    ],
)
def test_there_is_a_sign_of_life_every_two_seconds_and_an_end_soon_after_the_limit(
    seconds: float, work: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(watching, "_clock", lambda: clock[0])
    problem = slow(seconds, clock)
    begun = clock[0]
    seen = [begun]
    work(problem, progress=lambda _: seen.append(clock[0]))
    assert seen[-1] - begun > 3.0
    assert np.diff(seen).max() < 2.0
    begun = clock[0]
    with pytest.raises(ConvergenceError, match="max_seconds=1"):
        work(problem, max_seconds=1.0)
    assert clock[0] - begun < 2.0
