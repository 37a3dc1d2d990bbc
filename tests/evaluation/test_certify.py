"""Certificates: exact for the chain, extrapolated for the diffusion, honest where weights degenerate."""

import copy
import pickle
import re
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.evaluation import weighted_walk
from fem_hjb.evaluation.certificate import intervals
from fem_hjb.evaluation.certify import certify
from fem_hjb.evaluation.weights import Sums, add, found_in, of_many_starts, of_one_start, tail_index
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError, MeasureError, ProblemError

A, LAMBDA, Q, R, ALPHA, T = -0.7, 1.3, 0.9, 1.6, 0.8, 1.0
LINE = fh.zoo.get("lq", dim=1, A=A, Lambda=LAMBDA, Q=Q, R=R, temperature=ALPHA, horizon=T)
LQ2 = fh.zoo.get("lq", dim=2)


def linear(t: float, x: FloatArray) -> FloatArray:
    return -0.6 * x


def chain(steps: int, x: float) -> tuple[float, float]:
    """J of `linear` and v* of the chain X' = X + h (A X + pi) + (h Lambda)^{1/2} xi, by backward recursion."""
    h, K = T / steps, 0.6
    P, c, S, e = R, 0.0, R, 0.0  # J = -P x^2 / 2 + c, v* = -S x^2 / 2 + e
    for _ in range(steps):
        c -= P * h * LAMBDA / 2
        P = h * Q + ALPHA * h * K**2 / LAMBDA + (1 + h * (A - K)) ** 2 * P
        spread = 1 + S * h * LAMBDA / ALPHA
        e -= ALPHA / 2 * np.log(spread)
        S = h * Q + (1 + h * A) ** 2 * S / spread
    return -P * x**2 / 2 + c, -S * x**2 / 2 + e


def errors(interval: Any, truth: float) -> float:
    """By how many standard errors an interval of level 0.95 is off."""
    return float((interval.estimate - truth) / (interval.half_width / 1.96))


def test_the_recursion_converges_to_the_value_of_the_diffusion() -> None:
    assert chain(20_000, 0.7)[1] == pytest.approx(float(LINE.exact.value(0.0, [0.7])), abs=2e-4)


