"""Pages that stand elsewhere in the repository: the notebooks, CONTRIBUTING.md, CHANGELOG.md.

They are copied under names that git ignores, with their links made those of the site; a link from a page of the site to
such a file leads to its page. So each text has one place, and its links work on the code host, too.
"""

import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
COPIES = {
    "CONTRIBUTING.md": "how-to/contribute.md",
    "CHANGELOG.md": "reference/changes.md",
    **{f"notebooks/{path.name}": f"tutorials/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))},
}
GENERATED = (*COPIES.values(), "gallery/index.md", "reference/command.md", "reference/zoo.md")
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")


def with_links(text: str, file: Path) -> str:
    """The text of a file of the repository, with its relative links made absolute ones of the site."""

    def changed(link: re.Match[str]) -> str:
        inside = os.path.relpath(file.parent / link[2], ROOT)
        page = {"README.md": "index.md", "docs/gallery": "gallery/index.md", **COPIES}.get(inside)
        if page is None and file.is_relative_to(DOCS):
            return link[0]
        return f"](/{page or os.path.relpath(ROOT / inside, DOCS)}{link[3] or ''})"

    return LINK.sub(changed, text)


def write(path: Path, text: str) -> None:
    """Write what is new, so that what has not changed is not built again."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def copied(app: Any) -> None:
    for source, page in COPIES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        write(DOCS / page, with_links(text, ROOT / source))


def read(app: Any, name: str, source: list[str]) -> None:
    if (DOCS / f"{name}.md").is_file():
        source[0] = with_links(source[0], DOCS / f"{name}.md")


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", lambda app, config: copied(app))
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
