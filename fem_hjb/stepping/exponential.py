r"""Time stepping by exponentials: Lawson's method on tensor products, and rational Krylov spaces.

**Lawson.** For u' = S u + N(s, u) on arrays u of shape (n_1, ..., n_d) with S = sum_k 1 x .. x S_k x .. x 1, the
exponential exp(h S) is the product of the small exp(h S_k) along the axes, and v = exp(-(s - s_n) S) u solves
v' = exp(-(s - s_n) S) N(s, u), in which the stiff S is gone (J. D. Lawson, SIAM J. Numer. Anal. 4 (1967) 372-380).
The classical Runge-Kutta method of order 4 for v has its nodes at 0, 1/2 and 1, so that E = exp(h/2 S) is all it needs:

    a  = E u,   b = E k_1,                    k_1 = N(s, u),
    k_2 = N(s + h/2, a + h/2 b),              k_3 = N(s + h/2, a + h/2 k_2),     k_4 = N(s + h, E (a + h k_3)),
    u_1 = E (a + h/6 (b + 2 k_2 + 2 k_3)) + h/6 k_4,                             k_5 = N(s + h, u_1).

k_5 is k_1 of the next step. With (2 k_4 + 3 k_5) / 30 for k_4 / 6 the order is 3, so |h/10 (k_4 - k_5)| estimates the
local error: S. Balac and F. Mahe, Comput. Phys. Commun. 184 (2013) 1211-1219. A step costs four evaluations of N and
four applications of E. In each step, S is frozen at the middle.

Since N is met explicitly, h rho(N) has to stay below 2.83 on the imaginary and 2.79 on the negative real axis. Where
what N does at a face contradicts the boundary condition built into S, the order drops to about 3 there.

**Rational Krylov.** For u' = L u with a constant L, exp(t L) f0 is sought in the space of (1 - gamma L)^{-j} f0, in
which L is represented by (1 - H^{-1}) / gamma, H being the Hessenberg matrix of Arnoldi's method for
Z = (1 - gamma L)^{-1}: J. van den Eshof and M. Hochbruck, SIAM J. Sci. Comput. 27 (2006) 1438-1457.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import expm

from fem_hjb.stepping.esdirk import rtol_in_range
from fem_hjb.support.checks import FloatArray, positive_integer, positive_number, real_array
from fem_hjb.support.errors import ConvergenceError

ORDER = 4
STABLE = 2.5  # h rho(N) at most; the method is stable up to 2.828 on the imaginary axis, 2.785 on the negative one
_FIRST = (
    7  # parts of the interval that the first step is at most one of: an odd number, lest nodes at halves of periods
)
# see a constant where there is none
_SAFETY, _GROW_BELOW = 0.9, 0.5  # steps double if the estimate of the doubled step stays below this part of rtol
_LARGEST_GROWTH = 10.0  # of the norm in a step, above which errors are measured against the smaller norm
_LONGEST_WAIT = 64  # steps without an attempt to grow, after attempts in vain
_FINEST = 2**40  # parts of the first step

Separable = Callable[[float, float], Sequence[FloatArray]]
Remainder = Callable[[float, FloatArray, Sequence[FloatArray]], FloatArray]
Norm = Callable[[FloatArray], float]


def apply_axis(matrix: FloatArray, u: FloatArray, axis: int) -> FloatArray:
    """`matrix` (m, n_axis) applied along one axis of u (n_1, ..., n_d), by one GEMM or a batch of them."""
    if axis == u.ndim - 1:
        return np.asarray(u @ matrix.T)
    shape = (*u.shape[:axis], matrix.shape[0], *u.shape[axis + 1 :])
    if axis == 0:
        return np.asarray((matrix @ u.reshape(u.shape[0], -1)).reshape(shape))
    return np.asarray(np.matmul(matrix, u.reshape(*u.shape[: axis + 1], -1)).reshape(shape))


def apply_all(matrices: Sequence[FloatArray], u: FloatArray) -> FloatArray:
    """The tensor product of one matrix for each axis, applied to u (n_1, ..., n_d)."""
    for axis, matrix in enumerate(matrices):
        u = apply_axis(matrix, u, axis)
    return u


def apply_sum(matrices: Sequence[FloatArray], u: FloatArray) -> FloatArray:
    """S u for the sum S over the axes of one matrix along each, u of shape (n_1, ..., n_d)."""
    return np.asarray(sum(apply_axis(matrix, u, axis) for axis, matrix in enumerate(matrices)))


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LawsonStep:
    """One accepted step, from t to t + h, with the separable part `frozen`.

    f0, f1 are u at its ends and remainder0, remainder1 what N(t, f0, frozen), N(t + h, f1, frozen) gave; `half` are
    the exponentials of h/2 S_k. `error` is the embedded estimate of the local error relative to the norm of u;
    `limited` says that stability, not accuracy, kept h small. `rejected` counts the attempts thrown away before it,
    `evaluations` those of N and `exponentials` the sets of 1-D exponentials made for it, these attempts included.
    """

    t: float
    h: float
    f0: FloatArray
    f1: FloatArray
    remainder0: FloatArray
    remainder1: FloatArray
    frozen: Sequence[FloatArray]
    half: Sequence[FloatArray]
    error: float
    limited: bool
    rejected: int
    evaluations: int
    exponentials: int

    @cached_property
    def _forced(self) -> tuple[FloatArray, FloatArray]:
        """w and w' at the end of the step."""
        end = self.f1 - apply_all(self.half, apply_all(self.half, self.f0))
        return end, apply_sum(self.frozen, end) + self.remainder1

    def dense(self, theta: float) -> FloatArray:
        """u at t + theta h, of order 4; 0 <= theta <= 1.

        What S alone makes of f0 is exact, one exponential for each axis; the rest w = u - exp(theta h S) f0, with
        w' = S w + N, is the cubic through its values and slopes at both ends.
        """
        rest = 1.0 - theta
        end, slope = self._forced
        part = self.half if theta == 0.5 else [expm(theta * self.h * S) for S in self.frozen]
        return np.asarray(
            apply_all(part, self.f0)
            + theta**2 * (3 - 2 * theta) * end
            + self.h * theta * rest * (rest * self.remainder0 - theta * slope)
        )


