"""Rewards on the way: against Riccati equations with jumps, mixtures, quadratures, and problems without them."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

import fem_hjb as fh
from fem_hjb.problems import LogSumExpReward
from fem_hjb.problems.closed_form import LinearQuadratic
from fem_hjb.reference.pathwise import along_paths, walk
from fem_hjb.solutions.staged import StagedSolution, bounds_of
from fem_hjb.support.progress import OutOfTimeError

ALPHA = 0.5
DRIFT, NOISE = fh.LinearDrift([[-1.0]], [0.2]), [[0.6]]


def mixture(*terms: tuple[float, float, float]) -> LogSumExpReward:
    """alpha times the logarithm of a mixture of (weight, mean, variance) in one dimension."""
    weights, means, variances = (np.array(column) for column in zip(*terms, strict=True))
    return LogSumExpReward.log_mixture(weights, means[:, None], variances[:, None, None], temperature=ALPHA)


END = mixture((0.5, -1.0, 0.1), (0.5, 1.2, 0.2))
FIRST = mixture((0.3, -0.5, 0.2), (0.7, 0.8, 0.1))
SECOND = LogSumExpReward.quadratic([[3.0]], [-1.5], temperature=ALPHA)
REWARDS = {0.65: SECOND, 0.3: FIRST}  # in any order


def both(first: LogSumExpReward, second: tuple[Any, Any, Any]) -> LogSumExpReward:
    """The sum of a log-sum-exp and another one, whose terms are the products of theirs."""
    d = first.dim
    R, s, c = (
        (one[:, None] + other[None]).reshape(-1, *one.shape[1:])
        for one, other in zip(first.coefficients, second, strict=True)
    )
    return LogSumExpReward(temperature=first.temperature, R=R.reshape(-1, d, d), s=s, s0=c)


@dataclass(frozen=True)
class Joined:
    """Closed forms of stages that begin at these times."""

    starts: Sequence[float]
    parts: Sequence[LinearQuadratic]

    def value(self, t: Any, x: Any) -> Any:
        k = int(np.searchsorted(self.starts, t + 1e-12, side="right")) - 1
        return self.parts[k].value(min(t - self.starts[k], self.parts[k].horizon), x)

    def gradient(self, t: Any, x: Any) -> Any:
        k = int(np.searchsorted(self.starts, t + 1e-12, side="right")) - 1
        return self.parts[k].gradient(min(t - self.starts[k], self.parts[k].horizon), x)


def riccati(drift: fh.LinearDrift, noise: Any, end: LogSumExpReward, rewards: dict[float, Any], T: float) -> Joined:
    """Riccati equations that jump at the times of rewards."""
    times, parts = [0.0, *sorted(rewards), T], []
    for k in reversed(range(len(times) - 1)):
        parts.insert(0, LinearQuadratic(drift=drift, diffusion=noise, horizon=times[k + 1] - times[k], terminal=end))
        if k:
            P, p, c = (each[0] for each in parts[0].coefficients(0.0))
            end = both(rewards[times[k]], (P, p, c))
    return Joined(times[:-1], parts)


def posed(**changes: Any) -> fh.ControlProblem:
    given: dict[str, Any] = {"dim": 1, "horizon": 1.0, "temperature": ALPHA, "drift": DRIFT, "diffusion": NOISE}
    return fh.ControlProblem(**given | {"terminal_reward": END, "initial_law": fh.Gaussian([0.0], 0.3)} | changes)


PROBLEM = posed()
EXACT = riccati(DRIFT, NOISE, END, REWARDS, 1.0)


@pytest.fixture(scope="module")
def solution() -> StagedSolution:
    return fh.solve_stages(PROBLEM, REWARDS, rtol=1e-3)


def inside(solution: StagedSolution) -> Any:
    """Times within all stages."""
    steps = np.diff(solution.times)
    return np.concatenate([a + h * np.linspace(0.0, 0.98, 6) for a, h in zip(solution.times, steps, strict=False)])


def errors(solution: StagedSolution, exact: Any) -> tuple[float, float]:
    """Of value and policy, relative, as an error bar means it."""
    times = inside(solution)
    row = fh.compare({"it": solution}, exact, problem=solution.problem, law="both", times=times).overall("it")
    return row.value, row.policy


def test_mixtures_and_quadratics_on_the_way_are_met_within_the_error_bar(solution: StagedSolution) -> None:
    value, policy = errors(solution, EXACT)
    assert solution.status == "ok"
    assert solution.error_estimate is not None
    assert value <= solution.error_estimate.value <= 1e-3
    assert policy <= solution.error_estimate.policy <= 1e-3
    # the same figures see it if a reward is paid later than it is
    late = riccati(DRIFT, NOISE, END, {0.3: FIRST, 0.66: SECOND}, 1.0)
    assert min(errors(solution, late)) > 10.0 * solution.error_estimate.policy


def test_at_a_reward_the_later_stage_counts_and_just_before_it_the_reward_is_added(solution: StagedSolution) -> None:
    x = np.linspace(-1.0, 1.0, 5)[:, None]
    assert solution.times == (0.0, 0.3, 0.65, 1.0)
    before = solution.stages[0].value(0.3, x)
    assert np.abs(before - FIRST(x) - solution.value(0.3, x)).max() < 1e-5
    assert np.abs(solution.value(0.3 - 1e-9, x) - before).max() < 1e-5
    times = np.array([[0.0], [0.3], [0.65], [1.0]])
    for name in ("value", "gradient", "policy"):
        at_once = getattr(solution, name)(times, x)
        apart = np.stack([getattr(solution, name)(float(t), x) for t in times.ravel()])
        assert np.abs(at_once - apart).max() < 1e-12
    assert np.isnan(solution.value(0.5, [[100.0]], outside="nan")).all()
    with pytest.raises(fh.errors.DomainError):
        solution.value(0.5, [[100.0]])


def test_whole_paths_see_a_reward_that_is_left_out(solution: StagedSolution) -> None:
    assert solution.error_estimate is not None
    for rewards, passed in ((solution.rewards, True), ({0.3: FIRST}, False)):
        walked = walk(PROBLEM, solution, (), 0, rewards)
        checks = along_paths(PROBLEM, solution, solution.error_estimate, (), 0, walked)
        assert [check.name for check in checks] == ["value along paths", "policy along paths"]
        assert all(check.passed for check in checks) is passed


def test_certificates_know_rewards_on_the_way(solution: StagedSolution) -> None:
    x0 = [0.2]
    exact = float(EXACT.value(0.0, np.array([x0]))[0])
    found = fh.certify(PROBLEM, solution, x0=x0, n=1024, steps=80, rng=0)
    assert found.status == "ok"
    assert found.lower <= exact <= found.upper
    assert found.upper - found.lower < 0.05
    asked = fh.certify(PROBLEM, solution.policy, x0=x0, n=1024, steps=80, rng=0, rewards=REWARDS)
    assert abs(asked.value - found.value) < 1e-12
    without = fh.certify(PROBLEM, solution.policy, x0=x0, n=1024, steps=80, rng=0)
    assert abs(without.lower - found.lower) > 0.05
    between = fh.certify(PROBLEM, solution, x0=x0, n=1024, steps=64, rng=0)  # steps begin at 0.3 all the same
    assert between.lower <= exact <= between.upper
    with pytest.raises(fh.errors.MeasureError, match="value= knows of no rewards on the way"):
        fh.certify(PROBLEM, solution, x0=x0, n=1024, steps=80, rng=0, value=EXACT)


def late(t: Any, x: Any) -> Any:
    return np.sin(3.0 * np.asarray(t))[..., None] - x * np.asarray(1.0 + t)[..., None]


def wide(t: Any, x: Any) -> Any:
    return ((0.5 + 0.3 * np.asarray(t)) / (1.0 + x[..., 0] ** 2) + 0.2)[..., None, None]


def earned(t: Any, x: Any) -> Any:
    return -np.cos(4.0 * np.asarray(t)) * x[..., 0] ** 2


def nothing(x: Any) -> Any:
    return np.zeros(x.shape[:-1])


def test_rewards_of_nothing_change_nothing_whatever_depends_on_time() -> None:
    problem = posed(drift=late, diffusion=wide, running_reward=earned, initial_law=fh.Gaussian([0.0], 0.1))
    solution = fh.solve_stages(problem, {0.37: nothing}, rtol=1e-2)
    plain = fh.solve(problem, rtol=1e-3, verify=False)
    assert solution.status == "ok"
    assert solution.error_estimate is not None
    assert max(errors(solution, plain)) <= solution.error_estimate.policy + 1e-3


def constant(x: Any) -> Any:
    return np.full(x.shape[:-1], 0.25)


def test_between_reflecting_faces() -> None:
    problem = fh.zoo.get("reflected", dim=1)
    solution = fh.solve_stages(problem, {0.5 * problem.horizon: constant}, rtol=1e-2)
    assert solution.status == "ok"
    x = np.linspace(0.0, 1.0, 11)[:, None]
    for t, more in ((0.0, 0.25), (0.4, 0.25), (0.6, 0.0)):
        time = t * problem.horizon
        assert np.abs(solution.value(time, x) - problem.exact.value(time, x) - more).max() < 1e-3
        assert np.abs(solution.policy(time, x) - problem.exact.policy(time, x)).max() < 1e-2


def test_boxes_follow_paths_to_where_rewards_send_them() -> None:
    way = LogSumExpReward.quadratic([[4.0]], [28.0], temperature=1.0)
    end = LogSumExpReward.log_mixture([0.5, 0.5], [[9.0], [-2.0]], [[[0.64]], [[0.25]]], temperature=1.0)
    drift, noise = fh.LinearDrift([[0.0]], [0.0]), [[1.0]]
    problem = posed(temperature=1.0, drift=drift, diffusion=noise, initial_law=fh.PointMass([0.0]), horizon=2.0)
    problem = replace(problem, terminal_reward=end)
    solution = fh.solve_stages(problem, {1.0: way}, rtol=1e-2)
    assert solution.status == "ok"
    assert solution.error_estimate is not None
    times, exact = inside(solution), riccati(drift, noise, end, {1.0: way}, 2.0)
    row = fh.compare({"it": solution}, exact, problem=problem, law="controlled", times=times).overall("it")
    assert row.value <= solution.error_estimate.value <= 1e-2
    assert row.policy <= solution.error_estimate.policy <= 1e-2
    lower, upper = bounds_of(solution.stages[1])
    assert lower < -4.0  # the process without control is at 1 with a spread of 1
    assert upper > 11.0


def test_in_two_dimensions_coordinates_together_and_apart() -> None:
    A, noise = [[-0.5, 0.8], [-0.8, -0.5]], [[0.6, 0.2], [0.2, 0.5]]
    means, eyes = np.array([[-0.5, 1.0], [0.8, -0.4]]), np.stack([np.eye(2) * 0.5, np.eye(2) * 0.4])
    way = LogSumExpReward.log_mixture([0.3, 0.7], means, eyes, temperature=1.0)
    end = LogSumExpReward.quadratic(np.eye(2), [0.5, 0.0], temperature=1.0)
    drift, law = fh.LinearDrift(A, [0.2, 0.0]), fh.Gaussian([0.0, 0.0], 0.3)
    problem = posed(dim=2, temperature=1.0, drift=drift, diffusion=noise, initial_law=law, terminal_reward=end)
    solution = fh.solve_stages(problem, {0.5: way}, rtol=0.1)
    assert solution.status == "ok"
    assert max(errors(solution, riccati(drift, noise, end, {0.5: way}, 1.0))) < 5e-2
    apart = replace(problem, drift=fh.LinearDrift(-np.eye(2), [0.0, 0.0]), diffusion=[0.6, 0.5])
    step = LogSumExpReward.quadratic(np.diag([2.0, 1.0]), [1.0, 0.0], temperature=1.0)
    parts = fh.solve_stages(apart, {0.5: step}, rtol=0.1)
    assert [type(stage).__name__ for stage in parts.stages] == ["ProductSolution"] * 2
    assert max(errors(parts, riccati(apart.drift, np.diag([0.6, 0.5]), end, {0.5: step}, 1.0))) < 5e-2


HARD = 12.0  # temperatures that are paid outside of a window


def window(x: Any) -> Any:
    return np.where(np.abs(x[..., 0] - 0.8) < 0.3, 0.0, -HARD)


def bowl(x: Any) -> Any:
    return -0.5 * x[..., 0] ** 2


def through_the_window(t: float, x: Any) -> Any:
    """log f of Brownian motion that is to be in the window at 1/2, y = -x^2/2 at 1, by one error function."""
    R, s = 1.0 / 1.5, 0.5 - t  # f just after 1/2 is sqrt(R) exp(-R x^2 / 2)
    middle, width = x / (1.0 + R * s), np.sqrt(s / (1.0 + R * s))
    p = ndtr((1.1 - middle) / width) - ndtr((0.5 - middle) / width)
    free = 0.5 * (np.log(R) - np.log1p(R * s) - R * x**2 / (1.0 + R * s))
    return free + np.log(p + np.exp(-HARD) * (1.0 - p))


def test_paths_are_sent_through_a_window() -> None:
    free = fh.LinearDrift([[0.0]], [0.0])
    law = fh.Gaussian([0.0], 0.25)
    problem = posed(temperature=1.0, drift=free, diffusion=1.0, initial_law=law, terminal_reward=bowl)
    solution = fh.solve_stages(problem, {0.5: window}, rtol=0.1)
    assert solution.status == "ok"
    layer = next(check for check in solution.checks if check.name == "stage 1: layer at the end")
    assert layer.passed
    x = np.linspace(-1.0, 1.5, 26)
    for t in (0.0, 0.25, 0.45):
        assert np.abs(solution.value(t, x[:, None]) - through_the_window(t, x)).max() < 2e-2
        slope = (through_the_window(t, x + 1e-5) - through_the_window(t, x - 1e-5)) / 2e-5
        assert np.abs(solution.policy(t, x[:, None])[:, 0] - slope).max() < 2e-2 * np.abs(slope).max()
    paths = fh.sample_paths(problem, n=1000, steps=256, rng=0, policy=lambda t, x: solution.policy(t, x))
    there = np.abs(paths.x[:, 128, 0] - 0.8) < 0.3
    assert there.mean() > 0.85
    alone = fh.sample_paths(problem, n=1000, steps=256, rng=0)
    assert (np.abs(alone.x[:, 128, 0] - 0.8) < 0.3).mean() < 0.35


def test_what_stages_make_of_each_other_multiplies_the_error_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that say too little of themselves are seen, on the looser chain."""
    own = fh.reference.stages.solve  # type: ignore[attr-defined]

    def boasting(problem: Any, **options: Any) -> Any:
        found = own(problem, **options)
        small = {name: 1e-4 * number for name, number in found.error_estimate.as_dict().items()}
        return replace(found, error_estimate=type(found.error_estimate)(**small))

    monkeypatch.setattr("fem_hjb.reference.stages.solve", boasting)
    found = fh.solve_stages(PROBLEM, {0.3: FIRST}, rtol=1e-3)
    value, policy = errors(found, riccati(DRIFT, NOISE, END, {0.3: FIRST}, 1.0))
    assert found.stats["short"] > 10.0
    assert found.error_estimate is not None
    assert policy <= found.error_estimate.policy
    assert value <= 3.0 * found.error_estimate.value


