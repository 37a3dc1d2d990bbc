"""What a user meets first: the names on top, what importing them costs, and signatures that can be read."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fem_hjb as fh

FUNCTIONS = [name for name in fh.__all__ if callable(getattr(fh, name)) and not isinstance(getattr(fh, name), type)]


def typed() -> Iterator[tuple[str, str]]:
    """(name, module) of what the block for readers of types imports."""
    tree = ast.parse(Path(fh.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def test_every_name_on_top_is_there_and_nothing_else_shows() -> None:
    assert len(fh.__all__) < 40
    for name in fh.__all__:
        assert getattr(fh, name) is not None
    assert set(dir(fh)) == {*fh.__all__, "__version__"}
    with pytest.raises(AttributeError, match="module 'fem_hjb' has no attribute 'solv'"):
        fh.solv  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'solv'"):
        exec("from fem_hjb import solv")


def test_what_is_loaded_late_is_what_readers_of_types_see() -> None:
    seen = dict(typed())
    assert {name if name != "plotting" else "plot" for name in seen} == set(fh.__all__)
    for name, place in seen.items():
        module, _, attribute = place.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        assert getattr(fh, "plot" if name == "plotting" else name) is found


@pytest.mark.parametrize("folder", [name for name in fh.__all__ if inspect.ismodule(getattr(fh, name))])
def test_namespaces_say_what_is_in_them(folder: str) -> None:
    module = getattr(fh, folder)
    assert module.__doc__
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None


def loaded_after(code: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(told.stdout.split())


def test_importing_the_package_loads_nothing_that_is_not_needed() -> None:
    alone = loaded_after("import fem_hjb")
    assert not {"numpy", "scipy", "matplotlib", "skfem", "meshio", "typer"} & alone
    solving = loaded_after("import fem_hjb as fh\nfh.solve, fh.fit, fh.compare, fh.control_error, fh.zoo, fh.paths")
    assert "fem_hjb.reference.solve" in solving
    assert not {"matplotlib", "typer", "fem_hjb.plotting", "fem_hjb.experiments", "dask", "zarr"} & solving
    assert "matplotlib" in loaded_after("import fem_hjb as fh\nfh.plot")  # so that the test can see it


@pytest.mark.parametrize("name", [*FUNCTIONS, "ControlProblem", "Space", "Solution"])
def test_signatures_can_be_read(name: str) -> None:
    assert len(str(inspect.signature(getattr(fh, name)))) < 600
