"""The explicit rival of `bench_nonquadratic`, in plain NumPy: the HJB equation by the method of lines on a tensor grid.

    v_s = <b, grad v> + Tr(Lambda Hess v)/2 + r + grad v' Lambda grad v / (2 alpha),   s = T - t, v = y at s = 0.

Space: "fd", finite differences of order six, one-sided at the faces, or "cheb", Chebyshev nodes made nearly uniform by
Kosloff and Tal-Ezer's map, which has no stability limit below that of equal spacing; either may be drawn together in
the middle of the box by a sinh. Time: "rk4", classical Runge-Kutta as near to its stability limit as it goes, or "rkc",
Runge-Kutta-Chebyshev of order two (Sommeijer, Shampine and Verwer 1997), whose steps grow away from T, in those panels
of time in which it costs less than rk4, as it does not where the drift is strong for the grid; "rkc+" is that
extrapolated from N and 2 N steps. A drift that depends on time is tabulated at q Chebyshev times of nine panels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from nonquadratic_problems import REMAINING, Array, Case

ROWS = 20  # of a finite-difference matrix that are multiplied at once


class Unstable(Exception):
    pass


@dataclass(frozen=True)
class Setting:
    space: str = "cheb"
    nodes: int = 32  # on the longest axis
    stretch: float = 0.0
    scheme: str = "rk4"
    steps: int = 20  # at least; more where stability asks for them
    safety: float = 1.0
    q: int = 5
    loss: float = 1e-5  # of accuracy that the map of Chebyshev nodes may cost
    margin: float = 0.3  # of the box

    def __str__(self) -> str:
        told = f"{self.space} {self.nodes}" + (f" sinh {self.stretch:g}" if self.stretch else "")
        return f"{told}, {self.scheme} {self.steps}, q {self.q}, margin {self.margin:g}"


def weights_of(x: Array, z: float, order: int) -> Array:
    """Of the derivative of this order at z by values at x: Taylor's conditions, scaled."""
    h = np.abs(x - z).max()
    powers = np.vander((x - z) / h, len(x), increasing=True).T
    right = np.zeros(len(x))
    right[order] = (1.0, 1.0, 2.0)[order] / h**order
    return np.linalg.solve(powers, right)


