"""The problems of the zoo that live in a mesh: what is said of them is so, and elements converge to it."""

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.problems import zoo
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.support.errors import ProblemError
from tests.support.exactness import gradient_error, hjb_residual, inner_times

COARSE = {"annulus": 3, "plate": 12, "lshape": 3}  # cells
OTHERS = {
    "annulus": {"outer": 3.0, "kappa": 0.7, "Lambda": 0.5, "temperature": 0.4, "horizon": 0.7},
    "plate": {"left": 0.3, "right": 2.0, "kappa": 2.0, "Lambda": 0.5, "temperature": 2.0},
    "lshape": {"speed": -2.0, "size": 1.0, "Lambda": 0.2, "temperature": 1.5, "horizon": 0.5},
}
CASES = [(name, {}) for name in COARSE] + list(OTHERS.items())


def inside(problem, n=2000):
    lower, upper = problem.domain.bounds
    x = lower + (upper - lower) * np.random.default_rng(0).random((n, 2))
    return x[problem.domain.contains(x)]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_the_value_solves_the_equation_and_is_paid_at_the_boundary(name, changes):
    problem = zoo.get(name, **changes)
    x = inside(problem, 400)
    x = x[np.min([problem.domain.distance(word, x) for word in ("absorbing", "reflecting")], axis=0) > 0.02]
    t = inner_times(problem, len(x), np.random.default_rng(1), 2e-3 * problem.horizon)
    assert hjb_residual(problem, problem.exact, t, x).max() < 1e-6
    assert gradient_error(problem, problem.exact, t, x) < 1e-7
    np.testing.assert_allclose(problem.exact.value(problem.horizon, x), problem.y(x), atol=1e-12)
    (edge,) = problem.domain.on_absorbing(x)
    np.testing.assert_allclose(problem.exit_reward(0.3, edge), problem.exact.value(0.3, edge), atol=1e-12)


@pytest.mark.parametrize("name", COARSE)
def test_quadratic_elements_converge_with_order_three_and_linear_ones_with_order_two(name):
    problem = zoo.get(name, cells=COARSE[name])
    x = inside(problem)
    for element, order in (("P1", 2), ("P2", 3)):
        found = []
        for times in range(3):
            mesh = problem.domain.mesh.refined(times)
            solution = fh.solve_on_mesh(problem, mesh, element=element, rtol_time=1e-6)
            found.append(np.sqrt(((solution.value(0.0, x) - problem.exact.value(0.0, x)) ** 2).mean()))
            assert solution.status == "ok"
        assert abs(-np.polyfit([0, 1, 2], np.log2(found), 1)[0] - order) < 0.15


def test_paths_end_where_they_are_paid():
    """f_0 by Monte Carlo: time spent costs, the circles pay 1 and 1/2."""
    problem = zoo.get("annulus", cells=8)
    x0 = np.array([1.5, 0.0])
    at = fh.problems.zoo.get("annulus", cells=8)
    start = type(at)(
        **{name: getattr(at, name) for name in ("dim", "horizon", "temperature", "drift", "diffusion", "domain")},
        terminal_reward=at.terminal_reward,
        running_reward=at.running_reward,
        initial_law=fh.PointMass(x0),
    )
    paths = fh.sample_paths(start, n=6000, steps=48, rng=0)
    out = problem.domain.exited(paths.x)
    when = np.where(out[:, -1], paths.t[out.argmax(axis=1)], problem.horizon)
    last = paths.x[:, -1]
    earned = np.where(out[:, -1], problem.exit_reward(when, last), problem.y(last))
    f = np.exp(earned + when * problem.r(0.0, x0))
    assert out[:, -1].mean() > 0.9
    assert abs(f.mean() - np.exp(problem.exact.value(0.0, x0))) < 4 * f.std() / np.sqrt(len(f)) + 0.005


def test_the_names_of_the_boundaries():
    assert set(zoo.get("annulus").domain.mesh.boundaries) == {"inner", "outer"}
    plate = zoo.get("plate").domain.mesh
    assert set(plate.boundaries) == {"rim", "left", "right"}
    held = np.concatenate(list(plate.boundaries.values()))
    np.testing.assert_array_equal(np.sort(held), np.sort(plate.boundary_facets()))
    corner = zoo.get("lshape", cells=4).domain
    assert isinstance(corner, MeshDomain)
    x = corner.mesh.p[:, np.unique(corner.mesh.facets[:, corner.mesh.boundaries["corner"]])]
    assert ((x[0] == 0.0) | (x[1] == 0.0)).all()
    assert x.shape[1] == 9


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("annulus", {"outer": 1.1}, "outer must lie between 1.2 and 100"),
        ("annulus", {"kappa": 70.0}, "kappa must be at most 100 / outer = 50"),
        ("annulus", {"cells": 0}, "cells must be"),
        ("annulus", {"Lambda": -1.0}, "Lambda must be"),
        ("plate", {"cells": 5}, "cells must be at least 12, for the holes to be seen"),
        ("plate", {"kappa": 60.0}, "kappa must be at most 50"),
        ("plate", {"left": 0.0}, "left must be"),
        ("lshape", {"size": -1.0}, "size must be"),
        ("lshape", {"cells": 1000}, "cells must be"),
    ],
)
def test_what_is_refused(name, changes, message):
    with pytest.raises(ProblemError, match=message):
        zoo.get(name, **changes)
