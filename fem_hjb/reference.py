r"""`solve`: value and policy of a control problem to a tolerance, with an estimate of the error that has been measured.

A problem that falls apart into independent ones is solved as these (`blocks`), never as a whole. Each is solved on a
box with spectral elements (`box_reference`), and solved again with each of three things changed on its own: cells of a
higher degree, a smaller tolerance in time, a larger box. The differences, in the norms of `compare`, are the parts of
the estimate: what is returned is the solution whose error they measure, not the richer ones they are measured with. As
long as a part exceeds its share of the tolerance, what it stands for is refined: cells are halved where the policy is
not resolved, the time tolerance is divided, the box is widened.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, final

import numpy as np

from fem_hjb._checks import (
    ConvergenceError,
    DomainError,
    FloatArray,
    ProblemError,
    SpaceError,
    one_of,
    positive_integer,
)
from fem_hjb.background import quadratic_gauge, ranges
from fem_hjb.blocks import alike, independent_blocks, restrict
from fem_hjb.box_reference import solve_on_box
from fem_hjb.cole_hopf import UNDERFLOW, Gauge, QuadraticGauge, ValueGauge, gauge
from fem_hjb.compare import LawPoints, compare, law_points
from fem_hjb.estimate import ErrorEstimate, ToleranceWarning, combine
from fem_hjb.exponential import apply_axis
from fem_hjb.laws import BoolArray, Box
from fem_hjb.mesh_reference import BoundaryValue, estimate_on_mesh, solve_on_mesh
from fem_hjb.problem import ControlProblem
from fem_hjb.reach import Reach, box_of, reach
from fem_hjb.refinement import refine_on_mesh
from fem_hjb.solution import ProductSolution, Solution
from fem_hjb.spectral import SpectralBasis, SpectralLine

_AnySolution = TypeVar("_AnySolution", Solution, ProductSolution)

DEFAULT_RTOL = 1e-4
LEAST_RTOL = 1e-10
MAX_DOFS = {1: 4000, 2: 90_000, 3: 350_000}
_SHARES = {"space": 0.4, "time": 0.2, "truncation": 0.2}  # of the tolerance, below which a part is left alone
_MOST_ROUNDS = 40
_RICHER = 2  # degrees
_MOST_DEGREE = 16
_SLOWER = 20.0  # by which the time tolerance is divided
_LEAST_RTOL_TIME = 1e-13
_WARM = 1.0  # temperature below which a failed solve is begun again from the grid of one ten times as hot
_WIDER = 0.06  # of the width, by which a box is enlarged on each side
_TAIL = 20.0  # of the tolerance: unresolved parts of the policy, relative
_AHEAD = 0.1
_TIME = 0.02  # of the tolerance, per step
_FIRST_ROUNDS = {1: 5, 2: 4, 3: 1}
_FIRST_TAIL = 1e-2
_FLAT = 0.1  # |log u| up to which the linear form is used on a truncated box, where nodes lie far out in the tails
_DENSE = 500  # unknowns of the linear form in one dimension, whose matrices are dense
_DEEPEST = 60.0  # the same on a bounded domain
_ROUNDING = 3e-13
_UNCOVERED = 0.01  # the fraction of the initial law that a box may leave out


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Plan:
    """How one problem is solved: the grids of the axes, their degree, the tolerance in time."""

    grids: tuple[FloatArray, ...]
    degree: int
    rtol_time: float

    @property
    def dofs(self) -> int:
        return math.prod((len(grid) - 1) * self.degree + 1 for grid in self.grids)

    @property
    def box(self) -> Box:
        return Box([grid[0] for grid in self.grids], [grid[-1] for grid in self.grids], boundary="natural")

    def basis(self) -> SpectralBasis:
        return SpectralBasis([SpectralLine(grid, self.degree) for grid in self.grids])


def solve(
    problem: ControlProblem,
    *,
    rtol: float | None = None,
    form: Literal["linear", "value"] | None = None,
    box: Box | None = None,
    max_dofs: int | None = None,
    mesh: Any = None,
    element: str | None = None,
    cells: int | tuple[int, ...] | None = None,
    steps: int | None = None,
    rtol_time: float | None = None,
    boundary: Literal["natural"] | BoundaryValue = "natural",
    refine: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Solution | ProductSolution:
    """Value and policy of a problem, to a tolerance or on a mesh.

    With a tolerance (rtol alone, or with the arguments of the first group) everything is chosen here: box, cells,
    degree, form of the equation, route in time; in any dimension, if the problem falls apart into independent ones of
    dimension up to three. With arguments of the second group the problem is solved on that mesh; see
    `mesh_reference.solve_on_mesh` for them. Then rtol asks for an estimate of the error, and with refine=True for a
    mesh of simplices refined where the policy needs it (`refinement.refine_on_mesh`).

    Parameters
    ----------
    rtol : relative error of value and policy, as `compare` measures it: 1e-4 if not given. From 1e-10 to 0.1.
    form : "linear" solves for f, "value" for v itself (by Newton's method, or explicitly where v is not stiff). By
        default the linear form where f keeps its relative accuracy in double precision, else the value form.
    box : the box to solve on, which is then kept, whatever its words say of faces that problem.domain does not have; by
        default one that holds the process up to a mass of rtol^2 / 100 on each side of each axis.
    max_dofs : unknowns in space that may be spent; 4000, 90 000, 350 000 in one, two, three dimensions.
    progress : called with the fraction of the work done, as far as that is known.

    Returns
    -------
    A `Solution`, or a `ProductSolution` of independent ones, with its `error_estimate`. Its stats tell the form, the
    route and why, the unknowns, how often it was solved, and the seconds. If the tolerance is not met, a
    `ToleranceWarning` says which part of the error stopped it, and so does the status.

    Raises
    ------
    ConvergenceError : rtol is out of range (below 1e-10 double precision has nothing to offer), or no solution exists
        on any grid tried.
    InfiniteValueError : the problem is linear-quadratic and its value infinite.
    EllipticityError, ProblemError : a coefficient is not elliptic, or not finite, somewhere in the box.
    DomainError : the box or mesh does not fit, or more than three coordinates hang together.
    """
    if not isinstance(problem, ControlProblem):
        raise ProblemError(f"solve needs a ControlProblem, got {type(problem).__name__}")
    if progress is not None and not callable(progress):
        raise ConvergenceError(f"progress must be a callable or None, got {progress!r}")
    tolerance = None if rtol is None else _checked(rtol)
    on_mesh = {"mesh": mesh, "element": element, "cells": cells, "steps": steps, "rtol_time": rtol_time}
    if refine or callable(boundary) or any(value is not None for value in on_mesh.values()):
        given = [
            name for name, value in (("form", form), ("max_dofs", None if refine else max_dofs)) if value is not None
        ]
        if given:
            raise DomainError(f"{' and '.join(given)} cannot be asked for on a mesh; leave out what belongs to meshes")
        return _solve_on_mesh(problem, tolerance, on_mesh, box, boundary, refine, max_dofs, progress)
    if boundary != "natural":
        raise DomainError(f"boundary must be 'natural' or a callable (t, x) -> v on the boundary, got {boundary!r}")
    if max_dofs is not None:
        max_dofs = positive_integer(max_dofs, "max_dofs", SpaceError)
    if form is not None:
        one_of(form, "form", ("linear", "value"), ConvergenceError)
    tolerance = DEFAULT_RTOL if tolerance is None else tolerance
    started = time.perf_counter()
    blocks = [tuple(range(problem.dim))] if box is not None else independent_blocks(problem)
    largest = max(map(len, blocks))
    if largest > 3:
        raise DomainError(
            f"boxes go up to dimension 3, but {largest} coordinates of {problem.name!r} hang together; learn its value"
            " from paths instead"
        )
    if len(blocks) == 1:
        return _finished(_solve_block(problem, tolerance, form, box, max_dofs, progress), tolerance, started)
    parts: list[tuple[tuple[int, ...], Solution]] = []
    for k, block in enumerate(blocks):
        own = restrict(problem, block, len(blocks))
        same = next((part for _, part in parts if alike(part.problem, own)), None)
        part = _solve_block(own, 0.7 * tolerance, form, None, max_dofs, None) if same is None else same
        parts.append((block, part))
        if progress is not None:
            progress((k + 1) / len(blocks))
    return _finished(_product(problem, parts), tolerance, started)


def _checked(rtol: float) -> float:
    number = float(rtol) if isinstance(rtol, int | float | np.number) and not isinstance(rtol, bool) else math.nan
    if not LEAST_RTOL <= number <= 0.1:
        raise ConvergenceError(
            f"rtol must be a number from {LEAST_RTOL:g}, what double precision allows, to 0.1, got {rtol!r}"
        )
    return number


def _finished(solution: _AnySolution, rtol: float, started: float) -> _AnySolution:
    """With the total of seconds, and a warning and a status that say so if the tolerance is not met."""
    estimate = solution.error_estimate
    if estimate is None:
        raise ConvergenceError("a solution without an estimate")
    changes: dict[str, Any] = {"stats": {**solution.stats, "seconds": time.perf_counter() - started}}
    if not estimate.met(rtol):
        complaint = estimate.complaint(rtol, f"solve({solution.problem.name!r})")
        warnings.warn(complaint, ToleranceWarning, stacklevel=3)
        changes["status"] = complaint if solution.status == "ok" else f"{solution.status}; {complaint}"
    return replace(solution, **changes)


def _product(problem: ControlProblem, parts: list[tuple[tuple[int, ...], Solution]]) -> ProductSolution:
    """Errors add up in squares for policies; those of values as if they all had one sign."""
    estimates = [part.error_estimate for _, part in parts if part.error_estimate is not None]
    once = {id(part): _sizes(part) for part in {id(part): part for _, part in parts}.values()}
    sizes = np.array([once[id(part)] for _, part in parts])
    whole = np.maximum(np.array(_sizes(ProductSolution(problem=problem, parts=tuple(parts), status="ok"))), 1e-300)
    value = sum(e.value * s for e, s in zip(estimates, sizes[:, 0], strict=True)) / whole[0]
    policy = math.sqrt(sum((e.policy * s) ** 2 for e, s in zip(estimates, sizes[:, 1], strict=True))) / whole[1]
    largest = max(max(e.value, e.policy) for e in estimates)
    scale = max(value, policy) / largest if largest > 0 else 0.0
    told = [part.status for _, part in parts if part.status != "ok"]
    return ProductSolution(
        problem=problem,
        parts=tuple(parts),
        status="; ".join(told) if told else "ok",
        stats={
            "form": ", ".join(dict.fromkeys(part.stats["form"] for _, part in parts)),
            "route": ", ".join(dict.fromkeys(part.stats["route"] for _, part in parts)),
            "why": f"falls apart into {len(parts)} independent problems",
            "dofs": sum(part.stats["dofs"] for _, part in parts),
            "solves": sum(part.stats["solves"] for part in {id(part): part for _, part in parts}.values()),
        },
        error_estimate=ErrorEstimate(
            value=float(value),
            policy=float(policy),
            **{name: scale * max(getattr(e, name) for e in estimates) for name in _SHARES},
        ),
    )


def _sizes(solution: Any) -> tuple[float, float]:
    """max over t of the norms of value and policy."""
    problem = solution.problem
    points = law_points(problem)
    return _largest_norms(problem, points, [_evaluate(solution, t, x) for t, x, _ in _each(points)])


def _each(points: LawPoints) -> list[tuple[float, FloatArray, FloatArray]]:
    return [(float(t), x, w) for t, (x, w) in zip(points.times, points.rules, strict=True)]


def _evaluate(solution: Any, t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """v (n,) and grad v (n, d); nan outside the box and where f <= 0."""
    how = {"outside": "nan", "nonpositive": "nan"}
    return solution.value(t, x, **how), solution.gradient(t, x, **how)


def _largest_norms(
    problem: ControlProblem, points: LawPoints, rows: list[tuple[FloatArray, FloatArray]]
) -> tuple[float, float]:
    """max over t of the L2(p_t) norm of v, and of Lambda grad v / alpha in the norm of Lambda^{-1}; nan left out."""
    value = policy = 0.0
    for (t, x, w), (v, slope) in zip(_each(points), rows, strict=True):
        known = np.isfinite(v) & np.isfinite(slope).all(axis=1)
        size = np.einsum("ni,nij,nj->n", slope[known], problem.Lambda(t, x[known]), slope[known])
        value = max(value, math.sqrt(w[known] @ v[known] ** 2))
        policy = max(policy, math.sqrt(w[known] @ size) / problem.temperature)
    return value, policy


def _solve_block(
    problem: ControlProblem,
    rtol: float,
    form: str | None,
    box: Box | None,
    max_dofs: int | None,
    progress: Callable[[float], None] | None,
) -> Solution:
    """The loop over plans; see the module."""
    solver = _Solver(problem, rtol, form, box, max_dofs)
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


def _given(problem: ControlProblem, box: Box) -> Box:
    """The user's box, with the faces of problem.domain where it has some."""
    if not isinstance(box, Box) or box.dim != problem.dim:
        got = f"one of dimension {box.dim}" if isinstance(box, Box) else type(box).__name__
        raise DomainError(f"box must be a Box of dimension {problem.dim}, got {got}")
    if not box.bounded:
        raise DomainError(f"box must have finite faces, got {box}")
    domain = problem.domain
    if domain is not None:
        for bound, own, side in zip(box.bounds, domain.bounds, range(2), strict=True):
            kept = ~domain.where("natural")[side]
            if (np.abs(bound - own)[kept] > 1e-9 * (box.bounds[1] - box.bounds[0])[kept]).any():
                raise DomainError(
                    f"the process ends at the faces of {domain}, so the box must have them too, got {box}"
                )
    samples = problem.initial_law.sample(4096, np.random.default_rng(0))
    outside = 1.0 - float(box.contains(samples).mean())
    if outside > _UNCOVERED:
        raise DomainError(
            f"the box leaves out {outside:.1%} of the initial law of {problem.name!r}, at most {_UNCOVERED:.0%} is"
            f" allowed: it is {box.bounds[0].tolist()} to {box.bounds[1].tolist()}, samples of the law lie in"
            f" {samples.min(axis=0).tolist()} to {samples.max(axis=0).tolist()}; take a larger box"
        )
    if domain is None:
        return Box(*box.bounds, boundary="natural")
    return Box(*box.bounds, boundary=domain.boundary, exit_reward=domain.exit_reward)


@final
class _Solver:
    """Solves plans for one problem, each only once, compares what it got, and says what to try next."""

    def __init__(
        self, problem: ControlProblem, rtol: float, form: str | None, box: Box | None, max_dofs: int | None
    ) -> None:
        self.problem, self.rtol, self.form = problem, rtol, form
        self.points = law_points(problem)
        self.reach = reach(problem)
        self.box = box_of(problem, self.reach, max(0.01 * rtol**2, 1e-22)) if box is None else _given(problem, box)
        self.given, self.max_dofs = box, max_dofs
        self.limit = MAX_DOFS[problem.dim] if max_dofs is None else max_dofs
        self.tail = _TAIL * rtol
        self.count, self.failure = 0, ""
        self._choose(form)

    def _choose(self, form: str | None) -> None:
        self.gauge, self.linear, self.why = _choose(self.problem, self.box, form)
        if self.linear and self.problem.dim == 1 and self.max_dofs is None:
            self.limit = min(self.limit, _DENSE)
        self._solutions: dict[_Plan, Solution | None] = {}
        self._rows: dict[_Plan, list[tuple[FloatArray, FloatArray]]] = {}

    def __call__(self, plan: _Plan) -> Solution | None:
        """The solution; None if there is none on this grid."""
        if plan not in self._solutions:
            self.count += 1
            try:
                self._solutions[plan] = solve_on_box(
                    self.problem, plan.basis(), self.gauge, rtol_time=plan.rtol_time, linear=self.linear
                )
            except ConvergenceError as failure:
                self._solutions[plan], self.failure = None, str(failure)
        return self._solutions[plan]

    def first(self) -> _Plan:
        """Where the search begins: a grid that knows the coefficients, or of two cells per axis; coarse steps."""
        degree = 8 if self.rtol >= 1e-4 else 10 if self.rtol >= 1e-6 else 12
        rtol_time = min(1e-3, 100.0 * _TIME * self.rtol)
        grids = _first_grids(self.problem, self.gauge, self.box, self.reach, degree)
        plan = _Plan(grids=grids, degree=degree, rtol_time=rtol_time)
        if plan.dofs > self.limit:
            plan = replace(plan, grids=tuple(grid[[0, -1]] for grid in grids))
        if plan.dofs > self.limit:
            raise ConvergenceError(
                f"max_dofs={self.limit} is less than one cell of degree {degree} per axis has, {plan.dofs}; allow more"
            )
        return plan

    def resolved(self, plan: _Plan) -> _Plan:
        """The plan with cells halved until the policy is resolved, or as many as are allowed."""
        warmed = False
        for _ in range(_MOST_ROUNDS):
            if self(plan) is not None:
                finer = self._refined(plan)
                if not plan.dofs < finer.dofs <= self.limit:
                    break
                plan = finer
            elif not warmed and self.problem.temperature < _WARM and not self.linear:
                warmed, plan = True, replace(plan, grids=self._warm_grids())
            elif self.form is None and not self.linear and self.problem.dim > 1:
                failure = self.failure
                self._choose("linear")
                self.why = f"{self.why}; the value form failed: {failure}"
            else:
                finer = _halved(plan, [np.ones(len(grid) - 1, dtype=np.bool_) for grid in plan.grids])
                if finer.dofs > self.limit:
                    raise ConvergenceError(
                        f"no solution of {self.problem.name!r} on {plan.dofs} nodes, and max_dofs={self.limit} allows"
                        f" no more: {self.failure}"
                    )
                plan = finer
        return plan

    def _warm_grids(self) -> tuple[FloatArray, ...]:
        """Those found for a temperature ten times as high."""
        hotter = replace(self.problem, temperature=10.0 * self.problem.temperature, exact=None)
        warm = _solve_block(hotter, 1e-3, "value", self.given, self.max_dofs, None)
        return tuple(line.grid for line in spectral(warm).lines)

    def _refined(self, plan: _Plan) -> _Plan:
        """The plan with the cells halved in which the policy is not resolved."""
        solution = self(plan)
        if solution is None:
            return plan
        threshold = self.tail * self.sizes(plan)[1] * self.problem.temperature
        return _halved(plan, _marked(solution, self.reach, threshold))

    def judged(self, plan: _Plan) -> tuple[dict[str, tuple[float, float]], _Plan | None]:
        """The parts of the error as far as they have been found, and a better plan, None if this one is good enough.

        Steps differ from run to run, so differences below twice the part of time are nothing else. Where nothing more
        can be done about space, time need not be more accurate than a third of it, and the box is left alone until it
        matters more than twice as much.
        """
        rtol = self.rtol
        plans = _perturbed(plan, self.box.where("natural") & self._movable())
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
            if size <= enough or (name == "truncation" and self.given is not None):
                continue
            better = other
            if name == "space":
                if full:
                    continue
                self.tail *= min(max(0.3 * _SHARES[name] * rtol / size, 0.01), 0.3)
                better = self._refined(plan)
                if better.dofs <= plan.dofs:
                    better = replace(plan, degree=plan.degree + _RICHER)
            if better.dofs <= self.limit and better.degree <= _MOST_DEGREE and better.rtol_time >= _LEAST_RTOL_TIME:
                for rest in plans.keys() - parts.keys():
                    parts[rest] = (0.0, 0.0)
                return parts, better
        return parts, None

    def _movable(self) -> BoolArray:
        """(2, d): the faces that problem.domain does not fix."""
        domain = self.problem.domain
        if domain is None:
            return np.ones((2, self.problem.dim), dtype=np.bool_)
        return ~np.isfinite(np.stack(domain.bounds))

    def rows(self, plan: _Plan) -> list[tuple[FloatArray, FloatArray]]:
        """v and grad v at the points of comparison, for each time."""
        if plan not in self._rows:
            self._rows[plan] = [_evaluate(self(plan), t, x) for t, x, _ in _each(self.points)]
        return self._rows[plan]

    def sizes(self, plan: _Plan) -> tuple[float, float]:
        """max over t of the norms of value and policy."""
        return _largest_norms(self.problem, self.points, self.rows(plan))

    def difference(self, plan: _Plan, other: _Plan) -> tuple[float, float]:
        """Relative differences of values and policies; what has no value although in the box counts as all wrong."""
        if self(other) is None or self(plan) is None:
            return math.inf, math.inf
        mine, theirs = self.rows(plan), self.rows(other)
        box, lost, kept = plan.box, 0.0, []
        for (_, x, w), (v, slope), (v_other, slope_other) in zip(_each(self.points), mine, theirs, strict=True):
            gap, slope_gap = v - v_other, slope - slope_other
            unknown = ~(np.isfinite(gap) & np.isfinite(slope_gap).all(axis=1))
            lost = max(lost, float(w[unknown & box.contains(x)].sum()))
            kept.append((np.where(unknown, np.nan, gap), slope_gap))
        sizes = self.sizes(other)
        errors = _largest_norms(self.problem, self.points, kept)
        wrong = math.sqrt(lost) if lost > 1e-15 else 0.0
        value, policy = (e / s if s > 0 else (0.0 if e == 0 else math.inf) for e, s in zip(errors, sizes, strict=True))
        return math.hypot(value, wrong), math.hypot(policy, wrong)

    def rounding(self, plan: _Plan) -> float:
        """What double precision leaves of the policy: eps, amplified by the differentiation."""
        finest = min(float(np.diff(line.nodes).min()) for line in plan.basis().lines)
        reach = float(np.ptp(plan.grids[0])) / 16.0
        return _ROUNDING * max(1.0, reach / finest * 0.1)


def _choose(problem: ControlProblem, box: Box, form: str | None) -> tuple[Gauge | QuadraticGauge, bool, str]:
    """The background, whether the linear form is used, and why."""
    lower, upper = box.bounds
    lines = [np.linspace(a, b, 9 if problem.dim == 3 else 33) for a, b in zip(lower, upper, strict=True)]
    x = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, problem.dim)
    times = np.linspace(0.0, problem.horizon, 9)
    constants = gauge(problem, x, times)
    kinds = np.asarray(box.faces)
    truncated = bool((kinds == "natural").any())
    # At a reflecting face d v/dn = 0, which d u/dn = 0 is only if nothing with a slope has been taken out.
    reflecting = bool((kinds == "reflecting").any())
    quadratic = quadratic_gauge(problem, box, constants) if truncated and not reflecting else None
    candidates: list[Gauge | QuadraticGauge] = [constants] if quadratic is None else [quadratic, constants]
    spreads = [ranges(problem, each, x, times) for each in candidates]
    absorbing = problem.domain is not None and problem.domain.absorbing
    # Where u is large elsewhere, rounding is large against u where it is small.
    weight = 3.0 if absorbing or form == "linear" else 1.0
    best = min(range(len(candidates)), key=lambda k: weight * spreads[k][0] + spreads[k][1])
    above, below = spreads[best]
    deepest = _FLAT if truncated else _DEEPEST
    fits = max(below, above) <= deepest
    name = "a quadratic" if isinstance(candidates[best], QuadraticGauge) else "constants"
    why = f"with {name} taken out, log f ranges over {below + above:.3g} temperatures at most"
    if absorbing and form == "value":
        raise ConvergenceError("the value form has no absorbing faces; leave out form=, or use form='linear'")
    if absorbing and below > UNDERFLOW:
        raise ConvergenceError(
            f"{why}: too many for the linear form, and the value form has no absorbing faces; raise the temperature"
        )
    linear = form == "linear" or absorbing or (form is None and fits)
    return candidates[best], linear, why


