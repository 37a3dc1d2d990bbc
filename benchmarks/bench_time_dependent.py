# ruff: noqa: E402
"""A drift that depends on time: `solve_on_mesh` against the best scikit-fem + SciPy loop we know, at equal error.

    python benchmarks/bench_time_dependent.py [--quick] [--dim 2|3]

Problem: b = -(1 + sin(2 pi t)/2) x, Lambda = I, r = y = -|x|^2/2, alpha = T = 1 on [-6, 6]^d, natural boundary;
f(0, x) = exp(-P |x|^2/2 + d c) with P, c from a Riccati equation. Same mesh, same P2 elements for both.

Rival: forms assembled by scikit-fem (what does not depend on time once, the drift in every step), Crank-Nicolson with
the matrix at mid-step, Jacobi-BiCGStab started from an extrapolation. Its steps are increased until the error of its
gradient is within 10 per cent of ours, and on until its error in f is, too. Variants:
    bicgstab   as above, the fastest that works for any drift;
    splu       sparse LU in every step (SuperLU, minimum degree), timed on a few steps; hopeless in three dimensions;
    factored   no reassembly at all, because it is told that b(t, x) = a(t) b0(x): not available for other drifts.

Errors at t = 0 and the same points, with weight exp(-|x|^2): f, and the raw finite-element gradient of log f, relative.
In three dimensions the same mesh also carries the zoo's `lq` (coupled, constant coefficients), whose value and policy
are compared with the closed form: relative errors, max over t of L2(p_t) norms, quadrature of 5^3 points at 5 times.

CPU seconds of one thread, so that other processes do not count. The peak memory is that of the process after our solve,
before the rival starts.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import resource
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import skfem
from scipy.integrate import solve_ivp
from scipy.sparse.linalg import LinearOperator, bicgstab, splu
from skfem.helpers import dot, grad

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.support.checks import FloatArray

ELEMENTS = {2: (skfem.ElementTriP2, "tri"), 3: (skfem.ElementTetP2, "tet")}
RIVAL_STEPS = (6, 8, 12, 17, 25, 35, 50, 70, 100, 140, 200, 280)


def rate(t: Any) -> Any:
    return 1.0 + 0.5 * np.sin(2 * np.pi * np.asarray(t))


def minus_half_square(x: FloatArray) -> FloatArray:
    return -0.5 * (x**2).sum(axis=-1)


def control_problem(dim: int) -> ControlProblem:
    return ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -rate(t)[..., None] * x,
        diffusion=1.0,
        running_reward=lambda t, x: minus_half_square(x),
        terminal_reward=minus_half_square,
        initial_law=Gaussian(np.zeros(dim), 0.5),
    )


class Judge:
    """Relative errors of coefficients of f at t = 0."""

    def __init__(self, dim: int, mesh: Any) -> None:
        self.basis = skfem.Basis(mesh, ELEMENTS[dim][0](), intorder=7)
        self.x = self.basis.global_coordinates().value.reshape(dim, -1)
        self.weights = self.basis.dx.ravel() * np.exp(-(self.x**2).sum(axis=0))
        riccati = solve_ivp(
            lambda s, y: [1 - 2 * rate(1 - s) * y[0] - y[0] ** 2, -y[0] / 2],
            (0.0, 1.0),
            [1.0, 0.0],
            method="DOP853",
            rtol=1e-13,
            atol=1e-14,
        )
        P, c = riccati.y[:, -1]
        self.f = np.exp(-P * (self.x**2).sum(axis=0) / 2 + dim * c)
        self.slope = -P * self.x

    def __call__(self, coefficients: FloatArray) -> tuple[float, float]:
        field = self.basis.interpolate(coefficients)
        f = np.asarray(field.value).ravel()
        slope = np.asarray(field.grad).reshape(len(self.x), -1) / f
        w = self.weights
        in_f = np.sqrt((w * (f - self.f) ** 2).sum() / (w * self.f**2).sum())
        in_slope = np.sqrt((w * (slope - self.slope) ** 2).sum() / (w * self.slope**2).sum())
        return float(in_f), float(in_slope)


@dataclass
class Run:
    name: str
    steps: int
    seconds: float
    f: FloatArray | None
    detail: str


def ours(dim: int, mesh: Any, rtol: float) -> Run:
    start = time.process_time()
    solution = solve_on_mesh(control_problem(dim), mesh, element="P2", rtol_time=rtol)
    seconds = time.process_time() - start
    stats, gauge = solution.stats, solution.gauge
    f = np.asarray(solution.coefficients)[0] * np.exp(gauge.terminal + gauge.running)
    phases = ", ".join(f"{name} {value:.1f}" for name, value in stats["seconds"].items() if name != "total")
    iterations = stats["iterations"] / stats["linear_solves"]
    return Run("fem_hjb", stats["steps"], seconds, f, f"wall clock: {phases}; {iterations:.1f} iterations per solve")


class Rival:
    """Crank-Nicolson on scikit-fem's matrices."""

    def __init__(self, dim: int, mesh: Any) -> None:
        start = time.process_time()
        self.basis = skfem.Basis(mesh, ELEMENTS[dim][0](), intorder=5)
        self.M = skfem.BilinearForm(lambda u, v, w: u * v).assemble(self.basis).tocsr()
        still = skfem.BilinearForm(lambda u, v, w: -0.5 * dot(grad(u), grad(v)) - 0.5 * dot(w.x, w.x) * u * v)
        self.A = still.assemble(self.basis).tocsr()
        self.drift = skfem.BilinearForm(lambda u, v, w: -w.a * dot(w.x, grad(u)) * v)
        self.setup = time.process_time() - start
        self.f_T = np.exp(-(self.basis.doflocs**2).sum(axis=0) / 2)

    def run(self, steps: int, variant: str, rtol: float, only: int | None = None) -> Run:
        """`only`: do that many steps, and scale the time."""
        start = time.process_time()
        h, f, before, assembly = 1.0 / steps, self.f_T, self.f_T, 0.0
        fixed = self.drift.assemble(self.basis, a=1.0).tocsr() if variant == "factored" else None
        done = steps if only is None else min(only, steps)
        for k in range(done):
            a, tick = float(rate(1.0 - (k + 0.5) * h)), time.process_time()
            C = a * fixed if fixed is not None else self.drift.assemble(self.basis, a=a).tocsr()
            assembly += time.process_time() - tick
            S = self.M - (h / 2) * (self.A + C)
            rhs = 2.0 * (self.M @ f)
            if variant == "splu":
                factors = splu(
                    S.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
                )
                twice_middle = factors.solve(rhs)
            else:
                diagonal = 1.0 / S.diagonal()
                jacobi = LinearOperator(S.shape, lambda v, diagonal=diagonal: diagonal * v)
                twice_middle, failed = bicgstab(S, rhs, x0=3 * f - before, rtol=rtol, atol=0.0, M=jacobi)
                if failed:
                    raise RuntimeError(f"the rival's BiCGStab failed in step {k} of {steps}")
            before, f = f, twice_middle - f
        seconds = self.setup + (time.process_time() - start) * steps / done
        note = f"assembly {assembly * steps / done:.1f}" + (f"; extrapolated from {done} steps" if done < steps else "")
        return Run(f"rival {variant}", steps, seconds, f if done == steps else None, note)


