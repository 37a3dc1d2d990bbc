r"""Up to twenty dimensions the variational solution beats regression as long as the class nearly holds the solution.

Linear-quadratic problem with the steady Riccati matrix P as terminal cost, so that f* = exp(-x'Px/2) c(t) at all times.
The class: polynomials of degree 2 along each of d axes, times an envelope exp(-theta x'Px/2), times quadratics in time.
theta = 1 leaves only c(t) to be approximated; the smaller theta, the wronger the envelope and the larger

    a = |f_best - f*|, in the norm of int E[f^2] dt + E[f_T^2] under fresh samples of the law, relative to |f*|.

All estimators see the same paths. With f_hat over the seeds,

    spread = (E |f_hat - E f_hat|^2)^{1/2},   bias = |E f_hat - f*|,   advantage = |f_regression - f*| / |f_hat - f*|.

The noise of regression is that of its labels, whatever the class, and its bias is a. Where the noise vanishes at the
solution, as for "generator" and "residual" (arXiv 2509.02528), the spread falls with a, but the bias is that of Galerkin's
method, c a with c > 1: they win while a is less than about spread of regression / (c^2 - 1)^{1/2}, and lose beyond; more
paths help regression only, more features both. The control: the same equation with a drift that is wrong.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.linalg import solve_continuous_are

from fem_hjb import zoo
from fem_hjb._checks import FloatArray
from fem_hjb.assembly import assemble
from fem_hjb.compare import LawPoints, compare
from fem_hjb.features import Envelope, HermiteCross
from fem_hjb.laws import Gaussian
from fem_hjb.line_basis import LineBasis
from fem_hjb.measures import sampled_law_measure
from fem_hjb.plotting import STYLES
from fem_hjb.population import yardstick
from fem_hjb.problem import ControlProblem, LinearDrift
from fem_hjb.sde import sample_paths
from fem_hjb.solution import Solution
from fem_hjb.spaces import Space
from fem_hjb.trials import Claim, Trial, fitted_slope
from fem_hjb.variational import solve_system

WRONG = "generator, wrong drift"


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """Three series: over `dims` with each of `envelopes` (theta) and `paths` paths; over `sizes` (numbers of paths) and
    over `mistakes` (theta), in dimension `dim` with the last of envelopes or with `paths` paths.

    steps : of the paths.  time_cells : of the class.  held_out : samples of the law at each Gauss point in time.
    wrong_drift : the factor of the control's drift.
    """

    dims: tuple[int, ...] = (2, 5, 10, 20)
    envelopes: tuple[float, ...] = (1.0, 0.8)
    paths: int = 1000
    dim: int = 5
    sizes: tuple[int, ...] = (125, 500, 2000, 8000)
    mistakes: tuple[float, ...] = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
    seeds: int = 8
    steps: int = 16
    time_cells: int = 4
    held_out: int = 500
    wrong_drift: float = 0.8


QUICK = Config(dims=(2, 5), sizes=(250, 1000, 4000), mistakes=(0.9, 0.8, 0.6, 0.0), seeds=4, held_out=250)

_ESTIMATORS = ("regression", "generator", "residual", "corrected")
_MEASURED = ("error", "advantage", "policy", "excluded", "coercivity", "stability")
_COLUMNS = (
    *("series", "d", "theta", "n", "estimator", "dofs", "approximation", "bias", "spread"),
    *(f"{name}{which}" for name in _MEASURED for which in ("", " low", " high")),
)


def run(config: Config) -> Trial:
    """One row per case and estimator; medians over seeds, low and high are the 10 and 90 per cent quantiles."""
    started = time.perf_counter()
    rows: list[tuple[Any, ...]] = []
    for d in config.dims:
        for theta in config.envelopes:
            rows += _rows(config, "dimension", d, theta, config.paths, (*_ESTIMATORS, WRONG))
    for n in config.sizes:
        rows += _rows(config, "size", config.dim, config.envelopes[-1], n, _ESTIMATORS[:3])
    for theta in config.mistakes:
        rows += _rows(config, "mistake", config.dim, theta, config.paths, _ESTIMATORS[:3])
    trial = Trial(
        name="high-dimension",
        title=str(__doc__).splitlines()[0],
        config=config,
        columns=_COLUMNS,
        rows=tuple(rows),
        claims=(Claim(text="", value=0.0, low=1.0, high=1.0, control=True),),
        seconds=0.0,
    )
    return replace(trial, claims=tuple(_claims(trial)), seconds=time.perf_counter() - started)


def steady_problem(dim: int) -> tuple[ControlProblem, FloatArray]:
    """The problem, and P with A'P + PA + Q = P Lambda P / alpha, here with Q = 1 and alpha = 1."""
    free = zoo.get("lq", dim=dim)
    A, _ = _linear(free).coefficients
    root = np.linalg.cholesky(free.Lambda(0.0, np.zeros(dim)))
    P = np.asarray(solve_continuous_are(A, root, np.eye(dim), np.eye(dim)))
    return zoo.get("lq", dim=dim, Q=1.0, R=P), P


