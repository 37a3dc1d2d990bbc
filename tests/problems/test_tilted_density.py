"""Tilted data laws: against closed forms, the value at the start, and where the controlled process ends."""

import re
from pathlib import Path

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.problems.tilted_density import tilted_density
from fem_hjb.support.errors import ConvergenceError, ProblemError

POINTS = np.random.default_rng(0).normal(size=(12, 2)) * [1.5, 0.6]
LAW = fh.problems.KernelDensity(POINTS, 0.35)
SLOPE = np.array([1.2, -0.7])


def first(x):
    return x[..., 0]


def plane(x):
    return x @ SLOPE


def test_a_linear_tilt_moves_each_kernel_and_weighs_it():
    """N(m, h^2) exp(s'x / alpha) is a multiple of N(m + h^2 s / alpha, h^2): weights exp(s'm / alpha)."""
    found = tilted_density(LAW, plane, temperature=0.5, rtol=1e-10)
    pull = SLOPE / 0.5
    weights = np.exp(POINTS @ pull)
    log_z = np.log(weights.mean()) + 0.5 * 0.35**2 * pull @ pull
    moved = fh.problems.KernelDensity(POINTS + 0.35**2 * pull, 0.35, weights / weights.sum())
    assert found.log_normaliser == pytest.approx(log_z, abs=1e-12)
    assert found.error < 1e-10
    np.testing.assert_allclose(found.expectation, moved.expectation, atol=1e-11)
    np.testing.assert_allclose(found.covariance, moved.covariance, atol=1e-11)
    x = moved.sample(60, np.random.default_rng(1)).reshape(3, 20, 2)
    np.testing.assert_allclose(found.logpdf(x), moved.logpdf(x), atol=1e-11)
    np.testing.assert_allclose(found.density(x), np.exp(moved.logpdf(x)), rtol=1e-10)
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_gaussians_and_quadratics_in_each_dimension(dim):
    law = fh.Gaussian(np.full(dim, 0.4), 0.5)
    found = tilted_density(law, lambda x: -(x**2).sum(-1), temperature=2.0)
    np.testing.assert_allclose(found.expectation, np.full(dim, 0.4 / 1.5), atol=1e-9)
    np.testing.assert_allclose(found.covariance, np.eye(dim) * 0.5 / 1.5, atol=1e-9)
    assert found.log_normaliser == pytest.approx(dim * (-0.5 * np.log(1.5) - 0.08 / 1.5), abs=1e-9)


def test_a_strong_reward_leads_far_beyond_the_draws_of_the_law():
    found = tilted_density(fh.Gaussian([0.0], 1.0), first, temperature=0.05)
    assert found.expectation[0] == pytest.approx(20.0, abs=1e-9)
    assert found.log_normaliser == pytest.approx(200.0, abs=1e-9)


def test_the_mean_of_f_at_the_start_is_the_normaliser():
    """E f_0(X_0) = E exp(y(X_T) / alpha), whatever X_0 tells of X_T."""
    for beta in (0.5, (0.1, 20.0)):
        process = fh.problems.from_points(POINTS, 0.35, horizon=1.0, beta=beta)
        problem = process.tilted(fh.problems.LogSumExpReward.linear(SLOPE, temperature=0.5), temperature=0.5)
        x, w = problem.initial_law.quadrature(48)
        found = tilted_density(problem.marginal(1.0), problem.terminal_reward, temperature=0.5, rtol=1e-10)
        mean = w @ np.exp(problem.exact.value(0.0, x) / 0.5)
        assert np.log(mean) == pytest.approx(found.log_normaliser, abs=1e-9)


