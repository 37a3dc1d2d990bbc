r"""The law of data that a reward tilts, p exp(y / alpha) / Z, by quadrature: what fine-tuning is to end in."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.kernels import KernelDensity
from fem_hjb.problems.laws import GaussianMixture, Law, tensor_rule
from fem_hjb.problems.problem import TerminalReward, checked_call
from fem_hjb.support.checks import FloatArray, as_points, number_in_units, positive_number, require
from fem_hjb.support.errors import ConvergenceError, ProblemError
from fem_hjb.support.objects import Plain

_DRAWN = 4096  # draws that say where to begin
_SEEN = {1: 513, 2: 97, 3: 33}  # points per axis that say where the density is
_NOTHING = 45.0  # of its logarithm: e^-45 of the maximum is left out
_WIDTHS = 9.5  # standard deviations of a component: e^-45 of its maximum
_FALLEN = 40.0  # so far, where a box ends: between points that say where the density is, it may be a little higher
_WIDENED = 40  # times at most
_FIRST = {1: 2048, 2: 64, 3: 32}  # cells per axis: the rule is to see peaks of rewards, not of the law alone
_POINTS = 1 << 22  # at most
_CHUNK = 1 << 16  # points at once
_NEGLIGIBLE = 1e-22  # of the whole: weights of the rule that are left out
_AROUND = {1: 2, 2: 9, 3: 7}  # points per axis of the surface of a box
_OUTSIDE = 1.001  # a surface just outside, relative to the box
_FAR = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)  # surfaces where rewards are asked whether they grow on


class TiltedDensity(Plain):
    """The density p exp(y / alpha) / Z, as `tilted_density` returns it.

    log_normaliser : log Z = log E_p exp(y / alpha).
    error : of Z, estimated, relative; that of the density, everywhere.
    points, weights : (m, d), (m,), a rule for expectations under it, weights @ g(points); the weights sum to 1.
    """

    def __init__(
        self,
        law: Law,
        reward: TerminalReward,
        temperature: float,
        rule: tuple[FloatArray, FloatArray, float],
        error: float,
    ) -> None:
        self.law, self.reward, self.temperature, self.dim = law, reward, temperature, law.dim
        self.points, self.weights, self.log_normaliser = rule
        self.error = error
        for array in (self.points, self.weights):
            array.setflags(write=False)

    @property
    def expectation(self) -> FloatArray:
        """The mean, (d,)."""
        return np.asarray(self.weights @ self.points)

    @property
    def covariance(self) -> FloatArray:
        """(d, d)."""
        centred = self.points - self.expectation
        return np.asarray((self.weights * centred.T) @ centred)

    def logpdf(self, x: ArrayLike) -> FloatArray:
        """log density, shape (...) at x (..., d)."""
        points = as_points(x, self.dim)
        flat = points.reshape(-1, self.dim)
        log_p, tilt = _logs(self.law, self.reward, self.temperature, flat)
        return np.asarray(log_p + tilt - self.log_normaliser).reshape(points.shape[:-1])

    def density(self, x: ArrayLike) -> FloatArray:
        """The density, shape (...) at x (..., d)."""
        return np.asarray(np.exp(self.logpdf(x)))


def tilted_density(
    law: Law, reward: TerminalReward, *, temperature: float, rtol: float = 1e-6, box: Box | None = None
) -> TiltedDensity:
    r"""The density p exp(y / alpha) / Z of a law p, tilted by a reward y, and Z = E_p exp(y / alpha), by quadrature.

    The trapezoidal rule on a box, which converges faster than any power of the mesh for densities and rewards that are
    smooth, its cells halved until two grids agree on Z to rtol, and the last one finds 1 for the mass of p to rtol.

    law : of dimension up to three that has a density, for instance `problem.marginal(problem.horizon)`.
    reward : y, a callable x (..., d) -> (...).
    box : what to integrate over; by default one that begins with draws of p, and all components of a mixture, and grows
        until p and p exp(y / alpha) have fallen off to e^{-45} of their maxima. Around it, up to a hundred times as
        far, p exp(y / alpha) is then looked at on nine surfaces, if the reward can be evaluated there. What happens
        between them is not seen, nor peaks of the reward that are narrower than the first grids (4096 cells in one
        dimension, 128 and 64 per axis in two and three).

    Raises `ProblemError` for what is not as said, `ConvergenceError` if p exp(y / alpha) does not fall off, or the grid
    does not resolve it with four million points, or `box` cuts off more than rtol of it.

    >>> from fem_hjb.problems.laws import Gaussian
    >>> found = tilted_density(Gaussian([0.0], 1.0), lambda x: x[..., 0], temperature=0.5)
    >>> found.expectation.round(9).tolist(), round(found.log_normaliser, 9)         # N(2, 1), and 2^2 / 2
    ([2.0], 2.0)
    """
    require(law, Law, "tilted_density", ProblemError)
    if not callable(reward):
        raise ProblemError(f"reward must be a callable x (..., d) -> (...), got {type(reward).__name__}")
    if law.dim not in _SEEN:
        raise ProblemError(f"tilted_density integrates in one, two or three dimensions, the law has {law.dim}")
    alpha = number_in_units(temperature, "temperature", ProblemError)
    if not 1e-14 <= positive_number(rtol, "rtol", ProblemError) < 1:
        raise ProblemError(f"rtol must lie between 1e-14 and 1, got {rtol!r}")
    anywhere = box is None
    if box is None:
        box = _where(law, reward, alpha)
    require(box, Box, "box=", ProblemError)
    if box.dim != law.dim or not box.bounded:
        raise ProblemError(f"box must be a bounded Box of dimension {law.dim}, got {box}")
    before, cells, error = -np.inf, _FIRST[law.dim], np.inf
    while (cells + 1) ** law.dim <= _POINTS:
        x, widths = _grid(box, cells + 1)
        log_p, tilt = _logs(law, reward, alpha, x)
        mass = float((np.exp(log_p) * widths).sum())
        logs = log_p + tilt
        top = float(logs.max())
        weights = np.exp(logs - top) * widths
        log_z = top + float(np.log(weights.sum()))
        error = max(abs(float(np.expm1(min(log_z - before, 1.0)))), abs(mass - 1.0))
        if error <= rtol:
            _require_all(law, reward, alpha, box, top, anywhere, rtol)
            weights /= weights.sum()
            kept = weights > _NEGLIGIBLE
            return TiltedDensity(law, reward, alpha, (x[kept], weights[kept], log_z), error)
        before, cells = log_z, 2 * cells
    raise ConvergenceError(
        f"{cells // 2} cells per axis of {box} leave an error of {error:.1e} of the normaliser, above rtol={rtol:g}."
        " The law or the reward is too rough, or the box too small or far too large: give another box= or a larger rtol"
    )


def _logs(law: Law, reward: TerminalReward, alpha: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """log p and y / alpha at x (n, d), in chunks."""
    log_p, tilt = np.empty(len(x)), np.empty(len(x))
    for start in range(0, len(x), _CHUNK):
        rows = slice(start, start + _CHUNK)
        log_p[rows] = law.logpdf(x[rows])
        tilt[rows] = checked_call("reward(x)", reward, (x[rows],), ()) / alpha
    return log_p, tilt


def _grid(box: Box, points: int) -> tuple[FloatArray, FloatArray]:
    """Points (n, d) and weights (n,) of the trapezoidal rule."""
    lower, upper = box.bounds
    weights = np.full(points, 1.0 / (points - 1))
    weights[[0, -1]] /= 2
    unit, w = tensor_rule(np.linspace(0.0, 1.0, points), weights, box.dim)
    return lower + (upper - lower) * unit, w * float((upper - lower).prod())


def _require_all(
    law: Law, reward: TerminalReward, alpha: float, box: Box, top: float, anywhere: bool, rtol: float
) -> None:
    """ConvergenceError unless p exp(y / alpha) is nothing next to the box and, where it is `anywhere`, far away."""
    lower, upper = box.bounds
    axis = np.linspace(-1.0, 1.0, _AROUND[law.dim])
    cube = tensor_rule(axis, axis, law.dim)[0]
    surface = cube[np.abs(cube).max(axis=1) == 1.0]
    for scale in (_OUTSIDE, *(_FAR if anywhere else ())):
        x = (lower + upper) / 2 + scale * (upper - lower) / 2 * surface
        try:
            with np.errstate(all="ignore"):
                log_p, tilt = _logs(law, reward, alpha, x)
        except ProblemError:  # a reward that is not to be evaluated so far out
            return
        logs = log_p + tilt
        worst = int(logs.argmax())
        if logs[worst] > top + (-_FALLEN if anywhere else np.log(rtol)):
            remedy = (
                "the reward outgrows the law there, and the integral may be infinite; use a reward that grows less, or"
                " that is constant where the law is nothing, or say where to integrate, box="
            )
            raise ConvergenceError(
                f"log p + y / alpha is {logs[worst] - top:+.3g} relative to its maximum in {box} at x={x[worst]},"
                f" outside: {remedy if anywhere else 'give a larger box='}"
            )


def _components(law: Law) -> tuple[FloatArray, FloatArray]:
    """Corners (d,) of what holds all components of a mixture: rewards may make much of those that are hardly drawn."""
    if isinstance(law, KernelDensity):
        weights, means = law.components
        width = np.full((1, 1), law.bandwidth)
    elif isinstance(law, GaussianMixture):
        weights, means, covariances = law.components
        width = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))[weights > 0]
    else:
        return np.full(law.dim, np.inf), np.full(law.dim, -np.inf)
    means = means[weights > 0]
    return (means - _WIDTHS * width).min(axis=0), (means + _WIDTHS * width).max(axis=0)


def _where(law: Law, reward: TerminalReward, alpha: float) -> Box:
    """A box outside of which p and p exp(y / alpha) are nothing, found by widening one that holds draws of p."""
    draws = law.sample(_DRAWN, np.random.default_rng(0))
    room = draws.std(axis=0)
    if not (room > 0).all():
        raise ProblemError(f"a {type(law).__name__} has no density on R^{law.dim}; tilted_density needs one")
    least, most = _components(law)
    lower, upper = np.minimum(draws.min(axis=0) - room, least), np.maximum(draws.max(axis=0) + room, most)
    per_axis = _SEEN[law.dim]
    for _ in range(_WIDENED):
        x, _weights = _grid(Box(lower, upper), per_axis)
        log_p, tilt = _logs(law, reward, alpha, x)
        logs = np.stack([log_p, log_p + tilt])
        above = (logs >= logs.max(axis=1, keepdims=True) - _NOTHING).any(axis=0)
        step = (upper - lower) / (per_axis - 1)
        low, high = x[above].min(axis=0), x[above].max(axis=0)
        cut_below, cut_above = low <= lower + step / 2, high >= upper - step / 2
        if not (cut_below.any() or cut_above.any()):
            return Box(np.minimum(low - step, least), np.maximum(high + step, most))
        width = upper - lower
        lower, upper = lower - 0.5 * width * cut_below, upper + 0.5 * width * cut_above
    raise ConvergenceError(
        f"p exp(y / alpha) does not fall off up to {lower.tolist()}, {upper.tolist()}: its integral may be infinite;"
        " use a reward that grows less, a higher temperature, or say where to integrate, box="
    )
