"""What learning from trajectories costs in accuracy: a linear-quadratic problem on the line, classes of growing size.

    python benchmarks/bench_learning.py [--quick]

dX = -X dt + dB, X_0 ~ N(0, 1/2), r = y = -x^2/2, alpha = T = 1; n = 5000 trajectories of K = 50 steps; classes of
(time cells) x (space cells) on [-4, 4], quadratic in time. Errors of the gauged f, relative in L2(dt x p_t), medians
and maxima over 8 seeds; `galerkin` is the same class under the exact law. Then || f_hat - f_bar || against n in one
class; and where the seconds of a fit to 10^6 samples go.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table

import fem_hjb as fh

CASES = (
    ("generator", "hermite", None),
    ("generator", "hermite", 0.0),
    ("corrected", "hermite", None),
    ("corrected", "P2", None),
    ("corrected", "P1", None),
)
CLASSES = ((2, 4), (4, 8), (8, 16))
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


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    n, seeds = (500, 2) if quick else (5000, 8)
    console = Console(width=120)
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
    profile(console, quick)
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


if __name__ == "__main__":
    main()
