"""The examples of CONTRIBUTING.md do what it says of them, and the pages that say where things are say the same."""

import re
import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.linalg import expm

import fem_hjb as fh
from fem_hjb.problems.zoo import registry
from fem_hjb.spaces import MeshBasis, basis, box_mesh
from fem_hjb.stepping.esdirk import LinearSystem, Solve
from tests.test_imports import ORDER, PACKAGE

ROOT = Path(__file__).parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for kind in ("docs/*.md", "notebooks/*.py") for path in ROOT.glob(kind))
PAGES.remove("docs/torch.md")  # which is run where torch is installed, by tests/interop
EXAMPLES = {
    part.splitlines()[0]: code
    for part in text("CONTRIBUTING.md").split("\n## ")[1:]
    for code in re.findall(r"```python\n(.*?)```", part, re.DOTALL)
}


def namespace(title: str) -> dict[str, Any]:
    """What the example under this title defines, run on its own."""
    names: dict[str, Any] = {"__name__": f"example_{title.replace(' ', '_')}"}
    exec(compile(EXAMPLES[title], f"CONTRIBUTING.md: {title}", "exec"), names)
    return names


def with_row(monkeypatch: pytest.MonkeyPatch, registry: str, row: Any) -> None:
    """Enter a row as if it stood in the registry's file."""
    for module in [module for name, module in sys.modules.items() if name.startswith("fem_hjb.")]:
        if registry in vars(module):
            monkeypatch.setattr(module, registry, {**vars(module)[registry], row.name: row})


def slope(h: list[float], errors: list[float]) -> float:
    return float(np.polyfit(np.log(h), np.log(errors), 1)[0])


def test_every_example_has_its_test() -> None:
    checks = {name.removeprefix("test_example_").replace("_", " ") for name in globals() if "test_example_" in name}
    assert {title.lower() for title in EXAMPLES} == checks


def test_example_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    namespace("A problem")
    assert fh.zoo.describe("pulled-walk").startswith("dX =")
    problem = fh.zoo.get("pulled-walk", dim=2, target=0.5)
    reference, x = fh.solve(problem, rtol=1e-6), np.array([[0.3, -0.8]])
    # E exp(-(c + N(0, s))^2 / 2) = exp(-c^2 / (2 (1 + s))) / (1 + s)^{1/2} on each axis
    exact = -((x - 0.5) ** 2).sum(-1) / 3 - np.log(1.5)
    np.testing.assert_allclose(reference.value(0.0, x), exact, rtol=1e-6)


def test_example_an_element(monkeypatch: pytest.MonkeyPatch) -> None:
    row = eval(EXAMPLES["An element"], dict(vars(basis)))
    with pytest.raises(fh.errors.SpaceError, match="'P5'"):
        basis.element_named(row.name)
    with_row(monkeypatch, "ELEMENTS", row)
    x, errors = np.linspace(0.0, 1.0, 777)[:, None], []
    for cells in (4, 8, 16):
        made = MeshBasis(box_mesh(fh.Box([0.0], [1.0]), cells, "line"), "P5")
        where, xi = made.locate(x)
        values = made.interpolate(np.sin(5 * made.nodes[:, 0]))[made.cell_dofs[where]]
        errors.append(abs((made.tabulate(where, xi)[0] * values).sum(1) - np.sin(5 * x[:, 0])).max())
    assert slope([1 / 4, 1 / 8, 1 / 16], errors) == pytest.approx(row.value_order, abs=0.2)
    problem = fh.zoo.get("reflected", dim=1)
    solution = fh.solve_on_mesh(problem, element="P5", cells=8, rtol_time=1e-10)
    np.testing.assert_allclose(solution.value(0.0, x), problem.exact.value(0.0, x), atol=1e-7)


def learned(estimator: Any, **options: Any) -> Any:
    problem = fh.zoo.get("lq", dim=1)
    paths = fh.sample_paths(problem, n=1000, steps=32, rng=0)
    space = fh.Space(problem, cells=6, time_cells=4, box=fh.Box([-2.0], [2.0]))
    return fh.fit(problem, paths, space, estimator=estimator, outside="drop", **options)


def test_example_an_estimator() -> None:
    row = namespace("An estimator")["row"]
    one, other = learned(row), learned("generator")
    x = np.linspace(-1.0, 1.0, 41)[:, None]
    exact = one.problem.exact.value(0.0, x)
    errors = [abs(found.value(0.0, x) - exact).max() for found in (one, other)]
    assert max(errors) < 2e-2
    assert abs(errors[0] - errors[1]) > 1e-6  # another estimator, not the same one by another name
    with pytest.raises(fh.errors.MeasureError, match="'outward'"):
        learned(row, delta=0.1)


