r"""Norms under a law of the process: of values in L2(p_t), of policies pointwise in |a|^2 = a' Lambda_t(x)^{-1} a.

The law is P, of the uncontrolled process, or P*, of the optimally controlled one, whose density is

    dP*/dP = exp((y(X_T) + int r dt) / alpha) / f_0(X_0),   f = exp(v / alpha).

Where the process is stopped at faces, p_t is its law as long as it has not been: there nothing is to be steered.

Draws of P* are paths that follow the policy of a reference: weights on paths of P would be worth few draws as soon as
the reward sends the process where it hardly goes by itself.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.paths.simulate import sample_at
from fem_hjb.paths.steering import Policy
from fem_hjb.problems.kernels import affordable_order
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray, Rng, as_times, gauss_order
from fem_hjb.support.errors import MeasureError
from fem_hjb.support.objects import Plain

Rule = tuple[FloatArray, FloatArray]

LAWS = ("uncontrolled", "controlled")
# Fractions of the horizon: equispaced, and towards its end where policies change fastest, T (1 - 2^-k) and between.
_DEFAULT_TIMES = np.unique(
    np.concatenate([np.arange(17) / 16, 1 - 0.5 ** np.arange(1, 13), 1 - 0.75 * 0.5 ** np.arange(4, 12)])
)
_EARLY = 0.5 ** np.arange(5, 11)  # where a law begins narrow, and spreads at once
_DEFAULT_ORDER = {1: 64, 2: 32, 3: 16}  # Gauss points per coordinate of a known law
_SIMULATED = 4096  # points per time when the law is not known, or in more than three dimensions
_STRAYED = 0.01  # share of paths without a policy that still stand for P*


def policy_squares(problem: ControlProblem, t: ArrayLike, x: FloatArray, pi: FloatArray) -> FloatArray:
    """pi' Lambda_t(x)^{-1} pi, (n,), of policies (n, d) at points (n, d); t a number or (n,)."""
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


def _narrow(problem: ControlProblem) -> bool:
    """Whether noise soon makes the law wider, along an axis, than it is at the start."""
    law = problem.initial_law
    spread = problem.Lambda(0.0, law.expectation) * problem.horizon / 16
    return bool((np.diag(law.covariance) < np.diag(spread)).any())


def _times(times: ArrayLike | None, problem: ControlProblem) -> FloatArray:
    if times is None:
        some = np.union1d(_DEFAULT_TIMES, _EARLY) if _narrow(problem) else _DEFAULT_TIMES
        return np.asarray(problem.horizon * some)
    grid = np.atleast_1d(as_times(times, problem.horizon, "times"))
    if grid.ndim != 1 or grid.size == 0:
        raise MeasureError(f"times must be a number or a one-dimensional array of times, got shape {grid.shape}")
    return grid


@final
@dataclass(frozen=True, eq=False, repr=False)
class LawPoints(Plain):
    """Times (k,), for each of them points (n, d) and weights (n,) of a law, which one, and in words what they are."""

    times: FloatArray
    rules: Sequence[Rule]
    description: str
    law: str = "uncontrolled"

    def __iter__(self) -> Iterator[tuple[float, FloatArray, FloatArray]]:
        """(t, points, weights) for each time."""
        for t, (x, weights) in zip(self.times.tolist(), self.rules, strict=True):
            yield t, x, weights


def law_points(
    problem: ControlProblem, *, times: ArrayLike | None = None, order: int | None = None, rng: Rng = 0
) -> LawPoints:
    """Where `compare` compares under P: times, order and rng are its own."""
    grid = _times(times, problem)
    return LawPoints(grid, *_rules(problem, grid, order, rng))


def _rules(problem: ControlProblem, grid: FloatArray, order: int | None, rng: Rng) -> tuple[Sequence[Rule], str]:
    """Points (n, d) and weights (n,) of p_t for each time, and a description."""
    if problem.marginal is not None and problem.dim <= 3:
        laws = [problem.marginal(t) for t in grid.tolist()]
        if order is None:
            per_axis = affordable_order(laws[0], _DEFAULT_ORDER[problem.dim])
        else:
            per_axis = gauss_order(order, "order", MeasureError)
        return [law.quadrature(per_axis) for law in laws], f"Gauss quadrature of p_t, {per_axis} points per coordinate"
    if order is not None:
        raise MeasureError(
            "order is the number of Gauss points of a known law p_t in at most three dimensions; this problem"
            f" has dim={problem.dim} and {'a' if problem.marginal else 'no'} known law: leave order=None"
        )
    return _simulated(problem, grid, None, rng), f"p_t from {_SIMULATED} simulated paths"


def controlled_points(
    problem: ControlProblem, policy: Policy, *, times: ArrayLike | None = None, rng: Rng = 0
) -> LawPoints:
    """Draws of P*: paths that follow the optimal policy, a callable (t, x) -> (n, d), nan where it is not known.

    There a path goes on uncontrolled, as outside the mesh of a reference or where f <= 0.

    Raises MeasureError if more than a hundredth of the paths is without a policy at some time, for they are then no
    draws of P*; ConvergenceError if they explode; ProblemError if the policy returns a wrong shape.
    """
    grid = _times(times, problem)
    lost = [0.0]

    def known(t: float, x: FloatArray) -> FloatArray:
        time = min(t, problem.horizon)  # steps end there up to rounding
        pi = np.array(policy(time, x), dtype=np.float64)
        unknown = ~np.isfinite(pi).all(axis=-1)
        if time < problem.horizon * (1 - 1e-12):  # at T the policy of a reward that jumps is none
            lost[0] = max(lost[0], float(unknown.mean()))
        pi[unknown] = 0.0
        return pi

    rules = _simulated(problem, grid, known, rng)
    if lost[0] > _STRAYED:
        raise MeasureError(
            f"the reference has no policy at up to {lost[0]:.1%} of the states of the process that follows it"
            " (outside its mesh, or f <= 0), so that paths do not show the optimally controlled law"
        )
    stray = f", up to {lost[0]:.2%} of them without a policy at a time" if lost[0] else ""
    return LawPoints(grid, rules, f"p*_t from {_SIMULATED} paths under the reference's policy{stray}", law="controlled")


def _simulated(problem: ControlProblem, grid: FloatArray, policy: Policy | None, rng: Rng) -> list[Rule]:
    paths = sample_at(problem, grid, n=_SIMULATED, rng=rng, policy=policy)
    return [_evenly(problem, np.asarray(paths.x)[:, k]) for k in np.searchsorted(np.asarray(paths.t), grid)]


def _evenly(problem: ControlProblem, x: FloatArray) -> Rule:
    """Draws with equal weights; those that have been stopped are left out as long as others are there: nothing is to
    be steered, and their value is what was paid.
    """
    if problem.domain is not None and problem.domain.absorbing:
        running = x[~problem.domain.exited(x)]
        x = running if len(running) else x
    return x, np.full(len(x), 1.0 / len(x))
