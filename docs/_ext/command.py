"""The pages of the command and of the zoo, from what these say of themselves."""

import inspect
import re
from typing import Any

from docstrings import markup
from pages import DOCS, write

COMMAND = """# The command

`fem-hjb` solves, learns, compares, certifies and writes from a shell. PROBLEM is a name of the [zoo](zoo.md), or
`my_file.py:problem` for one of yours. Results go to stdout, what is going on to stderr; an error is one line, with the
exit code 2. With `--json` a command prints JSON and nothing else.

"""
ZOO = """# The zoo

Problems by name: `fh.zoo.get("lq", dim=2, temperature=0.5)`, or `fem-hjb solve lq --dim 2 --param temperature=0.5`.
Where the value is known, `problem.exact` is it, and the tests check it against the equation and by simulation.
Exit problems, the last ones, are those of `fh.zoo.get_exit` and `fem-hjb exit`.
[CONTRIBUTING](../../CONTRIBUTING.md) says how to add one of yours.

"""


def plain(text: str) -> str:
    """Text as Markdown shows it as it is."""
    return re.sub(r"([\\*_|<>\[\]{}$#^~])", r"\\\1", " ".join(text.split()))


def command_page() -> str:
    import typer

    from fem_hjb.cli import app

    root = typer.main.get_command(app)
    context = type(root).context_class(root, info_name="fem-hjb")
    parts = [COMMAND]
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inside = type(command).context_class(command, info_name=name, parent=context)
        usage = " ".join(command.collect_usage_pieces(inside))
        parts.append(f"## fem-hjb {name}\n\n```text\nfem-hjb {name} {usage}\n```\n\n")
        parts += [f"{plain(paragraph)}\n\n" for paragraph in inspect.cleandoc(command.help or "").split("\n\n")]
        for param in command.get_params(inside):
            record = param.get_help_record(inside)
            if record and param.name != "help":
                parts.append(f"`{record[0]}`\n: {plain(record[1]) or '–'}\n\n")
    return "".join(parts)


def zoo_page() -> str:
    from fem_hjb.problems import zoo
    from fem_hjb.problems.zoo.registry import _REGISTRY

    parts = [ZOO]
    for name in [*sorted(zoo.names()), *sorted(zoo.exit_names())]:
        where = zoo.dims(name)
        title, _, rest = (inspect.getdoc(_REGISTRY[name].build) or "").partition("\n")
        given = ", ".join(f"{key}={value!r}" for key, value in zoo.parameters(name).items())
        text = "\n".join(markup(rest.strip().splitlines()))
        parts.append(f"## {name}\n\n{plain(title)}\n\n```{{eval-rst}}\n{text}\n```\n\n")
        parts.append(f"In d = {', '.join(map(str, where)) if where else 'any'}. Parameters: `{given or 'none'}`.\n\n")
    return "".join(parts)


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", lambda app, config: write(DOCS / "reference" / "command.md", command_page()))
    app.connect("config-inited", lambda app, config: write(DOCS / "reference" / "zoo.md", zoo_page()))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
