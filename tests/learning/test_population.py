"""The best approximation of a class, distances from the solution, and the parts of an error."""

from functools import partial

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.learning.population import split_error, yardstick
from fem_hjb.support.errors import MeasureError, SpaceError

fit = partial(fh.fit, verify=False)  # here solutions are compared with what is known


LQ = fh.zoo.get("lq", dim=1)
BOX = fh.Box([-4.0], [4.0])


def space_of(cells, time_cells, **how):
    return fh.Space(LQ, cells=cells, time_cells=time_cells, box=BOX, **how)


def exact_f(gauge, t, x):
    return gauge.u(t, x, LQ.exact.value(t, x))


@pytest.mark.parametrize("element", ["hermite", "B3", "P2"])
def test_the_mass_norm_is_the_integral_it_says(element):
    space = space_of(6, 3, element=element)
    law = fh.law_measure(LQ, space)
    ruler = yardstick(LQ, law, space, norm="mass")
    c = np.random.default_rng(0).standard_normal(space.n_dofs)
    inside = law.weights @ (space.evaluate(c, law.t, law.x) - exact_f(ruler.gauge, law.t, law.x)) ** 2
    horizon = np.full(len(law.terminal_x), 1.0)
    at_the_end = space.evaluate(c, horizon, law.terminal_x) - exact_f(ruler.gauge, horizon, law.terminal_x)
    assert ruler.distance(c) == pytest.approx(np.sqrt(inside + law.terminal_weights @ at_the_end**2), rel=1e-9)
    size = law.weights @ exact_f(ruler.gauge, law.t, law.x) ** 2
    size += law.terminal_weights @ exact_f(ruler.gauge, horizon, law.terminal_x) ** 2
    assert ruler.size == pytest.approx(np.sqrt(size), rel=1e-9)


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_the_energy_norm_is_the_integral_it_says(delta):
    space = space_of(6, 3)
    law = fh.law_measure(LQ, space)
    ruler = yardstick(LQ, law, space, delta=delta)
    c = np.random.default_rng(0).standard_normal(space.n_dofs)

    def parts(t, x):
        """f - f*, its gradient (Lambda = 1) and its time derivative; the exact ones from the closed form."""
        f = exact_f(ruler.gauge, t, x)
        step = 1e-6
        before, after = np.maximum(t - step, 0), np.minimum(t + step, 1)
        rate = (exact_f(ruler.gauge, after, x) - exact_f(ruler.gauge, before, x)) / (after - before)
        values, slopes, rates = space.derivatives(c, t, x, ("value", "gradient", "time"))
        return values - f, slopes[:, 0] - f * LQ.exact.gradient(t, x)[:, 0], rates - rate

    value, slope, rate = parts(law.t, law.x)
    total = law.weights @ (value**2 + slope**2 + delta * rate**2)
    for t, x, w in ((1.0, law.terminal_x, law.terminal_weights), (0.0, law.initial_x, law.initial_weights)):
        value, slope, _ = parts(np.full(len(x), t), x)
        total += w @ (value**2 + delta / 2 * slope**2)
    assert ruler.distance(c) == pytest.approx(np.sqrt(total), rel=1e-6)


def test_nothing_in_the_class_is_nearer_than_the_best():
    space = space_of(5, 2)
    law = fh.law_measure(LQ, space)
    ruler = yardstick(LQ, law, space, delta=0.2)
    assert ruler.distance(ruler.best) == pytest.approx(ruler.approximation)
    rng = np.random.default_rng(1)
    for _ in range(5):
        direction = rng.standard_normal(space.n_dofs)
        direction *= 1e-3 * ruler.approximation / ruler.norm(direction)
        assert ruler.distance(ruler.best + direction) > ruler.approximation
        # orthogonality: both signs are equally far
        plus, minus = (ruler.distance(ruler.best + s * direction) for s in (1, -1))
        assert plus == pytest.approx(minus, rel=1e-9)


def test_the_approximation_error_has_the_order_of_the_class():
    sizes, errors = (36, 48, 64), []
    for cells in sizes:
        space = space_of(cells, 24, time_degree=3)
        errors.append(yardstick(LQ, fh.law_measure(LQ, space), space, norm="mass").approximation)
    assert -np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(4, abs=0.15)


def test_the_error_splits():
    space = space_of(8, 4)
    law = fh.law_measure(LQ, space)
    ruler = yardstick(LQ, law, space)
    population = fit(LQ, law, space)
    errors = {}
    for steps in (5, 80):
        observed = fit(LQ, fh.law_measure(LQ, space, times=np.linspace(0, 1, steps + 1)), space)
        for n in (1000, 16000):
            paths = fh.sample_paths(LQ, n=n, steps=steps, rng=3)
            learned = fit(LQ, paths, space, outside="drop")
            errors[steps, n] = split_error(
                ruler, learned.coefficients, population=population.coefficients, observed=observed.coefficients
            )
    bar, bar_k, hat = (one.coefficients for one in (population, observed, learned))  # of the last pair
    assert errors[80, 16000].observation == pytest.approx(ruler.norm(bar_k - bar) / ruler.size)
    assert errors[80, 16000].statistical == pytest.approx(ruler.norm(hat - bar_k) / ruler.size)
    assert errors[80, 16000].galerkin == pytest.approx(ruler.norm(bar.ravel() - ruler.best) / ruler.size)
    few, many = errors[5, 16000], errors[80, 16000]
    assert few.observation > 8 * many.observation  # left-point sums: 16 in the limit
    assert errors[80, 1000].statistical > 2 * many.statistical  # sqrt(16) = 4 on average
    assert few.approximation == many.approximation
    assert many.galerkin < 0.5 * many.approximation
    bound = many.approximation + many.galerkin + many.observation + many.statistical
    assert many.approximation < many.total < bound
    unsplit = split_error(ruler, population.coefficients, population=population.coefficients)
    assert (unsplit.observation, unsplit.statistical) == (0.0, 0.0)
    assert unsplit.total == pytest.approx(np.hypot(unsplit.approximation, unsplit.galerkin))


def test_a_sampled_law_approaches_the_quadrature():
    space = fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-1.5], [1.5]))
    law = fh.law_measure(LQ, space_of(64, 2), degree=8)  # also sees what lies outside
    exact = yardstick(LQ, law, space, norm="mass")
    sampled = yardstick(LQ, fh.learning.sampled_law_measure(LQ, space, n=20_000, rng=0), space, norm="mass")
    assert sampled.approximation == pytest.approx(exact.approximation, rel=0.05)
    assert exact.norm(sampled.best - exact.best) < 0.05 * exact.approximation


def test_bad_input():
    space = space_of(4, 2)
    law = fh.law_measure(LQ, space)
    with pytest.raises(MeasureError, match="norm must be one of 'energy', 'mass', got 'L2'"):
        yardstick(LQ, law, space, norm="L2")
    unknown = fh.zoo.get("double-well", dim=1)
    with pytest.raises(MeasureError, match=r"has no exact solution: give exact="):
        yardstick(unknown, law, space)
    with pytest.raises(SpaceError, match="coefficients must have shape"):
        yardstick(LQ, law, space).distance(np.zeros(3))
