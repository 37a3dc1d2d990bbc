"""`solve` where rewards at T jump: closed forms, from when on the error is told, and what nodal values would do."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import ncx2

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Uniform
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.reference import box_averages, box_faces
from fem_hjb.reference.box_grading import evened
from fem_hjb.reference.box_march import Marcher
from fem_hjb.reference.box_tolerance import _Search
from fem_hjb.reference.feynman_kac import feynman_kac
from fem_hjb.reference.solve import solve
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

ALPHA = 0.7
CORRELATED = np.array([[1.0, 0.6], [0.6, 0.8]])
Truth = Callable[[float, FloatArray], tuple[FloatArray, FloatArray]]


def brownian(y: Callable[[FloatArray], Any], Lambda: FloatArray) -> ControlProblem:
    d = len(Lambda)
    return ControlProblem(
        dim=d,
        horizon=1.0,
        temperature=ALPHA,
        drift=LinearDrift(np.zeros((d, d)), np.zeros(d)),
        diffusion=Lambda,
        terminal_reward=y,
        initial_law=Gaussian(np.full(d, 0.1), 0.2),
    )


def planes(normals: FloatArray, heights: list[float], Lambda: FloatArray) -> tuple[ControlProblem, Truth]:
    """exp(y / alpha) = 1 + sum_k (e^{h_k} - 1) 1{<n_k, x> > 0.3}: f is a sum of normal distribution functions."""
    gains = np.expm1(heights)

    def y(x: FloatArray) -> FloatArray:
        return np.asarray(ALPHA * np.log1p((x @ normals.T > 0.3) @ gains))

    def truth(t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        spread = np.sqrt((1 - t) * np.einsum("ki,ij,kj->k", normals, Lambda, normals))
        z = (x @ normals.T - 0.3) / spread
        f = 1.0 + ndtr(z) @ gains
        slope = (gains * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) / spread) @ normals
        return ALPHA * np.log(f), ALPHA * slope / f[:, None]

    return brownian(y, Lambda), truth


def disc(height: float) -> tuple[ControlProblem, Truth]:
    """y = alpha height 1{|x| < 1}: |X_T|^2 / (T - t) has chi-square(2, m), 2 d cdf_k / dm = cdf_(k+2) - cdf_k."""
    gain = np.expm1(height)

    def truth(t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        s, m = 1 - t, (x**2).sum(-1) / (1 - t)
        inside, further = (ncx2.cdf(1 / s, k, m) for k in (2, 4))
        f = 1.0 + gain * inside
        return ALPHA * np.log(f), ALPHA * (gain * (further - inside) / s / f)[:, None] * x

    return brownian(lambda x: ALPHA * height * ((x**2).sum(-1) < 1.0), np.eye(2)), truth


def errors(solution: Any, truth: Truth, Lambda: FloatArray, first: float) -> tuple[float, float]:
    """Relative errors of value and policy under the uncontrolled law, from a time to go on."""
    rng, root = np.random.default_rng(0), np.linalg.cholesky(Lambda)
    rows = []
    for t in (0.0, 0.3, 0.6, 0.9, 0.98, 1 - first):
        x = 0.1 + rng.normal(size=(4000, len(Lambda))) @ np.linalg.cholesky(0.2 * np.eye(len(Lambda)) + t * Lambda).T
        found = solution.value(t, x, outside="nan")
        x, found = x[np.isfinite(found)], found[np.isfinite(found)]
        v, g = truth(t, x)
        wrong = found - v, (solution.gradient(t, x) - g) @ root
        rows.append([float((part**2).sum() / len(x)) for part in (*wrong, v, g @ root)])
    most = np.sqrt(np.max(rows, axis=0))
    return float(most[0] / most[2]), float(most[1] / most[3])


OBLIQUE = np.array([[np.cos(0.5), np.sin(0.5)]])
POSED = {
    "one dimension": (*planes(np.ones((1, 1)), [2.0], np.eye(1)), np.eye(1), 1e-3, 1e-3),
    "three, correlated": (
        *planes(np.array([[1.0, 0.0], [0.8, 0.6], [-0.3, 1.0]]), [1.0, 2.0, 1.5], CORRELATED),
        CORRELATED,
        1 / 64,
        1e-2,
    ),
    "a disc": (*disc(2.0), np.eye(2), 1 / 64, 3e-3),
    "outside a disc": (*disc(-3.0), np.eye(2), 1 / 64, 3e-3),
}


@pytest.mark.parametrize("name", POSED)
def test_jumps_are_met_and_the_error_is_known(name: str) -> None:
    problem, truth, Lambda, latest, rtol = POSED[name]
    solution = solve(problem, rtol=rtol)
    assert solution.status == "ok"
    layer = solution.stats["layer"]
    assert 0 < layer < latest
    check = next(check for check in solution.checks if check.name == "layer at the end")
    assert check.figure == layer
    assert f"t = {1 - layer:.6g}" in check.told
    value, policy = errors(solution, truth, Lambda, layer)  # at T - layer itself, too
    assert solution.error_estimate is not None
    assert value < min(rtol, 3 * solution.error_estimate.value)
    assert policy < min(rtol, 3 * solution.error_estimate.policy)
    x = problem.initial_law.sample(50, np.random.default_rng(3))
    np.testing.assert_allclose(solution.value(1.0, x), problem.y(x), atol=3 * ALPHA)  # between the values on both sides


def test_values_at_nodes_are_of_the_first_order_and_seen_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, truth, Lambda, latest, rtol = POSED["one dimension"]
    monkeypatch.setattr(box_faces, "averages", lambda grid, g, deeper: g(grid.nodes).reshape(grid.shape))
    search = _Search(problem, rtol, None, None, None, 0)
    found = search.run(lambda _: None)
    assert found.error > rtol
    assert errors(search.solution(found), truth, Lambda, latest)[1] > 2 * rtol


def test_what_averages_are_wrong_by_is_part_of_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that all begin with the same averages do not tell; here these are rough: lines are split in the middle."""
    (problem, truth), Lambda, rtol = planes(OBLIQUE, [2.0], np.eye(2)), np.eye(2), 3e-3
    monkeypatch.setattr(box_averages, "_cut", lambda on_lines, shape: np.full((*shape, 1), 0.5))
    monkeypatch.setattr(box_averages, "_FURTHER", 0)
    monkeypatch.setitem(box_averages._DEEPEST, 2, 2)
    search = _Search(problem, rtol, None, None, None, 0)
    found = search.run(lambda _: None)
    told, layer = found.parts["space"][0], found.run.layer
    assert errors(search.solution(found), truth, Lambda, 1.001 * layer)[0] < told
    whole = box_averages.averages
    monkeypatch.setattr(box_faces, "averages", lambda grid, g, deeper: whole(grid, g))
    assert told > 3 * _Search(problem, rtol, None, None, None, 0).run(lambda _: None).parts["space"][0]


