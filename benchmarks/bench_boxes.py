# ruff: noqa: E402
"""What a tolerance costs on boxes, and `solve` against the package's own meshes at equal error.

    python benchmarks/bench_boxes.py [--quick] [--dim 1|2]
    python benchmarks/bench_boxes.py --cost docs/images/cost.png

First the whole of `solve`, estimate included, against one `solve_on_mesh` (P2, P4), each on the box it chooses: the
meshes are refined until the error of the policy is that of `solve`, or the time allowed is spent; the row then says so.
mesh / solve is the ratio of CPU seconds.

--cost draws CPU seconds of `solve` against the tolerance asked for, and against the most unknowns of its grids, in one,
two and three dimensions, with fitted slopes. Problems: mixture-diffusion (closed form) and coupled double wells (none).

Errors are relative, in the policy, largest over nine times, as `compare` has it. One thread.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fem_hjb.problems import zoo
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ComparisonError

TOLERANCES = {1: (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7), 2: (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), 3: (3e-2, 1e-2, 3e-3, 1e-3)}
CELLS = {1: (16, 32, 64, 128, 256, 512), 2: (8, 12, 16, 24, 32, 48, 64, 96)}
PATIENCE = 60.0  # CPU seconds of one solve on a mesh, after which it is not refined any more


def _wells_drift(t: Any, x: FloatArray) -> FloatArray:
    neighbours = np.roll(x, 1, axis=-1) if x.shape[-1] > 1 else 0.0 * x
    return np.asarray(-4 * x * (x**2 - 1) - 0.5 * neighbours)


def _at_ones(x: FloatArray) -> FloatArray:
    return np.asarray(-((x - 1) ** 2).sum(-1))


def wells(dim: int) -> ControlProblem:
    """Double wells on every axis, each coupled to the one before."""
    return ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=_wells_drift,
        diffusion=1.0,
        terminal_reward=_at_ones,
        initial_law=Gaussian(np.zeros(dim), 0.25),
        name="wells",
    )


def mixture(dim: int) -> ControlProblem:
    """The zoo's mixture-diffusion."""
    return zoo.get("mixture-diffusion", dim)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its CPU seconds."""
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        result = work()
    return result, time.process_time() - started


def policy_error(solution: Any, problem: ControlProblem) -> float:
    """Under the exact law and against the closed form; infinite where most of the law has f <= 0."""
    try:
        return compare({"this": solution}, problem.exact, problem=problem).overall("this").policy
    except ComparisonError:
        return math.inf


def against_meshes(dim: int, rtol: float, patience: float) -> None:
    """One table."""
    problem = mixture(dim)
    solution, seconds = timed(partial(solve, problem, rtol=rtol))
    target = policy_error(solution, problem)
    estimate = solution.error_estimate.policy
    print(f"{problem.name}, d={dim}, rtol {rtol:g}: solve {seconds:.2f} s, error {target:.1e}, estimate {estimate:.1e}")
    for element in ("P2", "P4"):
        said = "no size tried"
        for cells in CELLS[dim]:
            how = {"cells": cells, "element": element, "rtol_time": min(0.1 * target, 1e-4)}
            on, cost = timed(partial(solve_on_mesh, problem, **how))
            error = policy_error(on, problem)
            reached = error <= target
            said = f"{cells} cells per axis, {cost:.2f} s, error {error:.1e}: mesh / solve " + (
                f"{cost / seconds:.1f}" if reached else f"> {cost / seconds:.1f}, not reached"
            )
            if reached or cost > patience:
                break
        print(f"  {element}: {said}")


def costs(dims: tuple[int, ...], quick: bool) -> dict[tuple[str, int], FloatArray]:
    """(name, dim) -> rows of rtol, estimate, unknowns, CPU seconds."""
    found = {}
    for make in (mixture, wells):
        for dim in dims:
            rows = []
            for rtol in TOLERANCES[dim][: 2 if quick else None]:
                solution, seconds = timed(partial(solve, make(dim), rtol=rtol))
                estimate = solution.error_estimate
                rows.append([rtol, max(estimate.value, estimate.policy), solution.stats["dofs"], seconds])
                print(
                    f"{make.__name__:8s} d={dim} rtol {rtol:7.0e} estimate {rows[-1][1]:.1e}"
                    f" unknowns {rows[-1][2]:8d} {seconds:8.2f} s",
                    flush=True,
                )
            found[make.__name__, dim] = np.array(rows, dtype=np.float64)
    return found


def draw(found: dict[tuple[str, int], FloatArray], path: Path) -> None:
    """Two panels: seconds against tolerance and against unknowns."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.2), sharey=True, layout="constrained")
    colours = {1: "#1b6ca8", 2: "#c8553d", 3: "#3a7d44"}
    for (name, dim), rows in found.items():
        style = {
            "color": colours[dim],
            "marker": "o" if name == "mixture" else "s",
            "markersize": 4,
            "linestyle": "-" if name == "mixture" else "--",
        }
        slopes = [float(np.polyfit(np.log(rows[:, k]), np.log(rows[:, 3]), 1)[0]) for k in (0, 2)]
        left.loglog(rows[:, 0], rows[:, 3], label=f"{name}, d = {dim} (slope {slopes[0]:.2f})", **style)
        right.loglog(rows[:, 2], rows[:, 3], label=f"{name}, d = {dim} (slope {slopes[1]:.2f})", **style)
    left.set_xlabel("tolerance asked for, rtol")
    left.invert_xaxis()
    left.set_ylabel("CPU seconds of solve, one core, estimate included")
    right.set_xlabel("most unknowns in space")
    for ax in (left, right):
        ax.legend(fontsize=7.5, frameon=False)
        ax.grid(True, which="major", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--dim", type=int, choices=(1, 2), help="only this dimension")
    parser.add_argument("--cost", type=Path, metavar="PNG", help="draw what tolerances cost instead")
    arguments = parser.parse_args()
    if arguments.cost is not None:
        draw(costs((1, 2, 3), arguments.quick), arguments.cost)
        return
    for dim in (1, 2) if arguments.dim is None else (arguments.dim,):
        for rtol in (1e-2,) if arguments.quick else (1e-2, 1e-3, 1e-4):
            against_meshes(dim, rtol, 2.0 if arguments.quick else PATIENCE)


if __name__ == "__main__":
    main()
