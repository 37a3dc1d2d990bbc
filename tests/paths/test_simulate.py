"""Trajectories: exact transition moments, weak orders without Monte Carlo noise, reproducibility, refusals."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.stats import norm

import fem_hjb.paths.simulate as sde
from fem_hjb.paths import walls
from fem_hjb.paths.simulate import Paths, sample_at, sample_paths
from fem_hjb.paths.stiffness import substeps_of
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass, Uniform
from fem_hjb.problems.linear import linear_transition
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.support.errors import ConvergenceError, DomainError, EllipticityError, MeasureError, ProblemError


def zero(x):
    return np.zeros(x.shape[:-1])


def ou_problem(A, a, diffusion, **changes):
    given = {
        "dim": len(a),
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": LinearDrift(A, a),
        "diffusion": diffusion,
        "terminal_reward": zero,
        "initial_law": Gaussian(np.zeros(len(a)), 0.3),
    }
    return ControlProblem(**(given | changes))


A2 = np.array([[-1.0, 0.5], [-0.3, 0.2]])
LAMBDA2 = np.array([[1.0, 0.3], [0.3, 0.5]])


def test_exact_paths_have_the_moments_of_the_process():
    n, problem = 40_000, ou_problem(A2, [0.3, -0.7], LAMBDA2)
    paths = sample_paths(problem, n=n, steps=3, rng=1)
    assert paths.scheme == "exact"
    assert (paths.n, paths.steps, paths.dim) == (n, 3, 2)
    for k, t in enumerate(paths.t):
        E, c, S = (
            linear_transition(LinearDrift(A2, [0.3, -0.7]), LAMBDA2, t)
            if k
            else (np.eye(2), np.zeros(2), np.zeros((2, 2)))
        )
        cov = 0.3 * E @ E.T + S
        x = paths.x[:, k]
        assert (np.abs(x.mean(0) - c) < 4 * np.sqrt(np.diag(cov) / n)).all()
        centred = x - c
        products = centred[:, :, None] * centred[:, None, :]
        assert (np.abs(products.mean(0) - cov) < 4 * products.std(0) / np.sqrt(n)).all()
    # consecutive states are correlated as the transition says
    E, c, _ = linear_transition(LinearDrift(A2, [0.3, -0.7]), LAMBDA2, 1 / 3)
    innovation = paths.x[:, 2] - paths.x[:, 1] @ E.T - c
    cross = innovation[:, :, None] * paths.x[:, 1][:, None, :]
    assert (np.abs(cross.mean(0)) < 4 * cross.std(0) / np.sqrt(n)).all()


class ScriptedNoise:
    """Every sequence of three-point (Gauss-Hermite) noises, one per path, so that averages carry no sampling error."""

    def __init__(self, dim: int, steps: int, areas: int):
        nodes, weights = np.array([-np.sqrt(3), 0.0, np.sqrt(3)]), np.array([1, 4, 1]) / 6
        grid = np.stack(np.meshgrid(*[nodes] * dim, indexing="ij"), -1).reshape(-1, dim)
        weight = np.prod(np.stack(np.meshgrid(*[weights] * dim, indexing="ij"), -1).reshape(-1, dim), -1)
        self.nodes, self.signs = np.tile(grid, (areas, 1)), np.repeat(np.arange(areas), len(grid))
        branches, self.k = areas * len(grid), -1
        index = np.arange(branches**steps)
        self.digits = [index // branches**k % branches for k in range(steps)]
        self.weights = np.prod([np.tile(weight, areas)[d] / areas for d in self.digits], axis=0)

    def standard_normal(self, shape):
        self.k += 1
        return self.nodes[self.digits[self.k]].reshape(shape)

    def random(self, shape):
        return np.broadcast_to(self.signs[self.digits[self.k]][:, None, None] * 0.9, shape)


def exact_average(monkeypatch, problem, scheme, steps, observable, areas=1):
    """E[observable(X_T)] of the scheme itself, to rounding."""
    noise = ScriptedNoise(problem.dim, steps, areas)
    monkeypatch.setattr(sde, "spawn_generators", lambda rng, count: [noise])
    monkeypatch.setattr(sde, "_CHUNK", 10**9)
    paths = sample_paths(problem, n=noise.weights.size, steps=steps, rng=0, scheme=scheme)
    assert noise.k == steps - 1
    return float(noise.weights @ observable(paths.x[:, -1]))


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(np.abs(errors)), 1)[0]


def square(x):
    return (x**2).sum(-1)


@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("weak2", 2)])
def test_weak_order_with_additive_noise_and_time_dependent_drift(monkeypatch, scheme, order):
    problem = ou_problem(
        [[-1.0]],
        [0.0],
        0.8,
        drift=lambda t, x: -x + np.sin(3 * np.asarray(t)[..., None]) + 0 * x,
        initial_law=PointMass([0.7]),
    )

    def moments(t, m):
        return [-m[0] + np.sin(3 * t), -2 * m[1] + 2 * np.sin(3 * t) * m[0] + 0.8]

    exact = solve_ivp(moments, (0, 1), [0.7, 0.49], rtol=1e-12, atol=1e-13).y[1, -1]
    steps = [5, 7, 9, 11]
    errors = [exact_average(monkeypatch, problem, scheme, k, square) - exact for k in steps]
    assert abs(slope(steps, errors) - order) < 0.15, errors


@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("weak2", 2)])
@pytest.mark.parametrize("power", [2, 4])
def test_weak_order_with_multiplicative_noise_in_1d(monkeypatch, scheme, order, power):
    A, a = -0.6, 0.4
    problem = ou_problem(
        [[A]], [a], lambda t, x: 0.2 + 0.3 * x[..., None] ** 2, initial_law=PointMass([0.5]), horizon=0.3
    )
    flow = np.zeros((5, 5))  # d E[X^p] = p A E[X^p] + p a E[X^(p-1)] + p(p-1)/2 E[(0.2 + 0.3 X^2) X^(p-2)]
    for p in range(1, 5):
        flow[p, p] += p * A + 0.15 * p * (p - 1)
        flow[p, p - 1] += p * a
        if p > 1:
            flow[p, p - 2] += 0.1 * p * (p - 1)
    exact = (expm(0.3 * flow) @ 0.5 ** np.arange(5))[power]
    steps = [4, 6, 8, 11]
    errors = [exact_average(monkeypatch, problem, scheme, k, lambda x: x[:, 0] ** power) - exact for k in steps]
    assert abs(slope(steps, errors) - order) < 0.15, errors


def correlated_noise(S1, t, x):
    y = np.asarray(x) @ S1.T
    return LAMBDA2 + y[..., :, None] * y[..., None, :]


@pytest.mark.parametrize(("scheme", "order", "areas"), [("euler", 1, 1), ("weak2", 2, 2)])
@pytest.mark.parametrize("steps", [1, 2])
def test_weak_order_with_correlated_multiplicative_noise_in_2d(monkeypatch, scheme, order, areas, steps):
    """The error of one or two steps is of order h^(order + 1), from which the weak order follows.

    Lambda(x) = Lambda_0 + (S x)(S x)' keeps the second moments closed; its Cholesky columns do not commute.
    """
    S, x0 = np.array([[0.5, -0.4], [0.3, 0.6]]), np.array([0.6, -0.9])
    eye = np.eye(2)
    flow = np.zeros((5, 5))
    flow[:4, :4] = np.kron(A2, eye) + np.kron(eye, A2) + np.kron(S, S)
    flow[:4, 4] = LAMBDA2.ravel()
    lengths = 0.1 / 2.0 ** np.arange(4)
    errors = []
    for h in lengths:
        problem = ou_problem(
            A2, [0.0, 0.0], lambda t, x: correlated_noise(S, t, x), initial_law=PointMass(x0), horizon=steps * h
        )
        second = [
            exact_average(monkeypatch, problem, scheme, steps, lambda x, i=i, j=j: x[:, i] * x[:, j], areas)
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
        ]
        errors.append(second - (expm(steps * h * flow) @ np.r_[np.outer(x0, x0).ravel(), 1.0])[:4])
    for error in np.array(errors).T:
        assert abs(slope(1 / lengths, error) - (order + 1)) < 0.15, errors


def test_same_seed_same_bits():
    problem, n = ou_problem([[-1.0]], [0.0], 1.0), sde._CHUNK + 7

    def draw(rng, scheme="auto"):
        return sample_paths(problem, n=n, steps=2, rng=rng, scheme=scheme).x

    for scheme in ("exact", "euler", "weak2"):
        assert np.array_equal(draw(5, scheme), draw(5, scheme))
    assert not np.array_equal(draw(5), draw(6))
    sequence = np.random.SeedSequence(5)
    assert np.array_equal(draw(sequence), draw(sequence))  # unlike SeedSequence.spawn, drawing leaves it as it was
    assert np.array_equal(draw(sequence), draw(5))
    generator = np.random.default_rng(5)
    first = draw(generator)
    assert np.array_equal(first, draw(np.random.default_rng(5)))
    assert not np.array_equal(first, draw(generator))  # a generator advances
    assert np.unique(draw(5)[:, 0]).size == n  # chunks do not repeat each other


def test_a_policy_shifts_the_drift_and_substeps_refine_it():
    shifted = ou_problem([[-1.0]], [0.9], 0.5)
    plain = replace(shifted, drift=LinearDrift([[-1.0]], [0.0]))
    by_policy = sample_paths(plain, n=200, steps=10, rng=2, policy=lambda t, x: np.full_like(x, 0.9))
    assert by_policy.scheme == "weak2"
    np.testing.assert_allclose(by_policy.x, sample_paths(shifted, n=200, steps=10, rng=2, scheme="weak2").x, atol=1e-13)

    def bias(substeps):
        mean = sample_paths(plain, n=40_000, steps=1, rng=3, scheme="euler", substeps=substeps).x[:, -1].var()
        return abs(mean - (0.3 * np.exp(-2) + 0.25 * (1 - np.exp(-2))))

    assert bias(1) > 0.2  # one Euler step of the whole horizon sends X to noise alone
    assert bias(40) < 0.02


def test_reflected_brownian_motion_is_exact_and_stays_inside():
    """cos(pi x) is an eigenfunction of the reflected generator on [0, 1]: E cos(pi X_t) = exp(-pi^2 t/4) cos(pi x0)."""
    n = 40_000
    problem = ou_problem([[0.0]], [0.0], 0.5, domain=Box([0.0], [1.0]), initial_law=PointMass([0.2]))
    paths = sample_paths(problem, n=n, steps=2, rng=4)
    assert paths.scheme == "exact"
    assert paths.x.min() >= 0.0
    assert paths.x.max() <= 1.0
    for k in (1, 2):
        values = np.cos(np.pi * paths.x[:, k, 0])
        exact = np.exp(-0.25 * np.pi**2 * paths.t[k]) * np.cos(0.2 * np.pi)
        assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(n)


@pytest.mark.parametrize("scheme", ["euler", "weak2"])
def test_coefficients_are_only_evaluated_inside_a_reflecting_box(scheme):
    box = Box([0.0, 0.0], [1.0, 1.0])

    def diffusion(t, x):
        assert box.contains(x).all()
        return (0.5 + x[..., :1, None] / 4) * np.eye(2)

    problem = ou_problem(A2, [0.0, 0.0], diffusion, domain=box, initial_law=Uniform(box))
    paths = sample_paths(problem, n=2000, steps=8, rng=5, scheme=scheme)
    assert box.contains(paths.x).all()
    assert paths.scheme == scheme


HALF_LINE = Box([0.0], [np.inf], [("absorbing", "natural")])


def without_bridge(monkeypatch):
    """The broken method: only the ends of the steps are looked at."""
    whole = walls.stop_at_faces
    monkeypatch.setattr(walls, "stop_at_faces", lambda domain, variance, *rest: whole(domain, 1e-12 * variance, *rest))


def brownian(x0, domain, drift=0.0, **changes):
    """dX = drift dt + dB from x0, stopped at the faces."""
    return ou_problem([[0.0]], [drift], 1.0, domain=domain, initial_law=PointMass([x0]), **changes)


def exits(problem, n, steps, scheme="auto"):
    """The fractions of paths stopped by each observed time, shape (K+1,)."""
    return problem.domain.exited(sample_paths(problem, n=n, steps=steps, rng=7, scheme=scheme).x).mean(axis=0)


def half_line_exit(x0, drift, t):
    """P(min over [0, t] of x0 + drift s + B_s <= 0), by the reflection principle and Girsanov's theorem."""
    return norm.cdf(-(x0 + drift * t) / np.sqrt(t)) + np.exp(-2 * drift * x0) * norm.cdf((drift * t - x0) / np.sqrt(t))


