"""The mesh reference against closed forms, its boundaries, elements and meshes, and what it says when it cannot."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skfem

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError, PositivityError, ProblemError, SpaceError

TIMES = (0.0, 0.137, 0.5, 0.771, 1.0)


def relative_errors(solution: Solution, order: int = 16, times: tuple[float, ...] = TIMES) -> tuple[float, float]:
    """Value and policy: max over t of the L2(p_t) error (Lambda^{-1} norm for policies) over that of the reference."""
    problem = solution.problem
    exact = problem.exact
    assert exact is not None
    assert problem.marginal is not None
    rows = []
    for share in times:
        t = share * problem.horizon
        x, w = problem.marginal(t).quadrature(order)
        seen = solution.space.spatial.box.contains(x)
        assert w[~seen].sum() < 1e-8
        x, w = x[seen], w[seen]
        inverse = np.linalg.inv(problem.Lambda(t, x))
        best = problem.policy_from_gradient(t, x, exact.gradient(t, x))
        off = solution.policy(t, x) - best
        v = exact.value(t, x)
        rows.append(
            [
                w @ (solution.value(t, x) - v) ** 2,
                w @ v**2,
                w @ np.einsum("ni,nij,nj->n", off, inverse, off),
                w @ np.einsum("ni,nij,nj->n", best, inverse, best),
            ]
        )
    dv, v, dp, p = np.sqrt(np.max(rows, axis=0))
    return float(dv / v), float(dp / p)


def error_in_f(solution: Solution, t: float = 0.0) -> float:
    """Relative L2 error of f on the whole mesh."""
    basis = solution.space.spatial
    rule = basis.quadrature(2 * basis.degree + 4)
    weight = (np.broadcast_to(rule.det, rule.x.shape[:2]) * rule.weights).ravel()
    x = rule.x.reshape(-1, basis.dim)
    assert solution.problem.exact is not None
    exact = solution.gauge.u(t, x, solution.problem.exact.value(t, x))
    return float(np.sqrt(weight @ (solution.f(t, x) - exact) ** 2 / (weight @ exact**2)))


LQ1, LQ2 = zoo.get("lq", 1), zoo.get("lq", 2)
WIDE = Box([-6.2, -6.2], [6.2, 6.2])

# Accuracy against closed forms, at the nodes of the time steps and between them.


@pytest.mark.parametrize(
    ("name", "dim", "keywords", "value", "policy"),
    [
        ("lq", 1, {}, 1e-4, 1e-4),
        ("lq", 1, {"element": "P1", "cells": 500}, 1e-4, 1e-4),
        ("lq", 1, {"element": "P4", "cells": 24, "box": Box([-5.0], [5.0])}, 1e-5, 2e-5),
        ("lq", 1, {"element": "hermite", "cells": 64}, 1e-4, 1e-4),
        ("mixture-diffusion", 1, {}, 1e-4, 1e-4),
        ("mixture-diffusion", 1, {"element": "hermite", "cells": 96}, 1e-4, 1e-4),
        ("reflected", 1, {}, 1e-5, 1e-4),
        ("reflected", 1, {"element": "hermite", "cells": 24}, 1e-5, 1e-4),
        ("reflected", 2, {"element": "Q2", "cells": 32}, 1e-4, 1e-3),
        ("lq", 2, {}, 1e-3, 1e-3),
        ("lq", 2, {"element": "P3", "cells": 24}, 1e-3, 1e-3),
        ("lq", 2, {"element": "hermite", "cells": 32}, 1e-3, 1e-3),
        ("mixture-diffusion", 2, {"element": "P3", "cells": 40, "box": WIDE, "rtol_time": 1e-4}, 1e-3, 1e-3),
    ],
)
def test_value_and_policy_are_those_of_the_closed_form(name: str, dim: int, keywords: Any, value: float, policy: float):
    solution = solve_on_mesh(zoo.get(name, dim), **keywords)
    in_value, in_policy = relative_errors(solution)
    assert in_value <= value
    assert in_policy <= policy


def test_three_dimensions_on_tetrahedra_at_two_levels():
    problem = zoo.get("lq", 3)
    coarse, fine = (solve_on_mesh(problem, cells=m, box=Box([-4.0] * 3, [4.0] * 3), rtol_time=1e-4) for m in (8, 14))
    errors = [relative_errors(s, order=5, times=(0.0, 0.45, 1.0)) for s in (coarse, fine)]
    assert errors[1][0] <= 5e-3
    assert errors[1][1] <= 2e-2
    rates = np.log(np.array(errors[0]) / errors[1]) / np.log(14 / 8)
    assert rates.min() > 2.5


def test_three_dimensions_third_order_in_f():
    problem = zoo.get("lq", 3, cov=0.02)
    assert problem.exact is not None
    box = Box([-1.0] * 3, [1.0] * 3)
    errors = [
        error_in_f(solve_on_mesh(problem, cells=m, box=box, rtol_time=1e-5, boundary=problem.exact.value))
        for m in (6, 8)
    ]
    assert np.log(errors[0] / errors[1]) / np.log(8 / 6) == pytest.approx(3.0, abs=0.25)


def test_hermite_cubics_in_three_dimensions():
    value, policy = relative_errors(
        solve_on_mesh(zoo.get("lq", 3), element="hermite", cells=8, rtol_time=1e-4), order=5
    )
    assert value <= 5e-3
    assert policy <= 2e-2


def test_a_full_diffusion_that_varies_in_space():
    """v = s'x solves the equation exactly for r = -s'b - s' Lambda s / (2 alpha), for any Lambda."""
    s = np.array([0.4, -0.3])

    def Lambda(t: Any, x: FloatArray) -> FloatArray:
        low = np.zeros((*x.shape[:-1], 2, 2))
        low[..., 0, 0] = 1.0 + 0.3 * np.sin(x[..., 1])
        low[..., 1, 0] = 0.4 * np.cos(x[..., 0] + np.asarray(t))
        low[..., 1, 1] = 0.8
        return low @ np.swapaxes(low, -1, -2)

    problem = ControlProblem(
        dim=2,
        horizon=0.5,
        temperature=0.6,
        drift=lambda t, x: -x,
        diffusion=Lambda,
        running_reward=lambda t, x: x @ s - np.einsum("i,...ij,j->...", s, Lambda(t, x), s) / 1.2,
        terminal_reward=lambda x: x @ s,
        initial_law=Gaussian([0.0, 0.0], 0.02),
    )
    solution = solve_on_mesh(problem, box=Box([-1.0, -1.0], [1.0, 1.0]), cells=16, boundary=lambda t, x: x @ s)
    x = np.random.default_rng(1).uniform(-1, 1, (200, 2))
    for t in (0.0, 0.21, 0.5):
        np.testing.assert_allclose(solution.value(t, x), x @ s, atol=1e-5)
        np.testing.assert_allclose(solution.gradient(t, x), np.broadcast_to(s, x.shape), atol=2e-4)


