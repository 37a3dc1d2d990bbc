r"""What a policy earns from every start, on boxes: the linear backward equation of the policy.

J^pi_t(x) = E^pi[ y(X_T) + int_t^T (r - (alpha/2) pi' Lambda^{-1} pi) ds | X_t = x ] solves

    d_t J + <b + pi, grad J> + 1/2 Tr(Lambda Hess J) + r - (alpha/2) pi' Lambda^{-1} pi = 0,   J_T = y.

That is the equation of a control problem with the drift b + pi, the reward r - (alpha/2) pi' Lambda^{-1} pi, and a
temperature A so high that steering does not pay: its value is A log E e^{G/A} = E G + Var G / (2 A) + O(A^-2), G being
what a path earns. So `solve` solves it, with its boxes, grids and error bar. A is 100 / rtol times the largest G that a
few hundred paths have shown, so that what it changes is far below the tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.evaluation.certify import followed, probe
from fem_hjb.paths.extent import checked_box
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.paths.steering import Policy, steer
from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem, ValueFunction, require_box, require_problem
from fem_hjb.reference.solve import solve
from fem_hjb.reference.tolerance import checked_rtol
from fem_hjb.solutions.norms import policy_squares
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.checks import FloatArray, Rng
from fem_hjb.support.objects import Plain
from fem_hjb.support.progress import Progress, checked_progress, checked_seconds

_HOT = 100.0  # over the tolerance: the temperature, by what paths earn; hotter, exp(y / A) of a jump is rounding
_PATHS, _STEPS = 512, 32  # that tell these units


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PolicyValue(Plain):
    """J^pi, (t, x) -> (...), and its gradient, with the error of the solution that it comes from.

    error : the estimated relative error of J^pi, under the law of the steered process.  status : as of the solution.
    """

    solution: Solution | ProductSolution
    error: float
    status: str

    def value(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """J^pi_t(x), shape (...)."""
        return self.solution.value(t, x)

    def gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """grad J^pi_t(x), shape (..., d)."""
        return self.solution.gradient(t, x)


@final
@dataclass(frozen=True, eq=False)
class _Steered:
    """Drift and reward of the process under the policy."""

    problem: ControlProblem
    policy: Policy

    def pi(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        """The policy at one time, or at a time for each point: it is called at one."""
        if np.ndim(t) == 0:
            return steer(self.policy, float(np.asarray(t)), x.reshape(-1, x.shape[-1])).reshape(x.shape)
        times = np.broadcast_to(np.asarray(t), x.shape[:-1])
        found = np.empty_like(x)
        for one in np.unique(times).tolist():
            found[times == one] = steer(self.policy, one, x[times == one])
        return found

    def drift(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        """b + pi."""
        return self.problem.b(t, x) + self.pi(t, x)

    def reward(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        """r - (alpha/2) pi' Lambda^{-1} pi."""
        flat, times = x.reshape(-1, x.shape[-1]), np.broadcast_to(np.asarray(t), x.shape[:-1]).ravel()
        effort = policy_squares(self.problem, times, flat, self.pi(t, x).reshape(flat.shape)).reshape(x.shape[:-1])
        return np.asarray(self.problem.r(t, x) - self.problem.temperature / 2 * effort)


def evaluate_policy(
    problem: ControlProblem,
    policy: Policy | Solution | ProductSolution | ValueFunction | None,
    *,
    rtol: float = 1e-4,
    rng: Rng = 0,
    progress: Progress | None = None,
    max_seconds: float | None = None,
    box: Box | None = None,
) -> PolicyValue:
    """J^pi_t(x) at every (t, x), without sampling, in up to three dimensions that hang together.

    policy : as in `certify`, which is the witness that knows nothing of boxes.  rtol, rng, progress, max_seconds, box :
        as in `solve`. The error is that of a discretisation; of what `solve` checks along paths nothing is checked.

    Raises as `solve`, and ProblemError if the policy is none, or returns a wrong shape or numbers that are not finite.
    """
    require_problem(problem, "evaluate_policy")
    require_box(problem, "evaluate_policy")
    checked_rtol(rtol)
    checked_progress(progress)
    checked_seconds(max_seconds)
    if box is not None:
        checked_box(problem, box)
    pi = followed(problem, policy)
    probe(problem, pi, None, 2)
    of = _Steered(problem, pi)
    steered = replace(
        problem,
        drift=of.drift,
        running_reward=of.reward,
        temperature=_HOT / rtol * _size(problem, of, rng),
        exact=None,
        marginal=None,
        name=f"{problem.name} under a policy",
    )
    solution = solve(
        steered,
        rtol=rtol,
        form="value",
        box=box,
        rng=rng,
        progress=progress,
        max_seconds=max_seconds,
        verify=False,
    )
    estimate = solution.error_estimate
    error = np.nan if estimate is None else float(estimate.value)
    return PolicyValue(solution=solution, error=error, status=solution.status)


def _size(problem: ControlProblem, of: _Steered, rng: Rng) -> float:
    """What a path earns, about, in absolute values."""
    paths = sample_paths(problem, n=_PATHS, steps=_STEPS, rng=rng, policy=of.policy, scheme="euler")
    x = np.asarray(paths.x)
    earned = np.abs(problem.y(x[:, -1])).max()
    running = [np.abs(of.reward(t, x[:, k])).max() for k, t in enumerate(np.asarray(paths.t).tolist())]
    return float(max(earned + problem.horizon * max(running), problem.temperature))
