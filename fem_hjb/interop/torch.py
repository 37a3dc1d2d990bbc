"""PyTorch: modules and functions of tensors as coefficients of a problem, solutions as modules.

In: `as_field`, `as_reward`, `as_running_reward` and `as_value` make of a module, or of a function of tensors, what
`ControlProblem`, `certify`, `compare` and the others call; `diffusion_model` makes a problem of a score network.
Out: `as_module` makes of a solution a module whose value autograd differentiates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.interop.precision import answer, checked_shapes, checked_solution
from fem_hjb.interop.schedules import VE, VP, ReverseProcess
from fem_hjb.problems.laws import Law
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.support.calls import where
from fem_hjb.support.checks import FloatArray, positive_integer, real_array, require
from fem_hjb.support.errors import DomainError, FemHjbError, MissingPackageError, ProblemError
from fem_hjb.support.objects import Plain, callable_name

try:
    import torch
except ImportError as missing:
    raise MissingPackageError('fem_hjb.interop.torch needs PyTorch: pip install "fem_hjb[torch]"') from missing

__all__ = [
    "VE",
    "VP",
    "SolutionModule",
    "TensorFunction",
    "TensorValue",
    "as_field",
    "as_module",
    "as_reward",
    "as_running_reward",
    "as_value",
    "diffusion_model",
    "float64_gap",
]

_CHUNK = 1 << 16  # points that a network sees at once
_NOT_BY_T = "the value is not differentiable by t here: give it t.detach()"
_HALVES = (torch.float16, torch.bfloat16)
_HALF = "which has three digits: call .float() or .double(), or compute with float32 or float64"


@final
@dataclass(frozen=True, eq=False, repr=False)
class TensorFunction(Plain):
    """A function of tensors as a callable of NumPy arrays, in batches and without gradients; picklable if it is.

    Called with x (..., d), or with t and x, it hands over tensors x (n, d) and t (n,), at most `chunk` points at once,
    of its `dtype` on its `device`, and returns float64 arrays of shape (..., d) if `vector`, else (...). Modules are in
    evaluation mode meanwhile, and in the mode that they were in thereafter; parameters are those of the moment.

    A ProblemError says which function, where, and what to do, if it raises or returns anything but finite real
    tensors of shape (n, d) or (n,). Rewards may be -infinity: who asks for them says what that means.
    """

    function: Callable[..., Any]
    timed: bool
    vector: bool
    dtype: Any
    device: Any
    chunk: int

    @property
    def name(self) -> str:
        """What messages call it: the name of a function, the type of a module."""
        return callable_name(self.function)

    @property
    def module(self) -> Any:
        """The module that it is, or is a method of; None for other functions."""
        owner = (
            self.function if isinstance(self.function, torch.nn.Module) else getattr(self.function, "__self__", None)
        )
        return owner if isinstance(owner, torch.nn.Module) else None

    def __call__(self, *arguments: ArrayLike) -> FloatArray:
        if len(arguments) != 1 + self.timed:
            raise ProblemError(f"{self.name} is called with {self._signature}, got {len(arguments)} arguments")
        x = real_array(arguments[-1], f"{self.name}: x", DomainError)
        if not x.ndim:
            raise DomainError(f"{self.name}: x must hold points in rows, shape (..., d), got a number")
        columns: list[FloatArray] = [x.reshape(-1, x.shape[-1])]
        if self.timed:
            t = real_array(arguments[0], f"{self.name}: t", DomainError)
            if checked_shapes(t.shape, x.shape, x.shape[-1], self.name) != x.shape[:-1]:
                raise DomainError(f"{self.name}: t of shape {t.shape} does not fit x of shape {x.shape}")
            columns.insert(0, np.broadcast_to(t, x.shape[:-1]).reshape(-1))
        with _evaluation_mode(self.module), torch.no_grad():
            parts = [
                self._rows([column[start : start + self.chunk] for column in columns])
                for start in range(0, max(len(columns[-1]), 1), self.chunk)
            ]
        return np.concatenate(parts).reshape(x.shape if self.vector else x.shape[:-1])

    @property
    def _signature(self) -> str:
        return "(t, x)" if self.timed else "(x)"

    def _rows(self, columns: list[FloatArray]) -> FloatArray:
        """At one chunk of points (n, d)."""
        tensors = [torch.tensor(np.ascontiguousarray(c), dtype=self.dtype, device=self.device) for c in columns]
        told = f"{where(tuple(columns))}, {self.dtype} on {self.device}"
        try:
            found = self.function(*tensors)
        except FemHjbError:
            raise
        except Exception as cause:  # a module is any code
            raise ProblemError(
                f"{self.name}{self._signature} failed {told}: {type(cause).__name__}: {cause}; it is called with x of"
                f" shape (n, d){', t of shape (n,)' if self.timed else ''}, without gradients (torch.enable_grad()"
                " gives them back), and in the precision of its parameters; a function around a network is told by"
                " dtype= and device= which these are"
            ) from cause
        return self._checked(found, columns, told)

    def _checked(self, found: Any, columns: list[FloatArray], told: str) -> FloatArray:
        x = columns[-1]
        expected = x.shape if self.vector else x.shape[:1]
        begun = f"{self.name}{self._signature} returned"
        if not isinstance(found, torch.Tensor):
            raise ProblemError(
                f"{begun} {type(found).__name__} {told}, expected a tensor of shape {expected}; callables of NumPy"
                " arrays are given to the problem as they are"
            )
        if found.is_complex():
            raise ProblemError(f"{begun} complex numbers ({found.dtype}) {told}; return real ones, for instance .real")
        if found.dtype in _HALVES:
            raise ProblemError(f"{begun} {found.dtype} {told}, {_HALF}")
        if tuple(found.shape) != expected:
            column = not self.vector and tuple(found.shape) == (*expected, 1)
            hint = "; write .squeeze(-1)" if column else "; row i is to belong to point i"
            raise ProblemError(f"{begun} shape {tuple(found.shape)} {told}, expected {expected}{hint}")
        values = np.asarray(found.detach().to("cpu", torch.float64).numpy())
        bad = ~np.isfinite(values) if self.vector else ~(values < np.inf)
        if bad.any():
            rows = bad.reshape(len(x), -1).any(axis=1)
            first = int(np.argmax(rows))
            when = f"t={columns[0][first]:g}, " if self.timed else ""
            raise ProblemError(
                f"{begun} numbers that are not finite at {int(rows.sum())} of {len(x)} points {told}, the first at"
                f" {when}x={x[first].tolist()}; look for overflow and for divisions by 0, at the ends of time first"
            )
        return values


def as_field(function: Any, *, dtype: Any = None, device: Any = None, chunk: int = _CHUNK) -> TensorFunction:
    """A drift, policy or score (t, x (..., d)) -> (..., d) from a module or function (t (n,), x (n, d)) -> (n, d).

    dtype, device : those of the module's parameters, or buffers, by default; float64 on the CPU for what has none. A
        plain function that calls a network inside is told them here; networks in it are to be in evaluation mode.
    chunk : points that are handed over at once.

    Raises ProblemError for modules in half precision, in several precisions, or on the device "meta".

    >>> as_field(lambda t, x: -torch.exp(-t)[:, None] * x)(0.0, [[1.0, 2.0]]).tolist()
    [[-1.0, -2.0]]
    """
    return _bridge("as_field", function, True, True, dtype, device, chunk)


def as_reward(function: Any, *, dtype: Any = None, device: Any = None, chunk: int = _CHUNK) -> TensorFunction:
    """A terminal reward x (..., d) -> (...) from a module or function x (n, d) -> (n,); the rest as in `as_field`."""
    return _bridge("as_reward", function, False, False, dtype, device, chunk)


def as_running_reward(function: Any, *, dtype: Any = None, device: Any = None, chunk: int = _CHUNK) -> TensorFunction:
    """A running reward (t, x (..., d)) -> (...) from (t (n,), x (n, d)) -> (n,); the rest as in `as_field`."""
    return _bridge("as_running_reward", function, True, False, dtype, device, chunk)


@final
@dataclass(frozen=True, eq=False)
class TensorValue(Plain):
    """A value (t, x (..., d)) -> (...) and its gradient (..., d): what `compare` and `certify(value=)` take."""

    value: TensorFunction
    gradient: TensorFunction


def as_value(function: Any, *, dtype: Any = None, device: Any = None, chunk: int = _CHUNK) -> TensorValue:
    """A value and, by autograd, its gradient, from a module or function (t (n,), x (n, d)) -> (n,).

    Row i must belong to point i alone, as it does in evaluation mode. The rest is as in `as_field`.
    """
    value = _bridge("as_value", function, True, False, dtype, device, chunk)
    return TensorValue(value=value, gradient=replace(value, function=_Slope(function, value.module), vector=True))


@final
class _Slope(torch.nn.Module):
    """The gradient of a function (t, x) -> (n,) by autograd; `owner`, the module of a method, follows its mode."""

    def __init__(self, function: Callable[..., Any], owner: Any) -> None:
        super().__init__()
        self.function, self.owner = function, owner

    def forward(self, t: Any, x: Any) -> Any:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.function(t, x).sum(), x)
        return gradient


def float64_gap(of: TensorFunction, *arguments: ArrayLike) -> float:
    """How far a module in single precision is from its copy in double precision, relative to the largest entry.

    max |single - double| / max |double| over the points of the arguments, those of `of` itself: (t, x) or (x,). To a
    solver it is noise: no tolerance below it can be met, and differences that cancel make it larger than 1e-7. If it
    matters, solve with the copy, net.double().
    """
    require(of, TensorFunction, "float64_gap", ProblemError, "; write float64_gap(as_field(net), t, x)")
    if of.module is None:
        raise ProblemError(f"{of.name} is a function without parameters of its own: there is nothing to copy")
    double = copy.deepcopy(of.function)
    twin = replace(of, function=double, dtype=torch.float64)
    twin.module.double()
    exact = twin(*arguments)
    if not exact.size:
        raise DomainError(f"float64_gap of {of.name} needs at least one point")
    largest = float(np.abs(exact).max())
    gap = float(np.abs(of(*arguments) - exact).max())
    return gap / largest if largest else gap


def diffusion_model(
    score: Any,
    *,
    schedule: VP | VE,
    dim: int,
    horizon: float,
    temperature: float,
    reward: Any,
    initial_law: Law,
    running_reward: Any = None,
    eta: float = 1.0,
    name: str = "diffusion model",
) -> ControlProblem:
    r"""The denoising process of a diffusion model, to be steered towards a reward, as a control problem.

    With g^2(s) the rate of the noise at the noising time s, h = 1 for `VP(beta)` (g^2 = beta), h = 0 for `VE(sigma)`
    (g^2 = d sigma^2/ds), the process runs in t = T - s:

        dX = [h g^2/2 X + (1 + eta^2)/2 g^2 score(T - t, X)] dt + eta g dB,   0 <= t <= T.

    score : a module (s (n,), x (n, d)) -> (n, d) for grad log q_s, the noising time first; or what `as_field` returns;
        or a callable of NumPy arrays (s, x). A network eps that predicts noise has score -eps / (std of Y_s | Y_0).
    reward, running_reward : modules, what `as_reward` and `as_running_reward` return, or callables of NumPy arrays.
    initial_law : of X_0 = Y_T: Gaussian(0, I) for VP, Gaussian(0, sigma_T^2 I) for VE, as generation starts.
    eta : in (0, 1]; 1 is the time reversal.

    Source: Song et al., arXiv 2011.13456.
    """
    module = torch.nn.Module
    process = ReverseProcess(
        score=as_field(score) if isinstance(score, module) else score,
        schedule=schedule,
        dim=positive_integer(dim, "dim", ProblemError),
        horizon=horizon,
        eta=eta,
    )
    constant = process.constant_diffusion
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=process.drift,
        diffusion=process.diffusion_matrix if constant is None else constant,
        terminal_reward=as_reward(reward) if isinstance(reward, module) else reward,
        running_reward=as_running_reward(running_reward) if isinstance(running_reward, module) else running_reward,
        initial_law=initial_law,
        name=name,
    )


@final
class SolutionModule(torch.nn.Module):
    """A solution as a module: v(t, x) that autograd differentiates by x, and the policy; see `as_module`."""

    def __init__(self, solution: Solution | ProductSolution, outside: str) -> None:
        super().__init__()
        self.solution, self.outside = solution, outside

    def forward(self, t: Any, x: Any) -> Any:
        """v_t(x), of the shape S to which t and x (..., d) broadcast."""
        return _Value.apply(*_tensors(self.solution, t, x), self.solution, self.outside)

    def policy(self, t: Any, x: Any) -> Any:
        """pi_t(x) = (1/alpha) Lambda grad v, shape (*S, d); a RuntimeError if it is differentiated."""
        return _Underivable.apply(*_tensors(self.solution, t, x), self.solution, self.outside, "policy")


def as_module(solution: Solution | ProductSolution, *, outside: str = "error") -> SolutionModule:
    """The solution as a torch.nn.Module, without parameters, to be used in training: module(t, x), module.policy(t, x).

    t is a number or a tensor, x a tensor (..., d) of any floating type on any device; they broadcast against each
    other. What comes back has the type and the device of x, was computed on the CPU in float64, and is differentiated
    by x with `solution.gradient`, once. By t it is not differentiated: a t that asks for a gradient is refused.
    outside : as in `Solution.value`: "error" raises DomainError, "nan" returns nan outside the domain.
    """
    return SolutionModule(checked_solution(solution, outside, "as_module"), outside)


class _Asked(torch.autograd.Function):
    """A solution at t (S) and x (*S, d); S grows in front under torch.func.vmap."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.rest = inputs[2:]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], t: Any, x: Any, *rest: Any) -> tuple[Any, int]:
        batched = [
            given.expand(info.batch_size, *given.shape) if at is None else given.movedim(at, 0)
            for given, at in zip((t, x), in_dims, strict=False)
        ]
        return cls.apply(*batched, *rest), 0


