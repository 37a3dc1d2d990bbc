# ruff: noqa: E402
"""Spectral elements on boxes against the package's own meshes at equal error, and what a tolerance costs.

    python benchmarks/bench_boxes.py [--quick] [--dim 2|3] [--case B R well mixture steered] [--tight no|also|only]
    python benchmarks/bench_boxes.py --cost docs/images/cost.png

Cases, alpha = T = 1:
    B        b = -(1 + sin(2 pi t)/2) x, Lambda = I, r = y = -|x|^2/2, X_0 ~ N(0, I/2): separable
    R        B with the rotation (x_2, -x_1, ..) added to the drift. v is radial, so it is the same: b turns along its
             level sets. Nothing separates.
    well     coupled double wells: the zoo's in two dimensions, its analogue in three. No closed form: the reference is
             a box solve with two cells more per axis and a time tolerance a thousandth of the least below
    mixture, steered   the zoo's mixture-diffusion and brownian-mixture, two dimensions, closed form

B and R are linear-quadratic: there the quadratic background that is taken out is the solution itself, and u = 1 on any
grid. What a box then takes says nothing about other problems, so it is run with constants taken out as well, which
leaves f as it is, up to a factor, the same unknown as on the mesh. Where nothing is linear-quadratic the rows are: the
value form with a quadratic taken out, as `solve` has it, and the linear form with constants.

There also "box, graded": one solve on the grid that `solve` ends with; and `solve` as a whole, which is many solves
with an estimate.

Rivals: P2 and P4 triangles, P2 tetrahedra, adaptive steps, on the same box, which is the one that `solve` takes for the
target error. Every rival is run over sizes and time tolerances. At equal error: of a rival's runs those that no other
of its runs beats in both error and time, interpolated log-log; nothing is extrapolated. ratio = seconds of the best
mesh over those of the box. Errors are relative, in L2(p_t), largest over nine times as `compare` has it (and at t = 0
for comparison with others): f = exp(v / alpha), and the policy pointwise in the norm of Lambda^{-1}.

Seconds are CPU seconds of one thread (so that other processes do not count), the best of --repeats rounds, in each of
which the rivals take turns. Evaluation of the errors is not part of them.

Then what 1e-8 takes with boxes (--tight). --cost draws a figure instead: seconds of `solve` against rtol, and of one
box solve against its unknowns. `rivals_ngsolve.py` runs B and R with another code.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import importlib.util
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from fem_hjb.paths.extent import box_of, reach
from fem_hjb.problems import zoo
from fem_hjb.problems.blocks import alike, independent_blocks, restrict
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, constant_gauge
from fem_hjb.problems.laws import Gaussian, Law
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_background import quadratic_gauge
from fem_hjb.reference.box_grids import spectral
from fem_hjb.reference.box_solve import solve_on_box
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.solutions.norms import law_points
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, FemHjbError

TARGET = {2: 1e-5, 3: 1e-3}
TIGHT = 1e-8
REPEATED = 1000  # more tries than are ever made: not to be timed again
LINEAR_QUADRATIC = ("B", "R")


# ---------------------------------------------------------------------------------------------------------------------
# Cases


def rate(t: Any) -> Any:
    return 1.0 + 0.5 * np.sin(2 * np.pi * np.asarray(t))


class Radial:
    """v = -P(t) |x|^2 / 2 + d c(t); dP/ds = 1 - 2 a P - P^2, dc/ds = -P / 2 in s = 1 - t."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._run = solve_ivp(
            lambda s, y: [1 - 2 * rate(1 - s) * y[0] - y[0] ** 2, -y[0] / 2],
            (0.0, 1.0),
            [1.0, 0.0],
            method="DOP853",
            rtol=1e-13,
            atol=1e-14,
            dense_output=True,
        )

    def coefficients(self, t: float) -> tuple[float, float]:
        """P and c."""
        P, c = self._run.sol(1.0 - float(t))
        return float(P), float(c)

    def value(self, t: Any, x: Any) -> FloatArray:
        P, c = self.coefficients(t)
        return np.asarray(-P * (np.asarray(x) ** 2).sum(-1) / 2 + self.dim * c)

    def gradient(self, t: Any, x: Any) -> FloatArray:
        return np.asarray(-self.coefficients(t)[0] * np.asarray(x))


