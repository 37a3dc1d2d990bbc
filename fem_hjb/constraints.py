r"""Convex sets of functions in a space-time class, and the linear variational inequalities over them.

A function of a class is its coefficients c in R^N. A constraint such as 0 <= f <= 1 becomes rows lower <= A c <= upper
that hold on all of [0, T] x domain, not only at nodes: on every cell f (or its derivative) is a polynomial, and lies in
the convex hull of its Bernstein coefficients, which are linear in c. The rows are these coefficients, so that a
`LinearSet` is a closed convex subset of {f in the class: the constraint holds everywhere}. It is smaller than that
set, by an amount that vanishes with the square of the cell width, and equal to it for piecewise linear functions.

Over such a set F, with M positive definite but not necessarily symmetric, `solve_inequality` finds the only

    c in F with (M c - q)' (g - c) >= 0 for every g in F,   i.e.   M c + mu E c + A' lambda = q,

with multipliers lambda >= 0 at upper bounds, <= 0 at lower ones, 0 elsewhere, and mu >= 0 that of an energy ball
c' E c <= radius^2. A projection is the case M = E, q = E z. The method is the primal-dual active set (semismooth
Newton: M. Hintermueller, K. Ito, K. Kunisch, SIAM J. Optim. 13 (2002) 865); where that cycles, an interior point with
predictor and corrector (S. Mehrotra, SIAM J. Optim. 2 (1992) 575), finished by active-set steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from math import factorial
from typing import Any, Literal, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, linprog
from scipy.sparse.linalg import SuperLU, cg, splu
from scipy.special import comb

from fem_hjb._checks import (
    ConstraintError,
    ConvergenceError,
    FloatArray,
    SpaceError,
    frozen_array,
    positive_number,
    real_array,
)
from fem_hjb.lagrange import MeshBasis
from fem_hjb.line_basis import LineBasis
from fem_hjb.spaces import Space

__all__ = [
    "Bounds",
    "Constraint",
    "Convex",
    "EnergyBall",
    "InequalityResult",
    "Intersection",
    "LinearSet",
    "Monotone",
    "Projector",
    "project",
    "solve_inequality",
]

Sides = NDArray[np.int8]

_ACTIVE_STEPS = 60
_POLISH_STEPS = 8
_INTERIOR_STEPS = 100
_STAGNATION = 6  # interior-point steps without progress after which it is done
_ROUNDING = 1e-13  # of the largest value: violations and wrong signs below it leave the active set alone
_ACCEPTED = 1e-11  # KKT residual with which the active set is done
_FAILED = 1e-8  # KKT residual beyond which nothing is returned
_NEGLIGIBLE = 1e-12  # relative to the row: entries that are zero but for rounding
_REGULAR = 1e-10  # of the Schur complement, so that dependent active rows do not make the system singular
_SOFTENING = 1e-13  # the same for the interior point
_REFINEMENTS = 8
_DIRECT = 1000  # unknowns up to which a sparse LU is faster than conjugate gradients
_CG_TOLERANCE = 1e-14
_CG_STEPS = 5000


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


def _is_identity(rows: sp.csr_matrix) -> bool:
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
    if _is_identity(rows):
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
        return max(outside, _norm(_metric_of(self, metric), array) - self.radius)

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


# Inequalities


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class InequalityResult:
    """The solution of a linear variational inequality.

    coefficients (N,) : c;  multipliers (m,) : lambda, one per row;  radius_multiplier : mu, 0 without or inside a ball.
    active (m,) : 1 where the upper bound is active, -1 where the lower one is, 0 elsewhere.
    iterations : linear systems solved, of all kinds;  how : "active-set", or "interior-point" if that was needed.
    residual : the largest of the relative errors of M c + mu E c + A' lambda = q, of A c = clip(A c + lambda), and of
        the radius: what the KKT conditions leave, independent of how c was found.
    """

    coefficients: FloatArray
    multipliers: FloatArray
    radius_multiplier: float
    active: Sides
    iterations: int
    how: Literal["active-set", "interior-point"]
    residual: float

    @property
    def active_count(self) -> int:
        """How many bounds are active."""
        return int(np.count_nonzero(self.active))


@final
@dataclass(frozen=True, eq=False)
class _Iterate:
    c: FloatArray
    multipliers: FloatArray
    sides: Sides
    residual: float
    iterations: int = 0
    how: Literal["active-set", "interior-point"] = "active-set"


def _largest(*arrays: FloatArray) -> float:
    """The largest finite absolute value, 1 if there is none but 0."""
    largest = 0.0
    for array in arrays:
        largest = max(largest, float(np.abs(array[np.isfinite(array)]).max(initial=0.0)))
    return largest or 1.0


@final
class _System:
    """M c + A' lambda = q with lambda normal to lower <= A c <= upper; A is the identity if `bounds`."""

    def __init__(self, matrix: sp.csr_matrix, rows: sp.csr_matrix, lower: FloatArray, upper: FloatArray) -> None:
        self.matrix, self.rows, self.lower, self.upper = matrix, rows, lower, upper
        self.bounds = _is_identity(rows)
        self.equal = lower == upper
        # A change of lambda_i by 1 moves row i by about this much: what makes multipliers comparable with rows.
        self.mobility = np.asarray(rows.multiply(rows) @ (1.0 / matrix.diagonal())).ravel()
        self.symmetric = abs(matrix - matrix.T).max() <= _ROUNDING * abs(matrix).max()
        self._factor: tuple[bytes, SuperLU] | None = None

    def allowed(self, sides: Sides) -> Sides:
        """These active sides, without bounds that are infinite and with all equal ones."""
        finite = np.where(sides > 0, np.isfinite(self.upper), np.isfinite(self.lower))
        return np.where(self.equal, 1, np.where(finite, sides, 0)).astype(np.int8)

    def residual(self, q: FloatArray, c: FloatArray, multipliers: FloatArray) -> float:
        """The relative KKT residual."""
        force, reaction, values = self.matrix @ c, self.rows.T @ multipliers, self.rows @ c
        step = self.mobility * multipliers
        natural = values - np.clip(values + step, self.lower, self.upper)
        stationary = np.abs(force + reaction - q).max(initial=0.0) / _largest(force, reaction, q)
        return float(max(stationary, np.abs(natural).max(initial=0.0) / _largest(values, step, self.lower, self.upper)))

    def sides_of(self, q: FloatArray, c: FloatArray, multipliers: FloatArray, sides: Sides) -> Sides:
        """The active set after an iterate: wrong signs are released, violated bounds become active."""
        values = self.rows @ c
        wrong = _ROUNDING * _largest(multipliers, q)
        outside = _ROUNDING * _largest(values, self.lower, self.upper)
        following = np.where(sides * multipliers < -wrong, 0, sides).astype(np.int8)
        idle = sides == 0
        following[idle & (values > self.upper + outside)] = 1
        following[idle & (values < self.lower - outside)] = -1
        following[self.equal] = 1
        return following

    def factor(self, key: bytes, matrix: sp.csc_matrix) -> SuperLU:
        """The sparse LU of this key, kept until another one is asked for."""
        if self._factor is None or self._factor[0] != key:
            self._factor = key, splu(matrix)
        return self._factor[1]

    def held(self, q: FloatArray, sides: Sides, guess: FloatArray) -> tuple[FloatArray, FloatArray]:
        """c and lambda with the active rows at their bounds and the other multipliers 0."""
        return self._held_bounds(q, sides, guess) if self.bounds else self._held_rows(q, sides)

    def _held_bounds(self, q: FloatArray, sides: Sides, guess: FloatArray) -> tuple[FloatArray, FloatArray]:
        c = np.where(sides > 0, self.upper, np.where(sides < 0, self.lower, 0.0))
        free = np.flatnonzero(sides == 0)
        if free.size:
            load = (q - self.matrix @ c)[free]
            c[free] = self._solve(free, load, sides.tobytes(), guess[free])
        return c, np.where(sides == 0, 0.0, q - self.matrix @ c)

    def _solve(self, free: NDArray[np.int64], load: FloatArray, key: bytes, guess: FloatArray) -> FloatArray:
        part = self.matrix if free.size == self.matrix.shape[0] else self.matrix[free][:, free]
        if self.symmetric and free.size > _DIRECT:
            jacobi = sp.diags(1.0 / part.diagonal())
            solution, failed = cg(part, load, x0=guess, rtol=_CG_TOLERANCE, atol=0.0, maxiter=_CG_STEPS, M=jacobi)
            if not failed:
                return np.asarray(solution)
        return np.asarray(self.factor(key, part.tocsc()).solve(load))

    def _held_rows(self, q: FloatArray, sides: Sides) -> tuple[FloatArray, FloatArray]:
        active = np.flatnonzero(sides)
        rows, n = self.rows[active], q.size
        target = np.where(sides > 0, self.upper, self.lower)[active]
        softening = sp.diags(-_REGULAR * self.mobility[active])
        saddle = (
            sp.bmat([[self.matrix, rows.T], [rows, softening]], format="csc") if active.size else self.matrix.tocsc()
        )
        factor = self.factor(sides.tobytes(), saddle)
        # Refined against the system without softening: dependent rows leave it singular, yet solvable.
        solution, last = np.zeros(n + active.size), np.inf
        for _ in range(_REFINEMENTS):
            c, reaction = solution[:n], solution[n:]
            gap = np.concatenate([q - self.matrix @ c - rows.T @ reaction, target - rows @ c])
            error = max(np.abs(gap[:n]).max() / _largest(q), np.abs(gap[n:]).max(initial=0.0) / _largest(target))
            if not error < last / 2:
                break
            last, solution = error, solution + factor.solve(gap)
        multipliers = np.zeros(sides.size)
        multipliers[active] = solution[n:]
        return solution[:n], multipliers


