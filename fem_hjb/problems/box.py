"""The box a process lives in, is reflected or stopped in, or that a solver cuts out of R^d; and its faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.support.checks import LARGEST, SMALLEST, UNITS, FloatArray, as_points, one_of, real_array
from fem_hjb.support.errors import DomainError
from fem_hjb.support.objects import Plain

ExitReward = Callable[[ArrayLike, FloatArray], ArrayLike]
"""g, a callable (t, x) -> (...) for points x (..., d) on absorbing faces."""

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

FACES = ("reflecting", "absorbing", "natural")


@final
@dataclass(frozen=True, eq=False, repr=False)
class Box(Plain):
    """The box prod_i [lower_i, upper_i], and what happens to a process at its faces.

    As `ControlProblem.domain` it says where the process itself lives; as an argument of a solver it is where R^d is
    truncated. `boundary` is one word for all faces, or one pair of words (lower face, upper face) for each axis:

    - "reflecting": normal reflection;
    - "absorbing": the process is stopped there, and collects `exit_reward` g(t, x), a callable (t, x) -> (...) like a
      running reward; None means 0;
    - "natural": no boundary, the process passes unhindered. Only such a face may lie at infinity; where it is finite a
      solver truncates there, where it is infinite a solver chooses.

    Raises `DomainError` for ill-formed corners, an infinite face that is not natural, an unknown word, and an exit
    reward that is not callable or that no absorbing face could pay.

    >>> half_line = Box([-np.inf], [0.0], boundary=[("natural", "absorbing")])
    >>> half_line.exited([[-2.0], [0.0], [3.0]]).tolist(), half_line.bounded
    ([False, True, True], False)
    """

    lower: ArrayLike
    upper: ArrayLike
    boundary: str | Sequence[tuple[str, str]] = "reflecting"
    exit_reward: ExitReward | None = None
    dim: int = field(init=False)
    faces: tuple[tuple[str, str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        lower, upper = _corner(self.lower, "lower", -np.inf), _corner(self.upper, "upper", np.inf)
        if lower.shape != upper.shape:
            raise DomainError(f"Box: lower has shape {lower.shape} but upper has shape {upper.shape}")
        if not (lower < upper).all():
            raise DomainError(f"Box: lower must be below upper on every axis, got {lower} and {upper}")
        edges = (upper / 2 - lower / 2)[np.isfinite(upper) & np.isfinite(lower)] * 2.0
        if not ((edges >= SMALLEST) & (edges <= LARGEST)).all():
            raise DomainError(f"Box: the edges of {lower} to {upper} are too short or too long{UNITS}")
        put = object.__setattr__
        put(self, "lower", lower)
        put(self, "upper", upper)
        put(self, "dim", lower.size)
        put(self, "faces", _faces(self.boundary, lower.size))
        if not isinstance(self.boundary, str):
            put(self, "boundary", self.faces)
        for name, bound, words in zip(("lower", "upper"), self.bounds, zip(*self.faces, strict=True), strict=True):
            for axis, word in enumerate(words):
                if word != "natural" and not np.isfinite(bound[axis]):
                    raise DomainError(
                        f"Box: {name} must be finite at {word} faces, got {bound[axis]} on axis {axis}; only a"
                        " 'natural' face may be infinite"
                    )
        if self.exit_reward is not None and not callable(self.exit_reward):
            raise DomainError(f"Box: exit_reward must be a callable or None, got {type(self.exit_reward).__name__}")
        if self.exit_reward is not None and not self.absorbing:
            raise DomainError(f"Box: exit_reward needs an absorbing face, got boundary={self.boundary!r}")

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Lower and upper corner, each (d,), read-only; infinite at some natural faces, perhaps."""
        return np.asarray(self.lower), np.asarray(self.upper)

    @property
    def absorbing(self) -> bool:
        """Whether any face absorbs."""
        return bool(self.where("absorbing").any())

    @property
    def place(self) -> str:
        """Where it is, in words."""
        lower, upper = self.bounds
        return f"the box {lower.tolist()} to {upper.tolist()}"

    @property
    def bounded(self) -> bool:
        """Whether every face is finite."""
        return bool(np.isfinite(self.bounds).all())

    def along(self, axes: Sequence[int]) -> Box:
        """The box of some of the axes. DomainError if it pays an exit reward, which depends on all of them."""
        if self.exit_reward is not None:
            raise DomainError("a box with an exit reward cannot be restricted to some of its axes")
        lower, upper = self.bounds
        index = list(axes)
        return Box(lower[index], upper[index], boundary=[self.faces[k] for k in index])

    def where(self, word: str) -> BoolArray:
        """Which faces are of this kind, shape (2, d): the lower ones, the upper ones."""
        one_of(word, "Box: face", FACES, DomainError)
        return _of_kind(self.faces, word).copy()

    def has(self, word: str) -> bool:
        """Whether any face is of this kind."""
        return bool(self.where(word).any())

    def contains(self, x: ArrayLike) -> BoolArray:
        """Whether each point (..., d) lies in the closed box, shape (...)."""
        points, (lower, upper) = as_points(x, self.dim), self.bounds
        return np.asarray(((points >= lower) & (points <= upper)).all(axis=-1))

    def exited(self, x: ArrayLike) -> BoolArray:
        """Whether each point (..., d) lies on or behind an absorbing face, shape (...)."""
        points, (lower, upper) = as_points(x, self.dim), self.bounds
        at_lower, at_upper = self.where("absorbing")
        return np.asarray(((at_lower & (points <= lower)) | (at_upper & (points >= upper))).any(axis=-1))

    def absorb(self, x: ArrayLike) -> FloatArray:
        """Move points behind an absorbing face to the nearest point of it; the others stay."""
        points, (at_lower, at_upper) = as_points(x, self.dim), _of_kind(self.faces, "absorbing")
        if not (at_lower | at_upper).any():
            return np.array(points)
        lower, upper = self.bounds
        return np.clip(points, np.where(at_lower, lower, -np.inf), np.where(at_upper, upper, np.inf))

    def mirror(self, x: ArrayLike) -> FloatArray:
        """Fold points back by reflection at the reflecting faces, as often as it takes; other faces let them pass."""
        points, (at_lower, at_upper) = np.array(as_points(x, self.dim)), _of_kind(self.faces, "reflecting")
        for axis in np.flatnonzero(at_lower | at_upper):
            (low, high), along = (float(bound[axis]) for bound in self.bounds), points[..., axis]
            beyond = (at_lower[axis] & (along < low)) | (at_upper[axis] & (along > high))
            out = along[beyond]  # those inside stay to the bit
            if not out.size:
                continue
            if at_lower[axis] and at_upper[axis]:
                phase = np.mod(out - low, 2.0 * (high - low))
                points[beyond, axis] = low + np.minimum(phase, 2.0 * (high - low) - phase)
            else:
                points[beyond, axis] = 2.0 * (low if at_lower[axis] else high) - out
        return points

    def inside(self, x: ArrayLike) -> FloatArray:
        """Points folded back at reflecting faces, and moved to the absorbing faces that they are behind."""
        return self.absorb(self.mirror(x))

    def on_absorbing(self, x: FloatArray) -> list[FloatArray]:
        """Points (n, d), moved to each absorbing face."""
        found: list[FloatArray] = []
        for side, axis in np.argwhere(self.where("absorbing")).tolist():
            face = np.array(x)
            face[:, axis] = self.bounds[side][axis]
            found.append(face)
        return found


