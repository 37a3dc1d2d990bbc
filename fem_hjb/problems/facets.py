"""Flat pieces of a boundary: which is nearest to a point, and which one a step meets first.

Pieces are points of a line, segments of a plane, triangles in space. A k-d tree of their centres gives a few candidates
for each query, of which the distance is computed; pieces of very different size stand in trees of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from fem_hjb.problems.box import BoolArray
from fem_hjb.support.checks import FloatArray, IntArray

_FIRST = 6  # candidates looked at first
_RATIO = 4.0  # of the radii of pieces in one tree
_EDGE = 1e-9  # of its size: as far beyond the edge of a piece it still counts as met, so that nothing slips between two
_PAIRS = 1 << 18  # pairs of points and candidates treated at once


class Facets:
    """m pieces with corners (m, d, d) and unit normals (m, d), which point out of the domain.

    slack : a distance that counts as rounding.
    """

    def __init__(self, corners: FloatArray, normals: FloatArray, slack: float) -> None:
        self.corners, self.normals, self.slack = corners, normals, slack
        self.dim = corners.shape[2]
        centres = corners.mean(axis=1)
        radii = np.linalg.norm(corners - centres[:, None], axis=2).max(axis=1, initial=0.0)
        classes = np.floor(np.log(np.maximum(radii, slack)) / np.log(_RATIO)).astype(np.int64)
        self._trees: list[tuple[cKDTree, IntArray, float]] = []
        for one in np.unique(classes):
            members = np.flatnonzero(classes == one)
            self._trees.append((cKDTree(centres[members]), members, float(radii[members].max())))

    def __len__(self) -> int:
        return len(self.corners)

    def nearest(self, x: FloatArray, within: ArrayLike = np.inf) -> tuple[FloatArray, FloatArray, IntArray]:
        """Distances (n,), nearest points (n, d) and their facets (n,), of points x (n, d).

        Where nothing is as near as `within`, a number or (n,): inf, the point itself, and -1.
        """
        most = np.broadcast_to(np.asarray(within, dtype=np.float64), len(x))
        distance = np.array(most)
        point, facet = x.copy(), np.full(len(x), -1, dtype=np.int64)

        def look(rows: IntArray, which: IntArray, near: BoolArray) -> None:
            at, column = np.nonzero(near)
            if (known := self._between(x[rows[at]], which[at, column])) is not None:
                most = np.full(near.shape, np.inf)
                most[at, column] = known[1]
                hopeful = known[0] <= np.minimum(most.min(axis=1), distance[rows])[at]
                near = near.copy()
                near[at, column] = hopeful
                at, column = at[hopeful], column[hopeful]
            close = self._closest(x[rows[at]], which[at, column])
            far = np.full(near.shape, np.inf)
            far[at, column] = np.linalg.norm(close - x[rows[at]], axis=1)
            best = far.argmin(axis=1)
            least = far[np.arange(len(rows)), best]
            better = least <= distance[rows]
            place = np.cumsum(near).reshape(near.shape)[np.arange(len(rows)), best][better] - 1  # among the pairs
            rows = rows[better]
            distance[rows], point[rows], facet[rows] = least[better], close[place], which[better, best[better]]

        self._around(x, lambda rows: distance[rows], look)
        distance[facet < 0] = np.inf
        return distance, point, facet

    def crossed(self, start: FloatArray, end: FloatArray) -> tuple[FloatArray, IntArray]:
        """Where steps from start to end (n, d) first leave through a facet: the share of the step, and the facet.

        Steps that meet none have share inf, facet -1. A start may lie on a facet, or out of it by rounding.
        """
        share, facet = np.full(len(start), np.inf), np.full(len(start), -1, dtype=np.int64)
        step = end - start
        middle, reach = start + step / 2, np.linalg.norm(step, axis=1) / 2 + self.slack

        def look(rows: IntArray, which: IntArray, near: BoolArray) -> None:
            at, column = np.nonzero(near)
            s = np.full(near.shape, np.inf)
            s[at, column] = self._met(start[rows[at]], step[rows[at]], which[at, column])
            best = s.argmin(axis=1)
            least = s[np.arange(len(rows)), best]
            better = least < share[rows]
            share[rows[better]], facet[rows[better]] = least[better], which[better, best[better]]

        self._around(middle, lambda rows: reach[rows], look)
        return share, facet

    def touched(self, x: FloatArray, facets: IntArray) -> tuple[FloatArray, FloatArray]:
        """Points x (n, d) that are on these facets (n,) but for rounding, moved onto them, and the normals there."""
        normal = self.normals[facets]
        return x - ((x - self.corners[facets, 0]) * normal).sum(axis=1, keepdims=True) * normal, normal

    def spots(self) -> tuple[FloatArray, FloatArray]:
        """Points on the pieces, and the normals there, each (k, d)."""
        return self.corners.mean(axis=1), self.normals

    def moments(self) -> tuple[FloatArray, FloatArray]:
        """The sizes (m,) of the pieces, and the integrals (m, d) of x over them."""
        edges = self.corners[:, 1:] - self.corners[:, :1]
        size = np.sqrt(np.abs(np.linalg.det(edges @ edges.swapaxes(1, 2)))) if self.dim > 1 else np.ones(len(self))
        return size, size[:, None] * self.corners.mean(axis=1)

    def _around(
        self,
        x: FloatArray,
        reach: Callable[[IntArray], FloatArray],
        look: Callable[[IntArray, IntArray, BoolArray], None],
    ) -> None:
        """Call look(rows (n,), pieces (n, k), which of them) until it has seen all within the reach of each row."""
        for tree, members, radius in self._trees:
            rows, count = np.arange(len(x)), min(_FIRST, len(members))
            while rows.size:
                left = [rows[:0]]
                size = max(1, _PAIRS // count)
                for chunk in (rows[i : i + size] for i in range(0, rows.size, size)):
                    limit = reach(chunk) + radius
                    bound = np.nextafter(float(limit.max()), np.inf)
                    far, which = tree.query(x[chunk], k=np.arange(1, count + 1), distance_upper_bound=bound)
                    near = far <= limit[:, None]
                    some = near[:, 0]
                    chunk, far, near = chunk[some], far[some], near[some]
                    if chunk.size:
                        look(chunk, members[np.where(near, which[some], 0)], near)
                        more = near[:, -1] & (far[:, -1] <= reach(chunk) + radius)
                        left.append(chunk[more] if count < len(members) else chunk[:0])
                rows, count = np.concatenate(left), min(4 * count, len(members))

    def _met(self, start: FloatArray, step: FloatArray, facets: IntArray) -> FloatArray:
        """The shares in [0, 1] of steps (n, d) at which they leave through these facets (n,), inf if they do not."""
        corners, normals = self.corners[facets], self.normals[facets]
        speed = (step * normals).sum(axis=1)
        ahead = ((corners[:, 0] - start) * normals).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.maximum(ahead, 0.0) / speed
        met = (speed > 0) & (ahead >= -self.slack) & (share <= 1.0)
        share = np.where(met, share, np.inf)
        if self.dim > 1 and met.any():
            at = start[met] + share[met, None] * step[met]
            off = np.linalg.norm(self._closest(at, facets[met]) - at, axis=1)
            size = np.linalg.norm(corners[met, 1] - corners[met, 0], axis=1)
            share[np.flatnonzero(met)[off > _EDGE * size + self.slack]] = np.inf
        return share

    def _between(self, x: FloatArray, facets: IntArray) -> tuple[FloatArray, FloatArray] | None:
        """Numbers (n,) between which the distances of points (n, d) from these facets (n,) are, if they are cheaply
        known and spare a look at most facets."""
        return None

    def _closest(self, x: FloatArray, facets: IntArray) -> FloatArray:
        """The point (n, d) of each of these facets (n,) that is nearest to x (n, d)."""
        corners = self.corners[facets]
        if self.dim == 1:
            return np.asarray(corners[:, 0])
        if self.dim == 2:
            return _on_segment(x, corners[:, 0], corners[:, 1])
        a, b, c = corners.swapaxes(0, 1)
        normal = self.normals[facets]
        foot = x - ((x - a) * normal).sum(axis=1, keepdims=True) * normal
        turns = [(np.cross(q - p, foot - p) * np.cross(b - a, c - a)).sum(axis=1) for p, q in ((a, b), (b, c), (c, a))]
        inside = np.min(turns, axis=0) >= 0
        edges = np.stack([_on_segment(x, p, q) for p, q in ((a, b), (b, c), (c, a))])
        nearest = np.linalg.norm(edges - x, axis=2).argmin(axis=0)
        return np.asarray(np.where(inside[:, None], foot, edges[nearest, np.arange(len(x))]))


def _on_segment(x: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    """The nearest point (n, d) to x of the segments from a to b."""
    along = b - a
    share = ((x - a) * along).sum(axis=1) / (along**2).sum(axis=1)
    return np.asarray(a + np.clip(share, 0.0, 1.0)[:, None] * along)
