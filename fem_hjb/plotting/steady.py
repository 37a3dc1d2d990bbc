"""Pictures of results without a horizon: exits, expectations until them, ground states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fem_hjb.plotting.pictures import STYLES, coloured_map
from fem_hjb.problems.box import Box
from fem_hjb.solutions.ground import GroundState
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution
from fem_hjb.support.checks import FloatArray

Result = ExitSolution | ExitExpectation | GroundState

_CURVE, _MAP, _ARROWS = 401, 121, 15  # points of a curve, of a map along each axis, and arrows
_RARE = 1e-3  # of the largest density: a ground state is drawn where there is more
_NOTHING = 1e-9  # temperatures
_LONG = 3.0  # sides of a map that differ by less are drawn to scale
_PLAIN = {**STYLES[0], "marker": None}


def picture_of(found: Result, name: str) -> Figure:
    """A panel of the value, called so, with the policy, and one of the density of a ground state.

    In one dimension curves, policies in a panel of their own; in two maps with the policy as arrows, in three the slice
    through the middle of the third axis.
    """
    lower, upper = _region(found)
    panels: list[tuple[str, Any]] = [(name, found.value)]
    steered = not isinstance(found, ExitExpectation) and not _flat(found)
    if _flat(found):
        panels = [(name, lambda x, outside: 0.0 * found.value(x, outside=outside))]
    elif len(lower) == 1 and not isinstance(found, ExitExpectation):
        panels.append((r"policy $\pi(x)$", lambda x, outside: found.policy(x, outside=outside)[..., 0]))
    if isinstance(found, GroundState):
        panels.append(("density under the policy", found.density))
    figure = Figure(figsize=(4.9 * len(panels), 4.1), layout="constrained")
    for k, (ax, (title, of)) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
        if len(lower) == 1:
            x = np.linspace(lower[0], upper[0], _CURVE)
            ax.plot(x, of(x[:, None], outside="nan"), **_PLAIN)
            ax.set(xlabel="$x$", title=title)
            ax.margins(x=0)
            continue
        grid, points = _plane(lower, upper, _MAP)
        label = title + (", $x_3$ in the middle" if len(lower) == 3 else "")
        least = 0.0 if isinstance(found, GroundState) and k == len(panels) - 1 else None
        coloured_map(ax, grid, of(points, outside="nan"), label, vmin=least)
        if k == 0 and steered and not isinstance(found, ExitExpectation):
            _arrows(ax, found.policy, lower, upper)
        ax.set(xlabel="$x_1$", ylabel="$x_2$")
        if 1.0 / _LONG < (upper - lower)[0] / (upper - lower)[1] < _LONG:
            ax.set_aspect("equal")
    return figure


def _flat(found: Result) -> bool:
    """Whether nothing is to be gained by steering, so that what is left of a ground state's w is rounding."""
    if not isinstance(found, GroundState):
        return False
    return bool(np.abs(found.function.coefficients).max() < _NOTHING * found.problem.temperature)


def _region(found: Result) -> tuple[FloatArray, FloatArray]:
    """Where the process lives, as far as grids go; of a ground state where its law has its mass."""
    lower, upper = found.function.basis.box.bounds
    if isinstance(found, GroundState):
        basis = found.density_function.basis
        values = found.density_function.coefficients
        likely = basis.nodes[values > _RARE * values.max()]
        return likely.min(axis=0), likely.max(axis=0)
    if isinstance(found.problem.domain, Box):
        low, high = found.problem.domain.bounds
        return np.maximum(lower, low), np.minimum(upper, high)
    return lower, upper


def _plane(lower: FloatArray, upper: FloatArray, n: int) -> tuple[tuple[FloatArray, FloatArray], FloatArray]:
    """Coordinates of the first two axes, and points (n * n, d) in the middle of a third."""
    first, second = (np.linspace(lower[k], upper[k], n) for k in (0, 1))
    points = np.tile(0.5 * (lower + upper), (n * n, 1))
    points[:, 0], points[:, 1] = np.repeat(first, n), np.tile(second, n)
    return (first, second), points


def _arrows(ax: Axes, policy: Callable[..., FloatArray], lower: FloatArray, upper: FloatArray) -> None:
    inset = 0.03 * (upper - lower)
    (first, second), points = _plane(lower + inset, upper - inset, _ARROWS)
    arrows = policy(points, outside="nan")[:, :2]
    lengths = np.linalg.norm(arrows, axis=-1)
    longest = 2.0 * np.nanquantile(lengths, 0.9) if np.isfinite(lengths).any() else np.inf  # longer ones are cut
    arrows = arrows * np.minimum(1.0, longest / np.maximum(lengths, 1e-300))[:, None]
    u, v = (np.ma.masked_invalid(arrows[:, k].reshape(_ARROWS, _ARROWS).T) for k in (0, 1))
    look: dict[str, Any] = {"color": "white", "edgecolor": "black", "linewidth": 0.5, "width": 0.006}
    ax.quiver(first, second, u, v, angles="xy", **look)
