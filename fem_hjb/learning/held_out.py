r"""The residual of the equation along trajectories that a solution was not learned from: nothing is simulated.

Along a path of the uncontrolled process, with rho = (r - c_r)/alpha, G_t = exp(int_0^t rho ds) and any function f,

    Q = int_0^T G_t (d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + rho f)(X_t) dt + G_T (e^{(y - c_y)/alpha} - f_T)(X_T)
      = G_T e^{(y - c_y)/alpha} - f_0(X_0) - int_0^T G_t <grad f, dM>,            dM = dX - b dt,

is the residual of the equation and of its end, summed up along the path, and vanishes for the solution f*. By Ito's
isometry the mean of its square is the squared error of f in the energy norm, exactly:

    E Q^2 = E |f_0 - f*_0|^2 + int_0^T E[ G_t^2 |grad (f - f*)|_Lambda^2 ] dt,

told relative to that norm of f. It is an error under the law of the data, which knows little of where a policy goes.
The first line is summed up by trapezoids, without noise. It needs second derivatives, C1 classes: by the second line
the noise of the steps, of order sqrt(dt), is larger than the error. Paths that leave the box count up to there.

What a solution says beyond its samples is extrapolated: outside its box, and in cells that none of them was in. The
share of the time of paths is told, and that under the optimally controlled law P*, dP*/dP ~ G_T e^{(y - c_y)/alpha}.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from fem_hjb.learning import forms
from fem_hjb.learning.estimators import Setting
from fem_hjb.learning.folds import as_source
from fem_hjb.learning.samples import Located, applied
from fem_hjb.learning.system import System
from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import PathSource
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress

RESIDUAL, EXTRAPOLATION = "residual on held-out paths", "extrapolation"
_SAMPLES = 1 << 16  # that are looked at, at most but for one chunk
_LEFT = 0.1  # the share of the time of paths that may be extrapolated
_TINY = 1e-300


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOut:
    """What trajectories tell that a solution was not learned from.

    residual : (E Q^2)^{1/2} over the energy norm of f, with one standard error of the former; nan in classes that are
        not C1.
    extrapolated, controlled : the shares of the time of paths, under their law and under P*.
    effective : how many of the `paths` stand for P*, (sum w)^2 / sum w^2.
    """

    residual: float
    extrapolated: float
    controlled: float
    effective: float
    paths: int

    def checks(self, accept: float) -> tuple[Check, ...]:
        """The figures against what is accepted."""
        told = (
            f"share of the time of {self.paths} paths, {self.extrapolated:.2g}, and weighted as rewards do (as good as"
            f" {self.effective:.0f} paths), {self.controlled:.2g}"
        )
        worse = max(self.extrapolated, self.controlled)
        found = Check(name=EXTRAPOLATION, figure=worse, limit=_LEFT, told=told)
        if math.isnan(self.residual):
            return (found,)
        told = f"relative error of f in the energy norm, under the law of {self.paths} paths"
        return (Check(name=RESIDUAL, figure=self.residual, limit=accept, told=told), found)


def held_out(solution: Solution, system: System, data: Paths | PathSource, tell: Progress) -> HeldOut:
    """What these trajectories say of a solution of this system; of the first chunks, where they are many.

    Raises ConvergenceError if fewer than two of them start in the box. tell : what it raises ends the work.
    """
    source, parts, seen = as_source(data, _SAMPLES), [], 0
    for i in range(source.chunk_count):
        tell(i / source.chunk_count)
        paths = source.chunk(i)
        parts.append(_looked_at(solution, system, paths))
        seen += paths.n * paths.steps
        if seen >= _SAMPLES:
            break
    Q, size, share, weight, begun = (np.concatenate(column) for column in zip(*parts, strict=True))
    count = int(begun.sum())
    if count < 2:
        raise ConvergenceError(f"{count} of {begun.size} held-out paths start in the box of what was learned")
    squares = Q[begun > 0] ** 2
    square = float(squares.mean()) + float(squares.std(ddof=1)) / math.sqrt(count)
    total = max(float(weight.sum()), _TINY)
    return HeldOut(
        residual=math.sqrt(square / max(float(size[begun > 0].mean()), _TINY)),
        extrapolated=float(share.mean()),
        controlled=float(weight @ share) / total,
        effective=total**2 / max(float(weight @ weight), _TINY),
        paths=begun.size,
    )


def _looked_at(solution: Solution, system: System, paths: Paths) -> tuple[FloatArray, ...]:
    """Of each path Q, the squared norm of f, the share of extrapolation, the weight of P*, whether it starts inside.

    All (n,).
    """
    problem, space, gauge = system.problem, system.space, system.gauge
    n, times = paths.n, np.append(paths.t[:-1], problem.horizon)
    t, x, h = np.tile(times, n), paths.x.reshape(-1, problem.dim), np.diff(times)
    setting = Setting(problem=problem, space=space, gauge=gauge, delta=0.0)
    rate = np.broadcast_to(setting.rate(t, x), t.shape)
    diffusion = setting.diffusion(t, x)

    def trapezoids(values: FloatArray) -> FloatArray:
        return np.asarray(0.5 * h * (values[:, 1:] + values[:, :-1]))

    log_growth = np.cumsum(trapezoids(rate.reshape(n, -1)), axis=1)
    growth = np.exp(np.concatenate([np.zeros((n, 1)), log_growth], axis=1))
    target = gauge.terminal_u(problem, paths.x[:, -1])
    at = Located.of(space, t, x)
    there = at.cells >= 0
    inside = np.logical_and.accumulate(there.reshape(n, -1), axis=1)  # up to where a path leaves the box
    f, slope = space.derivatives(solution.coefficients, t, x, ("value", "gradient"), outside="nan")
    steep = (slope * (slope[:, None] @ diffusion)[:, 0]).sum(axis=1)
    energy = np.where(inside, growth**2 * steep.reshape(n, -1), 0.0)[:, :-1] @ h
    f = f.reshape(n, -1)
    R = np.full(t.size, np.nan)
    if space.smoothness:
        operator = forms.residual(problem.b(t, x), diffusion, rate)
        R[there] = -applied(space, np.ravel(solution.coefficients), at, operator, np.flatnonzero(there))
    steps = np.where(inside[:, 1:], trapezoids(growth * R.reshape(n, -1)), 0.0)
    last = np.where(inside[:, -1], growth[:, -1] * (target - f[:, -1]), 0.0)
    beyond = np.where(there, system.visits[np.maximum(at.cells, 0)] == 0, True).reshape(n, -1)
    return (
        steps.sum(axis=1) + last,
        np.where(inside[:, 0], f[:, 0] ** 2, 0.0) + energy,
        beyond[:, :-1] @ h / problem.horizon,
        growth[:, -1] * target,
        inside[:, 0].astype(np.float64),
    )
