"""Results and trajectories in single .npz files: plain arrays and text (no pickle), written whole or not at all.

A result is read back bit for bit: the same coefficients on the same class. Callables are not stored, so the problem
is given again when a file is read; what its callables return at a few points must be what it was when it was written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final, overload

from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.stored import PATHS_KIND
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.fingerprint import Fingerprint, differences, fingerprint, steady_differences
from fem_hjb.problems.laws import Law
from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.problems.stages import Rewards, checked_rewards
from fem_hjb.solutions.bridge import Bridge
from fem_hjb.solutions.ground import GroundState
from fem_hjb.solutions.packing import Arrays, Packed, Text, named, pack, plain, unpack
from fem_hjb.solutions.packing_staged import pack_staged, rewards_differ, unpack_staged
from fem_hjb.solutions.packing_steady import (
    pack_bridge,
    pack_exit,
    pack_ground,
    steady_points,
    target_differs,
    unpack_bridge,
    unpack_exit,
    unpack_ground,
)
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.solutions.staged import StagedSolution
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution
from fem_hjb.support.archives import FilePath, read_archive, write_archive
from fem_hjb.support.checks import flag, require
from fem_hjb.support.errors import FemHjbError, OutputError

Savable = Solution | ProductSolution | StagedSolution | GroundState | Bridge | ExitSolution | ExitExpectation
Problem = ControlProblem | ExitProblem

_POINT = "problem_"  # begins the names of what the problem says at points


class OtherProblemWarning(UserWarning):
    """A solution was read for a problem that is not, or not known to be, the one it was written for."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Kind:
    """How results of some types are written and read.

    what : they are, in words.  of : the type of their problem, of which these `numbers` must be the same.
    points : what the problem of a result says; differs : (problem, result, stored) -> the names of what is otherwise.
    """

    what: str
    types: tuple[type, ...]
    of: type[Problem]
    numbers: tuple[str, ...]
    pack: Callable[[Any], Packed]
    unpack: Callable[..., Any]
    points: Callable[[Any], Fingerprint]
    differs: Callable[[Any, Any, Arrays], list[str]]


def _as_posed(problem: ControlProblem, bridge: Bridge, stored: Arrays) -> list[str]:
    """The potential stands for the terminal reward, which plays no role."""
    return differences(replace(problem, terminal_reward=bridge.potential, exact=None), stored)


_KINDS = {
    "fem_hjb solution 1": _Kind(
        what="a solution",
        types=(Solution, ProductSolution),
        of=ControlProblem,
        numbers=("dim", "horizon", "temperature"),
        pack=pack,
        unpack=unpack,
        points=lambda found: fingerprint(found.problem),
        differs=lambda problem, _, stored: differences(problem, stored),
    ),
    "fem_hjb staged solution 1": _Kind(
        what="a solution in stages",
        types=(StagedSolution,),
        of=ControlProblem,
        numbers=("dim", "horizon", "temperature"),
        pack=pack_staged,
        unpack=unpack_staged,
        points=lambda found: fingerprint(found.problem),
        differs=lambda problem, _, stored: differences(problem, stored),
    ),
    "fem_hjb ground state 1": _Kind(
        what="a ground state",
        types=(GroundState,),
        of=ControlProblem,
        numbers=("dim", "temperature"),
        pack=pack_ground,
        unpack=unpack_ground,
        points=lambda found: steady_points(found.function, found.problem, rewards=True),
        differs=lambda problem, _, stored: steady_differences(problem, stored),
    ),
    "fem_hjb bridge 1": _Kind(
        what="a bridge",
        types=(Bridge,),
        of=ControlProblem,
        numbers=("dim", "horizon", "temperature"),
        pack=pack_bridge,
        unpack=unpack_bridge,
        points=lambda found: fingerprint(found.problem),
        differs=_as_posed,
    ),
    "fem_hjb exit solution 1": _Kind(
        what="an exit solution",
        types=(ExitSolution,),
        of=ExitProblem,
        numbers=("dim", "temperature"),
        pack=pack_exit,
        unpack=lambda *given: unpack_exit(ExitSolution, *given),
        points=lambda found: steady_points(found.function, found.problem, rewards=True),
        differs=lambda problem, _, stored: steady_differences(problem, stored),
    ),
    "fem_hjb exit expectation 1": _Kind(
        what="an expectation until an exit",
        types=(ExitExpectation,),
        of=ExitProblem,
        numbers=("dim",),  # rewards and their temperature play no role
        pack=pack_exit,
        unpack=lambda *given: unpack_exit(ExitExpectation, *given),
        points=lambda found: steady_points(found.function, found.problem, rewards=False),
        differs=lambda problem, _, stored: steady_differences(problem, stored),
    ),
}