@lru_cache(maxsize=256)
def _of_kind(faces: tuple[tuple[str, str], ...], word: str) -> BoolArray:
    """`Box.where`, which is asked at every step of a path; read-only."""
    found = np.asarray(word == np.asarray(faces).T)
    found.setflags(write=False)
    return found


def _corner(value: ArrayLike, name: str, far: float) -> FloatArray:
    """A frozen corner (d,) of a box, its entries finite or `far`."""
    raw = real_array(value, f"Box: {name}", DomainError).copy()
    if raw.ndim != 1 or raw.size == 0:
        raise DomainError(f"Box: {name} must have shape (d,) with d >= 1, got shape {raw.shape}")
    if not (np.isfinite(raw) | (raw == far)).all():
        raise DomainError(f"Box: {name} must be finite, or {far} at a natural face, got {raw.tolist()}")
    raw.setflags(write=False)
    return raw


def _faces(boundary: Any, dim: int) -> tuple[tuple[str, str], ...]:
    """The words of the (lower, upper) face on each of `dim` axes."""
    if isinstance(boundary, str):
        word = one_of(boundary, "Box: boundary", FACES, DomainError)
        return ((word, word),) * dim
    pairs = list(boundary) if isinstance(boundary, Sequence | np.ndarray) else []
    if len(pairs) != dim or any(isinstance(pair, str) or np.shape(pair) != (2,) for pair in pairs):
        raise DomainError(
            f"Box: boundary must be one word, or a pair (lower face, upper face) of words for each of the {dim} axes,"
            f" got {boundary!r}"
        )
    low, high = ([one_of(pair[i], "Box: boundary", FACES, DomainError) for pair in pairs] for i in (0, 1))
    return tuple(zip(low, high, strict=True))
