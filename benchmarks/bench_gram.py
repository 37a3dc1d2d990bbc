# ruff: noqa: E402
"""Gram matrices of local functions at samples: sorted blocks against the sparse product of design matrices.

    python benchmarks/bench_gram.py [--quick]

Both make the global matrix sum_i w_i V_i' V_i, where V_i is the row of the values of all space-time basis functions at
sample i of Ornstein-Uhlenbeck paths; only the local functions of one cell are not 0. Ours: `gram`, its sorting
included, and the local matrices summed into a sparse one. Theirs: D.T @ (W @ D) with D in SciPy's CSR format, alone and
with the building of D from the tabulated values. Both get these values, samples in the order of the paths (an order at
random slows the product down more than ours). CPU seconds of one thread, medians of repeats after one run that is not
timed.

Exit code 1 if the matrices differ by more than 1e-12 of the largest entry, or, in the full run, if the product alone
is less than 5 times as slow as ours in one space dimension.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from rich.console import Console
from rich.table import Table

from fem_hjb import zoo
from fem_hjb.forms import product_rows
from fem_hjb.measures import SparseSum, empirical_measure, gram
from fem_hjb.sde import sample_paths
from fem_hjb.spaces import Space

TOLERANCE = 1e-12
SMALLEST_RATIO = 5.0


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def measure(dim: int, cells: int, samples: int, repeats: int) -> tuple[list[str], float, float]:
    """A row of the table, the ratio of the product alone to ours, and the relative difference of the matrices."""
    problem = zoo.get("lq", dim=dim)
    space = Space(problem, cells=cells, time_cells=8, time_degree=2, element="hermite")
    steps = 50
    points = empirical_measure(problem, sample_paths(problem, n=samples // steps, steps=steps, rng=0))
    table = space.tabulate(points.t, points.x, 0)
    inside = np.flatnonzero(table.cells >= 0)
    at, weights = table.cells[inside], points.weights[inside]
    values = product_rows(table.time[inside, 0], table.space[0][inside])
    every_dof = space.cell_dofs()

    def ours() -> sp.csr_matrix:
        total = SparseSum(space.n_dofs)
        total.add(every_dof, every_dof, gram(at, values, values, weights, space.n_cells))
        return total.matrix()

    def design() -> sp.csr_matrix:
        ends = np.arange(at.size + 1) * space.local_size
        return sp.csr_matrix((values.ravel(), space.cell_dofs(at).ravel(), ends), shape=(at.size, space.n_dofs))

    D, W = design(), sp.diags(weights).tocsr()
    theirs = (D.T @ (W @ D)).tocsr()
    difference = float(abs(ours() - theirs).max() / abs(theirs).max())
    seconds = median_seconds(ours, repeats)
    product = median_seconds(lambda: D.T @ (W @ D), repeats)
    build = median_seconds(design, repeats)
    row = [
        f"{dim}-D x time",
        f"{at.size:,}",
        f"{space.local_size}",
        f"{space.n_cells:,}",
        f"{seconds:.3f}",
        f"{product:.3f}",
        f"{build + product:.3f}",
        f"{product / seconds:.1f}x",
        f"{(build + product) / seconds:.1f}x",
        f"{difference:.1e}",
    ]
    return row, product / seconds, difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples: a smoke test, its ratios mean little")
    quick = parser.parse_args().quick
    table = Table(
        *("space", "samples", "local", "cells", "ours [s]", "product [s]", "CSR + product [s]"),
        *("ratio", "with CSR", "difference"),
        title="Gram matrices",
    )
    failures = []
    sizes = [(1, 16, 20_000, 3), (2, 6, 5_000, 3)] if quick else [(1, 16, 10**6, 5), (2, 12, 10**5, 5)]
    for dim, cells, samples, repeats in sizes:
        row, ratio, difference = measure(dim, cells, samples, repeats)
        table.add_row(*row)
        if not difference <= TOLERANCE:
            failures.append(f"{dim}-D: the matrices differ by {difference:.1e}, more than {TOLERANCE:.0e}")
        if dim == 1 and not quick and not ratio >= SMALLEST_RATIO:
            failures.append(f"1-D: the product is {ratio:.1f} times as slow, less than {SMALLEST_RATIO:g}")
    Console(width=130).print(table)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
