"""The command: what it writes and prints, and that every error is one line and exit code 2."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import meshio
import numpy as np
import pytest
import skfem
from matplotlib import image
from matplotlib.figure import Figure
from rich.text import Text
from typer.testing import CliRunner, Result

from fem_hjb.cli import app, main
from fem_hjb.cli_output import Report, print_json
from fem_hjb.problems import zoo
from fem_hjb.solutions.files import load_solution
from fem_hjb.support.progress import LOGGER

SMALL = ["--samples=400", "--steps=8", "--cells=6", "--time-cells=2", "--reference-cells=32"]

MINE = '''
import numpy as np
from fem_hjb import ControlProblem, Gaussian

def make(pull=1.0):
    """A problem without closed form and without a known law."""
    return ControlProblem(dim=1, horizon=0.5, temperature=1.0, drift=lambda t, x: -pull * np.sin(x), diffusion=1.0,
        terminal_reward=lambda x: -x[..., 0]**2 / 2, initial_law=Gaussian([0.0], 0.3), name="mine")

problem = make()
number = 3.0

def broken():
    raise ZeroDivisionError("mine alone")

def wrong():
    return "a string"

def anywhere(dim, *, pull=1.0):
    return ControlProblem(dim=dim, horizon=0.5, temperature=1.0, drift=lambda t, x: -pull * x, diffusion=1.0,
        terminal_reward=lambda x: -(x**2).sum(-1) / 2, initial_law=Gaussian([0.0] * dim, 0.3))
'''


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def columns(path: Path) -> dict[str, dict[str, float]]:
    """The overall rows of a comparison file."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["time"] == "overall"]
    return {r["candidate"]: {k: float(r[k]) for k in ("value", "value_h1", "policy", "excluded")} for r in rows}


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return str(tmp_path / "mine.py")


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the picture is not what is tested, it is empty: drawing takes longer than all the rest."""
    monkeypatch.setattr("fem_hjb.plotting.pictures.report", lambda *_, **__: Figure(figsize=(1.0, 1.0)))


def test_compare_writes_three_files_and_prints_the_table(tmp_path: Path) -> None:
    out = tmp_path / "results" / "lq"
    result = run("compare", "lq", "--dim", "1", *SMALL, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["comparison.csv", "comparison.png", "solution.npz"]
    errors = columns(out / "comparison.csv")
    assert list(errors) == ["learned", "galerkin", "reference"]
    assert all(0 < errors[name]["policy"] < 0.2 for name in errors)
    assert errors["reference"]["value"] < errors["galerkin"]["value"]
    learned = load_solution(out / "solution.npz", zoo.get("lq"))
    assert learned.space.time.n_cells == 2
    assert image.imread(out / "comparison.png").std() > 0.05
    for word in ("learned", "galerkin", "reference", "policy", "against the exact solution", "comparison.png"):
        assert word in result.stdout
    for word in ("reference", "trajectories", "400 paths of 8 steps (exact)", " s  "):
        assert word in result.stderr


@pytest.mark.usefixtures("blank")
def test_the_command_of_the_readme_runs(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"bin/fem-hjb (.*)", readme)
    result = run(*command.split(), "--samples", "500", "--steps", "16", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("blank")
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run("compare", "lq", *SMALL, "--seed", seed, "--out", str(tmp_path / name)).exit_code == 0
        texts.append((tmp_path / name / "comparison.csv").read_text(encoding="utf-8"))
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.usefixtures("blank")
def test_a_problem_of_ones_own_is_compared_with_the_reference(tmp_path: Path, mine: str) -> None:
    result = run("compare", f"{mine}:make", "--param", "pull=0.5", *SMALL, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    errors = columns(tmp_path / "out" / "comparison.csv")
    assert list(errors) == ["learned"]
    assert 0 < errors["learned"]["value"] < 0.2
    assert "against the reference" in result.stdout


@pytest.mark.usefixtures("blank")
def test_a_mesh_can_be_the_reference(tmp_path: Path) -> None:
    result = run("compare", "lq", *SMALL, "--reference-cells", "32", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "65 dofs" in result.stderr


def test_solve_to_a_tolerance_prints_the_estimate_and_what_was_chosen(tmp_path: Path) -> None:
    result = run("solve", "soc-double-well", "--dim", "2", "--rtol", "1e-2", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    for word in ("estimated error", "truncation", "falls apart into 2 independent problems", "lawson"):
        assert word in result.stdout
    problem = zoo.get("soc-double-well", 2)
    assert load_solution(tmp_path / "out" / "solution.npz", problem).value(0.0, np.zeros((1, 2))) < 0


def test_a_tolerance_that_is_not_met_is_told_and_not_raised(tmp_path: Path) -> None:
    result = run("solve", "lq", "--cells", "8", "--rtol", "1e-6", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "limited by space" in result.stderr


def test_the_three_ways_to_solve(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    mesh = tmp_path / "line.vtu"
    skfem.MeshLine(np.linspace(-5.0, 5.0, 41)).save(mesh)
    methods = {}
    for way, options in {
        "boxes": ["--rtol", "1e-2", "--form", "value", "--max-dofs", "400"],
        "mesh": ["--mesh", str(mesh), "--element", "P3", "--steps", "20"],
        "refined": ["--refine", "--rtol", "1e-2", "--mesh", str(mesh), "--max-dofs", "900"],
    }.items():
        result = run("solve", "lq", "--json", "--out", out, *options)
        assert result.exit_code == 0, result.output
        methods[way] = json.loads(result.stdout)
    assert methods["boxes"]["stats"]["form"] == "value"
    assert methods["mesh"]["stats"]["element"] == "P3"
    assert methods["mesh"]["stats"]["steps"] == 20
    assert methods["mesh"]["error_estimate"] is None
    assert methods["refined"]["stats"]["history"][0]["cells"] == 40
    assert methods["refined"]["status"] == "ok"
    for found in methods.values():
        assert found["errors"]["policy"] < 1e-2
        assert found["file"] == str(tmp_path / "out" / "solution.npz")


def test_faces_of_a_refined_mesh_are_told(tmp_path: Path) -> None:
    mesh = tmp_path / "narrow.vtu"
    skfem.MeshLine(np.linspace(-2.0, 2.0, 41)).save(mesh)
    result = run(
        "solve", "lq", "--json", "--refine", "--rtol=1e-2", "--mesh", str(mesh), "--out", str(tmp_path / "out")
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert "limited by truncation" in found["status"]
    assert found["errors"]["policy"] / 3 < found["error_estimate"]["policy"] < 3 * found["errors"]["policy"]
    assert "note: solution:" in result.stderr


@pytest.mark.usefixtures("blank")
def test_quick_runs_are_small_and_what_is_given_stays(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    stats = []
    for options in (["--cells", "9"], ["--element", "P1"], ["--element", "P1", "--rtol-time", "1e-5"]):
        result = run("solve", "lq", "--quick", "--json", "--out", out, *options)
        assert result.exit_code == 0, result.output
        stats.append(json.loads(result.stdout)["stats"])
    assert [(each["cells"], each["rtol_time"]) for each in stats] == [(9, 1e-3), (32, 1e-3), (32, 1e-5)]
    boxes = json.loads(run("solve", "reflected", "--quick", "--json", "--out", out).stdout)
    exact = json.loads(run("solve", "reflected", "--rtol", "1e-2", "--json", "--out", out).stdout)
    assert boxes["error_estimate"] == exact["error_estimate"]
    assert run("solve", "lq", "--quick", "--refine", "--out", out).exit_code == 0
    result = run("compare", "lq", "--quick", "--out", out)
    assert result.exit_code == 0, result.output
    assert "500 paths of 16 steps" in result.stderr
    assert "300 paths of 16 steps" in run("compare", "lq", "--quick", "--samples", "300", "--out", out).stderr


def test_the_seed_of_solve(tmp_path: Path) -> None:
    estimates = []
    for seed in ("0", "0", "5"):
        result = run("solve", "double-well", "--rtol=1e-2", "--json", "--seed", seed, "--out", str(tmp_path / "out"))
        estimates.append(json.loads(result.stdout)["error_estimate"])
    assert estimates[0] == estimates[1] != estimates[2]


@pytest.mark.usefixtures("blank")
def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = json.loads(run("compare", "lq", *SMALL, "--json", "--quiet", "--out", str(out)).stdout)
    assert (found["problem"], found["dim"], found["against"]) == ("lq", 1, "exact solution")
    assert {name: errors["policy"] for name, errors in found["errors"].items()} == {
        name: row["policy"] for name, row in columns(out / "comparison.csv").items()
    }
    assert found["learned"]["stats"]["samples"] == 400 * 8
    assert [Path(file).name for file in found["files"]] == ["solution.npz", "comparison.csv", "comparison.png"]
    listed = json.loads(run("zoo", "--json").stdout)
    assert [entry["name"] for entry in listed] == [*zoo.names(), *zoo.exit_names()]
    assert {entry["name"]: entry["exact"] for entry in listed}["lq"] is True
    unmet = json.loads(run("solve", "lq", "--cells=8", "--rtol=1e-6", "--json", "--out", str(out)).stdout)
    assert "limited by" in unmet["status"]


def test_numbers_that_json_has_not_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": np.float64("inf"), "b": np.array([1, 2]), "c": (float("nan"), "x", None, True), "d": Path("f")})
    found = json.loads(capsys.readouterr().out)
    assert found == {"a": None, "b": [1, 2], "c": [None, "x", None, True], "d": "f"}


@pytest.mark.usefixtures("blank")
def test_quiet_leaves_only_what_matters_on_stderr(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert run("compare", "lq", "--quick", "--quiet", "--out", out).stderr == ""
    told = run("solve", "lq", "--cells", "8", "--rtol", "1e-6", "--quiet", "--out", out).stderr
    assert told.startswith("note: solution: ")
    assert len(told.splitlines()) == 1


def test_results_into_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("solve", "lq", "--cells", "8", "--out", ".").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["solution.npz"]


def test_a_problem_may_be_given_as_an_object_too(tmp_path: Path, mine: str) -> None:
    result = run("solve", f"{mine}:problem", "--cells", "32", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["solution.npz"]


@pytest.mark.parametrize("given", [["--dim", "2"], ["--param", "dim=2"], ["--dim", "2", "--param", "dim=2"]])
def test_a_function_that_takes_dim_is_told_the_dimension(given: list[str], mine: str, tmp_path: Path) -> None:
    options = ["--rtol=0.1", "--json", "--out", str(tmp_path / "out")]
    result = run("solve", f"{mine}:anywhere", "--param", "pull=2.0", *given, *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["dim"] == 2


def test_solve_prints_its_figures_and_the_error_where_it_is_known(tmp_path: Path) -> None:
    result = run("solve", "lq", "--dim", "1", "--cells", "64", "--element", "P2", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    for word in ("min_f", "dofs", "against the exact solution", "solution.npz"):
        assert word in result.stdout
    solution = load_solution(tmp_path / "out" / "solution.npz", zoo.get("lq"))
    x = np.linspace(-1.0, 1.0, 11)[:, None]
    exact = zoo.get("lq").exact
    assert exact is not None
    np.testing.assert_allclose(solution.value(0.0, x), exact.value(0.0, x), atol=1e-3)


POLICY = """
import numpy as np

