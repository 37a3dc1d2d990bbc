"""fit: methods, convex sets, positivity, saving, and the choice of a class by cross-validation."""

import dataclasses

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.learning import Candidate
from fem_hjb.learning import selection as selecting
from fem_hjb.learning.selection import automatic_candidates, fold_sources
from fem_hjb.support.errors import ConstraintError, ConvergenceError, MeasureError, PositivityError

LQ = fh.zoo.get("lq", dim=1)
BOX = fh.Box([-3.0], [3.0])
SPACE = fh.Space(LQ, cells=6, time_cells=3, box=BOX)
PATHS = fh.sample_paths(LQ, n=3000, steps=24, rng=0)
X = np.linspace(-2.9, 2.9, 201)[:, None]
T = np.linspace(0.0, 1.0, 21)[:, None]
SETS = (
    fh.Bounds(0.0, 1.0),
    fh.Bounds(0.05, 0.8),
    fh.Monotone(0) & fh.Bounds(lower=0.0),
    fh.Convex(0, concave=True),
    fh.EnergyBall(0.9),
    fh.Bounds(0.0, 0.8) & fh.EnergyBall(0.9),
)


def learn(**how):
    return fh.fit(LQ, PATHS, SPACE, outside="drop", verify=False, **how)


def test_methods_agree_without_a_set():
    # under weak tests with delta the form is coercive, so that the projected iteration is defined
    law = fh.law_measure(LQ, SPACE)
    direct, projected, minimal = (
        fh.fit(LQ, law, SPACE, estimator="weak", delta=0.2, method=method)
        for method in ("direct", "projected", "minimal-residual")
    )
    for other in (projected, minimal):
        np.testing.assert_allclose(other.coefficients, direct.coefficients, atol=1e-7)
        assert other.stats["residual"] < 1e-8
        assert other.stats["converged"]
    assert 0 < projected.stats["contraction"] < projected.stats["predicted"] < 0.9
    assert projected.stats["gamma"] > 0


@pytest.mark.parametrize("constraint", SETS, ids=repr)
def test_constrained_fits_are_in_the_set_and_certified(constraint):
    free, learned = learn(), learn(constraint=constraint)
    assert learned.stats["residual"] < 1e-8
    assert learned.status == "ok"
    f = learned.f(T, X)
    slope = SPACE.evaluate(learned.coefficients, T, X, "gradient")[..., 0]
    curve = SPACE.evaluate(learned.coefficients, T, X, "hessian")[..., 0, 0]
    text = repr(constraint)
    if "Bounds" in text:
        lower = 0.05 if "0.05" in text else 0.0
        upper = 0.8 if "0.8" in text else 1.0 if "1.0" in text else np.inf
        assert f.min() >= lower - 1e-12
        assert f.max() <= upper + 1e-12
    if "Monotone" in text:
        assert slope.min() >= -1e-10
    if "Convex" in text:
        assert curve.max() <= 1e-9
    assert not np.allclose(free.f(T, X), f, atol=1e-3)  # the set is felt


def test_the_certificate_sees_a_solution_that_is_none():
    from fem_hjb.learning.inequality import natural_residual
    from fem_hjb.learning.solve_system import reduce_system

    system = fh.learning.assemble(LQ, PATHS, SPACE, outside="drop")
    reduced = reduce_system(system, constraint=fh.Bounds(0.05, 0.8), smoothing=0.05)
    z = reduced.solve_constrained(None, None).coefficients
    assert natural_residual(reduced.inequality, z) < 1e-10
    unconstrained = reduce_system(system, smoothing=0.05)
    other = np.linalg.solve(unconstrained.inequality.form.toarray(), unconstrained.inequality.load)
    assert natural_residual(unconstrained.inequality, other) < 1e-10
    assert natural_residual(reduced.inequality, other) > 1e-2
    assert natural_residual(reduced.inequality, z * 1.001) > 1e-5


@pytest.mark.parametrize("estimator", ["generator", "corrected"])
def test_terminal_values_are_interpolated_exactly(estimator):
    learned = learn(estimator=estimator, terminal="interpolated")
    nodes = SPACE.spatial.nodes
    np.testing.assert_allclose(learned.value(1.0, nodes), LQ.y(nodes), atol=1e-12)
    penalised = learn(estimator=estimator)
    assert np.abs(penalised.f(1.0, nodes) - learned.f(1.0, nodes)).max() > 1e-6
    np.testing.assert_allclose(learned.f(0.2, X[60:140]), penalised.f(0.2, X[60:140]), atol=0.02)