# Boundaries


def test_dirichlet_values_make_a_small_box_exact_and_natural_ones_do_not():
    problem = zoo.get("lq", 1, cov=0.02)
    assert problem.exact is not None
    box = Box([-1.0], [1.2])
    prescribed = solve_on_mesh(problem, box=box, cells=32, boundary=problem.exact.value)
    x = np.linspace(-1.0, 1.2, 57)[:, None]
    for t in (0.0, 0.3, 0.8, 1.0):
        np.testing.assert_allclose(prescribed.value(t, x), problem.exact.value(t, x), atol=5e-6)
    natural = solve_on_mesh(problem, box=box, cells=32)
    assert np.abs(natural.value(0.0, x) - problem.exact.value(0.0, x)).max() > 0.05


def test_fourth_order_in_time_with_dirichlet_values_that_move():
    problem = zoo.get("lq", 1, cov=0.02)
    assert problem.exact is not None
    keywords: dict[str, Any] = {
        "box": Box([-1.0], [1.2]),
        "cells": 48,
        "element": "P4",
        "boundary": problem.exact.value,
    }
    counts = (8, 16, 32)
    best = np.asarray(solve_on_mesh(problem, steps=256, **keywords).coefficients)[0]
    errors = [
        np.abs(np.asarray(solve_on_mesh(problem, steps=n, **keywords).coefficients)[0] - best).max() for n in counts
    ]
    rate = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert rate == pytest.approx(-4.0, abs=0.15)


