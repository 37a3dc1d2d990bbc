r"""`solve_stages`: rewards on the way, at times between 0 and T, by one `solve` for each stage between them.

With rewards y_i at times 0 < t_1 < ... < t_m < T what is maximised is

    E[ sum_i y_i(X_{t_i}) + y(X_T) + int_0^T r_t(X_t) dt ] - alpha KL(P^pi || P).

Between these times v solves the equation of `ControlProblem`; f = exp(v / alpha) is multiplied by exp(y_i / alpha)
when time goes back over t_i (docs/theory.md, Rewards on the way): v just before t_i is y_i + v just after it, which is
the terminal reward of the stage that ends there.

What a stage is wrong by at its beginning is an error of the terminal reward of the one before. To first order it goes
on to earlier times as its mean under the optimally controlled law, so that in L2 of that law errors of v add up and do
not grow. Those of policies are gradients, of which that is not true: so the whole chain is solved to a looser tolerance
first, and if the two are further apart than both sums say, the sum is multiplied by that.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from fem_hjb.paths.simulate import sample_at
from fem_hjb.paths.steering import Policy
from fem_hjb.problems.kernels import KernelDensity
from fem_hjb.problems.laws import Law
from fem_hjb.problems.problem import ControlProblem, TerminalReward, require_box, require_problem
from fem_hjb.problems.stages import Rewards, checked_rewards
from fem_hjb.reference.pathwise import along_paths, walk
from fem_hjb.reference.solve import solve
from fem_hjb.reference.tolerance import LARGEST_RTOL, LEAST_RTOL, checked_rtol, judged
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.estimate import PARTS, ErrorEstimate, ToleranceWarning
from fem_hjb.solutions.norms import l2_norm, policy_squares
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.solutions.stage_problems import marginal_of, stage_problem
from fem_hjb.solutions.staged import Continued, StagedSolution, bounds_of
from fem_hjb.support.checks import FloatArray, Rng, as_seed, positive_integer
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError
from fem_hjb.support.progress import OutOfTimeError, Progress, Watch, checked_progress, checked_seconds, part_of, until

_DRAWS = 2048  # of each law
_WITHIN = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 0.99, 0.999])  # of a stage: where errors are looked at
_SCOUTS = 4  # times that boxes follow paths under control
_LOOSER, _LOOSE = 10.0, 1e-2  # times the tolerance, and at least: that of the chain that is solved first
_LOST = 2.0  # times the square of the tolerance: of paths that may leave boxes, as in `solve`
_INNER = 0.005  # of draws under control on each side may lie beyond all of those without
_NARROW = 0.02  # of a spread: the width of the kernels that stand for a law
_FINEST = 1.1e-5  # of the distance of points: that width at least

Stage = Solution | ProductSolution


def solve_stages(
    problem: ControlProblem,
    rewards: Mapping[float, TerminalReward],
    *,
    rtol: float = 1e-4,
    max_dofs: int | None = None,
    rng: Rng = 0,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> StagedSolution:
    """Value and policy of a problem with rewards at times on the way, on boxes, to a tolerance.

    Parameters
    ----------
    problem : with its rewards at T and on the way as always; no face of its domain absorbs.
    rewards : t_i -> y_i, times between 0 and T and callables x (..., d) -> (...), in the units of the temperature. That
        X_{t_i} is to lie in a set is a reward of -c alpha outside of it, c from 10 to 20.
    rtol : relative error of value and policy over the whole horizon, from 1e-10 to 0.1; each stage is solved to its
        share.
    max_dofs, rng, progress : as in `solve`.
    max_seconds : when they are over, what was found first, to a looser tolerance, is returned, as its status says; a
        ConvergenceError if there is nothing yet.

    Returns
    -------
    A `StagedSolution`. Its error estimate is the sum of those of the stages, times what such a sum was seen to be short
    of on the looser chain; where y_i jumps or has kinks it is that up to shortly before t_i, which the check "layer at
    the end" of that stage tells. Its checks are those of `solve` for each stage, and whole paths from 0 to T under its
    policy, with all callables as they were given. `certify(problem, solution)` takes its rewards, too.

    Raises
    ------
    ProblemError : rewards are no such mapping, a time is not between 0 and T, or a reward is not finite; what a stage
        is not, as in `solve`.
    DomainError : faces that absorb, or more than three coordinates that hang together.
    ConvergenceError, InfiniteValueError, EllipticityError : as in `solve`.
    """
    require_problem(problem, "solve_stages")
    require_box(problem, "solve_stages")
    given = checked_rewards(problem, rewards, "solve_stages")
    if not given:
        raise ProblemError("solve_stages: rewards are empty; without rewards on the way there is `solve`")
    if problem.domain is not None and problem.domain.absorbing:
        raise DomainError(
            f"solve_stages: the process of {problem.name!r} is stopped at absorbing faces, where a reward on the way"
            " would not fit the exit reward; take a domain that reflects, or `solve` for each stage"
        )
    rtol, seed = checked_rtol(rtol), as_seed(rng)
    if max_dofs is not None:
        max_dofs = positive_integer(max_dofs, "max_dofs", SpaceError)
    seconds = checked_seconds(max_seconds)
    watch = until(checked_progress(progress), seconds)
    started = time.perf_counter()
    chain = _Chain(problem, given, max_dofs, seed)
    try:
        found = _solved(chain, rtol, watch)
    except OutOfTimeError:
        if seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"solve_stages({problem.name!r}): no solution within max_seconds={seconds:g}; give it more time, or a"
            " larger rtol"
        ) from None
    watch.finished()
    if found.error_estimate is None:
        raise ConvergenceError("a solution without an estimate")
    spent = {"seconds": time.perf_counter() - started}
    return judged(found, found.error_estimate, rtol, f"solve_stages({problem.name!r})", spent)


@final
@dataclass(frozen=True, eq=False)
class _Draws:
    """Times (k,), of which each `per`-th begins a stage, and draws (k, n, d) of a law at them."""

    times: FloatArray
    x: FloatArray

    def starts(self) -> FloatArray:
        """Where stages begin, but for the first: (m, n, d)."""
        return self.x[len(_WITHIN) :: len(_WITHIN)]


def _law_of(x: FloatArray) -> Law:
    """The law of draws (n, d), which are a little spread."""
    width = max(_NARROW * float(x.std(axis=0).min()), _FINEST * float(np.ptp(x, axis=0).max()))
    return KernelDensity(x, width)


@final
class _Chain:
    """The stages of a problem."""

    def __init__(self, problem: ControlProblem, rewards: Rewards, max_dofs: int | None, seed: int) -> None:
        self.problem, self.rewards, self.max_dofs, self.seed = problem, rewards, max_dofs, seed
        self.ends = np.array([0.0, *rewards, problem.horizon])
        self.count = len(rewards) + 1
        self.marginal = marginal_of(problem)

    def draws(self, policy: Policy | None) -> _Draws:
        """Of the law without a policy, or under one."""
        times = np.concatenate([a + _WITHIN * (b - a) for a, b in zip(self.ends, self.ends[1:], strict=False)])
        times[:: len(_WITHIN)] = self.ends[:-1]
        paths = sample_at(self.problem, times, n=_DRAWS, rng=self.seed + (policy is not None), policy=policy)
        return _Draws(times, np.moveaxis(paths.x[:, np.searchsorted(paths.t, times)], 1, 0))

    def laws(self, free: _Draws, steered: _Draws | None = None) -> list[Law | None]:
        """Where each stage begins: the law without control, and with that under control where this is elsewhere.

        None: that without control, as it is known.
        """
        found: list[Law | None] = [None]
        for k, x in enumerate(free.starts()):
            own = x if steered is None else steered.starts()[k]
            if (np.quantile(own, _INNER, axis=0) >= x.min(axis=0)).all() and (
                np.quantile(own, 1.0 - _INNER, axis=0) <= x.max(axis=0)
            ).all():
                found.append(_law_of(x) if self.marginal is None else None)
            else:
                found.append(_law_of(np.concatenate([x, own])))
        return found

    def solved(self, laws: Sequence[Law | None], rtol: float, tell: Progress, verify: bool) -> StagedSolution:
        """All stages, the last one first."""
        stages: list[Stage] = []
        for k in reversed(range(self.count)):
            done = self.count - 1 - k
            told = part_of(tell, done / self.count, (done + 1) / self.count)
            own = stage_problem(self.problem, self.rewards, k, laws[k], stages[0] if stages else None)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ToleranceWarning)  # what the whole reaches is told of the whole
                options: dict[str, Any] = {"max_dofs": self.max_dofs, "rng": self.seed, "verify": verify}
                stages.insert(0, solve(own, rtol=rtol, progress=told, **options))
        late = [stage.status for stage in stages if stage.status.startswith("max_seconds")]
        return StagedSolution(
            problem=self.problem, rewards=self.rewards, stages=tuple(stages), status=late[0] if late else "ok"
        )


def _solved(chain: _Chain, rtol: float, watch: Watch) -> StagedSolution:
    """The chain, after looser ones that tell where paths under control go and what stages make of each other."""
    free = chain.draws(None)
    laws = chain.laws(free)
    loose = min(max(_LOOSER * rtol, _LOOSE), LARGEST_RTOL)
    first: StagedSolution | None = None
    steered = free
    share = max(rtol / chain.count, LEAST_RTOL)
    try:
        for k in range(_SCOUTS):
            first = chain.solved(laws, loose, part_of(watch, 0.1 * k, 0.1 * (k + 1)), verify=False)
            steered = chain.draws(_steering(first))
            laws = chain.laws(free, steered)
            if _lost(first, steered) <= _losable(chain, loose):
                break
        draws = free, steered
        found = chain.solved(laws, share, part_of(watch, 0.1 * _SCOUTS, 0.9), verify=True)
    except OutOfTimeError:
        if first is None:
            raise
        over = f"max_seconds were over: the first solution, which was asked for {loose:g} in each stage"
        return _with_checks(replace(first, status=over), _told(first, (free, steered)), chain.seed)
    if first is None:
        raise ConvergenceError("a chain without one that is looser")
    sums, loose_sums = _told(found, draws), _told(first, draws)
    known = loose_sums.value + sums.value, loose_sums.policy + sums.policy  # what two chains may be apart
    short = [max(seen / max(told, 1e-300), 1.0) for seen, told in zip(_apart(first, found, draws), known, strict=True)]
    largest = max(sums.value, sums.policy, 1e-300)
    value, policy = short[0] * sums.value, short[1] * sums.policy
    scale = max(value, policy) / largest
    parts = {name: scale * getattr(sums, name) for name in PARTS}
    estimate = ErrorEstimate(value=value, policy=policy, **parts)
    lost = max(_lost(found, each) for each in draws)
    told = f"{lost:.2%} of {_DRAWS} paths, with or without control, leave the box of a stage"
    kept = Check(name="paths in the boxes", figure=lost, limit=_losable(chain, share), told=told)
    return _with_checks(replace(found, stats={"short": max(short)}, checks=(kept,)), estimate, chain.seed)


def _with_checks(found: StagedSolution, estimate: ErrorEstimate, seed: int) -> StagedSolution:
    """With the checks of the stages, and those of whole paths, and figures."""
    checks = [
        replace(check, name=f"stage {k + 1}: {check.name}")
        for k, stage in enumerate(found.stages)
        for check in stage.checks
    ]
    starts = found.times[:-1]
    jumps = sorted(t + start for start, stage in zip(starts, found.stages, strict=True) for t in _jumps(stage))
    walked = walk(found.problem, found, jumps, seed, found.rewards)
    whole: Sequence[Check] = ()
    if walked is not None:
        whole = along_paths(found.problem, found, estimate, jumps, seed, walked)
    stats = {
        **found.stats,
        "dofs": sum(stage.stats["dofs"] for stage in found.stages),
        "solves": sum(stage.stats["solves"] for stage in found.stages),
        "layers": tuple(float(stage.stats["layer"]) for stage in found.stages),
    }
    return replace(found, checks=(*checks, *found.checks, *whole), error_estimate=estimate, stats=stats)


def _jumps(stage: Stage) -> Sequence[float]:
    parts = stage.parts if isinstance(stage, ProductSolution) else [((), stage)]
    return sorted({t for _, part in parts for t in part.stats["jumps"]})


def _steering(found: StagedSolution) -> Policy:
    """Its policy, none where it is not known."""
    own = Continued(found)
    return lambda t, x: np.nan_to_num(own(t, x, nonpositive="nan"))


def _losable(chain: _Chain, rtol: float) -> float:
    """The fraction of paths that may leave boxes."""
    return _LOST * chain.problem.dim * rtol**2


def _lost(found: StagedSolution, draws: _Draws) -> float:
    """The largest fraction of draws outside of the box of a stage, at any time."""
    lost = 0.0
    for t, x in zip(draws.times.tolist(), draws.x, strict=True):
        lower, upper = bounds_of(found.stages[found.stage_at(t)])
        lost = max(lost, float(((x < lower) | (x > upper)).any(axis=1).mean()))
    return lost


def _told(found: StagedSolution, laws: Sequence[_Draws]) -> ErrorEstimate:
    """The sums of what the stages say, over value and policy of the whole, under the law under which it is more."""
    estimates = [stage.error_estimate for stage in found.stages if stage.error_estimate is not None]
    value = policy = 0.0
    for draws in laws:
        sizes = np.array([_sizes(found.value, found.policy, found, k, draws) for k in range(len(estimates))])
        whole = np.maximum(sizes.max(axis=0), 1e-300)
        value = max(value, sum(e.value * s for e, s in zip(estimates, sizes[:, 0].tolist(), strict=True)) / whole[0])
        policy = max(policy, sum(e.policy * s for e, s in zip(estimates, sizes[:, 1].tolist(), strict=True)) / whole[1])
    largest = max(max(e.value, e.policy) for e in estimates)
    scale = max(value, policy) / largest if largest > 0 else 0.0
    parts = {name: scale * max(float(getattr(e, name)) for e in estimates) for name in PARTS}
    return ErrorEstimate(value=float(value), policy=float(policy), **parts)


def _apart(first: StagedSolution, found: StagedSolution, laws: Sequence[_Draws]) -> tuple[float, float]:
    """How far two chains are apart, relative, under the law under which it is more."""

    def gap(name: str) -> Callable[..., FloatArray]:
        return lambda t, x, **how: getattr(first, name)(t, x, **how) - getattr(found, name)(t, x, **how)

    value = policy = 0.0
    layers = [max(a.stats["layer"], b.stats["layer"]) for a, b in zip(first.stages, found.stages, strict=True)]
    for draws in laws:
        count = range(len(found.stages))
        own = np.array([_sizes(found.value, found.policy, found, k, draws) for k in count]).max(axis=0)
        off = np.array([_sizes(gap("value"), gap("policy"), found, k, draws, layers[k]) for k in count]).max(axis=0)
        value, policy = max(value, off[0] / max(own[0], 1e-300)), max(policy, off[1] / max(own[1], 1e-300))
    return float(value), float(policy)


def _sizes(
    value: Callable[..., FloatArray],
    policy: Callable[..., FloatArray],
    of: StagedSolution,
    k: int,
    draws: _Draws,
    layer: float = 0.0,
) -> tuple[float, float]:
    """The largest norms of a value and a policy in stage k, up to a layer at its end; draws beyond boxes left out."""
    how, sizes = {"outside": "nan", "nonpositive": "nan"}, [0.0, 0.0]
    for i in range(k * len(_WITHIN), (k + 1) * len(_WITHIN)):
        t, x = float(draws.times[i]), draws.x[i]
        if of.times[k + 1] - t < layer:
            break
        v, pi = value(t, x, **how), policy(t, x, **how)
        kept = np.isfinite(v) & np.isfinite(pi).all(axis=-1)
        if not kept.any():
            continue
        weights = np.full(int(kept.sum()), 1.0 / int(kept.sum()))
        sizes[0] = max(sizes[0], l2_norm(weights, v[kept] ** 2))
        sizes[1] = max(sizes[1], l2_norm(weights, policy_squares(of.problem, t, x[kept], pi[kept])))
    return sizes[0], sizes[1]
