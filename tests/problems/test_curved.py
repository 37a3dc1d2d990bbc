"""Curved triangles and tetrahedra: which are one to one, and where points lie in them."""

import numpy as np
import pytest
import skfem

from fem_hjb.problems.cells import CURVED, KINDS, check_curved, locator_of, mesh_kind, nodes_of, sound_mesh
from fem_hjb.problems.curved import (
    CurvedCells,
    control_points,
    cramer,
    functions,
    one_to_one,
    powers,
    reference_nodes,
)
from fem_hjb.support.errors import DomainError

BENT = ["tri", "tet"]


def bent(kind, amount, count, rng):
    """Cells (k, count, d) whose nodes on edges are moved at random."""
    at = reference_nodes(kind)
    move = amount * rng.standard_normal((len(at), count, at.shape[1]))
    move[: at.shape[1] + 1] = 0.0
    return at[:, None] + move


def within(kind, count, rng):
    """Points (count, d) of the reference cell."""
    return rng.dirichlet(np.ones(len(reference_nodes(kind)[0]) + 1), size=count)[:, 1:]


def determinants(nodes, kind, xi):
    linear, square = powers(nodes, kind)
    return np.linalg.det(linear[:, None] + 2.0 * np.einsum("cijk,qj->cqik", square, xi))


@pytest.mark.parametrize("kind", BENT)
def test_the_map_is_that_of_scikit_fem(kind):
    mesh = CURVED[kind]()
    rng = np.random.default_rng(0)
    mesh.doflocs += 0.02 * rng.standard_normal(mesh.doflocs.shape)
    xi = within(kind, 7, rng)
    nodes = nodes_of(mesh)
    theirs = mesh.mapping().F(xi.T)
    np.testing.assert_allclose(np.einsum("qk,kcd->dcq", functions(xi, kind), nodes), theirs, atol=1e-14)
    linear, square = powers(nodes, kind)
    ours = nodes[0].T[..., None] + np.einsum("cik,qk->icq", linear, xi)
    ours += np.einsum("cijk,qj,qk->icq", square, xi, xi)
    np.testing.assert_allclose(ours, theirs, atol=1e-14)
    np.testing.assert_allclose(np.abs(determinants(nodes, kind, xi)), np.abs(mesh.mapping().detDF(xi.T)), atol=1e-14)
    hull = control_points(nodes, kind)
    assert (theirs <= hull.max(axis=0).T[..., None]).all()
    assert (theirs >= hull.min(axis=0).T[..., None]).all()


@pytest.mark.parametrize("kind", BENT)
def test_folded_cells_are_told_from_sound_ones(kind):
    """No cell with a negative Jacobian anywhere passes; whose Jacobians are well above zero do."""
    rng = np.random.default_rng(1)
    xi = np.vstack([within(kind, 400, rng), reference_nodes(kind)])
    for amount in (0.1, 0.25):
        nodes = bent(kind, amount, 500, rng)
        sound, det = one_to_one(nodes, kind), determinants(nodes, kind, xi)
        assert 10 < sound.sum() < 490
        assert (det[sound] > 0).all()
        assert sound[(det > 0.15 * det.max(axis=1, keepdims=True)).all(axis=1)].all()
        turned = nodes[[1, 0, 2, 3, 5, 4] if kind == "tri" else [1, 0, 2, 3, 4, 6, 5, 8, 7, 9]]
        np.testing.assert_array_equal(one_to_one(turned, kind), sound)  # numbered the other way round
    inside_out = reference_nodes(kind)[:, None].copy()
    inside_out[len(xi[0]) + 1 :] -= 3.0  # of one sign at the corners, and that of the corners' simplex is another
    assert not one_to_one(inside_out, kind).any()


