r"""Gram matrices of differential operators under weighted points of space-time, streamed: memory does not grow with n.

Wanted are sums over samples i, in one pass over them, for several bilinear forms at once,

    sum_i w_i sum_p (P_p g)(t_i, x_i) (Q_p f)(t_i, x_i),      sum_i w_i sum_p (P_p g)(t_i, x_i) y_i,

with operators P, Q of `forms`. All engines sort the samples by space-time cell, so that the work is one batch of small
dense products.

`tensor_sums` (tensor products of piecewise polynomials: C1 cubics, splines) needs no basis functions at the samples,
only moments: see `moments`.

`simplex_sums` (Lagrange elements on simplices) does the same with the polynomials of a simplex: see `simplices`.

`instant_sums` (dictionaries of features at samples that share their times, as those of trajectories do): products of
features alone, instant by instant, and functions of time afterwards.

`cell_sums` (every other class: squares and cubes of a mesh, dictionaries at random times). The rows P g and Q f of all
local functions at the samples are formed, and multiplied cell by cell.

`pair_sums`: test and trial functions at two points of different cells, as increments along paths need.
"""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import scipy.sparse as sp

from fem_hjb.learning.forms import Integrands, Operator
from fem_hjb.learning.moments import tensor_axes, tensor_sums
from fem_hjb.learning.samples import Located, chunks, operator_rows, run_products, runs, sorted_order
from fem_hjb.learning.scatter import GramSums, Scatter, at_once
from fem_hjb.learning.simplices import on_simplices, simplex_sums
from fem_hjb.spaces.dictionary import Dictionary
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import MeasureError

_TOGETHER = 16  # samples at one time, in the mean, from which on products are formed instant by instant


def gram_sums(space: Space, at: Located, weights: FloatArray, integrands: Integrands) -> GramSums:
    """The sums over samples, all of them inside the space: located points (m,), weights (m,)."""
    if tensor_axes(space) is not None:
        return tensor_sums(space, at, weights, integrands)
    if isinstance(space.spatial, Dictionary) and at.tau.size >= _TOGETHER * np.unique(_instants(at)).size:
        return instant_sums(space, at, weights, integrands)
    return (simplex_sums if on_simplices(space) else cell_sums)(space, at, weights, integrands)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class CellSums(GramSums):
    """Local matrices (forms, cells, L, L), and the load (N,)."""

    local: FloatArray
    loads: FloatArray

    def __add__(self, other: "CellSums") -> "CellSums":
        if len(self.local) != len(other.local):
            raise MeasureError("only sums of the same forms can be added: their operators are of other structure")
        return replace(self, local=self.local + other.local, loads=self.loads + other.loads)

    def matrices(self, scatter: Scatter) -> list[sp.csr_matrix]:
        return [scatter.matrix(scatter.data(local)) for local in self.local]

    def load(self) -> FloatArray:
        return self.loads


def cell_sums(space: Space, at: Located, weights: FloatArray, integrands: Integrands) -> CellSums:
    """As `gram_sums`, from the rows of all local functions at the samples."""
    size, forms = space.local_size, integrands.forms
    local, loads = np.zeros((len(forms), space.n_cells, size, size)), np.zeros(space.n_dofs)
    width = (len(integrands.operators) + 2) * size + space.spatial.local_size * (1 + space.dim + space.dim**2)
    for rows in chunks(sorted_order(at.cells, space.n_cells), width):
        here, part, w = at.take(rows), integrands.take(rows), weights[rows, None]
        starts, counts = runs(here.cells)
        tables = [operator_rows(space, here, operator) for operator in part.operators]
        for test in dict.fromkeys(test for form in forms for test, _ in form):
            pairs = [(k, trial) for k, form in enumerate(forms) for one, trial in form if one == test]
            trials = list(dict.fromkeys(trial for _, trial in pairs))
            right = np.concatenate([tables[trial] for trial in trials], axis=1)
            products = run_products(counts, tables[test] * w, right)
            for k, trial in pairs:
                first = trials.index(trial) * size
                local[k, here.cells[starts]] += products[:, :, first : first + size]
        for test, target in part.loads:
            sums = np.add.reduceat(tables[test] * (w[:, 0] * target)[:, None], starts)
            dofs = space.cell_dofs(here.cells[starts])
            loads += np.bincount(dofs.ravel(), sums.ravel(), minlength=space.n_dofs)
    return CellSums(local=local, loads=loads)


