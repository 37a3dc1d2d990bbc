"""Arrays and text in single .npz files without pickle: written whole or not at all, and checked when they are read.

Zip archives hold a CRC of each member, which is verified whenever a member is read to its end. Beside it stands a list
of all arrays with a hash of each, so that an archive somebody has changed or taken arrays out of is not read either.
"""

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fem_hjb.support.errors import OutputError
from fem_hjb.support.files import as_path, atomic_file
from fem_hjb.support.memory import require_memory

_DEFLATE = 1032  # no deflated member is smaller by more than this factor
FilePath = str | os.PathLike[str]


def write_archive(
    path: FilePath,
    kind: str,
    text: Mapping[str, Any],
    arrays: Mapping[str, Any],
    *,
    default: Callable[[Any], Any] | None = None,
) -> None:
    """Write arrays and text (JSON; `default` as in json.dumps). Raises OutputError when the file cannot be written."""
    members: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    sums = {name: checksum(array) for name, array in members.items()}
    words = json.dumps({**text, "checksums": sums}, default=default)
    members |= {"kind": np.array(kind), "text": np.array(words)}
    with atomic_file(path) as part, part.open("wb") as stream:
        np.savez_compressed(stream, **members)


def read_archive(path: FilePath, *kinds: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Text and arrays of what `write_archive` wrote; without a list of arrays, as in older files, the CRCs must do.

    kinds : of which it must be one, the text says which as "kind".

    Raises OutputError when there is no such file, it is of another kind, it is damaged, cut off or changed, or its
    arrays do not fit into memory.
    """
    source, wanted = as_path(path), " or ".join(map(repr, kinds))
    if not source.is_file():
        raise OutputError(f"there is no file {source}")
    try:
        arrays = _members(source)
        found = str(arrays.pop("kind"))
        text = json.loads(str(arrays.pop("text")))
        sums = text.pop("checksums", None)
        wrong = None if sums is None else _mismatch(arrays, sums)
    except OutputError:
        raise
    except Exception as cause:  # damaged headers make zipfile, NumPy and their parsers raise whatever they like
        told = f"{type(cause).__name__}: {cause}"
        raise OutputError(f"{source} is not a complete file of kind {wanted} ({told}); write it again") from cause
    if found not in kinds:
        raise OutputError(f"{source} is a file of kind {found!r}, expected {wanted}")
    if wrong is not None:
        raise OutputError(f"{source} has been changed since it was written: {wrong}; write it again")
    return text | {"kind": found}, arrays


def checksum(array: np.ndarray[Any, np.dtype[Any]]) -> str:
    """A hash of type, shape and content.

    >>> checksum(np.zeros(3)) == checksum(np.zeros(3)), checksum(np.zeros(3)) == checksum(np.zeros((3, 1)))
    (True, False)
    """
    content = np.ascontiguousarray(array)
    digest = hashlib.blake2b(f"{content.dtype.str} {array.shape}".encode(), digest_size=16)
    digest.update(content.tobytes() if content.dtype.kind == "U" else content.data)
    return digest.hexdigest()


def _mismatch(arrays: Mapping[str, Any], sums: Mapping[str, str]) -> str | None:
    """What is wrong with the arrays of a file, if anything is."""
    for name in sorted(sums.keys() | arrays.keys()):
        if name not in arrays:
            return f"the array {name!r} is missing"
        if name not in sums:
            return f"the array {name!r} is new"
        if checksum(arrays[name]) != sums[name]:
            return f"the array {name!r} has another checksum"
    return None


def _members(source: Path) -> dict[str, Any]:
    with zipfile.ZipFile(source) as archive:
        infos = archive.infolist()
        sizes = [_announced(archive, info) for info in infos]
        require_memory(sum(sizes), f"{source} holds arrays of", OutputError)
        return {info.filename.removesuffix(".npy"): _array(archive, info) for info in infos}


def _announced(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """The bytes of an array as its header says; ValueError unless the member can hold so many."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        size = math.prod(shape) * dtype.itemsize
        if info.file_size != stream.tell() + size or info.file_size > _DEFLATE * (info.compress_size + 1):
            raise ValueError(
                f"{info.filename} says {size} bytes of data, of shape {shape}, and has {info.file_size} bytes in"
                f" {info.compress_size}"
            )
    return int(size)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
