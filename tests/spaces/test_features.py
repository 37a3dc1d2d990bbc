"""Dictionaries of features: derivatives, operator rows, orthonormality, and what they represent, exactly or not."""

import tracemalloc
from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.special import eval_hermitenorm, factorial, roots_legendre

from fem_hjb import fit
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems import zoo
from fem_hjb.problems.gauge import Gauge, constant_gauge
from fem_hjb.problems.laws import Gaussian, GaussianMixture
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces import dictionary as dictionaries
from fem_hjb.spaces.dictionary import Dictionary, Envelope, Union
from fem_hjb.spaces.features import GaussianQuadratic, HermiteCross, RandomFourier
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.support.errors import DomainError, MeasureError, SpaceError
from tests.support.exactness import space_derivative


def spd(dim, rng, scale=1.0):
    root = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    return scale * (0.5 * np.eye(dim) + root @ root.T)


def law_in(dim, seed=0):
    rng = np.random.default_rng(seed)
    return Gaussian(0.3 * rng.standard_normal(dim), spd(dim, rng))


def symmetric(dim, rng):
    matrix = rng.standard_normal((dim, dim)) / dim
    return 0.2 * (matrix + matrix.T)


def _envelope(base, rng):
    return Envelope(base, symmetric(base.dim, rng), 0.2 * rng.standard_normal(base.dim))


def _bumps(dim, rng):
    law = law_in(dim)
    return GaussianQuadratic(law.sample(9, rng), np.stack([spd(dim, rng, 0.5) for _ in range(9)]), law=law)


def _fourier(dim, rng):
    return RandomFourier(law_in(dim), 11, scale=1.7, rng=5)


MAKERS = {
    "fourier": _fourier,
    "cross": lambda dim, rng: HermiteCross(law_in(dim), 8 if dim < 20 else 2),
    "total": lambda dim, rng: HermiteCross(law_in(dim), 4 if dim < 20 else 2, total=True),
    "bumps": _bumps,
    "envelope of fourier": lambda dim, rng: _envelope(_fourier(dim, rng), rng),
    "envelope of cross": lambda dim, rng: _envelope(HermiteCross(law_in(dim), 3), rng),
    "envelope of bumps": lambda dim, rng: _envelope(_bumps(dim, rng), rng),
    "envelope twice": lambda dim, rng: _envelope(_envelope(_fourier(dim, rng), rng), rng),
    "union": lambda dim, rng: Union(_fourier(dim, rng), _envelope(_bumps(dim, rng), rng), HermiteCross(law_in(dim), 1)),
    "envelope of union": lambda dim, rng: _envelope(Union(_fourier(dim, rng), _bumps(dim, rng)), rng),
}
CASES = list(product(MAKERS, (1, 3, 20)))


def make(name, dim):
    return MAKERS[name](dim, np.random.default_rng(7))


def at(dictionary, n, seed=1):
    return dictionary.law.sample(n, np.random.default_rng(seed))


def tables(dictionary, x, order):
    return dictionary.tabulate(*dictionary.locate(x), order)


def operator(dictionary, x, value, gradient, hessian):
    return dictionary.operator_rows(*dictionary.locate(x), value, gradient, hessian)


def differences(function, x):
    """The derivatives of function: (n, d) -> (n, ...) along each axis, stacked last."""
    return space_derivative(lambda t, y: function(y), 0.0, x, 2e-3)


def slope(sizes, errors):
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


