r"""The variational equation for f under a measure: learned from trajectories, or the population's Galerkin solution.

In a class F of space-time functions find f in F with B[f, g] = l(g) for all g in F, where B and l are integrals against
a measure (`forms` gives them, `measures` the measures). Under trajectories this is the least-squares-like learning
of f (arXiv 2509.02528); under the law itself it is a Galerkin method. Both are assembled by the code below.
"""

import time
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import eigvalsh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, SuperLU, eigsh, onenormest, splu

from fem_hjb import forms
from fem_hjb._checks import ConvergenceError, DomainError, FloatArray, IntArray, MeasureError, SpaceError, one_of
from fem_hjb.cole_hopf import Gauge, gauge
from fem_hjb.line_basis import unit_gauss
from fem_hjb.measures import Measure, SparseSum, chunks, empirical_measure, run_products, runs, sorted_order
from fem_hjb.problem import ControlProblem
from fem_hjb.sde import Paths, noise_factor
from fem_hjb.solution import Solution
from fem_hjb.spaces import Space

ESTIMATORS = ("generator", "corrected")

_EXACT = 1e-14  # what stands for 1/n where there are no paths but a law
_SHIFT = 1e-13  # of the unit diagonal, so that a factorisation of a nearly singular Gram matrix runs through
_ILL_CONDITIONED = 1e12
_UNSTABLE = 1e-3
_NOT_COERCIVE = -1.0
_RESIDUAL = 1e-6
_DENSE = 600  # unknowns up to which eigenvalues are computed by dense algebra
_POWER_STEPS = 60
_SLOPE = 0.3
_SMOOTHING = {  # by smoothness of the class: first derivatives need more weight than second ones, noise more than none
    ("generator", 1): 0.05,
    ("corrected", 1): 0.3,
    ("corrected", 0): 3.0,
}
_DEPENDENT = 1e-8  # squared sine, under the samples, of the angle between a function and those eliminated before it
_WALL = 5.0  # standard deviations of a step from a reflecting face within which increments are not corrected
_DIFFERENCE = 6e-6  # cube root of the machine precision, relative to the size of the domain


@final
@dataclass(frozen=True, eq=False)
class _Located:
    """Points in a space: cell (-1 outside), and reference coordinates in time and space."""

    t: FloatArray
    x: FloatArray
    weights: FloatArray
    cells: IntArray
    tau: FloatArray
    xi: FloatArray

    def take(self, rows: IntArray) -> "_Located":
        return _Located(*(getattr(self, name)[rows] for name in ("t", "x", "weights", "cells", "tau", "xi")))

    def tables(self, space: Space, order: int) -> tuple[FloatArray, tuple[FloatArray, ...]]:
        """Time functions with derivatives (m, 2, lt), and space functions with derivatives up to `order`."""
        in_time, in_space = np.divmod(self.cells, space.spatial.n_cells)
        return space.time.tabulate(in_time, self.tau, 1), space.spatial.tabulate(in_space, self.xi, order)


def _locate(space: Space, t: FloatArray, x: FloatArray, weights: FloatArray) -> _Located:
    cells, (tau, xi) = space.locate(t, x)
    return _Located(t, x, weights, cells, tau, xi)


