"""Problems and what they are made of: pickled, deep-copied and sent to another process; short to print and to read."""

import copy
import inspect
import multiprocessing
import pickle
import typing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from fem_hjb import problems
from fem_hjb.problems import zoo
from fem_hjb.problems.blocks import restrict
from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import CosineSeries
from fem_hjb.problems.gauge import Gauge, QuadraticGauge, Unknown, ValueGauge
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, PointMass
from fem_hjb.problems.mixtures import MixtureDiffusion
from fem_hjb.problems.problem import Drift, LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward

DIMS = (1, 2, 3)
PROBLEMS = {
    f"{name}-{d}d": zoo.get(name, d)
    for name in zoo.names()
    for d in DIMS
    if zoo.dims(name) is None or d in (zoo.dims(name) or ())
}
PROBLEMS |= {
    "mixture-diffusion-schedule": zoo.get("mixture-diffusion", 2, beta=(0.5, 3.0), reward="log-mixture"),
    "mixture-diffusion-eta": zoo.get("mixture-diffusion", 2, eta=0.5),
    "reflected-running": zoo.get("reflected", 2, running=0.7),
    "soc-ou-quadratic-hard": zoo.get("soc-ou-quadratic", 2, setting="hard"),
    **{f"{name}-default": zoo.get(name) for name in ("soc-ou-quadratic", "soc-ou-linear", "soc-double-well")},
}
PROBLEMS |= {
    "group-of-wells": restrict(zoo.get("double-well", 3), (0, 2), 2),
    "group-of-lq": restrict(zoo.get("lq", 3), (1,), 3),
    "group-of-reflected": restrict(zoo.get("reflected", 2, running=0.7), (0,), 2),
    "group-of-diffusion": restrict(zoo.get("mixture-diffusion", 2, beta=(0.5, 3.0)), (0,), 2),
}

QUADRATIC = QuadraticGauge(
    constants=Gauge(temperature=0.5, horizon=1.0, terminal=2.0, running=-1.0),
    centre=[0.1, -0.2],
    P=np.random.default_rng(0).normal(size=(3, 1, 1)) * np.eye(2),
    p=np.random.default_rng(1).normal(size=(3, 2)),
    c=[0.1, 0.2, 0.3],
)
GAUGES: dict[str, Unknown] = {
    "constants": QUADRATIC.constants,
    "quadratic": QUADRATIC,
    "value": ValueGauge(background=QUADRATIC),
}


def unpickled(thing):
    return pickle.loads(pickle.dumps(thing))


each = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
either = pytest.mark.parametrize("again", [unpickled, copy.deepcopy], ids=["pickle", "deepcopy"])


def states(problem, n=7):
    x = problem.initial_law.sample(n, np.random.default_rng(0))
    if isinstance(problem.initial_law, PointMass):
        x = x + 0.3 * np.random.default_rng(1).normal(size=x.shape)
    return x if problem.domain is None else problem.domain.inside(x)


def everything(problem):
    """What a problem answers at a few times and points."""
    x, t = states(problem), np.linspace(0.0, problem.horizon, 7)
    found = {"b": problem.b(t, x), "Lambda": problem.Lambda(t, x), "r": problem.r(t, x), "y": problem.y(x)}
    found |= {"exit": problem.exit_reward(t, x), "start": problem.initial_law.sample(5, np.random.default_rng(2))}
    if problem.exact is not None:
        known = [name for name in ("value", "gradient", "policy") if hasattr(problem.exact, name)]
        found |= {name: getattr(problem.exact, name)(t, x) for name in known}
    if problem.marginal is not None:
        law = problem.marginal(0.5 * problem.horizon)
        found |= {"density": law.logpdf(x), "score": law.score(x)}
    return found


@either
@each
def test_a_copy_of_a_problem_answers_with_the_same_bits(problem, again):
    other = again(problem)
    expected, found = everything(problem), everything(other)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert (other.name, other.dim, other.horizon, other.temperature) == (
        problem.name,
        problem.dim,
        problem.horizon,
        problem.temperature,
    )


def test_another_process_gives_the_same_bits():
    problems = [PROBLEMS["mixture-diffusion-schedule"], PROBLEMS["lq-2d"], PROBLEMS["group-of-wells"]]
    x = np.random.default_rng(3).normal(size=(5, 2))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for problem in problems:
            np.testing.assert_array_equal(pool.submit(problem.b, 0.3, x).result(), problem.b(0.3, x))
            np.testing.assert_array_equal(pool.submit(problem.y, x).result(), problem.y(x))
        for problem in problems[:2]:
            np.testing.assert_array_equal(
                pool.submit(problem.exact.value, 0.3, x).result(), problem.exact.value(0.3, x)
            )


