r"""The linear equation for f in forms that know no mesh: differential operators with coefficients at points.

Write rho = (r - c_r)/alpha <= 0 for the gauged running reward and G f = <b, grad f> + 1/2 Tr(Lambda Hess f). The
gauged f solves d_t f + G f + rho f = 0, f_T = exp((y - c_y)/alpha). Along the uncontrolled process X every function f
and test function g satisfy, with B[f, g] = l(g) at the solution,

    B[f, g] = -int_0^T E[ (d_t f + G f + rho f)(X_t) g_t(X_t) ] dt + E[ f_T(X_T) g_T(X_T) ],
    l(g)    = E[ exp((y(X_T) - c_y)/alpha) g_T(X_T) ],

and Ito's formula for f_t(X_t)^2 gives the energy identity

    B[f, f] = 1/2 E f_T^2 + 1/2 E f_0^2 + 1/2 int E[ grad f' Lambda grad f ] dt - int E[ rho f^2 ] dt,

so that B is coercive (arXiv 2509.02528). Ways to write the interior term, each as products (test operator) x (trial
operator) integrated against a measure; the terminal term is always the product of values with values:

residual   -(d_t f + G f + rho f) g. Second derivatives at points: C1 functions only. It vanishes pointwise at the
           solution, so a sampled form has no noise there.
weak       -(d_t f + <u, grad f> + rho f) g + 1/2 grad g' Lambda grad f, integrated by parts against the density p_t,
           with the current velocity u = b - 1/2 div Lambda - 1/2 Lambda grad log p_t. Continuous functions suffice.
increment  -(f_{k+1} - f_k - grad f_k' M_k + dt/2 (rho_k f_k + rho_{k+1} f_{k+1})) g_k / dt from consecutive states of a
           trajectory, M_k a martingale increment that follows the state's own. Continuous functions suffice, and the
           noise at the solution is of order dt per step instead of sqrt(dt). With M = 0 it needs no model at all.

In each of them g may be replaced by g - delta d_t g, which makes B bounded, not only coercive, in a norm with d_t f.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from fem_hjb.support.checks import FloatArray, IntArray


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Operator:
    """f -> value f + time d_t f + <gradient, grad f> + <mixed, grad d_t f> + Tr(hessian Hess f) at m points.

    value, time : numbers, or one per point (m,).  gradient, mixed : (d,) or (m, d).  hessian : (d, d) or (m, d, d),
    symmetric. None stands for zero. What is the same at all points should be given once: sums over samples are faster.
    """

    value: FloatArray | float = 0.0
    time: FloatArray | float = 0.0
    gradient: FloatArray | None = None
    mixed: FloatArray | None = None
    hessian: FloatArray | None = None


Pairing = tuple[Operator, Operator]
"""A test and a trial operator; in a form it stands for the integral of their product."""

Load = tuple[Operator, FloatArray]
"""A test operator and the numbers y (m,) it is integrated against."""

VALUE = Operator(value=1.0)
RATE_OF_CHANGE = Operator(time=1.0)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Integrands:
    """Forms, each a sum of pairings, and loads, at m points: what is to be summed over samples in one pass.

    operators : all that occur, an operator that is used several times only once: its rows are formed once.
    forms : per form, the numbers (test, trial) of its pairings.  loads : the number of the test, and y (m,).
    """

    operators: tuple[Operator, ...]
    forms: tuple[tuple[tuple[int, int], ...], ...]
    loads: tuple[tuple[int, FloatArray], ...]

    @classmethod
    def of(cls, forms: Sequence[Sequence[Pairing]], loads: Sequence[Load] = ()) -> "Integrands":
        """Of forms and loads whose operators are objects; the same object is the same operator."""
        used = [operator for form in forms for pairing in form for operator in pairing]
        operators = tuple(dict.fromkeys(used + [test for test, _ in loads]))
        number = {operator: k for k, operator in enumerate(operators)}
        return cls(
            operators=operators,
            forms=tuple(tuple((number[test], number[trial]) for test, trial in form) for form in forms),
            loads=tuple((number[test], target) for test, target in loads),
        )

    def take(self, rows: IntArray) -> "Integrands":
        """The same at some of the points."""

        def part(operator: Operator) -> Operator:
            given = ((name, getattr(operator, name), constant) for name, constant in _CONSTANT.items())
            return Operator(
                **{name: v if v is None or np.ndim(v) == constant else v[rows] for name, v, constant in given}
            )

        operators = tuple(part(operator) for operator in self.operators)
        return replace(self, operators=operators, loads=tuple((test, target[rows]) for test, target in self.loads))


_CONSTANT = {"value": 0, "time": 0, "gradient": 1, "mixed": 1, "hessian": 2}  # dimensions of what is constant


def residual(drift: FloatArray, diffusion: FloatArray, rate: FloatArray | float) -> Operator:
    """-(d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + rho f)."""
    return Operator(value=-rate, time=-1.0, gradient=-drift, hessian=-0.5 * diffusion)


def transport(current: FloatArray, rate: FloatArray | float) -> Operator:
    """-(d_t f + <u, grad f> + rho f), the part of the weak form that is tested with values."""
    return Operator(value=-rate, time=-1.0, gradient=-current)


def tested(delta: float) -> Operator:
    """g - delta d_t g: what the residual is multiplied with in a Sobolev-weighted form."""
    return Operator(value=1.0, time=-delta)


def slopes(factor: FloatArray) -> list[Operator]:
    """The d operators C_k' grad f, for Lambda = C C' with columns C_k; factor (d, d) or (m, d, d).

    Their products sum to grad g' Lambda grad f.
    """
    return [Operator(gradient=np.ascontiguousarray(factor[..., k])) for k in range(factor.shape[-1])]


def flux(factor: FloatArray, delta: float) -> list[Pairing]:
    """1/2 grad(g - delta d_t g)' Lambda grad f as products of tests and trials, factor as in `slopes`."""
    columns = [np.ascontiguousarray(factor[..., k]) for k in range(factor.shape[-1])]
    return [
        (Operator(gradient=0.5 * c, mixed=-0.5 * delta * c if delta else None), Operator(gradient=c)) for c in columns
    ]


