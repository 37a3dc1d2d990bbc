"""The matrices against scikit-fem and against plain quadrature, what is reused, and the linear solvers."""

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import skfem
from skfem.helpers import grad

from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_operators import MeshOperators
from fem_hjb.spaces.space import SpatialBasis, spatial_basis
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, ProblemError

GAUGE = Gauge(temperature=0.7, horizon=1.5, terminal=0.3, running=0.4)
NONE = np.empty(0, dtype=np.int64)

MIX = np.array([[0.5, 0.2, -0.1], [0.1, 0.4, 0.2], [0.3, -0.2, 0.6]])


def exact_to(degree: int, problem: ControlProblem, basis: SpatialBasis) -> MeshOperators:
    """The matrices by a quadrature of this degree."""
    finer = copy(basis)
    finer.quadrature = lambda _: basis.quadrature(degree)  # type: ignore[method-assign]
    return MeshOperators(problem, finer, GAUGE)


def drift(t: Any, x: FloatArray) -> FloatArray:
    d = x.shape[-1]
    return np.sin(x @ MIX[:d, :d].T) * (1 + np.asarray(t)[..., None]) - x**3


def diffusion(t: Any, x: FloatArray) -> FloatArray:
    """Full and quadratic in x: central differences of it are exact."""
    d = x.shape[-1]
    low = np.eye(d) + 0.2 * x[..., :, None] * np.tri(d) + 0.1 * np.asarray(t)[..., None, None]
    return low @ np.swapaxes(low, -1, -2)


def divergence(t: float, x: FloatArray) -> FloatArray:
    """sum_l d Lambda_kl / d x_l of the Lambda above, with L_km = delta_km + 0.2 x_k [m <= k] + 0.1 t."""
    d = x.shape[-1]
    low = np.eye(d) + 0.2 * x[..., :, None] * np.tri(d) + 0.1 * t
    tri = 0.2 * np.tri(d)
    # d L_km / d x_l = tri_km [k = l], so d_l (L_km L_lm) = tri_km [k = l] L_lm + L_km tri_lm
    return np.einsum("km,...km->...k", tri, low) + np.einsum("...km,lm->...k", low, tri)


def reward(t: Any, x: FloatArray) -> FloatArray:
    return -np.cos(x).sum(-1) * (2 - np.asarray(t)) - 0.5 * (x**2).sum(-1)


def a_problem(dim: int, **changes: Any) -> ControlProblem:
    keywords: dict[str, Any] = {
        "dim": dim,
        "horizon": 1.5,
        "temperature": 0.7,
        "drift": drift,
        "diffusion": diffusion,
        "running_reward": reward,
        "terminal_reward": lambda x: -(x**2).sum(-1),
        "initial_law": Gaussian(np.zeros(dim), 0.1),
    }
    return ControlProblem(**{**keywords, **changes})


def jittered(mesh: Any, seed: int = 3) -> Any:
    """Interior vertices moved, so that quadrilaterals and hexahedra are not affine."""
    p = mesh.p.copy()
    interior = np.setdiff1d(np.arange(p.shape[1]), mesh.boundary_nodes())
    p[:, interior] += 0.05 * np.random.default_rng(seed).uniform(-1, 1, (p.shape[0], interior.size))
    return replace(mesh, doflocs=p)


LINE = np.array([-1.0, -0.3, 0.1, 0.8, 1.0])
MESHES = {
    "line": skfem.MeshLine(LINE),
    "tri": jittered(skfem.MeshTri.init_tensor(LINE, LINE[:4])),
    "quad": jittered(skfem.MeshQuad.init_tensor(LINE, LINE[:4])),
    "tet": jittered(skfem.MeshTet.init_tensor(LINE[:4], LINE[:3], LINE[:4])),
    "hex": jittered(skfem.MeshHex.init_tensor(LINE[:4], LINE[:3], LINE[:4])),
}


def by_scikit_fem(basis: SpatialBasis, element: Any, t: float, degree: int) -> tuple[Any, Any]:
    rule = basis.quadrature(degree)
    reference = skfem.Basis(basis.mesh, element, quadrature=(rule.xi.T, rule.weights))  # type: ignore[attr-defined]

    def points(w: Any) -> FloatArray:
        return np.moveaxis(np.asarray(w.x), 0, -1)

    def generator(u: Any, v: Any, w: Any) -> FloatArray:
        x = points(w)
        Lambda = diffusion(t, x)
        b = drift(t, x) - 0.5 * divergence(t, x)
        rate = (reward(t, x) - GAUGE.running) / GAUGE.temperature
        second = np.einsum("k...,...km,m...->...", grad(v), Lambda, grad(u))
        first = np.einsum("...k,k...->...", b, grad(u))
        return -0.5 * second + first * np.asarray(v) + rate * np.asarray(u) * np.asarray(v)

    mass = skfem.BilinearForm(lambda u, v, w: u * v).assemble(reference)
    return mass, skfem.BilinearForm(generator).assemble(reference)


