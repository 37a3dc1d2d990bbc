"""What mesh files say beside cells: dimensions, names of parts, files of scikit-fem, cells of mixed kind and order."""

import json
from pathlib import Path

import meshio
import numpy as np
import pytest
import skfem
from skfem.io import json as skfem_json

import fem_hjb as fh
from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import DIMENSION, KINDS, mesh_kind
from fem_hjb.spaces.mesh_files import load_mesh
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.support.errors import DomainError

MESHES = Path(__file__).parents[2] / "meshes"
SQUARE = [[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0], [1, 1, 0], [2, 1, 0]]
LEFT, RIGHT = [0, 1, 4, 3], [1, 2, 5, 4]  # two quadrilaterals side by side


def middles(mesh, facets):
    return mesh.p[:, mesh.facets[:, facets]].mean(axis=1)


@pytest.mark.parametrize("name", ["interval", "disc", "disc_quads", "lshape", "ball", "plate"])
def test_the_highest_dimension_of_cells_decides(name):
    mesh, told = (load_mesh(MESHES / f"{name}.msh", dim) for dim in (None, {"interval": 1, "ball": 3}.get(name, 2)))
    np.testing.assert_array_equal(mesh.p, told.p)
    np.testing.assert_array_equal(mesh.t, told.t)


def test_groups_of_gmsh_are_boundaries_and_subdomains():
    mesh = fh.load_mesh(MESHES / "plate.msh")
    assert set(mesh.boundaries) == {"rim", "left", "right"}
    circles = {"rim": (0.0, 2.0), "left": (-0.9, 0.4), "right": (0.9, 0.6)}
    for name, (x, radius) in circles.items():
        ends = mesh.p[:, mesh.facets[:, mesh.boundaries[name]]] - np.array([x, 0.0])[:, None, None]
        np.testing.assert_allclose(np.linalg.norm(ends, axis=0), radius, rtol=1e-9)
    held = np.sort(np.concatenate(list(mesh.boundaries.values())))
    np.testing.assert_array_equal(held, np.sort(mesh.boundary_facets()))
    np.testing.assert_array_equal(mesh.subdomains["plate"], np.arange(mesh.t.shape[1]))


def grouped(path, **more):
    """Two squares of groups 5 and 6, their left side of group 1, the side between them of group 2, in a file."""
    lines, numbers = [[3, 0], [1, 4], [2, 5]], np.array([1, 2, 0])
    cells = [("line", lines), ("quad", [LEFT, RIGHT])]
    data = {"gmsh:physical": [numbers, np.array([5, 6])]}
    if path.suffix == ".msh":  # the format wants these, too
        data["gmsh:geometrical"] = [np.array([1, 2, 3]), np.array([1, 2])]
        more["file_format"] = "gmsh22"
    field = more.pop("field_data", None)
    meshio.Mesh(np.array(SQUARE), cells, cell_data=data, field_data=field).write(path, **more)
    return path


def test_names_go_with_number_and_dimension(tmp_path):
    """Number 5 is called "wall" among lines: the group 5 of cells has no name, and is not called so."""
    names = {"wall": np.array([1, 1]), "gate": np.array([5, 1]), "east": np.array([6, 2])}
    mesh = load_mesh(grouped(tmp_path / "a.msh", field_data=names))
    assert {name: cells.tolist() for name, cells in mesh.subdomains.items()} == {"5": [0], "east": [1]}
    np.testing.assert_allclose(middles(mesh, mesh.boundaries["wall"]), [[0.0], [0.5]])
    np.testing.assert_allclose(middles(mesh, mesh.boundaries["2"]), [[1.0], [0.5]])  # within
    assert set(mesh.boundaries) == {"wall", "2"}  # 0 is the number of no group


@pytest.mark.parametrize("ending", [".vtu", ".xdmf", ".vtk"])
def test_groups_without_names_are_called_by_their_number(ending, tmp_path):
    mesh = load_mesh(grouped(tmp_path / f"a{ending}"))
    assert {name: cells.tolist() for name, cells in mesh.subdomains.items()} == {"5": [0], "6": [1]}
    assert set(mesh.boundaries) == {"1", "2"}


def test_cell_sets_of_meshio(tmp_path):
    cells = [("line", [[3, 0], [2, 5]]), ("quad", [LEFT, RIGHT])]
    sets = {"ends": [np.array([0, 1]), np.array([], dtype=int)], "east": [np.array([], dtype=int), np.array([1])]}
    path = tmp_path / "a.inp"
    meshio.Mesh(np.array(SQUARE), cells, cell_sets=sets).write(path)
    mesh = load_mesh(path)
    np.testing.assert_allclose(middles(mesh, mesh.boundaries["ends"]), [[0.0, 2.0], [0.5, 0.5]])
    assert mesh.subdomains["east"].tolist() == [1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".json", ".vtu"])
