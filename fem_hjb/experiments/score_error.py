r"""A wrong score enters f and the policy to first order, by the equation or by the paths, but not what needs no model.

Reward tilting of a diffusion model of a Gaussian mixture (`mixture_diffusion`), dX = beta [X/2 + score] dt +
beta^{1/2} dB, beta = 2, whose score is off by size times h:

    score = grad log p_t + size h,   h = sin(2x + 1/2),   b_size = b + beta size h.

    believed    paths of the true process, and an equation with the wrong score: in b and, for "weak", in its current
                velocity u = b - Lambda grad log p_t / 2, too, where half of the error cancels.
    drift only  the same with the right score in u: nothing cancels.
    sampled     paths of the process with b_size as well, as when the model is all there is.

f_size, the value of the wrong problem, is known (`solve`), and so is how far it is from f*: of first order in size, by
d_t g + b grad g + Lambda/2 g'' = -beta size h grad f*, g_T = 0. What enters is |f_hat_size - f_hat_0|, learned from the
same random numbers, in the norm of int E f^2 dt + E f_T^2; of the policy in L2(p_t), where |x| < 2.8, the largest over
times up to 3T/4. Each is relative, and the median over the seeds ("corrected" loses its coercivity with a seed now and
then). Over that of f_size it is a ratio of 1 where the wrong equation is what is solved. "increment", "regression"
and "doob", which is regression with a gradient penalty (its weight by cross-validation over the first paths of the true
process), use paths and rewards alone: what is believed does not enter, what is sampled does.

Controls: "generator" where a wrong score is believed is not unmoved; the whole error of "increment" does not grow with
size there; and of "weak" with the right score in u, half does not cancel.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.experiments.trial import Claim, Trial, conclude, fitted_slope
from fem_hjb.learning.estimators import Estimator
from fem_hjb.learning.matching import choose_penalty
from fem_hjb.learning.measures import Measure, empirical_measure, law_measure
from fem_hjb.learning.population import Yardstick, yardstick
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import MarginalLaw
from fem_hjb.problems.problem import ControlProblem, Drift, ValueFunction
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """sizes : of the error of the score, rising.  n, steps, seeds : paths, their time steps, repetitions.

    cells, time_cells : of the class, splines of degree 3.  rtol : of `solve`.  seed : of the first paths.
    """

    sizes: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4)
    n: int = 4000
    steps: int = 64
    seeds: int = 5
    cells: int = 12
    time_cells: int = 6
    rtol: float = 1e-7
    seed: int = 0


QUICK = Config(sizes=(0.05, 0.2), n=500, steps=32, seeds=2, cells=6, time_cells=2, rtol=1e-4)

BELIEVED, DRIFT_ONLY, SAMPLED = "believed", "drift only", "sampled"
_COLUMNS = ("where", "estimator", "size", "f", "policy", "f ratio", "policy ratio", "whole error of f")
_USE_MODEL, _MODEL_FREE = ("generator", "residual", "corrected", "weak"), ("increment", "regression", "doob")
_BETA, _HALF_WIDTH, _REACH, _TIMES = 2.0, 3.0, 2.8, (0.0, 0.25, 0.5, 0.75)
_BAND, _RATIO = 0.15, 0.1
_UNMOVED = 1e-12


def _shift(t: Any, x: FloatArray) -> FloatArray:
    return np.asarray(np.sin(2.0 * x + 0.5))


def _wrong_drift(t: Any, x: FloatArray, *, drift: Drift, size: float) -> FloatArray:
    return np.asarray(drift(t, x)) + _BETA * size * _shift(t, x)


def _problem() -> ControlProblem:
    data: dict[str, Any] = {"means": [[-0.4], [0.6]], "covariances": [[[0.2]], [[0.25]]], "beta": _BETA}
    return zoo.get("mixture-diffusion", dim=1, reward="log-mixture", target=1.0, **data)


def _wrong(problem: ControlProblem, size: float) -> ControlProblem:
    return replace(problem, drift=partial(_wrong_drift, drift=problem.drift, size=size), exact=None)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Judge:
    """The norms by which differences are taken, each relative to that of the solution."""

    problem: ControlProblem
    law: Measure
    measure: Yardstick
    penalised: Estimator

    def values(self, of: ValueFunction, less: ValueFunction) -> float:
        """|f - f'|, of functions that need not be in the class, and agree at T."""
        t, x, gauge = self.law.t, self.law.x, self.measure.gauge
        away = gauge.u(t, x, of.value(t, x)) - gauge.u(t, x, less.value(t, x))
        return float(np.sqrt(self.law.weights @ away**2)) / self.measure.size

    def policies(self, of: ValueFunction, less: ValueFunction) -> float:
        away, size = [], []
        for t in _TIMES:
            x, weights = cast(MarginalLaw, self.problem.marginal)(t).quadrature(32)
            near = np.abs(x[:, 0]) < _REACH
            x, weights = x[near], weights[near]
            slopes = (of.gradient(t, x) - less.gradient(t, x))[:, 0]
            away.append(weights @ slopes**2)
            size.append(weights @ cast(ValueFunction, self.problem.exact).gradient(t, x)[:, 0] ** 2)
        return float(np.sqrt(max(away) / max(size)))


