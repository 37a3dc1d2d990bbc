r"""Linear variational inequalities on matrices: solvers, a certificate for any candidate, and diagnostics.

For a closed convex set F of coefficients, a form B that need not be symmetric and a load l, find c in F with

    (B c - l)' (g - c) >= 0    for all g in F,

which is B c = l where F is the whole space. Errors are measured by an energy c' E c, E symmetric positive definite.
With T = E^{-1} B in that metric, three figures say how well posed the inequality is:

    coercivity  mu    = min c' B c / c' E c                 (smallest eigenvalue of the symmetric part of T)
    norm        L     = max |T c|_E / |c|_E
    stability   sigma = min |T c|_E / |c|_E >= mu           (the inf-sup constant)

If mu > 0 the solution exists, is unique, and c -> P_F(c - gamma T c + gamma E^{-1} l), P_F the projection onto F in
the metric E, contracts at rate |I - gamma T|_E, which is less than 1 for 0 < gamma < 2 mu / L^2 (arXiv 2509.02528;
J.-L. Lions and G. Stampacchia, Comm. Pure Appl. Math. 20 (1967) 493-519). The natural residual
|c - P_F(c - T c + E^{-1} l)|_E of a candidate c vanishes at the solution only, whichever way c was found (F. Facchinei
and J.-S. Pang, Finite-Dimensional Variational Inequalities, Springer 2003, section 1.5).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular
from scipy.sparse.linalg import LinearOperator, SuperLU, gmres, onenormest, spilu, splu

from fem_hjb.support.checks import FloatArray, frozen_array, positive_integer, positive_number
from fem_hjb.support.errors import ConvergenceError

Projection = Callable[[FloatArray], FloatArray]
ConstrainedSolve = Callable[[sp.csc_matrix, FloatArray], FloatArray]

ADVICE = "take more samples or fewer cells, shrink the box to where the samples are, or raise smoothing"

_ILL_CONDITIONED = 1e12
_UNSTABLE = 1e-3
_NOT_COERCIVE = -1.0
_RESIDUAL = 1e-6

_DIRECT = 1_000_000  # non-zeros up to which LU factors are cheap enough in any dimension
_DIRECT_IF_REUSED = 3_000_000  # likewise for the energy, which is solved with a hundred times
_DROP, _FILL = 1e-3, 6.0  # of the incomplete factors
_PIVOT = 0.01  # a diagonal pivot is kept down to this share of its column, as it keeps the fill low
_BACKWARD = 1e-12  # backward error above which factors are not good enough
_REFINED = 1e-2  # of the accuracy asked for: above this, solutions by LU factors are refined once
_KRYLOV, _CYCLES = 50, 3

_DENSE = 600  # unknowns up to which figures are computed by dense algebra
_EXPANSIONS = 40  # of the subspace, for one figure
_FIGURES = 1e-2  # relative accuracy of figures from a subspace
_INEXACT = 1e-5  # relative residual of the solves behind them
_CUTS = 20

_DEPTH = 10  # of Anderson acceleration
_DIVERGED = 1e6
_GRADIENT_STEP = 1.9  # times 1/L^2; convergence is certain below 2, and L known to a per cent
_FITTED = 10  # last steps from which a contraction is read
_ASYMMETRY = 1e-10
_ROUNDING = 1e-12  # relative to the sum of squares: what c' E c may fall below 0 for E positive semidefinite


class _Factors:
    """Solves with a sparse matrix and its transpose.

    Small ones are factorised with pivots on the diagonal: with partial pivoting the fill of a form that couples 19602
    unknowns in time and one dimension of space is 26 times as large (10.8 s for 0.12 s). Large ones are solved by GMRES
    on incomplete factors: 19652 unknowns in time and two dimensions take 1.4 s, factors 11 s. Whatever does not solve
    to a small backward error makes way for the next, more robust kind; pivoted factors come last.
    """

    def __init__(self, matrix: sp.csc_matrix, pivot: float, limit: int) -> None:
        self.matrix = matrix
        self.iterations = 0
        self._pivot = pivot
        self._size = float(abs(matrix).sum(axis=0).max())
        self._kinds = ["incomplete", "diagonal", "pivoted"][matrix.nnz <= limit :]
        self._lu = self._next()

    def _next(self) -> SuperLU:
        on_diagonal = {"diag_pivot_thresh": self._pivot, "options": {"SymmetricMode": True}}
        order = "MMD_AT_PLUS_A"
        while True:
            self.kind = self._kinds.pop(0)
            try:
                if self.kind == "incomplete":
                    return spilu(self.matrix, drop_tol=_DROP, fill_factor=_FILL, permc_spec=order, **on_diagonal)
                return splu(self.matrix, permc_spec=order, **(on_diagonal if self.kind == "diagonal" else {}))
            except (RuntimeError, MemoryError) as cause:
                if not self._kinds:
                    raise ConvergenceError(
                        f"the system of {self.matrix.shape[0]} unknowns is singular ({cause}); {ADVICE}"
                    ) from cause

    def solve(self, rhs: FloatArray, *, transposed: bool = False, rtol: float = _BACKWARD) -> FloatArray:
        """A^{-1} rhs or A^{-T} rhs for one right-hand side; iterations stop at the relative residual rtol."""
        matrix = self.matrix.T if transposed else self.matrix
        while True:
            x = self._iterate(matrix, rhs, transposed, rtol)
            if self._error(matrix, x, rhs) <= max(rtol, _BACKWARD) or not self._kinds:
                return x
            self._lu = self._next()

    def _iterate(self, matrix: sp.spmatrix, rhs: FloatArray, transposed: bool, rtol: float) -> FloatArray:
        def apply(b: FloatArray) -> FloatArray:
            return np.asarray(self._lu.solve(b, trans="T" if transposed else "N"))

        if self.kind == "incomplete":
            norms: list[float] = []
            rough = LinearOperator(matrix.shape, matvec=apply, dtype=np.float64)
            x, _ = gmres(
                matrix,
                rhs,
                rtol=rtol,
                restart=_KRYLOV,
                maxiter=_CYCLES,
                M=rough,
                callback=norms.append,
                callback_type="pr_norm",
            )
            self.iterations += len(norms)
            return np.asarray(x)
        x = apply(rhs)
        refine = _REFINED * rtol < self._error(matrix, x, rhs) < np.inf
        return x + apply(rhs - matrix @ x) if refine else x

    def _error(self, matrix: sp.spmatrix, x: FloatArray, rhs: FloatArray) -> float:
        """Backward error |A x - b| / (|A| |x| + |b|)."""
        if not np.isfinite(x).all():
            return np.inf
        size = self._size * float(np.linalg.norm(x)) + float(np.linalg.norm(rhs))
        return float(np.linalg.norm(matrix @ x - rhs)) / size if size else 0.0

    @property
    def has_positive_pivots(self) -> bool:
        """Whether the factors show a symmetric matrix to be positive definite; incomplete ones cannot tell."""
        if self.kind != "diagonal":
            return self.kind == "incomplete"
        return bool((self._lu.perm_r == self._lu.perm_c).all() and (self._lu.U.diagonal() > 0).all())


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class VariationalInequality:
    """Find c in F with (form c - load)' (g - c) >= 0 for all g in F; its factorisations and figures are made once.

    form (N, N) : B, sparse; its symmetric part should be positive definite.
    load (N,) : l, not 0.
    energy (N, N) : E, sparse, symmetric positive definite. Scale the unknowns so that its diagonal is about 1.
    project : target (N,) -> the point of F nearest to it in the metric E; None: F is the whole space.

    Raises ConvergenceError where shapes do not match, entries are not finite, the load is 0, or the energy is not
    symmetric or, when it is first used, not positive definite.
    """

    form: sp.csc_matrix
    load: FloatArray
    energy: sp.csc_matrix
    project: Projection | None = None

    def __post_init__(self) -> None:
        size = np.size(self.load)
        object.__setattr__(self, "load", frozen_array(self.load, "load", (size,), ConvergenceError))
        for name in ("form", "energy"):
            matrix = sp.csc_matrix(getattr(self, name), dtype=np.float64)
            if matrix.shape != (size, size):
                raise ConvergenceError(f"{name} must have shape ({size}, {size}) as the load has, got {matrix.shape}")
            if not np.isfinite(matrix.data).all():
                raise ConvergenceError(f"{name} must be finite; {ADVICE}")
            object.__setattr__(self, name, matrix)
        skew = float(abs(self.energy - self.energy.T).max())
        if skew > _ASYMMETRY * float(abs(self.energy).max()):
            raise ConvergenceError(
                f"energy must be symmetric, got entries that differ by {skew:.3g} across the diagonal"
            )
        if not self.load.any():
            raise ConvergenceError(
                "exp((y - max y)/alpha) underflows to 0 at every terminal sample, which leaves nothing to learn from: "
                "raise the temperature, or shrink the box so that max y over it is not so far from where the samples"
                " end"
            )

    @property
    def size(self) -> int:
        """The number of unknowns N."""
        return int(self.load.size)

    @cached_property
    def form_factors(self) -> _Factors:
        return _Factors(self.form, _PIVOT, _DIRECT)

    @cached_property
    def energy_factors(self) -> _Factors:
        factors = _Factors(self.energy, 0.0, _DIRECT_IF_REUSED)
        if not factors.has_positive_pivots:
            raise _indefinite(self.size)
        return factors

    @cached_property
    def _compression(self) -> "_Compression":
        return _Compression(self)

    @cached_property
    def _best_step(self) -> tuple[float, float]:
        return self._compression.best_step()

    @cached_property
    def target(self) -> FloatArray:
        """E^{-1} l."""
        return self.riesz(self.load)

    def riesz(self, functional: FloatArray, rtol: float = _BACKWARD) -> FloatArray:
        """E^{-1} functional: the function that represents it in the energy."""
        return self.energy_factors.solve(functional, rtol=rtol)

    def norm(self, c: FloatArray) -> float:
        """|c|_E."""
        square, bound = float(c @ (self.energy @ c)), _ROUNDING * float(c @ c)
        if square < -bound:
            raise _indefinite(self.size)
        return float(np.sqrt(max(square, 0.0)))

    def step(self, c: FloatArray, gamma: float) -> FloatArray:
        """P_F(c - gamma E^{-1} (B c - l))."""
        moved = c - gamma * self.riesz(self.form @ c - self.load)
        return moved if self.project is None else np.asarray(self.project(moved))


def _indefinite(size: int) -> ConvergenceError:
    return ConvergenceError(f"the energy of {size} unknowns is not positive definite to working precision; {ADVICE}")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class VariationalResult:
    """What a solver found, and how.

    coefficients (N,) : in F.
    method : "direct", "projected" or "minimal-residual".
    iterations : of the projected or the minimal-residual iteration, or of GMRES (0 with LU factors).
    gamma : the step length (of minimal residuals on a set, that of their gradient); None where there is none.
    predicted : |I - gamma T|_E, the contraction theory promises; None where there is none.
    contraction : observed, fitted to the last steps of `history`; nan with fewer than three.
    history : one figure per iteration, relative to |E^{-1} l|_E. Projected: an upper bound of the natural residual.
        Minimal residual: |E^{-1} (B c - l)|_E, or with a set an upper bound of the natural residual of that problem,
        relative to |E^{-1} B' E^{-1} l|_E. Direct: the residual below.
    residual : natural residual of the inequality at the coefficients, relative to |E^{-1} l|_E. It is 0 at the solution
        only; with a set, the minimal residual method solves another problem and leaves one.
    converged, message : whether the tolerance was met; "ok", or why not and what to do.
    """

    coefficients: FloatArray
    method: Literal["direct", "projected", "minimal-residual"]
    iterations: int
    gamma: float | None
    predicted: float | None
    contraction: float
    history: FloatArray
    residual: float
    converged: bool
    message: str

    def __post_init__(self) -> None:
        for name in ("coefficients", "history"):
            array = np.array(getattr(self, name), dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)


def natural_residual(inequality: VariationalInequality, c: ArrayLike) -> float:
    """|c - P_F(c - E^{-1} (B c - l))|_E relative to |E^{-1} l|_E: 0 at the solution only, however c was found.

    The error obeys |c - c*|_E <= (1 + L)/mu times the absolute residual. Raises ConvergenceError where c is not a
    finite (N,).
    """
    candidate = frozen_array(c, "c", (inequality.size,), ConvergenceError)
    return inequality.norm(candidate - inequality.step(candidate, 1.0)) / inequality.norm(inequality.target)


def direct(inequality: VariationalInequality, solve_constrained: ConstrainedSolve | None = None) -> VariationalResult:
    """Solve by sparse factors (GMRES on incomplete ones beyond a million non-zeros), with a set by `solve_constrained`.

    solve_constrained : (B, l) -> coefficients in F; needed if and only if the inequality has a set. No coercivity is
        asked for, except by what solve_constrained may ask.

    Raises ConvergenceError where the system is singular or only solved to a relative residual of 1e-6, and where there
    is a set and no solve_constrained or conversely. Nothing is replaced by a least-squares solution.
    """
    if (inequality.project is None) != (solve_constrained is None):
        raise ConvergenceError(
            "direct needs the set both as the inequality's project (it judges the solution) and as solve_constrained "
            f"(it finds it), or neither; only {'solve_constrained' if inequality.project is None else 'project'} given"
        )
    iterations = 0
    if solve_constrained is None:
        factors, load = inequality.form_factors, inequality.load
        before = factors.iterations
        coefficients = factors.solve(load)
        iterations = factors.iterations - before
        algebraic = float(np.linalg.norm(inequality.form @ coefficients - load) / np.linalg.norm(load))
        if not algebraic < _RESIDUAL:
            raise ConvergenceError(
                f"the system of {load.size} unknowns was only solved to a relative residual of {algebraic:.1e}; "
                + ADVICE
            )
    else:
        coefficients = np.asarray(solve_constrained(inequality.form, inequality.load))
    residual = natural_residual(inequality, coefficients)
    converged = residual < _RESIDUAL
    return VariationalResult(
        coefficients=coefficients,
        method="direct",
        iterations=iterations,
        gamma=None,
        predicted=None,
        contraction=float("nan"),
        history=np.array([residual]),
        residual=residual,
        converged=converged,
        message="ok" if converged else f"solved to a relative natural residual of {residual:.1e} only; {ADVICE}",
    )


def projected(
    inequality: VariationalInequality,
    *,
    gamma: float | None = None,
    start: ArrayLike | None = None,
    tol: float = 1e-10,
    maxiter: int = 2000,
    accelerate: bool = True,
) -> VariationalResult:
    """The projected iteration c <- P_F(c - gamma E^{-1} (B c - l)) of arXiv 2509.02528, one solve with E per step.

    gamma : step length; None: the one that minimises |I - gamma T|_E (mu / L^2 is safe, but up to 2 times too short).
    start : first iterate, None: 0. It need not be in F.
    tol : on the natural residual relative to |E^{-1} l|_E. Steps stop where an upper bound of it falls below.
    accelerate : extrapolate from the last ten steps (Anderson acceleration, in the metric E). An extrapolated iterate
        is kept only if its step is shorter than the last one by at least the predicted contraction; otherwise the plain
        step is taken, so that the rate is never worse. False: the plain iteration.

    A form that diverges or has not met tol by maxiter steps comes back with converged=False and a message.

    Raises ConvergenceError where the form is not coercive (mu <= 0) and gamma is None, and for bad numbers.
    """
    tol = positive_number(tol, "tol", ConvergenceError)
    maxiter = positive_integer(maxiter, "maxiter", ConvergenceError)
    if gamma is None:
        gamma, predicted = inequality._best_step
        if gamma <= 0:
            raise ConvergenceError(
                f"the form is not coercive: the smallest eigenvalue of its symmetric part relative to the energy is "
                f"{inequality._compression.coercivity:.2g}, and no step length makes the projected iteration contract; "
                "use method='direct' or 'minimal-residual', estimator='residual' (its form is symmetric and positive), "
                "a ridge, a smaller class or more samples"
            )
    else:
        gamma = positive_number(gamma, "gamma", ConvergenceError)
        predicted = inequality._compression.contraction(gamma)
    zero = np.zeros(inequality.size)
    c = zero if start is None else frozen_array(start, "start", zero.shape, ConvergenceError)
    coefficients, history = _fixed_point(
        inequality,
        lambda c: inequality.step(c, gamma),
        c,
        gamma=gamma,
        rate=predicted,
        scale=inequality.norm(inequality.target),
        tol=tol,
        maxiter=maxiter,
        depth=_DEPTH if accelerate else 0,
    )
    converged = bool(history[-1] <= tol)
    message = "ok"
    if not converged:
        advice = "leave gamma to be chosen" if predicted >= 1 else "raise maxiter, add a ridge, or use method='direct'"
        message = (
            f"{'diverges' if not history[-1] < _DIVERGED * history[0] else 'not converged'} after {len(history)} steps "
            f"with gamma={gamma:.3g}, whose predicted contraction is {predicted:.4g}; {advice}"
        )
    return VariationalResult(
        coefficients=coefficients,
        method="projected",
        iterations=len(history),
        gamma=gamma,
        predicted=predicted,
        contraction=_observed(history),
        history=np.array(history),
        residual=natural_residual(inequality, coefficients),
        converged=converged,
        message=message,
    )


def _fixed_point(
    inequality: VariationalInequality,
    step: Projection,
    c: FloatArray,
    *,
    gamma: float,
    rate: float,
    scale: float,
    tol: float,
    maxiter: int,
    depth: int,
) -> tuple[FloatArray, list[float]]:
    """Iterate c <- step(c), a projected step of length gamma, until an upper bound of the natural residual is <= tol.

    rate : what a step shortens at least by. Returns the last image (a point of F) and the bounds relative to scale: the
    residual of step length gamma grows with gamma, divided by gamma it falls, hence the one of step length 1 is at most
    max(1, 1/gamma) times it.
    """
    mixing = _Anderson(inequality, depth)
    history: list[float] = []
    last, best = np.inf, c
    while len(history) < maxiter:
        image = step(c)
        length = inequality.norm(image - c)
        history.append(length * max(1.0, 1.0 / gamma) / scale)
        if mixing.extrapolated and length > min(rate, 1.0) * last:
            # Go on from the last image instead: a plain step, whose length needs no test.
            mixing.clear()
            c, last = best, np.inf
            continue
        last, best = length, image
        if history[-1] <= tol or not history[-1] < _DIVERGED * history[0]:
            break
        c = mixing.next(c, image)
    return best, history


class _Anderson:
    """Anderson acceleration of c -> image: D. G. Anderson, J. ACM 12 (1965) 547-560, in the metric of the energy."""

    def __init__(self, inequality: VariationalInequality, depth: int) -> None:
        self._energy, self._depth = inequality.energy, depth
        self.clear()

    def clear(self) -> None:
        self.extrapolated = False  # whether the point returned last was
        self._last: tuple[FloatArray, FloatArray] | None = None
        self._changes: list[tuple[FloatArray, FloatArray, FloatArray]] = []

    def next(self, c: FloatArray, image: FloatArray) -> FloatArray:
        """image - sum_j theta_j (change of image)_j with theta the minimiser of |step - sum_j theta_j change_j|_E."""
        if not self._depth:
            return image
        step = image - c
        if self._last is not None:
            change = step - self._last[1]
            self._changes = [*self._changes, (image - self._last[0], change, self._energy @ change)][-self._depth :]
        self._last = image, step
        if not self._changes:
            return image
        images, steps, weighted = (np.array(rows) for rows in zip(*self._changes, strict=True))
        gram = steps @ weighted.T
        unit = 1.0 / np.sqrt(np.maximum(gram.diagonal(), np.finfo(float).tiny))
        theta = np.linalg.lstsq(gram * np.outer(unit, unit), unit * (weighted @ step), rcond=1e-12)[0] * unit
        self.extrapolated = True
        return np.asarray(image - theta @ images)


def minimal_residual(
    inequality: VariationalInequality, *, tol: float = 1e-10, maxiter: int = 2000
) -> VariationalResult:
    """Minimise |E^{-1} (B c - l)|_E over F, which needs no coercivity; each step takes two solves with E.

    On a linear space: conjugate gradients on the normal equations in the metric E (the solution of least energy where B
    is singular), until the residual, or the cosine of its angle with the range of T, is below tol. On a set: projected
    gradient steps of length 1.9 / L^2, accelerated as in `projected`, until the natural residual of the minimisation,
    relative to |E^{-1} B' E^{-1} l|_E, is below tol. Either takes a number of steps of the order of L/sigma.

    Raises ConvergenceError for bad numbers; what has not met tol by maxiter steps comes back with converged=False.
    """
    tol = positive_number(tol, "tol", ConvergenceError)
    maxiter = positive_integer(maxiter, "maxiter", ConvergenceError)
    gamma = None if inequality.project is None else _GRADIENT_STEP / inequality._compression.norm**2
    if gamma is None:
        coefficients, history, converged = _conjugate_gradients(inequality, tol, maxiter)
    else:
        coefficients, history = _projected_gradients(inequality, gamma, tol, maxiter)
        converged = history[-1] <= tol
    return VariationalResult(
        coefficients=coefficients,
        method="minimal-residual",
        iterations=len(history),
        gamma=gamma,
        predicted=None,
        contraction=_observed(history),
        history=np.array(history),
        residual=natural_residual(inequality, coefficients),
        converged=converged,
        message="ok"
        if converged
        else f"not converged after {len(history)} steps; raise maxiter, add a ridge, or use method='direct'",
    )


def _conjugate_gradients(
    inequality: VariationalInequality, tol: float, maxiter: int
) -> tuple[FloatArray, list[float], bool]:
    form, norm, riesz = inequality.form, inequality.norm, inequality.riesz
    c, r = np.zeros(inequality.size), inequality.target.copy()
    direction = s = riesz(form.T @ r)
    size, scale, slope = 0.0, norm(r), norm(s)
    history: list[float] = []
    while len(history) < maxiter and slope:
        image = riesz(form @ direction)
        size = max(size, norm(image) / norm(direction))
        length = (slope / norm(image)) ** 2
        c, r = c + length * direction, r - length * image
        s = riesz(form.T @ r)
        before, slope = slope, norm(s)
        history.append(norm(r) / scale)
        if history[-1] <= tol or slope <= tol * size * norm(r):
            return c, history, True
        direction = s + (slope / before) ** 2 * direction
    return c, history, not slope


def _projected_gradients(
    inequality: VariationalInequality, gamma: float, tol: float, maxiter: int
) -> tuple[FloatArray, list[float]]:
    form, riesz, project = inequality.form, inequality.riesz, inequality.project

    def gradient(c: FloatArray) -> FloatArray:
        return riesz(form.T @ riesz(form @ c - inequality.load))

    def step(c: FloatArray) -> FloatArray:
        moved = c - gamma * gradient(c)
        return moved if project is None else np.asarray(project(moved))

    zero = np.zeros(inequality.size)
    scale = inequality.norm(gradient(zero))
    # A step cannot lengthen; how much it shortens depends on sigma, which would take factors of B to know.
    return _fixed_point(
        inequality, step, zero, gamma=gamma, rate=1.0, scale=scale, tol=tol, maxiter=maxiter, depth=_DEPTH
    )


def _observed(history: list[float]) -> float:
    """Mean factor per step, fitted to the last ones."""
    last = np.array(history[-_FITTED:])
    last = last[np.isfinite(last) & (last > 0)]
    return float(np.exp(np.polyfit(np.arange(last.size), np.log(last), 1)[0])) if last.size > 2 else float("nan")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Diagnostics:
    """How well posed an inequality is, see the head of the module: mu, L, sigma, min |I - gamma T|_E, |B| |B^{-1}|.

    coercivity : mu. Positive: the solution is unique with any set, and the projected iteration contracts.
    norm : L.
    stability : sigma.
    contraction, gamma : the smallest |I - gamma T|_E and the gamma >= 0 where it is found; 1 and 0 if mu <= 0.
    condition : 1-norm estimate of the condition number of B.

    Beyond 600 unknowns they are Ritz values, a per cent or so on the inner side (mu and sigma from above, L and the
    contraction from below).
    """

    coercivity: float
    norm: float
    stability: float
    contraction: float
    gamma: float
    condition: float


def diagnose(inequality: VariationalInequality) -> Diagnostics:
    """The figures of an inequality without its set: dense algebra up to 600 unknowns, a Krylov subspace beyond.

    Raises ConvergenceError where B is singular or E is not positive definite.
    """
    compression, factors = inequality._compression, inequality.form_factors
    gamma, contraction = inequality._best_step
    inverse = LinearOperator(
        inequality.form.shape,
        matvec=lambda b: factors.solve(np.ravel(b), rtol=_INEXACT),
        rmatvec=lambda b: factors.solve(np.ravel(b), transposed=True, rtol=_INEXACT),
        dtype=np.float64,
    )
    return Diagnostics(
        coercivity=compression.coercivity,
        norm=compression.norm,
        stability=compression.stability,
        contraction=contraction,
        gamma=gamma,
        condition=float(abs(inequality.form).sum(axis=0).max()) * float(onenormest(inverse, t=1)),
    )


def status(diagnostics: Diagnostics) -> str:
    """ "ok", or what is doubtful about the solution of an inequality with these diagnostics, and what to do.

    Left-point sums over few steps per time cell can take coercivity to about -0.6 without harm, hence stability and the
    condition number count first, and coercivity below -1 only.
    """
    doubts = []
    if not diagnostics.stability >= _UNSTABLE:
        doubts.append(f"unstable (smallest singular value {diagnostics.stability:.1g} relative to the energy)")
    if not diagnostics.coercivity >= _NOT_COERCIVE:
        doubts.append(f"coercivity lost (smallest eigenvalue {diagnostics.coercivity:.2g} relative to the energy)")
    if not diagnostics.condition <= _ILL_CONDITIONED:
        doubts.append(f"ill-conditioned (condition number about {diagnostics.condition:.0e})")
    return f"{', '.join(doubts)}: {ADVICE}" if doubts else "ok"


class _Compression:
    """S = (T + T*)/2 and H = T* T, adjoints in the metric E, in an E-orthonormal basis of everything or a subspace.

    Every figure is the largest eigenvalue of some a I + b S + c H. In a subspace it is a Ritz value; the residual of
    its vector is added to the subspace until it is accurate. The figures share the subspace.
    """

    def __init__(self, inequality: VariationalInequality) -> None:
        self._inequality = inequality
        self._complete = inequality.size <= _DENSE
        if self._complete:
            try:
                lower = cholesky(inequality.energy.toarray(), lower=True)
            except LinAlgError as cause:
                raise _indefinite(inequality.size) from cause
            half = solve_triangular(lower, inequality.form.toarray(), lower=True)
            T = solve_triangular(lower, half.T, lower=True).T
            self._S, self._H = (T + T.T) / 2, T.T @ T
            return
        # A basis V of the subspace, W = T V, B V and E W.
        self._V, self._W, self._BV, self._EW = np.empty((4, inequality.size, 0))
        self._add(np.random.default_rng(0).standard_normal(inequality.size))

    @cached_property
    def coercivity(self) -> float:
        return -self._largest(0.0, -1.0, 0.0)[0]

    @cached_property
    def norm(self) -> float:
        return float(self._largest(0.0, 0.0, 1.0)[0] ** 0.5)

    @cached_property
    def stability(self) -> float:
        return float(max(-self._largest(0.0, 0.0, -1.0)[0], 0.0) ** 0.5)

    def contraction(self, gamma: float) -> float:
        """|I - gamma T|_E."""
        return float(max(self._largest(1.0, -2 * gamma, gamma**2)[0], 0.0) ** 0.5)

    def best_step(self) -> tuple[float, float]:
        """The gamma >= 0 that minimises |I - gamma T|_E, and that norm.

        The square is the largest of the parabolas 1 - 2 gamma s + gamma^2 h over unit vectors x, s = x' S x and
        h = x' H x. Minimise the largest of a few, add the one that is largest there, and so on.
        """
        cuts = [self._largest(0.0, -1.0, 0.0)[1:], self._largest(0.0, 0.0, 1.0)[1:]]
        if cuts[0][0] <= 0:
            return 0.0, 1.0
        best, gamma = np.inf, 0.0
        for _ in range(_CUTS):
            trial, below = _lowest(np.array(cuts))
            value, s, h = self._largest(1.0, -2 * trial, trial**2)
            if value < best:
                best, gamma = value, trial
            if best - below <= 0.1 * _FIGURES * (1 - below):
                break
            cuts.append((s, h))
        return gamma, float(max(best, 0.0) ** 0.5)

    def _largest(self, a: float, b: float, c: float) -> tuple[float, float, float]:
        """Largest eigenvalue of a I + b S + c H, with x' S x and x' H x at its unit vector x."""
        for left in reversed(range(_EXPANSIONS)):
            S, H = (self._S, self._H)
            k = len(S)
            values, vectors = eigh(b * S + c * H, subset_by_index=[k - 1, k - 1])
            y = vectors[:, 0]
            if self._complete or not left or not self._expand(y, b, c, float(values[0])):
                break
        return a + float(values[0]), float(y @ S @ y), float(y @ H @ y)

    def _expand(self, y: FloatArray, b: float, c: float, value: float) -> bool:
        """Add the residual of a Ritz pair of b S + c H to the subspace; False if it is small already."""
        inequality = self._inequality
        x, image = self._V @ y, self._W @ y
        if (b, c) == (0.0, -1.0):
            # The bottom of H may lie far below its top: one step of inverse iteration finds it, no Krylov space would.
            back = inequality.form_factors.solve(inequality.energy @ x, transposed=True, rtol=_INEXACT)
            new = inequality.form_factors.solve(inequality.energy @ back, rtol=_INEXACT)
            new /= inequality.norm(new)
            new -= self._V @ (self._V.T @ (inequality.energy @ new))
            if inequality.norm(new) <= _FIGURES:
                return False
        else:
            adjoint = inequality.riesz(inequality.form.T @ (b / 2 * x + c * image), rtol=_INEXACT)
            new = b / 2 * image + adjoint - value * x
            if inequality.norm(new) <= _FIGURES * abs(value):
                return False
        self._add(new)
        return True

    def _add(self, new: FloatArray) -> None:
        inequality, V = self._inequality, self._V
        for _ in range(2):
            new = new / inequality.norm(new)
            new = new - V @ (V.T @ (inequality.energy @ new))
        new = new / inequality.norm(new)
        applied = inequality.form @ new
        image = inequality.riesz(applied, rtol=_INEXACT)
        self._V, self._BV = np.column_stack([V, new]), np.column_stack([self._BV, applied])
        self._W = np.column_stack([self._W, image])
        self._EW = np.column_stack([self._EW, inequality.energy @ image])
        S, mixed = self._V.T @ self._BV, self._BV.T @ self._W
        self._S = (S + S.T) / 2
        # Twice the mixed product less the plain one: the error of the images enters squared.
        self._H = mixed + mixed.T - self._W.T @ self._EW


def _lowest(cuts: FloatArray) -> tuple[float, float]:
    """Where the largest of the parabolas 1 - 2 gamma s + gamma^2 h, rows (s, h), is lowest, and its value there."""
    s, h = cuts.T
    i, j = np.triu_indices(len(s), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = 2 * (s[i] - s[j]) / (h[i] - h[j])
    candidates = np.concatenate([s / h, crossings])
    candidates = candidates[np.isfinite(candidates) & (candidates > 0)]
    heights = (1 - 2 * np.outer(candidates, s) + np.outer(candidates**2, h)).max(axis=1)
    return float(candidates[heights.argmin()]), float(heights.min())
