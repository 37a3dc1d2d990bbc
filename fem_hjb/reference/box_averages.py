r"""Functions that jump, as elements see them: averages against the functions of the nodes, not values at the nodes.

With phi_i the functions of a grid's nodes and w_i their lumped masses,

    g_i = (1 / w_i) int phi_i g dx

is what Galerkin's method begins with. From there on it is as accurate at positive times as if g were smooth (V. Thomee,
Galerkin Finite Element Methods for Parabolic Problems, Springer 2006, chapter 3); from values at nodes, to which all
places of a jump between two of them are the same, it is of the first order.

Integrals are sums of Gauss-Lobatto rules on boxes: cells, halved along all axes as long as the halves disagree with the
whole. These rules look at corners: no plane goes through a box unseen. In the smallest boxes the jump is sought along
lines, by bisection. In the plane these lines are at Gauss points of strips, which begin and end where the jump leaves a
box by its ends: that is of high order for one jump along a smooth curve. Rules of more and of fewer lines tell where
there is more than that; such boxes are halved again, until they are next to the points at which curves meet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
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
_DEEPEST = {1: 11, 2: 3, 3: 3}  # rules on boxes, each half as wide
_MOST = 1 << 14  # boxes that are halved at once: those that disagree most
_FURTHER, _FEW = 12, 512  # halvings of boxes with strips, and how many at once: those that disagree most
_POINTS = (8, 7, 6, 5)  # of a rule along an axis, in boxes halved twice, three times, ..: no rule and the next agree on
# a jump next to an end, as those of 4 and 3 points would
_LINES, _FEWER, _AT_LAST = 8, 6, 4  # through a box; fewer, which are to agree with them; where nothing is halved again
_SEEN = 4  # points of a rule that only looks which axis is to be split
_SOUGHT, _HALVINGS = 9, 24  # points of a line to seek a jump at; bisections
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

    def and_(self, others: Sequence["_Boxes"]) -> "_Boxes":
        """With others of this width."""
        every = (self, *others)
        names = ("cells", "begin", "means", "scale", "axis")
        cells, begin, means, scale, axis = (np.concatenate([getattr(part, name) for part in every]) for name in names)
        return _Boxes(cells, begin, self.width, means, scale, axis)

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
        changes = [np.abs(np.diff(on, axis=k + 1)).sum(axis=tuple(range(1, d + 1))) for k in range(d)]
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
    last = _DEEPEST[d] + deeper - 1
    for level in range(last + 1):
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
        _add(result, grid, parts.some(~each), values[~each], q)
        boxes = boxes.some(again) if level == last else parts.seen(values, q).some(each)
    halvings = max(_FURTHER + deeper, 0) if d == 2 else 0
    while halvings >= 0 and len(boxes):
        boxes = _added_split(result, grid, boxes, g, halvings == 0)
        halvings = min(halvings - 1, 0 if len(boxes) > 4 * _FEW else halvings)
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


def _added_split(result: FloatArray, grid: Grid, boxes: _Boxes, g: Function, last: bool) -> _Boxes:
    """The same of boxes in which the function jumps, all or those where two rules agree; the halves of the others."""
    left = []
    for axis in range(grid.dim):
        these = boxes.some(boxes.axis == axis)
        for first in range(0, len(these), _CHUNK // 4):
            some = these.some(slice(first, first + _CHUNK // 4))
            rule = _Split.of(grid, some, axis, g, _AT_LAST if last else _LINES)
            agreed = np.ones(len(some), dtype=np.bool_)
            if not last:
                change = np.abs(rule.means - _Split.of(grid, some, axis, g, _FEWER).means).max(axis=1)
                agreed = change * some.width**grid.dim <= _AGREED * some.scale
            if agreed.any():
                rule.some(agreed).add(result, grid, some.some(agreed))
            left.append(some.some(~agreed))
    halves = left[0].and_(left[1:]).halves()
    return halves.seen(_values(grid, halves, _rule(_SEEN, grid.dim)[0], g), _SEEN)


@final
@dataclass(frozen=True, eq=False)
class _Split:
    """A rule on lines along an axis, in two parts where the function jumps.

    at : points (n, lines, d - 1) of the other axes.  z : places on the lines (n, lines, m).
    masses, values : of the rule and of the function there.
    """

    axis: int
    at: FloatArray
    z: FloatArray
    masses: FloatArray
    values: FloatArray

    @classmethod
    def of(cls, grid: Grid, boxes: _Boxes, axis: int, g: Function, lines: int) -> "_Split":
        """So many lines along each other axis, in the plane in each of three strips."""
        d, n = grid.dim, len(boxes)
        points, weights = unit_gauss(2 * lines - 1)
        if d == 2:
            ends = np.broadcast_to(np.array([[0.0], [1.0]]), (n, 2, 1))
            left = np.sort(_cut(partial(_on_lines, grid, boxes, 1 - axis, ends, g), (n, 2))[..., 0], axis=1)
            bounds = np.concatenate([np.zeros((n, 1)), left, np.ones((n, 1))], axis=1)
            widths = np.diff(bounds)[..., None]
            at, across = (bounds[:, :-1, None] + widths * points).reshape(n, -1, 1), (widths * weights).reshape(n, -1)
        else:
            at, across = tensor_rule(points, weights, d - 1) if d > 1 else (np.zeros((1, 0)), np.ones(1))
            at, across = np.broadcast_to(at, (n, *at.shape)), np.broadcast_to(across, (n, *across.shape))
        on_lines = partial(_on_lines, grid, boxes, axis, at, g)
        cut = _cut(on_lines, across.shape)
        z = np.concatenate([cut * points, cut + (1.0 - cut) * points], axis=2)
        masses = across[..., None] * np.concatenate([cut * weights, (1.0 - cut) * weights], axis=2)
        return cls(axis, at, z, masses, on_lines(z))

    def some(self, kept: BoolArray) -> "_Split":
        return _Split(self.axis, self.at[kept], self.z[kept], self.masses[kept], self.values[kept])

    @property
    def means(self) -> FloatArray:
        """(n, 2^d), against products of 1 and 2 xi_k - 1."""
        weighted = self.masses * self.values
        along = np.stack([weighted.sum(axis=2), (weighted * (2.0 * self.z - 1.0)).sum(axis=2)], axis=1)
        d = self.at.shape[2] + 1
        across = _functions(self.at.reshape(-1, d - 1)).reshape(*self.at.shape[:2], 2 ** (d - 1))
        return np.asarray(np.matmul(along, across).reshape(len(along), 2**d))

    def add(self, result: FloatArray, grid: Grid, boxes: _Boxes) -> None:
        """Add the integrals against all functions of the cells."""
        n, lines, _ = self.z.shape
        others = [k for k in range(grid.dim) if k != self.axis]
        local = _functions_of(grid, boxes, self.axis, self.z)
        left = np.matmul((self.masses * self.values)[:, :, None], local)[:, :, 0].swapaxes(1, 2)
        across = np.ones((n, lines, 1))
        for j, k in enumerate(others):
            more = _functions_of(grid, boxes, k, self.at[:, :, j])
            across = (across[..., None] * more[..., None, :]).reshape(n, lines, across.shape[2] * more.shape[2])
        _scatter(result, grid, boxes, [self.axis, *others], np.matmul(left, across))


def _on_lines(grid: Grid, boxes: _Boxes, axis: int, at: FloatArray, g: Function, z: FloatArray) -> FloatArray:
    """Values (n, lines, m) at places z (n, lines, m) along an axis, on lines at (n, lines, d - 1) of the others."""
    xi = np.empty((*z.shape, grid.dim))
    xi[..., axis], xi[..., [k for k in range(grid.dim) if k != axis]] = z, at[:, :, None]
    return _values(grid, boxes, xi.reshape(len(z), -1, grid.dim), g).reshape(z.shape)


def _functions_of(grid: Grid, boxes: _Boxes, k: int, z: FloatArray) -> FloatArray:
    """(*z, p + 1): the functions of cells along an axis at places z (n, ..) of boxes, times their width."""
    line = grid.lines[k]
    begin, width = boxes.begin[:, k], boxes.width * line.widths[boxes.cells[:, k]]
    begin, width = (part.reshape(-1, *[1] * (z.ndim - 1)) for part in (begin, width))
    local = line.reference((begin + boxes.width * z).ravel()).reshape(*z.shape, line.degree + 1)
    local *= width[..., None]
    return local


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
