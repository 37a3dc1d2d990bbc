r"""`schroedinger_bridge`: from one law to another, as close as possible to a process, in relative entropy.

Among all processes with the marginals p_0 at 0 and q at T the one closest to P in relative entropy (less rewards on the
way) is P tilted by f_T(X_T) / f_0(X_0), where f solves the backward equation and psi the forward one,

    psi_0 f_0 = p_0,     psi_T f_T = q.

Fortet's iteration, which is Sinkhorn's, takes one after the other: f_T = q / psi_T, f_0 from it by a half solve,
psi_0 = p_0 / f_0, psi_T from it by another. It contracts in Hilbert's metric (Y. Chen, T. Georgiou and M. Pavon, SIAM
J. Appl. Math. 76 (2016) 2375-2396). y = alpha log f_T is then the terminal reward whose optimal policy is the bridge's.

A half solve is a product with exp(T (M^-1 K)), the propagator of the weak form on spectral elements, and with its
transpose in the quadrature weights of the nodes, so that the sum of psi f over the nodes does not change in time. What
comes out is not believed: the Fokker-Planck equation under the policy of the solution has the marginals once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import scipy.linalg

from fem_hjb.paths.extent import truncation_box
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Law, PointMass
from fem_hjb.problems.problem import ControlProblem, require_box, require_problem
from fem_hjb.reference import fokker_planck
from fem_hjb.reference.ground_state import at_rest, refuse_absorbing, require_still, worded
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.reference.solve import solve
from fem_hjb.reference.steady_checks import check_normal_reflection
from fem_hjb.reference.steady_operators import SteadyOperators
from fem_hjb.reference.tolerance import checked_rtol
from fem_hjb.solutions.bridge import Bridge, Potential
from fem_hjb.solutions.solution import Solution
from fem_hjb.solutions.steady import SteadyFunction
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray, positive_integer, require
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, part_of, until

_GRIDS = {1: ((20, 14), (24, 16)), 2: ((5, 7), (4, 8))}  # cells and degree: one grid, and a better one
_SAMPLES = 20_000  # of a law, which say how far it goes
_WIDER = 0.08  # of the range of these samples, by which the box is wider on each side
_LEAST = 1e-12  # of the largest: a half solve that is smaller there is rounding
_NOTHING = 1e-8  # temperatures: a potential that varies less is a constant
_SEEN = 1e-6  # of the largest density: where a law is larger, the other factor has to be known


def schroedinger_bridge(
    problem: ControlProblem,
    target: Law,
    *,
    rtol: float = 1e-4,
    max_iterations: int = 500,
    box: Box | None = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> Bridge:
    """The process closest to that of a problem in relative entropy that leads from its initial law to the target.

    Parameters
    ----------
    problem : drift, diffusion, horizon, initial law and running reward of the reference process, none of which depend
        on time; d <= 2. Its terminal reward plays no role, its temperature is the unit of the value.
    target : the law at T, with a density that is positive wherever the process may end.
    rtol : the total variation by which marginals may be off, and the tolerance of the solution, from 1e-10 to 0.1.
    max_iterations : pairs of half steps.
    box : where to look for it; by default one that the process, and samples of both laws, hardly ever leave.
    progress : called with the fraction of the work done, as far as that is known.
    max_seconds : when they are over, a ConvergenceError says so, or the status of the solution.

    Returns
    -------
    A `Bridge`: potential, policy, the `Solution` of the control problem whose terminal reward is the potential, and the
    errors of both marginals under its policy, by the Fokker-Planck equation. What was not reached, its status says.

    Raises
    ------
    ProblemError : the target is no law of the dimension, or has no density somewhere in the box; the initial law is a
        point mass (then y = alpha log(q / p_T), with p_T the density of X_T, needs no iteration); coefficients depend
        on time.
    DomainError : more than two dimensions, faces that absorb, or a box that does not fit.
    ConvergenceError : f or psi is not positive where a law has its mass: the target lies where the process hardly goes;
        or time was over.
    """
    require_problem(problem, "schroedinger_bridge")
    require_box(problem, "schroedinger_bridge")
    require(target, Law, "schroedinger_bridge: target=", ProblemError)
    rtol, most = checked_rtol(rtol), positive_integer(max_iterations, "max_iterations", ConvergenceError)
    seconds = checked_seconds(max_seconds)
    watch = until(checked_progress(progress), seconds)
    _check_laws(problem, target)
    region = _region(problem, target, box)
    require_still(problem, region)
    check_normal_reflection(at_rest(problem), region)
    try:
        bridge = _built(problem, target, region, rtol, most, watch)
    except OutOfTimeError:
        if seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"schroedinger_bridge({problem.name!r}): no solution within max_seconds={seconds:g}; give it more time, or"
            " a larger rtol"
        ) from None
    watch.finished()
    return bridge


def _check_laws(problem: ControlProblem, target: Law) -> None:
    """The error that says why there is no bridge, if there is none."""
    if target.dim != problem.dim:
        raise ProblemError(f"the target has dimension {target.dim}, the problem has dim={problem.dim}")
    if problem.dim > 2:
        raise DomainError(f"bridges go up to dimension 2, {problem.name!r} has dim={problem.dim}")
    for law, name in ((problem.initial_law, "the initial law"), (target, "the target")):
        if isinstance(law, PointMass):
            raise ProblemError(
                f"{name} is a point mass, which has no density; from a point the bridge has the terminal reward"
                " alpha log(target / density of X_T), without any iteration"
            )
    refuse_absorbing(problem)


def _built(problem: ControlProblem, target: Law, region: Box, rtol: float, most: int, watch: Progress) -> Bridge:
    """The potential on two grids, the solution with the better one, and the marginals under its policy."""
    started = time.perf_counter()
    halves = [_Halves(problem, target, region, *grid, watch) for grid in _GRIDS[problem.dim]]
    pairs = [each.iterated(most, 0.1 * rtol, watch) for each in halves]
    found, best = pairs[-1], halves[-1]
    potentials = [Potential(SteadyFunction(h.basis, p.y)) for h, p in zip(halves, pairs, strict=True)]
    off = _apart(problem, potentials[0], potentials[-1], best.basis, best.ends[1])
    posed = replace(problem, terminal_reward=potentials[-1], exact=None)
    told = part_of(watch, 0.3, 0.8)
    solution: Any
    if found.y.any():
        solution = solve(posed, rtol=rtol, box=region, progress=told, verify=False)
    else:  # v is a constant, which any mesh has
        solution = solve_on_mesh(posed, cells=16, box=region, progress=told)
    require(solution, Solution, "schroedinger_bridge", ConvergenceError)
    steered = {"policy": solution.policy, "box": region, "progress": part_of(watch, 0.8, 1.0)}
    law = fokker_planck.solve(posed, rtol=rtol, **steered)
    errors = [
        0.5 * float(best.weights @ np.abs(law.density(t, best.basis.nodes) - density))
        for t, density in zip((0.0, problem.horizon), best.ends, strict=True)
    ]
    unmet = [] if solution.status == "ok" else [solution.status]
    if found.error > rtol:
        unmet.append(f"the iteration has not converged, it is off by {found.error:.1e} after {found.iterations} times")
    if max(errors) > rtol:
        unmet.append(f"marginals under the policy are off by {errors[0]:.1e} and {errors[1]:.1e}, not within {rtol:g}")
    if off > rtol:
        unmet.append(f"the policy at T changes by {off:.1e} on a finer grid, more than rtol={rtol:g}")
    return Bridge(
        problem=posed,
        target=target,
        potential=potentials[-1],
        solution=solution,
        initial_error=errors[0],
        terminal_error=errors[1],
        potential_error=off,
        iterations=found.iterations,
        status="; ".join(unmet) or "ok",
        stats={"dofs": best.basis.n_dofs, "iteration_error": found.error, "seconds": time.perf_counter() - started},
    )


@final
@dataclass(frozen=True, eq=False)
class _Pair:
    """y at the nodes, what the marginal at T is off by if that at 0 is exact, and how often it took both half steps."""

    y: FloatArray
    error: float
    iterations: int


class _Halves:
    """Both half solves on one grid."""

    def __init__(
        self, problem: ControlProblem, target: Law, region: Box, cells: int, degree: int, tell: Progress
    ) -> None:
        edges = np.stack(region.bounds).T.tolist()
        lines = [SpectralLine(np.linspace(low, high, cells + 1), degree) for low, high in edges]
        self.basis = SpectralBasis(lines)
        rest = at_rest(problem)
        operators = SteadyOperators(self.basis, rest.b, rest.Lambda, rest.constant_diffusion, tell)
        rewards = operators.at(rest.r)
        self.temperature, top = problem.temperature, float(rewards.max())
        matrix = operators.matrix(rate=(rewards - top) / problem.temperature).toarray()
        generator = scipy.linalg.solve(operators.mass.toarray(), matrix, assume_a="pos")
        tell(0.0)
        self.backward = scipy.linalg.expm(problem.horizon * generator)
        tell(0.0)
        self.weights = self.basis.weights
        self.ends = [
            self._density(law, name) for law, name in ((problem.initial_law, "the initial law"), (target, "the target"))
        ]

    def _density(self, law: Law, name: str) -> FloatArray:
        """At the nodes, of mass 1 in their weights."""
        logs = call(f"logpdf of {name}", lambda x: law.logpdf(x), (self.basis.nodes,), ProblemError)
        if not np.isfinite(logs).all():
            raise ProblemError(
                f"{name} has no density at {int((~np.isfinite(logs)).sum())} of {len(logs)} points of the box; take a"
                " law that is positive there, or a box= that it fills"
            )
        density = np.exp(logs - logs.max())
        return np.asarray(density / (self.weights @ density))

    def iterated(self, most: int, enough: float, tell: Progress) -> _Pair:
        """Fortet's iteration, until the marginal at T that is not matched exactly is off by so much."""
        start, end = self.ends
        f = np.ones(len(start))
        count, off = 0, np.inf
        while count < most and off > enough:
            tell(0.0)
            count += 1
            f_start = self._positive(self.backward @ f, start, "f at 0")
            psi = self._positive(self.backward.T @ (self.weights * start / f_start) / self.weights, end, "psi at T")
            off = 0.5 * float(self.weights @ np.abs(f * psi - end))
            f = end / psi
            f /= f.max()
        f_start = self._positive(self.backward @ f, start, "f at 0")
        last = self.backward.T @ (self.weights * start / f_start) / self.weights
        y = self.temperature * np.log(f)
        if np.ptp(y[end > _SEEN * end.max()]) <= _NOTHING * self.temperature:
            y = np.zeros(len(y))  # the process goes there by itself, and what is left is rounding
        return _Pair(y, 0.5 * float(self.weights @ np.abs(f * last - end)), count)

    def _positive(self, values: FloatArray, density: FloatArray, name: str) -> FloatArray:
        """The values, lifted to rounding where the law has next to no mass; ConvergenceError where it has some."""
        least = _LEAST * float(values.max())
        bad = values < least
        if (bad & (density > _SEEN * density.max())).any():
            raise ConvergenceError(
                f"{name} is not positive, or rounding, where the law has its mass: it lies where the process hardly"
                " goes; take a longer horizon or more noise, or a box= that fits both laws more closely"
            )
        return np.where(bad, least, values) if bad.any() else values


