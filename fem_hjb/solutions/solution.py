"""The result of every solver: f on a space-time class, and through it value, gradient and policy anywhere."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fem_hjb.problems.gauge import Unknown, ValueGauge
from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.solutions.checks import Check, told
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.recovery import GradientRecovery
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import (
    FloatArray,
    IntArray,
    as_points,
    as_times,
    non_negative_number,
    one_of,
    positive_number,
    require,
)
from fem_hjb.support.errors import PositivityError, ProblemError, SpaceError
from fem_hjb.support.objects import Plain

_CACHE_BYTES = 1 << 28  # of recovered nodal gradients, at least one time cell's
_NEGLIGIBLE = 1e-13  # of a time function: zero up to rounding


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Solution(Plain):
    r"""The solution of a control problem as a function of a space-time class, dense in time.

    u = sum C[k, j] psi_k(t) phi_j(x) is what its gauge says (`problems.gauge`): f = exp(v / alpha) up to the constants
    c_y, c_r of a `Gauge`,

        v = alpha log f + c_y + c_r (T - t),     pi = (1/alpha) Lambda grad v,

    what is left of f or of v when a quadratic is taken out, or the like.

    On C1 classes and spectral elements grad v comes from grad u: alpha grad f / f for a `Gauge`. On the continuous
    elements of meshes that is the least accurate quantity of all, so grad v is recovered: at every node of the time
    basis v is taken at the nodes of the mesh, polynomials of one degree more are fitted around each vertex and
    differentiated there, and these nodal gradients are interpolated with the same bases in space and time. They are
    computed when first needed and kept in a bounded cache.

    Parameters (all by keyword)
    ---------------------------
    problem, space, gauge
    coefficients : C, of `space.shape` or raveled; kept as a read-only array of that shape.
    method : which solver made it;  status : how that went.
    stats : figures of the solver, read-only; "min_f", the lowest f at nodes and time nodes, is added.
    error_estimate : None, or an `ErrorEstimate` of the relative errors of value and policy.
    checks : what was looked at before it was handed out, see `solutions.checks`; `print` shows them.
    floor : f (or what is left of it) is taken to be at least this, see `with_floor`; 0: it is taken as it is.

    Raises SpaceError if coefficients and space, or space and problem, do not fit.
    """

    problem: ControlProblem
    space: Space | PanelSpace
    coefficients: ArrayLike
    gauge: Unknown
    method: str
    status: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    error_estimate: ErrorEstimate | None = None
    checks: tuple[Check, ...] = ()
    floor: float = 0.0
    _grid: FloatArray = field(init=False, repr=False)
    _recovered: _RecoveredGradients | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        problem, space = self.problem, self.space
        require_problem(problem, "Solution")
        if not isinstance(space, Space | PanelSpace):
            raise SpaceError(f"Solution needs a Space, got {type(space).__name__}")
        require(self.gauge, Unknown, "Solution", ProblemError)
        require(self.stats, Mapping, "Solution: stats", ProblemError)
        if space.dim != problem.dim or abs(space.horizon - problem.horizon) > 1e-12 * problem.horizon:
            raise SpaceError(
                f"the space has dimension {space.dim} and horizon {space.horizon:g}, but the problem {problem.name!r}"
                f" has {problem.dim} and {problem.horizon:g}; build the space for this problem"
            )
        grid = space.coefficient_grid(self.coefficients)
        if not np.isfinite(grid).all():
            raise SpaceError(f"coefficients must be finite, got {int((~np.isfinite(grid)).sum())} that are not")
        grid = _read_only(grid)
        put = object.__setattr__
        put(self, "coefficients", grid)
        put(self, "_grid", grid)
        put(self, "stats", MappingProxyType({**self.stats, "min_f": space.lowest(grid)}))
        if non_negative_number(self.floor, "floor", PositivityError):
            put(self, "floor", positive_number(self.floor, "floor", PositivityError))
            if not self._logarithmic:
                raise PositivityError("this solution is of v itself, whose sign is free: it needs no floor")
        if isinstance(space, Space) and isinstance(space.spatial, MeshBasis):
            put(self, "_recovered", _RecoveredGradients(grid, space, space.spatial, self.floor))

    def __str__(self) -> str:
        tried = self.stats.get("tried", ())
        return told(self.problem.name, self.method, self.status, self.error_estimate, self.checks, tried)

    @property
    def minimum_f(self) -> float:
        """The lowest value of the gauged f at the nodes of space and time; it must be positive."""
        return float(self.stats["min_f"])

    def with_floor(self, floor: float) -> Solution:
        """The same solution with max(f, floor) for f, which has a value everywhere, and no policy below the floor.

        A remedy for a learned f that is not positive where hardly a sample goes (`stats["nonpositive_mass"]`), explicit
        and discontinuous in the policy. `fit(..., constraint=Bounds(0))` learns a non-negative f instead.

        Raises PositivityError unless floor is a positive finite number, and for solutions of v itself.
        """
        positive_number(floor, "floor", PositivityError)
        return replace(self, floor=floor)

    def f(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """The gauged f_t(x), shape S.

        t : scalar or (...);  x : (..., d); they broadcast against each other to the shape S.
        outside : "error" raises DomainError naming the points outside the domain, "nan" returns nan there.
        """
        return self.gauge.f(t, x, self._lifted(self.space.evaluate(self._grid, t, x, "value", outside=outside)))

    def value(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error", nonpositive: str = "error") -> FloatArray:
        """v_t(x), shape S as in `f`.

        nonpositive : where f <= 0, "error" raises PositivityError saying where and how negative, "nan" returns nan.
        """
        u = self._lifted(self.space.evaluate(self._grid, t, x, "value", outside=outside))
        if _is_nan(nonpositive) and self._logarithmic:
            u[u <= 0] = np.nan
        return self._value(t, x, u)

    def gradient(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error", nonpositive: str = "error") -> FloatArray:
        """grad v_t(x), shape (*S, d); arguments as in `value`.

        A recovered gradient needs f > 0 at all nodes of the patches around x, at the time nodes around t.
        """
        as_nan = _is_nan(nonpositive)
        if self._recovered is not None:
            gradient, bad = self._recovered(t, x, outside, self.problem.temperature)
            if bad.any() and not as_nan:
                raise PositivityError(self._why_not_recovered(t, x, bad))
            return gradient
        u, slope = self.space.derivatives(self._grid, t, x, ("value", "gradient"), outside=outside)
        if self.floor:
            slope[u < self.floor] = 0.0
            u = self._lifted(u)
        if self._logarithmic:
            if as_nan:
                u[u <= 0] = np.nan
            else:
                self._value(t, x, u)
        return self.gauge.gradient(t, x, u, slope)

    def policy(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error", nonpositive: str = "error") -> FloatArray:
        """pi_t(x) = (1/alpha) Lambda_t(x) grad v_t(x), shape (*S, d); arguments as in `value`."""
        gradient = self.gradient(t, x, outside=outside, nonpositive=nonpositive)
        times, points, shape = self.space.broadcast(t, x)
        known = np.isfinite(gradient).all(axis=-1)
        policy = np.full(gradient.shape, np.nan)
        when = times if times.ndim == 0 else np.broadcast_to(times, shape)[known]
        policy[known] = self.problem.policy_from_gradient(when, points[known], gradient[known])
        return policy

    def _lifted(self, u: FloatArray) -> FloatArray:
        return np.maximum(u, self.floor) if self.floor else u

    def _value(self, t: ArrayLike, x: ArrayLike, u: FloatArray) -> FloatArray:
        try:
            return self.gauge.value(t, x, u)
        except PositivityError as error:
            if "nonpositive_mass" not in self.stats:
                raise
            mass = self.stats["nonpositive_mass"]
            raise PositivityError(
                f"{error}. The learned f is not positive on {mass:.2%} of the mass of the samples"
                + ("" if mass else ", only where it is extended to where none went")
                + "; fit with constraint=Bounds(0), or take solution.with_floor(eps)"
            ) from error

    @property
    def _logarithmic(self) -> bool:
        return not isinstance(self.gauge, ValueGauge)

    def _why_not_recovered(self, t: ArrayLike, x: ArrayLike, bad: NDArray[np.bool_]) -> str:
        times, points, shape = self.space.broadcast(t, x)
        first = tuple(np.argwhere(bad)[0])
        when = np.broadcast_to(times, shape)[first]
        return (
            f"the gradient of v is undefined at {int(bad.sum())} of {bad.size} points, the first at t={when:.6g},"
            f" x={points[first].tolist()}: f <= 0 at nodes around them (the lowest f of all nodes is"
            f" {self.minimum_f:.3g}); refine the mesh or the time steps, raise the temperature, or shrink the box"
        )


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ProductSolution(Plain):
    """Independent problems side by side: v_t(x) = sum_k v^k_t(x_k), so that f is the product of theirs.

    parts : the coordinates of each factor, which together are all of them, and its `Solution`. Methods and attributes
    are those of a `Solution`, in any dimension.
    """

    problem: ControlProblem
    parts: tuple[tuple[tuple[int, ...], Solution], ...]
    status: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    error_estimate: ErrorEstimate | None = None
    checks: tuple[Check, ...] = ()
    method: str = field(init=False, default="product")

    def __post_init__(self) -> None:
        require_problem(self.problem, "ProductSolution")
        require(self.stats, Mapping, "ProductSolution: stats", ProblemError)
        if not isinstance(self.parts, Sequence) or not all(map(_is_part, self.parts)):
            raise SpaceError(f"parts must be pairs of coordinates and a Solution, got {self.parts!r}")
        covered = sorted(i for index, _ in self.parts for i in index)
        if covered != list(range(self.problem.dim)):
            raise SpaceError(f"the factors must take each of {self.problem.dim} coordinates once, got {covered}")
        object.__setattr__(self, "stats", MappingProxyType(dict(self.stats)))

    def __str__(self) -> str:
        return told(self.problem.name, self.method, self.status, self.error_estimate, self.checks)

    def f(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """The gauged f_t(x), shape S, the product of the factors'; arguments as those of `Solution`."""
        points = as_points(x, self.problem.dim)
        return np.asarray(math.prod(part.f(t, points[..., list(i)], outside=outside) for i, part in self.parts))

    def value(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error", nonpositive: str = "error") -> FloatArray:
        """v_t(x), shape S."""
        points = as_points(x, self.problem.dim)
        values = [
            part.value(t, points[..., list(i)], outside=outside, nonpositive=nonpositive) for i, part in self.parts
        ]
        return np.asarray(sum(values))

    def gradient(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error", nonpositive: str = "error") -> FloatArray:
        """grad v_t(x), shape (*S, d)."""
        return self._stacked("gradient", t, x, outside, nonpositive)

    def policy(self, t: ArrayLike, x: ArrayLike, *, outside: str = "error", nonpositive: str = "error") -> FloatArray:
        """pi_t(x) = (1/alpha) Lambda_t(x) grad v_t(x), shape (*S, d)."""
        return self._stacked("policy", t, x, outside, nonpositive)

    def _stacked(self, name: str, t: ArrayLike, x: ArrayLike, outside: str, nonpositive: str) -> FloatArray:
        points = as_points(x, self.problem.dim)
        shape = np.broadcast_shapes(as_times(t, self.problem.horizon).shape, points.shape[:-1])
        result = np.empty((*shape, self.problem.dim))
        for i, part in self.parts:
            rows = getattr(part, name)(t, points[..., list(i)], outside=outside, nonpositive=nonpositive)
            result[..., list(i)] = rows
        return result


def _is_part(part: Any) -> bool:
    """Whether this is a pair of coordinates and a solution."""
    return isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], tuple) and isinstance(part[1], Solution)


