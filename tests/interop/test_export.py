"""Exports: what other programs read is what the solution says, and nothing half-written or misleading is left."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import meshio
import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.interop.vtk import structured
from fem_hjb.problems.blocks import restrict
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.spaces.line import LineBasis
from tests.solutions.test_files import make_solution, unstructured

LQ, LQ2 = fh.zoo.get("lq", dim=1), fh.zoo.get("lq", dim=2)
SOLVED, SOLVED2 = fh.solve(LQ, rtol=1e-3), fh.solve(LQ2, rtol=1e-3)
START = fh.PointMass([0.0])
BRIDGE = fh.ControlProblem(
    dim=1,
    horizon=1.0,
    temperature=1.0,
    drift=fh.LinearDrift([[0.0]], [0.0]),
    diffusion=1.0,
    terminal_reward=lambda x: -0.5 * (x[..., 0] - 1.0) ** 2,
    initial_law=START,
    marginal=lambda t: fh.Gaussian([0.0], t) if t else START,
    name="bridge",
)


def opened(path: Path) -> dict[str, Any]:
    """The arrays of an .npz by NumPy alone, `meta` as what its JSON says."""
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file}
    return {**found, "meta": json.loads(str(found["meta"]))}


def told(path: Path) -> Any:
    """The JSON of the comment at the end of a file of VTK's."""
    (text,) = re.findall(r"<!-- (.*) -->\n\Z", path.read_text(encoding="utf-8"))
    return json.loads(text)


@pytest.mark.parametrize(("of", "count"), [(SOLVED, 65), (SOLVED2, 49)])
def test_npz_holds_what_the_solution_says(of: Any, count: int, tmp_path: Path) -> None:
    fh.export(of, tmp_path / "a.npz")
    found, problem = opened(tmp_path / "a.npz"), of.problem
    dim = problem.dim
    axes = [found[f"x{k + 1}"] for k in range(dim)]
    assert found["value"].shape == (17, *[count] * dim)
    assert found["control"].shape == (17, *[count] * dim, dim)
    assert found["t"][0] == 0.0
    assert found["t"][-1] == problem.horizon
    assert (np.diff(np.diff(found["t"])) < 0).all()  # denser towards T
    x = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    t = found["t"].reshape(-1, *[1] * dim)
    assert np.allclose(found["value"], of.value(t, x), rtol=1e-12, atol=1e-12)
    assert np.allclose(found["control"], of.policy(t, x), rtol=1e-10, atol=1e-10)
    assert np.allclose(found["f"], np.exp(found["value"] / problem.temperature), rtol=1e-14)
    for s, p in zip(found["t"].tolist(), found["p"], strict=True):
        assert np.allclose(p, np.exp(problem.marginal(s).logpdf(x)), rtol=1e-13)
    assert "p_optimal" not in found
    assert "optimal_density=" in found["meta"]["left_out"]["p_optimal"]


def test_meta_says_what_is_needed_to_trust_the_arrays(tmp_path: Path) -> None:
    fh.export(SOLVED, tmp_path / "a.npz")
    found = opened(tmp_path / "a.npz")
    meta, estimate = found["meta"], SOLVED.error_estimate
    assert estimate is not None
    assert fh.solutions.ErrorEstimate(**meta["error_estimate"]).as_dict() == estimate.as_dict()
    assert set(meta["arrays"]) == set(found) - {"meta"}
    assert all(row["description"] and row["unit"] for row in meta["arrays"].values())
    assert [check["name"] for check in meta["checks"]] == [check.name for check in SOLVED.checks] != []
    assert (meta["problem"], meta["dim"], meta["temperature"]) == (LQ.name, 1, LQ.temperature)
    assert (meta["status"], meta["points_without_value"]) == (SOLVED.status, 0)
    assert {"fem_hjb", "numpy", "scipy", "python"} <= set(meta["versions"])
    x = np.array(meta["fingerprint"]["x"])
    assert np.array_equal(np.array(meta["fingerprint"]["drift"])[0], LQ.b(0.0, x))