def _linear(problem: ControlProblem) -> LinearDrift:
    if not isinstance(problem.drift, LinearDrift):
        raise TypeError(f"expected a linear drift, got {type(problem.drift).__name__}")
    return problem.drift


def _rows(
    config: Config, series: str, d: int, theta: float, n: int, estimators: tuple[str, ...]
) -> Iterator[tuple[Any, ...]]:
    problem, P = steady_problem(d)
    A, a = _linear(problem).coefficients
    wrong = replace(problem, drift=LinearDrift(config.wrong_drift * A, a))
    law = problem.initial_law
    if not isinstance(law, Gaussian):
        raise TypeError(f"expected a Gaussian law, got {type(law).__name__}")
    features = Envelope(HermiteCross(law, 2), theta * P, np.zeros(d))
    space = Space.product(LineBasis.uniform(problem.horizon, config.time_cells, "P2"), features)
    held_out = sampled_law_measure(problem, space, n=config.held_out, rng=1)
    measure = yardstick(problem, held_out, space, norm="mass")
    times = np.linspace(0.0, problem.horizon, 3)
    uniform = np.full(config.held_out, 1.0 / config.held_out)
    states = law.sample(config.held_out, np.random.default_rng(2))
    points = LawPoints(times, [(states, uniform)] * times.size, "samples of the stationary law")
    found: dict[str, list[Solution]] = {name: [] for name in estimators}
    for seed in range(config.seeds):
        paths = sample_paths(problem, n=n, steps=config.steps, rng=100 + seed)
        for name in estimators:
            given = wrong if name == WRONG else problem
            found[name].append(solve_system(assemble(given, paths, space, estimator=name.split(",")[0])))
    baseline = np.array([measure.distance(fit.coefficients) for fit in found["regression"]])
    for name, fits in found.items():
        coefficients = np.array([np.asarray(fit.coefficients).ravel() for fit in fits])
        centre = coefficients.mean(axis=0)
        square = sum(measure.norm(c - centre) ** 2 for c in coefficients) / (config.seeds - 1)
        bias = np.sqrt(max(measure.distance(centre) ** 2 - square / config.seeds, 0.0))
        errors = np.array([measure.distance(c) for c in coefficients])
        overall = [compare({name: fit}, problem.exact, problem=problem, points=points).overall(name) for fit in fits]
        columns = (
            errors / measure.size,
            baseline / errors,
            [row.policy for row in overall],
            [row.excluded for row in overall],
            [fit.stats["coercivity"] for fit in fits],
            [fit.stats["stability"] for fit in fits],
        )
        summary = (float(q) for column in columns for q in np.quantile(column, (0.5, 0.1, 0.9)))
        sizes = (measure.approximation, bias, np.sqrt(square))
        yield (series, d, theta, n, name, space.n_dofs, *(float(size / measure.size) for size in sizes), *summary)


def _claims(trial: Trial) -> Iterator[Claim]:
    config = trial.config
    for d in config.dims:
        for name in ("generator", WRONG):
            yield Claim(
                text=f"d = {d}, theta = 1: error of regression over that of {name}",
                value=float(trial.column("advantage", series="dimension", d=d, theta=1.0, estimator=name)[0]),
                low=2.0,
                high=1e3,
                control=name == WRONG,
            )


def figure(trial: Trial) -> Figure:
    made = Figure(figsize=(13.0, 3.4), layout="constrained")
    return made