def test_solutions_are_kept_and_told(solution: StagedSolution) -> None:
    x = np.array([[0.3]])
    for again in (copy.deepcopy(solution), pickle.loads(pickle.dumps(solution))):
        assert again.value(0.4, x) == solution.value(0.4, x)
        assert again.times == solution.times
    assert str(solution).splitlines()[0] == "solution of 'user problem' by stages: ok"
    assert solution.stats["layers"] == (0.0, 0.0, 0.0)
    with pytest.raises(TypeError):
        solution.rewards[0.5] = FIRST  # type: ignore[index]


def test_time_that_is_over_leaves_the_looser_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    own = fh.reference.stages.solve  # type: ignore[attr-defined]

    def slow(problem: Any, **options: Any) -> Any:
        if options["verify"]:
            raise OutOfTimeError
        return own(problem, **options)

    monkeypatch.setattr("fem_hjb.reference.stages.solve", slow)
    with pytest.warns(fh.ToleranceWarning, match="max_seconds were over"):
        found = fh.solve_stages(PROBLEM, {0.3: FIRST}, rtol=1e-6)
    assert found.status.startswith("max_seconds were over: the first solution, which was asked for 0.01 in each stage")
    assert found.error_estimate is not None
    assert 1e-6 < max(errors(found, riccati(DRIFT, NOISE, END, {0.3: FIRST}, 1.0))) < 1e-2
    assert [check.name for check in found.checks[-2:]] == ["value along paths", "policy along paths"]


