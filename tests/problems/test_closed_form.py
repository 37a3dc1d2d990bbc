"""Closed forms, each two ways: the HJB equation at random points, and Feynman-Kac simulation."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import ClosedForm, CosineSeries, LinearQuadratic, Product
from fem_hjb.problems.laws import Gaussian, Uniform
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.support.errors import DomainError, EllipticityError, InfiniteValueError, ProblemError
from tests.support.exactness import feynman_kac, fokker_planck_residual, gradient_error, hjb_residual, inner_times
from tests.support.tilted import COVS, INDEFINITE, MEANS, TARGETS, TILTED

LAMBDA = np.array([[0.9, 0.3], [0.3, 0.6]])
DRIFT = LinearDrift([[-1.0, 0.7], [-0.2, -0.5]], [0.3, -0.4])


def linear_quadratic_problem(terminal, *, drift=DRIFT, diffusion=LAMBDA, horizon=0.8, running=True):
    d = terminal.dim
    Q, q, q0 = (np.array([[1.0, 0.6], [0.0, -0.4]]), np.array([0.3, -0.2]), 0.25) if running else (None, None, 0.0)
    exact = LinearQuadratic(drift=drift, diffusion=diffusion, terminal=terminal, horizon=horizon, Q=Q, q=q, q0=q0)
    return ControlProblem(
        dim=d,
        horizon=horizon,
        temperature=terminal.temperature,
        drift=drift,
        diffusion=diffusion,
        running_reward=(lambda t, x: -0.5 * np.einsum("...i,ij,...j->...", x, Q, x) + x @ q + q0) if running else None,
        terminal_reward=terminal,
        initial_law=Gaussian(np.zeros(d), 0.5),
        exact=exact,
        marginal=linear_marginal(drift, diffusion, Gaussian(np.zeros(d), 0.5)),
    )


def reflected_problem():
    exact = Product(
        *(
            CosineSeries(c, lower=low, upper=high, diffusion=s, horizon=0.7, temperature=0.6, running=r)
            for c, low, high, s, r in (
                ([1.0, 0.4, 0.0, -0.3], -1.0, 1.5, 0.8, 0.5),
                ([2.0, -1.0, 0.5], 0.2, 0.9, 0.05, -0.1),
            )
        )
    )
    box = Box([-1.0, 0.2], [1.5, 0.9])
    return ControlProblem(
        dim=2,
        horizon=0.7,
        temperature=0.6,
        drift=LinearDrift(np.zeros((2, 2)), np.zeros(2)),
        diffusion=[0.8, 0.05],
        running_reward=lambda t, x: np.full(x.shape[:-1], 0.4),
        terminal_reward=lambda x: exact.value(0.7, x),
        initial_law=Uniform(box),
        domain=box,
        exact=exact,
        marginal=lambda t: Uniform(box),
    )


def product_problem():
    """A 1-D mixture target, a 2-D coupled LQ problem and a reflected interval, side by side."""
    one = LinearDrift([[-0.3]], [0.1])
    mix = LogSumExpReward.log_mixture([1.0, 0.4], [[0.8], [-1.0]], [[[0.4]], [[0.3]]], temperature=0.6)
    quadratic = LogSumExpReward.quadratic(INDEFINITE, [0.2, 0.1], temperature=0.6)
    factors = (
        LinearQuadratic(drift=one, diffusion=0.7, terminal=mix, horizon=0.7),
        LinearQuadratic(drift=DRIFT, diffusion=LAMBDA, terminal=quadratic, horizon=0.7),
    )
    A, Lambda = np.zeros((3, 3)), np.zeros((3, 3))
    A[0, 0], A[1:, 1:], Lambda[0, 0], Lambda[1:, 1:] = -0.3, DRIFT.A, 0.7, LAMBDA
    drift = LinearDrift(A, [0.1, *DRIFT.a])
    return ControlProblem(
        dim=3,
        horizon=0.7,
        temperature=0.6,
        drift=drift,
        diffusion=Lambda,
        terminal_reward=lambda x: mix(x[..., :1]) + quadratic(x[..., 1:]),
        initial_law=Gaussian(np.zeros(3), 0.5),
        exact=Product(*factors),
        marginal=linear_marginal(drift, Lambda, Gaussian(np.zeros(3), 0.5)),
    )


PROBLEMS = {
    "quadratic": linear_quadratic_problem(LogSumExpReward.quadratic(INDEFINITE, [0.5, -0.3], s0=0.2, temperature=0.7)),
    "linear": linear_quadratic_problem(LogSumExpReward.linear([0.5, -0.3], s0=0.1, temperature=0.7), running=False),
    "targets": linear_quadratic_problem(TARGETS, running=False),
    "targets-running": linear_quadratic_problem(TARGETS),
    **TILTED,
    "reflected": reflected_problem(),
    "product": product_problem(),
}
each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def points(problem, n, rng, step=1e-2):
    """Points over and beyond the bulk of the initial law, inside the box if the process is reflected."""
    x = problem.initial_law.sample(n, rng)
    if problem.domain is None:
        return problem.initial_law.expectation + 1.5 * (x - problem.initial_law.expectation)
    lower, upper = problem.domain.bounds
    return np.clip(x, lower + 4 * step, upper - 4 * step)


@each_problem
def test_solves_the_hjb_equation(problem):
    rng = np.random.default_rng(0)
    x, t = points(problem, 300, rng), inner_times(problem, 300, rng, 5e-3 * problem.horizon)
    assert hjb_residual(problem, problem.exact, t, x).max() < 1e-8
    assert gradient_error(problem, problem.exact, t, x) < 1e-9


@each_problem
def test_ends_in_the_terminal_reward(problem):
    x = points(problem, 100, np.random.default_rng(1))
    np.testing.assert_allclose(problem.exact.value(problem.horizon, x), problem.y(x), atol=1e-12)


@each_problem
def test_policy_is_Lambda_gradient_over_temperature(problem):
    rng = np.random.default_rng(2)
    x, t = points(problem, 50, rng), rng.uniform(0, problem.horizon, 50)
    expected = problem.policy_from_gradient(t, x, problem.exact.gradient(t, x))
    np.testing.assert_allclose(problem.exact.policy(t, x), expected, rtol=1e-13, atol=1e-14)


@each_problem
def test_agrees_with_feynman_kac_simulation(problem):
    law, rng = problem.initial_law, np.random.default_rng(3)
    spread = np.sqrt(np.diag(law.covariance))
    for t, side in ((0.0, 0.6), (0.0, -0.6), (0.45 * problem.horizon, -0.4)):
        x = law.expectation + side * spread
        mean, error = feynman_kac(problem, t, x, pairs=10_000, steps=16, rng=rng)
        exact = np.exp(problem.exact.value(t, x) / problem.temperature)
        assert error < 8e-3 * exact  # the test has teeth
        assert abs(mean - exact) < 4 * error


@each_problem
def test_marginal_solves_the_fokker_planck_equation(problem):
    x = points(problem, 200, np.random.default_rng(4), step=2e-2)
    assert fokker_planck_residual(problem, 0.4 * problem.horizon, x).max() < 1e-9


@each_problem
def test_batches_broadcast_and_blocks_agree_with_single_points(problem, monkeypatch):
    exact, rng = problem.exact, np.random.default_rng(5)
    x = points(problem, 12, rng).reshape(3, 4, problem.dim)
    t = rng.uniform(0, problem.horizon, (3, 1))
    every = np.broadcast_to(t, (3, 4))
    single = np.array([[exact.value(every[i, j], x[i, j]) for j in range(4)] for i in range(3)])
    slopes = np.array([[exact.gradient(every[i, j], x[i, j]) for j in range(4)] for i in range(3)])
    steers = np.array([[exact.policy(every[i, j], x[i, j]) for j in range(4)] for i in range(3)])
    assert exact.value(0.1, x[0, 0]).shape == ()
    monkeypatch.setattr("fem_hjb.problems.closed_form._CHUNK", 5 * problem.dim**2)
    for time in (t, every):
        np.testing.assert_allclose(exact.value(time, x), single, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(exact.gradient(time, x), slopes, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(exact.policy(time, x), steers, rtol=1e-12, atol=1e-12)
    assert exact.value(0.1, np.zeros((0, problem.dim))).shape == (0,)
    assert exact.gradient([0.1], x[:, :1]).shape == (3, 1, problem.dim)


class Wrong(ClosedForm):
    """b = -x, Lambda = alpha = 1, r = y = -x^2/2, with a sign of the Riccati equation to choose."""

    dim, horizon, temperature = 1, 1.0, 1.0

    def __init__(self, sign):
        def rate(_, state):
            return [-2 * state[0] + 1 - sign * state[0] ** 2, -0.5 * state[0]]

        self._path = solve_ivp(rate, (0, 1), [1.0, 0.0], "DOP853", dense_output=True, rtol=1e-12, atol=1e-12).sol

    def _evaluate(self, times, which, x):
        P, c = self._path(1.0 - times)[:, which]
        return -0.5 * P * x[:, 0] ** 2 + c, -P[:, None] * x

    def _steer(self, times, which, gradient):
        return gradient


def test_the_two_checks_reject_a_wrong_sign_and_a_wrong_constant():
    lq = LogSumExpReward.quadratic([[1.0]], [0.0], temperature=1.0)
    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=LinearDrift([[-1.0]], [0.0]),
        diffusion=1.0,
        running_reward=lambda t, x: -0.5 * x[..., 0] ** 2,
        terminal_reward=lq,
        initial_law=Gaussian([0.0], 0.5),
    )
    rng = np.random.default_rng(6)
    x, t = points(problem, 100, rng), inner_times(problem, 100, rng, 5e-3)
    assert hjb_residual(problem, Wrong(sign=1), t, x).max() < 1e-8
    assert hjb_residual(problem, Wrong(sign=-1), t, x).max() > 0.1
    right = LinearQuadratic(drift=problem.drift, diffusion=1.0, terminal=lq, horizon=1.0, Q=[[1.0]])
    np.testing.assert_allclose(right.value(t, x), Wrong(sign=1).value(t, x), atol=1e-11)
    mean, error = feynman_kac(problem, 0.0, np.array([0.5]), pairs=40_000, steps=16, rng=rng)
    exact = np.exp(right.value(0.0, [0.5]))
    assert abs(mean - exact) < 4 * error < abs(mean - 1.02 * exact)


# ---------------------------------------------------------------------------------------------------------------------
# Linear-quadratic


def hamiltonian_P(A, Lambda, alpha, Q, R, s):
    """P by the linear Hamiltonian flow, a second road to the Riccati equation."""
    d = len(A)
    flow = expm(np.block([[-A, Lambda / alpha], [Q, A.T]]) * s) @ np.vstack([np.eye(d), R])
    return flow[d:] @ np.linalg.inv(flow[:d])


@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_riccati_against_the_hamiltonian_flow(d):
    rng = np.random.default_rng(d)
    A, root = -np.eye(d) + 0.5 * rng.normal(size=(d, d)), rng.normal(size=(d, d))
    Lambda, (Q, R) = 0.5 * np.eye(d) + root @ root.T / d, rng.normal(size=(2, d, d))
    Q, R = Q @ Q.T / d, R @ R.T / d
    reward = LogSumExpReward.quadratic(R, np.zeros(d), temperature=0.8)
    exact = LinearQuadratic(drift=LinearDrift(A, np.zeros(d)), diffusion=Lambda, terminal=reward, horizon=2.0, Q=Q)
    for t in np.linspace(0, 2, 23):
        P = exact.coefficients(t)[0][0, 0]
        np.testing.assert_allclose(P, hamiltonian_P(A, Lambda, 0.8, Q, R, 2 - t), rtol=0, atol=1e-11)


def test_only_the_symmetric_part_of_the_rewards_counts():
    drift, x = LinearDrift(np.zeros((2, 2)), np.zeros(2)), np.random.default_rng(7).normal(size=(20, 2))
    R = np.array([[1.0, 0.8], [0.0, 1.0]])
    lopsided, symmetric = (LogSumExpReward.quadratic(M, np.zeros(2), temperature=1.0) for M in (R, (R + R.T) / 2))
    np.testing.assert_allclose(lopsided(x), -0.5 * np.einsum("ni,ij,nj->n", x, R, x))
    values = [
        LinearQuadratic(drift=drift, diffusion=1.0, terminal=y, horizon=1.0, Q=M).value(0.0, x)
        for y, M in ((lopsided, R), (symmetric, (R + R.T) / 2))
    ]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize(("horizon", "blow_up"), [(1.5, 0.5), (1.0 + 1e-6, 1e-6), (30.0, 29.0)])
def test_blow_up_is_found_at_its_time(horizon, blow_up):
    """Brownian motion with y = x^2/2: P = -1 / (1 - (T - t)) is infinite at T - t = 1."""
    reward = LogSumExpReward.quadratic([[-1.0]], [0.0], temperature=1.0)
    with pytest.raises(InfiniteValueError, match=r"the value is \+infinity before t = ") as caught:
        LinearQuadratic(drift=LinearDrift([[0.0]], [0.0]), diffusion=1.0, terminal=reward, horizon=horizon)
    assert float(str(caught.value).split("t = ")[1].split(":")[0]) == pytest.approx(blow_up, abs=1e-6)


def test_rewards_just_short_of_blow_up_are_solved():
    reward = LogSumExpReward.quadratic([[-1.0]], [0.0], temperature=1.0)
    exact = LinearQuadratic(drift=LinearDrift([[0.0]], [0.0]), diffusion=1.0, terminal=reward, horizon=0.999)
    assert exact.coefficients(0.0)[0].item() == pytest.approx(-1000.0, rel=1e-9)


def test_blow_up_from_the_running_reward_and_of_one_term_among_several():
    drift, flat = LinearDrift([[0.0]], [0.0]), LogSumExpReward.linear([0.0], temperature=1.0)
    with pytest.raises(InfiniteValueError, match=r"before t = 0\.42920") as caught:  # P = -tan(T - t), pi/2 to go
        LinearQuadratic(drift=drift, diffusion=1.0, terminal=flat, horizon=2.0, Q=[[-1.0]])
    assert "raise the temperature" in str(caught.value)
    two = LogSumExpReward(temperature=1.0, R=[[[1.0]], [[-1.0]]], s=np.zeros((2, 1)), s0=np.zeros(2))
    with pytest.raises(InfiniteValueError, match=r"before t = 0\.5000"):
        LinearQuadratic(drift=drift, diffusion=1.0, terminal=two, horizon=1.5)


@pytest.mark.parametrize(("diffusion", "horizon"), [(1e12, 1.0), (1.0, 1e12)])
def test_riccati_equations_that_would_take_for_ever_are_given_up_soon(diffusion, horizon):
    with pytest.raises(ProblemError, match=r"too stiff to be integrated to T = 1.*: [57][05]00 evaluations went"):
        LinearQuadratic(
            drift=LinearDrift([[-1.0]], [0.0]),
            diffusion=diffusion,
            terminal=LogSumExpReward.quadratic([[1.0]], [0.0], temperature=1.0),
            horizon=horizon,
            Q=[[1.0]],
        )


def test_riccati_equations_that_only_take_long_are_solved():
    """6000 evaluations: P has long been sqrt(2) - 1, whose steps stability keeps short."""
    long = LinearQuadratic(
        drift=LinearDrift([[-1.0]], [0.0]),
        diffusion=1.0,
        terminal=LogSumExpReward.quadratic([[1.0]], [0.0], temperature=1.0),
        horizon=600.0,
        Q=[[1.0]],
    )
    assert long.policy(0.0, [[1.0]]).item() == pytest.approx(1.0 - np.sqrt(2.0), rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Reflected Brownian motion, products, rewards


def test_cosine_series_with_two_modes_by_hand():
    series = CosineSeries([2.0, 1.0], lower=1.0, upper=3.0, diffusion=0.5, horizon=1.0, temperature=2.0, running=0.3)
    decay = np.exp(-0.25 * (np.pi / 2) ** 2 * 0.4)
    x = 1.7
    f = 2 + decay * np.cos(np.pi * (x - 1) / 2)
    assert series.value(0.6, [[x]]).item() == pytest.approx(2 * np.log(f) + 0.3 * 0.4, rel=1e-14)
    assert np.abs(series.gradient(0.3, [[1.0], [3.0]])).max() < 1e-14  # no flux through the ends


def test_positivity_of_a_cosine_series_is_decided_at_its_minimum():
    def build(c):
        return CosineSeries(c, lower=0.0, upper=1.0, diffusion=1.0, horizon=1.0, temperature=1.0)

    wiggle = np.array([0.0, 0.3, 0.0, -0.5, 0.2, 0.4])
    grid = np.cos(np.arange(6) * np.pi * np.linspace(0, 1, 200_001)[:, None]) @ wiggle
    assert build(wiggle + np.eye(6)[0] * (1e-6 - grid.min())).value(1.0, [[0.5]]).shape == (1,)
    with pytest.raises(ProblemError, match=r"must be positive on the interval, its minimum is -1\.\d+e-06; enlarge"):
        build(wiggle + np.eye(6)[0] * (-1e-6 - grid.min()))
    assert (build([2.0]).gradient(0.0, [[0.3]]) == 0).all()
    assert (build([2.0, 0.0, 0.0]).gradient(0.0, [[0.3]]) == 0).all()


def test_product_is_the_sum_of_its_factors():
    problem = PROBLEMS["reflected"]
    first, second = problem.exact.factors
    x, t = problem.initial_law.sample(20, np.random.default_rng(13)), np.linspace(0, 0.7, 20)
    np.testing.assert_allclose(problem.exact.value(t, x), first.value(t, x[:, :1]) + second.value(t, x[:, 1:]))
    np.testing.assert_array_equal(problem.exact.policy(t, x)[:, 1:], second.policy(t, x[:, 1:]))


def test_log_mixture_reward_is_the_log_of_its_kernels():
    x = np.random.default_rng(14).normal(size=(5, 4, 2))
    kernels = [
        w * np.exp(-0.5 * np.einsum("...i,ij,...j->...", x - m, np.linalg.inv(C), x - m))
        for w, m, C in zip([0.5, 1.5, 0.7], MEANS, COVS, strict=True)
    ]
    np.testing.assert_allclose(TARGETS(x), 0.6 * np.log(np.sum(kernels, 0)), rtol=1e-12, atol=1e-13)


ZERO = LinearDrift(np.zeros((2, 2)), np.zeros(2))
FLAT = LogSumExpReward.linear([0.0, 0.0], temperature=1.0)
LINE = LogSumExpReward.linear([0.0], temperature=1.0)
SERIES = {"lower": 0.0, "upper": 1.0, "diffusion": 1.0, "horizon": 1.0, "temperature": 1.0}


def lq(**changes):
    return LinearQuadratic(**{"drift": ZERO, "diffusion": 1.0, "terminal": FLAT, "horizon": 1.0, **changes})


BAD = {
    "Q-shape": (lambda: lq(Q=np.eye(3)), r"Q must have shape \(2, 2\), got shape \(3, 3\)"),
    "q-shape": (lambda: lq(q=[1.0]), r"q must have shape \(2,\), got shape \(1,\)"),
    "q0-nan": (lambda: lq(q0=np.nan), "q0 must be finite"),
    "horizon": (lambda: lq(horizon=0.0), "horizon must be a positive finite number, got 0.0"),
    "terminal-dim": (lambda: lq(terminal=LINE), "terminal reward has dimension 1, the drift has dimension 2"),
    "reward-shape": (
        lambda: LogSumExpReward(temperature=1.0, R=np.eye(2), s=np.zeros(2), s0=0.0),
        r"s must have shape \(k, d\), one row for each of the k terms, got shape \(2,\)",
    ),
    "reward-R": (
        lambda: LogSumExpReward.quadratic(np.eye(3), np.zeros(2), temperature=1.0),
        r"R must have shape \(1, 2, 2\), got shape \(1, 3, 3\)",
    ),
    "reward-temperature": (lambda: LogSumExpReward.linear([1.0], temperature=-1.0), "temperature must be a positive"),
    "kernel-weights": (
        lambda: LogSumExpReward.log_mixture([1.0, 0.0], np.zeros((2, 1)), np.ones((2, 1, 1)), temperature=1.0),
        "weights of a log-mixture reward must be positive",
    ),
    "kernel-means": (
        lambda: LogSumExpReward.log_mixture([1.0], [0.0], [[[1.0]]], temperature=1.0),
        r"means must have shape \(k, d\), got shape \(1,\)",
    ),
    "series-negative": (lambda: CosineSeries([1.0, 1.5], **SERIES), "its minimum is -0.5; enlarge the constant"),
    "series-interval": (lambda: CosineSeries([1.0], **{**SERIES, "upper": -1.0}), "upper - lower must be a positive"),
    "series-diffusion": (lambda: CosineSeries([1.0], **{**SERIES, "diffusion": 0.0}), "diffusion must be a positive"),
    "product-empty": (Product, r"Product needs one or more closed forms, got \(\)"),
    "product-callable": (lambda: Product(np.sin), r"needs one or more closed forms, got \(ufunc\)"),
    "product-horizons": (lambda: Product(lq(), lq(horizon=2.0)), r"must share one horizon, got \[1.0, 2.0\]"),
    "product-temperatures": (
        lambda: Product(lq(), CosineSeries([1.0], **{**SERIES, "temperature": 0.5})),
        r"must share one temperature, got \[0.5, 1.0\]",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_ill_formed_closed_forms_are_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()


@pytest.mark.parametrize("diffusion", [-1.0, [[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]]])
def test_diffusions_that_are_not_elliptic_are_refused(diffusion):
    with pytest.raises(EllipticityError, match="symmetric positive definite, its smallest eigenvalue is"):
        lq(diffusion=diffusion)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lq().value(0.0, np.zeros((3, 1))), r"points in rows, shape \(\.\.\., 2\)"),
        (lambda: lq().gradient(1.5, np.zeros((3, 2))), r"t must lie in \[0, 1\]"),
        (lambda: lq().policy(np.zeros(4), np.zeros((3, 2))), r"broadcast to x.shape\[:-1\] = \(3,\), got shape \(4,\)"),
        (lambda: lq().value(0.0, [[np.nan, 0.0]]), "got 1 non-finite points"),
        (
            lambda: CosineSeries([1.0], **SERIES).value(0.0, [[0.5], [1.2]]),
            r"must lie in \[0, 1\], where the process is reflected; 1 of 2 do not, the first is 1.2",
        ),
    ],
    ids=["dim", "time", "times", "nan", "outside"],
)
def test_ill_formed_arguments_are_refused(call, message):
    with pytest.raises(DomainError, match=message):
        call()


def test_what_is_kept_is_told_apart_by_every_number():
    def value(A=-0.5, a=0.1, diffusion=1.2, R=1.0, s=0.3, s0=0.2, temperature=0.8, **changes):
        given = {"horizon": 0.7, "Q": [[0.6]], "q": [0.4], "q0": 0.1} | changes
        terminal = LogSumExpReward(temperature=temperature, R=[[[R]]], s=[[s]], s0=[s0])
        form = LinearQuadratic(drift=LinearDrift([[A]], [a]), diffusion=diffusion, terminal=terminal, **given)
        return float(form.value(0.2, [0.9]))

    numbers = {"A": -0.4, "a": 0.2, "diffusion": 1.3, "R": 0.9, "s": 0.4, "s0": 0.3, "temperature": 0.9}
    numbers |= {"horizon": 0.8, "Q": [[0.5]], "q": [0.3], "q0": 0.2}
    usual = value()
    assert value() == usual
    assert [name for name, other in numbers.items() if abs(value(**{name: other}) - usual) < 1e-4] == []
