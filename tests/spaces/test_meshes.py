"""Boxes, structured meshes, meshes from files, and what is refused."""

from math import factorial
from pathlib import Path

import meshio
import numpy as np
import pytest
import skfem
from scipy.stats import multivariate_normal, norm

from fem_hjb.paths.extent import truncation_box
from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import DIMENSION, KINDS, mesh_kind
from fem_hjb.problems.laws import Gaussian, GaussianMixture, PointMass, Uniform
from fem_hjb.problems.locate import corner_jacobians
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.spaces.mesh_files import as_mesh, load_mesh
from fem_hjb.spaces.meshes import box_mesh, check_mesh
from fem_hjb.support.errors import DomainError

MESHES = Path(__file__).parents[2] / "meshes"
# dimension, kind, volume of the domain, how much of it straight edges may cut off
FILES = {
    "interval": (1, "line", 12.0, 1e-12),
    "disc": (2, "tri", 16 * np.pi, 0.1),
    "disc_quads": (2, "quad", 16 * np.pi, 0.1),
    "annulus": (2, "tri", 15 * np.pi, 0.15),
    "lshape": (2, "tri", 64 - 2.5**2, 1e-10),
    "ball": (3, "tet", 256 / 3 * np.pi, 9.0),
}
VTK_CORNERS = {  # meshio's name and the reference cell in VTK's order
    "line": ("line", [[0], [1]]),
    "tri": ("triangle", [[0, 0], [1, 0], [0, 1]]),
    "quad": ("quad", [[0, 0], [1, 0], [1, 1], [0, 1]]),
    "tet": ("tetra", [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "hex": (
        "hexahedron",
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]],
    ),
}


def ou(dim=1, law=None, diffusion=1.0, rate=0.5, **more):
    return ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=LinearDrift(-rate * np.eye(dim), np.zeros(dim)),
        diffusion=diffusion,
        terminal_reward=lambda x: -(x**2).sum(axis=-1),
        initial_law=law or Gaussian(np.zeros(dim), 1.0),
        name="ou",
        **more,
    )


def volume(mesh):
    """The sum of the cells' volumes; of hexahedra only if they are parallelepipeds."""
    dim, corners = mesh.p.shape[0], len(mesh.t)
    determinants = np.abs(np.linalg.det(corner_jacobians(mesh.p, mesh.t, mesh_kind(mesh))))
    return determinants.mean(axis=0).sum() / (factorial(dim) if corners == dim + 1 else 1)


# truncation boxes


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_default_box_of_gaussian_marginals_is_six_standard_deviations_wide(dim):
    deviations = np.array([1.0, 0.1, 30.0])[:dim]
    centre = np.array([5.0, -1.0, 0.0])[:dim]
    problem = ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=LinearDrift(-0.5 * np.eye(dim), 0.5 * centre),
        diffusion=deviations**2,
        terminal_reward=lambda x: -(x**2).sum(axis=-1),
        initial_law=Gaussian(centre, deviations**2),
    )
    found = truncation_box(problem)
    lower, upper = found.box.bounds
    reach = np.concatenate([centre - lower, upper - centre]) / np.tile(deviations, 2)
    assert (reach > 5.6).all()
    assert (reach < 6.9).all()
    assert found.excluded_mass == 0.0
    assert found.samples == 20000


@pytest.mark.parametrize("dim", [1, 2])
def test_the_excluded_mass_is_that_of_the_exact_marginal(dim):
    """A point start that spreads: the mass outside grows in time, and the largest must be the one reported."""
    spread = np.array([[1.0, 0.3], [0.3, 0.8]])[:dim, :dim]
    problem = ou(dim, law=PointMass(np.zeros(dim)), diffusion=spread)
    found = truncation_box(problem, quantile=0.02, margin=0.02, rng=4)
    lower, upper = found.box.bounds
    outside = [
        1 - multivariate_normal(cov=spread * (1 - np.exp(-t))).cdf(upper, lower_limit=lower)
        for t in np.linspace(0, 1, 51)[1:]
    ]
    exact = max(outside)
    assert 0.01 * dim < exact < 0.04 * dim
    assert abs(found.excluded_mass - exact) < 4 * np.sqrt(exact / found.samples)
    wider = truncation_box(problem, quantile=0.02, margin=0.2, rng=4)
    assert wider.excluded_mass < found.excluded_mass


