r"""Options of Black and Scholes as control problems: f = 1 + what is paid on average, so that no logarithm meets 0.

The logarithm of a price, X = log S, follows dX = (rate - sigma^2/2) dt + sigma dB under the pricing measure. The linear
equation of f has the constants as solutions where r = 0, so that with y = log(1 + payoff), alpha = 1,

    f_t(x) = exp(v_t(x)) = 1 + E[payoff | X_t = x],    price = exp(-rate (T - t)) (f - 1).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
from scipy.special import ndtr

from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import ClosedForm
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import FloatArray, IntArray, finite_number, positive_number
from fem_hjb.support.errors import ProblemError

_SHORTEST = 1e-150  # a standard deviation that stands for none


def _density(z: FloatArray) -> FloatArray:
    return np.asarray(np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi))


@dataclass(frozen=True, eq=False, repr=False)
class _Option(ClosedForm):
    """f = 1 + the mean payoff, in units of the strike: value, gradient and policy."""

    strike: float
    sigma: float
    rate: float
    horizon: float

    temperature = 1.0
    dim = 1

    @abstractmethod
    def paid(self, x: FloatArray, to_go: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The mean payoff (n,) and its slope in x = log S (n,), with the time to go (n,)."""

    def distances(self, x: FloatArray, to_go: FloatArray) -> tuple[FloatArray, FloatArray]:
        """d_2 of Black and Scholes, and the standard deviation of the logarithm of the price."""
        spread = np.maximum(self.sigma * np.sqrt(to_go), _SHORTEST)
        return (x - np.log(self.strike) + (self.rate - 0.5 * self.sigma**2) * to_go) / spread, spread

    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean, slope = self.paid(x[:, 0], (self.horizon - times)[which])
        return np.log1p(mean), (slope / (1.0 + mean))[:, None]

    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        return self.sigma**2 * gradient


@final
class DigitalOption(_Option):
    """Pays 1 if S_T > K: the mean payoff is Phi(d_2)."""

    def paid(self, x: FloatArray, to_go: FloatArray) -> tuple[FloatArray, FloatArray]:
        d2, spread = self.distances(x, to_go)
        return ndtr(d2), _density(d2) / spread


@final
@dataclass(frozen=True, eq=False, repr=False)
class DownAndOutCall(_Option):
    """Pays (S_T - K)^+ / K if the price stayed above the barrier B <= K; by reflection at log B."""

    barrier: float

    def call(self, x: FloatArray, to_go: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The mean payoff without the barrier, and its slope."""
        d2, spread = self.distances(x, to_go)
        stock = np.exp(x - np.log(self.strike) + self.rate * to_go) * ndtr(d2 + spread)
        return stock - ndtr(d2), stock

    def paid(self, x: FloatArray, to_go: FloatArray) -> tuple[FloatArray, FloatArray]:
        barrier, power = np.log(self.barrier), 1.0 - 2.0 * self.rate / self.sigma**2
        (free, free_slope), (image, image_slope) = self.call(x, to_go), self.call(2.0 * barrier - x, to_go)
        weight = np.exp(power * (x - barrier))
        return free - weight * image, free_slope - weight * (power * image - image_slope)


def _digital(x: FloatArray, *, level: float) -> FloatArray:
    return np.where(x[..., 0] > level, np.log(2.0), 0.0)


def _call(x: FloatArray, *, level: float) -> FloatArray:
    """log(1 + (S/K - 1)^+)."""
    return np.maximum(x[..., 0] - level, 0.0)


def _positive(**given: float) -> list[float]:
    return [positive_number(value, name, ProblemError) for name, value in given.items()]


@register(dims=(1,))
def digital_option(
    dim: int,
    *,
    horizon: float = 1.0,
    spot: float = 100.0,
    strike: float = 100.0,
    sigma: float = 0.25,
    rate: float = 0.0,
) -> ControlProblem:
    """A digital option of Black and Scholes, paid above the strike.

    dX = (rate - sigma^2/2) dt + sigma dB,  X = log S,  X_0 = log spot,  r = 0,  y = log(1 + 1{S > strike}),  alpha = 1.

    exp(v) - 1 is the mean payoff Phi(d_2), exact; y jumps. spot, strike, sigma > 0.
    Source: Black and Scholes, J. Polit. Econ. 81 (1973) 637-654; the closed form, Hull, Options, Futures, and Other
    Derivatives, chapter on exotic options.
    """
    s, k, noise = _positive(spot=spot, strike=strike, sigma=sigma)
    drift = LinearDrift([[0.0]], [finite_number(rate, "rate", ProblemError) - 0.5 * noise**2])
    start = PointMass([np.log(s)])
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=1.0,
        drift=drift,
        diffusion=noise**2,
        terminal_reward=partial(_digital, level=float(np.log(k))),
        initial_law=start,
        exact=DigitalOption(k, noise, float(rate), positive_number(horizon, "horizon", ProblemError)),
        marginal=linear_marginal(drift, noise**2, start),
        name="digital-option",
    )


@register(dims=(1,))
def down_and_out_call(
    dim: int,
    *,
    horizon: float = 1.0,
    spot: float = 100.0,
    strike: float = 100.0,
    barrier: float = 85.0,
    sigma: float = 0.25,
    rate: float = 0.05,
) -> ControlProblem:
    """A barrier option of Black and Scholes: a call that is lost at a lower barrier.

    dX = (rate - sigma^2/2) dt + sigma dB,  X = log S,  X_0 = log spot,  absorbed at log barrier, where nothing is paid;
    r = 0,  y = log(1 + (S - strike)^+ / strike),  alpha = 1.

    exp(v) - 1 is the mean payoff in units of the strike, exact by reflection; y has a kink. sigma > 0 and 0 < barrier
    <= strike, barrier < spot.
    Source: Merton, Bell J. Econ. 4 (1973) 141-183, section 8.
    """
    s, k, b, noise = _positive(spot=spot, strike=strike, barrier=barrier, sigma=sigma)
    if b > k or b >= s:
        raise ProblemError(f"barrier must lie below spot and at most at the strike, got {b:g}, {s:g} and {k:g}")
    mean = finite_number(rate, "rate", ProblemError) - 0.5 * noise**2
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=1.0,
        drift=LinearDrift([[0.0]], [mean]),
        diffusion=noise**2,
        terminal_reward=partial(_call, level=float(np.log(k))),
        initial_law=PointMass([np.log(s)]),
        domain=Box([np.log(b)], [np.inf], boundary=[("absorbing", "natural")]),
        exact=DownAndOutCall(k, noise, float(rate), positive_number(horizon, "horizon", ProblemError), b),
        name="down-and-out-call",
    )
