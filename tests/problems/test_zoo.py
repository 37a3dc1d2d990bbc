"""The zoo: every problem, in every dimension it makes sense in, is what its docstring and its closed form say."""

import numpy as np
import pytest
from scipy.linalg import expm

import fem_hjb as fh
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems import zoo
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.problem import LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.problems.zoo import registry
from fem_hjb.support.errors import EllipticityError, FemHjbError, InfiniteValueError, ProblemError
from tests.support.exactness import (
    feynman_kac,
    fokker_planck_residual,
    gradient_error,
    hjb_residual,
    inner_times,
    simulate,
    space_derivative,
)

DIMS = (1, 2, 3)
CASES = [(name, d) for name in zoo.names() for d in DIMS if zoo.dims(name) is None or d in zoo.dims(name)]
# of wide kernels, and noise that does not change much: simulation by a few steps is then right
FEW = {name: {"bandwidth": 0.5, "beta": 2.0} for name in ("two-moons", "checkerboard", "eight-gaussians", "swiss-roll")}
FEW["two-moons"] |= {"n": 9}
FEW["checkerboard"] |= {"side": 1}
FEW["swiss-roll"] |= {"n": 12}
MILD = {**FEW, "foellmer-mixture": {"side": 2, "gap": 1.5, "variance": 0.6, "horizon": 1.0}}
PROBLEMS = {f"{name}-{d}d": zoo.get(name, d, **MILD.get(name, {})) for name, d in CASES}
PROBLEMS |= {
    f"mixture-diffusion-{d}d-{reward}": zoo.get("mixture-diffusion", d, reward=reward, beta=(0.5, 3.0), strength=0.5)
    for d in DIMS
    for reward in ("linear", "log-mixture")
}
PROBLEMS |= {
    "mixture-diffusion-eta": zoo.get("mixture-diffusion", 2, eta=0.5),
    "brownian-mixture-ou": zoo.get("brownian-mixture", 2, A=[[-1.0, 0.5], [0.0, -0.3]], Lambda=0.7, temperature=0.5),
    "lq-shifted": zoo.get("lq", 2, a=[0.3, -0.2], q=[0.1, 0.4], s=[0.5, 0.0], mean=[1.0, 0.0], temperature=0.4),
    "soc-ou-quadratic-hard": zoo.get("soc-ou-quadratic", 2, setting="hard", x0=[0.4, 0.6], horizon=0.6),
    "soc-ou-linear-cold": zoo.get("soc-ou-linear", 2, seed=1, x0=0.3, temperature=0.5, horizon=0.7),
    "reflected-running": zoo.get("reflected", 2, running=0.7, lower=[-1.0, 0.0], upper=[1.0, 0.6], Lambda=[1.0, 0.1]),
}
JUMPS = ("digital-option", "down-and-out-call", "double-slit")  # in tests/problems/test_zoo_settings.py
ON_MESHES = ("annulus", "plate", "lshape")  # in tests/problems/test_zoo_domains.py
ELSEWHERE = (*JUMPS, *ON_MESHES)
EXACT = {name: of for name, of in PROBLEMS.items() if of.exact is not None and of.name not in ELSEWHERE}
SIMULATED = {  # the other data sets have the process of two-moons
    name: problem for name, problem in EXACT.items() if problem.name not in FEW or problem.name == "two-moons"
}
MARGINAL = {name: problem for name, problem in PROBLEMS.items() if problem.marginal is not None}


def each(problems):
    return pytest.mark.parametrize("problem", problems.values(), ids=problems)


def points(problem, n, rng):
    x = problem.initial_law.sample(n, rng)
    if isinstance(problem.initial_law, PointMass):
        x = x + 0.5 * rng.standard_normal(x.shape)
    if problem.domain is None or problem.name in ON_MESHES:
        return x
    lower, upper = problem.domain.bounds
    return np.clip(x, lower + 0.02, upper - 0.02)


