r"""Tilting a mixture of two Gaussians in up to twenty dimensions: what a dictionary must know of where the modes lie.

A diffusion model whose data have two modes, at -m u and 1.2 m u for a unit vector u, is fine-tuned to a linear reward,

    dX = beta (X/2 + grad log p_t(X)) dt + beta^{1/2} dB,  p_T = 0.4 N(-m u, s^2) + 0.6 N(1.2 m u, s^2),
    y(x) = k c'x,  c = 0.7 u + 0.71 w,  r = 0,  alpha = T = 1,

u along the diagonal, w a random unit vector orthogonal to it. The value is in closed form (`mixture_diffusion`); f is
an exponential of c'x times a function of t and u'x, the odds of the modes, neither polynomial nor exponential.

Classes: features times exp(0.6 y), times quadratics in `time_cells` cells:

    linear       1, x_1, .., x_d
    cubic, ...   and (u'x)^2, .., (u'x)^p, as Hermite polynomials, p = 3, 5
    across       the powers up to 5 of w'x instead

a is the distance of the class from f*, relative in the norm of int E[f^2] dt + E[f_T^2]; spread and bias are those of
the learned f over the seeds, errors root mean squares. What is claimed for each d: the error of "generator" is that of
the class, so that its advantage over regression is about (1 + (spread of regression / a)^2)^{1/2}, and over "doob",
regression with a gradient penalty (see `learning.matching`), hardly less; its noise is a fraction of that of
regression. Powers of u'x are worth what the class gains by them. Not claimed: that this noise falls with a from class
to class, as in `self-mitigation`; it hardly does.

"log regression" is the baseline in the log domain: v = log f in the span of the features without their envelope, by

    min int E[ exp(label - v) + v ] dt + E[ exp(y - v_T) + v_T ],   label = y(X_T),

which is convex and, as log m = min_v (m e^{-v} + v - 1), least for v*, whatever the law. Its class is another, with an
approximation error of its own (in the table that of the least squares fit of v* weighted with f*^2, the best to first
order); its noise is that of the labels.

Controls: a wrong drift; the noise of "doob" and of log regression; powers across the modes. Sources: arXiv 2509.02528;
Garg, Hejna, Geist and Ermon, Extreme Q-Learning, arXiv 2301.02328 (regression with exp(label - v) + v).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.experiments.rotated_wells import COLUMNS, WRONG, learned_rows
from fem_hjb.experiments.trial import Claim, Trial, check_seeds, conclude
from fem_hjb.learning.measures import sampled_law_measure
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems import zoo
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.spaces.basis import Tables
from fem_hjb.spaces.dictionary import Dictionary, Envelope, Union
from fem_hjb.spaces.features import HermiteCross
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """dims : d.  tilt : k.  mode, variance : m, s^2.  beta : of the noise.  time_cells : of the class.

    paths, steps : of the data.  held_out : samples of the law at each Gauss point in time.  wrong_drift : the size of
    what the control adds to the drift.  seed : of the first paths; the others follow.
    """

    dims: tuple[int, ...] = (2, 5, 10, 20)
    tilt: float = 0.5
    mode: float = 0.7
    variance: float = 0.3
    beta: float = 1.0
    time_cells: int = 4
    paths: int = 1000
    steps: int = 16
    seeds: int = 6
    held_out: int = 500
    wrong_drift: float = 1.0
    seed: int = 100


QUICK = Config(dims=(3,), paths=400, seeds=3, held_out=100)

_POWERS = {"linear": 1, "cubic": 3, "quintic": 5, "across": 5}
_LADDER = ("linear", "cubic", "quintic")
_MOST = "cubic"  # the class in which all estimators learn
_ENVELOPE = 0.6  # of y
_LEAN = 0.7  # c'u
_BAND = 0.15
_LOG = "log regression"
_GREY: dict[str, Any] = {"color": "0.5", "marker": "x", "linewidth": 0.8}
_NEWTON, _SETTLED, _SHIFT = 50, 1e-10, 1e-12


@final
class Ridge(Dictionary):
    """The powers 2, .., p of direction'x, as Hermite polynomials orthonormal under the law of direction'x."""

    def __init__(self, law: Gaussian, direction: FloatArray, power: int) -> None:
        self._set("ridge", law, power - 1, power)
        self.direction = direction
        line = Gaussian([direction @ law.expectation], float(direction @ law.covariance @ direction))
        self._base = HermiteCross(line, power)

    def _tables(self, x: FloatArray, order: int) -> Tables:
        tables = self._base._tables((x @ self.direction)[:, None], order)
        grown = [tables[0][:, 2:]]
        if order >= 1:
            grown.append(tables[1][:, 2:] * self.direction)
        if order == 2:
            grown.append(tables[2][:, 2:] * np.outer(self.direction, self.direction))
        return tuple(grown)

    def _rows(
        self, x: FloatArray, value: FloatArray, gradient: FloatArray | None, hessian: FloatArray | None
    ) -> FloatArray:
        u = self.direction
        slope = None if gradient is None else (gradient @ u)[:, None]
        curvature = None if hessian is None else np.asarray(u @ hessian @ u)[..., None, None]
        return self._base._rows((x @ u)[:, None], value, slope, curvature)[:, 2:]


def directions(dim: int) -> tuple[FloatArray, FloatArray]:
    """u and w, always the same for a dimension."""
    start = np.column_stack([np.ones(dim), np.random.default_rng(dim).standard_normal(dim)])
    basis = np.linalg.qr(start)[0]
    return basis[:, 0] * np.sign(basis[0, 0]), basis[:, 1]


def tilted_mixture(dim: int, config: Config) -> ControlProblem:
    """The problem, with value and law."""
    u, w = directions(dim)
    reward = LogSumExpReward.linear(config.tilt * (_LEAN * u + np.sqrt(1 - _LEAN**2) * w), temperature=1.0)
    return zoo.get(
        "mixture-diffusion",
        dim=dim,
        weights=[0.4, 0.6],
        means=np.stack([-config.mode * u, 1.2 * config.mode * u]),
        covariances=np.broadcast_to(config.variance * np.eye(dim), (2, dim, dim)),
        beta=config.beta,
        reward=reward,
    )


def _space(problem: ControlProblem, kind: str, config: Config) -> Space:
    d, law = problem.dim, Gaussian(np.zeros(problem.dim), 1.0)
    u, w = directions(d)
    features: Dictionary = HermiteCross(law, 1)
    if _POWERS[kind] > 1:
        features = Union(features, Ridge(law, w if kind == "across" else u, _POWERS[kind]))
    slope = problem.y(np.eye(d)) - problem.y(np.zeros((1, d)))
    features = Envelope(features, np.zeros((d, d)), _ENVELOPE * slope)
    return Space.product(LineBasis.uniform(problem.horizon, config.time_cells, "P2"), features)


def _estimators(kind: str) -> tuple[str, ...]:
    return ("regression", "generator", *(("residual", "doob", WRONG) if kind == _MOST else ()))


def log_regression(rows: FloatArray, labels: FloatArray, weights: FloatArray) -> FloatArray:
    """The c of the least sum_i weights_i (exp(labels_i - v_i) + v_i), v = rows c, by Newton's method.

    The sum is convex in c, and under the law least for v = log E[e^y | x], among all v.

    Raises ConvergenceError if the last of the steps still changes it.
    """
    gram = rows.T @ (weights[:, None] * rows)
    shift = _SHIFT * np.diag(gram.diagonal())
    c = np.linalg.solve(gram + shift, rows.T @ (weights * labels))  # mean labels, by Jensen's inequality below v
    for _ in range(_NEWTON):
        v = rows @ c
        pull = weights * np.exp(labels - v)
        value = pull.sum() + weights @ v
        slope = rows.T @ (pull - weights)
        change = np.linalg.solve(rows.T @ (pull[:, None] * rows) + shift, slope)
        promised = float(change @ slope)
        if promised < _SETTLED * abs(value):
            return np.asarray(c, dtype=np.float64)
        size = 1.0
        while _log_loss(rows, labels, weights, c + size * change) > value - 0.25 * size * promised and size > _SETTLED:
            size *= 0.5
        c = c + size * change
    raise ConvergenceError(f"Newton's method for v did not settle in {_NEWTON} steps; take more paths")


def _log_loss(rows: FloatArray, labels: FloatArray, weights: FloatArray, c: FloatArray) -> float:
    v = rows @ c
    with np.errstate(over="ignore"):  # infinite is too long a step
        return float(weights @ (np.exp(labels - v) + v))


def _design(space: Space, t: FloatArray, x: FloatArray) -> FloatArray:
    """All functions of a class without its envelope at points, (m, N)."""
    features = cast(Envelope, space.spatial).base
    found = features.operator_rows(np.zeros(len(x), dtype=np.int64), x, 1.0, None, None)
    return np.asarray((space.time.design_matrix(t).toarray()[:, :, None] * found[:, None, :]).reshape(len(x), -1))


def _log_row(config: Config, problem: ControlProblem, space: Space, kind: str, step: Any) -> tuple[Any, ...]:
    """As `learned_rows`, of regression for v in the features without their envelope."""
    law = sampled_law_measure(problem, space, n=config.held_out, rng=1)
    t = np.concatenate([law.t, np.full(len(law.terminal_x), problem.horizon)])
    x, weights = np.concatenate([law.x, law.terminal_x]), np.concatenate([law.weights, law.terminal_weights])
    rows, v = _design(space, t, x), cast(ValueFunction, problem.exact).value(t, x)
    f = np.exp(v)
    root = np.sqrt(weights) * f
    best = np.linalg.lstsq(root[:, None] * rows, root * v, rcond=None)[0]  # to first order, |f - f*| = |f* (v - v*)|
    found = []
    for seed in range(config.seeds):
        paths = sample_paths(problem, n=config.paths, steps=config.steps, rng=config.seed + seed)
        count, times = paths.x.shape[:2]
        each = np.append(np.diff(paths.t), 1.0) / count
        labels = np.repeat(problem.y(paths.x[:, -1]), times)
        seen = _design(space, np.tile(paths.t, count), paths.x.reshape(count * times, -1))
        found.append(np.exp(rows @ log_regression(seen, labels, np.tile(each, count))))
        step()
    size = np.sqrt(weights @ f**2)
    centre = np.mean(found, axis=0)
    errors = np.array([np.sqrt(weights @ (one - f) ** 2) for one in found]) / size
    spread = np.sqrt(sum(weights @ (one - centre) ** 2 for one in found) / (config.seeds - 1)) / size
    a, error = np.sqrt(weights @ (np.exp(rows @ best) - f) ** 2) / size, float(np.sqrt(np.mean(errors**2)))
    bias = np.sqrt(max(weights @ (centre - f) ** 2 / size**2 - spread**2 / config.seeds, 0.0))
    sizes = [float(one) for one in (a, bias, spread, error, errors.min(), errors.max(), error / a)]
    return (problem.dim, kind, _LOG, space.spatial.n_dofs, *sizes)


def run(config: Config, tell: Progress) -> Trial:
    """One row per dimension, class and estimator; low and high are the least and the largest of the seeds."""
    check_seeds(config.seeds)
    started = time.perf_counter()
    step = steps_of(
        tell, len(config.dims) * (config.seeds + sum(config.seeds * len(_estimators(kind)) + 1 for kind in _POWERS))
    )
    rows: list[tuple[Any, ...]] = []
    for d in config.dims:
        problem = tilted_mixture(d, config)
        for kind in _POWERS:
            rows += learned_rows(config, problem, _space(problem, kind, config), kind, _estimators(kind), step)
        rows.append(_log_row(config, problem, _space(problem, _MOST, config), _MOST, step))
    return conclude(config, COLUMNS, rows, _claims(config, rows), started)


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    def column(name: str, d: int, kind: str, estimator: str) -> float:
        (row,) = (row for row in rows if row[:3] == (d, kind, estimator))
        return float(row[COLUMNS.index(name)])

    for d in config.dims:
        for name in ("generator", WRONG):
            value = column("over class", d, _MOST, name)
            text = f"d = {d}, {_MOST}: error of {name} over that of the class"
            yield Claim(text=text, value=value, low=1.0, high=1.4, control=name == WRONG)
        for name in ("generator", "doob", _LOG):
            value = column("spread", d, _MOST, name) / column("spread", d, _MOST, "regression")
            text = f"d = {d}, {_MOST}: spread of {name} over that of regression"
            yield Claim(text=text, value=value, low=0.0, high=0.35, control=name != "generator")
        baseline = column("error", d, _MOST, "regression")
        for name in ("generator", WRONG):
            expected = np.hypot(
                1.0, column("spread", d, _MOST, "regression") / column("approximation", d, _MOST, "regression")
            )
            value = float(baseline / column("error", d, _MOST, name) / expected)
            text = f"d = {d}, {_MOST}: advantage of {name} over the expected"
            yield Claim(text=text, value=value, low=1 - _BAND, high=1 + _BAND, control=name == WRONG)
        for name in ("doob", _LOG):
            value = column("error", d, _MOST, name) / column("error", d, _MOST, "generator")
            yield Claim(text=f"d = {d}, {_MOST}: error of {name} over generator's", value=value, low=1.2, high=100.0)
        for kind in ("quintic", "across"):
            value = column("error", d, "linear", "generator") / column("error", d, kind, "generator")
            text = f"d = {d}: error of generator in the class linear over that in {kind}"
            yield Claim(text=text, value=value, low=1.5, high=100.0, control=kind == "across")


def figure(trial: Trial) -> Figure:
    """Errors against d, with those of the classes themselves; and noise against these."""
    config = trial.config
    made = Figure(figsize=(12.0, 3.8), layout="constrained")
    panels = made.subplots(1, 3)
    for panel, estimator in zip(panels, ("generator", "regression"), strict=False):
        for style, kind in zip(STYLES, _POWERS, strict=False):
            where = {"class": kind, "estimator": estimator}
            error, low, high = (trial.column(name, **where) for name in ("error", "error low", "error high"))
            panel.loglog(config.dims, error, **style, label=kind)
            panel.fill_between(config.dims, low, high, color=style["color"], alpha=0.2, linewidth=0.0)
            best = trial.column("approximation", **where)
            panel.loglog(config.dims, best, color=style["color"], linewidth=0.8, linestyle=":")
        panel.set(xlabel="dimension $d$", ylabel="relative error of $f$", title=f"{estimator}, $n = {config.paths}$")
        ticks_at(panel.xaxis, config.dims)
    panels[0].plot([], [], color="0.5", linewidth=0.8, linestyle=":", label="best of the class")
    panels[1].loglog(config.dims, trial.column("error", estimator=_LOG), **_GREY)
    panels[0].plot([], [], **_GREY, label=f"{_LOG}, {_MOST}")
    panels[1].sharey(panels[0])
    for style, d in zip(STYLES, config.dims, strict=False):
        for estimator in ("generator", "regression"):
            each = [{"d": d, "estimator": estimator, "class": kind} for kind in _LADDER]
            a, spread, size = (
                np.concatenate([trial.column(name, **one) for one in each])
                for name in ("approximation", "spread", "features")
            )
            look = style if estimator == "generator" else {**style, "markerfacecolor": "none"}
            panels[2].loglog(a, spread / np.sqrt(size), **look, label=f"$d = {d}$, {estimator}")
    panels[2].set(xlabel="best of the class $a$", ylabel="spread per root of the features", title="noise")
    ticks_at(panels[1].xaxis, config.dims)  # again: other curves have come
    ticks_at(panels[2].xaxis, (0.01, 0.02))
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize="x-small")
    made.legend(*panels[2].get_legend_handles_labels(), loc="outside lower right", ncols=4, fontsize="x-small")
    return made
