"""Whether arrays fit into memory, asked before they are made."""

import os
from collections.abc import Sequence

from fem_hjb.support.errors import FemHjbError


def available_memory() -> int | None:
    """The bytes of physical memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call, no such name, no answer
        return None


def require_memory(size: int, what: str, error: type[FemHjbError], hint: str = "") -> None:
    """`error` if `size` bytes are more than the machine has. What is below it may still not fit."""
    there = available_memory()
    if there is not None and size > there:
        raise error(f"{what} {_told(size)}, but this machine has {_told(there)} of memory{hint}")


def require_room(shape: Sequence[int], what: str, error: type[FemHjbError], hint: str = "") -> None:
    """`error` if an array of float64 of this shape does not fit into memory.

    >>> from fem_hjb.support.errors import SpaceError
    >>> require_room((10**9, 10**9), "n=10**9:", SpaceError)
    Traceback (most recent call last):
    ...
    fem_hjb.support.errors.SpaceError: n=10**9: an array of shape (1000000000, 1000000000) takes 8 EB, but ...
    """
    size = 8
    for length in shape:
        size *= int(length)
    require_memory(size, f"{what} an array of shape {tuple(map(int, shape))} takes", error, hint)


def _told(size: float) -> str:
    """A number of bytes in words.

    >>> _told(3 * 10**9)
    '3 GB'
    """
    power = max(0, min(6, (len(str(int(size))) - 1) // 3))
    return f"{size / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[power]}"
