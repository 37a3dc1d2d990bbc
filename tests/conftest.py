"""What tests of several folders share."""

import itertools
from collections.abc import Callable, Iterator

import pytest
from threadpoolctl import threadpool_limits

from fem_hjb.support import progress


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tests run side by side: threads of BLAS would wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The clock of limits counts how often it is asked, so that they do not depend on the machine."""
    count = itertools.count()
    asked = [0]

    def tick() -> float:
        asked[0] = next(count)
        return float(asked[0])

    monkeypatch.setattr(progress, "_clock", tick)
    return lambda: asked[0]
