"""The same for results of problems without a horizon, and of bridges; what these problems say at a few points."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.fingerprint import Fingerprint, steady_fingerprint
from fem_hjb.problems.laws import Law
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.bridge import Bridge, Potential
from fem_hjb.solutions.ground import GroundState
from fem_hjb.solutions.packing import (
    Arrays,
    Packed,
    Text,
    basis_arrays,
    basis_of,
    named,
    outline,
    outlined,
    pack,
    unpack,
)
from fem_hjb.solutions.solution import Solution
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution, SteadyFunction
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import OutputError, ProblemError

Exit = TypeVar("Exit", ExitSolution, ExitExpectation)

_POINTS = 12  # of the domain, at which problems are compared, and of its boundary
_ROUNDING = 1e-6  # of the logarithm of a density, relative, or absolute if that is less
_ERRORS = ("initial_error", "terminal_error", "potential_error")


def pack_exit(found: ExitSolution | ExitExpectation) -> Packed:
    """Text and arrays of a function until an exit."""
    return {**outline(found), **_element(found.function)}, _function(found.function)


def unpack_exit(kind: type[Exit], text: Text, arrays: Arrays, problem: ExitProblem) -> Exit:
    """The result of this type."""
    return kind(problem=problem, function=_made(arrays, text["element"]), **outlined(text))


def pack_ground(state: GroundState) -> Packed:
    """Text and arrays of a ground state."""
    w, density = state.function, state.density_function
    if w.basis is not density.basis:
        raise OutputError("a ground state whose two functions are on two bases cannot be written; put them on one")
    numbers = {"average_reward": state.average_reward, "gap": state.gap}
    return {**outline(state), **_element(w), **numbers}, _function(w) | {"density": density.coefficients}


def unpack_ground(text: Text, arrays: Arrays, problem: ControlProblem) -> GroundState:
    """The ground state of this problem."""
    w = _made(arrays, text["element"])
    return GroundState(
        problem=problem,
        function=w,
        density_function=SteadyFunction(w.basis, arrays["density"]),
        average_reward=text["average_reward"],
        gap=text["gap"],
        **outlined(text),
    )


def pack_bridge(bridge: Bridge) -> Packed:
    """Text and arrays of a bridge."""
    potential = bridge.potential
    if not isinstance(potential, Potential):
        raise OutputError(f"a bridge whose potential is a {type(potential).__name__} cannot be written")
    inner, own = pack(bridge.solution)
    text = {
        "status": bridge.status,
        "stats": dict(bridge.stats),
        "iterations": bridge.iterations,
        **{name: getattr(bridge, name) for name in _ERRORS},
        **_element(potential.function),
        "solution": inner,
    }
    arrays = {f"solution_{name}": array for name, array in own.items()}
    arrays |= {f"potential_{name}": array for name, array in _function(potential.function).items()}
    x = points_of(potential.function.basis)
    return text, arrays | {f"target_{name}": array for name, array in _law(bridge.target, x).items()}


def unpack_bridge(text: Text, arrays: Arrays, problem: ControlProblem, target: Law) -> Bridge:
    """The bridge from this process to this law; the terminal reward of its problem is the potential."""
    potential = Potential(_made(named(arrays, "potential_"), text["element"]))
    posed = replace(problem, terminal_reward=potential, exact=None)
    solution = unpack(text["solution"], named(arrays, "solution_"), posed)
    if not isinstance(solution, Solution):
        raise OutputError("the solution of a bridge is no product")
    return Bridge(
        problem=posed,
        target=target,
        potential=potential,
        solution=solution,
        iterations=text["iterations"],
        status=text["status"],
        stats=text["stats"],
        **{name: text[name] for name in _ERRORS},
    )


def target_differs(arrays: Arrays, target: Law) -> bool:
    """Whether a law is not the target of the bridge in a file."""
    stored = named(arrays, "target_")
    try:
        found = _law(target, stored["x"])
    except ProblemError:
        return True
    return not all(
        np.shape(found[name]) == np.shape(stored[name])
        and bool((np.abs(found[name] - stored[name]) <= _ROUNDING * np.maximum(np.abs(stored[name]), unit)).all())
        for name, unit in _units(stored).items()
    )


def steady_points(function: SteadyFunction, problem: ExitProblem | ControlProblem, *, rewards: bool) -> Fingerprint:
    """What a problem says at points of the domain of a function."""
    basis = function.basis
    return steady_fingerprint(problem, points_of(basis), _ends(basis), rewards=rewards)


def points_of(basis: SpatialBasis) -> FloatArray:
    """Some nodes (n, d)."""
    return _some(basis.nodes)


def _ends(basis: SpatialBasis) -> FloatArray | None:
    """Some nodes (m, d) on the boundary of a mesh."""
    if not isinstance(basis, MeshBasis):
        return None
    mesh = basis.mesh
    facets: IntArray = np.asarray(mesh.facets, dtype=np.int64)[:, mesh.boundary_facets()]
    return _some(basis.nodes[np.unique(basis.facet_dofs(facets))])


def _some(points: FloatArray) -> FloatArray:
    chosen = np.random.default_rng(0).permutation(len(points))[:_POINTS]
    return np.asarray(points[chosen])


def _law(law: Law, x: FloatArray) -> dict[str, FloatArray]:
    logs = call("logpdf of the target", law.logpdf, (x,), ProblemError)
    return {"x": x, "logpdf": logs, "mean": law.expectation, "covariance": law.covariance}


def _units(stored: Mapping[str, FloatArray]) -> dict[str, Any]:
    spread = np.ptp(stored["x"], axis=0)
    return {"logpdf": 1.0, "mean": spread, "covariance": spread[:, None] * spread}


def _element(function: SteadyFunction) -> dict[str, str]:
    return {"element": function.basis.element}


def _function(function: SteadyFunction) -> dict[str, Any]:
    return {"coefficients": function.coefficients, **basis_arrays(function.basis)}


def _made(arrays: Arrays, element: str) -> SteadyFunction:
    return SteadyFunction(basis_of(arrays, element), arrays["coefficients"])
