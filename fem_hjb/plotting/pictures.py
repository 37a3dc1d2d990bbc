"""Pictures of solutions and comparisons: functions that draw on `ax` (a new figure if None) and return the artists."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike

from fem_hjb.paths.extent import checked_box, window
from fem_hjb.problems.box import Box
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, ValueFunction, require_problem
from fem_hjb.solutions.comparison import COLUMNS, Comparison
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, as_times, frozen_array, one_of, real_array, require
from fem_hjb.support.errors import ComparisonError, DomainError, FemHjbError, ProblemError

# Told apart by line style alone when printed in grey; the colours are Okabe and Ito's, safe for colour-blind readers.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    {"color": "#D55E00", "linestyle": ":", "marker": "^"},
    {"color": "#009E73", "linestyle": "-.", "marker": "D"},
    {"color": "#CC79A7", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
)
_LABEL = {"value": "$v_t(x)$", "policy": r"$\pi_t(x)$"}
_CURVE_POINTS = 401
_MAP_POINTS = 121
_ARROWS = 13
_ERROR_FLOOR = 1e-16  # logarithmic axes cannot show an error of exactly 0


def some_axes(ax: Axes | None) -> Axes:
    if ax is not None:
        require(ax, Axes, "ax=", ComparisonError)
        return ax
    from matplotlib import pyplot  # here only: pyplot keeps global state that writing files has no use for

    made: Axes = pyplot.subplots(layout="constrained")[1]
    return made


def ticks_at(axis: Axis, values: ArrayLike) -> None:
    """Ticks of a logarithmic axis at the values that were used, written out, and at no others."""
    require(axis, Axis, "ticks_at", ComparisonError)
    axis.set_major_locator(FixedLocator(np.unique(real_array(values, "values", ComparisonError)).tolist()))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def problem_of(of: ValueFunction, problem: ControlProblem | None) -> ControlProblem:
    found = getattr(of, "problem", None) if problem is None else problem
    if not isinstance(found, ControlProblem):
        raise ProblemError(f"{type(of).__name__} does not carry its problem; give problem=...")
    return found


def value_at(of: ValueFunction, t: float, x: FloatArray) -> FloatArray:
    if isinstance(of, Solution | ProductSolution):
        return of.value(t, x, outside="nan", nonpositive="nan")
    return call("value(t, x)", of.value, (t, x), ComparisonError, passes=FemHjbError)


def policy_at(of: ValueFunction, problem: ControlProblem, t: float, x: FloatArray) -> FloatArray:
    if isinstance(of, Solution | ProductSolution):
        return problem.policy_from_gradient(t, x, of.gradient(t, x, outside="nan", nonpositive="nan"))
    own: Callable[[float, FloatArray], ArrayLike] | None = getattr(of, "policy", None)
    if own is not None:
        return call("policy(t, x)", own, (t, x), ComparisonError, passes=FemHjbError)
    slope = call("gradient(t, x)", of.gradient, (t, x), ComparisonError, passes=FemHjbError)
    return problem.policy_from_gradient(t, x, slope)


def in_domain(problem: ControlProblem, x: FloatArray, function: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """function(x) (n, ...) at points x (n, d), nan outside a domain that is a mesh, where it is not asked."""
    if not isinstance(problem.domain, MeshDomain):
        return function(x)
    known = problem.domain.contains(x)
    found = function(x[known])
    result = np.full((len(x), *found.shape[1:]), np.nan)
    result[known] = found
    return result


def one_time(t: float, problem: ControlProblem) -> float:
    when = as_times(t, problem.horizon)
    if when.ndim:
        raise DomainError(f"t must be one time, got an array of shape {when.shape}")
    return float(when)


def require_judged(of: Any, asker: str) -> None:
    """ComparisonError, which says who asked, unless it has a value and a gradient."""
    if not isinstance(of, ValueFunction):
        raise ComparisonError(f"{asker} must have value(t, x) and gradient(t, x), got {type(of).__name__}")


def limits_of(limits: Any) -> tuple[float, float]:
    """Two numbers to draw between."""
    low, high = frozen_array(limits, "limits", (2,), ComparisonError).tolist()
    return low, high


def region_of(problem: ControlProblem, box: Box | None) -> Box:
    return window(problem) if box is None else checked_box(problem, box)


def plane_points(box: Box, problem: ControlProblem, n: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Coordinates (n,) of the first two axes, and points (n * n, d): a slice through the mean of the initial law."""
    lower, upper = box.bounds
    first, second = (np.linspace(lower[k], upper[k], n) for k in (0, 1))
    points = np.tile(np.clip(problem.initial_law.expectation, lower, upper), (n * n, 1))
    points[:, 0], points[:, 1] = np.repeat(first, n), np.tile(second, n)
    return first, second, points


