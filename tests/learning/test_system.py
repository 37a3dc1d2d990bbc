"""One pass over samples to one system: the same however it is cut into pieces and whoever adds it up."""

import dataclasses
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.learning import system as assembly
from fem_hjb.learning.estimators import ESTIMATORS
from fem_hjb.learning.measures import empirical_measure, law_measure
from fem_hjb.learning.system import System, assemble
from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import PathSource, array_source, simulated_source
from fem_hjb.spaces.space import Space
from fem_hjb.support.errors import DomainError, MeasureError, SpaceError
from tests.support.manufactured import polynomial

LQ = fh.zoo.get("lq", dim=1)
PLANAR = fh.zoo.get("lq", dim=2)
SUMMED = [name for name in ESTIMATORS if name != "doob"]  # whose penalty is to be chosen before anything is summed
MATRICES = ("form", "mass", "energy")


def box(half, dim=1):
    return fh.Box([-half] * dim, [half] * dim)


def same(one: System, two: System, tolerance=1e-12):
    for name in MATRICES:
        ours, other = getattr(one, name), getattr(two, name)
        assert abs(ours - other).max() <= tolerance * abs(other).max()
    assert np.abs(one.load - two.load).max() <= tolerance * np.abs(two.load).max()
    assert (one.paths, one.samples, one.dropped) == (two.paths, two.samples, two.dropped)


def same_bits(one: System, two: System):
    for name in MATRICES:
        ours, other = getattr(one, name), getattr(two, name)
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(ours, part), getattr(other, part))
    np.testing.assert_array_equal(one.load, two.load)


def uneven(paths):
    """The same states at times that are not equally spaced."""
    return Paths(t=paths.t**1.5, x=paths.x)


# ---------------------------------------------------------------------------------------------------------------------
# Pieces


@pytest.mark.parametrize("element", ["hermite", "P2"])
@pytest.mark.parametrize("times", ["even", "uneven"])
@pytest.mark.parametrize("estimator", SUMMED)
def test_the_system_does_not_depend_on_the_chunks(estimator, element, times, monkeypatch):
    """Of paths in memory, of a measure of them, and of a source; samples outside are dropped and counted once."""
    row = ESTIMATORS[estimator]
    if element == "P2" and row.smoothness:
        element = "B3"
    space = Space(LQ, cells=5, time_cells=3, element=element, box=box(2.0))
    paths = fh.sample_paths(LQ, n=60, steps=12, rng=0)
    paths = paths if times == "even" else uneven(paths)
    given = {"estimator": estimator, "outside": "drop", "delta": 0.2 if row.weighted else 0.0}
    whole = assemble(LQ, paths, space, **given)
    assert (whole.paths, whole.samples, whole.kind) == (60, 720, "empirical")
    assert 0 < whole.dropped < 100
    same(assemble(LQ, empirical_measure(LQ, paths), space, **given), whole)
    for chunk in (7, 59):
        same(assemble(LQ, array_source(paths, chunk=chunk), space, **given), whole)
    monkeypatch.setattr(assembly, "_SAMPLES", 100)
    for data in (paths, empirical_measure(LQ, paths)):
        same(assemble(LQ, data, space, **given), whole)


@pytest.mark.parametrize("estimator", SUMMED)
def test_nor_where_the_diffusion_varies_and_a_chunk_is_one_sample(estimator):
    law = fh.Gaussian([0.0], 0.5)
    problem = polynomial(varying=True, marginal=lambda t: law)
    space = Space(problem, cells=4, time_cells=2, box=box(6.0))
    paths = fh.sample_paths(problem, n=5, steps=1, rng=0)
    given = {"estimator": estimator, "delta": 0.2 if ESTIMATORS[estimator].weighted else 0.0}
    same(assemble(problem, array_source(paths, chunk=1), space, **given), assemble(problem, paths, space, **given))


def test_samples_in_another_order_are_the_same_samples(monkeypatch):
    """A measure whose points come time by time cannot be cut into paths."""
    space = Space(LQ, cells=4, time_cells=2, box=box(4.5))
    whole = empirical_measure(LQ, uneven(fh.sample_paths(LQ, n=30, steps=6, rng=0)))
    order = np.arange(180).reshape(30, 6).T.ravel()
    parts = {name: getattr(whole, name)[order] for name in ("t", "x", "weights", "next_t", "next_x")}
    shuffled = dataclasses.replace(whole, **parts)
    for estimator in ("generator", "corrected"):
        expected = assemble(LQ, whole, space, estimator=estimator)
        monkeypatch.setattr(assembly, "_SAMPLES", 30)
        for data in (shuffled, whole):
            same(assemble(LQ, data, space, estimator=estimator), expected)
        monkeypatch.undo()


