"""Values, gradients and policies from f, on smooth and on merely continuous classes."""

import dataclasses

import numpy as np
import pytest

from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, ValueGauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.solutions import solution as solution_module
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.errors import DomainError, PositivityError, SpaceError

ALPHA = 0.7
GAUGE = Gauge(temperature=ALPHA, horizon=1.0, terminal=0.3, running=-0.2)


def make_problem(dim, **changes):
    settings = {
        "dim": dim,
        "horizon": 1.0,
        "temperature": ALPHA,
        "drift": lambda t, x: -x,
        "diffusion": 1.0,
        "terminal_reward": lambda x: -(x**2).sum(-1) / 2,
        "initial_law": Gaussian(np.zeros(dim), 0.05),
    }
    return ControlProblem(**{**settings, **changes})


def wave(t, x):
    """A smooth v that is neither quadratic in x nor polynomial in t, and its gradient."""
    phase = 0.9 * x.sum(-1) + 0.4 * np.asarray(t)
    return np.sin(phase), 0.9 * np.cos(phase)[..., None] * np.ones(x.shape[-1])


def interpolant(v, *, dim=1, element="P2", problem=None, **changes):
    problem = make_problem(dim) if problem is None else problem
    settings = {"cells": 8, "time_cells": 4, "time_degree": 3, "box": Box([-1.0] * dim, [1.0] * dim)}
    space = Space(problem, element=element, **{**settings, **changes})
    coefficients = space.interpolate(lambda t, x: GAUGE.u(t, x, v(t, x)))
    return Solution(
        problem=problem, space=space, coefficients=coefficients, gauge=GAUGE, method="interpolation", status="ok"
    )


def with_coefficients(solution, change):
    c = solution.coefficients.copy()
    change(c)
    return dataclasses.replace(solution, coefficients=c)


def slope(sizes, errors):
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


# --------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize(
    ("element", "dim", "order", "raw_order"),
    [
        ("P1", 1, 2, 1),
        ("P2", 1, 3, 2),
        ("P3", 1, 4, 3),
        ("P4", 1, 5, 4),
        ("P1", 2, 2, 1),
        ("P3", 2, 4, 3),
        ("Q1", 2, 2, 1),
        ("hermite", 1, 3, 3),
    ],
)
def test_gradients_of_v_gain_an_order_on_continuous_elements(element, dim, order, raw_order):
    sizes = (16, 32, 64) if dim == 1 else (8, 16, 32)
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (3000, dim))
    t, errors, raw_errors = 0.375, [], []  # a time node: the error is that of space
    _, exact = wave(t, x)
    for cells in sizes:
        s = interpolant(lambda t, x: wave(t, x)[0], dim=dim, element=element, cells=cells, time_cells=16)
        raw = ALPHA * s.space.evaluate(s.coefficients, t, x, "gradient") / s.f(t, x)[:, None]
        errors.append(np.sqrt(((s.gradient(t, x) - exact) ** 2).mean()))
        raw_errors.append(np.sqrt(((raw - exact) ** 2).mean()))
    assert slope(1.0 / np.array(sizes), errors) == pytest.approx(order, abs=0.15)
    assert slope(1.0 / np.array(sizes), raw_errors) == pytest.approx(raw_order, abs=0.15)


@pytest.mark.parametrize(
    ("element", "dim", "value_error", "gradient_error"),
    [
        ("P2", 1, 4e-5, 7e-5),
        ("P2", 2, 3e-4, 1.2e-3),
        ("Q2", 2, 8e-5, 1.2e-3),
        ("hermite", 2, 1e-5, 2e-4),
        ("P2", 3, 9e-3, 0.03),
    ],
)
def test_value_gradient_and_policy_are_those_of_v(element, dim, value_error, gradient_error):
    matrix = np.array([[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.8]])[:dim, :dim]

    def diffusion(t, x):
        return (1.0 + np.asarray(t) + 0.2 * x[..., 0])[..., None, None] * matrix

    problem = make_problem(dim, diffusion=diffusion)
    s = interpolant(lambda t, x: wave(t, x)[0], dim=dim, element=element, problem=problem, cells=16 if dim < 3 else 8)
    rng = np.random.default_rng(1)
    t, x = rng.uniform(0, 1, 200), rng.uniform(-1, 1, (200, dim))
    v, gradient = wave(t, x)
    np.testing.assert_allclose(s.value(t, x), v, atol=value_error)
    np.testing.assert_allclose(s.gradient(t, x), gradient, atol=gradient_error)
    expected = np.einsum("nij,nj->ni", diffusion(t, x), s.gradient(t, x)) / ALPHA
    np.testing.assert_allclose(s.policy(t, x), expected, rtol=1e-12)
    np.testing.assert_allclose(s.f(t, x), GAUGE.u(t, x, v), rtol=1.5 * value_error / ALPHA)


