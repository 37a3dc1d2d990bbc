r"""Coefficients of the equation on a box: counted, told where they jump in time, and tabulated in time on a grid.

In the value form v = v0 + w, v0 the background of a gauge, and in the linear one f = exp(v0 / alpha) u,

    d_s w = <b + Lambda grad v0 / alpha, grad w> + 1/2 Tr(Lambda Hess w) + alpha rate + grad w' Lambda grad w / 2 alpha,
    d_s u = <b + Lambda grad v0 / alpha, grad u> + 1/2 Tr(Lambda Hess u) + rate u,         s = T - t.

A user's callables are called at a few times of each panel of time only, and are interpolated between them by
polynomials. How many times are needed is seen at points drawn from where the process goes, at times in between.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.paths.breaks import all_times, fields_of, jumps_of
from fem_hjb.problems.gauge import Background
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_speed import LOWER, tamed
from fem_hjb.reference.faces import moved_to_faces
from fem_hjb.spaces.axes import barycentric_rows, copy_to, parts_of
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import EllipticityError
from fem_hjb.support.threads import for_each

CHUNK = 1 << 15  # points given to a callable at once: what is made of them stays in the cache
_STACKED = 1 << 13  # of these, what is made of them at once
_SCAN_POINTS = 24
_COUNTS = (2, 3, 4, 5, 7, 9, 11, 13, 17)  # times of a table
_TOLD = 3.0  # intervals of a table, that a step may span
_EDGE = 1e-9  # of a panel: where its ends are looked at, so that jumps there are seen from inside


@final
class Coefficients:
    """What a problem and a background give, and what that cost: calls, points, seconds of the user's callables."""

    def __init__(self, problem: ControlProblem, background: Background, linear: bool) -> None:
        self.problem, self.background, self.linear = problem, background, linear
        self.dim = problem.dim
        self.constant = problem.constant_diffusion
        self.metric, self.most = np.ones(self.dim), math.inf  # of drifts (`box_speed`)
        self.calls = self.points = 0
        self.seconds = 0.0
        self.names = ["drift"] * self.dim + ["reward"]
        if self.constant is None:
            self.names += ["diffusion"] * (self.dim * (self.dim + 1) // 2)

    def at(self, t: float, x: FloatArray) -> FloatArray:
        """(m, n): drift of w or u, b + Lambda grad v0 / alpha; reward, alpha rate or rate; and, if it varies, the upper
        triangle of Lambda, at points x (n, d)."""
        result = np.empty((len(self.names), len(x)))
        self.into(list(result), t, x)
        return result

    def into(self, result: Sequence[FloatArray], t: float, x: FloatArray) -> None:
        """The same, each field (n,) written where it is to go."""
        for first in range(0, len(x), CHUNK):
            part = slice(first, first + CHUNK)
            self._put([field[part] for field in result], t, x[part], *self._call(t, x[part]))

    def _put(
        self, result: Sequence[FloatArray], t: float, x: FloatArray, b: FloatArray, r: FloatArray, Lambda: FloatArray
    ) -> None:
        """`_stacked`, in parts."""

        def put(first: int) -> None:
            part = slice(first, first + _STACKED)
            rows = self._stacked(t, x[part], b[part], r[part], Lambda[part])
            for field, values in zip(result, rows, strict=True):
                field[part] = values

        for_each(range(0, len(x), _STACKED), put)

    def over(self, times: FloatArray, x: FloatArray) -> FloatArray:
        """(k, m, n) at times (k,), each at all points, which are few: the callables are called once."""
        b, r, Lambda = self._call(*all_times(times, x))
        return self._stacked(times[:, None], x, b, r, Lambda)

    def slower(self) -> "Coefficients":
        """The same, with drifts that are tamed at a lower speed."""
        other = copy(self)
        other.most, other.calls, other.points, other.seconds = LOWER * self.most, 0, 0, 0.0
        return other

    def spent(self, other: "Coefficients") -> None:
        """What slower ones have cost, too."""
        self.calls, self.points, self.seconds = (
            self.calls + other.calls,
            self.points + other.points,
            self.seconds + other.seconds,
        )

    def reward_at(self, t: float, x: FloatArray) -> FloatArray:
        """The running reward as part of its field (n,), at points x (n, d)."""
        return self.problem.r(t, x) / self.problem.temperature if self.linear else self.problem.r(t, x)

    def _call(self, t: ArrayLike, x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Drift, running reward and Lambda as the user gives them."""
        begun = time.perf_counter()
        result = self.problem.b(t, x), self.problem.r(t, x), self.problem.Lambda(t, x)
        self.seconds += time.perf_counter() - begun
        self.calls += 1
        self.points += x.size // self.dim
        b, r, Lambda = result
        return (b if math.isinf(self.most) else tamed(b, self.metric, self.most)), r, Lambda

    def _stacked(self, t: ArrayLike, x: FloatArray, b: FloatArray, r: FloatArray, Lambda: FloatArray) -> FloatArray:
        """(..., m, n), as `at`, from what the user gives at a time, or at times (k, 1), (..., n)."""
        problem, background, constant = self.problem, self.background, self.constant
        if constant is None:
            check_elliptic(Lambda, x, t)
        rate = background.rate(t, x, r, b, Lambda)
        slope = background.guess_gradient(t, x)
        if slope.any():
            pushed = slope @ constant if constant is not None else np.einsum("...nij,...nj->...ni", Lambda, slope)
            b = b + pushed / background.temperature
        if not self.linear:
            rate = problem.temperature * rate
        upper = [] if constant is not None else [Lambda[..., i, j] for i in range(self.dim) for j in range(i, self.dim)]
        return np.stack([*np.moveaxis(b, -1, 0), rate, *upper], axis=-2)

    def jumps(self, x: FloatArray) -> list[float]:
        """The times at which a coefficient or an exit reward jumps, seen at points x (n, d) at 257 times.

        Narrower windows are missed.
        """
        points = x[:: max(1, len(x) // _SCAN_POINTS)]
        faces = moved_to_faces(self.problem, points)

        def rows(times: FloatArray) -> FloatArray:
            b, r, Lambda = self._call(*all_times(times, points))
            parts = [fields_of(b, r, Lambda if self.constant is None else None)]
            parts += [self.problem.exit_reward(*all_times(times, face))[:, None] for face in faces]
            return np.concatenate(parts, axis=1)

        return jumps_of(rows, self.problem.horizon)


def check_elliptic(Lambda: FloatArray, x: FloatArray, t: ArrayLike) -> None:
    """EllipticityError that says where, and which eigenvalue, unless all of Lambda (..., n, d, d) are definite.

    x : (n, d).  t : a number, or of shape (k, 1).
    """
    lowest = np.linalg.eigvalsh(Lambda)[..., 0].reshape(-1, len(x))
    if (lowest <= 0).any():
        row, i = np.unravel_index(int(lowest.argmin()), lowest.shape)
        when = float(np.broadcast_to(np.ravel(t), len(lowest))[row])
        raise EllipticityError(
            f"the diffusion is not positive definite at {int((lowest[row] <= 0).sum())} of {len(x)} nodes of the box,"
            f" worst at t={when:.6g}, x={x[i].tolist()}, where its smallest eigenvalue is {lowest[row, i]:.3g}; take a"
            " box without these points, or make the diffusion elliptic there"
        )


@final
class Table:
    """m fields (*shape) on a grid at q times of [s0, s1], and the polynomials through them.

    values : of each field, (q, *shape), to be changed; or what these have more than `shared`.
    single : whether they are kept in single precision in the end, which halves what they take and what it takes to
        interpolate them; where an error of 3e-7, relative to what S leaves of them, does not matter.
    shared : of each field, (*shape), what all times have in common, in double precision, or None.
    """

    def __init__(
        self,
        s0: float,
        s1: float,
        values: Sequence[FloatArray],
        *,
        single: bool = False,
        sources: FloatArray | None = None,
        shared: list[FloatArray] | None = None,
    ) -> None:
        self.s0, self.s1, self.values, self.single, self._shared = s0, s1, list(values), single, shared
        self._kind: type = np.float64  # of what is interpolated
        self.sources = sources  # rewards that jump in space (q, *shape), averaged, as part of a field
        count = len(self.values[0])
        self.nodes = lobatto(count)
        gaps = 4.0 * (self.nodes[:, None] - self.nodes) + np.eye(count)
        self._weights = 1.0 / gaps.prod(axis=1)
        self._last: tuple[float, list[FloatArray]] | None = None  # steps ask twice for each of their times

    @property
    def longest(self) -> float:
        """The longest step: it sees coefficients at three times, and would miss what takes more to interpolate."""
        return _TOLD * (self.s1 - self.s0) / max(len(self.nodes) - 1, 1)

    def unsettled(self, k: int, where: tuple[int | slice, ...]) -> FloatArray:
        """(q, ...), a part of the k-th field at all times."""
        part = self.values[k][(slice(None), *where)]
        return part if self._shared is None else part + self._shared[k][where]

    def middle(self) -> list[FloatArray]:
        """A copy of the fields in the middle of time."""
        moments = [field[len(field) // 2].astype(np.float64) for field in self.values]
        if self._shared is not None:
            for field, shared in zip(moments, self._shared, strict=True):
                field += shared
        return moments

    def take_out(self, parts: Mapping[int, FloatArray]) -> None:
        """Subtract parts, which broadcast against (*shape), from some of the fields."""
        rows = [[field[time] for field in self.values] for time in range(len(self.values[0]))]

        def subtract(row: Sequence[FloatArray]) -> None:
            for k, part in parts.items():
                field = row[k]
                field -= part

        for_each(rows if self._shared is None else [self._shared], subtract)

    def settle(self) -> None:
        """The values are now what they are: keep one of those that do not move."""
        if self._shared is not None:
            for k, shared in enumerate(self._shared):
                moves = self.values[k].any()
                self.values[k] = np.add(self.values[k], shared, out=self.values[k]) if moves else shared[None]
            self._shared = None
        for k, field in enumerate(self.values):
            if len(field) > 1 and all(np.array_equal(row, field[0]) for row in field[1:]):
                self.values[k] = field[:1].copy()
            elif self.single and len(field) > 1:
                self.values[k] = field.astype(np.float32, copy=False)
        self._moving = any(len(field) > 1 for field in self.values)

    def in_single(self) -> "Table":
        """The same, and what is interpolated is in single precision, too."""
        other = copy(self)
        other.values = [field.astype(np.float32, copy=False) for field in self.values]
        other.single, other._kind = True, np.float32
        other.rest()
        return other

    def row(self, k: int) -> FloatArray:
        """(m, *shape) at the k-th of the times."""
        result = np.empty((len(self.values), *self.values[0].shape[1:]))
        for target, field in zip(result, self._kept(k), strict=True):
            copy_to(target, field)
        return result

    def _kept(self, k: int) -> list[FloatArray]:
        return [field[k if len(field) > 1 else 0] for field in self.values]

    def rest(self) -> None:
        """Let go of what was asked for last."""
        self._last = None

    def forget(self) -> None:
        """Let go of all of it."""
        self.values = [np.empty((0, *field.shape[1:])) for field in self.values]
        self.rest()

    def at(self, s: float) -> list[FloatArray]:
        """The m fields (*shape) at time to go s, which nobody is to write to."""
        if self._last is None or (self._last[0] != s and self._moving):
            gaps = (s - self.s0) / (self.s1 - self.s0) - self.nodes
            here = int(np.abs(gaps).argmin())
            if gaps[here] == 0.0 or len(gaps) == 1:
                self._last = s, self._kept(here)
            else:
                quotients = self._weights / gaps
                self._last = (
                    s,
                    self._interpolated((quotients / quotients.sum()).astype(np.float32 if self.single else np.float64)),
                )
        return self._last[1]

    def _interpolated(self, weights: FloatArray) -> list[FloatArray]:
        shape = self.values[0].shape[1:]
        result = [np.empty(shape, self._kind) if len(field) > 1 else field[0] for field in self.values]
        size = math.prod(shape)

        def sum_up(work: tuple[int, slice]) -> None:
            k, part = work
            result[k].reshape(size)[part] = weights @ self.values[k].reshape(-1, size)[:, part]

        moving = [k for k, field in enumerate(self.values) if len(field) > 1]
        for_each([(k, part) for k in moving for part in parts_of(size, size)], sum_up)
        return result


def by_field(rows: FloatArray) -> list[FloatArray]:
    """The values of a table, from those of all fields (q, m, *shape) at a time."""
    return [np.ascontiguousarray(field) for field in np.moveaxis(rows, 1, 0)]


def lobatto(count: int) -> FloatArray:
    """The extrema of a Chebyshev polynomial on [0, 1], the ends a little inside; or the middle for one."""
    if count == 1:
        return np.array([0.5])
    return np.asarray(np.clip((1 - np.cos(np.pi * np.arange(count) / (count - 1))) / 2, _EDGE, 1 - _EDGE))


def times_needed(
    coefficients: Coefficients,
    s0: float,
    s1: float,
    x: FloatArray,
    rtol: float,
    floors: Sequence[float],
    share: Callable[[float], float],
    drawn: int = 0,
) -> tuple[int, float] | None:
    """How many times a table on [s0, s1] needs, and what it misses at points x between them; None: too many.

    floors (m,) : sizes below which each field does not count.
    share : from the size of the reward to the part of the value's gradient that drift and diffusion act on, what is
        taken out of it being exact.
    drawn : how many of the points, the first ones, are drawn from the law.
    """
    T = coefficients.problem.horizon
    most = lobatto(_COUNTS[-1])
    off = np.sort(np.concatenate([[_EDGE, 1 - _EDGE], (most[1:] + most[:-1]) / 2]))
    values = coefficients.over(T - inside(s0, s1, off), x)
    # rewards and drifts far out may be huge: what is drawn from the law is compared with its own size
    groups = [slice(0, drawn), slice(drawn, None)] if 0 < drawn < len(x) else [slice(None)]
    names = np.array(coefficients.names)
    sizes = []
    for group in groups:
        size = np.maximum(np.sqrt((values[..., group] ** 2).mean(axis=(0, 2))), np.asarray(floors))
        for name in set(coefficients.names):  # components of one field are of one size
            size[names == name] = size[names == name].max()
        reward = values[:, names == "reward", group]
        size[names != "reward"] /= share(float(np.sqrt((reward**2).mean())))
        sizes.append(size)

    def missed(predicted: FloatArray) -> float:
        errors = [np.sqrt(((predicted - values)[..., group] ** 2).mean(axis=2)) for group in groups]
        return max(float((error / size).max()) for error, size in zip(errors, sizes, strict=True))

    if missed(values.mean(axis=0, keepdims=True)) < 1e-13:
        return 1, 0.0
    fine = coefficients.over(T - inside(s0, s1, most), x)
    for count in _COUNTS:
        nodes = lobatto(count)
        own = np.tensordot(barycentric_rows(most, nodes), fine, 1)
        found = missed(np.tensordot(barycentric_rows(nodes, off), own, 1))
        if found < rtol:
            return count, found
    return None


def inside(s0: float, s1: float, fractions: FloatArray) -> FloatArray:
    """Times at these fractions of [s0, s1], a little inside at its ends."""
    return np.asarray(s0 + (s1 - s0) * np.clip(fractions, _EDGE, 1 - _EDGE))
