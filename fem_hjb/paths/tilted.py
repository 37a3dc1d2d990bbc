r"""Where the terminal reward sends the process, however far from where it goes by itself.

Under optimal control X_T has the density p*_T ~ p_T exp(y / alpha), up to what running rewards and the law of the start
add (docs/trust.md). Paths of the uncontrolled process show its modes only if they get there. So the maxima
of

    G = y / alpha + log p_T

are sought over all of R^d: uphill from starts as far out as p_T can be followed. Around each, draws of p*_T are made by
importance out of a Student t density with the curvature of G. A mode that no start leads to (a needle on a plain) is
not found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import logsumexp, ndtr

from fem_hjb.paths.extent import FAR, LawSample, Reach, reach_of, sample_law
from fem_hjb.paths.growth import outgrowing
from fem_hjb.paths.tails import noisier_draws, reach_beyond
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, PointMass
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import FemHjbError, InfiniteValueError
from fem_hjb.support.progress import Progress

_SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of the starts, in standard deviations of X_T
_STARTS = 256  # of each, and of each coordinate
_CLIMBED = 192  # from which the hill is climbed
_STEPS, _SETTLED = 120, 1e-2  # up, and standard deviations: what is found is the middle of draws
_FAR, _FAR_GUESSED = 64.0, 24.0  # standard deviations: how far p_T is trusted, where it is known and where it is fitted
_BEYOND = (100.0, 1e3, 1e4)  # standard deviations, at which a known law is compared with the reward
_DROP = 0.5  # of G, at which the width of a maximum is taken
_MODES = 16
_NEGLIGIBLE = 60.0  # maxima lower than the highest by more do not count
_FREEDOM = 5.0  # of the Student t densities
_DRAWN = 4096
# By how much log p_T may be off where it is fitted, relative to the square of the distance in standard deviations: by
# draws of the process alone, whose quantiles at 1 and 2.5 are known to 2.4 % and 2.8 %, and by draws with more noise
_FIT_NEAR, _FIT = 0.25, 0.05
_SEEN, _TINY = (
    3.0,
    1e-16,
)  # standard deviations within which draws tell p_T; a mass that does not count, if that is sure
_INNER = 1.75  # where among draws with more noise the farthest mode lies, in standard deviations
_LEAST_POWER, _MOST_POWER = 0.4, 2.0  # of tails
WORTH = 100.0  # draws, that the law under control is read off
_COVERED = 0.01  # of draws lie further out on each side, where these still tell how paths under control get there
_LOWEST = -1e300

Frame = tuple[FloatArray, FloatArray]
Height = Callable[[FloatArray], FloatArray]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class TiltedEnds:
    """Draws of X_T under p*_T, as far as this is p_T exp(y / alpha), apart for each maximum of G.

    maxima : (k, d), those of G.
    x : (k, m, d), draws nearest to each of them, of equal weights.
    mass : (k,), the share of p*_T that lies there, at the most: where p_T is fitted it may be off by exp(far^2 / 20),
        by exp(far^2 / 4) where there are no draws with more noise.
    growing : G still grows where p_T, fitted to draws, is not trusted any more: the value may be infinite, and no draws
        are made.
    """

    maxima: FloatArray
    x: FloatArray
    mass: FloatArray
    growing: bool


Laws = tuple[LawSample, TiltedEnds | None]


def tilted_ends(problem: ControlProblem, sample: LawSample, seed: int = 0) -> TiltedEnds | None:
    """Draws of p*_T, or None where all faces hold the process or where X_T is a point.

    Raises
    ------
    InfiniteValueError : the law of X_T from a point is known, and its product with exp(y / alpha) grows without bound,
        so that E exp(y / alpha) = infinity; or rewards outgrow all laws (`growth`).
    """
    domain = problem.box
    if domain is not None and domain.bounded:
        return None
    ends = sample.x[-1]
    if domain is not None and domain.absorbing:
        ends = ends[~domain.exited(ends)]
    if len(ends) < _STARTS or not np.ptp(ends, axis=0).all():
        return None
    frame = _frame(ends)
    if (fast := outgrowing(problem, *frame, seed)) is not None:
        raise InfiniteValueError(
            f"the value of {problem.name!r} is +infinity: {fast} grows faster than the square of the distance up to 96"
            " standard deviations of the law, and the drift no faster than the distance, so that E exp((y + int r dt) /"
            " alpha) is infinite; use rewards that grow less"
        )
    laws, from_point = _known_laws(problem)
    for law in laws:
        found, towards = _tilted(problem, law.logpdf, 0.0, ends, seed, frame)
        if towards is None:
            return found
    if not laws:
        found, towards = _fitted(problem, sample, ends, seed, frame)
        if towards is None:
            return found
    if from_point:
        raise InfiniteValueError(
            f"the value of {problem.name!r} is +infinity: y / alpha + log p_T still grows {_FAR:g} standard deviations"
            f" from the middle of the law, towards x={np.asarray(towards).tolist()}, so that exp(y / alpha) has no"
            " expectation; use a reward that grows less, or a higher temperature"
        )
    none = np.empty((0, problem.dim))
    return TiltedEnds(maxima=none, x=none[:, None], mass=np.empty(0), growing=True)


def _fitted(
    problem: ControlProblem, sample: LawSample, ends: FloatArray, seed: int, frame: Frame
) -> tuple[TiltedEnds | None, FloatArray | None]:
    """The same where p_T is fitted to draws: with more noise, where anything seems to lie further out than draws do."""
    found, towards = _tilted(problem, _fitted_law(ends, frame), _FIT_NEAR, ends, seed, frame)
    counted = np.empty((0, problem.dim)) if found is None else found.maxima[found.mass > _TINY]
    places = counted if towards is None else towards[None]
    farthest = float(_radii(places, frame).max(initial=0.0))
    if farthest <= _SEEN:
        return found, towards
    factor = min(farthest, _FAR_GUESSED) / _INNER
    noisier = noisier_draws(problem, sample, factor, _TINY, seed)
    if noisier is None:
        return found, towards
    last = noisier[-1]
    if problem.box is not None and problem.box.absorbing:
        last = last[~problem.box.exited(last)]
    if len(last) < _STARTS:
        return found, towards
    return _tilted(problem, _fitted_law(ends, frame, (factor, last)), _FIT, ends, seed, frame)


def _tilted(
    problem: ControlProblem, log_law: Height, fit: float, ends: FloatArray, seed: int, frame: Frame
) -> tuple[TiltedEnds | None, FloatArray | None]:
    """The same with log p_T as it is known (fit = 0), or so well fitted; or a point (d,) towards which G only grows."""
    (middle, axes), known, rng = frame, fit == 0.0, np.random.default_rng(seed)
    height = _height(problem, log_law)
    far = _FAR if known else _FAR_GUESSED
    count = _STARTS * problem.dim
    z = np.concatenate([s * rng.standard_normal((count, problem.dim)) for s in _SCALES if s <= far / 2])
    some = np.linalg.solve(axes, (ends[:: max(1, len(ends) // _STARTS)] - middle).T).T
    z = np.concatenate([z, some])
    starts = middle + z @ axes.T
    top, heights = _climb(height, starts[_chosen(z, height(starts), rng)], axes)
    if known:  # and where it is known, very far out, too
        out = rng.standard_normal((_STARTS, problem.dim))
        out *= (rng.choice(_BEYOND, _STARTS) / np.linalg.norm(out, axis=1))[:, None]
        top = np.concatenate([top, middle + out @ axes.T])
        heights = np.concatenate([heights, height(top[len(heights) :])])
    radius = _radii(top, frame)
    away = (radius > far) & (heights > float(heights[radius <= far].max(initial=_LOWEST)))
    if known:  # unless it falls again: then it is a maximum, however far out
        away &= height(middle + 1.05 * (top - middle)) > heights
    if away.any():
        return None, top[away][0]
    if not (heights > _LOWEST).any():
        return None, None
    maxima, covariances = _maxima(height, top, heights, axes)
    x, logs = _draws(height, maxima, covariances, rng)
    logs = logs + fit * _radii(maxima, frame) ** 2
    return TiltedEnds(maxima=maxima, x=x, mass=np.exp(logs - logsumexp(logs)), growing=False), None


def tilted_paths(sample: LawSample, ends: FloatArray) -> FloatArray:
    """(k, m, d) at the times of the sample: paths of P moved so that they end at draws (m, d) of p*_T.

    X_t + B_t (x* - X_T), with B_t the regression of X_t on X_T: the law of P* where P is Gaussian, a guess elsewhere.
    """
    paths = sample.paths
    count = min(paths.shape[1], len(ends))
    last = paths[-1] - paths[-1].mean(axis=0)
    spread = last.T @ last
    spread += 1e-12 * np.trace(spread) * np.eye(len(spread))
    moved = ends[:count] - paths[-1, :count]
    result = paths[:, :count].copy()
    for k in range(len(paths)):
        slope = np.linalg.solve(spread, last.T @ (paths[k] - paths[k].mean(axis=0)))
        result[k] += moved @ slope
    return result


def _frame(ends: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The middle of draws, and axes (d, d) in which they have unit spread: x = middle + axes z; robust to tails."""
    middle = np.median(ends, axis=0)
    near = np.abs(ends - middle) <= 6.0 * np.quantile(np.abs(ends - middle), 0.6827, axis=0)
    core = ends[near.all(axis=1)]
    covariance = np.atleast_2d(np.cov(core.T))
    scale = np.sqrt(np.diagonal(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    return middle, scale[:, None] * vectors * np.sqrt(np.maximum(values, 1e-12))


def _known_laws(problem: ControlProblem) -> tuple[list[Law], bool]:
    """The law of X_T, if it is given, or Gaussian by the form in which the drift is given; and that from one start.

    The process starts where it does, under control, too: exp(y / alpha) may have an expectation from each start and
    none over all of them, and the value is finite then. Whether the last law is one from a point.
    """
    constant, start, T = problem.constant_diffusion, problem.initial_law, problem.horizon
    laws = [] if problem.marginal is None else [problem.marginal(T)]
    if problem.domain is not None or constant is None or not isinstance(problem.drift, LinearDrift):
        return laws, bool(laws) and isinstance(start, PointMass)
    if not laws and isinstance(start, Gaussian | GaussianMixture):
        laws = [linear_marginal(problem.drift, constant, start)(T)]
    return [*laws, linear_marginal(problem.drift, constant, PointMass(start.expectation))(T)], True


def _radii(x: FloatArray, frame: Frame) -> FloatArray:
    """Distances (n,) of points (n, d) from the middle, in standard deviations."""
    return np.asarray(np.linalg.norm(np.linalg.solve(frame[1], (x - frame[0]).T), axis=0))


def _fitted_law(ends: FloatArray, frame: Frame, noisier: tuple[float, FloatArray] | None = None) -> Height:
    """log p_T up to a constant, from the tails of draws along their principal axes, and of draws with more noise.

    Along each axis and on each side z = s_i (zeta / zeta_i)^power_i with zeta standard normal, between zeta_i = 1, the
    factor of the noise and beyond (`tails`): with draws of the process alone, between 1 and beyond.
    """
    inverse = np.linalg.inv(frame[1])
    z = (ends - frame[0]) @ inverse.T
    median = np.median(z, axis=0)
    near = _sides(z, median, [1.0, FAR])
    levels, distances = np.array([1.0, FAR]), near
    if noisier is not None:
        factor, draws = noisier
        far = _sides((draws - frame[0]) @ inverse.T, median, [1.0, FAR])
        levels, distances = np.array([1.0, factor, FAR * factor]), np.concatenate([near[:1], far])
    steps = np.diff(np.log(levels))[:, None, None]
    powers = np.clip(np.diff(np.log(np.maximum(distances, 1e-300)), axis=0) / steps, _LEAST_POWER, _MOST_POWER)
    knots = np.log(np.maximum(distances[0], 1e-300)) + np.cumsum(powers * steps, axis=0) - powers * steps

    def fitted(x: FloatArray) -> FloatArray:
        offset = (x - frame[0]) @ inverse.T - median
        side, axis = (offset > 0).astype(np.int64), np.arange(offset.shape[1])
        with np.errstate(divide="ignore"):
            logs = np.log(np.abs(offset))
        zeta = np.full(offset.shape, -np.inf)
        for level, power, knot in zip(levels[:-1], powers, knots, strict=True):
            there = knot[side, axis]
            part = np.log(level) + (logs - there) / power[side, axis]
            zeta = np.where((logs > there) | (level == 1.0), part, zeta)
        return np.asarray(-0.5 * np.exp(2.0 * zeta).sum(axis=1), dtype=np.float64)

    return fitted


def _sides(z: FloatArray, median: FloatArray, levels: list[float]) -> FloatArray:
    """Distances (levels, 2, d) from the median to these standard normal quantiles of draws, below and above."""
    low, high = (np.quantile(z, ndtr(sign * np.array(levels)), axis=0) for sign in (-1.0, 1.0))
    return np.stack([median - low, high - median], axis=1)


def _height(problem: ControlProblem, log_law: Height) -> Height:
    """G, very low outside the domain and where the reward has no finite value."""

    def height(x: FloatArray) -> FloatArray:
        result = np.full(len(x), _LOWEST)
        some = np.ones(len(x), dtype=bool)
        if problem.domain is not None:
            some = problem.domain.contains(x) & ~problem.domain.exited(x)
        if some.any():
            with np.errstate(all="ignore"):
                result[some] = np.asarray(_rewards(problem, x[some])) / problem.temperature + log_law(x[some])
        return np.where(np.isfinite(result), result, _LOWEST)

    return height


def _rewards(problem: ControlProblem, x: FloatArray) -> FloatArray:
    """y (n,); where it cannot be had together, for points far out where nobody asked for it, one by one."""
    try:
        return problem.y(x)
    except (FemHjbError, ArithmeticError):
        if len(x) == 1:
            return np.full(1, -np.inf)
        half = len(x) // 2
        return np.concatenate([_rewards(problem, x[:half]), _rewards(problem, x[half:])])


def _chosen(z: FloatArray, heights: FloatArray, rng: np.random.Generator) -> IntArray:
    """Starts to climb from: those higher than all next to them, the highest of each distance, and any others."""
    n, d = z.shape
    near = cKDTree(z).query(z, k=min(n, d + 2))[1]
    tops = np.flatnonzero(heights >= heights[near].max(axis=1))
    tops = tops[np.argsort(-heights[tops])]
    shells = np.digitize(np.linalg.norm(z[tops], axis=1), _SCALES)
    each = 2 * _CLIMBED // (3 * (len(_SCALES) + 1))
    tops = np.concatenate([tops[shells == k][:each] for k in range(len(_SCALES) + 1)])
    others = np.setdiff1d(np.arange(n), tops)
    return np.concatenate([tops, rng.choice(others, min(_CLIMBED - len(tops), len(others)), replace=False)])


def _climb(height: Height, x: FloatArray, axes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Uphill from each of x (n, d) by trial steps along the axes, longer after success and shorter after failure."""
    x, best = x.copy(), height(x)
    n, d = x.shape
    steps = np.ones((n, d))
    ranks = np.arange(n)
    for _ in range(_STEPS):
        for k in range(d):
            moves = np.stack([x + sign * steps[:, k, None] * axes[:, k] for sign in (1.0, -1.0)])
            found = height(moves.reshape(-1, d)).reshape(2, n)
            side = found.argmax(axis=0)
            gained = found[side, ranks] > best
            x[gained] = moves[side, ranks][gained]
            best = np.where(gained, found[side, ranks], best)
            steps[:, k] *= np.where(gained, 1.6, 0.5)
        if steps.max() < _SETTLED:
            break
        np.clip(steps, 1e-5, 64.0, out=steps)
    return x, best


def _maxima(height: Height, x: FloatArray, heights: FloatArray, axes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Distinct maxima (k, d) and the covariances (k, d, d) of Gaussians that fit G there."""
    order = np.argsort(-heights)
    left = order[heights[order] > heights[order[0]] - _NEGLIGIBLE]
    places: list[FloatArray] = []
    spreads: list[FloatArray] = []
    while left.size and len(places) < _MODES:
        i, left = int(left[0]), left[1:]
        places.append(x[i])
        spreads.append(_root(height, x[i], heights[i], axes))
        gaps = np.linalg.solve(spreads[-1], (x[left] - x[i]).T)
        left = left[~((gaps**2).sum(axis=0) < 0.25)]
    roots = np.stack(spreads)
    return np.stack(places), roots @ np.swapaxes(roots, 1, 2)


def _root(height: Height, x: FloatArray, level: float, axes: FloatArray) -> FloatArray:
    """(d, d), whose square is the covariance of a Gaussian that falls off as G does around x."""
    d = len(x)
    sizes = 2.0 ** np.arange(-20.0, 6.0)
    trial = x + np.concatenate([sizes[:, None, None] * axes.T, -sizes[:, None, None] * axes.T])  # (2 s, d, d)
    drops = (level - height(trial.reshape(-1, d))).reshape(2, len(sizes), d)
    reached = drops >= _DROP
    first = np.where(reached.any(axis=1), reached.argmax(axis=1), len(sizes) - 1)  # (2, d)
    width = sizes[first].max(axis=0)
    scaled = axes * width  # columns at which G has fallen by about _DROP
    hessian = np.zeros((d, d))
    for i in range(d):
        for j in range(i + 1):
            signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=np.float64)
            corners = x + signs[:, :1] * scaled[:, i] + (signs[:, 1:] * scaled[:, j] if i != j else 0.0)
            values = np.maximum(height(corners), level - 50.0)
            if i == j:
                hessian[i, i] = 2.0 * level - values[0] - values[2]
            else:
                hessian[i, j] = hessian[j, i] = -(values[0] - values[1] - values[2] + values[3]) / 4.0
    values, vectors = np.linalg.eigh(hessian)
    return np.asarray(scaled @ vectors / np.sqrt(np.clip(values, 0.05, 50.0)))


def _draws(
    height: Height, maxima: FloatArray, covariances: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draws (k, m, d) of exp(G) nearest to each of its maxima, and the logarithms of its integrals there (k,)."""
    k, d = maxima.shape
    roots = np.linalg.cholesky(covariances)
    x, logs = np.empty((k, _DRAWN, d)), np.empty(k)
    for j in range(k):
        noise = rng.standard_normal((_DRAWN, d)) / np.sqrt(rng.chisquare(_FREEDOM, _DRAWN) / _FREEDOM)[:, None]
        drawn = maxima[j] + noise @ roots[j].T
        own = np.linalg.norm(noise, axis=1)
        for i in range(k):
            if i != j:
                other = np.linalg.norm(np.linalg.solve(roots[i], (drawn - maxima[i]).T), axis=0)
                own = np.where(other < own, np.inf, own)
        weights = height(drawn) + 0.5 * (_FREEDOM + d) * np.log1p((noise**2).sum(axis=1) / _FREEDOM)
        weights = np.where(np.isfinite(own), weights, _LOWEST)
        logs[j] = logsumexp(weights) + np.log(np.diagonal(roots[j])).sum()
        weights = np.exp(weights - weights.max())
        x[j] = drawn[rng.choice(_DRAWN, _DRAWN, p=weights / weights.sum())]
    return x, logs


def laws_of(problem: ControlProblem, seed: int, steered: bool, tell: Progress) -> Laws:
    """Draws of the process, and where it ends under control if it is steered, which know of no tolerance.

    tell : called before each, as they may take as long as the callables do.
    """
    tell(0.0)
    sample = sample_law(problem, seed)
    tell(0.0)
    return sample, tilted_ends(problem, sample, seed) if steered else None


def reaches_of(
    problem: ControlProblem, sample: LawSample, ends: TiltedEnds | None, mass: float, seed: int = 0
) -> tuple[Reach, ...]:
    """How far the process goes, and how far under control: by weights if these are worth it, and to ends that few draws
    reach.

    mass : that does not count, of ends and on each side of each axis.
    """
    weights, draws = sample.optimal()
    found = [reach_beyond(problem, sample, mass, seed)]
    if draws >= WORTH:
        found.append(reach_of(sample.paths, weights))
    if ends is not None:
        inner = np.quantile(sample.paths[-1], [_COVERED, 1.0 - _COVERED], axis=0)
        middles = np.median(ends.x, axis=1)
        covered = ((middles >= inner[0]) & (middles <= inner[1])).all(axis=1) & (draws >= WORTH)
        found += [reach_of(tilted_paths(sample, x)) for x in ends.x[(ends.mass > mass) & ~covered]]
    return tuple(found)
