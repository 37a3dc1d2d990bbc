r"""The linear equation and Newton's method on the HJB equation converge to the same v; at low temperature one is left.

The same value by two routes that share no code. With noise that goes with the temperature, Lambda = 0.4 alpha, it has a
limit as alpha tends to 0:

    d_t v + b d_x v + Lambda/2 d_xx v + r + factor Lambda/(2 alpha) (d_x v)^2 = 0,   v_T = y,   factor = 1,

on [0, 1], reflected, b = sin(pi x), r = (1 + t) cos(2 pi x)/2, y = 0.5 cos(3 pi x) + 0.3 cos(pi x). All of it is even
about both faces (b odd), so that v is smooth up to them; exp(v/alpha) is no Gaussian and v no quadratic.

    linear   f = exp(v/alpha) from `solve_on_mesh`: elements of degree p, an ESDIRK method of order 4, 4 steps per cell;
    newton   v itself: elements of degree p with quadrature and matrices of their own, Radau IIA of order 5 (E. Hairer,
             G. Wanner, Solving Ordinary Differential Equations II, section IV.8), 2 steps per cell; with
             F_i(w) = int (b w_x + r + factor Lambda/(2 alpha) w_x^2) phi_i - Lambda/2 w_x phi_i,x dx and s = T - t, the
             stages W_j of a step h solve M (W_j - w) = h sum_k a_jk F(W_k), by Newton's method, all three at once.

Differences are root mean squares over [0, 1], the larger of those at t = 0 and T/2, relative to the deviation of v from
its mean. Series "refined": the two against each other, and each against `solve`, a spectral method in the value form.
Its controls: half the quadratic term, and its wrong sign, solve another equation.

Series "cooled": one mesh of P3, and ever lower temperatures. v gets kinks of width alpha, which both have to resolve. f
has exp(-range(v)/alpha) besides, where errors of its discretisation, relative to its maximum, outweigh it: log f is
lost, and its gradient before. Newton's method knows nothing of that.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure
from numpy.polynomial import Polynomial
from numpy.polynomial.legendre import leggauss
from scipy.sparse.linalg import splu

from fem_hjb.experiments.trial import Claim, Trial, conclude, fitted_slope
from fem_hjb.plotting.pictures import STYLES, ticks_at
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Uniform
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.reference.solve import solve
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress, part_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """temperatures, degrees, cells : of the series "refined", all combinations.  cooled : temperatures of the other.

    cooled_cells : of its mesh.  factors : of the quadratic term in the controls, at the first of temperatures.
    rtols : of `solve` in the two series; its own error must be far below those it measures.
    """

    temperatures: tuple[float, ...] = (0.5, 0.3, 0.15)
    degrees: tuple[int, ...] = (2, 3)
    cells: tuple[int, ...] = (32, 48, 64, 96)
    cooled: tuple[float, ...] = (0.3, 0.1, 0.05, 0.025, 0.0125)
    cooled_cells: int = 128
    factors: tuple[float, ...] = (0.5, -1.0)
    rtols: tuple[float, float] = (1e-9, 1e-6)


QUICK = Config(temperatures=(0.3,), cells=(12, 16), cooled=(0.3, 0.05), cooled_cells=24, rtols=(1e-5, 1e-3))

_COLUMNS = (
    *("series", "temperature", "degree", "cells", "factor", "difference", "linear", "newton", "linear slope"),
    *("newton slope", "f <= 0", "iterations per step"),
)
_NOISE = 0.4  # Lambda / alpha
_BAND = 0.15
_MOST = 25  # Newton iterations in a step
_X = np.linspace(0.0, 1.0, 1501)

_ROOT = np.sqrt(6.0)
_RADAU = np.array(
    [
        [(88 - 7 * _ROOT) / 360, (296 - 169 * _ROOT) / 1800, (-2 + 3 * _ROOT) / 225],
        [(296 + 169 * _ROOT) / 1800, (88 + 7 * _ROOT) / 360, (-2 - 3 * _ROOT) / 225],
        [(16 - _ROOT) / 36, (16 + _ROOT) / 36, 1 / 9],
    ]
)
_States = list[tuple[FloatArray, FloatArray]]
"""v and d_x v at the points _X, at t = 0 and T/2."""


def _drift(t: Any, x: FloatArray) -> FloatArray:
    return np.asarray(np.sin(np.pi * x))


def _running(t: Any, x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1.0 + np.asarray(t)) * np.cos(2 * np.pi * x[..., 0]))


def _terminal(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * np.cos(3 * np.pi * x[..., 0]) + 0.3 * np.cos(np.pi * x[..., 0]))


def _problem(temperature: float) -> ControlProblem:
    box = Box([0.0], [1.0])
    return ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=temperature,
        drift=_drift,
        diffusion=_NOISE * temperature,
        running_reward=_running,
        terminal_reward=_terminal,
        initial_law=Uniform(box),
        domain=box,
        name="reflected, even about its faces",
    )


@final
class _Newton:
    """The HJB equation on [0, 1] by Lagrange elements on equal cells; `states` and `iterations` per step."""

    def __init__(self, problem: ControlProblem, cells: int, degree: int, factor: float, tell: Progress) -> None:
        self._problem, self._cells, self._degree = problem, cells, degree
        points, weights = leggauss(2 * degree + 2)  # exact for w_x^2 phi; b and r are entire
        points = (points + 1) / 2
        self._phi, slopes = self._shapes(points)
        self._dphi = slopes * cells
        self._weights = weights / (2 * cells)
        self._x = ((np.arange(cells)[:, None] + points) / cells)[..., None]
        self._dofs = degree * np.arange(cells)[:, None] + np.arange(degree + 1)
        self._Lambda = _NOISE * problem.temperature
        self._pull = factor * self._Lambda / (2 * problem.temperature)
        w, one = self._weights, np.ones((cells, 1, 1))
        self._M = self._matrix(one * np.einsum("q,qi,qj->ij", w, self._phi, self._phi))
        self._D = self._matrix(-self._Lambda / 2 * one * np.einsum("q,qi,qj->ij", w, self._dphi, self._dphi))
        self._run(2 * cells, tell)

    def _shapes(self, z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The reference functions and their slopes at z (q,) in [0, 1], each (q, p + 1)."""
        nodes = np.linspace(0.0, 1.0, self._degree + 1)
        shapes = [Polynomial.fromroots(np.delete(nodes, i)) for i in range(nodes.size)]
        shapes = [shape / shape(node) for shape, node in zip(shapes, nodes, strict=True)]
        return np.stack([s(z) for s in shapes], axis=1), np.stack([s.deriv()(z) for s in shapes], axis=1)

    def _matrix(self, local: FloatArray) -> sp.csr_matrix:
        dofs, k = self._dofs, self._degree + 1
        places = np.repeat(dofs, k, axis=1).ravel(), np.tile(dofs, (1, k)).ravel()
        return sp.coo_matrix((local.ravel(), places), shape=(dofs[-1, -1] + 1,) * 2).tocsr()

    def _right(self, t: float, w: FloatArray) -> tuple[FloatArray, sp.csr_matrix]:
        """F(w) and its Jacobian."""
        slope = w[self._dofs] @ self._dphi.T
        b, r = self._problem.b(t, self._x)[..., 0], self._problem.r(t, self._x)
        sources = np.einsum("cq,q,qi->ci", b * slope + r + self._pull * slope**2, self._weights, self._phi)
        carried = np.einsum("cq,q,qi,qj->cij", b + 2 * self._pull * slope, self._weights, self._phi, self._dphi)
        return self._D @ w + np.bincount(self._dofs.ravel(), sources.ravel()), self._matrix(carried) + self._D

    def _run(self, steps: int, tell: Progress) -> None:
        w = self._problem.y(np.linspace(0.0, 1.0, self._dofs[-1, -1] + 1)[:, None])
        h, self.iterations = self._problem.horizon / steps, 0.0
        for k in range(steps):
            w, needed = self._step(self._problem.horizon - k * h, w, h)
            self.iterations += needed / steps
            tell((k + 1) / steps)
            if k + 1 == steps // 2:
                halfway = w
        self.states: _States = [self._at(w), self._at(halfway)]

    def _step(self, t: float, w: FloatArray, h: float) -> tuple[FloatArray, int]:
        stages, nodes = np.tile(w, (3, 1)), _RADAU.sum(axis=1)
        for needed in range(1, _MOST):
            found = [self._right(t - c * h, W) for c, W in zip(nodes, stages, strict=True)]
            F = np.stack([F for F, _ in found])
            residual = (self._M @ (stages - w).T).T - h * _RADAU @ F
            blocks = [[-h * a * J for a, (_, J) in zip(row, found, strict=True)] for row in _RADAU]
            jacobian = sp.block_diag([self._M] * 3) + sp.bmat(blocks)
            change = splu(jacobian.tocsc()).solve(-residual.ravel()).reshape(stages.shape)
            stages = stages + change
            if np.abs(change).max() < 1e-11 * max(1.0, float(np.abs(stages).max())):
                return stages[-1], needed
        raise ConvergenceError(
            f"Newton's method on the HJB equation did not converge at t={t - h:.3g}; take more cells"
        )

    def _at(self, w: FloatArray) -> tuple[FloatArray, FloatArray]:
        cell = np.minimum((_X * self._cells).astype(int), self._cells - 1)
        shapes, slopes = self._shapes(_X * self._cells - cell)
        local = w[self._dofs[cell]]
        return (shapes * local).sum(1), (slopes * local).sum(1) * self._cells


