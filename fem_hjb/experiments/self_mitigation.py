r"""The noise of a generator or residual fit is proportional to the approximation error; that of regression stays.

The noise constant of an estimator from n paths is sqrt(n) times the root mean square over seeds of |f_hat - mean|_E,
relative to |f*|_E, with the mean over the seeds: the statistical part of the error alone, free of the approximation
and observation errors, which are the same for all seeds. The approximation error is |f_best - f*|_E / |f*|_E in the
same norm (`population.yardstick`). No smoothing, no ridge. All points of a curve see the same paths.

fixed class: Brownian motion with X_0 ~ N(0, 1/4), r = 0, and polynomials of degree 4 in space times P1 in time, which
the equation does not map into itself; the solution leaves the class by a fixed function times epsilon,

    f* = 1 + x^2 + T - t + epsilon cos(w x) exp(-w^2 (T - t)/2).

Every fit is linear in f*, and the residual of the polynomial part vanishes at every sample. Hence the noise of
"generator" and "residual" is proportional to epsilon: exponent 1. That of "increment", "weak" and "regression" has a
part that does not depend on epsilon: exponent 0. So has that of "doob", regression with a gradient penalty, its weight
by cross-validation over the first paths: it damps the noise, and does not make it vanish. "corrected" starts with
exponent 1 and ends on a floor; as its increments f_{k+1} - f_k - grad f_k' dM_k are second-order remainders of size dt
at each of the T/dt steps, the floor is proportional to dt^{1/2} (series "steps", at the smallest epsilon), and the
exponent tends to 1 as dt tends to 0.

growing class: a cosine series, Brownian motion reflected in an interval, and B-splines of degree p = 3 in space and
time on ever finer cells of width h. Now the dimension N grows too, and with it what there is to be noisy: it is the
noise constant over sqrt(N) that is proportional to the approximation error ("generator") or does not depend on it
("regression"). Not exactly so: the noise of "generator" and "residual" is made of the residual of f_best, which holds
two derivatives of f_best - f* where E holds one, and is of the order h^{p-1} where E is of the order h^p. A wave in
space, of wavenumber k, and its 1/h waves in time pass through the equation with weights k^2/(omega^2 + k^4), whose sum
over omega is of the order one; hence noise of the order h^{p-1} h^{-1/2}, over sqrt(N) ~ 1/h of the order h^{p-1/2}:
exponent (p - 1/2)/p, 0.83, if the residuals at the samples were independent. That is what "residual" shows. In
"generator" the residual meets a test function that is as smooth as f, and partly averages out along each path:
the exponent is between this and 1. "corrected" is left out here: increments near a reflecting wall stay uncorrected.

Controls: regression does not have exponent 1; nor has the generator with a drift that is wrong by such a function that
the equation has no solution near the class. (Wrong by a linear function, say, it is still self-mitigating, as the
solution of the wrong equation is nearly in the class: noise knows the equation that is solved, not the right one.)

Source: arXiv 2509.02528, whose bound for the variational inequality has this property.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fem_hjb.experiments.trial import Claim, Slope, Trial, check_seeds, conclude, fitted_slope
from fem_hjb.learning.estimators import Estimator
from fem_hjb.learning.matching import choose_penalty
from fem_hjb.learning.measures import law_measure, sampled_law_measure
from fem_hjb.learning.population import Yardstick, yardstick
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems import zoo
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.spaces.features import HermiteCross
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """n, steps, seeds : paths, their time steps K, repetitions.  frequency : w.  seed : of all random numbers.

    epsilons : of the fixed class, falling.  all_steps : K of the series "steps", divisors of the last one.
    classes : (cells, time cells) of the growing class.
    """

    n: int = 1000
    steps: int = 64
    seeds: int = 20
    epsilons: tuple[float, ...] = (0.5, 0.1, 0.02, 0.004)
    frequency: float = 2.0
    all_steps: tuple[int, ...] = (16, 64, 256)
    classes: tuple[tuple[int, int], ...] = ((4, 2), (6, 3), (8, 4), (12, 6), (16, 8))
    seed: int = 20


QUICK = Config(
    n=500,
    steps=32,
    seeds=4,
    epsilons=(0.5, 0.01),
    all_steps=(8, 32, 128),
    classes=((4, 2), (8, 4), (12, 6)),
)

_COLUMNS = ("series", "estimator", "steps", "dofs", "approximation", "noise", "low", "high")
_ESTIMATORS = ("generator", "residual", "corrected", "increment", "weak", "regression", "doob")
_WRONG = "generator, wrong drift"
_UNIT = 0.15  # half the width of a band around an exponent
_DEGREE = 3  # of the splines of the growing class
_DRAWS = 4096  # of the law at each time of the yardstick


@final
@dataclass(frozen=True, kw_only=True)
class _Caloric:
    """v = log f with f = 1 + x^2 + T - t + epsilon cos(w x) exp(-w^2 (T - t)/2)."""

    epsilon: float
    frequency: float
    horizon: float

    def _f(self, t: ArrayLike, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """f and its slope."""
        to_go, u, w = self.horizon - np.asarray(t, dtype=np.float64), x[..., 0], self.frequency
        decay = self.epsilon * np.exp(-0.5 * w**2 * to_go)
        f = 1 + u**2 + to_go + decay * np.cos(w * u)
        return np.asarray(f), np.asarray(2 * u - decay * w * np.sin(w * u))

    def value(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        return np.asarray(np.log(self._f(t, np.asarray(x))[0]))

    def gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        f, slope = self._f(t, np.asarray(x))
        return np.asarray((slope / f)[..., None])


def _polynomial(config: Config, epsilon: float) -> tuple[ControlProblem, Space]:
    """The problem and the class of the first series."""
    exact = _Caloric(epsilon=epsilon, frequency=config.frequency, horizon=1.0)
    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=LinearDrift([[0.0]], [0.0]),
        diffusion=1.0,
        terminal_reward=lambda x: exact.value(1.0, x),
        initial_law=Gaussian([0.0], 0.25),
        exact=exact,
        marginal=lambda t: Gaussian([0.0], 0.25 + t),
        name="Brownian motion, caloric polynomial",
    )
    return problem, Space.product(LineBasis.uniform(1.0, 2, "P1"), HermiteCross(Gaussian([0.0], 0.75), 4))


def run(config: Config, tell: Progress) -> Trial:
    """One row per estimator and epsilon, number of steps, or class."""
    check_seeds(config.seeds)
    started = time.perf_counter()
    rows: list[tuple[Any, ...]] = []
    fitted = len(config.epsilons) * (len(_ESTIMATORS) + 1) + len(config.all_steps)
    step = steps_of(tell, config.seeds * (fitted + len(config.classes) * (len(_ESTIMATORS) - 1)))
    for epsilon in config.epsilons:
        problem, space = _polynomial(config, epsilon)
        measuring = yardstick(problem, sampled_law_measure(problem, space, n=_DRAWS, rng=config.seed), space)
        wrong = replace(problem, drift=lambda t, x: np.sin(3 * x))
        fits = {**{name: (problem, name) for name in _ESTIMATORS}, _WRONG: (wrong, "generator")}
        rows += _rows("fixed class", config, problem, fits, measuring, config.steps, step)
    for steps in config.all_steps:
        rows += _rows("steps", config, problem, {"corrected": (problem, "corrected")}, measuring, steps, step)
    problem = zoo.get("reflected", dim=1, Lambda=0.1, coefficients=(1.0, 0.3, -0.25, 0.2, 0.15))
    for cells, time_cells in config.classes:
        space = Space(
            problem, cells=cells, time_cells=time_cells, element=f"B{_DEGREE}", time_degree=_DEGREE, time_smooth=True
        )
        measuring = yardstick(problem, law_measure(problem, space), space)
        fits = {name: (problem, name) for name in _ESTIMATORS if name != "corrected"}
        rows += _rows("growing class", config, problem, fits, measuring, config.steps, step)
    return conclude(config, _COLUMNS, rows, _claims(rows), started)


def _rows(
    series: str,
    config: Config,
    problem: ControlProblem,
    fits: Mapping[str, tuple[ControlProblem, str]],
    measuring: Yardstick,
    steps: int,
    step: Callable[[], None],
) -> Iterator[tuple[Any, ...]]:
    """A row for each fit (the problem it believes in, the estimator), all from the same paths of `problem`."""
    space = measuring.space
    learned: dict[str, list[FloatArray]] = {name: [] for name in fits}
    penalised: Estimator | None = None
    finest = config.all_steps[-1] if series == "steps" else steps
    for sequence in np.random.SeedSequence(config.seed).spawn(config.seeds):
        fine = sample_paths(problem, n=config.n, steps=finest, rng=sequence)
        paths = replace(fine, t=fine.t[:: finest // steps], x=fine.x[:, :: finest // steps])
        for name, (believed, estimator) in fits.items():
            if estimator == "doob" and penalised is None:
                penalised = choose_penalty(problem, paths, space, smoothing=0.0)
            how = penalised if estimator == "doob" and penalised else estimator
            system = assemble(believed, paths, space, estimator=how)
            solution = solve_system(system, smoothing=0.0, figures=False)
            learned[name].append(np.asarray(solution.coefficients).ravel())
            step()
    scale = np.sqrt(config.n) / measuring.size
    for name, found in learned.items():
        c = np.array(found)
        # the mean is that of the same seeds: n - 1 degrees of freedom
        factor = scale * np.sqrt(config.seeds / (config.seeds - 1))
        noise = factor * np.array([measuring.norm(row) for row in c - c.mean(axis=0)])
        low, high = np.quantile(noise, (0.1, 0.9))
        rms = float(np.sqrt(np.mean(noise**2)))
        approximation = measuring.approximation / measuring.size
        yield (series, name, steps, space.n_dofs, approximation, rms, float(low), float(high))


def _exponent(rows: list[tuple[Any, ...]], series: str, estimator: str) -> Slope:
    """Of the noise in the approximation error; in a growing class, of the noise over sqrt(N)."""
    chosen = [row[3:6] for row in rows if row[0] == series and row[1] == estimator]
    dofs, approximation, noise = np.array(chosen, dtype=np.float64).T
    return fitted_slope(approximation, noise / np.sqrt(dofs) if series == "growing class" else noise)


def _claims(rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    expected = [
        ("fixed class", "generator", 1.0),
        ("fixed class", "residual", 1.0),
        ("fixed class", "increment", 0.0),
        ("fixed class", "weak", 0.0),
        ("fixed class", "regression", 0.0),
        ("fixed class", "doob", 0.0),
        ("growing class", "residual", (_DEGREE - 0.5) / _DEGREE),
        ("growing class", "regression", 0.0),
    ]
    controls = [("fixed class", _WRONG, 1.0), ("growing class", "regression", 1.0)]
    controls += [("fixed class", name, 1.0) for name in ("regression", "doob")]
    for series, estimator, exponent in expected + controls:
        slope = _exponent(rows, series, estimator)
        yield Claim(
            text=f"{series}, {estimator}: exponent of the noise is {exponent:.2g} "
            f"(95 %: {slope.low:.2f} to {slope.high:.2f})",
            value=slope.value,
            low=exponent - _UNIT,
            high=exponent + _UNIT,
            control=(series, estimator, exponent) in controls,
        )
    slope, least = _exponent(rows, "growing class", "generator"), (_DEGREE - 0.5) / _DEGREE
    yield Claim(
        text=f"growing class, generator: exponent of the noise is between {least:.2g} and 1 "
        f"(95 %: {slope.low:.2f} to {slope.high:.2f})",
        value=slope.value,
        low=least - _UNIT,
        high=1 + _UNIT,
    )
    steps, noise = np.array([(row[2], row[5]) for row in rows if row[0] == "steps"], dtype=np.float64).T
    slope = fitted_slope(1.0 / steps, noise)
    yield Claim(
        text=f"corrected: exponent of the floor in dt is 0.5 (95 %: {slope.low:.2f} to {slope.high:.2f})",
        value=slope.value,
        low=0.5 - _UNIT,
        high=0.5 + _UNIT,
    )


def figure(trial: Trial) -> Figure:
    """The noise constant against the approximation error, in a fixed class and in growing ones; the floor against K."""
    made = Figure(figsize=(11.0, 3.6), layout="constrained")
    panels = made.subplots(1, 3, width_ratios=(3, 3, 2))
    styles = {
        **dict(zip(_ESTIMATORS, STYLES, strict=False)),
        "regression": {**STYLES[0], "color": "0.45", "marker": "x"},
        "doob": {**STYLES[0], "color": "0.2", "marker": "*", "linestyle": ":"},
        _WRONG: {**STYLES[1], "color": "0.7", "marker": "+"},
    }
    for panel, series in zip(panels, ("fixed class", "growing class"), strict=False):
        for name, style in styles.items():
            here = {"series": series, "estimator": name}
            x = trial.column("approximation", **here)
            if not x.size:
                continue
            noise, low, high = (trial.column(key, **here) for key in ("noise", "low", "high"))
            scale = np.sqrt(trial.column("dofs", **here)) if series == "growing class" else 1.0
            panel.loglog(x, noise / scale, **style, markersize=4, label=name)
            panel.fill_between(x, low / scale, high / scale, color=style["color"], alpha=0.15, linewidth=0)
            if name == "generator":
                panel.loglog(x, 0.5 * (noise / scale)[0] * x / x[0], color="0.6", linewidth=0.8, label="slope 1")
        panel.set(title=series, xlabel=r"approximation error $|f_{best} - f^*|_E / |f^*|_E$")
    panels[0].set_ylabel("noise constant")
    panels[1].set_ylabel(r"noise constant / $\sqrt{N}$")
    steps, noise = trial.column("steps", series="steps"), trial.column("noise", series="steps")
    low, high = trial.column("low", series="steps"), trial.column("high", series="steps")
    style = styles["corrected"]
    panels[2].loglog(steps, noise, **style, label="corrected")
    panels[2].fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    panels[2].loglog(steps, 0.7 * noise[0] * np.sqrt(steps[0] / steps), color="0.6", linewidth=0.8, label="slope -1/2")
    panels[2].set(title="fixed class, floor", xlabel="time steps $K$", ylabel="noise constant")
    ticks_at(panels[2].xaxis, steps)
    panels[2].legend()
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=9, fontsize=8)
    return made
