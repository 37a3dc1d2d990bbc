r"""Norms under the law of the process: of values in L2(p_t), of policies pointwise in |a|^2 = a' Lambda_t(x)^{-1} a."""

import numpy as np

from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray


def policy_squares(problem: ControlProblem, t: float, x: FloatArray, pi: FloatArray) -> FloatArray:
    """pi' Lambda_t(x)^{-1} pi, (n,), of policies (n, d) at points (n, d)."""
    constant = problem.constant_diffusion
    inverse = np.linalg.inv(problem.Lambda(t, x) if constant is None else constant)
    return np.asarray(np.einsum("ni,nij,nj->n", pi, np.broadcast_to(inverse, (*pi.shape, pi.shape[1])), pi))
