"""Expectations under the law of a controlled process: by quadrature, from two moments, or by draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.special import roots_legendre

from fem_hjb.evaluation.controlled_law import TIMES, Block, ControlledLaw, embed, probes
from fem_hjb.problems.kernels import affordable_order
from fem_hjb.problems.laws import Law
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.density import DensityLaw
from fem_hjb.support.checks import FloatArray, Rng, gauss_order, spawn_generators
from fem_hjb.support.errors import MeasureError
from fem_hjb.support.progress import Progress, unheard

Integrand = Callable[[float, FloatArray], FloatArray]

_AFFINE = 1e-9  # the same of differences of policies
_ORDER = {1: 64, 2: 24, 3: 12}  # Gauss points per coordinate of laws in closed form
_NEGLIGIBLE = 1e-15  # weight of a point of a rule, relative to the largest
_ORDER_OF_DENSITIES = 4  # on every cell, beyond the degree of the density


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Estimate:
    """A number; its standard error, 0 unless it was sampled; and how it was computed."""

    value: float
    standard_error: float
    how: str


@final
class Expectation:
    """t -> (mean, variance of the mean) of an integrand g(t, X_t).

    additive : whether g is a sum of functions of the groups B: E g = g(z) + sum_B E[ g(z with X_B) - g(z) ] for any z.
    """

    def __init__(
        self, problem: ControlProblem, flow: ControlledLaw, integrand: Integrand, additive: bool, n: int, rng: Rng
    ) -> None:
        self.dim, self.flow, self.integrand, self.n = problem.dim, flow, integrand, n
        self.anchor = problem.initial_law.expectation
        self.rng = spawn_generators(rng, 1)[0]
        if (additive or len(flow.parts) == 1) and max(len(group) for group, _ in flow.parts) <= 3:
            self._rule, self.how = self._quadrature, "quadrature"
        elif self._quadratic(problem):
            self._rule, self.how = self._moments, "from mean and covariance, as the integrand is quadratic"
        else:
            self._rule, self.how = self._sample, f"{n} draws from the law at every time"

    def __call__(self, t: float) -> tuple[float, float]:
        return self._rule(t, [(group, law(t)) for group, law in self.flow.parts])

    def along(self, times: FloatArray, tell: Progress = unheard) -> tuple[FloatArray, FloatArray]:
        """Means and their variances at these times (k,); tell hears of each of them."""
        found = np.empty((len(times), 2))
        for k, t in enumerate(times.tolist()):
            found[k] = self(t)
            tell((k + 1) / len(times))
        means, variances = found.T
        return means, variances

    def _quadratic(self, problem: ControlProblem) -> bool:
        """Whether third differences of g vanish."""
        x, y = probes(problem)
        for t in (float(fraction * problem.horizon) for fraction in TIMES):
            rows = np.stack([self.integrand(t, x + k * (y - x)) for k in range(4)])
            if np.abs(rows[3] - 3 * rows[2] + 3 * rows[1] - rows[0]).max() > _AFFINE * np.abs(rows).max():
                return False
        return True

    def _quadrature(self, t: float, laws: list[tuple[Block, Law]]) -> tuple[float, float]:
        rules = [
            _negligible_left_out(
                *law.quadrature(
                    _ORDER_OF_DENSITIES if isinstance(law, DensityLaw) else affordable_order(law, _ORDER[len(group)])
                )
            )
            for group, law in laws
        ]
        if len(rules) == 1:  # a law that may have lost mass
            x, w = rules[0]
            return float(w @ self.integrand(t, x)), 0.0
        points = [embed(x, group, self.anchor) for (group, _), (x, _) in zip(laws, rules, strict=True)]
        values = self.integrand(t, np.concatenate([self.anchor[None], *points]))
        ends = np.cumsum([len(x) for x in points])[:-1]
        means = [w @ g / w.sum() for g, (_, w) in zip(np.split(values[1:], ends), rules, strict=True)]
        return float(values[0] + sum(mean - values[0] for mean in means)), 0.0

    def _moments(self, t: float, laws: list[tuple[Block, Law]]) -> tuple[float, float]:
        """By 2 d points with the mean and covariance of the law."""
        mean, points = np.empty(self.dim), np.zeros((2, self.dim, self.dim))
        for group, law in laws:
            mean[list(group)] = law.expectation
            values, vectors = np.linalg.eigh(law.covariance)
            root = (vectors * np.sqrt(self.dim * np.maximum(values, 0.0))).T
            points[np.ix_([0], group, group)], points[np.ix_([1], group, group)] = root, -root
        return float(self.integrand(t, mean + points.reshape(-1, self.dim)).mean()), 0.0

    def _sample(self, t: float, laws: list[tuple[Block, Law]]) -> tuple[float, float]:
        x = np.empty((self.n, self.dim))
        for group, law in laws:
            x[:, group] = law.sample(self.n, self.rng)
        values = self.integrand(t, x)
        return float(values.mean()), float(values.var(ddof=1) / self.n) if self.n > 1 else np.inf


def _negligible_left_out(x: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """A rule without the points, far out mostly, that do not count."""
    keep = np.abs(w) > _NEGLIGIBLE * np.abs(w).max()
    return x[keep], w[keep]


def time_rule(horizon: float, times: int) -> tuple[FloatArray, FloatArray]:
    """Points and weights of the Gauss rule for (1/T) int_0^T dt."""
    nodes, weights = roots_legendre(gauss_order(times, "times", MeasureError))
    return (1 + nodes) * horizon / 2, weights / 2
