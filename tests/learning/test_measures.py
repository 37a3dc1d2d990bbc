"""Measures against sums written out by hand and moments known in closed form."""

from dataclasses import replace

import numpy as np
import pytest

from fem_hjb.learning.fit import fit
from fem_hjb.learning.measures import Measure, empirical_measure, law_measure, sampled_law_measure
from fem_hjb.paths.simulate import Paths
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.reference import fokker_planck
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import LineBasis, Space, spatial_basis
from fem_hjb.support.errors import MeasureError

# ---------------------------------------------------------------------------------------------------------------------
# Trajectories


TIMES = np.array([0.0, 0.1, 0.4, 0.75, 1.0])


def some_paths(dim=2, times=TIMES, n=3):
    return Paths(t=times, x=np.random.default_rng(4).standard_normal((n, len(times), dim)))


def test_empirical_measure_is_a_left_point_sum_over_the_paths():
    paths, problem = some_paths(), zoo.get("lq", dim=2)
    measure = empirical_measure(problem, paths)
    expected = [
        (paths.t[k], *paths.x[i, k], (paths.t[k + 1] - paths.t[k]) / 3, paths.t[k + 1], *paths.x[i, k + 1])
        for i in range(3)
        for k in range(4)
    ]
    given = np.column_stack([measure.t, measure.x, measure.weights, measure.next_t, measure.next_x])
    np.testing.assert_allclose(given, expected, rtol=1e-15)
    np.testing.assert_array_equal(measure.initial_x, paths.x[:, 0])
    np.testing.assert_array_equal(measure.terminal_x, paths.x[:, -1])
    for weights in (measure.initial_weights, measure.terminal_weights):
        np.testing.assert_allclose(weights, 1 / 3, rtol=1e-15)
    assert measure.weights.sum() == pytest.approx(problem.horizon, rel=1e-14)
    assert (measure.kind, measure.paths, measure.dim, measure.score) == ("empirical", 3, 2, None)
    assert not any(array.flags.writeable for array in (measure.t, measure.x, measure.weights, measure.next_x))


def test_measures_of_parts_of_the_paths_add_up_to_that_of_all():
    problem, paths = zoo.get("lq", dim=2), some_paths(n=7)
    whole = empirical_measure(problem, paths)
    parts = [empirical_measure(problem, Paths(t=paths.t, x=paths.x[i]), n=7) for i in (slice(3), slice(3, 7))]
    for name in ("t", "x", "weights", "next_t", "next_x", "initial_x", "initial_weights", "terminal_x"):
        together = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(together, getattr(whole, name))
    assert [part.paths for part in parts] == [7, 7]
    with pytest.raises(MeasureError, match="n must be a positive integer, got 0"):
        empirical_measure(problem, paths, n=0)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (np.zeros((3, 5, 2)), "expected Paths, as sample_paths returns them, got ndarray"),
        (some_paths(dim=1), "the paths are of dimension 1, the problem has dim=2"),
        (some_paths(times=TIMES * 0.9), "the paths end at t=0.9, but the problem's horizon is 1"),
    ],
    ids=["type", "dimension", "horizon"],
)
def test_empirical_measure_refuses(paths, message):
    with pytest.raises(MeasureError, match=message):
        empirical_measure(zoo.get("lq", dim=2), paths)


# ---------------------------------------------------------------------------------------------------------------------
# Laws


def moments(x, weights, degree=4):
    """Integrals of all monomials up to a degree per coordinate."""
    exponents = np.indices((degree + 1,) * x.shape[1]).reshape(x.shape[1], -1).T
    return np.array([weights @ np.prod(x**k, axis=1) for k in exponents])


def check_slices(measure, problem, times, steps, tolerance=1e-8):
    """The points at each time, and those of X_0 and X_T, against the law's own Gauss-Hermite rule."""
    starts = np.flatnonzero(np.diff(measure.t, prepend=-1.0))
    np.testing.assert_allclose(measure.t[starts], times, rtol=1e-14, atol=1e-15)
    pieces = [slice(*ends) for ends in zip(starts, [*starts[1:], measure.t.size], strict=True)]
    parts = [(t, measure.x[i], measure.weights[i] / h) for t, h, i in zip(times, steps, pieces, strict=True)]
    parts.append((0.0, measure.initial_x, measure.initial_weights))
    parts.append((problem.horizon, measure.terminal_x, measure.terminal_weights))
    for t, x, weights in parts:
        expected = moments(*problem.marginal(t).quadrature(12))
        assert expected[0] == pytest.approx(1, rel=1e-12)  # the mass is the first of the moments
        np.testing.assert_allclose(moments(x, weights), expected, rtol=tolerance, atol=tolerance)


