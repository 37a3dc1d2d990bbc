"""One solve on one box: every route against closed forms and against the others, and which route is taken when."""

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, ValueGauge, constant_gauge
from fem_hjb.problems.laws import Gaussian, Uniform
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference import box_solve as box_reference
from fem_hjb.reference.box_background import quadratic_gauge
from fem_hjb.reference.box_solve import solve_on_box
from fem_hjb.solutions.compare import from_callables
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.stepping.esdirk import esdirk
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from tests.support.exactness import space_derivative
from tests.support.fixed_steps import equal_lawson, equal_radau

ALPHA = 0.7
TIMES = (0.0, 0.031, 0.137, 0.37, 0.5, 0.771, 0.9, 1.0)


def solved(
    problem: ControlProblem, cells: int, degree: int, *, box: Box | None = None, quadratic: bool = False, **how: Any
) -> Solution:
    """On equal cells; in the linear form, with constants taken out, unless said otherwise."""
    box = problem.domain if box is None else box
    assert box is not None
    basis = SpectralBasis(
        [SpectralLine(np.linspace(*ends, cells + 1), degree) for ends in zip(*box.bounds, strict=True)]
    )
    background: Gauge | QuadraticGauge | None = constant_gauge(problem, basis.nodes, [0.0, problem.horizon])
    if quadratic:
        background = quadratic_gauge(problem, box, background)
        assert background is not None
    return solve_on_box(problem, basis, background, **{"rtol_time": 1e-7, "linear": True, **how})


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


# Reflecting faces


REFLECTED = zoo.get("reflected", 1)
ONE_DIMENSION = [
    ("exponential", True, 1e-9, 1e-8),
    ("collocation", True, 3e-6, 1e-5),
    ("lawson", True, 3e-6, 1e-5),
    ("krylov", True, 3e-6, 1e-5),
    ("rational-krylov", True, 1e-8, 1e-6),
    ("newton", False, 2e-5, 1e-3),
    ("lawson", False, 2e-5, 1e-3),
]


@pytest.mark.parametrize(("route", "linear", "value", "gradient"), ONE_DIMENSION)
def test_every_route_reaches_the_closed_form_in_one_dimension(route: str, linear: bool, value: float, gradient: float):
    solution = solved(REFLECTED, 2, 14, route=route, linear=linear)
    assert solution.stats["route"] == route
    assert solution.stats["form"] == ("linear" if linear else "value")
    assert isinstance(solution.gauge, Gauge if linear else ValueGauge)
    in_value, in_gradient = errors(solution, REFLECTED.exact)
    assert in_value < value
    assert in_gradient < gradient


@pytest.mark.parametrize(
    ("route", "linear", "value", "gradient"),
    [
        ("lawson", True, 1e-6, 1e-4),
        ("krylov", True, 1e-6, 1e-4),
        ("rational-krylov", True, 1e-6, 1e-4),
        ("lawson", False, 3e-5, 1e-3),
    ],
)
def test_every_route_reaches_the_closed_form_in_two_dimensions(route: str, linear: bool, value: float, gradient: float):
    problem = zoo.get("reflected", 2, lower=[0.0, -1.0], Lambda=[0.2, 0.5])
    in_value, in_gradient = errors(solved(problem, 2, 12, route=route, linear=linear), problem.exact)
    assert in_value < value
    assert in_gradient < gradient


# Absorbing faces


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
def test_exit_rewards_that_depend_on_place_and_time(heat: Heat):
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


def test_the_benchmark_with_a_stopping_time():
    """exp(v / alpha) at (0, -1), computed independently with a fine finite-difference scheme."""
    problem = zoo.get("soc-molecular-dynamics")
    solution = solved(problem, 6, 12, box=Box([-3.0], [0.0]), rtol_time=1e-9)
    assert (solution.stats["route"], solution.stats["why"]) == ("collocation", "one dimension")
    assert np.exp(solution.value(0.0, [[-1.0]])[0]) == pytest.approx(0.4020938, abs=2e-7)
    assert solution.value(0.3, [[0.0]])[0] == pytest.approx(0.0, abs=1e-8)


# Not separable: a swirl