def test_dirichlet_values_on_a_round_mesh_from_a_file(tmp_path: Path):
    path = tmp_path / "disc.msh"
    skfem.MeshTri.init_circle(4).scaled(2.0).save(path, file_format="gmsh")
    problem = zoo.get("lq", 2, cov=0.1)
    assert problem.exact is not None
    for mesh in (path, str(path)):
        solution = solve_on_mesh(problem, mesh=mesh, element="P2", boundary=problem.exact.value, rtol_time=1e-5)
    assert error_in_f(solution) < 2e-4
    radius, angle = np.meshgrid([0.0, 0.7, 1.5], np.linspace(0, 6, 7))
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    np.testing.assert_allclose(solution.value(0.4, x), problem.exact.value(0.4, x), atol=2e-3)
    with pytest.raises(DomainError, match="1 of 1 points lie outside"):
        solution.value(0.4, [[1.9, 1.9]])


def test_reflection_needs_a_diffusion_along_the_normal():
    full = np.array([[1.0, 0.3], [0.3, 1.0]])
    problem = ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: np.zeros_like(x),
        diffusion=full,
        terminal_reward=lambda x: x[..., 0],
        initial_law=Gaussian([0.5, 0.5], 0.01),
        domain=Box([0.0, 0.0], [1.0, 1.0]),
    )
    with pytest.raises(DomainError, match="off-diagonal entries in row 0 on the faces across axis 0"):
        solve_on_mesh(problem, cells=8)


# Time steps


def test_looser_tolerances_take_fewer_steps_and_equal_steps_are_equal():
    problem = zoo.get("lq", 1)
    loose, tight = (solve_on_mesh(problem, rtol_time=rtol) for rtol in (1e-3, 1e-8))
    assert loose.stats["steps"] < tight.stats["steps"]
    fixed = solve_on_mesh(problem, steps=12)
    assert fixed.stats["steps"] == 12
    assert fixed.stats["linear_solves"] == 1 + 5 * 12
    assert fixed.stats["rejected"] == 0
    np.testing.assert_allclose(np.diff(fixed.space.time.points), 1 / 12)
    x = np.linspace(-2, 2, 31)[:, None]
    for t in (0.0, 0.4, 0.83):
        best = tight.value(t, x)
        assert np.abs(fixed.value(t, x) - best).max() < 1e-3
        assert np.abs(loose.value(t, x) - best).max() < 0.02


def test_an_automatic_box_does_not_follow_boundary_layers_where_nothing_goes():
    problem = zoo.get("linear-ou", 1)
    weighted = solve_on_mesh(problem)
    plain = solve_on_mesh(problem, box=weighted.space.spatial.box)
    assert weighted.stats["steps"] < 0.8 * plain.stats["steps"]
    for solution in (weighted, plain):
        assert max(relative_errors(solution)) < 1e-5


def test_iterated_and_direct_solves_agree(monkeypatch: pytest.MonkeyPatch):
    problem = zoo.get("mixture-diffusion", 1)
    x = np.linspace(-2, 2, 31)[:, None]
    box = Box([-6.0], [6.0])
    direct = solve_on_mesh(problem, box=box, cells=64)
    assert direct.stats["linear_solver"] == "sparse LU"
    assert direct.stats["iterations"] == 0
    monkeypatch.setattr("fem_hjb.reference.mesh_operators.MeshOperators.direct", False)
    iterated = solve_on_mesh(problem, box=box, cells=64)
    assert "BiCGStab" in iterated.stats["linear_solver"]
    assert iterated.stats["factorisations"] == 0
    assert 0 < iterated.stats["iterations"] < 20 * iterated.stats["linear_solves"]
    assert np.abs(direct.value(0.0, x) - iterated.value(0.0, x)).max() < 1e-4


