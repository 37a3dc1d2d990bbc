"""The control problem: what is solved, before anyone asks how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import skfem
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Law, MarginalLaw
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.support.calls import call
from fem_hjb.support.checks import (
    LARGEST,
    SMALLEST,
    UNITS,
    FloatArray,
    as_points,
    frozen_array,
    number_in_units,
    positive_integer,
    real_array,
    require,
)
from fem_hjb.support.errors import EllipticityError, FemHjbError, ProblemError
from fem_hjb.support.objects import Plain, brief, callable_name, short_repr

Drift = Callable[[ArrayLike, FloatArray], ArrayLike]
"""b, a callable (t, x) -> (..., d) for points x (..., d); t is a number or has the shape x.shape[:-1].

All callables are given read-only arrays, and return a new array, or what NumPy makes one of: a list, single precision,
a torch tensor on the CPU without gradient (`torch.tensor(x)` copies x, as torch wants it).
"""

Diffusion = ArrayLike | Callable[[ArrayLike, FloatArray], ArrayLike]
"""Lambda, symmetric positive definite: a number, (d,), (d, d), or a callable (t, x) -> (..., d, d)."""

RunningReward = Callable[[ArrayLike, FloatArray], ArrayLike]
"""r, a callable (t, x) -> (...)."""

TerminalReward = Callable[[FloatArray], ArrayLike]
"""y, a callable x -> (...)."""

_WALL = (
    "; f = exp(v/alpha) of a wall, -infinity, is feynman_kac(problem, h) with h = exp(y/alpha), 0 in the wall, and any"
    " finite reward in the problem; or make it finite, max(y, -c alpha) with c from 10 to 20 where other rewards are"
    " about 0: optimal paths are as good as the wall's up to exp(-c)/f_0 in relative entropy (docs/theory.md, Walls)"
)
_EXIT_WALL = "; a face that must not be met has a finite exit reward, for instance -1000 alpha"
_T_HINT = (
    "t may be a number or an array of shape x.shape[:-1], so write np.asarray(t)[..., None] where it meets x,"
    " and return an array of the full shape even where the result is constant"
)

_CANCELLED = 1e-10  # relative to what matters: changes below it are none
_REPEATED = 1e-5  # relative change from call to call that counts as rounding, single precision included
_LARGEST = 1e150  # of what callables return where the process starts; its square is still a number


@runtime_checkable
class ValueFunction(Protocol):
    """Anything that can be judged: a mesh solution, a learned one, a closed form, two callables of the user's."""

    def value(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """v_t(x), shape (...)."""

    def gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """grad v_t(x), shape (..., d)."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class LinearDrift(Plain):
    """The drift b(x) = A x + a. Paths of a problem with this drift and a constant diffusion are sampled exactly.

    A has shape (d, d), a has shape (d,).

    >>> LinearDrift([[-1.0]], [0.5])(0.0, np.array([[2.0]])).tolist()
    [[-1.5]]
    """

    A: ArrayLike
    a: ArrayLike

    def __post_init__(self) -> None:
        shape = real_array(self.A, "LinearDrift: A", ProblemError).shape
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ProblemError(f"LinearDrift: A must be a square matrix (d, d), got shape {shape}")
        object.__setattr__(self, "A", frozen_array(self.A, "LinearDrift: A", shape, ProblemError))
        object.__setattr__(self, "a", frozen_array(self.a, "LinearDrift: a", shape[:1], ProblemError))

    @property
    def coefficients(self) -> tuple[FloatArray, FloatArray]:
        """A (d, d) and a (d,), read-only."""
        return np.asarray(self.A), np.asarray(self.a)

    def __call__(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        A, a = self.coefficients
        return np.asarray(x @ A.T + a)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ControlProblem(Plain):
    r"""Steer a diffusion to maximise a reward, paying for the steering in relative entropy.

    Uncontrolled process:  dX = b_t(X) dt + Lambda_t(X)^{1/2} dB,  X_0 ~ p_0,  0 <= t <= T.
    Controlled process:    dX = (b_t + pi_t)(X) dt + Lambda_t(X)^{1/2} dB.
    Maximise  J(pi) = E[ y(X_T) + int_0^T r_t(X_t) dt ] - alpha KL(P^pi || P),
    where KL = 1/2 E int pi' Lambda^{-1} pi dt by Girsanov. The value v solves

        d_t v + <b, grad v> + 1/2 Tr(Lambda Hess v) + r + 1/(2 alpha) grad v' Lambda grad v = 0,   v_T = y,

    the optimal policy is pi* = (1/alpha) Lambda grad v, and f = exp(v / alpha) solves the linear equation
    d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + (r/alpha) f = 0, f_T = exp(y / alpha)   (arXiv 2509.02528;
    with the penalty written 1/(2 alpha) a' Lambda^{-1} a instead, as some papers do, alpha becomes 1/alpha).

    Where the process lives in a `domain` it is reflected at its reflecting faces, and stopped at the time tau at
    which it first meets an absorbing one. With g the domain's exit reward, J(pi) is then

        E[ g(tau, X_tau) 1{tau < T} + y(X_T) 1{tau >= T} + int_0^{min(tau, T)} r_t(X_t) dt ] - alpha KL(P^pi || P),

    steering ends at tau, too, and v = g on the absorbing faces for t < T, v_T = y inside.

    Parameters (all by keyword)
    ---------------------------
    dim : d, the dimension of the state.
    horizon : T > 0.
    temperature : alpha > 0, in the units of the reward.
    drift : b, a callable (t, x) -> (..., d); t is a scalar or has the shape x.shape[:-1].
    diffusion : Lambda, symmetric positive definite: a number, (d,), (d, d), or a callable (t, x) -> (..., d, d).
    terminal_reward : y, a callable x -> (...).
    initial_law : p_0, a law of dimension d.
    running_reward : r, a callable (t, x) -> (...); None means 0.
    domain : a `Box` or `MeshDomain`, only when the process itself is reflected or stopped at its faces.
    exact : None, or something with value(t, x) and gradient(t, x), the closed form.
    marginal : None, or t -> law of X_t in closed form.
    name : used in tables and messages.

    Raises
    ------
    ProblemError : a parameter or what a callable returns at a few points of the initial law is not as said above, or a
        callable returns other numbers when it is called again. What a callable raises is the cause of a ProblemError
        that names it, here and later.
    EllipticityError : Lambda is not symmetric positive definite at one of these points.
    """

    dim: int
    horizon: float
    temperature: float
    drift: Drift
    diffusion: Diffusion
    terminal_reward: TerminalReward
    initial_law: Law
    running_reward: RunningReward | None = None
    domain: Box | MeshDomain | None = None
    exact: ValueFunction | None = None
    marginal: MarginalLaw | None = None
    name: str = "user problem"
    _constant: FloatArray | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        put = object.__setattr__
        if not isinstance(self.name, str):
            raise ProblemError(f"name must be text, got {self.name!r}")
        put(self, "dim", positive_integer(self.dim, "dim", ProblemError))
        put(self, "horizon", number_in_units(self.horizon, "horizon", ProblemError))
        put(self, "temperature", number_in_units(self.temperature, "temperature", ProblemError))
        for name, given in (("drift", self.drift), ("terminal_reward", self.terminal_reward)):
            if not callable(given):
                raise ProblemError(f"{name} must be a callable, got {type(given).__name__}")
        for name, maybe in (("running_reward", self.running_reward), ("marginal", self.marginal)):
            if maybe is not None and not callable(maybe):
                raise ProblemError(f"{name} must be a callable or None, got {type(maybe).__name__}")
        if self.exact is not None and not isinstance(self.exact, ValueFunction):
            raise ProblemError(
                f"exact must have methods value(t, x) and gradient(t, x), got {type(self.exact).__name__}"
            )
        if not isinstance(self.initial_law, Law):
            raise ProblemError(f"initial_law must be a law such as Gaussian, got {type(self.initial_law).__name__}")
        if self.initial_law.dim != self.dim:
            raise ProblemError(f"initial_law has dimension {self.initial_law.dim}, the problem has dim={self.dim}")
        if self.domain is not None:
            if not isinstance(self.domain, Box | MeshDomain):
                mesh = "; of a mesh, MeshDomain(mesh)" if isinstance(self.domain, skfem.Mesh) else ""
                raise ProblemError(
                    f"domain must be a Box, a MeshDomain or None, got {type(self.domain).__name__}{mesh}"
                )
            if self.domain.dim != self.dim:
                raise ProblemError(f"domain has dimension {self.domain.dim}, the problem has dim={self.dim}")
        if not callable(self.diffusion):
            put(self, "_constant", self._constant_diffusion(self.diffusion))
        self._probe()

    def __repr__(self) -> str:
        parts = {name: brief(getattr(self, name)) for name in ("name", "dim", "horizon", "temperature")}
        parts["drift"] = callable_name(self.drift)
        parts["diffusion"] = callable_name(self.diffusion) if callable(self.diffusion) else brief(self._constant)
        for name in ("running_reward", "terminal_reward", "initial_law", "domain", "exact", "marginal"):
            part = getattr(self, name)
            if part is not None:
                parts[name] = callable_name(part) if callable(part) else type(part).__name__
        return short_repr(self, parts)

    def _constant_diffusion(self, given: ArrayLike) -> FloatArray:
        raw = real_array(given, "diffusion", ProblemError)
        d = self.dim
        if raw.shape not in ((), (d,), (d, d)):
            raise ProblemError(
                f"diffusion must be a number, of shape ({d},) or ({d}, {d}), or a callable; got shape {raw.shape}"
            )
        full = np.diag(np.broadcast_to(raw, (d,))) if raw.ndim < 2 else raw
        matrix = frozen_array(full, "diffusion", (d, d), ProblemError)
        check_elliptic(matrix[None], np.zeros((1, d)), "diffusion")
        return matrix

    def _probe(self) -> None:
        """Call every callable at a few points of the initial law, with scalar and with batched times."""
        x = self._first_states()

        def pace() -> float:
            """The size of a drift that goes as far as the process does."""
            noise = float(np.abs(self.Lambda(0.0, x)).max())
            return float(np.abs(x).max()) / self.horizon + math.sqrt(noise / self.horizon)

        alpha = self.temperature
        for t in (0.0, self.horizon, np.linspace(0.0, self.horizon, len(x))):
            checked_twice("drift(t, x)", self.b, t, x, pace)
            checked_twice("running_reward(t, x)", self.r, t, x, lambda: alpha / self.horizon)
            if self._constant is None:
                check_elliptic(checked_twice("diffusion(t, x)", self.Lambda, t, x, lambda: 0.0), x, "diffusion(t, x)")
            if self.domain is not None:
                for on_face in self.domain.on_absorbing(x):
                    checked_twice("exit_reward(t, x)", self.exit_reward, t, on_face, lambda: alpha)
        checked_twice("terminal_reward(x)", lambda _, points: self.y(points), 0.0, x, lambda: alpha)
        if self.marginal is not None:
            check_marginal(self.marginal, self, ProblemError)

    def _first_states(self) -> FloatArray:
        """Five points at which the process may start."""
        rng = np.random.default_rng(0)
        x = call("initial_law.sample(n, rng)", lambda _: self.initial_law.sample(64, rng), (np.zeros(0),), ProblemError)
        if x.shape != (64, self.dim) or not np.isfinite(x).all():
            raise ProblemError(
                f"initial_law.sample(64, rng) must return finite points of shape (64, {self.dim}), got shape {x.shape}"
                f" with {int((~np.isfinite(x)).sum())} entries that are not finite"
            )
        return (x if self.domain is None else self._inside(x, self.domain))[:5]

    def _inside(self, x: FloatArray, domain: Box | MeshDomain) -> FloatArray:
        """Samples of the initial law, those outside moved to where the process starts; refuse more than 5 per cent."""
        stopped = domain.exited(x)
        outside = ~domain.contains(x) | stopped
        if outside.mean() > 0.05:
            there = f" ({stopped.mean():.0%} on or behind its absorbing faces)" if stopped.any() else ""
            raise ProblemError(
                f"{outside.mean():.0%} of the initial law lies outside the domain{there}, {domain.place}; start the"
                f" process inside, for instance from Uniform(domain)"
            )
        return domain.inside(x)

    @property
    def box(self) -> Box | None:
        """The domain, None if there is none. ProblemError if it is a mesh: what asks for this is for boxes only."""
        require_box(self, "this")
        return self.domain if isinstance(self.domain, Box) else None

    def b(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """The drift b_t(x), shape (..., d), checked for shape and finiteness."""
        points = as_points(x, self.dim)
        return checked_call("drift(t, x)", self.drift, (t, points), (self.dim,))

    def Lambda(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """The diffusion matrix Lambda_t(x), shape (..., d, d); a read-only broadcast when it is constant."""
        points = as_points(x, self.dim)
        if self._constant is not None:
            return np.broadcast_to(self._constant, (*points.shape[:-1], self.dim, self.dim))
        given = self.diffusion
        if not callable(given):
            raise ProblemError("diffusion must be a callable or a constant")
        return checked_call("diffusion(t, x)", given, (t, points), (self.dim, self.dim))

    def r(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """The running reward r_t(x), shape (...); 0 when the problem has none."""
        points = as_points(x, self.dim)
        if self.running_reward is None:
            return np.zeros(points.shape[:-1])
        return checked_call("running_reward(t, x)", self.running_reward, (t, points), ())

    def y(self, x: ArrayLike) -> FloatArray:
        """The terminal reward y(x), shape (...)."""
        points = as_points(x, self.dim)
        return checked_call("terminal_reward(x)", self.terminal_reward, (points,), (), walled=_WALL)

    def exit_reward(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """The exit reward g(t, x) at points on absorbing faces, shape (...); 0 when the domain has none."""
        points = as_points(x, self.dim)
        if self.domain is None or self.domain.exit_reward is None:
            return np.zeros(points.shape[:-1])
        return checked_call("exit_reward(t, x)", self.domain.exit_reward, (t, points), (), walled=_EXIT_WALL)

    @property
    def constant_diffusion(self) -> FloatArray | None:
        """Lambda as a read-only (d, d) array when it is constant, else None."""
        return self._constant

    def policy_from_gradient(self, t: ArrayLike, x: ArrayLike, gradient: FloatArray) -> FloatArray:
        """pi = (1/alpha) Lambda_t(x) grad v, shape (..., d)."""
        if self._constant is not None and np.shape(x) == gradient.shape:
            return np.asarray(gradient @ self._constant / self.temperature)
        return np.asarray(np.einsum("...ij,...j->...i", self.Lambda(t, x), gradient) / self.temperature)


def check_marginal(marginal: Any, problem: ControlProblem, error: type[FemHjbError]) -> None:
    """`error` unless marginal(t) is a law of the problem's dimension at half of its horizon."""
    t, dim = 0.5 * problem.horizon, problem.dim
    if not callable(marginal):
        raise error(f"marginal must be a callable t -> law of X_t, got {type(marginal).__name__}")
    try:
        law = marginal(t)
    except Exception as cause:  # a callable is any code
        raise error(f"marginal(t) failed at t={t:g}: {type(cause).__name__}: {cause}") from cause
    if not isinstance(law, Law) or law.dim != dim:
        got = f"one of dimension {law.dim}" if isinstance(law, Law) else type(law).__name__
        raise error(f"marginal(t) must return a law of dimension {dim}, got {got} at t={t:g}")


def require_problem(problem: object, asker: str) -> None:
    """ProblemError, which says who asked, unless it is a ControlProblem."""
    require(problem, ControlProblem, asker, ProblemError)


def require_box(problem: ControlProblem, asker: str) -> None:
    """ProblemError, which says who asked, if the domain of the problem is a mesh."""
    if isinstance(problem.domain, MeshDomain):
        raise ProblemError(
            f"{asker} is for boxes, but the domain of {problem.name!r} is {problem.domain.place}; solve_on_mesh and"
            " refine_on_mesh solve such a problem; sample_paths, compare, certify, control_error, objectives and fit"
            " take it"
        )


def checked_call(
    name: str,
    function: Callable[..., ArrayLike],
    arguments: tuple[ArrayLike, ...],
    tail: tuple[int, ...],
    *,
    passes: type[FemHjbError] = ProblemError,
    walled: str = "",
) -> FloatArray:
    """What a user's callable returns for the points x (..., d), its last argument: finite, of shape (..., *tail).

    walled : what to do about -infinity, if that is all that is not finite.
    """
    x = np.asarray(arguments[-1])
    expected = x.shape[:-1] + tail
    hint = f"; {_T_HINT}" if len(arguments) == 2 else "; return an array of the full shape, even a constant one"
    array = call(name, function, arguments, ProblemError, passes=passes, hint=hint)
    if array.shape != expected:
        raise ProblemError(f"{name} returned shape {array.shape} for x of shape {x.shape}, expected {expected}{hint}")
    finite = np.isfinite(array)
    if not finite.all():
        bad = ~finite.reshape(*x.shape[:-1], -1).all(axis=-1)
        first = x[bad][0] if x.ndim > 1 else x
        told = walled if (array[~finite] == -np.inf).all() else ""
        raise ProblemError(
            f"{name} is not finite at {int(bad.sum())} of {bad.size} points, the first is x={first}{told}"
        )
    return array


def checked_twice(
    name: str,
    function: Callable[[ArrayLike, FloatArray], FloatArray],
    t: ArrayLike,
    x: FloatArray,
    unit: Callable[[], float],
) -> FloatArray:
    """What a callable returns at points x (n, d), asked again for some of them in another order.

    unit : the size of what matters; terms that cancel leave rounding, which is far below it.

    ProblemError if it then says something else, which it does if it draws random numbers or mixes points with each
    other, as networks in training do; or if the second call overwrites the result of the first.
    """
    some = slice(len(x) // 2, None, -1)
    first = function(t, x)
    kept = first.copy()
    again = function(np.asarray(t)[some] if np.ndim(t) else t, x[some])
    size = float(np.abs(kept).max(initial=0.0))
    if size > _LARGEST:
        raise ProblemError(
            f"{name} returned numbers up to {size:.3g}; choose units in which they are below {_LARGEST:g}"
        )
    if not np.array_equal(first, kept):
        raise ProblemError(
            f"{name} hands out the same array on every call and writes into it; return a new one each time"
        )
    change = float(np.abs(again - kept[some]).max(initial=0.0))
    if change > _REPEATED * size and change > _CANCELLED * unit():
        same = np.abs(function(t, x) - kept).max(initial=0.0) <= _REPEATED * size
        why = "its value at a point depends on the other points" if same else "it is random, or remembers"
        raise ProblemError(
            f"{name} returned other numbers when it was called a second time: {why}; it must be a function of t and"
            " x alone, so fix its random numbers, and let a network be in evaluation mode"
        )
    return kept


def check_elliptic(matrices: FloatArray, x: FloatArray, name: str) -> None:
    asymmetry = np.abs(matrices - np.swapaxes(matrices, -1, -2)).max(axis=(-1, -2))
    scale = np.abs(matrices).max(axis=(-1, -2))
    if scale.max() > LARGEST:
        raise ProblemError(f"{name} has entries up to {scale.max():.3g}{UNITS}")
    lowest = np.linalg.eigvalsh(matrices)[..., 0]
    bad = (asymmetry > 1e-10 * scale) | (lowest < SMALLEST)
    if bad.any():
        i = int(np.argmax(bad))
        what = (
            f"its smallest eigenvalue is {lowest[i]:.3g}, not at least {SMALLEST:g}"
            if asymmetry[i] <= 1e-10 * scale[i]
            else f"it differs from its transpose by {asymmetry[i]:.3g}"
        )
        raise EllipticityError(f"{name} must be symmetric positive definite, at x={x[i]} {what}")
