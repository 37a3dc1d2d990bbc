"""Certificates of exit problems against closed forms: an interval, a disc, a ring; what is told, what is refused."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import skfem
from scipy.special import i0, i1, k0

import fem_hjb as fh
from fem_hjb.evaluation.certificate import Bounds, intervals
from fem_hjb.evaluation.exit_walk import Steady, exit_weights
from fem_hjb.evaluation.weighted_walk import Likelihood, nothing_seen
from fem_hjb.evaluation.weights import found_in, of_one_start
from fem_hjb.paths import exit_paths
from fem_hjb.problems.zoo.meshed import ring_mesh
from fem_hjb.support.errors import ConvergenceError, DomainError, MeasureError, ProblemError

certify_exit = fh.stationary.certify_exit
RATE = math.sqrt(2.0)


def steady_loss(x: np.ndarray, rate: float = 1.0) -> np.ndarray:
    return np.full(x.shape[:-1], -rate)


def process(**more: Any) -> fh.ExitProblem:
    domain = fh.Box([-1.0], [1.0], boundary="absorbing")
    known: dict[str, Any] = {"dim": 1, "temperature": 1.0, "drift": np.zeros_like, "diffusion": 1.0, "domain": domain}
    return fh.ExitProblem(**{**known, "running_reward": steady_loss, **more})


LINE = process()
DISC = process(dim=2, domain=fh.MeshDomain(skfem.MeshTri2.init_circle(2), "absorbing"))
START = 0.3
VALUE = math.log(math.cosh(RATE * START) / math.cosh(RATE))


def best(x: np.ndarray) -> np.ndarray:
    return RATE * np.tanh(RATE * x)


def push(x: np.ndarray) -> np.ndarray:
    return np.ones_like(x)


def earned_by_push() -> float:
    """-(1 + 1/2) E tau of Brownian motion with the drift 1, from the martingale X_t - t."""
    right = -math.expm1(-2 * (1 + START)) / -math.expm1(-4)
    return -1.5 * (2 * right - 1 - START)


def intervals_of(problem: fh.ExitProblem, policy: Any, start: list[float], groups: int, size: int) -> list[Bounds]:
    """The intervals of so many certificates from `size` paths each, all followed at once."""
    score = Likelihood(problem.until(1.0, initial_law=fh.PointMass(start)), Steady(policy))
    x = np.tile(start, (groups * size, 1))
    W = exit_weights(score, x, np.random.default_rng(0), lambda done: None, step=0.04)
    sums = [of_one_start(part, nothing_seen()) for part in np.split(W, groups, axis=1)]
    return [intervals(found_in(one, False), 1.0, 0.95)[0] for one in sums]


@pytest.mark.parametrize("where", ["line", "disc"])
def test_intervals_hold_what_they_should(where: str) -> None:
    if where == "line":
        given: Any = LINE, push, [START]
        value, earned, groups, size = VALUE, earned_by_push(), 100, 400
    else:
        given = DISC, None, [0.3, 0.4]
        value, earned, groups, size = math.log(i0(RATE * 0.5) / i0(RATE)), -(1 - 0.25) / 2, 24, 128
    found = intervals_of(*given, groups, size)
    for exact, name in ((value, "optimal"), (earned, "reward")):
        held = sum(exact in getattr(one, name) for one in found)
        assert held >= 0.85 * groups  # 95 % were asked for
        assert sum(exact + 0.15 in getattr(one, name) for one in found) < 0.85 * groups
    whole = certify_exit(*given, n=groups * size // 4, step=0.04, rng=1).diffusion
    assert value in whole.optimal
    assert earned in whole.reward
    assert value + 0.1 not in whole.optimal


def ring(**more: Any) -> fh.ExitProblem:
    """Brownian motion between circles of radius 1 and 2, eighteen parabolas each, stopped at both."""
    mesh = skfem.MeshTri2.from_mesh(ring_mesh(2.0, 2))
    size = np.hypot(*mesh.p)
    mesh.doflocs *= np.where(size > 1.9, 2.0 / size, np.where(size < 1.1, 1.0 / size, 1.0))
    return process(dim=2, domain=fh.MeshDomain(mesh, "absorbing"), **more)


def in_a_ring(radius: float, inner: float, outer: float) -> float:
    """f of f'' + f'/s = 2 f, a combination of I_0 and K_0 of sqrt(2) s, with these values at 1 and 2."""
    at = RATE * np.array([1.0, 2.0])
    weights = np.linalg.solve(np.stack([i0(at), k0(at)], axis=1), [inner, outer])
    return float(weights @ [i0(RATE * radius), k0(RATE * radius)])


