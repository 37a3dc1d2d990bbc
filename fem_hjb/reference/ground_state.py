r"""`ground_state`: what a problem tends to as its horizon grows: average reward, stationary policy, rate of approach.

For T - t large, v_t(x) = lambda (T - t) + w(x) + a constant + O(exp(-gap (T - t))): H. Kaise and S.-J. Sheu, Ann.
Probab. 34 (2006) 284-320, for the equation of w; the linear one is that of M. D. Donsker and S. R. S. Varadhan.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np

from fem_hjb.paths.extent import truncation_box
from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import DIMENSION, mesh_kind, tiled
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, require_box, require_problem
from fem_hjb.reference.exit_equation import differences
from fem_hjb.reference.faces import check_along_normals, check_faces, faces_of_domain
from fem_hjb.reference.ground_equation import Ground, GroundEquation
from fem_hjb.reference.steady_checks import check_normal_reflection, equation_check, temperature_check
from fem_hjb.reference.steady_ladder import MAX_DOFS, climb_beyond, nearest_values, rule_of
from fem_hjb.reference.tolerance import checked_rtol, judged
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.estimate import combine
from fem_hjb.solutions.ground import GroundState
from fem_hjb.solutions.steady import SteadyFunction
from fem_hjb.spaces.basis import SpatialBasis, element_named
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.meshes import refined_mesh
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray, flag, positive_integer, require
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, until

_ASKED = 256  # points at which coefficients are compared at several times
_PROBE = {1: (12, 8), 2: (6, 6), 3: (3, 4)}  # cells and degree of a grid that shows where the process will be
_LEAST = 1e-2  # temperatures: w counts as so much at least, and lambda as so much in the time the process takes
_WIDEN = 0.25  # of the width, by which a face is moved where the process will be beyond it
_ROUNDS = 8
_NOISE = 1e-6  # of the largest density: less than a coarse grid can tell
_REACHED = 1e-3  # of the tolerance: the density at a face relative to the largest, beyond which it is moved


@final
@dataclass(frozen=True, eq=False)
class _Kept:
    """What a grid leaves to the next one."""

    function: SteadyFunction
    density: SteadyFunction
    found: Ground

    @property
    def shapes(self) -> tuple[SteadyFunction, ...]:
        return self.function, self.density

    @property
    def settled(self) -> bool:
        return self.found.noise == 1.0


def ground_state(
    problem: ControlProblem,
    *,
    rtol: float = 1e-4,
    box: Box | None = None,
    max_dofs: int | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> GroundState:
    """Average reward, stationary policy and law, and the rate of approach, of a problem that does not depend on time.

    They are those of (G + r/alpha) phi = (lambda/alpha) phi, phi > 0, where G = <b, grad> + 1/2 Tr(Lambda Hess): the
    limit of the problem as its horizon grows. Horizon, terminal reward and initial law play no role in it.

    Parameters
    ----------
    rtol : relative error of w = alpha log phi, of lambda (relative to the mean of |r - lambda|), of the density (in L1)
        and of the policy, under the stationary law of the controlled process, from 1e-10 to 0.1. w and lambda count as
        a hundredth of the temperature at least.
    box : where to look for it; by default problem.domain, and where that is infinite the box that uncontrolled paths
        hardly ever leave, widened until the stationary density has died out at its faces.
    max_dofs, progress, max_seconds : as in `solve_exit`.

    Returns
    -------
    A `GroundState`, whose checks are the equation at 4096 points, with the problem's own callables, and the density at
    faces where the box ends and the process does not.

    Raises
    ------
    ProblemError : a coefficient depends on time.
    DomainError : the domain absorbs (a process that is stopped has no stationary law), boxes do not fit, or there are
        more than three dimensions.
    ConvergenceError : rtol is out of range, no grid has a ground state (rewards or drift have to hold the process
        back), or none was found within max_seconds.
    """
    require_problem(problem, "ground_state")
    require_box(problem, "ground_state")
    rtol, seconds = checked_rtol(rtol), checked_seconds(max_seconds)
    watch, started = until(checked_progress(progress), seconds), time.perf_counter()
    most = MAX_DOFS.get(problem.dim, 1) if max_dofs is None else positive_integer(max_dofs, "max_dofs", SpaceError)
    rest = at_rest(problem)
    try:
        region = _region(problem, rest, box, rtol)
        check_normal_reflection(rest, region)
        require_still(problem, region)
        attempt = partial(_attempt, rest, watch)
        climbed = climb_beyond(region, attempt, partial(_distance, rest), rtol, most, watch)
        kept: _Kept = climbed.rung.kept
        basis: Any = kept.function.basis
        equation = GroundEquation(rest, basis, watch)
        gap = equation.gap(kept.found)
        lower = SpectralBasis([SpectralLine(line.grid, line.degree - 1) for line in basis.lines])
        below = GroundEquation(rest, lower, watch)
        coarse = below.settle(_moved(kept, lower))
        off = abs(below.gap(coarse) - gap), abs(coarse.average - kept.found.average)
    except OutOfTimeError:
        if seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"ground_state({problem.name!r}): no solution within max_seconds={seconds:g}; give it more time, or a"
            " larger rtol"
        ) from None
    watch.finished()
    still = replace(rest, running_reward=lambda x: rest.r(x) - kept.found.average)
    check = equation_check(still, region, kept.function, rtol, density=kept.density.value)
    state = GroundState(
        problem=problem,
        function=kept.function,
        density_function=kept.density,
        average_reward=kept.found.average,
        gap=gap,
        method=f"{kept.found.form} form on spectral elements",
        status="; ".join(climbed.unmet) or "ok",
        checks=(check, temperature_check(kept.found.noise), *_ends(region, kept.density, rtol)),
        stats=climbed.rung.figures
        | {"form": kept.found.form, "gap_error": off[0], "average_reward_error": off[1]}
        | {"seconds": time.perf_counter() - started},
    )
    return judged(state, climbed.estimate, rtol, f"ground_state({problem.name!r})", {})


def ground_state_on_mesh(
    problem: ControlProblem,
    mesh: Any = None,
    *,
    element: str | None = None,
    estimate: bool = True,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> GroundState:
    """The same on a mesh, by continuous elements; at its boundary the process is reflected along Lambda n.

    mesh, element, estimate, progress, max_seconds : as in `solve_exit_on_mesh`; its error is the distance from the
    solution on the mesh refined once. mesh=None: that of a `MeshDomain`, whose boundary reflects.

    Raises as `ground_state`, and DomainError or SpaceError for a mesh or an element that do not fit.
    """
    require_problem(problem, "ground_state_on_mesh")
    mesh = _mesh_of(problem, mesh)
    seconds, refine = checked_seconds(max_seconds), flag(estimate, "estimate", ConvergenceError)
    watch, started = until(checked_progress(progress), seconds), time.perf_counter()
    kind = mesh_kind(mesh, curved=True)
    if DIMENSION[kind] != problem.dim:
        raise DomainError(f"the mesh is of dimension {DIMENSION[kind]}, the problem has dim={problem.dim}")
    tiled(mesh, "the mesh")
    refuse_absorbing(problem)
    name = element_named(element).name if element is not None else "P2" if kind in ("line", "tri", "tet") else "Q2"
    basis = MeshBasis(mesh, name)
    require_still(problem, basis.box, basis.nodes)
    rest = at_rest(problem)
    try:
        equation = GroundEquation(rest, basis, watch)
        ground = equation.settle()
        gap = equation.gap(ground)
        errors, off, better = (math.inf, math.inf), (math.inf, math.inf), ground
        kept = _Kept(SteadyFunction(basis, ground.w), SteadyFunction(basis, ground.density), ground)
        if refine:
            fine = MeshBasis(refined_mesh(mesh), name)
            finer = GroundEquation(rest, fine, watch)
            better = finer.settle()
            off = abs(finer.gap(better) - gap), abs(better.average - ground.average)
            best = _Kept(SteadyFunction(fine, better.w), SteadyFunction(fine, better.density), better)
            errors = _distance(rest, rule_of(basis, basis.box), best, kept)
    except OutOfTimeError:
        if seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"ground_state_on_mesh({problem.name!r}): no solution within max_seconds={seconds:g}; give it more time, a"
            " coarser mesh, or estimate=False"
        ) from None
    watch.finished()
    state = GroundState(
        problem=problem,
        function=kept.function,
        density_function=kept.density,
        average_reward=ground.average,
        gap=gap,
        method=f"{ground.form} form on a mesh",
        status="ok" if refine else "the error was not estimated (estimate=False)",
        checks=(temperature_check(ground.noise),),
        stats={"element": name, "cells": basis.n_cells, "dofs": basis.n_dofs, "form": ground.form}
        | {"gap_error": off[0], "average_reward_error": off[1], "seconds": time.perf_counter() - started},
    )
    whole = combine({"space": errors[0]}, {"space": errors[1]})
    if not refine:
        return replace(state, error_estimate=whole)
    return judged(state, whole, 1.0, f"ground_state_on_mesh({problem.name!r})", {})


def _mesh_of(problem: ControlProblem, mesh: Any) -> Any:
    """The mesh that is given, or that of the domain."""
    domain = problem.domain
    if not isinstance(domain, MeshDomain):
        if mesh is None:
            raise DomainError("ground_state_on_mesh needs a mesh, or a problem whose domain is a MeshDomain")
        return mesh
    if mesh is not None:
        raise DomainError(f"the domain of {problem.name!r} is a mesh already; leave out mesh=")
    if domain.has("natural"):
        raise DomainError(
            "a natural boundary, beyond which the process goes on, has no ground state on the mesh; extend the mesh to"
            " where the process hardly ever goes, and let it reflect there"
        )
    for t in (0.0, problem.horizon):
        check_along_normals(domain, partial(problem.Lambda, t))
    return domain.mesh


def _attempt(rest: ExitProblem, watch: Progress, basis: SpectralBasis, kept: _Kept | None) -> _Kept:
    watch(0.0)
    found = GroundEquation(rest, basis, watch).settle(None if kept is None else _moved(kept, basis))
    return _Kept(SteadyFunction(basis, found.w), SteadyFunction(basis, found.density), found)


def _moved(kept: _Kept, basis: SpatialBasis) -> Ground:
    """What was found on another basis, at the nodes of this one, or at the point of its box nearest to them."""
    return replace(kept.found, w=nearest_values(kept.function, basis.nodes))


def _distance(
    problem: ExitProblem, rule: tuple[FloatArray, FloatArray], first: _Kept, second: _Kept
) -> tuple[float, float]:
    """How far the first is from the second, under the stationary law of the second."""
    x, weights = rule
    law = second.density.value(x)
    mass = weights * np.maximum(law, 0.0)
    value, policy = differences(problem, (x, mass), first.function, second.function, least=_LEAST)
    pace = _LEAST * problem.temperature * second.found.pace
    earned = abs(first.found.average - second.found.average) / max(second.found.scale, pace)
    likely = float(weights @ np.abs(first.density.value(x) - law)) / float(mass.sum())
    return max(value, earned, likely), policy


def at_rest(problem: ControlProblem) -> ExitProblem:
    """The coefficients at time 0, as callables of the state alone."""
    constant = problem.constant_diffusion
    return ExitProblem(
        dim=problem.dim,
        temperature=problem.temperature,
        drift=lambda x: problem.b(0.0, x),
        diffusion=constant if constant is not None else lambda x: problem.Lambda(0.0, x),
        running_reward=None if problem.running_reward is None else lambda x: problem.r(0.0, x),
        name=problem.name,
    )


def refuse_absorbing(problem: ControlProblem) -> None:
    if problem.domain is not None and problem.domain.absorbing:
        raise DomainError(
            f"the process of {problem.name!r} is stopped at absorbing faces, and has no stationary law; take an"
            " ExitProblem, or a domain that reflects"
        )


def require_still(problem: ControlProblem, box: Box, nodes: FloatArray | None = None) -> None:
    """ProblemError if a coefficient is another one at another time, at points of the box."""
    rng = np.random.default_rng(3)
    lower, upper = box.bounds
    x = lower + (upper - lower) * rng.random((_ASKED, problem.dim)) if nodes is None else nodes[:_ASKED]
    times = [*(problem.horizon * rng.random(6)).tolist(), problem.horizon]
    asked: dict[str, Callable[[float], FloatArray]] = {
        "drift": lambda t: problem.b(t, x),
        "diffusion": lambda t: problem.Lambda(t, x),
        "running_reward": lambda t: problem.r(t, x),
    }
    for name, ask in asked.items():
        first = ask(0.0)
        size = float(np.abs(first).max())
        for t in times:
            if np.abs(ask(t) - first).max() > 1e-10 * max(size, 1e-300):
                raise ProblemError(
                    f"{name}(t, x) depends on time: it is another one at t={t:.4g} than at t=0, and a ground state is"
                    " of a problem at rest; freeze it at a time, or solve over a long horizon instead"
                )


def _region(problem: ControlProblem, rest: ExitProblem, box: Box | None, rtol: float) -> Box:
    """The box, with the word "natural" for each face where the process goes on."""
    if problem.dim > 3:
        raise DomainError(f"boxes go up to dimension 3, {problem.name!r} has dim={problem.dim}; simulate paths instead")
    refuse_absorbing(problem)
    if box is not None:
        require(box, Box, "ground_state: box=", DomainError)
        if box.dim != problem.dim or not box.bounded:
            raise DomainError(f"box must be a bounded Box of dimension {problem.dim}, got {box}")
        if problem.box is not None:
            check_faces(problem, box, problem.box.where("reflecting"))
        return worded(problem, np.stack(box.bounds))
    if problem.box is not None and problem.box.bounded:
        return problem.box
    bounds = np.stack(truncation_box(problem).box.bounds)
    cells, degree = _PROBE[problem.dim]
    before = np.full((2, problem.dim), np.inf)
    for _ in range(_ROUNDS):
        region = worded(problem, bounds)
        basis = SpectralBasis(
            [SpectralLine(np.linspace(low, high, cells + 1), degree) for low, high in bounds.T.tolist()]
        )
        try:
            density = SteadyFunction(basis, GroundEquation(rest, basis).settle().density)
        except ConvergenceError:
            return region
        there = _at_faces(region, density)
        outside = (there > max(_REACHED * rtol, _NOISE)) & (there < 0.3 * before)  # what does not fall is the grid's
        before = np.where(outside, there, before)
        if not outside.any():
            break
        width = bounds[1] - bounds[0]
        bounds = bounds + np.array([-1.0, 1.0])[:, None] * _WIDEN * width * outside
    return worded(problem, bounds)


def worded(problem: ControlProblem, bounds: FloatArray) -> Box:
    """A box with these bounds (2, d), reflecting where the domain is and natural elsewhere."""
    kept = faces_of_domain(problem, bounds)
    if problem.box is not None:
        kept = kept & problem.box.where("reflecting")
    words = [tuple("reflecting" if kept[side, axis] else "natural" for side in (0, 1)) for axis in range(problem.dim)]
    return Box(bounds[0], bounds[1], boundary=[(low, high) for low, high in words])


def _at_faces(box: Box, density: SteadyFunction) -> FloatArray:
    """(2, d): the largest density at each natural face relative to the largest of all; 0 at the others."""
    lower, upper = box.bounds
    x = lower + (upper - lower) * np.random.default_rng(4).random((1024, box.dim))
    most = float(np.abs(density.coefficients).max())
    result = np.zeros((2, box.dim))
    for side, axis in np.argwhere(box.where("natural")):
        face = x.copy()
        face[:, axis] = box.bounds[side][axis]
        result[side, axis] = float(np.abs(density.value(face)).max()) / most
    return result


def _ends(box: Box, density: SteadyFunction, rtol: float) -> tuple[Check, ...]:
    if not box.where("natural").any():
        return ()
    figure = float(_at_faces(box, density).max())
    told = "stationary density at faces that the process does not have, relative to the largest"
    return (Check(name="law in the box", figure=figure, limit=max(rtol, _NOISE), told=told),)
