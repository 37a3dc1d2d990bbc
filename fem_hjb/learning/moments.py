r"""Gram sums where the class is a tensor product of piecewise polynomials: C1 cubics, splines.

On a cell, products of derivatives of local functions are polynomials of degree at most 2p in each coordinate. So one
needs no basis functions at the samples, only the moments of the samples with respect to products of Legendre
polynomials, one set per coefficient of the equation; all local matrices are linear in them and are formed once, at the
end. In 2-D x time with cubics x quadratics that is 245 numbers per cell and coefficient, instead of 48 x 48 per form.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product as combinations
from typing import Any, Self, final

import numpy as np
import scipy.sparse as sp
from numpy.polynomial import legendre

from fem_hjb.learning.forms import Integrands, Operator
from fem_hjb.learning.samples import Located, chunks, run_products, runs, sorted_order
from fem_hjb.learning.scatter import GramSums, Scatter, at_once
from fem_hjb.spaces.line import LineBasis, row_products, unit_gauss
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import MeasureError


def tensor_axes(space: Space) -> tuple[LineBasis, ...] | None:
    """Time and the coordinates as piecewise polynomials whose tensor product the space is; None if it is none."""
    axes = getattr(space.spatial, "axes", ())
    if axes and all(isinstance(axis, LineBasis) for axis in axes):
        return (space.time, *axes)
    return None


_FEW = 64  # cells, up to which products of derivatives are kept: the largest are a tenth of a megabyte

Orders = tuple[int, ...]
"""Orders of differentiation, of time and then of each coordinate."""


@final
@dataclass(frozen=True)
class Term:
    """factor * moments of a channel * (test derivative) * (trial derivative)."""

    test: Orders
    trial: Orders
    factor: float
    channel: int


@dataclass(frozen=True, eq=False, kw_only=True)
class MomentSums(GramSums):
    """Moments (cells, time, channels, space) of the samples, one set per varying coefficient ("channel").

    forms, loads : what the forms and the load are made of.
    """

    space: Space
    forms: tuple[tuple[Term, ...], ...]
    loads: tuple[Term, ...]
    moments: FloatArray

    def __add__(self, other: Self) -> Self:
        if (self.forms, self.loads) != (other.forms, other.loads):
            raise MeasureError("only sums of the same forms can be added: their operators are of other structure")
        return replace(self, moments=self.moments + other.moments)

    def matrices(self, scatter: Scatter) -> list[sp.csr_matrix]:
        cells, times = self.space.spatial.n_cells, self.space.time.n_cells
        step = at_once(cells * self.space.local_size**2)
        found = []
        for form in self.forms:
            data = scatter.no_data()
            for start in range(0, times, step):
                block = slice(start, min(start + step, times))
                where = slice(block.start * cells, block.stop * cells)
                if form:
                    data += scatter.data(self._contract(form, block, bilinear=True), where)
            found.append(scatter.matrix(data))
        return found

    def load(self) -> FloatArray:
        everywhere = slice(0, self.space.time.n_cells)
        if not self.loads:
            return np.zeros(self.space.n_dofs)
        local = self._contract(self.loads, everywhere, bilinear=False)
        dofs = self.space.cell_dofs()
        return np.bincount(dofs.ravel(), local.ravel(), minlength=self.space.n_dofs).astype(np.float64)

    @abstractmethod
    def _contract(self, terms: Sequence[Term], block: slice, *, bilinear: bool) -> FloatArray:
        """Local matrices (cells, L, L), or local loads (cells, L), of a block of time cells; at least one term."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class TensorSums(MomentSums):
    """Legendre moments where the class is a tensor product of these axes."""

    axes: tuple[LineBasis, ...]

    def _contract(self, terms: Sequence[Term], block: slice, *, bilinear: bool) -> FloatArray:
        grid = [block.stop - block.start, *[axis.n_cells for axis in self.axes[1:]]]
        cells = self.space.spatial.n_cells
        moments = self.moments[block.start * cells : block.stop * cells]
        sizes = _moment_counts(self.axes)
        total = np.zeros(())
        for test, trial in dict.fromkeys((term.test, term.trial) for term in terms):
            here = sum(
                term.factor * moments[:, :, term.channel] for term in terms if (term.test, term.trial) == (test, trial)
            )
            array = np.asarray(here).reshape(*grid, *sizes)
            for k, axis in enumerate(self.axes):
                orders = (test[k], trial[k]) if bilinear else (test[k],)
                table = products_of_derivatives(axis, orders)
                table = table[block] if k == 0 else table
                array = _along_axis(array, table, k, len(grid))
            total = np.add(total, array, out=total) if total.ndim else array
        local_sizes = [axis.local_size for axis in self.axes]
        count = int(np.prod(grid))
        if not bilinear:
            return total.reshape(count, -1)
        d = len(local_sizes)
        local = total.reshape(count, *[size for size in local_sizes for _ in (0, 1)])
        return local.transpose(0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2)).reshape(count, -1)


