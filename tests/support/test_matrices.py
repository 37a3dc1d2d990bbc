"""Many small matrices at once are factorised as one by one."""

import numpy as np
import pytest

from fem_hjb.support.matrices import cholesky


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_factors_are_those_of_lapack(d: int) -> None:
    root = np.random.default_rng(0).standard_normal((4, 50, d, d))
    matrices = root @ np.swapaxes(root, -1, -2) + 1e-3 * np.eye(d)
    factors = cholesky(matrices)
    np.testing.assert_allclose(factors, np.linalg.cholesky(matrices), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(factors, np.tril(factors))
    np.testing.assert_array_equal(cholesky(matrices[0, 0]), np.linalg.cholesky(matrices[0, 0]))


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_one_that_is_not_positive_definite_is_an_error(d: int, bad: float) -> None:
    matrices = np.tile(np.eye(d), (20, 1, 1))
    matrices[7, -1, -1] = bad
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(matrices)
