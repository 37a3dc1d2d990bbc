"""Rewards that are log-sum-exps of quadratics: linear, quadratic, and the logarithm of a Gaussian mixture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.laws import log_sum
from fem_hjb.support.checks import (
    FloatArray,
    IntArray,
    as_points,
    frozen_array,
    positive_number,
    real_array,
    spd_array,
)
from fem_hjb.support.errors import EllipticityError, ProblemError
from fem_hjb.support.objects import Plain


def log_sum_exp(
    P: FloatArray, p: FloatArray, c: FloatArray, which: IntArray, x: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """log sum_k exp(-x'P_k x/2 + p_k'x + c_k) and its gradient; coefficients (u, k, ...), row which[i] for point i."""
    if len(P) == 1:
        k, d = p.shape[1:]
        Px = (x @ P[0].reshape(k * d, d).T).reshape(len(x), k, d)
        linear, constant = p[0], c[0]
    else:
        Px = np.einsum("nkij,nj->nki", P[which], x)
        linear, constant = p[which], c[which]
    logs = np.einsum("nki,ni->nk", linear - 0.5 * Px, x) + constant
    if p.shape[1] == 1:  # the sum of one
        return logs[:, 0], np.asarray((linear - Px)[:, 0])
    value = log_sum(logs)
    shares = np.exp(logs - value[:, None])
    return np.asarray(value), np.asarray(np.einsum("nk,nki->ni", shares, linear - Px))


def symmetric_array(value: ArrayLike, name: str, shape: tuple[int, ...]) -> FloatArray:
    """A frozen stack of matrices, symmetrised: only the symmetric part of a matrix enters its quadratic form."""
    matrix = frozen_array(value, name, shape, ProblemError)
    result = (matrix + np.swapaxes(matrix, -1, -2)) / 2
    result.setflags(write=False)
    return result


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LogSumExpReward(Plain):
    r"""The reward y(x) = alpha log sum_j exp((-x'R_j x/2 + s_j'x + s0_j) / alpha), j = 1..k.

    R has shape (k, d, d), s (k, d), s0 (k,). One term makes a quadratic or linear reward, whatever alpha is; several
    with R_j = alpha C_j^{-1} make exp(y / alpha) a Gaussian mixture. Only the symmetric part of R_j counts.

    >>> y = LogSumExpReward.linear([1.0, 2.0], temperature=0.5)
    >>> y([[1.0, 1.0]]).tolist()
    [3.0]
    """

    temperature: float
    R: ArrayLike
    s: ArrayLike
    s0: ArrayLike
    terms: int = field(init=False)
    dim: int = field(init=False)

    def __post_init__(self) -> None:
        shape = real_array(self.s, "s", ProblemError).shape
        if len(shape) != 2 or 0 in shape:
            raise ProblemError(f"s must have shape (k, d), one row for each of the k terms, got shape {shape}")
        k, d = shape
        put = object.__setattr__
        put(self, "temperature", positive_number(self.temperature, "temperature", ProblemError))
        put(self, "R", symmetric_array(self.R, "R", (k, d, d)))
        put(self, "s", frozen_array(self.s, "s", (k, d), ProblemError))
        put(self, "s0", frozen_array(self.s0, "s0", (k,), ProblemError))
        put(self, "terms", k)
        put(self, "dim", d)

    @classmethod
    def linear(cls, s: ArrayLike, *, temperature: float, s0: float = 0.0) -> LogSumExpReward:
        """y(x) = s'x + s0 with s of shape (d,)."""
        slope = np.atleast_1d(real_array(s, "s", ProblemError))
        return cls(temperature=temperature, R=np.zeros((1, slope.size, slope.size)), s=slope[None], s0=[s0])

    @classmethod
    def quadratic(cls, R: ArrayLike, s: ArrayLike, *, temperature: float, s0: float = 0.0) -> LogSumExpReward:
        """y(x) = -x'Rx/2 + s'x + s0 with R of shape (d, d), s of shape (d,)."""
        matrix, slope = real_array(R, "R", ProblemError), real_array(s, "s", ProblemError)
        return cls(temperature=temperature, R=matrix[None], s=slope[None], s0=[s0])

    @classmethod
    def log_mixture(
        cls, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, *, temperature: float
    ) -> LogSumExpReward:
        """y(x) = alpha log sum_j w_j exp(-(x - m_j)' C_j^{-1} (x - m_j) / 2).

        The weights w (k,) are positive and need not sum to 1; means m (k, d), covariances C (k, d, d).
        """
        alpha = positive_number(temperature, "temperature", ProblemError)
        m = real_array(means, "means", ProblemError)
        if m.ndim != 2:
            raise ProblemError(f"means must have shape (k, d), got shape {m.shape}")
        k, d = m.shape
        w = frozen_array(weights, "weights", (k,), ProblemError)
        if (w <= 0).any():
            raise ProblemError(f"weights of a log-mixture reward must be positive, got {w.tolist()}")
        covs = frozen_array(covariances, "covariances", (k, d, d), ProblemError)
        precision = np.linalg.inv(
            np.stack([spd_array(C, f"covariances[{j}]", d, EllipticityError) for j, C in enumerate(covs)])
        )
        pull = np.einsum("kij,kj->ki", precision, m)
        return cls(
            temperature=alpha,
            R=alpha * precision,
            s=alpha * pull,
            s0=alpha * (np.log(w) - 0.5 * (pull * m).sum(-1)),
        )

    @property
    def coefficients(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """R (k, d, d), s (k, d), s0 (k,), read-only."""
        return np.asarray(self.R), np.asarray(self.s), np.asarray(self.s0)

    def __call__(self, x: ArrayLike) -> FloatArray:
        """y(x), shape (...)."""
        points = as_points(x, self.dim)
        R, s, s0 = (array / self.temperature for array in self.coefficients)
        flat = points.reshape(-1, self.dim).T  # points last: sums run along memory
        pulls = s[..., None] - 0.5 * (R.reshape(-1, self.dim) @ flat).reshape(*s.shape, -1)
        logs = (pulls * flat).sum(axis=1) + s0[:, None]
        return np.asarray(self.temperature * log_sum(logs, axis=0).reshape(points.shape[:-1]))
