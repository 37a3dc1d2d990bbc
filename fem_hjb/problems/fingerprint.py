"""What a problem says at a few points, by which it is told from others: callables cannot be stored, their values can.

The points cover where the process starts and goes, hence scale with the coordinates, and each quantity is compared in a
unit of its own: drifts in that of the spread or of the largest drift, rewards in temperatures or the largest reward.
"""

from collections.abc import Callable, Mapping

import numpy as np

from fem_hjb.problems.box import Box
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.probing import instants, scattered
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ProblemError

_POINTS = 12
_REACHES = (1.0, 0.25, 0.0)  # tried in turn, should a callable refuse points far out
_ROUNDING = 1e-6  # relative; networks in single precision differ by that much between machines

Fingerprint = dict[str, FloatArray]


def fingerprint(problem: ControlProblem) -> Fingerprint:
    """Points x (n, d), and drift (k, n, d), diffusion (k, n, d, d), running and terminal reward (k, n), (n,) there.

    With them the mean and covariance of the initial law, the corners (2, d) of the domain, codes of its faces, and
    exit rewards (k, f, n) on f absorbing faces; of a domain that is a mesh the sizes and centres of the parts of its
    boundary instead of codes, whatever its cells. The diffusion is (1, 1, d, d) where it is constant. ProblemError if a
    callable fails where the process starts.
    """
    for reach in _REACHES[:-1]:
        try:
            return _values(problem, scattered(problem, _POINTS, 0, reach))
        except ProblemError:
            continue
    return _values(problem, scattered(problem, _POINTS, 0, _REACHES[-1]))


def differences(problem: ControlProblem, stored: Mapping[str, FloatArray]) -> list[str]:
    """The names of what a problem says otherwise at the points of a `fingerprint`; none if it is the same problem."""
    return _differing(lambda: _values(problem, stored["x"]), stored, lambda: _scales(problem, stored))


def steady_fingerprint(
    problem: ExitProblem | ControlProblem, x: FloatArray, ends: FloatArray | None = None, *, rewards: bool = True
) -> Fingerprint:
    """The same where horizon, terminal reward and initial law play no role, at points x (n, d) of the domain.

    ends : points (m, d) of the boundary of a mesh, where an exit problem without a domain of its own has its exit
        reward; nan where that is none.  rewards : whether they play a role.  ProblemError if a callable fails.
    """
    if isinstance(problem, ControlProblem):
        return {"x": x, **_coefficients(problem, x), **_domain(problem, x)}
    constant, values = problem.constant_diffusion, {"x": x, "drift": problem.b(x)[None]}
    values["diffusion"] = problem.Lambda(x)[None] if constant is None else constant[None, None]
    if rewards:
        values["running_reward"] = problem.r(x)[None]
    if problem.domain is not None:
        values["corners of the domain"] = np.stack(problem.domain.bounds)
        values |= _boundary(problem.domain)
        if rewards:
            values["exit_reward"] = np.stack([[problem.g(face) for face in problem.domain.on_absorbing(x)]])
    elif rewards and ends is not None:
        values |= {"ends": ends, "exit_reward": np.array([[[_paid(problem, point) for point in ends]]])}
    return values


def steady_differences(problem: ExitProblem | ControlProblem, stored: Mapping[str, FloatArray]) -> list[str]:
    """The names of what a problem says otherwise than a `steady_fingerprint`."""
    rewards = "running_reward" in stored
    return _differing(
        lambda: steady_fingerprint(problem, stored["x"], stored.get("ends"), rewards=rewards),
        stored,
        lambda: _steady_scales(problem, stored),
    )


def _differing(
    values: Callable[[], Fingerprint], stored: Mapping[str, FloatArray], scales: Callable[[], Fingerprint]
) -> list[str]:
    try:
        found = values()
    except ProblemError as cause:
        return [f"callables, one of which fails where it did not ({cause})"]
    if found.keys() != stored.keys():
        return ["domain"]
    return [name for name, scale in scales().items() if not _same(found[name], stored[name], scale)]


def _paid(problem: ExitProblem, point: FloatArray) -> float:
    """The exit reward at a point (d,); nan where it is none, as on facets that do not absorb."""
    try:
        return float(problem.g(point[None])[0])
    except ProblemError:
        return float(np.nan)


def _values(problem: ControlProblem, x: FloatArray) -> Fingerprint:
    return {
        "x": x,
        **_coefficients(problem, x),
        "terminal_reward": problem.y(x),
        "mean of the initial law": problem.initial_law.expectation,
        "covariance of the initial law": problem.initial_law.covariance,
        **_domain(problem, x),
    }


