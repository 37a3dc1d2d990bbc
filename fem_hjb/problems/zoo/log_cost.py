"""The Hamilton-Jacobi-Bellman equation that deep BSDE solvers are tried on, in any dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.closed_form import ClosedForm
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.zoo.coefficients import vector
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray, IntArray, positive_number
from fem_hjb.support.errors import ProblemError

_STEP, _LEAST, _MOST = 0.25, -56.0, 4.5  # of log s; as exp(-s) is entire, the trapezoidal rule is exact to rounding
_CHUNK = 4096


@final
@dataclass(frozen=True, eq=False, repr=False)
class LogCost(ClosedForm):
    r"""v = log E[ 2 / (1 + |x + (2 (T-t))^{1/2} Z|^2) ], Z ~ N(0, I), by an integral over one variable:

    exp(v) = 2 int_0^inf exp(-s) (1 + 4 (T-t) s)^{-d/2} exp(-s |x|^2 / (1 + 4 (T-t) s)) ds,

    as 1/(1+q) = int exp(-s (1+q)) ds, and E exp(-s |X_T|^2) is that of a noncentral chi-square variable.
    """

    dim: int
    horizon: float

    temperature = 1.0

    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        to_go, square = (self.horizon - times)[which], (x**2).sum(-1)
        starts = range(0, max(len(x), 1), _CHUNK)
        parts = [self._integrals(to_go[k : k + _CHUNK], square[k : k + _CHUNK]) for k in starts]
        f, slope = np.concatenate(parts, axis=1)
        return np.log(2.0 * f), -2.0 * (slope / f)[:, None] * x

    def _integrals(self, to_go: FloatArray, square: FloatArray) -> FloatArray:
        """f/2 and -d(f/2)/d|x|^2, (2, n)."""
        s = np.exp(np.arange(_LEAST, _MOST, _STEP))
        wider = 1.0 + 4.0 * to_go[:, None] * s
        rates = s / wider
        terms = np.exp(-s - 0.5 * self.dim * np.log(wider) - rates * square[:, None]) * (_STEP * s)
        return np.stack([terms.sum(-1), (terms * rates).sum(-1)])

    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        return 2.0 * gradient


def _reward(x: FloatArray) -> FloatArray:
    return np.asarray(-np.log(0.5 * (1.0 + (x**2).sum(-1))))


@register()
def hjb_log(dim: int, *, horizon: float = 1.0, x0: ArrayLike = 0.0) -> ControlProblem:
    """Brownian motion that pays the logarithm of its distance at the end.

    dX = 2^{1/2} dB from X_0 = x0,  r = 0,  y = -log((1 + |x|^2) / 2),  alpha = 1.

    The source's u = -v solves d_t u + Laplace u - |grad u|^2 = 0, u_T = log((1 + |x|^2) / 2), in d = 100 from x0 = 0.
    Exact by an integral over one variable. x0: (d,) or a number.
    Source: Han, Jentzen and E, PNAS 115 (2018) 8505-8510, arXiv 1707.02568, the Hamilton-Jacobi-Bellman equation.
    """
    drift, start = LinearDrift(np.zeros((dim, dim)), np.zeros(dim)), PointMass(vector(x0, dim, "x0"))
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=1.0,
        drift=drift,
        diffusion=2.0,
        terminal_reward=_reward,
        initial_law=start,
        exact=LogCost(dim, positive_number(horizon, "horizon", ProblemError)),
        marginal=linear_marginal(drift, 2.0 * np.eye(dim), start),
        name="hjb-log",
    )
