"""S + N of a panel against the equation for polynomials, which the grid differentiates exactly; faces; norms."""

from typing import Any

import numpy as np
import pytest

from fem_hjb.paths.extent import Reach
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge, QuadraticGauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_coefficients import Coefficients, Table, by_field, inside, lobatto
from fem_hjb.reference.box_panel import Equation, Grid, Operators
from fem_hjb.spaces.axes import apply_sum
from fem_hjb.support.checks import FloatArray
from tests.support.grids import grid_on

ALPHA = 0.6
T = 1.0
S0, S1 = 0.2, 0.5
COUNT = 5
CONSTANTS = Gauge(temperature=ALPHA, horizon=T, terminal=0.2, running=0.1)
FULL = np.array([[1.0, 0.3, 0.1], [0.3, 0.7, -0.2], [0.1, -0.2, 0.9]])


def moving(t: Any, x: FloatArray) -> FloatArray:
    """A full Lambda, quadratic in time and in place."""
    d = x.shape[-1]
    low = np.zeros((*x.shape, d))
    low[...] = np.linalg.cholesky(FULL[:d, :d])
    low[..., 0, 0] += 0.2 * np.asarray(t) + 0.1 * x[..., -1]
    low[..., -1, 0] += 0.2 * x[..., 0]
    return low @ np.swapaxes(low, -1, -2)


def resting(t: Any, x: FloatArray) -> FloatArray:
    return moving(0.3, x)


DIFFUSIONS: dict[str, Any] = {
    "number": lambda d: 0.8,
    "diagonal": lambda d: np.array([0.5, 1.0, 0.7])[:d],
    "full": lambda d: FULL[:d, :d],
    "in space": lambda d: resting,
    "in space and time": lambda d: moving,
}


def turning(t: Any, x: FloatArray) -> FloatArray:
    return np.asarray((1 + np.asarray(t)[..., None]) * (0.4 * np.roll(x, 1, -1) - x) + 0.3 * x**2)


def reward(t: Any, x: FloatArray) -> FloatArray:
    return np.asarray(np.asarray(t) ** 2 * x.prod(-1) - x[..., 0])


def problem_in(d: int, diffusion: Any = 0.8, drift: Any = turning, **more: Any) -> ControlProblem:
    given = {
        "dim": d,
        "horizon": T,
        "temperature": ALPHA,
        "drift": drift,
        "diffusion": diffusion,
        "terminal_reward": lambda x: -(x**2).sum(-1),
        "running_reward": reward,
        "initial_law": Gaussian(np.zeros(d), 0.1),
    }
    return ControlProblem(**{**given, **more})


def background_in(d: int) -> QuadraticGauge:
    """A quadratic that moves linearly in time and solves no equation."""
    rng = np.random.default_rng(0)
    P = 0.15 * rng.normal(size=(2, d, d))
    return QuadraticGauge(
        constants=CONSTANTS,
        centre=0.1 * np.ones(d),
        P=P + np.swapaxes(P, 1, 2),
        p=0.2 * rng.normal(size=(2, d)),
        c=rng.normal(size=2),
    )


def reach_in(d: int, scale: float = 0.5) -> Reach:
    ones = np.ones((9, d))
    return Reach(median=0.1 * ones, scale=scale * np.stack([ones, ones]), power=np.ones((2, 9, d)))


def grid_in(d: int, degree: int = 4, width: float = 1.0) -> Grid:
    edges = [np.array([-1.1, -0.3, 0.2, 1.0][k % 2 :]) * width - 0.1 * k for k in range(d)]
    return grid_on(edges, degree, [reach_in(d)], 0.5, 0.8)


def operators_of(
    problem: ControlProblem,
    grid: Grid,
    *,
    linear: bool = False,
    background: Any = CONSTANTS,
    open_: bool = False,
    count: int = COUNT,
) -> Operators:
    times = T - inside(S0, S1, lobatto(count))
    coefficients = Coefficients(problem, background, linear)
    values = np.stack([coefficients.at(float(t), grid.nodes) for t in times]).reshape(count, -1, *grid.shape)
    truncated = np.full((2, grid.dim), open_)
    box = Box(*np.array([line.bounds for line in grid.lines]).T)
    equation = Equation(problem, background, linear, box, truncated, (reach_in(grid.dim),), (), 1e-3)
    return Operators.of(equation, grid, Table(S0, S1, by_field(values)), np.zeros(grid.shape))


# A polynomial, its gradient and its second derivatives


