"""The system B c = l of a class under a measure, with the Gram matrices by which it is judged, in one pass over it.

On the way from the data to the system there are five containers:

    1. the data as given: `Paths`, a `PathSource` which hands them out in chunks, or a `Measure`;
    2. `Measure`: one chunk as weighted points;
    3. `Located` points, with the coefficients of what is summed over them, `Integrands` (made of `estimators.Terms`);
    4. `ChunkSums`: arrays whose size does not depend on the number of points, and which add up over chunks;
    5. `System`: sparse matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fem_hjb.learning import forms
from fem_hjb.learning.estimators import Estimator, Setting, Terms, find_estimator
from fem_hjb.learning.forms import RATE_OF_CHANGE, VALUE, Integrands, Load, Operator, Pairing
from fem_hjb.learning.gram import gram_sums, pair_sums
from fem_hjb.learning.measures import Measure, check_space, empirical_measure
from fem_hjb.learning.samples import Located
from fem_hjb.learning.scatter import GramSums, Scatter
from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import PathSource, array_source
from fem_hjb.paths.tree_sum import tree_sum
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, constant_gauge
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, IntArray, non_negative_number, one_of, require
from fem_hjb.support.errors import DomainError, FemHjbError, MeasureError
from fem_hjb.support.memory import require_room
from fem_hjb.support.objects import Plain

_SAMPLES = 1 << 18  # per chunk
_PROBES = 1 << 15  # samples kept to look at the solution

Data = Paths | Measure | PathSource
Enough = Callable[[int, int], bool]


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class System(Plain):
    """B[f, g] = l(g) on a class under a measure; matrices (N, N) have tests as rows and trials as columns.

    form : B.  load : l.
    mass : int E[f g] dt + E[f_T g_T], what the measure sees of a function at all.
    energy : E[f, g] = mass + E[f_0 g_0] + int E[grad f' Lambda grad g + s d_t f d_t g] dt. With delta > 0, s = delta
        and delta/2 (E[grad f_T' Lambda grad g_T] + E[grad f_0' Lambda grad g_0]) is added: B is then coercive and
        bounded in the norm of E. With delta = 0, s is the time step of the samples (0 under quadrature): left-point
        sums perturb int f d_t f by terms that no norm without it controls.
    paths, samples, dropped : counts; paths is 0 under a law.  visits (n_cells,) : samples inside each cell.
    probe_t, probe_x, probe_weights : some of the samples.
    """

    problem: ControlProblem
    space: Space
    gauge: Gauge
    estimator: Estimator
    delta: float
    kind: str
    form: sp.csr_matrix
    mass: sp.csr_matrix
    energy: sp.csr_matrix
    load: FloatArray
    paths: int
    samples: int
    dropped: int
    visits: IntArray
    probe_t: FloatArray
    probe_x: FloatArray
    probe_weights: FloatArray


def assemble(
    problem: ControlProblem,
    data: Data,
    space: Space,
    *,
    estimator: str | Estimator = "generator",
    delta: float = 0.0,
    outside: str = "error",
    executor: Executor | None = None,
    constants: Gauge | None = None,
) -> System:
    """The system of an estimator (`estimators.ESTIMATORS`); arguments as those of `fit`.

    constants : a gauge other than the one the nodes of the space give. Raises as `fit` does.
    """
    return assemble_until(problem, data, space, estimator, delta, outside, executor, constants, all_of_them)


def all_of_them(done: int, count: int) -> bool:
    """Whether so many first chunks of the data are enough: all are needed."""
    return False


def check_domain(problem: ControlProblem) -> None:
    """DomainError where the process is stopped, or a mesh ends and it does not."""
    domain = problem.domain
    if domain is not None and (domain.absorbing or domain.has("natural")):
        where, call = (domain.place, "solve_on_mesh") if isinstance(domain, MeshDomain) else (domain, "solve")
        raise DomainError(
            f"fit is for processes on R^d or reflected at all faces of a box or mesh, but the domain of"
            f" {problem.name!r} is {where}; solve such a problem with `{call}`"
        )


def assemble_until(
    problem: ControlProblem,
    data: Data,
    space: Space,
    estimator: str | Estimator,
    delta: float,
    outside: str,
    executor: Executor | None,
    constants: Gauge | None,
    enough: Enough,
) -> System:
    """`assemble` with the first chunks of trajectories that are enough; of a law all are needed.

    enough : (done, count) -> whether so many first chunks of so many are; what it raises stops the work.
    """
    row = find_estimator(estimator)
    one_of(outside, "outside", ("error", "drop"), MeasureError)
    check_space(problem, space, "fit")
    require_room((space.n_cells, space.local_size**2), "the system:", MeasureError, "; take fewer cells")
    row.check(space, non_negative_number(delta, "delta", MeasureError))
    if row.gradient_penalty is None:
        raise MeasureError(
            f"the gradient penalty of {row.name!r} is not chosen yet: `fit` does that, or choose_penalty(problem, data,"
            " space); or give one, estimator=fem_hjb.learning.doob(0.01)"
        )
    if executor is not None:
        require(executor, Executor, "executor=", MeasureError)
    check_domain(problem)
    if constants is None:
        constants = constant_gauge(problem, space.spatial.nodes, space.time.nodes)
    setting = Setting(problem=problem, space=space, gauge=constants, delta=delta)
    total = _total(setting, row, outside, data, executor, enough)
    paths, share = total.paths, 1.0
    if isinstance(data, Paths | PathSource):  # whose weights are 1/n each, however many of them were enough
        paths = int(total.samples[1])
        share = paths / data.n
    scatter = Scatter(space)
    form, mass, energy = total.grams["interior"].matrices(scatter)
    terminal_form, terminal_mass, terminal_energy = total.grams["terminal"].matrices(scatter)
    (initial,) = total.grams["initial"].matrices(scatter)
    mass = mass + terminal_mass
    return System(
        problem=problem,
        space=space,
        gauge=constants,
        estimator=row,
        delta=delta,
        kind=total.kind,
        form=(form + terminal_form + total.pairs).tocsr() / share,
        mass=mass.tocsr() / share,
        energy=(mass + energy + terminal_energy + initial).tocsr() / share,
        load=(total.grams["interior"].load() + total.grams["terminal"].load()) / share,
        paths=paths,
        samples=int(total.samples[0]),
        dropped=int(total.dropped.sum()),
        visits=total.visits,
        probe_t=total.probes[0],
        probe_x=total.probes[1],
        probe_weights=total.probes[2],
    )


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ChunkSums:
    """What one pass over a part of a measure gives; they add up. Without the problem, so that workers can send them.

    samples, dropped (3,) : how many there were, and how many of them outside: inside [0, T), at 0 and at T.
    visits (n_cells,) : how many of those inside [0, T) are in each cell.
    grams : "interior", "terminal" and "initial"; a part may have no ends.  pairs (N, N) : tests here, trials ahead.
    """

    kind: str
    paths: int
    samples: IntArray
    dropped: IntArray
    visits: IntArray
    grams: Mapping[str, GramSums]
    pairs: sp.csr_matrix
    probes: tuple[FloatArray, FloatArray, FloatArray]

    def __add__(self, other: ChunkSums) -> ChunkSums:
        one, two = self.grams, other.grams
        return replace(
            self,
            samples=self.samples + other.samples,
            dropped=self.dropped + other.dropped,
            visits=self.visits + other.visits,
            grams={**one, **two, **{name: one[name] + two[name] for name in one.keys() & two.keys()}},
            pairs=self.pairs + other.pairs,
        )


def _total(
    setting: Setting, row: Estimator, outside: str, data: Data, executor: Executor | None, enough: Enough
) -> ChunkSums:
    """The sums over all parts of the data, or the first ones that are enough."""
    count, piece = _pieces(setting.problem, data)
    task = partial(_chunk_sums, setting, row, outside, piece)
    try:
        total = tree_sum(task, count, ChunkSums.__add__, executor=executor, enough=lambda done: enough(done, count))
    except MeasureError as error:  # the chunks of data in memory are ours: nobody else knows them by their numbers
        if isinstance(error.__cause__, FemHjbError) and not isinstance(data, PathSource):
            raise error.__cause__ from None
        raise
    if isinstance(data, Measure):  # whose first part may be its first times only
        total = replace(total, probes=_probes(data))
    if (total.dropped == total.samples).any():
        lost, where = total.samples[total.dropped == total.samples].max(), _where(setting.space)
        raise MeasureError(f"all {lost} samples lie outside {where}: this box or mesh does not fit them")
    return total


def _pieces(problem: ControlProblem, data: Data) -> tuple[int, Callable[[int], Measure]]:
    """How many measures add up to the data, and the i-th of them."""
    if isinstance(data, Measure):
        if data.dim != problem.dim:
            raise MeasureError(f"the measure is of dimension {data.dim}, the problem has dim={problem.dim}")
        pieces = _cut(data)
        return len(pieces), pieces.__getitem__
    source = array_source(data, chunk=max(1, _SAMPLES // data.steps)) if isinstance(data, Paths) else data
    if not isinstance(source, PathSource):
        raise MeasureError(
            f"expected Paths, as sample_paths returns them, a PathSource or a Measure, got {type(data).__name__}"
        )
    source.check(problem)
    return source.chunk_count, partial(_measure_of_chunk, problem, source)


def _measure_of_chunk(problem: ControlProblem, source: PathSource, i: int) -> Measure:
    return empirical_measure(problem, source.chunk(i), n=source.n)


def _cut(measure: Measure) -> list[Measure]:
    """A measure as a sum of smaller ones: of whole paths; or of points of a law, with the slices at 0 and T in each."""
    m, paths = measure.t.size, len(measure.terminal_x)
    whole = measure.kind == "empirical"
    if m <= _SAMPLES or (whole and not _is_path_by_path(measure)):
        return [measure]
    steps = m // paths if whole else 1
    pieces = []
    size = max(1, _SAMPLES // steps)
    for first in range(0, m // steps, size):
        rows = slice(first * steps, (first + size) * steps)
        parts: dict[str, Any] = {}
        for name in ("t", "x", "weights", "next_t", "next_x", "score"):
            given = getattr(measure, name)
            parts[name] = None if given is None else given[rows]
        for name in ("initial", "terminal"):
            ends = slice(first, first + size) if whole else slice(None)
            parts[f"{name}_x"] = getattr(measure, f"{name}_x")[ends]
            parts[f"{name}_weights"] = getattr(measure, f"{name}_weights")[ends]
        pieces.append(replace(measure, **parts))
    return pieces


def _is_path_by_path(measure: Measure) -> bool:
    """Whether the points are those of as many paths as end and begin, one after the other, all at the same times."""
    m, paths = measure.t.size, len(measure.terminal_x)
    if m % paths or len(measure.initial_x) != paths:
        return False
    times = measure.t.reshape(paths, -1)
    return bool((times == times[0]).all() and (np.diff(times[0]) > 0).all())


def _chunk_sums(setting: Setting, row: Estimator, outside: str, piece: Callable[[int], Measure], i: int) -> ChunkSums:
    """One pass over a piece of the data. All pieces of a law have the same ends, which are counted once."""
    measure = piece(i)
    ends = measure.kind == "empirical" or i == 0
    terms = row.terms(setting, measure)
    if not isinstance(terms, Terms):
        raise MeasureError(f"the terms of estimator {row.name!r} must be Terms, got {type(terms).__name__}")
    interior, pairs, visits = _interior(setting, terms, measure, outside)
    grams, dropped = {"interior": interior}, measure.t.size - int(visits.sum())
    dropped_at_0 = dropped_at_T = 0
    if ends:
        grams["terminal"], dropped_at_T = _terminal(setting, row.weighted, measure, outside)
        grams["initial"], dropped_at_0 = _initial(setting, measure, outside)
    return ChunkSums(
        kind=measure.kind,
        paths=measure.paths,
        samples=np.array([measure.t.size, ends * len(measure.initial_x), ends * len(measure.terminal_x)]),
        dropped=np.array([dropped, dropped_at_0, dropped_at_T]),
        visits=visits,
        grams=grams,
        pairs=pairs,
        probes=_probes(measure),
    )


def _probes(measure: Measure) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Some of the points, their states and weights."""
    rows = slice(None, None, -(-measure.t.size // _PROBES))
    return measure.t[rows].copy(), measure.x[rows].copy(), measure.weights[rows].copy()


def _interior(
    setting: Setting, terms: Terms, measure: Measure, outside: str
) -> tuple[GramSums, sp.csr_matrix, IntArray]:
    """int E[...] dt: the form, the mass and the energy; the part of the form with successors; and visits of cells."""
    space = setting.space
    here, then = _located(space, measure, bool(terms.ahead))
    missing = here.cells < 0 if then is None else (here.cells < 0) | (then.cells < 0)
    energy: list[Pairing] = [(op, op) for op in forms.slopes(setting.factor(measure.t, measure.x))]
    weight: float | FloatArray = setting.delta
    if not setting.delta and measure.next_t is not None:
        steps = measure.next_t - measure.t
        even = measure.kind == "empirical" and np.ptp(steps) <= 1e-12 * steps[0]  # of a law, a part may look even
        weight = float(steps[0]) if even else steps
    if np.ndim(weight) or weight:
        energy.append((RATE_OF_CHANGE, Operator(time=weight)))
    integrands = Integrands.of([terms.here, [(VALUE, VALUE)], energy], terms.load)
    ahead, weights = Integrands.of([terms.ahead]), measure.weights
    inside = _inside(setting, measure.t, measure.x, missing, outside)
    if inside.size < missing.size:
        here, weights, integrands, ahead = (
            here.take(inside),
            weights[inside],
            integrands.take(inside),
            ahead.take(inside),
        )
        then = None if then is None else then.take(inside)
    pairs = sp.csr_matrix((space.n_dofs,) * 2) if then is None else pair_sums(space, here, then, weights, ahead)
    return gram_sums(space, here, weights, integrands), pairs, np.bincount(here.cells, minlength=space.n_cells)


def _located(space: Space, measure: Measure, ahead: bool) -> tuple[Located, Located | None]:
    """The points and, if asked for, their successors, which along whole paths are the next points."""
    t, x, next_t, next_x = measure.t, measure.x, measure.next_t, measure.next_x
    if not ahead or next_t is None or next_x is None:
        return Located.of(space, t, x), None
    n = len(measure.terminal_x)
    if t.size % n == 0:
        grid = (n, t.size // n)
        pairs = [(a.reshape(*grid, -1), b.reshape(*grid, -1)) for a, b in ((t, next_t), (x, next_x))]
        if all(np.array_equal(here[:, 1:], there[:, :-1]) for here, there in pairs):
            times, states = (np.concatenate([here, there[:, -1:]], axis=1) for here, there in pairs)
            everywhere = Located.of(space, times.ravel(), states.reshape(-1, space.dim))
            number = np.arange(times.size).reshape(n, -1)
            return everywhere.take(number[:, :-1].ravel()), everywhere.take(number[:, 1:].ravel())
    return Located.of(space, t, x), Located.of(space, next_t, next_x)


def _inside(
    setting: Setting, t: FloatArray | float, x: FloatArray, missing: NDArray[np.bool_], outside: str
) -> IntArray:
    """Indices of the points that are inside; those that are not are refused, or dropped and counted."""
    count = int(missing.sum())
    if count and outside == "error":
        first = int(np.argmax(missing))
        raise MeasureError(
            f"{count} of {missing.size} samples lie outside {_where(setting.space)}, the first (or its successor) at "
            f"t={np.broadcast_to(t, missing.shape)[first]:.4g}, x={x[first].tolist()}; build the Space with a larger "
            "box=, or pass outside='drop' to leave them out"
        )
    return np.flatnonzero(~missing)


def _where(space: Space) -> str:
    lower, upper = space.spatial.box.bounds
    return f"the space's domain of bounding box {lower.tolist()} to {upper.tolist()}"


def _slice(
    setting: Setting, t: float, x: FloatArray, weights: FloatArray, outside: str
) -> tuple[Located, FloatArray, FloatArray, int]:
    """Located points of X_t that are inside, their states and weights, and how many were dropped."""
    at = Located.of(setting.space, np.full(len(x), t), x)
    inside = _inside(setting, t, x, at.cells < 0, outside)
    return at.take(inside), x[inside], weights[inside], len(x) - inside.size


def _initial(setting: Setting, measure: Measure, outside: str) -> tuple[GramSums, int]:
    """E[f_0 g_0] and, with delta, delta/2 E[grad f_0' Lambda grad g_0]: the energy."""
    at, x, weights, dropped = _slice(setting, 0.0, measure.initial_x, measure.initial_weights, outside)
    integrands = Integrands.of([[(VALUE, VALUE), *_weighted_slopes(setting, 0.0, x)]])
    return gram_sums(setting.space, at, weights, integrands), dropped


def _terminal(setting: Setting, weighted: bool, measure: Measure, outside: str) -> tuple[GramSums, int]:
    """At T: E[f g] and the load E[f_T* g], f_T* = exp((y - c_y)/alpha), of form, mass and energy.

    With delta the form has delta E[1/2 grad(f - f_T*)' Lambda grad g - rho (f - f_T*) g] too, which makes it coercive:
    it turns the end at T of -delta int E[G f d_t f] from negative to positive.
    """
    problem, delta = setting.problem, setting.delta
    horizon = problem.horizon
    at, x, weights, dropped = _slice(setting, horizon, measure.terminal_x, measure.terminal_weights, outside)
    target = setting.gauge.terminal_u(problem, x)
    form: list[Pairing] = [(VALUE, VALUE)]
    loads: list[Load] = [(VALUE, target)]
    energy = _weighted_slopes(setting, horizon, x)
    if delta and weighted:
        form += energy
        times = np.full(len(x), horizon)
        rate = setting.rate(times, x)
        form.append((VALUE, Operator(value=-delta * rate)))
        loads.append((VALUE, np.asarray(-delta * rate * target)))
        pull = np.einsum("...ij,...j->...i", setting.diffusion(times, x), _terminal_slope(setting, x))
        loads.append((Operator(gradient=0.5 * delta * pull), np.ones(len(x))))
    integrands = Integrands.of([form, [(VALUE, VALUE)], energy], loads)
    return gram_sums(setting.space, at, weights, integrands), dropped


def _weighted_slopes(setting: Setting, t: float, x: FloatArray) -> list[Pairing]:
    """delta/2 grad f' Lambda grad g."""
    if not setting.delta:
        return []
    factor = np.sqrt(0.5 * setting.delta) * setting.factor(np.full(len(x), t), x)
    return [(op, op) for op in forms.slopes(factor)]


def _terminal_slope(setting: Setting, x: FloatArray) -> FloatArray:
    """grad f_T* (m, d), by central differences, which end at the faces of the process's own domain.

    In a domain that is a mesh they are one-sided where one side is outside; in a corner where both are, they reach out.
    """
    domain = setting.problem.domain
    columns = []
    for j, shift in enumerate(setting.spacing * np.eye(x.shape[1])):
        ahead, behind = x + shift, x - shift
        if isinstance(domain, Box):
            ahead, behind = np.minimum(ahead, domain.bounds[1]), np.maximum(behind, domain.bounds[0])
        elif domain is not None:
            over, under = ~domain.contains(ahead), ~domain.contains(behind)
            ahead[over & ~under], behind[under & ~over] = x[over & ~under], x[under & ~over]
        change = setting.gauge.terminal_u(setting.problem, ahead) - setting.gauge.terminal_u(setting.problem, behind)
        columns.append(change / (ahead - behind)[:, j])
    return np.stack(columns, axis=1)
