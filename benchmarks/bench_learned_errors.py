# ruff: noqa: E402
"""How reliable `fit`'s error estimate is: true errors against estimates, over 120 fits, good and bad ones.

    python benchmarks/bench_learned_errors.py [--quick] [--problem NAME ..] [--csv FILE]
    python benchmarks/bench_learned_errors.py --plain        the plain call, policy errors estimated and true

Problems in one and two dimensions, 500 and 4000 trajectories of 64 steps, and of each six ways to learn: C1 cubics by
the generator with interpolated and with penalised terminal values, the same in few cells, regression on labels, P2
elements, and a box that leaves out a twentieth on each side. The truth is a closed form, or `solve` with rtol 1e-4.

Errors are the largest over time (of 32 parts), of E |pi - pi*|^2 over that of E |pi|^2, and (of all steps) of E (v -
v*)^2 over that of E v*^2, as roots, under the law of the learned policy: 1024 paths of 256 steps (1024 in steep
drifts), with other noise than the estimate's, values where there are any. mean: of the policy in the mean over time, (E
int |pi - pi*|^2 dt / E int |pi|^2 dt)^{1/2}, which the check tells. Columns: fits; those whose policy's error is at
most three times what is told, the same of its mean, and of the value; median of told / true of each of the three; ok,
status "ok"; silent, "ok" but with a mean of the policy or a value off by more than three times what is accepted (10 %);
CPU seconds of verifying.

--plain: `fit(problem, paths, "auto", terminal=..)` of 5000 trajectories of 64 steps: the mean error of the policy, told
and true, CPU seconds, the class that was chosen and the status; and below them the least true error of all classes,
boxes, estimators and terminal conditions of `bench_policies.py` learned from the same trajectories: what can be had if
the errors are known.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import csv
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_policies import CASES

import fem_hjb as fh
from fem_hjb.learning import assemble, solve_system
from fem_hjb.learning.witness import witness
from fem_hjb.paths.likelihood import euler_step
from fem_hjb.paths.stiffness import substeps_of

ACCEPT, FACTOR = 0.1, 3.0
SAMPLES = (500, 4000)
JUDGED = ("policy", "mean", "value")
COLUMNS = ("problem", "n", "how", *(f"{name}_{of}" for name in JUDGED for of in ("told", "true")), "ok", "seconds")


def tilted_well() -> fh.ControlProblem:
    """A double well that is steered into its right half."""
    return fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=0.5,
        drift=lambda t, x: -(x**3 - x),
        diffusion=0.5,
        terminal_reward=lambda x: -((x[..., 0] - 1) ** 2),
        initial_law=fh.Gaussian([0.0], 0.2),
        name="tilted well",
    )


PROBLEMS: dict[str, Callable[[], fh.ControlProblem]] = {
    "tilted-well": tilted_well,
    **{
        f"{name}-{dim}": lambda name=name, dim=dim: fh.zoo.get(name, dim=dim)
        for name, dim in (
            ("lq", 1),
            ("mixture-diffusion", 1),
            ("brownian-mixture", 1),
            ("reflected", 1),
            ("double-well", 1),
            ("lq", 2),
            ("mixture-diffusion", 2),
            ("brownian-mixture", 2),
            ("double-well-2d-coupled", 2),
        )
    },
}


class Reference:
    """Value and gradient, continued beyond its box by those of the nearest points."""

    def __init__(self, problem: fh.ControlProblem) -> None:
        self.known: Any = problem.exact
        self.bounds = None
        if self.known is None:
            self.known = fh.solve(problem, rtol=1e-4)
            self.bounds = self.known.space.box.bounds

    def at(self, name: str, t: float, x: np.ndarray) -> np.ndarray:
        return getattr(self.known, name)(t, x if self.bounds is None else np.clip(x, *self.bounds))


def ways(problem: fh.ControlProblem) -> dict[str, dict[str, Any]]:
    """How it is learned: arguments of `Space`, under "space", and of `fit`."""
    fine = {"cells": 16 if problem.dim == 1 else 8, "time_cells": 8}
    other = "weak" if problem.marginal is not None else "increment"
    found: dict[str, dict[str, Any]] = {
        "interpolated": {"space": fine, "terminal": "interpolated"},
        "penalty": {"space": fine, "terminal": "penalty"},
        "few cells": {"space": {"cells": 4, "time_cells": 2}, "terminal": "interpolated"},
        "regression": {"space": fine, "estimator": "regression"},
        "P2": {"space": {**fine, "element": "P2"}, "estimator": other, "terminal": "interpolated"},
        "small box": {"space": {**fine, "quantile": 0.05}, "terminal": "interpolated"},
    }
    if problem.domain is not None:
        del found["small box"]
    return found


def space_of(problem: fh.ControlProblem, quantile: float = 1e-3, **how: Any) -> fh.Space:
    """A class on the box that leaves out so much of the mass on each side, or on the problem's own."""
    box = None
    if problem.domain is None:
        box = fh.paths.truncation_box(problem, quantile=quantile, margin=0.0).box
    return fh.Space(problem, box=box, **how)


