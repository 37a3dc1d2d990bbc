r"""Gram sums on meshes of simplices: moments of the samples in each cell, as in `moments` for tensor products.

On a simplex, with its affine coordinates xi and time, products of (derivatives of) local functions are polynomials of
degree at most 2 p in xi, and derivatives in x are combinations of those in xi that are the same on all of the cell:

    d phi / d x_i = sum_a (d xi_a / d x_i) d phi / d xi_a.

So the moments of the samples with respect to a basis of these polynomials, one set per coefficient of the equation, are
all that is summed up; local matrices are formed once, at the end. In 2-D x time with P2 x quadratics that is 75 numbers
per cell and coefficient, instead of 18 x 18 per form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import final

import numpy as np

from fem_hjb.learning.forms import Integrands
from fem_hjb.learning.moments import (
    MomentSums,
    Orders,
    Term,
    collected,
    legendre_table,
    products_of_derivatives,
    sample_moments,
)
from fem_hjb.learning.samples import Located
from fem_hjb.spaces.line import row_products
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import MeasureError, SpaceError

_SIMPLICES = ("line", "tri", "tet")


def on_simplices(space: Space) -> bool:
    """Whether the class is one of Lagrange elements on a mesh of simplices."""
    spatial = space.spatial
    return isinstance(spatial, MeshBasis) and spatial.affine and spatial.kind in _SIMPLICES


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class SimplexSums(MomentSums):
    """Moments with respect to products of Legendre polynomials of total degree at most 2 p in xi."""

    def _contract(self, terms: Sequence[Term], block: slice, *, bilinear: bool) -> FloatArray:
        space, time = self.space, self.space.time
        cells, times, d = space.spatial.n_cells, block.stop - block.start, space.dim
        moments = self.moments[block.start * cells : block.stop * cells]
        inverse = space.spatial.quadrature(1).inverse[:, 0]  # (cells, a, i)
        parts: dict[tuple[int, int, int, int], FloatArray] = {}
        for term in terms:
            here = term.factor * moments[:, :, term.channel].reshape(times, cells, *moments.shape[1::2])
            trial = term.trial if bilinear else (0,) * (1 + d)
            for (a, one), (b, two) in product(_directions(term.test, inverse), _directions(trial, inverse)):
                key = (term.test[0], trial[0], a, b)
                scaled = here * (one * two)[:, None, None]
                parts[key] = parts[key] + scaled if key in parts else scaled
        tables = _tables(space, bilinear)
        lt, lx = time.local_size, space.spatial.local_size
        total = np.zeros(())
        for (first, second, a, b), here in parts.items():
            in_time = products_of_derivatives(time, (first, second) if bilinear else (first,))[block]
            turned = np.matmul(here.swapaxes(2, 3).reshape(times, -1, here.shape[2]), in_time)
            turned = turned.reshape(times * cells, -1, in_time.shape[2]).swapaxes(1, 2)
            local = turned @ tables[a, b]
            total = np.add(total, local, out=total) if total.ndim else local
        if not bilinear:
            return total.reshape(times * cells, -1)
        return total.reshape(times * cells, lt, lt, lx, lx).transpose(0, 1, 3, 2, 4).reshape(times * cells, -1)


Direction = tuple[int, FloatArray]
"""A derivative in xi (-1: none), and its factor on each cell (cells,)."""


def _directions(orders: Orders, inverse: FloatArray) -> list[Direction]:
    """What a derivative in x is made of; inverse (cells, a, i) : d xi_a / d x_i."""
    of = [i for i, order in enumerate(orders[1:]) for _ in range(order)]
    if not of:
        return [(-1, np.ones(len(inverse)))]
    if len(of) > 1:
        raise SpaceError("Lagrange elements are only continuous: they have no second derivatives")
    return [(a, inverse[:, a, of[0]]) for a in range(inverse.shape[1])]


def _exponents(space: Space) -> IntArray:
    """(K, d), of total degree at most 2 p."""
    most = 2 * space.spatial.degree
    grid = np.indices((most + 1,) * space.dim).reshape(space.dim, -1).T
    return np.asarray(grid[grid.sum(axis=1) <= most], dtype=np.int64)


def _polynomials(xi: FloatArray, exponents: IntArray) -> FloatArray:
    """Products of Legendre polynomials on [0, 1] at xi (m, d), shape (m, K)."""
    tables = [legendre_table(line, int(exponents.max()) + 1) for line in xi.T]
    return reduce(np.multiply, [table[:, powers] for table, powers in zip(tables, exponents.T, strict=True)])


def _tables(space: Space, bilinear: bool) -> dict[tuple[int, int], FloatArray]:
    """What the products of two derivatives of local functions in xi, or one derivative, are in these polynomials.

    Shape (K, l^2) or (K, l), by the numbers of the derivatives; -1 is the value.
    """
    rule = space.spatial.quadrature(4 * space.spatial.degree)
    fitted = np.linalg.pinv(_polynomials(rule.xi, _exponents(space)))
    functions = {-1: rule.phi.T, **{a: rule.dphi[:, :, a].T for a in range(space.dim)}}
    if not bilinear:
        return {(a, -1): fitted @ of for a, of in functions.items()}
    return {(a, b): fitted @ row_products([one, two]) for a, one in functions.items() for b, two in functions.items()}


def simplex_sums(space: Space, at: Located, weights: FloatArray, integrands: Integrands) -> SimplexSums:
    """The sums over samples, all of them inside the space: located points (m,), weights (m,).

    Raises MeasureError if the space is not one of Lagrange elements on simplices.
    """
    if not on_simplices(space):
        raise MeasureError(f"{space!r} has no Lagrange elements on simplices")
    forms, loads, factors = collected(space.dim, integrands)
    exponents = _exponents(space)

    def in_space(xi: FloatArray) -> FloatArray:
        return _polynomials(xi, exponents)

    sizes = 2 * space.time.degree + 1, len(exponents)
    found = sample_moments(space, in_space, sizes, at, weights, factors)
    return SimplexSums(space=space, forms=forms, loads=loads, moments=found)
