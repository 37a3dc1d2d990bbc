"""What a run leaves, its plan followed again with one thing changed, and the errors that are read off that."""

import math
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.paths.extent import LawSample
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference import box_judge, box_plans, box_run
from fem_hjb.reference.box_coefficients import Coefficients, Table
from fem_hjb.reference.box_grading import widened
from fem_hjb.reference.box_judge import Judge, Seen, cut, merged, on_places
from fem_hjb.reference.box_moments import at_edges, places_of
from fem_hjb.reference.box_paths import Steered, evaluate
from fem_hjb.reference.box_plans import WIDER
from fem_hjb.reference.box_run import Run
from fem_hjb.reference.box_tolerance import _Search
from fem_hjb.solutions.norms import largest_norms, law_points
from fem_hjb.solutions.solution import Solution
from fem_hjb.stepping.adaptive import Step
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError


@dataclass
class Case:
    problem: ControlProblem
    run: Run
    parts: dict[str, tuple[float, float]]
    coefficients: Coefficients
    sample: LawSample
    controlled: Steered | None
    solution: Solution


@cache
def case(name: str, d: int, rtol: float, form: str | None = None, half: float | None = None) -> Case:
    """One run and what it is judged to be worth; half : of a box around 0 that is given."""
    problem = zoo.get(name, d)
    box = None if half is None else Box([-half] * d, [half] * d)
    search = _Search(problem, rtol, form, box, None, 0)
    found = search.run(lambda _: None)
    kept = replace(found.run, panels=[*found.run.panels])  # a solution uses them up
    return Case(
        problem, kept, found.parts, search.coefficients, search.sample, found.controlled, search.solution(found)
    )


def followed(run: Run, coefficients: Coefficients, lengths: box_judge.Steps, **changes: Any) -> Run:
    """The plan of a run again, all panels of it."""
    return Run(run.equation, panels=list(box_plans.followed(run, coefficients, lengths, **changes)))


@cache
def usual() -> Case:
    return case("mixture-diffusion", 1, 1e-5)


def truth(run: Run) -> FloatArray:
    """Errors of value and policy, relative, by quadrature under the law of X_t."""
    problem = run.equation.problem
    exact, points, gaps, rows = problem.exact, law_points(problem), [], []
    assert exact is not None
    for t, x, _ in points:
        v, g = evaluate(run, problem.horizon - t, x)
        rows.append((exact.value(t, x), exact.gradient(t, x)))
        gaps.append((v - rows[-1][0], g - rows[-1][1]))
    errors, sizes = largest_norms(problem, points, gaps), largest_norms(problem, points, rows)
    return np.array(errors) / np.array(sizes)


def judged(run: Run, of: Case) -> dict[str, tuple[float, float]]:
    return Judge(run, of.sample, of.controlled).parts(
        of.coefficients, {"space": math.inf, "time": math.inf, "truncation": math.inf}
    )


# Steps


def test_neighbours_of_one_length_are_joined() -> None:
    assert merged(np.array([0.1, 0.1, 0.2, 0.2, 0.4])) == [0.2, 0.4, 0.4]
    assert merged(np.array([0.1, 0.2, 0.2, 0.1])) == [0.1, 0.4, 0.1]
    assert merged(np.array([0.1, 0.1, 0.1])) == [0.2, 0.1]
    assert merged(np.array([0.1, 0.1 * (1 + 1e-12)])) == pytest.approx([0.2])
    assert merged(np.array([0.3])) == [0.3]
    rng = np.random.default_rng(0)
    lengths = 0.1 * 2.0 ** rng.integers(-2, 2, 50)
    joined = merged(lengths)
    assert sum(joined) == pytest.approx(lengths.sum())
    assert len(joined) < 50


def test_steps_are_cut() -> None:
    assert cut(1)(np.array([0.1, 0.2])) == [0.1, 0.2]
    assert cut(3)(np.array([0.3, 0.6])) == pytest.approx([0.1] * 3 + [0.2] * 3)


# Following a plan


