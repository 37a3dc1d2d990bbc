"""Files of exits, ground states and bridges: bit for bit, for their own problem only, and never a damaged one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.problems.zoo.meshed import ring_mesh
from fem_hjb.solutions.checks import Check
from fem_hjb.solutions.estimate import combine
from fem_hjb.solutions.files import OtherProblemWarning, load_solution, save_solution
from fem_hjb.solutions.ground import GroundState
from fem_hjb.solutions.steady import ExitSolution, SteadyFunction
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.errors import OutputError

SQUARE = fh.Box([0.0, -1.0], [2.0, np.pi], boundary=[("absorbing", "reflecting"), ("absorbing", "natural")])
LEAVING = fh.ExitProblem(
    dim=2,
    temperature=0.5,
    drift=lambda x: -x,
    diffusion=lambda x: (1.0 + 0.1 * x[..., :1, None] ** 2) * np.eye(2),
    running_reward=lambda x: -1.0 - x[..., 0] ** 2,
    exit_reward=lambda x: 0.3 * x[..., 1],
    domain=SQUARE,
    name="leaving",
)
MESHED = replace(LEAVING, domain=None, exit_reward=lambda x: np.where(x[..., 0] < 0.1, x[..., 1], np.nan))
RING = ring_mesh(2.0, 3)
BOTH = {"inner": "absorbing", "outer": "absorbing"}
ROOM = replace(LEAVING, drift=np.zeros_like, exit_reward=None, domain=fh.MeshDomain(RING, BOTH))
WARM = fh.ExitProblem(
    dim=1,
    temperature=1.0,
    drift=lambda x: -x,
    diffusion=1.0,
    running_reward=lambda x: -1.0 + 0 * x[..., 0],
    domain=fh.Box([-1.0], [1.0], boundary="absorbing"),
)
FOREVER = fh.zoo.get("reflected", dim=1)
TARGET = fh.Uniform(fh.Box([0.0], [1.0]))


def by_hand(problem: fh.ExitProblem, basis: Any) -> ExitSolution:
    """An exit solution without a solver, none of whose bits is round."""
    rng = np.random.default_rng(0)
    return ExitSolution(
        problem=problem,
        function=SteadyFunction(basis, rng.standard_normal(basis.n_dofs)),
        method="by hand",
        status="made by hand",
        error_estimate=combine({"space": 1e-3}, {"space": np.inf}),
        checks=(Check(name="equation", figure=np.pi, limit=1e-3, told="looked at"),),
        stats={"dofs": np.int64(basis.n_dofs), "form": "value", "parts": {"a": 0.1}},
    )


def told(stats: Any) -> dict[str, Any]:
    """As JSON has them: lists for tuples."""
    return dict(json.loads(json.dumps(dict(stats), default=lambda value: value.tolist())))


def boxed() -> ExitSolution:
    lines = [SpectralLine([0.0, 0.3, 2.0], 5), SpectralLine([-1.0, np.sqrt(2.0), np.pi], 4)]
    return by_hand(LEAVING, SpectralBasis(lines))


def meshed() -> ExitSolution:
    mesh = skfem.MeshTri.init_symmetric().refined(1)
    return by_hand(MESHED, MeshBasis(skfem.MeshTri(2.0 * mesh.p, mesh.t[[1, 2, 0]]), "P2"))


def in_a_mesh() -> ExitSolution:
    return by_hand(ROOM, MeshBasis(RING, "P1"))


@lru_cache
def ground() -> GroundState:
    return fh.ground_state(FOREVER, rtol=1e-2)


def ground_on_mesh() -> GroundState:
    return fh.stationary.ground_state_on_mesh(FOREVER, fh.spaces.box_mesh(fh.Box([0.0], [1.0]), 6, "line"))


@lru_cache
def bridge() -> Any:
    return fh.schroedinger_bridge(FOREVER, TARGET, rtol=1e-2)


MADE: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "on a box": (boxed, ("value", "gradient", "policy", "f")),
    "on a mesh": (meshed, ("value", "gradient", "policy", "f")),
    "solved": (lambda: fh.solve_exit(WARM, rtol=1e-2), ("value", "gradient", "policy", "f")),
    "a mean exit time": (lambda: fh.stationary.mean_exit_time(WARM, rtol=1e-2), ("value", "gradient")),
    "a ground state": (ground, ("value", "gradient", "policy", "density")),
    "a ground state on a mesh": (ground_on_mesh, ("value", "gradient", "policy", "density")),
}


@pytest.mark.parametrize("name", MADE)
def test_what_has_no_horizon_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    make, methods = MADE[name]
    found = make()
    save_solution(tmp_path / "a.npz", found)
    again: Any = load_solution(tmp_path / "a.npz", found.problem)
    assert type(again) is type(found)
    assert again.problem is found.problem
    for part in ("method", "status", "average_reward", "gap"):
        assert getattr(again, part, None) == getattr(found, part, None)
    assert repr(again.error_estimate) == repr(found.error_estimate)
    assert [vars(check) for check in again.checks] == [vars(check) for check in found.checks]
    assert dict(again.stats) == told(found.stats)
    nodes = found.function.basis.nodes
    middle = 0.9 * nodes + 0.1 * nodes.mean(axis=0)
    for method in methods:
        np.testing.assert_array_equal(getattr(again, method)(middle), getattr(found, method)(middle))


def test_an_expectation_says_what_it_is_of_and_asks_for_no_rewards(tmp_path: Path) -> None:
    save_solution(tmp_path / "a.npz", fh.stationary.committor(WARM, [(0, "upper")], rtol=1e-2))
    other = replace(WARM, temperature=3.0, running_reward=None, exit_reward=lambda x: 0 * x[..., 0] - 5.0)
    again = load_solution(tmp_path / "a.npz", other)
    assert again.stats["quantity"] == "committor"
    assert float(again.value([0.0])) == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(OutputError, match=r"holds an expectation until an exit of .* has another drift"):
        load_solution(tmp_path / "a.npz", replace(WARM, drift=lambda x: -1.001 * x))


def test_a_bridge_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """Its terminal reward is the potential, whatever that of the problem that is given."""
    found = bridge()
    save_solution(tmp_path / "a.npz", found)
    for given in (found.problem, FOREVER, replace(FOREVER, terminal_reward=lambda x: x[..., 0], exact=None)):
        again = load_solution(tmp_path / "a.npz", given, target=TARGET)
        assert (again.status, again.iterations) == (found.status, found.iterations)
        assert dict(again.stats) == told(found.stats)
        for name in ("initial_error", "terminal_error", "potential_error"):
            assert getattr(again, name) == getattr(found, name)
        assert [str(check) for check in again.solution.checks] == [str(check) for check in found.solution.checks]
        assert str(again) == str(found)
        x = np.linspace(0.01, 0.99, 30)[:, None]
        for method in ("value", "gradient", "policy"):
            np.testing.assert_array_equal(getattr(again, method)(0.3, x), getattr(found, method)(0.3, x))
        beyond = np.linspace(-1.0, 2.0, 30)[:, None]
        np.testing.assert_array_equal(again.potential(beyond), found.potential(beyond))
        np.testing.assert_array_equal(again.problem.y(x), found.potential(x))


def test_the_checks_of_a_solution_come_back(tmp_path: Path) -> None:
    found = fh.solve(fh.zoo.get("lq"), rtol=1e-2)
    save_solution(tmp_path / "a.npz", found)
    again = load_solution(tmp_path / "a.npz", found.problem)
    assert found.checks
    assert [vars(check) for check in again.checks] == [vars(check) for check in found.checks]
    with np.load(tmp_path / "a.npz") as archive:
        members = {name: archive[name] for name in archive.files}
    text = json.loads(str(members["text"]))
    del text["checks"]  # as in files of before
    with (tmp_path / "a.npz").open("wb") as stream:
        np.savez(stream, **members | {"text": np.array(json.dumps(text))})
    assert load_solution(tmp_path / "a.npz", found.problem).checks == ()


LONGER = replace(FOREVER, horizon=3.0, terminal_reward=lambda x: 0 * x[..., 0], initial_law=TARGET, exact=None)
OTHERS: dict[str, tuple[Callable[[], Any], Any, str | None]] = {
    "the same in other words": (boxed, replace(LEAVING, drift=lambda x: -x * (1 + 3e-7)), None),
    "a drift": (boxed, replace(LEAVING, drift=lambda x: -1.00001 * x), "drift"),
    "a diffusion": (boxed, replace(LEAVING, diffusion=1.0), "diffusion"),
    "a running reward": (boxed, replace(LEAVING, running_reward=lambda x: -1.001 - x[..., 0] ** 2), "running_reward"),
    "an exit reward": (boxed, replace(LEAVING, exit_reward=lambda x: 0.31 * x[..., 1]), "exit_reward"),
    "a face": (boxed, replace(LEAVING, domain=replace(SQUARE, boundary="absorbing")), "domain"),
    "a corner": (boxed, replace(LEAVING, domain=fh.Box([0.0, -1.0], [2.1, np.pi], SQUARE.boundary)), "corners"),
    "no domain": (boxed, replace(LEAVING, domain=None), "domain"),
    "nan where it was": (meshed, replace(MESHED, drift=lambda x: -x), None),
    "an exit reward on a mesh": (meshed, replace(MESHED, exit_reward=lambda x: x[..., 1]), "exit_reward"),
    "a domain that is a mesh": (in_a_mesh, replace(ROOM, drift=lambda x: 0 * x), None),
    "a hole that reflects": (
        in_a_mesh,
        replace(ROOM, domain=fh.MeshDomain(RING, BOTH | {"inner": "reflecting"})),
        "bou",
    ),
    "a box for a mesh": (in_a_mesh, replace(ROOM, domain=replace(SQUARE, boundary="absorbing")), "domain"),
    "a horizon": (ground, LONGER, None),
    "a drift that begins later": (
        ground,
        replace(LONGER, drift=lambda t, x: FOREVER.b(t, x) + (np.asarray(t) > 1.0)[..., None]),
        "drift",
    ),
    "a reward for ever": (ground, replace(FOREVER, running_reward=lambda t, x: x[..., 0], exact=None), "running"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_problem_is_refused_or_read_with_a_warning(name: str, tmp_path: Path) -> None:
    make, given, what = OTHERS[name]
    save_solution(tmp_path / "a.npz", make())
    if what is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load_solution(tmp_path / "a.npz", given).problem is given
        return
    with pytest.raises(OutputError, match=f"the problem given, {given.name!r}, has another .*{what}"):
        load_solution(tmp_path / "a.npz", given)
    with pytest.warns(OtherProblemWarning, match=what):
        assert load_solution(tmp_path / "a.npz", given, check=False).problem is given


def _rewritten(path: Path, **arrays: Any) -> None:
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive.files if name != "text"}
        text = json.loads(str(archive["text"]))
    del text["checksums"]
    members |= {"text": np.array(json.dumps(text)), **arrays}
    with path.open("wb") as stream:
        np.savez(stream, **members)


def test_each_file_is_read_with_its_own_problem_and_target(tmp_path: Path) -> None:
    for name, make in (("exit", boxed), ("ground", ground), ("bridge", bridge)):
        save_solution(tmp_path / name, make())
    for name, given, more, message in (
        ("exit", FOREVER, {}, "holds an exit solution: give the ExitProblem it was written for, got a"),
        ("ground", LEAVING, {}, "holds a ground state: give the ControlProblem it was written for, got an ExitProblem"),
        ("exit", WARM, {}, "with dim=2, temperature=0.5, but the problem given has dim=1, temperature=1"),
        ("ground", FOREVER, {"target": TARGET}, "holds a ground state, and target= is that of a bridge; leave it out"),
        ("bridge", FOREVER, {}, "holds a bridge: give the law it leads to, target=, got NoneType"),
        ("bridge", FOREVER, {"target": "a law"}, "give the law it leads to, target=, got str"),
        ("bridge", FOREVER, {"target": fh.Uniform(fh.Box([0.0], [1.1]))}, "to another target than the one given"),
        ("bridge", FOREVER, {"target": fh.Gaussian([0.0, 0.0], 1.0)}, "to another target than the one given"),
        ("bridge", replace(FOREVER, initial_law=fh.Gaussian([0.4], 0.01), exact=None), {"target": TARGET}, "mean of"),
    ):
        with pytest.raises(OutputError, match=message):
            load_solution(tmp_path / name, given, **more)  # type: ignore[call-overload]
    with pytest.warns(OtherProblemWarning, match="another target"):
        load_solution(tmp_path / "bridge", FOREVER, target=fh.Uniform(fh.Box([0.0], [1.1])), check=False)


def test_what_is_damaged_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for spoiled, message in (
        ({"coefficients": np.ones(3)}, r"is damaged: coefficients must be finite and of shape \(99,\)"),
        ({"coefficients": np.full(99, np.nan)}, r"is damaged: coefficients must be finite"),
        ({"degrees": np.array([5])}, "is damaged: 2 grids but degrees of shape"),
        ({"kind": np.array("fem_hjb exit expectation 2")}, "of kind 'fem_hjb exit expectation 2', expected 'fem_hjb"),
    ):
        save_solution(path, boxed())
        _rewritten(path, **spoiled)
        with pytest.raises(OutputError, match=message):
            load_solution(path, LEAVING)
    save_solution(path, boxed())
    whole = path.read_bytes()
    for end in range(0, len(whole), 211):
        path.write_bytes(whole[:end])
        with pytest.raises(OutputError, match="is not a complete file"):
            load_solution(path, LEAVING)


@pytest.mark.parametrize("make", [boxed, bridge])
def test_no_byte_that_is_wrong_is_read_as_something_else(make: Callable[[], Any], tmp_path: Path) -> None:
    path, found = tmp_path / "a.npz", make()
    save_solution(path, found)
    target: Any = {"target": TARGET} if make is bridge else {}
    given = LEAVING if make is boxed else FOREVER
    whole, first = path.read_bytes(), load_solution(path, given, **target)  # type: ignore[call-overload]
    read = 0
    for place in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            again = load_solution(path, given, **target)  # type: ignore[call-overload]
        except OutputError:
            continue
        read += 1
        assert str(again) == str(first), place
    assert read < 14


def test_results_made_by_hand_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    state, steered = ground(), bridge()
    lines = [SpectralLine([0.0, 0.5, 1.0], 3)]
    other = SpectralBasis(lines)
    apart = replace(state, density_function=SteadyFunction(other, np.ones(other.n_dofs)))
    for found, message in (
        (apart, "whose two functions are on two bases cannot be written"),
        (replace(steered, potential=lambda x: 0 * x[..., 0]), "a bridge whose potential is a function cannot be"),
        (replace(boxed(), stats={"what": object()}), "stats hold a object"),
        (LEAVING, "writes solutions, got ExitProblem"),
    ):
        with pytest.raises(OutputError, match=message):
            save_solution(tmp_path / "a.npz", found)
    assert list(tmp_path.iterdir()) == []
