"""What the tests of closed forms share: high-order differences, the equations' residuals, simulation of their own."""

import numpy as np

from fem_hjb.problems.linear import linear_transition
from fem_hjb.problems.problem import LinearDrift

# Central differences of order 8 at offsets -4..4.
OFFSETS = np.arange(-4, 5)
FIRST = np.array([1 / 280, -4 / 105, 1 / 5, -4 / 5, 0.0, 4 / 5, -1 / 5, 4 / 105, -1 / 280])


def time_derivative(function, t, x, step):
    """d/dt function(t, x) at times t (n,) and points x (n, d)."""
    return sum(c * function(t + k * step, x) for k, c in zip(OFFSETS, FIRST, strict=True) if k) / step


def space_derivative(function, t, x, step):
    """The derivatives of function(t, x) (n, ...) along each axis of x (n, d), shape (n, ..., d)."""
    columns = []
    for axis in np.eye(x.shape[1]):
        moved = [c * function(t, x + k * step * axis) for k, c in zip(OFFSETS, FIRST, strict=True) if k]
        columns.append(sum(moved) / step)
    return np.stack(columns, axis=-1)


def inner_times(problem, n, rng, step):
    """Random times that keep the whole stencil within [0, T]."""
    return rng.uniform(4 * step, problem.horizon - 4 * step, n)


def hjb_residual(problem, exact, t, x, *, dt=2e-3, dx=5e-3):
    """The residual of the HJB equation of `problem` at (t, x), relative to the sum of its terms' sizes."""
    gradient = exact.gradient(t, x)
    hessian = space_derivative(exact.gradient, t, x, dx)
    Lambda = problem.Lambda(t, x)
    terms = np.stack(
        [
            time_derivative(exact.value, t, x, dt * problem.horizon),
            (problem.b(t, x) * gradient).sum(-1),
            0.5 * np.einsum("nij,nij->n", Lambda, hessian),
            problem.r(t, x),
            np.einsum("ni,nij,nj->n", gradient, Lambda, gradient) / (2 * problem.temperature),
        ]
    )
    return np.abs(terms.sum(0)) / np.abs(terms).sum(0).max()


def gradient_error(problem, exact, t, x, *, dx=5e-3):
    """How far `exact.gradient` is from differences of `exact.value`, relative."""
    gradient = exact.gradient(t, x)
    return np.abs(gradient - space_derivative(exact.value, t, x, dx)).max() / np.abs(gradient).max()


def fokker_planck_residual(problem, t, x, *, dt=2e-3, dx=5e-3):
    """The residual of the Fokker-Planck equation, divided by p, of the problem's `marginal` at one time, relative
    to the sum of its terms' sizes, or to 1 / T where they all vanish.

    d_t log p = -div b - <b, s> + 1/2 Tr(Lambda (grad s + s s')) with s = grad log p, for Lambda independent of x.
    """
    logpdf = time_derivative(lambda time, y: problem.marginal(time).logpdf(y), t, x, dt * problem.horizon)
    score = problem.marginal(t).score(x)
    slope = space_derivative(lambda _, y: problem.marginal(t).score(y), t, x, dx)
    b, divergence = problem.b(t, x), np.trace(space_derivative(problem.b, t, x, dx), axis1=-2, axis2=-1)
    outer = score[:, :, None] * score[:, None, :]
    terms = np.stack(
        [
            -logpdf,
            -divergence,
            -(b * score).sum(-1),
            0.5 * np.einsum("nij,nij->n", problem.Lambda(t, x), slope + outer),
        ]
    )
    return np.abs(terms.sum(0)) / max(np.abs(terms).sum(0).max(), 1 / problem.horizon)


def simulate(problem, x, times, noise):
    """States (n, d) at `times` (K+1,) from x (n, d) at times[0], for standard normal noise (K, n, d).

    Exact for a linear drift (mirrored in a box when it vanishes); otherwise Heun's scheme, of weak order two because
    Lambda does not depend on x, which is checked.
    """
    states = [x]
    linear = isinstance(problem.drift, LinearDrift) and problem.constant_diffusion is not None
    for start, end, z in zip(times[:-1], times[1:], noise, strict=True):
        dt = end - start
        now = states[-1]
        if linear:
            Phi, shift, C = linear_transition(problem.drift, problem.constant_diffusion, dt)
            after = now @ Phi.T + shift + z @ np.linalg.cholesky(C).T
        else:
            mid = problem.Lambda(start + dt / 2, now)
            if not (mid == mid[0]).all():
                raise ValueError("Lambda depends on x, for which Heun's scheme is not of weak order two")
            kick = np.sqrt(dt) * z @ np.linalg.cholesky(mid[0]).T
            b = problem.b(start, now)
            after = now + 0.5 * dt * (b + problem.b(end, now + dt * b + kick)) + kick
        states.append(after if problem.domain is None else problem.domain.mirror(after))
    return states


def feynman_kac(problem, t, x, *, pairs, steps, rng):
    """f_t(x) = E[exp((y(X_T) + int r ds)/alpha) | X_t = x] and its standard error, from antithetic pairs of paths.

    Running rewards are integrated by the trapezoidal rule, of weak order two like Heun's scheme; both errors go by
    extrapolation, (4 F_2K - F_K) / 3 along the same Brownian paths in K = `steps` and 2K steps.
    """
    if problem.running_reward is None and isinstance(problem.drift, LinearDrift):
        half = rng.standard_normal((1, 16 * pairs, problem.dim))  # the end point alone matters, and its law is exact
        f = _exponential_reward(problem, t, x, np.concatenate([half, -half], axis=1))
    else:
        half = rng.standard_normal((2 * steps, pairs, problem.dim))
        fine = np.concatenate([half, -half], axis=1)
        coarse = (fine[::2] + fine[1::2]) / np.sqrt(2)
        f = (4 * _exponential_reward(problem, t, x, fine) - _exponential_reward(problem, t, x, coarse)) / 3
    f = f.reshape(2, -1).mean(0)
    return f.mean(), f.std(ddof=1) / np.sqrt(len(f))


def _exponential_reward(problem, t, x, noise):
    """exp((y(X_T) + int r ds)/alpha) along each path from (t, x), shape (n,), for noise (K, n, d)."""
    steps, n, _ = noise.shape
    times = np.linspace(t, problem.horizon, steps + 1)
    states = simulate(problem, np.tile(x, (n, 1)), times, noise)
    reward = problem.y(states[-1])
    if problem.running_reward is not None:
        weights = np.full(steps + 1, times[1] - times[0])
        weights[[0, -1]] /= 2
        reward = reward + sum(w * problem.r(s, state) for w, s, state in zip(weights, times, states, strict=True))
    return np.exp(reward / problem.temperature)