# ------------------------------------------------------------------------------------------- derivatives and rows


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_gradients_and_hessians_are_the_derivatives(name, dim):
    dictionary = make(name, dim)
    x = at(dictionary, 4)
    phi, gradient, hessian = tables(dictionary, x, 2)
    assert phi.shape == (4, dictionary.n_dofs)
    assert gradient.shape == (*phi.shape, dim)
    assert hessian.shape == (*phi.shape, dim, dim)
    by_values = differences(lambda y: tables(dictionary, y, 0)[0], x)
    np.testing.assert_allclose(gradient, by_values, atol=2e-10 * np.abs(by_values).max())
    by_gradients = differences(lambda y: tables(dictionary, y, 1)[1], x)
    np.testing.assert_allclose(hessian, by_gradients, atol=2e-10 * np.abs(by_gradients).max())
    np.testing.assert_array_equal(tables(dictionary, x, 0)[0], phi)
    np.testing.assert_array_equal(tables(dictionary, x, 1)[1], gradient)


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_operator_rows_are_what_the_tables_give(name, dim):
    dictionary = make(name, dim)
    m = 6
    x = at(dictionary, m)
    rng = np.random.default_rng(3)
    phi, slopes, curvatures = tables(dictionary, x, 2)
    values = (0.0, -0.7, rng.standard_normal(m))
    gradients = (None, rng.standard_normal(dim), rng.standard_normal((m, dim)))
    hessians = (None, rng.standard_normal((dim, dim)), rng.standard_normal((m, dim, dim)))  # not symmetric
    for value, gradient, hessian in product(values, gradients, hessians):
        expected = np.broadcast_to(value, m)[:, None] * phi
        if gradient is not None:
            expected = expected + (slopes * np.broadcast_to(gradient, (m, dim))[:, None]).sum(-1)
        if hessian is not None:
            expected = expected + (curvatures * np.broadcast_to(hessian, (m, dim, dim))[:, None]).sum((-2, -1))
        got = operator(dictionary, x, value, gradient, hessian)
        np.testing.assert_allclose(got, expected, atol=1e-12 * max(np.abs(expected).max(), 1.0))


@pytest.mark.parametrize("name", MAKERS)
def test_operator_rows_do_not_depend_on_how_points_are_chunked(name, monkeypatch):
    dictionary = make(name, 3)
    x = at(dictionary, 25)
    rng = np.random.default_rng(3)
    for shape in ((), (25,)):
        coefficients = rng.standard_normal(shape), rng.standard_normal((*shape, 3)), rng.standard_normal((*shape, 3, 3))
        whole = operator(dictionary, x, *coefficients)
        with monkeypatch.context() as patched:
            patched.setattr(dictionaries, "_CHUNK_DOUBLES", 7 * dictionary.n_dofs * 3)
            np.testing.assert_allclose(operator(dictionary, x, *coefficients), whole, atol=1e-12 * np.abs(whole).max())
    assert operator(dictionary, x[:0], 1.0, np.ones(3), np.eye(3)).shape == (0, dictionary.n_dofs)


@pytest.mark.parametrize("name", ["fourier", "total", "bumps", "envelope of union"])
def test_operator_rows_in_twenty_dimensions_hold_no_hessians(name):
    dictionary, m = make(name, 20), 20000
    x = at(dictionary, m)
    drift, diffusion = np.ones((m, 20)), np.broadcast_to(np.eye(20), (m, 20, 20))
    tracemalloc.start()
    rows = operator(dictionary, x, 1.0, drift, diffusion)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes + 8 * 6 * dictionaries._CHUNK_DOUBLES < 8 * m * dictionary.n_dofs * 20 * 20


# --------------------------------------------------------------------------------------------- each dictionary


def _kernel_error(scale_of_kernel):
    law = Gaussian([0.5, -1.0], [[1.0, 1.2], [1.2, 2.0]])
    dictionary = RandomFourier(law, 40000, scale=1.5, rng=0)
    x = at(dictionary, 6)
    (phi,) = tables(dictionary, x, 0)
    gap = x[:, None] - x
    squares = np.einsum("abi,ij,abj->ab", gap, np.linalg.inv(law.covariance), gap)
    return np.abs(phi @ phi.T / phi.shape[1] - 0.5 * np.exp(-squares / (2 * scale_of_kernel**2))).max()


def test_random_cosines_average_to_their_kernel():
    assert _kernel_error(1.5) < 4 * 0.5 / np.sqrt(40000)
    assert _kernel_error(1.2) > 0.02  # the test tells scales apart


