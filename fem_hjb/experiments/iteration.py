r"""The projected iteration converges geometrically to the empirical solution, and to f* down to the statistical floor.

From n trajectories f_hat solves the variational inequality B_n[f, g - f] >= l_n(g - f) in a set F, and the iteration

    f^{m+1} = P_F( f^m - gamma E_n^{-1} (B_n f^m - l_n) )

starts from f^0 = 0, without acceleration, with the step gamma that minimises rho = |I - gamma E_n^{-1} B_n|_{E_n}. Two
distances are shown:

    |f^m - f_hat|_{E_n} / |f_hat|_{E_n}      which falls by the factor rho per step at least, in any convex F,
    |f^m - f*|_E / |f*|_E                    which falls with it, as far as |f_hat - f*|_E: the floor, reached when the
                                             other has fallen below it; more steps learn nothing.

rho is a norm: the linear iteration attains it in its first step from the worst start, the right singular vector of
I - gamma E_n^{-1} B_n. From there or elsewhere, the factor per step tends to the spectral radius, which is smaller, as
the form is not symmetric. F: the whole class, or the functions of it below a bound, of which one cuts off f*.

The floor of the estimator "generator" is the error of the class, whatever n is, as its noise vanishes at f*; that of
"weak" falls with n. With tests g - delta d_t g, delta = 0.2, rho does not depend on the time mesh. With delta = 0 the
form is not coercive, for it hardly sees functions of time alone that vanish at 0 and T, which the norm does; no step is
certain to contract (rho = 1), and with gamma = 1/L^2, L the norm of the form, as many steps lead nowhere. Nor is it
coercive without the gauge, where running rewards are positive.

Brownian motion reflected in an interval, where samples visit every cell equally; splines of degree 3 in space and 2 in
time. Source: arXiv 2509.02528 (the iteration and its rate).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, final

import numpy as np
from matplotlib.figure import Figure
from scipy.linalg import eigh, eigvals, solve

from fem_hjb.experiments.trial import Claim, Trial, conclude
from fem_hjb.learning.constraints import Bounds
from fem_hjb.learning.inequality import VariationalInequality, diagnose
from fem_hjb.learning.measures import law_measure
from fem_hjb.learning.population import Yardstick, yardstick
from fem_hjb.learning.smoothing import default_smoothing
from fem_hjb.learning.solve_system import ReducedSystem, reduce_system
from fem_hjb.learning.solvers import direct
from fem_hjb.learning.system import System, assemble
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES
from fem_hjb.problems import zoo
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, spawn_generators
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """paths : series of both estimators, on the whole class with the first of time_cells.

    deltas, uppers, time_cells : all combinations, with the last of paths. The first delta is 0, the control; uppers are
    bounds 0 <= f <= upper, of which inf stands for the whole class.
    observations : K.  reward : what r is raised by, for the gauge.
    """

    paths: tuple[int, ...] = (100, 400, 1600, 6400)
    time_cells: tuple[int, ...] = (4, 8, 16)
    cells: int = 6
    deltas: tuple[float, ...] = (0.0, 0.2)
    uppers: tuple[float, ...] = (np.inf, 1.0, 0.9)
    observations: int = 256
    steps: int = 80
    seeds: int = 8
    seed: int = 1
    reward: float = 5.0


QUICK = Config(paths=(100, 800), time_cells=(4, 8), uppers=(np.inf, 0.9), observations=64, seeds=2)

_COLUMNS = (
    "estimator",
    "delta",
    "upper",
    "time cells",
    "paths",
    "step",
    "to f_hat",
    "to f_hat 10%",
    "to f_hat 90%",
    "to f*",
    "to f* 10%",
    "to f* 90%",
    "floor",
    "rho",
    "spectral radius",
    "largest factor",
    "factor from the worst start",
    "last factor",
)
_WORST = 1e4  # the norm of the worst start, relative to that of f_hat
_TAIL = 20  # steps from which a factor per step is read
_ROUNDING = 1e-8  # distances below, relative to |f_hat|, say nothing about factors
_TOO_LONG = 10.0


_Key = tuple[str, float, float, int, int]
"""Estimator, delta, upper, time cells, paths."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Course:
    """One run: distances (steps + 1,), and figures per run."""

    to_solution: FloatArray
    to_exact: FloatArray
    floor: float
    rho: float
    radius: float
    largest: float
    worst: float
    last: float
    too_long: float


def run(config: Config, tell: Progress) -> Trial:
    """One row per step, for each delta, set, time mesh and number of paths; medians over the seeds."""
    started = time.perf_counter()
    problem = zoo.get("reflected", dim=1)
    rows: list[tuple[Any, ...]] = []
    courses: dict[_Key, list[_Course]] = {}
    count = sum(1 + len(uppers) for kinds in _cases(config).values() for uppers in kinds.values())
    step = steps_of(tell, config.seeds * count + 4)  # a system is summed up, and solved in each set
    for (time_cells, n), kinds in _cases(config).items():
        space = _space(config, problem, time_cells)
        law = law_measure(problem, space)
        samples = [
            sample_paths(problem, n=n, steps=config.observations, rng=generator)
            for generator in spawn_generators(config.seed, config.seeds)
        ]
        for (estimator, delta), uppers in kinds.items():
            measure = yardstick(problem, law, space, delta=delta)
            systems: list[System] = []
            for paths in samples:
                systems.append(assemble(problem, paths, space, estimator=estimator, delta=delta))
                step()
            for upper in uppers:
                runs: list[_Course] = []
                for system in systems:
                    runs.append(_course(config, system, measure, upper))
                    step()
                courses[estimator, delta, upper, time_cells, n] = runs
                rows += _rows((estimator, delta, upper, time_cells, n), runs)
    return conclude(config, _COLUMNS, rows, _claims(config, courses, step), started)