def gauss_times(horizon, cells, order):
    s, w = np.polynomial.legendre.leggauss(order)
    h = horizon / cells
    return (h * (np.arange(cells)[:, None] + (s + 1) / 2)).ravel(), np.tile(h * w / 2, cells)


def moving(dim=1, **changes):
    """An OU process that starts away from equilibrium."""
    return zoo.get("lq", dim=dim, **({"mean": 0.8, "cov": 0.2} | changes))


def wide_space(problem, cells=40, half=6.5, time_cells=2, **changes):
    box = Box([-half] * problem.dim, [half] * problem.dim)
    return Space(problem, cells=cells, time_cells=time_cells, box=box, **changes)


@pytest.mark.parametrize("element", ["hermite", "P1", "P2"])
def test_law_measure_integrates_polynomials_under_a_gaussian_marginal(element):
    problem = moving(horizon=1.5)
    space = wide_space(problem, cells={"hermite": 40, "P1": 80, "P2": 50}[element], element=element)
    measure = law_measure(problem, space)
    check_slices(measure, problem, *gauss_times(1.5, 2, 5))
    assert measure.weights.sum() == pytest.approx(1.5, rel=1e-10)
    assert (measure.kind, measure.paths, measure.next_t, measure.next_x) == ("law", 0, None, None)
    law = problem.marginal(measure.t[0])
    x = measure.x[measure.t == measure.t[0]]
    expected = -(x - law.expectation) / law.covariance[0, 0]
    np.testing.assert_allclose(measure.score[: len(x)], expected, rtol=1e-10, atol=1e-12)


def test_law_measure_integrates_polynomials_in_time_as_well():
    """int_0^T t^2 E[X_t^2] dt for the stationary law N(0, 1/2) is T^3/6."""
    problem = zoo.get("lq", dim=1, horizon=1.5)
    measure = law_measure(problem, wide_space(problem))
    assert measure.weights @ (measure.t**2 * measure.x[:, 0] ** 2) == pytest.approx(1.5**3 / 6, rel=1e-9)


def test_law_measure_on_triangles_and_in_two_dimensions():
    """Cells of different sizes and shapes, an asymmetric law with correlations."""
    problem = moving(dim=2, mean=[0.6, -0.3], cov=np.array([[0.5, 0.2], [0.2, 0.4]]))
    for basis in (
        spatial_basis(box_mesh(Box([-5.5, -6.0], [6.0, 5.5]), (22, 25), "tri"), "P2"),
        wide_space(problem, cells=(21, 24), half=6.0).spatial,
    ):
        space = Space.product(LineBasis.uniform(1.0, 1, "P1"), basis)
        measure = law_measure(problem, space, degree=16)
        check_slices(measure, problem, *gauss_times(1.0, 1, 4))


def test_law_measure_of_a_mixture():
    problem = zoo.get("mixture-diffusion")
    measure = law_measure(problem, wide_space(problem, cells=120, half=9.0))
    check_slices(measure, problem, *gauss_times(problem.horizon, 2, 5))
    here = measure.t == measure.t[0]
    difference = 1e-5
    law, x = problem.marginal(measure.t[0]), measure.x[here]
    slope = (law.logpdf(x + difference) - law.logpdf(x - difference)) / (2 * difference)
    np.testing.assert_allclose(measure.score[here, 0], slope, atol=1e-6)


def test_law_measure_of_a_reflected_process_is_uniform():
    problem = zoo.get("reflected")
    measure = law_measure(problem, Space(problem, cells=5, time_cells=2))
    check_slices(measure, problem, *gauss_times(problem.horizon, 2, 5), tolerance=1e-12)
    assert not measure.score.any()