def test_an_executor_changes_no_bit():
    from concurrent.futures import ThreadPoolExecutor

    source = fh.paths.array_source(PATHS, chunk=500)
    alone = fh.fit(LQ, source, SPACE, outside="drop")
    with ThreadPoolExecutor(2) as pool:
        together = fh.fit(LQ, source, SPACE, outside="drop", executor=pool)
    np.testing.assert_array_equal(alone.coefficients, together.coefficients)


def test_sources_learn_what_paths_learn(tmp_path):
    file = tmp_path / "paths.npz"
    fh.paths.write_paths(file, fh.paths.array_source(PATHS))
    stored = fh.fit(LQ, fh.paths.file_source(file, chunk=700), SPACE, outside="drop")
    np.testing.assert_allclose(stored.coefficients, learn().coefficients, atol=1e-9)
    simulated = fh.fit(LQ, fh.paths.simulated_source(LQ, n=3000, steps=24, rng=7, chunk=1000), SPACE, outside="drop")
    assert simulated.stats["samples"] == stored.stats["samples"] == 3000 * 24


def negative_somewhere():
    """A fit whose f is below 0 on part of the mass: a class far too coarse for a terminal reward with a sharp peak."""
    problem = dataclasses.replace(LQ, terminal_reward=lambda x: -20.0 * x[..., 0] ** 2, exact=None)
    space = fh.Space(problem, cells=3, time_cells=1, box=BOX)
    return fh.fit(problem, fh.law_measure(problem, space), space)


def test_a_solution_that_is_not_positive_says_where_and_how_much():
    learned = negative_somewhere()
    mass = learned.stats["nonpositive_mass"]
    assert 0.02 < mass < 0.9
    bad = T[:, 0, None], X
    with pytest.raises(PositivityError, match=rf"not positive on {mass:.2%} of the mass of the samples.*with_floor"):
        learned.value(*bad)
    with pytest.raises(PositivityError, match="of the mass of the samples"):
        learned.gradient(*bad)
    assert np.isnan(learned.value(*bad, nonpositive="nan")).any()


def test_a_floor_gives_values_and_no_policy_below_it(tmp_path):
    learned = negative_somewhere()
    lifted = learned.with_floor(1e-4)
    f, raw = lifted.f(T, X), learned.f(T, X)
    np.testing.assert_array_equal(f, np.maximum(raw, 1e-4))
    low = raw < 1e-4
    assert low.any()
    assert not low.all()
    policy = lifted.policy(T, X)
    assert (policy[low] == 0.0).all()
    np.testing.assert_array_equal(policy[~low], learned.policy(T, X, nonpositive="nan")[~low])
    np.testing.assert_allclose(lifted.value(T, X), lifted.gauge.value(np.broadcast_to(T, f.shape), X, f))
    fh.save_solution(tmp_path / "lifted.npz", lifted)
    again = fh.load_solution(tmp_path / "lifted.npz", lifted.problem)
    np.testing.assert_array_equal(again.f(T, X), f)
    for floor in (0.0, -1.0, np.nan, np.inf, "small"):
        with pytest.raises(PositivityError, match="floor must be a positive"):
            learned.with_floor(floor)
    of_the_value = fh.solve(fh.zoo.get("double-well", dim=1), rtol=1e-3, form="value")
    with pytest.raises(PositivityError, match="of v itself"):
        of_the_value.with_floor(1e-3)


def test_a_floor_on_a_continuous_element():
    problem = dataclasses.replace(LQ, terminal_reward=lambda x: -20.0 * x[..., 0] ** 2, exact=None)
    space = fh.Space(problem, cells=6, time_cells=1, element="P2", box=BOX)
    learned = fh.fit(problem, fh.law_measure(problem, space), space, estimator="weak")
    assert learned.minimum_f < 0
    with pytest.raises(PositivityError):
        learned.policy(T, X)
    assert np.isfinite(learned.with_floor(1e-3).policy(T, X)).all()


def test_a_solution_that_is_negative_only_where_no_sample_went_says_so():
    learned = negative_somewhere()
    unseen = dataclasses.replace(learned, stats={**learned.stats, "nonpositive_mass": 0.0})
    with pytest.raises(PositivityError, match=r"on 0.00% of the mass of the samples, only where it is extended"):
        unseen.value(T, X)


def test_a_set_over_a_form_that_is_not_coercive():
    problem = fh.zoo.get("reflected", dim=1, coefficients=(1.0, 0.95, 0.1))
    space = fh.Space(problem, cells=12, time_cells=6)
    paths = fh.sample_paths(problem, n=10, steps=64, rng=0)
    with pytest.raises(ConvergenceError, match=r"lost its coercivity\. Take estimator='residual'"):
        fh.fit(problem, paths, space, constraint=fh.Bounds(0, 1))
    learned = fh.fit(problem, paths, space, constraint=fh.Bounds(0, 1), estimator="residual")
    assert learned.stats["residual"] < 1e-8
    assert learned.f(T, X[90:110] / 10 + 0.5).min() >= 0


