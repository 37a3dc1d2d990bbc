# ruff: noqa: E402
"""`solve` against rivals on problems whose answer is not a quadratic, at equal error of the policy.

    python benchmarks/bench_nonquadratic.py [--quick] [--problem NAME ..] [--target 1e-3 ..] [--rival NAME ..]
        [--cap SECONDS] [--budget SECONDS] [--baseline PATH ..] [--ngsolve PYTHON] [--dolfinx PYTHON] [--json FILE]
    python benchmarks/bench_nonquadratic.py --orders        whether the rivals converge as they should

Problems (`nonquadratic_problems`): tilts of diffusion models of Gaussian mixtures in two and three dimensions, one of
them with narrow components; Brownian motion steered to a mixture; coupled double wells; a ring; a rotation with cubic
damping; eight Gaussians; a full Lambda that depends on the state; a reflecting square. Right answers are closed forms,
or finer solutions, whose doubt is printed: the distance of one from another on more nodes.

Errors are relative, of the policy: max over t < T of the L2(p_t) norm in the metric Lambda^{-1}, over the max of that
norm of the right policy; nine times, crowded near T, where it is hardest. And at t = 0 by itself. p_t by Gauss points
where it is known, else 4096 simulated paths.

    solve      the whole of `solve(problem, rtol=target)`, its box, its law and its error estimate included
    numpy-fd   explicit steps on the HJB equation, finite differences of order six (`rivals_explicit`)
    numpy-cheb the same on mapped Chebyshev nodes
    skfem, ngsolve, dolfinx   the linear form, elements of order 2 to 6, implicit steps (`rivals_elements`)
    baseline   `solve` of another checkout of this package

A rival is told what it could not know: which box to take, whether anything depends on time, and, by a search over its
settings (nodes, order, grading, method and steps in time, margin of the box), which of them is the cheapest that
reaches the error. Only that one run is charged, without box and search, and it has no error bar. "equal" is what it
takes to reach the true error of `solve`, between two settings by interpolation of logarithms; "target" what it takes to
reach the target. Ratios are seconds / seconds of solve. All seconds are CPU seconds of one thread; short solves are
repeated. Every solve is a child process with a limit of CPU time, whose first, untimed solve loads what is loaded when
first used. NGSolve needs `pip install ngsolve`, FEniCSx an interpreter that has dolfinx, NumPy, SciPy and scikit-fem.
Everything takes two or three hours with the default --budget; a search that ran out of it says less for the rival than
there is to say: "not reached" means within that budget.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nonquadratic_problems as problems
import numpy as np
from nonquadratic_problems import CASES, Case, Truth

import fem_hjb as fh

HERE = Path(__file__).resolve().parent
MEMORY = 8 << 30  # bytes, that a child may take
MARGINS = (0.0, 0.15, 0.3, 0.45, 0.6)
RIVALS = ("numpy-fd", "numpy-cheb", "skfem", "ngsolve", "dolfinx")


# ---------------------------------------------------------------------------------------------------------------------
# In the child


def limit(cap: float) -> None:
    """End this process when it has used `cap` more CPU seconds."""
    soft = math.ceil(time.process_time() + cap) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def tell(**row: Any) -> None:
    print("ROW " + json.dumps(row), flush=True)


def prepare(case: Case, folder: Path) -> None:
    """Boxes and what is right, written to the folder."""
    from rivals_explicit import Explicit, Setting

    problem = case.make()
    boxes = {}
    for margin in MARGINS:
        box = fh.paths.truncation_box(problem, quantile=1e-3, margin=margin).box
        boxes[str(margin)] = np.asarray(box.bounds).tolist()
    times, points, weights = problems.law_points(case, problem)
    inverses = problems.inverses_of(problem, times, points)
    exact = case.exact() if case.exact is not None else problem.exact
    if exact is not None:
        policies = problems.policies_of(problem, times, points, exact.gradient)
        Truth(times, points, weights, policies, inverses).save(folder / "truth.npz")
    else:
        if case.fine is None:
            raise ValueError(f"{case.name} has neither a closed form nor a finer solution")
        coarse, fine = (
            Explicit(
                case, problem, *np.array(boxes[str(m)]), Setting(nodes=n, stretch=1.0, loss=1e-9, steps=100), math.inf
            )
            for n, m in zip(case.fine, (0.45, 0.6) if case.dim == 2 else (0.15, 0.3), strict=True)
        )
        rows = list(enumerate(zip(times.tolist(), points, strict=True)))
        truth = Truth(times, points, weights, [fine.policy(k, t, x) for k, (t, x) in rows], inverses)
        truth.doubt = truth.errors(coarse.policy)[0]
        truth.save(folder / "truth.npz")
    (folder / "boxes.json").write_text(json.dumps(boxes))
    tell(done=True)


def package(case: Case, truth: Truth, targets: list[float], cap: float, repeat: float) -> None:
    fh.solve(fh.zoo.get("mixture-diffusion", 1), rtol=1e-2).policy(0.5, np.zeros((1, 1)))
    problem = case.make()
    for target in targets:
        seconds, spent = math.inf, 0.0
        while seconds == math.inf or (spent < repeat and spent < 3 * seconds):
            limit(cap)
            start = time.process_time()
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    solution = fh.solve(problem, rtol=target)
                except fh.FemHjbError as error:
                    tell(target=target, failed=f"{type(error).__name__}: {str(error)[:160]}")
                    return
            used = time.process_time() - start
            seconds, spent = min(seconds, used), spent + used
        limit(cap)

        def policy(k: int, t: float, x: Any, solution: Any = solution) -> Any:
            return solution.policy(t, x, outside="nan", nonpositive="nan")

        errors, estimate = truth.errors(policy), solution.error_estimate
        stats = {k: v for k, v in solution.stats.items() if isinstance(v, int | float | str) and k != "seconds"}
        tell(
            target=target,
            seconds=seconds,
            errors=errors,
            estimate=None if estimate is None else estimate.policy,
            status=solution.status,
            warned=len(told),
            stats=stats,
        )


class Search:
    """Tries settings of a rival, cheap ones first, until errors are reached and nothing cheaper is in sight."""

    def __init__(self, attempt: Callable[[Any], Any], truth: Truth, cap: float, budget: float) -> None:
        self.attempt, self.truth, self.cap = attempt, truth, cap
        self.until, self.rows = time.process_time() + budget, {}

    def __call__(self, setting: Any) -> dict[str, Any] | None:
        """None where it is unstable or takes too long."""
        if setting in self.rows:
            return self.rows[setting]
        limit(self.cap + 30.0)
        try:
            run = self.attempt(setting)
        except (TimeoutError, ArithmeticError, RuntimeError, MemoryError, np.linalg.LinAlgError) as error:
            self.rows[setting] = None
            print(f"{setting}: {type(error).__name__}", file=sys.stderr)
            return None
        begun, seconds, count = time.process_time(), run.seconds, 0
        while time.process_time() - begun < min(0.1, 3 * run.seconds + 0.03) and count < 50:
            count += 1
            self.attempt(setting)
        if count:  # all together: the clock may be coarse
            seconds = max((time.process_time() - begun) / count, 1e-5)
        self.until += time.process_time() - begun
        row = {"setting": str(setting), "seconds": seconds, "errors": self.truth.errors(run.policy)}
        self.rows[setting] = row
        if all(map(math.isfinite, row["errors"])):
            tell(**row)
        return row

    def best(self, goal: float, which: int) -> Any:
        """The setting, and its seconds, that reach the error soonest."""
        reached = [(r["seconds"], s) for s, r in self.rows.items() if r is not None and r["errors"][which] <= goal]
        return min(reached, key=lambda pair: pair[0]) if reached else (math.inf, None)

    def over(self) -> bool:
        return time.process_time() > self.until

    def run(self, variants: list[Any], nodes: list[int], steps: list[int], goal: float, which: int) -> None:
        for variant in variants:
            reached = self.best(goal, which)[1]
            if reached is not None:
                variant = replace(variant, margin=reached.margin)
                nodes = [n for n in nodes if n >= 0.4 * reached.nodes]
            self.climb(variant, nodes, steps, goal, which)
            if self.over():
                return

    def climb(self, variant: Any, nodes: list[int], steps: list[int], goal: float, which: int) -> None:
        """More nodes, and on each number of them more steps, or a wider box where neither helps."""
        lower, stalled, failed = math.inf, 0, 0
        for n in nodes:
            before, cheapest, least = None, math.inf, math.inf
            for count in steps:
                row = self(replace(variant, nodes=n, steps=count))
                if self.over():
                    return
                if row is None:
                    failed += 1
                    if failed > 2:
                        break
                    continue
                failed, error = 0, row["errors"][which]
                cheapest, least = min(cheapest, row["seconds"]), min(least, error)
                if error <= goal or (before is not None and not error < 0.8 * before):
                    break
                if row["seconds"] > 1.5 * self.best(goal, which)[0]:
                    break
                before = error
            if least <= goal or cheapest > self.best(goal, which)[0] or failed > 3:
                return
            stalled = stalled + 1 if least > 0.7 * lower else 0
            lower = min(lower, least)
            if stalled == 2:
                if variant.margin == MARGINS[-1]:
                    return
                stalled, variant = 0, replace(variant, margin=MARGINS[MARGINS.index(variant.margin) + 1])

    def polish(self, changes: Callable[[Any], Iterator[Any]], goal: float, which: int, rounds: int = 3) -> None:
        """Small changes of the best setting, as long as one of them is better."""
        for _ in range(rounds):
            setting = self.best(goal, which)[1]
            if setting is None:  # the nearest miss
                rows = [(r["errors"][which], s) for s, r in self.rows.items() if r is not None]
                setting = min(rows, key=lambda pair: pair[0])[1] if rows else None
            if setting is None:
                return
            for change in changes(setting):
                if self.over():
                    return
                self(change)
            if self.best(goal, which)[1] == setting:
                return


def rival(name: str, case: Case, truth: Truth, folder: Path, goals: list[Any], cap: float, budget: float) -> None:
    """Tells every setting that was tried. goals: pairs of an error and 0 (max over t < T) or 1 (t = 0)."""
    boxes, problem, tightest = json.loads((folder / "boxes.json").read_text()), case.make(), min(g for g, _ in goals)
    if name.startswith("numpy"):
        from rivals_explicit import Explicit as Engine
        from rivals_explicit import Setting, Unstable

        class Blown(Unstable, ArithmeticError):
            pass

        kind = name.removeprefix("numpy-")
        if kind == "cheb" and problem.domain is not None:
            return  # its polynomials know nothing of a wall
        loss = min(1e-4, 0.03 * tightest)
        start = Setting(space=kind, loss=loss, q=5 if tightest > 1e-4 else 7)
        stretches = (0.0, 1.0) if kind == "fd" else (1.0, 0.0, 1.8)
        pairs = [(scheme, stretch) for stretch in stretches for scheme in ("rk4", "rkc")] + [("rkc+", stretches[0])]
        variants = [replace(start, scheme=scheme, stretch=stretch) for scheme, stretch in pairs]
        if kind == "fd":
            nodes = [16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200, 250]
        else:
            nodes = [12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96]
        if case.dim == 3:
            nodes = [n for n in nodes if n <= 100]
        steps = [10, 20, 40, 80, 160, 320]

        def attempt(setting: Any) -> Any:
            try:
                return Engine(case, problem, *np.array(boxes[str(setting.margin)]), setting, cap)
            except Unstable:
                raise Blown from None

        def changes(setting: Any) -> Iterator[Any]:
            for margin in MARGINS:
                if abs(margin - setting.margin) < 0.2 and problem.domain is None:
                    wider = 1 + 2 * (margin - setting.margin) / (1 + 2 * setting.margin)
                    yield replace(setting, margin=margin, nodes=round(setting.nodes * wider))
                    yield replace(setting, margin=margin)
            for factor in (0.9, 1.1):
                yield replace(setting, nodes=round(setting.nodes * factor))
            for factor in (0.7, 1.4):
                yield replace(setting, steps=max(1, round(setting.steps * factor)))
            if not case.steady:
                yield replace(setting, q=setting.q - 1)
                yield replace(setting, q=setting.q + 1)
            yield replace(setting, safety=1.15)
            yield replace(setting, safety=0.8)
            yield replace(setting, stretch=1.0 if setting.stretch != 1.0 else 2.0)

    else:
        import rivals_elements
        from rivals_elements import Setting

        engines = {
            "skfem": rivals_elements.Skfem,
            "ngsolve": rivals_elements.NGSolve,
            "dolfinx": rivals_elements.Dolfinx,
        }
        Engine = engines[name]
        orders = (2, 4, 6) if case.dim == 2 else (2,) if name == "skfem" else (2, 4)
        if name == "skfem" and case.dim == 2:
            orders = (2, 4)
        orders = sorted(orders, reverse=True)
        variants = [Setting(order=p, scheme=scheme) for p in orders for scheme in ("sdirk", "cn+")]
        nodes, steps = [4, 6, 8, 12, 16, 24, 32, 48, 64, 96], [10, 20, 40, 80, 160]

        def attempt(setting: Any) -> Any:
            return Engine(case, problem, *np.array(boxes[str(setting.margin)]), setting, cap)

        def changes(setting: Any) -> Iterator[Any]:
            for margin in MARGINS:
                if abs(margin - setting.margin) < 0.2 and problem.domain is None:
                    yield replace(setting, margin=margin)
            yield replace(setting, nodes=round(setting.nodes * 0.85))
            yield replace(setting, steps=round(setting.steps * 0.7))
            yield replace(setting, scheme="cn")

    search = Search(attempt, truth, cap, budget)
    search(replace(variants[0], nodes=nodes[0], steps=steps[0]))  # loads what is loaded when first used
    search.rows.clear()
    share = budget / len(goals)
    start = time.process_time()
    for k, (goal, which) in enumerate(goals):
        search.until = start + (k + 0.75) * share
        search.run(variants, nodes, steps, goal, which)
        search.until = start + (k + 1) * share
        search.polish(changes, goal, which)


def child(given: dict[str, Any]) -> None:
    case, folder = CASES[given["case"]], Path(given.get("folder", "."))
    limit(given["cap"])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    if given["who"] == "prepare":
        prepare(case, folder)
        return
    if given["who"] == "orders":
        orders(given["rival"])
        return
    truth = Truth.load(folder / "truth.npz")
    if given["who"] == "solve":
        package(case, truth, given["targets"], given["cap"], given["repeat"])
    else:
        rival(given["who"], case, truth, folder, given["goals"], given["cap"], given["budget"])


def orders(name: str) -> None:
    """Whether a rival converges as it should: in space against what is right, in time against many more steps."""
    import rivals_elements
    import rivals_explicit

    def place(name: str) -> Any:
        case = CASES[name]
        problem = case.make()
        box = np.asarray(fh.paths.truncation_box(problem, quantile=1e-3, margin=0.6).box.bounds)
        times, points, weights = problems.law_points(case, problem)
        exact = case.exact() if case.exact is not None else problem.exact
        right = problems.policies_of(problem, times, points, exact.gradient)
        return case, problem, box, Truth(times, points, weights, right, problems.inverses_of(problem, times, points))

    def policies(run: Any, truth: Truth) -> list[Any]:
        rows = zip(truth.times.tolist(), truth.points, strict=True)
        return [run.policy(k, t, x) for k, (t, x) in enumerate(rows)]

    engines = {
        "skfem": rivals_elements.Skfem,
        "ngsolve": rivals_elements.NGSolve,
        "dolfinx": rivals_elements.Dolfinx,
    }
    engine = engines.get(name, rivals_explicit.Explicit)
    if name in engines:
        S = rivals_elements.Setting
        in_space = [(f"order {p}, policy", p, [S(p, n, "sdirk", 40) for n in (8, 12, 16)]) for p in (2, 4)]
        in_time = [(f"{m}", p, [S(2, 4, m, n) for n in (10, 20, 40)]) for m, p in (("cn", 2), ("cn+", 4), ("sdirk", 3))]
    else:
        space, S = name.removeprefix("numpy-"), rivals_explicit.Setting
        nodes, order = ((20, 28, 40), 6) if space == "fd" else ((12, 16, 20), math.inf)
        in_space = [("nodes", order, [S(space, n, steps=100, loss=1e-6, q=9) for n in nodes])]
        in_time = [
            (m, p, [S("fd", 24, scheme=m, steps=n) for n in counts])
            for m, p, counts in (("rk4", 4, (80, 160, 320)), ("rkc", 2, (5, 10, 20)), ("rkc+", 3, (5, 10, 20)))
        ]
    for kind, series in (("space", in_space), ("time", in_time)):
        case, problem, box, truth = place("full-diffusion" if kind == "space" else "reflecting-square")
        for told, order, settings in series:
            judge = truth
            if kind == "time":
                last = settings[-1]
                fine = engine(case, problem, *box, replace(last, steps=8 * last.steps), math.inf)
                judge = replace(truth, policies=policies(fine, truth))
            errors = [judge.errors(engine(case, problem, *box, s, math.inf).policy)[0] for s in settings]
            sizes = [s.nodes if kind == "space" else s.steps for s in settings]
            slope = -math.log(errors[-1] / errors[-2]) / math.log(sizes[-1] / sizes[-2])
            shown = ", ".join(f"{n}: {e:.1e}" for n, e in zip(sizes, errors, strict=True))
            tell(told=f"{name:10s} in {kind:5s} {told:15s} {shown}; order {slope:.1f}, expected {order:g}")


# ---------------------------------------------------------------------------------------------------------------------
# In the parent


def ask(python: str, package_path: Path | None, verbose: bool, **given: Any) -> list[dict[str, Any]]:
    """The rows a child tells, as far as it comes."""
    environment = dict(os.environ)
    path = [str(HERE.parent if package_path is None else package_path), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    command = [python, str(HERE / "bench_nonquadratic.py"), "--child", json.dumps(given)]
    patience = 10.0 * (given["cap"] + given.get("budget", 0.0)) + 60.0
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=patience, check=False)
        out, err = done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        out, err = ((s or b"").decode() if isinstance(s, bytes) else s or "" for s in (late.stdout, late.stderr))
    if verbose:
        print(err[-2000:], file=sys.stderr)
    rows = [json.loads(line[4:]) for line in out.splitlines() if line.startswith("ROW ")]
    if "Traceback" in err:
        rows.append({"failed": err.strip().splitlines()[-1][:160]})
    return rows


def at_error(rows: list[dict[str, Any]], which: int, goal: float) -> tuple[float, dict[str, Any] | None]:
    """Seconds to an error, by interpolation of logarithms along the best settings; and the setting that reaches it."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["seconds"], row["errors"][which])):
        if not front or row["errors"][which] < front[-1]["errors"][which]:
            front.append(row)
    for before, row in zip([None, *front], front, strict=False):
        if row["errors"][which] <= goal:
            if before is None or row["errors"][which] <= 0.0:
                return row["seconds"], row
            e0, e1 = (math.log(r["errors"][which]) for r in (before, row))
            s0, s1 = (math.log(r["seconds"]) for r in (before, row))
            return math.exp(s0 + (s1 - s0) * (math.log(goal) - e0) / (e1 - e0)), row
    return math.inf, None


