"""Exits, expectations and ground states for other programs: grids and meshes without times."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import meshio
import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution, SteadyFunction
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine

BOXED = fh.zoo.get_exit("well-exit", dim=2)
RING = fh.zoo.get_exit("ring-exit", cells=3)
FOREVER = fh.ground_state(fh.zoo.get("reflected", dim=1), rtol=1e-2)
BRIDGE = fh.schroedinger_bridge(fh.zoo.get("reflected", dim=1), fh.Uniform(fh.Box([0.0], [1.0])), rtol=1e-2)


def made(kind: Any, problem: fh.ExitProblem, basis: Any) -> Any:
    values = np.random.default_rng(0).standard_normal(basis.n_dofs)
    return kind(problem=problem, function=SteadyFunction(basis, values), method="by hand", status="ok")


WIDE = SpectralBasis([SpectralLine([-2.3, 0.0, 1.0], 4), SpectralLine([-2.4, 2.4], 5)])  # beyond natural faces
LEFT = made(ExitSolution, BOXED, WIDE)
LATE = made(ExitExpectation, RING, MeshBasis(RING.domain.mesh, "P2"))  # type: ignore[union-attr]


def opened(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file}
    return {**found, "meta": json.loads(str(found["meta"]))}


def test_an_exit_on_a_box_is_a_grid_of_the_domain(tmp_path: Path) -> None:
    fh.export(LEFT, tmp_path / "a.npz")
    found = opened(tmp_path / "a.npz")
    assert set(found) == {"x1", "x2", "value", "f", "control", "meta"}
    assert found["x1"][[0, -1]].tolist() == [-2.0, 1.0]
    points = np.stack(np.meshgrid(found["x1"], found["x2"], indexing="ij"), axis=-1)
    np.testing.assert_array_equal(found["value"], LEFT.value(points))
    np.testing.assert_array_equal(found["control"], LEFT.policy(points))
    np.testing.assert_allclose(found["f"], LEFT.f(points), rtol=1e-12)
    meta = found["meta"]
    assert set(meta["arrays"]) == set(found) - {"meta"}
    assert all(entry["description"] and entry["unit"] for entry in meta["arrays"].values())
    assert (meta["status"], meta["problem"], meta["dim"]) == ("ok", "well-exit", 2)
    assert {"drift", "running_reward"} <= set(meta["fingerprint"])


def test_on_a_mesh_it_is_the_mesh_or_nan_outside(tmp_path: Path) -> None:
    fh.export(LATE, tmp_path / "a.vtu")
    seen, mesh = meshio.read(tmp_path / "a.vtu"), RING.domain.mesh  # type: ignore[union-attr]
    np.testing.assert_array_equal(seen.points[:, :2], mesh.p.T)
    np.testing.assert_array_equal(seen.point_data["value"], LATE.value(mesh.p.T))
    assert set(seen.point_data) == {"value"}
    (text,) = re.findall(r"<!-- (.*) -->\n\Z", (tmp_path / "a.vtu").read_text(encoding="utf-8"))
    assert json.loads(text)["quantity"] == "exit expectation"
    fh.export(LATE, tmp_path / "a.npz", axes=[[-1.9, 0.0, 1.5], [0.0, 1.0]])
    value = opened(tmp_path / "a.npz")["value"]
    np.testing.assert_array_equal(np.isnan(value), [[False, True], [True, False], [False, False]])
    fh.export(LEFT, tmp_path / "b.vtu", axes=[[-1.0, 0.0], [0.0, 1.0]])
    assert meshio.read(tmp_path / "b.vtu").cells[0].type == "quad"


def test_a_ground_state_has_its_law_and_its_numbers(tmp_path: Path) -> None:
    fh.export(FOREVER, tmp_path / "a.npz", axes=[np.linspace(0, 1, 5)])
    found = opened(tmp_path / "a.npz")
    assert set(found) == {"x1", "value", "control", "p_optimal", "meta"}
    np.testing.assert_array_equal(found["p_optimal"], FOREVER.density(found["x1"][:, None]))
    assert (found["meta"]["average_reward"], found["meta"]["gap"]) == (FOREVER.average_reward, FOREVER.gap)


@pytest.mark.parametrize("of", [LEFT, LATE, FOREVER])
def test_hdf5_has_the_arrays_of_npz_and_their_axes(of: Any, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    fh.export(of, tmp_path / "a.npz")
    fh.export(of, tmp_path / "a.h5")
    expected = opened(tmp_path / "a.npz")
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) - {"component"} == set(expected) - {"meta"}
        assert ("component" in file) == ("control" in expected)
        for name in set(expected) - {"meta"}:
            np.testing.assert_array_equal(file[name], expected[name])
        axes = [f"x{k + 1}" for k in range(of.problem.dim)]
        assert [list(axis.keys()) for axis in file["value"].dims] == [[axis] for axis in axes]


REFUSED: dict[str, tuple[type[Exception], Any, dict[str, Any]]] = {
    "does not depend on time; leave out times=": (fh.errors.OutputError, LEFT, {"times": [0.0]}),
    "leave out density=": (fh.errors.OutputError, FOREVER, {"density": 1.0}),
    "has no times: write one file, 'a.vtu'": (fh.errors.OutputError, LATE, {"path": "a.pvd"}),
    "got Bridge; give its .solution": (fh.errors.OutputError, BRIDGE, {}),
    "axes must be a list of 2 arrays": (fh.errors.DomainError, LEFT, {"axes": [[0.0, 1.0]]}),
    "axes must be a list of 1 arrays": (fh.errors.DomainError, FOREVER, {"axes": 3}),
    "the solution lives between -2 and 1 there": (fh.errors.DomainError, LEFT, {"axes": [[-2.2, 1.0], [0.0, 1.0]]}),
    r"axes\[0\] must be at least two": (fh.errors.DomainError, FOREVER, {"axes": [[0.5]]}),
    "end in .npz, .h5": (fh.errors.OutputError, LEFT, {"path": "a.csv"}),
    "too large|memory": (fh.errors.OutputError, LEFT, {"axes": [np.linspace(-2, 1, 10**6), np.linspace(-2, 2, 10**6)]}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_wrong_is_told_and_nothing_is_written(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, of, more = REFUSED[message]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        fh.export(of, **{"path": "a.npz", **more})
    assert list(tmp_path.iterdir()) == []


def test_a_bridge_is_exported_by_its_solution(tmp_path: Path) -> None:
    fh.export(BRIDGE.solution, tmp_path / "a.npz", times=[0.5])
    found = opened(tmp_path / "a.npz")
    np.testing.assert_array_equal(found["value"][0], BRIDGE.value(0.5, found["x1"][:, None]))
