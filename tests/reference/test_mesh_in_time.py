"""Coefficients in time on meshes: windows are seen, and matrices that are combinations are those assembled anew."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.fokker_planck import solve as fokker_planck
from fem_hjb.reference.mesh_in_time import Look, PartInTime
from fem_hjb.reference.mesh_operators import MeshOperators
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import spatial_basis
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ProblemError

GAUGE = Gauge(temperature=1.0, horizon=1.0, terminal=0.0, running=0.0)


def problem(dim: int, drift: Any, **changes: Any) -> ControlProblem:
    keywords: dict[str, Any] = {
        "dim": dim,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": drift,
        "diffusion": 1.0,
        "terminal_reward": lambda x: -0.5 * (x**2).sum(-1),
        "initial_law": Gaussian(np.zeros(dim), 0.25),
    }
    return ControlProblem(**{**keywords, **changes})


def pushed(dim: int, push: Any) -> ControlProblem:
    """dX = push(t) e_1 dt + dB, y = -|x|^2/2."""
    return problem(dim, lambda t, x: push(np.asarray(t))[..., None] * np.eye(dim)[0] + 0.0 * x)


def off(solution: Any, t: float, shift: float) -> float:
    """The largest error of the value, log E exp(-|X_T|^2/2) for X_T ~ N(x + shift e_1, (1 - t) I), near 0."""
    dim = solution.problem.dim
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, 9)] * dim, indexing="ij"), -1).reshape(-1, dim)
    moved = x + shift * np.eye(dim)[0]
    exact = -0.5 * (moved**2).sum(-1) / (2.0 - t) - 0.5 * dim * np.log(2.0 - t)
    return float(np.abs(solution.value(t, x) - exact).max())


def window(t: FloatArray) -> FloatArray:
    return np.where((t > 0.45) & (t < 0.65), 5.0, 0.0)


# Looking


def steps_at(*jumps: float) -> Any:
    return lambda t: np.array([1.0, float(np.searchsorted(jumps, t) % 2)])


def test_nothing_that_lasts_for_a_twentieth_of_the_horizon_is_missed():
    times = Look(lambda t: np.ones(2), 2.0).times
    assert (times[0], times[-1]) == (0.0, 2.0)
    assert np.diff(times).max() < 2.0 / 20
    for start in np.linspace(0.0, 1.9, 77):
        assert not Look(steps_at(start, start + 0.1), 2.0).steady
    assert Look(steps_at(0.1, 0.1 + 1e-3), 2.0).steady  # what is shorter may be


def test_independent_times_are_as_many_as_the_rank():
    x = np.linspace(-1, 1, 40)

    def rank(function: Any) -> int:
        return len(Look(lambda t: np.asarray(function(t, x)), 1.0).independent())

    assert rank(lambda t, x: x**2) == 0
    assert rank(lambda t, x: (1 + t) * x**2) == 1
    assert rank(lambda t, x: np.sin(t + x) + t * x) == 3
    assert rank(lambda t, x: np.exp(-20 * (x - t) ** 2)) == 0  # too many
    assert len(Look(steps_at(0.4, 0.6), 1.0).independent()) == 2


def test_a_step_sees_what_is_smooth_and_not_a_window_between_its_stages():
    nodes = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    assert Look(lambda t: np.array([np.sin(2 * t)]), 1.0).sees(nodes)
    assert not Look(lambda t: np.array([np.sin(40 * t)]), 1.0).sees(nodes)
    window = Look(steps_at(0.55, 0.65), 1.0)
    assert not window.sees(nodes)
    assert window.sees(0.5 * nodes)
    assert window.sees(0.57 + 0.07 * nodes)


def test_jumps_are_found_and_nothing_else_is_one():
    found = Look(steps_at(0.45, 0.65), 1.0).jumps()
    np.testing.assert_allclose(found, [0.45, 0.65], atol=1e-12)
    assert Look(lambda t: np.array([np.sin(20 * t), abs(t - 0.4)]), 1.0).jumps() == []
    assert Look(lambda t: np.array([np.exp(5 * t)]), 1.0).jumps() == []


# Windows


@pytest.mark.parametrize(("dim", "cells", "error"), [(1, 128, 2e-5), (2, 44, 2e-3)])
def test_a_window_in_time_is_not_missed(dim: int, cells: int, error: float):
    box = Box([-9.0, -6.0][:dim], [7.0, 6.0][:dim])
    solution = solve_on_mesh(pushed(dim, window), box=box, cells=cells, rtol_time=1e-6)
    assert max(off(solution, t, shift) for t, shift in ((0.0, 1.0), (0.5, 0.75), (0.9, 0.0))) < error
    assert off(solution, 0.0, 0.0) > 0.1  # had it been
    assert {0.45, 0.65} <= set(solution.space.time.points.round(10))


@pytest.mark.parametrize("ends", [(0.6, 1.0), (0.0, 0.4), (0.382, 0.786)])
def test_windows_that_begin_or_end_where_one_looks(ends: tuple[float, float]):
    start, end = ends
    given = pushed(1, lambda t: np.where((t > start) & (t < end), 5.0, 0.0))
    solution = solve_on_mesh(given, box=Box([-11.0], [7.0]), cells=144, rtol_time=1e-6)
    assert solution.stats["steps"] < 40
    assert off(solution, 0.0, 5 * (end - start)) < 1e-4
    mesh = box_mesh(Box([-6.0], [9.0]), 192, "line")
    density = fokker_planck(given, mesh=mesh, element="P2", rtol=1e-6)
    x = np.linspace(-1, 5, 21)[:, None]
    exact = np.exp(-0.5 * (x[:, 0] - 5 * (end - start)) ** 2 / 1.25) / np.sqrt(2 * np.pi * 1.25)
    assert np.abs(density.density(1.0, x) - exact).max() < 1e-5


def test_a_callable_may_return_the_same_array_again_and_again():
    room: dict[int, FloatArray] = {}

    def drift(t: Any, x: FloatArray) -> FloatArray:
        if np.ndim(t):
            return -(1 + 0.5 * np.sin(6 * t))[..., None] * x
        made = room.setdefault(x.size, np.empty_like(x))
        return np.multiply(x, -(1 + 0.5 * np.sin(6 * t)), out=made)

    def fresh(t: Any, x: FloatArray) -> FloatArray:
        return drift(t, x).copy()

    basis = spatial_basis(box_mesh(Box([-1.0], [1.0]), 4, "line"), "P2")
    one, other = (MeshOperators(problem(1, function), basis, GAUGE) for function in (drift, fresh))
    for t in (0.1, 0.4, 0.9):
        assert abs(one.K(t) - other.K(t)).max() < 1e-14 * abs(other.K(t)).max()
    assert abs(one.K(0.1).copy() - one.K(0.4)).max() > 0.01


def test_steps_that_end_at_jumps_are_few_and_right(monkeypatch: pytest.MonkeyPatch):
    def found() -> tuple[float, int]:
        solution = solve_on_mesh(pushed(1, window), box=Box([-9.0], [7.0]), cells=128, rtol_time=1e-6)
        return off(solution, 0.5, 0.75), solution.stats["linear_solves"]

    error, solves = found()
    monkeypatch.setattr(Look, "jumps", lambda self: [])
    worse, more = found()
    assert error < 0.1 * worse
    assert solves < 0.5 * more


def test_a_pulse_between_the_stages_of_long_steps_is_not_missed(monkeypatch: pytest.MonkeyPatch):
    def found(centre: float) -> float:
        given = pushed(1, lambda t: 25.0 * np.exp(-(((t - centre) / 0.02) ** 2)))
        solution = solve_on_mesh(given, box=Box([-9.0], [7.0]), cells=96, rtol_time=1e-3)
        return off(solution, 0.0, 25.0 * 0.02 * np.sqrt(np.pi))

    centres = np.linspace(0.15, 0.85, 8)
    assert max(map(found, centres)) < 0.02
    monkeypatch.setattr(MeshOperators, "seen", lambda self, start, end, nodes: 1.0)
    assert max(map(found, centres)) > 0.2


def test_a_density_is_carried_by_a_window():
    mesh = box_mesh(Box([-6.0], [8.0]), 192, "line")
    density = fokker_planck(pushed(1, window), mesh=mesh, element="P2", rtol=1e-6)
    x = np.linspace(-1, 3, 21)[:, None]
    for t, mean in ((0.4, 0.0), (0.55, 0.5), (1.0, 1.0)):
        exact = np.exp(-0.5 * (x[:, 0] - mean) ** 2 / (0.25 + t)) / np.sqrt(2 * np.pi * (0.25 + t))
        assert np.abs(density.density(t, x) - exact).max() < 1e-5


# Combinations


def low_rank(t: Any, x: FloatArray) -> FloatArray:
    t = np.asarray(t)[..., None]
    return -(1 + 0.5 * np.sin(7 * t)) * x + np.cos(3 * t) * np.sin(x[..., ::-1])


def high_rank(t: Any, x: FloatArray) -> FloatArray:
    return np.sin(3 * x + 2 * np.asarray(t)[..., None] * x[..., ::-1]) - x


def assembled(monkeypatch: pytest.MonkeyPatch, given: ControlProblem) -> tuple[Any, int]:
    """The solution, and how many matrices were assembled."""
    calls = []
    assemble = MeshOperators._assemble

    def spy(self: MeshOperators, *arguments: Any) -> FloatArray:
        calls.append(1)
        return assemble(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MeshOperators, "_assemble", spy)
        solution = solve_on_mesh(given, box=Box([-4.0] * 2, [4.0] * 2), cells=8, steps=6)
    return solution, len(calls)


def test_combinations_give_what_assembling_gives(monkeypatch: pytest.MonkeyPatch):
    def diffusion(t: Any, x: FloatArray) -> FloatArray:
        still = (1 + 0.1 * np.sin(x[..., :1, None])) * np.eye(2)
        return (1 + np.asarray(t)[..., None, None] ** 2) * still

    def reward(t: Any, x: FloatArray) -> FloatArray:
        return -np.cos(np.asarray(t)) * (x**2).sum(-1) / (1 + (x**2).sum(-1))

    given = problem(2, low_rank, diffusion=diffusion, running_reward=reward)
    quick, few = assembled(monkeypatch, given)
    monkeypatch.setattr(Look, "independent", lambda self: [])
    plain, many = assembled(monkeypatch, given)
    assert few < 12 < 100 < many
    f, g = np.asarray(quick.coefficients), np.asarray(plain.coefficients)
    assert np.abs(f - g).max() < 1e-10 * np.abs(g).max()  # differences of a diffusion carry 1e-11 of their own


def test_a_drift_of_low_rank_gives_the_same_to_rounding(monkeypatch: pytest.MonkeyPatch):
    quick, few = assembled(monkeypatch, problem(2, low_rank))
    all_of_them, too = assembled(monkeypatch, problem(2, high_rank))
    monkeypatch.setattr(Look, "independent", lambda self: [])
    plain, many = assembled(monkeypatch, problem(2, low_rank))
    assert (few, many, too) == (4, 33, 33)  # M, Lambda and two drifts; or one in every stage
    f, g = np.asarray(quick.coefficients), np.asarray(plain.coefficients)
    assert np.abs(f - g).max() < 1e-13 * np.abs(g).max()
    assert np.abs(f - np.asarray(all_of_them.coefficients)).max() > 1e-3


def test_where_a_coefficient_is_no_combination_its_own_matrix_is_assembled():
    spot = np.array([0.61, 0.37])

    def drift(t: Any, x: FloatArray) -> FloatArray:
        """Of rank 1, but for a bump at one spot and for a while, which no one who looks at a few points sees."""
        bump = 3.0 * (((x - spot) ** 2).sum(-1) < 0.004) * (np.abs(np.asarray(t) - 0.5) < 0.02)
        return -(1 + np.asarray(t)[..., None]) * x + bump[..., None]

    basis = spatial_basis(box_mesh(Box([-1.0] * 2, [1.0] * 2), 12, "tri"), "P2")
    moving = MeshOperators(problem(2, drift), basis, GAUGE)
    part = moving._parts["drift"]
    for t in (0.3, 0.5, 0.51, 0.7):
        plain = MeshOperators(problem(2, drift), basis, GAUGE)
        plain._parts["drift"] = PartInTime()
        direct = plain.K(t)
        assert abs(moving.K(t) - direct).max() < 1e-13 * abs(direct).max()
        assert isinstance(part._last, np.ndarray) is (t in (0.3, 0.7))
    without = MeshOperators(problem(2, lambda t, x: -1.5 * x), basis, GAUGE).K(0.5)
    assert abs(moving.K(0.5) - without).max() > 1e-3


def test_operators_are_let_go_of_with_what_they_keep():
    basis = spatial_basis(box_mesh(Box([-1.0] * 2, [1.0] * 2), 4, "tri"), "P2")
    operators = MeshOperators(problem(2, low_rank, running_reward=lambda t, x: -(x**2).sum(-1)), basis, GAUGE)
    operators.K(0.5)
    alive = weakref.ref(operators)
    gc.disable()
    try:
        del operators
        assert alive() is None  # no cycles
    finally:
        gc.enable()


def test_a_failure_leaves_nothing_stale():
    def late(t: Any, x: FloatArray) -> FloatArray:
        return np.where(np.asarray(t) == 0.77, np.nan, 0.0)[..., None] - (1 + np.asarray(t)[..., None]) * x

    def diffusion(t: Any, x: FloatArray) -> FloatArray:
        return (1 + np.asarray(t)[..., None, None]) * np.broadcast_to(np.eye(2), (*x.shape, 2))

    basis = spatial_basis(box_mesh(Box([-1.0] * 2, [1.0] * 2), 4, "tri"), "P2")
    operators = MeshOperators(problem(2, late, diffusion=diffusion), basis, GAUGE)
    operators.K(0.5)
    with pytest.raises(ProblemError, match="not finite"):
        operators.K(0.77)
    fresh = MeshOperators(problem(2, late, diffusion=diffusion), basis, GAUGE)
    assert np.array_equal(operators.K(0.5).data, fresh.K(0.5).data)
