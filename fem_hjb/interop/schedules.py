r"""Noise schedules of diffusion models, and the reverse process as coefficients of a control problem.

Data are noised along s in [0, T], dY = -h g^2/2 Y ds + g dB, with g^2 = g^2(s) the rate of the noise; h = 1 preserves
variances (VP, g^2 = beta), h = 0 lets them explode (VE, g^2 = d sigma^2/ds). With q_s the law of Y_s and t = T - s,

    dX = [h g^2/2 X + (1 + eta^2)/2 g^2 grad log q_{T-t}(X)] dt + eta g dB,   X_0 ~ q_T,

has X_t ~ q_{T-t} for every eta in (0, 1]: eta = 1 is the time reversal, eta -> 0 the probability-flow ODE.

Source: Song et al., arXiv 2011.13456.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.problem import Drift
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, positive_number, real_array
from fem_hjb.support.errors import ProblemError
from fem_hjb.support.objects import Plain

Rate = Callable[[FloatArray], ArrayLike]


@final
@dataclass(frozen=True, eq=False)
class VP(Plain):
    """Variance-preserving noise, dY = -beta/2 Y ds + beta^{1/2} dB.

    beta : a number, the ends (beta_0, beta_T) of a linear schedule in s, or a callable s (...) -> (...).

    >>> VP((1.0, 20.0)).rate(np.array([0.0, 0.5]), horizon=1.0).tolist()
    [1.0, 10.5]
    """

    beta: float | tuple[float, float] | Rate

    def __post_init__(self) -> None:
        if not callable(self.beta):
            for number in self.beta if isinstance(self.beta, tuple | list) else (self.beta,):
                positive_number(number, "beta", ProblemError)
            if isinstance(self.beta, tuple | list) and len(self.beta) != 2:
                raise ProblemError(f"beta must be a number, a pair (beta_0, beta_T) or a callable, got {self.beta!r}")

    @property
    def constant(self) -> float | None:
        """beta where it is a number, else None."""
        return None if callable(self.beta) or isinstance(self.beta, tuple | list) else float(self.beta)

    @property
    def shrinks(self) -> bool:
        """Whether the noising process is drawn to 0."""
        return True

    def rate(self, s: FloatArray, horizon: float) -> FloatArray:
        """g^2(s) = beta_s, of the shape of s."""
        if callable(self.beta):
            return _checked_rate("beta(s)", self.beta, s)
        start, end = self.beta if isinstance(self.beta, tuple | list) else (self.beta, self.beta)
        return np.asarray(start + (end - start) * s / horizon)


@final
@dataclass(frozen=True, eq=False)
class VE(Plain):
    """Variance-exploding noise, dY = (d sigma^2/ds)^{1/2} dB.

    sigma : the ends (sigma_0, sigma_T) of the geometric schedule sigma_0 (sigma_T/sigma_0)^{s/T}; or a number, the
    constant volatility g, sigma^2 = g^2 s; or a callable s (...) -> d sigma^2/ds (...), the rate of the variance.

    >>> VE((1.0, np.e)).rate(np.array([0.0]), horizon=1.0).tolist()      # 2 log(sigma_T/sigma_0)/T sigma^2
    [2.0]
    """

    sigma: float | tuple[float, float] | Rate

    def __post_init__(self) -> None:
        given = self.sigma
        if not callable(given):
            for number in given if isinstance(given, tuple | list) else (given,):
                positive_number(number, "sigma", ProblemError)
            if isinstance(given, tuple | list) and (len(given) != 2 or given[0] >= given[1]):
                raise ProblemError(
                    f"sigma must be a pair sigma_0 < sigma_T, a number or a callable s -> d sigma^2/ds, got {given!r}"
                )

    @property
    def constant(self) -> float | None:
        """g^2 where g is a number, else None."""
        return None if callable(self.sigma) or isinstance(self.sigma, tuple | list) else float(self.sigma) ** 2

    @property
    def shrinks(self) -> bool:
        """Whether the noising process is drawn to 0."""
        return False

    def rate(self, s: FloatArray, horizon: float) -> FloatArray:
        """g^2(s) = d sigma^2/ds, of the shape of s."""
        if callable(self.sigma):
            return _checked_rate("sigma(s), the rate d sigma^2/ds,", self.sigma, s)
        if not isinstance(self.sigma, tuple | list):
            return np.full(s.shape, float(self.sigma) ** 2)
        start, end = self.sigma
        growth = 2 * np.log(end / start) / horizon
        return np.asarray(growth * start**2 * np.exp(growth * s))


def _checked_rate(name: str, function: Rate, s: FloatArray) -> FloatArray:
    try:
        found = real_array(function(s), f"what {name} returns", ProblemError)
        rate = np.broadcast_to(found, s.shape)
    except ProblemError:
        raise
    except Exception as cause:  # a callable is any code
        raise ProblemError(f"{name} failed for s of shape {s.shape}: {type(cause).__name__}: {cause}") from cause
    if not (np.isfinite(rate).all() and (rate > 0).all()):
        raise ProblemError(f"{name} must be positive and finite, got values in [{rate.min():g}, {rate.max():g}]")
    return rate


@final
@dataclass(frozen=True, eq=False)
class ReverseProcess(Plain):
    """Drift and diffusion of the reverse process, from a score (s, x (..., d)) -> (..., d) in the noising time s."""

    score: Drift
    schedule: VP | VE
    dim: int
    horizon: float
    eta: float

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise ProblemError(f"score must be a callable (s, x) -> (..., d), got {type(self.score).__name__}")
        if not isinstance(self.schedule, VP | VE):
            raise ProblemError(f"schedule must be VP(beta) or VE(sigma), got {type(self.schedule).__name__}")
        positive_number(self.horizon, "horizon", ProblemError)
        if positive_number(self.eta, "eta", ProblemError) > 1:
            raise ProblemError(f"eta must lie in (0, 1], got {self.eta!r}")

    def drift(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        """h g^2/2 x + (1 + eta^2)/2 g^2 score(T - t, x), shape (..., d)."""
        s = self.horizon - np.asarray(t, dtype=np.float64)
        score = call("score(s, x)", self.score, (s, x), ProblemError)
        if score.shape != x.shape:
            raise ProblemError(f"score(s, x) returned shape {score.shape} for x of shape {x.shape}, expected {x.shape}")
        pull = (1 + self.eta**2) * score
        return self.schedule.rate(s, self.horizon)[..., None] / 2 * (x + pull if self.schedule.shrinks else pull)

    def diffusion_matrix(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        """Lambda_t = eta^2 g^2(T - t) I, shape (..., d, d)."""
        s = self.horizon - np.asarray(t, dtype=np.float64)
        rate = np.broadcast_to(self.eta**2 * self.schedule.rate(s, self.horizon), x.shape[:-1])
        return np.asarray(rate[..., None, None] * np.eye(self.dim))

    @property
    def constant_diffusion(self) -> float | None:
        """eta^2 g^2 where it is a number, else None."""
        rate = self.schedule.constant
        return None if rate is None else self.eta**2 * rate