class Line:
    """Nodes of one axis and the derivatives there."""

    def __init__(
        self, kind: str, low: float, high: float, n: int, stretch: float, loss: float, reflecting: bool
    ) -> None:
        self.kind, self.n, self.low, self.high, self.stretch = kind, n, low, high, stretch
        self.half, self.middle, a = (high - low) / 2, (high + low) / 2, float(1 / np.cosh(np.log(loss) / n))
        if kind == "cheb":
            xi = -np.cos(np.pi * np.arange(n) / (n - 1))
            w = (-1.0) ** np.arange(n)
            w[[0, -1]] *= 0.5
            gaps = xi[:, None] - xi + np.eye(n)
            D = w / w[:, None] / gaps
            np.fill_diagonal(D, 0.0)
            np.fill_diagonal(D, -D.sum(1))
            eta, slope = np.arcsin(a * xi) / np.arcsin(a), a / np.arcsin(a) / np.sqrt(1 - (a * xi) ** 2)
            self.xi, self.w, self.a = xi, w, a
            D = D / slope[:, None]
            D2 = D @ D
        else:
            eta = np.linspace(-1.0, 1.0, n)
            D, D2 = np.zeros((n, n)), np.zeros((n, n))
            for i in range(n):
                if reflecting:  # even beyond the wall
                    j = np.arange(i - 3, i + 4)
                    to = np.where(j < 0, -j, np.where(j >= n, 2 * (n - 1) - j, j))
                    np.add.at(D[i], to, weights_of(eta[0] + 2 / (n - 1) * j, eta[i], 1))
                    np.add.at(D2[i], to, weights_of(eta[0] + 2 / (n - 1) * j, eta[i], 2))
                    continue
                s = min(max(i - 3, 0), n - 7)
                D[i, s : s + 7] = weights_of(eta[s : s + 7], eta[i], 1)
                m = 7 if 3 <= i < n - 3 else 8
                s = min(max(i - 3, 0), n - m)
                D2[i, s : s + m] = weights_of(eta[s : s + m], eta[i], 2)
            if not reflecting:
                D2[0], D2[-1] = D2[1], D2[-2]
        self.eta = eta
        if stretch:  # y = sinh(b eta)/sinh(b)
            b = stretch
            y, g = np.sinh(b * eta) / np.sinh(b), b * np.cosh(b * eta) / np.sinh(b)
            D2 = D2 / g[:, None] ** 2 - (b**2 * y / g**3)[:, None] * D
            D = D / g[:, None]
        else:
            y = eta
        self.x, self.D1, self.D2 = self.middle + self.half * y, D / self.half, D2 / self.half**2
        self.both = np.concatenate([self.D1, self.D2])
        self.blocks = []  # of rows, over the nodes that they see
        for first in range(0, n, ROWS) if kind == "fd" and n > 50 else ():
            last = min(first + ROWS, n)
            seen = slice(max(0, min(first - 3, n - 9)), min(n, max(last + 3, 9)))
            rows = slice(first, last)
            pair = [np.ascontiguousarray(D[rows, seen]) for D in (self.D1, self.D2)]
            self.blocks.append((rows, seen, *pair))
        v = np.cos(np.pi * np.arange(n)) * (1 + 0.1 * np.sin(np.arange(n)))
        for _ in range(12):
            v = self.D2 @ v
            size = np.linalg.norm(v)
            v /= size
        self.radius2 = 1.05 * size
        self.radius1 = float(np.sqrt(self.radius2) * (0.7 if kind == "fd" else 0.9))

    def derivatives(self, u: Array, axis: int, out: Array) -> None:
        """Of first and of second order, into out (2, ..)."""
        n, last = self.n, axis == u.ndim - 1
        if axis == 0:
            flat, target = u.reshape(n, -1), out.reshape(2, n, -1)
        if not self.blocks:
            if axis == 0:
                np.matmul(self.both, flat, out=out.reshape(2 * n, -1))
            elif last:
                np.matmul(u.reshape(-1, n), self.D1.T, out=out[0].reshape(-1, n))
                np.matmul(u.reshape(-1, n), self.D2.T, out=out[1].reshape(-1, n))
            else:
                np.matmul(self.D1, u, out=out[0])
                np.matmul(self.D2, u, out=out[1])
            return
        for rows, seen, D1, D2 in self.blocks:
            for to, D in enumerate((D1, D2)):
                if axis == 0:
                    np.matmul(D, flat[seen], out=target[to, rows])
                elif last:
                    out[to][..., rows] = u[..., seen] @ D.T
                else:
                    np.matmul(D, u[:, seen], out=out[to][:, rows])

    def first(self, u: Array, axis: int) -> Array:
        out = np.empty((2, *u.shape))
        self.derivatives(u, axis, out)
        return out[0]

    def interpolation(self, z: Array) -> Array:
        """(m, n); points beyond the faces are taken at the faces."""
        y = (np.clip(z, self.low, self.high) - self.middle) / self.half
        eta = np.arcsinh(y * np.sinh(self.stretch)) / self.stretch if self.stretch else y
        out = np.zeros((len(z), self.n))
        if self.kind == "cheb":
            gaps = np.sin(np.arcsin(self.a) * eta)[:, None] / self.a - self.xi
            hit = np.abs(gaps) < 1e-14
            gaps[hit] = 1.0
            out = self.w / gaps
            out /= out.sum(1, keepdims=True)
            on = hit.any(1)
            out[on] = hit[on]
            return out
        h = 2 / (self.n - 1)
        first = np.clip(np.floor((eta + 1) / h).astype(int) - 3, 0, self.n - 8)
        place = (eta + 1) / h - first
        for j in range(8):
            value = np.ones(len(z))
            for i in range(8):
                if i != j:
                    value *= (place - i) / (j - i)
            out[np.arange(len(z)), first + j] = value
        return out


