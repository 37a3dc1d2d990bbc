r"""Linear variational inequalities over convex sets of coefficients, by active sets.

Over a set F, with M positive definite but not necessarily symmetric, `solve_inequality` finds the only

    c in F with (M c - q)' (g - c) >= 0 for every g in F,   i.e.   M c + mu E c + A' lambda = q,

with multipliers lambda >= 0 at upper bounds, <= 0 at lower ones, 0 elsewhere, and mu >= 0 that of an energy ball
c' E c <= radius^2. A projection is the case M = E, q = E z. The method is the primal-dual active set (semismooth
Newton: M. Hintermueller, K. Ito, K. Kunisch, SIAM J. Optim. 13 (2002) 865); where that cycles, an interior point with
predictor and corrector (S. Mehrotra, SIAM J. Optim. 2 (1992) 575), finished by active-set steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, linprog
from scipy.sparse.linalg import SuperLU, cg, splu

from fem_hjb.learning.constraints import LinearSet, energy_norm, is_identity, metric_of, square_matrix
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConstraintError, ConvergenceError

Sides = NDArray[np.int8]

_ACTIVE_STEPS = 60
_POLISH_STEPS = 8
_INTERIOR_STEPS = 100
_STAGNATION = 6  # interior-point steps without progress after which it is done
_ROUNDING = 1e-13  # of the largest value: violations and wrong signs below it leave the active set alone
_ACCEPTED = 1e-11  # KKT residual with which the active set is done
_FAILED = 1e-8  # KKT residual beyond which nothing is returned
_NEGLIGIBLE = 1e-12  # relative to the row: entries that are zero but for rounding
_REGULAR = 1e-10  # of the Schur complement, so that dependent active rows do not make the system singular
_SOFTENING = 1e-13  # the same for the interior point
_REFINEMENTS = 8
_DIRECT = 1000  # unknowns up to which a sparse LU is faster than conjugate gradients
_CG_TOLERANCE = 1e-14
_CG_STEPS = 5000


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class InequalityResult:
    """The solution of a linear variational inequality.

    coefficients (N,) : c;  multipliers (m,) : lambda, one per row;  radius_multiplier : mu, 0 without or inside a ball.
    active (m,) : 1 where the upper bound is active, -1 where the lower one is, 0 elsewhere.
    iterations : linear systems solved, of all kinds;  how : "active-set", or "interior-point" if that was needed.
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

    @property
    def active_count(self) -> int:
        """How many bounds are active."""
        return int(np.count_nonzero(self.active))


@final
@dataclass(frozen=True, eq=False)
class _Iterate:
    c: FloatArray
    multipliers: FloatArray
    sides: Sides
    residual: float
    iterations: int = 0
    how: Literal["active-set", "interior-point"] = "active-set"


def _largest(*arrays: FloatArray) -> float:
    """The largest finite absolute value, 1 if there is none but 0."""
    largest = 0.0
    for array in arrays:
        largest = max(largest, float(np.abs(array[np.isfinite(array)]).max(initial=0.0)))
    return largest or 1.0


