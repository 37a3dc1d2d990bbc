"""What holds at the boundary of a mesh: values the user or the exit reward prescribes, else the natural condition."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.gauge import UNDERFLOW, Gauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.faces import absorbed_nodes, check_reflection
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.space import SplineBasis
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import DomainError, PositivityError, SpaceError

BoundaryValue = Callable[[float, FloatArray], ArrayLike]
Boundary = Literal["natural"] | BoundaryValue


def check_boundary(problem: ControlProblem, basis: SpatialBasis, boundary: Any) -> None:
    """Nothing if the problem can be solved on this basis with this boundary, else a SpaceError or DomainError."""
    if isinstance(basis, SplineBasis):
        raise SpaceError(
            f"B-splines are classes for `fit`, and meshes are solved on without them, got element={basis.element!r};"
            " use element='hermite', or a continuous one such as 'P2' or 'Q2'"
        )
    if not callable(boundary) and not (isinstance(boundary, str) and boundary == "natural"):
        raise DomainError(f"boundary must be 'natural' or a callable (t, x) -> v on the boundary, got {boundary!r}")
    if callable(boundary) and basis.smoothness:
        raise SpaceError(
            f"element {basis.element!r} takes no prescribed boundary values, as its coefficients on the boundary are"
            " slopes too; use boundary='natural', or a continuous element such as 'P2' or 'Q2'"
        )
    domain = problem.domain
    if domain is not None and callable(boundary) and (domain.absorbing or domain.has("reflecting")):
        raise DomainError(
            "the process is reflected or stopped at faces of problem.domain, which says what holds there;"
            " use boundary='natural'"
        )
    if domain is not None and domain.absorbing and basis.smoothness:
        raise SpaceError(
            f"element {basis.element!r} takes no values on absorbing faces, as its coefficients there are slopes too;"
            " use a continuous element such as 'P2' or 'Q2'"
        )
    check_reflection(problem, basis)


def kind_of(boundary: Any) -> str:
    """ "prescribed" or "natural"."""
    return "prescribed" if callable(boundary) else "natural"


def prescribed(
    problem: ControlProblem, basis: SpatialBasis, boundary: Boundary
) -> tuple[IntArray, BoundaryValue | None]:
    """The dofs where v is given, and what gives it: the caller, or the exit reward on absorbing faces."""
    if callable(boundary):
        return basis.boundary_dofs(), boundary
    domain = problem.domain
    if domain is None or not domain.absorbing:
        return np.empty(0, dtype=np.int64), None
    return np.flatnonzero(absorbed_nodes(problem, basis)), problem.exit_reward


def raised(gauged: Gauge, problem: ControlProblem, faces: FloatArray, instants: FloatArray) -> Gauge:
    """The gauge with c_y so large that f <= 1 on absorbing faces too; PositivityError if f underflows on them."""
    over = np.array([problem.exit_reward(t, faces) - gauged.guess(t, faces) for t in instants.tolist()])
    depth = (max(float(over.max()), 0.0) - float(over.min())) / problem.temperature
    if depth > UNDERFLOW:
        raise PositivityError(
            f"the exit reward of {problem.name!r} differs from the other rewards by {depth:.0f} temperatures, so that"
            f" f = exp(v / alpha) underflows (the limit is about {UNDERFLOW:.0f}); raise the temperature above"
            f" {problem.temperature * depth / UNDERFLOW:.3g}"
        )
    return replace(gauged, terminal=gauged.terminal + max(float(over.max()), 0.0))
