"""Where a policy steers and where paths go, over densities: functions that draw on `ax` and return the artists."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from fem_hjb.paths.simulate import Paths
from fem_hjb.plotting.pictures import (
    label_axes,
    one_time,
    plane_points,
    policy_at,
    problem_of,
    region_of,
    require_judged,
    slice_note,
    some_axes,
)
from fem_hjb.problems.blocks import coordinates
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Law, MarginalLaw, PointMass
from fem_hjb.problems.problem import ControlProblem, ValueFunction, check_marginal, require_problem
from fem_hjb.reference.fokker_planck import DensitySolution
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, one_of, positive_integer, require
from fem_hjb.support.errors import ComparisonError, ProblemError

AnyDensity = Law | MarginalLaw | DensitySolution

_MAP_POINTS = 141
_TIMES = 121
_SIDE = {"quiver": 17, "stream": 41}  # arrows per axis
_RARE = 9.0  # below the maximum of log p: no arrows where the process hardly ever is
_INK: dict[str, Any] = {"color": "#0072B2"}
_GREYS: dict[str, Any] = {"shading": "gouraud", "cmap": "Greys", "vmin": 0.0, "vmax": 1.3, "rasterized": True}


def policy_field(
    of: ValueFunction,
    t: float = 0.0,
    *,
    kind: str = "quiver",
    problem: ControlProblem | None = None,
    density: AnyDensity | None = None,
    box: Box | None = None,
    ax: Axes | None = None,
) -> list[Artist]:
    """Draw a policy at one time as arrows, or streamlines, over the density of the process.

    On the plane of x_1 and x_2; in more dimensions through the mean of the initial law. Arrows are to scale among each
    other, and left out where the density is below e^{-9} of its maximum; points without a policy stay blank.

    Parameters
    ----------
    of : a Solution, a closed form, or anything with value(t, x) and gradient(t, x).
    t : the time, in [0, T].
    kind : "quiver", arrows, or "stream", streamlines, whose width grows with the size of the policy.
    problem : needed when `of` has no attribute `problem`.
    density : what lies below: t -> law of X_t, a law, or what `fokker_planck.solve` returns; by default
        `problem.marginal`, the law without control. A law without a density is not drawn.
    box : the region to draw, by default `window(problem)`.

    Raises
    ------
    ProblemError : an unknown kind, one dimension (there `solution(quantity="policy")` draws a curve), another density.
    ComparisonError : no policy anywhere in the box, or none where the density is not 0.
    DomainError : t outside [0, T].
    """
    require_judged(of, "what is drawn")
    problem = problem_of(of, problem)
    kind = one_of(kind, "kind", tuple(_SIDE), ProblemError)
    if problem.dim == 1:
        raise ProblemError('a policy in one dimension is no field; draw it by plot.solution(..., quantity="policy")')
    when, law_at = one_time(t, problem), _density_of(density, problem)
    region, ax = region_of(problem, box), some_axes(ax)
    law = None if law_at is None else law_at(when)
    artists = _shade(ax, problem, region, law)
    first, second, points = plane_points(region, problem, _SIDE[kind])
    pi = policy_at(of, problem, when, points)[:, :2]
    if law is not None and not isinstance(law, PointMass):
        logs = _logpdf(law, points)
        pi = np.where((logs > logs.max() - _RARE)[:, None], pi, np.nan)
    if not np.isfinite(pi).any():
        raise ComparisonError(
            f"there is nothing to draw: no arrow in {region} has a policy and a density that is not 0"
        )
    u, v = (np.ma.masked_invalid(pi[:, k].reshape(first.size, second.size).T) for k in (0, 1))
    label_axes(ax, problem)
    ax.set_title(f"$t={when:g}${slice_note(problem)}", fontsize="medium")
    ax.set(xlim=first[[0, -1]], ylim=second[[0, -1]])
    if kind == "quiver":
        return [*artists, ax.quiver(first, second, u, v, angles="xy", width=0.005, **_INK)]
    size = np.ma.sqrt(u**2 + v**2)
    drawn = ax.streamplot(first, second, u, v, linewidth=0.4 + 1.6 * (size / (size.max() or 1.0)).filled(0.0), **_INK)
    return [*artists, drawn.lines, drawn.arrows]


def paths(
    of: Paths,
    problem: ControlProblem,
    *,
    density: AnyDensity | None = None,
    box: Box | None = None,
    most: int = 100,
    ax: Axes | None = None,
) -> list[Artist]:
    """Draw sample paths, for instance of `sample_paths(problem, policy=...)`, over the density of the process.

    In one dimension x over t, and below it p_t(x) relative to its maximum at each time. In more dimensions the first
    two coordinates, with rings where paths start and dots where they end, and below them their density at T.

    Parameters
    ----------
    of : the paths, of the problem's dimension.
    density : as in `policy_field`; by default `problem.marginal`, the law without control.
    box : the region to draw, by default `window(problem)`.
    most : how many paths are drawn, the first ones.

    Raises
    ------
    ProblemError : no paths, no problem, or one of another dimension.
    """
    require(of, Paths, "paths", ProblemError, "; sample_paths(problem, ...) returns them")
    require_problem(problem, "paths")
    if of.dim != problem.dim:
        raise ProblemError(f"the paths have dimension {of.dim}, the problem has dim={problem.dim}")
    law_at = _density_of(density, problem)
    x = of.x[: positive_integer(most, "most", ProblemError)]
    region, ax = region_of(problem, box), some_axes(ax)
    look: dict[str, Any] = {**_INK, "linewidth": 0.5, "alpha": 0.4}
    if problem.dim == 1:
        artists = [] if law_at is None else _shade_over_time(ax, problem, region, law_at)
        artists += ax.plot(of.t, x[..., 0].T, **look)
        ax.set(xlabel="$t$", ylabel="$x$", xlim=of.t[[0, -1]], ylim=np.ravel(region.bounds))
        return artists
    law = None if law_at is None else law_at(problem.horizon)
    if law is not None and problem.dim > 2:
        law = coordinates(law, (0, 1))
    artists = _shade(ax, problem, region, law)
    artists += ax.plot(x[..., 0].T, x[..., 1].T, **look)
    artists += ax.plot(*x[:, 0, :2].T, "o", markersize=3.0, fillstyle="none", linestyle="none", **_INK)
    artists += ax.plot(*x[:, -1, :2].T, "o", markersize=3.0, linestyle="none", color="#D55E00")
    lower, upper = region.bounds
    label_axes(ax, problem)
    ax.set(xlim=(lower[0], upper[0]), ylim=(lower[1], upper[1]))
    return artists


def _density_of(given: AnyDensity | None, problem: ControlProblem) -> MarginalLaw | None:
    """t -> law of X_t, from what was given, or of the problem."""
    if given is None:
        return problem.marginal
    if isinstance(given, DensitySolution):
        given = given.law
    if isinstance(given, Law):
        law = given
        found: Callable[[float], Law] = lambda t: law  # noqa: E731
    else:
        found = given
    try:
        check_marginal(found, problem, ProblemError)
    except ProblemError as cause:
        raise ProblemError(
            f"density= must be t -> law of X_t, a law, or what fokker_planck.solve returns, for this problem: {cause}"
        ) from cause
    return found


def _logpdf(law: Law, x: FloatArray) -> FloatArray:
    logs = call("density: logpdf(x)", law.logpdf, (x,), ProblemError)
    if logs.shape != x.shape[:-1]:
        raise ProblemError(f"density: logpdf(x) must have shape {x.shape[:-1]}, got {logs.shape}")
    return logs


def _shade(ax: Axes, problem: ControlProblem, region: Box, law: Law | None) -> list[Artist]:
    """The density on the plane, darker where it is higher; nothing for a law that has none."""
    if law is None or isinstance(law, PointMass):
        return []
    first, second, points = plane_points(region, problem, _MAP_POINTS)
    logs = _logpdf(law, points[:, : law.dim])
    if np.isneginf(logs.max()):  # nothing there
        return []
    p = np.exp(logs - logs.max()).reshape(first.size, second.size).T
    return [ax.pcolormesh(first, second, p, **_GREYS)]


def _shade_over_time(ax: Axes, problem: ControlProblem, region: Box, law_at: MarginalLaw) -> list[Artist]:
    """The density over time and space, each time relative to its own maximum."""
    lower, upper = region.bounds
    x, times = np.linspace(lower, upper, _MAP_POINTS), np.linspace(0.0, problem.horizon, _TIMES)
    p = np.zeros((x.shape[0], times.size))
    for k, t in enumerate(times.tolist()):
        law = law_at(t)
        if not isinstance(law, PointMass):
            logs = _logpdf(law, x)
            p[:, k] = np.exp(logs - max(logs.max(), -1e300))  # -infinity where the law is elsewhere
    return [ax.pcolormesh(times, x[:, 0], p, **_GREYS)]
