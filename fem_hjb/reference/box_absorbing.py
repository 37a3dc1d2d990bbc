r"""Processes that are stopped at faces, on boxes, to a tolerance: plans are solved, judged by neighbours, and refined.

Lawson's method loses its order where values are prescribed on faces, so these are solved by implicit steps, in the
linear form. Each plan (`box_grids.Plan`) is solved by `box_solve`, and again with each of three things changed on its
own: cells of a higher degree, a smaller tolerance in time, a larger box. The differences, in the norms of `compare`,
are the parts of the estimate: what is returned is the solution whose error they measure, not the richer ones they are
measured with. As long as a part exceeds its share of the tolerance, what it stands for is refined: cells are halved
where the policy is not resolved, the time tolerance is divided, the box is widened.
"""

import math
from dataclasses import replace
from typing import Any, final

import numpy as np

from fem_hjb.paths.extent import box_of, reach_of, sample_law
from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_form import choose_form
from fem_hjb.reference.box_grids import RICHER, Plan, first_grids, halved, perturbed, unresolved
from fem_hjb.reference.box_solve import solve_on_box
from fem_hjb.solutions.estimate import combine
from fem_hjb.solutions.norms import largest_norms, law_points
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress

MAX_DOFS = {1: 4000, 2: 90_000, 3: 350_000}
_SHARES = {"space": 0.4, "time": 0.2, "truncation": 0.2}  # of the tolerance, below which a part is left alone
_MOST_ROUNDS = 40
_MOST_DEGREE = 16
_LEAST_RTOL_TIME = 1e-13
_TAIL = 20.0  # of the tolerance: unresolved parts of the policy, relative
_TIME = 0.02  # of the tolerance, per step
_DENSE = 500  # unknowns of the linear form in one dimension, whose matrices are dense
_ROUNDING = 3e-13  # relative: the least error that is admitted


def solve_stopped(
    problem: ControlProblem,
    rtol: float,
    box: Box | None,
    max_dofs: int | None,
    progress: Progress | None,
    seed: int = 0,
) -> Solution:
    """The loop over plans; see the module. seed : of the samples that say how far the process goes, and where it is."""
    solver = _Solver(problem, rtol, box, max_dofs, seed)
    plan = replace(solver.resolved(solver.first()), rtol_time=_TIME * rtol)
    for k in range(_MOST_ROUNDS):
        if progress is not None:
            progress(k / _MOST_ROUNDS)
        plan = solver.resolved(plan)
        parts, better = solver.judged(plan)
        if better is None:
            break
        plan, judged = better, plan
    else:
        plan = judged
    solution = solver(plan)
    if solution is None:
        raise ConvergenceError(f"no solution of {problem.name!r}: {solver.failure}")
    if progress is not None:
        progress(1.0)
    rounding = solver.rounding(plan)
    value, policy = ({name: part[i] for name, part in parts.items()} for i in range(2))
    value["space"] += rounding
    policy["space"] += rounding
    stats = {**solution.stats, "gauge": solver.why, "solves": solver.count}
    return replace(solution, error_estimate=combine(value, policy), stats=stats)


