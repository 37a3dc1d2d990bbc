"""Formulas as MathML, which browsers show by themselves: no script, no font, nothing loaded from elsewhere."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def mathml(tex: str, block: bool) -> str:
    r"""A formula of TeX; \big and \Big are left out, as brackets grow by themselves. What is not understood raises."""
    return tex2mathml(re.sub(r"\\[bB]ig[lr]?(?![a-zA-Z])", "", tex), as_block=block)


def inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("config-inited", lambda app, config: setattr(config, "html_math_renderer", "mathml"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
