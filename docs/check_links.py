"""Check a site that has been built: every link, picture and style within it leads to a file, every #anchor is there.

`python docs/check_links.py build/site` prints what does not, and ends with the exit code 1 if there is any. Links to
elsewhere are counted, not followed.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The ids of a page, and what it links to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids, self.links = {"", "top"}, set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("id", "name") and value:
                self.ids.add(value)
            elif key in ("href", "src") and value:
                self.links.add(value)


def broken(site: Path) -> tuple[list[str], int]:
    """Links that lead nowhere, and how many lead elsewhere."""
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    found, elsewhere = [], set()
    for file, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                elsewhere.add(link)
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            ids = pages[target].ids if target in pages else {parts.fragment}
            if not target.exists() or unquote(parts.fragment) not in ids:
                found.append(f"{file.relative_to(site.resolve())}: {link}")
    return found, len(elsewhere)


if __name__ == "__main__":
    wrong, outside = broken(Path(sys.argv[1]))
    print(*wrong, f"{len(wrong)} broken links; {outside} addresses elsewhere, not followed", sep="\n")
    sys.exit(bool(wrong))
