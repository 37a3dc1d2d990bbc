"""Alternating directions for linear inequalities: D. Gabay, in: M. Fortin, R. Glowinski, eds., Augmented Lagrangian
Methods, North-Holland 1983, 299; over-relaxed as by J. Eckstein, D. P. Bertsekas, Math. Program. 55 (1992) 293.

They share few matrices, so that nearly all of their steps take a solution with factors only: by fronts a fortieth of
what a factorisation takes. Soft rows let what is smooth move, stiff ones then settle each row: from there active sets
take about ten steps.
"""

import numpy as np
import scipy.sparse as sp

from fem_hjb.learning.active_sets import Iterate, System, active_set
from fem_hjb.learning.factors import Factors
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

_STIFFNESSES = (0.001, 0.01, 0.1)  # of the rows in turn, in units of 1 / mobility
_RELAXATION = 1.6
_DIRECT = 10_000_000  # non-zeros up to which, should fronts fail, sparse LU is tried


def alternating(system: System, q: FloatArray, alternations: int, steps: int) -> Iterate | None:
    """What active sets reach in at most `steps` steps after so many alternations with each stiffness; None if nothing.

    M c + A' y = q, z = A c, y normal to lower <= z <= upper: in turn c for a given z, and y and z for a given c.
    """
    rows, upward = system.rows, system.rows.T.tocsr()
    c, y = np.zeros(q.size), np.zeros(system.lower.size)
    wanted = y
    z = np.clip(y, system.lower, system.upper)
    # Where the form is not coercive they may diverge: active sets from there do not end, and nothing is taken.
    with np.errstate(over="ignore", invalid="ignore"):
        for part in _STIFFNESSES:
            stiffness = part / np.where(system.mobility > 0, system.mobility, 1.0)
            stiff = sp.csc_matrix(system.matrix + upward @ sp.diags(stiffness) @ rows)
            try:
                factors = Factors(stiff, 0.01, _DIRECT, system.dissection, system.symmetric)
            except ConvergenceError:
                return None
            for _ in range(alternations):
                system.alive()
                c = factors.once(q + upward @ (stiffness * z - y))
                wanted = _RELAXATION * (rows @ c) + (1.0 - _RELAXATION) * z + y / stiffness
                z = np.clip(wanted, system.lower, system.upper)
                y = stiffness * (wanted - z)
    if not np.isfinite(wanted).all():
        return None
    sides = np.where(wanted > system.upper, 1, np.where(wanted < system.lower, -1, 0)).astype(np.int8)
    return active_set(system, q, system.allowed(sides), c, steps)
