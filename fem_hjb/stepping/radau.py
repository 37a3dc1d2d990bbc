r"""Radau IIA collocation for small dense linear systems u' = L(s) u, with some unknowns prescribed if need be.

On a step from s to s + h, with the nodes 0 < c_1 < ... < c_m = 1 of the right Gauss-Radau rule, u is a polynomial p of
degree m with p(0) = u(s) that satisfies the equation at every node. The stages U_i = p(c_i) solve

    U_i = u(s) + h sum_j a_ij L(s + c_j h) U_j,    a_ij = int_0^{c_i} l_j,

l_j being the Lagrange polynomials of the nodes. The method has order 2m - 1 at the ends of the steps and m + 1 between
them, where the polynomial is the dense output; it is L-stable (E. Hairer and G. Wanner, Solving Ordinary Differential
Equations II, section IV.5). A matrix L that stays one and the same object decouples the stages: with the eigenvalues
mu of (a_ij), the systems are 1 - h mu L, one for each real mu and one for each complex pair.

The error that is controlled is that of the dense output. Where the solution is resolved, the defect p' - L p is the
node polynomial M(theta) = prod (theta - c_i) up to a factor, which its value at theta = 0 gives, so the largest error
inside the step is kappa h |defect(0)|, with kappa = max |int_0^theta M| / |M(0)|. A stiff component which p does not
follow has a defect of about -L u(s), and an error of u(s): both are met by the estimate

    (1 - kappa h L(s)) e = kappa h (p'(0) - L(s) u(s)).

It is of the order m + 1 of the dense output; at the ends, where errors add up, the solution is much more accurate:
by two digits with three stages and by four with five or seven (1-D drift-diffusion by spectral elements).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import lu_factor, lu_solve
from scipy.special import roots_jacobi, roots_legendre

from fem_hjb.spaces.axes import differentiation_matrix, lagrange_weights
from fem_hjb.stepping.adaptive import fewest_steps, rtol_in_range
from fem_hjb.support.checks import FloatArray, IntArray, positive_integer, real_array
from fem_hjb.support.errors import ConvergenceError

_SAFETY, _SHRINK, _GROW = 0.9, 0.1, 8.0
_SMALLEST_STEP = 1e-13  # relative to the whole interval
_MAX_STEPS = 10_000

MatrixFunction = Callable[[float], FloatArray]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class RadauTableau:
    """Nodes c (m,) and matrix a (m, m) of the Radau IIA method, and the constants of its error estimate.

    `kappa` is the step of the estimate relative to h (see the module); `between` is where in the step interpolation
    at 0 and the nodes errs most.
    """

    c: FloatArray
    a: FloatArray
    kappa: float
    between: float


@cache
def radau_tableau(stages: int) -> RadauTableau:
    """The Radau IIA method with this many stages (from 2 to 9)."""
    count = positive_integer(stages, "stages", ConvergenceError)
    if not 2 <= count <= 9:
        raise ConvergenceError(f"stages must be between 2 and 9, got {stages!r}")
    c = np.append((1 + np.sort(roots_jacobi(count - 1, 1, 0)[0])) / 2, 1.0)
    points, weights = roots_legendre(count)
    points, weights = (1 + points) / 2, weights / 2
    lagrange = np.stack([[lagrange_weights(c, ci * x) for x in points] for ci in c])
    a = c[:, None] * np.einsum("q,iqj->ij", weights, lagrange)
    nodal = np.prod(1 - points[None, :, None] * c[:, None, None] / c, axis=2)  # M(theta) / M(0) on [0, c_i]
    kappa = float(np.abs(c * (nodal @ weights)).max())
    inside = np.linspace(0, 1, 401)
    between = inside[np.argmax(np.abs(inside * np.prod(inside[:, None] - c, axis=1)))]
    return RadauTableau(c=c, a=np.asarray(a), kappa=kappa, between=float(between))


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class RadauStep:
    """One accepted step, from t to t + h.

    f0, f1 (n,) are u at its ends; `stages` (m, n) holds u at t + h nodes, the last is f1; `error` is the estimate of
    that of the dense output relative to u; `rejected` counts the attempts thrown away before it, `factorisations` the
    systems factored for it, these attempts included.
    """

    t: float
    h: float
    f0: FloatArray
    f1: FloatArray
    stages: FloatArray
    nodes: FloatArray
    error: float
    rejected: int
    factorisations: int

    def dense(self, theta: float) -> FloatArray:
        """u at t + theta h, by the collocation polynomial; 0 <= theta <= 1."""
        weights = lagrange_weights(np.append(0.0, self.nodes), theta)
        return np.asarray(weights[0] * self.f0 + np.tensordot(weights[1:], self.stages, 1))


def radau(
    matrix: MatrixFunction,
    f0: ArrayLike,
    s0: float,
    s1: float,
    *,
    rtol: float,
    norm: Callable[[FloatArray], float] | None = None,
    stages: int = 5,
    fixed: ArrayLike | None = None,
    fixed_values: Callable[[float], ArrayLike] | None = None,
) -> Iterator[RadauStep]:
    """Integrate u' = L(s) u, u(s0) = f0 (n,), to s1 > s0; yields the accepted steps in order.

    matrix : s -> L(s), shape (n, n). The same object as last time says that it has not changed: factors are reused.
    rtol : the estimated error of the dense output of each step, in this norm and relative to the norm of u, stays
        below it. As long as L is one and the same object, steps grow by factors of at least two only.
    norm : the Euclidean one by default.
    stages : of the method, whose order is 2 stages - 1.
    fixed, fixed_values : the indices of the prescribed unknowns and s -> their values, shape (len(fixed),). Their rows
        of L are ignored and f0 is overwritten there; u takes exactly these values at every node.

    Raises
    ------
    ConvergenceError : an argument makes no sense; u becomes non-finite; the step shrinks to nothing; rtol takes more
        than 10 000 steps.
    """
    start = real_array(f0, "f0", ConvergenceError)
    if start.ndim != 1 or start.size == 0 or not np.isfinite(start).all():
        raise ConvergenceError(f"f0 must be finite, of shape (n,), got {start!r:.80} of shape {start.shape}")
    if not (np.isfinite(s0) and np.isfinite(s1) and s0 < s1):
        raise ConvergenceError(f"s0 must be below s1, both finite, got s0={s0!r} and s1={s1!r}")
    if (fixed is None) != (fixed_values is None):
        raise ConvergenceError("give fixed and fixed_values together, or neither")
    indices = np.atleast_1d(np.asarray([] if fixed is None else fixed, dtype=np.int64))
    if (
        indices.ndim != 1
        or np.unique(indices).size != indices.size
        or not np.isin(indices, np.arange(len(start))).all()
    ):
        raise ConvergenceError(f"fixed must hold distinct indices below {len(start)}, got {fixed!r}")
    stepper = _Stepper(matrix, start, s0, radau_tableau(stages), norm, indices, fixed_values)
    return _adaptive(stepper, s0, s1, rtol_in_range(rtol, "rtol"))


@final
class _Stepper:
    """The state u (n,) and one attempted step from it."""

    def __init__(
        self,
        matrix: MatrixFunction,
        f0: FloatArray,
        s0: float,
        tableau: RadauTableau,
        norm: Callable[[FloatArray], float] | None,
        fixed: IntArray,
        fixed_values: Callable[[float], ArrayLike] | None,
    ) -> None:
        self.matrix, self.tableau = matrix, tableau
        self.norm: Callable[[Any], Any] = norm if norm is not None else np.linalg.norm
        self.fixed, self.fixed_values = fixed, fixed_values
        self.free = np.setdiff1d(np.arange(len(f0)), fixed)
        self.u = f0.copy()
        self.u[fixed] = self._prescribed(s0)
        self.size = float(self.norm(self.u))
        self.L0 = self._matrix(s0)
        self.factorisations = 0
        self._factors: tuple[Any, float, list[Any], Any] | None = None
        # Eigenvalues of (a_ij): one of each complex pair, its share of the stages counted twice.
        values, vectors = np.linalg.eig(tableau.a)
        keep = values.imag >= -1e-12
        self._mu = values[keep]
        self._out = vectors[:, keep] * np.where(values[keep].imag > 1e-12, 2.0, 1.0)
        self._in = np.linalg.inv(vectors)[keep]
        self._slope0 = differentiation_matrix(np.append(0.0, tableau.c))[0]

    def speed(self) -> float:
        """|u'| / |u| at the start, the prescribed unknowns left out."""
        with np.errstate(invalid="ignore"):  # a matrix that is not finite is seen by what comes out
            rate = self.L0 @ self.u
        rate[self.fixed] = 0.0
        return float(self.norm(rate)) / max(self.size, np.finfo(float).tiny)

    def _prescribed(self, s: float) -> FloatArray:
        if self.fixed_values is None:
            return np.zeros(0)
        values = real_array(self.fixed_values(s), "fixed_values", ConvergenceError)
        if values.shape != self.fixed.shape:
            raise ConvergenceError(
                f"fixed_values must give an array of shape {self.fixed.shape}, got shape {values.shape}"
            )
        return values

    def _matrix(self, s: float) -> FloatArray:
        L = self.matrix(s)
        if np.shape(L) != (len(self.u),) * 2:
            raise ConvergenceError(f"the matrix must have shape {(len(self.u),) * 2}, got shape {np.shape(L)}")
        return L

    def attempt(self, t: float, h: float) -> tuple[FloatArray, float, FloatArray, bool]:
        """The stages (m, n), the relative error estimate (nan: useless), L at the end, and whether L is constant.

        The unknowns are the increments Z_i = U_i - u, which short steps keep free of cancellation.
        """
        tableau, fixed, free, u = self.tableau, self.fixed, self.free, self.u
        times = t + h * tableau.c
        Ls = [self._matrix(float(s)) for s in times]
        constant = all(L is Ls[0] for L in Ls)
        stages = np.repeat(u[None], tableau.c.size, axis=0)
        stages[:, fixed] = np.stack([self._prescribed(float(s)) for s in times])
        with np.errstate(invalid="ignore", over="ignore"):
            rates = np.stack([L[free] @ U for L, U in zip(Ls, stages, strict=True)])
        if not np.isfinite(rates).all():
            return stages, np.nan, Ls[-1], False
        rhs = h * np.tensordot(tableau.a, rates, 1)
        stages[:, free] += self._decoupled(Ls[0], h, rhs) if constant else self._coupled(Ls, h, rhs)
        estimate = self._estimate(t, h, stages, constant and self.L0 is Ls[0])
        error = float(self.norm(estimate)) if np.isfinite(stages).all() and np.isfinite(estimate).all() else np.nan
        size = max(self.size, float(self.norm(stages[-1])))
        return stages, error / size if size > 0 else error, Ls[-1], constant

    def _coupled(self, Ls: list[FloatArray], h: float, rhs: FloatArray) -> FloatArray:
        m, n = rhs.shape
        blocks = np.stack([L[np.ix_(self.free, self.free)] for L in Ls])
        system = np.einsum("ij,jab->iajb", -h * self.tableau.a, blocks).reshape(m * n, m * n)
        system[np.diag_indices(m * n)] += 1.0
        self.factorisations += 1
        return np.asarray(np.linalg.solve(system, rhs.ravel()).reshape(m, n))

    def _decoupled(self, L: FloatArray, h: float, rhs: FloatArray) -> FloatArray:
        modes = np.tensordot(self._in, rhs, 1)
        solved = [lu_solve(lu, mode, check_finite=False) for lu, mode in zip(self._factor(L, h)[0], modes, strict=True)]
        return np.asarray(np.tensordot(self._out, np.stack(solved), 1).real)

    def _factor(self, L: FloatArray, h: float) -> tuple[list[Any], Any]:
        """Factors of 1 - h mu L for the eigenvalues mu, and of 1 - h kappa L for the estimate."""
        if self._factors is None or self._factors[0] is not L or self._factors[1] != h:
            block = L[np.ix_(self.free, self.free)]
            eye = np.eye(self.free.size)
            lus = [lu_factor(eye - h * mu * block, check_finite=False) for mu in self._mu]
            last = lu_factor(eye - h * self.tableau.kappa * block, check_finite=False)
            self._factors = (L, h, lus, last)
            self.factorisations += len(lus)
        return self._factors[2], self._factors[3]

    def _estimate(self, t: float, h: float, stages: FloatArray, constant: bool) -> FloatArray:
        tableau, fixed, free, u, step = self.tableau, self.fixed, self.free, self.u, h * self.tableau.kappa
        weights = lagrange_weights(np.append(0.0, tableau.c), tableau.between)
        error = np.zeros_like(u)
        interpolated = weights[0] * u[fixed] + np.tensordot(weights[1:], stages[:, fixed], 1)
        error[fixed] = interpolated - self._prescribed(t + tableau.between * h)
        slope = np.tensordot(self._slope0[1:], stages[:, free] - u[free], 1) / h
        rhs = step * (slope - self.L0[free] @ u + self.L0[np.ix_(free, fixed)] @ error[fixed])
        if constant:
            error[free] = lu_solve(self._factor(self.L0, h)[1], rhs, check_finite=False)
        else:
            error[free] = np.linalg.solve(np.eye(free.size) - step * self.L0[np.ix_(free, free)], rhs)
        return error

    def accept(self, t: float, h: float, stages: FloatArray, error: float, end: FloatArray, rejected: int) -> RadauStep:
        for array in (self.u, stages):
            array.setflags(write=False)
        step = RadauStep(
            t=t,
            h=h,
            f0=self.u,
            f1=stages[-1],
            stages=stages,
            nodes=self.tableau.c,
            error=error,
            rejected=rejected,
            factorisations=self.factorisations,
        )
        self.u, self.size, self.factorisations = stages[-1], float(self.norm(stages[-1])), 0
        self.L0 = end
        return step