def _evaluate(solution: Any, t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """v (n,) and grad v (n, d); nan outside the box and where f <= 0."""
    how = {"outside": "nan", "nonpositive": "nan"}
    return solution.value(t, x, **how), solution.gradient(t, x, **how)


@final
class _Solver:
    """Solves plans for one problem, each only once, compares what it got, and says what to try next."""

    def __init__(self, problem: ControlProblem, rtol: float, box: Box | None, max_dofs: int | None, seed: int) -> None:
        self.problem, self.rtol, self.seed = problem, rtol, seed
        self.points = law_points(problem, rng=seed)
        self.reach = reach_of(sample_law(problem, seed).x)
        self.box = box_of(problem, [self.reach], max(0.01 * rtol**2, 1e-22)) if box is None else box
        self.given, self.max_dofs = box, max_dofs
        self.limit = MAX_DOFS[problem.dim] if max_dofs is None else max_dofs
        self.tail = _TAIL * rtol
        self.count, self.failure = 0, ""
        self.gauge, _, self.why = choose_form(problem, self.box, "linear")
        if problem.dim == 1 and max_dofs is None:
            self.limit = min(self.limit, _DENSE)
        self._solutions: dict[Plan, Solution | None] = {}
        self._rows: dict[Plan, list[tuple[FloatArray, FloatArray]]] = {}

    def __call__(self, plan: Plan) -> Solution | None:
        """The solution; None if there is none on this grid."""
        if plan not in self._solutions:
            self.count += 1
            try:
                self._solutions[plan] = solve_on_box(self.problem, plan.basis(), self.gauge, rtol_time=plan.rtol_time)
            except ConvergenceError as failure:
                self._solutions[plan], self.failure = None, str(failure)
        return self._solutions[plan]

    def first(self) -> Plan:
        """Where the search begins: a grid that knows the coefficients, or of two cells per axis; coarse steps."""
        degree = 8 if self.rtol >= 1e-4 else 10 if self.rtol >= 1e-6 else 12
        rtol_time = min(1e-3, 100.0 * _TIME * self.rtol)
        grids = first_grids(self.problem, self.gauge, self.box, self.reach, degree)
        plan = Plan(grids=grids, degree=degree, rtol_time=rtol_time)
        if plan.dofs > self.limit:
            plan = replace(plan, grids=tuple(grid[[0, -1]] for grid in grids))
        if plan.dofs > self.limit:
            raise ConvergenceError(
                f"max_dofs={self.limit} is less than one cell of degree {degree} per axis has, {plan.dofs}; allow more"
            )
        return plan

    def resolved(self, plan: Plan) -> Plan:
        """The plan with cells halved until the policy is resolved, or as many as are allowed."""
        for _ in range(_MOST_ROUNDS):
            if self(plan) is not None:
                finer = self._refined(plan)
                if not plan.dofs < finer.dofs <= self.limit:
                    break
            else:
                finer = halved(plan, [np.ones(len(grid) - 1, dtype=np.bool_) for grid in plan.grids])
                if finer.dofs > self.limit:
                    raise ConvergenceError(
                        f"no solution of {self.problem.name!r} on {plan.dofs} nodes, and max_dofs={self.limit} allows"
                        f" no more: {self.failure}"
                    )
            plan = finer
        return plan

    def _refined(self, plan: Plan) -> Plan:
        """The plan with the cells halved in which the policy is not resolved."""
        solution = self(plan)
        if solution is None:
            return plan
        threshold = self.tail * self.sizes(plan)[1] * self.problem.temperature
        return halved(plan, unresolved(solution, self.reach, threshold))

    def judged(self, plan: Plan) -> tuple[dict[str, tuple[float, float]], Plan | None]:
        """The parts of the error as far as they have been found, and a better plan, None if this one is good enough.

        Steps differ from run to run, so differences below twice the part of time are nothing else. Where nothing more
        can be done about space, time need not be more accurate than a third of it, and the box is left alone until it
        matters more than twice as much.
        """
        rtol = self.rtol
        plans = perturbed(plan, self.box.where("natural"))
        full = self._refined(plan).dofs > self.limit
        parts: dict[str, tuple[float, float]] = {}
        for name in ("space", "time", "truncation") if full else ("time", "space", "truncation"):
            if name not in plans:
                continue
            other = plans[name]
            parts[name] = self.difference(plan, other)
            size = max(parts[name])
            others = max((max(part) for part in parts.values()), default=0.0)
            enough = _SHARES[name] * rtol
            if name == "time" and full:
                enough = max(enough, others / 3.0)
            elif name != "time" and "time" in parts:
                enough = max(enough, 2.0 * max(parts["time"]))
            if name == "truncation" and full:
                enough = max(enough, 2.0 * max(parts["space"]))
            if size <= enough or (name == "truncation" and self._kept):
                continue
            better = other
            if name == "space":
                if full:
                    continue
                self.tail *= min(max(0.3 * _SHARES[name] * rtol / size, 0.01), 0.3)
                better = self._refined(plan)
                if better.dofs <= plan.dofs:
                    better = replace(plan, degree=plan.degree + RICHER)
            if better.dofs <= self.limit and better.degree <= _MOST_DEGREE and better.rtol_time >= _LEAST_RTOL_TIME:
                for rest in plans.keys() - parts.keys():
                    parts[rest] = (math.inf, math.inf)  # seen only if rounds run out
                return parts, better
        return parts, None

    @property
    def _kept(self) -> bool:
        """Whether the user says where to truncate: by a box, or by finite natural faces of the domain."""
        domain = self.problem.domain
        cut = domain is not None and bool((domain.where("natural") & np.isfinite(domain.bounds)).any())
        return cut or self.given is not None

    def rows(self, plan: Plan) -> list[tuple[FloatArray, FloatArray]]:
        """v and grad v at the points of comparison, for each time."""
        if plan not in self._rows:
            self._rows[plan] = [_evaluate(self(plan), t, x) for t, x, _ in self.points]
        return self._rows[plan]

    def sizes(self, plan: Plan) -> tuple[float, float]:
        """max over t of the norms of value and policy."""
        return largest_norms(self.problem, self.points, self.rows(plan))

    def difference(self, plan: Plan, other: Plan) -> tuple[float, float]:
        """Relative differences of values and policies; what has no value although in the box counts as all wrong."""
        if self(other) is None or self(plan) is None:
            return math.inf, math.inf
        mine, theirs = self.rows(plan), self.rows(other)
        box, lost, kept = plan.box, 0.0, []
        for (_, x, w), (v, slope), (v_other, slope_other) in zip(self.points, mine, theirs, strict=True):
            gap, slope_gap = v - v_other, slope - slope_other
            unknown = ~(np.isfinite(gap) & np.isfinite(slope_gap).all(axis=1))
            lost = max(lost, float(w[unknown & box.contains(x)].sum()))
            kept.append((np.where(unknown, np.nan, gap), slope_gap))
        sizes = self.sizes(other)
        errors = largest_norms(self.problem, self.points, kept)
        wrong = math.sqrt(lost) if lost > 1e-15 else 0.0
        value, policy = (e / s if s > 0 else (0.0 if e == 0 else math.inf) for e, s in zip(errors, sizes, strict=True))
        return math.hypot(value, wrong), math.hypot(policy, wrong)

    def rounding(self, plan: Plan) -> float:
        """What double precision leaves of the policy: eps, amplified by the differentiation."""
        finest = min(float(np.diff(line.nodes).min()) for line in plan.basis().lines)
        reach = float(np.ptp(plan.grids[0])) / 16.0
        return _ROUNDING * max(1.0, reach / finest * 0.1)
