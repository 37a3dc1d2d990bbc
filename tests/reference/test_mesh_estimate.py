"""Estimates of errors on a mesh: near the errors, cautious where they must be, and what is said when they are large."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.laws import Box
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_estimate import estimate_on_mesh
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.errors import DomainError, SpaceError

LQ = zoo.get("lq", 1)


def wide(problem: ControlProblem, deviations: float) -> Box | None:
    """A box whose faces are as many standard deviations away, so that truncation is no part of the error."""
    if problem.domain is not None:
        return None
    assert problem.marginal is not None
    laws = [problem.marginal(t) for t in np.linspace(0, problem.horizon, 5)]
    mean = np.array([law.expectation for law in laws])
    reach = deviations * np.sqrt([np.diag(law.covariance) for law in laws])
    return Box((mean - reach).min(axis=0), (mean + reach).max(axis=0))


def true_errors(solution: Solution) -> tuple[float, float]:
    """Value and policy, in the norms of estimates."""
    assert solution.problem.exact is not None
    row = compare({"it": solution}, solution.problem.exact, problem=solution.problem).overall("it")
    return row.value, row.policy


ESTIMATED: list[tuple[str, int, Any]] = [
    *[("lq", 1, {"element": e, "cells": 40}) for e in ("P1", "P3", "hermite")],
    *[("mixture-diffusion", 1, {"element": e, "cells": 48}) for e in ("P1", "P3")],
    ("brownian-mixture", 1, {"element": "P2", "cells": 96}),
    ("linear-ou", 1, {"element": "P2", "cells": 32}),
    *[("reflected", 1, {"element": e, "cells": 32}) for e in ("P1", "P4")],
    *[("lq", 2, {"element": e, "cells": n}) for e, n in (("P1", 24), ("P3", 10), ("Q2", 12))],
    *[("reflected", 2, {"element": e, "cells": n}) for e, n in (("P2", 12), ("P4", 6))],
    ("reflected", 2, {"element": "hermite", "cells": 6}),
    ("reflected", 3, {"element": "P1", "cells": 5}),
    # where time steps are the larger part
    ("lq", 1, {"element": "P4", "cells": 96, "rtol_time": 1e-2}),
    ("mixture-diffusion", 1, {"element": "P4", "cells": 96, "rtol_time": 1e-3}),
    ("reflected", 1, {"element": "P4", "cells": 40, "steps": 6}),
]


@pytest.mark.parametrize(("name", "dim", "keywords"), ESTIMATED)
def test_estimates_are_near_the_errors(name: str, dim: int, keywords: Any):
    problem = zoo.get(name, dim)
    deviations = {1: 8.0, 2: 6.0, 3: 5.0}[dim]
    fine = {"P1": 1e-4, "P2": 1e-5}.get(keywords["element"], 1e-7) if dim == 1 else 1e-4  # no part of the error
    given = {"rtol_time": fine, **keywords} if "steps" not in keywords else keywords
    solution = solve_on_mesh(problem, box=wide(problem, deviations), **given)
    estimate = estimate_on_mesh(solution)
    assert estimate.limited_by == ("time" if keywords.get("rtol_time") or keywords.get("steps") else "space")
    for true, estimated in zip(true_errors(solution), (estimate.value, estimate.policy), strict=True):
        assert true <= 3 * estimated
        assert estimated <= 30 * true


@pytest.mark.parametrize(
    ("dim", "element", "cells"),
    [(1, "P2", 64), (2, "P2", 16), (2, "Q2", 12), (2, "P3", 8), (2, "hermite", 8)],
)
def test_estimates_from_poorer_classes_are_cautious(dim: int, element: str, cells: int):
    solution = solve_on_mesh(zoo.get("reflected", dim), element=element, cells=cells, rtol_time=1e-4)
    estimate = estimate_on_mesh(solution, max_dofs=solution.stats["dofs"])
    for true, estimated in zip(true_errors(solution), (estimate.value, estimate.policy), strict=True):
        assert true <= 3 * estimated
        assert estimated <= 30 * true


def test_what_the_faces_do_is_no_part_of_an_estimate():
    solution = solve_on_mesh(zoo.get("lq", 1), box=Box([-2.0], [2.0]), cells=64)
    estimate = estimate_on_mesh(solution)
    assert true_errors(solution)[1] > 30 * estimate.policy
    assert estimate.truncation == 0.0


def test_a_tolerance_on_a_mesh_asks_for_an_estimate():
    wide = Box([-5.0], [5.0])
    seen: list[float] = []
    solution = solve_on_mesh(LQ, rtol=1e-2, cells=60, box=wide, progress=seen.append)
    estimate: Any = solution.error_estimate
    assert solution.method == "mesh"
    assert estimate.met(1e-2)
    assert max(true_errors(solution)) < 1e-2
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 2 * solution.stats["steps"]
    seconds = solution.stats["seconds"]
    assert seconds["total"] == pytest.approx(
        sum(seconds[phase] for phase in ("mesh", "assembly", "solve", "estimate")), rel=0.1
    )
    plain = solve_on_mesh(LQ, cells=60, box=wide)
    assert plain.error_estimate is None
    np.testing.assert_array_equal(plain.coefficients, solution.coefficients)
    with pytest.warns(ToleranceWarning, match=r"solve_on_mesh\('lq'\) was asked for .*limited by space") as told:
        rough = solve_on_mesh(LQ, rtol=1e-4, cells=12, box=wide)
    assert told[0].filename == __file__
    assert "limited by space" in rough.status


def test_an_estimate_on_a_mesh_sees_its_faces():
    """Natural faces at two standard deviations and a bit spoil the policy by several per cent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        solution = solve_on_mesh(LQ, rtol=1e-2, cells=40, box=Box([-2.0], [2.0]))
    estimate: Any = solution.error_estimate
    assert true_errors(solution)[1] > 0.03
    assert estimate.limited_by == "truncation"
    assert 0.2 * true_errors(solution)[1] < estimate.policy < 5 * true_errors(solution)[1]


def test_estimates_need_the_boundary_that_was_used():
    problem = zoo.get("lq", 1, cov=0.02)
    assert problem.exact is not None
    prescribed = solve_on_mesh(problem, box=Box([-1.0], [1.2]), cells=16, boundary=problem.exact.value)
    estimate = estimate_on_mesh(prescribed, boundary=problem.exact.value)
    assert max(true_errors(prescribed)) <= 3 * max(estimate.value, estimate.policy)
    with pytest.raises(DomainError, match="made with a boundary that is prescribed, got one that is natural"):
        estimate_on_mesh(prescribed)
    with pytest.raises(DomainError, match="needs a solution of solve_on_mesh, got one by method 'fitted'"):
        estimate_on_mesh(replace(prescribed, method="fitted"))
    poor = solve_on_mesh(LQ, element="P1", cells=8)
    with pytest.raises(SpaceError, match="which has more than max_dofs=9; raise max_dofs"):
        estimate_on_mesh(poor, max_dofs=9)
