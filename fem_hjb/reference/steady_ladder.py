"""Grids of spectral elements for problems without time: refined where a solution asks for it, each solved on three times.

Every grid is solved on with elements of degree p, p + 1 and p + 2. The larger distance of the first two from the third,
which is handed out, is the error bar: it is measured, and is that of solutions that the third is better than. One of
them alone may agree with it by chance, where an error changes its sign. Cells are cut in two where the highest Legendre
coefficients of the solution, or of its slope, are large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from fem_hjb.problems.box import Box
from fem_hjb.solutions.steady import SteadyFunction
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import OutOfTimeError, Progress

Rule = tuple[FloatArray, FloatArray]
Attempt = Callable[[SpectralBasis, Any], tuple[SteadyFunction, Any]]
"""A basis and what was kept of the grid before -> a function, and what is kept: `settled` says whether it solves."""

Distance = Callable[[Rule, SteadyFunction, SteadyFunction], tuple[float, float]]

DEGREE = {1: 10, 2: 8, 3: 5}
CELLS = {1: 6, 2: 3, 3: 2}
MAX_DOFS = {1: 6000, 2: 40_000, 3: 30_000}
_ROUNDS = 40
_HELPED, _PATIENCE = 0.7, 4  # a refinement that helps makes errors so much smaller; how many need not
_MARKED = 0.1  # of the largest coefficient, from which on a cell is cut
_POINTS = 20_000  # at which two solutions are compared


@final
@dataclass(frozen=True, eq=False)
class Rung:
    """The best solution, how far those of lower degrees are from it, on which grid, and why there is no better."""

    function: SteadyFunction
    kept: Any
    errors: tuple[float, float]
    grids: list[FloatArray]
    degree: int
    solves: int
    stopped: str


def climb(
    box: Box, reach: Box, attempt: Attempt, distance: Distance, rtol: float, max_dofs: int, tell: Progress
) -> Rung:
    """The first grid on which both errors are at most rtol, or the best that max_dofs allow, or time.

    box : where errors count.  reach : what the grids fill, the box or a longer one.

    Raises OutOfTimeError if time is over before there is any, ConvergenceError if no grid has a solution.
    """
    d = box.dim
    p = DEGREE[d]
    lower, upper = reach.bounds
    grids = [np.linspace(a, b, CELLS[d] + 1) for a, b in zip(lower, upper, strict=True)]
    best: Rung | None = None
    kept: Any = None
    solves, stopped, waiting, least = 0, "", 0, np.inf
    failure: ConvergenceError | None = None
    try:
        for _ in range(_ROUNDS):
            bases = [SpectralBasis([SpectralLine(grid, degree) for grid in grids]) for degree in (p, p + 1, p + 2)]
            if bases[-1].n_dofs > max_dofs:
                stopped = f"more than max_dofs={max_dofs} unknowns would be needed"
                break
            try:
                functions = []
                for basis in bases:
                    function, kept = attempt(basis, kept)
                    functions.append(function)
            except ConvergenceError as cause:
                failure, kept = cause, None
                grids = [_halved(grid, np.ones(len(grid) - 1, dtype=np.bool_)) for grid in grids]
                continue
            solves += len(bases)
            fine, errors = functions[-1], (np.inf, np.inf)
            if kept.settled:
                apart = [distance(rule_of(bases[-1], box), function, fine) for function in functions[:-1]]
                errors = max(value for value, _ in apart), max(policy for _, policy in apart)
            if best is None or max(errors) < max(best.errors):
                best = Rung(fine, kept, errors, grids, p + 2, solves, "")
            if max(errors) <= rtol:
                break
            waiting = 0 if max(errors) < _HELPED * least else waiting + 1
            least = min(least, max(errors))
            if waiting >= _PATIENCE:
                stopped = "finer grids no longer help, which says that rounding is the limit, or a jump"
                break
            tell(min(0.9, rtol / max(max(errors), 1e-300)) ** 0.25)
            grids = _marked(fine, bases[-1], box, errors)
        else:
            stopped = f"{_ROUNDS} refinements were not enough"
    except OutOfTimeError:
        if best is None:
            raise
        stopped = "max_seconds were over"
    if best is None:
        raise failure or ConvergenceError("no grid that max_dofs allows; allow more unknowns")
    return Rung(best.function, best.kept, best.errors, best.grids, best.degree, solves, stopped)


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


def _marked(function: SteadyFunction, basis: SpectralBasis, box: Box, errors: tuple[float, float]) -> list[FloatArray]:
    """The grids with those cells cut whose coefficients are largest, of the value or of its slope."""
    values = function.coefficients.reshape(basis.shape)
    tails = []
    for axis, line in enumerate(basis.lines):
        tail = np.moveaxis(line.modal_tail(values, axis), axis, 0).reshape(line.n_cells, -1).max(axis=1)
        tail[(line.grid[1:] <= box.bounds[0][axis]) | (line.grid[:-1] >= box.bounds[1][axis])] = 0.0
        tails.append(tail if errors[0] >= errors[1] and np.isfinite(errors[0]) else tail / line.widths)
    most = max(float(tail.max()) for tail in tails)
    return [
        _halved(np.asarray(line.grid), (tail >= _MARKED * most) & (tail > 0.0))
        for line, tail in zip(basis.lines, tails, strict=True)
    ]


def _halved(grid: FloatArray, marks: Any) -> FloatArray:
    """The grid with the marked cells cut in two."""
    middles = 0.5 * (grid[:-1] + grid[1:])
    return np.sort(np.concatenate([grid, middles[marks]]))
