"""Exit problems of the zoo: closed forms, what they say of themselves, and what is refused."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

import fem_hjb as fh
from fem_hjb.problems.zoo import registry
from fem_hjb.support.errors import ProblemError

st, zoo = fh.stationary, fh.zoo


def test_mean_time_out_of_a_well() -> None:
    problem = zoo.get_exit("well-exit", kappa=1.5, beta=1.2)

    def inner(y: float) -> float:
        low = quad(lambda z: math.exp(-1.8 * (z**2 - 1) ** 2), -4.0, y)[0]
        return math.exp(1.8 * (y**2 - 1) ** 2) * float(low)

    exact = 1.2 * quad(inner, -0.7, 1.0)[0]
    found = st.mean_exit_time(problem, rtol=1e-5)
    assert float(found.value([-0.7])) == pytest.approx(exact, rel=1e-4)


def test_the_value_of_a_crossing_is_that_of_its_committor() -> None:
    problem = zoo.get_exit("well-crossing", cost=3.0)
    x = np.linspace(-0.9, 0.9, 7)
    weight = lambda y: math.exp(4 * (y**2 - 1) ** 2)  # noqa: E731
    q = np.array([quad(weight, -1, y)[0] for y in x]) / quad(weight, -1, 1)[0]
    np.testing.assert_allclose(st.committor(problem, [(0, "upper")]).value(x[:, None]), q, atol=1e-4)
    exact = np.log(q + (1 - q) * math.exp(-3.0))
    np.testing.assert_allclose(fh.solve_exit(problem).value(x[:, None]), exact, atol=1e-3)


def test_brownian_motion_leaves_a_box() -> None:
    problem = zoo.get_exit("brownian-exit", noise=2.0, rate=3.0, temperature=0.5)
    k = math.sqrt(2 * 3.0 / (0.5 * 2.0))
    assert float(fh.solve_exit(problem).f([0.3])) == pytest.approx(math.cosh(0.3 * k) / math.cosh(k), rel=1e-4)
    assert float(st.mean_exit_time(problem).value([0.3])) == pytest.approx((1 - 0.09) / 2, rel=1e-4)


def test_valleys_are_two_holes_and_the_right_one_is_met_first_from_the_right() -> None:
    problem = zoo.get_exit("mueller-brown-exit", cells=48, radius=0.12)
    assert isinstance(problem.domain, fh.MeshDomain)
    assert not problem.domain.contains([[-0.558, 1.442], [0.623, 0.028]]).any()
    assert problem.domain.contains([[-0.05, 0.467]]).all()  # the third minimum
    u = st.exit_expectation_on_mesh(problem, h={"left": 0, "right": 1}, element="P1", estimate=False)
    chances = u.value([[-0.8, 1.2], [-0.05, 0.467], [0.4, 0.2]])
    assert (np.diff(chances) > 0).all()
    assert chances[0] < 0.15
    assert chances[2] > 0.95
    np.testing.assert_array_equal(problem.g([[-0.5, 1.4], [0.6, 0.1]]), [-10.0, 0.0])


@pytest.mark.parametrize("name", zoo.exit_names())
def test_each_has_a_source_and_can_be_pickled(name: str) -> None:
    problem = zoo.get_exit(name)
    assert problem.name == name
    assert len(zoo.source(name)) > 20
    assert zoo.describe(name).endswith(".")
    again = pickle.loads(pickle.dumps(problem))
    middle = np.mean(problem.domain.bounds, axis=0)  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.b(middle), problem.b(middle))
    for d in zoo.dims(name) or ():
        assert zoo.get_exit(name, d).dim == d


def test_both_kinds_have_one_registry_and_each_its_own_door(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not set(zoo.names()) & set(zoo.exit_names())
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @zoo.register(dims=(1,), kind=fh.ExitProblem)
    def my_exit(dim: int, *, size: float = 1.0) -> fh.ExitProblem:
        return zoo.get_exit("brownian-exit", dim, noise=size)

    assert zoo.exit_names()[-1] == "my-exit"
    assert float(zoo.get_exit("my-exit", size=2.0).constant_diffusion[0, 0]) == 2.0  # type: ignore[index]


REFUSED: dict[str, Any] = {
    "'well-exit' has no horizon but an exit": lambda: zoo.get("well-exit"),
    "'lq' has a horizon": lambda: zoo.get_exit("lq"),
    "no problem called 'wel-exit'; did you mean 'well-exit'": lambda: zoo.get_exit("wel-exit"),
    "makes sense in dim = 1, 2 only, got dim=3": lambda: zoo.get_exit("well-exit", 3),
    "has no parameter 'x0'": lambda: zoo.get_exit("well-exit", x0=1.0),
    "kappa must be a positive": lambda: zoo.get_exit("well-exit", kappa=-1.0),
    "cost must be finite, got": lambda: zoo.get_exit("well-crossing", cost=np.inf),
    "outer must lie between 1.2 and 100": lambda: zoo.get_exit("ring-exit", outer=1.0),
    "radius must lie between 0.05 and 0.3": lambda: zoo.get_exit("mueller-brown-exit", radius=0.5),
    "cells must be at least 40": lambda: zoo.get_exit("mueller-brown-exit", cells=8),
    "cells must be at most 400": lambda: zoo.get_exit("ring-exit", cells=10**9),
    "kind must be ControlProblem or ExitProblem": lambda: zoo.register(kind=int),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        REFUSED[message]()
