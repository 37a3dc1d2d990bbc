r"""The law of the process: its density p_t, from the adjoint of the operators that the value is solved with.

The density of X_t, dX = (b + pi) dt + Lambda^{1/2} dB, solves the Fokker-Planck equation forward in time,

    d_t p = L* p = -div((b + pi) p) + 1/2 sum_kl d_k d_l (Lambda_kl p),      p_0 the initial law,

without flux through natural and reflecting faces, and with p = 0 on absorbing ones.

On a box p is kept at the nodes of spectral elements, and L* = W^{-1} L' W is the adjoint of the matrix L that
`box_panel` makes of the generator, W the nodes' weights. L annihilates constants, so the mass sum_i w_i p_i is
conserved to rounding whatever the grid. Each panel of time has a box and a grid of its own, which follow the law, and
steps by Lawson's method: see `fokker_planck_panels`.
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
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.paths.extent import checked_box
from fem_hjb.paths.steering import Policy
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Law, MarginalLaw, PointMass
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.faces import check_faces, check_reflection, endless, truncated_values
from fem_hjb.reference.fokker_planck_mesh import on_mesh
from fem_hjb.reference.fokker_planck_panels import Forward
from fem_hjb.reference.fokker_planck_start import Begin, March, accuracy_of, begin_of, breaks_of, steered
from fem_hjb.solutions.density import DensityLaw, check_continuous
from fem_hjb.spaces.mesh_files import as_mesh
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.space import spatial_basis
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.stepping.adaptive import rtol_in_range
from fem_hjb.support.checks import FloatArray, as_times, frozen_array, require
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError
from fem_hjb.support.objects import Plain
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, to_the_end, until

__all__ = ["DensitySolution", "solve"]

_RTOL = {1: 1e-8, 2: 1e-7, 3: 1e-5}
_CONSERVED = 1e-10


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DensitySolution(Plain):
    """p_t(x) on [0, T] x domain, as `solve` returns it.

    problem : whose process it is;  space : on each panel of time a time basis times a basis in space.
    coefficients : of p, of `space.shape`, read-only.
    status : "ok", or which tolerances were missed; p below -rtol of the maximum of its time is one of these. Negative
        values, in far tails mostly, are kept as they are.
    stats : read-only; route, dofs (the most in space), steps, seconds; negative, at how many nodes of space and time p
        is so, and lowest, the least p relative to the maximum of its time; mass, a mapping with initial, final, drift
        (the largest change; what absorbing faces took counts as lost instead) and lost; face, the largest density at
        truncated faces relative to the maximum of its time. On boxes also panels; tail, the same of the highest
        Legendre coefficients; transfer, the largest relative change of the mass between two grids, made up for by a
        factor; misfit, of coefficients between the times at which they are called.
    start : t_0 of a process that starts at a point, else 0. Before it the law is a Gaussian, and coefficients are those
        at t_0.
    early : t -> that Gaussian, or None.
    """

    problem: ControlProblem
    space: PanelSpace
    coefficients: FloatArray
    status: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    start: float = 0.0
    early: MarginalLaw | None = None

    def __post_init__(self) -> None:
        require(self.problem, ControlProblem, "DensitySolution", ProblemError)
        require(self.space, PanelSpace, "DensitySolution", SpaceError)
        require(self.stats, Mapping, "DensitySolution: stats", ProblemError)
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
        k = int(self.space.at(when))
        panel, rows = self.space.panels[k], self.space.piece(self.coefficients, k)
        cells, tau = panel.time.locate(when[None])
        psi = panel.time.tabulate(cells, tau, 0)[0, 0]
        return DensityLaw(panel.spatial, psi @ rows[panel.time.cell_dofs[cells[0]]])

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
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> DensitySolution:
    """The density of X_t for 0 <= t <= T, in one, two or three dimensions; see the module.

    policy : pi, a callable (t, x (n, d)) -> (n, d), t a number: the law of the controlled process. It must be defined
        on all of the box: with the policy of a `Solution` give the box of that solution.
    basis : spectral elements. Or
    mesh, element : a scikit-fem mesh or the path of a mesh file, and a continuous element; by default the mesh of a
        `MeshDomain`. Or neither, then
    box : boxes that follow the law are cut into spectral elements, which are made smaller until they resolve the
        density to rtol. None is larger than this one, by default problem.domain or R^d; where the law is within it, the
        density at truncated faces stays below 1e-3 rtol.
    rtol : of the maximum of the density at its time: what steps, interpolation between them, elements and coefficients
        between the times at which they are called are allowed to miss; 1e-8, 1e-7, 1e-5 in one, two, three dimensions
        if not given.
    progress : called with the fraction of [0, T] done, which never falls and ends at 1, after every time step and once
        a second within one; not while a callable of yours or the factorisation of a matrix runs, nor
        while the coefficients of all times are copied in the end.
    max_seconds : when they are over, the work stops at the next step or call of the drift. A density up to a time
        before T is none on [0, T], so that there is no best so far to return.

    Raises
    ------
    ProblemError : the policy returns a wrong shape, or numbers that are not finite.
    DomainError, SpaceError : basis, mesh, element or box do not fit the problem or each other.
    ConvergenceError : rtol is out of range or the time stepping fails; in more than one dimension perhaps because what
        is not a sum of operators on one axis each is too stiff for explicit steps: use a mesh. Or max_seconds are over.
    """
    watch = until(checked_progress(progress), checked_seconds(max_seconds))
    try:
        found = solve_watched(
            problem, policy=policy, basis=basis, mesh=mesh, element=element, box=box, rtol=rtol, tell=watch
        )
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"fokker_planck.solve({problem.name!r}): within max_seconds={max_seconds:g} the density came to"
            f" t={watch.reached * problem.horizon:.3g} of {problem.horizon:g} only; give it more time, a larger rtol, a"
            " smaller box, or a coarser basis or mesh"
        ) from None
    watch.finished()
    return found


def solve_watched(
    problem: ControlProblem,
    *,
    policy: Policy | None = None,
    basis: SpectralBasis | None = None,
    mesh: Any = None,
    element: str = "P2",
    box: Box | None = None,
    rtol: float | None = None,
    tell: Progress,
) -> DensitySolution:
    """`solve`, where what `tell` raises stops the work and comes out."""
    started = time.perf_counter()
    if not isinstance(problem, ControlProblem):
        raise ProblemError(f"fokker_planck.solve needs a ControlProblem, got {type(problem).__name__}")
    if problem.dim > 3:
        raise DomainError(f"densities are solved for up to dimension 3, the problem has dim={problem.dim}")
    given = [name for name, value in (("basis", basis), ("mesh", mesh), ("box", box)) if value is not None]
    if len(given) > 1:
        raise DomainError(f"give one of basis, mesh and box, got {' and '.join(given)}")
    tolerance = rtol_in_range(_RTOL[problem.dim] if rtol is None else rtol, "rtol")
    heard = steered(problem, policy, tell)
    # The laws before the first density are kept, and call the drift when nobody watches any more.
    bare = steered(problem, policy) if isinstance(problem.initial_law, PointMass) else heard
    if isinstance(problem.domain, MeshDomain):
        if not set(given) <= {"mesh"}:
            raise DomainError(
                f"the domain of {problem.name!r} is a mesh, on which densities are; leave out {given[0]}="
            )
        mesh = problem.domain.mesh if mesh is None else mesh
    if mesh is not None:
        on = spatial_basis(as_mesh(mesh, problem), element)
        check_continuous(on)
        check_reflection(bare, on)
        begin = begin_of(bare, on)
        march = on_mesh(heard, on, begin, tolerance, tell)
    else:
        grid = None if basis is None else _fitting(basis, problem)
        begin = begin_of(bare, grid)
        walls, known = _walls(problem, box), accuracy_of(policy)
        march = Forward(heard, begin, walls, tolerance, tell, grid, breaks_of(policy), known).run()
    return _solution(problem, begin, march, tolerance, started, to_the_end(tell))


def _fitting(basis: SpectralBasis, problem: ControlProblem) -> SpectralBasis:
    if not isinstance(basis, SpectralBasis) or basis.dim != problem.dim:
        got = f"one of dimension {basis.dim}" if isinstance(basis, SpectralBasis) else type(basis).__name__
        raise SpaceError(f"basis must be a SpectralBasis of dimension {problem.dim}, got {got}; for others give mesh=")
    check_faces(problem, basis.box, ~endless(problem))
    return basis


def _walls(problem: ControlProblem, box: Box | None) -> FloatArray:
    """(2, d): the faces that no box of a panel goes beyond, infinite ones among them."""
    if box is not None:
        check_faces(problem, checked_box(problem, box), ~endless(problem))
        return np.stack(box.bounds)
    if problem.box is not None:
        return np.stack(problem.box.bounds)
    return np.array([[-np.inf], [np.inf]]) * np.ones(problem.dim)


def _solution(
    problem: ControlProblem, begin: Begin, march: March, rtol: float, started: float, tell: Progress
) -> DensitySolution:
    """With what is seen at all nodes in space at the nodes in time."""
    mass: list[FloatArray] = []
    low: list[float] = []
    negative = nodes = 0
    face = tail = 0.0
    where = ""
    for (space, coefficients), weights in zip(march.panels, march.weights, strict=True):
        tell(0.0)
        basis = space.spatial
        rows = coefficients[::2] if space.time.kind == "hermite" else coefficients
        mass.append(rows @ weights)
        sizes = np.abs(rows).max(axis=1)
        relative = rows.min(axis=1) / sizes
        k = int(relative.argmin())
        if not low or relative[k] < min(low):
            where = f"t={space.time.nodes[k]:.4g}, x={basis.nodes[rows[k].argmin()].tolist()}"
        low.append(float(relative[k]))
        negative, nodes = negative + int((rows < 0).sum()), nodes + rows.size
        face = max(face, truncated_values(problem, basis, rows))
        if isinstance(basis, SpectralBasis):
            values = (rows / sizes[:, None]).reshape(-1, *basis.shape)
            for k, line in enumerate(basis.lines):
                tell(0.0)
                tail = max(tail, float(line.modal_tail(values, k + 1).max()))
    words, masses = _words(problem, march, rtol, np.concatenate(mass))
    if min(low) < -rtol:
        words.append(
            f"p is negative at {negative} of {nodes} nodes of space and time, lowest {min(low):.1e} of the maximum, at"
            f" {where}"
        )
    largest = max((space.spatial for space, _ in march.panels), key=lambda basis: basis.n_dofs)
    stats: dict[str, Any] = {
        **march.counts,
        "dofs": largest.n_dofs,
        "element": largest.element,
        "mass": MappingProxyType(masses),
        "negative": negative,
        "lowest": min(low),
        "face": face,
    }
    if isinstance(largest, SpectralBasis):
        stats |= {"shape": largest.shape, "degree": largest.degree, "tail": tail}
    return DensitySolution(
        problem=problem,
        space=PanelSpace(tuple(space for space, _ in march.panels)),
        coefficients=_joined([rows for _, rows in march.panels], tell),
        status="; ".join(words) or "ok",
        stats={**stats, "seconds": time.perf_counter() - started},
        start=begin.time,
        early=begin.early,
    )


def _joined(rows: list[FloatArray], tell: Progress) -> FloatArray:
    """All coefficients, one after the other."""
    ends = np.cumsum([part.size for part in rows])
    joined = np.empty(ends[-1])
    for part, end in zip(rows, ends, strict=True):
        tell(0.0)
        joined[end - part.size : end] = part.ravel()
    return joined


def _words(problem: ControlProblem, march: March, rtol: float, mass: FloatArray) -> tuple[list[str], dict[str, float]]:
    """What is amiss, and what became of the mass."""
    absorbing = problem.domain is not None and problem.domain.absorbing
    drift = 0.0 if absorbing else float(np.abs(mass - mass[0]).max())
    words = []
    if march.left > rtol:
        words.append(f"the density is resolved to {march.left:.1e} of its maximum only, not {rtol:.1e}")
    if drift > _CONSERVED:
        words.append(f"the mass changes by {drift:.1e}")
    found = {"initial": float(mass[0]), "final": float(mass[-1]), "drift": drift}
    return words, found | {"lost": float(mass[0] - mass[-1]) if absorbing else 0.0}
