"""What a run over panels of time leaves, and as functions of space and time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from fem_hjb.reference.box_coefficients import Coefficients
from fem_hjb.reference.box_faces import begun, between
from fem_hjb.reference.box_grading import transfer, unresolved
from fem_hjb.reference.box_panel import Equation, Grid, Operators
from fem_hjb.solutions.checks import Check
from fem_hjb.spaces.axes import copy_to
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.space import Space
from fem_hjb.stepping.adaptive import Panel, Step, hermite
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

Size = Callable[[Operators, FloatArray], float]

_RUN_AWAY = 1e100  # of u, or of temperatures: no solution is as large
THICKEST = 0.05  # of the horizon, that a layer may be
_HELD = 2**22  # values of u in a panel, above which fewer are kept
MOST_HELD = 2**27  # values of u in a run, and as many of u': 2 GiB
_FREED = 0.8  # of them that are left where keeping fewer is worth it
_JUST = 1e-12  # of the horizon
_KEPT = 32  # panels whose exponentials or factors are kept


@final
@dataclass(frozen=True, eq=False)
class PanelRun:
    """One panel of a run: what was solved there, the times to go at the ends of its steps (k,), and u and u' there.

    states : 2 k of (*shape), u and u' by turns, which nobody is to write to.
    plan : the lengths of the steps, of which some may have been joined in `ends`.
    """

    operators: Operators
    stepped: Panel | None  # kept for its exponentials or factors
    ends: FloatArray
    states: Sequence[FloatArray]
    plan: FloatArray

    @property
    def grid(self) -> Grid:
        return self.operators.grid

    @property
    def edges(self) -> list[FloatArray]:
        """Of the cells of each axis."""
        return [line.grid for line in self.grid.lines]

    @property
    def last(self) -> FloatArray:
        """u at the end."""
        return self.states[-2]

    @property
    def finite(self) -> bool:
        """Whether it is a number at all nodes, and has not run away."""
        return bool((np.abs(self.last) < min(_RUN_AWAY, float(np.finfo(self.last.dtype).max))).all())

    @property
    def tails(self) -> float:
        """What is not resolved of the gradient under the law itself, at the ends."""
        axes = tails_of(self.operators, (self.states[0], self.last), floored=False)
        return float(np.sqrt(sum((part**2).sum() for part in axes)))

    def at(self, s: float) -> FloatArray:
        """u at a time to go."""
        k = int(np.clip(np.searchsorted(self.ends, s) - 1, 0, len(self.ends) - 2))
        h = self.ends[k + 1] - self.ends[k]
        u0, slope0, u1, slope1 = self.states[2 * k : 2 * k + 4]
        return hermite((s - self.ends[k]) / h, h, u0, slope0, u1, slope1)


def panel_run(
    operators: Operators, stepped: Panel, steps: Iterable[Step], s1: float, plan: FloatArray | None = None
) -> PanelRun:
    """Steps that end at s1; one at a time need exist. plan : lengths of those that some of them replace."""
    ends, states = list[float](), list[FloatArray]()
    for step in steps:
        if not ends:
            ends.append(step.s)
            states += step.u0, step.slope0
        ends.append(step.s + step.h)
        states += step.u1, step.slope1
    ends[-1] = s1
    stepped.forget()
    operators.table.rest()
    return PanelRun(operators, stepped, np.array(ends), states, np.diff(ends) if plan is None else plan)


def run_of(operators: Operators, stepped: Panel, steps: list[Step], s1: float, allowed: float) -> PanelRun:
    """The same of a list, which is used up; of large arrays fewer are kept, if cubics miss no more than is allowed."""
    plan = np.array([step.h for step in steps])
    if len(steps) * operators.grid.size > _HELD:
        steps[:] = fewer(steps, stepped.size, allowed)
    steps.reverse()
    return panel_run(operators, stepped, (steps.pop() for _ in range(len(steps))), s1, plan)


def fewer(steps: Sequence[Step], size: Callable[[FloatArray], float], allowed: float) -> list[Step]:
    """Two steps as one, wherever the cubic through the ends of both misses what is between them by what is allowed."""
    result: list[Step] = []
    for step in steps:
        before = result[-1] if result else None
        if before is not None and before.h <= step.h * (1 + 1e-9):
            h = before.h + step.h
            middle = hermite(before.h / h, h, before.u0, before.slope0, step.u1, step.slope1)
            if size(middle - before.u1) <= allowed:
                result[-1] = Step(before.s, h, before.u0, before.slope0, step.u1, step.slope1)
                continue
        result.append(step)
    return result


def thinned(panel: PanelRun, size: Size, allowed: float) -> PanelRun:
    """A panel at fewer times, by `fewer`; the plan is the same."""
    ends, states = panel.ends, panel.states
    steps = [Step(s, h, *states[2 * k : 2 * k + 4]) for k, (s, h) in enumerate(zip(ends, np.diff(ends), strict=False))]
    kept = fewer(steps, lambda gap: size(panel.operators, gap), allowed)
    shown = [*states[:2], *(part for step in kept for part in (step.u1, step.slope1))]
    return replace(panel, ends=np.array([step.s for step in kept] + [ends[-1]]), states=shown)


def told_apart(panel: PanelRun, T: float) -> PanelRun | None:
    """A panel without ends of steps that t = T - s does not tell from others, as next to T; None if it tells none."""
    t = T - panel.ends
    kept = np.append(True, np.diff(t) < 0) & (t > t[-1])
    if not kept.any():
        return None
    kept[-1] = True
    if kept.all():
        return panel
    states = [part for k in np.flatnonzero(kept).tolist() for part in panel.states[2 * k : 2 * k + 2]]
    return replace(panel, ends=panel.ends[kept], states=states)


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """How u got from averages at T to where it is resolved: in the linear form, on the coefficients of that."""

    run: "Run"
    coefficients: Coefficients

    @property
    def end(self) -> float:
        """The time to go at which it ends."""
        return float(self.run.panels[-1].ends[-1])

    @property
    def last(self) -> FloatArray:
        """u there."""
        return self.run.panels[-1].last

    def shown(self, equation: Equation, at_end: FloatArray) -> PanelRun:
        """What is handed out in the layer: from values at T (*shape) on, in straight lines where they are no better."""
        panels = self.run.panels
        ends = np.concatenate([[0.0], *(panel.ends[1:] for panel in panels)])
        u = np.stack([u for panel in panels for u in panel.states[2::2]])
        w = np.concatenate([at_end[None], restored(equation, u, at_end)])
        shown = np.repeat(w, 2, axis=0)
        shown[1::2] = np.gradient(w, ends, axis=0)
        return PanelRun(panels[-1].operators, None, ends, list(shown), np.diff(ends))


@final
@dataclass(eq=False)
class Run:
    """What a run leaves: its panels in increasing time to go, and what it cost."""

    equation: Equation
    panels: list[PanelRun] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    misfit: float = 0.0  # of coefficients between the times of their tables, relative
    layer: float = 0.0  # the time to go up to which the gradient is not resolved
    smoothed: Layer | None = None  # what the panel after the layer begins with, if not with the end of the one before
    averaged: bool = False  # whether there is, or was, such a layer

    def keep(self, panel: PanelRun, size: Size | None = None, allowed: float = 0.0) -> None:
        """Add a panel; where a run becomes too large, cubics over two steps are taken wherever they miss no more.

        size : of what they miss in a panel, relative. Raises ConvergenceError if even so it is too large.
        """
        self.panels.append(panel if len(self.panels) < _KEPT else replace(panel, stepped=None))
        while size is not None and (held := self.held) > MOST_HELD:
            self.panels = [thinned(panel, size, allowed) for panel in self.panels]
            if self.held > _FREED * held:
                raise ConvergenceError(
                    f"a run of {len(self.panels)} panels and {sum(len(panel.ends) for panel in self.panels)} times has"
                    f" {held:.3g} values at t={self.equation.problem.horizon - panel.ends[-1]:.6g} already, and at most"
                    f" {MOST_HELD:.3g} are kept; raise rtol, or give a smaller box or max_dofs"
                )

    @property
    def held(self) -> int:
        """Values of u that are kept."""
        return sum(len(panel.ends) * panel.grid.size for panel in self.panels)

    @property
    def nonpositive(self) -> int:
        """The number of nodes, at ends of steps, where u <= 0; what is prescribed may vanish."""
        absorbing = self.equation.absorbing
        return sum(
            int((u[between(panel.grid, absorbing)] <= 0).sum()) for panel in self.panels for u in panel.states[::2]
        )

    @property
    def dofs(self) -> int:
        """The most unknowns in space."""
        return max(panel.grid.size for panel in self.panels)

    def forget(self) -> None:
        """Let go of coefficients and exponentials: this plan is not followed again."""
        for panel in self.panels:
            panel.operators.table.forget()
        self.panels = [replace(panel, stepped=None) for panel in self.panels]
        self.smoothed = None

    def space(self) -> tuple[PanelSpace, FloatArray]:
        """As functions of t: the space, and coefficients (n_dofs,). Panels are used up, as they may be large."""
        T = self.equation.problem.horizon
        self.panels = [seen for panel in self.panels if (seen := told_apart(panel, T)) is not None]
        result = np.empty(sum(2 * len(panel.ends) * panel.grid.size for panel in self.panels))
        spaces: list[Space] = []
        place = 0
        while self.panels:
            panel = self.panels.pop()
            times = T - panel.ends[::-1]
            times[0] = spaces[-1].time.bounds[1] if spaces else 0.0
            times[-1] = times[-1] if self.panels else T
            if self.panels and panel.ends[0] == self.layer > 0.0:  # the last time with an error bar belongs here
                after = T - self.panels[-1].ends[-2]
                just = times[-1] + min(_JUST * T, (after - times[-1]) / 2)
                times[-1] = just if just < after else times[-1]
            line = LineBasis(times, "hermite")
            rows = result[place : place + line.n_dofs * panel.grid.size].reshape(line.n_dofs, -1)
            place += rows.size
            states = zip(panel.states[-2::-2], panel.states[::-2], line.node_widths.tolist(), strict=True)
            for row, slope_row, (u, slope, width) in zip(rows[::2], rows[1::2], states, strict=True):
                copy_to(row, u.reshape(-1))
                np.multiply(slope.reshape(-1), -width, out=slope_row)
            spaces.append(Space.from_(line, panel.grid.basis))
        result.setflags(write=False)
        return PanelSpace(tuple(spaces)), result


def restored(equation: Equation, u: FloatArray, at_end: FloatArray) -> FloatArray:
    """w from u (.., *shape) of a layer, or u itself in the linear form; as at T (*shape) where there is no logarithm.

    Where u is small beside what it is nearby, the oscillations that averages leave may exceed it.
    """
    if equation.payoff is not None:
        return u
    positive = u > 0
    w = u if equation.linear else equation.problem.temperature * np.log(np.where(positive, u, 1.0))
    return np.where(positive, w, at_end)


def settled(equation: Equation, grid: Grid, layer: Grid, u: FloatArray) -> FloatArray:
    """w on a grid (*shape), from u on that of a layer: a steep u is smooth on cells in which its logarithm is not."""
    on = transfer(u, layer, grid)
    return restored(equation, on, on if (on > 0).all() else begun(equation, grid, 0.0, None))


def layer_of(run: Run) -> tuple[Check, ...]:
    """From when on nothing is known of the error, if T is not resolved."""
    T = run.equation.problem.horizon
    if not run.layer:
        return ()
    why = "rewards at T jump or have kinks" if run.averaged else "kinks at T, or steep coefficients, are not resolved"
    told = f"of the horizon; {why}: the error is that up to t = {T - run.layer:.6g}"
    return (Check(name="layer at the end", figure=run.layer / T, limit=THICKEST, told=told),)


def finest(run: Run) -> float:
    """Half a sixteenth of a box over the finest spacing of nodes."""
    return max(
        float(np.ptp(line.grid) / 16.0 / np.diff(line.nodes).min()) for panel in run.panels for line in panel.grid.lines
    )


def tails_of(operators: Operators, states: Sequence[FloatArray], *, floored: bool = True) -> list[FloatArray]:
    """`unresolved` of each cell of each axis, the most of some states; with the floor of the grid's weights, or not."""
    grid = operators.grid if floored else replace(operators.grid, floor=0.0)
    found = [unresolved(grid, operators.gradient(u), operators.metric) for u in states]
    return [np.max(parts, axis=0) for parts in zip(*found, strict=True)]
