"""Which faces truncate, which nodes lie on them, and where a weak form reflects as the process does."""

from dataclasses import replace

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference import fokker_planck
from fem_hjb.reference.faces import absorbed_nodes, check_reflection, endless, face_values, on_face, truncated
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import spatial_basis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.errors import DomainError

FACES = [("natural", "absorbing"), ("reflecting", "natural")]


def inside(domain: Box | None) -> ControlProblem:
    law = Gaussian(np.zeros(2), 0.02 * np.eye(2))
    return replace(zoo.get("lq", dim=2), domain=domain, initial_law=law, exact=None, marginal=None)


def bases() -> list[SpatialBasis]:
    box = Box([-1.0, -2.0], [1.0, 2.0])
    lines = [SpectralLine(np.linspace(a, b, 4), 3) for a, b in ((-1.0, 1.0), (-2.0, 2.0))]
    return [SpectralBasis(lines), spatial_basis(box_mesh(box, 6, "tri"), "P2")]


def test_finite_natural_faces_truncate_but_do_not_move() -> None:
    problem = inside(Box([-1.0, -2.0], [1.0, np.inf], boundary=FACES))
    assert truncated(problem).tolist() == [[True, False], [False, True]]
    assert endless(problem).tolist() == [[False, False], [False, True]]
    assert truncated(inside(None)).all()
    assert endless(inside(None)).all()


@pytest.mark.parametrize("basis", bases(), ids=["spectral", "mesh"])
def test_nodes_on_faces(basis: SpatialBasis) -> None:
    problem = inside(Box([-1.0, -2.0], [1.0, 2.0], boundary=FACES))
    right = basis.nodes[:, 0] == 1.0
    assert right.any()
    np.testing.assert_array_equal(on_face(basis, 0, 1.0), right)
    np.testing.assert_array_equal(absorbed_nodes(problem, basis), right)
    assert not absorbed_nodes(inside(None), basis).any()
    largest = face_values(basis, np.stack([np.where(right, 2.0, 1.0), np.where(right, -3.0, 4.0)]))
    np.testing.assert_allclose(largest, [[1.0, 1.0], [1.0, 1.0]])


def test_reflection_is_checked_at_the_faces_that_reflect_and_nowhere_else() -> None:
    def mixed(at: float) -> ControlProblem:
        def diffusion(t: float, x: np.ndarray) -> np.ndarray:
            return np.eye(2) + 0.3 * (np.abs(x[..., 0] - at) < 0.1)[..., None, None] * np.array([[0, 1], [1, 0]])

        domain = Box([-1.0, -1.0], [1.0, 1.0], boundary=[("reflecting", "reflecting"), ("natural", "natural")])
        return replace(inside(domain), diffusion=diffusion)

    mesh = box_mesh(Box([-1.0, -1.0], [1.0, 1.0]), 6, "tri")
    basis = spatial_basis(mesh, "P2")
    check_reflection(mixed(0.0), basis)
    for refuses in (
        lambda: check_reflection(mixed(1.0), basis),
        lambda: fokker_planck.solve(mixed(1.0), mesh=mesh),
        lambda: solve_on_mesh(mixed(1.0), mesh),
    ):
        with pytest.raises(DomainError, match="off-diagonal entries in row 0 on the"):
            refuses()