def swirl(strength: float = 4.0, moving: float = 0.0) -> ControlProblem:
    """A rotation in a square that vanishes across its faces."""

    def drift(t: Any, x: FloatArray) -> FloatArray:
        p = np.pi * x
        turn = np.stack([-np.sin(p[..., 0]) * np.cos(p[..., 1]), np.cos(p[..., 0]) * np.sin(p[..., 1])], -1)
        return np.asarray(strength * (1.0 + moving * np.sin(4.0 * np.asarray(t)))[..., None] * turn)

    box = Box([0.0, 0.0], [1.0, 1.0])
    return ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=0.5,
        drift=drift,
        diffusion=0.2,
        terminal_reward=lambda x: 0.5 * np.cos(np.pi * x[..., 0]) + 0.3 * np.cos(np.pi * x[..., 1]),
        initial_law=Uniform(box),
        domain=box,
        name="swirl",
    )


SWIRL, MOVING = swirl(), swirl(1.5, 0.8)


@pytest.fixture(scope="module")
def swirled() -> Solution:
    return solved(SWIRL, 3, 12, rtol_time=1e-8, route="lawson")


@pytest.mark.parametrize(
    ("route", "linear"), [("lawson", True), ("krylov", True), ("rational-krylov", True), ("lawson", False)]
)
def test_routes_agree_where_nothing_is_separable(route: str, linear: bool, swirled: Solution):
    solution = solved(SWIRL, 3, 8, route=route, linear=linear, rtol_time=1e-5)
    assert errors(solution, swirled)[0] < 1e-4
    assert errors(solution, swirled, (0.0,))[0] < 3e-5
    still = solved(swirl(3.9), 2, 8, route=route, linear=linear, rtol_time=1e-4)
    assert errors(still, swirled, (0.0,))[0] > 1e-3


def test_policy_iteration_agrees_with_the_linear_equation(swirled: Solution):
    assert errors(solved(SWIRL, 2, 8, route="newton", linear=False, rtol_time=1e-4), swirled, (0.0,))[0] < 3e-4


@pytest.mark.parametrize("linear", [True, False])
def test_errors_fall_spectrally_with_the_degree(linear: bool, swirled: Solution):
    degrees = np.array([4, 6, 8, 10])
    falls = [errors(solved(SWIRL, 2, p, linear=linear, rtol_time=1e-6), swirled, (0.0,)) for p in degrees.tolist()]
    decay = -2 * np.polyfit(degrees, np.log(falls), 1)[0]  # per two degrees
    assert decay.min() > np.log(3)


