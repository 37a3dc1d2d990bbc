"""Curved pieces of a boundary in space, the faces of tetrahedra of second order."""

from __future__ import annotations

from typing import final

import numpy as np
from scipy.special import roots_legendre

from fem_hjb.problems.arcs import nearest_parameters
from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.facets import Facets
from fem_hjb.support.checks import FloatArray, IntArray

_LATTICE = np.array([(i, j) for i in range(5) for j in range(5 - i)]) / 4.0  # starts of Newton's method, (15, 2)
_NEIGHBOURS = (np.abs(_LATTICE[:, None] - _LATTICE).max(axis=2) < 0.3) & ~np.eye(len(_LATTICE), dtype=np.bool_)
_NODES = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])  # in the order of nodes
_CORNERS = np.array([(0, 1), (0, 2), (1, 2)])  # between which the last three of them are
_MIDDLE = np.full((1, 2), 1.0 / 3.0)
_SPOTS = np.array([(1.0, 1.0), (0.3, 0.3), (2.4, 0.3), (0.3, 2.4)]) / 3.0  # where normals are looked at
_STEPS = 30  # of Newton's method, at most
_SETTLED = 1e-14  # a step of it that is the last
_REACH = 0.25  # beyond the reference triangle, that its iterates may go
_MILD = 0.25  # least over largest speed through a patch, above which it is met once at most
_FARTHER = 4.0 / 3.0  # times as far from a flat triangle as the nodes between corners are, a patch is at most
_EDGE = 1e-9  # of its parameters: as far beyond its edges a patch still counts as met