def test_the_same_rng_gives_the_same_features_and_more_contain_the_fewer():
    law = law_in(3)
    few, many = RandomFourier(law, 8, scale=2.0, rng=4), RandomFourier(law, 30, scale=2.0, rng=4)
    for name in ("frequencies", "phases"):
        np.testing.assert_array_equal(getattr(many, name)[:8], getattr(few, name))
        assert not getattr(few, name).flags.writeable
    seeds = np.random.SeedSequence(4), np.random.default_rng(np.random.SeedSequence(4))
    for seed in seeds:
        np.testing.assert_array_equal(RandomFourier(law, 8, scale=2.0, rng=seed).frequencies, few.frequencies)
    assert np.abs(RandomFourier(law, 8, scale=2.0, rng=5).frequencies - few.frequencies).min() > 0
    assert ((few.phases >= 0) & (few.phases < 2 * np.pi)).all()


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_hermite_products_are_orthonormal_under_their_law(dim, total):
    dictionary = HermiteCross(law_in(dim), 7, total=total)
    x, weights = dictionary.law.quadrature(8)
    (phi,) = tables(dictionary, x, 0)
    np.testing.assert_allclose((phi.T * weights) @ phi, np.eye(dictionary.n_dofs), atol=1e-12)
    wrong = Gaussian(dictionary.law.mean, 1.1 * dictionary.law.covariance)
    x, weights = wrong.quadrature(8)
    (phi,) = tables(dictionary, x, 0)
    assert np.abs((phi.T * weights) @ phi - np.eye(dictionary.n_dofs)).max() > 0.1


def test_hermite_products_are_those_of_the_polynomials():
    dictionary = HermiteCross(Gaussian([1.0, -1.0], [[4.0, 1.0], [1.0, 2.0]]), 9)
    x = at(dictionary, 5)
    z = np.linalg.solve(np.linalg.cholesky(dictionary.law.covariance), (x - [1.0, -1.0]).T)
    factors = [
        eval_hermitenorm(k[:, None], z[i]) / np.sqrt(factorial(k))[:, None] for i, k in enumerate(dictionary.indices.T)
    ]
    np.testing.assert_allclose(tables(dictionary, x, 0)[0], (factors[0] * factors[1]).T, rtol=1e-11)


@pytest.mark.parametrize(("dim", "degree"), [(1, 0), (1, 6), (2, 5), (3, 7), (4, 4)])
def test_the_cross_and_the_simplex_hold_every_index_once(dim, degree):
    every = list(product(range(degree + 1), repeat=dim))
    cross = HermiteCross(law_in(dim), degree).indices
    assert sorted(map(tuple, cross.tolist())) == [k for k in every if np.prod(np.add(k, 1)) <= degree + 1]
    simplex = HermiteCross(law_in(dim), degree, total=True).indices
    assert sorted(map(tuple, simplex.tolist())) == [k for k in every if sum(k) <= degree]
    assert len(simplex) == comb(dim + degree, dim)
    for indices in (cross, simplex):
        assert (np.diff(indices.sum(axis=1)) >= 0).all()


def test_the_cross_in_twenty_dimensions():
    counts = [HermiteCross(law_in(20), degree).n_dofs for degree in (0, 1, 2, 3)]
    assert counts == [1, 21, 41, 61 + comb(20, 2)]


def test_bumps_are_the_formula_and_precisions_may_be_given_in_short():
    rng = np.random.default_rng(0)
    law, centres, widths = law_in(3), rng.standard_normal((5, 3)), rng.uniform(0.5, 2.0, 5)
    bumps = GaussianQuadratic(centres, widths, law=law)
    x = at(bumps, 7)
    expected = np.exp(-0.5 * widths * ((x[:, None] - centres) ** 2).sum(-1))
    np.testing.assert_allclose(tables(bumps, x, 0)[0], expected, rtol=1e-13)
    pairs = [(2.0, np.full(5, 2.0)), (widths, widths[:, None, None] * np.eye(3)), (spd(3, rng),) * 2]
    pairs[2] = (pairs[2][0], np.stack([pairs[2][0]] * 5))
    for short, full in pairs:
        one, other = (GaussianQuadratic(centres, precision, law=law) for precision in (short, full))
        np.testing.assert_array_equal(tables(one, x, 0)[0], tables(other, x, 0)[0])


def test_a_union_is_its_parts_side_by_side():
    parts = [make(name, 3) for name in ("fourier", "bumps", "cross")]
    union = Union(*parts)
    x = at(union, 5)
    for order in range(3):
        got = tables(union, x, order)[order]
        np.testing.assert_array_equal(got, np.concatenate([tables(part, x, order)[order] for part in parts], axis=1))


