"""Curved pieces of a boundary in the plane, the edges of cells of second order."""

from __future__ import annotations

from typing import final

import numpy as np
from scipy.special import roots_legendre

from fem_hjb.problems.facets import Facets
from fem_hjb.support.checks import FloatArray, IntArray

_STARTS = np.linspace(0.0, 1.0, 9)  # of the search for the nearest point
_STEPS = 60  # of it, at most: bisection, where Newton's method does not go downhill
_SPOTS = (0.1, 0.5, 0.9)  # where normals are looked at
_EDGE = 1e-9  # of its parameter: as far beyond its ends an arc still counts as met


@final
class Arcs(Facets):
    """m arcs x(u) = a + u p + u^2 q, 0 <= u <= 1, of nodes (m, 3, 2): their starts, ends, and middles x(1/2).

    side (m,) : 1 where the domain lies to the left of an arc, -1 to the right.  slack : a distance that counts as
    rounding.
    """

    def __init__(self, nodes: FloatArray, side: FloatArray, slack: float) -> None:
        start, end, middle = nodes.swapaxes(0, 1)
        control = 2.0 * middle - 0.5 * (start + end)  # the hull of the three holds the arc
        self.start, self.side = start, side
        self.linear, self.square = 2.0 * (control - start), start + end - 2.0 * control
        super().__init__(np.stack([start, control, end], axis=1), np.zeros_like(start), slack)
        self.normals = self._normal(np.arange(len(start)), np.full(len(start), 0.5))

    def at(self, arcs: IntArray, u: FloatArray) -> FloatArray:
        """x(u) (n, 2) of these arcs (n,)."""
        return np.asarray(self.start[arcs] + u[:, None] * (self.linear[arcs] + u[:, None] * self.square[arcs]))

    def _normal(self, arcs: IntArray, u: FloatArray) -> FloatArray:
        along = self.linear[arcs] + 2.0 * u[:, None] * self.square[arcs]
        across = self.side[arcs, None] * along[:, ::-1] * [1.0, -1.0]
        return np.asarray(across / np.linalg.norm(across, axis=1, keepdims=True))

    def touched(self, x: FloatArray, facets: IntArray) -> tuple[FloatArray, FloatArray]:
        u = self._nearest_u(x, facets)
        return self.at(facets, u), self._normal(facets, u)

    def spots(self) -> tuple[FloatArray, FloatArray]:
        arcs = np.tile(np.arange(len(self)), len(_SPOTS))
        u = np.repeat(np.array(_SPOTS), len(self))
        return self.at(arcs, u), self._normal(arcs, u)

    def moments(self) -> tuple[FloatArray, FloatArray]:
        nodes, weights = roots_legendre(16)
        u = 0.5 * (nodes + 1.0)[:, None, None]
        speed = 0.5 * weights[:, None] * np.linalg.norm(self.linear + 2.0 * u * self.square, axis=2)
        x = self.start + u * (self.linear + u * self.square)
        return np.asarray(speed.sum(axis=0)), np.asarray(np.einsum("qm,qmd->md", speed, x))

    def extremes(self) -> FloatArray:
        """Points (k, 2) of the arcs among which are those that lie farthest along each axis, either way."""
        with np.errstate(divide="ignore", invalid="ignore"):
            turns = np.clip(np.nan_to_num(-self.linear / (2.0 * self.square)), 0.0, 1.0)
        every = np.arange(len(self))
        return np.concatenate([self.at(every, u) for u in (*turns.T, np.zeros(len(self)), np.ones(len(self)))])

    def _closest(self, x: FloatArray, facets: IntArray) -> FloatArray:
        return self.at(facets, self._nearest_u(x, facets))

    def _nearest_u(self, x: FloatArray, arcs: IntArray) -> FloatArray:
        return nearest_parameters(self.start[arcs] - x, self.linear[arcs], self.square[arcs])

    def _met(self, start: FloatArray, step: FloatArray, facets: IntArray) -> FloatArray:
        """The shares in [0, 1] of steps (n, 2) at which they leave through these arcs (n,), inf if they do not.

        Where the line of the step meets the parabola, by the roots of a quadratic in u.
        """
        a, p, q = self.start[facets] - start, self.linear[facets], self.square[facets]
        size = np.linalg.norm(step, axis=1)
        best = np.full(len(start), np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            unit = step / size[:, None]
            across = unit[:, ::-1] * [1.0, -1.0]
            A, B, C = ((f * across).sum(axis=1) for f in (q, p, a))
            root = -0.5 * (B + np.copysign(np.sqrt(B * B - 4.0 * A * C), B))
            for u in (root / A, C / root):
                along = ((a + u[:, None] * (p + u[:, None] * q)) * unit).sum(axis=1)
                speed = self.side[facets] * ((p + 2.0 * u[:, None] * q)[:, ::-1] * [1.0, -1.0] * unit).sum(axis=1)
                met = (u >= -_EDGE) & (u <= 1.0 + _EDGE) & (along >= -self.slack) & (along <= size) & (speed > 0)
                best = np.where(met, np.minimum(best, np.maximum(along, 0.0) / size), best)
        return np.asarray(best)


def nearest_parameters(a: FloatArray, p: FloatArray, q: FloatArray) -> FloatArray:
    """The parameters u (n,) in [0, 1] at which a + u p + u^2 q, each (n, d), is nearest to 0, from the best of some
    starts, or two: there are at most two places where the distance is least among neighbours."""
    at = _STARTS[:, None, None]
    far = ((a + at * (p + at * q)) ** 2).sum(axis=2)
    wide = np.pad(far, ((1, 1), (0, 0)), constant_values=np.inf)
    least = (far < wide[:-2]) & (far <= wide[2:])
    first, other = least.argmax(axis=0), len(_STARTS) - 1 - least[::-1].argmax(axis=0)
    u = _lowest(a, p, q, first)
    two = np.flatnonzero(first != other)
    if two.size:
        a, p, q, one = a[two], p[two], q[two], u[two]
        also = _lowest(a, p, q, other[two])
        squares = [((a + v[:, None] * (p + v[:, None] * q)) ** 2).sum(axis=1) for v in (one, also)]
        u[two] = np.where(squares[1] < squares[0], also, one)
    return u


def _lowest(a: FloatArray, p: FloatArray, q: FloatArray, start: IntArray) -> FloatArray:
    """Where (n,) the distance of a + u p + u^2 q from 0 is least between the neighbours of these starts (n,): a root of
    a cubic, by Newton's method, and by bisection where that leads elsewhere."""
    low, high = _STARTS[np.maximum(start - 1, 0)], _STARTS[np.minimum(start + 1, len(_STARTS) - 1)]
    u = _STARTS[start]
    c = [(f * g).sum(axis=1) for f, g in ((a, p), (a, q), (p, p), (p, q), (q, q))]
    c0, c1, c2, c3 = c[0], c[2] + 2.0 * c[1], 3.0 * c[3], 2.0 * c[4]  # of half the slope of the squared distance
    for _ in range(_STEPS):
        slope = c0 + u * (c1 + u * (c2 + u * c3))
        low, high = np.where(slope < 0, u, low), np.where(slope > 0, u, high)
        rise = c1 + u * (2.0 * c2 + 3.0 * u * c3)
        with np.errstate(divide="ignore", invalid="ignore"):
            new = u - slope / rise
        new = np.where((rise > 0) & (new >= low) & (new <= high), new, 0.5 * (low + high))
        if (np.abs(new - u) <= 1e-15).all():
            break
        u = new
    return u
