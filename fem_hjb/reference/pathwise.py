r"""A witness that knows neither mesh nor equation: the value along paths that follow the solution's own policy.

With pi the policy and B the noise of dX = (b + pi) dt + Lambda^{1/2} dB, Girsanov's theorem and docs/theory.md give

    W = (y(X_T) + int r dt) / alpha - int (Lambda^{-1/2} pi)' dB - 1/2 int |Lambda^{-1/2} pi|^2 dt
    v_0(X_0) / alpha = log E[e^W | X_0],   and   W = v_0(X_0) / alpha on every path if pi is optimal.

So W - v_0(X_0) / alpha is nothing but the error of the policy, and of steps in time. These are halved once, with the
same noise: the difference is what they do. Every callable of the problem is used as the user wrote it, all coordinates
at once: what a solver took for independent, for constant, or for far away is seen here if paths meet it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, final

import numpy as np

from fem_hjb.paths.likelihood import euler_step
from fem_hjb.paths.stiffness import substeps_of
from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.stages import Rewards, paid
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.support.checks import FloatArray

VALUE, POLICY = "value along paths", "policy along paths"
_PATHS = {1: 1024, 2: 1024}
_FEW_PATHS = 512  # in more dimensions
_FEWEST_PATHS = 256  # where steps are many: the spread that they leave falls with their length
_STEPS, _MOST_STEPS = 64, 256
_LAST_STEPS = 512  # where paths that strayed are made again
_COARSE = 4  # steps, for which substeps are asked
_STEPS_BETWEEN = 4  # pairs at least, from one jump to the next
_ERRORS = 4.0  # standard errors that a mean may be off
_STEP = 2.0  # times what halving the steps has changed
_ESTIMATES = 3.0  # times its estimated error, that a solution may be off
_UNEVEN = 0.25  # of a variance, that halving the steps may fail to halve, where rewards are not smooth
_ROUNDING = 1e-9
_INSIDE = 1e-6  # of a step
_STRAYED = 0.02  # the fraction of paths that may leave where the solution is known


def along_paths(
    problem: ControlProblem,
    solution: Any,
    estimate: ErrorEstimate,
    jumps: Sequence[float] = (),
    seed: int = 0,
    walked: "Walk | None" = None,
) -> tuple[Check, ...]:
    """Mean and spread of W - v_0(X_0) / alpha, against what chance, steps and the estimated errors explain.

    jumps : times between 0 and T at which coefficients jump: steps start there.
    walked : the paths, if they have been made (`walk`).
    None are made where they say nothing: at absorbing faces, in drifts too steep for a few hundred steps.
    """
    if walked is None and (walked := walk(problem, solution, jumps, seed)) is None:
        return ()
    found, kept, lost = walked.found, walked.kept, walked.lost
    count, taken = int(kept.sum()), len(walked.times) - 1
    told = f"{kept.size} paths under the policy, {taken // 2} and {taken} steps"
    if lost > _STRAYED:
        return (Check(name=VALUE, figure=lost, limit=_STRAYED, told=f"fraction without a policy of {told}"),)
    coarse, fine = found[:, kept]
    mean = 2.0 * fine - coarse
    chance = _ERRORS / math.sqrt(count)
    by_steps = _STEP * abs(float((fine - coarse).mean()))
    limit = chance * float(mean.std()) + by_steps + (_ESTIMATES * min(estimate.value, 1.0) + _ROUNDING) * walked.size
    value = Check(name=VALUE, figure=abs(float(mean.mean())), limit=limit, told=f"temperatures; {told}")
    # the variance of a stochastic integral in steps falls with their length, what is left is the policy's error
    squares = (found[:, kept] - found[:, kept].mean(axis=1, keepdims=True)) ** 2
    left = 2.0 * squares[1] - squares[0]
    slack = chance * float(left.std()) + _UNEVEN * float(squares[0].mean())
    energy = walked.energy + _ROUNDING
    policy = Check(
        name=POLICY,
        figure=math.sqrt(max(float(left.mean()), 0.0) / energy),
        limit=math.sqrt(slack / energy) + _ESTIMATES * min(estimate.policy, 1.0) + _ROUNDING,
        told=f"relative error; {told}",
    )
    return value, policy


def _times(T: float, steps: int, jumps: Sequence[float]) -> FloatArray:
    """An even number of steps from 0 to T, shorter towards T; where coefficients jump a pair of them starts."""
    ends = np.unique([0.0, *jumps, T])
    share = np.sqrt(1.0 - ends / T)  # in which the steps are equal
    counts = np.maximum(2 * np.ceil(steps / 2 * -np.diff(share)).astype(np.int64), 2 * _STEPS_BETWEEN)
    parts = [np.linspace(*pair, count + 1)[:-1] for pair, count in zip(pairwise(share), counts.tolist(), strict=True)]
    return np.asarray(T * (1.0 - np.append(np.concatenate(parts), 0.0) ** 2))


def _staged_times(T: float, steps: int, jumps: Sequence[float], ends: Sequence[float]) -> FloatArray:
    """The same with so many steps for each stage, shorter towards the end of each."""
    parts = [
        start + _times(end - start, steps, [t - start for t in jumps if start < t < end])[:-1]
        for start, end in pairwise([0.0, *ends, T])
    ]
    return np.append(np.concatenate(parts), T)


def walk(
    problem: ControlProblem,
    solution: Any,
    jumps: Sequence[float] = (),
    seed: int = 0,
    rewards: Rewards | None = None,
) -> "Walk | None":
    """The paths of `along_paths`; None where they would say nothing.

    rewards : those on the way, t_i -> y_i in increasing time.
    """
    if problem.domain is not None and problem.domain.absorbing:
        return None
    # the longest of the long steps lasts four of T / steps: -db/dx dt is 1 there at most
    steps = max(_STEPS, 2 * _COARSE * (substeps_of(problem, _COARSE, steered=True) or 1))
    if steps > _MOST_STEPS:
        return None
    made = Walk(problem, solution, steps, jumps, seed, rewards or {})
    if made.lost > _STRAYED and 4 * steps <= _LAST_STEPS:  # by steps that are too long, perhaps
        made = Walk(problem, solution, 4 * steps, jumps, seed, rewards or {})
    return made


@final
class Walk:
    """The same noise in steps and in steps twice as long, shorter towards T, where policies are steep.

    found : W - v_0(X_0) / alpha, (2, n): with long steps and with short ones; nan where the policy is not known.
    size : of v / alpha.
    energy : E int |Lambda^{-1/2} pi|^2 dt.
    """

    def __init__(
        self,
        problem: ControlProblem,
        solution: Any,
        steps: int,
        jumps: Sequence[float],
        seed: int,
        rewards: Rewards,
    ) -> None:
        self.problem, self.solution, self.rewards = problem, solution, rewards
        self.times = _staged_times(problem.horizon, steps, jumps, list(rewards))
        self.count = max(_FEWEST_PATHS, _PATHS.get(problem.dim, _FEW_PATHS) * _STEPS // steps)
        self.size = self.energy = 0.0
        self._places: list[FloatArray] = []
        with np.errstate(over="ignore", invalid="ignore"):  # of callables where paths go too far: these are left out
            self.found = self._gaps(np.random.default_rng([seed, 2]))

    @property
    def kept(self) -> BoolArray:
        """Which paths (n,) were followed to the end."""
        return np.asarray(np.isfinite(self.found).all(axis=0))

    @property
    def lost(self) -> float:
        """The fraction of the others."""
        return 1.0 - float(self.kept.mean())

    def at(self, times: FloatArray) -> FloatArray:
        """Draws (k, n, d) at the times next to these (k,), where a pair of steps begins or all end."""
        own = self.times[::2]
        return np.stack([self._places[int(np.abs(own - t).argmin())] for t in times.tolist()])

    def _gaps(self, rng: np.random.Generator) -> FloatArray:
        problem, alpha, d = self.problem, self.problem.temperature, self.problem.dim
        x = problem.initial_law.sample(self.count, rng)
        x = x if problem.box is None else problem.box.mirror(x)
        start = self.solution.value(0.0, x, outside="nan", nonpositive="nan") / alpha
        self.size = float(np.nanmax(np.abs(start), initial=1e-300))
        found, places = np.tile(-start, (2, 1)), np.stack([x, x])
        for k in range(0, len(self.times) - 1, 2):  # the long step and the first short one begin together
            t, half, end = self.times[k : k + 3].tolist()
            self._places.append(places[1].copy())
            first, second = (np.sqrt(h) * rng.standard_normal((self.count, d)) for h in (half - t, end - half))
            self._follow(t, np.array([end - t, half - t]), np.stack([first + second, first]), places, found)
            self._follow(half, np.array([end - half]), second[None], places[1:], found[1:])
            if end in self.rewards:
                for row, place in zip(found, places, strict=True):
                    row += paid(self.rewards, end, place) / alpha
        self._places.append(places[1])
        for row, place in zip(found, places, strict=True):
            earned = problem.y(place) / alpha
            self.size = max(self.size, float(np.sqrt((earned**2).mean())))
            row += earned
        return found

    def _follow(self, t: float, h: FloatArray, noise: FloatArray, places: FloatArray, found: FloatArray) -> None:
        """A step of Euler and Maruyama of each of r chains, the last one of short steps, with what it adds to W.

        h (r,); noise and places (r, n, d); found (r, n).
        """
        problem, d = self.problem, self.problem.dim
        x, lengths = places.reshape(-1, d), np.repeat(h, self.count)
        gradient = self.solution.gradient(t, x, outside="nan", nonpositive="nan")
        finite = np.isfinite(gradient)
        if not finite.all():  # paths that left are not followed: callables need not have values there
            known = finite.all(axis=1)
            found[~known.reshape(found.shape)] = np.nan
            stay = int(known.argmax())
            x, gradient = (np.where(known[:, None], part, part[stay]) for part in (x, gradient))
            gradient = np.nan_to_num(gradient)
        pi = problem.policy_from_gradient(t, x, gradient)
        t += _INSIDE * float(h[-1])  # after a jump, if there is one
        ahead = euler_step(problem, t, lengths, x, pi, noise.reshape(-1, d))
        self.energy += float(h[-1] * ahead.effort[-self.count :].mean())
        found += (problem.r(t, x) * lengths / problem.temperature - ahead.log_ratio).reshape(found.shape)
        new = ahead.x if problem.box is None else problem.box.mirror(ahead.x)
        places[:] = new.reshape(places.shape)
