r"""The equation of a box on one panel of time where u is prescribed at absorbing faces, or its adjoint at walls.

Both are for implicit steps.

At absorbing faces u = exp((g - v0) / alpha) with the exit reward g, or w = g - v0 in the value form, whose stages are
found by Newton's method. The nodes between them are a tensor grid again: on
it 1 - c L is inverted by LU of a banded matrix in one dimension, and in more by GMRES, preconditioned by the separable
part of L, which is inverted by diagonalising its 1-D matrices (R. E. Lynch, J. R. Rice and D. H. Thomas, Numer. Math. 6
(1964) 185-199). Lawson's method is no choice: its order falls to one where values are prescribed.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from scipy.linalg.lapack import dgbtrf, dgbtrs
from scipy.sparse.linalg import LinearOperator, gmres

from fem_hjb.problems.box import BoolArray
from fem_hjb.reference.box_adjoint import Adjoint
from fem_hjb.reference.box_averages import averages
from fem_hjb.reference.box_grading import transfer
from fem_hjb.reference.box_panel import Equation, Grid, Operators
from fem_hjb.reference.faces import moved_to_faces
from fem_hjb.spaces.axes import apply_all, apply_sum
from fem_hjb.stepping.adaptive import Panel, Size
from fem_hjb.stepping.esdirk import LinearSystem, Solve
from fem_hjb.stepping.implicit import ImplicitPanel
from fem_hjb.stepping.lawson import LawsonPanel
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError

_CONDITION = 1e7  # of eigenvectors, beyond which only the self-adjoint part of an operator is diagonalised
_LEAST = 0.5  # of 1 - shift times an eigenvalue
_AFTER = 1e-12  # of the horizon
_FALL = 0.1  # of the residual, by the preconditioner alone
_RESTART, _RESTARTS = 40, 5
_ITERATIONS, _INNER = 8, 1e-8  # of Newton's method; residuals of its linear equations
_SETTLED = 1e-7  # relative: after a change below it one more is enough, as the next would be its square


def panel_of(equation: Equation, operators: Operators, size: Size) -> Panel:
    """The method for a panel: Lawson's, or implicit steps where values are prescribed on faces."""
    if not equation.absorbing.any():
        return LawsonPanel(operators.separable, operators.remainder, size, damped=operators.damped)
    system = FaceSystem(equation, operators) if equation.linear else ValueSystem(equation, operators)
    return ImplicitPanel(system, operators.table.s0, operators.table.s1, size)


def begun(equation: Equation, grid: Grid, s: float, before: tuple[Grid, FloatArray] | None) -> FloatArray:
    """u or w on the grid of a panel at its start s, from what it was on the grid before, or at T."""
    if before is not None:
        u = transfer(before[1], before[0], grid)
        u = u.copy() if u is before[1] else u  # the end of a panel stays what it is
    elif equation.averaged:
        u = averages(grid, equation.at_end, equation.deeper)
    else:
        u = equation.at_end(grid.nodes).reshape(grid.shape)
    if equation.absorbing.any():
        fixed = on_faces(grid, equation.absorbing)
        u.ravel()[fixed.ravel()] = prescribed(equation, s, grid.nodes[fixed.ravel()])
    return u


def between(grid: Grid, absorbing: BoolArray) -> tuple[slice, ...]:
    """The nodes that are on none of these faces (2, d)."""
    return tuple(slice(int(low), n - int(high)) for n, (low, high) in zip(grid.shape, absorbing.T, strict=True))


def on_faces(grid: Grid, absorbing: BoolArray) -> BoolArray:
    """(*shape): which nodes are on these faces (2, d)."""
    fixed = np.ones(grid.shape, dtype=np.bool_)
    fixed[between(grid, absorbing)] = False
    return fixed


def prescribed(equation: Equation, s: float | FloatArray, x: FloatArray) -> FloatArray:
    """u = exp((g - v0) / alpha) or w = g - v0 at points x (..., d) of absorbing faces, just after s if it jumps there.

    s : a number or (...,).
    """
    problem = equation.problem
    t = np.clip(problem.horizon * (1 - _AFTER) - s, 0.0, problem.horizon)
    left = problem.exit_reward(t, x) - equation.gauge.guess(t, x)
    return np.asarray(np.exp(left / problem.temperature) if equation.linear else left)


def exit_rewards(equation: Equation, x: FloatArray) -> list[FloatArray]:
    """Those at points (n, d) of the box moved to each absorbing face, at a few times."""
    problem = equation.problem
    times = problem.horizon * np.array([0.0, 0.5, 1.0])
    return [problem.exit_reward(float(t), face) for face in moved_to_faces(problem, x) for t in times]