def test_constant_coefficients_are_factored_a_few_times():
    solution = solve_on_mesh(zoo.get("lq", 1), rtol_time=1e-9)
    assert solution.stats["steps"] > 60
    assert solution.stats["factorisations"] < 10


# What a solution carries


def test_stats_status_and_progress():
    seen: list[float] = []
    solution = solve_on_mesh(zoo.get("lq", 1), cells=40, progress=seen.append)
    assert solution.method == "mesh"
    assert solution.status == "ok"
    assert seen == sorted(seen)
    assert (len(seen), seen[-1]) == (solution.stats["steps"], 1.0)
    stats = solution.stats
    assert (stats["element"], stats["cells"], stats["dofs"]) == ("P2", 40, 81)
    assert set(stats["seconds"]) == {"mesh", "assembly", "solve", "total"}
    assert stats["seconds"]["total"] == pytest.approx(
        sum(stats["seconds"][phase] for phase in ("mesh", "assembly", "solve")), rel=1e-6
    )
    assert 0 <= stats["excluded_mass"] < 1e-3
    assert stats["min_f"] == solution.minimum_f > 0
    assert 10 < stats["range_in_temperatures"] < 40
    assert solution.space.shape == (3 * stats["steps"] + 1, 81)
    reflected = solve_on_mesh(zoo.get("reflected", 1), cells=8)
    assert reflected.stats["excluded_mass"] is None
    given = solve_on_mesh(zoo.get("lq", 1), cells=8, box=Box([-4.0], [4.0]))
    assert given.stats["excluded_mass"] is None


def test_a_mesh_of_quadrilaterals_is_given_quadratic_elements():
    grid = np.linspace(-6.0, 6.0, 25)
    solution = solve_on_mesh(LQ2, mesh=skfem.MeshQuad.init_tensor(grid, grid), rtol_time=1e-4)
    assert solution.stats["element"] == "Q2"
    assert max(relative_errors(solution, order=10, times=(0.0, 0.6))) < 5e-3


def test_the_terminal_values_are_those_of_the_reward():
    problem = zoo.get("lq", 1)
    solution = solve_on_mesh(problem, cells=20)
    nodes = solution.space.spatial.nodes
    np.testing.assert_allclose(solution.value(problem.horizon, nodes), problem.y(nodes), atol=1e-12)


def test_an_undershoot_is_reported_and_kept():
    def cliff(x: FloatArray) -> FloatArray:
        return np.where(x[..., 0] > 0.1, 0.0, -30.0)

    problem = ControlProblem(
        dim=1,
        horizon=0.01,
        temperature=1.0,
        drift=lambda t, x: 0.0 * x,
        diffusion=0.1,
        terminal_reward=cliff,
        initial_law=Gaussian([0.0], 0.1),
    )
    solution = solve_on_mesh(problem, box=Box([-2.0], [2.0]), cells=40)
    f = np.asarray(solution.coefficients)
    assert f.min() < -1e-3
    assert solution.stats["min_f"] == f.min()
    assert (
        f"f is not positive at {int((f <= 0).sum())} of {f.size} nodes, lowest {f.min():.3g} at t=" in solution.status
    )


def test_a_seed_changes_the_box_that_paths_are_to_stay_in():
    boxes = [solve_on_mesh(LQ1, cells=8, rng=seed).space.spatial.box.bounds[0][0] for seed in (0, 0, 1)]
    assert boxes[0] == boxes[1] == solve_on_mesh(LQ1, cells=8).space.spatial.box.bounds[0][0]
    assert boxes[0] != boxes[2]
    assert boxes[0] == pytest.approx(boxes[2], rel=0.1)