RADIUS = 1.4
OUTER = math.log(RADIUS) / math.log(2.0)  # the chance that the outer circle comes first
TAU = (1.0 - RADIUS**2) / 2 + 1.5 * OUTER  # E tau, which solves u'' + u'/s = -2 and is 0 at 1 and 2


def outside(x: np.ndarray) -> np.ndarray:
    return (np.hypot(*x.T) > 1.5) * 1.0


@pytest.mark.parametrize("paid", ["time", "place"])
def test_intervals_hold_what_they_should_in_a_ring(paid: str) -> None:
    """What is lost with time, by E e^{-tau} and E tau; what the outer circle pays, by the chance that it is met."""
    if paid == "time":
        problem, value, earned = ring(), math.log(in_a_ring(RADIUS, 1.0, 1.0)), -TAU
    else:
        problem = ring(running_reward=None, exit_reward=outside)
        value, earned = math.log1p(OUTER * math.expm1(1.0)), OUTER
    groups = 20
    found = intervals_of(problem, None, [0.8 * RADIUS, -0.6 * RADIUS], groups, 96)
    for exact, name in ((value, "optimal"), (earned, "reward")):
        parts = [getattr(one, name) for one in found]
        held = [sum(exact + off in part for part in parts) for off in (-0.2, 0.0, 0.2)]
        assert held[1] >= 0.85 * groups  # 95 % were asked for
        assert max(held[0], held[2]) < 0.5 * groups
        estimates = np.array([part.estimate for part in parts])
        assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(groups) < 0.08


@pytest.mark.parametrize("policy", [None, push])
def test_what_is_paid_at_the_exit_counts(policy: Any) -> None:
    """1.5 to the right and -0.5 to the left, nothing on the way: v* = log E e^g, by the chances x +- 1 over 2."""
    ends = process(running_reward=None, exit_reward=lambda x: np.where(x[..., 0] > 0, 1.5, -0.5))
    found = certify_exit(ends, policy, [START], n=4096, step=0.02, rng=0).diffusion
    chance = (1 + START) / 2
    value = math.log(chance * math.exp(1.5) + (1 - chance) * math.exp(-0.5))
    earned = 2.0 * chance - 0.5
    if policy is not None:
        right = -math.expm1(-2 * (1 + START)) / -math.expm1(-4)
        earned = 2.0 * right - 0.5 - 0.5 * (2 * right - 1 - START)  # less half of E tau
    assert value in found.optimal
    assert earned in found.reward
    assert found.optimal.half_width < 0.1
    assert found.reward.half_width < 0.1


def test_steps_put_in_an_error_of_first_order_and_without_bridges_one_of_half(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = np.array([0.16, 0.08, 0.04])

    def slope(policy: Any, exact: float, n: int) -> float:
        found = [certify_exit(LINE, policy, [START], n=n, step=h, rng=5) for h in steps.tolist()]
        off = [abs(one.chain.reward.estimate - exact) for one in found if one.chain is not None]
        return float(np.polyfit(np.log(steps), np.log(off), 1)[0])

    order = slope(best, VALUE, 20_000)
    monkeypatch.setattr(exit_paths, "moved", by_ends_alone)
    half = slope(None, -(1 - START**2), 8000)
    assert abs(order - 1.0) < 0.15
    assert abs(half - 0.5) < 0.15


def by_ends_alone(problem: Any, t: float, h: float, before: Any, after: Any, rng: Any) -> Any:
    return np.clip(after, -1.0, 1.0)


def test_the_best_policy_loses_nothing_whoever_gives_it() -> None:
    solution = fh.solve_exit(LINE, rtol=1e-6)
    mine, given = (certify_exit(LINE, pi, [START], n=512, step=0.01, rng=0) for pi in (best, solution))
    assert mine.diffusion.optimal.estimate == pytest.approx(given.diffusion.optimal.estimate, abs=1e-5)
    assert given.diffusion.gap.half_width < 0.01
    assert abs(given.diffusion.gap.estimate) < 0.01
    assert VALUE in given.diffusion.optimal
    assert "steps of 0.01 and 0.02 until they left" in repr(given)
    free = certify_exit(LINE, None, [START], n=512, step=0.01, rng=0)
    assert free.gap.low > 0.1  # and no control does lose


class Warped:
    """v + size (1 - x^2) cos 2x, whose residual is of the first order in the size."""

    def __init__(self, size: float) -> None:
        self.size = size

    def value(self, x: np.ndarray) -> np.ndarray:
        bump = (1 - x**2) * np.cos(2 * x)
        return np.asarray((np.log(np.cosh(RATE * x) / math.cosh(RATE)) + self.size * bump)[:, 0])

    def gradient(self, x: np.ndarray) -> np.ndarray:
        slope = -2 * x * np.cos(2 * x) - 2 * (1 - x**2) * np.sin(2 * x)
        return np.asarray(best(x) + self.size * slope)


class OnADisc:
    """log f of f = I_0(sqrt(2) s) / I_0(sqrt(2))."""

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(i0(RATE * np.hypot(*x.T)) / i0(RATE)))

    def gradient(self, x: np.ndarray) -> np.ndarray:
        s = np.hypot(*x.T)
        return np.asarray((RATE * i1(RATE * s) / i0(RATE * s) / s)[:, None] * x)


