"""Orders on round domains: P2 has 3 on cells of second order, and 2 on the polygon or polyhedron of their corners.

The closed forms: mean exit times and their like (Poisson's equation), a committor of an annulus, log |x|, and the heat
equation of Brownian motion that is stopped at, or reflected in, a circle, by Bessel functions.
"""

from itertools import permutations, product

import numpy as np
import pytest
import skfem
from scipy.special import j0

import fem_hjb as fh
from fem_hjb.problems.cells import KINDS, is_curved
from fem_hjb.spaces.meshes import curved_mesh

BAND = 0.15


def polygon(mesh):
    """The mesh of the corners, with the same names."""
    kind = "tri" if mesh.dim() == 2 else "tet"
    straight = KINDS[kind](np.ascontiguousarray(mesh.p[:, : mesh.nvertices]), mesh.t)
    return straight.with_boundaries(mesh.boundaries) if mesh.boundaries else straight


SHAPES = {"curved": (lambda mesh: mesh, 3.0), "polygon": (polygon, 2.0)}


def error(basis, coefficients, exact):
    """Relative, in L2."""
    rule = basis.quadrature(2 * basis.degree + 2)
    weights, value, true = rule.weights * rule.det, coefficients[basis.cell_dofs] @ rule.phi, exact(rule.x)
    return np.sqrt((weights * (value - true) ** 2).sum() / (weights * true**2).sum())


def slope(sizes, errors):
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


def annulus(n, inner=0.5, uneven=0.0):
    """n cells across, 6 n round; nodes of edges halfway in radius and angle, or of what the angle is a function of."""
    flat = skfem.MeshTri1.init_tensor(np.linspace(0.0, 1.0, n + 1), np.linspace(0.0, 1.0, 6 * n + 1))
    across, around = np.rint(flat.p * [[n], [6 * n]]).astype(int)
    number = across * 6 * n + around % (6 * n)

    def placed(u):
        radius, angle = inner + (1 - inner) * u[0], 2 * np.pi * u[1]
        return radius * np.stack([np.cos(angle + uneven * np.sin(angle)), np.sin(angle + uneven * np.sin(angle))])

    p = np.empty((2, (n + 1) * 6 * n))
    p[:, number] = placed(flat.p)
    second = skfem.MeshTri2.from_mesh(flat)
    nodes = placed(second.p)[:, second.dofs.element_dofs].transpose(1, 2, 0)
    mesh = curved_mesh("tri", p, number[flat.t], nodes, "the annulus")
    between = (1 + inner) / 2
    return mesh.with_boundaries(
        {"inner": lambda x: np.hypot(*x) < between, "outer": lambda x: np.hypot(*x) > between}, boundaries_only=True
    )


def ball(n):
    """Eight tetrahedra, each cut edgewise into n^3 (Kuhn), and then made round, smoothly so in each."""
    corner = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    paths = [
        np.cumsum([corner, *(np.eye(3, dtype=int)[k] + 0 * corner for k in turn)], axis=0)
        for turn in permutations(range(3))
    ]
    x = np.concatenate(paths, axis=1).swapaxes(0, 1)
    x = x[((x[..., 0] >= x[..., 1]) & (x[..., 1] >= x[..., 2])).all(axis=1)]
    shares = np.stack([x[..., 0] - x[..., 1], x[..., 1] - x[..., 2], x[..., 2]], axis=-1)
    signs = np.array(list(product((1, -1), repeat=3)))
    p, t = np.unique((signs[:, None, None] * shares).reshape(-1, 3), axis=0, return_inverse=True)
    flat = skfem.MeshTet1(np.ascontiguousarray(p.T / n), np.ascontiguousarray(t.reshape(-1, 4).T))
    mesh = skfem.MeshTet2.from_mesh(flat)
    out, size = np.abs(mesh.p).sum(axis=0), np.maximum(np.linalg.norm(mesh.p, axis=0), 1e-300)
    return skfem.MeshTet2(np.ascontiguousarray(mesh.p * (1 + out**2 * (out / size - 1))), mesh.t)


def committor(x):
    """The chance to leave the annulus at its outer rim, with the inner one at 1/2."""
    return 1 + np.log(np.linalg.norm(x, axis=-1)) / np.log(2)


def brownian(dim):
    return fh.ExitProblem(dim=dim, temperature=1.0, drift=lambda x: 0 * x, diffusion=1.0)


def exp_in_ball(x):
    """(1 - |x|^2) exp(x_1), 0 at the sphere, and the source of which it is the expectation."""
    first, rest = x[..., 0], 1 - (x**2).sum(-1)
    return rest * np.exp(first), np.exp(first) * (2 * first + x.shape[-1] - 0.5 * rest)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dim", "sizes"), [(2, (3, 4, 5)), (3, (5, 7, 9))])
