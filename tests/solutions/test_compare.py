"""Error norms: exact on perturbations whose norms are known in closed form, with Gaussian moments done by hand."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skfem
from numpy.typing import ArrayLike

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import LinearQuadratic
from fem_hjb.problems.laws import Gaussian, PointMass
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, LinearDrift, ValueFunction
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.solutions.compare import compare, from_callables
from fem_hjb.solutions.comparison import Comparison
from fem_hjb.solutions.norms import law_points
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ComparisonError, DomainError, MeasureError, OutputError

LAMBDA = np.array([[2.0, 0.6], [0.6, 0.5]])
ALPHA = 0.7
COV = np.array([[1.3, -0.2], [-0.2, 0.8]])


class Linear:
    """v = (1 + t) c'x, with a gradient and no policy of its own."""

    def __init__(self, c: ArrayLike) -> None:
        self.c = np.asarray(c, dtype=np.float64)

    def value(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        return np.asarray((1 + np.asarray(t)) * (np.asarray(x) @ self.c))

    def gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        return np.asarray((1 + np.asarray(t)) * np.broadcast_to(self.c, np.shape(x)))


def make_problem(*, marginal: bool = True, dim: int = 2, **changes: object) -> ControlProblem:
    given = {
        "dim": dim,
        "horizon": 2.0,
        "temperature": ALPHA,
        "drift": LinearDrift(-np.eye(dim), np.zeros(dim)),
        "diffusion": LAMBDA if dim == 2 else 1.0,
        "terminal_reward": lambda x: x[..., 0],
        "initial_law": Gaussian(np.zeros(dim), COV if dim == 2 else 1.0),
        "marginal": (lambda t: Gaussian(np.zeros(dim), COV if dim == 2 else 1.0)) if marginal else None,
    }
    return ControlProblem(**{**given, **changes})  # type: ignore[arg-type]


REFERENCE = Linear([1.0, -2.0])


def perturbed(eps: float, e: ArrayLike) -> Linear:
    return Linear(REFERENCE.c + eps * np.asarray(e))


@pytest.mark.parametrize("eps", [1e-8, 1e-3, 0.5])
def test_a_linear_perturbation_has_exactly_the_norms_computed_by_hand(eps: float) -> None:
    """E (e'X)^2 = e'Ce; policies are Lambda e / alpha, of squared Lambda^{-1} norm e'Lambda e / alpha^2."""
    e = np.array([0.3, 1.1])
    table = compare({"a": perturbed(eps, e)}, REFERENCE, problem=make_problem())
    row, c = table.overall("a"), REFERENCE.c
    # the difference of the two coefficient vectors is known to rounding: 1e-15 / eps relative
    assert row.value == pytest.approx(eps * np.sqrt((e @ COV @ e) / (c @ COV @ c)), rel=1e-12 + 1e-15 / eps)
    h1 = eps * np.sqrt((e @ COV @ e + e @ e) / (c @ COV @ c + c @ c))
    assert row.value_h1 == pytest.approx(h1, rel=1e-12 + 1e-15 / eps)
    assert row.policy == pytest.approx(eps * np.sqrt((e @ LAMBDA @ e) / (c @ LAMBDA @ c)), rel=1e-12 + 1e-15 / eps)
    assert row.excluded == 0.0
    assert row.time is None


def test_the_policy_norm_differs_from_the_gradient_norm() -> None:
    """The control of the test above: with this Lambda the two columns cannot be mistaken for each other."""
    row = compare({"a": perturbed(0.1, [0.0, 1.0])}, REFERENCE, problem=make_problem()).overall("a")
    assert abs(row.policy / row.value_h1 - 1.0) > 0.1


def test_each_time_is_relative_to_the_largest_reference_and_overall_is_the_largest() -> None:
    table = compare({"a": perturbed(0.01, REFERENCE.c)}, REFERENCE, problem=make_problem(), times=[0.0, 1.0, 2.0])
    # error and reference grow like 1 + t, the largest reference is at t = 2
    np.testing.assert_allclose(table.series("a", "value"), 0.01 * np.array([1, 2, 3]) / 3, rtol=1e-11)
    assert table.overall("a").value == table.series("a", "value").max()
    np.testing.assert_array_equal(table.times, [0.0, 1.0, 2.0])


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e9])
def test_relative_errors_do_not_depend_on_the_unit_of_the_reward(scale: float) -> None:
    one = compare({"a": perturbed(0.1, [1.0, 1.0])}, REFERENCE, problem=make_problem()).overall("a")
    problem = make_problem(temperature=scale * ALPHA)
    candidate, reference = Linear(scale * perturbed(0.1, [1.0, 1.0]).c), Linear(scale * REFERENCE.c)
    other = compare({"a": candidate}, reference, problem=problem).overall("a")
    for column in ("value", "value_h1", "policy"):
        assert getattr(other, column) == pytest.approx(getattr(one, column), rel=1e-12)


