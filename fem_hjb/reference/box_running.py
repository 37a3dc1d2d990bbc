r"""Running rewards that jump in space: averages over elements, and steps that take what is rough of them exactly.

Against the functions phi_i of the nodes a reward r is int phi_i r / int phi_i, as Galerkin's method has it: values at
nodes do not know where between two of them a jump is. Lawson's method meets what is rough outside of S to the first
order of steps only, as exp(h S) r is not smooth in h. In the linear form, on a line, r is part of S. In the value form
it is a source, -d_t w = S w + r + N(w), and steps are made for z = w - p, with (mu - S) p = r:

    -d_t z = S z + S p + r + N(z + p) = S z + mu p + N(z + p),

whose source mu p is two derivatives smoother than r; and exp(h S) takes p out of what a panel begins with exactly.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import numpy as np

from fem_hjb.paths.extent import LawSample
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_averages import averages
from fem_hjb.reference.box_coefficients import CHUNK, Coefficients, Table, by_field, inside, lobatto
from fem_hjb.reference.box_faces import SeparableInverse, panel_of
from fem_hjb.reference.box_panel import Equation, Grid, Operators
from fem_hjb.spaces.axes import apply_sum, in_blocks
from fem_hjb.stepping.adaptive import Panel, Size, Step
from fem_hjb.stepping.lawson import LawsonPanel
from fem_hjb.support.checks import FloatArray

_RATE = 20.0  # times 1 / T: mu
_SEGMENTS, _ALONG = 256, 17  # between draws; points of each, to begin with
_TIMES = 5  # of the law, first and last among them
_HALVINGS, _LOOKED, _SHRINK = 24, 4, 0.3  # of a segment; so many leave less than this of what is continuous
_LEAST = 1e-6  # of the spread of rewards: a smaller jump is none


def jumps_in_space(problem: ControlProblem, sample: LawSample, seed: int) -> bool:
    """Whether the running reward jumps between draws of the law: by bisection along segments, at a few times."""
    if problem.running_reward is None:
        return False
    rng = np.random.default_rng([seed, 2])
    for k in np.unique(np.linspace(0, len(sample.times) - 1, _TIMES).astype(int)).tolist():
        x = sample.x[k]
        a, b = x[rng.integers(0, len(x), (2, _SEGMENTS))]
        if _jumps(partial(problem.r, float(sample.times[k])), a, b):
            return True
    return False


def _jumps(r: Callable[[FloatArray], FloatArray], a: FloatArray, b: FloatArray) -> bool:
    """Whether r jumps on a segment from a (n, d) to b: halved around the most of its changes, these do not shrink."""
    share = np.linspace(0.0, 1.0, _ALONG)[:, None]
    values = r((a[:, None] + share * (b - a)[:, None]).reshape(-1, a.shape[1])).reshape(len(a), _ALONG)
    most, rows = np.abs(np.diff(values)).argmax(axis=1), np.arange(len(a))
    a, b = a + share[most] * (b - a), a + share[most + 1] * (b - a)
    left, right = values[rows, most], values[rows, most + 1]
    spread = float(np.ptp(values))
    for k in range(_HALVINGS):
        if k % _LOOKED == 0:
            before = np.abs(right - left)
        middle = 0.5 * (a + b)
        value = r(middle)
        lower = np.abs(value - left) >= np.abs(right - value)
        a, b = np.where(lower[:, None], a, middle), np.where(lower[:, None], middle, b)
        left, right = np.where(lower, left, value), np.where(lower, value, right)
        if k % _LOOKED == _LOOKED - 1:
            kept = np.abs(right - left) > np.maximum(_SHRINK * before, _LEAST * spread)
            if not kept.any():
                return False
            a, b, left, right = a[kept], b[kept], left[kept], right[kept]
    return True


def sources_of(of: Coefficients, grid: Grid, times: Sequence[float]) -> FloatArray:
    """What running rewards are in the equation, averaged over elements, at times t (q,): (q, *shape)."""
    rows: list[FloatArray] = []
    before: FloatArray | None = None
    for t in times:
        at = of.reward_at(t, grid.nodes)
        same = before is not None and np.array_equal(at, before)
        rows.append(rows[-1] if same else averages(grid, partial(of.reward_at, t)))
        before = at
    return np.stack(rows)


def table_on(of: Coefficients, grid: Grid, s0: float, s1: float, count: int, *, rough: bool, single: bool) -> Table:
    """The coefficients at so many times of [s0, s1] on a grid; running rewards averaged, if they are rough."""
    moments = of.problem.horizon - inside(s0, s1, lobatto(count))
    times = moments.tolist()
    if single and not rough and count > 1 and count * grid.size > CHUNK:
        return _in_single(of, grid, s0, s1, times)
    if count * grid.size <= CHUNK:
        values = [field.reshape(count, *grid.shape) for field in by_field(of.over(moments, grid.nodes))]
    else:
        values = [np.empty((count, *grid.shape)) for _ in of.names]
        for k, t in enumerate(times):
            of.into([field[k].reshape(-1) for field in values], t, grid.nodes)
    sources = sources_of(of, grid, times) if rough else None
    if sources is not None:
        for row, source, t in zip(values[grid.dim], sources, times, strict=True):
            row += source - of.reward_at(t, grid.nodes).reshape(grid.shape)
    return Table(s0, s1, values, single=single, sources=sources)


def _in_single(of: Coefficients, grid: Grid, s0: float, s1: float, times: Sequence[float]) -> Table:
    """The same, of which no more than two times are ever held in double precision."""
    shared, there = ([np.empty(grid.shape) for _ in of.names] for _ in range(2))
    kind: type = np.float32
    values: list[FloatArray] = [np.zeros((len(times), *grid.shape), kind) for _ in of.names]
    middle = len(times) // 2
    of.into([field.reshape(-1) for field in shared], times[middle], grid.nodes)
    for k, t in enumerate(times):
        if k != middle:
            of.into([field.reshape(-1) for field in there], t, grid.nodes)
            for field, here, common in zip(values, there, shared, strict=True):
                np.subtract(here, common, out=field[k], casting="same_kind")
    return Table(s0, s1, values, single=True, shared=shared)


def method_of(equation: Equation, operators: Operators, size: Size) -> Panel:
    """The method for a panel: that for rough sources in the value form, or else as usual."""
    sources = operators.table.sources
    if sources is None or equation.linear:
        return panel_of(equation, operators, size)
    return SourcedPanel(operators, sources[len(sources) // 2], equation.problem.horizon, size)


@final
class SourcedPanel:
    """Lawson's method for w of an equation whose source is rough: that for z = w - p."""

    def __init__(self, operators: Operators, source: FloatArray, horizon: float, size: Size) -> None:
        mu = _RATE / horizon
        inverse = SeparableInverse(operators.separable, [line.weights for line in operators.grid.lines])
        self.p = inverse(source / mu, 1.0 / mu)
        moved = apply_sum([in_blocks(S, len(operators.separable)) for S in operators.separable], self.p)
        self._inner = LawsonPanel(
            operators.separable, lambda s, z: operators.remainder(s, z + self.p) + moved, size, damped=operators.damped
        )
        self.size, self.counts, self.forget = size, self._inner.counts, self._inner.forget

    def first(self, s: float, u: FloatArray) -> FloatArray:
        return self._inner.first(s, u - self.p)

    def slope(self, u: FloatArray, left: FloatArray) -> FloatArray:
        return self._inner.slope(u - self.p, left)

    def eased(self, h: float, u0: FloatArray, u1: FloatArray, slope: FloatArray) -> FloatArray:
        return self._inner.eased(h, u0, u1, slope)  # p leaves no trace in differences

    def step(self, s: float, h: float, u: FloatArray, k1: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        z, k5, wrong = self._inner.step(s, h, u - self.p, k1)
        return z + self.p, k5, wrong

    def middle(self, h: float, step: Step, k1: FloatArray, k5: FloatArray) -> FloatArray:
        """w in the middle of a step, by one half as long."""
        moved = Step(step.s, step.h, step.u0 - self.p, step.slope0, step.u1 - self.p, step.slope1)
        return self._inner.middle(h, moved, k1, k5) + self.p
