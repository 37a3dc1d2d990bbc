"""What a problem says at a few points, by which it is told from others: callables cannot be stored, their values can.

The points cover where the process starts and goes, hence scale with the coordinates, and each quantity is compared in a
unit of its own: drifts in that of the spread or of the largest drift, rewards in temperatures or the largest reward.
"""

from collections.abc import Mapping

import numpy as np

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
    x = stored["x"]
    try:
        found = _values(problem, x)
    except ProblemError as cause:
        return [f"callables, one of which fails where it did not ({cause})"]
    if found.keys() != stored.keys():
        return ["domain"]
    scales = _scales(problem, stored)
    return [name for name, scale in scales.items() if not _same(found[name], stored[name], scale)]


def _values(problem: ControlProblem, x: FloatArray) -> Fingerprint:
    times = instants(problem.horizon)
    constant = problem.constant_diffusion
    values = {
        "x": x,
        "drift": np.stack([problem.b(t, x) for t in times]),
        "diffusion": np.stack([problem.Lambda(t, x) for t in times]) if constant is None else constant[None, None],
        "running_reward": np.stack([problem.r(t, x) for t in times]),
        "terminal_reward": problem.y(x),
        "mean of the initial law": problem.initial_law.expectation,
        "covariance of the initial law": problem.initial_law.covariance,
    }
    domain = problem.domain
    if domain is not None:
        values["corners of the domain"] = np.stack(domain.bounds)
        if isinstance(domain, MeshDomain):
            values["boundary of the domain"] = domain.measures
        else:
            values["faces of the domain"] = domain.where("reflecting") + 2.0 * domain.where("absorbing")
        if domain.absorbing:
            values["exit_reward"] = np.stack(
                [[problem.exit_reward(t, face) for face in domain.on_absorbing(x)] for t in times]
            )
    return values


def _scales(problem: ControlProblem, stored: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
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
        "faces of the domain": np.ones(problem.dim),
        "boundary of the domain": np.maximum(np.abs(stored.get("boundary of the domain", np.zeros(1))).max(), 1e-300),
        **{name: _size(stored[name], unit) for name, unit in rates.items() if name in stored},
    }
    return {name: scale for name, scale in scales.items() if name in stored}


def _size(rewards: FloatArray, unit: float) -> FloatArray:
    """How far rewards range, and a part of how large they are, for what they have in common has a rounding error."""
    return np.asarray(max(float(np.ptp(rewards)), unit, _ROUNDING * float(np.abs(rewards).max())))


def _same(found: FloatArray, stored: FloatArray, scale: FloatArray) -> bool:
    """To rounding, a constant as if it were written out; infinite entries, those of corners, where they were."""
    shape = np.broadcast_shapes(found.shape, stored.shape)
    a, b = np.broadcast_to(found, shape), np.broadcast_to(stored, shape)
    finite = np.isfinite(b)
    close = np.abs(np.where(finite, a, 0.0) - np.where(finite, b, 0.0)) <= _ROUNDING * scale
    return bool(np.where(finite, close & np.isfinite(a), a == b).all())
