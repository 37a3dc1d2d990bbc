"""An iterative solver for the matrices of a time step."""

from collections.abc import Callable

import numpy as np
from scipy.linalg.blas import daxpy

from fem_hjb.support.checks import FloatArray


def bicgstab(
    apply: Callable[[FloatArray], FloatArray], rhs: FloatArray, guess: FloatArray, rtol: float, limit: int
) -> tuple[FloatArray | None, int]:
    """The solution of A x = rhs, where apply(v) = A v, and the iterations that it took; None if they are not enough.

    H. A. van der Vorst's method (SIAM J. Sci. Stat. Comput. 13 (1992) 631-644), until |rhs - A x| <= rtol |rhs|; like
    that of SciPy, but without its copies.
    """
    x, r = guess.copy(), rhs - apply(guess)
    enough = rtol * float(np.sqrt(rhs @ rhs))
    if not np.sqrt(r @ r) > enough:
        return (x, 0) if np.isfinite(r @ r) else (None, 0)
    shadow, p = r.copy(), r.copy()
    rho = float(r @ r)
    for done in range(1, limit + 1):
        v = apply(p)
        across = float(shadow @ v)
        if across == 0.0 or not np.isfinite(across):
            return None, done
        alpha = rho / across
        daxpy(v, r, a=-alpha)
        daxpy(p, x, a=alpha)
        if np.sqrt(r @ r) <= enough:
            return x, done
        w = apply(r)
        omega = float(w @ r) / float(w @ w)
        daxpy(r, x, a=omega)
        daxpy(w, r, a=-omega)
        if np.sqrt(r @ r) <= enough:
            return x, done
        before, rho = rho, float(shadow @ r)
        if omega == 0.0 or rho == 0.0 or not np.isfinite(omega * rho):
            return None, done
        daxpy(v, p, a=-omega)
        p *= rho / before * alpha / omega
        p += r
    return None, limit
