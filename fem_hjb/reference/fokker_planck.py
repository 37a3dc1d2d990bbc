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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Law, MarginalLaw
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.faces import check_faces, check_reflection, endless, face_values
from fem_hjb.reference.fokker_planck_automatic import on_automatic_box, tails_of
from fem_hjb.reference.fokker_planck_box import on_box
from fem_hjb.reference.fokker_planck_mesh import on_mesh
from fem_hjb.reference.fokker_planck_start import Begin, March, begin_of, steered
from fem_hjb.solutions.density import DensityLaw, check_continuous
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.mesh_files import as_mesh
from fem_hjb.spaces.space import Space, spatial_basis
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.stepping.esdirk import rtol_in_range
from fem_hjb.support.checks import FloatArray, as_times, frozen_array
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError
from fem_hjb.support.objects import Plain

Policy = Callable[[float, FloatArray], ArrayLike]
_RTOL = {1: 1e-8, 2: 1e-7, 3: 1e-5}
_CONSERVED = 1e-10


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DensitySolution(Plain):
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
    coefficients: FloatArray
    status: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    start: float = 0.0
    early: MarginalLaw | None = None

    def __post_init__(self) -> None:
        grid = frozen_array(self.coefficients, "the coefficients of a density", self.space.shape, ConvergenceError)
        object.__setattr__(self, "coefficients", grid)
        object.__setattr__(self, "stats", MappingProxyType(dict(self.stats)))

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
        return DensityLaw(self.space.spatial, psi @ self.coefficients[self.space.time.cell_dofs[cells[0]]])

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
    bare = steered(problem, policy)
    if mesh is not None:
        on: SpatialBasis = spatial_basis(as_mesh(mesh, problem), element)
        check_continuous(on)
        check_reflection(bare, on)
        begin = begin_of(bare, on)
        march = on_mesh(bare, on, begin, tolerance, tell)
        missed: list[str] = []
    elif basis is not None:
        on = _fitting(basis, problem)
        begin = begin_of(bare, on)
        march, missed = on_box(bare, on, begin, tolerance, tell), []
    else:
        begin, march, missed = on_automatic_box(bare, box, tolerance, tell)
    return _solution(problem, begin, march, missed, started)


def _fitting(basis: SpectralBasis, problem: ControlProblem) -> SpectralBasis:
    if not isinstance(basis, SpectralBasis) or basis.dim != problem.dim:
        got = f"one of dimension {basis.dim}" if isinstance(basis, SpectralBasis) else type(basis).__name__
        raise SpaceError(f"basis must be a SpectralBasis of dimension {problem.dim}, got {got}; for others give mesh=")
    check_faces(problem, basis.box, ~endless(problem))
    return basis


def _solution(
    problem: ControlProblem, begin: Begin, march: March, missed: list[str], started: float
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
        "face": float(face_values(basis, rows)[endless(problem)].max(initial=0.0)),
    }
    if isinstance(basis, SpectralBasis):
        tail = float(tails_of(basis, rows[:: march.line.degree]).max())
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