@pytest.mark.parametrize("times", [None, np.linspace(0.0, 1.0, 11), np.linspace(0.0, 1.0, 11) ** 2])
@pytest.mark.parametrize("estimator", SUMMED)
def test_a_law_in_pieces_gives_the_same_system(estimator, times, monkeypatch):
    """Equal steps differ in their last bits; a piece may lie within one of them; all pieces share the ends."""
    wide = Space(LQ, cells=8, time_cells=2, box=box(4.5))
    space = Space(LQ, cells=5, time_cells=2, box=box(2.5))
    law = law_measure(LQ, wide, times=times)
    row = ESTIMATORS[estimator]
    for delta in (0.0, 0.2)[: 1 + row.weighted]:
        whole = assemble(LQ, law, space, estimator=estimator, delta=delta, outside="drop")
        assert (whole.paths, whole.kind) == (0, "law")
        assert whole.dropped > 0
        monkeypatch.setattr(assembly, "_SAMPLES", 150)
        same(assemble(LQ, law, space, estimator=estimator, delta=delta, outside="drop"), whole)
        monkeypatch.undo()


@pytest.mark.parametrize("estimator", ["generator", "corrected"])
def test_a_chunk_that_is_all_outside_is_dropped_like_any_other(estimator, monkeypatch):
    space = Space(LQ, cells=3, time_cells=1, box=box(1.0))
    x = np.full((8, 5, 1), 0.3)
    x[:4] = 5.0
    paths = Paths(t=np.linspace(0, 1, 5), x=x + 0.01 * np.arange(40).reshape(8, 5, 1))
    whole = assemble(LQ, paths, space, estimator=estimator, outside="drop")
    assert whole.dropped == 4 * (4 + 2)
    for chunk in (1, 2, 4):
        same(assemble(LQ, array_source(paths, chunk=chunk), space, estimator=estimator, outside="drop"), whole)
    monkeypatch.setattr(assembly, "_SAMPLES", 8)
    same(assemble(LQ, empirical_measure(LQ, paths), space, estimator=estimator, outside="drop"), whole)


@pytest.mark.parametrize("estimator", ["generator", "corrected"])
def test_dropped_samples_are_counted_by_hand(estimator):
    space = Space(LQ, cells=3, time_cells=1, box=box(1.0))
    paths = fh.sample_paths(LQ, n=40, steps=6, rng=2)
    away = np.abs(paths.x[:, :, 0]) > 1.0
    interior = away[:, :-1] | (away[:, 1:] if estimator == "corrected" else False)
    found = assemble(LQ, paths, space, estimator=estimator, outside="drop")
    assert found.dropped == interior.sum() + away[:, 0].sum() + away[:, -1].sum()
    assert assemble(LQ, paths, Space(LQ, cells=3, time_cells=1, box=box(6.0))).dropped == 0


@pytest.mark.parametrize("estimator", SUMMED)
def test_workers_give_the_same_bits(estimator):
    space = Space(LQ, cells=5, time_cells=3, box=box(4.5))
    source = simulated_source(LQ, n=100, steps=8, rng=3, chunk=9)
    serial = assemble(LQ, source, space, estimator=estimator, outside="drop")
    assert serial.samples == 800
    with ThreadPoolExecutor(3) as threads:
        for _ in range(2):
            same_bits(assemble(LQ, source, space, estimator=estimator, outside="drop", executor=threads), serial)
        law = law_measure(LQ, space)
        same_bits(assemble(LQ, law, space, executor=threads), assemble(LQ, law, space))


@pytest.mark.parametrize("element", ["hermite", "P2"])
def test_processes_give_the_same_bits(element):
    """What they send back is arrays: the problem's functions, which cannot be pickled, stay where they are."""
    space = Space(LQ, cells=4, time_cells=2, element=element, box=box(4.5))
    source = simulated_source(LQ, n=40, steps=6, rng=3, chunk=9)
    with ProcessPoolExecutor(1) as processes:
        same_bits(
            assemble(LQ, source, space, estimator="corrected", outside="drop", executor=processes),
            assemble(LQ, source, space, estimator="corrected", outside="drop"),
        )


