r"""One run over all panels of time, each on a grid of its own that is made until it resolves the gradient.

Panels are short near T, where values change fast, and end where a coefficient jumps in time. A panel that does not
resolve the gradient is done again on a finer grid; the grid of the next one is made from what this one has resolved.
Where the terminal reward has a kink or a jump, no grid resolves the gradient at T: time steps are then short enough to
follow the layer, and the run says up to which time to go it reaches.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

import numpy as np

from fem_hjb.reference.box_asked import Tolerances
from fem_hjb.reference.box_coefficients import Coefficients, Table, times_needed
from fem_hjb.reference.box_faces import begun
from fem_hjb.reference.box_grading import (
    FIRST_CELLS,
    first_edges,
    make_grid,
    more_cells,
    regraded,
    total,
    transfer,
    unresolved,
)
from fem_hjb.reference.box_layer import FAINTEST, JUMP, SETTLED, STEEPEST, edges_for_layer, steepest
from fem_hjb.reference.box_panel import Equation, Grid, Operators
from fem_hjb.reference.box_run import MOST_HELD, THICKEST, Layer, Run, panel_run, restored, run_of, settled, tails_of
from fem_hjb.reference.box_running import method_of, table_on
from fem_hjb.reference.box_sizes import NOTHING, least_sizes
from fem_hjb.spaces.axes import apply_axis
from fem_hjb.stepping.adaptive import Panel, Step, march
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.threads import for_each

_EDGES = np.array([0.0, 0.02, 0.1, 0.3, 1.0])  # of the time to go
_STEPS = 48  # of the length of the last one: a panel is no longer, so that grids follow what steps see
_ROUNDS = 14  # in which the grid of a terminal reward is sought
_NEARLY, _RELAXED, _BIT = 8.0, 1.9, 1.2  # times what is allowed: nearly enough; enough with all unknowns; by which
_REDONE = 6  # times that a panel is done again on a finer grid
_CHECKED = 128  # points at which a table is checked
_EVERY = 4  # steps: how often the grid is looked at
_AHEAD = 0.3  # of what is allowed, for the grid after one that failed to resolve
_NEAR = 2.0**-12  # of T: the time to go from which policies are compared, and large ones remembered
_TOLERATED = 1.5  # times what is allowed, before a panel is done again
_ANYWHERE = 1e-3  # of the most of u: what a step may be wrong by where the process hardly goes
_IN_VAIN = 2  # grids for a panel, after which steps are to be quieter there: they may be what is not resolved
_QUIETER, _QUIET = 0.1, 5e3  # and not below _ANYWHERE times this times the tolerance of a step
_MOST_STEPS = 20_000
_SINGLE = 3e-6  # the least tolerance of tables in single precision
_STUCK = 2e-4  # of the time since T: in the linear form no step in a layer is as short but for rounding
_SHORT = 0.002  # of the horizon: a step in a layer
_SUDDEN = 1e-9  # of the horizon: the first step after a jump
_SHORTEST = 1e-11  # of the horizon
_COLLAPSED = 1e-6  # of the time since a jump: no step of the value form is as short, if faces are stable
_HOPELESS = 1e-8  # the same where it is tamed already
_COMING = 10.0  # widths: how steep a reward may be
_LATER, _FINER = 1e-3, 5  # of the horizon, after which a layer may end on another grid; tries, each finer


@final
class Marcher:
    """The adaptive run of an equation."""

    def __init__(
        self, equation: Equation, coefficients: Coefficients, tolerances: Tolerances, tell: Callable[[float], None]
    ) -> None:
        self.equation, self.coefficients, self.tol, self.tell = equation, coefficients, tolerances, tell
        self.T = equation.problem.horizon
        self.result = Run(equation)
        self.rng = np.random.default_rng(0)
        corners = np.concatenate([self.T * _EDGES, self.T - np.asarray(equation.jumps)])
        self.corners = np.unique(corners[(corners >= 0) & (corners <= self.T)])
        self.metric = equation.metric
        self.width = float((np.ptp(np.stack(equation.box.bounds), axis=0) / self.metric).max())
        self.least_v, self.least_g = least_sizes(equation, tolerances.guess, self.width, self.rng)
        self.size_w = 0.0  # the norm of the gradient of what is solved for
        self.size_v, self.size_g, self.h = self.least_v, self.least_g, 0.0
        self.peak = self.size_v  # the most of u in the box
        self.anywhere = _ANYWHERE
        self.rough = False  # whether the terminal reward is not resolved
        self.layer_edges: list[FloatArray] = []  # of the cells on which it is averaged if it is not
        self.unchecked = False  # whether a panel goes on although no grid that is allowed resolves it

    def run(self, grid: Grid) -> Run:
        """All panels, beginning on the first grid."""
        s, edges = 0.0, [line.grid for line in grid.lines]
        state = self._smoothed() or (grid, begun(self.equation, grid, 0.0, None))
        if self.result.smoothed is not None:
            s, edges = self.result.layer, [line.grid for line in state[0].lines]
        while s < self.T * (1 - 1e-12):
            s, state, edges = self._panel(s, state, edges)
            self.tell(s / self.T)
            if self._collapsed(s):
                raise ConvergenceError(f"steps fell to {self.h:.3g} at t={self.T - s:.6g}: values run away at faces")
            if self.rough and self.equation.logarithmic and np.median(self.result.panels[-1].plan) < _STUCK * s:
                raise ConvergenceError(
                    f"steps fell to {self.h:.3g} at t={self.T - s:.6g}: next to T, where rewards jump, the gradient is"
                    " no larger than rounding; raise rtol, lower the temperature, or leave out form="
                )
            if self.result.counts["steps"] > _MOST_STEPS:
                raise ConvergenceError(
                    f"{_MOST_STEPS} steps only reached t={self.T - s:.6g}: the value changes too fast for them; raise"
                    " rtol or the temperature"
                )
        if self.result.layer > THICKEST * self.T:  # not a layer but a want of unknowns, which the judge is to see
            self.result.layer = 0.0
        return self.result

    def _smoothed(self) -> tuple[Grid, FloatArray] | None:
        """Where T is not resolved: w or u where it is, from averages at T; None where that is no way."""
        equation, alpha = self.equation, self.equation.problem.temperature
        if not self.rough or not self.layer_edges or equation.absorbing.any():
            return None
        grid = self._grid(self.layer_edges, 0.0, self.corners[1])
        at_end = begun(equation, grid, 0.0, None)
        if not equation.linear and not FAINTEST * alpha <= steepest(grid, at_end) <= STEEPEST * alpha:
            return None
        paid = equation.at_end if equation.linear else lambda x: np.exp(equation.left(x) / alpha)
        averaged = replace(equation, linear=True, levels=None, payoff=paid, averaged=True)
        coefficients = self.coefficients
        if not equation.linear:
            coefficients = Coefficients(equation.problem, equation.gauge, True)
            coefficients.metric, coefficients.most = self.coefficients.metric, self.coefficients.most
        inner = Marcher(averaged, coefficients, self.tol, self.tell)
        try:
            found = inner.through_layer(grid, partial(self._resolved, at_end))
        except ConvergenceError:
            return None
        if found is None:
            return None
        layer = Layer(inner.result, coefficients)
        self.result.smoothed, self.result.averaged, self.result.counts = layer, True, dict(inner.result.counts)
        self.result.keep(layer.shown(equation, at_end))
        self.rough, self.result.layer, self.h = False, layer.end, inner.h
        return found, settled(equation, found, grid, layer.last)

    def through_layer(self, grid: Grid, resolved: Callable[[Grid, float, FloatArray], Grid | None]) -> Grid | None:
        """Steps from T to where the gradient is resolved; on which grid, if it is before the layer is too thick."""
        with np.errstate(over="ignore", invalid="ignore"):
            s, u = 0.0, begun(self.equation, grid, 0.0, None)
        found: Grid | None = None
        if not np.isfinite(u).all():
            return None
        noise = (line.widths.min() / line.degree / root for line, root in zip(grid.lines, self.metric, strict=True))
        self.rough, self.h = True, min(noise) ** 2  # in which paths get from node to node
        while s < THICKEST * self.T and found is None:
            table = self._table(grid, s, min(self._end(s), THICKEST * self.T))
            operators = Operators.of(self.equation, grid, table, u)
            panel = method_of(self.equation, operators, partial(self._relative, operators))
            self._measured(operators, s, u)
            steps: list[Step] = []
            longest = min(table.longest, _SHORT * self.T)
            how = {"rtol": self.tol.time, "rtol_dense": np.inf, "longest": longest}
            for step in march(panel, u, s, table.s1, first=min(self.h, table.s1 - s), **how):
                steps.append(step)
                self.tell((step.s + step.h) / self.T)
                self._measured(operators, step.s + step.h, step.u1)
                if (found := resolved(grid, step.s + step.h, step.u1)) is not None:
                    break
            s, u, self.h = steps[-1].s + steps[-1].h, steps[-1].u1, steps[-1].h
            s = table.s1 if s > table.s1 - _SHORTEST * self.T else s
            self._count(panel)
            self.result.keep(panel_run(operators, panel, steps, s))
        return found

    def _resolved(self, at_end: FloatArray, layer: Grid, s: float, u: FloatArray) -> Grid | None:
        """The grid on which the gradient is, of what u of a layer is worth: its own, or later a finer one."""
        grid, w = layer, restored(self.equation, u, at_end)
        slopes = [apply_axis(line.derivative, w, k) for k, line in enumerate(grid.lines)]
        value, *whole = self._whole(grid, self.T - s, w, slopes)
        self._resize(s, grid.mean(value**2) ** 0.5, self._norm(grid, whole))
        allowed = SETTLED * self.tol.space * self.size_g
        last = _FINER if s > _LATER * self.T and self.equation.payoff is None else 0
        for tried in range(last + 1):
            edges = self._refined(grid, unresolved(grid, slopes, self.metric), allowed, 1.0)
            if edges is None:
                return grid
            if tried == last or self._size(edges) > self.tol.most:
                break
            grid = self._grid(edges, 0.0, self.corners[1])
            finer = transfer(u, layer, grid)
            if not (finer > 0).all():
                break
            w = restored(self.equation, finer, finer)
            slopes = [apply_axis(line.derivative, w, k) for k, line in enumerate(grid.lines)]
        return None

    def _norm(self, grid: Grid, slopes: Sequence[FloatArray]) -> float:
        """Of a gradient under the weights of a grid, in the metric."""
        square = sum(grid.mean((root * part) ** 2) for root, part in zip(self.metric, slopes, strict=True))
        return math.sqrt(float(square))

    def _count(self, panel: Panel) -> None:
        for name, number in panel.counts.items():
            self.result.counts[name] = self.result.counts.get(name, 0) + number

    def _collapsed(self, s: float) -> bool:
        """Whether steps are too short for the time since coefficients jumped, where taming may help, or did not."""
        equation = self.equation
        since = s - float(self.corners[self.corners < s * (1 - 1e-12)].max(initial=0.0))
        least = (_COLLAPSED if equation.levels is None else _HOPELESS) * since
        at_faces = not equation.linear and bool(equation.truncated.any())
        return at_faces and s < self.T * (1 - 1e-12) and self.h < least

    def _grid(self, edges: Sequence[FloatArray], s0: float, s1: float) -> Grid:
        return make_grid(edges, self.tol.degree, self.equation, s0, s1)

    def _size(self, edges: Sequence[FloatArray]) -> int:
        return int(np.prod([(len(part) - 1) * self.tol.degree + 1 for part in edges]))

    def first_grid(self) -> Grid:
        """Refined until it resolves the terminal reward, or as far as allowed.

        In space what is nearly resolved with all unknowns will do, and is what the run is to resolve then.
        """
        equation = self.equation
        edges, before, relaxed = self._first_edges(), 0, 1.0
        for _ in range(_ROUNDS):
            grid = self._grid(edges, 0.0, self.corners[1])
            u = begun(equation, grid, 0.0, None)
            slopes = [apply_axis(line.derivative, u, k) for k, line in enumerate(grid.lines)]
            found = unresolved(grid, slopes, self.metric)
            value, *whole = self._whole(grid, self.T, u, slopes)
            self.size_v = max(grid.mean(value**2) ** 0.5, self.least_v)
            self.size_g = max(self._norm(grid, whole), self.least_g * (self.size_v if equation.linear else 1.0))
            self.size_w = self._norm(grid, slopes)
            allowed = self.tol.space * self.size_g
            nearly = grid.dim == 3 and max(map(total, found)) < _NEARLY * allowed  # unknowns are dear there
            even, before = nearly and grid.size != before, grid.size
            more = self._refined(grid, found, relaxed * allowed, even=even)
            while nearly and more is not None and self._size(more) > self.tol.most and relaxed < _RELAXED:
                relaxed *= _BIT
                more = self._refined(grid, found, relaxed * allowed, even=even)
            if more is not None and not self.layer_edges:
                noise = self.metric * np.sqrt(_NEAR * self.T)
                self.layer_edges = edges_for_layer(grid, self._size(more), found, allowed, noise, self.tol.most)
            if more is None or self._size(more) > self.tol.most:
                self.rough = more is not None
                break
            edges = more
        else:
            self.rough = True
        if not self.rough:
            self.tol = replace(self.tol, space=relaxed * self.tol.space)
        jump = max(map(total, found)) >= JUMP * self.size_g
        if not (jump and self.layer_edges):  # on a line cells shrink towards kinks until values at nodes are as good
            self.layer_edges = [line.grid for line in grid.lines] if jump or grid.dim > 1 else []
        return grid

    def _first_edges(self) -> list[FloatArray]:
        dim, degree = self.equation.problem.dim, self.tol.degree
        cells = min(FIRST_CELLS[dim], int((self.tol.most ** (1 / dim) * (1 + 1e-12) - 1) / degree))
        if cells < 1:
            raise ConvergenceError(
                f"max_dofs={self.tol.most} is less than one cell of degree {degree} per axis has,"
                f" {(degree + 1) ** dim}; allow more"
            )
        return first_edges(self.equation.box, self.equation.reaches[0], ~self.equation.truncated, cells)

    def _refined(
        self, grid: Grid, found: Sequence[FloatArray], allowed: float, tolerated: float = 1.0, **how: Any
    ) -> list[FloatArray] | None:
        """`more_cells` along the axes that do not resolve the gradient; None if all do."""
        edges = [line.grid for line in grid.lines]
        amiss = [k for k, part in enumerate(found) if total(part) > tolerated * allowed]
        for k in amiss:
            edges[k] = more_cells(grid.lines[k], found[k], allowed, **how)
        return edges if amiss else None

    def _whole(self, grid: Grid, t: float, u: FloatArray, slopes: Sequence[FloatArray]) -> list[FloatArray]:
        """v and grad v, or u and grad u in the linear form."""
        if self.equation.linear:
            return [u, *slopes]
        gauge, result = self.equation.gauge, [np.empty(grid.shape) for _ in range(1 + grid.dim)]

        def add(rows: slice) -> None:
            x = grid.nodes_of(rows)
            for whole, left, taken in zip(
                result, [u, *slopes], [gauge.guess(t, x), *gauge.guess_gradient(t, x).T], strict=True
            ):
                np.add(left[rows], taken.reshape(-1, *grid.shape[1:]), out=whole[rows])

        for_each(grid.parts, add)
        return result

    def _table(self, grid: Grid, s0: float, s1: float) -> Table:
        """The table of a panel, which is cut short until the most times allowed are enough."""
        joint = np.ones(1)
        for mass in grid.masses:
            joint = np.multiply.outer(joint, mass)
        nodes = grid.nodes
        pick = self.rng.choice(grid.size, min(_CHECKED, grid.size), p=joint.ravel())
        low, high = self.equation.box.bounds
        x = np.concatenate([nodes[pick], self.rng.uniform(low, high, (_CHECKED // 4, grid.dim))])
        rtol, floors, share = self.tol.table, self._floors(), partial(self._share, s1 - s0)
        while (found := times_needed(self.coefficients, s0, s1, x, rtol, floors, share, len(pick))) is None:
            s1 = s0 + (s1 - s0) / 2
            if s1 - s0 < _SHORTEST * self.T:
                raise ConvergenceError(
                    f"coefficients change too fast around t={self.T - s0:.6g} to be followed: are they finite there?"
                )
        count, misfit = found
        self.result.misfit += misfit * (s1 - s0) / self.T
        rough = self.equation.rough
        return table_on(self.coefficients, grid, s0, s1, count, rough=rough, single=rtol > _SINGLE)

    def _floors(self) -> list[float]:
        """Sizes of the fields that do not count: of drifts, what diffusion does in T; of rewards, the value over T."""
        coefficients, T, problem = self.coefficients, self.T, self.equation.problem
        Lambda = coefficients.constant
        if Lambda is None:
            Lambda = problem.Lambda(0.0, problem.initial_law.expectation)
        speed = float(np.sqrt(np.diag(Lambda).min() / T))
        reward = 1.0 if coefficients.linear else self.size_v
        sizes = {"diffusion": 0.0, "drift": speed, "reward": reward / T}
        return [sizes[name] for name in coefficients.names]

    def _share(self, length: float, reward: float) -> float:
        """The part of the gradient of v that is not taken out, or may come within a panel from this reward."""
        if self.equation.linear:
            return 1.0
        left = self.size_w + _COMING * length * reward / self.width
        return float(np.clip(left / self.size_g, NOTHING, 1.0))

    def _end(self, s0: float) -> float:
        """Where a panel from s0 ends at the latest."""
        after = self.corners[self.corners > s0 + _SHORTEST * self.T]
        end = float(after[0]) if after.size else self.T
        return s0 + _STEPS * self.h if 0 < 1.3 * _STEPS * self.h < end - s0 else end

    def _panel(
        self, s0: float, state: tuple[Grid, FloatArray], edges: list[FloatArray]
    ) -> tuple[float, tuple[Grid, FloatArray], list[FloatArray]]:
        """One panel from s0, up to where its grid resolves the gradient; and the cells of the next one."""
        end, redone = self._end(s0), 0
        while True:
            grid = self._grid(edges, s0, end)
            table = self._table(grid, s0, end)
            u = begun(self.equation, grid, s0, state if self.result.panels else None)
            operators = Operators.of(self.equation, grid, table, u)
            panel = method_of(self.equation, operators, partial(self._relative, operators))
            steps, good, bad = self._steps(operators, panel, u, table.s1)
            self._count(panel)
            if steps or bad is None:
                break
            more = self._refined(grid, bad, self.tol.space * self.size_g, _TOLERATED, tried=redone)
            redone += 1
            if more is None or self._size(more) > self.tol.most or redone > _REDONE:
                self.unchecked = True
                continue
            if redone > _IN_VAIN:
                self.anywhere = max(_QUIETER * self.anywhere, _ANYWHERE * min(_QUIET * self.tol.time, 1.0))
            edges, end = more, table.s1
        self.result.counts["redone"] = self.result.counts.get("redone", 0) + redone
        end = steps[-1].s + steps[-1].h
        end = table.s1 if end > table.s1 - _SHORTEST * self.T else end
        self.h, last = steps[-1].h, steps[-1].u1
        self.result.keep(run_of(operators, panel, steps, end, self.tol.dense), self._relative, self.tol.dense)
        allowed = self.tol.space * self.size_g * (1.0 if bad is None else _AHEAD)
        new = [
            regraded(line, part, allowed) for line, part in zip(grid.lines, good if bad is None else bad, strict=True)
        ]
        if self._size(new) > self.tol.most:
            new = edges
        if self.unchecked:
            self.result.layer, self.unchecked = end, False
        if self.rough:
            self.result.layer = end
            self.rough = self._refined(grid, good, self.tol.space * self.size_g, _TOLERATED) is not None
            new = edges if self.rough else new
        return end, (grid, last), new

    def _steps(
        self, operators: Operators, panel: Panel, u: FloatArray, end: float
    ) -> tuple[list[Step], list[FloatArray], list[FloatArray] | None]:
        """Steps as long as the gradient is resolved; what is not at the last of them, and where it is too much."""
        s0 = operators.table.s0
        good = self._measured(operators, s0, u)
        unresolved_now = max(map(total, good)) > _TOLERATED * self.tol.space * self.size_g
        if unresolved_now and self.result.panels and not (self.rough or self.unchecked):
            return [], good, good  # the grid is too coarse for what it begins with
        first = min(self.h, end - s0) if self.h > 0 else self._first_step(operators, panel.first(s0, u), end - s0)
        steps: list[Step] = []
        kept, found = 0, good
        try:
            how = {"rtol": self.tol.time, "rtol_dense": self.tol.dense, "longest": operators.table.longest}
            for step in march(panel, u, s0, end, first=first, **how):
                steps.append(step)
                at = step.s + step.h
                self.tell(at / self.T)
                if len(steps) % _EVERY and len(steps) > 2 and at < end * (1 - 1e-12):
                    continue
                found = self._measured(operators, at, step.u1)
                allowed = self.tol.space * self.size_g
                if not (self.rough or self.unchecked) and max(map(total, found)) > _TOLERATED * allowed:
                    return steps[:kept], good, found
                kept, good = len(steps), found
                layered = self.rough and max(map(total, found)) <= allowed
                many = kept >= _MOST_STEPS // 10 or kept * u.size > MOST_HELD // 4  # steps, or values of them
                if layered or many:  # a panel ends anywhere
                    break
        except ConvergenceError:
            if self.rough or self.unchecked:
                raise
            if len(steps) > kept:
                found = tails_of(operators, [steps[-1].u1])
            return steps[:kept], good, found
        return steps, good, None

    def _first_step(self, operators: Operators, left: FloatArray, length: float) -> float:
        if self.rough:  # exponentials of longer steps are squares of those of shorter ones
            return _SUDDEN * self.T
        speed = operators.sizes(operators.table.s0, left)
        fastest = max(a / max(b, 1e-300) for a, b in zip(speed, (self.size_v, self.size_g), strict=True))
        return float(min(length / 3, max(self.tol.time**0.25 / max(fastest, 1e-300), 1e-10 * self.T)))

    def _measured(self, operators: Operators, s: float, u: FloatArray) -> list[FloatArray]:
        """Norms of the value and of its gradient, that errors are relative to; what is not resolved of that of u."""
        gradient = operators.gradient(u)
        value, *slopes = self._whole(operators.grid, self.T - s, u, gradient)
        self.size_w = operators.policy_square(s, gradient) ** 0.5
        self._resize(s, operators.root_mean_square(value), operators.policy_square(s, slopes) ** 0.5)
        self.peak = max(float(np.abs(u).max()), self.size_v)
        return unresolved(operators.grid, gradient, operators.metric)

    def _resize(self, s: float, value: float, slope: float) -> None:
        """Take the largest so far, or the gradient of now where T is not resolved or near: of jumps it is unbounded.

        In the linear form u itself is what its errors are relative to, however much it grows or decays.
        """
        early = self.rough or s < _NEAR * self.T
        if self.equation.linear:
            least = self.least_g if early else self.size_g / self.size_v
            self.size_v = max(value, self.least_v)
            self.size_g = max(slope, least * self.size_v)
        else:
            self.size_v = max(self.size_v, value)
            self.size_g = max(slope, self.least_g if early else self.size_g)

    def _relative(self, operators: Operators, error: FloatArray) -> float:
        """Under the law of the panel, relative; and anywhere in the box, where steps must be stable."""
        value, slope = operators.sizes(operators.table.s0, error)
        anywhere = max(float(error.max()), -float(error.min())) / (self.anywhere * self.peak)
        return max(value / self.size_v, slope / self.size_g, self.tol.time * anywhere)