@final
class _System:
    """B c = load on a space under a measure, with the Gram matrices by which it is judged.

    mass: int E[f g] dt + E[f_T g_T], what the measure sees of a function at all.
    energy: mass + E[f_0 g_0] + int E[grad f' Lambda grad g + h d_t f d_t g] dt, with h the time step of the left-point
    sums. They perturb int f d_t f by terms that no norm without the last one controls.
    """

    def __init__(self, problem: ControlProblem, space: Space, gauge: Gauge, outside: str) -> None:
        self.problem, self.space, self.gauge, self.outside = problem, space, gauge, outside
        self._form, self._mass, self._energy = (SparseSum(space.n_dofs) for _ in range(3))
        self.load = np.zeros(space.n_dofs)
        self.dropped = 0

    @property
    def form(self) -> sp.csr_matrix:
        return self._form.matrix()

    @property
    def mass(self) -> sp.csr_matrix:
        return self._mass.matrix()

    @property
    def energy(self) -> sp.csr_matrix:
        return self._mass.matrix() + self._energy.matrix()

    def add(self, measure: Measure, estimator: str) -> None:
        """Stream a measure through the forms of an estimator."""
        self._slice(0.0, measure.initial_x, measure.initial_weights)
        self._slice(self.space.horizon, measure.terminal_x, measure.terminal_weights)
        if estimator == "generator":
            self._interior(measure, "residual")
        else:
            self._interior(measure, "weak" if measure.kind == "law" else "increment")

    def _keep(self, points: _Located, outside: NDArray[np.bool_]) -> IntArray:
        """Indices of the points that are inside; those that are not are refused, or dropped and counted."""
        count = int(outside.sum())
        lower, upper = self.space.spatial.box.bounds
        where = f"the space's domain of bounding box {lower.tolist()} to {upper.tolist()}"
        if count == outside.size:
            raise MeasureError(f"all {count} samples lie outside {where}: this box or mesh does not fit them")
        if count and self.outside == "error":
            first = int(np.argmax(outside))
            raise MeasureError(
                f"{count} of {outside.size} samples lie outside {where}, the first (or its successor) at "
                f"t={points.t[first]:.4g}, x={points.x[first].tolist()}; build the Space with a larger box=, or pass "
                "outside='drop' to leave them out"
            )
        self.dropped += count
        return np.flatnonzero(~outside)

    def _slice(self, t: float, x: FloatArray, weights: FloatArray) -> None:
        """E[f_t g_t] at t = 0 (energy only) or t = T (form and mass), with the load at T."""
        space = self.space
        points = _locate(space, np.full(len(x), t), x, weights)
        index = self._keep(points, points.cells < 0)
        for rows in chunks(sorted_order(points.cells[index], space.n_cells), 4 * space.local_size):
            here = points.take(index[rows])
            starts, counts = runs(here.cells)
            dofs = space.cell_dofs(here.cells[starts])
            in_time, in_space = here.tables(space, 0)
            values = forms.product_rows(in_time[:, 0], in_space[0])
            products = run_products(counts, values * here.weights[:, None], values)
            if t == 0.0:
                self._energy.add(dofs, dofs, products)
                continue
            self._form.add(dofs, dofs, products)
            self._mass.add(dofs, dofs, products)
            target = here.weights * self.gauge.terminal_f(self.problem, here.x)
            moments = np.add.reduceat(values * target[:, None], starts)
            self.load += np.bincount(dofs.ravel(), moments.ravel(), minlength=space.n_dofs)

    def _interior(self, measure: Measure, form: str) -> None:
        """int E[...] dt, the interior term of a form: "residual", "weak" or "increment"."""
        space, d, size = self.space, self.space.dim, self.space.local_size
        points = _locate(space, measure.t, measure.x, measure.weights)
        after = _locate(space, *_successors(measure), measure.weights) if form == "increment" else points
        index = self._keep(points, (points.cells < 0) | (after.cells < 0))
        keys, bound = points.cells[index], space.n_cells
        if form == "increment":  # a run holds the samples with one cell and one successor's cell
            keys, bound = keys * space.n_cells + after.cells[index], space.n_cells**2
        steps = np.zeros(points.t.size) if measure.next_t is None else measure.next_t - measure.t
        width = (8 + d) * size + space.spatial.local_size * (1 + d + d * d)
        for rows in chunks(sorted_order(keys, bound), width):
            here, then = points.take(index[rows]), after.take(index[rows])
            starts, counts = runs(keys[rows])
            dofs = space.cell_dofs(here.cells[starts])
            in_time, in_space = here.tables(space, 2 if form == "residual" else 1)
            weights = here.weights[:, None]
            values = forms.product_rows(in_time[:, 0], in_space[0])
            slopes = forms.gradient_rows(in_time, in_space[1], noise_factor(self.problem, here.t, here.x))
            stiffness = _sum_of_squares(counts, slopes, here.weights)
            rates = forms.product_rows(in_time[:, 1], in_space[0])
            self._energy.add(dofs, dofs, stiffness)
            self._energy.add(dofs, dofs, _sum_of_squares(counts, rates[None], here.weights * steps[index[rows]]))
            if form == "residual":
                trial = self._residual(here, in_time, in_space)
            elif form == "weak":
                trial = self._weak(here, in_time, in_space, _scores(measure)[index[rows]])
                self._form.add(dofs, dofs, 0.5 * stiffness)
            else:
                trial, successor = self._increment(here, then, in_time, in_space)
                self._form.add(
                    dofs,
                    space.cell_dofs(then.cells[starts]),
                    run_products(counts, values * weights, successor),
                )
            products = run_products(counts, values * weights, np.concatenate([trial, values], axis=1))
            self._form.add(dofs, dofs, products[:, :, :size])
            self._mass.add(dofs, dofs, products[:, :, size:])

    def _rate(self, at: _Located) -> FloatArray:
        return self.gauge.running_rate(self.problem, at.t, at.x)

    def _residual(self, here: _Located, in_time: FloatArray, in_space: tuple[FloatArray, ...]) -> FloatArray:
        b, Lambda = self.problem.b(here.t, here.x), self.problem.Lambda(here.t, here.x)
        return forms.residual_rows(in_time, (in_space[0], in_space[1], in_space[2]), b, Lambda, self._rate(here))

    def _weak(
        self, here: _Located, in_time: FloatArray, in_space: tuple[FloatArray, ...], score: FloatArray
    ) -> FloatArray:
        problem = self.problem
        b, Lambda = problem.b(here.t, here.x), problem.Lambda(here.t, here.x)
        divergence: FloatArray | float = 0.0
        if problem.constant_diffusion is None:
            lower, upper = self.space.spatial.box.bounds
            step = _DIFFERENCE * float((upper - lower).max())
            divergence = forms.row_divergence(lambda x: problem.Lambda(here.t, x), here.x, step)
        current = forms.current_velocity(b, Lambda, divergence, score)
        return forms.weak_rows(in_time, (in_space[0], in_space[1]), current, self._rate(here))

    def _increment(
        self, here: _Located, then: _Located, in_time: FloatArray, in_space: tuple[FloatArray, ...]
    ) -> tuple[FloatArray, FloatArray]:
        problem, dt = self.problem, then.t - here.t
        drifts = problem.b(here.t, here.x), problem.b(then.t, then.x)
        martingale = forms.martingale_increment(then.x - here.x, *drifts, dt)
        if problem.domain is not None:
            # What a face pushes is no martingale. Whether to correct may depend on the present state only.
            spread = np.sqrt(dt[:, None] * np.diagonal(problem.Lambda(here.t, here.x), axis1=1, axis2=2))
            lower, upper = problem.domain.bounds
            martingale[np.minimum(here.x - lower, upper - here.x) < _WALL * spread] = 0.0
        rows = forms.increment_rows(in_time, (in_space[0], in_space[1]), martingale, self._rate(here), dt)
        next_time, next_space = then.tables(self.space, 0)
        return rows, forms.successor_rows(next_time, next_space[0], self._rate(then), dt)


