"""Point location against brute force, on structured, graded, distorted, sliver-ridden and non-convex meshes."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import skfem
from scipy.spatial import Delaunay

from fem_hjb.problems import locate
from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import DIMENSION, KINDS, mesh_kind
from fem_hjb.problems.locate import REFERENCE_CORNERS, CellLocator, corner_jacobians
from fem_hjb.spaces.mesh_files import load_mesh
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.support.errors import DomainError

MESHES = Path(__file__).parents[2] / "meshes"
FILES = {"interval": 1, "disc": 2, "disc_quads": 2, "annulus": 2, "lshape": 2, "ball": 3}


def box_of(dim, low=-1.0, high=2.0):
    return Box(np.full(dim, low), np.full(dim, high))


def perturbed(mesh, fraction, seed=0):
    """The mesh with each inner vertex moved by up to `fraction` of a cell along each axis."""
    p = mesh.p.copy()
    step = (p.max() - p.min()) / (round(p.shape[1] ** (1 / p.shape[0])) - 1)
    inner = np.setdiff1d(np.arange(p.shape[1]), mesh.boundary_nodes())
    p[:, inner] += fraction * step * np.random.default_rng(seed).uniform(-1, 1, (p.shape[0], inner.size))
    return type(mesh)(p, mesh.t)


def delaunay(points):
    kind = {2: skfem.MeshTri, 3: skfem.MeshTet}[points.shape[1]]
    hull = Delaunay(points)
    used, t = np.unique(hull.simplices, return_inverse=True)  # points closer together than Qhull resolves are left out
    return kind(np.ascontiguousarray(points[used].T), np.ascontiguousarray(t.reshape(hull.simplices.shape).T))


def clouds(dim, n, seed, tails=0):
    """Random points, heavy-tailed on request: their Delaunay cells differ in size by many orders of magnitude."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)) * rng.exponential(1, (n, 1)) ** tails


