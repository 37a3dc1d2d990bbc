"""The choice of a class by what it is for: the error of the policy, as paths that follow it tell.

Candidates are learned from all the data, as asked for, sets included, one after the other; `witness` estimates the
error of each policy with the same noise, and the least estimate is taken, where one of a system that is in doubt counts
half as much again. Ladders of cells are climbed until two steps (three on a mesh)
in a row are no better than the best so far: there it is the data that is missing. On a box there are two of them, of
C1 cubics and of C2 cubic splines, which have half the functions per axis, or a quarter in a plane, on as many cells:
where samples are few for the cells that f asks for, above all with interpolated terminal values, they are the way.
Where nothing is to be simulated the choice is that of `cross_validate` among the C1 cubics, by held-out residuals and
labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np

from fem_hjb.learning.estimators import Estimator, find_estimator
from fem_hjb.learning.folds import FOLDS, as_source
from fem_hjb.learning.measures import Measure
from fem_hjb.learning.recipe import Recipe
from fem_hjb.learning.selection import Candidate, automatic_candidates, validated
from fem_hjb.learning.smoothing import is_dictionary
from fem_hjb.learning.system import Data, System
from fem_hjb.learning.witness import witness
from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import PathSource
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.dictionary import Dictionary, Envelope, Union
from fem_hjb.spaces.features import HermiteCross
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.spaces.tensor import HermiteBasis
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, FemHjbError, MeasureError, SpaceError
from fem_hjb.support.progress import OutOfTimeError, Progress, part_of

AUTO, DICTIONARY = "auto", "dictionary"
_ON_MESH = "corrected"
_CELLS = 3  # coordinates up to which there are cells
_PATIENCE = 2  # classes in a row that are no better, after which no larger ones are tried
_DOUBT = 1.5  # times the error: what is gained must outweigh a status that is not "ok"
_SPLINES = {  # (time cells, cells per axis) of the cubic splines tried by dimension
    1: ((4, 8), (6, 16), (8, 24)),
    2: ((4, 8), (6, 12), (8, 14), (10, 18)),
    3: ((2, 4), (3, 6), (4, 8)),
}
_TIMES = (2, 4)  # cells in time of dictionaries
_DEGREES = (2, 3)  # of polynomials
_PILOT = 1 << 16  # samples from which the law of a dictionary and its envelope are taken
_RIDGE = 1e-6  # of the fit of the envelope, in mean squares of its functions


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Choice:
    """A class, a row for each that was tried, and the status: "ok", or that time was over before all were.

    learned : the solution in it and its system, where it was chosen by them.
    """

    space: Space
    tried: tuple[dict[str, Any], ...]
    status: str = "ok"
    learned: tuple[Solution, System] | None = None


def chosen(
    recipe: Recipe,
    data: Data,
    asked: str,
    follow: bool,
    accept: float,
    seed: int,
    tell: Progress,
    seconds: Callable[[], float | None],
) -> Choice:
    """The class for a recipe. asked : "auto" or "dictionary".  follow : whether paths may be simulated.

    seconds : () -> those that are left, or None.
    """
    problem = recipe.problem
    if isinstance(data, Measure):
        raise MeasureError(f"space={asked!r} needs trajectories, Paths or a PathSource, got Measure: give a Space")
    if asked == DICTIONARY or problem.dim > _CELLS:
        candidates = [
            Candidate(space=space, smoothing=recipe.smoothing, ridge=recipe.ridge)
            for space in dictionaries(problem, data)
        ]
    else:
        candidates = automatic_candidates(problem, data.n, smoothing=recipe.smoothing, ridge=recipe.ridge)
    if not follow:
        found = validated(problem, data, candidates, recipe.estimator, None, FOLDS, recipe.delta, recipe.terminal, tell)
        return Choice(space=found.best.space, tried=tuple(map(_named, found.table, candidates)))
    spaces = [one.space for one in candidates]
    patience = _PATIENCE + isinstance(problem.domain, MeshDomain)  # where linear and quadratic elements take turns
    if is_dictionary(spaces[0]):
        patience = len(spaces)
    ladders = [spaces, _splines(problem, spaces[0], data.n)]
    return _followed(recipe, data, ladders, patience, accept, seed, tell, seconds)


def _named(row: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    return {"element": candidate.space.spatial.element, **row}


def _splines(problem: ControlProblem, first: Space, n: int) -> list[Space]:
    """C2 cubic splines on the box of the C1 cubics, those with no more unknowns than there are paths."""
    if not isinstance(first.spatial, HermiteBasis):
        return []
    box = None if problem.domain is not None else first.spatial.box
    how: dict[str, Any] = {"box": box, "element": "B3"}
    ladder = _SPLINES[problem.dim]
    spaces = (Space(problem, cells=cells, time_cells=times, **how) for times, cells in ladder)
    return [space for space in spaces if space.n_dofs <= n]


def on_mesh(estimator: str | Estimator | None) -> str | Estimator:
    """The estimator on the mesh of a domain, where classes are only continuous. SpaceError for one that needs more."""
    found = find_estimator(_ON_MESH if estimator is None else estimator)
    if found.smoothness:
        raise SpaceError(
            f"space='auto' on the mesh of a domain tries classes that are only continuous, and estimator {found.name!r}"
            f" needs C1 ones; leave out estimator=, which is {_ON_MESH!r} then"
        )
    return found


def _followed(
    recipe: Recipe,
    data: Data,
    ladders: Sequence[Sequence[Space]],
    patience: int,
    accept: float,
    seed: int,
    tell: Progress,
    seconds: Any,
) -> Choice:
    rows: list[dict[str, Any]] = []
    best, behind, status, kept = -1, [0] * len(ladders), "ok", None
    classes = [(number, space) for number, ladder in enumerate(ladders) for space in ladder]
    for k, (number, space) in enumerate(classes):
        if best >= 0 and behind[number] >= patience:
            continue
        started = time.perf_counter()
        told = part_of(tell, k / len(classes), (k + 1) / len(classes))
        row = {**_described(space), "policy": np.inf, "value": np.inf, "status": "ok"}
        try:
            learned = recipe.learned(space, data, part_of(told, 0.0, 0.7), seconds())
            found = witness(learned[0], accept, seed, partial(told, 0.7))
            row |= {"policy": found.policy, "value": found.value, "status": learned[0].status}
        except OutOfTimeError:
            if best < 0:
                raise
            status = f"max_seconds were over: chosen among the first {len(rows)} of {len(classes)} classes"
            break
        except FemHjbError as cause:  # too large for the data, say; the others may do
            row["status"] = str(cause)
        rows.append({**row, "seconds": time.perf_counter() - started})
        behind[number] += 1
        if row["policy"] < np.inf and (best < 0 or _rank(row) < _rank(rows[best])):
            best, behind[number], kept = len(rows) - 1, 0, learned
    if kept is None:
        raise ConvergenceError(f"none of {len(rows)} classes could be learned in; the last one: {rows[-1]['status']}")
    table = tuple({**row, "chosen": k == best} for k, row in enumerate(rows))
    return Choice(space=kept[1].space, tried=table, status=status, learned=kept)


def _rank(row: dict[str, Any]) -> float:
    """The error of the policy, that of a doubtful system counting for more."""
    return float(row["policy"]) * (1.0 if row["status"] == "ok" else _DOUBT)


def _described(space: Space) -> dict[str, Any]:
    return {
        "element": space.spatial.element,
        "dofs": space.n_dofs,
        "cells": space.spatial.n_cells,
        "time_cells": space.time.n_cells,
    }


def dictionaries(problem: ControlProblem, data: Paths | PathSource) -> list[Space]:
    """Polynomials on a hyperbolic cross times the exponential of the best quadratic for y/alpha, of degree 2 and 3; the
    same and as many times the root of it; and without it; all times quadratics in time.

    Under the Gaussian of the mean and covariance of samples of all times. Those with no more unknowns than there are
    trajectories.
    """
    pilot = as_source(data, _PILOT).chunk(0)
    x = pilot.x.reshape(-1, problem.dim)
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    law = Gaussian(x.mean(axis=0), covariance + 1e-9 * np.trace(covariance) * np.eye(problem.dim))
    Q, q = envelope(problem, pilot.x[:, -1], law)
    found: list[Dictionary] = []
    for degree in _DEGREES:
        plain = HermiteCross(law, degree)
        whole, root = Envelope(plain, Q, q), Envelope(plain, 0.5 * Q, 0.5 * q)
        found += [whole, Union(whole, root), plain]
    lines = [LineBasis.uniform(problem.horizon, cells, "P2") for cells in _TIMES]
    spaces = [Space.product(line, features) for line in lines for features in found]
    return [space for space in spaces if space.n_dofs <= data.n] or spaces[:1]


def envelope(problem: ControlProblem, ends: FloatArray, law: Gaussian) -> tuple[FloatArray, FloatArray]:
    """Q (d, d), q (d,) of -x'Qx/2 + q'x, the best quadratic for y/alpha at these ends, up to a constant; Q is at least
    -C^{-1}/4, C the covariance, so that its exponential does not outgrow the law."""
    root = np.linalg.cholesky(law.covariance)
    z = np.linalg.solve(root, (ends - law.expectation).T).T
    d = problem.dim
    i, j = np.triu_indices(d)
    design = np.concatenate([np.ones((len(z), 1)), z, z[:, i] * z[:, j]], axis=1)
    gram = design.T @ design / len(z)
    gram += _RIDGE * np.diag(np.diagonal(gram))
    fitted = np.linalg.solve(gram, design.T @ (problem.y(ends) / problem.temperature) / len(z))
    curved = np.zeros((d, d))
    curved[i, j] = fitted[1 + d :]
    values, vectors = np.linalg.eigh(-(curved + curved.T))
    Qz = vectors @ np.diag(np.maximum(values, -0.25)) @ vectors.T
    inverse = np.linalg.inv(root)
    Q = inverse.T @ Qz @ inverse
    Q = 0.5 * (Q + Q.T)
    return Q, inverse.T @ fitted[1 : 1 + d] + Q @ law.expectation