def test_the_box_covers_the_initial_law_also_when_the_process_contracts_or_leaves():
    contracting = truncation_box(ou(law=Gaussian([0.0], 9.0), rate=5.0)).box.bounds
    assert contracting[0] < -15
    assert contracting[1] > 15
    start = truncation_box(ou(2, law=PointMass([8.0, -8.0]), diffusion=0.01, rate=3.0)).box
    assert start.contains([[8.0, -8.0], [0.3, -0.3]]).all()
    two_peaks = truncation_box(ou(law=GaussianMixture([0.99, 0.01], [[0.0], [20.0]], [[[1.0]], [[0.01]]]))).box
    assert two_peaks.contains([[20.3]]).all()


def test_the_box_is_the_same_bits_for_the_same_seed():
    problem = ou()
    one, two, other = (truncation_box(problem, n=4000, quantile=1e-3, rng=seed).box.bounds for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert (np.array(one) != np.array(other)).all()


def test_the_box_of_a_reflected_process_is_its_own():
    domain = Box([0.0, 0.0], [1.0, 2.0])
    found = truncation_box(ou(2, law=Uniform(domain), domain=domain))
    assert found.box is domain
    assert (found.excluded_mass, found.samples) == (0.0, 0)


def exit_reward(t, x):
    return 1.0 + 0.0 * x[..., 0]


def test_only_the_faces_at_infinity_are_truncated():
    words = [("natural", "absorbing"), ("reflecting", "natural")]
    domain = Box([-np.inf, 0.0], [0.0, np.inf], words, exit_reward)
    problem = ou(2, law=PointMass([-1.0, 0.5]), domain=domain, diffusion=0.25)
    found = truncation_box(problem)
    lower, upper = found.box.bounds
    assert (upper[0], lower[1]) == (0.0, 0.0)
    assert -5.0 < lower[0] < -2.5  # 0.4 is the standard deviation at the end
    assert 1.5 < upper[1] < 4.0
    assert found.box.faces == domain.faces
    assert found.box.exit_reward is exit_reward
    assert (found.samples, found.excluded_mass) == (20000, 0.0)
    again = truncation_box(problem, quantile=0.05, margin=0.0)
    assert 0.05 < again.excluded_mass < 0.12  # 5 per cent at either of the two faces, not at the others


def test_a_box_whose_faces_all_reflect_or_absorb_is_its_own_truncation():
    domain = Box([0.0], [1.0], [("reflecting", "absorbing")])
    found = truncation_box(ou(1, law=PointMass([0.5]), domain=domain))
    assert found.box is domain
    assert (found.excluded_mass, found.samples) == (0.0, 0)


def test_the_mass_beyond_a_finite_natural_face_is_measured():
    domain = Box([-1.0], [np.inf], "natural")
    found = truncation_box(ou(1, law=Gaussian([0.0], 0.2), domain=domain, rate=0.0, diffusion=0.8), n=10_000)
    assert found.box.bounds[0] == -1.0
    exact = norm.cdf(-1.0)  # the law of X_T is N(0, 1)
    assert abs(found.excluded_mass - exact) < 4 * np.sqrt(exact / found.samples)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantile": 0.5}, r"quantile must lie in \(0, 0.5\), got 0.5"),
        ({"quantile": 0.0}, r"quantile must lie in \(0, 0.5\), got 0.0"),
        ({"margin": -0.1}, "margin must be a finite number >= 0, got -0.1"),
        ({"margin": np.nan}, "margin must be a finite number >= 0, got nan"),
        ({"n": 0}, "n must be a positive integer, got 0"),
        ({"n": 5000}, "5000 paths cannot show a quantile of 0.0001; take n >= 10000"),
    ],
)
def test_bad_truncations(given, message):
    with pytest.raises(DomainError, match=message):
        truncation_box(ou(), **given)


# structured meshes


