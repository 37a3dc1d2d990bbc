"""What the tests of estimators share: problems whose solution is a polynomial, and exact expectations over steps."""

import numpy as np

from fem_hjb.learning.measures import Measure, law_measure
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.linear import linear_transition
from fem_hjb.problems.manufactured import manufactured
from fem_hjb.problems.problem import LinearDrift

TEMPERATURE = 0.8
GAUGE = Gauge(temperature=TEMPERATURE, horizon=1.0, terminal=0.0, running=0.0)


def solution(t, x):
    """f = 4 + |x|^2 + s (1 + x_1/2) + 0.3 s^2, s = 1 - t: in every class of quadratics in time and in space."""
    s = 1.0 - np.asarray(t)
    return 4.0 + (x**2).sum(-1) + s * (1.0 + 0.5 * x[..., 0]) + 0.3 * s**2


def gradient(t, x):
    s = np.broadcast_to(1.0 - np.asarray(t), x.shape[:-1])
    return 2.0 * x + 0.5 * s[..., None] * np.eye(x.shape[-1])[0]


def rate_of_change(t, x):
    return -(1.0 + 0.5 * x[..., 0]) - 0.6 * (1.0 - np.asarray(t))


def varying_diffusion(t, x):
    """Lambda (..., d, d), not diagonal, bounded."""
    d = x.shape[-1]
    wave = np.sin(x.sum(-1))[..., None, None]
    return np.eye(d) * (1.0 + 0.3 * np.cos(x)[..., None, :]) + 0.2 * wave * (np.ones((d, d)) - np.eye(d))


def value(t, x):
    """v = alpha log f."""
    return TEMPERATURE * np.log(solution(t, x))


def value_rate(t, x):
    return TEMPERATURE * rate_of_change(t, x) / solution(t, x)


def value_gradient(t, x):
    return TEMPERATURE * gradient(t, x) / solution(t, x)[..., None]


def value_hessian(t, x):
    slope = gradient(t, x) / solution(t, x)[..., None]
    curvature = 2.0 * np.eye(x.shape[-1]) / solution(t, x)[..., None, None]
    return TEMPERATURE * (curvature - slope[..., :, None] * slope[..., None, :])


def polynomial(dim=1, *, varying=False, drift=None, marginal=None):
    """The problem whose f = exp(v / alpha) is `solution`, for a linear drift: its rewards are made to fit."""
    A = -np.eye(dim) + 0.3 * (np.eye(dim, k=1) - np.eye(dim, k=-1))
    return manufactured(
        value=value,
        time_derivative=value_rate,
        gradient=value_gradient,
        hessian=value_hessian,
        drift=LinearDrift(A, 0.2 * np.ones(dim)) if drift is None else drift,
        diffusion=varying_diffusion if varying else 1.0,
        temperature=TEMPERATURE,
        horizon=1.0,
        initial_law=Gaussian(np.zeros(dim), 0.25),
        marginal=marginal,
    )


def step_measure(problem, space, steps, order=12):
    """Expectations over all steps of an OU process from t_k to t_{k+1}, as an empirical measure without noise."""
    times = np.linspace(0.0, problem.horizon, steps + 1)
    law = law_measure(problem, space, times=times)
    h = problem.horizon / steps
    E, c, S = linear_transition(problem.drift, problem.constant_diffusion, h)
    noise, shares = Gaussian(np.zeros(problem.dim), S).quadrature(order)
    x = np.repeat(law.x, len(noise), axis=0)
    return Measure(
        kind="empirical",
        t=np.repeat(law.t, len(noise)),
        x=x,
        weights=np.repeat(law.weights, len(noise)) * np.tile(shares, law.t.size),
        initial_x=law.initial_x,
        initial_weights=law.initial_weights,
        terminal_x=law.terminal_x,
        terminal_weights=law.terminal_weights,
        next_t=np.repeat(law.next_t, len(noise)),
        next_x=x @ E.T + c + np.tile(noise, (law.t.size, 1)),
        score=np.repeat(law.score, len(noise), axis=0),
        paths=1,
    )
