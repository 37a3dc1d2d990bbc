"""What paths under a learned policy say of its error, against what is known."""

import math
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.learning.witness import INSIDE, POLICY, VALUE, witness
from fem_hjb.paths.likelihood import euler_step

FACTOR = 3.0  # that an estimate may be off


def space_of(problem, cells=16, time_cells=8, element="hermite", quantile=1e-3):
    box = None
    if problem.domain is None:
        box = fh.paths.truncation_box(problem, quantile=quantile, margin=0.0).box
    return fh.Space(problem, cells=cells, time_cells=time_cells, element=element, box=box)


def learned(problem, n=2000, rng=1, **options):
    space = options.pop("space", None) or space_of(problem, element=options.pop("element", "hermite"))
    paths = fh.sample_paths(problem, n=n, steps=64, rng=rng)
    return fh.fit(problem, paths, space, outside="drop", **{"terminal": "interpolated", **options})


@cache
def standard():
    """A good fit, which several tests look at."""
    problem = fh.zoo.get("mixture-diffusion", dim=1)
    return problem, learned(problem)


def truth(problem, solution, reference, steps=64, n=1024):
    """The errors of policy and value that a witness estimates: the largest over time (of the policy, of sixteen parts
    of it), and in the mean and at t = 0."""
    rng = np.random.default_rng(77)
    x = problem.initial_law.sample(n, rng)
    box = solution.space.spatial.box.bounds
    efforts, values = [], []
    h = problem.horizon / steps
    for k in range(steps):
        t = k * h
        gradient = np.nan_to_num(solution.gradient(t, np.clip(x, *box), nonpositive="nan"))
        pi = problem.policy_from_gradient(t, x, gradient)
        best = problem.policy_from_gradient(t, x, reference.gradient(t, x))
        noise = math.sqrt(h) * rng.standard_normal(x.shape)
        ahead = euler_step(problem, t, h, x, pi, noise)
        efforts.append((euler_step(problem, t, h, x, pi - best, noise).effort.mean(), ahead.effort.mean()))
        w, v = solution.value(t, x, outside="nan", nonpositive="nan"), reference.value(t, x)
        known = np.isfinite(w)
        values.append((((w - v)[known] ** 2).mean(), (v[known] ** 2).mean()))
        x = ahead.x if problem.domain is None else problem.domain.mirror(ahead.x)
    parts = np.reshape(efforts, (16, -1, 2)).mean(axis=1)  # at single times a few paths decide
    largest, mean = (parts.max(axis=0), np.max(values, axis=0)), (np.mean(efforts, axis=0), values[0])
    return [math.sqrt(off / size) for off, size in (*largest, *mean)]


@pytest.mark.parametrize(
    ("name", "dim", "options"),
    [
        ("mixture-diffusion", 1, {}),
        ("mixture-diffusion", 1, {"element": "P2", "estimator": "weak"}),
        ("mixture-diffusion", 1, {"space": "small"}),
        ("brownian-mixture", 1, {"terminal": "penalty"}),
        ("brownian-mixture", 1, {"element": "P2", "estimator": "increment"}),
        ("reflected", 1, {"estimator": "regression"}),
        ("lq", 2, {}),
        ("mixture-diffusion", 2, {"space": "small"}),
    ],
)
def test_estimates_are_right_to_a_factor(name, dim, options):
    problem = fh.zoo.get(name, dim=dim)
    if options.get("space") == "small":
        options = {**options, "space": space_of(problem, cells=3, time_cells=2)}
    elif dim == 2:
        options = {**options, "space": space_of(problem, cells=8, time_cells=4)}
    solution = learned(problem, **options) if options else standard()[1]
    policy, value, mean, start = truth(problem, solution, problem.exact)
    estimate, checks = solution.error_estimate, {check.name: check.figure for check in solution.checks}
    for told, true in ((estimate.policy, policy), (checks[POLICY], mean)):
        assert true / FACTOR <= told <= FACTOR * true
    for told, true in ((estimate.value, value), (checks[VALUE], start)):
        assert told >= true / FACTOR
        if true > 0.02 and mean < 0.5:  # below it is chance, of which one standard error is added; far off, weights are
            assert told <= FACTOR * true


