"""The grids a box is solved on: where they begin, which cells to halve, and what is changed to measure an error."""

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from fem_hjb.paths.extent import Reach
from fem_hjb.problems.box import BoolArray, Box
from fem_hjb.problems.gauge import Gauge, QuadraticGauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.axes import apply_axis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

RICHER = 2  # degrees
_SLOWER = 20.0  # by which the time tolerance is divided
_WIDER = 0.06  # of the width, by which a box is enlarged on each side
_AHEAD = 0.1  # of what is allowed to a cell: such cells are halved too, so that rounds are few
_FIRST_ROUNDS = {1: 5, 2: 4, 3: 1}
_FIRST_TAIL = 1e-2


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """How one problem is solved: the grids of the axes, their degree, the tolerance in time."""

    grids: tuple[FloatArray, ...]
    degree: int
    rtol_time: float

    @property
    def dofs(self) -> int:
        return math.prod((len(grid) - 1) * self.degree + 1 for grid in self.grids)

    @property
    def box(self) -> Box:
        return Box([grid[0] for grid in self.grids], [grid[-1] for grid in self.grids], boundary="natural")

    def basis(self) -> SpectralBasis:
        return SpectralBasis([SpectralLine(grid, self.degree) for grid in self.grids])


def first_grids(
    problem: ControlProblem, background: Gauge | QuadraticGauge, box: Box, found: Reach, degree: int
) -> tuple[FloatArray, ...]:
    """Cells halved along each axis until terminal reward and drift are roughly resolved where the process goes."""
    middle, spread = found.median.mean(axis=0), found.scale.max(axis=(0, 1))
    T = problem.horizon
    grids = []
    for axis, (low, high) in enumerate(zip(*box.bounds, strict=True)):
        grid = np.linspace(low, high, 3)
        for _ in range(_FIRST_ROUNDS[problem.dim]):
            line = SpectralLine(grid, degree)
            points = np.repeat((middle + np.array([[0.0], [-1.0], [1.0]]) * spread)[:, None], line.n, axis=1)
            points[..., axis] = line.nodes
            points = np.clip(points, *box.bounds)
            flat = points.reshape(-1, problem.dim)
            y = problem.y(flat)
            functions = [(y - background.guess(T, flat), y)]
            functions += [(part, part) for t in (0.0, 0.5 * T, T) for part in problem.b(t, flat).T]
            weight = np.maximum.reduceat(
                np.sqrt(found.density(axis, line.nodes))[line.cell_dofs].ravel(),
                np.arange(0, line.cell_dofs.size, degree + 1),
            )
            marked = np.zeros(line.n_cells, dtype=np.bool_)
            for values, whole in functions:
                rows = values.reshape(len(points), line.n).T
                size = max(
                    float(np.abs(line.derivative @ rows * np.sqrt(found.density(axis, line.nodes))[:, None]).max()),
                    1e-300,
                )
                tails = line.modal_tail(line.derivative @ rows).max(axis=1)
                marked |= (tails * weight > _FIRST_TAIL * size) & (tails > 1e-9 * np.abs(whole).max())
            if not marked.any():
                break
            grid = _bisected(grid, marked)
        grids.append(grid)
    return tuple(grids)


def _bisected(grid: FloatArray, marked: BoolArray) -> FloatArray:
    return np.sort(np.concatenate([grid, 0.5 * (grid[:-1] + grid[1:])[marked]]))


def halved(plan: Plan, marked: list[BoolArray]) -> Plan:
    return replace(plan, grids=tuple(_bisected(g, m) for g, m in zip(plan.grids, marked, strict=True)))


def unresolved(solution: Solution, found: Reach, threshold: float) -> list[BoolArray]:
    """The cells of each axis in which the gradient of the unknown is not resolved, where the process goes.

    In every cell of an axis: the two highest Legendre coefficients along it of each derivative of the unknown, squared
    and integrated over the other axes under a product of the densities of the axes, at their largest over some times.
    """
    basis = spectral(solution)
    grid = np.asarray(solution.coefficients)
    lines, times = basis.lines, len(grid)
    rows = np.unique(
        np.concatenate([np.linspace(0, times - 1, 9), times - 1 - np.arange(min(times, 4))]).astype(np.int64)
    )
    density = [found.density(k, line.nodes) for k, line in enumerate(lines)]
    mass = [part * line.weights / (part @ line.weights) for part, line in zip(density, lines, strict=True)]
    squares = [np.zeros(line.n_cells) for line in lines]
    for row in rows:
        w = solution.problem.temperature * np.log(np.maximum(grid[row].reshape(basis.shape), 1e-300))
        for k, line in enumerate(lines):
            slope = apply_axis(line.derivative, w, k)
            for m, other in enumerate(lines):
                tails = np.moveaxis(other.modal_tail(slope, axis=m) ** 2, m, 0)
                for j in range(len(lines) - 1, -1, -1):
                    if j != m:
                        tails = tails @ mass[j]
                held = (density[m][other.cell_dofs].max(axis=1) * other.widths) / (density[m] @ other.weights)
                squares[m] = np.maximum(squares[m], tails * held)
    total = sum(float(values.sum()) for values in squares)
    if total <= threshold**2:
        return [np.zeros(values.size, dtype=np.bool_) for values in squares]
    cells = sum(values.size for values in squares)
    return [values > _AHEAD * threshold**2 / cells for values in squares]  # some that will need it soon: fewer rounds


def spectral(solution: Solution) -> SpectralBasis:
    """The basis in space of a solution on a box."""
    basis = solution.space.spatial
    if not isinstance(basis, SpectralBasis):
        raise ConvergenceError(f"expected a solution on spectral elements, got one on {basis.element!r}")
    return basis


def perturbed(plan: Plan, moving: BoolArray) -> dict[str, Plan]:
    """The plans that differ in one thing."""
    plans = {
        "time": replace(plan, rtol_time=plan.rtol_time / _SLOWER),
        "space": replace(plan, degree=plan.degree + RICHER),
    }
    if moving.any():
        grids = []
        for k, grid in enumerate(plan.grids):
            wider = grid
            for side in range(2):
                if moving[side, k]:
                    wider = _moved_out(wider, side, _WIDER * (grid[-1] - grid[0]))
            grids.append(wider)
        plans["truncation"] = replace(plan, grids=tuple(grids))
    return plans


def _moved_out(grid: FloatArray, side: int, by: float) -> FloatArray:
    """With one end moved outwards: by stretching the last cell if it is large, else by one more cell."""
    end = grid[0] - by if side == 0 else grid[-1] + by
    last = grid[1] - grid[0] if side == 0 else grid[-1] - grid[-2]
    kept = grid if last < 2 * by else (grid[1:] if side == 0 else grid[:-1])
    return np.concatenate([[end], kept] if side == 0 else [kept, [end]])
