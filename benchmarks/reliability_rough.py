"""Families of `reliability_problems` with kinks, jumps, faces, windows in time, and no value; see there."""

from dataclasses import replace
from typing import Any

import numpy as np
import reliability_truths as truths
from reliability_draws import (
    Posed,
    Rng,
    log_uniform,
    oblique,
    ou,
    positive,
    temperature,
    through,
)

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Law, PointMass, Uniform
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.support.checks import FloatArray

_NEAR_JUMP, _NEAR_KINK = 1 - 0.5**6, 1 - 0.5**12


def _pieces(rng: Rng, alpha: float, horizon: float, rate: float, noise: float, continuous: bool) -> truths.Pieces:
    k = int(rng.integers(1, 4))
    spread = np.sqrt(truths.transition(rate, noise, horizon)[1] + 0.2)
    knots = np.sort(rng.uniform(-1.5, 1.5, k)) * spread
    if continuous:
        b = rng.uniform(-2.0, 2.0, k + 1) / spread
        a = np.concatenate([[0.0], np.cumsum((b[:-1] - b[1:]) * knots)])
    else:
        a = rng.uniform(-2.0, 2.0, k + 1)
        b = rng.uniform(-1.0, 1.0, k + 1) / spread * (rng.random() < 0.5)
    return truths.Pieces(knots, a, b, alpha, horizon, rate, noise)


def _piecewise(rng: Rng, dim: int, index: int, continuous: bool, parts: list[truths.Pieces] | None = None) -> Posed:
    alpha = parts[0].temperature if parts else temperature(rng)
    if parts is None:
        horizon = log_uniform(rng, 0.2, 2.0)
        parts = [
            _pieces(rng, alpha, horizon, float(rng.choice([0.0, rng.uniform(0.2, 3.0)])), n, continuous)
            for n in rng.uniform(0.5, 2.0, dim)
        ]
    every, horizon = parts, parts[0].horizon
    rates = np.array([part.rate for part in every])
    linear = LinearDrift(-np.diag(rates), np.zeros(dim))
    problem = ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=alpha,
        drift=linear if index % 2 else lambda t, x: -rates * x,
        diffusion=np.array([part.noise for part in every]),
        terminal_reward=lambda x: np.asarray(sum(part.reward(x[..., [i]]) for i, part in enumerate(every))),
        initial_law=Gaussian(rng.normal(0.0, 0.3, dim), rng.uniform(0.05, 0.5, dim)),
        name="kink" if continuous else "jump",
    )
    truth = every[0] if dim == 1 else truths.Sum(every)
    posed = Posed(problem, truth, {"pieces": every}, _NEAR_KINK if continuous else _NEAR_JUMP)
    if dim == 1 or index % 3 == 2:
        return posed
    M = oblique(rng, dim)
    return through(posed, M, np.zeros(dim), Gaussian(M @ rng.normal(0.0, 0.3, dim), positive(rng, dim, 0.05, 0.5)))


def kink(rng: Rng, dim: int, index: int) -> Posed:
    return _piecewise(rng, dim, index, True)


def jump(rng: Rng, dim: int, index: int) -> Posed:
    return _piecewise(rng, dim, index, False)


def rare(rng: Rng, dim: int, index: int) -> Posed:
    """y = alpha height 1{x_1 > c}, c 3 to 7 standard deviations out; further coordinates have kinks."""
    alpha, horizon = temperature(rng), log_uniform(rng, 0.2, 2.0)
    rate, noise, sd0 = float(rng.choice([0.0, rng.uniform(0.2, 2.0)])), rng.uniform(0.5, 2.0), rng.uniform(0.1, 0.5)
    factor, variance = truths.transition(rate, noise, horizon)
    out = rng.uniform(3.0, 7.0)
    place = out * np.sqrt(factor**2 * sd0**2 + variance)
    height = min(0.5 * out**2 + rng.uniform(-2.0, 3.0), 20.0)
    first = truths.Pieces(np.array([place]), np.array([0.0, height]), np.zeros(2), alpha, horizon, rate, noise)
    others = [_pieces(rng, alpha, horizon, 0.5, 1.0, True) for _ in range(dim - 1)]
    posed = _piecewise(rng, dim, 3 * index + 2, False, [first, *others])
    start = Gaussian(np.zeros(dim), np.full(dim, sd0**2))
    told = {**posed.told, "out": out, "height": height, "sd0": sd0}
    return replace(posed, problem=replace(posed.problem, initial_law=start), told=told)


def exit_(rng: Rng, dim: int, index: int) -> Posed:
    alpha, noise, horizon = temperature(rng), rng.uniform(0.5, 2.0), log_uniform(rng, 0.3, 3.0)
    if dim == 1 and index % 2:
        y = 0.0 if index % 4 == 1 else alpha * rng.uniform(-3.0, 3.0)
        kappa = rng.uniform(0.2, 2.0) if y == 0.0 or index % 8 == 3 else 0.0
        truth = truths.HalfLine(y, 0.0, kappa, alpha, horizon, noise)
        x0 = rng.uniform(0.3, 2.0) * np.sqrt(noise * horizon)
        law: Law = PointMass([x0]) if index % 3 else Uniform(Box([0.5 * x0], [1.5 * x0]))
        problem = ControlProblem(
            dim=1,
            horizon=horizon,
            temperature=alpha,
            drift=LinearDrift([[0.0]], [0.0]),
            diffusion=noise,
            running_reward=(lambda t, x: np.full(x.shape[:-1], -kappa * alpha)) if kappa else None,
            terminal_reward=lambda x: np.full(x.shape[:-1], y),
            initial_law=law,
            domain=Box(
                [0.0], [np.inf], boundary=[("absorbing", "natural")], exit_reward=lambda t, x: np.zeros(x.shape[:-1])
            ),
            name="half line",
        )
        told = {"truth": truth, "x0": x0, "law": type(law).__name__}
        return Posed(problem, truth, told, 1.0 if y == 0.0 else _NEAR_JUMP)
    return series(rng, dim, index, True, horizon)


