r"""Bounds of the optimal value of an exit problem from the paths of any policy, without a reference.

Along paths of dX = (b + pi) dt + Lambda^{1/2} dB, from a start until the exit tau, let
W = (g(X_tau) + int_0^tau r dt) / alpha - log(dP^pi / dP). As for problems with a horizon (`certify`),

    alpha E W = J(pi) <= v*(x0) = alpha log E e^W,

exactly for each chain of steps, and for the diffusion extrapolated from chains with steps of h and 2h.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.evaluation.certificate import Certificate
from fem_hjb.evaluation.certify import Pace, Run, Work, checked_level, probe
from fem_hjb.evaluation.exit_walk import Steady, SteadyValue, exit_weights, steady_score
from fem_hjb.evaluation.residual_score import Residual
from fem_hjb.evaluation.walk_sums import checked_plan
from fem_hjb.evaluation.weighted_walk import Likelihood
from fem_hjb.paths.exit_paths import SteadyPolicy, require_inside, require_progress, sample_exit
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.laws import Law, PointMass
from fem_hjb.solutions.steady import ExitSolution
from fem_hjb.support.checks import Rng, as_seed, frozen_array, positive_number, require
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, until

_HORIZON = 100.0  # steps: the scale of derivatives by differences, of which no time is long
_USUAL_STEPS = 256  # of a path: chunks are as large as for paths of so many steps
_LOOKED_AT, _FEWEST, _ENOUGH = 128, 10.0, 40  # paths, long steps until they leave on average, and at most


def certify_exit(
    problem: ExitProblem,
    policy: SteadyPolicy | ExitSolution | SteadyValue | None,
    start: ArrayLike | Law,
    *,
    n: int,
    step: float,
    rng: Rng,
    value: SteadyValue | None = None,
    level: float = 0.95,
    starts: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> Certificate:
    r"""Intervals for J(pi), for v* and for the gap between them, from n paths that follow the policy until they leave.

    Parameters
    ----------
    policy : pi, a callable x (n, d) -> (n, d); a solution of an exit problem, for its policy; None: no control.
    start : a point (d,) inside; or a law, for the expectations of J(pi), v* and the gap over draws of it, as in
        `certify`.
    n : how many paths.
    step : h. The steps of `sample_exit`, of lengths h and 2h with the same noise; all paths are followed until they
        have left. At absorbing faces, Brownian bridges say whether a step has left and come back.
    value : an approximate value w with value(x) and gradient(x), for v* from paths under its policy Lambda grad w /
        alpha: as in `certify`, n more of them if it is not the object that is given as policy=. Its gradient must be
        continuous, and be that of w. Not at reflecting faces; and as paths may take any time, no bounds of a residual
        bound v*.
    rng, level, starts, executor, progress : as in `certify`; so are intervals, and when weights have degenerated. With
        r > 0 that may be because v* is infinite.
    max_seconds : when they are over, the certificate is that of the chunks of paths that are done, which its status
        says. Chunks that take longest are cut off most often, so give it time enough if it is to be believed.

    `certificate.chain` is exact for steps of h; `certificate.bias` what these are off by. The extrapolation is of weak
    order 1, which supposes faces that are smooth at the length of a step: the status asks for shorter steps if the bias
    is more than two half-widths of an interval, or if paths leave within ten steps of 2h on average. A domain that is a
    mesh is what paths leave, its polygon included.

    Raises
    ------
    ProblemError : the policy, or the value, is no such thing, fails, returns a wrong shape, numbers that are not
        finite, or others when it is called again.
    DomainError : the problem has no domain, or the start is not inside.
    MeasureError : n, rng, level or starts make no sense, or the executor fails.
    ConvergenceError : step is no positive number, paths explode, some have not left after a million steps, or
        max_seconds are over before there is anything.
    """
    require(problem, ExitProblem, "certify_exit", ProblemError)
    if problem.domain is None:
        raise DomainError(
            "certify_exit needs a problem with domain=Box(...) or MeshDomain(...), at whose boundary paths are stopped"
        )
    same = value is not None and policy is value
    given = Steady(None) if same else _checked(problem, policy)
    h, watch = (
        positive_number(step, "step", ConvergenceError),
        until(checked_progress(progress), checked_seconds(max_seconds)),
    )
    law = start if isinstance(start, Law) else PointMass(frozen_array(start, "start", (problem.dim,), DomainError))
    require_inside(problem, law)
    require_progress(problem, law, h, np.inf)
    timed = problem.until(_HORIZON * h, initial_law=law)
    plan, x0 = checked_plan(timed, None, n, _USUAL_STEPS, starts)
    seeds = np.random.SeedSequence(as_seed(rng))
    work = Work(timed, x0, plan, Pace(step=h), checked_level(level), executor, seeds)
    score = None if value is None else steady_score(timed, value)
    pi = Steady(partial(score.policy, 0.0)) if score is not None and same else given

    def followed(score: Likelihood | Residual, k: int, tell: Progress) -> Run:
        probe(timed, score.policy, x0, 2, "x")
        return work.run(score, partial(exit_weights, step=h), k, tell)

    own = partial(followed, Likelihood(timed, pi), 0)
    try:
        if score is None:
            run = own(watch)
            found = work.certificate(run, work.optimum(run, None), run, _hasty(problem, pi, law, h))
        else:
            rated, mine = partial(followed, score, 2), None if same else own
            both = [pi] if same else [pi, Steady(partial(score.policy, 0.0))]
            found = work.two_sided(
                mine,
                rated,
                None,
                (watch, max_seconds),
                lambda: [note for one in both for note in _hasty(problem, one, law, h)],
            )
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"certify_exit({problem.name!r}): {watch.reached:.0%} done within max_seconds={max_seconds:g}; give it more"
            " time, a longer step, or smaller n"
        ) from None
    watch.finished()
    return found


def _checked(problem: ExitProblem, policy: Any) -> Steady:
    """What was given as policy=, as a policy, or a ProblemError."""
    if policy is not None and not callable(policy) and not isinstance(policy, ExitSolution):
        hint = "; give its method .policy" if hasattr(policy, "policy") else ""
        raise ProblemError(f"policy must be a callable x (n, d) -> (n, d), got {type(policy).__name__}{hint}")
    if isinstance(policy, ExitSolution) and policy.problem.dim != problem.dim:
        raise ProblemError(f"policy is of dimension {policy.problem.dim}, the problem has dim={problem.dim}")
    return Steady(policy)


def _hasty(problem: ExitProblem, policy: Steady, law: Law, h: float) -> list[str]:
    """Whether paths leave in so few steps that nothing can be extrapolated from them."""
    end = _ENOUGH * 2.0 * h
    paths = sample_exit(problem, law, n=_LOOKED_AT, rng=0, step=2.0 * h, policy=policy.at, max_time=end)
    mean = float(paths.time.mean()) / (2.0 * h)
    if mean >= _FEWEST:
        return []
    return [f"paths leave after {mean:.2g} steps of {2.0 * h:g} on average, too few to extrapolate; take shorter steps"]
