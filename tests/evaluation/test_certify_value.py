"""Bounds from an approximate value, and certificates of reflected and stopped processes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

import fem_hjb as fh
from fem_hjb.evaluation import residual_score, weighted_walk
from fem_hjb.evaluation.certify import certify
from fem_hjb.evaluation.residual_score import Residual
from fem_hjb.experiments.trial import fitted_slope
from fem_hjb.paths import walls
from fem_hjb.problems.manufactured import manufactured
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import DomainError, MeasureError, ProblemError

LQ = fh.zoo.get("lq", dim=1, temperature=0.7)
LQ2 = fh.zoo.get("lq", dim=2)
X0 = [0.4]
TRUTH = float(LQ.exact.value(0.0, X0))


@dataclass(frozen=True)
class Bumped:
    """v + size e^{-|x|^2} (1 - t/2): its residual is the linearised operator on the bump, and what is quadratic."""

    problem: fh.ControlProblem
    size: float

    def bump(self, t: Any, x: Any) -> FloatArray:
        return np.asarray(self.size * np.exp(-(np.asarray(x) ** 2).sum(-1)) * (1.0 - np.asarray(t) / 2))

    def value(self, t: Any, x: Any) -> FloatArray:
        return np.asarray(self.problem.exact.value(t, x) + self.bump(t, x))

    def gradient(self, t: Any, x: Any) -> FloatArray:
        return np.asarray(self.problem.exact.gradient(t, x) - 2 * np.asarray(x) * self.bump(t, x)[..., None])


@dataclass(frozen=True)
class WithResidual(Bumped):
    """The same with R by hand."""

    def residual(self, t: float, x: FloatArray) -> FloatArray:
        of, u = self.problem, self.bump(t, x)
        slope = -2 * x * u[:, None]
        hessian = 4 * u[:, None, None] * x[:, :, None] * x[:, None, :] - 2 * u[:, None, None] * np.eye(x.shape[1])
        Lambda = of.Lambda(t, x)
        pushed = of.b(t, x) + of.policy_from_gradient(t, x, of.exact.gradient(t, x) + slope / 2)
        in_time = -u / 2 / (1 - t / 2)
        return np.asarray(in_time + (pushed * slope).sum(1) + np.einsum("nij,nij->n", Lambda, hessian) / 2)


def test_a_residual_is_found_by_differences() -> None:
    x = np.random.default_rng(0).standard_normal((200, 2))
    for t in (0.0, 0.3, 0.99):
        own = Residual(LQ2, WithResidual(LQ2, 0.3)).residual(t, x)
        np.testing.assert_allclose(Residual(LQ2, Bumped(LQ2, 0.3)).residual(t, x), own, atol=2e-4 if t == 0 else 2e-6)
    assert np.abs(own).max() > 0.1


def test_the_exact_value_leaves_nothing_open() -> None:
    found = certify(LQ, LQ.exact.policy, x0=X0, n=512, steps=32, rng=0, value=LQ.exact, bounds=fh.Box([-3.0], [3.0]))
    same = certify(LQ, (w := Bumped(LQ, 0.0)), x0=X0, n=512, steps=32, rng=0, value=w, bounds=fh.Box([-3.0], [3.0]))
    assert same.chain is None
    assert found.chain is not None
    for number in (same.lower, same.value, same.upper, found.value, found.upper):
        assert number == pytest.approx(TRUTH, abs=1e-5)
    assert found.diffusion.reward.half_width > 1e-4  # paths of the policy have the noise of its stochastic integral


@pytest.mark.parametrize("kind", [Bumped, WithResidual])
@pytest.mark.parametrize("x0", [X0, None])
def test_two_sided_bounds_hold(kind: type[Bumped], x0: Any) -> None:
    w = kind(LQ, 0.3)
    found = certify(LQ, w, x0=x0, n=8000, steps=64, rng=0, value=w, bounds=fh.Box([-4.0], [4.0]))
    variance = float(LQ.initial_law.covariance[0, 0])
    curved = 2 * float(LQ.exact.value(0.0, [1.0]) - LQ.exact.value(0.0, [0.0]))
    truth = TRUTH if x0 else float(LQ.exact.value(0.0, [0.0])) + curved * variance / 2
    assert found.status == "ok"
    assert found.lower < truth < found.upper
    assert truth in found.diffusion.optimal
    assert found.gap.low > 0.0
    assert found.upper_by == (
        "Hoeffding's lemma, bounds of the residual found at 4096 points of a box, and along the paths"
    )
    x = np.linspace(-4, 4, 2001)[:, None]
    of = Residual(LQ, w)
    R = np.array([of.residual(t, x) for t in np.linspace(0, 1, 65)[1:]])
    D = LQ.y(x) - of.w(1.0, x)
    length = float(np.ptp(R) + np.ptp(D))
    assert found.upper == pytest.approx(found.diffusion.reward.high + length**2 / (8 * 0.7), rel=0.02)


def test_the_gap_is_of_second_order_in_the_error_of_the_value() -> None:
    sizes = [0.4, 0.2, 0.1, 0.05]
    runs = [certify(LQ, w, x0=X0, n=10_000, steps=32, rng=0, value=w) for w in (Bumped(LQ, size) for size in sizes)]
    assert 1.85 < fitted_slope(sizes, [run.gap.estimate for run in runs]).value < 2.15
    assert 0.85 < fitted_slope(sizes, [run.diffusion.optimal.half_width for run in runs]).value < 1.15


def test_another_policy_keeps_its_reward_and_gap() -> None:
    w = Bumped(LQ, 0.1)
    found = certify(LQ, None, x0=X0, n=8000, steps=64, rng=0, value=w)
    alone = certify(LQ, None, x0=X0, n=8000, steps=64, rng=0)
    assert found.diffusion.reward == alone.diffusion.reward
    assert found.lower == alone.lower
    assert found.diffusion.optimal.half_width < alone.diffusion.optimal.half_width / 3
    assert found.gap.estimate == found.value - alone.diffusion.reward.estimate
    J, v = alone.diffusion.reward.half_width, found.diffusion.optimal.half_width
    assert found.gap.half_width == pytest.approx((J**2 + v**2) ** 0.5)
    assert found.gap.low < TRUTH - alone.diffusion.reward.estimate < found.gap.high


def test_bounds_that_paths_exceed_are_told() -> None:
    w = Bumped(LQ, 0.3)
    held = certify(LQ, w, x0=X0, n=1000, steps=64, rng=0, value=w, bounds=((-3.0, 3.0), (-1.0, 0.0)))
    assert held.upper_by == "Hoeffding's lemma, bounds of the residual given"
    assert held.upper == pytest.approx(held.diffusion.reward.high + 7.0**2 / 5.6)
    told = certify(LQ, w, x0=X0, n=1000, steps=64, rng=0, value=w, bounds=((-0.01, 0.01), (-1.0, 0.0)))
    assert "beyond the bounds that were given: they bound nothing" in told.status
    assert told.upper_by == "the estimate"
    assert told.upper == told.diffusion.optimal.high


def test_a_value_may_be_a_solution() -> None:
    solution = fh.solve(LQ, rtol=1e-3)
    found = certify(LQ, solution, x0=X0, n=1000, steps=64, rng=0, value=solution)
    assert found.status == "ok"
    for number in (found.lower, found.value, found.upper):
        assert number == pytest.approx(TRUTH, abs=1e-6)  # derivatives are differences


def test_a_value_that_is_nearly_perfect_has_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighted_walk, "jumps_of", lambda *_: [])  # steps go over the ends of panels
    problem = fh.zoo.get("soc-double-well", dim=1)
    solution, better = (fh.solve(problem, rtol=rtol, verify=False) for rtol in (1e-5, 1e-6))
    truth = float(better.value(0.0, [0.0]))
    tails = []
    for rng in range(2):
        found = certify(problem, solution, n=1024, steps=64, rng=rng, value=solution)
        tails.append(found.tail)
        assert found.status == "ok"
        assert found.ess > 1023.0
        assert found.lower <= truth + 1e-5
        assert abs(found.value - truth) < 1e-4
        assert found.upper - found.lower < 2e-3
    assert max(tails) > 0.5  # what is left of W is heavy-tailed: it is as good as constant nevertheless


REFLECTED = fh.zoo.get("reflected", dim=1)


@pytest.mark.parametrize(
    ("error", "message", "how"),
    [
        (ProblemError, "value must have .*, got int without value and gradient", {"value": 3}),
        (ProblemError, "got Slopeless without gradient", {"value": type("Slopeless", (), {"value": print})()}),
        (ProblemError, "value= is not for reflecting faces", {"problem": REFLECTED, "value": REFLECTED.exact}),
        (MeasureError, "bounds= are those of the residual of value=, which is missing", {"bounds": ((0, 1), (0, 1))}),
        (MeasureError, "bounds must be .* got .*1", {"value": LQ.exact, "bounds": ((1, 0), (0, 1))}),
        (MeasureError, "bounds must be ", {"value": LQ.exact, "bounds": (0, 1)}),
        (MeasureError, "bounds must be an array", {"value": LQ.exact, "bounds": "wide"}),
        (
            DomainError,
            "bounds= needs a bounded Box of dimension 1",
            {"value": LQ.exact, "bounds": fh.Box([0, 0], [1, 1])},
        ),
    ],
)
def test_what_is_refused_says_what_was_given(error: type[Exception], message: str, how: dict[str, Any]) -> None:
    given: Any = {"problem": LQ, "policy": None, "x0": X0, "n": 256, "steps": 2, "rng": 0} | how
    with pytest.raises(error, match=message):
        certify(**given)


def slope(t: Any, x: Any) -> FloatArray:
    return -np.asarray(x)


def curve(t: Any, x: Any) -> FloatArray:
    return np.asarray(-(np.asarray(x)[..., 0] ** 2) / 2)


class Parts:
    """A value that is made of what it is given."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update({"value": curve, "gradient": slope} | parts)


