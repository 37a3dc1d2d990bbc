r"""How far a control is from the optimal one, and what it earns: the figures of the literature on control matching.

That literature steers dX = (b + sigma u) dt + lambda^{1/2} sigma dB at the cost E[ int |u|^2/2 - r dt - y(X_T) ]. With
Lambda = lambda sigma sigma', alpha = lambda and pi = sigma u this is our problem, its cost is -J, and

    |u|^2 = pi' (sigma sigma')^{-1} pi = alpha pi' Lambda^{-1} pi.

Its measure of a control is the error of u under the law P* of the optimally controlled process,

    (1/T) E* int_0^T |u_t - u*_t|^2 dt = (alpha/T) E* int_0^T (pi - pi*)' Lambda^{-1} (pi - pi*) dt,

the integral ending where the process does. The same under the law of pi's own paths is twice the reward lost per unit
of time, J(pi*) - J(pi) = 1/2 E^pi int |u - u*|^2 dt.

Laws are not simulated. They are Gaussian where drift and control are affine (moment equations), and otherwise products
of densities of the Fokker-Planck equation (`fokker_planck`), one for each group of coordinates that is independent of
the others. No importance sampling is involved, so no variance of its weights either.
Source: Domingo-Enrich et al., arXiv 2312.02027, section 4 and appendix F; Nuesken and Richter, arXiv 2005.05409.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.evaluation.controlled_law import (
    check_reference,
    checked_policy,
    controlled_law,
    groups_of,
    policy_of,
    respects,
    tell_of_layer,
)
from fem_hjb.evaluation.expectation import Expectation, time_rule
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.paths.steering import Policy, steer
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.solutions.norms import policy_squares
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.stepping.adaptive import rtol_in_range
from fem_hjb.support.checks import FloatArray, Rng, frozen_array, one_of, positive_integer, spawn_generators
from fem_hjb.support.errors import ConvergenceError, DomainError, MeasureError
from fem_hjb.support.objects import Plain
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, part_of, until

_SHARES = 0.0, 0.66, 1.0  # of progress: of paths with short steps, and with long ones
_LAW = 0.7  # share of progress: of the law, the rest is the expectations


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ControlError(Plain):
    """The squared error of a control, averaged over a law of paths and over time; see the module.

    value : (1/T) int_0^T profile dt;  standard_error : 0 unless it was sampled;  how : in words.
    times (k,), weights (k,) : a rule for (1/T) int_0^T dt;  profile (k,) : E |u_t - u*_t|^2 at these times.
    """

    value: float
    standard_error: float
    how: str
    times: ArrayLike
    weights: ArrayLike
    profile: ArrayLike

    def __post_init__(self) -> None:
        size = np.size(self.times)
        for name in ("times", "weights", "profile"):
            given = getattr(self, name)
            object.__setattr__(self, name, frozen_array(given, f"ControlError: {name}", (size,), MeasureError))


def control_error(
    problem: ControlProblem,
    policy: Policy | Solution | ProductSolution,
    reference: ValueFunction,
    *,
    under: str = "optimal",
    times: int = 64,
    n: int = 4096,
    rng: Rng = 0,
    rtol: float = 1e-4,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> ControlError:
    """The averaged squared error of a control against the optimal one, under the optimally controlled law.

    Where coordinates form independent groups of at most three and the policy respects them (its part in a group depends
    on this group alone, as found by probing it), the expectation is a sum of low-dimensional ones, by quadrature. Where
    the integrand is quadratic in x it follows from mean and covariance, in any dimension. Otherwise n points are drawn
    from the law at every time, and the result has a standard error.

    Where the domain is a mesh, n paths of 4 times `times` Euler steps are followed, and n of half as many. What steps
    do is of order 1 and extrapolated from both; the standard error is that of the result, without what is left of it.

    Parameters
    ----------
    policy : pi, a callable (t, x (n, d)) -> (n, d), t a number: sigma u for a control u. Or a solution, for its policy.
    reference : what has the optimal policy: `solve(problem)`, or problem.exact. Solutions are continued outside their
        boxes by the policy of the nearest point, where the law may have next to no mass, see DomainError.
    under : "optimal", the law of the process under the reference's policy, or "policy", under the policy itself.
    times : the number of Gauss points in time; on a mesh half of the intervals of a trapezoidal rule.
    rtol : the tolerance of densities in time, see `fokker_planck.solve`; on the box of the reference, where it has one.
        It is relative to the largest density, and averages are wrong by less: for networks of two layers as drift and
        policy, smooth ones and such with kinks, in one and two dimensions, 1e-4 left the relative error below 2e-5, and
        1e-3 below 1e-4. It took 0.1 to 3 CPU seconds, and 13 to 25 under the law of a policy with kinks in two
        dimensions, which take 300 at 1e-6.
    progress : called with the fraction of the work done, which never falls and ends at 1, after every time step and
        once a second within one; not while a callable of yours or the factorisation of a matrix runs.
    max_seconds : when they are over, the work stops at the next step or call of the policy; an average over a part of
        [0, T] is none, so that there is no best so far to return.

    Raises
    ------
    ProblemError : policy or reference is not as said above, or returns a wrong shape or numbers that are not finite.
    MeasureError : times or n make no sense.
    DomainError : the law is not to be had (more than three coordinates hang together and drift or control are not
        affine), or it reaches the faces of the reference's box.
    ConvergenceError : the law is not solved for, rtol is out of range, or max_seconds are over.

    A ToleranceWarning says where policy or reference are solutions that are not right shortly before T, as rewards jump
    there: what they do after that is counted.
    """
    watch = until(checked_progress(progress), checked_seconds(max_seconds))
    for given in (policy, reference):
        tell_of_layer(given, "control_error")
    policy = checked_policy(problem, policy, "control_error")
    check_reference(reference)
    one_of(under, "under", ("optimal", "policy"), MeasureError)
    positive_integer(n, "n", MeasureError)
    rtol_in_range(rtol, "rtol")
    try:
        found = _averaged(problem, policy, reference, under, times, n, rng, rtol, watch)
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"control_error({problem.name!r}): {watch.reached:.0%} done within max_seconds={max_seconds:g}; give it"
            " more time, a larger rtol, fewer times, or a reference on a smaller box"
        ) from None
    watch.finished()
    return found


def _averaged(
    problem: ControlProblem,
    policy: Policy,
    reference: ValueFunction,
    under: str,
    times: int,
    n: int,
    rng: Rng,
    rtol: float,
    tell: Progress,
) -> ControlError:
    """`control_error`, where what `tell` raises stops the work and comes out."""
    nodes, weights = time_rule(problem.horizon, times)
    groups = groups_of(problem, reference)
    best = policy_of(problem, reference)
    separate = respects(problem, policy, groups)
    blocks = groups if under == "optimal" or separate else [tuple(range(problem.dim))]
    steering, told = best if under == "optimal" else policy, part_of(tell, 0.0, _LAW)
    flow = controlled_law(problem, steering, blocks, reference, rtol, told)
    if flow is None and isinstance(problem.domain, MeshDomain):
        return _along_paths(problem, problem.domain, steering, (policy, best), times, n, rng, tell)
    if flow is None:
        raise DomainError(
            f"{max(map(len, blocks))} coordinates of {problem.name!r} hang together under the {under} law, which is not"
            " Gaussian; densities are solved for up to three"
        )

    def square(t: float, x: FloatArray) -> FloatArray:
        return problem.temperature * policy_squares(problem, t, x, steer(policy, t, x) - steer(best, t, x))

    mean = Expectation(problem, flow, square, separate, n, rng)
    profile, variances = mean.along(nodes, part_of(tell, _LAW, 1.0))
    return ControlError(
        value=float(weights @ profile),
        standard_error=float(np.sqrt(weights**2 @ variances)),
        how=f"{mean.how}; {flow.how}",
        times=nodes,
        weights=weights,
        profile=profile,
    )


def _along_paths(
    problem: ControlProblem,
    domain: MeshDomain,
    steering: Policy,
    pair: tuple[Policy, Policy],
    times: int,
    n: int,
    rng: Rng,
    tell: Progress,
) -> ControlError:
    """The average along paths that are reflected and stopped, at two lengths of steps, extrapolated to none."""
    nodes = np.linspace(0.0, problem.horizon, 2 * times + 1)
    weights = np.full(nodes.size, 0.5 / times)
    weights[[0, -1]] *= 0.5
    profiles, integrals = [], []
    fine, coarse = spawn_generators(rng, 2)
    for k, (count, generator) in enumerate(((4 * times, fine), (2 * times, coarse))):
        told = part_of(tell, _SHARES[k], _SHARES[k + 1])

        def steered(t: float, x: FloatArray, told: Progress = told) -> FloatArray:
            told(t / problem.horizon)
            return steer(steering, t, x)

        paths = sample_paths(problem, n=n, steps=count, rng=generator, scheme="euler", policy=steered, substeps=1)
        squares = np.zeros((n, nodes.size))
        for j, t in enumerate(nodes.tolist()):
            x = paths.x[:, j * (count // (2 * times))]
            alive = np.flatnonzero(~domain.exited(x))
            off = steer(pair[0], t, x[alive]) - steer(pair[1], t, x[alive])
            squares[alive, j] = problem.temperature * policy_squares(problem, t, x[alive], off)
            told(1.0)
        profiles.append(squares.mean(axis=0))
        integrals.append(squares @ weights)
    errors = [integral.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf for integral in integrals]
    profile = 2.0 * profiles[0] - profiles[1]
    return ControlError(
        value=float(weights @ profile),
        standard_error=float(np.hypot(2.0 * errors[0], errors[1])),
        how=f"{n} paths of {4 * times} and {n} of {2 * times} Euler steps in the mesh, extrapolated",
        times=nodes,
        weights=weights,
        profile=profile,
    )
