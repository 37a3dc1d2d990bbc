"""What a policy earns, on boxes: against closed forms, against the certificate, and what is refused."""

from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

import fem_hjb as fh
from fem_hjb.evaluation import policy_value
from fem_hjb.evaluation.certify import certify
from fem_hjb.evaluation.policy_value import evaluate_policy
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError

LINE = fh.zoo.get("lq", dim=1, A=-0.7, Lambda=1.3, Q=0.9, R=1.6, temperature=0.8)
PLANE = fh.zoo.get("lq", dim=2)
WELL = fh.zoo.get("double-well", 1)
MODES = fh.zoo.get("brownian-mixture", 1)
X = np.linspace(-1.0, 1.0, 21)[:, None]


def earned(t: float, x: FloatArray) -> FloatArray:
    """J of the policy -0.6 x: P' = 2 (A + K) P ... in closed form, as second moments are exponentials."""
    k, time = -0.7 - 0.6, 1.0 - t
    rate = 0.9 + 0.8 * 0.6**2 / 1.3  # of x^2 / 2
    decay = np.exp(2 * k * time)
    now, noise = x[:, 0] ** 2, -1.3 / (2 * k)
    at_the_end = decay * now + (1 - decay) * noise
    meanwhile = (decay - 1) / (2 * k) * (now - noise) + time * noise
    return np.asarray(-1.6 / 2 * at_the_end - rate / 2 * meanwhile)


def test_a_linear_policy_earns_what_its_moments_say() -> None:
    found = evaluate_policy(LINE, lambda t, x: -0.6 * x, rtol=1e-6)
    for t in (0.0, 0.3, 0.9):
        np.testing.assert_allclose(found.value(t, X), earned(t, X), atol=1e-8)
        slope = (earned(t, X + 1e-5) - earned(t, X - 1e-5)) / 2e-5
        np.testing.assert_allclose(found.gradient(t, X)[:, 0], slope, atol=1e-6)
    other = evaluate_policy(LINE, lambda t, x: -0.5 * x, rtol=1e-6)
    assert np.abs(other.value(0.0, X) - earned(0.0, X)).max() > 1e-3


def test_a_reward_that_jumps_is_earned_with_its_probability() -> None:
    """A temperature so high that exp(y / A) of a jump were rounding had steps of no length at T."""
    reward = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -1.5 * x,
        diffusion=1.0,
        terminal_reward=lambda x: np.where(x[..., 0] > 0.2, 1.0, 0.0),
        initial_law=fh.Gaussian([0.0], 0.2),
    )
    decay = np.exp(-1.5)
    spread = np.sqrt((1 - decay**2) / 3)
    for rtol in (1e-2, 1e-3):
        found = evaluate_policy(reward, None, rtol=rtol)
        assert found.status == "ok"
        exact = ndtr((decay * X[:, 0] - 0.2) / spread)
        np.testing.assert_allclose(found.value(0.0, X), exact, atol=3 * found.error + 1e-9)
        assert found.error < rtol


@pytest.mark.parametrize(("problem", "solved"), [(MODES, True), (PLANE, False)], ids=["modes", "plane"])
def test_the_optimal_policy_earns_the_value_and_others_less(problem: fh.ControlProblem, solved: bool) -> None:
    assert problem.exact is not None
    best = fh.solve(problem, rtol=1e-4, verify=False) if solved else problem.exact
    x = np.random.default_rng(0).uniform(-0.8, 0.8, (50, problem.dim))
    found = evaluate_policy(problem, best, rtol=1e-4)
    value = problem.exact.value(0.0, x)
    assert found.status == "ok"
    np.testing.assert_allclose(found.value(0.0, x), value, atol=5e-4 * np.abs(value).max())
    assert (evaluate_policy(problem, None, rtol=1e-3).value(0.0, x) < value - 0.005).all()


def test_paths_earn_the_same() -> None:
    def policy(t: float, x: FloatArray) -> FloatArray:
        return np.sin(3 * x) * (1.0 - t / 2)

    J = float(evaluate_policy(WELL, policy, rtol=1e-3).value(0.0, [0.3]))
    found = certify(WELL, policy, x0=[0.3], n=4000, steps=512, rng=0).diffusion.reward
    assert abs(found.estimate - J) < 3.5 / 1.96 * found.half_width


@pytest.mark.parametrize(
    ("error", "message", "how"),
    [
        (ProblemError, "evaluate_policy needs a ControlProblem, got str", {"problem": "lq"}),
        (ProblemError, "policy must be a callable .* got int", {"policy": 3}),
        (ProblemError, r"policy\(t, x\) returned shape", {"policy": lambda t, x: x[:, 0]}),
        (ConvergenceError, "rtol must be", {"rtol": 3.0}),
        (ConvergenceError, "max_seconds must be a positive", {"max_seconds": 0.0}),
        (DomainError, "box must be a Box of dimension 1, got list", {"box": [0.0, 1.0]}),
    ],
)
def test_what_is_refused_says_what_was_given_before_paths_are_made(
    error: type[Exception], message: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_value, "sample_paths", None)
    with pytest.raises(error, match=message):
        evaluate_policy(**{"problem": LINE, "policy": None} | how)  # type: ignore[arg-type]