class Explicit:
    """One run; `states` are v at the times at which it will be judged."""

    def __init__(self, case: Case, problem: Any, low: Array, high: Array, setting: Setting, cap: float) -> None:
        self.start, self.cap = time.process_time(), cap
        self.problem, self.setting, self.steady, d = problem, setting, case.steady, case.dim
        reflecting = problem.domain is not None
        longest = (high - low).max()
        counts = np.maximum(np.rint(setting.nodes * (high - low) / longest), 10).astype(int)
        self.lines = [
            Line(setting.space, a, b, int(n), setting.stretch, setting.loss, reflecting)
            for a, b, n in zip(low.tolist(), high.tolist(), counts, strict=True)
        ]
        self.x = np.stack(np.meshgrid(*[line.x for line in self.lines], indexing="ij"), -1)
        self.alpha, self.constant = problem.temperature, problem.constant_diffusion
        Lambda = problem.Lambda(0.0, self.x)
        self.noise = np.moveaxis(Lambda, (-2, -1), (0, 1)) if self.constant is None else self.constant
        self.mixed = d == 2 and bool(np.any(self.noise[0, 1]))
        shape = self.x.shape[:-1]
        self.pairs = [np.empty((2, *shape)) for _ in range(d if self.mixed else 1)]
        self.work = [np.empty(shape) for _ in range(6)]
        self.n_calls = self.n_rhs = self.n_steps = 0
        extrapolated = setting.scheme == "rkc+"
        with np.errstate(all="ignore"):
            self.states = self.march(setting.steps)
        if extrapolated:
            with np.errstate(all="ignore"):
                finer = self.march(setting.steps, 2)
            self.states = [(4 * b - a) / 3 for a, b in zip(self.states, finer, strict=True)]
        self.seconds = time.process_time() - self.start

    def table(self, s: float) -> Array:
        """b, and r last if there is one, (m, *shape)."""
        t = self.problem.horizon - s
        self.n_calls += 1
        rows = [np.moveaxis(np.asarray(self.problem.drift(t, self.x)), -1, 0)]
        if self.problem.running_reward is not None:
            rows.append(np.asarray(self.problem.running_reward(t, self.x))[None])
        return np.ascontiguousarray(np.concatenate(rows))

    def rhs(self, fields: Array, u: Array, out: Array) -> Array:
        self.n_rhs += 1
        d, c = u.ndim, 0.5 / self.alpha
        push = self.work[0]
        for k, line in enumerate(self.lines):
            pair = self.pairs[k] if self.mixed else self.pairs[0]
            line.derivatives(u, k, pair)
            g, curvature = pair
            np.multiply(g, c * self.noise[k, k], out=push)
            push += fields[k]
            curvature_weight = 0.5 * self.noise[k, k]
            if k == 0:
                np.multiply(push, g, out=out)
            else:
                push *= g
                out += push
            curvature *= curvature_weight
            out += curvature
        if self.mixed:
            cross = self.lines[1].first(self.pairs[0][0], 1)
            cross += (2 * c) * self.pairs[0][0] * self.pairs[1][0]
            cross *= self.noise[0, 1]
            out += cross
        if len(fields) > d:
            out += fields[d]
        return out

    def rates(self, fields: Array, u: Array) -> tuple[float, float]:
        """Bounds of the diffusive and the advective part of the spectrum."""
        real, sideways = 0.0, 0.0
        for k, line in enumerate(self.lines):
            g = line.first(u, k) * (self.noise[k, k] / self.alpha)
            real = real + 0.5 * float(np.max(self.noise[k, k])) * line.radius2
            sideways = sideways + np.abs(fields[k] + g) * line.radius1
        if self.mixed:
            real *= 1.2
        return real, float(np.max(sideways))

    def march(self, steps: int, times: int = 1) -> list[Array]:
        T, rkc, q = self.problem.horizon, self.setting.scheme != "rk4", self.setting.q
        safety = self.setting.safety
        ends = np.array(REMAINING) * T
        clock = np.log1p(np.concatenate([[0.0], ends]) / (0.05 * T)) / np.log(21.0)
        u = np.asarray(self.problem.terminal_reward(self.x), float)
        self.largest = 100.0 * (1.0 + np.abs(u).max())
        fixed = self.table(0.0) if self.steady else None
        states, s0 = [], 0.0
        for k, s1 in enumerate(ends):
            if fixed is None:
                unit = 0.5 - 0.5 * np.cos(np.pi * np.arange(q) / (q - 1))
                w = (-1.0) ** np.arange(q)
                w[[0, -1]] *= 0.5
                tables = np.stack([self.table(s0 + (s1 - s0) * c) for c in unit])
                flat, shape = tables.reshape(q, -1), tables.shape[1:]

                def fields(s: float, s0=s0, s1=s1, unit=unit, w=w, flat=flat, shape=shape) -> Array:  # type: ignore[no-untyped-def]
                    gaps = (s - s0) / (s1 - s0) - unit
                    at = np.flatnonzero(np.abs(gaps) < 1e-13)
                    row = np.eye(q)[at[0]] if len(at) else (w / gaps) / (w / gaps).sum()
                    return np.dot(row, flat).reshape(shape)

                edges = (tables[0], tables[-1])
            else:

                def fields(s: float) -> Array:
                    return fixed

                edges = (fixed,)
            real, sideways = np.max([self.rates(edge, u) for edge in edges], axis=0)
            n = max(1, int(np.ceil(steps * (clock[k + 1] - clock[k]) - 1e-9)))
            by_rk4 = max(n, int(np.ceil((s1 - s0) * np.hypot(real, sideways) / (2.6 * safety))))
            n = max(n, int(np.ceil((s1 - s0) * sideways**2 / (0.7 * real * safety))))
            stages = max(2, int(np.ceil(np.sqrt(1 + (s1 - s0) / n * real / (0.653 * safety)))))
            by_rkc = rkc and n * stages < 4 * by_rk4
            n = times * (n if by_rkc else by_rk4)
            h = (s1 - s0) / n
            self.n_steps += n
            if by_rkc:
                scheme = chebyshev_scheme(stages)
                for i in range(n):
                    u = self.rkc_step(fields, u, s0 + i * h, h, scheme)
                    self.check(u)
            else:
                B0, u = fields(s0), u.copy()
                _, k1, k2, at, total, _ = self.work
                for i in range(n):
                    s = s0 + i * h
                    Bm, B1 = fields(s + h / 2), fields(min(s + h, s1))
                    self.rhs(B0, u, k1)
                    np.multiply(k1, h / 6, out=total)
                    for B, c, weight in ((Bm, h / 2, h / 3), (Bm, h / 2, h / 3), (B1, h, h / 6)):
                        np.multiply(k1, c, out=at)
                        at += u
                        self.rhs(B, at, k1)
                        np.multiply(k1, weight, out=k2)
                        total += k2
                    u += total
                    B0 = B1
                    if i % 4 == 0:
                        self.check(u)
            self.check(u)
            states.append(u)
            s0 = float(s1)
        return states

    def rkc_step(self, fields: Any, u: Array, s: float, h: float, scheme: Any) -> Array:
        first, rows = scheme
        _, F0, F, before, now, part = self.work
        self.rhs(fields(s), u, F0)
        np.copyto(before, u)
        np.multiply(F0, first[0] * h, out=now)
        now += u
        c = first[1]
        for mu, nu, mu_t, gamma_t, c_next in rows:
            self.rhs(fields(s + c * h), now, F)
            before *= nu  # becomes the next
            for what, weight in ((F, mu_t * h), (F0, gamma_t * h), (u, 1 - mu - nu), (now, mu)):
                np.multiply(what, weight, out=part)
                before += part
            before, now, c = now, before, c_next
        return now.copy()

    def check(self, u: Array) -> None:
        if not np.abs(u).max() < self.largest:
            raise Unstable
        if time.process_time() - self.start > self.cap:
            raise TimeoutError

    def policy(self, k: int, t: float, x: Array) -> Array:
        u, g = self.states[k], []
        rows = [line.interpolation(x[:, j]) for j, line in enumerate(self.lines)]
        for j, line in enumerate(self.lines):
            values = line.first(u, j)
            part = []
            for i in range(0, len(x), 512):
                piece = np.tensordot(rows[0][i : i + 512], values, 1)
                for row in rows[1:-1]:
                    piece = np.matmul(row[i : i + 512, None], piece)[:, 0]
                part.append((piece * rows[-1][i : i + 512]).sum(-1))
            g.append(np.concatenate(part))
        return np.asarray(self.problem.policy_from_gradient(t, x, np.stack(g, -1)))


def chebyshev_scheme(s: int) -> tuple[tuple[float, float], list[tuple[float, ...]]]:
    """mu~_1 and c_1; mu_j, nu_j, mu~_j, gamma~_j, c_j for j = 2 .. s."""
    w0 = 1 + 2 / 13 / s**2
    T, D, C = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, s + 1):
        T.append(2 * w0 * T[-1] - T[-2])
        D.append(2 * w0 * D[-1] - D[-2] + 2 * T[-2])
        C.append(2 * w0 * C[-1] - C[-2] + 4 * D[-2])
    w1 = D[s] / C[s]
    b = [C[j] / D[j] ** 2 if j >= 2 else 0.0 for j in range(s + 1)]
    b[0] = b[1] = b[2]
    a = [1 - b[j] * T[j] for j in range(s + 1)]
    c = [w1 * C[j] / D[j] if j >= 2 else 0.0 for j in range(s + 1)]
    c[1] = c[2] / (4 * w0)
    rows = []
    for j in range(2, s + 1):
        mu_t = 2 * b[j] * w1 / b[j - 1]
        rows.append((2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], mu_t, -a[j - 1] * mu_t, c[j]))
    return (b[1] * w1, c[1]), rows
