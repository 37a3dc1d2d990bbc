"""fem-hjb demo: what it prints is true of what it found, and what it names is there."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

from fem_hjb import cli_demo
from fem_hjb.cli import app
from fem_hjb.cli_demo import NEXT

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], float]:
    out = tmp_path_factory.mktemp("demo") / "out"
    before = time.process_time()
    result = run("demo", "--out", str(out), "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return out, json.loads(result.stdout), time.process_time() - before


def test_error_bars_hold_what_is_known_exactly(made: tuple[Path, dict[str, Any], float]) -> None:
    _, found, _ = made
    bar, true = found["solved"]["error_estimate"], found["errors"]
    assert found["solved"]["status"] == found["learned"]["status"] == "ok"
    for column in ("value", "policy"):
        assert 0 < true["solved"][column] < bar[column] < 1e-4
        assert 1e-3 < true["learned"][column] < 0.1
        assert found["learned"]["error_estimate"][column] > true["learned"][column]
    for name in ("no control", "learned"):
        optimal = found["certified"][name]["diffusion"]["optimal"]
        assert optimal["low"] < found["value"] < optimal["high"]
        assert found["certified"][name]["status"] == "ok"
    free, steered = (found["certified"][name]["diffusion"]["reward"] for name in ("no control", "learned"))
    assert free["high"] < steered["low"]
    assert abs(found["certified"]["learned"]["gap"]["estimate"]) < 0.01 * (steered["estimate"] - free["estimate"])
    assert found["mean_reward"]["no control"] + 0.3 < found["mean_reward"]["learned"] < 0


def test_it_takes_seconds_and_writes_one_picture(made: tuple[Path, dict[str, Any], float]) -> None:
    out, found, seconds = made
    assert [path.name for path in out.iterdir()] == ["demo.png"]
    assert found["file"] == str(out / "demo.png")
    assert image.imread(out / "demo.png").std() > 0.05
    assert seconds < 20  # of the processor, which is slower where coverage or other tests run beside it


def test_people_read_what_was_found_and_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in {"_PATHS": 200, "_CELLS": (8, 4), "_CERTIFIED": (256, 16), "_FOLLOWED": (200, 16)}.items():
        monkeypatch.setattr(cli_demo, name, few)
    result = run("demo", "--out", str(tmp_path / "out"), "--seed", "1")
    assert result.exit_code == 0, result.output
    for word in ("(estimated; asked for 0.0001)", "(true, against the closed form)", "the optimum is", "demo.png"):
        assert word in result.stdout
    for what, why in NEXT:
        assert what in result.stdout
        assert why in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= max(120, len(str(tmp_path)) + 20)
    for word in ("solved", "learned", "certified", "picture", " s  "):
        assert word in result.stderr


@pytest.mark.parametrize("what", [what for what, _ in NEXT])
def test_what_comes_next_is_there(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not what.startswith("fem-hjb "):
        assert (ROOT / what).is_file()
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fem_hjb.plotting.pictures.report", lambda *_, **__: Figure(figsize=(1.0, 1.0)))  # see test_cli
    result = run(*what.split()[1:], "--json", "--quiet")
    assert result.exit_code == 0, result.output


def test_a_folder_that_cannot_be_made_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("demo", "--out", str(tmp_path / "file" / "out"))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("fem-hjb: error: ")
