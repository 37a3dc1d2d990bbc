"""The flowchart of the architecture as SVG: the code host draws Mermaid by itself, a page without scripts does not.

Nodes, edges and their labels are those of the Mermaid text; PLACES says where nodes stand, one for each of them.
"""

import html
import re
from typing import Any

from docutils import nodes

PLACES = {  # column and row
    **{
        "problem": (1.0, 0.0),
        "paths": (0.0, 1.0),
        "space": (1.0, 1.0),
        "measure": (0.0, 2.0),
        "reference": (2.45, 2.0),
    },
    **{
        "learning": (0.0, 3.0),
        "solution": (1.0, 4.0),
        "compare": (0.3, 5.0),
        "evaluation": (1.7, 5.0),
        "out": (1.0, 6.0),
    },
}
WIDTH, HEIGHT, ROW, COLUMN = 190, 46, 78, 230
NODE = re.compile(r'(\w+)\["([^"]+)"\]')
EDGE = re.compile(r'^(\w+) -- ?"?([^">]*)"? ?-*> (\w+)$')


def svg(text: str) -> str:
    """An SVG of a Mermaid flowchart of named nodes and arrows. KeyError for a node that has no place."""
    labels = dict(NODE.findall(text))
    edges = [EDGE.match(line.strip()) for line in NODE.sub(r"\1", text).splitlines()[1:]]
    places = {name: (COLUMN * PLACES[name][0] + WIDTH / 2, ROW * PLACES[name][1] + HEIGHT / 2) for name in labels}
    parts = []
    for source, told, target in (edge.groups() for edge in edges if edge):
        (x0, y0), (x1, y1) = places[source], places[target]
        if y0 == y1:
            side = 1 if x1 > x0 else -1
            x0, x1 = x0 + side * WIDTH / 2, x1 - side * WIDTH / 2
        else:
            y0, y1 = y0 + HEIGHT / 2, y1 - HEIGHT / 2
        parts.append(f'<path d="M{x0} {y0} L{x1} {y1}" marker-end="url(#tip)"/>')
        if told:
            parts.append(f'<text x="{(x0 + x1) / 2}" y="{(y0 + y1) / 2 - 6}" class="told">{html.escape(told)}</text>')
    for name, (x, y) in places.items():
        first, _, second = labels[name].partition("<br/>")
        parts.append(f'<rect x="{x - WIDTH / 2}" y="{y - HEIGHT / 2}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        parts.append(f'<text x="{x}" y="{y - 4}">{html.escape(first)}</text>')
        parts.append(f'<text x="{x}" y="{y + 13}" class="told">{html.escape(second)}</text>')
    width = 2 + max(x for x, _ in places.values()) + WIDTH / 2
    height = 2 + max(y for _, y in places.values()) + HEIGHT / 2
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    tip += '<path d="M0 0 L8 4 L0 8 z" class="tip"/></marker>'
    box = f'viewBox="-1 -1 {width} {height}" role="img" aria-label="How data flow"'
    return f'<svg class="flowchart" {box}><defs>{tip}</defs>{"".join(parts)}</svg>'


def drawn(app: Any, doctree: nodes.document) -> None:
    for node in list(doctree.findall(nodes.literal_block)):
        if node.get("language") == "mermaid":
            node.replace_self(nodes.raw("", svg(node.astext()), format="html"))


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-read", drawn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
