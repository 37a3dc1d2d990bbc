"""Files: bitwise round trips, and never a half-written or silently misread one."""

import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skfem

from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, constant_gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.files import OtherProblemWarning, load_paths, load_solution, save_paths, save_solution
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.space import LineBasis, Space, SplineBasis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.archives import checksum
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


def _changed(path: Path, changes: Mapping[str, FloatArray | None]) -> Path:
    """A file with other arrays in it, none where None is given, written as NumPy writes them."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    with path.open("wb") as stream:
        np.savez(stream, **{name: a for name, a in {**arrays, **changes}.items() if a is not None})
    return path


def _rewritten(folder: Path, element: str = "hermite", **changes: FloatArray | None) -> Path:
    """A file with other arrays in it that says so itself: what nobody has damaged, but is no solution."""
    path = _changed(_written(folder, element)[0], changes)
    with np.load(path) as archive:
        text = json.loads(str(archive["text"]))
        text["checksums"] = {k: checksum(archive[k]) for k in archive.files if k not in ("text", "kind")}
    return _changed(path, {"text": np.array(json.dumps(text))})


def _retold(folder: Path, **changes: object) -> Path:
    path, _ = _written(folder)
    with np.load(path) as archive:
        text = json.loads(str(archive["text"])) | changes
    return _changed(path, {"text": np.array(json.dumps(text))})


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
    "no gauge": (lambda folder: _load(_rewritten(folder, gauge=None)), "is damaged: 'gauge'"),
    "short coefficients": (
        lambda folder: _load(_rewritten(folder, coefficients=np.ones(3))),
        r"is damaged: coefficients must have shape \(5, 10\)",
    ),
    "no degrees": (lambda folder: _load(_rewritten(folder, "gll", degrees=None)), "is damaged: 'degrees'"),
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
    "words for numbers": (lambda folder: _load(_retold(folder, floor="high")), "is damaged: floor must be"),
    "no name": (lambda folder: _load(_retold(folder, problem=None, name=3)), "is damaged"),
    "panels that are not there": (lambda folder: _load(_retold(folder, panels=10**12)), "is damaged: 'time_grid'"),
    "text that is a list": (lambda folder: _load(_changed(_written(folder)[0], {"text": np.array("[]")})), "complete"),
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


def _spoiled_header(path: Path, header: bytes) -> Path:
    """A file whose coefficients begin with another header, of the right length and with the right CRC."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    old = members["coefficients.npy"]
    (length,) = struct.unpack("<H", old[8:10])
    members["coefficients.npy"] = old[:10] + header.ljust(length - 1) + b"\n" + old[10 + length :]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


HEADERS = {
    "a parenthesis left open (TokenError)": b"{'descr': (",
    "a header that is no text (SyntaxError)": b"\xff\xfe {",
    "an absurd shape (MemoryError)": b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, )}",
    "a shape beyond integers (OverflowError)": b"{'descr': '<f8', 'fortran_order': False, 'shape': (10**30, )}",
    "a huge shape": b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000000000, )}",
    "a negative shape": b"{'descr': '<f8', 'fortran_order': False, 'shape': (-3, )}",
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (3, )}",
    "a type that there is not": b"{'descr': '<z9', 'fortran_order': False, 'shape': (3, )}",
    "deep nesting (RecursionError)": b"(" * 117,
}


@pytest.mark.parametrize("header", HEADERS)
def test_damaged_headers_are_told_as_such(header: str, tmp_path: Path) -> None:
    path = _spoiled_header(_written(tmp_path)[0], HEADERS[header])
    with pytest.raises(OutputError, match="is not a complete file of kind"):
        _load(path)