def _states(of: Any) -> _States:
    """Of a `Solution`, nan where f <= 0."""
    x = _X[:, None]
    times = (0.0, of.problem.horizon / 2)
    return [(of.value(t, x, nonpositive="nan"), of.gradient(t, x, nonpositive="nan")[:, 0]) for t in times]


def _distance(one: _States, other: _States, which: int = 0) -> float:
    """Of the values (which = 0) or slopes (1), relative; inf where either has none."""
    found = []
    for a, b in zip(one, other, strict=True):
        size = np.sqrt(np.mean((b[which] - (b[which].mean() if which == 0 else 0.0)) ** 2))
        found.append(np.sqrt(np.mean((a[which] - b[which]) ** 2)) / size)
    return float(np.nan_to_num(max(found), nan=np.inf)) if np.isfinite(found).all() else float("inf")


def run(config: Config, tell: Progress) -> Trial:
    """One row per temperature, element and mesh, and factor of the quadratic term."""
    started = time.perf_counter()
    cases: list[tuple[str, float, int, int, float]] = []
    for alpha in config.temperatures:
        cases += [("refined", alpha, p, n, 1.0) for p in config.degrees for n in config.cells]
    first, p = config.temperatures[0], config.degrees[0]
    cases += [("refined", first, p, n, factor) for factor in config.factors for n in config.cells]
    cases += [("cooled", alpha, 3, config.cooled_cells, 1.0) for alpha in config.cooled]
    series = [("refined", alpha, config.rtols[0]) for alpha in config.temperatures]
    series += [("cooled", alpha, config.rtols[1]) for alpha in config.cooled]
    work = np.cumsum([0.0, *(0.2 / alpha for _, alpha, _ in series), *(case[3] / 64 for case in cases)]).tolist()
    parts = [part_of(tell, low / work[-1], high / work[-1]) for low, high in pairwise(work)]
    truth = {
        (name, alpha): _states(solve(_problem(alpha), rtol=rtol, verify=False, progress=part))
        for (name, alpha, rtol), part in zip(series, parts, strict=False)
    }
    rows = [
        _row(case, _problem(case[1]), truth[case[:2]], part)
        for case, part in zip(cases, parts[len(series) :], strict=True)
    ]
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _row(
    case: tuple[str, float, int, int, float], problem: ControlProblem, truth: _States, tell: Progress
) -> tuple[Any, ...]:
    _, _, degree, cells, factor = case
    box = Box([0.0], [1.0])
    found = solve_on_mesh(problem, element=f"P{degree}", cells=cells, box=box, steps=4 * cells)
    linear, newton = _states(found), _Newton(problem, cells, degree, factor, tell)
    lost = float(np.mean([np.isnan(value) for value, _ in linear]))
    distances = [_distance(newton.states, linear), _distance(linear, truth), _distance(newton.states, truth)]
    slopes = [_distance(linear, truth, 1), _distance(newton.states, truth, 1)]
    return (*case, *distances, *slopes, lost, newton.iterations)


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    def column(name: str, *case: Any) -> FloatArray:
        where = ("series", "temperature", "degree", "factor")
        places = [_COLUMNS.index(key) for key in where]
        chosen = [row for row in rows if tuple(row[k] for k in places) == case]
        return np.array([row[_COLUMNS.index(name)] for row in chosen])

    width = 1.0 / np.array(config.cells)
    for alpha in config.temperatures:
        for p in config.degrees:
            for name in ("difference", "linear", "newton"):
                slope = fitted_slope(width, column(name, "refined", alpha, p, 1.0)).value
                text = f"temperature {alpha:g}, P{p}: order of {_NAMES[name]}"
                yield Claim(text=text, value=slope, low=p + 1 - _BAND, high=p + 1 + _BAND)
    p = config.degrees[0]
    for factor in config.factors:
        slope = fitted_slope(width, column("difference", "refined", config.temperatures[0], p, factor)).value
        text = f"{factor:g} times the quadratic term, P{p}: order of the difference"
        yield Claim(text=text, value=slope, low=p + 1 - _BAND, high=p + 1 + _BAND, control=True)
    for alpha in (config.cooled[0], config.cooled[-1]):
        linear, newton = (float(column(name, "cooled", alpha, 3, 1.0)[0]) for name in ("linear", "newton"))
        text = f"temperature {alpha:g}, one mesh: error of the linear equation over that of Newton's method"
        yield Claim(text=text, value=linear / newton, low=0.3, high=3.0, control=alpha == config.cooled[-1])


