# ruff: noqa: E402
"""The five settings of stochastic optimal control matching, and how exact the truth is that methods are judged against.

    python benchmarks/bench_soc.py [--quick] [--output docs/soc_benchmarks.md]

Every setting is solved to two tolerances. Its floor is the benchmark's own measure, (1/T) E* int |u - u*|^2 dt under
the optimally controlled law, of the first solution's control against the second's: methods whose error is at the floor
can no longer be told apart. Costs are the source's, -J in our signs: of the optimal control (its value), of the optimal
control on paths of the Euler scheme (200 steps, as is usual), and of doing nothing.

Rival: the truth of the double well as it is usually tabulated, re-implemented here in our own code, not the published
code run again. The linear equation for f = exp(v) by reversible finite differences and implicit Euler steps, one-sided
differences of log f for the control, in space the value of the cell. Its table is read linearly in time, and also at
the next later time of the table, which is how it is often looked up.

CPU seconds of one thread. --quick takes looser tolerances and few paths, and writes nothing unless told where.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import solve_banded

from fem_hjb.evaluation import control_error, objectives
from fem_hjb.problems import zoo
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.solution import ProductSolution
from fem_hjb.support.checks import FloatArray

Policy = Callable[[float, FloatArray], FloatArray]

OUTPUT = Path(__file__).parents[1] / "docs" / "soc_benchmarks.md"
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "quadratic OU, easy": ("soc-ou-quadratic", {"setting": "easy"}),
    "quadratic OU, hard": ("soc-ou-quadratic", {"setting": "hard"}),
    "linear OU": ("soc-ou-linear", {}),
    "double well": ("soc-double-well", {}),
    "molecular dynamics": ("soc-molecular-dynamics", {}),
}
HEAD = ("setting", "d", "how", "optimal cost", "its Euler cost", "uncontrolled", "estimate", "floor", "seconds")
RIVAL_HEAD = ("cell", "step", "squared error", "looked up at the next time", "seconds")
RIVAL_GRIDS = ((1e-2, 1e-3), (1e-3, 1e-3))  # (cell, step)
RIVAL_REACH = 2.75


def row(name: str, quick: bool) -> tuple[tuple[str, ...], Any]:
    """One line of the table, and the reference it ends with."""
    problem = zoo.get(SETTINGS[name][0], **SETTINGS[name][1])
    if name == "linear OU":  # ten coordinates that hang together
        reference, policy = problem.exact, problem.exact.policy
        how, estimate, floor, seconds = "closed form", "-", "-", "-"
    else:
        started = time.process_time()
        coarse = solve(problem, rtol=1e-3 if quick else 1e-4)
        seconds = f"{time.process_time() - started:.2f}"
        policy = reference = solve(problem, rtol=1e-4 if quick else 1e-6)
        floor = f"{control_error(problem, coarse, reference).value:.0e}"
        if problem.exact is not None:
            floor += f" ({control_error(problem, coarse, problem.exact).value:.0e} against the closed form)"
        how = f"{coarse.stats['form']} form, {coarse.stats['route']}, {coarse.stats['dofs']} unknowns"
        estimate = f"{coarse.error_estimate.value:.0e}, {coarse.error_estimate.policy:.0e}"
    steps, n = (50, 256) if quick else (200, 4096)
    found = objectives(problem, policy, reference, steps=steps, n=n)
    if found.optimal is None:
        raise SystemExit("no value without a reference")
    euler = f"{-found.euler.value:.3f} ± {found.euler.standard_error:.3f}"
    costs = f"{-found.optimal.value:.6f}", euler, f"{0.0 - found.uncontrolled.value:.4f}"
    return (name, str(problem.dim), how, *costs, estimate, floor, seconds), reference


def tabulated(kappa: float, nu: float, cell: float, step: float) -> FloatArray:
    """u at the times k step and the cells of [-2.75, 2.75], by the rival's scheme."""
    x = np.linspace(-RIVAL_REACH, RIVAL_REACH, round(2 * RIVAL_REACH / cell) + 1)
    well = kappa * (x**2 - 1) ** 2
    between = kappa * ((x[1:] - cell / 2) ** 2 - 1) ** 2
    up, down = (0.5 / cell**2 * np.exp(2 * (side - between)) for side in (well[:-1], well[1:]))  # rates to neighbours
    band = np.zeros((3, x.size))
    band[0, 1:], band[1], band[2, :-1] = -step * up, 1.0, -step * down
    band[1, :-1] += step * up
    band[1, 1:] += step * down
    f = np.exp(-nu * (x**2 - 1) ** 2)
    rows = [np.diff(np.log(f)) / cell]
    for _ in range(round(1 / step)):
        f = solve_banded((1, 1), band, f)
        rows.append(np.diff(np.log(f)) / cell)
    return np.array(rows[::-1])