@pytest.mark.parametrize(("name", "d"), [("mixture-diffusion", 1), ("brownian-mixture", 2), ("reflected", 1)])
def test_a_plan_followed_with_nothing_changed_gives_the_run(name: str, d: int) -> None:
    of = case(name, d, 1e-3)
    again = followed(of.run, of.coefficients, cut(1))
    for one, other in zip(of.run.panels, again.panels, strict=True):
        assert other.operators is one.operators
        np.testing.assert_allclose(other.ends, one.ends, atol=1e-13)
        for u, w in zip(one.states[::2], other.states[::2], strict=True):
            np.testing.assert_allclose(w, u, atol=1e-10 * max(np.abs(u).max(), 1e-3))
    judge = Judge(of.run, of.sample, of.controlled)
    assert max(judge.difference(judge.own, judge.seen(again.panels))) < 1e-9
    assert judge.difference(judge.own, judge.own) == (0.0, 0.0)


def test_coefficients_are_not_used_up_by_following() -> None:
    """Each panel made again on the grid it has is the same, whether its coefficients are carried or evaluated."""
    of = usual()
    first, second = (followed(of.run, of.coefficients, cut(1), less=2) for _ in range(2))
    for one, other in zip(first.panels, second.panels, strict=True):
        np.testing.assert_array_equal(one.states[-2], other.states[-2])


def test_one_thing_is_changed_at_a_time() -> None:
    of = usual()
    longer = followed(of.run, of.coefficients, merged)
    poorer = followed(of.run, of.coefficients, cut(1), less=2)
    wider = followed(of.run, of.coefficients, cut(1), wider=widened)
    for own, a, b, c in zip(of.run.panels, longer.panels, poorer.panels, wider.panels, strict=True):
        line = own.grid.lines[0]
        assert a.grid is own.grid
        assert len(a.ends) <= len(own.ends)
        np.testing.assert_array_equal(b.edges[0], own.edges[0])
        assert b.grid.lines[0].degree == line.degree - 2
        assert c.grid.lines[0].degree == line.degree
        np.testing.assert_array_equal(c.edges[0][1:-1], own.edges[0])
        width = own.edges[0][-1] - own.edges[0][0]
        np.testing.assert_allclose((c.edges[0] - own.edges[0][0])[[0, -1]], [-WIDER * width, (1 + WIDER) * width])
    assert sum(len(p.ends) for p in longer.panels) < 0.7 * sum(len(p.ends) for p in of.run.panels)


def test_shorter_steps_are_better_and_longer_ones_worse() -> None:
    """As order 4 promises, by sixteen for each halving, two taken together: which steps are joined differs."""
    of = usual()
    judge = Judge(of.run, of.sample, None)
    base, *others = (
        judge.seen(box_plans.followed(of.run, of.coefficients, steps)) for steps in (cut(8), merged, cut(1), cut(2))
    )
    gaps = [judge.difference(other, base)[0] for other in others]
    assert gaps[0] > 1.5 * gaps[1]
    assert gaps[1] > 8 * gaps[2]
    assert gaps[0] > 32 * gaps[2]


def test_faces_that_stay_are_not_moved() -> None:
    of = case("reflected", 1, 1e-3)
    assert "truncation" not in of.parts
    wider = followed(of.run, of.coefficients, cut(1), wider=widened)
    np.testing.assert_array_equal(wider.panels[0].edges[0], of.run.panels[0].edges[0])
    assert set(usual().parts) == {"time", "space", "truncation"}


def test_a_run_that_leaves_double_precision_ends_there_and_is_infinitely_wrong() -> None:
    of = usual()

    def exploding(t: float, x: FloatArray) -> FloatArray:
        values = of.coefficients.at(t, x)
        values[1] = 1e308 if t < 0.95 else 0.0  # the reward
        return values

    stub: Any = SimpleNamespace(problem=of.problem, at=exploding, names=of.coefficients.names)
    broken = followed(of.run, stub, cut(1), wider=widened)
    assert [panel.finite for panel in broken.panels] == [True] * (len(broken.panels) - 1) + [False]
    assert len(broken.panels) < len(of.run.panels)
    judge = Judge(of.run, of.sample, of.controlled)
    assert judge.seen(broken.panels).failed
    assert judge.difference(judge.own, judge.seen(broken.panels)) == (math.inf, math.inf)


# Evaluation


