r"""The linear equation for f in forms that know no mesh: rows of basis values, gradients and coefficients at points.

Write rho = (r - c_r)/alpha <= 0 for the gauged running reward and G f = <b, grad f> + 1/2 Tr(Lambda Hess f). The
gauged f solves d_t f + G f + rho f = 0, f_T = exp((y - c_y)/alpha). Along the uncontrolled process X every function f
and test function g satisfy, with B[f, g] = l(g) at the solution,

    B[f, g] = -int_0^T E[ (d_t f + G f + rho f)(X_t) g_t(X_t) ] dt + E[ f_T(X_T) g_T(X_T) ],
    l(g)    = E[ exp((y(X_T) - c_y)/alpha) g_T(X_T) ],

and Ito's formula for f_t(X_t)^2 gives the energy identity

    B[f, f] = 1/2 E f_T^2 + 1/2 E f_0^2 + 1/2 int E[ grad f' Lambda grad f ] dt - int E[ rho f^2 ] dt,

so that B is coercive (arXiv 2509.02528). Three ways to write the interior term, each as a product (test row) x (trial
row) integrated against a measure; the terminal term is always the product of values with values:

residual   -(d_t f + G f + rho f) g. Second derivatives at points: C1 functions only. It vanishes pointwise at the
           solution, so a sampled form has no noise there.
weak       -(d_t f + <u, grad f> + rho f) g + 1/2 grad g' Lambda grad f, integrated by parts against the density p_t,
           with the current velocity u = b - 1/2 div Lambda - 1/2 Lambda grad log p_t. Continuous functions suffice.
increment  -(f_{k+1} - f_k - grad f_k' M_k + dt/2 (rho_k f_k + rho_{k+1} f_{k+1})) g_k / dt from consecutive states of a
           trajectory, M_k a martingale increment that follows the state's own. Continuous functions suffice, and the
           noise at the solution is of order dt per step instead of sqrt(dt).

All functions work on one batch of m points. `time` is (m, 2, l_t), values and derivatives of the time basis;
phi (m, l), dphi (m, l, d), d2phi (m, l, d, d) those of the space basis. Rows of products are time-major, (m, l_t l).
"""

from collections.abc import Callable

import numpy as np

from fem_hjb._checks import FloatArray


def product_rows(time: FloatArray, space: FloatArray) -> FloatArray:
    """Products of time functions (m, l_t) with space functions (m, l), shape (m, l_t l), time-major."""
    return np.asarray((time[:, :, None] * space[:, None, :]).reshape(len(time), -1))


def transport_rows(phi: FloatArray, dphi: FloatArray, velocity: FloatArray, rate: FloatArray) -> FloatArray:
    """<velocity, grad phi> + rate phi, with velocity (m, d) and rate (m,)."""
    return np.asarray(np.einsum("mid,md->mi", dphi, velocity) + rate[:, None] * phi)


def residual_rows(
    time: FloatArray,
    space: tuple[FloatArray, FloatArray, FloatArray],
    drift: FloatArray,
    diffusion: FloatArray,
    rate: FloatArray,
) -> FloatArray:
    """-(d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + rho f) of every product function; drift (m, d), diffusion
    (m, d, d), rate rho (m,)."""
    phi, dphi, d2phi = space
    generator = transport_rows(phi, dphi, drift, rate) + 0.5 * np.einsum("mijk,mjk->mi", d2phi, diffusion)
    return -product_rows(time[:, 1], phi) - product_rows(time[:, 0], generator)


def weak_rows(
    time: FloatArray,
    space: tuple[FloatArray, FloatArray],
    current: FloatArray,
    rate: FloatArray,
) -> FloatArray:
    """-(d_t f + <u, grad f> + rho f), the part of the weak form that is tested with values; current u (m, d)."""
    phi, dphi = space
    return -product_rows(time[:, 1], phi) - product_rows(time[:, 0], transport_rows(phi, dphi, current, rate))


def gradient_rows(time: FloatArray, dphi: FloatArray, factor: FloatArray) -> FloatArray:
    """The d rows C' grad f, shape (d, m, l_t l), for Lambda = C C' with factor C (m, d, d).

    Their products sum to grad g' Lambda grad f: the energy, and twice the second-order part of the weak form.
    """
    whitened = np.einsum("mjk,mij->kmi", factor, dphi)
    return np.stack([product_rows(time[:, 0], part) for part in whitened])


def increment_rows(
    time: FloatArray,
    space: tuple[FloatArray, FloatArray],
    martingale: FloatArray,
    rate: FloatArray,
    dt: FloatArray,
) -> FloatArray:
    """(f_k + grad f_k' M_k)/dt - rho_k f_k / 2: the part of the increment form at the first of two states.

    martingale M (m, d), rate (m,), dt (m,).
    """
    phi, dphi = space
    rows = phi / dt[:, None] + transport_rows(phi, dphi, martingale / dt[:, None], -0.5 * rate)
    return product_rows(time[:, 0], rows)


def successor_rows(time: FloatArray, phi: FloatArray, rate: FloatArray, dt: FloatArray) -> FloatArray:
    """-f_{k+1}/dt - rho_{k+1} f_{k+1} / 2: the part of the increment form at the second state."""
    return product_rows(time[:, 0], -(1.0 / dt + 0.5 * rate)[:, None] * phi)


def martingale_increment(step: FloatArray, drift: FloatArray, next_drift: FloatArray, dt: FloatArray) -> FloatArray:
    """M_k = X_{k+1} - X_k - dt/2 (b_k(X_k) + b_{k+1}(X_{k+1})), shape (m, d).

    Its conditional mean given X_k is O(dt^3), where that of X_{k+1} - X_k - dt b_k(X_k) is O(dt^2).
    """
    return np.asarray(step - 0.5 * dt[:, None] * (drift + next_drift))


def current_velocity(
    drift: FloatArray, diffusion: FloatArray, divergence: FloatArray | float, score: FloatArray
) -> FloatArray:
    """u = b - 1/2 div Lambda - 1/2 Lambda grad log p, shape (m, d); 0 for a reversible process in equilibrium."""
    return np.asarray(drift - 0.5 * divergence - 0.5 * np.einsum("mij,mj->mi", diffusion, score))


def row_divergence(
    diffusion: Callable[[FloatArray], FloatArray], x: FloatArray, spacing: FloatArray | float
) -> FloatArray:
    """(div Lambda)_i = sum_j d_j Lambda_ij at x (m, d), by central differences of x -> Lambda (m, d, d).

    spacing : of the differences, one number or one per axis.
    """
    result = np.zeros(x.shape)
    for j, shift in enumerate(np.diag(np.broadcast_to(spacing, x.shape[1:]))):
        forward, backward = x + shift, x - shift
        difference = diffusion(forward)[..., j] - diffusion(backward)[..., j]
        result += difference / (forward - backward)[:, j, None]
    return result
