"""How smooth f should be where samples say little: the roughness of a class over its cells, and its usual weight."""

from functools import reduce

import numpy as np
import scipy.sparse as sp

from fem_hjb.learning.estimators import Estimator, find_estimator
from fem_hjb.learning.moments import tensor_axes
from fem_hjb.learning.scatter import Scatter
from fem_hjb.spaces.dictionary import Dictionary
from fem_hjb.spaces.line import LineBasis, unit_gauss
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import IntArray

_SLOPE = 0.3
_SMOOTHING = {True: 0.05, False: 0.3}  # by whether the noise vanishes at the solution
_ROUGHER = 10.0  # first derivatives (C0 classes) need more weight than second ones


def is_dictionary(space: Space) -> bool:
    """Whether the class is one of features on all of R^d, without cells."""
    return isinstance(space.spatial, Dictionary)


def default_smoothing(estimator: str | Estimator, space: Space) -> float:
    """What `fit` takes for smoothing=None."""
    if is_dictionary(space):
        return 0.0
    return _SMOOTHING[find_estimator(estimator).exact] * (1.0 if space.smoothness else _ROUGHER)


def roughness(space: Space) -> sp.csr_matrix:
    """sum over cells of int |D f|^2 + |d_tau f|^2, C1 classes: int |D^2 f|^2 + 0.3 |D f|^2 + |d_tau f|^2, in the
    coordinates of the reference cell. The slope tempers linear extrapolation, which would take f below 0."""
    axes = tensor_axes(space)
    if axes is None or not space.smoothness:
        return _slopes_on_cells(space)
    time, *lines = ([_line_roughness(axis, order) for order in (0, 1, 2)] for axis in axes)
    unit = np.eye(space.dim, dtype=np.int64)

    def product(orders: IntArray) -> sp.csr_matrix:
        return reduce(sp.kron, [line[order] for line, order in zip(lines, orders, strict=True)])

    curved = sum(product(i + j) for i in unit for j in unit)
    sloped = sum(product(i) for i in unit)
    return sp.csr_matrix(sp.kron(time[0], curved + _SLOPE * sloped) + sp.kron(time[1], product(0 * unit[0])))


def _line_roughness(axis: LineBasis, order: int) -> sp.csr_matrix:
    """sum over cells of the products of derivatives of this order in the coordinate of the unit cell."""
    xi, weights = unit_gauss(2 * axis.degree)
    cells = np.repeat(np.arange(axis.n_cells), xi.size)
    rows = axis.tabulate(cells, np.tile(xi, axis.n_cells), order)[:, order] * axis.widths[cells, None] ** order
    rows = rows.reshape(axis.n_cells, xi.size, -1)
    local = np.einsum("cqi,q,cqj->cij", rows, weights, rows)
    i = np.repeat(axis.cell_dofs, axis.local_size, axis=1).ravel()
    j = np.tile(axis.cell_dofs, (1, axis.local_size)).ravel()
    return sp.coo_matrix((local.ravel(), (i, j)), shape=(axis.n_dofs,) * 2).tocsr()


def _slopes_on_cells(space: Space) -> sp.csr_matrix:
    """int |D f|^2 + |d_tau f|^2 for elements on meshes."""
    spatial, time = space.spatial, space.time
    rule = spatial.quadrature(2 * spatial.degree)
    rough = np.swapaxes(rule.dphi, 0, 1)
    in_space = np.einsum("q,qik,qjk->ij", rule.weights, rough, rough)
    plain = np.einsum("q,iq,jq->ij", rule.weights, rule.phi, rule.phi)
    tau, weights = unit_gauss(2 * time.degree)
    psi, rate = time.reference(tau), time.reference(tau, 1)
    local = np.kron(np.einsum("q,qi,qj->ij", weights, psi, psi), in_space)
    local += np.kron(np.einsum("q,qi,qj->ij", weights, rate, rate), plain)
    scatter = Scatter(space)
    return scatter.matrix(scatter.data(np.broadcast_to(local, (space.n_cells, *local.shape))))
