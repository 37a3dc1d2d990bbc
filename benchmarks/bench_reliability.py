# ruff: noqa: E402
"""How reliable `solve`'s error bar is: true errors against tolerance and estimate, over 400 problems of 17 families.

    python benchmarks/bench_reliability.py [--quick] [--rtol 1e-3 1e-5] [--dims 1 2 3] [--csv FILE] [--report]
    python benchmarks/bench_reliability.py --families far window --most 4      some families, four problems of each
    python benchmarks/bench_reliability.py --only mapped-1-007 --rtol 1e-5     one problem, with its parameters
    python benchmarks/bench_reliability.py --truths                            how well the truths solve their equations

The problems and where their values are known from: `reliability_problems`. The true error is the larger of the relative
errors of value and policy under the uncontrolled and the optimally controlled law, at times up to T (1 - 1 / 4096), or
up to where a solution says that its error bar ends, at most T / 20 before, as `compare` measures them; infinite, if
there is no value on more than half of a law. The estimate is the larger of the two that `solve` returns.

Columns, counts of problems or shares of those answered: problems; answered, with a solution within --seconds of CPU
time; ok, with the status "ok"; met, of these, true <= rtol, and no value on rtol of the mass of a law at most; silent,
those with status "ok" whose error is more than rtol and more than 3 estimates, or without a value on more than rtol of
the mass: nobody would know; true <= 3 est; est <= 30 true, both among errors that are more than a thousandth of rtol;
unseen, where paths under the policy of the truth could not be made (judged under the uncontrolled law alone); CPU
seconds, median and largest. Problems whose value is +infinity have a line of their own: raised, an InfiniteValueError;
said otherwise, by another error or a status that is not ok; silent.

Solves run in another process, which stops them after --seconds of CPU time and is itself ended after four times as much
real time. With --csv every result is appended at once, and what the file already holds is not computed again; --report
computes nothing.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import csv
import math
import multiprocessing
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import reliability_problems as problems
import reliability_truths as truths

from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.norms import law_points
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ComparisonError, FemHjbError, InfiniteValueError

NEGLIGIBLE = 1e-3  # of the tolerance: errors below it are as good as none
LAWS = ("uncontrolled", "controlled")
Label = tuple[str, int, int]


# ---------------------------------------------------------------------------------------------------------------------
# Results


@dataclass(frozen=True, kw_only=True)
class Result:
    """outcome: ok, warned (another status), infinite (InfiniteValueError), failed, crashed, stopped, unjudged.

    true_*: relative errors of value and policy under the uncontrolled and the controlled law.
    """

    family: str
    dim: int
    index: int
    rtol: float
    outcome: str
    seconds: float
    infinite: bool = False
    true_value_uncontrolled: float = math.nan
    true_policy_uncontrolled: float = math.nan
    true_value_controlled: float = math.nan
    true_policy_controlled: float = math.nan
    value: float = math.nan
    policy: float = math.nan
    space: float = math.nan
    time: float = math.nan
    truncation: float = math.nan
    excluded: float = math.nan
    paths: float = math.nan
    dofs: int = 0
    solves: int = 0
    form: str = ""
    unseen: str = ""
    message: str = ""

    @property
    def label(self) -> str:
        return f"{self.family}-{self.dim}-{self.index:03d}"

    @property
    def true(self) -> float:
        """The largest under the laws that could be judged under."""
        found = [getattr(self, f"true_{what}_{law}") for what in ("value", "policy") for law in LAWS]
        known = [error for error in found if not math.isnan(error)]
        return max(known) if known else math.nan

    @property
    def estimate(self) -> float:
        return max(self.value, self.policy)

    @property
    def answered(self) -> bool:
        return self.outcome in ("ok", "warned", "unjudged")

    @property
    def met(self) -> bool:
        """Whether the tolerance is, with a value on all but as much of the mass."""
        return max(self.true, self.excluded) <= self.rtol

    @property
    def silent(self) -> bool:
        """Wrong without a word."""
        if self.infinite:
            return self.outcome == "ok"
        wrong = self.true > max(self.rtol, 3 * self.estimate) or self.excluded > self.rtol
        return self.outcome == "ok" and wrong


class OutOfTime(BaseException):
    """The CPU seconds of a solve are spent; no package catches it by accident."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Of CPU time, then OutOfTime."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def measure(label: Label, rtol: float, limit: float) -> Result:
    """Solve and judge one problem."""
    posed = problems.posed(*label)
    told: dict[str, Any] = {
        "family": label[0],
        "dim": label[1],
        "index": label[2],
        "rtol": rtol,
        "infinite": posed.infinite,
    }
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with at_most(limit):
                solution = solve(posed.problem, rtol=rtol)
        except (FemHjbError, ArithmeticError, ValueError, RuntimeError, OutOfTime, MemoryError) as failure:
            outcome = "failed" if isinstance(failure, FemHjbError) else "crashed"
            outcome = "infinite" if isinstance(failure, InfiniteValueError) else outcome
            outcome = "stopped" if isinstance(failure, OutOfTime) else outcome
            note = f"{type(failure).__name__}: {failure}"
            return Result(outcome=outcome, seconds=time.process_time() - start, message=note, **told)
    told["seconds"] = time.process_time() - start
    told |= {key: solution.stats[key] for key in ("dofs", "solves", "form")}
    told["paths"] = float(solution.stats.get("paths_under_control", math.nan))
    told |= solution.error_estimate.as_dict() if solution.error_estimate is not None else {}
    outcome = "ok" if solution.status == "ok" else "warned"
    notes = [f"status: {solution.status}"] if outcome != "ok" else []
    notes += [f"{w.category.__name__}: {w.message}" for w in caught if not str(w.message).startswith("solve(")]
    if posed.truth is None:
        return Result(outcome=outcome, message="; ".join(dict.fromkeys(notes)), **told)
    try:
        told |= judged(posed, solution)
    except (FemHjbError, ArithmeticError, ValueError) as failure:
        outcome = "unjudged"
        notes.append(f"{type(failure).__name__}: {failure}")
    return Result(outcome=outcome, message="; ".join(dict.fromkeys(notes)), **told)


