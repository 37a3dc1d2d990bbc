"""Curved meshes from files and of scikit-fem: their nodes, names, bases, refinements and files, and what is refused."""

import meshio
import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.interop import export
from fem_hjb.problems.cells import closures, nodes_of
from fem_hjb.reference.mesh_refine import refine
from fem_hjb.solutions.density import DensityLaw
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.mesh_files import load_mesh
from fem_hjb.spaces.meshes import refined_mesh
from fem_hjb.spaces.recovery import GradientRecovery
from fem_hjb.support.errors import DomainError, SpaceError


def disc(level=2):
    return skfem.MeshTri2.init_circle(level).with_boundaries({"right": lambda x: x[0] > 0.0})


def ball(level=1):
    return skfem.MeshTet2.init_ball(level).with_boundaries({"up": lambda x: x[2] > 0.0})


ROUND = {"disc": disc, "ball": ball}


def brownian(dim, **more):
    given = {"horizon": 0.1, "temperature": 0.5, "initial_law": fh.Gaussian(np.zeros(dim), 0.02)}
    return fh.ControlProblem(
        dim=dim,
        drift=lambda t, x: 0 * x,
        diffusion=1.0,
        terminal_reward=lambda x: 0.3 * x[..., 0] - (x**2).sum(-1),
        **(given | more),
    )


def volume(mesh):
    rule = MeshBasis(mesh, "P2").quadrature(4)
    return float((rule.weights * rule.det).sum())


def shuffled(mesh, rng):
    """meshio's cells of the same mesh: cells, corners and nodes in any order; and boundary facets in a group."""
    kind = "triangle6" if mesh.dim() == 2 else "tetra10"
    dofs = np.asarray(mesh.dofs.element_dofs)
    other = [2, 1, 0, 4, 3, 5] if mesh.dim() == 2 else [0, 2, 1, 3, 6, 5, 4, 7, 9, 8]
    turns = [[*range(len(other))], other]
    cells = np.stack([dofs[turns[c % 2], c] for c in rng.permutation(dofs.shape[1])])
    number = rng.permutation(mesh.p.shape[1])
    points = np.empty((mesh.p.shape[1], 3))
    points[number] = np.pad(mesh.p.T, ((0, 0), (0, 3 - mesh.dim())))
    facets = mesh.facets[:, next(iter(mesh.boundaries.values()))].T
    blocks = [("line" if mesh.dim() == 2 else "triangle", number[facets]), (kind, number[cells])]
    data = {"gmsh:physical": [np.full(len(facets), 7), np.full(len(cells), 1)]}
    return meshio.Mesh(points, blocks, cell_data=data)


@pytest.mark.parametrize("name", ROUND)
def test_files_keep_curved_cells_and_their_names(name, tmp_path):
    """Whatever the order of cells, corners and nodes in the file."""
    mesh = ROUND[name]()
    shuffled(mesh, np.random.default_rng(0)).write(tmp_path / "a.vtu")
    read = load_mesh(tmp_path / "a.vtu")
    assert type(read) is type(mesh)
    assert {*map(tuple, read.p.T)} == {*map(tuple, mesh.p.T)}
    sorted_cells = [sorted(map(tuple, np.sort(nodes_of(m), axis=0).reshape(-1, m.dim()))) for m in (read, mesh)]
    np.testing.assert_allclose(*sorted_cells, atol=1e-15)
    assert volume(read) == pytest.approx(volume(mesh), rel=1e-13)
    on = closures(read, read.facets[:, read.boundaries["7"]])
    np.testing.assert_allclose(np.linalg.norm(on, axis=0), 1.0, atol=1e-14)
    assert on.shape[2] == len(next(iter(mesh.boundaries.values())))
    straight = load_mesh(tmp_path / "a.vtu", straight=True)
    assert straight.p.shape[1] == mesh.nvertices
    assert set(straight.boundaries) == {"7"}


