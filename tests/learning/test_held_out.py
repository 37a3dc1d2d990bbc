"""What trajectories say of a solution that was not learned from them."""

import dataclasses

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.learning import verification
from fem_hjb.learning.folds import apart, beyond
from fem_hjb.learning.held_out import EXTRAPOLATION, RESIDUAL, held_out
from fem_hjb.learning.measures import law_measure
from fem_hjb.learning.solve_system import solve_system
from fem_hjb.learning.system import assemble
from fem_hjb.learning.verification import HELD_OUT, Verification
from fem_hjb.learning.witness import POLICY
from fem_hjb.paths.simulate import Paths
from fem_hjb.support.errors import MeasureError

MIXTURE = fh.zoo.get("mixture-diffusion", dim=1)
PATHS = fh.sample_paths(MIXTURE, n=500, steps=64, rng=1)


def space_of(problem, cells=8, time_cells=4, half=3.5, **how):
    return fh.Space(
        problem, cells=cells, time_cells=time_cells, box=fh.Box([-half] * problem.dim, [half] * problem.dim), **how
    )


def quiet(_):
    """Nobody listens."""


@pytest.mark.parametrize("name", ["mixture-diffusion", "lq"])
def test_its_square_is_the_squared_error_in_the_energy_norm(name):
    """By quadrature under the law; where rewards are paid on the way, G_t < 1 makes it less than without."""
    problem = fh.zoo.get(name, dim=1)
    space = space_of(problem, cells=5, time_cells=2)
    system = assemble(problem, law_measure(problem, space), space, estimator="generator")
    solution = solve_system(system)
    law = law_measure(problem, space)
    alpha = problem.temperature

    def squared_norms(t, x, weights, gradients):
        f, v = solution.f(t, x), problem.exact.value(t, x)
        true = solution.gauge.u(t, x, v)
        if not gradients:
            return np.array([weights @ (f - true) ** 2, weights @ f**2])
        slope = space.derivatives(solution.coefficients, t, x, ("gradient",))[0]
        Lambda = problem.constant_diffusion[0, 0]
        other = true[:, None] * problem.exact.gradient(t, x) / alpha
        return np.array([weights @ (Lambda * (g**2).sum(axis=1)) for g in (slope - other, slope)])

    error, size = squared_norms(0.0, law.initial_x, law.initial_weights, False) + squared_norms(
        law.t, law.x, law.weights, True
    )
    expected = np.sqrt(error / size)
    paths = fh.sample_paths(problem, n=3000, steps=128, rng=5)
    found = held_out(solution, system, paths, quiet)
    assert 0.01 < expected < 0.5
    if name == "mixture-diffusion":
        assert found.residual == pytest.approx(expected, rel=0.1)
    assert 0.5 * expected < found.residual < 1.1 * expected
    wrong = dataclasses.replace(system, problem=dataclasses.replace(problem, drift=lambda t, x: -3.0 * x))
    assert held_out(solution, wrong, paths, quiet).residual > 3 * expected


def test_without_a_simulation_it_is_all_that_is_known_and_the_status_says_so(monkeypatch):
    def forbidden(*_):
        raise AssertionError("a path was simulated")

    monkeypatch.setattr(verification, "witness", forbidden)
    found = fh.fit(MIXTURE, PATHS, space_of(MIXTURE), outside="drop", verify=HELD_OUT)
    assert [check.name for check in found.checks] == [RESIDUAL, EXTRAPOLATION]
    assert all(check.passed for check in found.checks)
    assert found.error_estimate is None
    assert found.status == "the policy was not followed: trajectories that were held out are all that is known"
    plain = fh.fit(MIXTURE, PATHS, space_of(MIXTURE), outside="drop", verify=False)
    np.testing.assert_array_equal(found.coefficients, plain.coefficients)  # nothing is withheld from the solution
    other = dataclasses.replace(MIXTURE, drift=lambda t, x: MIXTURE.b(t, x) + 2.0 * np.cos(3 * x), exact=None)
    wrong = fh.fit(other, PATHS, space_of(MIXTURE), outside="drop", verify=HELD_OUT, estimator="regression")
    assert f"check {RESIDUAL!r} failed" in wrong.status