def by_plain_quadrature(basis: SpatialBasis, t: float, degree: int) -> tuple[FloatArray, FloatArray]:
    """Dense matrices from the functions tabulated at the quadrature points of all cells."""
    rule = basis.quadrature(degree)
    n, q, d = rule.x.shape
    cells = np.repeat(np.arange(n), q)
    values, gradients = basis.tabulate(cells, np.tile(rule.xi, (n, 1)), 1)
    weight = (np.broadcast_to(rule.det, (n, q)) * rule.weights).ravel()
    rows = np.repeat(np.arange(n * q), basis.local_size)
    columns = basis.cell_dofs[cells].ravel()

    def full(table: FloatArray) -> FloatArray:
        return sp.csr_matrix((table.ravel(), (rows, columns)), shape=(n * q, basis.n_dofs)).toarray()

    phi, slopes = full(values), [full(gradients[..., k]) for k in range(d)]
    x = rule.x.reshape(-1, d)
    Lambda, b = diffusion(t, x), drift(t, x) - 0.5 * divergence(t, x)
    rate = (reward(t, x) - GAUGE.running) / GAUGE.temperature
    K = phi.T @ (phi * (weight * rate)[:, None])
    for k in range(d):
        K += phi.T @ (slopes[k] * (weight * b[:, k])[:, None])
        for m in range(d):
            K -= 0.5 * slopes[k].T @ (slopes[m] * (weight * Lambda[:, k, m])[:, None])
    return phi.T @ (phi * weight[:, None]), K


def relative(a: Any, b: Any) -> float:
    a, b = (np.asarray(m.todense()) if sp.issparse(m) else m for m in (a, b))
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize(
    ("kind", "name", "element"),
    [
        ("line", "P1", skfem.ElementLineP1()),
        ("line", "P2", skfem.ElementLineP2()),
        ("tri", "P1", skfem.ElementTriP1()),
        ("tri", "P2", skfem.ElementTriP2()),
        ("tri", "P3", skfem.ElementTriP3()),
        ("tri", "P4", skfem.ElementTriP4()),
        ("quad", "Q1", skfem.ElementQuad1()),
        ("quad", "Q2", skfem.ElementQuad2()),
        ("tet", "P1", skfem.ElementTetP1()),
        ("tet", "P2", skfem.ElementTetP2()),
        ("hex", "Q1", skfem.ElementHex1()),
        ("hex", "Q2", skfem.ElementHex2()),
    ],
)
def test_matrices_equal_those_of_scikit_fem(kind: str, name: str, element: Any):
    basis = spatial_basis(MESHES[kind], name)
    operators = exact_to(6, a_problem(basis.dim), basis)
    for t in (0.3, 1.2):
        mass, K = by_scikit_fem(basis, element, t, 6)
        assert relative(operators.M, mass) < 1e-12
        assert relative(operators.K(t), K) < 1e-12


@pytest.mark.parametrize(
    "basis",
    [
        spatial_basis(MESHES["line"], "P3"),
        spatial_basis(MESHES["line"], "P4"),
        spatial_basis([LINE], "hermite"),
        spatial_basis([LINE, LINE[:3]], "hermite"),
        spatial_basis([LINE[:3], LINE[:4], LINE[1:4]], "hermite"),
    ],
    ids=["P3", "P4", "hermite-1", "hermite-2", "hermite-3"],
)
def test_matrices_equal_those_of_plain_quadrature(basis: SpatialBasis):
    operators = exact_to(6, a_problem(basis.dim), basis)
    mass, K = by_plain_quadrature(basis, 0.3, 6)
    assert relative(operators.M, mass) < 1e-12
    assert relative(operators.K(0.3), K) < 1e-12


def test_a_weighted_mass_matrix():
    basis = spatial_basis([LINE, LINE[:3]], "hermite")
    operators = exact_to(8, a_problem(2), basis)
    ones = operators.weighted_mass(lambda x: np.ones(len(x)))
    np.testing.assert_allclose(ones.data, operators.M.data, rtol=0, atol=1e-15)
    # int (1 + x_0) over the box, with the coefficients of the constant 1
    one = basis.interpolate(np.ones(len(basis.nodes)))
    area, (lower, upper) = np.prod(np.ptp(basis.nodes, axis=0)), basis.box.bounds
    mean = 1 + (lower + upper)[0] / 2
    assert one @ operators.weighted_mass(lambda x: 1 + x[:, 0]) @ one == pytest.approx(area * mean, rel=1e-12)


