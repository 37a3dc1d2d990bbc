r"""Over long horizons values and policies approach a ground state, at the rate of its spectral gap.

For coefficients that do not depend on time, v_t = lambda (T - t) + w + a constant + O(exp(-gap (T - t))), where lambda,
w and the gap are those of (G + r/alpha) phi = (lambda/alpha) phi, w = alpha log phi (`ground_state`). Two solvers that
share no equation are compared: the backward equation in time (`solve_on_mesh`), with a terminal reward that is not w,
and the eigenvalue problem. Under the stationary law p of the controlled process, at several times to go,

    value : the standard deviation of v_t - w under p,          policy : (E_p |pi_t - pi|^2)^{1/2},

both fall as exp(-gap (T - t)). The average reward is the slope of E_p v_t in the time to go.

Settings: reflection in an interval with r = cos(2x), a tilted double well on the line with r = -(x - 1)^2, and, in the
full version, reflection in a square with a drift that turns. The controls: the gap of the process without rewards and
policy, and the policy of the ground state at another temperature, which nothing approaches.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.experiments.trial import Claim, Trial, conclude, fitted_slope
from fem_hjb.plotting.pictures import STYLES
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Uniform
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.ground_state import ground_state
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, part_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """settings : of "interval", "well", "square".  times : to go, in units of 1 / gap; rates are fitted over them.

    cells : of the backward equation in one dimension, half of them per axis in two.  rtol_time : of its time steps.
    rtol : of ground states.  warmer : the factor of the temperature of the
    control's policy.
    """

    settings: tuple[str, ...] = ("interval", "well", "square")
    times: tuple[float, ...] = (3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0)
    cells: int = 64
    rtol_time: float = 1e-8
    rtol: float = 1e-6
    warmer: float = 1.5


QUICK = Config(settings=("interval", "well"), times=(4.0, 5.0, 6.0), cells=32, rtol=1e-4)

_COLUMNS = ("setting", "time to go", "value", "policy", "warmer policy", "mean value", "lambda", "gap", "free gap")


def setting(name: str, horizon: float) -> ControlProblem:
    """A problem at rest, with a horizon; with 0.2 cos(pi x_1) paid at its end."""
    more: dict[str, Any] = {"horizon": horizon, "diffusion": 1.0, "name": name}
    more["terminal_reward"] = lambda x: 0.2 * np.cos(np.pi * x[..., 0])
    if name == "well":
        return ControlProblem(
            dim=1,
            temperature=0.7,
            drift=lambda t, x: -2 * x * (x**2 - 1) - 0.2,
            running_reward=lambda t, x: -((x[..., 0] - 1) ** 2),
            initial_law=Gaussian([0.0], 0.5),
            **more,
        )
    dim = 1 if name == "interval" else 2
    box, turn = Box([0.0] * dim, [1.0] * dim), np.array([[-0.5, 2.0], [-2.0, -0.5]])[:dim, :dim]
    return ControlProblem(
        dim=dim,
        temperature=0.2,
        drift=lambda t, x: (x - 0.5) @ turn.T,
        running_reward=lambda t, x: np.cos(2 * x).sum(-1),
        initial_law=Uniform(box),
        domain=box,
        **more,
    )


def run(config: Config, tell: Progress) -> Trial:
    """One row per setting and time to go."""
    started = time.perf_counter()
    ends = np.linspace(0.0, 1.0, len(config.settings) + 1).tolist()
    rows = [
        row
        for k, name in enumerate(config.settings)
        for row in _rows(config, name, part_of(tell, ends[k], ends[k + 1]))
    ]
    tell(1.0)
    return conclude(config, _COLUMNS, rows, _claims(rows), started)


def _rows(config: Config, name: str, tell: Progress) -> Iterator[tuple[Any, ...]]:
    at_rest = setting(name, 1.0)
    ground = ground_state(at_rest, rtol=config.rtol, progress=part_of(tell, 0.0, 0.1))
    free = replace(at_rest, running_reward=None)
    free_gap = ground_state(free, rtol=config.rtol, progress=part_of(tell, 0.1, 0.2)).gap
    warm = replace(at_rest, temperature=config.warmer * at_rest.temperature)
    warmer = ground_state(warm, rtol=config.rtol, progress=part_of(tell, 0.2, 0.3))
    horizon = max(config.times) / ground.gap
    timed = setting(name, horizon)
    region = ground.function.basis.box if timed.domain is None else timed.domain
    few = {"cells": config.cells, "element": "P4"} if timed.dim == 1 else {"cells": config.cells // 2, "element": "P2"}
    more: dict[str, Any] = {**few, "box": region, "rtol_time": config.rtol_time}
    solution = solve_on_mesh(timed, **more, progress=part_of(tell, 0.3, 0.95))
    x, weights = _law(ground, np.random.default_rng(0))

    def spread(rows: FloatArray) -> float:
        return float(np.sqrt(weights @ (rows**2).sum(axis=-1)))

    w, policy, other = ground.value(x), ground.policy(x), warmer.policy(x)
    for to_go in config.times:
        t = horizon - to_go / ground.gap
        apart = solution.value(t, x) - w
        mean = float(weights @ apart)
        steered = solution.policy(t, x)
        yield (
            *(name, to_go / ground.gap, spread((apart - mean)[:, None]), spread(steered - policy)),
            *(spread(steered - other), mean, ground.average_reward, ground.gap, free_gap),
        )
    tell(1.0)


def _law(ground: Any, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Points and weights of the stationary law: uniform ones where it is not negligible, by its density."""
    lower, upper = ground.function.basis.box.bounds
    x = lower + (upper - lower) * rng.random((4000, ground.problem.dim))
    if ground.problem.domain is not None:
        x = x[ground.problem.domain.contains(x)]
    density = ground.density(x)
    kept = density > 1e-4 * density.max()
    return x[kept], density[kept] / density[kept].sum()


