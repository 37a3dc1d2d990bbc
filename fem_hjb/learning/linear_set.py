"""Closed convex sets of coefficients: rows with bounds, and a ball of an energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from fem_hjb.support.checks import FloatArray, frozen_array, positive_number, real_array
from fem_hjb.support.errors import ConstraintError
from fem_hjb.support.objects import Plain

NEGLIGIBLE = 1e-12  # relative to the row: entries that are zero but for rounding


def is_identity(rows: sp.csr_matrix) -> bool:
    """Whether the rows are the coefficients themselves."""
    return bool(rows.shape[0] == rows.shape[1] and (rows != sp.identity(rows.shape[0], format="csr")).nnz == 0)


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


def metric_of(linear_set: LinearSet, metric: Any) -> sp.csr_matrix:
    """The metric a set with an energy ball needs; ConstraintError if there is none."""
    if metric is None:
        raise ConstraintError("the set has an energy ball: give the metric E of |c|_E, metric=")
    return square_matrix(metric, "metric", linear_set.size)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LinearSet(Plain):
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
        try:
            rows = sp.csr_matrix(self.rows, dtype=np.float64)
        except (TypeError, ValueError) as cause:
            raise ConstraintError(f"rows must be a sparse matrix, got {type(self.rows).__name__} ({cause})") from cause
        object.__setattr__(self, "rows", rows)
        for name in ("lower", "upper"):
            bound = real_array(getattr(self, name), name, ConstraintError).copy()
            if bound.shape != rows.shape[:1] or np.isnan(bound).any():
                raise ConstraintError(
                    f"{name} must be one number per row, shape ({rows.shape[0]},) without nan, got shape {bound.shape}"
                    f" with {int(np.isnan(bound).sum())} nan"
                )
            bound.setflags(write=False)
            object.__setattr__(self, name, bound)
        crossed = np.flatnonzero((self.lower > self.upper) | (self.lower == np.inf) | (self.upper == -np.inf))
        if crossed.size:
            i = crossed[0]
            raise ConstraintError(
                f"the set is empty: {crossed.size} of {rows.shape[0]} rows have no number between their bounds, the"
                f" first one, row {i}, lower {self.lower[i]:g} and upper {self.upper[i]:g}; widen the bounds"
            )
        if self.radius is not None:
            positive_number(self.radius, "radius", ConstraintError)

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

    def restricted(self, free: ArrayLike, fixed_values: ArrayLike) -> LinearSet:
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
        lost = np.flatnonzero(~kept & (outside > NEGLIGIBLE * scale))
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