def test_expectations_until_the_exit_from_a_disc_and_a_ball(dim, sizes, shape):
    form, order = SHAPES[shape]
    errors = []
    for n in sizes:
        mesh = form(skfem.MeshTri2.init_circle(n) if dim == 2 else ball(n))
        found = fh.stationary.exit_expectation_on_mesh(
            brownian(dim), mesh, source=lambda x: exp_in_ball(x)[1], estimate=False
        )
        errors.append(error(found.function.basis, found.function.coefficients, lambda x: exp_in_ball(x)[0]))
    assert slope(0.5 ** np.array(sizes) if dim == 2 else 1 / np.array(sizes), errors) == pytest.approx(order, abs=BAND)


def linear_in_the_ball(mesh):
    """The errors of P1, of what loads wrong by a tenth of the longest edge make of it, and of the interpolant; and that
    edge."""
    solved = fh.stationary.exit_expectation_on_mesh(
        brownian(3), mesh, source=lambda x: exp_in_ball(x)[1], element="P1", estimate=False
    )
    basis, found = solved.function.basis, np.asarray(solved.function.coefficients)
    corners = mesh.p[:, mesh.t]
    longest = np.linalg.norm(corners[:, :, None] - corners[:, None], axis=0).max()
    exact = exp_in_ball(basis.nodes)[0]
    return *(error(basis, c, lambda x: exp_in_ball(x)[0]) for c in (found, (1 + longest / 10) * found, exact)), longest


def test_linear_elements_in_a_ball_are_of_order_two():
    """Which a function on few cells does not show yet, interpolated or not: 1.24 from 2 to 3 cells a radius, 1.90 from
    9 to 12. The ball that scikit-fem makes is flattened as it is refined: its longest edge is not halved but falls to
    0.65, and the error to 0.42, which is order 2 in that edge and looks like 1.26 in the number of refinements."""
    sizes = (2, 3, 9, 12)
    smooth = np.array([linear_in_the_ball(ball(n)) for n in sizes])
    early, late = ([slope(1 / np.array(sizes[k:][:2]), smooth[k:, j][:2]) for j in range(3)] for k in (0, 2))
    assert late[0] == pytest.approx(2.0, abs=BAND)
    assert late[2] == pytest.approx(2.0, abs=BAND)
    assert late[1] < 1.5  # loads that are wrong by so little would be seen
    assert early[0] == pytest.approx(1.24, abs=BAND)
    assert (np.abs(smooth[:, 0] / smooth[:, 2] - 0.85) < 0.1).all()  # at all sizes what interpolation does
    flattened = np.array([linear_in_the_ball(skfem.MeshTet2.init_ball(n)) for n in (2, 3)])
    assert flattened[1, 3] / flattened[0, 3] == pytest.approx(0.65, abs=0.01)
    assert slope(flattened[:, 3], flattened[:, 0]) == pytest.approx(2.0, abs=BAND)
    assert slope([2, 1], flattened[:, 0]) == pytest.approx(1.26, abs=BAND)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_committor_of_an_annulus(shape):
    form, order = SHAPES[shape]
    sizes, errors, slopes = (4, 8, 16), [], []
    for n in sizes:
        found = fh.stationary.exit_expectation_on_mesh(
            brownian(2), form(annulus(n)), {"inner": 0, "outer": 1}, estimate=False
        )
        basis = found.function.basis
        assert is_curved(basis.mesh) == (shape == "curved")
        errors.append(error(basis, found.function.coefficients, committor))
        angle = np.linspace(0.0, 2 * np.pi, 200)
        x = 0.99 * np.stack([np.cos(angle), np.sin(angle)], axis=1)[: 200 if shape == "curved" else 0]
        slopes.append(np.abs(found.gradient(x) - x / (x**2).sum(-1, keepdims=True) / np.log(2)).max(initial=0.0))
    assert slope(1 / np.array(sizes), errors) == pytest.approx(order, abs=BAND)
    assert shape == "polygon" or slopes[-1] < 2e-3


def test_where_the_order_of_p3_ends():
    """At that of the boundary: 4 on circles with nodes halfway, where P4 gains nothing, and less on uneven ones."""
    found = {}
    for element, uneven in (("P3", 0.0), ("P4", 0.0), ("P3", 0.4)):
        errors = []
        for n in (5, 10):
            solved = fh.stationary.exit_expectation_on_mesh(
                brownian(2), annulus(n, uneven=uneven), {"inner": 0, "outer": 1}, element=element, estimate=False
            )
            errors.append(error(solved.function.basis, solved.function.coefficients, committor))
        found[element, uneven] = slope([2, 1], errors)
    assert found["P3", 0.0] == pytest.approx(4.0, abs=BAND)
    assert found["P4", 0.0] == pytest.approx(4.0, abs=BAND)
    assert found["P3", 0.4] == pytest.approx(3.57, abs=BAND)


