r"""The value itself, by Newton's method: for temperatures so small that f = exp(v / alpha) leaves double precision.

With v = v0 + w, where v0 is the background of a gauge, w solves in the time to go s = T - t

    d_s w = F(w) = <b + Lambda grad v0 / alpha, grad w> + 1/2 Tr(Lambda Hess w) + alpha rate
                   + 1/(2 alpha) grad w' Lambda grad w,         w(s=0) = y - v0_T,

in which nothing is exponentiated. Space is discretised as in `box_operators`, time by the ESDIRK pair of `esdirk`.

At the faces of a truncation nothing diffuses across: Lambda_kk d_k^2 w / 2 and mixed derivatives in x_k are left out on
the faces of axis k, as if the process lost its noise along x_k there. Where drift and policy point inwards this is a
process that never leaves the box, so the discretisation stays stable, and it makes no boundary layer, while the natural
condition d w/dn = 0 makes one in every value whose slope is not zero there (lq in one dimension, alpha = 0.01, 12 cells
of degree 8: policy error 2e-7, against 3e-5). Faces at which the process is reflected keep the natural condition.

Each implicit stage w = g + h gamma F(w) is solved by Newton's method. The derivative of F at an iterate w_k,

    F'(w_k) delta = <b + pi_k, grad delta> + 1/2 Tr(Lambda Hess delta),      pi_k = Lambda grad v_k / alpha,

is the generator of the process steered by the policy pi_k of v_k = v0 + w_k: so every Newton step solves one linear
backward equation, the evaluation of the policy pi_k, and takes the next policy from its solution. This is Howard's
policy iteration. F is quadratic, so what a full Newton step leaves of the residual is h gamma / (2 alpha) grad delta'
Lambda grad delta, and convergence is quadratic. Here factors of I - h gamma F'(w_k) are kept as long as iterates
contract fast, which changes the path of the iteration, not where it ends.

Sources: R. A. Howard, Dynamic Programming and Markov Processes, 1960 (policy iteration); M. L. Puterman and
S. L. Brumelle, Math. Oper. Res. 4 (1979) 60-69 (policy iteration is the Newton-Kantorovich iteration);
O. Bokanowski, S. Maroso and H. Zidani, SIAM J. Numer. Anal. 47 (2009) 3001-3026 (superlinear convergence of Howard's
algorithm for monotone discretisations; the one here is not monotone: where it does not resolve v, Newton's method may
fail, and then the step is shortened).
"""

from collections.abc import Callable
from itertools import combinations
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from scipy.linalg.lapack import dgbtrf, dgbtrs
from scipy.sparse.linalg import LinearOperator, gmres, splu

from fem_hjb.problems.gauge import Gauge, QuadraticGauge, ValueGauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_operators import BoxOperators, Fields
from fem_hjb.reference.faces import check_faces, truncated
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.axes import apply_all, lagrange_weights
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.stepping.esdirk import ESDIRK43, ORDER, EsdirkStep, rtol_in_range
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError

DIRECT_UNKNOWNS = {2: 10_000, 3: 2500}  # beyond, GMRES instead of sparse factors
_NEWTON_SHARE = 0.02  # of the time tolerance: what unfinished Newton iterations may spoil
_MOST_ITERATIONS = 12  # per stage
_KEEP_FACTORS = 0.1  # contraction per iteration up to which factors are kept
_ROUNDING = 32 * float(np.finfo(float).eps)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_MAX_STEPS = 20_000
_FADED = 1e-3  # of the largest norm so far, below which a value or policy counts as this large: it has faded away
_SMALLEST_STEP = 1e-13  # relative to the horizon
_GMRES_RTOL, _GMRES_RESTART, _GMRES_CYCLES = 1e-5, 40, 5

Linear = Callable[[FloatArray], FloatArray]


