"""JAX: solutions as functions that JAX compiles, maps and differentiates.

Functions of JAX arrays need nothing to come in: their results are arrays for NumPy, in single precision unless JAX is
told otherwise (`jax.config.update("jax_enable_x64", True)`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np

from fem_hjb.interop.precision import answer, checked_shapes, checked_solution
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.errors import DomainError, MissingPackageError

try:
    import jax
    import jax.numpy as jnp
    from jax.custom_derivatives import SymbolicZero
except ImportError as missing:
    raise MissingPackageError('fem_hjb.interop.jax needs JAX: pip install "fem_hjb[jax]"') from missing

__all__ = ["SolutionFunctions", "as_jax"]


@final
@dataclass(frozen=True, eq=False)
class SolutionFunctions:
    """v and pi of a solution as functions of JAX arrays; see `as_jax`.

    value(t, x) is v_t(x), of the shape S to which t and x (..., d) broadcast; policy(t, x) is (1/alpha) Lambda grad v,
    shape (*S, d).
    """

    value: Callable[[Any, Any], Any]
    policy: Callable[[Any, Any], Any]


def as_jax(solution: Solution | ProductSolution, *, outside: str = "error") -> SolutionFunctions:
    """The value and the policy of a solution, to be used under jit, vmap and grad.

    t is a number or an array, x an array (..., d). What comes back has the type of x: that is float32 unless JAX was
    told `jax.config.update("jax_enable_x64", True)`; either way it was computed on the CPU in float64, by a callback.
    The derivative of the value by x, forward or reverse, is `solution.gradient`; it is not differentiated twice, nor
    by t, nor is the policy: a TypeError says so.
    outside : as in `Solution.value`: "error" raises DomainError (which compiled code shows as an error of JAX with the
        same text), "nan" returns nan outside the domain.
    """
    known = checked_solution(solution, outside, "as_jax")
    ask = partial(_asked, known, outside)
    gradient = _underivable(partial(ask, "gradient"), "the gradient of a solution has no derivative here")
    value = jax.custom_jvp(partial(ask, "value"))

    def slope(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
        if not isinstance(tangents[0], SymbolicZero):
            raise TypeError("the value of a solution is not differentiable by t here: use jax.lax.stop_gradient(t)")
        change = tangents[1]
        if isinstance(change, SymbolicZero):
            return value(*primals), jnp.zeros(primals[1].shape[:-1], primals[1].dtype)
        return value(*primals), (gradient(*primals) * change).sum(axis=-1)

    value.defjvp(slope, symbolic_zeros=True)
    policy = _underivable(
        partial(ask, "policy"), "the policy of a solution is not differentiable: use jax.lax.stop_gradient(x)"
    )
    dim = known.problem.dim
    return SolutionFunctions(
        value=lambda t, x: value(*_aligned(t, x, dim)), policy=lambda t, x: policy(*_aligned(t, x, dim))
    )


def _underivable(function: Callable[[Any, Any], Any], why: str) -> Any:
    """The function, with a TypeError where JAX has none of its own that says why."""
    wrapped = jax.custom_jvp(function)

    def refuse(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
        raise TypeError(why)

    wrapped.defjvp(refuse)
    return wrapped


def _asked(solution: Solution | ProductSolution, outside: str, what: str, t: Any, x: Any) -> Any:
    """value (S), gradient or policy (*S, d) for t (S) and x (*S, d), by a callback; S grows in front under vmap."""
    shape = x.shape[:-1] if what == "value" else x.shape

    def called(times: Any, points: Any) -> Any:
        found = answer(solution, what, np.asarray(times), np.asarray(points), outside)
        return found.astype(x.dtype)

    return jax.pure_callback(called, jax.ShapeDtypeStruct(shape, x.dtype), t, x, vmap_method="broadcast_all")


def _aligned(t: Any, x: Any, dim: int) -> tuple[Any, Any]:
    """t (S) and x (*S, d) of one type: batches that vmap adds in front then fit each other."""
    points = jnp.asarray(x)
    if not jnp.issubdtype(points.dtype, jnp.floating):
        raise DomainError(f"x must be an array of floats (..., {dim}), got {points.dtype}")
    times = jnp.asarray(t)
    if jnp.issubdtype(times.dtype, jnp.complexfloating):
        raise DomainError(f"t must be a number or an array of real numbers, got {times.dtype}")
    shape = checked_shapes(times.shape, points.shape, dim, "as_jax")
    times = times.astype(jnp.promote_types(times.dtype, points.dtype))
    return jnp.broadcast_to(times, shape), jnp.broadcast_to(points, (*shape, dim))
