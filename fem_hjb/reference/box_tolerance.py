r"""One problem on boxes, to a tolerance: a run is judged by coarser ones, and done again if need be.

A run (`box_march`) resolves gradient and steps to tolerances of its own; a judge (`box_judge`) measures what that is
worth. Parts that exceed their share of the tolerance are asked for more accurately in the next run.
"""

import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from threadpoolctl import threadpool_limits

from fem_hjb.paths.extent import box_of, reach_of
from fem_hjb.paths.tilted import Laws, laws_of, reaches_of
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, ValueGauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_asked import LEAST, Tolerances, asked
from fem_hjb.reference.box_coefficients import Coefficients
from fem_hjb.reference.box_cost import Cost, announce
from fem_hjb.reference.box_form import choose_form, given_box
from fem_hjb.reference.box_judge import Judge, Parts
from fem_hjb.reference.box_march import Marcher
from fem_hjb.reference.box_panel import Equation, Payoff
from fem_hjb.reference.box_paths import Steered, steered
from fem_hjb.reference.box_run import Run, finest, layer_of
from fem_hjb.reference.box_running import jumps_in_space
from fem_hjb.reference.box_speed import drift_check, most_of, share_above
from fem_hjb.reference.faces import truncated
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.estimate import combine
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, ProblemError
from fem_hjb.support.progress import OutOfTimeError, Progress, part_of, unheard

MAX_DOFS = {1: 1500, 2: 400_000, 3: 1_000_000}
_SHARES = {"space": 0.8, "time": 0.3, "truncation": 0.3}  # of the tolerance
_ROUNDS, _LARGER, _LOOSE = 5, 4, 1e-2  # runs; times that the box follows paths, in some to this tolerance
_LOOSER, _LOOSEST = 100.0, 0.1  # times the tolerance, and at most, where time is short
_MASS = 0.1  # of the square of the tolerance
_FLOOR = 0.1  # of the tolerance: the least weight of what a grid must resolve, relative to the peak of the law
_PAID = 1e-4  # times that mass for what is paid: errors near faces, which no draw sees, count by their squares
_LOST = 20.0  # times the mass that a box may leave out on each side: so many paths may leave it at any time
_GROWING = (
    "as far as the law of X_T can be extrapolated, exp(y / alpha) outgrows it: the value may be infinite, and that on"
    " the box is of a reward that ends where the box does"
)
_STOPPED, _UNTOLD = ": the best so far", " before the error was estimated"
_INF = {"space": (math.inf, math.inf), "time": (math.inf, math.inf)}
_FURTHER = 1 / 3  # over log 1 / rtol: of the range of rewards at draws; quadratic ones take as many to leave it by
_FLAT, _SLOW = 16.0, 1000  # temperatures at least; steps, from which on drifts are tamed
_JUDGED = 2.0  # times as long as a run takes to be judged, if that has not been measured yet
_ROUNDING = 3e-13  # relative: the least error that is admitted


def solve_to_tolerance(
    problem: ControlProblem,
    rtol: float,
    form: str | None,
    box: Box | None,
    max_dofs: int | None,
    told: Progress,
    seed: int = 0,
    first: Progress | None = None,
) -> Solution:
    """Runs until the estimate meets the tolerance, or nothing more can be done, or `told` says that time is up.

    first : what the first run reports to, if that may take less time only: where it does not end, a looser one is made.
    """
    with threadpool_limits(1, user_api="blas"):  # matrices along axes are small: more threads wait for each other
        search = _Search(problem, rtol, form, box, max_dofs, seed, tell=told)
        try:
            return search.solution(*_best(search, form, told, first or told))
        except OutOfTimeError:
            if first is None:
                raise
        if (looser := min(max(_LOOSER * rtol, _LOOSE), _LOOSEST)) > rtol:
            with suppress(OutOfTimeError):
                told(0.0)  # out here nothing holds what was begun
                search = _Search(problem, looser, form, box, max_dofs, seed, None, (search.sample, search.ends), told)
                return search.solution(_best(search, form, told, told)[0], stopped=True)
        if search.unjudged is None:
            raise OutOfTimeError
        return search.solution(search.unjudged, stopped=True)


