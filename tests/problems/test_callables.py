"""What users write: called with what they cannot change, taken for what it returns, and named when it fails."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.support.errors import DomainError, FemHjbError, PositivityError, ProblemError

HALF_LINE = {"lower": [-np.inf], "upper": [4.0], "boundary": [("natural", "absorbing")]}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "drift": lambda t, x: -x,
    "diffusion": lambda t, x: np.ones((*x.shape, 1)),
    "running_reward": lambda t, x: -(x[..., 0] ** 2),
    "terminal_reward": lambda x: x[..., 0],
    "exit_reward": lambda t, x: 0.0 * x[..., 0],
}
ARGUMENTS = {name: "x" if name == "terminal_reward" else "t, x" for name in FUNCTIONS}
EACH = pytest.mark.parametrize("name", FUNCTIONS)
Callables = dict[str, Callable[..., Any]]


def build(**changes: Callable[..., Any]) -> fh.ControlProblem:
    given = {**FUNCTIONS, **changes}
    return fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=0.5,
        initial_law=fh.Gaussian([0.0], 0.5),
        domain=fh.Box(**HALF_LINE, exit_reward=given.pop("exit_reward")),
        **given,
    )


def around(name: str, then: Callable[[Any, np.ndarray], Any]) -> Callables:
    """The callable of this name, whose result `then` makes something else of; it is given the points, too."""
    inner = FUNCTIONS[name]
    return {name: lambda *arguments: then(inner(*arguments), arguments[-1])}


def told(name: str) -> str:
    return rf"{name}\({ARGUMENTS[name]}\)"


class Tensor:
    """Looks to NumPy like a tensor of torch on the CPU, which has a tape or has none."""

    def __init__(self, array: np.ndarray, tape: bool) -> None:
        self.array, self.requires_grad, self.dtype = array, tape, f"torch.{array.dtype}"

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.numpy().astype(dtype or self.array.dtype)

    def numpy(self) -> np.ndarray:
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        return self.array

    def detach(self) -> "Tensor":
        return Tensor(self.array, False)


class Hostile:
    """Neither an array nor to be shown."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise KeyError("no array")

    def __repr__(self) -> str:
        raise RuntimeError("no words")


def spoil(array: np.ndarray) -> None:
    array *= -1


@EACH
@pytest.mark.parametrize("which", [0, -1])
def test_a_callable_that_changes_its_arguments_is_refused(name: str, which: int) -> None:
    def inner(*arguments: np.ndarray) -> Any:
        if isinstance(arguments[which], np.ndarray):
            spoil(arguments[which])
        return FUNCTIONS[name](*arguments)

    with pytest.raises(ProblemError, match=rf"{told(name)} failed .*for x of shape \(5, 1\): ValueError: .*read-only"):
        build(**{name: inner})


def spoiling(t: Any, x: np.ndarray) -> np.ndarray:
    if len(x) > 5:  # not when it is probed
        spoil(x)
    return -x


RUNS: dict[str, Callable[[fh.ControlProblem], Any]] = {
    "exact starts, Heun": lambda of: fh.sample_paths(of, n=8, steps=4, rng=0),
    "euler": lambda of: fh.sample_paths(of, n=8, steps=4, rng=0, scheme="euler"),
    "a controlled process": lambda of: fh.sample_paths(of, n=8, steps=4, rng=0, policy=lambda t, x: 0.0 * x),
    "a mesh": lambda of: fh.solve_on_mesh(of, cells=8),
    "a box": lambda of: fh.solve(of, rtol=1e-2),
    "points of the caller's": lambda of: of.b(0.0, np.ones((8, 1))),
}


@pytest.mark.parametrize("run", RUNS)
def test_states_cannot_be_changed_by_what_is_called_with_them(run: str) -> None:
    problem = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=1.0,
        drift=spoiling,
        diffusion=1.0,
        terminal_reward=FUNCTIONS["terminal_reward"],
        initial_law=fh.Gaussian([0.0], 1.0),
    )
    with pytest.raises(ProblemError, match=r"drift\(t, x\) failed .*read-only"):
        RUNS[run](problem)


def test_arrays_of_the_caller_stay_writeable() -> None:
    x, t = np.ones((3, 1)), np.zeros(3)
    build().b(t, x)
    x += 1.0
    t += 1.0


class OwnError(Exception):
    pass


