"""Entries of what problems tend to as their horizon grows: average reward and spectral gap, by `ground_state`.

Independent coordinates are solved one by one: average rewards add up, and so do their errors; the gap is the least one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from fem_hjb.atlas.entries import Record, described, plain, quiet, timed, told_of
from fem_hjb.atlas.settings import Setting
from fem_hjb.interop import export
from fem_hjb.problems.blocks import alike, independent_blocks, restrict
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.ground_state import ground_state
from fem_hjb.solutions.ground import GroundState
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress, part_of

Block = tuple[int, ...]

_SHORT = 1.0  # horizon over which uncontrolled paths show where to begin to look


@final
@dataclass(frozen=True, eq=False)
class Part:
    """What one group of coordinates tends to, how many there are like it, and which coordinates it has."""

    state: GroundState
    count: int
    axes: tuple[int, ...]


def make_forever(setting: Setting, folder: Path, tell: Progress, seconds: float | None = None) -> Record:
    """Solve a setting for ever; as `entries.make`, it records what fails."""
    limit = setting.seconds if seconds is None else min(seconds, setting.seconds)
    try:
        problem = setting.make()
        record = described(setting, problem)
    except Exception as cause:  # whatever it is, the other entries are to be made
        return described(setting, None) | {"error": told_of(cause), "status": "no problem"}
    try:
        parts, taken = timed(partial(_parts, setting, problem, limit, tell))
    except Exception as cause:  # whatever it is, the other entries are to be made
        return record | {"error": told_of(cause), "status": "no solution"}
    record |= _found(problem, parts) | {"seconds": {"reference": taken}}
    try:
        record["files"], record["seconds"]["files"] = timed(partial(_files, setting, problem, parts, folder))
    except Exception as cause:  # what is found is kept
        record["files"] = {"error": told_of(cause)}
    tell(1.0)
    return record


def _parts(setting: Setting, problem: ControlProblem, seconds: float, tell: Progress) -> list[Part]:
    """The ground state of each group of coordinates that is not like one before."""
    if setting.rtol is None:
        raise ConvergenceError(f"{setting.name} has no tolerance")
    # terminal rewards may tie coordinates together, and long uncontrolled paths go too far; neither plays a role
    problem = replace(problem, terminal_reward=_nothing, exact=None, horizon=min(_SHORT, problem.horizon))
    blocks = independent_blocks(problem)
    groups: list[tuple[ControlProblem, list[Block]]] = []
    for block in blocks:
        own = restrict(problem, block, len(blocks))
        known = next((members for one, members in groups if alike(one, own)), None)
        if known is None:
            groups.append((own, [block]))
        else:
            known.append(block)
    found = []
    with quiet():
        for k, (own, members) in enumerate(groups):
            told = part_of(tell, k / len(groups), (k + 1) / len(groups))
            state = ground_state(own, rtol=setting.rtol, max_seconds=seconds, progress=told)
            found.append(Part(state, len(members), members[0]))
    return found


def _files(setting: Setting, problem: ControlProblem, parts: list[Part], folder: Path) -> list[str]:
    """A grid for each group of coordinates, named after its first one unless it has all of them."""
    written = []
    for part in parts:
        name = setting.name if len(part.axes) == problem.dim else f"{setting.name}-x{part.axes[0] + 1}"
        export(part.state, folder / f"{name}.npz")
        written.append(f"{name}.npz")
    return written


def _nothing(x: FloatArray) -> FloatArray:
    return np.zeros(x.shape[:-1])


def _found(problem: ControlProblem, parts: list[Part]) -> Record:
    """Average reward and gap with their error bars, the largest estimates, and all checks."""
    average = sum(part.count * part.state.average_reward for part in parts)
    states = [part.state for part in parts]
    slowest = min(states, key=lambda state: state.gap)
    estimates = [state.error_estimate.as_dict() for state in states if state.error_estimate is not None]
    worst = {name: max(each[name] for each in estimates) for name in estimates[0]} if estimates else None
    statuses = [state.status for state in states if state.status != "ok"]
    found = {
        "how": "ground_state",
        "status": "; ".join(statuses) or "ok",
        "value": average,
        "value_error": sum(part.count * part.state.stats["average_reward_error"] for part in parts),
        "gap": slowest.gap,
        "gap_error": slowest.stats["gap_error"],
        "estimate": worst,
        "checks": [{**asdict(check), "passed": check.passed} for state in states for check in state.checks],
        "stats": {"parts": len(parts), "dofs": sum(state.stats["dofs"] for state in states)},
    }
    if problem.exact is not None:
        found["true_error"] = abs(average - _average(problem))
    return dict(plain(found))


def _average(problem: ControlProblem) -> float:
    """What a closed form says of the average reward: what is earned in the first half of a long horizon."""
    half, x = 0.5 * problem.horizon, np.zeros(problem.dim)
    if problem.exact is None:
        return math.nan
    values: Any = problem.exact.value(0.0, x) - problem.exact.value(half, x)
    return float(values) / half