def _first_grids(
    problem: ControlProblem, background: Gauge | QuadraticGauge, box: Box, found: Reach, degree: int
) -> tuple[FloatArray, ...]:
    """Cells halved along each axis until terminal reward and drift are roughly resolved where the process goes."""
    middle, spread = found.median.mean(axis=0), found.scale.max(axis=(0, 1))
    T = problem.horizon
    grids = []
    for axis, (low, high) in enumerate(zip(*box.bounds, strict=True)):
        grid = np.linspace(low, high, 3)
        for _ in range(_FIRST_ROUNDS[problem.dim]):
            line = SpectralLine(grid, degree)
            points = np.repeat((middle + np.array([[0.0], [-1.0], [1.0]]) * spread)[:, None], line.n, axis=1)
            points[..., axis] = line.nodes
            points = np.clip(points, *box.bounds)
            flat = points.reshape(-1, problem.dim)
            y = problem.y(flat)
            functions = [(y - background.background(T, flat), y)]
            functions += [(part, part) for t in (0.0, 0.5 * T, T) for part in problem.b(t, flat).T]
            weight = np.maximum.reduceat(
                found.weight(axis, line.nodes)[line.cell_dofs].ravel(), np.arange(0, line.cell_dofs.size, degree + 1)
            )
            marked = np.zeros(line.n_cells, dtype=np.bool_)
            for values, whole in functions:
                rows = values.reshape(len(points), line.n).T
                size = max(
                    float(np.abs(line.derivative @ rows * found.weight(axis, line.nodes)[:, None]).max()), 1e-300
                )
                tails = line.modal_tail(line.derivative @ rows).max(axis=1)
                marked |= (tails * weight > _FIRST_TAIL * size) & (tails > 1e-9 * np.abs(whole).max())
            if not marked.any():
                break
            grid = _bisected(grid, marked)
        grids.append(grid)
    return tuple(grids)