@pytest.mark.parametrize(
    ("name", "d", "form"),
    [("mixture-diffusion", 1, None), ("brownian-mixture", 2, None), ("lq", 3, None), ("reflected", 1, "linear")],
)
def test_a_run_and_its_solution_say_the_same(name: str, d: int, form: str | None) -> None:
    of = case(name, d, 1e-3, form)
    assert of.run.equation.linear == (form == "linear")
    rng, T = np.random.default_rng(1), of.problem.horizon
    lower, upper = of.run.equation.box.bounds
    x = np.vstack([rng.uniform(lower, upper, (40, d)), upper + 1.0])
    for t in (0.0, 0.123, 0.5, 0.97, 0.999, 1.0):
        v, g = evaluate(of.run, T * (1 - t), x)
        np.testing.assert_allclose(v[:-1], of.solution.value(T * t, x[:-1]), atol=1e-9)
        np.testing.assert_allclose(g[:-1], of.solution.gradient(T * t, x[:-1]), atol=1e-7)
        assert np.isnan(v[-1])
    panel = of.run.panels[-1]
    np.testing.assert_allclose(panel.at(T), panel.states[-2])
    for k in range(len(panel.ends) - 1):
        np.testing.assert_allclose(panel.at(float(panel.ends[k])), panel.states[2 * k], atol=1e-12)


def test_values_have_no_logarithm_where_u_is_not_positive() -> None:
    of = case("reflected", 1, 1e-3, "linear")
    last = of.run.panels[-1]
    states = [*last.states]
    states[-2] = states[-2] - 2 * states[-2].max() * (last.grid.nodes[:, 0] > last.grid.nodes[:, 0].mean())
    broken = replace(of.run, panels=[*of.run.panels[:-1], replace(last, states=states)])
    lower, upper = of.run.equation.box.bounds
    x = lower + np.array([[0.1], [0.9]]) * (upper - lower)
    v, g = evaluate(broken, of.problem.horizon, x)
    np.testing.assert_array_equal(np.isnan(v), [False, True])
    np.testing.assert_array_equal(np.isnan(g[:, 0]), [False, True])
    assert of.run.nonpositive == 0 < broken.nonpositive


# The judge


def test_a_judge_looks_where_the_process_goes_with_and_without_control() -> None:
    of = case("brownian-mixture", 2, 1e-3)
    judge = Judge(of.run, of.sample, of.controlled)
    assert of.controlled is not None
    assert of.controlled.lost == 0.0
    assert [judge.places[k].s for k in (0, -1)] == [0.0, of.problem.horizon]
    assert all(len(place.weights) == 2 for place in judge.places)
    late = judge.places[-1]  # of time to go: the start
    under = late.weights[0].ravel() @ late.nodes
    assert np.linalg.norm(under - of.problem.initial_law.expectation) < 0.15
    # at T the draws under control earn more
    first = judge.places[0]
    earned = [float(weights.ravel() @ of.problem.y(first.nodes)) for weights in first.weights]
    assert earned[1] > earned[0] + 0.1


def test_a_judge_looks_where_a_process_from_a_point_is_soon() -> None:
    """Noise alone moves it at first, X_t ~ N(0, t): at the start, which may be the nearest of few times, it is 0."""
    problem = ControlProblem(
        dim=1, horizon=1.0, temperature=1.0, drift=lambda t, x: -(x**3), diffusion=1.0, initial_law=PointMass([0.0]),
        terminal_reward=lambda x: np.cos(3 * x[..., 0]),
    )  # fmt: skip
    search = _Search(problem, 1e-4, None, None, None, 0)
    run = search._held(lambda _: None)
    early = [place for place in Judge(run, search.sample, search.controlled).places if 0.9 < place.s < 1.0]
    assert min(1.0 - place.s for place in early) < 1 / 32
    for place in early:
        spread = np.sqrt(place.weights[0].ravel() @ place.nodes[:, 0] ** 2)
        assert 0.6 < spread / np.sqrt(1.0 - place.s) < 1.6


def test_draws_are_shared_out_so_that_means_are_kept() -> None:
    """Sums of functions that are linear in each coordinate are exact; of others nearly so."""
    problem, rng = zoo.get("lq", 2), np.random.default_rng(3)
    draws = [rng.standard_normal((4000, 2)) * [1.0, 0.1], rng.standard_normal((3000, 2)) + np.array([2.0, 0.0])]
    place = places_of(problem, 0.5, draws, [np.full(2, -9.0), np.full(2, 9.0)])
    x, y = place.nodes.T
    for weights, law in zip(place.weights, draws, strict=True):
        w = weights.ravel()
        assert w.sum() == pytest.approx(1.0)
        assert (w >= 0).all()
        np.testing.assert_allclose(w @ (1 + x - 2 * y + x * y), np.mean(1 + law @ [1, -2] + law.prod(axis=1)))
        np.testing.assert_allclose(w @ np.cos(2 * x + y), np.cos(law @ [2, 1]).mean(), atol=5e-3)


