"""Point location: which cell of a mesh holds a point, and where in the reference cell it lies."""

from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.curved import CurvedCells, control_points, cramer
from fem_hjb.support.checks import FloatArray, IntArray, one_of
from fem_hjb.support.errors import DomainError

# Corners of scikit-fem's reference cells, in its order of a cell's vertices.
REFERENCE_CORNERS: dict[str, FloatArray] = {
    "line": np.array([[0.0], [1]]),
    "tri": np.array([[0.0, 0], [1, 0], [0, 1]]),
    "quad": np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]),
    "tet": np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "hex": np.array([[1.0, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]),
}

_TOLERANCE = 1e-10  # of the mesh's diameter: as far outside a cell a point may lie and still count as inside
_CHUNK = 65536  # points (or point-candidate pairs) treated at once
_LEAF = 8  # cells a leaf of the tree may hold without being split
_PROGRESS = 0.9  # a split must leave each side at most this fraction of the cells
_NEWTON = 25  # steps of the inverse of a bilinear or trilinear map; quadratic convergence needs far fewer
_REACH = 1.5  # Newton iterates stay within this multiple of the reference cell, where the map is still sound


def corner_jacobians(p: FloatArray, t: IntArray, kind: str) -> FloatArray:
    """Jacobians dx_i/dxi_j of the reference map at each corner of each cell, shape (nl, nc, d, d); (1, nc, d, d) for
    lines, triangles and tetrahedra, where the map is affine. p is (d, nv) and t is (nl, nc), in scikit-fem's order."""
    corners = REFERENCE_CORNERS[kind].astype(np.int64)
    x = p.T[t]
    d = p.shape[0]
    if t.shape[0] == d + 1:
        return np.stack([x[k] - x[0] for k in range(1, d + 1)], axis=-1)[None]
    place = {tuple(corner): i for i, corner in enumerate(corners.tolist())}
    columns = np.empty((len(corners), t.shape[1], d, d))
    for i, corner in enumerate(corners):
        for k in range(d):
            low, high = corner.copy(), corner.copy()
            low[k], high[k] = 0, 1
            columns[i, :, :, k] = x[place[tuple(high.tolist())]] - x[place[tuple(low.tolist())]]
    return columns


