"""Brownian motion reflected in a box."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import CosineSeries, Product
from fem_hjb.problems.laws import Uniform
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.zoo.coefficients import constant, stationary, vector
from fem_hjb.problems.zoo.registry import register
from fem_hjb.support.checks import frozen_array
from fem_hjb.support.errors import DomainError, ProblemError


@register()
def reflected(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
    Lambda: ArrayLike = 0.25,
    coefficients: ArrayLike = (1.0, 0.5, -0.25),
    running: float = 0.0,
) -> ControlProblem:
    """Brownian motion reflected in a box, cosine rewards.

    dX_i = Lambda_i^{1/2} dB_i, reflected at lower_i and upper_i,  r = `running` (a constant),  X_0 uniform,
    y = alpha sum_i log sum_n c_n cos(n pi (x_i - lower_i) / (upper_i - lower_i)).

    Exact by cosine series; the uniform law is stationary. lower, upper, Lambda: (d,) or a number; the coefficients
    c_n (N,) are shared by all axes and must make a positive series. Source: separation of variables for the heat
    equation with Neumann conditions, Evans, Partial Differential Equations (2010), section 6.5.
    """
    bounds = vector(lower, dim, "lower"), vector(upper, dim, "upper")
    diffusion = vector(Lambda, dim, "Lambda")
    try:
        box = Box(*bounds)
    except DomainError as cause:
        raise ProblemError(str(cause)) from cause
    rate = float(frozen_array(running, "running", (), ProblemError))
    factors = [
        CosineSeries(
            coefficients,
            lower=low,
            upper=high,
            diffusion=noise,
            horizon=horizon,
            temperature=temperature,
            running=rate / dim,
        )
        for low, high, noise in zip(*bounds, diffusion, strict=True)
    ]
    exact = Product(*factors)
    start = Uniform(box)
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=LinearDrift(np.zeros((dim, dim)), np.zeros(dim)),
        diffusion=diffusion,
        running_reward=partial(constant, value=rate) if rate else None,
        terminal_reward=partial(exact.value, horizon),
        initial_law=start,
        domain=box,
        exact=exact,
        marginal=partial(stationary, law=start),
        name="reflected",
    )
