"""Norms under the law of the process: of values in L2(p_t), of policies pointwise in |a|^2 = a' Lambda_t(x)^{-1} a."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray, Rng, as_times, gauss_order
from fem_hjb.support.errors import MeasureError
from fem_hjb.support.objects import Plain

Rule = tuple[FloatArray, FloatArray]

_DEFAULT_TIMES = 9
_DEFAULT_ORDER = {1: 64, 2: 32, 3: 16}  # Gauss points per coordinate of a known law
_SIMULATED = 4096  # points per time when the law is not known, or in more than three dimensions
_MAX_STEPS = 1024


def policy_squares(problem: ControlProblem, t: float, x: FloatArray, pi: FloatArray) -> FloatArray:
    """pi' Lambda_t(x)^{-1} pi, (n,), of policies (n, d) at points (n, d)."""
    constant = problem.constant_diffusion
    inverse = np.linalg.inv(problem.Lambda(t, x) if constant is None else constant)
    return np.asarray(np.einsum("ni,nij,nj->n", pi, np.broadcast_to(inverse, (*pi.shape, pi.shape[1])), pi))


def l2_norm(weights: FloatArray, squares: FloatArray) -> float:
    """The root of the mean of squares (n,) under a rule with these weights."""
    return math.sqrt(weights @ squares)


def largest_norms(
    problem: ControlProblem, points: "LawPoints", rows: Iterable[tuple[FloatArray, FloatArray]]
) -> tuple[float, float]:
    """max over t of the norms of v and of its policy, from v (n,) and grad v (n, d) at each time; nan left out.

    For pi = Lambda grad v / alpha the square of the norm is grad v' Lambda grad v / alpha^2.
    """
    value = policy = 0.0
    for (t, x, w), (v, slope) in zip(points, rows, strict=True):
        known = np.isfinite(v) & np.isfinite(slope).all(axis=1)
        size = np.einsum("ni,nij,nj->n", slope[known], problem.Lambda(t, x[known]), slope[known])
        value = max(value, l2_norm(w[known], v[known] ** 2))
        policy = max(policy, l2_norm(w[known], size) / problem.temperature)
    return value, policy


def _times(times: ArrayLike | None, problem: ControlProblem) -> FloatArray:
    if times is None:
        return np.linspace(0.0, problem.horizon, _DEFAULT_TIMES)
    grid = np.atleast_1d(as_times(times, problem.horizon, "times"))
    if grid.ndim != 1 or grid.size == 0:
        raise MeasureError(f"times must be a number or a one-dimensional array of times, got shape {grid.shape}")
    return grid


@final
@dataclass(frozen=True, eq=False, repr=False)
class LawPoints(Plain):
    """Times (k,), for each of them points (n, d) and weights (n,) of p_t, and in words what they are."""

    times: FloatArray
    rules: Sequence[Rule]
    description: str

    def __iter__(self) -> Iterator[tuple[float, FloatArray, FloatArray]]:
        """(t, points, weights) for each time."""
        for t, (x, weights) in zip(self.times.tolist(), self.rules, strict=True):
            yield t, x, weights


def law_points(
    problem: ControlProblem, *, times: ArrayLike | None = None, order: int | None = None, rng: Rng = 0
) -> LawPoints:
    """Where `compare` compares: times, order and rng are its own."""
    grid = _times(times, problem)
    return LawPoints(grid, *_rules(problem, grid, order, rng))


def _rules(problem: ControlProblem, grid: FloatArray, order: int | None, rng: Rng) -> tuple[Sequence[Rule], str]:
    """Points (n, d) and weights (n,) of p_t for each time, and a description."""
    if problem.marginal is not None and problem.dim <= 3:
        per_axis = _DEFAULT_ORDER[problem.dim] if order is None else gauss_order(order, "order", MeasureError)
        laws = [problem.marginal(t) for t in grid.tolist()]
        return [law.quadrature(per_axis) for law in laws], f"Gauss quadrature of p_t, {per_axis} points per coordinate"
    if order is not None:
        raise MeasureError(
            "order is the number of Gauss points of a known law p_t in at most three dimensions; this problem"
            f" has dim={problem.dim} and {'a' if problem.marginal else 'no'} known law: leave order=None"
        )
    steps, index = _path_grid(grid / problem.horizon)
    paths = sample_paths(problem, n=_SIMULATED, steps=steps, rng=rng)
    weights = np.full(_SIMULATED, 1.0 / _SIMULATED)
    return [(np.asarray(paths.x)[:, k], weights) for k in index], f"p_t from {_SIMULATED} simulated paths"


def _path_grid(fractions: FloatArray) -> tuple[int, list[int]]:
    """The smallest number of steps >= 64 whose grid of [0, 1] contains the fractions, and their places in it."""
    for steps in range(64, _MAX_STEPS + 1):
        index = np.rint(fractions * steps)
        if np.abs(index / steps - fractions).max() < 1e-9:
            return steps, [int(k) for k in index]
    raise MeasureError(
        f"the law p_t of this problem is simulated, so times must lie on a grid of at most {_MAX_STEPS} equal steps of"
        " the horizon; give rounder times"
    )
