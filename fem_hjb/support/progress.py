"""How long work tells how far it is: a callable that takes the fraction done, from 0 to 1."""

from collections.abc import Callable
from typing import Any

from fem_hjb.support.errors import ConvergenceError

Progress = Callable[[float], None]


def checked_progress(progress: Any) -> Progress | None:
    """What a user gave as progress=; ConvergenceError if it cannot be called."""
    if progress is not None and not callable(progress):
        raise ConvergenceError(f"progress must be a callable or None, got {progress!r}")
    told: Progress | None = progress
    return told


def part_of(progress: Progress | None, low: float, high: float) -> Progress | None:
    """What a part of the work reports its own progress to, which is `low` to `high` of the whole.

    >>> seen = []
    >>> part_of(seen.append, 0.5, 1.0)(0.5)
    >>> seen
    [0.75]
    """
    return None if progress is None else lambda fraction: progress((1.0 - fraction) * low + fraction * high)