def tensor_sums(space: Space, at: Located, weights: FloatArray, integrands: Integrands) -> TensorSums:
    """The sums over samples, all of them inside the space: located points (m,), weights (m,).

    Raises MeasureError if the space is no tensor product of piecewise polynomials.
    """
    axes = tensor_axes(space)
    if axes is None:
        raise MeasureError(f"{space!r} is no tensor product of piecewise polynomials")
    forms, loads, factors = collected(space.dim, integrands)
    first, *others = _moment_counts(axes)

    def in_space(xi: FloatArray) -> FloatArray:
        return row_products([legendre_table(s, k) for s, k in zip(xi.T, others, strict=True)])

    found = sample_moments(space, in_space, (first, int(np.prod(others))), at, weights, factors)
    return TensorSums(space=space, axes=axes, forms=forms, loads=loads, moments=found)


def collected(
    dim: int, integrands: Integrands
) -> tuple[tuple[tuple[Term, ...], ...], tuple[Term, ...], list[list[FloatArray]]]:
    """Forms and loads as terms, and per channel what multiplies the weights."""
    channels: _Channels = {}
    parts = [_derivatives(operator, dim, number) for number, operator in enumerate(integrands.operators)]
    forms = tuple(
        tuple(
            Term(one.orders, two.orders, one.factor * two.factor, _channel(channels, one, two))
            for test, trial in form
            for one, two in combinations(parts[test], parts[trial])
        )
        for form in integrands.forms
    )
    loads = tuple(
        Term(one.orders, one.orders, one.factor, _channel(channels, one, _Derivative((), 1.0, (-1 - k,), target)))
        for k, (test, target) in enumerate(integrands.loads)
        for one in parts[test]
    )
    return forms, loads, [arrays for _, arrays in channels.values()]


def sample_moments(
    space: Space,
    in_space: Callable[[FloatArray], FloatArray],
    sizes: tuple[int, int],
    at: Located,
    weights: FloatArray,
    factors: Sequence[Sequence[FloatArray]],
) -> FloatArray:
    """Moments (cells, K_0, channels, K) of the samples, K_0 and K being the sizes.

    in_space : what is averaged in space, xi (m, d) -> (m, K).  factors : per channel, what multiplies the weights.
    """
    first, count = sizes
    shape = (space.n_cells, first, len(factors), count)
    moments = np.zeros(shape)
    for rows in chunks(sorted_order(at.cells, space.n_cells), first + (2 * len(factors) + 2) * count):
        here = at.take(rows)
        starts, counts = runs(here.cells)
        in_time, table = legendre_table(here.tau, first), in_space(here.xi)
        right = np.empty((rows.size, len(factors), count))
        for k, arrays in enumerate(factors):
            coefficient = weights[rows]
            for array in arrays:
                coefficient = coefficient * array[rows]
            np.multiply(table, coefficient[:, None], out=right[:, k])
        products = run_products(counts, in_time, right.reshape(rows.size, -1))
        moments[here.cells[starts]] += products.reshape(starts.size, *shape[1:])
    return moments


def _moment_counts(axes: Sequence[LineBasis]) -> list[int]:
    return [2 * axis.degree + 1 for axis in axes]


_Key = tuple[int, ...]
"""Which array a coefficient is: number of the operator (negative: of a load), field, component; () for none."""


@final
@dataclass(frozen=True, eq=False)
class _Derivative:
    """factor * array * derivative: one of the derivatives an operator is made of; array None stands for 1."""

    orders: Orders
    factor: float
    key: _Key
    array: FloatArray | None


_Channels = dict[tuple[_Key, ...], tuple[int, list[FloatArray]]]
"""Number and factors of the channels by what they are products of."""


