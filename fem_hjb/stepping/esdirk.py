r"""Time stepping for linear systems M f' = K(t) f, with some unknowns prescribed if need be.

The method is the implicit part of ARK4(3)6L[2]SA, an ESDIRK pair of orders 4 and 3 with six stages, the first one
explicit: C. A. Kennedy and M. H. Carpenter, Appl. Numer. Math. 44 (2003) 139-181. It is L-stable and stiffly
accurate with gamma = 1/4 and stage order 2, so a step costs five solves with the one matrix family M - (h/4) K.

For a step from f_n, with slopes k_j = M^{-1} K(t_n + c_j h) F_j, stage i reads

    (M - h gamma K(t_n + c_i h)) F_i = M g_i,    g_i = f_n + h sum_{j<i} a_ij k_j,    k_i = (F_i - g_i) / (h gamma),

so no slope but the very first one needs a solve with M. Since c_6 = 1 and b is the last row of (a_ij), the step ends
at f_{n+1} = F_6 with the slope k_6, which is the first slope of the next step. Between the ends, f is the cubic
Hermite interpolant of (f, f'), of order 4 like the method.

Where f = g(t) is prescribed, the slopes are g' at the stage times, taken from the polynomial of degree 5 through g at
these times, with an error of O(h^5). The stages take there what the method makes of these slopes, not g itself: stage
values are of order 2 only, and if they were exact on the boundary but not next to it, boundary layers would cost
almost an order (1-D heat-type problem: 3.1 instead of 4.0 measured). At the end of the step f = g exactly.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, final

import numpy as np

from fem_hjb.spaces.axes import differentiation_matrix
from fem_hjb.support.checks import FloatArray, IntArray, positive_integer
from fem_hjb.support.errors import ConvergenceError

ORDER = 4
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_AIM = 0.1  # of the tolerance: the error that the next step is to have
_MAX_STEPS = 100_000
_SMALLEST_STEP = 1e-12  # relative to the whole interval
_SOLVER_SHARE = 0.02  # of the time tolerance: what the linear solves may spoil
_FIXED_SOLVER_SHARE = 1e-4  # of the last embedded estimate, of order 3, so that order 4 is not spoilt
_FIXED_SOLVER_RANGE = 1e-12, 1e-8


class Solve(Protocol):
    """A solver for one matrix. A direct one ignores the guess and the relative residual at which to stop."""

    def __call__(self, rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray: ...


class LinearSystem(ABC):
    """M f' = K(t) f with f = g(t) on the unknowns `fixed` (in the rows of these the equation is left out)."""

    mass: Any  # a sparse matrix (n, n), symmetric positive definite
    fixed: IntArray = np.empty(0, dtype=np.int64)
    within: tuple[float, float] = (-np.inf, np.inf)  # see `enter`
    breaks: Sequence[float] = ()  # times at which K or g jump: adaptive steps end there
    factors: bool = True  # whether a solver is worth keeping for several steps, as the factors of a matrix are

    @abstractmethod
    def stiffness(self, t: float) -> Any:
        """K(t), a sparse matrix. The same object as last time says that it has not changed: factors are reused."""

    @abstractmethod
    def solver(self, stiffness: Any, shift: float) -> Solve:
        """A solver for M - shift K, in whose solution f_i = rhs_i for the fixed i."""

    def fixed_values(self, t: float) -> FloatArray:
        """g(t), shape (len(fixed),)."""
        return np.zeros(self.fixed.size)

    def enter(self, start: float, end: float) -> None:
        """From now on, K and g are asked for in [start, end], and at these ends what they are inside is meant."""
        self.within = start, end

    def seen(self, t: float, h: float) -> float:
        """The longest adaptive step from t, at most h, whose stages see what K and g do; they may ask for less."""
        return h

    def norm(self, f: FloatArray) -> float:
        """(f' M f)^{1/2}, the norm in which errors are measured."""
        return float(np.sqrt(max(f @ (self.mass @ f), 0.0)))


@final
@dataclass(frozen=True, eq=False)
class Tableau:
    """Coefficients of a stiffly accurate ESDIRK pair: a (s, s), b and the embedded b_hat (s,), c (s,)."""

    a: FloatArray
    b: FloatArray
    b_hat: FloatArray
    c: FloatArray

    @property
    def gamma(self) -> float:
        """The diagonal of a, the same in every stage but the first."""
        return float(self.a[-1, -1])


