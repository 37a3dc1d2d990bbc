r"""Meshes refined where the policy needs it: solve, estimate, mark, refine.

The indicator of a cell c is that of Zienkiewicz and Zhu (Int. J. Numer. Meth. Engng 24, 1987), the distance from the
gradient of v_h, the interpolant of the nodal values of alpha log f, to the recovered gradient, in the norm in which
policies are judged: with e their difference,

    eta_c^2 = sum_k int_c p_{t_k} e' Lambda e / alpha^2 dx        over a few times t_k in [0, T],

that is |Lambda e / alpha|^2 in the norm of Lambda^{-1}, weighted with the law p_t of the uncontrolled process: cells
which paths do not reach are left coarse, however fast f varies there. The cells of largest eta_c that hold the share
theta of the sum of eta_c^2 are refined (Doerfler, SIAM J. Numer. Anal. 33, 1996).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import skfem
from scipy.ndimage import gaussian_filter, map_coordinates

from fem_hjb.paths.extent import checked_box, truncation_box
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import mesh_kind
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_backward import solve_on_basis
from fem_hjb.reference.mesh_boundary import Boundary, check_boundary
from fem_hjb.reference.mesh_estimate import estimate_on_mesh
from fem_hjb.reference.mesh_truncation import ends_early, unended, with_truncation
from fem_hjb.reference.tolerance import checked_rtol, judged
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.basis import element_named
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.mesh_files import AnyMesh, as_mesh
from fem_hjb.spaces.meshes import box_mesh, check_mesh
from fem_hjb.support.checks import FloatArray, IntArray, Rng, as_seed, positive_integer
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError
from fem_hjb.support.progress import (
    OutOfTimeError,
    Progress,
    Watch,
    checked_progress,
    checked_seconds,
    part_of,
    unheard,
    until,
)

SIMPLICES = ("line", "tri", "tet")
START_CELLS = {1: 32, 2: 16, 3: 6}
THETA = 0.5  # the share of the squared indicators that the marked cells hold
_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the horizon: where indicators are taken
_JUST_AFTER = 1 / 16  # of the horizon: instead of 0, where the initial law has no density
_TIME_SHARE = 0.1  # of the tolerance, which the part of time may take
_LEAST_RTOL_TIME = 1e-13
_MOST_PASSES = 30
_FAR, _PASS = 0.1, 0.25  # shares of progress: of the solution without faces, and of each pass in what is left then
_FAR_SECONDS = 0.5  # of the seconds allowed, at most: of the solution without faces
_SOLVED = 0.3  # of a pass: the solution, the rest is its estimate
_ALONE = 3.0  # times the other parts, which may be wrong by as much: a larger truncation is no matter of the mesh
_PATHS = 20_000
_BINS = {1: 256, 2: 64, 3: 24}  # per axis, of the histogram of simulated paths
_SMOOTHING = 1.5  # bins
_FEW = 100  # paths, of which no histogram is made
_KEY = 1 << 31  # an edge of vertices i < j has the key i * _KEY + j
_SAMPLE_STEPS = 64


def refine_on_mesh(
    problem: ControlProblem,
    mesh: AnyMesh | None = None,
    *,
    rtol: float,
    element: str | None = None,
    cells: int | tuple[int, ...] | None = None,
    box: Box | None = None,
    max_dofs: int = 50_000,
    boundary: Boundary = "natural",
    rng: Rng = 0,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> Solution:
    """Value and policy to a relative tolerance, on a mesh of lines, triangles or tetrahedra refined where needed.

    Parameters
    ----------
    rtol : from 1e-10 to 0.1, what the estimated errors of value and policy, see `ErrorEstimate`, shall both be below.
    mesh : the first mesh, of scikit-fem or the path of a file, by default that of a `MeshDomain`. Otherwise `box`, by
        default problem.domain or one that paths hardly ever leave, is cut into `cells` per axis, by default 32, 16, 6
        in one, two, three dimensions.
    element : "P1" to "P4" (tetrahedra: "P1", "P2"), "P2" if not given.
    max_dofs : no mesh with more unknowns is solved on; the estimates take up to 8 times as many.
    boundary : as in `solve_on_mesh`.
    rng : as in `solve_on_mesh`.
    progress : called with the fraction of the work done, as by `solve_on_mesh`: as nobody knows how many passes it
        takes, each one counts as a quarter of what is left.
    max_seconds : when they are over, the work stops at the next stage of a time step, and the solution of least
        estimated error so far is returned, with its estimate and a status that says so. Up to half of them go into what
        the faces of the mesh are judged by; if that is not enough, this part of the error is inf.

    Returns
    -------
    The last `Solution`, with its `error_estimate` and, in its stats, "history": for each pass a mapping with dofs,
    cells, rtol_time and the numbers of the estimate. If rtol is not met, its status says so and a `ToleranceWarning` is
    issued. Steps in time follow a tolerance that is tightened until their part is below rtol / 10.

    Where the exit reward of an absorbing face does not match the terminal reward there, the policy next to it has no
    finite norm as t tends to T, and no tolerance can be met.

    Raises
    ------
    SpaceError, DomainError : element, mesh or box do not fit the problem or each other, or the cells are no simplices.
    ConvergenceError : rtol is out of range, the time stepping fails, or no mesh was solved on, and its solution judged,
        within max_seconds.
    InfiniteValueError : the problem is linear-quadratic and its value infinite.
    """
    if not isinstance(problem, ControlProblem):
        raise ProblemError(f"refine_on_mesh needs a ControlProblem, got {type(problem).__name__}")
    rtol, seed = checked_rtol(rtol), as_seed(rng)
    told, seconds = checked_progress(progress), checked_seconds(max_seconds)
    max_dofs = positive_integer(max_dofs, "max_dofs", SpaceError)
    watch = until(told, seconds)
    start, name = _first(problem, mesh, element, cells, box, seed)
    check_boundary(problem, MeshBasis(start, name), boundary)
    far = _far(problem, rtol, watch, seconds, seed)
    passes = _passes(problem, start, name, boundary, far, rtol, max_dofs, watch, seed)
    try:
        found, history = _best(passes)
    except OutOfTimeError:
        if seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"refine_on_mesh({problem.name!r}): no mesh was solved on, and its solution judged, within"
            f" max_seconds={seconds:g}; give it more time, fewer cells to start with, or a larger rtol, or `solve` it"
            " on boxes"
        ) from None
    solution, estimate = found.solution, found.estimate
    if far is None:
        estimate = with_truncation(estimate, solution, far, rtol, seed)
        found.record.update(estimate.as_dict())
    watch.finished()
    return judged(solution, estimate, rtol, f"refine_on_mesh (max_dofs={max_dofs})", {"history": history})


@final
@dataclass(frozen=True, eq=False)
class _Pass:
    """A solution, its estimate, and what the history says of them."""

    solution: Solution
    estimate: ErrorEstimate
    record: dict[str, float]

    @property
    def error(self) -> float:
        return max(self.estimate.value, self.estimate.policy)


def _best(passes: Iterator[_Pass]) -> tuple[_Pass, list[dict[str, float]]]:
    """The last pass, or that of least error with a status that says so if time was over; and the history of all."""
    last = best = None
    history: list[dict[str, float]] = []
    try:
        for last in passes:
            history.append(last.record)
            if best is None or last.error < best.error:
                best = last
    except OutOfTimeError:
        if best is None:
            raise
        told = "" if best.solution.status == "ok" else f"{best.solution.status}; "
        told += "max_seconds were over: the best so far"
        return replace(best, solution=replace(best.solution, status=told)), history
    if last is None:
        raise ConvergenceError("no pass")
    return last, history


def _far(problem: ControlProblem, rtol: float, watch: Watch, seconds: float | None, seed: int) -> Solution | None:
    """What the faces of a mesh are judged by; None if it has none, or nothing was found in its part of the time."""
    if not ends_early(problem):
        return None
    try:
        share = None if seconds is None else _FAR_SECONDS * seconds
        return unended(problem, rtol, until(part_of(watch, 0.0, _FAR), share), seed)
    except OutOfTimeError:
        return None


def _passes(
    problem: ControlProblem,
    mesh: skfem.Mesh,
    element: str,
    boundary: Boundary,
    far: Solution | None,
    rtol: float,
    max_dofs: int,
    progress: Progress,
    seed: int,
) -> Iterator[_Pass]:
    """The solution of each pass and its estimate, without truncation if `far` is None."""
    density = _Density(problem, seed)
    rtol_time = max(_LEAST_RTOL_TIME, _TIME_SHARE * rtol)
    done = 0.0 if far is None else _FAR
    for _ in range(_MOST_PASSES):
        begun, done = done, done + _PASS * (1.0 - done)
        solved = begun + _SOLVED * (done - begun)
        basis, told = MeshBasis(mesh, element), part_of(progress, begun, solved)
        solution = solve_on_basis(problem, basis, {"rtol": rtol_time}, boundary, progress=told)
        told = part_of(progress, solved, done)
        estimate = estimate_on_mesh(solution, boundary=boundary, max_dofs=8 * max_dofs, progress=told, seed=seed)
        if far is not None:
            estimate = with_truncation(estimate, solution, far, rtol, seed, progress)
        stats = solution.stats
        record = {"dofs": stats["dofs"], "cells": stats["cells"], "rtol_time": rtol_time, **estimate.as_dict()}
        yield _Pass(solution, estimate, record)
        if estimate.met(rtol) or estimate.truncation > max(rtol, _ALONE * (estimate.space + estimate.time)):
            break
        tighten = _TIME_SHARE * rtol < estimate.time < np.inf and rtol_time > _LEAST_RTOL_TIME
        if tighten:
            rtol_time = max(_LEAST_RTOL_TIME, rtol_time / 16)
        if estimate.space > _TIME_SHARE * rtol and estimate.limited_by != "time":
            finer = refine(mesh, mark(policy_indicator(solution, density, progress)))
            if MeshBasis(finer, element).n_dofs > max_dofs:
                break
            mesh = finer
        elif not tighten:
            break


def policy_indicator(
    solution: Solution, density: Callable[[float, FloatArray], FloatArray] | None = None, tell: Progress = unheard
) -> FloatArray:
    """eta_c of every cell, (n_cells,), as in the module's docstring.

    density : (t, x (n, d)) -> p_t(x) (n,); by default the problem's law of X_t, where it is known, else a histogram of
        simulated paths, smoothed. Where f <= 0 at nodes around, the policy counts as wrong by the largest one seen.
    tell : given signs of life.

    Raises SpaceError unless the solution is on a continuous element of a mesh.
    """
    basis, problem = solution.space.spatial, solution.problem
    if not isinstance(basis, MeshBasis):
        raise SpaceError(f"policy_indicator needs a continuous element on a mesh, got {basis.element!r}")
    weigh = _Density(problem) if density is None else density
    rule = basis.quadrature(2 * basis.degree)
    x = rule.x.reshape(-1, basis.dim)
    volume = (rule.weights * rule.det).ravel()
    total = np.zeros(x.shape[0])
    for t in _times(problem):
        tell(0.0)
        v = solution.value(t, basis.nodes, nonpositive="nan")[basis.cell_dofs]
        raw = np.einsum("cl,lqk,cqki->cqi", v, rule.dphi, np.broadcast_to(rule.inverse, (*rule.x.shape, basis.dim)))
        recovered = solution.gradient(t, x, nonpositive="nan")
        Lambda, mass = problem.Lambda(t, x), volume * weigh(t, x)
        e, size = (
            np.einsum("ni,nij,nj->n", a, Lambda, a) / problem.temperature**2
            for a in (raw.reshape(x.shape) - recovered, recovered)
        )
        known = np.isfinite(e)
        e[~known] = size[known].max() if known.any() else 1.0  # nothing is known: any constant does
        total += mass * e
    return np.asarray(np.sqrt(total.reshape(basis.n_cells, -1).sum(axis=1)))


def mark(indicator: FloatArray, theta: float = THETA) -> IntArray:
    """The fewest cells that hold the share theta in (0, 1] of the sum of the squared indicators (n_cells,), sorted.

    >>> mark(np.array([1.0, 3.0, 0.5, 2.0])).tolist()
    [1]
    """
    squares = np.asarray(indicator, dtype=np.float64) ** 2
    if squares.ndim != 1 or squares.size == 0 or not np.isfinite(squares).all() or not 0.0 < theta <= 1.0:
        raise ConvergenceError(
            f"mark needs finite indicators (n_cells,) and theta in (0, 1], got shape {squares.shape}, theta={theta!r}"
        )
    order = np.argsort(-squares, kind="stable")
    held = np.cumsum(squares[order])
    count = int(np.searchsorted(held, theta * held[-1] * (1 - 1e-12))) + 1
    return np.sort(order[:count])


def refine(mesh: skfem.Mesh, cells: IntArray) -> skfem.Mesh:
    """The mesh with every edge of these cells halved, and as many others as it takes to leave no hanging vertices.

    A cell with an edge to be halved is cut in two at the middle of its longest edge, again and again (Rivara, Int. J.
    Numer. Meth. Engng 20, 1984), which keeps angles away from 0. Raises DomainError unless the cells are simplices.

    >>> refine(skfem.MeshTri(), np.array([0])).t.shape[1]
    6
    """
    kind = mesh_kind(mesh)
    if kind not in SIMPLICES:
        raise DomainError(f"only meshes of {', '.join(SIMPLICES)} cells can be refined in places, got {kind} cells")
    p, t = np.asarray(mesh.p, dtype=np.float64), np.asarray(mesh.t, dtype=np.int64)
    low, high = np.triu_indices(len(t), 1)
    wanted = np.zeros(t.shape[1], dtype=np.bool_)
    wanted[cells] = True
    halved, middle = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)  # keys of edges, and their new vertices
    while True:
        pairs = np.sort(np.stack([t[low], t[high]]), axis=0)
        keys, edge = np.unique(pairs[0] * _KEY + pairs[1], return_inverse=True)
        edge = edge.reshape(low.size, -1)
        one, two = np.divmod(keys, _KEY)
        length = np.linalg.norm(p[:, one] - p[:, two], axis=0)
        # one strict order of all edges, so that cells agree about the longest one they share
        order = np.lexsort((keys, np.round(length / length.max(), 10)))
        rank = np.empty(order.size, dtype=np.int64)
        rank[order] = np.arange(order.size)
        longest = order[rank[edge].max(axis=0)]
        split = np.isin(keys, halved)
        split[edge[:, wanted]] = True
        cut = split[edge].any(axis=0)
        if not cut.any():
            return type(mesh)(np.ascontiguousarray(p), np.ascontiguousarray(t))
        while not split[longest[cut]].all():
            split[longest[cut]] = True
            cut = split[edge].any(axis=0)
        fresh = np.flatnonzero(split & ~np.isin(keys, halved))
        halved = np.concatenate([halved, keys[fresh]])
        middle = np.concatenate([middle, p.shape[1] + np.arange(fresh.size)])
        p = np.hstack([p, (p[:, one[fresh]] + p[:, two[fresh]]) / 2])
        by_key = np.argsort(halved)
        at = longest[cut]
        new = middle[by_key[np.searchsorted(halved, keys[at], sorter=by_key)]]
        parents = t[:, cut]
        children = [np.where(parents == end[at], new, parents) for end in (one, two)]
        t = np.hstack([t[:, ~cut], *children])
        wanted = np.zeros(t.shape[1], dtype=np.bool_)


def _first(
    problem: ControlProblem,
    mesh: AnyMesh | None,
    element: str | None,
    cells: int | tuple[int, ...] | None,
    box: Box | None,
    seed: int,
) -> tuple[skfem.Mesh, str]:
    """The first mesh and the element's name."""
    row = element_named("P2" if element is None else element)
    if not set(row.kinds) & set(SIMPLICES) or row.smoothness:
        raise SpaceError(f"refinement in places needs one of the elements 'P1' to 'P4', got {row.name!r}")
    if isinstance(problem.domain, MeshDomain):
        mesh = problem.domain.mesh if mesh is None else mesh
    if mesh is not None:
        if cells is not None or box is not None:
            raise DomainError("give mesh, or cells and box, not both")
        start = as_mesh(mesh, problem)
        mesh_kind(start)  # which refuses curved cells
        return start, row.name
    kind = row.kind_in(problem.dim)
    chosen = truncation_box(problem, rng=seed).box if box is None else checked_box(problem, box)
    counts = START_CELLS[problem.dim] if cells is None else cells
    start = box_mesh(chosen, counts, kind)
    check_mesh(start, problem)
    return start, row.name


