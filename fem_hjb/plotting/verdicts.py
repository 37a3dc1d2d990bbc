"""The checks of a solution as a picture: each figure against its limit."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from fem_hjb.plotting.pictures import some_axes
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.errors import ComparisonError

_FARTHEST = 1e4  # times or parts of the limit: figures beyond are drawn there
_GOOD, _BAD = "#0072B2", "#D55E00"


def checks(of: Solution | ProductSolution, *, ax: Axes | None = None) -> list[Artist]:
    """Draw the checks of a solution: figures relative to their limits, dots where they passed, crosses where not.

    The line is the limit. Figures below 1e-4 or above 1e4 limits are drawn there, as is what is not a number, above.
    Numbers beside them are the figures and limits themselves.

    Raises ComparisonError for what is no solution, and for one that carries no checks, as those on meshes.
    """
    if not isinstance(of, Solution | ProductSolution):
        raise ComparisonError(f"checks are those of a solution, got {type(of).__name__}")
    if not of.checks:
        raise ComparisonError("this solution carries no checks; solve(problem, rtol=...) returns one that does")
    ax = some_axes(ax)
    artists: list[Artist] = []
    right = 10.0
    for row, check in enumerate(of.checks):
        ratio = check.figure / check.limit if check.limit > 0 else np.inf if check.figure > check.limit else 0.0
        place = float(np.clip(ratio if np.isfinite(ratio) else np.inf, 1 / _FARTHEST, _FARTHEST))
        marker, color = ("o", _GOOD) if check.passed else ("X", _BAD)
        artists += ax.plot([place], [row], marker, color=color, markersize=8.0)
        right = max(right, 3.0 * place)
        told = f"{check.figure:.2g} of {check.limit:.2g}"
        artists.append(
            ax.annotate(told, (place, row), (0.0, 9.0), textcoords="offset points", ha="center", fontsize="small")
        )
    artists.append(ax.axvline(1.0, color="0.4", linewidth=1.0))
    ax.set_xscale("log")
    ax.set(xlim=(0.2 / _FARTHEST, right), ylim=(len(of.checks) - 0.4, -0.7), xlabel="figure / limit")
    ax.set_yticks(range(len(of.checks)), [check.name for check in of.checks])
    passed = sum(check.passed for check in of.checks)
    ax.set_title(f"{passed} of {len(of.checks)} checks passed", fontsize="medium")
    return artists