def lawson(
    separable: Separable,
    remainder: Remainder,
    f0: ArrayLike,
    s0: float,
    s1: float,
    *,
    rtol: float | None = None,
    steps: int | None = None,
    norm: Norm | None = None,
    scale: float = 0.0,
    remainder_bound: Callable[[float], float] | None = None,
    max_steps: int = 100_000,
) -> Iterator[LawsonStep]:
    """Integrate u' = S(s) u + N(s, u), u(s0) = f0 of shape (n_1, ..., n_d), to s1 > s0; yields the accepted steps.

    separable : (s, h) -> [S_1, ..., S_d], the matrices (n_k, n_k) that stand for S in a step of h around s. The very
        same list as last time says that nothing has changed, and exponentials are reused; they are kept for every h.
    remainder : (s, u, frozen) -> what is left of u' without sum_k S_k u for the S_k in the list `frozen`, so that the
        sum of both does not depend on `frozen`.
    norm : of arrays like u, the Euclidean one by default.
    scale : a size below which the norm of u does not count as small: errors are relative to the larger of the two.

    Give exactly one of
    rtol : the embedded estimate of each step's error, in this norm and relative to the norm of u, stays below it.
        Steps change by powers of two only.
    steps : this many equal steps.

    remainder_bound : with rtol, s -> an upper bound of the spectral radius of N; then h bound <= 2.5. Without it, the
        limit is found by steps that fail.

    Raises
    ------
    ConvergenceError : an argument makes no sense; u becomes non-finite; the step shrinks to nothing; rtol takes more
        than max_steps steps.
    """
    start = real_array(f0, "f0", ConvergenceError).copy()
    if start.ndim == 0 or start.size == 0 or not np.isfinite(start).all():
        raise ConvergenceError(
            f"f0 must be a finite array of shape (n_1, ..., n_d), got shape {start.shape}: {f0!r:.80}"
        )
    _check_interval(s0, s1)
    if (rtol is None) == (steps is None):
        raise ConvergenceError(f"give exactly one of rtol and steps, got rtol={rtol!r} and steps={steps!r}")
    limit = positive_integer(max_steps, "max_steps", ConvergenceError)
    stepper = _Stepper(separable, remainder, start, norm, scale)
    if steps is not None:
        return _equal_steps(stepper, s0, s1, positive_integer(steps, "steps", ConvergenceError))
    return _adaptive(stepper, s0, s1, rtol_in_range(rtol, "rtol"), remainder_bound, limit)


