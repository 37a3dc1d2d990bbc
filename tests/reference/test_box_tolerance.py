"""The search for a run that is good enough: what it holds of those that are not."""

import math
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fem_hjb.reference import box_tolerance
from fem_hjb.reference.box_run import Run


@dataclass
class Runs:
    """A search whose runs have these errors, and how many of the earlier ones are there as each begins."""

    errors: list[float]
    rtol: float = 0.0
    tameable: bool = False
    linear: bool = True

    def __post_init__(self) -> None:
        self.refs, self.alive = list[weakref.ref[Run]](), list[int]()

    def made(self) -> Run:
        self.alive.append(sum(ref() is not None for ref in self.refs))
        run = Run(cast(Any, SimpleNamespace(problem=None)), counts={"steps": 10**9})
        self.refs.append(weakref.ref(run))
        return run

    def run(self, _: Any) -> Any:
        error = (self.errors.pop(0), 0.0)
        return box_tolerance._Judged(self.made(), {"time": error}, None, cast(Any, None), math.inf, math.nan)

    def tightened(self, _: Any) -> bool:
        return bool(self.errors)


def test_of_runs_that_are_no_better_nothing_is_kept() -> None:
    search = Runs([5.0, 6.0, 4.0, 7.0, 2.0])
    best, stopped = box_tolerance._best(cast(Any, search), None, lambda _: None, lambda _: None)
    assert best.error == 2.0
    assert not stopped
    assert search.alive == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(("boxes", "count"), [(0, 3), (2, 4)])
def test_of_runs_in_smaller_boxes_nothing_is_kept(boxes: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, left = Runs([]), [True] * boxes + [False] * 2
    monkeypatch.setattr(box_tolerance, "steered", lambda run, seed: object())
    search = SimpleNamespace(
        payoff=None,
        problem=SimpleNamespace(dim=2),
        calm=boxes > 0,
        controlled=None,
        tolerances=None,
        rtol=0.1,
        most=1,
        seed=0,
        losable=0.0,
        _most=lambda _: 1.0,
        _outpaced_by=lambda _: 1.0,
        _follow=lambda _: None,
        _left_by=lambda _: left.pop(0),
        _marched=lambda *_: runs.made(),
    )
    box_tolerance._Search._held(cast(Any, search), lambda _: None)
    assert runs.alive == [0] * count
