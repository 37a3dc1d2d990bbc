"""A contact sheet of the atlas, drawn from its grid files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fem_hjb.atlas.entries import Record
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import OutputError

_COLUMNS, _SIZE = 4, 2.1  # pictures in a row, and inches of each
_ARROWS = 11
_FAINT = 0.1  # of the largest control: what is smaller has shorter arrows
_SEEN = 1e-4  # of the peak of a stationary density: where it is drawn
_REACH = 0.02  # quantiles of value and control that colours cover


def sheet(folder: str | Path, records: Sequence[Record]) -> Figure:
    """One small picture for each entry that has a grid file; of entries for ever, whose grids have no times, too.

    OutputError if there is none, or a file is missing.
    """
    drawn = [record for record in records if isinstance(record.get("files"), list) and record["files"]]
    if not drawn:
        raise OutputError(f"there is nothing to draw: no entry in {folder} has a grid file")
    rows = math.ceil(len(drawn) / _COLUMNS)
    figure = Figure(figsize=(_SIZE * _COLUMNS, 1.12 * _SIZE * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, _COLUMNS, squeeze=False)).ravel()
    for ax, record in zip(axes, drawn, strict=False):
        _draw(ax, Path(folder) / record["files"][0], record["name"])
    for ax in axes[len(drawn) :]:
        ax.set_axis_off()
    return figure


def _draw(ax: Axes, file: Path, name: str) -> None:
    if not file.is_file():
        raise OutputError(f"there is no file {file}, which atlas.jsonl names; make the entry again")
    with np.load(file, allow_pickle=False) as grids:
        arrays = {key: grids[key] for key in grids.files if key != "meta"}
    ax.set_title(name, fontsize=9)
    ax.tick_params(labelsize=7, length=2, pad=1)
    if "x2" in arrays:
        _plane(ax, arrays)
    elif "t" in arrays:
        _line(ax, arrays)
    else:
        _settled(ax, arrays)


def _line(ax: Axes, arrays: dict[str, FloatArray]) -> None:
    """The control over time and state."""
    control = arrays["control"][..., 0]
    limit = float(np.nanquantile(np.abs(control[:-1]), 1 - _REACH)) or 1.0
    ax.pcolormesh(
        arrays["t"], arrays["x1"], control.T, cmap="RdBu_r", vmin=-limit, vmax=limit, shading="gouraud", rasterized=True
    )


def _settled(ax: Axes, arrays: dict[str, FloatArray]) -> None:
    """The stationary density under the control, and the control over the state, where this law is."""
    x, density, control = arrays["x1"], arrays["p_optimal"], arrays["control"][..., 0]
    seen = density > _SEEN * density.max()
    ax.fill_between(x, density, color="0.85", linewidth=0)
    ax.set(xlim=(x[seen][0], x[seen][-1]), ylim=(0, None), yticks=[])
    other = ax.twinx()
    other.plot(x[seen], control[seen], color="C3", linewidth=1.2)
    other.axhline(0.0, color="0.6", linewidth=0.5)
    other.tick_params(labelsize=7, length=2, pad=1)


def _plane(ax: Axes, arrays: dict[str, FloatArray]) -> None:
    """The value late on the way, when diffusion models know where data are, and the direction of the control.

    Of a grid without times where the law is.
    """
    if "t" in arrays:
        late = len(arrays["t"]) // 2  # times are denser towards T
        arrays |= {key: arrays[key][late] for key in ("value", "control")}
    else:
        arrays = _where_the_law_is(arrays)
    value, control = arrays["value"], arrays["control"]
    if "x3" in arrays:
        middle = value.shape[2] // 2
        value, control = value[:, :, middle], control[:, :, middle, :2]
    low, high = np.nanquantile(value, [10 * _REACH, 1.0])
    smooth: Literal["auto", "gouraud"] = "auto" if "t" in arrays else "gouraud"  # what is left of a grid is coarse
    ax.pcolormesh(
        arrays["x1"], arrays["x2"], value.T, cmap="cividis", vmin=low, vmax=high, shading=smooth, rasterized=True
    )
    pick = [np.linspace(0, len(arrays[key]) - 1, _ARROWS + 2).round().astype(int)[1:-1] for key in ("x1", "x2")]
    arrows: Any = control[np.ix_(*pick)]
    length = np.maximum(np.linalg.norm(arrows, axis=-1, keepdims=True), 1e-300)
    shown = np.tanh(length / (_FAINT * float(np.nanquantile(length, 1 - _REACH)) + 1e-300))  # noise has no direction
    u, v = np.moveaxis(arrows / length * shown, -1, 0)
    x, y = np.meshgrid(arrays["x1"][pick[0]], arrays["x2"][pick[1]], indexing="ij")
    ax.quiver(x, y, u, v, color="white", pivot="mid", scale=_ARROWS * 1.6, width=0.006, angles="uv")


def _where_the_law_is(arrays: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """The part of a grid without times that holds the stationary law."""
    seen, found = arrays["p_optimal"] > _SEEN * np.nanmax(arrays["p_optimal"]), dict(arrays)
    for axis in range(seen.ndim):
        rows = np.flatnonzero(seen.any(axis=tuple(k for k in range(seen.ndim) if k != axis)))
        kept = slice(int(rows[0]), int(rows[-1]) + 1)
        found[f"x{axis + 1}"] = found[f"x{axis + 1}"][kept]
        for name in ("value", "control"):
            found[name] = found[name][(slice(None),) * axis + (kept,)]
    return found
