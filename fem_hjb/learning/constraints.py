r"""Convex sets of functions in a space-time class.

A function of a class is its coefficients c in R^N. A constraint such as 0 <= f <= 1 becomes rows lower <= A c <= upper
that hold on all of [0, T] x domain, not only at nodes: on every cell f (or its derivative) is a polynomial, and lies in
the convex hull of its Bernstein coefficients, which are linear in c. The rows are these coefficients, so that a
`LinearSet` is a closed convex subset of {f in the class: the constraint holds everywhere}. It is smaller than that
set, by an amount that vanishes with the square of the cell width, and equal to it for piecewise linear functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import factorial
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.special import comb

from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, frozen_array, positive_number, real_array
from fem_hjb.support.errors import ConstraintError, SpaceError

_NEGLIGIBLE = 1e-12  # relative to the row: entries that are zero but for rounding


# Rows: Bernstein coefficients as linear functions of the coefficients of the class


def _tensor_bernstein(degrees: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Domain points (n, d) in the unit cube, and the matrix (n, n) from values there to Bernstein coefficients."""
    points: list[FloatArray] = []
    inverse: FloatArray = np.ones((1, 1))
    for p in degrees:
        x = np.arange(p + 1) / p if p else np.array([0.5])
        k = np.arange(p + 1)
        values = comb(p, k) * x[:, None] ** k * (1 - x[:, None]) ** (p - k)
        inverse = np.asarray(np.kron(inverse, np.linalg.inv(values)), dtype=np.float64)
        points.append(x)
    grid = np.stack([g.ravel() for g in np.meshgrid(*points, indexing="ij")], axis=-1)
    return grid, inverse


def _simplex_bernstein(degree: int, dim: int) -> tuple[FloatArray, FloatArray]:
    """The same on the unit simplex, of total degree `degree`."""
    index = np.array([a for a in product(range(degree + 1), repeat=dim + 1) if sum(a) == degree])
    barycentric = index / degree if degree else np.full((1, dim + 1), 1 / (dim + 1))
    multinomial = [factorial(degree) / np.prod([factorial(k) for k in a]) for a in index.tolist()]
    vandermonde = multinomial * np.prod(barycentric[:, None, :] ** index, axis=-1)
    return barycentric[:, 1:], np.linalg.inv(vandermonde)


def _scatter(local: FloatArray, columns: NDArray[np.int64], n_dofs: int) -> sp.csr_matrix:
    """A matrix with rows local (r, l) at columns (r, l), without the entries that are rounding errors."""
    kept = np.abs(local) > _NEGLIGIBLE * np.abs(local).max(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(len(local))[:, None], local.shape)
    return sp.coo_matrix((local[kept], (rows[kept], columns[kept])), shape=(len(local), n_dofs)).tocsr()


def _unit_rows(rows: sp.csr_matrix) -> sp.csr_matrix:
    """Rows scaled to a largest entry of 1, which a bound of 0 allows."""
    return sp.csr_matrix(sp.diags(1.0 / abs(rows).max(axis=1).toarray().ravel()) @ rows)


