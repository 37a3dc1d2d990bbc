r"""Up to twenty dimensions the variational solution beats regression as long as the class nearly holds the solution.

Linear-quadratic problem with the steady Riccati matrix P as terminal cost, so that f* = exp(-x'Px/2) c(t) at all times.
The class: polynomials of degree 2 along each of d axes, times an envelope exp(-theta x'Px/2), times quadratics in time.
theta = 1 leaves only c(t) to be approximated; the smaller theta, the wronger the envelope and the larger

    a = |f_best - f*|, in the norm of int E[f^2] dt + E[f_T^2] under fresh samples of the law, relative to |f*|.

All estimators see the same paths. With f_hat over the seeds,

    spread = (E |f_hat - E f_hat|^2)^{1/2},   bias = |E f_hat - f*|,   advantage = |f_regression - f*| / |f_hat - f*|.

Regression has the bias a and the noise of its labels, whatever the class; the noise of the Galerkin solution
("generator", arXiv 2509.02528) vanishes at f*, so that its spread is proportional to a, and its bias is c a with c of
1.01 to 1.09 where the envelope is wrong (3 to 10 at theta = 1, where a is the error in time alone). Hence, with wrong
envelopes,

    advantage = about (1 + (spread of regression / a)^2)^{1/2}.

It ends where a exceeds the spread of regression, which falls like n^{-1/2} and grows with d. Beyond, "generator" is as
good as regression in f and "residual" worse: least squares of the equation is not least squares of f. More of the
advantage is left in the policy, as regression is noisy in the tails. Neither loses its stability down to 32 paths in
dimension 5 (11 features at each time), so that no ridge is needed. The control: the same with a wrong drift.

Regression with a gradient penalty ("doob", its weight by cross-validation over the paths, see `learning.matching`) sees
the same paths in the series over d. There is little that it could damp: these few features are flat.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.linalg import solve_continuous_are

from fem_hjb.experiments.trial import Claim, Trial, check_seeds, conclude, fitted_slope
from fem_hjb.learning.matching import choose_penalty
from fem_hjb.learning.measures import sampled_law_measure
from fem_hjb.learning.population import yardstick
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems import zoo
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem, LinearDrift, ValueFunction
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.norms import LawPoints
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.dictionary import Envelope
from fem_hjb.spaces.features import HermiteCross
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, steps_of

WRONG = "generator, wrong drift"

_NEAR = 0.6  # theta from which on the class is near enough for the spread to be proportional to a


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """Three series: over `dims` with each of `envelopes` (theta) and `paths` paths; over `sizes` (numbers of paths) and
    over `mistakes` (theta), in dimension `dim` with the last of envelopes or with `paths` paths.

    steps : of the paths.  time_cells : of the class.  held_out : samples of the law at each Gauss point in time.
    wrong_drift : the factor of the control's drift.  seed : of the first paths; the others follow.
    """

    dims: tuple[int, ...] = (2, 5, 10, 20)
    envelopes: tuple[float, ...] = (1.0, 0.8)
    paths: int = 1000
    dim: int = 5
    sizes: tuple[int, ...] = (32, 125, 500, 2000, 8000)
    mistakes: tuple[float, ...] = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
    seeds: int = 8
    steps: int = 16
    time_cells: int = 4
    held_out: int = 500
    wrong_drift: float = 0.6
    seed: int = 100


QUICK = Config(
    dims=(2, 4),
    paths=200,
    dim=3,
    sizes=(64, 256, 1024),
    mistakes=(0.95, 0.6, 0.0),
    seeds=3,
    held_out=50,
)

_ESTIMATORS = ("regression", "generator", "residual", "corrected", "doob")
_GREY = {**STYLES[0], "color": "0.6", "marker": "x"}
_MEASURED = ("error", "advantage", "policy", "excluded", "coercivity", "stability")
_COLUMNS = (
    *("series", "d", "theta", "n", "estimator", "dofs", "approximation", "bias", "spread"),
    *(f"{name}{which}" for name in _MEASURED for which in ("", " low", " high")),
)


def run(config: Config, tell: Progress) -> Trial:
    """One row per case and estimator; medians over seeds, low and high are the 10 and 90 per cent quantiles."""
    check_seeds(config.seeds)
    started = time.perf_counter()
    rows: list[tuple[Any, ...]] = []
    all_, some = (*_ESTIMATORS, WRONG), _ESTIMATORS[:3]
    fitted = len(config.dims) * len(config.envelopes) * len(all_) + (len(config.sizes) + len(config.mistakes)) * len(
        some
    )
    step = steps_of(tell, 2 * config.seeds * fitted)  # a fit is found, and compared
    for d in config.dims:
        for theta in config.envelopes:
            rows += _rows(config, "dimension", d, theta, config.paths, all_, step)
    for n in config.sizes:
        rows += _rows(config, "size", config.dim, config.envelopes[-1], n, some, step)
    for theta in config.mistakes:
        rows += _rows(config, "mistake", config.dim, theta, config.paths, some, step)
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _steady(dim: int) -> tuple[ControlProblem, FloatArray]:
    """The problem, and P with A'P + PA + Q = P Lambda P / alpha, here with Q = 1 and alpha = 1."""
    free = zoo.get("lq", dim=dim)
    A, _ = cast(LinearDrift, free.drift).coefficients
    root = np.linalg.cholesky(free.Lambda(0.0, np.zeros(dim)))
    P = np.asarray(solve_continuous_are(A, root, np.eye(dim), np.eye(dim)))
    return zoo.get("lq", dim=dim, Q=1.0, R=P), P