def solve_value(
    problem: ControlProblem,
    basis: SpectralBasis,
    background: Gauge | QuadraticGauge,
    *,
    rtol_time: float,
) -> Solution:
    """v on a box for any temperature, by Newton's method in every stage of an implicit method of order 4.

    Parameters
    ----------
    basis : the box and its nodes. Its faces are reflecting where those of problem.domain are; see the module.
    background : v0. Constants, or a quadratic.
    rtol_time : per step, for the embedded error estimate of both value and policy, each relative to its norm at that
        time, or to a thousandth of the largest norm so far if that is more: policies fade away as s grows. Norms are
        those of `BoxOperators.norm`; policies are measured as sqrt(grad v' Lambda grad v) / alpha.

    The linear equations are solved by banded factors on a line; by sparse ones up to 10 000 nodes in two dimensions and
    2500 in three; else by GMRES with a preconditioner that is good where the steered process is nearly separable, and
    slow, through short steps, where it is not. A `QuadraticGauge` whose Chebyshev series does not resolve a layer near
    t = T (alpha <= 0.01, say) makes steps small: take constants then. Where drift and policy point out of a truncating
    face and w is not nearly linear there, errors grow from it until steps shrink to nothing: take a `QuadraticGauge`
    close to v then.

    Returns
    -------
    A `Solution` with method "newton" whose coefficients are w at the nodes. Its stats: cells, dofs, steps, rejected
    (by the error estimate), failures (of Newton's method, cured by shorter steps), newton_iterations, factorisations,
    linear_solver.

    Raises
    ------
    ConvergenceError : rtol_time makes no sense, or steps shrink to nothing: v is not resolved by the basis.
    DomainError : the process is stopped at faces of problem.domain, or it lives in a box other than the basis'.
    """
    stepper = _Stepper(_ValueEquation(problem, basis, background), rtol_in_range(rtol_time, "rtol_time"))
    _adaptive(stepper)
    return _solution(stepper)


def _solution(stepper: "_Stepper") -> Solution:
    """What the steps done add up to."""
    equation, done = stepper.equation, stepper.done
    problem, basis, T = equation.problem, equation.basis, equation.problem.horizon
    grid = T - np.array([0.0, *(step.t + step.h for step in done)])[::-1]
    grid[0], grid[-1] = 0.0, T
    rows = [done[0].f0, *(step.dense(part) for step in done for part in (1 / 3, 2 / 3, 1.0))]
    coefficients = np.stack(rows[::-1])
    coefficients.setflags(write=False)
    return Solution(
        problem=problem,
        space=Space.product(LineBasis(grid, "P3"), basis, excluded_mass=None),
        coefficients=coefficients,
        gauge=ValueGauge(background=equation.background),
        method="newton",
        status="ok",
        stats={
            "cells": basis.n_cells,
            "dofs": basis.n_dofs,
            "steps": len(done),
            **stepper.counts,
            "factorisations": equation.factorisations,
            "linear_solver": equation.linear_solver,
        },
    )


