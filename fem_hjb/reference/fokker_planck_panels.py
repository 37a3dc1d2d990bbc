r"""The Fokker-Planck equation on a box that follows the law: panels of time, each on a grid of its own.

On a panel d_t p = S* p + N* p with the adjoints, in the inner product of the nodes' weights, of the operators that the
value is solved with (`box_panel`), by Lawson's method (`lawson`), or, where a grid has walls and S* is not all, by
implicit steps (`implicit`). A panel ends where a coefficient jumps, where p comes to a face of its
box, or where its grid no longer resolves p. The next one has a box around what there is of p then, with room for where
it goes, and cells as the Legendre coefficients of p in the last one ask for.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, final

import numpy as np

from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_adjoint import Adjoint
from fem_hjb.reference.box_coefficients import Coefficients, Table, by_field, inside, lobatto, times_needed
from fem_hjb.reference.box_faces import HeldSystem
from fem_hjb.reference.box_panel import Grid, Operators
from fem_hjb.reference.faces import faces_of_domain
from fem_hjb.reference.fokker_planck_grids import (
    at_faces,
    carried,
    density_on,
    finer,
    first_grid,
    fitted,
    limited,
    most,
    support,
    unresolved,
    within,
)
from fem_hjb.reference.fokker_planck_start import Begin, March, no_gauge
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.stepping.adaptive import Panel, Step, march
from fem_hjb.stepping.implicit import ImplicitPanel
from fem_hjb.stepping.lawson import LawsonPanel
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError
from fem_hjb.support.progress import Progress

_MOST_DOFS = {1: 1500, 2: 40_000, 3: 800_000}
_TIME, _DENSE, _SPACE, _TABLE, _FACE = 0.05, 0.25, 0.25, 0.3, 1e-3  # of the tolerance
_LEAST = 1e-14  # of the maximum of p: what it is allowed to be at a truncating face, at least
_ROOM, _LITTLE = 0.25, 0.04  # of the width of a box: how far its faces are from p where that is on its way, or stays
_STEPS = 48  # of the length of the last one: a panel is no longer
_AHEAD = 0.3  # of what may be unresolved: what a grid is made for
_REDONE = 3  # panels in vain, before less is asked for; after twice as many one is done unchecked
_LESS, _MOST_SLACK = 4.0, 0.01  # times less; the tolerance that is asked for at least
_MANY, _HARDLY = 150, 0.01  # steps in a panel that get no further than this part of the time that has passed
_BLIND = 8  # steps of such a panel
_CHECKED, _SEEN = 96, 24  # points at which tables of coefficients are checked; at which jumps are looked for
_SHORTEST, _SUDDEN = 1e-11, 1e-7  # of the horizon: panels; those around a jump of the drift
_BRIEF = 0.01  # of the tolerance: the part of the horizon that such a panel may be
_MOST_STEPS = 20_000


@final
class Forward:
    """The march of a density; see the module.

    walls : (2, d), beyond which no box goes.
    basis : the one grid for all panels; without it each has its own.
    breaks : times at which coefficients are known to jump, others being looked for.
    known : what the drift is wrong by, relative: no more than that is asked for.
    tell : hears of every step, and whenever the drift is called; what it raises stops the work.
    """

    def __init__(
        self,
        problem: ControlProblem,
        begin: Begin,
        walls: FloatArray,
        rtol: float,
        tell: Progress,
        basis: SpectralBasis | None = None,
        breaks: Sequence[float] | FloatArray = (),
        known: float = 0.0,
    ) -> None:
        self.breaks = np.asarray(breaks, dtype=np.float64)
        self.problem, self.begin, self.walls, self.rtol, self.tell = problem, begin, walls, rtol, tell
        self.T, self.t, self.h, self.free = problem.horizon, begin.time, 0.0, basis is None
        self.level = max(_FACE * rtol, _LEAST)
        # times the tolerance: what is asked for where a rough drift keeps p from more
        self.slack = max(1.0, min(known, _MOST_SLACK) / rtol)
        self.most = _MOST_DOFS[problem.dim]
        self.coefficients = Coefficients(problem, no_gauge(problem), linear=True)
        self.rng = np.random.default_rng(0)
        self.jumps = self._jumps()
        self.lines: Sequence[SpectralLine] = self._first_lines() if basis is None else basis.lines
        self.next, self.p = self.lines, self._begun(self.lines)
        self.size = float(np.abs(self.p).max())
        self.unchecked = False  # whether the next panel goes on although no grid that is allowed resolves it
        self.margins = np.full(walls.shape, _ROOM)
        self.left = self.slack * rtol if self.slack > 1.0 else 0.0
        self.misfit = self.transfer = 0.0
        self.counts: dict[str, Any] = {"route": "panels", "steps": 0, "rejected": 0, "panels": 0, "redone": 0}
        self.panels: list[tuple[Space, FloatArray]] = []
        self.weights: list[FloatArray] = []

    @property
    def allowed(self) -> float:
        """What a grid may leave unresolved, relative to the maximum."""
        return _SPACE * self.slack * self.rtol

    def run(self) -> March:
        """All panels.

        Where finer grids do not resolve p any better, or steps shrink to next to nothing, the drift is rougher than
        the tolerance, as a policy that is not known that well is: less is asked for then, and told.
        """
        if self.t > 0.0:  # the law is a Gaussian up to here
            line = LineBasis(np.array([0.0, self.t]), "P1")
            self._add(line, np.stack([self.p.ravel()] * 2), self.lines)
        failed = 0
        while self.t < self.T * (1 - 1e-12):
            if self._panel():
                failed = 0
            else:
                failed += 1
                self.counts["redone"] += 1
                early = self.t == self.begin.time  # what does not fit walls at the start soon does
                self.unchecked |= failed > (_REDONE if early else 2 * _REDONE)
                if failed > _REDONE and not early:
                    self._ask_less()
            self.tell(self.t / self.T)
            if self.counts["steps"] > _MOST_STEPS:
                raise ConvergenceError(
                    f"{_MOST_STEPS} steps only reached t={self.t:.6g}: the density changes too fast for them; raise"
                    " rtol, or use a mesh"
                )
        return March(
            self.panels, self.weights, self.counts | {"transfer": self.transfer, "misfit": self.misfit}, self.left
        )

    def _ask_less(self) -> None:
        self.slack = min(_LESS * self.slack, max(_MOST_SLACK / self.rtol, 1.0))
        self.left = max(self.left, self.slack * self.rtol)

    def _first_lines(self) -> list[SpectralLine]:
        degree = _degree(self.problem.dim, self.rtol)
        ahead = _AHEAD * self.allowed
        return first_grid(self.begin.law, self.walls, degree, self.most, self.level, ahead, _ROOM, self.tell)

    def _begun(self, lines: Sequence[SpectralLine]) -> FloatArray:
        """The first density, 0 on absorbing faces."""
        p = density_on(self.begin.law, lines)
        for side, k in np.argwhere(self._held(lines)).tolist():
            p[(slice(None),) * k + (-side,)] = 0.0
        if not p.any():
            raise DomainError(f"no node of the box sees the initial law of {self.problem.name!r}; take smaller cells")
        return p

    def _held(self, lines: Sequence[SpectralLine]) -> Any:
        """(2, d): the absorbing faces of the domain that the grid has."""
        domain = self.problem.box
        own = faces_of_domain(self.problem, np.array([line.bounds for line in lines]).T)
        return own & (domain.where("absorbing") if domain is not None else False)

    def _jumps(self) -> FloatArray:
        """Times at which coefficients jump, seen where the process starts and around."""
        problem, law = self.problem, self.begin.law
        x = law.sample(_SEEN, self.rng)
        spread = np.sqrt(np.diag(problem.Lambda(0.0, x).mean(axis=0)) * self.T)
        x[::2] += spread * self.rng.standard_normal(x[::2].shape)
        found = self.coefficients.jumps(np.clip(x, *self.walls))
        return np.concatenate([found, self.breaks])

    def _end(self) -> float:
        """Where a panel ends at the latest."""
        after = self.jumps[self.jumps > self.t + _SHORTEST * self.T]
        end = float(after.min(initial=self.T))
        return self.t + _STEPS * self.h if 0 < 1.3 * _STEPS * self.h < end - self.t else end

    def _panel(self) -> bool:
        """One panel as far as its box and its grid go, and the next grid; whether there was a step."""
        lines = self.next
        if self.t == self.begin.time:
            p, factor = self._begun(lines), 1.0
        else:
            p, factor = carried(self.p, self.lines, lines)
        self.size = float(np.abs(p).max())
        grid = Grid(tuple(lines), tuple(line.weights for line in lines), 0.0)
        table = self._table(grid, p, self._end())
        none = np.zeros_like(self.walls, dtype=np.bool_)
        operators = Operators(grid, table, self.coefficients.constant, none, 1.0, True, np.ones(grid.dim))
        held = self._held(lines)
        adjoint = Adjoint(operators, held)
        weights = [None if held[:, k].any() else line.weights for k, line in enumerate(lines)]
        panel: Panel
        if adjoint.split and (self.walls == np.array([line.bounds for line in lines]).T).any():
            # N* p does not keep the condition at walls that exp(h S*) imposes, which costs Lawson's method its order
            panel = ImplicitPanel(HeldSystem(adjoint, held, self.T), self.t, self.T - table.s0, self._relative)
        else:

            def remainder(t: float, q: FloatArray) -> FloatArray:
                self.tell(0.0)
                return adjoint.remainder(self.T - t, q)

            panel = LawsonPanel(adjoint.separable, remainder, self._relative, weights)
        steps, found, out = self._steps(panel, lines, p, table)
        for name in ("steps", "rejected"):
            self.counts[name] += panel.counts[name]
        before, began = support(p, lines, self.level), self.t
        if steps:
            self.transfer = max(self.transfer, abs(factor - 1.0))
            self._keep(lines, steps, self.T - table.s0)
        if self.free:
            self._plan(lines, before, self.t - began, found, out)
        return bool(steps)

    def _relative(self, error: FloatArray) -> float:
        return float(np.abs(error).max()) / self.size

    def _steps(
        self, panel: Panel, lines: Sequence[SpectralLine], p: FloatArray, table: Table
    ) -> tuple[list[Step], list[FloatArray], Any]:
        """Steps as long as box and grid do; what the grid leaves unresolved at the last, and which faces p came to."""
        first, end = self.h, self.T - table.s0
        if not first:
            speed = self._relative(panel.slope(p, panel.first(self.t, p)))
            first = min((_TIME * self.rtol) ** 0.25 / max(speed, 1e-300), (end - self.t) / 2)
        walls = self.walls == np.array([line.bounds for line in lines]).T
        steps: list[Step] = []
        found, out = unresolved(p, lines, self.walls), np.zeros_like(walls)
        times = {"rtol": _TIME * self.slack * self.rtol, "rtol_dense": _DENSE * self.slack * self.rtol}
        if (
            self.slack > 1.0
        ):  # slopes of what is not resolved are rough: an eighth of a step times what they are off by,
            times["rtol_dense"] /= 8.0  # where the cubic through the ends of two steps sees a 64th
        for step in march(panel, p, self.t, end, first=min(first, end - self.t), longest=table.longest, **times):
            if self.free:
                found, out = unresolved(step.u1, lines, self.walls), (at_faces(step.u1) > self.level) & ~walls
                amiss = out.any() or most(found) > self.allowed
                if amiss and not self.unchecked:
                    return steps, found, out
            steps.append(step)
            self.tell((step.s + step.h) / self.T)
            self.size = float(np.abs(step.u1).max())
            if len(steps) >= _MANY and step.s + step.h - steps[0].s < _HARDLY * (step.s - self.begin.time):
                self._ask_less()
                break
            if self.unchecked:
                left = most(unresolved(step.u1, lines, self.walls, 1.0))
                self.left = max(self.left, left)
                if out.any() or (left > self.allowed and len(steps) >= _BLIND):
                    break
        return steps, found, out

    def _keep(self, lines: Sequence[SpectralLine], steps: Sequence[Step], end: float) -> None:
        times = np.array([steps[0].s, *(step.s + step.h for step in steps)])
        times[-1] = end if times[-1] > end - _SHORTEST * self.T else times[-1]
        line = LineBasis(times, "hermite")
        rows = np.empty((line.n_dofs, steps[0].u0.size))
        for k, step in enumerate(steps):
            self.tell(0.0)
            rows[2 * k], rows[2 * k + 1] = step.u0.ravel(), step.slope0.ravel() * line.node_widths[k]
        rows[-2], rows[-1] = steps[-1].u1.ravel(), steps[-1].slope1.ravel() * line.node_widths[-1]
        self._add(line, rows, lines)
        self.counts["panels"] += 1
        cut = end < self._end()  # at a jump of coefficients, which steps beyond it need not know of
        self.h = max(self.h, steps[-1].h) if cut else steps[-1].h
        self.t, self.p, self.lines = float(times[-1]), steps[-1].u1, lines
        self.unchecked = False

    def _add(self, line: LineBasis, rows: FloatArray, lines: Sequence[SpectralLine]) -> None:
        basis = SpectralBasis(lines)
        self.panels.append((Space.from_(line, basis), rows))
        self.weights.append(np.asarray(basis.weights))

    def _plan(
        self, lines: Sequence[SpectralLine], before: FloatArray, passed: float, found: list[FloatArray], out: Any
    ) -> None:
        """The next grid: cells by what was found on the last one, on a box around p with room for where it goes."""
        bounds = support(self.p, self.lines, self.level)
        if passed > 0:
            speed = (bounds - before) * np.array([[-1.0], [1.0]]) / passed
            self.margins = np.clip(speed * (self.T - self.t) / (bounds[1] - bounds[0]), _LITTLE, _ROOM)
        self.margins[out] = _ROOM
        box = within(bounds, self.margins, self.walls)
        edges = finer(lines, found, self.allowed, _AHEAD * self.allowed)
        new = [fitted(part, *box[:, k]) for k, part in enumerate(edges)]
        allowed = limited(new, lines[0].degree, self.most)
        self.unchecked |= any(len(a) < len(b) for a, b in zip(allowed, new, strict=True))
        self.next = [SpectralLine(part, lines[0].degree) for part in allowed]

    def _table(self, grid: Grid, p: FloatArray, end: float) -> Table:
        """The coefficients of a panel, which is cut short until the most times allowed are enough."""
        nodes, T, start = grid.nodes, self.T, self.t
        mass = np.maximum(p, 0.0).ravel() * SpectralBasis(grid.lines).weights
        pick = self.rng.choice(grid.size, min(_CHECKED, grid.size), p=mass / mass.sum())
        low, high = np.array([line.bounds for line in grid.lines]).T
        x = np.concatenate([nodes[pick], self.rng.uniform(low, high, (_CHECKED // 4, grid.dim))])
        Lambda = self.problem.Lambda(start, nodes[pick]).mean(axis=0)
        sizes = {"diffusion": 0.0, "drift": float(np.sqrt(np.diag(Lambda).min() / T)), "reward": 1.0 / T}
        floors, rtol = [sizes[name] for name in self.coefficients.names], _TABLE * self.slack * self.rtol
        check = partial(times_needed, self.coefficients, x=x, rtol=rtol, floors=floors, share=_all, drawn=len(pick))
        needed = check(T - end, T - start)
        while needed is None and end - start > max(_SUDDEN, _BRIEF * self.rtol) * T:
            self.tell(0.0)
            end = start + (end - start) / 3
            needed = check(T - end, T - start)
        count, misfit = (2, 1.0) if needed is None else needed  # so short that a jump within does not matter
        self.misfit += misfit * (end - start) / T
        times = T - inside(T - end, T - start, lobatto(count))
        return Table(T - end, T - start, by_field(self._values(times, grid)))

    def _values(self, times: FloatArray, grid: Grid) -> FloatArray:
        """The coefficients at these times and all nodes, (times, fields, *shape)."""
        rows = []
        for t in times.tolist():
            self.tell(0.0)
            rows.append(self.coefficients.at(t, grid.nodes))
        return np.stack(rows).reshape(len(rows), -1, *grid.shape)


def _all(_: float) -> float:
    """All of p is moved by the drift, nothing being taken out."""
    return 1.0


def _degree(dim: int, rtol: float) -> int:
    if dim == 3:
        return 8 if rtol >= 1e-4 else 12
    return 10 if rtol >= 1e-4 else 12 if dim == 2 or rtol >= 1e-6 else 16
