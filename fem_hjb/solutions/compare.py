r"""How far values, gradients and policies are from a reference, in the norms of the process itself.

With p_t the law of the uncontrolled process, Lambda its diffusion matrix and alpha the temperature, the errors of a
candidate v_h with policy pi_h against a reference v with policy pi are, at a time t,

    value      || v_h - v ||            in L2(p_t),
    value_h1   || v_h - v ||            in H1(p_t): the root of || . ||^2 + || grad . ||^2 in L2(p_t),
    policy     || pi_h - pi ||          in L2(p_t), pointwise in the norm |a|^2 = a' Lambda_t(x)^{-1} a,

each divided by the largest norm of the reference's own value or policy over all times compared. Overall is
the largest over the times, that is  max_t ||error_t|| / max_t ||reference_t||. The policy norm is the one in which
alpha/2 E int |pi_h - pi|^2 dt is the reward lost by following pi_h (arXiv 2509.02528).
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.problem import ControlProblem, ValueFunction, require_problem
from fem_hjb.solutions.norms import LawPoints, l2_norm, law_points, policy_squares
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, Rng, one_of
from fem_hjb.support.errors import ComparisonError, FemHjbError
from fem_hjb.support.files import atomic_file
from fem_hjb.support.objects import Plain

Batched = Callable[[Any, Any], Any]
Contender = ValueFunction | tuple[Batched, Batched]

COLUMNS = ("value", "value_h1", "policy", "excluded")
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


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """Relative errors of one candidate at one time, or overall (time None); `excluded` is a p_t mass, see `compare`."""

    candidate: str
    time: float | None
    value: float
    value_h1: float
    policy: float
    excluded: float


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Comparison(Plain):
    """The result of `compare`: rows per candidate and time, then overall; prints as a table of the overall errors."""

    rows: tuple[Row, ...]
    points: str

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates, in the order given."""
        return tuple(dict.fromkeys(row.candidate for row in self.rows))

    @property
    def times(self) -> FloatArray:
        """The times compared."""
        return np.array([row.time for row in self.rows if row.candidate == self.names[0] and row.time is not None])

    def overall(self, name: str) -> Row:
        """max_t ||error_t|| / max_t ||reference_t|| of one candidate, and its largest excluded mass."""
        return next(row for row in self._of(name) if row.time is None)

    def series(self, name: str, column: str) -> FloatArray:
        """One column of one candidate against `times`."""
        one_of(column, "column", COLUMNS, ComparisonError)
        return np.array([getattr(row, column) for row in self._of(name) if row.time is not None])

    def _of(self, name: str) -> list[Row]:
        rows = [row for row in self.rows if isinstance(name, str) and row.candidate == name]
        if not rows:
            raise ComparisonError(f"there is no candidate {name!r} here, only {', '.join(map(repr, self.names))}")
        return rows

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table must know: how the norms were computed, and over how much of the mass."""
        notes = [f"relative errors, largest over {self.times.size} times; {self.points}"]
        if any(row.excluded > 0 for row in self.rows):
            notes.append(
                "excluded: p_t mass where the candidate has no value (outside its mesh, or f <= 0);"
                " the norms are over the rest"
            )
        return tuple(notes)

    def table(self, *, per_time: bool = False) -> list[tuple[str, ...]]:
        """Header and rows as text, overall only or each time too."""
        chosen = [row for row in self.rows if per_time or row.time is None]
        time = [("overall" if row.time is None else f"{row.time:g}",) if per_time else () for row in chosen]
        cells = [tuple(_text(getattr(row, column)) for column in COLUMNS) for row in chosen]
        head = ("candidate", *(("time",) if per_time else ()), *COLUMNS)
        return [head, *((row.candidate, *t, *c) for row, t, c in zip(chosen, time, cells, strict=True))]

    def __str__(self) -> str:
        lines = self.table()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        body = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        ]
        rule = "-" * len(body[0])
        return "\n".join([body[0], rule, *body[1:], rule, *self.notes])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write every row, at full precision; the overall rows have the time `overall`. OutputError if it cannot."""
        with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["candidate", "time", *COLUMNS])
            for row in self.rows:
                time = "overall" if row.time is None else repr(row.time)
                writer.writerow([row.candidate, time, *(repr(float(getattr(row, c))) for c in COLUMNS)])


def _text(number: float) -> str:
    return "-" if np.isnan(number) else "0" if number == 0 else f"{number:.2e}"