def solve_payoff(
    problem: ControlProblem,
    payoff: Payoff,
    rtol: float,
    box: Box | None,
    max_dofs: int | None,
    told: Progress,
    seed: int,
) -> tuple[Solution, float]:
    """The linear form for u = E[ payoff(X_T) exp(int r/alpha) ], of any sign, over the size of the payoff; and that.

    Errors are those of u and grad u under the law of the process; value and policy of what is returned mean nothing.
    """
    with threadpool_limits(1, user_api="blas"):
        search = _Search(problem, rtol, "linear", box, max_dofs, seed, payoff, tell=told)
        paid = np.abs(payoff(search.sample.x[-1]))
        size = float(paid.max())
        if not size > 0:
            raise ProblemError(f"what is paid is 0 at {paid.size} draws of X_T: there is nothing to be relative to")
        size *= math.sqrt(float(((paid / size) ** 2).mean()))
        search.payoff = lambda x: payoff(x) / size
        best, stopped = _best(search, "linear", told, told)
        return search.solution(best, stopped), size


def _best(search: "_Search", form: str | None, told: Progress, first: Progress) -> tuple["_Judged", bool]:
    """The run with the least error of those that were needed, or that could be made; whether time ended the search.

    first : what is told until there is one.
    """
    best: _Judged | None = None
    idle = 0  # rounds that did not help
    for k in range(_ROUNDS):
        try:
            part = part_of(first if best is None else told, k / _ROUNDS, (k + 0.7) / _ROUNDS)
            found = _found(search, form, part, best is None)
        except OutOfTimeError:
            if best is None:
                raise
            return best, True
        except ConvergenceError:
            if best is None:
                raise
            break
        found.run.forget()
        idle = 0 if best is None or found.error < best.error else idle + 1
        if best is None or not idle:
            best = found
        if found.error <= search.rtol or idle > 1 or not search.tightened(found):
            break
        del found  # as large as the best, which it may not be
    if best is None:
        raise ConvergenceError(f"no solution of {search.problem.name!r}")
    return best, False


def _found(search: "_Search", form: str | None, tell: Progress, first: bool) -> "_Judged":
    """A run; if there is none, one that is tamed; and if there was none before, one in the linear form."""
    try:
        return search.run(tell)
    except ConvergenceError as cause:
        failure = type(cause)(*cause.args)  # without the frames of what has failed, which may hold gigabytes
    if search.tameable:
        search.tame()
        try:
            return search.run(tell)
        except ConvergenceError as cause:
            failure = type(cause)(*cause.args)
    if form is not None or search.linear or not first:
        raise failure
    search.levels = None
    search.choose("linear")
    search.why = f"{search.why}; the value form failed: {failure}"
    return search.run(tell)


@final
@dataclass(frozen=True, eq=False)
class _Judged:
    run: Run
    parts: Parts
    controlled: Steered | None
    tolerances: Tolerances
    most: float  # the speed up to which drifts are as they are
    outpaced: float  # the fraction of paths under control that meet faster ones

    @property
    def error(self) -> float:
        """The larger of the totals of value and policy."""
        return max(sum(part[i] for part in self.parts.values()) for i in range(2))