ZEROS = {"stopped": 2.404825557695773, "reflected": 3.8317059702075125}  # of J_0, and of its derivative
ALPHA, HORIZON = 0.5, 0.1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("end", ZEROS)
def test_the_heat_equation_in_a_disc(end, shape):
    """f = 1 + 0.8 exp(-z^2 (T - t) / 2) J_0(z |x|): natural conditions, and given values v = 0."""
    form, order = SHAPES[shape]
    zero = ZEROS[end]

    def value(t, x):
        return ALPHA * np.log(1 + 0.8 * np.exp(-(zero**2) * (HORIZON - t) / 2) * j0(zero * np.linalg.norm(x, axis=-1)))

    problem = fh.ControlProblem(
        dim=2,
        horizon=HORIZON,
        temperature=ALPHA,
        drift=lambda t, x: 0 * x,
        diffusion=1.0,
        terminal_reward=lambda x: value(HORIZON, x),
        initial_law=fh.Gaussian([0.0, 0.0], 0.02),
    )
    boundary = "natural" if end == "reflected" else lambda t, x: np.zeros(len(x))
    sizes, errors = (2, 3, 4), []
    for n in sizes:
        solution = fh.solve_on_mesh(problem, form(skfem.MeshTri2.init_circle(n)), boundary=boundary, steps=12)
        basis = solution.space.spatial
        f = np.asarray(solution.coefficients[0])
        v = solution.gauge.value(0.0, basis.nodes, f)
        errors.append(error(basis, v, lambda x: value(0.0, x)))
        x = np.array([[0.0, 0.0], [0.6, -0.3]])
        np.testing.assert_allclose(solution.value(0.0, x), value(0.0, x), atol=3 * errors[-1] + 1e-6)
    assert slope(0.5 ** np.array(sizes), errors) == pytest.approx(order, abs=BAND)


def turned(mesh):
    """By an eleventh of a radian: no node is where the disc is farthest along an axis."""
    turn = np.array([[np.cos(1 / 11), -np.sin(1 / 11)], [np.sin(1 / 11), np.cos(1 / 11)]])
    return skfem.MeshTri2(turn @ mesh.p, mesh.t)


def test_a_density_in_a_disc():
    """Reflected Brownian motion from a Gaussian: E J_0(z |X_T|) = exp(-z^2 (T + s^2) / 2); the mass stays."""
    zero = ZEROS["reflected"]
    problem = fh.ControlProblem(
        dim=2,
        horizon=0.2,
        temperature=1.0,
        drift=lambda t, x: 0 * x,
        diffusion=1.0,
        terminal_reward=lambda x: 0 * x[..., 0],
        initial_law=fh.Gaussian([0.0, 0.0], 0.02),
    )
    off = {}
    for shape, (form, _) in SHAPES.items():
        solved = fh.fokker_planck.solve(problem, mesh=form(turned(skfem.MeshTri2.init_circle(3))), rtol=1e-5)
        law = solved.law(0.2)
        assert solved.stats["face"] > 0.2  # of all of the rim, though none of it is on the box around it
        rule = law.basis.quadrature(8)
        mass = rule.weights * rule.det * (law.values[law.basis.cell_dofs] @ rule.phi)
        off[shape] = (mass * j0(zero * np.linalg.norm(rule.x, axis=-1))).sum() / np.exp(-(zero**2) * 0.22 / 2) - 1
        assert abs(law.mass - 1) < 1e-6
    assert abs(off["curved"]) < 3e-4
    assert abs(off["polygon"]) > 1.5e-3


def test_ground_states_in_a_disc():
    """Of a process reflected in the disc, earning x_1: the polygon pays another average."""
    problem = fh.ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=0.5,
        drift=lambda t, x: -x,
        diffusion=1.0,
        running_reward=lambda t, x: x[..., 0],
        terminal_reward=lambda x: 0 * x[..., 0],
        initial_law=fh.Gaussian([0.0, 0.0], 0.05),
    )
    mesh = skfem.MeshTri2.init_circle(2)
    curved = fh.stationary.ground_state_on_mesh(problem, mesh)
    fine = fh.stationary.ground_state_on_mesh(problem, skfem.MeshTri2.init_circle(4), estimate=False)
    straight = fh.stationary.ground_state_on_mesh(problem, polygon(mesh), estimate=False)
    assert curved.status == "ok"
    off = [abs(state.average_reward / fine.average_reward - 1) for state in (curved, straight)]
    assert off[0] < 1e-3
    assert off[1] > 2e-2
    assert curved.error_estimate.value < 5e-3


def test_error_bars_of_expectations_on_curved_meshes():
    """From the mesh refined once, whose facets keep their tags: within a factor of three of the truth."""
    ways = [(annulus(4), {"h": {"inner": 0, "outer": 1}}, committor)]
    ways.append((ball(2), {"source": lambda x: exp_in_ball(x)[1]}, lambda x: exp_in_ball(x)[0]))
    for mesh, what, exact in ways:
        found = fh.stationary.exit_expectation_on_mesh(brownian(mesh.dim()), mesh, **what)
        true = error(found.function.basis, found.function.coefficients, exact)
        assert true / 3 < found.error_estimate.value < 3 * true