def _cases(config: Config) -> dict[tuple[int, int], dict[tuple[str, float], tuple[float, ...]]]:
    """By time cells and paths: by estimator and delta: the bounds."""
    last, delta = config.paths[-1], config.deltas[-1]
    every = {("generator", d): config.uppers for d in config.deltas}
    cases = {(cells, last): every for cells in config.time_cells}
    series = {
        (config.time_cells[0], n): {(name, delta): (np.inf,) for name in ("generator", "weak")} for n in config.paths
    }
    return {key: {**series.get(key, {}), **cases.get(key, {})} for key in {**series, **cases}}


def _space(config: Config, problem: ControlProblem, time_cells: int) -> Space:
    return Space(problem, cells=config.cells, time_cells=time_cells, element="B3", time_smooth=True)


def _reduced(system: System, upper: float = np.inf) -> ReducedSystem:
    constraint = None if np.isinf(upper) else Bounds(0.0, upper)
    smoothing = default_smoothing(system.estimator, system.space)
    return reduce_system(system, constraint=constraint, smoothing=smoothing)


def _course(config: Config, system: System, measure: Yardstick, upper: float) -> _Course:
    reduced = _reduced(system, upper)
    inequality = reduced.inequality
    solution = direct(inequality, reduced.solve_constrained).coefficients
    figures = diagnose(inequality)
    size, gamma = inequality.norm(solution), figures.gamma or figures.norm**-2

    def distances(start: FloatArray, gamma: float) -> tuple[list[FloatArray], FloatArray]:
        iterates = [start]
        for _ in range(config.steps):
            iterates.append(inequality.step(iterates[-1], gamma))
        return iterates, np.array([inequality.norm(c - solution) for c in iterates]) / size

    iterates, to_solution = distances(np.zeros(inequality.size), gamma)
    worst, radius = _worst(inequality, gamma)
    begin = solution + _WORST * size * worst
    from_worst = _factors(distances(begin, gamma)[1])
    return _Course(
        to_solution=to_solution,
        to_exact=np.array([measure.distance(reduced.whole(c)) for c in iterates]) / measure.size,
        floor=measure.distance(reduced.whole(solution)) / measure.size,
        rho=figures.contraction,
        radius=radius,
        largest=_factors(to_solution).max(),
        worst=from_worst.max(),
        last=float(np.exp(np.log(from_worst[-_TAIL:]).mean())),
        too_long=_factors(distances(begin, _TOO_LONG * gamma)[1]).max(),
    )


def _factors(distances: FloatArray) -> FloatArray:
    """Of consecutive distances, as long as they are more than rounding."""
    kept = distances[: np.argmax(distances < _ROUNDING)] if (distances < _ROUNDING).any() else distances
    return np.asarray(kept[1:] / kept[:-1])


def _worst(inequality: VariationalInequality, gamma: float) -> tuple[FloatArray, float]:
    """The start, of norm 1, that the linear iteration shortens least in its first step; and its spectral radius."""
    energy, form = inequality.energy.toarray(), inequality.form.toarray()
    step = np.eye(inequality.size) - gamma * solve(energy, form, assume_a="pos")
    image = step.T @ energy @ step
    _, vectors = eigh((image + image.T) / 2, energy)
    return vectors[:, -1], float(np.abs(eigvals(step)).max())


def _rows(key: _Key, runs: list[_Course]) -> Iterator[tuple[Any, ...]]:
    figures = [float(np.median([getattr(one, name) for one in runs])) for name in ("floor", "rho", "radius")]
    figures += [float(np.median([getattr(one, name) for one in runs])) for name in ("largest", "worst", "last")]
    curves = [np.array([getattr(one, name) for one in runs]) for name in ("to_solution", "to_exact")]
    bands = np.concatenate([np.quantile(curve, (0.5, 0.1, 0.9), axis=0) for curve in curves])
    for step, numbers in enumerate(bands.T):
        yield (*key, step, *numbers.tolist(), *figures)