class _Walks(PathSource):
    """Bounded paths that cost nothing to make."""

    def chunk(self, i):
        rows = self.rows(i)
        rng = np.random.default_rng(i)
        return Paths(t=self.t, x=rng.uniform(-1, 1, (rows.stop - rows.start, self.t.size, self.dim)))


@pytest.mark.parametrize("estimator", ["generator", "corrected"])
def test_memory_does_not_grow_with_the_number_of_paths(estimator):
    space = Space(LQ, cells=4, time_cells=2, box=box(4.5))
    peaks = []
    for n in (2000, 2000, 20_000):  # the first one warms up
        source = _Walks(n=n, dim=1, t=np.linspace(0.0, 1.0, 11), chunk_size=500)
        tracemalloc.start()
        assert assemble(LQ, source, space, estimator=estimator).samples == 10 * n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]  # the rows of all samples are ten times as large


def test_probes_are_some_of_the_samples():
    space = Space(LQ, cells=4, time_cells=2, box=box(4.5))
    paths = fh.sample_paths(LQ, n=30, steps=4, rng=0)
    measure = empirical_measure(LQ, paths)
    found = assemble(LQ, paths, space)
    np.testing.assert_array_equal(found.probe_t, measure.t)
    np.testing.assert_array_equal(found.probe_x, measure.x)
    np.testing.assert_array_equal(found.probe_weights, measure.weights)


# ---------------------------------------------------------------------------------------------------------------------
# What is in the system


def integrals(space, law, c, e, Lambda):
    """Of products of two functions under a measure, from their values at its points."""
    f, g = (space.evaluate(k, law.t, law.x) for k in (c, e))
    slopes = [space.evaluate(k, law.t, law.x, "gradient") for k in (c, e)]
    rates = [space.evaluate(k, law.t, law.x, "time") for k in (c, e)]
    ends = {}
    for name, t in (("initial", 0.0), ("terminal", space.horizon)):
        x, weights = getattr(law, f"{name}_x"), getattr(law, f"{name}_weights")
        pair = [space.evaluate(k, t, x) for k in (c, e)]
        pair_slopes = [space.evaluate(k, t, x, "gradient") for k in (c, e)]
        ends[name] = weights @ (pair[0] * pair[1])
        ends[f"{name} slopes"] = weights @ np.einsum("mi,ij,mj->m", pair_slopes[0], Lambda, pair_slopes[1])
    return {
        "values": law.weights @ (f * g),
        "slopes": law.weights @ np.einsum("mi,ij,mj->m", slopes[0], Lambda, slopes[1]),
        "rates": law.weights @ (rates[0] * rates[1]),
        **ends,
    }


@pytest.mark.parametrize("delta", [0.0, 0.3])
@pytest.mark.parametrize("data", ["law", "even", "uneven"])
def test_mass_and_energy_are_the_integrals_they_are_said_to_be(data, delta):
    space = Space(PLANAR, cells=4, time_cells=2, box=box(6.0, 2))
    if data == "law":
        measure, steps = law_measure(PLANAR, space, degree=18), 0.0
    else:
        paths = fh.sample_paths(PLANAR, n=25, steps=8, rng=0)
        measure = empirical_measure(PLANAR, paths if data == "even" else uneven(paths))
        steps = measure.next_t - measure.t
    system = assemble(PLANAR, measure, space, delta=delta)
    c, e = np.random.default_rng(1).standard_normal((2, space.n_dofs))
    part = integrals(space, measure, c, e, PLANAR.constant_diffusion)
    assert c @ system.mass @ e == pytest.approx(part["values"] + part["terminal"], rel=1e-11)
    rates = [space.evaluate(k, measure.t, measure.x, "time") for k in (c, e)]
    if delta:
        extra = delta * part["rates"] + 0.5 * delta * (part["terminal slopes"] + part["initial slopes"])
    else:
        extra = (measure.weights * steps) @ (rates[0] * rates[1])
    expected = part["values"] + part["terminal"] + part["initial"] + part["slopes"] + extra
    assert c @ system.energy @ e == pytest.approx(expected, rel=1e-11)
    target = system.gauge.terminal_u(PLANAR, measure.terminal_x)
    at_end = space.evaluate(e, space.horizon, measure.terminal_x)
    if not delta:
        assert e @ system.load == pytest.approx(measure.terminal_weights @ (at_end * target), rel=1e-11)