def looked_up(table: FloatArray, cell: float, step: float, *, later: bool) -> Policy:
    """The tabulated control in one dimension."""

    def policy(t: float, x: FloatArray) -> FloatArray:
        k = min(int(t / step), len(table) - 2)
        share = 1.0 if later else t / step - k
        place = np.clip(np.floor((x[:, 0] + RIVAL_REACH) / cell).astype(np.int64), 0, table.shape[1] - 1)
        return np.asarray((1 - share) * table[k, place] + share * table[k + 1, place])[:, None]

    return policy


def rival(reference: ProductSolution) -> list[tuple[str, ...]]:
    """Its squared error, summed over the ten coordinates: three deep wells, seven shallow ones."""
    wells = {(5.0, 3.0): (3, reference.parts[1][1]), (1.0, 1.0): (7, reference.parts[-1][1])}
    lines = []
    for cell, step in RIVAL_GRIDS:
        started = time.process_time()
        tables = {well: tabulated(*well, cell, step) for well in wells}
        seconds = time.process_time() - started
        errors = [
            sum(
                count
                * control_error(part.problem, looked_up(tables[w], cell, step, later=later), part, times=256).value
                for w, (count, part) in wells.items()
            )
            for later in (False, True)
        ]
        lines.append((f"{cell:g}", f"{step:g}", f"{errors[0]:.1e}", f"{errors[1]:.1e}", f"{seconds:.2f}"))
    return lines


def table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *lines))


TEXT = """# The settings of stochastic optimal control matching

Written by `python benchmarks/bench_soc.py{quick}`; settings and sources are those of `zoo`
(arXiv 2312.02027). Costs are -J: the source minimises, we maximise.

{settings}

- *how*, *estimate* (of the relative errors of value and policy) and *seconds* (CPU, one thread): solved with
  rtol {coarse}.
- *optimal cost*: -v at the start, averaged over the initial law, with rtol {fine}.
- *its Euler cost*: of the optimal control on {n} paths of {steps} Euler steps, with its standard error. What it
  differs by, beyond that, is the doing of the time discretisation, not of the control.
- *floor*: (1/T) E* int |u - u*|^2 dt of the first solution against the second, under the optimally controlled law, by
  quadrature. Nothing better than the floor can be measured.

Truth of the double well as it is usually tabulated: reversible finite differences and implicit Euler steps of first
order, one-sided differences for the control, looked up cell by cell. Our re-implementation of that recipe, not the
published code. Its squared error against our reference, in the same measure, all ten coordinates:

{rival}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    lines, references = [], {}
    for name in SETTINGS:
        line, references[name] = row(name, given.quick)
        lines.append(line)
        print("; ".join(line), flush=True)
    text = TEXT.format(
        quick=" --quick" if given.quick else "",
        settings=table(HEAD, lines),
        rival=table(RIVAL_HEAD, rival(references["double well"])),
        coarse="1e-3" if given.quick else "1e-4",
        fine="1e-4" if given.quick else "1e-6",
        n=256 if given.quick else 4096,
        steps=50 if given.quick else 200,
    )
    print(text)
    output = given.output if given.output is not None or given.quick else OUTPUT
    if output is not None:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