def test_bounds_make_a_solution_positive():
    learned = negative_somewhere()
    bounded = fh.fit(
        learned.problem, fh.law_measure(learned.problem, learned.space), learned.space, constraint=fh.Bounds(1e-6, 1.0)
    )
    assert bounded.stats["nonpositive_mass"] == 0.0
    assert np.isfinite(bounded.policy(T, X)).all()
    assert bounded.f(T, X).min() >= 1e-6 * (1 - 1e-9)


def ladder(*sizes, **weights):
    return [Candidate(space=fh.Space(LQ, cells=cells, time_cells=times, box=BOX), **weights) for times, cells in sizes]


def test_cross_validation_prefers_the_class_that_fits():
    for criterion in ("residual", "labels", None):
        few = fh.learning.cross_validate(LQ, PATHS, ladder((1, 2), (3, 6)), criterion=criterion)
        assert few.best.space.n_dofs == max(row["dofs"] for row in few.table)
        assert [row["chosen"] for row in few.table] == [False, True]
        first = criterion or "residual"
        assert few.table[0][f"{first} excess"] > 3 * few.table[0][f"{first} error"] > 0
    assert str(few).count("*") == 2
    assert "labels excess" in str(few)


def test_cross_validation_avoids_what_the_samples_do_not_carry():
    scarce = fh.sample_paths(LQ, n=60, steps=8, rng=1)
    selection = fh.learning.cross_validate(
        LQ, scarce, ladder((1, 2), (2, 3), (6, 12)), estimator="increment", criterion="labels"
    )
    assert selection.best.space.spatial.n_cells < 12


@pytest.mark.parametrize(
    ("residual", "labels", "chosen"),
    [
        (0.5, 0.0, 0),  # the smaller class is half a standard error worse: it is as good
        (1.5, 0.0, 1),  # one and a half: it is not
        (0.5, 1.5, 0),  # labels forgive one and a half standard errors
        (0.5, 2.5, 1),  # but not two and a half
    ],
)
def test_the_rules_of_one_and_of_two_standard_errors(residual, labels, chosen, monkeypatch):
    spread = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) * np.sqrt(2.0)  # of mean 0 and standard error 1 over five folds

    def risks(problem, parts, candidate, *rest):
        small = candidate.space.spatial.n_cells == 2
        worse = np.array([residual, labels])[:, None] + spread if small else np.zeros((2, 5))
        return 10.0 + worse, "ok"

    monkeypatch.setattr(selecting, "_risks", risks)
    selection = fh.learning.cross_validate(LQ, PATHS, ladder((1, 2), (3, 6)))
    assert [row["chosen"] for row in selection.table].index(True) == chosen
    assert selection.table[0]["residual error"] == pytest.approx(1.0)


def test_a_candidate_in_doubt_is_the_last_resort(monkeypatch):
    def risks(problem, parts, candidate, *rest):
        small = candidate.space.spatial.n_cells == 2
        return np.full((2, 5), 1.0 if small else 0.0), "ok" if small else "unstable (smallest singular value 1e-5)"

    monkeypatch.setattr(selecting, "_risks", risks)
    assert fh.learning.cross_validate(LQ, PATHS, ladder((1, 2), (3, 6))).best.space.spatial.n_cells == 2
    assert fh.learning.cross_validate(LQ, PATHS, ladder((3, 6))).best.space.spatial.n_cells == 6


def test_a_ridge_is_in_units_of_the_mean_squares_of_the_functions():
    system = fh.learning.assemble(LQ, PATHS, SPACE, outside="drop")
    c = np.asarray(fh.learning.solve_system(system, smoothing=0.0, ridge=0.3).coefficients).ravel()
    ridge = 0.3 * system.mass.diagonal()
    free = np.flatnonzero(c)
    residual = (system.form @ c + ridge * c - system.load)[free]
    assert np.abs(residual).max() < 1e-10 * np.abs(system.load).max()


def test_cross_validation_finds_a_ridge():
    """A ridge as large as the form itself shrinks f to half: any criterion must see that."""
    space = ladder((2, 4))[0].space
    candidates = [Candidate(space=space, ridge=ridge) for ridge in (0.0, 1.0)]
    for criterion in ("residual", "labels"):
        selection = fh.learning.cross_validate(LQ, PATHS, candidates, criterion=criterion)
        assert selection.best.ridge == 0.0
        assert selection.table[1][f"{criterion} excess"] > 5 * selection.table[1][f"{criterion} error"]


