r"""The equation of a box on one panel of time, on one grid: the separable part and the rest, as `lawson` asks.

On a tensor grid of spectral elements, D_k the averaged derivative along axis k and D2_k the weak Laplacian,

    S = sum_k  [ b_k(x_k) D_k + lambda_k(x_k) D2_k / 2 (+ rate_k(x_k)) ]

takes the averages of the coefficients over the other axes in the middle of the panel. The rest is what they leave, and
in the value form the quadratic term <Lambda grad w, grad w> / (2 alpha); see `box_coefficients` for the equations.

Faces of a truncation are open where the drift points inwards on all of them: nothing diffuses across, the rows of D2_k
are zero there. That makes no boundary layer, and is stable as nothing comes from outside. Elsewhere faces have the
natural condition d w/dn = 0.

In the value form it is the drift under the policy that counts, b + Lambda grad v / alpha. Where the law hardly goes it
may point outwards, and steep values run away there. A tamed equation (`box_taming`) has flatter rewards at T and damped
elements where no path goes, and guarded faces: they are open only if this drift, too, points inwards as a panel
begins; where it points outwards, what it brings is the natural condition, not the slope from inside. Elsewhere that
makes a kink, which moves inwards: an equation is tamed only where steps collapse.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from itertools import combinations
from typing import final

import numpy as np

from fem_hjb.paths.extent import Reach
from fem_hjb.problems.box import BoolArray, Box
from fem_hjb.problems.gauge import Gauge, QuadraticGauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_coefficients import Table
from fem_hjb.reference.box_taming import damping, flattened
from fem_hjb.spaces.axes import AxisMatrix, apply_axis, in_blocks, parts_of, tensor_points
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.threads import for_each

Payoff = Callable[[FloatArray], FloatArray]
Fields = Sequence[FloatArray]  # those of a table at a time, each (*shape)

_STEEPEST = 4.0  # standard deviations between the middle of a box and its faces, of the weight of separable averages
_ROUNDING = 1e-14  # of what S takes out
_DIFFUSIVE = 0.6  # of its maximum over the other axes: the least diffusion of the separable part, for stability


@final
@dataclass(frozen=True, eq=False)
class Grid:
    """A tensor grid and, per axis, the weights (n_k,) of a probability along it: products of the law's marginals.

    floor : of its peak, the least weight that a density has where it is asked what the grid resolves.
    """

    lines: tuple[SpectralLine, ...]
    masses: tuple[FloatArray, ...]
    floor: float

    @property
    def dim(self) -> int:
        return len(self.lines)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(line.n for line in self.lines)

    @cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nodes(self) -> FloatArray:
        """(n, d)."""
        return self.nodes_of(slice(None))

    def nodes_of(self, rows: slice) -> FloatArray:
        """Those of a part of the first axis."""
        first, *others = (line.nodes for line in self.lines)
        return tensor_points([first[rows], *others])

    @cached_property
    def basis(self) -> SpectralBasis:
        return SpectralBasis(self.lines)

    def forget(self) -> None:
        """Let go of the basis, whose tables are as large as three arrays of nodes."""
        self.__dict__.pop("basis", None)

    @cached_property
    def parts(self) -> list[slice]:
        """Of the first axis, as threads share them out."""
        return parts_of(self.shape[0], self.size)

    def mean(self, values: FloatArray) -> float:
        """Of values (*shape) under the weights."""
        return self.mean_of(lambda rows: values[rows])

    def mean_of(self, values: Callable[[slice], FloatArray]) -> float:
        """The same, of values that are made for a part of the first axis at a time."""
        first, *others = self.masses
        if not others:
            return float(first @ values(slice(None)))
        inner = np.empty(len(first))

        def contract(rows: slice) -> None:
            inner[rows] = reduce(lambda array, w: array @ w, reversed(others), values(rows))

        for_each(self.parts, contract)
        return float((first @ inner[:, None]).item())

    def along(self, values: FloatArray, axis: int) -> FloatArray:
        """Values (n_axis,) along an axis, to be broadcast."""
        return values.reshape([-1 if k == axis else 1 for k in range(self.dim)])


@final
@dataclass(frozen=True, eq=False)
class Equation:
    """What is solved: the problem, what is taken out, where, and where the process goes.

    levels : between which w at T is as given if the value form is tamed; beyond them no path should end.
    payoff : what u is at T in the linear form, of any sign; None: exp((y - v0) / alpha), and its logarithm is wanted.
    averaged : whether u begins with averages over elements, not with values at nodes.
    deeper : by how many halvings more these averages are taken.
    rough : whether the running reward jumps in space, and is averaged, too.
    """

    problem: ControlProblem
    gauge: Gauge | QuadraticGauge
    linear: bool
    box: Box
    truncated: BoolArray
    reaches: tuple[Reach, ...]
    jumps: tuple[float, ...]
    floor: float
    levels: tuple[float, float] | None = None
    payoff: Payoff | None = None
    averaged: bool = False
    deeper: int = 0
    rough: bool = False

    @property
    def logarithmic(self) -> bool:
        """Whether log u is wanted, not u or w itself."""
        return self.linear and self.payoff is None

    @property
    def metric(self) -> FloatArray:
        """(d,): what the derivatives along the axes are multiplied with in grad' Lambda grad, roots of Lambda_kk."""
        problem = self.problem
        Lambda = problem.constant_diffusion
        if Lambda is None:
            x = self.reaches[0].median
            Lambda = problem.Lambda(0.5 * problem.horizon, x).mean(axis=0)
        return np.sqrt(np.diag(Lambda))

    @property
    def absorbing(self) -> BoolArray:
        """(2, d): the faces at which the process is stopped."""
        return self.box.where("absorbing")

    def at_end(self, x: FloatArray) -> FloatArray:
        """w or u at T (n,)."""
        if self.payoff is not None:
            return self.payoff(x)
        return np.exp(self.left(x) / self.problem.temperature) if self.linear else self.left(x)

    def left(self, x: FloatArray) -> FloatArray:
        """y - v0 at T (n,), or flattened: f_t(x) loses or gains a part of what comes from paths that end beyond."""
        values = self.problem.y(x) - self.gauge.guess(self.problem.horizon, x)
        return values if self.levels is None else flattened(values, *self.levels)


