"""`solve`: tolerances that are met and estimates that are to be believed, and what is said where they are not."""

import threading
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fem_hjb.paths.simulate import sample_paths
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Uniform
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.reference import box_plans, box_tolerance
from fem_hjb.reference.box_march import Marcher
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.estimate import PARTS, ErrorEstimate, ToleranceWarning
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces import axes
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import (
    ConvergenceError,
    DomainError,
    EllipticityError,
    InfiniteValueError,
    MeasureError,
    ProblemError,
    SpaceError,
)

LQ, MIXTURE = zoo.get("lq", 1), zoo.get("mixture-diffusion", 1)
Any_ = Solution | ProductSolution


def errors(solution: Any_) -> tuple[float, float]:
    """True relative errors of value and policy."""
    problem = solution.problem
    assert problem.exact is not None
    row = compare({"this": solution}, problem.exact, problem=problem).overall("this")
    return row.value, row.policy


def check(solution: Any_, rtol: float) -> None:
    """The tolerance is met, and the estimate is neither an illusion nor useless."""
    estimate = solution.error_estimate
    assert isinstance(estimate, ErrorEstimate)
    assert solution.status == "ok"
    assert estimate.met(rtol)
    for true, estimated in zip(errors(solution), (estimate.value, estimate.policy), strict=True):
        assert true < rtol
        assert true < 5 * estimated + 1e-10
        assert estimated < 100 * true + 1e-10
    assert max(estimate.value, estimate.policy) <= 1.001 * sum(getattr(estimate, part) for part in PARTS)


def user(d: int = 1, **changes: Any) -> ControlProblem:
    given = {
        "dim": d,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": lambda t, x: -x,
        "diffusion": 1.0,
        "terminal_reward": lambda x: -(x**2).sum(-1),
        "initial_law": Gaussian(np.zeros(d), 0.1),
    }
    return ControlProblem(**{**given, **changes})


# Tolerances


@pytest.mark.parametrize(
    ("name", "rtol"),
    [
        *((name, 1e-3) for name in ("lq", "linear-ou", "mixture-diffusion", "brownian-mixture", "reflected")),
        *((name, 1e-5) for name in ("mixture-diffusion", "brownian-mixture", "reflected")),  # others are quadratic
    ],
)
def test_tolerances_are_met_and_estimates_believed(name: str, rtol: float):
    check(solve(zoo.get(name, 1), rtol=rtol), rtol)


@pytest.mark.parametrize("name", ["lq", "reflected"])
def test_tolerances_are_met_in_two_dimensions(name: str):
    check(solve(zoo.get(name, 2), rtol=1e-3), 1e-3)


def test_smaller_tolerances_give_smaller_errors():
    solutions = [solve(zoo.get("reflected", 1), rtol=rtol) for rtol in (1e-2, 1e-8)]
    assert errors(solutions[1])[1] < 0.1 * errors(solutions[0])[1]
    assert solutions[1].stats["dofs"] > solutions[0].stats["dofs"]


def test_the_tolerance_is_1e_4_if_none_is_given():
    solution = solve(MIXTURE)
    check(solution, 1e-4)
    assert "time" in str(solution.error_estimate)
    assert solution.stats["gauge"].startswith("with ")
    assert "taken out, log f ranges over" in solution.stats["gauge"]
    assert {"form", "route", "why", "dofs", "solves", "seconds"} <= set(solution.stats)
    assert solution.stats["solves"] >= 4


def test_a_box_with_a_product_in_it_is_solved_as_a_whole():
    """Nothing but the separable part is left, and time steps are as long as the horizon."""
    problem = zoo.get("reflected", 2)
    solution = solve(problem, rtol=1e-3, box=problem.domain)
    assert isinstance(solution, Solution)
    check(solution, 1e-3)


@pytest.mark.parametrize("boundary", ["natural", "reflecting"])
def test_the_words_of_a_box_to_truncate_to_do_not_matter(boundary: str):
    solution = solve(LQ, rtol=1e-3, box=Box([-3.0], [3.0], boundary=boundary))
    assert max(errors(solution)) < 1e-3
    assert solution.space.spatial.box.bounds[1][0] == 3.0


def test_absorbing_faces():
    solution = solve(zoo.get("soc-molecular-dynamics"), rtol=1e-4)
    assert np.exp(solution.value(0.0, [[-1.0]])[0]) == pytest.approx(0.4020938, rel=1e-4)
    assert solution.stats["route"] == "esdirk"
    assert solution.error_estimate.met(1e-4)


@pytest.mark.parametrize("form", ["linear", "value"])
def test_a_form_that_is_asked_for(form: Any):
    solution = solve(zoo.get("reflected", 1), rtol=1e-3, form=form)
    assert solution.stats["form"] == form
    check(solution, 1e-3)


