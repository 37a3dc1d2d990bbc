"""Solutions in stages as arrays and text, and back: each stage, the law it begins with, rewards at a few points."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fem_hjb.problems.fingerprint import fingerprint
from fem_hjb.problems.kernels import KernelDensity
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.stages import Rewards, paid
from fem_hjb.solutions.packing import Arrays, Packed, Text, named, outline, outlined, pack, unpack
from fem_hjb.solutions.stage_problems import Stage, marginal_of, stage_problem
from fem_hjb.solutions.staged import StagedSolution
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import OutputError, ProblemError

_ROUNDING = 1e-6  # of rewards, relative to how far they range, or to the temperature


def pack_staged(found: StagedSolution) -> Packed:
    """Text and arrays of all stages. Rewards are not stored, what they are at points is."""
    text: dict[str, Any] = {**outline(found), "times": list(found.rewards), "stages": []}
    x = fingerprint(found.problem)["x"]
    arrays: dict[str, Any] = {"rewards_x": x, "rewards_y": _paid(found.rewards, x)}
    for k, stage in enumerate(found.stages):
        told, own = pack(stage)
        law = stage.problem.initial_law
        if isinstance(law, KernelDensity) and k > 0 and stage.problem.marginal is None:
            weights, points = law.components
            own |= {"law_weights": weights, "law_points": points, "law_bandwidth": np.array(law.bandwidth)}
        elif k > 0 and marginal_of(found.problem) is None:
            raise OutputError(f"stage {k + 1} begins with a {type(law).__name__}, which cannot be written")
        text["stages"].append(told)
        arrays |= {f"stage_{k}_{name}": array for name, array in own.items()}
    return text, arrays


def unpack_staged(text: Text, arrays: Arrays, problem: ControlProblem, rewards: Rewards) -> StagedSolution:
    """The solution of this problem with these rewards on the way; the last stage first, which the others end with."""
    stages: list[Stage] = []
    for k in reversed(range(len(text["stages"]))):
        own, law = named(arrays, f"stage_{k}_"), None
        if "law_points" in own:
            law = KernelDensity(own["law_points"], float(own["law_bandwidth"]), own["law_weights"])
        posed = stage_problem(problem, rewards, k, law, stages[0] if stages else None)
        stages.insert(0, unpack(text["stages"][k], own, posed))
    told = outlined(text)
    del told["method"]  # there is but one
    return StagedSolution(problem=problem, rewards=rewards, stages=tuple(stages), **told)


def rewards_differ(arrays: Arrays, problem: ControlProblem, rewards: Rewards) -> bool:
    """Whether rewards are not those of the file at its points."""
    try:
        found = _paid(rewards, arrays["rewards_x"])
    except ProblemError:
        return True
    stored = np.asarray(arrays["rewards_y"])
    size = np.maximum(np.ptp(stored, axis=1, keepdims=True), problem.temperature)
    size = np.maximum(size, _ROUNDING * np.abs(stored).max(axis=1, keepdims=True))
    return found.shape != stored.shape or bool((np.abs(found - stored) > _ROUNDING * size).any())


def _paid(rewards: Mapping[float, Any], x: FloatArray) -> FloatArray:
    return np.stack([paid(rewards, t, x) for t in rewards])