def test_what_scikit_fem_saves_comes_back(kind, ending, tmp_path):
    dim = DIMENSION[kind]
    mesh = box_mesh(Box(np.zeros(dim), np.arange(1.0, dim + 1)), 3, kind)
    mesh = mesh.with_boundaries({"low": lambda x: x[0] < 1e-9, "high": lambda x: x[dim - 1] > dim - 1e-9})
    mesh = mesh.with_subdomains({"half": lambda x: x[0] < 0.5})
    save = skfem_json.to_file if ending == ".json" else skfem.Mesh.save
    save(mesh, tmp_path / f"a{ending}")
    again = load_mesh(tmp_path / f"a{ending}")
    assert mesh_kind(again) == kind
    np.testing.assert_array_equal(again.p, mesh.p)
    for name, facets in mesh.boundaries.items():
        np.testing.assert_array_equal(middles(again, again.boundaries[name]), middles(mesh, np.sort(facets)))
    np.testing.assert_array_equal(again.subdomains["half"], mesh.subdomains["half"])


def test_quadrilaterals_are_cut_when_asked(tmp_path):
    path = grouped(tmp_path / "a.vtu")
    mesh = load_mesh(path, simplices=True)
    assert (mesh_kind(mesh), mesh.t.shape[1]) == ("tri", 4)
    assert {name: len(cells) for name, cells in mesh.subdomains.items()} == {"5": 2, "6": 2}
    for name, middle in (("5", 0.5), ("6", 1.5)):
        assert mesh.p[0, mesh.t[:, mesh.subdomains[name]]].mean() == pytest.approx(middle)
    np.testing.assert_allclose(middles(mesh, mesh.boundaries["1"]), [[0.0], [0.5]])
    saved = box_mesh(Box([0.0, 0.0], [1.0, 1.0]), 4, "quad").with_boundaries({"low": lambda x: x[0] < 1e-9})
    saved.save(tmp_path / "b.vtu")
    cut = load_mesh(tmp_path / "b.vtu", simplices=True)
    np.testing.assert_allclose(middles(cut, cut.boundaries["low"])[0], 0.0)
    assert len(cut.boundaries["low"]) == 4


def test_quadrilaterals_are_cut_along_the_shorter_diagonal(tmp_path):
    points = [[0.0, 0, 0], [2, 0, 0], [3, 1, 0], [1, 1, 0]]  # 1 to 3 is shorter than 0 to 2
    for turn in range(4):
        meshio.Mesh(np.array(points), [("quad", [np.roll([0, 1, 2, 3], turn)])]).write(tmp_path / "a.vtu")
        mesh = load_mesh(tmp_path / "a.vtu", simplices=True)
        (inner,) = np.setdiff1d(np.arange(mesh.nfacets), mesh.boundary_facets())
        assert sorted(mesh.facets[:, inner].tolist()) == [1, 3]


def test_triangles_and_quadrilaterals_together(tmp_path):
    cells = [("quad", [LEFT]), ("triangle", [[1, 2, 5], [1, 5, 4]])]
    meshio.Mesh(np.array(SQUARE), cells, cell_data={"gmsh:physical": [np.array([5]), np.array([6, 6])]}).write(
        tmp_path / "a.vtu"
    )
    with pytest.raises(DomainError, match=r"it holds 1 quad, 2 triangle.* simplices=True cuts quadrilaterals"):
        load_mesh(tmp_path / "a.vtu")
    mesh = load_mesh(tmp_path / "a.vtu", simplices=True)
    assert mesh.t.shape == (3, 4)
    for name, middle in (("5", 0.5), ("6", 1.5)):
        assert mesh.p[0, mesh.t[:, mesh.subdomains[name]]].mean() == pytest.approx(middle)


