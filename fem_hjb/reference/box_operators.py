r"""The generator of a control problem on a box, at the nodes of a spectral tensor-product basis, matrix-free.

With f = exp(v0 / alpha) u, where v0 is the background of a gauge, u solves d_s u = L(t) u in the time to go s = T - t,

    L u = <b + Lambda grad v0 / alpha, grad u> + 1/2 Tr(Lambda Hess u) + rate u.

Values are arrays of shape (n_1, ..., n_d). First derivatives are averaged derivatives D_k along an axis, second ones
along one axis the weak Laplacian -K_k / m_k, which brings the natural condition d u / d n = 0 (normal reflection, for
any Lambda), mixed ones products of first derivatives. All the work is products of 1-D matrices with reshaped arrays.

The part of L that is a sum of operators on one axis each is kept apart: its exponential is exact, and it can be
inverted by diagonalising its 1-D matrices (R. E. Lynch, J. R. Rice and D. H. Thomas, Numer. Math. 6 (1964) 185-199).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any, final

import numpy as np
from scipy.sparse.linalg import LinearOperator, gmres

from fem_hjb.problems.box import BoolArray
from fem_hjb.problems.gauge import Background
from fem_hjb.problems.probing import instants, looks_steady
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.axes import apply_all, apply_axis
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.stepping.esdirk import Solve
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError, EllipticityError

_CONDITION = 1e7  # of eigenvectors, beyond which only the self-adjoint part of an operator is diagonalised
_RESTART, _RESTARTS = 40, 10


@final
@dataclass(frozen=True, eq=False)
class Fields:
    """Coefficients at the nodes at one time: drift (d, *shape) of u, rate (*shape), diffusion (d, d) or (d, d, *shape).

    `diffusion` has the grid's axes only where Lambda depends on x.
    """

    drift: FloatArray
    rate: FloatArray
    diffusion: FloatArray


@final
class BoxOperators:
    """L(t) on a `SpectralBasis`, in pieces; see the module.

    problem, basis, background : the coefficients, the nodes, and what is taken out of f.
    truncated : (2, d), the lower and upper faces at which the box ends but the process does not. Where the drift of u
        points inwards on the whole of such a face, at a few times, nothing diffuses across it: second derivatives in
        its normal direction are left out on it. That makes no boundary layer, unlike the natural condition, and is
        stable as nothing comes from outside. None: natural conditions everywhere.
    """

    def __init__(
        self,
        problem: ControlProblem,
        basis: SpectralBasis,
        background: Background,
        truncated: BoolArray | None = None,
    ) -> None:
        self.problem, self.basis, self.background = problem, basis, background
        self.shape: tuple[int, ...] = basis.shape
        self.dim = basis.dim
        self.D = [line.derivative for line in basis.lines]
        self.second = [line.laplacian for line in basis.lines]
        self.weights = np.asarray(basis.weights).reshape(self.shape)
        # Weights of the averages that make up the separable part: a Gaussian, of a quarter of the half-widths.
        lower, upper = basis.box.bounds
        self._averages = [
            _normalised(line.weights * np.exp(-0.5 * (4.0 * (2.0 * line.nodes - low - high) / (high - low)) ** 2))
            for line, low, high in zip(basis.lines, lower, upper, strict=True)
        ]
        self._mean_weights = reduce(np.multiply.outer, self._averages).ravel()
        self.iterations = 0
        self._last: tuple[float, Fields] | None = None
        self._constant = problem.constant_diffusion
        self._mixed: dict[tuple[int, int], FloatArray | None] = dict.fromkeys(combinations(range(self.dim), 2))
        if truncated is not None:
            self._open(truncated & self._inward())
        x = basis.nodes[:: max(1, len(basis.nodes) // 61)]
        self.autonomous = looks_steady(lambda t: _parts(self._evaluate(t, x)), problem.horizon)

    def fields(self, t: float) -> Fields:
        """The coefficients at time t; the last ones are kept, and all times are one if nothing depends on time."""
        if self._last is not None and (self.autonomous or self._last[0] == t):
            return self._last[1]
        self._last = (t, self._evaluate(t, self.basis.nodes))
        return self._last[1]

    def _evaluate(self, t: float, x: FloatArray) -> Fields:
        problem, d = self.problem, self.dim
        shape = self.shape if x is self.basis.nodes else (len(x),)
        b = problem.b(t, x)
        Lambda = problem.Lambda(t, x)
        if self._constant is None:
            check_elliptic(Lambda, x, t)
        rate = self.background.rate(t, x, problem.r(t, x), b, Lambda)
        slope = self.background.guess_gradient(t, x)
        if slope.any():
            pushed = slope @ self._constant if self._constant is not None else np.einsum("nij,nj->ni", Lambda, slope)
            b = b + pushed / self.background.temperature
        diffusion = self._constant
        if diffusion is None:
            diffusion = Lambda[0] if (Lambda == Lambda[0]).all() else np.moveaxis(Lambda, 0, -1).reshape(d, d, *shape)
        return Fields(np.ascontiguousarray(b.T).reshape(d, *shape), rate.reshape(shape), diffusion)

    def apply(self, fields: Fields, u: FloatArray) -> FloatArray:
        """L u, shape (*shape)."""
        return self.apply_with(fields, u, [apply_axis(D, u, k) for k, D in enumerate(self.D)])

    def apply_with(self, fields: Fields, u: FloatArray, slopes: Sequence[FloatArray]) -> FloatArray:
        """L u where the derivatives of u along the axes are known."""
        diffusion = fields.diffusion
        result = np.asarray(fields.rate * u)
        for k in range(self.dim):
            result += fields.drift[k] * slopes[k]
            if diffusion[k, k].any():
                result += 0.5 * diffusion[k, k] * apply_axis(self.second[k], u, k)
        for (k, m), inner in self._mixed.items():
            if diffusion[k, m].any():
                factor = diffusion[k, m] if inner is None else diffusion[k, m] * inner
                result += factor * apply_axis(self.D[k], slopes[m], k)
        return result

    def dense(self, fields: Fields) -> FloatArray:
        """L as a dense matrix, in one dimension."""
        half = np.broadcast_to(0.5 * fields.diffusion[0, 0], fields.rate.shape)
        return np.asarray(fields.drift[0][:, None] * self.D[0] + half[:, None] * self.second[0] + np.diag(fields.rate))

    def _inward(self) -> BoolArray:
        """(2, d): the faces on which the drift of u points inwards everywhere, at a few times."""
        result: BoolArray = np.ones((2, self.dim), dtype=np.bool_)
        bounds = np.stack(self.basis.box.bounds)
        for t in instants(self.problem.horizon):
            for k in range(self.dim):
                for side in range(2):
                    x = self.basis.nodes[self.basis.nodes[:, k] == bounds[side, k]]
                    drift = self._evaluate(t, x).drift[k]
                    result[side, k] &= bool((drift >= 0).all() if side == 0 else (drift <= 0).all())
        return result

    def _open(self, faces: BoolArray) -> None:
        inner = [np.ones(n) for n in self.shape]
        for k in range(self.dim):
            inner[k][[0, -1]] = np.where(faces[:, k], 0.0, 1.0)
            self.second[k] = inner[k][:, None] * self.second[k]
        for k, m in self._mixed:
            self._mixed[k, m] = self._along(inner[k], k) * self._along(inner[m], m)

    def separable(self, fields: Fields) -> "SeparableOperator":
        """The separable part at one time: per axis, coefficients averaged over the other axes."""
        d = self.dim
        drift = [self._main_effect(fields.drift[k], k) for k in range(d)]
        mean = self._mean(fields.rate)
        rate = [self._main_effect(fields.rate, k) - mean * (1.0 - 1.0 / d) for k in range(d)]
        full = fields.diffusion.ndim > 2
        diffusion = [
            np.maximum(self._main_effect(fields.diffusion[k, k], k), 0.0)
            if full
            else np.full(self.shape[k], fields.diffusion[k, k])
            for k in range(d)
        ]
        matrices = [
            drift[k][:, None] * self.D[k] + 0.5 * diffusion[k][:, None] * self.second[k] + np.diag(rate[k])
            for k in range(d)
        ]
        return SeparableOperator(matrices=matrices, drift=drift, rate=rate, diffusion=diffusion)

    def remainder(self, fields: Fields, frozen: "SeparableOperator") -> Fields:
        """The coefficients of L minus the separable operator."""
        drift = np.stack([fields.drift[k] - self._along(frozen.drift[k], k) for k in range(self.dim)])
        rate = fields.rate - sum(self._along(part, k) for k, part in enumerate(frozen.rate))
        diffusion = fields.diffusion.copy()
        if diffusion.ndim == 2:
            for k in range(self.dim):
                part = frozen.diffusion[k]
                if not (part == diffusion[k, k]).all():
                    diffusion = np.multiply.outer(diffusion, np.ones(self.shape))
                    break
                diffusion[k, k] = 0.0
        if diffusion.ndim > 2:
            for k in range(self.dim):
                diffusion[k, k] = fields.diffusion[k, k] - self._along(frozen.diffusion[k], k)
        return Fields(drift, np.asarray(rate), diffusion)

    def solver(self, fields: Fields, shift: float, inverse: "SeparableInverse", fixed: IntArray) -> Solve:
        """A solver for 1 - shift L, GMRES preconditioned by the separable part; u_i = rhs_i for i in `fixed`."""
        size = self.weights.size
        free = np.ones(size, dtype=np.bool_)
        free[fixed] = False

        def matvec(v: FloatArray) -> FloatArray:
            w = v - shift * self.apply(fields, v.reshape(self.shape)).ravel()
            return np.asarray(np.where(free, w, v))

        def precondition(r: FloatArray) -> FloatArray:
            return np.asarray(np.where(free, inverse(r.reshape(self.shape), shift).ravel(), r))

        def count(_: float) -> None:
            self.iterations += 1

        operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
        preconditioner = LinearOperator((size, size), matvec=precondition, dtype=np.float64)

        def solve(rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
            start = guess.copy()
            start[fixed] = rhs[fixed]
            solution, failed = gmres(
                operator,
                rhs,
                x0=start,
                rtol=rtol,
                atol=0.0,
                restart=_RESTART,
                maxiter=_RESTARTS,
                M=preconditioner,
                callback=count,
                callback_type="pr_norm",
            )
            if failed:
                raise ConvergenceError(
                    f"GMRES did not reach a relative residual of {rtol:.1e} in {_RESTART * _RESTARTS} iterations for"
                    f" {size} unknowns; take smaller time steps or a coarser grid"
                )
            return np.asarray(solution)

        return solve

    def norm(self, u: FloatArray) -> float:
        """The root of the mean square of u under the Gaussian weight of the separable averages."""
        flat = u.ravel()
        return float(np.sqrt(self._mean_weights @ (flat * flat)))

    def _along(self, values: FloatArray, axis: int) -> FloatArray:
        return values.reshape([-1 if k == axis else 1 for k in range(self.dim)])

    def _mean(self, values: FloatArray) -> float:
        return float(reduce(lambda array, w: np.tensordot(w, array, (0, 0)), self._averages, values))

    def _main_effect(self, values: FloatArray, axis: int) -> FloatArray:
        others = [w for k, w in enumerate(self._averages) if k != axis]
        return np.asarray(
            reduce(lambda array, w: np.tensordot(w, array, (0, 0)), others, np.moveaxis(values, axis, -1))
        )


@final
class SeparableInverse:
    """r -> (1 - shift S)^{-1} r for a separable S, by diagonalising its 1-D matrices.

    They are not self-adjoint. Where eigenvectors are too ill-conditioned to be of use, the drift is left out, which
    leaves matrices that are self-adjoint for the nodes' weights: good enough for a preconditioner.
    """

    def __init__(self, operators: "BoxOperators", parts: "SeparableOperator") -> None:
        eigen: list[Any] = [np.linalg.eig(matrix) for matrix in parts.matrices]
        if any(np.linalg.cond(vectors) > _CONDITION for _, vectors in eigen):
            eigen = []
            for k, line in enumerate(operators.basis.lines):
                root = np.sqrt(line.weights)
                mean = float(parts.diffusion[k].mean())
                symmetric = 0.5 * mean * root[:, None] * operators.second[k] / root
                values, vectors = np.linalg.eigh(
                    (symmetric + symmetric.T) / 2 + np.diag(np.minimum(parts.rate[k], 0.0))
                )
                eigen.append((values, vectors / root[:, None]))
        if all(float(np.abs(values.imag).max()) == 0.0 for values, _ in eigen):
            eigen = [(values.real, vectors.real) for values, vectors in eigen]
        self._vectors = [vectors for _, vectors in eigen]
        self._inverses = [np.linalg.inv(vectors) for _, vectors in eigen]
        self._sum = reduce(np.add.outer, [values for values, _ in eigen])

    def __call__(self, r: FloatArray, shift: float) -> FloatArray:
        coefficients = apply_all(self._inverses, r) / (1.0 - shift * self._sum)
        return np.ascontiguousarray(apply_all(self._vectors, coefficients).real)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class SeparableOperator:
    """A sum of operators on one axis each: their dense matrices, and the coefficients these were made from."""

    matrices: list[FloatArray]
    drift: list[FloatArray]
    rate: list[FloatArray]
    diffusion: list[FloatArray]


def check_elliptic(Lambda: FloatArray, x: FloatArray, t: float) -> None:
    """EllipticityError that says where, and which eigenvalue, unless all of Lambda (n, d, d) are positive definite."""
    lowest = np.linalg.eigvalsh(Lambda)[:, 0]
    if (lowest <= 0).any():
        i = int(lowest.argmin())
        raise EllipticityError(
            f"the diffusion is not positive definite at {int((lowest <= 0).sum())} of {len(x)} nodes of the box, worst"
            f" at t={t:.6g}, x={x[i].tolist()}, where its smallest eigenvalue is {lowest[i]:.3g}; take a box without"
            " these points, or make the diffusion elliptic there"
        )


def _normalised(weights: FloatArray) -> FloatArray:
    return np.asarray(weights / weights.sum())


def _parts(fields: Fields) -> tuple[FloatArray, FloatArray, FloatArray]:
    return fields.drift, fields.rate, fields.diffusion
