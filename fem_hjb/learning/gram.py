r"""Gram matrices of differential operators under weighted points of space-time, streamed: memory does not grow with n.

Wanted are sums over samples i, in one pass over them, for several bilinear forms at once,

    sum_i w_i sum_p (P_p g)(t_i, x_i) (Q_p f)(t_i, x_i),      sum_i w_i sum_p (P_p g)(t_i, x_i) y_i,

with operators P, Q of `forms`. All engines sort the samples by space-time cell, so that the work is one batch of small
dense products.

`TensorSums` (tensor products of piecewise polynomials: C1 cubics, splines). On a cell, products of derivatives of
local functions are polynomials of degree at most 2p in each coordinate. So one needs no basis functions at the samples,
only the moments of the samples with respect to products of Legendre polynomials, one set per coefficient of the
equation; all local matrices are linear in them and are formed once, at the end. In 2-D x time with cubics x quadratics
that is 245 numbers per cell and coefficient, instead of 48 x 48 per form.

`CellSums` (every other class: simplices, dictionaries of features). The rows P g and Q f of all local functions at the
samples are formed, and multiplied cell by cell.

`PairSums`: test and trial functions at two points of different cells, as increments along paths need.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from typing import Any, Self, final

import numpy as np
import scipy.sparse as sp
from numpy.polynomial import legendre

from fem_hjb.learning.forms import Operator, Product
from fem_hjb.spaces.line import LineBasis, row_products, unit_gauss
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import MeasureError

_BLOCK = 64  # samples per dense product
_CHUNK_DOUBLES = 1 << 21  # 16 MB of rows at once
_LOCAL_DOUBLES = 1 << 24  # local matrices formed at once

Load = tuple[Operator, FloatArray]
"""A test operator and the numbers y (m,) it is integrated against."""


@final
@dataclass(frozen=True, eq=False)
class Located:
    """Points in a space: space-time cell (-1 outside), reference coordinates tau (m,) in time and xi (m, d)."""

    cells: IntArray
    tau: FloatArray
    xi: FloatArray

    @classmethod
    def of(cls, space: Space, t: FloatArray, x: FloatArray) -> "Located":
        """The points (t, x) in the cells of a space."""
        cells, (tau, xi) = space.locate(t, x)
        return cls(cells, tau, xi)

    def take(self, rows: IntArray) -> "Located":
        """Some of the points."""
        return Located(self.cells[rows], self.tau[rows], self.xi[rows])


def operator_rows(space: Space, at: Located, operator: Operator) -> FloatArray:
    """The operator applied to all local functions at points (m,), shape (m, lt * lx)."""
    in_time, in_space = np.divmod(at.cells, space.spatial.n_cells)
    psi = space.time.tabulate(in_time, at.tau, 1)
    result = np.zeros((at.cells.size, space.local_size))
    for order, value, gradient, hessian in (
        (0, operator.value, operator.gradient, operator.hessian),
        (1, operator.time, operator.mixed, None),
    ):
        if not (np.ndim(value) == 0 and value == 0.0) or gradient is not None or hessian is not None:
            rows = space.spatial.operator_rows(in_space, at.xi, value, gradient, hessian)
            result += row_products([psi[:, order], rows])
    return result


def take(products: Sequence[Product], rows: IntArray) -> list[Product]:
    """Products of operators at some of the points; what was one operator stays one."""
    made: dict[int, Operator] = {}
    for operator in (op for pair in products for op in pair):
        if id(operator) not in made:
            made[id(operator)] = Operator(
                **{name: _rows_of(getattr(operator, name), constant, rows) for name, constant in _CONSTANT.items()}
            )
    return [(made[id(one)], made[id(two)]) for one, two in products]


_CONSTANT = {"value": 0, "time": 0, "gradient": 1, "mixed": 1, "hessian": 2}  # dimensions of what is constant


def _rows_of(given: Any, constant: int, rows: IntArray) -> Any:
    return given if given is None or np.ndim(given) == constant else given[rows]


def runs(keys: IntArray) -> tuple[IntArray, IntArray]:
    """Where equal neighbours start in a sorted array, and how long the runs are."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return starts, np.diff(starts, append=keys.size)


