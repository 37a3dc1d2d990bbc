"""The generator at the nodes of a box: against derivatives, its adjoint, its parts, its inverses, its open faces."""

from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, constant_gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_background import quadratic_gauge
from fem_hjb.reference.box_operators import BoxOperators, Fields, SeparableInverse, check_elliptic
from fem_hjb.spaces.axes import apply_sum
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, EllipticityError
from tests.support.exactness import space_derivative, time_derivative

ALPHA = 0.6
CONSTANTS = Gauge(temperature=ALPHA, horizon=1.0, terminal=0.2, running=0.1)
FULL = np.array([[1.0, 0.3, 0.1], [0.3, 0.7, -0.2], [0.1, -0.2, 0.9]])
NONE = np.zeros(0, dtype=np.int64)


def in_space(t: Any, x: FloatArray) -> FloatArray:
    """A full diffusion matrix that depends on everything."""
    d = x.shape[-1]
    low = np.broadcast_to(np.linalg.cholesky(FULL[:d, :d]), (*x.shape[:-1], d, d)).copy()
    low[..., 0, 0] += 0.2 * np.sin(x[..., -1] + np.asarray(t))
    low[..., -1, 0] += 0.2 * np.cos(x[..., 0])
    return low @ np.swapaxes(low, -1, -2)


DIFFUSIONS: dict[str, Any] = {
    "number": lambda d: 0.8,
    "diagonal": lambda d: np.array([0.5, 1.0, 0.7])[:d],
    "full": lambda d: FULL[:d, :d],
    "in space": lambda d: in_space,
}


