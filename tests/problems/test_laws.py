"""Laws: densities against SciPy, scores against differences, samples and quadrature against moments."""

import pickle

import numpy as np
import pytest
import skfem
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from fem_hjb.problems.box import Box
from fem_hjb.problems.cell_measure import cell_rule
from fem_hjb.problems.cells import mesh_kind
from fem_hjb.problems.laws import Gaussian, GaussianMixture, PointMass, Uniform, log_sum, tensor_rule
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.zoo.meshed import ring_mesh
from fem_hjb.support.errors import DomainError, ProblemError

COV = np.array([[0.8, 0.3], [0.3, 0.5]])
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [COV, 0.2 * np.eye(2)])
SMOOTH = {
    "gaussian": Gaussian([0.4, -0.2], COV),
    "gaussian-scalar": Gaussian([1.0], 0.5),
    "gaussian-diagonal": Gaussian([0.0, 1.0, 2.0], [0.5, 1.0, 2.0]),
    "mixture": MIXTURE,
    "mixture-3d": GaussianMixture([0.5, 0.5], np.eye(3)[:2], np.stack([np.eye(3), 0.4 * np.eye(3)])),
}


def frustum():
    """A pyramid with square top and bottom, cut in eight."""
    mesh = skfem.MeshHex().refined(1)
    return skfem.MeshHex(mesh.p * [1.0 + 0.5 * mesh.p[2], 1.0 + 0.5 * mesh.p[2], 0 * mesh.p[2] + 1.0], mesh.t)


MESHES = {
    "line": skfem.MeshLine([0.0, 0.1, 1.0]),
    "ring": ring_mesh(2.0, 2),
    "quad": skfem.MeshQuad([[0.0, 3.0, 1.0, 0.0], [0.0, 0.2, 1.0, 0.5]], [[0], [1], [2], [3]]),
    "tet": skfem.MeshTet().refined(1),
    "hex": frustum(),
}
ALL = {
    **SMOOTH,
    "uniform": Uniform(Box([-1.0, 0.0], [1.0, 3.0])),
    **{f"uniform-{kind}": Uniform(MeshDomain(mesh)) for kind, mesh in MESHES.items()},
    "point": PointMass([0.3, -0.4]),
    "mixture-weight-0": GaussianMixture([1.0, 0.0], [[0.0], [5.0]], [[[1.0]], [[1.0]]]),
}


@pytest.mark.parametrize("axis", [0, 1])
def test_logarithms_of_sums_are_those_of_scipy_wherever_numbers_are(axis):
    rng = np.random.default_rng(0)
    logs = rng.standard_normal((40, 30)) * 10.0 ** rng.integers(-3, 4, (40, 30))
    logs[:, 7] = logs[3] = -np.inf
    logs[5] += 800.0
    logs[:, 9] -= 800.0
    found = log_sum(logs, axis)
    np.testing.assert_allclose(found, logsumexp(logs, axis=axis), rtol=1e-15, atol=1e-15)
    assert (found == -np.inf).sum() == 1


@pytest.mark.parametrize("law", ALL.values(), ids=ALL)
def test_samples_have_the_moments_of_the_law(law):
    n = 100_000
    x = law.sample(n, np.random.default_rng(1))
    assert x.shape == (n, law.dim)
    assert law.expectation.shape == (law.dim,)
    assert law.covariance.shape == (law.dim, law.dim)
    centred = x - law.expectation
    sd = centred.std(0) / np.sqrt(n)
    assert (np.abs(centred.mean(0)) <= 4.5 * sd + 1e-15).all()
    products = centred[:, :, None] * centred[:, None, :]
    assert (np.abs(products.mean(0) - law.covariance) <= 4.5 * products.std(0) / np.sqrt(n) + 1e-15).all()