@pytest.mark.parametrize("kind", BENT)
def test_points_of_bent_cells_are_found_where_they_are(kind):
    rng = np.random.default_rng(2)
    for amount in (0.005, 0.25):
        nodes = bent(kind, amount, 300, rng)
        nodes = nodes[:, one_to_one(nodes, kind)]
        cells = CurvedCells(nodes, kind, 1e-10)
        assert cells.mild.any() == (amount < 0.1)
        xi = within(kind, 60, rng)
        x = np.einsum("qk,kcd->cqd", functions(xi, kind), nodes)
        which = np.repeat(np.arange(nodes.shape[1]), len(xi))
        found, depth = cells.invert(which, x.reshape(len(which), -1).T)
        assert (depth > -1e-10).all()
        assert np.abs(found.T - np.tile(xi, (nodes.shape[1], 1))).max() < 1e-9


def test_small_systems():
    rng = np.random.default_rng(3)
    for d in (2, 3):
        matrix, right = rng.standard_normal((d, d, 20)), rng.standard_normal((d, 20))
        np.testing.assert_allclose(np.einsum("ijm,jm->im", matrix, cramer(matrix, right)), right, atol=1e-12)


@pytest.mark.parametrize(
    ("mesh", "gap"), [(skfem.MeshTri2.init_circle(2), 2e-3), (skfem.MeshTet2.init_ball(2), 3e-2)], ids=["disc", "ball"]
)
def test_points_between_the_polygon_and_the_curved_boundary(mesh, gap):
    """The polygon leaves out what the curved cells have; what is beyond these is in no cell."""
    _, locator = sound_mesh(mesh, "the mesh")
    rng = np.random.default_rng(4)
    direction = rng.standard_normal((2000, mesh.dim()))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    assert (locator(direction * (1 - gap))[0] >= 0).all()
    assert (locator(direction * (1 + gap))[0] < 0).all()
    straight = KINDS[mesh_kind(mesh, curved=True)](mesh.p[:, : mesh.nvertices], mesh.t)
    assert (locator_of(straight)(direction * (1 - gap))[0] < 0).mean() > 0.3


def folded():
    """A node of the boundary pulled through the cell, and beyond."""
    mesh = skfem.MeshTri2.init_circle(1)
    outer = np.setdiff1d(mesh.dofs.get_facet_dofs(mesh.boundary_facets()).flatten(), mesh.t)
    mesh.doflocs[:, outer[:2]] *= 0.4
    return mesh


def overlapping():
    """A ring that does not quite close, one end of which bulges into the other."""
    flat = skfem.MeshTri2.from_mesh(skfem.MeshTri1.init_tensor(np.linspace(0.0, 6.0, 13), np.array([1.0, 2.0])))
    angle, radius = flat.p
    bulge = np.where((angle == 0.0) & (radius == 1.5), -0.5, 0.0)
    return skfem.MeshTri2(radius * np.stack([np.cos(angle + bulge), np.sin(angle + bulge)]), flat.t)


def with_nan():
    mesh = skfem.MeshTet2.init_ball(1)
    mesh.doflocs[:, -1] = np.nan
    return mesh


def without(count):
    mesh = skfem.MeshTri2.init_circle(1)
    return skfem.MeshTri2(mesh.p[:, :-count], mesh.t)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (folded, r"2 of 16 cells that are inverted in places.*the first is \d+; mesh the domain again, finer"),
        (overlapping, "2 curved facets of the boundary of the mesh reach into other cells"),
        (with_nan, "nodes on edges that are not finite"),
        (lambda: without(35), "must have 41 nodes.* got 6"),
        (lambda: without(3), "a MeshTri2 of these cells must have 41 nodes.* got 38; .*MeshTri2.from_mesh"),
    ],
    ids=["folded", "overlapping", "nan", "hardly any", "missing"],
)
def test_meshes_that_are_refused(make, message):
    with pytest.raises(DomainError, match=message):
        sound_mesh(make(), "the mesh")


def test_what_is_sound():
    for mesh in (skfem.MeshTri2.init_circle(1), skfem.MeshTet2.init_ball(1), skfem.MeshTri2(), skfem.MeshTet2()):
        check_curved(nodes_of(mesh), mesh_kind(mesh, curved=True), "the mesh")
        boundary, _ = sound_mesh(mesh, "the mesh")
        assert boundary.shape == (mesh.dim(), len(mesh.boundary_facets()))
