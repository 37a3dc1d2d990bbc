r"""Drifts kept from deciding the length of steps where the law does not go.

A potential of fourth order pulls ten or a thousand times as hard in the corners of a box as anywhere the process is
seen, uncontrolled or controlled, and explicit steps would follow what nobody meets. There

    b' = b phi(s / B) / (s / B),    s = |b_k / Lambda_kk^(1/2)|,    phi(s) = s up to 1, 1 + tanh(s - 1) beyond,

is taken instead, which points where b does, is b itself up to the speed B, and twice differentiable. B is a speed that
no more of either law exceeds than the box may leave out, extrapolated from draws as its faces are; what it changes is
measured with a lower one.
"""

from collections.abc import Sequence

import numpy as np

from fem_hjb.paths.extent import LawSample, reach_of
from fem_hjb.paths.tilted import WORTH, TiltedEnds
from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.solutions.checks import Check
from fem_hjb.support.checks import FloatArray

LOWER = 1 / 1.5  # of the speed, with which what it changes is measured
_MARGIN = 1.2  # times what the laws reach
_WORTH_IT = 2.5  # times that, anywhere in the box: linear drifts are not as much faster in corners
_PROBED = 512  # points of the box
_SCANS, _SCANNED = 257, 64  # times, and draws at each


def tamed(b: FloatArray, metric: FloatArray, most: float) -> FloatArray:
    """Drifts (..., d) of a speed up to `most` as they are, faster ones slower: at most twice as fast."""
    s = _speed(b, metric) / most
    if not (s > 1.0).any():
        return b
    beyond = np.maximum(s, 1.0)
    return np.asarray(b * ((1.0 + np.tanh(beyond - 1.0)) / beyond)[..., None])


def share_above(problem: ControlProblem, metric: FloatArray, most: float, times: FloatArray, x: FloatArray) -> float:
    """The fraction of paths x (k, n, d) at times (k,) whose drift is ever faster."""
    if np.isinf(most):
        return 0.0
    return float((speeds(problem, metric, times, x)[..., 0] > most).any(axis=0).mean())


def speeds(problem: ControlProblem, metric: FloatArray, times: FloatArray, x: FloatArray) -> FloatArray:
    """(k, n, 1): |b| in units of noise, at times (k,) and points x (k, n, d)."""
    return np.stack([_speed(problem.b(t, at), metric) for t, at in zip(times.tolist(), x, strict=True)])[..., None]


def most_of(
    problem: ControlProblem,
    metric: FloatArray,
    sample: LawSample,
    ends: TiltedEnds | None,
    followed: Sequence[tuple[FloatArray, FloatArray]],
    box: Box,
    jumps: Sequence[float],
    mass: float,
) -> float:
    """The speed up to which drifts count; infinity where they are nowhere in the box several times as fast.

    followed : times (k,) and paths (k, n, d) besides those of the sample.
    jumps : times at which coefficients jump.
    mass : of each law, that may be faster.
    """
    if problem.dim == 1 or isinstance(problem.drift, LinearDrift) or box.absorbing:
        return np.inf  # what is separable costs no steps; linear drifts are never much faster; implicit steps follow
    times = sample.times
    drawn = [speeds(problem, metric, times, sample.x)]
    drawn += [] if ends is None else [speeds(problem, metric, times[-1:], x[None]) for x in ends.x]
    drawn += [speeds(problem, metric, t, x) for t, x in followed]
    reached = [float(reach_of(s).bounds(mass)[1].max()) for s in drawn]
    weights, worth = sample.optimal()
    if worth >= WORTH:
        reached.append(float(reach_of(speeds(problem, metric, times, sample.paths), weights).bounds(mass)[1].max()))
    T = problem.horizon
    scanned = np.unique(
        np.clip([*np.linspace(0.0, T, _SCANS), *(t + 1e-9 * T * k for t in jumps for k in (-1, 1))], 0.0, T)
    )
    nearest = [sample.x[sample.nearest(t), :: max(1, sample.x.shape[1] // _SCANNED)] for t in scanned.tolist()]
    reached += [float(s.max()) for s in (*drawn, speeds(problem, metric, scanned, np.stack(nearest)))]
    most = _MARGIN * max(reached)
    low, high = box.bounds
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, problem.dim)
    probes = np.concatenate([corners, np.random.default_rng(0).uniform(low, high, (_PROBED, problem.dim))])
    fastest = float(speeds(problem, metric, times, np.broadcast_to(probes, (len(times), *probes.shape))).max())
    return most if fastest > _WORTH_IT * most > 0.0 else np.inf


def drift_check(share: float, most: float, limit: float) -> list[Check]:
    """Whether paths under the policy meet drifts that were slowed down; none if none were."""
    told = f"{share:.2%} of paths under the policy meet drifts above {most:.3g}, which were slowed down"
    return [Check(name="drift", figure=share, limit=limit, told=told)] if np.isfinite(most) else []


def _speed(b: FloatArray, metric: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(((b / metric) ** 2).sum(axis=-1)))
