r"""Steps of Euler and Maruyama under a policy, with the likelihood ratio of their Gaussian increments.

One step of length h of dX = (b + pi) dt + Lambda^{1/2} dB with the noise dB ~ N(0, h I) and the lower Cholesky factor L
of Lambda_t(x) goes from x to x + (b + pi) h + L dB. Under the chain without policy the density of this increment is
that of N(b h, h Lambda); the logarithm of the ratio of the two is

    log(dP^pi / dP) = (L^{-1} pi)' dB + h/2 |L^{-1} pi|^2,

exactly, whatever h. Folding a step back at a reflecting face, and stopping it at an absorbing one by a chance that only
its two ends decide, are maps of the increment and of noise that the policy does not change: the ratio stays what it is.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fem_hjb.paths.simulate import noise_factor
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray


class Steered(NamedTuple):
    """Where a step ends, (n, d), before any face is asked; log(dP^pi / dP), (n,); |L^{-1} pi|^2, (n,)."""

    x: FloatArray
    log_ratio: FloatArray
    effort: FloatArray


class Shared(NamedTuple):
    """A step of the chain `row`, 0 with long steps or 1 with short ones: from t over h, with the noise dB (n, d)."""

    row: int
    t: float
    h: float
    noise: FloatArray


def euler_step(
    problem: ControlProblem, t: float, h: float | FloatArray, x: FloatArray, pi: FloatArray, noise: FloatArray
) -> Steered:
    """One step of length h, the same for all or (n,), from x (n, d) under pi (n, d) with the noise dB (n, d)."""
    if problem.constant_diffusion is not None:
        root, inverse = _root_of(problem.constant_diffusion.tobytes())
        push: FloatArray = np.asarray(pi @ inverse.T, dtype=np.float64)
        moved = noise @ root.T
    else:
        roots = noise_factor(problem, t, x)
        push = np.asarray(np.linalg.solve(roots, pi[..., None])[..., 0])
        moved = np.einsum("nij,nj->ni", roots, noise)
    effort = np.einsum("ni,ni->n", push, push)
    ratio = np.einsum("ni,ni->n", push, noise) + 0.5 * h * effort
    return Steered(x + (problem.b(t, x) + pi) * np.asarray(h)[..., None] + moved, ratio, effort)


@lru_cache(maxsize=16)
def _root_of(matrix: bytes) -> tuple[FloatArray, FloatArray]:
    """The lower Cholesky factor of a constant diffusion, and its inverse: small, and asked for in every step."""
    values = np.frombuffer(matrix)
    root = np.linalg.cholesky(values.reshape(math.isqrt(values.size), -1))
    return np.asarray(root), np.asarray(np.linalg.inv(root))


def shared_steps(times: FloatArray, n: int, dim: int, rng: np.random.Generator) -> Iterator[Shared]:
    """The steps of two chains with the same noise: short ones between these times, an even number, long ones of two."""
    kicks = np.zeros((n, dim))
    for k, h in enumerate(np.diff(times).tolist()):
        noise = np.sqrt(h) * rng.standard_normal((n, dim))
        yield Shared(1, float(times[k]), h, noise)
        if k % 2:
            begun = float(times[k - 1])
            yield Shared(0, begun, float(times[k + 1]) - begun, kicks + noise)
        else:
            kicks = noise
