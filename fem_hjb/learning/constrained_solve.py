r"""Linear variational inequalities over convex sets of coefficients, and projections on them.

Over a set F, with M positive definite but not necessarily symmetric, `solve_inequality` finds the only

    c in F with (M c - q)' (g - c) >= 0 for every g in F,   i.e.   M c + mu E c + A' lambda = q,

with multipliers lambda >= 0 at upper bounds, <= 0 at lower ones, 0 elsewhere, and mu >= 0 that of an energy ball
c' E c <= radius^2. A projection is the case M = E, q = E z. The method is the primal-dual active set (semismooth
Newton: M. Hintermueller, K. Ito, K. Kunisch, SIAM J. Optim. 13 (2002) 865); where that cycles, an interior point with
predictor and corrector (S. Mehrotra, SIAM J. Optim. 2 (1992) 575), finished by active-set steps. Large systems whose
unknowns have places are factorised by fronts, without the rows that are held (`bordered`); of the largest, active sets
that do not settle at once are given up, and tried again from where alternating directions lead (`alternating`); should
these fail too, or for bounds on the unknowns themselves, from late iterates of the interior point.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.optimize import brentq, linprog

from fem_hjb.learning.active_sets import ACCEPTED, Iterate, Sides, System, active_set, magnitude
from fem_hjb.learning.alternating import alternating
from fem_hjb.learning.interior_point import interior_point
from fem_hjb.learning.linear_set import LinearSet, energy_norm, is_identity, metric_of, square_matrix
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConstraintError, ConvergenceError

_ACTIVE_STEPS = 60
_ACTIVE_STEPS_IF_LARGE = 30  # of which each takes a factorisation by fronts
_HASTY = 30_000  # unknowns from which so many steps are given up early: they grow with the cells along an axis
_ALTERNATIONS = 40  # with each stiffness, in those: as much as a factorisation takes
_FAILED = 1e-8  # KKT residual beyond which nothing is returned
_NEGLIGIBLE = 1e-12  # relative to the row: entries that are zero but for rounding


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class InequalityResult:
    """The solution of a linear variational inequality.

    coefficients (N,) : c;  multipliers (m,) : lambda, one per row;  radius_multiplier : mu, 0 without or inside a ball.
    active (m,) : 1 where the upper bound is active, -1 where the lower one is, 0 elsewhere.
    iterations : linear systems solved, of all kinds but those of alternating directions, which share three matrices.
    how : "active-set", or "interior-point" if that was needed.
    residual : the largest of the relative errors of M c + mu E c + A' lambda = q, of A c = clip(A c + lambda), and of
        the radius: what the KKT conditions leave, independent of how c was found.
    """

    coefficients: FloatArray
    multipliers: FloatArray
    radius_multiplier: float
    active: Sides
    iterations: int
    how: Literal["active-set", "interior-point"]
    residual: float


def _refuse_empty(system: System) -> None:
    """ConstraintError if no c satisfies the rows: the least sum of violations, by a linear programme."""
    m, n = system.rows.shape
    upper, lower = np.isfinite(system.upper), np.isfinite(system.lower)
    slack = sp.identity(m, format="csr")
    answer = linprog(
        np.concatenate([np.zeros(n), np.ones(m)]),
        A_ub=sp.bmat([[system.rows[upper], -slack[upper]], [-system.rows[lower], -slack[lower]]], format="csr"),
        b_ub=np.concatenate([system.upper[upper], -system.lower[lower]]),
        bounds=[(None, None)] * n + [(0.0, None)] * m,
        method="highs",
    )
    if answer.status != 0:
        raise ConvergenceError(f"whether the constraints can be met was not decided: {answer.message}")
    slacks = answer.x[n:]
    violated = np.flatnonzero(slacks > 1e-7 * magnitude(system.lower, system.upper))
    if violated.size:
        worst = int(slacks.argmax())
        raise ConstraintError(
            f"the set is empty: at best {violated.size} of its {m} rows are violated, row {worst} by"
            f" {slacks[worst]:.3g}"
            f" (bounds [{system.lower[worst]:g}, {system.upper[worst]:g}]); widen the bounds, or drop a constraint"
        )


def _within(found: Iterate | None, residual: float) -> bool:
    return found is not None and found.residual <= residual


def _better(found: Iterate | None, other: Iterate | None) -> Iterate | None:
    """The one that leaves less, with the steps of both."""
    if found is None or other is None:
        return other if found is None else found
    taken = min(found, other, key=lambda tried: np.nan_to_num(tried.residual, nan=np.inf))
    return replace(taken, iterations=found.iterations + other.iterations)


def _solve_polyhedral(system: System, q: FloatArray, sides: Sides, guess: FloatArray) -> Iterate:
    """The inequality over the rows alone."""
    large = system.dissection is not None and q.size >= _HASTY
    steps = _ACTIVE_STEPS if system.dissection is None else min(_ACTIVE_STEPS, _ACTIVE_STEPS_IF_LARGE)
    found = active_set(system, q, system.allowed(sides), guess, steps, hasty=large)
    if not _within(found, ACCEPTED):
        if not system.bounds and system.lower.size:
            _refuse_empty(system)
        if large and _ALTERNATIONS and not system.bounds:  # within bounds an interior point starts inside
            found = _better(found, alternating(system, q, _ALTERNATIONS, steps))
        if not _within(found, ACCEPTED):
            found = _better(found, interior_point(system, q))
        if large and not _within(found, _FAILED):
            found = _better(found, active_set(system, q, system.allowed(sides), guess, steps))
    if found is None or not found.residual <= _FAILED:
        reached = (
            "its linear systems are singular" if found is None else f"its relative KKT residual is {found.residual:.1e}"
        )
        raise ConvergenceError(
            f"the inequality was not solved: {reached}; the symmetric part of the matrix is (nearly) singular or"
            " not positive definite: leave out what it does not determine, or add a ridge"
        )
    # Accepted violations are rounding errors: bounds on the unknowns themselves can be met exactly.
    return replace(found, c=np.clip(found.c, system.lower, system.upper)) if system.bounds else found


@final
class _Engine:
    """Inequalities over one set with one matrix, for many right-hand sides; each starts from the one before.

    Where the rows have an inverse, the unknowns are b = A c, so that the set is a box.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        linear_set: LinearSet,
        metric: sp.csr_matrix | None,
        alive: Callable[[], None] = lambda: None,
        places: FloatArray | None = None,
    ) -> None:
        self.set, self.alive, self.places = linear_set, alive, places
        self.change = None if linear_set.inverse is None or is_identity(linear_set.rows) else linear_set.inverse
        if self.change is not None and places is not None:
            near = abs(linear_set.rows)
            self.places = (near @ places) / np.asarray(near.sum(axis=1)).reshape(-1, 1)
        self.matrix = self._changed(matrix)
        self.metric = self.matrix if metric is matrix else metric if metric is None else self._changed(metric)
        self.system = self._system(self.matrix)
        self.sides = np.zeros(linear_set.lower.size, dtype=np.int8)
        self.guess = np.zeros(linear_set.size)
        self.least: float | None = None  # the least |c|_E under the rows, once it was needed

    def _changed(self, matrix: sp.csr_matrix) -> sp.csr_matrix:
        return matrix if self.change is None else sp.csr_matrix(self.change.T @ matrix @ self.change)

    def _system(self, matrix: sp.csr_matrix) -> System:
        rows = self.set.rows if self.change is None else sp.identity(self.set.size, format="csr")
        return System(matrix, rows, self.set.lower, self.set.upper, self.alive, self.places)

    def solve(self, load: FloatArray) -> InequalityResult:
        q = load if self.change is None else self.change.T @ load
        found, mu, residual = _solve_polyhedral(self.system, q, self.sides, self.guess), 0.0, 0.0
        radius = self.set.radius
        if radius is not None and energy_norm(self.metric, found.c) > radius:
            found, mu = self._on_sphere(q, found, radius)
            residual = abs(energy_norm(self.metric, found.c) / radius - 1.0)
        self.sides, self.guess = found.sides, found.c
        return InequalityResult(
            coefficients=found.c if self.change is None else self.change @ found.c,
            multipliers=found.multipliers,
            radius_multiplier=mu,
            active=found.sides,
            iterations=found.iterations,
            how=found.how,
            residual=max(found.residual, residual),
        )

    def _on_sphere(self, q: FloatArray, inside: Iterate, radius: float) -> tuple[Iterate, float]:
        """The solution and mu > 0 with |c|_E = radius, by a search on radius / |c(mu)|_E, nearly linear in mu."""
        metric: Any = self.metric
        spent = inside.iterations
        last = inside
        if self.least is None:
            nearest = _solve_polyhedral(self._system(metric), np.zeros_like(q), last.sides, last.c)
            self.least, spent = energy_norm(metric, nearest.c), spent + nearest.iterations
        least = self.least
        if least > radius * (1.0 + _NEGLIGIBLE):
            raise ConstraintError(
                f"the set is empty: the least |c|_E under the other constraints is {least:.6g}, the radius of the"
                f" energy ball {radius:g}; enlarge the radius, or widen the bounds"
            )

        def at(mu: float) -> float:
            nonlocal last, spent
            if metric is self.matrix:  # M + mu E = (1 + mu) M: no new factorisation
                scaled = _solve_polyhedral(self.system, q / (1.0 + mu), last.sides, last.c)
                last = replace(scaled, multipliers=(1.0 + mu) * scaled.multipliers)
            else:
                last = _solve_polyhedral(self._system(self.matrix + mu * metric), q, last.sides, last.c)
            spent += last.iterations
            return radius / max(energy_norm(metric, last.c), 1e-3 * radius) - 1.0

        norm = energy_norm(metric, last.c)
        low, high = 0.0, (norm / radius - 1.0) * float(last.c @ (self.matrix @ last.c)) / norm**2
        while (excess := at(high)) < 0.0:
            low, high = high, 4.0 * high
            if high > 1e16 * abs(self.matrix).max() / abs(metric).max():
                raise ConvergenceError(
                    f"no multiplier of the energy ball of radius {radius:g} was found up to {high:.1e}"
                )
        mu = float(brentq(at, low, high, xtol=1e-15 * high, rtol=1e-15)) if excess else high
        at(mu)
        return replace(last, iterations=spent), mu


