"""Measures on space-time, population or empirical, and Gram matrices of local functions under them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from fem_hjb import fokker_planck
from fem_hjb._checks import FloatArray, IntArray, MeasureError, frozen_array, one_of, real_array
from fem_hjb.density import DensityLaw
from fem_hjb.laws import Law, PointMass
from fem_hjb.problem import ControlProblem
from fem_hjb.sde import Paths
from fem_hjb.spaces import Space

_BLOCK = 32  # samples per dense product
_CHUNK_DOUBLES = 1 << 21  # 16 MB of rows at once
_FLUSH_DOUBLES = 1 << 23  # local matrices held before they are summed into the sparse matrix
_MASS_TOLERANCE = 0.05
_DENSITY_TOLERANCE = 1e-6  # where a density has to be computed


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Measure:
    """A law of the process, as weighted points: int_0^T E[g_t(X_t)] dt is sum_i weights[i] g(t[i], x[i]).

    kind : "law" (quadrature under a known density) or "empirical" (trajectories).
    t (m,), x (m, d), weights (m,) : space-time points; the weights sum to about the horizon.
    initial_x (n, d), initial_weights (n,) : the law of X_0;  terminal_x, terminal_weights : that of X_T.
    next_t (m,) : the end of the time step each point stands for in left-point sums; None for exact quadrature.
    next_x (m, d) : each point's successor on its trajectory (empirical), or None.
    score (m, d) : grad log p_t at the points (law), or None.
    paths : the number of trajectories, 0 for a law.
    """

    kind: str
    t: FloatArray
    x: FloatArray
    weights: FloatArray
    initial_x: FloatArray
    initial_weights: FloatArray
    terminal_x: FloatArray
    terminal_weights: FloatArray
    next_t: FloatArray | None = None
    next_x: FloatArray | None = None
    score: FloatArray | None = None
    paths: int = 0

    def __post_init__(self) -> None:
        one_of(self.kind, "Measure: kind", ("law", "empirical"), MeasureError)
        put = object.__setattr__
        shape = np.shape(self.x)
        if len(shape) != 2:
            raise MeasureError(f"Measure: x must hold points in rows, shape (m, d), got shape {shape}")
        d = shape[1]
        for prefix in ("", "initial_", "terminal_"):
            name = f"{prefix}x"
            points = frozen_array(getattr(self, name), f"Measure: {name}", (len(getattr(self, name)), d), MeasureError)
            put(self, name, points)
            weights = frozen_array(
                getattr(self, f"{prefix}weights"), f"Measure: {prefix}weights", points.shape[:1], MeasureError
            )
            if not (weights >= 0).all() or not weights.sum() > 0:
                raise MeasureError(
                    f"Measure: {prefix}weights must be non-negative and not all zero, got {int((weights < 0).sum())} "
                    f"negative among {weights.size} with sum {weights.sum():g}"
                )
            put(self, f"{prefix}weights", weights)
        put(self, "t", frozen_array(self.t, "Measure: t", shape[:1], MeasureError))
        for name, expected in (("next_t", shape[:1]), ("next_x", shape), ("score", shape)):
            given = getattr(self, name)
            if given is not None:
                put(self, name, frozen_array(given, f"Measure: {name}", expected, MeasureError))
        if self.next_t is not None and not (self.next_t > self.t).all():
            raise MeasureError("Measure: next_t must be later than t at every point")
        if self.next_x is not None and self.next_t is None:
            raise MeasureError("Measure: next_x without next_t; give the times of the successors too")

    @property
    def dim(self) -> int:
        """d."""
        return int(self.x.shape[1])


def empirical_measure(problem: ControlProblem, paths: Paths) -> Measure:
    """The measure of n trajectories by left-point sums: points (t_k, X_k), k < K, with weights (t_{k+1} - t_k)/n.

    Raises MeasureError if the paths are of another dimension or do not end at the problem's horizon.
    """
    if not isinstance(paths, Paths):
        raise MeasureError(f"expected Paths, as sample_paths returns them, got {type(paths).__name__}")
    if paths.dim != problem.dim:
        raise MeasureError(f"the paths are of dimension {paths.dim}, the problem has dim={problem.dim}")
    if abs(paths.t[-1] - problem.horizon) > 1e-9 * problem.horizon:
        raise MeasureError(f"the paths end at t={paths.t[-1]:g}, but the problem's horizon is {problem.horizon:g}")
    n, d = paths.n, paths.dim
    times = np.append(paths.t[:-1], problem.horizon)
    uniform = np.full(n, 1.0 / n)
    return Measure(
        kind="empirical",
        t=np.tile(times[:-1], n),
        x=paths.x[:, :-1].reshape(-1, d),
        weights=np.tile(np.diff(times) / n, n),
        initial_x=paths.x[:, 0],
        initial_weights=uniform,
        terminal_x=paths.x[:, -1],
        terminal_weights=uniform,
        next_t=np.tile(times[1:], n),
        next_x=paths.x[:, 1:].reshape(-1, d),
        paths=n,
    )


def law_measure(
    problem: ControlProblem, space: Space, *, degree: int | None = None, times: ArrayLike | None = None
) -> Measure:
    """The law of the process itself: a quadrature rule on the cells of `space`, weighted by the density p_t.

    degree : of polynomials integrated exactly on a cell; default 2 p + 6 for elements of degree p, which leaves room
        for the density.
    times : None for Gauss points in every time cell; or the times (K+1,) of observed paths, from 0 to the horizon, for
        the left-point sums that `empirical_measure` uses, so that the two measures differ by the law alone.

    What the law holds outside the space's domain is left out, not renormalised; nor is what absorbing faces took.

    A problem that knows no law of its own (`problem.marginal` is None) gets the one that `fokker_planck.solve`
    computes, with a tolerance of 1e-6 and on a box of its own. To compute it once for several measures, or otherwise,
    put it into the problem: dataclasses.replace(problem, marginal=fokker_planck.solve(problem).marginal).

    Raises MeasureError if at some time the rule sees the law's mass wrongly by more than 5 per cent: the domain is too
    small, or the law too narrow for the cells.
    """
    if space.dim != problem.dim:
        raise MeasureError(f"the space is of dimension {space.dim}, the problem has dim={problem.dim}")
    if abs(space.horizon - problem.horizon) > 1e-12 * problem.horizon:
        raise MeasureError(f"the space ends at t={space.horizon:g}, but the problem's horizon is {problem.horizon:g}")
    marginal = problem.marginal
    if marginal is None:
        marginal = fokker_planck.solve(problem, rtol=_DENSITY_TOLERANCE).marginal
    rule = space.spatial.quadrature(2 * space.spatial.degree + 6 if degree is None else degree)
    points = rule.x.reshape(-1, space.dim)
    volumes = np.broadcast_to(rule.weights * rule.det, rule.x.shape[:2]).ravel()
    if times is None:
        t, dt = (part.ravel() for part in space.time.quadrature(2 * space.time.degree + 4))
    else:
        t, dt = _left_points(times, problem.horizon)
    slices = [_under(marginal(float(s)), points, volumes, float(s)) for s in t]
    sizes = [len(x) for x, _, _ in slices]
    first = _under(marginal(0.0), points, volumes, 0.0)
    last = _under(marginal(problem.horizon), points, volumes, problem.horizon)
    return Measure(
        kind="law",
        t=np.repeat(t, sizes),
        x=np.concatenate([x for x, _, _ in slices]),
        weights=np.concatenate([h * w for h, (_, w, _) in zip(dt, slices, strict=True)]),
        initial_x=first[0],
        initial_weights=first[1],
        terminal_x=last[0],
        terminal_weights=last[1],
        next_t=None if times is None else np.repeat(t + dt, sizes),
        score=None if any(s is None for _, _, s in slices) else np.concatenate([s for _, _, s in slices]),
    )


def _left_points(times: ArrayLike, horizon: float) -> tuple[FloatArray, FloatArray]:
    t = real_array(times, "times", MeasureError)
    if t.ndim != 1 or t.size < 2 or not (np.diff(t) > 0).all() or abs(t[0]) + abs(t[-1] - horizon) > 1e-9 * horizon:
        raise MeasureError(
            f"times must increase strictly from 0 to the horizon {horizon:g}, as Paths.t does, got shape {t.shape}"
            + (f" from {t[0]:g} to {t[-1]:g}" if t.ndim == 1 and t.size else "")
        )
    return t[:-1], np.diff(t)


def _under(law: Law, x: FloatArray, volumes: FloatArray, t: float) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Points, weights and score of a law under a quadrature rule."""
    if isinstance(law, PointMass):
        return *law.quadrature(1), None
    weights = volumes * np.exp(law.logpdf(x))
    mass = law.mass if isinstance(law, DensityLaw) else 1.0
    seen = float(weights.sum())
    if abs(seen - mass) > _MASS_TOLERANCE * mass:
        raise MeasureError(
            f"the quadrature rule sees a mass of {seen:.3g} instead of {mass:.3g} for the law of X_t at t={t:.4g}: "
            "enlarge the space's box if the law reaches beyond it; take more cells or a larger degree= if the law is "
            "narrower than a cell"
        )
    return x, weights, law.score(x)