@final
class _Search:
    """What is known of a problem, what was asked for last, and what to ask for next."""

    def __init__(
        self,
        problem: ControlProblem,
        rtol: float,
        form: str | None,
        box: Box | None,
        max_dofs: int | None,
        seed: int,
        payoff: Payoff | None = None,
        laws: Laws | None = None,
        tell: Progress = unheard,
    ) -> None:
        self.problem, self.rtol, self.seed, self.given, self.payoff = problem, rtol, seed, box, payoff
        kept = None if box is None else given_box(problem, box)
        self.sample, self.ends = laws_of(problem, seed, payoff is None, tell) if laws is None else laws
        self.mass = max(_MASS * rtol**2 * (1.0 if payoff is None else _PAID), 1e-22)
        self.reaches = reaches_of(problem, self.sample, self.ends, self.mass, seed)
        tell(0.0)
        self.controlled: Steered | None = None
        self.most = MAX_DOFS[problem.dim] if max_dofs is None else max_dofs
        self.box = box_of(problem, self.reaches, self.mass) if kept is None else kept
        self.rough = jumps_in_space(problem, self.sample, seed)
        self.choose(form)
        some = self.sample.x[[0, len(self.sample.x) // 2, -1], :8].reshape(-1, problem.dim)
        self.jumps = tuple(self.coefficients.jumps(some))
        self.tolerances = asked(problem.dim, rtol, self.most)
        self.count = self.runs = 0
        self.cost: Cost | None = None  # of the last run
        self.judged = _JUDGED  # times what the last run took
        self.levels: tuple[float, float] | None = None  # of a tamed value form
        self.calm = self.endless = False  # whether drifts are tamed; whether paths under the policy left box after box
        self.unjudged: _Judged | None = None  # what there is if time is over before it is judged

    def choose(self, form: str | None) -> None:
        """What is taken out, and the form."""
        if self.payoff is None:
            self.gauge, self.linear, self.why = choose_form(self.problem, self.box, form, self.rough)
        else:
            self.gauge, self.linear, self.why = self._mean_rate(), True, "what is paid has any sign"
        self.coefficients = Coefficients(self.problem, self.gauge, self.linear)

    def _mean_rate(self) -> Gauge:
        """The reward on the way in the middle of the law, so that u keeps its size."""
        problem, T = self.problem, self.problem.horizon
        rates = [problem.r(t, x).mean() for t, x in zip((self.sample.times).tolist(), self.sample.x, strict=True)]
        return Gauge(temperature=problem.temperature, horizon=T, terminal=0.0, running=float(np.mean(rates)))

    def run(self, tell: Progress) -> _Judged:
        self.unjudged = None
        run = self._held(tell)
        begun = time.perf_counter()
        outpaced = math.nan if self.controlled is None else self._outpaced_by(self.controlled)
        self.unjudged = found = _Judged(run, _INF, self.controlled, self.tolerances, self.coefficients.most, outpaced)
        judge = Judge(run, self.sample, self.controlled, tell)
        parts = judge.parts(self.coefficients, {name: share * self.rtol for name, share in _SHARES.items()})
        self.count += len(parts)
        if self.cost is not None:
            self.judged = (time.perf_counter() - begun) / self.cost.seconds
        followed = self.controlled
        if followed is not None and self._left_by(followed) and "truncation" in parts:
            lost = math.sqrt(followed.lost)  # where the box ends nothing is right; if it must end there, a check tells
            parts["truncation"] = (math.hypot(parts["truncation"][0], lost), math.hypot(parts["truncation"][1], lost))
        self.unjudged = None
        return replace(found, parts=parts)

    def _held(self, tell: Progress) -> Run:
        """A run with the box that holds paths under its policy, if a few larger ones do, which loose runs tell."""
        run = self._marched(self.tolerances, tell)
        steered_at_all = self.payoff is None and self.problem.dim > 1  # else no paths under a policy would tell
        if steered_at_all and not self.calm and run.counts["steps"] > _SLOW:
            self.calm = True  # stability decides, perhaps by drifts that nobody meets
            if math.isfinite(self._most(run.equation)):
                del run  # two of them need not exist
                run = self._marched(self.tolerances, tell)
        if self.controlled is not None or self.payoff is not None:
            return run
        self.controlled = steered(run, self.seed)
        left = self._left_by(self.controlled)
        if not left and self._outpaced_by(self.controlled) <= self.losable:
            return run
        loose = asked(self.problem.dim, max(self.rtol, _LOOSE), self.most)
        for _ in range(_LARGER if left else 0):
            self._follow(self.controlled)
            del run
            run = self._marched(loose, tell)
            self.controlled = steered(run, self.seed)
            if not self._left_by(self.controlled):
                break
        else:
            if left:  # the larger the box, the further rewards drive paths: there may be no finite value
                self.endless = True
                return run
        del run
        run = self._marched(self.tolerances, tell)
        self.controlled = steered(run, self.seed)
        return run

    def _left_by(self, followed: Steered | None) -> bool:
        """Whether too many paths leave a box that may be larger."""
        return followed is not None and followed.lost > self.losable and self.movable

    def _outpaced_by(self, followed: Steered | None) -> float:
        """The fraction of paths that meet drifts which are tamed."""
        c = self.coefficients
        return share_above(self.problem, c.metric, c.most, followed.times, followed.x) if followed is not None else 0.0

    def _follow(self, followed: Steered | None) -> None:
        """Let the box hold the paths, too."""
        if followed is not None:
            self.reaches += (reach_of(followed.x[:: len(followed.x) // 8]),)
        self.box = box_of(self.problem, self.reaches, self.mass)

    def _marched(self, tolerances: Tolerances, tell: Progress) -> Run:
        where = self.box, truncated(self.problem), self.reaches, self.jumps, _FLOOR * self.rtol
        equation = Equation(self.problem, self.gauge, self.linear, *where, self.levels, self.payoff, rough=self.rough)
        self.coefficients.metric, self.coefficients.most = equation.metric, self._most(equation)
        self.count += 1
        self.runs += 1
        marcher = Marcher(equation, self.coefficients, tolerances, tell)
        begun = time.perf_counter()
        grid = marcher.first_grid()
        announce(f"{self.problem.name}: run {self.runs}", self.cost, 1.0 + self.judged, grid.shape, tolerances)
        run = marcher.run(grid)
        self.cost = Cost(grid.size, tolerances, max(time.perf_counter() - begun, 1e-9))
        return run

    def _most(self, equation: Equation) -> float:
        """The speed up to which drifts are as they are."""
        if not self.calm:
            return math.inf
        followed = [] if self.controlled is None else [(self.controlled.times, self.controlled.x)]
        laws = self.sample, self.ends, followed
        return most_of(self.problem, equation.metric, *laws, self.box, self.jumps, self.mass)

    @property
    def tameable(self) -> bool:
        """Whether guarded faces and rewards that are flattened where no path ends are something else."""
        if self.levels is not None or self.linear or self.box.absorbing:
            return False
        return bool(truncated(self.problem).any())

    def tame(self) -> None:
        """Flatten what is left of the terminal reward far beyond all draws of X_T, and guard faces."""
        ends = [self.sample.x[-1], self.sample.paths[-1], *([] if self.ends is None else self.ends.x)]
        values = self._left(np.concatenate(ends))
        low, high = float(values.min()), float(values.max())
        by = max(_FURTHER * math.log(1.0 / self.rtol) * (high - low), _FLAT * self.problem.temperature)
        self.levels = low - by, high + by

    def _left(self, x: FloatArray) -> FloatArray:
        """What the background leaves of the terminal reward."""
        return np.asarray(self.problem.y(x) - self.gauge.guess(self.problem.horizon, x))

    @property
    def movable(self) -> bool:
        """Whether the box ends anywhere because it was chosen so here."""
        domain = self.problem.domain
        return self.given is None and (domain is None or not np.isfinite(np.stack(domain.bounds)).all())

    @property
    def losable(self) -> float:
        """The fraction of paths that may leave a box which leaves out no more than the tolerance allows."""
        return _LOST * self.problem.dim * max(_MASS * self.rtol**2, 1e-22)

    def tightened(self, found: _Judged) -> bool:
        """Ask for more where the parts exceed their shares; False if nothing more can be asked for."""
        if self.endless:
            return False
        if self.tameable and not math.isfinite(found.error):  # plans like it run away, and tell nothing
            self.tame()
            return True
        t, rtol = self.tolerances, self.rtol
        excess = {name: max(part) / (_SHARES[name] * rtol) for name, part in found.parts.items()}
        if max(excess.values()) <= 1:  # the parts are small enough, their sum is not
            excess[max(excess, key=lambda name: excess[name])] = found.error / rtol
        if not math.isfinite(excess["time"]):  # steps that are hardly stable say nothing of the rest
            excess = {"time": math.inf, "space": 0.0}
        changes: dict[str, Any] = {}
        if excess["time"] > 1:
            factor = max(0.5 / min(excess["time"], 1e9) ** 1.25, 1e-3)
            changes = {"time": max(t.time * factor, LEAST), "dense": t.dense * max(factor, 0.05)}
        if excess["space"] > 1:
            changes["space"] = t.space * float(np.clip(0.5 / excess["space"], 0.02, 0.5))
            changes["table"] = t.table * 0.3
        if changes:
            changes["guess"] = t.guess * 0.1
        if excess.get("truncation", 0.0) > 1 and self.movable and self.mass > 1e-30:
            self.mass *= float(np.clip(excess["truncation"] ** -3.0, 1e-8, 1e-2))
            lost = found.controlled is not None and found.controlled.lost > 0
            self._follow(found.controlled if lost else None)
            self.controlled = None if lost else self.controlled
        elif not changes:
            return False
        self.tolerances = replace(t, **changes)
        return True

    def solution(self, best: _Judged, stopped: bool = False) -> Solution:
        """What is handed out."""
        run, c = best.run, self.coefficients
        checks = self._checks(best)
        rounding = _ROUNDING * (1.0 + 0.1 * finest(run))
        value, policy = ({name: part[i] for name, part in best.parts.items()} for i in range(2))
        value["space"] += rounding
        policy["space"] += rounding
        stats = {
            "form": "linear" if self.linear else "value",
            "route": "esdirk" if self.box.absorbing else "lawson",
            "why": self.why,
            "gauge": self.why,
            "dofs": run.dofs,
            "shape": run.panels[0].grid.shape,
            "degree": self.tolerances.degree,
            "panels": len(run.panels),
            "jumps": self.jumps,
            "layer": run.layer,
            **run.counts,
            "solves": self.count,
            "calls": c.calls,
            "points": c.points,
            "seconds_in_callables": c.seconds,
            "paths_under_control": 0 if best.controlled is None else len(best.controlled.outside),
        }
        space, rows = run.space()
        return Solution(
            problem=self.problem,
            space=space,
            coefficients=rows,
            gauge=self.gauge if self.linear else ValueGauge(background=self.gauge),
            method="box",
            status=f"max_seconds were over{_UNTOLD if best is self.unjudged else _STOPPED}" if stopped else "ok",
            stats=stats,
            error_estimate=combine(value, policy),
            checks=checks,
        )

    def _checks(self, best: _Judged) -> tuple[Check, ...]:
        """Whether the box holds the process under control, whether f is positive, and whether the value is finite."""
        followed = best.controlled
        if self.payoff is not None:
            return ()  # nothing is steered, and u has any sign
        if followed is None:
            lost, told = math.nan, "no path could follow the policy: errors are those under the uncontrolled law alone"
        else:
            lost = followed.lost
            told = f"{lost:.2%} of {len(followed.outside)} paths under the policy leave the box"
        found = [Check(name="paths in the box", figure=lost, limit=self.losable, told=told)]
        found += drift_check(best.outpaced, best.most, self.losable)
        if self.linear:
            bad = best.run.nonpositive
            told = f"u is not positive at {bad} nodes of space and time"
            found.append(Check(name="positive", figure=float(bad), limit=0.0, told=told))
        found += layer_of(best.run)
        if (levels := best.run.equation.levels) is not None:
            found.append(self._flattened(*levels, followed))
        if self.ends is not None and self.ends.growing:
            found.append(Check(name="finite value", figure=math.inf, limit=0.0, told=_GROWING))
        return tuple(found)

    def _flattened(self, low: float, high: float, followed: Steered | None) -> Check:
        """Whether paths end where the terminal reward was flattened."""
        ends = [self.sample.x[-1]] if followed is None else [self.sample.x[-1], followed.x[-1]]
        lost = max(float(((values < low) | (values > high)).mean()) for values in map(self._left, ends))
        told = f"{lost:.2%} of paths end where what is left of the terminal reward is beyond {low:.3g} or {high:.3g}"
        return Check(name="terminal reward", figure=lost, limit=self.losable, told=told)