def test_value_and_policy_errors_do_not_depend_on_the_unit_of_the_state() -> None:
    """x = s z: v keeps its values, grad_z v = s grad_x v, Lambda_z = Lambda / s^2, pi_z = pi / s in its own norm."""
    one = compare({"a": perturbed(0.1, [1.0, 1.0])}, REFERENCE, problem=make_problem()).overall("a")
    s = 50.0
    law = Gaussian([0.0, 0.0], COV / s**2)
    problem = make_problem(diffusion=LAMBDA / s**2, initial_law=law, marginal=lambda t: law)
    candidate, reference = Linear(s * perturbed(0.1, [1.0, 1.0]).c), Linear(s * REFERENCE.c)
    other = compare({"a": candidate}, reference, problem=problem).overall("a")
    for column in ("value", "value_h1", "policy"):
        assert getattr(other, column) == pytest.approx(getattr(one, column), rel=1e-12)


def test_a_pair_of_callables_and_an_object_give_the_same_numbers() -> None:
    candidate = perturbed(0.1, [1.0, 0.0])
    table = compare(
        {"object": candidate, "pair": (candidate.value, candidate.gradient)}, REFERENCE, problem=make_problem()
    )
    assert table.names == ("object", "pair")
    for column in ("value", "value_h1", "policy"):
        assert getattr(table.overall("object"), column) == getattr(table.overall("pair"), column)


def test_a_policy_of_its_own_is_judged_instead_of_the_gradient() -> None:
    problem = make_problem()
    wrong = from_callables(REFERENCE.value, REFERENCE.gradient, policy=lambda t, x: np.zeros_like(x))
    row = compare({"still": wrong}, REFERENCE, problem=problem).overall("still")
    assert (row.value, row.value_h1) == (0.0, 0.0)
    assert row.policy == pytest.approx(1.0, rel=1e-12)


def test_without_a_gradient_the_columns_that_need_it_are_nan_and_print_as_a_dash() -> None:
    table = compare({"v": from_callables(REFERENCE.value)}, REFERENCE, problem=make_problem())
    row = table.overall("v")
    assert row.value == 0.0
    assert np.isnan([row.value_h1, row.policy]).all()
    assert table.table()[1] == ("v", "0", "-", "-", "0")


def test_callables_are_called_with_a_number_and_points_in_rows() -> None:
    seen: list[tuple[type, int]] = []

    def value(t: float, x: FloatArray) -> FloatArray:
        seen.append((type(t), x.ndim))
        return REFERENCE.value(t, x)

    compare({"v": (value, REFERENCE.gradient)}, REFERENCE, problem=make_problem())
    assert set(seen) == {(float, 2)}


def test_points_without_a_value_are_left_out_of_the_norms_and_counted() -> None:
    """On half of a symmetric law the left-out mass is 1/2, and error and reference both lose the same half."""
    problem = make_problem(dim=1)
    whole, reference = Linear([1.1]), Linear([1.0])

    def right(t: float, x: FloatArray) -> FloatArray:
        return np.where(x[:, 0] > 0, whole.value(t, x), np.nan)

    table = compare({"right": (right, whole.gradient), "whole": whole}, reference, problem=problem)
    row = table.overall("right")
    assert row.excluded == pytest.approx(0.5, abs=1e-13)
    assert row.value == pytest.approx(0.1, rel=1e-12)
    assert table.overall("whole").excluded == 0.0
    assert "excluded: p_t mass where the candidate has no value" in str(table)
    assert "excluded:" not in str(compare({"whole": whole}, reference, problem=problem))


