"""At which times callables are probed, and whether what they return depends on time."""

from collections.abc import Callable, Sequence

import numpy as np

from fem_hjb.support.checks import FloatArray

_FRACTIONS = np.array([0.0, 0.382, 0.786, 1.0])  # of the horizon
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
