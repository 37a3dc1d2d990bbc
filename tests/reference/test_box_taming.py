"""Values that run away where nobody goes: that they do, and that a tamed equation has the same solution elsewhere."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.reference.box_paths import evaluate
from fem_hjb.reference.box_taming import damping, flattened
from fem_hjb.reference.box_tolerance import _Search
from fem_hjb.reference.solve import solve
from fem_hjb.spaces.spectral import SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

TURN = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])


def bent(name: str, c: float) -> tuple[ControlProblem, Any, ValueFunction]:
    """x = M arsinh(c z) / c of the process z of a problem, and z(x): far out, rewards go like exp(2 c |x|)."""
    base = zoo.get(name, 2)
    assert base.exact is not None
    assert base.constant_diffusion is not None
    noise = base.constant_diffusion

    def back(x: FloatArray) -> FloatArray:
        return np.asarray(np.sinh(c * (x @ TURN)) / c)

    def drift(t: Any, x: FloatArray) -> FloatArray:
        z = back(x)
        root = 1.0 + (c * z) ** 2
        return np.asarray((base.b(t, z) / np.sqrt(root) - 0.5 * c**2 * z / root**1.5 * np.diag(noise)) @ TURN.T)

    def diffusion(t: Any, x: FloatArray) -> FloatArray:
        turned = TURN / np.sqrt(1.0 + (c * back(x)) ** 2)[..., None, :]
        return np.asarray(turned @ noise @ np.swapaxes(turned, -1, -2))

    problem = ControlProblem(
        dim=2,
        horizon=base.horizon,
        temperature=base.temperature,
        drift=drift,
        diffusion=diffusion,
        terminal_reward=lambda x: base.y(back(x)),
        initial_law=Gaussian(np.zeros(2), 0.1),
    )
    return problem, back, base.exact


def test_steep_values_run_away_unless_tamed() -> None:
    problem, back, exact = bent("mixture-diffusion", 1.0)
    search = _Search(problem, 1e-2, None, None, None, 0)
    with pytest.raises(ConvergenceError, match="values run away at faces"):
        search._marched(search.tolerances, lambda _: None)
    assert search.tameable
    search.tame()
    assert not search.tameable
    run = search._marched(search.tolerances, lambda _: None)
    size = wrong = 0.0
    for t, x in zip(search.sample.times.tolist(), search.sample.x, strict=True):
        expected = exact.value(t, back(x))
        found, _ = evaluate(run, problem.horizon - t, x)
        size = max(size, float((expected**2).mean()) ** 0.5)
        wrong = max(wrong, float(((found - expected) ** 2).mean()) ** 0.5)
    assert wrong < 3e-4 * size
    grid = run.panels[0].grid
    given = problem.y(grid.nodes) - search.gauge.guess(problem.horizon, grid.nodes)
    begun, (low, high) = run.equation.at_end(grid.nodes), run.equation.levels or (0.0, 0.0)
    np.testing.assert_array_equal(begun, flattened(given, low, high))
    assert given.min() < begun.min() - 100 * problem.temperature  # in a corner


def test_an_answer_says_that_rewards_were_flattened() -> None:
    problem, back, exact = bent("mixture-diffusion", 0.8)
    solution = solve(problem, rtol=1e-2)
    check = next(check for check in solution.checks if check.name == "terminal reward")
    assert check.passed
    assert solution.status == "ok"
    x = problem.initial_law.sample(500, np.random.default_rng(5))
    expected = exact.value(0.0, back(x))
    assert solution.error_estimate is not None
    wrong = np.abs(solution.value(0.0, x) - expected).max() / np.abs(expected).max()
    assert wrong < max(3 * solution.error_estimate.value, 1e-4)


def test_what_points_inwards_at_guarded_faces_may_be_stiff() -> None:
    turned = TURN * np.array([60.0, 4.0])  # rates, of axes that are not those of the grid
    scale = TURN / np.sqrt(2.0 * np.array([60.0, 4.0])) @ TURN.T
    problem = zoo.get(
        "brownian-mixture",
        2,
        A=-turned @ TURN.T,
        Lambda=1.0,
        weights=[0.4, 0.6],
        means=np.array([[1.0, -0.5], [-1.0, 0.6]]) @ scale.T,
        covariances=[scale @ np.diag(part) @ scale.T for part in ([0.8, 0.6], [0.6, 0.9])],
        mean=np.zeros(2),
        cov=scale @ scale.T,
        temperature=1.0,
    )
    search = _Search(problem, 1e-2, None, None, None, 0)
    plain = search._marched(search.tolerances, lambda _: None)
    search.tame()
    tamed = search._marched(search.tolerances, lambda _: None)
    assert tamed.equation.levels is not None
    assert tamed.counts["steps"] < 2 * plain.counts["steps"] < 400


def test_what_the_only_step_of_a_tamed_panel_misses_in_between_is_seen() -> None:
    """A push by 1.5 for a hundredth of the horizon: one step has its ends right, and is no cubic between them."""
    base, begin, end = zoo.get("brownian-mixture", 1, A=np.zeros((1, 1))), 0.5, 0.51
    speed = 1.5 / ((end - begin) * base.horizon)

    def drift(t: Any, x: FloatArray) -> FloatArray:
        on = (np.asarray(t) > begin * base.horizon) & (np.asarray(t) < end * base.horizon)
        return np.asarray(0.0 * x + speed * on[..., None])

    assert base.exact is not None
    search = _Search(replace(base, drift=drift, marginal=None, exact=None), 1e-3, None, None, None, 0)
    search.tame()
    run = search._marched(search.tolerances, lambda _: None)
    x = base.initial_law.sample(200, np.random.default_rng(5))
    for part in (0.2, 0.5, 0.8):
        t = (begin + part * (end - begin)) * base.horizon
        expected = base.exact.value(t, x + speed * (end * base.horizon - t))
        found, _ = evaluate(run, base.horizon - t, x)
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_levels_are_beyond_all_draws_and_further_for_smaller_tolerances() -> None:
    problem = bent("mixture-diffusion", 0.8)[0]
    widths = []
    for rtol in (1e-3, 1e-6):
        search = _Search(problem, rtol, None, None, None, 0)
        search.tame()
        assert search.levels is not None
        low, high = search.levels
        values = problem.y(search.sample.x[-1]) - search.gauge.guess(problem.horizon, search.sample.x[-1])
        assert low < values.min() - 15.9 * problem.temperature
        assert high > values.max() + 15.9 * problem.temperature
        assert search._flattened(low, high, None).passed
        widths.append(high - low)
        assert not search._flattened(low, float(np.quantile(values, 0.9)), None).passed
    assert widths[1] > 1.5 * widths[0]


def test_nothing_is_flattened_between_the_levels_and_all_is_smooth() -> None:
    x = np.linspace(-20.0, 20.0, 400_001)
    y = flattened(x, -2.0, 3.0)
    inside = (x >= -2) & (x <= 3)
    np.testing.assert_array_equal(y[inside], x[inside])
    slope = np.gradient(y, x)
    assert slope.max() < 1 + 1e-9
    np.testing.assert_allclose(
        slope[[1000, -1000]], 1 / np.hypot(1, (np.abs(x[[1000, -1000]]) - [2, 3]) / 5), rtol=1e-5
    )
    curvature = np.gradient(slope, x)
    assert np.abs(np.diff(curvature[10:-10])).max() < 1e-4  # no jump


@pytest.mark.parametrize("d", [1, 2])
def test_damping_takes_half_of_the_highest_degree_where_no_mass_is(d: int) -> None:
    lines = [SpectralLine(np.array([-2.0, -0.5, 0.4, 1.0, 2.5]), 6)] * d
    masses = [np.exp(-20.0 * (line.nodes + 1.0) ** 2) * line.weights for line in lines]
    damped = damping(lines, masses, 1e-6)
    x = lines[0].nodes
    axes = np.meshgrid(*[x] * d, indexing="ij")
    low = sum(axis**5 for axis in axes) * np.prod(axes, axis=0)
    if d == 1:
        low = x**5
        legendre = np.polynomial.legendre.Legendre.basis
        cell = lines[0].cell_dofs[2]
        xi = 2 * (x[cell] - 0.4) / 0.6 - 1
        bubble = np.zeros_like(x)
        bubble[cell] = legendre(6)(xi) - legendre(4)(xi)  # 0 at the ends of the cell
        np.testing.assert_allclose(damped(bubble), 0.5 * bubble, atol=1e-12)
        np.testing.assert_allclose(damped(low), low, atol=1e-10)
    u = np.random.default_rng(0).standard_normal(low.shape)
    near = np.prod([np.abs(axis + 1.0) < 0.2 for axis in axes], axis=0) > 0
    change = np.abs(damped(u) - u)
    assert change[near].max() < 1e-4
    assert change[~near].max() > 0.1
    ends = np.prod([np.isin(axis, lines[0].grid) for axis in axes], axis=0) > 0
    assert change[ends].max() < 1e-12


def test_an_equation_is_tamed_where_only_coarser_plans_run_away() -> None:
    """The first run is stable by chance: those that judge it are not, and tell nothing."""
    problem = zoo.get("brownian-mixture", 2)
    search = _Search(problem, 1e-2, None, None, None, 0)
    found = search.run(lambda _: None)
    assert math.isfinite(found.error)
    before = search.tolerances
    unknown = replace(found, parts={**found.parts, "space": (math.inf, math.inf)})
    assert search.tightened(unknown)
    assert search.levels is not None
    assert search.tolerances is before
    again = search.run(lambda _: None)
    assert again.run.equation.levels == search.levels
    assert [check.name for check in search._checks(again)].count("terminal reward") == 1
    assert "terminal reward" not in [check.name for check in search._checks(found)]