@pytest.mark.parametrize("name", ROUND)
def test_files_of_scikit_fem_keep_names(name, tmp_path):
    mesh = ROUND[name]()
    mesh.save(tmp_path / "a.vtk")
    read = load_mesh(tmp_path / "a.vtk", dim=mesh.dim())
    for part, facets in mesh.boundaries.items():
        theirs, ours = closures(mesh, mesh.facets[:, facets]), closures(read, read.facets[:, read.boundaries[part]])
        assert {*map(tuple, theirs.reshape(mesh.dim(), -1).T)} == {*map(tuple, ours.reshape(mesh.dim(), -1).T)}


@pytest.mark.parametrize("element", ["P1", "P2", "P3", "P4"])
def test_a_basis_does_not_depend_on_the_order_of_corners(element):
    mesh = disc()
    turned = skfem.MeshTri2(mesh.p, mesh.t[[2, 0, 1]])
    x = np.random.default_rng(0).uniform(-0.7, 0.7, (50, 2))
    found = []
    for one in (mesh, turned):
        basis = MeshBasis(one, element)
        values = basis.interpolate(np.sin(basis.nodes @ [2.0, 1.0]))
        found.append(np.column_stack(basis.at(values, *basis.locate(x), 1)))
    np.testing.assert_allclose(*found, atol=1e-12)


@pytest.mark.parametrize("name", ROUND)
def test_functions_and_slopes(name):
    """Linear functions are what they are, slopes are those of differences, and recovered ones of quadratics exact."""
    mesh, rng = ROUND[name](), np.random.default_rng(1)
    basis, d = MeshBasis(mesh, "P2"), mesh.dim()
    assert not basis.affine
    x = rng.uniform(-0.5, 0.5, (40, d))
    cells, xi = basis.locate(x)
    linear = basis.interpolate(1.0 + basis.nodes @ np.arange(1.0, d + 1))
    value, slope = basis.at(linear, cells, xi, 1)
    np.testing.assert_allclose(value, 1.0 + x @ np.arange(1.0, d + 1), atol=1e-13)
    np.testing.assert_allclose(slope, np.tile(np.arange(1.0, d + 1), (40, 1)), atol=1e-12)
    bent = basis.interpolate(np.sin(3 * basis.nodes).sum(axis=1))
    slope, step = basis.at(bent, cells, xi, 1)[1], 1e-6
    for k in range(d):
        ends = [basis.locate(x + sign * step * np.eye(d)[k]) for sign in (1, -1)]
        same = (ends[0][0] == cells) & (ends[1][0] == cells)
        assert same.sum() > 30
        change = (basis.at(bent, *ends[0])[0] - basis.at(bent, *ends[1])[0]) / (2 * step)
        np.testing.assert_allclose(change[same], slope[same, k], atol=1e-8)
    known = basis.nodes, basis.cell_dofs, basis.vertices, basis.cell_vertices, basis.vertex_functions, 2
    recovered = GradientRecovery(*known)((basis.nodes**3).sum(axis=1))
    np.testing.assert_allclose(recovered, 3 * basis.nodes**2, atol=1e-9)


@pytest.mark.parametrize("name", ROUND)
def test_refined_cells_are_parts_of_what_they_were(name):
    mesh = ROUND[name]()
    fine = refined_mesh(mesh)
    d = mesh.dim()
    assert type(fine) is type(mesh)
    assert fine.t.shape[1] == 2**d * mesh.t.shape[1]
    assert fine.nvertices == mesh.p.shape[1]
    assert volume(fine) == pytest.approx(volume(mesh), rel=1e-13)
    coarse, finer = MeshBasis(mesh, "P2"), MeshBasis(fine, "P2")
    inner = finer.quadrature(2).x.reshape(-1, d)
    assert (coarse.locate(inner)[0] >= 0).all()
    np.testing.assert_array_equal(coarse.box.bounds[0] <= fine.p.min(axis=1), True)


def test_straight_cells_of_second_order_are_affine():
    for straight, second in ((skfem.MeshTri1, skfem.MeshTri2), (skfem.MeshTet1, skfem.MeshTet2)):
        mesh = straight().refined(1)
        one, two = MeshBasis(mesh, "P2"), MeshBasis(second.from_mesh(mesh), "P2")
        assert two.affine
        np.testing.assert_allclose(one.quadrature(3).det, two.quadrature(3).det, atol=1e-14)
        assert two.quadrature(3).det.shape[1] == 1