def _apart(
    problem: ControlProblem, first: Potential, second: Potential, basis: SpectralBasis, density: FloatArray
) -> float:
    """How far the policies at T are apart, relative, under the target."""
    x, weights = basis.nodes, basis.weights * density
    Lambda = problem.Lambda(0.0, x)
    slopes = second.function.gradient(x)

    def size(slope: FloatArray) -> float:
        return float(np.sqrt(weights @ np.einsum("ni,nij,nj->n", slope, Lambda, slope)))

    lower, upper = basis.box.bounds
    least = 1e-2 * problem.temperature * float(np.sqrt(np.abs(Lambda).max())) / float((upper - lower).max())
    return size(first.function.gradient(x) - slopes) / max(size(slopes), least)


def _region(problem: ControlProblem, target: Law, box: Box | None) -> Box:
    """Where both laws, and what is between them, have their mass."""
    if box is not None:
        require(box, Box, "schroedinger_bridge: box=", DomainError)
        if box.dim != problem.dim or not box.bounded:
            raise DomainError(f"box must be a bounded Box of dimension {problem.dim}, got {box}")
        return worded(problem, np.stack(box.bounds))
    if problem.box is not None and problem.box.bounded:
        return problem.box
    seen: Callable[[Law], FloatArray] = lambda law: law.sample(_SAMPLES, np.random.default_rng(5))  # noqa: E731
    x = np.concatenate([seen(problem.initial_law), seen(target)])
    free = np.stack(truncation_box(problem, margin=0.0).box.bounds)
    low, high = np.minimum(x.min(axis=0), free[0]), np.maximum(x.max(axis=0), free[1])
    bounds = np.stack([low - _WIDER * (high - low), high + _WIDER * (high - low)])
    if problem.box is not None:
        finite = np.isfinite(np.stack(problem.box.bounds))
        bounds = np.where(finite, np.stack(problem.box.bounds), bounds)
    return worded(problem, bounds)