def _rows(
    config: Config,
    series: str,
    d: int,
    theta: float,
    n: int,
    estimators: tuple[str, ...],
    step: Callable[[], None],
) -> Iterator[tuple[Any, ...]]:
    problem, P = _steady(d)
    A, a = cast(LinearDrift, problem.drift).coefficients
    wrong = replace(problem, drift=LinearDrift(config.wrong_drift * A, a))
    law, exact = cast(Gaussian, problem.initial_law), cast(ValueFunction, problem.exact)
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
        paths = sample_paths(problem, n=n, steps=config.steps, rng=config.seed + seed)
        for name in estimators:
            given = wrong if name == WRONG else problem
            how = choose_penalty(problem, paths, space) if name == "doob" else name.split(",")[0]
            found[name].append(solve_system(assemble(given, paths, space, estimator=how)))
            step()
    baseline = np.array([measure.distance(fit.coefficients) for fit in found["regression"]])
    for name, fits in found.items():
        coefficients = np.array([np.asarray(fit.coefficients).ravel() for fit in fits])
        centre = coefficients.mean(axis=0)
        square = sum(measure.norm(c - centre) ** 2 for c in coefficients) / (config.seeds - 1)
        bias = np.sqrt(max(measure.distance(centre) ** 2 - square / config.seeds, 0.0))
        errors = np.array([measure.distance(c) for c in coefficients])
        overall = []
        for fit in fits:
            overall.append(compare({name: fit}, exact, problem=problem, points=points).overall(name))
            step()
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


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    for d in config.dims:
        for name in ("generator", WRONG):
            where = {"series": "dimension", "d": d, "theta": 1.0, "estimator": name}
            low, high = (float(_column(rows, f"advantage {end}", **where)[0]) for end in ("low", "high"))
            yield Claim(
                text=f"d = {d}, theta = 1: advantage of {name}, 10-90 % [{low:.3g}, {high:.3g}]",
                value=float(_column(rows, "advantage", **where)[0]),
                low=2.0,
                high=1e3,
                control=name == WRONG,
            )
        where = {"series": "dimension", "d": d, "theta": 1.0}
        doob, own = (float(_column(rows, "error", estimator=name, **where)[0]) for name in ("doob", "generator"))
        yield Claim(text=f"d = {d}, theta = 1: error of doob over generator's", value=doob / own, low=2.0, high=1e3)
    for what, name, control in (
        ("spread", "regression", False),
        ("spread", "generator", False),
        ("spread", "residual", False),
        ("error", "generator", True),
    ):
        found = fitted_slope(config.sizes, _column(rows, what, series="size", estimator=name))
        yield Claim(
            text=f"exponent in n of the {what} of {name}, 95 % [{found.low:.2f}, {found.high:.2f}]",
            value=found.value,
            low=-0.65,
            high=-0.35,
            control=control,
        )
    for name in ("generator", "residual", "regression"):
        points = {"series": "mistake", "estimator": name}
        near = _column(rows, "theta", **points) >= _NEAR
        found = fitted_slope(_column(rows, "approximation", **points)[near], _column(rows, "spread", **points)[near])
        yield Claim(
            text=f"exponent in a of the spread of {name}, 95 % [{found.low:.2f}, {found.high:.2f}]",
            value=found.value,
            low=0.85,
            high=1.15,
            control=name == "regression",
        )
    ratios = _advantage(rows, "mistake", "generator") / _expected(rows, "mistake")
    yield Claim(
        text="advantage of generator (rms) over the expected, least", value=float(ratios.min()), low=0.85, high=1.15
    )
    yield Claim(text="the same, largest", value=float(ratios.max()), low=0.85, high=1.15)
    broken = _advantage(rows, "dimension", WRONG) / _expected(rows, "dimension")
    yield Claim(text=f"the same of {WRONG}", value=float(broken.max()), low=0.85, high=1.15, control=True)
    last = {"series": "mistake", "theta": config.mistakes[-1]}
    for name, low, high in (("generator", 0.9, 1.1), ("residual", 0.6, 0.95)):
        value = float(_column(rows, "advantage", estimator=name, **last)[0])
        yield Claim(text=f"theta = {config.mistakes[-1]:g}: advantage of {name}", value=value, low=low, high=high)