@pytest.mark.parametrize("steps", [2, 8])
def test_both_statements_are_exact_for_the_chain_however_long_its_steps(steps: int) -> None:
    found = certify(LINE, linear, x0=[0.7], n=200_000, steps=steps, rng=3)
    J, v = chain(steps, 0.7)
    assert found.chain is not None
    assert abs(errors(found.chain.reward, J)) < 3.0
    assert abs(errors(found.chain.optimal, v)) < 3.0
    assert abs(errors(found.chain.gap, v - J)) < 3.0
    assert abs(errors(found.bias.reward, chain(steps // 2, 0.7)[0] - J)) < 3.0  # chain - (2 chain - long chain)
    assert abs(errors(found.bias.optimal, chain(steps // 2, 0.7)[1] - v)) < 3.0
    # the diffusion, and a chain of other steps, are seen to be something else
    assert abs(errors(found.chain.optimal, float(LINE.exact.value(0.0, [0.7])))) > 8.0
    assert abs(errors(found.chain.optimal, chain(steps // 2, 0.7)[1])) > 8.0


def test_a_wrong_likelihood_ratio_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    step = weighted_walk.euler_step

    def half(*given: Any) -> Any:
        made = step(*given)
        return made._replace(log_ratio=made.log_ratio - 0.1 * given[2] * made.effort)

    monkeypatch.setattr(weighted_walk, "euler_step", half)
    found = certify(LINE, linear, x0=[0.7], n=200_000, steps=8, rng=3)
    J, v = chain(8, 0.7)
    assert found.chain is not None
    assert abs(errors(found.chain.reward, J)) > 8.0
    assert abs(errors(found.chain.optimal, v)) > 8.0


def test_over_starts_logarithms_are_averaged_and_not_expectations() -> None:
    found = certify(LINE, linear, n=150_000, steps=8, rng=1)
    variance = float(LINE.initial_law.covariance[0, 0])
    J, v = (value + variance * (at_one - value) for value, at_one in zip(chain(8, 0.0), chain(8, 1.0), strict=True))
    assert found.chain is not None
    assert found.starts == 150_000 // int(150_000**0.4)
    assert abs(errors(found.chain.reward, J)) < 3.0
    assert abs(errors(found.chain.optimal, v)) < 3.0
    # the mean of the paths of all starts under one logarithm would be off by half of the variance of v over starts
    slope = chain(8, 1.0)[1] - chain(8, 0.0)[1]
    mixed = -ALPHA / 2 * np.log(1 - 2 * slope * variance / ALPHA) + chain(8, 0.0)[1]
    assert abs(errors(found.chain.optimal, mixed)) > 3.0


@pytest.mark.parametrize("dim", [1, 2, 10])
def test_what_is_extrapolated_is_the_diffusion(dim: int) -> None:
    problem = fh.zoo.get("lq", dim=dim)
    x0 = np.full(dim, 0.4)
    found = certify(problem, lambda t, x: 0.8 * problem.exact.policy(t, x), x0=x0, n=2000, steps=256, rng=5)
    assert found.status == "ok"
    assert abs(errors(found.diffusion.optimal, float(problem.exact.value(0.0, x0)))) < 3.5
    assert found.lower < found.value < found.upper
    assert found.gap.low > 0.0


@pytest.mark.parametrize("steps", [8, 16])
def test_extrapolating_takes_out_what_the_chain_is_off_by(steps: int) -> None:
    truth = float(LINE.exact.value(0.0, [0.7]))
    found = certify(LINE, LINE.exact, x0=[0.7], n=40_000, steps=steps, rng=0)
    assert found.chain is not None
    assert abs(errors(found.chain.optimal, truth)) > 8.0
    assert abs(errors(found.diffusion.optimal, truth)) < 3.0


def test_at_the_optimal_policy_weights_are_nearly_constant() -> None:
    gaps = []
    for steps in (16, 64, 256):
        found = certify(LQ2, LQ2.exact, x0=[0.3, -0.2], n=2000, steps=steps, rng=0)
        assert found.chain is not None
        gaps.append(found.chain.gap.estimate)
    slope = np.polyfit(np.log([16, 64, 256]), np.log(gaps), 1)[0]
    assert -1.15 < slope < -0.85  # alpha Var W / 2 is of the order of a step
    assert found.ess > 0.99 * 2000


def test_each_policy_that_can_be_followed_is() -> None:
    solution, mesh = fh.solve(LINE, rtol=1e-4), fh.solve_on_mesh(LINE, cells=32)
    paths = fh.sample_paths(LINE, n=3000, steps=32, rng=0)
    fitted = fh.fit(LINE, paths, fh.Space(LINE, cells=8, time_cells=4, box=fh.Box([-2.5], [2.5])), outside="drop")
    exact = float(LINE.exact.value(0.0, [0.2]))
    for policy in (solution, mesh, fitted, LINE.exact, LINE.exact.policy, None):
        found = certify(LINE, policy, x0=[0.2], n=2000, steps=64, rng=0)
        assert found.lower <= exact
        assert abs(errors(found.diffusion.optimal, exact)) < 4.0
        assert (found.gap.estimate > 0.05) == (policy is None)


BITS = ("lower", "value", "upper", "ess", "tail")


@pytest.mark.parametrize("x0", [None, [0.1, 0.2]])
def test_bits_depend_on_the_seed_alone(x0: Any) -> None:
    how: Any = {"x0": x0, "n": 20_000, "steps": 16}
    here = certify(LQ2, None, rng=7, **how)
    with ThreadPoolExecutor(3) as pool:
        there = certify(LQ2, None, rng=7, executor=pool, **how)
    assert [getattr(here, name) for name in BITS] == [getattr(there, name) for name in BITS]
    assert here.value != certify(LQ2, None, rng=8, **how).value
    generator = np.random.default_rng(0)
    assert certify(LQ2, None, rng=generator, **how).value != certify(LQ2, None, rng=generator, **how).value


def test_other_processes_give_the_same_bits() -> None:
    how: Any = {"n": 3000, "steps": 32, "rng": 7}
    with ProcessPoolExecutor(1) as pool:
        there = certify(LQ2, linear, executor=pool, **how)
    assert [getattr(there, name) for name in BITS] == [getattr(certify(LQ2, linear, **how), name) for name in BITS]


@pytest.mark.parametrize("x0", [None, [0.1]])
def test_memory_does_not_depend_on_the_number_of_paths(x0: Any) -> None:
    def peak(n: int) -> int:
        tracemalloc.start()
        certify(LINE, None, x0=x0, n=n, steps=2, rng=0)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1000)
    few, many = peak(20_000), peak(400_000)
    assert many < 1.5 * few


def test_results_are_frozen_and_short() -> None:
    found = certify(LINE, None, x0=[0.0], n=100, steps=2, rng=0)
    with pytest.raises(FrozenInstanceError):
        found.value = 1.0  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(copy.deepcopy(found)))
    assert repr(again) == repr(found)
    assert repr(found).count("\n") == 4
    for number in (found.lower, found.upper, found.gap.estimate):
        assert f"{number:.6g}" in repr(found)


def test_degenerate_weights_leave_the_lower_bound_alone() -> None:
    problem = fh.zoo.get("lq", dim=10)
    found = certify(problem, lambda t, x: 3.0 + 0.0 * x, x0=np.zeros(10), n=4096, steps=64, rng=0)
    assert re.match(r"the weights have degenerated \(effective sample size .* of 4096, tail index", found.status)
    assert np.isnan(found.value)
    assert np.isinf(found.upper)
    assert np.isnan(found.gap.estimate)
    assert found.lower < float(problem.exact.value(0.0, np.zeros(10)))
    assert found.lower == found.diffusion.reward.low
    assert "no upper bound" in repr(found)
    started = certify(problem, lambda t, x: 3.0 + 0.0 * x, n=4096, steps=64, rng=0)
    assert "degenerated" in started.status
    assert np.isnan(started.value)


def test_few_paths_with_constant_weights_have_not_degenerated() -> None:
    found = certify(LINE, LINE.exact, x0=[0.5], n=64, steps=128, rng=0)
    assert found.ess > 60.0
    assert found.status == "ok"
    assert found.lower < float(LINE.exact.value(0.0, [0.5])) < found.upper
    worse = certify(LINE, lambda t, x: -0.2 - 2 * x, x0=[0.5], n=64, steps=128, rng=0)
    assert 20.0 < worse.ess < 32.0
    assert "degenerated" in worse.status


@pytest.mark.parametrize("units", [1e-4, 1.0, 1e4])
def test_what_is_said_does_not_depend_on_units(units: float) -> None:
    """Rewards and temperature in other units: with the same policy and paths J, v* and intervals are as many times."""
    same = [fh.zoo.get("lq", dim=1, Q=0.9 * a, R=1.6 * a, temperature=a) for a in (1.0, units)]
    for n, starts in ((3200, 200), (320_000, 20_000)):  # what is left of the bias of a logarithm counts if n is large
        one, other = (certify(of, lambda t, x: -0.5 + 0.0 * x, n=n, starts=starts, steps=2, rng=0) for of in same)
        assert ("degenerated" in one.status) == (n > 3200)
        assert other.status == one.status
        np.testing.assert_allclose([other.lower, other.upper], [units * one.lower, units * one.upper], rtol=1e-9)


def test_steps_that_are_too_long_are_told() -> None:
    assert "2 steps are few" in certify(LINE, LINE.exact, x0=[0.5], n=20_000, steps=2, rng=0).status
    assert certify(LINE, LINE.exact, x0=[0.5], n=2000, steps=128, rng=0).status == "ok"


# Sums


def random_weights(seed: int, *shape: int) -> FloatArray:
    return 3.0 * np.random.default_rng(seed).standard_normal((2, *shape)) + np.array([700.0, -900.0]).reshape(
        2, *([1] * len(shape))
    )


@pytest.mark.parametrize("many", [False, True])
def test_sums_of_parts_are_sums_of_the_whole(many: bool) -> None:
    shape = (50, 40) if many else (2000,)
    W, seen = random_weights(0, *shape), np.array([np.inf, -np.inf, 1.0, 2.0])
    of = of_many_starts if many else of_one_start
    whole = found_in(of(W, seen), many)
    cuts = (0, 1, 18, 50) if many else (0, 1, 700, 2000)
    parts: list[Sums] = [of(W[:, a:b], seen) for a, b in pairwise(cuts)]
    summed = found_in(add(add(parts[0], parts[1]), parts[2]), many)
    np.testing.assert_allclose(summed.theta, whole.theta, rtol=1e-12)
    np.testing.assert_allclose(summed.covariance, whole.covariance, rtol=1e-8, atol=1e-12)
    assert summed.ess == pytest.approx(whole.ess, rel=1e-9)
    assert summed.tail == whole.tail
    weights = np.exp(W[1] - W[1].max(axis=-1, keepdims=True))
    ess = (weights.sum(axis=-1) ** 2 / (weights**2).sum(axis=-1)).sum()
    assert whole.ess == pytest.approx(ess, rel=1e-9)
    np.testing.assert_array_equal(summed.seen, seen)


def test_the_logarithm_of_a_mean_is_corrected() -> None:
    W = np.random.default_rng(0).standard_normal((2, 20_000, 64))
    found = found_in(of_many_starts(W, np.zeros(4)), many=True)
    assert abs(found.theta[3] - 0.5) < 0.004  # of log-normal weights; uncorrected it would be 0.013 too small
    plain = np.log(np.exp(W[1]).mean(axis=1)).mean()
    assert plain - 0.5 < -0.011


def test_one_start_says_nothing_of_others() -> None:
    sums = of_many_starts(random_weights(0, 1, 64), np.zeros(4))
    diffusion = intervals(found_in(sums, many=True), 1.0, 0.95)[0]
    assert diffusion.reward.low == -np.inf
    assert diffusion.optimal.high == np.inf


@pytest.mark.parametrize("k", [0.25, 0.5, 0.9])
def test_the_index_of_a_tail(k: float) -> None:
    rng = np.random.default_rng(1)
    found = [tail_index(np.sort(-k * np.log(rng.random(4000)))[::-1], 4000) for _ in range(40)]
    assert np.mean(found) == pytest.approx(k, abs=0.06)
    assert tail_index(np.zeros(100), 4000) == -np.inf
    assert tail_index(np.zeros(3), 4000) == np.inf


def heavy(seed: int, size: float) -> Any:
    """Weights 1 + size (1/U)^{0.8}, of mean 1 + 5 size, which have no variance."""
    weights = 1.0 + size * np.random.default_rng(seed).random(2000) ** -0.8
    return found_in(of_one_start(np.log([weights, weights]), np.zeros(4)), many=False)


def test_a_heavy_tail_of_next_to_nothing_widens_the_interval_instead_of_spoiling_it() -> None:
    found = [heavy(seed, 1e-8) for seed in range(200)]
    assert np.mean([one.heavy for one in found]) > 0.9
    assert all(one.alike for one in found)
    truth = np.log1p(5e-8)
    diffusion, chain, _ = intervals(next(one for one in found if one.heavy), 1.0, 0.95)
    assert chain.optimal.half_width > chain.reward.half_width
    assert diffusion.optimal.half_width > chain.optimal.half_width
    holds = [truth in intervals(one, 1.0, 0.95)[1].optimal for one in found if one.heavy]
    plain = [truth in one.reward for one in (intervals(one, 1.0, 0.95)[1] for one in found)]  # of W itself, not wider
    assert np.mean(holds) == 1.0
    assert np.mean(plain) < 0.9
    assert not heavy(0, 0.1).alike  # there a tail matters
    light = found_in(of_one_start(1e-6 * np.random.default_rng(0).standard_normal((2, 2000)), np.zeros(4)), many=False)
    assert not light.heavy
    narrow = intervals(light, 1.0, 0.95)[1]
    assert narrow.optimal.half_width == pytest.approx(narrow.reward.half_width, rel=1e-3)


# What is refused


def raising(t: float, x: FloatArray) -> FloatArray:
    raise ZeroDivisionError("mine")


NOISE = np.random.default_rng(0)
UPPER = fh.ControlProblem(
    dim=1,
    horizon=1.0,
    temperature=1.0,
    drift=lambda t, x: 0.0 * x,
    diffusion=1.0,
    terminal_reward=lambda x: x[..., 0],
    initial_law=fh.Uniform(fh.Box([0.1], [0.9])),
    domain=fh.Box([0.0], [1.0], boundary="absorbing"),
)
REFUSED: dict[str, tuple[type[Exception], Callable[..., Any]]] = {
    "certify needs a ControlProblem, got str": (ProblemError, lambda k: certify("lq", None, **k)),  # type: ignore[arg-type]
    "policy must be a callable .* got int": (ProblemError, lambda k: certify(LINE, 3, **k)),  # type: ignore[arg-type]
    r"policy\(t, x\) returned shape \(8,\) .* expected \(8, 1\)": (
        ProblemError,
        lambda k: certify(LINE, lambda t, x: x[:, 0], **k),
    ),
    r"policy\(t, x\) is not finite at 8 of 8 points": (ProblemError, lambda k: certify(LINE, lambda t, x: x / 0, **k)),
    r"policy\(t, x\) failed at t=0 .*ZeroDivisionError: mine": (ProblemError, lambda k: certify(LINE, raising, **k)),
    r"policy\(t, x\) returned other numbers .* evaluation mode": (
        ProblemError,
        lambda k: certify(LINE, lambda t, x: x + NOISE.random(x.shape), **k),
    ),
    "n must be at least 64, .* got 63": (MeasureError, lambda k: certify(LINE, None, **k | {"n": 63})),
    "n must be at least 256, .* got 255; or give x0=": (
        MeasureError,
        lambda k: certify(LINE, None, **k | {"n": 255, "x0": None}),
    ),
    "n must be a positive integer, got 1.5": (MeasureError, lambda k: certify(LINE, None, **k | {"n": 1.5})),
    "steps must be even, .* got 3; take 4": (MeasureError, lambda k: certify(LINE, None, **k | {"steps": 3})),
    "steps must be a positive integer, got 0": (MeasureError, lambda k: certify(LINE, None, **k | {"steps": 0})),
    "level must lie between 0 and 1, such as 0.95, got 95": (
        MeasureError,
        lambda k: certify(LINE, None, **k | {"level": 95}),
    ),
    "level must lie between 0 and 1, such as 0.95, got 1$": (
        MeasureError,
        lambda k: certify(LINE, None, **k | {"level": 1.0}),
    ),
    r"x0 must have shape \(1,\), got shape \(2,\)": (
        DomainError,
        lambda k: certify(LINE, None, **k | {"x0": [0.0, 1.0]}),
    ),
    "x0 must be finite": (DomainError, lambda k: certify(LINE, None, **k | {"x0": [np.nan]})),
    r"x0 must lie inside the domain, the box \[0.0\] to \[1.0\].* got \[1.5\]": (
        DomainError,
        lambda k: certify(UPPER, None, **k | {"x0": [1.5]}),
    ),
    r"not on an absorbing face, got \[1.0\]": (DomainError, lambda k: certify(UPPER, None, **k | {"x0": [1.0]})),
    "starts= is for X_0 ~ p_0": (MeasureError, lambda k: certify(LINE, None, **k | {"starts": 20})),
    "starts=5 of n=512 paths: there must be 16 at least": (
        MeasureError,
        lambda k: certify(LINE, None, **k | {"n": 512, "x0": None, "starts": 5}),
    ),
    "executor= needs an Executor, got int": (MeasureError, lambda k: certify(LINE, None, executor=3, **k)),  # type: ignore[arg-type]
    "rng must be a non-negative int": (MeasureError, lambda k: certify(LINE, None, **k | {"rng": "a"})),
    "simulated states left the range of numbers": (
        ConvergenceError,
        lambda k: certify(LINE, lambda t, x: x * (1e3 + x**2), **k | {"steps": 100}),
    ),
    "max_seconds must be a positive": (ConvergenceError, lambda k: certify(LINE, None, max_seconds=0.0, **k)),
}


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_refused_says_what_was_given(message: str) -> None:
    error, call = REFUSED[message]
    with pytest.raises(error, match=message):
        call({"x0": [0.0], "n": 256, "steps": 2, "rng": 0})


def test_what_a_policy_does_wrong_later_comes_out_as_it_is() -> None:
    def late(t: float, x: FloatArray) -> FloatArray:
        if np.abs(x).max() > 0.5:
            raise ZeroDivisionError("mine")
        return 0.0 * x

    with pytest.raises(ProblemError, match=r"policy\(t, x\) failed .*ZeroDivisionError: mine"):
        certify(LINE, late, x0=[0.0], n=256, steps=8, rng=0)


def test_policies_see_no_array_that_runs_backwards() -> None:
    def forwards(t: float, x: FloatArray) -> FloatArray:
        assert min(x.strides) > 0  # others are refused by torch.tensor, for one
        return -0.5 * x

    assert certify(LINE, forwards, x0=[0.0], n=64, steps=2, rng=0).paths == 64


class Bumped:
    """The exact value, and a bump."""

    def __init__(self, size: float) -> None:
        self.size = size

    def value(self, t: Any, x: Any) -> FloatArray:
        return np.asarray(LINE.exact.value(t, x) + self.size * np.exp(-(np.asarray(x)[..., 0] ** 2)))

    def gradient(self, t: Any, x: Any) -> FloatArray:
        return np.asarray(LINE.exact.gradient(t, x) - 2 * self.size * np.asarray(x) * np.exp(-(np.asarray(x) ** 2)))


def test_what_is_done_when_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from fem_hjb.support import progress as watching

    asked = [0.0]

    def tick() -> float:
        asked[0] += 1.0
        return asked[0]

    monkeypatch.setattr(watching, "_clock", tick)
    how: Any = {"n": 40_000, "steps": 8, "rng": 0}
    whole = certify(LINE, None, **how)
    ticks, asked[0] = asked[0], 0.0
    part = certify(LINE, None, max_seconds=ticks / 2, **how)
    assert part.status.startswith("max_seconds were over after ")
    assert f"of {whole.paths} paths" in part.status
    assert whole.paths / 3 < part.paths < whole.paths * 2 / 3
    assert part.diffusion.reward.half_width > whole.diffusion.reward.half_width
    assert part.lower < whole.value < part.upper
    how |= {"value": Bumped(0.1), "steps": 8}
    asked[0] = 0.0
    whole = certify(LINE, None, **how)
    ticks, asked[0] = asked[0], 0.0
    part = certify(LINE, None, max_seconds=ticks / 2, **how)
    assert part.status.count("max_seconds were over after ") == 2  # half of the time for each policy
    assert part.lower < whole.value < part.upper


def test_steps_begin_where_policies_coefficients_and_rewards_jump() -> None:
    def drift(t: Any, x: FloatArray) -> FloatArray:
        return -x * (1.0 + (np.asarray(t) >= 0.3141))[..., None]

    jumping = fh.ControlProblem(
        dim=1, horizon=1.0, temperature=1.0, drift=drift, diffusion=1.0, terminal_reward=lambda x: x[..., 0],
        initial_law=fh.Gaussian([0.0], 1.0),
    )  # fmt: skip
    times = weighted_walk.times_of(jumping, lambda t, x: -x * (t > 0.7182), 20, [0.5])
    assert len(times) % 2 == 1
    assert np.diff(times).min() > 1e-3
    for place in (0.3141 + 1e-9, 0.5, 0.7182 + 1e-9):
        assert np.abs(times[::2] - place).min() < 1e-12
    smooth = weighted_walk.times_of(LINE, linear, 20, [0.1])
    np.testing.assert_allclose(smooth, np.linspace(0.0, 1.0, 21), atol=1e-15)


def test_a_policy_that_is_there_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """-8 (x - 1.5) in a window that no step meets: J by moments, and far off where steps begin anywhere."""
    k, Lambda, start, end, gain, aim = 1.0, 0.5, 0.3333, 0.4181, 8.0, 1.5
    problem = fh.ControlProblem(
        dim=1, horizon=1.0, temperature=1.0, drift=lambda t, x: -k * x, diffusion=Lambda,
        terminal_reward=lambda x: -(x[..., 0] ** 2), initial_law=fh.Gaussian([0.0], 0.1),
    )  # fmt: skip
    nodes, weights = np.polynomial.legendre.leggauss(40)
    mean, variance, J = 0.0, 0.0, 0.0
    for a, b, push in ((0.0, start, 0.0), (start, end, gain), (end, 1.0, 0.0)):
        rate, goal = k + push, push * aim / (k + push)
        s = np.append((b - a) * (nodes + 1) / 2, b - a)
        means = goal + (mean - goal) * np.exp(-rate * s)
        variances = variance * np.exp(-2 * rate * s) + Lambda * (1 - np.exp(-2 * rate * s)) / (2 * rate)
        J -= (b - a) / 4 * push**2 / Lambda * float(weights @ ((means - aim) ** 2 + variances)[:-1])
        mean, variance = float(means[-1]), float(variances[-1])
    J -= mean**2 + variance

    def off(steps: int) -> float:
        policy = lambda t, x: -gain * (start < t < end) * (x - aim)  # noqa: E731
        return abs(errors(certify(problem, policy, x0=[0.0], n=16384, steps=steps, rng=1).diffusion.reward, J))

    assert off(200) < 4.0
    monkeypatch.setattr(weighted_walk, "jumps_of", lambda *_: [])
    assert off(200) > 6.0
