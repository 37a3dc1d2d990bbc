"""Values that are known without `solve`: the truths of `reliability_problems`.

Each has value(t, x) and gradient(t, x) for a number t and points x (n, d), and is what `compare` takes as a reference;
`residual` tells how well it solves the equation of its problem, by differences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.linalg import eigh
from scipy.special import erf, erfc, erfcx, log_ndtr, logsumexp

from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.support.checks import FloatArray

Function = Callable[[FloatArray], FloatArray]


def transition(rate: float, noise: float, s: float) -> tuple[float, float]:
    """X_{t+s} | X_t = x ~ N(factor x, variance) for dX = -rate X dt + noise^{1/2} dB."""
    if rate == 0.0:
        return 1.0, noise * s
    return float(np.exp(-rate * s)), float(-noise * np.expm1(-2.0 * rate * s) / (2.0 * rate))


@dataclass(frozen=True)
class Pieces:
    """y / alpha linear on pieces, with kinks or jumps at the knots, for Brownian motion or an OU process; d = 1.

    With X_T | X_t = x ~ N(m, w), f = sum_j int_{c_j}^{c_{j+1}} e^{a_j + b_j z} N(z; m, w) dz: normal distribution
    functions (as for options, Black and Scholes, J. Polit. Econ. 81 (1973) 637-654).
    """

    knots: FloatArray
    a: FloatArray
    b: FloatArray
    temperature: float
    horizon: float
    rate: float
    noise: float

    def reward(self, x: FloatArray) -> FloatArray:
        place = np.searchsorted(self.knots, x[..., 0], side="right")
        return np.asarray(self.temperature * (self.a[place] + self.b[place] * x[..., 0]))

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return self._both(t, x)[0]

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        return self._both(t, x)[1][:, None]

    def _both(self, t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        factor, variance = transition(self.rate, self.noise, self.horizon - t)
        if variance == 0.0:
            place = np.searchsorted(self.knots, x[:, 0], side="right")
            return self.reward(x), self.temperature * self.b[place]
        m, sd = factor * x, np.sqrt(variance)
        ends = np.concatenate([[-np.inf], self.knots, [np.inf]])
        z = (ends - (m + self.b[:, None, None] * variance)) / sd  # (pieces, n, ends)
        j = np.arange(len(self.a))
        logs = self.a + self.b * m + 0.5 * self.b**2 * variance + log_between(z[j, :, j].T, z[j, :, j + 1].T)
        log_f = logsumexp(logs, axis=1)
        slope = (np.exp(logs - log_f[:, None]) * self.b).sum(axis=1)
        bell = -0.5 * ((self.knots - m) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi) - log_f[:, None]
        for side, sign in ((slice(1, None), 1.0), (slice(None, -1), -1.0)):
            slope += sign * np.exp(self.a[side] + self.b[side] * self.knots + bell).sum(axis=1)
        return self.temperature * log_f, self.temperature * factor * slope


def log_between(low: FloatArray, high: FloatArray) -> FloatArray:
    """log(Phi(high) - Phi(low)) for low < high."""
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    gap = log_ndtr(low) - log_ndtr(high)
    return np.asarray(log_ndtr(high) + np.log1p(-np.exp(np.minimum(gap, -1e-300))))


@dataclass(frozen=True)
class HalfLine:
    """Brownian motion on x > 0, stopped at 0; y, g and r = -kappa alpha constant; d = 1.

    f = e^{g/alpha} E[e^{-kappa tau}; tau < s] + e^{y/alpha} e^{-kappa s} P(tau > s), by the law of the first passage
    time (Borodin and Salminen, Handbook of Brownian Motion (2002), part II, 1.2.0.1 and 2.0.1).
    """

    terminal: float
    exit: float
    kappa: float
    temperature: float
    horizon: float
    noise: float

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return self._both(t, x)[0]

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        return self._both(t, x)[1][:, None]

    def _both(self, t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        s, z, alpha = self.horizon - t, x[:, 0], self.temperature
        if s == 0.0:
            return np.where(z > 0, self.terminal, self.exit), np.zeros(len(z))
        paid, left = np.exp(self.exit / alpha), np.exp(self.terminal / alpha)
        q, late, theta = np.sqrt(2 * self.noise * s), np.sqrt(self.kappa * s), np.sqrt(2 * self.kappa / self.noise)
        bell = np.exp(-((z / q) ** 2) - self.kappa * s)
        first, second = np.exp(-theta * z) * erfc(z / q - late), bell * erfcx(z / q + late)
        f = paid * 0.5 * (first + second) + left * np.exp(-self.kappa * s) * erf(z / q)
        slope = paid * (0.5 * theta * (second - first) - 2 * bell / (q * np.sqrt(np.pi)))
        slope = slope + left * 2 * bell / (q * np.sqrt(np.pi))
        return alpha * np.log(f), alpha * slope / f


@dataclass(frozen=True)
class Series:
    """Brownian motion in a box, reflected (cosines) or stopped (sines, e^{g/alpha} = constant) at all faces.

    f = constant + sum_k c_k prod_i cos or sin(k_i pi (x_i - lower_i) / width_i) e^{-sum_i noise_i (k_i pi / width_i)^2
    s / 2}: separation of variables (Evans, Partial Differential Equations (2010), section 6.5).
    """

    constant: float
    c: FloatArray
    stopped: bool
    lower: FloatArray
    width: FloatArray
    noise: FloatArray
    temperature: float
    horizon: float

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return np.asarray(self.temperature * np.log(self._sum(t, x, None)))

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        f = self._sum(t, x, None)
        return np.asarray(self.temperature * np.stack([self._sum(t, x, i) / f for i in range(x.shape[1])], -1))

    def _sum(self, t: float, x: FloatArray, along: int | None) -> FloatArray:
        d = x.shape[1]
        terms = np.broadcast_to(self.c, (len(x), *self.c.shape))
        for i in range(d):
            w = np.arange(self.c.shape[i]) * np.pi / self.width[i]
            phase = (x[:, i, None] - self.lower[i]) * w
            if self.stopped:
                waves = w * np.cos(phase) if i == along else np.sin(phase)
            else:
                waves = -w * np.sin(phase) if i == along else np.cos(phase)
            rows = waves * np.exp(-0.5 * self.noise[i] * w**2 * (self.horizon - t))
            terms = terms * rows.reshape(len(x), *[-1 if k == i else 1 for k in range(d)])
        return np.asarray(terms.reshape(len(x), -1).sum(axis=1) + (self.constant if along is None else 0.0))


@dataclass(frozen=True, eq=False)
class Wells:
    """dX = -U'(X) dt + noise^{1/2} dB and y, smooth; d = 1.

    With f = e^{U/noise} g the equation is that of a Schroedinger operator, -dg/ds = H g,

        H = -(noise/2) d^2/dx^2 + U'^2 / (2 noise) - U''/2,

    here on the sinc functions of a grid of [lower, upper] (Colbert and Miller, J. Chem. Phys. 96 (1992) 1982-1991),
    by all eigenpairs: nothing is stepped in time. v and its gradient are carried to points by cubic splines.
    """

    potential: tuple[Function, Function, Function]
    reward: Function
    noise: float
    temperature: float
    horizon: float
    lower: float
    upper: float
    nodes: int
    between: int = 8
    _pairs: Any = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        x = np.linspace(self.lower, self.upper, self.nodes)
        h = x[1] - x[0]
        n = np.arange(self.nodes)
        gap = n[:, None] - n
        safe = np.where(gap == 0, 1, gap)
        second = np.where(gap == 0, np.pi**2 / 3, 2.0 * (-1.0) ** gap / safe**2) / h**2
        U, slope, curvature = (part(x) for part in self.potential)
        H = 0.5 * self.noise * second + np.diag(slope**2 / (2 * self.noise) - curvature / 2)
        levels, modes = eigh(H)
        least = U.min()
        scale = np.exp(-(U - least) / self.noise)
        start = modes.T @ (scale * np.exp(self.reward(x[:, None]) / self.temperature))
        fine = np.linspace(self.lower, self.upper, (self.nodes - 1) * self.between + 1)
        z = (fine[:, None] - x) / h
        rows = np.sinc(z) @ modes
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(z == 0, 0.0, (np.cos(np.pi * z) - np.sinc(z)) / np.where(z == 0, 1.0, z)) / h
        tilt = (self.potential[0](fine) - least) / self.noise
        object.__setattr__(
            self, "_pairs", (levels, start, fine, rows, slopes @ modes, tilt, self.potential[1](fine) / self.noise)
        )
        object.__setattr__(self, "_at", lru_cache(4)(self._spline))

    def _spline(self, t: float) -> tuple[CubicSpline, CubicSpline]:
        levels, start, fine, rows, slopes, tilt, tilted = self._pairs
        weights = start * np.exp(-levels * (self.horizon - t))
        g, dg = rows @ weights, slopes @ weights
        good = g > 1e-11 * g.max()
        first, last = np.flatnonzero(good)[[0, -1]]
        if not good[first:last].all():
            raise ValueError("the reference is lost in rounding between its ends")
        keep = slice(first, last + 1)
        v = self.temperature * (np.log(g[keep]) + tilt[keep])
        slope = self.temperature * (dg[keep] / g[keep] + tilted[keep])
        return CubicSpline(fine[keep], v, extrapolate=False), CubicSpline(fine[keep], slope, extrapolate=False)

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return np.asarray(self._at(float(t))[0](x[:, 0]))  # type: ignore[attr-defined]

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        return np.asarray(self._at(float(t))[1](x[:, 0])[:, None])  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Sum:
    """Independent problems side by side: v_t(x) = sum_i v^i_t(x_i), coordinates one by one."""

    parts: Sequence[ValueFunction]

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return np.asarray(sum(part.value(t, x[:, [i]]) for i, part in enumerate(self.parts)))

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        return np.concatenate([part.gradient(t, x[:, [i]]) for i, part in enumerate(self.parts)], axis=1)


@dataclass(frozen=True)
class Moved:
    """The value of a process that is pushed by a(t), dX = (A X + a_t) dt + ..: v_t(x) = w_t(x + shift(t)).

    w is the value without the push, and shift(t) = int_t^T e^{-A(s - t)} a_s ds.
    """

    still: ValueFunction
    shift: Callable[[float], FloatArray]

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return self.still.value(t, x + self.shift(t))

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        return self.still.gradient(t, x + self.shift(t))


@dataclass(frozen=True)
class Map:
    """x = M phi(z) with phi_i(z) = z, sinh(c_i z) / c_i or arsinh(c_i z) / c_i, as bend[i] = c_i is 0, > 0 or < 0."""

    M: FloatArray
    bend: FloatArray

    def forward(self, z: FloatArray) -> FloatArray:
        c = np.where(self.bend == 0, 1.0, np.abs(self.bend))
        phi = np.where(self.bend == 0, z, np.where(self.bend > 0, np.sinh(c * z) / c, np.arcsinh(c * z) / c))
        return np.asarray(phi @ self.M.T)

    def back(self, x: FloatArray) -> FloatArray:
        w, c = x @ np.linalg.inv(self.M).T, np.where(self.bend == 0, 1.0, np.abs(self.bend))
        lifted = np.sinh(np.where(self.bend < 0, c * w, 0.0)) / c
        return np.asarray(np.where(self.bend == 0, w, np.where(self.bend > 0, np.arcsinh(c * w) / c, lifted)))

    def slopes(self, z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """phi_i'(z_i) and phi_i''(z_i)."""
        c = np.abs(self.bend)
        bent = np.where(self.bend > 0, c * z, 0.0)
        root = 1.0 / np.sqrt(1.0 + (c * z) ** 2)
        first = np.where(self.bend == 0, 1.0, np.where(self.bend > 0, np.cosh(bent), root))
        second = np.where(self.bend == 0, 0.0, np.where(self.bend > 0, c * np.sinh(bent), -(c**2) * z * root**3))
        return first, second


