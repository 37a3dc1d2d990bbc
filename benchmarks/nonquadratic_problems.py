"""The problems of `bench_nonquadratic`, and what is right: closed forms, or much finer solutions of two kinds.

Only public names of the package are used, so that other versions of it can be asked, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ive

import fem_hjb as fh

Array = np.ndarray
REMAINING = (0.01, 0.02, 0.04, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # (T - t)/T at which policies are compared; t = 0 last


def _named(name: str) -> Any:
    """A public name, wherever this version of the package keeps it."""
    for place in ("problems", "laws", "manufactured"):
        try:
            return getattr(importlib.import_module(f"fem_hjb.{place}"), name)
        except (ImportError, AttributeError):
            continue
    raise AttributeError(f"this version of the package has no {name}")


@dataclass(frozen=True)
class Case:
    """A problem, what rivals are told of it, and how its right policy is found.

    steady: nothing depends on time. targets: relative errors of the policy asked for. fine: nodes per axis of the
    reference where there is no closed form. marginal: the law of X_t, where the problem does not tell it.
    divergence: that of a variable Lambda, (n, d), for weak forms.
    """

    name: str
    dim: int
    make: Callable[[], Any]
    steady: bool
    targets: tuple[float, ...] = (1e-3,)
    exact: Callable[[], Any] | None = None
    marginal: Callable[[float], Any] | None = None
    divergence: Callable[[Array], Array] | None = None
    fine: tuple[int, int] | None = None
    quick: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# Problems


def tight_mixture() -> Any:
    """Three narrow components: standard deviations from .2 to .35 in a box of four units."""
    return fh.zoo.get(
        "mixture-diffusion",
        2,
        weights=[0.3, 0.3, 0.4],
        means=[[-1.0, -0.6], [1.1, 0.2], [0.0, 1.2]],
        covariances=[[[0.06, 0.02], [0.02, 0.09]], [[0.12, -0.04], [-0.04, 0.06]], [[0.08, 0.0], [0.0, 0.05]]],
        strength=2.0,
    )


def wells(dim: int, c: float = 0.5) -> Any:
    """U = sum_k (x_k^2 - 1)^2 + c sum_k x_k x_{k+1}."""

    def drift(t: Any, x: Array) -> Array:
        b = -4.0 * x * (x**2 - 1.0)
        b[..., 1:] -= c * x[..., :-1]
        b[..., :-1] -= c * x[..., 1:]
        return b

    return fh.ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=drift,
        diffusion=1.0,
        terminal_reward=lambda x: -((x - 1.0) ** 2).sum(-1),
        initial_law=fh.Gaussian([0.0] * dim, 0.25),
        name=f"wells-{dim}",
    )


def ring() -> Any:
    """b = -grad of k (|x|^2 - 25) |x|^2, minimal on the ring |x|^2 = 12.5, and the running cost 2 x_1."""
    k = 0.05
    return fh.ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -k * (4.0 * (x**2).sum(-1, keepdims=True) - 50.0) * x,
        diffusion=1.0,
        running_reward=lambda t, x: -2.0 * x[..., 0],
        terminal_reward=lambda x: 0.0 * x[..., 0],
        initial_law=fh.Gaussian([0.0, 3.5], 0.1),
        name="ring",
    )


def damped_rotation() -> Any:
    return fh.ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=0.5,
        drift=lambda t, x: np.stack([x[..., 1], -x[..., 0] - 0.5 * x[..., 1] * x[..., 0] ** 2], -1),
        diffusion=0.3,
        terminal_reward=lambda x: -((x - 1.0) ** 2).sum(-1),
        initial_law=fh.Gaussian([0.0, 0.0], 0.2),
        name="damped-rotation",
    )


class EightGaussians:
    """The time reversal of dY = -Y ds + 2^{1/2} dB from eight Gaussians on a ring, tilted by y = 2 sin 2 x_0 + x_1.

    Given X_t, X_T is a mixture of Gaussians C N(m, v I), under which E exp(x_1) = exp(m_1 + v/2) and, by the
    Jacobi-Anger expansion, E exp(2 sin 2 x_0) = I_0(2) + 2 sum_k I_k(2) exp(-2 k^2 v) cos(k (2 m_0 - pi/2)).
    """

    T, early, sd = 3.0, 0.02, 0.2  # the data are seen after the noising time `early`
    angles = np.arange(8) * np.pi / 4
    centres = 2.0 * np.stack([np.cos(angles), np.sin(angles)], -1)
    k = np.arange(1, 24)
    bessel = ive(np.arange(24), 2.0) * np.exp(2.0)

    def at(self, t: Any) -> tuple[Any, Any]:
        """e and v: the components of X_t are N(e m_i, v I)."""
        e = np.exp(-(self.T - np.asarray(t, float) + self.early))
        return e, self.sd**2 * e**2 + 1.0 - e**2

    def weighted(self, t: Any, x: Array) -> tuple[Array, Array, Any]:
        """Posterior weights of the components (..., 8), x - e m_i (..., 8, 2) and v."""
        e, v = (a[..., None] for a in self.at(t))
        away = x[..., None, :] - e[..., None] * self.centres
        w = -0.5 * (away**2).sum(-1) / v
        w = np.exp(w - w.max(-1, keepdims=True))
        return w / w.sum(-1, keepdims=True), away, v

    def drift(self, t: Any, x: Array) -> Array:
        w, away, v = self.weighted(t, x)
        return np.asarray(x - 2.0 * (w[..., None] * away).sum(-2) / v)

    def marginal(self, t: float) -> Any:
        e, v = self.at(t)
        return fh.GaussianMixture(np.full(8, 0.125), e * self.centres, np.stack([np.eye(2) * v] * 8))

    def problem(self) -> Any:
        return fh.ControlProblem(
            dim=2,
            horizon=self.T,
            temperature=1.0,
            drift=self.drift,
            diffusion=2.0,
            terminal_reward=lambda x: 2.0 * np.sin(2.0 * x[..., 0]) + x[..., 1],
            initial_law=self.marginal(0.0),
            name="eight-gaussians",
        )

    def gradient(self, t: float, x: Array) -> Array:
        """grad log f: f = sum_i w_i E_i, so f' / f = sum_i w_i E_i (log w_i + log E_i)' / f."""
        w, away, v = self.weighted(t, x)
        e0, v0 = self.at(self.T)
        pulled = np.exp(-(self.T - t))
        noise = 1.0 - pulled**2
        gain = v0 * pulled / (pulled**2 * v0 + noise)  # of X_T on X_t
        posterior = v0 * noise / (pulled**2 * v0 + noise)
        m = e0 * self.centres + gain * away
        phase = self.k * (2.0 * m[..., :1] - np.pi / 2)  # (..., 8, k)
        size = 2.0 * self.bessel[1:] * np.exp(-2.0 * self.k**2 * posterior)
        first = self.bessel[0] + np.cos(phase) @ size
        expected = first * np.exp(m[..., 1] + 0.5 * posterior)
        slopes = np.stack([-2.0 * gain * (np.sin(phase) @ (size * self.k)) / first, np.full(first.shape, gain)], -1)
        score = -away / np.asarray(v)[..., None]
        share = w * expected / (w * expected).sum(-1, keepdims=True)
        centred = score - (w[..., None] * score).sum(-2, keepdims=True)
        return np.asarray((share[..., None] * (centred + slopes)).sum(-2))


def full_diffusion() -> Any:
    """A full Lambda that depends on the state, a drift that depends on time; the value is chosen."""
    p, q = np.array([1.0, 0.5]), np.array([-0.7, 1.2])

    def parts(t: Any, x: Array) -> tuple[Any, Array, Array]:
        return 1.0 + 0.5 * np.cos(2.0 * np.asarray(t, float)), x @ p, x @ q

    def value(t: Any, x: Array) -> Array:
        a, u, v = parts(t, x)
        return np.asarray(a * np.sin(u) + 0.6 * np.cos(v))

    def time_derivative(t: Any, x: Array) -> Array:
        return np.asarray(-np.sin(2.0 * np.asarray(t, float)) * np.sin(x @ p))

    def gradient(t: Any, x: Array) -> Array:
        a, u, v = parts(t, x)
        return np.asarray((a * np.cos(u))[..., None] * p - 0.6 * np.sin(v)[..., None] * q)

    def hessian(t: Any, x: Array) -> Array:
        a, u, v = parts(t, x)
        first = -(a * np.sin(u))[..., None, None] * np.outer(p, p)
        return np.asarray(first - 0.6 * np.cos(v)[..., None, None] * np.outer(q, q))

    def drift(t: Any, x: Array) -> Array:
        turn = 0.5 * np.cos(np.asarray(t, float))
        return np.stack([-x[..., 0] + 0.5 * np.sin(x[..., 1]), -x[..., 1] + turn * x[..., 0]], -1)

    def diffusion(t: Any, x: Array) -> Array:
        c = np.cos(x[..., 0])
        rows = [1.0 + 0.3 * np.sin(x[..., 1]), 0.3 * c, 0.3 * c, 0.8 + 0.2 * c]
        return np.stack(rows, -1).reshape(*x.shape[:-1], 2, 2)

    return _named("manufactured")(
        value=value,
        time_derivative=time_derivative,
        gradient=gradient,
        hessian=hessian,
        drift=drift,
        diffusion=diffusion,
        temperature=1.0,
        horizon=1.0,
        initial_law=fh.Gaussian([0.0, 0.0], 0.3),
        name="full-diffusion",
    )


class ReflectingSquare:
    """Brownian motion reflected in [-1, 1]^2 from its uniform law, y = 2 cos(pi x_0) cos(pi x_1); by cosine series."""

    T, n = 0.1, 48

    def __init__(self) -> None:
        s = np.arange(4 * self.n) / (2 * self.n)  # on a full period, with z = (x + 1)/2 on (0, 2)
        y = np.exp(2.0 * np.outer(np.cos(np.pi * (2 * s - 1)), np.cos(np.pi * (2 * s - 1))))
        c = np.fft.fft2(y).real[: self.n, : self.n] / y.size
        c[1:] *= 2.0
        c[:, 1:] *= 2.0
        self.c = c

    def gradient(self, t: float, x: Array) -> Array:
        k = np.pi / 2 * np.arange(self.n)
        decay = np.exp(-0.5 * k**2 * (self.T - t))
        c = self.c * np.outer(decay, decay)
        z = x[..., None] + 1.0
        cos, sin = np.cos(k * z), -k * np.sin(k * z)
        f = np.einsum("...i,ij,...j->...", cos[..., 0, :], c, cos[..., 1, :])
        gx = np.einsum("...i,ij,...j->...", sin[..., 0, :], c, cos[..., 1, :])
        gy = np.einsum("...i,ij,...j->...", cos[..., 0, :], c, sin[..., 1, :])
        return np.stack([gx, gy], -1) / f[..., None]

    def problem(self) -> Any:
        box = fh.Box([-1.0, -1.0], [1.0, 1.0], boundary="reflecting")
        return fh.ControlProblem(
            dim=2,
            horizon=self.T,
            temperature=1.0,
            drift=lambda t, x: 0.0 * x,
            diffusion=1.0,
            terminal_reward=lambda x: 2.0 * np.cos(np.pi * x[..., 0]) * np.cos(np.pi * x[..., 1]),
            initial_law=_named("Uniform")(box),
            domain=box,
            name="reflecting-square",
        )


def _zoo(name: str, dim: int) -> Callable[[], Any]:
    return lambda: fh.zoo.get(name, dim)


TIGHTER = (1e-3, 1e-5)
CASES = {
    case.name: case
    for case in (
        Case("mixture-2", 2, _zoo("mixture-diffusion", 2), steady=False, targets=TIGHTER),
        Case("mixture-tight", 2, tight_mixture, steady=False, targets=TIGHTER),
        Case("mixture-3", 3, _zoo("mixture-diffusion", 3), steady=False, targets=(1e-2, 1e-3)),
        Case("brownian-2", 2, _zoo("brownian-mixture", 2), steady=True, targets=TIGHTER, quick=True),
        Case("wells-2", 2, lambda: wells(2), steady=True, targets=TIGHTER, fine=(56, 72)),
        Case("wells-3", 3, lambda: wells(3), steady=True, targets=(1e-2, 1e-3), fine=(36, 44)),
        Case("ring", 2, ring, steady=True, fine=(80, 100)),
        Case("damped-rotation", 2, damped_rotation, steady=True, targets=TIGHTER, fine=(56, 72)),
        Case(
            "eight-gaussians",
            2,
            lambda: EightGaussians().problem(),
            steady=False,
            exact=EightGaussians,
            marginal=EightGaussians().marginal,
        ),
        Case(
            "full-diffusion",
            2,
            full_diffusion,
            steady=False,
            targets=TIGHTER,
            divergence=lambda x: np.stack([0.0 * x[..., 0], -0.3 * np.sin(x[..., 0])], -1),
        ),
        Case(
            "reflecting-square",
            2,
            lambda: ReflectingSquare().problem(),
            steady=True,
            targets=TIGHTER,
            exact=ReflectingSquare,
            marginal=lambda t: ReflectingSquare().problem().initial_law,
            quick=True,
        ),
    )
}


# ---------------------------------------------------------------------------------------------------------------------
# What is right, and where it is asked


@dataclass
class Truth:
    """Points and weights of p_t at the times T (1 - REMAINING), the right policy there, and Lambda^{-1} there."""

    times: Array
    points: list[Array]
    weights: list[Array]
    policies: list[Array]
    inverses: list[Array]
    doubt: float = 0.0  # of the reference, where it is a finer solution: how far two of them are apart

    def errors(self, policy: Callable[[int, float, Array], Array]) -> tuple[float, float]:
        """Of policy(k, t_k, x), relative: max over t < T, and at t = 0. nan at a point: it is left out."""
        off, size = [], []
        for k, t in enumerate(self.times):
            x, w, right, inverse = (a[k] for a in (self.points, self.weights, self.policies, self.inverses))
            e = policy(k, float(t), x) - right
            square = np.einsum("ni,nij,nj->n", e, np.broadcast_to(inverse, (*e.shape, e.shape[1])), e)
            off.append(np.sqrt(w @ np.where(np.isnan(square), 0.0, square)))
            if (w * np.isnan(square)).sum() > 1e-3:
                off[-1] = np.inf
            square = np.einsum("ni,nij,nj->n", right, np.broadcast_to(inverse, (*e.shape, e.shape[1])), right)
            size.append(np.sqrt(w @ square))
        return float(max(off) / max(size)), float(off[-1] / size[-1])

    def save(self, path: Path) -> None:
        lists = {
            f"{name}{k}": value
            for name in ("points", "weights", "policies", "inverses")
            for k, value in enumerate(getattr(self, name))
        }
        np.savez(path, times=self.times, doubt=self.doubt, **lists)

    @classmethod
    def load(cls, path: Path) -> Truth:
        with np.load(path) as file:
            n = len(file["times"])
            lists = [[file[f"{name}{k}"] for k in range(n)] for name in ("points", "weights", "policies", "inverses")]
            return cls(file["times"], *lists, doubt=float(file["doubt"]))


def law_points(case: Case, problem: Any) -> tuple[Array, list[Array], list[Array]]:
    """Gauss points of p_t where it is known, else 4096 simulated paths."""
    times = problem.horizon * (1.0 - np.array(REMAINING))
    marginal = case.marginal or problem.marginal
    if marginal is not None:
        rules = [marginal(float(t)).quadrature(24 if case.dim == 2 else 12) for t in times]
        return times, [x for x, _ in rules], [w for _, w in rules]
    paths = fh.sample_paths(problem, n=4096, steps=100, substeps=8, rng=1)
    where = [paths.x[:, round(100 * (1.0 - s))] for s in REMAINING]
    return times, where, [np.full(len(x), 1.0 / len(x)) for x in where]


def policies_of(problem: Any, times: Array, points: list[Array], gradient: Callable[..., Array]) -> list[Array]:
    rows = zip(times.tolist(), points, strict=True)
    return [problem.policy_from_gradient(t, x, np.asarray(gradient(t, x))) for t, x in rows]


def inverses_of(problem: Any, times: Array, points: list[Array]) -> list[Array]:
    if problem.constant_diffusion is not None:
        return [np.linalg.inv(problem.constant_diffusion)] * len(times)
    return [np.linalg.inv(problem.Lambda(float(t), x)) for t, x in zip(times, points, strict=True)]
