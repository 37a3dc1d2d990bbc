"""Files: bitwise round trips, and never a half-written or silently misread one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skfem

from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import constant_gauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.files import load_paths, load_solution, save_paths, save_solution
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import LineBasis, Space, SplineBasis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import OutputError
from fem_hjb.support.files import atomic_file, atomic_folder


def make_solution(
    dim: int = 1, element: str = "hermite", *, mesh: object = None, stats: object = None, **time: object
) -> Solution:
    """The interpolant of the exact f in a small class: a solution without a solver."""
    problem = zoo.get("lq", dim=dim)
    where: dict[str, object] = {"box": Box([-3.0] * dim, [3.0] * dim), "cells": 4} if mesh is None else {"mesh": mesh}
    if element == "gll":
        space = Space.product(LineBasis.uniform(problem.horizon, 2, "P4"), spectral(dim))
    else:
        space = Space(problem, time_cells=2, element=element, **where, **time)  # type: ignore[arg-type]
    of = constant_gauge(problem, space.spatial.nodes, space.time.nodes)
    exact = problem.exact
    assert exact is not None
    f = space.interpolate(lambda t, x: of.u(t, x, exact.value(t, x)))
    noise = 1e-9 * np.random.default_rng(0).standard_normal(f.shape)  # so that no bit is round
    return Solution(
        problem=problem,
        space=space,
        coefficients=f * (1 + noise),
        gauge=of,
        method="interpolant",
        status="made by hand",
        stats=stats or {"dofs": np.int64(3), "seconds": {"solve": 0.25}, "orders": np.array([1.5, 2.0])},  # type: ignore[arg-type]
    )


def spectral(dim: int) -> SpectralBasis:
    """Irrational grids, and another degree on each axis."""
    grids = [[-np.pi, -0.1, 3.0], [-3.0, 1 / 3, 1.0, np.e], [-np.sqrt(7.0), 2.6]]
    return SpectralBasis([SpectralLine(grid, p) for grid, p in zip(grids[:dim], (7, 4, 5), strict=False)])


def unstructured() -> skfem.MeshTri:
    """A mesh whose cells are not sorted and whose points are moved by irrational amounts."""
    mesh = skfem.MeshTri.init_circle(2)
    return skfem.MeshTri(5.0 * mesh.p @ np.diag(np.ones(mesh.p.shape[1])) + np.pi / 100, mesh.t[[2, 0, 1]])


CLASSES: dict[str, Callable[[], Solution]] = {
    "hermite 1-D": lambda: make_solution(1),
    "P3 1-D": lambda: make_solution(1, "P3"),
    "hermite 2-D": lambda: make_solution(2),
    "Q2 2-D": lambda: make_solution(2, "Q2"),
    "P2 unstructured": lambda: make_solution(2, "P2", mesh=unstructured()),
    "hermite 3-D": lambda: make_solution(3),
    "B2 1-D": lambda: make_solution(1, "B2"),
    "B4 2-D": lambda: make_solution(2, "B4"),
    "B3 3-D": lambda: make_solution(3, "B3"),
    "B3 1-D, smooth in time": lambda: make_solution(1, "B3", time_degree=4, time_smooth=True),
    "hermite 1-D, smooth in time": lambda: make_solution(1, time_smooth=True),
    "P2 3-D": lambda: make_solution(3, "P2"),
    "Q1 3-D": lambda: make_solution(3, "Q1"),
    "gll 1-D": lambda: make_solution(1, "gll"),
    "gll 2-D": lambda: make_solution(2, "gll"),
    "gll 3-D": lambda: make_solution(3, "gll"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_solution_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    solution = CLASSES[name]()
    save_solution(tmp_path / "a.npz", solution)
    again = load_solution(tmp_path / "a.npz", solution.problem)
    np.testing.assert_array_equal(again.coefficients, solution.coefficients)
    assert vars(again.gauge) == vars(solution.gauge)
    assert (again.method, again.status) == ("interpolant", "made by hand")
    assert again.stats["seconds"] == {"solve": 0.25}
    assert again.stats["orders"] == [1.5, 2.0]
    assert again.stats["min_f"] == solution.stats["min_f"]
    x = np.random.default_rng(1).uniform(-1.0, 1.0, (50, solution.problem.dim))
    t = np.random.default_rng(2).uniform(0.0, solution.problem.horizon, 50)
    for evaluate in ("f", "value", "gradient", "policy"):
        np.testing.assert_array_equal(getattr(again, evaluate)(t, x), getattr(solution, evaluate)(t, x))


def test_spectral_lines_come_back_bit_for_bit(tmp_path: Path) -> None:
    solution = make_solution(3, "gll")
    save_solution(tmp_path / "a.npz", solution)
    basis = load_solution(tmp_path / "a.npz", solution.problem).space.spatial
    assert isinstance(basis, SpectralBasis)
    for line, written in zip(basis.lines, spectral(3).lines, strict=True):
        assert line.degree == written.degree
        for name in ("grid", "nodes", "weights", "derivative", "laplacian"):
            np.testing.assert_array_equal(getattr(line, name), getattr(written, name))


def test_splines_come_back_with_their_knots_and_faces(tmp_path: Path) -> None:
    problem = zoo.get("reflected", dim=2)
    space = Space(problem, cells=(3, 4), time_cells=2, element="B3", time_degree=3, time_smooth=True)
    of = constant_gauge(problem, space.spatial.nodes, space.time.nodes)
    exact = problem.exact
    assert exact is not None
    f = space.interpolate(lambda t, x: of.u(t, x, exact.value(t, x)))
    settings = {"problem": problem, "coefficients": f, "gauge": of, "method": "interpolant", "status": "ok"}
    save_solution(tmp_path / "a.npz", Solution(space=space, **settings))  # type: ignore[arg-type]
    again = load_solution(tmp_path / "a.npz", problem)
    assert isinstance(again, Solution)
    basis, written = again.space.spatial, space.spatial
    assert isinstance(basis, SplineBasis)
    assert isinstance(written, SplineBasis)
    assert basis.flat
    assert written.flat
    assert (basis.element, again.space.time.kind) == ("B3", "B3")
    for one, other in zip((*basis.axes, again.space.time), (*written.axes, space.time), strict=True):
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.cell_dofs, other.cell_dofs)


def test_paths_come_back_bit_for_bit(tmp_path: Path) -> None:
    paths = sample_paths(zoo.get("lq", dim=2), n=7, steps=3, rng=0)
    save_paths(tmp_path / "paths.npz", paths)
    again = load_paths(tmp_path / "paths.npz")
    np.testing.assert_array_equal(again.t, paths.t)
    np.testing.assert_array_equal(again.x, paths.x)
    assert again.scheme == paths.scheme


def test_the_file_has_the_name_that_was_given(tmp_path: Path) -> None:
    """Without a suffix too: NumPy's own functions would add one."""
    save_paths(tmp_path / "no_suffix", sample_paths(zoo.get("lq"), n=2, steps=1, rng=0))
    assert [path.name for path in tmp_path.iterdir()] == ["no_suffix"]


