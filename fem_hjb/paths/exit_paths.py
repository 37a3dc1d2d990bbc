"""Trajectories of exit problems, each followed until it leaves the domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.paths.likelihood import euler_step
from fem_hjb.paths.simulate import in_range
from fem_hjb.paths.walls import moved
from fem_hjb.problems.box import BoolArray, Box
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.laws import Law, PointMass
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, checked_call
from fem_hjb.support.checks import (
    FloatArray,
    Rng,
    array_length,
    frozen_array,
    positive_number,
    require,
    spawn_generators,
)
from fem_hjb.support.errors import ConvergenceError, DomainError, FemHjbError, MeasureError, ProblemError
from fem_hjb.support.objects import Plain
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, until

SteadyPolicy = Callable[[FloatArray], ArrayLike]
"""pi, a callable x (n, d) -> (n, d)."""

MOST_STEPS = 1_000_000


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ExitPaths(Plain):
    """Where and when n paths left, and what they had added up; read-only arrays.

    start, exit : (n, d);  time : tau, (n,);  reward : int_0^tau r dt, (n,);  log_ratio : log(dP^pi / dP) of the path
    under the policy and without, (n,);  left : (n,), False for those still inside at max_time, whose other entries are
    those at that time.  step : the length of a step.

    With W = (g(X_tau) + reward) / alpha - log_ratio, alpha E W is the value of the policy, and alpha log E exp(W) that
    of the problem, whatever the policy (for the chain of steps, exactly).
    """

    start: FloatArray
    exit: FloatArray
    time: FloatArray
    reward: FloatArray
    log_ratio: FloatArray
    left: Any
    step: float

    def log_weights(self, problem: ExitProblem) -> FloatArray:
        """W, (n,); MeasureError if a path has not left."""
        require(problem, ExitProblem, "log_weights", ProblemError)
        if not self.left.all():
            raise MeasureError(
                f"{int((~self.left).sum())} of {len(self.left)} paths have not left, and what they earn is not known;"
                " give sample_exit a larger max_time"
            )
        return np.asarray((problem.g(self.exit) + self.reward) / problem.temperature - self.log_ratio)


def sample_exit(
    problem: ExitProblem,
    start: ArrayLike | Law,
    *,
    n: int,
    rng: Rng,
    step: float,
    policy: SteadyPolicy | None = None,
    max_time: float | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> ExitPaths:
    """n paths of dX = (b + pi)(X) dt + Lambda(X)^{1/2} dB from a start until they leave the domain of the problem.

    Steps are those of Euler and Maruyama. A step whose ends are both inside has left in between with the probability of
    a Brownian bridge (as in `sample_paths`), and a path that leaves in a step does so in its middle: weak order 1 in
    the step (E. Gobet, Stoch. Proc. Appl. 87 (2000) 167-197). At reflecting faces steps are mirrored, natural ones
    let paths pass. In a domain that is a mesh they are reflected and stopped at its facets, as in `sample_paths`.

    Parameters
    ----------
    start : a point (d,) inside, or a law.
    n, rng : how many paths, and the seed; as in `sample_paths`.
    step : the length of a step, in time.
    policy : pi, a callable x (n, d) -> (n, d), such as `ExitSolution.policy`; None means 0.
    max_time : paths still inside are given up then, and are False in the result's `left`. None: all are followed.
    progress, max_seconds : the fraction of paths that have left; when time is over, a ConvergenceError.

    Raises
    ------
    DomainError : the problem has no domain, or the start is not inside.
    MeasureError : n or rng make no sense.
    ProblemError : the policy is no callable, fails, or returns a wrong shape or numbers that are not finite.
    ConvergenceError : step or max_time is no positive number, paths explode, a million steps were not enough, or time
        is over.
    """
    require(problem, ExitProblem, "sample_exit", ProblemError)
    if problem.domain is None:
        raise DomainError(
            "sample_exit needs a problem with domain=Box(...) or MeshDomain(...), at whose boundary paths are stopped"
        )
    n, h = array_length(n, "n", MeasureError, problem.dim), positive_number(step, "step", ConvergenceError)
    if policy is not None and not callable(policy):
        hint = "; give its method .policy" if hasattr(policy, "policy") else ""
        raise ProblemError(f"policy must be a callable x (n, d) -> (n, d), got {type(policy).__name__}{hint}")
    end = np.inf if max_time is None else positive_number(max_time, "max_time", ConvergenceError)
    watch = until(checked_progress(progress), checked_seconds(max_seconds))
    (generator,) = spawn_generators(rng, 1)
    law = start if isinstance(start, Law) else PointMass(frozen_array(start, "start", (problem.dim,), DomainError))
    require_inside(problem, law)
    require_progress(problem, law, h, end)
    try:
        return _followed(problem, law, n, generator, h, policy, end, watch)
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"sample_exit: {watch.reached:.0%} of the paths have left within max_seconds={max_seconds:g}; give it more"
            " time, a longer step, or max_time="
        ) from None


def require_inside(problem: ExitProblem, law: Law) -> None:
    domain = problem.domain
    if law.dim != problem.dim:
        raise DomainError(f"start has dimension {law.dim}, the problem has dim={problem.dim}")
    if isinstance(law, PointMass) and domain is not None:
        (x,) = law.sample(1, np.random.default_rng(0))
        outside = not domain.contains(x) and not _passes(problem, x)
        if domain.exited(x) or outside:
            raise DomainError(f"start must lie inside the domain, got {x.tolist()} for {domain}")


def require_progress(problem: ExitProblem, law: Law, h: float, end: float) -> None:
    """A million steps have to lead somewhere: over max_time, or a hundredth of the width of the domain."""
    many = MOST_STEPS * h
    if end < np.inf:
        if many < end:
            raise ConvergenceError(
                f"step={h:g} is more than a million times shorter than max_time={end:g}; take a longer one"
            )
        return
    box = problem.domain
    x = law.sample(64, np.random.default_rng(0))
    x = x if box is None else box.inside(x)
    far = np.sqrt(np.abs(problem.Lambda(x)).max() * many) + np.abs(problem.b(x)).max() * many
    lower, upper = (np.zeros(1), np.ones(1)) if box is None else box.bounds
    widths = (upper - lower)[np.isfinite(upper - lower)]
    if far < 0.01 * widths.min(initial=np.inf if widths.size else 1.0):
        raise ConvergenceError(
            f"a million steps of step={h:g} lead no further than {far:.3g}, next to nothing in the domain; take longer"
            " ones"
        )


def _passes(problem: ExitProblem, x: FloatArray) -> Any:
    """Whether a point lies outside across natural faces only, where the process may go."""
    box = problem.domain
    if not isinstance(box, Box):
        return box is None
    lower, upper = box.bounds
    natural = box.where("natural")
    return (((x >= lower) | natural[0]) & ((x <= upper) | natural[1])).all()


class ExitStep(NamedTuple):
    """Where a step ends, (n, d); whether it has left, (n,); how much of it counts, (n,); log(dP^pi / dP), (n,)."""

    x: FloatArray
    out: BoolArray
    share: FloatArray
    log_ratio: FloatArray


def exit_step(
    control: ControlProblem,
    passed: float,
    h: float,
    x: FloatArray,
    pi: FloatArray,
    noise: FloatArray,
    rng: np.random.Generator,
) -> ExitStep:
    """One step of length h from x (n, d), inside, with the noise (n, d); it leaves in its middle.

    control : the exit problem as one in time (`ExitProblem.until`).  passed : the time before the step, for messages.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # explosions are found and told by in_range
        ahead = euler_step(control, 0.0, h, x, pi, noise)
        new = in_range(ahead.x, passed + h)
    new = moved(control, 0.0, h, x, new, rng)
    out = stopping_domain(control).exited(new)
    return ExitStep(new, out, np.where(out, 0.5, 1.0), ahead.log_ratio)