def test_a_law_that_is_not_known_is_simulated_reproducibly() -> None:
    problem = make_problem(marginal=False)
    candidates = {"a": perturbed(0.1, [1.0, 1.0])}
    first, again = (compare(candidates, REFERENCE, problem=problem, rng=3) for _ in range(2))
    other = compare(candidates, REFERENCE, problem=problem, rng=4)
    assert [vars(row) for row in first.rows] == [vars(row) for row in again.rows]
    assert first.overall("a").value != other.overall("a").value
    assert "4096 simulated paths" in str(first)


def test_simulated_and_known_laws_agree_within_the_error_of_the_simulation() -> None:
    """At t = 0 the squared norm of a linear value over n draws is chi^2_n / n times the true one: 1.6% of a norm."""
    e = np.array([1.0, 1.0])
    problem = make_problem(marginal=False)
    row = compare({"a": perturbed(0.1, e)}, REFERENCE, problem=problem, times=[0.0]).series("a", "value")[0]
    c = REFERENCE.c
    expected = 0.1 * np.sqrt((e @ COV @ e) / (c @ COV @ c))
    assert row == pytest.approx(expected, rel=4 * np.sqrt(2 / (2 * 4096)) * np.sqrt(2))


def test_in_four_dimensions_the_law_is_simulated_even_when_known() -> None:
    problem = make_problem(dim=4)
    table = compare({"a": Linear(1.1 * np.ones(4))}, Linear(np.ones(4)), problem=problem)
    assert table.overall("a").value == pytest.approx(0.1, rel=1e-12)
    assert "simulated" in table.points


def test_a_point_mass_start_is_compared_at_its_point() -> None:
    problem = make_problem(dim=1, initial_law=PointMass([2.0]), marginal=lambda t: PointMass([2.0]))
    assert compare({"a": Linear([1.5])}, Linear([1.0]), problem=problem).overall("a").value == pytest.approx(0.5)


def test_a_reference_that_vanishes_makes_errors_infinite_or_zero() -> None:
    table = compare({"a": Linear([1.0]), "b": Linear([0.0])}, Linear([0.0]), problem=make_problem(dim=1))
    assert table.overall("a").value == np.inf
    assert table.overall("b").value == 0.0


def test_the_csv_file_holds_every_number_to_the_last_bit(tmp_path: Path) -> None:
    table = compare({"a": perturbed(0.1, [1.0, 1.0]), "b, too": REFERENCE}, REFERENCE, problem=make_problem())
    table.to_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == len(table.rows) == 2 * (len(table.times) + 1)
    for line, row in zip(lines, table.rows, strict=True):
        assert (line["candidate"], line["law"]) == (row.candidate, "uncontrolled")
        assert line["time"] == ("overall" if row.time is None else repr(row.time))
        assert [float(line[c]) for c in ("value", "value_h1", "policy", "excluded")] == [
            row.value,
            row.value_h1,
            row.policy,
            row.excluded,
        ]
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_the_text_table_is_aligned() -> None:
    lines = str(compare({"learned": perturbed(0.1, [1, 1])}, REFERENCE, problem=make_problem())).splitlines()
    assert lines[0].split() == ["candidate", "value", "value_h1", "policy", "excluded"]
    assert len(lines[0]) == len(lines[1]) == len(lines[2])
    assert lines[2].split()[0] == "learned"


def test_points_of_a_law_can_be_shared() -> None:
    problem, candidates = make_problem(), {"a": perturbed(0.1, [1.0, 1.0])}
    for settings in ({}, {"times": [0.0, 1.5]}, {"order": 5, "times": [2.0]}):
        points = law_points(problem, **settings)  # type: ignore[arg-type]
        for x, weights in points.rules:
            assert x.shape == (*weights.shape, 2)
            assert weights.sum() == pytest.approx(1.0)
            np.testing.assert_allclose(
                weights @ (x[:, :, None] * x[:, None, :]).reshape(-1, 4), COV.ravel(), atol=1e-12
            )
        shared = compare(candidates, REFERENCE, problem=problem, points=points)
        own = compare(candidates, REFERENCE, problem=problem, **settings)  # type: ignore[arg-type]
        assert [vars(row) for row in shared.rows] == [vars(row) for row in own.rows]
        np.testing.assert_array_equal(shared.times, points.times)
        assert shared.points == points.description == own.points


