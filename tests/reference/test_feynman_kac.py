"""Expectations of what has any sign: closed forms, tolerances, units, linearity, and wrong input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

import fem_hjb as fh
from fem_hjb.paths import tilted
from fem_hjb.reference import box_tolerance
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError, ProblemError

ALPHA = 0.5
START, SPREAD = 0.2, 0.3  # mean and variance of X_0
TIMES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
NODES = np.linspace(-5.0, 5.0, 801)
WEIGHTS = norm.pdf(NODES)

Moment = Callable[[FloatArray, float], tuple[FloatArray, FloatArray]]


def process(dim: int = 1, pull: float = 0.0, **changes: Any) -> fh.ControlProblem:
    """dX = -pull X dt + dB."""
    given: dict[str, Any] = {
        "dim": dim,
        "horizon": 1.0,
        "temperature": ALPHA,
        "drift": lambda t, x: -pull * x,
        "diffusion": 1.0,
        "terminal_reward": lambda x: -(x**2).sum(-1),
        "initial_law": fh.Gaussian([START] * dim, SPREAD),
    }
    return fh.ControlProblem(**{**given, **changes})


def bachelier(m: FloatArray, sd: float, strike: float, sign: float) -> tuple[FloatArray, FloatArray]:
    """E (sign (X - strike))^+ for X ~ N(m, sd^2), and its derivative in m."""
    z = sign * (m - strike) / sd
    return sign * (m - strike) * norm.cdf(z) + sd * norm.pdf(z), sign * norm.cdf(z)


def spread_of_options(m: FloatArray, v: float) -> tuple[FloatArray, FloatArray]:
    """A call struck at 0.4 less a put struck at -0.3."""
    sd = max(np.sqrt(v), 1e-12)
    call, put = bachelier(m, sd, 0.4, 1.0), bachelier(m, sd, -0.3, -1.0)
    return call[0] - put[0], call[1] - put[1]


# h(x), and (m, v) -> E h(X) and its derivative in m, for X ~ N(m, v).
PAYOFFS: dict[str, tuple[Callable[[FloatArray], FloatArray], Moment]] = {
    "x": (lambda x: x, lambda m, v: (m, np.ones_like(m))),
    "cube": (lambda x: x**3, lambda m, v: (m**3 + 3.0 * v * m, 3.0 * m**2 + 3.0 * v)),
    "sine": (
        lambda x: np.sin(2.0 * x),
        lambda m, v: (np.sin(2.0 * m) * np.exp(-2.0 * v), 2.0 * np.cos(2.0 * m) * np.exp(-2.0 * v)),
    ),
    "options": (
        lambda x: np.maximum(x - 0.4, 0.0) - np.maximum(-0.3 - x, 0.0),
        spread_of_options,
    ),
}
REWARDS: dict[str, tuple[float, float]] = {"none": (0.0, 0.0), "constant": (-0.8, 0.0), "linear": (0.3, 0.4)}


def closed(name: str, pull: float, reward: str, t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """u and its slope with r = a + b x: Girsanov's shift of the mean of X_T by its covariance with int b X / alpha.

    With k = pull and s = T - t: X_T has mean e^{-ks} x and variance (1 - e^{-2ks}) / 2k, int X has mean g x with
    g = (1 - e^{-ks}) / k, the two have covariance g^2 / 2, and int X has variance (s - g - k g^2 / 2) / k^2.
    """
    s, (a, b) = 1.0 - t, REWARDS[reward]
    a, b = a / ALPHA, b / ALPHA
    decay = np.exp(-pull * s)
    g = (1.0 - decay) / pull if pull else s
    variance = (1.0 - decay**2) / (2.0 * pull) if pull else s
    of_integral = (s - g - pull * g**2 / 2.0) / pull**2 if pull else s**3 / 3.0
    mean, slope = PAYOFFS[name][1](decay * x + b * g**2 / 2.0, variance)
    factor = np.exp(a * s + b * g * x + b**2 * of_integral / 2.0)
    return factor * mean, factor * (decay * slope + b * g * mean)


def errors(
    found: Any, rate: float, exact: Callable[[float, FloatArray], tuple[FloatArray, FloatArray]], pull: float
) -> FloatArray:
    """Of value and gradient, relative, as the error estimate says, within the box; in one dimension."""
    norms = np.zeros((2, 2))
    for t in TIMES[:-1]:
        decay = np.exp(-pull * t)
        variance = SPREAD * decay**2 + ((1.0 - decay**2) / (2.0 * pull) if pull else t)
        x = START * decay + np.sqrt(variance) * NODES
        u, slope = exact(t, x)
        gap = found.value(t, x[:, None], outside="nan") - u, found.gradient(t, x[:, None], outside="nan")[:, 0] - slope
        squares = [[np.nansum(WEIGHTS * part**2) for part in pair] for pair in (gap, (u, slope))]
        norms = np.maximum(norms, np.exp(-rate * (1.0 - t)) * np.sqrt(squares))
    return np.asarray(norms[0] / norms[1])


CASES = [(0.0, "none"), (1.5, "constant"), (1.5, "linear")]


@pytest.mark.parametrize(
    ("name", "pull", "reward"),
    [(name, *case) for name in PAYOFFS for case in CASES if (name, case[1]) != ("options", "constant")],
)
def test_closed_forms(name: str, pull: float, reward: str) -> None:
    a, b = REWARDS[reward]
    running = None if reward == "none" else lambda t, x: a + b * x[..., 0]
    problem = process(pull=pull, running_reward=running)
    h = PAYOFFS[name][0]
    for rtol in (1e-2, 3e-3) if name == "options" else (1e-2, 1e-7):
        found = fh.feynman_kac(problem, lambda x: h(x[..., 0]), rtol=rtol)
        assert found.status == "ok"
        assert found.error_estimate.met(rtol)
        value, gradient = errors(found, found.rate, lambda t, x: closed(name, pull, reward, t, x), pull)
        assert max(value, gradient) < rtol
        assert max(value, gradient) < 3.0 * max(found.error_estimate.value, found.error_estimate.policy)
    x = np.array([-0.7, 0.1, 1.2])
    np.testing.assert_allclose(found.value(1.0, x[:, None]), h(x), atol=1e-3 * rtol**0.5)


def test_errors_fall_with_the_tolerance() -> None:
    found = []
    for rtol in (1e-2, 1e-5, 1e-8):
        solution = fh.feynman_kac(process(), lambda x: np.sin(2.0 * x[..., 0]), rtol=rtol)
        found.append(errors(solution, 0.0, lambda t, x: closed("sine", 0.0, "none", t, x), 0.0).max())
    assert found[1] < found[0] / 30.0
    assert found[2] < found[1] / 30.0


@pytest.mark.parametrize("dim", [2, 3])
def test_more_coordinates(dim: int) -> None:
    """E sin(X_1) X_2, correlated Brownian coordinates, r = b x_d: the mean moves by b Lambda e_d s^2 / (2 alpha)."""
    Lambda = np.eye(dim) + 0.4 * (np.eye(dim, k=1) + np.eye(dim, k=-1))
    problem = process(dim, diffusion=Lambda, running_reward=lambda t, x: 0.3 * x[..., -1])
    found = fh.feynman_kac(problem, lambda x: np.sin(x[..., 0]) * x[..., 1], rtol=1e-3)
    assert found.status == "ok"
    rng = np.random.default_rng(0)
    for t in (0.0, 0.5, 0.9):
        s, b = 1.0 - t, 0.3 / ALPHA
        x = START + np.sqrt(SPREAD + t) * rng.standard_normal((200, dim))
        m = x + 0.5 * b * s**2 * Lambda[:, -1]
        factor = np.exp(b * s * x[:, -1] + b**2 * Lambda[-1, -1] * s**3 / 6.0 - 0.5 * s * Lambda[0, 0])
        # E sin(X_1) X_2 for a Gaussian pair: e^{-var/2} (m_2 sin m_1 + cov cos m_1)
        u = factor * (m[:, 1] * np.sin(m[:, 0]) + s * Lambda[0, 1] * np.cos(m[:, 0]))
        assert np.sqrt(np.mean((found.value(t, x, outside="nan") - u) ** 2)) < 1e-3 * np.sqrt(np.mean(u**2))


def test_it_is_linear_and_knows_no_units_and_is_f_where_h_is_positive() -> None:
    problem = process(pull=1.0, running_reward=lambda t, x: -(x[..., 0] ** 2) / 4)
    x = np.linspace(-1.5, 1.5, 9)[:, None]

    def solved(h: Callable[[FloatArray], FloatArray]) -> Any:
        return fh.feynman_kac(problem, h, rtol=1e-5).value(0.3, x)

    one, other = solved(lambda x: np.cos(x[..., 0])), solved(lambda x: x[..., 0])
    both = solved(lambda x: 2.0 * np.cos(x[..., 0]) - 3.0 * x[..., 0])
    np.testing.assert_allclose(both, 2.0 * one - 3.0 * other, atol=1e-5)
    for unit in (1e-200, 1e200):
        np.testing.assert_allclose(
            solved(lambda x, unit=unit: unit * x[..., 0]), unit * other, rtol=1e-9, atol=unit * 1e-9
        )
    tilted = solved(lambda x: np.exp(-(x**2).sum(-1) / ALPHA))
    reference = fh.solve(problem, rtol=1e-5)
    np.testing.assert_allclose(tilted, np.exp(reference.value(0.3, x) / ALPHA), rtol=1e-4)


def test_reflected_and_constant() -> None:
    """cos(pi x) decays on [0, 1] at the rate pi^2 / 2; what is constant stays so, r or not."""
    domain = fh.Box([0.0], [1.0], boundary="reflecting")
    inside = process(initial_law=fh.Uniform(fh.Box([0.0], [1.0])), domain=domain)
    x = np.linspace(0.05, 0.95, 11)[:, None]
    found = fh.feynman_kac(inside, lambda x: np.cos(np.pi * x[..., 0]), rtol=1e-6)
    assert found.status == "ok"
    exact = np.exp(-(np.pi**2) / 2) * np.cos(np.pi * x[:, 0])
    np.testing.assert_allclose(found.value(0.0, x), exact, atol=1e-6)
    kept = fh.feynman_kac(
        replace(inside, running_reward=lambda t, x: 5.0 + 0.0 * x[..., 0]), lambda x: -2.0 + 0.0 * x[..., 0]
    )
    np.testing.assert_allclose(kept.value(0.25, x), -2.0 * np.exp(0.75 * 5.0 / ALPHA), rtol=1e-10)
    assert kept.value(0.25, [0.5]).shape == ()
    assert kept.gradient([0.25, 0.5], [[0.5], [0.1]]).shape == (2, 1)
    assert np.isnan(kept.value(0.0, [1.5], outside="nan"))
    assert str(found).startswith("expectation under 'user problem': ok\nrelative error: value ")


def test_what_is_not_reached_is_said() -> None:
    with pytest.warns(
        fh.ToleranceWarning, match=r"feynman_kac\('user problem'\) was asked for a relative error of 1.0e-03"
    ) as told:
        found = fh.feynman_kac(process(), lambda x: np.sign(x[..., 0] - 0.1), rtol=1e-3, max_dofs=40)
    assert told[0].filename == __file__
    assert "1.0e-03" in found.status
    assert not found.error_estimate.met(1e-3)


WRONG: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "no problem": (ProblemError, "feynman_kac", lambda: fh.feynman_kac(3, np.sin)),  # type: ignore[arg-type]
    "no callable": (ProblemError, "h must be a callable", lambda: fh.feynman_kac(process(), 3)),  # type: ignore[arg-type]
    "shape": (ProblemError, r"h\(x\) returned shape .*, expected", lambda: fh.feynman_kac(process(), np.sin)),
    "nan": (ProblemError, r"h\(x\) is not finite", lambda: fh.feynman_kac(process(), lambda x: np.nan * x[..., 0])),
    "raises": (ProblemError, r"h\(x\) failed .*ZeroDivisionError", lambda: fh.feynman_kac(process(), lambda x: 1 / 0)),
    "nothing": (ProblemError, "is 0 at", lambda: fh.feynman_kac(process(), lambda x: 0.0 * x[..., 0])),
    "rtol": (ConvergenceError, "rtol", lambda: fh.feynman_kac(process(), lambda x: x[..., 0], rtol=2.0)),
    "time": (
        ConvergenceError,
        r"no solution within max_seconds=1e-05; give it more time",
        lambda: fh.feynman_kac(process(), lambda x: x[..., 0], max_seconds=1e-5),
    ),
    "dimension": (DomainError, "dimension 3", lambda: fh.feynman_kac(process(4), lambda x: x[..., 0])),
    "faces": (
        DomainError,
        "absorbing faces",
        lambda: fh.feynman_kac(process(domain=fh.Box([-9.0], [9.0], boundary="absorbing")), lambda x: x[..., 0]),
    ),
    "box": (DomainError, "box", lambda: fh.feynman_kac(process(), lambda x: x[..., 0], box=fh.Box([2.0], [3.0]))),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name: str) -> None:
    error, message, call = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_the_terminal_reward_plays_no_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does anything that steers."""
    monkeypatch.setattr(box_tolerance, "steered", None)
    monkeypatch.setattr(tilted, "tilted_ends", None)
    x = np.array([[0.3], [-0.4]])
    plain = fh.feynman_kac(process(), lambda x: x[..., 0] ** 3).value(0.1, x)
    steep = process(terminal_reward=lambda x: 1e6 * np.cos(9.0 * x[..., 0]))
    np.testing.assert_array_equal(fh.feynman_kac(steep, lambda x: x[..., 0] ** 3).value(0.1, x), plain)


