# ruff: noqa: E402
"""How reliable `solve`'s error bar is: true errors against tolerance and estimate, over hundreds of problems.

    python benchmarks/bench_reliability.py [--quick] [--problems N] [--rtol 1e-3 1e-5 1e-7] [--dims 1 2 3] [--csv FILE]
    python benchmarks/bench_reliability.py --only mixture-1-017 --rtol 1e-5        one problem, with its parameters

Problems: every zoo problem with a closed form, and random ones with fixed seeds, N / 4 of each family and dimension

    lq-1, -2, -3          linear drift (eigenvalues with real parts in [-2, 0.3]), quadratic rewards with eigenvalues in
                          [-0.4, 2], so indefinite at times (drawn again where the value is infinite), Gaussian start
    mixture-1, -2, -3      alternately the tilting of a mixture diffusion (linear, quadratic, log-mixture reward) and a
                          Brownian or Ornstein-Uhlenbeck process steered to a mixture; 2 or 3 components

with temperatures log-uniform in [0.3, 3]. The true error is the larger of the relative errors of value and policy
against the closed form, as `compare` measures them; the estimate is the larger of the two that `solve` returns.

Solves run in another process, which is stopped after --seconds of real time; the seconds told are CPU seconds. Stopped,
failed and warned solves are listed and count as what they are: a `ToleranceWarning` is an honest answer, the tolerance
is missed all the same. With --csv every result is appended at once, and what the file already holds is not computed
again; --report computes nothing.

Linear-quadratic problems are no test of the error bar at default settings: the quadratic that `solve` takes out is
their solution, and nothing is left but rounding. They are here because they must come out right.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import csv
import math
import multiprocessing
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fem_hjb.problems import zoo
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import FemHjbError, InfiniteValueError

FAMILIES = ("lq", "mixture")
SEED = 20_260
NEGLIGIBLE = 1e-3  # of the tolerance: errors below it are as good as none


# ---------------------------------------------------------------------------------------------------------------------
# Problems


@dataclass(frozen=True)
class Case:
    """zoo.get(zoo_name, dim, **params) under a label."""

    label: str
    zoo_name: str
    dim: int
    params: dict[str, Any]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def symmetric(rng: np.random.Generator, eigenvalues: FloatArray) -> FloatArray:
    """With these eigenvalues and random axes."""
    axes = np.linalg.qr(rng.standard_normal((eigenvalues.size, eigenvalues.size)))[0]
    return np.asarray((axes * eigenvalues) @ axes.T)


def positive(rng: np.random.Generator, dim: int, low: float, high: float) -> FloatArray:
    return symmetric(rng, np.array([log_uniform(rng, low, high) for _ in range(dim)]))


def random_drift(rng: np.random.Generator, dim: int) -> FloatArray:
    while True:
        A = rng.standard_normal((dim, dim)) - 0.85 * np.eye(dim)
        real = np.linalg.eigvals(A).real
        if real.min() >= -2.0 and real.max() <= 0.3:
            return np.asarray(A)


def random_lq(rng: np.random.Generator, dim: int, index: int) -> tuple[str, dict[str, Any]]:
    while True:
        params: dict[str, Any] = {
            "temperature": log_uniform(rng, 0.3, 3.0),
            "A": random_drift(rng, dim),
            "a": rng.normal(0.0, 0.5, dim),
            "Lambda": positive(rng, dim, 0.3, 3.0),
            "Q": symmetric(rng, rng.uniform(-0.4, 2.0, dim)),
            "q": rng.standard_normal(dim),
            "R": symmetric(rng, rng.uniform(-0.4, 2.0, dim)),
            "s": rng.standard_normal(dim),
            "mean": rng.normal(0.0, 0.5, dim),
            "cov": positive(rng, dim, 0.1, 1.0),
        }
        try:
            zoo.get("lq", dim, **params)
        except InfiniteValueError:
            continue
        return "lq", params


def random_mixture(rng: np.random.Generator, dim: int, index: int) -> tuple[str, dict[str, Any]]:
    k = int(rng.integers(2, 4))
    weights = rng.uniform(0.2, 1.0, k)
    params: dict[str, Any] = {
        "temperature": log_uniform(rng, 0.3, 3.0),
        "weights": weights / weights.sum(),
        "means": rng.normal(0.0, 1.0, (k, dim)),
        "covariances": np.stack([positive(rng, dim, 0.15, 0.6) for _ in range(k)]),
    }
    if index % 2:
        start = {"mean": rng.normal(0.0, 0.5, dim), "cov": positive(rng, dim, 0.1, 1.0)}
        return "brownian-mixture", {**params, "A": float(rng.choice([0.0, -1.0])), **start}
    reward = {
        "reward": str(rng.choice(["linear", "quadratic", "log-mixture"])),
        "strength": log_uniform(rng, 0.3, 3.0),
        "target": rng.uniform(-1.0, 1.0, dim),
        "beta": log_uniform(rng, 1.0, 4.0),
    }
    return "mixture-diffusion", {**params, **reward}


def random_cases(family: str, dim: int, count: int) -> Iterator[Case]:
    build = {"lq": random_lq, "mixture": random_mixture}[family]
    for index in range(count):
        rng = np.random.default_rng([SEED, FAMILIES.index(family), dim, index])
        name, params = build(rng, dim, index)
        yield Case(f"{family}-{dim}-{index:03d}", name, dim, params)


def zoo_cases(dim: int) -> Iterator[Case]:
    """Every problem of the zoo with a closed form, and some of its other settings."""
    others: dict[str, list[dict[str, Any]]] = {
        "mixture-diffusion": [{"reward": "linear"}, {"reward": "log-mixture"}, {"beta": (0.5, 4.0)}],
        "soc-ou-quadratic": [{"setting": "hard"}],
    }
    for name in zoo.names():
        allowed = zoo.dims(name)
        if allowed is not None and dim not in allowed:
            continue
        for params in ({}, *others.get(name, [])):
            if zoo.get(name, dim, **params).exact is not None:
                told = "".join(f" {key}={value}" for key, value in params.items())
                yield Case(f"zoo {name}-{dim}{told}", name, dim, params)


# ---------------------------------------------------------------------------------------------------------------------
# Results


@dataclass(frozen=True, kw_only=True)
class Result:
    """outcome: ok, warned (a ToleranceWarning), failed (an error of the package), crashed (another), stopped."""

    label: str
    dim: int
    rtol: float
    outcome: str
    seconds: float
    true_value: float = math.nan
    true_policy: float = math.nan
    value: float = math.nan
    policy: float = math.nan
    space: float = math.nan
    time: float = math.nan
    truncation: float = math.nan
    excluded: float = math.nan
    dofs: int = 0
    solves: int = 0
    form: str = ""
    route: str = ""
    message: str = ""

    @property
    def true(self) -> float:
        return max(self.true_value, self.true_policy)

    @property
    def estimate(self) -> float:
        return max(self.value, self.policy)

    @property
    def answered(self) -> bool:
        return self.outcome in ("ok", "warned")


def measure(case: Case, rtol: float) -> Result:
    problem = zoo.get(case.zoo_name, case.dim, **case.params)
    if problem.exact is None:
        raise ValueError(f"{case.label} has no closed form")
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            solution = solve(problem, rtol=rtol)
        except (FemHjbError, ArithmeticError, ValueError) as failure:
            outcome = "failed" if isinstance(failure, FemHjbError) else "crashed"
            return Result(
                label=case.label,
                dim=case.dim,
                rtol=rtol,
                outcome=outcome,
                seconds=time.process_time() - start,
                message=f"{type(failure).__name__}: {failure}",
            )
    seconds = time.process_time() - start
    estimate, stats = solution.error_estimate, solution.stats
    if estimate is None:
        raise ValueError(f"{case.label} came without an estimate")
    row = compare({"solution": solution}, problem.exact, problem=problem).overall("solution")
    warned = any(issubclass(w.category, ToleranceWarning) for w in caught)
    return Result(
        label=case.label,
        dim=case.dim,
        rtol=rtol,
        outcome="warned" if warned else "ok",
        seconds=seconds,
        true_value=row.value,
        true_policy=row.policy,
        excluded=row.excluded,
        dofs=int(stats["dofs"]),
        solves=int(stats["solves"]),
        form=str(stats["form"]),
        route=str(stats["route"]),
        message="; ".join(dict.fromkeys(str(w.message) for w in caught)),
        **estimate.as_dict(),
    )


class Worker:
    """One process, replaced when it has to be stopped."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._context = multiprocessing.get_context("spawn")
        self._pool = self._context.Pool(1)

    def __call__(self, case: Case, rtol: float) -> Result:
        pending = self._pool.apply_async(measure, (case, rtol))
        try:
            return pending.get(timeout=self.seconds)
        except multiprocessing.TimeoutError:
            self.close()
            self._pool = self._context.Pool(1)
            note = f"stopped after {self.seconds:g} s"
            return Result(
                label=case.label, dim=case.dim, rtol=rtol, outcome="stopped", seconds=self.seconds, message=note
            )

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