@final
class Patches(Facets):
    """m patches x(u, v), quadratic on the triangle u, v >= 0, u + v <= 1, of nodes (m, 6, 3): corners x(0, 0), x(1, 0),
    x(0, 1), and what is between the first two, the first and the last, the last two.

    side (m,) : 1 where x_u x x_v points out of the domain, else -1.  slack : a distance that counts as rounding.
    """

    def __init__(self, nodes: FloatArray, side: FloatArray, slack: float) -> None:
        a, b, c = corners = nodes[:, :3].swapaxes(0, 1)
        control = 2.0 * nodes[:, 3:] - 0.5 * corners[_CORNERS].sum(axis=1).swapaxes(0, 1)  # the hull holds the patch
        d, e, f = control.swapaxes(0, 1)
        terms = [a, 2.0 * (d - a), 2.0 * (e - a), a + b - 2.0 * d, 2.0 * (a - d - e + f), a + c - 2.0 * e]
        self.terms, self.side = np.stack(terms, axis=1), side  # of 1, u, v, u^2, uv, v^2: (m, 6, 3)
        hull = np.concatenate([nodes[:, :3], control], axis=1)
        super().__init__(hull, np.zeros_like(a), slack)
        self.normals = self._normal(np.arange(len(a)), np.tile(_MIDDLE, (len(a), 1)))
        across = np.cross(b - a, c - a)
        self.flat = Facets(nodes[:, :3], across / np.linalg.norm(across, axis=1, keepdims=True), slack)
        middle = 0.5 * corners[_CORNERS].sum(axis=1).swapaxes(0, 1)
        self.off = _FARTHER * np.linalg.norm(nodes[:, 3:] - middle, axis=2).max(axis=1) + slack
        frame = _frames(self.normals)
        turned = np.einsum("mkd,mid->mki", self.terms, frame)
        seen = _bernstein(np.stack([_determinant(turned, at) for at in _NODES], axis=1)) * side[:, None]
        self.metric = _metric(self.terms)
        self.mild = seen.min(axis=1) > _MILD * seen.max(axis=1)  # all of it is seen from one side, at much one angle

    def at(self, patches: IntArray, w: FloatArray) -> FloatArray:
        """x(w) (n, 3) of these patches (n,) at w = (u, v), (n, 2)."""
        return _at(self.terms[patches], w)

    def _normal(self, patches: IntArray, w: FloatArray) -> FloatArray:
        across = self.side[patches, None] * np.cross(*_slopes(self.terms[patches], w))
        return np.asarray(across / np.linalg.norm(across, axis=1, keepdims=True))

    def touched(self, x: FloatArray, facets: IntArray) -> tuple[FloatArray, FloatArray]:
        w = self._nearest_w(x, facets)
        return self.at(facets, w), self._normal(facets, w)

    def spots(self) -> tuple[FloatArray, FloatArray]:
        patches = np.tile(np.arange(len(self)), len(_SPOTS))
        w = np.repeat(_SPOTS, len(self), axis=0)
        return self.at(patches, w), self._normal(patches, w)

    def moments(self) -> tuple[FloatArray, FloatArray]:
        nodes, weights = roots_legendre(12)
        s, t = (part.ravel() for part in np.meshgrid(0.5 * (nodes + 1.0), 0.5 * (nodes + 1.0), indexing="ij"))
        w, weights = np.stack([s, t * (1.0 - s)], axis=1), 0.25 * np.outer(weights, weights).ravel() * (1.0 - s)
        size, moment = np.zeros(len(self)), np.zeros((len(self), 3))
        for one, weight in zip(w, weights.tolist(), strict=True):
            each = np.broadcast_to(one, (len(self), 2))
            area = weight * np.linalg.norm(np.cross(*_slopes(self.terms, each)), axis=1)
            size += area
            moment += area[:, None] * _at(self.terms, each)
        return size, moment

    def extremes(self) -> FloatArray:
        """Points (k, 3) of the patches among which are those that lie farthest along each axis, either way."""
        each = np.moveaxis(self.terms, 2, 0)  # (3, m, 6): where one coordinate has no slope, within and along edges
        _, u, v, uu, uv, vv = np.moveaxis(each, 2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            det = 4.0 * uu * vv - uv * uv
            flat = [np.stack([uv * v - 2.0 * vv * u, uv * u - 2.0 * uu * v], axis=2) / det[..., None]]
            flat += [np.stack([-u / (2.0 * uu), 0.0 * u], axis=2), np.stack([0.0 * v, -v / (2.0 * vv)], axis=2)]
            along = -(v - u + uv - 2.0 * uu) / (2.0 * (uu - uv + vv))  # of u = 1 - v, in v
            flat += [np.stack([1.0 - along, along], axis=2)]
        w = np.clip(np.nan_to_num(np.concatenate(flat)), 0.0, 1.0)
        w = np.where(w.sum(axis=2, keepdims=True) <= 1.0 + _EDGE, w, 0.0)
        w = np.concatenate([w, np.tile(_NODES[:3, None], (1, len(self), 1))])
        return self.at(np.tile(np.arange(len(self)), len(w)), w.reshape(-1, 2))

    def _between(self, x: FloatArray, facets: IntArray) -> tuple[FloatArray, FloatArray]:
        """By the distance from the triangle of the corners, and how far a patch is from that."""
        far = np.linalg.norm(self.flat._closest(x, facets) - x, axis=1)
        return far - self.off[facets], far + self.off[facets]

    def _closest(self, x: FloatArray, facets: IntArray) -> FloatArray:
        return self.at(facets, self._nearest_w(x, facets))

    def _nearest_w(self, x: FloatArray, patches: IntArray) -> FloatArray:
        """The parameters (n, 2) of the nearest points.

        Where the squared distance is convex, Newton's method finds its only minimum, if that is within the patch. Else
        the best of those along the edges, and of what it leads to from the points of a lattice that are nearer than
        their neighbours, or from all.
        """
        terms = self.terms[patches].copy()
        terms[:, 0] -= x
        convex = self._convex(x, patches, terms)
        far = (np.einsum("lk,nkd->lnd", _powers(_LATTICE), terms) ** 2).sum(axis=2)
        least = np.arange(len(_LATTICE))[:, None] == far.argmin(axis=0)
        several = np.flatnonzero(~convex)
        if several.size:
            some = far[:, several]
            least[:, several] = (some[:, None] <= np.where(_NEIGHBOURS[:, :, None], some[None], np.inf)).all(axis=1)
            least |= ~self.mild[patches] & ~convex
        start, row = np.nonzero(least)
        found, within = _lowest(terms[row], _LATTICE[start])
        known = np.zeros(len(x), dtype=np.bool_)
        known[row] = within & convex[row]
        open_ = np.flatnonzero(~known)
        a, u, v, uu, uv, vv = terms[open_].swapaxes(0, 1)
        one, other = nearest_parameters(a, u, uu), nearest_parameters(a, v, vv)
        third = nearest_parameters(a + u + uu, v - u + uv - 2.0 * uu, uu - uv + vv)
        zero = np.zeros_like(one)
        edges = [np.stack(pair, axis=1) for pair in ((one, zero), (zero, other), (1.0 - third, third))]
        which, w = np.concatenate([row, *[open_] * 3]), np.concatenate([found, *edges])
        far = (_at(terms[which], w) ** 2).sum(axis=1)
        order = np.lexsort([far, which])
        first = order[np.unique(which[order], return_index=True)[1]]
        return np.asarray(w[first])

    def _convex(self, x: FloatArray, patches: IntArray, terms: FloatArray) -> BoolArray:
        """Whether the squared distance from x (n, 3) is seen to be convex on patches: half its Hessian is J'J, bounded
        from below, and what the curvature adds, which is a mean of what it does at the corners of the hull."""
        hull = self.corners[patches] - x[:, None]
        uu, uv, vv = np.einsum("nhd,nkd->knh", hull, terms[:, 3:])
        a, b, c = self.metric[:, patches, None]
        a, b, c = a + 2.0 * uu, b + uv, c + 2.0 * vv
        return np.asarray(((a > 0) & (a * c > b * b)).all(axis=1))

    def _met(self, start: FloatArray, step: FloatArray, facets: IntArray) -> FloatArray:
        """The shares in [0, 1] of steps (n, 3) at which they leave through these patches (n,), inf if they do not.

        Along the step a patch is a quadratic map of the plane, whose zeros Newton's method finds: from the middle where
        the patch is passed at much the same speed everywhere, else from a lattice.
        """
        size = np.linalg.norm(step, axis=1)
        best = np.full(len(start), np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            frame = _frames(step / size[:, None])
            hull = np.einsum("nkd,nid->nki", self.corners[facets] - start[:, None], frame)
            low, high = hull.min(axis=1), hull.max(axis=1)
            near = (low[:, :2] <= self.slack).all(axis=1) & (high[:, :2] >= -self.slack).all(axis=1)
            rows = np.flatnonzero(near & (high[:, 2] >= -self.slack) & (low[:, 2] <= size + self.slack))
            terms = self.terms[facets[rows]].copy()
            terms[:, 0] -= start[rows]
            terms = np.einsum("nkd,nid->nki", terms, frame[rows])
            speed = (
                _bernstein(np.stack([_determinant(terms, at) for at in _NODES], axis=1)) * self.side[facets[rows], None]
            )
            ahead = (speed > 0).any(axis=1)
            once = ahead & (speed.min(axis=1) > _MILD * speed.max(axis=1))
            single, several = np.flatnonzero(once), np.flatnonzero(ahead & ~once)
            which = np.concatenate([single, np.repeat(several, len(_LATTICE))])
            w = np.concatenate([np.tile(_MIDDLE, (len(single), 1)), np.tile(_LATTICE, (len(several), 1))])
            w = _zeros(terms[which], w)
            x, through = _at(terms[which], w), _determinant(terms[which], w) * self.side[facets[rows[which]]]
            inside = (w >= -_EDGE).all(axis=1) & (w.sum(axis=1) <= 1.0 + _EDGE)
            solved = (np.abs(x[:, :2]) <= self.slack).all(axis=1)
            met = inside & solved & (through > 0) & (x[:, 2] >= -self.slack) & (x[:, 2] <= size[rows[which]])
            which, share = rows[which[met]], np.maximum(x[met, 2], 0.0)
            np.minimum.at(best, which, share / size[which])
        return best


def _metric(terms: FloatArray) -> FloatArray:
    """A matrix below J'J on all of a patch, J = (x_u, x_v): its entries uu, uv and vv, (3, m).

    With J_0 that in the middle and |J - J_0| (J_0'J_0)^{-1/2} at most e, at a corner as J is affine, it is (1 - e)^2
    J_0'J_0.
    """
    slopes = [np.stack(_slopes(terms, np.tile(at, (len(terms), 1))), axis=2) for at in (*_MIDDLE, *_NODES[:3])]
    J = slopes[0]
    metric = J.swapaxes(1, 2) @ J
    change = [np.einsum("mij,mik,mkj->m", K - J, K - J, np.linalg.inv(metric)) for K in slopes[1:]]
    metric *= (np.maximum(1.0 - np.sqrt(np.max(change, axis=0)), 0.0) ** 2)[:, None, None]
    return np.stack([metric[:, 0, 0], metric[:, 0, 1], metric[:, 1, 1]])


def _powers(w: FloatArray) -> FloatArray:
    """1, u, v, u^2, uv, v^2 at w (n, 2): (n, 6)."""
    u, v = w.T
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)


def _at(terms: FloatArray, w: FloatArray) -> FloatArray:
    """x (n, 3) of terms (n, 6, 3) at w (n, 2)."""
    return np.asarray(np.einsum("nk,nkd->nd", _powers(w), terms))


def _slopes(terms: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """x_u and x_v, each (n, 3)."""
    u, v = w[:, :1], w[:, 1:]
    _, p, q, uu, uv, vv = terms.swapaxes(0, 1)
    return p + 2.0 * u * uu + v * uv, q + u * uv + 2.0 * v * vv


def _determinant(terms: FloatArray, w: FloatArray) -> FloatArray:
    """Of the slopes of the first two coordinates, (n,), at w (n, 2) or (2,)."""
    p, q = _slopes(terms, np.broadcast_to(w, (len(terms), 2)))
    return np.asarray(p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0])


def _bernstein(values: FloatArray) -> FloatArray:
    """Bernstein coefficients (n, 6) of quadratic functions with these values at the nodes (n, 6), between whose least
    and largest they lie."""
    corners = values[:, :3]
    return np.concatenate([corners, 2.0 * values[:, 3:] - 0.5 * corners[:, _CORNERS].sum(axis=2)], axis=1)


def _frames(unit: FloatArray) -> FloatArray:
    """Right-handed orthonormal frames (n, 3, 3) whose last rows are these unit vectors (n, 3)."""
    axis = np.eye(3)[np.abs(unit).argmin(axis=1)]
    first = np.cross(unit, axis)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(unit, first), unit], axis=1)


