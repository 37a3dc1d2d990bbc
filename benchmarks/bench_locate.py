"""Point location: our locator against scikit-fem's finder, and a million points on 20k tetrahedra.

    python benchmarks/bench_locate.py [--quick]     (10^4 instead of 10^6 points)

Both locators run in this process on the same mesh and points, one after the other; the finder's points are as many as
its points x candidates array allows in 3 GB or so. Peaks are of NumPy's allocations during the query (tracemalloc),
taken in a second run that is not timed.
"""

import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import skfem
from rich.console import Console
from rich.table import Table

from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import mesh_kind
from fem_hjb.problems.locate import CellLocator
from fem_hjb.spaces.meshes import box_mesh


def perturbed(mesh: skfem.Mesh, size: float) -> skfem.Mesh:
    """The mesh of [0, 1]^d with its inner vertices moved by up to `size` along each axis."""
    p = mesh.p.copy()
    inner = np.setdiff1d(np.arange(p.shape[1]), mesh.boundary_nodes())
    p[:, inner] += size * np.random.default_rng(0).uniform(-1, 1, (p.shape[0], inner.size))
    return type(mesh)(p, mesh.t)


def timed(run: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Seconds, peak gigabytes and the result."""
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1] / 1e9
    tracemalloc.stop()
    return seconds, peak, result


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    many = 10**4 if quick else 10**6
    unit = {d: Box([0.0] * d, [1.0] * d) for d in (2, 3)}
    meshes = {
        "20k triangles": (perturbed(box_mesh(unit[2], 100, "tri"), 0.2 / 100), 100 if quick else 1000),
        "20k tetrahedra": (perturbed(box_mesh(unit[3], 15, "tet"), 0.15 / 15), 100 if quick else 1000),
        "20k quadrilaterals, distorted": (perturbed(box_mesh(unit[2], 140, "quad"), 0.2 / 140), 0),
        "20k hexahedra, distorted": (perturbed(box_mesh(unit[3], 27, "hex"), 0.2 / 27), 0),
    }
    table = Table(
        "mesh", "points", "ours [s]", "peak [GB]", "scikit-fem [s]", "peak [GB]", "ratio", title="point location"
    )
    for name, (mesh, few) in meshes.items():
        start = time.perf_counter()
        locator = CellLocator(mesh.p, mesh.t, mesh_kind(mesh))
        build = time.perf_counter() - start
        rng = np.random.default_rng(1)
        if few:
            x = rng.uniform(0, 1, (few, mesh.p.shape[0]))
            ours = timed(lambda x=x, locator=locator: locator(x)[0])
            finder = mesh.element_finder()
            theirs = timed(lambda x=x, finder=finder: finder(*x.T))
            if not (ours[2] == theirs[2]).all():
                raise SystemExit(f"{name}: the two locators disagree on {(ours[2] != theirs[2]).sum()} points")
            table.add_row(
                name, f"{few:,}", *(f"{v:.3f}" for v in (*ours[:2], *theirs[:2])), f"{theirs[0] / ours[0]:.0f}x"
            )
        x = rng.uniform(0, 1, (many, mesh.p.shape[0]))
        seconds, peak, cells = timed(lambda x=x, locator=locator: locator(x)[0])
        if (cells < 0).any():
            raise SystemExit(f"{name}: {(cells < 0).sum()} points were not found")
        table.add_row(name, f"{many:,}", f"{seconds:.2f} + {build:.2f} to build", f"{peak:.2f}", "", "", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
