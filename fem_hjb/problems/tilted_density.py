r"""The law of data that a reward tilts, p exp(y / alpha) / Z, by quadrature: what fine-tuning is to end in."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Law, tensor_rule
from fem_hjb.problems.problem import TerminalReward, checked_call
from fem_hjb.support.checks import FloatArray, as_points, number_in_units, positive_number, require
from fem_hjb.support.errors import ConvergenceError, ProblemError
from fem_hjb.support.objects import Plain

_DRAWN = 4096  # draws that say where to begin
_SEEN = {1: 513, 2: 97, 3: 33}  # points per axis that say where the density is
_NOTHING = 45.0  # of its logarithm: e^-45 of the maximum is left out
_WIDENED = 40  # times at most
_FIRST = 32  # cells per axis
_POINTS = 1 << 22  # at most
_CHUNK = 1 << 16  # points at once
_NEGLIGIBLE = 1e-22  # of the whole: weights of the rule that are left out


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
    box : what to integrate over; by default one that begins with draws of p and grows until p and p exp(y / alpha) have
        fallen off to e^{-45} of their maxima. What the reward makes of places beyond is not seen.

    Raises `ProblemError` for what is not as said, `ConvergenceError` if p exp(y / alpha) does not fall off, or the grid
    does not resolve it with four million points.

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
    if box is None:
        box = _where(law, reward, alpha)
    require(box, Box, "box=", ProblemError)
    if box.dim != law.dim or not box.bounded:
        raise ProblemError(f"box must be a bounded Box of dimension {law.dim}, got {box}")
    before, cells, error = -np.inf, _FIRST, np.inf
    while (cells + 1) ** law.dim <= _POINTS:
        x, widths = _grid(box, cells + 1)
        log_p, tilt = _logs(law, reward, alpha, x)
        mass = float((np.exp(log_p) * widths).sum())
        logs = log_p + tilt
        top = float(logs.max())
        weights = np.exp(logs - top) * widths
        total = float(weights.sum())
        log_z = top + float(np.log(total))
        error = max(abs(float(np.expm1(min(log_z - before, 1.0)))), abs(mass - 1.0))
        if error <= rtol:
            kept = weights > _NEGLIGIBLE * total
            return TiltedDensity(law, reward, alpha, (x[kept], weights[kept] / total, log_z), error)
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


def _where(law: Law, reward: TerminalReward, alpha: float) -> Box:
    """A box outside of which p and p exp(y / alpha) are nothing, found by widening one that holds draws of p."""
    draws = law.sample(_DRAWN, np.random.default_rng(0))
    room = draws.std(axis=0)
    if not (room > 0).all():
        raise ProblemError(f"a {type(law).__name__} has no density on R^{law.dim}; tilted_density needs one")
    lower, upper = draws.min(axis=0) - room, draws.max(axis=0) + room
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
            return Box(low - step, high + step)
        width = upper - lower
        lower, upper = lower - 0.5 * width * cut_below, upper + 0.5 * width * cut_above
    raise ConvergenceError(
        f"p exp(y / alpha) does not fall off up to {lower.tolist()}, {upper.tolist()}: its integral may be infinite;"
        " use a reward that grows less, a higher temperature, or say where to integrate, box="
    )