def test_a_front_is_looked_at_next_to_the_edges_of_cells() -> None:
    """Half of an error may sit between the last nodes of a cell and its edge, which 256 places step over."""
    run = usual().run
    s, line = float(run.panels[-1].ends[-1]), run.panels[-1].grid.lines[0]
    (more,) = at_edges(run.panels, s)
    x = run.equation.reaches[0].median[0] + np.random.default_rng(0).normal(size=(4096, 1))
    axis = places_of(usual().problem, s, [x], run.equation.box.bounds, [more]).axes[0]
    seen = [
        (edge, width) for edge, width in zip(line.grid[1:-1], line.widths[1:], strict=True) if x.min() < edge < x.max()
    ]
    assert len(seen) > 1
    for edge, width in seen:
        assert ((axis < edge) & (axis > edge - 1e-6 * width)).any()
        assert ((axis > edge) & (axis < edge + 1e-6 * width)).any()
        nodes = np.sort(np.abs(line.nodes - edge))[1:5]
        assert all(np.isclose(np.abs(axis - edge), node, rtol=1e-9).any() for node in nodes[:2])


def test_draws_out_of_bounds_are_left_out_and_points_kept() -> None:
    problem = zoo.get("lq", 2)
    inside, outside = np.tile([0.5, -0.25], (7, 1)), np.tile([5.0, 0.0], (9, 1))
    place = places_of(problem, 0.0, [np.concatenate([inside, outside])], [np.full(2, -1.0), np.full(2, 1.0)])
    assert [axis.tolist() for axis in place.axes] == [[0.5], [-0.25]]
    assert place.weights[0] == pytest.approx(np.ones((1, 1)))


