"""Plans followed in single precision: half the memory and half the time, where what that rounds is nothing to a judge.

That is measured: what rounding changes of value and policy where a panel begins and where it ends, which steps make a
few times as much of. Exponentials are made in double precision.
"""

import math
from copy import copy

import numpy as np

from fem_hjb.reference.box_panel import Operators
from fem_hjb.reference.box_run import PanelRun, Run
from fem_hjb.spaces.axes import in_blocks
from fem_hjb.stepping.adaptive import Panel
from fem_hjb.stepping.lawson import LawsonPanel
from fem_hjb.support.checks import FloatArray

ROUNDED = 0.03  # of what makes no trouble: the most that rounding once may change
KIND = np.float32


def rounding(run: Run, sizes: FloatArray) -> float:
    """What rounding changes of value and policy, relative to norms (2,); inf where plans are followed as they are.

    Small arrays are not worth it, u of the linear form spans more orders than there are digits, and what is tamed, has
    rough sources or prescribed values is not known in single precision.
    """
    equation = run.equation
    if equation.problem.dim < 3 or equation.linear or equation.levels is not None or equation.absorbing.any():
        return math.inf
    if not all(panel.operators.table.single and panel.operators.table.sources is None for panel in run.panels):
        return math.inf
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        found = float(np.max([_rounded(panel) / sizes for panel in run.panels]))
    return math.inf if math.isnan(found) else found


def _rounded(panel: PanelRun) -> FloatArray:
    """(2,): the norms, the larger of those at its ends."""
    of = panel.operators
    sizes = [of.sizes(of.table.s0, u.astype(KIND) - u) for u in (panel.states[0], panel.last)]
    return np.asarray(np.max(sizes, axis=0))


def in_single(operators: Operators, panel: Panel, u: FloatArray) -> tuple[Operators, Panel, FloatArray]:
    """A panel that begins with u, in single precision; those of a run stay as they are."""
    if not isinstance(panel, LawsonPanel):
        return operators, panel, u
    other, lines = copy(operators), operators.grid.lines
    other.table = operators.table.in_single()
    other.D = [in_blocks(line.derivative.astype(KIND), len(lines)) for line in lines]
    second = [inner[:, None] * line.laplacian for inner, line in zip(operators.inner, lines, strict=True)]
    other.second = [in_blocks(matrix.astype(KIND), len(lines)) for matrix in second]
    return other, panel.in_single(other.remainder), u.astype(KIND)
