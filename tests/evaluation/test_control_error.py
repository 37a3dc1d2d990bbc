"""The error of a control under the optimally controlled law, and what a control earns."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp
from scipy.stats import norm

from fem_hjb.evaluation import control_error, objectives
from fem_hjb.paths.simulate import Policy, sample_paths
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import from_callables
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError, MeasureError, ProblemError


@pytest.fixture(scope="module")
def well() -> Any:
    """A single double well, with no closed form."""
    return solve(zoo.get("soc-double-well", dim=1, kappa=1.0, nu=1.0), rtol=1e-4)


@pytest.fixture(scope="module")
def wells() -> Any:
    return solve(zoo.get("soc-double-well", dim=2, kappa=1.0, nu=[1.0, 2.0], x0=[0.0, 0.5]), rtol=1e-3)


@pytest.fixture(scope="module")
def stopped() -> Any:
    return solve(zoo.get("soc-molecular-dynamics"), rtol=1e-5)


def waved(policy: Policy) -> Policy:
    return lambda t, x: np.asarray(policy(t, x)) + 0.5 * np.sin(3 * x + 1)


CLOSED = {
    "linear": lambda: zoo.get("soc-ou-linear", dim=10, temperature=0.5),
    "easy": lambda: zoo.get("soc-ou-quadratic", dim=20),
    "hard": lambda: zoo.get("soc-ou-quadratic", dim=4, setting="hard", x0=0.3, temperature=2.0),
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_constant_shift_in_closed_form(name: str) -> None:
    problem = CLOSED[name]()
    exact, c = problem.exact, np.linspace(-1.0, 1.0, problem.dim)
    assert control_error(problem, exact.policy, exact, times=16).value == 0.0
    result = control_error(problem, lambda t, x: exact.policy(t, x) + c, exact, times=16)
    expected = problem.temperature * c @ np.linalg.solve(problem.constant_diffusion, c)
    assert result.value == pytest.approx(expected, rel=1e-11)
    np.testing.assert_allclose(result.profile, expected, rtol=1e-11)
    assert result.standard_error == 0.0
    assert "Gaussian" in result.how


def test_a_constant_shift_without_closed_form(well: Any, wells: Any) -> None:
    for solution, c in ((well, np.array([0.7])), (wells, np.array([0.7, -0.2]))):
        problem = solution.problem
        assert control_error(problem, solution.policy, solution, times=8, rtol=1e-2).value < 1e-10
        shifted = control_error(problem, lambda t, x, s=solution, c=c: s.policy(t, x) + c, solution, times=8, rtol=1e-2)
        assert shifted.value == pytest.approx(c @ c, rel=1e-11)
        assert "Fokker-Planck" in shifted.how
        assert shifted.standard_error == 0.0


def test_the_average_is_that_of_simulated_optimal_paths(well: Any) -> None:
    policy = waved(well.policy)
    optimal = control_error(well.problem, policy, well)
    paths = sample_paths(well.problem, n=8000, steps=32, rng=3, policy=well.policy)
    squares = 0.25 * np.sin(3 * np.asarray(paths.x)[..., 0] + 1) ** 2
    rows = np.trapezoid(squares, np.asarray(paths.t), axis=1)
    error = rows.std(ddof=1) / np.sqrt(len(rows))
    assert abs(rows.mean() - optimal.value) < 3 * error
    assert optimal.value == pytest.approx(float(np.asarray(optimal.weights) @ np.asarray(optimal.profile)))
    other = control_error(well.problem, policy, well, under="policy")
    assert abs(rows.mean() - other.value) > 10 * error  # the wrong law is seen


def backward(solution: Any, policy: Policy) -> float:
    """w_0(x0) - 1 of d_t w + L^{pi*} w + |u - u*|^2 = 0, w_T = 1: the same average by duality, with no law at all."""
    problem, basis = solution.problem, solution.space.spatial
    assert isinstance(basis, SpectralBasis)
    line, x = basis.lines[0], basis.nodes

    def matrix(s: float) -> FloatArray:
        """With |u - u*|^2 as the column of an unknown that stays 1."""
        t = max(problem.horizon - s, 0.0)
        steered = problem.b(t, x) + solution.policy(t, x)
        L = steered * line.derivative + 0.5 * problem.Lambda(t, x)[:, 0] * line.laplacian
        gap = np.asarray(policy(t, x)) - solution.policy(t, x)
        return np.vstack([np.column_stack([L, (gap**2).sum(axis=1)]), np.zeros(len(x) + 1)])

    start, tolerances = np.ones(len(x) + 1), {"rtol": 1e-8, "atol": 1e-9}
    run = solve_ivp(
        lambda s, w: matrix(s) @ w, (0.0, problem.horizon), start, "Radau", jac=lambda s, _: matrix(s), **tolerances
    )
    return float((line.rows(problem.initial_law.expectation) @ run.y[:-1, -1])[0] - 1.0)


def test_the_average_is_the_value_of_the_backward_equation(well: Any) -> None:
    policy = waved(well.policy)
    assert control_error(well.problem, policy, well).value == pytest.approx(backward(well, policy), rel=1e-6)


@pytest.mark.parametrize("name", ["well", "stopped"])
def test_the_reward_lost_is_half_the_error_under_the_own_law(name: str, request: pytest.FixtureRequest) -> None:
    solution = request.getfixturevalue(name)
    problem, policy = solution.problem, waved(solution.policy)
    lost = 0.5 * problem.horizon * control_error(problem, policy, solution, under="policy", rtol=1e-4).value
    earned = objectives(problem, policy, solution, steps=16, n=64, rtol=1e-4)
    assert earned.optimal is not None
    assert earned.exact.standard_error == 0.0
    gap = earned.optimal.value - earned.exact.value
    assert gap == pytest.approx(lost, abs=1e-5)
    assert earned.uncontrolled.value < earned.optimal.value - 1e-3
    wrong = 0.5 * problem.horizon * control_error(problem, policy, solution, rtol=1e-4).value  # under P*
    assert abs(gap - wrong) > 1e-4


def test_the_optimal_policy_earns_the_value(wells: Any) -> None:
    found = objectives(wells.problem, wells.policy, wells, steps=16, n=64, times=24, rtol=1e-4)
    assert found.optimal is not None
    assert found.exact.value == pytest.approx(found.optimal.value, abs=2e-5)
    assert found.uncontrolled.value < found.optimal.value - 1e-2


def test_the_reward_lost_with_all_coordinates_coupled() -> None:
    problem = zoo.get("soc-ou-linear", dim=5, temperature=0.5, x0=0.3)
    exact, gain = problem.exact, np.linspace(-0.5, 0.5, 25).reshape(5, 5)

    def policy(t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(exact.policy(t, x) + x @ gain)

    lost = control_error(problem, policy, exact, under="policy").value / 2
    earned = objectives(problem, policy, exact, steps=16, n=64)
    assert earned.optimal is not None
    assert earned.optimal.value - earned.exact.value == pytest.approx(lost, rel=1e-9)
    assert lost > 0.01


def test_a_policy_that_mixes_independent_coordinates_is_sampled() -> None:
    problem = zoo.get("soc-ou-quadratic", dim=4, x0=0.3)
    exact, a = problem.exact, np.array([1.0, -0.5, 0.8, 0.3])
    mixed = control_error(problem, lambda t, x: exact.policy(t, x) + np.sin(x @ a)[:, None], exact, rng=1)
    paths = sample_paths(problem, n=8000, steps=32, rng=2, policy=exact.policy)
    rows = np.trapezoid(4 * np.sin(np.asarray(paths.x) @ a) ** 2, np.asarray(paths.t), axis=1)
    error = np.hypot(mixed.standard_error, rows.std(ddof=1) / np.sqrt(len(rows)))
    assert 0 < mixed.standard_error < 0.01
    assert abs(mixed.value - rows.mean()) < 3 * error
    again = control_error(problem, lambda t, x: exact.policy(t, x) + np.sin(x @ a)[:, None], exact, rng=1)
    assert again.value == mixed.value
    linear = control_error(problem, lambda t, x: exact.policy(t, x) + (x @ a)[:, None], exact)
    assert linear.standard_error == 0.0
    rows = np.trapezoid(4 * (np.asarray(paths.x) @ a) ** 2, np.asarray(paths.t), axis=1)
    assert abs(linear.value - rows.mean()) < 3 * rows.std(ddof=1) / np.sqrt(len(rows))


def test_a_loose_tolerance_does_not_blame_the_box_of_the_reference() -> None:
    """Boxes that follow the law end where it is below a thousandth of the tolerance, and say so of their faces."""
    problem = zoo.get("lq", dim=2)
    solution = solve(problem, rtol=1e-3, box=Box([-7.0] * 2, [7.0] * 2))
    policy = waved(problem.exact.policy)
    loose, tight = (
        control_error(problem, policy, solution, under="policy", times=16, rtol=rtol).value for rtol in (3e-2, 1e-4)
    )
    assert loose == pytest.approx(tight, rel=1e-3)


def test_a_mixing_policy_without_closed_form_is_sampled_from_the_product(wells: Any) -> None:
    def mixing(t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(wells.policy(t, x) + np.sin(x.sum(axis=1))[:, None])

    sampled = control_error(wells.problem, mixing, wells, times=12, n=1024, rtol=1e-4)
    paths = sample_paths(wells.problem, n=4000, steps=32, rng=5, policy=wells.policy)
    rows = np.trapezoid(2 * np.sin(np.asarray(paths.x).sum(axis=2)) ** 2, np.asarray(paths.t), axis=1)
    error = np.hypot(sampled.standard_error, rows.std(ddof=1) / np.sqrt(len(rows)))
    assert sampled.standard_error > 0
    assert abs(sampled.value - rows.mean()) < 3 * error


def test_the_process_is_counted_until_it_stops(stopped: Any) -> None:
    problem = stopped.problem
    result = control_error(problem, lambda t, x: stopped.policy(t, x) + 0.5, stopped)
    paths = sample_paths(problem, n=8000, steps=64, rng=4, policy=stopped.policy)
    assert problem.domain is not None
    alive = 1.0 - problem.domain.exited(np.asarray(paths.x))
    lives = np.trapezoid(alive, np.asarray(paths.t), axis=1)
    assert abs(result.value - 0.25 * lives.mean()) < 0.25 * (3 * lives.std() / np.sqrt(len(lives)) + 1 / 64)
    assert result.value < 0.25 * 0.95


def test_the_euler_objective_is_that_of_the_discrete_chain() -> None:
    problem = zoo.get("soc-ou-linear", dim=3, x0=0.4)
    steps, push = 5, np.array([-0.5, -1.0, 0.2])
    A, Lambda = problem.drift.A, problem.constant_diffusion  # type: ignore[attr-defined]
    mean = problem.initial_law.expectation
    for _ in range(steps):
        mean = mean + (A @ mean + push) / steps
    chain = -mean.sum() - 0.5 * push @ np.linalg.solve(Lambda, push)
    found = objectives(problem, lambda t, x: np.broadcast_to(push, x.shape), problem.exact, steps=steps, n=20_000)
    assert abs(found.euler.value - chain) < 3 * found.euler.standard_error
    assert abs(found.euler.value - found.exact.value) > 5 * found.euler.standard_error
    assert found.exact.standard_error == 0.0
    assert found.optimal is not None
    assert found.optimal.value > found.exact.value
    assert found.optimal.value > found.uncontrolled.value


def test_objectives_of_coupled_coordinates_that_no_density_covers_are_simulated() -> None:
    problem = zoo.get("soc-ou-linear", dim=4)

    def policy(t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.asarray(problem.exact.policy(t, x) + np.tanh(x.sum(axis=1))[:, None])  # type: ignore[union-attr]

    found = objectives(problem, policy, steps=20, n=4096)
    assert found.optimal is None
    assert 0 < found.exact.standard_error < 0.1
    lost = control_error(problem, policy, problem.exact).value  # under P*, with a standard error
    assert lost > 0.1


def test_a_reference_of_callables_serves_as_well() -> None:
    problem = zoo.get("soc-ou-quadratic", dim=2)
    bare = from_callables(problem.exact.value, problem.exact.gradient)
    policy = waved(problem.exact.policy)
    expected = control_error(problem, policy, problem.exact).value
    assert control_error(problem, policy, bare).value == pytest.approx(expected, rel=1e-12)
    assert expected > 0.1


def test_a_solution_is_its_policy_and_goes_on_outside_its_box() -> None:
    problem = zoo.get("soc-ou-quadratic", dim=2)
    solution = solve(problem, rtol=1e-4)
    assert control_error(problem, solution, problem.exact).value < 1e-10  # quadrature reaches beyond the box
    assert control_error(problem, problem.exact.policy, solution).value < 1e-10
    one = zoo.get("soc-ou-quadratic", dim=1, x0=0.0)
    with pytest.warns(ToleranceWarning, match="leave the box"):
        small = solve(one, rtol=1e-3, box=Box([-1.3], [1.3], boundary="natural"))
    with pytest.raises(DomainError, match="larger box"):
        control_error(one, one.exact.policy, small)


def test_a_box_that_the_process_leaves_is_refused() -> None:
    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -(x**3),
        diffusion=1.0,
        terminal_reward=lambda x: 2.0 * np.sin(x[..., 0]),
        initial_law=PointMass([0.0]),
    )
    with pytest.warns(ToleranceWarning, match="limited by truncation"):
        small = solve(problem, rtol=1e-3, box=Box([-1.0], [1.0], boundary="natural"))
    with pytest.raises(DomainError, match="larger box"):
        control_error(problem, small.policy, small)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"policy": 3}, ProblemError, "policy must be a callable"),
        ({"policy": "exact"}, ProblemError, "give its method .policy"),
        ({"policy": lambda t, x: x[:, 0]}, ProblemError, "expected"),
        ({"policy": lambda t, x: np.full_like(x, np.nan)}, ProblemError, "not finite"),
        ({"reference": None}, ProblemError, "reference must have"),
        ({"problem": None}, ProblemError, "control_error needs a ControlProblem, got NoneType"),
        ({"under": "uniform"}, MeasureError, "under must be one of"),
        ({"times": 0}, MeasureError, "times"),
        ({"n": 0}, MeasureError, "n must be"),
        ({"rng": "x"}, MeasureError, "rng"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], match: str) -> None:
    problem = zoo.get("soc-ou-quadratic", dim=2)
    given = {"problem": problem, "policy": lambda t, x: 0 * x, "reference": problem.exact, **change}
    if isinstance(given["policy"], str):
        given["policy"] = problem.exact
    with pytest.raises(error, match=match):
        control_error(given.pop("problem"), given.pop("policy"), given.pop("reference"), **given)


def test_objectives_check_their_input() -> None:
    problem = zoo.get("soc-ou-quadratic", dim=2)
    with pytest.raises(MeasureError, match="steps"):
        objectives(problem, problem.exact.policy, steps=0)
    with pytest.raises(ProblemError, match="reference"):
        objectives(problem, problem.exact.policy, 3, steps=4)  # type: ignore[arg-type]


def test_a_law_that_is_not_to_be_had_is_said_so() -> None:
    problem = zoo.get("soc-ou-linear", dim=4)
    exact = problem.exact
    with pytest.raises(DomainError, match="densities are solved for up to three"):
        control_error(problem, lambda t, x: np.tanh(x @ np.ones((4, 4))), exact, under="policy")


def test_what_is_paid_at_the_exit_counts() -> None:
    domain = Box([-np.inf], [0.0], boundary=[("natural", "absorbing")], exit_reward=lambda t, x: np.ones(x.shape[:-1]))
    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: 0 * x,
        diffusion=1.0,
        terminal_reward=lambda x: 0 * x[..., 0],
        initial_law=PointMass([-1.0]),
        domain=domain,
    )
    found = objectives(problem, lambda t, x: 0 * x, steps=8, n=8192, rng=1)
    for estimate in (found.exact, found.euler, found.uncontrolled):
        assert 0 < estimate.standard_error < 0.01
        assert abs(estimate.value - 2 * norm.sf(1.0)) < 3 * estimate.standard_error  # reflection principle


def test_a_policy_that_is_not_right_near_the_end_is_told() -> None:
    """A reward that jumps: what the policy does in the layer before T is counted, along paths, and costs much."""
    problem = zoo.get("double-slit")
    solution = solve(problem, rtol=3e-2, box=Box([-9.0], [9.0], boundary="natural"), verify=False)
    assert solution.stats["layer"] > 1e-3
    with pytest.warns(ToleranceWarning, match=r"right up to t=0\.\d+ only"):
        found = objectives(problem, solution, solution, n=256, steps=50, rng=0, rtol=1e-4)
    assert found.exact.how.startswith("256 paths, 200 steps")  # no density is known under a policy that is wild
    assert -1e3 < found.exact.value < solution.value(0.0, [-1.0]) - 1.0
    assert found.exact.standard_error > 1.0
    short: dict[str, Any] = {"n": 256, "max_seconds": 1e-6}  # the warning comes before the work
    with (
        pytest.warns(ToleranceWarning, match="control_error: rewards at T jump"),
        pytest.raises(ConvergenceError, match="max_seconds"),
    ):
        control_error(problem, solution.policy, solution, **short)
