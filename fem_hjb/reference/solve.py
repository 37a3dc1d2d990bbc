r"""`solve`: value and policy of a control problem, to a tolerance or on a mesh.

A problem that falls apart into independent ones is solved as these (`blocks`), never as a whole; each on boxes, until
its measured error meets the tolerance (`tolerance`).
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np

from fem_hjb.problems.blocks import alike, independent_blocks, restrict
from fem_hjb.problems.laws import Box
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_tolerance import largest_norms_of, solve_to_tolerance
from fem_hjb.reference.mesh_refine import refine_on_mesh
from fem_hjb.reference.mesh_solve import BoundaryValue, estimate_on_mesh, solve_on_mesh
from fem_hjb.reference.mesh_truncation import ends_early, unended, with_truncation
from fem_hjb.solutions.estimate import PARTS, ErrorEstimate, ToleranceWarning
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.checks import one_of, positive_integer
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError

_AnySolution = TypeVar("_AnySolution", Solution, ProductSolution)

DEFAULT_RTOL = 1e-4
LEAST_RTOL = 1e-10


def solve(
    problem: ControlProblem,
    *,
    rtol: float | None = None,
    form: Literal["linear", "value"] | None = None,
    box: Box | None = None,
    max_dofs: int | None = None,
    mesh: Any = None,
    element: str | None = None,
    cells: int | tuple[int, ...] | None = None,
    steps: int | None = None,
    rtol_time: float | None = None,
    boundary: Literal["natural"] | BoundaryValue = "natural",
    refine: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Solution | ProductSolution:
    """Value and policy of a problem, to a tolerance or on a mesh.

    With a tolerance (rtol alone, or with the arguments of the first group) everything is chosen here: box, cells,
    degree, form of the equation, route in time; in any dimension, if the problem falls apart into independent ones of
    dimension up to three. With arguments of the second group the problem is solved on that mesh; see
    `mesh_reference.solve_on_mesh` for them. Then rtol asks for an estimate of the error, and with refine=True for a
    mesh of simplices refined where the policy needs it (`refinement.refine_on_mesh`).

    Parameters
    ----------
    rtol : relative error of value and policy, as `compare` measures it: 1e-4 if not given. From 1e-10 to 0.1.
    form : "linear" solves for f, "value" for v itself (by Newton's method, or explicitly where v is not stiff). By
        default the linear form where f keeps its relative accuracy in double precision, else the value form.
    box : the box to solve on, which is then kept, whatever its words say of faces that problem.domain does not have; by
        default one that holds the process up to a mass of rtol^2 / 100 on each side of each axis.
    max_dofs : unknowns in space that may be spent; 4000, 90 000, 350 000 in one, two, three dimensions.
    progress : called with the fraction of the work done, as far as that is known.

    Returns
    -------
    A `Solution`, or a `ProductSolution` of independent ones, with its `error_estimate`. Its stats tell the form, the
    route and why, the unknowns, how often it was solved, and the seconds. If the tolerance is not met, a
    `ToleranceWarning` says which part of the error stopped it, and so does the status.

    Raises
    ------
    ConvergenceError : rtol is out of range (below 1e-10 double precision has nothing to offer), or no solution exists
        on any grid tried.
    InfiniteValueError : the problem is linear-quadratic and its value infinite.
    EllipticityError, ProblemError : a coefficient is not elliptic, or not finite, somewhere in the box.
    DomainError : the box or mesh does not fit, or more than three coordinates hang together.
    """
    if not isinstance(problem, ControlProblem):
        raise ProblemError(f"solve needs a ControlProblem, got {type(problem).__name__}")
    if progress is not None and not callable(progress):
        raise ConvergenceError(f"progress must be a callable or None, got {progress!r}")
    tolerance = None if rtol is None else _checked(rtol)
    on_mesh = {"mesh": mesh, "element": element, "cells": cells, "steps": steps, "rtol_time": rtol_time}
    if refine or callable(boundary) or any(value is not None for value in on_mesh.values()):
        given = [
            name for name, value in (("form", form), ("max_dofs", None if refine else max_dofs)) if value is not None
        ]
        if given:
            raise DomainError(f"{' and '.join(given)} cannot be asked for on a mesh; leave out what belongs to meshes")
        return _solve_on_mesh(problem, tolerance, on_mesh, box, boundary, refine, max_dofs, progress)
    if boundary != "natural":
        raise DomainError(f"boundary must be 'natural' or a callable (t, x) -> v on the boundary, got {boundary!r}")
    if max_dofs is not None:
        max_dofs = positive_integer(max_dofs, "max_dofs", SpaceError)
    if form is not None:
        one_of(form, "form", ("linear", "value"), ConvergenceError)
    tolerance = DEFAULT_RTOL if tolerance is None else tolerance
    started = time.perf_counter()
    blocks = [tuple(range(problem.dim))] if box is not None else independent_blocks(problem)
    largest = max(map(len, blocks))
    if largest > 3:
        raise DomainError(
            f"boxes go up to dimension 3, but {largest} coordinates of {problem.name!r} hang together; learn its value"
            " from paths instead"
        )
    if len(blocks) == 1:
        return _finished(solve_to_tolerance(problem, tolerance, form, box, max_dofs, progress), tolerance, started)
    parts: list[tuple[tuple[int, ...], Solution]] = []
    for k, block in enumerate(blocks):
        own = restrict(problem, block, len(blocks))
        same = next((part for _, part in parts if alike(part.problem, own)), None)
        part = solve_to_tolerance(own, 0.7 * tolerance, form, None, max_dofs, None) if same is None else same
        parts.append((block, part))
        if progress is not None:
            progress((k + 1) / len(blocks))
    return _finished(_product(problem, parts), tolerance, started)


def _checked(rtol: float) -> float:
    number = float(rtol) if isinstance(rtol, int | float | np.number) and not isinstance(rtol, bool) else math.nan
    if not LEAST_RTOL <= number <= 0.1:
        raise ConvergenceError(
            f"rtol must be a number from {LEAST_RTOL:g}, what double precision allows, to 0.1, got {rtol!r}"
        )
    return number


def _finished(solution: _AnySolution, rtol: float, started: float) -> _AnySolution:
    """With the total of seconds, and a warning and a status that say so if the tolerance is not met."""
    estimate = solution.error_estimate
    if estimate is None:
        raise ConvergenceError("a solution without an estimate")
    changes: dict[str, Any] = {"stats": {**solution.stats, "seconds": time.perf_counter() - started}}
    if not estimate.met(rtol):
        complaint = estimate.complaint(rtol, f"solve({solution.problem.name!r})")
        warnings.warn(complaint, ToleranceWarning, stacklevel=3)
        changes["status"] = complaint if solution.status == "ok" else f"{solution.status}; {complaint}"
    return replace(solution, **changes)


def _product(problem: ControlProblem, parts: list[tuple[tuple[int, ...], Solution]]) -> ProductSolution:
    """Errors add up in squares for policies; those of values as if they all had one sign."""
    estimates = [part.error_estimate for _, part in parts if part.error_estimate is not None]
    once = {id(part): largest_norms_of(part) for part in {id(part): part for _, part in parts}.values()}
    sizes = np.array([once[id(part)] for _, part in parts])
    whole = np.maximum(
        np.array(largest_norms_of(ProductSolution(problem=problem, parts=tuple(parts), status="ok"))), 1e-300
    )
    value = sum(e.value * s for e, s in zip(estimates, sizes[:, 0], strict=True)) / whole[0]
    policy = math.sqrt(sum((e.policy * s) ** 2 for e, s in zip(estimates, sizes[:, 1], strict=True))) / whole[1]
    largest = max(max(e.value, e.policy) for e in estimates)
    scale = max(value, policy) / largest if largest > 0 else 0.0
    told = [part.status for _, part in parts if part.status != "ok"]
    return ProductSolution(
        problem=problem,
        parts=tuple(parts),
        status="; ".join(told) if told else "ok",
        stats={
            "form": ", ".join(dict.fromkeys(part.stats["form"] for _, part in parts)),
            "route": ", ".join(dict.fromkeys(part.stats["route"] for _, part in parts)),
            "why": f"falls apart into {len(parts)} independent problems",
            "dofs": sum(part.stats["dofs"] for _, part in parts),
            "solves": sum(part.stats["solves"] for part in {id(part): part for _, part in parts}.values()),
        },
        error_estimate=ErrorEstimate(
            value=float(value),
            policy=float(policy),
            **{name: scale * max(getattr(e, name) for e in estimates) for name in PARTS},
        ),
    )


def _solve_on_mesh(
    problem: ControlProblem,
    rtol: float | None,
    given: dict[str, Any],
    box: Box | None,
    boundary: Literal["natural"] | BoundaryValue,
    refine: bool,
    max_dofs: int | None,
    progress: Callable[[float], None] | None,
) -> Solution:
    if refine:
        refused = [name for name in ("steps", "rtol_time") if given[name] is not None]
        if refused or rtol is None:
            raise DomainError(
                f"refine=True needs rtol and chooses the time steps, got rtol={rtol!r}"
                + (f" and {', '.join(refused)}" if refused else "")
            )
        chosen = {name: given[name] for name in ("mesh", "element", "cells")}
        if max_dofs is not None:
            chosen["max_dofs"] = max_dofs
        return refine_on_mesh(problem, rtol=rtol, box=box, boundary=boundary, progress=progress, **chosen)
    solution = solve_on_mesh(problem, box=box, boundary=boundary, progress=progress, **given)
    if rtol is None:
        return solution
    started = time.perf_counter()
    far = unended(problem, rtol) if ends_early(problem) else None
    estimate = with_truncation(estimate_on_mesh(solution, boundary=boundary), solution, far, rtol)
    return _finished(replace(solution, error_estimate=estimate), rtol, started)