def test_the_file_holds_no_pickle(tmp_path: Path) -> None:
    save_solution(tmp_path / "a.npz", make_solution())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)


def test_an_old_file_survives_a_write_that_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.npz"
    save_solution(target, make_solution())
    before = target.read_bytes()
    with pytest.raises(OutputError, match="stats hold a object, which cannot be written"):
        save_solution(target, make_solution(stats={"what": object()}))
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old", encoding="utf-8")

    def interrupted() -> None:
        with atomic_file(target) as part:
            part.write_text("half", encoding="utf-8")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert target.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with atomic_file(target) as part:
        part.write_text("new", encoding="utf-8")
    assert target.read_text(encoding="utf-8") == "new"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"

    def interrupted() -> None:
        with atomic_folder(target) as part:
            (part / "a.txt").write_text("half", encoding="utf-8")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as part:
        (part / "a.txt").write_text("new", encoding="utf-8")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a.txt"]
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_files_of_other_names_stay_in_a_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")
    with atomic_folder(tmp_path) as part:
        (part / "a.txt").write_text("new", encoding="utf-8")
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {
        "notes.txt": "mine",
        "a.txt": "new",
    }


def _written(folder: Path, element: str = "hermite") -> tuple[Path, ControlProblem]:
    solution = make_solution(1, element)
    save_solution(folder / "a.npz", solution)
    return folder / "a.npz", solution.problem


def _rewritten(folder: Path, element: str = "hermite", **changes: FloatArray) -> Path:
    path, _ = _written(folder, element)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    with path.open("wb") as stream:
        np.savez(stream, **{name: a for name, a in {**arrays, **changes}.items() if a.size})
    return path


