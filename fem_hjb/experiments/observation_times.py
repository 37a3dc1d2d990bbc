r"""The error of observing paths at K times: 1/K by left-point sums, 1/K^2 by trapezoids, none at random times.

int_0^T E[...] dt is a sum over the times at which paths are observed. With f_bar the solution under the law, and
f_bar_K that under the law at K times (n = infinity), the observation error is |f_bar_K - f_bar|_E. For the estimator
"generator", whose integrand is the residual times a test function, it depends on where the samples are and what they
weigh:

    left-point       t_k = k T/K for k < K, weights T/K                               order 1
    trapezoidal      the same and T, half the weight at both ends                     order 2 (d_t f continuous)
    random           one time for each path in each [t_k, t_{k+1}), uniform; weights T/(K n)
                     f_bar_K = f_bar for every K: the sums are unbiased, and their error falls as n^{-1/2}

The sums over increments of "increment" and "corrected" are left-point sums by their tests g_k: order 1, in the limit of
many paths with one and the same error, here by quadrature over the law of pairs (X_k, X_{k+1}). If each successor is
drawn independently of its predecessor, as by shuffling the pairs, more times are no help.

The observation error scales with what the class lacks in time, for at f* the residual vanishes wherever one looks. With
n paths the error is about the larger one of the observation error and the statistical one.

Brownian motion reflected in an interval, splines of degree 3 in space and 2 in time; errors relative to |f*|_E.
Source: arXiv 2509.02528 (trajectories observed at discrete times).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from matplotlib.figure import Figure
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss

from fem_hjb.experiments.trial import Claim, Trial, conclude, fitted_slope
from fem_hjb.learning.measures import Measure, empirical_measure, law_measure
from fem_hjb.learning.population import yardstick
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.paths.simulate import Paths, sample_paths
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems import zoo
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, spawn_generators
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """observations : K under the law, n = infinity.  observations_of_paths : K of n paths.  n : for these.

    paths : n with the first of observations_of_paths.
    """

    cells: int = 6
    time_cells: int = 2
    observations: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    observations_of_paths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    n: int = 2000
    paths: tuple[int, ...] = (500, 2000, 8000, 32000, 128000)
    seeds: int = 16
    seed: int = 1


QUICK = Config(observations=(16, 32, 64), observations_of_paths=(8, 32), n=600, paths=(500, 2000), seeds=3)

_COLUMNS = ("rule", "estimator", "paths", "K", "error", "error 10%", "error 90%")
_DEGREE = 20  # of polynomials in space that quadrature integrates exactly
_RULES, _PATH_RULES = 6, 3  # fits to the law, and to paths, for each number of observations
_SUCCESSORS = 20  # quadrature points for the law of X_{k+1}


def run(config: Config, tell: Progress) -> Trial:
    """One row per rule, estimator, number of paths (0: the law itself) and K; root mean squares over the seeds."""
    started = time.perf_counter()
    problem = zoo.get("reflected", dim=1)
    space = Space(problem, cells=config.cells, time_cells=config.time_cells, element="B3", time_smooth=True)
    law = law_measure(problem, space, degree=_DEGREE)
    measuring = yardstick(problem, law, space)
    limit = _solved(problem, law, space, "generator")

    sizes = [(config.n, K) for K in config.observations_of_paths]
    sizes = list(dict.fromkeys([*sizes, *((n, config.observations_of_paths[0]) for n in config.paths)]))
    step = steps_of(tell, _RULES * len(config.observations) + _PATH_RULES * len(sizes) * config.seeds)

    def error(measure: Measure, estimator: str) -> float:
        found = measuring.norm(_solved(problem, measure, space, estimator) - limit) / measuring.size
        step()
        return found

    rows: list[tuple[Any, ...]] = []
    for K in config.observations:
        left = law_measure(problem, space, times=np.linspace(0.0, problem.horizon, K + 1), degree=_DEGREE)
        pairs, shuffled = _pairs(problem, left, K, independent=False), _pairs(problem, left, K, independent=True)
        for rule, estimator, measure in (
            ("left-point", "generator", left),
            ("trapezoidal", "generator", with_end(problem, left, K, share=0.5)),
            ("ends in full", "generator", with_end(problem, left, K, share=1.0)),
            ("left-point", "increment", pairs),
            ("left-point", "corrected", pairs),
            ("shuffled pairs", "corrected", shuffled),
        ):
            found = error(measure, estimator)
            rows.append((rule, estimator, 0, K, found, found, found))
    for n, K in sizes:
        errors: dict[tuple[str, str], list[float]] = {}
        for generator in spawn_generators(config.seed, config.seeds):
            paths = sample_paths(problem, n=n, steps=K, rng=generator)
            for rule, measure in (
                ("left-point", empirical_measure(problem, paths)),
                ("trapezoidal", _trapezoidal(paths)),
                ("random", _at_random_times(problem, n, K, generator)),
            ):
                errors.setdefault((rule, "generator"), []).append(error(measure, "generator"))
        for key, found_errors in errors.items():
            rms, band = np.sqrt(np.mean(np.square(found_errors))), np.quantile(found_errors, (0.1, 0.9))
            rows.append((*key, n, K, float(rms), *band.tolist()))
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _solved(problem: ControlProblem, measure: Measure, space: Space, estimator: str) -> FloatArray:
    """Coefficients (N,)."""
    return np.ravel(solve_system(assemble(problem, measure, space, estimator=estimator), smoothing=0.0).coefficients)


def with_end(problem: ControlProblem, left: Measure, K: int, share: float) -> Measure:
    """A left-point rule with points at T too; those at both ends weigh this share of the others. 0.5: trapezoids."""
    at_end = np.full(len(left.terminal_x), problem.horizon)
    score = None
    if left.score is not None and problem.marginal is not None:
        score = np.concatenate([left.score, problem.marginal(problem.horizon).score(left.terminal_x)])
    weights = np.where(left.t == 0.0, share, 1.0) * left.weights
    return replace(
        left,
        t=np.append(left.t, at_end),
        x=np.concatenate([left.x, left.terminal_x]),
        weights=np.append(weights, share * problem.horizon / K * left.terminal_weights),
        next_t=None,
        score=score,
    )


def _pairs(problem: ControlProblem, left: Measure, K: int, *, independent: bool) -> Measure:
    """The law of (X_k, X_{k+1}): what increments of infinitely many paths see. independent : of X_{k+1} by itself."""
    nodes, weights = leggauss(_SUCCESSORS) if independent else hermegauss(_SUCCESSORS)
    if independent:
        successors = np.broadcast_to(0.5 + 0.5 * nodes, (left.t.size, _SUCCESSORS))  # uniform on [0, 1]
    else:
        successors = left.x + np.sqrt(_variance(problem) * problem.horizon / K) * nodes
    return replace(
        left,
        kind="empirical",
        t=np.repeat(left.t, _SUCCESSORS),
        x=np.repeat(left.x, _SUCCESSORS, axis=0),
        weights=np.outer(left.weights, weights / weights.sum()).ravel(),
        next_t=np.repeat(left.t + problem.horizon / K, _SUCCESSORS),
        next_x=_folded(problem, successors.reshape(-1, 1)),
        score=None,
        paths=1,
    )


def _variance(problem: ControlProblem) -> float:
    """Of a Brownian path per unit of time."""
    return float(problem.Lambda(0.0, np.zeros((1, 1)))[0, 0, 0])


def _folded(problem: ControlProblem, x: FloatArray) -> FloatArray:
    """Free Brownian states as reflected ones."""
    return x if problem.box is None else problem.box.mirror(x)


def _trapezoidal(paths: Paths) -> Measure:
    """The measure of trajectories by trapezoids."""
    share = np.concatenate([[0.5], np.ones(paths.steps - 1), [0.5]]) / paths.steps
    uniform = np.full(paths.n, 1.0 / paths.n)
    return Measure(
        kind="empirical",
        t=np.tile(paths.t, paths.n),
        x=paths.x.reshape(-1, paths.dim),
        weights=np.outer(uniform, share * paths.t[-1]).ravel(),
        initial_x=paths.x[:, 0],
        initial_weights=uniform,
        terminal_x=paths.x[:, -1],
        terminal_weights=uniform,
        paths=paths.n,
    )


def _at_random_times(problem: ControlProblem, n: int, K: int, rng: np.random.Generator) -> Measure:
    """Reflected Brownian paths, exactly, at one uniform time for each path in each of K intervals."""
    horizon = problem.horizon
    t = (np.arange(K) + rng.random((n, K))) * horizon / K
    steps = np.diff(t, axis=1, prepend=0.0, append=horizon)
    moves = np.sqrt(_variance(problem) * steps) * rng.standard_normal((n, K + 1))
    free = np.cumsum(np.concatenate([problem.initial_law.sample(n, rng), moves], axis=1), axis=1)
    x = _folded(problem, free.reshape(-1, 1)).reshape(n, K + 2, 1)
    uniform = np.full(n, 1.0 / n)
    return Measure(
        kind="empirical",
        t=t.ravel(),
        x=x[:, 1:-1].reshape(-1, 1),
        weights=np.full(n * K, horizon / (n * K)),
        initial_x=x[:, 0],
        initial_weights=uniform,
        terminal_x=x[:, -1],
        terminal_weights=uniform,
        paths=n,
    )


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    found = {row[:4]: float(row[4]) for row in rows}
    for rule, estimator, order, control in (
        ("left-point", "generator", 1.0, False),
        ("left-point", "increment", 1.0, False),
        ("left-point", "corrected", 1.0, False),
        ("shuffled pairs", "corrected", 1.0, True),
        ("trapezoidal", "generator", 2.0, False),
        ("ends in full", "generator", 2.0, True),
    ):
        slope = fitted_slope(config.observations, [found[rule, estimator, 0, K] for K in config.observations])
        yield Claim(
            text=f"law, {estimator}, {rule}: exponent of the error in 1/K [{-slope.high:.3f}, {-slope.low:.3f}]",
            value=-slope.value,
            low=order - 0.15,
            high=order + 0.15,
            control=control,
        )
    K = config.observations_of_paths[0]
    for rule in ("random", "left-point"):
        slope = fitted_slope(config.paths, [found[rule, "generator", n, K] for n in config.paths])
        yield Claim(
            text=f"K = {K}, {rule} times: exponent of the error in n [{slope.low:.3f}, {slope.high:.3f}]",
            value=slope.value,
            low=-0.65,
            high=-0.35,
            control=rule == "left-point",
        )
    K = next(K for K in config.observations_of_paths if K in config.observations)
    of_law = found["left-point", "generator", 0, K]
    for rule in ("left-point", "random"):
        yield Claim(
            text=f"K = {K}, {rule} times: error of {config.n} paths relative to that of left-point sums under the law",
            value=found[rule, "generator", config.n, K] / of_law,
            low=0.9,
            high=1.2,
            control=rule == "random",
        )


def figure(trial: Trial) -> Figure:
    """Errors under the law against K; of paths against K; and at the fewest K against the number of paths."""
    config = trial.config
    made = Figure(figsize=(12.0, 3.6), layout="constrained")
    first, second, third = made.subplots(1, 3)
    for style, (rule, estimator) in zip(
        STYLES,
        (
            ("left-point", "generator"),
            ("trapezoidal", "generator"),
            ("left-point", "increment"),
            ("shuffled pairs", "corrected"),
        ),
        strict=False,
    ):
        K, error = (trial.column(name, rule=rule, estimator=estimator, paths=0) for name in ("K", "error"))
        first.loglog(K, error, **style, label=f"{rule}, {estimator}")
    K = np.array(config.observations, dtype=np.float64)
    for order, rule in ((1, "left-point"), (2, "trapezoidal")):
        start = trial.column("error", rule=rule, estimator="generator", paths=0, K=config.observations[0])[0]
        first.loglog(K, 0.5 * start * (K[0] / K) ** order, color="0.6", linewidth=1.0)
        first.annotate(f"$K^{{-{order}}}$", (K[-1], 0.5 * start * (K[0] / K[-1]) ** order), ha="right", va="top")
    first.set_title("under the law", fontsize="medium")
    for style, rule in zip(STYLES, ("left-point", "trapezoidal", "random"), strict=False):
        for panel, axis, where in (
            (second, "K", {"paths": config.n}),
            (third, "paths", {"K": config.observations_of_paths[0]}),
        ):
            columns = (axis, "error", "error 10%", "error 90%")
            x, error, low, high = (trial.column(name, rule=rule, estimator="generator", **where) for name in columns)
            kept = x > 0
            along = np.argsort(x[kept])
            x, error, low, high = (values[kept][along] for values in (x, error, low, high))
            panel.loglog(x, error, **style, label=rule)
            panel.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    n = np.array(config.paths, dtype=np.float64)
    start = trial.column("error", rule="random", estimator="generator", K=config.observations_of_paths[0])
    third.loglog(n, 0.5 * start.max() * (n[0] / n) ** 0.5, color="0.6", linewidth=1.0, label="$n^{-1/2}$")
    second.set_title(f"n = {config.n} paths", fontsize="medium")
    third.set_title(f"K = {config.observations_of_paths[0]}", fontsize="medium")
    for panel, label, used in (
        (first, "times $K$", config.observations),
        (second, "times $K$", config.observations_of_paths),
        (third, "paths $n$", config.paths),
    ):
        panel.set_xlabel(label)
        panel.set_ylabel(r"$|f - \bar f|_E\, /\, |f^*|_E$")
        ticks_at(panel.xaxis, used)
        panel.legend(fontsize="small")
    return made
