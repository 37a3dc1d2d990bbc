r"""Solvers of linear variational inequalities: direct, projected steps, and minimal residuals.

Notation as in `inequality`: find c in F with (B c - l)' (g - c) >= 0 for all g in F; T = E^{-1} B.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from fem_hjb.learning.constrained_solve import InequalityResult
from fem_hjb.learning.factors import ADVICE
from fem_hjb.learning.inequality import Projection, VariationalInequality, natural_residual
from fem_hjb.support.checks import FloatArray, frozen_array, positive_integer, positive_number
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.objects import Plain
from fem_hjb.support.progress import OutOfTimeError, beats_of

ConstrainedSolve = Callable[[sp.csc_matrix, FloatArray], InequalityResult]

_RESIDUAL = 1e-6
_DEPTH = 10  # of Anderson acceleration
_DIVERGED = 1e6
_GRADIENT_STEP = 1.9  # times 1/L^2; convergence is certain below 2, and L known to a per cent
_OVER = "max_seconds were over after {steps} steps, at a relative residual of {reached:.1e}"
_FITTED = 10  # last steps from which a contraction is read


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class VariationalResult(Plain):
    """What a solver found, and how.

    coefficients (N,) : in F.
    method : "direct", "projected" or "minimal-residual".
    iterations : of the projected or the minimal-residual iteration, of GMRES (0 with exact factors), or how many
        linear systems the direct method has solved to find the active set.
    gamma : the step length (of minimal residuals on a set, that of their gradient); None where there is none.
    predicted : |I - gamma T|_E, the contraction theory promises; None where there is none.
    contraction : observed, fitted to the last steps of `history`; nan with fewer than three.
    history : one figure per iteration, relative to |E^{-1} l|_E. Projected: an upper bound of the natural residual.
        Minimal residual: |E^{-1} (B c - l)|_E, or with a set an upper bound of the natural residual of that problem,
        relative to |E^{-1} B' E^{-1} l|_E. Direct: the residual below.
    residual : natural residual of the inequality at the coefficients, relative to |E^{-1} l|_E. It is 0 at the solution
        only; with a set, the minimal residual method solves another problem and leaves one.
    kkt : what the direct method leaves of the KKT conditions of a set, see `InequalityResult.residual`; nan elsewhere.
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
    kkt: float = float("nan")

    def __post_init__(self) -> None:
        for name in ("coefficients", "history"):
            array = np.array(getattr(self, name), dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)


def direct(inequality: VariationalInequality, solve_constrained: ConstrainedSolve | None = None) -> VariationalResult:
    """Solve by sparse factors (GMRES on incomplete ones beyond a million non-zeros), with a set by `solve_constrained`.

    solve_constrained : (B, l) -> the solution in F; needed if and only if the inequality has a set. No coercivity is
        asked for, except by what solve_constrained may ask.

    Raises ConvergenceError where the system is singular or only solved to a relative residual of 1e-6, and where there
    is a set and no solve_constrained or conversely. Nothing is replaced by a least-squares solution.
    """
    if (inequality.project is None) != (solve_constrained is None):
        raise ConvergenceError(
            "direct needs the set both as the inequality's project (it judges the solution) and as solve_constrained "
            f"(it finds it), or neither; only {'solve_constrained' if inequality.project is None else 'project'} given"
        )
    iterations, kkt = 0, float("nan")
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
        found = solve_constrained(inequality.form, inequality.load)
        coefficients, iterations, kkt = found.coefficients, found.iterations, found.residual
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
        kkt=kkt,
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
        gamma, predicted = inequality.best_step
        if gamma <= 0:
            raise ConvergenceError(
                f"the form is not coercive: the smallest eigenvalue of its symmetric part relative to the energy is "
                f"{inequality.compression.coercivity:.2g}, and no step length makes the projected iteration contract; "
                "use method='direct' or 'minimal-residual', estimator='residual' (its form is symmetric and positive), "
                "a ridge, a smaller class or more samples"
            )
    else:
        gamma = positive_number(gamma, "gamma", ConvergenceError)
        predicted = inequality.compression.contraction(gamma)
    zero = np.zeros(inequality.size)
    c = zero if start is None else frozen_array(start, "start", zero.shape, ConvergenceError)
    coefficients, history, over = _fixed_point(
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
    message = _OVER.format(steps=len(history), reached=history[-1]) if over else "ok"
    if not (converged or over):
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
) -> tuple[FloatArray, list[float], bool]:
    """Iterate c <- step(c), a projected step of length gamma, until an upper bound of the natural residual is <= tol.

    rate : what a step shortens at least by. Returns the last image (a point of F) and the bounds relative to scale: the
    residual of step length gamma grows with gamma, divided by gamma it falls, hence the one of step length 1 is at most
    max(1, 1/gamma) times it. And whether time was over, after one step at the earliest.
    """
    beat = beats_of(inequality.tell)
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
        try:
            beat()
        except OutOfTimeError:
            return best, history, True
        c = mixing.next(c, image)
    return best, history, False


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
    gamma = None if inequality.project is None else _GRADIENT_STEP / inequality.compression.norm**2
    if gamma is None:
        coefficients, history, converged, over = _conjugate_gradients(inequality, tol, maxiter)
    else:
        coefficients, history, over = _projected_gradients(inequality, gamma, tol, maxiter)
        converged = history[-1] <= tol
    message = _OVER.format(steps=len(history), reached=history[-1]) if over else "ok"
    if not (converged or over):
        message = f"not converged after {len(history)} steps; raise maxiter, add a ridge, or use method='direct'"
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
        message=message,
    )


def _conjugate_gradients(
    inequality: VariationalInequality, tol: float, maxiter: int
) -> tuple[FloatArray, list[float], bool, bool]:
    """The coefficients, the residuals of all steps, whether they converged, and whether time was over."""
    beat = beats_of(inequality.tell)
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
            return c, history, True, False
        try:
            beat()
        except OutOfTimeError:
            return c, history, False, True
        direction = s + (slope / before) ** 2 * direction
    return c, history, not slope, False


def _projected_gradients(
    inequality: VariationalInequality, gamma: float, tol: float, maxiter: int
) -> tuple[FloatArray, list[float], bool]:
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
