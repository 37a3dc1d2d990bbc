"""Runs followed again: what becomes of the steps of a panel, and panels one after the other."""

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

import numpy as np

from fem_hjb.reference.box_run import PanelRun
from fem_hjb.stepping.adaptive import Step
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress

Found = TypeVar("Found")
Work = Callable[[], PanelRun]
End = tuple[FloatArray, bool]  # of a panel: u there, and whether it is a number
Plans = Generator[Work, End, None]
Steps = Callable[[FloatArray], list[float]]


def merged(lengths: FloatArray) -> list[float]:
    """Neighbours of one length joined to one step."""
    result: list[float] = []
    k = 0
    while k < len(lengths):
        pair = k + 1 < len(lengths) and abs(lengths[k] - lengths[k + 1]) <= 1e-9 * lengths[k]
        result.append(float(lengths[k] + lengths[k + 1] if pair else lengths[k]))
        k += 2 if pair else 1
    return result


def joined(lengths: FloatArray) -> list[float]:
    """Neighbours joined to one step, of one length or not: steps that double are all seen."""
    result: list[float] = np.add.reduceat(lengths, np.arange(0, len(lengths), 2)).tolist()
    return result


def cut(parts: int) -> Steps:
    """Each step in so many parts."""
    return lambda lengths: np.repeat(lengths / parts, parts).tolist()


def made(of: Plans) -> Iterator[PanelRun]:
    """The panels of plans, one after the other."""
    work = next(of, None)
    while work is not None:
        found = work()
        end, work = (found.last.copy(), found.finite), None
        yield found
        del found
        work = followed_by(of, end)


def followed_by(of: Plans, end: End) -> Work | None:
    """The work that comes after a panel which ended so; None if there is none."""
    try:
        return of.send(end)
    except StopIteration:
        return None


def itself(found: Found) -> Found:
    """What is there already."""
    return found


def gathered(steps: Iterable[Step], looked: Iterable[bool]) -> Iterator[Step]:
    """Neighbours that are not looked at as one step: what is between its ends is rougher, and need not be held."""
    before: Step | None = None
    for step, asked in zip(steps, looked, strict=True):
        if before is not None and asked:
            yield before
            before = None
        if asked:
            yield step
        elif before is None:
            before = step
        else:
            before = Step(before.s, before.h + step.h, before.u0, before.slope0, step.u1, step.slope1)
    if before is not None:
        yield before


def told(steps: Iterable[Step], tell: Progress) -> Iterator[Step]:
    """Steps, of which each is told."""
    for step in steps:
        tell(1.0)
        yield step