class _Value(_Asked):
    """v, whose derivative by x is the solution's own gradient."""

    @staticmethod
    def forward(t: Any, x: Any, solution: Any, outside: str) -> Any:
        return _asked(solution, outside, "value", t, x)

    @staticmethod
    def backward(ctx: Any, weight: Any) -> Any:
        if ctx.needs_input_grad[0]:
            raise RuntimeError(_NOT_BY_T)
        slope = _Underivable.apply(*ctx.saved_tensors, *ctx.rest, "gradient")
        return None, slope * weight[..., None], None, None


class _Underivable(_Asked):
    """Gradient and policy, which have no derivative: to return zeros instead would train on something else."""

    @staticmethod
    def forward(t: Any, x: Any, solution: Any, outside: str, what: str) -> Any:
        return _asked(solution, outside, what, t, x)

    @staticmethod
    def backward(ctx: Any, weight: Any) -> Any:
        raise RuntimeError(
            f"the {ctx.rest[-1]} of a solution is not differentiable: take it at x.detach(), or differentiate the"
            " value, module(t, x), once"
        )


def _asked(solution: Any, outside: str, what: str, t: Any, x: Any) -> Any:
    """value, gradient or policy as a tensor like x."""
    times, points = (np.asarray(given.detach().to("cpu", _known(given.dtype)).numpy()) for given in (t, x))
    found = answer(solution, what, times, points, outside)
    return torch.as_tensor(found, dtype=x.dtype, device=x.device)