def _advantage(rows: list[tuple[Any, ...]], series: str, estimator: str) -> FloatArray:
    """Of errors in the root mean square over seeds, which is that of bias and spread."""
    square = {
        name: sum(_column(rows, part, series=series, estimator=name) ** 2 for part in ("bias", "spread"))
        for name in ("regression", estimator)
    }
    return np.sqrt(square["regression"] / square[estimator])


def _expected(rows: list[tuple[Any, ...]], series: str) -> FloatArray:
    """(1 + (spread of regression / a)^2)^{1/2}."""
    where = {"series": series, "estimator": "regression"}
    return np.hypot(1.0, _column(rows, "spread", **where) / _column(rows, "approximation", **where))


def _column(rows: list[tuple[Any, ...]], name: str, **where: Any) -> FloatArray:
    """The numbers of a column, in the rows where others have the given values."""
    place = {key: _COLUMNS.index(key) for key in (name, *where)}
    return np.array([row[place[name]] for row in rows if all(row[place[k]] == v for k, v in where.items())])


def figure(trial: Trial) -> Figure:
    """Errors against d with a right and a wrong envelope, against n and a, and the advantage where it ends."""
    made = Figure(figsize=(14.0, 3.6), layout="constrained")
    panels = made.subplots(1, 5)
    config = trial.config
    for panel, theta in zip(panels, (config.envelopes[0], config.envelopes[-1]), strict=False):
        for style, name in zip((*STYLES, _GREY), (*_ESTIMATORS, WRONG), strict=True):
            _errors(panel, trial, config.dims, style, series="dimension", theta=theta, estimator=name)
        best = trial.column("approximation", series="dimension", theta=theta, estimator="regression")
        panel.loglog(config.dims, best, color="0.5", linewidth=1.0, label="$a$, best of the class")
        panel.set(
            xlabel="dimension $d$", ylabel="relative error of $f$", title=rf"$\theta = {theta:g}$, $n = {config.paths}$"
        )
        ticks_at(panel.xaxis, config.dims)
    panels[0].legend(fontsize=7)
    sizes, thirds = np.array(config.sizes, dtype=np.float64), list(zip(STYLES, _ESTIMATORS[:3], strict=False))
    for style, name in thirds:
        where = {"series": "size", "estimator": name}
        _errors(panels[2], trial, sizes, style, **where)
        panels[2].loglog(sizes, trial.column("spread", **where), **style, markerfacecolor="none", alpha=0.6)
        here = {"series": "mistake", "estimator": name}
        panels[3].loglog(trial.column("approximation", **here), trial.column("spread", **here), **style, label=name)
    start = trial.column("spread", series="size", estimator="regression")[0]
    panels[2].loglog(sizes, 1.5 * start * np.sqrt(sizes[0] / sizes), color="0.5", linewidth=1.0, label="$n^{-1/2}$")
    ticks_at(panels[2].xaxis, sizes[::2])
    panels[2].set(xlabel="paths $n$", ylabel="error (filled), spread (open)")
    panels[2].set_title(rf"$d = {config.dim}$, $\theta = {config.envelopes[-1]:g}$")
    panels[2].legend(fontsize=7)
    a = trial.column("approximation", series="mistake", estimator="generator")
    panels[3].loglog(a, 0.05 * a, color="0.5", linewidth=1.0, label="$a^1$")
    panels[3].set(xlabel="best of the class $a$", ylabel="spread", title=f"$d = {config.dim}$, $n = {config.paths}$")
    panels[3].legend(fontsize=7)
    for style, name in thirds[1:]:
        for series in ("mistake", "dimension"):
            where = {"series": series, "estimator": name}
            share = trial.column("approximation", **where) / trial.column(
                "spread", series=series, estimator="regression"
            )
            mark = {**style, "linestyle": "none", "markerfacecolor": style["color"] if series == "mistake" else "none"}
            panels[4].loglog(share, trial.column("advantage", **where), **mark, label=f"{name}, {series}")
    x = np.geomspace(0.02, 10.0, 200)
    panels[4].loglog(x, np.hypot(1.0, 1.0 / x), color="0.5", linewidth=1.0, label=r"$(1 + x^{-2})^{1/2}$")
    panels[4].axhline(1.0, color="0.5", linewidth=0.5)
    panels[4].set(xlabel="$x$: $a$ / spread of regression", ylabel="advantage over regression", xlim=(0.02, 10.0))
    panels[4].set_ylim(0.5, 100.0)
    panels[4].legend(fontsize=7)
    return made


def _errors(panel: Axes, trial: Trial, x: Any, style: dict[str, Any], **where: Any) -> None:
    """Medians with the 10-90 per cent band over seeds."""
    panel.loglog(x, trial.column("error", **where), **style, label=where["estimator"])
    low, high = (trial.column(f"error {end}", **where) for end in ("low", "high"))
    panel.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0.0)
