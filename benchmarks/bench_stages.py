"""How often the error bar of `solve_stages` holds: random rewards on the way, whose value is known.

    python benchmarks/bench_stages.py [--quick] [--count N] [--count2 N]

dX = (A X + a) dt + Lambda^{1/2} dB with one or two rewards on the way and one at T, each alpha times the logarithm of a
Gaussian mixture of up to three terms (two in two dimensions), at random times, to random tolerances from 1e-5 to 1e-2
(1e-4 in two dimensions). Sums of such rewards are again some, with the products of their terms, so that the value is
known from Riccati equations of each stage. Errors are those of `compare` under both laws at six times of each stage;
"over" is the error over its estimate, of value and policy. CPU seconds of one core.
"""

import argparse
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

import fem_hjb as fh
from fem_hjb.problems import LinearQuadratic, LogSumExpReward


@dataclass(frozen=True)
class Joined:
    """Closed forms of stages that begin at these times."""

    starts: list[float]
    parts: list[LinearQuadratic]

    def value(self, t: float, x: Any) -> Any:
        k = int(np.searchsorted(self.starts, t + 1e-12, side="right")) - 1
        return self.parts[k].value(min(t - self.starts[k], self.parts[k].horizon), x)

    def gradient(self, t: float, x: Any) -> Any:
        k = int(np.searchsorted(self.starts, t + 1e-12, side="right")) - 1
        return self.parts[k].gradient(min(t - self.starts[k], self.parts[k].horizon), x)


def total(reward: LogSumExpReward, last: LinearQuadratic) -> LogSumExpReward:
    """A reward and the value at the beginning of a stage, whose terms are the products of theirs."""
    values = [part[0] for part in last.coefficients(0.0)]
    R, s, c = (
        (one[:, None] + other[None]).reshape(-1, *one.shape[1:])
        for one, other in zip(reward.coefficients, values, strict=True)
    )
    return LogSumExpReward(temperature=reward.temperature, R=R, s=s, s0=c)


def drawn(rng: np.random.Generator, dim: int) -> tuple[fh.ControlProblem, dict[float, LogSumExpReward], Joined]:
    """A problem, rewards on the way, and the value."""
    alpha, T, eye = float(rng.uniform(0.3, 1.5)), float(rng.uniform(0.5, 2.0)), np.eye(dim)
    turn = 0.5 * rng.standard_normal((dim, dim)) if dim > 1 else np.zeros((1, 1))
    drift = fh.LinearDrift(turn - turn.T - rng.uniform(0.0, 2.0) * eye, rng.normal(size=dim))
    noise = rng.uniform(0.3, 1.2) * eye

    def reward() -> LogSumExpReward:
        k = int(rng.integers(1, 5 - dim))
        spreads = (0.1 * dim + rng.random(k))[:, None, None] * eye
        return LogSumExpReward.log_mixture(
            rng.dirichlet(np.ones(k)) + 0.05, rng.normal(size=(k, dim)), spreads, temperature=alpha
        )

    times = T * np.array([rng.uniform(0.15, 0.45), rng.uniform(0.55, 0.85)])[: int(rng.integers(1, 3))]
    rewards = {float(t): reward() for t in times}
    end, ends, parts = reward(), [0.0, *rewards, T], list[LinearQuadratic]()
    problem = fh.ControlProblem(
        dim=dim,
        horizon=T,
        temperature=alpha,
        drift=drift,
        diffusion=noise,
        terminal_reward=end,
        initial_law=fh.Gaussian(rng.normal(size=dim), rng.uniform(0.1, 0.5)),
    )
    for k in reversed(range(len(ends) - 1)):
        terminal = total(rewards[ends[k + 1]], parts[0]) if parts else end
        own = LinearQuadratic(drift=drift, diffusion=noise, horizon=ends[k + 1] - ends[k], terminal=terminal)
        parts.insert(0, own)
    return problem, rewards, Joined(ends[:-1], parts)


def judged(dim: int, seed: int, strictest: float) -> tuple[float, float, float, bool]:
    """Errors over estimates of value and policy, CPU seconds, and whether all is well by its own account."""
    rng = np.random.default_rng([seed, dim])
    problem, rewards, exact = drawn(rng, dim)
    rtol = float(10.0 ** rng.uniform(strictest, -2.0))
    started = time.process_time()
    found = fh.solve_stages(problem, rewards, rtol=rtol)
    seconds = time.process_time() - started
    within = [a + (b - a) * np.linspace(0.0, 0.98, 6) for a, b in zip(found.times, found.times[1:], strict=False)]
    row = fh.compare({"it": found}, exact, problem=problem, law="both", times=np.concatenate(within)).overall("it")
    bar = found.error_estimate
    if bar is None:
        raise RuntimeError("a solution without an estimate")
    return row.value / bar.value, row.policy / bar.policy, seconds, found.status == "ok"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test: two problems in one dimension")
    parser.add_argument("--count", type=int, default=40, help="problems in one dimension")
    parser.add_argument("--count2", type=int, default=8, help="problems in two dimensions")
    given = parser.parse_args()
    warnings.simplefilter("ignore", fh.ToleranceWarning)  # it is counted
    for dim, count, strictest in ((1, 2 if given.quick else given.count, -5.0), (2, given.count2, -4.0)):
        if given.quick and dim > 1:
            continue
        rows = np.array([judged(dim, seed, strictest) for seed in range(count)])
        beyond = int((rows[:, :2].max(axis=1) > 1.0).sum())
        medians, most = np.median(rows, axis=0), rows.max(axis=0)
        print(
            f"d = {dim}: {count} problems, {int(rows[:, 3].sum())} ok, {beyond} beyond the bar; over: value"
            f" {medians[0]:.2f} (largest {most[0]:.2f}), policy {medians[1]:.2f} ({most[1]:.2f}); CPU s"
            f" {medians[2]:.1f} ({most[2]:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
