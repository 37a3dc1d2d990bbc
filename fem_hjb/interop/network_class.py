r"""Classes of functions that are not convex: networks, learned by the same steps as a convex class.

The projected iteration of the inequality (see `learning.inequality`; Algorithm 2 of arXiv 2509.02528) asks nothing of
the class F but that one can find the nearest of its functions in the norm of the energy,

    f^{m+1} = argmin_{g in F}  E(g - f^m, g - f^m) + 2 gamma (B[f^m, g - f^m] - l(g - f^m)),

the function of F nearest to f^m - gamma E^{-1} (B f^m - l). In a convex F this contracts; in another it need not, and
the nearest function may be one of several (question 1 of that paper). With samples of the process, tests
g - delta d_t g, and the residual -(d_t f + G f + rho f) at the samples ("generator", see `learning.forms`), the square
can be completed sample by sample: the step is least squares of the network, its slopes and its rate of change,

    inside     |g - (f^m - gamma R)|^2 + |grad (g - f^m)|_Lambda^2 + delta |d_t g - (d_t f^m + gamma R)|^2,
    at T       |g - (f^m - gamma (1 - delta rho) (f^m - f_T*))|^2
               + delta/2 |grad g - (1 - gamma) grad f^m - gamma grad f_T*|_Lambda^2,
    at 0       |g - f^m|^2 + delta/2 |grad (g - f^m)|_Lambda^2,

R = -(d_t f^m + G f^m + rho f^m). Neither a mesh nor E^{-1} is needed, in any dimension. For a module that is linear in
its parameters the step is that of `VariationalInequality.step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from fem_hjb.learning.measures import Measure, empirical_measure
from fem_hjb.paths.simulate import Paths
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.problem import ControlProblem, require_problem
from fem_hjb.support.checks import FloatArray, positive_integer, positive_number, require
from fem_hjb.support.errors import ConvergenceError, MeasureError, MissingPackageError, ProblemError
from fem_hjb.support.objects import Plain

try:
    import torch
except ImportError as missing:
    raise MissingPackageError('fem_hjb.interop.network_class needs PyTorch: pip install "fem_hjb[torch]"') from missing

__all__ = ["NetworkStep", "OneLayer", "fit_values", "network_steps"]

_DIFFERENCE = 6e-6  # cube root of the machine precision, relative to the extent of the samples
_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly
_FLAT = 1e-12  # largest entry of the gradient at which least squares have ended


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class NetworkStep(Plain):
    """One step: which (from 1), |f^{m+1} - f^m|_E, |f^{m+1}|_E, and the share by which its least squares fell.

    unseen : the root mean square of the residual R at the states of the samples and times spread over [0, T], over that
        at the samples. Much more than 1: the network has found a place for a jump between times at which all paths are
        seen, and f is wrong before it, however small the least squares are.
    """

    number: int
    moved: float
    size: float
    fell: float
    unseen: float


@final
class OneLayer(torch.nn.Module):
    """f_t(x) = c + sum_j a_j tanh(w_j'x + u_j t + b_j), in float64; 0 before it has learned, as a and c are.

    dim, width : of x, and how many j.  seed : of w, u and b, uniform within 1/sqrt(dim + 1).
    """

    def __init__(self, dim: int, width: int, *, seed: int) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(dim + 1, width, dtype=torch.float64)
        self.out = torch.nn.Linear(width, 1, dtype=torch.float64)
        bound, rng = (dim + 1) ** -0.5, np.random.default_rng(seed)
        with torch.no_grad():
            self.hidden.weight.copy_(_tensor(rng.uniform(-bound, bound, (width, dim + 1))))
            self.hidden.bias.copy_(_tensor(rng.uniform(-bound, bound, width)))
            self.out.weight.zero_()
            self.out.bias.zero_()

    def forward(self, t: Any, x: Any) -> Any:
        """t (n,), x (n, d) -> (n,)."""
        return self.out(torch.tanh(self.hidden(torch.cat([t[:, None], x], dim=1))))[:, 0]

    def values(self, t: FloatArray, x: FloatArray) -> FloatArray:
        """f at arrays t (n,), x (n, d): (n,), without gradients."""
        with torch.no_grad():
            return np.asarray(self(_tensor(t), _tensor(x)).numpy())


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Points:
    """Points of one part of the measure as tensors: t (m,), x (m, d), weights (m,), Lambda (m, d, d)."""

    t: Any
    x: Any
    weights: Any
    diffusion: Any

    @classmethod
    def of(cls, problem: ControlProblem, t: FloatArray | float, x: FloatArray, weights: FloatArray) -> _Points:
        times = np.full(len(x), t) if np.ndim(t) == 0 else np.asarray(t)
        return cls(
            t=_tensor(times), x=_tensor(x), weights=_tensor(weights), diffusion=_tensor(problem.Lambda(times, x))
        )


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Equation:
    """The equation at points: drift (m, d) and rho (m,) there."""

    points: _Points
    drift: Any
    rate: Any

    @classmethod
    def of(cls, problem: ControlProblem, gauge: Gauge, t: FloatArray, x: FloatArray, weights: FloatArray) -> _Equation:
        points = _Points.of(problem, t, x, weights)
        return cls(points=points, drift=_tensor(problem.b(t, x)), rate=_rate(problem, gauge, t, x))

    def residual(self, network: Any) -> tuple[Any, Any, Any, Any]:
        """f, d_t f, grad f and R = -(d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + rho f)."""
        t, x = self.points.t.detach().requires_grad_(), self.points.x.detach().requires_grad_()
        value = network(t, x)
        rate, slope = _derivatives(value, t, x, graph=True)
        rows = [_derivatives(slope[:, k], x, graph=False)[0] for k in range(x.shape[1])]
        if float(torch.std(slope.detach(), dim=0).max()) > 0 and not any(row.any() for row in rows):
            raise ProblemError(
                "the network has slopes that vary, but no second derivatives: it is piecewise linear, and its kinks are"
                " invisible at samples; take smooth functions in it, tanh or softplus instead of relu"
            )
        curved = sum((self.points.diffusion[:, k] * row).sum(dim=1) for k, row in enumerate(rows))
        residual = -(rate + (self.drift * slope).sum(dim=1) + 0.5 * curved + self.rate * value)
        return value.detach(), rate.detach(), slope.detach(), residual.detach()


def network_steps(
    problem: ControlProblem,
    data: Paths | Measure,
    network: Any,
    *,
    gauge: Gauge,
    gamma: float,
    delta: float = 0.2,
    inner: int = 50,
) -> Iterator[NetworkStep]:
    """Steps of the projected iteration in the class of functions that a network makes, without an end.

    Each `next` changes the parameters of the network, in which the iterate is: f of the gauge,
    f_t(x) = exp((v - c_y - c_r (T - t)) / alpha).

    data : `Paths`, by left-point sums, or a `Measure`; best one whose times differ from sample to sample, see
        `NetworkStep.unseen`.
    network : a torch.nn.Module of float64 parameters, (t (n,), x (n, d)) -> (n,), twice differentiable by x, and once
        by t: tanh, not relu. Row i depends on point i alone.
    gauge : of f, such as that of a `System` or `constant_gauge`.
    gamma : the step; delta > 0 : the weight of d_t g in the tests, see `fit`.
    inner : steps of L-BFGS for the least squares of each step, from the parameters of the one before.

    Raises ProblemError, MeasureError or ConvergenceError where an argument is not as said, ProblemError if the network
    turns out to be piecewise linear in x, and ConvergenceError if it is no longer finite.
    """
    require_problem(problem, "network_steps")
    require(gauge, Gauge, "network_steps", ProblemError)
    if isinstance(data, Paths):
        data = empirical_measure(problem, data)
    require(data, Measure, "network_steps", MeasureError, "; or give Paths, as sample_paths returns them")
    if data.dim != problem.dim:
        raise MeasureError(f"the measure is of dimension {data.dim}, the problem has dim={problem.dim}")
    _check_network(network, problem.dim)
    gamma, delta = (
        positive_number(value, name, ConvergenceError) for value, name in ((gamma, "gamma"), (delta, "delta"))
    )
    inner = positive_integer(inner, "inner", MeasureError)
    return _steps(_Regression(problem, data, network, gauge, delta), gamma, inner)


def fit_values(network: Any, t: FloatArray, x: FloatArray, f: FloatArray, weights: FloatArray, *, inner: int) -> None:
    """Least squares of the values f (n,) at t (n,), x (n, d) by L-BFGS from where the network is: it is changed."""
    times, points, wanted, shares = (_tensor(given) for given in (t, x, f, weights))
    _descend(network, lambda: shares @ (network(times, points) - wanted) ** 2, inner)


def _steps(of: _Regression, gamma: float, inner: int) -> Iterator[NetworkStep]:
    number = 0
    while True:
        number += 1
        of.aim(gamma)
        before = float(of.misfit().detach())
        _descend(of.network, of.misfit, inner)
        after = float(of.misfit().detach())
        if not np.isfinite(after):
            raise ConvergenceError(f"the network is no longer finite after step {number}: take a smaller gamma")
        moved, size = of.norms()
        fell = 1.0 - after / before if before else 0.0
        yield NetworkStep(number=number, moved=moved, size=size, fell=fell, unseen=of.unseen())


def _check_network(network: Any, dim: int) -> None:
    require(network, torch.nn.Module, "network_steps", ProblemError)
    kinds = {p.dtype for p in network.parameters() if p.requires_grad}
    if kinds != {torch.float64}:
        told = ", ".join(sorted(map(str, kinds))) or "none"
        raise ProblemError(f"the network must have parameters of float64 to learn, got {told}; call .double() on it")
    t, x = torch.zeros(2, dtype=torch.float64), torch.zeros((2, dim), dtype=torch.float64)
    with torch.no_grad():
        found = network(t, x)
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != (2,) or found.dtype != torch.float64:
        got = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ProblemError(f"the network must take t (n,), x (n, {dim}) to float64 (n,); for n = 2 it returned {got}")


def _tensor(array: Any) -> Any:
    return torch.tensor(np.ascontiguousarray(array), dtype=torch.float64)


@final
class _Regression:
    """The least squares of a step: points, what the network is to be there, and how far it is from that."""

    def __init__(self, problem: ControlProblem, data: Measure, network: Any, gauge: Gauge, delta: float) -> None:
        self.network, self.delta, horizon = network, delta, problem.horizon
        self.equation = _Equation.of(problem, gauge, data.t, data.x, data.weights)
        spread = np.mod(_GOLDEN * np.arange(1, data.t.size + 1), 1.0) * horizon
        self.elsewhere = _Equation.of(problem, gauge, spread, data.x, data.weights)
        self.inside = self.equation.points
        self.first = _Points.of(problem, 0.0, data.initial_x, data.initial_weights)
        self.last = _Points.of(problem, horizon, data.terminal_x, data.terminal_weights)
        self.rate_last = _rate(problem, gauge, np.full(len(data.terminal_x), horizon), data.terminal_x)
        self.target = _tensor(gauge.terminal_u(problem, data.terminal_x))
        self.target_slope = _tensor(_terminal_slope(problem, gauge, data.terminal_x))

    def aim(self, gamma: float) -> None:
        """From where the network is: keep its values and slopes, and set those it is to have."""
        value, rate, slope, residual = self.equation.residual(self.network)
        self.start = (value, rate, slope)
        self.values, self.rates = value - gamma * residual, rate + gamma * residual
        self.start_first = self._tables(self.first)[::2]
        last, last_slope = self.start_last = self._tables(self.last)[::2]
        self.last_values = last - gamma * (1 - self.delta * self.rate_last) * (last - self.target)
        self.last_slopes = last_slope - gamma * (last_slope - self.target_slope)

    def misfit(self) -> Any:
        """The sum of squares that the step minimises."""
        value, rate, slope = self._tables(self.inside, graph=True)
        first, first_slope = self._tables(self.first, graph=True)[::2]
        last, last_slope = self._tables(self.last, graph=True)[::2]
        inside = (value - self.values) ** 2 + self.delta * (rate - self.rates) ** 2
        inside = inside + _square(slope - self.start[2], self.inside.diffusion)
        half = 0.5 * self.delta
        begun = (first - self.start_first[0]) ** 2
        begun = begun + half * _square(first_slope - self.start_first[1], self.first.diffusion)
        ended = (last - self.last_values) ** 2 + half * _square(last_slope - self.last_slopes, self.last.diffusion)
        parts = ((self.inside, inside), (self.first, begun), (self.last, ended))
        return sum(points.weights @ squares for points, squares in parts)

    def norms(self) -> tuple[float, float]:
        """|f - f^m|_E, f^m being where `aim` was called, and |f|_E."""
        now = self._tables(self.inside), self._tables(self.first)[::2], self._tables(self.last)[::2]
        before = self.start, self.start_first, self.start_last
        pairs = [zip(one, other, strict=True) for one, other in zip(now, before, strict=True)]
        return self._norm([[a - b for a, b in pair] for pair in pairs]), self._norm(now)

    def _norm(self, of: Any) -> float:
        (value, rate, slope), first, last = of
        half = 0.5 * self.delta
        total = self.inside.weights @ (value**2 + self.delta * rate**2 + _square(slope, self.inside.diffusion))
        for points, (ends, slopes) in ((self.first, first), (self.last, last)):
            total = total + points.weights @ (ends**2 + half * _square(slopes, points.diffusion))
        return float(torch.sqrt(total))

    def _tables(self, points: _Points, *, graph: bool = False) -> tuple[Any, Any, Any]:
        """f (m,), d_t f (m,), grad f (m, d); graph : for the parameters to be differentiated by."""
        t, x = points.t.detach().requires_grad_(), points.x.detach().requires_grad_()
        value = self.network(t, x)
        rate, slope = _derivatives(value, t, x, graph=graph)
        return (value, rate, slope) if graph else (value.detach(), rate, slope)

    def unseen(self) -> float:
        """See `NetworkStep`."""
        weights = self.inside.weights
        squares = [weights @ of.residual(self.network)[3] ** 2 for of in (self.elsewhere, self.equation)]
        return float(torch.sqrt(squares[0] / squares[1])) if squares[1] > 0 else float(squares[0] > 0)


def _derivatives(value: Any, *by: Any, graph: bool) -> tuple[Any, ...]:
    """Of values (m,), row by row; 0 by what they do not depend on."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(one) for one in by)
    found = torch.autograd.grad(value.sum(), by, create_graph=graph, retain_graph=True, materialize_grads=True)
    return tuple(found)


def _descend(network: Any, misfit: Callable[[], Any], inner: int) -> None:
    """L-BFGS on the parameters of a network."""
    search = torch.optim.LBFGS(
        [p for p in network.parameters() if p.requires_grad],
        max_iter=inner,
        history_size=inner,
        line_search_fn="strong_wolfe",
        tolerance_grad=_FLAT,
        tolerance_change=0.0,
    )

    def closure() -> Any:
        search.zero_grad()
        loss = misfit()
        loss.backward()
        return loss

    search.step(closure)


def _square(slope: Any, diffusion: Any) -> Any:
    """|slope|_Lambda^2, (m,)."""
    return ((diffusion @ slope[:, :, None])[:, :, 0] * slope).sum(dim=1)


def _rate(problem: ControlProblem, gauge: Gauge, t: FloatArray, x: FloatArray) -> Any:
    """rho = (r - c_r)/alpha, (m,)."""
    return _tensor((problem.r(t, x) - gauge.running) / problem.temperature)


def _terminal_slope(problem: ControlProblem, gauge: Gauge, x: FloatArray) -> FloatArray:
    """grad f_T* (m, d), by central differences."""
    shifts = _DIFFERENCE * float(np.ptp(x, axis=0).max()) * np.eye(x.shape[1])
    ahead, behind = ([gauge.terminal_u(problem, x + sign * shift) for shift in shifts] for sign in (1.0, -1.0))
    return np.stack([(a - b) / (2 * shift.max()) for a, b, shift in zip(ahead, behind, shifts, strict=True)], axis=1)
