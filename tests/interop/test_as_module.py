"""Solutions that go out to PyTorch: the solution's own numbers, differentiated by its own gradient."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

import fem_hjb as fh
from fem_hjb.interop.torch import as_module
from fem_hjb.support.errors import DomainError, ProblemError

ONE = fh.solve(fh.zoo.get("mixture-diffusion", dim=1, horizon=0.3), rtol=1e-6)  # float32(0.3) > 0.3
TWO = fh.solve(fh.zoo.get("mixture-diffusion", dim=2), rtol=1e-3)
MANY = fh.solve(fh.zoo.get("soc-double-well", dim=4, kappa=0.5, nu=0.5), rtol=1e-3)  # independent coordinates
SOLUTIONS = {"d = 1": ONE, "d = 2": TWO, "a product": MANY}


def points(solution: Any, shape: tuple[int, ...], seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    d, horizon = solution.problem.dim, solution.problem.horizon
    return 0.9 * horizon * rng.uniform(size=shape), 0.3 * rng.standard_normal((*shape, d))


@pytest.mark.parametrize("name", SOLUTIONS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (0,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_it_says_what_the_solution_says(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    solution = SOLUTIONS[name]
    module = as_module(solution)
    t, x = (torch.tensor(array).to(dtype) for array in points(solution, shape))
    times, states = t.double().numpy(), x.double().numpy()
    for asked_t, known_t in ((t, times), (0.2, 0.2), (torch.tensor(0.25), 0.25)):
        value, policy = module(asked_t, x), module.policy(asked_t, x)
        assert value.dtype == policy.dtype == dtype
        assert torch.equal(value, torch.tensor(solution.value(known_t, states)).to(dtype))
        assert torch.equal(policy, torch.tensor(solution.policy(known_t, states)).to(dtype))
        assert value.shape == shape
        assert policy.shape == x.shape
    assert list(module.parameters()) == []


@pytest.mark.parametrize("name", SOLUTIONS)
def test_autograd_has_the_gradient_of_the_solution(name: str) -> None:
    solution = SOLUTIONS[name]
    t, x = (torch.tensor(array) for array in points(solution, (4, 3)))
    x.requires_grad_()
    weight = torch.tensor(np.random.default_rng(1).standard_normal((4, 3)))
    (weight * as_module(solution)(t, x)).sum().backward()
    expected = weight.numpy()[..., None] * solution.gradient(t.numpy(), x.detach().numpy())
    np.testing.assert_array_equal(x.grad, expected)


@pytest.mark.parametrize("name", ["d = 1", "a product"])
def test_gradcheck(name: str) -> None:
    solution = SOLUTIONS[name]
    t, x = (torch.tensor(array) for array in points(solution, (3,)))
    module = as_module(solution)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(t, x), x, eps=1e-5, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda x: module(0.1, x), x, eps=1e-5, atol=1e-6, rtol=1e-6)
    with pytest.raises(GradcheckError):  # a gradient of another time is another one
        torch.autograd.gradcheck(
            lambda x: module(t, x.detach()) + (x * 1.01 * module_slope(solution, t, x)).sum(-1), x, atol=1e-6, rtol=1e-6
        )


def module_slope(solution: Any, t: Any, x: Any) -> Any:
    return torch.tensor(solution.gradient(t.numpy(), x.detach().numpy()))


def test_gradients_of_points_that_are_shared_by_times_add_up() -> None:
    t, x = torch.linspace(0.0, 0.8, 5, dtype=torch.float64), torch.tensor([0.2, -0.1], dtype=torch.float64)
    x.requires_grad_()
    value = as_module(TWO)(t, x)
    assert value.shape == (5,)
    value.sum().backward()
    expected = TWO.gradient(t.numpy(), np.tile([0.2, -0.1], (5, 1))).sum(0)
    np.testing.assert_allclose(x.grad, expected, rtol=1e-14)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_transforms_of_torch(name: str) -> None:
    solution = SOLUTIONS[name]
    module = as_module(solution)
    t, x = (torch.tensor(array) for array in points(solution, (4,)))
    value, slope, policy = (
        torch.tensor(getattr(solution, what)(t.numpy(), x.numpy())) for what in ("value", "gradient", "policy")
    )
    vmap, grad = torch.func.vmap, torch.func.grad
    torch.testing.assert_close(vmap(module)(t, x), value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(vmap(module, in_dims=(0, 1))(t, x.T.contiguous()), value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(vmap(module.policy)(t, x), policy, rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(vmap(grad(module, argnums=1))(t, x), slope, rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(vmap(lambda x: module(t[0], x))(x)[0], value[0], rtol=1e-13, atol=1e-13)
    table = vmap(vmap(module, in_dims=(None, 0)), in_dims=(0, None))(t, x)
    torch.testing.assert_close(table.diagonal(), value, rtol=1e-13, atol=1e-13)
    with pytest.raises((RuntimeError, DomainError), match="not differentiable by t here"):
        grad(lambda t: module(t, x[0]))(t[0])
    with pytest.raises((RuntimeError, DomainError), match="not differentiable by t here"):
        grad(lambda t: vmap(module)(t, x).sum())(t)


def test_it_trains_what_feeds_it() -> None:
    """Gradient ascent of v_0 finds its maximum."""
    module, x = as_module(ONE), torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        (slope,) = torch.autograd.grad(module(0.0, x).sum(), x)
        x = (x + 0.3 * slope).detach().requires_grad_()
    best = x.detach().numpy()
    assert abs(ONE.gradient(0.0, best)).max() < 1e-6
    assert ONE.value(0.0, best) > ONE.value(0.0, [[0.0]])


def test_the_horizon_of_single_precision_is_the_horizon() -> None:
    x = torch.zeros(1, 1)
    for t in (torch.tensor(0.3), torch.tensor([0.3]), torch.tensor(0.0)):
        assert as_module(ONE)(t, x).item() == pytest.approx(ONE.value(min(float(t), 0.3), [[0.0]]).item(), abs=1e-6)
    with pytest.raises(DomainError, match="t must lie in"):
        as_module(ONE)(torch.tensor(0.30001), x)
    with pytest.raises(DomainError, match="t must lie in"):
        as_module(ONE)(torch.tensor(0.3 * (1 + 1e-7), dtype=torch.float64), x)


def test_outside_is_as_the_solution_has_it() -> None:
    x = torch.full((1, 1), 1e3, requires_grad=True)
    with pytest.raises(DomainError, match="outside"):
        as_module(ONE)(0.0, x)
    module = as_module(ONE, outside="nan")
    value = module(0.0, x)
    value.sum().backward()
    assert torch.isnan(value).all()
    assert torch.isnan(x.grad).all()  # type: ignore[arg-type]
    assert torch.isnan(module.policy(0.0, x)).all()


def test_what_has_no_derivative_says_so_instead_of_zero() -> None:
    module, x = as_module(ONE), torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(DomainError, match=r"not differentiable by t here: give it t.detach\(\)"):
        module(torch.tensor(0.1, requires_grad=True), x)
    with pytest.raises(RuntimeError, match=r"the policy of a solution is not differentiable: take it at x.detach\(\)"):
        module.policy(0.1, x).sum().backward()
    (slope,) = torch.autograd.grad(module(0.1, x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="the gradient of a solution is not differentiable"):
        slope.sum().backward()


def test_it_is_picklable_and_has_no_state() -> None:
    module = as_module(ONE)
    again = pickle.loads(pickle.dumps(module)).to("cpu")
    x = torch.zeros(1, 1)
    assert torch.equal(again(0.1, x), module(0.1, x))
    assert module.state_dict() == {}


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: as_module("a"), ProblemError, "as_module needs the solution of solve.*got str"),
        (lambda: as_module(ONE, outside="zero"), DomainError, "outside must be one of"),
        (lambda: as_module(ONE)(0.0, np.zeros((1, 1))), DomainError, r"tensor of floats \(..., 1\), got ndarray"),
        (lambda: as_module(ONE)(0.0, torch.zeros(1, 1).long()), DomainError, "got a tensor of torch.int64"),
        (lambda: as_module(ONE)(0.0, torch.zeros(1, 1).to(torch.complex64)), DomainError, "torch.complex64"),
        (lambda: as_module(ONE)(0.0, torch.zeros(1, 2)), DomainError, r"shape \(..., 1\), got shape \(1, 2\)"),
        (lambda: as_module(ONE)(0.0, torch.tensor(1.0)), DomainError, r"got shape \(\)"),
        (lambda: as_module(ONE)(torch.zeros(3), torch.zeros(2, 1)), DomainError, r"t of shape \(3,\) does not fit"),
        (lambda: as_module(ONE)("now", torch.zeros(2, 1)), DomainError, "t must be an array of real numbers"),
        (lambda: as_module(ONE)(torch.tensor(1j), torch.zeros(2, 1)), DomainError, "t must be a number or a tensor"),
        (lambda: as_module(ONE)(0.0, torch.full((2, 1), torch.nan)), DomainError, "x must be finite"),
        (lambda: as_module(ONE)(0.0, torch.zeros(2, 1, device="meta")), DomainError, "meta"),
    ],
)
def test_calls_that_do_not_fit(call: Callable[[], Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()
