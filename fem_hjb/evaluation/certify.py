r"""Bounds of the optimal value from the paths of any policy, in any dimension, without a reference.

Along paths of dX = (b + pi) dt + Lambda^{1/2} dB from x0 let W = (y(X_T) + int r dt) / alpha - log(dP^pi / dP). Then

    alpha E W = J(pi) <= v*(x0) = alpha log E e^W,

whatever pi is; the gap between the two is J(pi*) - J(pi) = alpha KL(P^pi || P*), and W is constant if pi is optimal. Of
the N-step Euler chain both are true without an error in time, with the likelihood ratio of its own Gaussian increments
(`paths.likelihood`). Of the diffusion they are extrapolated from chains of N and N/2 steps with the same noise, weak
order 1, and what the N-step chain is off by is told.

An approximate value w gives another pair of bounds, from paths of its own (`residual_score`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.evaluation.certificate import Bounds, Certificate, Interval, intervals, separate, without_value
from fem_hjb.evaluation.controlled_law import checked_policy, policy_of
from fem_hjb.evaluation.residual_score import Range, Residual, checked_range, checked_value
from fem_hjb.evaluation.walk_sums import Chunks, Plan, Walk, checked_plan, starts_of, summed
from fem_hjb.evaluation.weighted_walk import Likelihood, log_weights, times_of
from fem_hjb.evaluation.weights import Found, found_in
from fem_hjb.paths.sources import child_seed
from fem_hjb.paths.steering import Policy, steer
from fem_hjb.problems.box import Box
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.problem import ControlProblem, ValueFunction, require_problem
from fem_hjb.problems.stages import Rewards, checked_rewards
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.solutions.staged import Continued, StagedSolution
from fem_hjb.support.checks import FloatArray, Rng, as_seed, at_most, finite_number
from fem_hjb.support.errors import ConvergenceError, MeasureError, ProblemError
from fem_hjb.support.progress import OutOfTimeError, Progress, Watch, checked_progress, checked_seconds, part_of, until

_MOST_STEPS = 10**6
_PROBES = 8
_REPEATED = 1e-5  # relative change from call to call that counts as rounding, single precision included
_ESS, _ESS_OF_START = 100.0, 8.0  # effective sample sizes below which intervals of v* are not to be trusted
_SHARE = 0.5  # of the paths, from a fixed start, that are effective samples enough, however few they are
_SECOND_ORDER = 10.0  # times the square of the bias that was taken out of a logarithm: about what is left of it
_NOTHING = 1e-4  # of a temperature: a half-width below which nobody asks what steps put into it
_BIAS = 2.0  # half-widths of an interval that steps may put into it: what extrapolating leaves is a fraction of that


def certify(
    problem: ControlProblem,
    policy: Policy | Solution | ProductSolution | StagedSolution | ValueFunction | None,
    *,
    x0: ArrayLike | None = None,
    n: int,
    steps: int,
    rng: Rng,
    value: ValueFunction | None = None,
    bounds: Box | ArrayLike | None = None,
    rewards: Rewards | None = None,
    level: float = 0.95,
    starts: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> Certificate:
    r"""Intervals for J(pi), for v* and for the gap between them, from n paths that follow the policy.

    From a fixed start x0 the bounds are those of v_0(x0). Without one, X_0 ~ p_0 and they are those of E v_0(X_0): the
    logarithm of an expectation over mixed starts would be another number, so paths are drawn in groups, n / starts from
    each of `starts` draws of p_0, a logarithm is taken for each group, its bias of first order taken out, and averaged.

    Intervals are Student's; of log E e^W by the delta method, which needs weights e^W with a variance. Whether they
    have one is judged by the index of their tail (below 1/2) and the effective sample size (100 or half of the paths at
    least, and 8 from each start). If not, the status says so, and the lower bound is all there is; but weights that all
    exceed their mean by less than a tenth have an interval that is wider by what the heaviest of them does.

    Parameters
    ----------
    policy : pi, a callable (t, x (n, d)) -> (n, d), t a number; a solution of any solver or of `fit`, for its policy,
        continued outside its box by that of the nearest point; anything with value and gradient, such as problem.exact;
        None: no control.
    x0 : (d,), a start; None: the initial law (which may be a point).
    n, steps : how many paths, and N, even, the number of steps: N and N/2 are followed with the same noise. Where the
        policy or a coefficient jumps in time, as seen at 4 N times, 257 at most, steps begin: a few more, then.
    rng : an int or a SeedSequence (the same bits on every call, whatever the executor) or a Generator.
    value : an approximate value w with value(t, x) and gradient(t, x), for bounds of v* from paths under its policy,
        n more of them (those of the policy itself if that is the same object, policy=w). If it has residual(t, x), R,
        or generator(t, x), d_t w + <b, grad w> + 1/2 Tr(Lambda Hess w), these are used; else derivatives are
        differences. J(pi) and the gap remain those of the policy.
    bounds : of R and D = y - w_T, ((least R, largest R), (least D, largest D)), with which Hoeffding's lemma bounds v*
        from above; or a box on which they are looked for (at random points and along the paths: found, not proved).
        None: `upper` is that of the estimate.
    rewards : on the way, t_i -> y_i as in `solve_stages`, at times at which steps begin then; not
        together with value=. None: those of a staged solution that is given as policy=, else there are none.
    level : of each interval, and of [lower, upper].
    starts : of X_0 ~ p_0, 16 at least; None: so many that 32 paths begin at each (n^0.4 if that is more, n / 64
        if that is less, and 16 at least). Where v_0 is skewed over few starts, intervals hold less often than they say.
    executor : any concurrent.futures.Executor; None: here. Chunks of paths are made and summed up where they are
        computed, in a memory that does not depend on n.
    progress, max_seconds : called with the fraction done; when time is over the certificate is that of the chunks that
        are done, which its status says.

    At reflecting faces each step is mirrored, for which the likelihood ratios stay exact. At absorbing ones a path is
    stopped as in `sample_paths`, by the chance of a Brownian bridge, at the end of its last step; r and steering count
    for the whole of that step.

    Raises
    ------
    ProblemError : the policy, or the value, is no such thing, fails, returns a wrong shape, numbers that are not
        finite, or others when it is called again.
    MeasureError : bounds, n, steps, rng, level or starts make no sense, or the executor fails.
    DomainError : x0 is not of the problem's dimension, or not in its domain; or paths leave the box of a solution that
        is given as value=.
    ConvergenceError : paths explode, or max_seconds are over before there is anything.
    """
    if isinstance(problem, ExitProblem):
        raise ProblemError(
            "certify needs a ControlProblem, got ExitProblem; stationary.certify_exit follows paths until an exit"
        )
    require_problem(problem, "certify")
    watch = until(checked_progress(progress), checked_seconds(max_seconds))
    plan, start = checked_plan(problem, x0, n, checked_steps(steps), starts)
    if rewards is None and isinstance(policy, StagedSolution):
        rewards = policy.rewards
    on_the_way = {} if rewards is None else checked_rewards(problem, rewards, "certify")
    if on_the_way and value is not None:
        raise MeasureError("value= knows of no rewards on the way; leave it out, or rewards=")
    seeds = np.random.SeedSequence(as_seed(rng))
    work = Work(problem, start, plan, Pace(steps=steps), checked_level(level), executor, seeds)
    if value is None and bounds is not None:
        raise MeasureError("bounds= are those of the residual of value=, which is missing; give both or neither")
    try:
        if value is None:
            run = work.likelihood(policy, on_the_way, watch)
            found = work.certificate(run, work.optimum(run, None), run)
        else:
            found = work.from_value(policy, value, bounds, watch, max_seconds)
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"certify({problem.name!r}): {watch.reached:.0%} done within max_seconds={max_seconds:g}; give it more"
            " time, or smaller n and steps"
        ) from None
    watch.finished()
    return found


class Pace(NamedTuple):
    """How many steps there are until the horizon; or the length of a step, for paths until an exit."""

    steps: int = 0
    step: float | None = None


class Run(NamedTuple):
    """Paths of one policy: what was found, and the intervals; chain None where a residual was added up."""

    found: Found
    diffusion: Bounds
    chain: Bounds | None
    bias: Bounds


class _Optimum(NamedTuple):
    """What a run says of v*: bounds, an upper bound, how that was found, and what is not as it should be."""

    bounds: Bounds
    upper: float
    how: str
    notes: list[str]
    degenerate: bool


@final
@dataclass(frozen=True, eq=False)
class Work:
    """What all paths have in common, those until an exit (`certify_exit`) included."""

    problem: ControlProblem
    x0: FloatArray | None
    plan: Plan
    pace: Pace
    level: float
    executor: Executor | None
    seed: np.random.SeedSequence

    def likelihood(self, policy: Any, rewards: Rewards, tell: Progress) -> Run:
        """Along paths of the policy, exact for the chain."""
        pi = followed(self.problem, policy)
        probe(self.problem, pi, self.x0, self.pace.steps)
        return self._timed(Likelihood(self.problem, pi, rewards), 0, tell)

    def from_value(self, policy: Any, value: Any, bounds: Any, watch: Watch, seconds: float | None) -> Certificate:
        """With v* from paths of an approximate value's own policy."""
        score = checked_value(self.problem, value)
        probe(self.problem, score.policy, self.x0, self.pace.steps)
        limits = checked_range(score, bounds, np.random.default_rng(child_seed(self.seed, 1)))
        own = None if policy is value else partial(self.likelihood, policy, {})
        return self.two_sided(own, partial(self._timed, score, 2), limits, (watch, seconds))

    def two_sided(
        self,
        own: Callable[[Progress], Run] | None,
        rated: Callable[[Progress], Run],
        limits: Range | None,
        time: tuple[Watch, float | None],
        more: Callable[[], Sequence[str]] = tuple,
    ) -> Certificate:
        """Of paths of the policy (None: it is that of the value), and v* from paths that follow a value.

        time : what watches it, and how many seconds there are.
        """
        watch, seconds = time
        if own is None:
            run = rated(watch)._replace(chain=None)
            return self.certificate(run, self.optimum(run, limits), run, more())
        half = None if seconds is None else seconds / 2
        mine = own(until(part_of(watch, 0.0, 0.5), half))
        run = rated(part_of(watch, 0.5, 1.0))
        best = self.optimum(run, limits)
        both = separate(mine.diffusion, best.bounds)
        return self.certificate(mine, best._replace(bounds=both), run, more())

    def _timed(self, score: Likelihood | Residual, k: int, tell: Progress) -> Run:
        """The paths of run k until the horizon."""
        rewards = list(score.rewards) if isinstance(score, Likelihood) else []
        times = times_of(self.problem, score.policy, self.pace.steps, rewards)
        return self.run(score, partial(log_weights, times=times), k, tell)

    def run(self, score: Likelihood | Residual, walk: Walk, k: int, tell: Progress) -> Run:
        """The paths of run k, each run with random numbers of its own."""
        chunks = Chunks(score, self.x0, self.plan, walk, child_seed(self.seed, k))
        found = found_in(summed(chunks, self.executor, tell), self.plan.starts > 1)
        return Run(found, *intervals(found, self.problem.temperature, self.level))

    def optimum(self, run: Run, limits: Range | None) -> _Optimum:
        """What the run says of v*."""
        bounds, notes = run.diffusion, degenerate(run.found, self.plan, run.diffusion, self.problem)
        spoilt = bool(notes)
        if spoilt:
            bounds = without_value(bounds)
        if limits is None:
            return _Optimum(bounds, bounds.optimal.high, "the estimate", notes, spoilt)
        whole = limits.with_paths(run.found.seen)
        if whole is None:
            low, high, least, most = run.found.seen.tolist()
            notes = [
                *notes,
                f"along paths R is {low:.4g} to {high:.4g} and D {least:.4g} to {most:.4g}, beyond the bounds that were"
                " given: they bound nothing",
            ]
            return _Optimum(bounds, bounds.optimal.high, "the estimate", notes, spoilt)
        length = whole.length(self.problem)
        upper = run.diffusion.reward.high + length**2 / (8.0 * self.problem.temperature)
        return _Optimum(bounds, upper, f"Hoeffding's lemma, bounds of the residual {whole.how}", notes, spoilt)

    def certificate(self, own: Run, best: _Optimum, run: Run, more: Sequence[str] = ()) -> Certificate:
        """Of the paths `own` of the policy, and v* from `run`; and more that is not as it should be."""
        notes = unfinished(own.found, self.plan) + unfinished(run.found, self.plan) + best.notes
        used = [(part.diffusion.reward, part.bias.reward) for part in (own, run)]
        used += [] if best.degenerate else [(run.diffusion.optimal, run.bias.optimal)]
        notes += biased(used, self.pace, self.problem.temperature)
        notes += more
        chain, bounds = own.chain, best.bounds
        if best.degenerate:
            bounds = without_value(bounds)
            chain = None if chain is None else without_value(chain)
        return Certificate(
            name=self.problem.name,
            lower=bounds.reward.low,
            value=bounds.optimal.estimate,
            upper=best.upper,
            upper_by=best.how,
            gap=bounds.gap,
            diffusion=bounds,
            chain=chain,
            bias=Bounds(reward=own.bias.reward, optimal=run.bias.optimal, gap=own.bias.gap),
            ess=run.found.ess,
            tail=run.found.tail,
            paths=own.found.paths,
            starts=1 if self.plan.starts == 1 else own.found.count,
            steps=self.pace.steps,
            step=self.pace.step,
            level=self.level,
            status="; ".join(dict.fromkeys(notes)) or "ok",
        )


