"""What Fokker-Planck equations start from: the steered process and its first law; and the rows of a solved one."""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import roots_hermitenorm

from fem_hjb.paths.steering import Policy, require_policy, steer
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.laws import Gaussian, Law, MarginalLaw, PointMass, tensor_rule
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import SpaceError
from fem_hjb.support.objects import Plain
from fem_hjb.support.progress import Progress, unheard

_POINT = {1: 2e-3, 2: 4e-3, 3: 1e-2}  # t_0, in units of the time scale of the drift


@final
@dataclass(frozen=True, eq=False)
class Begin:
    """The time from which the law has a density, that law, and the laws before."""

    time: float
    law: Law
    early: MarginalLaw | None = None


@final
@dataclass(frozen=True, eq=False)
class March:
    """The panels of a density, in increasing time: space, and coefficients of its shape.

    weights : of the dofs of each in the mass.
    left : what was not resolved where no grid that is allowed resolves it, relative to the maximum.
    """

    panels: list[tuple[Space, FloatArray]]
    weights: list[FloatArray]
    counts: dict[str, Any]
    left: float = 0.0


def steered(problem: ControlProblem, policy: Policy | None, tell: Progress = unheard) -> ControlProblem:
    """The same process, steered by the policy, with nothing to gain; tell hears of every call of its drift."""
    if policy is not None:
        require_policy(policy)
    known = policy is None and isinstance(problem.drift, LinearDrift)
    return replace(
        problem,
        drift=problem.drift if known else _Steered(problem=problem, policy=policy, tell=tell),
        terminal_reward=_nothing,
        running_reward=None,
        exact=None,
        marginal=None,
    )


def _nothing(x: FloatArray) -> FloatArray:
    return np.zeros(x.shape[:-1])


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _Steered(Plain):
    """b + pi."""

    problem: ControlProblem
    policy: Policy | None
    tell: Progress

    def __call__(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        self.tell(0.0)
        if self.policy is None:
            return self.problem.b(t, x)
        if np.ndim(t) and solution_of(self.policy) is not None:  # which takes many times at once
            return self.problem.b(t, x) + np.asarray(self.policy(np.broadcast_to(t, x.shape[:-1]), x))  # type: ignore[arg-type]
        return self.problem.b(t, x) + _steer(self.policy, t, x, self.tell)


def solution_of(policy: Policy | None) -> Solution | ProductSolution | None:
    """The solution whose method the policy is, or None."""
    owner = getattr(policy, "__self__", None)
    return owner if isinstance(owner, Solution | ProductSolution) else None


def breaks_of(policy: Policy | None) -> FloatArray:
    """The times at which the policy of a solution jumps: where its panels meet."""
    solution = solution_of(policy)
    parts = [part for _, part in solution.parts] if isinstance(solution, ProductSolution) else [solution]
    spaces = [part.space for part in parts if part is not None]
    times = [panel.time.bounds[0] for space in spaces if isinstance(space, PanelSpace) for panel in space.panels[1:]]
    return np.unique(np.array(times, dtype=np.float64))


def accuracy_of(policy: Policy | None) -> float:
    """What the policy of a solution is estimated to be wrong by, relative; 0 for any other."""
    solution = solution_of(policy)
    estimate = None if solution is None else solution.error_estimate
    return 0.0 if estimate is None else estimate.policy


def _steer(policy: Policy, t: ArrayLike, x: FloatArray, tell: Progress) -> FloatArray:
    """The policy at points x (..., d), for one time or, one after the other, several of them."""
    if np.ndim(t) == 0:
        return steer(policy, float(np.asarray(t)), x.reshape(-1, x.shape[-1])).reshape(x.shape)
    times = np.broadcast_to(t, x.shape[:-1])
    result = np.empty(x.shape)
    for s in np.unique(times):
        tell(0.0)
        result[times == s] = _steer(policy, s, x[times == s], tell)
    return result


def begin_of(problem: ControlProblem, basis: SpatialBasis | None) -> Begin:
    """The law to start from; after a point, at a time at which a given basis resolves it."""
    law, T = problem.initial_law, problem.horizon
    if not isinstance(law, PointMass):
        return Begin(0.0, law)
    x0 = law.expectation
    Lambda = np.linalg.eigvalsh(problem.Lambda(0.0, x0))
    reach = 1e-3 * np.sqrt(Lambda[-1] * T)
    steps = reach * np.eye(problem.dim)
    jacobian = (problem.b(0.0, x0 + steps) - problem.b(0.0, x0 - steps)) / (2 * reach)
    start = _POINT[problem.dim] / max(1.0 / T, float(np.linalg.norm(jacobian, 2)))
    if basis is not None:
        cell = basis.locate(x0[None])[0][0]
        spacing = float(np.ptp(basis.nodes[basis.cell_dofs[cell]], axis=0).max()) / basis.degree
        start = max(start, (3.0 * spacing) ** 2 / Lambda[0])
        if cell < 0 or start > T / 2:
            raise SpaceError(
                f"the grid does not resolve a process that starts at {x0.tolist()}: "
                + ("that lies outside" if cell < 0 else f"its law is as wide as 3 nodes only at t={start:.3g}")
                + "; take smaller cells there, or leave basis= and mesh= to be chosen"
            )

    early = _Early(problem=problem)
    return Begin(start, early(start), early)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _Early(Plain):
    """The laws of a process soon after it starts at a point."""

    problem: ControlProblem

    def __call__(self, t: float) -> Law:
        law = self.problem.initial_law
        return Gaussian(*_closure(self.problem, law.expectation, t)) if t > 0 else law


def _closure(problem: ControlProblem, x0: FloatArray, t: float) -> tuple[FloatArray, FloatArray]:
    """Mean (d,) and covariance (d, d) at a small time t by the moment equations of the module: 8 Runge-Kutta steps."""
    nodes, weights = roots_hermitenorm(5)
    z, w = tensor_rule(nodes, weights / weights.sum(), problem.dim)

    def slope(s: float, mean: FloatArray, cov: FloatArray) -> tuple[FloatArray, FloatArray]:
        values, vectors = np.linalg.eigh(cov)
        offsets = z @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
        b = problem.b(s, mean + offsets)
        gain = np.einsum("n,ni,nj->ij", w, b, offsets)
        return w @ b, np.tensordot(w, problem.Lambda(s, mean + offsets), 1) + gain + gain.T

    mean, cov, h = x0, np.zeros((x0.size, x0.size)), t / 8
    for s in h * np.arange(8):
        k1 = slope(s, mean, cov)
        k2 = slope(s + h / 2, mean + h / 2 * k1[0], cov + h / 2 * k1[1])
        k3 = slope(s + h / 2, mean + h / 2 * k2[0], cov + h / 2 * k2[1])
        k4 = slope(s + h, mean + h * k3[0], cov + h * k3[1])
        mean, cov = (
            old + h / 6 * (a + 2 * b + 2 * c + d) for old, a, b, c, d in zip((mean, cov), k1, k2, k3, k4, strict=True)
        )
    return mean, cov


def no_gauge(problem: ControlProblem) -> Gauge:
    return Gauge(temperature=problem.temperature, horizon=problem.horizon, terminal=0.0, running=0.0)