def test_simulated_points_are_those_of_their_seed() -> None:
    problem, candidates = make_problem(marginal=False), {"a": perturbed(0.1, [1.0, 1.0])}
    points = law_points(problem, rng=3)
    assert points.description == "p_t from 4096 simulated paths"
    assert points.rules[0][0].shape == (4096, 2)
    shared = compare(candidates, REFERENCE, problem=problem, points=points).overall("a").value
    assert shared == compare(candidates, REFERENCE, problem=problem, rng=3).overall("a").value
    assert (
        shared != compare(candidates, REFERENCE, problem=problem, points=law_points(problem, rng=4)).overall("a").value
    )


def pulled(**changes: object) -> tuple[ControlProblem, LinearQuadratic]:
    """Brownian motion from 0, y = 3 x: under control X_t ~ N(3 t, t), as the policy is 3 everywhere."""
    still, reward = LinearDrift([[0.0]], [0.0]), LogSumExpReward.linear([3.0], temperature=1.0)
    given = {
        "dim": 1,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": still,
        "diffusion": 1.0,
        "terminal_reward": reward,
        "initial_law": PointMass([0.0]),
        **changes,
    }
    exact = LinearQuadratic(drift=still, diffusion=1.0, terminal=reward, horizon=1.0)
    return ControlProblem(**given), exact  # type: ignore[arg-type]


def tilted_by(size: float, reference: LinearQuadratic) -> ValueFunction:
    return from_callables(
        lambda t, x: reference.value(t, x) + size * x[:, 0], lambda t, x: reference.gradient(t, x) + size
    )


def test_the_optimally_controlled_law_is_that_of_the_process_under_the_references_policy() -> None:
    """E* X_t^2 = 9 t^2 + t, E X_t^2 = t; four standard errors of a norm over 4096 draws, at each time."""
    problem, exact = pulled()
    times = np.array([0.25, 0.5, 1.0])
    table = compare({"a": tilted_by(0.1, exact)}, exact, problem=problem, law="both", times=times, rng=1)
    assert table.laws == ("uncontrolled", "controlled")
    for law, square, fourth in (
        ("uncontrolled", times, 3 * times**2),
        ("controlled", 9 * times**2 + times, 81 * times**4 + 54 * times**3 + 3 * times**2),
    ):
        v = np.sqrt(9 * square + 27 * times * 3 * (1 - times) * (law == "controlled") + 81 / 4 * (1 - times) ** 2)
        spread = 4 * np.sqrt((fourth - square**2) / 4096) / square
        np.testing.assert_allclose(table.series("a", "value", law), 0.1 * np.sqrt(square) / v.max(), rtol=spread.max())
        np.testing.assert_allclose(table.series("a", "policy", law), 0.1 / 3, rtol=1e-12)
    again = compare({"a": tilted_by(0.1, exact)}, exact, problem=problem, law="controlled", times=times, rng=1)
    assert [vars(row) for row in again.rows] == [vars(row) for row in table.rows if row.law == "controlled"]


def test_what_is_wrong_where_only_the_controlled_process_goes_is_seen_under_its_law_alone() -> None:
    """A target of two modes, 0 and 12 standard deviations out, of which a candidate knows the near one."""
    problem = zoo.get(
        "brownian-mixture", 1, means=[[0.0], [12.0]], covariances=[[[0.5]], [[0.5]]], weights=[1.0, 1e25], cov=1e-4
    )
    near = zoo.get("brownian-mixture", 1, means=[[0.0]], covariances=[[[0.5]]], weights=[1.0], cov=1e-4).exact
    exact = problem.exact
    assert exact is not None
    assert near is not None

    def half(name: str) -> Callable[[float, FloatArray], FloatArray]:
        def function(t: float, x: FloatArray) -> FloatArray:
            right, wrong = getattr(exact, name)(t, x), getattr(near, name)(t, x)
            return np.where((x[:, 0] < 6.0).reshape(-1, *[1] * (right.ndim - 1)), right, wrong)

        return function

    table = compare({"near": (half("value"), half("gradient"))}, exact, problem=problem, law="both")
    assert table.overall("near", "uncontrolled").policy < 1e-3
    assert table.overall("near", "controlled").policy > 0.3
    assert table.overall("near").policy == table.overall("near", "controlled").policy
    assert table.overall("near").law == "both"
    assert table.table()[0][:2] == ("candidate", "law")