_NAMES = {"difference": "the difference", "linear": "the linear equation's error", "newton": "the error of Newton's"}


def figure(trial: Trial) -> Figure:
    """Differences against the mesh, with those of the controls, and errors against the temperature on one mesh."""
    made = Figure(figsize=(9.0, 3.4), layout="constrained")
    refined, cooled = made.subplots(1, 2)
    config = trial.config
    alphas, cells = (config.temperatures[0], config.temperatures[-1]), np.array(config.cells)
    cases = [(alpha, p, 1.0) for p in config.degrees for alpha in dict.fromkeys(alphas)]
    cases += [(config.temperatures[0], config.degrees[0], factor) for factor in config.factors]
    for k, (alpha, p, factor) in enumerate(cases):
        where = {"series": "refined", "temperature": alpha, "degree": p, "factor": factor}
        style = dict(STYLES[k % len(STYLES)]) if factor == 1.0 else {"color": "0.6", "marker": "x"}
        label = f"P{p}" if factor == 1.0 else f"{factor:g} times the quadratic term"
        refined.loglog(cells, trial.column("difference", **where), **style, label=rf"{label}, $\alpha = {alpha:g}$")
    for p in config.degrees:
        start = trial.column("difference", series="refined", temperature=alphas[0], degree=p, factor=1.0)[0]
        refined.loglog(cells, 0.5 * start * (cells / cells[0]) ** -(p + 1.0), color="0.7", linewidth=0.8)
    refined.set(xlabel="cells", ylabel="difference of the two, relative")
    ticks_at(refined.xaxis, cells)
    refined.set_ylim(top=1e5)  # room for the legend
    refined.legend(fontsize="x-small", loc="upper center", ncols=2)
    alpha = trial.column("temperature", series="cooled")
    for style, route in zip(STYLES, ("linear", "newton"), strict=False):
        error = trial.column(route, series="cooled")
        there = np.isfinite(error)
        cooled.loglog(alpha[there], error[there], **style, label=f"{route}, P3 on {config.cooled_cells} cells")
        if not there.all():
            cooled.plot(alpha[~there], np.full((~there).sum(), 1.0), "x", color=style["color"], label=r"$f \leq 0$")
    cooled.set(xlabel=r"temperature $\alpha$, noise $0.4 \alpha$", ylabel="error of $v$, relative")
    ticks_at(cooled.xaxis, alpha)
    cooled.legend(fontsize="x-small")
    return made
