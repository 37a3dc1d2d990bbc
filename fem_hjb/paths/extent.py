"""How far the process goes: boxes that hold it, by quantiles of samples or by tails extrapolated from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from scipy.special import ndtr, ndtri

from fem_hjb.paths.simulate import sample_at, sample_paths
from fem_hjb.paths.stiffness import substeps_of
from fem_hjb.problems.box import Box
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, require_box, require_problem
from fem_hjb.support.checks import (
    FloatArray,
    Rng,
    array_length,
    non_negative_number,
    spawn_generators,
)
from fem_hjb.support.errors import DomainError

_SAMPLES = 4096
_TIMES = 9
_STEPS = 32
_EARLY = 6  # times, of which the last is after one of these steps, and each half of the next
FAR = 2.5  # standard normal quantile that is read off the samples to see how the tail bends
_LEAST_POWER, MOST_POWER = 0.4, 2.0
_BEYOND, _FEW_POWER = 10.0, 1.2  # draws beyond it, and the most power that fewer draws tell


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
        reach = self.scale * float(-ndtri(mass)) ** self.power
        return (self.median - reach[0]).min(axis=0), (self.median + reach[1]).max(axis=0)

    def density(self, axis: int, x: FloatArray, first: float = 0.0, last: float = 1.0) -> FloatArray:
        """The density along an axis relative to its peak, at its largest over these fractions of the horizon; (n,)."""
        most = len(self.median) - 1
        low, high = int(np.floor(first * most)), int(np.ceil(last * most))
        result = np.zeros(x.shape)
        for k in range(min(low, most - 1), max(high, 1) + 1):
            offset = x - self.median[k, axis]
            side = (offset > 0).astype(np.int64)
            scale, power = self.scale[side, k, axis], self.power[side, k, axis]
            zeta = np.where(scale > 0, np.abs(offset) / np.where(scale > 0, scale, 1.0), np.inf) ** (1.0 / power)
            result = np.maximum(result, np.exp(-0.5 * np.minimum(zeta, 60.0) ** 2))
        return result


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LawSample:
    """Where the process goes, uncontrolled (P) and optimally controlled (P*).

    times (k,); x (k, n, d), draws of X_t under P; paths (k, m, d), whole trajectories under P, whose weights
    exp(tilt), with tilt (m,) = (y(X_T) + int r dt) / alpha, make them trajectories under P* but for the law of X_0.
    often : pairs of times (q,) and draws (q, n, d) at them: these, and others between and early, as a law that begins
        at a point spreads at once.
    """

    times: FloatArray
    x: FloatArray
    paths: FloatArray
    tilt: FloatArray
    often: tuple[tuple[FloatArray, FloatArray], ...]

    def nearest(self, t: float) -> int:
        """The place of the time next to t."""
        return int(np.abs(self.times - t).argmin())

    def at(self, t: float) -> FloatArray:
        """Draws (n, d) of X_t at the time next to t of all that there are."""
        times, x = min(self.often, key=lambda pair: float(np.abs(pair[0] - t).min()))
        return np.asarray(x[int(np.abs(times - t).argmin())])

    def optimal(self) -> tuple[FloatArray, float]:
        """The weights (m,) of paths under P*, of sum 1, and how many draws they are worth; starts are tilted, too."""
        weights = np.exp(self.tilt - self.tilt.max())
        weights /= weights.sum()
        return weights, float(1.0 / (weights**2).sum())


def sample_law(problem: ControlProblem, seed: int = 0) -> LawSample:
    """Draws at nine times: from the law of X_t where it is known, else of simulated paths; the same seed, the same."""
    rng, T = np.random.default_rng(seed), problem.horizon
    times = np.linspace(0.0, T, _TIMES)
    count = _SAMPLES if problem.marginal is None else _SAMPLES // 4  # P alone needs no paths where its law is known
    found = sample_at(problem, times, n=count, rng=rng, steps=_STEPS, substeps=substeps_of(problem, _STEPS))
    paths = np.moveaxis(found.x[:, np.searchsorted(found.t, times)], 1, 0)
    reward = problem.y(paths[-1])
    if problem.running_reward is not None:
        every = np.broadcast_to(found.t, found.x.shape[:2])
        reward = reward + np.trapezoid(problem.r(every, found.x), found.t, axis=1)
    early = np.asarray(T / _STEPS * 2.0 ** -np.arange(_EARLY - 1.0, -1.0, -1.0), dtype=np.float64)
    if problem.marginal is None:
        x, often = paths, ((found.t, np.moveaxis(found.x, 1, 0)), (early, _soon(problem, early, [seed, _EARLY])))
    else:
        x = np.stack([problem.marginal(float(t)).sample(_SAMPLES, rng) for t in times])
        others = np.concatenate([early, 0.5 * (times[1:] + times[:-1])])
        drawn = np.stack([problem.marginal(float(t)).sample(_SAMPLES, rng) for t in others])
        often = ((times, x), (others, drawn))
    return LawSample(times=times, x=x, paths=paths, tilt=reward / problem.temperature, often=often)


def _soon(problem: ControlProblem, times: FloatArray, seed: list[int]) -> FloatArray:
    """Draws (k, n, d) at times that are soon after 0."""
    short = replace(problem, horizon=float(times[-1]))
    found = sample_at(short, times, n=_SAMPLES, rng=np.random.default_rng(seed), steps=1)
    return np.moveaxis(found.x[:, np.searchsorted(found.t, times)], 1, 0)


def reach_of(x: FloatArray, weights: FloatArray | None = None) -> Reach:
    """Read off draws x (k, n, d) at k times, of equal weights or of weights (n,).

    Draws that are too few for the last quantile tell no tails heavier than about those of a Gaussian.
    """
    worth = x.shape[1] if weights is None else 1.0 / float((weights**2).sum())
    most = MOST_POWER if worth * ndtr(-FAR) > _BEYOND else _FEW_POWER
    levels = ndtr([-FAR, -1.0, 0.0, 1.0, FAR])
    if weights is None:
        q = np.quantile(x, levels, axis=1)  # (5, k, d)
    else:
        order = np.argsort(x, axis=1)
        ranks = np.cumsum(weights[order], axis=1) - 0.5 * weights[order]
        ordered = np.take_along_axis(x, order, axis=1)
        q = np.empty((levels.size, len(x), x.shape[2]))
        for k in range(len(x)):
            for axis in range(x.shape[2]):
                q[:, k, axis] = np.interp(levels, ranks[k, :, axis], ordered[k, :, axis])
    scale = np.stack([q[2] - q[1], q[3] - q[2]])
    far = np.stack([q[2] - q[0], q[4] - q[2]])
    ratio = far / np.where(scale > 0, scale, 1.0)
    power = np.clip(np.log(np.maximum(ratio, 1e-9)) / np.log(FAR), _LEAST_POWER, most)
    return Reach(median=q[2], scale=scale, power=np.where(scale > 0, power, 1.0))


def box_of(problem: ControlProblem, found: Sequence[Reach], mass: float) -> Box:
    """The box outside which this mass of each law lies on each side of each axis; faces of a domain stay."""
    corners = np.array([each.bounds(mass) for each in found])
    lower, upper = corners[:, 0].min(axis=0), corners[:, 1].max(axis=0)
    domain = problem.box
    if domain is None:
        return Box(lower, upper, boundary="natural")
    fixed_lower, fixed_upper = domain.bounds
    return Box(
        np.where(np.isfinite(fixed_lower), fixed_lower, lower),
        np.where(np.isfinite(fixed_upper), fixed_upper, upper),
        boundary=domain.boundary,
        exit_reward=domain.exit_reward,
    )


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Truncation:
    """A box to truncate R^d to, and what it leaves out.

    excluded_mass : the largest fraction, over the observed times, of `samples` fresh paths found outside the box.
        It is an estimate: 0 means that the mass is below 3 / samples at 95 per cent confidence, not that it is 0.
    samples : the number of these paths; 0 when nothing was simulated because the process cannot leave its domain.
    """

    box: Box
    excluded_mass: float
    samples: int


def checked_box(problem: ControlProblem, box: Box) -> Box:
    """A box that a user gave for a problem; DomainError if it is none, of another dimension, or has no end."""
    if not isinstance(box, Box) or box.dim != problem.dim:
        got = f"one of dimension {box.dim}" if isinstance(box, Box) else type(box).__name__
        raise DomainError(f"box must be a Box of dimension {problem.dim}, got {got}")
    if not box.bounded:
        raise DomainError(f"box must have finite faces, got {box}")
    return box


def truncation_box(
    problem: ControlProblem,
    *,
    quantile: float = 1e-4,
    margin: float = 0.3,
    n: int = 20000,
    steps: int = 50,
    rng: Rng = 0,
) -> Truncation:
    """The box outside which the uncontrolled process is hardly ever seen in [0, T].

    On each axis: the range over all observed times of [q, 1 - q]-quantiles of the coordinate, found by simulation, is
    widened on each side by margin times its width. With Gaussian marginals of constant law the defaults end near 6
    standard deviations on each side: q = 1e-4 lies 3.7 of them out, and the margin adds 0.3 * 7.4 = 2.2.
    A problem with a `domain` keeps its finite faces, and what happens there; only faces at infinity are replaced (paths
    that were stopped count where they stay). A domain without natural faces is kept as it is, and excludes nothing.

    Parameters
    ----------
    quantile : q in (0, 1/2).
    margin : a number >= 0.
    n, steps, rng : how many paths at how many time steps give the quantiles; as many fresh paths, of an independent
        stream of the same `rng`, measure the excluded mass.

    Raises
    ------
    DomainError : a parameter is out of range, or n is too small to see the quantile (n * quantile < 1).
    """
    require_problem(problem, "truncation_box")
    require_box(problem, "truncation_box")
    domain = problem.box
    if domain is not None and not domain.where("natural").any():
        return Truncation(box=domain, excluded_mass=0.0, samples=0)
    if not 0.0 < non_negative_number(quantile, "truncation_box: quantile", DomainError) < 0.5:
        raise DomainError(f"truncation_box: quantile must lie in (0, 0.5), got {quantile!r}")
    margin = non_negative_number(margin, "truncation_box: margin", DomainError)
    n = array_length(n, "truncation_box: n", DomainError, problem.dim)
    if n * quantile < 1.0:
        raise DomainError(
            f"truncation_box: {n} paths cannot show a quantile of {quantile:g}; take n >= {1 / quantile:.0f}"
            " or a larger quantile"
        )
    for_box, for_mass = spawn_generators(rng, 2)
    x = sample_paths(problem, n=n, steps=steps, rng=for_box).x
    low, high = np.quantile(x, [quantile, 1.0 - quantile], axis=0)
    lower, upper = low.min(axis=0), high.max(axis=0)
    reach = margin * (upper - lower)
    box = Box(lower - reach, upper + reach)
    if domain is not None:
        bounds = [np.where(np.isfinite(own), own, new) for own, new in zip(domain.bounds, box.bounds, strict=True)]
        box = replace(domain, lower=bounds[0], upper=bounds[1])
    outside = ~box.contains(sample_paths(problem, n=n, steps=steps, rng=for_mass).x)
    return Truncation(box=box, excluded_mass=float(outside.mean(axis=0).max()), samples=n)


def window(problem: ControlProblem) -> Box:
    """Where to look: the reflecting domain, or mean +- 3 standard deviations of X_0, X_{T/2} and X_T.

    Where the law of X_t is not known, simulated paths tell where it has all but a thousandth of its mass on each side.
    """
    require_problem(problem, "window")
    if isinstance(problem.domain, MeshDomain):
        return Box(*problem.domain.bounds)
    if problem.domain is not None or problem.marginal is None:
        return truncation_box(problem, quantile=1e-3, margin=0.0, n=4096).box
    laws = [problem.marginal(t) for t in (0.0, problem.horizon / 2, problem.horizon)]
    means = np.array([law.expectation for law in laws])
    spread = 3.0 * np.array([np.sqrt(np.diag(law.covariance)) for law in laws])
    return Box((means - spread).min(axis=0), (means + spread).max(axis=0))
