"""The problems of `bench_reliability`, by family: random ones with fixed seeds, whose value is known without `solve`.

A problem is made of its family, dimension and index alone: `posed("mapped", 2, 17)`. Where the truth is from:

    lq            linear drift, quadratic rewards, indefinite at times: Riccati equations (Fleming, Rishel 1975, VI.5)
    mixture       tilted mixture diffusions; Brownian and OU processes steered to mixtures: sums of exponentials of
                  quadratics (`problems.mixtures`, `problems.closed_form`); temperatures down to 0.03
    manufactured  a value of choice, any drift, a full Lambda that depends on the state (Roache, J. Fluids Eng. 124
                  (2002) 4-10); starts and values far from the origin, correlated
    mapped        x = M phi(z) of a process z steered to a mixture: same value, by Ito's formula
    wells         2 to 7 minima; in two dimensions products of two, rotated or not: Schroedinger operators on a grid
                  of sinc functions, by eigenpairs
    kink, jump    y linear on pieces, continuous or not, Brownian motion or OU: normal distribution functions; in two
                  dimensions products, rotated or not
    exit          stopped at faces: first passage of a half line, exit rewards that fit y and that do not; sine series
    reflected     cosine series, coupled in two dimensions
    rare          y jumps by up to 20 temperatures 3 to 7 standard deviations out: as jump
    far           targets with modes 3 to 15 standard deviations away, as likely as near ones under control: as mixture;
                  half of them divided by the law of X_T, so that v_0 = 0 (Zhang and Chen, arXiv 2111.15141)
    stiff         OU processes with rates 20 to 1000 T^-1 (and 1 to 1000 T^-1 in two dimensions): as mixture
    long          horizons of 1e-4 to 50 times that of relaxation: as mixture, and cosine series
    units         coordinates in units of 1e-6 to 1e6, rewards likewise: as mixture, wells, kink
    window        the drift is pushed for 0.2 to 30 per cent of the horizon: as mixture, moved
    start         points, narrow and wide laws, mixtures, uniform laws, off centre, correlated: as mixture, wells, kink
    infinite      E exp(y / alpha) = infinity: quartic, exponential, quadratic beyond the critical weight. Right is an
                  InfiniteValueError, or a status that is not ok

`latest` is the fraction of the horizon up to which errors are looked at: policies near a jump grow without bound
towards T, and no mean square of them is finite there; at kinks they jump at T itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from reliability_draws import (
    Posed,
    Rng,
    as_callable,
    log_uniform,
    ou,
    positive,
    symmetric,
    through,
)
from reliability_rough import exit_, infinite, jump, kink, rare, reflected, series, window
from reliability_smooth import far, lq, manufactured_value, mapped, mixture, stiff, wells

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, PointMass, Uniform
from fem_hjb.problems.problem import ValueFunction
from fem_hjb.support.checks import FloatArray

SEED = 20_261


def long(rng: Rng, dim: int, index: int) -> Posed:
    horizon = log_uniform(rng, 1e-4, 1e-2) if index % 3 == 0 else log_uniform(rng, 5.0, 50.0)
    if dim == 1 and index % 3 == 2:
        return series(rng, dim, index, False, horizon)
    A = -symmetric(rng, rng.uniform(0.5, 2.0, dim))
    posed = ou(rng, dim, index, horizon=horizon, A=A)
    return as_callable(posed, index)


def units(rng: Rng, dim: int, index: int) -> Posed:
    scale = np.array([log_uniform(rng, 1e-6, 1e6) for _ in range(dim)])
    base = (ou, wells, kink)[index % 3](rng, dim, index)
    law = base.problem.initial_law
    start = Gaussian(scale * law.expectation, law.covariance * np.outer(scale, scale))
    posed = through(base, np.diag(scale), np.zeros(dim), start)
    reward = log_uniform(rng, 1e-6, 1e6)
    old = posed.problem
    problem = replace(
        old,
        temperature=reward * old.temperature,
        terminal_reward=lambda x: reward * old.y(x),
    )
    if posed.truth is None:
        raise ValueError("a problem without a value")
    return replace(
        posed,
        problem=problem,
        truth=_Scaled(posed.truth, reward),
        told={**posed.told, "units": scale, "unit of the reward": reward},
    )


@dataclass(frozen=True)
class _Scaled:
    of: ValueFunction
    size: float

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return self.size * self.of.value(t, x)

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        return self.size * self.of.gradient(t, x)


def start(rng: Rng, dim: int, index: int) -> Posed:
    base = (ou, wells, kink, ou)[index % 4](rng, dim, index)
    centre, kind = rng.normal(0.0, 1.0, dim), int(rng.integers(0, 6))
    if index % 4 == 0:
        centre = centre + rng.choice([-4.0, 4.0], dim)
    if index % 4 == 1:
        centre = 0.4 * centre
    cov = positive(rng, dim, 0.01, 0.3)
    laws: list[Callable[[], Law]] = [
        lambda: PointMass(centre),
        lambda: Gaussian(centre, 1e-4 * cov),
        lambda: Gaussian(centre, 1e-9 * cov),
        lambda: Uniform(Box(centre - 0.5, centre + 0.7)),
        lambda: GaussianMixture([0.3, 0.7], np.stack([centre, -0.5 * centre]), np.stack([cov, 0.1 * cov])),
        lambda: Gaussian(centre, cov),
    ]
    law = laws[kind]()
    problem = replace(base.problem, initial_law=law, marginal=None, exact=None)
    return replace(base, problem=problem, told={**base.told, "start": repr(law), "centre": centre})


@dataclass(frozen=True)
class Family:
    """How many problems in dimension 1, 2 and 3, and how one is made."""

    build: Callable[[Rng, int, int], Posed]
    counts: tuple[int, int, int]


FAMILIES = {
    "mixture": Family(mixture, (18, 14, 4)),
    "manufactured": Family(manufactured_value, (18, 14, 4)),
    "mapped": Family(mapped, (16, 12, 4)),
    "wells": Family(wells, (18, 12, 0)),
    "kink": Family(kink, (14, 8, 0)),
    "jump": Family(jump, (14, 8, 0)),
    "exit": Family(exit_, (16, 6, 0)),
    "reflected": Family(reflected, (12, 8, 4)),
    "rare": Family(rare, (12, 4, 0)),
    "far": Family(far, (16, 10, 4)),
    "stiff": Family(stiff, (12, 8, 0)),
    "long": Family(long, (12, 6, 0)),
    "units": Family(units, (12, 9, 0)),
    "window": Family(window, (12, 6, 0)),
    "start": Family(start, (16, 8, 0)),
    "infinite": Family(infinite, (8, 4, 0)),
    "lq": Family(lq, (12, 12, 6)),
}


def posed(family: str, dim: int, index: int) -> Posed:
    """The problem of this label, the same on every call."""
    rng = np.random.default_rng([SEED, list(FAMILIES).index(family), dim, index])
    return FAMILIES[family].build(rng, dim, index)


def labels(dims: list[int], most: int | None = None) -> list[tuple[str, int, int]]:
    """(family, dim, index) of every problem in these dimensions, at most so many of each family and dimension."""
    return [
        (name, dim, index)
        for dim in dims
        for name, family in FAMILIES.items()
        for index in range(min(family.counts[dim - 1], most or 10**9))
    ]
