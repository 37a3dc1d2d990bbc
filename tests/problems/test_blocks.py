"""Problems that fall apart: the groups that are found, and values of the groups that add up."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fem_hjb.problems import zoo
from fem_hjb.problems.blocks import alike, coordinates, independent_blocks, joined, restrict
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, GaussianMixture, PointMass, Uniform
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.solution import ProductSolution
from fem_hjb.support.checks import FloatArray

Groups = list[tuple[int, ...]]


def alone(d: int = 3, **changes: Any) -> ControlProblem:
    """Coordinates that know nothing of each other."""
    given = {
        "dim": d,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": lambda t, x: -x + np.sin(x),
        "diffusion": 1.0,
        "terminal_reward": lambda x: 2.0 - (x**2).sum(-1),
        "running_reward": lambda t, x: 1.0 + np.cos(x).sum(-1),
        "initial_law": Gaussian(np.zeros(d), 0.2),
    }
    return ControlProblem(**{**given, **changes})


def paired(dim: int = 4, order: tuple[int, ...] = (0, 1, 2, 3), second: float = 1.0) -> ControlProblem:
    """Linear-quadratic; coordinates order[0], order[1] hang together, and order[2], order[3] unless second = 0."""
    P = np.eye(dim)[list(order)]

    def matrix(diagonal: float, off: float, lower: float | None = None) -> FloatArray:
        block = np.array([[0.0, off], [off if lower is None else lower, 0.0]])
        whole = np.kron(np.diag([1.0, second]), block) + diagonal * np.diag([1.0, 1.0, 1.4, 1.4])
        return np.asarray(P.T @ whole @ P)

    return zoo.get(
        "lq",
        dim,
        A=matrix(-1.0, 0.5, -0.4),
        Lambda=matrix(1.0, 0.3),
        Q=matrix(0.5, 0.2),
        R=matrix(1.0, -0.2),
        s=0.3,
        q=0.2,
        a=0.1,
    )


FOUND: list[tuple[str, ControlProblem, Groups]] = [
    ("alone", alone(), [(0,), (1,), (2,)]),
    ("lq", zoo.get("lq", 3), [(0, 1, 2)]),
    ("lq of multiples of the identity", zoo.get("lq", 3, A=-1.0, Lambda=1.0, Q=1.0, R=1.0), [(0,), (1,), (2,)]),
    ("lq of blocks", paired(), [(0, 1), (2, 3)]),
    ("lq of blocks, permuted", paired(order=(0, 3, 2, 1)), [(0, 3), (1, 2)]),
    ("lq of blocks, permuted otherwise", paired(order=(2, 0, 1, 3)), [(0, 2), (1, 3)]),
    ("double wells", zoo.get("double-well", 5), [(0,), (1,), (2,), (3,), (4,)]),
    ("coupled wells", zoo.get("double-well-2d-coupled"), [(0, 1)]),
    ("uncoupled wells", zoo.get("double-well-2d-coupled", coupling=0.0), [(0,), (1,)]),
    ("weakly coupled wells", zoo.get("double-well-2d-coupled", coupling=1e-6), [(0, 1)]),
    ("a reflected box", zoo.get("reflected", 3), [(0,), (1,), (2,)]),
    ("one dimension", zoo.get("lq", 1), [(0,)]),
    ("a mixture", zoo.get("mixture-diffusion", 2), [(0, 1)]),
    ("terminal reward", alone(terminal_reward=lambda x: x[..., 0] * x[..., 2]), [(0, 2), (1,)]),
    ("all in the reward", alone(terminal_reward=lambda x: np.cos(x.sum(-1))), [(0, 1, 2)]),
    ("chain", alone(terminal_reward=lambda x: x[..., 0] * x[..., 1] + x[..., 1] * x[..., 2]), [(0, 1, 2)]),
    (
        "running reward, late",
        alone(running_reward=lambda t, x: np.where(np.asarray(t) > 0.9, x[..., 1] * x[..., 2], 0.0)),
        [(0,), (1, 2)],
    ),
    (
        "drift, one way",
        alone(drift=lambda t, x: np.stack([-x[..., 0], -x[..., 1] + 0.1 * x[..., 0], -x[..., 2]], -1)),
        [(0, 1), (2,)],
    ),
    ("diffusion", alone(diffusion=[[1.0, 0.0, 0.1], [0.0, 1.0, 0.0], [0.1, 0.0, 1.0]]), [(0, 2), (1,)]),
    (
        "diffusion in space",
        alone(diffusion=lambda t, x: (2.0 + np.sin(np.roll(x, 1, -1) * [1, 0, 0]))[..., None] * np.eye(3)),
        [(0, 2), (1,)],
    ),
    ("a correlated start", alone(2, initial_law=Gaussian([0.0, 0.0], [[0.2, 0.1], [0.1, 0.2]])), [(0,), (1,)]),
    ("an absorbing box", alone(2, domain=Box([-9, -9], [9, 9], boundary="absorbing")), [(0, 1)]),
]


@pytest.mark.parametrize(("problem", "groups"), [row[1:] for row in FOUND], ids=[row[0] for row in FOUND])
def test_the_groups(problem: ControlProblem, groups: Groups):
    assert independent_blocks(problem) == groups


def window(t: Any) -> Any:
    """Between two of the times at which callables are probed."""
    return np.where((np.asarray(t) > 0.45) & (np.asarray(t) < 0.5), 1.0, 0.0)


def far(x: FloatArray, i: int, j: int) -> Any:
    """Nothing where the process starts."""
    return np.maximum(x[..., i] - 3.0, 0.0) * np.maximum(x[..., j] - 3.0, 0.0)


def along(x: FloatArray, i: int) -> Any:
    return np.eye(3)[i] * x[..., None]


def between(t: Any, x: FloatArray) -> Any:
    matrix = np.eye(3) + 0.2 * window(t)[..., None, None] * (np.eye(3)[[2, 1, 0]] - np.diag([0.0, 1.0, 0.0]))
    return np.broadcast_to(matrix, (*x.shape, 3))


SEEN: list[tuple[str, dict[str, Any], Groups]] = [
    ("nothing", {}, [(0,), (1,), (2,)]),
    ("drift, far away", {"drift": lambda t, x: -x + 1e-6 * along(far(x, 0, 1), 2)}, [(0, 1, 2)]),
    ("drift, in a window", {"drift": lambda t, x: -x + along(window(t) * x[..., 2], 0)}, [(0, 2), (1,)]),
    ("diffusion, in a window", {"diffusion": between}, [(0, 2), (1,)]),
    ("terminal reward, far away", {"terminal_reward": lambda x: x.sum(-1) + 1e-6 * far(x, 0, 2)}, [(0, 2), (1,)]),
    ("running reward, far away", {"running_reward": lambda t, x: np.sin(8 * far(x, 1, 2))}, [(0,), (1, 2)]),
    ("running reward, in a window", {"running_reward": lambda t, x: window(t) * x[..., 0] * x[..., 1]}, [(0, 1), (2,)]),
    (
        "of all three, far away",
        {"terminal_reward": lambda x: far(x, 0, 1) * np.maximum(x[..., 2] - 3.0, 0.0)},
        [(0, 1, 2)],
    ),
]


@pytest.mark.parametrize(("changes", "groups"), [row[1:] for row in SEEN], ids=[row[0] for row in SEEN])
def test_draws_show_what_hangs_together_where_probes_do_not_look(changes: dict[str, Any], groups: Groups):
    problem = alone(3, initial_law=Gaussian(np.zeros(3), 0.01), **{"diffusion": 0.1, **changes})
    apart = [(0,), (1,), (2,)]
    assert independent_blocks(problem) == apart
    rng = np.random.default_rng(0)
    t, x = rng.random((32, 100)), rng.normal(4.0, 0.5, (32, 100, 3))
    assert joined(problem, apart, t, x) == groups
    assert joined(problem, groups, t, x) == groups
    assert joined(problem, [(0, 1, 2)], t, x) == [(0, 1, 2)]


def test_draws_show_what_is_not_alike():
    rng = np.random.default_rng(0)
    t, x = rng.random((32, 100)), rng.normal(4.0, 0.5, (32, 100, 1))
    start, draws = Gaussian([0.0], 0.01), (t, x)
    one = alone(1, initial_law=start, diffusion=0.1)
    assert alike(one, replace(one), draws)
    others: list[dict[str, Any]] = [
        {"running_reward": lambda t, x: 1.0 + np.cos(x).sum(-1) + window(t)},
        {"terminal_reward": lambda x: 2.0 - (x**2).sum(-1) + np.maximum(x[..., 0] - 3.0, 0.0)},
        {"drift": lambda t, x: -x + np.sin(x) + window(t)[..., None]},
    ]
    for changes in others:
        other = replace(one, **changes)
        assert alike(one, other)
        assert not alike(one, other, draws)


def test_restricted_problems_add_up():
    problem = replace(paired(order=(0, 3, 2, 1)), initial_law=Gaussian([0.5, -0.2, 0.1, 0.3], 0.2), marginal=None)
    groups = independent_blocks(problem)
    parts = [restrict(problem, group, len(groups)) for group in groups]
    x = np.random.default_rng(0).normal(size=(7, 5, 4))
    shares = [(list(group), part) for group, part in zip(groups, parts, strict=True)]
    for t in (0.2, np.linspace(0, 1, 5)):
        np.testing.assert_allclose(sum(p.y(x[..., i]) for i, p in shares), problem.y(x), atol=1e-12)
        np.testing.assert_allclose(sum(p.r(t, x[..., i]) for i, p in shares), problem.r(t, x), atol=1e-12)
        for i, part in shares:
            np.testing.assert_allclose(part.b(t, x[..., i]), problem.b(t, x)[..., i], atol=1e-12)
            np.testing.assert_array_equal(part.Lambda(t, x[..., i]), problem.Lambda(t, x)[(..., *np.ix_(i, i))])
    np.testing.assert_array_equal(parts[0].initial_law.expectation, [0.5, 0.3])
    assert parts[0].name == "lq[0, 3]"
    assert parts[0].marginal is None


def test_marginals_and_domains_are_restricted_too():
    problem = paired()
    part = restrict(problem, (2, 3), 2)
    assert part.marginal is not None
    assert problem.marginal is not None
    np.testing.assert_allclose(part.marginal(0.4).covariance, problem.marginal(0.4).covariance[2:, 2:])
    boxed = restrict(zoo.get("reflected", 2, lower=[0.0, 1.0], upper=[2.0, 4.0]), (1,), 2)
    assert boxed.domain is not None
    np.testing.assert_array_equal(np.ravel(boxed.domain.bounds), [1.0, 4.0])


LAWS = [
    Gaussian([0.0, 1.0, 2.0], [[1.0, 0.2, 0.1], [0.2, 2.0, 0.3], [0.1, 0.3, 3.0]]),
    GaussianMixture([0.3, 0.7], [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [np.eye(3), np.diag([1.0, 2.0, 3.0])]),
    PointMass([0.0, 1.0, 2.0]),
    Uniform(Box([0.0, 1.0, 2.0], [1.0, 3.0, 6.0])),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_laws_of_some_coordinates(law: Any):
    part = coordinates(law, [2, 0])
    assert type(part) is type(law)
    np.testing.assert_allclose(part.expectation, law.expectation[[2, 0]])
    np.testing.assert_allclose(part.covariance, law.covariance[np.ix_([2, 0], [2, 0])])


def test_solutions_of_the_groups_make_the_solution():
    problem = paired(order=(0, 3, 2, 1), second=0.0)
    solution = solve(problem, rtol=1e-3)
    assert isinstance(solution, ProductSolution)
    assert [index for index, _ in solution.parts] == [(0, 3), (1,), (2,)]
    assert problem.exact is not None
    row = compare({"product": solution}, problem.exact, problem=problem).overall("product")
    assert max(row.value, row.policy) < 1e-8
    swapped = replace(solution, parts=tuple((index[::-1], part) for index, part in solution.parts))
    assert compare({"swapped": swapped}, problem.exact, problem=problem).overall("swapped").policy > 1e-2


def test_groups_that_are_alike_are_solved_once():
    wells = zoo.get("soc-double-well", 5)
    parts = [restrict(wells, (k,), 5) for k in range(5)]
    assert alike(parts[0], parts[2])
    assert alike(parts[3], parts[4])
    assert not alike(parts[2], parts[3])
    assert not alike(parts[0], restrict(zoo.get("reflected", 2), (0,), 2))
    one, other = (restrict(zoo.get("reflected", 2, upper=[1.0, 2.0]), (k,), 2) for k in range(2))
    assert not alike(one, other)
    assert not alike(parts[0], restrict(zoo.get("soc-double-well", 5, x0=[0.1, 0, 0, 0, 0]), (0,), 5))
    assert not alike(parts[0], paired())
    boxed = zoo.get("reflected", 3)
    solution = solve(boxed, rtol=1e-3)
    assert isinstance(solution, ProductSolution)
    different = {id(part): part.stats["solves"] for _, part in solution.parts}
    assert len(different) < 3
    assert solution.stats["solves"] == sum(different.values())
    assert boxed.exact is not None
    assert compare({"p": solution}, boxed.exact, problem=boxed).overall("p").policy < 1e-3
