r"""No quadratic: double wells turned out of their axes, up to twenty dimensions, and which dictionaries learn there.

With a random orthogonal matrix Q and z = Q'x, the process falls into 2^d wells and is asked for one of them:

    dX = -grad U(X) dt + dB,  U(x) = kappa sum_i (z_i^2 - 1)^2,  r = 0,  y(x) = c sum_i z_i / sqrt(d),  alpha = T = 1,

started in its stationary law exp(-2 U). In z the coordinates are independent, so that v is a sum of values that `solve`
finds on a line, and f a product of d functions, none of which is an exponential of a polynomial. c is the tilt.

Classes: features of x times exp(0.6 y(x)), which is about how much of y is left of v, times quadratics in time:

    linear, linear of z   degree 1, d + 1 features: the same class in any coordinates
    cosines               as many random cosines as `turned` has features
    turned                the hyperbolic cross of degree 3: 1, x_i, x_i^2, x_i^3, x_i x_j
    aligned               the same of z, the coordinates of the wells: it has the z_i^3, which the x_i^3 do not make
    fine                  of z with degree 5

a is the distance of the class from f*, relative in the norm of int E[f^2] dt + E[f_T^2]; spread and bias are those of
the learned f over the seeds. The noise of "generator" per root of the number of features falls with a from class to
class, that of "regression" is the same in each; its bias is that of the class up to a factor, and so is its error,
unless paths are few for the unknowns (d = 20: 1000 for 753). So it keeps most of what the coordinates are worth,
a(turned)/a(aligned), which the noise of regression hides. "doob", regression with a gradient penalty, has less noise
than that, and more than "generator". "residual", least squares of the equation, is several times a: where the class
does not hold f, small residuals are not small errors. Controls: a wrong drift, and the linear class, to which
coordinates are nothing. Source: arXiv 2509.02528; the wells are those of Nuesken and Richter, arXiv 2005.05409.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Protocol, final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fem_hjb.experiments.trial import Claim, Trial, check_seeds, conclude
from fem_hjb.learning.matching import choose_penalty
from fem_hjb.learning.measures import sampled_law_measure
from fem_hjb.learning.population import yardstick
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Law, checked_draws
from fem_hjb.problems.problem import ControlProblem, Drift, ValueFunction
from fem_hjb.reference.solve import solve
from fem_hjb.spaces.dictionary import Dictionary, Envelope
from fem_hjb.spaces.features import HermiteCross, RandomFourier
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ProblemError
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """dims : d; in the dimension `dim`, if it is one of them, the finest class, too.  tilt : c.  kappa : of the wells.

    paths, steps : of the data.  held_out : samples of the law at each Gauss point in time.  wrong_drift : the size of
    what the control adds to the drift.  seed : of the first paths; the others follow.
    """

    dims: tuple[int, ...] = (2, 5, 10, 20)
    dim: int = 5
    tilt: float = 0.5
    kappa: float = 0.5
    paths: int = 1000
    steps: int = 8
    seeds: int = 5
    held_out: int = 2000
    wrong_drift: float = 1.0
    seed: int = 100


QUICK = Config(dims=(3,), dim=3, paths=200, held_out=150)

WRONG = "generator, wrong drift"
_DEGREES = {"linear": 1, "linear of z": 1, "cosines": 3, "turned": 3, "aligned": 3, "fine": 5}
_ALIGNED = ("linear of z", "aligned", "fine")
_POLYNOMIALS = ("linear", "turned", "aligned", "fine")
COLUMNS = (
    *("d", "class", "estimator", "features", "approximation", "bias", "spread"),
    *("error", "error low", "error high", "over class"),
)
_ENVELOPE = 0.6  # of y
_DAMPED = 0.5  # of the spread of "doob", which its penalty makes less of than that of regression
_SCALE = 2.5  # of the cosines, in deviations
_REACH = 3.0  # beyond which the wells hold less than 1e-25, for kappa = 1/2
_NODES = 6001
_RTOL = 1e-5


@final
@dataclass(frozen=True, eq=False, repr=False)
class WellLaw(Law):
    """The law of x = Q z, z_i independent with densities ~ exp(-2 kappa (z_i^2 - 1)^2); turn : Q (d, d)."""

    turn: FloatArray
    kappa: float
    dim: int = field(init=False)
    _z: FloatArray = field(init=False, repr=False)
    _mass: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        z = np.linspace(-_REACH, _REACH, _NODES)
        p = np.exp(self._exponent(z))
        mass = np.concatenate([[0.0], np.cumsum(0.5 * (p[1:] + p[:-1]) * np.diff(z))])
        for name, value in (("dim", len(self.turn)), ("_z", z), ("_mass", mass)):
            object.__setattr__(self, name, value)

    def _exponent(self, z: FloatArray) -> FloatArray:
        return np.asarray(-2 * self.kappa * (z**2 - 1) ** 2)

    @property
    def expectation(self) -> FloatArray:
        return np.zeros(self.dim)

    @property
    def covariance(self) -> FloatArray:
        p = np.exp(self._exponent(self._z))
        return float(p @ self._z**2 / p.sum()) * np.eye(self.dim)

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        uniform = rng.random((checked_draws(n, rng, self.dim), self.dim))
        return np.asarray(np.interp(uniform, self._mass / self._mass[-1], self._z) @ self.turn.T)

    def logpdf(self, x: ArrayLike) -> FloatArray:
        return np.asarray((self._exponent(np.asarray(x) @ self.turn) - np.log(self._mass[-1])).sum(axis=-1))

    def score(self, x: ArrayLike) -> FloatArray:
        return 2 * WellDrift(self.turn, self.kappa)(0.0, np.asarray(x))

    def quadrature(self, order: int) -> NoReturn:
        raise ProblemError("the law of wells that are turned has no rule of few points: draw samples of it")


@final
@dataclass(frozen=True, eq=False)
class WellDrift:
    """-grad U(x), U(x) = kappa sum_i (z_i^2 - 1)^2, z = Q'x."""

    turn: FloatArray
    kappa: float

    def __call__(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        z = x @ self.turn
        return np.asarray((-4 * self.kappa * z * (z**2 - 1)) @ self.turn.T)


@final
@dataclass(frozen=True, eq=False)
class _Turned:
    """v_t(x) = sum_i w_t(z_i), z = Q'x, with w the value on a line."""

    line: ValueFunction
    turn: FloatArray

    def value(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        return np.asarray(self.line.value(*self._along(t, x)).sum(axis=-1))

    def gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        return np.asarray(self.line.gradient(*self._along(t, x))[..., 0] @ self.turn.T)

    def _along(self, t: ArrayLike, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        z = np.asarray(x, dtype=np.float64) @ self.turn
        return np.broadcast_to(np.asarray(t, dtype=np.float64)[..., None], z.shape), z[..., None]


def value_on_a_line(dim: int, tilt: float, kappa: float) -> ValueFunction:
    """The value of each of the coordinates z_i."""
    law, slope = WellLaw(np.eye(1), kappa), np.array([tilt / np.sqrt(dim)])
    line = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=WellDrift(np.eye(1), kappa),
        diffusion=1.0,
        terminal_reward=lambda z: z @ slope,
        initial_law=law,
        marginal=lambda t: law,
    )
    return solve(line, rtol=_RTOL, box=Box([-_REACH], [_REACH]), verify=False)


def wells(dim: int, value: ValueFunction, tilt: float, kappa: float, *, turned: bool = True) -> ControlProblem:
    """The problem, with value and law; turned : x = Q z with a random Q, always the same for a dimension, else x = z.

    value : that of each coordinate.
    """
    turn = np.linalg.qr(np.random.default_rng(dim).standard_normal((dim, dim)))[0] if turned else np.eye(dim)
    law, direction = WellLaw(turn, kappa), tilt / np.sqrt(dim) * turn.sum(axis=1)
    return ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=WellDrift(turn, kappa),
        diffusion=1.0,
        terminal_reward=lambda x: x @ direction,
        initial_law=law,
        marginal=lambda t: law,
        exact=_Turned(value, turn),
        name="rotated-wells",
    )


def _features(problem: ControlProblem, kind: str) -> Dictionary:
    """The features of a class, for a problem whose coordinates are those of the class."""
    d = problem.dim
    law = Gaussian(np.zeros(d), problem.initial_law.covariance)
    cross = HermiteCross(law, _DEGREES[kind])
    base = RandomFourier(law, cross.n_dofs, scale=_SCALE, rng=0) if kind == "cosines" else cross
    return Envelope(base, np.zeros((d, d)), _ENVELOPE * problem.y(np.eye(d)))


@final
@dataclass(frozen=True, eq=False)
class WrongDrift:
    """b_t(x) + size sin(3 x)."""

    of: Drift
    size: float

    def __call__(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(self.of(t, x)) + self.size * np.sin(3.0 * x)


def run(config: Config, tell: Progress) -> Trial:
    """One row per dimension, class and estimator; low and high are the least and the largest of the seeds."""
    check_seeds(config.seeds)
    started = time.perf_counter()
    cases = [(d, kind) for d in config.dims for kind in _DEGREES if kind != "fine" or d == config.dim]
    step = steps_of(tell, sum(config.seeds * len(_estimators(kind)) + 1 for _, kind in cases))
    rows: list[tuple[Any, ...]] = []
    for d in config.dims:
        value = value_on_a_line(d, config.tilt, config.kappa)
        for kind in (kind for dim, kind in cases if dim == d):
            problem = wells(d, value, config.tilt, config.kappa, turned=kind not in _ALIGNED)
            space = Space.product(LineBasis.uniform(problem.horizon, 1, "P2"), _features(problem, kind))
            rows += learned_rows(config, problem, space, kind, _estimators(kind), step)
    return conclude(config, COLUMNS, rows, _claims(config, rows), started)


def _estimators(kind: str) -> tuple[str, ...]:
    more = {"aligned": ("doob", "residual", WRONG), "fine": ("doob",)}
    return ("regression", "generator", *more.get(kind, ()))


class Draws(Protocol):
    """What is drawn, as `Config` has it."""

    @property
    def paths(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def seeds(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def held_out(self) -> int: ...
    @property
    def wrong_drift(self) -> float: ...


def learned_rows(
    config: Draws, problem: ControlProblem, space: Space, kind: str, estimators: Sequence[str], step: Callable[[], None]
) -> Iterator[tuple[Any, ...]]:
    """A row of `COLUMNS` for each estimator in a class, which is called `kind`; step : called after each fit.

    The penalty of "doob" is chosen by cross-validation over the paths of the first seed.
    """
    wrong = replace(problem, drift=WrongDrift(problem.drift, config.wrong_drift))
    measure = yardstick(problem, sampled_law_measure(problem, space, n=config.held_out, rng=1), space, norm="mass")
    step()
    learned: dict[str, list[FloatArray]] = {name: [] for name in estimators}
    for seed in range(config.seeds):
        paths = sample_paths(problem, n=config.paths, steps=config.steps, rng=config.seed + seed)
        for name, found in learned.items():
            if name == "doob" and not seed:
                penalty = choose_penalty(problem, paths, space)
            how = penalty if name == "doob" else name.split(",")[0]
            system = assemble(wrong if name == WRONG else problem, paths, space, estimator=how)
            found.append(np.ravel(solve_system(system, figures=False).coefficients))
            step()
    a, size = measure.approximation, measure.size
    for name, found in learned.items():
        centre = np.mean(found, axis=0)
        square = sum(measure.norm(c - centre) ** 2 for c in found) / (config.seeds - 1)
        bias = np.sqrt(max(measure.distance(centre) ** 2 - square / config.seeds, 0.0))
        errors = np.array([measure.distance(c) for c in found])
        error = np.sqrt(np.mean(errors**2))
        sizes = np.array([a, bias, np.sqrt(square), error, errors.min(), errors.max()]) / size
        yield (problem.dim, kind, name, space.spatial.n_dofs, *sizes.tolist(), float(error / a))


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    def column(name: str, **where: Any) -> FloatArray:
        place = {key: COLUMNS.index(key) for key in (name, *where)}
        return np.array([row[place[name]] for row in rows if all(row[place[k]] == v for k, v in where.items())])

    for d in config.dims:
        for name, low, high in (("generator", 1.0, 2.0), (WRONG, 1.0, 2.0), ("residual", 3.0, 10.0)):
            bias, best = (
                column(what, d=d, estimator=name, **{"class": "aligned"})[0] for what in ("bias", "approximation")
            )
            value, text = float(bias / best), f"d = {d}, aligned: bias of {name} over the error of the class"
            yield Claim(text=text, value=value, low=low, high=high, control=name == WRONG)
        for worse, better, control in (("turned", "aligned", False), ("linear", "linear of z", True)):
            of = [column("error", d=d, estimator="generator", **{"class": kind})[0] for kind in (worse, better)]
            text = f"d = {d}: error of generator in the class {worse} over that in {better}"
            yield Claim(text=text, value=float(of[0] / of[1]), low=1.4, high=10.0, control=control)
    finest = (("fine", "regression", 0.35), ("linear", "regression", 0.35), ("fine", "doob", _DAMPED))
    for kind, name, high in finest if config.dim in config.dims else ():
        own, labels = (
            column("spread", d=config.dim, estimator=one, **{"class": kind})[0] for one in ("generator", name)
        )
        text = f"d = {config.dim}, {kind}: spread of generator over that of {name}"
        yield Claim(text=text, value=float(own / labels), low=0.0, high=high, control=kind == "linear")


def figure(trial: Trial) -> Figure:
    """Errors against d, with those of the classes themselves; and noise against these in one dimension."""
    config = trial.config
    made = Figure(figsize=(12.0, 3.6), layout="constrained")
    panels = made.subplots(1, 3)
    kinds = ("linear", "cosines", "turned", "aligned")
    for panel, estimator in zip(panels, ("generator", "regression"), strict=False):
        for style, kind in zip(STYLES, kinds, strict=False):
            where = {"class": kind, "estimator": estimator}
            error, low, high = (trial.column(name, **where) for name in ("error", "error low", "error high"))
            panel.loglog(config.dims, error, **style, label=kind)
            panel.fill_between(config.dims, low, high, color=style["color"], alpha=0.2, linewidth=0.0)
            best = trial.column("approximation", **where)
            panel.loglog(config.dims, best, color=style["color"], linewidth=0.8, linestyle=":")
        panel.set(xlabel="dimension $d$", ylabel="relative error of $f$", title=f"{estimator}, $n = {config.paths}$")
        ticks_at(panel.xaxis, config.dims)
    panels[0].plot([], [], color="0.5", linewidth=0.8, linestyle=":", label="best of the class")
    panels[0].legend(fontsize="small")
    panels[1].sharey(panels[0])
    for style, estimator in zip(STYLES, ("generator", "regression", "doob"), strict=False):
        each = [{"d": config.dim, "estimator": estimator, "class": kind} for kind in _POLYNOMIALS]
        a, spread, size = (
            np.concatenate([trial.column(name, **one) for one in each])
            for name in ("approximation", "spread", "features")
        )
        panels[2].loglog(a, spread / np.sqrt(size), **style, label=estimator)
    panels[2].set(xlabel="best of the class $a$", ylabel="spread per root of the features", title=f"$d = {config.dim}$")
    ticks_at(panels[2].xaxis, (0.01, 0.02, 0.04))
    panels[2].legend(fontsize="small")
    return made