def polynomial(x: FloatArray) -> FloatArray:
    return np.asarray(2 + x[..., 0] ** 3 + x.prod(-1) - 0.5 * x[..., -1] ** 4 + x[..., 0] * x[..., -1] ** 2)


def differentiated(x: FloatArray, e: float = 1e-2) -> tuple[FloatArray, FloatArray]:
    """By central differences of order 6, exact for this degree."""
    d = x.shape[-1]
    weights = {1: 0.75, 2: -0.15, 3: 1 / 60}

    def gradient(at: FloatArray) -> FloatArray:
        return np.stack(
            [
                sum(w * (polynomial(at + k * e * axis) - polynomial(at - k * e * axis)) for k, w in weights.items()) / e
                for axis in np.eye(d)
            ],
            -1,
        )

    hessian = [
        sum(w * (gradient(x + k * e * axis) - gradient(x - k * e * axis)) for k, w in weights.items()) / e
        for axis in np.eye(d)
    ]
    return gradient(x), np.stack(hessian, -1)


def equation_at(problem: ControlProblem, background: Any, s: float, x: FloatArray, linear: bool) -> FloatArray:
    """The right-hand side at the polynomial, from the problem itself."""
    t = T - s
    b, Lambda, w = problem.b(t, x), problem.Lambda(t, x), polynomial(x)
    slope, hessian = differentiated(x)
    b = b + np.einsum("nij,nj->ni", Lambda, background.guess_gradient(t, x)) / ALPHA
    rate = background.rate(t, x, problem.r(t, x), problem.b(t, x), Lambda)
    result = (b * slope).sum(-1) + 0.5 * np.einsum("nij,nij->n", Lambda, hessian)
    if linear:
        return np.asarray(result + rate * w)
    return np.asarray(result + ALPHA * rate + np.einsum("ni,nij,nj->n", slope, Lambda, slope) / (2 * ALPHA))


def interior(grid: Grid) -> FloatArray:
    """Nodes inside the box, whose second derivatives no condition at a face changes."""
    lower, upper = (np.array([line.bounds[side] for line in grid.lines]) for side in range(2))
    return np.asarray(((grid.nodes > lower) & (grid.nodes < upper)).all(axis=1))


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "value"])
@pytest.mark.parametrize(("d", "kind"), [*((d, kind) for d in (1, 2) for kind in DIFFUSIONS), (3, "in space and time")])
def test_the_two_parts_add_up_to_the_equation(d: int, kind: str, linear: bool) -> None:
    problem, background, grid = problem_in(d, DIFFUSIONS[kind](d)), background_in(d), grid_in(d)
    operators = operators_of(problem, grid, linear=linear, background=background)
    w, inner = polynomial(grid.nodes).reshape(grid.shape), interior(grid)

    def missed(s: float, at: float) -> float:
        whole = apply_sum(operators.separable, w) + operators.remainder(s, w)
        expected = equation_at(problem, background, at, grid.nodes, linear)
        return float(np.abs(whole.ravel() - expected)[inner].max() / np.abs(expected).max())

    for s in (S0, 0.29, 0.35, S1):
        assert missed(s, s) < 1e-8
    assert missed(0.3, 0.31) > 1e-4  # times matter


def test_what_is_lost_is_seen() -> None:
    """The same comparison of equations without a mixed derivative, the reward, the square, the drift of v0."""
    problem, background, grid = problem_in(2, moving), background_in(2), grid_in(2)
    w, inner = polynomial(grid.nodes).reshape(grid.shape), interior(grid)
    expected = equation_at(problem, background, 0.3, grid.nodes, False)

    def missed(own: Operators) -> float:
        whole = apply_sum(own.separable, w) + own.remainder(0.3, w)
        return float(np.abs(whole.ravel() - expected)[inner].max() / np.abs(expected).max())

    def diagonal(t: Any, x: FloatArray) -> FloatArray:
        return moving(t, x) * np.eye(2)

    assert missed(operators_of(problem, grid, background=background)) < 1e-8
    for broken in (
        operators_of(problem_in(2, diagonal), grid, background=background),
        operators_of(problem_in(2, moving, running_reward=None), grid, background=background),
        operators_of(problem, grid, background=CONSTANTS),
        operators_of(problem, grid, background=background, linear=True),
        operators_of(problem, grid, background=background, count=1),
    ):
        assert missed(broken) > 1e-3


