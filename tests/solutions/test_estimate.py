"""Estimates as numbers with names: totals, what limits them, storage, and the norms in which two solutions differ."""

import json
import math
from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.solutions.compare import difference
from fem_hjb.solutions.estimate import ErrorEstimate, ToleranceWarning, combine
from fem_hjb.solutions.solution import Solution
from fem_hjb.support.errors import ConvergenceError

EXAMPLE = combine({"space": 1e-3, "time": 2e-3}, {"space": 4e-3, "truncation": 5e-4})


def solution_of(coefficients_of: Any, name: str = "linear-ou", box: Box | None = None) -> Solution:
    """A solution on [-8, 8], or the box, with the coefficients coefficients_of(f) in place of f."""
    solved = solve_on_mesh(zoo.get(name, 1), cells=40, steps=8, box=Box([-8.0], [8.0]) if box is None else box)
    return Solution(
        problem=solved.problem,
        space=solved.space,
        coefficients=coefficients_of(np.array(solved.coefficients), solved.space.spatial.nodes[:, 0]),
        gauge=solved.gauge,
        method="mesh",
        status="ok",
    )


def test_totals_are_sums_of_parts_and_parts_the_larger_share():
    assert EXAMPLE.value == pytest.approx(3e-3)
    assert EXAMPLE.policy == pytest.approx(4.5e-3)
    assert (EXAMPLE.space, EXAMPLE.time, EXAMPLE.truncation) == (4e-3, 2e-3, 5e-4)
    assert EXAMPLE.limited_by == "space"
    assert combine({"time": 1.0}, {"truncation": 2.0}).limited_by == "truncation"


def test_a_tolerance_is_met_by_value_and_policy_alike():
    assert EXAMPLE.met(4.6e-3)
    assert not EXAMPLE.met(4e-3)
    assert not combine({"space": 1e-2}, {"space": 1e-5}).met(1e-3)
    assert not combine({"space": math.inf}, {}).met(0.1)


def test_storage_keeps_every_bit():
    text = json.dumps(EXAMPLE.as_dict())
    assert ErrorEstimate.from_dict(json.loads(text)).as_dict() == EXAMPLE.as_dict()


def test_text_for_people():
    assert str(EXAMPLE) == "value 3.0e-03, policy 4.5e-03 (space 4.0e-03, time 2.0e-03, truncation 5.0e-04)"
    message = EXAMPLE.complaint(1e-3, "solve")
    assert message.startswith("solve was asked for a relative error of 1.0e-03 but reached an estimate of 4.5e-03")
    assert "limited by space: refine the mesh" in message
    assert "take more time steps" in combine({"time": 1.0}, {}).complaint(1e-3, "solve")
    assert "take a larger box" in combine({"truncation": 1.0}, {}).complaint(1e-3, "solve")
    assert issubclass(ToleranceWarning, UserWarning)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: combine({"spice": 1.0}, {}), "the parts of an error are space, time, truncation, got 'spice'"),
        (lambda: combine({"space": -1.0}, {}), "value must be a number >= 0, got -1.0"),
        (lambda: combine({"space": math.nan}, {}), "value must be a number >= 0, got nan"),
        (lambda: ErrorEstimate.from_dict({"value": 1.0}), "an ErrorEstimate is made of policy, .* got 'value'"),
        (lambda: ErrorEstimate.from_dict(3), "got int"),  # type: ignore[arg-type]
        (lambda: EXAMPLE.met(0.0), "rtol must be a positive finite number, got 0.0"),
    ],
)
def test_bad_input(call: Any, message: str):
    with pytest.raises(ConvergenceError, match=message):
        call()


# The norms of the difference of two solutions


def test_the_norms_are_those_of_the_law():
    """v = p(t) x + c(t) under N(0, 1/2): multiplying f by exp(a + b x) adds a to v and b to the policy pi = p(t)."""
    a, b = 0.03, 0.02
    plain = solution_of(lambda f, x: f)
    moved = solution_of(lambda f, x: f * np.exp(a + b * x))
    value, policy = difference(moved, plain)
    t = np.linspace(0.0, 1.0, 9)
    p = np.exp(t - 1.0)
    c = (1.0 - p**2) / 4.0  # c' = -p^2 / 2
    assert value == pytest.approx(np.sqrt(a**2 + b**2 / 2) / np.sqrt(p**2 / 2 + c**2).max(), rel=1e-3)
    assert policy == pytest.approx(b / p.max(), rel=1e-3)
    assert difference(plain, plain) == (0.0, 0.0)


def test_points_outside_the_mesh_do_not_count_but_points_without_a_value_do():
    narrow = Box([-2.0], [2.2])
    plain, moved = (solution_of(lambda f, x, s=s: f * np.exp(s * x), box=narrow) for s in (0.0, 0.02))
    inside = difference(moved, plain)
    assert max(inside) < 0.05
    lost = solution_of(lambda f, x: np.where(x > 1.01, -f, f))
    whole = solution_of(lambda f, x: f)
    mass = 0.5 * math.erfc(1.0)  # of N(0, 1/2) beyond 1, and there is no value from the patch around 1.01 on
    for pair in ((lost, whole), (whole, lost)):
        value, policy = difference(*pair)
        assert np.sqrt(mass) < min(value, policy)
        assert max(value, policy) < 2 * np.sqrt(mass) + 0.1
    nowhere = solution_of(lambda f, x: np.where(np.abs(x) < 6, -f, f))
    assert difference(nowhere, whole) == (math.inf, math.inf)
