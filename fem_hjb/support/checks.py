"""The checks every public boundary shares: shapes, finiteness, frozen arrays, random generators."""

import reprlib
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fem_hjb.support.errors import DomainError, FemHjbError, MeasureError, ProblemError
from fem_hjb.support.memory import require_room

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
SMALLEST, LARGEST = 1e-100, 1e100
"""Between these are the horizon, the temperature, the eigenvalues of diffusions and covariances, the edges of boxes."""

_LARGEST_RULE = 10_000
UNITS = f"; choose units in which numbers lie between {SMALLEST:g} and {LARGEST:g}"
Rng = int | np.random.Generator | np.random.SeedSequence


def real_array(value: Any, name: str, error: type[FemHjbError]) -> FloatArray:
    """`value` as float64, not copied if it is that already: numbers, lists, arrays, what NumPy makes an array of.

    Text, None, dates, ragged lists and complex numbers are refused.
    """
    try:
        raw = np.asarray(value)
        if raw.dtype.kind not in "biuf" and not _numbers(raw):
            raise TypeError("complex numbers" if np.iscomplexobj(raw) else f"{raw.dtype.name} is no type of numbers")
        return np.asarray(raw, dtype=np.float64)
    except Exception as cause:  # what becomes an array runs code of its own
        remedy = "; write .detach().cpu().numpy()" if hasattr(value, "detach") else ""
        raise error(f"{name} must be an array of real numbers, got {_told(value)} ({cause}){remedy}") from cause


def _numbers(raw: np.ndarray[Any, Any]) -> bool:
    """Whether an array of objects holds numbers: integers beyond 64 bits, fractions, decimals."""
    return raw.dtype == object and all(hasattr(entry, "__float__") for entry in raw.flat)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _told(value: Any) -> str:
    """What was given, in some eighty characters, whatever its own repr does."""
    return " ".join(_SHORT.repr(value).split())


def frozen_array(value: ArrayLike, name: str, shape: tuple[int, ...], error: type[FemHjbError]) -> FloatArray:
    """A read-only float64 copy of `value`, finite and of exactly this shape, or an error that says what was wrong."""
    array = real_array(value, name, error).copy()
    if array.shape != shape:
        raise error(f"{name} must have shape {shape}, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise error(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} non-finite entries")
    array.setflags(write=False)
    return array


def spd_array(value: ArrayLike, name: str, dim: int, error: type[ProblemError] = ProblemError) -> FloatArray:
    """A read-only symmetric positive definite matrix (dim, dim) from a number, a diagonal (dim,) or a matrix.

    `error` is raised if it is not definite or not symmetric, ProblemError if it has another shape.
    """
    raw = real_array(value, name, ProblemError)
    full = raw * np.eye(dim) if raw.ndim == 0 else np.diag(raw) if raw.shape == (dim,) else raw
    matrix = frozen_array(full, name, (dim, dim), ProblemError)
    scale = float(np.abs(matrix).max())
    lowest = float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[0]) if scale < np.finfo(np.float64).max / 2 else np.nan
    if not np.allclose(matrix, matrix.T, rtol=1e-10, atol=1e-14 * scale) or lowest <= 0:
        raise error(f"{name} must be symmetric positive definite, its smallest eigenvalue is {lowest:.3g}")
    if not (lowest >= SMALLEST and scale <= LARGEST):
        raise ProblemError(f"{name} has entries up to {scale:.3g} and the smallest eigenvalue {lowest:.3g}{UNITS}")
    return matrix


def positive_number(value: Any, name: str, error: type[FemHjbError]) -> float:
    """`value` as a positive finite float."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError) as cause:
        raise error(f"{name} must be a positive number, got {value!r}") from cause
    if not (np.isfinite(number) and number > 0):
        raise error(f"{name} must be a positive finite number, got {value!r}")
    return number


def number_in_units(value: Any, name: str, error: type[FemHjbError]) -> float:
    """`value` as a positive float with a square, and an inverse, that are far from the ends of the range of floats."""
    number = positive_number(value, name, error)
    if not SMALLEST <= number <= LARGEST:
        raise error(f"{name} is {number:.3g}{UNITS}")
    return number


def non_negative_number(value: Any, name: str, error: type[FemHjbError]) -> float:
    """`value` as a finite float >= 0; bools and text are refused."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < np.inf:
        raise error(f"{name} must be a finite number >= 0, got {value!r}")
    return float(value)


