"""The choice of a class and its weights by cross-validation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import skfem
from numpy.typing import NDArray

from fem_hjb.learning.estimators import ESTIMATORS, Estimator, doob, find_estimator
from fem_hjb.learning.folds import FOLDS, average, fold_sources
from fem_hjb.learning.matching import best_penalty, with_penalty
from fem_hjb.learning.smoothing import default_smoothing
from fem_hjb.learning.solve_system import TERMINALS, solve_watched
from fem_hjb.learning.system import Data, System, all_of_them, assemble_until
from fem_hjb.paths.extent import truncation_box
from fem_hjb.paths.sources import PathSource
from fem_hjb.problems.cells import mesh_kind
from fem_hjb.problems.gauge import Gauge, constant_gauge
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.meshes import refined_mesh
from fem_hjb.spaces.space import Space, spatial_basis
from fem_hjb.support.checks import FloatArray, one_of, require
from fem_hjb.support.errors import ConvergenceError, FemHjbError, MeasureError
from fem_hjb.support.objects import Plain
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, part_of, until

# By criterion the estimator whose form is the risk.
_JUDGE = {"residual": ESTIMATORS["residual"], "labels": ESTIMATORS["regression"]}
CRITERIA = tuple(_JUDGE)
_LADDER = {  # (time cells, cells per axis) of the classes tried by dimension
    1: ((2, 4), (3, 6), (4, 8), (6, 12), (8, 16), (12, 24)),
    2: ((2, 3), (2, 4), (3, 6), (4, 8), (6, 12)),
    3: ((2, 2), (2, 3), (3, 4)),
}
_ON_MESH = ((1, 0, 2), (1, 0, 4), (1, 1, 2), (2, 0, 2), (1, 1, 4), (1, 2, 4), (2, 1, 4), (2, 2, 6))
"""(degree, refinements, time cells) of the classes tried on the mesh of a domain."""
_QUANTILE = 1e-3  # of the samples beyond each face of the automatic box


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """A class, with the weights it is fitted with; smoothing None: the default of `fit`."""

    space: Space
    smoothing: float | None = None
    ridge: float = 0.0


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Selection(Plain):
    """What cross-validation found.

    best : the candidate chosen (the rule of one standard error: L. Breiman et al., Classification and Regression
        Trees, Wadsworth 1984, section 3.4.3).
    table : a dict per candidate: "dofs", "cells", "time_cells", "smoothing", "ridge", "risk" (mean over folds, by the
        first criterion, up to a constant common to all), "residual excess" and "labels excess" (over the lowest that is
        left) with their standard "error"s, "status" ("ok", or that of the first fit that is not), "chosen", "seconds".
    status : "ok", or that time was over and which of the candidates are in the table.

    Printed, it is that table.
    """

    best: Candidate
    table: tuple[dict[str, Any], ...]
    status: str = "ok"

    def __str__(self) -> str:
        names = [name for name in self.table[0] if name not in ("status", "chosen", "risk")]
        rows = [
            " ".join(f"{row[name]:>15.3g}" for name in names) + ("  *" if row["chosen"] else "   ") + row["status"][:40]
            for row in self.table
        ]
        return "\n".join(
            [
                " ".join(f"{name:>15}" for name in names) + "   status",
                *rows,
                "* chosen",
                *([] if self.status == "ok" else [self.status]),
            ]
        )


def cross_validate(
    problem: ControlProblem,
    data: Data,
    candidates: Sequence[Candidate],
    *,
    estimator: str | Estimator = "generator",
    criterion: str | None = None,
    folds: int = FOLDS,
    delta: float = 0.0,
    terminal: str = "penalty",
    progress: Progress | None = None,
    max_seconds: float | None = None,
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
    progress : called with the fraction of the work done, which never falls and ends at 1, after every chunk of the data
        and every fit; not while a callable of yours or a factorisation runs.
    max_seconds : when they are over, the candidates judged so far are compared, in the order they are given in, which
        the status says.

    Of the candidates left, the smallest one is chosen whose risk exceeds the lowest by no more than the standard error
    of that difference. Candidates whose system is unstable or ill-conditioned are left out, unless all are. Sets and
    methods play no role.

    All candidates must have the same bounding box, outside which samples are dropped, and are fitted in one gauge.

    Raises MeasureError for data without trajectories, fewer trajectories than folds, candidates on different boxes,
    criterion "residual" with a class that is not C1; ConvergenceError if no candidate can be fitted, or none
    was judged within max_seconds.
    """
    watch = until(checked_progress(progress), checked_seconds(max_seconds))
    found: list[_Judged] = []
    status = "ok"
    try:
        for judged in _each_judged(problem, data, candidates, estimator, criterion, folds, delta, terminal, watch):
            found.append(judged)
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        if not found:
            raise ConvergenceError(
                f"cross_validate({problem.name!r}): no candidate was judged within max_seconds={max_seconds:g}; give it"
                " more time, fewer paths or folds, or a smaller first candidate"
            ) from None
        status = f"max_seconds were over: the first {len(found)} of {len(candidates)} candidates are compared"
    watch.finished()
    return _selected(candidates, found, status)


