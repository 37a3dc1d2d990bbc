"""Calling what a user wrote: arguments that cannot be changed, results as float64, failures told by a name."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.support.checks import FloatArray, real_array
from fem_hjb.support.errors import FemHjbError
from fem_hjb.support.progress import OutOfTimeError

_TORCH_HINT = (
    "; networks are handed over by fem_hjb.interop.torch, which makes tensors of their precision: as_field(net),"
    " as_reward(net), as_value(net)"
)


def call(
    name: str,
    function: Callable[..., ArrayLike],
    arguments: tuple[ArrayLike, ...],
    error: type[FemHjbError],
    *,
    passes: type[FemHjbError] | None = None,
    hint: str = "",
) -> FloatArray:
    """function(*arguments) as float64, where the last argument is x (..., d) and one before it, if any, the times t.

    Arrays are handed over read-only: what changes its argument in place fails instead of spoiling what the caller
    keeps; and with positive strides, as PyTorch has no others. Whatever the function raises, and whatever makes its
    result no array of real numbers, is the cause of an `error` that says which function, at which times, and for which
    shape of x. Errors `passes`, by default of the type `error`, are those of something of the package inside, and come
    through as they are, as does that time is over.
    """
    kept = tuple(_read_only(argument) for argument in arguments)
    through = error if passes is None else passes
    try:
        given = function(*kept)
    except (through, OutOfTimeError):
        raise
    except Exception as cause:  # a callable is any code
        told = f"{type(cause).__name__}: {cause}"
        hint = _TORCH_HINT if _of_torch(function, cause) else hint
        raise error(f"{name} failed {where(arguments)}: {told}{hint}") from cause
    if type(given) is np.ndarray and given.dtype == np.float64:
        return given  # the usual case, which is to cost nothing
    kind = str(getattr(given, "dtype", ""))
    if kind.endswith("float16"):  # torch.float16 and bfloat16, too
        raise error(
            f"{name} returned {kind}, which has three digits; compute with float32 or float64 (NumPy's functions of"
            " booleans return float16: write 1.0 * (x > 0))"
        )
    return real_array(given, f"what {name} returns", error)


def where(arguments: tuple[ArrayLike, ...]) -> str:
    """At which times and for which shape of x.

    >>> where((0.5, np.zeros((3, 2)))), where((np.array([0.0, 0.5, 1.0]), np.zeros((3, 2))))
    ('at t=0.5 for x of shape (3, 2)', 'at times t of shape (3,) in [0, 1] for x of shape (3, 2)')
    """
    shape = f"for x of shape {np.shape(arguments[-1])}"
    if len(arguments) == 1:
        return shape
    t = np.asarray(arguments[0])
    if t.ndim == 0 or t.size == 0:
        return f"at t={t.item():g} {shape}" if t.size else shape
    return f"at times t of shape {t.shape} in [{t.min():g}, {t.max():g}] {shape}"


def _of_torch(function: Any, cause: Exception) -> bool:
    """Whether it is a module of PyTorch, or failed inside of PyTorch, which need not be installed for this."""
    names = [kind.__module__ for kind in type(function).__mro__]
    trace = cause.__traceback__
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    return any(name.partition(".")[0] == "torch" for name in names)


def _read_only(argument: Any) -> Any:
    """A view through which nobody writes, of a copy if it runs backwards; numbers as they are."""
    if not isinstance(argument, np.ndarray):
        return argument
    if any(stride < 0 for stride in argument.strides):
        argument = np.ascontiguousarray(argument)
    if not argument.flags.writeable:
        return argument
    view = argument.view()
    view.setflags(write=False)
    return view