def stopping_domain(problem: ExitProblem | ControlProblem) -> Box | MeshDomain:
    """The domain of the problem, or a DomainError."""
    if problem.domain is None:
        raise DomainError("paths are stopped at the boundary of a domain")
    return problem.domain


def _followed(
    problem: ExitProblem,
    law: Law,
    n: int,
    rng: np.random.Generator,
    h: float,
    policy: SteadyPolicy | None,
    end: float,
    watch: Progress,
) -> ExitPaths:
    domain = stopping_domain(problem)
    x = law.sample(n, rng)
    start, exit_, time = x.copy(), x.copy(), np.zeros(n)
    reward, log_ratios = np.zeros(n), np.zeros(n)
    alive = np.flatnonzero(~domain.exited(x))
    x = domain.inside(x)[alive]
    control = problem.until(1.0, initial_law=law)  # whose steps are those of `paths.likelihood`
    passed = 0.0
    for _ in range(MOST_STEPS):
        if not alive.size or passed >= end:
            break
        watch(1.0 - alive.size / n)
        pi = np.zeros(x.shape)
        if policy is not None:
            pi = checked_call("policy(x)", policy, (x,), (problem.dim,), passes=FemHjbError)
        new, out, share, log_ratio = exit_step(
            control, passed, h, x, pi, np.sqrt(h) * rng.standard_normal(x.shape), rng
        )
        reward[alive] += problem.r(x) * h * share
        log_ratios[alive] += log_ratio
        time[alive] += h * share
        exit_[alive] = new
        passed += h
        alive, x = alive[~out], new[~out]
    else:
        raise ConvergenceError(
            f"{alive.size} of {n} paths have not left after {MOST_STEPS} steps of {h:g}; take longer steps, a policy"
            " that leads out, or max_time="
        )
    left = np.ones(n, dtype=np.bool_)
    left[alive] = False
    arrays = start, exit_, time, reward, log_ratios, left
    for array in arrays:
        array.setflags(write=False)
    return ExitPaths(start=start, exit=exit_, time=time, reward=reward, log_ratio=log_ratios, left=left, step=h)