def solve_inequality(
    matrix: Any,
    load: ArrayLike,
    linear_set: LinearSet,
    *,
    metric: Any = None,
    start: InequalityResult | None = None,
    alive: Callable[[], None] = lambda: None,
    places: FloatArray | None = None,
) -> InequalityResult:
    """The c in the set F with (M c - q)' (g - c) >= 0 for every g in F.

    matrix : M (N, N), sparse or dense, positive definite symmetric part, not necessarily symmetric;  load : q (N,).
    metric : E (N, N), symmetric positive definite; needed if F has an energy ball, not used otherwise.
    start : the result of a similar inequality over the same rows, whose active set is tried first.
    alive : called before every linear system is solved; what it raises stops the work. No iterate but the last one is
        in the set.
    places (N, k) : points such that M couples only unknowns at neighbouring ones, by which large ones are dissected.

    The result is in F up to rounding; exactly so where the rows are the identity.
    Raises ConstraintError for shapes that do not match, matrices without positive diagonal, an empty set;
    ConvergenceError if the KKT conditions cannot be met to 1e-8.
    """
    if not isinstance(linear_set, LinearSet):
        raise ConstraintError(f"expected a LinearSet, got {type(linear_set).__name__}; use constraint.on(space)")
    square = square_matrix(matrix, "matrix", linear_set.size)
    ball = None
    if linear_set.radius is not None:
        ball = square if metric is matrix else metric_of(linear_set, metric)
    engine = _Engine(square, linear_set, ball, alive, places)
    if start is not None:
        if start.active.shape != engine.sides.shape:
            raise ConstraintError(
                f"start has {start.active.size} rows, the set {engine.sides.size}; start from a result over the"
                " same rows"
            )
        engine.sides = start.active
    return engine.solve(linear_set.coefficients(load))


