"""`solve_exit_on_mesh`: exit problems on the user's own mesh, which absorbs where its boundary is tagged so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from fem_hjb.problems.cells import DIMENSION, closures, mesh_kind, tiled, vertices_of
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.mesh_domain import ABSORBING, MeshDomain
from fem_hjb.problems.problem import checked_call
from fem_hjb.reference.exit_equation import ExitEquation, InfiniteOnGridError, Settled, differences, verdict
from fem_hjb.reference.steady_checks import check_normal_reflection, leaving_check, rounding_check, temperature_check
from fem_hjb.reference.tolerance import judged
from fem_hjb.solutions.estimate import ErrorEstimate, combine
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution, SteadyFunction
from fem_hjb.spaces.basis import element_named
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.meshes import refined_mesh
from fem_hjb.support.checks import FloatArray, IntArray, finite_number, flag, require
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError
from fem_hjb.support.progress import OutOfTimeError, Progress, Watch, checked_progress, checked_seconds, until

Found = TypeVar("Found", ExitSolution, ExitExpectation)
Payoff = Callable[[FloatArray], ArrayLike] | Mapping[str, float]

_ROUNDING = 1e-6  # relative, which it may change whatever the error is
_SOME = 20_000  # points at which two solutions are compared, at most


def solve_exit_on_mesh(
    problem: ExitProblem,
    mesh: Any = None,
    *,
    element: str | None = None,
    absorbing: str | Sequence[str] = "all",
    estimate: bool = True,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> ExitSolution:
    """Value and policy of an exit problem on a mesh, by continuous elements; d <= 3.

    Parameters
    ----------
    mesh : a scikit-fem mesh; of triangles and tetrahedra of second order (MeshTri2, MeshTet2) edges are curved. None
        where the domain of the problem is a `MeshDomain`, which then says what absorbs.
    element : "P1" to "P4", "Q1", "Q2"; "P2" if not given on lines, triangles and tetrahedra, "Q2" on other meshes.
    absorbing : the tags, keys of `mesh.boundaries`, at which the process is stopped; "all": its whole boundary, unless
        it is a tag. Elsewhere it is reflected along Lambda n, which is the normal where Lambda is a number.
    estimate : whether to solve on the mesh refined once, too, which says how large the error is; it takes four or eight
        times as long. What edges cut off from a round domain is not seen by it, nor is how far curved ones are from it.
    progress : called with the fraction of the work done, as far as that is known.
    max_seconds : when they are over before the error is known, the solution comes back with an infinite estimate, and a
        status that says so.

    Returns
    -------
    An `ExitSolution` on this mesh, whose error estimate is its distance from that on the finer one. Gradients are
    recovered at the nodes. Its status is "ok" if the check passed: values at the nodes solve the equation at the
    temperature asked for.

    Raises
    ------
    DomainError : the mesh does not fit the problem, or has no such tag; or Lambda n is not parallel to n on reflecting
        facets of a `MeshDomain`, in which reflection is normal.
    SpaceError : the mesh has no such element.
    InfiniteValueError, ConvergenceError, EllipticityError, ProblemError : as `solve_exit`.
    """
    require(problem, ExitProblem, "solve_exit_on_mesh", ProblemError)
    watch, started = until(checked_progress(progress), checked_seconds(max_seconds)), time.perf_counter()
    refine = flag(estimate, "estimate", ConvergenceError)
    mesh, tags = _tagged(problem, mesh, absorbing, "solve_exit_on_mesh")
    equation = _equation(problem, mesh, element, tags, watch, "solve_exit_on_mesh", max_seconds)
    try:
        found = _settled(equation, mesh, tags, watch)
    except OutOfTimeError:
        raise _late("solve_exit_on_mesh", problem, max_seconds) from None
    solution = ExitSolution(
        problem=problem,
        function=SteadyFunction(equation.basis, found.v),
        method=f"{found.form} form on a mesh",
        status="ok",
        checks=(temperature_check(found.noise),),
        stats=_stats(equation.basis, started) | {"form": found.form},
    )

    def finer(fine: ExitEquation) -> FloatArray:
        return fine.settle().v

    return _judged(solution, equation, mesh, tags, refine, watch, finer, policies=True)


def exit_expectation_on_mesh(
    problem: ExitProblem,
    mesh: Any = None,
    h: Payoff | None = None,
    *,
    source: Callable[[FloatArray], ArrayLike] | None = None,
    element: str | None = None,
    absorbing: str | Sequence[str] = "all",
    estimate: bool = True,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> ExitExpectation:
    """u(x) = E[ h(X_tau) + int_0^tau s(X_t) dt | X_0 = x ] on a mesh; d <= 3.

    h : a callable x (..., d) -> (...), or a number for each tag, which then absorb: {"inner": 0, "outer": 1} gives the
        probability to leave through "outer" (committor). None: 0.
    source : s, a callable; 1 gives the mean exit time.  mesh and the rest as in `solve_exit_on_mesh` and
        `exit_expectation`.

    Raises as these; ProblemError if h and s are both None.
    """
    require(problem, ExitProblem, "exit_expectation_on_mesh", ProblemError)
    if h is None and source is None:
        raise ProblemError("exit_expectation_on_mesh needs h=, what is paid at the exit, or source=, on the way")
    if h is not None and not callable(h) and not isinstance(h, Mapping):
        raise ProblemError(f"h must be a callable x -> (...), or a number for each tag, got {type(h).__name__}")
    if source is not None and not callable(source):
        raise ProblemError(f"source must be a callable x (..., d) -> (...) or None, got {type(source).__name__}")
    watch, started = until(checked_progress(progress), checked_seconds(max_seconds)), time.perf_counter()
    refine = flag(estimate, "estimate", ConvergenceError)
    if isinstance(h, Mapping):
        h = {str(tag): finite_number(value, f"h at the tag {tag!r}", ProblemError) for tag, value in h.items()}
        absorbing = _all_named(h, absorbing)
    mesh, tags = _tagged(problem, mesh, absorbing, "exit_expectation_on_mesh", named=isinstance(h, Mapping))

    def found(equation: ExitEquation, facets: Mapping[str, IntArray]) -> FloatArray:
        basis: Any = equation.basis
        paid = np.zeros(basis.n_dofs)
        if isinstance(h, Mapping):
            for tag, value in h.items():
                paid[basis.facet_dofs(facets[tag])] = value
        elif h is not None:
            paid[equation.fixed] = checked_call("h(x)", h, (basis.nodes[equation.fixed],), ())
        s = None
        if source is not None:
            s = equation.operators.at(lambda x: checked_call("source(x)", source, (x,), ()))
        return equation.expectation(paid[equation.fixed], s)

    equation = _equation(problem, mesh, element, tags, watch, "exit_expectation_on_mesh", max_seconds)
    solution = ExitExpectation(
        problem=problem,
        function=SteadyFunction(equation.basis, found(equation, tags)),
        method="linear equation on a mesh",
        status="ok",
        stats=_stats(equation.basis, started) | {"quantity": "exit expectation"},
    )
    finer_tags: dict[str, IntArray] = {}

    def finer(fine: ExitEquation) -> FloatArray:
        basis: Any = fine.basis
        finer_tags.update(_on_finer(mesh, basis.mesh, tags))
        return found(fine, finer_tags)

    return _judged(solution, equation, mesh, tags, refine, watch, finer, policies=False)


def _all_named(h: Mapping[str, float], absorbing: Any) -> Any:
    """The absorbing tags, all of which, and no others, have a number."""
    if isinstance(absorbing, str) and absorbing == "all":
        return list(h)
    missing = set(h) ^ set([absorbing] if isinstance(absorbing, str) else absorbing)
    if missing:
        raise ProblemError(f"h must have a number for each absorbing tag and no other, differs at {sorted(missing)}")
    return absorbing


def _tagged(
    problem: ExitProblem, mesh: Any, absorbing: Any, who: str, *, named: bool = False
) -> tuple[Any, dict[str, IntArray]]:
    """The mesh, and what of its boundary absorbs, by the caller or by the domain; named : absorbing are names of h."""
    domain = problem.domain
    if not isinstance(domain, MeshDomain):
        if mesh is None:
            raise DomainError(f"{who} needs a mesh, or a problem whose domain is a MeshDomain")
        return mesh, _tags(mesh, absorbing, problem)
    if mesh is not None or not (named or (isinstance(absorbing, str) and absorbing == "all")):
        raise DomainError(
            f"the domain of {problem.name!r} is a mesh, and says what absorbs; leave out mesh= and absorbing=, or give"
            " a problem without a domain"
        )
    check_normal_reflection(problem, domain)
    stops = domain.facets[domain.words == ABSORBING]
    if not named:
        return domain.mesh, {"absorbing": np.asarray(domain.mesh.facets, dtype=np.int64)[:, stops]}
    tags = _tags(domain.mesh, absorbing, problem)
    numbers = np.concatenate([np.asarray(domain.mesh.boundaries[tag], dtype=np.int64) for tag in tags])
    if set(numbers.tolist()) != set(stops.tolist()):
        raise DomainError(
            f"h must name all that absorbs in the domain of {problem.name!r}, and no more, got {sorted(tags)} for"
            f" boundary={dict(domain.boundary) if isinstance(domain.boundary, Mapping) else domain.boundary!r}"
        )
    return domain.mesh, tags


def _equation(
    problem: ExitProblem,
    mesh: Any,
    element: str | None,
    tags: Mapping[str, IntArray],
    watch: Watch,
    who: str,
    max_seconds: float | None,
) -> ExitEquation:
    usual = "P2" if mesh_kind(mesh, curved=True) in _SIMPLICES else "Q2"
    basis = MeshBasis(mesh, usual if element is None else element_named(element).name)
    fixed = np.unique(np.concatenate([basis.facet_dofs(facets) for facets in tags.values()]))
    try:
        return ExitEquation(problem, basis, fixed, watch)
    except OutOfTimeError:
        raise _late(who, problem, max_seconds) from None


_SIMPLICES = ("line", "tri", "tet")


def _late(who: str, problem: ExitProblem, max_seconds: float | None) -> Exception:
    if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
        return OutOfTimeError()
    return ConvergenceError(
        f"{who}({problem.name!r}): no solution within max_seconds={max_seconds:g}; give it more time, or a coarser mesh"
    )


def _tags(mesh: Any, absorbing: Any, problem: ExitProblem) -> dict[str, IntArray]:
    """Tag -> vertices (k, nf) of its facets, or a DomainError that lists the tags there are."""
    kind = mesh_kind(mesh, curved=True)
    if DIMENSION[kind] != problem.dim:
        raise DomainError(f"the mesh is of dimension {DIMENSION[kind]}, the problem has dim={problem.dim}")
    tiled(mesh, "the mesh")
    known = dict(mesh.boundaries or {})
    facets = np.asarray(mesh.facets, dtype=np.int64)
    if isinstance(absorbing, str) and absorbing == "all" and "all" not in known:
        return {"all": facets[:, mesh.boundary_facets()]}
    try:
        wanted = [absorbing] if isinstance(absorbing, str) else list(absorbing)
        strange = [tag for tag in wanted if not isinstance(tag, str) or tag not in known]
    except TypeError as cause:
        raise DomainError(f"absorbing must be tags of mesh.boundaries, or 'all', got {absorbing!r}") from cause
    if strange or not wanted:
        raise DomainError(
            f"absorbing must name tags of mesh.boundaries, of {sorted(known)}, got {strange or wanted}; tags are made"
            " by mesh.with_boundaries({'inner': lambda x: ...})"
        )
    found = {tag: facets[:, np.asarray(known[tag], dtype=np.int64)] for tag in wanted}
    outer = np.zeros(facets.shape[1], dtype=np.bool_)
    outer[mesh.boundary_facets()] = True
    for tag in wanted:
        if not len(known[tag]) or not outer[np.asarray(known[tag], dtype=np.int64)].all():
            raise DomainError(f"the tag {tag!r} must be of facets of the boundary of the mesh, and of one at least")
    return found


def _on_finer(mesh: Any, fine: Any, tags: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """The facets of tags on the mesh refined once: those whose vertices all lie in the closure of one facet."""
    facets = np.asarray(fine.facets, dtype=np.int64)[:, fine.boundary_facets()]
    corners = vertices_of(fine)
    tree, p = cKDTree(corners.T), np.asarray(mesh.p)
    width = float(np.ptp(p, axis=1).max())
    found = {}
    for tag, coarse in tags.items():
        k = len(coarse)
        closure = closures(mesh, coarse)  # (d, m, nf)
        if k == 4:
            closure = np.concatenate([closure, p[:, coarse].mean(axis=1, keepdims=True)], axis=1)
        gaps, vertices = tree.query(closure.reshape(len(p), -1).T)
        parents = np.tile(np.arange(coarse.shape[1]), closure.shape[1])
        near = gaps <= 1e-9 * width
        shape = corners.shape[1], coarse.shape[1]
        inside = sp.csr_matrix((np.ones(near.sum()), (vertices[near], parents[near])), shape=shape)
        inside.data[:] = 1.0
        rows = np.tile(np.arange(facets.shape[1]), k)
        children = sp.csr_matrix((np.ones(facets.size), (rows, facets.ravel())), shape=(facets.shape[1], shape[0]))
        most = (children @ inside).max(axis=1).toarray().ravel()
        found[tag] = facets[:, most >= k]
    return found


def _settled(equation: ExitEquation, mesh: Any, tags: Mapping[str, IntArray], watch: Watch) -> Settled:
    """v on this mesh; that it is infinite is believed if the finer one has the same eigenvalue."""
    try:
        return equation.settle()
    except InfiniteOnGridError as cause:
        finer = _finest(equation, mesh, tags, watch).principal()
        raise verdict(cause, [cause.eigenvalue, finer]) from None


def _finest(equation: ExitEquation, mesh: Any, tags: Mapping[str, IntArray], watch: Watch) -> ExitEquation:
    """The same on the mesh refined once."""
    fine = MeshBasis(refined_mesh(mesh), equation.basis.element)
    parts = _on_finer(mesh, fine.mesh, tags)
    fixed = np.unique(np.concatenate([fine.facet_dofs(facets) for facets in parts.values()]))
    return ExitEquation(equation.problem, fine, fixed, watch)


def _judged(
    solution: Found,
    equation: ExitEquation,
    mesh: Any,
    tags: Mapping[str, IntArray],
    refine: bool,
    watch: Watch,
    finer: Callable[[ExitEquation], FloatArray],
    *,
    policies: bool,
) -> Found:
    """The solution with its distance from that on the mesh refined once."""
    problem, basis = solution.problem, equation.basis
    who = f"solve_exit_on_mesh({problem.name!r})" if policies else f"exit_expectation_on_mesh({problem.name!r})"
    unknown = ErrorEstimate(value=math.inf, policy=math.inf, space=math.inf, time=0.0, truncation=0.0)
    if not refine:
        watch.finished()
        return replace(solution, error_estimate=unknown, status="the error was not estimated (estimate=False)")
    watch(0.2)
    try:
        finest = _finest(equation, mesh, tags, watch)
        fine = finest.basis
        better = SteadyFunction(fine, finer(finest))
        _, later = finest.leaving(better.coefficients if policies else None)
    except OutOfTimeError:
        return replace(solution, error_estimate=unknown, status="max_seconds were over before the error was estimated")
    watch.finished()
    rule = basis.quadrature(2 * basis.degree)
    x, weights = rule.x.reshape(-1, basis.dim), np.broadcast_to(rule.weights * rule.det, rule.x.shape[:2]).ravel()
    if len(x) > _SOME:
        chosen = np.random.default_rng(0).choice(len(x), _SOME, replace=False)
        x, weights = x[chosen], weights[chosen]
    value, policy = differences(problem, (x, weights), better, solution.function, policies=policies)
    lost, times = equation.leaving(solution.function.coefficients if policies else None)
    exits = leaving_check(SteadyFunction(basis, times).value(x), SteadyFunction(fine, later).value(x), weights)
    solution = replace(solution, checks=(*solution.checks, rounding_check(lost, max(value, _ROUNDING)), exits))
    return judged(solution, combine({"space": value}, {"space": policy}), 1.0, who, {})


def _stats(basis: Any, started: float) -> dict[str, Any]:
    return {
        "element": basis.element,
        "cells": basis.n_cells,
        "dofs": basis.n_dofs,
        "seconds": time.perf_counter() - started,
    }
