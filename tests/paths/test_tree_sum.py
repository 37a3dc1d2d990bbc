"""Sums over chunks: the same bits on every executor, bounded memory, and failures that say where."""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from distributed import Client, LocalCluster

import fem_hjb as fh
from fem_hjb.paths.tree_sum import tree_sum
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, MeasureError
from fem_hjb.support.progress import OutOfTimeError


def noise(i: int) -> FloatArray:
    """Numbers of very different sizes: added in another order, their sum has other bits."""
    generator = np.random.default_rng(i)
    return np.asarray(generator.standard_normal(64) * 10.0 ** generator.integers(-8, 9, 64))


def plus(left: FloatArray, right: FloatArray) -> FloatArray:
    return left + right


def bracket(left: str, right: str) -> str:
    return f"({left}{right})"


def letter(i: int) -> str:
    return chr(ord("a") + i)


def documented(first: int, last: int) -> str:
    """The tree as the module describes it: the left branch takes the largest power of two below m."""
    m = last - first
    if m == 1:
        return letter(first)
    half = 1 << ((m - 1).bit_length() - 1)
    return bracket(documented(first, first + half), documented(first + half, last))


class Backwards(ThreadPoolExecutor):
    """Finishes what is pending in the reverse order, whenever somebody waits for a result."""

    def __init__(self) -> None:
        super().__init__(1)
        self.finished: list[int] = []
        self._jobs: list[tuple[Any, Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = _Lazy(self)
        self._jobs.append((future, (fn, args)))
        return future

    def finish(self) -> None:
        while self._jobs:
            future, (fn, args) = self._jobs.pop()
            self.finished.append(args[0][0])
            future.set_result(fn(*args))


class _Lazy(Future[Any]):
    def __init__(self, pool: Backwards) -> None:
        super().__init__()
        self._pool = pool

    def result(self, timeout: float | None = None) -> Any:
        self._pool.finish()
        return super().result(timeout)


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


# The tree


@pytest.mark.parametrize("count", range(1, 26))
def test_the_tree_is_the_documented_one(count: int) -> None:
    assert tree_sum(letter, count, bracket) == documented(0, count)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 23])
@pytest.mark.parametrize("group", [1, 2, 4, 16, 32])
def test_neither_group_nor_window_nor_the_order_of_completion_changes_the_tree(count: int, group: int) -> None:
    for window in (1, 3, 100):
        with Backwards() as pool:
            assert tree_sum(letter, count, bracket, executor=pool, window=window, group=group) == documented(0, count)
        if window == 100 and count > group:
            assert pool.finished == sorted(pool.finished, reverse=True)


def test_the_data_of_these_tests_do_feel_the_order() -> None:
    tree = tree_sum(noise, 37, plus)
    onwards = sum((noise(i) for i in range(1, 37)), noise(0))
    assert not np.array_equal(tree, onwards)
    np.testing.assert_allclose(tree, onwards, rtol=1e-6)


# Executors


@pytest.mark.parametrize("group", [1, 4])
def test_threads_give_the_same_bits(group: int) -> None:
    def uneven(i: int) -> FloatArray:
        time.sleep(0.003 * (i % 4 == 0))
        return noise(i)

    with ThreadPoolExecutor(3) as pool:
        result = tree_sum(uneven, 37, plus, executor=pool, window=5, group=group)
    np.testing.assert_array_equal(result, tree_sum(noise, 37, plus))


@pytest.mark.parametrize("group", [1, 8])
def test_processes_give_the_same_bits_also_for_lambdas(processes: ProcessPoolExecutor, group: int) -> None:
    shift = 5
    result = tree_sum(lambda i: noise(i + shift), 37, lambda a, b: a + b, executor=processes, group=group)
    np.testing.assert_array_equal(result, tree_sum(lambda i: noise(i + shift), 37, plus))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_first_ones_that_are_enough_are_what_is_summed(count: int, workers: int) -> None:
    asked: list[int] = []

    def enough(done: int) -> bool:
        asked.append(done)
        return done >= 3

    if workers:
        with ThreadPoolExecutor(workers) as executor:
            total = tree_sum(letter, count, bracket, executor=executor, enough=enough)
    else:
        total = tree_sum(letter, count, bracket, enough=enough)
    assert total == documented(0, min(count, 3))
    assert asked == list(range(1, min(count, 3) + 1))