def test_a_constant_full_diffusion_takes_the_summed_table_and_gives_the_same():
    Lambda = np.array([[1.0, 0.4], [0.4, 0.6]])
    basis = spatial_basis(MESHES["tri"], "P2")
    constant = MeshOperators(a_problem(2, diffusion=Lambda), basis, GAUGE).K(0.3)
    called = MeshOperators(
        a_problem(2, diffusion=lambda t, x: np.broadcast_to(Lambda, (*x.shape[:-1], 2, 2))), basis, GAUGE
    ).K(0.3)
    assert relative(constant, called) < 1e-10  # the divergence of the callable is 0 up to rounding / spacing


def test_central_differences_of_the_diffusion_have_the_stated_error():
    def smooth(t: Any, x: FloatArray) -> FloatArray:
        return (2 + np.sin(x[..., 0]))[..., None, None] * np.eye(1)

    basis = spatial_basis(skfem.MeshLine(np.linspace(-1, 1, 9)), "P2")
    rule = basis.quadrature(5)
    reference = skfem.Basis(basis.mesh, skfem.ElementLineP2(), quadrature=(rule.xi.T, rule.weights))

    def form(u: Any, v: Any, w: Any) -> FloatArray:
        x = w.x[0]
        slope = drift(0.2, x[..., None])[..., 0] - 0.5 * np.cos(x)
        rate = (reward(0.2, x[..., None]) - GAUGE.running) / GAUGE.temperature
        return -0.5 * (2 + np.sin(x)) * u.grad[0] * v.grad[0] + slope * u.grad[0] * v + rate * u * v

    K = exact_to(5, a_problem(1, diffusion=smooth), basis).K(0.2)
    exact = skfem.BilinearForm(form).assemble(reference)
    assert 1e-13 < relative(K, exact) < 1e-10  # seen, and small


def test_only_what_changes_is_assembled_anew():
    basis = spatial_basis(MESHES["tri"], "P2")
    calls = []

    def counted(problem: ControlProblem) -> MeshOperators:
        operators = MeshOperators(problem, basis, GAUGE)
        assemble = operators._assemble

        def spy(*arguments: Any) -> FloatArray:
            calls.append(arguments[0].shape)
            return assemble(*arguments)

        operators._assemble = spy  # type: ignore[method-assign]
        return operators

    def steady(t: Any, x: FloatArray) -> FloatArray:
        return -x + 0.1

    def reward_at_0(t: Any, x: FloatArray) -> FloatArray:
        return reward(0.0, x)

    frozen = counted(a_problem(2, drift=steady, diffusion=1.0, running_reward=reward_at_0))
    assert frozen.autonomous
    K = frozen.K(0.0)
    assert len(calls) == 3
    assert all(frozen.K(t) is K for t in (0.2, 0.9, 1.5))
    assert len(calls) == 3

    calls.clear()
    moving = counted(a_problem(2, diffusion=1.0, running_reward=reward_at_0))
    assert not moving.autonomous
    first = moving.K(0.1)
    second = moving.K(0.2)
    assert second is not first
    assert moving.K(0.2) is second
    assert len(calls) == 4
    fresh = MeshOperators(moving.problem, basis, GAUGE)
    assert relative(second, fresh.K(0.2)) < 1e-15
    assert np.array_equal(first.data, MeshOperators(moving.problem, basis, GAUGE).K(0.1).data)  # not overwritten
    assert second.indices is moving.M.indices or np.shares_memory(second.indices, moving.M.indices)


def test_no_reward_no_reaction():
    basis = spatial_basis(MESHES["tri"], "P2")
    gauge = replace(GAUGE, running=0.0)
    K = MeshOperators(a_problem(2, running_reward=None, diffusion=1.0), basis, gauge).K(0.0)
    assert np.abs(K @ np.ones(basis.n_dofs)).max() < 1e-13


