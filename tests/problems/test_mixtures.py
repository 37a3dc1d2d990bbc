"""Diffusion models of mixtures: marginals, scores, tilts against data samples, refusals. See also test_closed_form."""

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.problems.laws import Gaussian, GaussianMixture
from fem_hjb.problems.mixtures import MixtureDiffusion, TiltedKernels, TiltedMixture, from_points
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.support.errors import DomainError, InfiniteValueError, ProblemError
from tests.support.exactness import fokker_planck_residual
from tests.support.tilted import DATA, INDEFINITE, TARGETS, TILTED


@pytest.mark.parametrize("beta", [2.0, (0.2, 5.0), (5.0, 0.2)])
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.05])
def test_every_eta_has_the_same_marginals(beta, eta):
    process = MixtureDiffusion(DATA, horizon=0.9, beta=beta, eta=eta)
    problem = ControlProblem(
        dim=2,
        horizon=0.9,
        temperature=1.0,
        drift=process.drift,
        diffusion=process.diffusion_matrix,
        terminal_reward=lambda x: x[..., 0],
        initial_law=process.marginal(0.0),
        marginal=process.marginal,
    )
    x = process.marginal(0.3).sample(200, np.random.default_rng(9))
    for t in (0.1, 0.5, 0.85):
        assert fokker_planck_residual(problem, t, x).max() < 1e-9


def test_mixture_diffusion_by_hand():
    process = MixtureDiffusion(DATA, horizon=2.0, beta=(0.2, 1.0))
    np.testing.assert_allclose(process.beta([0.0, 1.0, 2.0]), [1.0, 0.6, 0.2])
    np.testing.assert_allclose(process.exponent([0.0, 2.0]), [1.2, 0.0])
    assert process.time_of_exponent(float(process.exponent(0.7))) == pytest.approx(0.7, abs=1e-14)
    x = np.random.default_rng(10).normal(size=(30, 2))
    np.testing.assert_allclose(process.marginal(2.0).logpdf(x), DATA.logpdf(x), rtol=1e-12)
    for t in (0.0, 0.4, 2.0):
        np.testing.assert_allclose(process.score(t, x), process.marginal(t).score(x), rtol=1e-11, atol=1e-12)
    t = np.linspace(0, 2, 30)
    rows = [process.drift(s, y) for s, y in zip(t, x, strict=True)]
    np.testing.assert_allclose(process.drift(t, x), rows, rtol=1e-13)
    assert process.constant_diffusion is None
    assert MixtureDiffusion(DATA, horizon=1.0, beta=2.0, eta=0.5).constant_diffusion == 0.5


def test_score_survives_far_tails_and_empty_components():
    lonely = GaussianMixture([1.0, 0.0], [[0.0], [3.0]], [[[1.0]], [[0.1]]])
    process = MixtureDiffusion(lonely, horizon=1.0, beta=2.0)
    np.testing.assert_allclose(process.score(0.3, np.array([[1e3], [-2.0]])), [[-1e3], [2.0]])
    reward = LogSumExpReward.quadratic([[1.0]], [0.0], temperature=1.0)
    single = MixtureDiffusion(GaussianMixture([1.0], [[0.0]], [[[1.0]]]), horizon=1.0, beta=2.0)
    x = [[50.0], [3.0]]
    np.testing.assert_allclose(
        TiltedMixture(process, reward).value(0.3, x), TiltedMixture(single, reward).value(0.3, x)
    )


@pytest.mark.parametrize("name", ["tilt-linear", "tilt-quadratic", "tilt-mixture"])
def test_tilted_value_by_bayes_rule_from_data_samples(name):
    """f_t(x) = E[e^{y(Y)/alpha} N(x; kappa Y, 1 - kappa^2)] / E[N(x; kappa Y, 1 - kappa^2)] over data Y, no formula of
    the conditional law used."""
    problem, rng, n = TILTED[name], np.random.default_rng(11), 400_000
    data = DATA.sample(n, rng)
    tilt = np.exp(problem.y(data) / problem.temperature)
    for t, x in ((0.0, [0.5, -0.5]), (0.0, [-1.0, 1.0]), (0.4, [0.3, 0.2])):
        exponent = problem.exact._process.exponent(t)
        kappa, variance = np.exp(-exponent / 2), -np.expm1(-exponent)
        weights = np.exp(-0.5 * ((np.array(x) - kappa * data) ** 2).sum(-1) / variance)
        weights /= weights.mean()
        f = (weights * tilt).mean()
        error = (weights * (tilt - f)).std() / np.sqrt(n)
        assert error < 3e-3 * f
        assert abs(f - np.exp(problem.exact.value(t, x) / problem.temperature)) < 4 * error


