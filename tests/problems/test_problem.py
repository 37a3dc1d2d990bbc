"""ControlProblem: what it accepts, what it answers, what it refuses and how."""

import dataclasses

import numpy as np
import pytest

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.problem import ControlProblem, LinearDrift, ValueFunction
from fem_hjb.support.errors import DomainError, EllipticityError, ProblemError

A = np.array([[-1.0, 0.5], [0.0, -2.0]])


def build(**changes):
    given = {
        "dim": 2,
        "horizon": 1.0,
        "temperature": 0.5,
        "drift": lambda t, x: x @ A.T,
        "diffusion": [[1.0, 0.2], [0.2, 0.5]],
        "terminal_reward": lambda x: -(x**2).sum(-1),
        "initial_law": Gaussian([0.0, 0.0], 1.0),
    }
    return ControlProblem(**{**given, **changes})


@pytest.mark.parametrize("shape", [(), (7,), (3, 4)])
@pytest.mark.parametrize("batched", [False, True])
def test_coefficients_are_batched(shape, batched):
    problem = build(running_reward=lambda t, x: np.asarray(t) * x[..., 0])
    x = np.random.default_rng(0).normal(size=(*shape, 2))
    t = np.full(shape, 0.3) if batched else 0.3
    np.testing.assert_allclose(problem.b(t, x), np.einsum("ij,...j->...i", A, x))
    np.testing.assert_allclose(problem.r(t, x), 0.3 * x[..., 0])
    np.testing.assert_allclose(problem.y(x), -(x[..., 0] ** 2) - x[..., 1] ** 2)
    assert problem.Lambda(t, x).shape == (*shape, 2, 2)
    gradient = np.ones((*shape, 2))
    np.testing.assert_allclose(problem.policy_from_gradient(t, x, gradient), np.broadcast_to([2.4, 1.4], (*shape, 2)))


@pytest.mark.parametrize(("given", "full"), [(2.0, [[2, 0], [0, 2]]), ([1.0, 3.0], [[1, 0], [0, 3]])])
def test_constant_diffusions(given, full):
    problem = build(diffusion=given)
    np.testing.assert_array_equal(problem.constant_diffusion, full)
    np.testing.assert_array_equal(problem.Lambda(0.0, np.zeros((4, 2)))[3], full)


def test_callable_diffusion_is_not_constant():
    problem = build(diffusion=lambda t, x: (1 + x[..., :1, None] ** 2) * np.eye(2))
    assert problem.constant_diffusion is None
    np.testing.assert_allclose(problem.Lambda(0.0, [[2.0, 0.0]])[0], 5 * np.eye(2))


def test_no_running_reward_is_zero():
    assert (build().r(0.0, np.ones((3, 2))) == 0).all()


def test_arrays_are_copied_and_frozen_and_fields_fixed():
    Lambda = np.eye(2)
    problem = build(diffusion=Lambda)
    Lambda[0, 0] = 9.0
    assert problem.constant_diffusion[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        problem.constant_diffusion[0, 0] = 2.0
    with pytest.raises(ValueError, match="read-only"):
        problem.Lambda(0.0, np.zeros((3, 2)))[0, 0, 0] = 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.horizon = 2.0
    warmer = dataclasses.replace(problem, temperature=3.0)
    assert (warmer.temperature, problem.temperature) == (3.0, 0.5)


def test_a_point_mass_start_and_a_reflecting_box_are_probed_inside():
    seen = []

    def drift(t, x):
        seen.append(x)
        return 0.0 * x

    build(drift=drift, initial_law=Gaussian([0.5, 0.5], 0.05), domain=Box([0.0, 0.0], [1.0, 1.0]))
    assert all(((x >= 0) & (x <= 1)).all() for x in seen)
    assert build(initial_law=PointMass([1.0, 2.0])).dim == 2
    with pytest.raises(
        ProblemError, match=r"100% of the initial law lies outside the domain.*start the process inside"
    ):
        build(initial_law=Gaussian([0.5, 0.5], 0.05), domain=Box([5.0, 5.0], [6.0, 6.0]))


HALF = {"lower": [-np.inf, -9.0], "upper": [0.5, 9.0], "boundary": [("natural", "absorbing"), ("absorbing", "natural")]}


def test_the_exit_reward_is_checked_where_it_is_paid():
    seen = []

    def g(t, x):
        seen.append(x)
        return np.asarray(t) + x[..., 1]

    problem = build(initial_law=Gaussian([-3.0, 0.0], 0.05), domain=Box(**HALF, exit_reward=g))
    assert all(((x[:, 0] == 0.5) | (x[:, 1] == -9.0)).all() for x in seen)
    x = np.array([[0.5, 1.0], [0.5, 2.0]])
    np.testing.assert_array_equal(problem.exit_reward([0.25, 0.5], x), [1.25, 2.5])
    np.testing.assert_array_equal(problem.exit_reward(0.25, x[0]), 1.25)
    assert (build(initial_law=Gaussian([-3.0, 0.0], 0.05), domain=Box(**HALF)).exit_reward(0.0, x) == 0).all()
    assert (build().exit_reward(0.0, x) == 0).all()


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (PointMass([0.5, 0.0]), r"100% of the initial law lies outside the domain \(100% on or behind its absorbing"),
        (PointMass([0.7, 0.0]), r"100% on or behind its absorbing faces\), the box \[-inf, -9\.0\] to \[0\.5, 9\.0\]"),
        (Gaussian([0.5, 0.0], 0.01), r"\d\d% on or behind its absorbing faces"),
        (PointMass([0.0, 12.0]), "100% of the initial law lies outside the domain, the box"),
    ],
)
def test_a_process_that_is_stopped_before_it_starts_is_refused(law, message):
    with pytest.raises(ProblemError, match=message):
        build(initial_law=law, domain=Box(**HALF))