def label_axes(ax: Axes, problem: ControlProblem) -> None:
    if problem.dim == 1:
        ax.set_xlabel("$x$")
        return
    ax.set_xlabel("$x_1$")
    ax.set_ylabel("$x_2$")


def slice_note(problem: ControlProblem) -> str:
    return "" if problem.dim < 3 else ", $x_3, \\ldots$ at the mean" if problem.dim > 3 else ", $x_3$ at the mean"


def _curve(ax: Axes, x: FloatArray, y: FloatArray, label: str | None, style: Mapping[str, Any]) -> list[Artist]:
    try:
        return list(ax.plot(x, y, label=label, **style))
    except (AttributeError, TypeError, ValueError) as cause:
        raise ComparisonError(f"style must be properties of a line, got {dict(style)!r} ({cause})") from cause


def coloured_map(ax: Axes, grid: tuple[FloatArray, FloatArray], z: FloatArray, label: str, **more: Any) -> list[Artist]:
    """A map of z over a grid, with its colour bar."""
    n = grid[0].size
    mesh = ax.pcolormesh(*grid, np.ma.masked_invalid(z.reshape(n, n).T), shading="gouraud", rasterized=True, **more)
    if (figure := ax.get_figure()) is not None:
        figure.colorbar(mesh, ax=ax, label=label)
    return [mesh]


def _arrows(ax: Axes, of: ValueFunction, problem: ControlProblem, t: float, box: Box) -> list[Artist]:
    """The policy on a coarse grid; single arrows far longer than the others are cut, lest they hide everything."""
    lower, upper = box.bounds
    inset = 0.04 * (upper - lower)
    first, second, points = plane_points(Box(lower + inset, upper - inset), problem, _ARROWS)
    arrows = in_domain(problem, points, lambda x: policy_at(of, problem, t, x))
    lengths = np.linalg.norm(arrows[:, :2], axis=-1)
    longest = 2.0 * np.nanquantile(lengths, 0.9) if np.isfinite(lengths).any() else np.inf
    arrows = arrows * np.minimum(1.0, longest / np.maximum(lengths, np.finfo(np.float64).tiny))[:, None]
    u, v = (np.ma.masked_invalid(arrows[:, k].reshape(_ARROWS, _ARROWS).T) for k in (0, 1))
    # white with a dark edge stays visible on every shade of the map
    look: dict[str, Any] = {"color": "white", "edgecolor": "black", "linewidth": 0.5, "width": 0.006}
    return [ax.quiver(first, second, u, v, angles="xy", **look)]


def solution(
    of: ValueFunction,
    t: float = 0.0,
    *,
    quantity: str = "value",
    problem: ControlProblem | None = None,
    box: Box | None = None,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
    label: str | None = None,
    style: Mapping[str, Any] | None = None,
) -> list[Artist]:
    """Draw a value function, or the policy that belongs to it, at one time.

    In one dimension a curve. In two a map of v, or of |pi|, with a colour bar and the policy as arrows; in more
    dimensions the same on the plane of x_1 and x_2 through the mean of the initial law. Points without a value
    (outside the mesh, or f <= 0) stay blank.

    Parameters
    ----------
    of : a Solution, a closed form, or anything with value(t, x) and gradient(t, x).
    t : the time, in [0, T].
    quantity : "value" or "policy".
    problem : needed when `of` has no attribute `problem`.
    box : the region to draw, by default `window(problem)`.
    limits : of the vertical axis, or of the colours, by default those of what is drawn.
    label, style : of the curve, in one dimension.

    Raises
    ------
    ProblemError : an unknown quantity, or no problem.
    DomainError : t outside [0, T].
    """
    require_judged(of, "what is drawn")
    problem = problem_of(of, problem)
    if label is not None and not isinstance(label, str):
        raise ComparisonError(f"label must be text or None, got {type(label).__name__}")
    if style is not None and not (isinstance(style, Mapping) and all(isinstance(key, str) for key in style)):
        raise ComparisonError(f"style must be a mapping of the properties of a line, got {style!r}")
    limits = None if limits is None else limits_of(limits)
    quantity = one_of(quantity, "quantity", ("value", "policy"), ProblemError)
    t, region, ax = one_time(t, problem), region_of(problem, box), some_axes(ax)
    label_axes(ax, problem)
    if problem.dim == 1:
        lower, upper = region.bounds
        x = np.linspace(lower, upper, _CURVE_POINTS)
        y = value_at(of, t, x) if quantity == "value" else policy_at(of, problem, t, x)[:, 0]
        ax.set_ylabel(_LABEL[quantity])
        if limits is not None:
            ax.set_ylim(*limits)
        return _curve(ax, x[:, 0], y, label, style or {**STYLES[0], "marker": None})
    first, second, points = plane_points(region, problem, _MAP_POINTS)
    if quantity == "value":
        z, name = in_domain(problem, points, lambda x: value_at(of, t, x)), _LABEL["value"]
    else:
        pi = in_domain(problem, points, lambda x: policy_at(of, problem, t, x))
        z, name = np.linalg.norm(pi, axis=-1), r"$|\pi_t(x)|$"
    low, high = (None, None) if limits is None else limits
    artists = coloured_map(ax, (first, second), z, name + slice_note(problem), vmin=low, vmax=high)
    return artists + _arrows(ax, of, problem, t, region)


