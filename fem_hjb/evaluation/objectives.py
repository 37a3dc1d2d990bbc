r"""What a control earns: its reward in continuous time and by an Euler scheme, against the best one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.evaluation.controlled_law import (
    Block,
    ControlledLaw,
    check_reference,
    checked_policy,
    controlled_law,
    groups_of,
    marginal_of,
    of_reference,
    respects,
    tell_of_layer,
)
from fem_hjb.evaluation.expectation import Estimate, Expectation, time_rule
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.paths.steering import Policy, steer
from fem_hjb.problems.laws import MarginalLaw, PointMass
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.solutions.norms import policy_squares
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.stepping.adaptive import rtol_in_range
from fem_hjb.support.checks import FloatArray, Rng, array_length, spawn_generators
from fem_hjb.support.errors import ConvergenceError, MeasureError
from fem_hjb.support.objects import Plain
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, part_of, until

_CHUNK = 4096  # paths simulated at a time
_PARTS = 0.4, 0.6, 1.0  # of progress: J of the policy, by the Euler scheme, without control; the start is quick
_LAW = 0.7  # the part of the law, or of the paths, in the progress of an average
_FINER = 4  # times the Euler steps, for continuous time by simulation


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Objectives(Plain):
    """Rewards J, to be maximised; the literature's costs are their negatives.

    exact : J(pi) of the process in continuous time;  euler : the same of its Euler scheme, `steps` steps, integrals as
    left sums;  uncontrolled : J(0), in continuous time;  optimal : E v_0(X_0) = J(pi*), None without a reference.
    """

    exact: Estimate
    euler: Estimate
    uncontrolled: Estimate
    optimal: Estimate | None
    steps: int


def objectives(
    problem: ControlProblem,
    policy: Policy | Solution | ProductSolution,
    reference: ValueFunction | None = None,
    *,
    steps: int,
    n: int = 16384,
    rng: Rng = 0,
    times: int = 64,
    rtol: float = 1e-4,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> Objectives:
    r"""What a control earns: J(pi) = E^pi[ y(X_T) + int_0^T r - (alpha/2) pi' Lambda^{-1} pi dt ], plus exit rewards.

    In continuous time from the law of the process where `control_error` would know it, and the policy is right up to T;
    else from n paths by steps of weak order 2, four to an Euler step, with a standard error (and a bias of the order of
    the square of a step). The Euler objective is simulated, n paths. Arguments as those of `control_error`; without a
    reference `optimal` is None.

    progress : called with the fraction of the work done, which never falls and ends at 1, after every time step.
    max_seconds : when they are over, the work stops at the next step in time or call of the policy; rewards that are
        not there yet are to be compared with others, so that there is no best so far to return.

    Raises
    ------
    ProblemError, MeasureError : as `control_error`, and its ToleranceWarning.
    ConvergenceError : the Euler scheme explodes with so few steps, rtol is out of range, or max_seconds are over.
    """
    watch = until(checked_progress(progress), checked_seconds(max_seconds))
    layered = tell_of_layer(policy, "objectives")
    policy = checked_policy(problem, policy, "objectives")
    if reference is not None:
        check_reference(reference)
    array_length(steps, "steps", MeasureError)
    array_length(n, "n", MeasureError, problem.dim)
    rtol_in_range(rtol, "rtol")
    seeds = spawn_generators(rng, 4)
    try:
        found = _all_of_them(problem, policy, reference, steps, n, seeds, times, rtol, watch, layered)
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"objectives({problem.name!r}): {watch.reached:.0%} done within max_seconds={max_seconds:g}; give it more"
            " time, a larger rtol, or fewer paths or times"
        ) from None
    watch.finished()
    return found


def _all_of_them(
    problem: ControlProblem,
    policy: Policy,
    reference: ValueFunction | None,
    steps: int,
    n: int,
    seeds: list[np.random.Generator],
    times: int,
    rtol: float,
    tell: Progress,
    layered: bool,
) -> Objectives:
    """`objectives`, where what `tell` raises stops the work and comes out.

    layered : the policy is wild shortly before T. No density under it is known there, and squares of it would magnify
        the negative values that densities have in their tails: its rewards are those of paths.
    """
    groups = groups_of(problem, reference)

    def nothing(t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.zeros_like(x)

    def exact(pi: Policy, k: int, told: Progress) -> Estimate:
        if layered and pi is policy:
            return _simulated(problem, pi, n, _FINER * steps, seeds[k], "weak2", told)
        return _reward(problem, pi, groups, reference, times, n, seeds[k], rtol, _FINER * steps, told)

    first, second, third = _PARTS
    return Objectives(
        exact=exact(policy, 0, part_of(tell, 0.0, first)),
        euler=_simulated(problem, policy, n, steps, seeds[1], "euler", part_of(tell, first, second)),
        uncontrolled=exact(nothing, 2, part_of(tell, second, third)),
        optimal=None if reference is None else _initial_mean(problem, reference, groups, n, seeds[3]),
        steps=steps,
    )


def _reward(
    problem: ControlProblem,
    policy: Policy,
    groups: list[Block],
    reference: ValueFunction | None,
    times: int,
    n: int,
    rng: np.random.Generator,
    rtol: float,
    steps: int,
    tell: Progress,
) -> Estimate:
    """J(pi) in continuous time."""
    separate = respects(problem, policy, groups)
    blocks = groups if separate else [tuple(range(problem.dim))]
    pays = problem.domain is not None and problem.domain.exit_reward is not None
    flow = None if pays else controlled_law(problem, policy, blocks, reference, rtol, part_of(tell, 0.0, _LAW))
    if flow is None:
        return _simulated(problem, policy, n, steps, rng, "weak2", tell)

    def gain(t: float, x: FloatArray) -> FloatArray:
        return problem.r(t, x) - problem.temperature / 2 * policy_squares(problem, t, x, steer(policy, t, x))

    nodes, weights = time_rule(problem.horizon, times)
    weights = problem.horizon * weights
    running = Expectation(problem, flow, gain, separate, n, rng)
    final = Expectation(problem, flow, lambda t, x: problem.y(x), True, n, rng)
    means, variances = running.along(nodes, part_of(tell, _LAW, 1.0))
    last, variance = final(problem.horizon)
    return Estimate(
        value=float(weights @ means) + last,
        standard_error=float(np.sqrt(weights**2 @ variances + variance)),
        how=f"{running.how}; {flow.how}",
    )


def _initial_mean(
    problem: ControlProblem, reference: ValueFunction, groups: list[Block], n: int, rng: np.random.Generator
) -> Estimate:
    """E v_0(X_0)."""
    law = problem.initial_law
    parts: list[tuple[Block, MarginalLaw]] = [(group, marginal_of(lambda t: law, group)) for group in groups]
    if len(groups) == 1 or isinstance(law, PointMass):
        parts = [(tuple(range(problem.dim)), lambda t: law)]
    if isinstance(law, PointMass):
        return Estimate(
            value=float(of_reference("value", reference.value, 0.0, law.expectation)),
            standard_error=0.0,
            how="the value at the start",
        )
    mean = Expectation(
        problem, ControlledLaw(parts, ""), lambda t, x: of_reference("value", reference.value, 0.0, x), True, n, rng
    )
    value, variance = mean(0.0)
    return Estimate(value=value, standard_error=float(np.sqrt(variance)), how=mean.how)


def _simulated(
    problem: ControlProblem,
    policy: Policy,
    n: int,
    steps: int,
    rng: np.random.Generator,
    scheme: str,
    tell: Progress,
) -> Estimate:
    """J(pi) from n simulated paths: left sums for "euler", which are part of the scheme, else the trapezoidal rule."""
    counts = [min(_CHUNK, n - start) for start in range(0, n, _CHUNK)]
    weights = np.full(steps + 1, problem.horizon / steps)
    weights[-1] = 0.0
    if scheme != "euler":
        weights[0] = weights[-1] = 0.5 * weights[0]
    rewards = []
    for k, (count, generator) in enumerate(zip(counts, spawn_generators(rng, len(counts)), strict=True)):
        told = part_of(tell, k / len(counts), (k + 1) / len(counts))
        paths = sample_paths(
            problem,
            n=count,
            steps=steps,
            rng=generator,
            scheme=scheme,
            policy=_watched(policy, problem.horizon, part_of(told, 0.0, _LAW)),
            substeps=1 if scheme == "euler" else None,
        )
        steered = _watched(policy, problem.horizon, part_of(told, _LAW, 1.0))
        rewards.append(_rewards_along(problem, steered, np.asarray(paths.t), np.asarray(paths.x), weights))
    values = np.concatenate(rewards)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
    return Estimate(
        value=float(values.mean()), standard_error=error, how=f"{n} paths, {steps} steps, scheme {scheme!r}"
    )


def _watched(policy: Policy, horizon: float, tell: Progress) -> Policy:
    """A policy each of whose calls, in the order of time, tells how far they are."""

    def told(t: float, x: FloatArray) -> ArrayLike:
        tell(t / horizon)
        return policy(t, x)

    return told


def _rewards_along(
    problem: ControlProblem, policy: Policy, times: FloatArray, x: FloatArray, weights: FloatArray
) -> FloatArray:
    """y (or the exit reward) plus the integral of r - (alpha/2) pi' Lambda^{-1} pi, for each path of x (n, K+1, d)."""
    domain = problem.domain
    stops = domain is not None and domain.absorbing
    total, alive = np.zeros(len(x)), np.ones(len(x), dtype=np.bool_)
    for k, (t, weight) in enumerate(zip(times.tolist(), weights, strict=True)):
        if domain is not None and stops:
            leaving = alive & domain.exited(x[:, k])
            total[leaving] += problem.exit_reward(t, x[leaving, k])
            alive &= ~leaving
        here = x[alive, k]
        if weight and len(here):
            effort = policy_squares(problem, t, here, steer(policy, t, here))
            total[alive] += weight * (problem.r(t, here) - problem.temperature / 2 * effort)
    total[alive] += problem.y(x[alive, -1])
    return total