def compare(
    candidates: Mapping[str, Contender],
    reference: Contender,
    *,
    problem: ControlProblem | None = None,
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
    times : where to compare; by default 9 equispaced times from 0 to T.
    order : Gauss points per coordinate of p_t, where problem.marginal is known and dim <= 3 (default 64, 32, 16 in
        dimension 1, 2, 3). Elsewhere 4096 simulated paths stand for p_t; then times must be multiples of T/K for some
        K <= 1024.
    rng : seed of these paths.
    points : instead of times, order and rng, what `law_points` returned, to compare often at the same points.

    Where the candidate or the reference has no value (outside its mesh, f <= 0, or nan from the user's callables) the
    norms of error and reference leave the point out, and the p_t mass left out is reported as `excluded`.

    Raises
    ------
    ComparisonError : no problem, no candidates, a candidate of the wrong kind or returning a wrong shape, or with no
        value on more than half the mass at some time.
    MeasureError : times or order make no sense.
    DomainError : times outside [0, T].
    """
    problem = _find_problem(reference) if problem is None else problem
    require_problem(problem, "compare")
    if not isinstance(candidates, Mapping) or not candidates:
        raise ComparisonError("candidates must be a mapping from names to value functions, with at least one entry")
    judged = {str(name): _wrap(candidate, str(name), problem) for name, candidate in candidates.items()}
    truth = _wrap(reference, "reference", problem)
    if not isinstance(points, LawPoints | None):
        raise ComparisonError(f"points must be what law_points returns, got {type(points).__name__}")
    chosen = law_points(problem, times=times, order=order, rng=rng) if points is None else points
    grid = chosen.times
    sums: dict[str, list[_Norms]] = {name: [] for name in judged}
    for t, x, weights in chosen:
        exact = _evaluate(truth, "reference", problem, t, x)
        for name, candidate in judged.items():
            norms = _norms(_evaluate(candidate, name, problem, t, x), exact, problem, t, x, weights)
            if norms.excluded > 0.5:
                raise ComparisonError(
                    f"candidate {name!r} or the reference has no value on {norms.excluded:.0%} of the mass at t={t:g}"
                    " (outside its mesh, or f <= 0); compare on other times, or solve on a wider mesh"
                )
            sums[name].append(norms)
    rows = [row for name, norms in sums.items() for row in _rows(name, grid, norms)]
    return Comparison(rows=tuple(rows), points=chosen.description)


def difference(
    solution: Solution,
    richer: Solution,
    *,
    undefined: bool = True,
    rng: Rng = 0,
) -> tuple[float, float]:
    """Relative difference (value, policy) of two solutions, in the norms of `ErrorEstimate` with `richer` as v.

    Points outside the mesh are left out. Those where f <= 0 in one of the two, so that there is no value, count as
    wrong by 100 per cent: the root of their mass is added in squares, unless undefined=False. (inf, inf) if no value
    is known on more than half of the mass.
    """

    def covered(t: Any, x: FloatArray) -> FloatArray:
        return np.where(richer.space.spatial.locate(x)[0] >= 0, 1.0, np.nan)

    mesh = from_callables(covered, lambda t, x: np.zeros(x.shape))
    try:
        row = compare({"this": solution}, richer, rng=rng).overall("this")
        lost = row.excluded
        if undefined and lost > 0.0:
            lost -= compare({"mesh": mesh}, mesh, problem=richer.problem, rng=rng).overall("mesh").excluded
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


def _evaluate(of: ValueFunction, name: str, problem: ControlProblem, t: float, x: FloatArray) -> _Values:
    n, d = x.shape
    if isinstance(of, Solution | ProductSolution):
        value = of.value(t, x, outside="nan", nonpositive="nan")
        gradient: FloatArray | None = of.gradient(t, x, outside="nan", nonpositive="nan")
        policy = None
    else:
        calls: tuple[Batched, Batched | None, Batched | None] = (
            (of.value_of, of.gradient_of, of.policy_of)
            if isinstance(of, UserFunctions)
            else (of.value, of.gradient, getattr(of, "policy", None))
        )
        value = _call(calls[0], f"candidate {name!r}: value(t, x)", t, x, (n,))
        gradient = None if calls[1] is None else _call(calls[1], f"candidate {name!r}: gradient(t, x)", t, x, (n, d))
        policy = None if calls[2] is None else _call(calls[2], f"candidate {name!r}: policy(t, x)", t, x, (n, d))
    if policy is None and gradient is not None:
        policy = problem.policy_from_gradient(t, x, gradient)
    return _Values(value, gradient, policy)


def _call(function: Batched, what: str, t: float, x: FloatArray, expected: tuple[int, ...]) -> FloatArray:
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


def _rows(name: str, grid: FloatArray, norms: list[_Norms]) -> list[Row]:
    scale = np.max([n.reference for n in norms], axis=0)
    errors = np.array([n.error for n in norms])
    with np.errstate(divide="ignore", invalid="ignore"):  # a reference that is 0 throughout: 0/0 is 0, else infinite
        relative = np.where(errors == 0.0, 0.0, errors / scale)
    excluded = np.array([n.excluded for n in norms])
    times: list[float | None] = [*grid.tolist(), None]
    numbers = np.vstack([np.column_stack([relative, excluded]), [*relative.max(axis=0), excluded.max()]])
    return [
        Row(candidate=name, time=t, value=float(v), value_h1=float(g), policy=float(p), excluded=float(e))
        for t, (v, g, p, e) in zip(times, numbers, strict=True)
    ]
