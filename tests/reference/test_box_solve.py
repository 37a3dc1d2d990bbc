"""Processes that are stopped at faces, one solve on one grid: both routes against closed forms, their orders, stats."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, constant_gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference import box_solve as box_reference
from fem_hjb.reference.box_background import quadratic_gauge
from fem_hjb.reference.box_solve import solve_on_box
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.stepping.esdirk import esdirk
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from tests.support.exactness import space_derivative
from tests.support.fixed_steps import equal_radau

ALPHA = 0.7
TIMES = (0.0, 0.031, 0.137, 0.37, 0.5, 0.771, 0.9, 1.0)


def solved(
    problem: ControlProblem,
    cells: int,
    degree: int,
    *,
    box: Box | None = None,
    quadratic: bool = False,
    rtol_time: float = 1e-7,
) -> Solution:
    """On equal cells, with constants taken out unless said otherwise."""
    box = problem.domain if box is None else box
    assert box is not None
    basis = SpectralBasis(
        [SpectralLine(np.linspace(*ends, cells + 1), degree) for ends in zip(*box.bounds, strict=True)]
    )
    constants = constant_gauge(problem, basis.nodes, [0.0, problem.horizon])
    background: Gauge | QuadraticGauge | None = quadratic_gauge(problem, box, constants) if quadratic else constants
    assert background is not None
    return solve_on_box(problem, basis, background, rtol_time=rtol_time)


def errors(
    solution: Solution, exact: Any, times: tuple[float, ...] = TIMES, shrink: float = 1.0
) -> tuple[float, float]:
    """The largest errors of value and gradient in (a part of) the box, at nodes of time and between them."""
    lower, upper = solution.space.spatial.box.bounds
    x = np.random.default_rng(0).uniform(0, 1, (300, solution.problem.dim))
    x = (lower + upper) / 2 + shrink * (upper - lower) * (x - 0.5)
    worst = np.zeros(2)
    for share in times:
        t = share * solution.problem.horizon
        gaps = solution.value(t, x) - exact.value(t, x), solution.gradient(t, x) - exact.gradient(t, x)
        worst = np.maximum(worst, [np.abs(gap).max() for gap in gaps])
    return float(worst[0]), float(worst[1])


# Closed forms


@dataclass
class Heat:
    """f = harmonic + c exp(-rate (T - t)) wave, which solves the heat equation; v = alpha log f + r (T - t)."""

    Lambda: FloatArray
    absorbing: tuple[bool, ...]  # per axis, else reflecting
    upper: float = 1.0
    c: float = 1.5
    r: float = 0.4

    def f(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        fixed = np.array(self.absorbing)
        rate = 0.5 * np.pi**2 * self.Lambda.sum()
        wave = np.where(fixed, np.sin(np.pi * x), np.cos(np.pi * x)).prod(-1)
        harmonic = 2.5 + (x.prod(-1) if fixed.all() else 0.0)
        return np.asarray(harmonic + self.c * np.exp(-rate * (1.0 - np.asarray(t))) * wave)

    def value(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(ALPHA * np.log(self.f(t, x)) + self.r * (1.0 - np.asarray(t)))

    def gradient(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return space_derivative(self.value, t, x, 1e-2)

    def problem(self, **changes: Any) -> ControlProblem:
        d = len(self.absorbing)
        words = ["absorbing" if fixed else "reflecting" for fixed in self.absorbing]
        given = {
            "dim": d,
            "horizon": 1.0,
            "temperature": ALPHA,
            "drift": lambda t, x: 0.0 * x,
            "diffusion": self.Lambda,
            "running_reward": lambda t, x: np.full(x.shape[:-1], self.r),
            "terminal_reward": lambda x: self.value(1.0, x),
            "initial_law": Gaussian(np.full(d, 0.5), 1e-3),
            "domain": Box([0.0] * d, [1.0] * d, boundary=[(word, word) for word in words], exit_reward=self.value),
        }
        return ControlProblem(**{**given, **changes})


HEATS = [
    Heat(np.array([0.3]), (True,)),
    Heat(np.array([0.3, 0.2]), (True, True)),
    Heat(np.array([0.3, 0.2]), (False, True)),
]


@pytest.mark.parametrize("heat", HEATS, ids=["line", "square", "reflecting and absorbing"])
def test_exit_rewards_that_depend_on_place_and_time(heat: Heat) -> None:
    """The square's exit reward is alpha log(2.5 + x y) + r (T - t)."""
    problem, d = heat.problem(), len(heat.absorbing)
    loose, tight = (solved(problem, 2, 10, rtol_time=rtol) for rtol in (1e-4, 1e-8))
    assert tight.stats["route"] == ("collocation" if d == 1 else "krylov")
    assert max(errors(tight, heat)) < 1e-6
    if d == 2:
        assert max(errors(loose, heat)) > 1e-5  # time is what the errors are made of
    face = np.array([[0.0] * d, [1.0] * d, [0.2] * (d - 1) + [1.0]])
    for t in (0.0, 0.4):
        np.testing.assert_allclose(tight.value(t, face), heat.value(t, face), atol=1e-6)
    wrong = heat.problem(running_reward=lambda t, x: np.full(x.shape[:-1], 0.41))
    assert errors(solved(wrong, 2, 10), heat)[0] > 1e-4


