"""Trajectories dealt out to folds, and the systems of several folds as one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from fem_hjb.learning.system import Data, System
from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import PathSource, array_source
from fem_hjb.support.checks import FloatArray, positive_integer
from fem_hjb.support.errors import MeasureError

FOLDS = 5
_SAMPLES = 1 << 18  # of a chunk of a fold, at most


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Part(PathSource):
    """Some of the chunks of a source."""

    source: PathSource
    chunks: tuple[int, ...]

    @property
    def chunk_count(self) -> int:
        return len(self.chunks)

    def chunk(self, i: int) -> Paths:
        return self.source.chunk(self.chunks[i])


def _part(source: PathSource, chunks: Iterable[int]) -> PathSource:
    kept = tuple(chunks)
    n = sum(source.rows(i).stop - source.rows(i).start for i in kept)
    return _Part(n=n, dim=source.dim, t=source.t, chunk_size=source.chunk_size, source=source, chunks=kept)


def as_source(data: Paths | PathSource, samples: int) -> PathSource:
    """Trajectories in chunks, those in memory of so many samples."""
    return array_source(data, chunk=max(1, samples // data.steps)) if isinstance(data, Paths) else data


def fold_sources(data: Data, folds: int) -> list[PathSource]:
    """The chunks of a source dealt out to folds; of paths in memory neighbours are in one chunk."""
    folds = positive_integer(folds, "folds", MeasureError)
    if isinstance(data, Paths):
        data = array_source(data, chunk=max(1, min(-(-data.n // folds), _SAMPLES // data.steps)))
    if not isinstance(data, PathSource):
        raise MeasureError(
            "cross-validation (space='auto') needs trajectories, Paths or a PathSource, got"
            f" {type(data).__name__}: give a Space"
        )
    if folds < 2 or data.chunk_count < folds:
        raise MeasureError(
            f"{data.n} paths in {data.chunk_count} chunks cannot be dealt out to {folds} folds: at least 2 folds, each"
            " of at least one chunk"
        )
    return [_part(data, range(k, data.chunk_count, folds)) for k in range(folds)]


def apart(data: Paths | PathSource, parts: int) -> tuple[Paths | PathSource, Paths | PathSource]:
    """The trajectories without one of so many parts, and that part: the last paths, or every so-manyth chunk.

    Raises MeasureError if there are not as many of them.
    """
    if isinstance(data, PathSource) and data.chunk_count == 1:
        data = data.chunk(0)
    count = data.n if isinstance(data, Paths) else data.chunk_count
    parts = min(parts, count)
    if parts < 2:
        raise MeasureError("a single trajectory cannot be taken apart")
    if isinstance(data, Paths):
        first = data.n - data.n // parts
        kept = Paths(t=data.t, x=data.x[:first], scheme=data.scheme)
        return kept, Paths(t=data.t, x=data.x[first:], scheme=data.scheme)
    out = range(parts - 1, count, parts)
    return _part(data, (i for i in range(count) if i not in out)), _part(data, out)


def beyond(data: Paths | PathSource, used: int) -> Paths | PathSource:
    """The trajectories after the first so many, which are whole chunks of them."""
    if isinstance(data, Paths):
        return Paths(t=data.t, x=data.x[used:], scheme=data.scheme)
    return _part(data, (i for i in range(data.chunk_count) if data.rows(i).start >= used))


def average(systems: Sequence[System], weights: FloatArray) -> System:
    """The system of all trajectories of several, weights being their shares."""
    terms = list(zip(weights.tolist(), systems, strict=True))
    return replace(
        systems[0],
        form=sum(w * s.form for w, s in terms),
        mass=sum(w * s.mass for w, s in terms),
        energy=sum(w * s.energy for w, s in terms),
        load=np.sum([w * s.load for w, s in terms], axis=0),
        paths=sum(s.paths for s in systems),
        samples=sum(s.samples for s in systems),
        dropped=sum(s.dropped for s in systems),
        visits=np.sum([s.visits for s in systems], axis=0),
    )