def test_a_constant_reward_on_the_way_is_a_factor_and_changes_no_estimate() -> None:
    x = np.linspace(-1.0, 1.0, 5)[:, None]
    plain = fh.feynman_kac(process(), lambda x: np.sin(2.0 * x[..., 0]), rtol=1e-3)
    for rate in (-100.0, 100.0):
        problem = process(running_reward=lambda t, x, rate=rate: rate + 0.0 * x[..., 0])
        found = fh.feynman_kac(problem, lambda x: np.sin(2.0 * x[..., 0]), rtol=1e-3)
        factor = np.exp(0.75 * rate / ALPHA)
        np.testing.assert_allclose(found.value(0.25, x) / factor, plain.value(0.25, x), rtol=1e-9, atol=1e-12)
        for part in ("value", "policy"):
            ours, theirs = getattr(found.error_estimate, part), getattr(plain.error_estimate, part)
            assert ours == pytest.approx(theirs, rel=1e-5)


# Walls: h is 0 where the process must not end, and v = alpha log u.

_SEEN = 1e-3  # f below it is left out, which is this part of the conditioned law over f_0 at most


@pytest.mark.parametrize(
    ("dim", "low", "high", "pull", "rtol"),
    [(1, 0.3, np.inf, 0.0, 1e-2), (1, -0.5, 1.0, 0.0, 1e-2), (1, 0.3, np.inf, 1.5, 1e-2), (2, 0.3, np.inf, 0.0, 3e-2)],
    ids=["half-line", "interval", "drifted", "quadrant"],
)
def test_the_value_beside_a_wall(dim: int, low: float, high: float, pull: float, rtol: float) -> None:
    """Mean errors of v / alpha and of its gradient under the law of the conditioned process, until T / 100 before T."""
    problem = process(dim, pull)
    found = fh.feynman_kac(problem, lambda x: ((x > low) & (x < high)).all(-1).astype(float), rtol=rtol)
    assert found.status == "ok"
    rng = np.random.default_rng(0)
    for t in (0.0, 0.5, 0.9, 0.99):
        decay, to_end = np.exp(-pull * t), np.exp(-pull * (1.0 - t))
        variance = SPREAD * decay**2 + ((1.0 - decay**2) / (2.0 * pull) if pull else t)
        left = np.sqrt((1.0 - to_end**2) / (2.0 * pull) if pull else 1.0 - t)
        x = START * decay + np.sqrt(variance) * rng.standard_normal((4000, dim))
        f = np.prod([norm.sf((low - to_end * x) / left) - norm.sf((high - to_end * x) / left)], axis=(0, -1))
        x, weights = x[f > _SEEN], f[f > _SEEN] / f.sum()
        assert weights.sum() > 1.0 - 3.0 * _SEEN
        ends = [(end - to_end * x[:, 0]) / left for end in (low, high)]
        slope = to_end / left * (norm.pdf(ends[0]) - norm.pdf(ends[1])) / (norm.sf(ends[0]) - norm.sf(ends[1]))
        u, gradient = found.value(t, x, outside="nan"), found.gradient(t, x, outside="nan")[:, 0]
        assert weights @ np.abs(np.log(u) - np.log(f[f > _SEEN])) < rtol
        assert weights @ np.abs(gradient / u - slope) < rtol * (weights @ np.abs(slope))
