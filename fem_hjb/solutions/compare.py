r"""How far values, gradients and policies are from a reference, in the norms of the process itself.

With p_t the law of the uncontrolled process, Lambda its diffusion matrix and alpha the temperature, the errors of a
candidate v_h with policy pi_h against a reference v with policy pi are, at a time t,

    value      || v_h - v ||            in L2(p_t),
    value_h1   || v_h - v ||            in H1(p_t): the root of || . ||^2 + || grad . ||^2 in L2(p_t),
    policy     || pi_h - pi ||          in L2(p_t), pointwise in the norm |a|^2 = a' Lambda_t(x)^{-1} a,

each divided by the largest norm of the reference's own value or policy over all times compared. Overall is
the largest over the times, that is  max_t ||error_t|| / max_t ||reference_t||. The policy norm is the one in which
alpha/2 E int |pi_h - pi|^2 dt is the reward lost by following pi_h (arXiv 2509.02528).

With law="controlled" p*_t, the law of the process under the reference's policy, takes the place of p_t: this is where
controls are judged in the literature (E* int |pi_h - pi|^2 dt), and where a far mode of the reward sends the process
that P does not see. With law="both" each is compared, and overall is the larger of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.paths.steering import Policy
from fem_hjb.problems.problem import ControlProblem, ValueFunction, require_problem
from fem_hjb.solutions.comparison import Comparison, Row
from fem_hjb.solutions.norms import LAWS, LawPoints, controlled_points, l2_norm, law_points, policy_squares
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.solutions.staged import StagedSolution
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, Rng, one_of, require_rng
from fem_hjb.support.errors import ComparisonError, ConvergenceError, FemHjbError, MeasureError
from fem_hjb.support.progress import Progress, unheard

Batched = Callable[[Any, Any], Any]
Contender = ValueFunction | tuple[Batched, Batched]

_ROUNDING = 1e-14  # of a sum of masses


@final
@dataclass(frozen=True, eq=False)
class UserFunctions:
    """A value function made of callables (t, x) with x (..., d): see `from_callables`."""

    value_of: Batched
    gradient_of: Batched | None = None
    policy_of: Batched | None = None

    def value(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """v_t(x), shape (...)."""
        return call("value(t, x)", self.value_of, (t, x), ComparisonError, passes=FemHjbError)

    def gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """grad v_t(x), shape (..., d); ComparisonError when no gradient was given."""
        if self.gradient_of is None:
            raise ComparisonError("this value function was made without a gradient; give from_callables one")
        return call("gradient(t, x)", self.gradient_of, (t, x), ComparisonError, passes=FemHjbError)


def from_callables(value: Batched, gradient: Batched | None = None, policy: Batched | None = None) -> ValueFunction:
    """Wrap callables of the user's, a neural network for instance, into something that can be compared and plotted.

    Each is called with a number t and points x (n, d) and returns NumPy arrays of shape (n,) for the value and (n, d)
    for the gradient and the policy. Without a policy it is (1/alpha) Lambda grad v; without a gradient the columns
    that need it are nan.
    """
    for name, given in (("value", value), ("gradient", gradient), ("policy", policy)):
        if not (callable(given) or (given is None and name != "value")):
            raise ComparisonError(f"{name} must be a callable (t, x) -> array, got {type(given).__name__}")
    return UserFunctions(value, gradient, policy)


def compare(
    candidates: Mapping[str, Contender],
    reference: Contender,
    *,
    problem: ControlProblem | None = None,
    law: str = "uncontrolled",
    times: ArrayLike | None = None,
    order: int | None = None,
    rng: Rng = 0,
    points: LawPoints | None = None,
) -> Comparison:
    """Relative errors of each candidate against the reference, at each time and overall (norms: see the module).

    Parameters
    ----------
    candidates : name -> a Solution, a closed form, anything with value(t, x) and gradient(t, x) and possibly
        policy(t, x), or a pair of callables (value, gradient). They are called with a number t and points x (n, d).
    reference : one of the same.
    problem : the control problem; taken from reference.problem where there is one.
    law : "uncontrolled", "controlled" or "both". Draws of the optimally controlled law are 4096 paths that follow the
        reference's policy. Where these do not show it, as the reference has no policy at more than a hundredth of them
        or they explode, "both" compares under the other law alone, and the result's `unseen` says why.
    times : where to compare; by default 16 equispaced intervals of [0, T], their last ones halved again and again down
        to T / 4096: policies change fastest shortly before T; and the first ones, to T / 1024, where noise soon makes
        the law wider than it begins.
    order : Gauss points per coordinate of p_t, where problem.marginal is known and dim <= 3 (default 64, 32, 16 in
        dimension 1, 2, 3, fewer for kernel densities of many points). Elsewhere 4096 simulated paths stand for p_t.
    rng : seed of these paths.
    points : instead of law, times, order and rng, what `law_points` or `controlled_points` returned, to compare often
        at the same points.

    Where the candidate or the reference has no value (outside its mesh, f <= 0, or nan from the user's callables) the
    norms of error and reference leave the point out, and the mass left out is reported as `excluded`.

    Raises
    ------
    ComparisonError : no problem, no candidates, a candidate of the wrong kind or returning a wrong shape, or with no
        value on more than half the mass at some time; law="controlled", and no draws of it.
    MeasureError : times, order or rng make no sense.
    DomainError : times outside [0, T].
    """
    problem = _find_problem(reference) if problem is None else problem
    require_problem(problem, "compare")
    if not isinstance(candidates, Mapping) or not candidates:
        raise ComparisonError("candidates must be a mapping from names to value functions, with at least one entry")
    judged = {str(name): _wrap(candidate, str(name), problem) for name, candidate in candidates.items()}
    truth = _wrap(reference, "reference", problem)
    one_of(law, "law", (*LAWS, "both"), ComparisonError)
    require_rng(rng)
    if not isinstance(points, LawPoints | None):
        raise ComparisonError(f"points must be what law_points returns, got {type(points).__name__}")
    chosen, unseen = [points] if points is not None else [], ""
    if points is None and law != "controlled":
        chosen.append(law_points(problem, times=times, order=order, rng=rng))
    if points is None and law != "uncontrolled":
        try:
            chosen.append(controlled_points(problem, _steering(truth, problem), times=times, rng=rng))
        except (MeasureError, ConvergenceError) as cause:
            if not chosen:
                raise ComparisonError(f"not to be compared under the optimally controlled law: {cause}") from cause
            unseen = str(cause)
    rows = [row for where in chosen for row in _compared(judged, truth, problem, where)]
    return Comparison(rows=tuple(rows), points="; ".join(where.description for where in chosen), unseen=unseen)


def overall_of(
    candidate: ValueFunction, truth: ValueFunction, problem: ControlProblem, points: LawPoints, tell: Progress = unheard
) -> Row:
    """The overall errors of one candidate at these points; tell is given signs of life."""
    return _compared({"this": candidate}, truth, problem, points, tell)[-1]


def _compared(
    judged: Mapping[str, ValueFunction],
    truth: ValueFunction,
    problem: ControlProblem,
    points: LawPoints,
    tell: Progress = unheard,
) -> list[Row]:
    """The rows under one law: of each candidate those of the times, and the overall one."""
    sums: dict[str, list[_Norms]] = {name: [] for name in judged}
    for t, x, weights in points:
        tell(0.0)
        exact = _evaluate(truth, "reference", problem, t, x)
        for name, candidate in judged.items():
            tell(0.0)
            norms = _norms(_evaluate(candidate, name, problem, t, x), exact, problem, t, x, weights)
            if norms.excluded > 0.5:
                raise ComparisonError(
                    f"candidate {name!r} or the reference has no value on {norms.excluded:.0%} of the mass at t={t:g}"
                    " (outside its mesh, or f <= 0); compare on other times, or solve on a wider mesh"
                )
            sums[name].append(norms)
    return [row for name, norms in sums.items() for row in _rows(name, points, norms)]


def _steering(truth: ValueFunction, problem: ControlProblem) -> Policy:
    """The reference's policy, nan where it has none; MeasureError if it knows none at all."""
    _, gradient_of, policy_of = _callables(truth)
    if policy_of is not None:
        own = policy_of
        return lambda t, x: _call(own, "reference: policy(t, x)", t, x, x.shape)
    if gradient_of is None:
        raise MeasureError("the reference has no policy: give from_callables a gradient or a policy")
    slope = gradient_of
    return lambda t, x: problem.policy_from_gradient(t, x, _call(slope, "reference: gradient(t, x)", t, x, x.shape))


def difference(
    solution: Solution,
    richer: Solution,
    *,
    undefined: bool = True,
    points: LawPoints | None = None,
    tell: Progress = unheard,
) -> tuple[float, float]:
    """Relative difference (value, policy) of two solutions, in the norms of `ErrorEstimate` with `richer` as v.

    Points outside the mesh are left out. Those where f <= 0 in one of the two, so that there is no value, count as
    wrong by 100 per cent: the root of their mass is added in squares, unless undefined=False. (inf, inf) if no value
    is known on more than half of the mass. points : what `law_points` returned, if asked. tell : given signs of life.
    """
    problem = richer.problem
    points = law_points(problem) if points is None else points

    def covered(t: Any, x: FloatArray) -> FloatArray:
        return np.where(richer.space.spatial.locate(x)[0] >= 0, 1.0, np.nan)

    mesh = from_callables(covered, lambda t, x: np.zeros(x.shape))
    try:
        row = overall_of(solution, richer, problem, points, tell)
        lost = row.excluded
        if undefined and lost > 0.0:
            lost -= overall_of(mesh, mesh, problem, points, tell).excluded
    except ComparisonError:  # no value on more than half of the mass
        return math.inf, math.inf
    wrong = math.sqrt(lost) if undefined and lost > _ROUNDING else 0.0
    return math.hypot(row.value, wrong), math.hypot(row.policy, wrong)


def _find_problem(reference: Any) -> ControlProblem:
    found = getattr(reference, "problem", None)
    if not isinstance(found, ControlProblem):
        raise ComparisonError(
            f"the reference ({type(reference).__name__}) does not carry its problem; give compare(..., problem=...)"
        )
    return found


def _wrap(given: Any, name: str, problem: ControlProblem) -> ValueFunction:
    if isinstance(given, tuple):
        if len(given) != 2:
            raise ComparisonError(f"candidate {name!r}: a tuple must be (value, gradient), got {len(given)} entries")
        return from_callables(*given)
    if not isinstance(given, ValueFunction):
        raise ComparisonError(
            f"candidate {name!r} must have methods value(t, x) and gradient(t, x), or be a pair of callables"
            f" (value, gradient); got {type(given).__name__}"
        )
    own = getattr(given, "problem", None)
    if isinstance(own, ControlProblem) and (own.dim, own.horizon) != (problem.dim, problem.horizon):
        raise ComparisonError(
            f"candidate {name!r} solves a problem with dim={own.dim}, horizon={own.horizon:g}; here dim={problem.dim},"
            f" horizon={problem.horizon:g}"
        )
    return given


@final
@dataclass(frozen=True, eq=False)
class _Values:
    """Value (n,), gradient (n, d) and policy (n, d) at the points of one time; None where there is none."""

    value: FloatArray
    gradient: FloatArray | None
    policy: FloatArray | None

    @property
    def columns(self) -> tuple[FloatArray, FloatArray | None, FloatArray | None]:
        return self.value[:, None], self.gradient, self.policy


def _callables(of: ValueFunction) -> tuple[Batched, Batched | None, Batched | None]:
    """Value, gradient and policy, nan where there are none; None for what is not known."""
    if isinstance(of, Solution | ProductSolution | StagedSolution):
        value, gradient = (partial(f, outside="nan", nonpositive="nan") for f in (of.value, of.gradient))
        return value, gradient, None
    if isinstance(of, UserFunctions):
        return of.value_of, of.gradient_of, of.policy_of
    return of.value, of.gradient, getattr(of, "policy", None)


def _evaluate(of: ValueFunction, name: str, problem: ControlProblem, t: float, x: FloatArray) -> _Values:
    value_of, gradient_of, policy_of = _callables(of)
    value = _call(value_of, f"candidate {name!r}: value(t, x)", t, x, x.shape[:1])
    gradient = None if gradient_of is None else _call(gradient_of, f"candidate {name!r}: gradient(t, x)", t, x, x.shape)
    policy = None if policy_of is None else _call(policy_of, f"candidate {name!r}: policy(t, x)", t, x, x.shape)
    if policy is None and gradient is not None:
        policy = problem.policy_from_gradient(t, x, gradient)
    return _Values(value, gradient, policy)


def _call(function: Batched, what: str, t: Any, x: FloatArray, expected: tuple[int, ...]) -> FloatArray:
    array = call(what, function, (t, x), ComparisonError, passes=FemHjbError)
    if array.shape != expected:
        raise ComparisonError(f"{what} returned shape {array.shape} for x of shape {x.shape}, expected {expected}")
    return array


@final
@dataclass(frozen=True, eq=False)
class _Norms:
    """At one time: norms (3,) of errors and reference (value in L2 and H1, policy), and the mass left out."""

    error: FloatArray
    reference: FloatArray
    excluded: float


def _norms(
    candidate: _Values, exact: _Values, problem: ControlProblem, t: float, x: FloatArray, w: FloatArray
) -> _Norms:
    pairs = list(zip(candidate.columns, exact.columns, strict=True))
    known = [array for pair in pairs for array in pair if array is not None]
    kept = np.logical_and.reduce([np.isfinite(array).all(axis=-1) for array in known])
    law = problem, t, x[kept], w[kept]
    errors = _three(law, [None if a is None or b is None else a[kept] - b[kept] for a, b in pairs])
    return _Norms(errors, _three(law, [None if b is None else b[kept] for _, b in pairs]), float(w[~kept].sum()))


def _three(law: tuple[ControlProblem, float, FloatArray, FloatArray], columns: list[FloatArray | None]) -> FloatArray:
    """Norms (3,) of value in L2 and H1, and of the policy; nan for what is not known."""
    problem, t, x, w = law
    value, slope = (np.nan if rows is None else l2_norm(w, (rows**2).sum(axis=-1)) for rows in columns[:2])
    policy = np.nan if columns[2] is None else l2_norm(w, policy_squares(problem, t, x, columns[2]))
    return np.array([value, np.hypot(value, slope), policy])


def _rows(name: str, points: LawPoints, norms: list[_Norms]) -> list[Row]:
    scale = np.max([n.reference for n in norms], axis=0)
    errors = np.array([n.error for n in norms])
    with np.errstate(divide="ignore", invalid="ignore"):  # a reference that is 0 throughout: 0/0 is 0, else infinite
        relative = np.where(errors == 0.0, 0.0, errors / scale)
    excluded = np.array([n.excluded for n in norms])
    times: list[float | None] = [*points.times.tolist(), None]
    numbers = np.vstack([np.column_stack([relative, excluded]), [*relative.max(axis=0), excluded.max()]])
    return [
        Row(
            candidate=name,
            law=points.law,
            time=t,
            value=float(v),
            value_h1=float(g),
            policy=float(p),
            excluded=float(e),
        )
        for t, (v, g, p, e) in zip(times, numbers, strict=True)
    ]