@pytest.mark.parametrize(
    ("g", "message"),
    [
        (lambda t, x: x, r"exit_reward\(t, x\) returned shape \(5, 2\) .* expected \(5,\)"),
        (lambda t, x: 1.0, r"exit_reward\(t, x\) returned shape \(\) .* return an array of the full shape"),
        (lambda t, x: x[..., 0] * np.nan, r"exit_reward\(t, x\) is not finite at 5 of 5 points, the first is x="),
        (lambda x: x[..., 0], r"exit_reward\(t, x\) failed at t=0 for x of shape \(5, 2\): TypeError"),
    ],
)
def test_ill_formed_exit_rewards_are_refused(g, message):
    with pytest.raises(ProblemError, match=message):
        build(initial_law=Gaussian([-3.0, 0.0], 0.05), domain=Box(**HALF, exit_reward=g))


def test_complex_numbers_are_refused():
    with pytest.raises(ProblemError, match=r"what terminal_reward\(x\) returns must be an array of real numbers"):
        build(terminal_reward=lambda x: x[..., 0] * 1j)


def test_linear_drift():
    drift = LinearDrift(A, [0.5, 0.0])
    x = np.random.default_rng(1).normal(size=(3, 4, 2))
    np.testing.assert_allclose(drift(0.0, x), np.einsum("ij,...j->...i", A, x) + np.array([0.5, 0.0]))
    np.testing.assert_allclose(build(drift=drift).b(0.0, x), drift(0.0, x))
    with pytest.raises(ValueError, match="read-only"):
        drift.coefficients[0][0, 0] = 1.0


class Exact:
    def value(self, t, x):
        return np.zeros(np.shape(x)[:-1])

    def gradient(self, t, x):
        return np.zeros(np.shape(x))


def test_anything_with_value_and_gradient_may_be_exact():
    assert isinstance(Exact(), ValueFunction)
    assert build(exact=Exact()).exact is not None


def ones(t, x):
    return np.ones((*x.shape[:-1], 2, 2))


BAD = {
    "dim-zero": ({"dim": 0}, "dim must be a positive integer, got 0"),
    "dim-float": ({"dim": 2.0}, "dim must be a positive integer, got 2.0"),
    "dim-bool": ({"dim": True}, "dim must be a positive integer, got True"),
    "horizon-negative": ({"horizon": -1.0}, "horizon must be a positive finite number, got -1.0"),
    "horizon-word": ({"horizon": "long"}, "horizon must be a positive number, got 'long'"),
    "temperature-nan": ({"temperature": np.nan}, "temperature must be a positive finite number, got nan"),
    "drift-array": ({"drift": A}, "drift must be a callable, got ndarray"),
    "drift-shape": ({"drift": lambda t, x: x[..., 0]}, r"drift\(t, x\) returned shape \(5,\) .* expected \(5, 2\)"),
    "drift-arity": ({"drift": lambda x: x}, r"drift\(t, x\) failed at t=0 for x of shape \(5, 2\): TypeError"),
    "drift-nan": ({"drift": lambda t, x: x * np.nan}, r"drift\(t, x\) is not finite at 5 of 5 points, the first"),
    "drift-batched-time": (
        {"drift": lambda t, x: x * np.asarray(t)},
        r"write np.asarray\(t\)\[..., None\] where it meets x",
    ),
    "terminal-missing": ({"terminal_reward": None}, "terminal_reward must be a callable, got NoneType"),
    "terminal-shape": ({"terminal_reward": lambda x: x}, r"terminal_reward\(x\) returned shape \(5, 2\).*\(5,\)"),
    "running-number": ({"running_reward": 2.0}, "running_reward must be a callable or None, got float"),
    "running-shape": ({"running_reward": lambda t, x: t}, r"running_reward\(t, x\) returned shape \(\)"),
    "diffusion-shape": ({"diffusion": np.eye(3)}, r"of shape \(2,\) or \(2, 2\), or a callable; got shape \(3, 3\)"),
    "diffusion-word": ({"diffusion": "big"}, "diffusion must be an array of real numbers"),
    "diffusion-callable-shape": ({"diffusion": lambda t, x: x}, r"diffusion\(t, x\) returned shape \(5, 2\)"),
    "law-array": ({"initial_law": np.zeros(2)}, "initial_law must be a law such as Gaussian, got ndarray"),
    "law-dim": ({"initial_law": Gaussian([0.0], 1.0)}, "initial_law has dimension 1, the problem has dim=2"),
    "domain-type": ({"domain": (0, 1)}, "domain must be a Box, a MeshDomain or None, got tuple"),
    "domain-dim": ({"domain": Box([0.0], [1.0])}, "domain has dimension 1, the problem has dim=2"),
    "exact-type": ({"exact": lambda t, x: x}, r"exact must have methods value\(t, x\) and gradient\(t, x\)"),
    "marginal-type": ({"marginal": Gaussian([0.0, 0.0], 1.0)}, "marginal must be a callable or None, got Gaussian"),
}
BAD_DIFFUSION = {
    "negative": (-1.0, "diffusion must be symmetric positive definite, at .* smallest eigenvalue is -1"),
    "singular": ([1.0, 0.0], "smallest eigenvalue is 0"),
    "asymmetric": ([[1.0, 0.5], [0.0, 1.0]], "it differs from its transpose by 0.5"),
    "callable": (ones, r"diffusion\(t, x\) must be symmetric positive definite, at x="),
}


