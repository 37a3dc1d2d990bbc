"""The Cole-Hopf transform f = exp(v / alpha), kept within reach of double precision by a gauge."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb._checks import FloatArray, PositivityError, ProblemError, as_points, as_times, positive_number
from fem_hjb.problem import ControlProblem

UNDERFLOW = 700.0
"""exp(-x) loses its last digits and then vanishes in double precision beyond about this x."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Gauge:
    """Constants taken out of the rewards so that f stays near or below 1.

    With c_y = `terminal` and c_r = `running`,

        v = alpha log f + c_y + c_r (T - t),      f = exp((v - c_y - c_r (T - t)) / alpha).

    The gauged f solves d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + ((r - c_r)/alpha) f = 0 with
    f_T = exp((y - c_y)/alpha). Where c_y >= y and c_r >= r, f lies in (0, 1]: overflow is impossible. The gradient
    of v, hence the policy, does not see the gauge.

    >>> gauge = Gauge(temperature=0.5, horizon=1.0, terminal=3.0, running=-1.0)
    >>> f = gauge.f_from_value(0.0, [2.0, 1.0])
    >>> f.round(12).tolist(), gauge.value_from_f(0.0, f).tolist()
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
            number = float(getattr(self, name))
            if not np.isfinite(number):
                raise ProblemError(f"the gauge constant {name!r} must be finite, got {number!r}")
            put(self, name, number)

    def offset(self, t: ArrayLike) -> FloatArray:
        """c_y + c_r (T - t), the part of v at time t that the gauge has taken out."""
        return np.asarray(self.terminal + self.running * (self.horizon - as_times(t, self.horizon)))

    def f_from_value(self, t: ArrayLike, v: ArrayLike) -> FloatArray:
        """f = exp((v - c_y - c_r (T - t)) / alpha), shape of t and v broadcast together; 0 where it underflows."""
        return np.asarray(np.exp((np.asarray(v, dtype=np.float64) - self.offset(t)) / self.temperature))

    def value_from_f(self, t: ArrayLike, f: ArrayLike, *, x: ArrayLike | None = None) -> FloatArray:
        """v = alpha log f + c_y + c_r (T - t), shape of t and f broadcast together; nan stays nan.

        `x` (..., d) only serves the message of the error.

        Raises `PositivityError` where f <= 0: how often, the lowest f, and at which (t, x).
        """
        values = np.asarray(f, dtype=np.float64)
        if (values <= 0).any():
            raise PositivityError(self._why_not_positive(t, values, x))
        return np.asarray(self.temperature * np.log(values) + self.offset(t))

    def _why_not_positive(self, t: ArrayLike, f: FloatArray, x: ArrayLike | None) -> str:
        worst = np.unravel_index(int(np.nanargmin(f)), f.shape)
        where = ""
        if np.broadcast_shapes(np.shape(t), f.shape) == f.shape:
            where = f" at t={np.broadcast_to(np.asarray(t), f.shape)[worst]:.6g}"
            points = None if x is None else np.asarray(x)
            if points is not None and np.broadcast_shapes(points.shape[:-1], f.shape) == f.shape:
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

    def terminal_f(self, problem: ControlProblem, x: ArrayLike) -> FloatArray:
        """f_T(x) = exp((y(x) - c_y) / alpha), shape (...)."""
        return np.asarray(np.exp((problem.y(x) - self.terminal) / self.temperature))

    def running_rate(self, problem: ControlProblem, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """(r_t(x) - c_r) / alpha, shape (...); not positive wherever c_r bounds r from above."""
        return np.asarray((problem.r(t, x) - self.running) / self.temperature)

    def depth(self, t: ArrayLike, v: ArrayLike) -> float:
        """The largest -log f over the given values: beyond `UNDERFLOW`, f is lost in double precision."""
        return float(np.max((self.offset(t) - np.asarray(v, dtype=np.float64)) / self.temperature))


def gauge(problem: ControlProblem, x: ArrayLike, times: ArrayLike) -> Gauge:
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
    points = as_points(x, problem.dim)
    instants = np.atleast_1d(as_times(times, problem.horizon, "times"))
    if points.size == 0 or instants.size == 0:
        raise ProblemError(f"a gauge needs points and times, got {points.size // problem.dim} and {instants.size}")
    return points, instants
