"""Writing files so that a reader sees either the old content or the whole new one, never half of it."""

import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fem_hjb.support.errors import FemHjbError, OutputError

_LONGEST = 200  # bytes of a name; most file systems allow 255, of which temporary names need some
_STALE = 24 * 3600.0  # seconds


def as_path(path: Any, error: type[FemHjbError] = OutputError) -> Path:
    """`path` as a Path; `error` for what is no name of a file."""
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str) or "\0" in name:
        raise error(f"the name of a file must be text or a Path, got {path if name else type(path).__name__!r}")
    return Path(name)


def _stem(target: Path) -> str:
    """How the names of temporary files for this one begin; a hash where they would be too long."""
    name = os.fsencode(target.name)
    return f".{target.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()}."


def _beside(target: Path) -> Path:
    """A fresh hidden name in the same folder, hence on the same file system, where a rename is atomic."""
    return target.with_name(f"{_stem(target)}{uuid.uuid4().hex[:12]}.part")


def _remove_stale(target: Path) -> None:
    """Remove what writers of this file that were killed have left behind: what has not been touched for a day."""
    pattern = re.compile(re.escape(_stem(target)) + r"[0-9a-f]{12}\.part")
    for left in target.parent.iterdir():
        with suppress(OSError):  # of another user, or gone meanwhile
            if pattern.fullmatch(left.name) and time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _replace(part: Path, target: Path) -> None:
    """Rename a file to one whose permissions, if there is one, it takes over."""
    with suppress(FileNotFoundError):
        part.chmod(stat.S_IMODE(target.stat().st_mode))
    part.replace(target)


@contextmanager
def _telling(action: str) -> Iterator[None]:
    """What the system refuses as an OutputError that says what was tried."""
    try:
        yield
    except OutputError:
        raise
    except OSError as cause:
        raise OutputError(f"cannot {action}: {cause}") from cause


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving without an error it is renamed to `path`, else removed.

    A file that is replaced keeps its permissions, and a symbolic link stays one: what it points to is replaced. Older
    temporary files of writers that were killed are removed.

    Raises OutputError when the folder is missing, when `path` is a folder, or when the system refuses to write.
    """
    given = as_path(path)
    with _telling(f"write {given}"):
        target = Path(os.path.realpath(given))
        if not target.parent.is_dir():
            raise OutputError(f"cannot write {given}: there is no folder {target.parent}; create it first")
        if target.is_dir():
            raise OutputError(f"cannot write {given}: it is a folder, give the name of a file")
        _remove_stale(target)
        part = _beside(target)
        try:
            yield part
            _replace(part, target)
        finally:
            with suppress(OSError):  # where nothing can be written, nothing can be removed
                part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on leaving without an error its files appear in `path`, else in none.

    `path` and its missing parents are created; after an error those are gone again. A new folder appears by one rename;
    in one that exists the files are replaced one by one, each as by `atomic_file`, and files of other names are left
    alone.

    Raises OutputError when `path` is a file, or when the system refuses to write.
    """
    with _telling(f"write into {path}"):
        yield from _folder(path)


def _folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    target = as_path(path).resolve()  # "." has no name
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write into {path}: it is a file, give the name of a folder")
    if target.is_dir() and not os.access(target, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {path}: permission denied")
    missing = [parent for parent in target.parents if not parent.exists()]
    part = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        part.mkdir()
        yield part
        if target.is_dir():
            for file in sorted(part.iterdir()):
                _install(file, target / file.name)
        else:
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _remove_empty(missing)


def _install(file: Path, target: Path) -> None:
    """Put a file where it belongs: through a link, if there is one, which may lead to another file system."""
    if not target.is_symlink():
        _replace(file, target)
        return
    with atomic_file(target) as part:
        shutil.copyfile(file, part)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that hold nothing, innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
