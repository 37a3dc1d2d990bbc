"""Parts of a piece of work, by as many threads as were asked for.

NumPy lets go of the interpreter in its loops and in BLAS, so that threads share out what is done to large arrays. The
parts are the same however many threads there are: so are the digits of what comes out.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

import numpy as np

from fem_hjb.support.errors import FemHjbError

Part = TypeVar("Part")
Found = TypeVar("Found")
Job = Generator[Callable[[], Found], Found, None]  # of works, which hears what came out of each

_POOL: ContextVar[tuple[ThreadPoolExecutor, int] | None] = ContextVar("pool", default=None)


def worker_count(workers: Any, error: type[FemHjbError]) -> int:
    """`workers` as a number of threads; negative ones count from all processors, -1, down, as in `scipy.fft`."""
    if isinstance(workers, bool) or not isinstance(workers, int | np.integer) or workers == 0:
        raise error(f"workers must be a number of threads, or -1 for as many as there are processors, got {workers!r}")
    if workers > 0:
        return int(workers)
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if -workers > there:
        raise error(f"workers={workers} is none of {there} processors")
    return there + 1 + int(workers)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within it `for_each` works with so many threads, the caller's one of them."""
    if count == 1:
        yield
        return
    with ThreadPoolExecutor(count - 1, thread_name_prefix="fem_hjb") as pool:
        token = _POOL.set((pool, count - 1))
        try:
            yield
        finally:
            _POOL.reset(token)


def shared_out() -> bool:
    """Whether `for_each` has more than one thread."""
    return _POOL.get() is not None


def for_each(parts: Sequence[Part], work: Callable[[Part], None]) -> None:
    """work(part) for each part, in any order; what one of them raises comes out when all threads have stopped."""
    pooled = _POOL.get()
    if pooled is None or len(parts) < 2:
        for part in parts:
            work(part)
        return
    left = deque(parts)

    def drain() -> None:
        while True:
            try:
                part = left.popleft()
            except IndexError:
                return
            try:
                work(part)
            except BaseException:
                left.clear()
                raise

    pool, count = pooled
    # each in a copy of the caller's context, as NumPy's error state is part of it; which must not have a pool itself
    others = [_elsewhere(pool, drain) for _ in range(min(count, len(parts) - 1))]
    try:
        copy_context().run(_alone, drain)  # what a part shares out itself is not to wait for threads that are busy
    finally:
        left.clear()
        failures = [other.exception() for other in others if not other.cancel()]  # busy elsewhere: not waited for
    for failure in failures:
        if failure is not None:
            raise failure


def beside(jobs: Sequence[Job[Found]]) -> None:
    """All the works of jobs: of each one after the other, of several beside each other, one on its own by all threads.

    The jobs themselves go on in the caller's thread, from one work to the next.
    """
    ready = deque[tuple[Job[Found], Callable[[], Found]]]()
    busy = dict[Future[Found], Job[Found]]()

    def go_on(job: Job[Found], found: Any = None) -> None:
        with suppress(StopIteration):
            ready.append((job, job.send(found)))

    for job in jobs:
        go_on(job)
    pool, count = _POOL.get() or (None, 0)
    try:
        while ready or busy:
            if pool is not None and (busy or len(ready) > 1):
                while len(busy) < count + (len(ready) > 1) and ready:  # one waits, or a thread would for the caller
                    job, work = ready.popleft()
                    busy[_elsewhere(pool, work)] = job
            if ready:
                job, work = ready.popleft()
                go_on(job, copy_context().run(_alone, work) if busy else work())
            else:
                wait(busy, return_when=FIRST_COMPLETED)
            for done in [each for each in busy if each.done()]:
                go_on(busy.pop(done), done.result())
    finally:
        for each in busy:
            each.cancel()
        wait(busy)


def _elsewhere(pool: ThreadPoolExecutor, work: Callable[[], Found]) -> Future[Found]:
    return pool.submit(copy_context().run, _alone, work)


def _alone(work: Callable[[], Found]) -> Found:
    _POOL.set(None)
    return work()
