"""What tests of several folders share."""

import gc
import itertools
from collections.abc import Callable, Generator, Iterator

import pytest
from threadpoolctl import threadpool_limits

from fem_hjb.support import progress

LONGEST = ("test_notebooks.py", "test_misuse.py", "test_seconds.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: at the end one process would work on them while the others wait."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Hardly anything of what is collected is garbage: looking for it takes a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """What seven thousand tests are made of stays: the collector of garbage need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tests run side by side: threads of BLAS would wait for each other, here and in processes that tests start."""
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1, user_api="blas"):
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
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