def test_samples_of_a_density_reach_into_the_round():
    """The uniform law on a square with round faces: as many samples beyond the square as there is space."""
    mesh = skfem.MeshTri2()
    mesh.doflocs += np.where(np.abs(mesh.p - 0.5).sum(axis=0) == 0.5, 0.4 * (mesh.p - 0.5), 0.0)
    basis = MeshBasis(mesh, "P1")
    assert volume(mesh) == pytest.approx(1 + 4 * 2 / 3 * 0.2)
    np.testing.assert_allclose(basis.box.bounds, [[-0.4] * 2, [1.4] * 2])  # of control points, twice as far out
    x = DensityLaw(basis, np.ones(basis.n_dofs)).sample(4000, np.random.default_rng(0))
    share = 1 - 1 / volume(mesh)
    beyond = (np.abs(x - 0.5).max(axis=1) > 0.5).mean()
    assert abs(beyond - share) < 4 * np.sqrt(share / 4000)


def test_solutions_on_curved_meshes_are_written_and_read(tmp_path):
    x = np.random.default_rng(2).uniform(-0.6, 0.6, (20, 2))
    for mesh in (disc(), skfem.MeshTri2(disc().p, disc().t[[1, 0, 2]])):
        solution = fh.solve_on_mesh(brownian(2), mesh, steps=4)
        fh.save_solution(tmp_path / "a.npz", solution)
        read = fh.load_solution(tmp_path / "a.npz", brownian(2))
        assert type(read.space.spatial.mesh) is skfem.MeshTri2
        np.testing.assert_array_equal(read.value(0.03, x), solution.value(0.03, x))
        np.testing.assert_array_equal(read.policy(0.03, x), solution.policy(0.03, x))


@pytest.mark.parametrize(("name", "kind", "nodes"), [("disc", "triangle6", 6), ("ball", "tetra10", 10)])
def test_solutions_are_exported_with_their_curved_cells(name, kind, nodes, tmp_path):
    solution = fh.solve_on_mesh(brownian(2 if name == "disc" else 3), ROUND[name](), steps=2)
    export(solution, tmp_path / "a.vtu", times=0.0)
    read = meshio.read(tmp_path / "a.vtu")
    ((block),) = read.cells
    assert block.type == kind
    assert block.data.shape == (solution.space.spatial.n_cells, nodes)
    x = read.points[:, : solution.problem.dim]
    np.testing.assert_array_equal(read.point_data["value"], solution.value(0.0, x))
    again = load_mesh(tmp_path / "a.vtu", dim=solution.problem.dim)
    assert volume(again) == pytest.approx(volume(ROUND[name]()), rel=1e-13)


def write(path, cells, points=None):
    """triangle6 cells on the unit square with a curved diagonal, with changes."""
    square = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0], [0.6, 0.6], [0, 0.5], [1, 0.5], [0.5, 1]])
    square = square if points is None else np.vstack([square, points])
    meshio.Mesh(np.pad(square, ((0, 0), (0, 1))), cells).write(path)
    return path


LOW, HIGH = [0, 1, 2, 4, 5, 6], [1, 3, 2, 7, 8, 5]


@pytest.mark.parametrize(
    ("cells", "points", "message"),
    [
        ([("triangle6", [LOW]), ("triangle", [[1, 3, 2]])], None, "mixes orders or kinds of cells.*straight=True"),
        ([("triangle6", [LOW]), ("quad", [[1, 3, 8, 2]])], None, "mixes orders or kinds of cells.*straight=True"),
        (
            [("triangle6", [LOW, [1, 3, 2, 7, 8, 9]])],
            [[0.5, 0.5]],
            r"1 edges of cells whose node is not that of the neighbour, the first is of cell \d; merge nodes",
        ),
        ([("triangle6", [LOW, [1, 3, 2, 7, 8, 99]])], None, "damaged: its cells refer to vertices 0 to 99"),
        ([("triangle6", [LOW, HIGH])], [[3.0, 3.0]], "1 vertices that belong to no cell"),
        (
            [("triangle6", [[0, 1, 2, 4, 9, 6], [1, 3, 2, 7, 8, 9]]), ("vertex", [[5]])],
            [[0.05, 0.05]],
            "1 of 2 cells that are inverted in places.*the first is 0",
        ),
        ([("quad8", [[0, 1, 3, 2, 4, 7, 8, 9]])], [[0.2, 0.5]], "1 quad8 cells with curved edges, up to 0.2 from"),
    ],
    ids=["order", "kind", "neighbours", "missing", "loose", "folded", "quad8"],
)
def test_files_that_are_refused(cells, points, message, tmp_path):
    path = write(tmp_path / "a.vtu", cells, points)
    with pytest.raises(DomainError, match=message):
        load_mesh(path)


