"""The architecture, held on the source without importing anything: folders and modules use only what is above them."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import fem_hjb

# From the ground up. A folder may import from the folders above it, a module of it also from those to its left.
ORDER = {
    "support": "errors memory checks matrices progress calls files archives objects threads",
    "problems": (
        "divergence box curved locate cells cell_measure facets arcs patches mesh_domain laws kernels problem exit "
        "stages probing fingerprint blocks rewards closed_form linear manufactured gauge mixtures tilted_density zoo"
    ),
    "paths": (
        "steering breaks walls stiffness simulate likelihood exit_paths tree_sum extent tails growth tilted met"
        " sources stored"
    ),
    "spaces": (
        "axes line recovery meshes basis mesh_cells mesh_names mesh_files dictionary features mesh spectral tensor "
        "space panels"
    ),
    "stepping": "adaptive lawson esdirk implicit",
    "solutions": (
        "density estimate checks norms solution staged steady ground bridge comparison compare packing packing_steady "
        "stage_problems packing_staged files"
    ),
    "reference": (
        "faces box_background box_form mesh_in_time mesh_linear mesh_operators "
        "box_asked box_speed box_coefficients box_taming box_panel box_adjoint box_averages box_grading box_layer "
        "box_faces box_sizes box_running box_run box_paths box_march box_cost box_moments box_steps box_single "
        "box_plans box_judge box_tolerance "
        "fokker_planck_start fokker_planck_grids fokker_planck_panels fokker_planck_mesh fokker_planck "
        "tolerance feynman_kac "
        "steady_operators steady_checks exit_equation steady_ladder exit_box exit_mesh ground_equation ground_state "
        "mesh_boundary mesh_backward mesh_estimate mesh_truncation mesh_solve mesh_refine "
        "pathwise residual solve stages bridge"
    ),
    "learning": (
        "linear_set bernstein constraints dissection fronts factors bordered active_sets alternating interior_point "
        "constrained_solve forms inequality measures samples scatter moments simplices gram solvers estimators system "
        "smoothing population solve_system folds matching recipe selection witness held_out verification automatic "
        "fit"
    ),
    "evaluation": (
        "controlled_law expectation control_error objectives weights weighted_walk residual_score exit_walk walk_sums "
        "certificate certify certify_exit policy_value"
    ),
    "stationary": "",
    "plotting": "pictures fields verdicts animation steady",
    "interop": "grids arrays vtk steady export precision schedules torch jax network_class",
    "atlas": "settings entries forever collection tables pictures",
    "experiments": (
        "trial certificates coercivity critical_radius ellipticity harder_than_regression high_dimension iteration "
        "linear_quadratic long_horizon observation_times rotated_wells mixture_tilts networks score_error "
        "self_mitigation suboptimality two_dimensions two_equations two_sided"
    ),
    "cli_input": "",
    "cli_output": "",
    "cli_certify": "",
    "cli_export": "",
    "cli_steady": "",
    "cli_atlas": "",
    "cli_demo": "",
    "cli": "",
}
# A module that is itself a folder has an order of its own.
INNER = {
    "problems.zoo": (
        "registry coefficients linear_quadratic log_cost meshed metastable mixtures options points reflected "
        "slits targets until_exit wells soc_matching"
    )
}
APART = ("reference", "learning")  # these two never import each other
PACKAGE = Path(fem_hjb.__file__).parent
Place = tuple[str, str]


def imported(source: str, package: str) -> set[Place]:
    """(folder, name) of what a module imports from `package`, anywhere in it; ("", "") for the package itself."""
    found: set[tuple[str, ...]] = set()
    names: list[list[str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [a.name.split(".") for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add((".", "."))
        elif isinstance(node, ast.ImportFrom):
            names += [[*(node.module or "").split("."), a.name] for a in node.names]
    depth = len(package.split("."))
    found |= {tuple(name[depth:]) for name in names if name[:depth] == package.split(".")}
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
                inside = name == module and len(path.relative_to(root).parts) > 2
                lower = name in modules and module in modules and modules.index(name) < modules.index(module)
                fits = module == "__init__" or inside or lower
            else:
                fits = other in order and folders.index(other) < folders.index(folder)
            if not fits or {folder, other} == set(apart):
                target = f"{other}.{name}" if other == folder else other
                found.append(f"{folder}.{module} imports {target or package}".replace(". ", " "))
    return found


def test_imports_only_go_downwards() -> None:
    assert offences(PACKAGE, ORDER, "fem_hjb", APART) == []
    for place, names in INNER.items():
        assert offences(PACKAGE.joinpath(*place.split(".")), dict.fromkeys(names.split(), ""), f"fem_hjb.{place}") == []


def test_the_order_names_each_folder_and_module_once_and_all_exist() -> None:
    for folder, names in ORDER.items():
        modules = names.split()
        assert len(set(modules)) == len(modules)
        inner = {path.parent.name for path in (PACKAGE / folder).glob("*/__init__.py")}
        assert {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"} | inner == set(modules)
        assert inner == {place.split(".")[1] for place in INNER if place.split(".")[0] == folder}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} | folders == set(ORDER)


def test_tests_stand_where_their_folder_does() -> None:
    mirrored = {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}
    assert mirrored <= set(ORDER)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first statement after the docstring to the end."""
    first = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - first[0].lineno + 1 if first else 0


