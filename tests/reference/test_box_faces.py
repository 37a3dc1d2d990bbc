"""Processes that are stopped at faces: solvers and order of a panel, closed forms, and error bars that hold."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.special import erf, erfc

from fem_hjb.paths.simulate import sample_at
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Uniform
from fem_hjb.problems.manufactured import manufactured
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_coefficients import Coefficients, Table, by_field, lobatto
from fem_hjb.reference.box_faces import FaceSystem, SeparableInverse, begun, on_faces, panel_of
from fem_hjb.reference.box_grading import make_grid
from fem_hjb.reference.box_judge import Judge, cut, joined, places_of
from fem_hjb.reference.box_panel import Equation, Operators
from fem_hjb.reference.box_plans import followed
from fem_hjb.reference.box_tolerance import _Search
from fem_hjb.reference.faces import truncated
from fem_hjb.reference.solve import solve
from fem_hjb.spaces.axes import apply_sum
from fem_hjb.spaces.spectral import SpectralLine
from fem_hjb.stepping.adaptive import replay
from fem_hjb.stepping.lawson import LawsonPanel
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError

Exact = Any


# Closed forms: f of the time to go s and x, as value functions


@dataclass
class Heat:
    """v = alpha log f + r s."""

    f: Callable[[Any, FloatArray], FloatArray]
    slope: Callable[[Any, FloatArray], FloatArray]  # of f, (..., d)
    alpha: float = 1.0
    r: float = 0.0

    def value(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        s = np.broadcast_to(1.0 - np.asarray(t, dtype=np.float64), x.shape[:-1])
        with np.errstate(divide="ignore"):
            return np.asarray(self.alpha * np.log(self.f(s, x)) + self.r * s)

    def gradient(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        s = np.broadcast_to(1.0 - np.asarray(t, dtype=np.float64), x.shape[:-1])
        return np.asarray(self.alpha * self.slope(s, x) / self.f(s, x)[..., None])


def still(t: Any, x: FloatArray) -> FloatArray:
    return np.zeros_like(x)


def unit_box(dim: int, exit_reward: Any, **more: Any) -> dict[str, Any]:
    return {
        "dim": dim,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": still,
        "initial_law": Gaussian([0.5] * dim, 4e-3),
        "domain": Box([0.0] * dim, [1.0] * dim, boundary="absorbing", exit_reward=exit_reward),
        **more,
    }


def level(c: float) -> Any:
    return lambda t, x: np.full(x.shape[:-1], c)


def waves(Lambda: list[float], faces: list[tuple[str, str]]) -> tuple[ControlProblem, Heat]:
    """f = 2.5 (+ prod x) + 1.5 exp(-rate s) prod of sines or, across reflecting faces, cosines; it fits everywhere."""
    fixed = np.array([pair[0] == "absorbing" for pair in faces])
    rate, harmonic = 0.5 * np.pi**2 * sum(Lambda), float(fixed.all())

    def parts(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        sine, cosine = np.sin(np.pi * x), np.cos(np.pi * x)
        return np.where(fixed, sine, cosine), np.pi * np.where(fixed, cosine, -sine)

    def slope(s: Any, x: FloatArray) -> FloatArray:
        own, other = parts(x)
        result = np.empty_like(x)
        for k in range(len(fixed)):
            rest = np.delete(own, k, axis=-1).prod(-1)
            result[..., k] = 1.5 * np.exp(-rate * s) * other[..., k] * rest
            result[..., k] += harmonic * np.delete(x, k, axis=-1).prod(-1)
        return result

    exact = Heat(
        lambda s, x: 2.5 + harmonic * x.prod(-1) + 1.5 * np.exp(-rate * s) * parts(x)[0].prod(-1), slope, 0.7, 0.4
    )
    given = unit_box(
        len(faces),
        exact.value,
        temperature=0.7,
        diffusion=np.array(Lambda),
        running_reward=level(0.4),
        terminal_reward=lambda x: exact.value(1.0, x),
    )
    box = Box([0.0] * len(faces), [1.0] * len(faces), boundary=faces, exit_reward=exact.value)
    return ControlProblem(**{**given, "domain": box}), exact


BOTH, WALL = ("absorbing", "absorbing"), ("reflecting", "reflecting")


def gone(s: Any) -> Any:
    return np.sqrt(0.8 * np.maximum(s, 1e-300))


def bell(z: FloatArray, q: FloatArray) -> FloatArray:
    return np.asarray(2 / np.sqrt(np.pi) / q * np.exp(-np.minimum((z / q) ** 2, 700.0)))


def hitting() -> tuple[ControlProblem, Heat]:
    """f = 1 + 3 P(at 1 before 0 and before T), Brownian motion of variance 0.4: images of erfc."""

    def f(s: Any, x: FloatArray) -> FloatArray:
        z, q = x[..., 0], gone(s)
        return np.asarray(1 + 3 * sum(erfc((2 * n + 1 - z) / q) - erfc((2 * n + 1 + z) / q) for n in range(8)))

    def slope(s: Any, x: FloatArray) -> FloatArray:
        z, q = x[..., 0], gone(s)
        return np.asarray(3 * sum(bell(2 * n + 1 - z, q) + bell(2 * n + 1 + z, q) for n in range(8)))[..., None]

    pays = lambda t, x: np.log(4.0) * (x[..., 0] > 0.5)  # noqa: E731
    return ControlProblem(**unit_box(1, pays, diffusion=0.4, terminal_reward=lambda x: 0 * x[..., 0])), Heat(f, slope)


def surviving(exit_reward: float) -> tuple[ControlProblem, Heat]:
    """f = c + (1 - c) P(no exit from [0, 1] before T), c = exp(exit reward), by images: a jump at T on both faces."""
    c, images = np.exp(exit_reward), [(-1.0) ** n for n in range(-8, 9)]

    def f(s: Any, x: FloatArray) -> FloatArray:
        z, q = x[..., 0], gone(s)
        alive = sum(
            0.5 * sign * (erf((z - n) / q) - erf((z - n - 1) / q)) for n, sign in zip(range(-8, 9), images, strict=True)
        )
        return np.asarray(c + (1 - c) * alive)

    def slope(s: Any, x: FloatArray) -> FloatArray:
        z, q = x[..., 0], gone(s)
        alive = sum(
            0.5 * sign * (bell(z - n, q) - bell(z - n - 1, q)) for n, sign in zip(range(-8, 9), images, strict=True)
        )
        return np.asarray((1 - c) * alive)[..., None]

    given = unit_box(1, level(exit_reward), diffusion=0.4, terminal_reward=lambda x: 0 * x[..., 0])
    return ControlProblem(**given), Heat(f, slope)


def paid_early() -> tuple[ControlProblem, Heat]:
    """Leaving pays log 2 before t = 1/2 and nothing after: f = 1, then 2 - P(no exit within s - 1/2)."""
    _, alive = surviving(-2000.0)

    def early(s: Any) -> Any:
        return np.maximum(s - 0.5, 1e-300)

    exact = Heat(
        lambda s, x: np.where(s > 0.5, 2.0 - alive.f(early(s), x), 1.0),
        lambda s, x: np.where((s > 0.5)[..., None], -alive.slope(early(s), x), 0.0),
    )
    pays = lambda t, x: np.log(2.0) * (np.asarray(t) < 0.5) + 0 * x[..., 0]  # noqa: E731
    return ControlProblem(**unit_box(1, pays, diffusion=0.4, terminal_reward=lambda x: 0 * x[..., 0])), exact


def half_line() -> tuple[ControlProblem, Heat]:
    """f = c + (1 - c) erf(x / sqrt(2 s)), a tenth of which is paid at 0: the box is truncated on the other side."""
    c = 0.1
    exact = Heat(
        lambda s, x: c + (1 - c) * erf(x[..., 0] / np.sqrt(2 * np.maximum(s, 1e-300))),
        lambda s, x: (1 - c) * bell(x, np.sqrt(2 * np.maximum(s, 1e-300))[..., None]),
    )
    given = unit_box(1, None, diffusion=1.0, terminal_reward=lambda x: 0 * x[..., 0])
    box = Box([0.0], [np.inf], boundary=[("absorbing", "natural")], exit_reward=level(float(np.log(c))))
    return ControlProblem(**{**given, "domain": box, "initial_law": Gaussian([1.5], 0.04)}), exact


def chosen(dim: int) -> tuple[ControlProblem, Exact]:
    """v = sin(x_1 + t) cos(x_2) + x_1^2 / 4, a drift that moves and a full Lambda that depends on the state."""

    def cos2(x: FloatArray) -> Any:
        return np.cos(x[..., 1]) if dim == 2 else 1.0

    def sin2(x: FloatArray) -> Any:
        return np.sin(x[..., 1]) if dim == 2 else 0.0

    def phase(t: Any, x: FloatArray) -> FloatArray:
        return x[..., 0] + np.asarray(t)

    def gradient(t: Any, x: FloatArray) -> FloatArray:
        first = np.cos(phase(t, x)) * cos2(x) + x[..., 0] / 2
        return np.stack([first, -np.sin(phase(t, x)) * sin2(x)][:dim], -1)

    def hessian(t: Any, x: FloatArray) -> FloatArray:
        result = np.zeros((*x.shape, dim))
        result[..., 0, 0] = 0.5 - np.sin(phase(t, x)) * cos2(x)
        if dim == 2:
            result[..., 1, 1] = -np.sin(phase(t, x)) * cos2(x)
            result[..., 0, 1] = result[..., 1, 0] = -np.cos(phase(t, x)) * sin2(x)
        return result

    def diffusion(t: Any, x: FloatArray) -> FloatArray:
        result = np.zeros((*x.shape, dim))
        result[..., 0, 0] = 0.5 + 0.2 * np.sin(x[..., -1] + np.asarray(t))
        if dim == 2:
            result[..., 1, 1] = 0.4 + 0.1 * np.cos(x[..., 0])
            result[..., 0, 1] = result[..., 1, 0] = 0.1 * np.sin(x[..., 0] * x[..., 1])
        return result

    def drift(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(np.sin(3 * np.asarray(t))[..., None] * x[..., ::-1] - x)

    problem = manufactured(
        value=lambda t, x: np.sin(phase(t, x)) * cos2(x) + x[..., 0] ** 2 / 4,
        time_derivative=lambda t, x: np.cos(phase(t, x)) * cos2(x),
        gradient=gradient,
        hessian=hessian,
        drift=drift,
        diffusion=diffusion,
        temperature=0.8,
        horizon=1.0,
        initial_law=Gaussian([0.0] * dim, 0.02),
        domain=Box([-1.0] * dim, [1.2] * dim, boundary="absorbing"),
    )
    return problem, problem.exact


def errors(
    solution: Any, exact: Exact, times: tuple[float, ...] = (0.0, 0.3, 0.49, 0.7, 0.95, 0.99, 0.998)
) -> tuple[float, float]:
    """Relative errors of value and policy under the law of the process that has not been stopped."""
    problem = solution.problem
    paths = sample_at(problem, times, n=1000, rng=3)
    gaps, sizes = np.zeros(2), np.zeros(2)
    for t in times:
        x = np.asarray(paths.x[:, np.searchsorted(paths.t, t)])
        x = x[~problem.domain.exited(x)]
        Lambda = problem.Lambda(t, x)
        value, gradient = exact.value(t, x), exact.gradient(t, x)
        rows = [(solution.value(t, x) - value, solution.gradient(t, x) - gradient), (value, gradient)]
        for total, (v, g) in zip((gaps, sizes), rows, strict=True):
            norms = [(v**2).mean() ** 0.5, np.einsum("ni,nij,nj->n", g, Lambda, g).mean() ** 0.5]
            np.maximum(total, norms, out=total)
    value, policy = (gaps / sizes).tolist()
    return value, policy


PROBLEMS: dict[str, tuple[Callable[[], tuple[ControlProblem, Exact]], float]] = {
    "a line": (lambda: waves([0.3], [BOTH]), 1e-6),
    "a square": (lambda: waves([0.3, 0.2], [BOTH, BOTH]), 1e-3),
    "two faces of a square": (lambda: waves([0.3, 0.2], [WALL, BOTH]), 1e-3),
    "a cube": (lambda: waves([0.2, 0.2, 0.2], [BOTH, BOTH, BOTH]), 3e-2),
    "hitting a face": (hitting, 1e-3),
    "surviving": (lambda: surviving(-2.0), 1e-4),
    "paid to leave": (lambda: surviving(3.0), 1e-3),
    "half a line": (half_line, 1e-4),
    "an exit reward that jumps in time": (paid_early, 1e-4),
    "varying coefficients": (lambda: chosen(1), 1e-6),
    "varying coefficients in a square": (lambda: chosen(2), 3e-2),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_errors_are_within_the_tolerance_and_like_the_estimate(name: str) -> None:
    make, rtol = PROBLEMS[name]
    problem, exact = make()
    solution = solve(problem, rtol=rtol)
    estimate = solution.error_estimate
    assert estimate is not None
    assert solution.status == "ok"
    assert (solution.stats["form"], solution.stats["route"]) == ("linear", "esdirk")
    true, told = max(errors(solution, exact)), max(estimate.value, estimate.policy)
    assert told <= rtol
    assert true <= 3.0 * told
    assert told <= 30.0 * true


def test_what_is_prescribed_after_a_jump_does_not_change_what_was_before() -> None:
    """f = 1 after t = 1/2, on the faces, too; the next panel may begin on the very same grid."""
    problem, _ = paid_early()
    search = _Search(problem, 1e-3, None, None, None, 0)
    run = search._held(lambda _: None)
    panel = next(panel for panel in run.panels if abs(panel.ends[-1] - 0.5) < 1e-9)
    later = [u for each in run.panels for u in each.states[::2] if each.ends[-1] <= panel.ends[-1]]
    assert all(np.abs(u - 1.0).max() < 1e-9 for u in later)
    next_one = begun(run.equation, panel.grid, 0.5, (panel.grid, panel.last))
    assert next_one[[0, -1]].tolist() == pytest.approx([2.0, 2.0])
    assert np.abs(panel.last - 1.0).max() < 1e-9


def test_an_error_bar_of_another_problem_does_not_hold() -> None:
    problem, exact = waves([0.3], [BOTH])
    solution = solve(replace(problem, running_reward=level(0.41)), rtol=1e-4)
    assert solution.error_estimate is not None
    assert max(errors(solution, exact)) > 10 * max(solution.error_estimate.value, solution.error_estimate.policy)


def test_walls_are_seen_by_the_value_and_do_not_count_as_undershoot() -> None:
    """With exp(-2000) on the faces, u = 0 there in double precision; inside it is positive but at the jump itself."""
    problem, exact = surviving(-2000.0)
    solution = solve(problem, rtol=1e-4)
    assert max(errors(solution, exact)) < 1e-4
    run = _Search(problem, 1e-3, None, None, None, 0).run(lambda _: None).run
    late = [panel for panel in run.panels if panel.ends[0] > 0.01]
    assert late
    assert all((panel.states[0][[0, -1]] == 0).all() and (panel.states[0][1:-1] > 0).all() for panel in late)
    assert run.nonpositive == sum(int((u[1:-1] <= 0).sum()) for panel in run.panels for u in panel.states[::2])


@pytest.mark.parametrize("bonus", [30.0, 900.0])
def test_exit_rewards_that_double_precision_cannot_hold_are_refused(bonus: float) -> None:
    problem, _ = surviving(3.0)
    box = Box([0.0], [1.0], boundary="absorbing", exit_reward=level(bonus))
    with pytest.raises(ConvergenceError, match=f"exceeds all other rewards by {bonus:g} temperatures"):
        solve(replace(problem, domain=box), rtol=1e-2)


def test_values_on_faces_are_those_prescribed() -> None:
    problem, exact = waves([0.3, 0.2], [BOTH, BOTH])
    solution = solve(problem, rtol=1e-3)
    face = np.array([[0.0, 0.3], [1.0, 1.0], [0.2, 1.0]])
    for t in (0.0, 0.4):
        np.testing.assert_allclose(solution.value(t, face), exact.value(t, face), atol=1e-6)


def test_a_u_that_is_not_positive_is_told() -> None:
    """The value of a cliff of 30 temperatures, near T."""
    problem, _ = waves([0.01], [BOTH])
    cliff = replace(problem, terminal_reward=lambda x: np.where(x[..., 0] > 0.5, 0.0, -30.0))
    search = _Search(cliff, 1e-2, None, None, 80, 0)
    found = search.run(lambda _: None)
    bad = found.run.nonpositive
    assert bad > 0
    check = next(check for check in search.solution(found).checks if check.name == "positive")
    assert (check.figure, check.limit, check.passed) == (bad, 0.0, False)


# Panels


def swirl(dim: int) -> ControlProblem:
    """A drift that moves, in a box whose faces across the first axis stop the process and pay what moves, too."""

    def drift(t: Any, x: FloatArray) -> FloatArray:
        p = np.pi * x
        now = 1.5 * (1.0 + 0.8 * np.sin(4.0 * np.asarray(t)))[..., None]
        if dim == 1:
            return np.asarray(now * np.sin(p))
        turn = np.stack([-np.sin(p[..., 0]) * np.cos(p[..., 1]), np.cos(p[..., 0]) * np.sin(p[..., 1])], -1)
        return np.asarray(now * turn)

    pays = lambda t, x: 0.3 * np.sin(3.0 * (1.0 - np.asarray(t))) + 0 * x[..., 0]  # noqa: E731
    given = unit_box(dim, pays, temperature=0.5, drift=drift, diffusion=0.2)
    box = Box([0.0] * dim, [1.0] * dim, boundary=[BOTH, WALL][:dim], exit_reward=pays)
    y = lambda x: 0.5 * np.sin(np.pi * x[..., 0]) * (1 + 0.3 * np.cos(np.pi * x[..., -1]))  # noqa: E731
    return ControlProblem(**{**given, "domain": box, "terminal_reward": y})


def operators_of(problem: ControlProblem, cells: int, degree: int, times: int = 17) -> tuple[Equation, Operators]:
    search = _Search(problem, 1e-3, None, None, None, 0)
    equation = Equation(problem, search.gauge, True, search.box, truncated(problem), search.reaches, (), 1e-4)
    edges = [np.linspace(*ends, cells + 1) for ends in zip(*search.box.bounds, strict=True)]
    grid = make_grid(edges, degree, equation, 0.0, 1.0)
    coefficients = Coefficients(problem, search.gauge, True)
    values = np.stack([coefficients.at(1.0 - float(s), grid.nodes) for s in lobatto(times)])
    table = Table(0.0, 1.0, by_field(values.reshape(times, -1, *grid.shape)))
    return equation, Operators.of(equation, grid, table, np.ones(grid.shape))


def end_of(equation: Equation, operators: Operators, panel: Any, count: int) -> FloatArray:
    u = begun(equation, operators.grid, 0.0, None)
    return list(replay(panel, u, 0.0, [1.0 / count] * count))[-1].u1


def slope_of(panel: Callable[[Equation, Operators], Any], dim: int) -> float:
    equation, operators = operators_of(swirl(dim), 2, 5)
    best = end_of(equation, operators, panel_of(equation, operators, operators.root_mean_square), 160)
    counts = [8, 16, 32]
    falls = [np.abs(end_of(equation, operators, panel(equation, operators), n) - best).max() for n in counts]
    return float(np.polyfit(np.log(counts), np.log(falls), 1)[0])


def chosen_panel(equation: Equation, operators: Operators) -> Any:
    return panel_of(equation, operators, operators.root_mean_square)


@pytest.mark.parametrize("dim", [1, 2])
def test_implicit_steps_are_of_order_four_with_prescribed_values_that_move(dim: int) -> None:
    assert slope_of(chosen_panel, dim) == pytest.approx(-4.0, abs=0.15)


def test_without_the_prescribed_values_there_is_no_order() -> None:
    def free(equation: Equation, operators: Operators) -> Any:
        return LawsonPanel(operators.separable, operators.remainder, operators.root_mean_square)

    assert abs(slope_of(free, 1)) < 0.1


def test_coefficients_at_wrong_times_leave_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FaceSystem.stiffness

    def late(equation: Equation, operators: Operators) -> Any:
        monkeypatch.setattr(FaceSystem, "stiffness", lambda self, t: whole(self, 0.99 * t))
        return chosen_panel(equation, operators)

    assert abs(slope_of(late, 1)) < 0.1


@pytest.mark.parametrize("dim", [1, 2])
def test_the_solvers_solve(dim: int) -> None:
    """1 - shift L with a diffusion that depends on the state, where GMRES has something to do."""
    problem, _ = chosen(dim)
    equation, operators = operators_of(problem, 3, 8)
    system = FaceSystem(equation, operators)
    rng, size, shift = np.random.default_rng(0), operators.grid.size, 0.02
    rhs = rng.standard_normal(size)
    for s in (0.0, 0.4):
        K = system.stiffness(s)
        u = system.solver(K, shift)(rhs, np.zeros(size), 1e-11)
        residual = u - shift * (K @ u) - rhs
        free = ~on_faces(operators.grid, equation.absorbing).ravel()
        assert np.abs(residual[free]).max() < 1e-8 * np.abs(rhs).max()
        np.testing.assert_allclose(u[~free], rhs[~free], rtol=1e-14)
        assert np.abs(u - shift * (system.stiffness(0.9) @ u) - rhs)[free].max() > 1e-2


def test_gmres_that_does_not_converge_is_a_step_that_failed() -> None:
    equation, operators = operators_of(chosen(2)[0], 2, 5)
    system = FaceSystem(equation, operators)
    rhs = np.random.default_rng(0).standard_normal(operators.grid.size)
    with pytest.raises(ConvergenceError, match=r"GMRES did not reach a relative residual of 1\.0e-30"):
        system.solver(system.stiffness(0.3), 0.1)(rhs, 0 * rhs, 1e-30)


def test_coefficients_that_do_not_move_keep_their_factors() -> None:
    problem, _ = waves([0.3], [BOTH])
    steady = FaceSystem(*operators_of(problem, 2, 5, times=1))
    assert steady.stiffness(0.1) is steady.stiffness(0.7)
    moving = FaceSystem(*operators_of(swirl(1), 2, 5))
    assert moving.stiffness(0.1) is not moving.stiffness(0.7)


@pytest.mark.parametrize("strong", [False, True])
def test_the_inverse_of_the_separable_part(strong: bool) -> None:
    """Exact, unless eigenvectors are of no use: then what is self-adjoint is inverted."""
    line = SpectralLine(np.linspace(-6.0, 6.0, 9) if strong else np.linspace(-1.0, 1.0, 3), 8)
    S = 0.25 * line.laplacian - (2.0 if strong else 0.3) * line.nodes[:, None] * line.derivative
    inside = slice(1, -1)
    parts = [S[inside, inside], S[1:, 1:]]
    inverse = SeparableInverse(parts, [line.weights[inside], line.weights[1:]])
    r = np.random.default_rng(1).standard_normal([len(part) for part in parts])
    u = inverse(r, 0.01)
    missed = np.abs(u - 0.01 * apply_sum(parts, u) - r).max()
    assert missed > 1e-3 if strong else missed < 1e-9


def test_draws_that_were_stopped_do_not_count() -> None:
    problem, _ = surviving(-2.0)
    x = np.concatenate([np.full((50, 1), 1.0), np.random.default_rng(0).uniform(0.2, 0.8, (50, 1))])
    places = places_of(problem, 0.5, [x], problem.domain.bounds)  # type: ignore[union-attr]
    assert places.axes[0].max() < 0.9
    assert places.weights[0].sum() == pytest.approx(1.0)
    gone_all = places_of(problem, 0.5, [x[:50]], problem.domain.bounds)  # type: ignore[union-attr]
    assert gone_all.axes[0].max() == 1.0


def test_what_has_no_logarithm_counts_as_wrong() -> None:
    search = _Search(surviving(-2.0)[0], 1e-3, None, None, None, 0)
    run = search.run(lambda _: None).run
    judge, panels = Judge(run, search.sample, search.controlled), list(followed(run, search.coefficients, cut(1)))
    assert max(judge.difference(judge.own, judge.seen(panels))) < 1e-7
    for panel in panels:
        for u in panel.states[::2]:
            u[panel.grid.nodes[:, 0] < 0.5] = -1.0
    mass = max(float(weights[place.axes[0] < 0.5].sum()) for place in judge.places for weights in place.weights)
    assert 0.3 < mass < 0.9
    other = judge.seen(panels)
    lost = judge._lost([(a[0] - b[0], a[1] - b[1]) for a, b in zip(judge.own.rows, other.rows, strict=True)])
    assert lost == pytest.approx(mass**0.5, abs=0.02)
    assert lost < judge.difference(judge.own, other)[0] < 3.0  # and the cell in between, which goes through 0


def test_steps_that_double_are_joined_as_well() -> None:
    np.testing.assert_allclose(joined(np.array([1.0, 1.0, 2.0, 4.0, 8.0])), [2.0, 6.0, 8.0])


def test_the_middle_of_the_longest_step_is_judged() -> None:
    search = _Search(waves([0.3], [BOTH])[0], 1e-4, None, None, None, 0)
    run = search.run(lambda _: None).run
    times = [place.s for place in Judge(run, search.sample, search.controlled).places]
    for panel in run.panels:
        k = int(np.diff(panel.ends).argmax())
        longest = np.diff(panel.ends)[k] * (1 - 1e-9)
        middles = [0.5 * (a + b) for a, b in zip(panel.ends[:-1], panel.ends[1:], strict=True) if b - a >= longest]
        assert min(abs(t - s) for t in times for s in middles) < 1e-12


def test_errors_count_relative_to_a_u_that_decays() -> None:
    """The reward is highest where the process hardly goes; where it is, u falls by e^-12, which gains no accuracy."""
    problem, _ = half_line()
    pays = lambda t, x: -12.0 * (1.0 - np.asarray(t)) + 0 * x[..., 0]  # noqa: E731
    box = Box([0.0], [np.inf], boundary=[("absorbing", "natural")], exit_reward=pays)
    step = lambda t, x: -12.0 / (1.0 + np.exp(4.0 * (x[..., 0] - 4.5)))  # noqa: E731
    bump = lambda x: np.sin(2.0 * x[..., 0]) * x[..., 0] / 4.0  # noqa: E731
    decaying = replace(problem, domain=box, running_reward=step, terminal_reward=bump)
    search = _Search(decaying, 1e-5, None, None, None, 0)
    found = search.run(lambda _: None)
    assert found.run.panels[-1].states[-2].min() < 1e-4
    assert max(found.parts["time"]) < 2e-5


SQUARE = Box([0.0, 0.0], [1.0, 1.0])
STRAIGHT = {
    "Brownian": {},
    "drift": {"drift": lambda t, x: np.sin(3 * x)},
    "coupled": {"drift": lambda t, x: np.sin(3 * x[..., ::-1]), "dim": 2, "domain": SQUARE},
    "nothing": {"terminal_reward": lambda x: 0 * x[..., 0]},
    "a rate": {"running_reward": lambda t, x: -2.0 + 0 * x[..., 0]},
    "absorbing": {
        "domain": Box([0.0], [1.0], boundary="absorbing", exit_reward=lambda t, x: 5.0 + 0 * x[..., 0]),
        "drift": lambda t, x: np.sin(3 * x),
    },
}


@pytest.mark.parametrize("kind", STRAIGHT)
def test_where_there_is_nothing_to_steer_the_value_is_known_and_the_policy_is_none(kind: str) -> None:
    """u is 1 and its gradient rounding: relative to that no step is short enough."""
    changes: dict[str, Any] = {"dim": 1, "domain": Box([0.0], [1.0])} | STRAIGHT[kind]
    problem = ControlProblem(
        horizon=1.0,
        temperature=1.0,
        diffusion=1.0,
        initial_law=Uniform(Box(*changes["domain"].bounds)),
        **({"drift": lambda t, x: 0 * x, "terminal_reward": lambda x: 5.0 + 0 * x[..., 0]} | changes),
    )
    solution = solve(problem, rtol=1e-3)
    assert solution.status == "ok"
    x = np.random.default_rng(0).uniform(0.05, 0.95, (50, problem.dim))
    paid = {"nothing": 0.0, "a rate": 3.0}.get(kind, 5.0)
    np.testing.assert_allclose(solution.value(0.0, x), paid, atol=1e-9)
    np.testing.assert_allclose(solution.policy(0.0, x), 0.0, atol=1e-8)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_small_rewards_have_a_policy_as_accurate_as_large_ones(size: float) -> None:
    """Reflected Brownian motion, y = alpha log(1 + size cos pi x): f = 1 + size exp(-pi^2 (T - t) / 2) cos pi x."""
    problem = ControlProblem(
        dim=1,
        horizon=0.2,
        temperature=2.0,
        drift=lambda t, x: 0 * x,
        diffusion=1.0,
        terminal_reward=lambda x: 2.0 * np.log1p(size * np.cos(np.pi * x[..., 0])),
        initial_law=Uniform(Box([0.0], [1.0])),
        domain=Box([0.0], [1.0]),
    )
    solution = solve(problem, rtol=1e-4)
    x = np.linspace(0.0, 1.0, 21)[:, None]
    decayed = size * np.exp(-0.5 * np.pi**2 * 0.2)
    exact = -np.pi * decayed * np.sin(np.pi * x) / (1.0 + decayed * np.cos(np.pi * x))
    assert solution.status == "ok"
    assert np.abs(solution.policy(0.0, x) - exact).max() < 1e-3 * np.abs(exact).max()