def test_where_the_reference_has_no_policy_nothing_is_said_of_the_controlled_law() -> None:
    problem, exact = pulled()

    def known(t: float, x: FloatArray) -> FloatArray:
        return np.where(x < 2.0, exact.gradient(t, x), np.nan)

    for reference, why in (
        (from_callables(exact.value, known), "the reference has no policy at up to .*% of the states"),
        (from_callables(exact.value), "the reference has no policy: give from_callables"),
        (from_callables(exact.value, exact.gradient, lambda t, x: 1e29 * x**3 + 1.0), "left the range of numbers"),
    ):
        table = compare({"a": tilted_by(0.1, exact)}, reference, problem=problem, law="both")
        assert table.laws == ("uncontrolled",)
        assert re.search(why, table.unseen)
        assert "not compared under the optimally controlled law: " in str(table)
        with pytest.raises(ComparisonError, match=f"not to be compared.*{why}"):
            compare({"a": tilted_by(0.1, exact)}, reference, problem=problem, law="controlled")
    assert compare({"a": exact}, exact, problem=problem, law="both").unseen == ""


@pytest.mark.parametrize("k", [5, 7, 11])
def test_errors_that_last_for_a_small_part_of_the_horizon_before_its_end_are_seen(k: int) -> None:
    """The errors of a time 2^-k T before T; nine times do not see them."""
    problem = make_problem(dim=1)

    def size(t: float) -> float:
        return 2.0 if 0.7 * 0.5**k <= 1 - t / 2.0 <= 1.3 * 0.5**k else 1.0

    exact = Linear([1.0])
    wrong = {"a": (lambda t, x: size(t) * exact.value(t, x), lambda t, x: size(t) * exact.gradient(t, x))}
    assert compare(wrong, exact, problem=problem).overall("a").value > 0.3
    assert compare(wrong, exact, problem=problem, times=np.linspace(0.0, 2.0, 9)).overall("a").value == 0.0


def _bad(candidate: object, **more: object) -> Comparison:
    given: dict[str, object] = {"problem": make_problem(), **more}
    return compare({"net": candidate}, REFERENCE, **given)  # type: ignore[dict-item, arg-type]


class _Tensor:
    """Refuses to become an array as a tensor that requires a gradient does."""

    def __array__(self, dtype: object = None, copy: object = None) -> FloatArray:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


