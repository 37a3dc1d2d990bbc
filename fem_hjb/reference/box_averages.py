r"""Functions that jump, as elements see them: averages against the functions of the nodes, not values at the nodes.

With phi_i the functions of a grid's nodes and w_i their lumped masses,

    g_i = (1 / w_i) int phi_i g dx

is what Galerkin's method begins with. From there on it is as accurate at positive times as if g were smooth (V. Thomee,
Galerkin Finite Element Methods for Parabolic Problems, Springer 2006, chapter 3); from values at nodes, to which all
places of a jump between two of them are the same, it is of the first order.

Integrals are sums of Gauss-Lobatto rules on boxes: cells, halved along all axes as long as the halves disagree with the
whole. These rules look at corners: no plane goes through a box unseen. In the smallest boxes the jump is sought along
lines, by bisection, so that what is left is of second order in their width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import final

import numpy as np

from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.laws import tensor_rule
from fem_hjb.reference.box_panel import Grid
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.spaces.line import unit_gauss
from fem_hjb.spaces.spectral import gll
from fem_hjb.support.checks import FloatArray, IntArray

Function = Callable[[FloatArray], FloatArray]

_AGREED = 1e-9  # of the most in a cell: what the halves of a box change of its means
_DEEPEST = {1: 10, 2: 4, 3: 2}  # halvings
_MOST = 1 << 14  # boxes that are halved at once: those that disagree most
_POINTS = (8, 7, 6, 5)  # of a rule along an axis, in boxes halved twice, three times, ..: no rule and the next agree on
# a jump next to an end, as those of 4 and 3 points would
_ACROSS, _ALONG, _SOUGHT, _HALVINGS = 4, 4, 9, 24  # points of lines, on their two parts, to seek at; bisections
_CHUNK = 1 << 13  # boxes whose integrals are taken, points at which a function is called at once


@final
@dataclass(frozen=True, eq=False)
class _Boxes:
    """Parts of cells: the cell of each (n, d), where in it they begin (n, d), their width, in cells.

    means : (n, 2^d), against the products of 1 and 2 xi_k - 1, as far as a rule tells.
    scale : (n,), the most of the function that was met in the cell.
    axis : (n,), along which the function varies most.
    """

    cells: IntArray
    begin: FloatArray
    width: float
    means: FloatArray
    scale: FloatArray
    axis: IntArray

    def __len__(self) -> int:
        return len(self.cells)

    def some(self, kept: BoolArray | slice) -> "_Boxes":
        cells, begin, means = self.cells[kept], self.begin[kept], self.means[kept]
        return _Boxes(cells, begin, self.width, means, self.scale[kept], self.axis[kept])

    def halves(self) -> "_Boxes":
        """All 2^d parts of each, which nothing is known of yet."""
        d = self.begin.shape[1]
        cells = np.repeat(self.cells, 2**d, axis=0)
        begin = (self.begin[:, None] + self.width * _corners(d)).reshape(cells.shape)
        nothing = np.zeros((len(cells), 2**d)), np.repeat(self.scale, 2**d), np.zeros(len(cells), dtype=np.int64)
        return _Boxes(cells, begin, self.width / 2, *nothing)

    def seen(self, values: FloatArray, q: int) -> "_Boxes":
        """The same, known from values (n, q^d) at the points of a rule."""
        d = self.begin.shape[1]
        on = values.reshape(len(self), *[q] * d)
        changes = [np.abs(np.diff(on, axis=k + 1)).reshape(len(self), -1).sum(axis=1) for k in range(d)]
        axis = np.argmax(changes, axis=0)
        return _Boxes(self.cells, self.begin, self.width, values @ _rule(q, d)[1], self.scale, axis)


def averages(grid: Grid, g: Function, deeper: int = 0) -> FloatArray:
    """(*shape), of a function of points (n, d) that may have jumps and kinks.

    deeper : by how many halvings more boxes end; what that changes is how right averages are.
    """
    d, q = grid.dim, grid.lines[0].degree + 1
    result = np.zeros(grid.size)
    cells = np.stack([k.ravel() for k in np.indices([line.n_cells for line in grid.lines])], axis=-1)
    nothing = np.zeros((len(cells), 2**d)), np.zeros(len(cells)), np.zeros(len(cells), dtype=np.int64)
    boxes = _Boxes(cells, np.zeros(cells.shape), 1.0, *nothing)
    values = _values(grid, boxes, _rule(q, d)[0], g)
    boxes = _Boxes(cells, boxes.begin, 1.0, nothing[0], np.abs(values).max(axis=1), nothing[2]).seen(values, q)
    for level in range(_DEEPEST[d] + deeper):
        if not len(boxes):
            break
        q = q if level == 0 else _POINTS[min(level - 1, len(_POINTS) - 1)]
        parts = boxes.halves()
        values = _values(grid, parts, _rule(q, d)[0], g)
        change = np.abs(_joined(values, q, d) - boxes.means).max(axis=1)
        again = change > _AGREED * boxes.scale
        if again.sum() > _MOST:
            again[np.argsort(change / np.maximum(boxes.scale, 1e-300))[:-_MOST]] = False
        each = np.repeat(again, 2**d)
        parts = parts.seen(values, q)
        _add(result, grid, parts.some(~each), values[~each], q)
        boxes = parts.some(each)
    for axis in range(d):
        split = boxes.some(boxes.axis == axis)
        for first in range(0, len(split), _CHUNK // 4):
            _add_split(result, grid, split.some(slice(first, first + _CHUNK // 4)), axis, g)
    return (result / reduce(np.multiply.outer, [line.weights for line in grid.lines]).ravel()).reshape(grid.shape)


def _corners(d: int) -> FloatArray:
    return 0.5 * tensor_points([np.arange(2.0)] * d)


def _functions(xi: FloatArray) -> FloatArray:
    """(n, 2^d): the products of 1 and 2 xi_k - 1."""
    return np.asarray(np.prod((2.0 * xi - 1.0)[:, None] ** (2 * _corners(xi.shape[1])), axis=2))


def _lobatto(q: int) -> tuple[FloatArray, FloatArray]:
    """Points and weights (q,) on [0, 1]."""
    points, weights, _ = gll(q - 1)
    return (points + 1.0) / 2.0, weights / 2.0


def _rule(q: int, d: int) -> tuple[FloatArray, FloatArray]:
    """Points (q^d, d) of the rule, and what values there are multiplied with for means (q^d, 2^d)."""
    xi, weights = tensor_rule(*_lobatto(q), d)
    return xi, weights[:, None] * _functions(xi)


def _joined(values: FloatArray, q: int, d: int) -> FloatArray:
    """The means (n, 2^d) of boxes from values (2^d n, q^d) in their halves."""
    xi, weights = tensor_rule(*_lobatto(q), d)
    inner = _functions((0.5 * xi + _corners(d)[:, None]).reshape(-1, d))
    return np.asarray(values.reshape(-1, len(inner)) @ (np.tile(weights / 2**d, 2**d)[:, None] * inner))


def _values(grid: Grid, boxes: _Boxes, xi: FloatArray, g: Function) -> FloatArray:
    """(n, k), at points xi (k, d), or (n, k, d), of boxes."""
    parts = []
    some = max(_CHUNK // xi.shape[-2], 1)
    for first in range(0, len(boxes), some):
        part = slice(first, first + some)
        local = boxes.begin[part, None] + boxes.width * (xi if xi.ndim == 2 else xi[part])
        x = np.empty(local.shape)
        for k, line in enumerate(grid.lines):
            cell = boxes.cells[part, k]
            x[..., k] = line.grid[cell][:, None] + line.widths[cell][:, None] * local[..., k]
        parts.append(g(x.reshape(-1, grid.dim)).reshape(x.shape[:2]))
    return np.concatenate(parts) if parts else np.empty((0, xi.shape[-2]))


def _add(result: FloatArray, grid: Grid, boxes: _Boxes, values: FloatArray, q: int) -> None:
    """Add the integrals over boxes against all functions of their cells, from values (n, q^d)."""
    points, weights = _lobatto(q)
    for first in range(0, len(boxes), _CHUNK):
        some, left = boxes.some(slice(first, first + _CHUNK)), values[first : first + _CHUNK]
        for k in range(grid.dim):
            left = _against(left.reshape(len(some), q, -1), grid, some, k, points, weights)
        _scatter(result, grid, some, range(grid.dim), left)


def _against(
    left: FloatArray, grid: Grid, boxes: _Boxes, k: int, points: FloatArray, weights: FloatArray
) -> FloatArray:
    """(n, q, m) integrated against the functions of an axis, which comes last then."""
    line, cell = grid.lines[k], boxes.cells[:, k]
    at, where = np.unique(boxes.begin[:, k], return_inverse=True)
    local = line.reference((at[:, None] + boxes.width * points).ravel()).reshape(len(at), points.size, -1)
    local = local[where] * (weights[:, None] * (boxes.width * line.widths[cell])[:, None, None])
    return np.asarray(np.matmul(left.swapaxes(1, 2), local))


def _scatter(result: FloatArray, grid: Grid, boxes: _Boxes, order: Sequence[int], local: FloatArray) -> None:
    """Add integrals against the functions of cells, whose axes come in this order."""
    dofs = np.zeros(1, dtype=np.int64)
    for k in order:
        stride = int(np.prod(grid.shape[k + 1 :]))
        dofs = dofs[..., None] + stride * grid.lines[k].cell_dofs[boxes.cells[:, k]].reshape(
            len(boxes), *[1] * (dofs.ndim - 1), -1
        )
    result += np.bincount(dofs.ravel(), local.ravel(), len(result))


def _add_split(result: FloatArray, grid: Grid, boxes: _Boxes, axis: int, g: Function) -> None:
    """The same where the function jumps across the axis, sought along lines between Gauss points of the others."""
    d, n, line = grid.dim, len(boxes), grid.lines[axis]
    if not n:
        return
    others = [k for k in range(d) if k != axis]
    points, weights = unit_gauss(2 * _ACROSS - 1)
    at = tensor_points([points] * (d - 1)) if others else np.zeros((1, 0))

    def on_lines(z: FloatArray) -> FloatArray:
        """Values (n, lines, m) at places z (n, lines, m) along the axis."""
        xi = np.empty((*z.shape, d))
        xi[..., axis], xi[..., others] = z, at[:, None]
        return _values(grid, boxes, xi.reshape(n, -1, d), g).reshape(z.shape)

    cut = _cut(on_lines, (n, len(at)))
    points_in, weights_in = unit_gauss(2 * _ALONG - 1)
    z = np.concatenate([cut * points_in, cut + (1.0 - cut) * points_in], axis=2)
    masses = np.concatenate([cut * weights_in, (1.0 - cut) * weights_in], axis=2)
    local = line.reference((boxes.begin[:, axis, None, None] + boxes.width * z).ravel()).reshape(*z.shape, -1)
    width = (boxes.width * line.widths[boxes.cells[:, axis]])[:, None, None]
    left = np.matmul((masses * on_lines(z) * width)[:, :, None], local)[:, :, 0]  # (n, lines, p + 1)
    for k in others:
        left = _against(left.reshape(n, _ACROSS, -1), grid, boxes, k, points, weights)
    _scatter(result, grid, boxes, [axis, *others], left)


def _cut(on_lines: Function, shape: tuple[int, int]) -> FloatArray:
    """Where along [0, 1] on each line (n, lines, 1) the function jumps most; somewhere if it does not."""
    places = np.broadcast_to(np.linspace(0.0, 1.0, _SOUGHT), (*shape, _SOUGHT))
    values = on_lines(places)
    most = np.abs(np.diff(values, axis=2)).argmax(axis=2)[..., None]
    low, high = (np.take_along_axis(places, most + k, axis=2) for k in range(2))
    before, after = (np.take_along_axis(values, most + k, axis=2) for k in range(2))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        between = on_lines(middle)
        left = np.abs(between - before) >= np.abs(after - between)
        low, high = np.where(left, low, middle), np.where(left, middle, high)
        before, after = np.where(left, before, between), np.where(left, between, after)
    return np.asarray(0.5 * (low + high))
