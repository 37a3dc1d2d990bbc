"""Ground states: closed forms, laws, gaps, agreement with long horizons, meshes, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.reference.ground_equation import GroundEquation
from fem_hjb.reference.ground_state import at_rest
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError, SpaceError

st = fh.stationary


def problem(dim: int = 1, **more: Any) -> fh.ControlProblem:
    """dX = -X dt + dB, r = -|x|^2 / 2."""
    known = {
        "horizon": 4.0,
        "temperature": 1.0,
        "drift": lambda t, x: -x,
        "diffusion": 1.0,
        "running_reward": lambda t, x: -0.5 * (x**2).sum(-1),
        "terminal_reward": lambda x: 0 * x[..., 0],
        "initial_law": fh.Gaussian([0.0] * dim, 0.5),
    }
    return fh.ControlProblem(**{"dim": dim, **known, **more})


def walls(dim: int) -> Any:
    """Reflected in [0, 1]^dim, r = sum_i cos(2 x_i)."""
    box = fh.Box([0.0] * dim, [1.0] * dim)
    more = {"running_reward": lambda t, x: np.cos(2 * x).sum(-1), "initial_law": fh.Uniform(box), "domain": box}
    return problem(dim, drift=lambda t, x: -0.5 * x, temperature=0.2, **more)


@pytest.mark.parametrize(
    ("dim", "alpha", "rtol", "form"), [(1, 1.0, 1e-8, "linear"), (2, 1.0, 5e-2, "linear"), (1, 0.02, 1e-6, "value")]
)
def test_linear_quadratic_problems(dim: int, alpha: float, rtol: float, form: str) -> None:
    """w = -P |x|^2 / 2 with P^2 / alpha + 2 P = 1, lambda = -P d / 2, gap 1 + P / alpha, law N(0, 1 / (2 gap))."""
    found = fh.ground_state(problem(dim, temperature=alpha), rtol=rtol)
    gap = math.sqrt(1 + 1 / alpha)
    P = alpha * (gap - 1)
    x = np.random.default_rng(0).normal(size=(200, dim)) / math.sqrt(2 * gap)
    assert found.status == "ok"
    assert found.stats["form"] == form
    assert abs(found.average_reward / (-P * dim / 2) - 1) < rtol
    assert abs(found.gap / gap - 1) < rtol
    assert abs(found.gap - gap) < 10 * found.stats["gap_error"] + 1e-9
    exact = -P / 2 * ((x**2).sum(-1) - dim / (2 * gap))
    assert np.linalg.norm(found.value(x) - exact) < 3 * rtol * np.linalg.norm(exact)
    assert np.linalg.norm(found.policy(x) + P / alpha * x) < 3 * rtol * np.linalg.norm(P / alpha * x)
    density = (gap / math.pi) ** (dim / 2) * np.exp(-gap * (x**2).sum(-1))
    np.testing.assert_allclose(found.density(x), density, rtol=30 * rtol, atol=rtol * density.max())
    assert np.linalg.norm(found.policy(x) + 1.2 * P / alpha * x) > 3 * rtol * np.linalg.norm(P / alpha * x)


def test_long_horizons_come_close_and_short_ones_do_not() -> None:
    found = fh.ground_state(walls(1), rtol=1e-7)
    x = np.linspace(0.05, 0.95, 19)[:, None]
    off = []
    for horizon in (0.25, 3.0):
        timed = walls(1)
        timed = fh.ControlProblem(
            **{name: getattr(timed, name) for name in ("dim", "temperature", "drift", "diffusion", "running_reward")},
            **{name: getattr(timed, name) for name in ("terminal_reward", "initial_law", "domain")},
            horizon=horizon,
        )
        long = fh.solve_on_mesh(timed, cells=64, element="P4", rtol_time=1e-8)
        shape = long.value(0.0, x) - found.value(x)
        off.append((np.ptp(shape), np.abs(long.policy(0.0, x) - found.policy(x)).max()))
        if horizon > 1:
            early = (long.value(0.0, x) - long.value(1.0, x)) / 1.0
            np.testing.assert_allclose(early, found.average_reward, atol=1e-4)
    assert max(off[1]) < 3e-4 < 1e-2 < max(off[0])


def test_without_reward_the_law_is_that_of_the_process_and_nothing_is_steered() -> None:
    def slope(t: Any, x: np.ndarray) -> np.ndarray:
        return -4 * x * (x**2 - 1) + 0.3

    found = fh.ground_state(
        problem(drift=slope, running_reward=None, diffusion=lambda t, x: 1.0 + 0 * x[..., None]), rtol=1e-5
    )
    x = np.linspace(-2.5, 2.5, 2001)[:, None]
    law = np.exp(-2 * ((x[:, 0] ** 2 - 1) ** 2 - 0.3 * x[:, 0]))
    np.testing.assert_allclose(found.density(x[400:-400]), law[400:-400] / (law.sum() * 0.0025), atol=1e-5)
    assert abs(found.average_reward) < 1e-10
    assert np.abs(found.policy(x[400:-400])).max() < 1e-6
    assert found.status == "ok"


def test_gaps_of_processes_that_turn_are_real_parts() -> None:
    turn = np.array([[-1.0, 2.0], [-2.0, -1.0]])
    basis = SpectralBasis([SpectralLine(np.linspace(-5, 5, 7), 8)] * 2)
    equation = GroundEquation(at_rest(problem(2, drift=lambda t, x: x @ turn.T, running_reward=None)), basis)
    assert abs(equation.gap(equation.settle()) - 1.0) < 1e-4


def test_independent_coordinates_add_up() -> None:
    one, two = (fh.ground_state(walls(d), rtol=rtol) for d, rtol in ((1, 1e-6), (2, 1e-3)))
    assert two.status == "ok"
    assert abs(two.average_reward - 2 * one.average_reward) < 1e-5
    assert abs(two.gap - one.gap) < 1e-3 * one.gap
    three = GroundEquation(at_rest(walls(3)), SpectralBasis([SpectralLine([0.0, 1.0], 8)] * 3))
    found = three.settle()
    assert abs(found.average - 3 * one.average_reward) < 1e-4
    assert abs(three.gap(found) - one.gap) < 1e-2 * one.gap
    x = np.random.default_rng(0).random((100, 2))
    np.testing.assert_allclose(two.policy(x), np.stack([one.policy(x[:, [k]])[:, 0] for k in (0, 1)], -1), atol=2e-3)


def test_meshes_agree_and_converge() -> None:
    reference = fh.ground_state(walls(2), rtol=1e-5)
    errors, gaps = [], []
    for level in (3, 4, 5):
        found = st.ground_state_on_mesh(walls(2), skfem.MeshTri().refined(level), element="P1", estimate=False)
        errors.append(abs(found.average_reward - reference.average_reward))
        gaps.append(abs(found.gap - reference.gap))
    slopes = -np.polyfit(np.log([8, 16, 32]), np.log(np.stack([errors, gaps], -1)), 1)[0]
    np.testing.assert_allclose(slopes, 2.0, atol=0.15)
    told = st.ground_state_on_mesh(walls(2), skfem.MeshQuad().refined(3))
    x = np.random.default_rng(0).random((100, 2))
    assert told.status == "ok"
    assert told.error_estimate is not None
    assert told.error_estimate.policy < 1e-2
    assert abs(told.average_reward - reference.average_reward) < 10 * told.stats["average_reward_error"] + 1e-6
    np.testing.assert_allclose(told.value(x), reference.value(x), atol=1e-3)


def test_a_wrong_box_is_told_and_the_equation_is_looked_at() -> None:
    with pytest.warns(fh.ToleranceWarning, match="law in the box"):
        cut = fh.ground_state(problem(), rtol=1e-3, box=fh.Box([-0.4], [0.5]))
    assert cut.status != "ok"
    good = fh.ground_state(problem(), rtol=1e-3)
    assert {check.name for check in good.checks} == {"equation", "law in the box", "temperature"}
    assert "average reward -0.2071" in str(good)


def test_the_stationary_policy_earns_the_average_reward_along_paths() -> None:
    found = fh.ground_state(walls(1), rtol=1e-4)
    timed = walls(1)
    x0 = np.linspace(0.1, 0.9, 5)[:, None]
    certificate = fh.certify(timed, lambda t, x: found.policy(x), x0=[0.5], n=2048, steps=200, rng=0)
    ends = 2 * np.abs(found.value(np.concatenate([x0, [[0.0], [1.0]]]))).max()
    assert abs(certificate.value / timed.horizon - found.average_reward) < ends / timed.horizon


def clocked(**more: Any) -> fh.ControlProblem:
    return problem(**more)


REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "ground_state needs a ControlProblem, got str": (ProblemError, lambda: fh.ground_state("a")),
    "ground_state_on_mesh needs a ControlProblem": (ProblemError, lambda: st.ground_state_on_mesh(1, None)),
    r"drift\(t, x\) depends on time": (
        ProblemError,
        lambda: fh.ground_state(clocked(drift=lambda t, x: -x * (1 + np.asarray(t)[..., None]))),
    ),
    r"running_reward\(t, x\) depends on time": (
        ProblemError,
        lambda: fh.ground_state(clocked(running_reward=lambda t, x: -(x[..., 0] ** 2) + np.sin(t))),
    ),
    r"diffusion\(t, x\) depends on time": (
        ProblemError,
        lambda: fh.ground_state(
            clocked(diffusion=lambda t, x: (1 + np.asarray(t))[..., None, None] + 0 * x[..., None])
        ),
    ),
    "stopped at absorbing faces": (
        DomainError,
        lambda: fh.ground_state(
            problem(domain=fh.Box([-1.0], [1.0], boundary="absorbing"), initial_law=fh.PointMass([0.0]))
        ),
    ),
    "rtol must be a number": (ConvergenceError, lambda: fh.ground_state(problem(), rtol=0.0)),
    "box= needs a Box": (DomainError, lambda: fh.ground_state(problem(), box=3)),
    "must be a bounded Box": (
        DomainError,
        lambda: fh.ground_state(problem(), box=fh.Box([-np.inf], [1.0], boundary=[("natural", "natural")])),
    ),
    "so the box must have its faces": (DomainError, lambda: fh.ground_state(walls(1), box=fh.Box([0.0], [2.0]))),
    "boxes go up to dimension 3": (DomainError, lambda: fh.ground_state(problem(4))),
    "max_dofs must be": (SpaceError, lambda: fh.ground_state(problem(), max_dofs=-1)),
    "no solution within max_seconds": (ConvergenceError, lambda: fh.ground_state(problem(2), max_seconds=1e-3)),
    "the mesh is of dimension 2": (DomainError, lambda: st.ground_state_on_mesh(problem(), skfem.MeshTri())),
    "estimate must be": (ConvergenceError, lambda: st.ground_state_on_mesh(walls(2), skfem.MeshTri(), estimate=3)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    error, call = REFUSED[message]
    with pytest.raises(error, match=message):
        call()
