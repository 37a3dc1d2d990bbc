"""Learning f from trajectories."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from fem_hjb.learning.automatic import AUTO, DICTIONARY, Choice, chosen, on_mesh
from fem_hjb.learning.constraints import Constraint
from fem_hjb.learning.estimators import Estimator
from fem_hjb.learning.recipe import Recipe
from fem_hjb.learning.system import Data, System, check_domain
from fem_hjb.learning.verification import Verification
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import Rng, as_seed, one_of
from fem_hjb.support.errors import ConvergenceError, MeasureError
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, part_of, until

_DEFAULT = "generator"
_CHOSEN, _LEARNED = 0.8, 0.95  # of progress: after the choice of a class, and before it is verified


def fit(
    problem: ControlProblem,
    data: Data,
    space: Space | str = "auto",
    *,
    estimator: str | Estimator | None = None,
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
    verify: bool | str = True,
    accept: float = 0.1,
    rng: Rng = 0,
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
    space : a `Space`; or "auto": classes of growing size on a common box (C1 cubics, then C2 cubic splines on more
        cells, times quadratics in time), on the mesh of a `MeshDomain` (linear and quadratic elements on it, and on it
        refined; none is coarser than it is), in more than three dimensions dictionaries; or "dictionary": those in any.
        Each is learned in as asked for, with its constraint, and the one is taken whose policy has the least error by
        the paths that verify, where that of a system in doubt counts half as much again; with verify=False or
        "held-out" it is the choice of `cross_validate`, which knows no constraint and tries no splines.
        `stats["tried"]` is the table, and `print` shows it.
    estimator : an `Estimator`, or the name of one in `ESTIMATORS`, whose module has the formulas: "generator" and
        "residual", second derivatives at the samples (C1 classes: elements "hermite", "B2", ..., dictionaries);
        "weak", first derivatives and the score of the law; "corrected", increments of f along the paths less
        grad f' (dX - b dt); "increment", model-free; "regression", least squares of Feynman-Kac labels, the baseline;
        "doob", the same with a gradient penalty, whose weight is chosen by cross-validation over trajectories
        (`choose_penalty`) or given, as by `doob(0.01)`: the stronger baseline. None: "generator"; with space="auto" on
        a mesh, where no class is C1, "corrected".
    method : "direct", sparse factors (GMRES on incomplete ones where those do not fit into memory; active sets where
        there is a constraint); "projected", the projected iteration of arXiv 2509.02528, whose steps are projections in
        the norm E and which contracts at a rate that does not depend on the mesh if delta > 0; "minimal-residual", the
        least |E^{-1}(B f - l)|_E in the set, which asks for no coercivity. See `inequality`.
    constraint : a convex set of functions, `Bounds(0, 1)`, `Monotone(axis)`, `Convex(axis)`, `EnergyBall(radius)`, or
        an intersection `a & b`; f is the gauged one, at most 1 where the gauge bounds the rewards. The result is in the
        set everywhere, not only at nodes or samples.
    terminal : "penalty", as above; "interpolated": f_T is the interpolant of exp((y - c_y)/alpha), and g_T = 0. The
        penalty asks for f_T in mean square only, which is more accurate for f in a coarse class, but leaves log f,
        hence policies near T, to chance where f_T is small: take "interpolated" where the policy matters and the class
        has cells enough for exp(y/alpha), not in a coarse one, whose interpolant is further from it than f is from the
        class.
    delta : weight of the Sobolev-weighted tests. Positive, B is bounded and not only coercive in the norm
        E[f, f] = int E[f^2 + |grad f|_Lambda^2 + delta (d_t f)^2] + terms at 0 and T (see `system.System`); terms at
        T which vanish at the solution are added. Not for the least-squares estimators "regression", "doob" and
        "residual".
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
        a whole, the direct method has no iterate in a set but its last one, space="auto" chooses among the classes
        tried so far, and a factorisation is not interrupted: where that is not done in time there is no solution.
    verify : True: paths are simulated by the problem's own drift and diffusion, which follow the learned policy
        (`witness` has the formulas), and tell how wrong it is. `checks` have the relative root mean square error of v_0
        under the initial law and that of the policy over [0, T] under its own law, with one standard error;
        `error_estimate` the largest over time of both, which cells in time that are too large raise, the last above
        all; it takes 0.2 to 4 seconds. Two more checks are of a fifth of the trajectories, along which a second fit, to
        the others, is looked at: the residual of the equation (`held_out`), for C1 classes, and the share of
        extrapolation; if max_seconds left some unused, they are of these. "held-out": the latter two alone, nothing is
        simulated; the policy has no error estimate then, and the status says so. False: nothing is known of the error,
        and the status says nothing of it either.
    accept : the relative error up to which a value and a policy are good enough for the status "ok". If not, half of
        the trajectories are learned from again, to see whether more of them would help or a larger class.
    rng : seed of the paths that verify.

    In time the method is Galerkin's with equal trial and test functions: of order about 2 with P1 and with P2, whose
    constant is smaller, of order 4 with P3. The gauge is taken from the nodes of the space, never from samples, so that
    coefficients of fits on one space can be subtracted. On a reflecting domain, the normal slopes of C1 classes are set
    to 0 at the faces, and "corrected" leaves increments uncorrected that start within 5 standard deviations of a step
    from a face, whose push is no martingale.

    `stats`: "samples", "dropped" (outside), "pinned" (how many coefficients the samples do not determine: they are
    set to 0, or smoothing outweighs what is seen of them), "pinned_dofs" (which), "gradient_penalty" (lambda, of
    "doob"), "nonpositive_mass" (the share of the samples, weighted, where f <= 0), "seconds", what was asked for, what
    the solver says ("iterations", "gamma", "predicted" and "contraction" per step, "converged"; "kkt", what "direct"
    leaves of the KKT conditions of a set), "factors" (how form and energy were factorised: "fronts", or where these are
    too large or do not solve "incomplete" with GMRES, "diagonal" or "pivoted", sparse LU), "residual": the
    natural residual |f - P_F(f - E^{-1}(B f - l))|_E relative to |E^{-1} l|_E, a certificate of f however it was found,
    and the figures
    of the system, scaled to a unit diagonal, without its set: "condition" (estimate, 1-norm); "coercivity", the
    smallest eigenvalue of the symmetric part of B relative to E; "norm" of B; "stability", the smallest singular value;
    "best_contraction" of the projected iteration. For the exact process all are positive if r < c_r or delta > 0 (else
    functions of time alone that vanish at 0 and T cost nothing, and coercivity is 0); left-point sums over few steps
    per time cell alone can take coercivity to about -0.6 without harm, so that `status` judges by stability first.
    `status` is "ok", or says what is doubtful and what to do. With space="auto" also "tried".

    Raises
    ------
    SpaceError : estimator "generator" or "residual" on a class that is not C1.
    MeasureError : the data do not fit the problem or leave the domain, the law lacks what the estimator needs, or an
        argument makes no sense.
    ConstraintError : the set is empty, or not one the class can have.
    ConvergenceError : the linear system cannot be solved, the projected iteration has no step that contracts, or there
        is no solution within max_seconds.
    """
    started = time.perf_counter()
    told, limit = checked_progress(progress), checked_seconds(max_seconds)
    require_problem(problem, "fit")
    check_domain(problem)
    row = _DEFAULT if estimator is None else estimator
    if isinstance(space, str) and space == AUTO and isinstance(problem.domain, MeshDomain):
        row = on_mesh(estimator)
    given: dict[str, Any] = {"estimator": row, "method": method, "constraint": constraint, "terminal": terminal}
    given |= {"delta": delta, "smoothing": smoothing, "ridge": ridge, "outside": outside, "executor": executor}
    recipe = Recipe(problem=problem, **given)
    verification = Verification(verify=verify, accept=accept, seed=as_seed(rng))
    verification.check(data)
    watch, choice = until(told, limit), None

    def left() -> float | None:
        return None if limit is None else limit - _since(started)

    try:
        where = space
        if isinstance(where, str):
            asked = one_of(where, "space", (AUTO, DICTIONARY), MeasureError)
            recipe = replace(recipe, outside="drop")
            follow, trying = verify is True, part_of(watch, 0.0, _CHOSEN)
            choice = chosen(recipe, data, asked, follow, accept, verification.seed, trying, left)
            where = choice.space
        learning = part_of(watch, _CHOSEN if choice else 0.0, _LEARNED)
        known = None if choice is None else choice.learned
        solution, system = known or recipe.learned(where, data, learning, left())
    except OutOfTimeError:
        if limit is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"fit({problem.name!r}): {watch.reached:.0%} done within max_seconds={limit:g}, and nothing that is in the"
            " class yet; give it more time, fewer samples, a smaller class, a Space, or for sets method='projected'"
        ) from None
    seconds = dict(solution.stats["seconds"])
    seconds = {"assembly": _since(started) - sum(seconds.values()), **seconds}
    status = _told(solution.status, system.paths, getattr(data, "n", 0), choice)
    solution = replace(solution, status=status, stats={**solution.stats, "outside": recipe.outside})
    if verify:

        def again(data: Data, tell: Progress) -> tuple[Solution, System]:
            return recipe.learned(system.space, data, tell, left(), figures=False)

        solution = verification.verified(solution, system, data, again, part_of(watch, _LEARNED, 1.0))
        seconds["verification"] = _since(started) - sum(seconds.values())
    watch.finished()
    tried = {"tried": choice.tried} if choice else {}
    return replace(solution, stats={**solution.stats, "seconds": seconds, **tried})


def _since(started: float) -> float:
    return time.perf_counter() - started


def _told(status: str, used: int, given: int, choice: Choice | None) -> str:
    """The status, and how many trajectories and classes were used if that is not all of them."""
    notes = [] if choice is None or choice.status == "ok" else [choice.status]
    if used < given:
        notes.append(f"max_seconds were over: learned from the first {used} of {given} paths")
    return "; ".join([*notes, *([] if status == "ok" and notes else [status])])