def save_solution(path: FilePath, solution: Savable) -> None:
    """Write a result: class, coefficients, gauge, method, status, checks, stats, and what its problem says at points.

    solution : a `Solution`, a product, a `StagedSolution`, an `ExitSolution`, `ExitExpectation`, `GroundState` or
        `Bridge`.

    Raises OutputError when the folder is missing or the file cannot be written; an old file then stays as it was.
    """
    found = [(name, kind) for name, kind in _KINDS.items() if isinstance(solution, kind.types)]
    if not found:
        raise OutputError(f"save_solution(path, solution) writes solutions, got {type(solution).__name__}")
    ((name, kind),) = found
    text, arrays = kind.pack(solution)
    text |= {"problem": _numbers(solution.problem, kind), "name": solution.problem.name}
    arrays |= {_POINT + point: array for point, array in kind.points(solution).items()}
    write_archive(path, name, text, arrays, default=plain)


@overload
def load_solution(
    path: FilePath, problem: ControlProblem, *, target: None = None, rewards: None = None, check: bool = True
) -> Solution | ProductSolution | GroundState: ...
@overload
def load_solution(
    path: FilePath, problem: ControlProblem, *, rewards: Rewards, target: None = None, check: bool = True
) -> StagedSolution: ...
@overload
def load_solution(
    path: FilePath, problem: ControlProblem, *, target: Law, rewards: None = None, check: bool = True
) -> Bridge: ...
@overload
def load_solution(
    path: FilePath, problem: ExitProblem, *, target: None = None, rewards: None = None, check: bool = True
) -> ExitSolution | ExitExpectation: ...
def load_solution(
    path: FilePath, problem: Problem, *, target: Law | None = None, rewards: Rewards | None = None, check: bool = True
) -> Savable:
    """Read what `save_solution` wrote, as what it was.

    problem : the one it was written for: drift, diffusion, rewards, initial law and domain are compared at the points
        that are in the file, each to a millionth of its size. What plays no role is not: for ground states horizon,
        terminal reward and initial law, for bridges the terminal reward, for expectations until an exit all rewards
        and the temperature. What such an expectation is of is in its stats as "quantity"; its h and source are not
        compared.
    target : of a bridge, the law it leads to, and of nothing else.
    rewards : of a solution in stages, those on the way, as `solve_stages` was given them, and of nothing else.
    check : False reads the file although they differ, or although it is too old to tell, with an OtherProblemWarning
        that names what differs. Dimension, horizon and temperature must be the same in any case.

    Raises OutputError when there is no such file, it is no such file, it is damaged, cut off or changed, or it holds a
    solution of another problem.
    """
    if not isinstance(problem, ExitProblem):
        require_problem(problem, "load_solution")
    strict = flag(check, "check", OutputError)
    if rewards is not None and isinstance(problem, ControlProblem):
        rewards = checked_rewards(problem, rewards, "load_solution")
    text, arrays = read_archive(path, *_KINDS)
    kind = _KINDS[text.pop("kind")]
    points = named(arrays, _POINT)
    try:
        if not isinstance(problem, kind.of):
            raise OutputError(
                f"{path} holds {kind.what}: give the {kind.of.__name__} it was written for, got an"
                f" {type(problem).__name__}"
            )
        _compare(path, text, problem, kind)
        given = _beside(path, text, kind, target, rewards)
        found = kind.unpack(text, arrays, problem, *given)
        doubt = _doubt(text, kind, points, problem, found)
        if kind.types == (Bridge,) and target_differs(arrays, given[0]):
            doubt = f"holds {kind.what} to another target than the one given"
        if kind.types == (StagedSolution,) and rewards_differ(arrays, found.problem, given[0]):
            doubt = f"holds {kind.what} with other rewards on the way than those given"
    except OutputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, FemHjbError) as cause:
        raise OutputError(f"{path} is damaged: {cause}; write it again") from cause
    if doubt is not None and strict:
        raise OutputError(f"{path} {doubt}; give the problem it was written for, or check=False if you know better")
    if doubt is not None:
        warnings.warn(f"{path} {doubt}", OtherProblemWarning, stacklevel=2)
    return found  # type: ignore[no-any-return]


