"""What it costs that a mesh ends where the process goes on: the truncation part of the error of a solution on a mesh.

One mesh cannot show this. The solution is compared with a spectral one (`box_tolerance`) of the process that no
truncating face ends, and what the errors of space and time leave unexplained of their distance is put down to the
faces: natural conditions there, which reflect, or prescribed values that are not those of v. So no total is below it.
"""

import math
from dataclasses import replace

import numpy as np

from fem_hjb.problems.box import Box
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_tolerance import solve_to_tolerance
from fem_hjb.solutions.compare import overall_of
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.solutions.norms import law_points
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.errors import ComparisonError, ConvergenceError, InfiniteValueError, ProblemError
from fem_hjb.support.progress import Progress, unheard

_SHARE = 0.1  # of the tolerance, to which the spectral solution is made


def ends_early(problem: ControlProblem) -> bool:
    """Whether a mesh has faces at which it ends and the process does not."""
    return problem.domain is None or problem.domain.has("natural")


def unended(problem: ControlProblem, rtol: float, progress: Progress = unheard, seed: int = 0) -> Solution | None:
    """The spectral solution of the process with no face but those it has itself, to a tenth of rtol; None if none is.

    Where `progress` raises OutOfTimeError it is the best so far, and where there is none the error comes out.
    Raises InfiniteValueError if the value is infinite, which no mesh would show.
    """
    domain = problem.domain
    if isinstance(domain, MeshDomain) and (domain.absorbing or domain.has("reflecting")):
        return None  # no box is beyond its natural facets
    free = problem
    if domain is not None:
        free = replace(problem, domain=_without_natural_faces(domain) if isinstance(domain, Box) else None)
    try:
        return solve_to_tolerance(free, _SHARE * rtol, None, None, None, progress, seed)
    except InfiniteValueError:
        raise
    except (ProblemError, ConvergenceError):  # a coefficient is only good on the mesh, or no grid will do
        return None


def with_truncation(
    estimate: ErrorEstimate,
    solution: Solution,
    far: Solution | None,
    rtol: float,
    seed: int = 0,
    tell: Progress = unheard,
) -> ErrorEstimate:
    """An estimate of space and time, raised to the distance from `far`, the solution of `unended`, where this is more.

    As it is where the process cannot leave the mesh, inf where `far` is None or most of the mass lies outside the mesh.
    What `far` itself misses of a tenth of rtol is added. tell : given signs of life.
    """
    if not ends_early(solution.problem):
        return estimate
    value = policy = math.inf
    if far is not None and far.error_estimate is not None:
        missed = far.error_estimate
        off = (0.0, 0.0) if missed.met(_SHARE * rtol) else (missed.value, missed.policy)
        try:
            points = law_points(solution.problem, rng=seed)
            row = overall_of(solution, far, solution.problem, points, tell)
            value, policy = row.value + off[0], row.policy + off[1]
        except ComparisonError:  # no value on more than half of the mass
            pass
    return replace(
        estimate,
        value=max(estimate.value, value),
        policy=max(estimate.policy, policy),
        truncation=max(0.0, value - estimate.value, policy - estimate.policy),
    )


def _without_natural_faces(domain: Box) -> Box | None:
    """The domain with its natural faces at infinity, None if it has no others."""
    natural = domain.where("natural")
    if natural.all():
        return None
    lower, upper = np.where(natural, np.array([[-np.inf], [np.inf]]), domain.bounds)
    return Box(lower, upper, boundary=domain.boundary, exit_reward=domain.exit_reward)