def _check_interval(s0: float, s1: float) -> None:
    if not (np.isfinite(s0) and np.isfinite(s1) and s0 < s1):
        raise ConvergenceError(f"s0 must be below s1, both finite, got s0={s0!r} and s1={s1!r}")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Attempt:
    f1: FloatArray
    remainder0: FloatArray
    remainder1: FloatArray
    frozen: Sequence[FloatArray]
    half: Sequence[FloatArray]
    error: float


@final
class _Stepper:
    """The state u, N at it for the list frozen last, and one attempted step from it."""

    def __init__(
        self, separable: Separable, remainder: Remainder, u: FloatArray, norm: Norm | None, scale: float
    ) -> None:
        self.separable, self.remainder, self.u, self.scale = separable, remainder, u, scale
        self.norm: Callable[[Any], Any] = norm if norm is not None else np.linalg.norm
        self.size = float(self.norm(u))
        self.evaluations = self.exponentials = 0
        self._frozen: Sequence[FloatArray] | None = None
        self._halves: dict[float, Sequence[FloatArray]] = {}
        self._known: tuple[Sequence[FloatArray], FloatArray] | None = None  # N at u, and for which list

    def freeze(self, s: float, h: float) -> Sequence[FloatArray]:
        frozen = self.separable(s, h)
        if frozen is not self._frozen:
            sizes = [np.shape(S) for S in frozen]
            if sizes != [(n, n) for n in self.u.shape]:
                raise ConvergenceError(
                    f"separable must give one square matrix for each axis of u, whose shape is {self.u.shape}, got"
                    f" shapes {sizes}"
                )
            self._frozen, self._halves = frozen, {}
        return frozen

    def first(self, t: float, frozen: Sequence[FloatArray]) -> FloatArray:
        """N(t, u, frozen), from what is known of it for another list if possible."""
        if self._known is None:
            self._known = (frozen, self._evaluate(t, self.u, frozen))
        before, value = self._known
        if before is not frozen:
            value = value + apply_sum(before, self.u) - apply_sum(frozen, self.u)
        return value

    def _evaluate(self, s: float, u: FloatArray, frozen: Sequence[FloatArray]) -> FloatArray:
        self.evaluations += 1
        value = self.remainder(s, u, frozen)
        if np.shape(value) != self.u.shape:
            raise ConvergenceError(f"remainder must give an array of shape {self.u.shape}, got {np.shape(value)}")
        return value

    def _half(self, h: float, frozen: Sequence[FloatArray]) -> Sequence[FloatArray]:
        if h not in self._halves:
            self._halves[h] = [expm(h / 2 * S) for S in frozen]
            self.exponentials += 1
        return self._halves[h]

    def attempt(self, t: float, h: float) -> _Attempt:
        frozen = self.freeze(t + h / 2, h)
        half = self._half(h, frozen)
        with np.errstate(over="ignore", invalid="ignore"):  # a step too long for stability is seen by its estimate
            k1 = self.first(t, frozen)
            middle, carried = apply_all(half, self.u), apply_all(half, k1)
            k2 = self._evaluate(t + h / 2, middle + h / 2 * carried, frozen)
            k3 = self._evaluate(t + h / 2, middle + h / 2 * k2, frozen)
            k4 = self._evaluate(t + h, apply_all(half, middle + h * k3), frozen)
            f1 = apply_all(half, middle + h / 6 * (carried + 2 * (k2 + k3))) + h / 6 * k4
            k5 = self._evaluate(t + h, f1, frozen)
            error, size = h / 10 * float(self.norm(k4 - k5)), float(self.norm(f1))
        scale = max(self.size, min(size, _LARGEST_GROWTH * self.size)) if self.size > 0 else size
        scale = max(scale, self.scale)
        relative = error / scale if scale > 0 else error
        if not np.isfinite(size):
            relative = np.nan
        return _Attempt(f1=f1, remainder0=k1, remainder1=k5, frozen=frozen, half=half, error=relative)

    def accept(self, t: float, h: float, done: _Attempt, *, limited: bool, rejected: int) -> LawsonStep:
        for array in (self.u, done.f1, done.remainder0, done.remainder1):
            array.setflags(write=False)
        step = LawsonStep(
            t=t,
            h=h,
            f0=self.u,
            f1=done.f1,
            remainder0=done.remainder0,
            remainder1=done.remainder1,
            frozen=done.frozen,
            half=done.half,
            error=done.error,
            limited=limited,
            rejected=rejected,
            evaluations=self.evaluations,
            exponentials=self.exponentials,
        )
        self.u, self.size = done.f1, float(self.norm(done.f1))
        self._known = (done.frozen, done.remainder1)
        self.evaluations = self.exponentials = 0
        return step