BAD_INPUT = {
    "no problem": (
        lambda: compare({"a": REFERENCE}, REFERENCE),
        ComparisonError,
        r"does not carry its problem; give compare\(.*problem=",
    ),
    "no candidates": (lambda: compare({}, REFERENCE, problem=make_problem()), ComparisonError, "at least one entry"),
    "not a value function": (lambda: _bad(3.0), ComparisonError, "candidate 'net' must have methods value.*got float"),
    "tuple of one": (
        lambda: _bad((REFERENCE.value,)),
        ComparisonError,
        r"candidate 'net': a tuple must be \(value, gradient\), got 1",
    ),
    "value not callable": (
        lambda: _bad((1.0, REFERENCE.gradient)),
        ComparisonError,
        "value must be a callable.*got float",
    ),
    "value with a column": (
        lambda: _bad((lambda t, x: x[:, :1], REFERENCE.gradient)),
        ComparisonError,
        r"candidate 'net': value\(t, x\) returned shape \(1024, 1\) for x of shape \(1024, 2\), expected \(1024,\)",
    ),
    "gradient transposed": (
        lambda: _bad((REFERENCE.value, lambda t, x: x.T)),
        ComparisonError,
        r"candidate 'net': gradient\(t, x\) returned shape \(2, 1024\).*expected \(1024, 2\)",
    ),
    "policy of one component": (
        lambda: _bad(from_callables(REFERENCE.value, REFERENCE.gradient, lambda t, x: x[:, :1])),
        ComparisonError,
        r"policy\(t, x\) returned shape \(1024, 1\)",
    ),
    "a tensor with a tape": (
        lambda: _bad((lambda t, x: _Tensor(), REFERENCE.gradient)),
        ComparisonError,
        r"what .*value\(t, x\) returns must be an array of real numbers, got <.*_Tensor object.*requires grad",
    ),
    "no value anywhere": (
        lambda: _bad((lambda t, x: np.full(len(x), np.nan), REFERENCE.gradient)),
        ComparisonError,
        "candidate 'net' or the reference has no value on 100% of the mass at t=0",
    ),
    "times outside": (lambda: _bad(REFERENCE, times=[0.0, 3.0]), DomainError, r"times must lie in \[0, 2\]"),
    "times of two axes": (lambda: _bad(REFERENCE, times=[[0.0, 1.0]]), MeasureError, "one-dimensional"),
    "order zero": (lambda: _bad(REFERENCE, order=0), MeasureError, "order must be a positive integer, got 0"),
    "order without a law": (
        lambda: _bad(REFERENCE, order=8, problem=make_problem(marginal=False)),
        MeasureError,
        "order is the number of Gauss points of a known law.*no known law",
    ),
    "a candidate of another problem": (
        lambda: _bad(type("Other", (Linear,), {"problem": make_problem(dim=1)})([1.0, 2.0])),
        ComparisonError,
        "candidate 'net' solves a problem with dim=1.*here dim=2",
    ),
    "gradient asked of a value alone": (
        lambda: from_callables(REFERENCE.value).gradient(0.0, np.zeros((1, 2))),
        ComparisonError,
        "made without a gradient",
    ),
    "unknown law": (
        lambda: _bad(REFERENCE, law="optimal"),
        ComparisonError,
        "law must be one of.*'uncontrolled', 'controlled', 'both', got 'optimal'",
    ),
    "a law that was not compared": (
        lambda: compare({"a": REFERENCE}, REFERENCE, problem=make_problem()).overall("a", "controlled"),
        ComparisonError,
        "law must be one of 'uncontrolled', got 'controlled'",
    ),
    "unknown column": (
        lambda: compare({"a": REFERENCE}, REFERENCE, problem=make_problem()).series("a", "l2"),
        ComparisonError,
        "column must be one of 'value', 'value_h1', 'policy', 'excluded', got 'l2'",
    ),
    "unknown candidate": (
        lambda: compare({"a": REFERENCE}, REFERENCE, problem=make_problem()).overall("b"),
        ComparisonError,
        "there is no candidate 'b' here, only 'a'",
    ),
    "csv into a folder that is not there": (
        lambda: compare({"a": REFERENCE}, REFERENCE, problem=make_problem()).to_csv(Path("no/such/folder/t.csv")),
        OutputError,
        "there is no folder",
    ),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input(kind: str) -> None:
    call, error, message = BAD_INPUT[kind]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("law", ["uncontrolled", "controlled"])
@pytest.mark.parametrize("mesh", [False, True])
def test_points_where_the_process_has_been_stopped_do_not_count(law: str, mesh: bool) -> None:
    """Nothing is steered on a face: a policy that is wrong there alone is no worse, one that is wrong beside it is."""
    if mesh:
        line = skfem.MeshLine(np.linspace(-1.0, 1.0, 9))
        domain: Box | MeshDomain = MeshDomain(line, "absorbing", exit_reward=lambda t, x: x[..., 0])
    else:
        domain = Box([-1.0], [1.0], boundary="absorbing", exit_reward=lambda t, x: x[..., 0])
    start = PointMass([0.6])
    problem = make_problem(marginal=False, dim=1, domain=domain, initial_law=start, drift=lambda t, x: 0.0 * x)
    truth = Linear([1.0])

    def wrong(where: Callable[[FloatArray], FloatArray]) -> ValueFunction:
        return from_callables(truth.value, lambda t, x: truth.gradient(t, x) + 10.0 * where(x)[..., None])

    at_faces = wrong(lambda x: domain.exited(x).astype(float))
    beside = wrong(lambda x: ~domain.exited(x) & (np.abs(x[..., 0]) > 0.9))
    times = [0.5, 1.0]  # by then most paths have been stopped, and some have not
    found = compare({"at": at_faces, "beside": beside}, truth, problem=problem, law=law, times=times)
    assert found.overall("at").policy == 0.0
    assert found.overall("beside").policy > 0.1
