"""Nested dissection and factors by fronts: they solve what sparse LU solves, and broken ones are found out."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

import fem_hjb as fh
from fem_hjb.learning import fronts
from fem_hjb.learning.dissection import dissect, places_of
from fem_hjb.learning.factors import Factors
from fem_hjb.learning.fronts import FrontFactors
from fem_hjb.learning.inequality import VariationalInequality, natural_residual
from fem_hjb.learning.solve_system import reduce_system, solve_system
from fem_hjb.learning.solvers import direct
from fem_hjb.learning.system import assemble

N = 700


def points(seed: int = 0):
    return np.random.default_rng(seed).random((N, 2))


def coupled(places, seed: int = 0):
    """A matrix of no symmetry, with a positive definite symmetric part, that couples places at most 0.08 apart."""
    rng = np.random.default_rng(seed)
    near = np.abs(places[:, None] - places[None]).max(axis=2) < 0.08
    matrix = np.where(near, rng.standard_normal((N, N)), 0.0)
    return sp.csc_matrix(matrix + np.diag(1.1 * np.abs(matrix).sum(axis=1)))


@pytest.fixture(scope="module")
def system():
    problem = fh.zoo.get("lq", dim=2)
    space = fh.Space(problem, cells=8, time_cells=4, box=fh.Box([-2.0] * 2, [2.0] * 2))
    return assemble(problem, fh.sample_paths(problem, n=500, steps=16, rng=0), space, outside="drop")


def test_a_dissection_orders_all_unknowns_and_borders_hold_all_couplings():
    places = points()
    matrix = coupled(places)
    found = dissect(matrix, places)
    np.testing.assert_array_equal(np.sort(found.order), np.arange(N))
    assert len(found.fronts) > 4
    assert found.fronts[-1].border.size == 0
    pattern = abs(matrix)[found.order][:, found.order]
    pattern = (pattern + pattern.T).tocsr()
    last = 0
    for front in found.fronts:
        assert front.first == last
        last = front.last
        others = np.unique(pattern[front.first : front.last].indices)
        assert np.isin(others[others >= last], front.border).all()
        for child in front.children:
            border = found.fronts[child].border
            assert np.isin(border[border >= last], front.border).all()
            assert (border >= front.first).all()
    assert last == N


def test_unknowns_that_are_all_at_one_place_are_one_front():
    matrix = coupled(points())
    assert len(dissect(matrix, np.zeros((N, 2))).fronts) == 1


@pytest.mark.parametrize("trans", ["N", "T"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_fronts_solve_what_sparse_factors_solve(symmetric, trans):
    places = points()
    matrix = coupled(places)
    matrix = (matrix + matrix.T).tocsc() if symmetric else matrix
    factors = FrontFactors(matrix, dissect(matrix, places), symmetric)
    rhs = np.random.default_rng(1).standard_normal((N, 3))
    expected = spsolve((matrix.T if trans == "T" else matrix).tocsc(), rhs)
    np.testing.assert_allclose(factors.solve(rhs, trans), expected, atol=1e-13)
    np.testing.assert_allclose(factors.solve(rhs[:, 0], trans), expected[:, 0], atol=1e-13)


def test_rows_are_exchanged_within_a_front():
    matrix = sp.csc_matrix([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    factors = FrontFactors(matrix, dissect(matrix, np.zeros((3, 1))), False)
    np.testing.assert_allclose(factors.solve(np.array([2.0, 3.0, 6.0])), [3.0, 1.0, 2.0])
    np.testing.assert_allclose(factors.solve(np.array([2.0, 4.0, 6.0]), "T"), [2.0, 2.0, 2.0])


def test_entries_of_0_do_not_matter_and_couplings_that_were_not_dissected_are_refused():
    places = points()
    matrix = coupled(places)
    dissection = dissect(matrix, places)
    far = np.abs(places - places[0]).max(axis=1).argmax()
    for value in (0.0, 1.0):
        other = sp.csc_matrix(matrix + sp.csc_matrix(([1.0], ([far], [0])), shape=matrix.shape))
        other.data[other.data == 1.0] = value
        if value:
            with pytest.raises(RuntimeError, match="has apart"):
                FrontFactors(other, dissection, False)
            assert Factors(other, 0.01, 10**9, dissection).kind == "diagonal"
        else:
            assert other.nnz == matrix.nnz + 1
            solution = FrontFactors(other, dissection, False).solve(np.ones(N))
            np.testing.assert_allclose(matrix @ solution, 1.0, atol=1e-12)


def test_what_is_not_positive_definite_has_no_symmetric_factors():
    matrix = sp.csc_matrix(np.diag([1.0, -1.0]))
    with pytest.raises(RuntimeError, match="not positive definite"):
        FrontFactors(matrix, dissect(matrix, np.zeros((2, 1))), True)


@pytest.mark.parametrize(("element", "dim"), [("hermite", 2), ("B3", 2), ("P2", 2), ("Q1", 2), ("hermite", 1)])
def test_neighbours_in_a_class_are_at_neighbouring_places(element, dim):
    problem = fh.zoo.get("lq", dim=dim)
    space = fh.Space(problem, cells=6, time_cells=3, element=element, box=fh.Box([-2.0] * dim, [2.0] * dim))
    places = places_of(space)
    assert places.shape == (space.n_dofs, 1 + dim)
    extent = np.ptp(places[space.cell_dofs(np.arange(space.n_cells))], axis=1).max(axis=0)
    wide = np.array([1.0, *[3.0 if element == "B3" else 1.0] * dim]) / np.array([2.0, *[5.0] * dim])
    assert (extent <= wide * np.ptp(places, axis=0) + 1e-12).all()


def test_a_class_without_cells_has_no_places():
    problem = fh.zoo.get("lq", dim=1)
    space = fh.Space(problem, cells=4, time_cells=2)
    features = fh.spaces.HermiteCross(fh.Gaussian([0.0], 1.0), 2)
    assert places_of(fh.Space.product(space.time, features)) is None


def test_by_fronts_and_by_sparse_factors_the_solution_is_the_same(system):
    by_fronts = reduce_system(system, smoothing=0.05).inequality
    by_lu = replace(by_fronts, places=None)
    found, expected = direct(by_fronts), direct(by_lu)
    assert (by_fronts.form_factors.kind, by_fronts.energy_factors.kind) == ("fronts", "fronts")
    assert by_lu.form_factors.kind == "diagonal"
    assert found.residual < 1e-12
    error = by_fronts.norm(found.coefficients - expected.coefficients)
    assert error < 1e-10 * by_fronts.norm(expected.coefficients)
    assert found.coefficients.size > 2000


def test_broken_fronts_are_found_out_and_make_way(system, monkeypatch):
    sound = solve_system(system, smoothing=0.05, figures=False)
    assert sound.stats["factors"] == {"form": "fronts", "energy": "fronts"}
    whole = fronts._Blocks.extend

    def half(self, update, spots):
        whole(self, 0.5 * update, spots)

    monkeypatch.setattr(fronts._Blocks, "extend", half)
    broken = solve_system(system, smoothing=0.05, figures=False)
    assert "fronts" not in broken.stats["factors"].values()
    np.testing.assert_allclose(broken.coefficients, sound.coefficients, atol=1e-8 * np.abs(sound.coefficients).max())


def test_fronts_that_do_not_fit_into_memory_are_not_tried(monkeypatch):
    places = points()
    matrix = coupled(places)
    monkeypatch.setattr("fem_hjb.learning.factors.available_memory", lambda: 8 * matrix.nnz)
    assert Factors(matrix, 0.01, 10**9, dissect(matrix, places)).kind == "diagonal"
    assert Factors(matrix, 0.01, 0, dissect(matrix, places)).kind == "incomplete"
    monkeypatch.setattr("fem_hjb.learning.factors.available_memory", lambda: None)
    assert Factors(matrix, 0.01, 0, dissect(matrix, places)).kind == "fronts"


def test_a_singular_front_makes_way_and_a_singular_system_is_refused():
    places = points()
    matrix = coupled(places).tolil()
    matrix[7] = 0.0
    with pytest.raises(fh.errors.ConvergenceError, match="singular"):
        Factors(matrix.tocsc(), 0.01, 0, dissect(matrix, places))


def test_places_that_are_not_finite_points_are_refused():
    matrix = sp.identity(3, format="csc")
    with pytest.raises(fh.errors.ConvergenceError, match="places"):
        VariationalInequality(form=matrix, load=np.ones(3), energy=matrix, places=np.full((3, 2), np.nan))
    with pytest.raises(fh.errors.ConvergenceError, match="places"):
        VariationalInequality(form=matrix, load=np.ones(3), energy=matrix, places=np.zeros((2, 2)))


def test_the_certificate_sees_a_wrong_solution(system):
    inequality = reduce_system(system, smoothing=0.05).inequality
    solution = direct(inequality).coefficients
    assert natural_residual(inequality, 1.001 * solution) > 1e-4
