"""How far a solution on a mesh is from the exact one: solutions with a richer element and with smaller time steps."""

from typing import Any

import numpy as np

from fem_hjb.reference.mesh_backward import solve_on_basis
from fem_hjb.reference.mesh_boundary import Boundary, kind_of
from fem_hjb.solutions.compare import difference
from fem_hjb.solutions.estimate import ErrorEstimate, combine
from fem_hjb.solutions.norms import law_points
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.basis import ELEMENTS, SpatialBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.meshes import refined_mesh
from fem_hjb.spaces.tensor import HermiteBasis
from fem_hjb.stepping.adaptive import ORDER
from fem_hjb.support.checks import FloatArray, positive_integer
from fem_hjb.support.errors import DomainError, SpaceError
from fem_hjb.support.progress import Progress, part_of, unheard

MAX_DOFS = 300_000
_SMALLEST_RTOL = 1e-13
_IN_SPACE = 0.7  # share of progress: of the solution with a richer element


def estimate_on_mesh(
    solution: Solution,
    *,
    boundary: Boundary = "natural",
    max_dofs: int = MAX_DOFS,
    progress: Progress = unheard,
    seed: int = 0,
) -> ErrorEstimate:
    """How far a solution of `solve_on_mesh` is from the exact one, from two further solutions that are better.

    space : the difference to a solution with the next richer element on the same mesh (P1, P2, P3, P4; Q1, Q2). Where
        there is none, or it has more than `max_dofs` unknowns, the mesh is refined once, also for cubics of class C1,
        and the difference divided by 1 - 2^-q, q the order of the error. Where that has too many unknowns as well, the
        error of the next poorer element is taken instead, for P2 and Q2 times 4 h with h = cells^(-1/d): within a
        factor of 30 of the error where it was measured, mostly above. For cubics of class C1 it is the difference to
        those on every other grid point, divided by 2^q - 1.
    time : the difference to a solution with rtol_time / 16, or twice the steps, divided by 1 - 2^-4.
    truncation : 0; what the faces of the mesh do cannot be seen on it, see `mesh_truncation`.

    boundary : what `solve_on_mesh` was given.
    seed : of the paths that stand for the law of the process where it is not known.
    progress : hears of every stage of every step, and of every time compared; what it raises stops the work.

    Raises
    ------
    DomainError : the solution is not one of `solve_on_mesh`, or was made with another kind of boundary.
    SpaceError : nothing to compare with has at most max_dofs unknowns.
    """
    basis, stats = solution.space.spatial, solution.stats
    if solution.method != "mesh" or "rtol_time" not in stats:
        raise DomainError(f"estimate_on_mesh needs a solution of solve_on_mesh, got one by method {solution.method!r}")
    if kind_of(boundary) != stats["boundary"]:
        raise DomainError(
            f"the solution was made with a boundary that is {stats['boundary']}, got one that is {kind_of(boundary)};"
            " give the boundary= that solve_on_mesh was given"
        )
    richer, factors = _comparable(basis, positive_integer(max_dofs, "max_dofs", SpaceError))
    rtol, steps = stats["rtol_time"], stats["steps"]
    same: dict[str, Any] = {"steps": steps} if rtol is None else {"rtol": rtol}
    finer: dict[str, Any] = {"steps": 2 * steps} if rtol is None else {"rtol": max(rtol / 16, _SMALLEST_RTOL)}
    better = _again(solution, richer, same, boundary, part_of(progress, 0.0, _IN_SPACE))
    points = law_points(solution.problem, rng=seed)  # once: where the law is not known these are paths
    in_space = difference(solution, better, points=points, tell=progress)
    del better
    told = part_of(progress, _IN_SPACE, 1.0)
    later = _again(solution, basis, finer, boundary, told)
    if later.stats["steps"] <= steps:  # a tolerance so loose that other limits set the steps
        later = _again(solution, basis, {"steps": 2 * steps}, boundary, told)
    in_time = difference(solution, later, undefined=False, points=points, tell=progress)  # space has counted the rest
    shares = [
        {"space": a * factor, "time": b / (1 - 2.0**-ORDER)}
        for a, b, factor in zip(in_space, in_time, factors, strict=True)
    ]
    return combine(*shares)


def _again(
    solution: Solution, basis: SpatialBasis, control: dict[str, Any], boundary: Boundary, progress: Progress
) -> Solution:
    """The same problem on this basis and with this control of time."""
    excluded = solution.space.excluded_mass
    return solve_on_basis(solution.problem, basis, control, boundary, excluded=excluded, progress=progress)


def _comparable(basis: SpatialBasis, max_dofs: int) -> tuple[SpatialBasis, tuple[float, float]]:
    """A basis to compare with, and by what a difference in value and policy is multiplied to estimate the error."""
    orders = np.array(_orders(basis))
    refined, coarsened = 1 / (1 - 2.0**-orders), 1 / (2.0**orders - 1)
    if isinstance(basis, HermiteBasis):
        grids = [axis.points for axis in basis.axes]
        if 2**basis.dim * basis.n_dofs <= max_dofs:
            halved = [np.sort(np.concatenate([grid, (grid[1:] + grid[:-1]) / 2])) for grid in grids]
            return HermiteBasis(halved), _pair(refined)
        if min(grid.size for grid in grids) > 3:
            return HermiteBasis([np.append(grid[:-1:2], grid[-1]) for grid in grids]), _pair(coarsened)
    if isinstance(basis, MeshBasis):
        others = {e.degree: e.name for e in ELEMENTS.values() if basis.kind in e.kinds and not e.smoothness}
        p = basis.degree
        # unknowns grow at most like this from one degree to the next
        growth = ((p + 1) / p) ** basis.dim
        if p + 1 in others and (growth * basis.n_dofs <= max_dofs):
            return MeshBasis(basis.mesh, others[p + 1]), (1.0, 1.0)
        if 2**basis.dim * basis.n_dofs <= max_dofs:
            return MeshBasis(refined_mesh(basis.mesh), basis.element), _pair(refined)
        if p - 1 in others:
            share = min(1.0, 4 * basis.n_cells ** (-1 / basis.dim)) if p == 2 else 1.0
            return MeshBasis(basis.mesh, others[p - 1]), (share, share)
    raise SpaceError(
        f"an estimate needs a richer or finer class than the {basis.n_dofs} unknowns of {basis.element!r}, which has"
        f" more than max_dofs={max_dofs}; raise max_dofs"
    )


def _orders(basis: SpatialBasis) -> tuple[int, int]:
    """Orders in h of value and policy; the recovered gradients of continuous elements are of the order of the value."""
    row = ELEMENTS[basis.element]
    return row.value_order, row.gradient_order if basis.smoothness else row.value_order


def _pair(numbers: FloatArray) -> tuple[float, float]:
    return float(numbers[0]), float(numbers[1])