def test_law_measure_at_given_times_is_the_expectation_of_the_left_point_sums_over_paths():
    problem = moving()
    measure = law_measure(problem, wide_space(problem), times=TIMES)
    check_slices(measure, problem, TIMES[:-1], np.diff(TIMES))
    np.testing.assert_allclose(measure.next_t, TIMES[np.searchsorted(TIMES, measure.t) + 1], rtol=1e-14)
    expected = sum(
        h * np.cos(3 * t) * moments(*problem.marginal(t).quadrature(12))[2]
        for t, h in zip(TIMES[:-1], np.diff(TIMES), strict=True)
    )
    left_sum = measure.weights @ (np.cos(3 * measure.t) * measure.x[:, 0] ** 2)
    assert left_sum == pytest.approx(expected, rel=1e-8)
    exact = law_measure(problem, wide_space(problem))
    assert abs(exact.weights @ (np.cos(3 * exact.t) * exact.x[:, 0] ** 2) - expected) > 1e-2
    # Paths with these marginals, all driven by one normal variable Z, so that the sums over them are an average of
    # (m_t + s_t Z)^2; antithetic Z of unit sample variance make it exact.
    z = np.random.default_rng(6).standard_normal((50, 1))
    z = np.concatenate([z, -z]) / np.sqrt((z**2).mean())
    laws = [problem.marginal(t) for t in TIMES]
    paths = Paths(t=TIMES, x=np.stack([law.expectation + z * np.sqrt(law.covariance[0, 0]) for law in laws], axis=1))
    sampled = empirical_measure(problem, paths)
    assert sampled.weights @ (np.cos(3 * sampled.t) * sampled.x[:, 0] ** 2) == pytest.approx(expected, rel=1e-12)


def from_a_point(point=0.4):
    drift = LinearDrift([[-1.0]], [0.2])
    start = PointMass([point])
    return ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=drift,
        diffusion=0.7,
        terminal_reward=lambda x: x[..., 0],
        initial_law=start,
        marginal=linear_marginal(drift, 0.7, start),
        name="from a point",
    )


def test_law_measure_of_a_process_that_starts_at_a_point():
    problem = from_a_point()
    measure = law_measure(problem, wide_space(problem, cells=60, half=4.0), times=TIMES)
    check_slices(measure, problem, TIMES[:-1], np.diff(TIMES))
    assert measure.initial_x.tolist() == [[0.4]]
    assert measure.initial_weights.tolist() == [1.0]
    assert (measure.t == 0).sum() == 1
    assert measure.weights[0] == pytest.approx(0.1, rel=1e-14)
    assert measure.score is None  # the point has none
    inner = law_measure(problem, wide_space(problem, cells=400, half=4.0, time_cells=1))
    check_slices(inner, problem, *gauss_times(1.0, 1, 5))
    assert inner.score.shape == inner.x.shape
    assert inner.initial_x.tolist() == [[0.4]]


def test_what_lies_outside_the_domain_is_left_out_and_not_renormalised():
    problem = zoo.get("lq", dim=1)  # N(0, 1/2) at all times
    measure = law_measure(problem, wide_space(problem, half=1.5, cells=10))
    inside = 0.9661051464753108  # erf(1.5)
    assert measure.terminal_weights.sum() == pytest.approx(inside, rel=1e-9)
    assert measure.weights.sum() == pytest.approx(inside * problem.horizon, rel=1e-9)


def test_law_measure_takes_a_marginal_law_that_the_problem_does_not_know():
    """Without the closed form the same measure comes out, score included, and the same Galerkin solution."""
    known = moving()
    space = wide_space(known, cells=24, half=5.0)
    unknown = replace(known, marginal=None)
    with pytest.raises(MeasureError, match=r"knows no law of X_t; compute one, .*marginal=fokker_planck.solve"):
        law_measure(unknown, space)
    exact = law_measure(known, space)
    computed = law_measure(unknown, space, marginal=fokker_planck.solve(unknown, rtol=1e-6).marginal)
    assert exact.score is not None
    assert computed.score is not None
    np.testing.assert_array_equal(computed.x, exact.x)
    assert np.abs(computed.weights - exact.weights).sum() < 1e-6
    wrong = computed.weights * np.abs(computed.score - exact.score).max(axis=1)
    assert wrong.sum() < 1e-5 * (exact.weights * np.abs(exact.score).max(axis=1)).sum()
    x = np.linspace(-1.0, 2.0, 13)[:, None]
    best, fitted = (fit(known, measure, space).value(0.3, x) for measure in (exact, computed))
    assert np.abs(fitted - best).max() < 1e-6
    assert np.abs(fitted - known.exact.value(0.3, x)).max() < 1e-2


