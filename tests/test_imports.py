"""The rooms of the package may use only the rooms above them: checked on the source, without importing anything."""

import ast
from pathlib import Path

import pytest

import fem_hjb

# From the ground up. A room may import from the rooms to its left, never from one to its right or from itself.
ORDER = [
    *("_checks", "_files", "laws", "problem", "cole_hopf", "closed_form", "mixtures", "zoo", "sde", "locate", "domain"),
    *("line_basis", "elements", "lagrange", "tensor_basis", "spectral", "spaces", "features", "recovery", "forms"),
    *("integrators", "collocation", "exponential", "mesh_operators", "box_operators", "density", "fokker_planck"),
    *("measures", "estimate", "solution", "compare", "newton", "background", "reach", "blocks", "box_reference"),
    *("mesh_reference", "grids", "tolerance", "refinement", "reference", "optimality", "samples", "reduction", "gram"),
    *("estimators", "assembly", "constraints", "active_sets", "inequality", "variational", "population", "learning"),
    *("io", "plotting", "trials", "experiments", "cli"),
]
PACKAGE = Path(fem_hjb.__file__).parent


def imported_rooms(source: str, package: str) -> set[str]:
    """The rooms of `package` a module imports, anywhere in it; `import package` itself counts as room ''."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            rooms |= {".".join(a.name.split(".")[1:2]) for a in node.names if a.name.split(".")[0] == package}
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level:
                rooms |= {parts[0]} if node.module else {a.name for a in node.names}
            elif parts == [package]:
                rooms |= {a.name for a in node.names}
            elif parts[0] == package:
                rooms.add(parts[1])
    return rooms


def offences(folder: Path, order: list[str], package: str) -> list[str]:
    """One line for each import that does not go to an earlier room, and for each module that has no place."""
    place = {room: i for i, room in enumerate(order)}
    found: list[str] = []
    for path in sorted(folder.glob("**/*.py")):
        room = path.relative_to(folder).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        if room not in place:
            found.append(f"{room} has no place in the order of rooms")
            continue
        for other in sorted(imported_rooms(path.read_text(encoding="utf-8"), package)):
            if place.get(other, len(order)) >= place[room]:
                found.append(f"{room} imports {other or package}")
    return found


def test_imports_only_go_downwards() -> None:
    assert offences(PACKAGE, ORDER, "fem_hjb") == []


def test_the_order_names_each_room_once_and_every_room_exists() -> None:
    assert len(set(ORDER)) == len(ORDER)
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} | folders == set(ORDER)


def test_nobody_imports_a_module_that_reconfigures_jax() -> None:
    names = [path.name for path in PACKAGE.glob("**/*.py") if "skfem.autodiff" in path.read_text(encoding="utf-8")]
    assert names == []


SOUND = {
    "__init__": "from pack.low import a\nfrom pack.high import b\n",
    "low": "import numpy\n",
    "mid": "from pack.low import a\n",
    "high": "import pack.mid\nfrom pack import low\n",
}


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("low", "from pack.high import b\n", ["low imports high"]),
        ("low", "from .mid import b\n", ["low imports mid"]),
        ("low", "from . import mid\n", ["low imports mid"]),
        ("low", "import pack.mid as m\n", ["low imports mid"]),
        ("low", "def late():\n    from pack.high import b\n    return b\n", ["low imports high"]),
        ("mid", "from pack.mid import a\n", ["mid imports mid"]),
        ("mid", "import pack\n", ["mid imports pack"]),
        ("mid", "from pack import high, low\n", ["mid imports high"]),
        ("stray", "import numpy\n", ["stray has no place in the order of rooms"]),
        ("mid", "from package_of_another_name import high\n", []),
    ],
)
def test_the_checker_sees_an_offence(tmp_path: Path, room: str, source: str, expected: list[str]) -> None:
    for name, text in {**SOUND, room: source}.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    assert offences(tmp_path, ["low", "mid", "high"], "pack") == expected


def test_the_checker_accepts_a_sound_tree(tmp_path: Path) -> None:
    for name, text in SOUND.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    assert offences(tmp_path, ["low", "mid", "high"], "pack") == []
