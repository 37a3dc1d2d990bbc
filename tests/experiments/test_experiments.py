"""Every experiment, as small as it comes: its claims hold, its controls do not, its figure shows its numbers."""

import csv
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fem_hjb import experiments
from fem_hjb.cli import app
from fem_hjb.experiments import mixture_tilts
from fem_hjb.experiments.trial import Claim, Trial, fitted_slope, save_trial
from fem_hjb.support.errors import ConvergenceError, TrialError

WITH_TORCH = ("networks",)  # run by tests/interop/test_network_class.py


@pytest.mark.parametrize("name", [name for name in experiments.names() if name not in WITH_TORCH])
def test_experiment(name: str, tmp_path: Path) -> None:
    module = experiments.get(name)
    told: list[float] = []
    heard = [time.process_time()]  # what a machine does beside does not count

    def tell(fraction: float) -> None:
        told.append(fraction)
        heard.append(time.process_time())

    trial = module.run(module.QUICK, tell)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert np.diff(heard).max() < 2.0
    surprises = [claim for claim in trial.claims if not claim.as_expected]
    assert surprises == []
    assert not any(claim.holds for claim in trial.claims if claim.control)
    assert any(claim.control for claim in trial.claims)
    assert trial.name == name
    assert trial.title == module.__doc__.splitlines()[0]
    assert len(trial.title) <= 120
    numbers = [cell for row in trial.rows for cell in row if not isinstance(cell, str)]
    assert not np.isnan(np.array(numbers, dtype=np.float64)).any()  # infinite n stands for the law itself
    figure = module.figure(trial)
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert all(axes.get_ylabel() for axes in figure.axes)
    files = save_trial(tmp_path, trial, figure)
    with files[0].open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == len(trial.rows) + 1
    record = json.loads(files[1].read_text(encoding="utf-8"))
    assert record["config"].keys() == dataclasses.asdict(module.QUICK).keys()
    assert files[2].stat().st_size > 10_000


@pytest.mark.parametrize("name", experiments.names())
def test_configurations_are_frozen_and_explained(name: str) -> None:
    module = experiments.get(name)
    config = module.Config()
    assert isinstance(module.QUICK, module.Config)
    assert module.Config.__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.anything = 1  # type: ignore[attr-defined]


def small_trial(*claims: Claim) -> Trial:
    return Trial(
        name="small",
        title="nothing",
        config=Claim(text="a config", value=0.0, low=0.0, high=0.0),
        columns=("word", "x"),
        rows=(("a", 1.0), ("b", 2.0), ("a", 3.0)),
        claims=claims,
        seconds=0.0,
    )


def test_claims_and_controls() -> None:
    inside = {"text": "in", "value": 1.0, "low": 0.9, "high": 1.1}
    outside = inside | {"value": 2.0}
    good = small_trial(Claim(**inside), Claim(**outside, control=True))
    assert good.as_expected
    assert not small_trial(Claim(**outside), Claim(**outside, control=True)).as_expected
    assert not small_trial(Claim(**inside), Claim(**inside, control=True)).as_expected
    assert not Claim(**inside | {"value": float("nan")}).holds
    assert good.column("x", word="a").tolist() == [1.0, 3.0]


def test_slopes() -> None:
    x = np.array([1.0, 2.0, 4.0, 8.0])
    noise = np.exp([0.1, -0.1, -0.1, 0.1])
    slope = fitted_slope(x, 3 * x**-0.5 * noise)
    assert slope.value == pytest.approx(-0.5)
    # Student's interval by hand: residual variance 0.04 / 2, horizontal sum of squares 5 log(2)^2
    margin = 4.30265 * np.sqrt(0.02 / (5 * np.log(2) ** 2))
    assert (slope.low, slope.high) == pytest.approx((-0.5 - margin, -0.5 + margin), rel=1e-5)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("at least two positive pairs", lambda: fitted_slope([1.0], [1.0])),
        ("at least two positive pairs", lambda: fitted_slope([1.0, 2.0], [1.0, 0.0])),
        ("at least two positive pairs, got shapes", lambda: fitted_slope([1.0, 2.0], [1.0, 2.0, 3.0])),
        ("needs different x", lambda: fitted_slope([2.0, 2.0], [1.0, 3.0])),
        ("x must be an array of real numbers", lambda: fitted_slope(["a", "b"], [1.0, 3.0])),
        ("no experiment 'coercive'; there are .*coercivity", lambda: experiments.get("coercive")),
        ("has no negative control", lambda: small_trial(Claim(text="", value=0.0, low=0.0, high=1.0))),
        (
            "no column 'y', but word, x",
            lambda: small_trial(Claim(text="", value=2.0, low=0, high=1, control=True)).column("y"),
        ),
        (
            "a row of 2 for 1 columns",
            lambda: dataclasses.replace(
                small_trial(Claim(text="", value=2.0, low=0, high=1, control=True)), columns=("x",)
            ),
        ),
    ],
)
def test_bad_input(message: str, call: object) -> None:
    with pytest.raises(TrialError, match=message):
        call()  # type: ignore[operator]


def test_regression_in_the_log_domain_finds_logarithms_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    group, labels, weights = rng.integers(0, 3, 60), 2 * rng.standard_normal(60), rng.uniform(0.1, 1.0, 60)
    rows = np.eye(3)[group]
    mean = (rows * (weights * np.exp(labels))[:, None]).sum(axis=0) / (rows * weights[:, None]).sum(axis=0)
    np.testing.assert_allclose(mixture_tilts.log_regression(rows, labels, weights), np.log(mean), atol=1e-5)
    monkeypatch.setattr(mixture_tilts, "_NEWTON", 2)
    with pytest.raises(ConvergenceError, match="did not settle in 2 steps; take more paths"):
        mixture_tilts.log_regression(rows, labels, weights)


