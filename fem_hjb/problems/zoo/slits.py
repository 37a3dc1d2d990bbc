"""The double slit of path integral control."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from fem_hjb.problems.closed_form import ClosedForm
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray, IntArray, finite_number, positive_number, real_array
from fem_hjb.support.errors import ProblemError

_SHORTEST = 1e-150  # a standard deviation that stands for none


def _between(a: FloatArray, b: FloatArray) -> FloatArray:
    """Phi(b) - Phi(a) for a < b, without cancellation in either tail."""
    right = a > 0
    return np.asarray(np.where(right, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a)))


def _density(z: FloatArray) -> FloatArray:
    return np.asarray(np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi))


@final
@dataclass(frozen=True, eq=False, repr=False)
class DoubleSlit(ClosedForm):
    r"""f before the wall: what passes the slits, and e^{-wall} times what does not. With s^2 = T - t to the wall,

    f = k sum_j (1 + p s^2)^{-1/2} exp(-p x^2 / (2 (1 + p s^2))) P(a_j < N(x/(1 + p s^2), s^2/(1 + p s^2)) < b_j)
        + e^{-wall} P(N(x, s^2) is in no slit),

    k exp(-p x^2/2) being f behind the wall.  edges : the slits [a_j, b_j], (k, 2).
    """

    edges: FloatArray
    log_k: float
    p: float
    wall: float
    horizon: float
    temperature: float

    dim = 1

    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        s = np.maximum(np.sqrt(self.horizon - times)[which], _SHORTEST)[:, None]
        shrunk = 1.0 + self.p * s**2
        log_size = self.log_k - 0.5 * np.log(shrunk) - 0.5 * self.p * x**2 / shrunk
        passed, passed_slope = self._in_slits(x / shrunk, s / np.sqrt(shrunk))
        size = np.exp(log_size[:, 0])
        inside, inside_slope = self._in_slits(x, s)
        stopped = np.exp(-self.wall)
        f = size * passed + stopped * (1.0 - inside)
        slope = size * (passed_slope - self.p * x[:, 0] * passed) / shrunk[:, 0] - stopped * inside_slope
        return self.temperature * np.log(f), self.temperature * (slope / f)[:, None]

    def _in_slits(self, mean: FloatArray, s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """P(N(mean, s^2) is in a slit), (n,), and its derivative by the mean."""
        a, b = ((edge - mean) / s for edge in self.edges.T)
        return _between(a, b).sum(-1), ((_density(a) - _density(b)) / s).sum(-1)

    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        return gradient


def _at_the_wall(x: FloatArray, *, of: DoubleSlit) -> FloatArray:
    z = x[..., 0]
    open_here = ((z[..., None] > of.edges[:, 0]) & (z[..., None] < of.edges[:, 1])).any(-1)
    return np.asarray(of.temperature * np.where(open_here, of.log_k - 0.5 * of.p * z**2, -of.wall))


@register(dims=(1,))
def double_slit(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 0.1,
    after: float = 1.0,
    slits: ArrayLike = ((-6.0, -4.0), (4.0, 6.0)),
    wall: float = 30.0,
    x0: float = -1.0,
) -> ControlProblem:
    """Brownian motion through a wall with slits, then back to the middle.

    dX = dB from X_0 = x0; at the time `horizon` there is a wall with openings, the `slits` (k, 2); the time
    `after` later |X|^2/2 is paid. What is paid for behind the wall is known: y = alpha log E exp(-|X_{T + after}|^2 /
    (2 alpha)) in the slits, and in the wall y = -wall alpha, as a reward is finite; r = 0.

    Exact by error functions. A wall of infinite height changes the optimally controlled law by at most exp(-wall) / f_0
    in relative entropy (6e-7 with these parameters). The slits must not overlap, and nowhere be worse than the wall.
    Source: Kappen, Phys. Rev. Lett. 95 (2005) 200201, arXiv physics/0411119; there the wall stands at 1, the end is at
    2, alpha = 0.1; where the slits are is a parameter here.
    """
    alpha, time, behind = (
        positive_number(value, name, ProblemError)
        for name, value in (("temperature", temperature), ("horizon", horizon), ("after", after))
    )
    edges = real_array(slits, "slits", ProblemError)
    if edges.ndim != 2 or edges.shape[1] != 2 or not len(edges) or not (np.diff(edges.ravel()) > 0).all():
        raise ProblemError(f"slits must be intervals (k, 2) in increasing order, got {edges.tolist()}")
    p = 1.0 / (alpha + behind)
    log_k = 0.5 * float(np.log(alpha * p))
    height = finite_number(wall, "wall", ProblemError)
    worst = log_k - 0.5 * p * float((edges**2).max())
    if -height >= worst:
        raise ProblemError(f"wall must be above {-worst:.3g}, or passing a slit is worse than the wall, got {height:g}")
    exact = DoubleSlit(edges, log_k, p, height, time, alpha)
    drift, start = LinearDrift([[0.0]], [0.0]), PointMass([finite_number(x0, "x0", ProblemError)])
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=drift,
        diffusion=1.0,
        terminal_reward=partial(_at_the_wall, of=exact),
        initial_law=start,
        exact=exact,
        marginal=linear_marginal(drift, 1.0, start),
        name="double-slit",
    )