def judged(posed: problems.Posed, solution: Any) -> dict[str, Any]:
    """The true errors."""
    if posed.truth is None:
        raise ValueError("no truth")
    T = posed.problem.horizon
    times = law_points(posed.problem).times
    breaks = (np.array(posed.breaks)[:, None] + 1e-9 * T * np.array([-1.0, 1.0])).ravel()
    times = np.unique(np.concatenate([times, np.clip(breaks, 0.0, T)]))
    latest = min(posed.latest * T, T - solution.stats["layer"])  # which the check "layer at the end" tells
    times = np.append(times[times < latest], latest)
    found: dict[str, Any] = {"excluded": 0.0}
    for law in LAWS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = compare(
                    {"it": solution}, posed.truth, problem=posed.problem, law=law, times=times, rng=7
                ).overall("it")
        except ComparisonError as failure:
            if "not to be compared" in str(failure):
                found["unseen"] = str(failure)
                continue
            found |= {f"true_value_{law}": math.inf, f"true_policy_{law}": math.inf, "excluded": 1.0}
            continue
        found |= {f"true_value_{law}": row.value, f"true_policy_{law}": row.policy}
        found["excluded"] = max(found["excluded"], row.excluded)
    return found


class Worker:
    """One process, replaced when it has to be ended."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._context = multiprocessing.get_context("spawn")
        self._pool = self._context.Pool(1)

    def __call__(self, label: Label, rtol: float) -> Result:
        pending = self._pool.apply_async(measure, (label, rtol, self.seconds))
        try:
            return pending.get(timeout=4 * self.seconds + 120)
        except multiprocessing.TimeoutError:
            self.close()
            self._pool = self._context.Pool(1)
            return Result(
                family=label[0],
                dim=label[1],
                index=label[2],
                rtol=rtol,
                outcome="stopped",
                seconds=self.seconds,
                infinite=label[0] == "infinite",
                message="its process had to be ended",
            )

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


def stored(path: Path) -> list[Result]:
    if not path.exists():
        return []
    kinds: dict[str, Any] = {entry.name: entry.type for entry in fields(Result)} | {"infinite": "True".__eq__}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [Result(**{name: kinds[name](text) for name, text in row.items()}) for row in rows]


def append(path: Path, result: Result) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [entry.name for entry in fields(Result)])
        if new:
            writer.writeheader()
        writer.writerow(asdict(result))


# ---------------------------------------------------------------------------------------------------------------------
# Report

HEAD = ("problems", "answered", "ok", "met", "silent", "true<=3est", "est<=30true", "unseen", "median s", "largest s")


def percent(flags: list[bool]) -> str:
    return f"{100.0 * sum(flags) / len(flags):.0f} %" if flags else "-"


def line(results: list[Result]) -> list[str]:
    done = [r for r in results if r.answered]
    ok = [r for r in done if r.outcome == "ok"]
    large = [r for r in done if max(r.true, r.estimate) > NEGLIGIBLE * r.rtol]
    seconds = [r.seconds for r in results]
    return [
        str(len(results)),
        str(len(done)),
        str(len(ok)),
        f"{sum(r.met for r in ok)}",
        f"{sum(r.silent for r in results)}",
        percent([r.true <= 3 * r.estimate for r in large]),
        percent([r.estimate <= 30 * r.true for r in large]),
        f"{sum(bool(r.unseen) for r in done)}",
        f"{np.median(seconds):.2f}",
        f"{max(seconds):.1f}",
    ]


def table(results: list[Result], rtol: float, dim: int) -> None:
    """A line for each family."""
    finite = [r for r in results if not r.infinite]
    if finite:
        names = [name for name in problems.FAMILIES if any(r.family == name for r in finite)]
        rows = [[name, *line([r for r in finite if r.family == name])] for name in names]
        show(f"rtol {rtol:g}, d = {dim}", [["", *HEAD], *rows, ["all", *line(finite)]])
    endless = [r for r in results if r.infinite]
    if endless:
        raised = sum(r.outcome == "infinite" for r in endless)
        silent = sum(r.silent for r in endless)
        stopped = sum(r.outcome == "stopped" for r in endless)
        print(
            f"infinite: {len(endless)} problems, {raised} raised, {len(endless) - raised - silent - stopped} said"
            f" otherwise, {stopped} stopped, {silent} silent"
        )


def show(title: str, lines: list[list[str]]) -> None:
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(lines[0]))]
    print(f"\n{title}")
    for cells in lines:
        print("  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]))


def complaints(results: list[Result]) -> None:
    """Everything that is not as it should be, one line each, what is silent first."""
    print("\nnot as it should be:")
    lines = 0
    for r in sorted(results, key=lambda r: (not r.silent, -r.rtol, r.label)):
        why = ["SILENT"] if r.silent else []
        why += [] if r.outcome == ("infinite" if r.infinite else "ok") else [r.outcome]
        if r.answered and not r.infinite:
            why += ["not met"] * (not r.met)
            why += ["true > 3 estimates"] * (r.true > max(3 * r.estimate, NEGLIGIBLE * r.rtol))
            why += ["estimate > 30 true"] * (r.estimate > max(30 * r.true, NEGLIGIBLE * r.rtol))
            why += [f"no value on a mass of {r.excluded:.1e}"] * (r.excluded > r.rtol**2)
        if why:
            lines += 1
            print(
                f"  {r.rtol:7.0e}  {r.label:20s} {', '.join(why)}: true value, policy {r.true_value_uncontrolled:.1e},"
                f" {r.true_policy_uncontrolled:.1e} (P), {r.true_value_controlled:.1e},"
                f" {r.true_policy_controlled:.1e} (P*); estimate {r.value:.1e}, {r.policy:.1e} (space {r.space:.1e},"
                f" time {r.time:.1e}, truncation {r.truncation:.1e}); {r.paths:.0f} paths, {r.form}, {r.dofs} dofs,"
                f" {r.solves} solves, {r.seconds:.1f} s"
            )
            if r.message or r.unseen:
                print(f"           {'; '.join(note for note in (r.message, r.unseen) if note)[:300]}")
    if not lines:
        print("  nothing")


def report(results: list[Result]) -> None:
    for rtol in sorted({r.rtol for r in results}, reverse=True):
        for dim in sorted({r.dim for r in results}):
            some = [r for r in results if r.rtol == rtol and r.dim == dim]
            if some:
                table(some, rtol, dim)
    complaints(results)


# ---------------------------------------------------------------------------------------------------------------------
# The truths themselves


def places(posed: problems.Posed) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Times (n,), points (n, d) around the start, and lengths (d,) for differences."""
    problem, rng = posed.problem, np.random.default_rng(1)
    T = problem.horizon
    x = problem.initial_law.sample(12, rng)
    spread = np.sqrt(T * np.einsum("nii->ni", problem.Lambda(0.0, x)).mean(axis=0))
    if problem.domain is None:
        x = x + 0.3 * spread * rng.standard_normal(x.shape)
    return T * (1 - 10 ** rng.uniform(-3.5, -0.05, len(x))), x, 2e-3 * spread