@pytest.mark.parametrize("beta", [1.5, (0.3, 4.0)])
def test_infinite_tilts_are_found_at_their_time(beta):
    """Data N(0, c) tilted by exp(k x^2/2): X_T | X_t has precision 1/c + kappa^2/sigma^2, which must exceed k."""
    data = GaussianMixture([1.0], [[0.0]], [[[0.5]]])
    process = MixtureDiffusion(data, horizon=1.0, beta=beta)

    def tilt(k):
        return TiltedMixture(process, LogSumExpReward.quadratic([[-2.0 * k]], [0.0], temperature=2.0))

    ratio = 1 / np.expm1(float(process.exponent(0.0)))
    almost = tilt(2.0 + 0.999 * ratio)
    assert np.isfinite(almost.value(0.0, [[1.0]])).all()
    with pytest.raises(InfiniteValueError, match=r"\+infinity up to t = .*outgrows the Gaussian tails") as caught:
        tilt(2.0 + 1.5 * ratio)
    when = float(str(caught.value).split("t = ")[1].split(" ")[0])
    assert 1 / np.expm1(process.exponent(when)) == pytest.approx(1.5 * ratio, rel=1e-6)


def test_controlled_diffusion_ends_in_the_tilted_data_law():
    """Under pi* X_0 keeps the law f_0 p_0 / E f_0 when it starts so; X_T then has the law e^{y/alpha} data / Z."""
    problem = TILTED["tilt-quadratic"]
    rng, n, steps = np.random.default_rng(12), 20_000, 50
    start = problem.initial_law.sample(4 * n, rng)
    f = np.exp(problem.exact.value(0.0, start) / problem.temperature)
    x = start[rng.choice(len(start), n, p=f / f.sum())]
    dt = problem.horizon / steps
    for t in dt * np.arange(steps):
        noise = np.sqrt(dt) * rng.standard_normal(x.shape) @ np.linalg.cholesky(problem.Lambda(t, x)[0]).T
        rates = problem.b(t, x) + problem.exact.policy(t, x)
        ahead = x + dt * rates + noise
        x = x + 0.5 * dt * (rates + problem.b(t + dt, ahead) + problem.exact.policy(t + dt, ahead)) + noise
    data = DATA.sample(20 * n, rng)
    weights = np.exp(problem.y(data) / problem.temperature)
    weights /= weights.sum()
    np.testing.assert_allclose(x.mean(0), weights @ data, atol=0.02)
    np.testing.assert_allclose((x**2).mean(0), weights @ data**2, atol=0.03)
    assert np.abs(DATA.expectation - weights @ data).max() > 0.2  # the tilt is not idle


POINTS = np.array([[-1.0, 0.2], [0.8, -0.5], [0.3, 1.1], [0.3, 1.1]])
WEIGHTS = np.array([0.4, 0.0, 0.5, 0.1])
FEW = from_points(POINTS, 0.4, horizon=0.9, beta=(0.5, 3.0), weights=WEIGHTS)
BY_HAND = MixtureDiffusion(
    GaussianMixture(WEIGHTS, POINTS, np.tile(0.16 * np.eye(2), (4, 1, 1))), horizon=0.9, beta=(0.5, 3.0)
)
REWARDS = {
    "linear": LogSumExpReward.linear([0.4, -0.6], s0=0.1, temperature=0.6),
    "quadratic": LogSumExpReward.quadratic(INDEFINITE, [0.4, 0.1], temperature=0.6),
    "log-mixture": TARGETS,
}