def _coefficients(problem: ControlProblem, x: FloatArray) -> Fingerprint:
    times, constant = instants(problem.horizon), problem.constant_diffusion
    return {
        "drift": np.stack([problem.b(t, x) for t in times]),
        "diffusion": np.stack([problem.Lambda(t, x) for t in times]) if constant is None else constant[None, None],
        "running_reward": np.stack([problem.r(t, x) for t in times]),
    }


def _boundary(domain: Box | MeshDomain) -> Fingerprint:
    """What the boundary is."""
    if isinstance(domain, MeshDomain):
        return {"boundary of the domain": domain.measures}
    return {"faces of the domain": domain.where("reflecting") + 2.0 * domain.where("absorbing")}


def _domain(problem: ControlProblem, x: FloatArray) -> Fingerprint:
    domain, values, times = problem.domain, dict[str, FloatArray](), instants(problem.horizon)
    if domain is not None:
        values["corners of the domain"] = np.stack(domain.bounds)
        values |= _boundary(domain)
        if domain.absorbing:
            values["exit_reward"] = np.stack(
                [[problem.exit_reward(t, face) for face in domain.on_absorbing(x)] for t in times]
            )
    return values


def _scales(problem: ControlProblem, stored: Mapping[str, FloatArray]) -> Fingerprint:
    """What of each quantity counts as 1, broadcast against it."""
    noise = np.sqrt(np.diagonal(stored["diffusion"], axis1=-2, axis2=-1).max(axis=(0, 1)))
    spread = np.maximum(noise * np.sqrt(problem.horizon), np.ptp(stored["x"], axis=0))
    alpha = problem.temperature
    rates = {"running_reward": alpha / problem.horizon, "terminal_reward": alpha, "exit_reward": alpha}
    scales = {
        "drift": np.maximum(np.abs(stored["drift"]).max(axis=(0, 1)), spread / problem.horizon),
        "diffusion": noise[:, None] * noise,
        "mean of the initial law": spread,
        "covariance of the initial law": spread[:, None] * spread,
        "corners of the domain": spread,
        **_boundary_scales(stored),
        **{name: _size(stored[name], unit) for name, unit in rates.items() if name in stored},
    }
    return {name: scale for name, scale in scales.items() if name in stored}


def _steady_scales(problem: ExitProblem | ControlProblem, stored: Mapping[str, FloatArray]) -> Fingerprint:
    """The same where time has no unit but that in which the noise crosses the points."""
    noise = np.sqrt(np.diagonal(stored["diffusion"], axis1=-2, axis2=-1).max(axis=(0, 1)))
    spread = np.maximum(np.ptp(stored["x"], axis=0), 1e-300)
    scales = {
        "drift": np.maximum(np.abs(stored["drift"]).max(axis=(0, 1)), noise**2 / spread),
        "diffusion": noise[:, None] * noise,
        "corners of the domain": spread,
        **_boundary_scales(stored),
    }
    alpha = problem.temperature
    for name, unit in (("running_reward", alpha * float((noise**2 / spread**2).max())), ("exit_reward", alpha)):
        if name in stored:
            scales[name] = _size(stored[name], unit)
    return {name: scale for name, scale in scales.items() if name in stored}


def _boundary_scales(stored: Mapping[str, FloatArray]) -> Fingerprint:
    most = np.abs(stored.get("boundary of the domain", np.zeros(1))).max()
    return {"faces of the domain": np.ones(1), "boundary of the domain": np.maximum(most, 1e-300)}


def _size(rewards: FloatArray, unit: float) -> FloatArray:
    """How far rewards range, and a part of how large they are, for what they have in common has a rounding error."""
    known = rewards[np.isfinite(rewards)] if np.isfinite(rewards).any() else np.zeros(1)
    return np.asarray(max(float(np.ptp(known)), unit, _ROUNDING * float(np.abs(known).max())))


def _same(found: FloatArray, stored: FloatArray, scale: FloatArray) -> bool:
    """To rounding, a constant as if it were written out; infinite entries (of corners) and nan where they were."""
    try:
        shape = np.broadcast_shapes(found.shape, stored.shape)
    except ValueError:  # another number of absorbing faces
        return False
    a, b = np.broadcast_to(found, shape), np.broadcast_to(stored, shape)
    finite = np.isfinite(b)
    close = np.abs(np.where(finite, a, 0.0) - np.where(finite, b, 0.0)) <= _ROUNDING * scale
    return bool(np.where(finite, close & np.isfinite(a), (a == b) | (np.isnan(a) & np.isnan(b))).all())