@each(EXACT)
def test_closed_forms_solve_the_hjb_equation(problem):
    rng = np.random.default_rng(0)
    x, t = points(problem, 200, rng), inner_times(problem, 200, rng, 2e-3 * problem.horizon)
    assert hjb_residual(problem, problem.exact, t, x).max() < 1e-7
    assert gradient_error(problem, problem.exact, t, x) < 1e-8
    np.testing.assert_allclose(problem.exact.value(problem.horizon, x), problem.y(x), atol=1e-12)
    expected = problem.policy_from_gradient(t, x, problem.exact.gradient(t, x))
    np.testing.assert_allclose(problem.exact.policy(t, x), expected, rtol=1e-13, atol=1e-14)


@each(SIMULATED)
def test_closed_forms_agree_with_feynman_kac_simulation(problem):
    rng = np.random.default_rng(1)
    spread = np.sqrt(np.diag(problem.initial_law.covariance))
    for t, side in ((0.0, 0.5), (0.4 * problem.horizon, -0.5)):
        x = problem.initial_law.expectation + side * spread
        mean, error = feynman_kac(problem, t, x, pairs=8000, steps=16, rng=rng)
        exact = np.exp(problem.exact.value(t, x) / problem.temperature)
        assert error < 8e-3 * exact  # the test has teeth
        assert abs(mean - exact) < 4 * error


@each(MARGINAL)
def test_marginals_follow_the_process(problem):
    rng, n = np.random.default_rng(2), 20_000
    times = np.linspace(0.0, problem.horizon, 33)
    start = problem.initial_law.sample(n, rng)
    states = simulate(problem, start, times, rng.standard_normal((32, n, problem.dim)))
    for k in (0, 16, 32):
        law, x = problem.marginal(times[k]), states[k]
        centred = x - law.expectation
        products = centred[:, :, None] * centred[:, None, :]
        assert (np.abs(centred.mean(0)) <= 4.5 * centred.std(0) / np.sqrt(n)).all()
        assert (np.abs(products.mean(0) - law.covariance) <= 4.5 * products.std(0) / np.sqrt(n)).all()


@each(MARGINAL)
def test_marginals_solve_the_fokker_planck_equation_and_start_at_the_initial_law(problem):
    x = points(problem, 100, np.random.default_rng(3))
    for t in (0.2, 0.8):
        assert fokker_planck_residual(problem, t * problem.horizon, x).max() < 1e-8
    if isinstance(problem.initial_law, PointMass):  # no density
        assert problem.marginal(0.0) is problem.initial_law
    else:
        np.testing.assert_allclose(problem.marginal(0.0).logpdf(x), problem.initial_law.logpdf(x), rtol=1e-12)


@each(PROBLEMS)
def test_coefficients_take_scalar_and_batched_times_alike(problem):
    x = points(problem, 12, np.random.default_rng(4)).reshape(3, 4, problem.dim)
    t = np.linspace(0.0, problem.horizon, 12).reshape(3, 4)
    for function in (problem.b, problem.r, problem.Lambda):
        rows = [function(s, y) for s, y in zip(t.ravel(), x.reshape(12, -1), strict=True)]
        np.testing.assert_allclose(function(t, x).reshape(12, -1), np.reshape(rows, (12, -1)), rtol=1e-12)
    assert problem.y(x).shape == (3, 4)


@pytest.mark.parametrize("name", zoo.names())
def test_every_problem_says_what_it_is(name):
    text = registry._entry(name).build.__doc__
    assert zoo.describe(name) == text.splitlines()[0]
    assert 10 < len(zoo.describe(name)) < 80
    assert "Source:" in text
    assert "dX" in text
    assert zoo.get(name).name == name
    undocumented = [key for key in zoo.parameters(name) if key not in text and key not in ("horizon", "temperature")]
    assert undocumented == []


@pytest.mark.parametrize("name", zoo.names())
def test_a_high_dimension_is_no_obstacle_where_it_makes_sense(name):
    if zoo.dims(name) is None:
        problem = zoo.get(name, 12)
        x = problem.initial_law.sample(3, np.random.default_rng(5))
        assert problem.exact is None or np.isfinite(problem.exact.value(0.0, x)).all()
    else:
        with pytest.raises(ProblemError, match=rf"'{name}' makes sense in dim = .* only, got dim=12"):
            zoo.get(name, 12)