def test_the_diffusion_of_a_few_points_is_that_of_the_mixture_made_by_hand():
    rng = np.random.default_rng(13)
    x, t = 2.0 * rng.normal(size=(6, 5, 2)), rng.uniform(0.0, 0.9, (6, 5))
    for when in (0.0, 0.5, 0.9, t):
        np.testing.assert_allclose(FEW.score(when, x), BY_HAND.score(when, x), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(FEW.drift(when, x), BY_HAND.drift(when, x), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(FEW.marginal(0.3).logpdf(x), BY_HAND.marginal(0.3).logpdf(x), rtol=1e-12)


@pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS)
def test_the_tilt_of_a_few_points_is_that_of_the_mixture_made_by_hand(reward):
    rng = np.random.default_rng(14)
    x, t = 2.0 * rng.normal(size=(6, 5, 2)), rng.uniform(0.0, 0.9, (6, 5))
    found, expected = (process.tilted(reward, temperature=0.6) for process in (FEW, BY_HAND))
    assert isinstance(found.exact, TiltedKernels)
    assert isinstance(expected.exact, TiltedMixture)
    for when in (0.0, 0.9, t):
        for name in ("value", "gradient", "policy"):
            one, other = (getattr(problem.exact, name)(when, x) for problem in (found, expected))
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)
    assert expected.name == "tilted diffusion"


def test_any_reward_tilts_and_its_value_is_the_mean_of_its_exponential():
    """f_0(x) by quadrature of the data law and of the noise, no formula of the tilt used."""

    def reward(x):
        return np.tanh(3.0 * x[..., 0])

    process = from_points([[-1.0], [0.2], [0.9]], 0.4, horizon=0.9, beta=(0.5, 3.0))
    problem = process.tilted(reward, temperature=0.5, name="own")
    assert (problem.exact, problem.name) == (None, "own")
    found = fh.solve(problem, rtol=1e-5)
    assert found.status == "ok"
    nodes, weights = process.data.quadrature(80)
    kappa, noise = process.noising(0.0)
    for x in ([0.0], [1.5], [-1.0]):
        shares = weights * np.exp(-0.5 * ((x - kappa * nodes) ** 2).sum(-1) / noise)
        f = shares @ np.exp(reward(nodes) / 0.5) / shares.sum()
        assert found.value(0.0, [x]) == pytest.approx([0.5 * np.log(f)], abs=1e-5)


def test_less_noise_leaves_the_law_and_takes_the_closed_form():
    process = from_points(POINTS, 0.4, horizon=0.9, beta=2.0, eta=0.5)
    problem = process.tilted(REWARDS["linear"], temperature=0.6)
    assert problem.exact is None
    assert problem.constant_diffusion.tolist() == (0.5 * np.eye(2)).tolist()
    x = POINTS[:2] + 0.3
    assert fokker_planck_residual(problem, 0.5, x).max() < 1e-9