def test_a_jump_in_the_linear_form() -> None:
    """Reflected Brownian motion, f = 1 + sum of cosines for 1{x > 0.4}; u itself is what errors are relative to."""
    problem = ControlProblem(
        dim=1,
        horizon=0.3,
        temperature=ALPHA,
        drift=LinearDrift([[0.0]], [0.0]),
        diffusion=1.0,
        terminal_reward=lambda x: ALPHA * (x[..., 0] > 0.4),
        initial_law=Uniform(Box([0.1], [0.9])),
        domain=Box([0.0], [1.0], boundary="reflecting"),
    )
    solution = solve(problem, rtol=1e-4)
    assert (solution.stats["form"], solution.status) == ("linear", "ok")
    assert 0 < solution.stats["layer"] < 0.01
    x, k = np.linspace(0.0, 1.0, 101), np.arange(1, 60)[:, None] * np.pi
    for s in (0.01, 0.1, 0.3):
        f = 1 + np.expm1(1.0) * (0.6 - (2 * np.sin(0.4 * k) / k * np.cos(k * x) * np.exp(-0.5 * k**2 * s)).sum(axis=0))
        np.testing.assert_allclose(solution.value(0.3 - s, x[:, None]), ALPHA * np.log(f), atol=1e-4)


def test_what_is_paid_may_jump() -> None:
    """P(X_T > 0.3 | X_t = x), of no sign that a logarithm asks for."""
    problem = brownian(lambda x: 0.0 * x[..., 0], np.eye(1))
    found = feynman_kac(problem, lambda x: np.where(x[..., 0] > 0.3, 1.0, -1.0), rtol=1e-4)
    assert found.status == "ok"
    assert 0 < found.stats["layer"] < 1e-3
    x = np.linspace(-2.0, 2.0, 41)
    for t in (0.0, 0.5, 0.98):
        np.testing.assert_allclose(found.value(t, x[:, None]), 2 * ndtr((x - 0.3) / np.sqrt(1 - t)) - 1, atol=1e-4)


def test_smooth_rewards_have_no_layer() -> None:
    problem = brownian(lambda x: -0.5 * np.cos(x).sum(axis=-1), np.eye(1))
    solution = solve(problem, rtol=1e-3, verify=False)
    assert solution.stats["layer"] == 0.0
    assert all(check.name != "layer at the end" for check in solution.checks)


