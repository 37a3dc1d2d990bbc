"""Solutions and trajectories in single .npz files: plain arrays and text (no pickle), written whole or not at all.

A solution is read back bit for bit: the same coefficients on the same class. Callables are not stored, so the problem
is given again when a file is read; its dimension, horizon and temperature must be those it was written with.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import PATHS_KIND
from fem_hjb.problems.blocks import restrict
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, Unknown, ValueGauge
from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.meshes import KINDS
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.space import Space, spatial_basis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.spaces.tensor import SplineBasis, TensorBasis
from fem_hjb.support.checks import require
from fem_hjb.support.errors import FemHjbError, OutputError, SpaceError
from fem_hjb.support.files import atomic_file

_SOLUTION = "fem_hjb solution 1"
_QUADRATIC = ("centre", "P", "p", "c")
FilePath = str | os.PathLike[str]


def save_solution(path: FilePath, solution: Solution | ProductSolution) -> None:
    """Write a solution: class, coefficients, gauge, method, status, stats, and which problem it solves.

    Raises OutputError when the folder is missing or the file cannot be written; an old file then stays as it was.
    """
    if isinstance(solution, Solution):
        text, arrays = _pack(solution)
        _write(path, _SOLUTION, text, arrays)
        return
    if not isinstance(solution, ProductSolution):
        raise OutputError(f"save_solution(path, solution) writes solutions, got {type(solution).__name__}")
    distinct = list(dict.fromkeys(part for _, part in solution.parts))
    packed = [_pack(part) for part in distinct]
    text = {
        **_outline(solution),
        "parts": [text for text, _ in packed],
        "blocks": [[list(index), distinct.index(part)] for index, part in solution.parts],
    }
    arrays = {f"part_{k}_{name}": array for k, (_, own) in enumerate(packed) for name, array in own.items()}
    _write(path, _SOLUTION, text, arrays)


def load_solution(path: FilePath, problem: ControlProblem) -> Solution | ProductSolution:
    """Read what `save_solution` wrote.

    Raises OutputError when there is no such file, it is no such file, it is damaged or cut off, or it holds a solution
    of a problem with another dimension, horizon or temperature.
    """
    require_problem(problem, "load_solution")
    text, arrays = _read(path, _SOLUTION)
    try:
        written = text["problem"]
        if written != _fingerprint(problem):
            raise OutputError(
                f"{path} holds a solution of {text['name']!r} with {_describe(written)}, but the problem given has"
                f" {_describe(_fingerprint(problem))}; give the problem it was written for"
            )
        if "blocks" not in text:
            return _unpack(text, arrays, problem)
        count = len(text["blocks"])
        parts: dict[int, Solution] = {}
        for index, k in text["blocks"]:
            if k not in parts:
                own = {
                    name.removeprefix(f"part_{k}_"): a for name, a in arrays.items() if name.startswith(f"part_{k}_")
                }
                parts[k] = _unpack(text["parts"][k], own, restrict(problem, index, count))
        return ProductSolution(
            problem=problem,
            parts=tuple((tuple(index), parts[k]) for index, k in text["blocks"]),
            status=text["status"],
            stats=text["stats"],
            error_estimate=_estimate(text),
        )
    except OutputError:
        raise
    except (KeyError, IndexError, FemHjbError) as cause:
        raise OutputError(f"{path} is damaged: {cause}; write it again") from cause


def _outline(solution: Solution | ProductSolution) -> dict[str, Any]:
    estimate = solution.error_estimate
    return {
        "method": solution.method,
        "status": solution.status,
        "stats": dict(solution.stats),
        "error_estimate": None if estimate is None else estimate.as_dict(),
        "problem": _fingerprint(solution.problem),
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
    _write(path, PATHS_KIND, {"scheme": paths.scheme}, {"t": np.asarray(paths.t), "x": np.asarray(paths.x)})


def load_paths(path: FilePath) -> Paths:
    """Read what `save_paths` wrote. Raises OutputError as `load_solution` does."""
    text, arrays = _read(path, PATHS_KIND)
    try:
        return Paths(t=arrays["t"], x=arrays["x"], scheme=text["scheme"])
    except (KeyError, FemHjbError) as cause:
        raise OutputError(f"{path} is damaged: {cause}; write it again") from cause


def _fingerprint(problem: ControlProblem) -> dict[str, float]:
    return {"dim": problem.dim, "horizon": problem.horizon, "temperature": problem.temperature}


def _describe(fingerprint: Mapping[str, float]) -> str:
    return ", ".join(f"{key}={number:g}" for key, number in fingerprint.items())


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
        return {"mesh_points": basis.mesh.p, "mesh_cells": basis.mesh.t, "mesh_kind": np.array(basis.kind)}
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
    mesh = KINDS[str(arrays["mesh_kind"])](arrays["mesh_points"], arrays["mesh_cells"])
    return MeshBasis(mesh, element)


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays inside `stats` as JSON numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise OutputError(f"stats hold a {type(value).__name__}, which cannot be written; keep numbers, text and lists")


def _write(path: FilePath, kind: str, text: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    words = json.dumps(text, default=_plain)
    with atomic_file(path) as part, part.open("wb") as stream:
        np.savez_compressed(stream, kind=np.array(kind), text=np.array(words), **arrays)


def _read(path: FilePath, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    source = Path(path)
    if not source.is_file():
        raise OutputError(f"there is no file {source}")
    try:
        with source.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        found = str(arrays.pop("kind"))
        text = json.loads(str(arrays.pop("text")))
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        AttributeError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as cause:
        raise OutputError(f"{source} is not a complete file of kind {kind!r} ({cause}); write it again") from cause
    if found != kind:
        raise OutputError(f"{source} is a file of kind {found!r}, expected {kind!r}")
    return text, arrays
