"""Trajectories in files that need not fit in memory: written and read one chunk at a time, checked as they are read.

A `.npz` that was written here holds a CRC of every block of about a megabyte of neighbouring paths, a `.zarr` one of
every stored chunk: what has been changed since is not read. A source remembers which file it was made for.
"""

from __future__ import annotations

import json
import struct
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np

from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import CHUNK, PathSource, as_they_are
from fem_hjb.support.archives import FilePath
from fem_hjb.support.checks import FloatArray, require
from fem_hjb.support.errors import FemHjbError, MeasureError, OutputError
from fem_hjb.support.files import as_path, atomic_file, atomic_folder

PATHS_KIND = "fem_hjb paths 1"  # what a .npz of trajectories says of itself

_LOCAL_HEADER = 30  # bytes of a zip member's header before its name and extra field
_ALIGNMENT = struct.pack("<HH5x", 0xFEA1, 5)  # brings the data of a first member "x.npy" to a multiple of 64 bytes
_SUFFIXES = (".npz", ".zarr")
_BLOCK_BYTES = 1 << 20  # of paths with one CRC


def file_source(path: FilePath, *, chunk: int = CHUNK) -> PathSource:
    """Trajectories in a file that every worker can open, of which a chunk is read, or mapped, when it is asked for.

    `.npz` : uncompressed, with arrays t (K+1,) and x (n, K+1, d), as `write_paths` or np.savez write it. Chunks of
        float64 are views of the memory-mapped file; float32 is widened. What `save_paths` writes is compressed and
        has to be rewritten once: write_paths(new, array_source(load_paths(old))).
    `.zarr` : a Zarr group with the same arrays (pip install 'fem_hjb[zarr]'). Let `chunk` be a multiple of the chunks
        that x is stored in, or they are read more than once.

    Raises MeasureError if there is no such file, it is cut off, incomplete, compressed (npz) or of other arrays, or its
    times do not increase from 0; and from `chunk(i)` if the states are not finite (saying which path, and when) or the
    file has been cut off or replaced since. Changed bytes are noticed where `write_paths` wrote the file; in other
    `.npz` look for them with `python -m zipfile -t`.
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
        text = json.loads(str(_member(archive, "text"))) if ours else {"scheme": "given"}
        block = int(text.get("block", 0))
        sums = _member(archive, "x_sums") if block else np.zeros(0, np.uint32)
    n, points, dim = _path_shape(path, shape, dtype, times)
    if columns_first:
        raise MeasureError(f"{path}: x is stored with columns first; write np.ascontiguousarray(x)")
    size = n * points * dim * dtype.itemsize
    if info.file_size != header + size:
        raise MeasureError(f"{path}: x has {info.file_size - header} bytes where its shape {shape} needs {size}")
    if block and sums.shape != (-(-n // block),):
        raise MeasureError(f"{path} is damaged: {sums.size} checksums do not fit {n} paths in blocks of {block}")
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        name, extra = struct.unpack("<HH", stream.read(_LOCAL_HEADER)[-4:])
    return _NpzSource(
        n=n,
        dim=dim,
        t=times,
        chunk_size=chunk,
        scheme=str(text["scheme"]),
        path=path,
        dtype=dtype,
        offset=info.header_offset + _LOCAL_HEADER + name + extra + header,
        crc=info.CRC,
        block=block,
        sums=sums,
    )


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _NpzSource(PathSource):
    """crc : of all states, by which the file is known again.  sums (m,) : one for every `block` paths, none if 0."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    crc: int
    block: int
    sums: np.ndarray[Any, Any]

    def chunk(self, i: int) -> Paths:
        rows = self.rows(i)
        block = self.block or 1
        first, last = rows.start // block, -(-rows.stop // block)  # blocks that hold the chunk
        start, stop = first * block, min(last * block, self.n)
        shape = (stop - start, self.t.size, self.dim)
        skipped = start * self.t.size * self.dim * self.dtype.itemsize
        with _reading(self.path), self.path.open("rb") as stream:  # one file, even if its name is given to another
            with zipfile.ZipFile(stream) as archive:
                _same(self.path, self.crc == archive.getinfo("x.npy").CRC)
            mapped = np.memmap(stream, dtype=self.dtype, mode="r", offset=self.offset + skipped, shape=shape)
        if self.block:
            self._verify(mapped, first)
        x = np.asarray(np.require(mapped[rows.start - start : rows.stop - start], np.float64, "A"))
        return _checked(self, i, x, self.path)

    def _verify(self, states: np.ndarray[Any, Any], first: int) -> None:
        """MeasureError unless the blocks from the first on have their checksums."""
        for k, start in enumerate(range(0, len(states), self.block), start=first):
            if zlib.crc32(states[start : start + self.block].data) != self.sums[k]:
                raise MeasureError(
                    f"{self.path} has been changed since it was written: the checksum of paths {k * self.block} to"
                    f" {min((k + 1) * self.block, self.n) - 1} is another one; write it again"
                )