@pytest.mark.parametrize("law", ALL.values(), ids=ALL)
def test_same_generator_state_same_sample(law):
    first, second = (law.sample(7, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("law", ALL.values(), ids=ALL)
def test_quadrature_is_exact_for_polynomials(law):
    order = 4
    points, weights = law.quadrature(order)
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(weights @ points, law.expectation, atol=1e-13)
    centred = points - law.expectation
    np.testing.assert_allclose(np.einsum("m,mi,mj->ij", weights, centred, centred), law.covariance, atol=1e-13)


@pytest.mark.parametrize("kind", MESHES)
def test_the_uniform_law_of_a_mesh_lives_on_it_alone(kind):
    law, n = Uniform(MeshDomain(MESHES[kind])), 2000
    x = law.sample(n, np.random.default_rng(3))
    assert np.isfinite(law.logpdf(x)).all()
    assert np.ptp(law.logpdf(x)) == 0.0
    lower, upper = law.box.bounds
    spread = lower + (upper - lower) * np.random.default_rng(4).random((20 * n, law.dim))
    inside = np.isfinite(law.logpdf(spread))
    volume = inside.mean() * np.prod(upper - lower)  # of the mesh, by throwing darts
    error = 4 * np.sqrt(inside.mean() * (1 - inside.mean()) / len(spread)) * np.prod(upper - lower)
    assert np.exp(-law.logpdf(x)[0]) == pytest.approx(volume, abs=error + 1e-12)
    assert law.logpdf(upper + 1.0) == -np.inf
    assert not law.score(x).any()
    again = pickle.loads(pickle.dumps(law))
    np.testing.assert_array_equal(again.expectation, law.expectation)


def test_a_rule_in_cells_has_the_degree_it_promises_and_no_more():
    """The moments of the unit tetrahedron: int x^a y^b z^c = a! b! c! / (a + b + c + 3)!."""
    mesh = skfem.MeshTet([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], [[0], [1], [2], [3]])
    x, w = cell_rule(mesh.p, mesh.t, mesh_kind(mesh), 2)
    assert w.sum() == pytest.approx(1 / 6, abs=1e-15)
    assert w @ (x[:, 0] * x[:, 1] * x[:, 2]) == pytest.approx(1 / 720, abs=1e-15)
    assert w @ x[:, 1] ** 3 == pytest.approx(6 / 720, abs=1e-15)
    assert abs(w @ x[:, 0] ** 6 - 720 / 362880) > 1e-7


def test_points_in_a_wide_end_of_a_cell_are_more():
    """In a trapezoid two and one wide, two thirds of the left half as much as its area."""
    mesh = skfem.MeshQuad([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 3.0]], [[0], [1], [2], [3]])
    x = Uniform(MeshDomain(mesh)).sample(20_000, np.random.default_rng(0))
    share = (x[:, 0] < 0.5).mean()
    assert share == pytest.approx(0.5 * (3 + 2) / 2 / 2, abs=4 * np.sqrt(0.24 / 20_000))


def test_quadrature_reaches_the_degree_it_promises_and_no_more():
    law = Gaussian([0.0], 1.0)
    moments = {6: 15.0, 7: 0.0, 8: 105.0}  # of N(0, 1)
    points, weights = law.quadrature(4)  # exact below degree 8
    for degree in (6, 7):
        assert weights @ points[:, 0] ** degree == pytest.approx(moments[degree], abs=1e-11)
    assert abs(weights @ points[:, 0] ** 8 - moments[8]) > 1.0


def test_tensor_rule_orders_points_and_weights_alike():
    points, weights = tensor_rule(np.array([0.0, 1.0]), np.array([0.25, 0.75]), 2)
    assert points.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert weights.tolist() == [0.0625, 0.1875, 0.1875, 0.5625]


@pytest.mark.parametrize("law", SMOOTH.values(), ids=SMOOTH)
def test_score_is_the_gradient_of_logpdf(law):
    x = law.sample(50, np.random.default_rng(2)).reshape(5, 10, law.dim)
    h = 1e-5
    slopes = [(law.logpdf(x + h * e) - law.logpdf(x - h * e)) / (2 * h) for e in np.eye(law.dim)]
    assert law.logpdf(x).shape == (5, 10)
    np.testing.assert_allclose(law.score(x), np.stack(slopes, -1), atol=1e-8)


def test_densities_agree_with_scipy():
    x = np.random.default_rng(3).normal(size=(40, 2))
    parts = [multivariate_normal(m, c) for m, c in zip(MIXTURE.means, MIXTURE.covariances, strict=True)]
    density = 0.3 * parts[0].pdf(x) + 0.7 * parts[1].pdf(x)
    np.testing.assert_allclose(MIXTURE.logpdf(x), np.log(density), rtol=1e-12)
    gaussian = SMOOTH["gaussian"]
    reference = multivariate_normal(gaussian.expectation, gaussian.covariance)
    np.testing.assert_allclose(gaussian.logpdf(x), reference.logpdf(x), rtol=1e-12)


def test_logpdf_and_score_survive_far_tails():
    x = np.array([[1e4, -1e4]])
    assert np.isfinite(MIXTURE.logpdf(x)).all()
    heaviest = MIXTURE.covariances[0]
    np.testing.assert_allclose(MIXTURE.score(x)[0], -np.linalg.solve(heaviest, x[0] - MIXTURE.means[0]), rtol=1e-12)


def test_a_single_point_is_a_batch_of_shape_nothing():
    assert MIXTURE.logpdf([0.0, 0.0]).shape == ()
    assert MIXTURE.score([0.0, 0.0]).shape == (2,)


def test_arrays_are_copied_and_frozen():
    mean = np.array([0.0, 1.0])
    law = Gaussian(mean, COV)
    mean[0] = 7.0
    assert law.expectation[0] == 0.0
    for array in (law.expectation, law.covariance, *MIXTURE.components, PointMass([1.0]).expectation):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0.0


def test_uniform_density_and_score():
    law = ALL["uniform"]
    assert np.exp(law.logpdf([[0.0, 1.0]])) == pytest.approx(1 / 6)
    assert law.logpdf([[0.0, 3.5]]) == -np.inf
    assert (law.score([[0.0, 1.0]]) == 0).all()


BAD = {
    "weights-negative": (lambda: GaussianMixture([1.5, -0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]]), "non-negative"),
    "weights-sum": (lambda: GaussianMixture([0.5, 0.6], [[0.0], [1.0]], [[[1.0]], [[1.0]]]), r"sum to 1.*sum 1\.1"),
    "means-count": (lambda: GaussianMixture([1.0], [[0.0], [1.0]], [[[1.0]]]), r"means must have shape \(k, d\)"),
    "means-nan": (lambda: GaussianMixture([1.0], [[np.nan]], [[[1.0]]]), "means must be finite, got 1"),
    "covariances-count": (lambda: GaussianMixture([1.0], [[0.0]], 1.0), "one covariance per component, k = 1"),
    "covariance-indefinite": (
        lambda: GaussianMixture([0.5, 0.5], np.zeros((2, 2)), np.stack([np.eye(2), np.diag([1.0, -1.0])])),
        r"covariances\[1\] must be symmetric positive definite, its smallest eigenvalue is -1",
    ),
    "covariance-asymmetric": (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "symmetric positive definite"),
    "covariance-shape": (lambda: Gaussian([0.0, 0.0], np.eye(3)), r"cov must have shape \(2, 2\), got shape \(3, 3\)"),
    "mean-matrix": (
        lambda: Gaussian(np.zeros((2, 2)), 1.0),
        r"mean must have shape \(d,\) with d >= 1, got shape \(2, 2\)",
    ),
    "mean-text": (lambda: Gaussian(["a"], 1.0), "mean must be an array of real numbers, got"),
    "mean-empty": (lambda: Gaussian([], 1.0), r"mean must have shape \(d,\) with d >= 1, got shape \(0,\)"),
    "covariance-text": (lambda: Gaussian([0.0], "b"), "cov must be an array of real numbers, got 'b'"),
    "no-draws": (lambda: Gaussian([0.0], 1.0).sample(-1, np.random.default_rng(0)), "n must be a positive integer"),
    "no-points": (lambda: Gaussian([0.0], 1.0).quadrature(0), "order must be a positive integer"),
    "mean-infinite": (lambda: Gaussian([np.inf], 1.0), "mean must be finite"),
    "point-mass-density": (lambda: PointMass([0.0]).logpdf([[0.0]]), "has no density; use a Gaussian"),
    "point-mass-score": (lambda: PointMass([0.0]).score([[0.0]]), "has no score"),
    "uniform-of-nothing": (lambda: Uniform([0.0, 1.0]), "Uniform needs a Box or a MeshDomain, got list"),
}
BAD_DOMAIN = {
    "columns": (lambda: MIXTURE.logpdf(np.zeros((2, 5))), r"points in rows, shape \(\.\.\., 2\), got shape \(2, 5\)"),
    "flat-line": (lambda: Gaussian([0.0], 1.0).score(np.zeros(3)), r"write x\[:, None\]"),
    "nan-points": (lambda: MIXTURE.score([[0.0, np.nan], [0.0, 0.0]]), "got 1 non-finite points"),
    "uniform-on-a-half-line": (lambda: Uniform(Box([0.0], [np.inf], "natural")), "a box with finite faces, got Box"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_ill_formed_laws_are_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()


@pytest.mark.parametrize(("make", "message"), BAD_DOMAIN.values(), ids=BAD_DOMAIN)
def test_ill_formed_points_are_refused(make, message):
    with pytest.raises(DomainError, match=message):
        make()
