"""Exits out of meshes: paths against closed forms and the solution on the same mesh, certificates, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.problems.zoo.meshed import lshape_mesh, ring_mesh
from fem_hjb.support.errors import DomainError, ProblemError

st = fh.stationary
N = 1000


def one(x: np.ndarray) -> np.ndarray:
    return np.ones(x.shape[:-1])


def walk(mesh: Any, boundary: Any, **more: Any) -> fh.ExitProblem:
    """Brownian motion in a mesh."""
    known: dict[str, Any] = {"dim": 2, "temperature": 1.0, "drift": np.zeros_like, "diffusion": 1.0}
    return fh.ExitProblem(**{**known, "domain": fh.MeshDomain(mesh, boundary), **more})


def square(**more: Any) -> fh.ExitProblem:
    """Stopped at the left side of the unit square, reflected at the others."""
    mesh = skfem.MeshTri.init_tensor(*[np.linspace(0, 1, 9)] * 2).with_boundaries({"left": lambda x: x[0] < 1e-9})
    return walk(mesh, {"left": "absorbing", None: "reflecting"}, **more)


def ring(**more: Any) -> fh.ExitProblem:
    return walk(ring_mesh(2.0, 6), "absorbing", **more)


def off(sample: np.ndarray, exact: float, bias: float = 0.0) -> float:
    """How far a mean is off, in standard errors, beyond what time steps do to it."""
    return float(max(abs(sample.mean() - exact) - bias, 0.0) / (sample.std() / math.sqrt(len(sample))))


def test_mean_exit_time_of_a_square_with_one_side_open() -> None:
    """m = 2 x - x^2 solves m''/2 = -1, m(0) = 0, m'(1) = 0."""
    problem = square()
    paths = st.sample_exit(problem, [0.5, 0.3], n=N, rng=0, step=0.03)
    assert paths.left.all()
    np.testing.assert_allclose(paths.exit[:, 0], 0.0, atol=1e-12)
    assert off(paths.time, 0.75, bias=0.02) < 4
    assert off(paths.time, 1.25 * 0.75, bias=0.015) > 4  # a quarter would be seen
    solved = st.exit_expectation_on_mesh(problem, source=one)
    assert float(solved.value([0.5, 0.3])) == pytest.approx(0.75, abs=1e-8)
    assert solved.status == "ok"
    anywhere = fh.Uniform(problem.domain)  # type: ignore[arg-type]
    x, weights = anywhere.quadrature(3)
    assert float(weights @ solved.value(x)) == pytest.approx(2 / 3, abs=1e-8)
    few = st.sample_exit(problem, anywhere, n=200, rng=3, step=0.04)
    assert off(few.time, 2 / 3, bias=0.03) < 4


def test_which_circle_of_a_ring_is_met_first() -> None:
    problem = ring()
    found = st.exit_expectation_on_mesh(problem, h={"inner": 0, "outer": 1}, estimate=False)
    start = [1.3, 0.2]
    exact = math.log(math.hypot(*start)) / math.log(2.0)
    assert float(found.value(start)) == pytest.approx(exact, abs=3e-3)  # of the polygon
    paths = st.sample_exit(problem, start, n=N, rng=1, step=0.01)
    outer = (np.hypot(*paths.exit.T) > 1.5) * 1.0
    assert off(outer, float(found.value(start)), bias=4e-3) < 4
    assert off(outer, exact + 0.1, bias=4e-3) > 4


def test_an_l_with_drift_and_a_policy_by_weights_and_by_a_certificate() -> None:
    """Stopped at the re-entrant corner: the weights of the best policy have next to no spread, and v as their mean."""
    mesh = lshape_mesh(3)
    problem = walk(
        mesh,
        {"corner": "absorbing", None: "reflecting"},
        drift=lambda x: 0.5 * np.stack([-x[..., 1], x[..., 0]], axis=-1),
        running_reward=lambda x: -0.5 * one(x),
        exit_reward=lambda x: 0.3 * x[..., 1],
    )
    solution = st.solve_exit_on_mesh(problem, element="P2", estimate=False)
    start = np.array([-0.5, 0.5])
    value = float(solution.value(start))
    paths = st.sample_exit(problem, start, n=150, rng=2, step=0.02, policy=solution.policy)
    weights = paths.log_weights(problem)
    assert off(np.exp(weights), math.exp(value), bias=8e-3) < 4
    free = st.sample_exit(problem, start, n=150, rng=2, step=0.02).log_weights(problem)
    assert weights.std() < 0.25 * free.std()
    timed = problem.until(1.0, initial_law=fh.PointMass(start), terminal_reward=solution.value)
    assert isinstance(timed.domain, fh.MeshDomain)
    found = fh.certify(timed, lambda t, x: solution.policy(x), n=256, steps=16, rng=0)
    assert found.lower - 5e-3 <= value <= found.upper + 5e-3
    assert found.upper - found.lower < 0.12
    assert found.ess > 230  # of 256: weights are nearly alike


