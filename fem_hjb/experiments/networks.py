r"""What convexity buys: the projected iteration in a class of networks and in a linear one of as many unknowns.

The iteration of `iteration`, f^{m+1} the function of a class F nearest to f^m - gamma E^{-1} (B f^m - l) in the norm of
the energy, on the wells of `rotated-wells` in one, two and ten dimensions, from f^0 = 0, with the step gamma that is
best for the linear class and delta = 0.2, so that tests are g - delta d_t g. Data: n K draws of (t, X_t) at uniform
times and n of both ends, in the stationary law, the same for both classes:

    polynomials   of total degree 5, 5, 2 in x, times cubics in t: a convex class, 24, 84, 264 unknowns
    networks      c + sum_j a_j tanh(w_j'x + u_j t + b_j): not convex, 25, 81, 261 parameters

Each step of the networks is least squares by L-BFGS, see `interop.network_class`. Errors are relative, in the norm of
int E[f^2] dt + E[f_T^2]; "best" is the least error in the class that is known: the projection for polynomials, for
networks a fit to f* itself that starts where the iteration has ended.

Convexity buys that the end does not depend on the start, and that its error is little more than the best. A network
rests where the equation holds for functions tangent to its class, of which there may be many: other starts on the same
data lead elsewhere, by about as much as the error is. What networks buy is a class that holds f in ten dimensions, as
its few functions turn to the direction of the reward, where polynomials of degree 2 do not.

Networks need times that differ from sample to sample. Where all n paths are seen at the same K times, they soon find a
jump between the last of these and T, where nobody looks, and stay at f = 0 before it, the sooner the more exactly the
least squares are solved, whatever K is. Polynomials cannot.

Controls: networks, whose ends depend on the start; networks at equal times; and steps that are too long, by which the
linear class fails. Needs PyTorch. Source: arXiv 2509.02528 (Algorithm 2; classes that are not convex are its open
question 1).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any, cast, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.experiments.rotated_wells import value_on_a_line, wells
from fem_hjb.experiments.trial import Claim, Trial, conclude
from fem_hjb.learning.inequality import diagnose
from fem_hjb.learning.measures import Measure, sampled_law_measure
from fem_hjb.learning.population import Yardstick, yardstick
from fem_hjb.learning.solve_system import ReducedSystem, reduce_system
from fem_hjb.learning.system import assemble
from fem_hjb.paths.simulate import Paths, sample_paths
from fem_hjb.plotting.pictures import STYLES
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.spaces.features import HermiteCross
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import TrialError
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """dims : d, with the degrees of the polynomials and the widths of the networks.  tilt, kappa : of the wells.

    paths, observations : of the data, n and K.  steps : of the iteration.  inner : of L-BFGS in each.  held_out :
    samples of the law at each Gauss point in time.  too_long : by how much the control's steps are.  seed : of the
    first data and networks; the others follow.
    """

    dims: tuple[int, ...] = (1, 2, 10)
    degrees: tuple[int, ...] = (5, 5, 2)
    widths: tuple[int, ...] = (6, 16, 20)
    tilt: float = 1.5
    kappa: float = 0.5
    paths: int = 400
    observations: int = 8
    steps: int = 24
    inner: int = 20
    seeds: int = 5
    held_out: int = 500
    too_long: float = 6.0
    seed: int = 100


QUICK = Config(dims=(1,), degrees=(5,), widths=(6,), paths=200, steps=20, inner=10, seeds=1, held_out=150)

_COLUMNS = ("d", "class", "unknowns", "seed", "step", "error", "best", "apart")
_CLASSES = ("polynomials", "networks")
_TOO_LONG, _EQUAL_TIMES = "polynomials, too long", "networks, equal times"
_DELTA = 0.2
_MANY = 400  # steps of the linear class from two starts
_FEW = 8  # steps of the controls
_EXACT = 4  # times as many inner steps at equal times
_OTHER = 10_000  # added to a seed: another start
_SAMPLED = 20_000
_MANY_DIMENSIONS = 10
_FITTED = 10  # times as many inner steps for a fit to f*


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Task:
    """A problem and data, with the gauge of both classes, in which E f_T is about 1; exact (m,) : f* at the judge's
    points inside, then at T; gamma : of the linear class."""

    problem: ControlProblem
    data: Measure
    gauge: Gauge
    judge: Measure
    exact: FloatArray
    measure: Yardstick
    reduced: ReducedSystem
    gamma: float

    def norm(self, values: FloatArray) -> float:
        """Relative, of values at the judge's points."""
        weights = np.concatenate([self.judge.weights, self.judge.terminal_weights])
        return float(np.sqrt(weights @ values**2 / (weights @ self.exact**2)))

    def of_polynomials(self, c: FloatArray) -> FloatArray:
        """Coefficients in the gauge of the yardstick."""
        factor = np.exp((self.gauge.terminal - self.measure.gauge.terminal) / self.gauge.temperature)
        return np.asarray(factor * np.ravel(self.reduced.whole(c)))


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Course:
    """errors (steps,); best; apart : the distance between the ends from two starts over the error; control : errors of
    steps that are too long, or of data at equal times."""

    unknowns: int
    errors: list[float]
    best: float
    apart: float
    control: list[float]