@dataclass(frozen=True)
class Mapped:
    """The value of a problem in other coordinates, which stays what it is: v_t(x) = w_t(z)."""

    of: ValueFunction
    map: Map

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return self.of.value(t, self.map.back(x))

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        z = self.map.back(x)
        return np.asarray((self.of.gradient(t, z) / self.map.slopes(z)[0]) @ np.linalg.inv(self.map.M))


def residual(problem: ControlProblem, truth: ValueFunction, t: FloatArray, x: FloatArray, step: FloatArray) -> float:
    """The largest residual of d_t v + <b, grad v> + Tr(Lambda Hess v)/2 + r + grad v' Lambda grad v / (2 alpha) = 0.

    At points x (n, d), each at its time t (n,), relative to the largest of the sums of the sizes of its terms; by
    central differences of fourth order with steps (d,) at t = 0, shrinking with the root of the time to go, and 1e-3 of
    the time to go.
    """
    stencil = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
    T, d = problem.horizon, problem.dim
    rests, sizes = [], []
    for time, point in zip(t.tolist(), x, strict=True):
        at, to_go = point[None], T - time
        dt, dx = 1e-3 * min(time, to_go), step * np.sqrt(to_go / T)
        v_t = sum(w * truth.value(time + k * dt, at)[0] for k, w in stencil) / dt
        slope = truth.gradient(time, at)[0]
        hessian = np.stack(
            [
                sum(w * truth.gradient(time, at + k * dx[i] * np.eye(d)[i])[0] for k, w in stencil) / dx[i]
                for i in range(d)
            ]
        )
        Lambda = problem.Lambda(time, at)[0]
        terms = [
            v_t,
            problem.b(time, at)[0] @ slope,
            0.5 * float((Lambda * hessian).sum()),
            problem.r(time, at)[0],
            slope @ Lambda @ slope / (2 * problem.temperature),
        ]
        rests.append(abs(sum(terms)))
        sizes.append(sum(abs(term) for term in terms))
    return float(max(rests) / max(*sizes, 1e-300))
