"""Policies as fields, paths, and checks as pictures: what is drawn is what was given."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fem_hjb as fh
from fem_hjb.plotting import checks, paths, policy_field
from fem_hjb.problems import Box, ControlProblem, Gaussian, KernelDensity, PointMass, zoo
from fem_hjb.solutions.checks import Check
from fem_hjb.support.errors import ComparisonError, DomainError, ProblemError

mpl.use("Agg")

PLANE = zoo.get("mixture-diffusion", 2)
LINE = zoo.get("lq", 1)
SPACE = zoo.get("lq", 3)
BOX = Box([-2.0, -1.0], [2.0, 1.0])


def axes() -> Axes:
    ax: Axes = Figure().subplots()
    return ax


def drawn_paths(problem: ControlProblem, n: int = 30) -> fh.paths.Paths:
    return fh.sample_paths(problem, n=n, steps=8, rng=0)


def test_arrows_are_the_policy_where_the_process_is_and_nothing_elsewhere() -> None:
    exact, ax = PLANE.exact, axes()
    mesh, arrows = policy_field(exact, 0.5, problem=PLANE, box=BOX, ax=ax)  # type: ignore[arg-type]
    x = np.asarray(arrows.XY)  # type: ignore[attr-defined]
    u, v = np.ma.masked_array(arrows.U, arrows.Umask), np.ma.masked_array(arrows.V, arrows.Umask)  # type: ignore[attr-defined]
    pi = exact.policy(0.5, x)  # type: ignore[union-attr]
    near = ~np.ma.getmaskarray(u)
    np.testing.assert_allclose(u[near], pi[near, 0], rtol=1e-12)
    np.testing.assert_allclose(v[near], pi[near, 1], rtol=1e-12)
    logs = PLANE.marginal(0.5).logpdf(x)  # type: ignore[misc]
    np.testing.assert_array_equal(near, logs > logs.max() - 9.0)
    assert near.any()
    assert (np.ptp(x, axis=0) == [4.0, 2.0]).all()
    shade = np.asarray(mesh.get_array())  # type: ignore[attr-defined]
    assert shade.max() == 1.0
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("$x_1$", "$x_2$", "$t=0.5$")


def test_far_from_the_process_there_are_no_arrows() -> None:
    wide = Box([-9.0, -9.0], [9.0, 9.0])
    _, arrows = policy_field(PLANE.exact, problem=PLANE, box=wide, ax=axes())  # type: ignore[arg-type]
    assert 0.2 < np.mean(arrows.Umask) < 0.95  # type: ignore[attr-defined]


ELSEWHERE = fh.Uniform(Box([50.0, 50.0], [51.0, 51.0]))


@pytest.mark.parametrize("kind", ["quiver", "stream"])
def test_a_field_with_nothing_to_draw_is_refused(kind: str) -> None:
    """Where the law has no density, and where the solution has no policy."""
    with pytest.raises(ComparisonError, match="nothing to draw: no arrow in Box"):
        policy_field(PLANE.exact, problem=PLANE, kind=kind, density=ELSEWHERE, box=BOX, ax=axes())  # type: ignore[arg-type]
    mesh = fh.solve_on_mesh(PLANE, cells=4, steps=4, box=Box([-5.0, -5.0], [5.0, 5.0]))
    with pytest.raises(ComparisonError, match="nothing to draw: no arrow in Box"):
        policy_field(mesh, kind=kind, density=PointMass([0.0, 0.0]), box=Box([6.0, 6.0], [7.0, 7.0]), ax=axes())


@pytest.mark.parametrize("problem", [PLANE, LINE], ids=["plane", "line"])
def test_paths_over_a_law_that_is_elsewhere_are_paths_alone(problem: ControlProblem) -> None:
    law = fh.Uniform(Box([50.0] * problem.dim, [51.0] * problem.dim))
    artists = paths(drawn_paths(problem), problem, density=law, ax=axes())
    shades = [a for a in artists if hasattr(a, "get_clim")]
    assert all((np.asarray(shade.get_array()) == 0).all() for shade in shades)  # type: ignore[attr-defined]


def test_streamlines_follow_the_policy() -> None:
    artists = policy_field(PLANE.exact, 0.5, kind="stream", problem=PLANE, box=BOX, ax=axes())  # type: ignore[arg-type]
    pieces = np.asarray(artists[1].get_segments())  # type: ignore[attr-defined]
    step, middle = pieces[:, -1] - pieces[:, 0], pieces.mean(axis=1)
    length = np.linalg.norm(step, axis=1)
    pi = PLANE.exact.policy(0.5, middle)  # type: ignore[union-attr]
    cosine = (step * pi).sum(1)[length > 0] / (length * np.linalg.norm(pi, axis=1))[length > 0]
    assert np.quantile(cosine, 0.05) > 0.98


def test_in_three_dimensions_it_is_a_slice_and_says_so() -> None:
    ax = axes()
    assert len(policy_field(SPACE.exact, problem=SPACE, ax=ax)) == 2  # type: ignore[arg-type]
    assert "x_3" in ax.get_title()


@pytest.mark.parametrize("density", [Gaussian([0.0, 0.0], 0.3), lambda t: KernelDensity([[0.5, 0.0]], 0.3 + t)])
def test_another_density_is_drawn_if_it_is_given(density: Any) -> None:
    mesh, _ = policy_field(PLANE.exact, 0.5, problem=PLANE, density=density, box=BOX, ax=axes())  # type: ignore[arg-type]
    law = density if isinstance(density, Gaussian) else density(0.5)
    xy = np.moveaxis(np.asarray(mesh.get_coordinates()), 2, 0).reshape(2, -1).T  # type: ignore[attr-defined]
    logs = law.logpdf(xy)
    np.testing.assert_allclose(np.ravel(mesh.get_array()), np.exp(logs - logs.max()), rtol=1e-12)  # type: ignore[attr-defined]


def test_a_density_of_the_fokker_planck_equation_is_one() -> None:
    density = fh.fokker_planck.solve(LINE, rtol=1e-3)
    (mesh, *lines) = paths(drawn_paths(LINE), LINE, density=density, ax=axes())
    assert len(lines) == 30
    p = np.asarray(mesh.get_array())  # type: ignore[attr-defined]
    np.testing.assert_allclose(p.max(axis=0), 1.0)
    exact = paths(drawn_paths(LINE), LINE, ax=axes())[0]
    np.testing.assert_allclose(p, np.asarray(exact.get_array()), atol=2e-3)  # type: ignore[attr-defined]


def test_paths_on_a_line_are_drawn_over_time() -> None:
    given, ax = drawn_paths(LINE), axes()
    _, *lines = paths(given, LINE, most=7, ax=ax)
    assert len(lines) == 7
    for line, x in zip(lines, given.x, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), x[:, 0])  # type: ignore[attr-defined]
        np.testing.assert_array_equal(line.get_xdata(), given.t)  # type: ignore[attr-defined]
    assert (ax.get_xlabel(), ax.get_xlim()) == ("$t$", (0.0, LINE.horizon))


@pytest.mark.parametrize("problem", [PLANE, SPACE], ids=["plane", "space"])
def test_paths_in_the_plane_have_their_starts_and_ends(problem: ControlProblem) -> None:
    given = drawn_paths(problem)
    mesh, *lines, starts, ends = paths(given, problem, ax=axes())
    assert len(lines) == 30
    np.testing.assert_array_equal(starts.get_xydata(), given.x[:, 0, :2])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(ends.get_xydata(), given.x[:, -1, :2])  # type: ignore[attr-defined]
    xy = np.moveaxis(np.asarray(mesh.get_coordinates()), 2, 0).reshape(2, -1).T  # type: ignore[attr-defined]
    law = problem.marginal(problem.horizon)  # type: ignore[misc]
    logs = fh.problems.blocks.coordinates(law, (0, 1)).logpdf(xy)
    np.testing.assert_allclose(np.ravel(mesh.get_array()), np.exp(logs - logs.max()), rtol=1e-9)  # type: ignore[attr-defined]


def test_without_a_density_there_is_none() -> None:
    bare = replace(PLANE, marginal=None)
    assert len(policy_field(PLANE.exact, problem=bare, box=BOX, ax=axes())) == 1  # type: ignore[arg-type]
    point = replace(PLANE, marginal=lambda t: PointMass([0.0, 0.0]))
    assert len(paths(drawn_paths(PLANE), point, box=BOX, ax=axes())) == 32


def with_checks(*rows: tuple[str, float, float]) -> Any:
    found = fh.solve(LINE, rtol=1e-2)
    made = tuple(Check(name=name, figure=figure, limit=limit, told="so") for name, figure, limit in rows)
    return replace(found, checks=made)


def test_checks_are_where_their_figures_are() -> None:
    ax = axes()
    rows = ("fine", 1e-3, 1e-2), ("broken", 0.4, 0.1), ("none", 0.0, 0.1), ("lost", float("nan"), 0.1)
    artists = checks(with_checks(*rows), ax=ax)
    places = [artist.get_xdata()[0] for artist in artists[:-1:2]]  # type: ignore[attr-defined]
    np.testing.assert_allclose(places, [0.1, 4.0, 1e-4, 1e4])
    assert [artist.get_marker() for artist in artists[:-1:2]] == ["o", "X", "o", "X"]  # type: ignore[attr-defined]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["fine", "broken", "none", "lost"]
    assert [artist.get_text() for artist in artists[1:-1:2]] == [  # type: ignore[attr-defined]
        "0.001 of 0.01",
        "0.4 of 0.1",
        "0 of 0.1",
        "nan of 0.1",
    ]
    assert ax.get_title() == "2 of 4 checks passed"
    assert ax.get_xlim()[1] > 1e4


def test_checks_of_a_solution_are_its_own() -> None:
    found = fh.solve(LINE, rtol=1e-2)
    ax = axes()
    checks(found, ax=ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [check.name for check in found.checks]


Call = Callable[[], Any]
BAD: dict[str, tuple[Call, type[Exception], str]] = {
    "of": (lambda: policy_field(3, problem=PLANE), ComparisonError, "must have value"),  # type: ignore[arg-type]
    "problem": (lambda: policy_field(PLANE.exact), ProblemError, "give problem="),  # type: ignore[arg-type]
    "kind": (
        lambda: policy_field(PLANE.exact, kind="lines", problem=PLANE),  # type: ignore[arg-type]
        ProblemError,
        "kind must be one of 'quiver', 'stream', got 'lines'",
    ),
    "line": (lambda: policy_field(LINE.exact, problem=LINE), ProblemError, "in one dimension is no field"),  # type: ignore[arg-type]
    "time": (lambda: policy_field(PLANE.exact, 2.0, problem=PLANE), DomainError, "t must lie in"),  # type: ignore[arg-type]
    "density": (
        lambda: policy_field(PLANE.exact, problem=PLANE, density="p"),  # type: ignore[arg-type]
        ProblemError,
        "density= must be t -> law of X_t, a law, or .* got str",
    ),
    "density-dim": (
        lambda: paths(drawn_paths(PLANE), PLANE, density=Gaussian([0.0], 1.0)),
        ProblemError,
        "of dimension 2, got one of dimension 1",
    ),
    "box": (lambda: policy_field(PLANE.exact, problem=PLANE, box=Box([0.0], [1.0])), DomainError, "dim"),  # type: ignore[arg-type]
    "ax": (lambda: policy_field(PLANE.exact, problem=PLANE, ax=3), ComparisonError, "ax= needs"),  # type: ignore[arg-type]
    "paths": (lambda: paths(np.zeros((2, 3, 2)), PLANE), ProblemError, "paths needs a Paths, got ndarray"),  # type: ignore[arg-type]
    "paths-problem": (lambda: paths(drawn_paths(PLANE), "lq"), ProblemError, "paths needs a ControlProblem"),  # type: ignore[arg-type]
    "paths-dim": (lambda: paths(drawn_paths(LINE), PLANE), ProblemError, "paths have dimension 1, .* dim=2"),
    "most": (lambda: paths(drawn_paths(PLANE), PLANE, most=0), ProblemError, "most must be a positive integer"),
    "no-solution": (lambda: checks(PLANE.exact), ComparisonError, "those of a solution, got TiltedMixture"),  # type: ignore[arg-type]
    "no-checks": (
        lambda: checks(fh.solve_on_mesh(LINE, cells=8, box=Box([-3.0], [3.0]), steps=4)),
        ComparisonError,
        "carries no checks; solve",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_wrong_input_is_refused(call: Call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
