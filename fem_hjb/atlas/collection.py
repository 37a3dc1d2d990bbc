"""A folder with the entries of the atlas: grid files, and `atlas.jsonl`, one line for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fem_hjb.atlas.entries import Record, asked, make, versions
from fem_hjb.atlas.forever import make_forever
from fem_hjb.atlas.settings import Setting, names
from fem_hjb.support.errors import OutputError
from fem_hjb.support.files import as_path, atomic_file
from fem_hjb.support.progress import Progress, unheard

RECORDS = "atlas.jsonl"


def read(folder: str | Path) -> list[Record]:
    """The records of a folder, in the order of the atlas; none if there are none.

    OutputError if its `atlas.jsonl` is no such file.
    """
    file = as_path(folder) / RECORDS
    if not file.is_file():
        return []
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            known = isinstance(record, dict) and {"name", "asked", "status", "error"} <= record.keys()
        except json.JSONDecodeError:
            known = False
        if not known:
            raise OutputError(f"line {number} of {file} is no record of the atlas; remove it, or take another folder")
        records.append(record)
    order = {name: k for k, name in enumerate(names())}
    return sorted(records, key=lambda record: order.get(record["name"], len(order)))


def keep(folder: Path, record: Record) -> None:
    """Put a record into `atlas.jsonl`, in the place of one of the same name."""
    rest = [other for other in read(folder) if other["name"] != record["name"]]
    with atomic_file(folder / RECORDS) as part:
        lines = [json.dumps(entry, allow_nan=False) for entry in (*rest, record)]
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def is_made(folder: Path, setting: Setting, records: Iterable[Record]) -> bool:
    """Whether the entry is there, made by this version with this setting, and its files are."""
    for record in records:
        if record["name"] == setting.name:
            same = record["asked"] == asked(setting) and record["versions"] == versions()
            files = record.get("files", [])
            there = isinstance(files, list) and all((folder / name).is_file() for name in files)
            return bool(record["error"] is None and same and there)
    return False


def collect(
    settings: Iterable[Setting],
    folder: str | Path,
    *,
    again: bool = False,
    seconds: float | None = None,
    stage: Callable[[Setting], Any] | None = None,
) -> list[Record]:
    """Make entries one after the other; each is in the folder when it is done, and none stops the others.

    Entries that are there already, made by this version with these settings, are not made again, unless `again`.

    seconds : the most that each part of an entry may take.  stage : setting -> a context manager that yields something
        with progress(fraction) and note(text), to show what is done.

    Returns the records of these settings. OutputError if the folder cannot be written to.
    """
    place = as_path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise OutputError(f"cannot make the folder {place}: {cause}") from cause
    found = []
    for setting in settings:
        before = read(place)
        if not again and is_made(place, setting, before):
            found.append(next(record for record in before if record["name"] == setting.name))
            continue
        record = _made(setting, place, seconds, stage)
        keep(place, record)
        found.append(record)
    return found


def _made(setting: Setting, place: Path, seconds: float | None, stage: Callable[[Setting], Any] | None) -> Record:
    if stage is None:
        return _record(setting, place, unheard, seconds)
    with stage(setting) as shown:
        record = _record(setting, place, shown.progress, seconds)
        shown.note(record["error"] or record["status"])
    return record


def _record(setting: Setting, place: Path, tell: Progress, seconds: float | None) -> Record:
    return make_forever(setting, place, tell, seconds) if setting.forever else make(setting, place, tell, seconds)
