"""Problems without time: the equation looked at with the callables as they were given, and what faces can do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fem_hjb.problems.box import Box
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.reference.faces import check_along_normals
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.steady import SteadyFunction
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import DomainError

_LOOKED = 4096  # points at which the equation is looked at
_APART = 0.2  # of mean times: below, what a face has too much or too little shows in the solution itself


def equation_check(
    problem: ExitProblem,
    box: Box,
    function: SteadyFunction,
    rtol: float,
    source: Callable[[FloatArray], FloatArray] | None = None,
    density: Callable[[FloatArray], FloatArray] | None = None,
) -> Check:
    """The equation at points of the box, with the user's callables: of v, or of an expectation with this source.

    Second derivatives are central differences of gradients. Relative to the root mean square of all its terms, the
    residual of all but a hundredth of the points is to be small; a few points are near to where cells meet.

    density : where points count by a law, that law's.
    """
    lower, upper = box.bounds
    h = 1e-5 * (upper - lower)
    x = lower + h + (upper - lower - 2 * h) * np.random.default_rng(2).random((_LOOKED, problem.dim))
    slopes = function.gradient(x)
    Lambda, b, alpha = problem.Lambda(x), problem.b(x), problem.temperature
    hessian = np.empty((*x.shape, problem.dim))
    for k in range(problem.dim):
        shift = h * (np.arange(problem.dim) == k)
        hessian[:, k] = (function.gradient(x + shift) - function.gradient(x - shift)) / (2.0 * h[k])
    terms = [(b * slopes).sum(axis=1), 0.5 * np.einsum("nkl,nkl->n", Lambda, hessian)]
    if source is None:
        terms += [problem.r(x), np.einsum("nk,nkl,nl->n", slopes, Lambda, slopes) / (2.0 * alpha)]
    else:
        terms.append(source(x))
    weights = np.ones(len(x)) if density is None else np.maximum(density(x), 0.0)
    weights = weights / weights.sum()
    size = math.sqrt(sum(float(weights @ term**2) for term in terms))
    steep = math.sqrt(float(weights @ (b**2).sum(axis=1))) + float(np.abs(Lambda).max()) / float((upper - lower).max())
    height = max(float(np.abs(function.coefficients).max()), 0.0 if source else alpha)
    least = 1e-6 * steep * height / float((upper - lower).max())
    figure = _quantile(np.abs(sum(terms)), weights) / max(size, least, 1e-300)
    limit = max(10.0 * math.sqrt(rtol), 1e-3)
    told = f"residual of the equation at {_LOOKED} points of the box, relative to its terms"
    return Check(name="equation", figure=figure, limit=min(limit, 0.5), told=told)


def _quantile(values: FloatArray, weights: FloatArray) -> float:
    """What 99 per cent of the values, by their weights, do not exceed."""
    order = np.argsort(values)
    mass = np.cumsum(weights[order])
    return float(values[order][min(int(np.searchsorted(mass, 0.99 * mass[-1])), len(values) - 1)])


def check_normal_reflection(problem: ExitProblem, box: Box | MeshDomain) -> None:
    """The natural condition <Lambda grad u, n> = 0 is reflection along n only where Lambda n is parallel to n."""
    if isinstance(box, MeshDomain):
        check_along_normals(box, problem.Lambda)
        return
    lower, upper = box.bounds
    x = lower + (upper - lower) * np.random.default_rng(1).random((64, problem.dim))
    for side, axis in np.argwhere(box.where("reflecting")).tolist():
        face = x.copy()
        face[:, axis] = box.bounds[side][axis]
        rows = problem.Lambda(face)[:, axis]
        if np.abs(np.delete(rows, axis, axis=1)).max(initial=0.0) > 1e-10 * np.abs(rows).max():
            raise DomainError(
                f"reflection along the normal needs a diffusion without off-diagonal entries in row {axis} on the"
                f" faces across axis {axis}; rotate the coordinates, or let these faces absorb"
            )


def temperature_check(noise: float) -> Check:
    """Whether Newton's method came down to the temperature that was asked for."""
    return Check(name="temperature", figure=noise, limit=1.0, told="noise solved at, relative to that asked for")


def rounding_check(figure: float, limit: float) -> Check:
    """Whether the process leaves often enough for double precision: `ExitEquation.leaving`."""
    told = "what rounding makes of the value 1 that is paid at every exit; more where the process hardly ever leaves"
    return Check(name="rounding", figure=figure, limit=limit, told=told)


def leaving_check(first: FloatArray, second: FloatArray, weights: FloatArray) -> Check:
    """Whether a grid resolves how often the process leaves: mean times of two classes at points (n,) of these weights.

    Where it hardly ever leaves, the part of a face in the exits is a ratio of tiny numbers. Where the layer at one face
    is not resolved the process leaves there far too often, whatever the class: all solutions agree, and are those of a
    process that leaves nowhere else. How long that takes is then wrong by orders, and not by the same ones.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(first - second) / np.maximum(np.minimum(first, second), 0.0)
    apart = np.minimum(np.where(np.isfinite(apart), apart, 1.0), 1.0)
    told = "how far mean times until the exit of two classes are apart, relative; if they are, a layer is not resolved"
    figure = float(weights @ apart / weights.sum())
    return Check(name="exits", figure=figure, limit=_APART, told=told)