def test_numbers_that_json_does_not_have_are_text(tmp_path: Path) -> None:
    endless = fh.solutions.ErrorEstimate(value=np.inf, policy=1.0, space=1.0, time=0.0, truncation=0.0)
    fh.export(replace(SOLVED, error_estimate=endless), tmp_path / "a.npz", times=0.0)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        text = str(file["meta"])
    assert json.loads(text, parse_constant=pytest.fail)["error_estimate"]["value"] == "inf"


def test_the_density_under_control_of_a_bridge_is_known(tmp_path: Path) -> None:
    """With f_T = exp(-(x - 1)^2 / 2) and X_0 = 0, X*_t is N(t/2, t - t^2/2)."""
    fh.export(fh.solve(BRIDGE, rtol=1e-8), tmp_path / "a.npz", times=[0.0, 0.3, 1.0], axes=[np.linspace(-3.0, 3.0, 41)])
    found = opened(tmp_path / "a.npz")
    assert np.isnan(found["p"][0]).all()  # a point has no density
    assert np.isnan(found["p_optimal"][0]).all()
    for t, p, p_optimal in zip(found["t"][1:], found["p"][1:], found["p_optimal"][1:], strict=True):
        x = found["x1"][:, None]
        assert np.allclose(p, np.exp(fh.Gaussian([0.0], t).logpdf(x)), rtol=1e-12)
        assert np.allclose(p_optimal, np.exp(fh.Gaussian([t / 2], t - t**2 / 2).logpdf(x)), rtol=1e-6)
    assert found["meta"]["left_out"] == {}
    paid = replace(BRIDGE, running_reward=lambda t, x: -(x[..., 0] ** 2))
    fh.export(fh.solve(paid, rtol=1e-3), tmp_path / "b.npz")
    assert "p_optimal" not in opened(tmp_path / "b.npz")


def test_densities_that_are_given_are_written(tmp_path: Path) -> None:
    law = fh.fokker_planck.solve(LQ, rtol=1e-3)
    axes = [np.linspace(-1.0, 1.0, 5)]
    fh.export(SOLVED, tmp_path / "a.npz", axes=axes, density=law, optimal_density=lambda t: fh.Gaussian([t], 1.0))
    found = opened(tmp_path / "a.npz")
    x, t = found["x1"][:, None], found["t"][:, None]
    assert np.allclose(found["p"], law.density(t, x), rtol=1e-12)
    assert np.allclose(found["p_optimal"], np.exp(-0.5 * (x[:, 0] - t) ** 2) / np.sqrt(2 * np.pi), rtol=1e-12)
    fh.export(SOLVED, tmp_path / "b.npz", axes=axes, times=0.25, density=law.law(0.25))
    assert np.allclose(opened(tmp_path / "b.npz")["p"], law.density(0.25, x), rtol=1e-12)


def test_the_law_under_the_policy_is_a_density(tmp_path: Path) -> None:
    """As docs/files.md gives it; d/dt E|X*|^2 = E[2 X* (b + control)] + Lambda by the arrays alone."""
    lower, upper = SOLVED.space.box.bounds
    law = fh.fokker_planck.solve(LQ, policy=lambda t, x: SOLVED.policy(t, np.clip(x, lower, upper)))
    fh.export(SOLVED, tmp_path / "a.npz", optimal_density=law, times=np.linspace(0.0, 1.0, 33))
    found = opened(tmp_path / "a.npz")
    x, weights = found["x1"], np.diff(found["x1"]).mean() * found["p_optimal"]
    assert np.allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    drift = LQ.b(0.0, x[:, None])[:, 0] + found["control"][..., 0]
    speed = (weights * 2.0 * x * drift).sum(axis=1) + float(LQ.Lambda(0.0, [[0.0]])[0, 0, 0])
    moved = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(found["t"]))])
    square = weights @ x**2
    assert np.abs(square - square[0]).max() > 0.1
    assert np.allclose(square - square[0], moved, atol=2e-4)  # of the trapezoidal rule with 32 steps


def test_outside_the_domain_there_is_nan(tmp_path: Path) -> None:
    disc = make_solution(2, "P2", mesh=unstructured())
    fh.export(disc, tmp_path / "a.npz", times=[0.0, 1.0])
    found = opened(tmp_path / "a.npz")
    first, second = np.meshgrid(found["x1"], found["x2"], indexing="ij")
    radius = np.hypot(first - np.pi / 100, second - np.pi / 100)
    near, far = radius < 4.9, radius > 5.001  # a polygon of sixteen edges
    assert far.sum() > 400
    for name in ("value", "f", "p", "control"):
        assert np.isnan(found[name][:, far]).all()
    assert np.isfinite(found["p"][:, near]).all()
    assert found["meta"]["points_without_value"] == np.isnan(found["value"][np.isfinite(found["p"])]).sum()


