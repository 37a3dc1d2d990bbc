"""Networks that come in: shapes, precision, modes, errors that say what to do, and diffusion models."""

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fem_hjb as fh
from fem_hjb.interop import torch as bridge
from fem_hjb.support.errors import DomainError, ProblemError

MIXTURE = fh.zoo.get("mixture-diffusion", dim=1, beta=(0.5, 4.0))
DATA = MIXTURE.exact._process.data  # type: ignore[union-attr]


class Net(torch.nn.Module):
    """A small network (t, x) -> (n, out); out = 0 drops the last axis."""

    def __init__(self, dim: int, out: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.out = out
        self.layers = torch.nn.Sequential(torch.nn.Linear(dim + 1, 16), torch.nn.Tanh(), torch.nn.Linear(16, out or 1))

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        assert t.shape == x.shape[:1]
        assert x.ndim == 2
        found: torch.Tensor = self.layers(torch.cat([t[:, None], x], dim=1))
        return found if self.out else found.squeeze(-1)


class MixtureScore(torch.nn.Module):
    """grad log q_s of a variance-preserving model with beta linear in s, written in tensors."""

    def __init__(self, data: fh.GaussianMixture, beta: tuple[float, float], horizon: float) -> None:
        super().__init__()
        for name, array in zip(("weights", "means", "covs"), data.components, strict=True):
            self.register_buffer(name, torch.tensor(array))
        self.beta, self.horizon = beta, horizon

    def forward(self, s: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        start, end = self.beta
        kappa2 = torch.exp(-(start * s + (end - start) * s**2 / (2 * self.horizon)))[:, None, None]
        means = kappa2.sqrt() * self.means
        covs = kappa2[..., None] * self.covs + (1 - kappa2[..., None]) * torch.eye(x.shape[1], dtype=x.dtype)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_q = torch.distributions.MixtureSameFamily(
                torch.distributions.Categorical(self.weights.expand(len(x), -1)),
                torch.distributions.MultivariateNormal(means, covs),
            ).log_prob(x)
            return torch.autograd.grad(log_q.sum(), x)[0]


@pytest.mark.parametrize("shape", [(2,), (5, 2), (3, 4, 2), (0, 2)])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_any_batch_is_what_the_network_says_of_each_point(shape: tuple[int, ...], chunk: int) -> None:
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal(shape), rng.uniform(size=shape[:-1])
    net, scalar = Net(2, 2).double(), Net(2, 0).double()
    field, reward = bridge.as_field(net, chunk=chunk), bridge.as_running_reward(scalar, chunk=chunk)
    for times in (t, 0.25):
        stacked = torch.tensor(np.concatenate([np.broadcast_to(times, shape[:-1])[..., None], x], axis=-1))
        np.testing.assert_allclose(field(times, x), net.layers(stacked).detach().numpy(), rtol=0, atol=1e-15)
        np.testing.assert_allclose(reward(times, x), scalar.layers(stacked).detach()[..., 0], rtol=0, atol=1e-15)
    assert field(t, x).dtype == np.float64
    assert bridge.as_reward(lambda x: x.sum(1), chunk=chunk)(x) == pytest.approx(x.sum(-1), abs=1e-15)


def test_chunks_bound_what_a_network_sees() -> None:
    seen: list[int] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x[:, 0]

    x = np.linspace(0.0, 1.0, 10)[:, None]
    assert bridge.as_reward(function, chunk=4)(x).tolist() == x[:, 0].tolist()
    assert seen == [4, 4, 2]


def test_precision_and_device_are_those_of_parameters_then_buffers() -> None:
    seen: list[Any] = []

    class Look(torch.nn.Module):
        def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            seen.append((t.dtype, x.dtype, x.device.type))
            return x

    look, weighted = Look(), Look()
    weighted.weight = torch.nn.Parameter(torch.zeros(1))
    weighted.register_buffer("other", torch.zeros(1, dtype=torch.float64))
    buffered = Look()
    buffered.register_buffer("other", torch.zeros(1))
    for module in (look, weighted, buffered, weighted.forward):
        bridge.as_field(module)(0.0, [[1.0]])
    bridge.as_field(look, dtype=torch.float32, device="cpu")(0.0, [[1.0]])
    double, single = ((kind, kind, "cpu") for kind in (torch.float64, torch.float32))
    assert seen == [double, single, single, single, single]


def test_gradients_are_off() -> None:
    seen: list[bool] = []
    bridge.as_reward(lambda x: (seen.append(torch.is_grad_enabled()), x[:, 0])[1])([[1.0]])
    assert seen == [False]
    assert torch.is_grad_enabled()


def test_modules_are_in_evaluation_mode_and_come_back_in_their_own() -> None:
    torch.manual_seed(0)
    dropout = torch.nn.Sequential(Net(1, 1), torch.nn.Dropout(0.5), torch.nn.Dropout(0.5))
    dropout[0].forward = lambda x: x  # type: ignore[assignment]
    dropout[1].eval()
    reward = bridge.as_reward(torch.nn.Sequential(dropout, torch.nn.Flatten(0)))
    x = np.linspace(1.0, 2.0, 50)[:, None]
    assert reward(x).tolist() == pytest.approx(x[:, 0], rel=1e-7)
    assert [dropout.training, dropout[1].training, dropout[2].training] == [True, False, True]
    assert (dropout(torch.tensor(x)) == 0).any()  # which it was not meanwhile


def test_mode_comes_back_after_a_failure_too() -> None:
    net = Net(2, 2)
    with pytest.raises(ProblemError):
        bridge.as_field(net)(0.0, [[1.0]])
    assert all(part.training for part in net.modules())


def test_it_follows_the_parameters_and_is_picklable() -> None:
    net = Net(1, 1)
    field = bridge.as_field(net)
    x = np.array([[0.3]])
    before = field(0.0, x)
    again = pickle.loads(pickle.dumps(field))
    with torch.no_grad():
        net.layers[2].bias += 1.0
    assert field(0.0, x)[0, 0] == pytest.approx(before[0, 0] + 1.0, abs=1e-6)
    assert again(0.0, x)[0, 0] == before[0, 0]


def test_the_gap_to_double_precision() -> None:
    net = Net(2, 2)
    x = np.random.default_rng(0).standard_normal((200, 2))
    gap = bridge.float64_gap(bridge.as_field(net), 0.5, x)
    assert 1e-9 < gap < 1e-6
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert bridge.float64_gap(bridge.as_field(net.double()), 0.5, x) == 0.0

    class Cancels(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (super().forward(x) + 1000.0 - 1000.0)[:, 0]

    assert bridge.float64_gap(bridge.as_reward(Cancels(2, 1)), x) > 1e-6


def test_a_value_has_its_gradient_by_autograd() -> None:
    class Sine(torch.nn.Module):
        def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.exp(-t) * torch.sin(x).prod(dim=1)

    found, x, t = bridge.as_value(Sine()), np.random.default_rng(0).standard_normal((7, 2)), np.linspace(0, 1, 7)
    exact = np.stack([np.cos(x[:, 0]) * np.sin(x[:, 1]), np.sin(x[:, 0]) * np.cos(x[:, 1])], axis=1)
    np.testing.assert_allclose(found.value(t, x), np.exp(-t) * np.sin(x).prod(1), rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.gradient(t, x), np.exp(-t)[:, None] * exact, rtol=0, atol=1e-15)


def test_networks_are_judged_as_anything_else_is() -> None:
    problem = fh.zoo.get("lq", dim=1)
    reference = fh.solve(problem, rtol=1e-6)
    exact = bridge.as_value(lambda t, x: torch.tensor(problem.exact.value(t.numpy(), x.detach().numpy())))
    assert isinstance(exact, fh.problems.ValueFunction)
    net = bridge.as_value(Net(1, 0))
    table = fh.compare({"net": net}, reference)
    assert table.overall("net").policy > 0.1
    policy = bridge.as_field(lambda t, x: torch.tensor(problem.exact.policy(t.numpy(), x.numpy())))
    assert fh.control_error(problem, policy, reference, rtol=1e-2).value < 1e-8
    assert fh.control_error(problem, bridge.as_field(Net(1, 1)), reference, rtol=1e-2).value > 1e-2
    better, worse = (fh.certify(problem, of, x0=[0.0], n=512, steps=16, rng=0).lower for of in (policy, None))
    assert better > worse


BAD_MODULES: dict[str, tuple[Callable[[], Any], str]] = {
    "half": (lambda: Net(1, 1).half(), r"Net computes in torch.float16, which has three digits: call .float\(\)"),
    "bfloat16": (lambda: Net(1, 1).bfloat16(), r"torch.bfloat16"),
    "two precisions": (
        lambda: torch.nn.Sequential(Net(1, 1), Net(1, 1).double()),
        r"parameters in torch.float32 and torch.float64; call .double\(\)",
    ),
    "no device": (lambda: Net(1, 1).to("meta"), r"on the device 'meta'.*to_empty\(device='cpu'\)"),
    "a class": (lambda: Net, "got the class Net"),
    "a tensor": (lambda: torch.zeros(2), "got Tensor"),
    "None": (lambda: None, "got NoneType"),
    "wrapped twice": (lambda: bridge.as_field(Net(1, 1)), "already"),
}


@pytest.mark.parametrize("kind", BAD_MODULES)
def test_a_module_that_cannot_be_taken_is_refused_at_once(kind: str) -> None:
    make, told = BAD_MODULES[kind]
    with pytest.raises(ProblemError, match=told):
        bridge.as_field(make())


def fails(t: Any, x: Any) -> Any:
    raise KeyError("weights")


BAD_ANSWERS: dict[str, tuple[Callable[..., Any], str]] = {
    "too many columns": (lambda t, x: torch.cat([x, x], 1), r"returned shape \(3, 2\) at times.*expected \(3, 1\)"),
    "no columns": (lambda t, x: x[:, 0], r"returned shape \(3,\)"),
    "one row": (lambda t, x: x[:1], r"returned shape \(1, 1\)"),
    "nan": (lambda t, x: x / (t - 0.5)[:, None] * 0, r"at 1 of 3 points.*the first at t=0.5, x=\[2.0\]"),
    "infinity": (lambda t, x: x / 0, r"at 3 of 3 points"),
    "complex": (lambda t, x: x * 1j, r"complex numbers \(torch.complex128\)"),
    "half": (lambda t, x: x.half(), "returned torch.float16"),
    "NumPy": (lambda t, x: x.numpy(), "returned ndarray.*given to the problem as they are"),
    "None": (lambda t, x: None, "returned NoneType"),
    "a pair": (lambda t, x: (x, x), "returned tuple"),
    "an exception": (fails, "fails.*failed at times t of shape.*KeyError: 'weights'"),
    "a network of another precision": (lambda t, x: Net(1, 1)(t, x), "dtype= and device= which these are"),
    "a network of another dimension": (Net(2, 1).double(), r"Net\(t, x\) failed .* x of shape \(3, 1\), torch.float64"),
    "gradients": (lambda t, x: torch.autograd.grad(x.sum(), x)[0], r"torch.enable_grad\(\)"),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_an_answer_that_cannot_be_taken_names_the_function_and_what_to_do(kind: str) -> None:
    function, told = BAD_ANSWERS[kind]
    with pytest.raises(ProblemError, match=told) as caught:
        bridge.as_field(function)(np.array([0.0, 0.5, 1.0]), [[1.0], [2.0], [3.0]])
    assert caught.value.__cause__ is not None or "returned" in str(caught.value)
    name = "Net" if isinstance(function, Net) else "fails" if function is fails else "<lambda>"
    assert str(caught.value).startswith(f"{name}(t, x) ")


def test_networks_that_were_not_handed_over_are_told_how() -> None:
    problem, net = fh.zoo.get("lq", dim=1), Net(1, 1)
    how: dict[str, Any] = {"x0": [0.0], "n": 64, "steps": 2, "rng": 0}

    def of_doubles(t: float, x: Any) -> Any:
        return net(torch.full((len(x),), t, dtype=torch.float64), torch.tensor(x))

    def with_gradient(t: float, x: Any) -> Any:
        return net(torch.full((len(x),), t), torch.tensor(x, dtype=torch.float32))

    for policy, told in (
        (net, r"failed at t=0 .*as_field\(net\)"),
        (of_doubles, r"failed at t=0 .*same dtype.*; networks are handed over by fem_hjb.interop.torch"),
        (with_gradient, r"write .detach\(\).cpu\(\).numpy\(\)"),
    ):
        with pytest.raises(ProblemError, match=rf"policy\(t, x\) .*{told}"):
            fh.certify(problem, policy, **how)
    with pytest.raises(ProblemError, match=r"got Net without value and gradient; of a network, as_value\(net\)"):
        fh.certify(problem, None, value=net, **how)
    by_hand = fh.certify(problem, lambda t, x: with_gradient(t, x).detach(), **how)
    assert by_hand.lower == pytest.approx(fh.certify(problem, bridge.as_field(net), **how).lower, rel=1e-6)


def test_answers_that_look_odd_and_are_right() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 1, dtype=torch.float64))
    with_gradient = bridge.as_field(lambda t, x: weight)  # not detached by whoever wrote it
    assert with_gradient(0.0, np.zeros((3, 1))).tolist() == [[1.0]] * 3
    assert bridge.as_reward(lambda x: x[:, 0] > 0)([[1.0], [-1.0]]).tolist() == [1.0, 0.0]
    assert bridge.as_reward(lambda x: -1 / x[:, 0] ** 2)([[0.0]]).tolist() == [-np.inf]
    with pytest.raises(ProblemError, match=r"write .squeeze\(-1\)"):
        bridge.as_reward(torch.nn.Linear(1, 1))([[1.0]])
    with pytest.raises(ProblemError, match="1 of 1 points"):
        bridge.as_reward(lambda x: x[:, 0] * np.nan)([[1.0]])


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda of: of([[1.0]]), ProblemError, r"called with \(t, x\), got 1 arguments"),
        (lambda of: of(0.0, "a"), DomainError, "x must be an array"),
        (lambda of: of(0.0, 1.0), DomainError, r"shape \(..., d\), got a number"),
        (lambda of: of(np.zeros(2), np.zeros((3, 1))), DomainError, r"t of shape \(2,\) does not fit x"),
        (lambda of: of(np.zeros((4, 3)), np.zeros((3, 1))), DomainError, r"t of shape \(4, 3\) does not fit x"),
        (lambda of: bridge.as_field(of.function, dtype="float32"), ProblemError, "dtype must be None"),
        (lambda of: bridge.as_field(of.function, dtype=torch.int64), ProblemError, "dtype must be None"),
        (lambda of: bridge.as_field(of.function, device="abacus"), ProblemError, "device must be None"),
        (lambda of: bridge.as_field(of.function, chunk=0), ProblemError, "chunk must be a positive integer"),
        (
            lambda of: bridge.float64_gap(of.function, 0.0, [[1.0]]),
            ProblemError,
            r"float64_gap\(as_field\(net\), t, x\)",
        ),
        (lambda of: bridge.float64_gap(bridge.as_reward(sum), [[1.0]]), ProblemError, "without parameters"),
        (lambda of: bridge.float64_gap(of, 0.0, np.zeros((0, 1))), DomainError, "at least one point"),
    ],
)
def test_calls_that_do_not_fit(call: Callable[[Any], Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call(bridge.as_field(Net(1, 1)))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_without_the_framework_an_error_says_what_to_install(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None\nimport fem_hjb as fh\ntry:\n    fh.interop.{name}\n"
    code += "except fh.errors.MissingPackageError as e:\n    print(isinstance(e, ImportError), e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True")
    assert f'pip install "fem_hjb[{name}]"' in done.stdout


def test_importing_the_package_loads_neither_framework() -> None:
    code = "import sys, fem_hjb as fh; fh.interop, fh.solve; print({'torch', 'jax'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def tilted(score: Any, eta: float = 1.0, dim: int = 1, **parameters: Any) -> fh.ControlProblem:
    process = fh.zoo.get("mixture-diffusion", dim=dim, beta=(0.5, 4.0), eta=eta)
    return bridge.diffusion_model(
        score,
        dim=dim,
        horizon=process.horizon,
        temperature=process.temperature,
        reward=process.terminal_reward,
        initial_law=process.initial_law,
        eta=eta,
        **parameters,
    )


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_a_score_network_is_the_diffusion_model_of_the_zoo(dim: int, eta: float) -> None:
    ours = fh.zoo.get("mixture-diffusion", dim=dim, beta=(0.5, 4.0), eta=eta)
    data = fh.zoo.get("mixture-diffusion", dim=dim, beta=(0.5, 4.0)).exact._process.data  # type: ignore[union-attr]
    score = MixtureScore(data, (0.5, 4.0), ours.horizon)
    rng = np.random.default_rng(0)
    x, t = 2 * rng.standard_normal((50, dim)), rng.uniform(0, ours.horizon, 50)
    for beta in ((0.5, 4.0), lambda s: 0.5 + 3.5 * s / ours.horizon):
        problem = tilted(score, eta, dim, schedule=bridge.VP(beta))
        for times in (t, 0.0, ours.horizon):
            expected = ours.b(times, x)
            np.testing.assert_allclose(problem.b(times, x), expected, rtol=0, atol=1e-12 * abs(expected).max())
            np.testing.assert_allclose(problem.Lambda(times, x), ours.Lambda(times, x), rtol=1e-14)


def test_solving_a_score_network_gives_the_exact_value() -> None:
    problem = tilted(MixtureScore(DATA, (0.5, 4.0), MIXTURE.horizon), schedule=bridge.VP((0.5, 4.0)))
    solution = fh.solve(problem, rtol=1e-5)
    row = fh.compare({"network": solution}, MIXTURE.exact, problem=MIXTURE).overall("network")
    assert row.value < 1e-5
    assert row.policy < 1e-5


def variance(schedule: str, s: Any) -> Any:
    """Of Y_s with Y_0 ~ N(0, 1/4)."""
    shrunk = np.exp(-(s + 1.5 * s**2))
    return {"vp": 0.25 * shrunk + 1 - shrunk, "ve": 0.25 + 0.1**2 * (20.0 ** (2 * s) - 1), "flat": 0.25 + 4 * s}[
        schedule
    ]


@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize("kind", ["vp", "ve", "flat"])
def test_the_reverse_process_has_the_laws_of_the_noising_one(kind: str, eta: float) -> None:
    """d/dt Var X_t = 2 b'(0) Var X_t + Lambda holds with Var X_t = Var Y_{T-t}: for Gaussians, drift = b'(0) x."""
    schedule = {"vp": bridge.VP((1.0, 4.0)), "ve": bridge.VE((0.1, 2.0)), "flat": bridge.VE(2.0)}[kind]
    problem = bridge.diffusion_model(
        lambda s, x: -x / np.asarray(variance(kind, s))[..., None],
        schedule=schedule,
        dim=1,
        horizon=1.0,
        temperature=1.0,
        reward=lambda x: -(x[..., 0] ** 2),
        initial_law=fh.Gaussian([0.0], variance(kind, 1.0)),
        eta=eta,
    )
    h, t = 1e-5, np.linspace(0.1, 0.9, 9)
    change = (variance(kind, 1 - t - h) - variance(kind, 1 - t + h)) / (2 * h)
    slope = problem.b(t, np.ones((9, 1)))[:, 0]
    found = 2 * slope * variance(kind, 1 - t) + problem.Lambda(t, np.ones((9, 1)))[:, 0, 0]
    np.testing.assert_allclose(found, change, rtol=1e-7)
    assert (problem.constant_diffusion is None) == (kind != "flat")


BAD_MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "no schedule": ({"schedule": "vp"}, r"schedule must be VP\(beta\) or VE\(sigma\), got str"),
    "eta": ({"eta": 1.5}, r"eta must lie in \(0, 1\]"),
    "no score": ({"score": 3}, "score must be a callable"),
    "a score that fails": ({"score": fails}, r"score\(s, x\) failed at t=1 .*KeyError"),
    "a score of another dimension": ({"score": Net(1, 3)}, r"Net\(t, x\) returned shape \(5, 3\)"),
    "a score of numbers": ({"score": lambda s, x: x[..., 0]}, r"score\(s, x\) returned shape \(5,\)"),
    "negative noise": ({"schedule": bridge.VP(lambda s: -1.0 - s)}, r"beta\(s\) must be positive and finite"),
    "noise that fails": ({"schedule": bridge.VE(lambda s: s["a"])}, r"rate d sigma\^2/ds, failed"),
    "a reward with a column": ({"reward": torch.nn.Linear(1, 1)}, r"Linear\(x\) returned shape \(5, 1\)"),
    "dim": ({"dim": 0}, "dim must be a positive integer"),
    "horizon": ({"horizon": -1.0}, "horizon must be a positive"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_diffusion_model_that_is_none_says_why(kind: str) -> None:
    changed, told = BAD_MODELS[kind]
    right = {
        "score": lambda s, x: -x,
        "schedule": bridge.VP(1.0),
        "dim": 1,
        "horizon": 1.0,
        "temperature": 1.0,
        "reward": lambda x: -(x[..., 0] ** 2),
        "initial_law": fh.Gaussian([0.0], 1.0),
    }
    assert bridge.diffusion_model(**right).dim == 1
    with pytest.raises(ProblemError, match=told):
        bridge.diffusion_model(**{**right, **changed})


@pytest.mark.parametrize(
    "make",
    [
        partial(bridge.VP, -1.0),
        partial(bridge.VP, (1.0, 2.0, 3.0)),
        partial(bridge.VE, (2.0, 1.0)),
        partial(bridge.VE, "a"),
    ],
)
def test_schedules_check_their_numbers(make: Callable[[], Any]) -> None:
    with pytest.raises(ProblemError, match=r"beta|sigma"):
        make()


def test_solutions_of_networks_are_known_again(tmp_path: Any) -> None:
    def problem(seed: int) -> fh.ControlProblem:
        return fh.ControlProblem(
            dim=1,
            horizon=1.0,
            temperature=1.0,
            drift=bridge.as_field(Net(1, 1, seed)),
            diffusion=1.0,
            terminal_reward=lambda x: -(x[..., 0] ** 2),
            initial_law=fh.Gaussian([0.0], 1.0),
        )

    file = tmp_path / "solution.npz"
    fh.save_solution(file, fh.solve(problem(0), rtol=1e-3))
    fh.load_solution(file, problem(0))
    with pytest.raises(fh.errors.OutputError, match="another drift"):
        fh.load_solution(file, problem(1))


def test_the_page_runs_and_its_network_learns(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "torch.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/torch.md", "exec"), names)
    assert capsys.readouterr().out.count("value network") == 1
    assert names["known"].double().mean() > 0.95
    assert names["loss"].item() < 0.02 * names["target"][names["known"]].square().mean().item()


def test_the_how_to_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "network.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/how-to/network.md", "exec"), names)
    assert names["solution"].status == "ok"