def minus_half_square(x: FloatArray) -> FloatArray:
    return np.asarray(-0.5 * (x**2).sum(axis=-1))


def linear_quadratic(dim: int, rotation: float) -> ControlProblem:
    J = np.zeros((dim, dim))
    J[0, 1], J[1, 0] = rotation, -rotation
    variance = solve_ivp(
        lambda t, c: 1 - 2 * rate(t) * c, (0.0, 1.0), [0.5], "DOP853", rtol=1e-13, atol=1e-14, dense_output=True
    )

    def marginal(t: float) -> Law:
        return Gaussian(np.zeros(dim), float(variance.sol(t)[0]))

    return ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: x @ J.T - rate(t)[..., None] * x,
        diffusion=1.0,
        running_reward=lambda t, x: minus_half_square(x),
        terminal_reward=minus_half_square,
        initial_law=Gaussian(np.zeros(dim), 0.5),
        exact=Radial(dim),
        marginal=marginal,
        name="rotating linear-quadratic" if rotation else "linear-quadratic",
    )


def coupled_wells(dim: int) -> ControlProblem:
    """The zoo's two coupled double wells, and three with every pair coupled."""
    if dim == 2:
        return zoo.get("double-well-2d-coupled", 2)
    return ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -6.0 * x * (x**2 - 1) - (x.sum(-1, keepdims=True) - x),
        diffusion=1.0,
        terminal_reward=lambda x: -((x - 1) ** 2).sum(-1),
        initial_law=Gaussian(np.zeros(dim), 0.25),
        name="coupled wells",
    )


CASES: dict[str, tuple[tuple[int, ...], Callable[[int], ControlProblem]]] = {
    "B": ((2, 3), lambda dim: linear_quadratic(dim, 0.0)),
    "R": ((2, 3), lambda dim: linear_quadratic(dim, 1.0)),
    "well": ((2, 3), coupled_wells),
    "mixture": ((2,), lambda dim: zoo.get("mixture-diffusion", dim)),
    "steered": ((2,), lambda dim: zoo.get("brownian-mixture", dim)),
}


# ---------------------------------------------------------------------------------------------------------------------
# Rivals


@dataclass(frozen=True)
class Size:
    """A run: cells per axis, degree (boxes) or element (meshes), and a time tolerance."""

    cells: int
    degree: int | str
    rtol_time: float

    def __str__(self) -> str:
        name = self.degree if isinstance(self.degree, str) else f"degree {self.degree:2d}"
        return f"{self.cells:3d} cells/axis, {name}, rtol_time {self.rtol_time:.0e}"


def grid_of(box: Box, cells: int, degree: int) -> SpectralBasis:
    lower, upper = box.bounds
    lines = [SpectralLine(np.linspace(a, b, cells + 1), degree) for a, b in zip(lower, upper, strict=True)]
    return SpectralBasis(lines)


def background_of(problem: ControlProblem, box: Box, quadratic: bool) -> Gauge | QuadraticGauge:
    nodes = grid_of(box, 2, 16 if problem.dim == 2 else 8).nodes
    constants = constant_gauge(problem, nodes, np.linspace(0.0, problem.horizon, 9))
    fitted = quadratic_gauge(problem, box, constants) if quadratic else None
    return constants if fitted is None else fitted


def on_box(problem: ControlProblem, box: Box, size: Size, linear: bool, background: Gauge | QuadraticGauge) -> Solution:
    basis = grid_of(box, size.cells, int(size.degree))
    return solve_on_box(problem, basis, background, rtol_time=size.rtol_time, linear=linear)