# ------------------------------------------------------------------------------------------ as a basis in space


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_a_dictionary_is_a_basis_of_one_cell(name, dim):
    dictionary = make(name, dim)
    count = dictionary.n_dofs
    assert isinstance(dictionary, Dictionary)
    assert (dictionary.dim, dictionary.n_cells, dictionary.local_size) == (dim, 1, count)
    assert dictionary.cell_dofs.tolist() == [list(range(count))]
    assert dictionary.boundary_dofs().size == dictionary.reflecting_dofs().size == 0
    x = 1e6 * np.random.default_rng(0).standard_normal((9, dim))
    cells, xi = dictionary.locate(x)
    assert cells.tolist() == [0] * 9
    np.testing.assert_array_equal(xi, x)
    assert dictionary.box.contains(x).all()
    assert not dictionary.box.bounded
    for refused in (lambda: dictionary.quadrature(3), lambda: dictionary.project(lambda x: x[..., 0])):
        with pytest.raises(SpaceError, match=r"has no cells.*sample the law"):
            refused()


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_nodes_are_spread_like_the_law(dim):
    law = law_in(dim)
    dictionary = RandomFourier(law, 500, scale=1.0, rng=0)
    nodes = dictionary.nodes
    assert nodes.shape == (2000, dim)
    assert HermiteCross(law, 1).nodes.shape == (256, dim)
    np.testing.assert_allclose(nodes[0], law.expectation, atol=1e-12)
    np.testing.assert_allclose(nodes.mean(axis=0), law.expectation, atol=0.03)
    spread = (1 + 1 / np.sqrt(dim)) ** 2 * law.covariance
    np.testing.assert_allclose(np.cov(nodes.T).reshape(dim, dim), spread, atol=0.05 * np.abs(spread).max())
    assert len(np.unique(nodes, axis=0)) == 2000
    np.testing.assert_array_equal(RandomFourier(law, 500, scale=1.0, rng=1).nodes, nodes)


@pytest.mark.parametrize(("name", "dim"), [case for case in CASES if case[1] < 20])
def test_interpolation_returns_functions_of_the_class(name, dim):
    dictionary = make(name, dim)
    coefficients = np.random.default_rng(0).standard_normal((2, dictionary.n_dofs))
    values = dictionary.at_nodes(coefficients)
    np.testing.assert_allclose(values, coefficients @ tables(dictionary, dictionary.nodes, 0)[0].T, rtol=1e-14)
    found = dictionary.interpolate(values)
    assert found.shape == coefficients.shape
    (phi,) = tables(dictionary, at(dictionary, 50), 0)
    np.testing.assert_allclose(found @ phi.T, coefficients @ phi.T, atol=1e-7 * np.abs(coefficients @ phi.T).max())


@pytest.mark.parametrize("dim", [1, 20])
def test_a_space_of_features_evaluates_like_any_other(dim):
    dictionary = make("union", dim)
    space = Space.product(LineBasis.uniform(2.0, 3, "P2"), dictionary)
    assert space.shape == (7, dictionary.n_dofs)
    assert space.smoothness >= 1
    spatial = np.random.default_rng(0).standard_normal(dictionary.n_dofs)
    coefficients = np.outer(1.0 + space.time.nodes**2, spatial)  # (1 + t^2) g(x), exactly
    x = at(dictionary, 12).reshape(3, 4, dim)
    t = np.array([0.0, 0.7, 2.0])[:, None]
    flat = tables(dictionary, x.reshape(-1, dim), 1)
    value, rate, gradient = space.derivatives(coefficients, t, x, ("value", "time", "gradient"))
    g, slopes = (flat[0] @ spatial).reshape(3, 4), np.einsum("mjd,j->md", flat[1], spatial).reshape(x.shape)
    np.testing.assert_allclose(value, (1 + t**2) * g, atol=1e-11)
    np.testing.assert_allclose(rate, 2 * t * g, atol=1e-10)
    np.testing.assert_allclose(gradient, (1 + t**2)[..., None] * slopes, atol=1e-11)
    np.testing.assert_allclose(space.evaluate(coefficients, 0.7, x[0]), (1 + 0.7**2) * g[0], atol=1e-11)


# --------------------------------------------------------------------------------------------- what they represent


