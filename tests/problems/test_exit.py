"""Exit problems: what is refused, what is called, and the same problem with a horizon."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.support.errors import EllipticityError, ProblemError

BOX = fh.Box([-1.0, 0.0], [1.0, 1.0], boundary=[("absorbing", "absorbing"), ("reflecting", "natural")])


def inwards(x: np.ndarray) -> np.ndarray:
    return -x


def given(**changes: Any) -> fh.ExitProblem:
    known: dict[str, Any] = {"dim": 2, "temperature": 0.5, "drift": inwards, "diffusion": 1.0, "domain": BOX}
    return fh.ExitProblem(**{**known, **changes})


REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "name must be text, got 3": (ProblemError, lambda: given(name=3)),
    "dim must be a positive integer, got 0": (ProblemError, lambda: given(dim=0)),
    "temperature must be a positive": (ProblemError, lambda: given(temperature=-1.0)),
    r"drift must be a callable x -> \(..., d\), got float": (ProblemError, lambda: given(drift=1.0)),
    "running_reward must be a callable": (ProblemError, lambda: given(running_reward=1.0)),
    "exit_reward must be a callable": (ProblemError, lambda: given(exit_reward=np.zeros(2))),
    "diffusion must be symmetric positive definite": (EllipticityError, lambda: given(diffusion=[1.0, -1.0])),
    "domain must be a Box, a MeshDomain or None, got str": (ProblemError, lambda: given(domain="disc")),
    "domain has dimension 1, the problem has dim=2": (
        ProblemError,
        lambda: given(domain=fh.Box([0.0], [1.0], boundary="absorbing")),
    ),
    "needs a face that absorbs": (ProblemError, lambda: given(domain=fh.Box([0.0] * 2, [1.0] * 2))),
    "the exit reward is the problem's own": (
        ProblemError,
        lambda: given(domain=fh.Box([0.0] * 2, [1.0] * 2, boundary="absorbing", exit_reward=lambda t, x: x[..., 0])),
    ),
    r"drift\(x\) returned shape \(5,\)": (ProblemError, lambda: given(drift=lambda x: x[..., 0])),
    r"running_reward\(x\) is not finite": (
        ProblemError,
        lambda: given(running_reward=lambda x: -np.inf / (x[..., 1] + 2.0)),
    ),
    r"exit_reward\(x\) is not finite .* a face that must not be met": (
        ProblemError,
        lambda: given(exit_reward=lambda x: np.where(x[..., 0] > 0, 0.0, -np.inf)),
    ),
    r"diffusion\(x\) must be symmetric positive definite": (
        EllipticityError,
        lambda: given(diffusion=lambda x: -np.eye(2) + 0 * x[..., None]),
    ),
    "returned other numbers": (
        ProblemError,
        lambda: given(drift=lambda x: np.random.default_rng().normal(size=x.shape)),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    error, call = REFUSED[message]
    with pytest.raises(error, match=message):
        call()


def test_callables_are_called_with_points_alone_and_defaults_are_zero() -> None:
    problem = given(diffusion=lambda x: np.eye(2) * (1.0 + x[..., 0] ** 2)[..., None, None])
    x = np.array([[0.5, 0.25], [1.0, 0.0]])
    np.testing.assert_array_equal(problem.b(x), -x)
    np.testing.assert_array_equal(problem.Lambda(x)[0], 1.25 * np.eye(2))
    assert not problem.r(x).any()
    assert not problem.g(x).any()
    assert problem.constant_diffusion is None
    np.testing.assert_allclose(problem.policy_from_gradient(x, np.ones((2, 2)))[1], 4.0)


def test_copies_pickles_and_shows_itself() -> None:
    problem = fh.ExitProblem(dim=2, temperature=0.5, drift=inwards, diffusion=1.0, domain=BOX, name="a")
    for made in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        np.testing.assert_array_equal(made.b([[1.0, 2.0]]), [[-1.0, -2.0]])
    assert len(repr(problem).splitlines()) <= 5
    assert "drift=inwards" in repr(problem)


def test_the_same_problem_with_a_horizon_has_its_coefficients_and_faces() -> None:
    problem = given(running_reward=lambda x: -x[..., 0], exit_reward=lambda x: x[..., 1])
    timed = problem.until(3.0, initial_law=fh.PointMass([0.0, 0.5]), terminal_reward=lambda x: 2.0 + x[..., 0])
    x = np.array([[1.0, 0.25]])
    assert timed.horizon == 3.0
    assert timed.domain is not None
    assert timed.domain.faces == BOX.faces
    np.testing.assert_array_equal(timed.b(1.0, x), -x)
    assert (timed.r(0.0, x)[0], timed.y(x)[0], timed.exit_reward(0.5, x)[0]) == (-1.0, 3.0, 0.25)
    with pytest.raises(ProblemError, match="has no domain"):
        given(domain=None).until(1.0, initial_law=fh.PointMass([0.0, 0.5]))
