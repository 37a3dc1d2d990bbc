"""Entries of what problems tend to as their horizon grows: average reward and spectral gap, by `ground_state`.

Independent coordinates are solved one by one: average rewards add up, and so do their errors; the gap is the least one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from fem_hjb.atlas.entries import Record, described, plain, quiet, timed, told_of
from fem_hjb.atlas.settings import Setting
from fem_hjb.problems.blocks import alike, independent_blocks, restrict
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.ground_state import ground_state
from fem_hjb.solutions.ground import GroundState
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress, part_of

_SHORT = 1.0  # horizon over which uncontrolled paths show where to begin to look

Part = tuple[GroundState, int]  # what one group of coordinates tends to, and how many there are like it


def make_forever(setting: Setting, tell: Progress, seconds: float | None = None) -> Record:
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
    tell(1.0)
    return record | _found(problem, parts) | {"seconds": {"reference": taken}, "files": []}


def _parts(setting: Setting, problem: ControlProblem, seconds: float, tell: Progress) -> list[Part]:
    """The ground state of each group of coordinates that is not like one before."""
    if setting.rtol is None:
        raise ConvergenceError(f"{setting.name} has no tolerance")
    # terminal rewards may tie coordinates together, and long uncontrolled paths go too far; neither plays a role
    problem = replace(problem, terminal_reward=_nothing, exact=None, horizon=min(_SHORT, problem.horizon))
    blocks = independent_blocks(problem)
    groups: list[tuple[ControlProblem, int]] = []
    for block in blocks:
        own = restrict(problem, block, len(blocks))
        known = [k for k, (one, _) in enumerate(groups) if alike(one, own)]
        if known:
            groups[known[0]] = groups[known[0]][0], groups[known[0]][1] + 1
        else:
            groups.append((own, 1))
    found = []
    with quiet():
        for k, (own, count) in enumerate(groups):
            told = part_of(tell, k / len(groups), (k + 1) / len(groups))
            found.append((ground_state(own, rtol=setting.rtol, max_seconds=seconds, progress=told), count))
    return found


def _nothing(x: FloatArray) -> FloatArray:
    return np.zeros(x.shape[:-1])


def _found(problem: ControlProblem, parts: list[Part]) -> Record:
    """Average reward and gap with their error bars, the largest estimates, and all checks."""
    average = sum(count * state.average_reward for state, count in parts)
    slowest = min((state for state, _ in parts), key=lambda state: state.gap)
    estimates = [state.error_estimate.as_dict() for state, _ in parts if state.error_estimate is not None]
    worst = {name: max(each[name] for each in estimates) for name in estimates[0]} if estimates else None
    statuses = [state.status for state, _ in parts if state.status != "ok"]
    found = {
        "how": "ground_state",
        "status": "; ".join(statuses) or "ok",
        "value": average,
        "value_error": sum(count * state.stats["average_reward_error"] for state, count in parts),
        "gap": slowest.gap,
        "gap_error": slowest.stats["gap_error"],
        "estimate": worst,
        "checks": [{**asdict(check), "passed": check.passed} for state, _ in parts for check in state.checks],
        "stats": {"parts": len(parts), "dofs": sum(state.stats["dofs"] for state, _ in parts)},
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
