"""Average reward and gap of the settings of the literature on eigenfunctions, by `ground_state`, to a tolerance.

    python benchmarks/bench_ground_states.py [--quick] [--rtol RTOL]

Settings (L. Claeys, A. Goldman, Z. Shen and N. He, arXiv 2603.23173, and the code of that paper): dX = -grad E dt + dB,
temperature 1, a running cost f, no terminal one that matters for ever:

    isotropic, d = 20     E = |x|^2 / 2,                    f = |x|^2
    repulsive, d = 20     E = -|x|^2 / 2,                   f = |x|^2
    anisotropic, d = 2    E = x' diag(a) x / 2,             f = x' P x;  drawn here, as their a and P need torch
    double well, d = 10   E = sum kappa_i (x_i^2 - 1)^2,    f = sum nu_i (x_i^2 - 1)^2
                          with kappa = nu = 5 for three i, and kappa = 1, nu = 3 for the others

    ring, d = 2           E = .05 (|x|^2 - 25) |x|^2,       f = 2 x_1;  the factor is chosen here

The law of the ring is a thin circle, which tensor grids are not made for (four minutes do not do): it is solved on
triangles in an annulus, at whose edges it has no mass, by elements of order 4, and refined once for the error.
Independent coordinates are solved one by one: average rewards add up, the gap is the least one. The first three are
linear-quadratic: their average reward is -Tr(P) / 2 for the P of the algebraic Riccati equation, and the gap is the
smallest of the rates of the controlled process. CPU seconds of one core.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.linalg import solve_continuous_are

import fem_hjb as fh
from fem_hjb.problems.zoo.meshed import annulus_mesh

Piece = tuple[fh.ControlProblem, int]  # a problem, and how many independent ones are like it


def process(dim: int, drift: Callable[..., Any], cost: Callable[..., Any]) -> fh.ControlProblem:
    """A process at rest with a running cost."""
    return fh.ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: drift(x),
        diffusion=1.0,
        running_reward=lambda t, x: -cost(x),
        terminal_reward=lambda x: 0.0 * x[..., 0],
        initial_law=fh.Gaussian(np.zeros(dim), np.eye(dim)),
    )


def well(kappa: float, nu: float) -> fh.ControlProblem:
    """One coordinate of the double well."""
    return process(1, lambda x: -4 * kappa * x * (x**2 - 1), lambda x: nu * (x[..., 0] ** 2 - 1) ** 2)


def quadratic(A: np.ndarray, P: np.ndarray) -> fh.ControlProblem:
    """dX = A X dt + dB with the running cost x'Px."""
    return process(len(A), lambda x: x @ A.T, lambda x: np.einsum("...i,ij,...j->...", x, P, x))


def riccati(A: np.ndarray, P: np.ndarray) -> tuple[float, float]:
    """Average reward and gap in closed form."""
    S = solve_continuous_are(A, np.eye(len(A)), 2 * P, np.eye(len(A)))
    return float(-np.trace(S) / 2), float(-np.linalg.eigvals(A - S).real.max())


def anisotropic() -> tuple[np.ndarray, np.ndarray]:
    """A and P in two dimensions."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((2, 2)))
    return -np.diag(np.exp(rng.standard_normal(2))), turn @ np.diag(np.exp(rng.standard_normal(2))) @ turn.T


def row(name: str, pieces: Sequence[Piece], rtol: float, known: tuple[float, float] | None) -> str:
    """One line of the table."""
    started, average, gap, off, status = time.process_time(), 0.0, np.inf, 0.0, []
    for problem, count in pieces:
        found = fh.ground_state(problem, rtol=rtol)
        average += count * found.average_reward
        gap = min(gap, found.gap)
        off += count * found.stats["average_reward_error"]
        status.append(found.status)
    seconds = time.process_time() - started
    truth = "" if known is None else f"{abs(average - known[0]):.0e}, {abs(gap - known[1]):.0e}"
    told = "ok" if set(status) == {"ok"} else "; ".join(status)
    return f"{name:22s} {average:16.9f} {off:8.0e} {gap:12.6f}   {truth:16s} {seconds:6.1f}  {told}"


def ring(quick: bool) -> str:
    """Its line of the table."""
    started = time.process_time()
    mesh, element = (annulus_mesh(1.2, 5.4, 8, 24), "P2") if quick else (annulus_mesh(1.2, 5.4, 22, 64), "P4")
    found = fh.stationary.ground_state_on_mesh(fh.zoo.get("ring", 2), mesh, element=element)
    seconds, off = time.process_time() - started, found.stats["average_reward_error"]
    head = f"{'ring, d = 2, on a mesh':22s} {found.average_reward:16.9f} {off:8.0e} {found.gap:12.6f}"
    return f"{head}   {'':16s} {seconds:6.1f}  {found.status}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: one dimension at 1e-3, and the ring on a coarse mesh"
    )
    parser.add_argument("--rtol", type=float, default=1e-5)
    given = parser.parse_args()
    rtol = 1e-3 if given.quick else given.rtol
    warnings.simplefilter("ignore", fh.ToleranceWarning)
    one = np.eye(1)
    head = ("setting", "average reward", "off", "gap", "known, off by", "CPU s")
    print("{:22s} {:>16s} {:>8s} {:>12s}   {:16s} {:>6s}  status".format(*head))
    for name, sign in (("isotropic, d = 20", -1.0), ("repulsive, d = 20", 1.0)):
        exact = riccati(sign * one, one)
        print(row(name, [(quadratic(sign * one, one), 20)], rtol, (20 * exact[0], exact[1])), flush=True)
    print(row("double well, d = 10", [(well(5.0, 5.0), 3), (well(1.0, 3.0), 7)], rtol, None), flush=True)
    print(ring(given.quick), flush=True)
    if not given.quick:
        A, P = anisotropic()
        print(row("anisotropic, d = 2", [(quadratic(A, P), 1)], rtol, riccati(A, P)), flush=True)


if __name__ == "__main__":
    main()
