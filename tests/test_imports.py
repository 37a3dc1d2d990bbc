"""The architecture, held on the source without importing anything: folders and modules use only what is above them."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import fem_hjb

# From the ground up. A folder may import from the folders above it, a module of it also from those to its left.
ORDER = {
    "support": "errors checks files progress",
    "problems": "divergence laws problem blocks closed_form gauge mixtures zoo",
    "paths": "simulate tree_sum extent sources",
    "spaces": "line locate recovery meshes basis mesh_files features mesh spectral tensor space",
    "stepping": "esdirk exponential radau",
    "solutions": "density estimate solution compare files",
    "reference": (
        "box_background box_grids box_operators mesh_operators box_newton fokker_planck box_solve box_tolerance "
        "tolerance mesh_boundary mesh_backward mesh_estimate mesh_truncation mesh_solve mesh_refine solve"
    ),
    "learning": (
        "constraints forms inequality measures active_sets gram estimators system population solve_system fit"
    ),
    "evaluation": "control_error",
    "plotting": "pictures",
    "experiments": (
        "trial coercivity critical_radius harder_than_regression high_dimension iteration observation_times "
        "self_mitigation"
    ),
    "cli_input": "",
    "cli_output": "",
    "cli": "",
}
APART = ("reference", "learning")  # these two never import each other
PACKAGE = Path(fem_hjb.__file__).parent
Place = tuple[str, str]


def imported(source: str, package: str) -> set[Place]:
    """(folder, name) of what a module imports from `package`, anywhere in it; ("", "") for the package itself."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:3]) for a in node.names if a.name.split(".")[0] == package}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add((".", "."))
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if parts[0] == package:
                found |= {(*parts[1:], a.name)[:2] for a in node.names}
    return {(*place, "", "")[:2] for place in found}


def offences(root: Path, order: Mapping[str, str], package: str, apart: Sequence[str] = ()) -> list[str]:
    """One line for each import that does not go to an earlier place, and for each module that has none."""
    folders = list(order)
    found: list[str] = []
    for path in sorted(root.glob("**/*.py")):
        folder, module = (*path.relative_to(root).with_suffix("").parts, "")[:2]
        if folder == "__init__":
            continue
        modules = order.get(folder, "").split()
        if folder not in order or (module not in modules and module not in ("", "__init__")):
            found.append(f"{folder}.{module} has no place in the order".replace(". ", " "))
            continue
        for other, name in sorted(imported(path.read_text(encoding="utf-8"), package)):
            if other == folder and folder != module:  # the folder's own front door says what is behind it
                fits = module == "__init__" or (name in modules and modules.index(name) < modules.index(module))
            else:
                fits = other in order and folders.index(other) < folders.index(folder)
            if not fits or {folder, other} == set(apart):
                target = f"{other}.{name}" if other == folder else other
                found.append(f"{folder}.{module} imports {target or package}".replace(". ", " "))
    return found


def test_imports_only_go_downwards() -> None:
    assert offences(PACKAGE, ORDER, "fem_hjb", APART) == []


def test_the_order_names_each_folder_and_module_once_and_all_exist() -> None:
    for folder, names in ORDER.items():
        modules = names.split()
        assert len(set(modules)) == len(modules)
        assert {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"} == set(modules)
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} | folders == set(ORDER)


def test_tests_stand_where_their_folder_does() -> None:
    mirrored = {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}
    assert mirrored <= set(ORDER)


def test_nobody_imports_a_module_that_reconfigures_jax() -> None:
    names = [path.name for path in PACKAGE.glob("**/*.py") if "skfem.autodiff" in path.read_text(encoding="utf-8")]
    assert names == []


HOUSE = {"low": "ground first", "left": "one", "right": "one two", "cli": ""}
SOUND = {
    "__init__": "from pack.low import a\nfrom pack.right import b\n",
    "low/__init__": "from pack.low.first import a\n",
    "low/ground": "import numpy\n",
    "low/first": "from pack.low.ground import a\nfrom pack.low import ground\n",
    "left/__init__": "",
    "left/one": "from pack.low.first import a\nfrom pack import low\n",
    "right/__init__": "from pack.right import two\n",
    "right/one": "import pack.low.ground\n",
    "right/two": "from pack.right.one import a\n",
    "cli": "from pack.left import one\nfrom pack import right\n",
}


def written(folder: Path, sources: Mapping[str, str]) -> Path:
    for name, text in sources.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("low/ground", "from pack.right.one import b\n", "low.ground imports right"),
        ("low/ground", "from pack import right\n", "low.ground imports right"),
        ("low/ground", "from pack.low.first import b\n", "low.ground imports low.first"),
        ("low/ground", "from pack.low import a\n", "low.ground imports low.a"),
        ("low/first", "from .ground import b\n", "low.first imports ."),
        ("low/ground", "import pack.left.one as m\n", "low.ground imports left"),
        ("low/ground", "def late():\n    from pack.left import b\n    return b\n", "low.ground imports left"),
        ("low/ground", "from pack.low.ground import b\n", "low.ground imports low.ground"),
        ("low/ground", "import pack\n", "low.ground imports pack"),
        ("right/one", "from pack.left.one import a\n", "right.one imports left"),
        ("right/one", "from pack.cli import a\n", "right.one imports cli"),
        ("right/stray", "import numpy\n", "right.stray has no place in the order"),
        ("stray", "import numpy\n", "stray has no place in the order"),
        ("cli", "from pack.cli import a\n", "cli imports cli"),
    ],
)
def test_the_checker_sees_an_offence(tmp_path: Path, module: str, source: str, expected: str) -> None:
    found = offences(written(tmp_path, {**SOUND, module: source}), HOUSE, "pack", ("left", "right"))
    assert [line.removesuffix(".a") if "cli imports" in line else line for line in found] == [expected]


def test_the_checker_accepts_a_sound_tree(tmp_path: Path) -> None:
    other = {"right/one": "from package_of_another_name import high\n"}
    assert offences(written(tmp_path, {**SOUND, **other}), HOUSE, "pack", ("left", "right")) == []
