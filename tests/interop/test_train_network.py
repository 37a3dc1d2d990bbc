"""The example that trains a network and judges it: from beginning to end, and what its pieces are to do."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fem_hjb as fh
from fem_hjb.interop.torch import as_field

SCRIPT = Path(__file__).parents[2] / "examples" / "train_network.py"
EXAMPLE = runpy.run_path(str(SCRIPT), run_name="example")
DIM = EXAMPLE["DIM"]


class Exact(torch.nn.Module):
    """The control of a solution, with a derivative by differences: the best network there is."""

    def __init__(self, solution: Any) -> None:
        super().__init__()
        self.solution = solution

    def forward(self, t: Any, x: Any) -> Any:
        return _Control.apply(t, x, self.solution)


class _Control(torch.autograd.Function):
    @staticmethod
    def at(t: Any, x: Any, solution: Any) -> Any:
        found = solution.policy(t.numpy().astype(float), np.clip(x.detach().numpy().astype(float), -1.7, 1.7))
        return torch.tensor(found, dtype=torch.float32)

    @staticmethod
    def forward(ctx: Any, t: Any, x: Any, solution: Any) -> Any:
        ctx.save_for_backward(t, x)
        ctx.solution = solution
        return _Control.at(t, x, solution)

    @staticmethod
    def backward(ctx: Any, weight: Any) -> Any:  # of coordinates that do not see each other
        (t, x), h = ctx.saved_tensors, 1e-2
        return (
            None,
            weight * (_Control.at(t, x + h, ctx.solution) - _Control.at(t, x - h, ctx.solution)) / (2 * h),
            None,
        )


def noise_of(net: Any, seed: int = 0, martingale: bool = True) -> tuple[Any, Any]:
    """E |a - u|^2 at each time, and the mean of a - u, of 256 paths."""
    torch.manual_seed(seed)
    times = EXAMPLE["graded_times"](96)
    x, noise = EXAMPLE["simulated"](net, times, 256)
    a = EXAMPLE["adjoints"](net, times, x, noise if martingale else 0 * noise)
    with torch.no_grad():
        u = net(times.repeat_interleave(256), x.reshape(-1, DIM)).reshape(x.shape)
    return ((a - u) ** 2).sum(2).mean(1), (a - u).mean(1)


def test_adjoints_along_optimal_paths_are_the_optimal_control_and_nearly_without_noise() -> None:
    solution = fh.solve(EXAMPLE["checked_problem"](), rtol=1e-4)
    quiet, _ = noise_of(Exact(solution))
    lean, mean = noise_of(Exact(solution), martingale=False)
    late = slice(24, None)  # before that paths are on top of the barriers, where all is magnified
    assert (quiet[late] < 0.2 * lean[late] + 1e-3).all()
    assert quiet[-1] < 1e-6
    assert (mean[late].abs() < 5 * (lean[late, None] / 256).sqrt() + 1e-3).all()  # the lean adjoint is right on average


def test_training_is_the_same_for_a_seed_and_lowers_the_error() -> None:
    problem, plan, weights, errors = EXAMPLE["checked_problem"](), EXAMPLE["QUICK"], [], []
    reference = fh.solve(problem, rtol=1e-3)
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        net = EXAMPLE["Control"]()
        if not errors:
            errors.append(fh.control_error(problem, as_field(net), reference, times=16, n=256, rtol=1e-2).value)
        EXAMPLE["trained"](net, plan, lambda k, loss: None)
        weights.append(torch.nn.utils.parameters_to_vector(net.parameters()))
    errors.append(fh.control_error(problem, as_field(net), reference, times=16, n=256, rtol=1e-2).value)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert errors[1] < 0.8 * errors[0]


def test_a_problem_that_is_another_is_refused() -> None:
    assert EXAMPLE["checked_problem"]().name == "soc-double-well"
    wrong = runpy.run_path(str(SCRIPT), run_name="example")
    wrong["checked_problem"].__globals__["KAPPA"][0] = 4.0
    with pytest.raises(SystemExit, match="drift"):
        wrong["checked_problem"]()
    wrong["checked_problem"].__globals__["KAPPA"][0] = 5.0
    wrong["checked_problem"].__globals__["NU"][9] = 2.0
    with pytest.raises(SystemExit, match="reward"):
        wrong["checked_problem"]()


def test_from_beginning_to_end(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--seed", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "MPLBACKEND": "Agg"})
    assert done.stderr == ""
    for told in (
        "round 8: loss",
        "(1/T) E* ∫|u - u*|² dt = ",
        "reward, network, 200 Euler steps",
        "certificate of a policy",
    ):
        assert told in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["network.png", "network.pt"]
    assert (tmp_path / "out" / "network.png").stat().st_size > 20_000
    net = EXAMPLE["Control"]()
    net.load_state_dict(torch.load(tmp_path / "out" / "network.pt"))