class _Tree:
    """A k-d tree over bounding boxes: a leaf lists the cells whose box meets the leaf's region, nearest centre first.

    A region is halved at the median of its cells' centres, along the axis on which they spread most, so that the leaves
    adapt to graded meshes. The levels are built with array operations only.
    """

    def __init__(self, lower: FloatArray, upper: FloatArray) -> None:
        centre = (lower + upper) / 2
        n = centre.shape[1]
        by_axis = centre.argsort(axis=1)
        rank = by_axis.argsort(axis=1)
        axes, splits, children, cells_of_leaf, leaf_of_cell = [], [], [], [], []
        # of the current level: its first node's number, its nodes' regions, and the pairs (cell, node), sorted by node
        first = 0
        low, high = lower.min(axis=1)[:, None], upper.max(axis=1)[:, None]
        cell, node = np.arange(n), np.zeros(n, dtype=np.int64)
        self.depth = 0
        while cell.size:
            start = np.flatnonzero(np.diff(node, prepend=-1))
            count = np.diff(start, append=node.size)
            c = centre[:, cell]
            axis = (np.maximum.reduceat(c, start, axis=1) - np.minimum.reduceat(c, start, axis=1)).argmax(axis=0)
            # the median of each node: sorting integers, not arguments, is several times faster
            keys = np.sort(node * n + rank[axis[node], cell])
            split = centre[axis, by_axis[axis, keys[start + count // 2] % n]]
            left = lower[axis[node], cell] <= split[node]
            right = upper[axis[node], cell] >= split[node]
            most = np.maximum(*(np.add.reduceat(side, start, dtype=np.int64) for side in (left, right)))
            go_on = (count > _LEAF) & (most <= _PROGRESS * count)
            place = np.cumsum(go_on) - 1  # among the nodes that are split
            level = np.arange(start.size)
            axes.append(axis)
            # a leaf is its own left child, so that the descent rests there
            splits.append(np.where(go_on, split, np.inf))
            children.append(np.where(go_on, first + start.size + 2 * place, first + level))
            done = ~go_on[node]
            middle = (low + high)[:, node[done]] / 2
            order = np.lexsort((np.abs(centre[:, cell[done]] - middle).sum(axis=0), node[done]))
            cells_of_leaf.append(cell[done][order])
            leaf_of_cell.append(first + node[done][order])
            low, high = np.repeat(low[:, go_on], 2, axis=1), np.repeat(high[:, go_on], 2, axis=1)
            twins = np.arange(0, low.shape[1], 2)
            high[axis[go_on], twins] = low[axis[go_on], twins + 1] = split[go_on]
            left, right = left & ~done, right & ~done
            cell = np.concatenate([cell[left], cell[right]])
            node = np.concatenate([2 * place[node[left]], 2 * place[node[right]] + 1])
            order = np.argsort(node, kind="stable")
            cell, node = cell[order], node[order]
            first += start.size
            self.depth += 1
        self.axis, self.split, self.child = (np.concatenate(parts) for parts in (axes, splits, children))
        self.cells = np.concatenate(cells_of_leaf)  # leaves come out in increasing order of node
        counts = np.bincount(np.concatenate(leaf_of_cell), minlength=first)
        self.start = np.concatenate([[0], np.cumsum(counts)])

    def leaf(self, x: FloatArray) -> IntArray:
        """The leaf of each point, x (d, m)."""
        node = np.zeros(x.shape[1], dtype=np.int64)
        column = np.arange(x.shape[1])
        for _ in range(self.depth - 1):
            node = self.child[node] + (x[self.axis[node], column] > self.split[node])
        return node


class _AffineCells:
    """The inverse of x = origin + J xi, for simplices and parallelepipeds."""

    def __init__(self, origin: FloatArray, jacobian: FloatArray, simplex: bool) -> None:
        self.simplex = simplex
        inverse = np.asarray(np.linalg.inv(jacobian), dtype=np.float64)
        self.origin = np.ascontiguousarray(origin)
        self.inverse = np.ascontiguousarray(np.moveaxis(inverse, 0, -1))
        self.height = _height(inverse, simplex)

    def invert(self, cell: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Reference coordinates (d, m) of x (d, m) in the given cells, and the depth: how far inside, < 0 outside."""
        xi = np.einsum("ijm,jm->im", self.inverse.take(cell, axis=2), x - self.origin.take(cell, axis=1))
        far = 1.0 - (xi.sum(axis=0) if self.simplex else xi.max(axis=0))
        return xi, np.minimum(xi.min(axis=0), far) * self.height.take(cell)


class _MultilinearCells:
    """The inverse of a bilinear or trilinear map by Newton's method from the centre, iterates kept near the cell."""

    def __init__(self, x: FloatArray, jacobians: FloatArray, kind: str, tolerance: float) -> None:
        d = x.shape[2]
        signs = 2.0 * REFERENCE_CORNERS[kind] - 1.0
        powers = np.indices((2,) * d).reshape(d, -1).T
        modes = np.prod(np.where(powers[:, None, :] == 1, signs, 1.0), axis=-1)
        # x = centre + sum_m coefficient_m prod_k s_k^powers_mk with s = 2 xi - 1. The centre, which is far from 0 when
        # the cell is, is kept apart: the rest is as small as the cell, and the iteration converges to the last digit
        self.centre = x.mean(axis=0).T
        coefficient = np.einsum("mv,vnd->mdn", modes, x - x.mean(axis=0)) / len(signs)
        self.coefficient = coefficient.reshape((2,) * d + coefficient.shape[1:])
        self.lower = x.min(axis=0).T - tolerance
        self.upper = x.max(axis=0).T + tolerance
        self.height = np.min([_height(np.linalg.inv(J), simplex=False) for J in jacobians], axis=0)
        self.tolerance = tolerance

    @staticmethod
    def _map(coefficient: FloatArray, s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """x - centre (d, m) and its Jacobian (d, d, m) with respect to s (d, m), one variable s_k after the other."""
        value = coefficient
        partials: list[FloatArray] = []
        for s_k in s:
            partials = [g[0] + s_k * g[1] for g in partials] + [value[1]]
            value = value[0] + s_k * value[1]
        return value, np.stack(partials, axis=1)

    def invert(self, cell: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As for affine cells; a point that is not in the cell's bounding box, or has no preimage, has depth -inf."""
        xi, depth = np.full(x.shape, np.nan), np.full(cell.size, -np.inf)
        near = ((x >= self.lower.take(cell, axis=1)) & (x <= self.upper.take(cell, axis=1))).all(axis=0)
        rows = np.flatnonzero(near)
        coefficient = self.coefficient.take(cell[rows], axis=-1)
        target = x[:, rows] - self.centre.take(cell[rows], axis=1)
        s = np.zeros_like(target)
        moving = np.arange(rows.size)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for _ in range(_NEWTON):
                value, jacobian = self._map(coefficient.take(moving, axis=-1), s[:, moving])
                new = np.clip(s[:, moving] + cramer(jacobian, target[:, moving] - value), -_REACH, _REACH)
                change = np.abs(new - s[:, moving]).max(axis=0)
                s[:, moving] = new
                moving = moving[change > 1e-13]  # a NaN, from a singular Jacobian, stops here too
                if moving.size == 0:
                    break
            solved = np.abs(self._map(coefficient, s)[0] - target).max(axis=0) <= self.tolerance
        inside = (1 - np.abs(s).max(axis=0)) / 2 * self.height.take(cell[rows])
        xi[:, rows] = (s + 1) / 2
        depth[rows] = np.where(solved, inside, -np.inf)
        return xi, depth


def _height(inverse: FloatArray, simplex: bool) -> FloatArray:
    """The smallest distance between a face and what lies opposite: 1 / max_i |grad xi_i|, (nc,)."""
    rows = np.concatenate([inverse, inverse.sum(axis=-2, keepdims=True)], axis=-2) if simplex else inverse
    return np.asarray(1.0 / np.linalg.norm(rows, axis=-1).max(axis=-1))


@final
class CellLocator:
    """Finds the cells of points in a line, triangle, quadrilateral, tetrahedral or hexahedral mesh.

    A k-d tree over the cells' bounding boxes gives a few candidate cells for each point, which are tried in turn; cells
    may be graded, flat, bilinear or trilinear, the domain non-convex or with holes. A point shared by several cells is
    given to one of them, the one it lies deepest in to rounding. A point that is outside by no more than 1e-10 of the
    mesh's diameter counts as inside; its reference coordinates are then outside the reference cell by as little.

    Parameters
    ----------
    p : vertices, (d, nv);  t : cells, (nl, nc), in scikit-fem's order;  kind : "line", "tri", "quad", "tet" or "hex".
    nodes : (k, nc, d), of curved triangles and tetrahedra of second order: those at the corners, and on the edges.

    >>> square = CellLocator([[0, 1, 0, 1], [0, 0, 1, 1]], [[0, 1], [1, 2], [2, 3]], "tri")
    >>> cells, xi = square([[0.25, 0.5], [2.0, 0.0], [0.75, 0.75]])
    >>> cells.tolist(), xi[0].tolist()
    ([0, -1, 1], [0.25, 0.5])

    Raises
    ------
    DomainError : arrays of a wrong shape, vertex numbers out of range, or a cell of no volume (with its index).
    """

    def __init__(self, p: ArrayLike, t: ArrayLike, kind: str, nodes: FloatArray | None = None) -> None:
        one_of(kind, "CellLocator: kind", tuple(REFERENCE_CORNERS), DomainError)
        vertices, cells = np.asarray(p, dtype=np.float64), np.asarray(t, dtype=np.int64)
        corners, d = REFERENCE_CORNERS[kind].shape
        if vertices.ndim != 2 or vertices.shape[0] != d or cells.ndim != 2 or cells.shape[0] != corners:
            raise DomainError(
                f"CellLocator: a {kind} mesh has p of shape ({d}, nv) and t of shape ({corners}, nc), "
                f"got {vertices.shape} and {cells.shape}"
            )
        if cells.size == 0 or cells.min() < 0 or cells.max() >= vertices.shape[1]:
            raise DomainError(
                f"CellLocator: t must hold vertex numbers from 0 to {vertices.shape[1] - 1} and at least one cell, "
                f"got {'none' if cells.size == 0 else f'{cells.min()} to {cells.max()}'}"
            )
        self.dim, self.n_cells = d, cells.shape[1]
        x = vertices.T[cells]  # (nl, nc, d)
        if not np.isfinite(x).all():
            raise DomainError("CellLocator: p must be finite at the vertices of the cells")
        jacobians = corner_jacobians(vertices, cells, kind)
        flat = (np.linalg.det(jacobians) == 0).any(axis=0)
        if flat.any():
            raise DomainError(
                f"CellLocator: {int(flat.sum())} cells have no volume, the first is {int(np.argmax(flat))}; remove them"
            )
        around = x if nodes is None else control_points(nodes, kind)
        lower, upper = around.min(axis=0).T, around.max(axis=0).T  # (d, nc)
        self._low, self._high = lower.min(axis=1), upper.max(axis=1)
        rounding = 64 * np.finfo(np.float64).eps * np.abs(x).max()
        self._tolerance = float(_TOLERANCE * np.linalg.norm(self._high - self._low) + rounding)
        size = np.abs(jacobians).max(axis=(0, 2, 3))
        twisted = np.abs(jacobians - jacobians[:1]).max(axis=(0, 2, 3)) > 1e-13 * size
        self._cells: _AffineCells | _MultilinearCells | CurvedCells
        if nodes is not None:
            self._cells = CurvedCells(nodes, kind, self._tolerance)
        elif twisted.any():
            self._cells = _MultilinearCells(x, jacobians, kind, self._tolerance)
        else:
            origin = x[int(np.argmin(REFERENCE_CORNERS[kind].sum(axis=1)))].T
            self._cells = _AffineCells(origin, jacobians[0], simplex=corners == d + 1)
        self._tree = _Tree(lower - self._tolerance, upper + self._tolerance)

    def __call__(self, x: ArrayLike) -> tuple[IntArray, FloatArray]:
        """The cell of each point, (n,), -1 where it is in none (NaN included), and its reference coordinates, (n, d),
        NaN where it is in none."""
        points = np.asarray(x, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise DomainError(f"CellLocator: points must have shape (n, {self.dim}), got shape {points.shape}")
        cells = np.full(len(points), -1, dtype=np.int64)
        xi = np.full(points.shape, np.nan)
        slack = self._tolerance
        near = np.flatnonzero(((points >= self._low - slack) & (points <= self._high + slack)).all(axis=1))
        leaf = np.concatenate(
            [np.empty(0, dtype=np.int64)]
            + [self._tree.leaf(points[near[i : i + _CHUNK]].T) for i in range(0, near.size, _CHUNK)]
        )
        order = np.argsort(leaf, kind="stable")  # points of one leaf share candidates: kind to the cache
        near, leaf = near[order], leaf[order]
        for i in range(0, near.size, _CHUNK):
            rows = near[i : i + _CHUNK]
            cells[rows], xi[rows] = self._search(np.ascontiguousarray(points[rows].T), leaf[i : i + _CHUNK])
        return cells, xi

    def _search(self, x: FloatArray, leaf: IntArray) -> tuple[IntArray, FloatArray]:
        """Cells (m,) and reference coordinates (m, d) of x (d, m), from the candidates of each point's leaf in turn."""
        at, end = self._tree.start[leaf], self._tree.start[leaf + 1]
        best = np.full(leaf.size, -self._tolerance)
        cells, xi = np.full(leaf.size, -1, dtype=np.int64), np.full(x.shape, np.nan)
        open_ = np.arange(leaf.size)
        while open_.size:
            # when few points are left, several candidates at once: the number of passes must not depend on the list
            width = max(1, min(_CHUNK // (8 * open_.size), int((end - at)[open_].max())))
            slot = np.minimum(at[open_] + np.arange(width)[:, None], end[open_] - 1)
            candidate = self._tree.cells[slot]
            where, depth = self._cells.invert(candidate.ravel(), np.tile(x[:, open_], width))
            depth = depth.reshape(width, -1)
            deepest = depth.argmax(axis=0)
            column = np.arange(open_.size)
            found = depth[deepest, column] > best[open_]
            winners = open_[found]
            best[winners] = depth[deepest, column][found]
            cells[winners] = candidate[deepest, column][found]
            xi[:, winners] = where.reshape(self.dim, width, -1)[:, deepest, column][:, found]
            at[open_] += width
            open_ = open_[(best[open_] < 0) & (at[open_] < end[open_])]
        return cells, xi.T
