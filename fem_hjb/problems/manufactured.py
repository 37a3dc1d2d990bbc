"""Problems with a value of your choice: the running reward is what makes it the value, for any drift and diffusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.box import FACES, Box
from fem_hjb.problems.laws import Law, MarginalLaw
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, Diffusion, Drift, checked_call
from fem_hjb.support.checks import FloatArray, as_points, positive_number
from fem_hjb.support.errors import ProblemError
from fem_hjb.support.objects import Plain

Field = Callable[[ArrayLike, FloatArray], ArrayLike]
"""A callable (t, x) of time and points x (..., d); t is a number or has the shape x.shape[:-1]."""

_POINTS = 12
_STEP = 1e-3  # of the differences, relative to where the process goes
_SLACK = 1e-5  # relative deviation of a derivative that counts as an error of the differences


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ChosenValue(Plain):
    """A value v and its derivatives, as they were given to `manufactured`; checked for shape and finiteness."""

    dim: int
    horizon: float
    v: Field
    v_t: Field
    slope: Field
    curvature: Field

    def value(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """v_t(x), shape (...)."""
        return self._at("value", self.v, t, x, ())

    def time_derivative(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """d_t v_t(x), shape (...)."""
        return self._at("time_derivative", self.v_t, t, x, ())

    def gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """grad v_t(x), shape (..., d)."""
        return self._at("gradient", self.slope, t, x, (self.dim,))

    def hessian(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        """Hess v_t(x), shape (..., d, d)."""
        return self._at("hessian", self.curvature, t, x, (self.dim, self.dim))

    def _at(self, name: str, function: Field, t: ArrayLike, x: ArrayLike, tail: tuple[int, ...]) -> FloatArray:
        points = as_points(x, self.dim)
        time = np.broadcast_to(np.asarray(t), points.shape[:-1]) if np.ndim(t) else t
        return checked_call(f"{name}(t, x)", function, (time, points), tail)


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ResidualReward(Plain):
    """r = -(d_t v + <b, grad v> + 1/2 Tr(Lambda Hess v) + 1/(2 alpha) grad v' Lambda grad v), shape (...)."""

    process: ControlProblem
    chosen: ChosenValue

    def __call__(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        b, Lambda = self.process.b(t, x), self.process.Lambda(t, x)
        slope = self.chosen.gradient(t, x)
        pushed = b + np.einsum("...ij,...j->...i", Lambda, slope) / (2.0 * self.process.temperature)
        noise = 0.5 * np.einsum("...ij,...ij->...", Lambda, self.chosen.hessian(t, x))
        return np.asarray(-(self.chosen.time_derivative(t, x) + (pushed * slope).sum(-1) + noise))


def manufactured(
    *,
    value: Field,
    time_derivative: Field,
    gradient: Field,
    hessian: Field,
    drift: Drift,
    diffusion: Diffusion,
    temperature: float,
    horizon: float,
    initial_law: Law,
    domain: Box | MeshDomain | None = None,
    marginal: MarginalLaw | None = None,
    name: str = "manufactured",
) -> ControlProblem:
    r"""The control problem whose value is v, for any drift b, diffusion Lambda and temperature alpha.

    Its running reward is defined by the HJB equation,

        r = -(d_t v + <b, grad v> + 1/2 Tr(Lambda Hess v) + 1/(2 alpha) grad v' Lambda grad v),   y = v_T,

    so that v is known exactly where no closed form would be: for a full Lambda that depends on the state, a drift that
    depends on time. `exact` is set. An absorbing domain pays v on its absorbing faces; on reflecting ones d v/dn must
    vanish. The method of manufactured solutions: Roache, J. Fluids Eng. 124 (2002) 4-10.

    Parameters (all by keyword)
    ---------------------------
    value, time_derivative : v and d_t v, callables (t, x) -> (...), where t is a number or has the shape x.shape[:-1].
    gradient, hessian : grad v and Hess v, callables (t, x) -> (..., d) and (t, x) -> (..., d, d).
    drift, diffusion, temperature, horizon, initial_law, domain, marginal, name : as those of a `ControlProblem`; the
        dimension is that of the initial law, and the domain has no exit reward of its own.

    The problem can be pickled if the callables can.

    Raises
    ------
    ProblemError : what a callable returns has the wrong shape or is not finite; a derivative is not that of the value,
        by finite differences of the value (for the Hessian: of the gradient) at a few points around the initial law;
        the value has a slope across a reflecting face; or `ControlProblem` refuses a parameter.

    >>> from fem_hjb.problems import Gaussian
    >>> problem = manufactured(
    ...     value=lambda t, x: np.cos(np.asarray(t)) * np.sin(x[..., 0]),
    ...     time_derivative=lambda t, x: -np.sin(np.asarray(t)) * np.sin(x[..., 0]),
    ...     gradient=lambda t, x: (np.cos(np.asarray(t)) * np.cos(x[..., 0]))[..., None],
    ...     hessian=lambda t, x: -(np.cos(np.asarray(t)) * np.sin(x[..., 0]))[..., None, None],
    ...     drift=lambda t, x: -x, diffusion=0.5, temperature=1.0, horizon=1.0, initial_law=Gaussian([0.0], 0.25))
    >>> problem.r(0.0, [[0.0]]).tolist(), problem.exact.value(0.0, [[0.0]]).tolist()
    ([-0.25], [0.0])
    """
    if not isinstance(initial_law, Law):
        raise ProblemError(f"initial_law must be a law such as Gaussian, got {type(initial_law).__name__}")
    given = {"value": value, "time_derivative": time_derivative, "gradient": gradient, "hessian": hessian}
    for key, function in given.items():
        if not callable(function):
            raise ProblemError(f"{key} must be a callable (t, x), got {type(function).__name__}")
    horizon = positive_number(horizon, "horizon", ProblemError)
    chosen = ChosenValue(
        dim=initial_law.dim, horizon=horizon, v=value, v_t=time_derivative, slope=gradient, curvature=hessian
    )
    if isinstance(domain, Box | MeshDomain) and domain.absorbing:
        if domain.exit_reward is not None:
            raise ProblemError("the domain of a manufactured problem pays the value on absorbing faces: no exit_reward")
        domain = replace(domain, exit_reward=chosen.value)
    process = ControlProblem(
        dim=initial_law.dim,
        horizon=horizon,
        temperature=temperature,
        drift=drift,
        diffusion=diffusion,
        terminal_reward=partial(chosen.value, horizon),
        initial_law=initial_law,
        domain=domain,
        exact=chosen,
        marginal=marginal,
        name=name,
    )
    _check_derivatives(process, chosen)
    return replace(process, running_reward=ResidualReward(process=process, chosen=chosen))


def _check_derivatives(process: ControlProblem, chosen: ChosenValue) -> None:
    """ProblemError unless the derivatives are those of the value, and the value is flat across reflecting faces."""
    d, T = process.dim, process.horizon
    rng = np.random.default_rng(0)
    x = process.initial_law.sample(_POINTS, rng)
    noise = np.einsum("nii->ni", process.Lambda(0.0, x)).mean(axis=0)
    size = np.sqrt(np.diag(process.initial_law.covariance) + T * noise)
    x = x + 0.5 * size * rng.standard_normal(x.shape)
    step = _STEP * size
    if isinstance(process.domain, MeshDomain):
        x, step = _away(process.domain, process.domain.inside(x), step)
    elif process.domain is not None:
        lower, upper = process.domain.bounds
        step = np.minimum(step, (upper - lower) / 100.0)
        x = np.clip(process.domain.mirror(x), lower + 5.0 * step, upper - 5.0 * step)
    t = T * (0.05 + 0.9 * rng.random(len(x)))
    dt = _STEP * T
    largest = float(np.abs(chosen.value(t, x)).max())

    def over_time(h: float) -> FloatArray:
        return np.asarray(_difference(lambda k: chosen.value(t + k * h * dt, x)) / (h * dt))

    def along(axis: int, function: Callable[[ArrayLike, ArrayLike], FloatArray], h: float) -> FloatArray:
        move = h * step[axis] * np.eye(d)[axis]
        return np.asarray(_difference(lambda k: function(t, x + k * move)) / (h * step[axis]))

    given = chosen.time_derivative(t, x)
    _compare("time_derivative(t, x)", given, over_time(1.0), over_time(2.0), largest / dt, t, x)
    slope, hessian = chosen.gradient(t, x), chosen.hessian(t, x)
    for k in range(d):
        near, far = (along(k, chosen.value, h) for h in (1.0, 2.0))
        _compare(f"gradient(t, x)[..., {k}]", slope[:, k], near, far, largest / step[k], t, x)
    for k in range(d):
        near, far = (along(k, chosen.gradient, h) for h in (1.0, 2.0))
        rounding = float(np.abs(slope).max()) / step[k]
        _compare(f"hessian(t, x)[..., {k}]", hessian[:, :, k], near, far, rounding, t, x)
    if process.domain is not None:
        _check_reflecting(process.domain, chosen, t, x)


def _away(domain: MeshDomain, x: FloatArray, step: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Those of the points that are so far from the boundary that steps along axes do not come to it, and the steps."""
    far = np.min([domain.distance(word, x) for word in FACES], axis=0)
    step = np.minimum(step, far.max() / 20.0)
    return x[far >= 5.0 * step.max()], step


def _difference(function: Callable[[float], FloatArray]) -> FloatArray:
    """f'(0) by a central difference of fourth order."""
    return np.asarray((function(-2.0) - 8.0 * function(-1.0) + 8.0 * function(1.0) - function(2.0)) / 12.0)


def _compare(
    name: str, given: FloatArray, near: FloatArray, far: FloatArray, rounding: float, t: FloatArray, x: FloatArray
) -> None:
    """Differences `near`, and those of twice the step, `far`, tell what is an error of the differences themselves."""
    size = max(float(np.abs(given).max()), float(np.abs(near).max()))
    excess = np.abs(given - near) - 3.0 * np.abs(near - far) - _SLACK * size - 1e-12 * rounding
    excess = excess.reshape(len(x), -1)
    if (excess > 0).any():
        i, j = np.unravel_index(int(excess.argmax()), excess.shape)
        raise ProblemError(
            f"{name} is not the derivative that it should be: at t={t[i]:.6g}, x={x[i].tolist()} it is"
            f" {given.reshape(len(x), -1)[i, j]:.6g}, finite differences give {near.reshape(len(x), -1)[i, j]:.6g}"
        )


def _check_reflecting(domain: Box | MeshDomain, chosen: ChosenValue, t: FloatArray, x: FloatArray) -> None:
    if isinstance(domain, MeshDomain):
        _check_facets(domain, chosen, t, x)
        return
    for side, axis in np.argwhere(domain.where("reflecting")):
        face = x.copy()
        face[:, axis] = domain.bounds[side][axis]
        slope = chosen.gradient(t, face)
        across = np.abs(slope[:, axis])
        if across.max() > 1e-8 * max(float(np.abs(chosen.gradient(t, x)).max()), float(np.abs(slope).max())):
            i = int(across.argmax())
            raise ProblemError(
                f"the value must have no slope across a reflecting face, but its gradient along axis {axis} is"
                f" {slope[i, axis]:.3g} at t={t[i]:.6g}, x={face[i].tolist()}"
            )


def _check_facets(domain: MeshDomain, chosen: ChosenValue, t: FloatArray, x: FloatArray) -> None:
    at, normal = domain.normals("reflecting")
    for when in t[:3].tolist():
        slope = chosen.gradient(when, at)
        across = np.abs((slope * normal).sum(axis=1))
        largest = max(float(np.abs(chosen.gradient(when, x)).max()), float(np.abs(slope).max(initial=0.0)))
        if across.max(initial=0.0) > 1e-8 * largest:
            i = int(across.argmax())
            raise ProblemError(
                f"the value must have no slope across a reflecting facet, but it is {across[i]:.3g} along its normal at"
                f" t={when:.6g}, x={at[i].tolist()}"
            )
