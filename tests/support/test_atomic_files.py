"""Files appear whole or not at all, where links lead, with the permissions they had; and what cannot be is told."""

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fem_hjb.support.errors import OutputError
from fem_hjb.support.files import atomic_file, atomic_folder


def write(path: Any, content: str = "new") -> None:
    with atomic_file(path) as part:
        part.write_text(content, encoding="utf-8")


def write_into(folder: Any, name: str, content: str = "new") -> None:
    with atomic_folder(folder) as part:
        (part / name).write_text(content, encoding="utf-8")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("length", [1, 200, 201, 229, 230, 231, 250, 255])
@pytest.mark.parametrize("letter", ["a", "é"])
def test_names_as_long_as_the_system_allows_can_be_written(length: int, letter: str, tmp_path: Path) -> None:
    name = letter * (length // len(letter.encode())) or "a"
    write(tmp_path / name, "old")
    write(tmp_path / name)
    assert names(tmp_path) == [name]
    write_into(tmp_path / f"{name[1:]}b", "c")
    assert names(tmp_path / f"{name[1:]}b") == ["c"]


TOO_LONG: dict[str, Callable[[Path], Any]] = {
    "file": lambda folder: write(folder / ("a" * 256)),
    "folder": lambda folder: write_into(folder / ("a" * 256), "c"),
    "parent": lambda folder: write(folder / ("a" * 256) / "b"),
    "path": lambda folder: write(folder / "/".join(["a" * 200] * 30)),
    "loop": lambda folder: (folder / "loop").symlink_to(folder / "loop") or write(folder / "loop" / "b"),
    "no text": lambda folder: write(folder / "a\0b"),
    "bytes": lambda folder: write(os.fsencode(folder / "a")),
}


@pytest.mark.parametrize("what", TOO_LONG)
def test_names_that_are_none_are_told(what: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write|the name of a file must be text"):
        TOO_LONG[what](tmp_path)


def refused(*_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def refused_later(*_: Any, **__: Any) -> None:
    raise OSError(errno.EIO, "of no interest")


CALLS = {"open": "write_text", "replace": "replace", "chmod": "chmod", "list": "iterdir"}


@pytest.mark.parametrize("call", CALLS)
def test_what_the_system_refuses_is_told_and_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, CALLS[call], refused)
        patch.setattr(Path, "unlink", refused_later)
        with pytest.raises(OutputError, match=r"cannot write .*a: .*Read-only file system"):
            write(tmp_path / "a")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("name", ["mkdir", "rename", "iterdir", "write_text"])
def test_what_the_system_refuses_is_told_of_folders_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, refused)
        with pytest.raises(OutputError, match=r"cannot write into .*new: .*Read-only file system"):
            write_into(tmp_path / "new", "c")
    assert names(tmp_path) == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
@pytest.mark.parametrize("by", ["file", "folder"])
def test_permissions_stay(mode: int, by: str, tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    (tmp_path / "a").chmod(mode)
    write(tmp_path / "a") if by == "file" else write_into(tmp_path, "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert (tmp_path / "a").read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("by", ["file", "folder"])
@pytest.mark.parametrize("steps", [1, 2])
def test_links_stay_links(by: str, steps: int, tmp_path: Path) -> None:
    """What a link points to is replaced, the link of a link, too, and a file that is not there yet is made."""
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    for content in ("old", "new"):
        if content == "old":
            (here / "a").symlink_to(there / "a" if steps == 1 else here / "b")
            (here / "b").symlink_to("../there/a")
        write(here / "a", content) if by == "file" else write_into(here, "a", content)
        assert (here / "a").is_symlink()
        assert (there / "a").read_text(encoding="utf-8") == content
        assert not (there / "a").is_symlink()
        assert names(there) == ["a"]
        assert names(here) == ["a", "b"]


@pytest.mark.parametrize("name", ["a", "b" * 240])
def test_what_killed_writers_left_is_removed_after_a_day(name: str, tmp_path: Path) -> None:
    def left(path: Path, hours: float) -> str:
        with atomic_file(path) as kept:
            kept.write_text("", encoding="utf-8")
        path.unlink()
        kept.write_text("half", encoding="utf-8")
        then = time.time() - 3600 * hours
        os.utime(kept, (then, then))
        return kept.name

    left(tmp_path / name, 25)
    fresh, other = left(tmp_path / name, 23), left(tmp_path / f"{name}c", 25)
    (tmp_path / f".{name[:9]}.mine.part").write_text("mine", encoding="utf-8")
    write(tmp_path / name)
    assert names(tmp_path) == sorted([name, fresh, other, f".{name[:9]}.mine.part"])


def test_folders_that_killed_writers_left_are_removed_too(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new") as kept:
        pass
    (tmp_path / "new").rmdir()
    kept.mkdir()
    (kept / "a").write_text("half", encoding="utf-8")
    os.utime(kept, (0.0, 0.0))
    write_into(tmp_path / "new", "c")
    assert names(tmp_path) == ["new"]
