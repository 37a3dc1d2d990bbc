r"""One run over all panels of time, each on a grid of its own that is made until it resolves the gradient.

A run leaves a plan: the panels, their cells, their steps. A plan can be followed again with one thing changed - another
degree, steps twice as long, a wider box - so that the difference is the error of that one thing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from fem_hjb.reference.box_coefficients import Coefficients, Table, inside, lobatto, times_needed
from fem_hjb.reference.box_grading import first_edges, make_grid, regraded, transfer, unresolved
from fem_hjb.reference.box_panel import Equation, Grid, Operators
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.space import Space
from fem_hjb.stepping.panel_lawson import LawsonPanel, Step, hermite, march
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

_EDGES = np.array([0.0, 0.01, 0.03, 0.07, 0.13, 0.22, 0.35, 0.55, 0.77, 1.0])  # of the time to go
_STEPS = 48  # of the first length on a panel, at most: grids are looked at again then
_ROUNDS = 14  # in which the grid of a terminal reward is sought
_REDONE = 6  # times that a panel is done again on a finer grid
_CHECKED = 128  # points at which a table is checked
_TOLERATED = 1.5  # times what is allowed, before a panel is done again
_SHORTEST = 1e-11  # of the horizon


@final
@dataclass(frozen=True, eq=False)
class Tolerances:
    """time : of a step;  dense : between its ends;  space : of what is not resolved of the gradient; all relative."""

    time: float
    dense: float
    space: float
    table: float
    degree: int
    most: int  # unknowns


@final
@dataclass(frozen=True, eq=False)
class PanelRun:
    """One panel of a run: what was solved there, the times to go at the ends of its steps, and u and u' there."""

    operators: Operators
    lawson: LawsonPanel
    ends: FloatArray
    states: list[FloatArray]

    @property
    def grid(self) -> Grid:
        return self.operators.grid

    @property
    def edges(self) -> list[FloatArray]:
        """Of the cells of each axis."""
        return [line.grid for line in self.grid.lines]

    def at(self, s: float) -> FloatArray:
        """u at a time to go."""
        k = int(np.clip(np.searchsorted(self.ends, s) - 1, 0, len(self.ends) - 2))
        h = self.ends[k + 1] - self.ends[k]
        return hermite((s - self.ends[k]) / h, h, *self.states[2 * k : 2 * k + 4])