def test_small_temperatures():
    cold = solve(zoo.get("lq", 1, temperature=0.01), rtol=1e-3)
    assert cold.stats["form"] == "value"
    check(cold, 1e-3)


def test_a_double_well_at_a_small_temperature():
    """As T - t grows, value and policy are those of the HJB equation: seen by its residual."""
    problem = zoo.get("double-well", 1, temperature=0.01)
    solution = solve(problem, rtol=1e-3)
    assert solution.stats["form"] == "value"
    assert solution.error_estimate.met(1e-3)
    t, h = 0.95, 1e-3
    x = sample_paths(problem, n=200, steps=100, rng=0).x[:, 95]
    slope = solution.gradient(t, x)
    change = (solution.value(t + h, x) - solution.value(t - h, x)) / (2 * h)
    curvature = (solution.gradient(t, x + h) - solution.gradient(t, x - h))[:, 0] / (2 * h)
    terms = [change, (problem.b(t, x) * slope)[:, 0], 0.5 * curvature, slope[:, 0] ** 2 / 0.02]
    residual, largest = np.sum(terms, 0), np.abs(terms).max(axis=0)
    assert np.sqrt((residual**2).mean()) < 5e-3 * np.sqrt((largest**2).mean())


# Independent coordinates


def test_ten_double_wells():
    """The value from a fine finite-difference solution of each of two kinds of wells."""
    problem = zoo.get("soc-double-well", 10)
    solution = solve(problem, rtol=1e-3)
    assert isinstance(solution, ProductSolution)
    assert len({id(part) for _, part in solution.parts}) == 2  # each kind is solved once
    assert solution.value(0.0, np.zeros((1, 10)))[0] == pytest.approx(-2.0874, rel=1e-3)
    assert solution.error_estimate.met(1e-3)
    assert solution.stats["why"] == "falls apart into 10 independent problems"
    assert solution.stats["dofs"] == sum(part.stats["dofs"] for _, part in solution.parts)
    assert len({id(part) for _, part in solution.parts}) < 10
    np.testing.assert_allclose(solution.gradient(0.3, np.zeros((1, 10))), 0.0, atol=1e-3)  # by symmetry


@pytest.mark.parametrize(
    ("name", "dim", "rtol"),
    [("reflected", 3, 1e-3), ("reflected", 1, 1e-3), ("brownian-mixture", 2, 1e-3)],
)
def test_progress_never_falls_and_ends_at_1(name: str, dim: int, rtol: float):
    """Three factors, one, and what does not fall apart."""
    seen: list[float] = []
    solve(zoo.get(name, dim), rtol=rtol, progress=seen.append)
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[0] >= 0.0
    assert seen[-1] == 1.0
    assert max(seen[:-1]) < 1.0


# Tolerances that are not met


def test_too_few_unknowns_are_said():
    with pytest.warns(ToleranceWarning, match=r"'brownian-mixture'\) was asked for a relative error of 1.0e-05 but"):
        solution = solve(zoo.get("brownian-mixture", 1), rtol=1e-5, max_dofs=51)
    assert "was asked for a relative error of 1.0e-05" in solution.status
    assert not solution.error_estimate.met(1e-5)
    true, estimate = errors(solution), solution.error_estimate
    assert true[1] < 5 * estimate.policy
    assert true[0] < 5 * estimate.value


def test_no_more_unknowns_are_spent_than_allowed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        try:
            spent = solve(MIXTURE, rtol=1e-3, max_dofs=40).stats["dofs"]
        except ConvergenceError:  # just as well
            spent = 0
    assert spent <= 40


def test_a_domain_that_cuts_the_process_off_is_kept_and_what_that_costs_is_told():
    cut = replace(MIXTURE, domain=Box([-2.2], [2.2], boundary="natural"))
    with pytest.warns(ToleranceWarning, match="limited by truncation"):
        solution = solve(cut, rtol=1e-3)
    assert isinstance(solution, Solution)
    assert solution.space.spatial.box.bounds[1][0] == 2.2
    for true, estimated in zip(
        errors(solution), (solution.error_estimate.value, solution.error_estimate.policy), strict=True
    ):
        assert true / 3 < estimated < 3 * true


# Bad input


def broken(t: Any, x: FloatArray) -> FloatArray:
    """Not a number far out, where paths of the first few times do not go."""
    return np.where(x > 1.8, np.nan, -x)


def degenerate(t: Any, x: FloatArray) -> FloatArray:
    return np.asarray((4.0 - x**2)[..., None] * np.eye(1))