@pytest.mark.parametrize(("route", "counts"), [("krylov", (8, 16, 32)), ("lawson", (256, 384, 576))])
def test_the_order_in_time_is_four_unless_coefficients_are_taken_at_wrong_times(
    route: str, counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    best = solved(MOVING, 2, 5, route=route, rtol_time=1e-9 if route == "krylov" else 1e-11)
    name = "esdirk" if route == "krylov" else "lawson"

    def equal(*given: Any, count: int, norm: Any = None, **chosen: Any) -> Any:
        return esdirk(*given, steps=count) if route == "krylov" else equal_lawson(*given, steps=count, norm=norm)

    def slope() -> float:
        falls = []
        for count in counts:
            monkeypatch.setattr(box_reference, name, partial(equal, count=count))
            falls.append(errors(solved(MOVING, 2, 5, route=route), best, (0.0,))[0])
        return float(np.polyfit(np.log(counts), np.log(falls), 1)[0])

    assert slope() == pytest.approx(-4.0, abs=0.15)
    monkeypatch.setattr(box_reference, "_time", lambda problem, s: float(problem.horizon - 0.99 * s))
    assert slope() > -0.5


def test_collocation_is_of_high_order(monkeypatch: pytest.MonkeyPatch):
    def drift(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(2.0 * np.sin(np.pi * x) * (1.0 + 0.8 * np.sin(4.0 * np.asarray(t)))[..., None])

    def reward(x: FloatArray) -> FloatArray:
        return np.asarray(0.5 * np.cos(np.pi * x[..., 0]))

    problem = replace(zoo.get("reflected", 1), drift=drift, terminal_reward=reward, exact=None)
    best = solved(problem, 2, 6, rtol_time=1e-11)
    assert best.stats["why"] == "one dimension, coefficients depend on time"

    def equal(*given: Any, count: int, rtol: float, **more: Any) -> Any:
        return equal_radau(*given, steps=count, **more)

    falls = []
    for count in (2, 4):
        monkeypatch.setattr(box_reference, "radau", partial(equal, count=count))
        falls.append(errors(solved(problem, 2, 6), best, (0.0,))[0])
    assert falls[1] < falls[0] / 2**8
    assert falls[1] < 1e-6


# A full diffusion that depends on place and time


S = np.array([0.4, -0.3])


def full(t: Any, x: FloatArray) -> FloatArray:
    low = np.zeros((*x.shape[:-1], 2, 2))
    low[..., 0, 0] = 1.0 + 0.3 * np.sin(x[..., 1])
    low[..., 1, 0] = 0.4 * np.cos(x[..., 0] + np.asarray(t))
    low[..., 1, 1] = 0.8
    return low @ np.swapaxes(low, -1, -2)


def tilted(Lambda: Any = full) -> ControlProblem:
    """v = s'x for any Lambda: r = -s'b - s' Lambda s / (2 alpha)."""
    return ControlProblem(
        dim=2,
        horizon=0.5,
        temperature=0.6,
        drift=lambda t, x: -2.0 * x,
        diffusion=full,
        running_reward=lambda t, x: 2.0 * x @ S - np.einsum("i,...ij,j->...", S, Lambda(t, x), S) / 1.2,
        terminal_reward=lambda x: x @ S,
        initial_law=Gaussian([0.0, 0.0], 0.05),
        exact=from_callables(lambda t, x: x @ S, lambda t, x: np.broadcast_to(S, x.shape)),
        name="tilted",
    )


@pytest.mark.parametrize(
    ("route", "linear", "quadratic", "tolerance"),
    [
        ("lawson", True, True, 1e-4),
        ("krylov", True, True, 1e-4),
        ("lawson", False, True, 1e-4),
        ("lawson", False, False, 1e-6),
        ("newton", False, False, 1e-9),
    ],
)
def test_a_full_diffusion_that_depends_on_place_and_time(route: str, linear: bool, quadratic: bool, tolerance: float):
    box = Box([-3.0, -3.0], [3.0, 3.0])

    def run(problem: ControlProblem) -> float:
        return max(
            errors(
                solved(problem, 2, 8, box=box, quadratic=quadratic, route=route, linear=linear, rtol_time=1e-6),
                tilted().exact,
                shrink=0.5,
            )
        )

    assert run(tilted()) < tolerance
    if route == "lawson":
        # the mixed part of Lambda matters: without it in the reward the value is another one
        assert run(tilted(lambda t, x: full(t, x) * np.eye(2))) > 1e-3


def test_three_dimensions():
    problem, box = zoo.get("lq", 3), Box([-4.0] * 3, [4.0] * 3)
    solution = solved(problem, 2, 6, box=box, quadratic=True, rtol_time=1e-5)
    assert solution.stats["route"] == "lawson"
    assert max(errors(solution, problem.exact, (0.0, 0.4), shrink=0.5)) < 1e-9
    plain = solved(problem, 2, 6, box=box, linear=False, rtol_time=1e-4)
    assert 1e-9 < errors(plain, problem.exact, (0.0,), shrink=0.3)[0] < 2e-2


# The faces of a truncation


@pytest.mark.parametrize("linear", [False, True])
def test_open_faces_make_no_boundary_layer(linear: bool, monkeypatch: pytest.MonkeyPatch):
    problem, box = zoo.get("linear-ou", 1), Box([-3.0], [3.0])
    exact = problem.exact
    face = np.array([[-3.0], [3.0]])

    def slopes(solution: Solution) -> float:
        assert exact is not None
        return float(np.abs(solution.gradient(0.3, face) - exact.gradient(0.3, face)).max())

    opened = solved(problem, 4, 8, box=box, linear=linear)
    inside = errors(opened, exact, (0.3,), shrink=0.6)[1]
    monkeypatch.setattr(box_reference, "truncated", lambda problem: np.zeros((2, 1), dtype=np.bool_))
    natural = solved(problem, 4, 8, box=box, linear=linear)
    if linear:  # natural conditions impose a slope of zero
        assert slopes(opened) < 0.2 * slopes(natural)
        assert slopes(natural) > 0.4
        assert inside < 0.5 * errors(natural, exact, (0.3,), shrink=0.6)[1]
    else:  # v is linear: exact but for time steps; policy iteration keeps its own faces open
        assert slopes(opened) < 1e-6


# Which route, and why


ROUTES = [
    (REFLECTED, True, "exponential", "one dimension, nothing depends on time"),
    (REFLECTED, False, "newton", "f ranges over too many orders"),
    (HEATS[0].problem(), True, "collocation", "one dimension"),
    (SWIRL, True, "lawson", r"stability of what is not separable asks for at most \d+ steps"),
    (SWIRL, False, "lawson", "stability of what is not separable"),
    (HEATS[1].problem(), True, "krylov", "values are prescribed on faces"),
]
STIFF = [
    (SWIRL, True, "rational-krylov", r"nothing depends on time; explicit steps would be \d+"),
    (MOVING, True, "krylov", r"too stiff for explicit steps \(\d+ of them\)"),
    (SWIRL, False, "newton", r"too stiff for explicit steps \(\d+ of them\)"),
]


@pytest.mark.parametrize(("problem", "linear", "route", "why"), ROUTES)
def test_the_route_that_fits_is_taken(problem: ControlProblem, linear: bool, route: str, why: str):
    stats = solved(problem, 2, 6, linear=linear, rtol_time=1e-3).stats
    assert stats["route"] == route
    assert re.search(why, stats["why"])


@pytest.mark.parametrize(("problem", "linear", "route", "why"), STIFF)
def test_implicit_routes_where_explicit_steps_would_be_too_many(
    problem: ControlProblem, linear: bool, route: str, why: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(box_reference, "_LAWSON_STEPS", 3)
    stats = solved(problem, 2, 5, linear=linear, rtol_time=1e-3).stats
    assert stats["route"] == route
    assert re.search(why, stats["why"])


# What is told


def test_stats():
    solution = solved(SWIRL, 2, 6, rtol_time=1e-3)
    stats = solution.stats
    assert (stats["dofs"], stats["shape"], stats["degree"]) == (169, (13, 13), 6)
    assert stats["steps"] >= 1
    assert stats["seconds"] > 0
    assert solution.status == "ok"
    assert solution.method == "box"
    assert solved(REFLECTED, 2, 6, linear=False, rtol_time=1e-3).method == "newton"


def test_a_u_that_is_not_positive_is_told():
    def cliff(x: FloatArray) -> FloatArray:
        return np.where(x[..., 0] > 0.5, 0.0, -30.0)

    problem = replace(zoo.get("reflected", 1, Lambda=0.01), terminal_reward=cliff, exact=None)
    solution = solved(problem, 5, 8)
    bad, size = int((np.asarray(solution.coefficients) <= 0).sum()), np.asarray(solution.coefficients).size
    assert bad > 0
    assert solution.status == f"u is not positive at {bad} of {size} nodes of space and time"


@pytest.mark.parametrize("route", ["krylov", "rational-krylov"])
def test_routes_of_the_linear_form_refuse_the_other(route: str):
    with pytest.raises(ConvergenceError, match=f"the route '{route}' solves the linear form only"):
        solved(SWIRL, 2, 4, route=route, linear=False)


@pytest.mark.parametrize("route", ["exponential", "collocation"])
def test_routes_of_the_linear_form_in_one_dimension_refuse_the_other(route: str):
    with pytest.raises(ConvergenceError, match=f"the route '{route}' solves the linear form only"):
        solved(REFLECTED, 2, 4, route=route, linear=False)


def test_unknown_routes_are_refused():
    with pytest.raises(ConvergenceError, match=r"route must be one of 'exponential', .*got 'teleport'"):
        solved(REFLECTED, 2, 4, route="teleport")