def report(run: Run, error: tuple[float, float] | None, best: float) -> None:
    errors = "f -        gradient -       " if error is None else f"f {error[0]:.2e} gradient {error[1]:.2e}"
    print(
        f"  {run.name:15s} {run.steps:4d} steps {run.seconds:8.2f} s  ratio {run.seconds / best:5.2f}  {errors}"
        f"  ({run.detail})",
        flush=True,
    )


def compare(dim: int, cells: int, rtol: float, quick: bool) -> None:
    mesh = box_mesh(Box([-6.0] * dim, [6.0] * dim), cells, ELEMENTS[dim][1])
    mine = ours(dim, mesh, rtol)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    judge = Judge(dim, mesh)
    error = judge(mine.f) if mine.f is not None else (np.nan, np.nan)
    dofs = 0 if mine.f is None else mine.f.size
    print(f"{dim}-D P2, {dofs} dofs, rtol_time={rtol:g}, our peak memory {peak:.0f} MB; ratio = seconds / ours")
    report(mine, error, mine.seconds)
    rival = Rival(dim, mesh)
    counts: list[int] = []
    for steps in RIVAL_STEPS:
        run = rival.run(steps, "bicgstab", 1e-3 * rtol)
        reached = judge(run.f) if run.f is not None else (np.inf, np.inf)
        both = reached[1] <= 1.1 * error[1] and reached[0] <= 1.1 * error[0]
        if both or (not counts and reached[1] <= 1.1 * error[1]):
            counts.append(steps)
            report(run, reached, mine.seconds)
        if both:
            break
    if dim == 2 or quick:
        report(rival.run(counts[0], "splu", 0.0, only=3), None, mine.seconds)
    for steps in counts:
        run = rival.run(steps, "factored", 1e-3 * rtol)
        report(run, judge(run.f) if run.f is not None else None, mine.seconds)


def closed_form_3d(cells: int, rtol: float) -> None:
    problem = zoo.get("lq", 3)
    start = time.process_time()
    solution = solve_on_mesh(problem, cells=cells, rtol_time=rtol)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = []
    for t in np.linspace(0.0, problem.horizon, 5):
        x, w = problem.marginal(float(t)).quadrature(5)
        v, best = problem.exact.value(t, x), problem.policy_from_gradient(t, x, problem.exact.gradient(t, x))
        off = solution.policy(t, x) - best
        inverse = np.linalg.inv(problem.Lambda(t, x))
        squares = [np.einsum("ni,nij,nj->n", p, inverse, p) for p in (off, best)]
        rows.append([w @ (solution.value(t, x) - v) ** 2, w @ v**2, w @ squares[0], w @ squares[1]])
    dv, vv, dp, pp = np.sqrt(np.max(rows, axis=0))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    stats = solution.stats
    print(
        f"zoo lq, 3-D P2, {stats['dofs']} dofs, rtol_time={rtol:g}: {seconds:.1f} s for {stats['steps']} steps,"
        f" value error {dv / vv:.1e}, policy error {dp / pp:.1e}, peak memory {peak:.0f} MB to solve,"
        f" {after:.0f} MB with policies",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small meshes: a smoke test, its ratios mean little")
    parser.add_argument("--dim", type=int, choices=(2, 3), help="only this dimension")
    arguments = parser.parse_args()
    for dim in (3, 2) if arguments.dim is None else (arguments.dim,):
        cells = {2: 32, 3: 10}[dim] if arguments.quick else {2: 158, 3: 29}[dim]
        if dim == 3:
            closed_form_3d(14 if arguments.quick else cells, 1e-5)
        compare(dim, cells, 1e-4, arguments.quick)


if __name__ == "__main__":
    main()
