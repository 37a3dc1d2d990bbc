r"""Curved triangles and tetrahedra of second order: their maps, whether these are one to one, and their inverses.

A cell has a node at each corner and one on each edge, and is the image of the reference cell under the quadratic
polynomials with these values at the reference corners and the middles of reference edges (isoparametric elements:
Ciarlet, The Finite Element Method for Elliptic Problems, 1978, section 4.3). With middles in the middle it is straight.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement
from math import factorial
from typing import final

import numpy as np
import skfem

from fem_hjb.support.checks import FloatArray, IntArray

# Ends of edges, in scikit-fem's and meshio's order of the nodes on them.
EDGES: dict[str, list[tuple[int, int]]] = {
    "tri": [(0, 1), (1, 2), (0, 2)],
    "tet": [(0, 1), (1, 2), (0, 2), (0, 3), (1, 3), (2, 3)],
}
_REFERENCE = {"tri": skfem.MeshTri1, "tet": skfem.MeshTet1}
_LEVELS = 4  # how often a cell is cut into 2^d until its Jacobian is seen to have one sign
_CHUNK_POINTS = 1 << 17  # at which Jacobians are held at once
_FLAT = 1e-8  # of the largest Jacobian determinant in a cell: a smaller one is none
_NEWTON = 25
_TOGETHER = 4096  # points for which all starts are tried at once
_REACH = 0.1  # beyond the unit cube, that Newton's iterates may go
_MILD = 0.45  # theta of `CurvedCells`, up to which Newton's method is sure to converge
_SINGLE = 0.95  # likewise, up to which no two points have one image


def functions(xi: FloatArray, kind: str) -> FloatArray:
    """The quadratic functions (n, k) of the k nodes, corners first, at reference points (n, d)."""
    corner = np.column_stack([1.0 - xi.sum(axis=1), xi])
    ends = np.array(EDGES[kind]).T
    return np.column_stack([corner * (2.0 * corner - 1.0), 4.0 * corner[:, ends[0]] * corner[:, ends[1]]])


def reference_nodes(kind: str) -> FloatArray:
    """Where the nodes are on the reference cell, (k, d)."""
    d = 2 if kind == "tri" else 3
    corners = np.vstack([np.zeros(d), np.eye(d)])
    return np.vstack([corners, corners[np.array(EDGES[kind])].mean(axis=1)])


def control_points(nodes: FloatArray, kind: str) -> FloatArray:
    """Points (k, nc, d) whose convex hull holds the cell with these nodes (k, nc, d): Bernstein coefficients."""
    ends = np.array(EDGES[kind]).T
    corners = nodes[: nodes.shape[2] + 1]
    middles = 2.0 * nodes[len(corners) :] - 0.5 * (corners[ends[0]] + corners[ends[1]])
    return np.concatenate([corners, middles])


def powers(nodes: FloatArray, kind: str) -> tuple[FloatArray, FloatArray]:
    """x = x_0 + linear xi + xi' bent xi, linear (nc, d, d) at [c, i, k], bent (nc, d, d, d) at [c, i, j, k]."""
    count, d = nodes.shape[1:]
    linear, bent = np.empty((count, d, d)), np.empty((count, d, d, d))
    middle = {ends: nodes[d + 1 + k] for k, ends in enumerate(EDGES[kind])}
    start = nodes[0]
    for k in range(d):
        linear[:, :, k] = 4.0 * middle[0, k + 1] - 3.0 * start - nodes[k + 1]
        bent[:, :, k, k] = 2.0 * (start + nodes[k + 1]) - 4.0 * middle[0, k + 1]
        for j in range(k):
            mixed = 2.0 * (start - middle[0, j + 1] - middle[0, k + 1] + middle[j + 1, k + 1])
            bent[:, :, j, k] = bent[:, :, k, j] = mixed
    return linear, bent


