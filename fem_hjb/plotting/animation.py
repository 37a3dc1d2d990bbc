"""A solution over time as a moving picture: a .gif, or an .mp4 where ffmpeg is installed."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.figure import Figure

from fem_hjb.plotting.pictures import (
    limits_of,
    plane_points,
    policy_at,
    problem_of,
    region_of,
    require_judged,
    solution,
    value_at,
)
from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.support.archives import FilePath
from fem_hjb.support.checks import at_most, one_of
from fem_hjb.support.errors import ComparisonError, MissingPackageError, OutputError, ProblemError
from fem_hjb.support.files import as_path, atomic_file
from fem_hjb.support.progress import Progress, checked_progress, unheard

_MOST_FRAMES = 1000
_CURVE, _PLANE = 201, 61  # points per axis, in one dimension and in more, at which the range of what is drawn is taken
_FASTEST = 100
_LINE = {"color": "#0072B2", "linewidth": 2.0}
_INNER = {
    "value": (0.0, 1.0),
    "policy": (0.01, 0.99),
}  # quantiles that are drawn: policies may be steep at a few points


def animate(
    of: ValueFunction,
    path: FilePath,
    *,
    quantity: str = "value",
    frames: int = 40,
    fps: int = 10,
    problem: ControlProblem | None = None,
    box: Box | None = None,
    limits: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a value function, or its policy, from t = 0 to T as a moving picture: frames as `plot.solution` draws them.

    Parameters
    ----------
    of : a Solution, a closed form, or anything with value(t, x) and gradient(t, x).
    path : ends in .gif, or in .mp4, which needs ffmpeg. Written whole or not at all.
    quantity : "value" or "policy".
    frames, fps : how many, at equidistant times, and how many in a second.
    problem, box : as in `plot.solution`.
    limits : of the vertical axis, or of the colours, for all frames; by default the range of all of them, for policies
        without the last hundredth at each end.
    progress : called with the fraction of the frames done.

    Raises
    ------
    OutputError : another suffix, no such folder.
    MissingPackageError : .mp4, and no ffmpeg.
    ComparisonError, ProblemError, DomainError : as `plot.solution`.
    """
    require_judged(of, "what is drawn")
    problem = problem_of(of, problem)
    quantity = one_of(quantity, "quantity", ("value", "policy"), ProblemError)
    count = at_most(frames, _MOST_FRAMES, "frames", ComparisonError)
    rate = at_most(fps, _FASTEST, "fps", ComparisonError)
    tell = checked_progress(progress) or unheard
    target, region = _target(path), region_of(problem, box)
    times = np.linspace(0.0, problem.horizon, count)
    chosen = _limits(of, problem, quantity, region, times.tolist()) if limits is None else limits_of(limits)
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"frames{target.suffix}"  # writers go by the suffix
        writer: AbstractMovieWriter = PillowWriter(fps=rate) if target.suffix == ".gif" else FFMpegWriter(fps=rate)
        writer.setup(figure, str(made), 100)
        try:
            for k, t in enumerate(times.tolist()):
                figure.clear()
                ax = figure.subplots()
                solution(of, t, quantity=quantity, problem=problem, box=region, limits=chosen, ax=ax, style=_LINE)
                ax.set_title(f"$t={t:.3g}$", loc="left")
                writer.grab_frame()
                tell((k + 1) / count)
        except BaseException:
            with contextlib.suppress(Exception):
                writer.finish()  # so that no ffmpeg waits for more
            raise
        writer.finish()
        with atomic_file(target) as part:
            shutil.copyfile(made, part)


def _target(path: FilePath) -> Path:
    target = as_path(path)
    if target.suffix not in (".gif", ".mp4"):
        raise OutputError(f"animate writes files that end in .gif or .mp4, got {target.name!r}")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}; create it first")
    if target.suffix == ".mp4" and not FFMpegWriter.isAvailable():
        raise MissingPackageError("an .mp4 is written by ffmpeg, which is not installed; install it, or write a .gif")
    return target


def _limits(
    of: ValueFunction, problem: ControlProblem, quantity: str, region: Box, times: list[float]
) -> tuple[float, float]:
    """The range of what all frames show, and a little more."""
    x = np.linspace(*region.bounds, _CURVE) if problem.dim == 1 else plane_points(region, problem, _PLANE)[2]
    rows = []
    for t in times:
        if quantity == "value":
            rows.append(value_at(of, t, x))
        elif problem.dim == 1:
            rows.append(policy_at(of, problem, t, x)[:, 0])
        else:
            rows.append(np.linalg.norm(policy_at(of, problem, t, x), axis=-1))
    found = np.stack(rows)
    if not np.isfinite(found).any():
        raise ComparisonError(f"there is nothing to draw: the {quantity} is not a number anywhere in {region}")
    low, high = np.nanquantile(np.where(np.isfinite(found), found, np.nan), _INNER[quantity])
    room = 0.03 * (high - low) or 1.0
    return float(low - room), float(high + room)
