r"""Weights along paths that follow a policy: two Euler chains with the same noise, and what each path adds up.

The weights are W = (y(X_T) + int r dt) / alpha - log(dP^pi / dP), the likelihood ratio being that of the chain's own
Gaussian increments (`paths.likelihood`). Where an approximate value w is followed, pi = Lambda grad w / alpha, Ito's
formula for w along these paths takes the stochastic integral out (R the residual of the HJB equation, D = y - w_T):

    W = (w_0(X_0) + int R dt + D(X_T)) / alpha,    R = d_t w + <b, grad w> + 1/2 Tr(Lambda Hess w) + r
                                                       + 1/(2 alpha) grad w' Lambda grad w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np

from fem_hjb.paths.breaks import SCAN, all_times, fields_of, jumps_of
from fem_hjb.paths.likelihood import euler_step, shared_steps
from fem_hjb.paths.simulate import in_range
from fem_hjb.paths.steering import Policy, steer
from fem_hjb.paths.walls import moved
from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.probing import scattered
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.stages import Rewards, paid
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.progress import Progress

_PROBES = 8  # points at which jumps in time are looked for
_CLOSER = 4  # times as many times as steps, at which they are looked for
_AFTER = 1e-9  # of the horizon: the time after a jump at which a step begins
_ROUNDING = 1e-6  # of a pair of steps


class Score(Protocol):
    """What a path adds up, in units of the temperature."""

    @property
    def problem(self) -> ControlProblem:
        """Whose paths are followed."""

    @property
    def policy(self) -> Policy:
        """What steers them."""

    @property
    def seen(self) -> FloatArray:
        """Least and largest residual and mismatch so far, (4,)."""

    def start(self, x: FloatArray) -> FloatArray:
        """At the start, (n,)."""

    def along(self, t: float, h: float | FloatArray, x: FloatArray, log_ratio: FloatArray) -> FloatArray:
        """In a step from x, (n,), of which h counts, a number or (n,)."""

    def end(self, x: FloatArray) -> FloatArray:
        """At T, (n,)."""

    def exit(self, t: float, x: FloatArray) -> FloatArray:
        """Where a path is stopped, (n,)."""


def nothing_seen() -> FloatArray:
    """Of no residual and no mismatch."""
    return np.array([np.inf, -np.inf, np.inf, -np.inf])


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Rewards, less the logarithm of the likelihood ratio: exact for the chain.

    rewards : those on the way, at times at which a step of each chain begins (`times_of`).
    """

    problem: ControlProblem
    policy: Policy
    rewards: Rewards = field(default_factory=dict)
    seen: FloatArray = field(default_factory=nothing_seen)

    def start(self, x: FloatArray) -> FloatArray:
        return np.zeros(len(x))

    def along(self, t: float, h: float | FloatArray, x: FloatArray, log_ratio: FloatArray) -> FloatArray:
        earned = self.problem.r(t, x) * h
        if t in self.rewards:
            earned = earned + paid(self.rewards, t, x)
        return earned / self.problem.temperature - log_ratio

    def end(self, x: FloatArray) -> FloatArray:
        return self.problem.y(x) / self.problem.temperature

    def exit(self, t: float, x: FloatArray) -> FloatArray:
        return self.problem.exit_reward(t, x) / self.problem.temperature


def times_of(problem: ControlProblem, policy: Policy, steps: int, given: Sequence[float]) -> FloatArray:
    """`steps` equal steps, or a few more: pairs of them begin at given times, and where policy or coefficients jump."""
    T, x, start = problem.horizon, scattered(problem, _PROBES, 0), scattered(problem, _PROBES, 0, 0.0)
    varies = problem.constant_diffusion is None

    def rows(times: FloatArray) -> FloatArray:
        t, points = all_times(times, x)
        fields = fields_of(problem.b(t, points), problem.r(t, points), problem.Lambda(t, points) if varies else None)
        return np.concatenate([fields, [steer(policy, t, start).T for t in times.tolist()]], axis=1)

    jumps = (
        np.array(jumps_of(rows, T * (1.0 - 1.0 / steps), min(_CLOSER * steps, SCAN))) + _AFTER * T
    )  # steps begin with what is there afterwards
    near = np.abs(jumps[:, None] - np.array([0.0, *given, T])) < 10.0 * _AFTER * T
    ends = np.unique([0.0, *given, *jumps[~near.any(axis=1)], T])
    counts = np.maximum(2 * np.ceil(steps / 2 * np.diff(ends) / T - _ROUNDING).astype(np.int64), 2)
    parts = [np.linspace(*pair, count + 1)[:-1] for pair, count in zip(pairwise(ends), counts.tolist(), strict=True)]
    return np.append(np.concatenate(parts), T)


def log_weights(
    score: Score, x: FloatArray, rng: np.random.Generator, tell: Progress, *, times: FloatArray
) -> FloatArray:
    """W (2, n) of paths from x (n, d): with steps between every second one of these times, and between all of them."""
    problem = score.problem
    chains = [_Chain(score, x, rng), _Chain(score, x, rng)]
    with np.errstate(over="ignore", invalid="ignore"):  # explosions are found and told by in_range
        for k, (row, t, h, noise) in enumerate(shared_steps(times, len(x), problem.dim, rng)):
            chains[row].step(t, h, noise)
            if k % 3 == 0:
                tell(t / problem.horizon)
    return np.stack([chain.finished() for chain in chains])


class _Chain:
    """Paths of one step length: where they are, what they have added up, and which of them are still under way."""

    def __init__(self, score: Score, x: FloatArray, rng: np.random.Generator) -> None:
        self.score, self.x, self.rng = score, x.copy(), rng
        self.W = score.start(x)
        self.alive: IntArray = np.arange(len(x))

    def step(self, t: float, h: float, noise: FloatArray) -> None:
        """All that have not been stopped go on."""
        if not len(self.alive):
            return
        problem, x = self.score.problem, self.x[self.alive]
        ahead = euler_step(problem, t, h, x, steer(self.score.policy, t, x), noise[self.alive])
        self.W[self.alive] += self.score.along(t, h, x, ahead.log_ratio)
        new = in_range(ahead.x, t + h)
        new = moved(problem, t, h, x, new, self.rng)
        self.x[self.alive] = new
        if problem.domain is not None and problem.domain.absorbing:
            self._stop(problem.domain.exited(new), t, h, new)

    def _stop(self, out: BoolArray, t: float, h: float, new: FloatArray) -> None:
        """Those that were stopped in a step are paid, and go no further."""
        if out.any():
            self.W[self.alive[out]] += self.score.exit(t + h, new[out])
            self.alive = self.alive[~out]

    def finished(self) -> FloatArray:
        """W, (n,)."""
        if len(self.alive):
            self.W[self.alive] += self.score.end(self.x[self.alive])
        return self.W