def instant_sums(space: Space, at: Located, weights: FloatArray, integrands: Integrands) -> CellSums:
    """As `cell_sums`, for one cell in space, which is all of it: the samples of an instant share functions of time.

    An operator is psi(t) A + psi'(t) B with operators A and B on features, and at an instant
    sum_i w_i (P g)(Q f) = sum over such parts of psi^(r) psi^(s) (sum_i w_i (A_r g)(x_i) (A_s f)(x_i)).
    """
    lt, lx = space.time.local_size, space.spatial.local_size
    count, size = len(integrands.forms), space.local_size
    local, loads = np.zeros((count, space.n_cells, lt, lx, lt, lx)), np.zeros((space.time.n_dofs, lx))
    width = (2 * len(integrands.operators) + 2) * lx
    for rows in chunks(np.lexsort((at.tau, at.cells)), width):
        here, part, w = at.take(rows), integrands.take(rows), weights[rows, None]
        starts, counts = runs(_instants(here))
        cells = here.cells[starts]
        first, _ = runs(cells)
        psi = space.time.tabulate(cells, here.tau[starts], 1)
        tables = [_parts(space, here, operator) for operator in part.operators]
        for k, form in enumerate(part.forms):
            products: dict[tuple[int, int], FloatArray | float] = {}
            for test, trial in form:
                for r, left in tables[test].items():
                    for s, right in tables[trial].items():
                        products[r, s] = products.get((r, s), 0.0) + run_products(counts, left * w, right)
            for (r, s), product in products.items():
                for a, b in np.ndindex(lt, lt):
                    share = (psi[:, r, a] * psi[:, s, b])[:, None, None] * product
                    local[k, cells[first], a, :, b, :] += np.add.reduceat(share, first)
        for test, target in part.loads:
            for r, left in tables[test].items():
                sums = np.add.reduceat(left * (w[:, 0] * target)[:, None], starts)
                np.add.at(loads, space.time.cell_dofs[cells], psi[:, r, :, None] * sums[:, None, :])
    return CellSums(local=local.reshape(count, space.n_cells, size, size), loads=loads.ravel())


def _instants(at: Located) -> FloatArray:
    """One number for each time; tau is at most 1, so that those of two cells in time are different."""
    return np.asarray(2.0 * at.cells + at.tau)


def _parts(space: Space, at: Located, operator: Operator) -> dict[int, FloatArray]:
    """What an operator does to features at points, (m, lx), by the order of the derivative in time beside it."""
    whole = np.zeros(at.cells.size, dtype=np.int64)
    given = {0: (operator.value, operator.gradient, operator.hessian), 1: (operator.time, operator.mixed, None)}
    return {
        order: space.spatial.operator_rows(whole, at.xi, value, gradient, hessian)
        for order, (value, gradient, hessian) in given.items()
        if not (np.ndim(value) == 0 and value == 0.0) or gradient is not None or hessian is not None
    }


def pair_sums(space: Space, here: Located, then: Located, weights: FloatArray, integrands: Integrands) -> sp.csr_matrix:
    """sum_i w_i sum_p (P_p g)(here_i) (Q_p f)(then_i), (N, N): tests and trials at two points, maybe of two cells.

    here, then : located points (m,), all inside, with weights (m,).  integrands : the sum of its forms is taken.
    """
    size = space.local_size
    total = sp.csr_matrix((space.n_dofs,) * 2)
    if not here.cells.size:
        return total
    keys, number = np.unique(here.cells * space.n_cells + then.cells, return_inverse=True)
    order = sorted_order(number, keys.size)
    pairings = [pairing for form in integrands.forms for pairing in form]
    width = 2 * (len(pairings) + 1) * size + 2 * space.spatial.local_size * (1 + space.dim)
    local = np.zeros((min(at_once(size**2), keys.size), size, size))  # of the pairs of cells from the first one on
    first = 0
    for rows in chunks(order, width):
        starts, counts = runs(number[rows])
        at, later, part = here.take(rows), then.take(rows), integrands.take(rows)
        blocks = np.zeros((starts.size, size, size))
        for test, trial in pairings:
            tests = operator_rows(space, at, part.operators[test]) * weights[rows, None]
            blocks += run_products(counts, tests, operator_rows(space, later, part.operators[trial]))
        pairs = number[rows[starts]]
        while pairs.size:  # pairs come in order: what is complete is scattered, to make room
            fits = pairs < first + len(local)
            local[pairs[fits] - first] += blocks[fits]
            pairs, blocks = pairs[~fits], blocks[~fits]
            if pairs.size:
                total = total + _scattered(space, keys[first : first + len(local)], local)
                first, local[:] = first + len(local), 0.0
    return total + _scattered(space, keys[first : first + len(local)], local[: keys.size - first])


def _scattered(space: Space, keys: IntArray, local: FloatArray) -> sp.csr_matrix:
    tests, trials = (space.cell_dofs(cells) for cells in np.divmod(keys, space.n_cells))
    size = local.shape[1]
    rows, columns = np.repeat(tests, size, axis=1).ravel(), np.tile(trials, (1, size)).ravel()
    return sp.coo_matrix((local.ravel(), (rows, columns)), shape=(space.n_dofs,) * 2).tocsr()