def test_recovery_is_exact_for_polynomials_of_one_degree_more():
    s = interpolant(lambda t, x: 0.2 * (1 + t) * x[..., 0] ** 3 - 0.1 * x[..., 0] * x[..., 1], dim=2, element="P2")
    # P2 blends the vertex fits, quadratic gradients, with bilinear weights evaluated at P2 nodes: exact at the nodes
    x = s.space.spatial.nodes
    for t in (0.0, 0.3, 1.0):
        a, b = x.T
        expected = np.stack([0.6 * (1 + t) * a**2 - 0.1 * b, -0.1 * a], axis=-1)
        np.testing.assert_allclose(s.gradient(t, x), expected, atol=1e-11)


# ----------------------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize("element", ["P2", "hermite"])
def test_scalar_batched_and_broadcast_times_agree(element):
    s = interpolant(lambda t, x: wave(t, x)[0], dim=2, element=element)
    x = np.random.default_rng(2).uniform(-1, 1, (3, 4, 2))
    times = np.array([0.0, 0.25, 0.6, 1.0])
    for method, tail in ((s.f, ()), (s.value, ()), (s.gradient, (2,)), (s.policy, (2,))):
        batched = method(np.broadcast_to(times, (3, 4)), x)
        assert batched.shape == (3, 4, *tail)
        single = [[method(times[j], x[i, j]) for j in range(4)] for i in range(3)]
        np.testing.assert_allclose(batched, single, atol=1e-11)
        every = method(times[:, None, None], x)
        assert every.shape == (4, 3, 4, *tail)
        np.testing.assert_allclose(every[2], method(0.6, x), atol=1e-11)
        assert method(0.5, x[:0]).shape == (0, 4, *tail)


def test_it_is_a_value_function_frozen_and_says_how_low_f_is():
    s = interpolant(lambda t, x: wave(t, x)[0])
    assert isinstance(s, ValueFunction)
    assert s.minimum_f == s.stats["min_f"] == s.coefficients.min()
    assert s.coefficients.shape == s.space.shape
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.method = "other"
    with pytest.raises(ValueError, match="read-only"):
        s.coefficients[0, 0] = 1.0
    with pytest.raises(TypeError, match="does not support item assignment"):
        s.stats["min_f"] = 1.0
    given = s.coefficients.ravel().copy()
    again = dataclasses.replace(s, coefficients=given, stats={"dofs": 3}, error_estimate=1e-3)
    given[:] = 0.0
    np.testing.assert_array_equal(again.coefficients, s.coefficients)
    assert dict(again.stats) == {"dofs": 3, "min_f": s.minimum_f}
    assert again.error_estimate == 1e-3
    assert np.shares_memory(dataclasses.replace(s, status="late").coefficients, s.coefficients)


def test_minimum_of_hermite_classes_is_over_values_not_slopes():
    s = interpolant(lambda t, x: -3.0 * x[..., 0], element="hermite")
    assert s.coefficients.min() < 0 < s.minimum_f
    np.testing.assert_allclose(s.minimum_f, GAUGE.u([0.0, 1.0], [0.0], -3.0).min(), rtol=1e-12)


# --------------------------------------------------------------------------------------- where f is not positive


@pytest.mark.parametrize("element", ["P2", "hermite"])
def test_f_that_is_not_positive_is_an_error_that_says_where(element):
    good = interpolant(lambda t, x: wave(t, x)[0], element=element, cells=16)
    middle = int(np.argmin(np.abs(good.space.spatial.nodes[:, 0] - 0.5)))

    def sink(c):
        spatial = good.space.spatial
        c[:, np.flatnonzero(spatial.at_nodes(np.eye(spatial.n_dofs))[:, middle])] = -0.25

    s = with_coefficients(good, sink)
    x = np.array([[-0.5], [0.5], [0.9]])
    assert s.minimum_f == -0.25
    assert s.f(0.5, x)[1] == pytest.approx(-0.25)
    with pytest.raises(PositivityError, match=r"f <= 0 at 1 of 3 points, the lowest is f=-0.25 at t=0.5, x=\[0.5\]"):
        s.value(0.5, x)
    lowest = r"1 of 3 points.*t=0.5, x=\[0.5\]"
    with pytest.raises(PositivityError, match=lowest):
        s.gradient(0.5, x)
    with pytest.raises(PositivityError, match=lowest):
        s.policy(np.full(3, 0.5), x)
    for method in (s.value, s.gradient, s.policy):
        np.testing.assert_array_equal(np.isnan(method(0.5, x, nonpositive="nan").reshape(3)), [False, True, False])
    # far from there nothing has changed
    np.testing.assert_allclose(s.gradient(0.5, x[::2]), good.gradient(0.5, x[::2]), rtol=1e-12)