@pytest.mark.parametrize(
    ("name", "d", "form"), [("mixture-diffusion", 1, None), ("brownian-mixture", 2, None), ("reflected", 2, "linear")]
)
def test_a_run_is_the_same_on_places_and_at_their_points(name: str, d: int, form: str | None) -> None:
    of = case(name, d, 1e-3, form)
    judge = Judge(of.run, of.sample, of.controlled)
    gauge = of.run.equation.gauge
    for place in judge.places[:: max(len(judge.places) // 6, 1)]:
        panel = next(panel for panel in of.run.panels if place.s <= panel.ends[-1])
        w, slopes = on_places(of.run.equation, panel, place)
        v, g = evaluate(of.run, place.s, place.nodes)
        t = of.problem.horizon - place.s
        np.testing.assert_allclose(w.ravel() + gauge.guess(t, place.nodes), v, atol=1e-10)
        np.testing.assert_allclose(slopes.reshape(-1, d) + gauge.guess_gradient(t, place.nodes), g, atol=1e-8)


def test_sizes_are_norms_of_value_and_policy() -> None:
    """Of the exact solution under the draws themselves."""
    of = usual()
    judge, problem, sample = Judge(of.run, of.sample, of.controlled), of.problem, of.sample
    exact = problem.exact
    assert exact is not None
    found = np.zeros(2)
    for place in judge.places:
        t = problem.horizon - place.s
        x = sample.x[sample.nearest(t)]
        v, g = exact.value(t, x), exact.gradient(t, x)
        squares = np.stack([v**2, np.einsum("ni,nij,nj->n", g, problem.Lambda(t, x), g)])
        found = np.maximum(found, np.sqrt(squares.mean(axis=1)))
    np.testing.assert_allclose(judge.sizes[0, 0], found, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "d", "rtol"),
    [
        ("mixture-diffusion", 1, 1e-2),
        ("brownian-mixture", 1, 1e-2),
        ("brownian-mixture", 1, 1e-4),
        ("brownian-mixture", 2, 1e-3),
        ("mixture-diffusion", 2, 1e-3),
    ],
)
def test_the_estimate_is_near_the_truth(name: str, d: int, rtol: float) -> None:
    of = case(name, d, rtol)
    estimate = max(sum(part[i] for part in of.parts.values()) for i in range(2))
    assert 1 / 3 < estimate / truth(of.run).max() < 30


PARTS: dict[str, Any] = {
    "time": lambda of: followed(of.run, of.coefficients, lambda lengths: merged(np.array(merged(lengths)))),
    "space": lambda of: followed(of.run, of.coefficients, cut(1), less=6),
}


@pytest.mark.parametrize("name", PARTS)
def test_each_part_sees_its_own_error(name: str) -> None:
    """Of runs made worse in one respect: four times the steps, or four degrees less."""
    of = usual()
    worse = PARTS[name](of)
    true, found = truth(worse), judged(worse, of)
    assert true[1] > 10 * truth(of.run)[1]
    assert found[name][1] > 0.5 * max(part[1] for part in found.values())
    assert found[name][1] > 3 * of.parts[name][1]
    assert found[name][0] > true[0] / 8
    assert 1 / 8 < found[name][1] / true[1] < 30


def test_truncation_is_seen_where_a_box_is_too_small() -> None:
    """Only in part: what a box enlarged once changes."""
    of = case("mixture-diffusion", 1, 1e-5, None, 4.0)
    true = truth(of.run)
    assert true[0] > 10 * truth(usual().run)[0]
    assert of.parts["truncation"][0] > 3 * max(of.parts["time"][0], of.parts["space"][0])
    for i in range(2):
        assert 1 / 8 < of.parts["truncation"][i] / true[i] < 8
    assert usual().parts["truncation"][0] < 2e-2 * of.parts["truncation"][0]


def test_in_space_a_narrower_box_tells_what_is_lost_by_one_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as it is, and next to nothing if no face moves."""
    of = case("brownian-mixture", 3, 1e-2, None, 2.5)
    found = of.parts["truncation"][0]
    assert 1 / 4 < found / truth(of.run)[0] < 4
    monkeypatch.setitem(box_judge._OTHER, 3, lambda edges, moving, share: list(edges))
    assert judged(of.run, of)["truncation"][0] < 1e-2 * found


def test_where_no_wider_box_is_stable_a_narrower_one_tells_its_truncation():
    """The value falls by a thousand temperatures towards the faces, where the process only starts."""
    search = _Search(zoo.get("double-well", 1, kappa=1.0), 1e-5, None, None, None, 0)
    search.tolerances = replace(search.tolerances, space=3e-6)  # on finer grids steps are shorter, and stable
    found = search.run(lambda _: None)
    wider = box_plans.followed(found.run, search.coefficients, cut(1), wider=widened)
    assert not all(panel.finite for panel in wider)
    assert 0.0 < max(found.parts["truncation"]) < 1e-5


def test_richer_elements_are_followed_in_steps_in_which_they_are_stable() -> None:
    of, judge = usual(), Judge(usual().run, usual().sample, usual().controlled)
    follow = partial(box_plans.plans, of.run, of.coefficients)
    expected = judge.difference(judge.own, judge._seen(follow(cut(4), less=-2)))

    def unstable(steps: box_judge.Steps, *, less: int) -> box_judge.Plans:
        panels = follow(steps, less=less)
        if len(steps(np.ones(1))) >= most:
            yield from panels
        else:
            for panel in box_judge.made(panels):
                yield partial(replace, panel, states=[np.full_like(u, np.inf) for u in panel.states])
                return

    most = 4
    assert judge._richer(unstable, 2) == expected
    assert 0.0 < max(expected) < math.inf
    most = 8
    assert judge._richer(unstable, 2) == (math.inf, math.inf)


def test_of_large_arrays_fewer_states_are_kept_and_the_plan_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of what is kept are those of the run: the cubics of longer steps are nearly as good."""
    usual_one = case("mixture-diffusion", 1, 1e-4, None, 9.0)
    monkeypatch.setattr(box_run, "_HELD", 0)
    few = case.__wrapped__("mixture-diffusion", 1, 1e-4, None, 9.0)
    kept, all_of_them = (sum(len(panel.ends) for panel in of.run.panels) for of in (few, usual_one))
    assert kept < 0.75 * all_of_them
    for mine, other in zip(few.run.panels, usual_one.run.panels, strict=True):
        assert np.array_equal(mine.plan, other.plan)
        assert np.abs(mine.ends[:, None] - other.ends).min(axis=1).max() < 1e-12
        assert np.array_equal(mine.last, other.last)
    again = followed(few.run, few.coefficients, cut(1))
    for mine, other in zip(again.panels, usual_one.run.panels, strict=True):
        assert len(mine.ends) == len(other.ends)
        assert np.abs(mine.last - other.last).max() < 1e-9 * np.abs(other.last).max()
    assert (truth(few.run) < 1e-4).all()
    estimate = few.solution.error_estimate
    assert estimate is not None
    assert (truth(few.run) < 3 * np.array([estimate.value, estimate.policy])).all()


def test_a_run_that_becomes_too_large_is_kept_at_fewer_times_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    usual_one = case("mixture-diffusion", 1, 1e-4, None, 9.0)
    held = usual_one.run.held
    monkeypatch.setattr(box_run, "MOST_HELD", int(0.8 * held))
    few = case.__wrapped__("mixture-diffusion", 1, 1e-4, None, 9.0)
    assert few.run.held <= 0.8 * held
    for mine, other in zip(few.run.panels, usual_one.run.panels, strict=True):
        assert np.array_equal(mine.plan, other.plan)
        assert np.array_equal(mine.last, other.last)
    assert (truth(few.run) < 1e-4).all()
    monkeypatch.setattr(box_run, "MOST_HELD", held // 40)
    with pytest.raises(ConvergenceError, match=r"are kept; raise rtol, or give a smaller box or max_dofs"):
        case.__wrapped__("mixture-diffusion", 1, 1e-4, None, 9.0)


def test_steps_are_joined_no_further_than_cubics_allow() -> None:
    """u = s^4: a cubic over [0, 2h] misses h^4 in the middle."""
    ends = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 0.6])
    steps = [
        Step(a, b - a, np.array([a**4]), np.array([4 * a**3]), np.array([b**4]), np.array([4 * b**3]))
        for a, b in pairwise(ends.tolist())
    ]
    joined = box_run.fewer(steps, lambda gap: float(np.abs(gap).max()), 1.01e-4)
    assert [(step.s, step.h) for step in joined] == [
        (0.0, 0.2),
        (0.2, pytest.approx(0.1)),
        (0.3, 0.2),
        (0.5, pytest.approx(0.1)),
    ]
    assert len(box_run.fewer(steps, lambda gap: float(np.abs(gap).max()), 0.99e-4)) == 5