def by_axes(problem: ControlProblem, box: Box, size: Size) -> ProductSolution:
    """As `solve` does it where the axes are independent: what they share is solved once, in one dimension."""
    blocks = independent_blocks(problem)
    parts: list[tuple[tuple[int, ...], Solution]] = []
    lower, upper = (float(bound.min() if side == 0 else bound.max()) for side, bound in enumerate(box.bounds))
    line = Box([lower], [upper], boundary="natural")
    for block in blocks:
        own = restrict(problem, block, len(blocks))
        same = next((part for _, part in parts if alike(part.problem, own)), None)
        parts.append((block, same or on_box(own, line, size, True, background_of(own, line, False))))
    told = {name: sum(part.stats[name] for _, part in parts) for name in ("dofs", "steps")}
    return ProductSolution(problem=problem, parts=tuple(parts), status="ok", stats=told)


def on_mesh(problem: ControlProblem, box: Box, size: Size) -> Solution:
    return solve_on_mesh(problem, element=str(size.degree), cells=size.cells, box=box, rtol_time=size.rtol_time)


class Judge:
    """Relative errors of f and policy: at t = 0, and the largest over nine times."""

    def __init__(self, problem: ControlProblem, exact: Any, box: Box) -> None:
        self.problem, self.alpha = problem, problem.temperature
        points = law_points(problem)
        self.rows = []
        for t, (points_t, weights) in zip(points.times.tolist(), points.rules, strict=True):
            inside = box.contains(points_t)
            x, w = points_t[inside], weights[inside]
            v, slope = exact.value(t, x), exact.gradient(t, x)
            self.rows.append((t, x, w, v, slope, self._square(t, x, slope)))
        self.top = max(float(row[3].max()) for row in self.rows)
        self.sizes = [
            math.sqrt(max(float(w @ np.exp(2 * (v - self.top) / self.alpha)) for _, _, w, v, _, _ in self.rows)),
            math.sqrt(max(float(w @ square) for _, _, w, _, _, square in self.rows)),
        ]

    def _square(self, t: float, x: FloatArray, slope: FloatArray) -> FloatArray:
        return np.asarray(np.einsum("ni,nij,nj->n", slope, self.problem.Lambda(t, x), slope))

    def __call__(self, solution: Any) -> FloatArray:
        """(2, 2): rows f and policy; columns t = 0 and largest. Where f <= 0 in the box, it is all wrong."""
        errors = []
        for t, x, w, v, slope, square in self.rows:
            mine = solution.value(t, x, outside="nan", nonpositive="nan")
            off = solution.gradient(t, x, outside="nan", nonpositive="nan") - slope
            f, exact = np.exp((mine - self.top) / self.alpha), np.exp((v - self.top) / self.alpha)
            in_f = np.where(np.isfinite(f), f - exact, exact) ** 2
            wrong = self._square(t, x, off)
            in_policy = np.where(np.isfinite(wrong), wrong, square)
            errors.append([math.sqrt(w @ in_f) / self.sizes[0], math.sqrt(w @ in_policy) / self.sizes[1]])
        table = np.array(errors).T
        return np.column_stack([table[:, 0], table.max(axis=1)])


@dataclass
class Run:
    rival: str
    size: Size
    solve: Callable[[], Solution | ProductSolution]
    seconds: float = math.inf
    errors: FloatArray | None = None
    counts: str = ""
    tries: int = 0
    note: str = ""


def take_turns(runs: list[Run], judge: Callable[[Any], FloatArray], repeats: int, patience: float) -> None:
    """Each run `repeats` times, in turns; those that take longer than `patience` seconds only once."""
    for _ in range(repeats):
        for run in runs:
            if run.note or run.tries >= REPEATED or (run.tries and run.seconds > patience):
                continue
            start = time.process_time()
            try:
                solution = run.solve()
            except FemHjbError as failure:
                run.note = f"{type(failure).__name__}: {failure}"
                continue
            run.seconds = min(run.seconds, time.process_time() - start)
            run.tries += 1
            if run.errors is None:
                run.errors = judge(solution)
                run.counts = f"{solution.stats['dofs']} dofs, {solution.stats['steps']} steps"


