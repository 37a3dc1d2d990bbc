"""Steps in a class of networks: those of the inequality where the class is linear, and the experiment that compares."""

import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fem_hjb as fh
from fem_hjb import experiments
from fem_hjb.experiments.trial import save_trial
from fem_hjb.interop.network_class import OneLayer, fit_values, network_steps
from fem_hjb.learning.measures import empirical_measure
from fem_hjb.learning.solve_system import reduce_system
from fem_hjb.learning.system import assemble
from fem_hjb.problems import zoo
from fem_hjb.problems.gauge import Gauge
from fem_hjb.spaces.features import HermiteCross
from fem_hjb.spaces.line import LineBasis
from fem_hjb.support.errors import ConvergenceError, MeasureError, ProblemError, TrialError

DIFFUSION = np.array([[1.0, 0.3], [0.3, 0.5]])
PROBLEM = zoo.get("lq", dim=2, Q=1.0, Lambda=DIFFUSION)
PATHS = fh.sample_paths(PROBLEM, n=40, steps=6, rng=0)
GAUGE = Gauge(temperature=1.0, horizon=PROBLEM.horizon, terminal=0.1, running=0.2)


class Polynomials(torch.nn.Module):
    """A function of Space.product(P2 on one cell, HermiteCross(N(0, 1), 2)), by its coefficients."""

    def __init__(self, indices: Any) -> None:
        super().__init__()
        self.indices = indices
        self.c = torch.nn.Parameter(torch.zeros(3, len(indices), dtype=torch.float64))

    def forward(self, t: Any, x: Any) -> Any:
        s = t / PROBLEM.horizon
        psi = torch.stack([(1 - s) * (1 - 2 * s), 4 * s * (1 - s), s * (2 * s - 1)], dim=1)
        hermite = torch.stack([torch.ones_like(x), x, (x**2 - 1) / 2**0.5])
        phi = torch.stack([hermite[i, :, 0] * hermite[j, :, 1] for i, j in self.indices], dim=1)
        return torch.einsum("nk,kj,nj->n", psi, self.c, phi)


@pytest.mark.parametrize("delta", [0.2, 0.5])
def test_in_a_linear_class_the_step_is_that_of_the_inequality(delta: float) -> None:
    features = HermiteCross(fh.Gaussian([0.0, 0.0], 1.0), 2)
    space = fh.Space.product(LineBasis.uniform(PROBLEM.horizon, 1, "P2"), features)
    reduced = reduce_system(assemble(PROBLEM, PATHS, space, delta=delta, constants=GAUGE), smoothing=0.0)
    network, gamma = Polynomials(features.indices.tolist()), 0.4
    data = PATHS if delta == 0.2 else empirical_measure(PROBLEM, PATHS)
    course = network_steps(PROBLEM, data, network, gauge=GAUGE, gamma=gamma, delta=delta, inner=80)
    c = np.zeros(reduced.inequality.size)
    for number, step in enumerate(islice(course, 2), 1):
        before, c = c, reduced.inequality.step(c, gamma)
        expected = np.reshape(reduced.whole(c), space.shape)
        assert network.c.detach().numpy() == pytest.approx(expected, abs=1e-7 * np.abs(expected).max())
        assert step.number == number
        assert step.size == pytest.approx(reduced.inequality.norm(c), rel=1e-6)
        assert step.moved == pytest.approx(reduced.inequality.norm(c - before), rel=1e-6)
        assert 0 < step.fell < 1


def test_one_layer_starts_at_zero_and_is_the_same_for_a_seed() -> None:
    one, same, other = (OneLayer(2, 3, seed=seed) for seed in (0, 0, 1))
    t, x = np.linspace(0.0, 1.0, 5), np.ones((5, 2))
    assert not one.values(t, x).any()
    assert torch.equal(one.hidden.weight, same.hidden.weight)
    assert not torch.equal(one.hidden.weight, other.hidden.weight)
    fit_values(one, t, x, np.sin(t), np.full(5, 0.2), inner=60)
    assert one.values(t, x) == pytest.approx(np.sin(t), abs=1e-3)


class _Wrong(torch.nn.Module):
    def __init__(self, answer: Callable[[Any], Any]) -> None:
        super().__init__()
        self.answer, self.c = answer, torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, t: Any, x: Any) -> Any:
        return self.answer(self.c * x[:, 0])