def test_the_one_dimensional_lq_is_the_stationary_ornstein_uhlenbeck_process():
    problem, x = zoo.get("lq"), np.array([[0.5], [2.0]])
    assert (problem.dim, problem.horizon, problem.temperature) == (1, 1.0, 1.0)
    np.testing.assert_array_equal(problem.b(0.0, x), -x)
    assert problem.constant_diffusion.item() == 1.0
    np.testing.assert_allclose(problem.r(0.0, x), -0.5 * x[:, 0] ** 2)
    np.testing.assert_allclose(problem.y(x), -0.5 * x[:, 0] ** 2)
    for t in (0.0, 0.4, 1.0):
        assert problem.marginal(t).covariance.item() == pytest.approx(0.5, abs=1e-14)


@pytest.mark.parametrize("d", [2, 3])
def test_the_lq_of_more_dimensions_is_coupled_and_stationary(d):
    problem = zoo.get("lq", d)
    A = problem.drift.coefficients[0]
    assert np.abs(A - A.T).max() > 0.5
    C = problem.marginal(0.0).covariance
    np.testing.assert_allclose(problem.marginal(1.0).covariance, C, atol=1e-13)
    current = A @ C + 0.5 * problem.constant_diffusion  # vanishes iff the stationary process is reversible
    assert np.abs(current).max() > 0.1
    hessian = space_derivative(problem.exact.gradient, 0.0, np.zeros((1, d)), 1e-2)[0]
    assert np.abs(hessian[~np.eye(d, dtype=bool)]).max() > 0.05


def test_linear_drifts_are_said_to_be_linear():
    for name in ("lq", "linear-ou", "brownian-mixture", "reflected"):
        assert isinstance(zoo.get(name, 2).drift, LinearDrift)


def test_linear_ou_has_a_policy_that_does_not_see_x():
    problem = zoo.get("linear-ou", 2)
    policy = problem.exact.policy(0.3, np.random.default_rng(6).normal(size=(9, 2)))
    assert np.ptp(policy, axis=0).max() < 1e-12


@pytest.mark.parametrize("name", ["double-well", "double-well-2d-coupled"])
def test_double_wells_drift_down_their_potential(name):
    problem, x = zoo.get(name, 2), np.random.default_rng(7).normal(size=(20, 2))
    kappa, coupling = (5.0, 0.0) if name == "double-well" else (1.5, 1.0)

    def potential(_, x):
        return kappa * ((x**2 - 1) ** 2).sum(-1) + coupling * x[..., 0] * x[..., 1]

    np.testing.assert_allclose(problem.b(0.0, x), -space_derivative(potential, 0.0, x, 1e-2), rtol=1e-9, atol=1e-9)


def test_double_well_parameters_per_axis():
    problem = zoo.get("double-well", 2, kappa=[1.0, 2.0], nu=[3.0, 0.5], Lambda=[1.0, 4.0])
    np.testing.assert_allclose(problem.b(0.0, [[2.0, 2.0]]), [[-24.0, -48.0]])
    assert problem.y([[2.0, 0.0]]) == -(3 * 9 + 0.5)
    np.testing.assert_array_equal(problem.constant_diffusion, np.diag([1.0, 4.0]))


def test_mixture_diffusion_takes_any_log_sum_exp_reward_and_matches_its_words():
    x = np.random.default_rng(8).normal(size=(10, 2))
    c = np.array([0.5, -1.0])
    words = {
        word: zoo.get("mixture-diffusion", 2, reward=word, strength=2.0, target=c, temperature=0.5)
        for word in ("linear", "quadratic", "log-mixture")
    }
    near, far = ((x - c) ** 2).sum(-1), ((x + c) ** 2).sum(-1)
    np.testing.assert_allclose(words["linear"].y(x), 2 * x @ c)
    np.testing.assert_allclose(words["quadratic"].y(x), -near)
    np.testing.assert_allclose(
        words["log-mixture"].y(x), 0.5 * np.log(0.5 * np.exp(-2 * near) + 0.5 * np.exp(-2 * far))
    )
    own = LogSumExpReward.quadratic(2 * np.eye(2), 2 * c, s0=-c @ c, temperature=0.5)
    same = zoo.get("mixture-diffusion", 2, reward=own, temperature=0.5)
    np.testing.assert_allclose(same.exact.value(0.2, x), words["quadratic"].exact.value(0.2, x), atol=1e-12)


