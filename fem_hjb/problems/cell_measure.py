"""Lebesgue measure on the cells of a mesh: volumes, rules of quadrature, and points drawn uniformly."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import roots_legendre

from fem_hjb.problems.locate import REFERENCE_CORNERS, corner_jacobians
from fem_hjb.support.checks import FloatArray, IntArray

_SIMPLICES = ("line", "tri", "tet")


def cell_rule(p: FloatArray, t: IntArray, kind: str, order: int) -> tuple[FloatArray, FloatArray]:
    """Points (m, d) in all cells and weights (m,): exact for polynomials of total degree < 2 order, by Gauss's rule.

    On triangles and tetrahedra that of a square or cube, a side of which is shrunk to a point (Duffy).
    """
    d = p.shape[0]
    nodes, weights = roots_legendre(order + (d > 1))
    grids = np.meshgrid(*[0.5 * (nodes + 1.0)] * d, indexing="ij")
    xi = np.stack([grid.ravel() for grid in grids], axis=-1)
    w = np.prod([grid.ravel() for grid in np.meshgrid(*[0.5 * weights] * d, indexing="ij")], axis=0)
    if kind in _SIMPLICES:
        left = 1.0 - xi
        for k in range(d - 1):
            w = w * left[:, k] ** (d - 1 - k)
            xi[:, k + 1] *= left[:, : k + 1].prod(axis=1)
    x, det = _mapped(p, t, kind, xi)
    return x.reshape(-1, d), (w * det).ravel()


def drawn_in_cells(p: FloatArray, t: IntArray, kind: str, n: int, rng: np.random.Generator) -> FloatArray:
    """n points (n, d) drawn uniformly from the union of the cells."""
    d = p.shape[0]
    _, weights = cell_rule(p, t, kind, 1)
    volumes = weights.reshape(t.shape[1], -1).sum(axis=1)
    cells = rng.choice(t.shape[1], size=n, p=volumes / volumes.sum())
    if kind in _SIMPLICES:
        shares = rng.exponential(size=(n, d + 1))
        shares /= shares.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("nl,lnd->nd", shares, p.T[t[:, cells]]))
    most, result = _largest(p, t, kind), np.empty((n, d))
    left = np.arange(n)
    while left.size:  # where a cell is wider there are to be more points in it
        x, det = _mapped(p, t[:, cells[left]], kind, rng.random((left.size, d)), each=True)
        kept = rng.random(left.size) * most[cells[left]] <= det
        result[left[kept]] = x[kept]
        left = left[~kept]
    return result


def _mapped(
    p: FloatArray, t: IntArray, kind: str, xi: FloatArray, *, each: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Points (nc, q, d) and |det J| (nc, q) at reference points (q, d); each: the i-th in the i-th cell alone."""
    corners, x = REFERENCE_CORNERS[kind], p.T[t]
    if kind in _SIMPLICES:
        values = np.concatenate([1.0 - xi.sum(axis=1, keepdims=True), xi], axis=1)
        slopes = np.broadcast_to(np.vstack([-np.ones(xi.shape[1]), np.eye(xi.shape[1])]), (len(xi), *corners.shape))
    else:
        parts = np.where(corners == 1, xi[:, None], 1.0 - xi[:, None])  # (q, nl, d)
        values = parts.prod(axis=-1)
        signs = 2.0 * corners - 1.0
        others = [np.delete(parts, k, axis=-1).prod(axis=-1) for k in range(xi.shape[1])]
        slopes = np.stack([signs[:, k] * others[k] for k in range(xi.shape[1])], axis=-1)
    if each:
        at, jacobian = np.einsum("ql,lqd->qd", values, x), np.einsum("qlk,lqd->qdk", slopes, x)
    else:
        at, jacobian = np.einsum("ql,lnd->nqd", values, x), np.einsum("qlk,lnd->nqdk", slopes, x)
    return at, np.abs(np.linalg.det(jacobian))


def _largest(p: FloatArray, t: IntArray, kind: str) -> FloatArray:
    """A bound (nc,) of |det J|, which is linear in each column, and columns are averages of those at corners."""
    columns = corner_jacobians(p, t, kind)
    d = p.shape[0]
    mixed = [
        np.linalg.det(np.stack([columns[i, :, :, k] for k, i in enumerate(choice)], axis=-1))
        for choice in itertools.product(range(len(columns)), repeat=d)
    ]
    return np.asarray(np.abs(mixed).max(axis=0))
