r"""The variational inequality for f under a measure: its solution in a class, from a system that has been assembled.

In a closed convex set F of a class of space-time functions find f in F with B[f, g - f] >= l(g - f) for all g in F;
where F is the whole class that is B[f, g] = l(g). B and l are integrals against a measure (`estimators` says of what,
`system` sums them up). Under trajectories this is the least-squares-like learning of f (arXiv 2509.02528); under the
law itself it is a Galerkin method. Both are solved by the code below.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

from fem_hjb.learning import inequality, solvers
from fem_hjb.learning.constrained_solve import InequalityResult, Projector, solve_inequality
from fem_hjb.learning.constraints import Constraint, set_on
from fem_hjb.learning.dissection import places_of
from fem_hjb.learning.inequality import VariationalInequality
from fem_hjb.learning.linear_set import LinearSet
from fem_hjb.learning.smoothing import default_smoothing, is_dictionary, roughness
from fem_hjb.learning.system import System
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.checks import (
    LARGEST,
    FloatArray,
    IntArray,
    flag,
    non_negative_number,
    one_of,
    positive_number,
    require,
)
from fem_hjb.support.errors import ConstraintError, ConvergenceError, MeasureError
from fem_hjb.support.progress import OutOfTimeError, Progress, beats_of, part_of, unheard

METHODS = ("direct", "projected", "minimal-residual")
TERMINALS = ("penalty", "interpolated")

_SOLVED = 0.6  # share of progress: of the solution, the rest is figures
_EXACT = 1e-14  # what stands for 1/n where there are no paths but a law
_SHIFT = 1e-13  # of the diagonal, so that a factorisation of a nearly singular Gram matrix runs through
_UNKNOWN = inequality.Diagnostics(
    **dict.fromkeys(("coercivity", "norm", "stability", "contraction", "gamma", "condition"), float("nan"))
)
_FOUND = ("iterations", "gamma", "predicted", "contraction", "converged", "residual", "kkt")
_FIGURES = ("condition", "coercivity", "norm", "stability")
_ROUNDING = 1e-11  # mean squares below this share of a neighbour's are what rounding left of sums over samples
_DEPENDENT = 1e-8  # squared sine, under the samples, of the angle between a function and those eliminated before it


def solve_system(
    system: System,
    *,
    method: str = "direct",
    constraint: Constraint | None = None,
    terminal: str = "penalty",
    smoothing: float | None = None,
    ridge: float = 0.0,
    tol: float = 1e-10,
    figures: bool = True,
) -> Solution:
    """The solution of a system that has been assembled: the second half of `fit`, whose arguments these are.

    tol : of the iterative methods, on the natural residual relative to |E^{-1} l|_E.
    figures : False leaves out the figures of the system, most of the time for large classes: they are nan.
    """
    return solve_watched(
        system,
        method=method,
        constraint=constraint,
        terminal=terminal,
        smoothing=smoothing,
        ridge=ridge,
        tol=tol,
        figures=figures,
    )


def solve_watched(
    system: System,
    *,
    method: str = "direct",
    constraint: Constraint | None = None,
    terminal: str = "penalty",
    smoothing: float | None = None,
    ridge: float = 0.0,
    tol: float = 1e-10,
    figures: bool = True,
    tell: Progress = unheard,
) -> Solution:
    """`solve_system`, where `tell` hears of the work, and may end it by an OutOfTimeError.

    The iterative methods return their last iterate then, with a status that says so, and the figures of the system are
    left out. Where there is no iterate in the set the error comes out.
    """
    started = time.perf_counter()
    require(system, System, "solve_system", MeasureError)
    one_of(method, "method", METHODS, MeasureError)
    flag(figures, "figures", MeasureError)
    positive_number(tol, "tol", MeasureError)
    space = system.space
    if smoothing is None:
        smoothing = default_smoothing(system.estimator, space)
    reduced = reduce_system(
        system, constraint=constraint, terminal=terminal, smoothing=smoothing, ridge=ridge, tell=tell
    )
    found = _solution(reduced, method, tol)
    coefficients = reduced.whole(found.coefficients)
    solved = time.perf_counter()
    of, doubts = _figures(reduced.inequality, tell) if figures else (_UNKNOWN, "ok")
    messages = [text for text in (doubts, found.message) if text != "ok"]
    f = space.evaluate(coefficients, system.probe_t, system.probe_x, outside="nan")
    weights = np.where(np.isfinite(f), system.probe_weights, 0.0)
    return Solution(
        problem=system.problem,
        space=space,
        coefficients=coefficients,
        gauge=system.gauge,
        method=system.estimator.name,
        status="; ".join(messages) or "ok",
        stats={
            "measure": system.kind,
            "estimator": system.estimator.name,
            "solver": method,
            "constraint": repr(constraint),
            "terminal": terminal,
            "delta": float(system.delta),
            "smoothing": float(smoothing),
            "ridge": float(ridge),
            "gradient_penalty": float(system.estimator.gradient_penalty or 0.0),
            "paths": system.paths,
            "samples": system.samples,
            "dropped": system.dropped,
            "dofs": space.n_dofs,
            "pinned": int(reduced.pinned.size),
            "pinned_dofs": reduced.pinned,
            "nonpositive_mass": float(weights @ (f <= 0) / weights.sum()),
            **{name: getattr(found, name) for name in _FOUND},
            "factors": reduced.inequality.factors,
            **{name: getattr(of, name) for name in _FIGURES},
            "best_contraction": of.contraction,
            "seconds": {"solve": solved - started, "diagnostics": time.perf_counter() - solved},
        },
    )


def _figures(of: VariationalInequality, tell: Progress) -> tuple[inequality.Diagnostics, str]:
    """The figures, and what they say; nan where time was over before they were known."""
    try:
        tell(_SOLVED)
        found = inequality.diagnose(of)
    except OutOfTimeError:
        return _UNKNOWN, "max_seconds were over before the figures of the system were known"
    return found, inequality.status(found)


def _solution(reduced: "ReducedSystem", method: str, tol: float) -> solvers.VariationalResult:
    if method == "direct":
        return solvers.direct(reduced.inequality, reduced.solve_constrained)
    iterate = solvers.projected if method == "projected" else solvers.minimal_residual
    return iterate(reduced.inequality, tol=tol)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ReducedSystem:
    """A system without the coefficients that are known, scaled by `root`: c[free] = z / root.

    inequality : for z.  solve_constrained : its direct solver, None without a constraint.
    coefficients (N,) : the known ones, 0 elsewhere.  pinned : those that the samples do not determine.
    """

    inequality: VariationalInequality
    solve_constrained: Callable[[Any, FloatArray], InequalityResult] | None
    coefficients: FloatArray
    free: IntArray
    root: FloatArray
    pinned: IntArray

    def whole(self, z: FloatArray) -> FloatArray:
        """All coefficients (N,)."""
        coefficients = self.coefficients.copy()
        coefficients[self.free] = z / self.root
        return coefficients


def check_how(terminal: str, smoothing: float, ridge: float) -> None:
    """MeasureError where they make no sense."""
    one_of(terminal, "terminal", TERMINALS, MeasureError)
    for name, number in (("smoothing", smoothing), ("ridge", ridge)):
        if non_negative_number(number, name, MeasureError) > LARGEST:
            raise MeasureError(f"{name} must be at most {LARGEST:g}, got {number!r}")


def reduce_system(
    system: System,
    *,
    constraint: Constraint | None = None,
    terminal: str = "penalty",
    smoothing: float = 0.0,
    ridge: float = 0.0,
    tell: Progress = unheard,
) -> ReducedSystem:
    """What `solve_system` solves: smoothing and ridge added, known coefficients eliminated, the rest scaled.

    tell : hears of what is done with it; what it raises stops the work.
    """
    check_how(terminal, smoothing, ridge)
    if constraint is not None and not isinstance(constraint, Constraint):
        raise MeasureError(f"constraint must be a Constraint such as Bounds(0, 1), got {type(constraint).__name__}")
    space = system.space
    per_path = 1.0 / system.paths if system.paths else _EXACT
    extension = sp.csr_matrix((space.n_dofs,) * 2)
    if smoothing:
        if is_dictionary(space):
            raise MeasureError("a dictionary has no cells on which f could be smooth: smoothing=0, and ridge= instead")
        extension = smoothing * per_path * system.problem.horizon / space.time.n_cells * roughness(space)
    coefficients, fixed = _known(system, terminal)
    if not smoothing:
        fixed = _undetermined(system.mass, fixed, tell)
    free = np.flatnonzero(~fixed)
    form, energy = (matrix + extension for matrix in (system.form, system.energy))
    root = np.sqrt((system.mass.diagonal() + extension.diagonal())[free])
    load = (system.load - form @ coefficients)[free]

    def part(matrix: sp.csr_matrix) -> sp.csr_matrix:
        return matrix if free.size == space.n_dofs else matrix[free][:, free]

    def scaled(matrix: sp.csr_matrix) -> sp.csc_matrix:
        tell(0.0)
        columns = sp.csc_matrix(matrix)
        columns.data = columns.data / (root[columns.indices] * np.repeat(root, np.diff(columns.indptr)))
        return columns

    form = part(form) + ridge * sp.diags(root**2) if ridge else part(form)
    energy = part(energy)
    energy = energy + _SHIFT * sp.diags(_largest_neighbour(energy, energy.diagonal()))
    places = places_of(space)
    places = None if places is None else places[free]
    project = solve_constrained = None
    if constraint is not None:
        linear_set = set_on(constraint, space).restricted(free, coefficients[fixed])
        project, solve_constrained = _in_set(linear_set, form, energy, load, root, places, tell)
    pinned = np.flatnonzero(fixed | (system.mass.diagonal() < extension.diagonal()))
    pinned.setflags(write=False)
    given: dict[str, Any] = {"load": load / root, "places": places, "tell": part_of(tell, 0.0, _SOLVED)}
    return ReducedSystem(
        inequality=VariationalInequality(form=scaled(form), energy=scaled(energy), project=project, **given),
        solve_constrained=solve_constrained,
        coefficients=coefficients,
        free=free,
        root=root,
        pinned=pinned,
    )


def _known(system: System, terminal: str) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Coefficients (N,) that terminal and reflecting faces give, 0 elsewhere, and which these are."""
    problem, space = system.problem, system.space
    known = np.zeros(space.shape)
    given = np.zeros(space.shape, dtype=np.bool_)
    if terminal == "interpolated":
        given[-1] = True
        known[-1] = space.spatial.interpolate(system.gauge.terminal_u(problem, space.spatial.nodes))
    if problem.domain is not None:
        given[:, space.spatial.reflecting_dofs()] = True
        known[:, space.spatial.reflecting_dofs()] = 0.0
    return known.ravel(), given.ravel()