def test_the_benchmark_with_a_stopping_time() -> None:
    """exp(v / alpha) at (0, -1), computed independently with a fine finite-difference scheme."""
    problem = zoo.get("soc-molecular-dynamics")
    solution = solved(problem, 6, 12, box=Box([-3.0], [0.0]), rtol_time=1e-9)
    assert np.exp(solution.value(0.0, [[-1.0]])[0]) == pytest.approx(0.4020938, abs=2e-7)
    assert solution.value(0.3, [[0.0]])[0] == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("heat", HEATS[:2], ids=["line", "square"])
def test_errors_fall_spectrally_with_the_degree(heat: Heat) -> None:
    degrees = np.array([3, 5, 7, 9])
    falls = [errors(solved(heat.problem(), 2, p), heat, (0.0, 0.7)) for p in degrees.tolist()]
    decay = -2 * np.polyfit(degrees, np.log(falls), 1)[0]  # per two degrees
    assert decay.min() > np.log(8)


# Not separable: a swirl in a square whose left and right faces stop the process


def swirl(strength: float = 1.5, moving: float = 0.8, dim: int = 2) -> ControlProblem:
    def drift(t: Any, x: FloatArray) -> FloatArray:
        p = np.pi * x
        now = strength * (1.0 + moving * np.sin(4.0 * np.asarray(t)))[..., None]
        if dim == 1:
            return np.asarray(now * np.sin(p))
        turn = np.stack([-np.sin(p[..., 0]) * np.cos(p[..., 1]), np.cos(p[..., 0]) * np.sin(p[..., 1])], -1)
        return np.asarray(now * turn)

    faces = [("absorbing", "absorbing"), ("reflecting", "reflecting")][:dim]
    return ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=0.5,
        drift=drift,
        diffusion=0.2,
        terminal_reward=lambda x: 0.5 * np.sin(np.pi * x[..., 0]) * (1 + 0.3 * np.cos(np.pi * x[..., -1])),
        initial_law=Gaussian([0.5] * dim, 1e-3),
        domain=Box([0.0] * dim, [1.0] * dim, boundary=faces, exit_reward=lambda t, x: 0.0 * x[..., 0]),
    )


def slope_of(name: str, equal: Any, counts: tuple[int, ...], dim: int, monkeypatch: pytest.MonkeyPatch) -> float:
    problem = swirl(dim=dim)
    monkeypatch.undo()
    best = solved(problem, 2, 5, rtol_time=1e-10)
    falls = []
    for count in counts:
        monkeypatch.setattr(box_reference, name, partial(equal, count=count))
        falls.append(errors(solved(problem, 2, 5), best, (0.0,))[0])
    return float(np.polyfit(np.log(counts), np.log(falls), 1)[0])


