"""Measures on space-time, population or empirical: weighted points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import array_source
from fem_hjb.problems.laws import Law, MarginalLaw, PointMass
from fem_hjb.problems.problem import ControlProblem, check_marginal, require_problem
from fem_hjb.solutions.density import DensityLaw
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import (
    FloatArray,
    Rng,
    frozen_array,
    gauss_order,
    one_of,
    positive_integer,
    real_array,
    require,
    spawn_generators,
)
from fem_hjb.support.errors import MeasureError
from fem_hjb.support.objects import Plain

_MASS_TOLERANCE = 0.05


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Measure(Plain):
    """A law of the process, as weighted points: int_0^T E[g_t(X_t)] dt is sum_i weights[i] g(t[i], x[i]).

    kind : "law" (quadrature under a known density) or "empirical" (trajectories).
    t (m,), x (m, d), weights (m,) : space-time points; the weights sum to about the horizon.
    initial_x (n, d), initial_weights (n,) : the law of X_0;  terminal_x, terminal_weights : that of X_T.
    next_t (m,) : the end of the time step each point stands for in left-point sums; None for exact quadrature.
    next_x (m, d) : each point's successor on its trajectory (empirical), or None.
    score (m, d) : grad log p_t at the points (law), or None.
    paths : the number of trajectories, 0 for a law.
    """

    kind: str
    t: FloatArray
    x: FloatArray
    weights: FloatArray
    initial_x: FloatArray
    initial_weights: FloatArray
    terminal_x: FloatArray
    terminal_weights: FloatArray
    next_t: FloatArray | None = None
    next_x: FloatArray | None = None
    score: FloatArray | None = None
    paths: int = 0

    def __post_init__(self) -> None:
        one_of(self.kind, "Measure: kind", ("law", "empirical"), MeasureError)
        put = object.__setattr__
        shape = real_array(self.x, "Measure: x", MeasureError).shape
        if len(shape) != 2:
            raise MeasureError(f"Measure: x must hold points in rows, shape (m, d), got shape {shape}")
        d = shape[1]
        for prefix in ("", "initial_", "terminal_"):
            name = f"{prefix}x"
            given = real_array(getattr(self, name), f"Measure: {name}", MeasureError)
            points = frozen_array(given, f"Measure: {name}", (*given.shape[:1], d), MeasureError)
            put(self, name, points)
            weights = frozen_array(
                getattr(self, f"{prefix}weights"), f"Measure: {prefix}weights", points.shape[:1], MeasureError
            )
            if not (weights >= 0).all() or not weights.sum() > 0:
                raise MeasureError(
                    f"Measure: {prefix}weights must be non-negative and not all zero, got {int((weights < 0).sum())} "
                    f"negative among {weights.size} with sum {weights.sum():g}"
                )
            put(self, f"{prefix}weights", weights)
        put(self, "t", frozen_array(self.t, "Measure: t", shape[:1], MeasureError))
        for name, expected in (("next_t", shape[:1]), ("next_x", shape), ("score", shape)):
            given = getattr(self, name)
            if given is not None:
                put(self, name, frozen_array(given, f"Measure: {name}", expected, MeasureError))
        if self.next_t is not None and not (self.next_t > self.t).all():
            raise MeasureError("Measure: next_t must be later than t at every point")
        if self.next_x is not None and self.next_t is None:
            raise MeasureError("Measure: next_x without next_t; give the times of the successors too")

    @property
    def dim(self) -> int:
        """d."""
        return int(self.x.shape[1])


def empirical_measure(problem: ControlProblem, paths: Paths, *, n: int | None = None) -> Measure:
    """The measure of n trajectories by left-point sums: points (t_k, X_k), k < K, with weights (t_{k+1} - t_k)/n.

    The points come path by path. n : if these paths are some of more, of how many; the measures of all parts add up.

    Raises MeasureError if the paths are of another dimension or do not end at the problem's horizon.
    """
    require_problem(problem, "empirical_measure")
    array_source(paths).check(problem)
    m, d = paths.n, paths.dim
    total = m if n is None else positive_integer(n, "n", MeasureError)
    times = np.append(paths.t[:-1], problem.horizon)
    uniform = np.full(m, 1.0 / total)
    return Measure(
        kind="empirical",
        t=np.tile(times[:-1], m),
        x=paths.x[:, :-1].reshape(-1, d),
        weights=np.tile(np.diff(times) / total, m),
        initial_x=paths.x[:, 0],
        initial_weights=uniform,
        terminal_x=paths.x[:, -1],
        terminal_weights=uniform,
        next_t=np.tile(times[1:], m),
        next_x=paths.x[:, 1:].reshape(-1, d),
        paths=total,
    )


def check_space(problem: ControlProblem, space: Space, asker: str) -> None:
    """Raise unless this is a problem and a Space of its dimension; the message says who asked."""
    require_problem(problem, asker)
    require(space, Space, asker, MeasureError)
    if space.dim != problem.dim:
        raise MeasureError(f"the space is of dimension {space.dim}, the problem has dim={problem.dim}")


def law_measure(
    problem: ControlProblem,
    space: Space,
    *,
    degree: int | None = None,
    times: ArrayLike | None = None,
    marginal: MarginalLaw | None = None,
) -> Measure:
    """The law of the process itself: a quadrature rule on the cells of `space`, weighted by the density p_t.

    degree : of polynomials integrated exactly on a cell; default 2 p + 6 for elements of degree p, which leaves room
        for the density.
    times : None for Gauss points in every time cell; or the times (K+1,) of observed paths, from 0 to the horizon, for
        the left-point sums that `empirical_measure` uses, so that the two measures differ by the law alone.

    What the law holds outside the space's domain is left out, not renormalised; nor is what absorbing faces took.

    marginal : t -> the law of X_t; None for the problem's own. Where that is None too, compute one:
        marginal=fokker_planck.solve(problem, rtol=1e-6).marginal.

    Raises MeasureError if no law is known, or if at some time the rule sees the law's mass wrongly by more than 5 per
    cent: the domain is too small, or the law too narrow for the cells.
    """
    check_space(problem, space, "law_measure")
    if abs(space.horizon - problem.horizon) > 1e-12 * problem.horizon:
        raise MeasureError(f"the space ends at t={space.horizon:g}, but the problem's horizon is {problem.horizon:g}")
    marginal = problem.marginal if marginal is None else marginal
    if marginal is None:
        raise MeasureError(
            f"{problem.name!r} knows no law of X_t; compute one, law_measure(..., "
            "marginal=fokker_planck.solve(problem).marginal)"
        )
    check_marginal(marginal, problem, MeasureError)
    most = 2 * space.spatial.degree + 6 if degree is None else gauss_order(degree, "degree", MeasureError)
    rule = space.spatial.quadrature(most)
    points = rule.x.reshape(-1, space.dim)
    volumes = np.broadcast_to(rule.weights * rule.det, rule.x.shape[:2]).ravel()
    if times is None:
        t, dt = (part.ravel() for part in space.time.quadrature(2 * space.time.degree + 4))
    else:
        t, dt = _left_points(times, problem.horizon)
    slices = [_under(marginal(float(s)), points, volumes, float(s)) for s in t]
    sizes = [len(x) for x, _, _ in slices]
    first = _under(marginal(0.0), points, volumes, 0.0)
    last = _under(marginal(problem.horizon), points, volumes, problem.horizon)
    return Measure(
        kind="law",
        t=np.repeat(t, sizes),
        x=np.concatenate([x for x, _, _ in slices]),
        weights=np.concatenate([h * w for h, (_, w, _) in zip(dt, slices, strict=True)]),
        initial_x=first[0],
        initial_weights=first[1],
        terminal_x=last[0],
        terminal_weights=last[1],
        next_t=None if times is None else np.repeat(t + dt, sizes),
        score=None if any(s is None for _, _, s in slices) else np.concatenate([s for _, _, s in slices]),
    )


def sampled_law_measure(problem: ControlProblem, space: Space, *, n: int, rng: Rng) -> Measure:
    """The law of the process at the Gauss points of the time cells of `space`, by n independent draws of X_t at each.

    What `law_measure` is where there are no cells or too many coordinates for a quadrature rule: in any dimension, with
    an error of order n^{-1/2}. Raises MeasureError if the problem knows no law (`problem.marginal` is None).
    """
    check_space(problem, space, "sampled_law_measure")
    n = positive_integer(n, "n", MeasureError)
    if problem.marginal is None:
        raise MeasureError(f"{problem.name!r} knows no marginal law to draw from: give ControlProblem(marginal=...)")
    t, dt = (part.ravel() for part in space.time.quadrature(2 * space.time.degree + 4))
    laws = [problem.marginal(float(s)) for s in (*t, 0.0, problem.horizon)]
    draws = [law.sample(n, g) for law, g in zip(laws, spawn_generators(rng, len(laws)), strict=True)]
    known = not any(isinstance(law, PointMass) for law in laws[:-2])
    uniform = np.full(n, 1.0 / n)
    return Measure(
        kind="law",
        t=np.repeat(t, n),
        x=np.concatenate(draws[:-2]),
        weights=np.repeat(dt / n, n),
        initial_x=draws[-2],
        initial_weights=uniform,
        terminal_x=draws[-1],
        terminal_weights=uniform,
        score=np.concatenate([law.score(x) for law, x in zip(laws, draws[:-2], strict=False)]) if known else None,
    )


def _left_points(times: ArrayLike, horizon: float) -> tuple[FloatArray, FloatArray]:
    t = real_array(times, "times", MeasureError)
    if t.ndim != 1 or t.size < 2 or not (np.diff(t) > 0).all() or abs(t[0]) + abs(t[-1] - horizon) > 1e-9 * horizon:
        raise MeasureError(
            f"times must increase strictly from 0 to the horizon {horizon:g}, as Paths.t does, got shape {t.shape}"
            + (f" from {t[0]:g} to {t[-1]:g}" if t.ndim == 1 and t.size else "")
        )
    return t[:-1], np.diff(t)


def _under(law: Law, x: FloatArray, volumes: FloatArray, t: float) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Points, weights and score of a law under a quadrature rule."""
    if isinstance(law, PointMass):
        return *law.quadrature(1), None
    weights = volumes * np.exp(law.logpdf(x))
    mass = law.mass if isinstance(law, DensityLaw) else 1.0
    seen = float(weights.sum())
    if abs(seen - mass) > _MASS_TOLERANCE * mass:
        raise MeasureError(
            f"the quadrature rule sees a mass of {seen:.3g} instead of {mass:.3g} for the law of X_t at t={t:.4g}: "
            "enlarge the space's box if the law reaches beyond it; take more cells or a larger degree= if the law is "
            "narrower than a cell"
        )
    return x, weights, law.score(x)