def at_error(runs: Iterable[Run], row: int, target: float, column: int = 1) -> tuple[float, str]:
    """Seconds at an error (row 0 f, 1 policy; column 0 at t = 0, 1 largest) and in words; inf if it was not reached."""
    done = [(float(run.errors[row, column]), run.seconds) for run in runs if run.errors is not None]
    front = [(e, s) for e, s in done if not any(a <= e and b <= s and (a, b) != (e, s) for a, b in done)]
    front.sort(reverse=True)
    below = [pair for pair in front if pair[0] <= target]
    if not below:
        return math.inf, f"not reached (best {min(done)[0]:.1e} in {min(done)[1]:.2f} s)" if done else "nothing ran"
    above = [pair for pair in front if pair[0] > target]
    if not above:
        return below[0][1], f"at most {below[0][1]:.4f} s (error {below[0][0]:.1e})"
    (e0, s0), (e1, s1) = above[-1], below[0]
    seconds = math.exp(np.interp(math.log(target), np.log([e1, e0]), np.log([s1, s0])))
    return seconds, f"{seconds:.4f} s"


# ---------------------------------------------------------------------------------------------------------------------
# At equal error


def variants(case: str) -> list[tuple[str, bool, bool]]:
    """Name, linear form, quadratic background."""
    if case in LINEAR_QUADRATIC:
        return [("box, quadratic", True, True), ("box, constants", True, False)]
    return [("box, value form", False, True), ("box, constants", True, False)]


def box_sizes(dim: int, quick: bool) -> list[Size]:
    if quick:
        return [Size(2, degree, 1e-4) for degree in (8, 12)]
    if dim == 3:
        grids = [(2, 6), (2, 8), (2, 10), (2, 12), (3, 10), (4, 8)]
        return [Size(*grid, rtol) for grid in grids for rtol in (1e-3, 1e-5)]
    grids = [(2, 8), (2, 10), (2, 12), (2, 16), (3, 12), (4, 10), (4, 12), (5, 12), (6, 12), (8, 12)]
    return [Size(*grid, rtol) for grid in grids for rtol in (1e-3, 1e-4, 1e-5, 1e-6)]


def mesh_sizes(dim: int, quick: bool) -> list[Size]:
    if quick:
        return [Size(16, "P2", 1e-4), Size(8, "P4", 1e-4)] if dim == 2 else [Size(6, "P2", 1e-3)]
    if dim == 3:
        return [Size(cells, "P2", rtol) for cells in (8, 12, 16, 22) for rtol in (1e-3, 1e-4)]
    P2 = [Size(cells, "P2", rtol) for cells in (32, 64, 96, 144) for rtol in (1e-4, 1e-5, 1e-6)]
    P4 = [Size(cells, "P4", rtol) for cells in (10, 14, 20, 28, 40) for rtol in (1e-4, 1e-5, 1e-6)]
    return P2 + P4


def judge_of(case: str, problem: ControlProblem, box: Box, least: Size) -> tuple[Judge, str]:
    if problem.exact is not None:
        return Judge(problem, problem.exact, box), "closed form"
    finer = Size(least.cells + 2, 12 if problem.dim == 3 else 14, least.rtol_time)
    linear = case in LINEAR_QUADRATIC
    reference = on_box(problem, box, finer, linear, background_of(problem, box, True))
    return Judge(problem, reference, box), f"reference: box, {finer}"