def test_arguments_that_make_no_sense_are_refused() -> None:
    good: dict[str, Any] = {"problem": PROBLEM, "data": PATHS, "network": OneLayer(2, 3, seed=0), "gauge": GAUGE}
    good |= {"gamma": 0.4}
    for wrong, error, message in (
        ({"problem": 3}, ProblemError, "network_steps"),
        ({"data": 3}, MeasureError, "network_steps .*or give Paths"),
        ({"data": fh.sample_paths(zoo.get("lq", dim=1), n=2, steps=2, rng=0)}, MeasureError, "dim"),
        ({"network": 3}, ProblemError, "network_steps"),
        ({"network": OneLayer(2, 3, seed=0).float()}, ProblemError, r"float64 .* got torch.float32; call .double\(\)"),
        ({"network": torch.nn.Tanh()}, ProblemError, "parameters of float64 to learn, got none"),
        ({"network": _Wrong(lambda f: f[:, None])}, ProblemError, r"for n = 2 it returned \(2, 1\) of torch.float64"),
        ({"network": _Wrong(lambda f: 1.0)}, ProblemError, "for n = 2 it returned float"),
        ({"gauge": None}, ProblemError, "network_steps needs a Gauge"),
        ({"gamma": 0.0}, ConvergenceError, "gamma must be"),
        ({"delta": 0.0}, ConvergenceError, "delta must be"),
        ({"inner": 0}, MeasureError, "inner must be"),
    ):
        with pytest.raises(error, match=message):
            network_steps(**good | wrong)
    for broken, error, message in (
        (lambda f: f / 0.0, ConvergenceError, "no longer finite"),
        (torch.relu, ProblemError, "it is piecewise linear, .* tanh or softplus instead of relu"),
    ):
        course = network_steps(**good | {"network": _Wrong(broken)})
        with pytest.raises(error, match=message):
            next(course)


def test_a_jump_between_the_times_at_which_paths_are_seen_is_told() -> None:
    class Jump(torch.nn.Module):
        """t plus a jump of size c between the times 4/6 and 5/6 of the horizon, 6 steps in all."""

        def __init__(self, c: float) -> None:
            super().__init__()
            self.c = torch.nn.Parameter(torch.tensor([c], dtype=torch.float64))

        def forward(self, t: Any, x: Any) -> Any:
            return t + self.c * torch.tanh(60 * (t / PROBLEM.horizon - 0.75))

    smooth, jump = (next(network_steps(PROBLEM, PATHS, Jump(c), gauge=GAUGE, gamma=1e-9)) for c in (0.0, 2.0))
    assert 0.5 < smooth.unseen < 2.0
    assert jump.unseen > 5.0


def test_a_network_may_leave_out_t_and_be_linear_in_x() -> None:
    step = next(network_steps(PROBLEM, PATHS, _Wrong(lambda f: f), gauge=GAUGE, gamma=0.4))
    assert step.moved > 0


def test_the_experiment_shows_what_convexity_buys(tmp_path: Path) -> None:
    module, told = experiments.get("networks"), []
    trial = module.run(module.QUICK, told.append)
    assert [claim.text for claim in trial.claims if not claim.as_expected] == []
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(trial.rows) == module.QUICK.seeds * (2 * module.QUICK.steps + 2 * 8)
    assert len(trial.title) <= 120
    figure = module.figure(trial)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    files = save_trial(tmp_path, trial, figure)
    assert files[2].stat().st_size > 10_000


def test_the_experiment_wants_a_degree_and_a_width_for_each_dimension() -> None:
    with pytest.raises(TrialError, match=r"each of dims=\(1, 2\) needs a degree and a width, got degrees=\(5,\)"):
        experiments.run("networks", quick=True, dims=(1, 2))


def test_the_experiment_without_pytorch_says_what_to_install() -> None:
    code = """if True:
        import sys
        import fem_hjb as fh

        class Without:
            def find_spec(self, name, *rest):
                if name == "torch":
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Without())
        assert "polynomials" in fh.experiments.get("networks").__doc__
        try:
            fh.experiments.run("networks", quick=True)
        except fh.errors.MissingPackageError as e:
            print(isinstance(e, ImportError), e)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True fem_hjb.interop.network_class needs PyTorch: pip install")
