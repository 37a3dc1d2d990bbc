"""The borders of the package: networks and tensors that come in, solutions that go out.

`fem_hjb.interop.torch` takes modules and functions of tensors as coefficients of a problem, and makes modules of
solutions; `fem_hjb.interop.jax` makes functions of solutions that JAX differentiates and compiles. Each is loaded when
it is first used, and says what to install if its framework is missing.
"""

import importlib
from typing import Any

_MODULES = ("jax", "torch")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return [*_MODULES]