def failing(t: Any, x: Any) -> FloatArray:
    raise KeyError("weights")


FAR = fh.solve(LQ, rtol=1e-2)
BAD_VALUES: dict[str, tuple[Any, type[Exception], str]] = {
    "a value with a column": (Parts(value=slope), ProblemError, r"value\(t, x\) returned shape \(64, 1\) .* \(64,\)"),
    "a gradient without one": (Parts(gradient=curve), ProblemError, r"gradient\(t, x\) returned shape \(8,\)"),
    "a value of nan": (Parts(value=lambda t, x: np.nan * curve(t, x)), ProblemError, "value.* not finite at 64 of 64"),
    "a gradient of nan": (Parts(gradient=lambda t, x: np.nan * x), ProblemError, r"gradient.* not finite .* x=\[0.4\]"),
    "a gradient that fails": (Parts(gradient=failing), ProblemError, r"gradient\(t, x\) failed at t=0 .*KeyError"),
    "a residual with a column": (Parts(residual=slope), ProblemError, r"residual\(t, x\) returned shape \(64, 1\)"),
    "a residual that is none": (
        Parts(residual=3.0),
        ProblemError,
        r"residual\(t, x\) failed .*'float' .* not callable",
    ),
    "a residual of infinity": (Parts(residual=lambda t, x: curve(t, x) / 0), ProblemError, "residual.* not finite"),
    "a generator that fails": (
        Parts(generator=failing),
        ProblemError,
        r"generator\(t, x\) failed .*KeyError: 'weights'",
    ),
    "complex values": (Parts(value=lambda t, x: 1j * curve(t, x)), ProblemError, r"value\(t, x\) returns .*complex"),
    "half precision": (Parts(gradient=lambda t, x: x.astype(np.float16)), ProblemError, "float16, which has three"),
    "random numbers": (
        Parts(gradient=lambda t, x: x + np.random.default_rng().random(x.shape)),
        ProblemError,
        r"policy\(t, x\) returned other numbers",
    ),
    "a callable alone": (
        curve,
        ProblemError,
        r"got function without value and gradient; of a network, as_value\(net\)",
    ),
    "a solution in another dimension": (fh.solve(LQ2, rtol=1e-1), DomainError, r"shape \(..., 2\), got shape \(8, 1\)"),
    "a solution on a box elsewhere": (FAR, DomainError, r"x=\[99.0\] is not within"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("kind", BAD_VALUES)
def test_a_value_that_is_none_is_refused(kind: str) -> None:
    value, error, message = BAD_VALUES[kind]
    with pytest.raises(error, match=message):
        certify(LQ, None, x0=[99.0] if value is FAR else X0, n=64, steps=2, rng=0, value=value)


# Processes with faces, and a diffusion matrix that depends on the state


def wave(t: Any, x: Any) -> FloatArray:
    return np.asarray(np.sin(2 * x[..., 0] + 1.0) * (1.0 + np.asarray(t)))


STOPPED = manufactured(
    value=wave,
    time_derivative=lambda t, x: np.sin(2 * x[..., 0] + 1.0) + 0.0 * np.asarray(t),
    gradient=lambda t, x: 2 * np.cos(2 * x + 1.0) * (1.0 + np.asarray(t)[..., None]),
    hessian=lambda t, x: -4 * (np.sin(2 * x + 1.0) * (1.0 + np.asarray(t)[..., None]))[..., None],
    drift=lambda t, x: 0.5 - x,
    diffusion=0.6,
    temperature=0.8,
    horizon=1.0,
    initial_law=fh.Uniform(fh.Box([-0.5], [0.5])),
    domain=fh.Box([-1.0], [1.0], boundary="absorbing"),
)


@pytest.mark.parametrize(
    ("problem", "start"), [(STOPPED, -0.8), (STOPPED, 0.3), (REFLECTED, 0.3)], ids=["at a face", "stopped", "reflected"]
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_processes_with_faces_are_certified(problem: fh.ControlProblem, start: float, scale: float) -> None:
    x0 = [start]
    truth = float(problem.exact.value(0.0, x0))
    found = certify(
        problem,
        lambda t, x: scale * problem.policy_from_gradient(t, x, problem.exact.gradient(t, x)),
        x0=x0,
        n=1000,
        steps=256,
        rng=1,
    )
    assert found.status == "ok"
    assert abs(found.diffusion.optimal.estimate - truth) < 3.5 / 1.96 * found.diffusion.optimal.half_width
    assert found.lower < truth
    assert (found.gap.low > 0.005) == (scale < 1.0)


def test_stopping_is_of_order_one() -> None:
    truth, steps = float(STOPPED.exact.value(0.0, [0.5])), [8, 16, 32, 64]
    off = []
    for count in steps:
        found = certify(STOPPED, STOPPED.exact, x0=[0.5], n=20_000, steps=count, rng=2)
        assert found.chain is not None
        off.append(abs(found.chain.reward.estimate - truth))
    assert 0.85 < -fitted_slope(steps, off).value < 1.15


@pytest.mark.parametrize("bridge", [True, False])
def test_bridges_stop_brownian_motion_exactly_and_ends_alone_by_order_a_half(
    bridge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: 0.0 * x,
        diffusion=1.0,
        terminal_reward=lambda x: 1.0 + 0.0 * x[..., 0],
        initial_law=fh.PointMass([1.0]),
        domain=fh.Box([0.0], [np.inf], boundary=[("absorbing", "natural")]),
    )
    if not bridge:
        whole = walls.stop_at_faces
        monkeypatch.setattr(walls, "stop_at_faces", lambda domain, var, *a: whole(domain, 1e-12 * var, *a))
    steps = [4, 16, 64]
    found = [certify(problem, None, n=40_000, steps=count, rng=2).chain for count in steps]
    rewards = [bounds.reward for bounds in found if bounds is not None]
    off = np.array([reward.estimate for reward in rewards]) - (2 * ndtr(1.0) - 1)  # no exit, by reflection
    if bridge:
        assert (np.abs(off) < [1.5 * reward.half_width for reward in rewards]).all()
    else:
        assert 0.35 < -fitted_slope(steps, off).value < 0.65


def test_a_stopped_process_is_bounded_by_its_value() -> None:
    @dataclass(frozen=True)
    class Off:
        def value(self, t: Any, x: Any) -> FloatArray:
            return np.asarray(wave(t, x) + 0.1 * np.asarray(x)[..., 0] ** 2)

        def gradient(self, t: Any, x: Any) -> FloatArray:
            return np.asarray(STOPPED.exact.gradient(t, x) + 0.2 * np.asarray(x))

    found = certify(STOPPED, (w := Off()), x0=[0.3], n=4000, steps=128, rng=0, value=w, bounds=fh.Box([-1.0], [1.0]))
    truth = float(STOPPED.exact.value(0.0, [0.3]))
    assert found.lower < truth < found.upper
    assert truth in found.diffusion.optimal
    given = residual_score.Range(np.array([1.0, 2.0, 0.0, 0.5]), "given", given=True)
    assert given.length(STOPPED) == 2.5  # the integral of R may end at once
    assert given.length(LQ) == 1.5


def turning(t: Any, x: FloatArray) -> FloatArray:
    """A full diffusion matrix that depends on the state."""
    off = 0.3 * np.sin(x[..., 0])
    diagonal = 1.0 + 0.5 * np.cos(x) ** 2
    return np.stack([np.stack([diagonal[..., 0], off], -1), np.stack([off, diagonal[..., 1]], -1)], -2)


def test_a_diffusion_that_depends_on_the_state() -> None:
    def v(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(np.sin(x[..., 0]) * np.cos(x[..., 1]) * (2.0 - np.asarray(t)))

    def slope(t: Any, x: FloatArray) -> FloatArray:
        a, b = x[..., 0], x[..., 1]
        return np.stack([np.cos(a) * np.cos(b), -np.sin(a) * np.sin(b)], -1) * (2.0 - np.asarray(t)[..., None])

    def hessian(t: Any, x: FloatArray) -> FloatArray:
        a, b = x[..., 0], x[..., 1]
        same, cross = -np.sin(a) * np.cos(b), -np.cos(a) * np.sin(b)
        rows = np.stack([np.stack([same, cross], -1), np.stack([cross, same], -1)], -2)
        return np.asarray(rows * (2.0 - np.asarray(t)[..., None, None]))

    problem = manufactured(
        value=v,
        time_derivative=lambda t, x: -np.sin(x[..., 0]) * np.cos(x[..., 1]) + 0.0 * np.asarray(t),
        gradient=slope,
        hessian=hessian,
        drift=lambda t, x: -x,
        diffusion=turning,
        temperature=0.9,
        horizon=0.5,
        initial_law=fh.Gaussian([0.0, 0.0], 0.1),
    )
    x0 = [0.3, 0.2]
    found = certify(problem, None, x0=x0, n=8000, steps=64, rng=0)
    truth = float(problem.exact.value(0.0, x0))
    assert found.status == "ok"
    assert abs(found.diffusion.optimal.estimate - truth) < 3.5 / 1.96 * found.diffusion.optimal.half_width
    assert found.gap.low > 0.05
    assert certify(problem, problem.exact, x0=x0, n=2000, steps=64, rng=0).gap.estimate < 0.005