def test_the_same_call_gives_the_same_bits():
    one, two = (solve_on_mesh(zoo.get("lq", 2), cells=8, rtol_time=1e-4) for _ in range(2))
    assert np.array_equal(one.coefficients, two.coefficients)


# Absorbing faces


def stopped(boundary: Any, exit_reward: Any = None, upper: float = 1.0) -> ControlProblem:
    """Brownian motion on [0, upper], Lambda = 0.3, alpha = 0.5; f_T = 1 + sin(pi x), so that f = 1 where g = 0."""
    return ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=0.5,
        drift=lambda t, x: np.zeros_like(x),
        diffusion=0.3,
        terminal_reward=lambda x: 0.5 * np.log(1 + np.sin(np.pi * x[..., 0])),
        initial_law=Gaussian([0.5], 0.01),
        domain=Box([0.0], [upper], boundary=boundary, exit_reward=exit_reward),
    )


@pytest.mark.parametrize(
    ("boundary", "upper"), [("absorbing", 1.0), ([("absorbing", "reflecting")], 0.5)], ids=["both", "one"]
)
def test_third_order_next_to_absorbing_faces(boundary: Any, upper: float):
    x = np.linspace(0.0, upper, 101)[:, None]

    def exact(t: float) -> FloatArray:
        return np.asarray(0.5 * np.log(1 + np.exp(-0.15 * np.pi**2 * (1 - t)) * np.sin(np.pi * x[:, 0])))

    problem = stopped(boundary, upper=upper) if upper == 1.0 else _half(boundary)
    counts = (8, 16, 32)
    errors = [
        max(np.abs(s.value(t, x) - exact(t)).max() for t in (0.0, 0.5))
        for s in (solve_on_mesh(problem, cells=n, rtol_time=1e-8) for n in counts)
    ]
    assert np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(-3.0, abs=0.15)
    reflecting = solve_on_mesh(_half("reflecting"), cells=32)
    assert np.abs(reflecting.value(0.0, x[x[:, 0] <= 0.5]) - exact(0.0)[x[:, 0] <= 0.5]).max() > 0.05


def _half(boundary: Any) -> ControlProblem:
    """By symmetry, half of the interval with reflection in the middle is the same problem."""
    return replace(stopped("absorbing"), initial_law=Gaussian([0.25], 0.004), domain=Box([0.0], [0.5], boundary))


def test_the_exit_reward_is_the_value_on_absorbing_faces_and_lies_within_the_gauge():
    """g = c (T - t) + 40 with r = c: exp of it over alpha solves the equation, and is the value with y = 40."""
    problem = ControlProblem(
        dim=2,
        horizon=0.5,
        temperature=0.2,
        drift=lambda t, x: np.zeros_like(x),
        diffusion=[0.2, 0.3],
        running_reward=lambda t, x: np.full(x.shape[:-1], 1.5),
        terminal_reward=lambda x: np.full(x.shape[:-1], 40.0) - 0.4 * (x[..., 0] > 2),
        initial_law=Gaussian([0.5, 0.5], 0.01),
        domain=Box(
            [0.0, 0.0],
            [1.0, 1.0],
            boundary=[("absorbing", "reflecting"), ("absorbing", "absorbing")],
            exit_reward=lambda t, x: np.full(x.shape[:-1], 40.75 - 1.5 * np.asarray(t)),
        ),
    )
    for element in ("P2", "Q2"):
        solution = solve_on_mesh(problem, cells=4, element=element)
        x = np.random.default_rng(0).uniform(size=(50, 2))
        for t in (0.0, 0.2, 0.5):
            np.testing.assert_allclose(solution.value(t, x), 40.75 - 1.5 * t, rtol=1e-8)
    far = replace(problem, domain=replace(problem.domain, exit_reward=lambda t, x: np.full(x.shape[:-1], 150.0)))
    assert np.isfinite(solve_on_mesh(far, cells=4).value(0.0, x)).all()
    beyond = replace(problem, domain=replace(problem.domain, exit_reward=lambda t, x: np.full(x.shape[:-1], -150.0)))
    with pytest.raises(PositivityError, match=r"the exit reward of .* differs from the other rewards by 95. temp"):
        solve_on_mesh(beyond, cells=4)