def run(config: Config, tell: Progress) -> Trial:
    """One row per dimension, class, seed and step; MissingPackageError without PyTorch."""
    import_module("fem_hjb.interop.network_class")  # says at once what is missing
    started = time.perf_counter()
    if not len(config.dims) == len(config.degrees) == len(config.widths):
        raise TrialError(
            f"networks: each of dims={config.dims} needs a degree and a width, got degrees={config.degrees},"
            f" widths={config.widths}"
        )
    step = steps_of(tell, len(config.dims) * config.seeds * (2 * config.steps + 2) + config.seeds * _FEW)
    rows: list[tuple[Any, ...]] = []
    for d, degree, width in zip(config.dims, config.degrees, config.widths, strict=True):
        value = value_on_a_line(d, config.tilt, config.kappa)
        problem = wells(d, value, config.tilt, config.kappa)
        features = HermiteCross(Gaussian(np.zeros(d), problem.initial_law.covariance), degree, total=True)
        space = Space.product(LineBasis.uniform(problem.horizon, 1, "P3"), features)
        judge = sampled_law_measure(problem, space, n=config.held_out, rng=1)
        measure = yardstick(problem, judge, space, norm="mass")
        for seed in range(config.seed, config.seed + config.seeds):
            task = _task(config, problem, space, judge, measure, seed)
            step()
            for kind, control, course in (
                ("polynomials", _TOO_LONG, _polynomials(config, task, seed)),
                ("networks", _EQUAL_TIMES, _networks(config, task, width, seed, step)),
            ):
                for name, errors in ((kind, course.errors), (control, course.control)):
                    for m, error in enumerate(errors, 1):
                        rows.append((d, name, course.unknowns, seed, m, error, course.best, course.apart))
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _task(
    config: Config, problem: ControlProblem, space: Space, judge: Measure, measure: Yardstick, seed: int
) -> _Task:
    y = problem.y(problem.initial_law.sample(_SAMPLED, np.random.default_rng(0)))
    alpha, T = problem.temperature, problem.horizon
    gauge = Gauge(temperature=alpha, horizon=T, terminal=alpha * float(np.log(np.mean(np.exp(y / alpha)))), running=0.0)
    data = _at_random_times(problem, config.paths, config.observations, np.random.default_rng(seed))
    system = assemble(problem, data, space, delta=_DELTA, constants=gauge)
    reduced = reduce_system(system, smoothing=0.0)
    figures = diagnose(reduced.inequality)
    inside = gauge.u(judge.t, judge.x, cast(ValueFunction, problem.exact).value(judge.t, judge.x))
    return _Task(
        problem=problem,
        data=data,
        gauge=gauge,
        judge=judge,
        exact=np.concatenate([inside, gauge.terminal_u(problem, judge.terminal_x)]),
        measure=measure,
        reduced=reduced,
        gamma=figures.gamma or figures.norm**-2,
    )


def _at_random_times(problem: ControlProblem, n: int, K: int, rng: np.random.Generator) -> Measure:
    """n K draws of (t, X_t), t uniform, and n of X_0 and X_T, all independent, of a process in its stationary law."""
    law, T = problem.initial_law, problem.horizon
    uniform = np.full(n, 1.0 / n)
    return Measure(
        kind="empirical",
        t=rng.uniform(0.0, T, n * K),
        x=law.sample(n * K, rng),
        weights=np.full(n * K, T / (n * K)),
        initial_x=law.sample(n, rng),
        initial_weights=uniform,
        terminal_x=law.sample(n, rng),
        terminal_weights=uniform,
        paths=n,
    )


def _polynomials(config: Config, task: _Task, seed: int) -> _Course:
    inequality, measure = task.reduced.inequality, task.measure

    def ran(c: FloatArray, gamma: float, steps: int) -> list[FloatArray]:
        found = []
        for _ in range(steps):
            c = inequality.step(c, gamma)
            found.append(task.of_polynomials(c))
        return found

    def error(c: FloatArray) -> float:
        return measure.distance(c) / measure.size

    nothing = np.zeros(inequality.size)
    far = np.random.default_rng(seed + _OTHER).standard_normal(inequality.size)
    far *= inequality.norm(inequality.target) / inequality.norm(far)
    long = ran(nothing, task.gamma, max(config.steps, _MANY))
    other = ran(far, task.gamma, _MANY)[-1]
    return _Course(
        unknowns=inequality.size,
        errors=[error(c) for c in long[: config.steps]],
        best=measure.approximation / measure.size,
        apart=measure.norm(other - long[-1]) / measure.distance(long[-1]),
        control=[error(c) for c in ran(nothing, config.too_long * task.gamma, _FEW)],
    )


