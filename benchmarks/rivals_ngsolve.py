# ruff: noqa: E402
"""The cases B and R of `bench_boxes` with NGSolve, next to one solve on a box, at equal error at t = 0.

    python benchmarks/rivals_ngsolve.py [--quick] [--dim 2|3] [--case B R] [--repeats N]

NGSolve (pip install ngsolve; no dependency of this package): H1 elements of order 2 to 8 on a structured mesh of
triangles or tetrahedra of the box that `solve` takes for the target error; Crank-Nicolson with the matrix at mid-step,
assembled anew in every step, since the drift depends on time; "extrapolated": N and 2 N steps combined to order four.
Sparse LU (UMFPACK) in two dimensions, in three GMRES with Jacobi from the old state. One thread.

Errors at t = 0 with weight exp(-|x|^2), the law of X_0: f, and grad log f, raw on the mesh; relative. The box solves
for f with constants taken out, the same unknown (`bench_boxes` says why not with a quadratic). CPU seconds, best of
--repeats rounds in turns, for NGSolve without its mesh. Interpolation as in `bench_boxes`.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import bench_boxes
import numpy as np

from fem_hjb.paths.extent import box_of, reach
from fem_hjb.problems.box import Box

try:
    import ngsolve as ng
    from ngsolve.krylovspace import GMResSolver
    from ngsolve.meshes import MakeStructured2DMesh, MakeStructured3DMesh
except ImportError:
    ng = None


@dataclass
class Run:
    name: str
    solve: Callable[[], tuple[float, Any]]
    judge: Callable[[Any], tuple[float, float]]
    seconds: float = math.inf
    errors: tuple[float, float] | None = None


class NGSolve:
    """f on one mesh; f_t + L f = 0 with L f = <b, grad f> + Laplace f / 2 - |x|^2 f / 2."""

    def __init__(self, dim: int, box: Box, cells: int, order: int, rotation: float) -> None:
        self.dim, self.order = dim, order
        lower, upper = box.bounds

        def place(*unit: float) -> tuple[float, ...]:
            return tuple(a + (b - a) * s for a, b, s in zip(lower, upper, unit, strict=True))

        if dim == 2:
            self.mesh = MakeStructured2DMesh(quads=False, nx=cells, ny=cells, mapping=place)
        else:
            self.mesh = MakeStructured3DMesh(hexes=False, nx=cells, ny=cells, nz=cells, mapping=place)
        self.space = ng.H1(self.mesh, order=order)
        self.x = ng.CF((ng.x, ng.y) if dim == 2 else (ng.x, ng.y, ng.z))
        turned = ng.CF((ng.y, -ng.x) if dim == 2 else (ng.y, -ng.x, 0))
        self.square = ng.InnerProduct(self.x, self.x)
        self.a, self.h = ng.Parameter(1.0), ng.Parameter(0.1)
        u, v = self.space.TnT()
        drift = (rotation * turned - self.a * self.x) * ng.grad(u)
        generator = drift * v - 0.5 * ng.grad(u) * ng.grad(v) - 0.5 * self.square * u * v
        rule = {"bonus_intorder": 1}
        self.mass = ng.BilinearForm(self.space)
        self.mass += u * v * ng.dx(**rule)
        self.step = ng.BilinearForm(self.space)
        self.step += (u * v - 0.5 * self.h * generator) * ng.dx(**rule)

    def crank_nicolson(self, steps: int) -> Any:
        f = ng.GridFunction(self.space)
        f.Set(ng.exp(-0.5 * self.square), bonus_intorder=4)
        rhs, twice_middle = f.vec.CreateVector(), f.vec.CreateVector()
        self.h.Set(1.0 / steps)
        for k in range(steps):
            self.a.Set(float(bench_boxes.rate(1.0 - (k + 0.5) / steps)))
            self.step.Assemble()
            rhs.data = 2.0 * self.mass.mat * f.vec
            if self.dim == 2:
                twice_middle.data = self.step.mat.Inverse(self.space.FreeDofs(), inverse="umfpack") * rhs
            else:
                jacobi = self.step.mat.CreateSmoother(self.space.FreeDofs(), GS=False)
                solver = GMResSolver(mat=self.step.mat, pre=jacobi, tol=1e-6, maxiter=300, printrates=False)
                twice_middle.data = 2.0 * f.vec
                rhs.data -= self.step.mat * twice_middle
                twice_middle.data += solver * rhs
            f.vec.data *= -1.0
            f.vec.data += twice_middle
        return f

    def solve(self, steps: int, extrapolated: bool) -> tuple[float, Any]:
        start = time.process_time()
        self.mass.Assemble()
        f = self.crank_nicolson(steps)
        if extrapolated:
            finer = self.crank_nicolson(2 * steps)
            f.vec.data *= -1.0 / 3.0
            f.vec.data += 4.0 / 3.0 * finer.vec
        return time.process_time() - start, f

    def errors(self, f: Any) -> tuple[float, float]:
        exact = bench_boxes.Radial(self.dim)
        P, c = exact.coefficients(0.0)
        truth, weight = ng.exp(-0.5 * P * self.square + self.dim * c), ng.exp(-self.square)
        order = max(2 * self.order + 4, 12)

        def integral(what: Any) -> float:
            return float(ng.Integrate(weight * what, self.mesh, order=order))

        off = ng.grad(f) / f + P * self.x
        in_f = integral((f - truth) ** 2) / integral(truth**2)
        in_slope = integral(ng.InnerProduct(off, off)) / integral(P**2 * self.square)
        return math.sqrt(in_f), math.sqrt(in_slope)


def box_run(problem: Any, box: Box, size: bench_boxes.Size) -> tuple[float, Any]:
    start = time.process_time()
    background = bench_boxes.background_of(problem, box, False)
    solution = bench_boxes.on_box(problem, box, size, True, background)
    return time.process_time() - start, solution


def at_error(runs: list[Run], row: int, target: float) -> tuple[float, str]:
    """As `bench_boxes.at_error`, for errors at t = 0."""
    rows = [
        bench_boxes.Run(run.name, None, None, run.seconds, np.column_stack([run.errors, run.errors]))  # type: ignore[arg-type]
        for run in runs
        if run.errors is not None
    ]
    return bench_boxes.at_error(rows, row, target)


def compare(case: str, dim: int, quick: bool, repeats: int) -> None:
    problem, target = bench_boxes.CASES[case][1](dim), bench_boxes.TARGET[dim]
    box = box_of(problem, reach(problem), 0.01 * target**2)
    judge = bench_boxes.Judge(problem, problem.exact, box)

    def of_box(solution: Any) -> tuple[float, float]:
        errors = judge(solution)
        return float(errors[0, 0]), float(errors[1, 0])

    grids = {2: [(6, 8), (10, 6), (16, 4), (8, 8), (24, 4)], 3: [(6, 4), (8, 4), (10, 3), (16, 2)]}
    steps = {2: [(15, True), (30, True), (100, False)], 3: [(6, True), (20, False)]}
    if quick:
        grids, steps = {2: [(6, 4)], 3: [(4, 3)]}, {2: [(10, True)], 3: [(4, True)]}
    runs = [
        Run(f"box {size}", partial(box_run, problem, box, size), of_box) for size in bench_boxes.box_sizes(dim, quick)
    ]
    for (cells, order), (count, extrapolated) in itertools.product(grids[dim], steps[dim]):
        rival = NGSolve(dim, box, cells, order, 1.0 if case == "R" else 0.0)
        scheme = f"{count} steps" + (", extrapolated" if extrapolated else "")
        told = f"NGSolve {cells} cells/axis, order {order}, {rival.space.ndof} dofs, {scheme}"
        runs.append(Run(told, partial(rival.solve, count, extrapolated), rival.errors))
    print(f"\n{case}, {dim}-D, errors at t = 0, target {target:g}", flush=True)
    for _ in range(repeats):
        for run in runs:
            if run.errors is not None and run.seconds > 5.0:
                continue
            seconds, result = run.solve()
            run.seconds = min(run.seconds, seconds)
            if run.errors is None:
                run.errors = run.judge(result)
                told = f"{run.seconds:8.4f} s in the first round, f {run.errors[0]:.1e}, policy {run.errors[1]:.1e}"
                print(f"    {run.name:60s} {told}", flush=True)
    for row, what in enumerate(("f", "policy")):
        mine, told = at_error([run for run in runs if run.name.startswith("box")], row, target)
        theirs, told_theirs = at_error([run for run in runs if run.name.startswith("NGSolve")], row, target)
        ratio = f"ratio {theirs / mine:.1f}" if math.isfinite(mine) and math.isfinite(theirs) else "no ratio"
        print(f"  {target:g} in {what:6s}  box {told}, NGSolve {told_theirs}, {ratio}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small grids: a smoke test")
    parser.add_argument("--dim", type=int, choices=(2, 3))
    parser.add_argument("--case", nargs="+", choices=bench_boxes.LINEAR_QUADRATIC, default=["R"])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if ng is None:
        print("NGSolve is not installed (pip install ngsolve); nothing to compare with")
        return
    ng.ngsglobals.msg_level = 0
    ng.SetNumThreads(1)
    for dim in (2, 3) if given.dim is None else (given.dim,):
        for case in given.case:
            compare(case, dim, given.quick, 1 if given.quick else given.repeats)


if __name__ == "__main__":
    main()
