"""What the families of `reliability_problems` share: a problem with its value, random numbers, other coordinates."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import reliability_truths as truths

from fem_hjb.problems import zoo
from fem_hjb.problems.laws import Law
from fem_hjb.problems.problem import ControlProblem, LinearDrift, ValueFunction
from fem_hjb.support.checks import FloatArray

Rng = np.random.Generator


@dataclass(frozen=True)
class Posed:
    """A problem and its value; told: the parameters, to read.

    infinite: the value is +infinity, and truth None.  latest: the fraction of the horizon up to which errors are looked
    at.  breaks: times at which the drift jumps; paths that are judged along have steps that end there.
    """

    problem: ControlProblem
    truth: ValueFunction | None
    told: dict[str, Any]
    latest: float = 1.0
    breaks: tuple[float, ...] = ()

    @property
    def infinite(self) -> bool:
        return self.truth is None


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def symmetric(rng: Rng, eigenvalues: FloatArray) -> FloatArray:
    """With these eigenvalues and random axes."""
    axes = np.linalg.qr(rng.standard_normal((eigenvalues.size, eigenvalues.size)))[0]
    return np.asarray((axes * eigenvalues) @ axes.T)


def positive(rng: Rng, dim: int, low: float, high: float) -> FloatArray:
    return symmetric(rng, np.array([log_uniform(rng, low, high) for _ in range(dim)]))


def random_drift(rng: Rng, dim: int) -> FloatArray:
    while True:
        A = rng.standard_normal((dim, dim)) - 0.85 * np.eye(dim)
        real = np.linalg.eigvals(A).real
        if real.min() >= -2.0 and real.max() <= 0.3:
            return np.asarray(A)


def oblique(rng: Rng, dim: int) -> FloatArray:
    """A matrix of determinant near 1 that mixes all coordinates."""
    return np.asarray(symmetric(rng, rng.uniform(0.7, 1.4, dim)) @ np.linalg.qr(rng.standard_normal((dim, dim)))[0])


def temperature(rng: Rng) -> float:
    return log_uniform(rng, 0.3, 3.0)


def of_zoo(name: str, dim: int, params: dict[str, Any]) -> Posed:
    problem = zoo.get(name, dim, **params)
    return Posed(problem, problem.exact, {"zoo": name, "dim": dim, **params})


def mixture_numbers(rng: Rng, dim: int) -> dict[str, Any]:
    k = int(rng.integers(2, 5))
    weights = rng.uniform(0.2, 1.0, k)
    return {
        "weights": weights / weights.sum(),
        "means": rng.normal(0.0, 1.2, (k, dim)),
        "covariances": np.stack([positive(rng, dim, 0.1, 0.6) for _ in range(k)]),
    }


def ou(rng: Rng, dim: int, index: int, **changes: Any) -> Posed:
    """A mixture problem for Brownian motion or an OU process, of random numbers but for the changes."""
    params = mixture_numbers(rng, dim) | {
        "temperature": temperature(rng),
        "A": -symmetric(rng, rng.uniform(0.0, 1.5, dim)),
        "Lambda": positive(rng, dim, 0.3, 2.0),
        "mean": rng.normal(0.0, 0.5, dim),
        "cov": positive(rng, dim, 0.1, 1.0),
    }
    return of_zoo("brownian-mixture", dim, params | changes)


def through(posed: Posed, M: FloatArray, bend: FloatArray, start: Law, **changes: Any) -> Posed:
    """The problem in the coordinates x = M phi(z), from another start."""
    old, map_ = posed.problem, truths.Map(M, bend)
    if posed.truth is None:
        raise ValueError("a problem without a value")

    def drift(t: Any, x: FloatArray) -> FloatArray:
        z = map_.back(x)
        first, second = map_.slopes(z)
        noise = np.einsum("...ii->...i", old.Lambda(t, z))
        return np.asarray((first * old.b(t, z) + 0.5 * second * noise) @ M.T)

    def diffusion(t: Any, x: FloatArray) -> FloatArray:
        z = map_.back(x)
        turned = M * map_.slopes(z)[0][..., None, :]
        return np.asarray(turned @ old.Lambda(t, z) @ np.swapaxes(turned, -1, -2))

    constant = old.constant_diffusion
    made = ControlProblem(
        dim=old.dim,
        horizon=old.horizon,
        temperature=old.temperature,
        drift=drift,
        diffusion=diffusion if bend.any() or constant is None else M @ constant @ M.T,
        terminal_reward=lambda x: old.y(map_.back(x)),
        running_reward=None if old.running_reward is None else lambda t, x: old.r(t, map_.back(x)),
        initial_law=start,
        name="mapped",
        **changes,
    )
    return replace(
        posed, problem=made, truth=truths.Mapped(posed.truth, map_), told={**posed.told, "M": M, "bend": bend}
    )


def as_callable(posed: Posed, index: int) -> Posed:
    """Every other time the drift is told as a callable, and the law not at all."""
    drift = posed.problem.drift
    if index % 2 == 0 or not isinstance(drift, LinearDrift):
        return posed
    A = drift.coefficients[0]
    return replace(posed, problem=replace(posed.problem, drift=lambda t, x: x @ A.T, marginal=None, exact=None))