def validated(
    problem: ControlProblem,
    data: Data,
    candidates: Sequence[Candidate],
    estimator: str | Estimator,
    criterion: str | None,
    folds: int,
    delta: float,
    terminal: str,
    tell: Progress,
) -> Selection:
    """`cross_validate`, where what `tell` raises stops the work and comes out."""
    found = _each_judged(problem, data, candidates, estimator, criterion, folds, delta, terminal, tell)
    return _selected(candidates, list(found), "ok")


class _Judged(NamedTuple):
    """A row of the table, and risks (criteria, folds)."""

    row: dict[str, Any]
    risks: FloatArray
    criteria: Sequence[str]


def _each_judged(
    problem: ControlProblem,
    data: Data,
    candidates: Sequence[Candidate],
    estimator: str | Estimator,
    criterion: str | None,
    folds: int,
    delta: float,
    terminal: str,
    tell: Progress,
) -> Iterator[_Judged]:
    """The candidates one after the other; what `tell` raises comes out."""
    require_problem(problem, "cross_validate")
    _check_candidates(candidates, problem)
    row, parts = find_estimator(estimator), fold_sources(data, folds)
    smooth = all(candidate.space.smoothness for candidate in candidates)
    one_of(terminal, "terminal", TERMINALS, MeasureError)
    if criterion is not None:
        one_of(criterion, "criterion", CRITERIA, MeasureError)
    criteria = (criterion,) if criterion else CRITERIA if smooth else ("labels",)
    largest = max(candidates, key=lambda candidate: candidate.space.n_dofs).space
    constants = constant_gauge(problem, largest.spatial.nodes, largest.time.nodes)
    for k, candidate in enumerate(candidates):
        started = time.perf_counter()
        told = part_of(tell, k / len(candidates), (k + 1) / len(candidates))
        try:
            risks, status = _risks(problem, parts, candidate, constants, row, criteria, delta, terminal, told)
        except FemHjbError as cause:  # too large for the data, say; the others may do
            risks, status = np.full((len(criteria), len(parts)), np.inf), str(cause)
        line = {
            **_described(candidate, row),
            "risk": float(risks[0].mean()),
            "status": status,
            "seconds": time.perf_counter() - started,
        }
        yield _Judged(line, risks, criteria)


def _selected(candidates: Sequence[Candidate], found: Sequence[_Judged], status: str) -> Selection:
    """The choice among the first candidates, which were judged."""
    table = [judged.row for judged in found]
    best = _chosen(table, found[0].criteria, np.stack([judged.risks for judged in found], axis=1))
    rows = tuple({**line, "chosen": k == best} for k, line in enumerate(table))
    return Selection(best=candidates[best], table=rows, status=status)


def _described(candidate: Candidate, estimator: Estimator) -> dict[str, Any]:
    space, smoothing = candidate.space, candidate.smoothing
    return {
        "dofs": space.n_dofs,
        "cells": space.spatial.n_cells,
        "time_cells": space.time.n_cells,
        "smoothing": float(default_smoothing(estimator, space) if smoothing is None else smoothing),
        "ridge": float(candidate.ridge),
    }


def _chosen(table: list[dict[str, Any]], criteria: Sequence[str], risks: FloatArray) -> int:
    """The number of the best candidate; what its risks (criteria, candidates, folds) say goes into the table."""
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
    return min(np.flatnonzero(allowed).tolist(), key=lambda k: int(table[k]["dofs"]))


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
    """Classes x quadratics in time of growing size, the larger ones with at most as many unknowns as there are paths.

    C1 cubics on a box, which holds all but 2 d thousandths of the paths; it is the problem's own if the process is
    reflected there. Where the domain is a mesh: linear and quadratic elements on it, and on it refined once or twice.
    """
    if problem.dim not in _LADDER:
        raise MeasureError(
            f"space='auto' is for one to three coordinates, the problem has dim={problem.dim}: give a Space, for "
            "instance Space.product of a time basis and a dictionary of features"
        )
    if isinstance(problem.domain, MeshDomain):
        spaces = _spaces_on_mesh(problem, problem.domain.mesh, n)
    else:
        box = truncation_box(problem, quantile=_QUANTILE, margin=0.0).box if problem.domain is None else None
        spaces = [Space(problem, cells=cells, time_cells=times, box=box) for times, cells in _LADDER[problem.dim]]
    allowed = [space for space in spaces if space.n_dofs <= n] or spaces[:1]
    return [Candidate(space=space, smoothing=smoothing, ridge=ridge) for space in allowed]


