"""Learning f from trajectories, and its population limit through the same assembly."""

import dataclasses
from functools import partial

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.learning import samples, scatter
from fem_hjb.learning import system as assembly
from fem_hjb.learning.estimators import ESTIMATORS
from fem_hjb.support.errors import ConvergenceError, MeasureError, SpaceError

fit = partial(fh.fit, verify=False)  # here solutions are compared with what is known


LQ = fh.zoo.get("lq", dim=1)


def relative_error_of_f(solution, other=None, reach=2.5):
    """|| f - f_other || / || f_exact || of the gauged f, in L2(dt x N(0, 1/2)) on |x| < reach; other: default exact."""
    t, x = np.meshgrid(np.linspace(0.02, 0.98, 13), np.linspace(-reach, reach, 101), indexing="ij")
    t, x = t.ravel(), x.ravel()[:, None]
    density = np.exp(-(x[:, 0] ** 2))
    exact = solution.gauge.u(t, x, LQ.exact.value(t, x))
    difference = solution.f(t, x) - (exact if other is None else other.f(t, x))
    return np.sqrt((density @ difference**2) / (density @ exact**2))


def quadratic_problem(**changes):
    """Brownian motion with f = 4 + x^2 + (T - t), a polynomial of every cubic x linear class."""
    settings = {
        "dim": 1,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": fh.LinearDrift([[0.0]], [0.0]),
        "diffusion": 1.0,
        "terminal_reward": lambda x: np.log(4 + x[..., 0] ** 2),
        "initial_law": fh.Gaussian([0.0], 0.25),
    }
    return fh.ControlProblem(**settings | changes)


@pytest.mark.parametrize("n", [50, 400])
def test_the_generator_estimator_has_no_noise_where_the_class_holds_the_solution(n):
    problem = quadratic_problem()
    space = fh.Space(problem, cells=3, time_cells=2, box=fh.Box([-2.0], [2.0]))
    paths = fh.sample_paths(problem, n=n, steps=16, rng=1)
    x = np.linspace(-1.5, 1.5, 31)[:, None]
    exact = np.log(4 + x[:, 0] ** 2 + 0.7)
    errors = {
        estimator: np.abs(
            fit(problem, paths, space, estimator=estimator, smoothing=0, outside="drop").value(0.3, x) - exact
        ).max()
        for estimator in ("generator", "corrected")
    }
    assert errors["generator"] < 1e-10
    assert errors["corrected"] > 1e-4  # increments are noisy even there
    wrong = quadratic_problem(drift=fh.LinearDrift([[0.1]], [0.0]))
    assert np.abs(fit(wrong, paths, space, smoothing=0, outside="drop").value(0.3, x) - exact).max() > 1e-2


def test_the_error_falls_as_the_class_grows():
    medians = {"generator": [], "corrected": []}
    samples = [fh.sample_paths(LQ, n=3000, steps=24, rng=seed) for seed in range(3)]
    for time_cells, cells in ((2, 4), (4, 8), (8, 16)):
        space = fh.Space(LQ, cells=cells, time_cells=time_cells, box=fh.Box([-4.0], [4.0]))
        for estimator, found in medians.items():
            errors = [
                relative_error_of_f(fit(LQ, paths, space, estimator=estimator, outside="drop")) for paths in samples
            ]
            found.append(np.median(errors))
    generator, corrected = medians["generator"], medians["corrected"]
    assert generator[0] < 3e-3
    assert generator[1] < 0.5 * generator[0]
    assert generator[2] < 0.3 * generator[1]
    assert corrected[0] < 3e-3
    assert corrected[1] < 0.7 * corrected[0]
    assert corrected[2] < 4e-3  # its noise does not vanish with the class