def test_an_error_in_the_last_cell_of_time_is_not_lost_in_the_mean():
    """The class follows f in time on eight cells, the last of which does not hold what f does near the end."""
    problem, solution = standard()
    policy, value, mean, start = truth(problem, solution, problem.exact)
    told = witness(solution, 0.1, over_time=True)
    assert policy > 1.5 * mean
    assert value > 3 * start
    assert told.estimate.policy == pytest.approx(policy, rel=0.3)
    assert told.estimate.value == pytest.approx(value, rel=0.3)
    alone = witness(solution, 0.1)
    assert (alone.estimate.policy, alone.estimate.value) == (alone.policy, alone.value) == (told.policy, told.value)
    assert alone.estimate.policy < 0.65 * policy  # what is told without it
    assert alone.estimate.value < 0.4 * value


def test_steps_begin_where_a_drift_jumps_and_a_cell_in_time_begins(monkeypatch):
    """From the jump to the next cell the class follows the drift from before, for a hundredth of the horizon."""

    def drift(t, x):
        return np.where(np.asarray(t)[..., None] < 0.37, 4.0 - x, -1.0 - x)

    problem = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=drift,
        diffusion=1.0,
        terminal_reward=lambda x: np.sin(2.0 * x[..., 0]),
        initial_law=fh.Gaussian([0.0], 0.3),
    )
    paths = fh.sample_paths(problem, n=2000, steps=64, rng=0)
    space = fh.Space(problem, cells=16, time_cells=8)
    solution = fh.fit(problem, paths, space, terminal="penalty", outside="drop", verify=False)
    reference = fh.solve(problem, rtol=1e-3, verify=False)
    x = problem.initial_law.sample(2000, np.random.default_rng(0))
    value = reference.value(0.0, x)
    true = np.linalg.norm(solution.value(0.0, x) - value) / np.linalg.norm(value)
    told = witness(solution, 0.1)
    assert told.value == pytest.approx(true, rel=0.3)
    monkeypatch.setattr(sys.modules["fem_hjb.learning.witness"], "_ends", lambda solution: np.empty(0))
    assert witness(solution, 0.1).value < true / 3


def test_an_error_that_is_made_larger_is_seen_to_be_so():
    """A policy with a known factor: pi = (1 + s) pi*, of f**(1 + s), whose error is s / (1 + s) of itself."""
    problem = fh.zoo.get("mixture-diffusion", dim=1)
    space = space_of(problem, cells=48, time_cells=32)
    base = learned(problem, n=200, space=space, smoothing=1.0)
    found = []
    sizes = (0.1, 0.2, 0.4)
    for s in sizes:
        coefficients = space.interpolate(lambda t, x, s=s: base.gauge.u(t, x, (1 + s) * problem.exact.value(t, x)))
        scaled = replace(base, coefficients=coefficients, stats={"pinned_dofs": np.zeros(0, dtype=np.int64)})
        told = witness(scaled, 0.1)
        assert told.policy == pytest.approx(s / (1 + s), rel=0.15)
        found.append(told.policy * (1 + s))
    slope = np.polyfit(np.log(sizes), np.log(found), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)


def test_the_interval_at_the_start_covers_the_value():
    problem = fh.zoo.get("mixture-diffusion", dim=1)
    solution = learned(problem, n=500, estimator="regression")
    hits, off = 0, 0
    for seed in range(12):
        told = witness(solution, 1.0, seed)
        x = problem.initial_law.sample(96, np.random.default_rng([seed, 4]))
        known = np.isfinite(solution.value(0.0, x, outside="nan"))
        exact = float(problem.exact.value(0.0, x[known]).mean())
        hits += abs(told.start - exact) <= told.margin
        off += abs(told.learned - exact) <= told.margin
    assert hits >= 10  # 11.5 of 12 are expected of two standard errors
    assert off < hits


def test_a_box_that_is_left_is_the_reason():
    problem = fh.zoo.get("lq", dim=1)
    space = space_of(problem, quantile=0.25)
    solution = learned(problem, space=space)
    policy, *_ = truth(problem, solution, problem.exact)
    assert policy / FACTOR <= solution.error_estimate.policy <= FACTOR * policy
    assert not {check.name: check.passed for check in solution.checks}[INSIDE]
    assert "limited by the box" in solution.status


