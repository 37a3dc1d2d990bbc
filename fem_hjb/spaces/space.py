"""Space-time finite-element classes: products of a time basis and a basis in space, evaluated anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import skfem
from numpy.typing import ArrayLike, NDArray

from fem_hjb.paths.extent import checked_box, truncation_box
from fem_hjb.problems.box import Box
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.spaces.basis import ELEMENTS, CellRule, Element, SpatialBasis, Tables, element_named
from fem_hjb.spaces.line import LineBasis, time_kind
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.mesh_files import as_mesh
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.spaces.tensor import HermiteBasis, SplineBasis, tensor_grids
from fem_hjb.support.calls import call
from fem_hjb.support.checks import (
    FloatArray,
    IntArray,
    array_length,
    as_points,
    as_times,
    one_of,
    real_array,
)
from fem_hjb.support.errors import DomainError, FemHjbError, SpaceError
from fem_hjb.support.objects import Plain
from fem_hjb.support.threads import for_each

__all__ = [
    "ELEMENTS",
    "CellRule",
    "Element",
    "HermiteBasis",
    "LineBasis",
    "MeshBasis",
    "Space",
    "SpatialBasis",
    "SplineBasis",
    "Tabulation",
    "spatial_basis",
]

Derivative = Literal["value", "time", "gradient", "hessian"]
_ORDER = {"value": 0, "time": 0, "gradient": 1, "hessian": 2}
_CHUNK_POINTS = 65536
_CHUNK_DOUBLES = 1 << 19  # 4 MB per temporary, not much more than the cache has room for


def spatial_basis(mesh_or_grids: Any, element: str, *, flat: bool = False) -> SpatialBasis:
    """The basis of an element on a scikit-fem mesh; for smooth ones also on a sequence of grids, one per axis.

    flat : of B-splines, those with vanishing normal slope at all faces (see `SplineBasis`); it says nothing on others.

    Raises SpaceError if the element is unknown, or not defined on these cells; DomainError for a mesh of other cells,
    or curved ones that are folded or lack nodes.
    """
    row = element_named(element)
    if isinstance(mesh_or_grids, skfem.Mesh):
        if not row.smoothness:
            return MeshBasis(mesh_or_grids, row.name)
        mesh_or_grids = tensor_grids(mesh_or_grids, row.name)
    if not row.smoothness:
        raise SpaceError(f"element {row.name!r} needs a scikit-fem mesh, got {type(mesh_or_grids).__name__}")
    if not isinstance(mesh_or_grids, Sequence):
        raise SpaceError(f"element {row.name!r} needs a list of one grid per axis, got {type(mesh_or_grids).__name__}")
    return HermiteBasis(mesh_or_grids) if row.name == "hermite" else SplineBasis(mesh_or_grids, row.name, flat=flat)


def _describe_outside(outside: NDArray[np.bool_], x: FloatArray, box: Box) -> str:
    """The message for points x (..., d) that lie outside a domain: how many, which, and what to do."""
    which = np.argwhere(outside)
    first = [int(i[0]) if i.size == 1 else tuple(map(int, i)) for i in which[:3]]
    lower, upper = box.bounds
    at = f" (the first at index {', '.join(map(str, first))})" if outside.ndim else ""
    return (
        f"{len(which)} of {outside.size} points lie outside the domain{at}, x={x[outside][0].tolist()} is not within"
        f" the mesh of bounding box {lower.tolist()} to {upper.tolist()}; enlarge the box or the mesh,"
        " or pass outside='nan' to get nan at these points"
    )


def broadcast_points(
    t: ArrayLike, x: ArrayLike, horizon: float, dim: int
) -> tuple[FloatArray, FloatArray, tuple[int, ...]]:
    """Checked times (a scalar stays one), points broadcast to (*S, d), and the common shape S."""
    times, points = as_times(t, horizon), as_points(x, dim)
    if not times.ndim:
        return times, points, points.shape[:-1]
    try:
        shape = np.broadcast_shapes(times.shape, points.shape[:-1])
    except ValueError as cause:
        raise DomainError(
            f"t of shape {times.shape} does not broadcast against x of shape {points.shape};"
            f" t must be a number or have shape {points.shape[:-1]}"
        ) from cause
    return times, np.broadcast_to(points, (*shape, dim)), shape


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Tabulation(Plain):
    """The basis functions of a `Space` at m points, kept as factors.

    cells (m,) : space-time cells, -1 outside; there all tables are nan.
    time (m, 2, lt) : the time functions and their derivatives.
    space : (values (m, lx), gradients (m, lx, d), Hessians (m, lx, d, d))[:order + 1].

    The properties form the products, local index it * lx + ix, at L = lt * lx.
    """

    cells: IntArray
    time: FloatArray
    space: Tables

    def _product(self, time_derivative: int, order: int) -> FloatArray:
        if order >= len(self.space):
            raise SpaceError(f"tabulated with order={len(self.space) - 1}; call tabulate with order={order}")
        factor = self.space[order]
        psi = self.time[:, time_derivative].reshape(*self.time.shape[::2], *[1] * (factor.ndim - 1))
        return np.asarray((psi * factor[:, None]).reshape(len(factor), -1, *factor.shape[2:]))

    @property
    def values(self) -> FloatArray:
        """(m, L)."""
        return self._product(0, 0)

    @property
    def time_derivatives(self) -> FloatArray:
        """(m, L)."""
        return self._product(1, 0)

    @property
    def gradients(self) -> FloatArray:
        """(m, L, d)."""
        return self._product(0, 1)

    @property
    def hessians(self) -> FloatArray:
        """(m, L, d, d)."""
        return self._product(0, 2)


@final
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Space:
    r"""The space-time class of functions f(t, x) = sum_{k, j} C[k, j] psi_k(t) phi_j(x) on [0, T] x domain.

    psi_k: piecewise polynomials in time, continuous or B-splines (`time`, a `LineBasis`), of which only the first does
    not vanish at t = 0 and only the last at t = T; phi_j: a basis in space (`spatial`).
    Coefficients are arrays (time.n_dofs, spatial.n_dofs), or the same raveled: dof = k * spatial.n_dofs + j.
    A space-time cell is numbered (time cell) * spatial.n_cells + (cell); its local functions it * lx + ix.

    Parameters
    ----------
    problem : gives dimension, horizon and, unless `box` or `mesh` does, the domain, or the mesh of a `MeshDomain`.
    cells : per axis of the box, one number or a tuple; 16 if not given.
    time_cells : equal cells on [0, T].
    time_degree : 1, 2 or 3; with time_smooth 2, 3 or 4.
    time_smooth : False for continuous functions of time, of which degree p has p dofs per cell; True for B-splines,
        C^{p-1} and with one dof per cell, which need a smooth element in space.
    element : a name in `ELEMENTS`. "hermite" is C1 and the B-splines "B2", "B3", "B4" are C1, C2, C3, as estimators
        with second derivatives need. Where the problem's domain reflects at all faces, B-splines are those whose normal
        slope vanishes there.
    box : a `Box`. Default: problem.domain, else a box outside which simulated paths are hardly ever seen; what it
        leaves out is `excluded_mass` (None if the domain was given).
    mesh : instead of box and cells, a scikit-fem mesh or the path of a mesh file.

    Raises
    ------
    SpaceError : unknown element, or not defined in this dimension or on this mesh; counts that are not positive.
    DomainError : the box or mesh does not fit the problem.
    """

    time: LineBasis
    spatial: SpatialBasis
    excluded_mass: float | None

    def __init__(
        self,
        problem: ControlProblem,
        *,
        cells: int | tuple[int, ...] | None = None,
        time_cells: int = 8,
        element: str = "hermite",
        time_degree: int = 2,
        time_smooth: bool = False,
        box: Box | None = None,
        mesh: Any = None,
    ) -> None:
        require_problem(problem, "Space")
        row, count = element_named(element), array_length(time_cells, "time_cells", SpaceError)
        time = LineBasis.uniform(problem.horizon, count, time_kind(time_degree, time_smooth))
        excluded = None
        if mesh is None and isinstance(problem.domain, MeshDomain):
            mesh = problem.domain.mesh
        if mesh is not None:
            if box is not None or cells is not None:
                raise SpaceError("give either mesh=, which a MeshDomain has already, or box= and cells=, not both")
            mesh = as_mesh(mesh, problem)
        else:
            counts = 16 if cells is None else cells
            for count in counts if isinstance(counts, tuple) else (counts,):
                array_length(count, "cells", SpaceError)
            if box is None:
                truncation = truncation_box(problem)
                box, excluded = truncation.box, truncation.excluded_mass if truncation.samples else None
            checked_box(problem, box)
            domain = problem.box
            if domain is not None and domain.bounded and not np.array_equal(box.bounds, domain.bounds):
                raise DomainError(
                    f"the process of {problem.name!r} is reflected in its own box, with corners"
                    f" {np.asarray(domain.bounds).tolist()}, got a box with corners"
                    f" {np.asarray(box.bounds).tolist()}; leave out box="
                )
            mesh = box_mesh(box, counts, row.kind_in(problem.dim))
        flat = isinstance(problem.domain, Box) and bool(problem.domain.where("reflecting").all())
        self._set(time, spatial_basis(mesh, row.name, flat=flat), excluded)

    @classmethod
    def product(cls, time: LineBasis, spatial: SpatialBasis, *, excluded_mass: float | None = None) -> Space:
        """The product of a given time basis, starting at 0, and a given basis in space.

        In time "P1".."P4" with any basis in space, "B2".."B4" with a smooth one, "hermite" with spectral elements.
        """
        if isinstance(time, LineBasis) and time.bounds[0] != 0.0:
            raise SpaceError(f"the time basis must be on a grid that starts at 0, got one from {time.bounds[0]:g}")
        return cls.from_(time, spatial, excluded_mass=excluded_mass)

    @classmethod
    def from_(cls, time: LineBasis, spatial: SpatialBasis, *, excluded_mass: float | None = None) -> Space:
        """The same, from whatever time on: a part of a `PanelSpace`."""
        space = cls.__new__(cls)
        space._set(time, spatial, excluded_mass)
        return space

    def _set(self, time: LineBasis, spatial: SpatialBasis, excluded_mass: float | None) -> None:
        if not isinstance(time, LineBasis) or not isinstance(spatial, SpatialBasis):
            raise SpaceError(
                "a Space is the product of a LineBasis and a SpatialBasis,"
                f" got {type(time).__name__} and {type(spatial).__name__}"
            )
        cubic = time.kind == "hermite" and isinstance(spatial, SpectralBasis)
        if (time.kind == "hermite" and not cubic) or time.flat:
            raise SpaceError(
                "the time basis must be P1..P4 or B2..B4, not flat, or hermite with spectral elements in space,"
                f" got {'flat ' if time.flat else ''}{time.kind!r}"
            )
        if time.smoothness and not spatial.smoothness and not cubic:
            raise SpaceError(
                f"B-splines in time need a smooth element in space, such as 'hermite' or 'B3', got {spatial.element!r}:"
                " gradients on continuous elements are recovered at time nodes; leave out time_smooth="
            )
        for name, value in (("time", time), ("spatial", spatial), ("excluded_mass", excluded_mass)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return (
            f"Space({self.time.n_cells} {self.time.kind} cells on [0, {self.horizon:g}] x {self.spatial.n_cells}"
            f" {self.spatial.kind} cells of {self.spatial.element!r}, {self.n_dofs} dofs)"
        )

    @property
    def dim(self) -> int:
        """d."""
        return self.spatial.dim

    @property
    def horizon(self) -> float:
        """T."""
        return self.time.bounds[1]

    @property
    def smoothness(self) -> int:
        """How many continuous derivatives in space the functions have."""
        return self.spatial.smoothness

    @property
    def shape(self) -> tuple[int, int]:
        """(time dofs, space dofs), the shape of a coefficient array."""
        return self.time.n_dofs, self.spatial.n_dofs

    @property
    def n_dofs(self) -> int:
        """The product of `shape`."""
        return self.time.n_dofs * self.spatial.n_dofs

    @property
    def n_cells(self) -> int:
        """The number of space-time cells."""
        return self.time.n_cells * self.spatial.n_cells

    @property
    def local_size(self) -> int:
        """Functions per space-time cell, lt * lx."""
        return self.time.local_size * self.spatial.local_size

    def cell_dofs(self, cells: ArrayLike | None = None) -> IntArray:
        """Dofs (n, lt * lx) of the given space-time cells (n,), of all cells if None."""
        ids = np.arange(self.n_cells) if cells is None else np.asarray(cells, dtype=np.int64)
        ct, cx = np.divmod(ids, self.spatial.n_cells)
        dofs = self.time.cell_dofs[ct][:, :, None] * self.spatial.n_dofs + self.spatial.cell_dofs[cx][:, None, :]
        return np.asarray(dofs.reshape(ids.size, -1))

    def coefficient_grid(self, coefficients: ArrayLike) -> FloatArray:
        """Coefficients as an array of `shape`, from that shape or from (n_dofs,)."""
        array = real_array(coefficients, "coefficients", SpaceError)
        if array.shape not in (self.shape, (self.n_dofs,)):
            raise SpaceError(f"coefficients must have shape {self.shape} or ({self.n_dofs},), got {array.shape}")
        return array.reshape(self.shape)

    def interpolate(self, function: Callable[[float, FloatArray], ArrayLike]) -> FloatArray:
        """Coefficients of `shape` of the interpolant of function(t, x), called with scalar t and all nodes x (n, d)."""
        x, times = self.spatial.nodes, self.time.nodes
        values = [call("function(t, x)", function, (float(t), x), SpaceError, passes=FemHjbError) for t in times]
        return self.time.interpolate(np.stack([self.spatial.interpolate(row) for row in values]))

    def lowest(self, coefficients: ArrayLike) -> float:
        """The lowest value at the nodes of space and time."""
        grid = self.coefficient_grid(coefficients)
        return float(min(self.spatial.at_nodes(row).min() for row in self.time.at_nodes(grid)))

    def locate(self, t: ArrayLike, x: ArrayLike) -> tuple[IntArray, tuple[FloatArray, FloatArray]]:
        """Space-time cells (n,), -1 outside, and (tau (n,), xi (n, d)) of points x (n, d), t scalar or (n,)."""
        times, points = self._flat(t, x)
        (ct, tau), (cx, xi) = self.time.locate(times), self.spatial.locate(points)
        return np.where(cx >= 0, ct * self.spatial.n_cells + cx, -1), (tau, xi)

    def tabulate(self, t: ArrayLike, x: ArrayLike, order: int = 1) -> Tabulation:
        """The basis functions at points x (m, d) and times t, scalar or (m,), with space derivatives up to `order`.

        Not chunked: a table of order 2 holds m * lx * d * d doubles, and its product lt times as many.
        Order 2 raises SpaceError unless the class is C1.
        """
        cells, (tau, xi) = self.locate(t, x)
        ct, cx = np.divmod(np.maximum(cells, 0), self.spatial.n_cells)
        time = self.time.tabulate(ct, tau, 1)
        time[cells < 0] = np.nan
        return Tabulation(cells=cells, time=time, space=self.spatial.tabulate(cx, xi, order))

    def _flat(self, t: ArrayLike, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        times, points = as_times(t, self.horizon), as_points(x, self.dim)
        if points.ndim != 2 or times.shape not in ((), points.shape[:1]):
            raise DomainError(
                f"expected points of shape (m, {self.dim}) and a scalar time or times of shape (m,),"
                f" got {points.shape} and {times.shape}"
            )
        return np.broadcast_to(times, points.shape[:1]), points

    def evaluate(
        self,
        coefficients: ArrayLike,
        t: ArrayLike,
        x: ArrayLike,
        derivative: Derivative = "value",
        *,
        outside: str = "error",
    ) -> FloatArray:
        """f(t, x), d_t f, grad f or Hess f of the function with these coefficients; see `derivatives`."""
        return self.derivatives(coefficients, t, x, (derivative,), outside=outside)[0]

    def derivatives(
        self,
        coefficients: ArrayLike,
        t: ArrayLike,
        x: ArrayLike,
        names: Sequence[Derivative],
        *,
        outside: str = "error",
    ) -> list[FloatArray]:
        """Several derivatives at the same points, which are located once.

        t : scalar or (...);  x : (..., d); they broadcast against each other to a shape S.
        names : of "value" -> S, "time" (d_t f) -> S, "gradient" -> (*S, d), "hessian" -> (*S, d, d), C1 classes only.
        outside : "error" raises DomainError if points lie outside the domain, "nan" returns nan there.

        On a time grid point d_t f is that of the cell on its right (at T, on its left); on a face of a C0 element the
        gradient is that of one of its cells. Points are treated in chunks of bounded memory.
        """
        one_of(outside, "outside", ("error", "nan"), SpaceError)
        for name in names:
            one_of(name, "derivative", tuple(_ORDER), SpaceError)
        grid = self.coefficient_grid(coefficients)
        times, points, shape = self.broadcast(t, x)
        cells, xi = self.locate_inside(points.reshape(-1, self.dim), shape, outside)
        order, moving = max(_ORDER[name] for name in names), "time" in names
        results = [np.full((cells.size, *[self.dim] * _ORDER[name]), np.nan) for name in names]
        when = times if times.ndim == 0 else np.broadcast_to(times, shape).ravel()
        inside, at = self._functions(grid, when, cells, xi, moving)
        size = self.chunk_size(max(self.spatial.table_width(order), self.time.local_size if times.ndim else 1))

        def fill(start: int) -> None:
            chunk = inside[start : start + size]
            still = at(chunk, False, order) if set(names) != {"time"} else ()
            changes = at(chunk, True, 0) if moving else ()
            for name, result in zip(names, results, strict=True):
                result[chunk] = changes[0] if name == "time" else still[_ORDER[name]]

        for_each(range(0, inside.size, size), fill)
        return [result.reshape(shape + result.shape[1:]) for result in results]

    def _functions(
        self, grid: FloatArray, times: FloatArray, cells: IntArray, xi: FloatArray, moving: bool
    ) -> tuple[IntArray, Callable[[IntArray, bool, int], Tables]]:
        """The points inside, and a function (some of them, time derivative?, order in space) -> what `tabulate` has.

        At one time those of all functions of time are summed up once, unless the points are few. Else points of a cell
        come one after the other.
        """
        basis, inside = self.spatial, np.flatnonzero(cells >= 0)
        if times.ndim == 0 and inside.size * basis.local_size > basis.n_dofs:
            ct, tau = self.time.locate(times[None])
            rows = self.time.tabulate(ct, tau, int(moving))[0] @ grid[self.time.cell_dofs[ct[0]]]
            return inside, lambda chunk, change, order: basis.at(rows[int(change)], cells[chunk], xi[chunk], order)
        ct, tau = self.time.locate(when := np.broadcast_to(times, cells.shape))
        first, count = self.time.cell_dofs[ct, 0], self.time.local_size  # other functions of time follow the first
        key = ct * basis.n_cells + cells

        def at(chunk: IntArray, change: bool, order: int) -> Tables:
            new = np.diff(key[chunk], prepend=-1) != 0  # neighbours share what belongs to a cell
            own = new | (np.diff(when[chunk], prepend=-1.0) != 0)  # and at one time what that leaves of it
            few, block = chunk[own], np.cumsum(new)[own] - 1
            blocks = basis.gathered(grid, first[chunk[new]], count, cells[chunk[new]])[block]
            local = (self.time.tabulate(ct[few], tau[few], int(change))[:, -1:] @ blocks)[:, 0]
            return basis.contract(local[np.cumsum(own) - 1], cells[chunk], xi[chunk], order)

        return inside[np.argsort(key[inside], kind="stable")], at

    def broadcast(self, t: ArrayLike, x: ArrayLike) -> tuple[FloatArray, FloatArray, tuple[int, ...]]:
        """Checked times (a scalar stays one), points broadcast to (*S, d), and the common shape S."""
        return broadcast_points(t, x, self.horizon, self.dim)

    def locate_inside(self, x: FloatArray, shape: tuple[int, ...], outside: str) -> tuple[IntArray, FloatArray]:
        """Cells and reference coordinates of points (n, d); DomainError if outside="error" and some are outside."""
        cells, xi = self.spatial.locate(x)
        if outside == "error" and (bad := cells < 0).any():
            raise DomainError(_describe_outside(bad.reshape(shape), x.reshape(*shape, self.dim), self.spatial.box))
        return cells, xi

    def chunk_size(self, width: int) -> int:
        """How many points to treat at once so that tables of `width` doubles per function and point stay bounded."""
        return max(1, min(_CHUNK_POINTS, _CHUNK_DOUBLES // (self.spatial.local_size * width)))