def require(value: Any, kind: type, asker: str, error: type[FemHjbError], hint: str = "") -> None:
    """`error`, which says who asked, unless `value` is of this kind."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise error(f"{asker} needs {article} {kind.__name__}, got {type(value).__name__}{hint}")


def positive_integer(value: Any, name: str, error: type[FemHjbError]) -> int:
    """`value` as a positive int; bools and floats with a fraction are refused."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise error(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def array_length(value: Any, name: str, error: type[FemHjbError], width: int = 1) -> int:
    """`value` as a positive int, if so many rows of `width` float64 fit into memory."""
    length = positive_integer(value, name, error)
    require_room((length, width), f"{name}={length}:", error)
    return length


def at_most(value: Any, most: int, name: str, error: type[FemHjbError]) -> int:
    """`value` as a positive int that is no larger than `most`."""
    number = positive_integer(value, name, error)
    if number > most:
        raise error(f"{name} must be at most {most}, got {number}")
    return number


def gauss_order(value: Any, name: str, error: type[FemHjbError]) -> int:
    """`value` as the number of points of a Gauss rule, whose points are eigenvalues of a matrix of that size."""
    return at_most(value, _LARGEST_RULE, name, error)


def finite_number(value: Any, name: str, error: type[FemHjbError]) -> float:
    """`value` as a finite float, of either sign; bools and text are refused."""
    if isinstance(value, bool):
        raise error(f"{name} must be a finite number, got {value!r}")
    return float(frozen_array(value, name, (), error))


def flag(value: Any, name: str, error: type[FemHjbError]) -> bool:
    """`value` if it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise error(f"{name} must be True or False, got {_told(value)}")
    return bool(value)


def one_of(value: Any, name: str, allowed: Sequence[str], error: type[FemHjbError]) -> str:
    """`value` if it is one of the allowed words."""
    if not isinstance(value, str) or value not in allowed:
        raise error(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return str(value)


def as_points(x: ArrayLike, dim: int) -> FloatArray:
    """`x` as float64 points in rows, shape (..., dim), finite."""
    points = real_array(x, "x", DomainError)
    if points.ndim == 0 or points.shape[-1] != dim:
        raise DomainError(
            f"x must hold points in rows, shape (..., {dim}), got shape {points.shape}"
            + ("; write x[:, None] for points on a line" if dim == 1 else "")
        )
    if not np.isfinite(points).all():
        raise DomainError(f"x must be finite, got {int((~np.isfinite(points)).any(-1).sum())} non-finite points")
    return points


def as_times(t: ArrayLike, horizon: float, name: str = "t") -> FloatArray:
    """`t` as float64 times within [0, horizon] (a rounding error of 1e-12 horizon is forgiven and moved inside)."""
    if isinstance(t, float) and 0.0 <= t <= horizon:
        return np.asarray(t)  # the usual case
    times = real_array(t, name, DomainError)
    slack = 1e-12 * horizon
    if not (np.isfinite(times).all() and (times >= -slack).all() and (times <= horizon + slack).all()):
        raise DomainError(f"{name} must lie in [0, {horizon:g}], got values in [{times.min():g}, {times.max():g}]")
    return np.clip(times, 0.0, horizon)


def as_seed(rng: Rng) -> int:
    """A seed to begin from again and again: an int is it itself, a SeedSequence gives the same one on every call."""
    return int(rng) if _is_seed(rng) else int(spawn_generators(rng, 1)[0].integers(2**63))


def _is_seed(rng: Rng) -> TypeGuard[int]:
    return isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0


def require_rng(rng: Any) -> None:
    """MeasureError if it is nothing that random numbers begin from."""
    if not (isinstance(rng, np.random.Generator | np.random.SeedSequence) or _is_seed(rng)):
        raise MeasureError(f"rng must be a non-negative int, a numpy Generator or a SeedSequence, got {rng!r}")


def spawn_generators(rng: Rng, count: int) -> list[np.random.Generator]:
    """`count` independent generators; an int or a SeedSequence gives the same ones on every call."""
    require_rng(rng)
    if isinstance(rng, np.random.Generator):
        return list(rng.spawn(count))
    if isinstance(rng, np.random.SeedSequence):
        fresh = np.random.SeedSequence(rng.entropy, spawn_key=rng.spawn_key, pool_size=rng.pool_size)
        return [np.random.default_rng(seed) for seed in fresh.spawn(count)]
    return [np.random.default_rng(seed) for seed in np.random.SeedSequence(int(rng)).spawn(count)]
