r"""Meshes, splines and learned solutions against Riccati's equations in one, two and three dimensions.

`lq`: linear drift, its matrix A not symmetric in d > 1, full Lambda, quadratic rewards; v = -x'Px/2 + c with P from

    P' = -A'P - PA - Q + P Lambda P/alpha,   P(T) = R     (Fleming and Rishel, 1975, section VI.5).

Nothing here solves for v, of which a fitted quadratic would be exact: f = exp(v/alpha) is a Gaussian in x.

    mesh    `solve_on_mesh` with exact boundary values, so that no truncation hides the order of the elements. f and
            grad f as they are, in L2(p_t), have orders p + 1 and p; the policy is from recovered gradients, hence of
            order p at least. The largest over t = 0 and T/2, relative.
    law     splines of degree 3 in space and time, under the law in a box ("generator"), in the energy norm: order 3.
    paths   the same from n trajectories, with the package's own smoothing: as good as the class.
    noise   "weak" in one small class, whose noise does not vanish at f*: n^{-1/2}. The root mean square over seeds of
            |f_hat - mean|_E, relative to |f*|_E.

The control: Riccati's equation with A transposed. It has the same P in d = 1, and for a symmetric A.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.experiments.trial import Claim, Trial, check_seeds, conclude, fitted_slope
from fem_hjb.learning.measures import law_measure
from fem_hjb.learning.population import yardstick
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import LinearQuadratic
from fem_hjb.problems.laws import Gaussian, MarginalLaw
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """meshes : (d, degree, all cells per axis).  law, paths : (d, all cells per axis); half as many in time.

    n : of the series "paths", per dimension of it.  noise : (d, all n).  steps : K of paths.  seed : of the first ones.
    seeds : of the series "noise".  repeats : of "paths".
    """

    meshes: tuple[tuple[int, int, tuple[int, ...]], ...] = (
        (1, 1, (32, 64, 128)),
        (1, 2, (32, 48, 64)),
        (1, 3, (32, 48, 64)),
        (2, 1, (24, 32, 48, 64)),
        (2, 2, (16, 24, 32, 48)),
        (2, 3, (24, 32, 40)),
        (3, 1, (12, 16, 24)),
        (3, 2, (8, 12, 16)),
    )
    law: tuple[tuple[int, tuple[int, ...]], ...] = ((1, (24, 32, 48, 64)), (2, (8, 12, 16)))
    paths: tuple[tuple[int, tuple[int, ...]], ...] = ((1, (6, 8, 10, 12)), (2, (4, 6, 8)))
    n: tuple[int, ...] = (16_000, 32_000)
    noise: tuple[tuple[int, tuple[int, ...]], ...] = (
        (1, (500, 2000, 8000)),
        (2, (2000, 8000, 32_000)),
        (3, (8000, 16_000, 32_000)),
    )
    steps: int = 16
    seeds: int = 12
    repeats: int = 2
    seed: int = 0


QUICK = Config(
    meshes=((1, 3, (32, 48)), (2, 2, (24, 32)), (3, 2, (6, 8))),
    law=((1, (24, 48)),),
    paths=((1, (6, 8, 10)), (2, (4, 6))),
    n=(8000, 2000),
    noise=((1, (500, 2000)),),
    repeats=1,
)

_COLUMNS = ("series", "d", "class", "cells", "n", "approximation", "error", "gradient", "policy", "wrong Riccati")
_BAND, _HALF_BAND = 0.15, 0.1
_SHARE = 1.4  # of the approximation error, below which learned errors are
_HALF_WIDTH = {"mesh": 3.0, "law": 3.0, "paths": 2.5, "noise": 2.1}  # of the box; the law's deviations are 0.7
_NONE = "-"


def _box(series: str, d: int) -> Box:
    return Box([-_HALF_WIDTH[series]] * d, [_HALF_WIDTH[series]] * d)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Case:
    """The problem in so many dimensions, its value, and the wrong one, by A transposed."""

    problem: ControlProblem
    exact: LinearQuadratic
    wrong: LinearQuadratic


def _case(d: int) -> _Case:
    problem = zoo.get("lq", dim=d)
    A, _ = cast(LinearDrift, problem.drift).coefficients
    wrong = zoo.get("lq", dim=d, A=A.T).exact
    return _Case(problem=problem, exact=cast(LinearQuadratic, problem.exact), wrong=cast(LinearQuadratic, wrong))


def run(config: Config, tell: Progress) -> Trial:
    """One row per class and mesh, or number of paths."""
    check_seeds(config.seeds)
    started = time.perf_counter()
    learned = sum(len(cells) for _, cells in config.law) * 2
    learned += sum(len(cells) for _, cells in config.paths) * (1 + config.repeats)
    noisy = sum(len(every) for _, every in config.noise) * config.seeds
    step = steps_of(tell, 3 * sum(len(cells) for _, _, cells in config.meshes) + learned + noisy)
    rows: list[tuple[Any, ...]] = []
    for d, degree, ladder in config.meshes:
        for cells in ladder:
            rows.append(("mesh", d, f"P{degree}", cells, np.inf, _NONE, *_on_mesh(_case(d), degree, cells, step)))
    for d, ladder in config.law:
        rows += [_learned(config, "law", d, cells, 0, step) for cells in ladder]
    for (d, ladder), n in zip(config.paths, config.n, strict=True):
        rows += [_learned(config, "paths", d, cells, n, step) for cells in ladder]
    for d, every in config.noise:
        rows += _noise(config, d, every, step)
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _on_mesh(case: _Case, degree: int, cells: int, step: Callable[[], None]) -> tuple[float, ...]:
    """Errors of f, grad f and the policy, and that of f against the wrong value."""
    problem = case.problem
    how: dict[str, Any] = {"box": _box("mesh", problem.dim), "boundary": case.exact.value, "steps": cells}
    solution = solve_on_mesh(problem, element=f"P{degree}", cells=cells, **how)
    step()
    found = []
    for t in (0.0, problem.horizon / 2):
        found.append(_errors(solution, case, t))
        step()
    return tuple(np.max(found, axis=0).tolist())


def _errors(solution: Solution, case: _Case, t: float) -> list[float]:
    """As above at one time, by a rule on the cells: piecewise polynomials are smooth in them alone."""
    space, problem, c = solution.space, case.problem, solution.coefficients
    rule = space.spatial.quadrature(2 * space.spatial.degree + 2)
    x = rule.x.reshape(-1, problem.dim)
    volumes = np.broadcast_to(rule.weights * rule.det, rule.x.shape[:2]).ravel()
    weights = volumes * np.exp(cast(Gaussian, cast(MarginalLaw, problem.marginal)(t)).logpdf(x))
    f = solution.gauge.u(t, x, case.exact.value(t, x))
    slope = case.exact.gradient(t, x)
    inverse = np.linalg.inv(problem.Lambda(t, x[0]))

    def norm(given: FloatArray) -> float:
        return float(np.sqrt(weights @ (given**2 if given.ndim == 1 else ((given @ inverse) * given).sum(-1))))

    pairs = [
        (space.evaluate(c, t, x), f),
        (space.evaluate(c, t, x, derivative="gradient"), f[:, None] * slope / problem.temperature),
        (solution.policy(t, x), problem.policy_from_gradient(t, x, slope)),
        (space.evaluate(c, t, x), solution.gauge.u(t, x, case.wrong.value(t, x))),
    ]
    return [norm(mine - true) / norm(true) for mine, true in pairs]


def _space(problem: ControlProblem, series: str, cells: int) -> Space:
    how: dict[str, Any] = {"cells": cells, "box": _box(series, problem.dim)}
    if series == "noise":
        return Space(problem, element="B2", time_cells=1, **how)
    return Space(problem, element="B3", time_cells=cells // 2, time_degree=3, time_smooth=True, **how)


def _learned(config: Config, series: str, d: int, cells: int, n: int, step: Callable[[], None]) -> tuple[Any, ...]:
    """Splines of degree 3, under the law if n is 0; root mean squares of |f - f*|_E over the repeats."""
    case = _case(d)
    problem, space = case.problem, _space(case.problem, series, cells)
    law = law_measure(problem, space)
    measuring = [yardstick(problem, law, space, exact=of) for of in (case.exact, case.wrong)]
    step()
    found: list[list[float]] = []
    for seed in range(config.repeats if n else 1):
        data: Any = sample_paths(problem, n=n, steps=config.steps, rng=config.seed + seed) if n else law
        system = assemble(problem, data, space, estimator="generator", outside="drop")
        c = solve_system(system, smoothing=None if n else 0.0, figures=False).coefficients
        found.append([measure.distance(c) / measure.size for measure in measuring])
        step()
    error, wrong = np.sqrt(np.mean(np.square(found), axis=0)).tolist()
    approximation = measuring[0].approximation / measuring[0].size
    return (series, d, "B3", cells, n or np.inf, approximation, error, _NONE, _NONE, wrong)


def _noise(config: Config, d: int, every: tuple[int, ...], step: Callable[[], None]) -> Iterator[tuple[Any, ...]]:
    problem, cells = zoo.get("lq", dim=d), 4 if d == 1 else 3
    space = _space(problem, "noise", cells)
    measure = yardstick(problem, law_measure(problem, space), space)
    for n in every:
        learned: list[FloatArray] = []
        for seed in range(config.seeds):
            paths = sample_paths(problem, n=n, steps=config.steps, rng=config.seed + seed)
            system = assemble(problem, paths, space, estimator="weak", outside="drop")
            learned.append(np.asarray(solve_system(system, smoothing=0.0, figures=False).coefficients).ravel())
            step()
        away = np.array(learned) - np.mean(learned, axis=0)
        square = sum(measure.norm(c) ** 2 for c in away) / (config.seeds - 1)
        noise, approximation = float(np.sqrt(square)) / measure.size, measure.approximation / measure.size
        yield ("noise", d, "B2", cells, n, approximation, noise, _NONE, _NONE, _NONE)


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    def column(name: str, *case: Any) -> FloatArray:
        return np.array([row[_COLUMNS.index(name)] for row in rows if row[: len(case)] == case], dtype=np.float64)

    for d, p, cells in config.meshes:
        width, case = 1.0 / np.array(cells), ("mesh", d, f"P{p}")
        for name, order, high in (("error", p + 1.0, 0.0), ("gradient", p + 0.0, 0.0), ("policy", p + 0.0, np.inf)):
            slope = fitted_slope(width, column(name, *case)).value
            text = f"mesh, d = {d}, P{p}: order of {'f' if name == 'error' else name}"
            most = high or order + (1.0 if d == 3 and name == "error" else _BAND)  # these cells are coarse for a band
            yield Claim(text=text, value=slope, low=order - _BAND, high=most)
        if d > 1 and p == max(degree for dim, degree, _ in config.meshes if dim == d):  # fine enough to see it
            slope = fitted_slope(width, column("wrong Riccati", *case)).value
            text = f"mesh, d = {d}, P{p}: order of f against Riccati's equation with A transposed"
            yield Claim(text=text, value=slope, low=p + 1 - _BAND, high=p + 1 + _BAND, control=True)
    for d, cells in config.law:
        best, error = column("approximation", "law", d), column("error", "law", d)
        if d == 1:
            order = fitted_slope(1.0 / np.array(cells), error).value
            yield Claim(text="law, d = 1, B3: order in energy", value=order, low=3 - _BAND, high=3 + _BAND)
        else:
            slope = fitted_slope(best, error).value
            text = f"law, d = {d}, B3: exponent of the error in that of the class"
            yield Claim(text=text, value=slope, low=1 - _HALF_BAND, high=1 + _HALF_BAND)
    for d, _ in config.paths:
        best = column("approximation", "paths", d)
        for name in ("error", "wrong Riccati") if d > 1 else ("error",):
            of = "" if name == "error" else ", against A transposed"
            error, control = column(name, "paths", d), name != "error"
            slope = fitted_slope(best, error).value
            text = f"paths, d = {d}, B3: exponent of the error in that of the class"
            yield Claim(text=text + of, value=slope, low=1 - _BAND, high=1 + _BAND, control=control)
            worst, text = float((error / best).max()), f"paths, d = {d}, B3: error over that of the class, largest"
            yield Claim(text=text + of, value=worst, low=1.0, high=_SHARE, control=control)
    for d, every in config.noise:
        slope = fitted_slope(every, column("error", "noise", d)).value
        text = f"noise, d = {d}: exponent in the number of paths"
        yield Claim(text=text, value=slope, low=-0.5 - _BAND, high=-0.5 + _BAND)


def figure(trial: Trial) -> Figure:
    """Errors against the mesh in each dimension, learned ones against that of the class, and noise against n."""
    made = Figure(figsize=(13.0, 3.4), layout="constrained")
    config, panels = trial.config, made.subplots(1, 5)
    for panel, d in zip(panels, (1, 2, 3), strict=False):
        for (_, p, cells), style in zip([one for one in config.meshes if one[0] == d], STYLES, strict=False):
            where = {"series": "mesh", "d": d, "class": f"P{p}"}
            panel.loglog(cells, trial.column("error", **where), **style, label=f"P{p}, $f$")
            hollow = style | {"markerfacecolor": "none"}
            panel.loglog(cells, trial.column("policy", **where), **hollow, label=rf"P{p}, $\pi$")
            if d > 1:
                panel.loglog(cells, trial.column("wrong Riccati", **where), "x-", color="0.6")
        panel.set(title=f"d = {d}", xlabel="cells per axis", ylabel="relative error")
        ticks_at(panel.xaxis, trial.column("cells", series="mesh", d=d))
        panel.legend(fontsize="xx-small")
    learned, noise = panels[3:]
    pairs = [(series, d) for series in ("law", "paths") for d, _ in getattr(config, series)]
    for style, (series, d) in zip(STYLES, pairs, strict=False):
        where = {"series": series, "d": d}
        best, error = trial.column("approximation", **where), trial.column("error", **where)
        learned.loglog(best, error, **style, label=f"{series}, d = {d}")
    ends = np.array(learned.get_xlim())
    learned.loglog(ends, ends, color="0.7", linewidth=0.8, label="error of the class")
    for d, _ in config.paths:
        if d > 1:
            where = {"series": "paths", "d": d}
            best, error = trial.column("approximation", **where), trial.column("wrong Riccati", **where)
            learned.loglog(best, error, "x-", color="0.6", label="A transposed")
    learned.set(title="splines", xlabel="approximation error", ylabel="error")
    for style, (d, every) in zip(STYLES, config.noise, strict=False):
        error = trial.column("error", series="noise", d=d)
        noise.loglog(every, error, **style, label=f"d = {d}")
        noise.loglog(every, 0.7 * error[0] * (np.array(every) / every[0]) ** -0.5, color="0.7", linewidth=0.8)
    noise.set(title="weak, one class", xlabel="paths $n$", ylabel="noise")
    for panel in (learned, noise):
        panel.legend(fontsize="xx-small")
    return made
