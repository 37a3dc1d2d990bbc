"""Orders of convergence in space, as fitted slopes: values, differentiated gradients and recovered gradients.

Errors are relative, in L2(p_t) integrated by the quadrature rule of the mesh, the larger of t = 0 and t = T/2, on the
set where the density p_t is within a factor of exp(-8) of its maximum; further out, near the truncation of R^d, the
artificial boundary shows.
"""

import dataclasses

import numpy as np
import pytest

from fem_hjb import Box, LinearDrift, solve_on_mesh
from fem_hjb.problems import zoo
from fem_hjb.spaces import ELEMENTS

# Data bumps wide enough for the asymptotic regime to begin on meshes that a test can afford.
WIDE = {"covariances": [[[0.5, 0.1], [0.1, 0.5]], [[0.6, -0.1], [-0.1, 0.6]]]}
PROBLEMS = {
    ("lq", 1): (6.0, {}),
    ("mixture-diffusion", 1): (6.0, {}),
    ("mixture-diffusion", 2): (5.5, WIDE),
    ("reflected", 3): (None, {}),  # a box of its own: no truncation
}
SIZES = {
    (1, "P1"): (64, 96, 128, 192),
    (1, "P2"): (48, 64, 96, 128),
    (1, "P3"): (32, 48, 64, 96),
    (1, "hermite"): (32, 48, 64, 96),
    (2, "P1"): (48, 80),
    (2, "P2"): (40, 64),
    (2, "P3"): (24, 40),
    (2, "hermite"): (26, 34, 44),
    (3, "P2"): (6, 10),
}
TIME = {1: {"steps": 120}, 2: {"rtol_time": 1e-6}, 3: {"rtol_time": 5e-5}}
ENOUGH = {"P1": {"rtol_time": 1e-5}}  # in two dimensions, where errors in space are so much larger


def relative_errors(problem, solution):
    """Of value, differentiated gradient alpha grad f / f, and recovered gradient (the solution's own)."""
    worst = np.zeros(3)
    for t in (0.0, problem.horizon / 2):
        rule = solution.space.spatial.quadrature(2 * solution.space.spatial.degree + 2)
        x = rule.x.reshape(-1, problem.dim)
        log_density = problem.marginal(t).logpdf(x)
        volume = np.broadcast_to(rule.weights * rule.det, rule.x.shape[:2]).ravel()
        keep = log_density > log_density.max() - 8
        x, weights = x[keep], (volume * np.exp(log_density))[keep]

        def relative(found, exact, weights=weights):
            def norm(u):
                return np.sqrt(weights @ (u.reshape(len(weights), -1) ** 2).sum(axis=1))

            return norm(found - exact) / norm(exact)

        slope = solution.space.evaluate(solution.coefficients, t, x, "gradient") / solution.f(t, x)[:, None]
        value, gradient = problem.exact.value(t, x), problem.exact.gradient(t, x)
        errors = (
            relative(solution.value(t, x), value),
            relative(problem.temperature * slope, gradient),
            relative(solution.gradient(t, x), gradient),
        )
        worst = np.maximum(worst, errors)
    return worst


def slopes(name, dim, element):
    half, parameters = PROBLEMS[name, dim]
    problem = zoo.get(name, dim=dim, **parameters)
    box = None if half is None else Box([-half] * dim, [half] * dim)
    sizes = SIZES[dim, element]
    how = {"element": element, "box": box, **(ENOUGH.get(element, TIME[2]) if dim == 2 else TIME[dim])}
    errors = [relative_errors(problem, solve_on_mesh(problem, cells=n, **how)) for n in sizes]
    return -np.polyfit(np.log(sizes), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("name", "dim", "element"),
    [
        (name, dim, element)
        for name, dim in (("lq", 1), ("mixture-diffusion", 1), ("mixture-diffusion", 2))
        for element in ("P1", "P2", "P3", "hermite")
    ]
    + [("reflected", 3, "P2")],
)
def test_values_and_gradients_converge_at_the_order_of_the_element(name, dim, element):
    value, differentiated, recovered = slopes(name, dim, element)
    row = ELEMENTS[element]
    assert value == pytest.approx(row.value_order, abs=0.15)
    assert differentiated == pytest.approx(row.gradient_order, abs=0.15)
    if element in ("P1", "P2"):  # recovery gains an order; on symmetric patches sometimes two
        assert row.gradient_order + 1 - 0.15 < recovered < row.gradient_order + 2 + 0.15


def test_a_drift_that_is_wrong_by_a_per_mille_does_not_converge():
    exact = zoo.get("lq", dim=1)
    wrong = dataclasses.replace(exact, drift=LinearDrift([[-1.001]], [0.0]))
    errors = [
        relative_errors(wrong, solve_on_mesh(wrong, cells=n, element="P3", box=Box([-6.0], [6.0]), steps=120))
        for n in SIZES[1, "P3"]
    ]
    value, *_ = -np.polyfit(np.log(SIZES[1, "P3"]), np.log(errors), 1)[0]
    assert value < ELEMENTS["P3"].value_order - 1