# the benchmarks of SOC matching: cost = E[ int |u|^2/2 + f dt + g ] under dX = (b + sigma u) dt + lambda^{1/2} sigma dB


def soc_costs(problem, f, g, sigma, control, x0, *, n, steps, rng):
    """The cost of each path under the control, in the source's formulation; plus lambda^{1/2} int u'dB, of mean 0."""
    lam, h = problem.temperature, problem.horizon / steps
    x, cost = np.tile(x0, (n, 1)), np.zeros(n)
    for k in range(steps):
        u, noise = control(k * h, x), np.sqrt(lam * h) * rng.standard_normal(x.shape)
        cost += h * (0.5 * (u**2).sum(-1) + f(x)) + (u * noise).sum(-1)
        x = x + h * (problem.b(k * h, x) + u @ sigma.T) + noise @ sigma.T
    return cost + g(x)


XI = np.array([[0.2, -0.3], [0.1, 0.4]])
SOC = {
    "quadratic-easy": (
        zoo.get("soc-ou-quadratic", 2, temperature=0.6, x0=[0.4, 0.6]),
        lambda x: 0.2 * (x**2).sum(-1),
        lambda x: 0.1 * (x**2).sum(-1),
        np.eye(2),
    ),
    "quadratic-hard": (
        zoo.get("soc-ou-quadratic", 2, temperature=0.6, setting="hard", x0=[0.4, 0.6]),
        lambda x: (x**2).sum(-1),
        lambda x: 0.5 * (x**2).sum(-1),
        np.eye(2),
    ),
    "linear": (
        zoo.get("soc-ou-linear", 2, temperature=0.6, xi=XI, x0=[0.4, 0.6]),
        lambda x: np.zeros(len(x)),
        lambda x: x.sum(-1),
        np.eye(2) + XI,
    ),
}


@pytest.mark.parametrize(("problem", "f", "g", "sigma"), SOC.values(), ids=SOC)
def test_the_optimal_cost_of_the_source_is_minus_the_value(problem, f, g, sigma):
    x0 = problem.initial_law.expectation
    optimum = -problem.exact.value(0.0, x0)

    def control(t, x):
        return problem.exact.policy(t, x) @ np.linalg.inv(sigma).T

    def cost(scale, n, steps):
        def scaled(t, x):
            return scale * control(t, x)

        paths = soc_costs(problem, f, g, sigma, scaled, x0, n=n, steps=steps, rng=np.random.default_rng(10))
        return paths.mean(), paths.std() / np.sqrt(n)

    # Along the optimal paths this cost is a constant but for the time step, whose bias of first order is extrapolated.
    (coarse, rough), (fine, error) = cost(1.0, 500, 100), cost(1.0, 500, 200)
    assert error < 2e-3 * (1 + optimum)
    assert abs(2 * fine - coarse - optimum) < 3 * np.hypot(2 * error, rough)
    for scale in (0.0, 2.0):
        mean, error = cost(scale, 4000, 100)
        assert mean - optimum > 3 * error


def test_soc_matching_has_the_dimensions_and_starts_of_its_source():
    quadratic, linear, well, molecule = (
        zoo.get(f"soc-{name}") for name in ("ou-quadratic", "ou-linear", "double-well", "molecular-dynamics")
    )
    assert [p.dim for p in (quadratic, linear, well, molecule)] == [20, 10, 10, 1]
    assert all((p.horizon, p.temperature) == (1.0, 1.0) for p in (quadratic, linear, well, molecule))
    np.testing.assert_array_equal(quadratic.initial_law.covariance, 0.25 * np.eye(20))
    for problem, start in ((linear, 0.0), (well, 0.0), (molecule, -1.0)):
        np.testing.assert_array_equal(problem.initial_law.point, np.full(problem.dim, start))
    A = linear.drift.coefficients[0]
    xi = A + np.eye(10)
    assert 0.08 < xi.std() < 0.12
    sigma = np.eye(10) + xi
    np.testing.assert_allclose(linear.constant_diffusion, sigma @ sigma.T)
    np.testing.assert_array_equal(zoo.get("soc-ou-linear", seed=0).drift.A, A)
    assert (zoo.get("soc-ou-linear", seed=1).drift.A != A).all()


