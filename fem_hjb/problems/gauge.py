"""The Cole-Hopf transform f = exp(v / alpha), kept within reach of double precision by a gauge.

A gauge says what the unknown u of a linear equation is: f = exp(v / alpha) up to constants (`Gauge`), what remains of f
when a quadratic guess of the value is taken out first (`QuadraticGauge`), or of v itself (`ValueGauge`, for
temperatures so small that f underflows).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol, final

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike

from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.support.checks import (
    FloatArray,
    as_points,
    as_times,
    finite_number,
    frozen_array,
    positive_number,
    real_array,
    require,
)
from fem_hjb.support.errors import PositivityError, ProblemError
from fem_hjb.support.objects import Plain

UNDERFLOW = 700.0
"""exp(-x) loses its last digits and then vanishes in double precision beyond about this x."""
_MANY_TIMES = 256


class Unknown(Plain, ABC):
    """What the coefficients of a solution stand for: u_t(x), and how value, gradient and f come out of it.

    Implemented by `Gauge`, `QuadraticGauge` and `ValueGauge`. t broadcasts against x.shape[:-1]; x (..., d), u and the
    value v (...), slope = grad u (..., d).
    """

    temperature: float
    horizon: float

    @abstractmethod
    def value(self, t: ArrayLike, x: ArrayLike, u: ArrayLike) -> FloatArray:
        """v_t(x), shape (...); nan stays nan. PositivityError where the logarithm of u is needed and u <= 0."""

    @abstractmethod
    def u(self, t: ArrayLike, x: ArrayLike, v: ArrayLike) -> FloatArray:
        """u_t(x) where the value is v, shape (...): the inverse of `value`."""

    @abstractmethod
    def gradient(self, t: ArrayLike, x: ArrayLike, u: FloatArray, slope: FloatArray) -> FloatArray:
        """grad v_t(x), shape (..., d)."""

    @abstractmethod
    def f(self, t: ArrayLike, x: ArrayLike, u: FloatArray) -> FloatArray:
        """f_t(x) = exp((v - c_y - c_r (T - t)) / alpha), shape (...)."""

    def terminal_u(self, problem: ControlProblem, x: ArrayLike) -> FloatArray:
        """u_T(x), from the terminal reward y(x), shape (...)."""
        return self.u(self.horizon, x, problem.y(x))


class Background(Protocol):
    """A smooth guess v0 of the value that is taken out before anything is discretised.

    Implemented by `Gauge`, whose guess is c_y + c_r (T - t), and by `QuadraticGauge`.
    """

    @property
    def temperature(self) -> float:
        """alpha."""

    @property
    def constants(self) -> Gauge:
        """What `f` means."""

    def guess(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """v0_t(x), shape (...) at points x (..., d)."""

    def guess_gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """grad v0_t(x), shape (..., d)."""

    def rate(
        self, t: ArrayLike, x: FloatArray, reward: FloatArray, drift: FloatArray, diffusion: FloatArray
    ) -> FloatArray:
        """(d_t v0 + <b, grad v0> + 1/2 Tr(Lambda Hess v0) + r + 1/(2 alpha) grad v0' Lambda grad v0) / alpha, (n,).

        reward r (n,), drift b (n, d), diffusion Lambda (n, d, d); or (k, n, ...) at times (k, 1).
        With f = exp(v0 / alpha) u,

            d_t u + <b + Lambda grad v0 / alpha, grad u> + 1/2 Tr(Lambda Hess u) + rate u = 0.
        """


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Gauge(Unknown):
    """Constants taken out of the rewards so that f stays near or below 1.

    With c_y = `terminal` and c_r = `running`,

        v = alpha log f + c_y + c_r (T - t),      f = exp((v - c_y - c_r (T - t)) / alpha).

    The gauged f solves d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + ((r - c_r)/alpha) f = 0 with
    f_T = exp((y - c_y)/alpha). Where c_y >= y and c_r >= r, f lies in (0, 1]: overflow is impossible. The gradient
    of v, hence the policy, does not see the gauge.

    >>> gauge = Gauge(temperature=0.5, horizon=1.0, terminal=3.0, running=-1.0)
    >>> x = np.zeros((2, 1))
    >>> u = gauge.u(0.0, x, [2.0, 1.0])
    >>> u.round(12).tolist(), gauge.value(0.0, x, u).tolist()
    ([1.0, 0.135335283237], [2.0, 1.0])
    """

    temperature: float
    horizon: float
    terminal: float
    running: float

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "temperature", positive_number(self.temperature, "temperature", ProblemError))
        put(self, "horizon", positive_number(self.horizon, "horizon", ProblemError))
        for name in ("terminal", "running"):
            put(self, name, finite_number(getattr(self, name), f"the gauge constant {name!r}", ProblemError))

    def value(self, t: ArrayLike, x: ArrayLike, u: ArrayLike) -> FloatArray:
        values = np.asarray(u, dtype=np.float64)
        if (values <= 0).any():
            raise PositivityError(self._why_not_positive(t, values, x))
        return np.asarray(self.temperature * np.log(values) + self._offset(t))

    def u(self, t: ArrayLike, x: ArrayLike, v: ArrayLike) -> FloatArray:
        """f = exp((v - c_y - c_r (T - t)) / alpha), shape of t and v broadcast together; 0 where it underflows."""
        return np.asarray(np.exp((np.asarray(v, dtype=np.float64) - self._offset(t)) / self.temperature))

    def gradient(self, t: ArrayLike, x: ArrayLike, u: FloatArray, slope: FloatArray) -> FloatArray:
        return np.asarray(self.temperature * slope / u[..., None])

    def f(self, t: ArrayLike, x: ArrayLike, u: FloatArray) -> FloatArray:
        return u

    @property
    def constants(self) -> Gauge:
        """Itself: what `f` means."""
        return self

    def guess(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """v0 = c_y + c_r (T - t), shape (...)."""
        return np.asarray(np.broadcast_to(self._offset(t), np.broadcast_shapes(np.shape(t), np.shape(x)[:-1])))

    def guess_gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """0, shape (..., d)."""
        return np.zeros((*np.broadcast_shapes(np.shape(t), np.shape(x)[:-1]), np.shape(x)[-1]))

    def rate(
        self,
        t: ArrayLike,
        x: FloatArray,
        reward: FloatArray,
        drift: FloatArray | None = None,
        diffusion: FloatArray | None = None,
    ) -> FloatArray:
        """(r - c_r) / alpha, which sees neither drift nor diffusion; not positive wherever c_r bounds r from above."""
        return np.asarray((reward - self.running) / self.temperature)

    def _offset(self, t: ArrayLike) -> FloatArray:
        """c_y + c_r (T - t), the part of v at time t that the gauge has taken out."""
        return np.asarray(self.terminal + self.running * (self.horizon - as_times(t, self.horizon)))

    def _why_not_positive(self, t: ArrayLike, f: FloatArray, x: ArrayLike) -> str:
        worst = np.unravel_index(int(np.nanargmin(f)), f.shape)
        where = ""
        if np.broadcast_shapes(np.shape(t), f.shape) == f.shape:
            where = f" at t={np.broadcast_to(np.asarray(t), f.shape)[worst]:.6g}"
            points = np.asarray(x)
            if np.broadcast_shapes(points.shape[:-1], f.shape) == f.shape:
                where += f", x={np.broadcast_to(points, (*f.shape, points.shape[-1]))[worst].tolist()}"
        cure = (
            "f undershoots there: refine the mesh or the time steps, or shrink the box to where the process goes"
            if f[worst] < 0
            else f"f underflows there, (sup v - v)/alpha exceeds about {UNDERFLOW:.0f}: raise the temperature or shrink"
            " the box"
        )
        return (
            f"f must be positive to take its logarithm, but f <= 0 at {int((f <= 0).sum())} of {f.size} points,"
            f" the lowest is f={f[worst]:.3g}{where}; {cure}"
        )


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class QuadraticGauge(Unknown):
    """A quadratic guess of the value taken out: f = exp((v0 - c_y - c_r (T - t)) / alpha) u with, in z = x - centre,

        v0_t(x) = -z'P(t) z / 2 + p(t)'z + c(t),     v = v0 + alpha log u.

    P, p and c are Chebyshev series on [0, T]: coefficients P (k, d, d) symmetric, p (k, d), c (k,). They need not solve
    any equation: `rate` is exact for whatever they are, so that u makes up for what they miss. Where v is close to a
    quadratic, u is close to 1 on all of a box, while f itself would range over many orders of magnitude.
    `constants` only fixes what `f` means.
    """

    constants: Gauge
    centre: ArrayLike
    P: ArrayLike
    p: ArrayLike
    c: ArrayLike
    _series: tuple[FloatArray, FloatArray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        require(self.constants, Gauge, "QuadraticGauge", ProblemError)
        linear = real_array(self.p, "QuadraticGauge: p", ProblemError)
        if linear.ndim != 2 or 0 in linear.shape:
            raise ProblemError(f"QuadraticGauge: p must have shape (k, d), got shape {linear.shape}")
        size, d = linear.shape
        put(self, "centre", frozen_array(self.centre, "QuadraticGauge: centre", (d,), ProblemError))
        put(self, "P", frozen_array(self.P, "QuadraticGauge: P", (size, d, d), ProblemError))
        put(self, "p", frozen_array(self.p, "QuadraticGauge: p", (size, d), ProblemError))
        put(self, "c", frozen_array(self.c, "QuadraticGauge: c", (size,), ProblemError))
        table = np.column_stack([np.asarray(self.P).reshape(size, -1), np.asarray(self.p), np.asarray(self.c)])
        slope = chebyshev.chebder(table, 1, 2.0 / self.constants.horizon) if size > 1 else 0.0 * table
        put(self, "_series", (table, slope))
        put(self, "temperature", self.constants.temperature)
        put(self, "horizon", self.constants.horizon)

    def coefficients(self, t: ArrayLike, derivative: int = 0) -> tuple[FloatArray, FloatArray, FloatArray]:
        """P (..., d, d), p (..., d) and c (...) at times t (...), or their first derivatives."""
        tau = 2.0 * np.asarray(t, dtype=np.float64) / self.horizon - 1.0
        series = self._series[derivative]
        if tau.size < _MANY_TIMES:
            rows = np.cos(np.arccos(np.clip(tau, -1.0, 1.0))[..., None] * np.arange(len(series))) @ series
        else:  # cosines would take longer than their recurrence
            flat = chebyshev.chebvander(np.clip(tau.ravel(), -1.0, 1.0), len(series) - 1) @ series
            rows = flat.reshape(*tau.shape, -1)
        d = np.shape(self.p)[1]
        return rows[..., : d * d].reshape(*tau.shape, d, d), rows[..., d * d : -1], rows[..., -1]

    def guess(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """v0_t(x), shape (...)."""
        P, p, c = self.coefficients(t)
        z = self._z(x)
        return np.asarray(_product(p - 0.5 * _times(P, z), z) + c)

    def guess_gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """grad v0_t(x), shape (..., d)."""
        P, p, _ = self.coefficients(t)
        return np.asarray(p - _times(P, self._z(x)))

    def rate(
        self, t: ArrayLike, x: FloatArray, reward: FloatArray, drift: FloatArray, diffusion: FloatArray
    ) -> FloatArray:
        P, p, _ = self.coefficients(t)
        dP, dp, dc = self.coefficients(t, 1)
        z = self._z(x)
        slope = p - _times(P, z)
        matrix = diffusion[(0,) * (diffusion.ndim - 2)] if not any(diffusion.strides[:-2]) else None  # one, broadcast
        pushed = slope @ matrix if matrix is not None else np.einsum("...ij,...j->...i", diffusion, slope)
        result = _product(dp - 0.5 * _times(dP, z), z) + _product(slope, drift + pushed / (2.0 * self.temperature))
        result += dc + reward
        result -= 0.5 * np.einsum("...ij,...ij->...", diffusion if matrix is None else matrix, P)
        return np.asarray(result / self.temperature)

    def value(self, t: ArrayLike, x: ArrayLike, u: ArrayLike) -> FloatArray:
        logs = self.constants.value(t, x, u) - self.constants.guess(t, x)
        return np.asarray(self.guess(t, x) + logs)

    def u(self, t: ArrayLike, x: ArrayLike, v: ArrayLike) -> FloatArray:
        return np.asarray(np.exp((np.asarray(v, dtype=np.float64) - self.guess(t, x)) / self.temperature))

    def gradient(self, t: ArrayLike, x: ArrayLike, u: FloatArray, slope: FloatArray) -> FloatArray:
        return self.constants.gradient(t, x, u, slope) + self.guess_gradient(t, x)

    def f(self, t: ArrayLike, x: ArrayLike, u: FloatArray) -> FloatArray:
        return self.constants.u(t, x, self.guess(t, x)) * u

    def _z(self, x: ArrayLike) -> FloatArray:
        return np.asarray(x, dtype=np.float64) - np.asarray(self.centre, dtype=np.float64)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ValueGauge(Unknown):
    """The unknown is what a background leaves of the value itself: v = v0 + u. No logarithm, and nothing underflows.

    For small temperatures, and wherever f ranges over so many orders of magnitude that its relative accuracy is lost.
    `f` is exp((v - c_y - c_r (T - t)) / alpha) with the constants of the background, and underflows to 0 where it must.
    """

    background: Gauge | QuadraticGauge

    def __post_init__(self) -> None:
        if not isinstance(self.background, Gauge | QuadraticGauge):
            raise ProblemError(f"ValueGauge needs a Gauge or QuadraticGauge, got {type(self.background).__name__}")
        object.__setattr__(self, "temperature", self.background.temperature)
        object.__setattr__(self, "horizon", self.background.horizon)

    def value(self, t: ArrayLike, x: ArrayLike, u: ArrayLike) -> FloatArray:
        return np.asarray(self.background.guess(t, x) + np.asarray(u, dtype=np.float64))

    def u(self, t: ArrayLike, x: ArrayLike, v: ArrayLike) -> FloatArray:
        return np.asarray(np.asarray(v, dtype=np.float64) - self.background.guess(t, x))

    def gradient(self, t: ArrayLike, x: ArrayLike, u: FloatArray, slope: FloatArray) -> FloatArray:
        return np.asarray(slope + self.background.guess_gradient(t, x))

    def f(self, t: ArrayLike, x: ArrayLike, u: FloatArray) -> FloatArray:
        return self.background.constants.u(t, x, self.value(t, x, u))


def _times(P: FloatArray, z: FloatArray) -> FloatArray:
    """P z for one symmetric matrix, one for each point, or one for each of many points of a time."""
    if P.ndim > 2 and P.shape[-3] == 1 and z.ndim > 1:
        return np.asarray(z @ P[..., 0, :, :])
    return np.asarray(z @ P if P.ndim == 2 else np.einsum("...ij,...j->...i", P, z))


def _product(a: FloatArray, b: FloatArray) -> FloatArray:
    """The scalar products (...) of vectors (..., d): sums along an axis as short as that would take longer."""
    return np.asarray(np.einsum("...i,...i->...", a, b))


def constant_gauge(problem: ControlProblem, x: ArrayLike, times: ArrayLike) -> Gauge:
    """The gauge with c_y = max y over the points x (n, d) and c_r = max r over times (k,) x points.

    At other points y and r may exceed these constants a little; f then exceeds 1 a little, which does no harm.
    """
    points, instants = _grid(problem, x, times)
    running = max(float(problem.r(float(t), points).max()) for t in instants) if problem.running_reward else 0.0
    return Gauge(
        temperature=problem.temperature,
        horizon=problem.horizon,
        terminal=float(problem.y(points).max()),
        running=running,
    )


def range_in_temperatures(problem: ControlProblem, x: ArrayLike, times: ArrayLike) -> float:
    """(max y - min y + T (max r - min r)) / alpha over points x (n, d) and times (k,).

    By Jensen's inequality v_t >= E[y + int r], so this bounds -log f for the gauged f as long as the process stays
    among the points. Beyond `UNDERFLOW` = 700 double precision cannot hold f, and the relative accuracy of grad log f
    is lost well before: raise the temperature, or shrink the box.
    """
    points, instants = _grid(problem, x, times)
    y = problem.y(points)
    spread = float(y.max() - y.min())
    if problem.running_reward is not None:
        r = [problem.r(float(t), points) for t in instants]
        spread += problem.horizon * (max(float(v.max()) for v in r) - min(float(v.min()) for v in r))
    return spread / problem.temperature


def _grid(problem: ControlProblem, x: ArrayLike, times: ArrayLike) -> tuple[FloatArray, FloatArray]:
    require_problem(problem, "a gauge")
    points = as_points(x, problem.dim)
    instants = as_times(times, problem.horizon, "times").ravel()
    if points.size == 0 or instants.size == 0:
        raise ProblemError(f"a gauge needs points and times, got {points.size // problem.dim} and {instants.size}")
    return points, instants
