"""Solutions that go out to JAX: compiled, mapped, differentiated; in both precisions."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.interop import precision
from fem_hjb.interop.jax import as_jax
from fem_hjb.support.errors import DomainError, ProblemError

ONE = fh.solve(fh.zoo.get("mixture-diffusion", dim=1, horizon=0.3), rtol=1e-6)  # float32(0.3) > 0.3
TWO = fh.solve(fh.zoo.get("mixture-diffusion", dim=2), rtol=1e-3)
T = np.array([0.1, 0.5, 0.9, 0.0]).astype(np.float32).astype(np.float64)  # numbers of both precisions
X = (0.5 * np.random.default_rng(0).standard_normal((4, 2))).astype(np.float32).astype(np.float64)


@pytest.fixture(params=[True, False], ids=["float64", "float32"])
def rtol(request: pytest.FixtureRequest) -> Iterator[float]:
    """Rounding of either precision."""
    with jax.enable_x64(request.param):
        yield 1e-14 if request.param else 1e-6


def near(found: Any, expected: Any, rtol: float) -> None:
    assert found.dtype == (jnp.float64 if rtol < 1e-10 else jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_it_says_what_the_solution_says(rtol: float, wrap: Callable[[Any], Any]) -> None:
    of = as_jax(TWO)
    for t in (T, 0.25, 0):
        near(wrap(of.value)(t, X), TWO.value(t, X), rtol)
        near(wrap(of.policy)(t, X), TWO.policy(t, X), 10 * rtol)
    assert wrap(of.value)(0.25, X[0]).shape == ()
    assert wrap(of.value)(T, X[0]).shape == (4,)
    assert wrap(of.value)(0.25, X.reshape(2, 2, 2)).shape == (2, 2)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_vmap_over_points_times_and_both(rtol: float, wrap: Callable[[Any], Any]) -> None:
    of = as_jax(TWO)
    near(wrap(jax.vmap(of.value))(T, X), TWO.value(T, X), rtol)
    near(wrap(jax.vmap(of.value, (None, 0)))(0.25, X), TWO.value(0.25, X), rtol)
    near(wrap(jax.vmap(of.value, (0, None)))(T, X), TWO.value(T[:, None], X[None]), rtol)
    near(wrap(jax.vmap(jax.vmap(of.value, (None, 0)), (0, None)))(T, X), TWO.value(T[:, None], X[None]), rtol)
    near(wrap(jax.vmap(of.policy))(T, X), TWO.policy(T, X), 10 * rtol)


def test_a_batch_is_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def counting(solution: Any, what: str, t: Any, x: Any, outside: str) -> Any:
        seen.append(x.shape)
        return precision.answer(solution, what, t, x, outside)

    monkeypatch.setattr("fem_hjb.interop.jax.answer", counting)
    jax.block_until_ready(jax.vmap(as_jax(TWO).value)(jnp.asarray(T), jnp.asarray(X)))
    assert seen == [(4, 2)]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_derivatives_are_the_gradient_of_the_solution(rtol: float, wrap: Callable[[Any], Any]) -> None:
    of, slope = as_jax(TWO), TWO.gradient(T, X)
    near(wrap(jax.vmap(jax.grad(of.value, 1)))(T, X), slope, 10 * rtol)
    near(wrap(jax.grad(lambda x: (of.value(T, x) ** 2).sum()))(X), 2 * TWO.value(T, X)[:, None] * slope, 100 * rtol)
    direction = np.ones_like(X)
    _, change = wrap(lambda x, dx: jax.jvp(lambda x: of.value(T, x), (x,), (dx,)))(X, direction)
    near(change, slope.sum(-1), 10 * rtol)
    shared = wrap(jax.grad(lambda x: of.value(T, x).sum()))(X[0])
    near(shared, TWO.gradient(T, np.tile(X[0], (4, 1))).sum(0), 100 * rtol)


def test_finite_differences_agree_with_the_derivative() -> None:
    with jax.enable_x64(True):
        of, x, h = as_jax(ONE), jnp.array([[0.2], [-0.4]]), 1e-5
        found = jax.grad(lambda x: of.value(0.1, x).sum())(x)
        difference = (of.value(0.1, x + h) - of.value(0.1, x - h)) / (2 * h)
        np.testing.assert_allclose(found[:, 0], difference, atol=1e-6)


def test_the_horizon_of_single_precision_is_the_horizon() -> None:
    of, x = as_jax(ONE), jnp.zeros((1, 1))
    assert of.value(jnp.float32(0.3), x)[0] == pytest.approx(ONE.value(0.3, [[0.0]])[0], abs=1e-6)
    with pytest.raises(Exception, match=r"t must lie in \[0, 0.3\]"):
        jax.block_until_ready(of.value(0.30001, x))


def test_outside_is_as_the_solution_has_it() -> None:
    far = jnp.full((1, 1), 1e3)
    of = as_jax(ONE, outside="nan")
    assert jnp.isnan(of.value(0.0, far)).all()
    assert jnp.isnan(jax.grad(lambda x: of.value(0.0, x).sum())(far)).all()
    with pytest.raises(Exception, match="outside"):
        jax.block_until_ready(as_jax(ONE).value(0.0, far))


def test_what_has_no_derivative_says_so_instead_of_zero() -> None:
    of, x = as_jax(ONE), jnp.zeros((2, 1))
    with pytest.raises(TypeError, match=r"not differentiable by t here: use jax.lax.stop_gradient\(t\)"):
        jax.grad(lambda t: of.value(t, x).sum())(0.1)
    with pytest.raises(TypeError, match=r"policy of a solution is not differentiable: use jax.lax.stop_gradient\(x\)"):
        jax.grad(lambda x: of.policy(0.1, x).sum())(x)
    with pytest.raises(TypeError, match="gradient of a solution has no derivative"):
        jax.hessian(lambda x: of.value(0.1, x).sum())(x)
    stopped = jax.grad(lambda s: of.value(jax.lax.stop_gradient(s), s * x + 0.1).sum())(0.1)
    assert stopped == 0.0  # x = 0: the derivative by s is grad v . x


def test_functions_of_jax_arrays_come_in_as_they_are() -> None:
    problem = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=jax.jit(lambda t, x: -x),
        diffusion=1.0,
        terminal_reward=jax.jit(lambda x: -(x[..., 0] ** 2)),
        initial_law=fh.Gaussian([0.0], 1.0),
    )
    assert fh.solve(problem, rtol=1e-3).value(0.0, [[0.0]]) == pytest.approx(
        -0.5 * np.log(1 + (1 - np.exp(-2.0))), abs=1e-3
    )


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: as_jax("a"), ProblemError, "as_jax needs the solution of solve.*got str"),
        (lambda: as_jax(ONE, outside="zero"), DomainError, "outside must be one of"),
        (lambda: as_jax(ONE).value(0.0, jnp.zeros((1, 2))), DomainError, r"shape \(..., 1\), got shape \(1, 2\)"),
        (lambda: as_jax(ONE).value(0.0, 1.0), DomainError, r"got shape \(\)"),
        (lambda: as_jax(ONE).value(0.0, jnp.zeros((1, 1), int)), DomainError, "array of floats.*got int"),
        (lambda: as_jax(ONE).value(1j, jnp.zeros((1, 1))), DomainError, "t must be a number or an array of real"),
        (lambda: as_jax(ONE).policy(jnp.zeros(3), jnp.zeros((2, 1))), DomainError, r"t of shape \(3,\) does not fit"),
    ],
)
def test_calls_that_do_not_fit(call: Callable[[], Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()