@pytest.mark.parametrize("setting", ["easy", "hard"])
def test_the_value_of_the_quadratic_setting_is_finite_in_high_dimension_and_separates(setting):
    problem, one = zoo.get("soc-ou-quadratic", setting=setting), zoo.get("soc-ou-quadratic", 1, setting=setting)
    x = problem.initial_law.sample(5, np.random.default_rng(11))
    for t in (0.0, 0.6):
        parts = one.exact.value(t, x[..., None]).sum(-1)
        np.testing.assert_allclose(problem.exact.value(t, x), parts, rtol=1e-10)


def test_the_linear_setting_has_the_control_of_its_source():
    problem = zoo.get("soc-ou-linear", 3, xi=0.1 * np.arange(9).reshape(3, 3))
    sigma, A = np.eye(3) + 0.1 * np.arange(9).reshape(3, 3), problem.drift.A
    u = np.linalg.solve(sigma, problem.exact.policy(0.3, [0.5, -1.0, 2.0]))
    np.testing.assert_allclose(u, -sigma.T @ expm(0.7 * A.T) @ np.ones(3), rtol=1e-9)


def test_the_double_well_of_soc_matching_is_deep_on_three_axes():
    problem, x = zoo.get("soc-double-well", 5), np.array([0.0, 0.5, -2.0, 0.0, 3.0])
    np.testing.assert_allclose(problem.b(0.0, x), [0.0, 7.5, 120.0, 0.0, -96.0])
    assert problem.y(x) == -(3 + 3 * 0.75**2 + 3 * 9 + 1 + 64)
    np.testing.assert_allclose(zoo.get("soc-double-well", 2, kappa=1.0).b(0.0, [2.0, 2.0]), [-24.0, -24.0])
    np.testing.assert_array_equal(zoo.get("soc-double-well", 2, temperature=0.5).constant_diffusion, 0.5 * np.eye(2))


def test_molecular_dynamics_stops_at_the_barrier():
    """E exp(-min(tau, T)) by simulation, against finite differences for the linear equation on [-3, 0]."""
    problem, n, steps = zoo.get("soc-molecular-dynamics"), 30_000, 200
    assert (problem.domain.absorbing, problem.domain.bounds[1].tolist()) == (True, [0.0])
    x = sample_paths(problem, n=n, steps=steps, rng=12).x
    time = problem.horizon * (~problem.domain.exited(x)).mean(axis=1) * (steps + 1) / steps  # counts t = 0, too
    reward = np.exp(-np.minimum(time, 1.0))

    m = 300
    width = 3.0 / m
    grid = -3.0 + width * np.arange(m)  # the node at 0 is known: f = 1 there
    drift = -4 * grid * (grid**2 - 1)
    up, down = 0.5 / width**2 + drift / (2 * width), 0.5 / width**2 - drift / (2 * width)
    up[0], down[0] = 1.0 / width**2, 0.0  # f' = 0 far out
    L = np.diag(up[:-1], 1) + np.diag(down[1:], -1) - np.diag(np.full(m, 1.0 / width**2 + 1.0))
    whole = np.zeros((m + 1, m + 1))
    whole[:m, :m], whole[m - 1, m] = L, up[-1]
    f = expm(problem.horizon * whole) @ np.ones(m + 1)
    exact = f[np.argmin(abs(grid + 1.0))]
    error = reward.std() / np.sqrt(n)
    assert error < 1e-3
    assert abs(reward.mean() - exact) < 3 * error
    assert exact - np.exp(-1.0) > 30 * error  # what a process that is not stopped would pay