def _in_set(
    linear_set: LinearSet,
    form: sp.csr_matrix,
    energy: sp.csr_matrix,
    load: FloatArray,
    root: FloatArray,
    places: FloatArray | None,
    tell: Progress,
) -> tuple[Callable[[FloatArray], FloatArray], Callable[[Any, FloatArray], InequalityResult]]:
    """Projection and solver of a scaled inequality, which work on the unscaled one: its rows stay those of the set."""
    projector = Projector(energy, linear_set, places)

    def project(z: FloatArray) -> FloatArray:
        return projector(z / root).coefficients * root

    def solve(_form: Any, _load: FloatArray) -> InequalityResult:
        try:
            beat = beats_of(part_of(tell, 0.0, _SOLVED))
            found = solve_inequality(form, load, linear_set, metric=energy, alive=beat, places=places)
            projector.begin(found)  # at the solution the projection that judges it has the same multipliers
            return replace(found, coefficients=found.coefficients * root)
        except (ConstraintError, ConvergenceError) as cause:
            if "empty" in str(cause):
                raise
            raise ConvergenceError(
                f"the inequality over the set was not solved ({cause}): the sampled form has lost its coercivity. Take"
                " estimator='residual', whose form is symmetric and positive, or method='minimal-residual', more"
                " samples, fewer cells, more smoothing or a ridge"
            ) from cause

    return project, solve


