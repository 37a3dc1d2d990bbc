"""Exit problems on boxes: closed forms and quadratures, orders, error bars, infinite values, small temperatures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import skfem
from scipy.integrate import quad, solve_ivp

import fem_hjb as fh
from fem_hjb.reference.exit_box import _fixed
from fem_hjb.reference.exit_equation import ExitEquation, InfiniteOnGridError
from fem_hjb.reference.steady_checks import equation_check
from fem_hjb.reference.steady_ladder import climb
from fem_hjb.solutions.steady import SteadyFunction
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.errors import ConvergenceError, DomainError, InfiniteValueError, ProblemError, SpaceError
from fem_hjb.support.progress import unheard

st = fh.stationary
Field = Callable[[np.ndarray], np.ndarray]


def still(x: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


def rate(number: float) -> Field:
    return lambda x: np.full(x.shape[:-1], number)


def line(drift: Field = still, diffusion: Any = 1.0, ends: tuple[float, float] = (0.0, 1.0), **more: Any) -> Any:
    known = {"domain": fh.Box([ends[0]], [ends[1]], boundary="absorbing"), "temperature": 1.0}
    return fh.ExitProblem(**{"dim": 1, "drift": drift, "diffusion": diffusion, **known, **more})


def cube(dim: int, boundary: Any = "absorbing", **more: Any) -> Any:
    domain = fh.Box([-1.0] * dim, [1.0] * dim, boundary=boundary)
    known = {"drift": still, "diffusion": 1.0, "temperature": 1.0, "domain": domain}
    return fh.ExitProblem(**{"dim": dim, **known, **more})


def test_hitting_probability_is_the_ratio_of_scale_functions() -> None:
    def drift(x: Any) -> Any:
        return np.sin(3 * x) - x

    def noise(x: Any) -> Any:
        return 1.0 + 0.5 * np.sin(x)

    found = st.committor(line(drift, lambda x: noise(x)[..., None], (-1.0, 2.0)), [(0, "upper")], rtol=1e-9)
    potential = solve_ivp(
        lambda u, _: [2 * drift(u) / noise(u)], (-1.0, 2.0), [0.0], rtol=1e-12, atol=1e-12, dense_output=True
    ).sol

    def scale(b: float) -> float:
        return float(quad(lambda u: math.exp(-potential(u)[0]), -1.0, b, epsabs=1e-12, limit=200)[0])

    assert found.status == "ok"
    for x in (-0.5, 0.3, 1.7):
        assert abs(found.value([x]) - scale(x) / scale(2.0)) < 1e-9


def laplace(well: Field, noise: float, killing: float, start: float) -> float:
    """log E exp(-killing tau) for the first time at 1, by the equation of (log f)': w' = -w^2 - (2/s)(b w - k)."""

    def slope(x: float, y: np.ndarray) -> list[float]:
        (b,) = well(np.array([x]))
        return [-(y[0] ** 2) - 2.0 / noise * (b * y[0] - killing), y[0]]

    (b,) = well(np.array([-2.5]))
    way = solve_ivp(slope, (-2.5, 1.0), [killing / b, 0.0], method="LSODA", rtol=1e-11, atol=1e-13, dense_output=True)
    return float(way.sol(start)[1] - way.y[1, -1])


@pytest.mark.parametrize(
    ("height", "temperature", "rtol", "form"),
    [(5.0, 1.0, 1e-6, "linear"), (1.0, 0.1, 1e-6, "linear"), (1.0, 0.05, 1e-5, "value"), (1.0, 0.0216, 1e-4, "value")],
)
def test_out_of_a_well_at_any_temperature(height: float, temperature: float, rtol: float, form: str) -> None:
    def well(x: np.ndarray) -> np.ndarray:
        return -4.0 * height * x * (x**2 - 1)

    box = fh.Box([-2.0], [1.0], boundary=[("natural", "absorbing")])
    problem = line(well, 2 * temperature, running_reward=rate(-temperature), temperature=temperature, domain=box)
    found = st.solve_exit(problem, rtol=rtol)
    log_f = found.value([-1.0]) / temperature
    assert found.status == "ok"
    assert found.stats["form"] == form
    exact = laplace(well, 2 * temperature, 1.0, -1.0)
    assert abs(log_f / exact - 1.0) < rtol
    if height == 5.0:
        assert abs(exact + 3.84443) < 1e-5
    if temperature < 0.03:
        assert exact < math.log(1e-20)


def test_both_forms_have_the_same_solution() -> None:
    problem = line(lambda x: np.cos(x), 0.7, running_reward=rate(-1.0), exit_reward=lambda x: x[..., 0])
    basis = SpectralBasis([SpectralLine(np.linspace(0.0, 1.0, 4), 10)])
    equation = ExitEquation(problem, basis, _fixed(problem.domain, basis))
    linear = equation.linear()
    value = equation.newton(np.zeros(basis.n_dofs), 1.0)
    assert linear is not None
    assert value is not None
    np.testing.assert_allclose(value, linear, atol=1e-10)


def manufactured(dim: int) -> tuple[Any, Field, Field]:
    """r and g so that v = sum_i sin(x_i + i) + x_1 x_d / 2, with a drift and a full Lambda that depend on the state."""
    alpha, k = 0.7, np.arange(dim)

    def value(x: np.ndarray) -> np.ndarray:
        return np.sin(x + k).sum(-1) + 0.5 * x[..., 0] * x[..., -1]

    def gradient(x: np.ndarray) -> np.ndarray:
        slope = np.cos(x + k)
        slope[..., 0] += 0.5 * x[..., -1]
        slope[..., -1] += 0.5 * x[..., 0]
        return slope

    def drift(x: np.ndarray) -> np.ndarray:
        return np.cos(2 * x[..., ::-1]) - x

    def noise(x: np.ndarray) -> np.ndarray:
        shared = 0.3 * np.sin(x.sum(-1))[..., None, None] * np.ones((dim, dim))
        return shared + np.eye(dim) * (1.5 + 0.2 * x[..., 0] ** 2)[..., None, None]

    def reward(x: np.ndarray) -> np.ndarray:
        hessian = np.zeros((*x.shape, dim))
        hessian[..., k, k] = -np.sin(x + k)
        hessian[..., 0, -1] += 0.5
        hessian[..., -1, 0] += 0.5
        slope, matrix = gradient(x), noise(x)
        second = 0.5 * np.einsum("...ij,...ij->...", matrix, hessian)
        return -((drift(x) * slope).sum(-1) + second + np.einsum("...i,...ij,...j->...", slope, matrix, slope) / 1.4)

    return (
        cube(dim, drift=drift, diffusion=noise, running_reward=reward, exit_reward=value, temperature=alpha),
        value,
        gradient,
    )


@pytest.mark.parametrize(("dim", "rtol"), [(1, 1e-8), (2, 1e-6), (3, 2e-3)])
def test_problems_made_for_a_value_are_solved_to_the_tolerance(dim: int, rtol: float) -> None:
    problem, value, gradient = manufactured(dim)
    found = st.solve_exit(problem, rtol=rtol)
    assert found.status == "ok"
    x = np.random.default_rng(0).uniform(-1, 1, (4000, dim))
    matrix = problem.Lambda(x)

    def size(slope: np.ndarray) -> float:
        return float(np.einsum("ni,nij,nj->", slope, matrix, slope)) ** 0.5

    off = np.linalg.norm(found.value(x) - value(x)) / np.linalg.norm(value(x))
    steered = size(found.gradient(x) - gradient(x)) / size(gradient(x))
    estimate = found.error_estimate
    assert off <= max(estimate.value, 1e-9)
    assert steered <= max(estimate.policy, 1e-9)
    assert max(off, steered) <= rtol
    wrong = found.value(x) - 1.01 * value(x)  # the test can see an error of a hundredth
    assert np.linalg.norm(wrong) / np.linalg.norm(value(x)) > rtol
    expected = np.einsum("nij,nj->ni", matrix, gradient(x)) / problem.temperature
    np.testing.assert_allclose(found.policy(x), expected, atol=30 * rtol)


def test_spectral_elements_have_their_order() -> None:
    problem, value, gradient = manufactured(1)
    x = np.linspace(-1, 1, 997)[:, None]
    errors = []
    for cells in (4, 8, 16):
        basis = SpectralBasis([SpectralLine(np.linspace(-1, 1, cells + 1), 3)])
        v = ExitEquation(problem, basis, _fixed(problem.domain, basis)).newton(np.zeros(basis.n_dofs), 1.0)
        assert v is not None
        function = SteadyFunction(basis, v)
        apart = function.value(x) - value(x), function.gradient(x) - gradient(x)
        errors.append([np.sqrt((each**2).mean()) for each in apart])
    slopes = np.polyfit(np.log([4, 8, 16]), np.log(errors), 1)[0]
    np.testing.assert_allclose(slopes, [-4.0, -3.0], atol=0.15)


def torsion(x: np.ndarray) -> np.ndarray:
    """Mean exit time of Brownian motion from [-1, 1]^2 (S. P. Timoshenko and J. N. Goodier, Theory of Elasticity)."""
    k = np.arange(1, 80, 2)[:, None]
    a, b = np.pi / 2 * k * x[:, 0], np.pi / 2 * k * np.abs(x[:, 1])
    ratio = (np.exp(b - np.pi / 2 * k) + np.exp(-b - np.pi / 2 * k)) / (1 + np.exp(-np.pi * k))
    series = ((-1.0) ** ((k - 1) // 2) * np.cos(a) * ratio / k**3).sum(axis=0)
    return (1 - x[:, 0] ** 2) - 32 / np.pi**3 * series


def test_mean_exit_times() -> None:
    found = st.mean_exit_time(cube(2), rtol=1e-4)
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (200, 2))
    assert found.status == "ok"
    np.testing.assert_allclose(found.value(x), torsion(x), atol=5e-6)
    walls = [("reflecting", "absorbing"), ("reflecting", "reflecting")]
    one_way = st.mean_exit_time(cube(2, walls, diffusion=[2.0, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(one_way.value(x), (4 - (1 + x[:, 0]) ** 2) / 2.0, atol=1e-8)


def test_mean_exit_times_from_a_deep_well_are_as_good_as_they_say() -> None:
    """The operator is singular to nine digits: solutions of degrees 10 and 12 agree by chance, long before they should.

    m(-1) = (2 / s) int_{-1}^1 e^{2 V(y) / s} int_{-oo}^y e^{-2 V(z) / s} dz dy, by Gauss rules on cells.
    """
    points, weights = np.polynomial.legendre.leggauss(40)
    grid = np.linspace(-3.0, 1.0, 801)
    y, w = grid[:-1, None] + 0.0025 * (points + 1), 0.0025 * weights
    density = np.exp(-20 * (y**2 - 1) ** 2)
    series = np.polynomial.legendre.legint(np.polynomial.legendre.legfit(points, density.T, 30), lbnd=-1) * 0.0025
    before = np.concatenate([[0.0], np.cumsum(density @ w)[:-1]])
    inner = before[:, None] + np.polynomial.legendre.legval(points, series)
    late = grid[:-1] > -1 - 1e-9
    exact = 20 * float(((inner[late] / density[late]) @ w).sum())
    box = fh.Box([-2.0], [1.0], boundary=[("natural", "absorbing")])
    found = st.mean_exit_time(line(lambda x: -4 * x * (x**2 - 1), 0.1, domain=box), rtol=1e-3)
    assert found.status == "ok"
    assert exact > 5e8
    assert abs(found.value([-1.0]) / exact - 1) < found.error_estimate.value < 1e-3


def test_harmonic_functions_are_their_own_expectations() -> None:
    def harmonic(x: np.ndarray) -> np.ndarray:
        return np.exp(x[..., 0]) * np.cos(x[..., 1]) - 1.0

    found = st.exit_expectation(cube(2), harmonic, rtol=1e-8)
    x = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    assert found.status == "ok"
    assert harmonic(x).min() < 0.0
    np.testing.assert_allclose(found.value(x), harmonic(x), atol=1e-9)


def test_a_payoff_that_jumps_between_faces_is_told() -> None:
    with pytest.warns(fh.ToleranceWarning, match="committor"):
        found = st.committor(cube(2), [(0, "upper")], max_dofs=3000)
    assert abs(found.value([0.0, 0.0]) - 0.25) < 5e-3
    assert found.status != "ok"


def test_rewards_that_are_too_high_have_no_finite_value() -> None:
    for reward in (math.pi**2 / 2 + 1e-3, 40.0):
        with pytest.raises(InfiniteValueError, match="principal eigenvalue"):
            st.solve_exit(line(running_reward=rate(reward)))
    below = math.pi**2 / 2 - 0.1
    found = st.solve_exit(line(running_reward=rate(below)), rtol=1e-6)
    assert abs(found.value([0.5]) + math.log(math.cos(math.sqrt(2 * below) / 2))) < 1e-6
    box = fh.Box([-2.0], [1.0], boundary=[("natural", "absorbing")])
    deep = line(lambda x: -4 * x * (x**2 - 1), 0.1, temperature=0.05, domain=box)
    late = float(st.mean_exit_time(deep, rtol=1e-2).value([-1.0]))  # grids too coarse have an eigenvalue > 0
    slow = line(deep.drift, 0.1, temperature=0.05, domain=box, running_reward=rate(0.05 * 0.5 / late))
    f = st.solve_exit(slow, rtol=1e-2).f([-1.0])
    assert abs(f - 2.0) < 1e-2  # exp(mu tau), tau exponential: 1 / (1 - mu E tau)
    equation = ExitEquation(line(running_reward=rate(below)), *fine_line())
    assert abs(equation.principal() - (below - math.pi**2 / 2)) < 1e-8


@pytest.mark.parametrize("amplitude", [0.5, 1.0])
def test_a_value_is_not_infinite_by_an_eigenvalue_that_meshes_do_not_agree_on(amplitude: float) -> None:
    """v = A cos 3x is finite; the process hardly ever leaves a well, so that the eigenvalue is -e^-200."""

    def drift(x: np.ndarray) -> np.ndarray:
        return np.asarray(-3.0 * np.tanh(6.0 * (x - 0.2)))

    def reward(x: np.ndarray) -> np.ndarray:
        slope, bend = -3.0 * amplitude * np.sin(3.0 * x), -9.0 * amplitude * np.cos(3.0 * x)
        return np.asarray(-(drift(x) * slope + 0.01 * bend + 0.01 * slope**2)[..., 0])

    problem = fh.ExitProblem(
        dim=1,
        temperature=1.0,
        drift=drift,
        diffusion=0.02,
        running_reward=reward,
        exit_reward=lambda x: amplitude * np.cos(3.0 * x[..., 0]),
    )
    with pytest.raises(ConvergenceError, match="is finite is not known"):
        st.solve_exit_on_mesh(problem, skfem.MeshLine(np.linspace(-1.0, 1.0, 129)))


def test_nor_by_those_of_three_grids() -> None:
    def raised(eigenvalues: list[float]) -> type[Exception]:
        left = iter(eigenvalues)

        def attempt(*_: Any) -> Any:
            raise InfiniteOnGridError("it", next(left))

        box = fh.Box([0.0], [1.0])
        with pytest.raises((ConvergenceError, InfiniteValueError)) as caught:
            climb(box, box, attempt, None, 1e-3, 1000, unheard)  # type: ignore[arg-type]
        assert next(left, None) is None
        return caught.type

    assert raised([2.2e-4, 2.4e-13, 8.4e-14]) is ConvergenceError
    assert raised([7.0, 2.1, 2.0]) is InfiniteOnGridError


def fine_line() -> tuple[SpectralBasis, np.ndarray]:
    basis = SpectralBasis([SpectralLine(np.linspace(0, 1, 30), 10)])  # more than are made dense
    return basis, np.array([0, basis.n_dofs - 1])


def test_the_equation_is_looked_at_with_the_callables_of_the_problem() -> None:
    problem, _, _ = manufactured(2)
    found = st.solve_exit(problem, rtol=1e-4)
    good = equation_check(problem, problem.domain, found.function, 1e-4)
    assert good.passed
    bad = equation_check(cube(2, drift=problem.drift), problem.domain, found.function, 1e-4)
    assert not bad.passed


def test_natural_faces_are_moved_to_see_what_they_do() -> None:
    def pushed(x: np.ndarray) -> np.ndarray:
        return 1.0 + 0 * x

    near, far = (fh.Box([a], [1.0], boundary=[("natural", "absorbing")]) for a in (0.5, -6.0))
    with pytest.warns(fh.ToleranceWarning, match="limited by truncation"):
        cut = st.solve_exit(line(pushed, running_reward=rate(-1.0), domain=near), rtol=1e-6)
    assert cut.error_estimate.truncation > 1e-3
    whole = st.solve_exit(line(pushed, running_reward=rate(-1.0), domain=far), rtol=1e-6)
    assert whole.status == "ok"
    assert abs(whole.value([0.0]) - (1 - math.sqrt(3))) < 1e-6  # f = exp((3^{1/2} - 1)(x - 1))


def test_time_progress_and_unknowns_are_kept_to() -> None:
    seen: list[float] = []
    problem, _, _ = manufactured(2)
    st.solve_exit(problem, rtol=1e-3, progress=seen.append, max_seconds=100.0)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with pytest.raises(ConvergenceError, match="no solution within max_seconds=1e-05"):
        st.solve_exit(problem, max_seconds=1e-5)
    with pytest.warns(fh.ToleranceWarning, match="max_dofs=1000"):
        few = st.solve_exit(problem, rtol=1e-10, max_dofs=1000)
    assert few.stats["dofs"] <= 1000
    with pytest.raises(ConvergenceError, match="no grid that max_dofs allows"):
        st.solve_exit(problem, max_dofs=10)


GOOD = line()
REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "solve_exit needs an ExitProblem, got str": (ProblemError, lambda: fh.solve_exit("a")),
    "committor needs an ExitProblem, got NoneType": (ProblemError, lambda: st.committor(None, [(0, "upper")])),
    "rtol must be a number from 1e-10": (ConvergenceError, lambda: st.solve_exit(GOOD, rtol=1.0)),
    "max_dofs must be a positive integer": (SpaceError, lambda: st.solve_exit(GOOD, max_dofs=0)),
    "progress must be a callable": (ConvergenceError, lambda: st.solve_exit(GOOD, progress=1)),
    "max_seconds must be a positive": (ConvergenceError, lambda: st.solve_exit(GOOD, max_seconds=-1)),
    "needs a problem with domain=": (DomainError, lambda: st.solve_exit(line(domain=None))),
    "needs finite faces": (
        DomainError,
        lambda: st.solve_exit(line(domain=fh.Box([-np.inf], [1.0], boundary=[("natural", "absorbing")]))),
    ),
    "boxes go up to dimension 3": (DomainError, lambda: st.solve_exit(cube(4))),
    "reflection along the normal": (
        DomainError,
        lambda: st.solve_exit(
            cube(2, [("reflecting", "absorbing"), ("natural", "natural")], diffusion=[[1.0, 0.5], [0.5, 1.0]])
        ),
    ),
    "into must be pairs": (DomainError, lambda: st.committor(GOOD, 3)),
    "into must name absorbing faces": (DomainError, lambda: st.committor(GOOD, [(1, "upper")])),
    "into must name absorbing faces, of": (DomainError, lambda: st.committor(GOOD, [])),
    "h must be a callable": (ProblemError, lambda: st.exit_expectation(GOOD, 3.0)),
    "needs h=": (ProblemError, lambda: st.exit_expectation(GOOD)),
    r"h\(x\) returned shape": (ProblemError, lambda: st.exit_expectation(GOOD, lambda x: x)),
    r"source\(x\) failed": (ProblemError, lambda: st.exit_expectation(GOOD, source=lambda x: 1 / 0)),
    "lie outside the domain": (DomainError, lambda: st.solve_exit(GOOD, rtol=1e-2).value([[1.5]])),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    error, call = REFUSED[message]
    with pytest.raises(error, match=message):
        call()


def test_points_outside_are_nan_if_asked_for() -> None:
    found = st.solve_exit(line(running_reward=rate(-1.0)), rtol=1e-2)
    x = [[0.5], [1.5]]
    for ask in (found.value, found.gradient, found.policy, found.f):
        answer = ask(x, outside="nan")
        assert np.isfinite(answer[0]).all()
        assert np.isnan(answer[1]).all()
    assert "equation: passed" in str(found)


@pytest.mark.filterwarnings("ignore::fem_hjb.ToleranceWarning")
@pytest.mark.parametrize(("noise", "told"), [(0.1, False), (0.01, True)])
def test_a_well_that_is_hardly_ever_left_is_left_to_no_rounding(noise: float, told: bool) -> None:
    """exp(1/Lambda) is the time it takes: beyond 1e16 every answer is 0 on all grids alike, which no grid tells."""

    def reward(x: Any) -> Any:
        return np.full(x.shape[:-1], -0.3)

    well = line(lambda x: -x, noise, (-1.0, 1.0), exit_reward=reward)
    found: Any
    for found, true in (
        (st.committor(well, [(0, "upper")], rtol=1e-2), 0.5),  # by symmetry
        (fh.solve_exit(well, rtol=1e-2), -0.3),
        (st.exit_expectation(well, lambda x: x[..., 0] + 2.0, rtol=1e-2), 2.0),
    ):
        off = abs(float(found.value([0.0])) - true)
        assert found.error_estimate.value < 1e-2
        assert ("rounding: FAILED" in found.status) == told
        assert (found.status == "ok") != told
        assert off > 0.1 if told else off < 1e-3
    killed = fh.solve_exit(replace(well, running_reward=rate(-0.1)), rtol=1e-2)
    assert killed.status == "ok"  # nothing is decided by when it leaves


@pytest.mark.filterwarnings("ignore::fem_hjb.ToleranceWarning")
@pytest.mark.parametrize(("noise", "told"), [(0.2, False), (0.04, True)])
def test_a_face_whose_layer_is_not_resolved_is_told(noise: float, told: bool) -> None:
    """All classes agree that the process leaves where the grid is coarse; by symmetry it is a quarter at each face."""
    well = cube(2, drift=lambda x: -x, diffusion=noise)
    found = st.committor(well, [(0, "upper")], rtol=0.1, max_dofs=3000)
    off = abs(float(found.value([0.0, 0.0])) - 0.25)
    assert found.error_estimate.value < 0.05
    assert ("exits: FAILED" in found.status) == told
    assert off > 0.2 if told else off < 1e-3


@pytest.mark.parametrize("policies", [False, True])
def test_exits_that_are_resolved_are_told_to_be(policies: bool) -> None:
    """exp(1/Lambda), 2e4 times its own time, is what it takes to leave."""

    def reward(x: Any) -> Any:
        return 0.3 * x[..., 0]

    well = line(lambda x: -x, 0.1, (-1.0, 1.0), exit_reward=reward)
    found: Any = fh.solve_exit(well, rtol=1e-3) if policies else st.exit_expectation(well, reward, rtol=1e-3)
    (check,) = (check for check in found.checks if check.name == "exits")
    assert found.status == "ok"
    assert check.figure < 0.01
