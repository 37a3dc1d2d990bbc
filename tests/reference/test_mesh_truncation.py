"""What the faces of a mesh do is told: narrow boxes, round meshes, boundary values; and nothing where they do none."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import skfem

from fem_hjb.problems import zoo
from fem_hjb.problems.laws import Box
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_refine import refine_on_mesh
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.reference.mesh_truncation import ends_early, unended, with_truncation
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.estimate import ErrorEstimate, ToleranceWarning
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import InfiniteValueError

MIXTURE, LQ, LQ2 = zoo.get("mixture-diffusion", 1), zoo.get("lq", 1), zoo.get("lq", 2)
NARROW, CLOSE = zoo.get("lq", 1, cov=0.02), zoo.get("lq", 2, cov=0.05)
DISC = skfem.MeshTri.init_circle(3).scaled(1.5)
ROUTES: list[Any] = [solve_on_mesh, refine_on_mesh]


def true_errors(solution: Any) -> tuple[float, float]:
    assert solution.problem.exact is not None
    row = compare({"it": solution}, solution.problem.exact, problem=solution.problem).overall("it")
    return row.value, row.policy


def exact_value(problem: ControlProblem, factor: float = 1.0) -> Any:
    exact = problem.exact
    assert exact is not None
    return lambda t, x: factor * exact.value(t, x)


SPOILED: dict[str, tuple[ControlProblem, Any]] = {
    "mixture": (MIXTURE, {"box": Box([-2.7], [2.7], boundary="natural"), "cells": 64}),
    "lq": (LQ, {"box": Box([-2.0], [2.0]), "cells": 40}),
    "two dimensions": (LQ2, {"box": Box([-2.2] * 2, [2.2] * 2, boundary="natural"), "cells": 14}),
    "disc": (CLOSE, {"mesh": DISC}),
    "wrong boundary values": (NARROW, {"box": Box([-1.0], [1.2]), "cells": 32, "boundary": exact_value(NARROW, 0.9)}),
}


@pytest.mark.parametrize(
    ("name", "route"),
    [
        *((name, solve_on_mesh) for name in SPOILED),
        *((name, refine_on_mesh) for name in ("mixture", "disc", "wrong boundary values")),
    ],
)
def test_faces_that_spoil_the_solution_are_seen(name: str, route: Any):
    problem, keywords = SPOILED[name]
    with pytest.warns(ToleranceWarning, match="limited by"):
        solution = route(problem, rtol=1e-2, **keywords)
    estimate: Any = solution.error_estimate
    assert "was asked for a relative error of 1.0e-02" in solution.status
    assert estimate.truncation > 1e-2
    for true, estimated in zip(true_errors(solution), (estimate.value, estimate.policy), strict=True):
        assert true / 3 < estimated < 3 * true
    assert estimate.policy > 1e-2


HARMLESS: dict[str, tuple[ControlProblem, Any]] = {
    "wide": (LQ, {"box": Box([-5.0], [5.0]), "cells": 80}),
    "two dimensions": (LQ2, {"box": Box([-4.0] * 2, [4.0] * 2), "cells": 20}),
    "bounded": (zoo.get("reflected", 1), {"cells": 32}),
    "right boundary values": (NARROW, {"box": Box([-1.0], [1.2]), "cells": 32, "boundary": exact_value(NARROW)}),
    "disc with right values": (CLOSE, {"mesh": DISC, "boundary": exact_value(CLOSE)}),
    "no box": (zoo.get("linear-ou", 1), {"cells": 96}),  # one is chosen
}


@pytest.mark.parametrize(
    ("name", "route"),
    [
        *((name, solve_on_mesh) for name in HARMLESS),
        *((name, refine_on_mesh) for name in ("bounded", "disc with right values", "no box")),
    ],
)
def test_faces_that_do_no_harm_do_not_matter(name: str, route: Any):
    problem, keywords = HARMLESS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = route(problem, rtol=1e-2, **keywords)
    estimate: Any = solution.error_estimate
    assert solution.status == "ok"
    assert estimate.met(1e-2)
    assert estimate.truncation < 1e-3
    assert max(true_errors(solution)) < 1e-2


def test_a_box_next_to_an_absorbing_face():
    """The face stays, and only the other one is moved out."""
    domain = Box([-0.7], [np.inf], [("absorbing", "natural")], lambda t, x: np.full(x.shape[:-1], -0.7))
    half = replace(zoo.get("linear-ou", 1, cov=0.02), domain=domain, exact=None, marginal=None)
    far = unended(half, 2e-2)
    assert far is not None
    assert far.value(0.3, [[-0.7]])[0] == pytest.approx(-0.7, rel=1e-4)
    for end in (0.7, 4.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ToleranceWarning)
            solution = solve_on_mesh(half, rtol=2e-2, cells=64, box=replace(domain, upper=[end]))
        row = compare({"it": solution}, far, problem=half).overall("it")
        estimate: Any = solution.error_estimate
        assert estimate.met(2e-2) == (solution.status == "ok") == (end > 1.0)
        assert max(row.value, row.policy) <= 1.01 * max(estimate.value, estimate.policy)


def test_a_natural_face_of_the_domain_is_moved_out_too():
    cut = replace(LQ, domain=Box([-2.0], [2.0], boundary="natural"))
    assert ends_early(cut)
    far = unended(cut, 1e-2)
    assert far is not None
    assert far.space.spatial.box.bounds[1][0] > 2.5
    assert not ends_early(zoo.get("reflected", 1))


def test_what_cannot_be_told_is_infinite_and_not_nothing():
    """The drift is a number on the mesh only, so there is no solution without faces."""

    def drift(t: Any, x: FloatArray) -> FloatArray:
        return np.where(np.abs(x) > 2.5, np.nan, -x)

    problem = replace(LQ, drift=drift, exact=None)
    assert unended(problem, 1e-2) is None
    for route in ROUTES:
        with pytest.warns(ToleranceWarning, match="limited by truncation"):
            solution = route(problem, rtol=1e-2, cells=48, box=Box([-2.4], [2.4]))
        estimate: Any = solution.error_estimate
        assert np.isinf([estimate.value, estimate.policy, estimate.truncation]).all()
        assert estimate.space < 1e-2
    assert isinstance(solution, Solution)
    known = ErrorEstimate(value=1e-3, policy=2e-3, space=2e-3, time=0.0, truncation=0.0)
    assert with_truncation(known, solution, None, 1e-2).truncation == np.inf


def test_an_infinite_value_is_an_error_on_a_mesh_too():
    problem = replace(
        LQ, drift=lambda t, x: 0.0 * x, terminal_reward=lambda x: (x**2).sum(-1), exact=None, marginal=None
    )
    with pytest.raises(InfiniteValueError):
        refine_on_mesh(problem, rtol=1e-2, box=Box([-3.0], [3.0]))