def _known(dtype: Any) -> Any:
    """A type that NumPy has."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _tensors(solution: Any, t: Any, x: Any) -> tuple[Any, Any]:
    """t (S) and x (*S, d)."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise DomainError(f"x must be a tensor of floats (..., {solution.problem.dim}), got {_kind(x)}")
    if x.is_meta:
        raise DomainError("x is on the device 'meta', where there are no numbers to evaluate a solution at")
    if isinstance(t, torch.Tensor):
        if t.requires_grad:
            raise DomainError(_NOT_BY_T)
        if t.is_complex():
            raise DomainError(f"t must be a number or a tensor of real numbers, got {_kind(t)}")
    else:
        t = torch.tensor(real_array(t, "t", DomainError), dtype=torch.float64)
    shape = checked_shapes(tuple(t.shape), tuple(x.shape), solution.problem.dim, "as_module")
    return t.expand(shape), x.expand(*shape, x.shape[-1])


def _kind(given: Any) -> str:
    return f"a tensor of {given.dtype}" if isinstance(given, torch.Tensor) else type(given).__name__


def _bridge(
    asker: str, function: Any, timed: bool, vector: bool, dtype: Any, device: Any, chunk: int
) -> TensorFunction:
    if not callable(function) or isinstance(function, type):
        got = f"the class {function.__name__}" if isinstance(function, type) else type(function).__name__
        raise ProblemError(f"{asker} needs a torch.nn.Module or a function of tensors, got {got}")
    if isinstance(function, TensorFunction):
        raise ProblemError(f"{asker}: {function.name} is a callable of NumPy arrays already; give the module itself")
    size = positive_integer(chunk, "chunk", ProblemError)
    made = TensorFunction(function=function, timed=timed, vector=vector, dtype=dtype, device=device, chunk=size)
    own_dtype, own_device = _placement(made.name, made.module)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ProblemError(f"dtype must be None, torch.float32 or torch.float64, got {dtype!r}")
    try:
        placed = own_device if device is None else torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise ProblemError(f"device must be None or one of torch's, such as 'cpu', got {device!r}") from cause
    chosen = own_dtype if dtype is None else dtype
    if chosen in _HALVES:
        raise ProblemError(f"{made.name} computes in {chosen}, {_HALF}")
    if placed.type == "meta":
        raise ProblemError(
            f"{made.name} is on the device 'meta', where there are no numbers; call .to_empty(device='cpu') and load"
            " its weights"
        )
    return replace(made, dtype=chosen, device=placed)


def _placement(name: str, module: Any) -> tuple[Any, Any]:
    """Precision and device of a module's parameters, or else of its buffers; float64 on the CPU if it has none."""
    for tensors in () if module is None else (module.parameters(), module.buffers()):
        floating = [tensor for tensor in tensors if tensor.is_floating_point()]
        if floating:
            kinds = {tensor.dtype for tensor in floating}
            if len(kinds) > 1:
                told = " and ".join(sorted(map(str, kinds)))
                raise ProblemError(f"{name} has parameters in {told}; call .double() or .float() on it")
            return floating[0].dtype, floating[0].device
    return torch.float64, torch.device("cpu")


@contextmanager
def _evaluation_mode(module: Any) -> Iterator[None]:
    """Dropout off, running means instead of those of the batch; each part as it was thereafter."""
    parts = [] if module is None else [part for part in module.modules() if part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True
