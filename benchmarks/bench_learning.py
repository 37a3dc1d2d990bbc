"""What learning from trajectories costs in accuracy: a linear-quadratic problem on the line, classes of growing size.

    python benchmarks/bench_learning.py [--quick] [accuracy] [profile] [large] [sets]

The parts that are named, or all of them.

dX = -X dt + dB, X_0 ~ N(0, 1/2), r = y = -x^2/2, alpha = T = 1; n = 5000 trajectories of K = 50 steps; classes of
(time cells) x (space cells) on [-4, 4], quadratic in time. Errors of the gauged f, relative in L2(dt x p_t), medians
and maxima over 8 seeds; `galerkin` is the same class under the exact law. Then || f_hat - f_bar || against n in one
class; and where the seconds of a fit to 10^6 samples go.

Then what systems of many unknowns cost, 10^6 samples of a problem in two dimensions on [-4, 4]^2, in CPU seconds of one
run: the solution and the figures that judge it, by fronts after a nested dissection against SuperLU (and GMRES on its
incomplete factors), and how far the two solutions are apart; and the solution in convex sets with the residual
estimator on [-2, 2]^2, against Clarabel where that is installed and there are at most 9000 unknowns; in the two largest
classes one set each.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from rich.console import Console
from rich.table import Table

import fem_hjb as fh
from fem_hjb.learning import LinearSet, System, assemble, solve_system
from fem_hjb.learning.inequality import VariationalInequality, diagnose
from fem_hjb.learning.solve_system import reduce_system
from fem_hjb.learning.solvers import direct
from fem_hjb.support.errors import FemHjbError

CASES = (
    ("generator", "hermite", None),
    ("generator", "hermite", 0.0),
    ("corrected", "hermite", None),
    ("corrected", "P2", None),
    ("corrected", "P1", None),
)
CLASSES = ((2, 4), (4, 8), (8, 16))
LARGE = ((8, 4), (16, 8), (24, 12))  # cells per axis, time cells
SETS = ((8, 4), (12, 6), (16, 8))
LARGEST = ((22, 11, fh.Monotone(0)), (24, 12, fh.Bounds(0.1, 0.6)))  # one set for each of these: minutes
PROBLEM = fh.zoo.get("lq", dim=1)


def error(solution: fh.Solution, other: fh.Solution | None = None) -> float:
    """|| f - f_other || / || f_exact || in L2(dt x p_t), inside the box; other None: the exact one."""
    t = np.repeat(np.linspace(0.025, 0.975, 20), 601)
    x = np.tile(np.linspace(-3.5, 3.5, 601), 20)[:, None]
    inside = solution.space.spatial.box.contains(x)
    t, x = t[inside], x[inside]
    weights = np.exp(-(x[:, 0] ** 2))
    exact = solution.gauge.u(t, x, PROBLEM.exact.value(t, x))
    difference = solution.f(t, x) - (exact if other is None else other.f(t, x))
    return float(np.sqrt((weights @ difference**2) / (weights @ exact**2)))


def accuracy(console: Console, quick: bool) -> None:
    """Errors of classes, and the distance to the limit of many samples."""
    n, seeds = (500, 2) if quick else (5000, 8)
    table = Table(
        "estimator", "element", "smoothing", "class", "median", "max", "galerkin", "seconds", title=f"n = {n}"
    )
    for estimator, element, smoothing in CASES:
        for time_cells, cells in CLASSES:
            space = fh.Space(PROBLEM, cells=cells, time_cells=time_cells, element=element, box=fh.Box([-4.0], [4.0]))
            options = {"estimator": estimator, "smoothing": smoothing, "outside": "drop"}
            start = time.perf_counter()
            fits = [
                fh.fit(PROBLEM, fh.sample_paths(PROBLEM, n=n, steps=50, rng=seed), space, **options)
                for seed in range(seeds)
            ]
            seconds = (time.perf_counter() - start) / seeds
            galerkin = fh.fit(PROBLEM, fh.law_measure(PROBLEM, space), space, **options)
            errors = [error(fit) for fit in fits]
            table.add_row(
                *(estimator, element, "default" if smoothing is None else f"{smoothing:g}", f"{time_cells} x {cells}"),
                *(f"{e:.1e}" for e in (np.median(errors), np.max(errors), error(galerkin))),
                f"{seconds:.2f}",
            )
    console.print(table)

    steps, sizes = 16, (300, 1000) if quick else (1000, 3162, 10_000, 31_623, 100_000)
    repeats = (2, 2) if quick else (24, 24, 16, 10, 6)
    space = fh.Space(PROBLEM, cells=4, time_cells=2, box=fh.Box([-1.6], [1.6]))
    law = fh.law_measure(PROBLEM, space, times=np.linspace(0.0, 1.0, steps + 1))
    limit = fh.fit(PROBLEM, law, space, smoothing=0)
    distances = []
    for size, count in zip(sizes, repeats, strict=True):
        fits = [
            fh.fit(
                PROBLEM,
                fh.sample_paths(PROBLEM, n=size, steps=steps, rng=1000 + k),
                space,
                smoothing=0,
                outside="drop",
            )
            for k in range(count)
        ]
        distances.append(np.sqrt(np.mean([error(fit, limit) ** 2 for fit in fits])))
    slope = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
    console.print(f"|| f_hat - f_bar ||, n = {sizes}: {', '.join(f'{d:.1e}' for d in distances)}; slope {slope:.3f}")


def profile(console: Console, quick: bool) -> None:
    """Where the time of a fit goes."""
    table = Table(
        "class", "estimator", "samples", "unknowns", "assembly", "solve", "diagnostics", title="seconds of a fit"
    )
    for dim, cells, time_cells, estimator, n in (
        (1, 16, 8, "generator", 20_000),
        (1, 16, 8, "corrected", 20_000),
        (2, 16, 8, "generator", 20_000),
    ):
        if quick and dim > 1:
            continue
        problem = fh.zoo.get("lq", dim=dim)
        space = fh.Space(problem, cells=cells, time_cells=time_cells, box=fh.Box([-4.0] * dim, [4.0] * dim))
        paths = fh.sample_paths(problem, n=n // 20 if quick else n, steps=50, rng=0)
        stats = fh.fit(problem, paths, space, estimator=estimator, outside="drop").stats
        seconds = (f"{stats['seconds'][part]:.2f}" for part in ("assembly", "solve", "diagnostics"))
        name = f"{dim}-D: {' x '.join([str(time_cells), *[str(cells)] * dim])}"
        table.add_row(name, estimator, f"{stats['samples']:,}", f"{stats['dofs']:,}", *seconds)
    console.print(table)


def of_two_dimensions(cells: int, time_cells: int, width: float, n: int, estimator: str = "generator") -> System:
    problem = fh.zoo.get("lq", dim=2)
    space = fh.Space(problem, cells=cells, time_cells=time_cells, box=fh.Box([-width] * 2, [width] * 2))
    paths = fh.sample_paths(problem, n=n, steps=50, rng=0)
    return assemble(problem, paths, space, outside="drop", estimator=estimator)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it returns."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def large(console: Console, quick: bool) -> None:
    """Solution and figures by fronts and by SuperLU."""
    table = Table(
        *("class", "unknowns", "solve", "figures", "SuperLU: solve", "figures", "ratio", "apart"),
        title="systems of two dimensions and time: CPU seconds",
    )

    def judged(of: VariationalInequality) -> tuple[float, float, Any]:
        solve, found = timed(lambda: direct(of))
        return solve, timed(lambda: diagnose(of))[0], found.coefficients

    for cells, time_cells in ((6, 4),) if quick else LARGE:
        system = of_two_dimensions(cells, time_cells, 4.0, 500 if quick else 20_000)
        by_fronts = reduce_system(system, smoothing=0.05).inequality
        solve, figures, c = judged(by_fronts)
        old_solve, old_figures, other = judged(replace(by_fronts, places=None))
        table.add_row(
            *(f"{time_cells} x {cells} x {cells}", f"{c.size:,}"),
            *(f"{seconds:.2f}" for seconds in (solve, figures, old_solve, old_figures)),
            f"{(old_solve + old_figures) / (solve + figures):.1f}",
            f"{by_fronts.norm(c - other) / by_fronts.norm(other):.0e}",
        )
    console.print(table)


def cone_programme(form: Any, load: Any, linear_set: LinearSet) -> Any:
    """min 1/2 c' B c - l' c over the rows by Clarabel, B symmetric; None where that is not installed."""
    try:
        import clarabel
    except ImportError:
        return None
    up, low = np.isfinite(linear_set.upper), np.isfinite(linear_set.lower)
    rows = sp.vstack([linear_set.rows[up], -linear_set.rows[low]], format="csc")
    bounds = np.concatenate([linear_set.upper[up], -linear_set.lower[low]])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    cones = [clarabel.NonnegativeConeT(bounds.size)]
    upper = sp.triu(sp.csc_matrix(form), format="csc")
    return np.array(clarabel.DefaultSolver(upper, -load, rows, bounds, cones, settings).solve().x)


def in_set(system: System, convex: Any) -> list[str]:
    """How long the solution in a set takes, what it leaves of the KKT conditions, and the same of Clarabel."""
    try:
        spent, found = timed(lambda: solve_system(system, constraint=convex, smoothing=0.05, figures=False))
    except FemHjbError as cause:
        return [str(cause)[:60]]
    stats = found.stats
    row = [f"{spent:.2f}", str(stats["iterations"]), f"{stats['kkt']:.0e}", f"{stats['residual']:.0e}"]
    if system.space.n_dofs > 9000:
        return row
    of = reduce_system(system, smoothing=0.05)
    scale = sp.diags(of.root)
    form, load = scale @ of.inequality.form @ scale, of.root * of.inequality.load
    seconds, c = timed(lambda: cone_programme(form, load, convex.on(system.space)))
    if c is None:
        return row
    gap = of.inequality.norm(of.root * (c - np.ravel(found.coefficients)))
    return [*row, f"{seconds:.2f}", f"{gap / of.inequality.norm(of.root * c):.0e}"]


def sets(console: Console, quick: bool) -> None:
    """The solution in convex sets, and by Clarabel."""
    table = Table(
        *("set", "class", "unknowns", "CPU seconds", "systems", "KKT residual", "natural residual"),
        *("Clarabel", "apart"),
        title="convex sets of two dimensions and time",
    )
    classes = ((4, 2),) if quick else SETS
    every = [(*of, (fh.Bounds(0.1, 0.6), fh.Monotone(0), fh.Convex(0))) for of in classes]
    largest = [] if quick else [(cells, time_cells, (convex,)) for cells, time_cells, convex in LARGEST]
    for cells, time_cells, tried in every + largest:
        system = of_two_dimensions(cells, time_cells, 2.0, 500 if quick else 20_000, "residual")
        for convex in tried:
            name = f"{time_cells} x {cells} x {cells}"
            table.add_row(repr(convex), name, f"{system.space.n_dofs:,}", *in_set(system, convex))
    console.print(table)


def main() -> None:
    parts = {"accuracy": accuracy, "profile": profile, "large": large, "sets": sets}
    names = [name for name in sys.argv[1:] if name != "--quick"]
    if unknown := sorted(set(names) - set(parts)):
        raise SystemExit(f"no part is called {', '.join(unknown)}; there are {', '.join(parts)}")
    console = Console(width=120)
    for name in names or parts:
        parts[name](console, "--quick" in sys.argv[1:])


if __name__ == "__main__":
    main()