@pytest.mark.parametrize("drift", [0.0, 0.8])
@pytest.mark.parametrize("scheme", ["euler", "weak2"])
def test_the_exit_from_a_half_line_is_exact_at_any_step(monkeypatch, scheme, drift):
    problem, n, steps = brownian(0.7, HALF_LINE, drift), 40_000, 3
    exact = half_line_exit(0.7, drift, np.arange(1, steps + 1) / steps)
    error = np.sqrt(exact * (1 - exact) / n)
    assert (np.abs(exits(problem, n, steps, scheme)[1:] - exact) < 3 * error).all()
    without_bridge(monkeypatch)
    assert (exits(problem, n, steps, scheme)[1:] - exact < -20 * error).all()


def test_the_exit_from_an_interval(monkeypatch):
    """Both ends absorb: the survival probability is a sine series; one end reflects: a series of cosines."""
    n, k = 40_000, np.arange(1, 101, 2)
    decay = 4 / (k * np.pi) * np.exp(-((k * np.pi / 2) ** 2) / 2)
    both = 1 - (decay * np.sin(k * np.pi * 0.35)).sum()  # on [0, 2], from 0.7
    mixed = 1 - (decay * np.sin(k * np.pi / 2) * np.cos(k * np.pi * 0.15)).sum()  # on [0, 1], from 0.3, reflected at 0
    cases = [
        (brownian(0.7, Box([0.0], [2.0], "absorbing")), both),
        (brownian(0.3, Box([0.0], [1.0], [("reflecting", "absorbing")])), mixed),
    ]
    for problem, exact in cases:
        assert abs(exits(problem, n, 16)[-1] - exact) < 3 * np.sqrt(exact * (1 - exact) / n)
    without_bridge(monkeypatch)
    for problem, exact in cases:
        assert exits(problem, n, 16)[-1] - exact < -20 * np.sqrt(exact * (1 - exact) / n)