def test_a_sound_file_of_two_curved_triangles(tmp_path):
    mesh = load_mesh(write(tmp_path / "a.vtu", [("triangle6", [LOW]), ("triangle6", [HIGH])]))
    assert type(mesh) is skfem.MeshTri2
    assert volume(mesh) == pytest.approx(1.0, rel=1e-14)


SQUARE = fh.Box([-1.0, -1.0], [1.0, 1.0])


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (DomainError, lambda: fh.refine_on_mesh(brownian(2), mesh=disc(), rtol=1e-2), "curved cells are not taken"),
        (DomainError, lambda: refine(disc(), np.array([0])), "curved cells are not taken here"),
        (DomainError, lambda: fh.spaces.spatial_basis(disc(), "hermite"), "curved cells are not taken here"),
        (DomainError, lambda: fh.solve_on_mesh(brownian(3), disc()), "dimension 2, the problem has dim=3"),
        (DomainError, lambda: fh.solve_on_mesh(brownian(2, domain=SQUARE), disc()), "16 of its boundary facets"),
        (
            SpaceError,
            lambda: fh.solve_on_mesh(brownian(3), ball(), element="P3"),
            "'P3' is not defined on a mesh of tet",
        ),
        (
            DomainError,
            lambda: fh.solve_on_mesh(brownian(2, domain=fh.MeshDomain(skfem.MeshTri.init_circle(2))), disc()),
            "whose edges are straight, but the mesh .MeshTri2. has curved cells",
        ),
        (DomainError, lambda: MeshBasis(skfem.MeshTri2(disc().p[:, :-1], disc().t), "P2"), "must have 145 nodes"),
        (
            DomainError,
            lambda: fh.stationary.solve_exit_on_mesh(
                fh.ExitProblem(dim=2, temperature=1.0, drift=lambda x: 0 * x, diffusion=1.0), disc(), absorbing="left"
            ),
            r"absorbing must name tags of mesh.boundaries, of \['right'\]",
        ),
    ],
    ids=["refine_on_mesh", "refine", "C1", "dim", "box", "P3", "straight domain", "nodes", "tag"],
)
def test_what_curved_meshes_are_not_for(error, call, message):
    with pytest.raises(error, match=message):
        call()


def test_a_box_may_have_curved_cells_within():
    """Faces stay flat: the mesh fills the box, and its cells are bent inside."""
    mesh = skfem.MeshTri2.from_mesh(skfem.MeshTri1.init_tensor(*[np.linspace(-1.0, 1.0, 9)] * 2))
    mesh.doflocs += 0.1 * np.sin(np.pi * mesh.p).prod(axis=0)
    problem = brownian(2, domain=SQUARE)
    bent = fh.solve_on_mesh(problem, mesh, element="P4", steps=20)
    fine = fh.solve_on_mesh(problem, cells=8, element="P4", steps=20)
    x = np.random.default_rng(1).uniform(-1.0, 1.0, (200, 2))
    np.testing.assert_allclose(bent.value(0.0, x), fine.value(0.0, x), atol=1e-4)
    bulging = skfem.MeshTri2(mesh.p, mesh.t)
    edge = mesh.dofs.get_facet_dofs(mesh.boundary_facets()[:1]).flatten()[-1]
    bulging.doflocs[:, edge] *= 1.02
    with pytest.raises(DomainError, match="1 of its boundary facets lie elsewhere"):
        fh.solve_on_mesh(problem, bulging)
