r"""The law of the process: its density p_t, from the adjoint of the operators that the value is solved with.

The density of X_t, dX = (b + pi) dt + Lambda^{1/2} dB, solves the Fokker-Planck equation forward in time,

    d_t p = L* p = -div((b + pi) p) + 1/2 sum_kl d_k d_l (Lambda_kl p),      p_0 the initial law,

without flux through natural and reflecting faces, and with p = 0 on absorbing ones.

On a box p is kept at the nodes of spectral elements, and L* = W^{-1} L' W is the adjoint of the matrix L that
`box_operators` makes of the generator, W the nodes' weights. L annihilates constants, so the mass sum_i w_i p_i is
conserved to rounding whatever the grid. In one dimension time is stepped by collocation, in more by Lawson's method.
On a mesh M p' = K' p with the matrices of `mesh_operators`, which conserves 1' M p, by implicit steps of order 4.

A process that starts at a point has a density only later. Up to a small time t_0 its law is taken to be the Gaussian
whose mean m and covariance C solve the moment equations m' = E b(X), C' = E Lambda(X) + E b(X)(X - m)' + its transpose,
with X ~ N(m, C) on the right: S. Sarkka, IEEE Trans. Automat. Control 52 (2007) 1631-1641. This is exact for linear
drifts and constant Lambda. Otherwise mean, covariance and third cumulant miss terms of O(t_0^3) where Lambda is
constant, and the third cumulant one of O(t_0^2) where it is not: so does everything later. t_0 is 0.002 (0.004, 0.01 in
two, three dimensions) times the smaller of T and 1 / |db/dx|, or as late as a given grid needs to see the law.

Source: H. Risken, The Fokker-Planck Equation, Springer 1989, chapter 4.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import roots_hermitenorm

from fem_hjb.paths.extent import truncation_box
from fem_hjb.problems.box import BoolArray, Box
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.laws import Gaussian, Law, MarginalLaw, PointMass, tensor_rule
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.reference.box_operators import BoxOperators, Fields, SeparableOperator
from fem_hjb.reference.mesh_operators import MeshOperators
from fem_hjb.solutions.density import DensityLaw, check_continuous
from fem_hjb.spaces.axes import apply_sum
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.mesh_files import as_mesh
from fem_hjb.spaces.space import Space, spatial_basis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.stepping.esdirk import LinearSystem, Solve, esdirk, rtol_in_range
from fem_hjb.stepping.lawson import LawsonStep, lawson
from fem_hjb.stepping.radau import radau
from fem_hjb.support.checks import FloatArray, IntArray, as_times, frozen_array
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError

Policy = Callable[[float, FloatArray], ArrayLike]

_DEGREE, _CELLS, _MOST_NODES = {1: 16, 2: 12, 3: 10}, {1: 6, 2: 5, 3: 4}, {1: 769, 2: 193, 3: 81}
_GRADED = 0.3  # of the half-width of a box: where cells begin to grow towards truncated faces
_RTOL = {1: 1e-8, 2: 1e-7, 3: 1e-5}
_FACE = 1e-14  # of the maximum: what the density may be at a face that is a truncation
_ROUGH = 10.0  # rtol: what the highest coefficients may be; errors in time are seen in them, too
_PASSES = 8
_STAGES = 4  # of collocation: its dense output has the degree of the elements in time
_POINT = {1: 2e-3, 2: 4e-3, 3: 1e-2}  # t_0, in units of the time scale of the drift
_CONSERVED = 1e-10


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class DensitySolution:
    """p_t(x) on [0, T] x domain, as `solve` returns it.

    problem : whose process it is;  space : a time basis times a basis in space.
    coefficients : p at the nodes, of `space.shape`, read-only.
    status : "ok", or which tolerances were missed; and at how many nodes p is negative, with the lowest p relative to
        the maximum of its time. Negative values, in far tails mostly, are kept as they are.
    stats : read-only; route, dofs, steps, seconds; mass, a mapping with initial, final, drift (the largest change; what
        absorbing faces took counts as lost instead) and lost; face, the largest density at truncated faces relative to
        the maximum of its time; tail, the same of the highest Legendre coefficients (boxes).
    start : t_0 of a process that starts at a point, else 0. Before it the law is a Gaussian, and coefficients are those
        at t_0.
    early : t -> that Gaussian, or None.
    """

    problem: ControlProblem
    space: Space
    coefficients: ArrayLike
    status: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    start: float = 0.0
    early: MarginalLaw | None = None
    _grid: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        grid = frozen_array(self.coefficients, "the coefficients of a density", self.space.shape, ConvergenceError)
        for name, value in (("coefficients", grid), ("_grid", grid), ("stats", MappingProxyType(dict(self.stats)))):
            object.__setattr__(self, name, value)

    def law(self, t: float) -> Law:
        """The law of X_t: a `DensityLaw`; before `start` a Gaussian, and the point itself at t = 0.

        Raises DomainError for t outside [0, T].
        """
        when = as_times(t, self.space.horizon)
        if when.ndim:
            raise DomainError(f"law(t) takes one time, got an array of shape {when.shape}")
        if self.early is not None and when < self.start:
            return self.early(float(when))
        cells, tau = self.space.time.locate(when[None])
        psi = self.space.time.tabulate(cells, tau, 0)[0, 0]
        return DensityLaw(self.space.spatial, psi @ self._grid[self.space.time.cell_dofs[cells[0]]])

    @property
    def marginal(self) -> MarginalLaw:
        """`law`, as `ControlProblem(marginal=...)` takes it."""
        return self.law

    def density(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """p_t(x), shape S of t and x[..., 0] broadcast together; 0 outside the domain, negative values included.

        Raises ProblemError at t = 0 if the process starts at a point.
        """
        times, points, shape = self.space.broadcast(t, x)
        flat = points.reshape(-1, self.space.dim)
        when, which = np.unique(np.broadcast_to(times, shape).ravel(), return_inverse=True)
        result = np.empty(len(flat))
        for i, s in enumerate(when):
            law, here = self.law(float(s)), np.flatnonzero(which == i)
            result[here] = law.density(flat[here]) if isinstance(law, DensityLaw) else np.exp(law.logpdf(flat[here]))
        return result.reshape(shape)


def solve(
    problem: ControlProblem,
    *,
    policy: Policy | None = None,
    basis: SpectralBasis | None = None,
    mesh: Any = None,
    element: str = "P2",
    box: Box | None = None,
    rtol: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> DensitySolution:
    """The density of X_t for 0 <= t <= T, in one, two or three dimensions; see the module.

    policy : pi, a callable (t, x (n, d)) -> (n, d), t a number: the law of the controlled process. It must be defined
        on all of the box: with the policy of a `Solution` give the box of that solution.
    basis : spectral elements. Or
    mesh, element : a scikit-fem mesh or the path of a mesh file, and a continuous element. Or neither, then
    box : is cut into spectral elements, which are made smaller until they resolve the density to rtol, its maximum
        being 1. By default problem.domain, or a box found by simulation; its truncated faces are moved out until the
        density at them is below 1e-14 of its maximum, as long as that helps.
    rtol : the tolerance of each time step and of interpolation between steps, relative in L2, and that of automatic
        elements; 1e-8, 1e-7, 1e-5 in one, two, three dimensions if not given.
    progress : called after every time step with the fraction of [0, T] done (once more from 0 for every new grid).

    Raises
    ------
    ProblemError : the policy returns a wrong shape, or numbers that are not finite.
    DomainError, SpaceError : basis, mesh, element or box do not fit the problem or each other.
    ConvergenceError : rtol is out of range or the time stepping fails; in more than one dimension perhaps because what
        is not a sum of operators on one axis each is too stiff for explicit steps: use a mesh.
    """
    started = time.perf_counter()
    if not isinstance(problem, ControlProblem):
        raise ProblemError(f"fokker_planck.solve needs a ControlProblem, got {type(problem).__name__}")
    if problem.dim > 3:
        raise DomainError(f"densities are solved for up to dimension 3, the problem has dim={problem.dim}")
    given = [name for name, value in (("basis", basis), ("mesh", mesh), ("box", box)) if value is not None]
    if len(given) > 1:
        raise DomainError(f"give one of basis, mesh and box, got {' and '.join(given)}")
    tolerance = rtol_in_range(_RTOL[problem.dim] if rtol is None else rtol, "rtol")
    tell = (lambda _: None) if progress is None else progress
    bare = _without_rewards(problem, policy)
    if mesh is not None:
        on: SpatialBasis = spatial_basis(as_mesh(mesh, problem), element)
        check_continuous(on)
        _check_reflection(bare, on)
        begin = _begin(bare, on)
        march = _on_mesh(bare, on, begin, tolerance, tell)
        missed: list[str] = []
    elif basis is not None:
        on = _fitting(basis, problem)
        begin = _begin(bare, on)
        march, missed = _on_box(bare, on, begin, tolerance, tell), []
    else:
        begin, march, missed = _automatic(bare, box, tolerance, tell)
    return _solution(problem, begin, march, missed, started)


# ---------------------------------------------------------------------------------------------------------------------
# What is solved, and from where


@final
@dataclass(frozen=True, eq=False)
class _Begin:
    """The time from which the law has a density, that law, and the laws before."""

    time: float
    law: Law
    early: MarginalLaw | None = None


@final
@dataclass(frozen=True, eq=False)
class _March:
    """p at the nodes of a time basis (rows, in increasing t)."""

    basis: SpatialBasis
    line: LineBasis
    rows: FloatArray
    counts: dict[str, Any]
    weights: FloatArray  # of the dofs in the mass


def _without_rewards(problem: ControlProblem, policy: Policy | None) -> ControlProblem:
    """The same process, steered by the policy, with nothing to gain."""
    drift = problem.drift
    if policy is not None:
        if not callable(policy):
            raise ProblemError(f"policy must be a callable (t, x) or None, got {type(policy).__name__}")

        def drift(t: ArrayLike, x: FloatArray) -> FloatArray:
            return problem.b(t, x) + _steer(policy, t, x)

    return replace(
        problem,
        drift=drift,
        terminal_reward=lambda x: np.zeros(x.shape[:-1]),
        running_reward=None,
        exact=None,
        marginal=None,
    )


def _steer(policy: Policy, t: ArrayLike, x: FloatArray) -> FloatArray:
    """The policy at points x (..., d), for one time or, one after the other, several of them."""
    if np.ndim(t) == 0:
        result = np.asarray(policy(float(np.asarray(t)), x.reshape(-1, x.shape[-1])), dtype=np.float64)
        if result.size != x.size:
            raise ProblemError(
                f"policy(t, x) returned shape {result.shape} for x of shape {(x.size // x.shape[-1], x.shape[-1])},"
                " expected the same shape"
            )
        return result.reshape(x.shape)
    times = np.broadcast_to(t, x.shape[:-1])
    result = np.empty(x.shape)
    for s in np.unique(times):
        result[times == s] = _steer(policy, s, x[times == s])
    return result


def _fitting(basis: SpectralBasis, problem: ControlProblem) -> SpectralBasis:
    if not isinstance(basis, SpectralBasis) or basis.dim != problem.dim:
        got = f"one of dimension {basis.dim}" if isinstance(basis, SpectralBasis) else type(basis).__name__
        raise SpaceError(f"basis must be a SpectralBasis of dimension {problem.dim}, got {got}; for others give mesh=")
    domain = problem.domain
    if domain is not None:
        own, needed = np.asarray(basis.box.bounds), np.asarray(domain.bounds)
        if (np.abs(own - needed) > 1e-9 * np.ptp(own, axis=0))[np.isfinite(needed)].any():
            raise DomainError(
                f"the process of {problem.name!r} lives in a box with corners {needed.tolist()}, the basis has corners"
                f" {own.tolist()}"
            )
    return basis


def _check_reflection(problem: ControlProblem, basis: SpatialBasis) -> None:
    """On a mesh no flux means reflection along Lambda n, which is normal reflection for a diagonal Lambda."""
    domain = problem.domain
    if domain is None or problem.dim == 1 or not domain.where("reflecting").any():
        return
    for t in (0.0, 0.5 * problem.horizon, problem.horizon):
        Lambda = problem.Lambda(t, basis.nodes)
        mixed = Lambda[:, ~np.eye(problem.dim, dtype=np.bool_)]
        if np.abs(mixed).max() > 1e-10 * np.abs(Lambda).max():
            raise DomainError(
                "on a mesh normal reflection needs a diagonal diffusion: the weak form reflects along Lambda n; leave"
                " out mesh= to solve on a box"
            )


def _absorbed(problem: ControlProblem, basis: SpatialBasis) -> BoolArray:
    """Which nodes lie on absorbing faces."""
    mask = np.zeros(len(basis.nodes), dtype=np.bool_)
    domain = problem.domain
    if domain is not None and domain.absorbing:
        reach = 1e-9 * np.ptp(np.asarray(basis.box.bounds), axis=0)
        for side, axis in np.argwhere(domain.where("absorbing")):
            mask |= np.abs(basis.nodes[:, axis] - domain.bounds[side][axis]) <= reach[axis]
    return mask


def _begin(problem: ControlProblem, basis: SpatialBasis | None) -> _Begin:
    """The law to start from; after a point, at a time at which a given basis resolves it."""
    law, T = problem.initial_law, problem.horizon
    if not isinstance(law, PointMass):
        return _Begin(0.0, law)
    x0 = law.expectation
    Lambda = np.linalg.eigvalsh(problem.Lambda(0.0, x0))
    reach = 1e-3 * np.sqrt(Lambda[-1] * T)
    steps = reach * np.eye(problem.dim)
    jacobian = (problem.b(0.0, x0 + steps) - problem.b(0.0, x0 - steps)) / (2 * reach)
    start = _POINT[problem.dim] / max(1.0 / T, float(np.linalg.norm(jacobian, 2)))
    if basis is not None:
        cell = basis.locate(x0[None])[0][0]
        spacing = float(np.ptp(basis.nodes[basis.cell_dofs[cell]], axis=0).max()) / basis.degree
        start = max(start, (3.0 * spacing) ** 2 / Lambda[0])
        if cell < 0 or start > T / 2:
            raise SpaceError(
                f"the grid does not resolve a process that starts at {x0.tolist()}: "
                + ("that lies outside" if cell < 0 else f"its law is as wide as 3 nodes only at t={start:.3g}")
                + "; take smaller cells there, or leave basis= and mesh= to be chosen"
            )

    def early(t: float) -> Law:
        return Gaussian(*_closure(problem, x0, t)) if t > 0 else law

    return _Begin(start, early(start), early)


def _closure(problem: ControlProblem, x0: FloatArray, t: float) -> tuple[FloatArray, FloatArray]:
    """Mean (d,) and covariance (d, d) at a small time t by the moment equations of the module: 8 Runge-Kutta steps."""
    nodes, weights = roots_hermitenorm(5)
    z, w = tensor_rule(nodes, weights / weights.sum(), problem.dim)

    def slope(s: float, mean: FloatArray, cov: FloatArray) -> tuple[FloatArray, FloatArray]:
        values, vectors = np.linalg.eigh(cov)
        offsets = z @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
        b = problem.b(s, mean + offsets)
        gain = np.einsum("n,ni,nj->ij", w, b, offsets)
        return w @ b, np.tensordot(w, problem.Lambda(s, mean + offsets), 1) + gain + gain.T

    mean, cov, h = x0, np.zeros((x0.size, x0.size)), t / 8
    for s in h * np.arange(8):
        k1 = slope(s, mean, cov)
        k2 = slope(s + h / 2, mean + h / 2 * k1[0], cov + h / 2 * k1[1])
        k3 = slope(s + h / 2, mean + h / 2 * k2[0], cov + h / 2 * k2[1])
        k4 = slope(s + h, mean + h * k3[0], cov + h * k3[1])
        mean, cov = (
            old + h / 6 * (a + 2 * b + 2 * c + d) for old, a, b, c, d in zip((mean, cov), k1, k2, k3, k4, strict=True)
        )
    return mean, cov


def _gauge(problem: ControlProblem) -> Gauge:
    return Gauge(temperature=problem.temperature, horizon=problem.horizon, terminal=0.0, running=0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Boxes


@final
class _Adjoint:
    """L* of a box: W^{-1} L' W, nothing leaving the nodes of absorbing faces."""

    def __init__(self, operators: BoxOperators, absorbed: BoolArray) -> None:
        self.operators = operators
        self.free = ~absorbed.reshape(operators.shape)
        self._parts: SeparableOperator | None = None
        self._frozen: Sequence[FloatArray] = []
        self._left: tuple[Fields, SeparableOperator, Fields] | None = None
        self._dense: tuple[Fields, FloatArray] | None = None

    def norm(self, p: FloatArray) -> float:
        """The L2 norm."""
        return float(np.sqrt((self.operators.weights.ravel() * p.ravel() ** 2).sum()))

    def matrix(self, t: float) -> FloatArray:
        """L* as a dense matrix, in one dimension; the same object for the same coefficients."""
        fields = self.operators.fields(t)
        if self._dense is None or self._dense[0] is not fields:
            half = np.broadcast_to(0.5 * fields.diffusion[0, 0], fields.rate.shape)
            L = fields.drift[0][:, None] * self.operators.D[0] + half[:, None] * self.operators.second[0]
            self._dense = fields, _adjoint(L, self.operators.weights)
        return self._dense[1]

    def separable(self, t: float) -> Sequence[FloatArray]:
        """The transposed separable part, one matrix for each axis."""
        if self._parts is None or not self.operators.autonomous:
            self._parts = self.operators.separable(self.operators.fields(t))
            frozen = []
            for k, (S, line) in enumerate(zip(self._parts.matrices, self.operators.basis.lines, strict=True)):
                inside = self.free.any(axis=tuple(i for i in range(self.free.ndim) if i != k))
                frozen.append(_adjoint(S, line.weights) * np.outer(inside, inside))
            self._frozen = frozen
        return self._frozen

    def remainder(self, t: float, p: FloatArray, frozen: Sequence[FloatArray]) -> FloatArray:
        """What is left of L* p."""
        parts = self._parts
        if parts is None or frozen is not self._frozen:
            raise ConvergenceError("the separable part was not frozen here")
        fields = self.operators.fields(t)
        if self._left is None or self._left[0] is not fields or self._left[1] is not parts:
            self._left = fields, parts, self.operators.remainder(fields, parts)
        return np.where(self.free, self.operators.transpose(self._left[2], p), 0.0)

    def apply(self, t: float, p: FloatArray) -> FloatArray:
        """L* p."""
        return np.where(self.free, self.operators.transpose(self.operators.fields(t), p), 0.0)

    def bound(self, t: float) -> float:
        """Of the spectral radius of the remainder, which is that of its transpose."""
        fields = self.operators.fields(t)
        return sum(self.operators.bound(self.operators.remainder(fields, self.operators.separable(fields))))