def _equal_steps(stepper: _Stepper, s0: float, s1: float, steps: int) -> Iterator[LawsonStep]:
    h = (s1 - s0) / steps
    for t in np.linspace(s0, s1, steps + 1)[:-1]:
        done = stepper.attempt(float(t), h)
        if not np.isfinite(done.error):
            raise ConvergenceError(
                f"u became non-finite in the step from s={t:.6g} with {steps} equal steps; take more steps, so that h"
                f" times the spectral radius of the remainder stays below {STABLE}"
            )
        yield stepper.accept(float(t), h, done, limited=False, rejected=0)


def _adaptive(
    stepper: _Stepper,
    s0: float,
    s1: float,
    rtol: float,
    remainder_bound: Callable[[float], float] | None,
    max_steps: int,
) -> Iterator[LawsonStep]:
    """Steps on a grid of `total` parts of the interval: all are a power of two of them, begun at a multiple of it."""

    def longest(s: float) -> float:
        bound = 0.0 if remainder_bound is None else float(remainder_bound(s))
        if not 0 <= bound < np.inf:
            raise ConvergenceError(f"remainder_bound must give a finite number >= 0, got {bound!r} at s={s:.6g}")
        return STABLE / bound if bound > 0 else np.inf

    length, stable = s1 - s0, longest(s0)
    speed = float(stepper.norm(stepper.first(s0, stepper.freeze(s0, length)))) / max(
        stepper.size, stepper.scale, np.finfo(float).tiny
    )
    if not np.isfinite(speed):
        raise ConvergenceError(f"the remainder is not finite at s={s0:.6g}; check its coefficients and f0")
    guess = min(length / _FIRST, stable, rtol ** (1 / ORDER) / max(speed, np.finfo(float).tiny))
    total = int(np.ceil(min(max(length / guess, 1.0), 1e15) * (1 - 1e-9))) * _FINEST
    place, width, rejected, calm, wait = 0, _FINEST, 0, 0, 1
    for _ in range(max_steps):
        t = s0 + length * (place / total)
        stable = longest(t)
        while width > 1 and (length * (width / total) > stable * (1 + 1e-9) or place + width > total):
            width //= 2
        h = length * (width / total)
        done = stepper.attempt(t, h)
        ratio = done.error / rtol
        if not ratio <= 1:
            halvings = int(np.ceil(np.log2(ratio / _SAFETY) / ORDER)) if np.isfinite(ratio) else 2
            width >>= min(max(halvings, 1), 4)
            if width == 0:
                raise ConvergenceError(
                    f"the step fell below {h:.3g} at s={t:.6g} without meeting rtol={rtol:g}; the coefficients may be"
                    " discontinuous or non-finite there: split the interval there, or raise rtol"
                )
            wait, calm = min(2 * wait, _LONGEST_WAIT) if calm < wait else 2, 0
            rejected += 1
            continue
        accurate = ratio * 2**ORDER <= _GROW_BELOW
        within = 2 * h <= stable * (1 + 1e-9)
        yield stepper.accept(t, h, done, limited=accurate and not within, rejected=rejected)
        place, rejected, calm = place + width, 0, calm + 1
        if place == total:
            return
        if accurate and within and calm >= wait and place % (2 * width) == 0 and place + 2 * width <= total:
            width *= 2
    raise ConvergenceError(f"{max_steps} steps did not reach s={s1:.6g} (stopped at {t:.6g}) with rtol={rtol:g}")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class KrylovStates:
    """u at `times` (m,), states (m, ...) shaped as f0; `error` is the sum of the estimates, relative to the norm of u.

    `solves` counts the solves, `dimensions` holds that of each space: more than one says that the interval was split.
    """

    times: FloatArray
    states: FloatArray
    error: float
    solves: int
    dimensions: tuple[int, ...]