def _claims(config: Config, courses: dict[_Key, list[_Course]], step: Callable[[], None]) -> Iterator[Claim]:
    none, *others = config.deltas
    for delta in others:
        linear = [one for key, runs in courses.items() if key[1:3] == (delta, np.inf) for one in runs]
        every = [one for key, runs in courses.items() if key[1] == delta for one in runs]
        for text, low, values in (
            ("all sets: largest factor per step - rho", -1.0, [one.largest - one.rho for one in every]),
            ("linear, worst start: largest factor per step - rho", -0.02, [one.worst - one.rho for one in linear]),
        ):
            worst = max(values, key=lambda value: abs(value)) if low > -1 else max(values)
            yield Claim(text=f"delta = {delta:g}, {text}", value=float(worst), low=low, high=1e-6)
        yield Claim(
            text=f"delta = {delta:g}, linear, worst start: largest factor per step - rho, step 10 times too long",
            value=float(min(one.too_long - one.rho for one in linear)),
            low=-0.02,
            high=1e-6,
            control=True,
        )
        gap = max((one.last - one.radius for one in linear), key=abs)
        yield Claim(
            text=f"delta = {delta:g}, linear, worst start: factor of the last steps - spectral radius",
            value=float(gap),
            low=-0.05,
            high=0.05,
        )
    for delta in config.deltas:
        every = [one for key, runs in courses.items() if key[1] == delta for one in runs]
        reached = max((one.to_exact[-1] / one.floor for one in every), key=lambda ratio: abs(np.log(ratio)))
        yield Claim(
            text=f"delta = {delta:g}: |f^m - f*| / |f_hat - f*| after {config.steps} steps",
            value=float(reached),
            low=0.99,
            high=1.01,
            control=delta == none,
        )
        yield Claim(
            text=f"delta = {delta:g}: largest rho as time is refined",
            value=max(one.rho for one in every),
            low=0.0,
            high=0.97,
            control=delta == none,
        )
    for sign, text in ((1.0, "subtracted"), (-1.0, "added")):
        yield Claim(
            text=f"rewards raised by {config.reward:g}: coercivity with the gauge's constant {text}",
            value=_raised(config, sign, step),
            low=1e-3,
            high=1.0,
            control=sign < 0,
        )


def _raised(config: Config, sign: float, step: Callable[[], None]) -> float:
    """mu where r is raised by a constant, which the gauge takes out, or puts in twice."""
    problem = zoo.get("reflected", dim=1, running=config.reward)
    space = _space(config, problem, config.time_cells[0])
    paths = sample_paths(problem, n=config.paths[-1], steps=config.observations, rng=config.seed)
    arguments: dict[str, Any] = {"estimator": "generator", "delta": config.deltas[-1]}
    gauge = assemble(problem, paths, space, **arguments).gauge
    step()
    given = replace(gauge, running=sign * gauge.running)
    system = assemble(problem, paths, space, constants=given, **arguments)
    step()
    return diagnose(_reduced(system).inequality).coercivity


def figure(trial: Trial) -> Figure:
    """Distances to f_hat and to f* against the step: both deltas, the sets, and the numbers of paths."""
    config = trial.config
    made = Figure(figsize=(12.0, 3.4), layout="constrained")
    first, second, third = made.subplots(1, 3)
    cells, n, delta = config.time_cells[0], config.paths[-1], config.deltas[-1]

    def draw(panel: Any, style: dict[str, Any], name: str, label: str, **where: Any) -> None:
        where = {"estimator": "generator", "upper": np.inf, "time cells": cells, "paths": n, "delta": delta, **where}
        m, median = trial.column("step", **where), trial.column(name, **where)
        panel.semilogy(m, median, **style, markevery=10, markersize=4, label=label)
        low, high = trial.column(f"{name} 10%", **where), trial.column(f"{name} 90%", **where)
        panel.fill_between(m, low, high, color=style["color"], alpha=0.2, linewidth=0)

    pairs = list(product(config.deltas, config.time_cells))
    shown = [(d, k) for d, k in pairs if k in (config.time_cells[0], config.time_cells[-1])]
    for style, (d, k) in zip(STYLES, shown, strict=False):
        draw(first, style, "to f_hat", rf"$\delta = {d:g}$, {k} cells in time", **{"delta": d, "time cells": k})
    m = np.arange(config.steps + 1)
    where = {"estimator": "generator", "delta": delta, "upper": np.inf, "step": 0, "paths": n, "time cells": cells}
    rho = trial.column("rho", **where)[0]
    first.semilogy(m, rho**m, color="0.6", linewidth=1.0, label=rf"$\rho^m$, $\rho = {rho:.2f}$")
    for style, upper in zip(STYLES, config.uppers, strict=False):
        label = "whole class" if np.isinf(upper) else rf"$0 \leq f \leq {upper:g}$"
        draw(second, style, "to f_hat", label, upper=upper)
    ends = [(name, paths) for name in ("weak", "generator") for paths in (config.paths[0], n)]
    for style, (name, paths) in zip(STYLES, ends, strict=False):
        draw(third, style, "to f*", f"{name}, n = {paths}", estimator=name, paths=paths)
    for panel, label in zip(
        (first, second, third),
        (r"$|f^m - \hat f|\, /\, |\hat f|$", r"$|f^m - \hat f|\, /\, |\hat f|$", r"$|f^m - f^*|\, /\, |f^*|$"),
        strict=True,
    ):
        panel.set_xlabel("step $m$")
        panel.set_ylabel(label)
        panel.legend(fontsize="small")
    return made
