r"""How wrong a run is: its plan followed again with one thing changed, and the differences under two laws.

Followed again are: steps twice as long (whose error is about 16 times that of the run's own steps, or less where
functions are not smooth, which steps four times as long tell), and with these longer steps, which cost half as much,
elements of fewer degrees and a wider box, or a narrower one. What the runs differ by at draws of X_t, uncontrolled and
optimally controlled, relative to the largest norms over time, is the error. Draws are shared out among the points of a
tensor grid, on which functions are cheap to evaluate.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import get_ident
from typing import TypedDict, final

import numpy as np

from fem_hjb.paths.extent import LawSample
from fem_hjb.reference.box_coefficients import Coefficients
from fem_hjb.reference.box_grading import narrowed, stretched, widened
from fem_hjb.reference.box_moments import Places, at_edges, between, looked_at, places_of
from fem_hjb.reference.box_panel import Equation
from fem_hjb.reference.box_paths import Steered, logarithms
from fem_hjb.reference.box_plans import plans
from fem_hjb.reference.box_run import PanelRun, Run
from fem_hjb.reference.box_single import ROUNDED, rounding
from fem_hjb.reference.box_sizes import FAINTEST
from fem_hjb.reference.box_steps import End, Plans, Steps, Work, cut, followed_by, itself, joined, made, merged
from fem_hjb.spaces.axes import apply_axis
from fem_hjb.stepping.adaptive import ORDER_GAIN, error_share
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress
from fem_hjb.support.threads import Job, beside, shared_out

LESS = {1: 2, 2: 2, 3: 1}  # degrees
_FROM_SHORTER = 1.1  # what half the steps change, to what they are wrong by
_NEAR_T = (0.0, 0.0003, 0.001, 0.003, 0.015, 0.04)  # of the time to go
_MOST_TIMES = {1: 48, 2: 40, 3: 24}
_RICHER, _LEAST_SHARE = 1.5, 0.2  # times what more degrees change; of what fewer degrees tell
_RICHER_ALONE = 3.0  # times what more degrees change, where fewer tell nothing as they fail
_CUT = (1, 2, 4)  # parts of a step, that are tried with them
# The box that is looked at first. A narrower one changes more than one as much wider; in space, where cells are as wide
# as can be, those that are stretched would resolve so much less that this is what is seen.
_OTHER = {1: stretched, 2: stretched, 3: narrowed}
_DOUBT = 1.3  # of what these degrees are worth
_LEAST_GAIN = {1: 0.3, 2: 0.25, 3: 0.3}  # nothing promised beyond is kept where coefficients are not resolved
_ROUGH_GAIN = 0.4  # the same where T is not resolved: where a jump is, a grid knows to the first order only
_AT_FIRST = 0.1  # of the work of a run, after which richer elements are not followed to see what these are worth
_FLAT = 1e-3  # of u, over the width of the box: a gradient of what has any sign below is none
_EARLIER = 0.05  # of the horizon, where T is not resolved: norms are compared with those up to here at least
_AFTER = 1e-9  # of the time to go at which a layer ends
_NOTHING = 1e-10  # temperatures: a value below is none

Parts = dict[str, tuple[float, float]]
Follow = Callable[..., "Plans"]
Rows = list[tuple[FloatArray, FloatArray]]


class _How(TypedDict):
    """What all plans that are followed again have in common."""

    tell: Progress
    single: bool
    looked: FloatArray


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """What is kept of a run: v - v0 and its gradient at the places; what is not resolved of the gradient, if asked."""

    rows: Rows
    tails: float

    @property
    def failed(self) -> bool:
        """Whether the run has left double precision."""
        return not self.rows


@final
class Judge:
    """Where runs are compared: times, and at each draws under P, and under P* if paths could follow the policy."""

    def __init__(
        self, run: Run, sample: LawSample, controlled: Steered | None, tell: Progress = lambda _: None
    ) -> None:
        self.run, self.equation, own = run, run.equation, get_ident()
        self.tell: Progress = lambda part: tell(part) if get_ident() == own else None
        problem = run.equation.problem
        T = problem.horizon
        some = np.sort(np.concatenate([looked_at(panel, bool(self.equation.absorbing.any())) for panel in run.panels]))
        most = _MOST_TIMES[problem.dim] - len(_NEAR_T)
        if some.size > most:
            some = some[np.linspace(0, some.size - 1, most).astype(int)]
        narrow = bool(run.layer) or self.equation.rough  # there are fronts or kinks
        some = np.append(some, between(run.panels, most - some.size))
        times = np.unique(np.concatenate([T * np.array(_NEAR_T), some, [T]]))
        if run.layer:
            times = np.append(min(run.layer * (1 + _AFTER), T), times[times > run.layer * (1 + _AFTER)])
        bounds = run.equation.box.bounds
        self.places = []
        for s in times.tolist():
            draws = [sample.at(T - s)]
            if controlled is not None:
                draws.append(controlled.nearest(T - s))
            self.places.append(places_of(problem, s, draws, bounds, at_edges(run.panels, s) if narrow else ()))
        self.own = self.seen(run.panels)
        if self.own.failed:
            raise ConvergenceError(f"values of {problem.name!r} left double precision in a run; give a smaller box=")
        whole = [self._whole(place, *row) for place, row in zip(self.places, self.own.rows, strict=True)]
        sizes, to_go = self._norms(whole), np.array([place.s for place in self.places])
        at_least = np.minimum(to_go, _EARLIER * T) if run.layer else np.zeros(len(to_go))
        self.sizes = np.stack([sizes[to_go >= s].max(axis=0) for s in at_least.tolist()])

    def seen(self, panels: Iterable[PanelRun], resolved: bool = True) -> Seen:
        """Look at a run, of which one panel at a time need exist, and at what it resolves, if that is asked for."""
        look = _Look(self, resolved)
        for panel in panels:
            if not look.at(panel):
                break
            del panel  # as large as what comes next
        return look.seen

    def _seen(self, plan: Plans) -> Seen:
        return self.seen(made(plan), resolved=False)

    def several(self, *runs: tuple[Plans, bool]) -> list[Callable[[], Seen]]:
        """The same of several runs: each when it is called, or, if there are threads, beside each other and now.

        Panels are prepared in one's own thread, where the user's callables are called, and made in all of them.
        """
        if not shared_out() or self.equation.absorbing.any():
            return [partial(self.seen, made(plan), resolved) for plan, resolved in runs]
        looks = [_Look(self, resolved) for _, resolved in runs]
        beside([look.along(plan) for look, (plan, _) in zip(looks, runs, strict=True)])
        return [partial(itself, look.seen) for look in looks]

    def _whole(self, place: Places, w: FloatArray, slopes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What was taken out put back; factors of u stay out."""
        if self.equation.payoff is not None:
            return w, slopes
        gauge, x, t = self.equation.gauge, place.nodes, self.equation.problem.horizon - place.s
        return w + gauge.guess(t, x).reshape(w.shape), slopes + gauge.guess_gradient(t, x).reshape(slopes.shape)

    def _norms(self, rows: Rows) -> FloatArray:
        """The norms of value and policy at each time and under each law, (k, laws, 2); nan left out."""
        found = np.zeros((len(self.places), max(len(place.weights) for place in self.places), 2))
        for row, place, (v, g) in zip(found, self.places, rows, strict=True):
            value, gradient = v.ravel(), g.reshape(v.size, -1)
            known, finite = np.isfinite(value), np.isfinite(gradient)
            known = known if finite.all() else known & finite.all(axis=1)
            if not known.all():
                value, gradient = np.where(known, value, 0.0), np.where(known[:, None], gradient, 0.0)
            Lambda = place.Lambda if place.Lambda.ndim == 2 else place.Lambda.reshape(v.size, *place.Lambda.shape[-2:])
            pushed = gradient @ Lambda if Lambda.ndim == 2 else np.einsum("ni,nij->nj", gradient, Lambda)
            squares = value**2, np.maximum(np.einsum("ni,ni->n", pushed, gradient), 0.0)
            for law, weights in enumerate(each.ravel() for each in place.weights):
                mass = max(float(weights[known].sum()), 1e-300)
                row[law] = [math.sqrt(float(weights @ square) / mass) for square in squares]
        return found

    def difference(self, one: Seen, other: Seen) -> tuple[float, float]:
        """Relative differences of value and policy, the larger of those under P and P*; inf for a run that failed.

        Relative to the largest norm over time; where T is not resolved norms are as large as the layer is thin, and a
        difference is relative to the largest of its time and before, or up to a twentieth of the horizon before T.
        """
        if one.failed or other.failed:
            return math.inf, math.inf
        lost = self._lost(self._gaps(one, other))
        value, policy = self._changes(one, other).max(axis=0).tolist()
        return math.hypot(value, lost), math.hypot(policy, lost)

    @staticmethod
    def _gaps(one: Seen, other: Seen) -> Rows:
        return [(a[0] - b[0], a[1] - b[1]) for a, b in zip(one.rows, other.rows, strict=True)]

    def _changes(self, one: Seen, other: Seen) -> FloatArray:
        """(k, 2): the relative differences of value and policy at each time."""
        width = float((np.ptp(np.stack(self.equation.box.bounds), axis=0) / self.equation.metric).max())
        if self.equation.payoff is None:
            flat = FAINTEST if self.equation.linear else _NOTHING
            floor = self.equation.problem.temperature * np.array([_NOTHING, flat / width])
        else:
            floor = float(self.sizes[..., 0].max()) * np.array([_NOTHING, _FLAT / width])
        return np.asarray((self._norms(self._gaps(one, other)) / np.maximum(self.sizes, floor)).max(axis=1))

    def _lost(self, rows: Rows) -> float:
        """The root of the most mass, over times and laws, where one of two runs has no logarithm: all wrong."""
        return math.sqrt(
            max(float(w[~np.isfinite(v)].sum()) for p, (v, _) in zip(self.places, rows, strict=True) for w in p.weights)
        )

    def parts(self, coefficients: Coefficients, enough: Mapping[str, float]) -> Parts:
        """The parts of the error, (value, policy) each.

        enough : what makes no trouble, of each. Steps twice as long may be less stable on a poorer grid, which is no
        error of the run's: a part of space that exceeds this is measured again with the run's own steps.
        """
        single = rounding(self.run, self.sizes.max(axis=(0, 1))) < ROUNDED * min(enough.values())
        how: _How = {"tell": self.tell, "single": single, "looked": np.array([place.s for place in self.places])}
        follow = wide = partial(plans, self.run, coefficients, **how)
        less = LESS[self.equation.problem.dim]
        if tamed := math.isfinite(coefficients.most):  # what that changes counts as part of what a larger box does
            slower = coefficients.slower()
            wide = partial(plans, self.run, slower, anew=True, **how)
        outwards = tamed or bool(self.equation.truncated.any())

        def others(steps: Steps) -> list[tuple[Plans, bool]]:
            runs = [] if self.run.layer else [(self._first(coefficients, steps, less, how), False)]
            return runs + ([(wide(steps, wider=_OTHER[self.equation.problem.dim]), False)] if outwards else [])

        # Exponentials serve steps of few lengths only; implicit steps may be of any.
        longer: Steps = joined if self.equation.absorbing.any() else merged
        looks = self.several((follow(longer), False), (follow(longer, less=less), True), *others(longer))
        found, base, steps = self._coarser(follow, longer, looks[:2], enough)
        looks = looks[2:] if steps is longer else self.several(*others(steps))
        if not self.run.layer:
            early, space = self._at_first(base, looks[0]()), found["space"]
            found["space"] = max(space[0], early[0]), max(space[1], early[1])
        if max(found["space"]) > enough["space"]:
            richer = self._richer(follow, less)
            told = [
                max(_RICHER * a, _LEAST_SHARE * b) if math.isfinite(b) else _RICHER_ALONE * a
                for a, b in zip(richer, found["space"], strict=True)
            ]
            found["space"] = min(found["space"], (told[0], told[1]), key=max)
        if outwards:
            found["truncation"] = self.difference(base, looks[-1]())
            if max(found["truncation"]) > enough["truncation"]:
                found["truncation"] = min(
                    found["truncation"], self._truncation(base, wide, steps, enough["truncation"]), key=max
                )
        if tamed:
            coefficients.spent(slower)
        return found

    def _richer(self, follow: Follow, less: int) -> tuple[float, float]:
        """What more degrees change, in steps that are stable."""
        found = (self._seen(follow(cut(parts), less=-less)) for parts in _CUT)
        return self.difference(self.own, next((seen for seen in found if not seen.failed), Seen([], math.inf)))

    def _coarser(
        self, follow: Follow, steps: Steps, looks: Sequence[Callable[[], Seen]], enough: Mapping[str, float]
    ) -> tuple[Parts, Seen, Steps]:
        """What longer steps and fewer degrees tell; the run with longer steps, or the own one; and which steps."""
        less, gain = LESS[self.equation.problem.dim], (1.0 / ORDER_GAIN, 1.0 / ORDER_GAIN)
        longer, poorer = looks
        base = other = longer()
        if other.failed:  # steps as they are are the longest that are stable: see what shorter ones change
            other, steps, base = self._seen(follow(cut(2))), cut(1), self.own
            gain = _FROM_SHORTER, _FROM_SHORTER
            poorer = partial(self.seen, made(follow(steps, less=less)))
        changed = self.difference(self.own, other)
        if base is not self.own and max(changed) > enough["time"]:
            longest = self._seen(follow(lambda lengths: steps(np.array(steps(lengths)))))
            if not longest.failed:
                two, four = (self._changes(self.own, seen).T for seen in (other, longest))
                gain = error_share(two[0], four[0]), error_share(two[1], four[1])
        value, policy = (a * b + self.run.misfit for a, b in zip(gain, changed, strict=True))
        found: Parts = {"time": (value, policy)}
        found["space"] = self._space(base, poorer())
        if max(found["space"]) > enough["space"] and base is not self.own:
            again = self._space(self.own, self.seen(made(follow(cut(1), less=less))))
            found["space"] = min(found["space"], again, key=max)
        return found, base, steps

    def _first(self, coefficients: Coefficients, steps: Steps, less: int, how: _How) -> Plans:
        """With more degrees, before a tenth of the work is done."""
        work = np.cumsum([panel.plan.size * panel.grid.size for panel in self.run.panels])
        begun = self.run.panels[: int((work <= _AT_FIRST * work[-1]).sum())]
        return plans(replace(self.run, panels=begun), coefficients, steps, less=-less, **how)

    def _at_first(self, base: Seen, first: Seen) -> tuple[float, float]:
        """What more degrees change before a tenth of the work is done: next to T functions are steepest, panels short,
        and what their highest powers promise is not always kept.
        """
        if first.failed:  # they may not be stable where those of the run are, or there is no such panel
            return 0.0, 0.0
        return self.difference(base, Seen([*first.rows, *base.rows[len(first.rows) :]], first.tails))

    def _truncation(self, base: Seen, follow: Follow, steps: Steps, enough: float) -> tuple[float, float]:
        """Of a box with more cells beyond; where more happens than the steps can follow, they are cut.

        What a narrower box changes is more than that, and stable: it is looked at first where steps have to be cut.
        """
        wider = self._seen(follow(steps, wider=widened))
        if not wider.failed:
            return self.difference(base, wider)
        narrower = self.difference(self.own, self._seen(follow(cut(1), wider=narrowed)))
        for parts in (1, 2) if math.isfinite(max(narrower)) else (1, 2, 4, 8):
            if max(narrower) <= enough:
                break
            wider = self._seen(follow(cut(parts), wider=widened))
            if not wider.failed:
                return min(narrower, self.difference(self.own, wider), key=max)
        return narrower

    def _space(self, longer: Seen, poorer: Seen) -> tuple[float, float]:
        """Of elements of fewer degrees, times how much better those of the run are by what they do not resolve."""
        value, policy = self.difference(longer, poorer)
        if poorer.failed:
            return value, policy
        rough = self.run.layer and self.run.smoothed is None
        least = _ROUGH_GAIN if rough else _LEAST_GAIN[self.equation.problem.dim]
        better = float(np.clip(_DOUBT * self.own.tails / max(poorer.tails, 1e-300), least, 1.0))
        return better * value, better * policy


