"""Draws of a process at many different times: where it is asked whether coordinates are independent."""

from contextlib import suppress

import numpy as np

from fem_hjb.paths.simulate import sample_paths
from fem_hjb.paths.stiffness import substeps_of
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

Draws = tuple[FloatArray, FloatArray]  # times (k, n), points (k, n, d)

TIMES = 8  # in each step
_STEPS, _PATHS = 32, 256


def met(problem: ControlProblem, seed: int, times: int = TIMES) -> list[Draws]:
    """Draws of the process as it is, without control, if paths can be made; `times` in each step."""
    with suppress(ConvergenceError):
        substeps = substeps_of(problem, _STEPS)
        paths = sample_paths(problem, n=_PATHS, steps=_STEPS, rng=seed, scheme="euler", substeps=substeps or 1)
        return [between(np.moveaxis(paths.x, 1, 0)[1:], problem.horizon, seed, times)]
    return []


def ends_of(problem: ControlProblem) -> FloatArray:
    """The times (k,) at the ends of equal steps."""
    return problem.horizon * np.arange(1, _STEPS + 1) / _STEPS


def between(x: FloatArray, horizon: float, seed: int, times: int = TIMES) -> Draws:
    """Draws (k, n, d) at the ends of equal steps, of some paths; each at one of so many times of its step."""
    x = x[:, :_PATHS]
    at = (np.arange(times) + np.random.default_rng([seed, 4]).random((len(x), times))) / times
    return horizon * (np.arange(len(x))[:, None] + at[:, np.arange(x.shape[1]) % times]) / len(x), x