def _networks(config: Config, task: _Task, width: int, seed: int, step: Callable[[], None]) -> _Course:
    from fem_hjb.interop.network_class import OneLayer, fit_values, network_steps

    judge, d = task.judge, task.problem.dim
    t = np.concatenate([judge.t, np.full(len(judge.terminal_x), task.problem.horizon)])
    x = np.concatenate([judge.x, judge.terminal_x])

    def ran(start: int, data: Measure | Paths, steps: int, inner: int) -> tuple[Any, list[FloatArray]]:
        network = OneLayer(d, width, seed=start)
        course = network_steps(
            task.problem, data, network, gauge=task.gauge, gamma=task.gamma, delta=_DELTA, inner=inner
        )
        found = []
        for _ in islice(course, steps):
            found.append(network.values(t, x))
            step()
        return network, found

    network, course = ran(seed, task.data, config.steps, config.inner)
    _, other = ran(seed + _OTHER, task.data, config.steps, config.inner)
    equal: list[FloatArray] = []
    if d == config.dims[0]:
        paths = sample_paths(task.problem, n=config.paths, steps=config.observations, rng=seed)
        _, equal = ran(seed, paths, _FEW, _EXACT * config.inner)
    errors = [task.norm(values - task.exact) for values in course]
    weights = np.concatenate([judge.weights, judge.terminal_weights])
    fit_values(network, t, x, task.exact, weights, inner=_FITTED * config.inner)
    step()
    return _Course(
        unknowns=sum(p.numel() for p in network.parameters()),
        errors=errors,
        best=task.norm(network.values(t, x) - task.exact),
        apart=task.norm(other[-1] - course[-1]) / errors[-1],
        control=[task.norm(values - task.exact) for values in equal],
    )


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    def ends(d: int, kind: str) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Last errors, best ones and distances, by seeds."""
        last = {row[3]: row[5:] for row in rows if row[:2] == (d, kind)}
        error, best, apart = np.array(list(last.values())).T
        return error, best, apart

    def over_best(d: int, kind: str, control: bool) -> Claim:
        error, best, _ = ends(d, kind)
        text = f"d = {d}, {kind}: last error over the best, median"
        return Claim(text=text, value=float(np.median(error / best)), low=1.0, high=2.0, control=control)

    for d in config.dims:
        yield over_best(d, "polynomials", False)
        yield over_best(d, _TOO_LONG, True)
        for kind in _CLASSES:
            apart, control = ends(d, kind)[2], kind == "networks"
            text = f"d = {d}, {kind}: distance between the ends from two starts, over the error, "
            text += "least" if control else "largest"
            value = float(apart.min() if control else apart.max())
            yield Claim(text=text, value=value, low=0.0, high=0.02, control=control)
        ratio = float(np.median(ends(d, "networks")[0]) / np.median(ends(d, "polynomials")[0]))
        low, high = (0.1, 0.8) if d >= _MANY_DIMENSIONS else (1.1, 10.0)
        yield Claim(text=f"d = {d}: error of networks over that of polynomials", value=ratio, low=low, high=high)
    d = config.dims[0]
    yield over_best(d, _EQUAL_TIMES, True)


def figure(trial: Trial) -> Figure:
    """Errors against the step, a curve for each seed."""
    config = trial.config
    made = Figure(figsize=(4.0 * len(config.dims), 3.6), layout="constrained")
    for panel, d in zip(made.subplots(1, len(config.dims), squeeze=False)[0], config.dims, strict=True):
        for style, kind in zip(STYLES, _CLASSES, strict=False):
            for seed in range(config.seed, config.seed + config.seeds):
                where = {"d": d, "class": kind, "seed": seed}
                label = kind if seed == config.seed else None
                m, error = trial.column("step", **where), trial.column("error", **where)
                panel.semilogy(m, error, color=style["color"], linestyle=style["linestyle"], label=label)
                if kind == "networks" and d == config.dims[0]:
                    m, error = (trial.column(name, **{**where, "class": _EQUAL_TIMES}) for name in ("step", "error"))
                    label = _EQUAL_TIMES if seed == config.seed else None
                    panel.semilogy(m, error, color=STYLES[2]["color"], linestyle=":", label=label)
            best = np.median(trial.column("best", d=d, **{"class": kind}))
            panel.axhline(best, color=style["color"], linewidth=0.8, linestyle=":")
        panel.set(xlabel="step $m$", ylabel="relative error of $f$", title=f"$d = {d}$")
        panel.legend(fontsize="small")
    panel.plot([], [], color="0.5", linewidth=0.8, linestyle=":", label="best known of the class")
    panel.legend(fontsize="small")
    return made