def _sum_of_squares(counts: IntArray, rows: FloatArray, weights: FloatArray) -> FloatArray:
    """sum_k sum_i weights[i] rows[k, i]' rows[k, i] over runs of i; rows (k, m, L)."""
    k, _, size = rows.shape
    flat = rows.reshape(-1, size)
    products = run_products(np.tile(counts, k), flat * np.tile(weights, k)[:, None], flat)
    return np.asarray(products.reshape(k, -1, size, size).sum(axis=0))


def _successors(measure: Measure) -> tuple[FloatArray, FloatArray]:
    if measure.next_t is None or measure.next_x is None:
        raise MeasureError("estimator 'corrected' needs each sample's successor in time: make the measure from Paths")
    return measure.next_t, measure.next_x


def _scores(measure: Measure) -> FloatArray:
    if measure.score is None:
        raise MeasureError(
            "estimator 'corrected' needs the score of the law at all times, and the initial point mass has none; use "
            "'generator', or a law_measure without times="
        )
    return measure.score


def _roughness(space: Space) -> sp.csr_matrix:
    """sum over cells of int |D f|^2 + |d_tau f|^2, C1 classes: int |D^2 f|^2 + 0.3 |D f|^2 + |d_tau f|^2, in the
    coordinates of the reference cell. The slope tempers linear extrapolation, which would take f below 0."""
    spatial, time = space.spatial, space.time
    rule = spatial.quadrature(2 * spatial.degree)
    scale = np.ones((spatial.n_cells, spatial.local_size)) if rule.scale is None else rule.scale
    rough = np.swapaxes(rule.dphi, 0, 1)
    if spatial.smoothness:
        hessians = spatial.tabulate(np.zeros(rule.weights.size, dtype=np.int64), rule.xi, 2)[2]
        widths = 1.0 / np.diagonal(rule.inverse[0, 0])
        curved = (hessians / scale[0, :, None, None] * np.outer(widths, widths)).reshape(*hessians.shape[:2], -1)
        rough = np.concatenate([curved, np.sqrt(_SLOPE) * rough], axis=2)
    in_space = np.einsum("q,qik,qjk->ij", rule.weights, rough, rough)
    plain = np.einsum("q,iq,jq->ij", rule.weights, rule.phi, rule.phi)
    tau, weights = unit_gauss(2 * time.degree)
    psi, rate = time.reference(tau), time.reference(tau, 1)
    local = np.kron(np.einsum("q,qi,qj->ij", weights, psi, psi), in_space)
    local += np.kron(np.einsum("q,qi,qj->ij", weights, rate, rate), plain)
    result = SparseSum(space.n_dofs)
    per_cell = np.tile(scale, (1, time.local_size))
    for ids in chunks(np.arange(space.n_cells), space.local_size**2):
        s = per_cell[ids % spatial.n_cells]
        dofs = space.cell_dofs(ids)
        result.add(dofs, dofs, s[:, :, None] * local * s[:, None, :])
    return result.matrix()