def runs(keys: IntArray) -> tuple[IntArray, IntArray]:
    """Where equal neighbours start in a sorted array, and how long the runs are."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return starts, np.diff(starts, append=keys.size)


def run_products(counts: IntArray, left: FloatArray, right: FloatArray) -> FloatArray:
    """sum_i left[i]' right[i] over each of consecutive runs of rows, shape (runs, L, R).

    counts (runs,) are the lengths of the runs, all positive; left (m, L), right (m, R) with m = sum of counts.
    Runs are padded with zeros to whole blocks, so that all the work is one batch of equal dense products.
    """
    block = int(np.clip(2 ** np.round(np.log2(counts.mean())), 1, _BLOCK))
    blocks = -(-counts // block)
    first = np.cumsum(blocks) - blocks
    total = int(blocks.sum())
    row = np.arange(len(left)) + np.repeat(first * block - (np.cumsum(counts) - counts), counts)
    padded_left = np.zeros((total * block, left.shape[1]))
    padded_right = np.zeros((total * block, right.shape[1]))
    padded_left[row], padded_right[row] = left, right
    products = np.matmul(
        padded_left.reshape(total, block, -1).transpose(0, 2, 1), padded_right.reshape(total, block, -1)
    )
    return np.asarray(np.add.reduceat(products, first, axis=0))


def sorted_order(keys: IntArray, bound: int) -> IntArray:
    """The stable order that sorts keys in [0, bound)."""
    return np.argsort(keys.astype(np.uint16) if bound <= 1 << 16 else keys, kind="stable").astype(np.int64)


def chunks(order: IntArray, width: int) -> Iterator[IntArray]:
    """Consecutive pieces of `order`, of a bounded number of rows of `width` doubles."""
    size = max(_BLOCK, _CHUNK_DOUBLES // width)
    for start in range(0, order.size, size):
        yield order[start : start + size]


def gram(cells: IntArray, left: FloatArray, right: FloatArray, weights: FloatArray, n_cells: int) -> FloatArray:
    """The local Gram matrices G[c] = sum over samples i in cell c of weights[i] left[i] right[i]', (n_cells, L, R).

    cells (m,) in [0, n_cells), left (m, L), right (m, R), weights (m,). Samples are sorted by cell and streamed: beside
    the result, memory is bounded whatever m.

    Raises MeasureError on shapes that do not match and on cells out of range (drop samples outside the mesh first).

    >>> gram(np.array([1, 1]), np.eye(2), np.eye(2), np.array([2.0, 3.0]), 2)[1].tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """
    m = cells.size
    if left.shape[:-1] != (m,) or right.shape[:-1] != (m,) or weights.shape != (m,):
        raise MeasureError(
            f"gram needs left (m, L), right (m, R) and weights (m,) for the m = {m} cells, "
            f"got shapes {left.shape}, {right.shape} and {weights.shape}"
        )
    if m and not (cells.min() >= 0 and cells.max() < n_cells):
        raise MeasureError(f"cells must lie in [0, {n_cells}), got values in [{cells.min()}, {cells.max()}]")
    result = np.zeros((n_cells, left.shape[1], right.shape[1]))
    for rows in chunks(sorted_order(cells, n_cells), 2 * (left.shape[1] + right.shape[1])):
        keys = cells[rows]
        starts, counts = runs(keys)
        result[keys[starts]] += run_products(counts, left[rows] * weights[rows, None], right[rows])
    return result


@final
class SparseSum:
    """A sparse matrix as the sum of scattered local matrices, in bounded memory."""

    def __init__(self, size: int) -> None:
        self._shape = (size, size)
        self._pending: list[tuple[IntArray, IntArray, FloatArray]] = []
        self._held = 0
        self._sum = sp.csr_matrix(self._shape)

    def add(self, rows: IntArray, columns: IntArray, local: FloatArray) -> None:
        """Add local (n, L, R) at rows (n, L) and columns (n, R)."""
        self._pending.append((rows, columns, local))
        self._held += local.size
        if self._held > _FLUSH_DOUBLES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            i = np.concatenate([np.repeat(r, k.shape[2], axis=1).ravel() for r, _, k in self._pending])
            j = np.concatenate([np.tile(c, (1, k.shape[1])).ravel() for _, c, k in self._pending])
            data = np.concatenate([k.ravel() for _, _, k in self._pending])
            self._sum = self._sum + sp.coo_matrix((data, (i, j)), shape=self._shape).tocsr()
            self._pending, self._held = [], 0

    def matrix(self) -> sp.csr_matrix:
        """The sum so far."""
        self._flush()
        return self._sum
