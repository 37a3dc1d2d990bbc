# ruff: noqa: E402
"""What `solve` takes: the solution, what checks it, and threads.

    python benchmarks/bench_solve.py [NAME,DIM,RTOL ..] [--tries N] [--workers N ..] [--quick]

CPU seconds of one thread, the least of some tries: of the solution with its error estimate, of the residual and of the
paths that check it, and their share of the whole. Then seconds of the wall with so many workers, the least of as many
tries by turns, as the load of the machine tells little and others make much of it; and whether the digits are the same.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import fem_hjb as fh
from fem_hjb.reference.pathwise import walk
from fem_hjb.reference.residual import residual_checks

DEFAULT = ["mixture-diffusion,2,1e-3", "double-well-2d-coupled,2,1e-3", "mixture-diffusion,3,1e-2"]


def least(tries: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came out."""
    seconds, result = np.inf, None
    for _ in range(tries):
        begun = time.process_time()
        result = work()
        seconds = min(seconds, time.process_time() - begun)
    return seconds, result


def shares(problem: fh.ControlProblem, rtol: float, tries: int) -> None:
    """Print what the parts of one solve take."""
    alone, solution = least(tries, lambda: fh.solve(problem, rtol=rtol, verify=False))
    known = problem, solution, solution.error_estimate, solution.stats["jumps"]
    paths, walked = least(tries, lambda: walk(problem, solution, solution.stats["jumps"]))
    residual, _ = least(tries, lambda: residual_checks(*known, walked=walked))
    whole = alone + residual + paths
    print(f"  CPU seconds: {whole:.3f} = solution {alone:.3f} + residual {residual:.3f} + paths {paths:.3f}", end="")
    print(f", {(residual + paths) / whole:.0%} of it checks")


def threaded(problem: fh.ControlProblem, rtol: float, tries: int, workers: list[int]) -> None:
    """Print what threads make of it."""
    walls, digits = dict.fromkeys(workers, np.inf), set[bytes]()
    for _ in range(tries):
        for count in workers:
            begun = time.perf_counter()
            solution = fh.solve(problem, rtol=rtol, workers=count)
            walls[count] = min(walls[count], time.perf_counter() - begun)
            digits.add(np.asarray(solution.coefficients).tobytes() if isinstance(solution, fh.Solution) else b"")
    first, *_ = walls.values()
    told = ", ".join(f"{count}: {wall:.2f} ({first / wall:.2f} times as fast)" for count, wall in walls.items())
    print(f"  wall seconds by workers: {told}; load {os.getloadavg()[0]:.1f}; {len(digits)} set of digits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", default=DEFAULT, metavar="NAME,DIM,RTOL")
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="a smoke test: the first problem, once")
    given = parser.parse_args()
    if given.quick:
        given.problems, given.tries = given.problems[:1], 1
    warnings.simplefilter("ignore", fh.ToleranceWarning)
    fh.solve(fh.zoo.get("lq", 2), rtol=1e-2)  # loads what is loaded when first used
    for each in given.problems:
        name, dim, rtol = each.split(",")
        problem = fh.zoo.get(name, int(dim))
        print(f"{name}, d = {dim}, rtol {rtol}")
        shares(problem, float(rtol), given.tries)
        threaded(problem, float(rtol), given.tries, given.workers)


if __name__ == "__main__":
    main()