def test_at_a_time_node_the_neighbouring_time_nodes_do_not_matter():
    def sink(c):
        c[:-1] = -1.0

    good = interpolant(lambda t, x: wave(t, x)[0])
    s = with_coefficients(good, sink)
    x = np.linspace(-1, 1, 9)[:, None]
    np.testing.assert_allclose(s.gradient(1.0, x), good.gradient(1.0, x), rtol=1e-10)
    with pytest.raises(PositivityError, match="9 of 9 points"):
        s.gradient(0.99, x)


# ---------------------------------------------------------------------------------------------- outside points


@pytest.mark.parametrize("element", ["P2", "hermite"])
def test_points_outside_raise_or_are_nan(element):
    def diffusion(t, x):
        return np.where(np.abs(x[..., :1, None]) <= 1.0, 1.0 + 0.0 * x[..., None], np.nan)

    s = interpolant(lambda t, x: wave(t, x)[0], element=element, problem=make_problem(1, diffusion=diffusion))
    x = np.array([[0.3], [1.5], [-0.2], [-4.0]])
    for method in (s.f, s.value, s.gradient, s.policy):
        with pytest.raises(DomainError, match=r"2 of 4 points lie outside.*index 1, 3"):
            method(0.2, x)
        for t in (0.2, np.full(4, 0.2)):
            got = method(t, x, outside="nan").reshape(4)
            np.testing.assert_array_equal(np.isnan(got), [False, True, False, True])


def test_recovered_gradients_are_cached_within_bounds(monkeypatch):
    s = interpolant(lambda t, x: wave(t, x)[0], time_cells=8)
    x, t = np.zeros((400, 1)), np.linspace(0, 1, 400)
    expected = s.gradient(t, x)
    monkeypatch.setattr(solution_module, "_CACHE_BYTES", 0)
    small = dataclasses.replace(s)
    np.testing.assert_array_equal(small.gradient(t, x), expected)
    assert len(small._recovered._cache) == s.space.time.local_size
    assert len(s._recovered._cache) == s.space.time.n_dofs
    assert expected.flags.writeable


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            SpaceError,
            r"coefficients must have shape \(13, 17\)",
            lambda s: dataclasses.replace(s, coefficients=np.ones(3)),
        ),
        (
            SpaceError,
            r"coefficients must be finite, got 221",
            lambda s: dataclasses.replace(s, coefficients=s.coefficients * np.nan),
        ),
        (
            SpaceError,
            r"dimension 1 and horizon 1, but the problem 'plane' has 2 and 1",
            lambda s: dataclasses.replace(s, problem=make_problem(2, name="plane")),
        ),
        (
            SpaceError,
            r"horizon 1, but the problem .* has 1 and 3",
            lambda s: dataclasses.replace(s, problem=make_problem(1, horizon=3.0)),
        ),
        (DomainError, r"t must lie in \[0, 1\]", lambda s: s.value(1.5, [[0.0]])),
        (DomainError, r"shape \(..., 1\), got shape \(2,\); write x\[:, None\]", lambda s: s.gradient(0.5, [0.0, 0.1])),
        (SpaceError, r"outside must be one of 'error', 'nan', got 'clip'", lambda s: s.f(0.5, [0.0], outside="clip")),
        (SpaceError, r"outside must be one of", lambda s: s.gradient(0.5, [0.0], outside="clip")),
        (SpaceError, r"nonpositive must be one of", lambda s: s.value(0.5, [0.0], nonpositive="clip")),
        (SpaceError, r"nonpositive must be one of", lambda s: s.gradient(0.5, [0.0], nonpositive="clip")),
    ],
)
def test_bad_input_is_refused(error, message, call):
    with pytest.raises(error, match=message):
        call(interpolant(lambda t, x: wave(t, x)[0]))


# ------------------------------------------------------------------------------------ values as coefficients


QUADRATIC = QuadraticGauge(
    constants=GAUGE, centre=[0.1], P=np.array([[[0.4]], [[0.1]]]), p=np.array([[0.2], [-0.1]]), c=np.array([0.3, 0.1])
)