def rational_krylov(
    solve_shifted: Callable[[FloatArray], FloatArray],
    apply: Callable[[FloatArray], FloatArray],
    f0: ArrayLike,
    s0: float,
    s1: float,
    *,
    gamma: float,
    rtol: float,
    times: ArrayLike,
    norm: Norm | None = None,
    inner: ArrayLike | None = None,
    max_dimension: int = 60,
) -> KrylovStates:
    """u(s) = exp((s - s0) L) f0 at `times`, increasing within [s0, s1], for one constant L.

    solve_shifted : v -> (1 - gamma L)^{-1} v, for arrays shaped as f0; gamma = (s1 - s0) / 10 is a good choice.
    apply : v -> L v; used once, to check that solve_shifted fits gamma.
    rtol : what the estimated error may reach at s1, relative to the norm of u; at s, its share (s - s0) / (s1 - s0).
    norm : in which errors are measured; that of the inner product by default.
    inner : positive weights shaped as f0 of the inner product sum(inner u v) of Arnoldi's method; ones by default.

    With (1 - gamma L)^{-1} V = V H + w e_m' and B = (1 - H^{-1}) / gamma, the residual of V exp(t B) e_1 is
    g(t) / gamma (1 - gamma L) w with g(t) = e_m' H^{-1} exp(t B) e_1. Its integral against exp((t - s) L), by parts
    where L stands, is estimated by (1 + t / gamma) |w| max |g|. A space that reaches max_dimension is used as far as
    it is good, and a new one is begun there.

    Raises
    ------
    ConvergenceError : an argument makes no sense; solve_shifted does not fit; no progress within max_dimension.
    """
    start = real_array(f0, "f0", ConvergenceError)
    if start.size == 0 or not np.isfinite(start).all():
        raise ConvergenceError(f"f0 must be a finite array, got shape {start.shape}: {f0!r:.80}")
    _check_interval(s0, s1)
    wanted = np.atleast_1d(real_array(times, "times", ConvergenceError))
    if wanted.ndim != 1 or not ((np.diff(wanted) > 0).all() and (wanted >= s0).all() and (wanted <= s1).all()):
        raise ConvergenceError(f"times must increase within [{s0:g}, {s1:g}], got {times!r:.80}")
    weights = np.ones(start.shape) if inner is None else real_array(inner, "inner", ConvergenceError)
    if weights.shape != start.shape or not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ConvergenceError(f"inner must hold positive weights of shape {start.shape}, got shape {weights.shape}")
    arnoldi = _ShiftInvert(
        solve_shifted,
        positive_number(gamma, "gamma", ConvergenceError),
        weights,
        norm,
        positive_integer(max_dimension, "max_dimension", ConvergenceError),
    )
    arnoldi.check(apply, start)
    states = np.repeat(start[None], wanted.size, axis=0)
    share = rtol_in_range(rtol, "rtol") / (s1 - s0)
    t, u, error, dimensions = s0, start, 0.0, []
    while t < wanted[-1] and u.any():
        space = arnoldi.build(u, wanted[-1] - t, share)
        end = min(t + space.reach, float(wanted[-1]))
        for i in np.flatnonzero((wanted > t) & (wanted <= end)):
            states[i] = space.at(wanted[i] - t)
        t, u = end, space.at(end - t)
        error += space.error
        dimensions.append(len(space.basis))
    states.setflags(write=False)
    return KrylovStates(times=wanted, states=states, error=error, solves=sum(dimensions), dimensions=tuple(dimensions))


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Space:
    """A basis (m, ...), L on it (m, m), the norm of the first vector, and how far the space is good."""

    basis: FloatArray
    operator: FloatArray
    length: float
    reach: float
    error: float

    def at(self, time: float) -> FloatArray:
        return np.asarray(np.tensordot(self.length * expm(time * self.operator)[:, 0], self.basis, 1))