def run_products(counts: IntArray, left: FloatArray, right: FloatArray) -> FloatArray:
    """sum_i left[i]' right[i] over each of consecutive runs of rows, shape (runs, L, R).

    counts (runs,) are the lengths of the runs, all positive; left (m, L), right (m, R) with m = sum of counts.
    Runs are padded with zeros to whole blocks, so that all the work is one batch of equal dense products.
    """
    if counts.size == 1:
        return (left.T @ right)[None]
    block = int(np.clip(2 ** np.round(np.log2(counts.mean())), 1, _BLOCK))
    blocks = -(-counts // block)
    first = np.cumsum(blocks) - blocks
    total = int(blocks.sum())
    row = np.arange(len(left)) + np.repeat(first * block - (np.cumsum(counts) - counts), counts)
    padded_left = np.zeros((total * block, left.shape[1]))
    padded_right = np.zeros((total * block, right.shape[1]))
    padded_left[row], padded_right[row] = left, right
    products = np.matmul(
        padded_left.reshape(total, block, -1).transpose(0, 2, 1), padded_right.reshape(total, block, -1)
    )
    return np.asarray(np.add.reduceat(products, first, axis=0))


def sorted_order(keys: IntArray, bound: int) -> IntArray:
    """The stable order that sorts keys in [0, bound)."""
    return np.argsort(keys.astype(np.uint16) if bound <= 1 << 16 else keys, kind="stable").astype(np.int64)


def chunks(order: IntArray, width: int) -> Iterator[IntArray]:
    """Consecutive pieces of `order`, of a bounded number of rows of `width` doubles."""
    size = max(_BLOCK, _CHUNK_DOUBLES // width)
    for start in range(0, order.size, size):
        yield order[start : start + size]


@final
class Scatter:
    """Local matrices (n_cells, L, L) of a space to one sparse matrix; the pattern is found once."""

    def __init__(self, space: Space) -> None:
        dofs, n = space.cell_dofs(), space.n_dofs
        keys = (dofs[:, :, None] * n + dofs[:, None, :]).ravel()
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        first = np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]])
        place = np.empty(keys.size, dtype=np.int64)
        place[order] = np.cumsum(first) - 1
        unique = sorted_keys[first]
        self._place = place.reshape(len(dofs), -1)
        self._columns = (unique % n).astype(np.int32)
        self._starts = np.searchsorted(unique // n, np.arange(n + 1)).astype(np.int32)
        self._shape = (n, n)
        self.data_size = int(unique.size)

    def add(self, data: FloatArray, cells: slice, local: FloatArray) -> None:
        """Add local matrices of some cells to the data of a matrix."""
        data += np.bincount(self._place[cells].ravel(), local.ravel(), minlength=data.size)

    def matrix(self, data: FloatArray) -> sp.csr_matrix:
        """The matrix of these data, without stored zeros."""
        result = sp.csr_matrix((data, self._columns.copy(), self._starts.copy()), shape=self._shape)
        result.eliminate_zeros()
        return result


class GramSums(ABC):
    """Sums over samples for several bilinear forms and one linear form, on a space.

    `add` streams samples in; sums on one space over the same kind of forms add up (`+`); `matrices` and `load` are what
    has been summed. Sums hold arrays only, so that workers can send them.
    """

    def __init__(self, space: Space) -> None:
        self.space = space

    @abstractmethod
    def add(
        self, at: Located, weights: FloatArray, forms: Sequence[Sequence[Product]], loads: Sequence[Load] = ()
    ) -> None:
        """Add samples, all of them inside the space: located points (m,), weights (m,), the products of each form.

        Every call on one object must give operators of the same structure.
        """

    @abstractmethod
    def __add__(self, other: Self) -> Self: ...

    @abstractmethod
    def matrices(self, scatter: Scatter) -> list[sp.csr_matrix]:
        """One (n_dofs, n_dofs) matrix per form: rows are tests, columns trials."""

    @abstractmethod
    def load(self) -> FloatArray:
        """(n_dofs,)."""


def gram_sums(space: Space) -> GramSums:
    """The engine for a class."""
    return TensorSums(space) if tensor_axes(space) is not None else CellSums(space)


def tensor_axes(space: Space) -> tuple[LineBasis, ...] | None:
    """Time and the coordinates as piecewise polynomials whose tensor product the space is; None if it is none."""
    axes = getattr(space.spatial, "axes", ())
    if axes and all(isinstance(axis, LineBasis) for axis in axes):
        return (space.time, *axes)
    return None


Orders = tuple[int, ...]
"""Orders of differentiation, of time and then of each coordinate."""


@final
@dataclass(frozen=True)
class _Term:
    """factor * moments of a channel * (test derivative) * (trial derivative), a part of one of the forms."""

    form: int
    test: Orders
    trial: Orders
    factor: float
    channel: int


@final
class TensorSums(GramSums):
    """Legendre moments of the samples in every cell, one set per coefficient ("channel"); see the module."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        axes = tensor_axes(space)
        if axes is None:
            raise MeasureError(f"{space!r} is no tensor product of piecewise polynomials")
        self.axes = axes
        self.sizes = [2 * axis.degree + 1 for axis in axes]
        self.terms: tuple[_Term, ...] = ()
        self.load_terms: tuple[_Term, ...] = ()
        self.forms = 0
        self.moments: FloatArray | None = None

    def add(
        self, at: Located, weights: FloatArray, forms: Sequence[Sequence[Product]], loads: Sequence[Load] = ()
    ) -> None:
        known: dict[tuple[tuple[int, int, int], ...], int] = {}
        channels: list[list[FloatArray]] = []

        def channel(*parts: "_Part") -> int:
            key = tuple(sorted(part.key for part in parts if part.array is not None))
            if key not in known:
                known[key] = len(channels)
                channels.append([part.array for part in parts if part.array is not None])
            return known[key]

        dim = self.space.dim
        terms = [
            _Term(k, test.orders, trial.orders, test.factor * trial.factor, channel(test, trial))
            for k, products in enumerate(forms)
            for one, two in products
            for test, trial in combinations(_parts(one, dim), _parts(two, dim))
        ]
        load_terms = [
            _Term(-1, test.orders, test.orders, test.factor, channel(test, _Part((), 1.0, (id(target), 0, 0), target)))
            for operator, target in loads
            for test in _parts(operator, dim)
        ]
        shape = (self.space.n_cells, self.sizes[0], len(channels), int(np.prod(self.sizes[1:])))
        if self.moments is None:
            self.terms, self.load_terms, self.forms = tuple(terms), tuple(load_terms), len(forms)
            self.moments = np.zeros(shape)
        elif (tuple(terms), tuple(load_terms)) != (self.terms, self.load_terms):
            raise MeasureError("the samples added to one sum must be integrated with operators of the same structure")
        width = self.sizes[0] + (2 * len(channels) + 2) * shape[3]
        for rows in chunks(sorted_order(at.cells, self.space.n_cells), width):
            here = at.take(rows)
            starts, counts = runs(here.cells)
            in_time = legendre_table(here.tau, self.sizes[0])
            in_space = row_products([legendre_table(s, k) for s, k in zip(here.xi.T, self.sizes[1:], strict=True)])
            w = weights[rows]
            right = np.empty((rows.size, len(channels), shape[3]))
            for k, factors in enumerate(channels):
                coefficient = w
                for factor in factors:
                    coefficient = coefficient * factor[rows]
                np.multiply(in_space, coefficient[:, None], out=right[:, k])
            products = run_products(counts, in_time, right.reshape(rows.size, -1))
            self.moments[here.cells[starts]] += products.reshape(starts.size, *shape[1:])

    def __add__(self, other: Self) -> Self:
        if self.moments is None:
            return other
        if other.moments is None:
            return self
        if (self.terms, self.load_terms) != (other.terms, other.load_terms):
            raise MeasureError("only sums of the same forms can be added")
        result = type(self)(self.space)
        result.terms, result.load_terms, result.forms = self.terms, self.load_terms, self.forms
        result.moments = self.moments + other.moments
        return result

    def matrices(self, scatter: Scatter) -> list[sp.csr_matrix]:
        data = np.zeros((self.forms, scatter.data_size))
        cells = self.space.spatial.n_cells
        per_time_cell = cells * self.space.local_size**2
        step = max(1, _LOCAL_DOUBLES // per_time_cell)
        for start in range(0, self.axes[0].n_cells, step):
            block = slice(start, min(start + step, self.axes[0].n_cells))
            where = slice(block.start * cells, block.stop * cells)
            for k in range(self.forms):
                local = self._contract([term for term in self.terms if term.form == k], block, bilinear=True)
                if local is not None:
                    scatter.add(data[k], where, local)
        return [scatter.matrix(row) for row in data]

    def load(self) -> FloatArray:
        everywhere = slice(0, self.axes[0].n_cells)
        local = self._contract(list(self.load_terms), everywhere, bilinear=False)
        if local is None:
            return np.zeros(self.space.n_dofs)
        dofs = self.space.cell_dofs()
        return np.bincount(dofs.ravel(), local.ravel(), minlength=self.space.n_dofs).astype(np.float64)

    def _contract(self, terms: Sequence[_Term], block: slice, *, bilinear: bool) -> FloatArray | None:
        """Local matrices (cells, L, L), or local loads (cells, L), of a block of time cells."""
        if self.moments is None or not terms:
            return None
        grid = [block.stop - block.start, *[axis.n_cells for axis in self.axes[1:]]]
        cells = self.space.spatial.n_cells
        moments = self.moments[block.start * cells : block.stop * cells]
        total: FloatArray | None = None
        for test, trial in dict.fromkeys((term.test, term.trial) for term in terms):
            here = sum(
                term.factor * moments[:, :, term.channel] for term in terms if (term.test, term.trial) == (test, trial)
            )
            array = np.asarray(here).reshape(*grid, *self.sizes)
            for k, axis in enumerate(self.axes):
                orders = (test[k], trial[k]) if bilinear else (test[k],)
                table = _products_of_derivatives(axis, orders)
                table = table[block] if k == 0 else table
                array = _along_axis(array, table, k, len(grid))
            total = array if total is None else np.add(total, array, out=total)
        if total is None:
            return None
        sizes = [axis.local_size for axis in self.axes]
        count = int(np.prod(grid))
        if not bilinear:
            return total.reshape(count, -1)
        d = len(sizes)
        local = total.reshape(count, *[size for size in sizes for _ in (0, 1)])
        return local.transpose(0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2)).reshape(count, -1)


@final
@dataclass(frozen=True, eq=False)
class _Part:
    """factor * array * derivative: one of the derivatives an operator is made of; array None stands for 1."""

    orders: Orders
    factor: float
    key: tuple[int, int, int]
    array: FloatArray | None


def _parts(operator: Operator, d: int) -> list[_Part]:
    """The derivatives that make up an operator, zeros left out. Arrays are known by their identity and component."""
    unit = np.eye(d, dtype=np.int64)
    found: list[_Part] = []

    def put(orders: Sequence[int], factor: float, given: FloatArray | float, i: int = 0, j: int = 0) -> None:
        if np.ndim(given) == 0:
            if float(given) != 0.0:
                found.append(_Part(tuple(map(int, orders)), factor * float(given), (0, 0, 0), None))
            return
        base = np.asarray(given)
        array = base if base.ndim == 1 else base[:, i] if base.ndim == 2 else base[:, i, j]
        found.append(_Part(tuple(map(int, orders)), factor, (id(given), i, j), array))

    put((0, *(0 * unit[0])), 1.0, operator.value)
    put((1, *(0 * unit[0])), 1.0, operator.time)
    for order, vector in ((0, operator.gradient), (1, operator.mixed)):
        if vector is not None:
            for i in range(d):
                put((order, *unit[i]), 1.0, vector if vector.ndim == 2 else float(vector[i]), i)
    if operator.hessian is not None:
        for i in range(d):
            for j in range(i, d):
                matrix = operator.hessian
                orders = (0, *(unit[i] + unit[j]))
                put(orders, 1.0 if i == j else 2.0, matrix if matrix.ndim == 3 else float(matrix[i, j]), i, j)
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


def _products_of_derivatives(axis: LineBasis, orders: tuple[int, ...]) -> FloatArray:
    """Legendre coefficients on each cell of the products of these derivatives of the local functions.

    Shape (n_cells, 2p + 1, l) for one order, (n_cells, 2p + 1, l^2) for two.
    """
    count = 2 * axis.degree + 1
    xi, weights = unit_gauss(4 * axis.degree + 1)
    cells = np.repeat(np.arange(axis.n_cells), xi.size)
    tables = axis.tabulate(cells, np.tile(xi, axis.n_cells), max(orders))
    tables = tables.reshape(axis.n_cells, xi.size, -1, axis.local_size)
    product = row_products([tables[:, :, order].reshape(cells.size, -1) for order in orders])
    project = (2 * np.arange(count) + 1)[:, None] * (legendre.legvander(2 * xi - 1, count - 1) * weights[:, None]).T
    return np.asarray(project @ product.reshape(axis.n_cells, xi.size, -1))


def _along_axis(array: FloatArray, table: FloatArray, axis: int, d: int) -> FloatArray:
    """Replace the first of the moment axes of array (n_0, ..., n_{d-1}, K_axis, ..., rest) by the last axis of
    table (n_axis, K, R), which is put last."""
    moved = np.moveaxis(array, (axis, d), (0, -1))
    shape = moved.shape
    flat = np.matmul(np.ascontiguousarray(moved).reshape(shape[0], -1, shape[-1]), table)
    return np.moveaxis(flat.reshape(*shape[:-1], table.shape[2]), 0, axis)


@final
class CellSums(GramSums):
    """Local matrices and loads, from the rows of all local functions at the samples; see the module."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.local: FloatArray | None = None
        self.moments = np.zeros(space.n_dofs)

    def add(
        self, at: Located, weights: FloatArray, forms: Sequence[Sequence[Product]], loads: Sequence[Load] = ()
    ) -> None:
        space, size = self.space, self.space.local_size
        if self.local is None:
            self.local = np.zeros((len(forms), space.n_cells, size, size))
        elif len(forms) != len(self.local):
            raise MeasureError("the samples added to one sum must be integrated with operators of the same structure")
        operators = list({id(op): op for products in forms for pair in products for op in pair}.values())
        operators += [op for op, _ in loads if all(op is not other for other in operators)]
        tests = list({id(test): test for products in forms for test, _ in products}.values())
        width = (len(operators) + 2) * size + space.spatial.local_size * (1 + space.dim + space.dim**2)
        for rows in chunks(sorted_order(at.cells, space.n_cells), width):
            here = at.take(rows)
            starts, counts = runs(here.cells)
            tables = {
                id(op): operator_rows(space, here, part)
                for op, (part, _) in zip(operators, take([(op, op) for op in operators], rows), strict=True)
            }
            w = weights[rows, None]
            for test in tests:
                pairs = [(k, two) for k, products in enumerate(forms) for one, two in products if one is test]
                trials = list({id(two): two for _, two in pairs}.values())
                right = np.concatenate([tables[id(two)] for two in trials], axis=1)
                products = run_products(counts, tables[id(test)] * w, right)
                for k, two in pairs:
                    at_trial = next(i for i, other in enumerate(trials) if other is two)
                    self.local[k, here.cells[starts]] += products[:, :, at_trial * size : (at_trial + 1) * size]
            for operator, target in loads:
                sums = np.add.reduceat(tables[id(operator)] * (w[:, 0] * target[rows])[:, None], starts)
                dofs = space.cell_dofs(here.cells[starts])
                self.moments += np.bincount(dofs.ravel(), sums.ravel(), minlength=space.n_dofs)

    def __add__(self, other: Self) -> Self:
        if self.local is None:
            return other
        if other.local is None:
            return self
        result = type(self)(self.space)
        result.local, result.moments = self.local + other.local, self.moments + other.moments
        return result

    def matrices(self, scatter: Scatter) -> list[sp.csr_matrix]:
        data = np.zeros((0 if self.local is None else len(self.local), scatter.data_size))
        for k, row in enumerate(data):
            scatter.add(row, slice(None), self.local[k])  # type: ignore[index]
        return [scatter.matrix(row) for row in data]

    def load(self) -> FloatArray:
        return self.moments


@final
class PairSums:
    """sum_i w_i sum_p (P_p g)(here_i) (Q_p f)(then_i): tests and trials at two points, which may lie in two cells."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._sum = sp.csr_matrix((space.n_dofs,) * 2)

    def add(self, here: Located, then: Located, weights: FloatArray, products: Sequence[Product]) -> None:
        """Add pairs of located points (m,), all inside, with weights (m,)."""
        space, size = self.space, self.space.local_size
        keys, number = np.unique(here.cells * space.n_cells + then.cells, return_inverse=True)
        order = sorted_order(number, keys.size)
        width = 2 * (len(products) + 1) * size + 2 * space.spatial.local_size * (1 + space.dim)
        held = max(1, _LOCAL_DOUBLES // size**2)  # pairs of cells whose local matrices are kept
        first = 0
        local = np.zeros((min(held, keys.size), size, size))
        for rows in chunks(order, width):
            starts, counts = runs(number[rows])
            weighted = weights[rows, None]
            blocks = sum(
                run_products(
                    counts,
                    operator_rows(space, here.take(rows), test) * weighted,
                    operator_rows(space, then.take(rows), trial),
                )
                for test, trial in take(products, rows)
            )
            pairs = number[rows[starts]]
            while pairs.size:  # pairs come in order: what is complete is scattered, to make room
                fits = pairs < first + len(local)
                local[pairs[fits] - first] += np.asarray(blocks)[fits]
                pairs, blocks = pairs[~fits], np.asarray(blocks)[~fits]
                if pairs.size:
                    self._scatter(keys[first : first + len(local)], local)
                    first, local[:] = first + len(local), 0.0
        self._scatter(keys[first : first + len(local)], local[: keys.size - first])

    def _scatter(self, keys: IntArray, local: FloatArray) -> None:
        tests, trials = (self.space.cell_dofs(cells) for cells in np.divmod(keys, self.space.n_cells))
        size = local.shape[1]
        rows, columns = np.repeat(tests, size, axis=1).ravel(), np.tile(trials, (1, size)).ravel()
        self._sum = self._sum + sp.coo_matrix((local.ravel(), (rows, columns)), shape=self._sum.shape).tocsr()

    def __add__(self, other: "PairSums") -> "PairSums":
        result = PairSums(self.space)
        result._sum = self._sum + other._sum
        return result

    def matrix(self) -> sp.csr_matrix:
        """(n_dofs, n_dofs): rows are tests, columns trials."""
        return self._sum
