"""Data as the base process: the score of many points against rivals in the same run, and what their problems take.

    python benchmarks/bench_points.py [--quick]     (a tenth of the nodes, and one problem)
    python benchmarks/bench_points.py --figure docs/images/data.png

Scores of 2000 points at 20 000 nodes, d = 2, for much and for little noise. Rivals: the formula written out in NumPy by
broadcasting, with SciPy's logsumexp, which is stable like ours, in chunks of 512 nodes, for as a whole it takes a
gigabyte; the same mixture with a covariance of each component (`GaussianMixture`), in the same chunks; and
scipy.stats.gaussian_kde, which gives the density alone. Each is called three times, in turns; seconds are the least CPU
seconds. Then `fem_hjb.solve` on the four data sets of the zoo, and its error against the closed form.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.special import logsumexp
from scipy.stats import gaussian_kde

import fem_hjb as fh

NAMES = ("eight-gaussians", "two-moons", "checkerboard", "swiss-roll")
Function = Callable[[np.ndarray], np.ndarray]


def broadcast_score(points: np.ndarray, h: float) -> Function:
    """grad log sum_j exp(-|x - m_j|^2 / (2 h^2)), by the formula."""

    def score(x: np.ndarray) -> np.ndarray:
        offsets = points - x[:, None]
        logs = -0.5 * (offsets**2).sum(-1) / h**2
        shares = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
        return (shares[..., None] * offsets).sum(1) / h**2

    return score


def chunked(function: Function) -> Function:
    return lambda x: np.concatenate([function(part) for part in np.array_split(x, -(-len(x) // 512))])


def fastest(calls: dict[str, Function], x: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    """The least of three CPU seconds, taken in turns, and the result."""
    found: dict[str, tuple[float, np.ndarray]] = {}
    for _ in range(3):
        for name, call in calls.items():
            start = time.process_time()
            result = call(x)
            seconds = time.process_time() - start
            found[name] = min(seconds, found.get(name, (np.inf, x))[0]), result
    return found


def speed(nodes: int) -> Table:
    table = Table(
        "noise", "what", "CPU seconds", "ratio", "largest difference", title=f"2000 points at {nodes:,} nodes"
    )
    rng = np.random.default_rng(0)
    points = rng.uniform(-3.0, 3.0, (2000, 2))
    x = rng.uniform(-4.0, 4.0, (nodes, 2))
    for h in (1.0, 0.1):
        law = fh.problems.KernelDensity(points, h)
        mixture = fh.GaussianMixture(np.full(2000, 1 / 2000), points, np.tile(h**2 * np.eye(2), (2000, 1, 1)))
        scores = fastest(
            {
                "KernelDensity.score": law.score,
                "broadcasting in NumPy": chunked(broadcast_score(points, h)),
                "GaussianMixture.score": chunked(mixture.score),
            },
            x,
        )
        # SciPy's estimate takes covariances that are multiples of the sample's: unit ones, so that it is ours
        white = np.linalg.solve(np.linalg.cholesky(np.cov(points.T)), points.T)
        kernels = fh.problems.KernelDensity(white.T, h)
        rival = gaussian_kde(white, bw_method=h)
        densities = fastest(
            {
                "KernelDensity.logpdf": lambda y, k=kernels: np.exp(k.logpdf(y)),
                "gaussian_kde": lambda y, r=rival: r(y.T),
            },
            x,
        )
        for found in (scores, densities):
            ours, best = next(iter(found.values()))
            for name, (seconds, result) in found.items():
                gap = np.abs(result - best).max() / np.abs(best).max()
                table.add_row(f"h = {h}", name, f"{seconds:.3f}", f"{seconds / ours:.1f}", f"{gap:.0e}")
    return table


def solved(names: tuple[str, ...]) -> Table:
    table = Table("problem", "kernels", "asked", "true: value", "policy", "estimated", "unknowns", "CPU s", "status")
    for name in names:
        problem = fh.zoo.get(name)
        kernels = len(problem.initial_law.points)
        for rtol in (1e-2, 1e-3):
            start = time.process_time()
            solution = fh.solve(problem, rtol=rtol)
            seconds = time.process_time() - start
            true = fh.compare({"found": solution}, problem.exact, problem=problem, order=8, law="both").overall("found")
            estimate = max(solution.error_estimate.value, solution.error_estimate.policy)
            numbers = (f"{v:.1e}" for v in (true.value, true.policy, estimate))
            dofs = f"{solution.stats['dofs']:,}"
            table.add_row(name, str(kernels), f"{rtol:g}", *numbers, dofs, f"{seconds:.1f}", solution.status)
    return table


def draw(ax: Axes, density: np.ndarray, line: np.ndarray) -> None:
    ax.pcolormesh(line, line, density.reshape(line.size, -1).T, shading="gouraud", cmap="Greys", rasterized=True)
    ax.set(xlim=line[[0, -1]], ylim=line[[0, -1]], xticks=(), yticks=(), aspect="equal")


def figure() -> Figure:
    """The data, the control late, and where it leads: dots are ends of paths under the policy that was solved for."""
    made = Figure(figsize=(10.0, 7.6), layout="constrained")
    axes = made.subplots(3, len(NAMES))
    line = np.linspace(-4.8, 4.8, 241)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    arrows = np.stack(np.meshgrid(*[np.linspace(-4.2, 4.2, 15)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    for (top, middle, bottom), name in zip(axes.T, NAMES, strict=True):
        problem = fh.zoo.get(name)
        found = fh.solve(problem, rtol=1e-2)
        late = 0.8 * problem.horizon
        law = problem.marginal(late)
        draw(top, np.exp(problem.marginal(problem.horizon).logpdf(grid)), line)
        top.set_title(name)
        draw(middle, np.exp(law.logpdf(grid)), line)
        here = arrows[law.logpdf(arrows) > law.logpdf(law.points).max() - 6.0]
        middle.quiver(*here.T, *found.policy(late, here).T, color="#D55E00", width=0.008)
        reward = problem.terminal_reward
        tilted = fh.problems.tilted_density(problem.marginal(problem.horizon), reward, temperature=problem.temperature)
        draw(bottom, tilted.density(grid), line)
        x = np.asarray(fh.sample_paths(problem, n=600, steps=200, rng=0, policy=found.policy).x)[:, -1]
        bottom.plot(*x.T, ".", color="#0072B2", markersize=2.0)
    labels = ("data", "$p_t$ and policy, $t = 0.8\\,T$", "tilted data, and ends of paths")
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    return made


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    if "--figure" in sys.argv[1:]:
        figure().savefig(sys.argv[sys.argv.index("--figure") + 1], dpi=150)
        return
    console = Console(width=120)
    console.print(speed(2000 if quick else 20_000))
    console.print(solved(NAMES[:1] if quick else NAMES))


if __name__ == "__main__":
    main()
