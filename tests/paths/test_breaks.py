"""Steps end where coefficients jump in time, as laws that are made of them would else be those of another process."""

from typing import Any

import numpy as np
import pytest

from fem_hjb.paths import breaks, simulate
from fem_hjb.paths.breaks import around_breaks, jumps_of
from fem_hjb.paths.extent import sample_law
from fem_hjb.paths.simulate import sample_at
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray

BEGIN, END, PUSH = 0.404, 0.412, 250.0  # a push of 2 within a time that is shorter than the steps
TIMES = np.linspace(0.0, 1.0, 9)


def within(t: Any) -> FloatArray:
    return np.asarray((np.asarray(t) > BEGIN) & (np.asarray(t) < END), dtype=np.float64)


def pushed(**more: Any) -> ControlProblem:
    given: dict[str, Any] = {
        "dim": 1,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": lambda t, x: PUSH * within(t)[..., None] + 0.0 * x,
        "diffusion": 1e-4,
        "terminal_reward": lambda x: 0.0 * x[..., 0],
        "initial_law": Gaussian([0.0], 1e-4),
    }
    return ControlProblem(**(given | more))


def test_a_short_push_is_as_long_as_it_is() -> None:
    paths = sample_at(pushed(), TIMES, n=500, rng=0, steps=32)
    t, mean = np.asarray(paths.t), np.asarray(paths.x)[..., 0].mean(axis=0)
    expected = PUSH * np.clip(t - BEGIN, 0.0, END - BEGIN)
    np.testing.assert_allclose(mean, expected, atol=4 * np.sqrt(2e-4 / 500) + 1e-4)
    assert {*TIMES} <= {*t}
    np.testing.assert_allclose([np.abs(t - at).min() for at in (BEGIN, END)], 1e-9, atol=1e-10)


def test_without_looking_for_breaks_it_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "around_breaks", lambda problem, x: np.zeros(0))
    mean = np.asarray(sample_at(pushed(), TIMES, n=500, rng=0, steps=32).x)[:, -1, 0].mean()
    assert abs(mean - PUSH * (END - BEGIN)) > 1.0


def test_short_noise_and_short_rewards() -> None:
    """Lambda and r in the same window: the variance of X_T, and what paths earn on the way."""
    hot = pushed(
        drift=lambda t, x: 0.0 * x,
        diffusion=lambda t, x: (1e-4 + PUSH * within(t))[..., None, None] * np.ones((*x.shape, 1)),
        running_reward=lambda t, x: PUSH * within(t) + 0.0 * x[..., 0],
    )
    found = sample_law(hot, 0)
    assert found.x[-1].var() == pytest.approx(PUSH * (END - BEGIN), rel=0.08)
    np.testing.assert_allclose(found.tilt, PUSH * (END - BEGIN), rtol=1e-5)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_units_of_time_do_not_matter(factor: float) -> None:
    problem = pushed(
        horizon=factor,
        drift=lambda t, x: PUSH / factor * within(np.asarray(t) / factor)[..., None] + 0.0 * x,
        diffusion=1e-4 / factor,
    )
    around = around_breaks(problem, np.zeros((3, 1)))
    np.testing.assert_allclose(around / factor, [BEGIN - 1e-9, BEGIN + 1e-9, END - 1e-9, END + 1e-9], atol=1e-10)


def test_what_does_not_jump_has_no_breaks_and_its_times_stay() -> None:
    problem = pushed(drift=lambda t, x: np.sin(9.0 * np.asarray(t))[..., None] - x)
    assert around_breaks(problem, np.zeros((3, 1))).size == 0
    np.testing.assert_allclose(sample_at(problem, TIMES, n=2, rng=0, steps=32).t, np.linspace(0.0, 1.0, 33))


def test_in_a_domain_it_is_looked_at_inside() -> None:
    def drift(t: Any, x: FloatArray) -> FloatArray:
        assert (x >= 0.0).all()
        return np.asarray(PUSH * within(t)[..., None] + 0.0 * x)

    half_line = Box([0.0], [np.inf], boundary=[["reflecting", "natural"]])
    paths = sample_at(pushed(drift=drift, domain=half_line, initial_law=PointMass([0.1])), 1.0, n=50, rng=0)
    assert np.asarray(paths.x)[:, -1].mean() == pytest.approx(2.1, abs=0.02)


def test_windows_shorter_than_the_scan_are_missed() -> None:
    """A documented limit: 257 times are looked at."""
    short = 0.5 / breaks.SCAN

    def rows(length: float) -> Any:
        start = (100 + 0.25) / breaks.SCAN
        return lambda t: 1.0 + ((t > start) & (t < start + length))[:, None, None].astype(np.float64)

    assert jumps_of(rows(short), 1.0) == []
    assert len(jumps_of(rows(2.2 / breaks.SCAN), 1.0)) == 2