def test_the_exact_value_leaves_nothing_open() -> None:
    """But what parabolas of a disc, and differences, leave of it."""
    on_disc, solution = OnADisc(), fh.solve_exit(LINE, rtol=1e-6)
    for problem, value, start, exact, close in (
        (LINE, (w := Warped(0.0)), [START], VALUE, 1e-6),
        (LINE, solution, [START], VALUE, 1e-5),
        (DISC, on_disc, [0.3, 0.4], math.log(i0(RATE * 0.5) / i0(RATE)), 1e-3),
    ):
        found = certify_exit(problem, value, start, n=64, step=0.0125, rng=0, value=value)
        assert found.chain is None
        assert found.status == "ok"
        for number in (found.lower, found.value, found.upper):
            assert number == pytest.approx(exact, abs=close)
    own = certify_exit(LINE, None, [START], n=512, step=0.02, rng=0, value=w)
    alone = certify_exit(LINE, None, [START], n=512, step=0.02, rng=0)
    assert own.diffusion.reward == alone.diffusion.reward
    assert own.value == pytest.approx(VALUE, abs=1e-6)
    assert own.diffusion.optimal.half_width < 1e-6 < 1e-3 < alone.diffusion.optimal.half_width


def test_what_a_value_leaves_open_is_of_second_order_and_its_interval_of_first() -> None:
    sizes = [0.2, 0.1, 0.05]
    runs = [certify_exit(LINE, w, [START], n=4096, step=0.02, rng=0, value=w) for w in map(Warped, sizes)]
    for run in runs:
        optimal = run.diffusion.optimal
        assert VALUE in optimal
        assert VALUE + 3 * optimal.half_width not in optimal
    gaps, widths = ([getattr(run.diffusion, name) for run in runs] for name in ("gap", "optimal"))
    order = np.polyfit(np.log(sizes), np.log([gap.estimate for gap in gaps]), 1)[0]
    width = np.polyfit(np.log(sizes), np.log([one.half_width for one in widths]), 1)[0]
    assert abs(order - 2.0) < 0.12
    assert abs(width - 1.0) < 0.15


def test_random_starts_give_the_mean_of_values() -> None:
    law = fh.Uniform(fh.Box([-0.9], [0.9]))
    x = np.linspace(-0.9, 0.9, 2001)
    exact = np.mean(np.log(np.cosh(RATE * x) / math.cosh(RATE)))
    found = certify_exit(LINE, best, law, n=8192, step=0.02, rng=3)
    assert found.starts > 16
    assert exact in found.diffusion.optimal
    assert exact + 0.2 not in found.diffusion.optimal


def test_weights_without_a_variance_are_told() -> None:
    """e^W = e^{tau} has the tail index 8/pi^2 = 0.81: a mean, but no variance."""
    found = certify_exit(process(running_reward=partial(steady_loss, rate=-1.0)), None, [0.0], n=4096, step=0.04, rng=0)
    assert "degenerated" in found.status
    assert found.upper == math.inf
    assert found.lower < -math.log(math.cos(RATE))
    assert abs(found.diffusion.reward.estimate - 1.0) < 0.06  # E tau
    assert certify_exit(LINE, None, [0.0], n=4096, step=0.04, rng=0).status == "ok"


