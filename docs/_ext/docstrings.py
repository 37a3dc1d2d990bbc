"""Docstrings as they are written here, plain text with equations, made the reStructuredText that autodoc reads.

What is plain: paragraphs, whose lines are kept apart where a line ends early; indented blocks, which are equations;
"name : what it is" under headings of dashes or by itself; lists of dashes; doctests; `names`, which become links where
they are documented. Signatures are taken from the source, with the names of types as they are written there.
"""

import ast
import inspect
import itertools
import re
import textwrap
from typing import Any

WIDE = 100  # a line that ends earlier, although the next word would have fitted, ends on purpose
TERM = re.compile(r"^(\S(?:(?! : )[^.]|\.(?=[\w.])){0,70}?) : (.*)", re.DOTALL)
ARXIV = re.compile(r"arXiv ((?:[a-z-]+/\d{7})|\d{4}\.\d{4,5})")
LINKS: dict[str, str] = {}  # short names of what is documented -> full ones


def documented() -> dict[str, str]:
    """Public names by their last part, where only one thing has it."""
    import fem_hjb as fh

    found = {name: f"fem_hjb.{name}" for name in fh.__all__ if name not in fh._FOLDERS}
    found |= {name: f"fem_hjb.errors.{name}" for name in vars(fh.errors) if name.endswith("Error")}
    found["FemHjbError"] = "fem_hjb.FemHjbError"
    for folder in ("problems", "paths", "spaces", "learning", "solutions", "evaluation"):
        for name in __import__(f"fem_hjb.{folder}", fromlist=["_"]).__all__:
            found.setdefault(name, f"fem_hjb.{folder}.{name}")
    return found


def inline(text: str) -> str:
    """A piece of text with what reStructuredText would take for markup escaped."""

    def literal(name: str) -> str:
        full = LINKS.get(name.removesuffix("()"))
        return f":py:obj:`{name} <{full}>`\\ " if full else f"``{name}``\\ "

    parts = re.split(r"`([^`]+)`", text)
    for k, part in enumerate(parts):
        if k % 2:
            parts[k] = literal(part)
        else:
            escaped = re.sub(r"([\\*|_`])", r"\\\1", part)
            parts[k] = ARXIV.sub(r"`arXiv \1 <https://arxiv.org/abs/\1>`__", escaped)
    return "".join(parts)


def paragraph(lines: list[str]) -> list[str]:
    joined = [lines[0].strip()]
    for line, after in itertools.pairwise(lines):
        early = len(line) + 1 + len(after.split()[0]) <= WIDE
        joined = [*joined, after.strip()] if early else [*joined[:-1], f"{joined[-1]} {after.strip()}"]
    if len(joined) == 1:
        return [inline(joined[0]), ""]
    return [*(f"| {inline(line)}" for line in joined), ""]


def definitions(lines: list[str]) -> list[str]:
    out: list[str] = []
    entries: list[list[str]] = []
    for line in lines:
        if line.startswith(" ") and entries:
            entries[-1].append(line.strip())
        else:
            entries.append([line])
    for entry in entries:
        text = " ".join(entry)
        found = TERM.match(text)
        if found and not text.startswith("- "):
            errors = [name in LINKS and name.endswith("Error") for name in found[1].split(", ")]
            term = ", ".join(f"`{name}`" for name in found[1].split(", ")) if all(errors) else found[1]
            out += [inline(term), f"    {inline(found[2])}", ""]
        else:
            out += [inline(text), ""]
    return out


def items(lines: list[str]) -> list[str]:
    out: list[str] = []
    for line in lines:
        out.append(f"- {inline(line[2:])}" if line.startswith("- ") else f"  {inline(line.strip())}")
    return [*out, ""]


def markup(lines: list[str]) -> list[str]:
    """A docstring, line by line, as reStructuredText."""
    out: list[str] = []
    for text in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        block = text.split("\n")
        if len(block) > 1 and re.fullmatch("-{3,}", block[1].strip()):
            out += [f".. rubric:: {inline(block[0].strip())}", ""]
            block = block[2:]
            if not block:
                continue
        if block[0].lstrip().startswith(">>>"):
            out += [*textwrap.dedent("\n".join(block)).split("\n"), ""]
        elif all(line.startswith("    ") for line in block):
            out += [".. code-block:: text", "", *block, ""]
        elif block[0].startswith("- "):
            out += items(block)
        elif any(line.startswith("- ") for line in block):
            first = next(k for k, line in enumerate(block) if line.startswith("- "))
            out += [*paragraph(block[:first]), *items(block[first:])]
        elif TERM.match("\n".join(block).replace("\n    ", " ")):
            out += definitions(block)
        else:
            out += paragraph(block)
    return out


def processed(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = markup(lines)


def tree(obj: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]


def signature(obj: Any, what: str) -> tuple[str, str]:
    """The arguments and what is returned, as the source has them; TypeError, OSError if there is none."""
    given = inspect.unwrap(getattr(obj, "__func__", obj))
    found = tree(given)
    arguments = found.args
    if what == "method" and not isinstance(inspect.getattr_static(obj, "__self__", None), type):
        for group in (arguments.posonlyargs, arguments.args):
            if group and group[0].arg in ("self", "cls"):
                del group[0]
                break
    return f"({ast.unparse(arguments)})", ast.unparse(found.returns) if found.returns else ""


def fields(cls: type) -> str:
    """The arguments of a dataclass, with the types that its fields are declared with."""
    types: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if base.__module__.startswith("fem_hjb"):
            types |= {
                line.target.id: ast.unparse(line.annotation)
                for line in tree(base).body
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
            }
    parts, keywords = [], False
    for one in inspect.signature(cls).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not keywords:
            keywords = True
            parts.append("*")
        default = (
            "" if one.default is one.empty else f" = {one.default!r}" if "<" not in repr(one.default) else " = ..."
        )
        parts.append(f"{one.name}: {types.get(one.name, 'Any')}{default}")
    return f"({', '.join(parts)})"


def signed(app: Any, what: str, name: str, obj: Any, options: Any, given: str, returns: str) -> Any:
    try:
        if what in ("function", "method"):
            return signature(obj, what)
        if what == "class" and getattr(obj, "_is_protocol", False):
            return "", ""
        if what == "class" and "__init__" in vars(obj):
            written = vars(obj)["__init__"].__code__.co_filename == inspect.getsourcefile(obj)
            return (signature(vars(obj)["__init__"], "method")[0] if written else fields(obj)), ""
    except (OSError, TypeError, SyntaxError, AttributeError):
        return None
    return None


def started(app: Any) -> None:
    import sys

    import fem_hjb as fh

    for name in fh._FOLDERS:  # autodoc imports what it documents by these names
        sys.modules[f"fem_hjb.{name}"] = getattr(fh, name)
    sys.modules["fem_hjb.zoo"], sys.modules["fem_hjb.fokker_planck"] = fh.zoo, fh.fokker_planck
    LINKS.update(documented())


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", started)
    app.connect("autodoc-process-docstring", processed)
    app.connect("autodoc-process-signature", signed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