def _first_of_equal(rows: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the distinct rows, in their order, and for every row the position of its like among them."""
    probes = np.cos(np.outer(np.arange(1, rows.shape[1] + 1), np.sqrt([2.0, 3.0, 5.0])))
    keys = np.rint(1e8 * (rows @ probes)).astype(np.int64)
    _, first, like = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(order.size)
    return first[order], position[like.ravel()]


def _without_rounding(rows: sp.csr_matrix) -> sp.csr_matrix:
    coo = rows.tocoo()
    kept = np.abs(coo.data) > _NEGLIGIBLE * np.abs(coo.data).max(initial=0.0)
    return sp.csr_matrix((coo.data[kept], (coo.row[kept], coo.col[kept])), shape=coo.shape)


def is_identity(rows: sp.csr_matrix) -> bool:
    """Whether the rows are the coefficients themselves."""
    return bool(rows.shape[0] == rows.shape[1] and (rows != sp.identity(rows.shape[0], format="csr")).nnz == 0)


def _bernstein_of(axis: LineBasis, derivative: int) -> FloatArray:
    """Bernstein coefficients (cells, p + 1, l) of that derivative of the functions of every cell."""
    size = axis.degree - derivative + 1
    xi, inverse = _tensor_bernstein([size - 1])
    cells = np.repeat(np.arange(axis.n_cells), size)
    tables = axis.tabulate(cells, np.tile(xi[:, 0], axis.n_cells), derivative)[:, derivative]
    return np.asarray(inverse @ tables.reshape(axis.n_cells, size, -1))


def _line_rows(axis: LineBasis, derivative: int = 0) -> sp.csr_matrix:
    """The Bernstein coefficients of that derivative of a function of one variable, cell after cell.

    Of two equal coefficients at a grid point one is kept; none where the derivative is C1, for there they are a mean
    of their neighbours. A basis of non-negative functions of sum 1 (P1, B-splines) is left as it is: its own
    coefficients bound the function, and their divided differences its derivatives.
    """
    values = _bernstein_of(axis, 0)
    if values.min() > -_NEGLIGIBLE and np.abs(values.sum(axis=2) - 1.0).max() < _NEGLIGIBLE:
        return _divided_differences(axis, derivative)
    local = _bernstein_of(axis, derivative) if derivative else values
    smoothness = axis.smoothness - derivative
    kept = np.ones(local.shape[:2], dtype=np.bool_)
    kept[1:, 0] = smoothness < 0
    kept[:-1, -1] = smoothness < 1
    columns = np.broadcast_to(axis.cell_dofs[:, None, :], local.shape)
    return _scatter(local[kept], columns[kept], axis.n_dofs)


def _divided_differences(axis: LineBasis, order: int) -> sp.csr_matrix:
    """Divided differences of the coefficients over the nodes, which for splines are the Greville points.

    Splines that are flat at the ends store two equal coefficients once: differences are of both, but not between them.
    """
    if not order:
        return sp.identity(axis.n_dofs, format="csr")
    full = LineBasis(axis.points, axis.kind)
    stored = np.empty(full.n_dofs, dtype=np.int64)
    stored[full.cell_dofs] = axis.cell_dofs
    rows = sp.identity(axis.n_dofs, format="csr")[stored]
    rows = sp.csr_matrix(sp.diags(1.0 / np.diff(full.nodes)) @ (rows[1:] - rows[:-1]))
    if order == 2:
        rows = rows[1:] - rows[:-1]
    return rows[abs(rows).max(axis=1).toarray().ravel() > 0]


def _mesh_values(basis: MeshBasis) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Bernstein coefficients on a mesh, and the inverse; row j is that at the node of dof j, a domain point."""
    xi, inverse = _mesh_bernstein(basis, [basis.degree] * basis.dim, basis.degree)
    nodes = np.rint(basis.tabulate(np.zeros(len(xi), dtype=np.int64), xi, 0)[0])
    local: FloatArray = nodes.T @ inverse @ nodes
    _, first = np.unique(basis.cell_dofs, return_index=True)
    cells, function = np.divmod(first, basis.local_size)
    columns = basis.cell_dofs[cells]
    both = [_scatter(np.asarray(table)[function], columns, basis.n_dofs) for table in (local, np.linalg.inv(local))]
    return both[0], both[1]


def _mesh_slopes(basis: MeshBasis, axis: int) -> sp.csr_matrix:
    """The distinct Bernstein coefficients of d f / d x_axis on the cells of a mesh."""
    if not basis.affine:
        raise SpaceError(
            "Monotone needs cells that are affine images of the reference cell, where slopes are polynomials; got a"
            f" mesh of {basis.kind} cells that are not; use simplices, or parallelepipeds"
        )
    degrees = [basis.degree] * basis.dim
    along = np.abs(basis.quadrature(0).inverse[:, 0, :, axis]).max(axis=0)
    if (along > _NEGLIGIBLE * along.max()).sum() == 1:
        degrees[int(along.argmax())] -= 1
    xi, inverse = _mesh_bernstein(basis, degrees, basis.degree - 1)
    cells = np.repeat(np.arange(basis.n_cells), len(xi))
    slopes = basis.tabulate(cells, np.tile(xi, (basis.n_cells, 1)), 1)[1][:, :, axis]
    local = inverse @ slopes.reshape(basis.n_cells, len(xi), -1)
    columns = np.broadcast_to(basis.cell_dofs[:, None, :], local.shape).reshape(len(cells), -1)
    rows = _unit_rows(_scatter(local.reshape(len(cells), -1), columns, basis.n_dofs))
    return rows[_first_of_equal(rows)[0]]


def _mesh_bernstein(basis: MeshBasis, degrees: Sequence[int], total: int) -> tuple[FloatArray, FloatArray]:
    if basis.kind in ("line", "tri", "tet"):
        return _simplex_bernstein(total, basis.dim)
    return _tensor_bernstein(degrees)


def _space_rows(space: Space, axis: int = 0, derivative: int = 0) -> tuple[sp.csr_matrix, sp.csr_matrix | None]:
    """Rows of a derivative along an axis of x, and for values their inverse if they are another basis of the class."""
    basis = space.spatial
    lines: tuple[LineBasis, ...] | None = getattr(basis, "axes", None)
    if lines is not None:
        factors = [_line_rows(line, derivative if k == axis else 0) for k, line in enumerate(lines)]
        inverses = [_inverse(factor) for factor in factors] if not derivative else [None]
        rows = reduce(lambda a, b: sp.kron(a, b, format="csr"), factors)
        if any(inverse is None for inverse in inverses):
            return rows, None
        return rows, reduce(lambda a, b: sp.kron(a, b, format="csr"), inverses)
    if isinstance(basis, MeshBasis):
        if derivative:
            return _mesh_slopes(basis, axis), None
        return _mesh_values(basis)
    raise SpaceError(f"constraints need piecewise polynomials on a mesh or a box, got {type(basis).__name__}")


def _inverse(rows: sp.csr_matrix) -> sp.csr_matrix | None:
    """The inverse of the value rows of a line, if they are square."""
    if is_identity(rows):
        return rows
    return _without_rounding(sp.linalg.inv(rows.tocsc())) if rows.shape[0] == rows.shape[1] else None


def _rows(space: Space, axis: int = 0, derivative: int = 0) -> tuple[sp.csr_matrix, sp.csr_matrix | None]:
    """Rows (m, N) whose bounds hold on all space-time cells, scaled to 1 if those are slopes; and their inverse."""
    if not isinstance(space, Space):
        raise SpaceError(f"a constraint is on a Space, got {type(space).__name__}")
    in_time = _line_rows(space.time)
    in_space, inverse = _space_rows(space, axis, derivative)
    rows = sp.kron(in_time, in_space, format="csr")
    if derivative:
        return _unit_rows(rows), None
    of_time = _inverse(in_time)
    return rows, None if inverse is None or of_time is None else sp.kron(of_time, inverse, format="csr")


# Sets


def energy_norm(metric: Any, c: FloatArray) -> float:
    """|c|_E."""
    return float(np.sqrt(max(float(c @ (metric @ c)), 0.0)))


def square_matrix(matrix: Any, name: str, size: int) -> sp.csr_matrix:
    """A sparse float matrix (size, size) with a positive diagonal."""
    if not sp.issparse(matrix) and np.ndim(matrix) != 2:
        raise ConstraintError(f"{name} must be a matrix, sparse or dense, got {type(matrix).__name__}")
    square = sp.csr_matrix(matrix, dtype=np.float64)
    if square.shape != (size, size) or not np.isfinite(square.data).all():
        raise ConstraintError(
            f"{name} must be a finite matrix of shape ({size}, {size}), as the set has {size} coefficients, got shape"
            f" {square.shape} with {int((~np.isfinite(square.data)).sum())} non-finite entries"
        )
    lost = int((square.diagonal() <= 0).sum())
    if lost:
        raise ConstraintError(
            f"{name} must have a positive definite symmetric part, got {lost} diagonal entries that are not positive;"
            " leave these coefficients out, or add a ridge"
        )
    return square


def metric_of(linear_set: "LinearSet", metric: Any) -> sp.csr_matrix:
    """The metric a set with an energy ball needs; ConstraintError if there is none."""
    if metric is None:
        raise ConstraintError("the set has an energy ball: give the metric E of |c|_E, metric=")
    return square_matrix(metric, "metric", linear_set.size)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LinearSet:
    """The coefficients c in R^N with lower <= rows c <= upper, and c' E c <= radius^2 if there is a radius.

    rows (m, N) sparse;  lower, upper (m,), infinite where there is no bound;  radius : of the energy ball, or None.
    inverse (N, N) : the inverse of rows where that is sparse and known (values of finite elements and splines), so that
        the rows are the coefficients in another basis of the class; None otherwise.

    Raises ConstraintError for shapes that do not match, nan, and lower > upper (telling in how many rows).
    """

    rows: Any
    lower: FloatArray
    upper: FloatArray
    radius: float | None = None
    inverse: Any = None

    def __post_init__(self) -> None:
        rows = sp.csr_matrix(self.rows, dtype=np.float64)
        bounds = [real_array(value, name, ConstraintError).copy() for name, value in self._bounds()]
        for (name, _), bound in zip(self._bounds(), bounds, strict=True):
            if bound.shape != rows.shape[:1] or np.isnan(bound).any():
                raise ConstraintError(
                    f"{name} must be one number per row, shape ({rows.shape[0]},) without nan, got shape {bound.shape}"
                    f" with {int(np.isnan(bound).sum())} nan"
                )
            bound.setflags(write=False)
        crossed = np.flatnonzero((bounds[0] > bounds[1]) | (bounds[0] == np.inf) | (bounds[1] == -np.inf))
        if crossed.size:
            i = crossed[0]
            raise ConstraintError(
                f"the set is empty: {crossed.size} of {rows.shape[0]} rows have no number between their bounds, the"
                f" first one, row {i}, lower {bounds[0][i]:g} and upper {bounds[1][i]:g}; widen the bounds"
            )
        if self.radius is not None:
            positive_number(self.radius, "radius", ConstraintError)
        for name, value in (("rows", rows), ("lower", bounds[0]), ("upper", bounds[1])):
            object.__setattr__(self, name, value)

    def _bounds(self) -> tuple[tuple[str, FloatArray], tuple[str, FloatArray]]:
        return ("lower", self.lower), ("upper", self.upper)

    @property
    def size(self) -> int:
        """N."""
        return int(self.rows.shape[1])

    def coefficients(self, c: ArrayLike) -> FloatArray:
        """c as (N,), from any array of N finite numbers."""
        array = real_array(c, "coefficients", ConstraintError)
        if array.size != self.size or not np.isfinite(array).all():
            raise ConstraintError(
                f"expected {self.size} finite coefficients, got shape {array.shape} with"
                f" {int((~np.isfinite(array)).sum())} non-finite entries"
            )
        return array.ravel()

    def violation(self, c: ArrayLike, metric: Any = None) -> float:
        """How far c is outside, 0 inside: max over rows of lower - A c and A c - upper, and |c|_E - radius.

        metric : E (N, N); needed if there is a radius, else ConstraintError.
        """
        array = self.coefficients(c)
        values = self.rows @ array
        outside = float(np.maximum(self.lower - values, values - self.upper).max(initial=0.0))
        if self.radius is None:
            return outside
        return max(outside, energy_norm(metric_of(self, metric), array) - self.radius)

    def restricted(self, free: ArrayLike, fixed_values: ArrayLike) -> "LinearSet":
        """The set of the free coefficients when the others are fixed.

        free : mask (N,), or the indices in increasing order;  fixed_values (N - n_free,) : the others, in their order.
        Raises ConstraintError if rows without free coefficients are violated (telling how many), and for an energy
        ball with fixed values other than 0, which is no ball around 0 in the free coefficients.
        """
        given = np.asarray(free)
        mask = np.zeros(self.size, dtype=np.bool_)
        if given.dtype == np.bool_ and given.shape == mask.shape:
            mask = given
        elif np.issubdtype(given.dtype, np.integer) and given.ndim == 1 and (np.diff(given) > 0).all():
            if given.size and (given[0] < 0 or given[-1] >= self.size):
                raise ConstraintError(f"free must hold indices in 0..{self.size - 1}, got {given[0]}..{given[-1]}")
            mask[given] = True
        else:
            raise ConstraintError(
                f"free must be a mask of shape ({self.size},) or increasing indices, got shape {given.shape}"
                f" of {given.dtype}"
            )
        if not mask.any():
            raise ConstraintError("free must leave at least one coefficient free, got none")
        fixed = frozen_array(fixed_values, "fixed_values", (int((~mask).sum()),), ConstraintError)
        if self.radius is not None and fixed.any():
            raise ConstraintError(
                "an energy ball allows no fixed coefficients other than 0; free them, or subtract them"
            )
        known = self.rows[:, np.flatnonzero(~mask)] @ fixed
        part = self.rows[:, np.flatnonzero(mask)].tocsr()
        kept = np.diff(part.indptr) > 0
        outside = np.maximum(self.lower - known, known - self.upper)
        scale = max(1.0, float(np.abs(fixed).max(initial=0.0)))
        lost = np.flatnonzero(~kept & (outside > _NEGLIGIBLE * scale))
        if lost.size:
            worst = lost[outside[lost].argmax()]
            raise ConstraintError(
                f"the fixed values leave the set empty: {lost.size} of {self.rows.shape[0]} rows without free"
                f" coefficients are violated, the worst, row {worst}, is {known[worst]:g} with bounds"
                f" [{self.lower[worst]:g}, {self.upper[worst]:g}]; widen the bounds, or fix other values"
            )
        # Dropped rows involve fixed coefficients only, so the rows are block triangular, and so is their inverse.
        square = self.inverse is not None and kept.sum() == mask.sum()
        return LinearSet(
            rows=part[kept],
            lower=self.lower[kept] - known[kept],
            upper=self.upper[kept] - known[kept],
            radius=self.radius,
            inverse=self.inverse[mask][:, kept] if square else None,
        )


class Constraint(ABC):
    """A closed convex set of functions; `a & b` is the intersection."""

    @abstractmethod
    def on(self, space: Space) -> LinearSet:
        """The coefficients of functions of the class that satisfy the constraint on all of [0, T] x domain."""

    def __and__(self, other: "Constraint") -> "Intersection":
        if not isinstance(other, Constraint):
            return NotImplemented
        return Intersection(self, other)


@final
@dataclass(frozen=True, eq=False)
class Bounds(Constraint):
    """lower <= f <= upper, everywhere; either may be None.

    Raises ConstraintError unless these are numbers with lower <= upper, not both None.

    >>> Bounds(0.0, 1.0) & Monotone(0)
    Intersection(parts=(Bounds(lower=0.0, upper=1.0), Monotone(axis=0, increasing=True)))
    """

    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            value = getattr(self, name)
            if value is not None:
                number = real_array(value, name, ConstraintError)
                if number.shape != () or not np.isfinite(number):
                    raise ConstraintError(f"{name} must be a finite number or None, got {value!r}")
                object.__setattr__(self, name, float(number))
        if self.lower is None and self.upper is None:
            raise ConstraintError("Bounds needs lower, upper or both, got neither")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ConstraintError(f"the set is empty: lower {self.lower:g} > upper {self.upper:g}; swap them")

    def on(self, space: Space) -> LinearSet:
        rows, inverse = _rows(space)
        lower = -np.inf if self.lower is None else self.lower
        upper = np.inf if self.upper is None else self.upper
        m = rows.shape[0]
        return LinearSet(rows=rows, lower=np.full(m, lower), upper=np.full(m, upper), inverse=inverse)


def _one_sided(rows: sp.csr_matrix, positive: bool) -> LinearSet:
    """rows c >= 0, or <= 0."""
    zero, infinite = np.zeros(rows.shape[0]), np.full(rows.shape[0], np.inf)
    return LinearSet(rows=rows, lower=zero if positive else -infinite, upper=infinite if positive else zero)


def _checked_axis(axis: object) -> None:
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer) or axis < 0:
        raise ConstraintError(f"axis must be a coordinate of x, 0, 1, ..., got {axis!r}")


