"""Linear drifts with constant diffusion: exact transition law and marginals of dX = (A X + a) dt + Lambda^{1/2} dB."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import expm

from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, MarginalLaw, PointMass
from fem_hjb.problems.problem import LinearDrift
from fem_hjb.support.checks import (
    LARGEST,
    UNITS,
    FloatArray,
    frozen_array,
    non_negative_number,
    real_array,
    require,
    spd_array,
)
from fem_hjb.support.errors import DomainError, EllipticityError, ProblemError

_SMALL = 4  # dimensions up to which transitions are kept


def linear_transition(
    drift: LinearDrift, diffusion: ArrayLike, time: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The transition X_time | X_0 = x ~ N(Phi x + shift, C) of dX = (A X + a) dt + Lambda^{1/2} dB, for any A.

    Phi = e^{A time}, shift = int_0^time e^{As} a ds, C = int_0^time e^{As} Lambda e^{A's} ds; shapes (d, d), (d,),
    (d, d). Phi and shift come from one exponential of [[A, a], [0, 0]], C from Van Loan's block exponential (IEEE
    Trans. Automat. Control 23 (1978) 395-404) over a step short enough that e^{-As} is harmless, then by doubling:
    C <- C + Phi C Phi'.

    >>> Phi, shift, C = linear_transition(LinearDrift([[0.0]], [3.0]), [[2.0]], 0.5)
    >>> float(Phi[0, 0]), float(shift[0]), round(float(C[0, 0]), 12)
    (1.0, 1.5, 1.0)
    """
    require(drift, LinearDrift, "linear_transition", ProblemError)
    A, a = drift.coefficients
    d = len(a)
    given = real_array(diffusion, "diffusion", ProblemError)
    Lambda = frozen_array(given * np.eye(d) if given.ndim == 0 else given, "diffusion", (d, d), ProblemError)
    if non_negative_number(time, "time", ProblemError) > LARGEST:
        raise ProblemError(f"time is {time:.3g}{UNITS}")
    move = _kept if d <= _SMALL else _moved
    Phi, shift, C = move(d, float(time), A.tobytes(), a.tobytes(), Lambda.tobytes())
    return Phi.copy(), shift.copy(), C.copy()


def _moved(d: int, time: float, *arrays: bytes) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What `linear_transition` returns, from A, a and Lambda."""
    A, a, Lambda = (np.frombuffer(array).reshape(-1, d) for array in arrays)
    doublings = int(np.ceil(np.log2(max(float(np.abs(A).sum(0).max()) * time, 1.0))))
    block = expm(time / 2**doublings * np.block([[-A, Lambda], [np.zeros((d, d)), A.T]]))
    Phi = block[d:, d:].T
    C = Phi @ block[:d, d:]
    for _ in range(doublings):
        C = C + Phi @ C @ Phi.T
        Phi = Phi @ Phi
    whole = expm(time * np.block([[A, a.T], [np.zeros((1, d + 1))]]))
    return whole[:d, :d], whole[:d, d], (C + C.T) / 2


_kept = lru_cache(maxsize=512)(_moved)  # laws are asked for at the same times, and paths have steps of one length


def linear_marginal(drift: LinearDrift, diffusion: ArrayLike, initial_law: Law) -> MarginalLaw:
    """t -> the law of X_t for a linear drift and a constant diffusion, from a Gaussian, mixture or point-mass start.

    Raises `ProblemError` for another start, `EllipticityError` if the diffusion is not SPD; the result raises
    `DomainError` for a time that is negative or not finite.

    >>> law = linear_marginal(LinearDrift([[0.0]], [1.0]), [[2.0]], PointMass([0.0]))(0.5)
    >>> law.expectation.tolist(), law.covariance.tolist()
    ([0.5], [[1.0]])
    """
    if not isinstance(initial_law, Gaussian | GaussianMixture | PointMass):
        raise ProblemError(
            "a linear drift carries a Gaussian, a GaussianMixture or a PointMass in closed form,"
            f" got {type(initial_law).__name__}"
        )
    Lambda = spd_array(diffusion, "diffusion", initial_law.dim, EllipticityError)
    return partial(_carried, drift, Lambda, initial_law)


def _carried(drift: LinearDrift, Lambda: FloatArray, start: Gaussian | GaussianMixture | PointMass, t: float) -> Law:
    time = float(t)
    if not (np.isfinite(time) and time >= 0):
        raise DomainError(f"t must be a non-negative finite number, got {time!r}")
    if time == 0:
        return start
    Phi, shift, C = linear_transition(drift, Lambda, time)
    if isinstance(start, GaussianMixture):
        weights, means, covs = start.components
        return GaussianMixture(weights, means @ Phi.T + shift, Phi @ covs @ Phi.T + C)
    return Gaussian(Phi @ start.expectation + shift, Phi @ start.covariance @ Phi.T + C)
