r"""The primal-dual active set for linear inequalities over rows with bounds, and the systems it solves.

Semismooth Newton: M. Hintermueller, K. Ito, K. Kunisch, SIAM J. Optim. 13 (2002) 865.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import SuperLU, cg, splu

from fem_hjb.learning.bordered import Bordered, Restricted, dissection_of
from fem_hjb.learning.linear_set import is_identity
from fem_hjb.support.checks import FloatArray

Sides = NDArray[np.int8]

ACCEPTED = 1e-11  # KKT residual with which the active set is done
ROUNDING = 1e-13  # of the largest value: violations and wrong signs below it leave the active set alone
_DIRECT = 1000  # unknowns up to which a sparse LU is faster than conjugate gradients
_CG_TOLERANCE = 1e-14
_CG_STEPS = 5000
# In haste:
_MANY = 0.1  # share of the rows that may change at first
_FEWER = 0.8  # share of those that may change in the next step
_SINGLE = 8  # rows that always may


@final
@dataclass(frozen=True, eq=False)
class Iterate:
    c: FloatArray
    multipliers: FloatArray
    sides: Sides
    residual: float
    iterations: int = 0
    how: Literal["active-set", "interior-point"] = "active-set"


def magnitude(*arrays: FloatArray) -> float:
    """The largest finite absolute value, 1 if there is none but 0."""
    largest = 0.0
    for array in arrays:
        largest = max(largest, float(np.abs(array[np.isfinite(array)]).max(initial=0.0)))
    return largest or 1.0


@final
class System:
    """M c + A' lambda = q with lambda normal to lower <= A c <= upper; A is the identity if `bounds`.

    places (N, k) : of the unknowns, by which large systems are dissected, or None.
    alive : called before every linear system is solved; what it raises stops the work.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        rows: sp.csr_matrix,
        lower: FloatArray,
        upper: FloatArray,
        alive: Callable[[], None] = lambda: None,
        places: FloatArray | None = None,
    ) -> None:
        self.alive = alive
        self.matrix, self.rows, self.lower, self.upper = matrix, rows, lower, upper
        self.bounds = is_identity(rows)
        self.equal = lower == upper
        # A change of lambda_i by 1 moves row i by about this much: what makes multipliers comparable with rows.
        self.mobility = np.asarray(rows.multiply(rows) @ (1.0 / matrix.diagonal())).ravel()
        self.symmetric = abs(matrix - matrix.T).max() <= ROUNDING * abs(matrix).max()
        self.dissection = dissection_of(matrix, rows, places)
        self._factor: tuple[bytes, SuperLU] | None = None
        self._bordered: tuple[bytes, Bordered] | None = None
        self._restricted: Restricted | None = None

    def allowed(self, sides: Sides) -> Sides:
        """These active sides, without bounds that are infinite and with all equal ones."""
        finite = np.where(sides > 0, np.isfinite(self.upper), np.isfinite(self.lower))
        return np.where(self.equal, 1, np.where(finite, sides, 0)).astype(np.int8)

    def residual(self, q: FloatArray, c: FloatArray, multipliers: FloatArray) -> float:
        """The relative KKT residual."""
        force, reaction, values = self.matrix @ c, self.rows.T @ multipliers, self.rows @ c
        step = self.mobility * multipliers
        natural = values - np.clip(values + step, self.lower, self.upper)
        stationary = np.abs(force + reaction - q).max(initial=0.0) / magnitude(force, reaction, q)
        return float(
            max(stationary, np.abs(natural).max(initial=0.0) / magnitude(values, step, self.lower, self.upper))
        )

    def sides_of(self, q: FloatArray, c: FloatArray, multipliers: FloatArray, sides: Sides) -> Sides:
        """The active set after an iterate: wrong signs are released, violated bounds become active."""
        values = self.rows @ c
        wrong = ROUNDING * magnitude(multipliers, q)
        outside = ROUNDING * magnitude(values, self.lower, self.upper)
        following = np.where(sides * multipliers < -wrong, 0, sides).astype(np.int8)
        idle = sides == 0
        following[idle & (values > self.upper + outside)] = 1
        following[idle & (values < self.lower - outside)] = -1
        following[self.equal] = 1
        return following

    def factor(self, key: bytes, matrix: sp.csc_matrix) -> SuperLU:
        """The sparse LU of this key, kept until another one is asked for."""
        if self._factor is None or self._factor[0] != key:
            self._factor = key, splu(matrix)
        return self._factor[1]

    def held(self, q: FloatArray, sides: Sides, guess: FloatArray) -> tuple[FloatArray, FloatArray]:
        """c and lambda with the active rows at their bounds and the other multipliers 0."""
        self.alive()
        return self._held_bounds(q, sides, guess) if self.bounds else self._held_rows(q, sides)

    def _held_bounds(self, q: FloatArray, sides: Sides, guess: FloatArray) -> tuple[FloatArray, FloatArray]:
        c = np.where(sides > 0, self.upper, np.where(sides < 0, self.lower, 0.0))
        free = np.flatnonzero(sides == 0)
        if free.size and self.dissection is not None:
            if self._restricted is None:
                self._restricted = Restricted(self.matrix, self.dissection, self.symmetric)
            c += self._restricted.solve(sides == 0, q - self.matrix @ c)
        elif free.size:
            load = (q - self.matrix @ c)[free]
            c[free] = self._solve(free, load, sides.tobytes(), guess[free])
        return c, np.where(sides == 0, 0.0, q - self.matrix @ c)

    def _solve(self, free: NDArray[np.int64], load: FloatArray, key: bytes, guess: FloatArray) -> FloatArray:
        part = self.matrix if free.size == self.matrix.shape[0] else self.matrix[free][:, free]
        if self.symmetric and free.size > _DIRECT:
            jacobi = sp.diags(1.0 / part.diagonal())
            solution, failed = cg(part, load, x0=guess, rtol=_CG_TOLERANCE, atol=0.0, maxiter=_CG_STEPS, M=jacobi)
            if not failed:
                return np.asarray(solution)
        return np.asarray(self.factor(key, part.tocsc()).solve(load))

    def _held_rows(self, q: FloatArray, sides: Sides) -> tuple[FloatArray, FloatArray]:
        active = np.flatnonzero(sides)
        key = sides.tobytes()
        if self._bordered is None or self._bordered[0] != key:
            held = self.rows[active], np.zeros(active.size), self.mobility[active]
            self._bordered = key, Bordered(self.matrix, *held, self.dissection, self.symmetric)
        target = np.where(sides > 0, self.upper, self.lower)[active]
        c, reaction = self._bordered[1].solve(q, target)
        multipliers = np.zeros(sides.size)
        multipliers[active] = reaction
        return c, multipliers


def active_set(
    system: System, q: FloatArray, sides: Sides, guess: FloatArray, steps: int, hasty: bool = False
) -> Iterate | None:
    """The best iterate of at most `steps` steps of the primal-dual active set; it ends when a set returns.

    hasty : also where a step changes many rows, or nearly as many as the one before: it is not near its end then.
    """
    best: Iterate | None = None
    seen: set[bytes] = set()
    may_change = _MANY * sides.size
    while len(seen) < steps and (key := sides.tobytes()) not in seen:
        seen.add(key)
        try:
            guess, multipliers = system.held(q, sides, guess)
        except RuntimeError:  # SuperLU: the factor is exactly singular
            break
        if not (np.isfinite(guess).all() and np.isfinite(multipliers).all()):
            break
        residual = system.residual(q, guess, multipliers)
        if best is None or residual < best.residual:
            best = Iterate(guess, multipliers, sides, residual)
        before, sides = sides, system.sides_of(q, guess, multipliers, sides)
        changed = int((sides != before).sum())
        if hasty and changed > max(may_change, _SINGLE):
            break
        may_change = _FEWER * changed
    return None if best is None else replace(best, iterations=len(seen))
