"""The commands for problems without a horizon: what is printed, written and drawn."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

import fem_hjb as fh
from fem_hjb.cli import app
from fem_hjb.plotting.steady import picture_of
from fem_hjb.solutions.files import load_solution
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution, SteadyFunction
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine


def run(*arguments: str, out: Path) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return result


def test_the_value_of_an_exit_is_certified(tmp_path: Path) -> None:
    asked = ("exit", "brownian-exit", "--at=0.5", "--certify=0.01", "--quick")
    assert "certificate of a policy of 'brownian-exit', level 0.95: ok" in run(*asked, out=tmp_path / "a").stdout
    (row,) = json.loads(run(*asked, "--json", out=tmp_path / "b").stdout)["at"]
    assert row["certificate"]["lower"] <= row["value"] <= row["certificate"]["upper"]
    assert row["certificate"]["step"] == 0.01
    wrong = CliRunner().invoke(app, ["exit", "brownian-exit", "--of=mean-exit-time", "--certify=0.01"])
    assert wrong.exit_code == 2
    assert "--certify is of values" in wrong.output


def test_an_exit_is_printed_written_and_drawn(tmp_path: Path) -> None:
    result = run("exit", "brownian-exit", "--param", "rate=2", "--at=0.5", "--at=-0.25", out=tmp_path)
    rows = re.findall(r"^at (\S+): (\S+) ± (\S+)$", result.stdout, re.MULTILINE)
    for (at, value, bar), x in zip(rows, (0.5, -0.25), strict=True):
        assert float(at) == x
        exact = math.log(math.cosh(2 * x) / math.cosh(2))
        assert abs(float(value) - exact) <= max(3 * float(bar), 1e-8)
        assert float(bar) < 1e-4
    assert "check" in result.stdout
    assert "estimated error" in result.stdout
    assert re.search(r"solution +[\d.]+ s +\d+ dofs, estimated error", result.stderr)
    problem = fh.zoo.get_exit("brownian-exit", rate=2)
    found = load_solution(tmp_path / "solution.npz", problem)
    assert float(found.value([0.5])) == pytest.approx(float(rows[0][1]), abs=1e-9)
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert result.stdout.splitlines()[-2:] == [str(tmp_path / "solution.npz"), str(tmp_path / "picture.png")]


def test_json_is_all_there_is_and_has_the_error_bar(tmp_path: Path) -> None:
    into = ("--of", "committor", "--into", "0:upper", "--json", "--quick", "--quiet")
    result = run("exit", "well-crossing", *into, out=tmp_path)
    record = json.loads(result.stdout)
    assert result.stderr == ""
    (row,) = record["at"]
    assert row["x"] == [0.0]
    assert abs(row["value"] - 0.5) <= 3 * row["error"] + 1e-9
    assert record["status"] == "ok"
    assert record["stats"]["quantity"] == "committor"
    assert all(check["passed"] for check in record["checks"])


def test_a_mesh_is_solved_on_and_times_are_those_of_no_control(tmp_path: Path) -> None:
    ring = ("exit", "ring-exit", "--param=cells=4", "--json", "--element=P3")
    record = json.loads(run(*ring, "--of=committor", "--into=outer", "--at=1.5,0", out=tmp_path).stdout)
    assert record["at"][0]["value"] == pytest.approx(math.log(1.5) / math.log(2), abs=8e-3)
    late = json.loads(run(*ring, "--of=mean-exit-time", out=tmp_path).stdout)
    (row,) = late["at"]  # m = (1 - r^2) / 2 + 3 log r / (2 log 2)
    r = math.hypot(*row["x"])
    assert 1.3 < r < 1.7
    assert row["value"] == pytest.approx((1 - r**2) / 2 + 1.5 * math.log(r) / math.log(2), abs=1e-2)
    assert late["stats"]["element"] == "P3"


def test_a_ground_state_is_printed_written_and_drawn(tmp_path: Path) -> None:
    """dX = dB with the cost x^2: the average reward is -1/sqrt(2), the gap sqrt(2)."""
    path = tmp_path / "mine.py"
    path.write_text(
        "import fem_hjb as fh\n"
        "free = fh.ControlProblem(dim=1, horizon=1.0, temperature=1.0, drift=lambda t, x: 0 * x, diffusion=1.0,\n"
        "    running_reward=lambda t, x: -x[..., 0] ** 2, terminal_reward=lambda x: 0 * x[..., 0],\n"
        "    initial_law=fh.Gaussian([0.0], 1.0), name='free')\n",
        encoding="utf-8",
    )
    result = run("ground-state", f"{path}:free", "--quick", out=tmp_path / "out")
    average, gap = (
        [float(part) for part in re.findall(rf"^{name}: (\S+) ± (\S+)$", result.stdout, re.MULTILINE)[0]]
        for name in ("average reward", "gap")
    )
    assert abs(average[0] + math.sqrt(0.5)) <= 3 * average[1] + 1e-6
    assert abs(gap[0] - math.sqrt(2)) <= 3 * gap[1] + 1e-5
    assert max(average[1], gap[1]) < 1e-2
    assert (tmp_path / "out" / "picture.png").is_file()


def test_a_ground_state_is_no_solution_with_a_horizon(tmp_path: Path) -> None:
    problem = fh.zoo.get("reflected", dim=1)
    fh.save_solution(tmp_path / "a.npz", fh.ground_state(problem, rtol=1e-2))
    for command in (
        ["certify", "reflected", str(tmp_path / "a.npz")],
        ["export", "reflected", str(tmp_path / "b.npz"), "--solution", str(tmp_path / "a.npz")],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert "holds a GroundState, which has no horizon; give what fem-hjb solve wrote" in result.stderr


def test_what_takes_too_long_says_so(tmp_path: Path) -> None:
    result = run("exit", "well-exit", "--rtol=1e-9", "--max-dofs=100", out=tmp_path)
    assert "note: solution: more than max_dofs=100 unknowns would be needed" in result.stderr


def _drawn(found: Any) -> list[Any]:
    figure = picture_of(found, "value")
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def test_pictures_have_the_panels_they_should() -> None:
    line = fh.zoo.get_exit("brownian-exit")
    one = fh.solve_exit(line, rtol=1e-2)
    value, policy = _drawn(one)
    np.testing.assert_allclose(value.lines[0].get_ydata(), one.value(value.lines[0].get_xdata()[:, None]))
    np.testing.assert_allclose(policy.lines[0].get_ydata(), one.policy(policy.lines[0].get_xdata()[:, None])[:, 0])
    assert len(_drawn(fh.stationary.mean_exit_time(line, rtol=1e-2))) == 1
    still = fh.ground_state(fh.zoo.get("reflected", dim=1), rtol=1e-2)
    flat, density = _drawn(still)  # nothing is earned, so that there is no policy
    assert not np.any(flat.lines[0].get_ydata())
    assert density.get_title() == "density under the policy"


def test_maps_are_blank_outside_a_mesh_and_cut_a_box_in_the_middle() -> None:
    ring = fh.zoo.get_exit("ring-exit", cells=4)
    basis = MeshBasis(ring.domain.mesh, "P1")  # type: ignore[union-attr]
    made = ExitExpectation(
        problem=ring, function=SteadyFunction(basis, basis.nodes[:, 0]), method="by hand", status="ok"
    )
    (ax,) = _drawn(made)
    shown = ax.collections[0].get_array()
    assert 0.3 < np.ma.getmaskarray(shown).mean() < 0.6  # of the square around the ring
    box = fh.zoo.get_exit("brownian-exit", dim=3)
    nodes = SpectralBasis([SpectralLine([-1.0, 1.0], 3)] * 3)
    values = -(nodes.nodes**2).sum(axis=1)
    cut = ExitSolution(problem=box, function=SteadyFunction(nodes, values), method="by hand", status="ok")
    (ax,) = _drawn(cut)
    assert len(ax.collections) == 2  # a map and arrows