def stored(path: Path) -> list[Result]:
    if not path.exists():
        return []
    kinds: dict[str, Any] = {field.name: field.type for field in fields(Result)}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [Result(**{name: kinds[name](text) for name, text in row.items()}) for row in rows]


def append(path: Path, result: Result) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Result)])
        if new:
            writer.writeheader()
        writer.writerow(asdict(result))


# ---------------------------------------------------------------------------------------------------------------------
# Report


def percent(flags: list[bool]) -> str:
    return f"{100.0 * sum(flags) / len(flags):5.1f} %" if flags else "      -"


def ratio(a: float, b: float) -> float:
    return a / b if b > 0 else (0.0 if a == 0 else math.inf)


def summary(results: list[Result], rtol: float, title: str) -> None:
    done = [r for r in results if r.answered]
    counts = {kind: sum(r.outcome == kind for r in results) for kind in ("warned", "failed", "crashed", "stopped")}
    told = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    print(f"\nrtol {rtol:g}, {title}: {len(results)} problems, {told}")
    if not done:
        return
    seconds = [r.seconds for r in done]
    large = [r for r in done if max(r.true, r.estimate) > NEGLIGIBLE * rtol]
    kept = [r for r in done if r.outcome == "ok"]
    print(
        f"  true <= rtol          {percent([r.answered and r.true <= rtol for r in results])} of all,"
        f" {percent([r.true <= rtol for r in kept])} without a warning (target 95 %);"
        f" largest true / rtol {max(r.true / rtol for r in done):.2g},"
        f" without a warning {max((r.true / rtol for r in kept), default=0.0):.2g} (target 3)"
    )
    print(
        f"  true <= 3 estimates   {percent([r.true <= 3 * r.estimate for r in done])} (target 95 %),"
        f" of those with an error to speak of {percent([r.true <= 3 * r.estimate for r in large])};"
        f" largest true / estimate {max(ratio(r.true, r.estimate) for r in large or done):.2g}"
    )
    print(
        f"  estimate <= 30 true   {percent([r.estimate <= 30 * r.true for r in done])} (target 90 %),"
        f" of those with an error to speak of {percent([r.estimate <= 30 * r.true for r in large])};"
        f" median estimate / true {np.median([ratio(r.estimate, r.true) for r in done]):.2g}"
    )
    print(
        f"  seconds               median {np.median(seconds):.2f}, 90 % {np.quantile(seconds, 0.9):.2f},"
        f" largest {max(seconds):.1f}; median dofs {int(np.median([r.dofs for r in done]))},"
        f" solves {int(np.median([r.solves for r in done]))}; forms"
        f" {', '.join(f'{form} {sum(r.form == form for r in done)}' for form in sorted({r.form for r in done}))}"
    )