def run(config: Config, tell: Progress) -> Trial:
    """One row per estimator, size of the error, and where it is."""
    started = time.perf_counter()
    problem = _problem()
    how: dict[str, Any] = {"cells": config.cells, "time_cells": config.time_cells, "time_smooth": True}
    space = Space(problem, element="B3", time_degree=3, box=Box([-_HALF_WIDTH], [_HALF_WIDTH]), **how)
    law = law_measure(problem, space)
    first = sample_paths(problem, n=config.n, steps=config.steps, rng=config.seed)
    judge = _Judge(
        problem=problem,
        law=law,
        measure=yardstick(problem, law, space, norm="mass"),
        penalised=choose_penalty(problem, first, space, outside="drop"),
    )
    cases = [(where, name) for where in (BELIEVED, SAMPLED) for name in (*_USE_MODEL, *_MODEL_FREE)]
    cases.append((DRIFT_ONLY, "weak"))
    count = len(cases) * config.seeds * (len(config.sizes) + 1)
    step = steps_of(tell, count + len(config.sizes))
    exact, expected = cast(ValueFunction, problem.exact), []
    for size in config.sizes:
        moved = solve(_wrong(problem, size), rtol=config.rtol, verify=False)
        expected.append((judge.values(moved, exact), judge.policies(moved, exact)))
        step()
    rows = [row for case in cases for row in _rows(config, judge, space, case, expected, step)]
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _rows(
    config: Config,
    judge: _Judge,
    space: Space,
    case: tuple[str, str],
    expected: list[tuple[float, float]],
    step: Callable[[], None],
) -> Iterator[tuple[Any, ...]]:
    """Medians over the seeds, for each size."""
    learned: dict[float, list[Solution]] = {}
    for size in (0.0, *config.sizes):
        learned[size] = []
        for seed in range(config.seeds):
            learned[size].append(_learned(config, judge, space, case, size, config.seed + seed))
            step()
    for size, (of_f, of_policy) in zip(config.sizes, expected, strict=True):
        found = []
        for one, base in zip(learned[size], learned[0.0], strict=True):
            c = np.asarray(one.coefficients)
            moved = judge.measure.norm(c - base.coefficients)
            found.append((moved, judge.policies(one, base), judge.measure.distance(c)))
        f, policy, whole = np.median(found, axis=0).tolist()
        f, whole = f / judge.measure.size, whole / judge.measure.size
        yield (*case, size, f, policy, f / of_f, policy / of_policy, whole)