def test_a_domain_says_what_tags_say() -> None:
    named = square(running_reward=lambda x: -one(x))
    by_domain = st.solve_exit_on_mesh(named, element="P2")
    by_tag = st.solve_exit_on_mesh(
        fh.ExitProblem(
            **{name: getattr(named, name) for name in ("dim", "temperature", "drift", "diffusion", "running_reward")}
        ),
        named.domain.mesh,  # type: ignore[union-attr]
        absorbing="left",
    )
    np.testing.assert_array_equal(by_domain.function.coefficients, by_tag.function.coefficients)
    assert str(by_domain.error_estimate) == str(by_tag.error_estimate)


def test_a_ground_state_lives_in_a_mesh() -> None:
    """A drift that is a gradient, no reward: the law is exp(2 x_1) up to a factor, the average reward 0."""
    mesh = skfem.MeshTri.init_tensor(*[np.linspace(0, 1, 7)] * 2)
    problem = fh.ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=1.0,
        drift=lambda t, x: 0.0 * x + [1.0, 0.0],
        diffusion=1.0,
        terminal_reward=lambda x: 0.0 * x[..., 0],
        initial_law=fh.PointMass([0.5, 0.5]),
        domain=fh.MeshDomain(mesh),
    )
    state = st.ground_state_on_mesh(problem, estimate=False)
    assert abs(state.average_reward) < 1e-9
    x = np.array([[0.2, 0.5], [0.8, 0.1]])
    np.testing.assert_allclose(state.density(x), 2 * np.exp(2 * x[:, 0]) / (math.exp(2) - 1), rtol=1e-3)


SQUARE = square()
SLANTED = square(diffusion=[[1.0, 0.3], [0.3, 1.0]])
NATURAL = fh.MeshDomain(ring_mesh(2.0, 4), {"inner": "absorbing", "outer": "natural"})
REFUSED: dict[str, tuple[type[Exception], Any]] = {
    "needs a problem with domain=Box.*on a mesh it is solve_exit_on_mesh": (
        DomainError,
        lambda: fh.solve_exit(SQUARE),
    ),
    "needs a mesh, or a problem whose domain is a MeshDomain": (
        DomainError,
        lambda: st.solve_exit_on_mesh(fh.ExitProblem(dim=2, temperature=1.0, drift=np.zeros_like, diffusion=1.0)),
    ),
    "is a mesh, and says what absorbs; leave out mesh= and absorbing=": (
        DomainError,
        lambda: st.solve_exit_on_mesh(SQUARE, ring_mesh(2.0, 4)),
    ),
    "says what absorbs; leave out mesh=": (DomainError, lambda: st.solve_exit_on_mesh(SQUARE, absorbing="left")),
    r"h must name all that absorbs in the domain of 'user problem', and no more, got \['inner'\]": (
        DomainError,
        lambda: st.exit_expectation_on_mesh(ring(), h={"inner": 1}),
    ),
    r"absorbing must name tags of mesh.boundaries, of \['left'\]": (
        DomainError,
        lambda: st.exit_expectation_on_mesh(SQUARE, h={"right": 1}),
    ),
    "needs Lambda n parallel to n there": (DomainError, lambda: st.solve_exit_on_mesh(SLANTED)),
    "absorbs or reflects, got a natural part": (ProblemError, lambda: ring(domain=NATURAL)),
    "needs a face that absorbs": (ProblemError, lambda: ring(domain=fh.MeshDomain(ring_mesh(2.0, 4)))),
    "domain has dimension 2, the problem has dim=1": (ProblemError, lambda: ring(dim=1)),
    r"start must lie inside the domain, got \[0.1, 0.1\]": (
        DomainError,
        lambda: st.sample_exit(ring(), [0.1, 0.1], n=4, rng=0, step=0.1),
    ),
    r"start must lie inside the domain, got \[0.0, 0.5\]": (
        DomainError,
        lambda: st.sample_exit(SQUARE, [0.0, 0.5], n=4, rng=0, step=0.1),
    ),
    "is not finite": (
        ProblemError,
        lambda: square(exit_reward=lambda x: np.where(x[..., 0] < 0.1, np.nan, 0.0)),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    error, call = REFUSED[message]
    with pytest.raises(error, match=message):
        call()