@final
@dataclass(frozen=True, eq=False)
class _Stiffness:
    """L or its adjoint at one time to go, as something that vectors are multiplied with."""

    operators: Operators | Adjoint
    s: float

    def __matmul__(self, u: FloatArray) -> FloatArray:
        operators = self.operators
        full = u.reshape(operators.grid.shape)
        return np.asarray(apply_sum(operators.axes, full) + operators.remainder(self.s, full)).ravel()


@final
class Linearised:
    """The value form linearised at w (*shape) at a time to go: as something that vectors are multiplied with.

    drift : b + Lambda grad w / alpha, without what S has of it, along each axis.
    """

    def __init__(self, operators: Operators, s: float, w: FloatArray) -> None:
        self.operators, self.s = operators, s
        self.drift = operators.steered(s, w)

    def __matmul__(self, v: FloatArray) -> FloatArray:
        operators, full = self.operators, v.reshape(self.operators.grid.shape)
        result = apply_sum(operators.axes, full)
        slopes = operators.gradient(full)
        for drift, slope in zip(self.drift, slopes, strict=True):
            result += drift * slope
        operators.add_second_order(operators.table.at(self.s), full, slopes, result)
        return np.asarray(result).ravel()

    @property
    def separable(self) -> list[FloatArray]:
        """S with the averages of the drift over the other axes."""
        operators = self.operators
        return [
            S + operators.main_effect(drift, k)[:, None] * line.derivative
            for k, (S, drift, line) in enumerate(
                zip(operators.separable, self.drift, operators.grid.lines, strict=True)
            )
        ]


class _NodeSystem(LinearSystem):
    """u' = L u, or p' = L* p, on the nodes of a panel, prescribed on the faces held (2, d).

    applied : what L or L* is applied by;  backward : the operators of L, whose table has the coefficients.
    """

    def __init__(self, applied: Operators | Adjoint, backward: Operators, held: BoolArray) -> None:
        self.applied, self.backward, grid = applied, backward, backward.grid
        self.mass = sp.identity(grid.size, format="csr")
        self.free = between(grid, held)
        self.fixed = np.flatnonzero(on_faces(grid, held))
        self.factors = grid.dim == 1
        self._last = _Stiffness(applied, backward.table.s0)

    def to_go(self, t: float) -> float:
        """The time to go at a time of the steps."""
        return t

    def stiffness(self, t: float) -> Any:
        s = self.to_go(t)
        if s != self._last.s and len(self.backward.table.nodes) > 1:
            self._last = _Stiffness(self.applied, s)
        return self._last

    def solver(self, stiffness: Any, shift: float) -> Solve:
        if shift == 0.0:
            return lambda rhs, guess, rtol: rhs
        if self.backward.grid.dim == 1:
            return self.banded(stiffness.s, shift)
        return _Krylov(stiffness, shift, self.free, self._inverse)

    @abstractmethod
    def banded(self, s: float, shift: float) -> Solve:
        """The solver of one dimension."""

    @cached_property
    def _bands(self) -> "_Bands":
        return _Bands(self.backward, self.fixed)

    @cached_property
    def _inverse(self) -> "SeparableInverse":
        parts = list(zip(self.applied.separable, self.backward.grid.lines, self.free, strict=True))
        return SeparableInverse(
            [S[part, part] for S, _, part in parts], [line.weights[part] for _, line, part in parts]
        )


class FaceSystem(_NodeSystem):
    """u' = L(s) u on the nodes of a panel, u prescribed at absorbing faces."""

    def __init__(self, equation: Equation, operators: Operators) -> None:
        super().__init__(operators, operators, equation.absorbing)
        self.equation = equation
        self._nodes = operators.grid.nodes[self.fixed]
        self._end = operators.table.s1 - 2 * _AFTER * equation.problem.horizon  # before what is prescribed may jump

    def fixed_values(self, t: float) -> FloatArray:
        return prescribed(self.equation, min(t, self._end), self._nodes)

    def fixed_at(self, times: FloatArray) -> FloatArray:
        """In one call: most of the cost of a step in one dimension are calls."""
        x = np.broadcast_to(self._nodes, (times.size, *self._nodes.shape))
        s = np.broadcast_to(np.minimum(times, self._end)[:, None], x.shape[:-1])
        return prescribed(self.equation, s, x)

    def banded(self, s: float, shift: float) -> Solve:
        return self._bands.solver(s, shift)


