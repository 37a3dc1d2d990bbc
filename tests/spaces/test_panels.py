"""Functions on panels of time: those of each panel's own space, whatever the others are."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.gauge import Gauge, Unknown, ValueGauge, constant_gauge
from fem_hjb.solutions.files import load_solution, save_solution
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.panels import PanelSpace
from fem_hjb.spaces.space import Space
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import DomainError, OutputError, SpaceError

TIMES = [[0.0, 0.1, 0.3], [0.3, 0.35, 0.37, 0.6], [0.6, 1.0]]
DEGREES = (3, 5, 4)


def basis(dim: int, cells: int, degree: int, width: float = 2.0) -> SpectralBasis:
    """Cells of different widths, and of another degree along each axis."""
    edges = width * np.sinh(np.linspace(-1.5, 1.5, cells + 1)) / np.sinh(1.5)
    return SpectralBasis([SpectralLine(edges, degree + k) for k in range(dim)])


def panels(dim: int) -> tuple[Space, ...]:
    return tuple(
        Space.from_(LineBasis(times, "hermite"), basis(dim, 2 + k, degree))
        for k, (times, degree) in enumerate(zip(TIMES, DEGREES, strict=True))
    )


def cubic(k: float, t: Any, x: FloatArray) -> FloatArray:
    """A polynomial of degree 3 in time and along each axis, another one in each panel."""
    t = np.asarray(t, dtype=np.float64)
    return np.asarray(k + (1 + t - 2 * t**3) * (1 + x[..., 0] ** 3 - x.prod(-1)) + k * t**2 * x[..., -1] ** 2)


def change(k: float, t: Any, x: FloatArray) -> FloatArray:
    t = np.asarray(t, dtype=np.float64)
    return np.asarray((1 - 6 * t**2) * (1 + x[..., 0] ** 3 - x.prod(-1)) + 2 * k * t * x[..., -1] ** 2)


def slopes(k: float, t: Any, x: FloatArray) -> FloatArray:
    t, d = np.asarray(t, dtype=np.float64), x.shape[-1]
    others = np.stack([np.delete(x, j, -1).prod(-1) for j in range(d)], -1)
    first, last = np.eye(d)[0], np.eye(d)[-1]
    result = (1 + t - 2 * t**3)[..., None] * (3 * x[..., :1] ** 2 * first - others)
    return np.asarray(result + (2 * k * t**2)[..., None] * x[..., -1:] * last)


def filled(space: PanelSpace, factors: tuple[float, ...] = (1.0, 2.0, 3.0)) -> FloatArray:
    """The coefficients of `cubic` with these factors."""
    parts = []
    for k, panel in zip(factors, space.panels, strict=True):
        x = panel.spatial.nodes
        rows = np.empty(panel.shape)
        for a, (t, width) in enumerate(zip(panel.time.points, panel.time.node_widths, strict=True)):
            rows[2 * a], rows[2 * a + 1] = cubic(k, t, x), width * change(k, t, x)
        parts.append(rows.ravel())
    return np.concatenate(parts)


def which(t: Any) -> FloatArray:
    """1, 2 or 3: the later panel counts where panels meet."""
    t = np.asarray(t)
    return np.asarray(1.0 + (t >= 0.3) + (t >= 0.6))


NAMES = {"value": cubic, "time": change, "gradient": slopes}


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_each_panel_has_its_own_functions(dim: int) -> None:
    space = PanelSpace(panels(dim))
    c, rng = filled(space), np.random.default_rng(0)
    assert c.shape == space.shape == (space.n_dofs,)
    x = rng.uniform(-1.9, 1.9, (40, dim))
    for t in (0.0, 0.2, 0.3, 0.36, 0.5999, 0.6, 0.8, 1.0):
        found = space.derivatives(c, t, x, tuple(NAMES))
        for part, exact in zip(found, NAMES.values(), strict=True):
            np.testing.assert_allclose(part, exact(float(which(t)), t, x), atol=1e-11)
    times = np.concatenate([rng.random(36), [0.0, 0.3, 0.6, 1.0]])
    for name, exact in NAMES.items():
        expected = np.stack([exact(float(which(t)), t, point) for t, point in zip(times, x, strict=True)])
        np.testing.assert_allclose(space.evaluate(c, times, x, name), expected, atol=1e-11)  # type: ignore[arg-type]
    wrong = filled(space, (1.0, 3.0, 2.0))
    assert np.abs(space.evaluate(wrong, times, x) - space.evaluate(c, times, x))[times >= 0.3].min() > 1e-3
    np.testing.assert_array_equal(
        space.evaluate(wrong, times, x)[times < 0.3], space.evaluate(c, times, x)[times < 0.3]
    )


def test_the_box_has_those_of_all_panels_in_it() -> None:
    line = [LineBasis([0.0, 0.5], "P1"), LineBasis([0.5, 1.0], "P1")]
    small, wide = (SpectralBasis([SpectralLine([low, high], 3)]) for low, high in ((-1.0, 3.0), (-2.0, 1.0)))
    space = PanelSpace((Space.from_(line[0], small), Space.from_(line[1], wide)))
    np.testing.assert_array_equal(np.ravel(space.box.bounds), [-2.0, 3.0])


def test_times_and_points_broadcast() -> None:
    space = PanelSpace(panels(2))
    c, x = filled(space), np.random.default_rng(1).uniform(-1, 1, (5, 2))
    times = np.array([[0.1], [0.5], [0.9], [0.3]])
    values, gradients = space.derivatives(c, times, x, ("value", "gradient"))
    assert (values.shape, gradients.shape) == ((4, 5), (4, 5, 2))
    for row, slope, t in zip(values, gradients, times[:, 0].tolist(), strict=True):
        np.testing.assert_allclose(row, space.evaluate(c, t, x), atol=1e-13)
        np.testing.assert_allclose(slope, space.evaluate(c, t, x, "gradient"), atol=1e-12)
    for t in (0.4, np.array([0.1, 0.9])):
        assert space.evaluate(c, t, x[0]).shape == np.shape(t)
        assert space.evaluate(c, t, x[0], "gradient").shape == (*np.shape(t), 2)
    assert space.evaluate(c, np.empty(0), np.empty((0, 2)), "gradient").shape == (0, 2)


def test_points_outside_are_refused_or_nan() -> None:
    space = PanelSpace(panels(1))
    c, x = filled(space), np.array([[0.0], [2.5], [-3.0]])
    for t in (0.5, np.array([0.1, 0.5, 0.9])):
        with pytest.raises(DomainError, match="lie outside the domain"):
            space.evaluate(c, t, x)
        values, gradients = space.derivatives(c, t, x, ("value", "gradient"), outside="nan")
        np.testing.assert_array_equal(np.isnan(values), [False, True, True])
        np.testing.assert_array_equal(np.isnan(gradients[:, 0]), [False, True, True])
    with pytest.raises(DomainError, match=r"t must lie in \[0, 1\]"):
        space.evaluate(c, 1.1, x[:1])
    with pytest.raises(SpaceError, match="outside must be"):
        space.evaluate(c, 0.1, x, outside="zero")


def test_what_it_says_of_itself() -> None:
    space = PanelSpace(panels(2))
    assert (space.dim, space.horizon, space.excluded_mass) == (2, 1.0, None)
    assert space.n_dofs == sum(panel.n_dofs for panel in space.panels)
    np.testing.assert_allclose(space.box.bounds, [[-2.0, -2.0], [2.0, 2.0]])
    assert space.spatial is space.panels[-1].spatial
    assert space.at([0.0, 0.29, 0.3, 0.6, 1.0]).tolist() == [0, 0, 1, 2, 2]
    c = filled(space)
    for k, panel in enumerate(space.panels):
        assert space.piece(c, k).shape == panel.shape
    lowest = min(panel.lowest(space.piece(c, k)) for k, panel in enumerate(space.panels))
    assert space.lowest(c) == lowest < 0
    assert len(repr(space).splitlines()) <= 5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda good: (),
        lambda good: good[1:],
        lambda good: (good[0], good[2]),
        lambda good: (good[1], good[0], good[2]),
        lambda good: good[:2] + good[1:],
    ],
    ids=["none", "late", "a gap", "order", "twice"],
)
def test_panels_that_do_not_follow_one_another_are_refused(wrong: Any) -> None:
    with pytest.raises(SpaceError, match=r"panels must follow one another from time 0, got \["):
        PanelSpace(wrong(panels(1)))


def test_coefficients_of_another_size_are_refused() -> None:
    space = PanelSpace(panels(1))
    for shape in ((space.n_dofs - 1,), (1, space.n_dofs), ()):
        with pytest.raises(SpaceError, match=rf"coefficients must have shape \({space.n_dofs},\), got"):
            space.evaluate(np.ones(shape), 0.0, [[0.0]])


@pytest.mark.parametrize("again", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.deepcopy])
def test_a_copy_answers_with_the_same_bits(again: Any) -> None:
    space = PanelSpace(panels(2))
    c, rng = filled(space), np.random.default_rng(2)
    t, x = rng.random(30), rng.uniform(-1, 1, (30, 2))
    other = again(space)
    for name in NAMES:
        np.testing.assert_array_equal(other.evaluate(c, t, x, name), space.evaluate(c, t, x, name))  # type: ignore[arg-type]
    assert not other.panels[1].spatial.nodes.flags.writeable


# In a solution


def solution(dim: int, gauge: Unknown | None = None) -> Solution:
    problem = zoo.get("lq", dim)
    space = PanelSpace(panels(dim))
    x = space.panels[0].spatial.nodes
    noise = 1e-9 * np.random.default_rng(0).standard_normal(space.n_dofs)  # so that no bit is round
    return Solution(
        problem=problem,
        space=space,
        coefficients=filled(space) + noise,
        gauge=ValueGauge(background=constant_gauge(problem, x, [0.0, 1.0])) if gauge is None else gauge,
        method="box",
        status="made by hand",
        stats={"shape": (3, 4)},
    )


def test_a_solution_gives_value_gradient_and_policy() -> None:
    found, rng = solution(2), np.random.default_rng(3)
    t, x = rng.random(20), rng.uniform(-1, 1, (20, 2))
    background = found.gauge.background  # type: ignore[attr-defined]
    expected = np.stack([cubic(float(which(s)), s, point) for s, point in zip(t, x, strict=True)])
    np.testing.assert_allclose(found.value(t, x), expected + background.guess(t, x), atol=1e-7)
    slope = np.stack([slopes(float(which(s)), s, point) for s, point in zip(t, x, strict=True)])
    np.testing.assert_allclose(found.gradient(t, x), slope, atol=1e-6)
    np.testing.assert_allclose(found.policy(t, x), found.problem.policy_from_gradient(t, x, found.gradient(t, x)))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_solution_comes_back_from_a_file_bit_for_bit(dim: int, tmp_path: Path) -> None:
    written = solution(dim)
    save_solution(tmp_path / "a.npz", written)
    again = load_solution(tmp_path / "a.npz", written.problem)
    np.testing.assert_array_equal(again.coefficients, written.coefficients)
    assert isinstance(again.space, PanelSpace)
    assert [p.shape for p in again.space.panels] == [p.shape for p in written.space.panels]  # type: ignore[union-attr]
    assert again.stats["shape"] == [3, 4]
    rng = np.random.default_rng(4)
    t, x = rng.random(50), rng.uniform(-1.0, 1.0, (50, dim))
    for name in ("value", "gradient", "policy"):
        np.testing.assert_array_equal(getattr(again, name)(t, x), getattr(written, name)(t, x))


def test_a_file_that_lost_a_panel_or_a_time_is_damaged(tmp_path: Path) -> None:
    written = solution(1)
    path = tmp_path / "a.npz"
    for name, replaced in (
        ("panel_1_time_grid", None),
        ("panel_1_time_grid", np.array([0.4, 0.6])),
        ("panel_2_degrees", np.array([9])),
    ):
        save_solution(path, written)
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in archive.files}
        if replaced is None:
            del arrays[name]
        else:
            arrays[name] = replaced
        with path.open("wb") as stream:
            np.savez(stream, **arrays)
        with pytest.raises(OutputError, match=f"has been changed since it was written: the array {name!r}"):
            load_solution(path, written.problem)


def test_the_lowest_f_is_the_lowest_of_all_panels() -> None:
    gauge = Gauge(temperature=zoo.get("lq", 1).temperature, horizon=1.0, terminal=0.0, running=0.0)
    found = solution(1, gauge)
    assert found.stats["min_f"] == found.space.lowest(found.coefficients) < 0