def _adjoint(matrix: FloatArray, weights: FloatArray) -> FloatArray:
    return np.asarray(matrix.T * weights / weights[:, None])


def _on_box(
    problem: ControlProblem, basis: SpectralBasis, begin: _Begin, rtol: float, tell: Callable[[float], None]
) -> _March:
    absorbed = _absorbed(problem, basis)
    adjoint = _Adjoint(BoxOperators(problem, basis, _gauge(problem)), absorbed)
    p = np.where(absorbed, 0.0, np.exp(begin.law.logpdf(basis.nodes)))
    if not p.any():
        raise DomainError(f"no node of the box sees the initial law of {problem.name!r}; take smaller cells")
    if basis.dim == 1:
        line, rows, counts = _collocation(adjoint, p, np.flatnonzero(absorbed), begin.time, rtol, tell)
    else:
        line, rows, counts = _lawson(adjoint, p.reshape(basis.shape), begin.time, rtol, tell)
    return _March(basis, line, rows, counts, basis.weights)


_Rows = tuple[LineBasis, FloatArray, dict[str, Any]]


def _collocation(
    adjoint: _Adjoint, p: FloatArray, fixed: IntArray, start: float, rtol: float, tell: Callable[[float], None]
) -> _Rows:
    T = adjoint.operators.problem.horizon
    rows, ends, rejected = [p], [start], 0
    steps = radau(
        adjoint.matrix,
        p,
        start,
        T,
        rtol=rtol,
        norm=adjoint.norm,
        stages=_STAGES,
        fixed=fixed if fixed.size else None,
        fixed_values=(lambda _: np.zeros(fixed.size)) if fixed.size else None,
    )
    for step in steps:
        rows += [step.dense(0.25), step.dense(0.5), step.dense(0.75), step.f1]
        ends.append(step.t + step.h)
        rejected += step.rejected
        tell(min(1.0, ends[-1] / T))
    return *_rows(rows, ends, T, "P4"), {"route": "collocation", "steps": len(ends) - 1, "rejected": rejected}