def true_errors(problem: fh.ControlProblem, solution: fh.Solution, reference: Reference) -> dict[str, float]:
    """Of policy and value, the largest over time, and of the policy in the mean."""
    rng = np.random.default_rng(77)
    x = problem.initial_law.sample(1024, rng)
    box = solution.space.spatial.box.bounds
    steps = 256 if (substeps_of(problem, 16) or 1) < 2 else 1024
    h, efforts, values = problem.horizon / steps, [], []
    for k in range(steps):
        t = k * h
        slope = np.nan_to_num(solution.gradient(t, np.clip(x, *box), nonpositive="nan"))
        pi = problem.policy_from_gradient(t, x, slope)
        best = problem.policy_from_gradient(t, x, reference.at("gradient", t, x))
        noise = math.sqrt(h) * rng.standard_normal(x.shape)
        wrong = float(euler_step(problem, t, h, x, pi - best, noise).effort.mean())
        ahead = euler_step(problem, t, h, x, pi, noise)
        efforts.append((wrong, float(ahead.effort.mean())))
        w, v = solution.value(t, x, outside="nan", nonpositive="nan"), reference.at("value", t, x)
        known = np.isfinite(w)
        values.append((((w - v)[known] ** 2).mean(), (v[known] ** 2).mean()))
        x = ahead.x if problem.domain is None else problem.domain.mirror(ahead.x)

    def ratio(of: np.ndarray) -> float:
        return math.sqrt(of[0] / of[1])

    of_policy = np.array(efforts)
    parts = of_policy.reshape(32, -1, 2).mean(axis=1)
    largest = {"policy": ratio(parts.max(axis=0)), "value": ratio(np.array(values).max(axis=0))}
    return largest | {"mean": ratio(of_policy.sum(axis=0))}


def fits(names: list[str], samples: tuple[int, ...], quick: bool) -> Iterator[dict[str, Any]]:
    for name in names:
        problem = PROBLEMS[name]()
        reference = Reference(problem)
        for n in samples:
            paths = fh.sample_paths(problem, n=n, steps=64, rng=1)
            for how, options in ways(problem).items():
                if quick and how not in ("interpolated", "regression"):
                    continue
                options = dict(options)
                space = space_of(problem, **options.pop("space"))
                solution = fh.fit(problem, paths, space, outside="drop", accept=ACCEPT, **options)
                begun = time.process_time()
                found = witness(solution, ACCEPT, over_time=True)
                seconds = time.process_time() - begun
                true = true_errors(problem, solution, reference)
                told = {"policy": found.estimate.policy, "mean": found.policy, "value": found.estimate.value}
                pairs = (one[key] for key in JUDGED for one in (told, true))
                yield dict(zip(COLUMNS, (name, n, how, *pairs, solution.status == "ok", seconds), strict=True))