def _axis_of(axis: int, space: Space) -> int:
    if isinstance(space, Space) and axis >= space.dim:
        raise ConstraintError(f"axis must be a coordinate of x in 0..{space.dim - 1}, got {axis}")
    return axis


@final
@dataclass(frozen=True, eq=False)
class Monotone(Constraint):
    """d f / d x_axis >= 0, or <= 0 if not increasing, everywhere.

    Raises ConstraintError for an axis the space does not have, SpaceError on a mesh with cells that are not affine.
    """

    axis: int
    increasing: bool = True

    def __post_init__(self) -> None:
        _checked_axis(self.axis)

    def on(self, space: Space) -> LinearSet:
        return _one_sided(_rows(space, _axis_of(self.axis, space), 1)[0], self.increasing)


@final
@dataclass(frozen=True, eq=False)
class Convex(Constraint):
    """d^2 f / d x_axis^2 >= 0, or <= 0 if concave, everywhere; for classes that are C1 in space, else SpaceError.

    Raises ConstraintError for an axis the space does not have.
    """

    axis: int
    concave: bool = False

    def __post_init__(self) -> None:
        _checked_axis(self.axis)

    def on(self, space: Space) -> LinearSet:
        axis = _axis_of(self.axis, space)
        if isinstance(space, Space) and space.smoothness < 1:
            raise SpaceError(
                f"Convex needs a class that is C1 in space, got element {space.spatial.element!r}, whose slopes jump"
                " between cells; use element='hermite'"
            )
        return _one_sided(_rows(space, axis, 2)[0], not self.concave)


