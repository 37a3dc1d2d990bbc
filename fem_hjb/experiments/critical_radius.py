r"""The statistical error is predicted by the covariance of the noise over paths, and bounded by a critical radius.

f_hat solves the inequality of n paths, f_bar that of the law at the same times. Path i contributes the noise w_i(g) =
l_i(g) - B_i[f_bar, g], a vector over the class, of covariance Sigma; paths are independent, samples of one are not.

class   F the whole class. To first order f_hat - f_bar = B^{-1} mean(w_i), so that with the energy E of the law

            E |f_hat - f_bar|_E^2 = tr(E B^{-1} Sigma B^{-T}) / n.

        Sigma is estimated from other paths. For "generator" f_bar nearly solves the equation, so that the noise, and
        with it the error, is proportional to the approximation error of the class; for the others it is not.

ball    F the functions with |f|_E <= R of a richer class. With the symmetric part S of B, e = f_hat - f_bar has
        |e|_S^2 <= mean(w_i)(e) and |e|_E <= 2 R, whence |e|_S is at most about the critical radius delta:

            delta^2 = sqrt( (1/n) sum_j u_j' Sigma u_j min(delta^2 / lambda_j, R^2) ),     S u_j = lambda_j E u_j,

        u_j' E u_j = 1. For regression S is the Gram matrix and this is the local complexity of kernel regression,
        sqrt( (sigma^2/n) sum_j min(delta^2, R^2 lambda_j) ) for independent noise of variance sigma^2. Without the ball
        (R infinite) delta^2 = tr(S^{-1} Sigma)/n, which for regression is the first-order error.

Control: Sigma from samples that are shuffled among the paths at each time, as if all samples were independent.

Brownian motion reflected in an interval, splines of degree 3 in space and 2 in time, delta = 0.2 (tests g - delta d_t g)
but for regression. Sources: arXiv 2509.02528 (the noise of the inequality); M. Wainwright, High-Dimensional Statistics,
Cambridge University Press 2019, sections 13.2-13.4 and 14.1 (critical radii).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure
from scipy.linalg import eigh, solve
from scipy.optimize import brentq

from fem_hjb import zoo
from fem_hjb._checks import FloatArray, IntArray, spawn_generators
from fem_hjb.assembly import System, assemble
from fem_hjb.constraints import EnergyBall
from fem_hjb.estimators import ESTIMATORS, Setting
from fem_hjb.forms import VALUE, Operator
from fem_hjb.gram import Located, operator_rows
from fem_hjb.measures import empirical_measure, law_measure
from fem_hjb.plotting import STYLES
from fem_hjb.population import yardstick
from fem_hjb.problem import ControlProblem
from fem_hjb.sde import Paths, sample_paths
from fem_hjb.spaces import Space
from fem_hjb.trials import Claim, Trial, fitted_slope
from fem_hjb.variational import solve_system


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """classes : (time cells, cells) of the first series.  rich : of the balls.  radii : R relative to |f_bar|_E.

    paths, ball_paths : n of the two series.  sigma_paths : from which Sigma is estimated.  observations : K.
    """

    estimators: tuple[str, ...] = ("generator", "weak", "increment", "regression")
    ball_estimators: tuple[str, ...] = ("generator", "regression")
    classes: tuple[tuple[int, int], ...] = ((2, 3), (4, 4), (4, 8))
    rich: tuple[int, int] = (8, 16)
    radii: tuple[float, ...] = (1.0, 2.0)
    paths: tuple[int, ...] = (500, 1000, 2000, 4000)
    ball_paths: tuple[int, ...] = (25, 50, 100, 200, 400, 800, 1600)
    sigma_paths: int = 4000
    observations: int = 64
    delta: float = 0.2
    seeds: int = 40
    seed: int = 1


QUICK = Config(
    estimators=("generator", "regression"),
    classes=((2, 3), (4, 6)),
    rich=(4, 12),
    radii=(1.0,),
    paths=(500, 1500),
    ball_paths=(50, 200, 800),
    sigma_paths=2000,
    observations=32,
    seeds=16,
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


def run(config: Config) -> Trial:
    """One row per estimator, class, ball and number of paths; root mean squares over the seeds, relative to |f*|."""
    started = time.perf_counter()
    problem = zoo.get("reflected", dim=1)
    rows: list[tuple[Any, ...]] = []
    for series, classes, estimators, radii, sizes in (
        ("class", config.classes, config.estimators, (np.inf,), config.paths),
        ("ball", (config.rich,), config.ball_estimators, config.radii, config.ball_paths),
    ):
        for time_cells, cells in classes:
            space = Space(problem, cells=cells, time_cells=time_cells, element="B3", time_smooth=True)
            for estimator in estimators:
                for found in _compared(config, problem, space, estimator, radii, sizes):
                    rows.append((series, estimator, time_cells, cells, *found))
    return Trial(
        name="critical-radius",
        title=str(__doc__).splitlines()[0],
        config=config,
        columns=_COLUMNS,
        rows=tuple(rows),
        claims=tuple(_claims(config, rows)),
        seconds=time.perf_counter() - started,
    )


def _compared(
    config: Config,
    problem: ControlProblem,
    space: Space,
    estimator: str,
    radii: tuple[float, ...],
    sizes: tuple[int, ...],
) -> Iterator[tuple[float, ...]]:
    """Radius, n, observed with its band, predicted, predicted from shuffled samples, predicted without the ball."""
    delta = config.delta if ESTIMATORS[estimator].weighted else 0.0
    # The sums over increments are exact in the mean but for O(dt); those over points are what the law gives there.
    times = None if estimator == "increment" else np.linspace(0.0, problem.horizon, config.observations + 1)
    law = law_measure(problem, space, times=times)
    system = assemble(problem, law, space, estimator=estimator, delta=delta)
    measuring = yardstick(problem, law, space, delta=config.delta)
    system, size = replace(system, energy=measuring.metric), measuring.size
    form, energy = system.form.toarray(), system.energy.toarray()
    unbounded = solve_system(system, smoothing=0.0).coefficients.ravel()
    length = float(np.sqrt(unbounded @ energy @ unbounded))
    streams = spawn_generators(config.seed, 1 + config.seeds * len(sizes))
    others = sample_paths(problem, n=config.sigma_paths, steps=config.observations, rng=streams[0])
    samples = [
        [
            sample_paths(problem, n=n, steps=config.observations, rng=stream)
            for stream in streams[1 + k * config.seeds : 1 + (k + 1) * config.seeds]
        ]
        for k, n in enumerate(sizes)
    ]
    systems = [
        [
            replace(assemble(problem, paths, space, estimator=estimator, delta=delta), energy=measuring.metric)
            for paths in some
        ]
        for some in samples
    ]
    for relative in radii:
        ball = None if np.isinf(relative) else EnergyBall(relative * length)
        center = unbounded if ball is None else solve_system(system, constraint=ball, smoothing=0.0).coefficients.ravel()
        covariances = [np.cov(_noise(system, others, center, rng), rowvar=False) for rng in (None, streams[0])]
        metric = energy if ball is None else (form + form.T) / 2
        for n, drawn in zip(sizes, systems, strict=True):
            errors = [
                solve_system(one, constraint=ball, smoothing=0.0).coefficients.ravel() - center for one in drawn
            ]
            distances = np.sqrt([error @ metric @ error for error in errors])
            if ball is None:
                predictions = [_first_order(form, energy, sigma / n) for sigma in covariances]
                predictions.append(predictions[0])
            else:
                predictions = [_critical(metric, energy, sigma / n, relative * length) for sigma in covariances]
                predictions.append(_critical(metric, energy, covariances[0] / n, np.inf))
            observed = [np.sqrt(np.mean(distances**2)), *np.quantile(distances, (0.1, 0.9))]
            yield (relative, n, *(float(number) / size for number in (*observed, *predictions)))


def _noise(system: System, paths: Paths, c: FloatArray, shuffle: np.random.Generator | None) -> FloatArray:
    """w_i (n, N) of each path at the function with coefficients c.

    shuffle : assigns the samples of each time, and the terminal ones, to paths anew.
    """
    setting = Setting(problem=system.problem, space=system.space, gauge=system.gauge, delta=system.delta)
    measure = empirical_measure(system.problem, paths, n=1)
    terms = ESTIMATORS[system.estimator].terms(setting, measure)
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
    end = Located.of(space, np.full(n, paths.t[-1]), measure.terminal_x)
    misfit = system.gauge.terminal_f(system.problem, measure.terminal_x) - applied(end, VALUE)
    add(end, owners[:, -1], VALUE, misfit)
    return total


def _first_order(form: FloatArray, energy: FloatArray, covariance: FloatArray) -> float:
    """sqrt(tr(E B^{-1} Sigma B^{-T}))."""
    half = solve(form, covariance)
    return float(np.sqrt(np.trace(energy @ solve(form, half.T))))


def _critical(metric: FloatArray, energy: FloatArray, covariance: FloatArray, radius: float) -> float:
    """The delta > 0 with delta^4 = sum_j u_j' Sigma u_j min(delta^2 / lambda_j, R^2)."""
    eigenvalues, vectors = eigh(metric, energy)
    variances = np.einsum("ij,ik,kj->j", vectors, covariance, vectors)
    largest = float(np.sqrt((variances / eigenvalues).sum()))
    if np.isinf(radius):
        return largest

    def excess(log_delta: float) -> float:
        square = np.exp(2 * log_delta)
        return float(np.log(variances @ np.minimum(square / eigenvalues, radius**2)) - 2 * np.log(square))

    top = float(np.log(largest))
    return float(np.exp(brentq(excess, top - 30.0, top + 1e-9)))