def test_a_policy_that_is_followed_has_both():
    found = fh.fit(MIXTURE, PATHS, space_of(MIXTURE), outside="drop", terminal="interpolated")
    names = [check.name for check in found.checks]
    assert names[0] == POLICY
    assert names[-2:] == [RESIDUAL, EXTRAPOLATION]


def test_what_is_extrapolated_is_said():
    """A box that half of the paths leave; cells that no path was in."""
    small = fh.fit(MIXTURE, PATHS, space_of(MIXTURE, half=1.0), outside="drop", verify=HELD_OUT)
    assert not small.checks[-1].passed
    assert f"check {EXTRAPOLATION!r} failed" in small.status
    left = PATHS.x[:, :, 0].max(axis=1) < 0.5
    some = Paths(t=PATHS.t, x=PATHS.x[left])
    space = space_of(MIXTURE)
    system = assemble(MIXTURE, some, space, outside="drop")
    assert system.visits.sum() == system.samples - (np.abs(some.x[:, :-1]) > 3.5).sum()
    told = held_out(solve_system(system), system, PATHS, quiet)
    unseen = np.abs(PATHS.x[:, :-1, 0]) > 3.5
    cells, _ = space.locate(np.tile(PATHS.t[:-1], PATHS.n), PATHS.x[:, :-1].reshape(-1, 1))
    assert told.extrapolated == pytest.approx(np.mean(unseen.ravel() | (system.visits[cells] == 0)), abs=1e-12)
    assert told.extrapolated > 0.1


def test_continuous_elements_have_no_residual_at_samples():
    space = space_of(MIXTURE, element="P2")
    found = fh.fit(MIXTURE, PATHS, space, estimator="corrected", outside="drop", verify=HELD_OUT)
    assert [check.name for check in found.checks] == [EXTRAPOLATION]


def test_trajectories_that_were_not_used_are_those_held_out():
    space = space_of(MIXTURE)
    system = assemble(MIXTURE, Paths(t=PATHS.t, x=PATHS.x[:300]), space, outside="drop")

    def never(*_):
        raise AssertionError("learned once more")

    how = Verification(verify=HELD_OUT, accept=0.1, seed=0)
    found = how.verified(solve_system(system), system, PATHS, never, quiet)
    assert "of 200 paths" in found.checks[0].told
    assert beyond(PATHS, 300).x.shape[0] == 200
    assert beyond(fh.paths.array_source(PATHS, chunk=100), 300).n == 200


def test_parts_are_all_trajectories_once():
    source = fh.paths.array_source(PATHS, chunk=60)
    for data in (PATHS, source, fh.paths.array_source(PATHS, chunk=1000)):
        rest, out = apart(data, 5)
        firsts = []
        for part in (rest, out):
            chunks = [part] if isinstance(part, Paths) else [part.chunk(i) for i in range(part.chunk_count)]
            assert sum(chunk.n for chunk in chunks) == part.n
            firsts += [*np.concatenate([chunk.x[:, 0, 0] for chunk in chunks])]
        assert sorted(firsts) == sorted(PATHS.x[:, 0, 0])
        assert 0.1 < out.n / PATHS.n < 0.3
    with pytest.raises(MeasureError, match="a single trajectory cannot be taken apart"):
        apart(fh.sample_paths(MIXTURE, n=1, steps=4, rng=0), 5)


def test_a_law_has_none():
    space = space_of(MIXTURE)
    law = law_measure(MIXTURE, space)
    with pytest.raises(MeasureError, match=r"verify='held-out' needs trajectories, .* got a Measure"):
        fh.fit(MIXTURE, law, space, verify=HELD_OUT)
    with pytest.raises(MeasureError, match="verify must be True, False or 'held-out', got 'some'"):
        fh.fit(MIXTURE, PATHS, space, verify="some")