def _largest_neighbour(mass: sp.csr_matrix, diagonal: FloatArray) -> FloatArray:
    """Per function the largest mean square of those that share a sample with it."""
    result = np.zeros(diagonal.size)
    rows = np.flatnonzero(np.diff(mass.indptr))
    result[rows] = np.maximum.reduceat(diagonal[mass.indices], mass.indptr[rows])
    return result


def _undetermined(mass: sp.csr_matrix, fixed: NDArray[np.bool_], tell: Progress) -> NDArray[np.bool_]:
    """The coefficients that are fixed, or that the samples do not determine: unseen, or dependent on others there.

    Pivots of a Cholesky-like factorisation of the Gram matrix, scaled to a unit diagonal, are squared distances of each
    function from the span of those eliminated before; tiny ones are taken out until none is left.
    """
    diagonal = mass.diagonal()
    out = fixed | (diagonal <= _ROUNDING * _largest_neighbour(mass, diagonal))
    while not out.all():
        tell(0.0)
        free = np.flatnonzero(~out)
        scale = sp.diags(1.0 / np.sqrt(diagonal[free]))
        scaled = scale @ mass[free][:, free] @ scale + _SHIFT * sp.identity(free.size)
        factors = splu(
            scaled.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        dependent = np.abs(factors.U.diagonal())[factors.perm_c] < _DEPENDENT
        if not dependent.any():
            break
        out[free[dependent]] = True
    return np.asarray(out)