def statistical_slope(drift, sizes, seeds):
    """Fitted exponent in n of the root mean square of || f_hat - f_bar || in one class."""
    assumed = dataclasses.replace(LQ, drift=drift)
    space = fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-1.6], [1.6]))
    steps = 16
    law = fh.law_measure(LQ, space, times=np.linspace(0.0, 1.0, steps + 1))
    limit = fit(LQ, law, space, smoothing=0)
    errors = []
    for n, repeats in zip(sizes, seeds, strict=True):
        squares = [
            relative_error_of_f(
                fit(
                    assumed,
                    fh.sample_paths(LQ, n=n, steps=steps, rng=1000 + seed),
                    space,
                    smoothing=0,
                    outside="drop",
                ),
                limit,
                reach=1.4,
            )
            ** 2
            for seed in range(repeats)
        ]
        errors.append(np.sqrt(np.mean(squares)))
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


def test_learned_and_galerkin_solutions_approach_at_the_rate_of_the_square_root_of_n():
    sizes = (1000, 3162, 10_000)
    assert statistical_slope(LQ.drift, sizes, (24, 24, 16)) == pytest.approx(-0.5, abs=0.1)


def test_they_do_not_when_the_equation_is_told_a_wrong_drift():
    assert statistical_slope(fh.LinearDrift([[-1.3]], [0.0]), (1000, 3162, 10_000), (6, 4, 2)) > -0.2


def test_the_population_solution_converges_at_the_order_of_the_class():
    sizes, errors = (36, 48, 64), []
    for cells in sizes:
        space = fh.Space(LQ, cells=cells, time_cells=24, time_degree=3, box=fh.Box([-4.5], [4.5]))
        errors.append(relative_error_of_f(fit(LQ, fh.law_measure(LQ, space), space)))
    assert -np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize("dim", [1, 2])
def test_under_a_law_both_estimators_agree_on_a_c1_class(dim):
    problem = fh.zoo.get("lq", dim=dim)
    space = fh.Space(problem, cells=8, time_cells=2, box=fh.Box([-4.5] * dim, [4.5] * dim))
    law = fh.law_measure(problem, space, degree=None if dim == 1 else 16)
    generator, corrected = (fit(problem, law, space, estimator=e) for e in ("generator", "corrected"))
    x = np.random.default_rng(0).uniform(-1.5, 1.5, (50, dim))
    np.testing.assert_allclose(generator.f(0.3, x), corrected.f(0.3, x), rtol=1e-5)


@pytest.mark.parametrize(("element", "bound"), [("P1", 0.035), ("P2", 0.006)])
def test_the_corrected_estimator_works_on_continuous_elements(element, bound):
    space = fh.Space(LQ, cells=8, time_cells=4, element=element, box=fh.Box([-4.0], [4.0]))
    paths = fh.sample_paths(LQ, n=5000, steps=50, rng=0)
    learned = fit(LQ, paths, space, estimator="corrected", outside="drop")
    galerkin = fit(LQ, fh.law_measure(LQ, space), space, estimator="corrected")
    assert relative_error_of_f(galerkin) < bound
    assert relative_error_of_f(learned) < bound
    assert relative_error_of_f(learned, galerkin) < 0.7 * bound


@pytest.mark.parametrize(("element", "estimator"), [("hermite", "generator"), ("P2", "corrected")])
def test_reflecting_faces(element, estimator):
    problem = fh.zoo.get("reflected", dim=1)
    space = fh.Space(problem, cells=8, time_cells=4, element=element)
    paths = fh.sample_paths(problem, n=5000, steps=50, rng=0)
    learned = fit(problem, paths, space, estimator=estimator)
    galerkin = fit(problem, fh.law_measure(problem, space), space, estimator=estimator)
    table = fh.compare({"learned": learned, "galerkin": galerkin}, problem.exact, problem=problem)
    assert table.overall("learned").value < 0.03
    assert table.overall("galerkin").value < 0.02
    faces = np.array([[0.0], [1.0]])
    if element == "hermite":
        np.testing.assert_allclose(space.evaluate(learned.coefficients, 0.4, faces, "gradient"), 0.0, atol=1e-12)
        assert learned.stats["pinned"] == 2 * space.time.n_dofs