def _channel(channels: _Channels, *parts: _Derivative) -> int:
    """The number of the channel of a product, which is put there if it is new."""
    key = tuple(sorted(part.key for part in parts if part.array is not None))
    arrays = [part.array for part in parts if part.array is not None]
    return channels.setdefault(key, (len(channels), arrays))[0]


def _derivatives(operator: Operator, d: int, number: int) -> list[_Derivative]:
    """The derivatives that make up an operator of this number, zeros left out."""
    unit = np.eye(d, dtype=np.int64)
    found: list[_Derivative] = []

    def put(
        field: int, orders: Sequence[int], given: FloatArray | float, factor: float = 1.0, at: tuple[int, ...] = ()
    ) -> None:
        """given : a number or array of the field, whose component is at these indices."""
        orders = tuple(map(int, orders))
        index: Any = (Ellipsis, *at)
        component = np.asarray(given)[index]
        if component.ndim:
            found.append(_Derivative(orders, factor, (number, field, *at), component))
        elif component:
            found.append(_Derivative(orders, factor * float(component), (), None))

    put(0, (0, *(0 * unit[0])), operator.value)
    put(1, (1, *(0 * unit[0])), operator.time)
    for field, order, vector in ((2, 0, operator.gradient), (3, 1, operator.mixed)):
        if vector is not None:
            for i in range(d):
                put(field, (order, *unit[i]), vector, at=(i,))
    if operator.hessian is not None:
        for i in range(d):
            for j in range(i, d):
                put(4, (0, *(unit[i] + unit[j])), operator.hessian, factor=1.0 if i == j else 2.0, at=(i, j))
    return found


def legendre_table(xi: FloatArray, count: int) -> FloatArray:
    """The Legendre polynomials of degree < count on [0, 1] at xi (m,), shape (m, count)."""
    z = 2.0 * xi - 1.0
    table = np.empty((count, xi.size))
    table[0] = 1.0
    if count > 1:
        table[1] = z
    for k in range(1, count - 1):
        table[k + 1] = ((2 * k + 1) * z * table[k] - k * table[k - 1]) / (k + 1)
    return np.ascontiguousarray(table.T)


def products_of_derivatives(axis: LineBasis, orders: tuple[int, ...]) -> FloatArray:
    """Legendre coefficients on each cell of the products of these derivatives of the local functions.

    Shape (n_cells, 2p + 1, l) for one order, (n_cells, 2p + 1, l^2) for two; read-only.
    """
    if axis.n_cells > _FEW:
        return _products(axis, orders)
    return _kept(axis.points.tobytes(), axis.kind, axis.flat, orders)


@lru_cache(maxsize=256)
def _kept(grid: bytes, kind: str, flat: bool, orders: tuple[int, ...]) -> FloatArray:
    """System after system is made of the same classes."""
    return _products(LineBasis(np.frombuffer(grid), kind, flat=flat), orders)


def _products(axis: LineBasis, orders: tuple[int, ...]) -> FloatArray:
    count = 2 * axis.degree + 1
    xi, weights = unit_gauss(4 * axis.degree + 1)
    cells = np.repeat(np.arange(axis.n_cells), xi.size)
    tables = axis.tabulate(cells, np.tile(xi, axis.n_cells), max(orders))
    tables = tables.reshape(axis.n_cells, xi.size, -1, axis.local_size)
    product = row_products([tables[:, :, order].reshape(cells.size, -1) for order in orders])
    project = (2 * np.arange(count) + 1)[:, None] * (legendre.legvander(2 * xi - 1, count - 1) * weights[:, None]).T
    made = np.asarray(project @ product.reshape(axis.n_cells, xi.size, -1))
    made.setflags(write=False)
    return made


def _along_axis(array: FloatArray, table: FloatArray, axis: int, d: int) -> FloatArray:
    """Replace the first of the moment axes of array (n_0, ..., n_{d-1}, K_axis, ..., rest) by the last axis of
    table (n_axis, K, R), which is put last."""
    moved = np.moveaxis(array, (axis, d), (0, -1))
    shape = moved.shape
    flat = np.matmul(np.ascontiguousarray(moved).reshape(shape[0], -1, shape[-1]), table)
    return np.moveaxis(flat.reshape(*shape[:-1], table.shape[2]), 0, axis)