def test_labels_keep_the_residual_from_choosing_a_class_that_misses_f():
    """Where the drift is stiff the squared residual alone prefers the coarsest class."""
    problem = fh.zoo.get("double-well", dim=1)
    paths = fh.sample_paths(problem, n=600, steps=32, rng=0)
    candidates = automatic_candidates(problem, 600)
    alone, both = (fh.learning.cross_validate(problem, paths, candidates, criterion=c) for c in ("residual", None))
    assert alone.best.space.n_dofs < 100 < both.best.space.n_dofs
    reference = fh.solve(problem, rtol=1e-4)
    errors = [
        fh.compare({"f": fh.fit(problem, paths, s.best.space, outside="drop", verify=False)}, reference)
        .overall("f")
        .value
        for s in (alone, both)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_automatic_class():
    learned = fh.fit(LQ, fh.paths.Paths(t=PATHS.t, x=PATHS.x[:1000]), "auto", verify=False)
    tried = learned.stats["tried"]
    assert sum(row["chosen"] for row in tried) == 1
    assert learned.space.n_dofs == next(row["dofs"] for row in tried if row["chosen"])
    assert "unstable" not in learned.status
    table = fh.compare({"auto": learned}, LQ.exact, problem=LQ)
    assert table.overall("auto").policy < 0.02


def test_automatic_classes_are_no_larger_than_the_data():
    assert len(automatic_candidates(LQ, 60)) == 1
    sizes = [candidate.space.n_dofs for candidate in automatic_candidates(LQ, 400)]
    assert max(sizes) <= 400
    assert len(sizes) > 2


def test_folds_are_all_trajectories_once():
    source = fh.paths.array_source(PATHS, chunk=170)
    folds = fold_sources(source, 4)
    assert sum(fold.n for fold in folds) == PATHS.n
    seen = np.concatenate([fold.chunk(i).x for fold in folds for i in range(fold.chunk_count)])
    assert sorted(seen[:, 0, 0]) == sorted(PATHS.x[:, 0, 0])


TWO = fh.zoo.get("lq", dim=2)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (MeasureError, "method must be one of 'direct', 'projected'", lambda: learn(method="newton")),
        (MeasureError, "terminal must be one of 'penalty', 'interpolated'", lambda: learn(terminal="free")),
        (MeasureError, "constraint must be a Constraint.*got tuple", lambda: learn(constraint=(0, 1))),
        (MeasureError, "delta must be a finite number >= 0, got -0.1", lambda: learn(delta=-0.1)),
        (
            MeasureError,
            "'regression' is a least-squares.*delta=0",
            lambda: learn(estimator="regression", delta=0.1),
        ),
        (
            ConstraintError,
            "axis must be a coordinate of x in 0..0, got 1",
            lambda: learn(constraint=fh.Monotone(1)),
        ),
        (
            ConstraintError,
            "leave the set empty",
            lambda: learn(terminal="interpolated", constraint=fh.Bounds(0.5, 0.6)),
        ),
        (MeasureError, "space must be one of 'auto', 'dictionary', got 'best'", lambda: fh.fit(LQ, PATHS, "best")),
        (
            MeasureError,
            r"space='auto' needs trajectories.*got Measure",
            lambda: fh.fit(LQ, fh.law_measure(LQ, SPACE), "auto"),
        ),
        (
            MeasureError,
            "space='auto' is for one to three coordinates",
            lambda: automatic_candidates(fh.zoo.get("lq", dim=4), 100),
        ),
        (
            MeasureError,
            "cannot be dealt out to 5 folds",
            lambda: fh.learning.cross_validate(LQ, fh.sample_paths(LQ, n=3, steps=2, rng=0), ladder((1, 2))),
        ),
        (MeasureError, "needs a sequence of candidates", lambda: fh.learning.cross_validate(LQ, PATHS, [])),
        (
            MeasureError,
            "must see the same samples.*build all spaces with one box=",
            lambda: fh.learning.cross_validate(
                LQ,
                PATHS,
                [
                    *ladder((1, 2)),
                    Candidate(space=fh.Space(LQ, cells=2, time_cells=1, box=fh.Box([-2.0], [2.0]))),
                ],
            ),
        ),
        (
            MeasureError,
            "criterion must be one of 'residual', 'labels'",
            lambda: fh.learning.cross_validate(LQ, PATHS, ladder((1, 2)), criterion="aic"),
        ),
        (
            ConvergenceError,
            "none of 1 candidates could be fitted",
            lambda: fh.learning.cross_validate(
                LQ,
                PATHS,
                [Candidate(space=fh.Space(LQ, cells=2, time_cells=1, element="P2", box=BOX))],
                estimator="generator",
            ),
        ),
    ],
)
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()
