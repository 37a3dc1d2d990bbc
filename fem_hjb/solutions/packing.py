"""Results as arrays and text, and back, bit for bit: those of problems with a horizon.

`pack` says what is to be written; `unpack` makes the result again, for the problem that is given.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fem_hjb.problems.blocks import restrict
from fem_hjb.problems.cells import CURVED, KINDS, is_curved
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, Unknown, ValueGauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.space import Space, spatial_basis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.spaces.tensor import SplineBasis, TensorBasis
from fem_hjb.support.errors import OutputError, SpaceError

Text = Mapping[str, Any]
Arrays = Mapping[str, Any]
Packed = tuple[dict[str, Any], dict[str, Any]]

_QUADRATIC = ("centre", "P", "p", "c")
_CURVED = "2"  # ends the kind of cells of second order


def pack(solution: Solution | ProductSolution) -> Packed:
    """Text and arrays of a solution."""
    return _pack(solution) if isinstance(solution, Solution) else _pack_product(solution)


def unpack(text: Text, arrays: Arrays, problem: ControlProblem) -> Solution | ProductSolution:
    """The solution that `pack` has packed."""
    return _unpack_product(text, arrays, problem) if "blocks" in text else unpack_one(text, arrays, problem)


def outline(found: Any) -> dict[str, Any]:
    """How a result was found, and what was said of it."""
    estimate = found.error_estimate
    return {
        "method": found.method,
        "status": found.status,
        "stats": dict(found.stats),
        "error_estimate": None if estimate is None else estimate.as_dict(),
        "checks": [asdict(check) for check in found.checks],
    }


def outlined(text: Text) -> dict[str, Any]:
    """The same as arguments of a result; older files have no checks."""
    return {
        "method": text["method"],
        "status": text["status"],
        "stats": text["stats"],
        "error_estimate": _estimate(text),
        "checks": tuple(Check(**check) for check in text.get("checks", ())),
    }


def named(arrays: Arrays, start: str) -> dict[str, Any]:
    """Those arrays whose names begin so, without that beginning."""
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def plain(value: Any) -> Any:
    """NumPy numbers and arrays inside `stats` as JSON numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise OutputError(f"stats hold a {type(value).__name__}, which cannot be written; keep numbers, text and lists")


def _pack(solution: Solution) -> Packed:
    gauge, space = solution.gauge, solution.space
    text = {
        **outline(solution),
        "unknown": type(gauge).__name__,
        "excluded_mass": space.excluded_mass,
        "floor": solution.floor,
    }
    arrays = {"coefficients": np.asarray(solution.coefficients), **_gauge_arrays(gauge)}
    if isinstance(space, Space):
        text |= {"time_kind": space.time.kind, "element": space.spatial.element}
        return text, arrays | {"time_grid": space.time.points, **basis_arrays(space.spatial)}
    text["panels"] = len(space.panels)
    for k, panel in enumerate(space.panels):
        own = {"time_grid": panel.time.points, **basis_arrays(panel.spatial)}
        arrays |= {f"panel_{k}_{name}": array for name, array in own.items()}
    return text, arrays


def _pack_product(solution: ProductSolution) -> Packed:
    distinct = list(dict.fromkeys(part for _, part in solution.parts))
    packed = [_pack(part) for part in distinct]
    text = {
        **outline(solution),
        "parts": [text for text, _ in packed],
        "blocks": [[list(index), distinct.index(part)] for index, part in solution.parts],
    }
    return text, {f"part_{k}_{name}": array for k, (_, own) in enumerate(packed) for name, array in own.items()}


def _unpack_product(text: Text, arrays: Arrays, problem: ControlProblem) -> ProductSolution:
    count = len(text["blocks"])
    parts: dict[int, Solution] = {}
    for index, k in text["blocks"]:
        if k not in parts:
            parts[k] = unpack_one(text["parts"][k], named(arrays, f"part_{k}_"), restrict(problem, index, count))
    told = outlined(text)
    del told["method"]  # that of the parts
    return ProductSolution(
        problem=problem, parts=tuple((tuple(index), parts[k]) for index, k in text["blocks"]), **told
    )


def unpack_one(text: Text, arrays: Arrays, problem: ControlProblem) -> Solution:
    """A solution that is no product."""
    return Solution(
        problem=problem,
        space=_panels(text["panels"], arrays) if "panels" in text else _space(text, arrays),
        coefficients=arrays["coefficients"],
        gauge=_gauge(arrays, text["unknown"]),
        **outlined(text),
        floor=text.get("floor", 0.0),
    )


def _space(text: Text, arrays: Arrays) -> Space:
    time = LineBasis(arrays["time_grid"], text["time_kind"])
    return Space.product(time, basis_of(arrays, text["element"]), excluded_mass=text["excluded_mass"])


def _panels(count: int, arrays: Arrays) -> PanelSpace:
    panels = []
    for k in range(count):
        own = named(arrays, f"panel_{k}_")
        panels.append(Space.from_(LineBasis(own["time_grid"], "hermite"), basis_of(own, "gll")))
    return PanelSpace(tuple(panels))


def _estimate(text: Text) -> ErrorEstimate | None:
    numbers = text["error_estimate"]
    return None if numbers is None else ErrorEstimate.from_dict(numbers)


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


def _gauge(arrays: Arrays, unknown: str) -> Unknown:
    temperature, horizon, terminal, running = arrays["gauge"].tolist()
    constants = Gauge(temperature=temperature, horizon=horizon, terminal=terminal, running=running)
    inner: Gauge | QuadraticGauge = constants
    if "gauge_P" in arrays:
        inner = QuadraticGauge(constants=constants, **{name: arrays[f"gauge_{name}"] for name in _QUADRATIC})
    return ValueGauge(background=inner) if unknown == "ValueGauge" else inner


def basis_arrays(basis: SpatialBasis) -> dict[str, Any]:
    """Grids, or the mesh, of a class of functions."""
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


def basis_of(arrays: Arrays, element: str) -> SpatialBasis:
    """The class on these grids, or this mesh."""
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