def _kennedy_carpenter() -> Tableau:
    rows = (
        (),
        ("1/4", "1/4"),
        ("8611/62500", "-1743/31250", "1/4"),
        ("5012029/34652500", "-654441/2922500", "174375/388108", "1/4"),
        ("15267082809/155376265600", "-71443401/120774400", "730878875/902184768", "2285395/8070912", "1/4"),
        ("82889/524892", "0", "15625/83664", "69875/102672", "-2260/8211", "1/4"),
    )
    b_hat = (
        "4586570599/29645900160",
        "0",
        "178811875/945068544",
        "814220225/1159782912",
        "-3700637/11593932",
        "61727/225920",
    )
    exact = [[Fraction(entry) for entry in row] + [Fraction(0)] * (6 - len(row)) for row in rows]
    a = np.array([[float(entry) for entry in row] for row in exact])
    c = np.array([float(sum(row)) for row in exact])
    return Tableau(a, a[-1].copy(), np.array([float(Fraction(entry)) for entry in b_hat]), c)


ESDIRK43 = _kennedy_carpenter()


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class EsdirkStep:
    """One accepted step, from t to t + h.

    f0, f1 and derivative0, derivative1 (n,) are f and f' at its ends; `error` is the embedded estimate of the local
    error relative to the norm of f; `rejected` counts the attempts thrown away before it, `solves` the linear solves
    spent on it, these attempts included.
    """

    t: float
    h: float
    f0: FloatArray
    f1: FloatArray
    derivative0: FloatArray
    derivative1: FloatArray
    error: float
    rejected: int
    solves: int

    def dense(self, theta: float) -> FloatArray:
        """f at t + theta h, by the cubic through the values and slopes at both ends; 0 <= theta <= 1."""
        rest = 1.0 - theta
        return np.asarray(
            rest**2 * (1 + 2 * theta) * self.f0
            + theta**2 * (3 - 2 * theta) * self.f1
            + self.h * theta * rest * (rest * self.derivative0 - theta * self.derivative1)
        )


def esdirk(
    system: LinearSystem,
    f0: FloatArray,
    t0: float,
    t1: float,
    *,
    rtol: float | None = None,
    steps: int | None = None,
) -> Iterator[EsdirkStep]:
    """Integrate M f' = K(t) f, f(t0) = f0, to t1 > t0; yields the accepted steps in order.

    Give exactly one of
    rtol : the embedded estimate of each step's error, in the system's norm and relative to the norm of f, stays below
        it. A proportional-integral controller picks the steps; as long as the system keeps factors and K is one and the
        same object, they change by powers of two only, so that a factorisation serves many steps. Steps end at the
        breaks of the system, and are as short as it asks for to see what it does.
    steps : this many equal steps.

    Where f is prescribed, f0 is overwritten by the prescribed values.

    Raises
    ------
    ConvergenceError : f0, the interval, rtol or steps make no sense; f becomes non-finite; the step shrinks to nothing.
    """
    start = np.array(f0, dtype=np.float64)
    if start.ndim != 1 or not np.isfinite(start).all():
        bad = int((~np.isfinite(start)).sum())
        raise ConvergenceError(f"f0 must be a finite vector, got shape {start.shape} with {bad} non-finite entries")
    if not (np.isfinite(t0) and np.isfinite(t1) and t0 < t1):
        raise ConvergenceError(f"t0 must be below t1, both finite, got t0={t0!r} and t1={t1!r}")
    if (rtol is None) == (steps is None):
        raise ConvergenceError(f"give exactly one of rtol and steps, got rtol={rtol!r} and steps={steps!r}")
    if steps is not None:
        count = positive_integer(steps, "steps", ConvergenceError)
        return _fixed(_Stepper(system, start, t0, t1, _FIXED_SOLVER_RANGE[1]), t0, t1, count)
    tolerance = rtol_in_range(rtol, "rtol")
    return _in_pieces(system, start, t0, t1, tolerance)


def rtol_in_range(value: Any, name: str) -> float:
    """`value` as a relative tolerance that double precision and an order of 4 can meet."""
    number = float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else np.nan
    if not 1e-13 <= number <= 0.1:
        raise ConvergenceError(f"{name} must be a number between 1e-13 and 0.1, got {value!r}")
    return number


