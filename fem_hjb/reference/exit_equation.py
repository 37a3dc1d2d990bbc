r"""The equation of an exit problem on one basis: linear for f, by Newton's method for v, and for plain expectations.

In the value form Newton's method is policy iteration: with v_k the current iterate, v_{k+1} solves the linear problem

    <b + Lambda grad v_k / alpha, grad v> + (s/2) Tr(Lambda Hess v) + r - 1/(2 alpha) grad v_k' Lambda grad v_k = 0.

It needs an iterate to begin with. Noise and temperature together s times as large, Lambda and alpha in their places
leave the quadratic term of the equation what it is; with s so large that f is far from underflow, the linear form has
it, and s falls to 1 from there, as fast as Newton's method follows (a continuation in the noise: Fleming and Soner,
chapter VI, for the limit of small noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from fem_hjb.problems.exit import ExitProblem
from fem_hjb.reference.steady_operators import SteadyOperators, rightmost, solved
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ConvergenceError, InfiniteValueError
from fem_hjb.support.progress import Progress, unheard

_DEPTH = 20.0  # temperatures of range beyond which the logarithm of f has lost too many digits
_ITERATIONS = 25
_FINE, _COARSE = 1e-11, 1e-6  # relative changes: below the one Newton's method is done, above the other it is not
_LARGEST_NOISE = 4.0**20
_AGREE = 0.5  # ratio of the eigenvalues of two grids from which on they have the same one
_SLOWEST = 0.97  # ratio of two noises beyond which the continuation gives up on this grid


@final
@dataclass(frozen=True, eq=False)
class Settled:
    """v at the nodes, the noise s at which it solves the equation (1 is the problem's own), the form, and what it took.

    A grid too coarse for s = 1 leaves a larger one, from which a finer grid goes on.
    """

    v: FloatArray
    noise: float
    form: str
    steps: int


class InfiniteOnGridError(InfiniteValueError):
    """The value is infinite as one grid has it, which may not resolve what decides that."""

    def __init__(self, name: str, eigenvalue: float) -> None:
        super().__init__(
            f"the value of {name!r} is infinite: running rewards are positive, and the principal eigenvalue of"
            f" G + r/alpha is {eigenvalue:.4g}, where it must be negative (docs/theory.md, Exit problems); lower the"
            " reward, raise the temperature, or make the domain smaller"
        )
        self.name, self.eigenvalue = name, eigenvalue


def verdict(cause: InfiniteOnGridError, eigenvalues: Sequence[float]) -> InfiniteValueError | ConvergenceError:
    """What is to be raised where grids, each finer than the one before, have these eigenvalues.

    They are known if the last two agree. Where the process hardly ever leaves they are next to 0, and their signs are
    those of what grids do not resolve, or of rounding.
    """
    low, high = sorted(eigenvalues[-2:])
    if low > _AGREE * high:
        return cause
    return ConvergenceError(
        f"whether the value of {cause.name!r} is finite is not known: running rewards are positive, and the principal"
        f" eigenvalue of G + r/alpha, which must be negative, is {eigenvalues[-2]:.2g} on one grid and"
        f" {eigenvalues[-1]:.2g} on the next, as where the process hardly ever leaves; lower the reward, raise the"
        " temperature, make the domain smaller, or give a finer mesh"
    )


class ExitEquation:
    """A problem on a basis whose `fixed` nodes lie on absorbing faces."""

    def __init__(self, problem: ExitProblem, basis: SpatialBasis, fixed: IntArray, tell: Progress = unheard) -> None:
        self.problem, self.basis, self.fixed = problem, basis, fixed
        self.operators = SteadyOperators(basis, problem.b, problem.Lambda, problem.constant_diffusion, tell)
        self.rewards = self.operators.at(problem.r)
        self.given = problem.g(basis.nodes[fixed])

    @property
    def growing(self) -> bool:
        """Whether rewards are positive somewhere, so that the value may be infinite."""
        return bool(self.rewards.max() > 0.0)

    def principal(self) -> float:
        """The principal eigenvalue of G + r/alpha with u = 0 on absorbing faces; the value is finite if it is < 0."""
        rate = self.rewards / self.problem.temperature
        free = np.setdiff1d(np.arange(self.basis.n_dofs), self.fixed)
        matrix = self.operators.matrix(rate=rate)[free][:, free]
        bound = max(float(rate.max()), 0.0) + 1e-3 * float(np.abs(rate).max()) + 1e-12
        values, _ = rightmost(matrix, self.operators.mass[free][:, free], bound)
        return float(values[0].real)

    def linear(self, noise: float = 1.0) -> FloatArray | None:
        """v at the nodes by the linear form; None where f is not positive, or too near to underflow."""
        alpha, top = self.problem.temperature * noise, float(self.given.max())
        if float(self.given.min()) < top - _DEPTH * alpha:
            return None
        matrix = self.operators.matrix(noise=noise, rate=self.rewards / alpha)
        f = solved(matrix, np.zeros(self.basis.n_dofs), self.fixed, np.exp((self.given - top) / alpha))
        if not f.min() > 0.0 or np.log(f.max() / f.min()) > _DEPTH:
            return None
        return np.asarray(alpha * np.log(f) + top)

    def newton(self, v: FloatArray, noise: float) -> FloatArray | None:
        """v at the nodes by Newton's method from this iterate; None if it does not converge."""
        operators, alpha, before = self.operators, self.problem.temperature, np.inf
        for _ in range(_ITERATIONS):
            slopes = operators.gradients(v)
            pushed = operators.pushed(slopes)
            earned = self.rewards - (pushed * slopes).sum(axis=-1) / (2.0 * alpha)
            with np.errstate(over="ignore", invalid="ignore"):
                matrix = operators.matrix(noise=noise, drift=pushed / alpha)
                try:
                    new = solved(matrix, -operators.load(earned), self.fixed, self.given)
                except ConvergenceError:
                    return None
            change, size = float(np.abs(new - v).max()), float(np.abs(new).max()) + alpha
            v = new
            if change <= _FINE * size or (change <= _COARSE * size and change > 0.5 * before):
                return v
            if not change < 1e12 * size or change > 1e3 * before:
                return None
            before = change
        return None

    def settle(self, start: Settled | None = None) -> Settled:
        """The solution on this grid, from that on a coarser one, if there is one."""
        if self.growing:
            self._require_finite()
        if start is None or start.form == "linear":
            found = self.linear()
            if found is not None:
                return Settled(found, 1.0, "linear", 1)
        v, noise, steps = (None, 1.0, 0) if start is None or start.form == "linear" else (start.v, start.noise, 0)
        if v is not None:
            v, steps = self.newton(v, noise), 1
        if v is None:
            noise = 1.0
        while v is None:
            noise *= 4.0
            if noise > _LARGEST_NOISE:
                raise ConvergenceError(
                    f"no solution of {self.problem.name!r} was found on this grid, whatever the noise; check the signs"
                    " of the rewards, and that the process can leave the domain"
                )
            v, steps = self.linear(noise), steps + 1
        ratio = 0.5
        while noise > 1.0 and ratio < _SLOWEST:
            target = max(1.0, noise * ratio)
            new = self.newton(v, target)
            steps += 1
            if new is None:
                ratio = np.sqrt(ratio)
            else:
                v, noise, ratio = new, target, max(ratio**1.5, 0.1)
        return Settled(v, noise, "value", steps)

    def _require_finite(self) -> None:
        eigenvalue = self.principal()
        if eigenvalue >= 0.0:
            raise InfiniteOnGridError(self.problem.name, eigenvalue)

    def expectation(self, paid: FloatArray, source: FloatArray | None) -> FloatArray:
        """E[ h(X_tau) + int s dt ] at the nodes: paid, h at the fixed nodes; source, s at the points of the rule."""
        rhs = np.zeros(self.basis.n_dofs) if source is None else -self.operators.load(source)
        return solved(self.operators.matrix(), rhs, self.fixed, paid)

    def leaving(self, v: FloatArray | None = None) -> tuple[float, FloatArray]:
        """How far rounding moves the constant 1, and the mean time until the exit at the nodes (n,).

        The constant is the solution where 1 is paid at every exit and nothing on the way. Rounding acts as if the
        process were killed, or born, at a rate of about 1e-16 times the largest entries; that decides where it hardly
        ever leaves. Infinite, and nan, where the matrix is singular.

        v : under whose policy the process goes; None: without control.
        """
        operators, n = self.operators, self.basis.n_dofs
        drift = None if v is None else operators.pushed(operators.gradients(v)) / self.problem.temperature
        rhs = np.stack([np.zeros(n), -operators.load(np.ones(operators.x.shape[:2]))], axis=1)
        given = np.tile([1.0, 0.0], (len(self.fixed), 1))
        try:
            one, times = solved(operators.matrix(drift=drift), rhs, self.fixed, given).T
        except ConvergenceError:
            return float("inf"), np.full(n, np.nan)
        return float(np.abs(one - 1.0).max()), np.ascontiguousarray(times)


def differences(
    problem: ExitProblem,
    rule: tuple[FloatArray, FloatArray],
    first: Any,
    second: Any,
    *,
    policies: bool = True,
    least: float = 1e-6,
) -> tuple[float, float]:
    """How far two functions are apart relative to the second: values, and gradients as policies or as they are.

    rule : points (n, d) and weights (n,) of the domain.  least : temperatures that a value counts as, at the least.
    """
    x, weights = rule
    weights = weights / weights.sum()
    Lambda, alpha = problem.Lambda(x), problem.temperature
    values, slopes = second.value(x), second.gradient(x)

    def norms(v: FloatArray, slope: FloatArray) -> tuple[float, float]:
        squares = np.einsum("ni,nij,nj->n", slope, Lambda, slope)
        return float(np.sqrt(weights @ v**2)), float(np.sqrt(weights @ squares))

    apart = norms(first.value(x) - values, first.gradient(x) - slopes)
    size = norms(values, slopes)
    smallest = least * alpha if policies else 1e-300
    lower, upper = x.min(axis=0), x.max(axis=0)
    steep = (
        least * (alpha if policies else size[0]) * float(np.sqrt(np.abs(Lambda).max())) / float((upper - lower).max())
    )
    return apart[0] / max(size[0], smallest), apart[1] / max(size[1], steep, 1e-300)
