r"""At equal data the variational fit's error falls with a larger power of n than that of the best regression.

The same n paths, once for the variational equation ("generator", "residual") and once for least squares of the
Feynman-Kac labels ("regression"), in classes of B-splines of degree p = 3 in space and time on cells of width h. The
error is |f_hat - f*|_E / |f*|_E in the energy norm under the law; no smoothing. Brownian motion reflected in an
interval, exp(y/alpha) a cosine series whose shortest wave has 4 periods, X_0 uniform.

Regression pays for every dimension of the class, whatever it is good for: with D = d + 1 = 2 and N ~ h^{-D},

    error^2 ~ h^{2p} + N/n,      best h ~ n^{-1/(2p+D)},      error ~ n^{-p/(2p+D)} = n^{-0.375},

never better than n^{-1/2}. (N/n is for classes in time coarse enough for a path to cross many cells of width h within
one time cell; where it stays in its cell, values along a path bring nothing new, and the noise of gradients is of the
order h^{-3}/n: exponent p/(2p+3), 0.33.) Its class is the best of `ladder` for each n, chosen with the errors known.

The noise of the variational equation carries the residual of the class as a factor, of the order h^{p-1}, and is of
the order h^{p-3/2} n^{-1/2} at most (experiment self-mitigation). That is no more than the approximation error h^p as
long as h is at least n^{-1/3}. Hence the rule

    h = n^{-1/3} up to a constant,  N ~ n^{2/3},      error ~ h^p = n^{-p/3} = n^{-1}

(`first` says the constant; n^{-(p+1)/3} as long as values outweigh gradients in the norm). Claimed is that the error
stays within 1.4 times the approximation error, and the difference to regression's exponent. Regression in these very
classes has an error between (N/n)^{1/2} = n^{-1/6} and (h^{-3}/n)^{1/2}, which does not fall at all: it is not the
classes that make the difference.

The stronger rival, least squares of labels with a gradient penalty ("doob", see `learning.matching`), whose weight is
chosen by cross-validation over the trajectories, has the best of the same ladder. The penalty damps noise of gradients,
so that it is ahead of regression in classes that are too large for that; but flat functions keep theirs, and with it
comes a bias. It is in the comparison with regression's bands: its exponent, too, must be at least 0.2 less.

Controls: the variational equation with a wrong drift stops at a plateau; regression in the classes of the rule is
nowhere near their approximation error.

What the variational equation is given beyond regression is the drift and diffusion of the process. Its model-free form
("increment") has noise that does not vanish at the solution, as regression has.

Source: arXiv 2509.02528, whose question this answers for this problem.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.experiments.trial import Claim, Slope, Trial, check_seeds, conclude, fitted_slope, students_t
from fem_hjb.learning.estimators import Estimator
from fem_hjb.learning.matching import choose_penalty
from fem_hjb.learning.measures import law_measure
from fem_hjb.learning.population import Yardstick, yardstick
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems import zoo
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """sizes : n, rising.  steps, seeds : time steps K of the paths, repetitions.  seed : of all random numbers.

    first : time cells of the rule at sizes[0]; in space there are four times as many.
    ladder : (cells, time cells) from which regression takes the best.
    """

    sizes: tuple[int, ...] = (500, 1500, 4000, 12000, 32000)
    steps: int = 32
    seeds: int = 32
    first: int = 4
    ladder: tuple[tuple[int, int], ...] = ((6, 2), (8, 2), (10, 2), (12, 3), (14, 3), (16, 4))
    seed: int = 30


QUICK = Config(sizes=(250, 1000, 4000), steps=16, seeds=2, first=3, ladder=((8, 2), (12, 3)))

_COLUMNS = ("method", "n", "cells", "time cells", "dofs", "approximation", "error", "low", "high", "best")
_DEGREE = 3
_REGRESSION = _DEGREE / (2 * _DEGREE + 2)
_BAND = 0.15
_LEAST = 0.2  # by which the exponents must differ
_SHARE = 1.4  # of the approximation error, below which the variational fit's error is
_LABELLED = ("regression", "doob")
_RULE, _WRONG = "regression, classes of the rule", "generator, wrong drift"
Errors = dict[tuple[str, int], FloatArray]


def run(config: Config, tell: Progress) -> Trial:
    """One row per method, n and class; "best" marks those between which exponents are fitted."""
    check_seeds(config.seeds)
    started = time.perf_counter()
    problem = zoo.get("reflected", dim=1, Lambda=0.01, coefficients=(1.0, 0.0, 0.3, 0.0, -0.25, 0.0, 0.2, 0.0, 0.15))
    wrong = replace(problem, drift=LinearDrift([[-0.2]], [0.1]))
    rows: list[tuple[Any, ...]] = []
    errors: Errors = {}
    step = steps_of(tell, len(config.sizes) * config.seeds * (2 * len(config.ladder) + 4))
    for n in config.sizes:
        time_cells = round(config.first * (n / config.sizes[0]) ** (1 / 3))
        rule = (4 * time_cells, time_cells)
        fits = {("regression", cells): (problem, "regression") for cells in config.ladder}
        fits |= {("doob", cells): (problem, "doob") for cells in config.ladder}
        fits |= {(_RULE, rule): (problem, "regression"), (_WRONG, rule): (wrong, "generator")}
        fits |= {(name, rule): (problem, name) for name in ("generator", "residual")}
        measuring = {cells: _yardstick(problem, cells) for cells in (*config.ladder, rule)}
        found = _errors(config, problem, n, fits, measuring, step)
        rms = {key: float(np.sqrt(np.mean(values**2))) for key, values in found.items()}
        best = {name: min((key for key in fits if key[0] == name), key=lambda key: rms[key]) for name in _LABELLED}
        for key, values in found.items():
            method, cells = key
            chosen = method not in _LABELLED or key == best[method]
            if chosen:
                errors[method, n] = values
            low, high = np.quantile(values, (0.1, 0.9))
            approximation = measuring[cells].approximation / measuring[cells].size
            dofs = measuring[cells].space.n_dofs
            rows.append((method, n, *cells, dofs, approximation, rms[key], float(low), float(high), int(chosen)))
    return conclude(config, _COLUMNS, rows, _claims(config, rows, errors), started)


def _yardstick(problem: ControlProblem, cells: tuple[int, int]) -> Yardstick:
    space = Space(
        problem,
        cells=cells[0],
        time_cells=cells[1],
        element=f"B{_DEGREE}",
        time_degree=_DEGREE,
        time_smooth=True,
    )
    return yardstick(problem, law_measure(problem, space), space)


def _errors(
    config: Config,
    problem: ControlProblem,
    n: int,
    fits: Mapping[tuple[str, tuple[int, int]], tuple[ControlProblem, str]],
    measuring: Mapping[tuple[int, int], Yardstick],
    step: Callable[[], None],
) -> dict[tuple[str, tuple[int, int]], FloatArray]:
    """The relative errors (seeds,) of each fit (the problem it believes in, the estimator), all from the same paths."""
    found: dict[tuple[str, tuple[int, int]], list[float]] = {key: [] for key in fits}
    for sequence in np.random.SeedSequence([config.seed, n]).spawn(config.seeds):
        paths = sample_paths(problem, n=n, steps=config.steps, rng=sequence)
        for (method, cells), (believed, estimator) in fits.items():
            judge = measuring[cells]
            how: str | Estimator = estimator
            if estimator == "doob":
                how = choose_penalty(believed, paths, judge.space, smoothing=0.0)
            system = assemble(believed, paths, judge.space, estimator=how)
            solution = solve_system(system, smoothing=0.0, figures=False)
            found[method, cells].append(judge.distance(solution.coefficients) / judge.size)
            step()
    return {key: np.array(values) for key, values in found.items()}


def _exponent(config: Config, errors: Errors, method: str, less: str | None = None) -> Slope:
    """The exponent of a method's error in 1/n, or that less another's: mean and interval over the seeds."""
    inverse = 1.0 / np.array(config.sizes)

    def fitted(name: str) -> FloatArray:
        curves = np.array([errors[name, n] for n in config.sizes]).T
        return np.array([fitted_slope(inverse, curve).value for curve in curves])

    slopes = fitted(method) - (0.0 if less is None else fitted(less))
    margin = students_t(slopes.size - 1) * slopes.std(ddof=1) / np.sqrt(slopes.size)
    return Slope(value=slopes.mean(), low=slopes.mean() - margin, high=slopes.mean() + margin)


def _claims(config: Config, rows: list[tuple[Any, ...]], errors: Errors) -> Iterator[Claim]:
    own = _exponent(config, errors, "regression")
    yield Claim(
        text=f"regression: exponent of the error is {_REGRESSION:.3f} (95 %: {own.low:.3f} to {own.high:.3f})",
        value=own.value,
        low=_REGRESSION - _BAND,
        high=_REGRESSION + _BAND,
    )
    for method, less in (
        *((name, other) for other in _LABELLED for name in ("generator", _WRONG)),
        ("residual", "regression"),
    ):
        own, more = _exponent(config, errors, method), _exponent(config, errors, method, less)
        yield Claim(
            text=f"{method}: its exponent, {own.value:.2f} (95 %: {own.low:.2f} to {own.high:.2f}), less that of"
            f" {less}, {more.value:.2f}, lower end of the 95 per cent interval",
            value=more.low,
            low=_LEAST,
            high=float("inf"),
            control=method == _WRONG,
        )
    for method in ("generator", "residual", _RULE):
        worst = max(row[6] / row[5] for row in rows if row[0] == method)
        yield Claim(
            text=f"{method}: error over the approximation error, largest",
            value=worst,
            low=1.0,
            high=_SHARE,
            control=method == _RULE,
        )
    last = {row[0]: row[6] for row in rows if row[1] == config.sizes[-1] and row[-1]}
    for method in _LABELLED:
        yield Claim(
            text=f"error of {method} over that of the generator at n = {config.sizes[-1]}",
            value=last[method] / last["generator"],
            low=10.0,
            high=float("inf"),
        )


def figure(trial: Trial) -> Figure:
    """The errors against n; and against the dimension of the class, for regression at each n."""
    made = Figure(figsize=(9.5, 3.8), layout="constrained")
    against_n, against_dofs = made.subplots(1, 2)
    styles = {
        "regression": STYLES[2],
        "doob": STYLES[3],
        _RULE: {**STYLES[2], "color": "0.45", "marker": "v"},
        _WRONG: {**STYLES[0], "color": "0.6", "marker": "+"},
        "residual": STYLES[1],
        "generator": STYLES[0],
    }
    for method, style in styles.items():
        n, error, low, high = (trial.column(k, method=method, best=1) for k in ("n", "error", "low", "high"))
        against_n.loglog(n, error, **style, markersize=4, label=method)
        against_n.fill_between(n, low, high, color=style["color"], alpha=0.2, linewidth=0)
    for start, power, dashes, name in (
        (0.75 * trial.column("error", method="regression", best=1)[0], _REGRESSION, "-", f"slope -{_REGRESSION:g}"),
        (0.6 * trial.column("error", method="generator", best=1)[0], _DEGREE / 3, "--", f"slope -{_DEGREE / 3:g}"),
    ):
        against_n.loglog(n, start * (n / n[0]) ** -power, color="0.7", linestyle=dashes, linewidth=0.8, label=name)
    against_n.set(xlabel="paths $n$", ylabel=r"$|\hat f - f^*|_E / |f^*|_E$", title="error against data")
    sizes = sorted(set(trial.column("n")))
    ticks_at(against_n.xaxis, sizes)
    for n_here, style in zip(sizes, STYLES, strict=False):
        ladder, rule = ({"method": method, "n": n_here} for method in ("regression", _RULE))
        dofs, error = (np.append(trial.column(k, **ladder), trial.column(k, **rule)) for k in ("dofs", "error"))
        order = np.argsort(dofs, kind="stable")
        against_dofs.loglog(dofs[order], error[order], **style, markersize=4, label=f"regression, n = {n_here:.0f}")
    dofs, approximation = trial.column("dofs"), trial.column("approximation")
    order = np.argsort(dofs)
    against_dofs.loglog(dofs[order], approximation[order], color="0.6", linewidth=0.8, label="approximation error")
    dofs, error = trial.column("dofs", method="generator"), trial.column("error", method="generator")
    against_dofs.loglog(dofs, error, "k*", label="generator, rule")
    against_dofs.set(
        xlabel="dimension $N$ of the class", ylabel=against_n.get_ylabel(), title="error against the class"
    )
    ticks_at(against_dofs.xaxis, dofs)
    for panel in (against_n, against_dofs):
        panel.legend(fontsize=6)
    return made
