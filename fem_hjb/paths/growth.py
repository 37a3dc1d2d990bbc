r"""Rewards that outgrow whatever law a drift of at most linear growth has.

Where |b_t(x)| <= K (1 + |x|) and Lambda is bounded below, X can be taken to within unit distance of R e and held there
for a part of [0, T] with a probability of at least exp(-C (1 + R^2)): that takes drifts of the order of R, and
costs their squares (Girsanov). So rewards that grow faster than R^2 along a ray e, and around it, have

    E exp(y(X_T) / alpha + int r / alpha dt) = +infinity,

however the law is known. Looked at are 24 to 96 standard deviations of X_T; what rewards do beyond is not asked for.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import FemHjbError

_RADII = (24.0, 48.0, 96.0)  # standard deviations of X_T
_FASTER = 2.0**0.4  # by which rewards over R^2 grow at least as R doubles
_LINEAR = 1.1  # by which drifts over R grow at most
_ELLIPTIC = 0.5  # of Lambda, that is left as R doubles
_RAYS, _AROUND, _TIMES = 32, 8, 9


def outgrowing(problem: ControlProblem, middle: FloatArray, axes: FloatArray, seed: int = 0) -> str | None:
    """What is known to make the value infinite, "y" or "r", with the direction; None if nothing is.

    middle (d,), axes (d, d) : x = middle + axes z, with z of unit spread under the law of X_T.
    """
    try:
        with np.errstate(all="ignore"):
            return _outgrowing(problem, middle, axes, np.random.default_rng(seed))
    except (FemHjbError, ArithmeticError):  # coefficients are not asked to be anything so far out
        return None


def _outgrowing(problem: ControlProblem, middle: FloatArray, axes: FloatArray, rng: np.random.Generator) -> str | None:
    d, T, alpha = problem.dim, problem.horizon, problem.temperature
    rays = np.concatenate([np.eye(d), -np.eye(d), rng.standard_normal((_RAYS if d > 1 else 0, d))])
    rays /= np.linalg.norm(rays, axis=1)[:, None]
    shifts = np.concatenate([np.zeros((1, d)), rng.uniform(-1, 1, (_AROUND, d)) / np.sqrt(d)])
    z = np.multiply.outer(_RADII, rays)[:, :, None] + shifts  # (radii, rays, around, d)
    x = middle + z @ axes.T
    inside = np.ones(x.shape[:-1], dtype=np.bool_)
    if problem.domain is not None:
        flat = x.reshape(-1, d)
        inside = (problem.domain.contains(flat) & ~problem.domain.exited(flat)).reshape(inside.shape)

    def least(of: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """(radii, rays): of what is around a ray; -inf where that is not in the domain."""
        values = np.full(inside.shape, -np.inf)
        values[inside] = of(x[inside])
        return np.asarray(values.min(axis=-1))

    times = np.linspace(0.0, T, _TIMES)
    fast = {"y": _faster(least(problem.y) / alpha)}
    if problem.running_reward is not None:
        now = [_faster(T * least(lambda at, t=t: problem.r(t, at)) / alpha) for t in times.tolist()]  # type: ignore[misc]
        fast["r"] = np.any([a & b for a, b in pairwise(now)], axis=0)
    for name, found in fast.items():
        for ray in np.flatnonzero(found).tolist():
            if _held(problem, x[:, ray, 0], axes, times):
                return f"{name} towards x={x[-1, ray, 0].tolist()}"
    return None


def _faster(values: FloatArray) -> BoolArray:
    """Which of rewards (radii, rays), in temperatures, are larger than squares of radii, and grow faster."""
    rates = values / np.square(_RADII)[:, None]
    return np.asarray((rates[0] > 0) & (rates[1:] >= _FASTER * rates[:-1]).all(axis=0) & (rates[-1] > 0.5))


def _held(problem: ControlProblem, x: FloatArray, axes: FloatArray, times: FloatArray) -> bool:
    """Whether the drift grows no faster than linearly along a ray (radii, d), and Lambda does not vanish."""
    inverse = np.linalg.inv(axes)
    drifts, spreads = np.zeros(len(_RADII)), np.full(len(_RADII), np.inf)
    for t in times.tolist():
        drifts = np.maximum(drifts, np.linalg.norm(problem.b(t, x) @ inverse.T, axis=1) / _RADII)
        spreads = np.minimum(spreads, np.linalg.eigvalsh(inverse @ problem.Lambda(t, x) @ inverse.T)[:, 0])
    least = 1e-3 / problem.horizon  # of a standard deviation over the horizon: below it drifts do nothing
    linear = (drifts[1:] <= _LINEAR * np.maximum(drifts[:-1], least)).all()
    return bool(linear and spreads[0] > 0 and (spreads[1:] >= _ELLIPTIC * spreads[:-1]).all())
