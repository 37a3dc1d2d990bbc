r"""The statistical error is what the covariance of the noise over paths predicts; in a ball, a critical radius.

f_hat solves the inequality of n paths, f_bar that of the law at the same times. Path i contributes the noise w_i(g) =
l_i(g) - B_i[f_bar, g], a vector over the class, of covariance Sigma; paths are independent, samples of one are not.

class   F the whole class. To first order f_hat - f_bar = B^{-1} mean(w_i), so that with the energy E of the law

            E |f_hat - f_bar|_E^2 = tr(E B^{-1} Sigma B^{-T}) / n.

        Sigma is estimated from other paths. For "generator" f_bar nearly solves the equation, so that the noise, and
        with it the error, is proportional to the approximation error of the class; for the others it is not.

ball    F the functions with |f|_E <= R of a richer class. With the symmetric part S of B, e = f_hat - f_bar has
        |e|_S^2 <= mean(w_i - E w_i)(e) and |e|_E <= 2 R, whence |e|_S is at most about the critical radius delta_n:

            delta_n^2 = sqrt( (1/n) sum_j u_j' Sigma u_j min(delta_n^2 / lambda_j, R^2) ),    S u_j = lambda_j E u_j,

        u_j' E u_j = 1. For regression S is the Gram matrix, and this is the local complexity of kernel regression,
        sqrt( (sigma^2/n) sum_j min(delta_n^2, R^2 lambda_j) ) for independent noise of variance sigma^2. Functions with
        lambda_j < delta_n^2 / R^2 are held by the ball; there are the more of them the smaller n is, so that the error
        falls more slowly than n^{-1/2}: as delta_n does where f_bar is on the sphere (R = |f_bar|_E) or well inside,
        and more slowly still in between, where f_hat leaves the sphere as n grows. Without the ball delta_n^2 =
        tr(S^{-1} Sigma)/n.

Controls: the covariance from samples that are shuffled among the paths at each time, as if all were independent (for
"generator" it errs on coarse classes only: the residual changes sign from cell to cell, and so does the noise along a
path; for "increment" it makes no difference, as martingale increments are uncorrelated); the ball left out.

Brownian motion reflected in an interval, splines of degree 3 in space and 2 in time, E with delta = 0.2 for all, and so
the tests g - delta d_t g but for regression. The ball is of the energy under the law: one under the samples would be
random by itself, which the noise of "generator" is small against.
Sources: arXiv 2509.02528 (the noise of the inequality); M. Wainwright, High-Dimensional Statistics, Cambridge
University Press 2019, sections 13.2-13.4 and 14.1 (critical radii).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure
from scipy.linalg import eigh, solve
from scipy.optimize import brentq

from fem_hjb.experiments.trial import Claim, Trial, conclude, fitted_slope
from fem_hjb.learning.constraints import EnergyBall
from fem_hjb.learning.estimators import ESTIMATORS, Setting
from fem_hjb.learning.forms import VALUE, Operator
from fem_hjb.learning.measures import empirical_measure, law_measure
from fem_hjb.learning.population import yardstick
from fem_hjb.learning.samples import Located, operator_rows
from fem_hjb.learning.solve_system import reduce_system
from fem_hjb.learning.solvers import direct
from fem_hjb.learning.system import System, assemble
from fem_hjb.paths.simulate import Paths, sample_paths
from fem_hjb.plotting.pictures import STYLES
from fem_hjb.problems import zoo
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, IntArray, spawn_generators
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """classes : (time cells, cells) of the first series.  rich : of the balls.  radii : R relative to |f_bar|_E.

    paths, ball_paths : n of the two series.  sigma_paths : from which Sigma is estimated.  observations : K.
    """

    estimators: tuple[str, ...] = ("generator", "weak", "increment", "regression")
    ball_estimator: str = "regression"
    classes: tuple[tuple[int, int], ...] = ((2, 3), (3, 4), (4, 6))
    rich: tuple[int, int] = (16, 32)
    radii: tuple[float, ...] = (1.0, 1.25, 2.0)
    paths: tuple[int, ...] = (500, 1000, 2000)
    ball_paths: tuple[int, ...] = (50, 100, 200, 400, 800, 1600)
    sigma_paths: int = 4000
    observations: int = 64
    delta: float = 0.2
    seeds: int = 32
    ball_seeds: int = 12
    seed: int = 1


QUICK = Config(
    estimators=("generator", "regression"),
    classes=((2, 3), (4, 6)),
    radii=(2.0,),
    paths=(500, 2000),
    ball_paths=(50, 400),
    sigma_paths=500,
    seeds=6,
    ball_seeds=6,
)

_COLUMNS = (
    "series",
    "estimator",
    "time cells",
    "cells",
    "radius",
    "paths",
    "observed",
    "observed 10%",
    "observed 90%",
    "predicted",
    "shuffled",
    "without ball",
)


Step = Callable[[], None]


def run(config: Config, tell: Progress) -> Trial:
    """One row per estimator, class, ball and number of paths; root mean squares over the seeds, relative to |f*|."""
    started = time.perf_counter()
    problem = zoo.get("reflected", dim=1)
    rows: list[tuple[Any, ...]] = []
    in_class = len(config.classes) * len(config.estimators) * len(config.paths) * config.seeds
    in_ball = len(config.ball_paths) * config.ball_seeds
    noises = 2 * (len(config.classes) * len(config.estimators) + len(config.radii))
    step = steps_of(tell, noises + 2 * in_class + (1 + len(config.radii)) * in_ball)  # a system is drawn, and solved
    for (time_cells, cells), estimator in product(config.classes, config.estimators):
        under = _under_law(config, problem, (time_cells, cells), estimator)
        drawn = _drawn(config, under, config.paths, config.seeds, step)
        rows += [("class", estimator, time_cells, cells, *found) for found in _in_class(config, under, drawn, step)]
    under = _under_law(config, problem, config.rich, config.ball_estimator)
    drawn = _drawn(config, under, config.ball_paths, config.ball_seeds, step)
    for radius in config.radii:
        found_in_ball = _in_ball(config, under, drawn, radius, step)
        rows += [("ball", config.ball_estimator, *config.rich, *found) for found in found_in_ball]
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _UnderLaw:
    """The system of the law, with the energy E of the yardstick; B and E dense; |f*|_E; f_bar in the whole class."""

    system: System
    form: FloatArray
    energy: FloatArray
    size: float
    solution: FloatArray


def _under_law(config: Config, problem: ControlProblem, cells: tuple[int, int], estimator: str) -> _UnderLaw:
    space = Space(problem, cells=cells[1], time_cells=cells[0], element="B3", time_smooth=True)
    delta = config.delta if ESTIMATORS[estimator].weighted else 0.0
    # The sums over increments are exact in the mean but for O(dt); those over points are what the law gives there.
    times = None if estimator == "increment" else np.linspace(0.0, problem.horizon, config.observations + 1)
    law = law_measure(problem, space, times=times)
    measuring = yardstick(problem, law, space, delta=config.delta)
    system = replace(assemble(problem, law, space, estimator=estimator, delta=delta), energy=measuring.metric)
    form, energy = system.form.toarray(), system.energy.toarray()
    return _UnderLaw(system=system, form=form, energy=energy, size=measuring.size, solution=_solved(system))


def _drawn(config: Config, under: _UnderLaw, sizes: tuple[int, ...], seeds: int, step: Step) -> dict[int, list[System]]:
    """Systems of n paths, for each n and seed."""
    law = under.system
    streams = iter(spawn_generators(config.seed, seeds * len(sizes)))

    def system(n: int) -> System:
        paths = sample_paths(law.problem, n=n, steps=config.observations, rng=next(streams))
        drawn = assemble(law.problem, paths, law.space, estimator=law.estimator, delta=law.delta)
        step()
        return replace(drawn, energy=law.energy)

    return {n: [system(n) for _ in range(seeds)] for n in sizes}


def _in_class(
    config: Config, under: _UnderLaw, drawn: dict[int, list[System]], step: Step
) -> Iterator[tuple[float, ...]]:
    """Radius, n, observed with its band, predicted, predicted from shuffled samples, and predicted once more."""
    predicted = [_first_order(under, sigma) for sigma in _covariances(config, under.system, under.solution, step)]
    for n, systems in drawn.items():
        distances = _distances([found - under.solution for found in _each(systems, step)], under.energy)
        numbers = [*distances, *(figure / np.sqrt(n) for figure in (*predicted, predicted[0]))]
        yield (np.inf, n, *(float(number) / under.size for number in numbers))


def _in_ball(
    config: Config, under: _UnderLaw, drawn: dict[int, list[System]], relative: float, step: Step
) -> Iterator[tuple[float, ...]]:
    """Radius, n, observed with its band, critical radius, that from shuffled samples, and that without the ball."""
    radius = relative * float(np.sqrt(under.solution @ under.energy @ under.solution))
    ball = EnergyBall(radius)
    center = _solved(under.system, ball)
    metric = (under.form + under.form.T) / 2
    eigenvalues, vectors = eigh(metric, under.energy)
    plain, shuffled = (
        ((sigma @ vectors) * vectors).sum(axis=0) for sigma in _covariances(config, under.system, center, step)
    )
    for n, systems in drawn.items():
        distances = _distances([found - center for found in _each(systems, step, ball)], metric)
        numbers = [
            *distances,
            _critical(eigenvalues, plain / n, radius),
            _critical(eigenvalues, shuffled / n, radius),
            float(np.sqrt((plain / eigenvalues).sum() / n)),
        ]
        yield (relative, n, *(number / under.size for number in numbers))


def _each(systems: list[System], step: Step, ball: EnergyBall | None = None) -> Iterator[FloatArray]:
    """Coefficients of each system."""
    for system in systems:
        yield _solved(system, ball)
        step()


def _distances(errors: list[FloatArray], metric: FloatArray) -> list[float]:
    """Root mean square and the 10 and 90 per cent quantiles of their norms."""
    norms = np.sqrt([error @ metric @ error for error in errors])
    return [float(np.sqrt(np.mean(norms**2))), *np.quantile(norms, (0.1, 0.9)).tolist()]


def _solved(system: System, ball: EnergyBall | None = None) -> FloatArray:
    """Coefficients (N,), without smoothing."""
    reduced = reduce_system(system, constraint=ball)
    inequality = reduced.inequality
    if reduced.solve_constrained is None:
        return reduced.whole(direct(inequality).coefficients)
    return reduced.whole(reduced.solve_constrained(inequality.form, inequality.load).coefficients)


def _covariances(config: Config, system: System, c: FloatArray, step: Step) -> list[FloatArray]:
    """Sigma at the function with coefficients c, from paths of their own: as they are, and shuffled."""
    for_paths, for_shuffle = spawn_generators(config.seed + 1, 2)
    paths = sample_paths(system.problem, n=config.sigma_paths, steps=config.observations, rng=for_paths)
    found: list[FloatArray] = []
    for rng in (None, for_shuffle):
        step()
        found.append(np.cov(_noise(system, paths, c, rng), rowvar=False))
    return found


def _noise(system: System, paths: Paths, c: FloatArray, shuffle: np.random.Generator | None) -> FloatArray:
    """w_i (n, N) of each path at the function with coefficients c.

    shuffle : assigns the samples of each time, and the terminal ones, to paths anew.
    """
    setting = Setting(problem=system.problem, space=system.space, gauge=system.gauge, delta=system.delta)
    measure = empirical_measure(system.problem, paths, n=1)
    terms = system.estimator.terms(setting, measure)
    space, n = system.space, paths.n
    owners = np.repeat(np.arange(n)[:, None], paths.steps + 1, axis=1)
    if shuffle is not None:
        owners = shuffle.permuted(owners, axis=0)
    here = Located.of(space, measure.t, measure.x)
    total = np.zeros((n, space.n_dofs))

    def add(at: Located, owner: IntArray, test: Operator, numbers: FloatArray) -> None:
        local = operator_rows(space, at, test) * numbers[:, None]
        dofs = space.cell_dofs(at.cells)
        place = np.broadcast_to(owner[:, None], dofs.shape)
        total[:] += sp.coo_matrix((local.ravel(), (place.ravel(), dofs.ravel())), shape=total.shape).toarray()

    def applied(at: Located, operator: Operator) -> FloatArray:
        return np.asarray((operator_rows(space, at, operator) * c[space.cell_dofs(at.cells)]).sum(axis=1))

    inside = owners[:, :-1].ravel()
    for test, trial in terms.here:
        add(here, inside, test, -measure.weights * applied(here, trial))
    if measure.next_t is not None and measure.next_x is not None:
        then = Located.of(space, measure.next_t, measure.next_x)
        for test, trial in terms.ahead:
            add(here, inside, test, -measure.weights * applied(then, trial))
    for test, numbers in terms.load:
        add(here, inside, test, measure.weights * numbers)
    x, horizon = measure.terminal_x, np.full(n, paths.t[-1])
    end = Located.of(space, horizon, x)
    target = system.gauge.terminal_u(system.problem, x)
    misfit = target - applied(end, VALUE)
    add(end, owners[:, -1], VALUE, misfit * (1.0 - system.delta * setting.rate(horizon, x)))
    if system.delta and system.problem.exact is not None:
        slope = target[:, None] * system.problem.exact.gradient(horizon, x) / system.problem.temperature
        slope -= np.stack([applied(end, Operator(gradient=axis)) for axis in np.eye(space.dim)], axis=1)
        pull = 0.5 * system.delta * np.einsum("...ij,...j->...i", setting.diffusion(horizon, x), slope)
        add(end, owners[:, -1], Operator(gradient=pull), np.ones(n))
    return total


def _first_order(under: _UnderLaw, covariance: FloatArray) -> float:
    """sqrt(tr(E B^{-1} Sigma B^{-T}))."""
    half = solve(under.form, covariance)
    return float(np.sqrt(np.trace(under.energy @ solve(under.form, half.T))))


def _critical(eigenvalues: FloatArray, variances: FloatArray, radius: float) -> float:
    """The delta > 0 with delta^4 = sum_j variances_j min(delta^2 / lambda_j, R^2)."""

    def excess(log_delta: float) -> float:
        square = np.exp(2 * log_delta)
        return float(np.log(variances @ np.minimum(square / eigenvalues, radius**2)) - 2 * np.log(square))

    top = 0.5 * float(np.log((variances / eigenvalues).sum()))
    return float(np.exp(brentq(excess, top - 30.0, top + 1e-9)))


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    table = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    fixed = [row for row in table if row["series"] == "class"]
    slope = fitted_slope([row["predicted"] for row in fixed], [row["observed"] for row in fixed])
    yield Claim(
        text=f"all classes, estimators, n: exponent of observed in predicted [{slope.low:.3f}, {slope.high:.3f}]",
        value=slope.value,
        low=0.9,
        high=1.1,
    )
    for estimator, name in product(config.estimators, ("predicted", "shuffled")):
        if name == "predicted" or estimator in ("weak", "regression"):
            ratios = [row["observed"] / row[name] for row in fixed if row["estimator"] == estimator]
            yield Claim(
                text=f"{estimator}: observed / {name}, geometric mean over classes and n",
                value=float(np.exp(np.mean(np.log(ratios)))),
                low=0.9,
                high=1.1,
                control=name == "shuffled",
            )
    for relative in config.radii:
        inside = [row for row in table if row["series"] == "ball" and row["radius"] == relative]
        of = f"R = {relative:g} |f_bar|"
        for name, text in (("predicted", "delta_n"), ("without ball", "delta_n without the ball")):
            if relative in (1.0, max(config.radii)) and (name == "predicted" or relative == 1.0):
                slope = fitted_slope([row[name] for row in inside], [row["observed"] for row in inside])
                yield Claim(
                    text=f"{of}: exponent of observed in {text} [{slope.low:.3f}, {slope.high:.3f}]",
                    value=slope.value,
                    low=0.85,
                    high=1.15,
                    control=name != "predicted",
                )
        for name, text in (("predicted", "delta_n"), ("shuffled", "delta_n of shuffled samples")):
            if name == "predicted" or relative == max(config.radii):
                yield Claim(
                    text=f"{of}: largest observed / {text}",
                    value=max(row["observed"] / row[name] for row in inside),
                    low=0.5,
                    high=1.15,
                    control=name != "predicted",
                )


def figure(trial: Trial) -> Figure:
    """Observed against predicted errors for all classes; and errors in balls against n, with critical radii."""
    config = trial.config
    made = Figure(figsize=(10.0, 4.0), layout="constrained")
    first, second = made.subplots(1, 2)
    for style, estimator in zip(STYLES, config.estimators, strict=False):
        predicted, observed, low, high = (
            trial.column(name, series="class", estimator=estimator)
            for name in ("predicted", "observed", "observed 10%", "observed 90%")
        )
        bars = np.maximum([observed - low, high - observed], 0.0)
        points = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        first.errorbar(predicted, observed, bars, **points, markersize=4, linewidth=0.8, label=estimator)
    reach = np.array([trial.column("predicted", series="class").min(), trial.column("predicted", series="class").max()])
    first.loglog(reach, reach, color="0.6", linewidth=1.0, label="equal")
    first.set_xlabel("predicted error, relative to $|f^*|_E$")
    first.set_ylabel(r"observed $|\hat f - \bar f|_E\, /\, |f^*|_E$")
    for style, relative in zip(STYLES, config.radii, strict=False):
        n, observed, low, high, predicted = (
            trial.column(name, series="ball", radius=relative)
            for name in ("paths", "observed", "observed 10%", "observed 90%", "predicted")
        )
        second.loglog(n, observed, **style, label=rf"observed, $R = {relative:g}\, |\bar f|_E$")
        second.fill_between(n, low, high, color=style["color"], alpha=0.2, linewidth=0)
        second.loglog(n, predicted, color=style["color"], linewidth=1.0, linestyle=(0, (1, 1)), label=r"$\delta_n$")
    n, without = (trial.column(name, series="ball", radius=config.radii[0]) for name in ("paths", "without ball"))
    second.loglog(n, without, color="0.6", linewidth=1.0, label=r"without the ball, $n^{-1/2}$")
    second.set_xlabel("paths $n$")
    second.set_ylabel(r"$|\hat f - \bar f|_S\, /\, |f^*|_E$")
    for panel in (first, second):
        panel.legend(fontsize="small")
    return made