@final
class _ValueEquation:
    """F, its derivative and the norms, on vectors (n,) of values at the nodes; s is the time to go."""

    def __init__(self, problem: ControlProblem, basis: SpectralBasis, background: Gauge | QuadraticGauge) -> None:
        self.problem, self.basis, self.background = problem, basis, background
        self.operators = BoxOperators(problem, basis, background)
        d = self.dim = basis.dim
        inner, self.flux = _faces(problem, basis)
        self.D = [_along(line.derivative, basis.shape, k) for k, line in enumerate(basis.lines)]
        self.second = [_scaled(inner[k], _along(line.laplacian, basis.shape, k)) for k, line in enumerate(basis.lines)]
        self.mixed = {(k, m): _scaled(inner[k] * inner[m], self.D[k] @ self.D[m]) for k, m in combinations(range(d), 2)}
        self._bands = _Bands(self.D[0], self.second[0]) if d == 1 else None
        self.linear_solver = "banded" if d == 1 else "sparse" if basis.n_dofs <= DIRECT_UNKNOWNS[d] else "gmres"
        self.factorisations = 0
        # of a vector of rounding errors of size 1: its norm, and that of its derivatives
        ones = np.ones(basis.n_dofs)
        self.unit_noise = np.array([1.0, max(self.norm(abs(D) @ ones) for D in self.D)])

    def time(self, s: float) -> float:
        T = self.problem.horizon
        return float(min(max(T - s, 0.0), T))

    def v0(self, t: float) -> FloatArray:
        return self.background.guess(t, self.basis.nodes)

    def coefficients(self, s: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Drift (d, n), rate (n,) and diffusion (d, d, n or 1)."""
        d, fields = self.dim, self.operators.fields(self.time(s))
        return fields.drift.reshape(d, -1), fields.rate.ravel(), fields.diffusion.reshape(d, d, -1)

    def gradient(self, w: FloatArray) -> FloatArray:
        return np.stack([D @ w for D in self.D])

    def slope(self, s: float, w: FloatArray) -> FloatArray:
        """F(w)."""
        drift, rate, Lambda = self.coefficients(s)
        alpha, gradient = self.problem.temperature, self.gradient(w)
        result = alpha * rate
        result += ((drift + _pushed(Lambda, gradient) / (2 * alpha)) * gradient).sum(0)
        for k, second in enumerate(self.second):
            result += 0.5 * Lambda[k, k] * (second @ w)
        for (k, m), mixed in self.mixed.items():
            if Lambda[k, m].any():
                result += Lambda[k, m] * (mixed @ w)
        if self.flux.any():
            slope = self.background.guess_gradient(self.time(s), self.basis.nodes).T
            result += 0.5 * (np.einsum("kkn->kn", Lambda) * self.flux * slope).sum(0)
        return np.asarray(result)

    def factor(self, s: float, w: FloatArray, shift: float) -> Linear:
        """A solver for I - shift F'(w)."""
        drift, _, Lambda = self.coefficients(s)
        steered = drift + _pushed(Lambda, self.gradient(w)) / self.problem.temperature
        self.factorisations += 1
        if self.linear_solver == "gmres":
            return self._iterative(steered, Lambda, shift)
        if self._bands is not None:
            return self._bands(steered[0], Lambda[0, 0], shift)
        matrix = sp.eye_array(self.basis.n_dofs) - shift * self._generator(steered, Lambda)
        solve: Linear = splu(matrix.tocsc()).solve
        return solve

    def _generator(self, drift: FloatArray, Lambda: FloatArray) -> Any:
        parts = [_scaled(drift[k], D) for k, D in enumerate(self.D)]
        parts += [_scaled(0.5 * Lambda[k, k], second) for k, second in enumerate(self.second)]
        parts += [_scaled(Lambda[k, m], mixed) for (k, m), mixed in self.mixed.items() if Lambda[k, m].any()]
        return sum(parts[1:], parts[0])

    def _iterative(self, drift: FloatArray, Lambda: FloatArray, shift: float) -> Linear:
        """GMRES, preconditioned by the product of 1 - shift A_k, A_k being averaged over all axes but k."""
        shape, n = self.basis.shape, self.basis.n_dofs
        generator = self._generator(drift, Lambda)
        diffusion = Lambda.reshape(self.dim, self.dim, *shape) if Lambda.shape[-1] > 1 else Lambda[..., 0]
        fields = Fields(drift.reshape(self.dim, *shape), np.zeros(shape), diffusion)
        factors = [
            np.asarray(np.linalg.inv(np.eye(len(A)) - shift * A)) for A in self.operators.separable(fields).matrices
        ]
        matrix = LinearOperator((n, n), matvec=lambda x: x - shift * (generator @ x), dtype=np.float64)
        rough = LinearOperator((n, n), matvec=lambda x: apply_all(factors, x.reshape(shape)).ravel(), dtype=np.float64)

        def solve(rhs: FloatArray) -> FloatArray:
            x, info = gmres(matrix, rhs, rtol=_GMRES_RTOL, restart=_GMRES_RESTART, maxiter=_GMRES_CYCLES, M=rough)
            if info:
                raise ConvergenceError(
                    f"GMRES did not converge in {_GMRES_RESTART * _GMRES_CYCLES} iterations for {n} unknowns"
                )
            return np.asarray(x)

        return solve

    def norm(self, w: FloatArray) -> float:
        return self.operators.norm(w)

    def measure(self, t: float, values: FloatArray, gradient: FloatArray) -> FloatArray:
        """Norms of values (n,) and of the policy that a gradient (d, n) makes, times alpha."""
        Lambda = self.operators.fields(t).diffusion.reshape(self.dim, self.dim, -1)
        square = np.maximum((gradient * _pushed(Lambda, gradient)).sum(0), 0.0)
        return np.array([self.norm(values), self.norm(np.sqrt(square))])

    def sizes(self, s: float, w: FloatArray) -> FloatArray:
        """`measure` of w."""
        return self.measure(self.time(s), w, self.gradient(w))

    def sizes_of_value(self, s: float, w: FloatArray) -> FloatArray:
        """`measure` of v0 + w."""
        t = self.time(s)
        slope = self.background.guess_gradient(t, self.basis.nodes).T
        return self.measure(t, w + self.v0(t), self.gradient(w) + slope)


def _faces(problem: ControlProblem, basis: SpectralBasis) -> tuple[FloatArray, FloatArray]:
    """Two arrays (d, n): 0 on truncating faces of each axis, 1 elsewhere; what slopes are worth on reflecting ones.

    The weak Laplacian makes d w/dn = 0. Reflection is d (v0 + w)/dn = 0: so d_k v0 times the latter is added to it.
    """
    if problem.domain is not None and problem.domain.absorbing:
        raise DomainError("Newton's method on boxes does not stop processes at absorbing faces; solve on a mesh")
    bounds, cut = np.stack(basis.box.bounds), truncated(problem)
    check_faces(problem, basis.box, ~cut)
    on_face = basis.nodes[None] == bounds[:, None]  # (2, n, d)
    worth = np.array([[1.0], [-1.0]]) / np.array([line.weights[[0, -1]] for line in basis.lines]).T
    inner = np.where((on_face & cut[:, None]).any(axis=0), 0.0, 1.0).T
    return inner, np.where(on_face & ~cut[:, None], worth[:, None], 0.0).sum(axis=0).T


def _along(matrix: FloatArray, shape: tuple[int, ...], axis: int) -> Any:
    """The sparse operator on all nodes that acts as `matrix` along one axis."""
    before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    return sp.kron(sp.kron(sp.eye_array(before), sp.csr_array(matrix)), sp.eye_array(after), format="csr")


def _scaled(factor: FloatArray, matrix: Any) -> Any:
    return sp.diags_array(np.broadcast_to(factor, matrix.shape[:1])) @ matrix


def _pushed(Lambda: FloatArray, gradient: FloatArray) -> FloatArray:
    """Lambda grad, (d, n), for Lambda (d, d, n or 1)."""
    return np.asarray((Lambda * gradient).sum(1))


@final
class _Bands:
    """LU factors, by LAPACK, of 1 - shift (drift D + diffusion / 2 D2) for banded D and D2."""

    def __init__(self, D: Any, second: Any) -> None:
        pattern = (abs(D) + abs(second) + sp.eye_array(D.shape[0])).tocoo()
        self._row, self._column = pattern.row, pattern.col
        self._width = int(np.abs(pattern.row - pattern.col).max())
        self._D, self._second = (np.asarray(part.todense())[pattern.row, pattern.col] for part in (D, second))
        self._unit = (pattern.row == pattern.col).astype(np.float64)

    def __call__(self, drift: FloatArray, diffusion: FloatArray, shift: float) -> Linear:
        row, column, width = self._row, self._column, self._width
        half = np.broadcast_to(0.5 * shift * diffusion, drift.shape)
        bands = np.zeros((3 * width + 1, drift.size))
        entries = self._unit - (shift * drift)[row] * self._D - half[row] * self._second
        bands[2 * width + row - column, column] = entries
        factors, pivots, info = dgbtrf(bands, width, width, overwrite_ab=1)
        if info:
            raise ConvergenceError("the matrix of a Newton step is singular")
        return lambda rhs: np.asarray(dgbtrs(factors, width, width, rhs, pivots)[0])


@final
class _Stepper:
    """The state (w, F(w)) at s, the steps done, and one attempted step."""

    def __init__(self, equation: _ValueEquation, rtol: float) -> None:
        self.equation, self.rtol, self.s = equation, rtol, 0.0
        w = self.w = equation.problem.y(equation.basis.nodes) - equation.v0(equation.problem.horizon)
        self.slope = equation.slope(0.0, w)
        self.sizes = equation.sizes_of_value(0.0, w)
        self.least = _FADED * self.sizes
        self.tolerance = _NEWTON_SHARE * rtol
        self.done: list[EsdirkStep] = []
        self.counts = {"rejected": 0, "failures": 0, "newton_iterations": 0}
        self._factors: tuple[float, Linear] | None = None
        c = ESDIRK43.c
        self._predict = [lagrange_weights(c[:i], float(c[i])) for i in range(c.size)]

    def attempt(self, h: float) -> tuple[FloatArray, FloatArray, float]:
        """w and F(w) after a step h, and its error estimate. ConvergenceError if Newton's method fails."""
        table, equation = ESDIRK43, self.equation
        shift = h * table.gamma
        slopes = np.empty((table.c.size, self.w.size))
        slopes[0] = self.slope
        w = self.w
        for i in range(1, table.c.size):
            known = self.w + h * (table.a[i, :i] @ slopes[:i])
            w = self._stage(
                self.s + float(table.c[i]) * h, known, shift, known + shift * (self._predict[i] @ slopes[:i])
            )
            slopes[i] = (w - known) / shift
        error = equation.sizes(self.s + h, h * ((table.b - table.b_hat) @ slopes))
        scale = np.maximum(self.sizes, equation.sizes_of_value(self.s + h, w))
        return w, slopes[-1].copy(), _relative(error, scale)

    def _stage(self, s: float, known: FloatArray, shift: float, w: FloatArray) -> FloatArray:
        """w = known + shift F(w), by Newton's method with factors kept while it contracts fast."""
        equation = self.equation
        previous: float | None = None
        floor = _ROUNDING * float(np.abs(w).max()) * equation.unit_noise
        for _ in range(_MOST_ITERATIONS):
            residual = known + shift * equation.slope(s, w) - w
            if not np.isfinite(residual).all():
                break
            if self._factors is None or self._factors[0] != shift:
                self._factors = None
                self._factors = (shift, equation.factor(s, w, shift))
            change = self._factors[1](residual)
            self.counts["newton_iterations"] += 1
            w = w + change
            left = np.maximum(equation.sizes(s, change) - floor, 0.0)
            size = _relative(left, self.sizes)
            rate = size / previous if previous is not None else 1.0
            if size <= self.tolerance or (rate < 1 and size * rate / (1 - rate) <= self.tolerance):
                return w
            if not rate < 2:
                break
            if previous is not None and rate > _KEEP_FACTORS:
                self._factors = None
            previous = size
        self._factors = None
        raise ConvergenceError("Newton's method did not converge")

    def accept(self, h: float, w: FloatArray, slope: FloatArray, error: float, rejected: int) -> None:
        for array in (self.w, self.slope, w, slope):
            array.setflags(write=False)
        ends = {"f0": self.w, "f1": w, "derivative0": self.slope, "derivative1": slope}
        self.done.append(EsdirkStep(t=self.s, h=h, error=error, rejected=rejected, solves=0, **ends))
        self.w, self.slope, self.s = w, slope, self.s + h
        sizes = self.equation.sizes_of_value(self.s, w)
        self.least = np.maximum(self.least, _FADED * sizes)
        self.sizes = np.maximum(sizes, self.least)


def _relative(part: FloatArray, whole: FloatArray) -> float:
    """The largest ratio, 0 / 0 being 0."""
    return float(np.max(part / np.maximum(whole, np.finfo(float).tiny)))


def _adaptive(stepper: _Stepper) -> None:
    T, counts, rtol = stepper.equation.problem.horizon, stepper.counts, stepper.rtol
    speed = _relative(stepper.equation.sizes(0.0, stepper.slope), stepper.sizes)
    h = max(min(T / 8, rtol ** (1 / ORDER) / max(speed, 1e-300)), 10 * _SMALLEST_STEP * T)
    previous, rejected = 1.0, 0
    cause: ConvergenceError | None = None
    for _ in range(_MAX_STEPS):
        left = T - stepper.s
        h = left if h >= left * (1 - 1e-9) else min(h, left / 2) if h > left / 2 else h
        if h < _SMALLEST_STEP * T:
            break
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                w, slope, error = stepper.attempt(h)
            ratio = error / rtol
        except ConvergenceError as failure:
            cause, ratio = failure, np.nan
            counts["failures"] += 1
        if not ratio <= 1:
            h *= max(_SHRINK, min(_SAFETY * ratio ** (-1 / ORDER), 1.0)) if np.isfinite(ratio) else _SHRINK
            rejected += 1
            continue
        counts["rejected"] += rejected
        stepper.accept(h, w, slope, error, rejected)
        if h == left:
            return
        ratio = max(ratio, 1e-10)
        h *= min(_GROW, max(_SHRINK, _SAFETY * ratio ** (-0.7 / ORDER) * previous ** (0.4 / ORDER)))
        previous, rejected = ratio, 0
    raise ConvergenceError(
        f"the time stepping stopped at t={stepper.equation.time(stepper.s):.6g} after {len(stepper.done)} steps, the"
        f" last one tried was {h:.3g}, without meeting rtol_time={rtol:g}: v is not resolved by the basis there, or"
        " rtol_time is below what rounding allows; refine the basis, or raise rtol_time"
    ) from cause
