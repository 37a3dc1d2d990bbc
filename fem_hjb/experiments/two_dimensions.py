r"""Self-mitigation, regression and observation times in two dimensions: no closed form, boxes and simplices.

What `self-mitigation`, `harder-than-regression` and `observation-times` show on a line, on `mixture-diffusion` (exact)
and on `double-well-2d-coupled` (no closed form: the value is from `solve`, the law from `fokker_planck`), in classes of

    B3    splines of degree 3 on squares: "generator" against "regression";
    P2    on triangles, where second derivatives are not to be had: "corrected" and "increment" against "regression".

Errors are relative, in the energy norm under the law.

    class   n paths, ever finer cells. The error of "generator" is that of the class, at most 1.4 times, and its noise
            over sqrt(N) falls with it (exponent at least 1 - 1/2p, see `self-mitigation`); that of "regression" does
            not. On triangles the noise of "corrected" is less than half of that of regression.
    paths   n grows. Regression in the best class of the ladder for each n: with the noise of gradients, of the order
            h^{-d-2}/n, n^{-p/(2p+d+2)} = n^{-0.3} for p = 3. "generator" in the finest class from the start.
    doob    regression with a gradient penalty, its weight by cross-validation over the paths of the first seed (see
            `learning.matching`), is in every comparison with regression. It damps noise of gradients alone.
    times   n = infinity, paths seen at K times: by left-point sums 1/K, for "generator" on squares and "weak" on
            triangles; by trapezoids 1/K^2 on squares, where d_t f is continuous. Drifts of up to 50 carry the law of
            the double well from its start, so that more times are needed to see it: `observations_of_wells`. For the
            same reason the rule that stands for infinitely many has Gauss points in cells of time 16 times as fine.

Controls: a wrong drift; regression in the finest class; "increment", whose noise is not less than half; trapezoids
whose ends weigh in full, and on triangles, whose classes have jumps of d_t f.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.experiments.observation_times import with_end
from fem_hjb.experiments.trial import Claim, Trial, check_seeds, conclude, fitted_slope
from fem_hjb.learning.estimators import Estimator
from fem_hjb.learning.matching import choose_penalty
from fem_hjb.learning.measures import law_measure
from fem_hjb.learning.population import Yardstick, yardstick
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import Data, assemble
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem, Drift
from fem_hjb.reference import fokker_planck
from fem_hjb.reference.solve import solve
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """problems : of the zoo.  classes, triangles : (cells per axis, time cells), finer and finer, of B3 and P2.

    n, seeds : of the series "class".  sizes : n of the series "paths".  steps : of paths.
    observations, observations_of_wells : K.  seen : the class of the series "times".
    rtol : of value and law, where these are computed.
    seed : of the first paths.
    """

    problems: tuple[str, ...] = ("mixture-diffusion", "double-well-2d-coupled")
    classes: tuple[tuple[int, int], ...] = ((4, 2), (6, 3), (8, 4), (10, 5))
    triangles: tuple[tuple[int, int], ...] = ((4, 2), (6, 3), (8, 4))
    n: int = 2000
    seeds: int = 8
    sizes: tuple[int, ...] = (500, 2000, 8000)
    steps: int = 32
    observations: tuple[int, ...] = (32, 64, 128)
    observations_of_wells: tuple[int, ...] = (256, 512, 1024)
    seen: tuple[int, int] = (4, 2)
    rtol: float = 1e-4
    seed: int = 0


QUICK = Config(
    problems=("mixture-diffusion",),
    classes=((3, 2), (5, 2)),
    triangles=((4, 2),),
    n=500,
    seeds=2,
    sizes=(125, 500),
    steps=16,
    observations=(16, 32),
    seen=(3, 2),
    rtol=1e-3,
)

_COLUMNS = ("series", "problem", "element", "estimator", "cells", "dofs", "n", "K", "approximation", "noise", "error")
_HALF_WIDTH = {"mixture-diffusion": 3.2, "double-well-2d-coupled": 2.2}
_WRONG = "generator, wrong drift"
_LABELLED = ("regression", "doob")
_SQUARES, _TRIANGLES = ("generator", *_LABELLED, _WRONG), ("corrected", "increment", *_LABELLED)
_DEGREE, _BAND, _SHARE, _HALF = 3, 0.15, 1.4, 0.5
_REGRESSION = _DEGREE / (2 * _DEGREE + 4)
_RULES = ("left-point", "trapezoidal", "ends in full")
_OBSERVED = (("B3", "generator"), ("P2", "weak"))
_FINER = 16


Case = tuple[str, tuple[int, int], str, int]
"""Element, class, estimator and n."""


def _classes(config: Config) -> list[Case]:
    """Those of the series "class"."""
    squares = [("B3", size, name, config.n) for size in config.classes for name in _SQUARES]
    return squares + [("P2", size, name, config.n) for size in config.triangles for name in _TRIANGLES]


def _sizes(config: Config) -> list[Case]:
    """Those of the series "paths"."""
    ladder = [("B3", size, name, n) for n in config.sizes for name in _LABELLED for size in config.classes]
    return ladder + [("B3", config.classes[-1], "generator", n) for n in config.sizes]


def _known(name: str, rtol: float, step: Callable[[], None]) -> ControlProblem:
    """The problem with value and law, computed where there is no formula."""
    problem = zoo.get(name, dim=2)
    if problem.exact is None:
        problem = replace(problem, exact=solve(problem, rtol=rtol, verify=False))
    step()
    if problem.marginal is None:
        problem = replace(problem, marginal=fokker_planck.solve(problem, rtol=rtol).marginal)
    step()
    return problem


def _space(problem: ControlProblem, element: str, size: tuple[int, int]) -> Space:
    half = _HALF_WIDTH[problem.name]
    how: dict[str, Any] = {"time_degree": _DEGREE, "time_smooth": True} if element == "B3" else {}
    box = Box([-half] * 2, [half] * 2)
    return Space(problem, cells=size[0], time_cells=size[1], element=element, box=box, **how)


@final
@dataclass(frozen=True, eq=False)
class _WrongDrift:
    of: Drift

    def __call__(self, t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(self.of(t, x)) + np.sin(3.0 * x)


def run(config: Config, tell: Progress) -> Trial:
    """One row per class, estimator, number of paths, or number of times."""
    check_seeds(config.seeds)
    started = time.perf_counter()
    finer, more = _classes(config), _sizes(config)
    cases = dict.fromkeys([*finer, *more])
    each = len(cases) * config.seeds + 2
    seen = len(_OBSERVED) * len(_RULES) * sum(len(_times(config, name)) for name in config.problems)
    step = steps_of(tell, each * len(config.problems) + seen)
    rows: list[tuple[Any, ...]] = []
    for name in config.problems:
        problem = _known(name, config.rtol, step)
        measures = {key: _yardstick(problem, *key) for key in dict.fromkeys(case[:2] for case in finer)}
        found = {case: _learned(config, problem, measures[case[:2]], *case[2:], step) for case in cases}
        for series, chosen in (("class", finer), ("paths", _best(more, found))):
            for case in chosen:
                element, size, estimator, n = case
                dofs = measures[element, size].space.n_dofs
                rows.append((series, name, element, estimator, size[0], dofs, n, 0, *found[case]))
        for element, estimator in _OBSERVED:
            rows += _seen(config, problem, element, estimator, step)
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _yardstick(problem: ControlProblem, element: str, size: tuple[int, int]) -> Yardstick:
    space = _space(problem, element, size)
    return yardstick(problem, law_measure(problem, space), space)


def _learned(
    config: Config, problem: ControlProblem, measure: Yardstick, estimator: str, n: int, step: Callable[[], None]
) -> tuple[float, float, float]:
    """Approximation error, noise |f_hat - mean|, and error, root mean squares over the seeds."""
    believed = replace(problem, drift=_WrongDrift(problem.drift)) if estimator == _WRONG else problem
    learned: list[FloatArray] = []
    name: str | Estimator = "generator" if estimator == _WRONG else estimator
    for seed in range(config.seeds):
        paths = sample_paths(problem, n=n, steps=config.steps, rng=config.seed + seed)
        if name == "doob":  # on the first paths, for all of them
            name = choose_penalty(problem, paths, measure.space, outside="drop")
        learned.append(_solved(believed, paths, measure.space, name))
        step()
    spread = sum(measure.norm(c) ** 2 for c in learned - np.mean(learned, axis=0)) / (config.seeds - 1)
    error = float(np.sqrt(np.mean([measure.distance(c) ** 2 for c in learned])))
    return measure.approximation / measure.size, float(np.sqrt(spread)) / measure.size, error / measure.size


def _solved(problem: ControlProblem, data: Data, space: Space, estimator: str | Estimator, **how: Any) -> FloatArray:
    system = assemble(problem, data, space, estimator=estimator, outside="drop")
    return np.ravel(solve_system(system, figures=False, **how).coefficients)


def _best(cases: list[Case], found: Mapping[Case, tuple[float, float, float]]) -> Iterator[Case]:
    """For each estimator and n, the class with the least error."""
    for estimator, n in dict.fromkeys(case[2:] for case in cases):
        yield min((case for case in cases if case[2:] == (estimator, n)), key=lambda case: found[case][-1])


def _times(config: Config, name: str) -> tuple[int, ...]:
    return config.observations_of_wells if name.startswith("double-well") else config.observations


def _seen(
    config: Config, problem: ControlProblem, element: str, estimator: str, step: Callable[[], None]
) -> Iterator[tuple[Any, ...]]:
    """Distances from the solution under the law of those under the law at K times."""
    measure = _yardstick(problem, element, config.seen)
    space, (cells, time_cells) = measure.space, config.seen
    finer = law_measure(problem, _space(problem, element, (cells, _FINER * time_cells)))
    limit = _solved(problem, finer, space, estimator, smoothing=0.0)
    for K in _times(config, problem.name):
        left = law_measure(problem, space, times=np.linspace(0.0, problem.horizon, K + 1))
        for rule in _RULES:
            data = left if rule == "left-point" else with_end(problem, left, K, 0.5 if rule == "trapezoidal" else 1.0)
            away = measure.norm(_solved(problem, data, space, estimator, smoothing=0.0) - limit) / measure.size
            step()
            best = measure.approximation / measure.size
            row = ("times", problem.name, element, f"{estimator}, {rule}", cells, space.n_dofs)
            yield (*row, np.inf, K, best, 0.0, away)


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    def table(*case: str) -> dict[str, FloatArray]:
        chosen = [row[4:] for row in rows if row[:4] == case]
        return dict(zip(_COLUMNS[4:], np.array(chosen, dtype=np.float64).T, strict=True))

    for name in config.problems:
        for estimator in _SQUARES:
            found = table("class", name, "B3", estimator)
            worst = float((found["error"] / found["approximation"])[-1])
            text = f"{name}, {estimator}, finest class: error over that of the class"
            yield Claim(text=text, value=worst, low=1.0, high=_SHARE, control=estimator != "generator")
        least = 1 - 0.5 / _DEGREE - _BAND
        for estimator, low, high in (
            ("generator", least, np.inf),
            ("regression", -_BAND, _BAND),
            ("regression", least, np.inf),
        ):
            found = table("class", name, "B3", estimator)
            slope = fitted_slope(found["approximation"], found["noise"] / np.sqrt(found["dofs"])).value
            text = f"{name}, {estimator}: exponent of noise per root of N in the error of the class"
            control = (estimator, low) == ("regression", least)
            yield Claim(text=text, value=slope, low=low, high=high, control=control)
        noise = {estimator: table("class", name, "P2", estimator)["noise"] for estimator in _TRIANGLES}
        for estimator in ("corrected", "increment"):
            worst = float((noise[estimator] / noise["regression"]).max())
            text = f"{name}, P2, {estimator}: noise over that of regression, largest"
            yield Claim(text=text, value=worst, low=0.0, high=_HALF, control=estimator == "increment")
        best, doob, finest = (table("paths", name, "B3", e)["error"] for e in (*_LABELLED, "generator"))
        slope = -fitted_slope(config.sizes, best).value
        text = f"{name}, regression, best class: exponent of the error in 1/n"
        yield Claim(text=text, value=slope, low=_REGRESSION - _BAND, high=_REGRESSION + _BAND)
        for estimator, errors in zip(_LABELLED, (best, doob), strict=True):
            text = f"{name}, n = {config.sizes[-1]}: error of {estimator} over generator's"
            yield Claim(text=text, value=float(errors[-1] / finest[-1]), low=1.5, high=np.inf)
        for element, estimator in _OBSERVED:
            for rule, order in zip(_RULES, (1, 2, 2), strict=True):
                found = table("times", name, element, f"{estimator}, {rule}")
                slope = -fitted_slope(found["K"], found["error"]).value
                text = f"{name}, {element}, {estimator}, {rule}: exponent of the error in 1/K"
                control = rule == _RULES[-1] or (element, rule) == ("P2", "trapezoidal")
                yield Claim(text=text, value=slope, low=order - _BAND, high=order + _BAND, control=control)


def figure(trial: Trial) -> Figure:
    """Errors against that of the class, against n, and against K; a row for each problem."""
    config = trial.config
    made = Figure(figsize=(12.0, 3.3 * len(config.problems)), layout="constrained")
    every = made.subplots(len(config.problems), 4, squeeze=False)
    styles = dict(zip(("generator", "regression", "corrected", "increment", "doob"), STYLES, strict=False))
    styles[_WRONG] = {**STYLES[0], "color": "0.6", "marker": "x"}
    for panels, name in zip(every, config.problems, strict=True):
        for panel, element, estimators in zip(panels, ("B3", "P2"), (_SQUARES, _TRIANGLES), strict=False):
            for estimator in estimators:
                where = {"series": "class", "problem": name, "element": element, "estimator": estimator}
                best, error, noise = (trial.column(key, **where) for key in ("approximation", "error", "noise"))
                panel.loglog(best, error, **styles[estimator], label=estimator)
                panel.loglog(best, noise, **{**styles[estimator], "linewidth": 0.5}, markersize=3)
            panel.loglog(best, best, color="0.7", linewidth=0.8, label="error of the class")
            panel.set(xlabel="approximation error", ylabel="error, noise (thin)", title=f"{name}, {element}")
            ticks_at(panel.xaxis, [float(f"{value:.2g}") for value in best])
        for estimator in (*_LABELLED, "generator"):
            where = {"series": "paths", "problem": name, "estimator": estimator}
            panels[2].loglog(trial.column("n", **where), trial.column("error", **where), **styles[estimator])
        panels[2].set(xlabel="paths $n$", ylabel="error", title="best class, finest class")
        ticks_at(panels[2].xaxis, config.sizes)
        for style, rule in zip(STYLES, _RULES, strict=False):
            for element, estimator in _OBSERVED:
                where = {"series": "times", "problem": name, "element": element, "estimator": f"{estimator}, {rule}"}
                look = style if element == "B3" else {**style, "markerfacecolor": "none"}
                found = trial.column("error", **where)
                panels[3].loglog(trial.column("K", **where), found, **look, label=f"{estimator}, {rule}")
        panels[3].set(xlabel="times $K$", ylabel="observation error", title="under the law")
        ticks_at(panels[3].xaxis, _times(config, name))
    shown = {label: line for panel in every[0] for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    made.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=7, fontsize="x-small")
    return made
