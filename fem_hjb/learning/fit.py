"""Learning f from trajectories: `fit`, and the choice of a class and its weights by cross-validation."""

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fem_hjb.learning.constraints import Constraint
from fem_hjb.learning.smoothing import default_smoothing
from fem_hjb.learning.solve_system import METHODS, TERMINALS, solve_system
from fem_hjb.learning.system import Data, System, assemble
from fem_hjb.paths.extent import truncation_box
from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import PathSource, array_source
from fem_hjb.problems.gauge import Gauge, constant_gauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, one_of, positive_integer
from fem_hjb.support.errors import ConvergenceError, FemHjbError, MeasureError

CRITERIA = ("residual", "labels")

_JUDGE = {"residual": "residual", "labels": "regression"}  # estimators whose forms are the risks
_LADDER = {  # (time cells, cells per axis) of the classes tried by dimension
    1: ((2, 4), (3, 6), (4, 8), (6, 12), (8, 16), (12, 24)),
    2: ((2, 3), (2, 4), (3, 6), (4, 8), (6, 12)),
    3: ((2, 2), (2, 3), (3, 4)),
}
_QUANTILE = 1e-3  # of the samples beyond each face of the automatic box


def fit(
    problem: ControlProblem,
    data: Data,
    space: Space | str,
    *,
    estimator: str = "generator",
    method: str = "direct",
    constraint: Constraint | None = None,
    terminal: str = "penalty",
    delta: float = 0.0,
    smoothing: float | None = None,
    ridge: float = 0.0,
    outside: str = "error",
    executor: Executor | None = None,
) -> Solution:
    r"""Learn f = exp(v/alpha) on a space-time class from trajectories; or, under a law, the population's solution.

    Solves B[f, g - f] >= l(g - f) for all g in a convex set of the class, expectations being taken under the data: with
    rho = (r - c_r)/alpha and tests h = g - delta d_t g

        B[f, g] = -int_0^T E[ (d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + rho f) h ] dt + E[ f_T g_T ],
        l(g)    = E[ exp((y - c_y)/alpha) g_T ],

    or what else the estimator makes of them.

    Parameters
    ----------
    data : `Paths`; a `PathSource` (`paths`: chunks of a file, or simulated again on every pass); or a `Measure`
        (`empirical_measure`, `law_measure`, `sampled_law_measure`).
    space : a `Space`; or "auto": `cross_validate` chooses among classes of growing size on a common box (see there),
        fitted without constraint, and the table of what was tried is `stats["tried"]`.
    estimator : one of `estimators.ESTIMATORS`, whose module has the formulas: "generator" and "residual", second
        derivatives at the samples (C1 classes: elements "hermite", "B2", ..., dictionaries); "weak", first derivatives
        and the score of the law; "corrected", increments of f along the paths less grad f' (dX - b dt); "increment",
        model-free; "regression", least squares of Feynman-Kac labels, the baseline.
    method : "direct", sparse factors (GMRES on incomplete ones for large classes; active sets where there is a
        constraint); "projected", the projected iteration of arXiv 2509.02528, whose steps are projections in the norm E
        and which contracts at a rate that does not depend on the mesh if delta > 0; "minimal-residual", the least
        |E^{-1}(B f - l)|_E in the set, which asks for no coercivity. See `inequality`.
    constraint : a convex set of functions, `Bounds(0, 1)`, `Monotone(axis)`, `Convex(axis)`, `EnergyBall(radius)`, or
        an intersection `a & b`; f is the gauged one, at most 1 where the gauge bounds the rewards. The result is in the
        set everywhere, not only at nodes or samples.
    terminal : "penalty", as above; "interpolated": f_T is the interpolant of exp((y - c_y)/alpha), and g_T = 0. The
        penalty asks for f_T in mean square only, which is more accurate for f in a coarse class, but leaves log f,
        hence policies near T, to chance where f_T is small: take "interpolated" where the policy matters.
    delta : weight of the Sobolev-weighted tests. Positive, B is bounded and not only coercive in the norm
        E[f, f] = int E[f^2 + |grad f|_Lambda^2 + delta (d_t f)^2] + terms at 0 and T (see `system.System`); terms at
        T which vanish at the solution are added. Not for the least-squares estimators "regression" and "residual".
    smoothing : in paths: on every space-time cell f is asked to be smooth with the weight of that many paths
        crossing it; smooth meaning a small time derivative and small second derivatives in space (first ones for
        elements that are not C1), in the coordinates of the cell. Where there are no samples, or too few to tell the
        cell's functions apart, this extends f from where they are; elsewhere it costs a bias of order 1/n, which a
        smaller value avoids where every cell is well visited. It vanishes under a law. None: 0.05 for the estimators
        that are exact at the solution, 0.3 for the others, ten times that on elements that are not C1, and 0 for
        dictionaries. 0: nothing is asked; coefficients that the samples do not determine, unseen or linearly dependent
        where they look, are set to 0 instead.
    ridge : adds ridge times the identity to the system scaled by the diagonal of the Gram matrix of values, hence
        is in units of each basis function's own mean square under the measure.
    outside : samples outside the class's domain are an "error", or "drop": left out of the sums and counted.
    executor : any concurrent.futures.Executor adds up the chunks of the data, with the same bits as without one.

    In time the method is Galerkin's with equal trial and test functions: of order about 2 with P1 and with P2, whose
    constant is smaller, of order 4 with P3. The gauge is taken from the nodes of the space, never from samples, so that
    coefficients of fits on one space can be subtracted. On a reflecting domain, the normal slopes of C1 classes are set
    to 0 at the faces, and "corrected" leaves increments uncorrected that start within 5 standard deviations of a step
    from a face, whose push is no martingale.

    `stats`: "samples", "dropped" (outside), "pinned" (how many coefficients the samples do not determine: they are
    set to 0, or smoothing outweighs what is seen of them), "pinned_dofs" (which), "nonpositive_mass" (the share of the
    samples, weighted, where f <= 0), "seconds", what was asked for, what the solver says ("iterations", "gamma",
    "predicted" and "contraction" per step, "converged"), "residual": the natural residual
    |f - P_F(f - E^{-1}(B f - l))|_E relative to |E^{-1} l|_E, a certificate of f however it was found, and the figures
    of the system, scaled to a unit diagonal, without its set: "condition" (estimate, 1-norm); "coercivity", the
    smallest eigenvalue of the symmetric part of B relative to E; "norm" of B; "stability", the smallest singular value;
    "best_contraction" of the projected iteration. For the exact process all are positive if r < c_r or delta > 0 (else
    functions of time alone that vanish at 0 and T cost nothing, and coercivity is 0); left-point sums over few steps
    per time cell alone can take coercivity to about -0.6 without harm, so that `status` judges by stability first.
    `status` is "ok", or says what is doubtful and what to do. With space="auto" also "tried".

    Raises
    ------
    SpaceError : estimator "generator" or "residual" on a class that is not C1.
    MeasureError : the data do not fit the problem or leave the domain, or the law lacks what the estimator needs.
    ConstraintError : the set is empty, or not one the class can have.
    ConvergenceError : the linear system cannot be solved, or the projected iteration has no step that contracts.
    """
    started = time.perf_counter()
    _check_numbers(smoothing=0.0 if smoothing is None else smoothing, ridge=ridge, delta=delta)
    one_of(method, "method", METHODS, MeasureError)
    one_of(terminal, "terminal", TERMINALS, MeasureError)
    if constraint is not None and not isinstance(constraint, Constraint):
        raise MeasureError(f"constraint must be a Constraint such as Bounds(0, 1), got {type(constraint).__name__}")
    tried = {}
    if isinstance(space, str):
        one_of(space, "space", ("auto",), MeasureError)
        candidates = automatic_candidates(problem, getattr(data, "n", 0), smoothing=smoothing, ridge=ridge)
        selection = cross_validate(problem, data, candidates, estimator=estimator, delta=delta, terminal=terminal)
        space, outside = selection.best.space, "drop"
        tried = {"tried": selection.table}
    system = assemble(problem, data, space, estimator=estimator, delta=delta, outside=outside, executor=executor)
    assembled = time.perf_counter()
    solution = solve_system(
        system, method=method, constraint=constraint, terminal=terminal, smoothing=smoothing, ridge=ridge
    )
    seconds = {"assembly": assembled - started, **solution.stats["seconds"]}
    return replace(solution, stats={**solution.stats, "outside": outside, "seconds": seconds, **tried})


