"""What is certified of a policy: intervals for its reward, for the optimal value and for the gap between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.special import stdtrit

from fem_hjb.evaluation.weights import Found
from fem_hjb.support.checks import FloatArray

_EVENLY = np.array([0.0, 1.0])  # what of the chains with long and with short steps makes the chain with short ones,
_EXTRAPOLATED = np.array([-1.0, 2.0])  # the diffusion,
_APART = np.array([1.0, -1.0])  # and the difference of the two, chain - diffusion


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate, and a confidence interval [low, high] around it; nan in an interval without an estimate."""

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of high - low."""
        return (self.high - self.low) / 2

    def __contains__(self, number: float) -> bool:
        return bool(self.low <= number <= self.high)

    def __str__(self) -> str:
        return f"{self.estimate:.6g}  [{self.low:.6g}, {self.high:.6g}]"


@final
@dataclass(frozen=True, kw_only=True)
class Bounds:
    """reward : J(pi).  optimal : v*.  gap : their difference, what the policy loses."""

    reward: Interval
    optimal: Interval
    gap: Interval


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Certificate:
    """Bounds of the optimal value from the paths of a policy.

    lower, upper : v* lies between them with the probability `level` at least.  value : the estimate of v*.
    upper_by : what `upper` comes from.  gap : J(pi*) - J(pi) = alpha KL.
    diffusion : the intervals they are taken from, two step sizes extrapolated to none.
    chain : the same of the Euler chain with `steps` steps, where nothing is extrapolated; None if an approximate value
        was followed, whose residual belongs to the diffusion.
    bias : what the chain is off by, chain - diffusion.
    ess : the effective sample size (sum e^W)^2 / sum e^{2W}, of all `paths`.  tail : the index k of the tail of e^W.
    starts : how many starts there are, 1 for a fixed one.
    steps : how many there are until the horizon.  step : None; where paths end at an exit, the length of a step instead
        (and steps is 0).
    status : "ok", or in words what is not.

    Where the weights have degenerated value is nan and upper is inf; the interval of v* begins at `lower`.
    """

    name: str
    lower: float
    value: float
    upper: float
    upper_by: str
    gap: Interval
    diffusion: Bounds
    chain: Bounds | None
    bias: Bounds
    ess: float
    tail: float
    paths: int
    starts: int
    steps: int
    level: float
    status: str
    step: float | None = None

    def __repr__(self) -> str:
        paced = f"{self.steps} and {self.steps // 2} steps"
        if self.step is not None:
            paced = f"steps of {self.step:g} and {2 * self.step:g} until they left"
        above = f"v* <= {self.upper:.6g} by {self.upper_by}" if np.isfinite(self.upper) else "no upper bound"
        return "\n".join(
            (
                f"certificate of a policy of {self.name!r}, level {self.level:g}: {self.status}",
                f"J(pi)  {self.diffusion.reward}, so that v* >= {self.lower:.6g}",
                f"v*     {self.diffusion.optimal}, {above}",
                f"gap    {self.gap}; steps put {self.bias.reward.estimate:.2g} into J, {self.bias.optimal.estimate:.2g}"
                " into v*",
                f"{self.paths} paths from {self.starts} start{'s' if self.starts > 1 else ''} in {paced},"
                f" effective sample size {self.ess:.4g}, tail index {self.tail:.2f}",
            )
        )


def intervals(found: Found, alpha: float, level: float) -> tuple[Bounds, Bounds, Bounds]:
    """Of the diffusion, of the chain with short steps, and of the difference chain - diffusion; Student's intervals.

    Those of v* are wider by the heaviest weight's excess where weights are alike but have a heavy tail: what a tail of
    index k < 1 holds beyond the heaviest of n weights is about 1 / (n (1 - k)) of that.
    """
    quantile = float(stdtrit(max(found.count - 1, 1), (1.0 + level) / 2.0))
    unseen = found.excess if found.heavy and found.alike else 0.0

    def interval(weights: FloatArray) -> Interval:
        estimate = alpha * float(weights @ found.theta)
        variance = max(float(weights @ found.covariance @ weights), 0.0) if found.count > 1 else math.inf
        margin = alpha * (quantile * math.sqrt(variance) + unseen * float(np.abs(weights[2:]).sum()))
        return Interval(estimate=estimate, low=estimate - margin, high=estimate + margin)

    def bounds(chains: FloatArray) -> Bounds:
        none = np.zeros(2)
        return Bounds(
            reward=interval(np.concatenate([chains, none])),
            optimal=interval(np.concatenate([none, chains])),
            gap=interval(np.concatenate([-chains, chains])),
        )

    return bounds(_EXTRAPOLATED), bounds(_EVENLY), bounds(_APART)


def without_value(bounds: Bounds) -> Bounds:
    """What is left of bounds when the weights have degenerated: v* is above the reward, as far as that is known."""
    return Bounds(
        reward=bounds.reward,
        optimal=Interval(estimate=np.nan, low=bounds.reward.low, high=np.inf),
        gap=Interval(estimate=np.nan, low=0.0, high=np.inf),
    )


def separate(reward: Bounds, optimal: Bounds) -> Bounds:
    """The reward of one run and the optimal value of another, independent one."""
    J, v = reward.reward, optimal.optimal
    middle, margin = v.estimate - J.estimate, float(np.hypot(J.half_width, v.half_width))
    return Bounds(reward=J, optimal=v, gap=Interval(estimate=middle, low=middle - margin, high=middle + margin))
