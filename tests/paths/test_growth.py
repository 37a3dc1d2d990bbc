"""Rewards that outgrow all laws: found where they are, in all directions and units, and nowhere else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fem_hjb.paths.growth import outgrowing
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray

Reward = Callable[[FloatArray], FloatArray]


def none(x: FloatArray) -> FloatArray:
    return np.zeros(x.shape[:-1])


def problem(d: int = 1, y: Reward = none, b: Reward = lambda x: -x, **others: Any) -> ControlProblem:
    given = {"horizon": 1.0, "temperature": 1.0, "diffusion": 1.0, "initial_law": Gaussian(np.zeros(d), 1.0)}
    return ControlProblem(dim=d, drift=lambda t, x: b(x), terminal_reward=y, **{**given, **others})


def found(of: ControlProblem, unit: float = 1.0) -> str | None:
    return outgrowing(of, np.zeros(of.dim), unit * np.eye(of.dim))


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_powers_above_two_are_infinite_and_others_not(unit: float) -> None:
    for power in (2.5, 3.0, 4.0, 6.0):
        assert found(problem(y=lambda x, p=power: np.abs(x[..., 0] / unit) ** p, diffusion=unit**2), unit)  # type: ignore[misc]
    for power in (0.0, 1.0, 2.0, 2.2):
        assert not found(problem(y=lambda x, p=power: np.abs(x[..., 0] / unit) ** p, diffusion=unit**2), unit)  # type: ignore[misc]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_in_any_direction(d: int) -> None:
    direction = np.arange(1.0, d + 1) / np.sqrt((np.arange(1.0, d + 1) ** 2).sum())
    told = found(problem(d, lambda x: np.maximum(x @ direction - 3.0, 0.0) ** 3))
    assert told is not None
    assert told.startswith("y towards")
    assert not found(problem(d, lambda x: -(np.abs(x @ direction) ** 3)))
    assert found(problem(d, running_reward=lambda t, x: (x @ direction) ** 4)) is not None


def test_running_rewards_that_are_there_for_a_while() -> None:
    def r(t: Any, x: FloatArray, until: float) -> FloatArray:
        return np.asarray((np.asarray(t) < until) * x[..., 0] ** 4)

    told = found(problem(running_reward=lambda t, x: r(t, x, 0.5)))
    assert told is not None
    assert told.startswith("r towards")
    assert not found(problem(running_reward=lambda t, x: r(t, x, 0.05)))  # at one of nine times: it may be a moment


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (problem(y=lambda x: x[..., 0] ** 4, b=lambda x: -(x**3)), "drifts that hold"),
        (problem(y=lambda x: x[..., 0] ** 4, diffusion=lambda t, x: 1 / (1 + x[..., None] ** 2)), "less noise"),
        (problem(y=lambda x: 1e-6 * x[..., 0] ** 4), "too little up to where it is looked at"),
        (problem(y=lambda x: np.minimum(x[..., 0] ** 4, 1e3)), "a plain"),
        (problem(y=lambda x: x[..., 0] ** 4, domain=Box([-30.0], [30.0])), "a domain"),
        (problem(2, lambda x: 1e4 * (np.abs(x[..., 1]) < 1e-3) * x[..., 0] ** 4), "a thin line"),
        (problem(y=lambda x: np.where(x[..., 0] > 50.0, -np.inf, x[..., 0] ** 3)), "a wall"),
        (problem(y=lambda x: np.full(x.shape[:-1], 1e3 / (np.abs(x).max() < 30.0))), "what fails"),
    ],
    ids=lambda v: v.replace(" ", "-") if isinstance(v, str) else "",
)
def test_what_says_nothing(of: ControlProblem, why: str) -> None:
    assert found(of) is None, why
