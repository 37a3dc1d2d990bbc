"""How far the process goes, axis by axis: tails extrapolated from samples, for boxes and for the grids in them."""

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.stats import norm

from fem_hjb._checks import FloatArray
from fem_hjb.laws import Box
from fem_hjb.problem import ControlProblem
from fem_hjb.sde import sample_paths

_SAMPLES = 4096
_TIMES = 9
_STEPS = 32
_FAR = 2.5  # standard normal quantile that is read off the samples to see how the tail bends
_LEAST_POWER, _MOST_POWER = 0.4, 1.2


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Reach:
    """At each of k times and on each side of the median of each axis, the quantile function x = m +- s zeta^power.

    zeta is the standard normal quantile of the same level: a Gaussian has power 1, the lighter tails of a quartic
    potential 1/2. median (k, d), scale and power (2, k, d), for the lower and the upper side. Where the law is a point
    the scale is 0.
    """

    median: FloatArray
    scale: FloatArray
    power: FloatArray

    def bounds(self, mass: float) -> tuple[FloatArray, FloatArray]:
        """Lower and upper corner (d,) beyond which, on each side of each axis, this mass lies, at any of the times."""
        reach = self.scale * float(norm.isf(mass)) ** self.power
        return (self.median - reach[0]).min(axis=0), (self.median + reach[1]).max(axis=0)

    def weight(self, axis: int, x: FloatArray) -> FloatArray:
        """The root of the density along an axis, relative to its peak, at its largest over the times; (n,)."""
        result = np.zeros(x.shape)
        for k in range(len(self.median)):
            offset = x - self.median[k, axis]
            side = (offset > 0).astype(np.int64)
            scale, power = self.scale[side, k, axis], self.power[side, k, axis]
            zeta = np.where(scale > 0, np.abs(offset) / np.where(scale > 0, scale, 1.0), np.inf) ** (1.0 / power)
            result = np.maximum(result, np.exp(-0.25 * np.minimum(zeta, 60.0) ** 2))
        return result


def reach(problem: ControlProblem) -> Reach:
    """Read off the law of X_t where it is known, else off simulated paths; the same on every call."""
    rng = np.random.default_rng(0)
    if problem.marginal is not None:
        times = np.linspace(0.0, problem.horizon, _TIMES)
        samples = [problem.marginal(float(t)).sample(_SAMPLES, rng) for t in times]
    else:
        x = sample_paths(problem, n=_SAMPLES, steps=_STEPS, rng=rng).x
        samples = [x[:, k] for k in range(0, _STEPS + 1, _STEPS // (_TIMES - 1))]
    levels = norm.cdf([-_FAR, -1.0, 0.0, 1.0, _FAR])
    q = np.stack([np.quantile(x, levels, axis=0) for x in samples], axis=1)  # (5, k, d)
    scale = np.stack([q[2] - q[1], q[3] - q[2]])
    far = np.stack([q[2] - q[0], q[4] - q[2]])
    ratio = far / np.where(scale > 0, scale, 1.0)
    power = np.clip(np.log(np.maximum(ratio, 1e-9)) / np.log(_FAR), _LEAST_POWER, _MOST_POWER)
    return Reach(median=q[2], scale=scale, power=np.where(scale > 0, power, 1.0))


def box_of(problem: ControlProblem, found: Reach, mass: float) -> Box:
    """The box outside which this mass lies on each side of each axis; faces of problem.domain stay where they are."""
    lower, upper = found.bounds(mass)
    domain = problem.domain
    if domain is None:
        return Box(lower, upper, boundary="natural")
    fixed_lower, fixed_upper = domain.bounds
    return Box(
        np.where(np.isfinite(fixed_lower), fixed_lower, lower),
        np.where(np.isfinite(fixed_upper), fixed_upper, upper),
        boundary=domain.boundary,
        exit_reward=domain.exit_reward,
    )