@final
@dataclass(frozen=True, eq=False)
class EnergyBall(Constraint):
    """|f|_E <= radius, with E the metric given to the solver. Raises ConstraintError unless radius > 0 and finite."""

    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", positive_number(self.radius, "radius", ConstraintError))

    def on(self, space: Space) -> LinearSet:
        if not isinstance(space, Space):
            raise SpaceError(f"a constraint is on a Space, got {type(space).__name__}")
        nothing = np.empty(0)
        return LinearSet(rows=sp.csr_matrix((0, space.n_dofs)), lower=nothing, upper=nothing, radius=self.radius)


@final
@dataclass(frozen=True, eq=False, init=False)
class Intersection(Constraint):
    """The functions in all of several sets, `a & b & c`.

    Equal rows are merged; `on` raises ConstraintError if their bounds exclude each other.
    """

    parts: tuple[Constraint, ...]

    def __init__(self, *parts: Constraint) -> None:
        flat: list[Constraint] = []
        for part in parts:
            if not isinstance(part, Constraint):
                raise ConstraintError(f"an intersection is of constraints, got {type(part).__name__}")
            flat += part.parts if isinstance(part, Intersection) else (part,)
        if not flat:
            raise ConstraintError("an intersection needs at least one constraint, got none")
        object.__setattr__(self, "parts", tuple(flat))

    def on(self, space: Space) -> LinearSet:
        sets = sorted((part.on(space) for part in self.parts), key=lambda s: s.inverse is None)
        stacked = sp.vstack([s.rows for s in sets], format="csr")
        distinct, like = _first_of_equal(stacked)
        lower, upper = np.full(distinct.size, -np.inf), np.full(distinct.size, np.inf)
        np.maximum.at(lower, like, np.concatenate([s.lower for s in sets]))
        np.minimum.at(upper, like, np.concatenate([s.upper for s in sets]))
        return LinearSet(
            rows=stacked[distinct],
            lower=lower,
            upper=upper,
            radius=min((s.radius for s in sets if s.radius is not None), default=None),
            inverse=sets[0].inverse if distinct.size == sets[0].rows.shape[0] else None,
        )
