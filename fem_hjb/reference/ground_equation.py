r"""The principal eigenpair of a process that goes on for ever, on one basis: average reward, value, law and gap.

(G + r/alpha) phi = (lambda/alpha) phi, phi > 0, for G = <b, grad> + 1/2 Tr(Lambda Hess); with w = alpha log phi this is

    <b, grad w> + (s/2) Tr(Lambda Hess w) + r + 1/(2 alpha) grad w' Lambda grad w = lambda,       s = 1.

Where phi spans too much for a linear equation, Newton's method solves for w and lambda together, from a larger s, with
which noise and temperature are multiplied, down to 1 (as in `exit_equation`). Under the policy Lambda grad w / alpha
the generator is G_pi = phi^{-1} (G + r/alpha - lambda/alpha) phi (Doob's transform): it has the same spectrum, moved so
that the principal eigenvalue is 0, with the eigenvector 1 and the stationary density as the left one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import scipy.sparse as sp

from fem_hjb.problems.exit import ExitProblem
from fem_hjb.reference.steady_operators import SteadyOperators, factors, rightmost
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress, unheard

_DEPTH = 20.0  # temperatures of range beyond which the logarithm of phi has lost too many digits
_ITERATIONS = 25
_FINE, _COARSE = 1e-11, 1e-6
_LARGEST_NOISE = 4.0**20
_SLOWEST = 0.97
_EIGENVALUES = 6  # nearest to 0, among which the gap is looked for


@final
@dataclass(frozen=True, eq=False)
class Ground:
    """w at the nodes, of mean 0 under the density p (nodes, too); lambda; the noise and the form they were found with.

    scale : E |r - lambda| under p.  pace : one over the time in which the
    process crosses the box.
    """

    w: FloatArray
    average: float
    density: FloatArray
    noise: float
    form: str
    scale: float
    pace: float


class GroundEquation:
    """A process at rest, without faces that absorb, on a basis."""

    def __init__(self, problem: ExitProblem, basis: SpatialBasis, tell: Progress = unheard) -> None:
        self.problem, self.basis = problem, basis
        self.operators = SteadyOperators(basis, problem.b, problem.Lambda, problem.constant_diffusion, tell)
        self.rewards = self.operators.at(problem.r)
        lower, upper = basis.box.bounds
        width = float((upper - lower).max())
        noise = problem.Lambda(basis.nodes)
        self.pace = float(np.sqrt((self.operators.b**2).mean())) / width + float(np.abs(noise).max()) / width**2

    def linear(self, noise: float = 1.0) -> tuple[FloatArray, float] | None:
        """w and lambda by the linear equation; None where phi is not positive, or spans too much."""
        alpha = self.problem.temperature * noise
        top = float(self.rewards.max())
        matrix = self.operators.matrix(noise=noise, rate=(self.rewards - top) / alpha)
        values, vectors = rightmost(matrix, self.operators.mass, noise * self.pace)
        phi = np.asarray(vectors[:, 0].real)
        phi = phi * np.sign(phi[np.argmax(np.abs(phi))])
        if abs(values[0].imag) > 1e-8 * self.pace or not phi.min() > 0.0 or np.log(phi.max() / phi.min()) > _DEPTH:
            return None
        return np.asarray(alpha * np.log(phi / phi.max())), float(alpha * values[0].real + top)

    def newton(self, w: FloatArray, noise: float) -> tuple[FloatArray, float] | None:
        """w and lambda by Newton's method from this w; None if it does not converge."""
        operators, alpha, before = self.operators, self.problem.temperature, np.inf
        ones = operators.load(np.ones(operators.x.shape[:2]))
        pinned = int(np.argmax(w))
        border = sp.csr_matrix(([1.0], ([0], [pinned])), shape=(1, len(w)))
        w = w - w[pinned]
        for _ in range(_ITERATIONS):
            slopes = operators.gradients(w)
            pushed = operators.pushed(slopes)
            earned = self.rewards - (pushed * slopes).sum(axis=-1) / (2.0 * alpha)
            with np.errstate(over="ignore", invalid="ignore"):
                matrix = operators.matrix(noise=noise, drift=pushed / alpha)
                try:
                    whole = factors(sp.bmat([[matrix, -ones[:, None]], [border, None]]))
                except ConvergenceError:
                    return None
                new = whole.solve(np.append(-operators.load(earned), 0.0))
            change = float(np.abs(new[:-1] - w).max())
            size = float(np.abs(new[:-1]).max()) + alpha
            w = new[:-1]
            if change <= _FINE * size or (change <= _COARSE * size and change > 0.5 * before):
                return w, float(new[-1])
            if not change < 1e12 * size or change > 1e3 * before:
                return None
            before = change
        return None

    def settle(self, start: Ground | None = None) -> Ground:
        """The eigenpair on this grid, from that on a coarser one, if there is one, whose w is at the nodes of this."""
        if start is None or start.form == "linear":
            found = self.linear()
            if found is not None:
                return self._with_law(*found, 1.0, "linear")
        noise, best = 1.0, None
        if start is not None and start.form == "value":
            noise, best = start.noise, self.newton(start.w, start.noise)
            noise = noise if best is not None else 1.0
        while best is None:
            noise *= 4.0
            if noise > _LARGEST_NOISE:
                raise ConvergenceError(
                    f"no ground state of {self.problem.name!r} was found on this grid, whatever the noise; check the"
                    " signs of the rewards, and that rewards or the drift hold the process back"
                )
            best = self.linear(noise)
        ratio = 0.5
        while noise > 1.0 and ratio < _SLOWEST:
            target = max(1.0, noise * ratio)
            new = self.newton(best[0], target)
            if new is None:
                ratio = float(np.sqrt(ratio))
            else:
                best, noise, ratio = new, target, max(ratio**1.5, 0.1)
        return self._with_law(*best, noise, "value")

    def _controlled(self, w: FloatArray) -> Any:
        """The weak form of the generator under the policy of w."""
        pushed = self.operators.pushed(self.operators.gradients(w))
        return self.operators.matrix(drift=pushed / self.problem.temperature)

    def _with_law(self, w: FloatArray, average: float, noise: float, form: str) -> Ground:
        """The stationary density p of the controlled process: int p G_pi g = 0 for all g, int p = 1."""
        operators = self.operators
        ones = operators.load(np.ones(operators.x.shape[:2]))[:, None]
        whole = factors(sp.bmat([[self._controlled(w).T, ones], [ones.T, None]]))
        density = np.asarray(whole.solve(np.append(np.zeros(len(w)), 1.0))[:-1])
        law = operators.values(density)
        w = w - operators.integral(law * operators.values(w))
        scale = operators.integral(np.abs(law * (self.rewards - average)))
        return Ground(w, average, density, noise, form, scale, self.pace)

    def gap(self, ground: Ground) -> float:
        """The least real part of the other eigenvalues of -G_pi, among those nearest to 0."""
        count = min(_EIGENVALUES, self.basis.n_dofs - 2)
        values, _ = rightmost(self._controlled(ground.w), self.operators.mass, self.pace, count)
        others = np.delete(values, np.argmin(np.abs(values)))
        return float(-others.real.max())