@final
class _ShiftInvert:
    """Arnoldi's method for Z = (1 - gamma L)^{-1}, orthogonal with respect to `weights`."""

    def __init__(
        self,
        solve: Callable[[FloatArray], FloatArray],
        gamma: float,
        weights: FloatArray,
        norm: Norm | None,
        max_dimension: int,
    ) -> None:
        self.solve, self.gamma, self.weights, self.max_dimension = solve, gamma, weights, max_dimension
        self.norm: Callable[[Any], float] = norm if norm is not None else self.length

    def length(self, v: FloatArray) -> float:
        return float(np.sqrt(np.sum(self.weights * v * v)))

    def check(self, apply: Callable[[FloatArray], FloatArray], v: FloatArray) -> None:
        solved = self.solve(v)
        applied = self.gamma * apply(solved)
        miss = self.length(solved - applied - v)
        if not miss <= 1e-3 * (self.length(v) + self.length(applied)):  # an iterative solver is no mistake
            raise ConvergenceError(
                f"solve_shifted must give (1 - gamma L)^{{-1}} v for gamma={self.gamma:g}: applying 1 - gamma L to what"
                f" it gave for f0 misses f0 by {miss:.3g}"
            )

    def build(self, u: FloatArray, time: float, share: float) -> _Space:
        """The smallest space in which the estimated error over `time` is below share * time, relative to u.

        If max_dimension is not enough, a shorter time: a power of two shorter.
        """
        length, scale = self.length(u), self.norm(u) / self.length(u)
        vectors = np.empty((self.max_dimension, *u.shape))
        H = np.zeros((self.max_dimension + 1, self.max_dimension))
        vectors[0] = u / length
        for m in range(1, self.max_dimension + 1):
            rest = self.solve(vectors[m - 1])
            for _ in range(2):  # twice is enough for orthogonality to rounding errors
                overlap = np.tensordot(vectors[:m], self.weights * rest, u.ndim)
                rest = rest - np.tensordot(overlap, vectors[:m], 1)
                H[:m, m - 1] += overlap
            H[m, m - 1] = self.length(rest)
            outside = self.norm(rest) / scale
            error = self._error(H[:m, :m], time, outside)
            if error <= share * time or m == self.max_dimension:
                break
            vectors[m] = rest / H[m, m - 1]
        halvings = 0
        while not error <= share * time and halvings < 20:
            time, halvings = time / 2, halvings + 1
            error = self._error(H[:m, :m], time, outside)
        if not error <= share * time:
            raise ConvergenceError(
                f"a space of dimension {m} is not good for a time of {time:.3g} (estimate {error:.3g}); raise"
                f" max_dimension or rtol, or take another gamma than {self.gamma:g}"
            )
        operator = (np.eye(m) - np.linalg.inv(H[:m, :m])) / self.gamma
        return _Space(basis=vectors[:m], operator=operator, length=length, reach=time, error=error)

    def _error(self, H: FloatArray, time: float, outside: float) -> float:
        """The estimate relative to u, for |w| = outside times the norm of u: the largest within `time`."""
        inverse = np.linalg.inv(H)
        advance = expm(time / 32 * (np.eye(len(H)) - inverse) / self.gamma)
        coefficients = [np.eye(len(H))[0]]
        for _ in range(32):
            coefficients.append(advance @ coefficients[-1])
        along = np.stack(coefficients)
        smallest = np.linalg.norm(along, axis=1).min()
        largest = np.abs(along @ inverse[-1]).max()
        return float((1 + time / self.gamma) * outside * largest / smallest) if smallest > 0 else np.inf
