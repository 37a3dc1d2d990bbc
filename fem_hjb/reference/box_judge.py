r"""How wrong a run is: its plan followed again with one thing changed, and the differences under two laws.

Followed again are: steps twice as long (whose error is about 16 times that of the run's own steps), and with these
longer steps, which cost half as much, elements of fewer degrees and a wider box. What the runs differ by at draws of
X_t, uncontrolled and optimally controlled, relative to the largest norms over time, is the error.
"""

import math
from collections.abc import Callable
from typing import final

import numpy as np

from fem_hjb.paths.extent import LawSample
from fem_hjb.reference.box_coefficients import Coefficients, Table, inside, lobatto
from fem_hjb.reference.box_grading import make_grid, transfer, widened
from fem_hjb.reference.box_panel import Grid, Operators
from fem_hjb.reference.box_run import PanelRun, Run
from fem_hjb.spaces.axes import apply_axis
from fem_hjb.spaces.spectral import contract_axes
from fem_hjb.stepping.lawson import LawsonPanel, replay
from fem_hjb.support.checks import FloatArray

LESS = {1: 2, 2: 2, 3: 1}  # degrees
WIDER = 0.06  # of the width, by which a box is enlarged on each side
_ORDER_GAIN = 10.0  # by which steps half as long are better, 16 being what order 4 promises
_FROM_SHORTER = 1.1  # what half the steps change, to what they are wrong by
_DRAWS = {1: 1024, 2: 768, 3: 512}
_NEAR_T = (0.0, 0.003, 0.015, 0.04)  # of the time to go
_MOST_TIMES = 24
_WORTH = 40.0  # draws: fewer do not stand for a law
_DOUBT, _LEAST_GAIN = 1.3, 0.1  # of what these degrees are worth
_NOTHING = 1e-10  # temperatures: a value below is none

Parts = dict[str, tuple[float, float]]
Steps = Callable[[FloatArray], list[float]]
Rows = list[tuple[FloatArray, FloatArray]]


def followed(
    run: Run,
    coefficients: Coefficients,
    lengths: Steps,
    *,
    less: int = 0,
    wider: float = 0.0,
) -> Run:
    """The plan of a run again, with other steps, and perhaps elements of fewer degrees or a wider box.

    lengths : what becomes of the steps (k,) of a panel.
    """
    equation = run.equation
    T = equation.problem.horizon
    result = Run(equation)
    before: PanelRun | None = None
    for own in run.panels:
        s0, s1 = float(own.ends[0]), float(own.ends[-1])
        operators, lawson = own.operators, own.lawson
        if less or wider:
            edges = widened(own.edges, equation.truncated, wider) if wider else own.edges
            grid = make_grid(edges, own.grid.lines[0].degree - less, equation, s0, s1)
            operators = Operators.of(equation, grid, _table(own, grid, coefficients, anew=bool(wider)))
            lawson = None
        if lawson is None:
            lawson = LawsonPanel(operators.separable, operators.remainder, operators.root_mean_square)
        grid = operators.grid
        with np.errstate(over="ignore", invalid="ignore"):  # what is not stable is seen by its end
            u = equation.start(grid) if before is None else transfer(before.states[-2], before.grid, grid)
            steps = list(replay(lawson, u, s0, lengths(np.diff(own.ends))))
        result.keep(operators, lawson, steps, s1)
        before = result.panels[-1]
        if not np.isfinite(before.states[-2]).all():
            result.complaint = f"not stable at t={T - s1:.6g}"
            break
    return result


def _table(own: PanelRun, grid: Grid, coefficients: Coefficients, *, anew: bool) -> Table:
    """The coefficients of a panel on another grid: interpolated, or evaluated anew."""
    old = own.operators.table
    if anew:
        problem, count = coefficients.problem, len(old.nodes)
        times = problem.horizon - inside(old.s0, old.s1, lobatto(count))
        values = np.stack([coefficients.at(float(t), grid.nodes) for t in times])
        return Table(old.s0, old.s1, values.reshape(count, -1, *grid.shape))
    fields = own.operators.coefficients()
    for k, (before, after) in enumerate(zip(own.grid.lines, grid.lines, strict=True)):
        fields = apply_axis(before.rows(after.nodes), fields, k + 2)
    return Table(old.s0, old.s1, fields)


