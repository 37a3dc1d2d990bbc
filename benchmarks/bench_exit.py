"""How reliable the error bars of `solve_exit` are: random exit problems in one and two dimensions, solved twice.

    python benchmarks/bench_exit.py [COUNT] [--quick]

Drift x A + c sin(w x), diffusion that depends on the state, running reward -lambda (1 + sin(3 x_1)^2), exit reward
q cos(sum x), temperatures 0.05, 0.3 and 1, and faces that absorb or reflect at random on [-1, 1]^d. The reference is
the same solver a hundred (d = 2) or ten thousand times tighter. Told are how many have the status "ok", in how many a
true error is beyond its estimate, the largest ratio of the two, and the longest time.
"""

import argparse
import time
import warnings

import numpy as np

import fem_hjb as fh

SECONDS = 20.0


def problem(rng: np.random.Generator, d: int) -> fh.ExitProblem:
    """A random problem on [-1, 1]^d."""
    A, c, w = rng.normal(size=(d, d)), 2 * rng.normal(size=d), rng.uniform(1, 6)
    noise, wave, reward, q = rng.uniform(0.05, 1.5), rng.uniform(0.2, 0.5), rng.uniform(0.1, 3), rng.normal()
    words = [[str(word) for word in rng.choice(["absorbing", "reflecting"], 2)] for _ in range(d)]
    words[0][0] = "absorbing"
    return fh.ExitProblem(
        dim=d,
        temperature=float(rng.choice([0.05, 0.3, 1.0])),
        drift=lambda x: x @ A.T + c * np.sin(w * x),
        diffusion=lambda x: np.eye(d) * (noise * (1 + wave * np.cos(w * x.sum(-1))))[..., None, None],
        running_reward=lambda x: -reward * (1 + np.sin(3 * x[..., 0]) ** 2),
        exit_reward=lambda x: q * np.cos(x.sum(-1)),
        domain=fh.Box([-1.0] * d, [1.0] * d, boundary=[(low, high) for low, high in words]),
    )


def compared(of: fh.ExitProblem) -> tuple[bool, float, float]:
    """Whether the status is ok, the largest ratio of a true error to its estimate, and the seconds."""
    rough, fine = (1e-2, 1e-4) if of.dim == 2 else (1e-3, 1e-7)
    started = time.perf_counter()
    found = fh.solve_exit(of, rtol=rough, max_seconds=SECONDS)
    seconds = time.perf_counter() - started
    if found.status != "ok":
        return False, 0.0, seconds
    reference = fh.solve_exit(of, rtol=fine, max_seconds=4 * SECONDS)
    x = np.random.default_rng(1).uniform(-1, 1, (4000, of.dim))
    v, slope, matrix = reference.value(x), reference.gradient(x), of.Lambda(x)

    def size(g: np.ndarray) -> float:
        return float(np.sqrt(np.einsum("ni,nij,nj->", g, matrix, g)))

    value = float(np.linalg.norm(found.value(x) - v) / np.linalg.norm(v)) / max(found.error_estimate.value, 1e-12)
    policy = size(found.gradient(x) - slope) / size(slope) / max(found.error_estimate.policy, 1e-12)
    return True, max(value, policy), seconds


def main() -> None:
    warnings.simplefilter("ignore", fh.ToleranceWarning)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=60, help="problems, two thirds of them in one dimension")
    parser.add_argument("--quick", action="store_true", help="a smoke test: three problems")
    given = parser.parse_args()
    count, rng = 3 if given.quick else given.count, np.random.default_rng(0)
    for d, share in ((1, count * 2 // 3), (2, count - count * 2 // 3)):
        rows = np.array([compared(problem(rng, d)) for _ in range(share)], dtype=np.float64)
        ok, ratio, seconds = rows.T
        print(
            f"d = {d}: {int(ok.sum())} of {share} ok, true error beyond its estimate in {int((ratio > 1).sum())},"
            f" largest ratio {ratio.max():.2f}, median seconds {np.median(seconds):.2f}, longest {seconds.max():.1f}"
        )


if __name__ == "__main__":
    main()
