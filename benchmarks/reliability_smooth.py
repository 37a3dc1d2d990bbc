"""Families of `reliability_problems` whose rewards are smooth; see there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import reliability_truths as truths
from reliability_draws import (
    Posed,
    Rng,
    as_callable,
    log_uniform,
    mixture_numbers,
    oblique,
    of_zoo,
    ou,
    positive,
    random_drift,
    symmetric,
    temperature,
    through,
)

from fem_hjb.problems.closed_form import LinearQuadratic
from fem_hjb.problems.laws import Gaussian, Law, PointMass
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.manufactured import manufactured
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import InfiniteValueError


def lq(rng: Rng, dim: int, index: int) -> Posed:
    while True:
        params: dict[str, Any] = {
            "temperature": temperature(rng),
            "A": random_drift(rng, dim),
            "a": rng.normal(0.0, 0.5, dim),
            "Lambda": positive(rng, dim, 0.3, 3.0),
            "Q": symmetric(rng, rng.uniform(-0.4, 2.0, dim)),
            "q": rng.standard_normal(dim),
            "R": symmetric(rng, rng.uniform(-0.4, 2.0, dim)),
            "s": rng.standard_normal(dim),
            "mean": rng.normal(0.0, 0.5, dim),
            "cov": positive(rng, dim, 0.1, 1.0),
        }
        try:
            return of_zoo("lq", dim, params)
        except InfiniteValueError:
            continue


def mixture(rng: Rng, dim: int, index: int) -> Posed:
    params = mixture_numbers(rng, dim) | {"temperature": log_uniform(rng, 0.03 if index % 3 == 2 else 0.3, 3.0)}
    if index % 2:
        start = {"mean": rng.normal(0.0, 0.5, dim), "cov": positive(rng, dim, 0.1, 1.0)}
        return of_zoo("brownian-mixture", dim, {**params, "A": float(rng.choice([0.0, -1.0])), **start})
    reward = {
        "reward": str(rng.choice(["linear", "quadratic", "log-mixture"])),
        "strength": params["temperature"] * log_uniform(rng, 0.3, 3.0),
        "target": rng.uniform(-1.0, 1.0, dim),
        "beta": (log_uniform(rng, 0.2, 4.0), log_uniform(rng, 0.2, 8.0)) if index % 4 else log_uniform(rng, 1.0, 4.0),
    }
    return of_zoo("mixture-diffusion", dim, {**params, **reward})


class _Ridges:
    """v = sum_j a_j (1 + cos(w_j t + p_j) / 2) g_j(q_j . (x - c)), g of sin, tanh, log cosh, exp(-u^2 / 2)."""

    kinds = (
        (np.sin, np.cos, lambda u: -np.sin(u)),
        (np.tanh, lambda u: 1 / np.cosh(u) ** 2, lambda u: -2 * np.tanh(u) / np.cosh(u) ** 2),
        (lambda u: np.logaddexp(u, -u), np.tanh, lambda u: 1 / np.cosh(u) ** 2),
        (lambda u: np.exp(-(u**2) / 2), lambda u: -u * np.exp(-(u**2) / 2), lambda u: (u**2 - 1) * np.exp(-(u**2) / 2)),
    )

    def __init__(self, rng: Rng, dim: int, alpha: float, centre: FloatArray) -> None:
        k = int(rng.integers(2, 5))
        self.a = alpha * rng.uniform(0.4, 2.0, k) * rng.choice([-1.0, 1.0], k)
        self.w, self.p = rng.uniform(0.0, 6.0, k), rng.uniform(0.0, 6.0, k)
        self.q, self.c = rng.normal(0.0, 1.5 / np.sqrt(dim), (k, dim)), centre
        self.which = rng.integers(0, 4, k)
        self.a[self.which == 2] = -np.abs(self.a[self.which == 2])

    def _parts(self, t: Any, x: FloatArray, order: int) -> FloatArray:
        u = (x - self.c) @ self.q.T
        return np.stack([self.kinds[kind][order](u[..., j]) for j, kind in enumerate(self.which)], -1)

    def _sizes(self, t: Any) -> FloatArray:
        return np.asarray(self.a * (1 + 0.5 * np.cos(self.w * np.asarray(t)[..., None] + self.p)))

    def value(self, t: Any, x: FloatArray) -> FloatArray:
        return np.asarray((self._sizes(t) * self._parts(t, x, 0)).sum(-1))

    def time_derivative(self, t: Any, x: FloatArray) -> FloatArray:
        rates = -0.5 * self.a * self.w * np.sin(self.w * np.asarray(t)[..., None] + self.p)
        return np.asarray((rates * self._parts(t, x, 0)).sum(-1))

    def gradient(self, t: Any, x: FloatArray) -> FloatArray:
        return np.asarray((self._sizes(t) * self._parts(t, x, 1)) @ self.q)

    def hessian(self, t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(np.einsum("...j,ji,jk->...ik", self._sizes(t) * self._parts(t, x, 2), self.q, self.q))


def manufactured_value(rng: Rng, dim: int, index: int) -> Posed:
    alpha = temperature(rng)
    centre = rng.normal(0.0, 20.0, dim) if index % 2 else np.zeros(dim)
    v = _Ridges(rng, dim, alpha, centre)
    B, W, turn = random_drift(rng, dim), rng.standard_normal((dim, dim)), rng.uniform(0.0, 8.0)
    root = np.linalg.cholesky(positive(rng, dim, 0.3, 2.0))
    waves, mixing = rng.normal(0.0, 1.0, (dim, dim)), 0.2 * (np.ones((dim, dim)) - np.eye(dim))

    def drift(t: Any, x: FloatArray) -> FloatArray:
        z = x - centre
        return np.asarray(z @ B.T + np.sin(z @ W.T + turn * np.asarray(t)[..., None]))

    def diffusion(t: Any, x: FloatArray) -> FloatArray:
        z = x - centre
        inner = (
            np.eye(dim) * (1 + 0.4 * np.sin(z @ waves.T))[..., None, :] + mixing * np.sin(z[..., 0])[..., None, None]
        )
        return np.asarray(root @ inner @ root.T)

    made = manufactured(
        value=v.value,
        time_derivative=v.time_derivative,
        gradient=v.gradient,
        hessian=v.hessian,
        drift=drift,
        diffusion=positive(rng, dim, 0.3, 2.0) if index % 3 == 2 else diffusion,
        temperature=alpha,
        horizon=1.0,
        initial_law=Gaussian(centre + rng.normal(0.0, 0.5, dim), positive(rng, dim, 0.05, 0.8)),
    )
    told = {"temperature": alpha, "centre": centre, "ridges": vars(v), "B": B, "W": W, "turn": turn, "waves": waves}
    return Posed(made, made.exact, told)


def mapped(rng: Rng, dim: int, index: int) -> Posed:
    base = ou(rng, dim, index)
    bend = rng.uniform(0.3, 1.0, dim) * (1.0 if index % 2 else -1.0)
    M = oblique(rng, dim)
    start = Gaussian(M @ rng.normal(0.0, 0.5, dim), positive(rng, dim, 0.05, 0.4))
    return through(base, M, bend, start)


def well(rng: Rng, alpha: float, horizon: float) -> tuple[truths.Wells, Callable[..., FloatArray], dict[str, Any]]:
    """2 to 7 minima: U = h cos(..) within a quartic bowl; y a bump, a ramp or a wave."""
    minima = int(rng.integers(2, 8))
    noise, height = log_uniform(rng, 0.5, 1.5), rng.uniform(0.3, 1.6)
    half = minima / 2.0
    turn, phase, tilt = 2 * np.pi, rng.uniform(0.0, 2 * np.pi), rng.uniform(-0.2, 0.2)
    p = np.pi if minima % 2 == 0 else 0.0

    def U(x: FloatArray) -> FloatArray:
        return np.asarray(-height * np.cos(turn * x + p) + 1.5 * (x / half) ** 4 + tilt * x)

    def slope(x: FloatArray) -> FloatArray:
        return np.asarray(height * turn * np.sin(turn * x + p) + 6.0 * x**3 / half**4 + tilt)

    def curvature(x: FloatArray) -> FloatArray:
        return np.asarray(height * turn**2 * np.cos(turn * x + p) + 18.0 * x**2 / half**4)

    kind, size, target = int(rng.integers(0, 3)), alpha * rng.uniform(1.0, 3.0), rng.uniform(-half, half)

    def y(x: FloatArray) -> FloatArray:
        z = x[..., 0]
        if kind == 0:
            return np.asarray(size * np.exp(-((z - target) ** 2)))
        if kind == 1:
            return np.asarray(size * np.tanh(z - target))
        return np.asarray(size * np.sin(2.0 * z + phase))

    end = half * (20.0 * max(noise, 0.7)) ** 0.25
    found = truths.Wells((U, slope, curvature), y, noise, alpha, horizon, -end, end, int(75 * end) + 60)
    told = {"minima": minima, "noise": noise, "height": height, "tilt": tilt, "reward": (kind, size, target, phase)}
    return found, slope, told


def wells(rng: Rng, dim: int, index: int) -> Posed:
    alpha, horizon = temperature(rng), log_uniform(rng, 0.3, 3.0)
    made = [well(rng, alpha, horizon) for _ in range(dim)]

    def drift(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(-np.stack([slope(x[..., i]) for i, (_, slope, _) in enumerate(made)], -1))

    def y(x: FloatArray) -> FloatArray:
        return np.asarray(sum(part.reward(x[..., [i]]) for i, (part, _, _) in enumerate(made)))

    problem = ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=alpha,
        drift=drift,
        diffusion=np.array([part.noise for part, _, _ in made]),
        terminal_reward=y,
        initial_law=Gaussian(rng.uniform(-0.6, 0.6, dim), rng.uniform(0.01, 0.2, dim)),
        name="wells",
    )
    truth = made[0][0] if dim == 1 else truths.Sum([part for part, _, _ in made])
    told = {"temperature": alpha, "horizon": horizon, "wells": [told for _, _, told in made]}
    posed = Posed(problem, truth, told)
    if dim == 1 or index % 3 == 2:
        return posed
    M = oblique(rng, dim)
    return through(posed, M, np.zeros(dim), Gaussian(M @ rng.uniform(-0.6, 0.6, dim), positive(rng, dim, 0.01, 0.2)))


def far(rng: Rng, dim: int, index: int) -> Posed:
    """Modes at 3 to 15 standard deviations of X_T, weighted so that control goes to each of them likewise."""
    alpha, horizon, k = temperature(rng), log_uniform(rng, 0.3, 2.0), int(rng.integers(2, 4))
    A = -symmetric(rng, rng.uniform(0.0, 1.5, dim)) * (index % 2)
    Lambda = positive(rng, dim, 0.5, 1.5)
    start: Law = PointMass(np.zeros(dim)) if index % 4 < 2 else Gaussian(np.zeros(dim), positive(rng, dim, 0.01, 0.2))
    drift = LinearDrift(A, np.zeros(dim))
    last = linear_marginal(drift, Lambda, start)(horizon)
    root = np.linalg.cholesky(last.covariance)
    directions = rng.standard_normal((k, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    out = rng.uniform(3.0, 15.0, k)
    out[0] = rng.uniform(0.0, 2.0)
    means = (out[:, None] * directions) @ root.T
    covs = np.stack([root @ positive(rng, dim, 0.05, 0.6) @ root.T for _ in range(k)])
    reward = LogSumExpReward.log_mixture(np.ones(k), means, covs, temperature=alpha)
    if index % 3:  # divided by the law of X_T
        R, s, s0 = reward.coefficients
        reward = LogSumExpReward(temperature=alpha, R=R - alpha * np.linalg.inv(last.covariance), s=s, s0=s0)
    each = [
        LinearQuadratic(drift=drift, diffusion=Lambda, terminal=one, horizon=horizon).value(0.0, np.zeros((1, dim)))[0]
        for one in (
            LogSumExpReward(temperature=alpha, R=r[None], s=s[None], s0=s0[None])
            for r, s, s0 in zip(*reward.coefficients, strict=True)
        )
    ]
    R, s, s0 = reward.coefficients
    reward = LogSumExpReward(temperature=alpha, R=R, s=s, s0=s0 - np.array(each))
    truth = LinearQuadratic(drift=drift, diffusion=Lambda, terminal=reward, horizon=horizon)
    problem = ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=alpha,
        drift=drift,
        diffusion=Lambda,
        terminal_reward=reward,
        initial_law=start,
        name="far",
    )
    told = {
        "temperature": alpha,
        "horizon": horizon,
        "A": A,
        "Lambda": Lambda,
        "start": repr(start),
        "R, s, s0": reward.coefficients,
        "standard deviations out": out,
    }
    return Posed(problem, truth, told)


def stiff(rng: Rng, dim: int, index: int) -> Posed:
    rates = np.array([log_uniform(rng, 20.0, 1000.0), *[log_uniform(rng, 1.0, 1000.0) for _ in range(dim - 1)]])
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    A = -(axes * rates) @ axes.T
    scale = (axes / np.sqrt(2 * rates)) @ axes.T  # standard deviations under the stationary law, Lambda = I
    base = mixture_numbers(rng, dim)
    changes = {
        "A": A,
        "Lambda": 1.0,
        "means": base["means"] @ scale.T,
        "covariances": scale @ base["covariances"] @ scale.T,
        "mean": scale @ rng.normal(0.0, 1.0, dim),
        "cov": scale @ positive(rng, dim, 0.3, 2.0) @ scale.T,
        "weights": base["weights"],
    }
    return as_callable(ou(rng, dim, index, **changes), index)
