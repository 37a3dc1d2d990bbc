"""What is typed after fem-hjb: problems, KEY=VALUE, options that contradict each other, and errors in its words."""

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, overload

import typer

from fem_hjb.problems import zoo
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.files import load_solution
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.errors import FemHjbError, ProblemError

# Arguments of the package that are options of the command; errors name them as they are typed.
_ARGUMENTS = (
    *("cells", "dim", "element", "estimator", "form", "level", "max_dofs", "max_seconds", "mesh", "rtol", "rtol_time"),
    *("samples", "smoothing", "steps", "time_cells", "times", "x0"),
)
_NAMES = "|".join(_ARGUMENTS)
_ON_A_MESH = ("--mesh", "--cells", "--element")
_FOR_MESHES = ("--steps", "--rtol-time")
_FOR_TOLERANCES = ("--form", "--max-dofs")


ProblemName = Annotated[
    str,
    typer.Argument(metavar="PROBLEM", help="A name that `fem-hjb zoo` lists, or PATH.py:NAME for your own problem."),
]
Dim = Annotated[
    int | None, typer.Option(help="Dimension of the state; by default what the problem is known for.", min=1)
]
Params = Annotated[
    list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the problem; may be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Do not report the work on stderr.")]
MaxSeconds = Annotated[
    float,
    typer.Option(
        help="After so many seconds each solution is the best so far, which its status says, or there is none."
    ),
]
SECONDS = 300.0
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class OptionError(FemHjbError, ValueError):
    """Options that make no sense, alone or together."""


def in_options(message: str) -> str:
    """A message of the package with its arguments written as options.

    >>> in_options("element must be one of 'P1', got 'P9'; use element='P1' or leave out max_dofs=")
    "--element must be one of 'P1', got 'P9'; use --element P1 or leave out --max-dofs"
    """
    message = re.sub(rf"(?<![-\w])({_NAMES})='?([\w.+-]*)'?", lambda m: f"{_option(m[1])} {m[2]}".rstrip(), message)
    return re.sub(rf"^({_NAMES})(?= must | '| makes)", lambda m: _option(m[1]), message)


def _option(argument: str) -> str:
    return "--" + argument.replace("_", "-")


def route(options: Mapping[str, Any]) -> str:
    """ "refine", "mesh" or "boxes": what options ("--mesh" and so on, None if not given) ask for.

    Raises OptionError if they contradict each other.
    """
    given = [name for name, value in options.items() if value]
    for pair in (("--mesh", "--cells"), ("--steps", "--rtol-time")):
        if set(pair) <= set(given):
            raise OptionError(f"give {pair[0]} or {pair[1]}, not both")
    if "--refine" in given:
        if "--rtol" not in given:
            raise OptionError("--refine needs --rtol, the error that is asked for")
        _refuse(given, ("--form", *_FOR_MESHES), "not with --refine, which chooses the time steps and solves for f")
        return "refine"
    asked = [name for name in _ON_A_MESH if name in given]
    if asked:
        _refuse(given, _FOR_TOLERANCES, f"not with {' and '.join(asked)}: a given mesh is kept, and f solved for")
        return "mesh"
    _refuse(given, _FOR_MESHES, "for meshes: give --mesh, --cells or --element, too")
    return "boxes"


def _refuse(given: Sequence[str], refused: Sequence[str], why: str) -> None:
    found = [name for name in given if name in refused]
    if found:
        raise OptionError(f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} {why}")


def pairs(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """KEY=VALUE, ... as a mapping; values are Python's literals, and what is none is text."""
    found: dict[str, Any] = {}
    for item in given or ():
        key, equals, text = item.partition("=")
        if not (key.isidentifier() and equals):
            raise OptionError(f"{option} must be KEY=VALUE, got {item!r}")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def numbers(text: str, option: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as cause:
        raise OptionError(f"{option} must be numbers separated by commas, such as 0.5,1, got {text!r}") from cause


@overload
def problem_named(name: str, dim: int | None, given: Sequence[str] | None) -> ControlProblem: ...
@overload
def problem_named(name: str, dim: int | None, given: Sequence[str] | None, kind: type[ExitProblem]) -> ExitProblem: ...
def problem_named(
    name: str,
    dim: int | None,
    given: Sequence[str] | None,
    kind: type[ControlProblem | ExitProblem] = ControlProblem,
) -> ControlProblem | ExitProblem:
    """A problem of the zoo, or PATH.py:NAME, a problem or a function that makes one, with these parameters."""
    parameters = pairs(given, "--param")
    if dim is not None and parameters.get("dim", dim) != dim:
        raise OptionError(f"--dim is {dim}, but --param says dim={parameters['dim']!r}; give one of them")
    path, _, attribute = name.rpartition(":")
    if name.endswith(".py"):
        raise ProblemError(f"{name} names a file but no problem in it; give {name}:NAME")
    if not path.endswith(".py"):
        return (zoo.get if kind is ControlProblem else zoo.get_exit)(name, **{"dim": dim, **parameters})
    made = loaded(Path(path), attribute)
    if not isinstance(made, kind) and callable(made):
        made = _built(name, made, dim, parameters)
    elif parameters:
        raise ProblemError(f"{name} is not a function, so it takes no --param")
    if not isinstance(made, kind):
        article = "a" if kind is ControlProblem else "an"
        raise ProblemError(
            f"{name} must be {article} {kind.__name__} or a function that returns one, got {type(made).__name__}"
        )
    if dim not in (None, made.dim):
        raise ProblemError(f"{name} has dimension {made.dim}, but --dim is {dim}")
    return made


def solution_in(path: str | Path, problem: ControlProblem) -> Solution | ProductSolution:
    """A solution with a horizon in a file that the command or `save_solution` wrote."""
    found = load_solution(path, problem)
    if not isinstance(found, Solution | ProductSolution):
        raise OptionError(f"{path} holds a {type(found).__name__}, which has no horizon; give what fem-hjb solve wrote")
    return found


def _built(name: str, build: Callable[..., Any], dim: int | None, parameters: dict[str, Any]) -> Any:
    """What a user's function makes; it is told --dim if it takes `dim`."""
    signature = inspect.signature(build)
    if dim is not None and "dim" in signature.parameters:
        parameters = {"dim": dim, **parameters}
    try:
        signature.bind(**parameters)
    except TypeError as cause:
        hint = "; give --dim" if "dim" in signature.parameters and "dim" not in parameters else ""
        raise OptionError(f"{name} is called as {signature}, but {cause}{hint}") from cause
    return build(**parameters)


def loaded(path: Path, attribute: str) -> Any:
    """The attribute of a Python file, which is run for it."""
    if not path.is_file():
        raise ProblemError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location("fem_hjb_user_problem", path)
    if spec is None or spec.loader is None:
        raise ProblemError(f"{path} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise ProblemError(f"{path} defines no {attribute!r}")
    return getattr(module, attribute)