def test_example_a_constraint() -> None:
    made = namespace("A constraint")["AtMost"](0.0, np.array([[-0.5], [0.0], [0.5]]), 0.3)
    free, held = learned("generator"), learned("generator", constraint=made & fh.Bounds(0.0))
    assert free.f(0.0, made.x).min() > 0.4
    assert held.f(0.0, made.x).max() == pytest.approx(0.3, abs=1e-9)
    assert held.f(0.5, made.x).max() > 0.4  # it says nothing of other times


class Oscillator(LinearSystem):
    """f' = K f, at a frequency that grows with time."""

    mass = np.eye(2)

    def stiffness(self, t: float) -> Any:
        return np.array([[-0.2, 1.0 + t], [-1.0 - t, -0.2]])

    def solver(self, stiffness: Any, shift: float) -> Solve:
        inverse = np.linalg.inv(self.mass - shift * stiffness)
        return lambda rhs, guess, rtol: np.asarray(inverse @ rhs)


def test_example_a_method_in_time() -> None:
    method, start, counts = namespace("A method in time")["crank_nicolson"], np.array([1.0, 0.0]), (20, 40, 80)
    errors, between = [], []
    for steps in counts:
        done = list(method(Oscillator(), start, 0.0, 2.0, steps=steps))
        assert done[-1].s + done[-1].h == pytest.approx(2.0)
        exact = expm(np.array([[-0.4, 4.0], [-4.0, -0.4]])) @ start  # the matrices commute: exp of the integral
        errors.append(float(abs(done[-1].u1 - exact).max()))
        s = done[steps // 2]
        middle = s.s + 0.5 * s.h
        turned = middle + middle**2 / 2
        exact = expm(np.array([[-0.2 * middle, turned], [-turned, -0.2 * middle]])) @ start
        between.append(float(abs(s.dense(0.5) - exact).max()))
    for found in (errors, between):
        assert slope([1 / steps for steps in counts], found) == pytest.approx(2.0, abs=0.1)


def test_example_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "orders_of_elements.py").write_text(EXAMPLES["An experiment"], encoding="utf-8")
    monkeypatch.setattr(fh.experiments, "__path__", [*fh.experiments.__path__, str(tmp_path)])
    assert "orders-of-elements" in fh.experiments.names()
    trial = fh.experiments.run("orders-of-elements", quick=True)
    assert trial.as_expected
    assert [claim.control for claim in trial.claims] == [False, True]
    assert trial.title == "Values of P2 elements converge with the third power of the cells; those of P1 do not."
    assert fh.experiments.run("orders-of-elements", cells=(4, 8)).config.cells == (4, 8)
    fh.experiments.get("orders-of-elements").figure(trial).savefig(tmp_path / "figure.png")
    monkeypatch.delitem(sys.modules, "fem_hjb.experiments.orders_of_elements")


def rows(name: str, heading: str) -> list[list[str]]:
    """The first table under a heading, cell by cell; nothing if there is none."""
    part = f"{text(name)}\n## {heading}\n".split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = re.search(r"(^\|.*\n)+", part, re.MULTILINE)
    lines = table.group().splitlines() if table else []
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def test_the_table_of_folders_is_the_order_of_imports() -> None:
    table = rows("docs/architecture.md", "The folders of `fem_hjb`")
    named = [name.rstrip("/").removesuffix(".py") for row in table for name in re.findall(r"`([^`]+)`", row[0])]
    assert named == list(ORDER)


def test_where_to_look_first_is_there() -> None:
    table = rows("docs/architecture.md", "Where to look first")
    places = [name for row in table[1:] for name in re.findall(r"`([^`]+/[^`]+\.py)`", row[1])]
    assert len(places) > 8
    assert [name for name in places if not (PACKAGE / name).is_file()] == []


def test_the_changelog_says_where_names_have_moved() -> None:
    for old, new in rows("CHANGELOG.md", "Unreleased")[1:]:
        for folder in re.findall(r"^in `fh\.(\w+)`", new):
            for name in re.findall(r"`fh\.(\w+)`", old):
                assert hasattr(getattr(fh, folder), name), (name, folder)
                assert not hasattr(fh, name)
        for path in re.findall(r"fh\.((?:\w+\.)*\w+)", new):
            attrgetter(path)(fh)


@pytest.mark.parametrize("page", PAGES)
def test_names_and_files_that_the_pages_mention_exist(page: str) -> None:
    for path in re.findall(r"\bfh\.((?:\w+\.)*\w+)", text(page)):
        attrgetter(path)(fh)
    for module, names in re.findall(r"^from (fem_hjb[\w.]*) import (.*)$", text(page), re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(import_module(module), name), (module, name)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text(page)):
        assert ((ROOT / page).parent / link).exists(), link
    for file in re.findall(r"`((?:fem_hjb|tests|docs|benchmarks|notebooks)/[\w./]*)`", text(page)):
        assert (ROOT / file).exists(), file