@final
class _System:
    """M c + A' lambda = q with lambda normal to lower <= A c <= upper; A is the identity if `bounds`."""

    def __init__(self, matrix: sp.csr_matrix, rows: sp.csr_matrix, lower: FloatArray, upper: FloatArray) -> None:
        self.matrix, self.rows, self.lower, self.upper = matrix, rows, lower, upper
        self.bounds = is_identity(rows)
        self.equal = lower == upper
        # A change of lambda_i by 1 moves row i by about this much: what makes multipliers comparable with rows.
        self.mobility = np.asarray(rows.multiply(rows) @ (1.0 / matrix.diagonal())).ravel()
        self.symmetric = abs(matrix - matrix.T).max() <= _ROUNDING * abs(matrix).max()
        self._factor: tuple[bytes, SuperLU] | None = None

    def allowed(self, sides: Sides) -> Sides:
        """These active sides, without bounds that are infinite and with all equal ones."""
        finite = np.where(sides > 0, np.isfinite(self.upper), np.isfinite(self.lower))
        return np.where(self.equal, 1, np.where(finite, sides, 0)).astype(np.int8)

    def residual(self, q: FloatArray, c: FloatArray, multipliers: FloatArray) -> float:
        """The relative KKT residual."""
        force, reaction, values = self.matrix @ c, self.rows.T @ multipliers, self.rows @ c
        step = self.mobility * multipliers
        natural = values - np.clip(values + step, self.lower, self.upper)
        stationary = np.abs(force + reaction - q).max(initial=0.0) / _largest(force, reaction, q)
        return float(max(stationary, np.abs(natural).max(initial=0.0) / _largest(values, step, self.lower, self.upper)))

    def sides_of(self, q: FloatArray, c: FloatArray, multipliers: FloatArray, sides: Sides) -> Sides:
        """The active set after an iterate: wrong signs are released, violated bounds become active."""
        values = self.rows @ c
        wrong = _ROUNDING * _largest(multipliers, q)
        outside = _ROUNDING * _largest(values, self.lower, self.upper)
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
        return self._held_bounds(q, sides, guess) if self.bounds else self._held_rows(q, sides)

    def _held_bounds(self, q: FloatArray, sides: Sides, guess: FloatArray) -> tuple[FloatArray, FloatArray]:
        c = np.where(sides > 0, self.upper, np.where(sides < 0, self.lower, 0.0))
        free = np.flatnonzero(sides == 0)
        if free.size:
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
        rows, n = self.rows[active], q.size
        target = np.where(sides > 0, self.upper, self.lower)[active]
        softening = sp.diags(-_REGULAR * self.mobility[active])
        saddle = (
            sp.bmat([[self.matrix, rows.T], [rows, softening]], format="csc") if active.size else self.matrix.tocsc()
        )
        factor = self.factor(sides.tobytes(), saddle)
        # Refined against the system without softening: dependent rows leave it singular, yet solvable.
        solution, last = np.zeros(n + active.size), np.inf
        for _ in range(_REFINEMENTS):
            c, reaction = solution[:n], solution[n:]
            gap = np.concatenate([q - self.matrix @ c - rows.T @ reaction, target - rows @ c])
            error = max(np.abs(gap[:n]).max() / _largest(q), np.abs(gap[n:]).max(initial=0.0) / _largest(target))
            if not error < last / 2:
                break
            last, solution = error, solution + factor.solve(gap)
        multipliers = np.zeros(sides.size)
        multipliers[active] = solution[n:]
        return solution[:n], multipliers


def _active_set(system: _System, q: FloatArray, sides: Sides, guess: FloatArray, steps: int) -> _Iterate | None:
    """The best iterate of at most `steps` steps of the primal-dual active set; it ends when a set returns."""
    best: _Iterate | None = None
    seen: set[bytes] = set()
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
            best = _Iterate(guess, multipliers, sides, residual)
        sides = system.sides_of(q, guess, multipliers, sides)
    return None if best is None else replace(best, iterations=len(seen))


