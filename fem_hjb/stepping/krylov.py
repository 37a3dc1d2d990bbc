r"""Rational Krylov spaces: the exponential of one constant operator, applied to one vector, at many times.

For u' = L u, exp(t L) f0 is sought in the space of (1 - gamma L)^{-j} f0, in which L is represented by
(1 - H^{-1}) / gamma, H being the Hessenberg matrix of Arnoldi's method for Z = (1 - gamma L)^{-1}: J. van den Eshof
and M. Hochbruck, SIAM J. Sci. Comput. 27 (2006) 1438-1457.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import expm

from fem_hjb.stepping.esdirk import rtol_in_range
from fem_hjb.support.checks import FloatArray, positive_number, real_array
from fem_hjb.support.errors import ConvergenceError

_MAX_DIMENSION = 60

Norm = Callable[[FloatArray], float]


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
    *,
    gamma: float,
    rtol: float,
    times: ArrayLike,
    norm: Norm,
    inner: ArrayLike,
) -> KrylovStates:
    """u(t) = exp(t L) f0 at `times` 0 <= t_1 < ... < t_m, for one constant L.

    solve_shifted : v -> (1 - gamma L)^{-1} v, for arrays shaped as f0; gamma = t_m / 10 is a good choice.
    apply : v -> L v; used once, to check that solve_shifted fits gamma.
    rtol : what the estimated error may reach at t_m, relative to the norm of u; at t, its share t / t_m.
    norm : in which errors are measured.
    inner : positive weights shaped as f0 of the inner product sum(inner u v) of Arnoldi's method.

    With (1 - gamma L)^{-1} V = V H + w e_m' and B = (1 - H^{-1}) / gamma, the residual of V exp(t B) e_1 is
    g(t) / gamma (1 - gamma L) w with g(t) = e_m' H^{-1} exp(t B) e_1. Its integral against exp((t - s) L), by parts
    where L stands, is estimated by (1 + t / gamma) |w| max |g|. A space that reaches dimension 60 is used as far as it
    is good, and a new one is begun there.

    Raises
    ------
    ConvergenceError : an argument makes no sense; solve_shifted does not fit; no progress within dimension 60.
    """
    start = real_array(f0, "f0", ConvergenceError)
    if start.size == 0 or not np.isfinite(start).all():
        raise ConvergenceError(f"f0 must be a finite array, got shape {start.shape}: {f0!r:.80}")
    wanted = np.atleast_1d(real_array(times, "times", ConvergenceError))
    if wanted.ndim != 1 or not ((np.diff(wanted) > 0).all() and wanted[0] >= 0 and 0 < wanted[-1] < np.inf):
        raise ConvergenceError(f"times must be finite and increase from 0 or later, got {times!r:.80}")
    weights = real_array(inner, "inner", ConvergenceError)
    if weights.shape != start.shape or not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ConvergenceError(f"inner must hold positive weights of shape {start.shape}, got shape {weights.shape}")
    arnoldi = _ShiftInvert(solve_shifted, positive_number(gamma, "gamma", ConvergenceError), weights, norm)
    arnoldi.check(apply, start)
    states = np.repeat(start[None], wanted.size, axis=0)
    share = rtol_in_range(rtol, "rtol") / wanted[-1]
    t, u, error, dimensions = 0.0, start, 0.0, []
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
        self, solve: Callable[[FloatArray], FloatArray], gamma: float, weights: FloatArray, norm: Norm
    ) -> None:
        self.solve, self.gamma, self.weights, self.norm = solve, gamma, weights, norm

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

        If the largest dimension is not enough, a shorter time: a power of two shorter.
        """
        length, scale = self.length(u), self.norm(u) / self.length(u)
        vectors = np.empty((_MAX_DIMENSION, *u.shape))
        H = np.zeros((_MAX_DIMENSION + 1, _MAX_DIMENSION))
        vectors[0] = u / length
        for m in range(1, _MAX_DIMENSION + 1):
            rest = self.solve(vectors[m - 1])
            for _ in range(2):  # twice is enough for orthogonality to rounding errors
                overlap = np.tensordot(vectors[:m], self.weights * rest, u.ndim)
                rest = rest - np.tensordot(overlap, vectors[:m], 1)
                H[:m, m - 1] += overlap
            H[m, m - 1] = self.length(rest)
            outside = self.norm(rest) / scale
            error = self._error(H[:m, :m], time, outside)
            if error <= share * time or m == _MAX_DIMENSION:
                break
            vectors[m] = rest / H[m, m - 1]
        halvings = 0
        while not error <= share * time and halvings < 20:
            time, halvings = time / 2, halvings + 1
            error = self._error(H[:m, :m], time, outside)
        if not error <= share * time:
            raise ConvergenceError(
                f"a space of dimension {m} is not good for a time of {time:.3g} (estimate {error:.3g}); raise rtol"
                f" or take another gamma than {self.gamma:g}"
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
