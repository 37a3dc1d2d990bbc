"""Diffusion models of mixtures: marginals, scores, tilts against data samples, refusals. See also test_closed_form."""

import numpy as np
import pytest

from fem_hjb.problems.laws import Gaussian, GaussianMixture
from fem_hjb.problems.mixtures import MixtureDiffusion, TiltedMixture
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.support.errors import InfiniteValueError, ProblemError
from tests.support.exactness import fokker_planck_residual
from tests.support.tilted import DATA, TILTED


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


FLAT = LogSumExpReward.linear([0.0, 0.0], temperature=1.0)
LINE = LogSumExpReward.linear([0.0], temperature=1.0)
BAD = {
    "data": (lambda: MixtureDiffusion(Gaussian([0.0], 1.0), horizon=1.0, beta=1.0), "must be a GaussianMixture"),
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
