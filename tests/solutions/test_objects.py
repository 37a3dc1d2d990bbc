"""Results can be pickled and deep-copied, stay read-only and give the same numbers; they are shown in a few lines."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.spaces.meshes import box_mesh

LQ = zoo.get("lq", dim=2)
WELL = {"kappa": 1.0, "nu": 1.0}
SQUARE = Box([-4.0] * 2, [4.0] * 2)
FEW = fh.Space(LQ, cells=2, time_cells=1, box=SQUARE)


def backwards(t: float, x: np.ndarray) -> np.ndarray:
    return -x


def inwards(x: np.ndarray) -> np.ndarray:
    return -x


WALLS = Box([-1.0], [1.0], boundary="absorbing")
LEAVING = fh.ExitProblem(dim=1, temperature=1.0, drift=inwards, diffusion=1.0, domain=WALLS)


def on_a_mesh() -> Any:
    return fh.solve_on_mesh(LQ, box_mesh(SQUARE, 8, "tri"), element="P2", rtol_time=1e-3)


def steered_density() -> Any:
    solution = fh.solve(zoo.get("soc-double-well", dim=1, **WELL), rtol=1e-2)
    box = solution.space.spatial.box
    return fh.fokker_planck.solve(solution.problem, policy=solution.policy, box=box, rtol=1e-4)


def numbers(of: Any) -> list[Any]:
    """What an object answers."""
    if hasattr(of, "sample"):
        return [of.logpdf([[0.1], [0.4]]), of.covariance]
    if hasattr(of, "function"):
        return [of.value([[0.1], [0.4]]), of.gradient([[0.1], [0.4]])]
    if hasattr(of, "density"):
        return [of.density(t, [[0.1], [0.4]]) for t in (1e-4, 0.5)]
    if hasattr(of, "gradient"):
        x = np.full((3, of.problem.dim), 0.1)
        return [getattr(of, name)(0.3, x) for name in ("value", "gradient", "policy")]
    if hasattr(of, "table"):
        return [of.table(), of.notes]
    return [repr(of)]


RESULTS: dict[str, Callable[[], Any]] = {
    "box": lambda: fh.solve(LQ, rtol=1e-2),
    "product": lambda: fh.solve(zoo.get("soc-double-well", dim=4, **WELL), rtol=1e-2),
    "mesh": on_a_mesh,
    "hermite": lambda: fh.solve_on_mesh(zoo.get("lq", dim=1), cells=16, element="hermite"),
    "density": steered_density,
    "law": lambda: fh.fokker_planck.solve(zoo.get("lq", dim=1), rtol=1e-4).law(0.5),
    "comparison": lambda: fh.compare({"zero": LQ.exact}, LQ.exact, problem=LQ),
    "control error": lambda: fh.control_error(LQ, backwards, LQ.exact),
    "objectives": lambda: fh.objectives(LQ, backwards, LQ.exact, steps=8, n=64, times=8),
    "source": lambda: fh.paths.simulated_source(LQ, n=8, steps=4, rng=0),
    "measure": lambda: fh.law_measure(LQ, fh.Space(LQ, cells=6, time_cells=2)),
    "system": lambda: fh.learning.assemble(LQ, fh.sample_paths(LQ, n=64, steps=4, rng=0), FEW, outside="drop"),
    "set": lambda: fh.Bounds(0.0, 1.0).on(FEW),
    "tabulation": lambda: FEW.tabulate(0.5, np.full((4, 2), 0.1), 2),
    "paths": lambda: fh.sample_paths(LQ, n=8, steps=4, rng=0),
    "bridge": lambda: fh.schroedinger_bridge(zoo.get("reflected", dim=1), fh.Uniform(Box([0.0], [1.0])), rtol=1e-2),
    "ground state": lambda: fh.ground_state(zoo.get("reflected", dim=1), rtol=1e-2),
    "exit": lambda: fh.solve_exit(LEAVING, rtol=1e-2),
    "mean exit time": lambda: fh.stationary.mean_exit_time(LEAVING, rtol=1e-2),
}


def writeable(of: Any) -> list[str]:
    return [name for name, value in vars(of).items() if isinstance(value, np.ndarray) and value.flags.writeable]


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_copied_whole_and_shown_briefly(name: str) -> None:
    result = RESULTS[name]()
    assert len(repr(result).split("\n")) <= 5
    expected = numbers(result)
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert type(again) is type(result)
        assert writeable(again) == []
        for mine, theirs in zip(numbers(again), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        if hasattr(result, "stats"):
            assert dict(again.stats) == dict(result.stats)
            with pytest.raises(TypeError):
                again.stats["dofs"] = 0