FLAT = LogSumExpReward.linear([0.0, 0.0], temperature=1.0)
LINE = LogSumExpReward.linear([0.0], temperature=1.0)
BAD = {
    "data": (
        lambda: MixtureDiffusion(Gaussian([0.0], 1.0), horizon=1.0, beta=1.0),
        "must be a GaussianMixture or a KernelDensity, got Gaussian",
    ),
    "points": (lambda: from_points([0.0, 1.0], 0.1, horizon=1.0, beta=1.0), r"points must have shape \(k, d\)"),
    "points-horizon": (lambda: from_points(POINTS, 0.1, horizon=0.0, beta=1.0), "horizon must be a positive"),
    "points-weights": (
        lambda: from_points(POINTS, 0.1, horizon=1.0, beta=1.0, weights=[1.0]),
        r"weights must have shape \(4,\)",
    ),
    "reward": (lambda: FEW.tilted(3.0, temperature=1.0), "terminal_reward must be a callable, got float"),
    "reward-dim": (lambda: FEW.tilted(LINE, temperature=1.0), "reward has dim=1, temperature=1, the problem has dim=2"),
    "reward-temperature": (lambda: FEW.tilted(FLAT, temperature=2.0), "the problem has dim=2, temperature=2"),
    "temperature": (lambda: FEW.tilted(FLAT, temperature=-1.0), "temperature must be a positive"),
    "kernels-of-a-mixture": (lambda: TiltedKernels(BY_HAND, FLAT), "data that are a KernelDensity"),
    "mixture-of-kernels": (lambda: TiltedMixture(FEW, FLAT), "data that are a GaussianMixture"),
    "kernels-reward": (lambda: TiltedKernels(FEW, lambda x: x[..., 0]), "TiltedKernels needs a LogSumExpReward"),
    "kernels-outgrown": (
        lambda: FEW.tilted(LogSumExpReward.quadratic(-7.0 * np.eye(2), [0.0, 0.0], temperature=1.0), temperature=1.0),
        r"exp\(y / alpha\) is \+infinity: .* of bandwidth 0.4; let the rewards grow more slowly",
    ),
    "beta-three": (lambda: MixtureDiffusion(DATA, horizon=1.0, beta=(1, 2, 3)), r"a pair \(beta_0, beta_T\)"),
    "beta-zero": (lambda: MixtureDiffusion(DATA, horizon=1.0, beta=(0.0, 2.0)), "beta must be a positive finite"),
    "eta-zero": (lambda: MixtureDiffusion(DATA, horizon=1.0, beta=1.0, eta=0.0), "eta must be a positive finite"),
    "eta-above-1": (lambda: MixtureDiffusion(DATA, horizon=1.0, beta=1.0, eta=1.5), r"eta must lie in \(0, 1\]"),
    "eta-no-form": (
        lambda: TiltedMixture(MixtureDiffusion(DATA, horizon=1.0, beta=1.0, eta=0.5), FLAT),
        "closed form is known for eta = 1 only, the process has eta = 0.5",
    ),
    "tilt-dim": (
        lambda: TiltedMixture(MixtureDiffusion(DATA, horizon=1.0, beta=1.0), LINE),
        "reward has dimension 1, the process has dimension 2",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_ill_formed_diffusions_and_tilts_are_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()


OUTSIDE = {
    "late": (lambda process: process.score(2.0, POINTS), r"t must lie in \[0, 0.9\], got values in \[2, 2\]"),
    "early": (lambda process: process.drift(-0.1, POINTS), r"t must lie in \[0, 0.9\]"),
    "never": (lambda process: process.score(np.nan, POINTS), r"t must lie in \[0, 0.9\]"),
    "dim": (lambda process: process.score(0.5, [[1.0, 2.0, 3.0]]), r"shape \(..., 2\), got shape \(1, 3\)"),
    "drift-dim": (lambda process: process.drift(0.5, 1.0), r"shape \(..., 2\), got shape \(\)"),
    "nan": (lambda process: process.score(0.5, [[np.nan, 0.0]]), "x must be finite"),
    "times": (lambda process: process.score(np.zeros(3), POINTS), r"broadcast to .* = \(4,\), got shape \(3,\)"),
    "marginals": (lambda process: process.marginal([0.1, 0.2]), r"t must be one time, got an array of shape \(2,\)"),
}


@pytest.mark.parametrize(("ask", "message"), OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("kind", ["kernels", "mixture"])
def test_scores_outside_of_the_horizon_or_of_other_points_are_refused(kind, ask, message):
    """Beyond T there is less than no noise: what the formula says there is nothing."""
    data = from_points(POINTS, 0.4, horizon=0.9, beta=2.0).data if kind == "kernels" else DATA
    process = MixtureDiffusion(data, horizon=0.9, beta=2.0)
    with pytest.raises(DomainError, match=message):
        ask(process)


def test_a_schedule_may_be_an_array():
    pair = MixtureDiffusion(DATA, horizon=2.0, beta=np.array([0.2, 1.0]))
    np.testing.assert_allclose(pair.beta([0.0, 1.0, 2.0]), [1.0, 0.6, 0.2], rtol=1e-15)
    assert MixtureDiffusion(DATA, horizon=2.0, beta=np.array(0.2)).constant_diffusion == 0.2