def test_paths_may_leave_a_round_mesh_for_the_corners_of_its_box():
    """There is no policy there, and nothing to steer by."""
    problem = fh.ControlProblem(
        dim=2,
        horizon=0.2,
        temperature=0.5,
        drift=lambda t, x: 0 * x,
        diffusion=1.0,
        terminal_reward=lambda x: -((x - 0.3) ** 2).sum(-1) / 2,
        initial_law=fh.Gaussian([0.0, 0.0], 0.02),
    )
    space = fh.Space(problem, mesh=skfem.MeshTri.init_circle(1), element="P2", time_cells=1)
    paths = fh.sample_paths(problem, n=500, steps=16, rng=0)
    solution = fh.fit(problem, paths, space, estimator="corrected", outside="drop")
    assert solution.stats["outside"] == "drop"
    assert 0.01 < solution.error_estimate.value < 0.3


def test_a_class_that_is_too_small_and_paths_that_are_too_few_are_told_apart():
    problem = fh.zoo.get("mixture-diffusion", dim=1)
    coarse = learned(problem, n=4000, space=space_of(problem, cells=6, time_cells=1))
    few = learned(problem, n=400, space=space_of(problem, cells=12, time_cells=6), estimator="regression")
    assert "limited by the class" in coarse.status
    assert "limited by the number of trajectories" in few.status


def test_terminal_values_that_are_not_met_are_the_reason():
    problem = fh.zoo.get("double-well", dim=1)
    solution = learned(problem, terminal="penalty", rng=2)
    assert "limited by the terminal values: take terminal='interpolated'" in solution.status
    coarse = learned(
        fh.zoo.get("mixture-diffusion", dim=1),
        space=space_of(fh.zoo.get("mixture-diffusion", dim=1), cells=3, time_cells=4),
    )
    assert "which the class does not hold: take smaller cells, or terminal='penalty'" in coarse.status


def test_a_policy_that_is_wrong_is_never_ok():
    """A double well that is learned badly by a small class: the errors of f are small, those of log f are not."""
    problem = fh.zoo.get("double-well", dim=1)
    solution = learned(problem, n=2000)
    assert solution.error_estimate.policy > 0.3
    assert POLICY in solution.status
    assert f"{POLICY}: FAILED" in str(solution)


def test_what_is_accepted_decides():
    problem, good = standard()
    strict = learned(problem, accept=1e-3)
    assert good.status == "ok"
    assert all(check.passed for check in good.checks)
    assert POLICY in strict.status
    assert "limited" in strict.status
    assert strict.error_estimate.policy == good.error_estimate.policy  # the same paths


def test_verify_false_tells_nothing():
    solution = learned(fh.zoo.get("mixture-diffusion", dim=1), verify=False)
    assert solution.checks == ()
    assert solution.error_estimate is None
    assert "verification" not in solution.stats["seconds"]


def test_under_a_law_there_are_paths_too():
    problem = fh.zoo.get("mixture-diffusion", dim=1)
    space = space_of(problem)
    solution = fh.fit(problem, fh.law_measure(problem, space), space, terminal="interpolated")
    policy, *_ = truth(problem, solution, problem.exact)
    assert policy / FACTOR <= solution.error_estimate.policy <= FACTOR * policy


def test_what_steps_do_to_weights_is_taken_out():
    """P2 has no second derivatives: in 64 steps the spread of the weights is some times that of the error."""
    problem = fh.zoo.get("mixture-diffusion", dim=1)
    solution = learned(problem, n=4000, element="P2", estimator="weak", verify=False)
    *_, policy, _ = truth(problem, solution, problem.exact)
    told = witness(solution, 1.0)
    assert told.steps < 100
    assert told.chance > 4.0
    assert policy / 2 <= told.policy <= 2 * policy