def merged(lengths: FloatArray) -> list[float]:
    """Neighbours of one length joined to one step."""
    result: list[float] = []
    k = 0
    while k < len(lengths):
        pair = k + 1 < len(lengths) and abs(lengths[k] - lengths[k + 1]) <= 1e-9 * lengths[k]
        result.append(float(lengths[k] + lengths[k + 1] if pair else lengths[k]))
        k += 2 if pair else 1
    return result


def cut(parts: int) -> Steps:
    """Each step in so many parts."""
    return lambda lengths: np.repeat(lengths / parts, parts).tolist()


@final
class Judge:
    """Where runs are compared: times, draws under P at each, and draws under P* as many as they are worth."""

    def __init__(self, run: Run, sample: LawSample, seed: int) -> None:
        self.run, self.equation = run, run.equation
        problem = run.equation.problem
        T = problem.horizon
        # errors jump where a panel starts on a coarser grid, and are largest in the middle of steps
        some = np.array([0.5 * (panel.ends[0] + panel.ends[k]) for panel in run.panels for k in (1, -1)])
        most = _MOST_TIMES - len(_NEAR_T)
        if some.size > most:
            some = some[np.linspace(0, some.size - 1, most).astype(int)]
        times = np.unique(np.concatenate([T * np.array(_NEAR_T), some, [T]]))
        self.times = times[times >= min(run.layer, T)]
        rng = np.random.default_rng(seed)
        count = _DRAWS[problem.dim]
        some = rng.choice(sample.x.shape[1], min(count, sample.x.shape[1]), replace=False)
        places = [sample.nearest(T - s) for s in self.times]
        self.points = [sample.x[k][some] for k in places]
        self.laws = [slice(0, some.size)]  # which points are draws under P, and under P*
        start = evaluate(run, T, sample.paths[0])[0]
        known = np.isfinite(start)
        weights, self.draws = sample.optimal(np.where(known, start, 0.0) / problem.temperature)
        if self.draws >= _WORTH:
            chosen = rng.choice(weights.size, count, p=weights)
            self.points = [
                np.concatenate([x, sample.paths[k][chosen]]) for x, k in zip(self.points, places, strict=True)
            ]
            self.laws.append(slice(some.size, some.size + count))
        self.rows = self._rows(run)
        self.sizes = self._norms(self.rows)

    def _rows(self, run: Run) -> Rows:
        return [evaluate(run, float(s), x) for s, x in zip(self.times, self.points, strict=True)]

    def _norms(self, rows: Rows) -> FloatArray:
        """The largest over time of the norms of value and policy under each law, (laws, 2); nan left out."""
        problem = self.equation.problem
        found = np.zeros((len(self.laws), 2))
        for s, x, (v, g) in zip(self.times, self.points, rows, strict=True):
            known = np.isfinite(v) & np.isfinite(g).all(axis=1)
            squares = np.zeros((2, len(x)))
            squares[0, known] = v[known] ** 2
            Lambda = problem.Lambda(problem.horizon - s, x[known])
            squares[1, known] = np.einsum("ni,nij,nj->n", g[known], Lambda, g[known])
            for law, draws in enumerate(self.laws):
                norms = np.sqrt(np.maximum(squares[:, draws].sum(axis=1), 0.0) / max(int(known[draws].sum()), 1))
                found[law] = np.maximum(found[law], norms)
        return found

    def difference(self, one: Run, other: Run) -> tuple[float, float]:
        """Relative differences of value and policy, the larger of those under P and P*; inf for a run that failed."""
        if one.complaint or other.complaint:
            return math.inf, math.inf
        first = self.rows if one is self.run else self._rows(one)
        second = self.rows if other is self.run else self._rows(other)
        gaps = [(a[0] - b[0], a[1] - b[1]) for a, b in zip(first, second, strict=True)]
        width = float((np.ptp(np.stack(self.equation.box.bounds), axis=0) / self.equation.metric).max())
        floor = _NOTHING * self.equation.problem.temperature * np.array([1.0, 1.0 / width])
        value, policy = (self._norms(gaps) / np.maximum(self.sizes, floor)).max(axis=0).tolist()
        return value, policy

    def parts(self, coefficients: Coefficients, enough: float) -> Parts:
        """The parts of the error, (value, policy) each.

        enough : what makes no trouble. Steps twice as long may be less stable on a poorer grid, which is no error of
        the run's: a part of space that exceeds this is measured again with the run's own steps.
        """
        steps: Steps = merged
        other = followed(self.run, coefficients, steps)
        gain = 1.0 / _ORDER_GAIN
        base = other
        if other.complaint:  # steps as they are are the longest that are stable: see what shorter ones change
            other, steps, base, gain = followed(self.run, coefficients, cut(2)), cut(1), self.run, _FROM_SHORTER
        value, policy = self.difference(self.run, other)
        found: Parts = {"time": (gain * value + self.run.misfit, gain * policy + self.run.misfit)}
        poorer = followed(self.run, coefficients, steps, less=LESS[self.equation.problem.dim])
        found["space"] = self._space(base, poorer)
        if max(found["space"]) > enough and base is not self.run:
            poorer = followed(self.run, coefficients, cut(1), less=LESS[self.equation.problem.dim])
            found["space"] = min(found["space"], self._space(self.run, poorer), key=max)
        if self.equation.truncated.any():
            found["truncation"] = self._truncation(base, coefficients, steps)
        return found

    def _truncation(self, base: Run, coefficients: Coefficients, steps: Steps) -> tuple[float, float]:
        """Of a wider box; where more happens than the steps can follow, they are cut."""
        wider = followed(self.run, coefficients, steps, wider=WIDER)
        for parts in (1, 2, 4, 8):
            if not wider.complaint:
                break
            base, wider = self.run, followed(self.run, coefficients, cut(parts), wider=WIDER)
        return self.difference(base, wider)

    def _space(self, longer: Run, poorer: Run) -> tuple[float, float]:
        """Of elements of fewer degrees, times how much better those of the run are by what they do not resolve."""
        value, policy = self.difference(longer, poorer)
        if poorer.complaint:
            return value, policy
        better = float(np.clip(_DOUBT * self.run.tails / max(poorer.tails, 1e-300), _LEAST_GAIN, 1.0))
        return better * value, better * policy