SQUARE = Box([-4.0, -4.0], [4.0, 4.0])
BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no problem": ("lq", {}, ProblemError, "solve needs a ControlProblem, got str"),
    "rtol too small": (LQ, {"rtol": 1e-14}, ConvergenceError, r"from 1e-10, what double.* to 0.1, got 1e-14"),
    "rtol too large": (LQ, {"rtol": 0.5}, ConvergenceError, "to 0.1, got 0.5"),
    "rtol negative": (LQ, {"rtol": -1e-3}, ConvergenceError, "got -0.001"),
    "rtol text": (LQ, {"rtol": "a"}, ConvergenceError, "rtol must be a number .* got 'a'"),
    "rtol bool": (LQ, {"rtol": True}, ConvergenceError, "got True"),
    "rtol nan": (LQ, {"rtol": np.nan}, ConvergenceError, "got nan"),
    "form": (LQ, {"form": "log"}, ConvergenceError, "form must be one of 'linear', 'value', got 'log'"),
    "progress": (LQ, {"progress": 3}, ConvergenceError, "progress must be a callable or None, got 3"),
    "max_dofs": (LQ, {"max_dofs": -1}, SpaceError, "max_dofs must be a positive integer, got -1"),
    "box of wrong dimension": (LQ, {"box": SQUARE}, DomainError, "a Box of dimension 1, got one of dimension 2"),
    "box that is none": (LQ, {"box": (0, 1)}, DomainError, "a Box of dimension 1, got tuple"),
    "box without end": (
        LQ,
        {"box": Box([-np.inf], [3.0], boundary="natural")},
        DomainError,
        "box must have finite faces",
    ),
    "box that misses the law": (LQ, {"box": Box([1.0], [4.0])}, DomainError, r"leaves out 9\d.*take a larger box"),
    "box within a domain": (
        zoo.get("reflected", 1),
        {"box": Box([0.1], [0.9])},
        DomainError,
        "the process lives in .* the box must have its faces too",
    ),
    "four coupled coordinates": (zoo.get("lq", 4), {}, DomainError, "4 coordinates of 'lq' hang together"),
    "drift not finite": (user(drift=broken), {"box": Box([-3.0], [3.0])}, ProblemError, r"drift\(t, x\) is not finite"),
    "reward not finite": (
        user(terminal_reward=lambda x: np.where(x[..., 0] > 1.5, np.inf, 0.0)),
        {},
        ProblemError,
        r"terminal_reward\(x\) is not finite at \d+ of \d+ points, the first is x=\[[12]\.",
    ),
    "diffusion not elliptic": (
        user(diffusion=degenerate),
        {"box": Box([-3.0], [3.0])},
        EllipticityError,
        r"positive definite .*at .*x=\[",
    ),
    "infinite value": (
        user(drift=lambda t, x: 0.0 * x, terminal_reward=lambda x: (x**2).sum(-1)),
        {},
        InfiniteValueError,
        r"\+infinity before t = 0.5",
    ),
}