def test_points_without_a_value_are_counted(tmp_path: Path) -> None:
    below = make_solution(1, "P2", mesh=skfem.MeshLine(np.linspace(-3.0, 3.0, 7)))
    negative = np.array(below.coefficients)
    negative[:, 3] = -1.0
    fh.export(replace(below, coefficients=negative), tmp_path / "a.npz", axes=[np.linspace(-3.0, 3.0, 7)], times=0.0)
    found = opened(tmp_path / "a.npz")
    assert found["meta"]["points_without_value"] == np.isnan(found["value"]).sum() == 1


def test_where_f_is_no_number_its_logarithm_is_written(tmp_path: Path) -> None:
    space = fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-3.0], [3.0]))
    gauge = fh.problems.ValueGauge(background=fh.problems.constant_gauge(LQ, [[0.0]], [0.0]))
    steep = space.interpolate(lambda t, x: -400.0 * x[:, 0] ** 2)
    cold = fh.Solution(problem=LQ, space=space, coefficients=steep, gauge=gauge, method="a", status="ok")
    fh.export(cold, tmp_path / "a.npz", times=[0.0, 0.5])
    found = opened(tmp_path / "a.npz")
    assert "f" not in found
    assert found["log_f"].min() < -710
    assert np.array_equal(found["log_f"], found["value"] / LQ.temperature)
    assert "f" not in found["meta"]["arrays"]


def test_default_axes_follow_the_box_or_what_was_learned(tmp_path: Path) -> None:
    fh.export(SOLVED, tmp_path / "a.npz", times=0.0)
    assert [*opened(tmp_path / "a.npz")["x1"][[0, -1]]] == [*np.ravel(SOLVED.space.box.bounds)]
    wide = fh.Space(LQ, cells=6, time_cells=2, box=fh.Box([-9.0], [9.0]))
    learned = fh.fit(LQ, fh.sample_paths(LQ, n=200, steps=8, rng=0), wide, smoothing=1.0)
    features = fh.Space.product(
        LineBasis.uniform(LQ.horizon, 2, "P2"), fh.spaces.HermiteCross(fh.Gaussian([0.0], 1.0), 2)
    )
    gauge = fh.problems.constant_gauge(LQ, [[0.0]], [0.0])
    ones = np.zeros(features.shape)
    ones[:, 0] = 1.0
    endless = fh.Solution(problem=LQ, space=features, coefficients=ones, gauge=gauge, method="a", status="ok")
    reach = np.ravel(fh.paths.truncation_box(LQ, quantile=1e-3, margin=0.0).box.bounds)
    for name, of in (("learned", learned), ("features", endless)):
        fh.export(of, tmp_path / f"{name}.npz", times=0.0)
        assert [*opened(tmp_path / f"{name}.npz")["x1"][[0, -1]]] == [*reach]


def test_products_are_written_up_to_three_dimensions(tmp_path: Path) -> None:
    parts = tuple(((k,), fh.solve(restrict(LQ2, [k], 2), rtol=1e-3)) for k in range(2))
    product = fh.solutions.ProductSolution(problem=LQ2, parts=parts, status="ok")
    fh.export(product, tmp_path / "a.npz", times=0.5)
    found = opened(tmp_path / "a.npz")
    first, second = (part.value(0.5, found[f"x{k + 1}"][:, None]) for k, (_, part) in enumerate(parts))
    assert np.allclose(found["value"][0], first[:, None] + second, rtol=1e-12, atol=1e-12)
    fh.export(product, tmp_path / "a.vtu", times=0.5)
    seen = meshio.read(tmp_path / "a.vtu")
    assert np.array_equal(seen.point_data["value"], product.value(0.5, seen.points[:, :2]))
    many = fh.solve(fh.zoo.get("double-well", dim=4), rtol=1e-2)
    with pytest.raises(fh.errors.OutputError, match="one to three dimensions, but this solution has 4"):
        fh.export(many, tmp_path / "b.npz")


