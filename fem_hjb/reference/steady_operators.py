r"""The generator of a process that does not depend on time, as matrices on a finite-element basis.

Multiply <b, grad u> + 1/2 Tr(Lambda Hess u) + c u by a basis function and integrate the second-order term by parts:

    A_ij = int - (s/2) grad phi_i' Lambda grad phi_j + <b - (s/2) div Lambda, grad phi_j> phi_i + c phi_j phi_i,

with (div Lambda)_k = sum_l d Lambda_kl / d x_l. The boundary term dropped makes <Lambda grad u, n> = 0 the natural
condition. s multiplies the noise; it is 1 but on the way to a small temperature (`exit_newton`). Coefficients are
evaluated once, at the points of one quadrature rule; what is added to b and c afterwards are arrays there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import ArpackError, LinearOperator, eigs, splu

from fem_hjb.problems.divergence import row_divergence
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress, unheard

Coefficient = Callable[[FloatArray], FloatArray]

_CHUNK_POINTS = 1 << 14  # at which coefficients are evaluated at once
_CHUNK_DOUBLES = 1 << 22  # of a table of local functions
_DENSE = 200  # unknowns up to which all eigenvalues are computed
_DIFFERENCE = np.finfo(float).eps ** (1 / 3)  # spacing of central differences relative to the width of the domain


@final
class SteadyOperators:
    """A(s, b, c) as above, loads and values at the points of the rule, (cells, q).

    drift, diffusion : callables (n, d) -> (n, d) and (n, d, d).  constant : Lambda (d, d) if it is one, or None.
    """

    def __init__(
        self,
        basis: SpatialBasis,
        drift: Coefficient,
        diffusion: Coefficient,
        constant: FloatArray | None,
        tell: Progress = unheard,
    ) -> None:
        self.basis, self.constant = basis, constant
        self._rule = basis.quadrature(3 * basis.degree if basis.dim < 3 else 2 * basis.degree + 1)
        rule = self._rule
        self.x = np.asarray(rule.x)
        self.weights = np.broadcast_to(rule.weights * rule.det, self.x.shape[:2])
        self._tell = tell
        self.b = self.at(drift)
        self.Lambda = None if constant is not None else self.at(diffusion)
        self._bend: FloatArray | None = None
        if constant is None:
            lower, upper = basis.box.bounds
            spacing = _DIFFERENCE * (upper - lower)
            self._bend = -0.5 * self.at(lambda x: row_divergence(diffusion, x, spacing))
        q, l, d = len(rule.weights), basis.local_size, basis.dim
        step = max(1, _CHUNK_DOUBLES // (q * l * (d + 1)))
        self._chunks = [slice(k, min(k + step, basis.n_cells)) for k in range(0, basis.n_cells, step)]
        self._mass: Any = None

    def at(self, function: Coefficient) -> FloatArray:
        """A function (n, d) -> (n, ...) at all points, (cells, q, ...)."""
        flat = self.x.reshape(-1, self.basis.dim)
        parts = []
        for k in range(0, len(flat), _CHUNK_POINTS):
            self._tell(0.0)
            parts.append(function(flat[k : k + _CHUNK_POINTS]))
        values = np.concatenate(parts)
        return values.reshape(*self.x.shape[:2], *values.shape[1:])

    def values(self, u: FloatArray) -> FloatArray:
        """A function by its coefficients, at all points."""
        return np.asarray(u[self.basis.cell_dofs] @ self._rule.phi)

    def gradients(self, u: FloatArray) -> FloatArray:
        """Its gradients, (cells, q, d)."""
        local = np.einsum("ci,iqm->cqm", u[self.basis.cell_dofs], self._rule.dphi, optimize=True)
        return np.asarray(np.einsum("cqm,cqmk->cqk", local, self._inverse(slice(None)), optimize=True))

    def pushed(self, slopes: FloatArray) -> FloatArray:
        """Lambda times vectors, (cells, q, d)."""
        if self.Lambda is None:
            return np.asarray(slopes @ np.asarray(self.constant))
        return np.asarray(np.einsum("cqkl,cql->cqk", self.Lambda, slopes))

    def load(self, source: FloatArray) -> FloatArray:
        """int source phi_i, (n,)."""
        local = (source * self.weights) @ self._rule.phi.T
        sums = np.bincount(self.basis.cell_dofs.ravel(), local.ravel(), minlength=self.basis.n_dofs)
        return np.asarray(sums, dtype=np.float64)

    def integral(self, density: FloatArray) -> float:
        """The integral of what is given at all points."""
        return float((density * self.weights).sum())

    @property
    def mass(self) -> Any:
        """int phi_i phi_j, CSR."""
        if self._mass is None:
            ones = np.ones(self.x.shape[:2])
            self._mass = self.matrix(noise=0.0, drift=np.zeros_like(self.b), rate=ones, alone=True)
        return self._mass

    def matrix(
        self,
        *,
        noise: float = 1.0,
        drift: FloatArray | None = None,
        rate: FloatArray | None = None,
        alone: bool = False,
    ) -> Any:
        """A with s = `noise`, what is added to b, and c, CSR; alone: `drift` stands for b, and Lambda does not bend."""
        basis, rule, d = self.basis, self._rule, self.basis.dim
        velocity = np.zeros_like(self.b) if alone else self.b
        velocity = velocity if drift is None else velocity + drift
        if self._bend is not None and not alone:
            velocity = velocity + noise * self._bend
        rows, columns, data = [], [], []
        q, l = len(rule.weights), basis.local_size
        for chunk in self._chunks:
            self._tell(0.0)
            weights = self.weights[chunk]
            slopes = np.einsum("iqm,cqmk->ckqi", rule.dphi, self._inverse(chunk), optimize=True)
            right = np.empty((len(weights), d + 1, q, l))
            right[:, 0] = np.einsum("cqk,ckqi->cqi", velocity[chunk] * weights[..., None], slopes, optimize=True)
            if rate is not None:
                right[:, 0] += (rate[chunk] * weights)[..., None] * rule.phi.T
            if noise:
                scaled = -0.5 * noise * weights[:, None, :, None] * slopes
                if self.Lambda is None:
                    right[:, 1:] = np.einsum("kl,clqi->ckqi", np.asarray(self.constant), scaled)
                else:
                    right[:, 1:] = np.einsum("cqkl,clqi->ckqi", self.Lambda[chunk], scaled, optimize=True)
            else:
                right[:, 1:] = 0.0
            left = np.empty_like(right)
            left[:, 0], left[:, 1:] = rule.phi.T, slopes
            local = np.matmul(left.reshape(len(weights), -1, l).transpose(0, 2, 1), right.reshape(len(weights), -1, l))
            dofs = basis.cell_dofs[chunk]
            rows.append(np.repeat(dofs, l, axis=1).ravel())
            columns.append(np.tile(dofs, (1, l)).ravel())
            data.append(local.ravel())
        where = np.concatenate(rows), np.concatenate(columns)
        return sp.coo_matrix((np.concatenate(data), where), shape=(basis.n_dofs,) * 2).tocsr()

    def _inverse(self, chunk: slice) -> FloatArray:
        inverse = self._rule.inverse[chunk]
        return np.broadcast_to(inverse, (len(inverse), self.x.shape[1], *inverse.shape[2:]))


def solved(matrix: Any, rhs: FloatArray, fixed: IntArray, given: FloatArray) -> FloatArray:
    """u, of the shape of rhs, with u[fixed] = given and the other rows of matrix u = rhs, or a ConvergenceError."""
    free = np.setdiff1d(np.arange(len(rhs)), fixed)
    u = np.zeros(rhs.shape)
    u[fixed] = given
    rest = rhs - matrix @ u
    u[free] = factors(matrix[free][:, free]).solve(rest[free])
    if not np.isfinite(u).all():
        raise ConvergenceError("a linear equation of the grid has no solution; refine it, or check the coefficients")
    return u


def factors(matrix: Any) -> Any:
    """LU factors (SuperLU), or a ConvergenceError."""
    try:
        return splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.1, options={"SymmetricMode": True})
    except RuntimeError as cause:
        raise ConvergenceError(
            f"a matrix of the grid could not be factored ({cause}); check the coefficients and the mesh"
        ) from cause


def rightmost(matrix: Any, mass: Any, bound: float, count: int = 1) -> tuple[Any, Any]:
    """The `count` eigenvalues of matrix u = lambda mass u nearest to a number beyond all real parts, and eigenvectors.

    bound : no eigenvalue has a larger real part. The rightmost one of a generator is real, and nearest to what lies
    to the right of it (H. Berestycki, L. Nirenberg and S. R. S. Varadhan, Comm. Pure Appl. Math. 47 (1994) 47-92).
    """
    n = matrix.shape[0]
    if n <= _DENSE:
        values, vectors = scipy.linalg.eig(matrix.toarray(), mass.toarray())
    else:
        inverse = factors(bound * mass - matrix)
        step = LinearOperator((n, n), matvec=lambda u: inverse.solve(mass @ u), dtype=np.float64)
        try:
            found, vectors = eigs(step, k=count, which="LM", v0=np.ones(n), tol=1e-13, maxiter=50 * n)
        except ArpackError as cause:
            raise ConvergenceError(f"the principal eigenvalue was not found on this grid ({cause})") from cause
        values = bound - 1.0 / found
    order = np.argsort(np.abs(bound - values))[:count]
    return values[order], vectors[:, order]