@pytest.mark.parametrize("last", [0, 1, 3, 4])
def test_a_task_for_which_there_is_no_time_ends_the_sum(last: int) -> None:
    def task(i: int) -> str:
        if i == last:
            raise OutOfTimeError
        return letter(i)

    if last:
        assert tree_sum(task, 5, bracket) == tree_sum(letter, last, bracket)
    else:
        with pytest.raises(OutOfTimeError):
            tree_sum(task, 5, bracket)


def test_a_judgement_is_asked_for_while_a_job_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least once a second, here more often; without a first job it cannot stop anything but by an error."""
    module = sys.modules[tree_sum.__module__]  # whose name in the package is that of the function
    assert module._WAIT <= 1.0
    monkeypatch.setattr(module, "_WAIT", 0.4)
    asked: list[tuple[float, int]] = []
    begun = time.perf_counter()

    def enough(done: int) -> bool:
        asked.append((time.perf_counter() - begun, done))
        return True

    with ThreadPoolExecutor(1) as executor:
        assert tree_sum(lambda i: time.sleep(1.0) or letter(i), 2, bracket, executor=executor, enough=enough) == "a"
    assert [done for _, done in asked] == [0, 0, 1]
    assert asked[0][0] == pytest.approx(0.4, abs=0.25)

    def refused(done: int) -> bool:
        raise KeyError(done)

    with ThreadPoolExecutor(1) as executor, pytest.raises(KeyError, match="0"):
        tree_sum(lambda i: time.sleep(0.6) or letter(i), 2, bracket, executor=executor, enough=refused)


def test_work_is_done_by_the_workers(processes: ProcessPoolExecutor) -> None:
    pids = tree_sum(lambda i: {os.getpid()}, 40, lambda a, b: a | b, executor=processes)
    assert os.getpid() not in pids


def test_without_cloudpickle_plain_functions_are_sent_and_lambdas_refused(
    processes: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    result = tree_sum(noise, 9, plus, executor=processes)
    np.testing.assert_array_equal(result, tree_sum(noise, 9, plus))
    with pytest.raises(MeasureError, match=r"cannot be sent to another process .*pip install cloudpickle"):
        tree_sum(lambda i: noise(i), 9, plus, executor=processes)


def test_what_cannot_be_pickled_is_refused_before_anything_is_submitted(processes: ProcessPoolExecutor) -> None:
    lock = threading.Lock()
    with pytest.raises(MeasureError, match=r"cannot be sent to another process \(TypeError: .*lock.*use threads"):
        tree_sum(lambda i: lock.locked(), 3, lambda a, b: a + b, executor=processes)


def test_data_inside_the_task_are_refused_rather_than_sent_with_every_job(
    processes: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.ones(200_000)
    assert tree_sum(lambda i: data[i], 3, lambda a, b: a + b, executor=processes) == 3.0
    monkeypatch.setattr(sys.modules[tree_sum.__module__], "_PAYLOAD_BYTES", 1_000_000)
    with pytest.raises(MeasureError, match=r"takes 2 MB when pickled .* file_source"):
        tree_sum(lambda i: data[i], 3, lambda a, b: a + b, executor=processes)


# Memory


class Partial:
    """A sum that counts how many of its kind are alive."""

    alive: ClassVar[weakref.WeakSet["Partial"]] = weakref.WeakSet()
    most = 0

    def __init__(self) -> None:
        Partial.alive.add(self)
        Partial.most = max(Partial.most, len(Partial.alive))


def most_alive(count: int, **options: Any) -> int:
    Partial.most = 0
    tree_sum(lambda i: Partial(), count, lambda a, b: Partial(), **options)
    return Partial.most


@pytest.mark.parametrize("count", [64, 1000, 4096])
def test_a_serial_sum_holds_logarithmically_many_partial_sums(count: int) -> None:
    most = most_alive(count)
    assert np.log2(count) <= most <= np.log2(count) + 2


@pytest.mark.parametrize("window", [1, 8, 50])
def test_an_executor_adds_the_window_to_them(window: int) -> None:
    with Backwards() as pool:
        most = most_alive(1000, executor=pool, window=window)
    assert window <= most <= window + np.log2(1000) + 2


def test_a_slow_first_task_does_not_let_the_others_run_away() -> None:
    release, begun = threading.Event(), []

    def task(i: int) -> int:
        begun.append(i)
        if i == 0:
            assert release.wait(10)
        elif i == 6:
            release.set()
        return i

    with ThreadPoolExecutor(2) as pool:
        assert tree_sum(task, 50, lambda a, b: a + b, executor=pool, window=7) == 49 * 25
    assert sorted(begun) == list(range(50))
    begun.clear()
    release.clear()

    def observed(i: int) -> None:
        if i == 0:
            assert release.wait(10)
            time.sleep(0.1)  # time enough for another one to begin, if it may
            before.extend(begun)
        begun.append(i)
        if i == 5:
            release.set()

    before: list[int] = []
    with ThreadPoolExecutor(2) as pool:  # of a window of six, five can be done while the first one is not
        tree_sum(observed, 50, neither, executor=pool, window=6)
    assert sorted(before) == [1, 2, 3, 4, 5]


def neither(left: Any, right: Any) -> Any:
    return None


# Failures


def fails(i: int) -> FloatArray:
    if i in (5, 11):
        raise ConvergenceError(f"path {i} exploded")
    return noise(i)


class Unpicklable(Exception):
    """Pickled without complaint, but cannot be made again: it would break a process pool."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raises_unpicklable(i: int) -> FloatArray:
    raise Unpicklable(i, 2)