# Bad input

LINE = skfem.MeshLine(np.linspace(-5, 5, 21))


@pytest.mark.parametrize(
    ("problem", "keywords", "error", "message"),
    [
        ("lq", {}, ProblemError, "solve_on_mesh needs a ControlProblem, got str"),
        (LQ1, {"mesh": LINE, "cells": 8}, DomainError, "not both: got mesh and cells"),
        (LQ1, {"mesh": LINE, "cells": 8, "box": Box([0], [1])}, DomainError, "got mesh and cells and box"),
        (LQ1, {"element": "P7"}, SpaceError, "element must be one of .* got 'P7'"),
        (LQ1, {"mesh": LINE, "element": "Q2"}, SpaceError, "not defined on a mesh of line cells"),
        (LQ1, {"element": "Q2"}, SpaceError, "'Q2' is not defined in dimension 1"),
        (LQ1, {"rtol": 0.5}, ConvergenceError, r"rtol must be a number from 1e-10, .* to 0.1, got 0.5"),
        (LQ1, {"steps": 0}, ConvergenceError, "steps must be a positive integer, got 0"),
        (LQ1, {"steps": 2.5}, ConvergenceError, "steps must be a positive integer, got 2.5"),
        (LQ1, {"steps": 8, "rtol_time": 1e-3}, ConvergenceError, "give steps or rtol_time, not both"),
        (LQ1, {"rtol_time": 0.0}, ConvergenceError, "rtol_time must be a number between 1e-13 and 0.1, got 0.0"),
        (LQ1, {"boundary": "dirichlet"}, DomainError, "boundary must be 'natural' or a callable .* got 'dirichlet'"),
        (LQ1, {"boundary": 0.0}, DomainError, "boundary must be 'natural' or a callable .* got 0.0"),
        (LQ1, {"boundary": lambda t, x: x}, DomainError, r"returned shape \(2, 1\) for x of shape \(2, 1\)"),
        (LQ1, {"boundary": lambda t, x: 1e6 + x[:, 0]}, DomainError, "overflows; give the values of v itself"),
        (LQ1, {"boundary": lambda t, x: x[:, 0], "element": "hermite"}, SpaceError, "takes no prescribed boundary"),
        (zoo.get("reflected", 1), {"boundary": lambda t, x: x[:, 0]}, DomainError, "process is reflected or stopped"),
        (stopped("absorbing"), {"boundary": lambda t, x: x[:, 0]}, DomainError, "reflected or stopped at faces"),
        (stopped("absorbing"), {"element": "hermite"}, SpaceError, "'hermite' takes no values on absorbing faces"),
        (LQ2, {"mesh": LINE}, DomainError, "dim"),
        (LQ1, {"mesh": "no/such/file.msh"}, DomainError, "no such file"),
        (LQ1, {"mesh": 3}, DomainError, "int"),
        (LQ1, {"box": Box([0, 0], [1, 1])}, DomainError, "must be a Box of dimension 1, got one of dimension 2"),
        (LQ1, {"box": (0, 1)}, DomainError, "must be a Box of dimension 1, got tuple"),
        (LQ1, {"box": Box([3], [4])}, DomainError, "initial law"),
        (LQ1, {"cells": 0}, DomainError, "cells on axis 0 must be a positive integer, got 0"),
        (LQ1, {"progress": True}, ConvergenceError, "progress must be a callable or None, got True"),
        (zoo.get("lq", 4), {}, DomainError, "meshes go up to dimension 3, the problem has dim=4"),
        (zoo.get("lq", 1, temperature=0.02), {}, PositivityError, "raise the temperature above 0.0"),
    ],
)
def test_bad_input(problem: Any, keywords: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        solve_on_mesh(problem, **keywords)
