"""Grids of spectral elements for problems without time: refined where a solution asks for it, solved on three times.

Every grid is solved on with elements of degree p, p + 1 and p + 2. The larger distance of the first two from the third,
which is handed out, is the error bar: it is measured, and is that of solutions that the third is better than. One of
them alone may agree with it by chance, where an error changes its sign. Cells are cut in two where the highest Legendre
coefficients of the solution, or of its slope, are large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
from threadpoolctl import threadpool_limits

from fem_hjb.problems.box import Box
from fem_hjb.reference.exit_equation import InfiniteOnGridError, verdict
from fem_hjb.solutions.estimate import ErrorEstimate, combine
from fem_hjb.solutions.steady import SteadyFunction
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import OutOfTimeError, Progress, Watch

Rule = tuple[FloatArray, FloatArray]


class Kept(Protocol):
    """What a grid leaves to the next one: a function, and whether it solves the equation, or is only on the way."""

    @property
    def function(self) -> SteadyFunction:
        """The unknown."""

    @property
    def shapes(self) -> tuple[SteadyFunction, ...]:
        """What grids are refined for."""

    @property
    def settled(self) -> bool:
        """Whether it solves the equation."""


Attempt = Callable[[SpectralBasis, Any], Kept]
"""A basis, and what was kept of the grid before -> what is found on it."""

Distance = Callable[[Rule, Any, Any], tuple[float, float]]
"""Points and weights, what two grids have found -> how far value and policy of the first are from the second."""

DEGREE = {1: 10, 2: 8, 3: 5}
CELLS = {1: 6, 2: 3, 3: 2}
MAX_DOFS = {1: 6000, 2: 40_000, 3: 30_000}
_ROUNDS = 40
_SURE = 3  # grids that say that a value is infinite
_HELPED, _PATIENCE = 0.7, 4  # a refinement that helps makes errors so much smaller; how many need not
_MARKED = 0.1  # of the largest coefficient, from which on a cell is cut
_LONGER = (0.1, 0.3, 1.0)  # of the width, by which grids are longer beyond natural faces; the first that is enough
_POINTS = 20_000  # at which two solutions are compared


@final
@dataclass(frozen=True, eq=False)
class Rung:
    """What the best grid has found, how far lower degrees are from it, which grid it is, and why there is no better."""

    kept: Any
    errors: tuple[float, float]
    grids: list[FloatArray]
    degree: int
    solves: int
    stopped: str

    @property
    def figures(self) -> dict[str, Any]:
        """For the stats of a solution."""
        basis = self.kept.function.basis
        return {"dofs": basis.n_dofs, "shape": basis.shape, "degree": self.degree, "solves": self.solves}


@final
@dataclass(frozen=True, eq=False)
class Climbed:
    """The best grid's, what the ends of grids beyond natural faces do to value and policy, and what was not reached."""

    rung: Rung
    cut: tuple[float, float]
    unmet: list[str]

    @property
    def estimate(self) -> ErrorEstimate:
        """Of both."""
        (value, policy), (end, bend) = self.rung.errors, self.cut
        return combine({"space": value, "truncation": end}, {"space": policy, "truncation": bend})


def climb_beyond(box: Box, attempt: Attempt, distance: Distance, rtol: float, max_dofs: int, watch: Watch) -> Climbed:
    """`climb` on grids that go on beyond the natural faces of the box, far enough for their ends not to matter.

    Raises as `climb`.
    """
    natural, why, cut = box.where("natural"), [], (0.0, 0.0)
    with threadpool_limits(1, user_api="blas"):
        rung = climb(box, _longer(box, natural, _LONGER[0]), attempt, distance, rtol, max_dofs, watch)
        if natural.any():
            try:
                cut = _truncation(rung, box, natural, _LONGER[0], attempt, distance)
                for more in _LONGER[1:]:
                    if max(cut) <= 0.5 * rtol or max(rung.errors) > rtol:
                        break
                    further = climb(box, _longer(box, natural, more), attempt, distance, rtol, max_dofs, watch)
                    ends = _truncation(further, box, natural, more, attempt, distance)
                    if max(_added(ends, further.errors)) < max(_added(cut, rung.errors)):
                        rung, cut = further, ends
            except OutOfTimeError:
                why = ["max_seconds were over before natural faces were moved as far as it takes"]
                cut = cut if max(cut) > 0.0 else (np.inf, np.inf)
    if rung.stopped and max(rung.errors) > rtol:
        why = [rung.stopped, *why]
    return Climbed(rung, cut, why)


