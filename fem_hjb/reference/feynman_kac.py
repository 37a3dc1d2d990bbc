r"""`feynman_kac`: expectations of what is paid at T, of any sign, discounted or grown on the way, to a tolerance.

    u_t(x) = E[ h(X_T) exp( (1/alpha) int_t^T r_s(X_s) ds ) | X_t = x ]

solves d_t u + <b, grad u> + 1/2 Tr(Lambda Hess u) + (r/alpha) u = 0, u_T = h (M. Kac, Trans. AMS 65 (1949) 1-13), the
equation of f with h in the place of exp(y/alpha). It is linear, and h need not be positive: no logarithm, no policy.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.problem import ControlProblem, checked_call, require_box, require_problem
from fem_hjb.reference.box_tolerance import solve_payoff
from fem_hjb.reference.tolerance import checked_rtol
from fem_hjb.solutions.estimate import ErrorEstimate, ToleranceWarning
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, Rng, as_seed, as_times, positive_integer
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError
from fem_hjb.support.objects import Plain
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, until

_FIGURES = ("dofs", "shape", "degree", "panels", "jumps", "layer", "steps", "solves", "calls", "points")


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class FeynmanKacSolution(Plain):
    """u_t(x) = E[ h(X_T) exp(int_t^T r/alpha) | X_t = x ] and its gradient, at any time and point of a box.

    coefficients : of exp(-rate (T - t)) u_t / scale on the space, rate being the mean of r/alpha and scale a size of h.
    error_estimate : of that function. Its `value` is the max over t of the L2(p_t) norm of the error over that of the
        function, p being the law of the process, its `policy` the same of the gradient in the norm |a|^2 = a' Lambda a,
        which counts as a thousandth of the function over the width of the box at least.
        Where h jumps or has kinks both are those up to T - stats["layer"]; after it u goes over to h.
    status : "ok", or what was not reached.  stats : figures of the solver.
    """

    problem: ControlProblem
    space: Space | PanelSpace
    coefficients: FloatArray
    scale: float
    rate: float
    status: str
    error_estimate: ErrorEstimate
    stats: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"expectation under {self.problem.name!r}: {self.status}\nrelative error: {self.error_estimate}"

    def value(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """u_t(x), shape S.

        t : scalar or (...);  x : (..., d); they broadcast against each other to the shape S.
        outside : "error" raises DomainError naming the points outside the box, "nan" returns nan there.
        """
        values = self.space.evaluate(self.coefficients, t, x, "value", outside=outside)
        return np.asarray(self._factor(t) * values)

    def gradient(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """grad u_t(x), shape (*S, d)."""
        (slopes,) = self.space.derivatives(self.coefficients, t, x, ("gradient",), outside=outside)
        return np.asarray(self._factor(t)[..., None] * slopes)

    def _factor(self, t: ArrayLike) -> FloatArray:
        """What u was divided by."""
        horizon = self.problem.horizon
        return np.asarray(self.scale * np.exp(self.rate * (horizon - as_times(t, horizon))))


def feynman_kac(
    problem: ControlProblem,
    h: Callable[[FloatArray], ArrayLike],
    *,
    rtol: float = 1e-4,
    box: Box | None = None,
    max_dofs: int | None = None,
    rng: Rng = 0,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> FeynmanKacSolution:
    """E[ h(X_T) exp(int_t^T r/alpha) | X_t = x ] of the uncontrolled process, to a tolerance; d <= 3.

    The terminal reward and the exact solution of the problem play no role; drift, diffusion, running reward,
    temperature and initial law do.

    Parameters
    ----------
    h : a callable x (..., d) -> (...), of any sign.
    rtol : relative error of u and its gradient under the law of the process (`FeynmanKacSolution.error_estimate`), from
        1e-10 to 0.1. Where it is not met, a `ToleranceWarning` says why, and so does the status.
    box, max_dofs, rng, progress, max_seconds : as in `solve`.

    Raises
    ------
    ProblemError : h cannot be called, fails, or returns a wrong shape or numbers that are not finite; or it is 0
        wherever the process goes.
    DomainError : the box does not fit, there are more than three coordinates, or the process is stopped at faces.
    ConvergenceError : rtol is out of range, no solution exists on any grid tried, or none was found within max_seconds.
    EllipticityError : Lambda is not positive definite somewhere in the box.
    """
    require_problem(problem, "feynman_kac")
    require_box(problem, "feynman_kac")
    rtol, seed = checked_rtol(rtol), as_seed(rng)
    watch = until(checked_progress(progress), checked_seconds(max_seconds))
    if max_dofs is not None:
        max_dofs = positive_integer(max_dofs, "max_dofs", SpaceError)
    if not callable(h):
        raise ProblemError(f"h must be a callable x (..., d) -> (...), got {type(h).__name__}")
    if problem.dim > 3:
        raise DomainError(f"boxes go up to dimension 3, {problem.name!r} has dim={problem.dim}; simulate paths instead")
    if problem.domain is not None and problem.domain.absorbing:
        raise DomainError(
            f"the process of {problem.name!r} is stopped at absorbing faces, where h is not what is paid; solve for"
            " f = exp(v/alpha) with `solve`, or take a domain that reflects"
        )
    started = time.perf_counter()
    payoff = partial(_paid, h)
    free = replace(problem, terminal_reward=_nothing, exact=None)
    try:
        found, scale = solve_payoff(free, payoff, rtol, box, max_dofs, watch, seed)
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"feynman_kac({problem.name!r}): no solution within max_seconds={max_seconds:g}; give it more time, or a"
            " larger rtol"
        ) from None
    watch.finished()
    estimate = found.error_estimate
    if estimate is None or not isinstance(found.gauge, Gauge):
        raise ConvergenceError("a solution without an estimate")
    told = [] if found.status == "ok" else [found.status]
    if not estimate.met(rtol):
        told.append(estimate.complaint(rtol, f"feynman_kac({problem.name!r})"))
        warnings.warn("; ".join(told), ToleranceWarning, stacklevel=2)
    return FeynmanKacSolution(
        problem=problem,
        space=found.space,
        coefficients=np.asarray(found.coefficients),
        scale=scale,
        rate=found.gauge.running / problem.temperature,
        status="; ".join(told) or "ok",
        error_estimate=estimate,
        stats={name: found.stats[name] for name in _FIGURES} | {"seconds": time.perf_counter() - started},
    )


def _paid(h: Callable[[FloatArray], ArrayLike], x: FloatArray) -> FloatArray:
    return checked_call("h(x)", h, (x,), ())


def _nothing(x: FloatArray) -> FloatArray:
    return np.zeros(np.shape(x)[:-1])
