"""Solutions and trajectories in single .npz files: plain arrays and text (no pickle), written whole or not at all.

A solution is read back bit for bit: the same coefficients on the same class. Callables are not stored, so the problem
is given again when a file is read; what its callables return at a few points must be what it was when it was written.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.stored import PATHS_KIND
from fem_hjb.problems.blocks import restrict
from fem_hjb.problems.cells import CURVED, KINDS, is_curved
from fem_hjb.problems.fingerprint import differences, fingerprint
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, Unknown, ValueGauge
from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.space import Space, spatial_basis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.spaces.tensor import SplineBasis, TensorBasis
from fem_hjb.support.archives import FilePath, read_archive, write_archive
from fem_hjb.support.checks import require
from fem_hjb.support.errors import FemHjbError, OutputError, SpaceError

_SOLUTION = "fem_hjb solution 1"
_QUADRATIC = ("centre", "P", "p", "c")
_CURVED = "2"  # ends the kind of cells of second order
_POINT = "problem_"  # begins the names of what the problem says at points


class OtherProblemWarning(UserWarning):
    """A solution was read for a problem that is not, or not known to be, the one it was written for."""


def save_solution(path: FilePath, solution: Solution | ProductSolution) -> None:
    """Write a solution: class, coefficients, gauge, method, status, stats, and what its problem says at a few points.

    Raises OutputError when the folder is missing or the file cannot be written; an old file then stays as it was.
    """
    if not isinstance(solution, Solution | ProductSolution):
        raise OutputError(f"save_solution(path, solution) writes solutions, got {type(solution).__name__}")
    text, arrays = _pack(solution) if isinstance(solution, Solution) else _pack_product(solution)
    arrays |= {_POINT + name: array for name, array in fingerprint(solution.problem).items()}
    write_archive(path, _SOLUTION, text, arrays, default=_plain)


def load_solution(path: FilePath, problem: ControlProblem, *, check: bool = True) -> Solution | ProductSolution:
    """Read what `save_solution` wrote.

    problem : the one it was written for: drift, diffusion, rewards, initial law and domain are compared at the points
        that are in the file, each to a millionth of its size.
    check : False reads the file although they differ, or although it is too old to tell, with an OtherProblemWarning
        that names what differs. Dimension, horizon and temperature must be the same in any case.

    Raises OutputError when there is no such file, it is no such file, it is damaged, cut off or changed, or it holds a
    solution of another problem.
    """
    require_problem(problem, "load_solution")
    text, arrays = read_archive(path, _SOLUTION)
    points = {name.removeprefix(_POINT): arrays.pop(name) for name in list(arrays) if name.startswith(_POINT)}
    try:
        _compare(path, text, problem)
        doubt = _doubt(text, points, problem)
        solution = _unpack(text, arrays, problem) if "blocks" not in text else _unpack_product(text, arrays, problem)
    except OutputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, FemHjbError) as cause:
        raise OutputError(f"{path} is damaged: {cause}; write it again") from cause
    if doubt is not None and check:
        raise OutputError(f"{path} {doubt}; give the problem it was written for, or check=False if you know better")
    if doubt is not None:
        warnings.warn(f"{path} {doubt}", OtherProblemWarning, stacklevel=2)
    return solution


def _compare(path: FilePath, text: Mapping[str, Any], problem: ControlProblem) -> None:
    """OutputError unless dimension, horizon and temperature are those of the file."""
    written = text["problem"]
    if written != _numbers(problem):
        raise OutputError(
            f"{path} holds a solution of {text['name']!r} with {_describe(written)}, but the problem given has"
            f" {_describe(_numbers(problem))}; give the problem it was written for"
        )


def _doubt(text: Mapping[str, Any], points: Mapping[str, Any], problem: ControlProblem) -> str | None:
    """Why the problem may not be that of the file, if there is a reason."""
    if not points:
        return f"holds a solution of {text['name']!r} and does not say more of its problem, as older files do not"
    other = differences(problem, points)
    if not other:
        return None
    return f"holds a solution of {text['name']!r}; the problem given, {problem.name!r}, has another {', '.join(other)}"


def _outline(solution: Solution | ProductSolution) -> dict[str, Any]:
    estimate = solution.error_estimate
    return {
        "method": solution.method,
        "status": solution.status,
        "stats": dict(solution.stats),
        "error_estimate": None if estimate is None else estimate.as_dict(),
        "problem": _numbers(solution.problem),
        "name": solution.problem.name,
    }


def _pack(solution: Solution) -> tuple[dict[str, Any], dict[str, Any]]:
    """Text and arrays of a solution."""
    gauge, space = solution.gauge, solution.space
    text = {
        **_outline(solution),
        "unknown": type(gauge).__name__,
        "excluded_mass": space.excluded_mass,
        "floor": solution.floor,
    }
    arrays = {"coefficients": np.asarray(solution.coefficients), **_gauge_arrays(gauge)}
    if isinstance(space, Space):
        text |= {"time_kind": space.time.kind, "element": space.spatial.element}
        return text, arrays | {"time_grid": space.time.points, **_basis_arrays(space.spatial)}
    text["panels"] = len(space.panels)
    for k, panel in enumerate(space.panels):
        own = {"time_grid": panel.time.points, **_basis_arrays(panel.spatial)}
        arrays |= {f"panel_{k}_{name}": array for name, array in own.items()}
    return text, arrays


def _pack_product(solution: ProductSolution) -> tuple[dict[str, Any], dict[str, Any]]:
    distinct = list(dict.fromkeys(part for _, part in solution.parts))
    packed = [_pack(part) for part in distinct]
    text = {
        **_outline(solution),
        "parts": [text for text, _ in packed],
        "blocks": [[list(index), distinct.index(part)] for index, part in solution.parts],
    }
    return text, {f"part_{k}_{name}": array for k, (_, own) in enumerate(packed) for name, array in own.items()}


def _unpack_product(text: Mapping[str, Any], arrays: Mapping[str, Any], problem: ControlProblem) -> ProductSolution:
    count = len(text["blocks"])
    parts: dict[int, Solution] = {}
    for index, k in text["blocks"]:
        if k not in parts:
            start = f"part_{k}_"
            own = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
            parts[k] = _unpack(text["parts"][k], own, restrict(problem, index, count))
    return ProductSolution(
        problem=problem,
        parts=tuple((tuple(index), parts[k]) for index, k in text["blocks"]),
        status=text["status"],
        stats=text["stats"],
        error_estimate=_estimate(text),
    )


def _unpack(text: Mapping[str, Any], arrays: Mapping[str, Any], problem: ControlProblem) -> Solution:
    return Solution(
        problem=problem,
        space=_panels(text["panels"], arrays) if "panels" in text else _space(text, arrays),
        coefficients=arrays["coefficients"],
        gauge=_gauge(arrays, text["unknown"]),
        method=text["method"],
        status=text["status"],
        stats=text["stats"],
        error_estimate=_estimate(text),
        floor=text.get("floor", 0.0),
    )


def _space(text: Mapping[str, Any], arrays: Mapping[str, Any]) -> Space:
    time = LineBasis(arrays["time_grid"], text["time_kind"])
    return Space.product(time, _basis(arrays, text["element"]), excluded_mass=text["excluded_mass"])


def _panels(count: int, arrays: Mapping[str, Any]) -> PanelSpace:
    panels = []
    for k in range(count):
        start = f"panel_{k}_"
        own = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
        panels.append(Space.from_(LineBasis(own["time_grid"], "hermite"), _basis(own, "gll")))
    return PanelSpace(tuple(panels))


def _estimate(text: Mapping[str, Any]) -> ErrorEstimate | None:
    numbers = text["error_estimate"]
    return None if numbers is None else ErrorEstimate.from_dict(numbers)


def save_paths(path: FilePath, paths: Paths) -> None:
    """Write trajectories. Raises OutputError as `save_solution` does."""
    require(paths, Paths, "save_paths", OutputError)
    write_archive(path, PATHS_KIND, {"scheme": paths.scheme}, {"t": paths.t, "x": paths.x})


def load_paths(path: FilePath) -> Paths:
    """Read what `save_paths` wrote. Raises OutputError as `load_solution` does."""
    text, arrays = read_archive(path, PATHS_KIND)
    try:
        return Paths(t=arrays["t"], x=arrays["x"], scheme=text["scheme"])
    except (LookupError, TypeError, FemHjbError) as cause:
        raise OutputError(f"{path} is damaged: {cause}; write it again") from cause


def _numbers(problem: ControlProblem) -> dict[str, float]:
    return {"dim": problem.dim, "horizon": problem.horizon, "temperature": problem.temperature}


def _describe(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{key}={number:g}" for key, number in numbers.items())


def _gauge_arrays(gauge: Unknown) -> dict[str, Any]:
    inner = gauge.background if isinstance(gauge, ValueGauge) else gauge
    if not isinstance(inner, Gauge | QuadraticGauge):
        raise OutputError(f"a solution whose gauge is a {type(gauge).__name__} cannot be stored")
    constants = inner.constants
    numbers = [constants.temperature, constants.horizon, constants.terminal, constants.running]
    arrays: dict[str, Any] = {"gauge": np.array(numbers)}
    if isinstance(inner, QuadraticGauge):
        arrays |= {f"gauge_{name}": np.asarray(getattr(inner, name)) for name in _QUADRATIC}
    return arrays


def _gauge(arrays: Mapping[str, Any], unknown: str) -> Unknown:
    temperature, horizon, terminal, running = arrays["gauge"].tolist()
    constants = Gauge(temperature=temperature, horizon=horizon, terminal=terminal, running=running)
    inner: Gauge | QuadraticGauge = constants
    if "gauge_P" in arrays:
        inner = QuadraticGauge(constants=constants, **{name: arrays[f"gauge_{name}"] for name in _QUADRATIC})
    return ValueGauge(background=inner) if unknown == "ValueGauge" else inner


def _basis_arrays(basis: SpatialBasis) -> dict[str, Any]:
    if isinstance(basis, TensorBasis):
        grids = {f"grid_{k}": axis.points for k, axis in enumerate(basis.axes)}
        return {**grids, "flat": np.array(basis.flat)} if isinstance(basis, SplineBasis) else grids
    if isinstance(basis, SpectralBasis):
        grids = {f"grid_{k}": line.grid for k, line in enumerate(basis.lines)}
        return {**grids, "degrees": np.array([line.degree for line in basis.lines])}
    if isinstance(basis, MeshBasis):
        kind = basis.kind + _CURVED * is_curved(basis.mesh)
        return {"mesh_points": basis.mesh.p, "mesh_cells": basis.mesh.t, "mesh_kind": np.array(kind)}
    raise OutputError(f"a solution on a {type(basis).__name__} cannot be written; use a mesh or a box")


def _basis(arrays: Mapping[str, Any], element: str) -> SpatialBasis:
    grids = [arrays[f"grid_{k}"] for k in range(3) if f"grid_{k}" in arrays]
    if element == "gll":
        degrees = arrays["degrees"]
        if degrees.shape != (len(grids),):
            raise SpaceError(f"{len(grids)} grids but degrees of shape {degrees.shape}")
        return SpectralBasis([SpectralLine(grid, p) for grid, p in zip(grids, degrees.tolist(), strict=True)])
    if "mesh_kind" not in arrays:
        return spatial_basis(grids, element, flat=bool(arrays.get("flat", False)))
    meshes = KINDS | {kind + _CURVED: cls for kind, cls in CURVED.items()}
    return MeshBasis(meshes[str(arrays["mesh_kind"])](arrays["mesh_points"], arrays["mesh_cells"]), element)


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays inside `stats` as JSON numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise OutputError(f"stats hold a {type(value).__name__}, which cannot be written; keep numbers, text and lists")