def _lawson(adjoint: _Adjoint, p: FloatArray, start: float, rtol: float, tell: Callable[[float], None]) -> _Rows:
    T = adjoint.operators.problem.horizon
    counts: dict[str, Any] = {"route": "lawson", "steps": 0, "rejected": 0}

    def states() -> Iterator[_State]:
        for step in lawson(
            adjoint.separable,
            adjoint.remainder,
            p,
            start,
            T,
            rtol=rtol,
            norm=adjoint.norm,
            remainder_bound=adjoint.bound,
        ):
            counts["steps"] += 1
            counts["rejected"] += step.rejected
            end = step.t + step.h
            first = step.t, step.f0, apply_sum(step.frozen, step.f0) + step.remainder0
            if step.t == start:
                yield first
            last = end, step.f1, apply_sum(step.frozen, step.f1) + step.remainder1
            yield from _between(adjoint, step, first, last, rtol)
            tell(min(1.0, end / T))

    rows, ends = _joined(states(), adjoint.norm, rtol)
    return *_rows(rows, ends, T, "P3"), counts


_State = tuple[float, FloatArray, FloatArray]  # a time, p and its slope


def _between(adjoint: _Adjoint, step: LawsonStep, first: _State, last: _State, tolerance: float) -> Iterator[_State]:
    """States after `first` up to `last` within a step, so many that cubics between them fit.

    The step itself may be of any length, as it solves what is separable exactly.
    """
    t = 0.5 * (first[0] + last[0])
    p = step.dense((t - step.t) / step.h)
    if last[0] - first[0] > 1e-6 * step.h and adjoint.norm(_cubic(first, last, 0.5) - p) > tolerance * adjoint.norm(p):
        middle = t, p, adjoint.apply(t, p)
        yield from _between(adjoint, step, first, middle, tolerance)
        yield from _between(adjoint, step, middle, last, tolerance)
    else:
        yield last