def test_the_order_in_time_of_implicit_steps_is_four(monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(*given: Any, count: int, rtol: float) -> Any:
        return esdirk(*given, steps=count)

    assert slope_of("esdirk", equal, (8, 16, 32), 2, monkeypatch) == pytest.approx(-4.0, abs=0.15)


def test_coefficients_at_wrong_times_leave_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = swirl()
    best = solved(problem, 2, 5, rtol_time=1e-9)
    monkeypatch.setattr(box_reference, "_time", lambda problem, s: float(problem.horizon - 0.99 * s))
    for rtol in (1e-5, 1e-7):
        assert errors(solved(problem, 2, 5, rtol_time=rtol), best, (0.0,))[0] > 1e-4


def test_collocation_is_of_high_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(*given: Any, count: int, rtol: float, **more: Any) -> Any:
        return equal_radau(*given, steps=count, **more)

    assert slope_of("radau", equal, (4, 8), 1, monkeypatch) < -8


@pytest.mark.parametrize("rtol", [1e-4, 1e-6])
@pytest.mark.parametrize("dim", [1, 2])
def test_tolerances_in_time_are_met(dim: int, rtol: float) -> None:
    problem = swirl(dim=dim)
    best = solved(problem, 2, 6, rtol_time=1e-10)
    assert errors(solved(problem, 2, 6, rtol_time=rtol), best)[0] < 30 * rtol


# The faces of a truncation


def half_line() -> ControlProblem:
    """An Ornstein-Uhlenbeck process stopped at 0, to which it comes from the left."""
    return ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=ALPHA,
        drift=lambda t, x: -x,
        diffusion=1.0,
        terminal_reward=lambda x: x[..., 0],
        initial_law=Gaussian([-1.0], 0.01),
        domain=Box([-np.inf], [0.0], boundary=[("natural", "absorbing")], exit_reward=lambda t, x: 0.0 * x[..., 0]),
    )


def test_open_faces_make_no_boundary_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = half_line()
    far = solved(problem, 8, 10, box=Box([-7.0], [0.0]))
    x = np.linspace(-2.95, -0.05, 60)[:, None]

    def missed(solution: Solution) -> float:
        return float(np.abs(solution.gradient(0.3, x) - far.gradient(0.3, x)).max())

    opened = missed(solved(problem, 4, 10, box=Box([-3.0], [0.0])))
    monkeypatch.setattr(box_reference, "truncated", lambda problem: np.zeros((2, 1), dtype=np.bool_))
    assert opened < 0.3 * missed(solved(problem, 4, 10, box=Box([-3.0], [0.0])))


def test_a_quadratic_taken_out_changes_nothing_but_the_unknown() -> None:
    problem, box = half_line(), Box([-6.0], [0.0])
    plain, taken = (solved(problem, 6, 14, box=box, quadratic=quadratic, rtol_time=1e-9) for quadratic in (False, True))
    x = np.linspace(-2.5, 0.0, 50)[:, None]
    assert isinstance(taken.gauge, QuadraticGauge)
    for t in (0.0, 0.4, 0.9):
        np.testing.assert_allclose(taken.value(t, x), plain.value(t, x), atol=1e-5)
        np.testing.assert_allclose(taken.gradient(t, x), plain.gradient(t, x), atol=1e-3)


# What is told


@pytest.mark.parametrize(("heat", "route"), [(HEATS[0], "collocation"), (HEATS[1], "krylov")])
def test_stats(heat: Heat, route: str) -> None:
    solution = solved(heat.problem(), 2, 6, rtol_time=1e-3)
    stats, d = solution.stats, len(heat.absorbing)
    assert (stats["dofs"], stats["shape"], stats["degree"]) == (13**d, (13,) * d, 6)
    assert (stats["form"], stats["route"], stats["why"]) == ("linear", route, "values are prescribed on faces")
    assert stats["steps"] >= 1
    assert stats["rejected"] >= 0
    assert stats["seconds"] > 0
    if route == "krylov":
        assert stats["iterations"] >= stats["linear_solves"] >= stats["steps"]
    assert (solution.status, solution.method) == ("ok", "box")
    assert isinstance(solution.gauge, Gauge)


def test_a_u_that_is_not_positive_is_told() -> None:
    def cliff(x: FloatArray) -> FloatArray:
        return np.where(x[..., 0] > 0.5, 0.0, -30.0)

    problem = replace(HEATS[0].problem(), terminal_reward=cliff, diffusion=0.01)
    solution = solved(problem, 5, 8)
    bad, size = int((np.asarray(solution.coefficients) <= 0).sum()), np.asarray(solution.coefficients).size
    assert bad > 0
    assert solution.status == f"u is not positive at {bad} of {size} nodes of space and time"


def test_growth_beyond_double_precision_is_an_error() -> None:
    """A running reward of a thousand temperatures that the gauge does not take out."""
    problem = replace(HEATS[0].problem(), running_reward=lambda t, x: 1000.0 + 0.0 * x[..., 0])
    basis = SpectralBasis([SpectralLine([0.0, 0.5, 1.0], 6)])
    none = Gauge(temperature=ALPHA, horizon=1.0, terminal=0.0, running=0.0)
    with pytest.raises(ConvergenceError, match="the step fell to"):
        solve_on_box(problem, basis, none, rtol_time=1e-4)