def test_jumps_of_many_temperatures() -> None:
    """What stays and what goes meet in a front ten times as narrow as paths spread: the layer ends on finer cells."""
    problem, truth = planes(np.ones((1, 1)), [20.0], np.eye(1))
    solution = solve(problem, rtol=1e-2, verify=False)
    estimate: Any = solution.error_estimate
    assert solution.status == "ok"
    assert 0.0 < solution.stats["layer"] < 1 / 64
    assert max(errors(solution, truth, np.eye(1), 1 / 64)) < max(estimate.value, estimate.policy)


def test_neighbours_differ_by_the_ratio_at_most() -> None:
    edges = np.concatenate([np.linspace(0.0, 0.1, 5), [1.0, 3.0]])
    found = evened(edges, 2.0)
    widths = np.diff(found)
    assert np.maximum(widths[1:] / widths[:-1], widths[:-1] / widths[1:]).max() < 2.8
    assert found[0] == edges[0]
    assert found[-1] == edges[-1]
    np.testing.assert_allclose(evened(np.linspace(0.0, 1.0, 7), 2.0), np.linspace(0.0, 1.0, 7), atol=1e-14)


def test_a_jump_that_is_faint_beside_the_temperature_is_no_rounding() -> None:
    """exp(y / alpha) is 1 + 1e-8: averages of it had steps of no length at T. Nodes know y itself."""
    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1e8,
        drift=lambda t, x: -x,
        diffusion=1.0,
        terminal_reward=lambda x: np.where(x[..., 0] > 0.2, 1.0, 0.0),
        initial_law=Gaussian([0.0], 0.2),
    )
    found = solve(problem, rtol=1e-2, max_dofs=150, verify=False)
    assert found.status == "ok"
    x, decay = np.linspace(-1.0, 1.0, 21), np.exp(-1.0)
    exact = ndtr((decay * x - 0.2) / np.sqrt((1 - decay**2) / 2))
    np.testing.assert_allclose(found.value(0.0, x[:, None]), exact, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_paths_that_the_layer_throws_out_do_not_count(seed: int) -> None:
    """Two slits in a wall: at their edges the policy is not right shortly before T, and paths of it are thrown far."""
    problem = zoo.get("double-slit")
    found = solve(problem, rtol=0.04, rng=seed)
    layer, exact = found.stats["layer"], problem.exact
    assert found.status == "ok"
    assert 0.0 < layer < 0.05
    assert exact is not None
    x, largest, off = np.linspace(-7.0, 6.0, 20001)[:, None], 0.0, 0.0
    for t in (0.3, 0.6, 0.9, 1.0 - 1.01 * layer):  # under the law with control, p_t f_t
        logs = exact.value(t, x) / problem.temperature - (x[:, 0] + 1.0) ** 2 / (2.0 * t)
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        given = found.gradient(t, x, outside="nan")
        kept = np.isfinite(given[:, 0]) & (weights > 0.0)
        assert weights[kept].sum() > 1.0 - 0.04**2  # what an error as large as the tolerance may leave out
        wanted, scale = exact.gradient(t, x[kept]), weights[kept]
        missed = ((given[kept] - wanted) ** 2)[:, 0]
        largest, off = max(largest, float(scale @ wanted[:, 0] ** 2)), max(off, float(scale @ missed))
    assert np.sqrt(off / largest) < 2.0 * found.error_estimate.policy


@pytest.mark.parametrize(("length", "what"), [(1e-13, "no larger than rounding"), (1e-9, "20000 steps only reached")])
def test_steps_that_rounding_keeps_short_next_to_a_jump_end_the_run(length: float, what: str) -> None:
    """At a temperature of 1e8 u is 1 up to 1e-8, and what a step changes of its gradient is rounding, however short."""
    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1e8,
        drift=lambda t, x: -x,
        diffusion=1.0,
        terminal_reward=lambda x: (x[..., 0] > 0.3).astype(float),
        initial_law=Gaussian([0.0], 0.5),
    )
    search = _Search(problem, 1e-3, "linear", None, 150, 0)
    equation = search._marched(search.tolerances, lambda _: None).equation
    marcher = Marcher(equation, search.coefficients, search.tolerances, lambda _: None)
    grid = marcher.first_grid()
    assert marcher.rough

    def panel(s: float, state: Any, edges: Any) -> Any:
        marcher.result.panels.append(cast(Any, SimpleNamespace(plan=np.full(48, length))))
        marcher.result.counts["steps"] = 30_000 if s else 48
        return s + 1e-8, state, edges

    marcher._smoothed = lambda: None  # type: ignore[method-assign]
    marcher._panel = panel  # type: ignore[method-assign]
    with pytest.raises(ConvergenceError, match=what):
        marcher.run(grid)