@final
class _Look:
    """A run as it is looked at, panel by panel."""

    def __init__(self, judge: Judge, resolved: bool) -> None:
        self.judge, self.resolved = judge, resolved
        self.seen = Seen([], 0.0)

    def along(self, plan: Plans) -> Job[End | None]:
        """What there is to be made of a plan, each panel looked at and let go of."""
        work = next(plan, None)
        while work is not None:
            end = yield partial(self._end, work)
            work = None if end is None else followed_by(plan, end)

    def _end(self, work: Work) -> End | None:
        """How a panel ends, if there is more to be looked at."""
        found = work()
        return (found.last.copy(), found.finite) if self.at(found) else None

    def at(self, panel: PanelRun) -> bool:
        """Whether there is more to be looked at."""
        judge, rows, tails = self.judge, self.seen.rows, self.seen.tails
        if not panel.finite:
            self.seen = Seen([], math.inf)
            return False
        end, last, places = panel.ends[-1], judge.run.panels[-1].ends[-1], judge.places
        judge.tell(1.0)
        while len(rows) < len(places) and (places[len(rows)].s <= end * (1 + 1e-12) or end == last):
            rows.append(on_places(judge.equation, panel, places[len(rows)]))
        self.seen = Seen(rows, max(tails, panel.tails if self.resolved and end > judge.run.layer else 0.0))
        return True


def on_places(equation: Equation, panel: PanelRun, place: Places) -> tuple[FloatArray, FloatArray]:
    """v - v0 (*shape) and its gradient (*shape, d) on a tensor grid; nan where there is no logarithm."""
    if len(place.axes) == 1:  # tables of all functions would take longer than all else
        u, slope = panel.grid.lines[0].combine_to(panel.at(place.s), place.axes[0], 1)
        return logarithms(equation, u, slope[:, None])
    parts: dict[tuple[int, ...], FloatArray] = {(): panel.at(place.s)}
    for k, (line, x) in enumerate(zip(panel.grid.lines, place.axes, strict=True)):
        rows = line.rows_to(x, 1)
        parts = {(*slot, m): apply_axis(rows[m], part, k) for slot, part in parts.items() for m in range(2 - sum(slot))}
    d = len(place.axes)
    unit = np.eye(d, dtype=np.int64).tolist()
    return logarithms(equation, parts[(0,) * d], np.stack([parts[tuple(e)] for e in unit], axis=-1))