def test_the_bridge_has_the_noise_of_its_own_step():
    """With Lambda_t held over each step the half line's exit probability is that of the scheme's own total variance."""
    n, steps = 40_000, 4
    rising = brownian(0.5, HALF_LINE)
    rising = replace(rising, diffusion=lambda t, x: (0.2 + np.asarray(t)[..., None, None]) * np.ones((*x.shape, 1)))
    variance = (0.2 + np.arange(steps) / steps).sum() / steps
    exact = 2 * norm.cdf(-0.5 / np.sqrt(variance))
    assert abs(exits(rising, n, steps, "euler")[-1] - exact) < 3 * np.sqrt(exact * (1 - exact) / n)
    assert abs(2 * norm.cdf(-0.5 / np.sqrt(0.7)) - exact) > 10 * np.sqrt(exact * (1 - exact) / n)  # not Lambda averaged


def test_the_exit_of_an_ornstein_uhlenbeck_process_has_weak_order_one_and_one_half_without_the_bridge(monkeypatch):
    """By symmetry about 0, P(exit by T) = 2 P(X_T < 0) for the process that is not stopped."""
    problem = ou_problem([[-1.0]], [0.0], 1.0, domain=HALF_LINE, initial_law=PointMass([0.8]))
    exact = 2 * norm.cdf(-0.8 * np.exp(-1) / np.sqrt((1 - np.exp(-2)) / 2))
    steps, n = [8, 16, 32], 300_000
    assert abs(slope(steps, [exits(problem, n, k, "euler")[-1] - exact for k in steps]) - 1) < 0.15
    without_bridge(monkeypatch)
    assert abs(slope(steps, [exits(problem, n // 4, k, "euler")[-1] - exact for k in steps]) - 0.5) < 0.15


def test_stopped_paths_stay_at_their_exit_point_on_the_face():
    """A strip in the plane, with correlated noise and a drift that is not defined outside of it."""
    box = Box([0.0, -np.inf], [1.0, 0.3], [("absorbing", "absorbing"), ("natural", "absorbing")])

    def drift(t, x):
        assert box.contains(x).all()
        return 0.5 * np.sqrt(x[..., :1]) + 0.0 * x

    problem = ou_problem(A2, [0.0, 0.0], LAMBDA2, drift=drift, domain=box, initial_law=Gaussian([0.5, -0.2], 0.005))
    for scheme in ("euler", "weak2"):
        x = sample_paths(problem, n=4000, steps=16, rng=5, scheme=scheme, substeps=2).x
        stopped = box.exited(x)
        assert box.contains(x).all()
        assert 0.2 < stopped[:, -1].mean() < 1.0
        assert (np.diff(stopped.astype(int), axis=1) >= 0).all()
        assert (x[:, 1:] == x[:, :-1])[stopped[:, :-1]].all()
        on = [(x[:, -1, 0] == 0.0).sum(), (x[:, -1, 0] == 1.0).sum(), (x[:, -1, 1] == 0.3).sum()]
        assert min(on) > 100  # each face is left by


def test_the_stopped_process_is_a_martingale_with_correlated_noise():
    problem = ou_problem(
        np.zeros((2, 2)),
        [0.0, 0.0],
        [[1.0, 0.8], [0.8, 1.0]],
        domain=Box([0.0, -np.inf], [np.inf, np.inf], [("absorbing", "natural"), ("natural", "natural")]),
        initial_law=PointMass([0.6, 0.3]),
    )
    x = sample_paths(problem, n=40_000, steps=4, rng=8).x[:, -1]
    assert (np.abs(x.mean(0) - [0.6, 0.3]) < 3 * x.std(0) / np.sqrt(len(x))).all()


def test_paths_that_start_behind_an_absorbing_face_are_stopped_at_once():
    problem = ou_problem([[0.0]], [0.0], 1.0, domain=HALF_LINE, initial_law=Gaussian([1.0], 0.25))
    paths = sample_paths(problem, n=4000, steps=2, rng=9)
    gone = paths.x[:, 0, 0] == 0.0
    assert 0.01 < gone.mean() < 0.04
    assert (paths.x[gone] == 0.0).all()
    assert paths.x.min() == 0.0


def test_auto_is_exact_only_where_the_transition_law_is_known():
    linear = ou_problem(A2, [0.0, 0.0], LAMBDA2)
    box = Box([-9.0, -9.0], [9.0, 9.0])
    free = LinearDrift(np.zeros((2, 2)), [0.0, 0.0])
    for problem, scheme in (
        (linear, "exact"),
        (replace(linear, drift=lambda t, x: x @ A2.T), "weak2"),
        (replace(linear, diffusion=lambda t, x: np.broadcast_to(LAMBDA2, (*x.shape, 2))), "weak2"),
        (replace(linear, domain=box), "weak2"),
        (replace(linear, domain=box, drift=free), "weak2"),
        (replace(linear, domain=box, drift=free, diffusion=0.5), "exact"),
        (replace(linear, domain=replace(box, boundary="absorbing"), drift=free, diffusion=0.5), "weak2"),
    ):
        assert sample_paths(problem, n=3, steps=2, rng=0).scheme.split(",")[0] == scheme


def test_paths_are_validated_and_read_only():
    paths = sample_paths(ou_problem([[-1.0]], [0.0], 1.0), n=2, steps=2, rng=0)
    with pytest.raises(ValueError, match="read-only"):
        paths.x[0] = 0.0
    with pytest.raises(MeasureError, match=r"shape \(n, K\+1, d\).*got shape \(3, 2\)"):
        Paths(t=[0.0, 1.0], x=np.zeros((3, 2)))
    with pytest.raises(MeasureError, match=r"t must have shape \(2,\)"):
        Paths(t=[0.0, 0.5, 1.0], x=np.zeros((3, 2, 1)))
    with pytest.raises(MeasureError, match="increase strictly from 0"):
        Paths(t=[0.0, 0.0], x=np.zeros((3, 2, 1)))
    with pytest.raises(MeasureError, match="x must be finite, got 2 non-finite"):
        Paths(t=[0.0, 1.0], x=np.array([[[0.0], [np.nan]], [[np.inf], [0.0]]]))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n": 0}, MeasureError, "n must be a positive integer, got 0"),
        ({"steps": 2.5}, MeasureError, "steps must be a positive integer, got 2.5"),
        ({"substeps": 0}, MeasureError, "substeps must be a positive integer"),
        ({"rng": -1}, MeasureError, "rng must be a non-negative int"),
        (
            {"scheme": "milstein"},
            MeasureError,
            "scheme must be one of 'auto', 'exact', 'euler', 'weak2', got 'milstein'",
        ),
        ({"scheme": "exact", "policy": lambda t, x: x}, ProblemError, "scheme 'exact' needs drift=LinearDrift"),
        (
            {"policy": lambda t, x: x[:, 0]},
            ProblemError,
            r"policy\(t, x\) returned shape \(5,\) for x of shape \(5, 1\)",
        ),
        ({"policy": lambda t, x: np.nan * x}, ProblemError, r"policy\(t, x\) is not finite at 5 of 5 points"),
    ],
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        sample_paths(ou_problem([[-1.0]], [0.0], 1.0), **({"n": 5, "steps": 2, "rng": 0} | changes))


def test_no_scheme_is_exact_in_front_of_an_absorbing_face():
    with pytest.raises(ProblemError, match="a diagonal diffusion and no absorbing face; take scheme='weak2' or 'auto'"):
        sample_paths(brownian(0.7, HALF_LINE), n=5, steps=2, rng=0, scheme="exact")


def test_a_linear_drift_needs_substeps_under_a_policy_alone():
    linear = ou_problem([[-39.0]], [0.0], 1.0)
    called = replace(linear, drift=lambda t, x: -39.0 * x)
    assert substeps_of(linear, 16) is None
    assert substeps_of(linear, 16, steered=True) == substeps_of(called, 16) == 5
    assert substeps_of(linear, 80, steered=True) is None


def test_substeps_are_taken_when_a_stiff_drift_needs_them_and_only_then():
    well = ou_problem([[-1.0]], [0.0], 1.0, drift=lambda t, x: -20 * x * (x**2 - 1), initial_law=Gaussian([0.0], 0.6))
    stiff = sample_paths(well, n=2000, steps=50, rng=0)
    assert stiff.scheme == "weak2, 8 substeps"
    assert np.abs(stiff.x[:, 1:]).max() < 3
    np.testing.assert_array_equal(sample_paths(well, n=2000, steps=50, rng=0).x, stiff.x)
    assert sample_paths(well, n=2000, steps=400, rng=0).scheme == "weak2"


@pytest.mark.parametrize("rate", [12.0, 25.0, 60.0])
@pytest.mark.parametrize("make", [sample_paths, partial(sample_at, times=[1.0])], ids=["sample_paths", "sample_at"])
def test_steps_too_long_for_a_drift_are_cut_before_anything_explodes(rate, make):
    """X' = -rate (1 + x^2 / 3) x beside a slow coordinate: steps of 1/16 are too long."""
    drift = partial(_two_speeds, rate)
    problem = ou_problem(-np.eye(2), [0.0, 0.0], np.eye(2), drift=drift, initial_law=Gaussian([0.0, 0.0], 0.1))
    found = make(problem, n=20_000, steps=16, rng=4).x[:, -1]
    z = np.linspace(-4, 4, 4001)
    density = np.exp(-rate * (z**2 + z**4 / 6))  # stationary after a few hundredths
    np.testing.assert_allclose(found[:, 0].var(), (density @ z**2) / density.sum(), rtol=0.06)
    np.testing.assert_allclose(found[:, 1].var(), 0.5 + (0.1 - 0.5) * np.exp(-2), rtol=0.05)
    if rate < 20.0:  # else they explode
        coarse = sample_paths(problem, n=20_000, steps=16, rng=4, substeps=1).x[:, -1]
        assert coarse[:, 0].var() < 0.85 * (density @ z**2) / density.sum()


def _two_speeds(rate, t, x):
    return -np.stack([rate * (1 + x[..., 0] ** 2 / 3) * x[..., 0], x[..., 1]], axis=-1)


def test_explosion_and_lost_ellipticity_are_reported_with_the_time():
    cubic = ou_problem([[-1.0]], [0.0], 1.0, drift=lambda t, x: -40 * x**3, initial_law=Gaussian([3.0], 1.0))
    for scheme in ("euler", "weak2"):
        with pytest.raises(ConvergenceError, match=r"of 500 simulated states .* at t=0\.\d+.*more steps, or substeps"):
            sample_paths(cubic, n=500, steps=20, rng=0, scheme=scheme, substeps=1)
    assert np.abs(sample_paths(cubic, n=500, steps=20, rng=0, scheme="euler", substeps=400).x).max() < 8
    degenerate = ou_problem(
        [[-1.0]], [0.0], lambda t, x: 0.5 - x[..., None] ** 2 / 50, initial_law=Gaussian([0.0], 0.1)
    )
    with pytest.raises(EllipticityError, match=r"along the paths; at t=.*eigenvalue is -"):
        sample_paths(replace(degenerate, drift=lambda t, x: np.full_like(x, 30.0)), n=100, steps=20, rng=0)


def test_paths_at_times_of_any_spacing_have_the_law_of_the_process() -> None:
    """An Ornstein-Uhlenbeck process: Var X_t = (1 - e^{-2t})/2 exactly, and by steps of weak order 2 for a callable."""
    times = 1.0 - 0.5 ** np.arange(1, 11)
    linear, called = LinearDrift([[-1.0]], [0.0]), lambda t, x: -x
    for drift, scheme in ((linear, "exact"), (called, "weak2")):
        problem = ControlProblem(
            dim=1,
            horizon=1.0,
            temperature=1.0,
            drift=drift,
            diffusion=1.0,
            terminal_reward=lambda x: x[..., 0],
            initial_law=PointMass([0.0]),
        )
        paths = sample_at(problem, times, n=20_000, rng=2)
        assert paths.scheme == scheme
        assert np.diff(paths.t).max() <= 1 / 64 + 1e-12
        k = np.searchsorted(paths.t, times)
        np.testing.assert_array_equal(paths.t[k], times)
        expected = (1 - np.exp(-2 * times)) / 2
        np.testing.assert_allclose(paths.x[:, k, 0].var(axis=0), expected, rtol=4 * np.sqrt(2 / 20_000))
        step = paths.x[:, -1, 0] - paths.x[:, -2, 0]  # the last one, from T (1 - 2^-10)
        np.testing.assert_allclose(step.var(), 0.5**10, rtol=4 * np.sqrt(2 / 20_000) + 0.5**9)


def test_paths_at_times_follow_a_policy_and_explode_as_others_do() -> None:
    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=LinearDrift([[0.0]], [0.0]),
        diffusion=1e-12,
        terminal_reward=lambda x: x[..., 0],
        initial_law=PointMass([0.0]),
    )
    paths = sample_at(problem, [0.3, 0.95], n=3, rng=0, policy=lambda t, x: np.full_like(x, 2.0 * t))
    np.testing.assert_allclose(paths.x[..., 0], np.tile(paths.t**2, (3, 1)), atol=1e-5)
    stiff = sample_at(problem, [0.5], n=3, rng=0, policy=lambda t, x: -1000.0 * (x - 1.0))
    assert stiff.scheme == "weak2, 16 substeps"
    np.testing.assert_allclose(stiff.x[:, -1, 0], 1.0, atol=1e-6)
    with pytest.raises(ConvergenceError, match="left the range of numbers"):
        sample_at(problem, [0.5], n=3, rng=0, policy=lambda t, x: 1e29 * x**3 + 1.0)
    with pytest.raises(DomainError, match="times must lie in"):
        sample_at(problem, [1.5], n=3, rng=0)


def test_many_substeps_ask_for_a_diffusion_once_each():
    """X = sinh(5 Z) / 5 of a stiff Z, with a Lambda that varies where it goes."""
    k, asked = 50.0, [0]

    def drift(t, x):
        return np.asarray(12.5 * x - k * np.arcsinh(5.0 * x) / 5.0 * np.sqrt(1.0 + 25.0 * x**2))

    def diffusion(t, x):
        asked[0] += x.size
        return np.asarray((1.0 + 25.0 * x**2)[..., None])

    problem = ControlProblem(
        dim=1,
        horizon=0.25,
        temperature=1.0,
        drift=drift,
        diffusion=diffusion,
        terminal_reward=lambda x: x[..., 0],
        initial_law=Gaussian([0.0], 0.01),
    )
    asked[0] = 0
    paths = sample_at(problem, [0.0, 0.25], n=20_000, rng=0, steps=1)
    assert paths.scheme.startswith("heun, ")
    substeps = int(paths.scheme.split()[1])
    assert substeps >= 8
    assert asked[0] < 1.05 * substeps * paths.n
    z = np.arcsinh(5.0 * paths.x[:, -1, 0]) / 5.0
    assert z.std() * np.sqrt(2.0 * k) == pytest.approx(1.0, abs=0.02)  # Euler's steps for the drift: 1.05
    assert sample_at(problem, [0.0, 0.25], n=2, rng=0, steps=16).scheme.startswith("weak2")
