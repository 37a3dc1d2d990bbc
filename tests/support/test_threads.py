"""Work in parts: all of it is done, once, by as many threads as asked for; what fails comes out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
import pytest

from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.threads import beside, for_each, shared_out, threads, worker_count


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_part_is_done_once(count: int) -> None:
    done = np.zeros(100, dtype=np.int64)

    def work(part: int) -> None:
        done[part] += 1

    with threads(count):
        for_each(range(100), work)
        for_each([], work)
    assert (done == 1).all()


def test_as_many_threads_as_asked_for_meet() -> None:
    """A barrier that nobody passes alone; without threads parts are done one after the other."""
    barrier = threading.Barrier(3)
    with threads(3):
        for_each(range(3), lambda _: barrier.wait(10.0) and None)
    order: list[int] = []
    for_each(range(5), order.append)
    assert order == [0, 1, 2, 3, 4]
    alone = threading.Barrier(2)
    with pytest.raises(threading.BrokenBarrierError):
        for_each(range(2), lambda _: alone.wait(0.01) and None)


@pytest.mark.parametrize("count", [1, 3])
def test_what_fails_comes_out_and_nothing_runs_on(count: int) -> None:
    under_way = set[int]()

    def work(part: int) -> None:
        if part == 7:
            raise ValueError("part 7")
        under_way.add(part)
        time.sleep(1e-4)
        under_way.remove(part)

    with threads(count):
        with pytest.raises(ValueError, match="part 7"):
            for_each(range(1000), work)
        assert not under_way
        for_each(range(3), work)  # and the next one is not disturbed


def test_what_fails_in_another_thread_comes_out_and_the_rest_is_left() -> None:
    caller, met, done = threading.current_thread(), threading.Barrier(2), []

    def work(part: int) -> None:
        if part < 2:
            met.wait(10.0)
        if threading.current_thread() is not caller:
            raise ValueError("elsewhere")
        done.append(part)
        time.sleep(1e-4)

    with threads(2), pytest.raises(ValueError, match="elsewhere"):
        for_each(range(5000), work)
    assert len(done) < 2500


def test_numpy_minds_its_errors_in_threads_as_outside() -> None:
    barrier = threading.Barrier(2)

    def work(part: int) -> None:
        barrier.wait(10.0)
        np.array([1e308]) * 10.0 ** (part + 1)

    with threads(2):
        with np.errstate(over="ignore"):
            for_each(range(2), work)
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            for_each(range(2), work)


def test_nobody_waits_for_a_thread_that_is_busy_elsewhere() -> None:
    """As where a plan is prepared in parts while another one is followed."""
    prepared, heard = threading.Event(), list[bool]()

    def long() -> Generator[Callable[[], bool], bool, None]:
        heard.append((yield lambda: prepared.wait(2.0)))

    def short() -> Generator[Callable[[], bool], bool, None]:
        yield lambda: True
        done = np.zeros(4, dtype=np.int64)
        for_each(range(4), lambda part: np.add.at(done, part, 1))
        assert (done == 1).all()
        prepared.set()

    with threads(2):
        beside([long(), short()])
    assert heard == [True]


def test_parts_of_parts_are_done_too() -> None:
    done = np.zeros((4, 4))

    def work(row: int) -> None:
        for_each(range(4), lambda column: done[row].__setitem__(column, 1.0))

    with threads(2):
        for_each(range(4), work)
    assert done.all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_jobs_go_on_in_ones_own_thread_and_hear_what_their_works_found(count: int) -> None:
    own, heard, workers = threading.get_ident(), {k: list[int]() for k in range(5)}, set[int]()

    def work(k: int, n: int) -> int:
        workers.add(threading.get_ident())
        time.sleep(1e-3)
        return 10 * k + n

    def job(k: int) -> Generator[Callable[[], int], int, None]:
        for n in range(k):
            heard[k].append((yield partial(work, k, n)))
            assert threading.get_ident() == own

    with threads(count):
        beside([job(k) for k in range(5)])
        beside([])
    assert heard == {k: [10 * k + n for n in range(k)] for k in range(5)}
    assert 1 <= len(workers) <= count
    assert own in workers


def test_several_works_meet_and_one_on_its_own_has_all_threads() -> None:
    """A barrier that takes two; the last works of the longer job share out their own parts."""
    met, alone = threading.Barrier(2), list[bool]()

    def look() -> None:
        alone.append(shared_out())
        time.sleep(0.02)  # until the other job is over

    def job(works: int) -> Generator[Callable[[], Any], Any, None]:
        yield lambda: met.wait(10.0)
        for _ in range(works):
            yield look

    with threads(2):
        beside([job(0), job(3)])
    assert alone[-2:] == [True, True]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("where", ["job", "work"])
def test_what_fails_in_jobs_comes_out_and_nothing_runs_on(count: int, where: str) -> None:
    under_way = set[int]()

    def work(k: int) -> None:
        under_way.add(k)
        time.sleep(1e-3)
        under_way.remove(k)
        if k == 1 and where == "work":
            raise ValueError("here")

    def job(k: int) -> Generator[Callable[[], None], None, None]:
        for _ in range(20):
            yield partial(work, k)
            if k == 2 and where == "job":
                raise ValueError("here")

    with threads(count):
        with pytest.raises(ValueError, match="here"):
            beside([job(k) for k in range(3)])
        assert not under_way
        for_each(range(3), work) if where == "job" else for_each([0, 2], work)


def test_threads_are_counted_as_scipy_counts_them() -> None:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert worker_count(3, ConvergenceError) == 3
    assert worker_count(-1, ConvergenceError) == there
    wrong: list[Any] = [0, 1.5, True, "2", None, -1000]
    for each in wrong:
        with pytest.raises(ConvergenceError, match="workers"):
            worker_count(each, ConvergenceError)