@pytest.mark.parametrize("kind", KINDS)
def test_box_meshes_fill_the_box(kind):
    dim = DIMENSION[kind]
    lower, upper = np.array([-1.0, 2.0, 0.0])[:dim], np.array([1.0, 5.0, 0.5])[:dim]
    box, cells = Box(lower, upper), (4, 3, 2)[:dim]
    mesh = box_mesh(box, cells, kind)
    assert mesh_kind(mesh) == kind
    np.testing.assert_allclose([mesh.p.min(axis=1), mesh.p.max(axis=1)], [lower, upper], atol=1e-15)
    assert mesh.t.shape[1] == np.prod(cells) * {"tri": 2, "tet": 6}.get(kind, 1)
    np.testing.assert_allclose(volume(mesh), np.prod(upper - lower), rtol=1e-13)
    check_mesh(mesh, ou(dim, law=PointMass((lower + upper) / 2)))
    np.testing.assert_array_equal(box_mesh(box, 3, kind).p, box_mesh(box, (3,) * dim, kind).p)


def test_gradings_place_the_grid_lines():
    box = Box([0.0, 10.0], [1.0, 14.0])
    mesh = box_mesh(box, 4, "quad", grading=[None, lambda s: s**2])
    np.testing.assert_allclose(np.unique(mesh.p[0]), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(np.unique(mesh.p[1]), [10, 10.25, 11, 12.25, 14])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, "triangle"), "kind must be one of 'line', 'tri', 'quad', 'tet', 'hex', got 'triangle'"),
        ((4, "tet"), "kind 'tet' is of dimension 3 but the box of dimension 2; use 'tri', 'quad'"),
        ((0, "tri"), "cells on axis 0 must be a positive integer, got 0"),
        (((3, 2.5), "tri"), "cells on axis 1 must be a positive integer, got 2.5"),
        (((3, 3, 3), "tri"), "one entry for each of 2 axes, got 3 and 2"),
        ((4, "tri", [None]), "one entry for each of 2 axes, got 2 and 1"),
        ((4, "tri", [None, 3.0]), "grading of axis 1 must be callable or None, got 3.0"),
        ((4, "tri", lambda s: 2 * s), "grading of axis 0 must map an array on"),
        ((4, "tri", lambda s: 1.0), "grading of axis 0 must map an array on"),
        ((4, "tri", lambda s: np.where(s < 1, 0 * s, 1)), "grading of axis 0 must increase strictly"),
    ],
)
def test_bad_boxes(arguments, message):
    with pytest.raises(DomainError, match=message):
        box_mesh(Box([0.0, 0.0], [1.0, 1.0]), *arguments)


def test_a_box_with_infinite_faces_has_no_mesh():
    with pytest.raises(DomainError, match=r"a mesh needs finite faces, got Box\(.*; truncation_box\(problem\)\.box"):
        box_mesh(Box([0.0], [np.inf], "natural"), 4, "line")


# meshes from files


@pytest.mark.parametrize("name", FILES)
def test_the_mesh_files_hold_what_they_say(name, capfd):
    dim, kind, expected, missing = FILES[name]
    path = MESHES / f"{name}.msh"
    mesh = load_mesh(path, dim)
    assert mesh_kind(mesh) == kind
    assert expected - missing <= volume(mesh) <= expected + 1e-10
    assert path.stat().st_size < 300_000
    inside = {"annulus": [2.0, 0.0]}.get(name, np.zeros(dim))
    problem = ou(dim, law=PointMass(np.asarray(inside)))
    check_mesh(mesh, problem)
    np.testing.assert_array_equal(as_mesh(str(path), problem).p, mesh.p)
    assert as_mesh(mesh, problem) is mesh
    assert capfd.readouterr() == ("", "")


def test_a_centre_point_that_only_a_vertex_cell_uses_is_dropped():
    raw = meshio.read(MESHES / "annulus.msh")
    assert len(raw.points) == load_mesh(MESHES / "annulus.msh", 2).p.shape[1] + 1


def written(path, points, blocks):
    meshio.Mesh(np.asarray(points, dtype=float), blocks).write(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".vtu", ".vtk", ".mesh"])
def test_cells_of_every_kind_survive_a_file(kind, ending, tmp_path):
    """A block of cells of VTK's numbering, skewed, has the right volume and everywhere the same, positive Jacobian."""
    dim = DIMENSION[kind]
    name, corners = VTK_CORNERS[kind]
    skew = np.array([[2.0, 0.3, 0.1], [0.0, 1.0, 0.2], [0.0, 0.0, 0.5]])[:dim, :dim]
    corners = np.array(corners)
    points = np.zeros((len(corners), 3))
    points[:, :dim] = corners @ skew.T
    points[:, dim:] = 7.0  # constant further coordinates are dropped
    mesh = load_mesh(written(tmp_path / f"block{ending}", points, [(name, [np.arange(len(corners))])]), dim)
    assert mesh_kind(mesh) == kind
    jacobians = corner_jacobians(mesh.p, mesh.t, kind)
    np.testing.assert_allclose(jacobians, np.broadcast_to(skew, jacobians.shape), atol=1e-12)


