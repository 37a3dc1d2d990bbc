"""What the tests of estimators share: problems whose solution is a polynomial, and exact expectations over steps."""

import numpy as np

from fem_hjb.learning.measures import Measure, law_measure
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.linear import linear_transition
from fem_hjb.problems.problem import ControlProblem, LinearDrift

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


def manufactured(dim=1, *, varying=False, drift=None, **changes):
    """The problem whose solution is `solution`, for a linear drift: its rewards are made to fit.

    r = -alpha (d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f)) / f and y = alpha log f_T.
    """
    A = -np.eye(dim) + 0.3 * (np.eye(dim, k=1) - np.eye(dim, k=-1))
    assumed = LinearDrift(A, 0.2 * np.ones(dim)) if drift is None else drift

    def reward(t, x):
        Lambda = varying_diffusion(t, x) if varying else np.eye(dim)
        rest = rate_of_change(t, x) + (assumed(t, x) * gradient(t, x)).sum(-1) + np.trace(Lambda, axis1=-2, axis2=-1)
        return -TEMPERATURE * rest / solution(t, x)

    settings = {
        "dim": dim,
        "horizon": 1.0,
        "temperature": TEMPERATURE,
        "drift": assumed,
        "diffusion": varying_diffusion if varying else 1.0,
        "running_reward": reward,
        "terminal_reward": lambda x: TEMPERATURE * np.log(solution(1.0, x)),
        "initial_law": Gaussian(np.zeros(dim), 0.25),
    }
    return ControlProblem(**settings | changes)


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