def complaints(results: list[Result]) -> None:
    """Everything that is not as it should be, one line each."""
    print("\nnot as it should be:")
    lines = 0
    for r in sorted(results, key=lambda r: (r.rtol, r.label), reverse=True):
        why = [] if r.outcome == "ok" else [r.outcome]
        if r.answered and r.true > r.rtol:
            why.append("true > rtol")
        if r.answered and r.true > max(3 * r.estimate, NEGLIGIBLE * r.rtol):
            why.append("true > 3 estimates")
        if r.answered and r.estimate > max(30 * r.true, NEGLIGIBLE * r.rtol):
            why.append("estimate > 30 true")
        if r.answered and r.excluded > r.rtol**2:
            why.append(f"no value on a mass of {r.excluded:.1e}")
        if why:
            lines += 1
            print(
                f"  {r.rtol:7.0e}  {r.label:24s} {', '.join(why)}: true value {r.true_value:.1e}, policy"
                f" {r.true_policy:.1e}; estimate value {r.value:.1e}, policy {r.policy:.1e} (space {r.space:.1e}, time"
                f" {r.time:.1e}, truncation {r.truncation:.1e}); {r.form}, {r.route}, {r.dofs} dofs, {r.solves} solves,"
                f" {r.seconds:.1f} s"
            )
            if r.message:
                print(f"           {r.message[:400]}")
    if not lines:
        print("  nothing")


