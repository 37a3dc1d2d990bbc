"""Each estimator against the law it samples, against solutions its class holds, and against the others."""

import dataclasses
from functools import partial
from itertools import product

import numpy as np
import pytest
import scipy.linalg

import fem_hjb as fh
from fem_hjb.learning import estimators as registry
from fem_hjb.learning import forms
from fem_hjb.learning.estimators import ESTIMATORS, Setting
from fem_hjb.learning.measures import Measure, empirical_measure, law_measure
from fem_hjb.learning.system import assemble
from fem_hjb.problems.gauge import constant_gauge
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space, spatial_basis
from fem_hjb.support.errors import MeasureError, SpaceError
from tests.support.manufactured import GAUGE, polynomial, solution, step_measure

fit = partial(fh.fit, verify=False)  # here solutions are compared with what is known


LQ = fh.zoo.get("lq", dim=1)
EXACT = [name for name, row in ESTIMATORS.items() if row.exact]
NOISY = [name for name, row in ESTIMATORS.items() if not row.exact]
SUMMED = [name for name in ESTIMATORS if name != "doob"]  # whose penalty is to be chosen before anything is summed
WEIGHTED = [name for name, row in ESTIMATORS.items() if row.weighted]


def slope(sizes, errors):
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


def box(half, dim=1):
    return fh.Box([-half] * dim, [half] * dim)


def smooth_function(space):
    """Coefficients of a function that is no solution."""
    return space.interpolate(lambda t, x: np.cos(0.7 * x.sum(-1) + t) + 0.3 * t * x[:, 0]).ravel()


def error_of(found):
    """The largest error of f where the samples are, relative to the largest f there."""
    t, x = (part.ravel() for part in np.meshgrid([0.1, 0.5, 0.9], np.linspace(-1.5, 1.5, 31), indexing="ij"))
    exact = found.gauge.u(t, x[:, None], LQ.exact.value(t, x[:, None]))
    return np.abs(found.f(t, x[:, None]) - exact).max() / exact.max()


def values_at(of, c):
    """B[c, .] - l, the number for every test function."""
    return of.form @ c - of.load


# ---------------------------------------------------------------------------------------------------------------------
# Consistency


@pytest.mark.parametrize("estimator", SUMMED)
def test_sampled_forms_approach_the_form_of_the_law_at_the_rate_of_the_square_root_of_n(estimator):
    space = Space(LQ, cells=4, time_cells=2, box=box(4.5))
    steps, c = 16, smooth_function(space)
    if estimator in ("increment", "corrected"):  # what the left points of steps see, exactly
        law = step_measure(LQ, space, steps)
    else:
        law = law_measure(LQ, space, times=np.linspace(0.0, 1.0, steps + 1))
    limit = values_at(assemble(LQ, law, space, estimator=estimator, outside="drop"), c)
    sizes, errors = (100, 400, 1600), []
    for n, seeds in zip(sizes, (16, 10, 6), strict=True):
        squares = []
        for seed in range(seeds):
            paths = fh.sample_paths(LQ, n=n, steps=steps, rng=7 * seed + n)
            system = assemble(LQ, paths, space, estimator=estimator, outside="drop")
            squares.append(np.sum((values_at(system, c) - limit) ** 2))
        errors.append(np.sqrt(np.mean(squares)))
    assert slope(sizes, errors) == pytest.approx(-0.5, abs=0.1)
    other = "increment" if estimator == "regression" else "regression"
    wrong = values_at(assemble(LQ, paths, space, estimator=other, outside="drop"), c)
    assert np.linalg.norm(wrong - limit) > 10 * errors[-1]  # another estimator's form is another form


def observation_errors(estimator, steps, problem=LQ):
    """|| (form_K - form) c || for a function that is no solution, K steps and no noise."""
    space = Space(problem, cells=12, time_cells=1, box=box(4.5))
    c = smooth_function(space)
    errors = []
    for K in steps:
        seen = assemble(problem, step_measure(problem, space, K), space, estimator=estimator, outside="drop")
        law = assemble(problem, law_measure(problem, space), space, estimator=estimator, outside="drop")
        errors.append(np.linalg.norm((seen.form - law.form) @ c))
    return errors


@pytest.mark.parametrize("estimator", [name for name in SUMMED if name != "regression"])
def test_the_observation_error_of_left_points_is_of_first_order(estimator):
    steps = (8, 16, 32, 64)
    assert slope(steps, observation_errors(estimator, steps)) == pytest.approx(-1, abs=0.1)


