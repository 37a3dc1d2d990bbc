"""Operators of the forms against functions written out by hand: differences, polynomial solutions, Gaussian laws."""

import numpy as np
import pytest

from fem_hjb.learning import forms
from fem_hjb.learning.samples import Located, operator_rows
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.divergence import row_divergence
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.linear import linear_transition
from fem_hjb.problems.problem import LinearDrift
from fem_hjb.spaces.line import row_products
from fem_hjb.spaces.space import Space
from tests.support.exactness import space_derivative, time_derivative

POWERS = np.array([(i, j) for i in range(4) for j in range(4) if i + j <= 3])  # of x and y, up to degree 3
TIME_DEGREE = 3


def monomial(x, powers):
    return np.prod(x[:, None, :] ** powers, axis=2)


def time_tables(t):
    """1, t, t^2, t^3 and their derivatives, (m, 2, 4)."""
    k = np.arange(TIME_DEGREE + 1)
    return np.stack([t[:, None] ** k, k * t[:, None] ** np.maximum(k - 1, 0)], axis=1)


def space_tables(x, powers=POWERS):
    """Monomials with gradients and Hessians, the power rule applied once per derivative."""
    d = powers.shape[1]
    unit = np.eye(d, dtype=int)

    def derivative(*axes):
        left, factor = powers.copy(), np.ones(len(powers))
        for axis in axes:
            factor = factor * left[:, axis]
            left = np.maximum(left - unit[axis], 0)
        return factor * monomial(x, left)

    gradients = np.stack([derivative(j) for j in range(d)], axis=-1)
    hessians = np.stack([np.stack([derivative(j, k) for k in range(d)], axis=-1) for j in range(d)], axis=-2)
    return derivative(), gradients, hessians


def polynomial(coefficients, powers=POWERS):
    """The function sum_ka C[k, a] t^k x^a, from the definition."""

    def f(t, x):
        return ((np.asarray(t)[:, None] ** np.arange(TIME_DEGREE + 1) @ coefficients) * monomial(x, powers)).sum(1)

    return f


def derivatives(f, t, x, step=0.25):
    """d_t f, grad f, Hess f by central differences of order 8, which are exact on these polynomials."""

    def gradient(t, x):
        return space_derivative(f, t, x, step)

    return time_derivative(f, t, x, step), gradient(t, x), space_derivative(gradient, t, x, step)


def diffusion(x):
    """A matrix that is not diagonal, varies, and is positive definite: quadratic in the state."""
    a, b = x[:, 0], x[:, 1]
    return np.stack(
        [np.stack([1 + a**2 / 2 + b**2, 0.3 * a * b + 0.2], -1), np.stack([0.3 * a * b + 0.2, 0.8 + a**2], -1)], axis=-2
    )


def diffusion_divergence(x):
    """Of `diffusion`, differentiated by hand."""
    a, b = x[:, 0], x[:, 1]
    return np.stack([a + 0.3 * a, 0.3 * b + 0.0 * a], axis=-1)


def drift(x):
    return np.stack([-x[:, 0] + 0.4 * x[:, 1] ** 2, 0.3 - 0.7 * x[:, 0] * x[:, 1]], axis=-1)


def rate(x):
    return -0.2 - 0.1 * (x**2).sum(axis=1)


@pytest.fixture
def sample():
    rng = np.random.default_rng(3)
    x = rng.uniform(-1.5, 1.5, (40, 2))
    coefficients = rng.standard_normal((2, TIME_DEGREE + 1, len(POWERS)))
    return rng.uniform(0, 1, 40), x, coefficients[0], coefficients[1]


def applied(operator, time, tables):
    """An operator applied to all products of functions of time (m, 2, k) and of space: (m, k * l), time first."""
    m, d = tables[1].shape[0], tables[1].shape[2]

    def at_points(given, *shape):
        return np.zeros((m, *shape)) if given is None else np.broadcast_to(given, (m, *shape))

    now = np.reshape(operator.value, (-1, 1)) * tables[0]
    now = now + np.einsum("mld,md->ml", tables[1], at_points(operator.gradient, d))
    if operator.hessian is not None:
        now = now + np.einsum("mlij,mij->ml", tables[2], at_points(operator.hessian, d, d))
    changing = np.reshape(operator.time, (-1, 1)) * tables[0]
    changing = changing + np.einsum("mld,md->ml", tables[1], at_points(operator.mixed, d))
    return row_products([time[:, 0], now]) + row_products([time[:, 1], changing])