def _learned(config: Config, judge: _Judge, space: Space, case: tuple[str, str], size: float, seed: int) -> Solution:
    (where, estimator), problem = case, judge.problem
    wrong = _wrong(problem, size)
    paths = sample_paths(wrong if where == SAMPLED else problem, n=config.n, steps=config.steps, rng=seed)
    data: Any = paths
    if estimator == "weak":
        points = empirical_measure(problem, paths)
        believed = np.empty_like(points.x)
        for t in paths.t[:-1].tolist():
            here = points.t == t
            believed[here] = cast(MarginalLaw, problem.marginal)(t).score(points.x[here])
        data = replace(points, score=believed + (where != DRIFT_ONLY) * size * _shift(points.t, points.x))
    how = judge.penalised if estimator == "doob" else estimator
    return solve_system(assemble(wrong, data, space, estimator=how, outside="drop"), figures=False)


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    def column(name: str, *case: str) -> FloatArray:
        return np.array([row[_COLUMNS.index(name)] for row in rows if row[:2] == case])

    first_order = [(BELIEVED, name) for name in _USE_MODEL] + [(SAMPLED, name) for name in (*_USE_MODEL, *_MODEL_FREE)]
    for case in first_order:
        for name in ("f", "policy"):
            slope, text = (
                fitted_slope(config.sizes, column(name, *case)).value,
                f"{case[0]}, {case[1]}: exponent of {name}",
            )
            yield Claim(text=text, value=slope, low=1 - _BAND, high=1 + _BAND)
    slope = fitted_slope(config.sizes, column("whole error of f", BELIEVED, "increment")).value
    text = "believed, increment: exponent of its whole error"
    yield Claim(text=text, value=slope, low=1 - _BAND, high=1 + _BAND, control=True)
    for name in (*_MODEL_FREE, "generator"):
        moved = float(max(column(key, BELIEVED, name).max() for key in ("f", "policy")))
        text = f"believed, {name}: what enters, largest"
        yield Claim(text=text, value=moved, low=0.0, high=_UNMOVED, control=name == "generator")
    for case, ratio, control in (
        ((BELIEVED, "generator"), 1.0, False),
        ((BELIEVED, "residual"), 1.0, False),
        ((BELIEVED, "corrected"), 1.0, False),
        ((SAMPLED, "increment"), 1.0, False),
        ((BELIEVED, "weak"), 0.5, False),
        ((DRIFT_ONLY, "weak"), 0.5, True),
    ):
        value, text = float(column("f ratio", *case)[-1]), f"{case[0]}, {case[1]}: f over that of the wrong problem"
        yield Claim(text=text, value=value, low=ratio - _RATIO, high=ratio + _RATIO, control=control)


def figure(trial: Trial) -> Figure:
    """What enters f and the policy, where a wrong score is believed and where it is sampled too."""
    made = Figure(figsize=(9.0, 6.0), layout="constrained")
    panels = made.subplots(2, 2)
    sizes = np.array(trial.config.sizes)
    grey = {**STYLES[0], "color": "0.5", "marker": "x"}
    styles = [*STYLES[:5], grey, {**grey, "color": "0.2", "marker": "*", "linestyle": ":"}]
    for row, where in zip(panels, (BELIEVED, SAMPLED), strict=True):
        for panel, name in zip(row, ("f", "policy"), strict=True):
            for style, estimator in zip(styles, (*_USE_MODEL, *_MODEL_FREE), strict=True):
                found = trial.column(name, where=where, estimator=estimator)
                if found.all():
                    panel.loglog(sizes, found, **style, markersize=4, label=estimator)
            if where == BELIEVED:
                found = trial.column(name, where=DRIFT_ONLY, estimator="weak")
                panel.loglog(sizes, found, **styles[3], markersize=4, markerfacecolor="none", label="weak, right score")
                panel.plot([], [], " ", label="increment, regression, doob: 0")
            panel.set(xlabel="size of the error of the score", ylabel=f"{name}: what enters, relative", title=where)
            ticks_at(panel.xaxis, sizes)
            panel.legend(fontsize="x-small")
    return made