@pytest.mark.parametrize("estimator", ["generator", "weak"])
def test_energy_identity(estimator):
    """B[f, f] = 1/2 E f_T^2 + 1/2 E f_0^2 + 1/2 int E[grad f' Lambda grad f] dt - int E[rho f^2] dt, without delta."""
    problem = fh.zoo.get("lq", dim=1, mean=0.8, cov=0.2)
    space = Space(problem, cells=16, time_cells=6, time_degree=3, box=box(7.0))
    law = law_measure(problem, space, degree=40)
    system = assemble(problem, law, space, estimator=estimator)
    rng = np.random.default_rng(5)
    for _ in range(3):
        c = rng.standard_normal(space.n_dofs)
        part = integrals(space, law, c, c, problem.constant_diffusion)
        rho = system.gauge.rate(law.t, law.x, problem.r(law.t, law.x))
        absorbed = law.weights @ (rho * space.evaluate(c, law.t, law.x) ** 2)
        expected = 0.5 * (part["terminal"] + part["initial"] + part["slopes"]) - absorbed
        assert c @ system.form @ c == pytest.approx(expected, rel=1e-8)
    wrong = dataclasses.replace(problem, drift=fh.LinearDrift([[-1.2]], [0.0]))
    other = assemble(wrong, law, space, estimator=estimator)
    assert abs(c @ other.form @ c - expected) > 1e-3 * expected


def test_increments_are_positive_whatever_the_sample():
    """sum -(f_{k+1} - f_k) f_k + f_T^2 = 1/2 f_0^2 + 1/2 f_T^2 + 1/2 sum (f_{k+1} - f_k)^2, with r = 0."""
    problem = dataclasses.replace(LQ, running_reward=None, exact=None)
    space = Space(problem, cells=4, time_cells=2, box=box(4.5))
    for paths in (fh.sample_paths(problem, n=4, steps=9, rng=0), uneven(fh.sample_paths(problem, n=4, steps=9, rng=0))):
        form = assemble(problem, paths, space, estimator="increment").form
        c = np.random.default_rng(0).standard_normal(space.n_dofs)
        f = space.evaluate(c, np.tile(paths.t, (4, 1)), paths.x)
        expected = 0.5 * (f[:, 0] ** 2 + f[:, -1] ** 2 + (np.diff(f) ** 2).sum(1)).mean()
        assert c @ form @ c == pytest.approx(expected, rel=1e-11)
        assert np.linalg.eigvalsh((form + form.T).toarray()).min() > -1e-12


def test_systems_in_one_class_have_one_gauge_and_may_be_given_another():
    problem = polynomial()
    space = Space(problem, cells=3, time_cells=2, box=box(6.0))
    paths = fh.sample_paths(problem, n=20, steps=4, rng=0)
    own = assemble(problem, paths, space)
    assert own.gauge.running > 0
    other = dataclasses.replace(own.gauge, running=own.gauge.running + 0.4, terminal=own.gauge.terminal - 0.8)
    shifted = assemble(problem, paths, space, constants=other)
    np.testing.assert_allclose(shifted.load, np.e * own.load, rtol=1e-12, atol=1e-14)
    values = own.mass - assemble(problem, paths, space).mass
    assert abs(values).max() == 0
    c = np.random.default_rng(0).standard_normal(space.n_dofs)
    measure = empirical_measure(problem, paths)
    square = measure.weights @ space.evaluate(c, measure.t, measure.x) ** 2
    assert c @ (shifted.form - own.form) @ c == pytest.approx(0.5 * square, rel=1e-10)


def test_without_a_running_reward_the_rate_vanishes():
    none = dataclasses.replace(LQ, running_reward=None, exact=None)
    zero = dataclasses.replace(LQ, running_reward=lambda t, x: 0.0 * x[..., 0], exact=None)
    space = Space(LQ, cells=4, time_cells=2, box=box(4.5))
    paths = fh.sample_paths(LQ, n=30, steps=8, rng=0)
    for estimator in SUMMED:
        row = ESTIMATORS[estimator]
        given = {"estimator": estimator, "delta": 0.2 if row.weighted else 0.0}
        same(assemble(none, paths, space, **given), assemble(zero, paths, space, **given), 1e-13)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