def _claims(rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    for name in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == name]
        table = {
            key: np.array(column, dtype=np.float64)
            for key, column in zip(_COLUMNS[1:], list(zip(*mine, strict=True))[1:], strict=True)
        }
        gap, free, to_go = table["gap"][0], table["free gap"][0], table["time to go"]
        for what in ("value", "policy"):
            rate = -fitted_slope(np.exp(to_go), table[what]).value
            yield Claim(text=f"{name}: rate of the {what} over the gap", value=rate / gap, low=0.95, high=1.05)
            text = f"{name}: rate of the {what} over the gap of the free process"
            yield Claim(text=text, value=rate / free, low=0.95, high=1.05, control=True)
        rate = -fitted_slope(np.exp(to_go), table["warmer policy"]).value
        text = f"{name}: rate towards the policy of another temperature over the gap"
        yield Claim(text=text, value=rate / gap, low=0.95, high=1.05, control=True)
        earned = float((table["mean value"][-1] - table["mean value"][-2]) / (to_go[-1] - to_go[-2]))
        off = abs(earned / table["lambda"][0] - 1.0)
        yield Claim(text=f"{name}: slope of the mean value over lambda, off 1 by", value=off, low=0.0, high=0.01)


def figure(trial: Trial) -> Figure:
    """Distances to the ground state against the time to go in units of 1 / gap."""
    made = Figure(figsize=(8.0, 3.2), layout="constrained")
    axes = made.subplots(1, 2)
    for panel, what in zip(axes, ("value", "policy"), strict=True):
        for style, name in zip(STYLES, dict.fromkeys(str(row[0]) for row in trial.rows), strict=False):
            to_go = trial.column("time to go", setting=name) * trial.column("gap", setting=name)
            panel.semilogy(to_go, trial.column(what, setting=name), **style, label=name)
        panel.set_xlabel(r"time to go, times the gap")
        panel.set_ylabel(f"distance of the {what}")
        panel.legend()
    return made
