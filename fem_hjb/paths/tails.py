r"""How far the tails of the process go, further out than draws of it tell: draws of the same process with more noise.

With s times the noise, dX = b dt + s Lambda^{1/2} o dB in the sense of Stratonovich and X_0 spread s times as far, X_t
is found beyond x with a probability whose logarithm is that of the process divided by s^2, to leading order of large
deviations (Freidlin and Wentzell, Random Perturbations of Dynamical Systems, chapters 4 and 5). Where X_t is a monotone
function of a Gaussian process that is so in all orders: what lies zeta standard normal deviations out among draws with
more noise lies s zeta out of the process. So quantiles far out are read off, and not extrapolated from those near.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from fem_hjb.paths.extent import FAR, MOST_POWER, LawSample, Reach, reach_of
from fem_hjb.paths.simulate import sample_at
from fem_hjb.paths.stiffness import substeps_of
from fem_hjb.problems.kernels import KernelDensity
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, PointMass, Uniform
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import FemHjbError
from fem_hjb.support.matrices import cholesky

_LEAST_POWER, _STEEPEST = 0.4, 6.0
_SHIFT = 1e-3  # times the noise of a horizon: how far points are moved for the derivative of Lambda^{1/2}


def reach_beyond(problem: ControlProblem, sample: LawSample, mass: float, seed: int) -> Reach:
    """How far the uncontrolled process goes, right around its middle and where this mass is left on each side.

    Extrapolated from the sample where laws cannot be spread, or the process with more noise explodes or comes to
    where coefficients are not defined; in a domain, where the start stays as it is, if that goes further.
    """
    plain = reach_of(sample.x)
    factor = float(-ndtri(mass)) / FAR
    far = None if factor <= 1.0 else _stretched(problem, sample, factor, mass, seed)
    if far is None:
        return plain
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.log(np.maximum(far, 0.0) / plain.scale) / np.log(factor * FAR)
    power = np.clip(np.where(plain.scale > 0, power, 1.0), _LEAST_POWER, _STEEPEST)
    if problem.domain is not None:
        power = np.maximum(power, np.minimum(plain.power, MOST_POWER))
    return replace(plain, power=power)


def _stretched(problem: ControlProblem, sample: LawSample, factor: float, mass: float, seed: int) -> FloatArray | None:
    """Distances (2, k, d) from medians to the last quantiles of draws with so many times the noise, on each side."""
    x = noisier_draws(problem, sample, factor, mass, seed)
    if x is None:
        return None
    q = np.quantile(x, ndtr([-FAR, FAR]), axis=1)
    middle = np.quantile(sample.x, 0.5, axis=1)
    return np.stack([middle - q[0], q[1] - middle])


def noisier_draws(
    problem: ControlProblem, sample: LawSample, factor: float, mass: float, seed: int
) -> FloatArray | None:
    """Draws (k, n, d) of the process with so many times the noise, at the times of a sample and as many as it holds.

    None where that is not known: where laws cannot be spread (components of less than the mass do not count), or the
    process explodes or comes to where coefficients are not defined. In a domain the start stays as it is.
    """
    rng = np.random.default_rng([seed, 1])
    n = sample.x.shape[1]
    start = problem.initial_law if problem.domain is not None else _spread(problem.initial_law, factor, mass)
    if start is None:
        return None
    if problem.marginal is not None:
        laws = [_spread(problem.marginal(float(t)), factor, mass) for t in sample.times]
        if any(law is None for law in laws):
            return None
        return np.stack([law.sample(n, rng) for law in laws if law is not None])
    steps = 4 * (len(sample.times) - 1)
    try:
        noisier = _noisier(problem, start, factor)
        found = sample_at(noisier, sample.times, n=n, rng=rng, steps=steps, substeps=substeps_of(noisier, steps))
    except FemHjbError:  # it explodes, or comes to where coefficients are none and the process never does
        return None
    return np.moveaxis(found.x[:, np.searchsorted(found.t, sample.times)], 1, 0)


def _spread(law: Law, factor: float, mass: float) -> Law | None:
    """The law whose logarithmic density is divided by factor^2, around each mode; None if that is not known.

    Components of a mixture count alike, as their weights hardly matter far out, if they weigh more than the mass.
    """
    if isinstance(law, Gaussian):
        return Gaussian(law.expectation, factor**2 * law.covariance)
    if isinstance(law, GaussianMixture):
        weights, means, covariances = law.components
        alike = np.where(weights > mass, 1.0 / (weights > mass).sum(), 0.0)
        return GaussianMixture(alike, means, factor**2 * covariances)
    if isinstance(law, KernelDensity):
        weights, points = law.components
        kept = points[weights > mass] if (weights > mass).any() else points
        return KernelDensity(kept, factor * law.bandwidth)
    return law if isinstance(law, PointMass | Uniform) else None


def _noisier(problem: ControlProblem, start: Law, factor: float) -> ControlProblem:
    """The same process with so many times the noise, in the sense of Stratonovich."""
    more, constant = factor**2, problem.constant_diffusion
    if constant is not None:
        return replace(problem, diffusion=more * constant, initial_law=start, marginal=None, exact=None)

    def drift(t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(problem.b(t, x) + (more - 1.0) * _correction(problem, t, x))

    def diffusion(t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(more * problem.Lambda(t, x))

    return replace(problem, drift=drift, diffusion=diffusion, initial_law=start, marginal=None, exact=None)


def _correction(problem: ControlProblem, t: ArrayLike, x: FloatArray) -> FloatArray:
    """1/2 sum_j (sigma_j . grad) sigma_j over the columns of the Cholesky factor of Lambda."""
    root, h = cholesky(problem.Lambda(t, x)), _SHIFT * np.sqrt(problem.horizon)
    result = np.zeros_like(x)
    for j in range(problem.dim):
        ahead = cholesky(problem.Lambda(t, x + h * root[..., j]))
        result += (ahead - root)[..., j] / (2.0 * h)
    return result