@either
@pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES)
def test_a_copy_of_a_gauge_answers_with_the_same_bits(gauge, again):
    other, x = again(gauge), np.random.default_rng(4).normal(size=(5, 2))
    u, slope = np.linspace(0.1, 1.0, 5), np.random.default_rng(5).normal(size=(5, 2))
    np.testing.assert_array_equal(other.value(0.3, x, u), gauge.value(0.3, x, u))
    np.testing.assert_array_equal(other.gradient(0.3, x, u, slope), gauge.gradient(0.3, x, u, slope))
    np.testing.assert_array_equal(other.f(0.3, x, u), gauge.f(0.3, x, u))
    np.testing.assert_array_equal(other.u(0.3, x, u), gauge.u(0.3, x, u))


THINGS = {
    "drift": (LinearDrift([[-1.0]], [0.5]), "A"),
    "box": (Box([0.0], [1.0]), "lower"),
    "gaussian": (Gaussian([0.0, 1.0], 0.5), "cov"),
    "mixture": (GaussianMixture([1.0], [[0.0]], [[[1.0]]]), "_chol"),
    "point": (PointMass([1.0, 2.0]), "point"),
    "reward": (LogSumExpReward.linear([1.0], temperature=1.0), "R"),
    "problem": (PROBLEMS["lq-2d"], "constant_diffusion"),
    "closed-form": (PROBLEMS["lq-2d"].exact, "_Lambda"),
    "series": (CosineSeries([2.0, 1.0], lower=0.0, upper=1.0, diffusion=1.0, horizon=1.0, temperature=1.0), "_c"),
    "gauge": (QUADRATIC, "P"),
}


@either
@pytest.mark.parametrize(("thing", "name"), THINGS.values(), ids=THINGS)
def test_arrays_of_a_copy_are_read_only_too(thing, name, again):
    assert not getattr(thing, name).flags.writeable
    array = getattr(again(thing), name)
    assert not array.flags.writeable
    assert not np.shares_memory(array, getattr(thing, name))


def test_an_object_says_what_it_is_in_five_lines():
    shown = [*PROBLEMS.values(), *(thing for thing, _ in THINGS.values()), *GAUGES.values()]
    shown += [
        part for problem in PROBLEMS.values() for part in (problem.exact, problem.initial_law) if part is not None
    ]
    large = Gaussian(np.arange(30.0), 1.0)
    shown += [large, MixtureDiffusion(PROBLEMS["mixture-diffusion-eta"].marginal(1.0), horizon=1.0, beta=2.0)]
    for thing in shown:
        lines = repr(thing).splitlines()
        assert lines[0].startswith(type(thing).__name__ + "(")
        assert len(lines) <= 5
        assert max(map(len, lines)) <= 100
    text = " ".join(repr(PROBLEMS["lq-2d"]).split())
    assert "name='lq', dim=2, horizon=1, temperature=1, drift=LinearDrift, diffusion=[[1, 0.3], [0.3, 1]]" in text
    assert "initial_law=Gaussian, exact=LinearQuadratic" in text
    assert repr(large).startswith("Gaussian(mean=<(30,) within [0, 29]>, cov=<(30, 30) within [0, 1]>")
    assert repr(Box([0.0], [1.0])) == "Box(lower=[0], upper=[1], boundary='reflecting', exit_reward=None, dim=1)"


def test_a_law_of_the_users_has_a_repr_and_copies(monkeypatch):
    class Mine(Law):
        def __init__(self):
            self.dim, self._hidden = 1, np.zeros(3)

    monkeypatch.setattr(Mine, "__abstractmethods__", frozenset())
    assert repr(Mine()) == "Mine(dim=1)"
    assert not copy.deepcopy(Mine())._hidden.flags.writeable


PUBLIC = {name: thing for name, thing in vars(problems).items() if name in problems.__all__ and callable(thing)}


@pytest.mark.parametrize("thing", PUBLIC.values(), ids=PUBLIC)
def test_signatures_are_short_and_their_types_resolve(thing):
    signature = inspect.signature(thing)
    assert len(str(signature)) < 500
    hints = typing.get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    assert hints.keys() >= signature.parameters.keys() - {"args", "kwargs"}


def test_the_signature_of_a_problem_names_its_types():
    text = str(inspect.signature(problems.ControlProblem))
    assert "drift: 'Drift', diffusion: 'Diffusion', terminal_reward: 'TerminalReward'" in text
    hints = typing.get_type_hints(problems.ControlProblem)
    assert hints["drift"] == Drift
    assert hints["temperature"] is float