def _active_set(system: _System, q: FloatArray, sides: Sides, guess: FloatArray, steps: int) -> _Iterate | None:
    """The best iterate of at most `steps` steps of the primal-dual active set; it ends when a set returns."""
    best: _Iterate | None = None
    seen: set[bytes] = set()
    while len(seen) < steps and (key := sides.tobytes()) not in seen:
        seen.add(key)
        try:
            guess, multipliers = system.held(q, sides, guess)
        except RuntimeError:  # SuperLU: the factor is exactly singular
            break
        if not (np.isfinite(guess).all() and np.isfinite(multipliers).all()):
            break
        residual = system.residual(q, guess, multipliers)
        if best is None or residual < best.residual:
            best = _Iterate(guess, multipliers, sides, residual)
        sides = system.sides_of(q, guess, multipliers, sides)
    return None if best is None else replace(best, iterations=len(seen))


@final
class _Interior:
    """The state of an interior point: M c + G' z + A_e' y = q, G c + w = h, A_e c = b_e, w z = 0, w > 0, z > 0.

    G c <= h are the one-sided rows, upper bounds first; A_e are the rows with equal bounds.
    """

    def __init__(self, system: _System, q: FloatArray) -> None:
        rows, equal = system.rows, system.equal
        self.system, self.q = system, q
        self.above = np.flatnonzero(np.isfinite(system.upper) & ~equal)
        self.below = np.flatnonzero(np.isfinite(system.lower) & ~equal)
        self.g = sp.vstack([rows[self.above], -rows[self.below]], format="csr")
        self.h = np.concatenate([system.upper[self.above], -system.lower[self.below]])
        self.fixed, self.target = rows[np.flatnonzero(equal)], system.upper[equal]
        self.mobility = np.concatenate([system.mobility[self.above], system.mobility[self.below]])
        self.w, self.z = self.mobility, np.ones(self.h.size)
        newton = self._newton()
        self.c, self.y = newton(q + self.g.T @ (self.h / self.mobility), np.empty(0), self.target)[::2]
        slack = self.h - self.g @ self.c
        self.w = np.maximum(np.abs(slack), 0.1 * _largest(slack))
        self.z = self.w / self.mobility

    @property
    def tight(self) -> NDArray[np.bool_]:
        """The rows whose multiplier is larger than their slack."""
        return np.asarray(self.z * self.mobility > self.w)

    def _newton(self) -> Callable[[FloatArray, FloatArray, FloatArray], tuple[FloatArray, FloatArray, FloatArray]]:
        """(loads on c, on tight rows, on equal rows) -> (dc, dz of the tight rows, dy).

        Tight rows stay in the system, as eliminating them would lose the matrix next to their weights z / w.
        """
        tight, n = self.tight, self.q.size
        loose = self.g[np.flatnonzero(~tight)]
        stiff = self.system.matrix + loose.T @ sp.diags((self.z / self.w)[~tight]) @ loose
        border = sp.vstack([self.g[np.flatnonzero(tight)], self.fixed], format="csr")
        ratio = np.concatenate([(self.w / self.z)[tight], np.zeros(self.target.size)])
        mobility = np.concatenate([self.mobility[tight], self.system.mobility[self.system.equal]])
        corner = sp.diags(-ratio - _SOFTENING * mobility)
        saddle = sp.bmat([[stiff, border.T], [border, corner]], format="csc") if ratio.size else stiff.tocsc()
        factor = splu(saddle)

        def solve(*loads: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
            solution = factor.solve(np.concatenate(loads))
            count = int(tight.sum())
            return solution[:n], solution[n : n + count], solution[n + count :]

        return solve

    def iterate(self, iterations: int) -> _Iterate:
        """The state, with the bounds as active whose multiplier is larger than their slack."""
        system, count = self.system, self.above.size
        multipliers, sides = np.zeros(system.lower.size), np.zeros(system.lower.size, dtype=np.int8)
        multipliers[self.above] = self.z[:count]
        multipliers[self.below] -= self.z[count:]
        multipliers[system.equal] = self.y
        tight = self.tight
        sides[self.above[tight[:count]]] = 1
        sides[self.below[tight[count:]]] = -1
        sides[system.equal] = 1
        residual = system.residual(self.q, self.c, multipliers)
        return _Iterate(self.c, multipliers, sides, residual, iterations, "interior-point")

    def advance(self) -> None:
        """A predictor-corrector step."""
        w, z, g = self.w, self.z, self.g
        dual = self.system.matrix @ self.c - self.q + g.T @ z + self.fixed.T @ self.y
        primal = g @ self.c + w - self.h
        missing = self.target - self.fixed @ self.c
        tight, newton = self.tight, self._newton()

        def direction(complement: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
            """Towards w z = w z - complement, and no other residuals."""
            shift = np.where(tight, 0.0, (z * primal - complement) / w)
            dc, pressed, dy = newton(-dual - g.T @ shift, (complement / z - primal)[tight], missing)
            move = g @ dc
            dz = shift + z / w * move
            dz[tight] = pressed
            dw = -primal - move  # which cancels in tight rows
            dw[tight] = ((-complement - w * dz) / z)[tight]
            return dc, dy, dw, dz

        def reach(dw: FloatArray, dz: FloatArray) -> float:
            return float(min(np.min(-v[d < 0] / d[d < 0], initial=np.inf) for v, d in ((w, dw), (z, dz))))

        _, _, dw, dz = direction(w * z)
        length, gap = min(1.0, reach(dw, dz)), float(w @ z) / max(w.size, 1)
        centring = (float((w + length * dw) @ (z + length * dz)) / w.size / gap) ** 3 if gap > 0 else 0.0
        dc, dy, dw, dz = direction(w * z + dw * dz - centring * gap)
        length = min(1.0, 0.995 * reach(dw, dz))
        self.c, self.y = self.c + length * dc, self.y + length * dy
        self.w, self.z = w + length * dw, z + length * dz


def _interior_point(system: _System, q: FloatArray) -> _Iterate | None:
    """The best iterate of an interior point, finished by active-set steps where these reduce the residual."""
    best: _Iterate | None = None
    # Iterates that overflow near a singular system have no residual below the best one's: nothing is lost silently.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        try:
            state = _Interior(system, q)
            for iteration in range(1, _INTERIOR_STEPS):
                now = state.iterate(iteration)
                if best is None or now.residual < best.residual:
                    best = now
                if best.residual < _ROUNDING or iteration - best.iterations > _STAGNATION:
                    break
                state.advance()
        except RuntimeError:  # SuperLU: exactly singular, at the start or where active slacks have become 0
            pass
    if best is None:
        return None
    polished = _active_set(system, q, best.sides, best.c, _POLISH_STEPS)
    if polished is not None and polished.residual < best.residual:
        return replace(polished, iterations=best.iterations + polished.iterations, how="interior-point")
    return best


def _refuse_empty(system: _System) -> None:
    """ConstraintError if no c satisfies the rows: the least sum of violations, by a linear programme."""
    m, n = system.rows.shape
    upper, lower = np.isfinite(system.upper), np.isfinite(system.lower)
    slack = sp.identity(m, format="csr")
    answer = linprog(
        np.concatenate([np.zeros(n), np.ones(m)]),
        A_ub=sp.bmat([[system.rows[upper], -slack[upper]], [-system.rows[lower], -slack[lower]]], format="csr"),
        b_ub=np.concatenate([system.upper[upper], -system.lower[lower]]),
        bounds=[(None, None)] * n + [(0.0, None)] * m,
        method="highs",
    )
    if answer.status != 0:
        raise ConvergenceError(f"whether the constraints can be met was not decided: {answer.message}")
    slacks = answer.x[n:]
    violated = np.flatnonzero(slacks > 1e-7 * _largest(system.lower, system.upper))
    if violated.size:
        worst = int(slacks.argmax())
        raise ConstraintError(
            f"the set is empty: at best {violated.size} of its {m} rows are violated, row {worst} by"
            f" {slacks[worst]:.3g}"
            f" (bounds [{system.lower[worst]:g}, {system.upper[worst]:g}]); widen the bounds, or drop a constraint"
        )


def _solve_polyhedral(system: _System, q: FloatArray, sides: Sides, guess: FloatArray) -> _Iterate:
    """The inequality over the rows alone."""
    found = _active_set(system, q, system.allowed(sides), guess, _ACTIVE_STEPS)
    if found is None or not found.residual <= _ACCEPTED:
        if not system.bounds and system.lower.size:
            _refuse_empty(system)
        inner, spent = _interior_point(system, q), 0 if found is None else found.iterations
        if inner is not None and (found is None or not found.residual <= inner.residual):
            found = replace(inner, iterations=spent + inner.iterations)
    if found is None or not found.residual <= _FAILED:
        reached = (
            "its linear systems are singular" if found is None else f"its relative KKT residual is {found.residual:.1e}"
        )
        raise ConvergenceError(
            f"the inequality was not solved: {reached}; the symmetric part of the matrix is (nearly) singular or"
            " not positive definite: leave out what it does not determine, or add a ridge"
        )
    # Accepted violations are rounding errors: bounds on the unknowns themselves can be met exactly.
    return replace(found, c=np.clip(found.c, system.lower, system.upper)) if system.bounds else found


def _norm(metric: Any, c: FloatArray) -> float:
    return float(np.sqrt(max(float(c @ (metric @ c)), 0.0)))


def _square(matrix: Any, name: str, size: int) -> sp.csr_matrix:
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


def _metric_of(linear_set: LinearSet, metric: Any) -> sp.csr_matrix:
    if metric is None:
        raise ConstraintError("the set has an energy ball: give the metric E of |c|_E, metric=")
    return _square(metric, "metric", linear_set.size)


@final
class _Engine:
    """Inequalities over one set with one matrix, for many right-hand sides; each starts from the one before.

    Where the rows have an inverse, the unknowns are b = A c, so that the set is a box.
    """

    def __init__(self, matrix: sp.csr_matrix, linear_set: LinearSet, metric: sp.csr_matrix | None) -> None:
        self.set = linear_set
        self.change = None if linear_set.inverse is None or _is_identity(linear_set.rows) else linear_set.inverse
        self.matrix = self._changed(matrix)
        self.metric = self.matrix if metric is matrix else metric if metric is None else self._changed(metric)
        self.system = self._system(self.matrix)
        self.sides = np.zeros(linear_set.lower.size, dtype=np.int8)
        self.guess = np.zeros(linear_set.size)
        self.least: float | None = None  # the least |c|_E under the rows, once it was needed

    def _changed(self, matrix: sp.csr_matrix) -> sp.csr_matrix:
        return matrix if self.change is None else sp.csr_matrix(self.change.T @ matrix @ self.change)

    def _system(self, matrix: sp.csr_matrix) -> _System:
        rows = self.set.rows if self.change is None else sp.identity(self.set.size, format="csr")
        return _System(matrix, rows, self.set.lower, self.set.upper)

    def solve(self, load: FloatArray) -> InequalityResult:
        q = load if self.change is None else self.change.T @ load
        found, mu, residual = _solve_polyhedral(self.system, q, self.sides, self.guess), 0.0, 0.0
        radius = self.set.radius
        if radius is not None and _norm(self.metric, found.c) > radius:
            found, mu = self._on_sphere(q, found, radius)
            residual = abs(_norm(self.metric, found.c) / radius - 1.0)
        self.sides, self.guess = found.sides, found.c
        return InequalityResult(
            coefficients=found.c if self.change is None else self.change @ found.c,
            multipliers=found.multipliers,
            radius_multiplier=mu,
            active=found.sides,
            iterations=found.iterations,
            how=found.how,
            residual=max(found.residual, residual),
        )

    def _on_sphere(self, q: FloatArray, inside: _Iterate, radius: float) -> tuple[_Iterate, float]:
        """The solution and mu > 0 with |c|_E = radius, by a search on radius / |c(mu)|_E, nearly linear in mu."""
        metric: Any = self.metric
        spent = inside.iterations
        last = inside
        if self.least is None:
            nearest = _solve_polyhedral(self._system(metric), np.zeros_like(q), last.sides, last.c)
            self.least, spent = _norm(metric, nearest.c), spent + nearest.iterations
        least = self.least
        if least > radius * (1.0 + _NEGLIGIBLE):
            raise ConstraintError(
                f"the set is empty: the least |c|_E under the other constraints is {least:.6g}, the radius of the"
                f" energy ball {radius:g}; enlarge the radius, or widen the bounds"
            )

        def at(mu: float) -> float:
            nonlocal last, spent
            if metric is self.matrix:  # M + mu E = (1 + mu) M: no new factorisation
                scaled = _solve_polyhedral(self.system, q / (1.0 + mu), last.sides, last.c)
                last = replace(scaled, multipliers=(1.0 + mu) * scaled.multipliers)
            else:
                last = _solve_polyhedral(self._system(self.matrix + mu * metric), q, last.sides, last.c)
            spent += last.iterations
            return radius / max(_norm(metric, last.c), 1e-3 * radius) - 1.0

        norm = _norm(metric, last.c)
        low, high = 0.0, (norm / radius - 1.0) * float(last.c @ (self.matrix @ last.c)) / norm**2
        while (excess := at(high)) < 0.0:
            low, high = high, 4.0 * high
            if high > 1e16 * abs(self.matrix).max() / abs(metric).max():
                raise ConvergenceError(
                    f"no multiplier of the energy ball of radius {radius:g} was found up to {high:.1e}"
                )
        mu = float(brentq(at, low, high, xtol=1e-15 * high, rtol=1e-15)) if excess else high
        at(mu)
        return replace(last, iterations=spent), mu


def solve_inequality(
    matrix: Any, load: ArrayLike, linear_set: LinearSet, *, metric: Any = None, start: InequalityResult | None = None
) -> InequalityResult:
    """The c in the set F with (M c - q)' (g - c) >= 0 for every g in F.

    matrix : M (N, N), sparse or dense, positive definite symmetric part, not necessarily symmetric;  load : q (N,).
    metric : E (N, N), symmetric positive definite; needed if F has an energy ball, not used otherwise.
    start : the result of a similar inequality over the same rows, whose active set is tried first.

    The result is in F up to rounding; exactly so where the rows are the identity.
    Raises ConstraintError for shapes that do not match, matrices without positive diagonal, an empty set;
    ConvergenceError if the KKT conditions cannot be met to 1e-8.
    """
    if not isinstance(linear_set, LinearSet):
        raise ConstraintError(f"expected a LinearSet, got {type(linear_set).__name__}; use constraint.on(space)")
    square = _square(matrix, "matrix", linear_set.size)
    ball = None
    if linear_set.radius is not None:
        ball = square if metric is matrix else _metric_of(linear_set, metric)
    engine = _Engine(square, linear_set, ball)
    if start is not None:
        if start.active.shape != engine.sides.shape:
            raise ConstraintError(
                f"start has {start.active.size} rows, the set {engine.sides.size}; start from a result over the"
                " same rows"
            )
        engine.sides = start.active
    return engine.solve(linear_set.coefficients(load))


@final
class Projector:
    """The projection on a set in the metric E, for many targets z: argmin over c in F of (c - z)' E (c - z).

    Each projection starts from the active set of the one before; while that stays the same so does the factorisation.

    metric : E (N, N), sparse or dense, symmetric positive definite.
    Raises ConstraintError unless E fits the set and is symmetric, and for an empty set; see `solve_inequality`.
    """

    def __init__(self, metric: Any, linear_set: LinearSet) -> None:
        if not isinstance(linear_set, LinearSet):
            raise ConstraintError(f"expected a LinearSet, got {type(linear_set).__name__}; use constraint.on(space)")
        self._metric = _square(metric, "metric", linear_set.size)
        skew = float(abs(self._metric - self._metric.T).max())
        if skew > 1e-10 * abs(self._metric).max():
            raise ConstraintError(
                f"metric must be symmetric, got entries that differ from the transposed by {skew:.3g}"
            )
        self._engine = _Engine(self._metric, linear_set, self._metric)

    def __call__(self, target: ArrayLike) -> InequalityResult:
        """The projection of coefficients z (N,)."""
        return self._engine.solve(self._metric @ self._engine.set.coefficients(target))


def project(metric: Any, target: ArrayLike, linear_set: LinearSet) -> InequalityResult:
    """The projection of coefficients z (N,) on a set in the metric E; `Projector` is faster for many of them."""
    return Projector(metric, linear_set)(target)
