"""What the boundary of a domain does to simulated states: they are folded back, or stopped."""

from __future__ import annotations

import numpy as np

from fem_hjb.problems.box import Box
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray


def inside(problem: ControlProblem, x: FloatArray) -> FloatArray:
    """States folded back at reflecting faces, and moved to the absorbing faces that they are behind."""
    return x if problem.domain is None else problem.domain.inside(x)


def folded(problem: ControlProblem, x: FloatArray) -> FloatArray:
    """States folded back at reflecting faces; behind absorbing ones of a box they stay."""
    if problem.domain is None:
        return x
    return problem.domain.mirror(x) if isinstance(problem.domain, Box) else problem.domain.inside(x)


def moved(
    problem: ControlProblem, t: float, h: float, before: FloatArray, after: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Where steps (n, d) of length h from `before`, at time t, to `after` end in the domain: reflected, or stopped.

    States that have been stopped stay where they are.
    """
    domain = problem.domain
    if domain is None:
        return after
    covariance = h * problem.Lambda(t, before) if domain.absorbing else None
    if isinstance(domain, MeshDomain):
        return domain.moved(before, after, covariance, rng)
    if covariance is None:
        return domain.mirror(after)
    new = domain.inside(stop_at_faces(domain, np.einsum("nii->ni", covariance), before, after, rng))
    return np.where(domain.exited(before)[:, None], before, new)


def stop_at_faces(
    domain: Box, variance: FloatArray, before: FloatArray, after: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """The states `after` a step (n, d), those which left through an absorbing face in it moved onto that face.

    A Brownian bridge of this variance (n, d) from a distance p to a distance q of a face has met it with probability
    exp(-2 p q / variance), and certainly if q <= 0. Given that it has, its end lies on either side of the face with
    equal chances, so that moving it onto the face is unbiased.
    """
    lower, upper = domain.bounds
    chances = []
    for face, absorbs in zip((lower, upper), domain.where("absorbing"), strict=True):
        rate = 2.0 * (before - face) * (after - face) / variance  # infinite for a face at infinity
        chances.append(np.where(absorbs, np.exp(-np.maximum(rate, 0.0)), 0.0))
    low, high = (rng.random(chance.shape) < chance for chance in chances)
    low &= ~high | (chances[0] >= chances[1])  # both ends of an interval met: take the likelier one
    return np.where(low, lower, np.where(high, upper, after))