@pytest.mark.parametrize("group", [1, 4])
def test_a_failed_task_is_named_with_its_cause(group: int) -> None:
    expected = "chunk 5 failed with ConvergenceError: path 5 exploded"
    with pytest.raises(MeasureError, match=expected) as raised:
        tree_sum(fails, 20, plus, group=group)
    assert isinstance(raised.value.__cause__, ConvergenceError)
    with ThreadPoolExecutor(2) as pool, pytest.raises(MeasureError, match=expected) as raised:
        tree_sum(fails, 20, plus, executor=pool, group=group)
    assert isinstance(raised.value.__cause__, ConvergenceError)


@pytest.mark.parametrize("group", [1, 4])
def test_a_failed_task_in_another_process_too(processes: ProcessPoolExecutor, group: int) -> None:
    with pytest.raises(MeasureError, match="chunk 5 failed with ConvergenceError: path 5 exploded") as raised:
        tree_sum(fails, 20, plus, executor=processes, group=group)
    assert "raise ConvergenceError" in raised.value.__notes__[0]  # the worker's own traceback
    with pytest.raises(MeasureError, match="chunk 0 failed with Unpicklable: 0 and 2"):
        tree_sum(raises_unpicklable, 3, plus, executor=processes)
    with pytest.raises(MeasureError, match="chunks 0 to 3 failed with Unpicklable: 7 and 2"):
        tree_sum(noise, 20, lambda a, b: raises_unpicklable(7), executor=processes, group=4)
    np.testing.assert_array_equal(tree_sum(noise, 4, plus, executor=processes), tree_sum(noise, 4, plus))  # still whole
    with pytest.raises(TypeError):  # and this is what would have broken it
        pickle.loads(pickle.dumps(Unpicklable(1, 2)))


def test_a_result_that_cannot_travel_is_reported(processes: ProcessPoolExecutor) -> None:
    expected = r"chunk 0: twice no result came back from the ProcessPoolExecutor, but .*pickle"
    with pytest.raises(MeasureError, match=expected):
        tree_sum(lambda i: threading.Lock(), 3, neither, executor=processes)


class Forgetful(ThreadPoolExecutor):
    """Of every seventh job the result is lost on its way back, with an error of the executor's own."""

    submitted = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1
        future = super().submit(fn, *args, **kwargs)
        if self.submitted % 7:
            return future
        lost: Future[Any] = Future()
        lost.set_exception(ValueError("not enough values to unpack"))
        return lost


def test_a_result_lost_on_its_way_is_computed_again() -> None:
    with Forgetful(2) as pool:
        np.testing.assert_array_equal(tree_sum(noise, 37, plus, executor=pool, window=4), tree_sum(noise, 37, plus))
    assert pool.submitted == 37 + 6  # for the seventh, ..., the 42nd were lost


def test_time_that_is_over_in_a_thread_comes_out_and_is_not_tried_again() -> None:
    begun: list[int] = []

    def late(i: int) -> FloatArray:
        begun.append(i)
        raise OutOfTimeError

    with ThreadPoolExecutor(1) as pool, pytest.raises(OutOfTimeError):
        tree_sum(late, 1, plus, executor=pool)
    assert begun == [0]