def _bisected(grid: FloatArray, marked: BoolArray) -> FloatArray:
    return np.sort(np.concatenate([grid, 0.5 * (grid[:-1] + grid[1:])[marked]]))


def _halved(plan: _Plan, marked: list[BoolArray]) -> _Plan:
    return replace(plan, grids=tuple(_bisected(g, m) for g, m in zip(plan.grids, marked, strict=True)))


def _marked(solution: Solution, found: Reach, threshold: float) -> list[BoolArray]:
    """The cells of each axis in which the gradient of the unknown is not resolved, where the process goes.

    In every cell of an axis: the two highest Legendre coefficients along it of each derivative of the unknown, squared
    and integrated over the other axes under a product of the densities of the axes, at their largest over some times.
    """
    basis = spectral(solution)
    lines, times = basis.lines, solution.space.time.n_dofs
    rows = np.unique(
        np.concatenate([np.linspace(0, times - 1, 9), times - 1 - np.arange(min(times, 4))]).astype(np.int64)
    )
    density = [found.weight(k, line.nodes) ** 2 for k, line in enumerate(lines)]
    mass = [part * line.weights / (part @ line.weights) for part, line in zip(density, lines, strict=True)]
    logarithmic = not isinstance(solution.gauge, ValueGauge)
    squares = [np.zeros(line.n_cells) for line in lines]
    grid = np.asarray(solution.coefficients)
    for row in rows:
        w = grid[row].reshape(basis.shape)
        if logarithmic:
            w = solution.problem.temperature * np.log(np.maximum(w, 1e-300))
        for k, line in enumerate(lines):
            slope = apply_axis(line.derivative, w, k)
            for m, other in enumerate(lines):
                tails = np.moveaxis(other.modal_tail(slope, axis=m) ** 2, m, 0)
                for j in range(len(lines) - 1, -1, -1):
                    if j != m:
                        tails = tails @ mass[j]
                held = (density[m][other.cell_dofs].max(axis=1) * other.widths) / (density[m] @ other.weights)
                squares[m] = np.maximum(squares[m], tails * held)
    total = sum(float(values.sum()) for values in squares)
    if total <= threshold**2:
        return [np.zeros(values.size, dtype=np.bool_) for values in squares]
    cells = sum(values.size for values in squares)
    return [values > _AHEAD * threshold**2 / cells for values in squares]  # some that will need it soon: fewer rounds


