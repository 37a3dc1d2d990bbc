r"""The generator of a control problem on a finite-element basis: matrices from coefficients, again and again, fast.

Multiply d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + ((r - c_r)/alpha) f = 0 by a basis function and integrate the
second-order term by parts over the domain. With f = sum_j f_j phi_j this is M f' + K(t) f = 0, where

    M_ij = int phi_i phi_j,
    K_ij = int - 1/2 grad phi_i' Lambda grad phi_j + <b - 1/2 div Lambda, grad phi_j> phi_i
               + ((r - c_r)/alpha) phi_j phi_i,             (div Lambda)_k = sum_l d Lambda_kl / d x_l,

and the boundary term dropped is what makes <Lambda grad f, n> = 0 the natural boundary condition.

The sparsity pattern, and where in it each local matrix entry goes, are found once. A new coefficient then costs one
dense product of its values at the quadrature points, pulled back to the reference cell, with integrals of reference
functions, and one summation into the pattern.
"""

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from fem_hjb.problems.divergence import row_divergence
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.reference.mesh_in_time import Look, PartInTime
from fem_hjb.reference.mesh_linear import bicgstab
from fem_hjb.spaces.space import SpatialBasis
from fem_hjb.stepping.esdirk import Solve
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress, unheard

_CHUNK_POINTS = 1 << 14  # quadrature points whose coefficients are evaluated at once
_DIFFERENCE = np.finfo(float).eps ** (1 / 3)  # spacing of central differences relative to the width of the domain
_ALWAYS_DIRECT = 30_000  # non-zeros up to which LU factors are cheap enough in any dimension
_DIRECT_IF_REUSED = 2_000_000  # likewise in two dimensions, when K does not depend on time
_MAX_ITERATIONS = 400


