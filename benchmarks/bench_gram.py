# ruff: noqa: E402
"""Gram matrices of local functions at samples: sums by cells against the sparse product of design matrices.

    python benchmarks/bench_gram.py [--quick]

Both make the global matrix sum_i w_i V_i' V_i, where V_i is the row of the values of all space-time basis functions at
sample i of Ornstein-Uhlenbeck paths; only the local functions of one cell are not 0. Ours ("Gram"): located points to
matrix, sorting and the search of the sparsity pattern included. Theirs: D.T @ (W @ D) with D in SciPy's CSR format,
alone and with the building of D from the values of the local functions, samples in the order of the paths (an order at
random slows the product down more than ours). "system" is all that `assemble` makes of a measure: locating, form, mass,
energy and load of the estimator "generator", on triangles "weak", "corrected" and "increment", three bilinear forms
more than theirs, with increments also a fourth, between two points of different cells. CPU seconds
of one thread, medians of repeats after one run that is not timed; peak memory as Python's allocator sees it: of the
Gram alone, without the samples, and of the product, with D.

The second table streams paths that are simulated chunk by chunk and never stored.

Exit code 1 if the matrices differ by more than 1e-12 of the largest entry, or, in the full run, if the product alone
is less than 8 times as slow as the Gram in one space dimension, a system on triangles takes longer than two products,
or time does not grow linearly with the samples (an exponent of 1 +- 0.1), or memory grows with them.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from rich.console import Console
from rich.table import Table

from fem_hjb.learning.forms import VALUE, Integrands
from fem_hjb.learning.gram import gram_sums
from fem_hjb.learning.measures import empirical_measure
from fem_hjb.learning.samples import Located, operator_rows
from fem_hjb.learning.scatter import Scatter
from fem_hjb.learning.system import assemble
from fem_hjb.paths.extent import truncation_box
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.paths.sources import simulated_source
from fem_hjb.problems import zoo
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import Space

TOLERANCE = 1e-12
SMALLEST_RATIO = 8.0
SMALLEST_SHARE = 0.5
STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Case:
    dim: int
    cells: int
    samples: int
    repeats: int
    triangles: bool = False

    @property
    def name(self) -> str:
        return f"{self.dim}-D x time, {'P2 triangles' if self.triangles else 'C1 cubics'}"

    def space(self, problem: Any) -> Space:
        if not self.triangles:
            return Space(problem, cells=self.cells, time_cells=8, time_degree=2, element="hermite")
        mesh = box_mesh(truncation_box(problem).box, (self.cells,) * self.dim, "tri")
        return Space(problem, mesh=mesh, time_cells=8, time_degree=2, element="P2")


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def peak_megabytes(run: Callable[[], Any]) -> float:
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def measure(case: Case) -> tuple[list[list[str]], float, float, float]:
    """Rows of the table, one for each system; the ratio of the product alone to ours, the least one to a system, and
    the relative difference of the matrices."""
    problem = zoo.get("lq", dim=case.dim)
    space = case.space(problem)
    points = empirical_measure(problem, sample_paths(problem, n=case.samples // STEPS, steps=STEPS, rng=0))
    everywhere = Located.of(space, points.t, points.x)
    inside = np.flatnonzero(everywhere.cells >= 0)
    at, weights = everywhere.take(inside), points.weights[inside]
    estimators = ("weak", "corrected", "increment") if case.triangles else ("generator",)

    def ours() -> sp.csr_matrix:
        return gram_sums(space, at, weights, Integrands.of([[(VALUE, VALUE)]])).matrices(Scatter(space))[0]

    values = operator_rows(space, at, VALUE)

    def design() -> sp.csr_matrix:
        ends = np.arange(at.cells.size + 1) * space.local_size
        return sp.csr_matrix(
            (values.ravel(), space.cell_dofs(at.cells).ravel(), ends), shape=(at.cells.size, space.n_dofs)
        )

    def product(D: sp.csr_matrix) -> sp.csr_matrix:
        return (D.T @ (W @ D)).tocsr()

    D, W = design(), sp.diags(weights).tocsr()
    theirs = product(D)
    difference = float(abs(ours() - theirs).max() / abs(theirs).max())
    seconds = median_seconds(ours, case.repeats)

    def system(estimator: str) -> float:
        return median_seconds(
            lambda: assemble(problem, points, space, estimator=estimator, outside="drop"), case.repeats
        )

    systems = {estimator: system(estimator) for estimator in estimators}
    theirs_alone = median_seconds(lambda: product(D), case.repeats)
    build = median_seconds(design, case.repeats)
    memory = peak_megabytes(ours), peak_megabytes(lambda: product(design()))
    rows = [
        [
            case.name,
            f"{at.cells.size:,}",
            f"{space.local_size}",
            f"{space.n_cells:,}",
            f"{seconds:.3f}",
            estimator,
            f"{own:.3f}",
            f"{theirs_alone:.3f}",
            f"{build + theirs_alone:.3f}",
            f"{theirs_alone / seconds:.1f}x",
            f"{theirs_alone / own:.2f}x",
            f"{memory[0]:.0f}",
            f"{memory[1]:.0f}",
            f"{difference:.1e}",
        ]
        for estimator, own in systems.items()
    ]
    return rows, theirs_alone / seconds, theirs_alone / max(systems.values()), difference


def stream(samples: int) -> tuple[float, float]:
    """CPU seconds and peak megabytes of the whole system in 1-D, from paths that are simulated on the way."""
    problem = zoo.get("lq", dim=1)
    space = Space(problem, cells=16, time_cells=8, time_degree=2, element="hermite")
    source = simulated_source(problem, n=samples // STEPS, steps=STEPS, rng=0, chunk=1000)

    def run() -> None:
        assemble(problem, source, space, outside="drop")

    start = time.process_time()
    peak = peak_megabytes(run)
    return time.process_time() - start, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples: a smoke test, its ratios mean little")
    quick = parser.parse_args().quick
    cases = [
        Case(dim=1, cells=16, samples=10**6, repeats=5),
        Case(dim=2, cells=12, samples=2 * 10**5, repeats=3),
        Case(dim=3, cells=3, samples=5 * 10**4, repeats=1),
        Case(dim=2, cells=12, samples=2 * 10**5, repeats=3, triangles=True),
    ]
    sizes = [10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7]
    if quick:
        cases = [
            Case(dim=1, cells=8, samples=10_000, repeats=1),
            Case(dim=2, cells=3, samples=2_000, repeats=1, triangles=True),
        ]
        sizes = [50_000, 100_000]
    failures = []
    table = Table(
        *(
            "space",
            "samples",
            "local",
            "cells",
            "Gram [s]",
            "system of",
            "system [s]",
            "product [s]",
            "CSR + product [s]",
        ),
        *("ratio to Gram", "to system", "Gram [MB]", "product [MB]", "difference"),
        title="Gram matrices",
    )
    for case in cases:
        rows, ratio, to_system, difference = measure(case)
        for row in rows:
            table.add_row(*row)
        if not difference <= TOLERANCE:
            failures.append(f"{case.name}: the matrices differ by {difference:.1e}, more than {TOLERANCE:.0e}")
        if case.dim == 1 and not quick and not ratio >= SMALLEST_RATIO:
            failures.append(f"1-D: the product is {ratio:.1f} times as slow, less than {SMALLEST_RATIO:g}")
        if case.triangles and not quick and not to_system >= SMALLEST_SHARE:
            failures.append(f"triangles: a system takes {1 / to_system:.1f} products, more than {1 / SMALLEST_SHARE:g}")
    stream(sizes[0])  # not counted: imports and caches
    streamed = [stream(size) for size in sizes]
    linear = Table(
        "samples", "seconds", "samples per second", "peak [MB]", title="The whole system, streamed, 1-D x time"
    )
    for size, (seconds, peak) in zip(sizes, streamed, strict=True):
        linear.add_row(f"{size:,}", f"{seconds:.2f}", f"{size / seconds:,.0f}", f"{peak:.0f}")
    exponent = float(np.polyfit(np.log(sizes), np.log([seconds for seconds, _ in streamed]), 1)[0])
    console = Console(width=170)
    console.print(table)
    console.print(linear)
    console.print(f"seconds grow with the samples to the power of {exponent:.3f}")
    if not quick and not abs(exponent - 1) <= 0.1:
        failures.append(f"seconds grow with the power {exponent:.2f} of the samples, not 1 +- 0.1")
    if not quick and not streamed[-1][1] <= 1.5 * streamed[1][1]:
        failures.append(f"the peak memory grows from {streamed[1][1]:.0f} to {streamed[-1][1]:.0f} MB")
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
