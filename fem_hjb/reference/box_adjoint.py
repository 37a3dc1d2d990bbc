r"""The adjoint of the linear form on one panel of time: what carries densities forward (`fokker_planck_panels`)."""

from typing import final

import numpy as np

from fem_hjb.problems.box import BoolArray
from fem_hjb.reference.box_panel import Grid, Operators
from fem_hjb.spaces.axes import AxisMatrix, apply_axis, in_blocks
from fem_hjb.support.checks import FloatArray


@final
class Adjoint:
    """S* and N* of the linear form, L* = W^{-1} L' W with W the weights of the nodes: sum w (L u) q = sum w u (L* q).

    held : (2, d), the faces on which q is 0.
    separable : the matrices of S*, one for each axis.
    """

    def __init__(self, operators: Operators, held: BoolArray) -> None:
        self.operators = operators
        grid, varying = operators.grid, operators.constant is None
        self._held = [(axis, -side) for side, axis in np.argwhere(held).tolist()]
        weights = [line.weights for line in grid.lines]
        self.D: list[AxisMatrix] = [
            in_blocks(_adjoint(line.derivative, w), grid.dim) for line, w in zip(grid.lines, weights, strict=True)
        ]
        self.second: list[AxisMatrix] = [
            in_blocks(_adjoint(inner[:, None] * line.laplacian, w), grid.dim)
            for inner, line, w in zip(operators.inner, grid.lines, weights, strict=True)
            if varying
        ]
        self.separable = [_adjoint(S, w) for S, w in zip(operators.separable, weights, strict=True)]
        for axis, end in self._held:
            self.separable[axis][end] = self.separable[axis][:, end] = 0.0
        self.axes: list[AxisMatrix] = [in_blocks(S, grid.dim) for S in self.separable]
        self._left = operators.left()

    @property
    def grid(self) -> Grid:
        return self.operators.grid

    @property
    def split(self) -> bool:
        """Whether S* is not all there is."""
        Lambda = self.operators.constant
        mixed = self.grid.dim > 1 and (Lambda is None or bool(np.triu(Lambda, 1).any()))
        return any(self._left) or mixed

    def remainder(self, s: float, q: FloatArray) -> FloatArray:
        """N* q at the time to go s."""
        of, fields = self.operators, self.operators.table.at(s)
        d = of.grid.dim
        result = np.asarray(fields[d] * q) if self._left[d] else np.zeros(q.shape)
        for k in range(d):
            moved = fields[k] * q if self._left[k] else None
            for m in range(k + 1, d):
                if (factor := of.mixed_factor(fields, k, m)) is not None:
                    part = apply_axis(self.D[m], factor * q, m)
                    moved = part if moved is None else moved + part
            if moved is not None:
                result += apply_axis(self.D[k], moved, k)
            if self.second:
                result += apply_axis(self.second[k], 0.5 * of.diffusion_left(fields, k) * q, k)
        for axis, end in self._held:
            result[(slice(None),) * axis + (end,)] = 0.0
        return result


def _adjoint(matrix: FloatArray, weights: FloatArray) -> FloatArray:
    return np.asarray(matrix.T * weights / weights[:, None])