def _truncated(folder: Path, fraction: float) -> Path:
    path, _ = _written(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    return path


def _corrupted(folder: Path) -> Path:
    path, _ = _written(folder)
    content = bytearray(path.read_bytes())
    middle = content.find(b"coefficients.npy") + 200
    content[middle : middle + 20] = bytes(20)
    path.write_bytes(bytes(content))
    return path


def _text(folder: Path) -> Path:
    (folder / "a.npz").write_text("not an archive", encoding="utf-8")
    return folder / "a.npz"


def _array(folder: Path) -> Path:
    with (folder / "a.npz").open("wb") as stream:
        np.save(stream, np.ones(3))
    return folder / "a.npz"


def _paths_file(folder: Path) -> Path:
    save_paths(folder / "p.npz", sample_paths(zoo.get("lq"), n=2, steps=1, rng=0))
    return folder / "p.npz"


def _file(folder: Path) -> Path:
    (folder / "file").write_text("", encoding="utf-8")
    return folder / "file"


def _load(path: Path) -> Solution:
    return load_solution(path, zoo.get("lq"))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: _load(folder / "none.npz"), "there is no file .*none.npz"),
    "a folder": (lambda folder: _load(folder), "there is no file"),
    "not an archive": (lambda folder: _load(_text(folder)), "is not a complete file of kind 'fem_hjb solution 1'"),
    "a bare array": (lambda folder: _load(_array(folder)), "is not a complete file of kind"),
    "empty": (lambda folder: _load(_truncated(folder, 0.0)), "is not a complete file"),
    "cut in half": (lambda folder: _load(_truncated(folder, 0.5)), "is not a complete file"),
    "last bytes missing": (lambda folder: _load(_truncated(folder, 0.99)), "is not a complete file"),
    "bytes overwritten": (lambda folder: _load(_corrupted(folder)), "is not a complete file"),
    "paths instead": (lambda folder: _load(_paths_file(folder)), "of kind 'fem_hjb paths 1', expected 'fem_hjb solu"),
    "solution instead": (lambda folder: load_paths(_written(folder)[0]), "expected 'fem_hjb paths 1'"),
    "no gauge": (lambda folder: _load(_rewritten(folder, gauge=np.empty(0))), "is damaged: 'gauge'"),
    "short coefficients": (
        lambda folder: _load(_rewritten(folder, coefficients=np.ones(3))),
        r"is damaged: coefficients must have shape \(5, 10\)",
    ),
    "no degrees": (lambda folder: _load(_rewritten(folder, "gll", degrees=np.empty(0))), "is damaged: 'degrees'"),
    "degrees of two axes": (
        lambda folder: _load(_rewritten(folder, "gll", degrees=np.array([7, 7]))),
        r"is damaged: 1 grids but degrees of shape \(2,\)",
    ),
    "a degree of 7.5": (
        lambda folder: _load(_rewritten(folder, "gll", degrees=np.array([7.5]))),
        "is damaged: the degree of GLL elements must be a positive integer, got 7.5",
    ),
    "another degree": (
        lambda folder: _load(_rewritten(folder, "gll", degrees=np.array([6]))),
        r"is damaged: coefficients must have shape \(9, 13\)",
    ),
    "splines made flat": (
        lambda folder: _load(_rewritten(folder, "B3", flat=np.array(True))),
        r"is damaged: coefficients must have shape \(5, 5\)",
    ),
    "another temperature": (
        lambda folder: load_solution(_written(folder)[0], zoo.get("lq", temperature=0.123)),
        "holds a solution of 'lq' with .*, but the problem given has .*temperature=0.123",
    ),
    "no folder to write to": (
        lambda folder: save_solution(folder / "no" / "a.npz", make_solution()),
        "cannot write .*: there is no folder",
    ),
    "a folder in the way": (lambda folder: save_solution(folder, make_solution()), "it is a folder"),
    "a file in the way of a folder": (
        lambda folder: atomic_folder(_file(folder)).__enter__(),
        "cannot write into .*: it is a file",
    ),
    "a file where a parent should be": (
        lambda folder: atomic_folder(_file(folder) / "out").__enter__(),
        "cannot write into",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(kind: str, tmp_path: Path) -> None:
    call, message = BAD_FILES[kind]
    with pytest.raises(OutputError, match=message):
        call(tmp_path)
