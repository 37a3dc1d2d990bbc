"""Problems without a horizon: a process that is steered until it leaves its domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Law
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, check_elliptic, checked_call, checked_twice
from fem_hjb.support.checks import FloatArray, as_points, number_in_units, positive_integer, spd_array
from fem_hjb.support.errors import EllipticityError, ProblemError
from fem_hjb.support.memory import require_room
from fem_hjb.support.objects import Plain, brief, callable_name, short_repr

Field = Callable[[FloatArray], ArrayLike]
"""A callable x -> (...), (..., d) or (..., d, d) for points x (..., d)."""


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ExitProblem(Plain):
    r"""Steer a diffusion until it leaves a domain D, paying for the steering in relative entropy.

    Uncontrolled process:  dX = b(X) dt + Lambda(X)^{1/2} dB,  until the time tau at which it meets an absorbing face.
    Controlled process:    dX = (b + pi)(X) dt + Lambda(X)^{1/2} dB.
    Maximise  J(pi) = E[ g(X_tau) + int_0^tau r(X_t) dt ] - alpha KL(P^pi || P).

    Nothing depends on time. The value v of the start solves

        <b, grad v> + 1/2 Tr(Lambda Hess v) + r + 1/(2 alpha) grad v' Lambda grad v = 0 in D,

    v = g on absorbing faces, <Lambda grad v, n> = 0 on reflecting ones; the optimal policy is
    pi* = (1/alpha) Lambda grad v, and f = exp(v / alpha) = E exp((g(X_tau) + int r dt)/alpha) solves the linear
    equation

        <b, grad f> + 1/2 Tr(Lambda Hess f) + (r/alpha) f = 0,     f = exp(g / alpha) on absorbing faces

    (W. H. Fleming and H. M. Soner, Controlled Markov Processes and Viscosity Solutions, Springer 2006, chapter VI).
    r = -alpha lambda and g = 0 make f = E exp(-lambda tau). Where r > 0 the value may be infinite; solvers see that.

    Parameters (all by keyword)
    ---------------------------
    dim : d, the dimension of the state.
    temperature : alpha > 0, in the units of the reward.
    drift : b, a callable x -> (..., d).
    diffusion : Lambda, symmetric positive definite: a number, (d,), (d, d), or a callable x -> (..., d, d).
    running_reward : r, a callable x -> (...); None means 0.
    exit_reward : g, a callable x -> (...) for points on absorbing faces; None means 0.
    domain : a `Box` with an absorbing face at least, for `solve_exit`; its "natural" faces are where a solver cuts off.
        Or a `MeshDomain`, whose boundary absorbs somewhere and is natural nowhere, for `solve_exit_on_mesh` and paths.
        None where a mesh that is given later says what the domain is.
    name : used in tables and messages.

    Raises
    ------
    ProblemError : a parameter, or what a callable returns at a few points of the box, is not as said above, or a
        callable returns other numbers when it is called again; the box does not absorb, or has an exit reward of its
        own.
    EllipticityError : Lambda is not symmetric positive definite at one of these points.
    """

    dim: int
    temperature: float
    drift: Field
    diffusion: ArrayLike | Field
    running_reward: Field | None = None
    exit_reward: Field | None = None
    domain: Box | MeshDomain | None = None
    name: str = "user problem"
    _constant: FloatArray | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        put = object.__setattr__
        if not isinstance(self.name, str):
            raise ProblemError(f"name must be text, got {self.name!r}")
        put(self, "dim", positive_integer(self.dim, "dim", ProblemError))
        put(self, "temperature", number_in_units(self.temperature, "temperature", ProblemError))
        if not callable(self.drift):
            raise ProblemError(f"drift must be a callable x -> (..., d), got {type(self.drift).__name__}")
        for name, maybe in (("running_reward", self.running_reward), ("exit_reward", self.exit_reward)):
            if maybe is not None and not callable(maybe):
                raise ProblemError(f"{name} must be a callable x -> (...) or None, got {type(maybe).__name__}")
        require_room((self.dim, self.dim), f"dim={self.dim}:", ProblemError)
        if not callable(self.diffusion):
            put(self, "_constant", spd_array(self.diffusion, "diffusion", self.dim, EllipticityError))
        if self.domain is not None:
            self._check_domain(self.domain)
            self._probe(self.domain)

    def __repr__(self) -> str:
        parts = {name: brief(getattr(self, name)) for name in ("name", "dim", "temperature")}
        parts["drift"] = callable_name(self.drift)
        parts["diffusion"] = callable_name(self.diffusion) if callable(self.diffusion) else brief(self._constant)
        for name in ("running_reward", "exit_reward"):
            part = getattr(self, name)
            if part is not None:
                parts[name] = callable_name(part)
        if self.domain is not None:
            parts["domain"] = brief(self.domain)
        return short_repr(self, parts)

    def _check_domain(self, domain: Any) -> None:
        if not isinstance(domain, Box | MeshDomain):
            raise ProblemError(f"domain must be a Box, a MeshDomain or None, got {type(domain).__name__}")
        if domain.dim != self.dim:
            raise ProblemError(f"domain has dimension {domain.dim}, the problem has dim={self.dim}")
        if not domain.absorbing:
            raise ProblemError(
                "an exit problem needs a face that absorbs, or else the process never ends, got"
                f" boundary={domain.boundary!r}; ground_state is for processes that go on"
            )
        if domain.exit_reward is not None:
            raise ProblemError(
                "the exit reward is the problem's own, exit_reward= a callable x -> (...), not the domain's"
            )
        if isinstance(domain, MeshDomain) and domain.has("natural"):
            raise ProblemError(
                "the boundary of the mesh of an exit problem absorbs or reflects, got a natural part; extend the mesh"
                " to where the process hardly ever goes, and let it reflect there"
            )

    def _probe(self, domain: Box | MeshDomain) -> None:
        """Call every callable at a few points of the domain."""
        lower, upper = domain.bounds
        low = np.where(np.isfinite(lower), lower, np.where(np.isfinite(upper), upper - 1.0, -1.0))
        high = np.where(np.isfinite(upper), upper, low + 1.0)
        x = domain.inside(low + (high - low) * np.random.default_rng(0).random((5, self.dim)))
        checked_twice("drift(x)", lambda _, x: self.b(x), 0.0, x, lambda: 1.0)
        checked_twice("running_reward(x)", lambda _, x: self.r(x), 0.0, x, lambda: self.temperature)
        if self._constant is None:
            check_elliptic(
                checked_twice("diffusion(x)", lambda _, x: self.Lambda(x), 0.0, x, lambda: 0.0), x, "diffusion(x)"
            )
        for face in domain.on_absorbing(x):
            checked_twice("exit_reward(x)", lambda _, x: self.g(x), 0.0, face, lambda: self.temperature)

    def b(self, x: ArrayLike) -> FloatArray:
        """The drift b(x), shape (..., d), checked for shape and finiteness."""
        return checked_call("drift(x)", self.drift, (as_points(x, self.dim),), (self.dim,))

    def Lambda(self, x: ArrayLike) -> FloatArray:
        """The diffusion matrix Lambda(x), shape (..., d, d); a read-only broadcast when it is constant."""
        points = as_points(x, self.dim)
        if self._constant is not None or not callable(self.diffusion):
            return np.broadcast_to(np.asarray(self._constant), (*points.shape[:-1], self.dim, self.dim))
        return checked_call("diffusion(x)", self.diffusion, (points,), (self.dim, self.dim))

    def r(self, x: ArrayLike) -> FloatArray:
        """The running reward r(x), shape (...); 0 when the problem has none."""
        points = as_points(x, self.dim)
        if self.running_reward is None:
            return np.zeros(points.shape[:-1])
        return checked_call("running_reward(x)", self.running_reward, (points,), ())

    def g(self, x: ArrayLike) -> FloatArray:
        """The exit reward g(x) at points on absorbing faces, shape (...); 0 when the problem has none."""
        points = as_points(x, self.dim)
        if self.exit_reward is None:
            return np.zeros(points.shape[:-1])
        wall = "; a face that must not be met has a finite exit reward, for instance -30 alpha"
        return checked_call("exit_reward(x)", self.exit_reward, (points,), (), walled=wall)

    @property
    def constant_diffusion(self) -> FloatArray | None:
        """Lambda as a read-only (d, d) array when it is constant, else None."""
        return self._constant

    def policy_from_gradient(self, x: ArrayLike, gradient: FloatArray) -> FloatArray:
        """pi = (1/alpha) Lambda(x) grad v, shape (..., d)."""
        return np.asarray(np.einsum("...ij,...j->...i", self.Lambda(x), gradient) / self.temperature)

    def until(
        self,
        horizon: float,
        *,
        initial_law: Law,
        terminal_reward: Field | None = None,
        domain: Box | MeshDomain | None = None,
    ) -> ControlProblem:
        """The same problem stopped at min(tau, T), as a `ControlProblem` with horizon T.

        Whoever is still inside at T is paid `terminal_reward`, a callable x -> (...); None pays nothing. With the
        value v itself as terminal reward the value at time 0 is v again, whatever T (dynamic programming): so `certify`
        judges policies of exit problems along paths that end.

        Raises ProblemError, as `ControlProblem` does, and where there is no domain.
        """
        domain = self.domain if domain is None else domain
        if domain is None:
            raise ProblemError(
                f"{self.name!r} has no domain, and paths are stopped at the faces of a Box or the boundary of a"
                " MeshDomain"
            )
        Lambda, r = self.diffusion, self.running_reward
        paid = None if self.exit_reward is None else Always(self.g)
        return ControlProblem(
            dim=self.dim,
            horizon=horizon,
            temperature=self.temperature,
            drift=Always(self.drift),
            diffusion=Always(Lambda) if callable(Lambda) else Lambda,
            running_reward=None if r is None else Always(r),
            terminal_reward=_nothing if terminal_reward is None else terminal_reward,
            initial_law=initial_law,
            domain=replace(domain, exit_reward=paid),
            name=self.name,
        )


def faces_of(domain: Box) -> list[tuple[int, str]]:
    """(axis, "lower" or "upper") of all absorbing faces.

    >>> faces_of(Box([0.0], [1.0], boundary=[("reflecting", "absorbing")]))
    [(0, 'upper')]
    """
    return [(int(axis), ("lower", "upper")[side]) for side, axis in np.argwhere(domain.where("absorbing"))]


@final
@dataclass(frozen=True, eq=False)
class Always:
    """(t, x) -> field(x); unlike a lambda it can be pickled."""

    field: Field

    def __call__(self, t: ArrayLike, x: FloatArray) -> ArrayLike:
        return self.field(x)


def _nothing(x: FloatArray) -> FloatArray:
    return np.zeros(np.shape(x)[:-1])
