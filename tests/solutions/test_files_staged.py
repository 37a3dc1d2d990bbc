"""Files of solutions in stages: bit for bit, with the laws that stages begin with, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.problems.kernels import KernelDensity
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.stage_problems import stage_problem
from fem_hjb.solutions.staged import StagedSolution
from fem_hjb.support.errors import OutputError, ProblemError


def early(x: np.ndarray) -> np.ndarray:
    return -((x[..., 0] - 0.5) ** 2)


def late(x: np.ndarray) -> np.ndarray:
    return 0.3 * np.cos(x[..., 0])


REWARDS = {0.3: early, 0.6: late}
LINEAR: dict[str, Any] = {
    "dim": 1,
    "horizon": 1.0,
    "temperature": 0.5,
    "drift": fh.LinearDrift([[-1.0]], [0.2]),
    "diffusion": 0.6,
    "terminal_reward": lambda x: -(x[..., 0] ** 2),
    "initial_law": fh.Gaussian([0.1], 0.2),
}
WELL = {**LINEAR, "drift": lambda t, x: x - x**3 + 0.1 * np.sin(np.asarray(t)[..., None])}
X = np.linspace(-1.0, 1.0, 7)[:, None]


@pytest.fixture(scope="module", params=["linear", "well"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    problem = fh.ControlProblem(**(LINEAR if request.param == "linear" else WELL))
    laws = [None] * 3 if request.param == "linear" else [None, *(KernelDensity(X[k:], 0.2) for k in (0, 1))]
    stages: list[Any] = []
    for k in (2, 1, 0):  # as `solve_stages` does, but for its looking at paths
        own = stage_problem(problem, REWARDS, k, laws[k], stages[0] if stages else None)
        stages.insert(0, fh.solve(own, rtol=1e-1, verify=False))
    checks = (Check(name="a", figure=0.0, limit=1.0, told="b"),)
    found = StagedSolution(problem=problem, rewards=REWARDS, stages=tuple(stages), status="ok", checks=checks)
    path = tmp_path_factory.mktemp("staged") / "staged.npz"
    fh.save_solution(path, found)
    return problem, found, path


def test_a_file_holds_all_stages_bit_for_bit(written: tuple[Any, Any, Path]) -> None:
    problem, found, path = written
    again = fh.load_solution(path, problem, rewards=dict(reversed(REWARDS.items())))  # in any order
    assert str(again) == str(found)
    assert list(map(str, again.checks)) == list(map(str, found.checks))
    assert list(again.rewards) == [0.3, 0.6]
    for t in (0.0, 0.299, 0.3, 0.7, 1.0):
        for name in ("value", "gradient", "policy"):
            np.testing.assert_array_equal(getattr(again, name)(t, X), getattr(found, name)(t, X))
    for one, other in zip(again.stages, found.stages, strict=True):
        a, b = one.problem, other.problem
        assert (a.horizon, a.name) == (b.horizon, b.name)
        np.testing.assert_array_equal(a.y(3 * X), b.y(3 * X))  # beyond boxes, too
        np.testing.assert_array_equal(a.b(0.1, X), b.b(0.1, X))
        np.testing.assert_array_equal(a.initial_law.logpdf(X), b.initial_law.logpdf(X))
        assert (a.marginal is None) == (b.marginal is None)


def test_laws_are_stored_where_they_are_drawn(written: tuple[Any, Any, Path]) -> None:
    problem, found, path = written
    drawn = [k for k, stage in enumerate(found.stages) if isinstance(stage.problem.initial_law, KernelDensity)]
    with np.load(path) as arrays:
        assert drawn == [k for k in range(3) if f"stage_{k}_law_points" in arrays.files]
    assert drawn == ([] if isinstance(problem.drift, fh.LinearDrift) else [1, 2])


def test_a_solution_that_is_read_is_certified_with_its_rewards(written: tuple[Any, Any, Path]) -> None:
    problem, found, path = written
    again = fh.load_solution(path, problem, rewards=REWARDS)
    told = [fh.certify(problem, one, x0=[0.1], n=128, steps=20, rng=0).diffusion for one in (again, found)]
    assert told[0] == told[1]


def test_what_is_refused(written: tuple[Any, Any, Path], tmp_path: Path) -> None:
    problem, found, path = written
    refused: list[tuple[type[Exception], str, Any]] = [
        (OutputError, r"give the rewards on the way, rewards=, at times \[0.3, 0.6\]", {}),
        (OutputError, r"got rewards at \[0.3, 0.61\]; give those", {"rewards": {0.3: early, 0.61: late}}),
        (OutputError, r"got rewards at \[0.3\]; give those", {"rewards": {0.3: early}}),
        (OutputError, "with other rewards on the way than those given", {"rewards": {0.3: late, 0.6: early}}),
        (OutputError, "target= is that of a bridge", {"rewards": REWARDS, "target": problem.initial_law}),
        (ProblemError, "the reward at t=0.3 must be a callable", {"rewards": {0.3: 1.0}}),
    ]
    for error, message, given in refused:
        with pytest.raises(error, match=message):
            fh.load_solution(path, problem, **given)
    other = fh.ControlProblem(**{**LINEAR, "terminal_reward": lambda x: x[..., 0]})
    with pytest.raises(OutputError, match="has another"):
        fh.load_solution(path, other, rewards=REWARDS)
    with pytest.warns(fh.solutions.OtherProblemWarning, match="other rewards on the way"):
        fh.load_solution(path, problem, rewards={0.3: late, 0.6: early}, check=False)
    fh.save_solution(tmp_path / "stage.npz", found.stages[-1])
    with pytest.raises(OutputError, match="rewards= are those of solve_stages; leave them out"):
        fh.load_solution(tmp_path / "stage.npz", found.stages[-1].problem, rewards={0.2: early})
