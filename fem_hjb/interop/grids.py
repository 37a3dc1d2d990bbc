"""What is written for other programs: where a solution is sampled, which arrays there are, and what is said of them."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, final

import numpy as np
import scipy
from numpy.typing import ArrayLike

from fem_hjb.paths.extent import truncation_box
from fem_hjb.problems.fingerprint import Fingerprint, fingerprint
from fem_hjb.problems.gauge import UNDERFLOW
from fem_hjb.problems.laws import Law, MarginalLaw, PointMass
from fem_hjb.problems.problem import ControlProblem, check_marginal
from fem_hjb.reference.fokker_planck import DensitySolution
from fem_hjb.solutions.bridge import Bridge
from fem_hjb.solutions.density import DensityLaw
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, as_times, real_array
from fem_hjb.support.errors import DomainError, OutputError, ProblemError
from fem_hjb.support.memory import require_room

AnySolution = Solution | ProductSolution
AnyDensity = MarginalLaw | Law | DensitySolution
Fields = dict[str, FloatArray]

_POINTS = {1: 65, 2: 49, 3: 25}  # per axis
_TIMES = 17
_SLACK = 1e-12  # of the width of a box: a rounding error of its corner

_VALUE = "value v_t(x): the most that reward less alpha times relative entropy is on average, from x at time t on"
_CONTROL = "optimal control (1/alpha) Lambda_t(x) grad v_t(x), which is added to the drift; last axis: its components"
_ARRAYS = {
    "value": (_VALUE, "unit of the reward"),
    "f": ("f_t(x) = exp(value / temperature)", "1"),
    "log_f": ("value / temperature, the logarithm of f, whose own range is that of no double precision number", "1"),
    "control": (_CONTROL, "unit of x per unit of time"),
    "p": ("density of X_t without control", "1 per unit of volume of x"),
    "p_optimal": ("density of X_t under the optimal control", "1 per unit of volume of x"),
}
_CONVENTIONS = {
    "maximised": "E[terminal reward + integral of the running reward] - temperature * KL(controlled | uncontrolled)",
    "process": "dX = (drift + control) dt + Lambda^(1/2) dB",
    "axis order": "t, x1, ..., xd, and of control its components last; in C order, the last index runs fastest",
    "nan": "outside the domain of the solution; where f <= 0; densities of a process that is still at one point",
}


def checked_solution(of: Any) -> AnySolution:
    """A solution of at most three dimensions."""
    if not isinstance(of, Solution | ProductSolution):
        raise OutputError(
            f"export(solution, path) writes a Solution, as solve, solve_on_mesh and fit return it, an exit or a ground"
            f" state, got {type(of).__name__}" + ("; give its .solution" if isinstance(of, Bridge) else "")
        )
    if of.problem.dim not in _POINTS:
        raise OutputError(
            f"export writes grids of one to three dimensions, but this solution has {of.problem.dim}; export its"
            " factors, solution.parts[k][1], or evaluate it at points of yours"
        )
    return of


def checked_times(times: ArrayLike | None, horizon: float) -> FloatArray:
    """Increasing times (k,) in [0, T]; by default 17, denser towards T, where policies are steepest."""
    if times is None:
        return np.asarray(horizon * (1.0 - (1.0 - np.linspace(0.0, 1.0, _TIMES)) ** 2))
    given = np.atleast_1d(real_array(times, "times", DomainError))
    if given.ndim != 1 or given.size == 0 or not (np.diff(given) > 0).all():
        told = f"of shape {given.shape}" if given.ndim != 1 or not given.size else f"{np.array2string(given)[:80]}"
        raise DomainError(f"times must be a number or an increasing array (k,), got one {told}; sort them")
    return as_times(given, horizon, "times")


def bounds(of: AnySolution) -> FloatArray:
    """Corners (2, d) of the box around the domain of a solution."""
    if isinstance(of, Solution):
        return np.array((of.space if isinstance(of.space, PanelSpace) else of.space.spatial).box.bounds)
    corners = np.empty((2, of.problem.dim))
    for index, part in of.parts:
        corners[:, list(index)] = bounds(part)
    return corners


def default_axes(of: AnySolution) -> tuple[FloatArray, ...]:
    """Equispaced points over the box of a solution; of learned ones only where the uncontrolled process goes."""
    lower, upper = bounds(of)
    if "nonpositive_mass" in of.stats or not np.isfinite([lower, upper]).all():
        reach = truncation_box(of.problem, quantile=1e-3, margin=0.0).box.bounds
        lower, upper = np.maximum(lower, reach[0]), np.minimum(upper, reach[1])
    count = _POINTS[of.problem.dim]
    return tuple(np.linspace(low, high, count) for low, high in zip(lower.tolist(), upper.tolist(), strict=True))


def checked_axes(axes: Sequence[ArrayLike] | None, of: AnySolution) -> tuple[FloatArray, ...]:
    """Increasing coordinates, one array for each axis, within the box of a solution."""
    if axes is None:
        return default_axes(of)
    dim = of.problem.dim
    arrays = isinstance(axes, list | tuple) or (isinstance(axes, np.ndarray) and axes.ndim > 0)
    if not arrays or len(axes) != dim:
        got = f"{len(axes)} of them" if arrays else type(axes).__name__
        raise DomainError(f"axes must be a list of {dim} arrays, one for each axis of the problem, got {got}")
    box = bounds(of)
    return tuple(checked_axis(axis, k, box[:, k].tolist()) for k, axis in enumerate(axes))


def checked_axis(axis: ArrayLike, k: int, box: Sequence[float]) -> FloatArray:
    """Increasing coordinates between two ends."""
    points = real_array(axis, f"axes[{k}]", DomainError)
    if points.ndim != 1 or points.size < 2 or not np.isfinite(points).all() or not (np.diff(points) > 0).all():
        raise DomainError(
            f"axes[{k}] must be at least two finite coordinates in increasing order, got shape {points.shape}"
            + (f", {np.array2string(points, threshold=6)[:80]}" if points.ndim == 1 else "")
            + "; np.linspace makes such"
        )
    slack = _SLACK * (box[1] - box[0])
    if points[0] < box[0] - slack or points[-1] > box[1] + slack:
        raise DomainError(
            f"axes[{k}] goes from {points[0]:g} to {points[-1]:g}, but the solution lives between {box[0]:g} and"
            f" {box[1]:g} there; cut the axis, or solve on a larger box="
        )
    return np.asarray(np.clip(points, box[0], box[1]))  # by a rounding error at most


def require_grid(times: FloatArray, axes: Sequence[FloatArray]) -> None:
    """OutputError if the arrays of a grid do not fit into memory."""
    lengths = (len(times), *map(len, axes), len(axes) + 4)
    require_room(lengths, "export:", OutputError, "; give fewer times= or shorter axes=")


def as_marginal(given: Any, name: str, problem: ControlProblem, times: FloatArray) -> MarginalLaw | None:
    """t -> law of X_t, from what stands for densities in arguments."""
    if given is None:
        return None
    if isinstance(given, DensitySolution):
        given = given.law
    if isinstance(given, Law):
        if len(times) > 1:
            raise ProblemError(
                f"{name}= is the law of one time, but {len(times)} times are written; give t -> law, such as what"
                " fokker_planck.solve returns, or one time in times="
            )
        law = given
        given = lambda t: law  # noqa: E731
    try:
        check_marginal(given, problem, ProblemError)
    except ProblemError as cause:
        raise ProblemError(
            f"{name}= must be t -> law of X_t, a law, or what fokker_planck.solve returns, for this problem: {cause}"
        ) from cause
    marginal: MarginalLaw = given
    return marginal


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Sampler:
    """What is known of a solution at points: value, control, and those densities that are known.

    marginal, optimal : t -> law of X_t without control and under the optimal one, or None. With a fixed start x_0 and
        no running reward the second follows from the first: p*_t = p_t exp((v_t - v_0(x_0)) / alpha).
    """

    of: AnySolution
    marginal: MarginalLaw | None
    optimal: MarginalLaw | None

    @property
    def _tilted(self) -> bool:
        problem = self.of.problem
        start = isinstance(problem.initial_law, PointMass) and problem.running_reward is None
        return self.optimal is None and self.marginal is not None and start

    @property
    def left_out(self) -> dict[str, str]:
        """Densities that are not known, and why."""
        found = {}
        if self.marginal is None:
            found["p"] = "the law of X_t is not known in closed form; give density=fokker_planck.solve(problem)"
        if self.optimal is None and not self._tilted:
            found["p_optimal"] = (
                "the law under the optimal control follows from p only where the process starts at a point and there is"
                " no running reward; give optimal_density=fokker_planck.solve(problem, policy=...), with the policy of"
                " the solution, outside its box that of the nearest point"
            )
        return found

    def __call__(self, t: float, x: FloatArray) -> Fields:
        """Arrays (n,), control (n, d), at points x (n, d)."""
        value = self.of.value(t, x, outside="nan", nonpositive="nan")
        found = {"value": value, "control": self.of.policy(t, x, outside="nan", nonpositive="nan")}
        outside = ~inside(self.of, x)
        if self.marginal is not None:
            found["p"] = np.where(outside, np.nan, _density(self.marginal, "density", t, x))
        if self.optimal is not None:
            found["p_optimal"] = np.where(outside, np.nan, _density(self.optimal, "optimal_density", t, x))
        elif self.marginal is not None and self._tilted:
            problem = self.of.problem
            start = float(self.of.value(0.0, problem.initial_law.expectation))
            found["p_optimal"] = _density(self.marginal, "density", t, x, (value - start) / problem.temperature)
        return found


def inside(of: AnySolution, x: FloatArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of points x (n, d) lie in the domain of a solution, (n,)."""
    if isinstance(of, Solution):
        return np.asarray(of.space.spatial.locate(x)[0] >= 0)
    parts = [inside(part, np.ascontiguousarray(x[:, list(index)])) for index, part in of.parts]
    return np.asarray(np.logical_and.reduce(parts))