@pytest.mark.parametrize("suffix", ["h5", "nc"])
def test_hdf5_has_scales_units_and_the_arrays_of_npz(suffix: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    fh.export(SOLVED2, tmp_path / "a.npz", times=[0.0, 0.5])
    fh.export(SOLVED2, tmp_path / f"a.{suffix}", times=[0.0, 0.5])
    expected = opened(tmp_path / "a.npz")
    with h5py.File(tmp_path / f"a.{suffix}") as file:
        assert set(file) == set(expected) - {"meta"} | {"component"}
        assert json.loads(file.attrs["meta"]) == expected["meta"]
        for name in set(expected) - {"meta"}:
            assert np.array_equal(file[name], expected[name])
            assert file[name].attrs["units"] == expected["meta"]["arrays"][name]["unit"]
            assert file[name].attrs["long_name"] == expected["meta"]["arrays"][name]["description"]
        axes = ["t", "x1", "x2", "component"]
        assert all(file[axis].is_scale for axis in axes)
        for name in ("value", "control", "f", "p"):
            assert [axis.keys() for axis in file[name].dims] == [[axis] for axis in axes[: file[name].ndim]]


def test_xarray_reads_netcdf(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    xarray = pytest.importorskip("xarray")
    fh.export(SOLVED2, tmp_path / "a.nc", times=[0.0, 0.5])
    with xarray.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as found:
        assert found["control"].dims == ("t", "x1", "x2", "component")
        assert dict(found.sizes) == {"t": 2, "x1": 49, "x2": 49, "component": 2}
        point = found["value"].isel(x1=7, x2=30).sel(t=0.5)
        assert np.isclose(float(point), SOLVED2.value(0.5, [float(point.x1), float(point.x2)]), rtol=1e-12)


SMALL = {"line": 8, "tri": 6, "quad": 6, "tet": 2, "hex": 2}


@pytest.mark.parametrize(("kind", "cells"), SMALL.items())
def test_vtu_is_the_mesh_of_the_solution(kind: str, cells: int, tmp_path: Path) -> None:
    dim = {"line": 1, "tri": 2, "quad": 2, "tet": 3, "hex": 3}[kind]
    mesh = fh.spaces.box_mesh(fh.Box([-3.0] * dim, [3.0] * dim), cells, kind)
    of = make_solution(dim, "Q1" if kind in ("quad", "hex") else "P2", mesh=mesh)
    fh.export(of, tmp_path / "a.vtu", times=0.25)
    basis = of.space.spatial
    again = fh.load_mesh(tmp_path / "a.vtu", dim)  # refuses twisted cells
    assert np.array_equal(again.p.T, basis.vertices)
    assert np.array_equal(again.t.T, basis.cell_vertices)
    seen = meshio.read(tmp_path / "a.vtu")
    assert np.array_equal(seen.points[:, dim:], np.zeros((len(seen.points), 3 - dim)))
    assert np.array_equal(seen.point_data["value"], of.value(0.25, basis.vertices))
    assert np.array_equal(seen.point_data["control"][:, :dim], of.policy(0.25, basis.vertices))
    assert seen.point_data["control"].shape == (len(basis.vertices), 3)
    assert set(seen.point_data) == {"value", "control", "f", "p"}
    assert told(tmp_path / "a.vtu")["method"] == of.method


@pytest.mark.parametrize("of", [SOLVED, SOLVED2, make_solution(3, "gll"), make_solution(2, "hermite")])
def test_boxes_are_structured_grids_of_their_nodes(of: Any, tmp_path: Path) -> None:
    dim = of.problem.dim
    fh.export(of, tmp_path / "some.pvd", times=[0.0, 0.75])
    root = ElementTree.parse(tmp_path / "some.pvd").getroot()
    sets = [entry.attrib for entry in root.iter("DataSet")]
    assert [float(entry["timestep"]) for entry in sets] == [0.0, 0.75]
    for entry in sets:
        seen = meshio.read(tmp_path / entry["file"])
        t, x = float(entry["timestep"]), seen.points[:, :dim]
        assert np.array_equal(seen.point_data["value"], of.value(t, x, nonpositive="nan"), equal_nan=True)
        policy = of.policy(t, x, nonpositive="nan")
        assert np.array_equal(seen.point_data["control"][:, :dim], policy, equal_nan=True)
        lower, upper = x.min(axis=0), x.max(axis=0)
        corners = x[seen.cells[0].data]
        assert np.isclose(np.ptp(corners, axis=1).prod(axis=1).sum(), (upper - lower).prod(), rtol=1e-12)
    assert told(tmp_path / "some.pvd") == told(tmp_path / sets[0]["file"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some", "some.pvd"]


def test_cells_follow_the_panels_of_time(tmp_path: Path) -> None:
    of = fh.solve(fh.zoo.get("brownian-mixture", dim=1), rtol=1e-3)
    assert isinstance(of, fh.Solution)
    fh.export(of, tmp_path / "a.pvd", times=[0.0, of.problem.horizon])
    first, last = (meshio.read(tmp_path / "a" / f"a_{k:04d}.vtu").points[:, 0] for k in range(2))
    assert np.array_equal(first, of.space.panels[0].spatial.nodes[:, 0])
    assert np.array_equal(last, of.space.panels[-1].spatial.nodes[:, 0])
    assert len(first) < len(last)


@pytest.mark.parametrize(("dim", "name", "count"), [(1, "line", 2), (2, "quad", 2), (3, "hexahedron", 6)])
def test_structured_cells_are_in_the_order_of_vtk(dim: int, name: str, count: int) -> None:
    axes = [np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.5]), np.array([-1.0, 0.0, 1.0, 2.0])][:dim]
    piece = structured(axes)
    assert (piece.kind, len(piece.cells)) == (name, count)
    assert np.array_equal(piece.points, tensor_points(axes))
    corners = piece.points[piece.cells]
    edges = np.stack([corners[:, k] - corners[:, 0] for k in (1, 3, 4)[:dim]], axis=-1)
    assert (np.linalg.det(edges) > 0).all()
    if dim > 1:  # going round the bottom, then round the top
        assert np.array_equal(corners[:, 2] - corners[:, 1], corners[:, 3] - corners[:, 0])
    if dim > 2:
        assert np.array_equal(corners[:, 4:] - corners[:, :4], np.repeat(edges[:, None, :, 2], 4, axis=1))


def test_axes_that_are_given_are_the_grid_of_vtk(tmp_path: Path) -> None:
    axes = [np.linspace(-1.0, 1.0, 4), np.linspace(0.0, 1.0, 3)]
    fh.export(SOLVED2, tmp_path / "a.vtu", times=0.5, axes=axes)
    assert np.array_equal(meshio.read(tmp_path / "a.vtu").points[:, :2], tensor_points(axes))


def test_comments_of_xml_have_no_two_hyphens(tmp_path: Path) -> None:
    fh.export(replace(SOLVED, status="a--b---c"), tmp_path / "a.vtu", times=0.0)
    ElementTree.parse(tmp_path / "a.vtu")
    assert told(tmp_path / "a.vtu")["status"] == "a--b---c"


def broken(t: float) -> fh.problems.Law:
    """A density that fails at the second time."""
    if t > 0.6:
        raise ZeroDivisionError("of its own")
    return fh.Gaussian([0.0], 1.0)


@pytest.mark.parametrize("suffix", ["npz", "h5", "nc", "pvd"])
def test_nothing_half_written_is_left(suffix: str, tmp_path: Path) -> None:
    if suffix in ("h5", "nc"):
        pytest.importorskip("h5py")
    path = tmp_path / f"a.{suffix}"
    before: list[Path] = []
    for before in ([], [path]):
        for file in before:
            file.write_text("old", encoding="utf-8")
        with pytest.raises(fh.errors.ProblemError, match=r"density\(t\) failed at t=0.75: ZeroDivisionError"):
            fh.export(SOLVED, path, times=[0.5, 0.75], density=broken)
        assert [*tmp_path.iterdir()] == before
    assert path.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("suffix", ["npz", "vtu"])
def test_a_disk_that_is_full_leaves_the_old_file(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        file = arguments[-1]
        (file.write_bytes if isinstance(file, Path) else file.write)(b"half")
        raise OSError("no space left on device")

    path = tmp_path / f"a.{suffix}"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr(meshio.Mesh, "write", full)
    with pytest.raises(fh.errors.OutputError, match=rf"cannot write .*a\.{suffix}: no space left on device"):
        fh.export(SOLVED, path, times=0.0)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text(encoding="utf-8") == "old"


def test_h5py_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(fh.errors.OutputError, match=r"need the package h5py: pip install 'fem_hjb\[h5\]', or use"):
        fh.export(SOLVED, tmp_path / "a.nc")


HUGE = [np.linspace(-1.0, 1.0, 10**6)] * 2
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown suffix": ({"path": "a.csv"}, fh.errors.OutputError, r"end in .npz, .h5, .*got 'a.csv'"),
    "no suffix": ({"path": "npz"}, fh.errors.OutputError, r"end in .npz, .*got 'npz'"),
    "no folder": ({"path": "no/a.npz"}, fh.errors.OutputError, "there is no folder no; create it first"),
    "no path": ({"path": 3}, fh.errors.OutputError, "the name of a file must be text or a Path"),
    "not a solution": ({"solution": LQ}, fh.errors.OutputError, "writes a Solution, .* got ControlProblem"),
    "axes outside": (
        {"axes": [np.linspace(-99.0, 1.0, 3)]},
        fh.errors.DomainError,
        r"axes\[0\] goes from -99 to 1, but the solution lives between .*cut the axis, or solve on a larger box=",
    ),
    "axes not increasing": ({"axes": [[0.0, 1.0, 0.5]]}, fh.errors.DomainError, r"increasing order.*0\.5"),
    "axes of nan": ({"axes": [[0.0, np.nan]]}, fh.errors.DomainError, "finite coordinates in increasing order"),
    "a single point": ({"axes": [[0.0]]}, fh.errors.DomainError, r"at least two .*got shape \(1,\)"),
    "a matrix as axis": ({"axes": [np.zeros((2, 2))]}, fh.errors.DomainError, r"got shape \(2, 2\)"),
    "too many axes": ({"axes": [[0.0, 1.0]] * 2}, fh.errors.DomainError, "list of 1 arrays, .*got 2 of them"),
    "an axis alone": (
        {"axes": np.linspace(0.0, 1.0, 5)},
        fh.errors.DomainError,
        "list of 1 arrays, one for each axis of the problem, got 5 of them",
    ),
    "axes of no kind": ({"axes": 3}, fh.errors.DomainError, "list of 1 arrays, .*got int"),
    "times after T": ({"times": [0.0, 1.5]}, fh.errors.DomainError, r"times must lie in \[0, 1\], .*1\.5"),
    "times not increasing": ({"times": [0.5, 0.5]}, fh.errors.DomainError, r"increasing array .*sort them"),
    "no times": ({"times": []}, fh.errors.DomainError, r"increasing array \(k,\), got one of shape \(0,\)"),
    "several times in one file": (
        {"path": "a.vtu"},
        fh.errors.OutputError,
        r"a file \*.vtu holds one time, got 17; give one, .* or a name that ends in .pvd",
    ),
    "too large": (
        {"solution": SOLVED2, "axes": HUGE},
        fh.errors.OutputError,
        r"takes 816 TB, but this machine has .*give fewer times= or shorter axes=",
    ),
    "too large for VTK": (
        {"solution": SOLVED2, "axes": HUGE, "path": "a.pvd"},
        fh.errors.OutputError,
        "takes 816 TB, but this machine has",
    ),
    "density of another dimension": (
        {"density": lambda t: fh.Gaussian([0.0, 0.0], 1.0)},
        fh.errors.ProblemError,
        "density= must be t -> law .*dimension 1, got one of dimension 2",
    ),
    "optimal density of no kind": (
        {"optimal_density": 3},
        fh.errors.ProblemError,
        "optimal_density= must be t -> law of X_t, .*got int",
    ),
    "one law, many times": (
        {"density": fh.Gaussian([0.0], 1.0)},
        fh.errors.ProblemError,
        "density= is the law of one time, but 17 times are written; give t -> law",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changed, error, message = WRONG[case]
    given = {"solution": SOLVED, "path": "a.npz", **changed}
    with pytest.raises(error, match=message):
        fh.export(given.pop("solution"), given.pop("path"), **given)
    assert [*tmp_path.iterdir()] == []