def slope_rows(factor, time, tables):
    """C_k' grad of all products, (d, m, k * l)."""
    return np.stack([applied(operator, time, tables) for operator in forms.slopes(factor)])


def slope(h, errors):
    return np.polyfit(np.log(h), np.log(errors), 1)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Each operator against the function it makes of a function


def test_rows_of_products_are_numbered_with_time_first_like_the_dofs_of_a_space(sample):
    t, x, *_ = sample
    rows = applied(forms.VALUE, time_tables(t), space_tables(x))
    for i in (0, 17, 39):
        expected = [t[i] ** k * x[i, 0] ** a * x[i, 1] ** b for k in range(TIME_DEGREE + 1) for a, b in POWERS]
        np.testing.assert_allclose(rows[i], expected, rtol=1e-13)
    problem = zoo.get("lq", dim=2)
    space = Space(problem, cells=3, time_cells=2, box=Box([-2.0, -2.0], [2.0, 2.0]))
    at = Located.of(space, t, x)
    coefficients = np.random.default_rng(0).standard_normal(space.n_dofs)
    for operator, name in ((forms.VALUE, "value"), (forms.RATE_OF_CHANGE, "time")):
        rows = operator_rows(space, at, operator)
        np.testing.assert_allclose(
            (rows * coefficients[space.cell_dofs(at.cells)]).sum(1),
            space.evaluate(coefficients, t, x, name),
            rtol=1e-10,
            atol=1e-11,
        )


def test_transport_is_a_directional_derivative_plus_the_rate(sample):
    t, x, c, _ = sample
    f = polynomial(c)
    velocity, growth = drift(x), rate(x)
    along = time_derivative(lambda s, at: f(t + s, at + s[:, None] * velocity), 0 * t, x, 0.1)  # exact up to degree 8
    rows = applied(forms.transport(velocity, growth), time_tables(t), space_tables(x))
    np.testing.assert_allclose(rows @ c.ravel(), -(along + growth * f(t, x)), atol=1e-10)


def test_the_residual_is_the_equation_applied_to_a_function(sample):
    t, x, c, _ = sample
    f = polynomial(c)
    rate_of_change, gradient, hessian = derivatives(f, t, x)
    expected = -(
        rate_of_change
        + (drift(x) * gradient).sum(1)
        + 0.5 * np.einsum("nij,nij->n", diffusion(x), hessian)
        + rate(x) * f(t, x)
    )
    rows = applied(forms.residual(drift(x), diffusion(x), rate(x)), time_tables(t), space_tables(x))
    assert np.abs(rows @ c.ravel() - expected).max() < 1e-10 * np.abs(expected).max()


def test_transport_is_the_first_order_part_of_the_weak_form(sample):
    t, x, c, _ = sample
    f = polynomial(c)
    rate_of_change, gradient, _ = derivatives(f, t, x)
    expected = -(rate_of_change + (drift(x) * gradient).sum(1) + rate(x) * f(t, x))
    rows = applied(forms.transport(drift(x), rate(x)), time_tables(t), space_tables(x))
    assert np.abs(rows @ c.ravel() - expected).max() < 1e-11 * np.abs(expected).max()