def _spaces_on_mesh(problem: ControlProblem, mesh: skfem.Mesh, n: int) -> list[Space]:
    """The classes on the mesh, and on refined ones as long as these have as many vertices as there are paths."""
    family = "P" if mesh_kind(mesh, curved=True) in ("line", "tri", "tet") else "Q"
    meshes = [mesh]
    while meshes[-1].nvertices <= n and len(meshes) <= max(row[1] for row in _ON_MESH):
        meshes.append(refined_mesh(meshes[-1]))
    bases = {
        (degree, refined): spatial_basis(meshes[refined], f"{family}{degree}")
        for degree, refined, _ in _ON_MESH
        if refined < len(meshes)
    }
    return [
        Space.product(LineBasis.uniform(problem.horizon, times, "P2"), bases[degree, refined])
        for degree, refined, times in _ON_MESH
        if refined < len(meshes)
    ]


def _check_candidates(candidates: Sequence[Candidate], problem: ControlProblem) -> None:
    if not isinstance(candidates, Sequence) or not candidates:
        raise MeasureError(f"cross_validate needs a sequence of candidates, at least one, got {candidates!r:.80}")
    for candidate in candidates:
        require(candidate, Candidate, "cross_validate", MeasureError)
    if isinstance(problem.domain, MeshDomain) and problem.domain.curved:
        return  # meshes that cover it have different boxes, which hold the control points of their edges
    boxes = [np.asarray(candidate.space.spatial.box.bounds) for candidate in candidates]
    for k, box in enumerate(boxes):
        if not np.array_equal(box, boxes[0]):
            raise MeasureError(
                f"the candidates must see the same samples, but number {k} has a box with corners {box.tolist()} and "
                f"the first {boxes[0].tolist()}; build all spaces with one box="
            )


def _risks(
    problem: ControlProblem,
    parts: Sequence[PathSource],
    candidate: Candidate,
    constants: Gauge,
    estimator: Estimator,
    criteria: Sequence[str],
    delta: float,
    terminal: str,
    tell: Progress,
) -> tuple[FloatArray, str]:
    """The risks (criteria, folds) of the fits to all other folds, each without the constant that is common to all
    candidates; and the first status of these fits that is not "ok"."""

    def alive(done: int, count: int) -> bool:
        tell(0.0)
        return all_of_them(done, count)

    def systems(row: Estimator, weight: float) -> list[System]:
        return [
            assemble_until(problem, part, candidate.space, row, weight, "drop", None, constants, alive)
            for part in parts
        ]

    weights = np.array([part.n for part in parts], dtype=np.float64)
    if estimator.gradient_penalty is None:
        all_penalties = systems(doob(1.0), delta)
        chosen = best_penalty(
            all_penalties, weights, candidate.smoothing, candidate.ridge, terminal, lambda _: tell(0.0)
        )
        learning = [with_penalty(system, chosen.gradient_penalty or 0.0) for system in all_penalties]
    else:
        learning = systems(estimator, delta)
    judging = [learning if estimator == _JUDGE[name] and not delta else systems(_JUDGE[name], 0.0) for name in criteria]
    risks, status = np.empty((len(criteria), len(parts))), "ok"
    for k in range(len(parts)):
        tell(0.5 * (1 + k / len(parts)))
        kept = np.arange(len(parts)) != k
        training = average([learning[j] for j in np.flatnonzero(kept)], weights[kept] / weights[kept].sum())
        solution = solve_watched(
            training, terminal=terminal, smoothing=candidate.smoothing, ridge=candidate.ridge, tell=lambda _: tell(0.0)
        )
        status = solution.status if status == "ok" else status
        c = np.asarray(solution.coefficients).ravel()
        risks[:, k] = [c @ (held_out[k].form @ c) - 2.0 * held_out[k].load @ c for held_out in judging]
    return risks, status
