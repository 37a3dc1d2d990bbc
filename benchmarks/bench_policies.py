"""How good a learned policy is, in two dimensions: a diffusion model of a mixture, tilted, from 20 000 trajectories.

    python benchmarks/bench_policies.py [--quick]

`mixture-diffusion`, d = 2, 64 steps. Classes of C1 functions on a box that leaves out a share q of X_t on each side of
each axis, anywhere on [0, T]; (time cells) x (cells per axis). Policy errors are those of `compare`: the largest over t
of the L2(p_t) norm, relative to the same of the exact policy.

best      of the best approximation of f in the class, in the energy norm
law       of the solution under the exact law, f_T interpolated: what the class can do
learned   median over the seeds; worst: of them; ratio: learned / law
at T      of the median run, at t = T alone; before: the largest at earlier times compared
excluded  the mass outside the box, or where f <= 0, largest over t: left out of the norms

Terminal "penalty" asks for f_T = exp(y/alpha) in mean square only, and what that leaves in the corners, log f
magnifies: nearly all of the policy error is at t = T then. "interpolated" takes it from y, which is known.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

import fem_hjb as fh
from fem_hjb.learning.population import yardstick
from fem_hjb.solutions.norms import law_points

CASES = (  # q, element, time cells, cells, estimator, terminal
    (1e-3, "hermite", 4, 8, "generator", "penalty"),
    (1e-3, "hermite", 4, 8, "generator", "interpolated"),
    (1e-3, "B3", 8, 12, "generator", "penalty"),
    (1e-3, "B3", 8, 12, "generator", "interpolated"),
    (1e-3, "B3", 8, 12, "corrected", "interpolated"),
    (1e-3, "B3", 8, 12, "residual", "interpolated"),
    (1e-3, "B3", 8, 12, "regression", "interpolated"),
    (1e-2, "B3", 8, 12, "generator", "penalty"),
    (1e-2, "B3", 8, 8, "generator", "interpolated"),
    (1e-2, "B3", 8, 12, "generator", "interpolated"),
)
QUICK = ((1e-2, "B3", 4, 6, "generator", "penalty"), (1e-2, "B3", 4, 6, "generator", "interpolated"))


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    cases, n, steps, seeds = (QUICK, 2000, 16, 1) if quick else (CASES, 20_000, 64, 3)
    problem = fh.zoo.get("mixture-diffusion", dim=2)
    points = law_points(problem)
    paths = [fh.sample_paths(problem, n=n, steps=steps, rng=seed) for seed in range(seeds)]
    table = Table(
        *("q", "element", "class", "dofs", "estimator", "terminal", "best", "law", "learned", "worst", "ratio"),
        *("at T", "before", "value", "excluded", "s"),
        title=f"policy errors, n = {n}",
    )
    for q, element, time_cells, cells, estimator, terminal in cases:
        box = fh.paths.truncation_box(problem, quantile=q, margin=0.0).box
        space = fh.Space(problem, cells=cells, time_cells=time_cells, element=element, box=box)
        law = fh.law_measure(problem, space)
        options = {"estimator": estimator, "terminal": terminal, "outside": "drop"}
        galerkin = fh.fit(problem, law, space, terminal="interpolated")
        best = replace(galerkin, coefficients=yardstick(problem, law, space).best)
        started = time.perf_counter()
        fits = [fh.fit(problem, sample, space, **options) for sample in paths]
        seconds = (time.perf_counter() - started) / seeds
        candidates = {"best": best, "law": galerkin, **{str(seed): fit for seed, fit in enumerate(fits)}}
        found = fh.compare(candidates, problem.exact, problem=problem, points=points)
        errors = [found.overall(str(seed)).policy for seed in range(seeds)]
        middle = str(int(np.argsort(errors)[seeds // 2]))
        series, overall = found.series(middle, "policy"), found.overall(middle)
        table.add_row(
            *(f"{q:g}", element, f"{time_cells} x {cells}", str(space.n_dofs), estimator, terminal),
            *(f"{found.overall(name).policy:.2g}" for name in ("best", "law", middle)),
            *(f"{max(errors):.2g}", f"{overall.policy / found.overall('law').policy:.2f}"),
            *(f"{series[-1]:.2g}", f"{series[:-1].max():.2g}", f"{overall.value:.2g}", f"{overall.excluded:.1e}"),
            f"{seconds:.1f}",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
