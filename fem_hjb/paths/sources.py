"""Trajectories that need not fit in memory: sources which hand out the chunk that is asked for, in any order.

A source is small, can be pickled, and makes chunk i from i alone, so that the workers of a cluster make or read their
own chunks and nothing but the indices travels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from fem_hjb.paths.simulate import Paths, sample_paths
from fem_hjb.paths.steering import Policy
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray, frozen_array, positive_integer, spawn_generators
from fem_hjb.support.errors import MeasureError
from fem_hjb.support.objects import Plain

CHUNK = 16384


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PathSource(Plain, ABC):
    """n trajectories observed at the times t, in chunks of `chunk_size` neighbours (the last one may be shorter).

    n : how many trajectories.
    dim : d, the dimension of the state.
    t (K+1,) : the times, increasing from 0; read-only.
    chunk_size : the number of trajectories per chunk.
    scheme : where they come from, as in `Paths`.

    A source of your own is a subclass with one method, `chunk`: frozen, picklable, and the same bits on every call.

    Raises MeasureError if n, dim or chunk_size are not positive integers, or t does not increase from 0.
    """

    n: int
    dim: int
    t: FloatArray
    chunk_size: int = CHUNK
    scheme: str = "given"

    def __post_init__(self) -> None:
        for name in ("n", "dim", "chunk_size"):
            what = "chunk" if name == "chunk_size" else name
            object.__setattr__(self, name, positive_integer(getattr(self, name), what, MeasureError))
        times = frozen_array(self.t, "the times t", (np.size(self.t),), MeasureError)
        if times.size < 2 or times[0] != 0.0 or not (np.diff(times) > 0).all():
            late = np.flatnonzero(np.diff(times) <= 0)
            where = f", and t[{late[0] + 1}]={times[late[0] + 1]:g} after {times[late[0]]:g}" if late.size else ""
            raise MeasureError(
                f"the times t must be at least two and increase strictly from 0, got {times.size} of them from "
                f"{times[:1]}{where}"
            )
        object.__setattr__(self, "t", times)

    @property
    def chunk_count(self) -> int:
        """ceil(n / chunk_size)."""
        return -(-self.n // self.chunk_size)

    def rows(self, i: int) -> slice:
        """Which of the n trajectories are in chunk i. Raises MeasureError if there is no such chunk."""
        if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 0 <= i < self.chunk_count:
            raise MeasureError(f"there is no chunk {i!r}: the {self.n} paths make chunks 0 to {self.chunk_count - 1}")
        return slice(i * self.chunk_size, min((i + 1) * self.chunk_size, self.n))

    @abstractmethod
    def chunk(self, i: int) -> Paths:
        """The trajectories rows(i). Raises MeasureError if there is no such chunk, or it cannot be had."""

    def check(self, problem: ControlProblem) -> None:
        """Raise MeasureError unless the trajectories are of the problem's dimension and end at its horizon."""
        if self.dim != problem.dim:
            raise MeasureError(f"the paths are of dimension {self.dim}, the problem has dim={problem.dim}")
        if abs(self.t[-1] - problem.horizon) > 1e-9 * problem.horizon:
            raise MeasureError(f"the paths end at t={self.t[-1]:g}, but the problem's horizon is {problem.horizon:g}")


def array_source(paths: Paths, *, chunk: int = CHUNK) -> PathSource:
    """Trajectories in memory, in chunks that are views of them.

    For threads. Sent to other processes it takes all its trajectories along; write them with `write_paths` instead.

    Raises MeasureError if `paths` are not Paths, or chunk is not a positive integer.
    """
    if not isinstance(paths, Paths):
        raise MeasureError(f"expected Paths, as sample_paths returns them, got {type(paths).__name__}")
    return _ArraySource(n=paths.n, dim=paths.dim, t=paths.t, chunk_size=chunk, scheme=paths.scheme, paths=paths)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _ArraySource(PathSource):
    paths: Paths

    def chunk(self, i: int) -> Paths:
        return as_they_are(self, self.paths.x[self.rows(i)])


def simulated_source(
    problem: ControlProblem,
    *,
    n: int,
    steps: int,
    rng: int | np.random.SeedSequence,
    chunk: int = CHUNK,
    scheme: str = "auto",
    policy: Policy | None = None,
    substeps: int | None = None,
) -> PathSource:
    """n paths as `sample_paths` makes them, stored nowhere: each chunk is simulated whenever it is asked for.

    Chunk i comes from the i-th child of the seed, hence depends on nothing but (rng, i, chunk) and the problem: the
    same bits on every call and on every worker with the same NumPy build and kind of processor. Another `chunk` gives
    other paths. Where scheme="auto" meets paths that explode, substeps are chosen chunk by chunk; give substeps= to
    have them all alike.

    rng : an int or a SeedSequence. A Generator is refused: it could not make a chunk a second time.
    The other parameters are those of `sample_paths`.

    Raises MeasureError for a bad n, chunk or rng. One path is simulated at once, so that whatever `sample_paths` has to
    say against the problem, scheme, policy, steps or substeps is said before the work begins.
    """
    if isinstance(rng, np.random.Generator):
        raise MeasureError("rng must be an int or a SeedSequence: a Generator cannot make the same chunk twice")
    spawn_generators(rng, 0)  # raises for what is no seed
    seed = rng if isinstance(rng, np.random.SeedSequence) else np.random.SeedSequence(int(rng))
    arguments: dict[str, Any] = {"steps": steps, "scheme": scheme, "policy": policy, "substeps": substeps}
    probe = sample_paths(problem, n=1, rng=seed, **arguments)
    return _SimulatedSource(
        n=n,
        dim=probe.dim,
        t=probe.t,
        chunk_size=chunk,
        scheme=probe.scheme,
        problem=problem,
        seed=seed,
        arguments=arguments,
    )


def child_seed(seed: np.random.SeedSequence, i: int) -> np.random.SeedSequence:
    """The child of number i, without spawning those before it."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, i), pool_size=seed.pool_size)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _SimulatedSource(PathSource):
    problem: ControlProblem
    seed: np.random.SeedSequence
    arguments: Mapping[str, Any]

    def chunk(self, i: int) -> Paths:
        rows = self.rows(i)
        return sample_paths(self.problem, n=rows.stop - rows.start, rng=child_seed(self.seed, i), **self.arguments)


def as_they_are(source: PathSource, x: FloatArray) -> Paths:
    """Paths around states that are checked and read-only already, which their constructor would check and copy."""
    paths = object.__new__(Paths)
    for name, value in (("t", source.t), ("x", x), ("scheme", source.scheme)):
        object.__setattr__(paths, name, value)
    return paths