@pytest.mark.parametrize("background", [GAUGE, QUADRATIC], ids=["constants", "quadratic"])
def test_solutions_by_their_value(background):
    """On a C1 class the coefficients are those of what a background leaves of v; nothing has to be positive."""
    good = interpolant(lambda t, x: wave(t, x)[0], element="hermite", cells=16, time_cells=8)
    unknown = ValueGauge(background=background)
    coefficients = good.space.interpolate(lambda t, x: wave(t, x)[0] - background.guess(t, x))
    s = dataclasses.replace(good, coefficients=coefficients, gauge=unknown)
    rng = np.random.default_rng(4)
    t, x = rng.uniform(0, 1, 100), rng.uniform(-1, 1, (100, 1))
    v, gradient = wave(t, x)
    assert (good.space.evaluate(coefficients, t, x) < 0).any()
    np.testing.assert_allclose(s.value(t, x), v, atol=1e-5)
    np.testing.assert_allclose(s.gradient(t, x), gradient, atol=1e-3)
    np.testing.assert_allclose(s.policy(t, x), gradient / ALPHA, atol=1e-3)
    np.testing.assert_allclose(s.f(t, x), GAUGE.u(t, x, v), rtol=1e-4)
    np.testing.assert_array_equal(s.value(t, x, nonpositive="nan"), s.value(t, x))
    np.testing.assert_array_equal(s.gradient(t, x, nonpositive="nan"), s.gradient(t, x))
    assert np.isnan(s.value(0.0, [[3.0]], outside="nan")).all()


# ------------------------------------------------------------------------------------ independent problems


def side_by_side():
    """v = v1(x_2, x_0) + v2(x_1)."""
    pair = interpolant(lambda t, x: wave(t, x)[0] - 0.3 * x[..., 0], dim=2)
    single = interpolant(lambda t, x: 0.5 * wave(t, x)[0])
    whole = ProductSolution(problem=make_problem(3), parts=(((2, 0), pair), ((1,), single)), status="ok")
    return whole, pair, single


def test_products_add_values_and_stack_gradients():
    whole, pair, single = side_by_side()
    assert isinstance(whole, ValueFunction)
    assert whole.method == "product"
    rng = np.random.default_rng(6)
    t, x = rng.uniform(0, 1, (4, 5)), rng.uniform(-1, 1, (4, 5, 3))
    a, b = x[..., [2, 0]], x[..., [1]]
    np.testing.assert_allclose(whole.value(t, x), pair.value(t, a) + single.value(t, b))
    np.testing.assert_allclose(whole.f(t, x), pair.f(t, a) * single.f(t, b))
    for name in ("gradient", "policy"):
        got = getattr(whole, name)(t, x)
        assert got.shape == x.shape
        np.testing.assert_array_equal(got[..., [2, 0]], getattr(pair, name)(t, a))
        np.testing.assert_array_equal(got[..., [1]], getattr(single, name)(t, b))
    every = whole.gradient(np.array([0.2, 0.7])[:, None], x[0])
    assert every.shape == (2, 5, 3)
    np.testing.assert_allclose(every[1], whole.gradient(0.7, x[0]))


def test_products_pass_on_what_is_outside_or_not_positive():
    whole, pair, _ = side_by_side()
    x = np.array([[0.1, 0.2, 0.3], [0.1, 2.0, 0.3], [-3.0, 0.2, 0.3]])
    with pytest.raises(DomainError, match="1 of 3 points lie outside"):
        whole.value(0.5, x)
    np.testing.assert_array_equal(np.isnan(whole.value(0.5, x, outside="nan")), [False, True, True])
    np.testing.assert_array_equal(
        np.isnan(whole.gradient(0.5, x, outside="nan")), [[False] * 3, [False, True, False], [True, False, True]]
    )
    sunk = dataclasses.replace(whole, parts=(((2, 0), with_coefficients(pair, lambda c: c.fill(-1.0))), whole.parts[1]))
    with pytest.raises(PositivityError):
        sunk.value(0.5, x[:1])
    assert np.isnan(sunk.value(0.5, x[:1], nonpositive="nan")).all()


@pytest.mark.parametrize("covered", [((0,), (1,)), ((0, 1), (1,)), ((0, 1), (3,))])
def test_products_must_take_each_coordinate_once(covered):
    _, pair, single = side_by_side()
    parts = tuple((index, pair if len(index) == 2 else single) for index in covered)
    with pytest.raises(SpaceError, match="the factors must take each of 3 coordinates once, got"):
        ProductSolution(problem=make_problem(3), parts=parts, status="ok")