def second_order(path, bend):
    points = [[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [1, -bend, 0], [1, 1, 0], [0, 1, 0]]
    lines = {"gmsh:physical": [np.array([3]), np.array([4])]}
    cells = [("line3", [[0, 1, 3]]), ("triangle6", [[0, 1, 2, 3, 4, 5]])]
    meshio.Mesh(np.array(points), cells, cell_data=lines).write(path)
    return path


def test_cells_of_second_order(tmp_path):
    """Straight ones lose nothing; curved ones are kept, or taken by their corners when that is asked for."""
    for path, more in (
        (second_order(tmp_path / "a.vtu", 0.0), {}),
        (second_order(tmp_path / "b.vtu", 0.2), {"straight": True}),
    ):
        mesh = load_mesh(path, **more)
        assert mesh_kind(mesh) == "tri"
        np.testing.assert_array_equal(mesh.p, [[0, 2, 0], [0, 0, 2]])
        np.testing.assert_allclose(middles(mesh, mesh.boundaries["3"]), [[1.0], [0.0]])
    mesh = load_mesh(tmp_path / "b.vtu")
    assert type(mesh) is skfem.MeshTri2
    np.testing.assert_array_equal(np.unique(mesh.p[1]), [-0.2, 0, 1, 2])
    np.testing.assert_array_equal(mesh.boundaries["3"], [0])
    ball = skfem.MeshTet2.from_mesh(skfem.MeshTet1.init_ball(1))
    ball.save(tmp_path / "ball.vtu")
    assert load_mesh(tmp_path / "ball.vtu").t.shape == ball.t.shape  # edges in the middle: straight
    surface = np.setdiff1d(np.unique(ball.dofs.get_facet_dofs(ball.boundary_facets()).flatten()), ball.t)
    ball.doflocs[:, surface] /= np.linalg.norm(ball.doflocs[:, surface], axis=0)
    ball.save(tmp_path / "round.vtu")
    mesh = load_mesh(tmp_path / "round.vtu")
    assert type(mesh) is skfem.MeshTet2
    assert {*map(tuple, mesh.p.T)} == {*map(tuple, ball.p.T)}


def test_vertices_that_only_the_boundary_uses_and_a_third_coordinate(tmp_path):
    """A group of a point that is no vertex of a cell; numbers of vertices move on, names stay where they were."""
    points = np.vstack([[[9.0, 9, 7]], np.array(SQUARE) + np.array([0, 0, 7.0])])
    cells = [("vertex", [[0]]), ("line", np.array([[3, 0]]) + 1), ("quad", np.array([LEFT, RIGHT])[:, ::-1] + 1)]
    data = {"gmsh:physical": [np.array([8]), np.array([1]), np.array([5, 5])]}
    meshio.Mesh(points, cells, cell_data=data).write(tmp_path / "a.vtu")
    mesh = load_mesh(tmp_path / "a.vtu")
    assert mesh.p.shape == (2, 6)
    np.testing.assert_allclose(middles(mesh, mesh.boundaries["1"]), [[0.0], [0.5]])
    assert set(mesh.boundaries) == {"1"}


def bad_json(path, **changes):
    mesh = box_mesh(Box([0.0, 0.0], [1.0, 1.0]), 2, "tri").with_boundaries({"low": lambda x: x[0] < 1e-9})
    path.write_text(json.dumps({**mesh.to_dict(), **changes}))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": None}, "not JSON as skfem.io.json writes it"),
        ({"t": [[0, 1, 99]]}, "cells refer to vertices 0 to 99, it has 9|not JSON"),
        ({"boundaries": {"low": [99]}}, "not JSON as skfem.io.json writes it"),
        ({"boundaries": {"low": ["a"]}}, "not JSON as skfem.io.json writes it"),
        ({"t": [[0, 1, 3]], "boundaries": None}, "vertices that belong to no cell"),
        ({"p": [[0.0, 0, 0]] * 9, "t": [[0, 1, 2, 3, 4]]}, "not JSON as skfem.io.json"),
    ],
)
def test_json_that_is_no_mesh(change, message, tmp_path):
    with pytest.raises(DomainError, match=message):
        load_mesh(bad_json(tmp_path / "a.json", **change))


def test_json_that_is_none(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DomainError, match=r"not JSON as skfem.io.json writes it"):
        load_mesh(tmp_path / "a.json")


def test_what_is_refused(tmp_path):
    outside = [("line", [[0, 4]]), ("quad", [LEFT, RIGHT])]  # a diagonal
    data = {"gmsh:physical": [np.array([1]), np.array([5, 5])]}
    meshio.Mesh(np.array(SQUARE), outside, cell_data=data).write(tmp_path / "a.vtu")
    with pytest.raises(DomainError, match="gives the name '1' to 1 cells of dimension 1, but 1 of them are no facets"):
        load_mesh(tmp_path / "a.vtu")
    with pytest.raises(DomainError, match="load_mesh: simplices must be True or False, got"):
        load_mesh(tmp_path / "a.vtu", simplices="yes")
    with pytest.raises(DomainError, match="load_mesh: straight must be True or False, got"):
        load_mesh(tmp_path / "a.vtu", straight=1)
    with pytest.raises(DomainError, match="dim must be a positive integer, got '2'"):
        load_mesh(tmp_path / "a.vtu", "2")
    meshio.Mesh(np.array(SQUARE), [("vertex", [[i] for i in range(6)])]).write(tmp_path / "points.vtu")
    with pytest.raises(DomainError, match="a mesh of dimension 0; a mesh needs cells of kind line"):
        load_mesh(tmp_path / "points.vtu")
    wedge = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]]
    meshio.Mesh(np.array(wedge), [("wedge", [[0, 1, 2, 3, 4, 5]])]).write(tmp_path / "wedge.vtu")
    with pytest.raises(DomainError, match="1 wedge; expected straight-edged cells of kind tetra or hexahedron"):
        load_mesh(tmp_path / "wedge.vtu", simplices=True)