@pytest.mark.parametrize(("problem", "keywords", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(problem: Any, keywords: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        solve(problem, **keywords)


def test_the_place_where_a_coefficient_fails_is_told():
    """Beyond what paths of the process see at first, but within the box."""

    def drift(t: Any, x: FloatArray) -> FloatArray:
        return np.where((x > 2.4) & (x < 2.7), np.nan, -x)

    with pytest.raises(
        ProblemError, match=r"drift\(t, x\) is not finite at \d+ of \d+ points, the first is x=\[2\.[4-7]"
    ):
        solve(user(drift=drift), box=Box([-4.0], [4.0]))


def test_a_law_on_an_absorbing_face_is_refused_when_the_problem_is_made():
    with pytest.raises(ProblemError, match="of the initial law lies outside the domain"):
        user(domain=Box([-1.0], [1.0], boundary="absorbing"), initial_law=Gaussian([0.0], 4.0))
    problem = user(domain=Box([-1.0], [1.0], boundary="absorbing"), initial_law=Uniform(Box([-0.9], [0.9])))
    with pytest.raises(DomainError, match="box must have its faces too"):
        solve(problem, box=Box([-2.0], [2.0]))


@pytest.mark.parametrize(("rtol", "quieter"), [(1e-3, False), (1e-6, True)])
def test_where_grids_do_not_help_steps_become_quieter_in_corners(monkeypatch, rtol, quieter):
    """Stiff wells: what steps leave in corners is not resolved by any grid; but down to 1e-3 of the tolerance only."""
    made = []
    monkeypatch.setattr(box_tolerance, "Marcher", lambda *how: made.append(Marcher(*how)) or made[-1])
    search = box_tolerance._Search(zoo.get("double-well", 1), rtol, None, None, None, 0)
    run = search._marched(search.tolerances, lambda _: None)
    assert run.counts["redone"] > 2 or not quieter
    assert (made[0].anywhere < 2e-4) == quieter
    assert made[0].anywhere >= rtol


def test_a_seed_changes_the_samples_and_hardly_the_solution():
    problem = zoo.get("double-well", 1)
    usual, first, second, drawn = (
        solve(problem, rtol=1e-2, verify=False, **how)
        for how in ({}, {"rng": 0}, {"rng": 7}, {"rng": np.random.default_rng(3)})
    )
    boxes = [solution.space.spatial.box.bounds[0][0] for solution in (usual, first, second, drawn)]
    assert boxes[0] == boxes[1]
    assert len(set(boxes)) == 3
    np.testing.assert_array_equal(usual.coefficients, first.coefficients)
    x = np.linspace(-1.0, 1.0, 21)[:, None]
    for other in (second, drawn):
        np.testing.assert_allclose(other.value(0.0, x), usual.value(0.0, x), atol=1e-2 * np.abs(problem.y(x)).max())
    again = np.random.SeedSequence(5)
    assert np.array_equal(*(solve(problem, rtol=1e-2, rng=again, verify=False).coefficients for _ in range(2)))
    with pytest.raises(MeasureError, match="rng must be a non-negative int"):
        solve(problem, rng=-1)


def test_the_same_call_gives_the_same_bits():
    one, two = (solve(replace(zoo.get("reflected", 1), exact=None), rtol=1e-2) for _ in range(2))
    np.testing.assert_array_equal(one.coefficients, two.coefficients)


def test_threads_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a problem whose arrays are worked on in parts, which threads share out and one of them never does alone."""
    problem, seen = zoo.get("brownian-mixture", 3), set[str]()
    apply = axes._rows_into

    def watched(matrix: axes.AxisMatrix, u: FloatArray, out: FloatArray) -> None:
        seen.add(threading.current_thread().name.split("_")[0])
        apply(matrix, u, out)

    monkeypatch.setattr(axes, "_rows_into", watched)
    one, two = (solve(problem, rtol=5e-2, workers=count, verify=False) for count in (1, 2))
    assert len(seen) == 2
    np.testing.assert_array_equal(one.coefficients, two.coefficients)  # type: ignore[union-attr]
    assert vars(one.error_estimate) == vars(two.error_estimate)


def test_two_plans_are_followed_at_once_and_callables_are_called_from_ones_own_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = zoo.get("mixture-diffusion", 1)
    asked, made = set[int](), set[int]()
    both = threading.Barrier(2, timeout=20.0)
    panel_run = box_plans.panel_run

    def drift(t: Any, x: FloatArray) -> FloatArray:
        asked.add(threading.get_ident())
        return of.b(t, x)

    def watched(*arguments: Any) -> Any:
        if threading.get_ident() not in made:
            made.add(threading.get_ident())
            both.wait()  # for the other one
        return panel_run(*arguments)

    problem = replace(of, drift=drift, exact=None)
    one = solve(problem, rtol=1e-2, verify=False)
    monkeypatch.setattr(box_plans, "panel_run", watched)
    two = solve(problem, rtol=1e-2, workers=2, verify=False)
    assert asked == {threading.get_ident()}
    assert len(made) == 2
    np.testing.assert_array_equal(one.coefficients, two.coefficients)  # type: ignore[union-attr]
    assert vars(one.error_estimate) == vars(two.error_estimate)


def test_a_value_that_is_finite_from_each_start_is_found_where_it_is_not_over_all() -> None:
    """y = x^2 - cos x, dX = -X dt + dB: E exp(y) is infinite from X_0 ~ N(0, 1), and finite from each X_0."""

    def y(x: FloatArray) -> FloatArray:
        return np.asarray(x[..., 0] ** 2 - np.cos(x[..., 0]))

    problem = ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=LinearDrift([[-1.0]], [0.0]),
        diffusion=1.0,
        terminal_reward=y,
        initial_law=Gaussian([0.0], 1.0),
    )
    found = solve(problem, rtol=1e-3)
    assert found.status == "ok"
    starts = np.array([-2.0, 0.0, 1.0])
    ends = np.linspace(-60.0, 60.0, 24001)
    mean, variance = np.exp(-1.0) * starts[:, None], (1 - np.exp(-2.0)) / 2
    logs = y(ends[:, None]) - (ends - mean) ** 2 / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)
    exact = np.logaddexp.reduce(logs, axis=1) + np.log(ends[1] - ends[0])
    np.testing.assert_allclose(found.value(0.0, starts[:, None]), exact, rtol=2e-4)
