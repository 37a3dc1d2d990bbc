"""Pictures: what is drawn is what was asked for, on the axes given, without touching pyplot's global state."""

import io
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fem_hjb.plotting import pictures as plotting
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.solutions.compare import compare, from_callables
from fem_hjb.solutions.comparison import Comparison
from fem_hjb.support.errors import ComparisonError, DomainError, ProblemError

mpl.use("Agg")


def exact(problem: ControlProblem) -> ValueFunction:
    assert problem.exact is not None
    return problem.exact


def perturbed(problem: ControlProblem, eps: float) -> ValueFunction:
    v = exact(problem)
    return from_callables(lambda t, x: v.value(t, x) + eps * np.sin(x[..., 0]), lambda t, x: v.gradient(t, x) + eps)


def table(problem: ControlProblem) -> Comparison:
    found = {name: perturbed(problem, eps) for name, eps in (("learned", 1e-2), ("galerkin", 1e-3), ("mesh", 1e-5))}
    return compare(found, exact(problem), problem=problem)


def axes() -> Axes:
    ax: Axes = Figure().subplots()
    return ax


def drawn(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=50)
    return stream.getvalue()


def test_a_curve_shows_the_numbers_it_was_given() -> None:
    problem = zoo.get("lq")
    (line,) = plotting.solution(exact(problem), 0.25, problem=problem, ax=axes(), label="v")
    x, y = line.get_data()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(y, exact(problem).value(0.25, np.asarray(x)[:, None]))
    assert line.get_label() == "v"


def test_a_policy_curve_uses_the_policy_or_makes_it_from_the_gradient() -> None:
    problem = zoo.get("lq")
    v = exact(problem)
    (own,) = plotting.solution(v, quantity="policy", problem=problem, ax=axes())
    (made,) = plotting.solution(from_callables(v.value, v.gradient), quantity="policy", problem=problem, ax=axes())
    np.testing.assert_allclose(own.get_ydata(), made.get_ydata(), rtol=1e-12)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dim", [2, 3, 4])
@pytest.mark.parametrize("quantity", ["value", "policy"])
def test_maps_have_a_colour_bar_arrows_and_labels(dim: int, quantity: str) -> None:
    problem = zoo.get("lq", dim=dim)
    ax = axes()
    mesh, _ = plotting.solution(exact(problem), quantity=quantity, problem=problem, ax=ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$x_1$", "$x_2$")
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2
    symbol = "$v_t(x)$" if quantity == "value" else r"$|\pi_t(x)|$"
    assert figure.axes[1].get_ylabel().startswith(symbol)
    assert ("x_3" in figure.axes[1].get_ylabel()) == (dim > 2)
    assert np.isfinite(np.asarray(mesh.get_array())).all()  # type: ignore[attr-defined]


def test_a_map_is_not_transposed() -> None:
    problem = zoo.get("lq", dim=2)
    of = from_callables(lambda t, x: x[..., 0] + 10 * x[..., 1], lambda t, x: np.ones_like(x) * [1.0, 10.0])
    mesh, _ = plotting.solution(of, problem=problem, box=Box([0, 0], [1, 1]), ax=axes())
    z = np.asarray(mesh.get_array())  # type: ignore[attr-defined]
    assert (z[0, 0], z[0, -1], z[-1, 0]) == (0.0, 1.0, 10.0)  # rows go with x_2, columns with x_1


def test_points_without_a_value_stay_blank() -> None:
    problem = zoo.get("lq", dim=2)
    v = exact(problem)
    of = from_callables(lambda t, x: np.where(x[..., 0] > 0, v.value(t, x), np.nan), v.gradient)
    mesh, _ = plotting.solution(of, problem=problem, ax=axes())
    blank = np.ma.getmaskarray(mesh.get_array())  # type: ignore[attr-defined]
    assert 0.45 < blank.mean() < 0.55


def test_lines_of_a_comparison_differ_without_colour() -> None:
    ax = axes()
    lines = plotting.compare(table(zoo.get("lq")), column="policy", ax=ax)
    looks = {(line.get_linestyle(), line.get_marker()) for line in lines}  # type: ignore[attr-defined]
    assert len(looks) == len(lines) == 3
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["learned", "galerkin", "mesh"]  # type: ignore[union-attr]


def test_an_exact_candidate_can_be_drawn_on_a_logarithmic_axis() -> None:
    problem = zoo.get("lq")
    (line,) = plotting.compare(compare({"same": exact(problem)}, exact(problem), problem=problem), ax=axes())
    assert (np.asarray(line.get_ydata()) > 0).all()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("dim", "known"), [(1, True), (3, True), (2, False)])