@pytest.mark.parametrize("name", ["mixture-tilts", "rotated-wells", "high-dimension", "two-dimensions", "ellipticity"])
def test_one_seed_has_no_spread(name: str) -> None:
    with pytest.raises(TrialError, match="the spread over seeds needs at least two of them, got seeds=1"):
        experiments.run(name, quick=True, seeds=1)


def test_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["experiment", "coercivity", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert "NOT AS EXPECTED" not in result.stdout
    assert "minutes" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"coercivity.{kind}" for kind in ("csv", "json", "png")]
    listing = CliRunner().invoke(app, ["experiment"])
    assert all(name in listing.stdout for name in experiments.names())
    assert CliRunner().invoke(app, ["experiment", "nothing"]).exit_code == 2


def test_configurations_can_be_changed_field_by_field() -> None:
    module = experiments.get("iteration")
    config = experiments.configuration("iteration", quick=True, steps=7, paths=[50, 100], reward=2)
    assert config == dataclasses.replace(module.QUICK, steps=7, paths=(50, 100), reward=2.0)
    assert isinstance(config.reward, float)
    assert experiments.configuration("iteration") == module.Config()
    assert experiments.configuration("iteration", seed=0).seed == 0
    nested = experiments.configuration("coercivity", in_time=[[2, 3]])
    assert nested.in_time == ((2, 3),)
    for changes, message in (
        ({"pats": 3}, r"has no pats; it is paths=\(.*seed=1, reward=5.0"),
        ({"steps": 2.5}, "steps must be of type int, got 2.5"),
        ({"steps": True}, "steps must be of type int, got True"),
        ({"paths": 3}, r"paths must be of type tuple\[int, ...\], got 3"),
        ({"paths": (3, "x")}, "paths must be of type"),
        ({"paths": ()}, r"paths must not be empty, and its integers at least 1, got \(\)"),
        ({"paths": (3, 0)}, r"its integers at least 1, got \(3, 0\)"),
        ({"seeds": 0}, "seeds must not be empty, and its integers at least 1, got 0"),
        ({"seed": -1}, "seed must .* at least 0, got -1"),
        ({"reward": "much"}, "reward must be of type float, got 'much'"),
    ):
        with pytest.raises(TrialError, match=message):
            experiments.configuration("iteration", **changes)
    with pytest.raises(
        TrialError, match=r"in_time must be of type tuple\[tuple\[int, int\], ...\], got \(\(1, 2, 3\),\)"
    ):
        experiments.configuration("coercivity", in_time=((1, 2, 3),))


def test_an_experiment_runs_with_a_configuration_of_ones_own() -> None:
    quick = experiments.get("coercivity").QUICK
    small = {"in_time": ((4, 12), (8, 12)), "in_space": ((4, 8), (8, 12))}
    narrow = dataclasses.replace(quick, half_width=3.0, **small)
    trial = experiments.run("coercivity", config=narrow)
    assert trial.config is narrow
    again = experiments.run("coercivity", quick=True, half_width=3.0, **small)
    assert again.config == narrow
    assert again.rows == trial.rows
    assert again.rows != experiments.run("coercivity", quick=True, **small).rows
    for more in ({"quick": True}, {"half_width": 2.0}):
        with pytest.raises(TrialError, match="give a Config of 'coercivity' alone"):
            experiments.run("coercivity", config=narrow, **more)
    with pytest.raises(TrialError, match="give a Config of 'coercivity' alone"):
        experiments.run("coercivity", config=experiments.get("iteration").QUICK)


def test_a_limit_of_time_ends_a_solution_within_an_experiment() -> None:
    with pytest.raises(ConvergenceError, match=r"experiment 'two-equations': .* done within max_seconds=0.2"):
        experiments.run("two-equations", quick=True, max_seconds=0.2)


def test_command_with_fields_set_and_json(tmp_path: Path) -> None:
    options = ["--quick", "--set", "half_width=3", "--set", "deltas=(0.0, 0.1)", "--json", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["experiment", "coercivity", *options])
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["as_expected"] else 1)
    assert found["config"]["half_width"] == 3.0
    assert found["config"]["deltas"] == [0.0, 0.1]
    assert {row["delta"] for row in found["rows"]} == {0.0, 0.1}
    written = json.loads((tmp_path / "coercivity.json").read_text(encoding="utf-8"))
    assert {key: found[key] for key in written} == written
    assert found["files"] == [str(tmp_path / f"coercivity.{kind}") for kind in ("csv", "json", "png")]
    listing = json.loads(CliRunner().invoke(app, ["experiment", "--json"]).stdout)
    assert list(listing) == experiments.names()


def test_command_fails_when_a_claim_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = experiments.get("coercivity")
    broken = small_trial(
        Claim(text="wrong", value=2.0, low=0.0, high=1.0), Claim(text="", value=2.0, low=0.0, high=1.0, control=True)
    )
    monkeypatch.setattr(module, "run", lambda config, tell: broken)
    monkeypatch.setattr(module, "figure", lambda trial: __import__("matplotlib.figure").figure.Figure())
    result = CliRunner().invoke(app, ["experiment", "coercivity", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "NOT AS EXPECTED" in result.stdout