def test_a_constant_that_is_paid_on_the_way_changes_the_value_alone():
    def found(constant):
        problem = fh.ControlProblem(
            dim=1,
            horizon=1.0,
            temperature=0.5,
            drift=lambda t, x: -x,
            diffusion=0.5,
            terminal_reward=lambda x: np.cos(2 * x[..., 0]),
            running_reward=lambda t, x: constant - 0.2 * x[..., 0] ** 2,
            initial_law=fh.Gaussian([0.3], 0.2),
        )
        return witness(learned(problem, space=space_of(problem, cells=8, time_cells=4), verify=False), 1.0)

    without, with_it = found(0.0), found(2.0)
    assert with_it.start == pytest.approx(without.start + 2.0, abs=1e-6)
    assert with_it.learned == pytest.approx(without.learned + 2.0, abs=1e-6)
    assert with_it.policy == pytest.approx(without.policy, rel=1e-6)


@pytest.mark.parametrize("element", ["hermite", "P2"])
def test_nothing_to_gain_is_no_error(element):
    """Without rewards value and policy are 0, to which no error is relative."""
    problem = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -x,
        diffusion=1.0,
        terminal_reward=lambda x: 0.0 * x[..., 0],
        initial_law=fh.Gaussian([0.0], 1.0),
    )
    how = {} if element == "hermite" else {"estimator": "increment"}
    solution = learned(problem, space=space_of(problem, cells=8, time_cells=4, element=element), **how)
    assert solution.status == "ok"
    assert max(solution.error_estimate.value, solution.error_estimate.policy) < 1e-6


def test_a_fixed_start_and_a_diffusion_that_depends_on_the_state():
    problem = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=0.5,
        drift=lambda t, x: -x,
        diffusion=lambda t, x: (0.5 + 0.2 * np.sin(x))[..., None],
        terminal_reward=lambda x: np.cos(2 * x[..., 0]),
        running_reward=lambda t, x: -0.2 * x[..., 0] ** 2,
        initial_law=fh.PointMass([0.3]),
    )
    reference = fh.solve(problem, rtol=1e-4)

    class Continued:
        def gradient(self, t, x):
            return reference.gradient(t, np.clip(x, *reference.space.box.bounds))

        value = staticmethod(reference.value)

    for options in ({}, {"estimator": "regression"}):
        solution = learned(problem, space=space_of(problem, cells=8, time_cells=6), **options)
        policy, *_ = truth(problem, solution, Continued())
        assert policy / FACTOR <= solution.error_estimate.policy <= FACTOR * policy


def test_what_cannot_be_followed_is_said_not_to_be_verified():
    """X_0 is outside the box, where only paths that have come inside are learned from."""
    problem = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -4 * x,
        diffusion=0.5,
        terminal_reward=lambda x: -(x[..., 0] ** 2),
        initial_law=fh.PointMass([0.0]),
    )
    space = fh.Space(problem, cells=8, time_cells=4, box=fh.Box([-2.0], [2.0]))
    paths = fh.sample_paths(problem, n=500, steps=64, rng=0)
    solution = fh.fit(problem, paths, space, outside="drop")
    far = replace(solution, problem=replace(problem, initial_law=fh.PointMass([3.0])))
    with pytest.raises(fh.errors.ConvergenceError, match="no more than one of the starts"):
        witness(far, 0.1)


def test_files_keep_the_estimate(tmp_path):
    problem, solution = standard()
    fh.save_solution(tmp_path / "learned.npz", solution)
    kept = fh.load_solution(tmp_path / "learned.npz", problem)
    assert kept.error_estimate.as_dict() == solution.error_estimate.as_dict()
    assert str(kept.error_estimate) == str(solution.error_estimate)
    assert "space" not in str(kept.error_estimate)


@pytest.mark.parametrize(
    "options", [{"accept": 0}, {"accept": 2.0}, {"accept": "10%"}, {"verify": 1}, {"verify": None}, {"rng": -1}]
)
def test_bad_arguments(options):
    with pytest.raises(fh.errors.MeasureError):
        learned(fh.zoo.get("lq", dim=1), n=100, **options)


def test_value_is_one_of_the_checks():
    solution = learned(fh.zoo.get("reflected", dim=1), n=300, estimator="regression")
    told = {check.name: check for check in solution.checks}
    assert not told[VALUE].passed
    assert "by the paths" in told[VALUE].told