def spectral(solution: Solution) -> SpectralBasis:
    """The basis in space of a solution on a box."""
    basis = solution.space.spatial
    if not isinstance(basis, SpectralBasis):
        raise ConvergenceError(f"expected a solution on spectral elements, got one on {basis.element!r}")
    return basis


def _perturbed(plan: _Plan, moving: BoolArray) -> dict[str, _Plan]:
    """The plans that differ in one thing."""
    plans = {
        "time": replace(plan, rtol_time=plan.rtol_time / _SLOWER),
        "space": replace(plan, degree=plan.degree + _RICHER),
    }
    if moving.any():
        grids = []
        for k, grid in enumerate(plan.grids):
            wider = grid
            for side in range(2):
                if moving[side, k]:
                    wider = _moved_out(wider, side, _WIDER * (grid[-1] - grid[0]))
            grids.append(wider)
        plans["truncation"] = replace(plan, grids=tuple(grids))
    return plans


def _moved_out(grid: FloatArray, side: int, by: float) -> FloatArray:
    """With one end moved outwards: by stretching the last cell if it is large, else by one more cell."""
    end = grid[0] - by if side == 0 else grid[-1] + by
    last = grid[1] - grid[0] if side == 0 else grid[-1] - grid[-2]
    kept = grid if last < 2 * by else (grid[1:] if side == 0 else grid[:-1])
    return np.concatenate([[end], kept] if side == 0 else [kept, [end]])