def _is_nan(nonpositive: str) -> bool:
    return one_of(nonpositive, "nonpositive", ("error", "nan"), SpaceError) == "nan"


def _read_only(array: FloatArray) -> FloatArray:
    """The array itself if nobody can write to it, else a read-only copy."""
    if array.flags.writeable or (array.base is not None and array.base.flags.writeable):
        array = array.copy()
        array.setflags(write=False)
    return array


@final
class _RecoveredGradients:
    """grad v on continuous elements, from gradients recovered at the nodes of each time node that is needed."""

    def __init__(self, coefficients: FloatArray, space: Space, basis: MeshBasis, floor: float) -> None:
        self._coefficients, self._space, self._basis, self._floor = coefficients, space, basis, floor
        self._recovery: GradientRecovery | None = None
        self._cache: OrderedDict[int, FloatArray] = OrderedDict()
        needed = basis.nodes.nbytes
        self._capacity = max(space.time.local_size, _CACHE_BYTES // needed)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is computed again when needed."""
        return {**self.__dict__, "_recovery": None, "_cache": OrderedDict()}

    def _nodal(self, time_dof: int) -> FloatArray:
        """Gradients (n_nodes, d) of log f at a time node; nan on patches with a node where f <= 0."""
        if time_dof in self._cache:
            self._cache.move_to_end(time_dof)
            return self._cache[time_dof]
        basis = self._basis
        if self._recovery is None:
            self._recovery = GradientRecovery(
                basis.nodes,
                basis.cell_dofs,
                basis.vertices,
                basis.cell_vertices,
                basis.vertex_functions,
                basis.degree,
            )
        f = self._coefficients[time_dof]
        if self._floor:
            f = np.maximum(f, self._floor)
        gradients = self._recovery(np.log(np.where(f > 0, f, np.nan)))
        self._cache[time_dof] = gradients
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return gradients

    def __call__(
        self, t: ArrayLike, x: ArrayLike, outside: str, temperature: float
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """grad v (*S, d), and where it is undefined inside the domain (S)."""
        one_of(outside, "outside", ("error", "nan"), SpaceError)
        space, time = self._space, self._space.time
        times, points, shape = space.broadcast(t, x)
        flat = points.reshape(-1, space.dim)
        cells, xi = space.locate_inside(flat, shape, outside)
        result = np.full(flat.shape, np.nan)
        ct, tau = time.locate(np.broadcast_to(times, shape).ravel())
        inside = np.flatnonzero(cells >= 0)
        inside = inside[np.argsort(ct[inside], kind="stable")]
        visited, counts = np.unique(ct[inside], return_counts=True)
        for cell, end, count in zip(visited, np.cumsum(counts), counts, strict=True):
            group = inside[end - count : end]
            weights = time.tabulate(ct[group], tau[group], 0)[:, 0]
            # at a time node only its own gradients count, whatever its neighbours are
            used = np.abs(weights) > _NEGLIGIBLE
            needed = np.flatnonzero(used.any(axis=0))
            nodal = [self._nodal(int(dof)) for dof in time.cell_dofs[cell][needed]]
            weights, used = weights[:, needed], used[:, needed]
            if np.ptp(tau[group]) == 0.0:
                nodal = [sum(w * gradients for w, gradients in zip(weights[0], nodal, strict=True))]
                weights, used = np.ones((count, 1)), np.ones((count, 1), dtype=np.bool_)
            size = space.chunk_size(space.dim)
            for start in range(0, count, size):
                part, here = group[start : start + size], slice(start, start + size)
                result[part] = self._interpolate(nodal, weights[here], used[here], cells[part], xi[part])
        bad = np.zeros(len(flat), dtype=np.bool_)
        bad[inside] = np.isnan(result[inside]).any(axis=1)
        return temperature * result.reshape(*shape, space.dim), bad.reshape(shape)

    def _interpolate(
        self,
        nodal: list[FloatArray],
        weights: FloatArray,
        used: NDArray[np.bool_],
        cells: IntArray,
        xi: FloatArray,
    ) -> FloatArray:
        """sum_k weights_k sum_j phi_j nodal[k][j] at points, (m, d), over the time nodes k used at each."""
        (phi,) = self._basis.tabulate(cells, xi, 0)
        dofs = self._basis.cell_dofs[cells]
        result = np.zeros(xi.shape)
        for gradients, weight, mask in zip(nodal, weights.T, used.T, strict=True):
            here = np.einsum("ml,mld->md", phi, gradients[dofs])
            result += np.where(mask[:, None], weight[:, None] * here, 0.0)
        return result