def plain(names: list[str]) -> None:
    """The table of the plain call."""
    for name in names:
        problem = PROBLEMS[name]()
        reference = Reference(problem)
        paths = fh.sample_paths(problem, n=5000, steps=64, rng=1)
        for terminal in ("penalty", "interpolated"):
            begun = time.process_time()
            solution = fh.fit(problem, paths, "auto", terminal=terminal)
            seconds = time.process_time() - begun
            if solution.error_estimate is None:
                raise RuntimeError(f"the fit of {name} was not verified")
            (row,) = [row for row in solution.stats["tried"] if row["chosen"]]
            true, told = true_errors(problem, solution, reference)["mean"], row["policy"]
            chosen = f"{row['element']} {row['time_cells']} x {row['cells']}"
            print(
                f"{name:24s} {terminal:13s} {told:9.2e} {true:9.2e} {seconds:6.1f} s  {chosen:16s}"
                f" {solution.status[:60]}",
                flush=True,
            )
        true, how = min(known(problem, paths, reference))
        print(f"{name:24s} {'best known':13s} {'':9s} {true:9.2e} {'':8s}  {how}", flush=True)


def known(problem: fh.ControlProblem, paths: fh.paths.Paths, reference: Reference) -> Iterator[tuple[float, str]]:
    """The true errors of the policies of the cases of `bench_policies.py`, and which these are."""
    for q, element, time_cells, cells, estimator, terminal in CASES:
        space = space_of(problem, quantile=q, element=element, time_cells=time_cells, cells=cells)
        system = assemble(problem, paths, space, estimator=estimator, outside="drop")
        solution = solve_system(system, terminal=terminal, figures=False)
        how = f"{element}, {time_cells} x {cells}, q = {q:g}, {estimator}, {terminal}"
        yield true_errors(problem, solution, reference)["mean"], how


def report(rows: list[dict[str, Any]]) -> None:
    def line(name: str, some: list[dict[str, Any]]) -> str:
        ratios = [np.array([row[f"{key}_told"] / row[f"{key}_true"] for row in some]) for key in JUDGED]
        covered = "".join(f"{(ratio >= 1 / FACTOR).sum():7d}" for ratio in ratios)
        middle = "".join(f"{np.median(ratio):7.2f}" for ratio in ratios)
        ok = [row for row in some if row["ok"]]
        silent = sum(max(row["mean_true"], row["value_true"]) > FACTOR * ACCEPT for row in ok)
        seconds = np.median([row["seconds"] for row in some])
        return f"{name:24s} {len(some):5d} {covered} {middle} {len(ok):5d} {silent:7d} {seconds:9.2f}"

    heads = "".join(f"{key:>7s}" for key in JUDGED)
    print(f"{'':24s} {'fits':>5s} {heads} {heads} {'ok':>5s} {'silent':>7s} {'seconds':>9s}")
    for key in ("problem", "n", "how"):
        for name in dict.fromkeys(row[key] for row in rows):
            print(line(str(name), [row for row in rows if row[key] == name]))
        print()
    print(line("all", rows))
    for row in rows:
        for key in JUDGED:
            told, true = row[f"{key}_told"], row[f"{key}_true"]
            if not 1 / FACTOR <= told / true <= FACTOR:
                print(
                    f"off: {row['problem']}, {row['n']} trajectories, {row['how']}: {key} told {told:.2g}, true"
                    f" {true:.2g}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two problems, two ways: a smoke test")
    parser.add_argument("--problem", nargs="+", choices=tuple(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--csv", type=Path, help="write all rows here, too")
    parser.add_argument("--plain", action="store_true", help="the plain call instead")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.plain:
        plain(given.problem)
        return
    names = ["mixture-diffusion-1", "lq-1"] if given.quick else given.problem
    rows = list(fits(names, SAMPLES[:1] if given.quick else SAMPLES, given.quick))
    report(rows)
    if given.csv is not None:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