def test_controlled_paths_end_there_if_the_start_is_forgotten_and_else_where_the_start_says():
    """p*_T = p_T exp(y / alpha) E[1 / f_0(X_0) | X_T], and X_0 given X_T is N(kappa X_T, 1 - kappa^2)."""
    reward = fh.problems.LogSumExpReward.linear(SLOPE, temperature=0.5)
    nodes, weights = fh.Gaussian([0.0, 0.0], 1.0).quadrature(16)
    gaps = []
    for beta in (1.0, 12.0):
        process = fh.problems.from_points(POINTS, 0.35, horizon=1.0, beta=beta)
        problem = process.tilted(reward, temperature=0.5)
        goal = tilted_density(process.data, reward, temperature=0.5)
        kappa = np.exp(-beta / 2)
        start = kappa * goal.points[:, None] + np.sqrt(1 - kappa**2) * nodes
        back = np.exp(-problem.exact.value(0.0, start) / 0.5) @ weights
        factor = back * np.exp(goal.log_normaliser)  # of p*_T and the tilted density
        assert goal.weights @ factor == pytest.approx(1.0, abs=1e-6)  # p*_T has mass one
        gaps.append(goal.weights @ np.abs(factor - 1))
        if beta == 1.0:
            ends = fh.paths.simulate.sample_at(
                problem, np.array([0.0, 1.0]), n=1500, rng=0, policy=problem.exact.policy
            ).x[:, -1]
            mean = (goal.weights * factor) @ goal.points
            error = ends.std(0) / np.sqrt(len(ends))
            assert (np.abs(ends.mean(0) - mean) < 4 * error + 0.02).all()
            assert (np.abs(goal.expectation - mean) > 8 * error).any()  # not at the tilted law
    assert gaps[0] > 0.2
    assert gaps[1] < 0.01


def test_a_reward_that_jumps_is_integrated_to_what_it_allows_and_refused_beyond():
    def step(x):
        return 1.0 * (x[..., 0] > 0.1)

    law = fh.Gaussian([0.0], 1.0)
    found = tilted_density(law, step, temperature=1.0, rtol=1e-4)
    share = 0.46017216272297107  # of N(0, 1) above 0.1
    assert abs(np.exp(found.log_normaliser) / (1 + (np.e - 1) * share) - 1) < 1e-4
    with pytest.raises(ConvergenceError, match=r"leave an error of .* above rtol=1e-12. The law or the reward is too"):
        tilted_density(law, step, temperature=1.0, rtol=1e-12)


def test_a_box_is_taken_as_it_is():
    box = fh.Box([-1.0], [3.0])
    found = tilted_density(fh.Uniform(box), first, temperature=1.0, box=box, rtol=1e-9)
    assert found.log_normaliser == pytest.approx(np.log((np.exp(3.0) - np.exp(-1.0)) / 4.0), abs=1e-9)
    with pytest.raises(ConvergenceError, match="or the box too small"):
        tilted_density(fh.Gaussian([0.0], 1.0), first, temperature=1.0, box=box)