@final
class Projector:
    """The projection on a set in the metric E, for many targets z: argmin over c in F of (c - z)' E (c - z).

    Each projection starts from the active set of the one before; while that stays the same so does the factorisation.

    metric : E (N, N), sparse or dense, symmetric positive definite.  places : as in `solve_inequality`.
    Raises ConstraintError unless E fits the set and is symmetric, and for an empty set; see `solve_inequality`.
    """

    def __init__(self, metric: Any, linear_set: LinearSet, places: FloatArray | None = None) -> None:
        if not isinstance(linear_set, LinearSet):
            raise ConstraintError(f"expected a LinearSet, got {type(linear_set).__name__}; use constraint.on(space)")
        self._metric = square_matrix(metric, "metric", linear_set.size)
        skew = float(abs(self._metric - self._metric.T).max())
        if skew > 1e-10 * abs(self._metric).max():
            raise ConstraintError(
                f"metric must be symmetric, got entries that differ from the transposed by {skew:.3g}"
            )
        self._engine = _Engine(self._metric, linear_set, self._metric, places=places)

    def begin(self, result: InequalityResult) -> None:
        """Start the next projection from the active set of a result over the same rows."""
        self._engine.sides = result.active

    def __call__(self, target: ArrayLike) -> InequalityResult:
        """The projection of coefficients z (N,)."""
        return self._engine.solve(self._metric @ self._engine.set.coefficients(target))