def test_the_report_has_four_titled_panels_and_draws_the_same_twice(dim: int, known: bool) -> None:
    problem = zoo.get("lq", dim=dim)
    learned, mesh = perturbed(problem, 1e-2), perturbed(problem, 1e-5)
    if not known:
        given = {name: getattr(problem, name) for name in ("horizon", "temperature", "drift", "diffusion")}
        law = {"terminal_reward": problem.terminal_reward, "initial_law": problem.initial_law}
        problem = ControlProblem(dim=dim, **given, **law, marginal=problem.marginal)
    first, second = (plotting.report(problem, learned, mesh) for _ in range(2))
    titles = [ax.get_title(loc="left") for ax in first.axes if ax.get_title(loc="left")]
    assert [title[:3] for title in titles] == ["(a)", "(b)", "(c)", "(d)"]
    assert titles[2].endswith("learned vs reference vs exact" if known else "learned vs reference")
    assert drawn(first) == drawn(second)


def test_nothing_is_left_in_pyplot() -> None:
    problem = zoo.get("lq")
    plotting.report(problem, perturbed(problem, 1e-2), exact(problem))
    plotting.compare(table(problem), ax=axes())
    assert pyplot.get_fignums() == []


def test_without_axes_a_new_figure_is_made() -> None:
    problem = zoo.get("lq")
    (line,) = plotting.solution(exact(problem), problem=problem)
    try:
        assert pyplot.get_fignums() == [line.get_figure().number]  # type: ignore[union-attr]
    finally:
        pyplot.close("all")


def test_the_window_is_the_domain_of_a_reflected_process_and_three_deviations_elsewhere() -> None:
    problem = zoo.get("lq", dim=2)
    assert problem.marginal is not None
    lower, upper = plotting.window(problem).bounds
    for t in (0.0, problem.horizon / 2, problem.horizon):
        law = problem.marginal(t)
        assert (lower <= law.expectation - 2.999 * np.sqrt(np.diag(law.covariance))).all()
        assert (upper >= law.expectation + 2.999 * np.sqrt(np.diag(law.covariance))).all()
    reflected = zoo.get("reflected")
    assert plotting.window(reflected) is reflected.domain


def test_the_window_of_an_unknown_law_comes_from_simulation() -> None:
    lower, upper = plotting.window(zoo.get("double-well")).bounds
    assert lower < -1.0 < 1.0 < upper
    assert upper - lower < 8.0


V = exact(zoo.get("lq"))
BAD_INPUT: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no problem": (lambda: plotting.solution(V, ax=axes()), ProblemError, "does not carry its problem; give problem="),
    "unknown quantity": (
        lambda: plotting.solution(V, quantity="f", problem=zoo.get("lq"), ax=axes()),
        ProblemError,
        "quantity must be one of 'value', 'policy', got 'f'",
    ),
    "time outside": (
        lambda: plotting.solution(V, 7.0, problem=zoo.get("lq"), ax=axes()),
        DomainError,
        r"t must lie in \[0, 1\]",
    ),
    "unknown column": (
        lambda: plotting.compare(table(zoo.get("lq")), column="l2", ax=axes()),
        ComparisonError,
        "column must be one of 'value', 'value_h1', 'policy', 'excluded', got 'l2'",
    ),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input(kind: str) -> None:
    call, error, message = BAD_INPUT[kind]
    with pytest.raises(error, match=message):
        call()
