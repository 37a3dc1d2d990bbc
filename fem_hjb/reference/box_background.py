r"""A quadratic guess of the value, to be taken out of f before the linear equation is discretised.

Drift, diffusion and rewards are replaced by their least-squares fits b ~ A(t) z + a(t), Lambda(t), r ~ -z'Q(t)z/2 +
q(t)'z + q0(t), y ~ -z'Rz/2 + s'z + s0 in z = x - centre, under a Gaussian weight on the box. The value of this
linear-quadratic problem (see `closed_form.LinearQuadratic` for the Riccati equations) is the background. For a problem
that is linear-quadratic it is the value itself, and all that is left is u = 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.polynomial import chebyshev
from scipy.integrate import solve_ivp

from fem_hjb.paths.breaks import all_times
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Background, Gauge, QuadraticGauge
from fem_hjb.problems.laws import tensor_rule
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import FemHjbError, InfiniteValueError

Fields = Sequence[tuple[float, FloatArray, FloatArray, FloatArray]]

_ORDER = {1: 24, 2: 12, 3: 8}  # Gauss points per axis of the fit
_REACH = 4.0  # standard deviations of its weight between the middle of the box and its faces
_TIMES = 41  # Chebyshev points at which coefficients are fitted
_DEGREES = (8, 16, 32, 64)  # of the Chebyshev series of the background
_TIGHT, _LOOSE = 1e-13, 1e-7  # tolerances of the Riccati equations
_RINGING = 1e-5  # last coefficients, relative: those of a jump among 41 are a hundredth, of a kink 1e-4
_DAMPING = 18.0  # of the last coefficient of a series that does not converge, as an exponent
_EXACT = 1e-10  # relative residual below which a fit counts as exact
_FAR, _NEARLY = 4096.0, 1e-3  # times as wide; misfit there, of which a square at one deviation is a sixteenth
_CRITICAL = 0.02  # of the horizon, by which a Riccati equation that is nearly that of a problem has to blow up before 0


@final
@dataclass(frozen=True, eq=False)
class _Fit:
    """t (k,) -> A, Lambda, Q (d, d), a, q (d,) and q0, one after the other; R, s, s0 so, too; the largest misfit."""

    at: Callable[[FloatArray], FloatArray]
    start: FloatArray
    largest: float  # of |Lambda|
    misfit: float  # relative


def quadratic_gauge(problem: ControlProblem, box: Box, constants: Gauge) -> QuadraticGauge | None:
    """The background above for a box, or None if its Riccati equation blows up on [0, T].

    Raises InfiniteValueError if it blows up and the problem is linear-quadratic, at least far away: the value is then
    infinite.
    """
    fit, T = _fit(problem, box), problem.horizon
    exact = fit.misfit <= _EXACT
    run = _solved(problem, fit, _TIGHT if exact else _LOOSE)  # what is not the value itself need only be smooth
    blown = run is None or run.status != 0
    when = _infinite_before(problem, box, T - float(run.t[-1]) if exact and blown and run is not None else None)
    if when is not None:
        raise InfiniteValueError(
            f"the value of {problem.name!r} is +infinity before t = {when:.6g}: the problem is linear-quadratic,"
            " everywhere or far away, and its Riccati equation blows up there; let the rewards grow more slowly,"
            " raise the temperature or shorten the horizon"
        )
    if blown:
        return None
    # The slope is expanded and its series integrated: differentiating that of the state would amplify rounding errors,
    # which the rate of u would then have to undo.
    d, alpha = problem.dim, problem.temperature
    slopes = _series(lambda t: -_riccati(fit.at(t), run.sol(T - t).T, d, alpha), T)
    series = chebyshev.chebint(slopes, scl=T / 2)
    series[0] += fit.start - chebyshev.chebval(1.0, series)
    P = series[:, : d * d].reshape(-1, d, d)
    lower, upper = box.bounds
    return QuadraticGauge(
        constants=constants,
        centre=(lower + upper) / 2,
        P=(P + np.swapaxes(P, 1, 2)) / 2,
        p=series[:, d * d : -1],
        c=series[:, -1],
    )


def _solved(problem: ControlProblem, fit: _Fit, rtol: float) -> Any:
    """P, p and c of a fit on [0, T] in time to go, as `solve_ivp` has them, up to where P blows up; None if at once."""
    d, T, alpha = problem.dim, problem.horizon, problem.temperature
    scale = alpha / max(fit.largest * T, 1e-300)

    def tame(_: float, state: FloatArray) -> float:
        return float(np.linalg.eigvalsh(state[: d * d].reshape(d, d))[0] + 1e6 * scale)

    def rate(s: float, state: FloatArray) -> FloatArray:
        return np.asarray(_riccati(fit.at(np.array([T - s])), state[None], d, alpha)[0])

    tame.terminal = True  # type: ignore[attr-defined]
    if tame(0.0, fit.start) <= 0:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        how = {"dense_output": True, "events": tame, "rtol": rtol, "atol": 0.1 * rtol}
        return solve_ivp(rate, (0.0, T), fit.start, "DOP853", **how)


def _infinite_before(problem: ControlProblem, box: Box, near: float | None) -> float | None:
    """The time before which the value is infinite as the problem is linear-quadratic far away; None if it is not known.

    What rewards and coefficients do besides is small beside squares of distances there, and changes critical rates,
    which decide, by as little.

    near : the same if it is everywhere what it is on the box.
    """
    if problem.domain is not None:
        return near
    try:
        with np.errstate(all="ignore"):
            fit = _fit(problem, box, _FAR)
    except (FemHjbError, ArithmeticError):  # coefficients are not asked to be anything so far out
        return near
    run = _solved(problem, fit, _LOOSE) if fit.misfit <= _NEARLY else None
    if run is None or run.status == 0:
        return None
    doubt = 0.0 if fit.misfit <= _EXACT else _CRITICAL
    return problem.horizon - float(run.t[-1]) if run.t[-1] <= (1.0 - doubt) * problem.horizon else None


def _riccati(rows: FloatArray, states: FloatArray, d: int, alpha: float) -> FloatArray:
    """What states (k, m), of P, p and c one after the other, change by in time to go, with rows as `_Fit.at` has."""
    P, p = states[:, : d * d].reshape(-1, d, d), states[:, d * d : -1, None]
    matrices, vectors = rows[:, : 3 * d * d].reshape(-1, 3, d, d), rows[:, 3 * d * d : -1].reshape(-1, 2, d, 1)
    A, Lambda, Q, a, q = matrices[:, 0], matrices[:, 1], matrices[:, 2], vectors[:, 0], vectors[:, 1]
    PA, PL = P @ A, P @ Lambda
    result = np.empty(states.shape)
    result[:, : d * d] = (PA.swapaxes(1, 2) + PA + Q - PL @ P / alpha).reshape(-1, d * d)
    result[:, d * d : -1] = (A.swapaxes(1, 2) @ p - PL @ p / alpha - P @ a + q)[..., 0]
    paid = ((a + Lambda @ p / (2 * alpha)) * p).sum(axis=(1, 2)) + rows[:, -1]
    result[:, -1] = paid - 0.5 * PL.trace(axis1=1, axis2=2)
    return result


def fields_at(problem: ControlProblem, x: FloatArray, times: FloatArray) -> Fields:
    """Times (k,), and running reward, drift and Lambda at points x (n, d) at each."""
    return [(t, problem.r(t, x), problem.b(t, x), problem.Lambda(t, x)) for t in times.tolist()]


def ranges(problem: ControlProblem, background: Background, x: FloatArray, fields: Fields) -> tuple[float, float]:
    """Bounds on max log u and on -min log u over the points x (n, d), from log u_T and the rate at some times.

    fields : those at the points (`fields_at`).
    """
    T = problem.horizon
    logs = (problem.y(x) - background.guess(T, x)) / problem.temperature
    rates = [background.rate(t, x, *parts) for t, *parts in fields]
    above = max(float(logs.max()), 0.0) + T * max(max(float(r.max()) for r in rates), 0.0)
    below = max(-float(logs.min()), 0.0) + T * max(max(-float(r.min()) for r in rates), 0.0)
    return above, below


def _fit(problem: ControlProblem, box: Box, far: float = 1.0) -> _Fit:
    """far : how often as wide as the box the weight is; if it is, what matters next to nothing there is no misfit."""
    d, T = problem.dim, problem.horizon
    lower, upper = box.bounds
    centre, deviation = (lower + upper) / 2, far * (upper - lower) / (2 * _REACH)
    least = far**2 * problem.temperature if far > 1.0 else 0.0
    slow = deviation.min() / T if far > 1.0 else 0.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(_ORDER[d])
    z, w = tensor_rule(nodes, weights, d)
    kept = (np.abs(z) <= _REACH).all(axis=1)
    z, w = z[kept], w[kept]
    x = centre + deviation * z
    pairs = np.triu_indices(d)
    linear = np.column_stack([np.ones(len(z)), z])
    quadratic = np.column_stack([linear, z[:, pairs[0]] * z[:, pairs[1]]])
    root = np.sqrt(w)[:, None]
    solve_linear, solve_quadratic = (np.linalg.pinv(table * root) * root.T for table in (linear, quadratic))
    misfits: list[float] = []

    def fitted(values: FloatArray, table: FloatArray, solve: FloatArray, least: float) -> FloatArray:
        """The coefficients (k, m, ...) of values (k, n, ...); misfits are relative to at least `least`."""
        flat = values.reshape(*values.shape[:2], -1)
        coefficients: FloatArray = np.asarray(solve @ flat)
        sizes = np.maximum(np.abs(flat).max(axis=(1, 2)), max(least, 1e-300))
        misfits.append(float((np.abs(table @ coefficients - flat).max(axis=(1, 2)) / sizes).max()))
        return coefficients.reshape(len(values), -1, *values.shape[2:])

    def reward(values: FloatArray, least: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        c = fitted(values, quadratic, solve_quadratic, least)
        matrix = np.zeros((len(values), d, d))
        matrix[:, *pairs] = -c[:, 1 + d :] / (deviation[pairs[0]] * deviation[pairs[1]])
        return matrix + np.swapaxes(matrix, 1, 2), c[:, 1 : 1 + d] / deviation, c[:, 0]

    times = T * (1 - np.cos(np.pi * np.arange(_TIMES) / (_TIMES - 1))) / 2
    samples = problem.b(*all_times(times[[0, 7, 21, -1]], x))
    if problem.running_reward is None and problem.constant_diffusion is not None and (samples == samples[:1]).all():
        times = times[:1]
    every = all_times(times, x)
    slope = fitted(problem.b(*every), linear, solve_linear, slow)
    Lambda = problem.Lambda(*every)
    mean = np.asarray(np.einsum("n,knij->kij", w / w.sum(), Lambda))
    largest = np.abs(mean).max(axis=(1, 2))
    misfits.append(float((np.abs(Lambda - mean[:, None]).max(axis=(1, 2, 3)) / largest).max()))
    Q, q, q0 = reward(problem.r(*every), least / T)
    parts = np.swapaxes(slope[:, 1:], 1, 2) / deviation, mean, Q, slope[:, 0], q, q0
    rows = np.concatenate([part.reshape(len(times), -1) for part in parts], axis=1)
    (R,), (s,), (s0,) = reward(problem.y(x)[None], least)
    return _Fit(_through(times, rows), np.concatenate([R.ravel(), s, [s0]]), float(largest.max()), max(misfits))


def _through(times: FloatArray, rows: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """The polynomial through rows (k, m) at the extrema of a Chebyshev polynomial, or the only row; smoothed."""
    if len(times) == 1:
        return lambda t: rows
    T = float(times[-1])
    coefficients = _smoothed(np.asarray(chebyshev.chebfit(2.0 * times / T - 1.0, rows, len(times) - 1), np.float64))
    powers = np.arange(len(coefficients))
    return lambda t: np.cos(np.arccos(np.clip(2.0 * t[:, None] / T - 1.0, -1.0, 1.0)) * powers) @ coefficients


def _series(function: Callable[[FloatArray], Any], T: float) -> FloatArray:
    """Chebyshev coefficients (k, m) on [0, T] of a smooth function (times (n,) -> (n, m)), as many as it needs."""
    for degree in _DEGREES:
        coefficients: FloatArray = chebyshev.chebinterpolate(lambda tau: function(T * (tau + 1) / 2), degree)
        if _left(coefficients) <= 1e-14:
            break
    return _smoothed(coefficients)


def _left(coefficients: FloatArray) -> float:
    """The size of the last coefficients (k, m) of a series, relative."""
    return float(np.abs(coefficients[-2:]).max() / max(np.abs(coefficients).max(), 1e-300))


def _smoothed(coefficients: FloatArray) -> FloatArray:
    """A Chebyshev series (k, m) averaged over a Gaussian in arccos(tau), if it does not converge.

    What it does not resolve, such as a jump, would else be oscillations on all of [0, T], which u had to undo. A factor
    exp(-c j^2) of its j-th coefficient is that average (heat kernel of its cosine series): positive, so that nothing
    rings, and away from a jump the series is smooth.
    """
    if _left(coefficients) <= _RINGING:
        return coefficients
    kept = np.exp(-_DAMPING * np.linspace(0.0, 1.0, len(coefficients)) ** 2)
    return np.asarray(coefficients * kept[:, None])