RAISED = [
    ZeroDivisionError("division"),
    KeyError("k"),
    RuntimeError("tape"),
    StopIteration(),
    OwnError(),
    MemoryError(),
]
RAISED += [
    AttributeError("a"),
    AssertionError(),
    NotImplementedError(),
    RecursionError(),
    OSError("disk"),
    IndexError(),
]
RAISED += [DomainError("outside"), PositivityError("f <= 0")]


def raising(error: Exception) -> Callable[..., Any]:
    def callable_(*arguments: Any) -> Any:
        raise error

    return callable_


@EACH
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_what_callables_raise_is_the_cause_of_an_error_that_names_them(name: str, error: Exception) -> None:
    when = "" if name == "terminal_reward" else "at t=0 "
    with pytest.raises(
        ProblemError, match=rf"^{told(name)} failed {when}for x of shape \(5, 1\): {type(error).__name__}: "
    ) as info:
        build(**{name: raising(error)})
    assert info.value.__cause__ is error


@EACH
def test_what_callables_raise_later_is_told_with_times_and_shape(name: str) -> None:
    def inner(*arguments: Any) -> Any:
        if arguments[-1].size > 5:
            raise ZeroDivisionError
        return FUNCTIONS[name](*arguments)

    problem, x = build(**{name: inner}), np.zeros((2, 3, 1))
    method = {"drift": "b", "diffusion": "Lambda", "running_reward": "r", "terminal_reward": "y"}.get(name, name)
    given = (x,) if name == "terminal_reward" else (np.linspace(0.0, 1.0, 6).reshape(2, 3), x)
    when = "" if name == "terminal_reward" else r"at times t of shape \(2, 3\) in \[0, 1\] "
    with pytest.raises(ProblemError, match=rf"{told(name)} failed {when}for x of shape \(2, 3, 1\): ZeroDivisionError"):
        getattr(problem, method)(*given)


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


@EACH
def test_an_interruption_is_no_failure(name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(**{name: interrupt})


TAKEN: dict[str, Callable[[np.ndarray], Any]] = {
    "single precision": lambda a: a.astype(np.float32),
    "integers": lambda a: np.rint(a).astype(np.int32),
    "lists": lambda a: a.tolist(),
    "a tensor without a tape": lambda a: Tensor(a, False),
    "a tensor in single precision": lambda a: Tensor(a.astype(np.float32), False),
    "fractions": lambda a: np.vectorize(Fraction, otypes=[object])(a),
    "masked arrays": np.ma.masked_array,
    "big endians": lambda a: a.astype(">f8"),
    "a view that is not contiguous": lambda a: np.repeat(a, 2, axis=0)[::2] if a.ndim else a,
}


@EACH
@pytest.mark.parametrize("kind", TAKEN)
def test_what_numpy_makes_an_array_of_is_taken(name: str, kind: str) -> None:
    problem = build(**around(name, lambda result, x: TAKEN[kind](np.asarray(result))))
    method = {"drift": "b", "diffusion": "Lambda", "running_reward": "r", "terminal_reward": "y"}.get(name, name)
    x = np.array([[1.0], [2.0], [-3.0]])
    given = (x,) if name == "terminal_reward" else (0.5, x)
    found = getattr(problem, method)(*given)
    assert found.dtype == np.float64
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, getattr(build(), method)(*given))


REFUSED: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "complex": (lambda a: a + 0j, r"returns must be an array of real numbers, got .*complex"),
    "complex lists": (lambda a: (a + 0j).tolist(), "returns must be an array of real numbers"),
    "a tensor with a tape": (lambda a: Tensor(a, True), r"got <.*Tensor object .*requires grad.*\.detach\(\)\.cpu\(\)"),
    "text": (lambda a: a.astype(str), "returns must be an array of real numbers"),
    "text that are numbers": (lambda a: np.char.mod("%d", a), "returns must be an array of real numbers"),
    "nothing": (lambda a: None, "returns must be an array of real numbers, got None"),
    "dates": (lambda a: np.zeros(a.shape, dtype="M8[s]"), "returns must be an array of real numbers"),
    "a dict": (lambda a: {"value": a}, "returns must be an array of real numbers"),
    "a generator": (lambda a: (row for row in a), "returns must be an array of real numbers"),
    "ragged lists": (lambda a: [[1.0], [1.0, 2.0]], "returns must be an array of real numbers"),
    "half precision": (lambda a: a.astype(np.float16), "returned float16, which has three digits"),
    "half precision in a tensor": (lambda a: Tensor(a.astype(np.float16), False), "float16"),
    "what is hostile": (lambda a: Hostile(), "returns must be an array of real numbers, got <Hostile"),
    "nan": (lambda a: a * np.nan, "is not finite at 5 of 5 points"),
    "too large": (lambda a: np.full(a.shape, 1e300), "returned numbers up to 1e\\+300; choose units"),
}