def policy(t, x):
    return -0.5 * x

class Value:
    def value(self, t, x):
        return -0.5 * (np.asarray(x) ** 2).sum(-1)

    def gradient(self, t, x):
        return -np.asarray(x)

value = Value()
"""


def test_certify_prints_five_lines_and_json(tmp_path: Path) -> None:
    file = tmp_path / "policy.py"
    file.write_text(POLICY, encoding="utf-8")
    start = ["certify", "lq", f"{file}:policy", "--quick", "--x0=0.5"]
    shown = run(*start)
    assert shown.exit_code == 0
    exact = float(zoo.get("lq", dim=1).exact.value(0.0, [0.5]))
    told = json.loads(run(*start, "--json", "--quiet").stdout)
    assert told["lower"] < exact < told["upper"]
    assert (told["paths"], told["steps"], told["level"], told["dim"]) == (1024, 32, 0.95, 1)
    assert [line[:5] for line in shown.stdout.splitlines()] == ["certi", "J(pi)", "v*   ", "gap  ", "1024 "]
    assert f"{told['value']:.6g}" in shown.stdout
    other = json.loads(run(*start, "--json", "--seed=3", "--level=0.5", "--samples=2048", "--steps=64").stdout)
    assert other["paths"] == 2048
    assert other["upper"] - other["lower"] < (told["upper"] - told["lower"]) / 2
    best = json.loads(run("certify", "lq", "exact", "--quick", "--x0=0.5", "--json").stdout)
    none = json.loads(run("certify", "lq", "zero", "--quick", "--x0=0.5", "--json").stdout)
    assert best["gap"]["estimate"] < told["gap"]["estimate"] < none["gap"]["estimate"]
    guess = json.loads(run(*start, "--value", f"{file}:value", "--json").stdout)
    assert guess["lower"] == told["lower"]
    assert guess["upper"] != told["upper"]
    own = json.loads(run("certify", "lq", f"{file}:value", "--value", f"{file}:value", "--quick", "--json").stdout)
    assert own["chain"] is None


def test_export_writes_what_it_solves_and_what_it_reads(tmp_path: Path) -> None:
    out = tmp_path / "lq.npz"
    result = run("export", "lq", str(out), "--rtol=1e-3", "--times=0,0.5", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["problem"], record["file"], record["bytes"]) == ("lq", str(out), out.stat().st_size)
    with np.load(out, allow_pickle=False) as file:
        assert file["t"].tolist() == [0.0, 0.5]
        written, x = file["value"], file["x1"]
    assert np.abs(written[0] - zoo.get("lq").exact.value(0.0, x[:, None])).max() < 1e-6  # quadratic: far below 1e-3
    assert run("solve", "lq", "--cells=32", "--steps=4", f"--out={tmp_path}").exit_code == 0
    read = run("export", "lq", str(tmp_path / "mesh.pvd"), "--solution", str(tmp_path / "solution.npz"))
    assert read.stdout.splitlines() == [str(tmp_path / "mesh.pvd")]
    seen = meshio.read(tmp_path / "mesh" / "mesh_0016.vtu")
    again = load_solution(tmp_path / "solution.npz", zoo.get("lq"))
    assert np.array_equal(seen.point_data["value"], again.value(1.0, seen.points[:, :1]))
    assert len(seen.points) == 33


def test_certify_takes_a_solution(tmp_path: Path) -> None:
    assert run("solve", "lq", "--rtol=1e-3", "--out", str(tmp_path)).exit_code == 0
    found = json.loads(run("certify", "lq", str(tmp_path / "solution.npz"), "--quick", "--x0=0", "--json").stdout)
    assert abs(found["gap"]["estimate"]) < 1e-3


def test_the_zoo_lists_every_problem_with_its_description() -> None:
    result = run("zoo")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for name in (*zoo.names(), *zoo.exit_names()):
        assert name in text
        assert zoo.describe(name).split()[0] in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["compare", "--help"],
        ["solve", "--help"],
        ["exit", "--help"],
        ["ground-state", "--help"],
        ["certify", "--help"],
        ["export", "--help"],
        ["atlas", "--help"],
        ["zoo", "--help"],
    ],
)
def test_help_names_every_option_in_plain_lines(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    if arguments[:1] == ["compare"]:
        for option in ("dim", "samples", "steps", "cells", "time-cells", "element", "estimator", "seed", "mesh"):
            assert f"--{option}" in result.stdout
        for option in ("reference-cells", "param", "out", "debug", "max-seconds"):
            assert f"--{option}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_the_version_is_printed() -> None:
    assert run("--version").stdout.startswith("fem-hjb ")


BAD_INPUT = {
    "unknown problem": (["compare", "lp"], "lp"),
    "unknown command": (["compair", "lq"], "No such command"),
    "unknown option": (["compare", "lq", "--sample", "3"], "--sample"),
    "missing problem": (["compare"], "(?i)missing .*PROBLEM"),
    "samples that are no number": (["compare", "lq", "--samples", "many"], "--samples.*integer"),
    "no samples": (["compare", "lq", "--samples", "0"], r"--samples.*\b1\b"),
    "no such dimension": (["compare", "double-well-2d-coupled", "--dim", "1"], "dim"),
    "unknown parameter": (["compare", "lq", "--param", "colour=1"], "colour"),
    "parameter without a value": (["compare", "lq", "--param", "temperature"], "--param must be KEY=VALUE"),
    "bad parameter": (["compare", "lq", "--param", "temperature=-1"], "temperature must be a positive"),
    "unknown element": (["compare", "lq", "--element", "P9"], "--element must be one of"),
    "unknown element of a mesh": (["solve", "lq", "--element", "P9"], "--element must be one of"),
    "element of another dimension": (
        ["compare", "lq", "--element", "Q2"],
        "--element 'Q2' is not defined in dimension 1",
    ),
    "element of another mesh": (
        ["solve", "lq", "--mesh", "LINE", "--element", "Q2"],
        "--element 'Q2' is not defined on",
    ),
    "splines": (["solve", "lq", "--element", "B3", "--cells", "8"], "got --element B3; use --element hermite"),
    "estimator without its element": (
        ["compare", "lq", "--element", "P2"],
        "'generator' needs a C1 class.* or --estimator corrected",
    ),
    "unknown estimator": (["compare", "lq", "--estimator", "magic"], "--estimator must be one of .*, got 'magic'"),
    "no mesh file": (["compare", "lq", "--mesh", "none.msh", *SMALL[:-1]], "none.msh"),
    "no such file": (["compare", "none.py:make"], "there is no file none.py"),
    "file without a name": (["compare", "MINE"], "give .*:NAME"),
    "name not in the file": (["solve", "MINE:nothing"], "defines no 'nothing'"),
    "not a problem": (["solve", "MINE:number"], "must be a ControlProblem or a function that returns one, got float"),
    "function returning something else": (["solve", "MINE:wrong"], "got str"),
    "function that fails": (["solve", "MINE:broken"], "ZeroDivisionError: mine alone; --debug shows where"),
    "wrong dimension": (["solve", "MINE:make", "--dim", "2"], "has dimension 1, but --dim is 2"),
    "no dimension": (["solve", "MINE:anywhere"], r"called as \(dim, .*missing .*'dim'; give --dim"),
    "two dimensions": (["solve", "MINE:anywhere", "--dim=1", "--param=dim=2"], "--dim is 1, but --param says dim=2"),
    "two dimensions of a zoo problem": (["solve", "lq", "--dim=1", "--param=dim=2"], "--dim is 1, but --param says"),
    "parameter of no function": (["solve", "MINE:make", "--param=pul=2"], r"called as \(pull=1.0\), but .*'pul'"),
    "parameters for an object": (["solve", "MINE:problem", "--param", "a=1"], "takes no --param"),
    "results into a file": (["solve", "lq", "--out", "MINE"], "it is a file"),
    "results behind a file": (["compare", "lq", "--out", "MINE/a/b"], "cannot write into .*Not a directory"),
    "results of an experiment": (["experiment", "coercivity", "--out", "MINE"], "it is a file"),
    "tolerance out of range": (["solve", "lq", "--rtol", "0.5"], "--rtol must be a number from 1e-10, .* got 0.5"),
    "tolerance of a reference": (["compare", "lq", "--rtol", "0"], "--rtol must be a number from 1e-10, .* got 0.0"),
    "tolerance in time": (["solve", "lq", "--cells=8", "--rtol-time=1"], "--rtol-time must be a number between"),
    "steps of no mesh": (["solve", "lq", "--steps", "8"], "--steps is for meshes: give --mesh, --cells or --element"),
    "no steps": (["solve", "lq", "--steps", "0"], "--steps.*greater than or equal to 1"),
    "no cells": (["solve", "lq", "--cells", "0"], "--cells.*greater than or equal to 1"),
    "two meshes": (["solve", "lq", "--cells", "8", "--mesh", "LINE"], "give --mesh or --cells, not both"),
    "two references": (
        ["compare", "lq", "--reference-cells=8", "--mesh=LINE"],
        "--mesh or --reference-cells",
    ),
    "two kinds of steps": (
        ["solve", "lq", "--cells=8", "--steps=8", "--rtol-time=1e-3"],
        "--steps or --rtol-time",
    ),
    "form on a mesh": (["solve", "lq", "--form", "value", "--cells", "8"], "--form is not with --cells: a given mesh"),
    "both on a mesh": (
        ["solve", "lq", "--form=linear", "--max-dofs=9", "--element=P2"],
        "--form and --max-dofs",
    ),
    "unknown form": (["solve", "lq", "--form", "log"], "--form must be one of 'linear', 'value', got 'log'"),
    "no time on boxes": (
        ["solve", "double-well", "--max-seconds=1e-5"],
        "within --max-seconds 1e-05; give it more time",
    ),
    "no time on a mesh": (
        ["solve", "lq", "--cells=9", "--max-seconds=1e-5"],
        "no solution within --max-seconds 1e-05;",
    ),
    "no time to refine": (
        ["solve", "lq", "--refine", "--rtol=1e-2", "--max-seconds=1e-5"],
        "judged, within --max-seconds 1e-05;",
    ),
    "no time to compare": (["compare", "double-well", "--max-seconds=1e-5"], "within --max-seconds 1e-05;"),
    "no time to experiment": (
        ["experiment", "coercivity", "--quick", "--max-seconds=1e-5"],
        "done within --max-seconds 1e-05; give it more time",
    ),
    "time that is none": (["compare", "lq", "--max-seconds=-1"], "--max-seconds must be a positive finite number"),
    "refinement to nothing": (["solve", "lq", "--refine"], "--refine needs --rtol"),
    "refinement with steps": (["solve", "lq", "--refine", "--rtol=1e-2", "--steps=8"], "--steps is not with --refine"),
    "form of a refinement": (["solve", "lq", "--refine", "--rtol=1e-2", "--form=value"], "--form is not with --refine"),
    "too few unknowns": (["solve", "lq", "--max-dofs", "3"], "--max-dofs 3 is less than one cell"),
    "export of no kind": (["export", "lq", "a.csv"], r"export writes files that end in \.npz, .*got 'a\.csv'"),
    "export nowhere": (["export", "lq", "none/a.npz"], "there is no folder none; create it first"),
    "export of what is read to a tolerance": (
        ["export", "lq", "a.npz", "--rtol=1e-3", "--solution=b.npz"],
        "give --rtol or --solution, not both",
    ),
    "export at no times": (["export", "lq", "a.npz", "--times=now"], "--times must be numbers separated by commas"),
    "export late": (["export", "lq", "a.npz", "--rtol=1e-2", "--times=9"], r"--times must lie in \[0, 1\]"),
    "an exit of a problem with a horizon": (["exit", "lq"], "'lq' has a horizon: get"),
    "a horizon of an exit": (["solve", "well-exit"], "'well-exit' has no horizon but an exit: get_exit"),
    "an exit of no kind": (
        ["exit", "well-exit", "--of=policy"],
        "--of must be one of 'value', 'mean-exit",
    ),
    "a committor of nothing": (["exit", "well-exit", "--of=committor"], "--of committor needs --into, and nothing"),
    "a value of faces": (
        ["exit", "well-exit", "--into=0:upper"],
        "needs --into, and nothing else takes",
    ),
    "faces of no kind": (["exit", "well-exit", "--of=committor", "--into=up"], "--into must be faces such as 0:upper"),
    "faces that do not absorb": (["exit", "well-exit", "--of=committor", "--into=0:lower"], "into must name absorbing"),
    "names that there are not": (["exit", "ring-exit", "--of=committor", "--into=rim"], "'inner', 'outer', got 'rim'"),
    "a tolerance of a mesh": (
        ["exit", "ring-exit", "--rtol=1e-3"],
        "--rtol is for a domain that is a box",
    ),
    "an element of a box": (
        ["exit", "well-exit", "--element=P2"],
        "--element is for a domain that is a mesh",
    ),
    "an element that there is not": (["exit", "ring-exit", "--element=P9"], "--element must be one of"),
    "a point outside": (["exit", "well-exit", "--at=2"], r"--at must lie in the domain, .*, got \[2.0\]"),
    "a point of two dimensions": (["exit", "well-exit", "--at=0,0"], r"--at must have shape \(1,\)"),
    "a point of words": (["exit", "well-exit", "--at=here"], "--at must be numbers separated by commas"),
    "a tolerance beyond": (["exit", "well-exit", "--rtol=1"], "--rtol must be a number from 1e-10"),
    "too few unknowns of an exit": (["exit", "well-exit", "--max-dofs=0"], "--max-dofs.*greater than or equal to 1"),
    "no time to leave": (["exit", "well-exit", "--max-seconds=1e-5"], "no solution within --max-seconds 1e-05"),
    "no exit in a file": (
        ["exit", "MINE:problem"],
        "must be an ExitProblem .*, got Control",
    ),
    "no exit that is known": (
        ["exit", "ring-exits"],
        "no problem called 'ring-exits'; did you mean 'ring-exit'",
    ),
    "a drift in time": (["ground-state", "mixture-diffusion"], r"drift\(t, x\) depends on time"),
    "faces that stop": (["ground-state", "hitting-time"], "is stopped at absorbing faces, and has no stationary law"),
    "a ground state in four dimensions": (["ground-state", "lq", "--dim=4"], "boxes go up to dimension 3"),
    "no time for ever": (["ground-state", "lq", "--max-seconds=1e-5"], "no solution within --max-seconds 1e-05"),
    "a parameter of no exit": (["exit", "well-exit", "--param=x0=1"], "has no parameter 'x0'; it accepts temperature"),
    "no policy": (["certify", "lq"], "(?i)missing .*POLICY"),
    "policy of no kind": (["certify", "lq", "best"], "POLICY must be PATH.py:NAME .* or zero, got 'best'"),
    "policy of no file": (["certify", "lq", "none.py:policy"], "there is no file none.py"),
    "policy that is none": (["certify", "lq", "MINE:number"], "policy must be a callable .* got float"),
    "value that is none": (["certify", "lq", "zero", "--value=MINE:number"], "value must have value"),
    "exact policy of none": (["certify", "double-well", "exact"], "has no exact solution; give PATH.py:NAME"),
    "start of words": (["certify", "lq", "zero", "--x0=a,b"], "--x0 must be numbers separated by commas.* got 'a,b'"),
    "start of another dimension": (["certify", "lq", "zero", "--x0=1,2"], r"--x0 must have shape \(1,\)"),
    "odd steps": (["certify", "lq", "zero", "--steps=3"], "--steps must be even, .* take 4"),
    "no level": (["certify", "lq", "zero", "--level=95"], "--level must lie between 0 and 1"),
    "no time to certify": (["certify", "lq", "zero", "--max-seconds=1e-5"], "within --max-seconds 1e-05; give it more"),
    "no such entry": (["atlas", "rings"], "the atlas has no entry 'rings'; did you mean 'ring'"),
    "picture of no kind": (["atlas", "ring", "--picture=a.jpg"], r"--picture must end in \.png, got 'a\.jpg'"),
    "page into no folder": (["atlas", "ring", "--table=none/a.md"], "--table: there is no folder none; create it"),
    "no time for entries": (["atlas", "ring", "--max-seconds=0"], "--max-seconds must be a positive finite number"),
    "no such experiment": (["experiment", "gravity"], "there is no experiment 'gravity'"),
    "unknown field": (["experiment", "coercivity", "--set", "n=3"], r"--set: .* has no n; it is in_time=\(\(4, 12\)"),
    "wrong type": (["experiment", "coercivity", "--set", "deltas=0.2"], r"--set: deltas must be .*tuple\[float, ...\]"),
    "field without a value": (["experiment", "coercivity", "--set", "deltas"], "--set must be KEY=VALUE, got 'deltas'"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_errors_are_one_line_on_stderr_and_exit_code_2(
    kind: str, mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if any("LINE" in argument for argument in BAD_INPUT[kind][0]):
        skfem.MeshLine(np.linspace(-6.0, 6.0, 13)).save("line.vtu")
    for worker in ("sample_paths", "fit", "compare"):  # nothing is done before all is seen to make sense
        monkeypatch.setattr(f"fem_hjb.cli.{worker}", _too_early)
    arguments, message = BAD_INPUT[kind]
    result = run(*(argument.replace("MINE", mine).replace("LINE", "line.vtu") for argument in arguments))
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("fem-hjb: error: ")
    assert re.search(message, last)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert sum(line.startswith("fem-hjb: error: ") for line in result.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "__pycache__", "line.vtu"}


def _too_early(*given: Any, **more: Any) -> None:
    raise AssertionError("the work began")


def test_work_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **more: Any) -> None:
        raise FloatingPointError("halfway")

    monkeypatch.setattr("fem_hjb.cli.solve", fails)
    result = run("solve", "lq", "--out", str(tmp_path / "new" / "deep" / "out"))
    assert result.exit_code == 2
    assert "FloatingPointError: halfway" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_lets_the_traceback_through(mine: str) -> None:
    result = run("solve", f"{mine}:broken", "--debug")
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_installed_command_runs_and_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "from fem_hjb.cli import main; main()"
    command = [sys.executable, "-W", "error", "-c", code]
    good = subprocess.run([*command, "zoo"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fem-hjb", "solve", "lp"])
    with pytest.raises(SystemExit) as bad:
        main()
    told = capfd.readouterr()
    assert bad.value.code == 2
    assert told.out == ""
    assert len(told.err.splitlines()) == 1


def test_a_stage_shows_what_the_package_logs_and_how_far_it_is() -> None:
    level, shown = LOGGER.level, list[str]()
    with Report(quiet=True).stage("solution [1]") as stage:
        stage.status.update = shown.append  # type: ignore[method-assign, assignment]
        stage.progress(0.25)
        LOGGER.info("a: run %d: %s, about %.2g s", 2, "9 x 9", 14.2)
        stage.progress(0.5)
    LOGGER.info("not shown any more")
    assert [str(Text.from_markup(text)) for text in shown] == [
        "solution [1] 25%",
        "solution [1] 25% (a: run 2: 9 x 9, about 14 s)",
        "solution [1] 50% (a: run 2: 9 x 9, about 14 s)",
    ]
    assert LOGGER.level == level
    assert LOGGER.handlers == []