@final
class Stages:
    """The stages of one step from given f and f'. It keeps the last solver, `solves` counts its solves."""

    def __init__(self, system: LinearSystem, rtol: float) -> None:
        self.system, self.rtol, self.solves = system, rtol, 0
        self._cached: tuple[Any, float, Solve] | None = None
        c = ESDIRK43.c
        self._differentiate = differentiation_matrix(c)
        # The slope of each stage is predicted from those before it, by a cubic at most: polynomials of higher degree
        # magnify what is rough in them. Only iterative solvers look at the guess.
        self._predict = [_extrapolation(c[:i], c[i]) for i in range(c.size)]

    def slope(self, t: float, f: FloatArray, h: float) -> FloatArray:
        """f' at t. g' there is taken from the stages of a step over h."""
        K = self.system.stiffness(t)
        rhs = K @ f
        rhs[self.system.fixed] = self._prescribed(t, h)[1][0]
        return self._solve(K, 0.0, rhs, np.zeros_like(f))

    def step(
        self, t: float, h: float, f: FloatArray, slope: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, bool]:
        """f and f' at t + h, the error estimate (n,), and whether factors can be kept."""
        system, tableau = self.system, ESDIRK43
        fixed, shift = system.fixed, h * tableau.gamma
        slopes = np.empty((tableau.c.size, f.size))
        slopes[0] = slope
        exact, derivatives = self._prescribed(t, h)
        stages = exact[0] + h * (tableau.a @ derivatives)
        first = K = None
        stage = f
        for i in range(1, tableau.c.size):
            K = system.stiffness(t + tableau.c[i] * h)
            first = K if i == 1 else first
            known = f + h * (tableau.a[i, :i] @ slopes[:i])
            known[fixed] = stages[i] - shift * derivatives[i]
            rhs = system.mass @ known
            rhs[fixed] = stages[i]
            stage = self._solve(K, shift, rhs, known + shift * (self._predict[i] @ slopes[:i]))
            slopes[i] = (stage - known) / shift
        stage[fixed] = exact[-1]
        error = h * ((tableau.b - tableau.b_hat) @ slopes)
        error[fixed] = 0.0
        return stage, slopes[-1].copy(), error, system.factors and K is first

    def _prescribed(self, t: float, h: float) -> tuple[FloatArray, FloatArray]:
        """g and g' at the stage times, each (s, k)."""
        values = np.stack([self.system.fixed_values(t + c * h) for c in ESDIRK43.c])
        return values, np.asarray(self._differentiate @ values / h)

    def _solve(self, K: Any, shift: float, rhs: FloatArray, guess: FloatArray) -> FloatArray:
        if self._cached is None or self._cached[0] is not K or self._cached[1] != shift:
            self._cached = None  # lets go of the old factors before the new ones are made
            self._cached = (K, shift, self.system.solver(K, shift))
        self.solves += 1
        return self._cached[2](rhs, guess, self.rtol)


@final
class _Stepper:
    """The state (f, f') and one attempted step from it."""

    def __init__(self, system: LinearSystem, f: FloatArray, t0: float, t1: float, rtol: float) -> None:
        self.system, self.stages, self.f = system, Stages(system, rtol), f
        self.f[system.fixed] = system.fixed_values(t0)
        self.size = system.norm(f)
        self.slope = self.stages.slope(t0, f, 0.01 * (t1 - t0))  # no step is known yet

    def attempt(self, t: float, h: float) -> tuple[FloatArray, FloatArray, float, bool]:
        """f and f' at t + h, the error estimate relative to the norm of f, and whether factors can be kept."""
        stage, slope, error, keep = self.stages.step(t, h, self.f, self.slope)
        size = max(self.size, self.system.norm(stage))
        return stage, slope, self.system.norm(error) / size if size > 0 else 0.0, keep

    def accept(self, t: float, h: float, result: tuple[FloatArray, FloatArray, float], rejected: int) -> EsdirkStep:
        f1, slope1, error = result
        for array in (self.f, self.slope, f1, slope1):
            array.setflags(write=False)
        step = EsdirkStep(
            t=t,
            h=h,
            f0=self.f,
            f1=f1,
            derivative0=self.slope,
            derivative1=slope1,
            error=error,
            rejected=rejected,
            solves=self.stages.solves,
        )
        self.f, self.slope, self.size = f1, slope1, self.system.norm(f1)
        self.stages.solves = 0
        return step


def _fixed(stepper: _Stepper, t0: float, t1: float, steps: int) -> Iterator[EsdirkStep]:
    times = np.linspace(t0, t1, steps + 1)
    h = (t1 - t0) / steps
    for t in times[:-1]:
        f1, slope1, error, _ = stepper.attempt(float(t), h)
        if not (np.isfinite(error) and np.isfinite(f1).all()):
            raise ConvergenceError(
                f"f became non-finite in the step from t={t:.6g} with {steps} equal steps; take more steps, and check"
                " that the coefficients stay bounded there"
            )
        yield stepper.accept(float(t), h, (f1, slope1, error), 0)
        stepper.stages.rtol = min(max(_FIXED_SOLVER_SHARE * error, _FIXED_SOLVER_RANGE[0]), _FIXED_SOLVER_RANGE[1])


