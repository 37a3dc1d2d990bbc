"""What objects that hold arrays share: a short `repr`, and arrays that stay read-only when copied or unpickled."""

import copyreg
import textwrap
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

_LINES = 5
_WIDTH = 98
_ENTRIES = 9  # arrays with more of them are described, not listed


def read_only(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    """A view of a mapping through which nobody writes."""
    return MappingProxyType(mapping)


# Python neither pickles nor deep-copies such views by itself.
copyreg.pickle(MappingProxyType, lambda view: (read_only, (dict(view),)))


class Plain:
    """Base of objects that hold read-only arrays.

    Copying or unpickling an array makes it writeable; here those directly held become read-only again. `repr` names
    the fields of a dataclass, which must then say `repr=False`, or else the public attributes, in five lines at most.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
        self.__dict__.update(state)

    def __repr__(self) -> str:
        shown = (
            [f.name for f in fields(self) if f.repr] if is_dataclass(self) else [k for k in vars(self) if k[0] != "_"]
        )
        return short_repr(self, {name: brief(getattr(self, name)) for name in shown})


def short_repr(of: object, parts: dict[str, str]) -> str:
    """Type(name=text, ...) in five lines at most."""
    text = f"{type(of).__name__}({', '.join(f'{name}={text}' for name, text in parts.items())})"
    return "\n".join(textwrap.wrap(text, _WIDTH, subsequent_indent="    ", max_lines=_LINES, placeholder=" ...)"))


def brief(value: Any) -> str:
    """A number, array, callable or object in a few words, on one line.

    >>> brief(np.eye(2)), brief(np.zeros(20)), brief(0.25)
    ('[[1, 0], [0, 1]]', '<(20,) within [0, 0]>', '0.25')
    """
    if isinstance(value, np.ndarray):
        if value.size > _ENTRIES:
            return f"<{value.shape} within [{value.min():.4g}, {value.max():.4g}]>"
        return _listed(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Plain):
        return textwrap.shorten(repr(value), 80, placeholder=" ...)")
    if callable(value) and not isinstance(value, type):
        return callable_name(value)
    return textwrap.shorten(repr(value), 80, placeholder=" ...")


def callable_name(function: Callable[..., Any]) -> str:
    """What a callable is called: function, Type.method, or the type of a callable object; a partial as its function."""
    if isinstance(function, partial):
        return callable_name(function.func)
    owner = getattr(function, "__self__", None)
    if owner is not None and hasattr(function, "__name__"):
        return f"{type(owner).__name__}.{function.__name__}"
    name = getattr(function, "__qualname__", None)
    return str(name).rpartition("<locals>.")[2] if name else type(function).__name__


def _listed(array: np.ndarray[Any, np.dtype[Any]]) -> str:
    if array.ndim == 0:
        return f"{array.item():.4g}"
    return (
        f"[{', '.join(_listed(row) for row in array)}]"
        if array.ndim > 1
        else f"[{', '.join(f'{v:.4g}' for v in array)}]"
    )