def report(results: list[Result], dims: list[int]) -> None:
    for rtol in sorted({r.rtol for r in results}, reverse=True):
        rows = [r for r in results if r.rtol == rtol]
        for dim in dims:
            for family in ("zoo", *FAMILIES):
                some = [r for r in rows if r.dim == dim and r.label.startswith(family)]
                if some:
                    summary(some, rtol, f"{family}, d = {dim}")
        summary(rows, rtol, "all")
    complaints(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test: a few problems")
    parser.add_argument(
        "--problems", type=int, default=200, help="random problems per tolerance: a quarter of each kind"
    )
    parser.add_argument("--rtol", type=float, nargs="+", default=[1e-3, 1e-5, 1e-7])
    parser.add_argument("--dims", type=int, nargs="+", default=[1, 2], choices=(1, 2, 3))
    parser.add_argument("--seconds", type=float, default=120.0, help="time guard per solve")
    parser.add_argument("--csv", type=Path, help="append results here, and do not repeat those it holds")
    parser.add_argument("--report", action="store_true", help="solve nothing: the tables of what --csv holds")
    parser.add_argument("--only", help="labels that begin like this; their parameters are printed")
    given = parser.parse_args()
    if given.quick:
        given.problems, given.rtol = 4, [1e-3]
    cases = [
        case
        for dim in given.dims
        for group in (
            [] if given.quick else zoo_cases(dim),
            *(random_cases(family, dim, given.problems // 4) for family in FAMILIES),
        )
        for case in group
    ]
    if given.only is not None:
        cases = [case for case in cases if case.label.startswith(given.only)]
        for case in cases:
            print(f"{case.label}: zoo.get({case.zoo_name!r}, {case.dim}, **{case.params!r})")
    results = [] if given.csv is None else stored(given.csv)
    known = {(r.label, r.rtol) for r in results}
    worker = Worker(given.seconds)
    for dim in given.dims:
        for rtol in given.rtol:
            for case in cases:
                if given.report or case.dim != dim or (case.label, rtol) in known:
                    continue
                result = worker(case, rtol)
                results.append(result)
                if given.csv is not None:
                    append(given.csv, result)
    worker.close()
    labels = {case.label for case in cases}
    report([r for r in results if r.label in labels and r.rtol in given.rtol], given.dims)


if __name__ == "__main__":
    main()
