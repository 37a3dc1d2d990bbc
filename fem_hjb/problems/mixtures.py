"""Diffusion models of Gaussian mixtures, and their exact tilting by a terminal reward."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.closed_form import TAMER, ClosedForm
from fem_hjb.problems.laws import GaussianMixture
from fem_hjb.problems.rewards import LogSumExpReward, log_sum_exp
from fem_hjb.support.checks import FloatArray, IntArray, as_times, positive_number, require
from fem_hjb.support.errors import InfiniteValueError, ProblemError
from fem_hjb.support.objects import Plain


@final
class MixtureDiffusion(Plain):
    r"""The denoising process of a diffusion model whose data are a Gaussian mixture.

    Forward noising  dY = -beta_s/2 Y ds + beta_s^{1/2} dB, Y_0 ~ data = sum_i w_i N(m_i, C_i), 0 <= s <= T. With
    kappa_s = exp(-1/2 int_0^s beta) the law of Y_s is q_s = sum_i w_i N(kappa m_i, kappa^2 C_i + (1 - kappa^2) I).
    The process runs in t = T - s:

        dX = [beta/2 X + (1 + eta^2)/2 beta grad log q_{T-t}(X)] dt + eta beta^{1/2} dB,  X_0 ~ q_T,  beta = beta_{T-t}.

    For every eta in (0, 1] X_t ~ q_{T-t}, exactly (X_0 is the mixture q_T, not its limit N(0, I)); eta = 1 is the time
    reversal of Y, eta -> 0 the probability-flow ODE. `beta` is a number, or the ends (beta_0, beta_T) of a linear
    schedule in s.

    Source: Song et al., arXiv 2011.13456 (variance-preserving SDE).

    >>> process = MixtureDiffusion(GaussianMixture([1.0], [[0.0]], [[[1.0]]]), horizon=1.0, beta=2.0)
    >>> process.drift(0.3, np.array([[1.0]])).round(12).tolist()     # data N(0, 1): the stationary process
    [[-1.0]]
    """

    def __init__(
        self, data: GaussianMixture, *, horizon: float, beta: float | tuple[float, float], eta: float = 1.0
    ) -> None:
        if not isinstance(data, GaussianMixture):
            raise ProblemError(f"data must be a GaussianMixture, got {type(data).__name__}")
        self.data = data
        self.dim = data.dim
        self.horizon = positive_number(horizon, "horizon", ProblemError)
        ends = beta if isinstance(beta, tuple | list) else (beta, beta)
        if len(ends) != 2:
            raise ProblemError(f"beta must be a number or a pair (beta_0, beta_T), got {beta!r}")
        self._beta = tuple(positive_number(b, "beta", ProblemError) for b in ends)
        self.eta = positive_number(eta, "eta", ProblemError)
        if self.eta > 1:
            raise ProblemError(f"eta must lie in (0, 1], got {eta!r}")
        present = data.components[0] > 0
        weights, self._means, self._covs = (array[present] for array in data.components)
        self._log_weights = np.log(weights)
        self._variances, self._axes = np.linalg.eigh(self._covs)  # (k, d), (k, d, d): the axes serve at all times
        self._rotated_means = np.einsum("kji,kj->ki", self._axes, self._means)

    @property
    def components(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Log-weights (k,), means (k, d) and covariances (k, d, d) of the data, components of weight 0 left out."""
        return self._log_weights, self._means, self._covs

    def beta(self, t: ArrayLike) -> FloatArray:
        """The noise rate beta_{T-t} at time t of the process."""
        start, end = self._beta
        return np.asarray(start + (end - start) * (self.horizon - np.asarray(t)) / self.horizon)

    def exponent(self, t: ArrayLike) -> FloatArray:
        """int_0^{T-t} beta ds, so that kappa^2 = exp(-exponent)."""
        s = self.horizon - np.asarray(t, dtype=np.float64)
        start, end = self._beta
        return np.asarray(start * s + (end - start) * s**2 / (2 * self.horizon))

    def time_of_exponent(self, exponent: float) -> float:
        """The t at which `exponent(t)` has this value."""
        start, end = self._beta
        slope = (end - start) / self.horizon
        return self.horizon - 2 * exponent / (start + float(np.sqrt(start**2 + 2 * slope * exponent)))

    def marginal(self, t: float) -> GaussianMixture:
        """The law q_{T-t} of X_t."""
        weights, means, covs = self.data.components
        exponent = self.exponent(as_times(t, self.horizon))
        return GaussianMixture(
            weights, np.exp(-exponent / 2) * means, np.exp(-exponent) * covs - np.expm1(-exponent) * np.eye(self.dim)
        )

    def score(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """grad log q_{T-t}(x), shape (..., d); t a number or broadcastable to x.shape[:-1]."""
        points = np.asarray(x, dtype=np.float64)
        k, d = self._means.shape
        exponent = self.exponent(t)
        if exponent.ndim:
            exponent = np.broadcast_to(exponent, points.shape[:-1]).ravel()
        variance = np.exp(-exponent) * self._variances[..., None] - np.expm1(-exponent)  # (k, d, 1 or n)
        # points last: sums over axes and components run along memory
        z = (np.swapaxes(self._axes, 1, 2).reshape(k * d, d) @ points.reshape(-1, d).T).reshape(k, d, -1)
        z -= np.exp(-exponent / 2) * self._rotated_means[..., None]
        pull = z / variance
        z *= pull
        logs = self._log_weights[:, None] - 0.5 * (z.sum(axis=1) + np.log(variance).sum(axis=1))
        shares = np.exp(logs - logs.max(axis=0))
        shares /= shares.sum(axis=0)
        pull *= shares[:, None]
        score = self._axes.transpose(1, 0, 2).reshape(d, k * d) @ pull.reshape(k * d, -1)
        return np.asarray(-score.T.reshape(points.shape))

    def drift(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """b_t(x), shape (..., d)."""
        points = np.asarray(x, dtype=np.float64)
        return self.beta(t)[..., None] / 2 * (points + (1 + self.eta**2) * self.score(t, points))

    def diffusion_matrix(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """Lambda_t = eta^2 beta_{T-t} I, shape (..., d, d)."""
        rate = np.broadcast_to(self.eta**2 * self.beta(t), np.shape(x)[:-1])
        return np.asarray(rate[..., None, None] * np.eye(self.dim))

    @property
    def constant_diffusion(self) -> float | None:
        """eta^2 beta when the schedule is constant, else None."""
        return self.eta**2 * self._beta[0] if self._beta[0] == self._beta[1] else None


@final
class TiltedMixture(ClosedForm):
    r"""A diffusion model of a Gaussian mixture under a terminal reward: linear, quadratic, or a log-sum-exp of such.

    For the time reversal (eta = 1) of a `MixtureDiffusion`, X_T given X_t = x is the Gaussian mixture

        sum_i pi_i(x) N(K_i x + sigma^2 S_i^{-1} m_i, sigma^2 C_i S_i^{-1}),   pi_i(x) ~ w_i N(x; kappa m_i, S_i),

    with S_i = kappa^2 C_i + sigma^2 I, sigma^2 = 1 - kappa^2, K_i = kappa C_i S_i^{-1}, so that f_t(x) =
    E[exp(y(X_T)/alpha) | X_t = x] is a sum of exponentials of quadratics over another. The controlled process then
    ends in the tilted data law, proportional to data * exp(y / alpha).

    Raises `InfiniteValueError`, with the time, if the reward grows faster than the mixture decays, `ProblemError` if
    eta < 1 (X_T given X_t is then no Gaussian mixture) or the dimensions differ.
    """

    def __init__(self, process: MixtureDiffusion, reward: LogSumExpReward) -> None:
        require(process, MixtureDiffusion, "TiltedMixture", ProblemError)
        require(reward, LogSumExpReward, "TiltedMixture", ProblemError)
        if process.eta != 1:
            raise ProblemError(f"a closed form is known for eta = 1 only, the process has eta = {process.eta:g}")
        if reward.dim != process.dim:
            raise ProblemError(f"the reward has dimension {reward.dim}, the process has dimension {process.dim}")
        self.dim, self.horizon, self.temperature = process.dim, process.horizon, reward.temperature
        self._process = process
        self._log_weights, self._means, self._covs = process.components
        self._R, self._s, self._s0 = (array / reward.temperature for array in reward.coefficients)
        # X_T given X_t has precision C_i^{-1} + I / (e^exponent - 1) in component i, the smallest at t = 0: with
        # R_j / alpha added it must stay positive definite.
        lowest = float(np.linalg.eigvalsh(np.linalg.inv(self._covs)[:, None] + self._R[None]).min())
        if lowest < 0 and process.exponent(0.0) >= np.log1p(-1 / lowest):
            when = process.time_of_exponent(float(np.log1p(-1 / lowest)))
            raise InfiniteValueError(
                f"the value is +infinity up to t = {when:.9g} (T = {self.horizon:g}): exp(y / alpha) outgrows the"
                f" Gaussian tails of X_T given X_t; {TAMER}"
            )

    def _quadratics(self, times: FloatArray) -> tuple[tuple[FloatArray, ...], tuple[FloatArray, ...]]:
        """(P, p, c) of log(q_t f_t), one for each pair of a component and a reward term, and of log q_t."""
        exponent = self._process.exponent(times)[:, None, None, None]
        kappa, variance, eye = np.exp(-exponent / 2), -np.expm1(-exponent), np.eye(self.dim)
        S = kappa**2 * self._covs + variance * eye
        precision = np.linalg.inv(S)
        precision = (precision + np.swapaxes(precision, -1, -2)) / 2
        pull = np.einsum("ukij,kj->uki", precision, self._means)
        kappa_1 = kappa[..., 0]
        below = (
            precision,
            kappa_1 * pull,
            self._log_weights
            - 0.5 * kappa_1[..., 0] ** 2 * np.einsum("uki,ki->uk", pull, self._means)
            - 0.5 * np.linalg.slogdet(S)[1],
        )
        # axes: u time, k component, j reward term
        K = kappa * self._covs @ precision
        offset = variance[..., 0] * pull
        cov = (variance * self._covs @ precision)[:, :, None]
        M, n = self._R, self._s
        system = eye + cov @ M
        G = np.linalg.inv(system)
        N = M @ G
        N = (N + np.swapaxes(N, -1, -2)) / 2
        nG = np.einsum("ji,ukjil->ukjl", n, G)
        N_offset = np.einsum("ukjil,ukl->ukji", N, offset)
        P = np.swapaxes(K, -1, -2)[:, :, None] @ N @ K[:, :, None] + below[0][:, :, None]
        p = np.einsum("ukli,ukjl->ukji", K, nG - N_offset) + below[1][:, :, None]
        c = self._s0 + below[2][:, :, None] - 0.5 * np.linalg.slogdet(system)[1]
        c = c + 0.5 * np.einsum("ukjl,uklm,jm->ukj", nG, cov[:, :, 0], n)
        c = c + np.einsum("ukjl,ukl->ukj", nG - 0.5 * N_offset, offset)
        u, d = len(times), self.dim
        return (P.reshape(u, -1, d, d), p.reshape(u, -1, d), c.reshape(u, -1)), below

    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        above, below = self._quadratics(times)
        log_above, gradient_above = log_sum_exp(above[0], above[1], above[2], which, x)
        log_below, gradient_below = log_sum_exp(below[0], below[1], below[2], which, x)
        return self.temperature * (log_above - log_below), self.temperature * (gradient_above - gradient_below)

    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        return self._process.beta(times)[which][:, None] * gradient
