"""`control_error` in domains that are meshes: along paths, against a series."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.support.errors import ConvergenceError, MeasureError

SHIFT = np.array([0.4, -0.3])
NOTHING = SimpleNamespace(  # the best of what is paid nothing
    value=lambda t, x: np.zeros(x.shape[:-1]), gradient=lambda t, x: np.zeros(x.shape), policy=lambda t, x: 0.0 * x
)


def square(**words: str) -> fh.ControlProblem:
    """Brownian motion in the unit square, reflected where nothing else is said."""
    mesh = skfem.MeshTri.init_tensor(*[np.linspace(0, 1, 5)] * 2).with_boundaries({"left": lambda x: x[0] < 1e-9})
    return fh.ControlProblem(
        dim=2,
        horizon=0.5,
        temperature=2.0,
        drift=lambda t, x: 0.0 * x,
        diffusion=1.0,
        terminal_reward=lambda x: 0.0 * x[..., 0],
        initial_law=fh.PointMass([0.6, 0.5]),
        domain=fh.MeshDomain(mesh, {None: "reflecting", **words}),
    )


def shifted(t: float, x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(SHIFT, x.shape)


def mean_survival(x: float, horizon: float) -> float:
    """(1/T) int_0^T P(tau > t) dt of Brownian motion stopped at 0 and reflected at 1, by its eigenfunctions."""
    total = 0.0
    for k in range(200):
        rate = ((2 * k + 1) * math.pi / 2) ** 2 / 2
        total += (
            4 / ((2 * k + 1) * math.pi) * math.sin((2 * k + 1) * math.pi * x / 2) * -math.expm1(-rate * horizon) / rate
        )
    return total / horizon


def test_a_shift_counts_for_as_long_as_the_process_lives() -> None:
    error = fh.control_error(square(left="absorbing"), shifted, NOTHING, times=8, n=600, rng=1)
    exact = 2.0 * float(SHIFT @ SHIFT) * mean_survival(0.6, 0.5)
    assert abs(error.value - exact) < 4 * error.standard_error + 2e-3
    assert error.standard_error < 0.05 * exact
    assert abs(error.value - 2.0 * float(SHIFT @ SHIFT)) > 5 * error.standard_error  # the process does end
    assert error.weights.sum() == pytest.approx(1.0)
    assert "Euler steps in the mesh" in error.how


def test_where_nothing_ends_a_shift_is_exact_under_both_laws() -> None:
    for under in ("optimal", "policy"):
        error = fh.control_error(square(), shifted, NOTHING, under=under, times=2, n=20)
        assert error.value == pytest.approx(2.0 * float(SHIFT @ SHIFT), rel=1e-12)
        assert error.standard_error < 1e-12


def test_the_law_is_that_of_the_process_it_is_asked_under() -> None:
    """A policy that is wrong on the right, and drives there: it is found there under its own law."""

    def right(t: float, x: np.ndarray) -> np.ndarray:
        return np.stack([2.0 + 2.0 * (x[..., 0] > 0.8), 0 * x[..., 0]], axis=-1)

    free, own = (
        fh.control_error(square(), right, NOTHING, under=under, times=4, n=300) for under in ("optimal", "policy")
    )
    assert own.value > free.value + 3 * math.hypot(own.standard_error, free.standard_error)


def test_what_is_refused() -> None:
    problem: Any = square()
    with pytest.raises(MeasureError, match="times"):
        fh.control_error(problem, shifted, NOTHING, times=0)
    with pytest.raises(MeasureError, match="n must be a positive"):
        fh.control_error(problem, shifted, NOTHING, n=0)
    with pytest.raises(ConvergenceError, match="within max_seconds"):
        fh.control_error(problem, shifted, NOTHING, max_seconds=1e-9)
    seen: list[float] = []
    fh.control_error(problem, shifted, NOTHING, times=4, n=8, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