def test_products_of_slopes_sum_to_the_energy(sample):
    t, x, c, e = sample
    Lambda = diffusion(x)
    gradients = [derivatives(polynomial(k), t, x)[1] for k in (c, e)]
    rows = slope_rows(np.linalg.cholesky(Lambda), time_tables(t), space_tables(x))
    assert rows.shape == (2, 40, (TIME_DEGREE + 1) * len(POWERS))
    product = ((rows @ c.ravel()) * (rows @ e.ravel())).sum(0)
    expected = np.einsum("ni,nij,nj->n", gradients[0], Lambda, gradients[1])
    assert np.abs(product - expected).max() < 1e-11 * np.abs(expected).max()
    transposed = slope_rows(np.linalg.cholesky(Lambda).swapaxes(1, 2), time_tables(t), space_tables(x))
    wrong = ((transposed @ c.ravel()) * (transposed @ e.ravel())).sum(0)
    assert np.abs(wrong - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_flux_is_half_the_energy_with_weighted_tests(sample, delta, constant):
    """sum of products = 1/2 grad(g - delta d_t g)' Lambda grad f, also where Lambda is the same everywhere."""
    t, x, c, e = sample
    Lambda = diffusion(x)[7] if constant else diffusion(x)
    g, f = polynomial(c), polynomial(e)

    def weighted(t, x):
        return g(t, x) - delta * time_derivative(g, t, x, 0.25)

    products = forms.flux(np.linalg.cholesky(Lambda), delta)
    total = sum(
        (applied(test, time_tables(t), space_tables(x)) @ c.ravel())
        * (applied(trial, time_tables(t), space_tables(x)) @ e.ravel())
        for test, trial in products
    )
    slopes = [space_derivative(function, t, x, 0.25) for function in (weighted, f)]
    expected = 0.5 * np.einsum("ni,nij,nj->n", slopes[0], np.broadcast_to(Lambda, (40, 2, 2)), slopes[1])
    assert np.abs(total - expected).max() < 1e-9 * np.abs(expected).max()
    assert len(products) == 2
    assert all(product[0].gradient.ndim == (1 if constant else 2) for product in products)


def test_tests_of_a_weighted_form_are_the_function_less_delta_its_rate_of_change(sample):
    t, x, c, _ = sample
    g = polynomial(c)
    rows = applied(forms.tested(0.3), time_tables(t), space_tables(x))
    np.testing.assert_allclose(rows @ c.ravel(), g(t, x) - 0.3 * time_derivative(g, t, x, 0.25), atol=1e-10)


def test_the_two_rows_of_an_increment_add_up_to_it(sample):
    t, x, c, _ = sample
    f, rng = polynomial(c), np.random.default_rng(5)
    dt = rng.uniform(0.01, 0.1, 40)
    after = x + 0.2 * rng.standard_normal((40, 2))
    martingale = rng.standard_normal((40, 2))
    now, then = f(t, x), f(t + dt, after)
    gradient = derivatives(f, t, x)[1]
    expected = (
        -(
            then
            - now
            - (gradient * martingale).sum(1)
            + dt / 2 * (rate(x) * now + (rate(after) - 0.4) * then)  # a rate that depends on time
        )
        / dt
    )
    first = applied(forms.increment(rate(x), dt, martingale), time_tables(t), space_tables(x))
    second = applied(forms.successor(rate(after) - 0.4, dt), time_tables(t + dt), space_tables(after))
    assert np.abs((first + second) @ c.ravel() - expected).max() < 1e-11 * np.abs(expected).max()
    step = 0.05  # one step for all, and no correction
    expected = -(then - now + step / 2 * (rate(x) * now - 0.4 * then)) / step
    first = applied(forms.increment(rate(x), step), time_tables(t), space_tables(x))
    second = applied(forms.successor(-0.4, step), time_tables(t + dt), space_tables(after))
    assert np.abs((first + second) @ c.ravel() - expected).max() < 1e-11 * np.abs(expected).max()


# ---------------------------------------------------------------------------------------------------------------------
# Solutions


def test_the_residual_of_a_polynomial_solution_vanishes_pointwise():
    """dX = (Y + a) dt + noise, dY = b dt + noise: E[X_T^2 | x, y] is a polynomial, of degree 4 in T - t at most."""
    T, a, b = 1.3, 0.4, -0.6
    Lambda = np.array([[0.9, 0.35], [0.35, 1.4]])
    rng = np.random.default_rng(0)
    t, x = rng.uniform(0, T, 50), rng.uniform(-2, 2, (50, 2))
    powers = np.array([(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)])

    def in_time(sign):
        """For s = T - t: mean x + y s + m, m = a s + b s^2/2; variance L11 s + L12 s^2 + L22 s^3/3."""
        s = np.polynomial.Polynomial([T, -1.0])
        m = a * s + b * s**2 / 2
        variance = Lambda[0, 0] * s + Lambda[0, 1] * s**2 + Lambda[1, 1] * s**3 / 3
        return [m**2 + sign * variance, 2 * m, 2 * m * s, s**0, 2 * s, s**2]  # one per power of (x, y)

    def residual(sign):
        parts = in_time(sign)
        time = np.stack([np.stack([p(t) for p in parts], -1), np.stack([p.deriv()(t) for p in parts], -1)], axis=1)
        velocity = np.stack([x[:, 1] + a, np.full(50, b)], axis=-1)
        rows = applied(forms.residual(velocity, Lambda, 0.0), time, space_tables(x, powers))
        return np.abs(rows @ np.eye(6).ravel()).max()

    assert residual(1.0) < 1e-13
    assert residual(-1.0) > 1.0


def test_the_residual_vanishes_at_a_stationary_solution_with_a_rate():
    """1/2 f'' + rho f = 0 for f = 1 + x^2 and rho = -1/(1 + x^2)."""
    x = np.linspace(-3, 3, 31)[:, None]
    rho = -1 / (1 + x[:, 0] ** 2)
    powers = np.array([[0], [2]])
    tables = space_tables(x, powers)
    time = np.tile(np.array([[1.0], [0.0]]), (31, 1, 1))
    rows = applied(forms.residual(np.zeros((31, 1)), np.ones((1, 1)), rho), time, tables)
    assert np.abs(rows.sum(1)).max() < 1e-14
    wrong = applied(forms.residual(np.zeros((31, 1)), np.ones((1, 1)), -rho), time, tables)
    assert np.abs(wrong.sum(1)).max() > 1


def test_the_residual_of_a_solution_in_a_finite_element_class_vanishes_pointwise():
    """f = (x + c (T - t))^2 + L (T - t), constant drift c, lies in cubics in space by quadratics in time."""
    problem = zoo.get("lq", dim=1)
    space = Space(problem, cells=7, time_cells=3, box=Box([-3.0], [3.0]))
    c, L = 0.7, 1.6
    exact = space.interpolate(lambda t, x: (x[:, 0] + c * (1 - t)) ** 2 + L * (1 - t)).ravel()
    rng = np.random.default_rng(1)
    t, x = rng.uniform(0, 1, 300), rng.uniform(-3, 3, (300, 1))
    table = space.tabulate(t, x, 2)
    operator = forms.residual(np.full((300, 1), c), np.full((300, 1, 1), L), np.zeros(300))
    ours = operator_rows(space, Located.of(space, t, x), operator)
    for rows in (applied(operator, table.time, table.space), ours):
        residual = (rows * exact[space.cell_dofs(table.cells)]).sum(1)
        assert np.abs(residual).max() < 1e-11


# ---------------------------------------------------------------------------------------------------------------------
# Integrals under a law


MEAN, COV = np.array([0.3, -0.2]), np.array([[0.7, 0.25], [0.25, 0.5]])


def gaussian_points(t, order=12):
    law = Gaussian(MEAN, COV)
    x, weights = law.quadrature(order)  # exact: what is integrated is polynomial
    return law, np.full(len(x), t), x, weights


def forms_under_the_density(divergence):
    """The matrices int E[...] at one time of the residual and of the weak form, all monomials with all."""
    law, t, x, weights = gaussian_points(0.4)
    Lambda, time, (phi, dphi, d2phi) = diffusion(x), time_tables(t), space_tables(x)
    tables = (phi, dphi, d2phi)
    values = applied(forms.VALUE, time, tables)
    residual = applied(forms.residual(drift(x), Lambda, rate(x)), time, tables)
    current = forms.current_velocity(drift(x), Lambda, divergence(x), law.score(x))
    products = [(forms.VALUE, forms.transport(current, rate(x))), *forms.flux(np.linalg.cholesky(Lambda), 0.0)]
    weak = sum(
        (applied(test, time, tables) * weights[:, None]).T @ applied(trial, time, tables) for test, trial in products
    )
    return (values * weights[:, None]).T @ residual, weak


def test_integration_by_parts_turns_the_residual_form_into_the_weak_one():
    """int p g (-L f) = int p (weak rows) g + 1/2 int p grad g' Lambda grad f, for a Lambda that varies."""
    residual, weak = forms_under_the_density(lambda x: row_divergence(diffusion, x, 0.1))
    assert np.abs(weak - residual).max() < 1e-11 * np.abs(residual).max()
    _, without = forms_under_the_density(lambda x: 0.0)
    assert np.abs(without - residual).max() > 1e-2 * np.abs(residual).max()


def test_the_current_of_a_reversible_process_vanishes_and_otherwise_is_its_rotation():
    """Lambda = 1 + x^2 and b = x - x (1 + x^2)/2 leave the standard normal law invariant, without a current."""
    x = np.linspace(-3, 3, 25)[:, None]
    Lambda = (1 + x**2)[:, :, None]
    divergence = row_divergence(lambda x: (1 + x**2)[:, :, None], x, 0.1)
    current = forms.current_velocity(x - x * (1 + x**2) / 2, Lambda, divergence, -x)
    assert np.abs(current).max() < 1e-13
    # dX = (J - 1/2 Lambda) X dt + Lambda^{1/2} dB with J antisymmetric: invariant under N(0, 1), with the current J x
    J, L = np.array([[0.0, 0.9], [-0.9, 0.0]]), np.array([[1.0, 0.4], [0.4, 0.6]])
    x = np.random.default_rng(2).standard_normal((20, 2))
    current = forms.current_velocity(x @ (J - L / 2).T, np.broadcast_to(L, (20, 2, 2)), 0.0, -x)
    np.testing.assert_allclose(current, x @ J.T, atol=1e-14)


def energy_gap(points, dt_weights, coefficients, drift_at, Lambda_at, rho, horizon):
    """B[f, f] from the rows, and the energy it should be; points: t -> (x, weights) of the law of X_t."""

    def square(t):
        x, weights = points(t)
        return weights @ polynomial(coefficients, powers)(np.full(len(x), t), x) ** 2

    powers = POWERS if points(0.0)[0].shape[1] == 2 else np.array([[0], [1], [2], [3]])
    form, energy = square(horizon), 0.5 * square(horizon) + 0.5 * square(0.0)
    c = coefficients.ravel()
    for t, h in dt_weights:
        x, weights = points(t)
        time, tables, Lambda = time_tables(np.full(len(x), t)), space_tables(x, powers), Lambda_at(x)
        f = applied(forms.VALUE, time, tables) @ c
        residual = applied(forms.residual(drift_at(x), Lambda, rho(x)), time, tables) @ c
        slopes = slope_rows(np.linalg.cholesky(Lambda), time, tables) @ c
        form += h * weights @ (residual * f)
        energy += h * weights @ (0.5 * (slopes**2).sum(0) - rho(x) * f**2)
    return form, energy


def gauss_times(horizon, order=16):
    s, w = np.polynomial.legendre.leggauss(order)
    return list(zip(horizon * (s + 1) / 2, horizon * w / 2, strict=True))


def test_energy_identity_under_a_law_that_moves():
    """An OU process from N(1, 0.2): f is no solution, so this is Ito's formula for f^2 and nothing else."""
    A, a, L, T = np.array([[-1.2]]), np.array([0.5]), np.array([[0.8]]), 0.9

    def points(t):
        E, c, S = linear_transition(LinearDrift(A, a), L, t)
        return Gaussian(E @ [1.0] + c, 0.2 * E @ E.T + S).quadrature(8)

    coefficients = np.random.default_rng(7).standard_normal((TIME_DEGREE + 1, 4))
    form, energy = energy_gap(
        points,
        gauss_times(T),
        coefficients,
        lambda x: x @ A.T + a,
        lambda x: np.broadcast_to(L, (len(x), 1, 1)),
        rate,
        T,
    )
    assert form == pytest.approx(energy, rel=1e-12)
    wrong, _ = energy_gap(
        points,
        gauss_times(T),
        coefficients,
        lambda x: x @ A.T + a + 0.1,
        lambda x: np.broadcast_to(L, (len(x), 1, 1)),
        rate,
        T,
    )
    assert abs(wrong - energy) > 1e-3 * energy


def test_energy_identity_with_a_diffusion_that_varies():
    """b = 1/2 div Lambda - 1/2 Lambda x + J x keeps N(0, 1) invariant for any Lambda(x) and antisymmetric J."""
    J, T = np.array([[0.0, 0.8], [-0.8, 0.0]]), 0.7
    normal = Gaussian(np.zeros(2), 1.0).quadrature(8)

    def stationary_drift(x):
        return 0.5 * diffusion_divergence(x) - 0.5 * np.einsum("nij,nj->ni", diffusion(x), x) + x @ J.T

    coefficients = np.random.default_rng(8).standard_normal((TIME_DEGREE + 1, len(POWERS)))
    form, energy = energy_gap(lambda t: normal, gauss_times(T), coefficients, stationary_drift, diffusion, rate, T)
    assert form == pytest.approx(energy, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Increments


STEPS = 0.05 / 2.0 ** np.arange(6)


def conditional_means(mean_after, drift_at, t, x):
    """Largest conditional means of M and of dX - b dt for the steps; drifts are linear in x, so that these are M and
    dX - b dt of the mean."""
    corrected, naive = [], []
    for h in STEPS:
        after, dt = mean_after(t, x, h), np.full(len(x), h)
        now, then = drift_at(t, x), drift_at(t + h, after)
        corrected.append(np.abs(forms.martingale_increment(after - x, now, then, dt)).max())
        naive.append(np.abs(after - x - h * now).max())
    return slope(STEPS, corrected), slope(STEPS, naive)


def test_martingale_increment_of_an_ou_process_has_a_mean_of_third_order():
    A, a = np.array([[-1.0, 0.6], [-0.4, -0.7]]), np.array([0.3, -0.5])
    x = np.random.default_rng(0).standard_normal((30, 2))

    def mean_after(t, x, h):
        E, c, _ = linear_transition(LinearDrift(A, a), np.eye(2), h)
        return x @ E.T + c

    corrected, naive = conditional_means(mean_after, lambda t, x: x @ A.T + a, 0.0, x)
    assert corrected == pytest.approx(3, abs=0.15)
    assert naive == pytest.approx(2, abs=0.15)


def test_martingale_increment_needs_the_drift_at_the_later_time():
    """b = -(1 + 2 t) x: E[X_{t+h} | x] = exp(-h - h (2 t + h)) x; frozen coefficients lose the order."""
    x = np.linspace(-2, 2, 9)[:, None]

    def mean_after(t, x, h):
        return np.exp(-h - h * (2 * t + h)) * x

    corrected, naive = conditional_means(mean_after, lambda t, x: -(1 + 2 * t) * x, 0.3, x)
    assert corrected == pytest.approx(3, abs=0.15)
    assert naive == pytest.approx(2, abs=0.15)
    frozen, _ = conditional_means(mean_after, lambda t, x: -(1 + 2 * 0.3) * x, 0.3, x)
    assert frozen == pytest.approx(2, abs=0.15)


def test_noise_of_the_increment_form_at_the_solution_is_of_order_dt():
    """OU, f = E[X_T^2 | x] = e^{-2 (T-t)} x^2 + (1 - e^{-2 (T-t)})/2, in the class spanned by {1, e^{2 t}} x {1, x^2}.

    Standard deviation of one step's (f_{k+1} - f_k - grad f_k' M_k) given X_k: order 1; with M = 0 order 1/2.
    """
    T, t0 = 1.0, 0.2
    A, a, L = np.array([[-1.0]]), np.zeros(1), np.eye(1)
    x0 = np.array([[-1.3], [0.4], [1.1]])
    z, weights = Gaussian([0.0], 1.0).quadrature(20)
    x = np.repeat(x0, len(z), axis=0)
    powers = np.array([[0], [2]])
    coefficients = np.array([0.5, 0.0, -0.5 * np.exp(-2 * T), np.exp(-2 * T)])

    def time(t):
        return np.tile(np.array([[1.0, np.exp(2 * t)], [0.0, 2 * np.exp(2 * t)]]), (len(x), 1, 1))

    exact = applied(forms.residual(x @ A.T, np.ones((1, 1)), 0.0), time(t0), space_tables(x, powers))
    assert np.abs(exact @ coefficients).max() < 1e-14

    def mean_and_noise(corrected):
        means, noises = [], []
        for h in STEPS:
            E, c, S = linear_transition(LinearDrift(A, a), L, h)
            after = x @ E.T + c + np.tile(z, (len(x0), 1)) * np.sqrt(S)
            dt = np.full(len(x), h)
            martingale = forms.martingale_increment(after - x, x @ A.T, after @ A.T, dt)
            first = applied(forms.increment(0.0, dt, martingale * corrected), time(t0), space_tables(x, powers))
            second = applied(forms.successor(0.0, dt), time(t0 + h), space_tables(after, powers))
            residual = (h * (first + second) @ coefficients).reshape(len(x0), -1)
            mean = residual @ weights
            means.append(np.abs(mean).max())
            noises.append(np.sqrt((residual - mean[:, None]) ** 2 @ weights).max())
        return means, noises

    means, noises = mean_and_noise(1.0)
    assert slope(STEPS, noises) == pytest.approx(1, abs=0.05)
    assert slope(STEPS, means) == pytest.approx(3, abs=0.15)
    means, noises = mean_and_noise(0.0)
    assert slope(STEPS, noises) == pytest.approx(0.5, abs=0.05)
    assert max(means) < 1e-14  # f is a martingale along the paths
