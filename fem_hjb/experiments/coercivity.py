r"""Coercivity mu, norm L and contraction rho of B_delta against E_delta do not depend on the time mesh if delta > 0.

B_delta tests the equation with g - delta d_t g; rho is the smallest |I - gamma E^{-1} B|_E over gamma, the rate of the
projected iteration. For delta = 0 the norm of B grows with the number of time cells and rho tends to 1. Cea's constant
|f_bar - f*|_E / |f_best - f*|_E of the Galerkin solution is bounded by L / mu.

Refinement in space is another matter, and the second series shows it. mu stays, but B_delta pairs delta d_t g with the
second derivatives in G f, which E_delta does not hold: where time is refined along, L grows like sqrt(delta)/h once the
cells are shorter than a few sqrt(delta). A class on cells of width h keeps its contraction with delta of the order h^2.

Linear-quadratic problem on the line, forms under the exact law (weak form: no boundary terms where the box ends),
splines of degree 3 in space and 2 in time.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.experiments.trial import Claim, Trial, conclude, fitted_slope
from fem_hjb.learning.inequality import diagnose
from fem_hjb.learning.measures import law_measure
from fem_hjb.learning.population import yardstick
from fem_hjb.learning.solve_system import reduce_system, solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.spaces.space import Space
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """in_time, in_space : (time cells, cells) of the two series.  half_width : of the box (the law has deviation 0.7).

    deltas : must hold 0, the control, and the last one is that of the second series.
    """

    in_time: tuple[tuple[int, int], ...] = ((4, 12), (8, 12), (16, 12), (32, 12), (64, 12))
    in_space: tuple[tuple[int, int], ...] = ((8, 12), (12, 18), (16, 24), (24, 36))
    deltas: tuple[float, ...] = (0.0, 0.05, 0.2)
    half_width: float = 3.5


QUICK = Config(in_time=((4, 12), (8, 12), (16, 12)), in_space=((8, 12), (16, 24)), deltas=(0.0, 0.2))

_COLUMNS = ("series", "time cells", "cells", "delta", "mu", "L", "rho", "Cea")


def run(config: Config, tell: Progress) -> Trial:
    """One row per class and delta."""
    started = time.perf_counter()
    problem = zoo.get("lq", dim=1)
    box = Box([-config.half_width], [config.half_width])
    rows, step = [], steps_of(tell, len(config.deltas) * (len(config.in_time) + len(config.in_space)))
    for series, classes in (("time", config.in_time), ("space", config.in_space)):
        for (time_cells, cells), delta in product(classes, config.deltas):
            space = Space(problem, cells=cells, time_cells=time_cells, element="B3", time_smooth=True, box=box)
            law = law_measure(problem, space)
            system = assemble(problem, law, space, estimator="weak", delta=delta)
            found = diagnose(reduce_system(system).inequality)
            measure = yardstick(problem, law, space, delta=delta)
            cea = measure.distance(solve_system(system).coefficients) / measure.approximation
            rows.append((series, time_cells, cells, delta, found.coercivity, found.norm, found.contraction, cea))
            step()
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    table = np.array([row[1:] for row in rows], dtype=np.float64)
    refined_in_time = np.array([row[0] == "time" for row in rows])
    for delta in config.deltas:
        here = table[refined_in_time & (table[:, 2] == delta)]
        yield Claim(
            text=f"delta = {delta:g}: exponent of L in the time cells",
            value=fitted_slope(here[:, 0], here[:, 4]).value,
            low=-0.15,
            high=0.15,
            control=delta == 0.0,
        )
        yield Claim(
            text=f"delta = {delta:g}: largest rho as time is refined",
            value=float(here[:, 5].max()),
            low=0.0,
            high=0.97,
            control=delta == 0.0,
        )
    delta = config.deltas[-1]
    mu = table[table[:, 2] == delta, 3]
    yield Claim(
        text=f"delta = {delta:g}: smallest mu over largest", value=float(mu.min() / mu.max()), low=0.9, high=1.0
    )
    here = table[~refined_in_time & (table[:, 2] == delta)]
    slope = fitted_slope(here[:, 1], here[:, 4]).value
    yield Claim(
        text=f"delta = {delta:g}: exponent of L in the cells, time refined too", value=slope, low=0.75, high=1.05
    )
    worst = float((table[:, 6] * table[:, 3] / table[:, 4]).max())
    yield Claim(text="Cea's constant relative to its bound L / mu", value=worst, low=0.0, high=1.0)


def figure(trial: Trial) -> Figure:
    """mu, L and 1 - rho against the number of time cells, and L against the cells; a line for each delta."""
    made = Figure(figsize=(11.0, 3.0), layout="constrained")
    panels = made.subplots(1, 4)
    shown = (("mu", "time", r"coercivity $\mu$"), ("L", "time", "norm $L$"), ("rho", "time", r"$1 - \rho$"))
    for panel, (name, series, label) in zip(panels, (*shown, ("L", "space", "norm $L$")), strict=True):
        for style, delta in zip(STYLES, trial.config.deltas, strict=False):
            cells = trial.column("time cells" if series == "time" else "cells", series=series, delta=delta)
            values = trial.column(name, series=series, delta=delta)
            panel.loglog(cells, 1 - values if name == "rho" else values, **style, label=rf"$\delta = {delta:g}$")
        panel.set_xlabel("time cells" if series == "time" else "cells in space and time")
        panel.set_ylabel(label)
        ticks_at(panel.xaxis, cells)
        if name == "mu":
            panel.set_ylim(0.1, 1.0)
    panels[0].legend()
    return made