def line(name: str, seconds: float, ratio: float, errors: Any, told: str) -> None:
    shown = f"{seconds:10.4f} s" if math.isfinite(seconds) else "         - s"
    times = f"{ratio:8.3f}" if math.isfinite(ratio) else "       -"
    both = f"{errors[0]:8.1e} {errors[1]:8.1e}" if errors is not None else "       -        -"
    print(f"  {name:22s} {shown} {times}  {both}  {told}", flush=True)


def compare(case: Case, given: argparse.Namespace, pythons: dict[str, str]) -> list[dict[str, Any]]:
    targets = given.target or ([1e-2] if given.quick else list(case.targets))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder, cap = Path(name), given.cap
        common = {"case": case.name, "folder": name, "cap": cap}
        asked = {"who": "solve", "targets": targets, "repeat": 0.5 if given.quick else 2.0, **common}
        print(f"\n{case.name}, d = {case.dim}", end="", flush=True)
        made = ask(sys.executable, None, given.verbose, who="prepare", **{**common, "cap": max(cap, 300.0)})
        if not any(row.get("done") for row in made):
            print(f": no reference, {made}")
            return results
        truth = Truth.load(folder / "truth.npz")
        print(f"; a finer solution, in doubt by {truth.doubt:.0e}" if truth.doubt else "; closed form")
        print(f"  {'':22s} {'CPU':>12s} {'ratio':>8s}  {'t < T':>8s} {'t = 0':>8s}  error of the policy; setting")
        mine = ask(sys.executable, None, given.verbose, **asked)
        old = {str(path): ask(sys.executable, path, given.verbose, **asked) for path in given.baseline}
        goals, seen = [], {row["target"]: row for row in mine if "seconds" in row}
        for target in targets:
            row = seen.get(target)
            if row is None:
                goals.append((target, 0))
            else:
                goals += [(min(target, max(error, 1e-9)), which) for which, error in enumerate(row["errors"])]
        rows = {
            name: ask(python, None, given.verbose, who=name, goals=goals, budget=given.budget, **common)
            for name, python in pythons.items()
        }
        for target in targets:
            row = seen.get(target)
            print(f"  target {target:g}")
            seconds, errors = math.inf, None
            failed = next((r["failed"] for r in mine if r.get("target", target) == target and "failed" in r), None)
            if row is not None:
                seconds, errors = row["seconds"], row["errors"]
                told = f"estimate {row['estimate']:.1e}, {row['status']}; " + ", ".join(
                    f"{k} {v}" for k, v in row["stats"].items() if isinstance(v, int) or k in ("form", "route")
                )
                line("solve", seconds, 1.0, errors, told)
            else:
                line("solve", math.inf, math.inf, None, failed or f"no answer in {cap:g} s")
            head = {"problem": case.name, "target": target}
            results.append({**head, "method": "solve", "doubt": truth.doubt, **(row or {})})
            for path, theirs in old.items():
                found = next((r for r in theirs if r.get("target") == target and "seconds" in r), None)
                why = next((r["failed"] for r in theirs if r.get("target", target) == target and "failed" in r), None)
                if found is None:
                    line("baseline", math.inf, math.inf, None, f"{why or f'no answer in {cap:g} s'} ({path})")
                else:
                    ratio = found["seconds"] / seconds
                    told = f"estimate {found['estimate']:.1e} ({path})"
                    line("baseline", found["seconds"], ratio, found["errors"], told)
                results.append({**head, "method": f"baseline {path}", **(found or {})})
            for name, told in rows.items():
                theirs = [row for row in told if "errors" in row]
                broken = next((row["failed"] for row in told if "failed" in row), "")
                if not told:
                    line(name, math.inf, math.inf, None, "has no way to do this problem")
                    continue
                for what, goal, which in (
                    ("target", target, 0),
                    ("equal", None if errors is None else errors[0], 0),
                    ("equal at 0", None if errors is None else errors[1], 1),
                ):
                    if goal is None:
                        continue
                    took, by = at_error(theirs, which, goal)
                    ratio = took / seconds if math.isfinite(took) and math.isfinite(seconds) else math.inf
                    if by is None:
                        least = min((r["errors"][which] for r in theirs), default=math.inf)
                        miss = f"{goal:.1e} not reached by {len(theirs)} settings tried, at best {least:.1e} {broken}"
                        line(f"{name}, {what}", math.inf, math.inf, None, miss)
                    else:
                        line(f"{name}, {what}", took, ratio, by["errors"], by["setting"])
                    results.append(
                        {
                            **head,
                            "method": name,
                            "at": what,
                            "goal": goal,
                            "seconds": took if by else None,
                            "ratio": ratio if math.isfinite(ratio) else None,
                            "run": by,
                            "tried": len(theirs),
                        }
                    )
    return results


