"""Paths under the policy of a run: where the optimally controlled process goes, and whether the box holds it."""

from dataclasses import dataclass
from typing import final

import numpy as np

from fem_hjb.paths.simulate import sample_at
from fem_hjb.paths.steering import Policy
from fem_hjb.paths.stiffness import substeps_of
from fem_hjb.reference.box_panel import Equation
from fem_hjb.reference.box_run import Run
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

_PATHS, _FEWEST = {1: 1024, 2: 1024, 3: 512}, 128
_STEPS = 32
_MANY = 8  # substeps, above which fewer paths are made
_FINER = (1, 4, 16)  # times as many steps as the drift alone asks for
_HELPED = 0.5  # shorter steps do not keep paths in a box that loses more than this share of what it lost before
_EDGE = 1e-9  # of the width: how near a face is still inside


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Steered:
    """Draws x (k, n, d) of X_t at times (k,) under the policy of a run, and which paths were ever outside its box (n,).

    Up to the layer in which gradients are not resolved, if there is one. Outside the policy is that of the nearest
    point of the box.
    """

    times: FloatArray
    x: FloatArray
    outside: FloatArray

    @property
    def lost(self) -> float:
        """The fraction of paths that left the box."""
        return float(self.outside.mean())

    def nearest(self, t: float) -> FloatArray:
        """The draws (n, d) at the time next to t."""
        return np.asarray(self.x[int(np.abs(self.times - t).argmin())])


def steered(run: Run, seed: int) -> Steered | None:
    """Paths under the policy of a run; None where they explode."""
    problem, (lower, upper) = run.equation.problem, run.equation.box.bounds
    margin = _EDGE * (upper - lower)

    def policy(t: float, x: FloatArray) -> FloatArray:
        inner = np.clip(x, lower + margin, upper - margin)
        gradient = _left(run, problem.horizon - t, inner)[1] + run.equation.gauge.guess_gradient(t, inner)
        return problem.policy_from_gradient(t, x, np.nan_to_num(gradient, copy=False))

    count = substeps_of(problem, _STEPS, steered=True) or 1
    found: Steered | None = None
    for finer in _FINER:  # steps too long for drift and policy may explode, or throw paths out of the box
        before = found
        try:
            found = _followed(run, policy, count * finer, seed)
        except ConvergenceError:
            continue
        if not found.lost or (before is not None and found.lost > _HELPED * before.lost):
            break
    return found


def _followed(run: Run, policy: Policy, substeps: int, seed: int) -> Steered:
    problem, (lower, upper) = run.equation.problem, run.equation.box.bounds
    rng = np.random.default_rng([seed, 1])
    count = max(_FEWEST, _PATHS[problem.dim] * _MANY // max(substeps, _MANY))
    paths = sample_at(problem, 0.0, n=count, steps=_STEPS, rng=rng, policy=policy, substeps=substeps)
    for panel in run.panels:
        panel.grid.forget()
    known = paths.t <= problem.horizon - run.layer  # what a policy that is not right there does is no loss of the box
    x, (below, above) = np.moveaxis(paths.x, 1, 0)[known], run.equation.truncated
    outside = ((x < lower) & below) | ((x > upper) & above)
    return Steered(times=paths.t[known], x=x, outside=outside.any(axis=(0, 2)))


def evaluate(run: Run, s: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """v (n,) and grad v (n, d) at points and a time to go; nan outside the box and where there is no logarithm."""
    gauge, t = run.equation.gauge, run.equation.problem.horizon - s
    w, gradient = _left(run, s, x)
    return gauge.guess(t, x) + w, gauge.guess_gradient(t, x) + gradient


def _left(run: Run, s: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """v - v0 and its gradient."""
    panel = next(panel for panel in run.panels if s <= panel.ends[-1] * (1 + 1e-12) or panel is run.panels[-1])
    basis = panel.grid.basis
    cells, xi = basis.locate(x)
    values, slopes = basis.at(panel.at(s).reshape(-1), np.maximum(cells, 0), xi, 1)
    values[cells < 0] = np.nan
    return logarithms(run.equation, values, slopes)


def logarithms(equation: Equation, u: FloatArray, slopes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """v - v0 and its gradient from u and its gradient (..., d): the same in the value form, and where u is wanted."""
    if not equation.logarithmic:
        return u, slopes
    alpha, positive = equation.problem.temperature, np.where(u > 0, u, np.nan)
    return alpha * np.log(positive), alpha * slopes / positive[..., None]
