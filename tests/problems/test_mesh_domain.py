"""Domains that are meshes: their boundary, what is inside, and what is refused."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.problems.box import Box
from fem_hjb.problems.facets import Facets
from fem_hjb.problems.fingerprint import differences, fingerprint
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.zoo.meshed import ring_mesh
from fem_hjb.spaces.meshes import box_mesh, check_mesh, refined_mesh
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError

PLATE = fh.load_mesh(Path(__file__).parents[2] / "meshes" / "plate.msh")
WORDS = {"rim": "reflecting", "left": "absorbing", "right": "reflecting"}


def pays(t, x):
    return 1.0 + 0.0 * x[..., 0]


def square(kind="tri", cells=4, dim=2):
    mesh = box_mesh(Box(np.zeros(dim), np.ones(dim)), cells, kind)
    return mesh.with_boundaries({"left": lambda x: x[0] < 1e-9, "right": lambda x: x[0] > 1 - 1e-9})


def problem(domain, start=None, **changes):
    dim = domain.dim if isinstance(domain, Box | MeshDomain) else 2
    given = {
        "dim": dim,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": lambda t, x: 0.0 * x,
        "diffusion": 1.0,
        "terminal_reward": lambda x: np.cos(x).sum(axis=-1),
        "initial_law": fh.PointMass(np.full(dim, 0.5) if start is None else start),
        "domain": domain,
    }
    return fh.ControlProblem(**(given | changes))


def still(n, dim=2):
    """Covariances of steps so short that there is no chance of a bridge."""
    return 1e-12 * np.eye(dim)[None].repeat(n, 0)


# pieces of a boundary


def pieces(dim, graded=False):
    """Random pieces in R^d, of one size or of very different sizes, and some points."""
    rng = np.random.default_rng(dim)
    size = 10.0 ** rng.uniform(-4, 0, 60) if graded else np.full(60, 0.3)
    corners = rng.uniform(-1, 1, (60, 1, dim)) + size[:, None, None] * rng.uniform(-1, 1, (60, dim, dim))
    if dim == 1:
        normals = np.where(rng.random((60, 1)) < 0.5, -1.0, 1.0)
    elif dim == 2:
        normals = (corners[:, 1] - corners[:, 0])[:, ::-1] * [1, -1]
    else:
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    return Facets(corners, normals, 1e-12), corners, normals, rng


def on_piece(corners, dim, many=400):
    """Points spread over each piece (60, k, d)."""
    rng = np.random.default_rng(5)
    weights = rng.dirichlet(np.full(dim, 0.4), many)
    weights = np.concatenate([weights, np.eye(dim)])
    return np.einsum("kc,mcd->mkd", weights, corners)


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_nearest_piece_is_no_farther_than_any_point_of_any(dim, graded):
    facets, corners, _, rng = pieces(dim, graded)
    x = rng.uniform(-1.5, 1.5, (300, dim))
    distance, point, facet = facets.nearest(x)
    np.testing.assert_allclose(np.linalg.norm(point - x, axis=1), distance, rtol=1e-12)
    every = np.linalg.norm(on_piece(corners, dim)[None] - x[:, None, None], axis=3).min(axis=(1, 2))
    assert (distance <= every + 1e-12).all()
    assert (distance >= every - 0.1).all()
    own = np.linalg.norm(on_piece(corners, dim)[facet] - point[:, None], axis=2).min(axis=1)
    assert own.max() < 0.1
    near, _, which = facets.nearest(x, 0.2)
    np.testing.assert_array_equal(np.isfinite(near), distance <= 0.2)
    np.testing.assert_array_equal(which >= 0, distance <= 0.2)
    np.testing.assert_array_equal(near[which >= 0], distance[which >= 0])


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_first_piece_that_a_step_meets(dim, graded):
    """Against the intersections of every step with every piece."""
    facets, corners, normals, rng = pieces(dim, graded)
    start, end = rng.uniform(-1.5, 1.5, (2, 300, dim))
    share, facet = facets.crossed(start, end)
    every = np.full((300, 60), np.inf)
    for j in range(60):
        speed = (end - start) @ normals[j]
        s = ((corners[j, 0] - start) @ normals[j]) / speed
        at = start + s[:, None] * (end - start)
        if dim == 1:
            inside = np.ones(300, dtype=bool)
        else:
            basis = (corners[j, 1:] - corners[j, 0]).T
            local = np.linalg.lstsq(basis, (at - corners[j, 0]).T, rcond=None)[0]
            inside = (local >= 0).all(axis=0) & (local.sum(axis=0) <= 1)
        every[:, j] = np.where((speed > 0) & (s >= 0) & (s <= 1) & inside, s, np.inf)
    np.testing.assert_allclose(share, every.min(axis=1), rtol=1e-9)
    np.testing.assert_array_equal(facet >= 0, np.isfinite(share))
    assert (facet >= 0).sum() > 15


# a domain


def test_the_plate_and_its_holes():
    domain = MeshDomain(PLATE, WORDS, pays)
    assert domain.contains([[0.0, 0.0], [0.0, 1.9], [-0.9, 0.0], [0.9, 0.5], [2.5, 0.0]]).tolist() == [1, 1, 0, 0, 0]
    assert domain.exited([[0.0, 0.0], [-0.9, 0.1], [0.9, 0.1], [2.5, 0.0]]).tolist() == [0, 1, 0, 0]
    ends = PLATE.p[:, PLATE.facets[:, PLATE.boundaries["left"]]].mean(axis=1).T
    assert domain.exited(ends).all()
    assert domain.contains(ends).all()
    assert (domain.dim, domain.absorbing, domain.has("natural")) == (2, True, False)
    np.testing.assert_allclose(domain.measures[:, 0], [2 * np.pi * 2.6, 2 * np.pi * 0.4, 0.0], rtol=0.01)
    moved = domain.inside([[0.0, 0.0], [-0.9, 0.3], [0.9, 0.5], [2.1, 0.0]])
    np.testing.assert_allclose(
        np.linalg.norm(moved - [[0, 0], [-0.9, 0], [0.9, 0], [0, 0]], axis=1), [0, 0.4, 0.7, 1.9], atol=0.02
    )
    assert domain.contains(moved).all()
    assert "MeshDomain(mesh=a mesh of 711 tri cells" in repr(domain)
    assert len(repr(domain).splitlines()) <= 5


@pytest.mark.parametrize("kind", ["line", "tri", "quad", "tet", "hex"])
def test_boxes_cut_into_cells_are_the_same_domains(kind):
    """Containment, exits, mirrored points, in every dimension and for cells of every kind."""
    dim = {"line": 1, "tri": 2, "quad": 2, "tet": 3, "hex": 3}[kind]
    words = [("absorbing", "reflecting")] + [("reflecting", "reflecting")] * (dim - 1)
    box = Box(np.zeros(dim), np.ones(dim), words)
    domain = MeshDomain(square(kind, 3, dim), {"left": "absorbing", None: "reflecting"})
    x = np.random.default_rng(0).uniform(-0.3, 1.3, (2000, dim))
    np.testing.assert_array_equal(domain.contains(x), box.contains(x))
    one = ((x < 0) | (x > 1)).sum(axis=1) <= 1  # behind one face: a corner belongs to several
    np.testing.assert_array_equal(domain.exited(x[one]), box.exited(x[one]))
    np.testing.assert_allclose(domain.inside(x[one]), box.inside(x[one]), atol=1e-12)
    centres, normals = domain.normals("reflecting")
    np.testing.assert_allclose(np.sort(np.abs(normals), axis=1)[:, :-1], 0.0, atol=1e-12)
    assert ((centres + 1e-6 * normals < 0) | (centres + 1e-6 * normals > 1)).any(axis=1).all()


@pytest.mark.parametrize("kind", ["line", "tri", "tet", "hex"])
def test_steps_are_mirrored_as_in_a_box(kind):
    dim = {"line": 1, "tri": 2, "tet": 3, "hex": 3}[kind]
    box, domain = Box(np.zeros(dim), np.ones(dim)), MeshDomain(square(kind, 3, dim))
    rng = np.random.default_rng(1)
    start = rng.random((1000, dim))
    end = start + rng.normal(size=start.shape)  # several walls in one step
    np.testing.assert_allclose(domain.moved(start, end, None, rng), box.mirror(end), atol=1e-9)


def test_steps_end_where_they_leave():
    """At the absorbing side, unless a reflection comes first; and states on it stay."""
    domain = MeshDomain(square(), {"left": "absorbing", None: "reflecting"})
    start = np.array([[0.5, 0.5], [0.1, 0.9], [0.0, 0.3], [0.5, 0.5]])
    end = np.array([[-0.5, 0.5], [-0.1, 1.1], [0.7, 0.3], [0.7, 0.5]])
    new = domain.moved(start, end, still(4), np.random.default_rng(0))
    np.testing.assert_allclose(new, [[0, 0.5], [0, 1.0], [0, 0.3], [0.7, 0.5]], atol=1e-9)
    assert domain.exited(new).tolist() == [True, True, True, False]


def test_no_step_goes_through_a_hole_or_around_a_corner():
    """From one side of a hole to the other: both ends are inside, what is between is not."""
    domain = MeshDomain(PLATE, WORDS)
    rng = np.random.default_rng(0)
    start, end = np.array([[-0.9, 0.6], [0.35, 0.35]]), np.array([[-0.9, -0.6], [0.35, -0.35]])
    new = domain.moved(start, end, still(2), rng)
    np.testing.assert_allclose(new[0], [-0.9, 0.4], atol=0.02)  # stopped
    assert new[1, 0] < 0.1  # mirrored at the hole, which is to the right
    assert domain.contains(new).all()
    corner = MeshDomain(fh.load_mesh(Path(__file__).parents[2] / "meshes" / "lshape.msh"))
    end = corner.moved(np.array([[1.0, -3.0]]), np.array([[2.5, -1.0]]), None, rng)
    np.testing.assert_allclose(end, [[0.5, -1.0]], atol=1e-9)


def test_natural_parts_let_the_process_pass():
    domain = MeshDomain(PLATE, {"rim": "natural", "left": "absorbing", "right": "reflecting"})
    assert domain.contains([[5.0, 0.0], [0.9, 0.0], [-0.9, 0.0]]).tolist() == [True, False, False]
    assert domain.exited([[5.0, 0.0], [-0.9, 0.0]]).tolist() == [False, True]
    rng = np.random.default_rng(0)
    start, end = np.array([[1.9, 0.0], [5.0, 0.0], [-3.0, 0.0]]), np.array([[6.0, 1.0], [1.7, 0.0], [0.0, 0.0]])
    new = domain.moved(start, end, 1e-9 * np.eye(2)[None].repeat(3, 0), rng)
    np.testing.assert_allclose(
        new, [[6.0, 1.0], [1.7, 0.0], [-1.3, 0.0]], atol=0.02
    )  # the last meets the hole from beyond


def test_it_is_copied_stored_and_kept_from_changes():
    mesh = square()
    domain = MeshDomain(mesh, {"left": "absorbing", None: "reflecting"}, pays)
    mesh.p[:] = 7.0
    assert domain.contains([[0.5, 0.5]]).all()
    with pytest.raises(ValueError, match="read-only"):
        domain.mesh.p[0, 0] = 1.0
    with pytest.raises(TypeError, match="does not support item assignment"):
        domain.boundary["left"] = "natural"
    for other in (copy.deepcopy(domain), pickle.loads(pickle.dumps(domain))):
        assert other.exited([[0.0, 0.5], [0.5, 0.5]]).tolist() == [True, False]
        assert not other.words.flags.writeable


def test_it_is_told_from_others_whatever_its_cells():
    coarse, fine = (MeshDomain(square(cells=n), {"left": "absorbing", None: "reflecting"}) for n in (2, 8))
    assert differences(problem(fine), fingerprint(problem(coarse))) == []
    other = MeshDomain(square(), {"right": "absorbing", None: "reflecting"})
    assert "boundary of the domain" in differences(problem(other), fingerprint(problem(coarse)))
    assert differences(problem(Box([0.0, 0.0], [1.0, 1.0])), fingerprint(problem(coarse))) == ["domain"]


def test_clockwise_cells_are_as_good():
    mesh = square()
    turned = skfem.MeshTri(mesh.p, mesh.t[::-1], sort_t=False)
    named = turned.with_boundaries({"left": lambda x: x[0] < 1e-9})
    domain = MeshDomain(named, {"left": "absorbing", None: "reflecting"})
    assert domain.exited([[0.0, 0.5], [1.0, 0.5], [-1.0, 0.5]]).tolist() == [True, False, True]
    _, normals = domain.normals("absorbing")
    np.testing.assert_allclose(normals, [[-1.0, 0.0]] * 4, atol=1e-12)


def bent_hexahedra():
    mesh = square("hex", 2, 3)
    p = mesh.p.copy()
    p[:, np.flatnonzero((p == [[1.0], [0.5], [0.5]]).all(axis=0))] += 0.1
    return skfem.MeshHex(p, mesh.t)


def two_names():
    return square().with_boundaries({"low": lambda x: (x[1] < 1e-9) | (x[0] < 1e-9)})


def within():
    mesh = square()
    inner = np.setdiff1d(np.arange(mesh.nfacets), mesh.boundary_facets())
    return mesh.with_boundaries({"wall": inner[:3]})


REFUSED = {
    "list": (lambda: MeshDomain([1, 2]), "expected a scikit-fem mesh"),
    "path": (lambda: MeshDomain("plate.msh"), "expected a scikit-fem mesh .*, got str"),
    "word": (lambda: MeshDomain(square(), "sticky"), "MeshDomain: boundary must be .*'reflecting'.* got 'sticky'"),
    "word of a name": (
        lambda: MeshDomain(square(), {"left": "sticky", None: "natural"}),
        r"boundary\['left'\] must be",
    ),
    "no mapping": (lambda: MeshDomain(square(), ["absorbing"]), "one word, or a mapping of names .* got list"),
    "name": (
        lambda: MeshDomain(square(), {"lft": "absorbing", None: "reflecting"}),
        "no boundary called 'lft'; its names are 'left', 'right'",
    ),
    "no names": (
        lambda: MeshDomain(skfem.MeshTri(), {"left": "absorbing"}),
        "no boundary called 'left'; its names are none: give the boundary names with mesh.with_boundaries",
    ),
    "not all": (
        lambda: MeshDomain(square(), {"left": "absorbing"}),
        r"says nothing of 12 of the 16 boundary facets, the first is number \d+ around .* key None",
    ),
    "twice": (
        lambda: MeshDomain(two_names(), {"left": "absorbing", "low": "reflecting", None: "reflecting"}),
        "4 facets called 'low' are 'absorbing' by another name and 'reflecting' by this one",
    ),
    "inside": (lambda: MeshDomain(within(), {"wall": "absorbing", None: "reflecting"}), "3 of the 3 .* lie inside"),
    "no facets": (
        lambda: MeshDomain(
            square().with_boundaries({"hole": np.array([], int)}), {"hole": "absorbing", None: "natural"}
        ),
        "the boundary called 'hole' has no facets",
    ),
    "half natural": (
        lambda: MeshDomain(square(), {"left": "natural", None: "reflecting"}),
        "on 1 connected pieces of the boundary some facets are natural and others are not",
    ),
    "exit reward": (lambda: MeshDomain(square(), {None: "absorbing"}, 1.0), "must be a callable or None, got float"),
    "nobody pays": (lambda: MeshDomain(square(), "reflecting", pays), "exit_reward needs an absorbing facet"),
    "unused": (
        lambda: MeshDomain(skfem.MeshTri(np.hstack([square().p, [[9.0], [9.0]]]), square().t, validate=False)),
        "1 vertices of the mesh of a MeshDomain belong to no cell, the first is number 25",
    ),
    "bent": (lambda: MeshDomain(bent_hexahedra()), "4 boundary faces of the hexahedra are bent, by up to 0.1"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_is_refused(which):
    make, message = REFUSED[which]
    with pytest.raises(DomainError, match=message):
        make()


def round_ring():
    """With the nodes of edges along the circles on these."""
    mesh = skfem.MeshTri2.from_mesh(ring_mesh(2.0, 2))
    size = np.hypot(*mesh.p)
    mesh.doflocs *= np.where(size > 1.9, 2.0 / size, np.where(size < 1.1, 1.0 / size, 1.0))
    return mesh


RING = round_ring()


def test_a_ring_with_curved_edges():
    """Eighteen parabolas along each circle, on the way to which polygons would be passed."""
    round_ = RING.with_boundaries({"inner": lambda x: np.hypot(*x) < 1.2}, boundaries_only=True)
    domain = MeshDomain(round_, {"inner": "absorbing", None: "reflecting"}, pays)
    angle = np.linspace(0.0, 2 * np.pi, 500)
    ray = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    near, far = 1.0 + 3e-4, 2.0 - 3e-4
    assert domain.contains(np.concatenate([near * ray, far * ray])).all()
    assert not domain.contains(np.concatenate([(2 - near) * ray, (4 - far) * ray])).any()
    assert domain.exited(0.5 * ray).all()
    assert not domain.exited(np.concatenate([2.5 * ray, 1.5 * ray])).any()
    np.testing.assert_allclose(domain.bounds, [[-2.0] * 2, [2.0] * 2], atol=3e-4)
    np.testing.assert_allclose(domain.measures[:2, 0], [4 * np.pi, 2 * np.pi], rtol=1e-4)
    points, normals = domain.normals("absorbing")
    np.testing.assert_allclose(normals, -points / np.linalg.norm(points, axis=1, keepdims=True), atol=3e-3)
    np.testing.assert_allclose(domain.inside(2.3 * ray), 1.7 * ray, atol=3e-2)
    stopped = domain.moved(1.4 * ray, 0.2 * ray, still(500), np.random.default_rng(0))
    np.testing.assert_allclose(stopped, ray, atol=3e-4)
    assert domain.exited(stopped).all()
    mirrored = domain.moved(1.8 * ray, 2.4 * ray, still(500), np.random.default_rng(0))
    np.testing.assert_allclose(mirrored, 1.6 * ray, atol=3e-2)
    assert "72 curved tri cells" in repr(domain)
    for other in (copy.deepcopy(domain), pickle.loads(pickle.dumps(domain))):
        assert other.curved
        np.testing.assert_array_equal(other.moved(1.8 * ray, 2.4 * ray, still(500), np.random.default_rng(0)), mirrored)


def test_a_ball_with_curved_faces():
    """A hundred and twenty-eight patches, on the way to which those of the corners would be passed."""
    domain = MeshDomain(skfem.MeshTet2.init_ball(2), "absorbing", pays)
    ray = np.random.default_rng(0).standard_normal((300, 3))
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    assert domain.contains((1.0 - 1.4e-3) * ray).all()
    assert not domain.contains((1.0 + 1e-9) * ray).any()
    straight = MeshDomain(skfem.MeshTet1.init_ball(2))
    assert straight.contains((1.0 - 1.4e-3) * ray).mean() < 0.1
    assert domain.exited(1.5 * ray).all()
    assert not domain.exited(0.9 * ray).any()
    np.testing.assert_allclose(domain.bounds, [[-1.0] * 3, [1.0] * 3], atol=1e-9)
    np.testing.assert_allclose(domain.measures[1], [4 * np.pi, 0, 0, 0], rtol=1e-3, atol=1e-3)
    points, normals = domain.normals("absorbing")
    np.testing.assert_allclose(normals, points / np.linalg.norm(points, axis=1, keepdims=True), atol=0.03)
    stopped = domain.moved(0.7 * ray, 1.2 * ray, still(300, 3), np.random.default_rng(0))
    np.testing.assert_allclose(stopped, ray, atol=1.4e-3)
    assert domain.exited(stopped).all()
    mirrors = MeshDomain(domain.mesh)
    mirrored = mirrors.moved(0.8 * ray, 1.2 * ray, None, np.random.default_rng(0))
    np.testing.assert_allclose(mirrored, 0.8 * ray, atol=2e-2)
    assert mirrors.contains(mirrored).all()
    assert "512 curved tet cells" in repr(domain)
    for other in (copy.deepcopy(mirrors), pickle.loads(pickle.dumps(mirrors))):
        assert other.curved
        again = other.moved(0.8 * ray, 1.2 * ray, None, np.random.default_rng(0))
        np.testing.assert_array_equal(again, mirrored)


def test_meshes_that_cover_what_curved_edges_enclose():
    domain = MeshDomain(RING)
    known = problem(domain, start=[1.5, 0.0])
    assert differences(known, fingerprint(problem(MeshDomain(refined_mesh(RING)), start=[1.5, 0.0]))) == []
    check_mesh(refined_mesh(RING), known)
    flat = skfem.MeshTri(RING.p[:, : RING.nvertices], RING.t)
    assert "boundary of the domain" in differences(problem(MeshDomain(flat), start=[1.5, 0.0]), fingerprint(known))
    with pytest.raises(DomainError, match=r"whose edges are curved, but the mesh .MeshTri1. has straight cells"):
        check_mesh(flat, known)
    other = skfem.MeshTri2(RING.p.copy(), RING.t)
    other.doflocs[:, RING.dofs.get_facet_dofs(RING.boundary_facets()).flatten()[-1]] *= 1.001
    with pytest.raises(DomainError, match="the mesh must cover the same"):
        check_mesh(other, known)
    with pytest.raises(DomainError, match="Uniform takes meshes with straight edges; give the corners"):
        fh.Uniform(domain)


def test_steps_that_are_much_too_long():
    domain = MeshDomain(square())
    with pytest.raises(ConvergenceError, match="longer than 100 times the domain is wide; take more steps"):
        domain.moved(np.array([[0.5, 0.5]]), np.array([[500.0, 0.0]]), None, np.random.default_rng(0))
    with pytest.raises(ConvergenceError, match="1 steps are reflected more than 100 times"):
        domain.moved(np.array([[0.5, 0.5]]), np.array([[110.0, 0.0]]), None, np.random.default_rng(0))


def test_problems_that_do_not_fit():
    domain = MeshDomain(square(), {"left": "absorbing", None: "reflecting"})
    with pytest.raises(ProblemError, match="domain must be a Box, a MeshDomain or None, got MeshTri1; of a mesh, Mesh"):
        problem(square())
    with pytest.raises(ProblemError, match="domain has dimension 2, the problem has dim=1"):
        problem(domain, dim=1, initial_law=fh.PointMass([0.5]))
    with pytest.raises(ProblemError, match=r"100% of the initial law lies outside the domain, a mesh of .*Uniform"):
        problem(domain, start=[3.0, 0.5])
    with pytest.raises(ProblemError, match="on or behind its absorbing faces"):
        problem(domain, start=[0.0, 0.5])
    bad = MeshDomain(square(), {"left": "absorbing", None: "reflecting"}, lambda t, x: x)
    with pytest.raises(ProblemError, match=r"exit_reward\(t, x\) returned shape"):
        problem(bad)


def test_meshes_that_do_not_cover_it():
    domain = MeshDomain(square(), {"left": "absorbing", None: "reflecting"})
    check_mesh(square("quad", 3), problem(domain))
    check_mesh(square("tri", 4).refined(1), problem(domain))
    for other in (box_mesh(Box([0.0, 0.0], [2.0, 1.0]), 4, "tri"), box_mesh(Box([0.0, 0.0], [0.75, 1.0]), 4, "tri")):
        with pytest.raises(DomainError, match="the mesh must cover the same"):
            check_mesh(other, problem(domain))
    annulus = MeshDomain(PLATE)
    filled = skfem.MeshTri.init_circle(4).scaled(2.0)
    with pytest.raises(DomainError, match="the mesh must cover the same"):
        check_mesh(filled, problem(annulus, start=[0.0, 0.0]))
