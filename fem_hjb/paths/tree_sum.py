"""Sums over many tasks, here or on a cluster, whose bits depend neither on who computes what nor on when it is done.

The sum is a binary tree fixed by the number of tasks alone: of the m > 1 leaves under a node, the first 2^j, with 2^j
the largest power of two below m, are the left branch and the others the right one. Five tasks: ((0+1) + (2+3)) + 4.
"""

import pickle
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import lru_cache, partial
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar

from fem_hjb.support.checks import at_most, positive_integer
from fem_hjb.support.errors import MeasureError
from fem_hjb.support.progress import OutOfTimeError

T = TypeVar("T")

_MOST_TASKS = 1_000_000_000
_WAIT = 1.0  # seconds without a result after which `enough` is asked again
_PAYLOAD_BYTES = 1 << 26  # sent with every job; more than this is data, which belongs in a file


def tree_sum(
    task: Callable[[int], T],
    count: int,
    add: Callable[[T, T], T],
    *,
    executor: Executor | None = None,
    window: int = 32,
    group: int = 1,
    enough: Callable[[int], object] | None = None,
) -> T:
    """sum_{i < count} task(i) in a fixed binary tree: the same bits whatever the executor and the order of completion.

    Parameters
    ----------
    task : i -> partial sum. Under a process pool or a cluster it is pickled (by cloudpickle, if installed, which also
        takes lambdas) and may be called by several threads of one worker; it must not depend on what ran before.
    add : (left, right) -> their sum; it may work in place on `left`, and is associative up to rounding.
    executor : None computes here, one task after the other. Otherwise any concurrent.futures.Executor: threads,
        processes, or `Client.get_executor()` of dask.distributed, which gives the work of a lost worker to another one.
    window : at most so many jobs are submitted and not yet added up; two to four per worker keep all of them busy.
    group : a power of two; a job is so many neighbouring tasks, added up where they are computed, so that fewer partial
        sums travel. The tree, hence the result, is the same for every group.
    enough : called with the number of tasks added up so far, here, after every job and once a second while one is
        waited for. Where it says so, the sum over this many first tasks is the result, as soon as there is one. A task
        that is computed here may raise OutOfTimeError: the same, unless it is the first one, where the error comes out.

    At most window + log2(count / group) + 2 partial sums are held here, and log2(group) + 2 by the worker of a job.
    Bitwise equality supposes that task(i) itself gives the same bits everywhere: same NumPy build, same kind of
    processor, and the same number of BLAS threads.

    Raises
    ------
    MeasureError : count, window or group make no sense; a task failed (the message names it, of several the one with
        the smallest i; the cause is chained, or noted if it is another process's); the executor is broken, shut down or
        lost a job twice; task or add cannot be pickled, or are too large to be sent with every job. Jobs not yet begun
        are then cancelled.

    >>> tree_sum(lambda i: f"{i}", 5, lambda left, right: f"({left}+{right})")
    '(((0+1)+(2+3))+4)'
    """
    for name, given in (("task", task), ("add", add)):
        if not callable(given):
            raise MeasureError(f"{name} must be a callable, got {type(given).__name__}")
    if executor is not None and not isinstance(executor, Executor):
        raise MeasureError(f"executor= needs an Executor, got {type(executor).__name__}")
    count = at_most(count, _MOST_TASKS, "count", MeasureError)
    window = positive_integer(window, "window", MeasureError)
    group = positive_integer(group, "group", MeasureError)
    if group & (group - 1):
        raise MeasureError(f"group must be a power of two, got {group}; take {1 << (group.bit_length() - 1)}")
    if enough is not None and not callable(enough):
        raise MeasureError(f"enough must be a callable or None, got {type(enough).__name__}")
    if executor is None:
        return _fold(_until_enough(task, count, enough), add)
    job: Callable[[range], T] = (
        partial(_subtree, task, add)
        if isinstance(executor, ThreadPoolExecutor)
        else partial(_unpacked_subtree, _pack(task, add))
    )
    jobs = (range(start, min(start + group, count)) for start in range(0, count, group))
    with closing(_results(executor, job, jobs, window, enough)) as partials:
        return _fold(partials, add)


def _fold(values: Iterable[T], add: Callable[[T, T], T]) -> T:
    """The sum of at least one value in the tree of this module, holding one partial sum per bit of their number."""
    waiting: list[tuple[int, T]] = []  # (height, sum) of complete subtrees, higher ones first
    for value in values:
        height = 0
        while waiting and waiting[-1][0] == height:
            value = add(waiting.pop()[1], value)
            height += 1
        waiting.append((height, value))
    total = waiting.pop()[1]
    while waiting:
        total = add(waiting.pop()[1], total)
    return total


def _until_enough(task: Callable[[int], T], count: int, enough: Callable[[int], object] | None) -> Iterator[T]:
    for i in range(count):
        try:
            value = _attempt(task, i)
        except OutOfTimeError:
            if not i:
                raise
            return
        yield value
        if enough is not None and enough(i + 1):
            return