def test_a_table_that_is_let_go_holds_nothing() -> None:
    table = Table(0.0, 1.0, [np.ones((3, 50))])
    table.settle()
    table.forget()
    assert all(field.base is None and not field.size for field in table.values)


def rugged() -> ControlProblem:
    """Five and six wells along two directions that are not the axes."""
    M = np.array([[-1.0294, 0.01988], [0.24653, 1.01518]])
    inverse, alpha = np.linalg.inv(M), 0.61711
    heights, tilts, halves = np.array([0.44583, 0.3297]), np.array([-0.16642, -0.02239]), np.array([2.5, 3.0])
    phases = np.array([0.0, np.pi])

    def drift(t: Any, x: FloatArray) -> FloatArray:
        z = x @ inverse.T
        slope = heights * 2 * np.pi * np.sin(2 * np.pi * z + phases) + 6.0 * z**3 / halves**4 + tilts
        return np.asarray(-slope @ M.T)

    def y(x: FloatArray) -> FloatArray:
        z = x @ inverse.T
        return np.asarray(0.95127 * np.sin(2.0 * z[..., 0] + 5.12955) + 0.87078 * np.exp(-((z[..., 1] - 2.47462) ** 2)))

    return ControlProblem(
        dim=2,
        horizon=2.48979,
        temperature=alpha,
        drift=drift,
        diffusion=M @ np.diag([0.71994, 1.45598]) @ M.T,
        terminal_reward=y,
        initial_law=Gaussian(np.array([-0.2392, -0.5393]), np.array([[0.1096, 0.0302], [0.0302, 0.0991]])),
    )


def test_what_the_highest_powers_promise_next_to_the_end_is_measured() -> None:
    search = _Search(rugged(), 1e-3, None, None, None, 0)
    run = search._held(lambda _: None)
    judge = Judge(run, search.sample, search.controlled)

    def changed(by: int) -> Seen:
        return judge.seen(box_plans.followed(run, search.coefficients, cut(1), less=by))

    presumed, measured = judge._space(judge.own, changed(2)), judge.difference(judge.own, changed(-2))
    found = judge.parts(search.coefficients, {"space": math.inf, "time": math.inf, "truncation": math.inf})
    assert found["space"][1] > 0.8 * measured[1] > 1.1 * presumed[1]