def _beside(path: FilePath, text: Text, kind: _Kind, target: Any, rewards: Any) -> tuple[Any, ...]:
    """What a result needs beside its problem: the law that a bridge leads to, the rewards on the way of stages."""
    bridge, staged = kind.types == (Bridge,), kind.types == (StagedSolution,)
    if target is not None and not bridge:
        raise OutputError(f"{path} holds {kind.what}, and target= is that of a bridge; leave it out")
    if rewards is not None and not staged:
        raise OutputError(f"{path} holds {kind.what}, and rewards= are those of solve_stages; leave them out")
    if bridge:
        if not isinstance(target, Law):
            raise OutputError(f"{path} holds a bridge: give the law it leads to, target=, got {type(target).__name__}")
        return (target,)
    if not staged:
        return ()
    if rewards is None:
        raise OutputError(f"{path} holds {kind.what}: give the rewards on the way, rewards=, at times {text['times']}")
    if list(rewards) != text["times"]:
        raise OutputError(
            f"{path} was written with rewards at times {text['times']}, got rewards at {list(rewards)}; give those"
        )
    return (rewards,)


def _compare(path: FilePath, text: Text, problem: Problem, kind: _Kind) -> None:
    """OutputError unless dimension, horizon and temperature, as far as they matter, are those of the file."""
    written = text["problem"]
    if written != _numbers(problem, kind):
        raise OutputError(
            f"{path} holds {kind.what} of {text['name']!r} with {_describe(written)}, but the problem given has"
            f" {_describe(_numbers(problem, kind))}; give the problem it was written for"
        )


def _doubt(text: Text, kind: _Kind, points: Arrays, problem: Problem, found: Any) -> str | None:
    """Why the problem may not be that of the file, if there is a reason."""
    if not points:
        return f"holds {kind.what} of {text['name']!r} and does not say more of its problem, as older files do not"
    other = kind.differs(problem, found, points)
    if not other:
        return None
    return f"holds {kind.what} of {text['name']!r}; the problem given, {problem.name!r}, has another {', '.join(other)}"


def save_paths(path: FilePath, paths: Paths) -> None:
    """Write trajectories. Raises OutputError as `save_solution` does."""
    require(paths, Paths, "save_paths", OutputError)
    write_archive(path, PATHS_KIND, {"scheme": paths.scheme}, {"t": paths.t, "x": paths.x})


def load_paths(path: FilePath) -> Paths:
    """Read what `save_paths` wrote. Raises OutputError as `load_solution` does."""
    text, arrays = read_archive(path, PATHS_KIND)
    try:
        return Paths(t=arrays["t"], x=arrays["x"], scheme=text["scheme"])
    except (LookupError, TypeError, FemHjbError) as cause:
        raise OutputError(f"{path} is damaged: {cause}; write it again") from cause


def _numbers(problem: Problem, kind: _Kind) -> dict[str, float]:
    return {name: getattr(problem, name) for name in kind.numbers}


def _describe(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{key}={number:g}" for key, number in numbers.items())