def _zeros(terms: FloatArray, w: FloatArray) -> FloatArray:
    """Where (n, 2) Newton's method for zeros of the first two coordinates leads from w."""
    w, moving = w.copy(), np.arange(len(w))
    for _ in range(_STEPS):
        if not moving.size:
            break
        own = terms[moving]
        x, (p, q) = _at(own, w[moving]), _slopes(own, w[moving])
        det = p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
        back = np.stack([x[:, 0] * q[:, 1] - x[:, 1] * q[:, 0], p[:, 0] * x[:, 1] - p[:, 1] * x[:, 0]], axis=1)
        moving = _moved(w, moving, -back / det[:, None])
    return w


def _lowest(terms: FloatArray, w: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Where (n, 2), moved into the triangle, Newton's method for the least distance from 0 leads from w, and whether
    that is a zero of the gradient and needed not be moved."""
    w, moving = w.copy(), np.arange(len(w))
    for _ in range(_STEPS):
        if not moving.size:
            break
        own = terms[moving]
        x, (p, q) = _at(own, w[moving]), _slopes(own, w[moving])
        a, b, c = ((f * g).sum(axis=1) for f, g in ((p, p), (p, q), (q, q)))
        bend = np.einsum("nd,nkd->kn", x, own[:, 3:])
        A, B, C = a + 2.0 * bend[0], b + bend[1], c + 2.0 * bend[2]
        down = (A > 0) & (A * C > B * B)  # else the way of Gauss and Newton, which leads down, too
        A, B, C = np.where(down, A, a), np.where(down, B, b), np.where(down, C, c)
        g, h = (x * p).sum(axis=1), (x * q).sum(axis=1)
        step = np.stack([B * h - C * g, B * g - A * h], axis=1) / (A * C - B * B)[:, None]
        moving = _moved(w, moving, step)
    within = (w >= 0.0).all(axis=1) & (w.sum(axis=1) <= 1.0)
    within[moving] = False
    w = np.maximum(w, 0.0)
    return w / np.maximum(w.sum(axis=1, keepdims=True), 1.0), within


def _moved(w: FloatArray, moving: IntArray, step: FloatArray) -> IntArray:
    """Move those of w that still do, within reach of the triangle; which of them go on."""
    new = np.clip(w[moving] + step, -_REACH, 1.0 + _REACH)
    change = np.abs(new - w[moving]).max(axis=1)
    held = np.isfinite(change)
    w[moving[held]] = new[held]
    return np.asarray(moving[held & (change > _SETTLED)])