def _subtree(task: Callable[[int], T], add: Callable[[T, T], T], indices: range) -> T:
    return _fold((_attempt(task, i) for i in indices), add)


def _attempt(task: Callable[[int], T], i: int) -> T:
    try:
        return task(i)
    except OutOfTimeError:
        raise
    except Exception as cause:  # a task is any code
        raise MeasureError(f"chunk {i} failed with {type(cause).__name__}: {cause}") from cause


def _results(
    executor: Executor,
    job: Callable[[range], T],
    jobs: Iterable[range],
    window: int,
    enough: Callable[[int], object] | None,
) -> Generator[T, None, None]:
    """The results of the jobs in their order, of which at most `window` are under way or waiting to be taken."""
    pending: deque[tuple[range, Future[T]]] = deque()
    waiting = iter(jobs)
    done = 0
    try:
        while True:
            for indices in islice(waiting, window - len(pending)):
                pending.append((indices, _submit(executor, job, indices)))
            if not pending:
                return
            while enough is not None and not wait([pending[0][1]], timeout=_WAIT).done:
                if enough(done) and done:
                    return
            indices, future = pending.popleft()
            yield _outcome(executor, job, indices, future)
            done = indices.stop
            if enough is not None and enough(done):
                return
    finally:
        for _, future in pending:
            future.cancel()


def _submit(executor: Executor, job: Callable[[range], T], indices: range) -> Future[T]:
    try:
        return executor.submit(job, indices)
    except BrokenExecutor as cause:
        raise _broken(executor, indices, cause) from cause
    except RuntimeError as cause:
        raise MeasureError(f"{_name(executor)} takes no work ({cause}); give an executor that is open") from cause


def _outcome(executor: Executor, job: Callable[[range], T], indices: range, future: Future[T]) -> T:
    """What came back, or, if the executor lost it, what comes back of a second try.

    A job tells its own failures. What is not of it may be over, such as a worker lost while its result was on its way.
    """
    try:
        return _told(executor, indices, future)
    except (MeasureError, OutOfTimeError):
        raise
    except Exception:  # executors have error types of their own
        again = _submit(executor, job, indices)
    try:
        return _told(executor, indices, again)
    except (MeasureError, OutOfTimeError):
        raise
    except Exception as cause:
        raise MeasureError(
            f"{_chunks(indices)}: twice no result came back from {_name(executor)}, but {type(cause).__name__}: {cause}"
        ) from cause


def _told(executor: Executor, indices: range, future: Future[T]) -> T:
    """What the job returned or raised; errors of the executor pass, but for that of a broken one."""
    try:
        return future.result()
    except BrokenExecutor as cause:
        raise _broken(executor, indices, cause) from cause


def _broken(executor: Executor, indices: range, cause: BrokenExecutor) -> MeasureError:
    return MeasureError(
        f"{_name(executor)} broke before {_chunks(indices)} came back ({cause}): a worker was killed, often for "
        "want of memory, or could not start (scripts make process pools under if __name__ == '__main__'). Make a new "
        "executor, with fewer workers or smaller chunks, and start again; or use dask.distributed's "
        "Client.get_executor(), which gives the work of a lost worker to another one"
    )


def _name(executor: Executor) -> str:
    return f"the {type(executor).__name__}"


def _chunks(indices: range) -> str:
    return f"chunk {indices[0]}" if len(indices) == 1 else f"chunks {indices[0]} to {indices[-1]}"


def _pack(task: Callable[[int], T], add: Callable[[T, T], T]) -> bytes:
    """Both callables as bytes, made once however many jobs there are."""
    try:
        pickler, remedy = import_module("cloudpickle"), "keep open files, locks and generators out of it"
    except ModuleNotFoundError:
        pickler, remedy = pickle, "pip install cloudpickle, which also takes lambdas and local functions"
    try:
        payload: bytes = pickler.dumps((task, add))
    except Exception as cause:  # pickling runs the code of whatever is pickled
        raise MeasureError(
            f"the task cannot be sent to another process ({type(cause).__name__}: {cause}); {remedy}, or use threads"
        ) from cause
    if len(payload) > _PAYLOAD_BYTES:
        raise MeasureError(
            f"the task takes {len(payload) / 1e6:.0f} MB when pickled and would be sent with every job (at most "
            f"{_PAYLOAD_BYTES / 1e6:.0f} MB): write the samples with write_paths and read them with file_source, or "
            "use threads"
        )
    return payload


@lru_cache(maxsize=1)
def _unpack(payload: bytes) -> Any:
    return pickle.loads(payload)


def _unpacked_subtree(payload: bytes, indices: range) -> Any:
    """The job of another process. Of its errors only the text goes back: a cause of any type may break the way back."""
    try:
        task, add = _unpack(payload)
        return _subtree(task, add, indices)
    except Exception as cause:  # whatever unpickling, the task's code or the addition's raises: none may be lost
        told = isinstance(cause, MeasureError)
        failure = MeasureError(
            str(cause) if told else f"{_chunks(indices)} failed with {type(cause).__name__}: {cause}"
        )
        failure.add_note(traceback.format_exc())
    raise failure  # out here it has no context
