"""The command: what it writes and prints, and that every error is one line and exit code 2."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from typer.testing import CliRunner, Result

from fem_hjb.cli import app
from fem_hjb.problems import zoo
from fem_hjb.solutions.files import load_solution

SMALL = ["--samples=400", "--steps=8", "--cells=6", "--time-cells=2", "--reference-cells=32"]

MINE = '''
import numpy as np
import fem_hjb.zoo as zoo
from fem_hjb.laws import Gaussian
from fem_hjb.problem import ControlProblem

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


def test_the_command_of_the_readme_runs(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"bin/fem-hjb (.*)", readme)
    result = run(*command.split(), "--samples", "500", "--steps", "16", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run("compare", "lq", *SMALL, "--seed", seed, "--out", str(tmp_path / name)).exit_code == 0
        texts.append((tmp_path / name / "comparison.csv").read_text(encoding="utf-8"))
    assert texts[0] == texts[1] != texts[2]


def test_a_problem_of_ones_own_is_compared_with_the_reference(tmp_path: Path, mine: str) -> None:
    result = run("compare", f"{mine}:make", "--param", "pull=0.5", *SMALL, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    errors = columns(tmp_path / "out" / "comparison.csv")
    assert list(errors) == ["learned"]
    assert 0 < errors["learned"]["value"] < 0.2
    assert "against the reference" in result.stdout


def test_a_mesh_can_be_the_reference(tmp_path: Path) -> None:
    result = run("compare", "lq", *SMALL, "--reference-cells", "32", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "65 dofs" in result.stderr


def test_solve_to_a_tolerance_prints_the_estimate_and_what_was_chosen(tmp_path: Path) -> None:
    result = run("solve", "soc-double-well", "--dim", "2", "--rtol", "1e-2", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    for word in ("estimated error", "truncation", "falls apart into 2 independent problems", "newton"):
        assert word in result.stdout
    problem = zoo.get("soc-double-well", 2)
    assert load_solution(tmp_path / "out" / "solution.npz", problem).value(0.0, np.zeros((1, 2))) < 0


def test_a_tolerance_that_is_not_met_is_told_and_not_raised(tmp_path: Path) -> None:
    result = run("solve", "lq", "--cells", "8", "--rtol", "1e-6", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "limited by space" in result.stderr


def test_a_problem_may_be_given_as_an_object_too(tmp_path: Path, mine: str) -> None:
    result = run("solve", f"{mine}:problem", "--cells", "32", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["solution.npz"]


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


def test_the_zoo_lists_every_problem_with_its_description() -> None:
    result = run("zoo")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for name in zoo.names():
        assert name in text
        assert zoo.describe(name).split()[0] in text


@pytest.mark.parametrize("arguments", [[], ["--help"], ["compare", "--help"], ["solve", "--help"], ["zoo", "--help"]])
def test_help_names_every_option_in_plain_lines(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    if arguments[:1] == ["compare"]:
        for option in ("dim", "samples", "steps", "cells", "time-cells", "element", "estimator", "seed", "mesh"):
            assert f"--{option}" in result.stdout
        for option in ("reference-cells", "param", "out", "debug"):
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
    "unknown element": (["compare", "lq", "--element", "P9"], "element must be one of"),
    "estimator without its element": (["compare", "lq", "--element", "P2", *SMALL], "generator"),
    "unknown estimator": (["compare", "lq", "--estimator", "magic", *SMALL], "magic"),
    "no mesh file": (["compare", "lq", "--mesh", "none.msh", *SMALL[:-1]], "none.msh"),
    "no such file": (["compare", "none.py:make"], "there is no file none.py"),
    "file without a name": (["compare", "MINE"], "give .*:NAME"),
    "name not in the file": (["solve", "MINE:nothing"], "defines no 'nothing'"),
    "not a problem": (["solve", "MINE:number"], "must be a ControlProblem or a function that returns one, got float"),
    "function returning something else": (["solve", "MINE:wrong"], "got str"),
    "function that fails": (["solve", "MINE:broken"], "ZeroDivisionError: mine alone; --debug shows where"),
    "wrong dimension": (["solve", "MINE:make", "--dim", "2"], "has dimension 1, but --dim is 2"),
    "parameters for an object": (["solve", "MINE:problem", "--param", "a=1"], "takes no --param"),
    "results into a file": (["solve", "lq", "--cells", "8", "--out", "MINE"], "it is a file"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_errors_are_one_line_on_stderr_and_exit_code_2(
    kind: str, mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD_INPUT[kind]
    result = run(*(argument.replace("MINE", mine) for argument in arguments))
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("fem-hjb: error: ")
    assert re.search(message, last)
    assert "Traceback" not in result.output
    assert sum(line.startswith("fem-hjb: error: ") for line in result.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}


def test_debug_lets_the_traceback_through(mine: str) -> None:
    result = run("solve", f"{mine}:broken", "--debug")
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_installed_command_runs_and_fails_in_one_line(tmp_path: Path) -> None:
    code = "from fem_hjb.cli import main; main()"
    command = [sys.executable, "-W", "error", "-c", code]
    good = subprocess.run([*command, "zoo"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([*command, "solve", "lp"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert len(bad.stderr.splitlines()) == 1
