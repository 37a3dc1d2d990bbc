"""fem-hjb atlas: settings of the literature, solved, verified and certified, as files and a table."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fem_hjb import atlas
from fem_hjb import cli_output as output
from fem_hjb.atlas.entries import Record
from fem_hjb.atlas.settings import Setting
from fem_hjb.cli_input import Debug, Json, OptionError, Quiet
from fem_hjb.problems import zoo
from fem_hjb.support.files import atomic_file
from fem_hjb.support.progress import checked_seconds

_SHOWN = (0, 1, 2, 3, 6, 7)  # of the columns of the table


def atlas_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME ...]", help="Which entries; without one all of them.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for grid files and atlas.jsonl.")] = Path("results", "atlas"),
    table: Annotated[Path | None, typer.Option(help="Write the page with the table of all that is in OUT.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Write a picture of all that is in OUT, .png; beside it one of entries for ever."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make entries that are there already again.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the entries, and make none.")] = False,
    max_seconds: Annotated[
        float | None, typer.Option(help="The most that each part of an entry may take; by default 300.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Three entries, if none are named, loose tolerances, few paths.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Solve, verify and certify settings of the literature, and write grids, atlas.jsonl, and a table.

    Entries are kept as they are done, and not made again. Exit code 1 if one of them could not be solved.
    """
    settings = atlas.chosen(names or (), quick=quick)
    if listed:
        _list(settings, json)
        return
    if picture is not None and picture.suffix != ".png":
        raise OptionError(f"--picture must end in .png, got {picture.name!r}")
    for option, path in (("--table", table), ("--picture", picture)):
        if path is not None and not path.parent.is_dir():
            raise OptionError(f"{option}: there is no folder {path.parent}; create it first")
    seconds = checked_seconds(max_seconds)
    report = output.Report(quiet)
    found = atlas.collect(
        settings, out, again=again, seconds=seconds, stage=lambda setting: report.stage(f"{setting.name:<24}")
    )
    everything = atlas.read(out)
    pictures = [] if picture is None else _draw(out, everything, picture)
    if table is not None:
        shown = "images/atlas.png" if picture is None else os.path.relpath(picture, table.parent).replace(os.sep, "/")
        with atomic_file(table) as part:
            part.write_text(atlas.page(everything, shown), encoding="utf-8")
    files = [path for path in (out / atlas.RECORDS, *pictures, table) if path is not None]
    if json:
        output.print_json({"entries": found, "files": files})
    else:
        rows = [[atlas.row(record)[k].replace("`", "") for k in _SHOWN] for record in found]
        output.print_listing([atlas.HEAD[k] for k in _SHOWN], rows)
        for note in (f"{record['name']}: {text}" for record in found for text in atlas.notes_of(record)):
            print(note)
        for file in files:
            print(file)
    if any(record["error"] is not None for record in found):
        raise typer.Exit(1)


def _draw(out: Path, records: list[Record], picture: Path) -> list[Path]:
    """A picture of the entries with a horizon, and beside it one of those for ever, if there are any."""
    ever = [record for record in records if atlas.for_ever(record)]
    rest = [record for record in records if not atlas.for_ever(record)]
    drawn = [(rest, picture)] if rest or not ever else []
    drawn += [(ever, Path(atlas.beside(str(picture))))] if ever else []
    for some, target in drawn:
        with atomic_file(target) as part:
            atlas.sheet(out, some).savefig(part, format="png", dpi=80)
    return [target for _, target in drawn]


def _list(settings: list[Setting], json: bool) -> None:
    rows = [(setting.name, setting.problem, zoo.describe(setting.problem)) for setting in settings]
    if json:
        output.print_json([dict(zip(("name", "problem", "what"), row, strict=True)) for row in rows])
    else:
        output.print_listing(("name", "problem", "what it is"), rows)