BAD = {
    "law": (lambda: tilted_density("p", first, temperature=1.0), "tilted_density needs a Law, got str"),
    "reward": (lambda: tilted_density(LAW, 1.0, temperature=1.0), "reward must be a callable .* got float"),
    "reward-shape": (lambda: tilted_density(LAW, lambda x: x, temperature=1.0), r"reward\(x\) returned shape"),
    "reward-nan": (
        lambda: tilted_density(LAW, lambda x: np.nan * first(x), temperature=1.0),
        r"reward\(x\) is not finite",
    ),
    "temperature": (lambda: tilted_density(LAW, first, temperature=0.0), "temperature must be a positive"),
    "rtol": (
        lambda: tilted_density(LAW, first, temperature=1.0, rtol=2.0),
        "rtol must lie between 1e-14 and 1, got 2.0",
    ),
    "dim": (
        lambda: tilted_density(fh.Gaussian(np.zeros(4), 1.0), first, temperature=1.0),
        "in one, two or three dimensions, the law has 4",
    ),
    "point": (lambda: tilted_density(fh.PointMass([0.0]), first, temperature=1.0), "a PointMass has no density"),
    "box": (
        lambda: tilted_density(LAW, first, temperature=1.0, box=fh.Box([0.0], [1.0])),
        "a bounded Box of dimension 2",
    ),
    "box-kind": (lambda: tilted_density(LAW, first, temperature=1.0, box=3), "box= needs a Box, got int"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_ill_formed_requests_are_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()


def test_what_has_no_integral_is_refused():
    with pytest.raises(ConvergenceError, match=r"does not fall off .* its integral may be infinite"):
        tilted_density(fh.Gaussian([0.0], 1.0), lambda x: x[..., 0] ** 2, temperature=1.0)


@pytest.mark.parametrize("kind", ["kernels", "mixture"])
def test_rewards_find_components_that_are_never_drawn(kind):
    """(1 - w) N(0, 1) + w N(100, 1) under y = x: e^{1/2} (1 - w + w e^100), all but e^-81 of it in the second."""
    w = 1e-8
    laws = {
        "kernels": fh.problems.KernelDensity([[0.0], [100.0]], 1.0, [1 - w, w]),
        "mixture": fh.GaussianMixture([1 - w, w], [[0.0], [100.0]], [[[1.0]], [[1.0]]]),
    }
    found = tilted_density(laws[kind], first, temperature=1.0)
    assert found.log_normaliser == pytest.approx(100.5 + np.log(w), abs=1e-9)
    assert found.expectation[0] == pytest.approx(101.0, abs=1e-9)


def test_peaks_of_rewards_much_narrower_than_the_law_are_seen():
    """E (1 + A exp(-(x - c)^2 / (2 s^2))) = 1 + A s r^{-1/2} exp(-c^2 / (2 r)) for N(0, 1), r = 1 + s^2."""
    height, width, centre = 1e3, 0.003, 0.1537

    def peak(x):
        return np.log1p(height * np.exp(-0.5 * ((x[..., 0] - centre) / width) ** 2))

    found = tilted_density(fh.Gaussian([0.0], 1.0), peak, temperature=1.0)
    total = 1 + width**2
    truth = 1 + height * width / np.sqrt(total) * np.exp(-0.5 * centre**2 / total)
    assert np.exp(found.log_normaliser) == pytest.approx(truth, rel=2e-6)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_rewards_that_outgrow_the_law_only_far_away_are_refused_unless_a_box_is_given(dim):
    """x^4 / 1000 is 7 at four standard deviations and more than x^2 / 2 from 22 on: its integral is infinite."""

    def quartic(x):
        return 1e-3 * x[..., 0] ** 4

    law = fh.Gaussian(np.zeros(dim), 1.0)
    with pytest.raises(ConvergenceError, match="the reward outgrows the law there"):
        tilted_density(law, quartic, temperature=1.0)
    flat = tilted_density(law, lambda x: 1e-3 * np.minimum(x[..., 0] ** 2, 81.0) ** 2, temperature=1.0)
    box = tilted_density(law, quartic, temperature=1.0, box=fh.Box([-9.0] * dim, [9.0] * dim))
    assert box.log_normaliser == pytest.approx(flat.log_normaliser, abs=1e-7)
    assert box.log_normaliser == pytest.approx(0.003, abs=1e-4)  # E x^4 = 3


def test_rewards_that_cannot_be_evaluated_far_away_are_asked_no_further():
    def local(x):
        if np.abs(x).max() > 60:
            raise ValueError("too far out")
        return first(x)

    found = tilted_density(fh.Gaussian([0.0], 1.0), local, temperature=1.0)
    assert found.log_normaliser == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_box_that_holds_the_law_but_not_what_the_reward_makes_of_it_is_refused(dim):
    """N(0, 1) under y = 6 x is N(6, 1), half of which a box up to 6 cuts off."""
    box = fh.Box([-6.0] * dim, [6.0] * dim)
    with pytest.raises(ConvergenceError, match="outside: give a larger box="):
        tilted_density(fh.Gaussian(np.zeros(dim), 1.0), lambda x: 6 * x[..., 0], temperature=1.0, box=box)


def test_the_python_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(code, "docs/data.md", "exec"), names)
    solution, problem, goal = names["solution"], names["problem"], names["goal"]
    assert solution.status == "ok"
    x, w = problem.initial_law.quadrature(6)
    inside = (np.abs(x) < 4.0).all(axis=1)
    f = np.exp(solution.value(0.0, x[inside]) / problem.temperature)
    assert w[inside] @ f / w[inside].sum() == pytest.approx(np.exp(goal.log_normaliser), rel=1e-2)
    assert goal.weights @ names["reward"](goal.points) > 0.5 > abs(names["reward"](names["points"]).mean())