@final
class Operators:
    """S and N of a panel, norms, and what is prescribed.

    table : not settled yet, with drift (d fields), reward, and the upper triangle of Lambda if it varies, on the grid.
    constant : Lambda if it does not vary.
    truncated : (2, d), the faces at which the box ends but the process does not.
    begun : w (*shape) with which the panel begins, in a tamed value form.
    damped : what steps end with in a tamed value form.
    """

    def __init__(
        self,
        grid: Grid,
        table: Table,
        constant: FloatArray | None,
        truncated: BoolArray,
        alpha: float,
        linear: bool,
        metric: FloatArray,
        begun: FloatArray | None = None,
    ) -> None:
        self.grid, self.table, self.constant, self.alpha, self.linear = grid, table, constant, alpha, linear
        self.metric = metric
        d = grid.dim
        self.D: list[AxisMatrix] = [in_blocks(line.derivative, d) for line in grid.lines]
        self._upper = {(i, j): d + 1 + n for n, (i, j) in enumerate((i, j) for i in range(d) for j in range(i, d))}
        inward = self._inward(begun)
        open_ = truncated & inward
        self._guarded = [] if begun is None else [(k, -side) for side, k in np.argwhere(truncated).tolist()]
        plain = d == 1 and constant is not None and not linear and begun is None
        self._plain = float(constant[0, 0]) / (2 * alpha) if plain and constant is not None else None  # on a line
        self.damped = None if begun is None else damping(grid.lines, grid.masses, grid.floor)
        self.inner = [np.ones(n) for n in grid.shape]
        for k in range(d):
            self.inner[k][[0, -1]] = np.where(open_[:, k], 0.0, 1.0)
        second = [inner[:, None] * line.laplacian for inner, line in zip(self.inner, grid.lines, strict=True)]
        self.second: list[AxisMatrix] = [in_blocks(matrix, d) for matrix in second]
        self._averages = [_broad(line) for line in grid.lines]
        self._pairs = list(combinations(range(d), 2))
        self._closed = {(k, m): grid.along(self.inner[k], k) * grid.along(self.inner[m], m) for k, m in self._pairs}
        self._freeze(second)
        table.settle()

    @classmethod
    def of(cls, equation: Equation, grid: Grid, table: Table, begun: FloatArray) -> "Operators":
        """Those of an equation, on a panel that begins with w or u (*shape)."""
        problem = equation.problem
        how = problem.constant_diffusion, equation.truncated, problem.temperature, equation.linear, equation.metric
        return cls(grid, table, *how, begun if equation.levels is not None else None)

    def coefficients(self, k: int) -> FloatArray:
        """(m, *shape), the table at the k-th of its times, as it was before S was taken out."""
        fields = self.table.row(k)
        for axis, taken in enumerate(self._taken_of):
            for place, part in taken.items():
                fields[place] += self.grid.along(part, axis)
        return fields

    def _inward(self, begun: FloatArray | None) -> BoolArray:
        """(2, d): the faces on which the drift points inwards everywhere, at all times of the table."""
        d, slopes = self.grid.dim, None if begun is None else self.gradient(begun)
        result = np.ones((2, d), dtype=np.bool_)
        for k in range(d):
            for side, end in enumerate((0, -1)):
                face = (slice(None),) * k + (end,)
                speed = self.table.unsettled(k, face)
                if slopes is not None:
                    speed = speed + self._pushed(k, face, [slope[face] for slope in slopes]) / self.alpha
                result[side, k] = (speed <= 0 if side else speed >= 0).all()
        return result

    def _pushed(self, k: int, face: tuple[int | slice, ...], slopes: Sequence[FloatArray]) -> FloatArray:
        """(Lambda grad w)_k on a face as a panel begins, of a table that is not settled."""
        rows = [self._upper[min(k, m), max(k, m)] for m in range(self.grid.dim)]
        constant = self.constant
        Lambda = [self.table.unsettled(row, face)[0] for row in rows] if constant is None else list(constant[k])
        return np.asarray(sum(part * slope for part, slope in zip(Lambda, slopes, strict=True)))

    def _freeze(self, second: Sequence[FloatArray]) -> None:
        """Make S, and take it out of the table."""
        grid, d = self.grid, self.grid.dim
        middle = self.table.middle()
        self.separable: list[FloatArray] = []
        self.axes: list[AxisMatrix] = []  # the same
        self._taken: list[FloatArray] = []  # of the diagonal of Lambda
        self._taken_of: list[dict[int, FloatArray]] = []  # of each field
        for k in range(d):
            drift = self.main_effect(middle[k], k)
            outwards = [end for axis, end in self._guarded if axis == k and (drift[end] > 0) == (end < 0)]
            drift[outwards] = 0.0  # what points inwards may be as stiff as it likes
            diffusion = self._frozen_diffusion(middle, k)
            S = drift[:, None] * grid.lines[k].derivative + 0.5 * diffusion[:, None] * second[k]
            taken = {k: drift}
            if self.constant is None:
                taken[self._upper[k, k]] = diffusion
            if self.linear:
                rate = self.main_effect(middle[d], k)
                S = S + np.diag(rate)
                middle[d] -= grid.along(rate, k)  # so that constants go to one axis only
                taken[d] = rate
            self.table.take_out({place: grid.along(part, k) for place, part in taken.items()})
            self.separable.append(S)
            self.axes.append(in_blocks(S, d))
            self._taken.append(diffusion)
            self._taken_of.append(taken)

    def _frozen_diffusion(self, middle: Fields, k: int) -> FloatArray:
        """(n_k,)."""
        if self.constant is not None:
            return np.full(self.grid.shape[k], self.constant[k, k])
        part = middle[self._upper[k, k]]
        others = tuple(i for i in range(self.grid.dim) if i != k)
        return np.asarray(np.maximum(self.main_effect(part, k), _DIFFUSIVE * part.max(axis=others)))

    def main_effect(self, values: FloatArray, axis: int) -> FloatArray:
        """Averages (n_axis,) over the other axes."""
        others = [w for k, w in enumerate(self._averages) if k != axis]
        moved = np.moveaxis(values, axis, -1)
        return np.array(reduce(lambda array, w: np.tensordot(w, array, (0, 0)), others, moved))

    def gradient(self, u: FloatArray) -> list[FloatArray]:
        """The derivatives along the axes."""
        return [apply_axis(D, u, k) for k, D in enumerate(self.D)]

    def remainder(self, s: float, u: FloatArray) -> FloatArray:
        """N(s, u)."""
        fields, slopes = self.table.at(s), self.gradient(u)
        if self._plain is not None:  # calls take longer than what they do
            return np.asarray((slopes[0] * self._plain + fields[0]) * slopes[0] + fields[1])
        result = np.empty(self.grid.shape, u.dtype)
        work = partial(self._transported, fields, u) if self.linear else partial(self._steered, fields)
        for_each(self.grid.parts, lambda rows: work(slopes, rows, result[rows]))
        self.add_second_order(fields, u, slopes, result)
        for k, end in self._guarded:
            self._guard(fields, slopes, k, end, result)
        return result

    def _guard(self, fields: Fields, slopes: list[FloatArray], k: int, end: int, result: FloatArray) -> None:
        """Take out what the slope across a face does where the drift points outwards; the slope is changed, too."""
        face = (slice(None),) * k + (end,)
        parts = [self._on_face(fields, k, m, end) * slope[face] / self.alpha for m, slope in enumerate(slopes)]
        speed = fields[k][face] + self._taken_of[k][k][end] + sum(parts)
        across = slopes[k][face]
        outwards = speed > 0 if end else speed < 0
        result[face] -= np.where(outwards, across * (speed - 0.5 * parts[k]), 0.0)
        slopes[k][face] = np.where(outwards, 0.0, across)

    def _transported(
        self, fields: Fields, u: FloatArray, slopes: list[FloatArray], rows: slice, result: FloatArray
    ) -> None:
        """rate u + <b, grad u> on a part of the first axis."""
        np.multiply(fields[self.grid.dim][rows], u[rows], out=result)
        for b, slope in zip(fields, slopes, strict=False):
            result += b[rows] * slope[rows]

    def _steered(self, fields: Fields, slopes: list[FloatArray], rows: slice, result: FloatArray) -> None:
        """alpha rate + <b + Lambda grad w / (2 alpha), grad w> on a part of the first axis."""
        d = self.grid.dim
        result[:] = fields[d][rows]
        buffer = np.empty_like(result)
        for k, slope in enumerate(slopes):
            if self.constant is not None:
                np.multiply(slope[rows], float(self.constant[k, k]) / (2 * self.alpha), out=buffer)
                for m in range(k + 1, d):
                    if self.constant[k, m]:
                        buffer += (float(self.constant[k, m]) / self.alpha) * slopes[m][rows]
            else:
                np.multiply(self._varying(fields, k, k, rows), slope[rows], out=buffer)
                buffer *= 0.5
                for m in range(k + 1, d):
                    buffer += self._varying(fields, k, m, rows) * slopes[m][rows]
                buffer /= self.alpha
            buffer += fields[k][rows]
            buffer *= slope[rows]
            result += buffer

    def steered(self, s: float, w: FloatArray) -> list[FloatArray]:
        """b + Lambda grad w / alpha along each axis (*shape), without what S has of it."""
        fields, slopes, everywhere = self.table.at(s), self.gradient(w), slice(None)
        result = []
        for k in range(self.grid.dim):
            total = fields[k].astype(np.float64)
            for m, slope in enumerate(slopes):
                if self.constant is not None:
                    total += (self.constant[k, m] / self.alpha) * slope
                else:
                    total += self._varying(fields, min(k, m), max(k, m), everywhere) * slope / self.alpha
            result.append(total)
        return result

    def _varying(self, fields: Fields, k: int, m: int, rows: slice) -> FloatArray:
        """Lambda_km on a part of the first axis, what was taken out of it put back."""
        part = fields[self._upper[k, m]][rows]
        if k != m:
            return part
        return np.asarray(part + self.grid.along(self._taken[k] if k else self._taken[k][rows], k))

    def _on_face(self, fields: Fields, k: int, m: int, end: int) -> FloatArray:
        """Lambda_km at the first or last nodes of axis k."""
        if self.constant is not None:
            return np.asarray(self.constant[k, m])
        part = fields[self._upper[min(k, m), max(k, m)]][(slice(None),) * k + (end,)]
        return np.asarray(part + self._taken[k][end] if k == m else part)

    def add_second_order(self, fields: Fields, u: FloatArray, slopes: list[FloatArray], result: FloatArray) -> None:
        """Add what S leaves of 1/2 Tr(Lambda Hess u)."""
        grid = self.grid
        for k, m in self._pairs:
            if (factor := self.mixed_factor(fields, k, m)) is not None:
                mixed = apply_axis(self.D[k], slopes[m], k)
                mixed *= factor
                result += mixed
        if self.constant is None:
            for k in range(grid.dim):
                result += 0.5 * self.diffusion_left(fields, k) * apply_axis(self.second[k], u, k)

    def mixed_factor(self, fields: Fields, k: int, m: int) -> FloatArray | None:
        """Lambda_km, which nothing has on open faces; None if it is 0."""
        if self.constant is not None and not self.constant[k, m]:
            return None
        factor = self.constant[k, m] if self.constant is not None else fields[self._upper[k, m]]
        return np.asarray(factor * self._closed[k, m])

    def diffusion_left(self, fields: Fields, k: int) -> FloatArray:
        """What S leaves of Lambda_kk, if it varies."""
        return np.asarray(fields[self._upper[k, k]])

    def left(self) -> list[bool]:
        """For each field whether S leaves more than rounding of it."""
        rows = [self.table.row(k) for k in range(len(self.table.nodes))]
        most = np.max([np.abs(row).reshape(len(row), -1).max(axis=1) for row in rows], axis=0)
        taken = np.zeros(most.size)
        for of in self._taken_of:
            for place, part in of.items():
                taken[place] = max(taken[place], float(np.abs(part).max()))
        found: list[bool] = (most > _ROUNDING * taken).tolist()
        return found

    def policy_square(self, s: float, slopes: Sequence[FloatArray]) -> float:
        """The mean of grad' Lambda grad under the weights of the grid."""
        fields = [] if self.constant is not None else self.table.at(s)

        def square(rows: slice) -> FloatArray:
            parts, result = [slope[rows] for slope in slopes], np.zeros(slopes[0][rows].shape)
            for k, m in [*((k, k) for k in range(self.grid.dim)), *self._pairs]:
                factor = self._varying(fields, k, m, rows) if self.constant is None else self.constant[k, m]
                if self.constant is None or factor:
                    result += (1.0 if k == m else 2.0) * factor * parts[k] * parts[m]
            return result

        return max(self.grid.mean_of(square), 0.0)

    def root_mean_square(self, u: FloatArray) -> float:
        """The norm of u under the weights of the grid."""
        return math.sqrt(self.grid.mean_of(lambda rows: u[rows] * u[rows]))

    def sizes(self, s: float, u: FloatArray) -> tuple[float, float]:
        """The norms of u and, in the metric of Lambda, of its gradient."""
        return self.root_mean_square(u), self.policy_square(s, self.gradient(u)) ** 0.5


def _broad(line: SpectralLine) -> FloatArray:
    """Weights of the averages that make up the separable part: a Gaussian, of a quarter of the half-width."""
    low, high = line.bounds
    weights = line.weights * np.exp(-0.5 * (_STEEPEST * (2.0 * line.nodes - low - high) / (high - low)) ** 2)
    return np.asarray(weights / weights.sum())
