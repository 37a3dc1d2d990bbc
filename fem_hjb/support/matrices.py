"""Many small matrices at once."""

import numpy as np

from fem_hjb.support.checks import FloatArray

_MOST = 3  # rows of a matrix, up to which loops over its entries beat a call of LAPACK for each


def cholesky(matrices: FloatArray) -> FloatArray:
    """The lower Cholesky factors of symmetric matrices (..., d, d), as `numpy.linalg.cholesky`, 2 to 4 times as fast.

    Only lower triangles are read. Raises numpy.linalg.LinAlgError where one of them is not positive definite.
    """
    d = matrices.shape[-1]
    if d > _MOST or matrices.ndim < 3:
        return np.asarray(np.linalg.cholesky(matrices))
    result = np.zeros(matrices.shape)
    for j in range(d):
        row = result[..., j, :j]
        square = matrices[..., j, j] - sum(row[..., k] ** 2 for k in range(j))
        if not (square > 0).all():
            raise np.linalg.LinAlgError(f"a matrix of {d} rows is not positive definite")
        result[..., j, j] = np.sqrt(square)
        for i in range(j + 1, d):
            left = matrices[..., i, j] - sum(result[..., i, k] * row[..., k] for k in range(j))
            result[..., i, j] = left / result[..., j, j]
    return result
