"""Faces of a domain, of boxes and of meshes: one definition of which ones truncate, reflect or absorb."""

from collections.abc import Callable
from functools import partial

import numpy as np

from fem_hjb.problems.box import BoolArray, Box
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import DomainError

_ON = 1e-9  # of the width of a basis: nodes this near to a face lie on it


def truncated(problem: ControlProblem) -> BoolArray:
    """(2, d): the lower and upper faces at which a box ends but the process does not."""
    if problem.box is None:
        return np.ones((2, problem.dim), dtype=np.bool_)
    return problem.box.where("natural")


def endless(problem: ControlProblem) -> BoolArray:
    """(2, d): those of the truncated faces that lie at infinity, so that a box may put them anywhere."""
    if problem.box is None:
        return truncated(problem)
    return ~np.isfinite(np.asarray(problem.box.bounds))


def faces_of_domain(problem: ControlProblem, bounds: FloatArray) -> BoolArray:
    """(2, d): which faces of a box with these bounds (2, d) are finite ones of the domain."""
    if problem.box is None:
        return np.zeros(bounds.shape, dtype=np.bool_)
    gaps = np.abs(bounds - np.stack(problem.box.bounds))
    return np.asarray(gaps <= _ON * (bounds[1] - bounds[0]))


def check_faces(problem: ControlProblem, box: Box, kept: BoolArray) -> None:
    """DomainError unless a box has those faces (2, d) of problem.domain that are to be kept."""
    domain = problem.box
    if domain is None:
        return
    own, needed = np.stack(box.bounds), np.stack(domain.bounds)
    if (np.abs(own - needed)[kept] > _ON * np.broadcast_to(np.ptp(own, axis=0), own.shape)[kept]).any():
        raise DomainError(f"the process lives in {domain}, so the box must have its faces too, got {box}")


def on_face(basis: SpatialBasis, axis: int, level: float) -> BoolArray:
    """(n,): which nodes lie on the face x_axis = level."""
    lower, upper = basis.box.bounds
    return np.asarray(np.abs(basis.nodes[:, axis] - level) <= _ON * (upper[axis] - lower[axis]))


def absorbed_nodes(problem: ControlProblem, basis: SpatialBasis) -> BoolArray:
    """(n,): which nodes lie on absorbing faces."""
    mask = np.zeros(len(basis.nodes), dtype=np.bool_)
    domain = problem.domain
    if isinstance(domain, MeshDomain):
        return domain.on("absorbing", basis.nodes)
    if domain is not None:
        for side, axis in np.argwhere(domain.where("absorbing")):
            mask |= on_face(basis, axis, domain.bounds[side][axis])
    return mask


def moved_to_faces(problem: ControlProblem, x: FloatArray) -> list[FloatArray]:
    """Points (n, d), moved to each absorbing face."""
    return [] if problem.domain is None else problem.domain.on_absorbing(x)


def check_reflection(problem: ControlProblem, basis: SpatialBasis) -> None:
    """The natural condition <Lambda grad f, n> = 0 is reflection along n only where Lambda n is parallel to n."""
    domain = problem.domain
    if domain is None or problem.dim == 1:
        return
    if isinstance(domain, MeshDomain):
        for t in (0.0, 0.5 * problem.horizon, problem.horizon):
            check_along_normals(domain, partial(problem.Lambda, t), f", t={t:g}")
        return
    for side, axis in np.argwhere(domain.where("reflecting")).tolist():
        here = basis.nodes[on_face(basis, axis, domain.bounds[side][axis])]
        for t in (0.0, 0.5 * problem.horizon, problem.horizon):
            rows = problem.Lambda(t, here)[:, axis]
            if np.abs(np.delete(rows, axis, axis=1)).max() > 1e-10 * np.abs(rows).max():
                raise DomainError(
                    f"reflection along the normal needs a diffusion without off-diagonal entries in row {axis} on the"
                    f" faces across axis {axis}: with others the weak form reflects along Lambda n instead; rotate the"
                    " coordinates, or use a domain far from where the process goes, which does not reflect"
                )


def check_along_normals(domain: MeshDomain, Lambda: Callable[[FloatArray], FloatArray], when: str = "") -> None:
    """The same on the reflecting facets of a mesh, at their centres."""
    if not domain.has("reflecting"):
        return
    x, normal = domain.normals("reflecting")
    pushed = np.einsum("nij,nj->ni", Lambda(x), normal)
    along = (pushed * normal).sum(axis=1)
    aside = np.linalg.norm(pushed - along[:, None] * normal, axis=1)
    if (aside > 1e-10 * along).any():
        worst = int(np.argmax(aside / along))
        raise DomainError(
            "reflection along the normal n of a facet needs Lambda n parallel to n there, as multiples of the unit"
            f" matrix are: at x={x[worst].tolist()}{when} it is not, and the weak form reflects along Lambda n"
            " instead; change the coordinates, or let the process be stopped there"
        )


def face_values(basis: SpatialBasis, rows: FloatArray) -> FloatArray:
    """The largest |p| on each face (2, d) relative to the maximum of its time, of values (k, n) at the nodes."""
    sizes = np.abs(rows).max(axis=1)
    result = np.zeros((2, basis.dim))
    for side, corner in enumerate(basis.box.bounds):
        for k in range(basis.dim):
            on = on_face(basis, k, corner[k])
            result[side, k] = (np.abs(rows[:, on]).max(axis=1, initial=0.0) / sizes).max()
    return result


def truncated_values(problem: ControlProblem, basis: SpatialBasis, rows: FloatArray) -> float:
    """The largest |p| on faces at which a basis ends and the process does not, relative to the maximum of its time."""
    on: BoolArray | IntArray | None = None
    if isinstance(problem.domain, MeshDomain):
        on = problem.domain.on("natural", basis.nodes)
    elif problem.domain is None and isinstance(basis, MeshBasis):
        on = basis.boundary_dofs()
    if on is not None:
        return float((np.abs(rows[:, on]).max(axis=1, initial=0.0) / np.abs(rows).max(axis=1)).max())
    cut = endless(problem) | ~faces_of_domain(problem, np.stack(basis.box.bounds))
    return float(face_values(basis, rows)[cut].max(initial=0.0))
