"""Learning f from trajectories."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from dataclasses import replace

from fem_hjb.learning.constraints import Constraint
from fem_hjb.learning.estimators import Estimator
from fem_hjb.learning.measures import Measure
from fem_hjb.learning.selection import FOLDS, automatic_candidates, validated
from fem_hjb.learning.solve_system import METHODS, TERMINALS, solve_watched
from fem_hjb.learning.system import Data, Enough, assemble_until
from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import non_negative_number, one_of
from fem_hjb.support.errors import ConvergenceError, MeasureError
from fem_hjb.support.progress import (
    OutOfTimeError,
    Progress,
    checked_progress,
    checked_seconds,
    part_of,
    until,
)

_CHOSEN, _SUMMED = 0.8, 0.6  # shares of progress: of the choice of a class; of the data, in what is left then
_FOR_DATA = 0.5  # of the seconds left, at most


def fit(
    problem: ControlProblem,
    data: Data,
    space: Space | str,
    *,
    estimator: str | Estimator = "generator",
    method: str = "direct",
    constraint: Constraint | None = None,
    terminal: str = "penalty",
    delta: float = 0.0,
    smoothing: float | None = None,
    ridge: float = 0.0,
    outside: str = "error",
    executor: Executor | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> Solution:
    r"""Learn f = exp(v/alpha) on a space-time class from trajectories; or, under a law, the population's solution.

    Solves B[f, g - f] >= l(g - f) for all g in a convex set of the class, expectations being taken under the data: with
    rho = (r - c_r)/alpha and tests h = g - delta d_t g

        B[f, g] = -int_0^T E[ (d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + rho f) h ] dt + E[ f_T g_T ],
        l(g)    = E[ exp((y - c_y)/alpha) g_T ],

    or what else the estimator makes of them.

    Parameters
    ----------
    data : `Paths`; a `PathSource` (`paths`: chunks of a file, or simulated again on every pass); or a `Measure`
        (`empirical_measure`, `law_measure`, `sampled_law_measure`).
    space : a `Space`; or "auto": `cross_validate` chooses among classes of growing size on a common box (see there),
        fitted without constraint, and the table of what was tried is `stats["tried"]`.
    estimator : an `Estimator`, or the name of one in `ESTIMATORS`, whose module has the formulas: "generator" and
        "residual", second derivatives at the samples (C1 classes: elements "hermite", "B2", ..., dictionaries);
        "weak", first derivatives and the score of the law; "corrected", increments of f along the paths less
        grad f' (dX - b dt); "increment", model-free; "regression", least squares of Feynman-Kac labels, the baseline.
    method : "direct", sparse factors (GMRES on incomplete ones for large classes; active sets where there is a
        constraint); "projected", the projected iteration of arXiv 2509.02528, whose steps are projections in the norm E
        and which contracts at a rate that does not depend on the mesh if delta > 0; "minimal-residual", the least
        |E^{-1}(B f - l)|_E in the set, which asks for no coercivity. See `inequality`.
    constraint : a convex set of functions, `Bounds(0, 1)`, `Monotone(axis)`, `Convex(axis)`, `EnergyBall(radius)`, or
        an intersection `a & b`; f is the gauged one, at most 1 where the gauge bounds the rewards. The result is in the
        set everywhere, not only at nodes or samples.
    terminal : "penalty", as above; "interpolated": f_T is the interpolant of exp((y - c_y)/alpha), and g_T = 0. The
        penalty asks for f_T in mean square only, which is more accurate for f in a coarse class, but leaves log f,
        hence policies near T, to chance where f_T is small: take "interpolated" where the policy matters.
    delta : weight of the Sobolev-weighted tests. Positive, B is bounded and not only coercive in the norm
        E[f, f] = int E[f^2 + |grad f|_Lambda^2 + delta (d_t f)^2] + terms at 0 and T (see `system.System`); terms at
        T which vanish at the solution are added. Not for the least-squares estimators "regression" and "residual".
    smoothing : in paths: on every space-time cell f is asked to be smooth with the weight of that many paths
        crossing it; smooth meaning a small time derivative and small second derivatives in space (first ones for
        elements that are not C1), in the coordinates of the cell. Where there are no samples, or too few to tell the
        cell's functions apart, this extends f from where they are; elsewhere it costs a bias of order 1/n, which a
        smaller value avoids where every cell is well visited. It vanishes under a law. None: 0.05 for the estimators
        that are exact at the solution, 0.3 for the others, ten times that on elements that are not C1, and 0 for
        dictionaries. 0: nothing is asked; coefficients that the samples do not determine, unseen or linearly dependent
        where they look, are set to 0 instead.
    ridge : adds ridge times the identity to the system scaled by the diagonal of the Gram matrix of values, hence
        is in units of each basis function's own mean square under the measure.
    outside : samples outside the class's domain are an "error", or "drop": left out of the sums and counted.
    executor : any concurrent.futures.Executor adds up the chunks of the data, with the same bits as without one.
    progress : called with the fraction of the work done, which never falls and ends at 1, after every chunk of the data
        (of 262144 samples, or those of the source), every iteration and every factorisation, and once a second while a
        worker is waited for; not while a callable of yours or a factorisation runs.
    max_seconds : with trajectories half of them go to the data at most: what is left then is not looked at, and f is
        learned from the first chunks. When all are over, the iterative methods return the last iterate, which is in the
        set, and the figures of the system are left out (nan). The status says what applies. A law is summed over as
        a whole, the direct method has no iterate in a set but its last one, space="auto" compares all classes, and a
        factorisation is not interrupted: where that is not done in time there is no solution.

    In time the method is Galerkin's with equal trial and test functions: of order about 2 with P1 and with P2, whose
    constant is smaller, of order 4 with P3. The gauge is taken from the nodes of the space, never from samples, so that
    coefficients of fits on one space can be subtracted. On a reflecting domain, the normal slopes of C1 classes are set
    to 0 at the faces, and "corrected" leaves increments uncorrected that start within 5 standard deviations of a step
    from a face, whose push is no martingale.

    `stats`: "samples", "dropped" (outside), "pinned" (how many coefficients the samples do not determine: they are
    set to 0, or smoothing outweighs what is seen of them), "pinned_dofs" (which), "nonpositive_mass" (the share of the
    samples, weighted, where f <= 0), "seconds", what was asked for, what the solver says ("iterations", "gamma",
    "predicted" and "contraction" per step, "converged"), "residual": the natural residual
    |f - P_F(f - E^{-1}(B f - l))|_E relative to |E^{-1} l|_E, a certificate of f however it was found, and the figures
    of the system, scaled to a unit diagonal, without its set: "condition" (estimate, 1-norm); "coercivity", the
    smallest eigenvalue of the symmetric part of B relative to E; "norm" of B; "stability", the smallest singular value;
    "best_contraction" of the projected iteration. For the exact process all are positive if r < c_r or delta > 0 (else
    functions of time alone that vanish at 0 and T cost nothing, and coercivity is 0); left-point sums over few steps
    per time cell alone can take coercivity to about -0.6 without harm, so that `status` judges by stability first.
    `status` is "ok", or says what is doubtful and what to do. With space="auto" also "tried".

    Raises
    ------
    SpaceError : estimator "generator" or "residual" on a class that is not C1.
    MeasureError : the data do not fit the problem or leave the domain, or the law lacks what the estimator needs.
    ConstraintError : the set is empty, or not one the class can have.
    ConvergenceError : the linear system cannot be solved, the projected iteration has no step that contracts, or there
        is no solution within max_seconds.
    """
    started = time.perf_counter()
    told, limit = checked_progress(progress), checked_seconds(max_seconds)
    require_problem(problem, "fit")
    for name, number in (("smoothing", 0.0 if smoothing is None else smoothing), ("ridge", ridge), ("delta", delta)):
        non_negative_number(number, name, MeasureError)
    one_of(method, "method", METHODS, MeasureError)
    one_of(terminal, "terminal", TERMINALS, MeasureError)
    watch, tried = until(told, limit), {}
    try:
        if isinstance(space, str):
            one_of(space, "space", ("auto",), MeasureError)
            candidates = automatic_candidates(problem, getattr(data, "n", 0), smoothing=smoothing, ridge=ridge)
            trying = part_of(watch, 0.0, _CHOSEN)
            selection = validated(problem, data, candidates, estimator, None, FOLDS, delta, terminal, trying)
            space, outside = selection.best.space, "drop"
            tried = {"tried": selection.table}
        begun = _CHOSEN if tried else 0.0
        summing = part_of(watch, begun, begun + _SUMMED * (1.0 - begun))
        enough = _enough(summing, data, None if limit is None else limit - (time.perf_counter() - started))
        system = assemble_until(problem, data, space, estimator, delta, outside, executor, None, enough)
        assembled = time.perf_counter()
        solving = part_of(watch, begun + _SUMMED * (1.0 - begun), 1.0)
        solution = solve_watched(
            system,
            method=method,
            constraint=constraint,
            terminal=terminal,
            smoothing=smoothing,
            ridge=ridge,
            tell=solving,
        )
    except OutOfTimeError:
        raise ConvergenceError(
            f"fit({problem.name!r}): {watch.reached:.0%} done within max_seconds={limit:g}, and nothing that is in the"
            " class yet; give it more time, fewer samples, a smaller class, a Space instead of 'auto', or where there"
            " is a constraint method='projected'"
        ) from None
    watch.finished()
    seconds = {"assembly": assembled - started, **solution.stats["seconds"]}
    stats = {**solution.stats, "outside": outside, "seconds": seconds, **tried}
    return replace(solution, status=_told(solution.status, system.paths, getattr(data, "n", 0)), stats=stats)


def _enough(tell: Progress, data: Data, limit: float | None) -> Enough:
    """Which chunks are enough: those of half the time, where there is a limit and at least one of trajectories."""
    first = until(tell, None if limit is None else _FOR_DATA * limit)

    def enough(done: int, count: int) -> bool:
        if isinstance(data, Measure):
            tell(done / count)
            return False
        try:
            first(done / count)
        except OutOfTimeError:
            tell(done / count)
            return done > 0
        return False

    return enough


def _told(status: str, used: int, given: int) -> str:
    """The status, and how many trajectories were used if that is not all of them."""
    if used >= given:
        return status
    told = f"max_seconds were over: learned from the first {used} of {given} paths"
    return told if status == "ok" else f"{told}; {status}"
