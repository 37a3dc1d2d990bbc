"""fem-hjb atlas: what it writes and prints, and that it goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from typer.testing import CliRunner, Result

from fem_hjb import atlas
from fem_hjb.atlas import collection
from fem_hjb.cli import app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["atlas", *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("atlas")
    more = ["--table", str(folder / "page.md"), "--picture", str(folder / "sheet.png")]
    return folder, run("--quick", "--out", str(folder / "out"), *more)


def test_a_quick_atlas_has_records_grids_a_page_and_a_picture(made: tuple[Path, Result]) -> None:
    folder, result = made
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (folder / "out" / "atlas.jsonl").read_text().splitlines()]
    assert {record["name"] for record in records} == set(atlas.QUICK)
    found = {record["name"]: record for record in records}
    assert abs(found["hjb-log-1d"]["value"] - 0.0873538) < 1e-3
    assert abs(np.expm1(found["down-and-out-call"]["value"]) - 0.11619612) < 1e-3
    for record in records:
        assert all((folder / "out" / name).is_file() for name in record["files"])
    page = (folder / "page.md").read_text(encoding="utf-8")
    assert page.startswith("# The atlas\n")
    assert "](sheet.png)" in page
    assert image.imread(folder / "sheet.png").std() > 0.05
    for name in (*atlas.QUICK, "atlas.jsonl", "page.md", "sheet.png"):
        assert name in result.stdout


def test_it_goes_on_where_it_stopped(made: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*given: Any) -> None:
        raise AssertionError("an entry was made again")

    monkeypatch.setattr(collection, "make", too_much)
    folder, _ = made
    result = run("--quick", "--out", str(folder / "out"), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [entry["name"] for entry in told["entries"]] == [s.name for s in atlas.chosen(quick=True)]
    with pytest.raises(AssertionError, match="made again"):
        CliRunner().invoke(
            app, ["atlas", "hjb-log-1d", "--quick", "--out", str(folder / "out"), "--again"], catch_exceptions=False
        )


def test_what_cannot_be_solved_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(setting: Any, folder: Path, tell: Any, seconds: Any) -> dict[str, Any]:
        error = {"error": "ConvergenceError: none", "status": "no solution", "checks": []}
        return {"name": setting.name, "dim": 2, "note": "", "asked": {"rtol": 1.0}, "versions": {}, **error}

    monkeypatch.setattr(collection, "make", fails)
    result = run("ring", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "not solved" in result.stdout
    assert "ring: ConvergenceError: none" in result.stdout


def test_entries_for_ever_have_a_picture_beside_that_of_the_others(
    made: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made
    ever = atlas.Setting(
        name="calm", problem="lq", dim=1, parameters={"A": -1.0, "horizon": 40.0}, rtol=1e-2, forever=True
    )
    monkeypatch.setattr(atlas, "chosen", lambda names, quick: [ever])
    result = run("calm", "--out", str(folder / "out"), "--picture", str(folder / "b.png"))
    assert result.exit_code == 0, result.output
    for name in ("b.png", "b-forever.png"):
        assert image.imread(folder / name).std() > 0.05
        assert name in result.stdout
    alone = run("calm", "--out", str(folder / "alone"), "--picture", str(folder / "c.png"))
    assert alone.exit_code == 0, alone.output
    assert not (folder / "c.png").exists()
    assert (folder / "c-forever.png").is_file()


def test_entries_are_listed() -> None:
    told = run("--list").stdout
    assert all(name in told for name in atlas.names())
    rows = json.loads(run("--list", "--json", "ring").stdout)
    assert [row["name"] for row in rows] == ["ring"]
