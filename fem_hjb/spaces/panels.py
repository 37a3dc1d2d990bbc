"""Classes of functions that change with time: panels of [0, T], each with a basis in time and one in space."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.spaces.space import Derivative, Space, broadcast_points
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import SpaceError
from fem_hjb.support.objects import Plain


@final
@dataclass(frozen=True, eq=False, repr=False)
class PanelSpace(Plain):
    """Functions on [0, T] x box which on each panel [t_k, t_{k+1}] are those of a `Space` of its own.

    panels : in increasing time, the first from 0, each from where the one before it ends; on one box, unless the
        functions are densities, which are 0 outside that of their panel.

    Coefficients are one array (n_dofs,): those of the panels, raveled, one after the other. What functions do at the
    times where panels meet is not tied; there the later panel counts.
    """

    panels: tuple[Space, ...]
    dim: int = field(init=False)
    n_dofs: int = field(init=False)
    _starts: FloatArray = field(init=False)
    _offsets: Any = field(init=False)

    def __post_init__(self) -> None:
        panels = tuple(self.panels)
        ends = [panel.time.bounds for panel in panels]
        if not panels or ends[0][0] != 0.0 or any(a[1] != b[0] for a, b in pairwise(ends)):
            raise SpaceError(f"panels must follow one another from time 0, got {ends}")
        put = object.__setattr__
        put(self, "panels", panels)
        put(self, "dim", panels[0].dim)
        put(self, "_offsets", np.concatenate([[0], np.cumsum([panel.n_dofs for panel in panels])]))
        put(self, "n_dofs", int(self._offsets[-1]))
        put(self, "_starts", np.array([start for start, _ in ends]))

    @property
    def horizon(self) -> float:
        """T."""
        return self.panels[-1].horizon

    @property
    def box(self) -> Box:
        """Where the functions live: what has the boxes of all panels in it."""
        lower, upper = np.array([panel.spatial.box.bounds for panel in self.panels]).swapaxes(0, 1)
        return Box(lower.min(axis=0), upper.max(axis=0))

    @property
    def spatial(self) -> Any:
        """The basis in space of the last panel, which ends at T."""
        return self.panels[-1].spatial

    @property
    def excluded_mass(self) -> float | None:
        """None: truncation is measured, not read off samples."""
        return None

    @property
    def shape(self) -> tuple[int]:
        """(n_dofs,)."""
        return (self.n_dofs,)

    def coefficient_grid(self, coefficients: ArrayLike) -> FloatArray:
        """Coefficients as an array (n_dofs,)."""
        array = np.asarray(coefficients, dtype=np.float64)
        if array.shape != self.shape:
            raise SpaceError(f"coefficients must have shape {self.shape}, got {array.shape}")
        return array

    def piece(self, coefficients: FloatArray, k: int) -> FloatArray:
        """The coefficients of panel k, of its shape."""
        return coefficients[self._offsets[k] : self._offsets[k + 1]].reshape(self.panels[k].shape)

    def lowest(self, coefficients: ArrayLike) -> float:
        """The lowest value at the nodes of space and time."""
        grid = self.coefficient_grid(coefficients)
        return min(panel.lowest(self.piece(grid, k)) for k, panel in enumerate(self.panels))

    def at(self, t: ArrayLike) -> Any:
        """The panels (...) of times t (...)."""
        return np.clip(np.searchsorted(self._starts, np.asarray(t), side="right") - 1, 0, None)

    def broadcast(self, t: ArrayLike, x: ArrayLike) -> tuple[FloatArray, FloatArray, tuple[int, ...]]:
        """As that of a `Space`."""
        return broadcast_points(t, x, self.horizon, self.dim)

    def evaluate(
        self,
        coefficients: ArrayLike,
        t: ArrayLike,
        x: ArrayLike,
        derivative: Derivative = "value",
        *,
        outside: str = "error",
    ) -> FloatArray:
        """f(t, x), d_t f or grad f of the function with these coefficients; see `Space.evaluate`."""
        return self.derivatives(coefficients, t, x, (derivative,), outside=outside)[0]

    def derivatives(
        self,
        coefficients: ArrayLike,
        t: ArrayLike,
        x: ArrayLike,
        names: Sequence[Derivative],
        *,
        outside: str = "error",
    ) -> list[FloatArray]:
        """Several derivatives at the same points; see `Space.derivatives`."""
        grid = self.coefficient_grid(coefficients)
        times, points, shape = self.broadcast(t, x)
        if times.ndim == 0:
            k = max(int(np.searchsorted(self._starts, times, side="right")) - 1, 0)
            found = self._at_once(k, self.piece(grid, k), times, points.reshape(-1, self.dim), names)
            if found is not None and outside in ("error", "nan"):
                return [part.reshape(*shape, *part.shape[1:]) for part in found]
            return self.panels[k].derivatives(self.piece(grid, k), times, points, names, outside=outside)
        flat, when = points.reshape(-1, self.dim), np.broadcast_to(times, shape).ravel()
        which = np.broadcast_to(self.at(times), shape).ravel()
        results: list[FloatArray] | None = None
        for k in np.unique(which).tolist():
            here = np.flatnonzero(which == k)
            parts = self.panels[k].derivatives(self.piece(grid, k), when[here], flat[here], names, outside=outside)
            if results is None:
                results = [np.empty((len(flat), *part.shape[1:])) for part in parts]
            for result, part in zip(results, parts, strict=True):
                result[here] = part
        if results is None:  # no points at all
            return self.panels[0].derivatives(self.piece(grid, 0), times, points, names, outside=outside)
        return [result.reshape(*shape, *result.shape[1:]) for result in results]

    def _at_once(
        self, k: int, piece: FloatArray, t: FloatArray, x: FloatArray, names: Sequence[Derivative]
    ) -> list[FloatArray] | None:
        """Values and gradients at one time and points (n, d) that a panel has all; None where it has not, or few."""
        panel = self.panels[k]
        basis, order = panel.spatial, int("gradient" in names)
        few, many = basis.n_dofs // basis.local_size, panel.chunk_size(basis.table_width(order))
        if not few < len(x) <= many or not {"value", "gradient"}.issuperset(names):
            return None
        cells, xi = basis.locate(x)
        if cells.min() < 0:
            return None
        here, tau = panel.time.locate(t[None])
        rows = panel.time.tabulate(here, tau, 0)[0, 0] @ piece[panel.time.cell_dofs[here[0]]]
        found = basis.at(rows, cells, xi, order)
        return [found[int(name == "gradient")] for name in names]