@final
class _Interior:
    """The state of an interior point: M c + G' z + A_e' y = q, G c + w = h, A_e c = b_e, w z = 0, w > 0, z > 0.

    G c <= h are the one-sided rows, upper bounds first; A_e are the rows with equal bounds.
    """

    def __init__(self, system: _System, q: FloatArray) -> None:
        rows, equal = system.rows, system.equal
        self.system, self.q = system, q
        self.above = np.flatnonzero(np.isfinite(system.upper) & ~equal)
        self.below = np.flatnonzero(np.isfinite(system.lower) & ~equal)
        self.g = sp.vstack([rows[self.above], -rows[self.below]], format="csr")
        self.h = np.concatenate([system.upper[self.above], -system.lower[self.below]])
        self.fixed, self.target = rows[np.flatnonzero(equal)], system.upper[equal]
        self.mobility = np.concatenate([system.mobility[self.above], system.mobility[self.below]])
        self.w, self.z = self.mobility, np.ones(self.h.size)
        newton = self._newton()
        self.c, self.y = newton(q + self.g.T @ (self.h / self.mobility), np.empty(0), self.target)[::2]
        slack = self.h - self.g @ self.c
        self.w = np.maximum(np.abs(slack), 0.1 * _largest(slack))
        self.z = self.w / self.mobility

    @property
    def tight(self) -> NDArray[np.bool_]:
        """The rows whose multiplier is larger than their slack."""
        return np.asarray(self.z * self.mobility > self.w)

    def _newton(self) -> Callable[[FloatArray, FloatArray, FloatArray], tuple[FloatArray, FloatArray, FloatArray]]:
        """(loads on c, on tight rows, on equal rows) -> (dc, dz of the tight rows, dy).

        Tight rows stay in the system, as eliminating them would lose the matrix next to their weights z / w.
        """
        tight, n = self.tight, self.q.size
        loose = self.g[np.flatnonzero(~tight)]
        stiff = self.system.matrix + loose.T @ sp.diags((self.z / self.w)[~tight]) @ loose
        border = sp.vstack([self.g[np.flatnonzero(tight)], self.fixed], format="csr")
        ratio = np.concatenate([(self.w / self.z)[tight], np.zeros(self.target.size)])
        mobility = np.concatenate([self.mobility[tight], self.system.mobility[self.system.equal]])
        corner = sp.diags(-ratio - _SOFTENING * mobility)
        saddle = sp.bmat([[stiff, border.T], [border, corner]], format="csc") if ratio.size else stiff.tocsc()
        factor = splu(saddle)

        def solve(*loads: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
            solution = factor.solve(np.concatenate(loads))
            count = int(tight.sum())
            return solution[:n], solution[n : n + count], solution[n + count :]

        return solve

    def iterate(self, iterations: int) -> _Iterate:
        """The state, with the bounds as active whose multiplier is larger than their slack."""
        system, count = self.system, self.above.size
        multipliers, sides = np.zeros(system.lower.size), np.zeros(system.lower.size, dtype=np.int8)
        multipliers[self.above] = self.z[:count]
        multipliers[self.below] -= self.z[count:]
        multipliers[system.equal] = self.y
        tight = self.tight
        sides[self.above[tight[:count]]] = 1
        sides[self.below[tight[count:]]] = -1
        sides[system.equal] = 1
        residual = system.residual(self.q, self.c, multipliers)
        return _Iterate(self.c, multipliers, sides, residual, iterations, "interior-point")

    def advance(self) -> None:
        """A predictor-corrector step."""
        w, z, g = self.w, self.z, self.g
        dual = self.system.matrix @ self.c - self.q + g.T @ z + self.fixed.T @ self.y
        primal = g @ self.c + w - self.h
        missing = self.target - self.fixed @ self.c
        tight, newton = self.tight, self._newton()

        def direction(complement: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
            """Towards w z = w z - complement, and no other residuals."""
            shift = np.where(tight, 0.0, (z * primal - complement) / w)
            dc, pressed, dy = newton(-dual - g.T @ shift, (complement / z - primal)[tight], missing)
            move = g @ dc
            dz = shift + z / w * move
            dz[tight] = pressed
            dw = -primal - move  # which cancels in tight rows
            dw[tight] = ((-complement - w * dz) / z)[tight]
            return dc, dy, dw, dz

        def reach(dw: FloatArray, dz: FloatArray) -> float:
            return float(min(np.min(-v[d < 0] / d[d < 0], initial=np.inf) for v, d in ((w, dw), (z, dz))))

        _, _, dw, dz = direction(w * z)
        length, gap = min(1.0, reach(dw, dz)), float(w @ z) / max(w.size, 1)
        centring = (float((w + length * dw) @ (z + length * dz)) / w.size / gap) ** 3 if gap > 0 else 0.0
        dc, dy, dw, dz = direction(w * z + dw * dz - centring * gap)
        length = min(1.0, 0.995 * reach(dw, dz))
        self.c, self.y = self.c + length * dc, self.y + length * dy
        self.w, self.z = w + length * dw, z + length * dz


def _interior_point(system: _System, q: FloatArray) -> _Iterate | None:
    """The best iterate of an interior point, finished by active-set steps where these reduce the residual."""
    best: _Iterate | None = None
    # Iterates that overflow near a singular system have no residual below the best one's: nothing is lost silently.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        try:
            state = _Interior(system, q)
            for iteration in range(1, _INTERIOR_STEPS):
                now = state.iterate(iteration)
                if best is None or now.residual < best.residual:
                    best = now
                if best.residual < _ROUNDING or iteration - best.iterations > _STAGNATION:
                    break
                state.advance()
        except RuntimeError:  # SuperLU: exactly singular, at the start or where active slacks have become 0
            pass
    if best is None:
        return None
    polished = _active_set(system, q, best.sides, best.c, _POLISH_STEPS)
    if polished is not None and polished.residual < best.residual:
        return replace(polished, iterations=best.iterations + polished.iterations, how="interior-point")
    return best


def _refuse_empty(system: _System) -> None:
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
    violated = np.flatnonzero(slacks > 1e-7 * _largest(system.lower, system.upper))
    if violated.size:
        worst = int(slacks.argmax())
        raise ConstraintError(
            f"the set is empty: at best {violated.size} of its {m} rows are violated, row {worst} by"
            f" {slacks[worst]:.3g}"
            f" (bounds [{system.lower[worst]:g}, {system.upper[worst]:g}]); widen the bounds, or drop a constraint"
        )


def _solve_polyhedral(system: _System, q: FloatArray, sides: Sides, guess: FloatArray) -> _Iterate:
    """The inequality over the rows alone."""
    found = _active_set(system, q, system.allowed(sides), guess, _ACTIVE_STEPS)
    if found is None or not found.residual <= _ACCEPTED:
        if not system.bounds and system.lower.size:
            _refuse_empty(system)
        inner, spent = _interior_point(system, q), 0 if found is None else found.iterations
        if inner is not None and (found is None or not found.residual <= inner.residual):
            found = replace(inner, iterations=spent + inner.iterations)
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

    def __init__(self, matrix: sp.csr_matrix, linear_set: LinearSet, metric: sp.csr_matrix | None) -> None:
        self.set = linear_set
        self.change = None if linear_set.inverse is None or is_identity(linear_set.rows) else linear_set.inverse
        self.matrix = self._changed(matrix)
        self.metric = self.matrix if metric is matrix else metric if metric is None else self._changed(metric)
        self.system = self._system(self.matrix)
        self.sides = np.zeros(linear_set.lower.size, dtype=np.int8)
        self.guess = np.zeros(linear_set.size)
        self.least: float | None = None  # the least |c|_E under the rows, once it was needed

    def _changed(self, matrix: sp.csr_matrix) -> sp.csr_matrix:
        return matrix if self.change is None else sp.csr_matrix(self.change.T @ matrix @ self.change)

    def _system(self, matrix: sp.csr_matrix) -> _System:
        rows = self.set.rows if self.change is None else sp.identity(self.set.size, format="csr")
        return _System(matrix, rows, self.set.lower, self.set.upper)

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

    def _on_sphere(self, q: FloatArray, inside: _Iterate, radius: float) -> tuple[_Iterate, float]:
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
    matrix: Any, load: ArrayLike, linear_set: LinearSet, *, metric: Any = None, start: InequalityResult | None = None
) -> InequalityResult:
    """The c in the set F with (M c - q)' (g - c) >= 0 for every g in F.

    matrix : M (N, N), sparse or dense, positive definite symmetric part, not necessarily symmetric;  load : q (N,).
    metric : E (N, N), symmetric positive definite; needed if F has an energy ball, not used otherwise.
    start : the result of a similar inequality over the same rows, whose active set is tried first.

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
    engine = _Engine(square, linear_set, ball)
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

    metric : E (N, N), sparse or dense, symmetric positive definite.
    Raises ConstraintError unless E fits the set and is symmetric, and for an empty set; see `solve_inequality`.
    """

    def __init__(self, metric: Any, linear_set: LinearSet) -> None:
        if not isinstance(linear_set, LinearSet):
            raise ConstraintError(f"expected a LinearSet, got {type(linear_set).__name__}; use constraint.on(space)")
        self._metric = square_matrix(metric, "metric", linear_set.size)
        skew = float(abs(self._metric - self._metric.T).max())
        if skew > 1e-10 * abs(self._metric).max():
            raise ConstraintError(
                f"metric must be symmetric, got entries that differ from the transposed by {skew:.3g}"
            )
        self._engine = _Engine(self._metric, linear_set, self._metric)

    def __call__(self, target: ArrayLike) -> InequalityResult:
        """The projection of coefficients z (N,)."""
        return self._engine.solve(self._metric @ self._engine.set.coefficients(target))


def project(metric: Any, target: ArrayLike, linear_set: LinearSet) -> InequalityResult:
    """The projection of coefficients z (N,) on a set in the metric E; `Projector` is faster for many of them."""
    return Projector(metric, linear_set)(target)
