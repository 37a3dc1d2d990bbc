"""Work that is watched: what is told of it, and when it is stopped."""

import pytest

from fem_hjb.support import progress as watching
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import OutOfTimeError, beats_of, checked_seconds, part_of, to_the_end, until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(watching, "_clock", lambda: now[0])
    return now


def test_fractions_never_fall_and_end_at_one(clock: list[float]) -> None:
    seen: list[float] = []
    watch = until(seen.append, None)
    for fraction in (0.0, 0.3, 0.1, 0.3, 0.7, -1.0, 0.2):
        watch(fraction)
    watch.finished()
    assert seen == [0.3, 0.7, 1.0]
    watch.finished()
    assert seen == [0.3, 0.7, 1.0]


def test_what_is_more_than_all_is_all(clock: list[float]) -> None:
    seen: list[float] = []
    watch = until(seen.append, None)
    watch(1.5)
    watch(2.0)
    watch.finished()
    assert seen == [1.0]


def test_without_news_the_last_fraction_is_told_once_a_second(clock: list[float]) -> None:
    seen: list[tuple[float, float]] = []
    watch = until(lambda fraction: seen.append((clock[0], fraction)), None)
    for k in range(48):
        clock[0] = 100.0 + k / 10
        watch(0.4 if k == 20 else 0.0)
    times = [time for time, _ in seen]
    assert [fraction for _, fraction in seen] == [0.0, 0.4, 0.4, 0.4]
    assert times == pytest.approx([101.1, 102.0, 103.1, 104.2])
    assert max(late - early for early, late in zip([100.0, *times], times, strict=False)) < 1.2


def test_time_that_is_over_stops_the_work_and_not_what_is_left(clock: list[float]) -> None:
    seen: list[float] = []
    watch = until(seen.append, 2.0)
    clock[0] = 101.9
    watch(0.5)
    clock[0] = 102.1
    with pytest.raises(OutOfTimeError):
        watch(0.6)
    to_the_end(watch)(0.8)
    watch.finished()
    assert seen == [0.5, 0.6, 0.8, 1.0]
    assert watch.reached == 1.0
    free = until(seen.append, None)
    clock[0] = 1e9
    free(0.1)


def test_a_part_has_a_limit_of_its_own(clock: list[float]) -> None:
    whole = until(None, 10.0)
    part = until(part_of(whole, 0.2, 0.6), 3.0)
    clock[0] = 102.0
    part(0.5)
    assert whole.reached == pytest.approx(0.4)
    clock[0] = 104.0
    with pytest.raises(OutOfTimeError):
        part(0.6)
    whole(0.5)


def test_work_of_unknown_length_never_reaches_the_end() -> None:
    seen: list[float] = []
    beat = beats_of(seen.append)
    for _ in range(10_000):
        beat()
    assert seen == sorted(seen)
    assert 0.0 < seen[0] < 0.1
    assert 0.99 < seen[-1] < 1.0


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf"), True, "soon", [1.0, 2.0]])
def test_bad_seconds(seconds: object) -> None:
    with pytest.raises(ConvergenceError, match="max_seconds must be a positive"):
        checked_seconds(seconds)