@pytest.mark.parametrize(("offset", "value"), [(8, 97), (8, 99), (6, 1), (6, 0x41)])
def test_compressions_and_ciphers_that_nobody_knows_are_told_as_damage(offset: int, value: int, tmp_path: Path) -> None:
    """NotImplementedError and RuntimeError of zipfile. The same two bytes, in both headers of the first member."""
    path, _ = _written(tmp_path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        central = archive.start_dir
    content[offset : offset + 2] = content[central + offset + 2 : central + offset + 4] = struct.pack("<H", value)
    path.write_bytes(bytes(content))
    with pytest.raises(OutputError, match="is not a complete file of kind"):
        _load(path)


def _alike(one: object, other: object) -> bool:
    """Whether two solutions are the same to the bit, space and gauge included."""
    if isinstance(one, ProductSolution) and isinstance(other, ProductSolution):
        pairs = zip(one.parts, other.parts, strict=True)
        return all(i == j and _alike(a, b) for (i, a), (j, b) in pairs)
    if not (isinstance(one, Solution) and isinstance(other, Solution)):
        return False
    x = np.random.default_rng(3).uniform(-1.0, 1.0, (20, one.problem.dim))
    same = np.array_equal(one.coefficients, other.coefficients) and np.array_equal(
        one.value(0.3, x), other.value(0.3, x)
    )
    return same and repr(one.stats) == repr(other.stats) and one.status == other.status


def _product() -> ProductSolution:
    problem = zoo.get("lq", dim=2)
    part = make_solution(1)
    return ProductSolution(problem=problem, parts=(((0,), part), ((1,), make_solution(1, "P3"))), status="by hand")


@pytest.mark.parametrize("make", [make_solution, lambda: make_solution(1, "gll"), _product])
def test_no_byte_that_is_wrong_is_read_as_something_else(make: Callable[[], Solution], tmp_path: Path) -> None:
    """Bytes inverted all over the file: it is refused as damaged, or read as it was (the byte is in a date, say)."""
    path, solution = tmp_path / "a.npz", make()
    save_solution(path, solution)
    whole, solution = path.read_bytes(), load_solution(path, solution.problem)
    read = 0
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            again = load_solution(path, solution.problem)
        except OutputError:
            continue
        read += 1
        assert _alike(again, solution), place
    assert read < 0.2 * len(whole) / 41


@pytest.mark.parametrize("make", [make_solution, _product])
def test_no_part_of_a_file_is_read_as_a_whole(make: Callable[[], Solution], tmp_path: Path) -> None:
    path, solution = tmp_path / "a.npz", make()
    save_solution(path, solution)
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(OutputError, match="is not a complete file"):
            load_solution(path, solution.problem)


def _names(path: Path) -> list[str]:
    with np.load(path) as archive:
        return [name for name in archive.files if name not in ("kind", "text")]


def test_an_array_that_somebody_has_taken_out_put_in_or_changed_is_missed(tmp_path: Path) -> None:
    """NumPy's CRCs would all be right."""
    path, problem = _written(tmp_path, "B3")
    whole = path.read_bytes()
    for name in _names(path):
        path.write_bytes(whole)
        with np.load(path) as archive:
            array = archive[name]
        changed = np.array(not array) if array.dtype == np.bool_ else array + 1e-9
        for changes, told in (({name: None}, "is missing"), ({name: changed}, "has another checksum")):
            path.write_bytes(whole)
            with pytest.raises(OutputError, match=f"changed since it was written: the array '{name}' {told}"):
                load_solution(_changed(path, changes), problem)
    path.write_bytes(whole)
    with pytest.raises(OutputError, match="the array 'gauge_P' is new"):
        load_solution(_changed(path, {"gauge_P": np.ones((1, 1, 1))}), problem)


def test_paths_that_somebody_has_changed_are_missed(tmp_path: Path) -> None:
    path = _paths_file(tmp_path)
    with np.load(path) as archive:
        x = archive["x"] + 1e-12
    with pytest.raises(OutputError, match="changed since it was written: the array 'x' has another checksum"):
        load_paths(_changed(path, {"x": x}))


OU = zoo.get("lq", dim=2)
FARTHER = Box([-9.0, -9.0], [9.0, 9.0], boundary=[("absorbing", "natural"), ("natural", "natural")])
WALL = replace(OU, domain=replace(FARTHER, exit_reward=lambda t, x: 0.0 * x[..., 0]), exact=None)
OTHERS: dict[str, tuple[ControlProblem, ControlProblem, str]] = {
    "a double well": (zoo.get("lq"), zoo.get("double-well", temperature=1.0), "drift"),
    "a drift": (OU, replace(OU, drift=lambda t, x: -1.00001 * x), "drift"),
    "a drift later on": (OU, replace(OU, drift=lambda t, x: OU.b(t, x) - (np.asarray(t) > 0.3)[..., None]), "drift"),
    "a diffusion": (OU, replace(OU, diffusion=1.00001 * np.asarray(OU.constant_diffusion)), "diffusion"),
    "a callable diffusion": (
        OU,
        replace(OU, diffusion=lambda t, x: OU.Lambda(t, x) * (1 + x[..., :1, None] ** 2)),
        "diffusion",
    ),
    "a terminal reward": (OU, replace(OU, terminal_reward=lambda x: OU.y(x) + 1e-4), "terminal_reward"),
    "a running reward": (OU, replace(OU, running_reward=lambda t, x: OU.r(t, x) + 1e-4), "running_reward"),
    "a law": (OU, replace(OU, initial_law=Gaussian([0.1, 0.0], OU.initial_law.covariance)), "mean of the initial law"),
    "a wider law": (OU, replace(OU, initial_law=Gaussian([0.0, 0.0], 1.5)), "covariance of the initial law"),
    "a domain": (OU, replace(OU, domain=FARTHER), "domain"),
    "a corner": (WALL, replace(WALL, domain=Box([-9.0, -9.0], [9.0, 9.1], WALL.domain.boundary)), "corners"),  # type: ignore[union-attr]
    "a face": (
        WALL,
        replace(WALL, domain=replace(FARTHER, boundary=[("absorbing", "reflecting"), ("natural", "natural")])),
        "faces of the domain",
    ),
    "one more face": (
        WALL,
        replace(WALL, domain=replace(WALL.domain, boundary=[("absorbing", "absorbing"), ("natural", "natural")])),  # type: ignore[type-var]
        "faces of the domain",
    ),
    "an exit reward": (
        WALL,
        replace(WALL, domain=replace(FARTHER, exit_reward=lambda t, x: 1e-4 * x[..., 1])),
        "exit_reward",
    ),
    "a callable that fails": (
        OU,
        replace(OU, terminal_reward=lambda x: np.where(x[..., 0] > 1.0, np.nan, OU.y(x))),
        r"callables, one of which fails where it did not \(terminal_reward\(x\) is not finite",
    ),
}


def _stored(folder: Path, problem: ControlProblem) -> Path:
    box = Box([-9.0] * problem.dim, [9.0] * problem.dim)
    space = Space(replace(problem, domain=None), cells=2, time_cells=1, box=box)
    settings = {"space": space, "coefficients": np.ones(space.shape), "method": "by hand", "status": "ok"}
    of = Gauge(temperature=problem.temperature, horizon=problem.horizon, terminal=0.0, running=0.0)
    save_solution(folder / "a.npz", Solution(problem=problem, gauge=of, **settings))  # type: ignore[arg-type]
    return folder / "a.npz"


@pytest.mark.parametrize("other", OTHERS)
def test_a_solution_of_another_problem_is_refused_or_read_with_a_warning(other: str, tmp_path: Path) -> None:
    problem, given, what = OTHERS[other]
    given = replace(given, horizon=problem.horizon, temperature=problem.temperature)
    path = _stored(tmp_path, problem)
    with pytest.raises(OutputError, match=f"the problem given, {given.name!r}, has another .*{what}"):
        load_solution(path, given)
    with pytest.warns(OtherProblemWarning, match=what):
        read = load_solution(path, given, check=False)
    assert read.problem is given
    assert load_solution(path, problem).problem is problem


@pytest.mark.parametrize("name", zoo.names())
def test_the_same_problem_made_again_is_told_to_be_the_same(name: str, tmp_path: Path) -> None:
    """In other callables of the same values, to rounding, too."""
    problem = zoo.get(name, dim=min(zoo.dims(name) or (1,)))
    path = _stored(tmp_path, problem)
    again = zoo.get(name, dim=problem.dim)
    wrapped = replace(
        again,
        drift=lambda t, x: again.b(t, x) * (1 + 3e-7),
        diffusion=lambda t, x: again.Lambda(t, x) * (1 - 3e-7),
        terminal_reward=lambda x: again.y(x) * (1 + 1e-9),
        running_reward=lambda t, x: again.r(t, x) + 1e-9,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (again, wrapped):
            assert load_solution(path, given).problem is given


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("changed", [1.0, 1.00001])
def test_units_do_not_matter_to_what_counts_as_another_problem(unit: float, changed: float, tmp_path: Path) -> None:
    """Coordinates in another unit, rewards in another: the same answer."""
    problem = ControlProblem(
        dim=1,
        horizon=unit**2,
        temperature=unit**3,
        drift=lambda t, x: -changed * x / unit**2,
        diffusion=1.0,
        terminal_reward=lambda x: -unit * x[..., 0] ** 2,
        initial_law=Gaussian([0.0], unit**2),
    )
    space = Space(problem, cells=2, time_cells=1, box=Box([-9.0 * unit], [9.0 * unit]))
    of = constant_gauge(problem, space.spatial.nodes, space.time.nodes)
    settings = {"space": space, "gauge": of, "coefficients": np.ones(space.shape), "method": "by hand"}
    save_solution(tmp_path / "a.npz", Solution(problem=problem, status="ok", **settings))  # type: ignore[arg-type]
    given = replace(problem, drift=lambda t, x: -x / unit**2)
    if changed == 1.0:
        assert load_solution(tmp_path / "a.npz", given).problem is given
    else:
        with pytest.raises(OutputError, match="has another drift;"):
            load_solution(tmp_path / "a.npz", given)


def test_files_that_say_nothing_of_their_problem_are_read_with_a_warning_only(tmp_path: Path) -> None:
    path, problem = _written(tmp_path)
    solution = load_solution(path, problem)
    with np.load(path) as archive:
        text = json.loads(str(archive["text"]))
        old = {name: None for name in archive.files if name.startswith("problem_")}
    del text["checksums"]
    _changed(path, {**old, "text": np.array(json.dumps(text))})
    with pytest.raises(OutputError, match=r"does not say more of its problem, as older files do not; .* check=False"):
        load_solution(path, problem)
    with pytest.warns(OtherProblemWarning, match="does not say more of its problem"):
        assert _alike(load_solution(path, problem, check=False), solution)