def _density(marginal: MarginalLaw, name: str, t: float, x: FloatArray, tilt: FloatArray | None = None) -> FloatArray:
    """p_t(x) exp(tilt), (n,); nan for a law without density. Logarithms are added: p may vanish where exp overflows."""
    try:
        law = marginal(t)
    except Exception as cause:  # a callable is any code
        raise ProblemError(f"{name}(t) failed at t={t:g}: {type(cause).__name__}: {cause}") from cause
    if isinstance(law, PointMass):
        return np.full(len(x), np.nan)
    if isinstance(law, DensityLaw) and tilt is None:
        return law.density(x)
    logs = call(f"{name}(t).logpdf(x)", law.logpdf, (x,), ProblemError)
    if logs.shape != (len(x),):
        raise ProblemError(f"{name}(t).logpdf(x) must have shape ({len(x)},) for {len(x)} points, got {logs.shape}")
    return np.asarray(np.exp(logs if tilt is None else logs + tilt))


def with_f(rows: Sequence[Fields], temperature: float) -> None:
    """Put f into the arrays of each time, or log f if f is no double precision number at one of the points."""
    logs = [row["value"] / temperature for row in rows]
    most = max(float(np.abs(entry[np.isfinite(entry)]).max(initial=0.0)) for entry in logs)
    for row, entry in zip(rows, logs, strict=True):
        row |= {"f": np.exp(entry)} if most <= UNDERFLOW else {"log_f": entry}


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Grids:
    """coordinates : t (k,), x1 (n1,), ...;  fields : arrays (k, n1, ..., nd), control (k, n1, ..., nd, d);  meta."""

    coordinates: Mapping[str, FloatArray]
    fields: Mapping[str, FloatArray]
    meta: Mapping[str, Any]