@final
@dataclass(eq=False)
class Run:
    """What a run leaves: its panels in increasing time to go, what it cost, and the norms of value and gradient."""

    equation: Equation
    panels: list[PanelRun] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    sizes: tuple[float, float] = (0.0, 0.0)
    resolved: bool = True
    complaint: str = ""

    def keep(self, operators: Operators, lawson: LawsonPanel, steps: Sequence[Step], s1: float) -> None:
        """Add a panel that ends at s1."""
        ends = np.array([steps[0].s, *(step.s + step.h for step in steps)])
        ends[-1] = s1
        states = [steps[0].u0, steps[0].slope0, *(w for step in steps for w in (step.u1, step.slope1))]
        self.panels.append(PanelRun(operators, lawson, ends, states))

    @property
    def tails(self) -> float:
        """What is not resolved of the gradient, the most of all panels."""
        found = [
            tails_of(panel.operators, (panel.states[-2 * (len(panel.ends) // 2)], panel.states[-2]))
            for panel in self.panels
        ]
        return max(float(np.sqrt(sum((part**2).sum() for part in axes))) for axes in found)

    @property
    def dofs(self) -> int:
        """The most unknowns in space."""
        return max(panel.grid.size for panel in self.panels)

    def space(self) -> tuple[PanelSpace, FloatArray]:
        """As functions of t: the space, and coefficients (n_dofs,)."""
        T = self.equation.problem.horizon
        panels: list[Space] = []
        parts = []
        for panel in self.panels[::-1]:
            times = T - panel.ends[::-1]
            times[0] = panels[-1].time.bounds[1] if panels else 0.0
            times[-1] = T if panel is self.panels[0] else times[-1]
            line = LineBasis(times, "hermite")
            rows = np.empty((line.n_dofs, panel.grid.size))
            for row, u in zip(rows[::2], panel.states[-2::-2], strict=True):
                row[:] = u.ravel()
            for row, slope, width in zip(rows[1::2], panel.states[::-2], line.node_widths, strict=True):
                np.multiply(slope.ravel(), -width, out=row)
            panels.append(Space.from_(line, panel.grid.basis()))
            parts.append(rows.reshape(-1))
        return PanelSpace(tuple(panels)), np.concatenate(parts)


def tails_of(operators: Operators, states: Sequence[FloatArray]) -> list[FloatArray]:
    """`unresolved` of each cell of each axis, the most of some states."""
    found = [unresolved(operators.grid, operators.gradient(u)) for u in states]
    return [np.max(parts, axis=0) for parts in zip(*found, strict=True)]


def solve_panels(
    equation: Equation, coefficients: Coefficients, tolerances: Tolerances, tell: Callable[[float], None]
) -> Run:
    """The adaptive run."""
    return _Marcher(equation, coefficients, tolerances, tell).run()


@final
class _Marcher:
    def __init__(
        self, equation: Equation, coefficients: Coefficients, tolerances: Tolerances, tell: Callable[[float], None]
    ) -> None:
        self.equation, self.coefficients, self.tol, self.tell = equation, coefficients, tolerances, tell
        self.T = equation.problem.horizon
        self.result = Run(equation)
        self.rng = np.random.default_rng(0)
        corners = np.concatenate([self.T * _EDGES, self.T - np.asarray(equation.jumps)])
        self.corners = np.unique(corners[(corners >= 0) & (corners <= self.T)])
        self.size_v = self.size_g = 0.0
        self.h = 0.0

    def run(self) -> Run:
        grid = self._first_grid()
        u = self.equation.start(grid.nodes).reshape(grid.shape)
        s, edges = 0.0, [line.grid for line in grid.lines]
        state = (grid, u)
        while s < self.T * (1 - 1e-12):
            s, state, edges = self._panel(s, state, edges)
            self.tell(s / self.T)
        self.result.sizes = (self.size_v, self.size_g)
        return self.result

    def _grid(self, edges: Sequence[FloatArray], s0: float, s1: float) -> Grid:
        return make_grid(edges, self.tol.degree, self.equation.reaches, 1 - s1 / self.T, 1 - s0 / self.T)

    def _first_grid(self) -> Grid:
        """Refined until it resolves the terminal reward, as far as allowed."""
        equation = self.equation
        edges = first_edges(equation.box, equation.reaches[0], ~equation.truncated)
        best = None
        for _ in range(_ROUNDS):
            grid = self._grid(edges, 0.0, self.corners[1])
            if grid.size > self.tol.most and best is not None:
                return best
            best = grid
            u = equation.start(grid.nodes).reshape(grid.shape)
            slopes = [np.moveaxis(np.tensordot(line.derivative, u, (1, k)), 0, k) for k, line in enumerate(grid.lines)]
            found = unresolved(grid, slopes)
            value, *whole = self._whole(grid, self.T, u, slopes)
            self.size_v = grid.mean(value**2) ** 0.5
            allowed = self.tol.space * max(sum(grid.mean(part * part) for part in whole) ** 0.5, 1e-300)
            if all(np.sqrt((part**2).sum()) <= allowed for part in found):
                return grid
            new = [regraded(line, part, allowed) for line, part in zip(grid.lines, found, strict=True)]
            if sum(map(len, new)) <= sum(map(len, edges)) and all(
                len(a) <= len(b) for a, b in zip(new, edges, strict=True)
            ):
                edges = [
                    _finer(part) if np.sqrt((f**2).sum()) > allowed else part
                    for part, f in zip(new, found, strict=True)
                ]
            else:
                edges = new
        return best

    def _whole(self, grid: Grid, t: float, u: FloatArray, slopes: Sequence[FloatArray]) -> list[FloatArray]:
        """v and grad v, or u and grad u in the linear form."""
        if self.equation.linear:
            return [u, *slopes]
        gauge, x = self.equation.gauge, grid.nodes
        gradient = gauge.guess_gradient(t, x)
        whole = [slope + gradient[:, k].reshape(grid.shape) for k, slope in enumerate(slopes)]
        return [u + gauge.guess(t, x).reshape(grid.shape), *whole]

    def _table(self, grid: Grid, s0: float, s1: float) -> tuple[float, Table]:
        """The table of a panel, shortened until the most times allowed are enough."""
        nodes = grid.nodes
        joint = np.ones(1)
        for mass in grid.masses:
            joint = np.multiply.outer(joint, mass)
        pick = self.rng.choice(grid.size, min(_CHECKED, grid.size), p=joint.ravel(), replace=True)
        low, high = self.equation.box.bounds
        x = np.concatenate([nodes[pick], self.rng.uniform(low, high, (_CHECKED // 4, grid.dim))])
        floors = self._floors()
        count = times_needed(self.coefficients, s0, s1, x, self.tol.table, floors)
        while count is None and s1 - s0 > _SHORTEST * self.T:
            s1 = s0 + (s1 - s0) / 2
            count = times_needed(self.coefficients, s0, s1, x, self.tol.table, floors)
        if count is None:
            raise ConvergenceError(
                f"coefficients change too fast around t={self.T - s0:.6g} to be followed: are they finite there?"
            )
        times = self.T - inside(s0, s1, lobatto(count))
        values = np.stack([self.coefficients.at(float(t), nodes) for t in times])
        return s1, Table(s0, s1, values.reshape(count, -1, *grid.shape))

    def _floors(self) -> list[float]:
        """Sizes of the fields that do not count: of drifts, what diffusion does in T; of rewards, the value over T."""
        coefficients, T = self.coefficients, self.T
        Lambda = coefficients.constant
        if Lambda is None:
            Lambda = self.equation.problem.Lambda(0.0, self.equation.problem.initial_law.expectation)
        speed = float(np.sqrt(np.diag(Lambda).min() / T))
        reward = max(self.size_v, 1e-12 * self.equation.problem.temperature) / T
        reward = reward if not coefficients.linear else 1.0 / T
        return [0.0 if name == "diffusion" else speed if name == "drift" else reward for name in coefficients.names]

    def _panel(
        self, s0: float, state: tuple[Grid, FloatArray], edges: list[FloatArray]
    ) -> tuple[float, tuple[Grid, FloatArray], list[FloatArray]]:
        """One panel from s0, done again on finer grids until it is resolved; and the cells of the next one."""
        after = self.corners[self.corners > s0 + _SHORTEST * self.T]
        end = float(after[0]) if after.size else self.T
        if self.h > 0:
            end = min(end, s0 + _STEPS * self.h) if s0 + 1.3 * _STEPS * self.h < end else end
        for attempt in range(_REDONE + 1):
            grid = self._grid(edges, s0, end)
            end, table = self._table(grid, s0, end)
            operators = Operators.of(self.equation, grid, table)
            u = self._initial(state, grid)
            panel = LawsonPanel(operators.separable, operators.remainder, lambda e, o=operators: self._relative(o, e))
            self._sizes(operators, s0, u)
            first = min(self.h, end - s0) if self.h > 0 else self._first_step(operators, u, end - s0)
            steps = list(march(panel, u, s0, end, rtol=self.tol.time, rtol_dense=self.tol.dense, first=first))
            last = steps[-1]
            self._sizes(operators, end, last.u1)
            allowed = self.tol.space * self.size_g
            worst = tails_of(operators, (steps[len(steps) // 2].u0, last.u1))
            new = [regraded(line, part, allowed) for line, part in zip(grid.lines, found, strict=True)]
            if sum(map(len, new)) <= sum(map(len, edges)) and all(
                len(a) <= len(b) for a, b in zip(new, edges, strict=True)
            ):
                edges = [
                    _finer(part) if np.sqrt((f**2).sum()) > allowed else part
                    for part, f in zip(new, found, strict=True)
                ]
            else:
                edges = new
        return best

    def _whole(self, grid: Grid, t: float, u: FloatArray, slopes: Sequence[FloatArray]) -> list[FloatArray]:
        """v and grad v, or u and grad u in the linear form."""
        if self.equation.linear:
            return [u, *slopes]
        gauge, x = self.equation.gauge, grid.nodes
        gradient = gauge.guess_gradient(t, x)
        whole = [slope + gradient[:, k].reshape(grid.shape) for k, slope in enumerate(slopes)]
        return [u + gauge.guess(t, x).reshape(grid.shape), *whole]

    def _table(self, grid: Grid, s0: float, s1: float) -> tuple[float, Table]:
        """The table of a panel, shortened until the most times allowed are enough."""
        nodes = grid.nodes
        joint = np.ones(1)
        for mass in grid.masses:
            joint = np.multiply.outer(joint, mass)
        pick = self.rng.choice(grid.size, min(_CHECKED, grid.size), p=joint.ravel(), replace=True)
        low, high = self.equation.box.bounds
        x = np.concatenate([nodes[pick], self.rng.uniform(low, high, (_CHECKED // 4, grid.dim))])
        floors = self._floors()
        count = times_needed(self.coefficients, s0, s1, x, self.tol.table, floors)
        while count is None and s1 - s0 > _SHORTEST * self.T:
            s1 = s0 + (s1 - s0) / 2
            count = times_needed(self.coefficients, s0, s1, x, self.tol.table, floors)
        if count is None:
            raise ConvergenceError(
                f"coefficients change too fast around t={self.T - s0:.6g} to be followed: are they finite there?"
            )
        times = self.T - inside(s0, s1, lobatto(count))
        values = np.stack([self.coefficients.at(float(t), nodes) for t in times])
        return s1, Table(s0, s1, values.reshape(count, -1, *grid.shape))

    def _floors(self) -> list[float]:
        """Sizes of the fields that do not count: of drifts, what diffusion does in T; of rewards, the value over T."""
        coefficients, T = self.coefficients, self.T
        Lambda = coefficients.constant
        if Lambda is None:
            Lambda = self.equation.problem.Lambda(0.0, self.equation.problem.initial_law.expectation)
        speed = float(np.sqrt(np.diag(Lambda).min() / T))
        reward = max(self.size_v, 1e-12 * self.equation.problem.temperature) / T
        reward = reward if not coefficients.linear else 1.0 / T
        return [0.0 if name == "diffusion" else speed if name == "drift" else reward for name in coefficients.names]

    def _panel(
        self, s0: float, state: tuple[Grid, FloatArray], edges: list[FloatArray]
    ) -> tuple[float, tuple[Grid, FloatArray], list[FloatArray]]:
        """One panel from s0, done again on finer grids until it is resolved; and the cells of the next one."""
        after = self.corners[self.corners > s0 + _SHORTEST * self.T]
        end = float(after[0]) if after.size else self.T
        if self.h > 0:
            end = min(end, s0 + _STEPS * self.h) if s0 + 1.3 * _STEPS * self.h < end else end
        for attempt in range(_REDONE + 1):
            grid = self._grid(edges, s0, end)
            end, table = self._table(grid, s0, end)
            operators = Operators.of(self.equation, grid, table)
            u = self._initial(state, grid)
            panel = LawsonPanel(operators.separable, operators.remainder, lambda e, o=operators: self._relative(o, e))
            self._sizes(operators, s0, u)
            first = min(self.h, end - s0) if self.h > 0 else self._first_step(operators, u, end - s0)
            steps = list(march(panel, u, s0, end, rtol=self.tol.time, rtol_dense=self.tol.dense, first=first))
            last = steps[-1]
            self._sizes(operators, end, last.u1)
            allowed = self.tol.space * self.size_g
            found = np.stack(
                [np.concatenate(unresolved(grid, operators.gradient(w))) for w in (steps[len(steps) // 2].u0, last.u1)]
            )
            cells = np.cumsum([line.n_cells for line in grid.lines])[:-1]
            worst = np.split(found.max(axis=0), cells)
            new = [regraded(line, part, allowed) for line, part in zip(grid.lines, worst, strict=True)]
            excess = max(float(np.sqrt((part**2).sum())) for part in worst)
            for name, number in panel.counts.items():
                self.result.counts[name] = self.result.counts.get(name, 0) + number
            if excess <= _TOLERATED * allowed or attempt == _REDONE:
                break
            finer = [
                (_more(line.grid, part) if np.sqrt((f**2).sum()) > _TOLERATED * allowed else line.grid)
                for line, part, f in zip(grid.lines, new, worst, strict=True)
            ]
            if np.prod([(len(part) - 1) * self.tol.degree + 1 for part in finer]) > self.tol.most:
                break
            edges = finer
            self.result.counts["redone"] = self.result.counts.get("redone", 0) + 1
        if excess > _TOLERATED * allowed:
            self.result.resolved = False
        self.h = last.h
        self.result.keep(operators, panel, steps, end)
        return end, (grid, last.u1), new

    def _initial(self, state: tuple[Grid, FloatArray], grid: Grid) -> FloatArray:
        if not self.result.panels:
            return self.equation.start(grid.nodes).reshape(grid.shape)
        return transfer(state[1], state[0], grid)

    def _first_step(self, operators: Operators, u: FloatArray, length: float) -> float:
        speed = operators.sizes(0.0, operators.remainder(0.0, u))
        fastest = max(a / max(b, 1e-300) for a, b in zip(speed, (self.size_v, self.size_g), strict=True))
        return min(length / 3, max(self.tol.time**0.25 / max(fastest, 1e-300), 1e-10 * self.T))

    def _sizes(self, operators: Operators, s: float, u: FloatArray) -> None:
        """Norms of the value and of its gradient, the largest so far."""
        value, *slopes = self._whole(operators.grid, self.T - s, u, operators.gradient(u))
        self._larger(operators.grid, value, float(np.sqrt(operators.policy_square(s, slopes))))

    def _larger(self, grid: Grid, value: FloatArray, slope: float) -> None:
        self.size_v, self.size_g = max(self.size_v, grid.mean(value**2) ** 0.5), max(self.size_g, slope)

    def _relative(self, operators: Operators, error: FloatArray) -> float:
        value, slope = operators.sizes(operators.table.s0, error)
        tiny = 1e-12 * self.equation.problem.temperature
        return max(value / max(self.size_v, tiny), slope / max(self.size_g, tiny / self._width))

    @property
    def _width(self) -> float:
        return float(np.ptp(np.stack(self.equation.box.bounds), axis=0).max())


def _more(old: FloatArray, new: FloatArray) -> FloatArray:
    """The new edges if they are more, else the old cells halved."""
    return new if len(new) > len(old) else _finer(old)


def _finer(edges: FloatArray) -> FloatArray:
    return np.sort(np.concatenate([edges, (edges[1:] + edges[:-1]) / 2]))