def disc():
    raw = meshio.read(MESHES / "disc.msh")
    return raw.points.copy(), raw.cells_dict["triangle"].astype(np.int64)


def square_cells():
    """Nine quads of the unit square and the triangles that halve them, vertices (16, 3)."""
    grid = np.linspace(0, 1, 4)
    points = np.array([[x, y, 0] for y in grid for x in grid])
    quads = np.array([[4 * j + i + k for k in (0, 1, 5, 4)] for j in range(3) for i in range(3)])
    return points, quads, np.vstack([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def test_the_numbering_of_the_corners_may_go_round_either_way(tmp_path):
    points, triangles = disc()
    mixed = triangles.copy()
    mixed[::3] = mixed[::3, ::-1]
    expected = volume(load_mesh(MESHES / "disc.msh", 2))
    for i, cells in enumerate((triangles, triangles[:, ::-1], mixed)):
        mesh = load_mesh(written(tmp_path / f"{i}.vtu", points, [("triangle", cells)]), 2)
        assert volume(mesh) == pytest.approx(expected, rel=1e-12)
    points, quads, _ = square_cells()
    mesh = load_mesh(written(tmp_path / "quads.vtu", points, [("quad", quads[:, ::-1])]), 2)
    assert volume(mesh) == pytest.approx(1.0, rel=1e-12)


def refused(path, dim, *messages):
    with pytest.raises(DomainError) as caught:
        load_mesh(path, dim)
    for message in messages:
        assert message in str(caught.value)
    return str(caught.value)


def test_files_that_are_not_there_or_not_meshes(tmp_path, capfd):
    refused(tmp_path / "none.msh", 2, "none.msh", "there is no such file")
    refused(tmp_path, 2, "there is no such file")
    plain = tmp_path / "notes.txt"
    plain.write_text("not a mesh")
    refused(plain, 2, "notes.txt", "Could not deduce file format", "give a file that meshio reads")
    for name in (
        "garbage.msh",
        "garbage.vtu",
        "garbage.vtk",
        "garbage.xdmf",
        "garbage.inp",
        "garbage.stl",
        "garbage.mesh",
    ):
        bad = tmp_path / name
        bad.write_bytes(bytes(range(1, 256)) * 3)
        refused(bad, 2, name)
    empty = tmp_path / "empty.msh"
    empty.write_text("")
    refused(empty, 2, "empty.msh", "cannot read a mesh from")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["disc", "ball", "interval"])
def test_files_cut_off_anywhere(name, tmp_path):
    whole = (MESHES / f"{name}.msh").read_bytes()
    dim = FILES[name][0]
    for end in np.linspace(1, len(whole) - 20, 40).astype(int):
        part = tmp_path / "part.msh"
        part.write_bytes(whole[:end])
        refused(part, dim, "part.msh")


def test_meshes_of_a_wrong_dimension(tmp_path):
    refused(
        MESHES / "disc.msh", 3, "982 triangle, a mesh of dimension 2; dim=3 needs cells of kind tetra or hexahedron"
    )
    refused(MESHES / "ball.msh", 2, "1836 tetra, a mesh of dimension 3; dim=2 needs cells of kind triangle or quad")
    refused(MESHES / "disc.msh", 4, "meshes go up to dimension 3, got dim=4")
    points, triangles = disc()
    points[:, 2] = 0.1 * points[:, 0]
    surface = written(tmp_path / "surface.vtu", points, [("triangle", triangles)])
    refused(surface, 2, "surface.vtu", "must vary in the first 2 of them only")
    only_points = written(tmp_path / "points.vtu", points, [("vertex", np.arange(len(points))[:, None])])
    refused(only_points, 2, "a mesh of dimension 0", "dim=2 needs cells of kind triangle or quad")


def test_kinds_of_cells_that_cannot_be_used(tmp_path):
    points, quads, triangles = square_cells()
    mixed = written(tmp_path / "mixed.vtu", points, [("quad", quads[:5]), ("triangle", triangles[5:9])])
    refused(mixed, 2, "mixed.vtu", "mixes kinds of cells, it holds 5 quad, 4 triangle", "one kind in a file")
    wedge = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]]
    wedges = written(tmp_path / "wedge.vtu", wedge, [("wedge", [[0, 1, 2, 3, 4, 5]])])
    refused(wedges, 3, "1 wedge; expected straight-edged cells of kind tetra or hexahedron")