def _solve_on_mesh(
    problem: ControlProblem,
    rtol: float | None,
    given: dict[str, Any],
    box: Box | None,
    boundary: Literal["natural"] | BoundaryValue,
    refine: bool,
    max_dofs: int | None,
    progress: Callable[[float], None] | None,
) -> Solution:
    if refine:
        refused = [name for name in ("steps", "rtol_time") if given[name] is not None]
        if refused or rtol is None:
            raise DomainError(
                f"refine=True needs rtol and chooses the time steps, got rtol={rtol!r}"
                + (f" and {', '.join(refused)}" if refused else "")
            )
        chosen = {name: given[name] for name in ("mesh", "element", "cells")}
        if max_dofs is not None:
            chosen["max_dofs"] = max_dofs
        return refine_on_mesh(problem, rtol=rtol, box=box, boundary=boundary, **chosen)
    solution = solve_on_mesh(problem, box=box, boundary=boundary, progress=progress, **given)
    if rtol is None:
        return solution
    started = time.perf_counter()
    truncation = _truncation_of_mesh(problem, solution, rtol)
    estimate = estimate_on_mesh(solution, boundary=boundary, truncation=truncation)
    return _finished(replace(solution, error_estimate=estimate), rtol, started)


def _truncation_of_mesh(problem: ControlProblem, solution: Solution, rtol: float) -> tuple[float, float]:
    """What ending the process at the box around the mesh costs: spectral solutions on this box and on a large one."""
    if problem.domain is not None and problem.domain.bounded:
        return 0.0, 0.0
    lower, upper = solution.space.spatial.box.bounds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        try:  # the natural condition of the mesh is reflection at its faces
            ended = replace(problem, domain=Box(lower, upper), exact=None)
        except ProblemError:  # much of the initial law lies outside
            return math.inf, math.inf
        near = _solve_block(ended, 0.1 * rtol, None, None, None, None)
        far = _solve_block(problem, 0.1 * rtol, None, None, None, None)
    row = compare({"near": near}, far, problem=problem).overall("near")
    return row.value, row.policy
