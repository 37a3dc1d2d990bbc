"""Diffusion models of Gaussian mixtures and of data, and their exact tilting by a terminal reward."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.closed_form import TAMER, ClosedForm
from fem_hjb.problems.kernels import KernelDensity, Kernels
from fem_hjb.problems.laws import GaussianMixture, log_sum
from fem_hjb.problems.problem import ControlProblem, TerminalReward
from fem_hjb.problems.rewards import LogSumExpReward, log_sum_exp
from fem_hjb.support.checks import FloatArray, IntArray, as_points, as_times, positive_number, require
from fem_hjb.support.errors import DomainError, InfiniteValueError, ProblemError
from fem_hjb.support.objects import Plain


def from_points(
    points: ArrayLike,
    bandwidth: float,
    *,
    horizon: float,
    beta: float | tuple[float, float],
    eta: float = 1.0,
    weights: ArrayLike | None = None,
) -> MixtureDiffusion:
    """The diffusion model whose data law is the kernel density sum_j w_j N(m_j, bandwidth^2 I) of points m (k, d).

    It is the exact model of the noisy data that it is, not of a distribution that the points were drawn from: the
    larger the bandwidth, the smoother, and the fewer cells its control problems take.

    weights : w (k,), not negative, of sum 1; None: 1/k each. horizon, beta, eta : as `MixtureDiffusion` has them.

    Raises `ProblemError` for points that are not finite or not of shape (k, d), and parameters that are not as said.

    >>> process = from_points([[-1.0, 0.0], [1.0, 0.0]], 0.3, horizon=1.0, beta=(0.1, 10.0))
    >>> problem = process.tilted(lambda x: x[..., 0], temperature=0.5)
    """
    data = KernelDensity(points, bandwidth, weights)
    return MixtureDiffusion(data, horizon=horizon, beta=beta, eta=eta)


@final
class MixtureDiffusion(Plain):
    r"""The denoising process of a diffusion model whose data are a Gaussian mixture, or a kernel density.

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
        self,
        data: GaussianMixture | KernelDensity,
        *,
        horizon: float,
        beta: float | tuple[float, float],
        eta: float = 1.0,
    ) -> None:
        if not isinstance(data, GaussianMixture | KernelDensity):
            raise ProblemError(f"data must be a GaussianMixture or a KernelDensity, got {type(data).__name__}")
        self.data = data
        self.dim = data.dim
        self.horizon = positive_number(horizon, "horizon", ProblemError)
        pair = isinstance(beta, tuple | list) or getattr(beta, "ndim", 0) > 0  # an array of two, as well
        ends: Any = beta if pair else (beta, beta)
        if len(ends) != 2:
            raise ProblemError(f"beta must be a number or a pair (beta_0, beta_T), got {beta!r}")
        self._beta = tuple(positive_number(b, "beta", ProblemError) for b in ends)
        self.eta = positive_number(eta, "eta", ProblemError)
        if self.eta > 1:
            raise ProblemError(f"eta must lie in (0, 1], got {eta!r}")
        self._score = _Components(data).score if isinstance(data, GaussianMixture) else data.kernels.score

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

    def noising(self, t: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """kappa and 1 - kappa^2 at time t of the process."""
        exponent = self.exponent(t)
        return np.asarray(np.exp(-exponent / 2)), np.asarray(-np.expm1(-exponent))

    def marginal(self, t: float) -> GaussianMixture | KernelDensity:
        """The law q_{T-t} of X_t."""
        when = as_times(t, self.horizon)
        if when.ndim:
            raise DomainError(f"t must be one time, got an array of shape {when.shape}")
        kappa, noise = self.noising(when)
        if isinstance(self.data, KernelDensity):
            return self.data.noised(float(kappa), float(noise))
        weights, means, covs = self.data.components
        return GaussianMixture(weights, kappa * means, kappa**2 * covs + noise * np.eye(self.dim))

    def score(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """grad log q_{T-t}(x), shape (..., d); t a number or broadcastable to x.shape[:-1].

        Raises `DomainError` for other shapes, points that are not finite, and times outside [0, T].
        """
        points, times = as_points(x, self.dim), as_times(t, self.horizon)
        kappa, noise = self.noising(times)
        if kappa.ndim:
            shape = points.shape[:-1]
            try:
                kappa, noise = (np.broadcast_to(a, shape).ravel() for a in (kappa, noise))
            except ValueError as cause:
                raise DomainError(
                    f"t must be a number or broadcast to x.shape[:-1] = {shape}, got shape {times.shape}"
                ) from cause
        return self._score(kappa, noise, points.reshape(-1, self.dim)).reshape(points.shape)

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

    def tilted(self, reward: TerminalReward, *, temperature: float, name: str = "tilted diffusion") -> ControlProblem:
        r"""The control problem of fine-tuning this process to a reward y(X_T), a callable x (..., d) -> (...).

        With X_0 ~ q_T the controlled process ends in  q_0 exp(y / alpha) E[1 / f_0(X_0) | X_T = x], and this is the
        tilted data law (`tilted_density`) as far as X_0 tells nothing of X_T, so that f_0 is constant: for eta = 1 and
        small kappa = exp(-1/2 int beta); less noise keeps more of X_0. The problem knows its law at all times and, for
        eta = 1 and a `LogSumExpReward` of this temperature, its exact solution.

        Raises `ProblemError` for rewards that do not fit, `InfiniteValueError` if a `LogSumExpReward` grows too fast.
        Source: Domingo-Enrich et al., arXiv 2409.08861 (what the law of the start does to the end).
        """
        alpha = positive_number(temperature, "temperature", ProblemError)
        exact: ClosedForm | None = None
        if isinstance(reward, LogSumExpReward):
            if reward.dim != self.dim or reward.temperature != alpha:
                raise ProblemError(
                    f"reward has dim={reward.dim}, temperature={reward.temperature:g},"
                    f" the problem has dim={self.dim}, temperature={alpha:g}"
                )
            if self.eta == 1:
                exact = (TiltedKernels if isinstance(self.data, KernelDensity) else TiltedMixture)(self, reward)
        constant = self.constant_diffusion
        return ControlProblem(
            dim=self.dim,
            horizon=self.horizon,
            temperature=alpha,
            drift=self.drift,
            diffusion=self.diffusion_matrix if constant is None else constant,
            terminal_reward=reward,
            initial_law=self.marginal(0.0),
            exact=exact,
            marginal=self.marginal,
            name=name,
        )


@final
class _Components:
    """The scores of noised Gaussian mixtures; what does not depend on the noise is kept."""

    def __init__(self, mixture: GaussianMixture) -> None:
        present = mixture.components[0] > 0
        weights, means, covs = (array[present] for array in mixture.components)
        self._log_weights = np.log(weights)
        self._variances, self._axes = np.linalg.eigh(covs)  # (k, d), (k, d, d): the axes serve for any noise
        self._rotated_means = np.einsum("kji,kj->ki", self._axes, means)

    def score(self, shrink: FloatArray, noise: FloatArray, x: FloatArray) -> FloatArray:
        """grad log q at x (n, d), q the density of shrink Y + noise^{1/2} Z; shrink, noise numbers or (n,)."""
        k, d = self._rotated_means.shape
        variance = shrink**2 * self._variances[..., None] + noise  # (k, d, 1 or n)
        # points last: sums over axes and components run along memory
        z = (np.swapaxes(self._axes, 1, 2).reshape(k * d, d) @ x.T).reshape(k, d, -1)
        z -= shrink * self._rotated_means[..., None]
        pull = z / variance
        z *= pull
        logs = self._log_weights[:, None] - 0.5 * (z.sum(axis=1) + np.log(variance).sum(axis=1))
        shares = np.exp(logs - logs.max(axis=0))
        shares /= shares.sum(axis=0)
        pull *= shares[:, None]
        return np.asarray(-(self._axes.transpose(1, 0, 2).reshape(d, k * d) @ pull.reshape(k * d, -1)).T)


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
        _check_tilt(process, reward, "TiltedMixture")
        if not isinstance(process.data, GaussianMixture):
            raise ProblemError("TiltedMixture needs data that are a GaussianMixture; for points it is TiltedKernels")
        self.dim, self.horizon, self.temperature = process.dim, process.horizon, reward.temperature
        self._process = process
        present = process.data.components[0] > 0
        weights, self._means, self._covs = (array[present] for array in process.data.components)
        self._log_weights = np.log(weights)
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


@final
class TiltedKernels(ClosedForm):
    r"""A diffusion model of a `KernelDensity` under a `LogSumExpReward`: the same closed form, for many points.

    A Gaussian times the exponential of a quadratic is a Gaussian, so that data * exp(y / alpha) is, for each term j of
    the reward, the measure sum_i w_ij N(m_ij, C_j) with

        C_j = (I / h^2 + R_j / alpha)^{-1},  m_ij = m_i + C_j g_ij,  g_ij = (s_j - R_j m_i) / alpha,
        log w_ij = log w_i + (-m_i'R_j m_i/2 + s_j'm_i + s0_j) / alpha + g_ij'C_j g_ij / 2 + log det(C_j / h^2) / 2.

    Noised like the data it has the density q_{T-t} f_t, by Bayes' rule: f_t is a ratio of two such densities.

    Raises `InfiniteValueError` if some I / h^2 + R_j / alpha is not positive definite, for exp(y / alpha) has then no
    expectation; else as `TiltedMixture`.
    """

    def __init__(self, process: MixtureDiffusion, reward: LogSumExpReward) -> None:
        _check_tilt(process, reward, "TiltedKernels")
        data = process.data
        if not isinstance(data, KernelDensity):
            raise ProblemError("TiltedKernels needs data that are a KernelDensity; for a mixture it is TiltedMixture")
        self.dim, self.horizon, self.temperature = process.dim, process.horizon, reward.temperature
        self._process, self._below = process, data.kernels
        weights, m = data.components
        weights, m = weights[weights > 0], m[weights > 0]
        inverse = data.bandwidth**-2.0
        self._above = []
        for R, s, s0 in zip(*(array / reward.temperature for array in reward.coefficients), strict=True):
            precision = inverse * np.eye(self.dim) + R
            if np.linalg.eigvalsh(precision)[0] <= 0:
                raise InfiniteValueError(
                    "the expectation of exp(y / alpha) is +infinity: it outgrows the Gaussian tails of the kernels, of"
                    f" bandwidth {data.bandwidth:g}; {TAMER}"
                )
            C = np.linalg.inv(precision)
            g = s - m @ R
            logs = np.log(weights) + ((s - 0.5 * m @ R) * m).sum(-1) + s0 + 0.5 * ((g @ C) * g).sum(-1)
            logs -= 0.5 * np.linalg.slogdet(precision / inverse)[1]
            self._above.append(Kernels(logs, m + g @ C, (C + C.T) / 2))

    def _evaluate(self, times: FloatArray, which: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        kappa, noise = (a if len(times) == 1 else a[which] for a in self._process.noising(times))
        found = [kernels.noised(kappa, noise, x) for kernels in self._above]
        logs, slopes = (np.stack(part) for part in zip(*found, strict=True))  # (j, n), (j, n, d)
        above = log_sum(logs, axis=0)
        slope = (np.exp(logs - above)[..., None] * slopes).sum(axis=0)
        below, slope_below = self._below.noised(kappa, noise, x)
        return self.temperature * (above - below), self.temperature * (slope - slope_below)

    def _steer(self, times: FloatArray, which: IntArray, gradient: FloatArray) -> FloatArray:
        return self._process.beta(times)[which][:, None] * gradient


def _check_tilt(process: MixtureDiffusion, reward: LogSumExpReward, asker: str) -> None:
    require(process, MixtureDiffusion, asker, ProblemError)
    require(reward, LogSumExpReward, asker, ProblemError)
    if process.eta != 1:
        raise ProblemError(f"a closed form is known for eta = 1 only, the process has eta = {process.eta:g}")
    if reward.dim != process.dim:
        raise ProblemError(f"the reward has dimension {reward.dim}, the process has dimension {process.dim}")