def test_the_exponential_of_a_quadratic_value_is_one_feature():
    problem = zoo.get("lq", dim=2)
    law = problem.marginal(0.0)
    x = law.sample(200, np.random.default_rng(0))
    for t in (0.0, 0.4, problem.horizon):
        P, p, _ = (part[0, 0] / problem.temperature for part in problem.exact.coefficients(t))
        one = Envelope(HermiteCross(law, 0), (P + P.T) / 2, p)
        assert one.n_dofs == 1
        f = np.exp(problem.exact.value(t, one.nodes) / problem.temperature)
        coefficients = one.interpolate(f)
        phi, slopes = tables(one, x, 1)
        exact = np.exp(problem.exact.value(t, x) / problem.temperature)
        np.testing.assert_allclose(phi @ coefficients, exact, rtol=1e-12)
        got = problem.temperature * (slopes[:, 0] / phi)
        np.testing.assert_allclose(got, problem.exact.gradient(t, x), atol=1e-11)
    wrong = Envelope(HermiteCross(law, 0), 1.1 * (P + P.T) / 2, p)
    assert np.abs(tables(wrong, x, 0)[0] @ wrong.interpolate(f) - exact).max() > 1e-3


def _stationary(dim):
    """An LQ problem with P(t) = R at all times, so that f is one exponential times exp(rate t); and that rate."""
    rng = np.random.default_rng(dim)
    A, Lambda, R, alpha = -np.eye(dim) + 0.2 * rng.standard_normal((dim, dim)), spd(dim, rng), spd(dim, rng), 0.8
    Q = -A.T @ R - R @ A + R @ Lambda @ R / alpha
    problem = zoo.get("lq", dim=dim, A=A, Lambda=Lambda, Q=Q, R=R, temperature=alpha, mean=0.2)
    return problem, R / alpha, 0.5 * np.trace(Lambda @ R)


@pytest.mark.parametrize("dim", [2, 10])
def test_the_generator_annihilates_the_exact_solution_in_the_class(dim):
    problem, Q, rate = _stationary(dim)
    law = problem.marginal(0.0)
    one = Envelope(HermiteCross(law, 0), Q, np.zeros(dim))
    x = law.sample(300, np.random.default_rng(0))
    # f = exp(-rate (T - t) / alpha) phi, hence d_t f = rate / alpha f
    potential = (problem.r(0.0, x) + rate) / problem.temperature
    residual = operator(one, x, potential, problem.b(0.0, x), 0.5 * problem.Lambda(0.0, x))
    size = np.abs(potential[:, None] * tables(one, x, 0)[0]).max()
    assert np.abs(residual).max() < 1e-12 * size
    wrong = operator(one, x, potential, problem.b(0.0, x), 0.55 * problem.Lambda(0.0, x))
    assert np.abs(wrong).max() > 1e-2 * size


@pytest.mark.parametrize("dim", [2, 10])
def test_a_solution_on_a_dictionary_is_compared_like_any_other(dim):
    problem, Q, rate = _stationary(dim)
    law = problem.marginal(0.0)
    dictionary = Envelope(Union(HermiteCross(law, 1), RandomFourier(law, 20, scale=4.0, rng=0)), Q, np.zeros(dim))
    space = Space.product(LineBasis.uniform(problem.horizon, 3, "P2"), dictionary)
    constants = Gauge(temperature=problem.temperature, horizon=problem.horizon, terminal=0.0, running=-rate)
    coefficients = space.interpolate(lambda t, x: constants.u(t, x, problem.exact.value(t, x)))
    solution = Solution(
        problem=problem, space=space, coefficients=coefficients, gauge=constants, method="interpolation", status="ok"
    )
    x = law.sample(50, np.random.default_rng(2))
    np.testing.assert_allclose(solution.value(0.3, x), problem.exact.value(0.3, x), atol=1e-10)
    overall = compare({"features": solution}, problem.exact, problem=problem).overall("features")
    assert max(overall.value, overall.value_h1, overall.policy) < 1e-9
    assert overall.excluded == 0.0
    assert solution.minimum_f > 0
    np.testing.assert_allclose(solution.minimum_f, solution.f(0.0, dictionary.nodes).min(), rtol=1e-6)
    seen = constant_gauge(problem, space.spatial.nodes, space.time.nodes)
    assert (problem.y(dictionary.nodes) <= seen.terminal).all()


