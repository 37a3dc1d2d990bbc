"""The registry of named problems: entering one, from inside or outside the package, finding and building it."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, final

from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import positive_integer
from fem_hjb.support.errors import ProblemError
from fem_hjb.support.memory import require_room

Problem = TypeVar("Problem", ControlProblem, ExitProblem)
Builder = Callable[..., ControlProblem | ExitProblem]
"""A function (dim, *, parameter=default, ...) -> a problem of that dimension."""
AnyBuilder = TypeVar("AnyBuilder", bound=Builder)

_KINDS: tuple[type, ...] = (ControlProblem, ExitProblem)


@final
@dataclass(frozen=True)
class _Entry:
    build: Builder
    dims: tuple[int, ...] | None  # None: every dimension
    default_dim: int
    kind: type


_REGISTRY: dict[str, _Entry] = {}


def register(
    *, dims: tuple[int, ...] | None = None, default_dim: int | None = None, kind: type = ControlProblem
) -> Callable[[AnyBuilder], AnyBuilder]:
    """Decorator that enters a problem, the package's or a user's: a function (dim, *, ...) -> ControlProblem.

    The name is that of the function, dashes for underscores; the first line of its docstring is what `describe` says;
    its keyword parameters, all with defaults, are those of `get`. `dims` is where the problem makes sense, None all.
    `default_dim` is the dimension `get` takes when none is asked for; None: the first of `dims`, or 1. Entering the
    same function again, as a notebook does, replaces it. `kind` is ControlProblem, or ExitProblem for `get_exit`.

        @fem_hjb.zoo.register(dims=(1, 2))
        def steered_walk(dim, *, target=1.0):
            "Brownian motion paid for ending near a target."
            return fem_hjb.ControlProblem(dim=dim, ...)

        fem_hjb.zoo.get("steered-walk", target=0.5)

    Raises `ProblemError` if what is decorated is no such function, if its name is taken, for ill-formed dimensions, or
    another kind.
    """
    if not any(kind is known for known in _KINDS):
        raise ProblemError(f"kind must be ControlProblem or ExitProblem, got {kind!r}")
    places = None if dims is None else _dims(dims)
    first = 1 if places is None else places[0]
    chosen = first if default_dim is None else positive_integer(default_dim, "default_dim", ProblemError)
    if places is not None and chosen not in places:
        raise ProblemError(f"default_dim must be one of dims = {places}, got {default_dim!r}")

    def enter(build: AnyBuilder) -> AnyBuilder:
        name = _name(build)
        taken = _REGISTRY.get(name)
        if taken is not None and _origin(taken.build) != _origin(build):
            raise ProblemError(f"there is a problem called {name!r} already, {'.'.join(_origin(taken.build))}")
        _REGISTRY[name] = _Entry(build, places, chosen, kind)
        return build

    return enter


def _dims(given: Any) -> tuple[int, ...]:
    if not isinstance(given, tuple | list) or len(given) == 0:
        raise ProblemError(f"dims must be a tuple of dimensions or None, got {given!r}")
    return tuple(positive_integer(d, "dims", ProblemError) for d in given)


def _origin(build: Builder) -> tuple[str, str]:
    return str(getattr(build, "__module__", "")), str(getattr(build, "__qualname__", ""))


def _name(build: Any) -> str:
    """The name of a builder; ProblemError unless it is a named function (dim, *, parameter=default, ...)."""
    name = str(getattr(build, "__name__", type(build).__name__)).replace("_", "-")
    if not callable(build) or re.fullmatch("[a-z][a-z0-9-]*", name) is None:
        raise ProblemError(f"a problem is a function whose name is of small letters, digits and _, got {build!r}")
    taken = list(inspect.signature(build).parameters.values())
    if [p.name for p in taken[:1]] != ["dim"] or any(
        p.kind != p.KEYWORD_ONLY or p.default is p.empty for p in taken[1:]
    ):
        raise ProblemError(
            f"the builder of {name!r} must take dim and then keyword parameters with defaults, (dim, *, size=1.0, ...),"
            f" got {inspect.signature(build)}"
        )
    return name


def names() -> tuple[str, ...]:
    """The names `get` knows."""
    return tuple(name for name, entry in _REGISTRY.items() if entry.kind is ControlProblem)


def exit_names() -> tuple[str, ...]:
    """The names `get_exit` knows."""
    return tuple(name for name, entry in _REGISTRY.items() if entry.kind is ExitProblem)


def dims(name: str) -> tuple[int, ...] | None:
    """The dimensions in which the problem makes sense; None stands for all of them."""
    return _entry(name).dims


def describe(name: str) -> str:
    """One line on the problem, the first of its docstring.

    >>> describe("lq")
    'Linear drift, quadratic rewards.'
    """
    return (inspect.getdoc(_entry(name).build) or name).splitlines()[0]


def source(name: str) -> str:
    """Where the problem comes from: what its docstring says after "Source:", or nothing.

    >>> source("two-moons")[:28]
    'make_moons of scikit-learn ('
    """
    return " ".join((inspect.getdoc(_entry(name).build) or "").partition("Source:")[2].split())


def parameters(name: str) -> dict[str, Any]:
    """The keyword parameters of the problem and their defaults."""
    signature = inspect.signature(_entry(name).build)
    return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


def get(name: str, dim: int | None = None, **params: Any) -> ControlProblem:
    """The problem `name` in dimension `dim` (default: that of its source for a benchmark, else the smallest).

    Raises `ProblemError` for an unknown name (naming the close ones), a dimension in which the problem makes no sense,
    an unknown or ill-formed parameter (naming those accepted), and a builder that returns something else.
    """
    return _made(name, dim, params, ControlProblem)


def get_exit(name: str, dim: int | None = None, **params: Any) -> ExitProblem:
    """The exit problem `name` in dimension `dim`; arguments and errors as those of `get`.

    >>> get_exit("brownian-exit", dim=2).domain.bounds
    (array([-1., -1.]), array([1., 1.]))
    """
    return _made(name, dim, params, ExitProblem)


def _made(name: str, dim: int | None, params: dict[str, Any], kind: type[Problem]) -> Problem:
    entry = _entry(name)
    if entry.kind is not kind:
        has, getter = ("a horizon", "get") if entry.kind is ControlProblem else ("no horizon but an exit", "get_exit")
        raise ProblemError(f"the problem {name!r} has {has}: {getter}({name!r}) returns it")
    accepted = ", ".join(f"{key}={value!r}" for key, value in parameters(name).items())
    unknown = sorted(set(params) - set(parameters(name)))
    if unknown:
        raise ProblemError(f"problem {name!r} has no parameter {', '.join(map(repr, unknown))}; it accepts {accepted}")
    d = positive_integer(entry.default_dim if dim is None else dim, "dim", ProblemError)
    require_room((d, d), f"dim={d}:", ProblemError)
    if entry.dims is not None and d not in entry.dims:
        raise ProblemError(f"problem {name!r} makes sense in dim = {', '.join(map(str, entry.dims))} only, got dim={d}")
    try:
        problem = entry.build(d, **params)
        if not isinstance(problem, kind) or problem.dim != d:
            got = f"one of dim={problem.dim}" if isinstance(problem, kind) else type(problem).__name__
            article = "a" if kind is ControlProblem else "an"
            raise ProblemError(f"its builder must return {article} {kind.__name__} of this dimension, got {got}")
        return problem
    except ProblemError as cause:
        raise type(cause)(f"problem {name!r}, dim={d}: {cause} (parameters and defaults: {accepted})") from cause


def _entry(name: str) -> _Entry:
    if not isinstance(name, str) or name not in _REGISTRY:
        close = difflib.get_close_matches(str(name), _REGISTRY, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(_REGISTRY)}"
        raise ProblemError(f"there is no problem called {name!r}; {hint}")
    return _REGISTRY[name]
