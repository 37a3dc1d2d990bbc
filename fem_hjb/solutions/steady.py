"""Functions of the state alone, by their coefficients on a finite-element basis; results of problems without time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.exit import ExitProblem
from fem_hjb.solutions.checks import Check, told
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.recovery import GradientRecovery
from fem_hjb.support.checks import FloatArray, as_points, one_of, require
from fem_hjb.support.errors import DomainError, ProblemError, SpaceError
from fem_hjb.support.objects import Plain

_CHUNK = 1 << 14


@final
class SteadyFunction(Plain):
    """u(x) and grad u(x) of a function with these coefficients (n_dofs,) on a basis.

    On continuous elements of meshes gradients are recovered at the nodes first, as those of a `Solution` are.
    """

    def __init__(self, basis: SpatialBasis, coefficients: FloatArray) -> None:
        if np.shape(coefficients) != (basis.n_dofs,) or not np.isfinite(coefficients).all():
            raise SpaceError(f"coefficients must be finite and of shape ({basis.n_dofs},)")
        self.basis = basis
        self.coefficients = np.array(coefficients, dtype=np.float64)
        self.coefficients.setflags(write=False)
        self._nodal: FloatArray | None = None

    def value(self, x: ArrayLike, outside: str = "error") -> FloatArray:
        """u(x), shape (...); outside="nan" returns nan where "error" raises a DomainError."""
        return self._evaluated(x, outside, 0)

    def gradient(self, x: ArrayLike, outside: str = "error") -> FloatArray:
        """grad u(x), shape (..., d)."""
        if not isinstance(self.basis, MeshBasis):
            return self._evaluated(x, outside, 1)
        if self._nodal is None:
            b = self.basis
            known = b.nodes, b.cell_dofs, b.vertices, b.cell_vertices, b.vertex_functions, b.degree
            self._nodal = GradientRecovery(*known)(self.coefficients)
        return self._evaluated(x, outside, 0, self._nodal)

    def _evaluated(self, x: ArrayLike, outside: str, order: int, nodal: FloatArray | None = None) -> FloatArray:
        one_of(outside, "outside", ("error", "nan"), SpaceError)
        basis, points = self.basis, as_points(x, self.basis.dim)
        flat = points.reshape(-1, basis.dim)
        cells, xi = basis.locate(flat)
        inside = np.flatnonzero(cells >= 0)
        if outside == "error" and inside.size < len(flat):
            first = flat[np.flatnonzero(cells < 0)[0]]
            lower, upper = basis.box.bounds
            raise DomainError(
                f"{len(flat) - inside.size} of {len(flat)} points lie outside the domain, within the box"
                f" {lower.tolist()} to {upper.tolist()}; the first is {first.tolist()}"
            )
        result = np.full((len(flat), *(basis.dim,) * (order or nodal is not None)), np.nan)
        for k in range(0, inside.size, _CHUNK):
            part = inside[k : k + _CHUNK]
            if nodal is None:
                result[part] = basis.at(self.coefficients, cells[part], xi[part], order)[order]
            else:
                (phi,) = basis.tabulate(cells[part], xi[part], 0)
                result[part] = np.einsum("ml,mld->md", phi, nodal[basis.cell_dofs[cells[part]]])
        return result.reshape(points.shape[:-1] + result.shape[1:])


def _checked_parts(result: ExitSolution | ExitExpectation) -> None:
    """The parts of a result are what they should be; its stats become read-only."""
    who = type(result).__name__
    require(result.problem, ExitProblem, who, ProblemError)
    require(result.function, SteadyFunction, who, SpaceError)
    require(result.stats, Mapping, f"{who}: stats", ProblemError)
    object.__setattr__(result, "stats", MappingProxyType(dict(result.stats)))


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ExitSolution(Plain):
    """Value and policy of an `ExitProblem`, at any point of its domain.

    function : of v itself; f = exp(v / alpha).  method : how it was found, "linear" or "value" first.
    error_estimate : relative errors in L2 of the domain (the uniform law): of v against its size, but a millionth of
        the temperature at least; of the policy pointwise in |a|^2 = a' Lambda^{-1} a.
    checks : what was looked at before it was handed out.  status : "ok" only if all of them passed and the tolerance
        is met.  stats : figures of the solver.
    """

    problem: ExitProblem
    function: SteadyFunction
    method: str
    status: str
    error_estimate: ErrorEstimate | None = None
    checks: tuple[Check, ...] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checked_parts(self)

    def __str__(self) -> str:
        return told(self.problem.name, self.method, self.status, self.error_estimate, self.checks)

    def value(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """v(x), shape (...) for points x (..., d); outside="nan" returns nan where "error" raises a DomainError."""
        return self.function.value(x, outside)

    def gradient(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """grad v(x), shape (..., d)."""
        return self.function.gradient(x, outside)

    def policy(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """pi(x) = (1/alpha) Lambda(x) grad v(x), shape (..., d)."""
        points = as_points(x, self.problem.dim)
        slopes = self.function.gradient(points, outside)
        known = np.isfinite(slopes).all(axis=-1)
        result = np.full(slopes.shape, np.nan)
        result[known] = self.problem.policy_from_gradient(points[known], slopes[known])
        return result

    def f(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """f(x) = exp(v(x) / alpha), shape (...); 0 or infinity where double precision ends, and v does not."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(self.function.value(x, outside) / self.problem.temperature))


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ExitExpectation(Plain):
    """u(x) = E[ h(X_tau) + int_0^tau s(X_t) dt | X_0 = x ] of an uncontrolled process: of any sign, without a policy.

    error_estimate : relative errors in L2 of the domain, of u, and (its `policy`) of grad u in |a|^2 = a' Lambda a.
    Attributes else as those of an `ExitSolution`.
    """

    problem: ExitProblem
    function: SteadyFunction
    method: str
    status: str
    error_estimate: ErrorEstimate | None = None
    checks: tuple[Check, ...] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checked_parts(self)

    def __str__(self) -> str:
        return told(self.problem.name, self.method, self.status, self.error_estimate, self.checks)

    def value(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """u(x), shape (...) for points x (..., d); outside="nan" returns nan where "error" raises a DomainError."""
        return self.function.value(x, outside)

    def gradient(self, x: ArrayLike, *, outside: str = "error") -> FloatArray:
        """grad u(x), shape (..., d)."""
        return self.function.gradient(x, outside)