def _joined(
    states: Iterator[_State], norm: Callable[[FloatArray], float], tolerance: float
) -> tuple[list[FloatArray], list[float]]:
    """Values at the nodes of cubics in time, as long as possible: the middle one of the states passed over must fit."""
    cell = [next(states)]
    rows, ends = [cell[0][1].ravel()], [cell[0][0]]

    def close() -> None:
        first, last = cell[0], cell[-1]
        rows.extend([_cubic(first, last, 1 / 3).ravel(), _cubic(first, last, 2 / 3).ravel(), last[1].ravel()])
        ends.append(last[0])

    for state in states:
        if len(cell) > 1:
            middle = cell[len(cell) // 2]
            theta = (middle[0] - cell[0][0]) / (state[0] - cell[0][0])
            if norm(_cubic(cell[0], state, theta) - middle[1]) > tolerance * norm(middle[1]):
                close()
                cell = [cell[-1]]
        cell.append(state)
    close()
    return rows, ends


def _cubic(first: _State, last: _State, theta: float) -> FloatArray:
    rest, h = 1.0 - theta, last[0] - first[0]
    return np.asarray(
        rest**2 * (1 + 2 * theta) * first[1]
        + theta**2 * (3 - 2 * theta) * last[1]
        + h * theta * rest * (rest * first[2] - theta * last[2])
    )


def _rows(rows: list[FloatArray], ends: list[float], T: float, kind: str) -> tuple[LineBasis, FloatArray]:
    """The time basis from 0 to T, and the rows: constant before the first end, where the law is a Gaussian."""
    ends[-1] = T
    if ends[0] > 0.0:
        rows, ends = [rows[0]] * int(kind[1:]) + rows, [0.0, *ends]
    return LineBasis(np.array(ends), kind), np.array(rows)


# ---------------------------------------------------------------------------------------------------------------------
# Automatic boxes


@final
@dataclass(eq=False)
class _Grids:
    """A box to be cut into spectral elements, equal ones along axes with faces that are none of truncation.

    Others are of one size within about `width` of the point, or of the middle, and grow with the distance beyond.
    """

    lower: FloatArray
    upper: FloatArray
    cells: FloatArray  # per axis
    degree: int
    truncated: BoolArray  # faces (2, d)
    point: FloatArray | None  # where the process starts, if at one
    width: FloatArray | None  # and then, of its first density

    def basis(self) -> SpectralBasis:
        lines = []
        for k, m in enumerate(self.cells.astype(np.int64)):
            low, high = self.lower[k], self.upper[k]
            grid = np.linspace(low, high, m + 1)
            if self.point is not None or self.truncated[:, k].all():
                centre = (low + high) / 2 if self.point is None else self.point[k]
                finest = _GRADED * (high - low) / 2 if self.width is None else self.width[k]
                ends = np.arcsinh(np.array([low - centre, high - centre]) / finest)
                grid[1:-1] = centre + finest * np.sinh(np.linspace(ends[0], ends[1], m + 1)[1:-1])
            lines.append(SpectralLine(grid, self.degree))
        return SpectralBasis(lines)

    def refine(self, factors: FloatArray) -> bool:
        """More cells by these factors, as far as allowed; whether there are more now."""
        most = (_MOST_NODES[self.cells.size] - 1) // self.degree
        before = self.cells
        self.cells = np.where(factors > 1, np.minimum(np.ceil(before * factors), most), before)
        return bool((self.cells > before).any())

    def widen(self, faces: FloatArray, out: BoolArray) -> bool:
        """Move out the faces (2, d) marked, at which the density is that of `faces`; whether there are such."""
        far = np.clip(np.sqrt(np.log(_FACE) / np.log(np.clip(faces, _FACE, 0.1))), 1.05, 1.5)  # as for a Gaussian
        moves = np.where(out, (far - 1.0) * (self.upper - self.lower) / 2, 0.0)
        if self.point is None:
            self.cells = np.ceil(self.cells * (1.0 + moves.sum(axis=0) / (self.upper - self.lower)) - 1e-9)
        self.lower, self.upper = self.lower - moves[0], self.upper + moves[1]
        return bool(out.any())


def _automatic(
    problem: ControlProblem, box: Box | None, rtol: float, tell: Callable[[float], None]
) -> tuple[_Begin, _March, list[str]]:
    """Solve, look at faces and highest coefficients, and again on a better grid; and what is still amiss.

    What neither a wider box nor smaller cells make smaller is the error in time, or rounding, and is left.
    """
    begin, d = _begin(problem, None), problem.dim
    lower, upper = (corner.copy() for corner in _box(problem, box).bounds)
    cells = np.full(d, float(_CELLS[d]))
    point = width = None
    if begin.early is not None:
        point, width = problem.initial_law.expectation, np.sqrt(np.diag(begin.law.covariance))
        cells = np.ceil(sum(np.arcsinh(np.abs(corner - point) / width) for corner in (lower, upper)))
    truncated = _truncated(problem)
    grids = _Grids(lower, upper, cells, _DEGREE[d], truncated, point, width)
    movable = truncated & (box is None)
    faces_before, tails_before = np.full((2, d), np.inf), np.full(d, np.inf)
    for _ in range(_PASSES):
        basis = _resolving(begin.law, grids, movable, rtol)
        march = _on_box(problem, basis, begin, rtol, tell)
        ends = march.rows[:: march.line.degree]  # of the cells in time: free of interpolation
        faces, tails = _faces(basis, ends), _tails(basis, ends)
        out = movable & (faces > _FACE) & (faces < 0.5 * faces_before)
        factors = np.where(tails < 0.5 * tails_before, _factors(tails, _ROUGH * rtol, grids.degree), 1.0)
        if not grids.widen(faces, out) | grids.refine(factors):
            break
        faces_before, tails_before = faces, np.where(factors > 1, tails, tails_before)
    if tails.max() <= _ROUGH * rtol:
        return begin, march, []
    return begin, march, [f"the density is resolved to {tails.max():.1e} of its maximum only, not {rtol:.1e}"]


def _resolving(law: Law, grids: _Grids, movable: BoolArray, rtol: float) -> SpectralBasis:
    """A basis that resolves the initial law, which is cheap to look at, if possible."""
    for _ in range(_PASSES):
        basis = grids.basis()
        p = np.exp(law.logpdf(basis.nodes))[None]
        if not p.any():
            if not grids.refine(np.full(basis.dim, 2.0)):
                return basis
            continue
        faces = _faces(basis, p)
        if grids.widen(faces, movable & (faces > _FACE)):
            continue
        if not grids.refine(_factors(_tails(basis, p), rtol, grids.degree)):
            return basis
    return basis


def _box(problem: ControlProblem, box: Box | None) -> Box:
    if box is None:
        gaussian = isinstance(problem.drift, LinearDrift)  # tails: start with 8 standard deviations
        return truncation_box(problem, margin=0.6 if gaussian else 0.3).box
    if not isinstance(box, Box) or box.dim != problem.dim or not box.bounded:
        raise DomainError(f"box must be a Box of dimension {problem.dim} with finite faces, got {box!r}")
    domain = problem.domain
    if domain is not None:
        needed = np.asarray(domain.bounds)
        if (np.asarray(box.bounds) != needed)[np.isfinite(needed)].any():
            raise DomainError(f"the process of {problem.name!r} lives in {domain}, got {box}; leave out box=")
    return box


def _truncated(problem: ControlProblem) -> BoolArray:
    """The faces (2, d) that are truncations of space."""
    if problem.domain is None:
        return np.ones((2, problem.dim), dtype=np.bool_)
    return ~np.isfinite(np.asarray(problem.domain.bounds))


def _faces(basis: SpatialBasis, rows: FloatArray) -> FloatArray:
    """The largest |p| on each face (2, d) relative to the maximum of its time."""
    sizes = np.abs(rows).max(axis=1)
    result = np.zeros((2, basis.dim))
    for side, corner in enumerate(basis.box.bounds):
        for k in range(basis.dim):
            on = np.abs(basis.nodes[:, k] - corner[k]) <= 1e-9 * np.ptp(np.asarray(basis.box.bounds)[:, k])
            result[side, k] = (np.abs(rows[:, on]).max(axis=1, initial=0.0) / sizes).max()
    return result


def _tails(basis: SpectralBasis, rows: FloatArray) -> FloatArray:
    """The largest of the highest Legendre coefficients along each axis (d,), relative to the maximum of its time."""
    values = (rows / np.abs(rows).max(axis=1, keepdims=True)).reshape(-1, *basis.shape)
    return np.array([line.modal_tail(values, k + 1).max() for k, line in enumerate(basis.lines)])


def _factors(tails: FloatArray, rtol: float, degree: int) -> FloatArray:
    """By how much more cells are needed."""
    return np.where(tails > rtol, np.clip(1.1 * (tails / rtol) ** (1 / degree), 1.2, 2.0), 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Meshes


@final
class _Forward(LinearSystem):
    """M p' = K(t)' p; p = 0 at the nodes of absorbing faces."""

    def __init__(self, problem: ControlProblem, basis: SpatialBasis, p0: FloatArray, fixed: IntArray) -> None:
        self.operators = MeshOperators(problem, basis, _gauge(problem))
        self.mass, self.factors, self.fixed = self.operators.M, self.operators.direct, fixed
        self.weights = np.asarray(self.mass @ np.ones(basis.n_dofs))
        self._unit = p0 / (self.weights @ p0)
        self._last: tuple[Any, Any] = (None, None)

    def stiffness(self, t: float) -> Any:
        K = self.operators.K(t)
        if K is not self._last[0]:
            self._last = K, K.T.tocsr()  # of the same symmetric pattern as K
        return self._last[1]

    def solver(self, stiffness: Any, shift: float) -> Solve:
        inner = self.operators.solver(stiffness, shift, self.fixed)
        if self.fixed.size:
            return inner

        def solve_exactly_in_mass(rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
            """1' (M - shift K') p = 1' M p; what an iterative solver spoils of it, p_0 makes up for."""
            p = inner(rhs, guess, rtol)
            return np.asarray(p + (rhs.sum() - self.weights @ p) * self._unit)

        return solve_exactly_in_mass


def _on_mesh(
    problem: ControlProblem, basis: SpatialBasis, begin: _Begin, rtol: float, tell: Callable[[float], None]
) -> _March:
    p0 = basis.project(lambda x: np.exp(begin.law.logpdf(x)))
    if not p0.any():
        raise DomainError(f"no point of the mesh sees the initial law of {problem.name!r}; take smaller cells")
    absorbed = _absorbed(problem, basis)
    p0[absorbed] = 0.0
    fixed = np.flatnonzero(absorbed).astype(np.int64)
    system = _Forward(problem, basis, p0, fixed)
    rows, ends, rejected, T = [p0], [begin.time], 0, problem.horizon
    for step in esdirk(system, p0, begin.time, T, rtol=rtol):
        rows += [step.dense(1 / 3), step.dense(2 / 3), step.f1]
        ends.append(step.t + step.h)
        rejected += step.rejected
        tell(min(1.0, ends[-1] / T))
    counts = {
        "route": "mesh",
        "steps": len(ends) - 1,
        "rejected": rejected,
        "linear_solver": system.operators.linear_solver,
    }
    return _March(basis, *_rows(rows, ends, T, "P3"), counts, system.weights)


# ---------------------------------------------------------------------------------------------------------------------
# The result


def _solution(
    problem: ControlProblem, begin: _Begin, march: _March, missed: list[str], started: float
) -> DensitySolution:
    basis, rows = march.basis, march.rows
    mass = rows @ march.weights
    absorbing = problem.domain is not None and problem.domain.absorbing
    drift = 0.0 if absorbing else float(np.abs(mass - mass[0]).max())
    if drift > _CONSERVED:
        missed = [*missed, f"the mass changes by {drift:.1e}"]
    words = ["; ".join(missed) or "ok"]
    relative = rows.min(axis=1) / np.abs(rows).max(axis=1)
    negative = int((rows < 0).sum())
    if negative:
        k = int(relative.argmin())
        words.append(
            f"p is negative at {negative} of {rows.size} nodes of space and time, lowest {relative[k]:.1e} of the"
            f" maximum, at t={march.line.nodes[k]:.4g}, x={basis.nodes[rows[k].argmin()].tolist()}"
        )
    stats: dict[str, Any] = {
        **march.counts,
        "dofs": basis.n_dofs,
        "element": basis.element,
        "mass": MappingProxyType(
            {
                "initial": float(mass[0]),
                "final": float(mass[-1]),
                "drift": drift,
                "lost": float(mass[0] - mass[-1]) if absorbing else 0.0,
            }
        ),
        "lowest": float(relative.min()),
        "face": float(_faces(basis, rows)[_truncated(problem)].max(initial=0.0)),
    }
    if isinstance(basis, SpectralBasis):
        tail = float(_tails(basis, rows[:: march.line.degree]).max())
        stats |= {"shape": basis.shape, "degree": basis.degree, "tail": tail}
    return DensitySolution(
        problem=problem,
        space=Space.product(march.line, basis),
        coefficients=rows,
        status="; ".join(words),
        stats={**stats, "seconds": time.perf_counter() - started},
        start=begin.time,
        early=begin.early,
    )