def check(labels: list[Label]) -> None:
    """The residual of each truth in its equation, relative to the terms, and how well it ends in y."""
    for label in labels:
        posed = problems.posed(*label)
        if posed.truth is None:
            continue
        t, x, step = places(posed)
        worst = truths.residual(posed.problem, posed.truth, t, x, step)
        y = posed.problem.y(x)
        end = np.abs(posed.truth.value(posed.problem.horizon, x) - y).max() / max(np.abs(y).max(), 1e-300)
        print(f"{label[0]}-{label[1]}-{label[2]:03d}: residual {worst:.1e}, at T {end:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test: one problem of each kind, ten seconds")
    parser.add_argument("--rtol", type=float, nargs="+", default=[1e-3, 1e-5])
    parser.add_argument("--dims", type=int, nargs="+", default=[1, 2], choices=(1, 2, 3))
    parser.add_argument("--families", nargs="+", choices=tuple(problems.FAMILIES), help="these only")
    parser.add_argument("--most", type=int, help="so many of each family and dimension at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds for each solve")
    parser.add_argument("--csv", type=Path, help="append results here, and do not repeat those it holds")
    parser.add_argument("--report", action="store_true", help="solve nothing: the tables of what --csv holds")
    parser.add_argument("--only", help="labels that begin like this; their parameters are printed")
    parser.add_argument("--truths", action="store_true", help="solve nothing: check the truths against their equations")
    given = parser.parse_args()
    if given.quick:
        given.most, given.rtol, given.seconds = 1, [1e-3], min(given.seconds, 10.0)
    labels = [
        label
        for label in problems.labels(given.dims, given.most)
        if (given.families is None or label[0] in given.families)
        and (given.only is None or f"{label[0]}-{label[1]}-{label[2]:03d}".startswith(given.only))
    ]
    if given.truths:
        check(labels)
        return
    if given.only is not None:
        for label in labels:
            print(f"posed{label}: {problems.posed(*label).told!r}")
    results = [] if given.csv is None else stored(given.csv)
    known = {(r.family, r.dim, r.index, r.rtol) for r in results}
    worker = Worker(given.seconds)
    for rtol in given.rtol:
        for label in labels:
            if given.report or (*label, rtol) in known:
                continue
            result = worker(label, rtol)
            results.append(result)
            if given.csv is not None:
                append(given.csv, result)
    worker.close()
    chosen = set(labels)
    report([r for r in results if (r.family, r.dim, r.index) in chosen and r.rtol in given.rtol])


if __name__ == "__main__":
    main()