def _check_numbers(**numbers: Any) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < np.inf:
            raise MeasureError(f"{name} must be a finite number >= 0, got {number!r}")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """A class, with the weights it is fitted with; smoothing None: the default of `fit`."""

    space: Space
    smoothing: float | None = None
    ridge: float = 0.0


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """What cross-validation found.

    best : the candidate chosen (the rule of one standard error: L. Breiman et al., Classification and Regression
        Trees, Wadsworth 1984, section 3.4.3).
    table : a dict per candidate: "dofs", "cells", "time_cells", "smoothing", "ridge", "risk" (mean over folds, by the
        first criterion, up to a constant common to all), "residual excess" and "labels excess" (over the lowest that is
        left) with their standard "error"s, "status" ("ok", or that of the first fit that is not), "chosen", "seconds".

    Printed, it is that table.
    """

    best: Candidate
    table: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        names = [name for name in self.table[0] if name not in ("status", "chosen", "risk")]
        rows = [
            " ".join(f"{row[name]:>15.3g}" for name in names) + ("  *" if row["chosen"] else "   ") + row["status"][:40]
            for row in self.table
        ]
        return "\n".join([" ".join(f"{name:>15}" for name in names) + "   status", *rows, "* chosen"])


def cross_validate(
    problem: ControlProblem,
    data: Data,
    candidates: Sequence[Candidate],
    *,
    estimator: str = "generator",
    criterion: str | None = None,
    folds: int = 5,
    delta: float = 0.0,
    terminal: str = "penalty",
) -> Selection:
    r"""Fit every candidate to all folds of the trajectories but one, and judge it on that one.

    criterion : "residual", int E[(d_t f + G f + rho f)^2] dt + E[(f_T - e^{y/alpha})^2] on the held-out fold, for C1
        classes: free of noise at the solution, so that it tells good fits apart; but where the drift is stiff it weighs
        second derivatives more than values. "labels", int E[(f - label)^2] dt + E[(f_T - e^{y/alpha})^2] with the
        Feynman-Kac labels of regression: the squared error of f itself up to a constant, in any class, but its noise
        hides small differences. None: both for C1 classes, the residual choosing among those candidates that the labels
        do not find worse than the best by more than two standard errors; labels alone for other classes. (The natural
        residual of a held-out inequality is no criterion: it is measured by the class itself, hence not the same for
        two classes.)
    folds : how many; neighbouring trajectories are in one fold.

    Of the candidates left, the smallest one is chosen whose risk exceeds the lowest by no more than the standard error
    of that difference. Candidates whose system is unstable or ill-conditioned are left out, unless all are. Sets and
    methods play no role.

    All candidates must have the same bounding box, outside which samples are dropped, and are fitted in one gauge.

    Raises MeasureError for data without trajectories, fewer trajectories than folds, candidates on different boxes,
    criterion "residual" with a class that is not C1; ConvergenceError if no candidate can be fitted.
    """
    if isinstance(data, Paths):
        folds = positive_integer(folds, "folds", MeasureError)
        data = array_source(data, chunk=max(1, -(-data.n // folds)))
    parts = fold_sources(data, folds)
    _check_candidates(candidates)
    smooth = all(candidate.space.smoothness for candidate in candidates)
    if criterion is not None:
        one_of(criterion, "criterion", CRITERIA, MeasureError)
    criteria = (criterion,) if criterion else CRITERIA if smooth else ("labels",)
    largest = max(candidates, key=lambda candidate: candidate.space.n_dofs).space
    constants = constant_gauge(problem, largest.spatial.nodes, largest.time.nodes)
    table: list[dict[str, Any]] = []
    found: list[FloatArray] = []
    for candidate in candidates:
        started = time.perf_counter()
        try:
            risks, status = _risks(problem, parts, candidate, constants, estimator, criteria, delta, terminal)
        except FemHjbError as cause:  # too large for the data, say; the others may do
            risks, status = np.full((len(criteria), len(parts)), np.inf), str(cause)
        found.append(risks)
        space = candidate.space
        smoothing = default_smoothing(estimator, space) if candidate.smoothing is None else candidate.smoothing
        table.append(
            {
                "dofs": space.n_dofs,
                "cells": space.spatial.n_cells,
                "time_cells": space.time.n_cells,
                "smoothing": float(smoothing),
                "ridge": float(candidate.ridge),
                "risk": float(risks[0].mean()),
                "status": status,
                "seconds": time.perf_counter() - started,
            }
        )
    risks = np.stack(found, axis=1)  # (criteria, candidates, folds)
    fitted = np.asarray(np.isfinite(risks).all(axis=(0, 2)))
    if not fitted.any():
        raise ConvergenceError(f"none of {len(table)} candidates could be fitted; the last one: {table[-1]['status']}")
    shaky = np.array(
        ["unstable" in row["status"] or "ill-conditioned" in row["status"] for row in table], dtype=np.bool_
    )
    allowed: NDArray[np.bool_] = fitted & ~shaky
    if not allowed.any():
        allowed = fitted
    for name, values in list(zip(criteria, risks, strict=True))[::-1]:
        excess, error = _excess(values, allowed)
        for row, more, uncertain in zip(table, excess, error, strict=True):
            row.update({f"{name} excess": float(more), f"{name} error": float(uncertain)})
        allowed = allowed & (excess <= (error if name == criteria[0] else 2.0 * error))
    best = min(np.flatnonzero(allowed).tolist(), key=lambda k: table[k]["dofs"])
    for k, row in enumerate(table):
        row["chosen"] = k == best
    return Selection(best=candidates[best], table=tuple(table))


def _excess(risks: FloatArray, allowed: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """By how much the mean risk (candidates, folds) exceeds that of the best allowed one, and the standard error."""
    lowest = int(np.argmin(np.where(allowed, risks.mean(axis=1), np.inf)))
    finite = np.asarray(np.isfinite(risks).all(axis=1))
    difference = np.where(finite[:, None], risks, 0.0) - risks[lowest]
    error = np.std(difference, axis=1, ddof=1) / np.sqrt(risks.shape[1])
    return np.where(finite, difference.mean(axis=1), np.inf), np.where(finite, error, np.inf)


def automatic_candidates(
    problem: ControlProblem, n: int, *, smoothing: float | None = None, ridge: float = 0.0
) -> list[Candidate]:
    """C1 cubics x quadratics in time of growing size, the larger ones with at most as many unknowns as there are paths.

    The box holds all but 2 d thousandths of the paths; it is the problem's own if the process is reflected there.
    """
    if problem.dim not in _LADDER:
        raise MeasureError(
            f"space='auto' is for one to three coordinates, the problem has dim={problem.dim}: give a Space, for "
            "instance Space.product of a time basis and a dictionary of features"
        )
    box = truncation_box(problem, quantile=_QUANTILE, margin=0.0).box if problem.domain is None else None
    spaces = [Space(problem, cells=cells, time_cells=times, box=box) for times, cells in _LADDER[problem.dim]]
    allowed = [space for space in spaces if space.n_dofs <= n] or spaces[:1]
    return [Candidate(space=space, smoothing=smoothing, ridge=ridge) for space in allowed]


def _check_candidates(candidates: Sequence[Candidate]) -> None:
    if not candidates:
        raise MeasureError("cross_validate needs at least one candidate, got none")
    boxes = [np.asarray(candidate.space.spatial.box.bounds) for candidate in candidates]
    for k, box in enumerate(boxes):
        if not np.array_equal(box, boxes[0]):
            raise MeasureError(
                f"the candidates must see the same samples, but number {k} has a box with corners {box.tolist()} and "
                f"the first {boxes[0].tolist()}; build all spaces with one box="
            )


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Fold(PathSource):
    """Every `step`-th chunk of a source, from the `first` one on."""

    source: PathSource
    first: int
    step: int

    @property
    def chunk_count(self) -> int:
        return len(range(self.first, self.source.chunk_count, self.step))

    def chunk(self, i: int) -> Paths:
        return self.source.chunk(self.first + i * self.step)


def fold_sources(data: Data, folds: int) -> list[PathSource]:
    """The chunks of a source dealt out to folds."""
    folds = positive_integer(folds, "folds", MeasureError)
    if not isinstance(data, PathSource):
        raise MeasureError(
            "cross-validation (space='auto') needs trajectories, Paths or a PathSource, got"
            f" {type(data).__name__}: give a Space"
        )
    if folds < 2 or data.chunk_count < folds:
        raise MeasureError(
            f"{data.n} paths in {data.chunk_count} chunks cannot be dealt out to {folds} folds: at least 2 folds, each"
            " of at least one chunk"
        )
    sizes = [
        sum(data.rows(i).stop - data.rows(i).start for i in range(k, data.chunk_count, folds)) for k in range(folds)
    ]
    return [
        _Fold(n=n, dim=data.dim, t=data.t, chunk_size=data.chunk_size, source=data, first=k, step=folds)
        for k, n in enumerate(sizes)
    ]


def _risks(
    problem: ControlProblem,
    parts: Sequence[PathSource],
    candidate: Candidate,
    constants: Gauge,
    estimator: str,
    criteria: Sequence[str],
    delta: float,
    terminal: str,
) -> tuple[FloatArray, str]:
    """The risks (criteria, folds) of the fits to all other folds, each without the constant that is common to all
    candidates; and the first status of these fits that is not "ok"."""

    def systems(name: str, weight: float) -> list[System]:
        return [
            assemble(problem, part, candidate.space, estimator=name, delta=weight, outside="drop", constants=constants)
            for part in parts
        ]

    learning = systems(estimator, delta)
    judging = [learning if estimator == _JUDGE[name] and not delta else systems(_JUDGE[name], 0.0) for name in criteria]
    weights = np.array([part.n for part in parts], dtype=np.float64)
    risks, status = np.empty((len(criteria), len(parts))), "ok"
    for k in range(len(parts)):
        kept = np.arange(len(parts)) != k
        training = _average([learning[j] for j in np.flatnonzero(kept)], weights[kept] / weights[kept].sum())
        solution = solve_system(training, terminal=terminal, smoothing=candidate.smoothing, ridge=candidate.ridge)
        status = solution.status if status == "ok" else status
        c = np.asarray(solution.coefficients).ravel()
        risks[:, k] = [c @ (held_out[k].form @ c) - 2.0 * held_out[k].load @ c for held_out in judging]
    return risks, status


def _average(systems: Sequence[System], weights: FloatArray) -> System:
    """The system of all trajectories of several, weights being their shares."""
    terms = list(zip(weights.tolist(), systems, strict=True))
    return replace(
        systems[0],
        form=sum(w * s.form for w, s in terms),
        mass=sum(w * s.mass for w, s in terms),
        energy=sum(w * s.energy for w, s in terms),
        load=np.sum([w * s.load for w, s in terms], axis=0),
        paths=sum(s.paths for s in systems),
        samples=sum(s.samples for s in systems),
        dropped=sum(s.dropped for s in systems),
    )