@final
class MeshOperators:
    """M and K(t) of the weak form above, for any `SpatialBasis`.

    problem, basis, gauge : the coefficients, the basis, and the c_r that is taken out of r. Polynomials of degree
        2 p + 1, with p that of the basis, are integrated exactly on affine cells.

    tell : given a sign of life whenever a coefficient is called; what it raises stops the work.
    jumps : the times at which coefficients jump, in order.
    M : the mass matrix (n, n), CSR; K(t) has the same pattern and shares its index arrays.
    autonomous : whether the coefficients looked independent of time at a few times and points. It only serves to
        choose a linear solver; `K` evaluates and compares all of them on every call.
    """

    def __init__(self, problem: ControlProblem, basis: SpatialBasis, gauge: Gauge, tell: Progress = unheard) -> None:
        self.tell = tell
        rule = basis.quadrature(2 * basis.degree + 1)
        self.problem, self.basis, self.gauge = problem, basis, gauge
        d, q, l, nc = basis.dim, rule.xi.shape[0], basis.local_size, basis.n_cells
        self._local_size, self._q = l, q
        self._indices, self._indptr, self._slots = _pattern(basis.cell_dofs, basis.n_dofs)
        self._nnz = int(self._indices.size)
        scale = rule.scale
        self._scale = None if scale is None or bool((scale == 1.0).all()) else scale

        # Cells are last in every array, (d, d, q or 1, nc) and so on: all loops below run over long contiguous rows.
        step = max(1, _CHUNK_POINTS // q)
        self._chunks = [slice(s, min(s + step, nc)) for s in range(0, nc, step)]
        self._det = np.ascontiguousarray(rule.det.T)
        self._inverse = np.ascontiguousarray(rule.inverse.transpose(2, 3, 1, 0))
        self._points = [np.ascontiguousarray(rule.x[c].transpose(2, 1, 0)).reshape(d, -1) for c in self._chunks]

        # Reference functions at the quadrature points, times the weights: (coefficients, q, l * l).
        phi, dphi, w = rule.phi, rule.dphi, rule.weights
        self._reaction_table = np.einsum("iq,jq,q->qij", phi, phi, w).reshape(1, q, l * l)
        self._drift_table = np.einsum("iq,jqk,q->kqij", phi, dphi, w).reshape(d, q, l * l)
        self._pairs = list(combinations_with_replacement(range(d), 2))
        both = np.einsum("iqk,jqm,q->kmqij", dphi, dphi, w).reshape(d, d, q, l * l)
        self._diffusion_table = np.stack([both[k, m] + (both[m, k] if k != m else 0.0) for k, m in self._pairs])

        self.M = self._matrix(self._assemble(self._reaction_table, [self._det[None, :, c] for c in self._chunks]))
        self._diagonal = np.flatnonzero(self._indices == np.repeat(np.arange(basis.n_dofs), np.diff(self._indptr)))
        self._looks = self._looked_at()
        self.autonomous = all(look.steady for look in self._looks.values())
        self.jumps = sorted(set().union(*(look.jumps() for look in self._looks.values())))
        self.iterations = self.factorisations = 0
        self._parts = self._in_time()
        self._K: Any = None
        self._shifted, self._solvers = np.empty(self._nnz), 0
        self._moving: list[str] | None = None  # the parts that changed when last one did, and the sum of the others
        self._still = np.zeros(0)

    def K(self, t: float, out: FloatArray | None = None) -> Any:
        """K at time t, CSR. The same object as last time if every coefficient is bitwise what it was.

        A coefficient that is a combination of what it is at a few times, at every quadrature point and to rounding, is
        not assembled anew: its matrix is the combination of those (see `mesh_in_time`).

        The divergence of a variable Lambda is taken by central differences of the callable, spaced eps^{1/3} = 6e-6
        times the width of the domain along each axis: next to a face they reach that far outside, and for a Lambda that
        varies on the scale of that width their error is about 1e-10 relative to its derivative.

        out : where to put the entries, of the shape of M.data; those of matrices made in it before are overwritten.

        Raises ProblemError where a coefficient is not finite or of the wrong shape.
        """
        # Should a coefficient fail, nothing stale stays behind.
        (K, moving), self._K, self._moving = (self._K, self._moving), None, None
        changed = [name for name in self._parts if self._update(name, t)]
        if moving is None or (changed and changed != moving):
            moving, self._still = changed, np.zeros(self._nnz)
            for name in self._parts.keys() - set(changed):
                self._still += self._parts[name].data
        if K is None or changed:
            data = np.empty(self._nnz) if out is None else out
            data[:] = self._still
            for name in moving:
                data += self._parts[name].data
            K = self._matrix(data)
        self._K, self._moving = K, moving
        return K

    def seen(self, start: float, end: float, nodes: FloatArray) -> float:
        """A share 1, 1/2, 1/4, ... of the way from start to end whose nodes, in [0, 1], show what coefficients do.

        That is to the times at which they were looked at: nothing that lasts for a twentieth of [0, T] is missed.
        """
        share = 1.0
        while not all(look.sees(start + share * (end - start) * nodes) for look in self._looks.values()):
            share /= 2
        return share

    def weighted_mass(self, weight: Callable[[FloatArray], FloatArray]) -> Any:
        """The matrix of int weight phi_i phi_j, CSR, for weight: points (n, d) -> (n,)."""
        values = [weight(x.T).reshape(1, self._q, -1) for x in self._points]
        fields = [w * self._det[:, c] for w, c in zip(values, self._chunks, strict=True)]
        return self._matrix(self._assemble(self._reaction_table, fields))

    def solver(self, stiffness: Any, shift: float, fixed: IntArray) -> Solve:
        """A solver for M - shift K in whose solution f_i = rhs_i for i in `fixed`; of use until the next one is made.

        LU factors (SuperLU, minimum degree on A' + A) in one dimension, for few unknowns, and in two dimensions when K
        does not depend on time; otherwise BiCGStab on the matrix scaled by its diagonal from both sides, which makes
        residuals comparable to errors in L2; for time steps that resolve the solution it takes some ten iterations.
        """
        data = np.multiply(stiffness.data, -shift, out=self._shifted)
        data += self.M.data
        self._solvers += 1
        made = self._solvers
        mass_diagonal = self.M.data[self._diagonal[fixed]]
        if fixed.size:
            data[_rows(self._indptr, fixed)] = 0.0
            data[self._diagonal[fixed]] = mass_diagonal
        inner = self._direct(data) if self.direct else self._iterative(data)

        def solve(rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
            if made != self._solvers and not self.direct:
                raise RuntimeError("this solver's matrix has been overwritten by that of a later one")
            scaled = rhs
            if fixed.size:
                scaled = rhs.copy()
                scaled[fixed] *= mass_diagonal
            return inner(scaled, guess, rtol)

        return solve

    @property
    def direct(self) -> bool:
        """Whether the solver is a direct one."""
        if self.basis.dim == 1 or self._nnz <= _ALWAYS_DIRECT:
            return True
        return self.basis.dim == 2 and self.autonomous and self._nnz <= _DIRECT_IF_REUSED

    @property
    def linear_solver(self) -> str:
        """What `solver` uses, in words."""
        return "sparse LU" if self.direct else "BiCGStab, diagonal scaling"

    def _direct(self, data: FloatArray) -> Solve:
        # The arrays of a CSR matrix are those of its transpose in CSC: factor that, and solve with the transpose.
        transpose = sp.csc_matrix((data, self._indices, self._indptr), shape=self.M.shape)
        try:
            factors = splu(
                transpose, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.1, options={"SymmetricMode": True}
            )
        except RuntimeError as cause:
            raise ConvergenceError(
                f"the matrix M - h gamma K could not be factored ({cause}); take smaller time steps, and check the"
                " coefficients and the mesh"
            ) from cause
        self.factorisations += 1
        return lambda rhs, guess, rtol: np.asarray(factors.solve(rhs, trans="T"))

    def _iterative(self, data: FloatArray) -> Solve:
        diagonal = data[self._diagonal]
        if not (np.isfinite(diagonal).all() and (diagonal > 0).all()):
            raise ConvergenceError(
                "M - h gamma K has a non-positive or non-finite diagonal; take smaller time steps, and check the"
                " coefficients"
            )
        matrix, half = self._matrix(data), 1.0 / np.sqrt(diagonal)

        def apply(v: FloatArray) -> FloatArray:
            product = matrix @ (half * v)
            product *= half
            return np.asarray(product)

        def solve(rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
            solution, iterations = bicgstab(apply, half * rhs, guess / half, rtol, _MAX_ITERATIONS)
            self.iterations += iterations
            if solution is None:
                raise ConvergenceError(
                    f"BiCGStab did not reach a relative residual of {rtol:.1e} in {_MAX_ITERATIONS} iterations for"
                    f" {rhs.size} unknowns; take smaller time steps, which make the matrix better conditioned, or a"
                    " coarser mesh"
                )
            return np.asarray(half * solution)

        return solve

    def _matrix(self, data: FloatArray) -> Any:
        return sp.csr_matrix((data, self._indices, self._indptr), shape=(self.basis.n_dofs,) * 2)

    def _assemble(self, table: FloatArray, fields: Sequence[FloatArray]) -> FloatArray:
        """CSR data of the matrix with these coefficients, (m, q, cells) for each chunk of cells.

        A q axis of length 1 says that they are constant on each cell: the table can be summed over it beforehand.
        """
        if fields[0].shape[1] < self._q:
            table = table.sum(axis=1)
        table = table.reshape(-1, table.shape[-1])
        local = np.empty((self.basis.n_cells, self._local_size**2))
        for cells, field in zip(self._chunks, fields, strict=True):
            np.matmul(field.reshape(len(table), -1).T, table, out=local[cells])
        if self._scale is not None:
            matrices = local.reshape(-1, self._local_size, self._local_size)
            matrices *= self._scale[:, :, None]
            matrices *= self._scale[:, None, :]
        data = np.bincount(self._slots, weights=local.ravel(), minlength=self._nnz)
        return np.asarray(data, dtype=np.float64)

    def _looked_at(self) -> dict[str, Look]:
        """Each coefficient at a few points."""
        problem, gauge, x = self.problem, self.gauge, self._points[0][:, :: max(1, self._points[0].shape[1] // 64)].T
        at: dict[str, Callable[[float], FloatArray]] = {"drift": lambda t: problem.b(t, x)}
        if problem.constant_diffusion is None:
            at["diffusion"] = lambda t: problem.Lambda(t, x)
        if problem.running_reward is not None or gauge.running != 0.0:
            at["reaction"] = lambda t: gauge.rate(t, x, problem.r(t, x))
        return {name: Look(_heard(self.tell, function), problem.horizon) for name, function in at.items()}

    def _in_time(self) -> dict[str, PartInTime]:
        """The parts of K."""
        known = {
            "diffusion": self.problem.constant_diffusion is not None,
            "drift": isinstance(self.problem.drift, LinearDrift),
        }
        looks = self._looks
        return {
            name: PartInTime(looks[name].independent() if name in looks else [], known.get(name, False))
            for name in ("diffusion", "drift", "reaction")
            if name != "reaction" or name in looks
        }

    def _update(self, name: str, t: float) -> bool:
        evaluate, assemble = {
            "diffusion": (self._diffusion, self._assemble_diffusion),
            "drift": (self._drift, self._assemble_drift),
            "reaction": (self._rates, self._assemble_reaction),
        }[name]
        return self._parts[name].update(t, evaluate, assemble)

    def _drift(self, t: float) -> list[FloatArray]:
        b = _heard(self.tell, lambda x: self.problem.b(t, x.T))
        return [_cells_last(b(x), self._q) for x in self._points]

    def _diffusion(self, t: float) -> list[FloatArray]:
        constant = self.problem.constant_diffusion
        if constant is not None:
            return [constant.reshape(*constant.shape, 1, 1)] * len(self._chunks)
        Lambda = _heard(self.tell, lambda x: self.problem.Lambda(t, x.T))
        return [_cells_last(Lambda(x), self._q) for x in self._points]

    def _assemble_diffusion(self, values: list[FloatArray], t: float) -> FloatArray:
        """With the divergence, if it is variable."""
        fields = []
        for cells, Lambda in zip(self._chunks, values, strict=True):
            inverse, det = self._inverse[..., cells], self._det[:, cells]
            pulled = np.einsum("kaqc,abqc,mbqc->kmqc", inverse, Lambda, inverse, optimize=True) * (-0.5 * det)
            fields.append(np.stack([pulled[k, m] for k, m in self._pairs]))
        data = self._assemble(self._diffusion_table, fields)
        if self.problem.constant_diffusion is None:
            spacing = _DIFFERENCE * self._widths()
            around = _heard(self.tell, lambda y: self.problem.Lambda(t, y))
            divergences = (row_divergence(around, x.T, spacing) for x in self._points)
            data += self._assemble_drift([_cells_last(-0.5 * divergence, self._q) for divergence in divergences], t)
        return data

    def _assemble_drift(self, values: list[FloatArray], _: float) -> FloatArray:
        fields = []
        for u, cells in zip(values, self._chunks, strict=True):
            pull = self._inverse[..., cells] * self._det[:, cells]
            field = np.empty(u.shape)
            for k in range(len(u)):
                np.multiply(pull[k, 0], u[0], out=field[k])
                for m in range(1, len(u)):
                    field[k] += pull[k, m] * u[m]
            fields.append(field)
        return self._assemble(self._drift_table, fields)

    def _rates(self, t: float) -> list[FloatArray]:
        r = _heard(self.tell, lambda x: self.problem.r(t, x.T))
        return [self.gauge.rate(t, x.T, r(x)).reshape(1, self._q, -1) for x in self._points]

    def _assemble_reaction(self, rates: list[FloatArray], _: float) -> FloatArray:
        return self._assemble(
            self._reaction_table, [rate * self._det[:, c] for rate, c in zip(rates, self._chunks, strict=True)]
        )

    def _widths(self) -> FloatArray:
        lower, upper = self.basis.box.bounds
        return upper - lower


def _heard(tell: Progress, function: Callable[[Any], FloatArray]) -> Callable[[Any], FloatArray]:
    """The same function, with a sign of life."""

    def heard(given: Any) -> FloatArray:
        tell(0.0)
        return function(given)

    return heard


def _cells_last(values: FloatArray, q: int) -> FloatArray:
    """A contiguous (..., q, c) copy of (q * c, ...) values at points, cells fastest; callables may reuse theirs."""
    moved = np.array(np.moveaxis(values, 0, -1), order="C")
    return moved.reshape(*moved.shape[:-1], q, -1)


def _rows(indptr: IntArray, rows: IntArray) -> IntArray:
    """Positions in the CSR data of all entries of these rows."""
    lengths = indptr[rows + 1] - indptr[rows]
    ends = np.cumsum(lengths)
    return np.asarray(np.arange(ends[-1]) + np.repeat(indptr[rows] - ends + lengths, lengths))


def _pattern(cell_dofs: IntArray, n: int) -> tuple[Any, Any, IntArray]:
    """CSR indices and indptr of the sum of all local matrices, and the position there of each local entry (c, i, j).

    Entries are sorted by column, then stably by row, by counting: in time linear in their number.
    """
    l = cell_dofs.shape[1]
    dofs = cell_dofs.astype(np.int32)
    rows, columns = np.repeat(dofs, l, axis=1).ravel(), np.tile(dofs, (1, l)).ravel()
    by_column = _counting_sort(columns, n)
    order = by_column[_counting_sort(rows[by_column], n)]
    rows, columns = rows[order], columns[order]
    first = np.empty(order.size, dtype=np.bool_)
    first[:1] = True
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    first[1:] |= columns[1:] != columns[:-1]
    slots = np.empty(order.size, dtype=np.int64)
    count = np.cumsum(first, dtype=np.int32)
    count -= 1
    slots[order] = count
    indptr = np.searchsorted(rows[first], np.arange(n + 1)).astype(np.int32)
    return columns[first], indptr, slots


def _counting_sort(keys: Any, n: int) -> Any:
    """The stable permutation that sorts integer keys in [0, n)."""
    ends = np.arange(keys.size + 1, dtype=np.int32 if keys.size < 2**31 - 1 else np.int64)
    return sp.csc_matrix((np.ones(keys.size, dtype=np.int8), keys, ends), shape=(n, keys.size)).tocsr().indices
