r"""Certificates hold v* at their level, for good and bad policies in up to twenty dimensions; terrible ones are told.

Linear-quadratic problems, whose optimal value v* is known, and three policies in each: the optimal one, half of it, and
one that is pushed out of the way by a constant vector, so that weights e^W degenerate. Each certificate has fresh
paths; over `runs` of them is counted how often the intervals of `certify` at 95 per cent hold v*, among those whose
weights have not degenerated; how often v* lies in [lower, upper], and above the lower bound, which must hold whatever
the weights do; and how many weights were said to have degenerated. X_0 is a point, or, at the head of the table,
random: then v* is the mean of v_0 over the initial law, by its moments.

The controls: the interval of the Euler chain, taken for one of the diffusion, does not hold v* at its level where
intervals are narrow against the error of a step; and the paths of the terrible policy, had nobody looked at its
weights, would give intervals that miss it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.evaluation.certificate import intervals
from fem_hjb.evaluation.certify import certify
from fem_hjb.evaluation.walk_sums import Chunks, checked_plan, summed
from fem_hjb.evaluation.weighted_walk import Likelihood, log_weights
from fem_hjb.evaluation.weights import found_in
from fem_hjb.experiments.trial import Claim, Trial, conclude
from fem_hjb.plotting.pictures import STYLES
from fem_hjb.problems import zoo
from fem_hjb.problems.closed_form import LinearQuadratic
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, steps_of, unheard


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """dims : with x0 a point; averages : with X_0 random.  runs : certificates per row.

    paths : of each, with x0 a point; average_paths : with X_0 random, where a group of them begins at each start.

    steps : of the paths, for a dimension of at most two, and beyond.  start : each coordinate of x0.
    push : each coordinate of what the terrible policy adds.  seed : of the first certificate; the others follow.
    """

    dims: tuple[int, ...] = (1, 2, 10, 20)
    averages: tuple[int, ...] = (1, 2)
    runs: int = 400
    paths: int = 1024
    average_paths: int = 4096
    steps: tuple[int, int] = (64, 128)
    start: float = 0.4
    push: float = 3.0
    seed: int = 0


QUICK = Config(dims=(1, 10), averages=(1,), runs=40, paths=512, average_paths=1024, steps=(8, 16))

GOOD, BAD, TERRIBLE = "optimal", "half", "pushed"
_LEVEL, _WITHIN, _RUNS = 0.95, 0.03, 400  # with so many runs the share that holds is as near to the level as this
_COLUMNS = (
    *("start", "d", "policy", "degenerate", "holds", "bounded", "above lower", "chain holds", "unjudged holds"),
    *("half width", "gap", "ess"),
)


def run(config: Config, tell: Progress) -> Trial:
    """One row per start, dimension and policy."""
    started = time.perf_counter()
    policies = (GOOD, BAD, TERRIBLE)
    step = steps_of(tell, len(policies) * (len(config.averages) + len(config.dims)) * config.runs)
    rows = [
        _row(config, start, d, policy, step)
        for start, dims in (("random", config.averages), ("point", config.dims))
        for d in dims
        for policy in policies
    ]
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _policy(problem: ControlProblem, name: str, push: float) -> Callable[[Any, FloatArray], FloatArray]:
    """The optimal policy, which is affine in x and so known from d + 1 points, or one that is made of it."""
    exact, corners = cast(LinearQuadratic, problem.exact), np.vstack([np.zeros(problem.dim), np.eye(problem.dim)])
    factor, shift = {GOOD: (1.0, 0.0), BAD: (0.5, 0.0), TERRIBLE: (1.0, push)}[name]

    @cache
    def values_at(t: float) -> FloatArray:
        """At the corners: all runs ask at the same times."""
        return np.asarray(exact.policy(t, corners))

    def policy(t: Any, x: FloatArray) -> FloatArray:
        values = values_at(float(t))
        return np.asarray(factor * (values[0] + x @ (values[1:] - values[0])) + shift)

    return policy


def _row(config: Config, start: str, d: int, name: str, step: Callable[[], None]) -> tuple[Any, ...]:
    problem = zoo.get("lq", dim=d)
    x0 = None if start == "random" else np.full(d, config.start)
    truth = _average(problem) if x0 is None else float(cast(LinearQuadratic, problem.exact).value(0.0, x0))
    steps, policy = config.steps[d > 2], _policy(problem, name, config.push)
    n = config.paths if start == "point" else config.average_paths
    how: dict[str, Any] = {"x0": x0, "n": n, "steps": steps, "level": _LEVEL}
    found = []
    for k in range(config.runs):
        found.append(certify(problem, policy, rng=config.seed + k, **how))
        step()
    judged = [one for one in found if np.isfinite(one.value)]
    holds = [truth in one.diffusion.optimal for one in judged]
    chain = [one.chain is not None and truth in one.chain.optimal for one in judged]
    again = min(config.runs, _RUNS // 4) if name == TERRIBLE else 0
    unjudged = [_unjudged(problem, policy, x0, (config.seed + k, n), steps, truth) for k in range(again)]
    return (
        *(start, d, name, 1.0 - len(judged) / config.runs, _share(holds)),
        *(_share([one.lower <= truth <= one.upper for one in found]), _share([one.lower <= truth for one in found])),
        *(_share(chain), _share(unjudged)),
        *(float(np.median([one.diffusion.optimal.half_width for one in judged])) if judged else np.inf,),
        *(float(np.median([one.gap.estimate for one in judged])) if judged else np.inf,),
        float(np.median([one.ess for one in found])),
    )


def _share(held: list[bool]) -> float:
    """Of those that hold; the level where there is none to ask."""
    return float(np.mean(held)) if held else _LEVEL


def _average(problem: ControlProblem) -> float:
    """E v_0(X_0) of a quadratic v_0, from mean and covariance of X_0: exact."""
    exact, law = cast(LinearQuadratic, problem.exact), problem.initial_law
    root = np.linalg.cholesky(law.covariance) * np.sqrt(problem.dim)
    points = np.concatenate([law.expectation + root.T, law.expectation - root.T])
    return float(exact.value(0.0, points).mean())


def _unjudged(
    problem: ControlProblem,
    policy: Callable[[Any, FloatArray], FloatArray],
    x0: FloatArray | None,
    seed_and_paths: tuple[int, int],
    steps: int,
    truth: float,
) -> bool:
    """Whether an interval holds v* that does not ask whether the weights have degenerated."""
    seed, n = seed_and_paths
    plan, start = checked_plan(problem, x0, n, steps, None)
    chunks = Chunks(
        Likelihood(problem, policy),
        start,
        plan,
        partial(log_weights, times=np.linspace(0.0, problem.horizon, steps + 1)),
        np.random.SeedSequence((seed, 1)),
    )
    sums = summed(chunks, None, unheard)
    return truth in intervals(found_in(sums, plan.starts > 1), problem.temperature, _LEVEL)[0].optimal


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    within = _WITHIN * np.sqrt(_RUNS / config.runs)
    for row in rows:
        values = dict(zip(_COLUMNS, row, strict=True))
        of = f"{values['policy']}, d = {values['d']}, {values['start']} start"
        yield Claim(text=f"{of}: above the lower bound", value=values["above lower"], low=0.975 - within, high=1.0)
        if values["policy"] == TERRIBLE:
            yield Claim(text=f"{of}: said to be degenerate", value=values["degenerate"], low=0.95, high=1.0)
            if values["start"] == "point":
                text = f"{of}: intervals that are not judged"
                yield Claim(text=text, value=values["unjudged holds"], low=0.92, high=1.0, control=True)
            continue
        band = {"low": _LEVEL - within, "high": min(_LEVEL + within, 1.0)}
        yield Claim(text=f"{of}: v* in its interval", value=values["holds"], **band)
        yield Claim(text=f"{of}: v* between the bounds", value=values["bounded"], low=band["low"], high=1.0)
        if values["policy"] == GOOD and values["start"] == "point" and values["d"] >= 10:
            yield Claim(text=f"{of}: the chain's interval", value=values["chain holds"], **band, control=True)


def figure(trial: Trial) -> Figure:
    """How often v* was held, and how many effective samples there were, against the dimension."""
    made = Figure(figsize=(8.0, 3.0), layout="constrained")
    holds, ess = made.subplots(1, 2)
    holds.axhspan(_LEVEL - _WITHIN, _LEVEL + _WITHIN, color="0.9")
    for style, policy in zip(STYLES, (GOOD, BAD, TERRIBLE), strict=False):
        dims = trial.column("d", policy=policy, start="point")
        if policy != TERRIBLE:
            holds.semilogx(dims, trial.column("holds", policy=policy, start="point"), **style, label=policy)
        ess.loglog(dims, trial.column("ess", policy=policy, start="point"), **style, label=policy)
    holds.set_ylim(0.85, 1.0)
    for panel, label in ((holds, "v* in its interval of 95 per cent"), (ess, "effective sample size")):
        panel.set_xlabel("dimension")
        panel.set_ylabel(label)
    ess.legend()
    return made