def test_long_steps_are_told() -> None:
    found = certify_exit(LINE, best, [START], n=4096, step=0.2, rng=0)
    assert "steps of 0.2 are long" in found.status
    assert "take shorter steps" in found.status
    assert "steps of 0.4 on average, too few to extrapolate" in found.status


def test_the_same_bits_on_any_executor_and_what_travels_can() -> None:
    alone = certify_exit(LINE, push, [START], n=9000, step=0.1, rng=7)
    with ThreadPoolExecutor(2) as pool:
        assert certify_exit(LINE, push, [START], n=9000, step=0.1, rng=7, executor=pool).diffusion == alone.diffusion
    score = Likelihood(LINE.until(1.0, initial_law=fh.PointMass([START])), Steady(push))
    x = np.full((5, 1), START)
    first, second = (
        exit_weights(one, x, np.random.default_rng(0), lambda done: None, step=0.1)
        for one in (score, pickle.loads(pickle.dumps(score)))
    )
    np.testing.assert_array_equal(first, second)


def test_natural_faces_let_paths_pass_where_a_solution_ends() -> None:
    well = fh.zoo.get_exit("well-exit", kappa=0.2)
    solution = fh.solve_exit(well, rtol=1e-3)
    found = certify_exit(well, solution, [-1.9], n=512, step=0.02, rng=0)
    assert float(solution.value([-1.9])) in found.diffusion.optimal


def wobbling(x: np.ndarray, rng: np.random.Generator = np.random.default_rng(0)) -> np.ndarray:  # noqa: B008
    return rng.random(x.shape)


def ask(problem: Any = LINE, policy: Any = None, start: Any = (START,), **more: Any) -> Callable[[], Any]:
    return lambda: certify_exit(problem, policy, start, **{"n": 64, "step": 0.1, "rng": 0, **more})


REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "certify_exit needs an ExitProblem, got int": (ProblemError, ask(problem=3)),
    "got ExitProblem; stationary.certify_exit follows": (
        ProblemError,
        lambda: fh.certify(LINE, None, n=64, steps=2, rng=0),  # type: ignore[arg-type]
    ),
    "needs a problem with domain=": (DomainError, ask(problem=process(domain=None))),
    r"policy must be a callable x \(n, d\) -> \(n, d\), got float": (ProblemError, ask(policy=1.0)),
    r"policy\(x\) returned shape": (ProblemError, ask(policy=lambda x: x[:, 0])),
    "must be a function of x alone": (ProblemError, ask(policy=wobbling)),
    r"start must lie inside the domain, got \[1.0\]": (DomainError, ask(start=[1.0])),
    "start must have shape": (DomainError, ask(start=[0.0, 0.0])),
    "n must be at least 64": (MeasureError, ask(n=8)),
    "step must be a positive finite number": (ConvergenceError, ask(step=0.0)),
    "level must lie between 0 and 1": (MeasureError, ask(level=95.0)),
    "rng must be": (MeasureError, ask(rng=-1)),
    "starts= is for X_0 ~ p_0": (MeasureError, ask(starts=20)),
    "lead no further than": (ConvergenceError, ask(step=1e-12)),
    "done within max_seconds=0.001": (ConvergenceError, ask(step=1e-6, max_seconds=1e-3)),
    "got float without value and gradient": (ProblemError, ask(value=1.0)),
    "gives one that is recovered from it; give the solution as policy=": (
        ProblemError,
        lambda: certify_exit(
            DISC, None, [0.0, 0.0], n=64, step=0.1, rng=0, value=fh.stationary.solve_exit_on_mesh(DISC)
        ),
    ),
    "value= is not for reflecting faces": (
        ProblemError,
        ask(problem=process(domain=fh.Box([-1.0], [1.0], [("absorbing", "reflecting")])), value=Warped(0.0)),
    ),
    "is of dimension 1, the problem has dim=2": (
        ProblemError,
        ask(problem=DISC, policy=fh.solve_exit(LINE, rtol=1e-2), start=[0.0, 0.0]),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    error, call = REFUSED[message]
    with pytest.raises(error, match=message):
        call()


def test_paths_that_never_leave_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fem_hjb.evaluation.exit_walk.MOST_STEPS", 40)
    with pytest.raises(ConvergenceError, match="have not left after 40 steps"):
        certify_exit(LINE, lambda x: -20 * x, [0.0], n=64, step=0.01, rng=0)