def test_modules_and_functions_are_short() -> None:
    sources = {path.relative_to(PACKAGE): path.read_text(encoding="utf-8") for path in PACKAGE.glob("**/*.py")}
    assert [str(path) for path, text in sources.items() if text.count("\n") > 450] == []
    functions = [
        (str(path), node.name, body_lines(node))
        for path, text in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 500
    assert [found for found in functions if found[2] > 50] == []


def test_nobody_imports_a_module_that_reconfigures_jax() -> None:
    names = [path.name for path in PACKAGE.glob("**/*.py") if "skfem.autodiff" in path.read_text(encoding="utf-8")]
    assert names == []


HOUSE = {"low": "ground first", "left": "one", "right": "one two many", "cli": ""}
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
    "right/many/__init__": "from pack.right.many.first import a\n",
    "right/many/first": "from pack.right.two import a\n",
    "right/many/second": "from pack.right.many.first import a\n",
    "cli": "from pack.left import one\nfrom pack import right\n",
}


def written(folder: Path, sources: Mapping[str, str]) -> Path:
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
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
        ("right/one", "from pack.right.many.first import a\n", "right.one imports right.many"),
        ("right/many/first", "from pack.left.one import a\n", "right.many imports left"),
        ("right/stray", "import numpy\n", "right.stray has no place in the order"),
        ("stray", "import numpy\n", "stray has no place in the order"),
        ("cli", "from pack.cli import a\n", "cli imports cli"),
    ],
)
def test_the_checker_sees_an_offence(tmp_path: Path, module: str, source: str, expected: str) -> None:
    found = offences(written(tmp_path, {**SOUND, module: source}), HOUSE, "pack", ("left", "right"))
    assert [line.removesuffix(".a") if "cli imports" in line else line for line in found] == [expected]


def test_the_checker_sees_an_offence_inside_a_module_that_is_a_folder(tmp_path: Path) -> None:
    order = {"first": "", "second": ""}
    inner = written(tmp_path, SOUND) / "right" / "many"
    assert offences(inner, order, "pack.right.many") == []
    written(inner, {"first": "from pack.right.many.second import a\n"})
    assert offences(inner, order, "pack.right.many") == ["first imports second"]


def test_the_checker_accepts_a_sound_tree(tmp_path: Path) -> None:
    other = {"right/one": "from package_of_another_name import high\n"}
    assert offences(written(tmp_path, {**SOUND, **other}), HOUSE, "pack", ("left", "right")) == []