def _same(path: Path, same: bool) -> None:
    if not same:
        raise MeasureError(f"{path} has been replaced since file_source was called; call it again")


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
    return _ZarrSource(n=n, dim=dim, t=times, chunk_size=chunk, scheme=scheme, path=path, written=_name_of(group))


def _name_of(group: Any) -> str:
    """What `write_paths` called this group, each time otherwise; nothing if somebody else wrote it."""
    return str(group.attrs.get("written", ""))


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _ZarrSource(PathSource):
    path: Path
    written: str

    def chunk(self, i: int) -> Paths:
        rows = self.rows(i)
        with _reading(self.path):
            group = _zarr().open_group(str(self.path), mode="r")
            _same(self.path, _name_of(group) == self.written and group["x"].shape == (self.n, self.t.size, self.dim))
            x = np.asarray(group["x"][rows], dtype=np.float64)
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
    return as_they_are(source, x)


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
    n, points, dim = _shape(source)
    block = max(1, _BLOCK_BYTES // (8 * points * dim))
    sums = np.zeros(-(-n // block), np.uint32)
    with atomic_file(target) as part, zipfile.ZipFile(part, "w") as archive:
        with archive.open(member, "w", force_zip64=True) as stream:
            header = {"descr": "<f8", "fortran_order": False, "shape": _shape(source)}
            np.lib.format.write_array_header_1_0(stream, header)
            for rows, x in _chunks(source):
                stream.write(x.data)
                _add_sums(sums, block, rows.start, x)
        others = {
            "t": source.t,
            "kind": np.array(PATHS_KIND),
            "text": np.array(json.dumps({"scheme": source.scheme, "block": block})),
            "x_sums": sums,
        }
        for name, array in others.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _add_sums(sums: np.ndarray[Any, Any], block: int, start: int, x: FloatArray) -> None:
    """Take paths from number `start` on into the CRC of the blocks that they are in, in place."""
    at = start
    while at < start + len(x):
        end = min((at // block + 1) * block, start + len(x))
        sums[at // block] = zlib.crc32(x[at - start : end - start].data, int(sums[at // block]))
        at = end


def _write_zarr(target: Path, source: PathSource) -> None:
    zarr = _zarr()
    if target.exists():
        raise OutputError(f"cannot write {target}: it exists; remove it, or choose another name")
    n, points, dim = _shape(source)
    with atomic_folder(target) as part:
        group = zarr.open_group(str(part), mode="w", attributes={"scheme": source.scheme, "written": uuid.uuid4().hex})
        group.create_array("t", data=np.asarray(source.t))
        states = group.create_array(
            "x",
            shape=(n, points, dim),
            dtype="f8",
            chunks=(min(source.chunk_size, n), points, dim),
            compressors=[import_module("zarr.codecs").Crc32cCodec()],  # random digits do not compress
            fill_value=np.nan,  # never mistaken for a state
        )
        for rows, x in _chunks(source):
            states[rows] = x