def one_to_one(nodes: FloatArray, kind: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """For each cell with nodes (k, nc, d), whether its Jacobian determinant is seen to have one sign in all of it.

    The determinant is a polynomial of degree d, and lies between the smallest and the largest of its Bernstein
    coefficients; where they differ in sign, those on parts of the cell are looked at (Johnen, Remacle and Geuzaine, J.
    Comput. Phys. 233, 2013). It must be that of the simplex of the corners: else the cell is turned inside out.
    """
    linear, bent = powers(nodes, kind)
    d = nodes.shape[2]
    volume = np.linalg.det((nodes[1 : d + 1] - nodes[0]).transpose(1, 2, 0))
    sign = np.where(volume < 0, -1.0, 1.0)
    sound, open_ = np.zeros(len(sign), dtype=np.bool_), np.arange(len(sign))
    for level in range(_LEVELS):
        points, to_bernstein = _lattice(kind, level)
        step, undecided = max(1, _CHUNK_POINTS // len(points)), [open_[:0]]
        for some in (open_[k : k + step] for k in range(0, open_.size, step)):
            slopes = linear[some, None] + 2.0 * np.einsum("cijk,qj->cqik", bent[some], points, optimize=True)
            det = np.linalg.det(slopes) * sign[some, None]
            parts = det.reshape(len(some), -1, len(to_bernstein)) @ to_bernstein.T
            least = _FLAT * np.abs(det).max(axis=1)
            sound[some] = (parts > least[:, None, None]).all(axis=(1, 2))
            undecided.append(some[~sound[some] & (det > least[:, None]).all(axis=1)])
        open_ = np.concatenate(undecided)
    return sound


@cache
def _lattice(kind: str, level: int) -> tuple[FloatArray, FloatArray]:
    """Points (parts * m, d) on the parts of the reference cell, cut into 2^d `level` times, and the matrix (m, m) from
    values of a polynomial of degree d at the m points of a part to its Bernstein coefficients there."""
    d = 2 if kind == "tri" else 3
    index = np.array([np.bincount(c, minlength=d + 1) for c in combinations_with_replacement(range(d + 1), d)])
    at = index / d
    binomial = factorial(d) / np.array([np.prod([factorial(i) for i in row]) for row in index.tolist()])
    bernstein = binomial * np.prod(at[:, None, :] ** index, axis=2)
    reference = _REFERENCE[kind].init_refdom()
    parts = reference.refined(level) if level else reference
    corners = np.asarray(parts.p).T[np.asarray(parts.t)]  # (d + 1, parts, d)
    points = np.einsum("mv,vpd->pmd", at, corners).reshape(-1, d)
    return points, np.asarray(np.linalg.inv(bernstein))


@final
class CurvedCells:
    """The inverse of x = x_0 + L xi + xi' B xi, by Newton's method with iterates kept in the box around the cell.

    Jacobians are J (1 + E) with J that in the middle of the cell. Where |E| <= theta < 1 in a convex set, no two points
    of it have one image: a solution found near the cell but not in it is the only one. In the box and in the maximum
    norm theta = w |J^{-1} 2 B|, with w how far it reaches from the middle; a step of Newton's method makes the distance
    to the preimage at most theta / (1 - theta) times as large, as the box is less than 2 w wide, and to move the
    iterate back into it does not spoil that: for theta < 1/2 what is there is found. All else is tried from several
    starts.
    """

    def __init__(self, nodes: FloatArray, kind: str, tolerance: float) -> None:
        linear, bent = powers(nodes, kind)
        self.origin = np.ascontiguousarray(nodes[0].T)
        self.linear, self.bent = np.moveaxis(linear, 0, -1).copy(), np.moveaxis(bent, 0, -1).copy()
        self.tolerance = tolerance
        # barycentric coordinates with respect to the corners, and the bounds that those of the cell's hull are
        d = nodes.shape[2]
        inverse = np.linalg.inv((nodes[1 : d + 1] - nodes[0]).transpose(1, 2, 0))
        rows = np.concatenate([-inverse.sum(axis=1, keepdims=True), inverse], axis=1)
        hull = np.einsum("cim,kcm->ick", rows, control_points(nodes, kind) - nodes[0])
        slack = tolerance * np.linalg.norm(rows, axis=2).T
        self.gradients = np.moveaxis(rows, 0, -1).copy()
        self.lower, self.upper = hull.min(axis=2) - slack, hull.max(axis=2) + slack
        at = reference_nodes(kind)
        inverses = [np.linalg.inv(linear + 2.0 * np.einsum("cijk,j->cik", bent, xi)) for xi in at]
        steep = [np.concatenate([J, J.sum(axis=1, keepdims=True)], axis=1) for J in inverses]
        self.height = 1.0 / np.max([np.linalg.norm(J, axis=2).max(axis=1) for J in steep], axis=0)
        centre = np.full(d, 1.0 / (d + 1))
        middle = np.linalg.inv(linear + 2.0 * np.einsum("cijk,j->cik", bent, centre))
        change = np.abs(2.0 * np.einsum("cil,cljk->cijk", middle, bent)).sum(axis=(2, 3)).max(axis=1)
        self.mild = (1.0 + _REACH - centre[0]) * change <= _MILD
        tips = at[: d + 1] + _REACH * (d + 1) * (at[: d + 1] - centre)  # of the simplex that is larger by the reach
        errors = 2.0 * np.einsum("cil,cljk,vj->vcik", middle, bent, tips - centre, optimize=True)
        self.single = np.linalg.norm(errors, axis=(2, 3)).max(axis=0) <= _SINGLE
        self.starts = np.vstack([centre, 0.75 * at + 0.25 * centre])

    def invert(self, cell: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Reference coordinates (d, m) of x (d, m) in the given cells, and the depth: how far inside, < 0 outside,
        -inf for a point that is far from the cell, or has no preimage near it."""
        xi, depth = np.full(x.shape, np.nan), np.full(cell.size, -np.inf)
        offset = x - self.origin.take(cell, axis=1)
        straight = np.einsum("imp,mp->ip", self.gradients.take(cell, axis=2), offset)
        near = (straight >= self.lower.take(cell, axis=1)) & (straight <= self.upper.take(cell, axis=1))
        rows = np.flatnonzero(near.all(axis=0))
        found, deep = self._newton(cell[rows], offset[:, rows], straight[1:, rows])
        xi[:, rows], depth[rows] = found, deep
        close = np.minimum(found.min(axis=0), 1.0 - found.sum(axis=0)) >= -_REACH
        sure = self.mild[cell[rows]] | (self.single[cell[rows]] & close & np.isfinite(deep))
        rows, count = rows[(deep < -self.tolerance) & ~sure], len(self.starts)
        for k in range(0, rows.size, _TOGETHER):
            part = rows[k : k + _TOGETHER]
            starts = np.repeat(self.starts.T, part.size, axis=1)
            found, deep = self._newton(np.tile(cell[part], count), np.tile(offset[:, part], count), starts)
            best = deep.reshape(count, -1).argmax(axis=0) * part.size + np.arange(part.size)
            better = deep[best] > depth[part]
            xi[:, part[better]], depth[part[better]] = found[:, best[better]], deep[best[better]]
        return xi, depth

    def _newton(self, cell: IntArray, target: FloatArray, xi: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The same of x - x_0, from a start xi (d, m), or where the box is nearest to it."""
        xi = np.clip(xi, -_REACH, 1.0 + _REACH)
        linear, bent = self.linear.take(cell, axis=-1), self.bent.take(cell, axis=-1)
        moving = np.arange(cell.size)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for _ in range(_NEWTON):
                here = xi[:, moving]
                half = np.einsum("ijkm,jm->ikm", bent[..., moving], here)
                slopes = linear[..., moving] + half
                rest = target[:, moving] - np.einsum("ikm,km->im", slopes, here)
                new = np.clip(here + cramer(slopes + half, rest), -_REACH, 1.0 + _REACH)
                change = np.abs(new - here).max(axis=0)
                xi[:, moving] = new
                moving = moving[change > 1e-14]  # a NaN, from a singular Jacobian, stops here too
                if not moving.size:
                    break
            slopes = linear + np.einsum("ijkm,jm->ikm", bent, xi)
            solved = np.abs(np.einsum("ikm,km->im", slopes, xi) - target).max(axis=0) <= self.tolerance
        inside = np.minimum(xi.min(axis=0), 1.0 - xi.sum(axis=0)) * self.height.take(cell)
        return xi, np.where(solved, inside, -np.inf)


def cramer(jacobian: FloatArray, right: FloatArray) -> FloatArray:
    """Cramer's rule for many small systems, jacobian (d, d, m) and right (d, m), d = 2 or 3; inf or nan if singular."""
    if right.shape[0] == 2:
        (a, b), (c, e) = jacobian
        return np.asarray(np.stack([e * right[0] - b * right[1], a * right[1] - c * right[0]]) / (a * e - b * c))
    (a, b, c), (e, f, g), (h, i, j) = jacobian
    minors = [
        (f * j - g * i, c * i - b * j, b * g - c * f),
        (g * h - e * j, a * j - c * h, c * e - a * g),
        (e * i - f * h, b * h - a * i, a * f - b * e),
    ]
    volume = a * minors[0][0] + b * minors[1][0] + c * minors[2][0]
    return np.asarray(np.stack([(m * right[0] + n * right[1] + q * right[2]) / volume for m, n, q in minors]))