def test_law_measure_of_a_double_well_sees_its_stationary_law():
    problem = zoo.get("double-well", dim=1, kappa=1.0, horizon=6.0)
    space = Space(problem, cells=40, time_cells=3, box=Box([-2.5], [2.5]))
    measure = law_measure(problem, space, marginal=fokker_planck.solve(problem, rtol=1e-6).marginal)
    x = np.linspace(-3.0, 3.0, 2001)
    stationary = np.exp(-2 * (x**2 - 1) ** 2)
    for power in (2, 4):
        moment = measure.terminal_weights @ measure.terminal_x[:, 0] ** power
        assert moment == pytest.approx((stationary * x**power).sum() / stationary.sum(), rel=1e-4)


def test_law_measure_of_an_absorbed_process_holds_what_is_left():
    problem = replace(
        moving(mean=0.0),
        domain=Box([-1.5], [1.5], boundary="absorbing"),
        initial_law=Gaussian([0.0], 0.1),
        exact=None,
        marginal=None,
    )
    law = fokker_planck.solve(problem, box=problem.domain, rtol=1e-4).law(1.0)
    assert 0.2 < law.mass < 0.9
    measure = law_measure(replace(problem, initial_law=law, marginal=lambda t: law), Space(problem, cells=12))
    assert measure.terminal_weights.sum() == pytest.approx(law.mass, rel=1e-4)


def test_a_sampled_law_has_the_moments_of_the_law_with_an_error_of_one_over_the_square_root():
    problem = moving(dim=2, mean=[0.6, -0.3], cov=np.array([[0.5, 0.2], [0.2, 0.4]]), horizon=1.5)
    space = wide_space(problem, cells=2)
    times, steps = gauss_times(1.5, 2, 5)
    sizes, errors = (100, 1000, 10_000), []
    for n in sizes:
        squares = []
        for seed in range(4):
            measure = sampled_law_measure(problem, space, n=n, rng=seed)
            for t, x in zip(times, measure.x.reshape(len(times), n, 2), strict=True):
                squares.append(np.sum((x.mean(0) - problem.marginal(t).expectation) ** 2))
        errors.append(np.sqrt(np.mean(squares)))
        np.testing.assert_allclose(measure.t.reshape(-1, n), np.repeat(times[:, None], n, axis=1), rtol=1e-14)
        np.testing.assert_allclose(measure.weights.reshape(-1, n), np.repeat(steps[:, None] / n, n, axis=1), rtol=1e-14)
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(-0.5, abs=0.05)
    for t, x in ((0.0, measure.initial_x), (1.5, measure.terminal_x)):
        np.testing.assert_allclose(np.cov(x.T), problem.marginal(t).covariance, atol=0.02)
        np.testing.assert_allclose(x.mean(0), problem.marginal(t).expectation, atol=0.01)
    last = problem.marginal(times[-1])
    np.testing.assert_allclose(measure.score[-n:], last.score(measure.x[-n:]), rtol=1e-13)
    assert (measure.kind, measure.paths, measure.next_t, measure.next_x) == ("law", 0, None, None)
    for weights in (measure.initial_weights, measure.terminal_weights):
        np.testing.assert_allclose(weights, 1 / n, rtol=1e-14)
    again = sampled_law_measure(problem, space, n=n, rng=3)
    np.testing.assert_array_equal(again.x, measure.x)
    assert not np.isin(sampled_law_measure(problem, space, n=n, rng=4).x, measure.x).any()


def test_a_sampled_law_that_starts_at_a_point_has_a_score_after_it():
    problem = from_a_point()
    space = wide_space(problem, cells=2, half=4.0)
    measure = sampled_law_measure(problem, space, n=50, rng=0)
    assert (measure.initial_x == 0.4).all()
    law = problem.marginal(measure.t[0])
    np.testing.assert_allclose(measure.score[:50], law.score(measure.x[:50]), rtol=1e-13)


@pytest.mark.parametrize(
    ("change", "n", "message"),
    [
        ({"marginal": None}, 5, "knows no marginal law to draw from: give ControlProblem"),
        ({}, 0, "n must be a positive integer, got 0"),
        ({}, 2.5, "n must be a positive integer, got 2.5"),
    ],
)
def test_a_sampled_law_refuses(change, n, message):
    problem = replace(moving(), **change)
    with pytest.raises(MeasureError, match=message):
        sampled_law_measure(problem, wide_space(problem, cells=2), n=n, rng=0)


def test_law_measure_refuses_a_space_of_another_dimension():
    with pytest.raises(MeasureError, match="the space is of dimension 2, the problem has dim=1"):
        law_measure(moving(), wide_space(moving(dim=2), cells=2))


