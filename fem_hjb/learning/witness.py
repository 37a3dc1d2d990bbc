r"""How wrong a learned solution is, by paths that follow its own policy: no reference is needed.

Let w be the learned value, pi = Lambda grad w / alpha, R the residual of the HJB equation, which for f = exp(w / alpha)
is that of the linear one, R = alpha (d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f)) / f + r, and D = y - w_T. Along paths
of dX = (b + pi) dt + Lambda^{1/2} dB let Z = (int R dt + D) / alpha. With e = v* - w (docs/theory.md)

    e_0(x0) = alpha log E[e^Z | X_0 = x0],   Z = e_0(x0) / alpha + int <grad e, Lambda^{1/2} dB> / alpha - ...,

so that to leading order the variance of Z from one start is E int |pi - pi*|^2 dt in the metric Lambda^{-1}, and twice
the loss J(pi*) - J(pi) in temperatures. Where w has no second derivatives, or no logarithm, outside its box, and in
more than three dimensions, paths go on with the weights of Girsanov's theorem, W = (int r dt + y) / alpha -
log(dP^pi / dP), instead, which have the same expectation whatever policy is followed: what is lost there is seen, too.
Their variance in N steps has a part that falls with the length of a step: it is extrapolated from N and N/2 steps with
the same noise.

That is a mean over time, and errors are not: a class that follows f in time on cells is at its worst in the last of
them. So paths branch again, from where the first ones are at s = T/2, 3T/4, 7T/8, ...: the variance of Z from there is
E int_s^T |pi - pi*|^2 dt, and its logarithm v* - w at the time s. The largest of the means over [s, T], and of the
values at s, are what the errors of other solutions are, which are the largest over time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import final

import numpy as np

from fem_hjb.paths.breaks import around_breaks
from fem_hjb.paths.likelihood import Shared, euler_step, shared_steps
from fem_hjb.paths.simulate import in_range
from fem_hjb.paths.stiffness import substeps_of
from fem_hjb.paths.walls import inside, moved
from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.gauge import Gauge
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

POLICY, VALUE, INSIDE, POSITIVE = "policy along its own paths", "value at the start", "paths in the box", "positivity"
_ROUNDS = ((96, 1), (384, 2))  # starts, and times the fewest steps; the second where the first leaves it open
_STEPS, _COARSE, _FINER = (
    64,
    4,
    4,
)  # the fewest; of them one for which substeps are asked; times more where paths explode
_FEW = 3  # coordinates; with more of them second derivatives of dictionaries take too long, and so does another round
_INNER = 16  # paths from each start
_OPEN = 0.5  # of an error, which paths and steps may be
_UNEVEN = 0.4  # of a step, by which times are moved: steps in step with the cells in time would see the same of each
_PROBES = 8  # points at which coefficients are looked at for jumps
_ERRORS = 2.0  # standard errors of an interval
_NOTHING = 1e-8  # of E int |pi|^2, and of E v^2 in temperatures: less than this is no steering, and no value
_LEFT, _NONPOSITIVE = 0.1, 1e-3  # shares of the time of paths
_BRIEF = 0.02  # the same, that a policy which is wild for other reasons may drive out
_MOST = 0.5  # of the variance: what is the reason for it
_LATER = (0.5, 0.75, 0.875, 0.9375, 0.96875)  # of the horizon, from where paths branch again
_AGAIN, _BRANCHES, _SHORT = 48, 8, 8  # starts and paths from each there, and their fewest steps


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Witness:
    """What paths under the learned policy tell.

    policy : the root of E int |pi - pi*|^2 dt over that of E int |pi|^2 dt, under the law of the policy, with one
        standard error of the former.
    chance : the share of it that is no more than chance and steps.
    value : the root of the mean square of v* - w at t = 0 over that of v*, under the initial law.
    start, margin : E v*_0(X_0) over the starts that were drawn, and two standard errors;  learned : E w_0(X_0).
    outside, nonpositive, unseen : the share of the time of paths outside the box, where f <= 0, and in cells with
        coefficients that the samples do not determine.
    by_end, by_faces : the shares of D, and of paths that left, in the variance.
    largest : of value and policy, the largest over time over the largest of v* and of pi, where it was asked for.
    """

    policy: float
    chance: float
    value: float
    start: float
    margin: float
    learned: float
    outside: float
    nonpositive: float
    unseen: float
    by_end: float
    by_faces: float
    paths: int
    steps: int
    largest: tuple[float, float] | None = None

    @property
    def estimate(self) -> ErrorEstimate:
        """The relative errors, the largest over time where it was asked for; of what they are made up is not known.

        That of the policy is no less than its mean: the means over [s, T] do not see what is largest early.
        """
        value, policy = self.largest or (self.value, self.policy)
        policy = max(policy, self.policy)
        unknown = dict.fromkeys(("space", "time", "truncation"), math.inf)
        return ErrorEstimate(value=value, policy=policy, **unknown)

    def checks(self, accept: float) -> tuple[Check, ...]:
        """The figures against what is accepted."""
        paths = f"{self.paths} paths, {self.steps // 2} and {self.steps} steps"
        found = f"E v_0(X_0) = {self.start:.5g} +- {self.margin:.1g} by the paths, {self.learned:.5g} learned"
        return (
            Check(name=POLICY, figure=self.policy, limit=accept, told=f"relative error; {paths}"),
            Check(name=VALUE, figure=self.value, limit=accept, told=f"relative error; {found}"),
            Check(name=INSIDE, figure=self.outside, limit=_LEFT, told="share of their time outside"),
            Check(name=POSITIVE, figure=self.nonpositive, limit=_NONPOSITIVE, told="share of their time with f <= 0"),
        )

    def why(self, terminal: str) -> str | None:
        """What the error comes from, as far as one solution tells: its terminal values or its box."""
        if self.by_end > _MOST and terminal == "interpolated":
            return "by the terminal values, which the class does not hold: take smaller cells, or terminal='penalty'"
        if self.by_end > _MOST:
            return "by the terminal values: take terminal='interpolated'"
        if self.outside > _MOST * _LEFT or (self.by_faces > _MOST and self.outside > _BRIEF):
            return "by the box, which many paths leave: take a larger one"
        return None


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # where f <= 0, and far outside
def witness(
    solution: Solution,
    accept: float,
    seed: int = 0,
    tell: Callable[[], None] = lambda: None,
    *,
    over_time: bool = False,
) -> Witness:
    """Follow the policy of a learned solution; with more paths and steps, if its error may be less than accepted.

    tell : called at every step; what it raises ends the work.  over_time : whether the largest over time is looked for.
    Raises ConvergenceError if hardly a start is inside the box, with f > 0, or paths explode.
    """
    problem = solution.problem
    needed = substeps_of(problem, _COARSE, steered=True) or 1
    fewest = max(_STEPS, 4 * _COARSE * needed)  # long steps are stable in the drift
    ends = _ends(solution)
    for starts, times in _ROUNDS:
        walk = _walked(solution, starts, times * fewest, ends, seed, tell)
        found = walk.told()
        if found.policy <= accept or found.chance < _OPEN or problem.dim > _FEW:
            break
    return replace(found, largest=_largest(walk, seed, tell)) if over_time else found


def _ends(solution: Solution) -> FloatArray:
    """Times at which steps end: where coefficients jump, and there those of the cells in time, within which R jumps."""
    problem, space = solution.problem, solution.space
    jumps = around_breaks(problem, problem.initial_law.sample(_PROBES, np.random.default_rng(0)))
    if not jumps.size or not isinstance(space, Space):
        return np.empty(0)
    return np.unique(np.concatenate([jumps, space.time.grid]))


def _walked(
    solution: Solution, starts: int, steps: int, ends: FloatArray, seed: int, tell: Callable[[], None]
) -> "_Walk":
    """With shorter steps where a policy, as steep as it is, makes paths explode."""
    problem = solution.problem
    for finer in (1, _FINER):
        rng = np.random.default_rng([seed, 4])
        x = inside(problem, problem.initial_law.sample(starts, rng))
        walk = _Walk(solution, x, _INNER, ends, rng)
        try:
            walk.follow(0.0, finer * steps, tell)
            return walk
        except ConvergenceError as cause:
            failure = cause
    raise failure


def _largest(walk: "_Walk", seed: int, tell: Callable[[], None]) -> tuple[float, float]:
    """The errors of value and policy, the largest over time; of the end alone where no later paths can be followed."""
    T, first = walk.problem.horizon, walk.found
    off, size = [first.square, walk.at_end()], [first.scale]
    wrong, effort = [first.wrong / T], [walk.energy / T]
    for k, (t, x) in enumerate(walk.later):
        steps = max(_SHORT, 2 * round(0.5 * walk.steps * (1.0 - t / T)))
        try:
            branch = _Walk(walk.solution, x, _BRANCHES, walk.ends, np.random.default_rng([seed, 5, k]))
            branch.follow(t, steps, tell)
        except ConvergenceError:
            continue
        off.append(branch.found.square)
        size.append(branch.found.scale)
        wrong.append(min(branch.found.wrong, first.wrong) / (T - t))  # a part of the whole, which more paths tell
        effort.append(branch.energy / (T - t))
    return math.sqrt(max(off) / max(size)), math.sqrt(max(wrong) / max(*effort, _NOTHING / T))


@final
@dataclass(frozen=True, eq=False)
class _Found:
    """What the two chains have found.

    off : e = v* - w of each start, and noise, its variance by chance.  square, size : the mean squares of e, with a
    standard error, and of v*.  certain, chance : E int |pi - pi*|^2 dt and its standard error.
    """

    w: FloatArray
    off: FloatArray
    noise: FloatArray
    square: float
    size: float
    certain: float
    chance: float
    total: float

    @property
    def wrong(self) -> float:
        """E int |pi - pi*|^2 dt and its standard error."""
        return self.certain + self.chance

    @property
    def scale(self) -> float:
        """The mean square of v*, without what is chance in it, or of w."""
        own = float((self.w**2).mean())
        return max(own, float(((self.w + self.off) ** 2 - self.noise).mean()), _NOTHING)


@final
class _Walk:
    """Two chains with the same noise, (2, n): 0 with long steps, 1 with short ones."""

    def __init__(
        self, solution: Solution, x: FloatArray, inner: int, ends: FloatArray, rng: np.random.Generator
    ) -> None:
        self.ends = ends
        self.solution, self.problem, self.starts, self.rng = solution, solution.problem, len(x), rng
        self.inner, self.begun = inner, 0.0
        self.later: list[tuple[float, FloatArray]] = []
        problem = self.problem
        x = np.repeat(x, inner, axis=0)
        self.x = np.stack([x, x])
        self.missed = np.zeros(len(x))  # D / alpha
        self.energy = self.outside = self.nonpositive = self.unseen = 0.0
        space, gauge = solution.space, solution.gauge
        if not isinstance(space, Space) or not isinstance(gauge, Gauge):
            raise ConvergenceError(f"what {solution.method} returns is no function that was learned")
        self.space, self.gauge = space, gauge
        self.smooth = space.smoothness >= 1 and problem.dim <= _FEW
        self.pinned = np.zeros(space.n_dofs, dtype=np.bool_)
        self.pinned[solution.stats["pinned_dofs"]] = True

    def _begin(self, t: float) -> None:
        x = self.x[0]
        self.begun = t
        self.start = self._value(t, x)  # w / alpha
        if np.isfinite(self.start).sum() <= self.inner:
            raise ConvergenceError(
                "no more than one of the starts is in the box of what was learned, with f > 0; take a larger box"
            )
        self.Z = np.tile(-self.start, (2, 1))
        self.known = np.tile(np.isfinite(self.start), (2, 1))  # whether R has been known so far
        self.swap = np.zeros((2, len(x)))  # what is added where a step ends beyond: its weight, for its R
        if self.smooth:
            self.Z[self.known] = 0.0
        else:
            self.known[:] = False

    def follow(self, start: float, steps: int, tell: Callable[[], None]) -> None:
        """To T."""
        problem, T, self.steps = self.problem, self.problem.horizon, steps
        self._begin(start)
        parts = pairwise([start, *self.ends[(self.ends > start) & (self.ends < T)].tolist(), T])
        times = [
            self._uneven(low, high, 2 * math.ceil(0.5 * steps * (high - low) / (T - start))) for low, high in parts
        ]
        for step in shared_steps(np.append(np.concatenate(times), T), self.x.shape[1], problem.dim, self.rng):
            tell()
            self._step(step)
        for row in range(2):
            x, earned = self.x[row], problem.y(self.x[row]) / problem.temperature
            D = earned - self._value(T, x)
            self._lose(row, self.known[row] & ~np.isfinite(D))
            self.missed = np.where(self.known[row], D, 0.0)
            self.Z[row] += np.where(self.known[row], D, earned)

    def _uneven(self, low: float, high: float, steps: int) -> FloatArray:
        """The times at which so many steps begin, the first of them at `low`."""
        places = np.arange(steps) + np.append(0.0, self.rng.uniform(-_UNEVEN, _UNEVEN, steps)[:-1])
        return np.asarray(low + (high - low) * places / steps)

    def _step(self, step: Shared) -> None:
        """A step of one chain with what it adds to Z."""
        problem, row, h, alpha = self.problem, step.row, step.h, self.problem.temperature
        x = self.x[row]
        w, R, gradient = self._looked_at(step.t, x)
        here = np.isfinite(w)
        if not here.all():
            gradient[~here] = self._beyond(step.t, x[~here])
        pi = problem.policy_from_gradient(step.t, x, gradient)
        ahead = euler_step(problem, step.t, h, x, pi, step.noise)
        weight = problem.r(step.t, x) * h / alpha - ahead.log_ratio
        if row:
            self.energy += h * float(ahead.effort.mean())
            self._note(step.t, x, here, h / (problem.horizon - self.begun))
            if self._is_later(step.t):
                self.later.append((step.t, x[:: self.inner * max(1, self.starts // _AGAIN)]))
        self._lose(row, self.known[row] & ~here)
        known, gone = self.known[row], R * h / alpha
        self.Z[row] += np.where(known, gone, weight)
        self.swap[row] = np.where(known, weight - gone - w, 0.0)
        new = in_range(ahead.x, step.t + h)
        self.x[row] = moved(problem, step.t, h, x, new, self.rng)

    def _is_later(self, t: float) -> bool:
        """Whether this is the first step after one of the times from which paths branch again."""
        k = len(self.later)
        return not self.begun and k < len(_LATER) and t >= _LATER[k] * self.problem.horizon

    def _lose(self, row: int, lost: BoolArray) -> None:
        """Paths whose last step ended where R is not known: that step, and all that come, by weights."""
        self.Z[row][lost] += self.swap[row][lost]
        self.known[row] &= ~lost

    def _note(self, t: float, x: FloatArray, here: BoolArray, share: float) -> None:
        """Where the paths are; nothing is to be told of those that are all where f > 0 and everything is determined."""
        if here.all() and not self.pinned.any():
            return
        space = self.space
        cells = space.locate(t, x)[0]
        there = cells >= 0
        self.outside += share * float((~there).mean())
        self.nonpositive += share * float((there & ~here).mean())
        if self.pinned.any() and there.any():
            self.unseen += share * float(self.pinned[space.cell_dofs(cells[there])].any(axis=1).sum()) / len(x)

    def _value(self, t: float, x: FloatArray) -> FloatArray:
        """w / alpha."""
        return self.solution.value(t, x, outside="nan", nonpositive="nan") / self.problem.temperature

    def _looked_at(self, t: float, x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """w / alpha, R and grad w; nan outside and where f <= 0. Of a class that is not C1 the gradient alone."""
        solution, problem = self.solution, self.problem
        if not self.smooth:
            gradient = solution.gradient(t, x, outside="nan", nonpositive="nan")
            known = np.where(np.isfinite(gradient).all(axis=1), 0.0, np.nan)
            return known, known, gradient
        f, change, slope, bend = self.space.derivatives(
            solution.coefficients, t, x, ("value", "time", "gradient", "hessian"), outside="nan"
        )
        f[f <= 0] = np.nan
        Lambda = np.broadcast_to(problem.Lambda(t, x), bend.shape)
        moved = change + (problem.b(t, x) * slope).sum(axis=1) + 0.5 * (Lambda * bend).sum(axis=(1, 2))
        R = problem.temperature * moved / f + problem.r(t, x) - self.gauge.running
        return self.gauge.value(t, x, f) / problem.temperature, R, self.gauge.gradient(t, x, f, slope)

    def _beyond(self, t: float, x: FloatArray) -> FloatArray:
        """The gradient at the nearest points of the box; no steering where f <= 0, or that is beyond a mesh."""
        inside = np.clip(x, *self.space.spatial.box.bounds)
        return np.nan_to_num(self.solution.gradient(t, inside, outside="nan", nonpositive="nan"))

    @cached_property
    def found(self) -> _Found:
        """Out of the two chains."""
        some = np.isfinite(self.start).reshape(self.starts, self.inner)[:, 0]
        Z, w = self.Z.reshape(2, self.starts, self.inner)[:, some], self.start.reshape(self.starts, -1)[some, 0]
        count, squares = len(w), Z.var(axis=2, ddof=1)
        left = 2.0 * squares[1] - squares[0]
        e, noise = _logarithms(Z)  # (v* - w) / alpha
        off = e**2 - noise
        return _Found(
            w=w,
            off=e,
            noise=noise,
            square=max(float(off.mean()), 0.0) + float(off.std(ddof=1)) / math.sqrt(count),
            size=max(float(((w + e) ** 2).mean()), _NOTHING),
            certain=max(float(left.mean()), 0.0),
            chance=float(left.std(ddof=1)) / math.sqrt(count),
            total=max(float(squares[1].mean()), 1e-300),
        )

    def at_end(self) -> float:
        """The mean square of v* - w at T, in temperatures, where w is known."""
        x = self.x[1]
        D = self.problem.y(x) / self.problem.temperature - self._value(self.problem.horizon, x)
        D = D[np.isfinite(D)]
        return float((D**2).mean()) if D.size else 0.0

    def told(self) -> Witness:
        """What they tell."""
        alpha, found = self.problem.temperature, self.found
        count = len(found.w)
        some = np.isfinite(self.start).reshape(self.starts, self.inner)[:, 0]
        Z = self.Z[1].reshape(self.starts, self.inner)[some]
        ends = self.missed.reshape(self.starts, self.inner)[some]
        apart = (Z - Z.mean(axis=1, keepdims=True)) ** 2
        lost = ~self.known[1].reshape(self.starts, self.inner)[some]
        return Witness(
            policy=math.sqrt(found.wrong / max(self.energy, _NOTHING)),
            chance=(found.chance + max(found.total - found.certain, 0.0)) / max(found.wrong, 1e-300),
            value=math.sqrt(found.square / found.size),
            start=alpha * float((found.w + found.off).mean()),
            margin=_ERRORS * alpha * math.sqrt(float(found.noise.mean()) / count),
            learned=alpha * float(found.w.mean()),
            outside=self.outside,
            nonpositive=self.nonpositive,
            unseen=self.unseen,
            by_end=float(ends.var(axis=1, ddof=1).mean()) / found.total,
            by_faces=float((apart * lost).sum() / max(apart.sum(), 1e-300)) if self.smooth else 0.0,
            paths=count * self.inner,
            steps=self.steps,
        )


def _logarithms(Z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """log E e^Z of each start, extrapolated from the two chains (2, starts, paths), and the variance it has by chance.

    The bias of a logarithm of a mean, to first order, is taken out.
    """
    shift = Z.max(axis=2, keepdims=True)
    weights = np.exp(Z - shift)
    means = weights.mean(axis=2)
    relative = weights / means[..., None] - 1.0
    logs = shift[..., 0] + np.log(means) + relative.var(axis=2, ddof=1) / (2 * Z.shape[2])
    both = 2.0 * relative[1] - relative[0]
    return np.asarray(2.0 * logs[1] - logs[0]), np.asarray(both.var(axis=1, ddof=1) / Z.shape[2])