def compare(comparison: Comparison, *, column: str = "value", ax: Axes | None = None) -> list[Artist]:
    """Draw a column of a comparison ("value", "value_h1", "policy", "excluded") against time, a line per candidate."""
    require(comparison, Comparison, "compare", ComparisonError)
    one_of(column, "column", COLUMNS, ComparisonError)
    names, ax = comparison.names, some_axes(ax)
    artists: list[Artist] = []
    for k, name in enumerate(names):
        y = comparison.series(name, column)
        shown = y if column == "excluded" else np.maximum(y, _ERROR_FLOOR)
        artists += _curve(ax, comparison.times, shown, name, STYLES[k % len(STYLES)])
    if column != "excluded":
        ax.set_yscale("log")
    ax.set_xlabel("$t$")
    titles = ("relative error of $v$", r"relative error of $\nabla v$", r"relative error of $\pi$", "excluded mass")
    ax.set_ylabel(dict(zip(COLUMNS, titles, strict=True))[column])
    ax.legend()
    return artists


def report(
    problem: ControlProblem,
    learned: ValueFunction,
    reference: ValueFunction,
    *,
    galerkin: ValueFunction | None = None,
    t: float = 0.0,
    box: Box | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Four panels: the learned value and policy, then learned against reference and exact, and their errors at t.

    The errors are pointwise, against problem.exact where there is one, else against the reference; axes and colours are
    cut to its range, which a learned solution may leave wildly where hardly any sample has been. In two dimensions and
    more the panels are maps (see `solution`), the third overlays level lines of v.
    """
    require_problem(problem, "report")
    require_judged(learned, "learned")
    require_judged(reference, "reference")
    if galerkin is not None:
        require_judged(galerkin, "galerkin")
    if figure is not None:
        require(figure, Figure, "report", ComparisonError)
    figure = Figure(figsize=(10.0, 7.2), layout="constrained") if figure is None else figure
    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    t = one_time(t, problem)
    region = region_of(problem, box)
    truth, truth_name = (reference, "reference") if problem.exact is None else (problem.exact, "exact")
    found = {truth_name: truth, "reference": reference, "learned": learned}
    judged = {"learned": learned, "galerkin": galerkin, "reference": reference}
    errors = {name: of for name, of in judged.items() if of is not None and of is not truth} or {"learned": learned}
    axes: list[Axes] = list(figure.subplots(2, 2).ravel())
    draw = _report_curves if problem.dim == 1 else _report_maps
    names = " vs ".join(reversed(found))
    titles = draw(axes, problem, found, errors, t, region)
    for ax, letter, title in zip(axes, "abcd", titles, strict=True):
        ax.set_title(f"({letter}) {title.format(names=names, time=f'$t={t:g}$', truth=truth_name)}", loc="left")
    return figure


# From the widest to the thinnest, so that what is drawn later leaves what is below visible.
_OVERLAY: dict[str, tuple[str, Any, float]] = {
    "first": ("0.72", "solid", 5.0),
    "reference": (STYLES[1]["color"], "dashed", 2.2),
    "learned": ("black", "solid", 0.9),
}


def _overlay(found: Mapping[str, ValueFunction]) -> list[tuple[str, tuple[str, Any, float]]]:
    """The looks of exact (where there is one), reference and learned; the truth is the broad grey line."""
    return [(name, _OVERLAY["first" if k == 0 else name]) for k, name in enumerate(found)]


def _limits(values: list[FloatArray]) -> tuple[float, float]:
    """Where these lie, and a little more."""
    low, high = min(map(np.nanmin, values)), max(map(np.nanmax, values))
    room = 0.08 * (high - low) or 1.0
    return float(low - room), float(high + room)


def _report_curves(
    axes: list[Axes],
    problem: ControlProblem,
    found: Mapping[str, ValueFunction],
    errors: Mapping[str, ValueFunction],
    t: float,
    region: Box,
) -> list[str]:
    """Panels in one dimension; returns their titles."""
    times = [(0.0, "$t=0$"), (problem.horizon / 2, "$t=T/2$"), (problem.horizon, "$t=T$")]
    lower, upper = region.bounds
    x, last = np.linspace(lower, upper, _CURVE_POINTS), axes[3]
    best = next(iter(found.values()))
    for ax, quantity, values in (
        (axes[0], "value", [value_at(best, s, x) for s, _ in times]),
        (axes[1], "policy", [policy_at(best, problem, s, x) for s, _ in times]),
    ):
        common: dict[str, Any] = {"problem": problem, "box": region, "limits": _limits(values)}
        for (s, name), style in zip(times, STYLES, strict=False):
            line = {**style, "marker": None}
            solution(found["learned"], s, quantity=quantity, ax=ax, label=name, style=line, **common)
    common["limits"] = _limits([policy_at(best, problem, t, x)])
    for name, (color, dashes, width) in _overlay(found):
        line = {"color": color, "linestyle": dashes, "linewidth": width}
        solution(found[name], t, quantity="policy", ax=axes[2], label=name, style=line, **common)
    truth = value_at(best, t, x)
    floor = np.inf
    for (name, of), style in zip(errors.items(), STYLES, strict=False):
        error = np.maximum(np.abs(value_at(of, t, x) - truth), _ERROR_FLOOR)
        last.plot(x[:, 0], error, label=name, **{**style, "marker": None})
        floor = min(floor, 1e-2 * float(np.nanmedian(error)))
    law = problem.initial_law if problem.marginal is None else problem.marginal(t)
    centre, spread = float(law.expectation[0]), 2 * float(np.sqrt(law.covariance[0, 0]))
    ends = max(centre - spread, float(lower[0])), min(centre + spread, float(upper[0]))
    if t == 0 or problem.marginal is not None:
        last.axvspan(*ends, color="0.92", zorder=0, label=r"mean $\pm$ 2 std. of $X_t$")
    last.set(xlabel="$x$", ylabel="absolute error of $v$", yscale="log")
    # where an error changes sign its logarithm falls without limit; above, room for the legend
    last.set_ylim(floor, 1e2 * last.get_ylim()[1])
    last.legend(loc="upper center", ncols=2)
    for ax in axes[:3]:
        ax.legend()
    return ["learned value", "learned policy", "policy, {time}: {names}", "error of the value, {time}, against {truth}"]


def _report_maps(
    axes: list[Axes],
    problem: ControlProblem,
    found: Mapping[str, ValueFunction],
    errors: Mapping[str, ValueFunction],
    t: float,
    region: Box,
) -> list[str]:
    """Panels in two dimensions and more; returns their titles."""
    first, second, points = plane_points(region, problem, _MAP_POINTS)
    best = next(iter(found.values()))
    value = in_domain(problem, points, lambda x: value_at(best, t, x))
    policy = np.linalg.norm(in_domain(problem, points, lambda x: policy_at(best, problem, t, x)), axis=-1)
    for ax, quantity, seen in ((axes[0], "value", value), (axes[1], "policy", policy)):
        limits = float(np.nanmin(seen)), float(np.nanmax(seen))
        solution(found["learned"], t, quantity=quantity, problem=problem, box=region, limits=limits, ax=ax)
    shape = (first.size, second.size)
    values = {}
    for name, of in found.items():
        seen = in_domain(problem, points, partial(value_at, of, t))
        values[name] = np.ma.masked_invalid(seen).reshape(shape).T
    truth = next(iter(values.values()))
    levels = np.linspace(truth.min(), truth.max(), 9)[1:-1]
    keys = []
    for name, (color, dashes, width) in _overlay(found):
        lines = axes[2].contour(
            first, second, values[name], levels=levels, colors=color, linestyles=dashes, linewidths=width
        )
        keys.append(Line2D([], [], color=color, linestyle=dashes, linewidth=width, label=name))
    axes[2].clabel(lines, fontsize="x-small", fmt="%.2g")
    axes[2].legend(handles=keys, loc="upper right")
    error = np.ma.maximum(abs(values["learned"] - truth), _ERROR_FLOOR)
    top = float(error.max())
    norm = LogNorm(vmin=min(max(1e-4 * top, _ERROR_FLOOR), top / 2), vmax=top, clip=True)
    coloured_map(axes[3], (first, second), error.T.filled(np.nan), "absolute error of $v$", norm=norm, cmap="cividis")
    for ax in axes[2:]:
        label_axes(ax, problem)
    return ["learned value, {time}", "learned policy, {time}", "$v$, {time}: {names}", "|learned $-$ {truth}|, {time}"]