def has(python: str, module: str) -> bool:
    try:
        command = [python, "-c", f"import {module}, numpy, scipy, skfem"]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small problems to 1e-2: a smoke test")
    parser.add_argument("--problem", nargs="+", choices=tuple(CASES))
    parser.add_argument("--target", nargs="+", type=float, help="errors of the policy; by default those of the problem")
    parser.add_argument("--rival", nargs="*", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--cap", type=float, default=120.0, help="CPU seconds that one solve may take")
    parser.add_argument("--budget", type=float, default=120.0, help="CPU seconds of the search for a rival's settings")
    parser.add_argument("--baseline", nargs="+", type=Path, default=[], help="other checkouts of this package")
    parser.add_argument("--ngsolve", default=sys.executable, help="an interpreter that has NGSolve")
    parser.add_argument("--dolfinx", default="python3", help="an interpreter that has dolfinx")
    parser.add_argument("--json", type=Path, help="write all results here, too")
    parser.add_argument("--orders", action="store_true", help="only whether the rivals converge as they should")
    parser.add_argument("--verbose", action="store_true", help="what the children say")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(json.loads(given.child))
        return
    if given.quick:
        given.cap, given.budget = min(given.cap, 5.0), 1.2
        given.rival = [name for name in given.rival if name in ("numpy-fd", "skfem")]
    pythons = dict.fromkeys(given.rival, sys.executable)
    for name, python in (("ngsolve", given.ngsolve), ("dolfinx", given.dolfinx)):
        if name in pythons:
            pythons[name] = python
            if not has(python, name):
                print(f"{name} is left out: {python} does not import it")
                del pythons[name]
    if given.orders:
        for name, python in pythons.items():
            for row in ask(python, None, given.verbose, who="orders", case="full-diffusion", rival=name, cap=300.0):
                print(row["told"], flush=True)
        return
    chosen = given.problem or [name for name, case in CASES.items() if case.quick or not given.quick]
    results = []
    for name in chosen:
        results += compare(CASES[name], given, pythons)
        if given.json is not None:
            given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