def sampled(sampler: Sampler, times: FloatArray, axes: Sequence[FloatArray]) -> Grids:
    """A solution on the product of times and axes."""
    require_grid(times, axes)
    x, shape = tensor_points(list(axes)), (len(times), *map(len, axes))
    rows = [sampler(t, x) for t in times.tolist()]
    with_f(rows, sampler.of.problem.temperature)
    fields = {
        name: np.stack([row[name] for row in rows]).reshape(*shape, *first.shape[1:]) for name, first in rows[0].items()
    }
    without = int(np.isnan(fields["value"]).sum()) - len(times) * int((~inside(sampler.of, x)).sum())
    coordinates = {"t": times, **{f"x{k}": axis for k, axis in enumerate(axes, start=1)}}
    return Grids(coordinates=coordinates, fields=fields, meta=metadata(sampler, list(fields), without))


def metadata(sampler: Sampler, fields: Sequence[str], without: int) -> dict[str, Any]:
    """What is said of a solution and of the arrays, as JSON can hold it.

    without : how many points of the domain have no value, since f <= 0 there.
    """
    of, problem = sampler.of, sampler.of.problem
    return told_of(of, fingerprint(problem), dict(_arrays(problem.dim, fields))) | {
        "horizon": problem.horizon,
        "points_without_value": without,
        "left_out": sampler.left_out,
        "conventions": _CONVENTIONS,
    }


def told_of(of: Any, points: Fingerprint, arrays: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """What is said of any result: versions, problem, how it was found, and description and unit of each array."""
    problem, estimate, own = of.problem, of.error_estimate, version("fem_hjb")
    return {
        "kind": "fem_hjb export 1",
        "created_by": f"fem_hjb {own}",
        "versions": {
            "fem_hjb": own,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        "problem": problem.name,
        "dim": problem.dim,
        "temperature": problem.temperature,
        "fingerprint": {name: _plain(array.tolist()) for name, array in points.items()},
        "method": of.method,
        "status": of.status,
        "error_estimate": None if estimate is None else _plain(estimate.as_dict()),
        "checks": [{**_plain(asdict(check)), "passed": check.passed} for check in of.checks],
        "arrays": {name: {"description": text, "unit": unit} for name, (text, unit) in arrays.items()},
    }


def _arrays(dim: int, fields: Sequence[str]) -> list[tuple[str, tuple[str, str]]]:
    """Name, and description with unit, of each array."""
    axes = [(f"x{k}", (f"coordinate {k} of the state", f"unit of x{k}")) for k in range(1, dim + 1)]
    return [("t", ("time", "unit of time")), *axes, *((name, _ARRAYS[name]) for name in fields)]


def _plain(given: Any) -> Any:
    """Numbers that JSON does not have, nan and infinities, as text."""
    if isinstance(given, Mapping):
        return {str(key): _plain(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [_plain(entry) for entry in given]
    if isinstance(given, np.generic):
        given = given.item()
    return repr(given) if isinstance(given, float) and not math.isfinite(given) else given