SPACE = Space(LQ, cells=4, time_cells=2, box=box(4.5))
PATHS = fh.sample_paths(LQ, n=20, steps=4, rng=0)
MEASURE = empirical_measure(LQ, PATHS)
SMALL = Space(LQ, cells=2, time_cells=1, box=box(0.2))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            MeasureError,
            "estimator must be one of 'generator', 'weak', .*, got 'galerkin'",
            {"estimator": "galerkin"},
        ),
        (MeasureError, "outside must be one of 'error', 'drop', got 'clip'", {"outside": "clip"}),
        (
            MeasureError,
            "the space is of dimension 2, the problem has dim=1",
            {"space": Space(PLANAR, cells=2, time_cells=1, box=box(4.0, 2))},
        ),
        (
            MeasureError,
            "the measure is of dimension 2, the problem has dim=1",
            {"data": empirical_measure(PLANAR, fh.sample_paths(PLANAR, n=5, steps=2, rng=0))},
        ),
        (
            MeasureError,
            "the paths are of dimension 2, the problem has dim=1",
            {"data": fh.sample_paths(PLANAR, n=5, steps=2, rng=0)},
        ),
        (
            MeasureError,
            "the paths are of dimension 2, the problem has dim=1",
            {"data": simulated_source(PLANAR, n=5, steps=2, rng=0)},
        ),
        (
            MeasureError,
            "the paths end at t=0.5, but the problem's horizon is 1",
            {"data": Paths(t=PATHS.t / 2, x=PATHS.x)},
        ),
        (
            MeasureError,
            "expected Paths, .* a PathSource or a Measure, got ndarray",
            {"data": np.zeros((5, 3, 1))},
        ),
        (MeasureError, "expected Paths, .* a PathSource or a Measure, got NoneType", {"data": None}),
        (
            MeasureError,
            "score grad log p_t .* put a law into the problem",
            {"problem": dataclasses.replace(LQ, marginal=None), "estimator": "weak"},
        ),
        (
            MeasureError,
            "need each sample's successor",
            {"data": dataclasses.replace(MEASURE, next_x=None), "estimator": "corrected"},
        ),
        (
            MeasureError,
            r"\d+ of 80 samples lie outside .* \[-0.2\] to \[0.2\], the first .*; build the Space with a larger box=",
            {"space": SMALL},
        ),
        (
            MeasureError,
            r"all \d+ samples lie outside .* \[50.0\] to \[60.0\]: this box or mesh does not fit them",
            {"space": Space(LQ, cells=2, time_cells=1, box=fh.Box([50.0], [60.0])), "outside": "drop"},
        ),
        (MeasureError, "'residual' is a least-squares problem", {"estimator": "residual", "delta": 0.1}),
        (MeasureError, "'regression' is a least-squares problem", {"estimator": "regression", "delta": 0.1}),
        (
            SpaceError,
            "'residual' needs a C1 class, and element 'P1' is only continuous.*estimator='corrected'",
            {"estimator": "residual", "space": Space(LQ, cells=4, time_cells=2, element="P1", box=box(4.5))},
        ),
        (
            DomainError,
            "reflected at all faces of a box or mesh, but the domain of .*; solve such a problem with `solve`",
            {"problem": dataclasses.replace(LQ, domain=fh.Box([-4.5], [4.5], boundary="absorbing"))},
        ),
    ],
)
def test_bad_input(error, message, call):
    arguments = {"problem": LQ, "data": PATHS, "space": SPACE} | call
    positional = [arguments.pop(name) for name in ("problem", "data", "space")]
    with pytest.raises(error, match=message):
        assemble(*positional, **arguments)


def test_weighted_tests_next_to_a_reflecting_face():
    """grad y at the ends of paths is taken inside the domain, where alone y is defined."""
    problem = fh.zoo.get("reflected", dim=1)
    still = np.repeat(np.linspace(0.0, 1.0, 50)[:, None, None], 3, axis=1)
    space = fh.Space(problem, cells=4, time_cells=2, element="B3")
    system = fh.learning.assemble(problem, fh.paths.Paths(t=np.array([0.0, 0.5, 1.0]), x=still), space, delta=0.2)
    assert np.isfinite(system.load).all()
    assert system.dropped == 0
