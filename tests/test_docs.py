"""The pages of docs: all in a table of contents, links that lead somewhere, code that runs, no name missing."""

import ast
import importlib.util
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest

import fem_hjb as fh

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# What the build copies or writes into docs, and git ignores: page -> what it is made of.
MADE = {
    "how-to/contribute": "CONTRIBUTING.md",
    "reference/changes": "CHANGELOG.md",
    "reference/command": "docs/_ext/command.py",
    "reference/zoo": "docs/_ext/command.py",
    "gallery/index": "docs/_ext/pictures.py",
    **{f"tutorials/{path.stem}": f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")},
}
WRITTEN = sorted(path for path in DOCS.rglob("*.md") if str(path.relative_to(DOCS).with_suffix("")) not in MADE)
PAGES = [*WRITTEN, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
GALLERY = sorted((DOCS / "gallery").glob("*.py"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def contents(page: Path) -> list[str]:
    """What a page's tables of contents name, relative to docs."""
    found = re.findall(r"^```{toctree}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for part in found for line in part.splitlines() if line and not line.startswith(":")]
    names = [re.sub(r".*<(.*)>", r"\1", line) for line in lines]
    return [str((page.parent / name).resolve().relative_to(DOCS)) for name in names]


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as the code host and the site make them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head) for head in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page: Path, text: str) -> list[str]:
    """Relative links of a page to files or anchors that are not there."""
    found = []
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text):
        file = (page.parent / target).resolve()
        if file.is_relative_to(DOCS):
            made = MADE.get(re.sub(r"\.(md|ipynb)$", "", str(file.relative_to(DOCS))))
            file = ROOT / made if made else file
        there = not target or file.exists()
        if there and anchor:
            there = anchor in anchors(file.read_text(encoding="utf-8") if target else text)
        if not there:
            found.append(f"{target}#{anchor}")
    return found


def test_each_page_is_in_one_table_of_contents() -> None:
    listed = [name for page in WRITTEN for name in contents(page)]
    pages = [str(page.relative_to(DOCS).with_suffix("")) for page in WRITTEN]
    assert sorted([*listed, "index"]) == sorted([*pages, *MADE])
    assert [name for name, source in MADE.items() if not (ROOT / source).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen() -> None:
    text = "# One\n[a](theory.md) [b](no.md) [c](trust.md#a-learned-solution) [d](trust.md#no) [e](#one) [f](#two)"
    assert broken(DOCS / "page.md", text) == ["no.md#", "trust.md#no", "#two"]


def documented() -> set[str]:
    """Full names that the reference documents, with the names of `fem_hjb` for its folders."""
    found = set()
    for page in (DOCS / "reference").glob("*.md"):
        module = ""
        for kind, name in re.findall(r"^\.\. (\w+):: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            if kind == "currentmodule":
                module = name
            elif kind.startswith("auto") or kind == "data":
                full = f"{module}.{name}"
                assert full not in found, f"{full} is documented twice"
                found.add(full)
    return found


def test_every_public_name_is_in_the_reference() -> None:
    there = documented()
    wanted = {f"fem_hjb.{name}" for name in fh.__all__ if name not in (*fh._FOLDERS, "zoo", "fokker_planck")}
    for folder in (
        "problems",
        "paths",
        "spaces",
        "learning",
        "solutions",
        "plot",
        "interop",
        "evaluation",
        "stationary",
    ):
        module = import_module("fem_hjb.evaluation") if folder == "evaluation" else getattr(fh, folder)
        names = {name for name in module.__all__ if name != "zoo"}
        shared = {name for name in names if f"fem_hjb.{name}" in wanted and getattr(fh, name) is getattr(module, name)}
        wanted |= {f"fem_hjb.{folder}.{name}" for name in names - shared}
    wanted |= {f"fem_hjb.zoo.{name}" for name in fh.zoo.__all__} | {"fem_hjb.fokker_planck.solve"}
    errors = {name for name in vars(fh.errors) if name.endswith("Error")} - {"FemHjbError"}
    wanted |= {f"fem_hjb.errors.{name}" for name in errors}
    tree = ast.parse((ROOT / "fem_hjb" / "interop" / "torch.py").read_text(encoding="utf-8"))  # torch may be missing
    names = next(ast.literal_eval(line.value) for line in tree.body if ast.unparse(line).startswith("__all__"))
    wanted |= {f"fem_hjb.interop.torch.{name}" for name in names}
    assert wanted - there == set()
    for full in sorted(there - wanted):
        module, _, name = full.rpartition(".")
        if module not in ("fem_hjb.interop.torch", "fem_hjb.interop.network_class", "fem_hjb.interop.jax"):
            assert hasattr(
                import_module(module.replace("fem_hjb.fokker_planck", "fem_hjb.reference.fokker_planck")), name
            )


@pytest.mark.parametrize("page", [page for page in HOW_TO if page.stem not in ("network", "contribute")], ids=name_of)
def test_the_code_of_a_how_to_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where meshes are
    names: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks or page.stem == "index"
    for block in blocks:
        exec(compile(block, name_of(page), "exec"), names)


def test_the_start_page_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL | re.M)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/index.md", "exec"), names)
    assert names["solution"].status == "ok"


def test_pictures_of_the_gallery_have_a_title_and_ten_lines_at_most() -> None:
    assert len(GALLERY) >= 16
    titles = []
    for script in GALLERY:
        text = script.read_text(encoding="utf-8")
        title, _, shown = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")
        assert re.fullmatch(r"[A-Z].{5,60}[.?]", title), script
        assert shown, script
        code = [line for line in text.split('"""')[2].splitlines() if re.match(r"(?!import |from |#)\s*\S", line)]
        assert len(code) <= 10, script
        assert all(len(line) <= 120 and ";" not in line for line in code), script
        titles.append(title)
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("script", GALLERY[6:7], ids=lambda path: path.stem)
def test_a_script_of_the_gallery_ends_in_a_figure(script: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.close("all")
    exec(compile(script.read_text(encoding="utf-8"), script.name, "exec"), {"__name__": "picture"})
    assert pyplot.gcf().axes
    pyplot.close("all")


def tool(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that builds the site, of those that need no Sphinx."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    spec = importlib.util.spec_from_file_location(Path(path).stem, DOCS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_a_built_site_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text('<p id="here"></p><a href="b.html#there"></a><a href="#here"></a>')
    (tmp_path / "b.html").write_text(
        '<a href="a.html"></a><a href="#gone"></a><img src="no.png"><a href="https://x.y">'
    )
    found, elsewhere = tool("check_links.py", monkeypatch).broken(tmp_path)
    assert sorted(found) == ["a.html: b.html#there", "b.html: #gone", "b.html: no.png"]
    assert elsewhere == 1


def test_docstrings_become_markup_that_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tool("_ext/docstrings.py", monkeypatch)
    text = """The |x|^2 of `solve`, see arXiv 2509.02528.

        d_t v + <b, grad v> = 0

    Raises
    ------
    ProblemError : never *.
    """
    lines = "\n".join(line.removeprefix("    ") for line in text.splitlines())
    assert "\n".join(module.markup(lines.splitlines())) == (
        "The \\|x\\|^2 of ``solve``\\ , see `arXiv 2509.02528 <https://arxiv.org/abs/2509.02528>`__.\n\n"
        ".. code-block:: text\n\n    d_t v + <b, grad v> = 0\n\n"
        ".. rubric:: Raises\n\nProblemError\n    never \\*.\n"
    )
    assert module.signature(fh.plot.ticks_at, "function") == ("(axis: Axis, values: ArrayLike)", "None")


def test_the_page_of_the_command_has_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    page = tool("_ext/command.py", monkeypatch).command_page()
    for name in ("compare", "solve", "exit", "ground-state", "demo", "certify", "export", "atlas", "experiment", "zoo"):
        assert f"## fem-hjb {name}\n" in page
    assert "`--rtol <float>`" in page
    zoo = tool("_ext/command.py", monkeypatch).zoo_page()
    assert [name for name in (*fh.zoo.names(), *fh.zoo.exit_names()) if f"## {name}\n" not in zoo] == []
