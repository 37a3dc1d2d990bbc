"""Entries of what problems tend to as their horizon grows: average reward and spectral gap, by `ground_state`.

Independent coordinates are solved one by one: average rewards add up, and so do their errors; the gap is the least one.
Which coordinates are independent, and which of them alike, is looked at again where the stationary law is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from fem_hjb.atlas.entries import Record, described, plain, quiet, timed, told_of
from fem_hjb.atlas.settings import Setting
from fem_hjb.interop import export
from fem_hjb.paths.met import Draws
from fem_hjb.problems.blocks import Block, alike, independent_blocks, joined, restrict
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.zoo.meshed import annulus_mesh
from fem_hjb.reference.ground_state import ground_state, ground_state_on_mesh
from fem_hjb.reference.steady_ladder import rule_of
from fem_hjb.reference.tolerance import judged
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.ground import GroundState
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress, part_of

Group = tuple[ControlProblem, list[Block]]

_DRAWS = 4096  # of the stationary law
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
    if setting.annulus is not None:
        with quiet():
            return [Part(_on_mesh(problem, setting.annulus, setting.rtol, seconds, tell), 1, (0, 1))]
    draws: list[Draws] = []
    groups = _groups(problem, independent_blocks(problem), draws)
    while True:
        found = []
        with quiet():
            for k, (own, members) in enumerate(groups):
                told = part_of(tell, k / len(groups), (k + 1) / len(groups))
                state = ground_state(own, rtol=setting.rtol, max_seconds=seconds, progress=told)
                found.append(Part(state, len(members), members[0]))
        draws.append(_settled(problem, found, groups))
        blocks = [block for _, members in groups for block in members]
        again = _groups(problem, joined(problem, blocks, *draws[-1]), draws)
        if [members for _, members in again] == [members for _, members in groups]:
            return found
        groups = again  # fewer blocks, or fewer that are alike


def _groups(problem: ControlProblem, blocks: Sequence[Block], draws: Sequence[Draws]) -> list[Group]:
    """The problem of each block that is not like one before, also at these draws, and the blocks that are like it."""
    groups: list[Group] = []
    for block in blocks:
        own = restrict(problem, block, len(blocks))
        seen = [(t, x[..., list(block)]) for t, x in draws]
        known = next((members for one, members in groups if alike(one, own, *seen)), None)
        if known is None:
            groups.append((own, [block]))
        else:
            known.append(block)
    return groups


def _settled(problem: ControlProblem, parts: Sequence[Part], groups: Sequence[Group]) -> Draws:
    """Times (1, n), all nought, and draws (1, n, d) of the stationary law of the whole."""
    x, rng = np.empty((1, _DRAWS, problem.dim)), np.random.default_rng(0)
    for part, (_, members) in zip(parts, groups, strict=True):
        basis = part.state.density_function.basis
        points, weights = rule_of(basis, basis.box)
        chances = np.maximum(weights * part.state.density(points), 0.0)
        for block in members:
            x[0][:, list(block)] = points[rng.choice(len(points), _DRAWS, p=chances / chances.sum())]
    return np.zeros((1, _DRAWS)), x


def _on_mesh(
    problem: ControlProblem, annulus: tuple[float, float, int, int], rtol: float, seconds: float, tell: Progress
) -> GroundState:
    """In an annulus, at whose circles there has to be nothing left of the law."""
    inner, outer, across, around = annulus
    mesh = annulus_mesh(inner, outer, across, around)
    state = ground_state_on_mesh(problem, mesh, element="P4", max_seconds=seconds, progress=tell)
    density = state.density_function
    basis: Any = density.basis
    facets = mesh.facets[:, mesh.boundary_facets()]
    ends = np.abs(density.value(basis.nodes[np.unique(basis.facet_dofs(facets))])).max()
    told = "stationary density at circles that the process does not have, relative to the largest"
    figure = float(ends / np.abs(density.value(basis.nodes)).max())
    check = Check(name="law in the annulus", figure=figure, limit=rtol, told=told)
    estimate = state.error_estimate
    if estimate is None:
        raise ConvergenceError(f"no error of {problem.name!r} on its mesh is known")
    checked = replace(state, checks=(*state.checks, check))
    return judged(checked, estimate, rtol, f"ground_state_on_mesh({problem.name!r})", {})


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