def reflected(rng: Rng, dim: int, index: int) -> Posed:
    return series(rng, dim, index, False, log_uniform(rng, 0.1, 10.0))


def series(rng: Rng, dim: int, index: int, stopped: bool, horizon: float) -> Posed:
    alpha, width = temperature(rng), rng.uniform(0.7, 3.0, dim)
    noise, lower = rng.uniform(0.3, 1.5, dim) * width**2 * 0.3, rng.normal(0.0, 2.0, dim)
    most = 6 if dim == 1 else 4
    c = rng.uniform(-1.0, 1.0, (most,) * dim) * 0.5 ** np.indices((most,) * dim).sum(axis=0)
    if not stopped:
        c.flat[0] = 0.0
    constant = float(np.abs(c).sum() * rng.uniform(1.02, 1.5))
    truth = truths.Series(constant, c, stopped, lower, width, noise, alpha, horizon)
    g = alpha * np.log(constant)
    box = Box(lower, lower + width, boundary="absorbing" if stopped else "reflecting")
    if stopped:
        box = replace(box, exit_reward=lambda t, x: np.full(x.shape[:-1], g))
    law: Law = (
        Uniform(Box(lower + 0.05 * width, lower + 0.95 * width))
        if index % 2 == 0
        else PointMass(lower + rng.uniform(0.2, 0.8, dim) * width)
    )
    problem = ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=alpha,
        drift=LinearDrift(np.zeros((dim, dim)), np.zeros(dim)),
        diffusion=noise,
        terminal_reward=lambda x: truth.value(horizon, x.reshape(-1, dim)).reshape(x.shape[:-1]),
        initial_law=law,
        domain=box,
        name="stopped" if stopped else "reflected",
    )
    return Posed(problem, truth, {"series": truth, "law": repr(law)})


def window(rng: Rng, dim: int, index: int) -> Posed:
    """dX = (-rate X + push 1{t0 < t < t1}) dt + ..: moved by int e^{-rate .. } push."""
    rate, horizon = float(rng.choice([0.0, rng.uniform(0.2, 2.0)])), log_uniform(rng, 0.5, 3.0)
    posed = ou(rng, dim, index, A=-rate, horizon=horizon)
    length = log_uniform(rng, 0.002, 0.3) * horizon
    begin = rng.uniform(0.0, horizon - length)
    end = begin + length
    push = rng.normal(0.0, 1.0, dim)
    push *= rng.uniform(1.0, 2.0) / np.linalg.norm(push) / length

    def drift(t: Any, x: FloatArray) -> FloatArray:
        on = (np.asarray(t) > begin) & (np.asarray(t) < end)
        return np.asarray(-rate * x + on[..., None] * push)

    def shift(t: float) -> FloatArray:
        a, b = max(begin, t) - t, max(end, t) - t
        size = b - a if rate == 0.0 else (np.exp(rate * b) - np.exp(rate * a)) / rate
        return np.asarray(size * push)

    problem = replace(posed.problem, drift=drift, marginal=None, exact=None)
    if posed.truth is None:
        raise ValueError("a problem without a value")
    told = {**posed.told, "window": (begin, end), "push": push}
    return replace(posed, problem=problem, truth=truths.Moved(posed.truth, shift), told=told, breaks=(begin, end))


def infinite(rng: Rng, dim: int, index: int) -> Posed:
    alpha, kind = temperature(rng), index % 4
    cov, noise = rng.uniform(0.05, 0.5), rng.uniform(0.5, 2.0)
    rate = float(rng.choice([0.0, 1.0]))
    size = alpha * (log_uniform(rng, 1e-3, 0.3) if kind < 2 else rng.uniform(1.1, 3.0))
    spread = truths.transition(rate, noise, 1.0)[1]

    def y(x: FloatArray) -> FloatArray:
        z = x[..., 0]
        if kind == 0:
            return np.asarray(size * z**4)
        if kind == 1:
            return np.asarray(size * np.exp(np.minimum(np.abs(z), 600.0)))
        if kind == 2:
            return np.asarray(size * z**2 / (2 * spread))
        return np.asarray(size * (x**2).sum(-1) / (2 * spread) - alpha * np.cos(z))

    problem = ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=alpha,
        drift=LinearDrift(-rate * np.eye(dim), np.zeros(dim)) if index % 2 else lambda t, x: -rate * x,
        diffusion=noise,
        terminal_reward=y,
        initial_law=Gaussian(np.zeros(dim), cov),
        name="infinite",
    )
    told = {"kind": ("quartic", "exponential", "quadratic", "quadratic and a wave")[kind], "temperature": alpha}
    return Posed(problem, None, {**told, "size": size, "rate": rate, "noise": noise, "cov": cov})