def test_time_that_is_over_before_there_is_anything_is_an_error() -> None:
    with pytest.raises(fh.errors.ConvergenceError, match=r"no solution within max_seconds=0\.001"):
        fh.solve_stages(PROBLEM, {0.5: FIRST}, max_seconds=1e-3)
    seen: list[float] = []

    def stop(fraction: float) -> None:
        seen.append(fraction)
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fh.solve_stages(PROBLEM, {0.5: FIRST}, progress=stop)
    assert seen == sorted(seen)


def jumpy(x: Any) -> Any:
    return np.where(x[..., 0] > 0.0, 0.0, -np.inf)


ABSORBING = posed(domain=fh.Box([-9.0], [9.0], boundary="absorbing"))
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: fh.solve_stages(PROBLEM, None), "solve_stages: rewards= needs a Mapping, got NoneType"),
    (lambda: fh.solve_stages(PROBLEM, [(0.5, FIRST)]), "needs a Mapping, got list"),
    (lambda: fh.solve_stages(PROBLEM, {}), "rewards are empty; without rewards on the way there is `solve`"),
    (lambda: fh.solve_stages(PROBLEM, {"a": FIRST}), "a time of rewards must be an array of real numbers, got 'a'"),
    (lambda: fh.solve_stages(PROBLEM, {0.0: FIRST}), "times of rewards must lie between 0 and T=1, got 0.0"),
    (lambda: fh.solve_stages(PROBLEM, {1.0: FIRST}), "at T there is terminal_reward"),
    (lambda: fh.solve_stages(PROBLEM, {-1.0: FIRST}), "must lie between 0 and T=1, got -1.0"),
    (lambda: fh.solve_stages(PROBLEM, {np.nan: FIRST}), "a time of rewards must be finite"),
    (lambda: fh.solve_stages(PROBLEM, {0.5: FIRST, 0.5 + 1e-9: FIRST}), "more than 1e-06 T apart"),
    (lambda: fh.solve_stages(PROBLEM, {0.5: 1.0}), "the reward at t=0.5 must be a callable, got float"),
    (lambda: fh.solve_stages(PROBLEM, {0.5: jumpy}), r"the reward at t=0.5 is not finite .* max\(y, -c alpha\)"),
    (lambda: fh.solve_stages(PROBLEM, {0.5: lambda x: x}), r"the reward at t=0.5 returned shape \(\d+, 1\)"),
    (
        lambda: fh.solve_stages(PROBLEM, {0.5: lambda x: 1 / 0}),
        r"the reward at t=0.5 failed for x of shape .*ZeroDivisionError",
    ),
    (lambda: fh.solve_stages(PROBLEM, {0.5: FIRST}, rtol=1.0), "rtol must be a number from 1e-10"),
    (lambda: fh.solve_stages(PROBLEM, {0.5: FIRST}, max_dofs=0), "max_dofs must be a positive integer"),
    (lambda: fh.solve_stages(PROBLEM, {0.5: FIRST}, max_seconds=-1), "max_seconds must be a positive finite number"),
    (lambda: fh.solve_stages(PROBLEM, {0.5: FIRST}, progress=3), "progress must be a callable or None"),
    (lambda: fh.solve_stages(ABSORBING, {0.5: FIRST}), "is stopped at absorbing faces, where a reward on the way"),
    (lambda: fh.certify(PROBLEM, None, n=512, steps=2, rng=0, rewards=3), "certify: rewards= needs a Mapping, got int"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_told(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(fh.FemHjbError, match=message):
        call()
