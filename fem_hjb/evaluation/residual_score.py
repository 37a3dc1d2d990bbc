r"""Bounds of the optimal value from an approximate one, w, whose residual is bounded: from both sides, no heavy tails.

Along paths under pi_w = Lambda grad w / alpha, with the residual R of the HJB equation and the mismatch D = y - w_T (at
an absorbing face D = g - w), let xi = int R dt + D. Then (docs/theory.md)

    v*(x0) = w_0(x0) + alpha log E e^{xi / alpha}.

Jensen's inequality bounds it by w + E xi = J(pi_w) from below. Where R and D are bounded, xi lies in an interval of
some length c, and Hoeffding's lemma, log E e^{Z - E Z} <= (b - a)^2 / 8 for a <= Z <= b, bounds it from above by

    w_0(x0) + E xi + c^2 / (8 alpha).

Source: W. Hoeffding, J. Amer. Statist. Assoc. 58 (1963) 13-30, inequality (4.16).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from fem_hjb.evaluation.weighted_walk import nothing_seen
from fem_hjb.paths.simulate import noise_factor
from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem, ValueFunction, checked_call
from fem_hjb.support.checks import FloatArray, real_array
from fem_hjb.support.errors import DomainError, FemHjbError, MeasureError, ProblemError

_SHIFT = 1e-4  # of the spread of the process until T, and of T, over which derivatives of w are differences
_SEARCHED = 4096  # points of a box at which R and D are looked at
_BEYOND = 1e-9  # relative: what exceeds bounds by rounding


@final
@dataclass(frozen=True, eq=False)
class Residual:
    """What paths under pi_w add up: w_0, R and D."""

    problem: ControlProblem
    value: Any
    seen: FloatArray = field(default_factory=nothing_seen)

    def policy(self, t: float, x: FloatArray) -> FloatArray:
        """pi_w, (n, d)."""
        return self.problem.policy_from_gradient(t, x, self.gradient(t, x))

    def start(self, x: FloatArray) -> FloatArray:
        return self.w(0.0, x) / self.problem.temperature

    def along(self, t: float, h: float | FloatArray, x: FloatArray, log_ratio: FloatArray) -> FloatArray:
        R = self.residual(t, x)
        self._saw(0, R)
        return R * h / self.problem.temperature

    def end(self, x: FloatArray) -> FloatArray:
        return self._missed(self.problem.y(x) - self.w(self.problem.horizon, x))

    def exit(self, t: float, x: FloatArray) -> FloatArray:
        return self._missed(self.problem.exit_reward(t, x) - self.w(t, x))

    def _missed(self, D: FloatArray) -> FloatArray:
        self._saw(2, D)
        return D / self.problem.temperature

    def _saw(self, k: int, found: FloatArray) -> None:
        self.seen[k] = min(self.seen[k], found.min(initial=np.inf))
        self.seen[k + 1] = max(self.seen[k + 1], found.max(initial=-np.inf))

    def w(self, t: float, x: FloatArray) -> FloatArray:
        """w_t(x), (n,)."""
        return checked_call("value: value(t, x)", self.value.value, (t, x), (), passes=FemHjbError)

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        """grad w_t(x), (n, d)."""
        return checked_call("value: gradient(t, x)", self.value.gradient, (t, x), x.shape[-1:], passes=FemHjbError)

    def residual(self, t: float, x: FloatArray) -> FloatArray:
        """R_t(x), (n,): its own, or by its own generator, or by differences of w in time and of grad w in space."""
        if hasattr(self.value, "residual"):
            return checked_call("value: residual(t, x)", self.value.residual, (t, x), (), passes=FemHjbError)
        problem, slope = self.problem, self.gradient(t, x)
        steered = np.einsum("nij,nj->ni", problem.Lambda(t, x), slope)
        quadratic = (slope * steered).sum(axis=1) / (2.0 * problem.temperature)
        if hasattr(self.value, "generator"):
            moved = checked_call("value: generator(t, x)", self.value.generator, (t, x), (), passes=FemHjbError)
        else:
            moved = self._generator(t, x, slope)
        return np.asarray(moved + problem.r(t, x) + quadratic)

    def _generator(self, t: float, x: FloatArray, slope: FloatArray) -> FloatArray:
        """d_t w + <b, grad w> + 1/2 Tr(Lambda Hess w), the last along the columns of the Cholesky factor."""
        problem, T = self.problem, self.problem.horizon
        before, after = max(t - _SHIFT * T, 0.0), min(t + _SHIFT * T, T)
        found = (self.w(after, x) - self.w(before, x)) / (after - before) + (problem.b(t, x) * slope).sum(axis=1)
        eta = _SHIFT * np.sqrt(T)
        columns = np.swapaxes(noise_factor(problem, t, x), 1, 2)
        for k in range(problem.dim):
            column = columns[:, k]
            ahead, behind = self._known(x + eta * column, x), self._known(x - eta * column, x)
            sides = np.maximum(np.any(ahead != x, axis=1) + 1.0 * np.any(behind != x, axis=1), 1.0)
            bend = self.gradient(t, ahead) - self.gradient(t, behind)
            found += (bend * column).sum(axis=1) / (2.0 * eta * sides)
        return np.asarray(found)

    def _known(self, moved: FloatArray, x: FloatArray) -> FloatArray:
        """Points x that have been moved; back where they were, where that led through an absorbing face: w may end."""
        domain = self.problem.domain
        return moved if domain is None else np.where(domain.exited(moved)[:, None], x, moved)


def checked_value(problem: ControlProblem, value: Any) -> Residual:
    """What was given as value=, or a ProblemError."""
    if not isinstance(value, ValueFunction):
        missing = [name for name in ("value", "gradient") if not callable(getattr(value, name, None))]
        network = "; of a network, as_value(net) of fem_hjb.interop.torch has both" if callable(value) else ""
        raise ProblemError(
            f"value must have value(t, x) and gradient(t, x), and may have generator(t, x) or residual(t, x), got"
            f" {type(value).__name__} without {' and '.join(missing) or 'callables of these names'}{network}"
        )
    if problem.domain is not None and problem.domain.has("reflecting"):
        raise ProblemError(
            f"value= is not for reflecting faces, which {problem.name!r} has: where the normal derivative of w does not"
            " vanish, they add a term that no bound of a residual sees; leave out value="
        )
    return Residual(problem, value)


@final
@dataclass(frozen=True, eq=False)
class Range:
    """Where R and D lie, (4,): least and largest of each; and how that is known."""

    limits: FloatArray
    how: str
    given: bool

    def length(self, problem: ControlProblem) -> float:
        """Of the interval in which xi lies."""
        T = problem.horizon
        low, high, least, most = self.limits.tolist()
        if problem.domain is not None and problem.domain.absorbing:  # an integral may end at any time
            low, high = min(low, 0.0), max(high, 0.0)
        return float(T * (high - low) + most - least)

    def with_paths(self, seen: FloatArray) -> Range | None:
        """With what paths have seen: None if that is beyond bounds that were given."""
        low, high = np.minimum(self.limits, seen), np.maximum(self.limits, seen)
        limits = np.where([True, False, True, False], low, high)
        if not self.given:
            return Range(limits, f"{self.how}, and along the paths", given=False)
        slack = _BEYOND * np.abs(self.limits).max()
        return self if np.abs(limits - self.limits).max() <= slack else None


def checked_range(score: Residual, bounds: Any, rng: np.random.Generator) -> Range | None:
    """What was given as bounds=: numbers, a box to find them on, or None."""
    if bounds is None:
        return None
    problem = score.problem
    if isinstance(bounds, Box):
        if bounds.dim != problem.dim or not bounds.bounded:
            raise DomainError(f"bounds= needs a bounded Box of dimension {problem.dim}, got {bounds!r}")
        lower, upper = bounds.bounds
        x = lower + (upper - lower) * rng.random((_SEARCHED, problem.dim))
        inside = x if problem.domain is None else x[~problem.domain.exited(x)]
        if not len(inside):
            raise DomainError(f"bounds= needs a Box that meets the domain, got {bounds!r}")
        times = np.linspace(0.0, problem.horizon, 33)
        R = np.concatenate(
            [score.residual(t, part) for t, part in zip(times.tolist(), np.array_split(inside, 33), strict=True)]
        )
        D = problem.y(inside) - score.w(problem.horizon, inside)
        limits = np.array([R.min(), R.max(), D.min(), D.max()])
        return Range(limits, f"found at {len(inside)} points of a box", given=False)
    limits = real_array(bounds, "bounds", MeasureError)
    if limits.shape != (2, 2) or not np.isfinite(limits).all() or not (limits[:, 0] <= limits[:, 1]).all():
        raise MeasureError(
            "bounds must be ((least R, largest R), (least D, largest D)), finite, or a Box to find them on, got"
            f" {np.array2string(limits, separator=', ', threshold=8)}"
        )
    return Range(limits.ravel(), "given", given=True)
