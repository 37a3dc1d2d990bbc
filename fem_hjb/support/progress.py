"""How long work tells how far it is: a callable that takes the fraction done, from 0 to 1."""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable
from typing import Any, final

from fem_hjb.support.checks import positive_number
from fem_hjb.support.errors import ConvergenceError

Progress = Callable[[float], None]

LOGGER = logging.getLogger("fem_hjb")  # level INFO: what long work is about to do, and how long that may take

_clock = time.perf_counter
_SIGN_OF_LIFE = 1.0  # seconds without news after which the last fraction is told again
_SLOWER = 20.0  # calls of work of unknown length that count as half of it


def checked_progress(progress: Any) -> Progress | None:
    """What a user gave as progress=; ConvergenceError if it cannot be called."""
    if progress is not None and not callable(progress):
        raise ConvergenceError(f"progress must be a callable or None, got {progress!r}")
    told: Progress | None = progress
    return told


def unheard(fraction: float) -> None:
    """Nobody is told."""


def part_of(progress: Progress, low: float, high: float) -> Progress:
    """What a part of the work reports its own progress to, which is `low` to `high` of the whole.

    >>> seen = []
    >>> part_of(seen.append, 0.5, 1.0)(0.5)
    >>> seen
    [0.75]
    """
    return lambda fraction: progress(high if fraction >= 1 else min(low + fraction * (high - low), high))


class OutOfTimeError(Exception):
    """Raised by what `until` gives, out of the work that reports to it: caught where the best so far is known."""


def checked_seconds(seconds: Any) -> float | None:
    """What a user gave as max_seconds=; ConvergenceError if it is no positive number."""
    return None if seconds is None else positive_number(seconds, "max_seconds", ConvergenceError)


@final
class Watch:
    """Work that is watched: a `Progress` that no fraction takes back, and that knows when time is over.

    Work tells it how far it is, or 0 as a sign of life. What is reported is the largest fraction so far: at once where
    that has grown, and otherwise once a second.

    >>> seen = []
    >>> watch = Watch(seen.append, None)
    >>> for fraction in (0.5, 0.2, 0.75):
    ...     watch(fraction)
    >>> watch.finished()
    >>> seen
    [0.5, 0.75, 1.0]
    """

    def __init__(self, progress: Progress | None, seconds: float | None) -> None:
        self._progress, self._reached, self._last = progress, 0.0, _clock()
        self._end = math.inf if seconds is None else self._last + seconds

    @property
    def reached(self) -> float:
        """The largest fraction so far."""
        return self._reached

    def __call__(self, fraction: float) -> None:
        """How far the work is; OutOfTimeError if time is over."""
        now, news = _clock(), min(fraction, 1.0) > self._reached
        if news or now > self._last + _SIGN_OF_LIFE:
            self._reached, self._last = max(self._reached, min(fraction, 1.0)), now
            if self._progress is not None:
                self._progress(self._reached)
        if now > self._end:
            raise OutOfTimeError

    def finished(self) -> None:
        """All of the work is done, whatever the time."""
        if self._reached < 1.0:
            to_the_end(self)(1.0)


def until(progress: Progress | None, seconds: float | None) -> Watch:
    """A watch that raises OutOfTimeError once so many seconds have gone by since it was made; None: never.

    >>> until(None, None)(0.5)
    """
    return Watch(progress, seconds)


def to_the_end(progress: Progress) -> Progress:
    """The same for what is left when nearly all is done, which no limit of time stops."""

    def told(fraction: float) -> None:
        with contextlib.suppress(OutOfTimeError):
            progress(fraction)

    return told


def steps_of(progress: Progress, count: int) -> Callable[[], None]:
    """For work in so many steps of about the same length: each call reports one more of them.

    >>> seen = []
    >>> step = steps_of(seen.append, 4)
    >>> step(), step()
    (None, None)
    >>> seen
    [0.25, 0.5]
    """
    calls = itertools.count(1)
    return lambda: progress(next(calls) / count)


def beats_of(progress: Progress) -> Callable[[], None]:
    """For work of which nobody knows how long it takes: each call reports a little more, and never all of it.

    >>> seen = []
    >>> beat = beats_of(seen.append)
    >>> beat(), beat()
    (None, None)
    >>> 0.0 < seen[0] < seen[1] < 1.0
    True
    """
    calls = itertools.count(1)
    return lambda: progress(1.0 - _SLOWER / (_SLOWER + next(calls)))
