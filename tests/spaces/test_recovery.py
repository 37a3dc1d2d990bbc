"""Polynomial-preserving recovery: exact on polynomials of degree p + 1, of order p + 1, local."""

import numpy as np
import pytest
import skfem

from fem_hjb.spaces.recovery import GradientRecovery
from fem_hjb.support.errors import SpaceError

rng = np.random.default_rng(3)


def recovery(mesh, element):
    basis = skfem.Basis(mesh, element, intorder=2)
    corners = element.doflocs
    if isinstance(mesh, skfem.MeshQuad):
        xi, eta = corners.T
        blend = np.stack([(1 - xi) * (1 - eta), xi * (1 - eta), xi * eta, (1 - xi) * eta], axis=-1)
    else:
        blend = np.column_stack([1 - corners.sum(axis=1), corners])
    nodes = basis.doflocs.T.copy()
    args = (nodes, basis.element_dofs.T.astype(np.int64), mesh.p.T.copy(), mesh.t.T.astype(np.int64), blend)
    return nodes, GradientRecovery(*args, degree=element.maxdeg if not isinstance(mesh, skfem.MeshQuad) else 2)


def perturbed(mesh, size=0.15):
    """The mesh with its interior vertices moved by a fraction of the cell size."""
    inner = np.setdiff1d(np.arange(mesh.p.shape[1]), mesh.boundary_nodes())
    p = mesh.p.copy()
    p[:, inner] += size * mesh.param() / 2 * rng.uniform(-1, 1, (p.shape[0], inner.size))
    return type(mesh)(p, mesh.t)


def axes(n, d):
    return [np.linspace(-1, 1, n + 1)] * d


CASES = {
    "line P1": (lambda n: skfem.MeshLine(axes(n, 1)[0]), skfem.ElementLineP1(), 1, (16, 32, 64)),
    "line P2": (lambda n: skfem.MeshLine(axes(n, 1)[0]), skfem.ElementLineP2(), 2, (16, 32, 64)),
    "tri P1": (lambda n: skfem.MeshTri.init_tensor(*axes(n, 2)), skfem.ElementTriP1(), 1, (16, 32, 64)),
    "tri P2": (lambda n: skfem.MeshTri.init_tensor(*axes(n, 2)), skfem.ElementTriP2(), 2, (16, 32, 64)),
    "tri P3": (lambda n: skfem.MeshTri.init_tensor(*axes(n, 2)), skfem.ElementTriP3(), 3, (8, 16, 32)),
    "quad Q2": (lambda n: skfem.MeshQuad.init_tensor(*axes(n, 2)), skfem.ElementQuad2(), 2, (8, 16, 32)),
    "tet P2": (lambda n: skfem.MeshTet.init_tensor(*axes(n, 3)), skfem.ElementTetP2(), 2, (5, 10)),
}


@pytest.mark.parametrize("name", CASES)
def test_exact_on_polynomials_of_degree_p_plus_1_on_perturbed_meshes(name):
    build, element, degree, sizes = CASES[name]
    mesh = perturbed(build(sizes[0]))
    nodes, recover = recovery(mesh, element)
    direction = rng.standard_normal(nodes.shape[1])
    s = 0.3 + nodes @ direction
    np.testing.assert_allclose(
        recover(s ** (degree + 1)), (degree + 1) * s[:, None] ** degree * direction, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", CASES)
def test_order_p_plus_1(name):
    build, element, degree, sizes = CASES[name]
    errors = []
    for n in sizes:
        nodes, recover = recovery(build(n), element)
        s = nodes.sum(axis=1)
        inner = (np.abs(nodes) < 0.75).all(axis=1)
        exact = np.repeat((1.3 * np.cos(1.3 * s))[:, None], nodes.shape[1], axis=1)
        errors.append(np.sqrt(((recover(np.sin(1.3 * s)) - exact)[inner] ** 2).mean()))
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    # symmetric patches away from the boundary may cancel one more term, hence up to one order better
    assert degree + 1 - 0.15 < slope < degree + 2 + 0.15


def test_a_missing_value_spoils_only_its_patches():
    nodes, recover = recovery(skfem.MeshTri.init_tensor(*axes(16, 2)), skfem.ElementTriP2())
    values = nodes[:, 0] ** 2
    values[np.argmin(np.linalg.norm(nodes - [1.0, 1.0], axis=1))] = np.nan
    gradient = recover(values)
    spoiled = np.isnan(gradient).any(axis=1)
    assert spoiled.any()
    assert np.linalg.norm(nodes[spoiled] - [1.0, 1.0], axis=1).max() < 4 * np.sqrt(2) * 0.125
    np.testing.assert_allclose(gradient[~spoiled, 0], 2 * nodes[~spoiled, 0], atol=1e-10)


def test_a_mesh_too_coarse_for_the_fit_is_refused():
    with pytest.raises(SpaceError, match=r"too coarse to recover gradients: 2 of 2 vertices.*refine the mesh"):
        recovery(skfem.MeshLine(np.array([0.0, 1.0])), skfem.ElementLineP1())
