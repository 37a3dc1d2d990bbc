r"""Convex sets of functions in a space-time class.

A function of a class is its coefficients c in R^N. A constraint such as 0 <= f <= 1 becomes rows lower <= A c <= upper
that hold on all of [0, T] x domain, not only at nodes: on every cell f (or its derivative) is a polynomial, and lies in
the convex hull of its Bernstein coefficients, which are linear in c. The rows are these coefficients, so that a
`LinearSet` is a closed convex subset of {f in the class: the constraint holds everywhere}. It is smaller than that
set, by an amount that vanishes with the square of the cell width, and equal to it for piecewise linear functions.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp

from fem_hjb.learning.bernstein import first_of_equal, space_rows
from fem_hjb.learning.linear_set import LinearSet
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import positive_number, real_array
from fem_hjb.support.errors import ConstraintError, SpaceError


class Constraint(ABC):
    """A closed convex set of functions; `a & b` is the intersection.

    Subclass it for a set of your own, which `fit(constraint=...)` and `&` then take like those below: say in `on` which
    rows of the coefficients have which bounds. The gauged f is what is constrained.
    """

    @abstractmethod
    def on(self, space: Space) -> LinearSet:
        """The coefficients of functions of the class that satisfy the constraint on all of [0, T] x domain.

        Returns a `LinearSet` with one column per coefficient of the class, `space.n_dofs`, numbered as `Space` says.
        Rows with equal bounds are equations. Raise ConstraintError where the class cannot have such a set.
        """

    def __and__(self, other: "Constraint") -> "Intersection":
        if not isinstance(other, Constraint):
            return NotImplemented
        return Intersection(self, other)


def set_on(constraint: Constraint, space: Space) -> LinearSet:
    """constraint.on(space), or ConstraintError, which names the constraint's class, if that is no set of the class."""
    found = constraint.on(space)
    if isinstance(found, LinearSet) and found.size == space.n_dofs:
        return found
    got = f"one of {found.size}" if isinstance(found, LinearSet) else type(found).__name__
    raise ConstraintError(
        f"{type(constraint).__name__}.on(space) must return a LinearSet of {space.n_dofs} coefficients, as the space"
        f" has, got {got}"
    )


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
        rows, inverse = space_rows(space)
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
        return _one_sided(space_rows(space, _axis_of(self.axis, space), 1)[0], self.increasing)


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
        return _one_sided(space_rows(space, axis, 2)[0], not self.concave)


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
        sets = sorted((set_on(part, space) for part in self.parts), key=lambda s: s.inverse is None)
        stacked = sp.vstack([s.rows for s in sets], format="csr")
        distinct, like = first_of_equal(stacked)
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
