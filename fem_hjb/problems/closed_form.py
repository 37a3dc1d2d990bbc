"""Control problems solved by a formula: value, gradient and policy, exact to rounding.

All of them are built on the linear equation for f = exp(v / alpha),

    d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + (r / alpha) f = 0,   f_T = exp(y / alpha),

whose solutions add up: a terminal f_T that is a sum of exponentials of quadratics, or of cosines, is carried back in
time term by term.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from fem_hjb.problems.problem import LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward, log_sum_exp, symmetric_array
from fem_hjb.support.checks import (
    FloatArray,
    IntArray,
    as_points,
    as_times,
    frozen_array,
    positive_number,
    real_array,
    require,
    spd_array,
)
from fem_hjb.support.errors import DomainError, EllipticityError, InfiniteValueError, ProblemError
from fem_hjb.support.objects import Plain

TAMER = "let the rewards grow more slowly, raise the temperature or shorten the horizon"
_CHUNK = 500_000  # entries of one d x d matrix per point held at once


class ClosedForm(Plain, ABC):
    """The exact solution of a control problem; also usable wherever a value function is judged.

    `value`, `gradient` and `policy` take t in [0, T], a number or an array that broadcasts to x.shape[:-1], and
    points x of shape (..., d).

    Raises `DomainError` when x is not of shape (..., d) and finite, or t not in [0, T] or not broadcastable.
    """

    dim: int
    horizon: float
    temperature: float

    def value(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """v_t(x), shape (...)."""
        values = [self._evaluate(*block)[0] for block in self._blocks(t, x)]
        return np.concatenate(values).reshape(np.shape(x)[:-1])

    def gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """grad v_t(x), shape (..., d)."""
        gradients = [self._evaluate(*block)[1] for block in self._blocks(t, x)]
        return np.concatenate(gradients).reshape(np.shape(x))

    def policy(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """The optimal policy pi = (1/alpha) Lambda_t(x) grad v_t(x), shape (..., d)."""
        steered = [self._steer(*block[:2], self._evaluate(*block)[1]) for block in self._blocks(t, x)]
        return np.concatenate(steered).reshape(np.shape(x)) / self.temperature

    def _blocks(self, t: ArrayLike, x: ArrayLike) -> Iterator[tuple[FloatArray, IntArray, FloatArray]]:
        """Blocks of the distinct times (u,), the index (n,) of each point's time among them, and the points (n, d)."""
        points = as_points(x, self.dim)
        times = as_times(t, self.horizon)
        shape, flat = points.shape[:-1], points.reshape(-1, self.dim)
        try:
            every = None if times.size == 1 else np.broadcast_to(times, shape).ravel()
        except ValueError as cause:
            raise DomainError(
                f"t must be a number or broadcast to x.shape[:-1] = {shape}, got shape {times.shape}"
            ) from cause
        size = max(1, _CHUNK // self.dim**2)
        for start in range(0, max(len(flat), 1), size):
            block = flat[start : start + size]
            if every is None:
                yield times.reshape(1), np.zeros(len(block), dtype=np.int64), block
            else:
                yield (*np.unique(every[start : start + size], return_inverse=True), block)

    @abstractmethod
    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values (n,) and gradients (n, d) at the points x (n, d), point i at the time times[which[i]]."""

    @abstractmethod
    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        """Lambda grad v, shape (n, d)."""


_MOST_CALLS = 50_000  # of the right-hand side of Riccati equations; a few hundred are usual
_LOOK = 2_500  # calls, after every so many of which it is seen how far they have come
_HOPELESS = 100  # times too slow for _MOST_CALLS: steps grow by no more where P does not change any more
_SMALL = 16  # entries of all P, up to which integrated systems are kept
_MANY = 1024  # the same, up to which their states at single times are


@final
class LinearQuadratic(ClosedForm):
    r"""Linear drift, constant diffusion, quadratic running reward; terminal reward quadratic, or a log-sum-exp of such.

    With b = A x + a, constant Lambda, r = -x'Qx/2 + q'x + q0 and y = -x'Rx/2 + s'x + s0 the value is
    v = -x'P x/2 + p'x + c with P(T) = R, p(T) = s, c(T) = s0 and the Riccati system

        P' = -A'P - PA - Q + P Lambda P / alpha,
        p' = -A'p + P Lambda p / alpha + P a - q,
        c' = -a'p - p'Lambda p / (2 alpha) + Tr(Lambda P)/2 - q0.

    f = exp(v / alpha) solves a linear equation, so for y = alpha log sum_j exp(y_j / alpha) with quadratic y_j the
    value is alpha log sum_j exp(v_j / alpha), each v_j with a Riccati system of its own (Q = 0 and q = 0: Brownian
    motion or an Ornstein-Uhlenbeck process with a Gaussian-mixture target).

    Parameters: `drift` a `LinearDrift` (A (d, d), a (d,)); `diffusion` Lambda, a number or (d, d); `terminal` a
    `LogSumExpReward`, whose temperature is alpha; `horizon` T; Q (d, d), q (d,), q0 the running reward (None: 0). Only
    the symmetric part of Q and R counts; they may be indefinite.

    The system is integrated by DOP853 (tolerance 1e-13) with dense output.

    Raises `InfiniteValueError`, with the time, if a Riccati equation blows up within [0, T] (rewards growing faster
    than the noise allows: v = +infinity before that time), `EllipticityError` if Lambda is not SPD, `ProblemError`
    otherwise. Source: Fleming and Rishel, Deterministic and Stochastic Optimal Control (1975), section VI.5.

    >>> lq = LinearQuadratic(drift=LinearDrift([[0.0]], [0.0]), diffusion=1.0, horizon=1.0,
    ...                      terminal=LogSumExpReward.quadratic([[1.0]], [0.0], temperature=1.0))
    >>> lq.policy(0.0, [[2.0]]).round(9).tolist()     # P = 1 / (1 + T - t)
    [[-1.0]]
    """

    def __init__(
        self,
        *,
        drift: LinearDrift,
        diffusion: ArrayLike,
        terminal: LogSumExpReward,
        horizon: float,
        Q: ArrayLike | None = None,
        q: ArrayLike | None = None,
        q0: float = 0.0,
    ) -> None:
        require(drift, LinearDrift, "LinearQuadratic", ProblemError)
        require(terminal, LogSumExpReward, "LinearQuadratic", ProblemError)
        self._A, self._a = drift.coefficients
        d = self.dim = len(self._a)
        if terminal.dim != d:
            raise ProblemError(f"the terminal reward has dimension {terminal.dim}, the drift has dimension {d}")
        self.horizon = positive_number(horizon, "horizon", ProblemError)
        self.temperature = terminal.temperature
        self._Lambda = spd_array(diffusion, "diffusion", d, EllipticityError)
        self._Q = symmetric_array(np.zeros((d, d)) if Q is None else Q, "Q", (d, d))
        self._q = frozen_array(np.zeros(d) if q is None else q, "q", (d,), ProblemError)
        self._q0 = float(frozen_array(q0, "q0", (), ProblemError))
        self._terms = terminal.terms
        numbers = (self.horizon, self.temperature, self._q0)
        arrays = (self._A, self._a, self._Lambda, self._Q, self._q, *terminal.coefficients)
        integrate = _kept if self._terms * d * d <= _SMALL else _integrated
        self._solution = integrate(self._terms, d, numbers, tuple(array.tobytes() for array in arrays))

    def _unpack(self, state: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """P (u, k, d, d), p (u, k, d), c (u, k) from states in columns (m, u)."""
        k, d = self._terms, self.dim
        rows = state.T
        cuts = k * d * d, k * d * d + k * d
        return (
            rows[:, : cuts[0]].reshape(-1, k, d, d),
            rows[:, cuts[0] : cuts[1]].reshape(-1, k, d),
            rows[:, cuts[1] :],
        )

    def coefficients(self, t: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
        """P (u, k, d, d), p (u, k, d) and c (u, k) at the times t (u,), for each of the k terms."""
        return self._coefficients(np.atleast_1d(as_times(t, self.horizon)))

    def _coefficients(self, times: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The same, at times that have been checked."""
        if times.size == 1 and self._terms * self.dim**2 <= _MANY:
            return self._unpack(_at_one_time(self._solution, self.horizon - float(times[0])))
        return self._unpack(np.asarray(self._solution(self.horizon - times)))

    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        alpha = self.temperature
        P, p, c = self._coefficients(times)
        log_f, gradient = log_sum_exp(P / alpha, p / alpha, c / alpha, which, x)
        return alpha * log_f, alpha * gradient

    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        return np.asarray(gradient @ self._Lambda)


@lru_cache(maxsize=1024)
def _at_one_time(solution: Any, to_go: float) -> FloatArray:
    """The state (m, 1): paths of one simulation after another ask at the same times."""
    state = np.asarray(solution(np.array([to_go])))
    state.setflags(write=False)
    return state


def _integrated(k: int, d: int, numbers: tuple[float, float, float], arrays: tuple[bytes, ...]) -> Any:
    """Dense output of the k Riccati systems in the time to go s = T - t.

    numbers : T, alpha, q0.  arrays : A, a, Lambda, Q, q, and R, s, s0 of the terms.
    """
    horizon, alpha, _ = numbers
    shapes = ((d, d), (d,), (d, d), (d, d), (d,))
    given = [np.frombuffer(array) for array in arrays]
    matrices = [array.reshape(shape) for array, shape in zip(given, shapes, strict=False)]
    root, start = np.linalg.cholesky(matrices[2]), np.concatenate(given[len(shapes) :])

    def lowest(_: float, state: FloatArray) -> float:
        """Above zero as long as no eigenvalue of L'PL/alpha (1 / time, Lambda = LL') has run off to -infinity."""
        P = state[: k * d * d].reshape(k, d, d)
        return float(np.linalg.eigvalsh(root.T @ P @ root / alpha).min() * horizon + 1e8)

    lowest.terminal = True  # type: ignore[attr-defined]
    blow_up = 0.0 if lowest(0.0, start) <= 0 else None
    if blow_up is None:
        rate = _rate(k, d, numbers, *matrices)
        with np.errstate(over="ignore", invalid="ignore"):
            run = solve_ivp(
                rate, (0.0, horizon), start, "DOP853", dense_output=True, events=lowest, rtol=1e-13, atol=1e-14
            )
        if run.status == 0:
            return run.sol
        blow_up = float(run.t[-1])
    raise InfiniteValueError(
        f"the value is +infinity before t = {horizon - blow_up:.9g}: a Riccati equation, integrated backwards"
        f" from T = {horizon:g}, blows up there; {TAMER}"
    )


_kept = lru_cache(maxsize=64)(_integrated)  # the same problems are made again and again, and this takes most of it


def _rate(
    k: int,
    d: int,
    numbers: tuple[float, float, float],
    A: FloatArray,
    a: FloatArray,
    Lambda: FloatArray,
    Q: FloatArray,
    q: FloatArray,
) -> Callable[[float, FloatArray], FloatArray]:
    """The right-hand side of the Riccati systems in the time to go; it gives up what goes on for too long."""
    horizon, alpha, q0 = numbers
    calls, seen = count(1), (0.0, np.inf)

    def rate(s: float, state: FloatArray) -> FloatArray:
        nonlocal seen
        done = next(calls)
        if done % _LOOK == 0:
            size, (before, other) = float(np.abs(state[: k * d * d]).max()), seen
            steady = 0.5 * other < size < 2.0 * other  # it does not blow up, nor decay
            reached = s + _HOPELESS * (s - before) * (_MOST_CALLS - done) / _LOOK
            if done >= _MOST_CALLS or (steady and reached < horizon):
                raise ProblemError(
                    f"the Riccati equations are too stiff to be integrated to T = {horizon:g}: {done}"
                    f" evaluations went {s:g} backwards from it; shorten the horizon, or let drift, noise and"
                    " rewards differ less"
                )
            seen = s, size
        P, p = state[: k * d * d].reshape(k, d, d), state[k * d * d : k * d * (d + 1)].reshape(k, d)
        PA, PL = P @ A, P @ Lambda
        steered = (PL @ p[:, :, None])[:, :, 0]
        dP = PA.swapaxes(-1, -2) + PA + Q - PL @ P / alpha
        dp = p @ A - steered / alpha - P @ a + q
        dc = p @ a + ((p @ Lambda) * p).sum(-1) / (2 * alpha)
        dc += q0 - 0.5 * PL.reshape(k, -1)[:, :: d + 1].sum(-1)
        return np.concatenate([dP.ravel(), dp.ravel(), dc])

    return rate


@final
class CosineSeries(ClosedForm):
    r"""Brownian motion reflected at the ends of an interval; exp(y / alpha) a finite, positive cosine series.

    dX = Lambda^{1/2} dB on [lower, upper], r constant, and with w_n = n pi / (upper - lower)

        exp(y / alpha) = sum_n c_n cos(w_n (x - lower)),   n = 0..N,
        exp(v / alpha) = exp(r (T - t) / alpha) sum_n c_n exp(-Lambda w_n^2 (T - t) / 2) cos(w_n (x - lower)).

    Raises `ProblemError` if the series is not positive on the whole interval, `DomainError` for points outside it.

    >>> v = CosineSeries([2.0, 1.0], lower=0.0, upper=1.0, diffusion=1.0, horizon=1.0, temperature=1.0)
    >>> np.exp(v.value(1.0, [[0.0], [1.0]])).round(12).tolist()
    [3.0, 1.0]
    """

    dim = 1

    def __init__(
        self,
        coefficients: ArrayLike,
        *,
        lower: float,
        upper: float,
        diffusion: float,
        horizon: float,
        temperature: float,
        running: float = 0.0,
    ) -> None:
        self._lower = float(frozen_array(lower, "lower", (), ProblemError))
        end = float(frozen_array(upper, "upper", (), ProblemError))
        self._width = positive_number(end - self._lower, "upper - lower", ProblemError)
        self._Lambda = positive_number(diffusion, "diffusion", ProblemError)
        self.horizon = positive_number(horizon, "horizon", ProblemError)
        self.temperature = positive_number(temperature, "temperature", ProblemError)
        self._running = float(frozen_array(running, "running", (), ProblemError))
        given = np.atleast_1d(real_array(coefficients, "coefficients", ProblemError))
        if given.size == 0:
            raise ProblemError("a cosine series needs at least one coefficient")
        self._c = frozen_array(given, "coefficients", (given.size,), ProblemError)
        lowest = self._minimum()
        if lowest <= 0:
            raise ProblemError(
                f"the cosine series of exp(y / alpha) must be positive on the interval, its minimum is {lowest:.6g};"
                " enlarge the constant coefficient"
            )
        self._w = np.arange(given.size) * np.pi / self._width

    def _minimum(self) -> float:
        """The minimum of the series: a polynomial in cos(pi (x - lower) / width), at its critical points or ends."""
        chebyshev = np.polynomial.Chebyshev(self._c).trim()
        critical = chebyshev.deriv().roots() if chebyshev.degree() > 1 else np.empty(0)
        points = np.clip(np.concatenate([[-1.0, 1.0], critical.real]), -1.0, 1.0)
        return float(chebyshev(points).min())

    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        place = x[:, 0] - self._lower
        slack = 1e-9 * self._width
        outside = (place < -slack) | (place > self._width + slack)
        if outside.any():
            raise DomainError(
                f"points must lie in [{self._lower:g}, {self._lower + self._width:g}], where the process is reflected;"
                f" {int(outside.sum())} of {outside.size} do not, the first is {x[outside][0, 0]:g}"
            )
        to_go = self.horizon - times
        c = self._c * np.exp(-0.5 * self._Lambda * self._w**2 * to_go[:, None])
        phase = place[:, None] * self._w
        rows = c[which] if len(times) > 1 else c
        f = (rows * np.cos(phase)).sum(-1)
        slope = -(rows * self._w * np.sin(phase)).sum(-1)
        value = self.temperature * np.log(f) + self._running * to_go[which]
        return value, self.temperature * (slope / f)[:, None]

    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        return self._Lambda * gradient


@final
class Product(ClosedForm):
    """Independent problems side by side: v_t(x) = sum_i v^i_t(x_i), gradient and policy stacked.

    The processes of the factors are independent and the rewards add up, so f is the product of the factors' f. Each
    factor takes as many coordinates as its dimension, in order.

    Raises `ProblemError` if there is no factor, or if their horizons or temperatures differ.
    """

    def __init__(self, *factors: ClosedForm) -> None:
        if not factors or not all(isinstance(factor, ClosedForm) for factor in factors):
            kinds = ", ".join(type(factor).__name__ for factor in factors)
            raise ProblemError(f"Product needs one or more closed forms, got ({kinds})")
        for name in ("horizon", "temperature"):
            given = {getattr(factor, name) for factor in factors}
            if len(given) > 1:
                raise ProblemError(f"the factors of a Product must share one {name}, got {sorted(given)}")
        self.factors = factors
        self.dim = sum(factor.dim for factor in factors)
        self.horizon = factors[0].horizon
        self.temperature = factors[0].temperature
        self._cuts = np.cumsum([factor.dim for factor in factors])[:-1]

    def _split(self, x: FloatArray) -> list[tuple[ClosedForm, FloatArray]]:
        return list(zip(self.factors, np.split(x, self._cuts, axis=1), strict=True))

    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        parts = [factor._evaluate(times, which, block) for factor, block in self._split(x)]
        return np.asarray(sum(value for value, _ in parts)), np.concatenate([slope for _, slope in parts], axis=1)

    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        return np.concatenate([f._steer(times, which, block) for f, block in self._split(gradient)], axis=1)
