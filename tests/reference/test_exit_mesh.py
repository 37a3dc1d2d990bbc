"""Exit problems on meshes: discs, annuli and cubes, orders, tags, and the error bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skfem
from scipy.special import i0

import fem_hjb as fh
from fem_hjb.reference.exit_equation import ExitEquation
from fem_hjb.reference.exit_mesh import _on_finer
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.support.errors import ConvergenceError, DomainError, InfiniteValueError, ProblemError, SpaceError

st = fh.stationary


def still(x: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


def constant(number: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.full(x.shape[:-1], number)


def process(dim: int = 2, **more: Any) -> fh.ExitProblem:
    return fh.ExitProblem(**{"dim": dim, "temperature": 1.0, "drift": still, "diffusion": 1.0, **more})


def annulus(cells: int) -> Any:
    """1 < |x| < 2, with tags "inner" and "outer"."""
    flat = skfem.MeshTri.init_tensor(np.linspace(0, 1, cells + 1), np.linspace(0, 1, 4 * cells + 1))
    radius, angle = 1 + flat.p[0], 2 * np.pi * flat.p[1]
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)])
    _, first, of = np.unique(np.round(points.T, 9), axis=0, return_index=True, return_inverse=True)
    glued = skfem.MeshTri(np.ascontiguousarray(points[:, first]), of[flat.t])
    inner = {"inner": lambda x: np.hypot(*x) < 1.01, "outer": lambda x: np.hypot(*x) > 1.9}
    return glued.with_boundaries(inner)


def order(cells: list[int], errors: list[float]) -> float:
    return float(-np.polyfit(np.log(cells), np.log(errors), 1)[0])


def test_mean_exit_time_of_a_disc_has_the_order_of_its_edges() -> None:
    errors = []
    for level in (2, 3, 4):
        mesh = skfem.MeshTri.init_circle(level)
        found = st.exit_expectation_on_mesh(process(), mesh, source=constant(1.0), estimate=False)
        errors.append(abs(float(found.value([0.1, 0.2])) - (1 - 0.05) / 2))  # (R^2 - |x|^2) / d
    assert abs(order([4, 8, 16], errors) - 2.0) < 0.15
    assert errors[-1] < 2e-3


def test_hitting_probability_of_an_annulus() -> None:
    errors = []
    x = np.array([[1.5, 0.0], [0.0, 1.3], [-1.2, 0.9]])
    exact = np.log(np.hypot(*x.T)) / math.log(2)
    for cells in (4, 8, 16):
        found = st.exit_expectation_on_mesh(process(), annulus(cells), {"inner": 0.0, "outer": 1.0}, estimate=False)
        errors.append(float(np.abs(found.value(x) - exact).max()))
    assert abs(order([4, 8, 16], errors) - 2.0) < 0.15
    swapped = st.exit_expectation_on_mesh(process(), annulus(8), {"inner": 1.0, "outer": 0.0}, estimate=False)
    assert np.abs(swapped.value(x) - exact).max() > 0.1  # the test can tell one face from the other
    np.testing.assert_allclose(swapped.value(x), 1 - exact, atol=2 * errors[1])


def value(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(x[..., 0] + 2 * x[..., 1]))


def known() -> fh.ExitProblem:
    """v = sin(x + 2 y) on the square, by its r and g, at temperature 1/2, Lambda full, drift -x."""
    matrix = np.array([[1.0, 0.3], [0.3, 0.8]])
    k = np.array([1.0, 2.0])

    def reward(x: np.ndarray) -> np.ndarray:
        slope = np.cos(x @ k)[..., None] * k
        quadratic = np.einsum("...i,ij,...j->...", slope, matrix, slope)
        return -(-(x * slope).sum(-1) - 0.5 * value(x) * (k @ matrix @ k) + quadratic)

    more = {"drift": lambda x: -x, "diffusion": matrix, "running_reward": reward, "exit_reward": value}
    return process(temperature=0.5, **more)


@pytest.mark.parametrize(
    ("element", "mesh", "expected"),
    [
        ("P1", skfem.MeshTri, 2.0),
        ("P2", skfem.MeshTri, 3.0),
        ("P3", skfem.MeshTri, 4.0),
        ("Q1", skfem.MeshQuad, 2.0),
        ("Q2", skfem.MeshQuad, 3.0),
    ],
)
def test_elements_have_their_orders(element: str, mesh: Any, expected: float) -> None:
    errors = []
    x = np.random.default_rng(0).uniform(0, 1, (2000, 2))
    for level in (3, 4, 5):
        found = st.solve_exit_on_mesh(known(), mesh().refined(level), element=element, estimate=False)
        errors.append(float(np.sqrt(((found.value(x) - value(x)) ** 2).mean())))
    assert abs(order([8, 16, 32], errors) - expected) < 0.15


def test_the_error_bar_holds_and_policies_are_recovered() -> None:
    x = np.random.default_rng(0).uniform(0, 1, (2000, 2))
    found = st.solve_exit_on_mesh(known(), skfem.MeshTri().refined(4))
    exact = np.cos(x[:, :1] + 2 * x[:, 1:]) * [1.0, 2.0]
    off = np.linalg.norm(found.value(x) - value(x)) / np.linalg.norm(value(x))
    steered = np.linalg.norm(found.gradient(x) - exact) / np.linalg.norm(exact)
    assert found.status == "ok"
    estimate = found.error_estimate
    assert estimate is not None
    assert off / 1.5 < estimate.value < 5 * off
    assert steered / 2.0 < estimate.policy < 5 * steered
    np.testing.assert_allclose(found.policy(x), 2 * exact @ np.array([[1.0, 0.3], [0.3, 0.8]]), atol=0.03)


def test_both_forms_agree_on_a_mesh_and_small_temperatures_are_reached() -> None:
    mesh = skfem.MeshTri.init_circle(3)
    near = process(running_reward=constant(-1.0))
    linear = st.solve_exit_on_mesh(near, mesh, estimate=False)
    assert abs(linear.value([0.0, 0.0]) + math.log(i0(math.sqrt(2)))) < 5e-3
    basis = MeshBasis(mesh, "P2")
    equation = ExitEquation(near, basis, basis.boundary_dofs())
    by_newton = equation.newton(np.zeros(basis.n_dofs), 1.0)
    assert by_newton is not None
    assert np.abs(by_newton - linear.function.coefficients).max() < 1e-3
    cold = process(diffusion=0.02, temperature=0.02, running_reward=constant(-1.0))
    found = st.solve_exit_on_mesh(cold, skfem.MeshTri.init_circle(4), element="P3", estimate=False)
    assert found.stats["form"] == "value"
    # f = I_0(|x| q) / I_0(q), q = 2^{1/2} / 0.02
    assert abs(found.value([0.0, 0.0]) - 0.02 * (-math.sqrt(2) / 0.02 + 0.5 * math.log(2 * math.pi * 70.71))) < 8e-3


@pytest.mark.parametrize(("kind", "level"), [(skfem.MeshTet, 2), (skfem.MeshHex, 2)])
def test_tags_absorb_and_the_rest_reflects_in_three_dimensions(kind: Any, level: int) -> None:
    mesh = kind().refined(level).with_boundaries({"left": lambda x: x[0] == 0.0})
    found = st.solve_exit_on_mesh(process(3, running_reward=constant(-1.0)), mesh, absorbing="left")
    root = math.sqrt(2)
    x = np.random.default_rng(0).uniform(0, 1, (50, 3))
    exact = np.log(np.cosh(root * (1 - x[:, 0])) / math.cosh(root))
    np.testing.assert_allclose(found.value(x), exact, atol=1e-3)
    assert found.error_estimate is not None
    assert found.error_estimate.value < 1e-3


@pytest.mark.parametrize("kind", [skfem.MeshLine, skfem.MeshTri, skfem.MeshQuad, skfem.MeshTet, skfem.MeshHex])
def test_tags_are_found_again_on_the_finer_mesh(kind: Any) -> None:
    mesh = kind().refined(1).with_boundaries({"low": lambda x: x[0] == 0.0})
    fine = mesh.refined(1)
    facets = np.asarray(mesh.facets)[:, mesh.boundaries["low"]]
    (found,) = _on_finer(mesh, fine, {"low": facets}).values()
    assert (fine.p[0][found] == 0.0).all()
    assert found.shape[1] == facets.shape[1] * 2 ** (fine.p.shape[0] - 1)


MESH = skfem.MeshTri().refined(2)
TAGGED = MESH.with_boundaries({"left": lambda x: x[0] == 0.0})
REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "solve_exit_on_mesh needs an ExitProblem, got int": (ProblemError, lambda: st.solve_exit_on_mesh(3, MESH)),
    "mesh": (DomainError, lambda: st.solve_exit_on_mesh(process(), "no mesh")),
    "the mesh is of dimension 2, the problem has dim=3": (DomainError, lambda: st.solve_exit_on_mesh(process(3), MESH)),
    r"of \['left'\], got \['right'\]": (
        DomainError,
        lambda: st.solve_exit_on_mesh(process(), TAGGED, absorbing="right"),
    ),
    "absorbing must be tags": (DomainError, lambda: st.solve_exit_on_mesh(process(), TAGGED, absorbing=3)),
    "absorbing must name tags": (DomainError, lambda: st.solve_exit_on_mesh(process(), TAGGED, absorbing=[])),
    "must be of facets of the boundary": (
        DomainError,
        lambda: st.solve_exit_on_mesh(
            process(), MESH.with_boundaries({"a": lambda x: x[0] == 0.5}, boundaries_only=False), absorbing="a"
        ),
    ),
    "element": (SpaceError, lambda: st.solve_exit_on_mesh(process(), MESH, element="hermite")),
    "estimate must be True or False": (ConvergenceError, lambda: st.solve_exit_on_mesh(process(), MESH, estimate=1)),
    "within max_seconds": (ConvergenceError, lambda: st.solve_exit_on_mesh(process(), MESH, max_seconds=1e-6)),
    "needs h=": (ProblemError, lambda: st.exit_expectation_on_mesh(process(), MESH)),
    "h must be a callable": (ProblemError, lambda: st.exit_expectation_on_mesh(process(), MESH, 3.0)),
    "source must be a callable": (ProblemError, lambda: st.exit_expectation_on_mesh(process(), MESH, source=1.0)),
    "a number for each absorbing tag": (
        ProblemError,
        lambda: st.exit_expectation_on_mesh(process(), TAGGED, {"left": 1.0}, absorbing=["left", "b"]),
    ),
    "h at the tag 'left' must": (ProblemError, lambda: st.exit_expectation_on_mesh(process(), TAGGED, {"left": "a"})),
    "principal eigenvalue": (
        InfiniteValueError,
        lambda: st.solve_exit_on_mesh(process(running_reward=constant(10.0)), MESH),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    error, call = REFUSED[message]
    with pytest.raises(error, match=message):
        call()


def test_an_error_that_was_not_estimated_is_not_ok() -> None:
    found = st.solve_exit_on_mesh(process(), TAGGED, absorbing="left", estimate=False)
    assert found.status == "the error was not estimated (estimate=False)"
    assert found.error_estimate is not None
    assert math.isinf(found.error_estimate.value)


@pytest.mark.filterwarnings("ignore::fem_hjb.ToleranceWarning")
@pytest.mark.parametrize(("noise", "told"), [(0.1, False), (0.02, True)])
def test_rounding_decides_where_a_well_is_hardly_ever_left(noise: float, told: bool) -> None:
    mesh = skfem.MeshLine(np.linspace(-1.0, 1.0, 201)).with_boundaries(
        {"up": lambda x: x[0] > 0, "low": lambda x: x[0] < 0}
    )
    well = fh.ExitProblem(dim=1, temperature=1.0, drift=lambda x: -x, diffusion=noise)
    found = fh.stationary.exit_expectation_on_mesh(well, mesh, {"up": 1.0, "low": 0.0})
    assert (abs(found.value([0.0]) - 0.5) > 0.1) == told
    assert ("rounding: FAILED" in found.status) == told
    assert (found.status == "ok") != told


@pytest.mark.filterwarnings("ignore::fem_hjb.ToleranceWarning")
@pytest.mark.parametrize(("noise", "told"), [(0.3, False), (0.04, True)])
def test_a_part_of_the_boundary_whose_layer_is_not_resolved_is_told(noise: float, told: bool) -> None:
    """The mesh and a finer one agree that the process leaves where cells are large; it is a quarter by symmetry."""
    fine_on_the_right = np.concatenate([np.linspace(-1.0, 0.5, 9), np.linspace(0.5, 1.0, 17)[1:]])
    mesh = skfem.MeshQuad.init_tensor(fine_on_the_right, np.linspace(-1.0, 1.0, 13)).with_boundaries(
        {"right": lambda x: x[0] > 1 - 1e-9, "rest": lambda x: x[0] < 1 - 1e-9}
    )
    well = fh.ExitProblem(dim=2, temperature=1.0, drift=lambda x: -x, diffusion=noise)
    found = st.exit_expectation_on_mesh(well, mesh, {"right": 1.0, "rest": 0.0})
    assert found.error_estimate is not None
    assert found.error_estimate.value < 0.1
    off = abs(float(found.value([0.0, 0.0])) - 0.25)
    assert off > 0.2 if told else off < 1e-3
    assert ("exits: FAILED" in found.status) == told