def test_the_matrix_applied_to_a_smooth_function_is_the_generator_tested():
    basis = spatial_basis(skfem.MeshTri.init_tensor(np.linspace(-1, 1, 33), np.linspace(-1, 1, 33)), "P2")
    problem = a_problem(2)
    operators = MeshOperators(problem, basis, GAUGE)
    x = basis.nodes
    # f and g vanish with their first derivatives on the boundary, so nothing is lost by parts.
    bump = (1 - x[:, 0] ** 2) ** 2 * (1 - x[:, 1] ** 2) ** 2
    rule = basis.quadrature(12)
    points = rule.x.reshape(-1, 2)
    u, v = (1 - points[:, 0] ** 2), (1 - points[:, 1] ** 2)
    du, dv = -4 * points[:, 0] * u, -4 * points[:, 1] * v
    value, slope = u**2 * v**2, np.stack([du * v**2, u**2 * dv], -1)
    hessian = np.empty((len(points), 2, 2))
    hessian[:, 0, 0] = (12 * points[:, 0] ** 2 - 4) * v**2
    hessian[:, 1, 1] = (12 * points[:, 1] ** 2 - 4) * u**2
    hessian[:, 0, 1] = hessian[:, 1, 0] = du * dv
    generator = (
        (drift(0.4, points) * slope).sum(-1)
        + 0.5 * np.einsum("nij,nij->n", diffusion(0.4, points), hessian)
        + (reward(0.4, points) - GAUGE.running) / GAUGE.temperature * value
    )
    weight = (np.broadcast_to(rule.det, rule.x.shape[:2]) * rule.weights).ravel()
    assert bump @ operators.K(0.4) @ bump == pytest.approx(float((weight * generator * value).sum()), rel=1e-4)


@pytest.mark.parametrize("direct", [True, False])
def test_solvers_solve_with_and_without_prescribed_unknowns(direct: bool, monkeypatch: pytest.MonkeyPatch):
    basis = spatial_basis(MESHES["tri"], "P2")
    operators = MeshOperators(a_problem(2), basis, GAUGE)
    if not direct:
        monkeypatch.setattr("fem_hjb.reference.mesh_operators._ALWAYS_DIRECT", 0)
    assert operators.direct is direct
    assert ("LU" in operators.linear_solver) is direct
    K = operators.K(0.1)
    S = (operators.M - 0.01 * K).toarray()
    rhs = np.random.default_rng(0).standard_normal(basis.n_dofs)
    guess = np.zeros(basis.n_dofs)
    free = operators.solver(K, 0.01, NONE)(rhs, guess, 1e-12)
    np.testing.assert_allclose(S @ free, rhs, atol=1e-9)
    fixed = basis.boundary_dofs()
    bound = operators.solver(K, 0.01, fixed)(rhs, guess, 1e-12)
    np.testing.assert_allclose(bound[fixed], rhs[fixed], atol=1e-9)
    inner = np.setdiff1d(np.arange(basis.n_dofs), fixed)
    np.testing.assert_allclose((S @ bound)[inner], rhs[inner], atol=1e-9)
    assert (operators.factorisations, operators.iterations > 0) == ((2, False) if direct else (0, True))


def test_a_good_guess_saves_the_iteration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fem_hjb.reference.mesh_operators._ALWAYS_DIRECT", 0)
    operators = MeshOperators(a_problem(2), spatial_basis(MESHES["tri"], "P2"), GAUGE)
    K, exact = operators.K(0.1), np.arange(float(operators.M.shape[0]))
    solve = operators.solver(K, 0.01, NONE)
    np.testing.assert_allclose(solve(operators.M @ exact - 0.01 * (K @ exact), exact, 1e-8), exact, rtol=1e-12)
    assert operators.iterations == 0


def test_linear_solvers_that_fail_say_so(monkeypatch: pytest.MonkeyPatch):
    operators = MeshOperators(a_problem(2), spatial_basis(MESHES["tri"], "P2"), GAUGE)
    K, n = operators.K(0.1), operators.M.shape[0]
    nothing = operators.M.copy()
    nothing.data[:] = 0.0
    singular = operators.M.copy()
    with pytest.raises(ConvergenceError, match="could not be factored"):
        operators.solver(singular, 1.0, NONE)
    monkeypatch.setattr("fem_hjb.reference.mesh_operators._ALWAYS_DIRECT", 0)
    monkeypatch.setattr("fem_hjb.reference.mesh_operators._MAX_ITERATIONS", 2)
    with pytest.raises(ConvergenceError, match=r"BiCGStab did not reach .* in 2 iterations for"):
        operators.solver(K, 10.0, NONE)(np.ones(n), np.zeros(n), 1e-12)
    with pytest.raises(ConvergenceError, match="non-positive or non-finite diagonal"):
        operators.solver(operators.M, 2.0, NONE)


def test_bad_input():
    basis = spatial_basis(MESHES["tri"], "P2")
    late = a_problem(2, drift=lambda t, x: np.where((x > 0.9) & (np.asarray(t)[..., None] == 0.77), np.nan, -x))
    operators = MeshOperators(late, basis, GAUGE)
    operators.K(0.5)
    with pytest.raises(ProblemError, match=r"drift\(t, x\) is not finite"):
        operators.K(0.77)
    assert np.array_equal(operators.K(0.9).data, MeshOperators(late, basis, GAUGE).K(0.9).data)
