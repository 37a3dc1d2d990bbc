"""The problems of `bench_reliability`, by family: random ones with fixed seeds, whose value is known without `solve`.

A problem is made of its family, dimension and index alone: `posed("mapped", 2, 17)`. Where the truth is from:

    lq            linear drift, quadratic rewards, indefinite at times: Riccati equations (Fleming, Rishel 1975, VI.5)
    mixture       tilted mixture diffusions; Brownian and OU processes steered to mixtures: sums of exponentials of
                  quadratics (`problems.mixtures`, `problems.closed_form`); temperatures down to 0.03
    manufactured  a value of choice, any drift, a full Lambda that depends on the state (Roache, J. Fluids Eng. 124
                  (2002) 4-10); starts and values far from the origin, correlated
    mapped        x = M phi(z) of a process z steered to a mixture: same value, by Ito's formula
    wells         2 to 7 minima; in two dimensions products of two, rotated or not: Schroedinger operators on a grid
                  of sinc functions, by eigenpairs
    kink, jump    y linear on pieces, continuous or not, Brownian motion or OU: normal distribution functions; in two
                  dimensions products, rotated or not
    exit          stopped at faces: first passage of a half line, exit rewards that fit y and that do not; sine series
    reflected     cosine series, coupled in two dimensions
    rare          y jumps by up to 20 temperatures 3 to 7 standard deviations out: as jump
    far           targets with modes 3 to 15 standard deviations away, as likely as near ones under control: as mixture;
                  half of them divided by the law of X_T, so that v_0 = 0 (Zhang and Chen, arXiv 2111.15141)
    stiff         OU processes with rates 20 to 1000 T^-1 (and 1 to 1000 T^-1 in two dimensions): as mixture
    long          horizons of 1e-4 to 50 times that of relaxation: as mixture, and cosine series
    units         coordinates in units of 1e-6 to 1e6, rewards likewise: as mixture, wells, kink
    window        the drift is pushed for 0.2 to 30 per cent of the horizon: as mixture, moved
    start         points, narrow and wide laws, mixtures, uniform laws, off centre, correlated: as mixture, wells, kink
    infinite      E exp(y / alpha) = infinity: quartic, exponential, quadratic beyond the critical weight. Right is an
                  InfiniteValueError, or a status that is not ok

`latest` is the fraction of the horizon up to which errors are looked at: policies near a jump grow without bound
towards T, and no mean square of them is finite there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import reliability_truths as truths

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import LinearQuadratic
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, PointMass, Uniform
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.manufactured import manufactured
from fem_hjb.problems.problem import ControlProblem, LinearDrift, ValueFunction
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import InfiniteValueError

Rng = np.random.Generator
SEED = 20_261
_NEAR_JUMP = 1 - 0.5**6


@dataclass(frozen=True)
class Posed:
    """A problem and its value; told: the parameters, to read.

    infinite: the value is +infinity, and truth None.  latest: see the module.
    """

    problem: ControlProblem
    truth: ValueFunction | None
    told: dict[str, Any]
    latest: float = 1.0

    @property
    def infinite(self) -> bool:
        return self.truth is None


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def symmetric(rng: Rng, eigenvalues: FloatArray) -> FloatArray:
    """With these eigenvalues and random axes."""
    axes = np.linalg.qr(rng.standard_normal((eigenvalues.size, eigenvalues.size)))[0]
    return np.asarray((axes * eigenvalues) @ axes.T)


def positive(rng: Rng, dim: int, low: float, high: float) -> FloatArray:
    return symmetric(rng, np.array([log_uniform(rng, low, high) for _ in range(dim)]))


def random_drift(rng: Rng, dim: int) -> FloatArray:
    while True:
        A = rng.standard_normal((dim, dim)) - 0.85 * np.eye(dim)
        real = np.linalg.eigvals(A).real
        if real.min() >= -2.0 and real.max() <= 0.3:
            return np.asarray(A)


def oblique(rng: Rng, dim: int) -> FloatArray:
    """A matrix of determinant near 1 that mixes all coordinates."""
    return np.asarray(symmetric(rng, rng.uniform(0.7, 1.4, dim)) @ np.linalg.qr(rng.standard_normal((dim, dim)))[0])


def temperature(rng: Rng) -> float:
    return log_uniform(rng, 0.3, 3.0)


# ---------------------------------------------------------------------------------------------------------------------
# Families


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
            return _of_zoo("lq", dim, params)
        except InfiniteValueError:
            continue


def _of_zoo(name: str, dim: int, params: dict[str, Any]) -> Posed:
    problem = zoo.get(name, dim, **params)
    return Posed(problem, problem.exact, {"zoo": name, "dim": dim, **params})


def mixture(rng: Rng, dim: int, index: int) -> Posed:
    params = _mixture(rng, dim) | {"temperature": log_uniform(rng, 0.03 if index % 3 == 2 else 0.3, 3.0)}
    if index % 2:
        start = {"mean": rng.normal(0.0, 0.5, dim), "cov": positive(rng, dim, 0.1, 1.0)}
        return _of_zoo("brownian-mixture", dim, {**params, "A": float(rng.choice([0.0, -1.0])), **start})
    reward = {
        "reward": str(rng.choice(["linear", "quadratic", "log-mixture"])),
        "strength": params["temperature"] * log_uniform(rng, 0.3, 3.0),
        "target": rng.uniform(-1.0, 1.0, dim),
        "beta": (log_uniform(rng, 0.2, 4.0), log_uniform(rng, 0.2, 8.0)) if index % 4 else log_uniform(rng, 1.0, 4.0),
    }
    return _of_zoo("mixture-diffusion", dim, {**params, **reward})


def _mixture(rng: Rng, dim: int) -> dict[str, Any]:
    k = int(rng.integers(2, 5))
    weights = rng.uniform(0.2, 1.0, k)
    return {
        "weights": weights / weights.sum(),
        "means": rng.normal(0.0, 1.2, (k, dim)),
        "covariances": np.stack([positive(rng, dim, 0.1, 0.6) for _ in range(k)]),
    }


def _ou(rng: Rng, dim: int, index: int, **changes: Any) -> Posed:
    """A mixture problem for Brownian motion or an OU process, of random numbers but for the changes."""
    params = _mixture(rng, dim) | {
        "temperature": temperature(rng),
        "A": -symmetric(rng, rng.uniform(0.0, 1.5, dim)),
        "Lambda": positive(rng, dim, 0.3, 2.0),
        "mean": rng.normal(0.0, 0.5, dim),
        "cov": positive(rng, dim, 0.1, 1.0),
    }
    return _of_zoo("brownian-mixture", dim, params | changes)


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


def _through(posed: Posed, M: FloatArray, bend: FloatArray, start: Law, **changes: Any) -> Posed:
    """The problem in the coordinates x = M phi(z), from another start."""
    old, map_ = posed.problem, truths.Map(M, bend)
    if posed.truth is None:
        raise ValueError("a problem without a value")

    def drift(t: Any, x: FloatArray) -> FloatArray:
        z = map_.back(x)
        first, second = map_.slopes(z)
        noise = np.einsum("...ii->...i", old.Lambda(t, z))
        return np.asarray((first * old.b(t, z) + 0.5 * second * noise) @ M.T)

    def diffusion(t: Any, x: FloatArray) -> FloatArray:
        z = map_.back(x)
        turned = M * map_.slopes(z)[0][..., None, :]
        return np.asarray(turned @ old.Lambda(t, z) @ np.swapaxes(turned, -1, -2))

    constant = old.constant_diffusion
    made = ControlProblem(
        dim=old.dim,
        horizon=old.horizon,
        temperature=old.temperature,
        drift=drift,
        diffusion=diffusion if bend.any() or constant is None else M @ constant @ M.T,
        terminal_reward=lambda x: old.y(map_.back(x)),
        running_reward=None if old.running_reward is None else lambda t, x: old.r(t, map_.back(x)),
        initial_law=start,
        name="mapped",
        **changes,
    )
    return replace(
        posed, problem=made, truth=truths.Mapped(posed.truth, map_), told={**posed.told, "M": M, "bend": bend}
    )


def mapped(rng: Rng, dim: int, index: int) -> Posed:
    base = _ou(rng, dim, index)
    bend = rng.uniform(0.3, 1.0, dim) * (1.0 if index % 2 else -1.0)
    M = oblique(rng, dim)
    start = Gaussian(M @ rng.normal(0.0, 0.5, dim), positive(rng, dim, 0.05, 0.4))
    return _through(base, M, bend, start)


def _well(rng: Rng, alpha: float, horizon: float) -> tuple[truths.Wells, Callable[..., FloatArray], dict[str, Any]]:
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
    made = [_well(rng, alpha, horizon) for _ in range(dim)]

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
    return _through(posed, M, np.zeros(dim), Gaussian(M @ rng.uniform(-0.6, 0.6, dim), positive(rng, dim, 0.01, 0.2)))


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
    posed = Posed(problem, truth, {"pieces": every}, 1.0 if continuous else _NEAR_JUMP)
    if dim == 1 or index % 3 == 2:
        return posed
    M = oblique(rng, dim)
    return _through(posed, M, np.zeros(dim), Gaussian(M @ rng.normal(0.0, 0.3, dim), positive(rng, dim, 0.05, 0.5)))


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
    return _series(rng, dim, index, True, horizon)


def reflected(rng: Rng, dim: int, index: int) -> Posed:
    return _series(rng, dim, index, False, log_uniform(rng, 0.1, 10.0))


def _series(rng: Rng, dim: int, index: int, stopped: bool, horizon: float) -> Posed:
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
    base = _mixture(rng, dim)
    changes = {
        "A": A,
        "Lambda": 1.0,
        "means": base["means"] @ scale.T,
        "covariances": scale @ base["covariances"] @ scale.T,
        "mean": scale @ rng.normal(0.0, 1.0, dim),
        "cov": scale @ positive(rng, dim, 0.3, 2.0) @ scale.T,
        "weights": base["weights"],
    }
    return _as_callable(_ou(rng, dim, index, **changes), index)


def _as_callable(posed: Posed, index: int) -> Posed:
    """Every other time the drift is told as a callable, and the law not at all."""
    drift = posed.problem.drift
    if index % 2 == 0 or not isinstance(drift, LinearDrift):
        return posed
    A = drift.coefficients[0]
    return replace(posed, problem=replace(posed.problem, drift=lambda t, x: x @ A.T, marginal=None, exact=None))


def long(rng: Rng, dim: int, index: int) -> Posed:
    horizon = log_uniform(rng, 1e-4, 1e-2) if index % 3 == 0 else log_uniform(rng, 5.0, 50.0)
    if dim == 1 and index % 3 == 2:
        return _series(rng, dim, index, False, horizon)
    A = -symmetric(rng, rng.uniform(0.5, 2.0, dim))
    posed = _ou(rng, dim, index, horizon=horizon, A=A)
    return _as_callable(posed, index)


def units(rng: Rng, dim: int, index: int) -> Posed:
    scale = np.array([log_uniform(rng, 1e-6, 1e6) for _ in range(dim)])
    base = (_ou, wells, kink)[index % 3](rng, dim, index)
    law = base.problem.initial_law
    start = Gaussian(scale * law.expectation, law.covariance * np.outer(scale, scale))
    posed = _through(base, np.diag(scale), np.zeros(dim), start)
    reward = log_uniform(rng, 1e-6, 1e6)
    old = posed.problem
    problem = replace(
        old,
        temperature=reward * old.temperature,
        terminal_reward=lambda x: reward * old.y(x),
    )
    if posed.truth is None:
        raise ValueError("a problem without a value")
    return replace(
        posed,
        problem=problem,
        truth=_Scaled(posed.truth, reward),
        told={**posed.told, "units": scale, "unit of the reward": reward},
    )


@dataclass(frozen=True)
class _Scaled:
    of: ValueFunction
    size: float

    def value(self, t: float, x: FloatArray) -> FloatArray:
        return self.size * self.of.value(t, x)

    def gradient(self, t: float, x: FloatArray) -> FloatArray:
        return self.size * self.of.gradient(t, x)


def window(rng: Rng, dim: int, index: int) -> Posed:
    """dX = (-rate X + push 1{t0 < t < t1}) dt + ..: moved by int e^{-rate .. } push."""
    rate, horizon = float(rng.choice([0.0, rng.uniform(0.2, 2.0)])), log_uniform(rng, 0.5, 3.0)
    posed = _ou(rng, dim, index, A=-rate, horizon=horizon)
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
    return replace(posed, problem=problem, truth=truths.Moved(posed.truth, shift), told=told)


def start(rng: Rng, dim: int, index: int) -> Posed:
    base = (_ou, wells, kink, _ou)[index % 4](rng, dim, index)
    centre, kind = rng.normal(0.0, 1.0, dim), int(rng.integers(0, 6))
    if index % 4 == 0:
        centre = centre + rng.choice([-4.0, 4.0], dim)
    if index % 4 == 1:
        centre = 0.4 * centre
    cov = positive(rng, dim, 0.01, 0.3)
    laws: list[Callable[[], Law]] = [
        lambda: PointMass(centre),
        lambda: Gaussian(centre, 1e-4 * cov),
        lambda: Gaussian(centre, 1e-9 * cov),
        lambda: Uniform(Box(centre - 0.5, centre + 0.7)),
        lambda: GaussianMixture([0.3, 0.7], np.stack([centre, -0.5 * centre]), np.stack([cov, 0.1 * cov])),
        lambda: Gaussian(centre, cov),
    ]
    law = laws[kind]()
    problem = replace(base.problem, initial_law=law, marginal=None, exact=None)
    return replace(base, problem=problem, told={**base.told, "start": repr(law), "centre": centre})


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


@dataclass(frozen=True)
class Family:
    """How many problems in dimension 1, 2 and 3, and how one is made."""

    build: Callable[[Rng, int, int], Posed]
    counts: tuple[int, int, int]


FAMILIES = {
    "mixture": Family(mixture, (18, 14, 4)),
    "manufactured": Family(manufactured_value, (18, 14, 4)),
    "mapped": Family(mapped, (16, 12, 4)),
    "wells": Family(wells, (18, 12, 0)),
    "kink": Family(kink, (14, 8, 0)),
    "jump": Family(jump, (14, 8, 0)),
    "exit": Family(exit_, (16, 6, 0)),
    "reflected": Family(reflected, (12, 8, 4)),
    "rare": Family(rare, (12, 4, 0)),
    "far": Family(far, (16, 10, 4)),
    "stiff": Family(stiff, (12, 8, 0)),
    "long": Family(long, (12, 6, 0)),
    "units": Family(units, (12, 9, 0)),
    "window": Family(window, (12, 6, 0)),
    "start": Family(start, (16, 8, 0)),
    "infinite": Family(infinite, (8, 4, 0)),
    "lq": Family(lq, (12, 12, 6)),
}


def posed(family: str, dim: int, index: int) -> Posed:
    """The problem of this label, the same on every call."""
    rng = np.random.default_rng([SEED, list(FAMILIES).index(family), dim, index])
    return FAMILIES[family].build(rng, dim, index)


def labels(dims: list[int], most: int | None = None) -> list[tuple[str, int, int]]:
    """(family, dim, index) of every problem in these dimensions, at most so many of each family and dimension."""
    return [
        (name, dim, index)
        for dim in dims
        for name, family in FAMILIES.items()
        for index in range(min(family.counts[dim - 1], most or 10**9))
    ]