def bad_triangles(points, cells):
    return points, [("triangle", cells)]


def orphan(points, cells):
    return bad_triangles(np.vstack([points, [[9.0, 9.0, 0.0]]]), cells)


def lost_vertex(points, cells):
    cells[3, 1] = len(points) + 5
    return bad_triangles(points, cells)


def not_finite(points, cells):
    points[cells[0, 0], 1] = np.inf
    return bad_triangles(points, cells)


def degenerate(points, cells):
    cells[7, 1] = cells[7, 0]
    return bad_triangles(points, cells)


def folded(points, cells):
    """One inner vertex carried across the opposite side of one of its triangles."""
    ring = np.flatnonzero((cells == cells[400, 0]).any(axis=1))
    points[cells[400, 0]] += 2.2 * (points[cells[400, 1:]].mean(axis=0) - points[cells[400, 0]])
    assert len(ring) > 3
    return bad_triangles(points, cells)


def twice(points, cells):
    return bad_triangles(points, np.vstack([cells, cells[100:101]]))


def torn(points, cells):
    """The right half has its own copies of the vertices on the cut."""
    right = points[cells][:, :, 0].mean(axis=1) > 0
    both = np.intersect1d(cells[right], cells[~right])
    new = np.arange(len(points))
    new[both] = len(points) + np.arange(both.size)
    cells[right] = new[cells[right]]
    return bad_triangles(np.vstack([points, points[both]]), cells)


def in_pieces(points, cells):
    return bad_triangles(np.vstack([points, points + np.array([20.0, 0, 0])]), np.vstack([cells, cells + len(points)]))


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (orphan, ["1 vertices that belong to no cell of any kind, the first is number 528"]),
        (lost_vertex, ["is damaged: its cells refer to vertices 0 to 533, it has 528"]),
        (not_finite, ["has vertices that are not finite"]),
        (degenerate, ["1 of 982 cells that are degenerate", "the first is 7"]),
        (folded, ["pairs of cells that lie on the same side of the facet they share", "is inverted"]),
        (twice, ["cells that overlap: a facet is shared by cells [112, 100, 982] and maybe more"]),
        (torn, ["pairs of vertices at the same place", "touch without sharing vertices"]),
        (in_pieces, ["falls into 2 pieces that share no facets, of [982, 982] cells", "must be connected"]),
    ],
)
def test_meshes_that_are_not_sound(spoil, messages, tmp_path):
    path = written(tmp_path / "spoilt.vtu", *spoil(*disc()))
    refused(path, 2, "the mesh file", "spoilt.vtu", *messages)


def test_quadrilaterals_that_are_not_convex(tmp_path):
    points, quads, _ = square_cells()
    crossed = quads.copy()
    crossed[3] = crossed[3, [0, 2, 1, 3]]
    path = written(tmp_path / "bowtie.vtu", points, [("quad", crossed)])
    refused(path, 2, "1 of 9 cells that are twisted or not convex, the first is 3")
    points[10, :2] = 0.45  # beyond the diagonal of cell 4
    path = written(tmp_path / "dart.vtu", points, [("quad", quads)])
    refused(path, 2, "1 of 9 cells that are twisted or not convex, the first is 4")


# meshes against problems


def without(mesh, cells):
    return type(mesh)(mesh.p, np.delete(mesh.t, cells, axis=1), validate=False)


def lone_vertex():
    mesh = box_mesh(Box([-4.0, -4.0], [4.0, 4.0]), 6, "tri")
    return skfem.MeshTri(np.hstack([mesh.p, [[9.0], [9.0]]]), mesh.t, validate=False)


def overlapping():
    """A sheet that winds twice round the origin: each cell is sound, and so is each pair of neighbours."""
    strip = box_mesh(Box([2.0, 0.0], [3.0, 3.0]), (4, 60), "tri")
    radius, turns = strip.p
    angle = 4 * np.pi * turns / 3
    return skfem.MeshTri((radius + 0.01 * turns) * np.array([np.cos(angle), np.sin(angle)]), strip.t)