@pytest.mark.parametrize("d", [1, 2, 3])
def test_mostly_the_separable_part_is_the_stiff_one(d: int) -> None:
    """Where drift and rate are sums over axes and Lambda is constant and diagonal nothing is left at the middle."""
    problem = problem_in(d, DIFFUSIONS["diagonal"](d), lambda t, x: x**2 - x, running_reward=lambda t, x: x.sum(-1))
    grid = grid_in(d)
    own = operators_of(problem, grid, linear=True)
    u = np.random.default_rng(1).standard_normal(grid.shape)
    whole = apply_sum(own.separable, u)
    assert np.abs(own.remainder(0.35, u)).max() < 1e-10 * np.abs(whole).max()
    other = operators_of(problem_in(d, DIFFUSIONS["diagonal"](d)), grid, linear=True)
    assert np.abs(other.remainder(0.22, u)).max() > 1e-3


def rows_of(own: Operators) -> FloatArray:
    return np.stack([own.table.row(k) for k in range(COUNT)])


@pytest.mark.parametrize("kind", ["in space", "in space and time"])
def test_what_is_left_of_a_diffusion_is_never_much_larger_than_what_is_taken(kind: str) -> None:
    """So that exponentials damp what is treated explicitly."""
    grid = grid_in(3)
    own = operators_of(problem_in(3, DIFFUSIONS[kind](3)), grid)
    for k, taken in enumerate(own._taken):
        left = rows_of(own)[:, own._upper[k, k]]
        assert taken.min() > 0
        assert (left < 0.7 * grid.along(taken, k) + 1e-12).all()


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("kind", DIFFUSIONS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_table_can_be_had_back(d: int, kind: str, linear: bool) -> None:
    problem, grid = problem_in(d, DIFFUSIONS[kind](d)), grid_in(d)
    own = operators_of(problem, grid, linear=linear)
    times = T - inside(S0, S1, lobatto(COUNT))
    whole = np.stack([Coefficients(problem, CONSTANTS, linear).at(float(t), grid.nodes) for t in times])
    before = rows_of(own)
    whole = whole.reshape(before.shape)
    np.testing.assert_allclose([own.coefficients(k) for k in range(COUNT)], whole, atol=1e-12)
    assert np.abs(before - whole).max() > 1e-2
    own.coefficients(1)[:] = 0.0
    np.testing.assert_array_equal(rows_of(own), before)


def test_a_panel_made_again_from_its_own_coefficients_is_the_same() -> None:
    problem, grid = problem_in(2, moving), grid_in(2)
    own = operators_of(problem, grid)
    values = np.stack([own.coefficients(k) for k in range(COUNT)])
    again = Operators(
        grid, Table(S0, S1, by_field(values)), None, np.zeros((2, 2), dtype=np.bool_), ALPHA, False, np.ones(2)
    )
    for one, other in zip(own.separable, again.separable, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)
    w = polynomial(grid.nodes).reshape(grid.shape)
    np.testing.assert_allclose(own.remainder(0.3, w), again.remainder(0.3, w), atol=1e-10)


# Faces


def faces(
    drift: Any,
    d: int = 1,
    truncated: Any = None,
    background: Any = CONSTANTS,
    begun: Any = None,
    diffusion: Any = None,
) -> Operators:
    grid = grid_in(d)
    problem = problem_in(d, FULL[:d, :d] if diffusion is None else diffusion, drift, running_reward=None)
    coefficients = Coefficients(problem, background, False)
    values = np.stack([coefficients.at(t, grid.nodes) for t in (0.8, 0.65, 0.5)]).reshape(3, -1, *grid.shape)
    truncated = np.ones((2, d), dtype=np.bool_) if truncated is None else np.array(truncated)
    table = Table(S0, S1, by_field(values))
    if begun is not None:
        begun = begun(grid.nodes).reshape(grid.shape)
    return Operators(grid, table, problem.constant_diffusion, truncated, ALPHA, False, np.ones(d), begun)


def is_open(own: Operators, axis: int = 0) -> tuple[bool, bool]:
    inner = own.inner[axis]
    assert (inner[1:-1] == 1).all()
    return inner[0] == 0, inner[-1] == 0


def test_faces_are_open_where_the_drift_points_inwards_everywhere_and_at_all_times() -> None:
    def reversing(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray((0.6 - np.asarray(t))[..., None] * np.ones(x.shape))

    assert is_open(faces(lambda t, x: -x)) == (True, True)
    assert is_open(faces(lambda t, x: x)) == (False, False)
    assert is_open(faces(lambda t, x: np.ones(x.shape))) == (True, False)
    assert is_open(faces(lambda t, x: -np.ones(x.shape))) == (False, True)
    assert is_open(faces(reversing)) == (False, False)
    assert is_open(faces(lambda t, x: -x, truncated=[[True], [False]])) == (True, False)
    turned = faces(lambda t, x: np.stack([-x[..., 0], x[..., 0] - 0.5 * x[..., 1]], -1), 2)
    assert is_open(turned) == (True, True)
    assert is_open(turned, 1) == (False, False)  # not on the whole of the face


def test_the_drift_of_the_unknown_counts_not_that_of_the_process() -> None:
    steep = QuadraticGauge(constants=CONSTANTS, centre=[0.0], P=[[[3.0]]], p=[[0.0]], c=[0.0])
    outwards = lambda t, x: 0.5 * x  # noqa: E731
    assert is_open(faces(outwards)) == (False, False)
    assert is_open(faces(outwards, background=steep)) == (True, True)


def test_guarded_faces_are_open_where_the_policy_too_points_inwards() -> None:
    inwards = lambda t, x: -2.0 * x  # noqa: E731
    assert is_open(faces(inwards, begun=lambda x: 0.0 * x)) == (True, True)
    steep = lambda x: 3.0 * ALPHA * x[:, 0]  # noqa: E731
    assert is_open(faces(inwards, begun=steep)) == (True, False)  # Lambda = 1: at the right face 3 - 2 * 1
    assert is_open(faces(inwards, begun=lambda x: -steep(x))) == (False, True)
    assert is_open(faces(inwards)) == (True, True)
    # full Lambda: a slope along the second axis pushes along the first one
    assert is_open(faces(inwards, 2, begun=lambda x: 8.0 * ALPHA * x[:, 1])) == (True, False)
    assert is_open(faces(inwards, 2, begun=lambda x: 8.0 * ALPHA * x[:, 1], diffusion=np.eye(2))) == (True, True)


@pytest.mark.parametrize("diffusion", [FULL[:2, :2], moving], ids=["constant", "moving"])
def test_nothing_comes_from_outside_across_guarded_faces(diffusion: Any) -> None:
    """The equation with a slope of zero across where the drift under the policy points outwards, else with its own."""
    drift = lambda t, x: -x  # noqa: E731
    w = lambda x: 2.0 * np.sin(3.0 * x[:, 0] + 2.5 * x[:, 1])  # noqa: E731
    own = faces(drift, 2, begun=w, diffusion=diffusion)
    assert len(own._guarded) == 4
    grid, s = own.grid, 0.35
    x, u = grid.nodes.reshape(*grid.shape, 2), w(grid.nodes).reshape(grid.shape)
    slopes = np.stack(own.gradient(u), -1)
    Lambda = problem_in(2, diffusion).Lambda(T - s, x)
    speed = drift(s, x) + np.einsum("...ij,...j->...i", Lambda, slopes) / ALPHA
    mixed = Lambda[..., 0, 1] * (grid.lines[0].derivative @ slopes[..., 1])
    second = grid.lines[0].laplacian @ u, u @ grid.lines[1].laplacian.T
    diffused = 0.5 * (Lambda[..., 0, 0] * second[0] + Lambda[..., 1, 1] * second[1]) + mixed
    whole = apply_sum(own.separable, u) + own.remainder(s, u)
    for k, end in ((0, 0), (0, -1), (1, 0), (1, -1)):
        face = (slice(1, -1), end) if k else (end, slice(1, -1))
        outwards = (speed[face][:, k] > 0) == (end == -1)
        assert 0 < outwards.sum() < outwards.size  # both kinds are seen
        p = slopes[face].copy()
        p[outwards, k] = 0.0
        moved = (drift(s, x)[face] * p).sum(-1) + np.einsum("ni,nij,nj->n", p, Lambda[face], p) / (2 * ALPHA)
        np.testing.assert_allclose(whole[face], (moved + diffused[face] - 0.1), rtol=1e-6, atol=1e-6)
        free = (drift(s, x)[face] * slopes[face]).sum(-1)
        free += np.einsum("ni,nij,nj->n", slopes[face], Lambda[face], slopes[face]) / (2 * ALPHA)
        assert np.abs(free - moved).max() > 0.1


def test_nothing_diffuses_across_an_open_face() -> None:
    own = faces(lambda t, x: -x, 2)
    closed = faces(lambda t, x: -x, 2, np.zeros((2, 2), dtype=np.bool_))
    u = np.random.default_rng(2).standard_normal(own.grid.shape)
    x = own.grid.nodes.reshape(*own.grid.shape, 2)
    d0, d1 = own.gradient(u)
    L = FULL[:2, :2]
    steered = -x[..., 0] * d0 - x[..., 1] * d1 - 0.1  # the running reward that the gauge takes out
    steered += (L[0, 0] * d0**2 + 2 * L[0, 1] * d0 * d1 + L[1, 1] * d1**2) / (2 * ALPHA)
    along = 0.5 * L[1, 1] * u @ own.grid.lines[1].laplacian.T
    whole, other = (apply_sum(each.separable, u) + each.remainder(0.3, u) for each in (own, closed))
    for side in (0, -1):
        np.testing.assert_allclose(whole[side, 1:-1], (steered + along)[side, 1:-1], atol=1e-9)
    assert np.abs(other[0, 1:-1] - (steered + along)[0, 1:-1]).max() > 1.0
    inner = slice(1, -1), slice(1, -1)
    np.testing.assert_allclose(whole[inner], other[inner], atol=1e-9)


def test_closed_faces_reflect() -> None:
    """cos(pi x) on [0, 1] is an eigenfunction only with natural conditions."""
    grid = grid_on([np.array([0.0, 0.4, 1.0])], 14, [reach_in(1)], 0.0, 1.0)
    own = operators_of(problem_in(1, 1.0, lambda t, x: 0.0 * x, running_reward=None), grid)
    wave = np.cos(np.pi * grid.lines[0].nodes)
    np.testing.assert_allclose(own.separable[0] @ wave, -0.5 * np.pi**2 * wave, atol=1e-7)
    sine = np.sin(np.pi * grid.lines[0].nodes)
    assert np.abs(own.separable[0] @ sine + 0.5 * np.pi**2 * sine).max() > 10


# Norms


@pytest.mark.parametrize("kind", DIFFUSIONS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_norms_are_means_under_the_weights_of_the_grid(d: int, kind: str) -> None:
    problem, grid, s = problem_in(d, DIFFUSIONS[kind](d)), grid_in(d), 0.31
    own = operators_of(problem, grid)
    x, weights = grid.nodes, np.ones(1)
    for mass in grid.masses:
        weights = np.multiply.outer(weights, mass)
    p = weights.ravel()
    assert p.sum() == pytest.approx(1.0)
    w = polynomial(x)
    slope, _ = differentiated(x)
    square = np.einsum("n,ni,nij,nj->", p, slope, problem.Lambda(T - s, x), slope)
    value, policy = own.sizes(s, w.reshape(grid.shape))
    assert value == pytest.approx(np.sqrt(p @ w**2), rel=1e-12)
    assert policy == pytest.approx(np.sqrt(square), rel=1e-9)
    slopes = [part.reshape(grid.shape) for part in slope.T]
    assert own.policy_square(s, slopes) == pytest.approx(square, rel=1e-9)
    assert own.root_mean_square(w.reshape(grid.shape)) == value
    if d > 1 and kind not in ("number", "diagonal"):  # mixed products count
        assert np.einsum("n,ni,nii,ni->", p, slope, problem.Lambda(T - s, x), slope) != pytest.approx(square, rel=1e-3)


def test_the_weights_of_a_grid_are_those_of_the_law() -> None:
    """Means of polynomials under a product of Gaussians of standard deviation 0.2."""
    reach = reach_in(2, 0.2)
    grid = grid_on([np.linspace(-1.4, 1.6, 7)] * 2, 12, [reach], 0.0, 1.0)
    x = grid.nodes.reshape(*grid.shape, 2)
    z = (x - 0.1) / 0.2
    assert grid.mean(np.ones(grid.shape)) == pytest.approx(1.0, abs=1e-13)
    assert grid.mean(z[..., 0] ** 2 * z[..., 1] ** 2) == pytest.approx(1.0, rel=1e-5)
    assert grid.mean(z[..., 0] ** 4) == pytest.approx(3.0, rel=1e-5)
    assert grid.mean(z[..., 0] * z[..., 1]) == pytest.approx(0.0, abs=1e-10)
    assert (grid.dim, grid.size, grid.shape) == (2, 73**2, (73, 73))
    assert grid.basis.shape == grid.shape


@pytest.mark.parametrize("linear", [True, False])
def test_the_start_is_the_terminal_reward_without_the_background(linear: bool) -> None:
    problem, background, grid = problem_in(2), background_in(2), grid_in(2)
    box = Box([-1.1, -1.1], [1.0, 1.0])
    equation = Equation(problem, background, linear, box, np.ones((2, 2), dtype=np.bool_), (reach_in(2),), (), 1e-3)
    w = equation.at_end(grid.nodes)
    v = background.guess(T, grid.nodes) + (ALPHA * np.log(w) if linear else w)
    np.testing.assert_allclose(v, problem.y(grid.nodes), atol=1e-12)