def evaluate(run: Run, s: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """v (n,) and grad v (n, d) at points and a time to go; nan outside the box and where there is no logarithm."""
    equation = run.equation
    problem, gauge = equation.problem, equation.gauge
    t = problem.horizon - s
    panel = next(panel for panel in run.panels if s <= panel.ends[-1] * (1 + 1e-12) or panel is run.panels[-1])
    lines = panel.grid.lines
    found = [line.locate(x[:, k]) for k, line in enumerate(lines)]
    outside = np.any([cells < 0 for cells, _ in found], axis=0)
    index, tables = [], []
    for k, (line, (cells, xi)) in enumerate(zip(lines, found, strict=True)):
        tables.append(line.tabulate(np.maximum(cells, 0), xi, 1))
        dofs = line.cell_dofs[np.maximum(cells, 0)]
        index.append(dofs.reshape(len(x), *[-1 if m == k else 1 for m in range(len(lines))]))
    values, slopes = contract_axes(panel.at(s)[tuple(index)], tables)
    values[outside] = np.nan
    if equation.linear:
        values[values <= 0] = np.nan
        logs = problem.temperature * np.log(values)
        return gauge.guess(t, x) + logs, gauge.guess_gradient(t, x) + problem.temperature * slopes / values[:, None]
    return gauge.guess(t, x) + values, gauge.guess_gradient(t, x) + slopes