@EACH
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_array_of_numbers_is_refused(name: str, kind: str) -> None:
    spoilt, message = REFUSED[kind]
    with pytest.raises(ProblemError, match=rf"{told(name)}.*{message}"):
        build(**around(name, lambda result, x: spoilt(np.asarray(result))))


def drawing(result: np.ndarray, x: np.ndarray) -> np.ndarray:
    return result * (1.0 + 1e-3 * np.random.default_rng().random(result.shape))


def remembering() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    calls: list[int] = []

    def then(result: np.ndarray, x: np.ndarray) -> np.ndarray:
        calls.append(1)
        return result * (1.0 + 1e-3 * len(calls))

    return then


def centred(result: np.ndarray, x: np.ndarray) -> np.ndarray:
    """As a network that normalises over the batch."""
    return result * (1.0 + 0.1 * np.abs(x).mean())


def overwriting() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    kept: dict[int, np.ndarray] = {}

    def then(result: np.ndarray, x: np.ndarray) -> np.ndarray:
        whole = kept.setdefault(result.ndim, np.empty((64, *result.shape[1:])))
        whole[: len(result)] = result
        return whole[: len(result)]

    return then


UNSTEADY: dict[str, tuple[Callable[[], Callable[[np.ndarray, np.ndarray], np.ndarray]], str]] = {
    "random": (lambda: drawing, "returned other numbers when it was called a second time: it is random, or remembers"),
    "remembers": (remembering, "returned other numbers when it was called a second time: it is random, or remembers"),
    "mixes points": (
        lambda: centred,
        "returned other numbers when it was called a second time: its value at a point depends on the other points",
    ),
    "overwrites": (overwriting, "hands out the same array on every call and writes into it"),
}


@pytest.mark.parametrize("name", ["drift", "diffusion", "running_reward", "terminal_reward"])
@pytest.mark.parametrize("kind", UNSTEADY)
def test_callables_that_are_no_functions_are_noticed(name: str, kind: str) -> None:
    make, message = UNSTEADY[kind]
    functions = {**FUNCTIONS, "diffusion": lambda t, x: (1.0 + x**2)[..., None]}
    then = make()
    with pytest.raises(ProblemError, match=rf"{told(name)} {message}"):
        build(**{name: lambda *arguments: then(functions[name](*arguments), arguments[-1])})


def test_rounding_from_call_to_call_is_no_randomness() -> None:
    rng = np.random.default_rng(0)
    build(drift=lambda t, x: np.float32(-x) * (1.0 + 1e-6 * rng.uniform(-1.0, 1.0, x.shape)))


LQ = fh.zoo.get("lq", dim=1)
STEERED: dict[str, Callable[[Any], Any]] = {
    "sample_paths": lambda pi: fh.sample_paths(LQ, n=8, steps=4, rng=0, policy=pi),
    "fokker_planck.solve": lambda pi: fh.fokker_planck.solve(LQ, policy=pi),
    "control_error": lambda pi: fh.control_error(LQ, pi, LQ.exact, n=8),
    "objectives": lambda pi: fh.objectives(LQ, pi, LQ.exact, steps=4, n=8, times=4),
}
EACH_STEERED = pytest.mark.parametrize("run", STEERED)


@EACH_STEERED
@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("k"), StopIteration(), RuntimeError()], ids=repr)
def test_what_policies_raise_is_the_cause_of_an_error_that_names_them(run: str, error: Exception) -> None:
    with pytest.raises(ProblemError, match=r"policy\(t, x\) failed at t=.* for x of shape \(\d+, 1\): ") as info:
        STEERED[run](raising(error))
    assert error in (info.value.__cause__, getattr(info.value.__cause__, "__cause__", None))


@EACH_STEERED
@pytest.mark.parametrize("kind", ["complex", "a tensor with a tape", "nothing", "half precision"])
def test_what_policies_return_is_an_array_of_numbers(run: str, kind: str) -> None:
    with pytest.raises(ProblemError, match=rf"policy\(t, x\).*{REFUSED[kind][1]}"):
        STEERED[run](lambda t, x: REFUSED[kind][0](0.0 * x))