COUNTS = {"line": 40, "tri": 12, "quad": 12, "tet": 5, "hex": 5}
CASES = {
    **{f"structured {kind}": lambda kind=kind: box_mesh(box_of(DIMENSION[kind]), COUNTS[kind], kind) for kind in KINDS},
    **{
        f"graded {kind}": lambda kind=kind: box_mesh(
            box_of(DIMENSION[kind]), COUNTS[kind], kind, grading=lambda s: (np.exp(9 * s) - 1) / (np.exp(9) - 1)
        )
        for kind in KINDS
    },
    **{
        f"perturbed {kind}": lambda kind=kind, size=size: perturbed(
            box_mesh(box_of(DIMENSION[kind]), COUNTS[kind], kind), size
        )
        for kind, size in (("line", 0.45), ("tri", 0.3), ("quad", 0.24), ("tet", 0.12), ("hex", 0.18))
    },
    "far from 0": lambda: box_mesh(Box([1e6, -3e6], [1e6 + 1, 1 - 3e6]), 9, "tri"),
    "tiny": lambda: perturbed(box_mesh(box_of(2, 0.0, 1e-9), 9, "quad"), 0.2),
    "random triangles": lambda: delaunay(clouds(2, 400, 1)),
    "heavy-tailed triangles": lambda: delaunay(clouds(2, 400, 2, tails=3)),
    "slivers": lambda: delaunay(clouds(3, 300, 3)),
    "parallelograms": lambda: skfem.MeshQuad(
        np.array([[1.0, 0.4], [-0.3, 0.8]]) @ box_mesh(box_of(2), 7, "quad").p, box_mesh(box_of(2), 7, "quad").t
    ),
    **{
        f"file {name}": lambda name=name, dim=dim: load_mesh(MESHES / f"{name}.msh", dim) for name, dim in FILES.items()
    },
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    mesh = CASES[request.param]()
    return mesh, CellLocator(mesh.p, mesh.t, mesh_kind(mesh))


def reference_points(mesh, rng, n):
    """Random points of the reference cell, (n, d)."""
    d = mesh.p.shape[0]
    return rng.dirichlet(np.ones(d + 1), n)[:, :d] if len(mesh.t) == d + 1 else rng.uniform(0, 1, (n, d))


def mapped(mesh, cells, xi):
    """scikit-fem's own map of reference points xi (n, d) in the given cells."""
    return mesh.mapping().F(np.ascontiguousarray(xi.T)[:, :, None], tind=cells)[:, :, 0].T


def facet_offsets(mesh):
    """For cells with straight or flat faces: inward normals (nc, nf, d) of unit length and offsets (nc, nf)."""
    d = mesh.p.shape[0]
    x = mesh.p.T[mesh.t]
    if len(mesh.t) == d + 1:
        corners = [np.delete(np.arange(d + 1), k)[:d] for k in range(d + 1)]
    else:
        corners = [[0, 1], [1, 2], [2, 3], [3, 0]]
    normals, offsets = [], []
    for face in corners:
        a = x[face[0]]
        if d == 1:
            normal = np.ones_like(a)
        elif d == 2:
            normal = (x[face[1]] - a)[:, ::-1] * [1, -1]
        else:
            normal = np.cross(x[face[1]] - a, x[face[2]] - a)
        normal *= np.sign(((x.mean(axis=0) - a) * normal).sum(axis=1, keepdims=True))
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        normals.append(normal)
        offsets.append((a * normal).sum(axis=1))
    return np.stack(normals, axis=1), np.stack(offsets, axis=1)


def test_finds_the_cell_and_the_reference_coordinates_of_inner_points(case):
    mesh, locator = case
    rng = np.random.default_rng(0)
    cells = rng.integers(mesh.t.shape[1], size=4000)
    xi = 0.02 + 0.94 * reference_points(mesh, rng, 4000)
    found, where = locator(mapped(mesh, cells, xi))
    np.testing.assert_array_equal(found, cells)
    jacobians = corner_jacobians(mesh.p, mesh.t, mesh_kind(mesh))
    sensitivity = 1 / np.linalg.svd(jacobians, compute_uv=False).min(axis=(0, -1))
    rounding = np.finfo(float).eps * np.abs(mesh.p).max() * sensitivity[cells]
    assert (np.abs(where - xi).max(axis=1) <= 1e-13 + 8 * rounding).all()


def test_agrees_with_brute_force(case):
    mesh, locator = case
    if mesh_kind(mesh) == "hex":
        return  # its faces are not flat: covered by the test above and by the one of the box's volume
    rng = np.random.default_rng(1)
    low, high = mesh.p.min(axis=1), mesh.p.max(axis=1)
    x = rng.uniform(low - 0.1 * (high - low), high + 0.1 * (high - low), (1500, len(low)))
    normals, offsets = facet_offsets(mesh)
    depth = (np.einsum("cfd,nd->ncf", normals, x) - offsets).min(axis=2)
    slack = 3e-10 * np.linalg.norm(high - low) + 1e-13 * np.abs(mesh.p).max()
    cells, _ = locator(x)
    inside = cells >= 0
    assert 0 < inside.sum() < len(x)
    assert (depth[inside, cells[inside]] >= -slack).all()
    assert (depth[~inside].max(axis=1) <= 0).all()


def test_reference_coordinates_reproduce_the_points(case):
    mesh, locator = case
    low, high = mesh.p.min(axis=1), mesh.p.max(axis=1)
    x = np.random.default_rng(2).uniform(low, high, (3000, len(low)))
    cells, xi = locator(x)
    inside = cells >= 0
    scale = np.ptp(mesh.p) + np.abs(mesh.p).max() * 1e-5
    assert inside.any()
    assert np.abs(mapped(mesh, cells[inside], xi[inside]) - x[inside]).max() <= 1e-10 * scale
    assert np.isnan(xi[~inside]).all()


def test_finds_every_vertex_centroid_and_facet_midpoint(case):
    mesh, locator = case
    cells, _ = locator(mesh.p.T)
    assert (cells >= 0).all()
    # a vertex, or a midpoint, may lie on the long side of a needle that is not its own, to within rounding
    assert (mesh.t[:, cells] == np.arange(mesh.p.shape[1])).any(axis=0).mean() > 0.995
    np.testing.assert_array_equal(locator(mesh.p[:, mesh.t].mean(axis=1).T)[0], np.arange(mesh.t.shape[1]))
    cells, _ = locator(mesh.p[:, mesh.facets].mean(axis=1).T)
    assert (cells >= 0).all()
    assert (mesh.f2t == cells).any(axis=0).mean() > 0.995


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_has_no_holes_and_no_outside_within(kind):
    mesh = CASES[f"perturbed {kind}"]()
    locator = CellLocator(mesh.p, mesh.t, kind)
    dim = DIMENSION[kind]
    rng = np.random.default_rng(3)
    x = rng.uniform(-1.2, 2.2, (30000, dim))
    sides = rng.uniform(-1, 2, (2000, dim))
    sides[np.arange(2000), rng.integers(dim, size=2000)] = rng.choice([-1.0, 2.0], 2000)
    x = np.vstack([x, sides])
    np.testing.assert_array_equal(locator(x)[0] >= 0, box_of(dim).contains(x))


@pytest.mark.parametrize("kind", ["quad", "hex"])
@pytest.mark.parametrize("seed", range(5))
def test_inverts_strongly_distorted_cells(kind, seed):
    """Single cells with corners moved by up to 35 (hexahedra: 30) per cent, kept where the Jacobian is sound."""
    rng = np.random.default_rng(seed)
    corners = REFERENCE_CORNERS[kind]
    n, d = 3000, corners.shape[1]
    x = corners[:, None] + (0.35 if d == 2 else 0.3) * rng.uniform(-1, 1, (len(corners), n, d))
    x += 4.0 * np.arange(n)[None, :, None] * np.eye(d)[0]  # one beside the other, all apart
    p, t = x.reshape(-1, d).T, np.arange(x.size // d).reshape(len(corners), n)
    sound = (np.linalg.det(corner_jacobians(p, t, kind)) > 0.1).all(axis=0)
    t = t[:, sound]
    mesh = KINDS[kind](np.ascontiguousarray(p), np.ascontiguousarray(t), validate=False)
    locator = CellLocator(p, t, kind)
    cells = np.repeat(np.arange(t.shape[1]), 20)
    xi = rng.uniform(0, 1, (cells.size, d))
    xi[::7] = np.round(xi[::7])  # corners, too
    found, where = locator(mapped(mesh, cells, xi))
    assert sound.sum() > 500
    np.testing.assert_array_equal(found, cells)
    np.testing.assert_allclose(where, xi, atol=1e-7)


def test_reentrant_corners_and_holes_are_outside():
    lshape = load_mesh(MESHES / "lshape.msh", 2)
    x = np.random.default_rng(4).uniform(-4.5, 4.5, (20000, 2))
    expected = (np.abs(x) <= 4).all(axis=1) & ~((x[:, 0] > 1.5) & (x[:, 1] < -1.5))
    np.testing.assert_array_equal(CellLocator(lshape.p, lshape.t, "tri")(x)[0] >= 0, expected)

    annulus = load_mesh(MESHES / "annulus.msh", 2)
    radius = np.hypot(*x.T)
    found = CellLocator(annulus.p, annulus.t, "tri")(x)[0] >= 0
    assert not found[(radius < 0.99) | (radius > 4.0)].any()  # the polygon's chords cut 1.0 at 0.997, 4.0 at 3.97
    assert found[(radius > 1.0) & (radius < 3.96)].all()


def test_strongly_graded_intervals():
    nodes = np.concatenate([[0.0], np.geomspace(1e-12, 1.0, 400)])
    mesh = skfem.MeshLine(nodes)
    shuffled = np.random.default_rng(5).permutation(mesh.t.shape[1])
    locator = CellLocator(mesh.p, mesh.t[:, shuffled], "line")
    x = 10 ** np.random.default_rng(6).uniform(-9, 0, 5000)
    cells, xi = locator(x[:, None])
    np.testing.assert_array_equal(shuffled[cells], np.searchsorted(nodes, x) - 1)
    np.testing.assert_allclose(xi[:, 0], (x - nodes[shuffled[cells]]) / np.diff(nodes)[shuffled[cells]], atol=1e-9)


def test_many_cells_at_one_point():
    """A fan: 3000 needles around a vertex, all in every leaf that touches it."""
    angles = np.linspace(0, 2 * np.pi, 3001)[:-1]
    p = np.column_stack([[0, 0], [np.cos(angles), np.sin(angles)]])
    t = np.array([np.zeros(3000), 1 + np.arange(3000), 1 + (np.arange(3000) + 1) % 3000], dtype=np.int64)
    phi = np.random.default_rng(7).uniform(0, 2 * np.pi, 2000)
    x = 0.5 * np.column_stack([np.cos(phi), np.sin(phi)])
    cells, _ = CellLocator(p, t, "tri")(np.vstack([x, [[0.0, 0.0]]]))
    np.testing.assert_array_equal(cells[:-1], np.searchsorted(angles, phi) - 1)
    assert cells[-1] >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_outside_by_a_rounding_error_is_inside_and_no_further(kind):
    mesh, dim = CASES[f"perturbed {kind}"](), DIMENSION[kind]
    locator = CellLocator(mesh.p, mesh.t, kind)
    diameter = 3 * np.sqrt(dim)
    x = np.random.default_rng(8).uniform(-1, 2, (500, dim))
    for relative, inside in ((1e-13, True), (0.9e-10, True), (1.2e-10, False), (1e-6, False)):
        x[:, -1] = 2 + relative * diameter
        cells, xi = locator(x)
        assert ((cells >= 0) == inside).all()
        assert not inside or xi.max() < 1 + 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_nan_infinity_and_no_points_do_no_harm(kind):
    mesh, dim = CASES[f"perturbed {kind}"](), DIMENSION[kind]
    locator = CellLocator(mesh.p, mesh.t, kind)
    x = np.random.default_rng(9).uniform(-1, 2, (50, dim))
    clean, clean_xi = locator(x)
    x[3, 0], x[5, -1], x[7, 0], x[9, -1] = np.nan, np.inf, -np.inf, 1e300
    cells, xi = locator(x)
    bad = np.isin(np.arange(50), [3, 5, 7, 9])
    assert (cells[bad] == -1).all()
    assert np.isnan(xi[bad]).all()
    np.testing.assert_array_equal(cells[~bad], clean[~bad])
    np.testing.assert_array_equal(xi[~bad], clean_xi[~bad])
    none, nowhere = locator(np.empty((0, dim)))
    assert none.shape == (0,)
    assert none.dtype == np.int64
    assert nowhere.shape == (0, dim)
    assert (locator(np.full((4, dim), 9.0))[0] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_does_not_depend_on_the_batch(kind, monkeypatch):
    mesh = CASES[f"perturbed {kind}"]()
    locator = CellLocator(mesh.p, mesh.t, kind)
    x = np.random.default_rng(10).uniform(-1.1, 2.1, (400, DIMENSION[kind]))
    x[:50] = mesh.p.T[np.arange(50) % mesh.p.shape[1]]  # ties
    cells, xi = locator(x)
    order = np.random.default_rng(11).permutation(400)
    np.testing.assert_array_equal(locator(x[order])[0], cells[order])
    inner = np.arange(50, 400)
    singly = np.concatenate([locator(x[i : i + 1])[0] for i in inner])
    np.testing.assert_array_equal(singly, cells[inner])
    monkeypatch.setattr(locate, "_CHUNK", 16)
    again, again_xi = locator(x)
    np.testing.assert_array_equal(again[inner], cells[inner])
    np.testing.assert_allclose(again_xi[inner], xi[inner], atol=1e-13)


def test_memory_does_not_grow_with_points_times_cells():
    mesh = box_mesh(box_of(3), 15, "tet")  # 20k tetrahedra
    locator = CellLocator(mesh.p, mesh.t, "tet")
    x = np.random.default_rng(12).uniform(-1.1, 2.1, (300_000, 3))
    tracemalloc.start()
    locator(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6


SQUARE = np.array([[0.0, 1, 0, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("p", "t", "kind", "message"),
    [
        (
            SQUARE,
            [[0], [1], [2]],
            "triangle",
            "kind must be one of 'line', 'tri', 'quad', 'tet', 'hex', got 'triangle'",
        ),
        (SQUARE.T, [[0], [1], [2]], "tri", r"p of shape \(2, nv\) and t of shape \(3, nc\), got \(4, 2\) and \(3, 1\)"),
        (SQUARE, [[0, 1, 2]], "tri", r"got \(2, 4\) and \(1, 3\)"),
        (SQUARE, [[0], [1], [4]], "tri", "vertex numbers from 0 to 3 and at least one cell, got 0 to 4"),
        (SQUARE, np.empty((3, 0)), "tri", "at least one cell, got none"),
        (
            SQUARE,
            [[0, 0, 1], [1, 1, 2], [2, 1, 3]],
            "tri",
            "1 cells have no volume, the first is 1",
        ),
        (SQUARE * np.array([[1, 1, 1, np.nan]]), [[0, 1], [1, 2], [2, 3]], "tri", "p must be finite"),
    ],
)
def test_bad_meshes(p, t, kind, message):
    with pytest.raises(DomainError, match=message):
        CellLocator(p, t, kind)


def test_bad_points():
    locator = CellLocator(SQUARE, [[0, 1], [1, 2], [2, 3]], "tri")
    with pytest.raises(DomainError, match=r"points must have shape \(n, 2\), got shape \(3,\)"):
        locator([0.0, 1.0, 2.0])
    with pytest.raises(DomainError, match=r"points must have shape \(n, 2\), got shape \(3, 1\)"):
        locator([[0.0], [1.0], [2.0]])