@final
class ValueSystem(FaceSystem):
    """w' = L(s) w + alpha rate + <Lambda grad w, grad w> / (2 alpha), w prescribed at absorbing faces.

    Stages are found by Newton's method: the equation linearised at w has the drift under its policy.
    """

    _kept: "SeparableInverse | None" = None

    def solver(self, stiffness: Any, shift: float) -> Solve:
        if shift == 0.0:
            return lambda rhs, guess, rtol: rhs
        return partial(self._newton, stiffness, shift)

    def _newton(self, stiffness: Any, shift: float, rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
        w, before = guess.copy(), np.inf
        w[self.fixed] = rhs[self.fixed]
        for _ in range(_ITERATIONS):
            left = rhs - w + shift * (stiffness @ w)
            left[self.fixed] = 0.0
            if not np.isfinite(left).all():
                break
            linear = Linearised(self.backward, stiffness.s, w.reshape(self.backward.grid.shape))
            change = self._linear(linear, shift)(left, np.zeros_like(w), _INNER)
            w += change
            size = float(np.abs(change).max()) / max(float(np.abs(w).max()), 1e-300)
            if size <= rtol or before <= _SETTLED:
                return w
            before = size
        raise ConvergenceError("Newton's method found no stage of an implicit step")

    def _linear(self, linear: Linearised, shift: float) -> Solve:
        if self.backward.grid.dim == 1:
            return self._bands.solver(linear.s, shift, linear.drift[0])
        return _Krylov(linear, shift, self.free, self._steered_inverse(linear))

    def _steered_inverse(self, linear: Linearised) -> "SeparableInverse":
        """That of the first policy of the panel, averaged over the other axes."""
        if self._kept is None:
            parts = list(zip(linear.separable, self.backward.grid.lines, self.free, strict=True))
            self._kept = SeparableInverse(
                [S[part, part] for S, _, part in parts], [line.weights[part] for _, line, part in parts]
            )
        return self._kept


@final
class HeldSystem(_NodeSystem):
    """p' = L* p forward in time on the nodes of a panel, p = 0 at absorbing faces."""

    def __init__(self, adjoint: Adjoint, absorbing: BoolArray, horizon: float) -> None:
        super().__init__(adjoint, adjoint.operators, absorbing)
        self.horizon = horizon

    def to_go(self, t: float) -> float:
        return self.horizon - t

    def banded(self, s: float, shift: float) -> Solve:
        return self._bands.adjoint_solver(s, shift, self.backward.grid.lines[0].weights)


@final
class _Bands:
    """L of one dimension as bands, (3 p + 1, n) as LAPACK has them: elements of degree p couple p neighbours."""

    def __init__(self, operators: Operators, fixed: IntArray) -> None:
        line = operators.grid.lines[0]
        self.table, self.varies = operators.table, operators.constant is None
        self.p, n = line.degree, line.n
        offset = np.arange(-2 * self.p, self.p + 1)[:, None]  # row minus column
        self._row = np.arange(n) + offset
        self._known = (self._row >= 0) & (self._row < n) & (np.abs(offset) <= self.p)
        self._row = np.clip(self._row, 0, n - 1)
        self._fixed, self._nodes = np.isin(self._row, fixed), fixed
        self._eye = np.where(offset == 0, 1.0, 0.0) * np.ones(n)
        second = operators.inner[0][:, None] * line.laplacian
        self._parts = [self._banded(part) for part in (operators.separable[0], line.derivative, second)]

    def _banded(self, matrix: FloatArray) -> FloatArray:
        return np.where(self._known, matrix[self._row, np.arange(len(matrix))], 0.0)

    def solver(self, s: float, shift: float, drift: FloatArray | None = None) -> Solve:
        """Of (1 - shift L) u = rhs; with this drift (n,) besides S instead of that of the table, without a reward."""
        lu, pivots = self._factored(s, shift, drift)

        def solve(rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
            return np.asarray(dgbtrs(lu, self.p, self.p, rhs, pivots)[0])

        return solve

    def adjoint_solver(self, s: float, shift: float, weights: FloatArray) -> Solve:
        """Of (1 - shift L*) p = rhs, with L* = W^{-1} L' W; p is 0 where it is fixed."""
        lu, pivots = self._factored(s, shift)

        def solve(rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
            p = dgbtrs(lu, self.p, self.p, weights * rhs, pivots, trans=1)[0] / weights
            p[self._nodes] = 0.0
            return np.asarray(p)

        return solve

    def _factored(self, s: float, shift: float, drift: FloatArray | None = None) -> tuple[FloatArray, IntArray]:
        fields, (S, D, D2) = self.table.at(s), self._parts
        if drift is None:
            L = S + fields[0][self._row] * D + fields[1][self._row] * self._eye
        else:
            L = S + drift[self._row] * D
        if self.varies:
            L += 0.5 * fields[2][self._row] * D2
        bands = self._eye - np.where(self._fixed, 0.0, shift * L)
        lu, pivots, failed = dgbtrf(np.asfortranarray(bands), self.p, self.p, overwrite_ab=True)
        if failed:
            raise ConvergenceError("the matrix of an implicit step is singular or not finite")
        return lu, pivots


@final
class SeparableInverse:
    """r -> (1 - shift S)^{-1} r for S = sum_k 1 x .. x S_k x .. x 1, by diagonalising the S_k: a preconditioner.

    They are not self-adjoint. Where eigenvectors are too ill-conditioned to be of use, what is not self-adjoint for the
    weights of the nodes is left out. Modes that grow fast are taken to grow more slowly, so that the inverse exists.
    """

    def __init__(self, matrices: Sequence[FloatArray], weights: Sequence[FloatArray]) -> None:
        eigen: list[Any] = [np.linalg.eig(S) for S in matrices]
        for k, (S, w) in enumerate(zip(matrices, weights, strict=True)):
            if np.linalg.cond(eigen[k][1]) > _CONDITION:
                root = np.sqrt(w)
                symmetric = root[:, None] * S / root
                values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
                eigen[k] = values, vectors / root[:, None]
        if all(float(np.abs(values.imag).max()) == 0.0 for values, _ in eigen):
            eigen = [(values.real, vectors.real) for values, vectors in eigen]
        self._vectors = [np.ascontiguousarray(vectors) for _, vectors in eigen]
        self._inverses = [np.linalg.inv(vectors) for vectors in self._vectors]
        self._sum = reduce(np.add.outer, [values for values, _ in eigen])

    def __call__(self, r: FloatArray, shift: float) -> FloatArray:
        damped = 1.0 - shift * self._sum
        divisor = np.where(damped.real < _LEAST, damped + (_LEAST - damped.real), damped)
        return np.ascontiguousarray(apply_all(self._vectors, apply_all(self._inverses, r) / divisor).real)


@final
class _Krylov:
    """A `Solve` for 1 - shift L between the faces: the preconditioner alone as long as it will do, then GMRES."""

    def __init__(
        self, stiffness: _Stiffness | Linearised, shift: float, free: tuple[slice, ...], inverse: SeparableInverse
    ) -> None:
        self.stiffness, self.shift, self.free, self.inverse = stiffness, shift, free, inverse
        self.whole = np.zeros(stiffness.operators.grid.shape)
        self.shape = self.whole[free].shape

    def __call__(self, rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
        result = rhs.reshape(self.whole.shape).copy()
        result[self.free] = 0.0
        known = rhs + self.shift * (self.stiffness @ result.ravel())
        b = known.reshape(self.whole.shape)[self.free].ravel()
        u = guess.reshape(self.whole.shape)[self.free].ravel()
        enough, before = rtol * float(np.linalg.norm(b)), np.inf
        left = b - self._matvec(u)
        while (size := float(np.linalg.norm(left))) > enough:
            if not size < _FALL * before:
                u = self._gmres(b, u, rtol)
                break
            u, before = u + self._precondition(left), size
            left = b - self._matvec(u)
        result[self.free] = u.reshape(self.shape)
        return result.ravel()

    def _matvec(self, v: FloatArray) -> FloatArray:
        self.whole[self.free] = v.reshape(self.shape)
        pushed = (self.stiffness @ self.whole.ravel()).reshape(self.whole.shape)[self.free]
        return np.asarray(v - self.shift * pushed.ravel())

    def _precondition(self, v: FloatArray) -> FloatArray:
        return self.inverse(v.reshape(self.shape), self.shift).ravel()

    def _gmres(self, b: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
        count = b.size
        solution, failed = gmres(
            LinearOperator((count, count), matvec=self._matvec, dtype=np.float64),
            b,
            x0=guess,
            rtol=rtol,
            atol=0.0,
            restart=_RESTART,
            maxiter=_RESTARTS,
            M=LinearOperator((count, count), matvec=self._precondition, dtype=np.float64),
        )
        if failed:
            raise ConvergenceError(f"GMRES did not reach a relative residual of {rtol:.1e} for {count} unknowns")
        return np.asarray(solution)