def test_after_a_failure_what_is_pending_is_cancelled() -> None:
    begun: list[int] = []
    hold = threading.Event()

    def task(i: int) -> int:
        begun.append(i)
        if i == 0:
            raise ValueError("first")
        hold.wait(10)
        return i

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(MeasureError, match="chunk 0 failed with ValueError: first"):
            tree_sum(task, 100, lambda a, b: a + b, executor=pool, window=20)
        hold.set()
    assert len(begun) <= 3


def test_a_failing_addition_cancels_too_and_is_the_callers_own_error() -> None:
    begun: list[int] = []

    def task(i: int) -> int:
        begun.append(i)
        time.sleep(0.02)
        return i

    def refuse(left: int, right: int) -> int:
        raise ZeroDivisionError("in add")

    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError, match="in add") as raised:
        tree_sum(task, 100, refuse, executor=pool, window=50)
    assert raised.value.__traceback__ is not None  # kept, with all that its frames hold
    assert len(begun) < 40


def die(i: int) -> int:
    if i == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def test_a_killed_worker_of_a_process_pool_is_reported_with_what_to_do() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(
            MeasureError, match=r"ProcessPoolExecutor broke before .*new executor.*get_executor"
        ) as raised:
            tree_sum(die, 20, lambda a, b: a + b, executor=pool)
        assert isinstance(raised.value.__cause__, BrokenProcessPool)
        with pytest.raises(MeasureError, match="ProcessPoolExecutor broke before chunk 0 came back"):
            tree_sum(die, 2, lambda a, b: a + b, executor=pool)  # refused by submit this time


def test_an_executor_that_was_shut_down_is_reported() -> None:
    pool: Executor = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(MeasureError, match=r"the ThreadPoolExecutor takes no work .*shutdown"):
        tree_sum(noise, 3, plus, executor=pool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be a positive integer, got 0"),
        ({"count": 2.0}, "count must be a positive integer"),
        ({"window": 0}, "window must be a positive integer"),
        ({"group": 0}, "group must be a positive integer"),
        ({"group": 6}, "group must be a power of two, got 6; take 4"),
    ],
)
def test_bad_numbers(options: dict[str, Any], message: str) -> None:
    arguments = {"count": 4, **options}
    with pytest.raises(MeasureError, match=message):
        tree_sum(noise, arguments.pop("count"), plus, **arguments)


# A cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as workers,
        Client(workers) as client,
    ):
        yield client


def test_a_cluster_gives_the_same_bits(cluster: Client) -> None:
    expected = tree_sum(noise, 37, plus)

    def task(i: int) -> tuple[FloatArray, set[int]]:
        return noise(i), {os.getpid()}

    def add(left: tuple[FloatArray, set[int]], right: tuple[FloatArray, set[int]]) -> tuple[FloatArray, set[int]]:
        return left[0] + right[0], left[1] | right[1]

    executor = cluster.get_executor()
    for group in (1, 4):
        result, pids = tree_sum(task, 37, add, executor=executor, window=8, group=group)
        np.testing.assert_array_equal(result, expected)
        assert os.getpid() not in pids
    with pytest.raises(MeasureError, match="chunk 5 failed with ConvergenceError: path 5 exploded"):
        tree_sum(fails, 20, plus, executor=executor, group=4)


def test_a_fit_on_a_cluster_has_the_same_bits_even_when_a_worker_is_killed(cluster: Client, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    problem = fh.zoo.get("lq", dim=1)
    space = fh.Space(problem, cells=4, time_cells=2, box=fh.Box([-3.0], [3.0]))
    simulated = fh.paths.simulated_source(problem, n=4000, steps=12, rng=0, chunk=250)
    here = fh.fit(problem, simulated, space, estimator="corrected", outside="drop")

    @dataclass(frozen=True, eq=False, kw_only=True)
    class Deadly(fh.paths.PathSource):
        def chunk(self, i: int) -> fh.paths.Paths:
            if i == 6 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return simulated.chunk(i)

    deadly = Deadly(n=4000, dim=1, t=simulated.t, chunk_size=250)
    there = fh.fit(problem, deadly, space, estimator="corrected", outside="drop", executor=cluster.get_executor())
    assert killed.exists()
    np.testing.assert_array_equal(there.coefficients, here.coefficients)
