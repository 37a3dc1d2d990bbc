"""Formulas as MathML, which browsers show by themselves: no script, no font, nothing loaded from elsewhere."""

import re
import unicodedata
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

ALPHABETS = {"script": "SCRIPT", "sans-serif": "SANS-SERIF", "double-struck": "DOUBLE-STRUCK", "bold": "BOLD"}
LETTER = re.compile(r'<mi mathvariant="([\w-]+)">([A-Za-z])</mi>')


def letter(found: re.Match[str]) -> str:
    """A letter of another alphabet by its own character, as browsers do not heed `mathvariant`."""
    alphabet, case = ALPHABETS.get(found[1]), "CAPITAL" if found[2].isupper() else "SMALL"
    if alphabet is None:
        return found[0]
    for start in (f"MATHEMATICAL {alphabet}", alphabet):  # some stand among the letterlike symbols
        try:
            return f"<mi>{unicodedata.lookup(f'{start} {case} {found[2].upper()}')}</mi>"
        except KeyError:
            continue
    return found[0]


def mathml(tex: str, display: str) -> str:
    """A formula of TeX. ValueError where something is not understood."""
    found = LETTER.sub(letter, convert(tex, display=display))
    if "\\" in re.sub("<[^>]*>", "", found):
        raise ValueError(f"this formula has a command that is not understood: {tex}")
    return found


def inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("config-inited", lambda app, config: setattr(config, "html_math_renderer", "mathml"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