def test_next_to_a_reflecting_face_increments_are_left_uncorrected():
    """The push of a face is no martingale: correcting there, or correcting nowhere, misses the limit by over 2e-3."""
    problem = fh.zoo.get("reflected", dim=1, Lambda=0.02)
    space = fh.Space(problem, cells=8, time_cells=4, element="P2")
    limit = fit(problem, fh.law_measure(problem, space), space, estimator="corrected")
    t, x = np.array([0.0, 0.3, 0.6, 0.9])[:, None], np.linspace(0, 1, 81)[:, None]
    distances = [
        np.sqrt(np.mean((fit(problem, paths, space, estimator="corrected").f(t, x) - limit.f(t, x)) ** 2))
        for paths in (fh.sample_paths(problem, n=5000, steps=50, rng=seed) for seed in range(3))
    ]
    assert np.mean(distances) < 1.5e-3


def test_two_dimensions_with_coupling():
    problem = fh.zoo.get("lq", dim=2)
    box = fh.paths.truncation_box(problem, quantile=1e-3, margin=0.0).box
    space = fh.Space(problem, cells=5, time_cells=2, box=box)
    learned = fit(problem, fh.sample_paths(problem, n=8000, steps=24, rng=0), space, outside="drop")
    galerkin = fit(problem, fh.law_measure(problem, space), space)
    table = fh.compare({"learned": learned, "galerkin": galerkin}, problem.exact, problem=problem)
    assert table.overall("galerkin").value < 0.02
    assert table.overall("learned").value < 0.05


def test_learned_and_galerkin_live_in_one_class_with_one_gauge():
    space = fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-4.0], [4.0]))
    learned = fit(LQ, fh.sample_paths(LQ, n=500, steps=8, rng=0), space, outside="drop")
    galerkin = fit(LQ, fh.law_measure(LQ, space), space)
    assert learned.coefficients.shape == galerkin.coefficients.shape == space.shape
    assert dataclasses.asdict(learned.gauge) == dataclasses.asdict(galerkin.gauge)
    assert (learned.method, learned.stats["measure"], galerkin.stats["measure"]) == ("generator", "empirical", "law")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_streaming_in_small_chunks_changes_nothing(estimator, monkeypatch):
    space = fh.Space(LQ, cells=6, time_cells=3, box=fh.Box([-3.0], [3.0]))
    paths = fh.sample_paths(LQ, n=2000, steps=12, rng=0)
    whole = fit(LQ, paths, space, estimator=estimator, outside="drop")
    monkeypatch.setattr(samples, "_CHUNK_DOUBLES", 1 << 13)
    monkeypatch.setattr(scatter, "_LOCAL_DOUBLES", 1 << 9)
    monkeypatch.setattr(assembly, "_SAMPLES", 1 << 10)
    pieces = fit(LQ, paths, space, estimator=estimator, outside="drop")
    np.testing.assert_allclose(pieces.coefficients, whole.coefficients, rtol=0, atol=1e-9)


def test_the_same_paths_give_the_same_bits():
    space = fh.Space(LQ, cells=6, time_cells=3, box=fh.Box([-4.0], [4.0]))
    fits = [fit(LQ, fh.sample_paths(LQ, n=700, steps=8, rng=5), space, outside="drop") for _ in range(2)]
    np.testing.assert_array_equal(fits[0].coefficients, fits[1].coefficients)


def test_what_no_sample_sees_is_pinned_and_reported():
    space = fh.Space(LQ, cells=16, time_cells=4, box=fh.Box([-6.0], [6.0]))
    paths = fh.sample_paths(LQ, n=300, steps=20, rng=0)
    reach = np.abs(paths.x).max()
    pure = fit(LQ, paths, space, smoothing=0)
    pinned = pure.stats["pinned_dofs"]
    assert pure.stats["pinned"] == pinned.size
    assert np.all(pure.coefficients.ravel()[pinned] == 0.0)
    empty = np.flatnonzero(np.abs(space.spatial.nodes[:, 0]) > reach + 12 / 16)
    there = np.flatnonzero(space.spatial.at_nodes(np.eye(space.spatial.n_dofs))[:, empty].any(axis=1))
    unseen = (np.arange(space.time.n_dofs)[:, None] * space.spatial.n_dofs + there).ravel()
    assert unseen.size > 0
    assert np.isin(unseen, pinned).all()
    extended = fit(LQ, paths, space)
    assert np.isin(unseen, extended.stats["pinned_dofs"]).all()
    assert np.abs(extended.coefficients.ravel()[unseen]).max() > 1e-6  # smoothly continued, not 0
    assert relative_error_of_f(extended, reach=1.5) < 0.02


