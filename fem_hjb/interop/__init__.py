"""The borders of the package: networks and tensors that come in, solutions that go out.

`export` writes solutions for other programs: regular grids of value, control and densities, and files on the solution's
own mesh. `fem_hjb.interop.torch` takes modules and functions of tensors as coefficients of a problem, and makes modules
of solutions; `fem_hjb.interop.network_class` learns in classes of networks; `fem_hjb.interop.jax` makes functions of
solutions that JAX differentiates and compiles. Each is loaded when it is first used, and says what to install if its
framework is missing.
"""

import importlib
from typing import Any

from fem_hjb.interop.export import export

_MODULES = ("jax", "network_class", "torch")

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