def _in_pieces(system: LinearSystem, f: FloatArray, t0: float, t1: float, rtol: float) -> Iterator[EsdirkStep]:
    """Adaptive steps between the breaks of the system: each piece begins anew, with the slope to the right of it."""
    apart = 1e-9 * (t1 - t0)
    ends = [t0]
    for t in sorted(system.breaks):
        if ends[-1] + apart < t < t1 - apart:
            ends.append(t)
    for start, end in zip(ends, [*ends[1:], t1], strict=True):
        system.enter(start, end)
        for step in _adaptive(_Stepper(system, f, start, end, _SOLVER_SHARE * rtol), start, end, rtol):
            yield step
            f = step.f1
        f = f.copy()


def _adaptive(stepper: _Stepper, t0: float, t1: float, rtol: float) -> Iterator[EsdirkStep]:
    length = t1 - t0
    speed = stepper.system.norm(stepper.slope) / max(stepper.size, np.finfo(float).tiny)
    if not np.isfinite(speed):
        raise ConvergenceError(f"K(t) f0 is not finite at t={t0:.6g}; check the coefficients and f0")
    t, rejected, before = t0, 0, (np.inf, 1.0)
    cause: ConvergenceError | None = None
    h, left = fewest_steps(length, min(length / 8, rtol ** (1 / ORDER) / max(speed, np.finfo(float).tiny)))
    for _ in range(_MAX_STEPS):
        if h < _SMALLEST_STEP * length:
            raise ConvergenceError(
                f"the step fell to {h:.3g} at t={t:.6g} without meeting rtol={rtol:g}; f or K(t) may be discontinuous"
                " or non-finite there: check the coefficients, raise rtol, or use a fixed number of steps"
            ) from cause
        if (seen := stepper.system.seen(t, h)) < h:
            h, left = fewest_steps(t1 - t, seen)
        try:
            f1, slope1, error, keep = stepper.attempt(t, h)
            ratio = error / rtol if np.isfinite(f1).all() else np.nan
        except ConvergenceError as failure:  # a linear solve gave up; a smaller step is closer to the identity
            cause, ratio, keep = failure, np.nan, False
        if not ratio <= 1:
            factor = _SAFETY * ratio ** (-1 / ORDER) if np.isfinite(ratio) else _SHRINK
            h, left = fewest_steps(t1 - t, h * max(_SHRINK, min(factor, 0.5 if keep else 1.0)))
            rejected += 1
            continue
        yield stepper.accept(t, h, (f1, slope1, error), rejected)
        left -= 1
        if left == 0:
            return
        t = t1 - left * h
        ratio = max(ratio, 1e-10)
        factor, before = _next_width(h, ratio, before), (h, ratio)
        if keep:
            factor = 2.0 ** np.floor(np.log2(factor)) if factor >= 2 else 1.0
        if factor != 1:
            h, left = fewest_steps(t1 - t, h * factor)
        rejected = 0
    raise ConvergenceError(
        f"{_MAX_STEPS} steps did not reach t={t1:.6g} (stopped at {t:.6g}) with rtol={rtol:g}; raise rtol"
    )


def _extrapolation(nodes: FloatArray, at: float) -> FloatArray:
    """Weights of values at nodes in the value at `at` of the polynomial of degree 3 at most that is nearest to them."""
    powers = np.arange(min(nodes.size, 4))
    return np.asarray(np.linalg.pinv((nodes[:, None] - at) ** powers)[:1].reshape(-1))


def _next_width(h: float, ratio: float, before: tuple[float, float]) -> float:
    """By what to multiply h after an error of `ratio` times what is allowed; `before` are h and ratio before that.

    The width that would have had the error aimed at, or the one that has it if errors go on growing as they just did,
    whichever is smaller (K. Gustafsson, ACM Trans. Math. Software 20 (1994) 496-517).
    """
    now = (_AIM / ratio) ** (1 / ORDER)
    growth = h / before[0] * (before[1] / ratio) ** (1 / ORDER) if np.isfinite(before[0]) else 1.0
    return float(min(_GROW, max(_SHRINK, now * min(1.0, growth))))


def fewest_steps(remaining: float, h: float) -> tuple[float, int]:
    """The fewest equal steps of at most h over what remains, and their number: none is a sliver, the last one lands."""
    left = max(1, int(np.ceil(min(remaining / h, 1e15) * (1 - 1e-9)))) if h > 0 else 1
    return remaining / left, left