def _times(problem: ControlProblem) -> FloatArray:
    fractions = np.array(_FRACTIONS)
    if isinstance(problem.initial_law, PointMass):
        fractions[0] = _JUST_AFTER
    return fractions * problem.horizon


@final
class _Density:
    """p_t(x): the problem's own, or a smoothed histogram of simulated paths, made once for the times of indicators."""

    def __init__(self, problem: ControlProblem, seed: int = 0) -> None:
        self._marginal = problem.marginal
        if self._marginal is not None:
            return
        paths = np.asarray(sample_paths(problem, n=_PATHS, steps=_SAMPLE_STEPS, rng=seed).x)
        steps = np.rint(_times(problem) / problem.horizon * _SAMPLE_STEPS).astype(np.int64)
        self._tables: dict[float, tuple[FloatArray, FloatArray, FloatArray] | None] = {}
        for t, k in zip(_times(problem).tolist(), steps, strict=True):
            x = paths[:, k] if problem.domain is None else paths[~problem.domain.exited(paths[:, k]), k]
            self._tables[t] = _histogram(x) if len(x) >= _FEW else None

    def __call__(self, t: float, x: FloatArray) -> FloatArray:
        if self._marginal is not None:
            return np.asarray(np.exp(self._marginal(t).logpdf(x)))
        found = self._tables[float(t)]
        if found is None:
            return np.zeros(len(x))
        first, width, table = found
        return np.asarray(map_coordinates(table, ((x - first) / width).T, order=1, mode="constant"))


def _histogram(x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The centre of the first bin (d,), widths (d,), and a smoothed density on the bins, of samples x (n, d)."""
    lower, upper = x.min(axis=0), x.max(axis=0)
    reach = 0.1 * (upper - lower)
    edges = np.linspace(lower - reach, upper + reach, _BINS[x.shape[1]] + 1, axis=-1)
    counts, _ = np.histogramdd(x, bins=list(edges))
    width = edges[:, 1] - edges[:, 0]
    return (
        edges[:, 0] + width / 2,
        width,
        gaussian_filter(counts, _SMOOTHING, mode="constant") / (_PATHS * width.prod()),
    )