def box_runs(case: str, problem: ControlProblem, box: Box, sizes: list[Size]) -> list[Run]:
    """A background is made once for all sizes, as `solve` does; what that takes is told."""
    runs = []
    for name, linear, quadratic in variants(case):
        start = time.process_time()
        background = background_of(problem, box, quadratic)
        if quadratic:
            print(f"  the quadratic background takes {time.process_time() - start:.3f} s, once")
        if case == "B" and not quadratic:
            grids = ((2, 10), (3, 12), (4, 12), (5, 14))
            lines = [Size(*grid, rtol) for grid in grids for rtol in (1e-4, 1e-7)]
            runs += [Run("box, by axes", size, partial(by_axes, problem, box, size)) for size in lines]
        runs += [
            Run(name, size, partial(on_box, problem, box, size, linear, background))
            for size in (sizes if name != "box, quadratic" else sizes[:: max(len(sizes) // 6, 1)])
        ]
    return runs


def graded_runs(problem: ControlProblem, box: Box, judge: Judge, target: float) -> list[Run]:
    """`solve` itself, once for each of some tolerances, and one solve on the grid it ends with."""
    background = background_of(problem, box, True)
    runs = []
    for rtol in (100 * target, 10 * target, target):
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ToleranceWarning)
            found = solve(problem, rtol=rtol, box=box)
        seconds = time.process_time() - start
        if not isinstance(found, Solution):
            raise TypeError(f"on a given box nothing falls apart, got {type(found).__name__}")
        basis = spectral(found)
        size = Size(max(line.n_cells for line in basis.lines), basis.degree, 0.02 * rtol)
        one = partial(solve_on_box, problem, basis, background, rtol_time=size.rtol_time, linear=False)
        told = f"{found.stats['dofs']} dofs, {found.stats['solves']} solves"
        runs.append(Run("solve, whole", size, one, seconds, judge(found), told, REPEATED))
        runs.append(Run("box, graded", size, one))
    return runs


def equal_error(case: str, dim: int, quick: bool, repeats: int) -> None:
    problem, target = CASES[case][1](dim), TARGET[dim]
    box = box_of(problem, reach(problem), 0.01 * target**2)
    sizes, meshes = box_sizes(dim, quick), mesh_sizes(dim, quick)
    most = max(sizes, key=lambda size: size.cells * int(size.degree))
    judge, against = judge_of(case, problem, box, Size(most.cells, most.degree, 1e-3 * sizes[-1].rtol_time))
    sides = " x ".join(f"[{a:.2f}, {b:.2f}]" for a, b in zip(*box.bounds, strict=True))
    kind = "linear-quadratic" if case in LINEAR_QUADRATIC else "not linear-quadratic"
    print(f"\n{case}, {dim}-D, {kind}; box {sides}; {against}; target error {target:g}", flush=True)
    runs = box_runs(case, problem, box, sizes)
    runs += [Run(f"mesh {size.degree}", size, partial(on_mesh, problem, box, size)) for size in meshes]
    if case not in LINEAR_QUADRATIC and not quick:
        runs += graded_runs(problem, box, judge, target)
    take_turns(runs, judge, repeats, 3.0)
    show(runs)
    for row, column in ((0, 1), (1, 1), (0, 0), (1, 0)):
        ratios(runs, target, row, column)


def ratios(runs: list[Run], target: float, row: int, column: int) -> None:
    names = list(dict.fromkeys(run.rival for run in runs))
    found = {name: at_error([run for run in runs if run.rival == name], row, target, column) for name in names}
    best = min((found[name] for name in names if name.startswith("mesh")), key=lambda pair: pair[0])
    what = f"{('f', 'policy')[row]}, {('t = 0', 'all t')[column]}"
    for name in names:
        seconds, told = found[name]
        ratio = ""
        if not name.startswith("mesh") and math.isfinite(seconds):
            ratio = f"  ratio {best[0] / seconds:.1f}" if math.isfinite(best[0]) else "  ratio: no mesh got there"
        print(f"  {target:g} in {what:13s}  {name:16s} {told}{ratio}", flush=True)


def show(runs: list[Run]) -> None:
    """The runs that no other of the same rival beats in time and in both errors."""
    for run in runs:
        if run.note:
            print(f"    {run.rival:16s} {run.size}: {run.note[:160]}")
        if run.errors is None:
            continue
        mine = [run.seconds, *run.errors[:, 1]]
        others = [[o.seconds, *o.errors[:, 1]] for o in runs if o.rival == run.rival and o.errors is not None]
        if any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in others):
            continue
        f, policy = run.errors
        print(
            f"    {run.rival:16s} {run.size}: {run.seconds:8.4f} s, f {f[1]:.1e} (t = 0: {f[0]:.1e}), policy"
            f" {policy[1]:.1e} (t = 0: {policy[0]:.1e}); {run.counts}"
        )


def tight(case: str, dim: int, repeats: int) -> None:
    """What 1e-8 takes."""
    problem = CASES[case][1](dim)
    box = box_of(problem, reach(problem), 0.01 * TIGHT**2)
    grids = {
        2: [(2, 16), (4, 12), (4, 16), (6, 14), (8, 14)],
        3: [(2, 16), (3, 14), (4, 14)],
    }[dim]
    sizes = [Size(*grid, rtol) for grid in grids for rtol in ((1e-8, 1e-9) if dim == 2 else (1e-9,))]
    judge, against = judge_of(case, problem, box, Size(8 if dim == 2 else 3, 14, 1e-11 if dim == 2 else 1e-10))
    print(f"\n{case}, {dim}-D, {TIGHT:g}; {against}", flush=True)
    runs = box_runs(case, problem, box, sizes)
    take_turns(runs, judge, repeats, 3.0)
    show(runs)
    for name, _, _ in variants(case):
        for row, what in enumerate(("f", "policy")):
            told = at_error([run for run in runs if run.rival == name], row, TIGHT)[1]
            print(f"  {TIGHT:g} in {what:6s}  {name:16s} {told}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# The figure


def cost(path: Path, quick: bool, patience: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series = {
        "mixture-diffusion, d = 1": zoo.get("mixture-diffusion", 1),
        "brownian-mixture, d = 1": zoo.get("brownian-mixture", 1),
        "double-well, d = 1": zoo.get("double-well", 1),
        "mixture-diffusion, d = 2": zoo.get("mixture-diffusion", 2),
        "brownian-mixture, d = 2": zoo.get("brownian-mixture", 2),
        "coupled double wells, d = 2": coupled_wells(2),
    }
    tolerances = [1e-2, 1e-3] if quick else [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for k, (name, problem) in enumerate(list(series.items())[: 3 if quick else None]):
        rows = timed_tolerances(name, problem, tolerances, 1 if quick else 3, patience)
        draw(left, rows, name, k % 3, problem.dim)
    left.invert_xaxis()
    left.set_xlabel("relative tolerance asked for (rtol)")
    left.set_ylabel("seconds of solve, with its error estimate")
    left.set_title("Cost of a tolerance (slopes: last four points)")
    sizes = (
        [(2, 8), (2, 12), (4, 10), (4, 14)] if quick else [(2, 8), (3, 8), (4, 8), (4, 12), (6, 12), (8, 12), (10, 14)]
    )
    for k, (case, dim) in enumerate(
        [("mixture", 2), ("steered", 2), ("well", 2)] + [("R", 3), ("well", 3)] * (not quick)
    ):
        rows = timed_sizes(case, dim, sizes if dim == 2 else [(2, 4), (2, 6), (2, 8), (2, 10), (2, 14), (4, 9)])
        draw(right, rows, f"{CASES[case][1](dim).name}, d = {dim}", (0, 1, 2, 3, 2)[k], dim)
    right.set_xlabel("unknowns in space")
    right.set_ylabel("seconds of one solve on a box, rtol_time = 1e-5")
    right.set_title("Cost of unknowns (slopes: last four points)")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.grid(True, which="major", alpha=0.3)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=160)
    print(f"written: {path}")


def timed_tolerances(
    name: str, problem: ControlProblem, tolerances: list[float], repeats: int, patience: float
) -> list[list[float]]:
    """(rtol, seconds), as long as tolerances are met and a solve takes less than `patience` seconds."""
    rows: list[list[float]] = []
    for rtol in tolerances:
        best = math.inf
        with warnings.catch_warnings():
            warnings.simplefilter("error", ToleranceWarning)
            try:
                for _ in range(repeats if not rows or rows[-1][1] < 1.0 else 1):
                    start = time.process_time()
                    solution = solve(problem, rtol=rtol)
                    best = min(best, time.process_time() - start)
            except (ToleranceWarning, ConvergenceError) as failure:
                print(f"  {name}, rtol {rtol:g}: {str(failure)[:200]}")
                break
        rows.append([rtol, best])
        stats = solution.stats
        print(
            f"  {name}, rtol {rtol:g}: {best:.3f} s, estimate {solution.error_estimate}; {stats['form']},"
            f" {stats['route']}, {stats['dofs']} dofs, {stats['solves']} solves",
            flush=True,
        )
        if best > patience:
            break
    return rows


def timed_sizes(case: str, dim: int, grids: list[tuple[int, int]]) -> list[list[float]]:
    """(unknowns, seconds) of one solve each, the best of three."""
    problem = CASES[case][1](dim)
    box = box_of(problem, reach(problem), 0.01 * TARGET[dim] ** 2)
    linear = case in LINEAR_QUADRATIC
    background = background_of(problem, box, not linear)
    rows = []
    for grid in grids:
        best = math.inf
        for _ in range(3):
            start = time.process_time()
            solution = on_box(problem, box, Size(*grid, 1e-5), linear, background)
            best = min(best, time.process_time() - start)
        rows.append([float(solution.stats["dofs"]), best])
        print(
            f"  {case}, {dim}-D, {int(rows[-1][0])} dofs: {best:.4f} s, {solution.stats['steps']} steps,"
            f" {solution.stats['route']}"
        )
    return rows


def draw(ax: Any, rows: list[list[float]], name: str, colour: int, dim: int) -> None:
    if len(rows) < 2:
        return
    x, y = np.array(rows).T
    slope = np.polyfit(np.log(x[-4:]), np.log(y[-4:]), 1)[0]  # before, what does not depend on the size shows
    style = {1: ("o", "--"), 2: ("s", "-"), 3: ("^", ":")}[dim]
    ax.plot(
        x, y, marker=style[0], linestyle=style[1], color=f"C{colour}", markersize=4, label=f"{name}: slope {slope:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small grids: a smoke test, its ratios mean little")
    parser.add_argument("--dim", type=int, choices=(2, 3), help="only this dimension")
    parser.add_argument("--case", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tight", choices=("no", "also", "only"), default="also", help="what 1e-8 takes, too")
    parser.add_argument("--cost", type=Path, help="only the figure, written here")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds after which the figure's curves end")
    given = parser.parse_args()
    if given.cost is not None:
        cost(given.cost, given.quick, given.patience)
        return
    for dim in (2, 3) if given.dim is None else (given.dim,):
        for case in given.case if not given.quick else {2: ("B", "steered"), 3: ("R",)}[dim]:
            if dim not in CASES[case][0]:
                continue
            if given.tight != "only":
                equal_error(case, dim, given.quick, 1 if given.quick else given.repeats)
            if given.tight != "no" and not given.quick:
                tight(case, dim, given.repeats)
    rival = Path(__file__).with_name("rivals_ngsolve.py")
    if importlib.util.find_spec("ngsolve") is None:
        print(f"\nNGSolve is not installed; with it (pip install ngsolve) {rival.name} is run, too")
    else:
        subprocess.run([sys.executable, rival, *(["--quick"] if given.quick else [])], check=True)


if __name__ == "__main__":
    main()