def problem_in(d: int, diffusion: Any = 0.8, drift: Any = None, **more: Any) -> ControlProblem:
    def turning(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray((1 + np.asarray(t)[..., None]) * (0.4 * np.roll(x, 1, -1) - x) + 0.3 * np.sin(x))

    given = {
        "dim": d,
        "horizon": 1.0,
        "temperature": ALPHA,
        "drift": turning if drift is None else drift,
        "diffusion": diffusion,
        "terminal_reward": lambda x: -(x**2).sum(-1),
        "running_reward": lambda t, x: np.asarray(t) * np.cos(x).sum(-1),
        "initial_law": Gaussian(np.zeros(d), 0.1),
    }
    return ControlProblem(**{**given, **more})


def basis_in(d: int, degree: int = 5, cells: int = 2, width: float = 1.0) -> SpectralBasis:
    lines = [SpectralLine(np.linspace(-width - 0.1 * k, width, cells + k % 2 + 1), degree) for k in range(d)]
    return SpectralBasis(lines)


def flat_at_faces(basis: SpectralBasis) -> Any:
    """A smooth function whose normal derivative vanishes on every face, as (t, x) -> (...)."""
    lower, upper = basis.box.bounds

    def u(t: Any, x: FloatArray) -> FloatArray:
        phase = np.pi * (x - lower) / (upper - lower)
        return np.asarray(
            1.5 + np.cos(phase).prod(-1) + 0.3 * np.cos(2 * phase[..., 0]) * np.exp(np.cos(phase[..., -1]))
        )

    return u


def generator(problem: ControlProblem, background: Any, t: float, x: FloatArray, u: Any) -> FloatArray:
    """b u' + Lambda u'' / 2 + rate u by differences of order 8."""

    def slope(t: Any, x: FloatArray) -> FloatArray:
        return space_derivative(u, t, x, 2e-2)

    b, Lambda = problem.b(t, x), problem.Lambda(t, x)
    pushed = np.einsum("nij,nj->ni", Lambda, background.guess_gradient(t, x)) / problem.temperature
    rate = background.rate(t, x, problem.r(t, x), b, Lambda)
    hessian = space_derivative(slope, t, x, 2e-2)
    return np.asarray(
        ((b + pushed) * slope(t, x)).sum(-1) + 0.5 * np.einsum("nij,nij->n", Lambda, hessian) + rate * u(t, x)
    )


def random(shape: tuple[int, ...], seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=shape)


# What L does


@pytest.mark.parametrize("kind", DIFFUSIONS)
@pytest.mark.parametrize(("d", "degree"), [(1, 14), (2, 12), (3, 10)])
def test_smooth_functions_are_differentiated(d: int, degree: int, kind: str) -> None:
    problem, basis = problem_in(d, DIFFUSIONS[kind](d)), basis_in(d, degree)
    u = flat_at_faces(basis)
    operators = BoxOperators(problem, basis, CONSTANTS)
    t, x = 0.3, basis.nodes[:: 7 if d == 3 else 1]
    expected = generator(problem, CONSTANTS, t, x, u)
    nodal = u(t, basis.nodes).reshape(basis.shape)
    fields = operators.fields(t)
    error = operators.apply(fields, nodal).ravel()[:: 7 if d == 3 else 1] - expected
    assert np.abs(error).max() < (2e-6 if d == 3 else 1e-7) * np.abs(expected).max()
    # the coefficients of another time are seen
    other = operators.apply(operators.fields(0.4), nodal).ravel()[:: 7 if d == 3 else 1] - expected
    assert np.abs(other).max() > 1e-2 * np.abs(expected).max()


def test_errors_fall_spectrally_unless_mixed_derivatives_are_lost() -> None:
    problem, degrees = problem_in(2, FULL[:2, :2]), np.array([4, 6, 8, 10])
    errors, broken = [], []
    for degree in degrees.tolist():
        basis = basis_in(2, degree)
        operators, u = BoxOperators(problem, basis, CONSTANTS), flat_at_faces(basis)
        expected = generator(problem, CONSTANTS, 0.3, basis.nodes, u).reshape(basis.shape)
        fields, nodal = operators.fields(0.3), u(0.3, basis.nodes).reshape(basis.shape)
        errors.append(np.abs(operators.apply(fields, nodal) - expected).max())
        diagonal = Fields(fields.drift, fields.rate, np.diag(np.diag(fields.diffusion)))
        broken.append(np.abs(operators.apply(diagonal, nodal) - expected).max())
    decay = [-np.polyfit(degrees, np.log(e), 1)[0] * 2 for e in (errors, broken)]
    assert decay[0] > np.log(8)  # per two degrees
    assert abs(decay[1]) < 0.2


def any_quadratic(constants: Gauge, d: int) -> QuadraticGauge:
    """A moving quadratic that solves no equation at all."""
    rng = np.random.default_rng(0)
    P = 0.15 * rng.normal(size=(3, d, d))
    return QuadraticGauge(
        constants=constants,
        centre=0.1 * np.ones(d),
        P=P + np.swapaxes(P, 1, 2) + 0.5 * np.eye(d),
        p=0.2 * rng.normal(size=(3, d)),
        c=rng.normal(size=3),
    )


@pytest.mark.parametrize(
    ("name", "d", "degree", "keywords"),
    [
        ("mixture-diffusion", 1, 18, {"beta": (1.0, 3.0)}),
        ("brownian-mixture", 1, 18, {}),
        ("lq", 1, 18, {}),
        ("mixture-diffusion", 2, 16, {"beta": (1.0, 3.0)}),
        ("brownian-mixture", 2, 16, {"Lambda": [[1.0, 0.4], [0.4, 0.8]]}),
        ("lq", 2, 16, {}),
        ("lq", 3, 12, {}),
    ],
)
def test_exact_values_solve_the_equation_of_the_unknown(name: str, d: int, degree: int, keywords: Any) -> None:
    """u = exp((v - v0) / alpha) with an exact v and any quadratic v0: d_t u + L u = 0 inside the box."""
    problem = zoo.get(name, d, **keywords)
    quadratic = any_quadratic(Gauge(temperature=problem.temperature, horizon=1.0, terminal=0.3, running=-0.2), d)
    assert problem.exact is not None
    exact = problem.exact

    def u(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(np.exp((exact.value(t, x) - quadratic.guess(t, x)) / problem.temperature))

    basis = SpectralBasis([SpectralLine(np.linspace(-1.2, 1.3, 2 if d == 3 else 3), degree) for _ in range(d)])
    operators = BoxOperators(problem, basis, quadratic)
    t, x = 0.4, basis.nodes
    inside = ~((x == basis.box.bounds[0]) | (x == basis.box.bounds[1])).any(axis=1)
    change = time_derivative(u, np.full(len(x), t), x, 1e-2)
    fields, nodal = operators.fields(t), u(t, x).reshape(basis.shape)

    def residual(fields: Fields) -> float:
        return float(np.abs(change + operators.apply(fields, nodal).ravel())[inside].max() / np.abs(change).max())

    assert residual(fields) < 1e-7
    assert residual(Fields(1.001 * fields.drift, fields.rate, fields.diffusion)) > 1e-5
    assert residual(Fields(fields.drift, 1.001 * fields.rate, fields.diffusion)) > 1e-4
    assert residual(Fields(fields.drift, fields.rate, 1.001 * fields.diffusion)) > 1e-4


# Parts


@pytest.mark.parametrize("kind", DIFFUSIONS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_separable_part_and_remainder_add_up(d: int, kind: str) -> None:
    problem, basis = problem_in(d, DIFFUSIONS[kind](d)), basis_in(d, 4)
    operators, u = BoxOperators(problem, basis, CONSTANTS), random(basis.shape)
    frozen = operators.separable(operators.fields(0.8))
    for t in (0.8, 0.1):  # also with the separable part of another time
        fields = operators.fields(t)
        left = operators.remainder(fields, frozen)
        whole = operators.apply(fields, u)
        parts = apply_sum(frozen.matrices, u) + operators.apply(left, u)
        np.testing.assert_allclose(parts, whole, atol=1e-12 * np.abs(whole).max())


def test_what_is_separable_is_seen() -> None:
    basis = basis_in(2)

    def alone(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(np.sin(x) - x)

    def together(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(-x + 1e-6 * x[..., ::-1])

    def diagonal(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray((1 + 0.3 * np.sin(x))[..., None] * np.eye(2))

    def seen(problem: ControlProblem) -> bool:
        operators = BoxOperators(problem, basis, CONSTANTS)
        fields = operators.fields(0.0)
        left = operators.remainder(fields, operators.separable(fields))
        pairs = [(left.drift, fields.drift), (left.rate, fields.rate), (left.diffusion, fields.diffusion)]
        return all(np.abs(part).max() <= 1e-11 * max(np.abs(whole).max(), 1e-300) for part, whole in pairs)

    def product(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(x[..., 0] * x[..., 1])

    assert seen(problem_in(2, drift=alone))
    assert seen(problem_in(2, diagonal, drift=alone))
    assert not seen(problem_in(2, drift=together))
    assert not seen(problem_in(2, FULL[:2, :2], drift=alone))
    assert not seen(problem_in(2, in_space, drift=alone))
    assert not seen(problem_in(2, drift=alone, running_reward=product))


def test_what_does_not_depend_on_time_is_evaluated_once() -> None:
    basis = basis_in(1)

    def still(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(-x)

    def late(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(-x * np.where(np.asarray(t) > 0.9, 2.0, 1.0)[..., None])

    def operators(drift: Any, **more: Any) -> BoxOperators:
        return BoxOperators(problem_in(1, drift=drift, **{"running_reward": None, **more}), basis, CONSTANTS)

    quiet = operators(still)
    assert quiet.autonomous
    assert quiet.fields(0.1) is quiet.fields(0.7)
    for moving in (
        operators(late),
        operators(still, running_reward=lambda t, x: np.asarray(t) + 0 * x[..., 0]),
        operators(still, diffusion=lambda t, x: (1 + np.asarray(t)[..., None, None]) * np.ones((*x.shape, 1))),
    ):
        assert not moving.autonomous
        early = moving.fields(0.1)
        assert moving.fields(0.1) is early
        assert moving.fields(1.0) is not early
    lq = zoo.get("lq", 1)
    quadratic = quadratic_gauge(lq, Box([-3.0], [3.0]), CONSTANTS)
    assert quadratic is not None
    assert BoxOperators(lq, basis, CONSTANTS).autonomous
    assert not BoxOperators(lq, basis, quadratic).autonomous  # its drift holds the moving v0


# Inverses


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_inverse_of_the_separable_part(d: int) -> None:
    operators = BoxOperators(problem_in(d, FULL[:d, :d]), basis_in(d, 4), CONSTANTS)
    parts = operators.separable(operators.fields(0.3))
    inverse = SeparableInverse(operators, parts)
    r = random(operators.shape)
    for shift in (0.01, 0.2, 3.0):
        solved = inverse(r, shift)
        np.testing.assert_allclose(solved - shift * apply_sum(parts.matrices, solved), r, atol=1e-10)


@pytest.mark.parametrize("strong", [False, True])
def test_the_solver_solves(strong: bool) -> None:
    """With drifts whose eigenvectors are of no use, too: the preconditioner is then another one."""

    def inwards(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(-2.0 * x + 0.1 * x[..., ::-1])

    problem = problem_in(2, 0.5 * FULL[:2, :2], drift=inwards)
    operators = BoxOperators(problem, basis_in(2, 8, 8 if strong else 3, 6.0 if strong else 1.5), CONSTANTS)
    fields, fixed = operators.fields(0.3), np.array([0, 5, 17])
    parts = operators.separable(fields)
    inverse = SeparableInverse(operators, parts)
    rhs, shift = random((operators.weights.size,)), 0.01
    r = rhs.reshape(operators.shape)
    rough = inverse(r, shift)
    missed = np.linalg.norm(rough - shift * apply_sum(parts.matrices, rough) - r) / np.linalg.norm(r)
    assert missed > 1e-3 if strong else missed < 1e-9
    u = operators.solver(fields, shift, inverse, fixed)(rhs, np.zeros_like(rhs), 1e-9)
    residual = u - shift * operators.apply(fields, u.reshape(operators.shape)).ravel() - rhs
    residual[fixed] = u[fixed] - rhs[fixed]
    assert np.linalg.norm(residual) < 1e-8 * np.linalg.norm(rhs)
    np.testing.assert_array_equal(u[fixed], rhs[fixed])
    assert 0 < operators.iterations < 200


def test_a_solver_that_does_not_converge_says_so() -> None:
    operators = BoxOperators(problem_in(2, FULL[:2, :2]), basis_in(2), CONSTANTS)
    fields = operators.fields(0.3)
    solve = operators.solver(fields, 0.1, SeparableInverse(operators, operators.separable(fields)), NONE)
    with pytest.raises(ConvergenceError, match=r"GMRES did not reach a relative residual of 1\.0e-30"):
        solve(random((operators.weights.size,)), np.zeros(operators.weights.size), 1e-30)


# Faces


def faces(drift: Any, d: int = 1, diffusion: Any = 0.8, background: Any = CONSTANTS) -> BoxOperators:
    truncated = np.ones((2, d), dtype=np.bool_)
    return BoxOperators(problem_in(d, diffusion, drift=drift), basis_in(d), background, truncated=truncated)


def is_open(operators: BoxOperators, axis: int = 0) -> tuple[bool, bool]:
    rows, natural = operators.second[axis], operators.basis.lines[axis].laplacian
    np.testing.assert_array_equal(rows[1:-1], natural[1:-1])
    return not rows[0].any(), not rows[-1].any()


def test_faces_are_open_where_the_drift_points_inwards_at_all_times() -> None:
    def moving(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray((0.5 - np.asarray(t))[..., None] * np.ones(x.shape))

    assert is_open(faces(lambda t, x: -x)) == (True, True)
    assert is_open(faces(lambda t, x: x)) == (False, False)
    assert is_open(faces(lambda t, x: np.ones(x.shape))) == (True, False)
    assert is_open(faces(lambda t, x: -np.ones(x.shape))) == (False, True)
    assert is_open(faces(moving)) == (False, False)
    turning = faces(lambda t, x: np.stack([-x[..., 0], x[..., 0] - 0.5 * x[..., 1]], -1), 2, FULL[:2, :2])
    assert is_open(turning) == (True, True)
    assert is_open(turning, 1) == (False, False)  # not on the whole of the face
    plain = BoxOperators(problem_in(1, drift=lambda t, x: -x), basis_in(1), CONSTANTS)
    np.testing.assert_array_equal(plain.second[0], plain.basis.lines[0].laplacian)


def test_the_drift_of_the_unknown_counts_not_that_of_the_process() -> None:
    lq = zoo.get("lq", 1, A=0.3, R=4.0, Q=4.0, cov=1.0)
    basis, box = SpectralBasis([SpectralLine([-3.0, 0.0, 3.0], 6)]), Box([-3.0], [3.0])
    constants = constant_gauge(lq, basis.nodes, [0.0, 1.0])
    quadratic = quadratic_gauge(lq, box, constants)
    truncated = np.ones((2, 1), dtype=np.bool_)
    assert quadratic is not None
    assert is_open(BoxOperators(lq, basis, constants, truncated=truncated)) == (False, False)
    assert is_open(BoxOperators(lq, basis, quadratic, truncated=truncated)) == (True, True)


def test_nothing_diffuses_across_an_open_face() -> None:
    operators = faces(lambda t, x: -x, 2, FULL[:2, :2])
    fields, u = operators.fields(0.0), random(operators.shape)
    only = Fields(np.zeros_like(fields.drift), np.zeros_like(fields.rate), fields.diffusion)
    result = operators.apply(only, u)
    along = 0.5 * FULL[1, 1] * u @ operators.second[1].T
    np.testing.assert_allclose(result[[0, -1]], along[[0, -1]], atol=1e-12)  # no mixed ones either
    assert np.abs(result[1:-1] - along[1:-1]).max() > 1.0


# Norms, and what is refused


def test_norms_are_weighted_where_the_box_is() -> None:
    operators = BoxOperators(problem_in(2), basis_in(2), CONSTANTS)
    assert operators.norm(np.full(operators.shape, -3.0)) == pytest.approx(3.0, rel=1e-12)
    corner = np.zeros(operators.shape)
    corner[0, 0] = 1.0
    middle = np.zeros(operators.shape)
    middle[tuple(n // 2 for n in operators.shape)] = 1.0
    assert operators.norm(corner) < 1e-2 * operators.norm(middle)


def test_a_diffusion_that_is_not_elliptic_is_refused_with_place() -> None:
    x = np.array([[0.0, 1.0], [2.0, 3.0]])
    Lambda = np.stack([np.eye(2), np.diag([1.0, -0.5])])
    with pytest.raises(
        EllipticityError, match=r"at 1 of 2 nodes of the box, worst at t=0.25, x=\[2.0, 3.0\], where.*-0.5"
    ):
        check_elliptic(Lambda, x, 0.25)
    check_elliptic(Lambda[:1], x[:1], 0.25)

    def fading(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray((0.5 - x[..., 0])[..., None, None] * np.eye(1))

    with pytest.raises(EllipticityError, match=r"smallest eigenvalue is -0.5"):
        BoxOperators(problem_in(1, fading, initial_law=Gaussian([-2.0], 1e-3)), basis_in(1), CONSTANTS).fields(0.0)