def test_a_problem_is_entered_as_one_function(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @zoo.register(dims=(1, 2))
    def my_new_problem(dim, *, size=1.0):
        """A problem of my own."""
        return zoo.get("lq", dim, s=size)

    assert "my-new-problem" in zoo.names()
    assert zoo.describe("my-new-problem") == "A problem of my own."
    assert zoo.parameters("my-new-problem") == {"size": 1.0}
    assert zoo.get("my-new-problem", 2, size=0.3).dim == 2
    assert zoo.get("my-new-problem").dim == 1

    @zoo.register(default_dim=4)
    def my_benchmark(dim):
        """A benchmark of my own."""
        return zoo.get("lq", dim)

    assert zoo.get("my-benchmark").dim == 4


def test_a_problem_entered_from_outside_is_solved_like_the_others(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @fh.zoo.register(dims=(1, 2))
    def steered_walk(dim, *, target=1.0):
        """Brownian motion paid for ending near a target."""
        return fh.ControlProblem(
            dim=dim,
            horizon=0.5,
            temperature=1.0,
            drift=lambda t, x: 0.0 * x,
            diffusion=1.0,
            terminal_reward=lambda x: -((x - target) ** 2).sum(-1),
            initial_law=fh.Gaussian(np.zeros(dim), 0.2),
        )

    problem = fh.zoo.get("steered-walk", target=0.5)
    found, x = fh.solve(problem, rtol=1e-6), np.array([[0.0], [0.4]])
    np.testing.assert_allclose(found.value(0.0, x), -0.5 * np.log(2.0) - (x[:, 0] - 0.5) ** 2 / 2.0, atol=1e-5)
    assert zoo.register(dims=(1,))(steered_walk) is steered_walk  # the same function again, in a notebook's cell
    assert zoo.dims("steered-walk") == (1,)


@pytest.mark.parametrize("name", FEW)
def test_data_sets_are_where_they_are_said_to_be(name):
    problem = zoo.get(name)
    assert problem.dim == 2
    data = problem.marginal(problem.horizon)
    weights, x = data.components
    np.testing.assert_allclose(weights, 1 / len(x), rtol=1e-13)
    radius = np.hypot(*x.T)
    if name == "two-moons":
        centres = np.array([[-1.0, -0.2]] * 32 + [[1.0, 0.8]] * 32)
        np.testing.assert_allclose(np.hypot(*(x - centres).T), 2.0, rtol=1e-13)
        assert (x[:32, 1] > -0.2).all()
        assert (x[32:, 1] < 0.8).all()
    elif name == "checkerboard":
        i, j = np.floor(x / 2).astype(int).T
        assert ((i + j) % 2 == 0).all()
        assert np.abs(x).max() < 4
        assert np.unique(i * 4 + j, return_counts=True)[1].tolist() == [36] * 8
    elif name == "eight-gaussians":
        np.testing.assert_allclose(radius, np.sqrt(8.0), rtol=1e-13)
        np.testing.assert_allclose(np.diff(np.unwrap(np.arctan2(x[:, 1], x[:, 0]))), np.pi / 4, rtol=1e-13)
    else:
        np.testing.assert_allclose(np.unwrap(np.arctan2(x[:, 1], x[:, 0])) + 2 * np.pi, 5 * radius, rtol=1e-12)
        assert (5 * radius[[0, -1]] / np.pi).round(1).tolist() == [1.5, 4.5]
    gaps = np.sort(np.hypot(*np.moveaxis(x[:, None] - x, -1, 0)) + 9 * np.eye(len(x)), axis=1)[:, 0]
    assert name == "eight-gaussians" or gaps.max() < 1.2 * data.bandwidth  # so that the density is smooth


def test_a_data_set_is_solved_like_any_mixture():
    problem = PROBLEMS["checkerboard-2d"]
    found = fh.solve(problem, rtol=1e-2)
    assert found.status == "ok"
    errors = fh.compare({"found": found}, problem.exact, problem=problem, order=8).overall("found")
    assert 1e-8 < errors.value < 1e-3
    assert 1e-8 < errors.policy < 1e-2


def test_data_sets_are_forgotten_at_the_start():
    start = zoo.get("checkerboard").initial_law
    assert np.abs(start.expectation).max() < 1e-3
    np.testing.assert_allclose(start.covariance, np.eye(2), atol=1e-3)


def lq(dim):
    return zoo.get("lq", dim)


def my_problem(dim):
    return zoo.get("lq", dim + 1)


def no_problem(dim):
    return dim


def without_dim(size=1.0):
    return zoo.get("lq")


def without_default(dim, *, size):
    return zoo.get("lq", dim)


def positional(dim, size=1.0):
    return zoo.get("lq", dim)


BAD_ENTRIES = {
    "taken": (lambda: zoo.register()(lq), r"there is a problem called 'lq' already, fem_hjb\.problems\.zoo\.\w+\.lq"),
    "lambda": (lambda: zoo.register()(lambda dim: None), "a problem is a function whose name is of small letters"),
    "number": (lambda: zoo.register()(3), "a problem is a function whose name is .* got 3"),
    "without-dim": (lambda: zoo.register()(without_dim), r"'without-dim' must take dim and then .* got \(size=1.0\)"),
    "without-default": (
        lambda: zoo.register()(without_default),
        r"keyword parameters with defaults, .* \(dim, \*, size\)",
    ),
    "positional": (lambda: zoo.register()(positional), r"keyword parameters with defaults, .* got \(dim, size=1.0\)"),
    "dims-empty": (lambda: zoo.register(dims=()), r"dims must be a tuple of dimensions or None, got \(\)"),
    "dims-number": (lambda: zoo.register(dims=2), "dims must be a tuple of dimensions or None, got 2"),
    "dims-zero": (lambda: zoo.register(dims=(0, 1)), "dims must be a positive integer, got 0"),
    "default": (lambda: zoo.register(dims=(1, 2), default_dim=3), r"default_dim must be one of dims = \(1, 2\), got 3"),
    "other-dim": (
        lambda: zoo.register()(my_problem) and zoo.get("my-problem"),
        "'my-problem', dim=1: its builder must return a ControlProblem of this dimension, got one of dim=2",
    ),
    "no-problem": (lambda: zoo.register()(no_problem) and zoo.get("no-problem"), "of this dimension, got int"),
}


@pytest.mark.parametrize(("enter", "message"), BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_ill_formed_entries_are_refused(enter, message, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    with pytest.raises(ProblemError, match=message):
        enter()


BAD = {
    "unknown": (lambda: zoo.get("double-wel"), "no problem called 'double-wel'; did you mean 'double-well'"),
    "unknown-far": (lambda: zoo.describe("zzz"), "no problem called 'zzz'; known: lq, linear-ou,"),
    "not-a-word": (lambda: zoo.get(3), "there is no problem called 3"),
    "parameter": (lambda: zoo.get("lq", kapa=1.0), "'lq' has no parameter 'kapa'; it accepts horizon=1.0, temper"),
    "dim": (lambda: zoo.get("lq", 0), "dim must be a positive integer, got 0"),
    "dim-3-of-2": (lambda: zoo.get("double-well-2d-coupled", 3), "makes sense in dim = 2 only, got dim=3"),
    "matrix-shape": (
        lambda: zoo.get("lq", 2, A=np.eye(3)),
        r"'lq', dim=2: A must have shape \(2, 2\), got shape \(3, 3\) \(parameters and defaults: horizon=1.0",
    ),
    "vector-word": (lambda: zoo.get("lq", 2, s="far"), "s must be an array of real numbers"),
    "unstable": (lambda: zoo.get("lq", A=0.5), "no stationary law .* so cov must be given"),
    "temperature": (lambda: zoo.get("linear-ou", temperature=-1.0), "temperature must be a positive finite number"),
    "horizon": (lambda: zoo.get("reflected", horizon=np.inf), "horizon must be a positive finite number"),
    "kappa": (lambda: zoo.get("double-well", 2, kappa=[1.0, -1.0]), "kappa must be positive and nu non-negative"),
    "nu": (lambda: zoo.get("double-well-2d-coupled", nu=-1.0), "kappa must be positive and nu non-negative"),
    "reward-word": (
        lambda: zoo.get("mixture-diffusion", reward="cubic"),
        "reward must be one of 'linear', 'quadratic', 'log-mixture', got 'cubic'",
    ),
    "reward-dim": (
        lambda: zoo.get("mixture-diffusion", 2, reward=LogSumExpReward.linear([1.0], temperature=1.0)),
        "reward has dim=1, temperature=1, the problem has dim=2, temperature=1",
    ),
    "data-dim": (
        lambda: zoo.get("mixture-diffusion", 2, means=[[0.0], [1.0]], covariances=[[[1.0]], [[1.0]]]),
        r"means must have shape \(k, 2\), got points of dimension 1",
    ),
    "eta": (lambda: zoo.get("mixture-diffusion", eta=2.0), r"eta must lie in \(0, 1\]"),
    "count": (lambda: zoo.get("two-moons", n=0), "'two-moons', dim=2: n must be a positive integer, got 0"),
    "count-float": (lambda: zoo.get("swiss-roll", n=8.5), "n must be a positive integer, got 8.5"),
    "side": (lambda: zoo.get("checkerboard", side=10**4), "side must be at most 353, got 10000"),
    "bandwidth": (lambda: zoo.get("eight-gaussians", bandwidth=-0.1), "bandwidth must be a positive finite number"),
    "moons-3d": (lambda: zoo.get("two-moons", 3), "makes sense in dim = 2 only, got dim=3"),
    "moons-reward": (lambda: zoo.get("two-moons", reward="cubic"), "reward must be one of 'linear', 'quadratic'"),
    "moons-outgrown": (lambda: zoo.get("two-moons", reward="quadratic", strength=-30.0), "of bandwidth 0.2; let the"),
    "series": (lambda: zoo.get("reflected", coefficients=[0.1, 1.0]), "cosine series .* must be positive"),
    "box": (lambda: zoo.get("reflected", lower=1.0, upper=0.0), "lower must be below upper"),
    "running": (lambda: zoo.get("reflected", running=np.nan), "running must be finite"),
    "setting": (lambda: zoo.get("soc-ou-quadratic", 1, setting="medium"), "setting must be one of 'easy', 'hard', got"),
    "x0-shape": (lambda: zoo.get("soc-ou-quadratic", 2, x0=[1.0]), r"x0 must have shape \(2,\), got shape \(1,\)"),
    "seed": (lambda: zoo.get("soc-ou-linear", 1, seed=-1), "seed must be a non-negative integer, got -1"),
    "seed-float": (lambda: zoo.get("soc-ou-linear", 1, seed=0.5), "seed must be a non-negative integer, got 0.5"),
    "xi": (lambda: zoo.get("soc-ou-linear", 2, xi=np.eye(3)), r"xi must have shape \(2, 2\), got shape \(3, 3\)"),
    "soc-kappa": (lambda: zoo.get("soc-double-well", 2, kappa=-1.0), "kappa must be positive and nu non-negative"),
    "soc-temperature": (lambda: zoo.get("soc-ou-linear", 2, temperature=0.0), "temperature must be a positive finite"),
    "molecule-start": (lambda: zoo.get("soc-molecular-dynamics", x0=0.5), "x0 must be negative, .* got 0.5"),
    "molecule-2d": (lambda: zoo.get("soc-molecular-dynamics", 2), "makes sense in dim = 1 only, got dim=2"),
    "targets": (lambda: zoo.get("brownian-mixture", 2, means=[[0.0, 0.0]]), r"weights must have shape \(1,\)"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_ill_formed_requests_are_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()


def test_errors_keep_their_kind():
    with pytest.raises(EllipticityError, match="'lq', dim=1: Lambda must be symmetric positive definite"):
        zoo.get("lq", Lambda=-1.0)
    with pytest.raises(InfiniteValueError, match=r"'lq', dim=1: the value is \+infinity before t = 1\.\d+"):
        zoo.get("lq", R=-5.0, horizon=2.0)
    with pytest.raises(InfiniteValueError, match=r"'mixture-diffusion', dim=1: the value is \+infinity up to t = "):
        zoo.get("mixture-diffusion", strength=-8.0)
    with pytest.raises(EllipticityError, match="'soc-ou-linear', dim=1: diffusion must be symmetric positive definite"):
        zoo.get("soc-ou-linear", 1, xi=-1.0)
    assert issubclass(InfiniteValueError, FemHjbError)