def _added(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return first[0] + second[0], first[1] + second[1]


def climb(
    box: Box, reach: Box, attempt: Attempt, distance: Distance, rtol: float, max_dofs: int, tell: Progress
) -> Rung:
    """The first grid on which both errors are at most rtol, or the best that max_dofs allow, or time.

    box : where errors count.  reach : what the grids fill, the box or a longer one.

    Raises OutOfTimeError if time is over before there is any, ConvergenceError if no grid has a solution, and
    InfiniteValueError if three say that it is infinite, and agree.
    """
    d = box.dim
    p = DEGREE[d]
    lower, upper = reach.bounds
    grids = [np.linspace(a, b, CELLS[d] + 1) for a, b in zip(lower, upper, strict=True)]
    best: Rung | None = None
    kept: Any = None
    solves, stopped, waiting, least = 0, "", 0, np.inf
    infinite: list[float] = []  # eigenvalues of grids on which the value is: if too coarse, these have the wrong sign
    failure: Exception | None = None
    try:
        for _ in range(_ROUNDS):
            bases = [SpectralBasis([SpectralLine(grid, degree) for grid in grids]) for degree in (p, p + 1, p + 2)]
            if bases[-1].n_dofs > max_dofs:
                stopped = f"more than max_dofs={max_dofs} unknowns would be needed"
                break
            try:
                found = []
                for basis in bases:
                    kept = attempt(basis, kept)
                    found.append(kept)
            except (ConvergenceError, InfiniteOnGridError) as cause:
                failure, kept = cause, None
                infinite += [cause.eigenvalue] if isinstance(cause, InfiniteOnGridError) else []
                if isinstance(cause, InfiniteOnGridError) and len(infinite) == _SURE:
                    raise verdict(cause, infinite) from None
                grids = [_halved(grid, np.ones(len(grid) - 1, dtype=np.bool_)) for grid in grids]
                continue
            solves += len(bases)
            errors = _errors(found, rule_of(bases[-1], box), distance)
            if best is None or max(errors) < max(best.errors) or not np.isfinite(max(best.errors)):
                best = Rung(kept, errors, grids, p + 2, solves, "")
            if max(errors) <= rtol:
                break
            waiting = 0 if max(errors) < _HELPED * least or not kept.settled else waiting + 1
            least = min(least, max(errors))
            if waiting >= _PATIENCE:
                stopped = "finer grids no longer help, which says that rounding is the limit, or a jump"
                break
            tell(min(0.9, rtol / max(max(errors), 1e-300)) ** 0.25)
            grids = _marked(kept.shapes, bases[-1], box, errors)
        else:
            stopped = f"{_ROUNDS} refinements were not enough"
    except OutOfTimeError:
        if best is None:
            raise
        stopped = "max_seconds were over"
    if best is None:
        raise failure or ConvergenceError("no grid that max_dofs allows; allow more unknowns")
    return Rung(best.kept, best.errors, best.grids, best.degree, solves, stopped)


def _errors(found: list[Kept], rule: Rule, distance: Distance) -> tuple[float, float]:
    """How far what lower degrees have found is from the last; infinite where that is no solution yet."""
    if not found[-1].settled:
        return np.inf, np.inf
    apart = [distance(rule, each, found[-1]) for each in found[:-1]]
    return max(value for value, _ in apart), max(policy for _, policy in apart)


def _longer(box: Box, natural: Any, share: float) -> Box:
    """The box, longer by a share of its width beyond each natural face."""
    lower, upper = box.bounds
    more = share * (upper - lower)
    return Box(lower - more * natural[0], upper + more * natural[1])


def _truncation(
    rung: Rung, box: Box, natural: Any, share: float, attempt: Attempt, distance: Distance
) -> tuple[float, float]:
    """How far the solution is from that on grids that go on as far again beyond each natural face."""
    grids = []
    for axis, grid in enumerate(rung.grids):
        more = share * (box.bounds[1][axis] - box.bounds[0][axis])
        cells = max(1, int(np.ceil(more / float(np.diff(grid).max()))))
        beyond = more * np.arange(1, cells + 1) / cells
        low = grid[0] - beyond[::-1] if natural[0, axis] else np.empty(0)
        high = grid[-1] + beyond if natural[1, axis] else np.empty(0)
        grids.append(np.concatenate([low, grid, high]))
    longer = SpectralBasis([SpectralLine(grid, rung.degree) for grid in grids])
    return distance(rule_of(rung.kept.function.basis, box), rung.kept, attempt(longer, rung.kept))


def nearest_values(function: SteadyFunction, x: FloatArray) -> FloatArray:
    """Values at points (n, d), those beyond the grid moved to it: something to begin with on a longer one."""
    bounds = function.basis.box.bounds
    return function.value(np.clip(x, *bounds))


def rule_of(basis: Any, box: Box) -> Rule:
    """Points (n, d) and weights (n,) of the basis in a box; a part of them, the same each time, where they are many."""
    rule = basis.quadrature(2 * basis.degree)
    x, weights = rule.x.reshape(-1, basis.dim), np.broadcast_to(rule.weights * rule.det, rule.x.shape[:2]).ravel()
    counted = box.contains(x)
    x, weights = x[counted], weights[counted]
    if len(x) > _POINTS:
        chosen = np.random.default_rng(0).choice(len(x), _POINTS, replace=False)
        return x[chosen], weights[chosen]
    return x, weights


def _marked(
    shapes: tuple[SteadyFunction, ...], basis: SpectralBasis, box: Box, errors: tuple[float, float]
) -> list[FloatArray]:
    """The grids with those cells cut whose coefficients are largest, of one of the functions or of its slope."""
    steep = not (errors[0] >= errors[1] and np.isfinite(errors[0]))
    marks = [np.zeros(line.n_cells, dtype=np.bool_) for line in basis.lines]
    for function in shapes:
        values = function.coefficients.reshape(basis.shape)
        tails = []
        for axis, line in enumerate(basis.lines):
            tail = np.moveaxis(line.modal_tail(values, axis), axis, 0).reshape(line.n_cells, -1).max(axis=1)
            tail[(line.grid[1:] <= box.bounds[0][axis]) | (line.grid[:-1] >= box.bounds[1][axis])] = 0.0
            tails.append(tail / line.widths if steep else tail)
        most = max(float(tail.max()) for tail in tails)
        for mark, tail in zip(marks, tails, strict=True):
            mark |= (tail >= _MARKED * most) & (tail > 0.0)
    return [_halved(np.asarray(line.grid), mark) for line, mark in zip(basis.lines, marks, strict=True)]


def _halved(grid: FloatArray, marks: Any) -> FloatArray:
    """The grid with the marked cells cut in two."""
    middles = 0.5 * (grid[:-1] + grid[1:])
    return np.sort(np.concatenate([grid, middles[marks]]))
