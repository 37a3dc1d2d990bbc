"""At which times and points callables are probed, and whether what they return depends on time."""

from collections.abc import Callable, Sequence

import numpy as np

from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray

_FRACTIONS = np.array([0.0, 0.382, 0.786, 1.0])  # of the horizon
_FAR = 3.0  # times how far the process spreads: how far probes do
_ROUNDING = 1e-14  # relative to the largest entry


def instants(horizon: float) -> list[float]:
    """The times of [0, T] at which coefficients are compared."""
    return [float(t) for t in _FRACTIONS * horizon]


def looks_steady(values: Callable[[float], Sequence[FloatArray]], horizon: float) -> bool:
    """Whether arrays t -> (a, b, ...) are the same, to rounding, at all `instants`.

    >>> looks_steady(lambda t: [np.ones(3)], 1.0), looks_steady(lambda t: [np.full(3, t)], 1.0)
    (True, False)
    """
    first, *later = (values(t) for t in instants(horizon))
    sizes = [max(float(np.abs(part).max()), 1e-300) for part in first]
    return all(
        float(np.abs(a - b).max()) <= _ROUNDING * size
        for parts in later
        for a, b, size in zip(first, parts, sizes, strict=True)
    )


def scattered(problem: ControlProblem, count: int, seed: int, reach: float = 1.0) -> FloatArray:
    """Points (count, d) that cover where the process starts, and some way around; with reach 0 where it starts."""
    rng = np.random.default_rng(seed + 2)
    x, domain = problem.initial_law.sample(count, np.random.default_rng(seed)), problem.domain
    spread = np.sqrt(np.diag(problem.initial_law.covariance))
    Lambda = problem.Lambda(0.0, x if domain is None else domain.inside(x))
    wide = np.sqrt(np.diagonal(Lambda, axis1=1, axis2=2).mean(axis=0) * problem.horizon)
    far = reach * _FAR * rng.random((count, 1))
    x = x + far * rng.normal(size=x.shape) * np.maximum(spread, wide)
    return x if domain is None else domain.inside(x)