def bias_at_the_solution(estimator, steps, measure=step_measure):
    problem = polynomial(marginal=None)
    problem = dataclasses.replace(problem, marginal=gaussian_law(problem))
    space = Space(problem, cells=16, time_cells=1, box=box(5.5))
    c = space.interpolate(solution).ravel()
    return [
        np.linalg.norm(
            values_at(
                assemble(
                    problem, measure(problem, space, K), space, estimator=estimator, outside="drop", constants=GAUGE
                ),
                c,
            )
        )
        for K in steps
    ]


def gaussian_law(problem):
    return linear_marginal(problem.drift, problem.constant_diffusion, problem.initial_law)


@pytest.mark.parametrize("estimator", ["increment", "corrected"])
def test_increments_are_of_second_order_at_the_solution(estimator):
    """Trapezoids for rho f and for the drift, where left points would leave a first order."""
    steps = (4, 8, 16, 32)
    assert slope(steps, bias_at_the_solution(estimator, steps)) == pytest.approx(-2, abs=0.15)


@pytest.mark.parametrize("estimator", ["generator", "residual", "weak"])
def test_other_estimators_are_unbiased_at_the_solution(estimator):
    assert max(bias_at_the_solution(estimator, (4, 16))) < 1e-7


def test_labels_are_what_feynman_kac_averages():
    """exp(y + int r) from the path, the integral by trapezoids: by hand, and of second order on a smooth path."""
    problem = polynomial()
    space = Space(problem, cells=3, time_cells=1, box=box(4.0))
    setting = Setting(problem=problem, space=space, gauge=GAUGE, delta=0.0)

    def labels(steps, power=1.0):
        t = np.linspace(0.0, 1.0, steps + 1) ** power
        x = np.stack([np.sin(2 * t), 0.5 - t], axis=0)[:, :, None]
        ((test, found),) = (
            ESTIMATORS["regression"].terms(setting, empirical_measure(problem, fh.paths.Paths(t=t, x=x))).load
        )
        assert test is forms.VALUE
        return t, x, found.reshape(2, steps)

    t, x, found = labels(7, 1.6)
    rho = np.stack([problem.r(t, path) / problem.temperature for path in x])
    for i in range(2):
        for k in range(7):
            integral = np.trapezoid(rho[i, k:], t[k:])
            expected = solution(1.0, x[i, -1:])[0] * np.exp(integral)
            assert found[i, k] == pytest.approx(expected, rel=1e-12)
    exact = labels(4096)[2][:, 0]
    sizes = (4, 8, 16, 32)
    assert slope(sizes, [np.abs(labels(K)[2][:, 0] - exact).max() for K in sizes]) == pytest.approx(-2, abs=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Noise at the solution


def noise(estimator, n, steps, seeds, problem=None, told=None, delta=0.0):
    """Root mean square of || B_n[f*, .] - l_n || over seeds, in a class that holds f*."""
    problem = polynomial() if problem is None else problem
    problem = dataclasses.replace(problem, marginal=gaussian_law(problem))
    told = problem if told is None else told
    space = Space(problem, cells=3, time_cells=2, box=box(6.0))
    c = space.interpolate(solution).ravel()
    squares = []
    for seed in range(seeds):
        paths = fh.sample_paths(problem, n=n, steps=steps, rng=100 * seed + n + steps)
        given = assemble(told, paths, space, estimator=estimator, constants=GAUGE, delta=delta)
        squares.append(np.sum(values_at(given, c) ** 2))
    return np.sqrt(np.mean(squares))


@pytest.mark.parametrize("estimator", SUMMED)
def test_noise_at_the_solution(estimator):
    """None at all, in every sample, if the estimator says it is exact; else of order n^{-1/2}."""
    if estimator in EXACT:
        assert noise(estimator, 30, 16, 2) < 1e-10
        wrong = dataclasses.replace(polynomial(), drift=fh.LinearDrift([[-1.1]], [0.2]), marginal=None)
        assert noise(estimator, 30, 16, 2, told=wrong) > 1e-2
        return
    sizes = (100, 400, 1600)
    errors = [noise(estimator, n, 16, seeds) for n, seeds in zip(sizes, (24, 16, 10), strict=True)]
    assert slope(sizes, errors) == pytest.approx(-0.5, abs=0.1)
    assert errors[0] > 1e-3


def test_only_the_noise_of_corrected_increments_falls_with_the_step():
    """As sqrt(dt); not that of increments, nor where the drift is not the process's."""
    steps = (8, 16, 32)
    rates = {name: slope(steps, [noise(name, 100, K, 16) for K in steps]) for name in ("corrected", "increment")}
    assert rates["corrected"] == pytest.approx(-0.5, abs=0.15)
    assert rates["increment"] == pytest.approx(0.0, abs=0.15)
    wrong = dataclasses.replace(polynomial(), drift=fh.LinearDrift([[-1.4]], [0.2]))
    assert slope(steps, [noise("corrected", 200, K, 8, told=wrong) for K in steps]) > -0.15


@pytest.mark.parametrize("estimator", [name for name in WEIGHTED if name in EXACT])
def test_weighted_tests_see_no_noise_at_the_solution_either(estimator):
    assert noise(estimator, 30, 16, 2, delta=0.3) < 1e-8


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("estimator", EXACT)
def test_exact_estimators_find_the_solution_from_few_paths_where_the_diffusion_varies(estimator, dim):
    problem = polynomial(dim, varying=True)
    space = Space(problem, cells=2, time_cells=1, box=box(6.0, dim))
    paths = fh.sample_paths(problem, n=200, steps=16, rng=3)
    c = space.interpolate(solution).ravel()
    for delta in (0.0, 0.2)[: 1 + ESTIMATORS[estimator].weighted]:
        system = assemble(problem, paths, space, estimator=estimator, constants=GAUGE, delta=delta)
        assert np.abs(values_at(system, c)).max() < 1e-8 * np.abs(system.load).max()
        wrong = dataclasses.replace(problem, diffusion=1.0)
        told = assemble(wrong, paths, space, estimator=estimator, constants=GAUGE, delta=delta)
        assert np.abs(values_at(told, c)).max() > 1e-3 * np.abs(system.load).max()


# ---------------------------------------------------------------------------------------------------------------------
# One form, several estimators


def reversible(dim, **changes):
    """b = 1/2 div Lambda - 1/2 Lambda x + J x keeps N(0, 1) for any Lambda(x): nothing is constant, all is known."""

    def diffusion(t, x):
        u = x[..., 0]
        if dim == 1:
            return (1.0 + 0.4 * np.sin(u))[..., None, None]
        v = x[..., 1]
        off = 0.3 * np.cos(u) * np.sin(v)
        return np.stack([np.stack([1.2 + 0.4 * np.sin(v + u), off], -1), np.stack([off, 1.0 + 0.0 * u], -1)], -2)

    def divergence(x):
        u = x[..., 0]
        if dim == 1:
            return 0.4 * np.cos(x)
        v = x[..., 1]
        return np.stack([0.4 * np.cos(v + u) + 0.3 * np.cos(u) * np.cos(v), -0.3 * np.sin(u) * np.sin(v)], -1)

    J = 0.6 * (np.eye(dim, k=1) - np.eye(dim, k=-1))
    law = fh.Gaussian(np.zeros(dim), 1.0)
    settings = {
        "dim": dim,
        "horizon": 0.8,
        "temperature": 0.9,
        "drift": lambda t, x: 0.5 * divergence(x) - 0.5 * np.einsum("...ij,...j->...i", diffusion(t, x), x) + x @ J.T,
        "diffusion": diffusion,
        "running_reward": lambda t, x: -0.5 * np.sin(x[..., 0]) ** 2 * (1.0 + np.asarray(t)),
        "terminal_reward": lambda x: np.cos(x[..., 0]),
        "initial_law": law,
        "marginal": lambda t: law,
    }
    return fh.ControlProblem(**settings | changes)


@pytest.mark.parametrize(
    ("dim", "delta", "rewarded"),
    [(1, 0.0, True), (1, 0.0, False), (1, 0.3, True), (1, 0.3, False), (2, 0.3, True)],
)
def test_the_weak_form_is_the_residual_form_integrated_by_parts(dim, delta, rewarded, monkeypatch):
    problem = reversible(dim, **({} if rewarded else {"running_reward": None}))
    space = Space(problem, cells=12 if dim == 1 else 7, time_cells=2, box=box(7.0, dim))
    law = law_measure(problem, space, degree=30 if dim == 1 else 20)
    one, two = (assemble(problem, law, space, estimator=name, delta=delta) for name in ("generator", "weak"))
    size = abs(one.form).max()
    assert abs(one.form - two.form).max() < 2e-7 * size
    np.testing.assert_array_equal(one.load, two.load)
    assert abs(one.energy - two.energy).max() < 1e-14 * abs(one.energy).max()
    for name in ("increment", "corrected"):
        assert abs(assemble(problem, law, space, estimator=name, delta=delta).form - two.form).max() == 0
    monkeypatch.setattr(
        "fem_hjb.learning.estimators.row_divergence", lambda diffusion, x, spacing, bounds: np.zeros(x.shape)
    )
    assert abs(assemble(problem, law, space, estimator="weak", delta=delta).form - two.form).max() > 1e-3 * size


def test_where_no_coefficient_varies_the_weak_form_is_that_of_a_varying_one():
    """Lambda = 1.3 once and at all points."""
    constant = fh.zoo.get("lq", dim=2)
    varying = dataclasses.replace(
        constant, diffusion=lambda t, x: np.broadcast_to(constant.constant_diffusion, (*x.shape[:-1], 2, 2))
    )
    assert varying.constant_diffusion is None
    space = Space(constant, cells=3, time_cells=2, box=box(4.5, 2))
    paths = fh.sample_paths(constant, n=100, steps=8, rng=0)
    for estimator in SUMMED:
        row = ESTIMATORS[estimator]
        for delta in (0.0, 0.3)[: 1 + row.weighted]:
            one, two = (assemble(p, paths, space, estimator=estimator, delta=delta) for p in (constant, varying))
            for name in ("form", "mass", "energy"):
                ours, other = getattr(one, name), getattr(two, name)
                assert abs(ours - other).max() <= 1e-9 * abs(ours).max()
            np.testing.assert_allclose(one.load, two.load, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", SUMMED)
def test_scores_come_from_the_samples_or_from_the_law_of_the_problem(estimator):
    """The one at hand is taken; both give the same form."""
    space = Space(LQ, cells=4, time_cells=2, box=box(4.5))
    law = law_measure(LQ, space, times=np.linspace(0, 1, 9))
    one = assemble(LQ, law, space, estimator=estimator)
    two = (
        assemble(LQ, dataclasses.replace(law, score=None), space, estimator=estimator)
        if (estimator not in ("weak", "increment", "corrected"))
        else None
    )
    if two is not None:
        assert abs(one.form - two.form).max() == 0
        return
    with pytest.raises(MeasureError, match=r"score grad log p_t.*needed here.*point mass has none"):
        assemble(LQ, dataclasses.replace(law, score=None), space, estimator=estimator)


def test_scores_of_paths_are_those_of_the_law_at_their_times():
    space = Space(LQ, cells=4, time_cells=2, box=box(4.5))
    measure = empirical_measure(LQ, fh.sample_paths(LQ, n=50, steps=5, rng=1))
    shuffled = np.random.default_rng(0).permutation(measure.t.size)
    given = Measure(
        kind="empirical",
        t=measure.t[shuffled],
        x=measure.x[shuffled],
        weights=measure.weights[shuffled],
        initial_x=measure.initial_x,
        initial_weights=measure.initial_weights,
        terminal_x=measure.terminal_x,
        terminal_weights=measure.terminal_weights,
        score=np.stack([LQ.marginal(t).score(x[None])[0] for t, x in zip(measure.t, measure.x, strict=True)])[shuffled],
    )
    one, two, three = (
        assemble(LQ, data, space, estimator="weak") for data in (measure, given, dataclasses.replace(given, score=None))
    )
    assert abs(one.form - two.form).max() < 1e-13
    assert abs(one.form - three.form).max() < 1e-13
    tripled = assemble(LQ, dataclasses.replace(given, score=3 * given.score), space, estimator="weak")
    assert abs(one.form - tripled.form).max() > 1e-2  # the samples' own goes before the law's


# ---------------------------------------------------------------------------------------------------------------------
# Classes


@pytest.mark.parametrize("element", ["P1", "P2"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_continuous_elements(estimator, element):
    space = Space(LQ, cells=8, time_cells=4, element=element, box=box(4.5))
    law = law_measure(LQ, space)
    if ESTIMATORS[estimator].smoothness:
        with pytest.raises(SpaceError, match=f"'{estimator}' needs a C1 class, and element '{element}' is only"):
            fit(LQ, law, space, estimator=estimator)
        return
    found = fit(LQ, law, space, estimator=estimator)
    assert error_of(found) < {"P1": 0.08, "P2": 0.01}[element]


@pytest.mark.parametrize(
    ("estimator", "element"),
    [*product(ESTIMATORS, ("hermite",)), *product(("residual", "weak"), ("B2", "B3", "B4"))],
)
def test_smooth_elements(estimator, element):
    space = Space(LQ, cells=8, time_cells=4, element=element, box=box(4.5))
    for data, bound in (
        (law_measure(LQ, space), 0.04 if element == "B2" else 0.01),
        (fh.sample_paths(LQ, n=2000, steps=32, rng=0), 0.06),
    ):
        found = fit(LQ, data, space, estimator=estimator, outside="drop")
        assert error_of(found) < bound
        assert found.stats["estimator"] == estimator


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_terminal_condition_that_is_interpolated(estimator):
    space = Space(LQ, cells=8, time_cells=4, box=box(4.5))
    paths = fh.sample_paths(LQ, n=2000, steps=32, rng=0)
    found = fit(LQ, paths, space, estimator=estimator, terminal="interpolated", outside="drop")
    target = space.spatial.interpolate(found.gauge.terminal_u(LQ, space.spatial.nodes))
    np.testing.assert_array_equal(np.asarray(found.coefficients)[-1], target)
    penalty = fit(LQ, paths, space, estimator=estimator, outside="drop")
    assert np.abs(np.asarray(penalty.coefficients)[-1] - target).max() > 1e-6
    assert error_of(found) < 0.06


def brownian():
    """r = 0 and y = log(4 + x^2): f = 4 + x^2 + T - t."""
    return fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=fh.LinearDrift([[0.0]], [0.0]),
        diffusion=1.0,
        terminal_reward=lambda x: np.log(4 + x[..., 0] ** 2),
        initial_law=fh.Gaussian([0.0], 0.25),
    )


@pytest.mark.parametrize("terminal", ["penalty", "interpolated"])
@pytest.mark.parametrize("estimator", EXACT)
def test_the_solution_is_found_if_the_class_holds_it_whatever_the_terminal_condition(estimator, terminal):
    """r = 0 and y = log(4 + x^2): f = 4 + x^2 + T - t for Brownian motion, gauged by its constants."""
    problem = brownian()
    assert problem.running_reward is None
    space = Space(problem, cells=3, time_cells=2, box=box(6.0))
    paths = fh.sample_paths(problem, n=300, steps=16, rng=1)
    x = np.linspace(-1.5, 1.5, 31)[:, None]
    found = fit(problem, paths, space, estimator=estimator, terminal=terminal, smoothing=0)
    assert np.abs(found.value(0.3, x) - np.log(4 + x[:, 0] ** 2 + 0.7)).max() < 1e-8


# ---------------------------------------------------------------------------------------------------------------------
# Weighted tests


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_weighted_tests_leave_the_solution_where_it_is(estimator):
    if not ESTIMATORS[estimator].weighted:
        space = Space(LQ, cells=3, time_cells=2, box=box(4.5))
        with pytest.raises(MeasureError, match=f"'{estimator}' is a least-squares problem .* delta=0"):
            fit(LQ, law_measure(LQ, space), space, estimator=estimator, delta=0.1)
        return
    errors = []
    for cells in (8, 16):
        space = Space(LQ, cells=cells, time_cells=cells // 2, box=box(4.5))
        found = fit(LQ, law_measure(LQ, space), space, estimator=estimator, delta=0.2)
        errors.append(error_of(found))
        if cells == 8:
            plain = fit(LQ, law_measure(LQ, space), space, estimator=estimator)
            assert np.abs(plain.coefficients - found.coefficients).max() > 1e-8
    assert errors[0] < 5e-3
    assert errors[1] < 0.4 * errors[0]


def norms(estimator, time_cells, delta):
    """Smallest eigenvalue of the symmetric part and norm of B relative to E."""
    space = Space(LQ, cells=8, time_cells=time_cells, box=box(4.0))
    system = assemble(LQ, law_measure(LQ, space), space, estimator=estimator, delta=delta)
    form, energy = system.form.toarray(), system.energy.toarray()
    factor = np.linalg.cholesky(energy + 1e-13 * np.diag(np.diag(energy)))
    half = scipy.linalg.solve_triangular(factor, form, lower=True)
    scaled = scipy.linalg.solve_triangular(factor, half.T, lower=True).T
    return np.linalg.eigvalsh((scaled + scaled.T) / 2)[0], np.linalg.norm(scaled, 2)


@pytest.mark.parametrize("estimator", ["generator", "weak"])
def test_weighted_tests_make_the_form_bounded_and_keep_it_coercive(estimator):
    weighted = [norms(estimator, cells, 0.2) for cells in (2, 4, 8)]
    plain = [norms(estimator, cells, 0.0) for cells in (2, 4, 8)]
    for coercivity, norm in weighted:
        assert coercivity > 0.2
        assert norm < 1.5
    assert plain[2][1] > 1.8 * plain[1][1] > 1.8**2 * plain[0][1]
    assert min(coercivity for coercivity, _ in plain) > 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Faces, and what is refused


def test_increments_next_to_a_reflecting_face_are_not_corrected():
    problem = fh.zoo.get("reflected", dim=1, Lambda=0.02)
    space = Space(problem, cells=8, time_cells=2, element="P2")
    measure = empirical_measure(problem, fh.sample_paths(problem, n=20, steps=8, rng=0))
    setting = Setting(
        problem=problem, space=space, gauge=constant_gauge(problem, space.spatial.nodes, space.time.nodes), delta=0.0
    )
    ((_, here),) = ESTIMATORS["corrected"].terms(setting, measure).here
    near = np.minimum(measure.x, 1 - measure.x)[:, 0] < 5 * np.sqrt(0.02 * problem.horizon / 8)
    assert 0 < near.sum() < near.size
    assert not here.gradient[near].any()
    assert here.gradient[~near].all()


def without(measure, *names):
    return dataclasses.replace(measure, **dict.fromkeys(names))


PATHS = fh.sample_paths(LQ, n=6, steps=4, rng=0)
SPACE = Space(LQ, cells=2, time_cells=1, box=box(6.0))


@pytest.mark.parametrize("estimator", ["increment", "corrected", "regression"])
@pytest.mark.parametrize("missing", [("next_x",), ("next_x", "next_t")])
def test_paths_without_successors_are_refused(estimator, missing):
    measure = without(empirical_measure(LQ, PATHS), *missing)
    with pytest.raises(MeasureError, match=r"need each sample's successor .*make the measure from Paths"):
        assemble(LQ, measure, SPACE, estimator=estimator)


def test_paths_in_pieces_have_no_labels():
    whole = empirical_measure(LQ, PATHS)
    for rows in (np.delete(np.arange(24), 3), np.arange(24).reshape(6, 4).T.ravel()):
        parts = {name: getattr(whole, name)[rows] for name in ("t", "x", "weights", "next_t", "next_x")}
        with pytest.raises(MeasureError, match="'regression' needs whole paths"):
            assemble(LQ, dataclasses.replace(whole, **parts), SPACE, estimator="regression")


def test_what_a_law_lacks_is_said():
    law = law_measure(LQ, Space(LQ, cells=8, time_cells=1, box=box(4.5)))
    with pytest.raises(MeasureError, match=r"exact=None: give one, dataclasses.replace\(problem, exact=solve"):
        assemble(dataclasses.replace(LQ, exact=None), law, SPACE, estimator="regression")
    unknown = dataclasses.replace(LQ, marginal=None)
    with pytest.raises(MeasureError, match=r"knows no marginal law and the samples carry none: .*Measure\(score"):
        assemble(unknown, PATHS, SPACE, estimator="weak")
    start = fh.PointMass([0.4])
    at_a_point = dataclasses.replace(LQ, initial_law=start, marginal=lambda t: start if t == 0 else LQ.marginal(t))
    with pytest.raises(MeasureError, match="at t=0 the law is a point mass, which has none"):
        assemble(at_a_point, PATHS, SPACE, estimator="weak")


def test_the_rows_of_the_registry_carry_their_names():
    assert all(row.name == name for name, row in ESTIMATORS.items())
    assert {name for name, row in ESTIMATORS.items() if row.smoothness} == {"generator", "residual"}


def test_splines_in_time_serve_every_estimator():
    basis = spatial_basis([np.linspace(-4.5, 4.5, 9)], "B3")
    space = Space.product(LineBasis.uniform(1.0, 4, "B2"), basis)
    law = law_measure(LQ, space)
    for estimator in ESTIMATORS:
        assert error_of(fit(LQ, law, space, estimator=estimator)) < 0.01


# ---------------------------------------------------------------------------------------------------------------------
# Your own, from outside the package

SHARE = 0.3


def blend(of, at):
    """(1 - s) x generator + s x least squares of the residual: R f (g + s (R g - g))."""
    b, Lambda, rho = of.problem.b(at.t, at.x), of.diffusion(at.t, at.x), of.rate(at.t, at.x)
    residual = fh.learning.Operator(value=-rho, time=-1.0, gradient=-b, hessian=-0.5 * Lambda)
    test = fh.learning.Operator(
        value=1 - SHARE - SHARE * rho, time=-SHARE, gradient=-SHARE * b, hessian=-0.5 * SHARE * Lambda
    )
    return fh.learning.Terms(here=[(test, residual)])


BLEND = fh.learning.Estimator(name="blend", terms=blend, smoothness=1, weighted=False, exact=True)


@pytest.fixture
def registered():
    yield fh.learning.register_estimator(BLEND)
    del registry._REGISTERED["blend"]


@pytest.mark.parametrize("by_name", [False, True])
def test_an_estimator_of_your_own_finds_the_solution_its_class_holds(by_name, registered):
    """f = 4 + x^2 + T - t, exactly, from few paths; with a wrong equation it does not."""
    problem = brownian()
    space = Space(problem, cells=3, time_cells=2, box=box(6.0))
    paths = fh.sample_paths(problem, n=300, steps=16, rng=1)
    x = np.linspace(-1.5, 1.5, 31)[:, None]
    given = "blend" if by_name else BLEND
    found = fit(problem, paths, space, estimator=given, smoothing=0)
    assert np.abs(found.value(0.3, x) - np.log(4 + x[:, 0] ** 2 + 0.7)).max() < 1e-8
    assert (found.stats["estimator"], found.method) == ("blend", "blend")
    wrong = dataclasses.replace(problem, diffusion=1.5)
    other = fit(wrong, paths, space, estimator=given, smoothing=0)
    assert np.abs(other.value(0.3, x) - found.value(0.3, x)).max() > 0.02


def test_its_form_is_what_it_says_and_it_serves_all_that_takes_an_estimator(registered):
    space = Space(LQ, cells=4, time_cells=2, box=box(4.5))
    paths = fh.sample_paths(LQ, n=400, steps=8, rng=0)
    one, two, both = (
        assemble(LQ, paths, space, estimator=e, outside="drop") for e in ("generator", "residual", "blend")
    )
    expected = (1 - SHARE) * one.form + SHARE * two.form
    assert abs(both.form - expected).max() < 1e-12 * abs(expected).max()
    assert abs(both.form - one.form).max() > 1e-3 * abs(expected).max()
    np.testing.assert_array_equal(both.load, one.load)
    judged = fh.learning.cross_validate(LQ, paths, [fh.learning.Candidate(space=space)], estimator=BLEND)
    assert judged.table[0]["smoothing"] == 0.05
    with pytest.raises(SpaceError, match="'blend' needs a C1 class"):
        fit(LQ, paths, Space(LQ, cells=4, time_cells=2, element="P2", box=box(4.5)), estimator="blend")


def test_what_is_no_estimator_is_refused(registered):
    with pytest.raises(MeasureError, match="there is an estimator 'blend' already; give yours another name"):
        fh.learning.register_estimator(BLEND)
    with pytest.raises(MeasureError, match="there is an estimator 'generator' already"):
        fh.learning.register_estimator(dataclasses.replace(BLEND, name="generator"))
    with pytest.raises(MeasureError, match="expected an Estimator, got function"):
        fh.learning.register_estimator(blend)
    with pytest.raises(MeasureError, match="needs a name and a function terms, got name='' and"):
        dataclasses.replace(BLEND, name="")
    with pytest.raises(MeasureError, match=r"needs a name and a function terms, .*terms=3"):
        dataclasses.replace(BLEND, terms=3)
    with pytest.raises(MeasureError, match="'blend': smoothness must be 0 or 1, got 2"):
        dataclasses.replace(BLEND, smoothness=2)
    with pytest.raises(MeasureError, match="the terms of estimator 'blend' must be Terms, got list"):
        assemble(LQ, PATHS, SPACE, estimator=dataclasses.replace(BLEND, terms=lambda of, at: []))
    with pytest.raises(MeasureError, match=r"estimator must be one of 'generator', .*'blend'.*got 'blended'"):
        assemble(LQ, PATHS, SPACE, estimator="blended")