@EACH_STEERED
def test_policies_cannot_change_the_states(run: str) -> None:
    with pytest.raises(ProblemError, match=r"policy\(t, x\) failed .*read-only"):
        STEERED[run](lambda t, x: spoil(x))


def test_errors_of_solutions_come_through_where_their_policy_steers() -> None:
    narrow = fh.solve_on_mesh(LQ, box=fh.Box([-2.6], [2.6]), cells=4)
    with pytest.raises(DomainError):
        fh.sample_paths(LQ, n=8000, steps=4, rng=0, policy=narrow.policy)


class Cauchy(fh.problems.Law):
    """A law of the user's whose samples are what is asked for."""

    dim = 1
    expectation = np.zeros(1)
    covariance = np.eye(1)
    given: Any = None

    def sample(self, n: int, rng: np.random.Generator) -> Any:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given

    def logpdf(self, x: Any) -> Any:
        return None

    score = quadrature = logpdf


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (KeyError("k"), r"initial_law\.sample\(n, rng\) failed .*: KeyError"),
        (None, "must be an array of real numbers, got None"),
        (np.zeros((64, 2)), r"must return finite points of shape \(64, 1\), got shape \(64, 2\)"),
        (np.full((64, 1), np.inf), "with 64 entries that are not finite"),
    ],
)
def test_laws_of_the_users_are_called_with_care(given: Any, message: str) -> None:
    law = Cauchy()
    law.given = given
    functions = {k: f for k, f in FUNCTIONS.items() if k != "exit_reward"}
    with pytest.raises(ProblemError, match=message):
        fh.ControlProblem(dim=1, horizon=1.0, temperature=1.0, initial_law=law, **functions)


@pytest.mark.parametrize(
    ("marginal", "message"),
    [
        (raising(ZeroDivisionError()), r"marginal\(t\) failed at t=0.5: ZeroDivisionError"),
        (lambda t: None, "must return a law of dimension 1, got NoneType at t=0.5"),
        (lambda t: fh.Gaussian([0.0, 0.0], 1.0), "must return a law of dimension 1, got one of dimension 2"),
        (lambda: None, r"marginal\(t\) failed at t=0.5: TypeError"),
    ],
)
def test_marginals_are_called_once_before_any_work(marginal: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        build(marginal=marginal)


class Failing:
    """A reference of the user's whose value or gradient fails."""

    def __init__(self, broken: str) -> None:
        self.broken = broken

    def value(self, t: Any, x: np.ndarray) -> Any:
        return raising(ZeroDivisionError())() if self.broken == "value" else LQ.exact.value(t, x)

    def gradient(self, t: Any, x: np.ndarray) -> Any:
        return raising(ZeroDivisionError())() if self.broken == "gradient" else LQ.exact.gradient(t, x)


SPACE = fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-4.0], [4.0]))
LAW = fh.learning.sampled_law_measure(LQ, SPACE, n=10, rng=0)
JUDGED: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "compare": (lambda of: fh.compare({"a": of}, LQ.exact, problem=LQ), ("value", "gradient")),
    "compare to": (lambda of: fh.compare({"a": LQ.exact}, of, problem=LQ), ("value", "gradient")),
    "control_error": (lambda of: fh.control_error(LQ, LQ.exact.policy, of, n=8), ("gradient",)),
    "objectives": (lambda of: fh.objectives(LQ, LQ.exact.policy, of, steps=4, n=8, times=4), ("value",)),
    "yardstick": (lambda of: fh.learning.yardstick(LQ, LAW, SPACE, exact=of), ("value", "gradient")),
    "plot.solution": (lambda of: fh.plot.solution(of, quantity="value", problem=LQ), ("value",)),
    "plot.solution, policy": (lambda of: fh.plot.solution(of, quantity="policy", problem=LQ), ("gradient",)),
}


@pytest.mark.parametrize("run", JUDGED)
def test_what_references_raise_is_the_cause_of_an_error_that_names_them(run: str) -> None:
    judge, parts = JUDGED[run]
    for part in parts:
        with pytest.raises(FemHjbError, match=rf"{part}\(t, x\) failed .* for x of shape .*: ZeroDivisionError"):
            judge(Failing(part))