# What was given


def checked_steps(steps: Any) -> int:
    """An even number of steps."""
    count = at_most(steps, _MOST_STEPS, "steps", MeasureError)
    if count % 2:
        raise MeasureError(f"steps must be even, as half of them are taken, too, got {count}; take {count + 1}")
    return count


def checked_level(level: Any) -> float:
    """A probability between 0 and 1."""
    number = finite_number(level, "level", MeasureError)
    if not 0.0 < number < 1.0:
        raise MeasureError(f"level must lie between 0 and 1, such as 0.95, got {number:g}")
    return number


def uncontrolled(t: float, x: FloatArray) -> FloatArray:
    """No control."""
    return np.zeros_like(x)


def followed(problem: ControlProblem, policy: Any) -> Policy:
    """What was given as policy=, as a callable."""
    if policy is None:
        return uncontrolled
    if isinstance(policy, StagedSolution):
        return Continued(policy)
    if isinstance(policy, Solution | ProductSolution) or callable(policy) or not isinstance(policy, ValueFunction):
        return checked_policy(problem, policy, "certify")
    return policy_of(problem, policy)


def probe(problem: ControlProblem, policy: Policy, x0: FloatArray | None, steps: int, arguments: str = "t, x") -> None:
    """ProblemError if the policy is not as it must be at a few starts, or says something else when asked again.

    arguments : what the user's policy takes, for the message.
    """
    rng = np.random.default_rng(0)
    x = starts_of(problem, _PROBES, rng) if x0 is None else np.repeat(x0[None], _PROBES, axis=0)
    x[_PROBES // 2 :] = x[0]
    for t in (0.0, problem.horizon * (1.0 - 1.0 / steps)):
        first = steer(policy, t, x).copy()
        again = steer(policy, t, x[::-1])[::-1]
        if np.abs(again - first).max() > _REPEATED * np.abs(first).max():
            raise ProblemError(
                f"policy({arguments}) returned other numbers at t={t:g} when it was called a second time with its"
                f" points in another order; it must be a function of {arguments.replace(', ', ' and ')} alone, so fix"
                " its random numbers, and let a network"
                " be in evaluation mode"
            )


# What is not as it should be


def unfinished(found: Found, plan: Plan) -> list[str]:
    """Whether there are fewer paths than were asked for."""
    asked = plan.starts * plan.inner
    return [f"max_seconds were over after {found.paths} of {asked} paths"] if found.paths < asked else []


def degenerate(found: Found, plan: Plan, bounds: Bounds, problem: ControlProblem) -> list[str]:
    """Why the weights do not tell v*."""
    told = f"effective sample size {found.ess:.3g} of {found.paths}, tail index {found.tail:.2f}"
    if plan.starts > 1:
        each = found.ess / found.count
        first_order = 0.5 * (1.0 / each - 1.0 / plan.inner)
        margin = bounds.optimal.half_width / problem.temperature
        spoilt = each < _ESS_OF_START or _SECOND_ORDER * first_order**2 > margin / 4
    else:
        spoilt = found.ess < min(_ESS, _SHARE * found.paths) or (found.heavy and not found.alike)
    if not spoilt:
        return []
    return [f"the weights have degenerated ({told}), only the lower bound holds: take more paths or a better policy"]


def biased(estimates: list[tuple[Interval, Interval]], pace: Pace, alpha: float) -> list[str]:
    """Whether the steps are long for what the paths resolve; of each its interval and what steps put in."""
    off = max(abs(bias.estimate) / max(found.half_width, _NOTHING * alpha) for found, bias in estimates)
    if off <= _BIAS:
        return []
    what, more = f"{pace.steps} steps are few", "more"
    if pace.step is not None:
        what, more = f"steps of {pace.step:g} are long", "shorter"
    return [f"{what}: they put {off:.2g} half-widths of an interval into it; take {more} steps"]