REFLECTING = ou(2, law=Uniform(Box([0.0, 0.0], [1.0, 1.0])), domain=Box([0.0, 0.0], [1.0, 1.0]))
HALF_STRIP = Box([0.0, 0.0], [np.inf, 1.0], [("reflecting", "natural"), ("reflecting", "reflecting")])
SQUARE = box_mesh(Box([-4.0, -4.0], [4.0, 4.0]), 6, "tri")


@pytest.mark.parametrize(
    ("mesh", "problem", "message"),
    [
        (skfem.MeshQuad2(), ou(2), "straight-edged cells of one kind .*, got MeshQuad2; .* order 1"),
        (skfem.MeshTri2.init_circle(1), ou(3), "of dimension 2, the problem has dim=3"),
        (skfem.MeshWedge1(), ou(3), "straight-edged cells of one kind .*, got MeshWedge1"),
        ([1, 2], ou(2), "expected a scikit-fem mesh .* or the path of a mesh file, got list"),
        (SQUARE, ou(3), r"the mesh \(MeshTri1\) is of dimension 2, the problem has dim=3"),
        (lone_vertex(), ou(2), r"1 vertices .* belong to no cell, the first is number 49; .*remove_unused_nodes\(\)"),
        (overlapping(), ou(2, law=PointMass([2.5, 0.1])), "cells of the mesh overlap others, the first is"),
        (
            SQUARE,
            ou(2, law=PointMass([4.1, 0.0])),
            "leaves out 100.0% of the initial law of 'ou', at most 1% is allowed",
        ),
        (SQUARE, ou(2, law=Gaussian([2.0, 0.0], 1.0)), r"leaves out 2\.\d% of the initial law"),
        (
            box_mesh(Box([0.0, 0.0], [1.0, 1.1]), 4, "tri"),
            REFLECTING,
            "must fill that box, but 4 of its boundary facets",
        ),
        (without(box_mesh(Box([0.0, 0.0], [1.0, 1.0]), 4, "quad"), [6]), REFLECTING, "but 4 of its boundary facets"),
        (
            box_mesh(Box([0.1, 0.0], [2.0, 1.0]), 4, "quad"),
            ou(2, law=PointMass([0.5, 0.5]), domain=HALF_STRIP),
            "must fill that box, but 4 of its boundary facets",
        ),
    ],
)
def test_meshes_that_do_not_fit_the_problem(mesh, problem, message):
    with pytest.raises(DomainError, match=message):
        as_mesh(mesh, problem)


def test_meshes_that_fit_the_problem():
    check_mesh(SQUARE, ou(2, law=PointMass([4.0, 4.0])))
    check_mesh(SQUARE, ou(2, law=Gaussian([0.0, 0.0], 1.5)))
    for kind in ("tri", "quad"):
        check_mesh(box_mesh(Box([0.0, 0.0], [1.0, 1.0]), 4, kind), REFLECTING)
    strip = ou(2, law=PointMass([0.5, 0.5]), domain=HALF_STRIP)
    for end in (1.0, 2.0):
        check_mesh(box_mesh(Box([0.0, 0.0], [end, 1.0]), 4, "quad"), strip)
    solid = Box([0.0] * 3, [1.0] * 3)
    for kind in ("tet", "hex"):
        check_mesh(box_mesh(solid, 3, kind), ou(3, law=Uniform(solid), domain=solid))
    line = Box([0.0], [1.0])
    check_mesh(box_mesh(line, 3, "line"), ou(1, law=Uniform(line), domain=line))


@pytest.mark.parametrize("kind", ["line", "tet", "hex"])
def test_inverted_cells_are_seen_in_every_dimension(kind):
    dim = DIMENSION[kind]
    mesh = box_mesh(Box([-4.0] * dim, [4.0] * dim), 4, kind)
    p = mesh.p.copy()
    inner = np.setdiff1d(np.arange(p.shape[1]), mesh.boundary_nodes())
    p[:, inner[0]] += 4.5  # far beyond its neighbours
    with pytest.raises(DomainError, match=r"same side of the facet|twisted or not convex"):
        check_mesh(KINDS[kind](p, mesh.t), ou(dim, law=PointMass(np.zeros(dim))))
