r"""Bounds from an approximate value hold v* at their level, from both sides and up to d = 20; terrible ones are told.

Linear-quadratic problems, whose optimal value v* is known, a start x0, and approximate values w = v* + g,

    g = eps d^{1/2} (1 - t/2T) e^{-|x|^2/2d}, eps small (good) or large (bad),   g = push sum_i x_i  (terrible).

Of the bumps the residual R of the HJB equation and the mismatch D = y - w_T = -g_T are bounded, by numbers that follow
from the eigenvalues of the matrices in

    R = d_t g + <b + pi*, grad g> + 1/2 Tr(Lambda Hess g) + 1/(2 alpha) grad g' Lambda grad g,

and are given to `certify(problem, w, value=w, bounds=...)`. Over `runs` certificates with fresh paths is counted how
often the interval of 95 per cent holds v*, and how often v* lies in [lower, upper]: between Jensen's lower bound and
that of Hoeffding's lemma, which is conservative, so that v* is there more often than the level says. Weights of the
terrible value degenerate, which must be said; its lower bound must hold.

The controls: where w is bad, the interval of Jensen's bound w_0 + E xi alone does not hold v* at its level; and bounds
of R and D that are too narrow, had nobody looked whether paths exceed them, would give an upper bound that is below v*
more often than the level says.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fem_hjb.evaluation.certify import certify
from fem_hjb.experiments.trial import Claim, Trial, conclude
from fem_hjb.plotting.pictures import STYLES
from fem_hjb.problems import zoo
from fem_hjb.problems.closed_form import LinearQuadratic
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """dims : of the problems.  runs : certificates per row, each of so many paths in so many steps.

    start : each coordinate of x0.  small, large : eps.  push : of the terrible value.
    narrow : the factor of the bounds that are too narrow.  seed : of the first certificate; the others follow.
    """

    dims: tuple[int, ...] = (1, 2, 10, 20)
    runs: int = 400
    paths: int = 512
    steps: int = 32
    start: float = 0.4
    small: float = 0.1
    large: float = 1.0
    push: float = 3.0
    narrow: float = 0.03
    seed: int = 0


QUICK = Config(dims=(1, 10), runs=24, paths=256)

GOOD, BAD, TERRIBLE = "good", "bad", "terrible"
_LEVEL, _WITHIN, _RUNS = 0.95, 0.03, 400  # with so many runs the share that holds is as near to the level as this
_COLUMNS = (
    *("d", "value", "degenerate", "holds", "bounded", "above lower", "Jensen alone", "narrow told", "narrow holds"),
    *("half width", "upper", "gap", "ess"),
)


@final
@dataclass(frozen=True, eq=False)
class Bump:
    """w = v* + size (1 - t/2T) e^{-|x|^2/2d}, with its residual, and bounds of that."""

    problem: ControlProblem
    size: float

    def _g(self, t: float, x: FloatArray) -> FloatArray:
        fades = 1.0 - t / (2.0 * self.problem.horizon)
        return np.asarray(self.size * fades * np.exp(-(x**2).sum(-1) / (2.0 * self.problem.dim)))

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return np.asarray(_exact(self.problem).value(t, x) + self._g(t, x))

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        return np.asarray(_exact(self.problem).gradient(t, x) - x / self.problem.dim * self._g(t, x)[..., None])

    def residual(self, t: float, x: FloatArray) -> FloatArray:
        d, T, g = self.problem.dim, self.problem.horizon, self._g(t, x)
        Lambda, (M, m) = self.problem.Lambda(t, x[0]), _steered(self.problem, t)
        spread = ((x @ Lambda) * x).sum(1) / d**2
        moved = -((x @ M.T + m) * x).sum(1) / d + (spread - np.trace(Lambda) / d) / 2.0
        return np.asarray(g * (moved - 1.0 / (2.0 * T - t)) + spread * g**2 / (2.0 * self.problem.temperature))

    @property
    def bounds(self) -> ArrayLike:
        """((least R, largest R), (least D, largest D)), by the eigenvalues of quadratic forms, |x|^2 = s on a grid."""
        d, T, alpha = self.problem.dim, self.problem.horizon, self.problem.temperature
        Lambda, s = self.problem.Lambda(0.0, np.zeros(d)), np.geomspace(1e-6, 400.0, 4001) * d
        least, most = np.inf, -np.inf
        for t in np.linspace(0.0, T, 65).tolist():
            M, _ = _steered(self.problem, t)
            form = np.linalg.eigvalsh(-(M + M.T) / (2 * d) + Lambda / (2 * d**2))
            g = self.size * (1.0 - t / (2 * T)) * np.exp(-s / (2 * d))
            rest = -np.trace(Lambda) / (2 * d) - 1.0 / (2 * T - t)
            pushed = np.linalg.eigvalsh(Lambda)[-1] * s / d**2 * g**2 / (2 * alpha)
            least = min(least, float((g * (form[0] * s + rest)).min()))
            most = max(most, float((g * (form[-1] * s + rest) + pushed).max()))
        slack = 1e-3 * (most - least)  # for what lies between the times and radii of the grid
        return ((least - slack, most + slack), (-self.size / 2, 0.0))


@final
@dataclass(frozen=True, eq=False)
class Pushed:
    """w = v* + push sum_i x_i, with its residual; bounds None: it has none."""

    problem: ControlProblem
    push: float
    bounds: None = None

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return np.asarray(_exact(self.problem).value(t, x) + self.push * x.sum(-1))

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        return np.asarray(_exact(self.problem).gradient(t, x) + self.push)

    def residual(self, t: float, x: FloatArray) -> FloatArray:
        M, m = _steered(self.problem, t)
        pushed = self.push**2 * self.problem.Lambda(t, x[0]).sum() / (2.0 * self.problem.temperature)
        return np.asarray(self.push * (x @ M.T + m).sum(1) + pushed)


def _exact(problem: ControlProblem) -> LinearQuadratic:
    return cast(LinearQuadratic, problem.exact)


def _steered(problem: ControlProblem, t: float) -> tuple[FloatArray, FloatArray]:
    """b + pi* = M x + m, from d + 1 points."""
    corners = np.vstack([np.zeros(problem.dim), np.eye(problem.dim)])
    values = problem.b(t, corners) + _exact(problem).policy(t, corners)
    return (values[1:] - values[0]).T, values[0]


def run(config: Config, tell: Progress) -> Trial:
    """One row per dimension and approximate value."""
    started = time.perf_counter()
    kinds = (GOOD, BAD, TERRIBLE)
    step = steps_of(tell, len(config.dims) * len(kinds) * config.runs)
    rows = [_row(config, d, kind, step) for d in config.dims for kind in kinds]
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _row(config: Config, d: int, kind: str, step: Callable[[], None]) -> tuple[Any, ...]:
    problem, x0 = zoo.get("lq", dim=d), np.full(d, config.start)
    truth = float(_exact(problem).value(0.0, x0))
    size = {GOOD: config.small, BAD: config.large}.get(kind, 0.0) * np.sqrt(d)
    w: Any = Pushed(problem, config.push) if kind == TERRIBLE else Bump(problem, float(size))
    how: dict[str, Any] = {"x0": x0, "n": config.paths, "steps": config.steps, "level": _LEVEL, "value": w}
    found, narrow = [], []
    bounds = w.bounds
    for k in range(config.runs):
        found.append(certify(problem, w, rng=config.seed + k, bounds=bounds, **how))
        if bounds is not None and k < config.runs // 4:
            narrow.append(certify(problem, w, rng=config.seed + k, bounds=config.narrow * np.array(bounds), **how))
        step()
    judged = [one for one in found if np.isfinite(one.value)]
    length = config.narrow * float(np.diff(bounds).sum()) if bounds is not None else 0.0
    unseen = [one.diffusion.reward.high + length**2 / (8.0 * problem.temperature) for one in narrow]
    return (
        *(d, kind, 1.0 - len(judged) / config.runs, _share([truth in one.diffusion.optimal for one in judged])),
        *(_share([one.lower <= truth <= one.upper for one in found]), _share([one.lower <= truth for one in found])),
        _share([truth in one.diffusion.reward for one in found]),
        *(_share(["beyond the bounds" in one.status for one in narrow]), _share([truth <= high for high in unseen])),
        *(float(np.median([one.diffusion.optimal.half_width for one in judged])) if judged else np.inf,),
        float(np.median([one.upper - truth for one in found])),
        *(float(np.median([one.gap.estimate for one in judged])) if judged else np.inf,),
        float(np.median([one.ess for one in found])),
    )


def _share(held: list[bool]) -> float:
    """Of those that hold; the level where there is none to ask."""
    return float(np.mean(held)) if held else _LEVEL


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    within = _WITHIN * np.sqrt(_RUNS / config.runs)
    for row in rows:
        values = dict(zip(_COLUMNS, row, strict=True))
        kind, of = values["value"], f"{values['value']}, d = {values['d']}"
        yield Claim(text=f"{of}: above the lower bound", value=values["above lower"], low=0.975 - within, high=1.0)
        if kind == TERRIBLE:
            yield Claim(text=f"{of}: said to be degenerate", value=values["degenerate"], low=0.95, high=1.0)
            continue
        band = {"low": _LEVEL - within, "high": min(_LEVEL + within, 1.0)}
        yield Claim(text=f"{of}: said to be degenerate", value=values["degenerate"], low=0.0, high=0.05)
        yield Claim(text=f"{of}: v* in its interval", value=values["holds"], **band)
        yield Claim(text=f"{of}: v* between the bounds", value=values["bounded"], low=band["low"], high=1.0)
        yield Claim(text=f"{of}: bounds too narrow are told", value=values["narrow told"], low=0.95, high=1.0)
        if kind == BAD:
            text = f"{of}: v* in the interval of Jensen's bound"
            yield Claim(text=text, value=values["Jensen alone"], low=band["low"], high=1.0, control=True)
            text = f"{of}: v* below an upper bound from bounds too narrow"
            yield Claim(text=text, value=values["narrow holds"], low=band["low"], high=1.0, control=True)


def figure(trial: Trial) -> Figure:
    """How often v* was held, and how far above it the upper bound is, against the dimension."""
    made = Figure(figsize=(8.0, 3.0), layout="constrained")
    holds, above = made.subplots(1, 2)
    holds.axhspan(_LEVEL - _WITHIN, _LEVEL + _WITHIN, color="0.9")
    for style, kind in zip(STYLES, (GOOD, BAD), strict=False):
        dims = trial.column("d", value=kind)
        holds.semilogx(dims, trial.column("holds", value=kind), **style, label=kind)
        above.loglog(dims, trial.column("upper", value=kind), **style, label=f"{kind}: upper bound - v*")
        hollow = style | {"markerfacecolor": "none"}
        above.loglog(dims, trial.column("half width", value=kind), **hollow, label=f"{kind}: half-width")
    holds.set_ylim(0.85, 1.0)
    for panel, label in ((holds, "v* in its interval of 95 per cent"), (above, "width")):
        panel.set_xlabel("dimension")
        panel.set_ylabel(label)
    above.legend(fontsize="x-small")
    return made
