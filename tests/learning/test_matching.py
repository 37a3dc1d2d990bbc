"""Regression with a gradient penalty: what is minimised, and how its weight is chosen."""

import dataclasses

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.learning import choose_penalty, doob
from fem_hjb.learning.forms import VALUE, Integrands, slopes
from fem_hjb.learning.gram import gram_sums
from fem_hjb.learning.matching import WEIGHTS
from fem_hjb.learning.measures import empirical_measure, law_measure
from fem_hjb.learning.samples import Located
from fem_hjb.learning.scatter import Scatter
from fem_hjb.learning.system import assemble
from fem_hjb.support.errors import MeasureError

LQ = fh.zoo.get("lq", dim=1)
SPACE = fh.Space(LQ, cells=8, time_cells=4, box=fh.Box([-4.5], [4.5]))
PATHS = fh.sample_paths(LQ, n=300, steps=16, rng=3)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_form_is_that_of_values_and_of_slopes(dim):
    problem = fh.zoo.get("lq", dim=dim)
    varying = dataclasses.replace(
        problem, diffusion=lambda t, x: (1 + 0.1 * np.tanh(x[..., :1, None])) * problem.constant_diffusion
    )
    space = fh.Space(problem, cells=4, time_cells=2, box=fh.Box([-5.5] * dim, [5.5] * dim))
    for of in (problem, varying):
        paths = fh.sample_paths(of, n=50, steps=6, rng=0)
        plain, penalised = (assemble(of, paths, space, estimator=e) for e in ("regression", doob(0.3)))
        np.testing.assert_array_equal(penalised.load, plain.load)
        at = empirical_measure(of, paths)
        factor = np.linalg.cholesky(of.Lambda(at.t, at.x))
        terms = [[(op, op) for op in slopes(factor)], [(VALUE, VALUE)]]
        gram = gram_sums(space, Located.of(space, at.t, at.x), at.weights, Integrands.of(terms)).matrices(
            Scatter(space)
        )
        assert abs(plain.form + 0.3 * gram[0] - penalised.form).max() < 1e-12 * abs(gram[0]).max()
        assert abs(penalised.form - plain.form).max() > 1e-3 * abs(gram[0]).max()


def test_without_a_weight_it_is_regression_and_with_a_large_one_it_is_flat():
    plain, none, much = (
        fh.fit(LQ, PATHS, SPACE, estimator=e, verify=False) for e in ("regression", doob(0.0), doob(1e6))
    )
    np.testing.assert_allclose(none.coefficients, plain.coefficients, rtol=0, atol=1e-9)
    x = np.linspace(-1.0, 1.0, 9)[:, None]
    assert np.ptp(much.f(0.5, x)) < 1e-3 * np.ptp(plain.f(0.5, x))
    assert (none.method, much.stats["gradient_penalty"]) == ("doob", 1e6)


def test_fit_chooses_the_weight_with_the_least_error_on_held_out_paths():
    """By hand: every weight, all folds but one, the squared error of labels on that one."""
    how = {"smoothing": 0.0, "terminal": "interpolated"}
    folds = [fh.paths.Paths(t=PATHS.t, x=PATHS.x[60 * k : 60 * (k + 1)]) for k in range(5)]
    risks = []
    for weight in WEIGHTS:
        risk = 0.0
        for k, held_out in enumerate(folds):
            rest = fh.paths.Paths(t=PATHS.t, x=np.concatenate([f.x for j, f in enumerate(folds) if j != k]))
            c = fh.fit(LQ, rest, SPACE, estimator=doob(weight), verify=False, **how).coefficients.ravel()
            judge = assemble(LQ, held_out, SPACE, estimator="regression")
            risk += c @ (judge.form @ c) - 2 * judge.load @ c
        risks.append(risk)
    best = WEIGHTS[int(np.argmin(risks))]
    assert 0 < best < WEIGHTS[-1]
    found = fh.fit(LQ, PATHS, SPACE, estimator="doob", verify=False, **how)
    assert found.stats["gradient_penalty"] == choose_penalty(LQ, PATHS, SPACE, **how).gradient_penalty == best
    source = fh.paths.array_source(PATHS, chunk=60)
    assert choose_penalty(LQ, source, SPACE, **how).gradient_penalty == best


def test_it_bears_a_class_that_regression_does_not_and_its_noise_stays():
    """In a class that is too large for the paths; what no penalty cures is seen beside "generator"."""
    problem = fh.zoo.get("mixture-diffusion", dim=1)
    box = fh.paths.truncation_box(problem, quantile=1e-3, margin=0.0).box
    space = fh.Space(problem, cells=16, time_cells=4, box=box)
    measure = fh.learning.yardstick(problem, law_measure(problem, space), space)
    paths = fh.sample_paths(problem, n=1000, steps=32, rng=0)
    error = {
        name: measure.distance(
            fh.fit(problem, paths, space, estimator=name, smoothing=0.0, outside="drop", verify=False).coefficients
        )
        for name in ("regression", "doob", "generator")
    }
    assert error["regression"] > 3 * error["doob"]
    assert error["doob"] > 2 * error["generator"]


def test_cross_validation_of_classes_chooses_a_weight_in_each():
    candidates = [
        fh.learning.Candidate(space=fh.Space(LQ, cells=k, time_cells=2, box=fh.Box([-4.5], [4.5]))) for k in (2, 8)
    ]
    found = fh.learning.cross_validate(LQ, PATHS, candidates, estimator="doob", criterion="labels")
    assert [row["status"] for row in found.table] == ["ok", "ok"]
    fixed = fh.learning.cross_validate(LQ, PATHS, candidates, estimator=doob(1.0), criterion="labels")
    assert all(one["risk"] <= two["risk"] for one, two in zip(found.table, fixed.table, strict=True))


def test_under_a_law_nothing_is_to_be_damped():
    law = law_measure(LQ, SPACE)
    assert choose_penalty(LQ, law, SPACE).gradient_penalty == 0.0
    one, two = (fh.fit(LQ, law, SPACE, estimator=e, verify=False) for e in ("doob", "regression"))
    np.testing.assert_allclose(one.coefficients, two.coefficients, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("gradient penalty of 'doob' is not chosen yet", lambda: assemble(LQ, PATHS, SPACE, estimator="doob")),
        (
            "a Measure of samples does not tell them apart",
            lambda: fh.fit(LQ, empirical_measure(LQ, PATHS), SPACE, estimator="doob"),
        ),
        ("gradient_penalty must be .*, got -1", lambda: doob(-1)),
        (
            "1 paths in 1 chunks cannot be dealt out",
            lambda: choose_penalty(LQ, fh.sample_paths(LQ, n=1, steps=4, rng=0), SPACE),
        ),
        (
            "least-squares problem without test functions: delta=0",
            lambda: fh.fit(LQ, PATHS, SPACE, estimator="doob", delta=0.1),
        ),
    ],
)
def test_bad_input(message, call):
    with pytest.raises(MeasureError, match=message):
        call()