def turning() -> tuple[ControlProblem, list[ControlProblem]]:
    """Two independent problems with coefficients that cells of the value do not resolve, in a frame that turns."""

    def line(drift: Any, noise: float, pay: Any, y: Any, law: Gaussian) -> ControlProblem:
        return ControlProblem(
            dim=1, horizon=1.0, temperature=3.0, drift=lambda t, x: drift(x), diffusion=noise, initial_law=law,
            running_reward=lambda t, x: pay(x[..., 0]), terminal_reward=lambda x: y(x[..., 0]),
        )  # fmt: skip

    one = line(lambda x: 1.2 * np.sin(2 * x) - 0.3 * x, 1.46, lambda z: -0.5 * z**2, lambda z: -((z + 1.23) ** 2) / 2,
               Gaussian([-0.36], 0.5))  # fmt: skip
    other = line(lambda x: -0.6 * (x - 0.27), 0.48, lambda z: -0.125 * np.logaddexp(0.0, 4 * z),
                 lambda z: 3 * np.tanh((z - 0.85) / 0.5), Gaussian([-0.2], 0.02))  # fmt: skip

    def axes(t: Any) -> FloatArray:
        c, s = np.cos(2.17 + np.asarray(t)), np.sin(2.17 + np.asarray(t))
        return np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], -2)

    def drift(t: Any, x: FloatArray) -> FloatArray:
        z = np.einsum("...km,...m->...k", axes(t), x)
        still = np.concatenate([one.b(0.0, z[..., :1]), other.b(0.0, z[..., 1:])], -1)
        return np.einsum("...km,...k->...m", axes(t), still) + np.stack([-x[..., 1], x[..., 0]], -1)

    def apart(t: Any, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        z = np.einsum("...km,...m->...k", axes(t), x)
        return z[..., :1], z[..., 1:]

    R = axes(0.0)
    whole = ControlProblem(
        dim=2, horizon=1.0, temperature=3.0, drift=drift,
        diffusion=lambda t, x: np.einsum("...km,k,...kn->...mn", axes(t), [1.46, 0.48], axes(t)) + 0 * x[..., None],
        running_reward=lambda t, x: sum(of.r(0.0, z) for of, z in zip((one, other), apart(t, x), strict=True)),
        terminal_reward=lambda x: sum(of.y(z) for of, z in zip((one, other), apart(1.0, x), strict=True)),
        initial_law=Gaussian(R.T @ [-0.36, -0.2], R.T @ np.diag([0.5, 0.02]) @ R),
    )  # fmt: skip
    return whole, [one, other]


def test_degrees_are_not_worth_more_than_coefficients_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The highest powers of the value promise a fiftieth of what fewer degrees change; it is two fifths."""
    problem, (one, other) = turning()
    search = _Search(problem, 1e-3, None, None, None, 0)
    run = search._held(lambda _: None)
    judge, enough = Judge(run, search.sample, search.controlled), {"space": 1e9, "time": 1e9, "truncation": 1e9}
    told = judge.parts(search.coefficients, enough)["space"][0]
    lines, off = [fh.solve(of, rtol=1e-5, verify=False) for of in (one, other)], 0.0
    for place, (w, _), sizes in zip(judge.places, judge.own.rows, judge.sizes, strict=True):
        t, turned = 1.0 - place.s, 2.17 + 1.0 - place.s
        z = place.nodes @ np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
        true = sum(line.value(t, z[:, k : k + 1], outside="nan") for k, line in enumerate(lines)).reshape(w.shape)
        gap = np.nan_to_num(search.gauge.guess(t, place.nodes).reshape(w.shape) + w - true)
        off = max(off, *(np.sqrt((weights * gap**2).sum()) / sizes[:, 0].max() for weights in place.weights))
    assert off / 2.5 < told < 4.0 * off
    monkeypatch.setitem(box_judge._LEAST_GAIN, 2, 0.1)
    assert judge.parts(search.coefficients, enough)["space"][0] < off / 3.0


def test_times_that_are_as_good_as_the_end_are_left_out() -> None:
    """Steps next to T may be shorter than what double precision tells apart; times of a solution increase."""
    of = usual()
    first, *others = of.run.panels
    tiny = replace(first, ends=first.ends * (1e-15 / first.ends[-1]))
    later = replace(first, ends=tiny.ends[-1] + (first.ends[-1] - tiny.ends[-1]) * first.ends / first.ends[-1])
    run = replace(of.run, panels=[tiny, later, *others], layer=float(tiny.ends[-1]))
    space, rows = run.space()
    times = space.panels[-1].time.grid
    assert len(times) < 10
    assert (np.diff(times) > 0).all()
    assert times[-1] == 1.0
    last = rows[-2 * first.grid.size : -first.grid.size]
    assert np.array_equal(last, first.states[0].ravel())
    none_left = replace(
        of.run, panels=[replace(tiny, ends=tiny.ends * 1e-3), later, *others], layer=float(later.ends[0])
    )
    assert none_left.space()[0].panels[-1].time.bounds[1] == 1.0
    alike = replace(tiny, ends=tiny.ends * 1e-3 + 0.5)
    assert box_run.told_apart(alike, 1.0) is None
    assert box_run.told_apart(first, 1.0) is first


def test_a_run_that_has_left_double_precision_is_an_error_of_ours() -> None:
    """Its last panel ends in what is no number: there is nothing to judge."""
    of = usual()
    last = of.run.panels[-1]
    states = [*last.states[:-2], np.full_like(last.states[-2], np.inf), last.states[-1]]
    run = replace(of.run, panels=[*of.run.panels[:-1], replace(last, states=states)])
    assert not run.panels[-1].finite
    with pytest.raises(ConvergenceError, match="left double precision"):
        Judge(run, of.sample, of.controlled)


STEEP = 0.15  # the width of the step in Lambda


def steep(n: FloatArray, Lambda: Any, law: Gaussian) -> ControlProblem:
    """Of x . n alone, whatever the dimension: Lambda steps across a line, and the running reward has a kink there."""
    shape = np.asarray(Lambda)
    return ControlProblem(
        dim=len(n),
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: -x,
        diffusion=lambda t, x: (0.5 + 0.3 * np.tanh((x @ n - 0.2) / STEEP))[..., None, None] * shape,
        terminal_reward=lambda x: 1.2 * np.cos(1.5 * x @ n + 0.4),
        running_reward=lambda t, x: -0.8 * np.abs(x @ n + 0.1),
        initial_law=law,
    )


def test_what_elements_miss_of_steep_coefficients_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpolated from the grid of the run it would be the same in all that is compared, and be told far too small."""
    n, full = np.array([np.cos(0.09), np.sin(0.09)]), np.array([[1.0, 0.4], [0.4, 0.7]])
    search = _Search(steep(n, full, Gaussian([-0.3, 0.1], 0.1 * np.eye(2))), 1e-3, None, None, None, 0)
    run = search._held(lambda _: None)
    judge, enough = Judge(run, search.sample, search.controlled), {"space": 1e9, "time": 1e9, "truncation": 1e9}
    told = judge.parts(search.coefficients, enough)["space"][0]
    anew = box_plans._table
    monkeypatch.setattr(box_plans, "_table", lambda own, grid, of, _: anew(own, grid, of, False))
    shared = judge.parts(search.coefficients, enough)["space"][0]
    line = fh.solve(steep(np.ones(1), [[n @ full @ n]], Gaussian([-0.3 * n[0] + 0.1 * n[1]], [[0.1]])), rtol=1e-3)
    place, (w, _) = judge.places[-1], judge.own.rows[-1]
    known = search.gauge.guess(0.0, place.nodes).reshape(w.shape) + w
    true = line.value(0.0, place.nodes @ n[:, None]).reshape(w.shape)
    off = np.sqrt(max((weights * (known - true) ** 2).sum() for weights in place.weights)) / judge.sizes[-1, :, 0].max()
    assert 0.5 * off < told < 3.0 * off
    assert shared < 0.4 * off


def test_what_one_look_tells_of_values_is_not_lost_where_another_tells_more_of_policies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = case("mixture-diffusion", 1, 1e-5)
    judge, enough = Judge(of.run, of.sample, of.controlled), {"space": 1e9, "time": 1e9, "truncation": 1e9}
    usual = judge.parts(of.coefficients, enough)["space"]
    monkeypatch.setattr(Judge, "_at_first", lambda *_: (0.0, 1.0))
    assert judge.parts(of.coefficients, enough)["space"] == (usual[0], 1.0)
