"""The gallery: scripts of docs/gallery, each with a docstring and ten lines at most that end in a figure.

A script is run when it, or the package, has changed. Its picture and its lines go to a page together, so that no
picture is shown that these lines do not make.
"""

import ast
import hashlib
import runpy
import time
from pathlib import Path
from typing import Any

from pages import DOCS, ROOT, write
from sphinx.util import logging

GALLERY = DOCS / "gallery"
HEAD = """# Gallery

Each picture is made by the lines below it, in a second or few, when this site is built. Copy them, change them.

"""


def told(script: Path) -> tuple[str, str, str]:
    """Title, what it shows, and the lines of a script."""
    text = script.read_text(encoding="utf-8")
    title, _, rest = (ast.get_docstring(ast.parse(text)) or "").partition("\n")
    return title.rstrip("."), " ".join(rest.split()), text.split('"""', 2)[2].strip()


def picture(script: Path, state: str) -> float:
    """Run a script and keep its figure, unless that has been done in this state; returns the CPU seconds it took."""
    from matplotlib import pyplot

    stamp, key = script.with_suffix(".stamp"), hashlib.sha256((state + script.read_text()).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == key and script.with_suffix(".png").is_file():
        return 0.0
    started = time.process_time()
    pyplot.close("all")
    runpy.run_path(str(script))
    if not pyplot.gcf().axes:
        raise ValueError(f"{script} leaves no figure")
    pyplot.gcf().savefig(script.with_suffix(".png"), dpi=130)
    pyplot.close("all")
    stamp.write_text(key)
    return time.process_time() - started


def made(app: Any) -> None:
    import matplotlib

    matplotlib.use("Agg")
    state = hashlib.sha256()
    for path in sorted((ROOT / "fem_hjb").rglob("*.py")):
        state.update(path.read_bytes())
    thumbs, parts = [], []
    for script in sorted(GALLERY.glob("*.py")):
        (title, text, code), name = told(script), script.stem
        seconds = picture(script, state.hexdigest())
        if seconds:
            logging.getLogger(__name__).info("gallery: %s, %.1f CPU seconds", name, seconds)
        place = name.partition("_")[2].replace("_", "-")
        thumbs.append(f'<a href="#{place}"><img src="../_images/{name}.png" alt=""><span>{title}</span></a>')
        parts.append(
            f"({place})=\n## {title}\n\n{text}\n\n"
            f"```{{image}} {name}.png\n:alt: {title}\n:class: picture\n```\n\n```python\n{code}\n```\n"
        )
    overview = '<div class="thumbs">\n' + "\n".join(thumbs) + "\n</div>\n"
    write(GALLERY / "index.md", f"{HEAD}```{{raw}} html\n{overview}```\n\n" + "\n".join(parts))


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", lambda app, config: made(app))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