def test_few_paths_in_ten_dimensions_find_a_solution_that_lies_in_the_class():
    """At the solution the residual vanishes at every sample: no noise is left, only the error of P3 in time."""
    problem, Q, _ = _stationary(10)
    base = HermiteCross(problem.marginal(0.0), 1)
    paths = sample_paths(problem, n=150, steps=64, rng=0)
    errors = []
    for shape in (Q, 0.8 * Q):
        space = Space.product(LineBasis.uniform(problem.horizon, 12, "P3"), Envelope(base, shape, np.zeros(10)))
        learned = fit(problem, paths, space, smoothing=0.0)
        row = compare({"learned": learned}, problem.exact, problem=problem, times=[0.0, 0.5]).overall("learned")
        errors.append((row.value, row.policy))
    assert max(errors[0]) < 1e-3
    assert min(errors[1]) > 3e-2


def _half_line_errors(power):
    """L2 errors under N(0, 1) of the projections of x^power 1(x > 0) on Hermite polynomials up to degrees n."""
    degrees = np.array([8, 16, 32, 64, 128])
    nodes, weights = roots_legendre(1200)
    x, weights = 12 * (nodes + 1), 12 * weights
    dictionary = HermiteCross(Gaussian([0.0], 1.0), int(degrees[-1]))
    (phi,) = tables(dictionary, x[:, None], 0)
    c = (weights * x**power * np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)) @ phi
    return degrees, np.sqrt(0.5 - np.cumsum(c**2)[degrees])


def test_hermite_projections_converge_at_the_rate_of_the_regularity():
    """The coefficients of max(x, 0) fall like n^(-5/4), hence the error like n^(-3/4); of its derivative n^(-1/4)."""
    assert abs(slope(*_half_line_errors(1)) + 0.75) < 0.15
    assert abs(slope(*_half_line_errors(0)) + 0.25) < 0.15


def _least_squares_error(dictionary, target):
    x = at(dictionary, 4000, seed=11)
    error = tables(dictionary, x, 0)[0] @ dictionary.interpolate(target(dictionary.nodes)) - target(x)
    return np.sqrt((error**2).mean() / (target(x) ** 2).mean())


def test_least_squares_errors_fall_as_features_are_added():
    law = law_in(2)

    def smooth(x):
        return 1.0 / (1.0 + (x**2).sum(-1))

    def errors(target):
        return [_least_squares_error(RandomFourier(law, M, scale=1.5, rng=0), target) for M in (10, 40, 160)]

    first, second, third = errors(smooth)
    assert second < 0.4 * first
    assert third < 0.4 * second
    assert min(errors(lambda x: np.cos(40.0 * x[:, 0]))) > 0.9  # beyond the frequencies of the features


@pytest.mark.parametrize("dim", [1, 2])
def test_least_squares_with_polynomials_are_stable_in_the_tails(dim):
    """With nodes spread like the law itself, or all of one weight, the errors of high degrees are far above 1."""
    law = Gaussian(np.zeros(dim), 1.0)
    errors = [_least_squares_error(HermiteCross(law, n), lambda x: 1 / (1 + (x**2).sum(-1))) for n in (7, 15, 31)]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]


