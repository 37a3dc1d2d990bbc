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
from functools import partial
from typing import Any, Protocol, final

import numpy as np

from fem_hjb.spaces.axes import differentiation_matrix
from fem_hjb.stepping.adaptive import ORDER, ProportionalIntegral, Size, Step, adaptive, replay, rtol_in_range
from fem_hjb.support.checks import FloatArray, IntArray, array_length
from fem_hjb.support.errors import ConvergenceError

_SOON = 0.01  # of the interval: over this, the slope of what is prescribed is taken at its start
_SOLVER_SHARE = 0.02  # of the time tolerance: what the linear solves may spoil
_FIXED_SHARE = 1e-4  # of the last embedded estimate, of order 3, so that order 4 is not spoilt
_FIXED_RANGE = 1e-12, 1e-8


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

    def fixed_at(self, times: FloatArray) -> FloatArray:
        """g at several times (s,), shape (s, len(fixed))."""
        return np.stack([self.fixed_values(t) for t in times.tolist()])

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


def esdirk(
    system: LinearSystem,
    f0: FloatArray,
    t0: float,
    t1: float,
    *,
    rtol: float | None = None,
    steps: int | None = None,
    counts: dict[str, int] | None = None,
) -> Iterator[Step]:
    """Integrate M f' = K(t) f, f(t0) = f0, to t1 > t0; yields the accepted steps in order.

    Give exactly one of
    rtol : the embedded estimate of each step's error, in the system's norm and relative to the norm of f, stays below
        it. A proportional-integral controller picks the steps; as long as the system keeps factors and K is one and the
        same object, they change by powers of two only, so that a factorisation serves many steps. Steps end at the
        breaks of the system, and are as short as it asks for to see what it does.
    steps : this many equal steps.

    What it costs is added to counts["steps"], counts["rejected"] and counts["linear_solves"]. Where f is prescribed, f0
    is overwritten by the prescribed values.

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
    counts = {} if counts is None else counts
    counts |= {name: counts.get(name, 0) for name in ("steps", "rejected", "linear_solves")}
    if steps is not None:
        return _equal(system, start, t0, t1, array_length(steps, "steps", ConvergenceError, start.size), counts)
    return _in_pieces(system, start, t0, t1, rtol_in_range(rtol, "rtol"), counts)


class Stages:
    """The method on an interval, as `replay` asks: handed over to the next step is f'. It keeps the last solver."""

    def __init__(self, system: LinearSystem, length: float, counts: dict[str, int], rtol: float, size: Size) -> None:
        self.system, self.counts, self.rtol = system, counts, rtol
        self.size: Size = size
        self.kept = False  # whether the factors of the last step can serve for the next one
        self._soon = _SOON * length
        self._cached: tuple[Any, float, Solve] | None = None
        c = ESDIRK43.c
        self._differentiate = differentiation_matrix(c)
        # The slope of each stage is predicted from those before it, by a cubic at most: polynomials of higher degree
        # magnify what is rough in them. Only iterative solvers look at the guess.
        self._predict = [_extrapolation(c[:i], c[i]) for i in range(c.size)]

    def first(self, t: float, f: FloatArray) -> FloatArray:
        """f' at t. g' there is taken from the stages of a short step."""
        K = self.system.stiffness(t)
        rhs = K @ f
        rhs[self.system.fixed] = self._prescribed(t, self._soon)[1][0]
        return self._solve(K, 0.0, rhs, np.zeros_like(f))

    def slope(self, f: FloatArray, left: FloatArray) -> FloatArray:
        return left

    def eased(self, h: float, u0: FloatArray, u1: FloatArray, slope: FloatArray) -> FloatArray:
        """The slope as it is: what is stiff has settled at the end of a step."""
        return slope

    def step(self, t: float, h: float, f: FloatArray, slope: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """f and f' at t + h, and the error estimate (n,)."""
        self.kept = False
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
        self.kept = system.factors and K is first
        return stage, slopes[-1].copy(), error

    def middle(self, h: float, step: Step, k1: FloatArray, k5: FloatArray) -> FloatArray:
        """By a step half as long."""
        return self.step(step.s, h / 2, step.u0, k1)[0]

    def forget(self) -> None:
        """Let go of the factors of the last matrix."""
        self._cached = None

    def _prescribed(self, t: float, h: float) -> tuple[FloatArray, FloatArray]:
        """g and g' at the stage times, each (s, k)."""
        values = self.system.fixed_at(t + ESDIRK43.c * h)
        return values, np.asarray(self._differentiate @ values / h)

    def _solve(self, K: Any, shift: float, rhs: FloatArray, guess: FloatArray) -> FloatArray:
        if self._cached is None or self._cached[0] is not K or self._cached[1] != shift:
            self._cached = None  # lets go of the old factors before the new ones are made
            self._cached = (K, shift, self.system.solver(K, shift))
        self.counts["linear_solves"] += 1
        return self._cached[2](rhs, guess, self.rtol)


@final
class _Relative(Stages):
    """Errors are relative to the larger f of a step."""

    share = 0.0  # of the last error, what the linear solves of the next step may spoil; 0 for rtol always
    _last: tuple[FloatArray | None, float] = None, 0.0  # f at the end of the last step, and its norm

    def step(self, t: float, h: float, f: FloatArray, slope: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        f1, slope1, error = super().step(t, h, f, slope)
        before = self._last[1] if self._last[0] is f else self.size(f)
        self._last = f1, self.size(f1)
        error /= (max(before, self._last[1]) or np.inf) if np.isfinite(f1).all() else np.nan
        f1.flags.writeable = slope1.flags.writeable = False
        if self.share:
            self.rtol = min(max(self.share * self.size(error), _FIXED_RANGE[0]), _FIXED_RANGE[1])
        return f1, slope1, error


def _equal(system: LinearSystem, f: FloatArray, t0: float, t1: float, steps: int, counts: Any) -> Iterator[Step]:
    f[system.fixed] = system.fixed_values(t0)
    f.setflags(write=False)
    method = _Relative(system, t1 - t0, counts, _FIXED_RANGE[1], system.norm)
    method.share = _FIXED_SHARE
    for step in replay(method, f, t0, np.full(steps, (t1 - t0) / steps)):
        if not (np.isfinite(step.u1).all() and np.isfinite(step.slope1).all()):
            raise ConvergenceError(
                f"f became non-finite in the step from t={step.s:.6g} with {steps} equal steps; take more steps, and"
                " check that the coefficients stay bounded there"
            )
        yield step


def _in_pieces(system: LinearSystem, f: FloatArray, t0: float, t1: float, rtol: float, counts: Any) -> Iterator[Step]:
    """Adaptive steps between the breaks of the system: each piece begins anew, with the slope to the right of it."""
    apart = 1e-9 * (t1 - t0)
    ends = [t0]
    for t in sorted(system.breaks):
        if ends[-1] + apart < t < t1 - apart:
            ends.append(t)
    for start, end in zip(ends, [*ends[1:], t1], strict=True):
        system.enter(start, end)
        f[system.fixed] = system.fixed_values(start)
        f.setflags(write=False)
        method = _Relative(system, end - start, counts, _SOLVER_SHARE * rtol, system.norm)
        slope, tiny = method.first(start, f), np.finfo(float).tiny
        speed = system.norm(slope) / max(system.norm(f), tiny)
        if not np.isfinite(speed):
            raise ConvergenceError(f"K(t) f0 is not finite at t={start:.6g}; check the coefficients and f0")
        first = min((end - start) / 8, rtol ** (1 / ORDER) / max(speed, tiny))
        control = ProportionalIntegral(start, end, first, partial(getattr, method, "kept"), system.seen)
        for step in adaptive(method, control, f, slope, rtol=rtol):
            yield step
            f = step.u1
        f = f.copy()


def _extrapolation(nodes: FloatArray, at: float) -> FloatArray:
    """Weights of values at nodes in the value at `at` of the polynomial of degree 3 at most that is nearest to them."""
    powers = np.arange(min(nodes.size, 4))
    return np.asarray(np.linalg.pinv((nodes[:, None] - at) ** powers)[:1].reshape(-1))
