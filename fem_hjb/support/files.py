"""Writing files so that a reader sees either the old content or the whole new one, never half of it."""

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fem_hjb.support.errors import FemHjbError, OutputError


def as_path(path: Any, error: type[FemHjbError] = OutputError) -> Path:
    """`path` as a Path; `error` for what is no name of a file."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise error(f"the name of a file must be text or a Path, got {type(path).__name__}")
    return Path(path)


def _target(path: str | os.PathLike[str]) -> Path:
    target = as_path(path)
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}; create it first")
    return target


def _beside(target: Path) -> Path:
    """A fresh hidden name in the same folder, hence on the same file system, where a rename is atomic."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving without an error it is renamed to `path`, else removed.

    Raises OutputError when the folder is missing, when `path` is a folder, or when the system refuses to write.
    """
    target = _target(path)
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder, give the name of a file")
    part = _beside(target)
    try:
        yield part
        part.replace(target)
    except OutputError:
        raise
    except OSError as cause:
        raise OutputError(f"cannot write {target}: {cause}") from cause
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on leaving without an error its files appear in `path`, else in none.

    `path` and its missing parents are created; after an error those are gone again. A new folder appears by one rename;
    in one that exists the files are replaced one by one, each atomically, and files of other names are left alone.
    """
    target = as_path(path).resolve()  # "." has no name
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write into {path}: it is a file, give the name of a folder")
    if target.is_dir() and not os.access(target, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {path}: permission denied")
    missing = [parent for parent in target.parents if not parent.exists()]
    part = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    except OSError as cause:
        _remove_empty(missing)
        raise OutputError(f"cannot write into {path}: {cause}") from cause
    try:
        yield part
        if target.is_dir():
            for file in sorted(part.iterdir()):
                file.replace(target / file.name)
        else:
            part.rename(target)
    except OutputError:
        raise
    except OSError as cause:
        raise OutputError(f"cannot write into {path}: {cause}") from cause
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _remove_empty(missing)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that hold nothing, innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