@pytest.mark.parametrize(("half", "cells"), [(1.0, 20), (400.0, 2)], ids=["box too small", "law narrower than a cell"])
def test_law_measure_refuses_a_rule_that_misses_mass(half, cells):
    with pytest.raises(MeasureError, match=r"sees a mass of .* instead of 1 for the law of X_t at t=.*enlarge the"):
        law_measure(moving(), wide_space(moving(), half=half, cells=cells))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (0.5, r"got shape \(\)$"),
        ([0.0], r"got shape \(1,\) from 0 to 0"),
        ([], r"got shape \(0,\)$"),
        ([[0.0, 1.0]], r"got shape \(1, 2\)$"),
        ([0.0, 0.5, 0.5, 1.0], r"increase strictly from 0 to the horizon 1, .* \(4,\) from 0 to 1"),
        ([0.1, 1.0], "from 0.1 to 1"),
        ([0.0, 0.9], "from 0 to 0.9"),
        ([0.0, np.nan, 1.0], "increase strictly"),
    ],
)
def test_law_measure_refuses_times(times, message):
    with pytest.raises(MeasureError, match=message):
        law_measure(moving(), wide_space(moving(), cells=20), times=times)


# ---------------------------------------------------------------------------------------------------------------------
# Measures given by hand


GIVEN = {
    "kind": "empirical",
    "t": [0.0, 0.5, 0.0],
    "x": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
    "weights": [0.5, 0.25, 0.25],
    "initial_x": [[0.0, 1.0]],
    "initial_weights": [1.0],
    "terminal_x": [[2.0, 3.0], [1.0, 1.0]],
    "terminal_weights": [0.5, 0.5],
    "next_t": [0.5, 1.0, 1.0],
    "next_x": [[2.0, 3.0], [1.0, 1.0], [0.0, 0.0]],
}


def test_a_measure_copies_and_freezes_what_it_is_given():
    x = np.array(GIVEN["x"])
    measure = Measure(**(GIVEN | {"x": x}))
    x[:] = 7
    assert measure.x.tolist() == GIVEN["x"]
    assert measure.dim == 2
    for name in set(GIVEN) - {"kind"}:
        with pytest.raises(ValueError, match="read-only"):
            getattr(measure, name)[0] = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sampled"}, "kind must be one of 'law', 'empirical', got 'sampled'"),
        ({"x": [0.0, 1.0]}, r"x must hold points in rows, shape \(m, d\), got shape \(2,\)"),
        ({"x": [[np.nan, 1.0], [2.0, 3.0], [4.0, 5.0]]}, "x must be finite, got 1 non-finite"),
        ({"weights": [0.5, 0.5]}, r"Measure: weights must have shape \(3,\), got shape \(2,\)"),
        ({"weights": [0.5, -0.5, 1.0]}, "Measure: weights must be non-negative .*got 1 negative among 3 with sum 1"),
        ({"weights": [0.0, 0.0, 0.0]}, "Measure: weights must be .*not all zero, got 0 negative among 3 with sum 0"),
        ({"initial_x": [[0.0]]}, r"initial_x must have shape \(1, 2\), got shape \(1, 1\)"),
        ({"initial_weights": [1.0, 1.0]}, r"initial_weights must have shape \(1,\)"),
        ({"initial_weights": [-1.0]}, "initial_weights must be non-negative"),
        ({"terminal_x": np.zeros((2, 3))}, r"terminal_x must have shape \(2, 2\), got shape \(2, 3\)"),
        ({"terminal_weights": [np.inf, 1.0]}, "terminal_weights must be finite"),
        ({"terminal_weights": [0.0, 0.0]}, "terminal_weights must be non-negative and not all zero"),
        ({"t": [0.0, 0.5]}, r"Measure: t must have shape \(3,\)"),
        ({"next_t": [0.5, 1.0]}, r"next_t must have shape \(3,\)"),
        ({"next_x": np.zeros((3, 1))}, r"next_x must have shape \(3, 2\)"),
        ({"score": np.zeros(3)}, r"score must have shape \(3, 2\), got shape \(3,\)"),
        ({"next_t": [0.5, 0.5, 1.0]}, "next_t must be later than t at every point"),
        ({"next_t": None}, "next_x without next_t"),
    ],
)
def test_a_measure_refuses(change, message):
    with pytest.raises(MeasureError, match=message):
        Measure(**(GIVEN | change))
