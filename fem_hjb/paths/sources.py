"""Trajectories that need not fit in memory: sources which hand out the chunk that is asked for, in any order.

A source is small, can be pickled, and makes chunk i from i alone, so that the workers of a cluster make or read their
own chunks and nothing but the indices travels.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np

from fem_hjb.paths.simulate import Paths, sample_paths
from fem_hjb.paths.steering import Policy
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray, frozen_array, positive_integer, require, spawn_generators
from fem_hjb.support.errors import FemHjbError, MeasureError, OutputError
from fem_hjb.support.files import as_path, atomic_file, atomic_folder
from fem_hjb.support.objects import Plain

PATHS_KIND = "fem_hjb paths 1"  # what a .npz of trajectories says of itself

_CHUNK = 16384
_LOCAL_HEADER = 30  # bytes of a zip member's header before its name and extra field
_ALIGNMENT = struct.pack("<HH5x", 0xFEA1, 5)  # brings the data of a first member "x.npy" to a multiple of 64 bytes
_SUFFIXES = (".npz", ".zarr")
FilePath = str | os.PathLike[str]


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
    chunk_size: int = _CHUNK
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


def array_source(paths: Paths, *, chunk: int = _CHUNK) -> PathSource:
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
        return _as_they_are(self, self.paths.x[self.rows(i)])


def simulated_source(
    problem: ControlProblem,
    *,
    n: int,
    steps: int,
    rng: int | np.random.SeedSequence,
    chunk: int = _CHUNK,
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


def _child(seed: np.random.SeedSequence, i: int) -> np.random.SeedSequence:
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
        return sample_paths(self.problem, n=rows.stop - rows.start, rng=_child(self.seed, i), **self.arguments)


def file_source(path: FilePath, *, chunk: int = _CHUNK) -> PathSource:
    """Trajectories in a file that every worker can open, of which a chunk is read, or mapped, when it is asked for.

    `.npz` : uncompressed, with arrays t (K+1,) and x (n, K+1, d), as `write_paths` or np.savez write it. Chunks of
        float64 are views of the memory-mapped file; float32 is widened. What `save_paths` writes is compressed and
        has to be rewritten once: write_paths(new, array_source(load_paths(old))).
    `.zarr` : a Zarr group with the same arrays (pip install 'fem_hjb[zarr]'). Let `chunk` be a multiple of the chunks
        that x is stored in, or they are read more than once.

    Raises MeasureError if there is no such file, it is cut off, incomplete, compressed (npz) or of other arrays, or its
    times do not increase from 0; and from `chunk(i)` if the states are not finite (saying which path, and when) or the
    file has been cut off since. Checksums inside the file are not verified.
    """
    where = as_path(path, MeasureError).resolve()  # workers may run in another folder
    if where.suffix not in _SUFFIXES:
        raise MeasureError(f"a file of paths is named *.npz or *.zarr, got {where.name!r}")
    if not where.exists():
        raise MeasureError(f"there is no file {where}")
    with _reading(where):
        return _open_npz(where, chunk) if where.suffix == ".npz" else _open_zarr(where, chunk)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FemHjbError:
        raise
    except Exception as cause:  # damaged files and their codecs raise whatever they like
        raise MeasureError(
            f"{path} cannot be read as a whole file of paths ({type(cause).__name__}: {cause}); write it again"
        ) from cause


def _path_shape(path: Path, shape: tuple[int, ...], dtype: Any, times: FloatArray) -> tuple[int, int, int]:
    """The shape (n, K+1, d) of the array x, which fits the times."""
    if len(shape) != 3 or 0 in shape or np.shape(times) != shape[1:2]:
        raise MeasureError(
            f"{path}: x must have shape (n, K+1, d) and t shape (K+1,), got {shape} and {np.shape(times)}"
        )
    if dtype not in (np.dtype(np.float64), np.dtype(np.float32)):
        raise MeasureError(f"{path}: x must be of type float64 or float32, got {dtype}")
    return shape[0], shape[1], shape[2]


def _open_npz(path: Path, chunk: int) -> PathSource:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if not {"t.npy", "x.npy"} <= members.keys():
            raise MeasureError(f"{path} must hold arrays t and x, it holds {', '.join(sorted(members)) or 'nothing'}")
        info = members["x.npy"]
        if info.compress_type != zipfile.ZIP_STORED:
            raise MeasureError(
                f"{path} is compressed, so that it cannot be read in pieces; rewrite it once with "
                "write_paths(new, array_source(load_paths(old)))"
            )
        times = _member(archive, "t")
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = read(stream)
            header = stream.tell()
        ours = "kind.npy" in members and str(_member(archive, "kind")) == PATHS_KIND
        scheme = str(json.loads(str(_member(archive, "text")))["scheme"]) if ours else "given"
    n, points, dim = _path_shape(path, shape, dtype, times)
    if columns_first:
        raise MeasureError(f"{path}: x is stored with columns first; write np.ascontiguousarray(x)")
    size = n * points * dim * dtype.itemsize
    if info.file_size != header + size:
        raise MeasureError(f"{path}: x has {info.file_size - header} bytes where its shape {shape} needs {size}")
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        name, extra = struct.unpack("<HH", stream.read(_LOCAL_HEADER)[-4:])
    return _NpzSource(
        n=n,
        dim=dim,
        t=times,
        chunk_size=chunk,
        scheme=scheme,
        path=path,
        dtype=dtype,
        offset=info.header_offset + _LOCAL_HEADER + name + extra + header,
    )


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _NpzSource(PathSource):
    path: Path
    dtype: np.dtype[Any]
    offset: int

    def chunk(self, i: int) -> Paths:
        rows = self.rows(i)
        shape = (rows.stop - rows.start, self.t.size, self.dim)
        skipped = rows.start * self.t.size * self.dim * self.dtype.itemsize
        with _reading(self.path):
            mapped = np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset + skipped, shape=shape)
        x = np.asarray(np.require(mapped, np.float64, "A"))
        return _checked(self, i, x, self.path)


def _open_zarr(path: Path, chunk: int) -> PathSource:
    group = _zarr().open_group(str(path), mode="r")
    if not {"t", "x"} <= set(group.array_keys()):
        raise MeasureError(f"{path} must hold arrays t and x, it holds {', '.join(sorted(group.keys())) or 'nothing'}")
    states, times = group["x"], group["t"][...]
    n, _, dim = _path_shape(path, states.shape, states.dtype, times)
    if states.nchunks_initialized != states.nchunks:  # zarr would fill in the others without a word
        missing = states.nchunks - states.nchunks_initialized
        raise MeasureError(f"{path}: {missing} of the {states.nchunks} stored chunks of x are missing; write it again")
    scheme = str(group.attrs.get("scheme", "given"))
    return _ZarrSource(n=n, dim=dim, t=times, chunk_size=chunk, scheme=scheme, path=path)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _ZarrSource(PathSource):
    path: Path

    def chunk(self, i: int) -> Paths:
        rows = self.rows(i)
        with _reading(self.path):
            x = np.asarray(_zarr().open_group(str(self.path), mode="r")["x"][rows], dtype=np.float64)
        return _checked(self, i, x, self.path)


def _zarr() -> Any:
    try:
        return import_module("zarr")
    except ModuleNotFoundError as cause:
        raise MeasureError("files *.zarr need the package zarr: pip install 'fem_hjb[zarr]', or use *.npz") from cause


def _checked(source: PathSource, i: int, x: FloatArray, path: Path) -> Paths:
    """Chunk i of states just read, finite; made read-only, not copied."""
    bad = ~np.isfinite(x).all(axis=-1)
    if bad.any():
        row, k = np.argwhere(bad)[0]
        raise MeasureError(
            f"{path}: the state of path {source.rows(i).start + row} is not finite at t={source.t[k]:g} (k={k}), one "
            f"of {int(bad.sum())} in chunk {i}; leave such paths out, or simulate them with shorter steps"
        )
    x.setflags(write=False)
    return _as_they_are(source, x)


def _as_they_are(source: PathSource, x: FloatArray) -> Paths:
    """Paths around states that are checked and read-only already, which their constructor would check and copy."""
    paths = object.__new__(Paths)
    for name, value in (("t", source.t), ("x", x), ("scheme", source.scheme)):
        object.__setattr__(paths, name, value)
    return paths


def write_paths(path: FilePath, source: PathSource) -> None:
    """Write all trajectories of a source, one chunk in memory at a time, as `file_source` and `load_paths` read them.

    path : `.npz` (one uncompressed file; an old one is replaced) or `.zarr` (a folder with one file per chunk, which
        must not exist yet; pip install 'fem_hjb[zarr]'). Either appears whole or not at all. `load_paths` reads the
        `.npz` only.

    Raises OutputError when the name ends otherwise, the folder is missing, or writing fails; MeasureError when the
    source fails, or hands out a chunk of another shape than it says.
    """
    require(source, PathSource, "write_paths", OutputError, "; array_source(paths) makes one")
    target = as_path(path)
    if target.suffix not in _SUFFIXES:
        raise OutputError(f"cannot write {target}: the name of a file of paths ends in .npz or .zarr")
    (_write_npz if target.suffix == ".npz" else _write_zarr)(target, source)


def _shape(source: PathSource) -> tuple[int, int, int]:
    return source.n, source.t.size, source.dim


def _chunks(source: PathSource) -> Iterator[tuple[slice, FloatArray]]:
    for i in range(source.chunk_count):
        rows, x = source.rows(i), source.chunk(i).x
        expected = (rows.stop - rows.start, *_shape(source)[1:])
        if x.shape != expected:
            raise MeasureError(f"chunk {i} of the source must have shape {expected}, got {x.shape}")
        yield rows, np.ascontiguousarray(x, dtype="<f8")


def _write_npz(target: Path, source: PathSource) -> None:
    member = zipfile.ZipInfo("x.npy")
    member.extra = _ALIGNMENT
    others = {
        "t": source.t,
        "kind": np.array(PATHS_KIND),
        "text": np.array(json.dumps({"scheme": source.scheme})),
    }
    with atomic_file(target) as part, zipfile.ZipFile(part, "w") as archive:
        with archive.open(member, "w", force_zip64=True) as stream:
            header = {"descr": "<f8", "fortran_order": False, "shape": _shape(source)}
            np.lib.format.write_array_header_1_0(stream, header)
            for _, x in _chunks(source):
                stream.write(x.data)
        for name, array in others.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _write_zarr(target: Path, source: PathSource) -> None:
    zarr = _zarr()
    if target.exists():
        raise OutputError(f"cannot write {target}: it exists; remove it, or choose another name")
    n, points, dim = _shape(source)
    with atomic_folder(target) as part:
        group = zarr.open_group(str(part), mode="w", attributes={"scheme": source.scheme})
        group.create_array("t", data=np.asarray(source.t))
        states = group.create_array(
            "x",
            shape=(n, points, dim),
            dtype="f8",
            chunks=(min(source.chunk_size, n), points, dim),
            compressors=None,  # random digits do not compress
            fill_value=np.nan,  # never mistaken for a state
        )
        for rows, x in _chunks(source):
            states[rows] = x
