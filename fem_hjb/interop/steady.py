"""Results without a horizon for other programs: the same files without times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.interop.arrays import write_hdf5, write_npz
from fem_hjb.interop.grids import Fields, Grids, checked_axis, told_of, with_f
from fem_hjb.interop.vtk import Piece, cells_of, structured, write_piece
from fem_hjb.problems.box import Box
from fem_hjb.solutions.ground import GroundState
from fem_hjb.solutions.packing_steady import steady_points
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import DomainError, OutputError
from fem_hjb.support.files import atomic_file
from fem_hjb.support.memory import require_room

SteadyResult = ExitSolution | ExitExpectation | GroundState

_POINTS = {1: 401, 2: 97, 3: 33}  # per axis
_REWARD = "unit of the reward"
_CONTROL = "optimal control (1/alpha) Lambda grad value, which is added to the drift; last axis: its components"
_VALUES: dict[type, tuple[str, str]] = {
    ExitSolution: ("value v(x): the most that reward less alpha times relative entropy is on average", _REWARD),
    ExitExpectation: ("expectation u(x) until the exit, without control", "unit of what is paid"),
    GroundState: ("w(x): the value less the average reward, up to a constant; of mean 0", _REWARD),
}
_ARRAYS = {
    "f": ("f(x) = exp(value / temperature)", "1"),
    "log_f": ("value / temperature, the logarithm of f", "1"),
    "control": (_CONTROL, "unit of x per unit of time"),
    "p_optimal": ("stationary density under the optimal control", "1 per unit of volume of x"),
}


def export_steady(of: SteadyResult, target: Path, axes: Sequence[ArrayLike] | None) -> None:
    """Value, f and control of an exit, an expectation, or value, control and density of a ground state, on a grid."""
    if target.suffix == ".pvd":
        raise OutputError(f"a {type(of).__name__} has no times: write one file, {target.with_suffix('.vtu').name!r}")
    grid = _axes(of, axes)
    with atomic_file(target) as part:
        if target.suffix == ".vtu":
            basis = of.function.basis
            own = axes is None and isinstance(basis, MeshBasis)
            piece: Piece = cells_of(basis) if own and isinstance(basis, MeshBasis) else structured(grid)
            row = _fields(of, piece.points)
            write_piece(part, piece, row, _meta(of, list(row)))
            return
        shape = tuple(map(len, grid))
        row = _fields(of, tensor_points(list(grid)))
        fields = {name: array.reshape(*shape, *array.shape[1:]) for name, array in row.items()}
        coordinates = {f"x{k}": axis for k, axis in enumerate(grid, start=1)}
        grids = Grids(coordinates=coordinates, fields=fields, meta=_meta(of, list(fields)))
        (write_npz if target.suffix == ".npz" else write_hdf5)(part, grids)


def _bounds(of: SteadyResult) -> tuple[FloatArray, FloatArray]:
    """Of where the process lives, as far as grids go."""
    lower, upper = of.function.basis.box.bounds
    domain = of.problem.domain
    if not isinstance(domain, Box):
        return lower, upper
    return np.maximum(lower, domain.bounds[0]), np.minimum(upper, domain.bounds[1])


def _axes(of: SteadyResult, axes: Sequence[ArrayLike] | None) -> tuple[FloatArray, ...]:
    lower, upper = _bounds(of)
    ends, dim = list(zip(lower.tolist(), upper.tolist(), strict=True)), len(lower)
    if axes is None:
        return tuple(np.linspace(low, high, _POINTS[dim]) for low, high in ends)
    if not isinstance(axes, list | tuple) or len(axes) != dim:
        raise DomainError(f"axes must be a list of {dim} arrays, one for each axis of the problem, got {axes!r:.80}")
    found = tuple(checked_axis(axis, k, ends[k]) for k, axis in enumerate(axes))
    require_room((*map(len, found), dim + 4), "export:", OutputError, "; give shorter axes=")
    return found


def _fields(of: SteadyResult, x: FloatArray) -> Fields:
    """Arrays (n,), control (n, d); nan outside."""
    found = {"value": of.value(x, outside="nan")}
    if isinstance(of, ExitSolution):
        with_f([found], of.problem.temperature)
    if not isinstance(of, ExitExpectation):
        found["control"] = of.policy(x, outside="nan")
    if isinstance(of, GroundState):
        found["p_optimal"] = of.density(x, outside="nan")
    return found


def _meta(of: SteadyResult, fields: Sequence[str]) -> dict[str, Any]:
    axes = {f"x{k + 1}": (f"coordinate {k + 1} of the state", f"unit of x{k + 1}") for k in range(of.problem.dim)}
    known = {**axes, "value": _VALUES[type(of)], **_ARRAYS}
    points = steady_points(of.function, of.problem, rewards=not isinstance(of, ExitExpectation))
    own = {"average_reward": of.average_reward, "gap": of.gap} if isinstance(of, GroundState) else {}
    if isinstance(of, ExitExpectation):
        own = {"quantity": of.stats.get("quantity", "exit expectation")}
    return told_of(of, points, {name: known[name] for name in (*axes, *fields)}) | own
