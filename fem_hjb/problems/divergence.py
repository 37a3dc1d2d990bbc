"""The divergence of a variable diffusion matrix."""

from collections.abc import Callable

import numpy as np

from fem_hjb.support.checks import FloatArray


def row_divergence(
    diffusion: Callable[[FloatArray], FloatArray],
    x: FloatArray,
    spacing: FloatArray | float,
    bounds: tuple[FloatArray, FloatArray] | None = None,
) -> FloatArray:
    """(div Lambda)_i = sum_j d_j Lambda_ij at x (m, d), by central differences of x -> Lambda (m, d, d).

    spacing : of the differences, one number or one per axis.  bounds : of the box that Lambda is defined in; next to
    its faces the differences are one-sided.
    """
    result = np.zeros(x.shape)
    lower, upper = (-np.inf, np.inf) if bounds is None else bounds
    for j, shift in enumerate(np.diag(np.broadcast_to(spacing, x.shape[1:]))):
        forward, backward = np.minimum(x + shift, upper), np.maximum(x - shift, lower)
        difference = diffusion(forward)[..., j] - diffusion(backward)[..., j]
        result += difference / (forward - backward)[:, j, None]
    return result