def increment(rate: FloatArray | float, dt: FloatArray | float, martingale: FloatArray | None = None) -> Operator:
    """(f_k + <M_k, grad f_k>)/dt - rho_k f_k / 2: the part of an increment at the first of two states.

    martingale : M (m, d), or None for 0.
    """
    slope = None if martingale is None else martingale / np.asarray(dt)[..., None]
    return Operator(value=1.0 / dt - 0.5 * rate, gradient=slope)


def successor(rate: FloatArray | float, dt: FloatArray | float) -> Operator:
    """-f_{k+1}/dt - rho_{k+1} f_{k+1} / 2: the part of an increment at the second state."""
    return Operator(value=-1.0 / dt - 0.5 * rate)


def martingale_increment(step: FloatArray, drift: FloatArray, next_drift: FloatArray, dt: FloatArray) -> FloatArray:
    """M_k = X_{k+1} - X_k - dt/2 (b_k(X_k) + b_{k+1}(X_{k+1})), shape (m, d).

    Its conditional mean given X_k is O(dt^3), where that of X_{k+1} - X_k - dt b_k(X_k) is O(dt^2).
    """
    return np.asarray(step - 0.5 * dt[:, None] * (drift + next_drift))


def current_velocity(
    drift: FloatArray, diffusion: FloatArray, divergence: FloatArray | float, score: FloatArray
) -> FloatArray:
    """u = b - 1/2 div Lambda - 1/2 Lambda grad log p, shape (m, d); 0 for a reversible process in equilibrium.

    diffusion : (d, d) or (m, d, d).
    """
    return np.asarray(drift - 0.5 * divergence - 0.5 * np.einsum("...ij,...j->...i", diffusion, score))