def _undetermined(mass: sp.csr_matrix, fixed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The coefficients that are fixed, or that the samples do not determine: unseen, or dependent on others there.

    Pivots of a Cholesky-like factorisation of the Gram matrix, scaled to a unit diagonal, are squared distances of each
    function from the span of those eliminated before; tiny ones are taken out until none is left.
    """
    diagonal = mass.diagonal()
    out = fixed | (diagonal <= 0)
    while not out.all():
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


def _coercivity(form: sp.csc_matrix, energy: sp.csc_matrix) -> float:
    """The smallest mu with (B + B')/2 f = mu E f."""
    symmetric = (form + form.T) / 2
    if form.shape[0] <= _DENSE:
        return float(eigvalsh(symmetric.toarray(), energy.toarray(), subset_by_index=[0, 0])[0])
    factors = splu(energy, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    inverse = LinearOperator(energy.shape, matvec=factors.solve, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(form.shape[0])
    try:
        found = eigsh(symmetric, k=1, M=energy, Minv=inverse, which="SA", tol=1e-2, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence as stopped:
        found = stopped.eigenvalues
    return float(found[0]) if len(found) else float("nan")


def _stability(factors: SuperLU, energy: sp.csc_matrix) -> float:
    """inf over f of sup over g of B[f, g] / (|f|_E |g|_E), by power iteration on B^{-1} E B^{-T} E (from above)."""
    x = np.random.default_rng(0).standard_normal(energy.shape[0])
    growth = 0.0
    for _ in range(_POWER_STEPS):
        x = x / np.sqrt(x @ (energy @ x))
        x = factors.solve(energy @ factors.solve(energy @ x, trans="T"))
        before, growth = growth, float(np.sqrt(x @ (energy @ x)))
        if abs(growth - before) < 1e-2 * growth:
            break
    return float(1.0 / np.sqrt(growth))


_ADVICE = "take more samples or fewer cells, shrink the box to where the samples are, or raise smoothing"


def _factorise(form: sp.csc_matrix) -> SuperLU:
    try:
        return splu(form, permc_spec="MMD_AT_PLUS_A")
    except RuntimeError as cause:
        raise ConvergenceError(f"the system of {form.shape[0]} unknowns is singular ({cause}); {_ADVICE}") from cause


def _solve(factors: SuperLU, form: sp.csc_matrix, load: FloatArray) -> FloatArray:
    if not load.any():
        raise ConvergenceError(
            "exp((y - max y)/alpha) underflows to 0 at every terminal sample, which leaves nothing to learn from: "
            "raise the temperature, or shrink the box so that max y over it is not so far from where the samples end"
        )
    solution = factors.solve(load)
    residual = float(np.linalg.norm(form @ solution - load) / np.linalg.norm(load))
    if not residual < _RESIDUAL:
        raise ConvergenceError(
            f"the system of {load.size} unknowns was only solved to a relative residual of {residual:.1e}; {_ADVICE}"
        )
    return np.asarray(solution)


def _condition(factors: SuperLU, form: sp.csc_matrix) -> float:
    inverse = LinearOperator(
        form.shape, matvec=factors.solve, rmatvec=lambda b: factors.solve(b, trans="T"), dtype=np.float64
    )
    return float(abs(form).sum(axis=0).max()) * float(onenormest(inverse, t=1))


def fit(
    problem: ControlProblem,
    data: Paths | Measure,
    space: Space,
    *,
    estimator: str = "generator",
    smoothing: float | None = None,
    ridge: float = 0.0,
    outside: str = "error",
) -> Solution:
    r"""Learn f = exp(v/alpha) on a space-time class from trajectories; or, under a law, the population's solution.

    Solves B[f, g] = l(g) for all g in the class, expectations being taken under the data: with rho = (r - c_r)/alpha

        B[f, g] = -int_0^T E[ (d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + rho f) g ] dt + E[ f_T g_T ],
        l(g)    = E[ exp((y - c_y)/alpha) g_T ].

    Parameters
    ----------
    data : `Paths`, or a `Measure` (`empirical_measure`, `law_measure`).
    estimator : "generator", the residual at the samples (C1 classes: element "hermite"); "corrected", increments of f
        along the paths less grad f' (dX - b dt) (any class), which under a law becomes its limit, the weak form
        with the current velocity. `forms` has the formulas.
    smoothing : in paths: on every space-time cell f is asked to be smooth with the weight of that many paths
        crossing it; smooth meaning a small time derivative and small second derivatives in space (first ones for
        elements that are not C1), in the coordinates of the cell. Where there are no samples, or too few to tell the
        cell's functions apart, this extends f from where they are; elsewhere it costs a bias of order 1/n, which a
        smaller value avoids where every cell is well visited. It vanishes under a law. None: 0.05 for "generator", 0.3
        for "corrected", or 3 on elements that are not C1. 0: nothing is asked; coefficients that the samples do not
        determine, unseen or linearly dependent where they look, are set to 0 instead.
    ridge : adds ridge times the identity to the system scaled by the diagonal of the Gram matrix of values, hence
        is in units of each basis function's own mean square under the measure.
    outside : samples outside the class's domain are an "error", or "drop": left out of the sums and counted.

    In time the method is Galerkin's with equal trial and test functions: of order about 2 with P1 and with P2, whose
    constant is smaller, of order 4 with P3. The gauge is taken from the nodes of the space, never from samples, so that
    coefficients of fits on one space can be subtracted. On a reflecting domain, the normal slopes of C1 classes are set
    to 0 at the faces, and "corrected" leaves increments uncorrected that start within 5 standard deviations of a step
    from a face, whose push is no martingale.

    `stats`: "samples", "dropped" (outside), "pinned" (how many coefficients the samples do not determine: they are
    set to 0, or smoothing outweighs what is seen of them), "pinned_dofs" (which), "seconds", what was asked for, and
    three figures of the system, scaled to a unit diagonal: "condition" (estimate, 1-norm); "coercivity", the smallest
    eigenvalue of the symmetric part of B relative to the energy E f_T^2 + E f_0^2 + int E[f^2 + grad f' Lambda grad f +
    h (d_t f)^2] dt, with h the time step of the paths; "stability", the smallest singular value relative to it (from
    above). With r <= c_r both are positive for the exact process; left-point sums over few steps per time cell alone
    can take coercivity to about -0.6 without harm, so that `status` judges by stability first.
    `status` is "ok", or says what is doubtful and what to do.

    Raises
    ------
    SpaceError : estimator "generator" on a class that is not C1.
    MeasureError : the data do not fit the problem or leave the domain, or the law lacks what the estimator needs.
    ConvergenceError : the linear system cannot be solved.
    """
    started = time.perf_counter()
    one_of(estimator, "estimator", ESTIMATORS, MeasureError)
    one_of(outside, "outside", ("error", "drop"), MeasureError)
    if estimator == "generator" and space.smoothness < 1:
        raise SpaceError(
            f"estimator 'generator' needs a C1 class, and element {space.spatial.element!r} is only continuous: "
            "samples never fall on the faces, where the jumps of grad f carry the second derivatives, so they see "
            "another equation; use element='hermite', or estimator='corrected', which needs first derivatives only"
        )
    smoothing = _SMOOTHING[estimator, space.smoothness] if smoothing is None else smoothing
    for name, number in (("smoothing", smoothing), ("ridge", ridge)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < np.inf:
            raise MeasureError(f"{name} must be a finite number >= 0, got {number!r}")
    measure = data if isinstance(data, Measure) else empirical_measure(problem, data)
    if measure.dim != problem.dim or space.dim != problem.dim:
        raise MeasureError(f"measure, space and problem have dimensions {measure.dim}, {space.dim}, {problem.dim}")
    if problem.domain is not None and problem.domain.where("reflecting").sum() < 2 * problem.dim:
        raise DomainError(
            f"fit is for processes on R^d or reflected at all faces of a box, but the domain of {problem.name!r} is"
            f" {problem.domain}; solve such a problem with `solve`"
        )
    constants = gauge(problem, space.spatial.nodes, space.time.nodes)
    system = _System(problem, space, constants, outside)
    system.add(measure, estimator)
    assembled = time.perf_counter()

    per_path = 1.0 / measure.paths if measure.paths else _EXACT
    extension = sp.csr_matrix((space.n_dofs,) * 2)
    if smoothing:
        extension = smoothing * per_path * problem.horizon / space.time.n_cells * _roughness(space)
    gram = system.mass + extension
    reflecting = np.zeros(space.shape, dtype=np.bool_)
    if problem.domain is not None:
        reflecting[:, space.spatial.reflecting_dofs()] = True
    fixed = reflecting.ravel() if smoothing else _undetermined(system.mass, reflecting.ravel())
    free = np.flatnonzero(~fixed)
    root = np.sqrt(gram.diagonal()[free])
    scale = sp.diags(1.0 / root)

    def scaled(matrix: sp.csr_matrix, shift: float) -> sp.csc_matrix:
        return (scale @ matrix[free][:, free] @ scale + shift * sp.identity(free.size)).tocsc()

    form = scaled(system.form + extension, ridge)
    factors = _factorise(form)
    coefficients = np.zeros(space.n_dofs)
    coefficients[free] = _solve(factors, form, system.load[free] / root) / root
    solved = time.perf_counter()
    energy = scaled(system.energy + extension, _SHIFT)
    figures = {
        "condition": _condition(factors, form),
        "coercivity": _coercivity(form, energy),
        "stability": _stability(factors, energy),
    }
    pinned = np.flatnonzero(fixed | (system.mass.diagonal() < extension.diagonal()))
    pinned.setflags(write=False)
    return Solution(
        problem=problem,
        space=space,
        coefficients=coefficients,
        gauge=constants,
        method=estimator,
        status=_status(**figures),
        stats={
            "measure": measure.kind,
            "estimator": estimator,
            "smoothing": float(smoothing),
            "ridge": float(ridge),
            "outside": outside,
            "paths": measure.paths,
            "samples": int(measure.weights.size),
            "dropped": system.dropped,
            "dofs": space.n_dofs,
            "pinned": int(pinned.size),
            "pinned_dofs": pinned,
            **figures,
            "seconds": {
                "assembly": assembled - started,
                "solve": solved - assembled,
                "diagnostics": time.perf_counter() - solved,
            },
        },
    )


def _status(condition: float, coercivity: float, stability: float) -> str:
    doubts = []
    if stability < _UNSTABLE:
        doubts.append(f"unstable (smallest singular value {stability:.1g} relative to the energy)")
    if coercivity < _NOT_COERCIVE:
        doubts.append(f"coercivity lost (smallest eigenvalue {coercivity:.2g} relative to the energy)")
    if condition > _ILL_CONDITIONED:
        doubts.append(f"ill-conditioned (condition number about {condition:.0e})")
    return f"{', '.join(doubts)}: {_ADVICE}" if doubts else "ok"