def _adaptive(stepper: _Stepper, s0: float, s1: float, rtol: float) -> Iterator[RadauStep]:
    length, order = s1 - s0, stepper.tableau.c.size + 1
    speed = stepper.speed()
    if not np.isfinite(speed):
        raise ConvergenceError(f"L(s) u is not finite at s={s0:.6g}; check the matrix and f0")
    t, rejected = s0, 0
    h, left = fewest_steps(length, min(length, rtol ** (1 / order) / max(speed, np.finfo(float).tiny)))
    for _ in range(_MAX_STEPS):
        if h < _SMALLEST_STEP * length:
            raise ConvergenceError(
                f"the step fell to {h:.3g} at s={t:.6g} without meeting rtol={rtol:g}; the matrix or the"
                " prescribed values may be discontinuous or non-finite there: split the interval there, or raise rtol"
            )
        stages, error, end, keep = stepper.attempt(t, h)
        ratio = error / rtol
        factor = _SAFETY * max(ratio, 1e-30) ** (-1 / order) if np.isfinite(ratio) else _SHRINK
        if not ratio <= 1:
            # A second failure in a row says that a stiff transient is met, for which the order promises too much.
            h, left = fewest_steps(s1 - t, h * min(max(factor, _SHRINK), 0.25 if rejected else 0.5 if keep else 1.0))
            rejected += 1
            continue
        yield stepper.accept(t, h, stages, error, end, rejected)
        left -= 1
        if left == 0:
            return
        t, rejected = s1 - left * h, 0
        factor = min(factor, _GROW)
        if not keep or factor >= 2:
            h, left = fewest_steps(s1 - t, h * factor)
    raise ConvergenceError(f"{_MAX_STEPS} steps did not reach s={s1:.6g} (stopped at {t:.6g}) with rtol={rtol:g}")