def test_least_squares_in_twenty_dimensions():
    law = Gaussian(np.zeros(20), 1.0)

    def target(x):
        return np.exp(0.2 * x.sum(-1) - 0.4)

    errors = [_least_squares_error(HermiteCross(law, degree), target) for degree in (0, 1, 3)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.7 * errors[1]
    bumps = GaussianQuadratic(law.sample(150, np.random.default_rng(0)), 0.02, law=law)
    assert _least_squares_error(bumps, target) < errors[0]
    enveloped = Envelope(HermiteCross(law, 0), np.zeros((20, 20)), np.full(20, 0.2))
    assert _least_squares_error(enveloped, target) < 1e-13


# ----------------------------------------------------------------------------------------------- what is refused

LAW = Gaussian([0.0, 0.0], 1.0)
SOUND = HermiteCross(LAW, 2)
POINTS = np.zeros((4, 2))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: RandomFourier("N(0, 1)", 5, scale=1.0, rng=0), SpaceError, "needs a Gaussian law"),
        (lambda: HermiteCross(GaussianMixture([1.0], [[0.0]], [[[1.0]]]), 2), SpaceError, "needs a Gaussian law"),
        (lambda: RandomFourier(LAW, 0, scale=1.0, rng=0), SpaceError, "count must be a positive integer, got 0"),
        (lambda: RandomFourier(LAW, 5, scale=-1.0, rng=0), SpaceError, "scale must be a positive finite number"),
        (lambda: RandomFourier(LAW, 5, scale=1.0, rng="x"), MeasureError, "rng must be"),
        (lambda: HermiteCross(LAW, -1), SpaceError, "degree must be an integer >= 0, got -1"),
        (lambda: HermiteCross(LAW, 2.0), SpaceError, "degree must be an integer >= 0, got 2.0"),
        (lambda: GaussianQuadratic(np.zeros(3), 1.0, law=LAW), SpaceError, r"shape \(M, d\), got shape \(3,\)"),
        (lambda: GaussianQuadratic(np.zeros((3, 4)), 1.0, law=LAW), SpaceError, r"centres must have shape \(3, 2\)"),
        (lambda: GaussianQuadratic([[0.0, np.nan]], 1.0, law=LAW), SpaceError, "centres must be finite"),
        (lambda: GaussianQuadratic(np.zeros((3, 2)), np.ones(4), law=LAW), SpaceError, r"precision must have shape"),
        (lambda: GaussianQuadratic(np.zeros((3, 2)), [1.0, 0.0, 1.0], law=LAW), SpaceError, "positive definite"),
        (lambda: GaussianQuadratic(np.zeros((3, 2)), [[1.0, 0.5], [0.0, 1.0]], law=LAW), SpaceError, "symmetric"),
        (lambda: GaussianQuadratic(np.zeros((3, 2)), np.inf, law=LAW), SpaceError, "precision must be finite"),
        (lambda: Envelope(LAW, np.eye(2), np.zeros(2)), SpaceError, "expected a dictionary"),
        (lambda: Envelope(SOUND, np.eye(3), np.zeros(2)), SpaceError, r"Q must have shape \(2, 2\)"),
        (lambda: Envelope(SOUND, [[0.0, 1.0], [0.0, 0.0]], np.zeros(2)), SpaceError, "Q must be symmetric"),
        (lambda: Envelope(SOUND, np.eye(2), [0.0, np.inf]), SpaceError, "q must be finite"),
        (lambda: Union(), SpaceError, "dictionaries of one dimension, got 0"),
        (lambda: Union(SOUND, "cosines"), SpaceError, "expected a dictionary"),
        (lambda: Union(SOUND, HermiteCross(law_in(3), 1)), SpaceError, r"one dimension, got 2 of dimensions \[2, 3\]"),
        (lambda: SOUND.tabulate(*SOUND.locate(POINTS), 3), SpaceError, "order must be"),
        (lambda: SOUND.interpolate(np.zeros(5)), SpaceError, r"shape \(..., 256\), got \(5,\)"),
        (lambda: SOUND.at_nodes(np.zeros((5, 4))), SpaceError, r"shape \(..., 5\), got \(5, 4\)"),
        (lambda: operator(SOUND, POINTS, np.ones(3), None, None), SpaceError, r"value must have shape \(\) or \(4,\)"),
        (lambda: operator(SOUND, POINTS, 0.0, np.ones(3), None), SpaceError, r"gradient must have shape \(2,\) or"),
        (lambda: operator(SOUND, POINTS, 0.0, None, np.ones(2)), SpaceError, r"hessian must have shape \(2, 2\) or"),
        (
            lambda: tables(Envelope(SOUND, -np.eye(2), np.zeros(2)), 50.0 + POINTS, 0),
            SpaceError,
            r"exp\(2500\) at x=\[50.0, 50.0\], which overflows",
        ),
        (
            lambda: GaussianQuadratic(POINTS + 1e3, 1.0, law=LAW).interpolate(np.zeros(256)),
            SpaceError,
            "vanish at the nodes",
        ),
        (
            lambda: Space.product(LineBasis.uniform(1.0, 2, "P2"), SOUND).evaluate(np.zeros((5, 5)), 0.0, np.zeros(3)),
            DomainError,
            "must hold points in rows",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