MEASURED = {
    "horizon": lambda size: build(horizon=size),
    "temperature": lambda size: build(temperature=size),
    "diffusion": lambda size: build(diffusion=size),
    "diffusion, an axis": lambda size: build(diffusion=[size, 1.0]),
    "diffusion, a callable": lambda size: build(diffusion=lambda t, x: size * (0.5 * ones(t, x) + 0.5 * np.eye(2))),
    "covariance": lambda size: build(initial_law=Gaussian([0.0, 0.0], size)),
    "edge of a box": lambda size: Box([0.0, -1.0], [size, 1.0]),
}


@pytest.mark.parametrize("what", MEASURED)
def test_what_is_in_no_sensible_unit_is_refused_at_once(what):
    for size in (1e-320, 1e-101, 1e101, 1e300, 1.7e308):
        with pytest.raises((ProblemError, DomainError), match=r"units|at least 1e-100"):
            MEASURED[what](size)
    for size in (1e-99, 1e-50, 1e50, 5e74):
        assert MEASURED[what](size) is not None


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_ill_formed_problems_are_refused(changes, message):
    with pytest.raises(ProblemError, match=message):
        build(**changes)


@pytest.mark.parametrize(("diffusion", "message"), BAD_DIFFUSION.values(), ids=BAD_DIFFUSION)
def test_diffusions_that_are_not_elliptic_are_refused(diffusion, message):
    with pytest.raises(EllipticityError, match=message):
        build(diffusion=diffusion)


def test_nan_away_from_the_initial_law_is_found_when_met():
    problem = build(terminal_reward=lambda x: np.where(x[..., 0] > 50, np.nan, 0.0))
    with pytest.raises(ProblemError, match=r"not finite at 1 of 2 points, the first is x=\[60\."):
        problem.y([[0.0, 0.0], [60.0, 0.0]])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 5)), r"points in rows, shape \(\.\.\., 2\), got shape \(2, 5\)"),
        ([[0.0, np.inf]], "got 1 non-finite points"),
    ],
)
def test_ill_formed_points_are_refused(x, message):
    with pytest.raises(DomainError, match=message):
        build().b(0.0, x)


@pytest.mark.parametrize(
    ("A", "a", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2), r"A must be a square matrix \(d, d\), got shape \(2, 3\)"),
        (np.eye(2), np.zeros(3), r"LinearDrift: a must have shape \(2,\), got shape \(3,\)"),
        ([[np.nan]], [0.0], "LinearDrift: A must be finite"),
    ],
)
def test_ill_formed_linear_drifts_are_refused(A, a, message):
    with pytest.raises(ProblemError, match=message):
        LinearDrift(A, a)


@pytest.mark.parametrize(
    ("outside", "told"),
    [(-np.inf, True), (np.inf, False), (np.nan, False)],
)
def test_a_wall_is_refused_with_what_to_do(outside, told):
    with pytest.raises(ProblemError, match=r"terminal_reward\(x\) is not finite at \d+ of 5 points") as error:
        build(terminal_reward=lambda x: np.where(x[..., 0] > 0.0, 0.0, outside))
    assert ("max(y, -c alpha)" in str(error.value)) == told
    assert ("feynman_kac" in str(error.value)) == told
    mixed = np.array([[99.0, 0.0], [-1.0, 0.0], [-99.0, 0.0]])
    problem = build(
        terminal_reward=lambda x: np.where(x[..., 0] == 99.0, outside, np.where(x[..., 0] < -50, np.nan, 0.0))
    )
    with pytest.raises(ProblemError, match=r"is not finite at 2 of 3 points, the first is x=\[99.  0.\]$"):
        problem.y(mixed)


def test_an_exit_reward_of_minus_infinity_is_refused_with_what_to_do():
    domain = Box(**HALF, exit_reward=lambda t, x: np.full(x.shape[:-1], -np.inf))
    with pytest.raises(ProblemError, match=r"exit_reward\(t, x\) is not finite .*, for instance -1000 alpha"):
        build(initial_law=Gaussian([-3.0, 0.0], 0.05), domain=domain)
