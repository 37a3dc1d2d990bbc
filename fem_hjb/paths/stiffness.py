"""Steps that are short enough for drifts that pull back: explicit ones overshoot, long before they explode."""

import numpy as np

from fem_hjb.paths.walls import folded
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, LinearDrift

_PILOT = 64  # points at which the steepness of the drift is looked at
_MOST_SUBSTEPS = 64


def stable_substeps(problem: ControlProblem, h: float) -> int:
    """Into how many parts a step h is to be cut so that -db_k/dx_k h <= 1/2 where the process starts; 64 at most.

    Looked at by differences at 64 places, at t = 0, T/2 and T.
    """
    rng = np.random.default_rng(0)
    x = problem.initial_law.sample(_PILOT, rng)
    x = folded(problem, x)
    spread = np.sqrt(np.diagonal(problem.Lambda(0.0, x), axis1=1, axis2=2).mean(axis=0) * h)
    x = x + spread * rng.standard_normal(x.shape)
    x = folded(problem, x)
    steepest = 0.0
    for t in (0.0, 0.5 * problem.horizon, problem.horizon):
        base = problem.b(t, x)
        for k in range(problem.dim):
            step = np.full(len(x), 1e-3 * spread[k])
            if isinstance(problem.domain, MeshDomain):  # backwards where that leaves it
                step[~problem.domain.contains(x + step[:, None] * np.eye(problem.dim)[k])] *= -1.0
            moved = x.copy()
            moved[:, k] += step
            change = (problem.b(t, moved) - base) / step[:, None]
            steepest = max(steepest, float(-change[:, k].min()))
    return min(max(int(np.ceil(2.0 * steepest * h)), 1), _MOST_SUBSTEPS)


def substeps_of(problem: ControlProblem, steps: int, *, steered: bool = False) -> int | None:
    """As many for each of equal steps, if more than one; None too where paths may be drawn exactly.

    steered : whether there are to be paths under a policy, too, which never are.
    """
    if not steered and isinstance(problem.drift, LinearDrift) and problem.constant_diffusion is not None:
        return None
    needed = stable_substeps(problem, problem.horizon / steps)
    return needed if needed > 1 else None
