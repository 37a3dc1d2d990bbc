"""How long work tells how far it is: a callable that takes the fraction done, from 0 to 1."""

import time
from collections.abc import Callable
from typing import Any

from fem_hjb.support.checks import positive_number
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
    if progress is None:
        return None
    return lambda fraction: progress(high if fraction >= 1 else min(low + fraction * (high - low), high))


class OutOfTimeError(Exception):
    """Raised by what `until` gives, out of the work that reports to it: caught where the best so far is known."""


def checked_seconds(seconds: Any) -> float | None:
    """What a user gave as max_seconds=; ConvergenceError if it is no positive number."""
    return None if seconds is None else positive_number(seconds, "max_seconds", ConvergenceError)


def until(progress: Progress | None, seconds: float | None) -> Progress:
    """A progress that raises OutOfTimeError once so many seconds have gone by since it was made; None: never.

    >>> until(None, None)(0.5)
    """
    end = None if seconds is None else time.perf_counter() + seconds

    def told(fraction: float) -> None:
        if end is not None and time.perf_counter() > end:
            raise OutOfTimeError
        if progress is not None:
            progress(fraction)

    return told