def test_a_class_too_large_for_the_sample_is_said_to_be():
    space = fh.Space(LQ, cells=16, time_cells=8, box=fh.Box([-6.0], [6.0]))
    few = fit(LQ, fh.sample_paths(LQ, n=3, steps=4, rng=0), space, smoothing=0)
    assert "take more samples or fewer cells" in few.status
    many = fit(LQ, fh.sample_paths(LQ, n=5000, steps=64, rng=0), space)
    assert many.status == "ok"


def test_a_ridge_shrinks():
    space = fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-4.0], [4.0]))
    law = fh.law_measure(LQ, space)
    sizes = [np.linalg.norm(fit(LQ, law, space, ridge=ridge).f(0.5, [[0.0], [1.0]])) for ridge in (0, 0.01, 1.0)]
    assert sizes[0] > 1.002 * sizes[1] > 1.1 * sizes[2]
    assert fit(LQ, law, space, ridge=0.01).stats["ridge"] == 0.01


SPACE = fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-3.0], [3.0]))
PATHS = fh.sample_paths(LQ, n=2000, steps=8, rng=0)
PLANAR = fh.zoo.get("lq", dim=2)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (MeasureError, "estimator must be one of 'generator', 'weak'", lambda: {"estimator": "galerkin"}),
        (MeasureError, "outside must be one of 'error', 'drop'", lambda: {"outside": "clip"}),
        (MeasureError, "smoothing must be a finite number >= 0, got -1", lambda: {"smoothing": -1}),
        (MeasureError, "smoothing must be a finite number >= 0, got inf", lambda: {"smoothing": np.inf}),
        (MeasureError, "ridge must be a finite number >= 0, got nan", lambda: {"ridge": np.nan}),
        (MeasureError, "ridge must be a finite number >= 0, got '1'", lambda: {"ridge": "1"}),
        (
            SpaceError,
            "'generator' needs a C1 class, and element 'P2' is only continuous.*estimator='corrected'",
            lambda: {"space": fh.Space(LQ, cells=4, time_cells=2, element="P2", box=fh.Box([-3.0], [3.0]))},
        ),
        (
            MeasureError,
            r"\d+ of \d+ samples lie outside the space's domain.*larger box=, or pass outside='drop'",
            lambda: {"space": fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-1.0], [1.0]))},
        ),
        (
            MeasureError,
            "all 16000 samples lie outside",
            lambda: {"space": fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([50.0], [60.0])), "outside": "drop"},
        ),
        (MeasureError, "expected Paths.*got ndarray", lambda: {"data": np.zeros((5, 3, 1))}),
        (
            MeasureError,
            "paths are of dimension 2, the problem has dim=1",
            lambda: {"data": fh.sample_paths(PLANAR, n=5, steps=2, rng=0)},
        ),
        (
            MeasureError,
            "paths end at t=1, but the problem's horizon is 2",
            lambda: {"problem": fh.zoo.get("lq", dim=1, horizon=2.0)},
        ),
        (
            ConvergenceError,
            "underflows to 0 at every terminal sample.*raise the temperature",
            lambda: {"problem": dataclasses.replace(LQ, terminal_reward=lambda x: 1e5 * x[..., 0])},
        ),
        (
            MeasureError,
            "the space is of dimension 2, the problem has dim=1",
            lambda: {"space": fh.Space(PLANAR, cells=2, time_cells=1)},
        ),
    ],
)
def test_bad_input(error, message, call):
    arguments = {"problem": LQ, "data": PATHS, "space": SPACE} | call()
    positional = [arguments.pop(name) for name in ("problem", "data", "space")]
    with pytest.raises(error, match=message):
        fit(*positional, **arguments)
